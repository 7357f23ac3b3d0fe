"""All utterances of an evaluation in a table, or of many some."""

import random
from collections.abc import Callable, Sequence

from encodeonce.evaluate.evaluation import Evaluation, Scored, Task
from encodeonce.evaluate.metrics.labels import comparable
from encodeonce.evaluate.report.analysis import SPOKEN
from encodeonce.evaluate.report.document import Cell, Column, Section, Table
from encodeonce.evaluate.report.wording import NONE, rate, whole

LISTED = 10_000
"""Utterances in the table; of more, half are the worst and half are drawn from the others."""
SHOWN_CHARACTERS = 600
"""Of a text in it."""

Told = tuple[Column, Callable[[Scored], Cell]]
"""A column, and what stands in it of an utterance."""


def every_utterance(evaluation: Evaluation) -> Section | None:
    """A table of all utterances, or of some with a sentence about which."""
    everything = evaluation.utterances
    if not everything:
        return None
    rows = _some(everything, _wrong if evaluation.task == "labels" else _error_rate)
    said = "All utterances, the worst first; samples.jsonl has them with everything that is known of them."
    if len(rows) < len(everything):
        said = (
            f"{len(rows):,} of {len(everything):,} utterances: the {LISTED // 2:,} worst ones, and others drawn at random, "
            "always the same. samples.jsonl has all."
        )
    told = [(column, [cell(one) for one in rows]) for column, cell in _columns(evaluation.task)]
    told = [(column, cells) for column, cells in told if any(cell.text for cell in cells)]
    lines = list(zip(*(cells for _, cells in told), strict=True))
    title = "All utterances" if len(rows) == len(everything) else "Utterances"
    return Section("utterances", title, [Table("Utterances", [column for column, _ in told], lines, said, long=True)])


def _columns(task: Task) -> list[Told]:
    """What is told of an utterance; a column in which nothing stands is left out."""
    columns: list[Told] = [
        (Column("Utterance", "code"), lambda one: Cell(one.source.id)),
        (Column("Speaker"), lambda one: Cell(one.source.speaker or "")),
        (Column("Seconds", "number"), _seconds),
    ]
    if task == "labels":
        columns.append((Column("Right"), lambda one: Cell("no" if _wrong(one)[0] else "yes")))
    else:
        columns.append((Column("Words", "number"), lambda one: whole(one.words.units)))
        columns.append(
            (Column("Errors" if task in SPOKEN else "Changes", "number"), lambda one: whole(one.words.errors))
        )
    if task in SPOKEN:
        columns.append((Column("WER", "number"), lambda one: rate(one.wer)))
    return [
        *columns,
        (Column("BERTScore F1", "number"), lambda one: Cell("") if one.meaning is None else rate(one.meaning)),
        (Column("Flags"), lambda one: Cell(", ".join(one.source.flags))),
        (Column("Reference", "prose"), lambda one: _text(one.reference if task in SPOKEN else one.source.text or "")),
        (Column("Hypothesis", "prose"), lambda one: _text(one.hypothesis if task in SPOKEN else one.source.pred_text)),
    ]


def _error_rate(one: Scored) -> tuple[float, int]:
    return one.wer, one.words.errors


def _wrong(one: Scored) -> tuple[float, int]:
    return float(comparable(one.source.text or "") != comparable(one.source.pred_text)), 0


def _some(everything: Sequence[Scored], how_bad: Callable[[Scored], tuple[float, int]]) -> list[Scored]:
    worst_first = sorted(everything, key=how_bad, reverse=True)
    if len(worst_first) <= LISTED:
        return worst_first
    worst, rest = worst_first[: LISTED // 2], worst_first[LISTED // 2 :]
    drawn = sorted(random.Random(0).sample(range(len(rest)), LISTED - len(worst)))
    return [*worst, *(rest[i] for i in drawn)]


def _seconds(one: Scored) -> Cell:
    seconds = one.source.duration
    return Cell("" if seconds is None else f"{seconds:.1f}", seconds)


def _text(text: str) -> Cell:
    if len(text) > SHOWN_CHARACTERS:
        text = f"{text[:SHOWN_CHARACTERS]} … ({len(text):,} characters)"
    return Cell(text or NONE)
