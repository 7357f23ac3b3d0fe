"""Copies of GGUF models in transformers' format, in the user's cache folder: unpacking takes far longer than loading.

Everything here can be made again: deleting a copy costs time, never a wrong answer.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from encodeonce.store.cache import cache_folder
from encodeonce.store.errors import StoreError
from encodeonce.store.files import make_folder, move, sha256_of, write_json
from encodeonce.train.llm.quiet import quiet
from encodeonce.train.pretrained import Pretrained

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RECORD = "files.json"
"""The sha256 of every file of a copy, by name."""


@dataclass(frozen=True, slots=True)
class UnpackedCopy:
    """The copy of a GGUF file in one dtype, there or not. A cache that cannot be read or written is silently none."""

    name: str
    folder: Path

    @classmethod
    def of(cls, found: Pretrained, dtype: str) -> "UnpackedCopy":
        """Where the copy of a GGUF file belongs: by what the whole file holds, the dtype, and who unpacks."""
        import transformers

        (file,) = found.weights
        return cls(found.name, cache_folder() / "llms" / f"{sha256_of(file)}-{dtype}-{transformers.__version__}")

    def find(self) -> Pretrained | None:
        """The copy; one that is damaged is removed."""
        if self._is_whole():
            return Pretrained(self.name, self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)
        return None

    def keep(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
        """Write the copy, to appear whole or not at all; not while another process writes one."""
        part = self.folder.with_name(f"{self.folder.name}.part")
        with suppress(OSError, StoreError), _lock(part.parent):
            shutil.rmtree(part, ignore_errors=True)  # a killed process's
            try:
                with quiet():
                    model.save_pretrained(part)
                    tokenizer.save_pretrained(part)
                write_json(part / RECORD, {path.name: sha256_of(path) for path in part.iterdir()})
                move(part, self.folder)
            except Exception:  # safetensors has kinds of its own for a full disk
                shutil.rmtree(part, ignore_errors=True)

    def _is_whole(self) -> bool:
        try:
            record = json.loads((self.folder / RECORD).read_bytes())
            return all(sha256_of(self.folder / name) == sha256 for name, sha256 in record.items())
        except (OSError, ValueError, AttributeError):
            return False


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold a folder, made where it is missing; BlockingIOError where another process does."""
    make_folder(folder)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)
