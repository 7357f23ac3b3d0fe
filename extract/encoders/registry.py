"""Which word on the command line means which encoder. A new encoder is one file here and one line below."""

import difflib
from collections.abc import Callable, Set
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from encodeonce.extract.cache import FileCache
from encodeonce.extract.encoders import speechtokenizer
from encodeonce.extract.encoders.base import Encoder, EncoderError, first_line
from encodeonce.extract.encoders.checkpoint import PREPROCESSORS, read_config
from encodeonce.extract.encoders.known import KNOWN, Known
from encodeonce.extract.encoders.weights import SAFETENSORS, weight_files

HUB = {known.name: known.source for known in KNOWN if known.on_hub}
"""Short names of checkpoints on the hub; each of those in transformers' format has a preprocessor_config.json there."""

HUB_TIMEOUT = 10.0
"""Seconds to wait for the hub's answer on what a repository holds."""

PUBLISHED_NORMALISE = {known.name: known.normalise for known in KNOWN if known.normalise is not None}
"""What the published preprocessor says of do_normalize, for a hub cache that holds the model and not its preprocessor."""

MODEL_TYPES = {
    "hubert": "ssl:Hubert",
    "wav2vec2": "ssl:Wav2Vec2",
    "wav2vec2-conformer": "ssl:Wav2Vec2Conformer",
    "wavlm": "ssl:WavLM",
    "data2vec-audio": "ssl:Data2VecAudio",
    "unispeech": "ssl:UniSpeech",
    "unispeech-sat": "ssl:UniSpeechSat",
    "moonshine": "moonshine:Moonshine",
    "wav2vec2-bert": "w2v_bert:Wav2Vec2Bert",
    "whisper": "whisper:Whisper",
    "encodec": "encodec:Encodec",
    "dac": "dac:Dac",
    "mimi": "mimi:Mimi",
    "xcodec": "xcodec:Xcodec",
    "higgs_audio_v2_tokenizer": "xcodec:HiggsAudioTokenizer",
    "xcodec2": "xcodec2:Xcodec2",
    "neucodec": "xcodec2:NeuCodec",
    "speechtokenizer": "speechtokenizer:SpeechTokenizer",
}
"""transformers' model_type -> the class that encodes with it, as module:class of this package."""


def _fbank(cache: FileCache) -> Encoder:
    return _named("fbank:Fbank")()


def _mfcc(cache: FileCache) -> Encoder:
    return _named("mfcc:Mfcc")()


def _moonshine_onnx(cache: FileCache) -> Encoder:
    return _named("onnx:moonshine_tiny")(cache)


BUILT_IN: dict[str, Callable[[FileCache], Encoder]] = {
    "moonshine-tiny-onnx": _moonshine_onnx,
    "fbank": _fbank,
    "mfcc": _mfcc,
}
"""Encoders that need no checkpoint of transformers."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One row of --list-encoders: what is known of an encoder, and whether it is on this machine."""

    known: Known
    here: bool


def find_encoder(word: str, cache: FileCache, base_encoder: str | None = None) -> Encoder:
    """The encoder that a word means: a short name, a folder in transformers' format, a hub id, `onnx:FILE`, `units:FOLDER`.

    Args:
        base_encoder: the encoder under `units:FOLDER`; None: the one that the k-means names.

    Raises:
        EncoderError: nothing of that name, or it is not on this machine and cannot be fetched.
    """
    if word.startswith("units:"):
        return _named("units:find_units")(word.removeprefix("units:"), base_encoder, cache)
    if base_encoder is not None:
        raise EncoderError(f"--base-encoder {base_encoder} belongs to --encoder units:FOLDER, not to {word}")
    if word.startswith("onnx:"):
        path = Path(word.removeprefix("onnx:"))
        return _named("onnx:OnnxEncoder")(path, path.stem, cache)
    if word in BUILT_IN:
        return BUILT_IN[word](cache)
    if word in HUB:
        return _from_folder(hub_folder(HUB[word], word), word, HUB[word], cache, PUBLISHED_NORMALISE.get(word))
    folder = Path(word)
    if folder.is_dir():
        name = folder.resolve().name
        return _from_folder(folder, name, name, cache)
    if word.count("/") == 1 and not word.startswith((".", "/", "~")):
        names = {hub: short for short, hub in HUB.items()}
        name = names.get(word, word.split("/")[1])
        return _from_folder(hub_folder(word, word), name, word, cache, PUBLISHED_NORMALISE.get(name))
    close = difflib.get_close_matches(word, short_names(), 3)
    hint = f"did you mean {' or '.join(close)}?" if close else "nor is there a folder of this name."
    raise EncoderError(
        f"no encoder {word!r}; {hint} --list-encoders names them; "
        f"a folder in transformers' format, a hub id, onnx:FILE and units:FOLDER will do too"
    )


