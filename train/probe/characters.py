"""Texts as characters for CTC: what is kept of them, and their way to class numbers and back. Pure."""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

BLANK = 0
"""The class that CTC emits between characters."""
TYPOGRAPHIC_APOSTROPHE = "\u2019"
KEPT = "LMN"
"""The Unicode categories that are kept: letters, marks, numbers."""


def spoken(text: str) -> str:
    """A text without what cannot be heard: lower case; letters, digits, apostrophes, and single spaces for all the rest."""
    plain = unicodedata.normalize("NFC", text).lower().replace(TYPOGRAPHIC_APOSTROPHE, "'")
    kept = (c if c == "'" or unicodedata.category(c)[0] in KEPT else " " for c in plain)
    return " ".join("".join(kept).split())


def least_emissions(text: str) -> int:
    """Emissions that CTC needs for a text: one a character, and a blank between equal neighbours."""
    return len(text) + sum(a == b for a, b in pairwise(text))


@dataclass(frozen=True, slots=True)
class Characters:
    """The classes of a probe: class 0 is the blank, class i the character `known[i - 1]`."""

    known: str

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Characters":
        """The characters of some texts, in the order of their code points."""
        return cls("".join(sorted(set().union(*texts))))

    def __len__(self) -> int:
        return len(self.known) + 1

    def encode(self, text: str) -> list[int]:
        """The classes of a text; characters that are not known are left out."""
        return [number + 1 for c in text if (number := self.known.find(c)) >= 0]

    def decode(self, classes: Sequence[int]) -> str:
        """The text of the best class of each emission: repetitions are one, blanks nothing."""
        return "".join(self.known[number - 1] for number, _ in groupby(classes) if number != BLANK)
