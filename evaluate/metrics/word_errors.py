"""Word and character error rates over a corpus, with what they were counted by."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.normalise import RAW, Normaliser
from encodeonce.store.extras import extra


@dataclass(frozen=True, slots=True)
class ErrorRate:
    """Errors of a corpus: its edits over its reference units, not the mean of the utterances' rates.

    Attributes:
        unit: what was counted. Characters include the spaces between words.
        empty_references: utterances without a reference unit (after normalisation); what was recognised in them counts as
            insertions, as in sclite.
        signature: unit, normaliser and versions; two rates compare where their signatures are equal.
    """

    unit: Literal["word", "character"]
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
        StoreError: jiwer is not installed; the message says how to install it.
    """
    return _errors("word", references, hypotheses, normaliser)


def character_errors(references: Sequence[str], hypotheses: Sequence[str], normaliser: Normaliser = RAW) -> ErrorRate:
    """CER of a corpus. Raises as `word_errors`."""
    return _errors("character", references, hypotheses, normaliser)


def _errors(
    unit: Literal["word", "character"], references: Sequence[str], hypotheses: Sequence[str], normaliser: Normaliser
) -> ErrorRate:
    if len(references) != len(hypotheses):
        raise EvaluationError(
            f"{len(references)} references and {len(hypotheses)} hypotheses: give one hypothesis for each reference"
        )
    with extra("evaluate"):
        import jiwer
    process = jiwer.process_words if unit == "word" else jiwer.process_characters
    wanted = [normaliser(text) for text in references]
    counted = process(wanted, [normaliser(text) for text in hypotheses])
    return ErrorRate(
        unit,
        counted.hits,
        counted.substitutions,
        counted.deletions,
        counted.insertions,
        len(wanted),
        sum(not text for text in wanted),
        f"{unit}|{normaliser.signature}|jiwer:{version('jiwer')}",
    )
