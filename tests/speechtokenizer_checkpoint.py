"""A small random SpeechTokenizer checkpoint in its official format, and the package's own model of it."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from checkpoints import shake

CONFIG: dict[str, Any] = {
    "resblock": "1",
    "num_gpus": 3,
    "batch_size": 60,
    "learning_rate": 0.0001,
    "segment_size": 48000,
    "n_filters": 4,
    "strides": [8, 5, 4, 2],
    "dimension": 24,
    "semantic_dimension": 16,
    "bidirectional": True,
    "dilation_base": 2,
    "residual_kernel_size": 3,
    "n_residual_layers": 1,
    "lstm_layers": 2,
    "activation": "ELU",
    "codebook_size": 64,
    "n_q": 8,
    "sample_rate": 16000,
}
"""The official keys, some of training among them, with small numbers."""


def save_speechtokenizer(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Write config.json and SpeechTokenizer.pt."""
    config = {**CONFIG, **changes}
    torch.manual_seed(seed)
    model = package_model(config)
    with torch.no_grad():
        shake(model, seed)
        # Codebooks about as large as what they quantize, so that each quantizer uses many of its entries.
        latents = model.encoder(0.1 * torch.randn(1, 1, 32000))
        spread, middle = latents.std(2), latents.mean(2)
        for number, layer in enumerate(model.quantizer.vq.layers):
            vectors = torch.randn(layer.codebook.shape) * spread * 0.7**number + middle * (number == 0)
            layer._codebook.embed.copy_(vectors)
            layer._codebook.inited.fill_(1)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(model.state_dict(), folder / "SpeechTokenizer.pt")
    return folder


def package_model(config: dict[str, Any]) -> Any:
    """The package's model with random weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from speechtokenizer.model import SpeechTokenizer

        return SpeechTokenizer(config).eval()


def reference_model(folder: Path) -> Any:
    """The package's model as the package itself loads it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from speechtokenizer.model import SpeechTokenizer

        paths = folder / "config.json", folder / "SpeechTokenizer.pt"
        return SpeechTokenizer.load_from_checkpoint(*map(str, paths)).eval()
