"""s3prl: its wrapper around transformers (hf_hubert) and its own HuBERT (hubert) with the checkpoint's weights.

s3prl.hub and S3PRLUpstream cannot be imported with torchaudio 2.9 or newer (byol_s calls torchaudio.set_audio_backend, which is
gone), so the two upstreams are taken from their own modules, from which s3prl.hub takes them.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from peers.extract import Extract, Extractor, Job, save_each

if TYPE_CHECKING:
    import torch


def wrapped(job: Job) -> Extract:
    """hf_hubert_custom, one by one; it gives all hidden states, of which the last is kept."""
    from s3prl.upstream.hf_hubert.hubconf import hf_hubert_custom

    return one_by_one(job, hf_hubert_custom(job.checkpoint))


def own(job: Job) -> Extract:
    """hubert_local, one by one, of a checkpoint converted to s3prl's format."""
    from s3prl.upstream.hubert.hubconf import hubert_local

    with TemporaryDirectory() as folder:
        converted = Path(folder) / "hubert.pt"
        convert(job.checkpoint, converted)
        return one_by_one(job, hubert_local(str(converted)))


def one_by_one(job: Job, upstream: Any) -> Extract:
    """The last hidden states of an upstream."""
    import torch

    upstream.eval().to(job.device)

    def encode(samples: np.ndarray) -> "torch.Tensor":
        return upstream([torch.from_numpy(samples).to(job.device)])["hidden_states"][-1][0]

    return save_each(job, encode)


def convert(checkpoint: str, file: Path) -> None:
    """Write a checkpoint in s3prl's format: fairseq's names, its two configurations, and a dictionary that nothing reads."""
    import torch
    from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

    config = HubertConfig.from_pretrained(checkpoint)
    layers = list(zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True))
    model = {
        "label_rate": 50,
        "extractor_mode": "default" if config.feat_extract_norm == "group" else "layer_norm",
        "conv_feature_layers": str(layers),
        "conv_bias": config.conv_bias,
        "encoder_layers": config.num_hidden_layers,
        "encoder_embed_dim": config.hidden_size,
        "encoder_ffn_embed_dim": config.intermediate_size,
        "encoder_attention_heads": config.num_attention_heads,
        "conv_pos": config.num_conv_pos_embeddings,
        "conv_pos_groups": config.num_conv_pos_embedding_groups,
        "layer_norm_first": config.do_stable_layer_norm,
        "final_dim": 256,
    }
    weights = fairseq_names(HubertModel.from_pretrained(checkpoint, dtype=torch.float32).state_dict(), config)
    weights["label_embs_concat"] = torch.zeros(1, 256)
    weights["final_proj.weight"] = torch.zeros(256, config.hidden_size)
    weights["final_proj.bias"] = torch.zeros(256)
    preprocessor = Wav2Vec2FeatureExtractor.from_pretrained(checkpoint)
    state = {"task_cfg": {"normalize": preprocessor.do_normalize}, "model_cfg": model, "model_weight": weights}
    torch.save({**state, "dictionaries_symbols": [["unit"]]}, file)


RENAMED = (
    (r"masked_spec_embed", "mask_emb"),
    (r"feature_projection\.layer_norm\.", "layer_norm."),
    (r"feature_projection\.projection\.", "post_extract_proj."),
    (r"encoder\.pos_conv_embed\.conv\.parametrizations\.weight\.original0", "encoder.pos_conv.0.weight_g"),
    (r"encoder\.pos_conv_embed\.conv\.parametrizations\.weight\.original1", "encoder.pos_conv.0.weight_v"),
    (r"encoder\.pos_conv_embed\.conv\.bias", "encoder.pos_conv.0.bias"),
    (r"(encoder\.layers\.\d+)\.layer_norm\.", r"\1.self_attn_layer_norm."),
    (r"(encoder\.layers\.\d+)\.attention\.", r"\1.self_attn."),
    (r"(encoder\.layers\.\d+)\.feed_forward\.intermediate_dense\.", r"\1.fc1."),
    (r"(encoder\.layers\.\d+)\.feed_forward\.output_dense\.", r"\1.fc2."),
    (r"(feature_extractor\.conv_layers\.\d+)\.conv\.", r"\1.0."),
)
"""transformers' names of weights as patterns, and fairseq's: the inverse of transformers' convert_hubert_original_pytorch_checkpoint."""


def fairseq_names(weights: "Mapping[str, torch.Tensor]", config: Any) -> "dict[str, torch.Tensor]":
    """A model's weights by fairseq's names."""
    norm = r"\1.2." if config.feat_extract_norm == "group" else r"\1.2.1."
    patterns = (*RENAMED, (r"(feature_extractor\.conv_layers\.\d+)\.layer_norm\.", norm))
    renamed = {}
    for name, values in weights.items():
        for pattern, replacement in patterns:
            name = re.sub(rf"^{pattern}", replacement, name)
        renamed[name] = values
    return renamed


EXTRACTORS = [
    Extractor("s3prl hf_hubert, one by one", "peer", wrapped, ("s3prl",)),
    Extractor("s3prl hubert, one by one", "peer", own, ("s3prl",)),
]
