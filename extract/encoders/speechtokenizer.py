"""SpeechTokenizer through its package: a codec whose first quantizer was taught HuBERT's units, the others the rest."""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encodeonce.extract.cache import FileCache
from encodeonce.extract.encoders.base import EncoderError, first_line
from encodeonce.extract.encoders.codec import Codec, LoadedCodec
from encodeonce.extract.encoders.weights import load_tensors, tensors_digest
from encodeonce.store.codebooks import Codebooks, Quantizer
from encodeonce.store.layout import Output

if TYPE_CHECKING:
    import torch

REPOSITORY = "fnlp/SpeechTokenizer"
HUB_FOLDER = "speechtokenizer_hubert_avg"
CONFIG, WEIGHTS = "config.json", "SpeechTokenizer.pt"

COMPUTING = (
    "n_filters",
    "strides",
    "dimension",
    "bidirectional",
    "dilation_base",
    "residual_kernel_size",
    "n_residual_layers",
    "lstm_layers",
    "activation",
    "codebook_size",
    "n_q",
)
"""The fields of the configuration that decide what codes come out; the others are the decoder's or the training's."""


class SpeechTokenizer(Codec):
    """A folder with the official config.json and SpeechTokenizer.pt (a plain state dict).

    Codes `[T, 8]`, the semantic quantizer first, and latents `[T, 1024]` at 50 frames a second of 16 kHz audio.
    """

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
        missing = [field for field in (*COMPUTING, "sample_rate", "semantic_dimension") if field not in config]
        if missing:
            raise EncoderError(f"{folder / CONFIG} lacks {', '.join(missing)}; copy the checkpoint's own config.json")
        if not (folder / WEIGHTS).is_file():
            raise EncoderError(f"{folder} holds no {WEIGHTS}; copy it there, beside {CONFIG}")
        self.config = dict(config)
        self.sample_rate = int(config["sample_rate"])
        # A convolution of stride s pads so that ceil(samples / s) come out (speechtokenizer.modules.conv.SConv1d).
        self.samples_per_frame = self.receptive_field = math.prod(config["strides"])
        self.codebook_sizes = (int(config["codebook_size"]),) * int(config["n_q"])
        self.width = int(config["dimension"])
        if not self.codebook_sizes or min(self.codebook_sizes) < 1 or self.width < 1:
            raise ValueError("no quantizers, or empty ones")

    def identity(self) -> dict[str, Any]:
        return {
            "encoder": {"class": "SpeechTokenizer", "config": {field: self.config[field] for field in COMPUTING}},
            "weights": tensors_digest([self.folder / WEIGHTS], self._cache),
            "normalise": None,
        }

    def load(self, device: str, precision: str, outputs: Sequence[Output]) -> "LoadedSpeechTokenizer":
        return LoadedSpeechTokenizer(self, load_model(self.folder, self.config), device, outputs)


class LoadedSpeechTokenizer(LoadedCodec):
    """The package's model."""

    def __init__(self, codec: SpeechTokenizer, model: Any, device: str, outputs: Sequence[Output]) -> None:
        books = [Quantizer(layer.codebook.numpy().copy()) for layer in model.quantizer.vq.layers]
        super().__init__(codec, Codebooks(tuple(books)), device, outputs)
        self.model = model.to(self.device)

    def encode_one(self, audio: "torch.Tensor") -> "torch.Tensor":
        return self.model.encode(audio[None, None])[:, 0]

    def audio_of_codes(self, codes: "torch.Tensor") -> "torch.Tensor":
        return self.model.decode(codes[:, None])[0, 0]

    def audio_of_latents(self, latents: "torch.Tensor") -> "torch.Tensor":
        return self.model.decoder(latents[None])[0, 0]


def load_model(folder: Path, config: Mapping[str, Any]) -> Any:
    """The package's model with the weights of a folder, on the CPU, ready to run.

    Raises:
        EncoderError: the package is not installed, or the weights are not those of the configuration.
    """
    import torch

    with warnings.catch_warnings():
        # The package scripts a function when imported and norms weights in the old way: today's torch warns of both.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        try:
            from speechtokenizer.model import SpeechTokenizer as Model
        except (ImportError, OSError) as error:
            raise EncoderError(
                f"SpeechTokenizer needs its package ({error}): pip install 'encodeonce[speechtokenizer]'"
            ) from error
        try:
            model: Any = Model(config).eval().requires_grad_(False)
        except Exception as error:  # the package checks nothing, so a wrong field shows in many kinds
            raise EncoderError(f"{folder / CONFIG} has a configuration that cannot be used: {error}") from error
        model.load_state_dict(read_weights(folder / WEIGHTS, model.state_dict()))
        # The product of norm and direction once, not in every pass: the same values, and none set while threads run.
        for module in model.modules():
            if hasattr(module, "weight_g"):
                torch.nn.utils.remove_weight_norm(module)
    if not all(layer._codebook.inited for layer in model.quantizer.vq.layers):
        raise EncoderError(f"{folder / WEIGHTS} was never trained: its codebooks are empty")
    return model


def read_weights(path: Path, expected: "Mapping[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """A state dict with the names and shapes that are expected.

    Raises:
        EncoderError: no plain state dict, or another model's.
    """
    import torch

    found = load_tensors(path)
    shapes = {name: list(tensor.shape) for name, tensor in found.items() if isinstance(tensor, torch.Tensor)}
    due = {name: list(tensor.shape) for name, tensor in expected.items()}
    wrong = sorted(name for name in {**due, **shapes} if due.get(name) != shapes.get(name))
    if wrong:
        name = wrong[0]
        raise EncoderError(
            f"{path} does not fit its {CONFIG}: {len(wrong)} weights differ, e.g. {name} is {shapes.get(name, 'missing')} "
            f"and should be {due.get(name, 'absent')}; copy both files of one checkpoint"
        )
    return found


def cached_folder() -> Path | None:
    """The folder of the official checkpoint in the hub's cache on disk, or None."""
    from huggingface_hub import try_to_load_from_cache

    config, weights = (try_to_load_from_cache(REPOSITORY, f"{HUB_FOLDER}/{name}") for name in (CONFIG, WEIGHTS))
    return Path(config).parent if isinstance(config, str) and isinstance(weights, str) else None


def hub_folder(timeout: float) -> Path:
    """The folder of the official checkpoint: from the hub's cache on disk, else fetched.

    Args:
        timeout: seconds to wait for the hub's first answer.

    Raises:
        EncoderError: neither works.
    """
    from huggingface_hub import HfApi, hf_hub_download

    if (folder := cached_folder()) is not None:
        return folder
    try:
        # Asked once; a download would be tried again for 23 s where there is no network.
        HfApi().model_info(REPOSITORY, timeout=timeout)
        paths = [hf_hub_download(REPOSITORY, f"{HUB_FOLDER}/{name}") for name in (CONFIG, WEIGHTS)]
    except Exception as error:  # the hub's client raises many kinds; all mean that it is not to be had
        reason = first_line(error).rstrip(".")
        raise EncoderError(
            f"speechtokenizer is {REPOSITORY}: it is not in the hub's cache on this machine and cannot be fetched ({reason}). "
            f"Copy {HUB_FOLDER}/{CONFIG} and {HUB_FOLDER}/{WEIGHTS} into a folder and give --encoder ./that-folder"
        ) from error
    return Path(paths[0]).parent
