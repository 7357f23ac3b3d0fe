"""Trainings that are there already, which a sweep evaluates and does not train."""

import hashlib
import re
from math import prod
from pathlib import Path

from encodeonce.evaluate.errors import EvaluationError
from encodeonce.train.checkpoint import ADAPTER, CONFIG, FINGERPRINTS, LAST, Checkpoint, load_checkpoint

BUFFERS = re.compile(r"input\.(mean|scale)|.*\.past\.\w+")
"""Tensors of a checkpoint that are not trained: moments of the input, pairs of the past."""


def open_trained(folder: str, which: str) -> Checkpoint:
    """A checkpoint, or the one of a training's folder that is wanted.

    Args:
        which: `best`, which is the last one where nothing was validated, or `last`.

    Raises:
        EvaluationError: there is no such folder. TrainingError: it holds no checkpoint. StoreError: a file of it is damaged.
    """
    path = Path(folder)
    if not path.is_dir():
        raise EvaluationError(f"there is no folder {folder}: give a training's folder, or a checkpoint's")
    return load_checkpoint(path / LAST if which == LAST and not (path / FINGERPRINTS).is_file() else path)


def digest(checkpoint: Checkpoint) -> str:
    """A hash of what is in a checkpoint, wherever it lies; 64 hex digits."""
    found = hashlib.sha256()
    for name in (ADAPTER, CONFIG, FINGERPRINTS):
        with open(checkpoint.folder / name, "rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


def parameters_of(checkpoint: Checkpoint) -> int:
    """How many parameters were trained; the tensors are not read.

    Raises:
        EvaluationError: the tensors' file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    path = checkpoint.folder / ADAPTER
    try:
        with safe_open(path, "np") as tensors:
            names = [name for name in tensors.keys() if not BUFFERS.fullmatch(name)]  # noqa: SIM118 (it is no mapping)
            return sum(prod(tensors.get_slice(name).get_shape()) for name in names)
    except (SafetensorError, OSError) as error:
        raise EvaluationError(f"{path} cannot be read: {error}; take another checkpoint") from error
