"""Hypotheses to an evaluation: every metric of a task, with intervals; what cannot be computed is told, and the others go on."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.evaluation import Edits, Evaluation, Score, Scored
from encodeonce.evaluate.hypotheses import Hypothesis
from encodeonce.evaluate.metrics.counts import Counts, count_pairs
from encodeonce.evaluate.metrics.intervals import FEWEST_UTTERANCES, Bootstrap, Clusters
from encodeonce.evaluate.metrics.labels import label_scores
from encodeonce.evaluate.metrics.meaning import bert_scores, meaning_scores
from encodeonce.evaluate.metrics.translation import bleu, chrf
from encodeonce.evaluate.metrics.word_errors import signature_of
from encodeonce.evaluate.normalise import RAW, Normaliser, code_of, find_normaliser, is_code, is_unspaced
from encodeonce.evaluate.progress import EvaluationProgress
from encodeonce.store.errors import StoreError

Task = Literal["recognition", "translation", "labels"]
METRICS: dict[Task, tuple[str, ...]] = {
    "recognition": ("wer", "wer_raw", "cer", "cer_raw", "ser", "bertscore", "rtf", "flagged"),
    "translation": ("bleu", "chrf", "bertscore", "rtf", "flagged"),
    "labels": ("labels", "rtf", "flagged"),
}
"""What a task is scored by, in the order in which it is shown."""
PACKAGES = ("encodeonce", "transformers", "whisper-normalizer", "rapidfuzz", "bert-score", "sacrebleu", "numpy")
LEVEL = 0.95
BERTSCORE = "bertscore.jsonl"
"""Its values, in the folder of the results."""


def task_of(target: str | None) -> Task:
    """What a target is scored as unless told: `translation:de` as a translation, `metadata:intent` as labels, all else word by word."""
    kind = (target or "").partition(":")[0]
    tasks: dict[str, Task] = {"translation": "translation", "metadata": "labels"}
    return tasks.get(kind, "recognition")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreOptions:
    """How to score.

    Attributes:
        language: a code such as `en`; None: the one that all hypotheses name, by its code or in English. Where they name none, several,
            or one that is not known, texts are compared by the basic normaliser, and the evaluation says so.
        bert: for BERTScore: minilm-l6, a folder, a name that bert-score knows, or a hub id; None: what is at hand.
        leave_out: names of `METRICS`.
        device: where BERTScore is computed.
        processes: that normalise and count, at most; None: one a core.
    """

    task: Task = "recognition"
    language: str | None = None
    bert: str | None = None
    leave_out: tuple[str, ...] = ()
    device: str = "cpu"
    seed: int = 0
    resamples: int = 10_000
    processes: int | None = None

    def __post_init__(self) -> None:
        if self.task not in METRICS:
            raise EvaluationError(f"{self.task!r} is no task; there are {', '.join(METRICS)}")
        known = dict.fromkeys(name for names in METRICS.values() for name in names)
        if unknown := [name for name in self.leave_out if name not in known]:
            raise EvaluationError(f"{', '.join(unknown)} cannot be left out: the metrics are {', '.join(known)}")


def score(
    hypotheses: Sequence[Hypothesis],
    options: ScoreOptions | None = None,
    title: str = "",
    config: Mapping[str, Any] | None = None,
    *,
    folder: Path | None = None,
    progress: EvaluationProgress | None = None,
) -> Evaluation:
    """Score a system's output.

    Real-time factor and flags are over all hypotheses, everything else over those whose `text` is known.

    Args:
        title: what is evaluated.
        config: of the run; how texts were compared and what intervals are over are added to it.
        folder: of the results: what takes long is kept there as it is computed, and read from there. None: it is not kept.
        progress: told how far that is.

    Raises:
        EvaluationError: no hypothesis, an id that is there twice, none with a reference, or no such language.
        StoreError: a library that errors are counted with is missing.
    """
    options = options or ScoreOptions()
    known = [one for one in hypotheses if one.text is not None]
    _check(hypotheses, known)
    work = _Work(hypotheses, known, options, folder, progress or EvaluationProgress(quiet=True))
    for name in METRICS[options.task]:
        if name not in options.leave_out:
            work.add(name)
    said = {"language": work.language, "normaliser": work.normaliser.signature, "intervals": work.intervals}
    return Evaluation(
        title,
        work.scores,
        work.utterances(),
        [one for one in hypotheses if one.text is None],
        work.skipped,
        options.task,
        work.details,
        {**said, **(config or {})},
        _versions(),
    )


def _check(hypotheses: Sequence[Hypothesis], known: Sequence[Hypothesis]) -> None:
    if not hypotheses:
        raise EvaluationError("there is no hypothesis to score: the split or the file is empty")
    if not known:
        raise EvaluationError(
            f"none of the {len(hypotheses):,} hypotheses has a reference, so there is nothing to score"
        )
    name, count = Counter(one.id for one in hypotheses).most_common(1)[0]
    if count > 1:
        raise EvaluationError(f"id {name} is there {count} times; give one hypothesis for each utterance")


@dataclass
class _Work:
    """An evaluation as it is being made."""

    hypotheses: Sequence[Hypothesis]
    known: Sequence[Hypothesis]
    options: ScoreOptions
    folder: Path | None
    progress: EvaluationProgress
    language: str | None = None
    scores: dict[str, Score] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    meaning: np.ndarray | None = None

    def __post_init__(self) -> None:
        named = sorted({code_of(one.language) for one in self.known if one.language})
        self.language = self.options.language or (named[0] if len(named) == 1 and is_code(named[0]) else None)
        # Texts in several languages without spaces are all counted by letters.
        comparable = named[0] if named and all(map(is_unspaced, named)) else None
        self.normaliser: Normaliser = find_normaliser(self.language or comparable)
        if self.normaliser.caveat and self.options.task == "recognition":
            several = f"the utterances are in {', '.join(named)}" if named else "no language was given"
            why = several if self.language is None else f"{self.language} has no normaliser of its own"
            self.skipped["normaliser"] = f"{why}: {self.normaliser.caveat}"
        self.references = [one.text or "" for one in self.known]
        self.written = [one.pred_text for one in self.known]
        pairs = list(zip(self.references, self.written, strict=True))
        self.counts: Counts = count_pairs(pairs, self.language or comparable, self.options.processes)
        clusters = Clusters.find([one.speaker for one in self.known], len(self.known))
        self.bootstrap = Bootstrap(clusters, LEVEL, self.options.resamples, self.options.seed)

    @property
    def intervals(self) -> str:
        """What they are."""
        clusters = self.bootstrap.clusters
        if not clusters.enough(np.ones(len(self.known))):
            what = "" if clusters.over == "utterances" else " utterances"
            return f"none, {clusters.described}: {FEWEST_UTTERANCES}{what} or more are needed"
        return f"{100 * LEVEL:g} %, {self.options.resamples:,} resamples of {clusters.described}"

    def add(self, name: str) -> None:
        """A metric by its name, or why it cannot be had."""
        ways: dict[str, Callable[[], Mapping[str, Score]]] = {
            "ser": self._sentences,
            "bertscore": self._meaning,
            "bleu": lambda: {"bleu": bleu(*self._texts, language=self.language or "en", bootstrap=self.bootstrap)},
            "chrf": lambda: {"chrf": chrf(*self._texts, bootstrap=self.bootstrap)},
            "labels": self._labels,
            "rtf": self._speed,
            "flagged": self._flagged,
        }
        try:
            self.scores.update(ways.get(name, lambda: self._rate(name))())
        except (EvaluationError, StoreError) as error:
            self.skipped[name] = str(error)

    def utterances(self) -> list[Scored]:
        """Each with its errors, in the order of the hypotheses."""
        words, characters = self.counts.edits["wer"].tolist(), self.counts.edits["cer"].tolist()
        meaning = [None] * len(self.known) if self.meaning is None else self.meaning.tolist()
        columns = zip(self.known, self.counts.texts, words, characters, meaning, strict=True)
        return [Scored(one, *texts, Edits(*w), Edits(*c), value) for one, texts, w, c, value in columns]

    @property
    def _texts(self) -> tuple[list[str], list[str]]:
        return self.references, self.written

    def _rate(self, name: str) -> dict[str, Score]:
        edits = self.counts.edits[name]
        errors, units = edits[:, 1:].sum(1), edits[:, :3].sum(1)
        unit = "word" if name.startswith("wer") else "character"
        if not units.sum():
            raise EvaluationError(
                f"no reference has a {unit}" + ("" if name.endswith("_raw") else " left after normalisation")
            )
        hits, substitutions, deletions, insertions = map(int, edits.sum(0))
        found = Score(
            name,
            float(errors.sum() / units.sum()),
            "fraction",
            signature_of(unit, RAW if name.endswith("_raw") else self.normaliser),
            self.bootstrap.ratio(errors, units),
            {
                "hits": hits,
                "substitutions": substitutions,
                "deletions": deletions,
                "insertions": insertions,
                f"reference_{unit}s": int(units.sum()),
                "utterances": len(units),
                "empty_references": int((units == 0).sum()),
                f"resampled_{self.bootstrap.clusters.over}": self.bootstrap.clusters.count,
            },
        )
        return {name: found}

    def _sentences(self) -> dict[str, Score]:
        wrong = self.counts.edits["wer"][:, 1:].sum(1) > 0
        counts = {"wrong": int(wrong.sum()), "utterances": len(wrong)}
        signature = signature_of("word", self.normaliser).replace("word", "sentence", 1)
        return {"ser": Score("ser", float(wrong.mean()), "fraction", signature, self.bootstrap.mean(wrong), counts)}

    def _meaning(self) -> dict[str, Score]:
        """Of normalised texts in recognition, where references may be without case and punctuation; else of the texts as they are."""
        normalised = self.options.task == "recognition"
        said, written = zip(*self.counts.texts, strict=True) if normalised else self._texts
        code = "others" if self.language is None else code_of(self.language)
        way_out = "--leave-out bertscore leaves it out"
        found = bert_scores(
            said,
            written,
            model=self.options.bert,
            language=code,
            device=self.options.device,
            kept=self.folder and self.folder / BERTSCORE,
            progress=self.progress.counting("BERTScore", "pairs", way_out),
        )
        self.meaning = found.f1
        texts = self.normaliser.signature if normalised else RAW.signature
        return {
            name: replace(one, signature=f"{one.signature}|texts:{texts}")
            for name, one in meaning_scores(found, self.bootstrap).items()
        }

    def _labels(self) -> dict[str, Score]:
        scores, table = label_scores(*self._texts, bootstrap=self.bootstrap)
        self.details["labels"] = table
        return scores

    def _speed(self) -> dict[str, Score]:
        """Seconds of decoding for a second of audio; nothing where decoding was not timed."""
        timed = [(one.seconds, one.duration) for one in self.hypotheses if one.seconds is not None and one.duration]
        if not timed:
            return {}
        decoding, audio = (float(sum(column)) for column in zip(*timed, strict=True))
        counts = {"decoding_seconds": decoding, "audio_seconds": audio, "utterances": len(timed)}
        return {"rtf": Score("rtf", decoding / audio, "ratio", "decoding seconds / audio seconds", None, counts)}

    def _flagged(self) -> dict[str, Score]:
        """The share of suspicious outputs; nothing where nobody looked for any: texts that were neither decoded here nor flagged."""
        if not any(one.flags or one.seconds is not None for one in self.hypotheses):
            return {}
        share = float(np.mean([bool(one.flags) for one in self.hypotheses]))
        flags = Counter(flag for one in self.hypotheses for flag in one.flags)
        return {
            "flagged": Score("flagged", share, "fraction", "flags", None, {"utterances": len(self.hypotheses), **flags})
        }


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
