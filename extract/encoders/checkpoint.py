"""What all encoders that transformers loads share: a checkpoint folder, its identity, and the forward pass by layers."""

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encodeonce.extract.cache import FileCache
from encodeonce.extract.encoders.base import (
    NORMALISED,
    Chosen,
    Encoder,
    EncoderError,
    LoadedEncoder,
    first_line,
    named_layers,
    output_name,
)
from encodeonce.extract.encoders.weights import weight_files, weights_digest
from encodeonce.store.layout import Output

if TYPE_CHECKING:
    import torch
    from torch import nn

PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")


class CheckpointEncoder(Encoder):
    """An encoder in a folder in transformers' format. A family says which fields of its configuration compute what."""

    model_class: str
    """transformers' class, named in the identity."""
    layer_field: str
    """The configuration field that counts the layers."""
    width_field = "hidden_size"
    """The configuration field that tells the width of the hidden states."""
    mixes_lengths = True
    fields: Mapping[str, Any]
    """The configuration fields that change what is computed, with the defaults of the configuration class."""

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        name: str,
        source: str,
        cache: FileCache,
        published_normalise: bool | None = None,
    ) -> None:
        self.folder, self.name, self.source, self._cache = folder, name, source, cache
        self.config = self.computed(config)
        require_own_weights(folder, config)
        preprocessor = read_preprocessor(folder)
        self.sample_rate = int(preprocessor.get("sampling_rate", 16000))
        self.take_preprocessor(preprocessor, published_normalise)
        kernels = self.convolutions()
        self.samples_per_frame, self.receptive_field = 1, 1
        for kernel, stride in kernels:
            self.receptive_field += (kernel - 1) * self.samples_per_frame
            self.samples_per_frame *= stride

    def take_preprocessor(self, preprocessor: Mapping[str, Any], published_normalise: bool | None) -> None:
        """Learn from the preprocessor's configuration, empty where there is none, what the model is fed with."""
        # What the file leaves out has the value of transformers' Wav2Vec2FeatureExtractor.
        self.normalise = bool(preprocessor.get("do_normalize", True) if preprocessor else published_normalise)
        if not preprocessor:
            fed = "scaled to zero mean and unit variance" if self.normalise else "fed as it is"
            why = f", as published for {self.source}" if published_normalise is not None else ""
            self.note = f"{self.name} has no {PREPROCESSORS[0]} here: audio is {fed}{why}"

    def computed(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a configuration that change what is computed."""
        return filled_in(self.fields, config)

    @property
    def layers(self) -> int:
        """How many layers there are; hidden states are numbered from 0 to this."""
        return int(self.config[self.layer_field])

    @abstractmethod
    def convolutions(self) -> list[tuple[int, int]]:
        """Kernel and stride of each convolution from samples to frames, in order."""

    def identity(self) -> dict[str, Any]:
        return {
            "encoder": {"class": self.model_class, "config": self.config},
            "weights": weights_digest(self.folder, self._cache),
            "normalise": NORMALISED if self.normalise else None,
        }

    def outputs(self, chosen: str, dtype: str) -> list[Output]:
        width = int(self.config[self.width_field])
        return [
            Output(output_name(layers.name, dtype), width, dtype, layers.what)
            for layers in named_layers(chosen, self.layers + 1, self.layers)
        ]


def filled_in(fields: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Some fields of a configuration, with defaults where they are left out, each spelt in one way."""
    return {
        field: float(value) if isinstance(default, float) and isinstance(value, int) else value
        for field, default in fields.items()
        for value in [config.get(field, default)]
    }


class LoadedCheckpoint(LoadedEncoder):
    """A transformers model cut off after the deepest layer asked for, its padding made invisible.

    Args:
        layer_list: where the model keeps its layers, e.g. ("encoder", "layers").
        final_norm: where it keeps a norm that follows the last layer, or None.
    """

    def __init__(
        self,
        encoder: CheckpointEncoder,
        model: "nn.Module",
        stack: "nn.Module",
        final_norm: str | None,
        device: str,
        precision: str,
        outputs: Sequence[Output],
    ) -> None:
        import torch
        from encodeonce.extract.encoders.masking import HiddenStates, PaddingZeroed, mask_group_norms
        from torch import nn

        self.encoder = encoder
        self.device = torch.device(device)
        self.dtype = getattr(torch, precision)
        self.wanted = {output.what: Chosen.of(output.what) for output in outputs}
        self.deepest = max(layers.last for layers in self.wanted.values())
        layers = stack.get_submodule("layers")
        assert isinstance(layers, nn.ModuleList)
        if self.deepest < encoder.layers:
            stack.layers = layers = layers[: self.deepest]
            if final_norm is not None:
                setattr(stack, final_norm, nn.Identity())
        needed = {number for chosen in self.wanted.values() for number in range(chosen.first, chosen.last + 1)}
        self.states = HiddenStates(layers, sorted(needed - {self.deepest}))
        self.group_norms = mask_group_norms(model)
        self.zeroed = PaddingZeroed(stack) if stack is not model else None
        frequencies = [(module, module.inv_freq) for module in model.modules() if hasattr(module, "inv_freq")]
        self.model = model.to(self.device, self.dtype).eval().requires_grad_(False)
        for module, values in frequencies:  # of rotary positions; rounded, they would turn late frames by a radian
            module.inv_freq = values.to(self.device)

    def forward(self, audio: "torch.Tensor", lengths: Sequence[int]) -> "dict[str, torch.Tensor]":
        import torch

        frames = [self.encoder.frames(length) for length in lengths]
        mixed = len(set(lengths)) > 1
        kernel, stride = self.encoder.convolutions()[0]
        for norm in self.group_norms:
            norm.here.lengths = [(length - kernel) // stride + 1 for length in lengths] if mixed else None
        if self.zeroed is not None:
            self.zeroed.here.lengths = frames if mixed else None
        with torch.inference_mode():
            mask = self.attention_mask(lengths, frames, audio.shape[1]).to(self.device) if mixed else None
            inputs = self.inputs(audio, lengths).to(self.device, self.dtype)
            final = self.model(inputs, attention_mask=mask).last_hidden_state
            states = {**self.states.here.caught, self.deepest: final}
            self.states.here.caught.clear()
            return {what: mean_state(states, chosen)[:, : max(frames)] for what, chosen in self.wanted.items()}

    def inputs(self, audio: "torch.Tensor", lengths: Sequence[int]) -> "torch.Tensor":
        """What the model takes: the audio itself `[B, S]`, where a family does not say otherwise."""
        return audio

    def attention_mask(self, lengths: Sequence[int], frames: Sequence[int], samples: int) -> "torch.Tensor":
        """`[B, samples]` int64, from which the model makes the mask of the valid frames."""
        from encodeonce.extract.encoders.masking import frame_mask

        return frame_mask(lengths, samples, self.device).long()


def mean_state(states: "Mapping[int, torch.Tensor]", chosen: Chosen) -> "torch.Tensor":
    """`[B, T, D]` float32: the mean of the chosen hidden states, summed in float32 in their order; of one, that one."""
    total = states[chosen.first].float()
    for number in range(chosen.first + 1, chosen.last + 1):
        total = total + states[number].float()
    return total / (chosen.last - chosen.first + 1) if chosen.mean else total


def require_own_weights(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a checkpoint without weights, or one that would load others than those of its files.

    Raises:
        EncoderError: it is such a one.
    """
    if config.get("transformers_weights") or (folder / "adapter_config.json").exists():
        raise EncoderError(
            f"{folder} would load other weights than its own (transformers_weights in config.json, or an adapter); "
            f"save the model with its weights merged, and without them"
        )
    weight_files(folder)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint folder.

    Raises:
        EncoderError: not there, or no JSON object with a model_type.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if {"strides", "n_q", "semantic_dimension"} <= config.keys():  # the official files name no model_type
            config.setdefault("model_type", "speechtokenizer")
        config["model_type"]
    except FileNotFoundError:
        raise EncoderError(f"{folder} is no checkpoint in transformers' format: it has no config.json") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EncoderError(f"{path} is no configuration of transformers: {error!r}") from None
    return config


def read_preprocessor(folder: Path) -> dict[str, Any]:
    """What the checkpoint's preprocessor says: preprocessor_config.json, or processor_config.json's feature_extractor.

    Where there is neither, an empty one.
    """
    for name in PREPROCESSORS:
        path = folder / name
        if path.is_file():
            try:
                data = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise EncoderError(f"{path} is no JSON: {error}") from None
            if not isinstance(data, dict):
                raise EncoderError(f"{path} is no preprocessor's configuration: it holds no JSON object")
            said = data.get("feature_extractor", data if name == PREPROCESSORS[0] else None)
            if isinstance(said, dict):
                return said
    return {}


def load_pretrained(model_class: Any, folder: Path, **options: Any) -> "nn.Module":
    """A model with all its weights from a folder, float32.

    Raises:
        EncoderError: the checkpoint lacks weights (they would be random), or they do not fit.
    """
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model, report = model_class.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that the report names them; they are refused below
            **options,
        )
    except Exception as error:  # a damaged checkpoint shows in many kinds, safetensors' own among them
        reason = first_line(error)
        raise EncoderError(f"{folder} cannot be loaded: {reason}") from error
    finally:
        logging.set_verbosity(verbosity)
    # masked_spec_embed replaces masked frames in training; a frozen encoder never reads it.
    missing = sorted(name for name in report["missing_keys"] if not name.endswith("masked_spec_embed"))
    if missing:
        raise EncoderError(
            f"{folder} lacks weights of {model_class.__name__} ({len(missing)}, e.g. {missing[0]}): they would be random"
        )
    if report["mismatched_keys"]:
        name, found, due = min(report["mismatched_keys"])
        raise EncoderError(
            f"{folder}: {len(report['mismatched_keys'])} weights do not fit its config.json, e.g. {name} is {list(found)} and "
            f"should be {list(due)}; copy both files of one checkpoint"
        )
    return model
