"""A HuBERT with random weights in transformers' format, for benchmarks: python benchmarks/checkpoint.py FOLDER [--size base]."""

import argparse
import json
from pathlib import Path
from typing import Any

SIZES: dict[str, dict[str, Any]] = {
    "base": {},
    "large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "feat_extract_norm": "layer",
        "conv_bias": True,
        "do_stable_layer_norm": True,
    },
}
"""Fields of HubertConfig as in facebook/hubert-base-ls960 (its defaults) and facebook/hubert-large-ll60k."""


def make_checkpoint(folder: Path, size: str, seed: int = 0) -> None:
    """Save a model with seeded random weights, and the preprocessor's configuration as it is published with that size."""
    import torch
    from transformers import HubertConfig, HubertModel

    torch.manual_seed(seed)
    HubertModel(HubertConfig(**SIZES[size])).save_pretrained(folder)
    preprocessor = {
        "do_normalize": True,
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "padding_side": "right",
        "padding_value": 0,
        "return_attention_mask": size == "large",
        "sampling_rate": 16000,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=1))


def main() -> None:
    """Make one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=list(SIZES), default="base")
    options = parser.parse_args()
    make_checkpoint(options.folder, options.size)


if __name__ == "__main__":
    main()
