"""Which word means which recogniser: any that transformers' pipeline loads, or Whisper in CTranslate2's format."""

from pathlib import Path

from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.recognisers.base import Recogniser, first_line
from encodeonce.evaluate.recognisers.ctranslate2 import Ctranslate2Whisper
from encodeonce.evaluate.recognisers.pipeline import TransformersRecogniser, has_vocabulary
from encodeonce.store.devices import find_device

WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")


def find_recogniser(word: str, device: str = "cpu", language: str = "en") -> Recogniser:
    """The recogniser that a word means: a folder in transformers' or CTranslate2's format, or a hub id.

    Args:
        device: auto, cpu, cuda or cuda:N.
        language: code of the language spoken, told to a multilingual Whisper; other models know their own.

    Raises:
        EvaluationError: no recogniser, not on this machine and not to be fetched, or another language than it knows.
        StoreError: no such device, or an optional library is missing; the message says the way out.
    """
    device = find_device(device)
    folder = Path(word)
    if folder.is_dir():
        name = folder.resolve().name
        if (folder / "model.bin").is_file():
            return Ctranslate2Whisper(folder, name, device, language)
        return TransformersRecogniser(folder, name, device, language)
    if word.count("/") == 1 and not word.startswith((".", "/", "~")):
        return TransformersRecogniser(_hub_folder(word), word, device, language)
    raise EvaluationError(
        f"no recogniser {word!r}: there is no such folder; give a folder in transformers' format, one in CTranslate2's, "
        f"or a hub id such as openai/whisper-large-v3"
    )


def _hub_folder(repository: str) -> Path:
    from encodeonce.extract.encoders.registry import HUB_TIMEOUT, cached_folder
    from huggingface_hub import HfApi, snapshot_download

    folder = cached_folder(repository)
    # The cache of an encoder's run holds no tokenizer.
    if folder is not None and has_vocabulary(folder):
        return folder
    try:
        names = {file.rfilename for file in HfApi().model_info(repository, timeout=HUB_TIMEOUT).siblings or ()}
        weights = WEIGHTS[0] if any(Path(name).match(WEIGHTS[0]) for name in names) else WEIGHTS[1]
        return Path(snapshot_download(repository, allow_patterns=["*.json", "*.txt", "*.model", "*.jinja", weights]))
    except Exception as error:  # the hub's client raises many kinds; all mean that it is not to be had
        raise EvaluationError(
            f"{repository} is not in the hub's cache on this machine and cannot be fetched ({first_line(error)}); "
            f"copy the checkpoint with its tokenizer into a folder and give ./that-folder"
        ) from error
