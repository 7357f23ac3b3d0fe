"""What every format exports: the utterances of a store one after the other, and names for their files."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from encodeonce.store.errors import StoreError
from encodeonce.store.identity import member_key
from encodeonce.store.layout import Output
from encodeonce.store.progress import Advance
from encodeonce.store.reader import FeatureStore
from encodeonce.store.table import TRANSLATION
from encodeonce.store.walk import walk

LONGEST_NAME = 200
"""Bytes of a file's name; file systems take 255, and formats add endings."""


@dataclass(frozen=True)
class Export:
    """One export: `folder` is filled, and then becomes `target`, the name that manifests have to write."""

    store: FeatureStore
    output: Output
    dtype: np.dtype | None
    folder: Path
    target: Path
    advance: Advance

    @property
    def value_dtype(self) -> np.dtype:
        """The dtype of the values that `utterances` gives."""
        return self.dtype or np.dtype("float32" if self.output.dtype == "int8" else self.output.dtype)

    def utterances(self) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
        """Each utterance's row of the table and its frames `[T, D]`, telling of progress."""
        for record, stored in walk(self.store, self.output.name):
            with np.errstate(over="ignore"):
                values = stored.astype(self.value_dtype, copy=False)
            if values.dtype.itemsize < stored.dtype.itemsize and not np.isfinite(values).all():
                raise StoreError(
                    f"{record['id']} has values up to {np.abs(stored).max():g}, beyond {values.dtype}: export float32"
                )
            yield record, values
            self.advance(1)


def file_stem(utterance_id: str) -> str:
    """A file's name for an utterance, without an ending: its member key, a long one shortened with a hash of the id."""
    key = member_key(utterance_id)
    if len(key) <= LONGEST_NAME:
        return key
    return f"{key[:150].rpartition('%')[0] or key[:150]}-{hashlib.sha256(utterance_id.encode()).hexdigest()[:32]}"


def descriptions(record: dict[str, Any]) -> dict[str, Any]:
    """What a row of the table says of an utterance beside its text, without what it does not know; the translations as one."""
    translations = {
        name.removeprefix(TRANSLATION): text
        for name, text in record.items()
        if name.startswith(TRANSLATION) and text is not None
    }
    facts = {name: record[name] for name in ("offset", "channel", "speaker", "language", "audio_sha256")}
    facts |= {"translations": translations or None, "metadata": json.loads(record["metadata"] or "null")}
    return {name: value for name, value in facts.items() if value is not None}
