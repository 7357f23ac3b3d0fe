"""A checkpoint: a folder with the trainable tensors, the configuration, the vocabularies and what it was trained on.

    output_dir/
        step-000500/
            adapter.safetensors    what is trained (its moving average, where there is one), and the buffers beside it
            config.yaml            every option
            fingerprints.json      of the features and the language model; the step, and what validation found there
            tokenizer/             the vocabularies, where there are some
            sizes.json             of a Q-Former's body, so that nobody has to have the BERT that it began with
            state.pt               what a later run goes on with; in the last one alone
        last -> step-000500        symbolic links, swapped by a rename
        best -> step-000400

A folder is written under a temporary name, fsynced and renamed: there is no moment at which `last` is not whole.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from encodeonce.store.errors import StoreError
from encodeonce.store.files import FULL, fsync_path, make_folder, read_json, remove_tree
from encodeonce.train.batch import FeatureIdentity
from encodeonce.train.config import TrainConfig
from encodeonce.train.configure import as_values, load_config, to_yaml
from encodeonce.train.errors import TrainingError
from encodeonce.train.optimiser import trainable_parameters
from safetensors.torch import load_file, save
from torch import Tensor, nn

if TYPE_CHECKING:
    from encodeonce.train.model import AdapterModel

ADAPTER, CONFIG, FINGERPRINTS, TOKENIZER, SIZES, STATE = (
    "adapter.safetensors",
    "config.yaml",
    "fingerprints.json",
    "tokenizer",
    "sizes.json",
    "state.pt",
)
LAST, BEST = "last", "best"
OURS = re.compile(r"step-\d{6,}(\.\d+)?|\.step-\d{6,}(\.\d+)?\.tmp")
"""Names of the folders that are written here; others, such as a copy beside them, are somebody's."""
MODEL_SECTIONS = ("adapter", "objectives", "input", "text", "llm", "phases")
"""Sections of a configuration that a run which goes on cannot change."""
TEXT_OPTIONS = ("data.target", "data.lower")
"""Neither these: what is said would be something else."""
RESUME = "resume_from_checkpoint=auto goes on"
OF_A_VOCABULARY = ("adapter.text.words.", "adapter.text.bias", "adapter.ctc_head.", "objectives.ctc.head.linear.")
"""Beginnings of names of tensors with a row for each word or class."""


@dataclass(frozen=True)
class Fingerprints:
    """What a checkpoint was trained on, and by which version."""

    encoder: str
    features: str
    """Fingerprint of the feature set."""
    outputs: tuple[str, ...]
    llm: str | None
    encodeonce: str

    @classmethod
    def of(cls, identity: FeatureIdentity, model: "AdapterModel") -> "Fingerprints":
        """Those of a training."""
        llm = None if model.llm is None else model.llm.fingerprint
        return cls(identity.encoder, identity.fingerprint, tuple(identity.outputs), llm, version("encodeonce"))


@dataclass(frozen=True)
class Checkpoint:
    """What lies in a checkpoint's folder; tensors are read when they are asked for."""

    folder: Path
    fingerprints: Fingerprints
    step: int
    dev: dict[str, Any] | None
    """What validation found there."""

    @cached_property
    def config(self) -> TrainConfig:
        """The configuration it was trained with."""
        return load_config(self.folder / CONFIG)

    def tensors(self) -> dict[str, Tensor]:
        """What was trained, by name."""
        try:
            return load_file(self.folder / ADAPTER)
        except Exception as error:  # safetensors has an error of its own for damage, and the file may be gone
            raise TrainingError(f"{self.folder / ADAPTER} cannot be read: {error}; take another checkpoint") from error

    def state(self) -> dict[str, Any]:
        """What a run goes on with.

        Raises:
            TrainingError: it is not there, or damaged.
        """
        path = self.folder / STATE
        if not path.is_file():
            raise TrainingError(
                f"{self.folder} holds no {STATE}, which the last checkpoint of a training alone has: resume from "
                f"{self.folder.parent / LAST}, or begin with these weights by init_from={self.folder}"
            )
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises what it likes at damage
            raise TrainingError(f"{path} is damaged: {str(error).splitlines()[0]}; take init_from instead") from error