def short_names() -> list[str]:
    """The words that need no folder and no hub id."""
    return list(dict.fromkeys([*HUB, *BUILT_IN]))


def list_encoders() -> list[Listed]:
    """Every short name, and whether it is on this machine."""
    return [Listed(known, _is_here(known)) for known in KNOWN]


def _is_here(known: Known) -> bool:
    if known.on_hub:
        return cached_folder(known.source) is not None
    return find_spec(known.source.removeprefix("package ").replace("-", "_")) is not None


def cached_folder(repository: str) -> Path | None:
    """The folder of a whole checkpoint in the hub's cache on disk, or None."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if repository == speechtokenizer.REPOSITORY:
        return speechtokenizer.cached_folder()
    try:
        folder = Path(snapshot_download(repository, local_files_only=True))
        weight_files(folder)
    except (LocalEntryNotFoundError, EncoderError, OSError, ValueError):
        return None
    return folder if (folder / "config.json").is_file() else None


def hub_folder(repository: str, word: str) -> Path:
    """The folder of a checkpoint: from the hub's cache on disk, else fetched.

    Raises:
        EncoderError: neither works.
    """
    if repository == speechtokenizer.REPOSITORY:
        return speechtokenizer.hub_folder(HUB_TIMEOUT)
    folder = cached_folder(repository)
    # A cache that transformers' models alone have filled lacks the preprocessor, which decides whether audio is normalised.
    if folder is not None and any((folder / name).is_file() for name in PREPROCESSORS):
        return folder
    from huggingface_hub import HfApi, snapshot_download

    try:
        # model_info is asked once; listing the files would be tried again for 23 s where there is no network.
        names = {file.rfilename for file in HfApi().model_info(repository, timeout=HUB_TIMEOUT).siblings or ()}
        return Path(snapshot_download(repository, allow_patterns=wanted_files(names)))
    except Exception as error:  # the hub's client raises many kinds; all mean that it is not to be had
        unsure = {HUB[name] for name in HUB if name not in PUBLISHED_NORMALISE}
        if folder is not None and repository not in unsure:
            return folder
        lacking = "its preprocessor_config.json is" if folder is not None else "it is"
        reason = first_line(error).rstrip(".")
        named = word if word == repository else f"{word} is {repository}"
        raise EncoderError(
            f"{named}: {lacking} not in the hub's cache on this machine and cannot be fetched ({reason}). "
            f"Copy the checkpoint (config.json, preprocessor_config.json, model.safetensors) into a folder and give "
            f"--encoder ./that-folder"
        ) from error


def wanted_files(names: Set[str]) -> list[str]:
    """Patterns of the files of a repository that make a checkpoint: configurations and one set of weights.

    Some hold their weights a second time, as openai/whisper-large-v3 does in model.fp32-00001-of-00002.safetensors.
    """
    safe = names & {SAFETENSORS, f"{SAFETENSORS}.index.json"}
    stem, ending = ("model", "safetensors") if safe else ("pytorch_model", "bin")
    return ["*config.json", f"{stem}.{ending}.index.json", f"{stem}.{ending}", f"{stem}-*.{ending}"]


def _from_folder(
    folder: Path, name: str, source: str, cache: FileCache, published_normalise: bool | None = None
) -> Encoder:
    config = read_config(folder)
    model_type = config["model_type"]
    if model_type not in MODEL_TYPES:
        raise EncoderError(
            f"{name} is a checkpoint of {model_type!r}, which is no encoder known here; known are: {', '.join(MODEL_TYPES)}"
        )
    try:
        encoder = _named(MODEL_TYPES[model_type])(folder, config, name, source, cache, published_normalise)
        if min(encoder.sample_rate, encoder.samples_per_frame, encoder.receptive_field) < 1:
            raise ValueError("a rate, kernel or stride below 1")
        # What these read of the configuration is refused here as well, not in the middle of a run.
        encoder.outputs(encoder.default_outputs, "float16")
        encoder.frames(encoder.sample_rate)
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
        raise EncoderError(f"{folder} has a configuration that cannot be used: {error}") from error
    return encoder


def _named(entry: str) -> Callable[..., Encoder]:
    module, name = entry.split(":")
    return getattr(import_module(f"encodeonce.extract.encoders.{module}"), name)
