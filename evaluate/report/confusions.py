"""Which words a system takes for which, leaves out and puts in."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nlargest
from typing import cast

from encodeonce.evaluate.evaluation import Scored
from encodeonce.store.extras import extra

WORD_ERRORS = 1_000_000
"""As many are looked at; of a system that makes more, an evenly spaced part of its utterances is."""


@dataclass(frozen=True, slots=True)
class WordError:
    """An error that was made again and again.

    Attributes:
        reference: the word that was said; None for an insertion.
        hypothesis: the word that was written; None for a deletion.
        occurrences: of the reference word in the references (of the word that was put in, for an insertion).
        frequency: `occurrences` over all words of the references, a fraction.
    """

    reference: str | None
    hypothesis: str | None
    count: int
    occurrences: int
    frequency: float


@dataclass(frozen=True, slots=True)
class WordErrors:
    """The most frequent first; of `aligned` utterances that have errors."""

    substitutions: tuple[WordError, ...]
    deletions: tuple[WordError, ...]
    insertions: tuple[WordError, ...]
    aligned: int


def word_errors(utterances: Sequence[Scored], most: int) -> WordErrors:
    """Count what was taken for what in the utterances that have errors; ties are in the order of the alphabet.

    Raises:
        StoreError: jiwer, which brings the aligner, is not installed; the message says how to install it.
    """
    wrong = [one for one in utterances if one.words.errors]
    errors = sum(one.words.errors for one in wrong)
    aligned = wrong[:: max(1, -(-errors // WORD_ERRORS))]
    substitutions, deletions, insertions = _count(aligned)
    spoken = Counter[str]()
    for one in utterances:
        spoken.update(one.reference.split())
    total = max(spoken.total(), 1)

    def frequent(counted: Counter[tuple[str | None, str | None]]) -> tuple[WordError, ...]:
        least = min(nlargest(most, counted.values()), default=0)
        chosen = [pair for pair, count in counted.items() if count >= least]
        chosen.sort(key=lambda pair: (-counted[pair], pair[0] or "", pair[1] or ""))
        return tuple(
            WordError(*pair, counted[pair], occurrences := spoken[pair[0] or pair[1] or ""], occurrences / total)
            for pair in chosen[:most]
        )

    return WordErrors(frequent(substitutions), frequent(deletions), frequent(insertions), len(aligned))


def _count(utterances: Sequence[Scored]) -> tuple[Counter[tuple[str | None, str | None]], ...]:
    """Substitutions, deletions, insertions."""
    with extra("evaluate"):
        from rapidfuzz.distance import Levenshtein  # what jiwer aligns with
    substitutions, deletions, insertions = [], [], []
    for one in utterances:
        said, written = one.reference.split(), one.hypothesis.split()
        edits = cast("list[tuple[str, int, int]]", Levenshtein.editops(said, written).as_list())  # typed as Editop
        for kind, here, there in edits:
            if kind == "replace":
                substitutions.append((said[here], written[there]))
            elif kind == "delete":
                deletions.append((said[here], None))
            else:
                insertions.append((None, written[there]))
    return Counter(substitutions), Counter(deletions), Counter(insertions)
