"""Text as token ids: the interface that all vocabularies share."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path


class Tokenizer(ABC):
    """Text to ids and back, without special tokens; the ids of those are attributes.

    A vocabulary of one's own begins with [PAD] 0, [CLS], [SEP], [DEC], [UNK]; that of a BERT keeps its ids and gets [DEC] as its last.
    """

    size: int
    """Ids are below this, special ones included."""
    pad: int
    start: int
    """[CLS], which begins a text that is read."""
    end: int
    """[SEP], which ends every text."""
    decode_start: int
    """[DEC], which begins a text that is generated."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of a text, no special ones but [UNK]."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special ones are left out."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what `load_tokenizer` reads."""
