"""Moonshine's encoder: from a folder that holds the encoder alone, or the whole model."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from encodeonce.extract.encoders.checkpoint import CheckpointEncoder, LoadedCheckpoint, load_pretrained
from encodeonce.extract.encoders.weights import weight_files
from encodeonce.store.layout import Output

if TYPE_CHECKING:
    import torch


class Moonshine(CheckpointEncoder):
    """Moonshine: three convolutions, one group norm over everything, rotary positions, pre-norm layers."""

    model_class = "MoonshineEncoder"
    layer_field = "encoder_num_hidden_layers"
    fields: Mapping[str, Any] = {
        "hidden_size": 288,
        "intermediate_size": 1152,
        "encoder_num_hidden_layers": 6,
        "encoder_num_attention_heads": 8,
        "encoder_num_key_value_heads": None,
        "encoder_hidden_act": "gelu",
        "attention_bias": False,
        "pad_head_dim_to_multiple_of": None,
        "rope_parameters": None,
    }

    def computed(self, config: Mapping[str, Any]) -> dict[str, Any]:
        fields = super().computed(config)
        # transformers 4 wrote rotary positions as fields of their own, 5 writes them as one, and fills in what was left out.
        rope = {
            "rope_type": "default",
            "rope_theta": config.get("rope_theta", 10000.0),
            "partial_rotary_factor": config.get("partial_rotary_factor", 0.9),
        }
        fields["rope_parameters"] = rope | (config.get("rope_scaling") or {}) | (config.get("rope_parameters") or {})
        if fields["encoder_num_key_value_heads"] is None:
            fields["encoder_num_key_value_heads"] = fields["encoder_num_attention_heads"]
        return fields

    def convolutions(self) -> list[tuple[int, int]]:
        return [(127, 64), (7, 3), (3, 2)]

    def load(self, device: str, precision: str, outputs: Sequence[Output]) -> LoadedCheckpoint:
        from transformers import MoonshineModel
        from transformers.models.moonshine.modeling_moonshine import MoonshineEncoder

        encoder: Any
        if self._whole_model():
            model: Any = load_pretrained(MoonshineModel, self.folder)
            encoder = model.encoder
        else:
            encoder = load_pretrained(MoonshineEncoder, self.folder)
        return LoadedMoonshine(self, encoder, encoder, "layer_norm", device, precision, outputs)

    def _whole_model(self) -> bool:
        import torch
        from safetensors import safe_open

        path = weight_files(self.folder)[0]
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                names = list(file.keys())
        else:
            names = list(torch.load(path, map_location="meta", weights_only=True))
        return any(".encoder." in f".{name}" or ".decoder." in f".{name}" for name in names)


class LoadedMoonshine(LoadedCheckpoint):
    """transformers takes every 384th value of the mask, one a frame that begins inside the audio, which counts frames
    that reach into the padding; this mask is made to give the true frames."""

    def attention_mask(self, lengths: Sequence[int], frames: Sequence[int], samples: int) -> "torch.Tensor":
        hop = self.encoder.samples_per_frame
        return super().attention_mask([(count - 1) * hop + 1 for count in frames], frames, samples)
