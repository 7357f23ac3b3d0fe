"""A reference and a hypothesis word by word."""

from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

from encodeonce.evaluate.metrics.word_errors import align

MOST_PAIRS = 200
"""A hypothesis that repeats itself to the end of its budget is not shown to its end."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A word that was said and the one that was written for it; an empty one was not there."""

    reference: str
    hypothesis: str

    @property
    def kind(self) -> Literal["same", "substituted", "deleted", "inserted"]:
        """What happened to the word."""
        if self.reference == self.hypothesis:
            return "same"
        if not self.hypothesis:
            return "deleted"
        return "substituted" if self.reference else "inserted"

    def shortened(self, most: int) -> "Pair":
        """With the beginnings of words of more than `most` characters."""
        reference, hypothesis = (
            word if len(word) <= most else f"{word[:most]}… ({len(word):,} characters)"
            for word in (self.reference, self.hypothesis)
        )
        return Pair(reference, hypothesis)


def aligned(reference: str, hypothesis: str) -> list[Pair]:
    """Two normalised texts as pairs of words, with the fewest errors."""
    runs = align(reference, hypothesis)
    return [Pair(*words) for run in runs for words in zip_longest(run.reference, run.hypothesis, fillvalue="")]
