"""What is known of a system on a test set: the numbers, and what each utterance contributed. Metrics fill it, the report shows it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from encodeonce.evaluate.hypotheses import Hypothesis

Task = Literal["recognition", "translation", "labels", "resynthesis"]
"""What references are: what was said, what it means in another language, a label; or what was said in audio that a codec made."""
Unit = Literal["fraction", "points", "ratio"]
"""A fraction is shown in percent (WER may exceed 1); points are out of 100 (BLEU, chrF); a ratio is shown as it is (real-time factor)."""
RESYNTHESIS = "resynthesis"
"""The task of an evaluation of a codec, and the name of the rates among the details of any."""


@dataclass(frozen=True, slots=True)
class Score:
    """One number.

    Attributes:
        interval: 95 %, lower and upper end; None where none was computed.
        signature: normaliser, versions, model hash: two scores compare where their signatures are equal.
        counts: what it was computed from, such as `substitutions`, or `utterances`.
        lower_is_better: as for an error rate.
    """

    name: str
    value: float
    unit: Unit
    signature: str
    interval: tuple[float, float] | None = None
    counts: Mapping[str, float] = field(default_factory=dict)
    lower_is_better: bool = True


@dataclass(frozen=True, slots=True)
class Edits:
    """Of one utterance: `hits + substitutions + deletions` units in the reference."""

    hits: int
    substitutions: int
    deletions: int
    insertions: int

    @property
    def errors(self) -> int:
        """Units to change, to put in and to take out."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def units(self) -> int:
        """Of the reference."""
        return self.hits + self.substitutions + self.deletions


@dataclass(frozen=True, slots=True)
class Scored:
    """An utterance with its normalised texts and its errors.

    Attributes:
        reference, hypothesis: normalised, as words and characters were counted in them.
        meaning: BERTScore F1, where it was computed.
    """

    source: Hypothesis
    reference: str
    hypothesis: str
    words: Edits
    characters: Edits
    meaning: float | None = None

    @property
    def wer(self) -> float:
        """Word errors over words, a fraction; where nothing was said, each word heard counts whole."""
        return self.words.errors / max(self.words.units, 1)


@dataclass(frozen=True)
class Evaluation:
    """A system on a test set.

    Attributes:
        title: what was evaluated, such as `window-qformer on dev-clean`.
        scores: by name, in the order in which they are shown: `wer`, `wer_raw`, `cer`, `cer_raw`, `ser`, `bertscore_f1`, `bleu` ...
        utterances: that have a reference.
        unscored: utterances without a reference.
        skipped: metrics, and what else was asked for, that could not be computed, and the way out.
        task: what the references are; `resynthesis` is recognition of audio that a codec made.
        details: tables beside the scores, such as `labels` (precision and recall by label) or `retrieval`.
        config, versions: of the run; `config` has `checkpoint`, `store`, `split`, `decoding` where there are such.
    """

    title: str
    scores: Mapping[str, Score]
    utterances: Sequence[Scored]
    unscored: Sequence[Hypothesis] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    task: Task = "recognition"
    details: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def without(self, name: str, why: object) -> "Evaluation":
        """The same, and `name` among what was skipped."""
        return replace(self, skipped={**self.skipped, name: str(why)})
