"""An export from beginning to end: it appears under its name whole, or not at all."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
from encodeonce.store.errors import StoreError
from encodeonce.store.exports.base import Export
from encodeonce.store.locks import writer_lock
from encodeonce.store.progress import Advance, silent
from encodeonce.store.reader import FeatureStore

FORMATS = {
    "npy": "npy_files",
    "lhotse": "lhotse_cuts",
    "kaldi": "kaldi_ark",
    "huggingface": "hugging_face",
}
"""The modules of this package that write a format: each has `write(export) -> notes`."""


@dataclass(frozen=True)
class Exported:
    """What an export left: notes are sentences that its user should read."""

    path: Path
    utterances: int
    frames: int
    notes: list[str]


def export(
    store: FeatureStore,
    form: str,
    to: str | Path,
    output: str | None = None,
    dtype: str | None = None,
    advance: Advance = silent,
) -> Exported:
    """Write an output of a store to a new folder, one utterance after the other.

    Args:
        store: what to export.
        form: npy, lhotse, kaldi or huggingface; see docs/views.md for what each holds.
        to: a folder that is not there yet.
        output: which output; by default the store's default one.
        dtype: float16 or float32; by default as it is stored (int8 restored, as float32). Kaldi knows float32 alone.
        advance: told of utterances that are done.

    Raises:
        StoreError: the folder is there, no such output or format, a dtype that cannot be, or a library that is missing.
    """
    spec = store.spec(output)
    if form not in FORMATS:
        raise StoreError(f"no format {form!r}; there are {', '.join(FORMATS)}")
    if "://" in str(to):
        raise StoreError(f"exports are written to a local folder, and {to} is none; export first, then copy it there")
    target = Path(to).absolute()
    if target.exists() or target.is_symlink():
        raise StoreError(f"{target} is there already; give a new folder, or take it away first")
    if spec.dtype == "uint16" and dtype:
        raise StoreError(f"{spec.name} holds codes (uint16), which are exported as they are; leave dtype {dtype} out")
    write: Callable[[Export], list[str]] = import_module(f"{__package__}.{FORMATS[form]}").write
    folder = target.with_name(f".{target.name}.unfinished")
    try:
        with writer_lock(folder):
            try:
                _clear(folder)
                notes = write(Export(store, spec, np.dtype(dtype) if dtype else None, folder, target, advance))
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        os.rename(folder, target)
    except OSError as error:
        raise StoreError(
            f"cannot write {target}: {error}; give a --to folder that can be written, with room enough"
        ) from error
    return Exported(target, len(store), int(store.frames.sum()), notes)


def _clear(folder: Path) -> None:
    """Take away what a killed export left; `.writer` is the lock we hold."""
    for path in folder.iterdir():
        if path.name != ".writer":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
