"""How well what was heard agrees with what was said: rates of a corpus, errors of an utterance."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from encodeonce.evaluate.metrics.word_errors import ErrorRate, character_errors, word_errors
from encodeonce.evaluate.normalise import RAW, Normaliser
from encodeonce.evaluate.resynthesis.run import Sample

CASELESS = Normaliser("lower", lambda text: " ".join(text.lower().split()))
"""For corpora whose texts are all in capitals, where the raw rate counts nothing but that."""


@dataclass(frozen=True, slots=True)
class Scores:
    """WER of the texts as they are, WER of them in lower case, WER and CER of the normalised ones."""

    wer_raw: ErrorRate
    wer_caseless: ErrorRate
    wer: ErrorRate
    cer: ErrorRate

    @classmethod
    def of(cls, targets: Sequence[str], heard: Sequence[str], normaliser: Normaliser) -> "Scores":
        """The scores of a corpus."""
        return cls(
            word_errors(targets, heard, RAW),
            word_errors(targets, heard, CASELESS),
            word_errors(targets, heard, normaliser),
            character_errors(targets, heard, normaliser),
        )

    @property
    def rates(self) -> dict[str, float | None]:
        """The rates by name, fractions."""
        return {name: getattr(self, name).rate for name in self.__slots__}

    @property
    def counts(self) -> dict[str, dict[str, Any]]:
        """What the rates were counted from, and their signatures."""
        return {name: asdict(getattr(self, name)) for name in self.__slots__}


def score(samples: Sequence[Sample], normaliser: Normaliser) -> dict[str, Scores]:
    """The scores of the original audio, where it was transcribed, and of the resynthesised audio; over the same utterances."""
    targets, found = [sample.target for sample in samples], {}
    originals = [sample.original for sample in samples if sample.original is not None]
    if originals:
        found["original"] = Scores.of(targets, originals, normaliser)
    found["resynthesised"] = Scores.of(targets, [sample.prediction for sample in samples], normaliser)
    return found


@dataclass(frozen=True, slots=True)
class Marked:
    """A sample with its normalised texts and the word errors between them."""

    sample: Sample
    target: str
    prediction: str
    errors: int
    words: int
    original_errors: int | None

    @property
    def rate(self) -> float:
        """Word errors over words; where nothing was said, each word heard counts whole."""
        return self.errors / max(self.words, 1)

    def to_json(self) -> dict[str, Any]:
        """A line of samples.jsonl."""
        said = self.sample
        entry = {
            "id": said.id,
            "target": said.target,
            "prediction": said.prediction,
            "target_normalised": self.target,
            "prediction_normalised": self.prediction,
            "errors": self.errors,
            "words": self.words,
        }
        if said.original is None:
            return entry
        return entry | {"original_prediction": said.original, "original_errors": self.original_errors}


def mark(sample: Sample, normaliser: Normaliser) -> Marked:
    """Count the word errors of one utterance."""
    counted = word_errors([sample.target], [sample.prediction], normaliser)
    before = None if sample.original is None else word_errors([sample.target], [sample.original], normaliser)
    return Marked(
        sample,
        normaliser(sample.target),
        normaliser(sample.prediction),
        counted.edits,
        counted.reference_units,
        None if before is None else before.edits,
    )