def load_checkpoint(folder: str | Path) -> Checkpoint:
    """What lies in a checkpoint's folder, or in the best one (else the last) of an output folder.

    Raises:
        TrainingError: it is none. StoreError: a file of it is damaged.
    """
    folder = Path(folder)
    if not (folder / FINGERPRINTS).is_file():
        folder = next((f for name in (BEST, LAST) if (f := folder / name).is_dir()), folder)
    if not all((folder / name).is_file() for name in (ADAPTER, CONFIG, FINGERPRINTS)):
        raise TrainingError(
            f"{folder} is no checkpoint: it lacks {ADAPTER}, {CONFIG} or {FINGERPRINTS}; give its folder"
        )
    values: dict[str, Any] = read_json(folder / FINGERPRINTS)
    try:
        step, dev, outputs = values.pop("step"), values.pop("dev"), tuple(values.pop("outputs"))
        return Checkpoint(folder.resolve(), Fingerprints(outputs=outputs, **values), step, dev)
    except (KeyError, TypeError) as error:
        raise TrainingError(
            f"{folder / FINGERPRINTS} is damaged, or of another version: {error}; take another checkpoint"
        ) from error


def find_checkpoint(config: TrainConfig) -> Checkpoint | None:
    """What a training goes on from; nothing where it begins.

    Raises:
        TrainingError: `output_dir` holds another training; or it is no checkpoint.
    """
    wanted, output_dir = config.resume_from_checkpoint, Path(config.output_dir)
    last = output_dir / LAST
    if wanted == "auto":
        return load_checkpoint(last) if last.is_dir() else None
    found = None if wanted is None else load_checkpoint(wanted)
    if last.is_dir() and (found is None or found.folder.parent != output_dir.resolve()):
        raise TrainingError(
            f"{output_dir} holds a training at {last.resolve().name}: {RESUME} with it; or give another output_dir"
        )
    return found


def check_fits(checkpoint: Checkpoint, ours: Fingerprints, llm: bool = True) -> None:
    """Refuse a checkpoint of other features, or (`llm`) of another language model.

    Raises:
        TrainingError: what differs, ours against the checkpoint's.
    """
    compared = ["encoder", "features", "outputs", *(["llm"] if llm else [])]
    mine, theirs = asdict(ours), asdict(checkpoint.fingerprints)
    differing = [
        f"{name} {_shown(mine[name])} against {_shown(theirs[name])}" for name in compared if mine[name] != theirs[name]
    ]
    if differing:
        raise TrainingError(
            f"{checkpoint.folder} was trained on something else, here against there: {'; '.join(differing)}; "
            f"take the features and the language model that it was trained on"
        )


def check_same_model(checkpoint: Checkpoint, config: TrainConfig) -> None:
    """Refuse to go on with another model than the checkpoint's.

    Raises:
        TrainingError: every option that differs.
    """
    ours, theirs = dict(_flat(as_values(config))), dict(_flat(as_values(checkpoint.config)))
    differing = [
        f"{path}={ours.get(path)} against {theirs.get(path)}"
        for path in dict.fromkeys([*ours, *theirs])
        if (path.split(".")[0] in MODEL_SECTIONS or path in TEXT_OPTIONS) and ours.get(path) != theirs.get(path)
    ]
    if differing:
        raise TrainingError(
            f"{checkpoint.folder} cannot be resumed, here against there: {'; '.join(differing)}; take the same, "
            f"or another output_dir and init_from={checkpoint.folder}"
        )


def other_vocabularies(checkpoint: Checkpoint, model: "AdapterModel") -> list[str]:
    """The vocabularies of a model that the checkpoint has otherwise: learnt from other texts, their numbers mean other words."""
    with TemporaryDirectory() as temporary:
        model.save_beside(Path(temporary))
        folder, theirs = Path(temporary) / TOKENIZER, checkpoint.folder / TOKENIZER
        files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
        kept = [path for path in files if (theirs / path).is_file()]
        return sorted({path.parts[0] for path in kept if (folder / path).read_bytes() != (theirs / path).read_bytes()})


