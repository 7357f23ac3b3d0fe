"""Word and character errors: of a pair of texts, of a corpus, and which word became which."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.evaluation import Edits
from encodeonce.evaluate.normalise import RAW, Normaliser
from encodeonce.store.extras import extra

Counted = Literal["word", "character"]
Kind = Literal["hit", "substitution", "deletion", "insertion"]
KINDS: dict[str, Kind] = {"equal": "hit", "replace": "substitution", "delete": "deletion", "insert": "insertion"}


@dataclass(frozen=True, slots=True)
class Aligned:
    """Neighbouring words to which the same happened.

    Attributes:
        reference: empty for an insertion.
        hypothesis: empty for a deletion; for a hit or a substitution as many words as in `reference`, one for one.
    """

    kind: Kind
    reference: tuple[str, ...]
    hypothesis: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ErrorRate:
    """Errors of a corpus: its edits over its reference units, not the mean of the utterances' rates.

    Attributes:
        unit: what was counted. Characters include the spaces between words, but where the normaliser splits letters.
        empty_references: utterances without a reference unit (after normalisation); what was recognised in them counts as
            insertions, as in sclite.
        signature: unit, normaliser and versions; two rates compare where their signatures are equal.
    """

    unit: Counted
    hits: int
    substitutions: int
    deletions: int
    insertions: int
    utterances: int
    empty_references: int
    signature: str

    @property
    def reference_units(self) -> int:
        """Words or characters of all references."""
        return self.hits + self.substitutions + self.deletions

    @property
    def edits(self) -> int:
        """Words or characters to change, to put in and to take out."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float | None:
        """Edits over reference units, a fraction that may exceed 1; None where there is no reference unit."""
        return self.edits / self.reference_units if self.reference_units else None


def word_errors(references: Sequence[str], hypotheses: Sequence[str], normaliser: Normaliser = RAW) -> ErrorRate:
    """WER of a corpus; words are what stands between white space.

    Raises:
        EvaluationError: not one hypothesis for each reference.
        StoreError: rapidfuzz is not installed; the message says how to install it.
    """
    return _errors("word", references, hypotheses, normaliser)


def character_errors(references: Sequence[str], hypotheses: Sequence[str], normaliser: Normaliser = RAW) -> ErrorRate:
    """CER of a corpus. Raises as `word_errors`."""
    return _errors("character", references, hypotheses, normaliser)


def count_edits(reference: Sequence[str], hypothesis: Sequence[str]) -> Edits:
    """The fewest edits from a reference to a hypothesis, of words (lists) or of characters (texts).

    Where several ways need as few, substitutions, deletions and insertions are those of jiwer, whose aligner rapidfuzz is.

    Raises:
        StoreError: rapidfuzz is not installed; the message says how to install it.
    """
    if reference == hypothesis:
        return Edits(len(reference), 0, 0, 0)
    with extra("evaluate"):
        from rapidfuzz.distance import Levenshtein
    kinds = [tag for tag, _, _ in Levenshtein.editops(reference, hypothesis).as_list()]
    substitutions, deletions = kinds.count("replace"), kinds.count("delete")
    hits = len(reference) - substitutions - deletions
    return Edits(hits, substitutions, deletions, len(kinds) - substitutions - deletions)


def align(reference: str, hypothesis: str) -> list[Aligned]:
    """Which words became which, from first to last; the errors are those that `count_edits` counts.

    Raises:
        StoreError: rapidfuzz is not installed; the message says how to install it.
    """
    with extra("evaluate"):
        from rapidfuzz.distance import Levenshtein
    said, written = reference.split(), hypothesis.split()
    return [
        Aligned(
            KINDS[part.tag],
            tuple(said[part.src_start : part.src_end]),
            tuple(written[part.dest_start : part.dest_end]),
        )
        for part in Levenshtein.opcodes(said, written)
    ]


def units_of(text: str, unit: Counted, normaliser: Normaliser) -> Sequence[str]:
    """What is counted in a normalised text: its words, or its characters."""
    if unit == "word":
        return text.split()
    return text.replace(" ", "") if normaliser.splits_letters else text


def signature_of(unit: Counted, normaliser: Normaliser) -> str:
    """Of a rate: unit, normaliser and versions."""
    return f"{unit}|{normaliser.signature}|rapidfuzz:{version('rapidfuzz')}"


def _errors(unit: Counted, references: Sequence[str], hypotheses: Sequence[str], normaliser: Normaliser) -> ErrorRate:
    if len(references) != len(hypotheses):
        raise EvaluationError(
            f"{len(references)} references and {len(hypotheses)} hypotheses: give one hypothesis for each reference"
        )
    with extra("evaluate"):
        import rapidfuzz  # noqa: F401
    wanted = [units_of(normaliser(text), unit, normaliser) for text in references]
    heard = [units_of(normaliser(text), unit, normaliser) for text in hypotheses]
    counted = [count_edits(*pair) for pair in zip(wanted, heard, strict=True)]
    return ErrorRate(
        unit,
        sum(one.hits for one in counted),
        sum(one.substitutions for one in counted),
        sum(one.deletions for one in counted),
        sum(one.insertions for one in counted),
        len(wanted),
        sum(not units for units in wanted),
        signature_of(unit, normaliser),
    )
