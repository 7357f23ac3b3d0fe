"""One utterance of a store, read when it is asked for."""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from encodeonce.store.quantize import restore
from encodeonce.store.table import TRANSLATION

if TYPE_CHECKING:
    from encodeonce.store.reader import FeatureStore


@dataclass(frozen=True)
class StoredUtterance:
    """One utterance of a store; what it says and its features are read when asked for."""

    store: "FeatureStore"
    index: int

    @cached_property
    def record(self) -> dict[str, Any]:
        """Its row of the table."""
        return self.store.table.slice(self.index, 1).to_pylist()[0]

    @property
    def id(self) -> str:
        """Its id."""
        return self.store.id(self.index)

    @property
    def frames(self) -> int:
        """How many frames T it has."""
        return int(self.store.frames[self.index])

    @property
    def duration(self) -> float:
        """Its length in seconds."""
        return self.record["duration"]

    @property
    def text(self) -> str | None:
        """Its transcript, where there is one."""
        return self.record["text"]

    @property
    def speaker(self) -> str | None:
        """Who speaks, where that is known."""
        return self.record["speaker"]

    @property
    def language(self) -> str | None:
        """What language it is in, where that is known."""
        return self.record["language"]

    @property
    def translations(self) -> dict[str, str]:
        """Texts in other languages, by language."""
        pairs = ((k.removeprefix(TRANSLATION), v) for k, v in self.record.items() if k.startswith(TRANSLATION))
        return {language: text for language, text in pairs if text is not None}

    @property
    def metadata(self) -> dict[str, Any]:
        """Every other column of the corpus."""
        return json.loads(self.record["metadata"] or "{}")

    @property
    def features(self) -> np.ndarray:
        """The store's default output, `[T, D]`, read-only and uncopied where the store is local; int8 restored, as float32."""
        return self[self.store.output]

    def __getitem__(self, output: str) -> np.ndarray:
        indices = np.array([self.index])
        (values,) = self.store.views(indices, output)
        return values if values.dtype != np.int8 else restore(values, self.store.affines(indices, output)[0])