def load_trainable(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a model what was trained.

    Raises:
        TrainingError: a tensor is lacking, unknown or of another shape.
    """
    named = _named(model)
    lacking = trainable_parameters(model).keys() - tensors.keys()
    unknown = tensors.keys() - named.keys()
    other = [name for name, value in tensors.items() if name in named and named[name].shape != value.shape]
    for names, what in ((lacking, "is not in it"), (unknown, "is not of this model"), (other, "has another shape")):
        if names:
            raise TrainingError(f"the checkpoint does not fit the model: {min(names)} {what} ({len(names)} tensors)")
    _fill(named, tensors)


def begin_with(model: nn.Module, tensors: Mapping[str, Tensor], other_words: bool = False) -> tuple[int, list[str]]:
    """Give a model what fits by name and shape: how many tensors were taken, and the names of those that were not.

    Args:
        other_words: the tensors are of another vocabulary, so that their rows of words do not fit whatever their shape.
    """
    named, strange = _named(model), OF_A_VOCABULARY if other_words else ()
    fitting = {
        name: value
        for name, value in tensors.items()
        if name in named and named[name].shape == value.shape and not name.startswith(strange)
    }
    _fill(named, fitting)
    return len(fitting), [name for name in tensors if name not in fitting]


def save_checkpoint(
    output_dir: Path,
    step: int,
    config: TrainConfig,
    model: "AdapterModel",
    fingerprints: Fingerprints,
    dev: Mapping[str, Any] | None,
    state: Mapping[str, Any],
    best: bool,
) -> Path:
    """Keep a model as the last checkpoint, and as the best where it is; those nobody points to go.

    Raises:
        TrainingError: it cannot be written; the checkpoints before it are whole.
    """
    name = _free_name(output_dir, step)
    temporary = output_dir / f".{name}.tmp"
    values = {**asdict(fingerprints), "step": step, "dev": dev}
    try:
        remove_tree(temporary)
        make_folder(temporary)
        _write(temporary / ADAPTER, lambda file: file.write(save(_plain(model.trainable()))))
        _write(temporary / CONFIG, lambda file: file.write(to_yaml(config).encode()))
        _write(temporary / FINGERPRINTS, lambda file: file.write((json.dumps(values, indent=1) + "\n").encode()))
        _write(temporary / STATE, lambda file: torch.save(dict(state), file))
        model.save_beside(temporary)
        for path in temporary.rglob("*"):
            fsync_path(path)
        fsync_path(temporary)
        os.replace(temporary, output_dir / name)
        fsync_path(output_dir)
        for link in [BEST] * best + [LAST]:
            _point(output_dir / link, name)
    except (OSError, RuntimeError, StoreError) as error:
        reason, way = _reason(error, output_dir)
        raise TrainingError(
            f"cannot write the checkpoint of step {step} in {output_dir}: {reason}; {_standing(output_dir)}: "
            f"{way}, and go on with resume_from_checkpoint=auto"
        ) from error
    finally:
        remove_tree(temporary)
    tidy(output_dir)
    return output_dir / name


def tidy(output_dir: Path) -> None:
    """Remove checkpoints nobody points to, what killed runs left half written, and states that are not the last one's."""
    pointed = {link: os.readlink(output_dir / link) for link in (BEST, LAST) if (output_dir / link).is_symlink()}
    for folder in list(output_dir.iterdir()):
        if OURS.fullmatch(folder.name) and folder.name not in pointed.values():
            remove_tree(folder)
    if BEST in pointed and pointed[BEST] != pointed.get(LAST):
        (output_dir / BEST / STATE).unlink(missing_ok=True)


def _free_name(output_dir: Path, step: int) -> str:
    """step-000500, or step-000500.1 ... where a link points to a folder of that name: it stays whole until it is replaced."""
    name, number = f"step-{step:06d}", 0
    while (output_dir / name).exists():
        number += 1
        name = f"step-{step:06d}.{number}"
    return name


def _write(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    with open(path, "wb") as file:
        fill(file)
        file.flush()
        os.fsync(file.fileno())


def _point(link: Path, name: str) -> None:
    temporary = link.with_name(f".{link.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(name)
    os.replace(temporary, link)
    fsync_path(link.parent)


def _reason(error: BaseException, output_dir: Path) -> tuple[str, str]:
    """What the disk said, and what to do; torch.save and atomic_write raise errors of their own over it."""
    said: BaseException | None = error
    while said is not None:
        if isinstance(said, OSError):
            if said.errno in FULL:
                return f"no space left on {output_dir}", "free space"
            return said.strerror or str(said), "mend that"
        said = said.__cause__ or said.__context__
    return str(error).splitlines()[0], "mend that"


def _standing(output_dir: Path) -> str:
    link = output_dir / LAST
    return f"{os.readlink(link)} stands whole" if link.is_symlink() else "there was none before it"


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors takes them: on the host, contiguous; what two names share under the first."""
    plain: dict[str, Tensor] = {}
    seen: set[tuple[int, torch.Size]] = set()
    for name, value in tensors.items():
        place = (value.data_ptr(), value.shape)
        if value.numel() == 0 or place not in seen:
            plain[name] = value.detach().cpu().contiguous()
        seen.add(place)
    return plain


def _named(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


@torch.no_grad()
def _fill(named: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    for name, value in tensors.items():
        named[name].copy_(value)


def _flat(values: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, dict) and values:
        for name, value in values.items():
            yield from _flat(value, f"{above}.{name}" if above else name)
    else:
        yield above, values


def _shown(value: Any) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)
