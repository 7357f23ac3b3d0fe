"""The numbers of an evaluation, with all that one needs to trust them, as sections of a page."""

from collections.abc import Mapping, Sequence

from encodeonce.evaluate.evaluation import Evaluation, Score
from encodeonce.evaluate.metrics.intervals import FEWEST_SPEAKERS, FEWEST_UTTERANCES
from encodeonce.evaluate.metrics.significance import Comparison
from encodeonce.evaluate.report.document import Block, Bullets, Cell, Column, Headline, Paragraph, Section, Table
from encodeonce.evaluate.report.wording import (
    NONE,
    counted,
    duration,
    interval_of,
    listed,
    measured,
    name_of,
    percent,
    unbroken,
)

HEADLINES = 4
FIRST = (
    *("wer", "original_wer", "bleu", "accuracy", "cer", "original_cer", "chrf", "f1_macro", "ser", "bertscore_f1"),
    *("matching_accuracy", "recall_at_1_speech_to_text", "recall_at_1_text_to_speech"),
)
"""Scores that are worth being seen first, if they are there."""
RETRIEVAL = (
    f"95\u00a0%, of those who ask: utterances, by speaker where there are {FEWEST_SPEAKERS} and more, and texts; "
    f"none of fewer than {FEWEST_UTTERANCES}"
)
"""What the intervals of a system that writes nothing are."""
UNITS = ("reference_words", "reference_characters")
EDITS = ("substitutions", "deletions", "insertions")


def headlines(evaluation: Evaluation) -> list[Headline]:
    """A few scores."""
    scores = evaluation.scores
    found = [scores[name] for name in dict.fromkeys((*FIRST, *scores)) if name in scores][:HEADLINES]
    return [Headline(name_of(one.name), measured(one.value, one.unit), interval_of(one)) for one in found]


def facts(evaluation: Evaluation) -> list[str]:
    """What was evaluated, in short: how much, and by what."""
    sources = [one.source for one in evaluation.utterances]
    speakers = {source.speaker for source in sources if source.speaker is not None}
    seconds = sum(source.duration or 0.0 for source in sources)
    found = [counted(utterances(evaluation), "utterance")]
    found += [f"{len(evaluation.unscored):,} more without a reference"] if evaluation.unscored else []
    found += [counted(len(speakers), "speaker")] if speakers else []
    found += [duration(seconds)] if seconds else []
    return [
        *found,
        *(f"{key} {evaluation.config[key]}" for key in ("split", "checkpoint") if evaluation.config.get(key)),
    ]


def utterances(evaluation: Evaluation) -> int:
    """That were evaluated: those with a reference, or of a system that writes nothing, those that were retrieved."""
    retrieved = evaluation.details.get("retrieval", {}).get("utterances", 0)
    return len(evaluation.utterances) or int(retrieved)


def scores(evaluation: Evaluation) -> Section:
    """All scores, and those that could not be computed with the way out."""
    blocks: list[Block] = []
    if evaluation.scores:
        intervals = evaluation.config.get("intervals") or (RETRIEVAL if "retrieval" in evaluation.details else None)
        blocks.append(_scores(list(evaluation.scores.values()), _of(evaluation), intervals))
    if evaluation.skipped:
        columns = [Column("Not computed"), Column("Why, and the way out", "prose")]
        rows = [[Cell(name_of(name)), Cell(reason)] for name, reason in evaluation.skipped.items()]
        blocks.append(Table("What could not be computed", columns, rows))
    if not blocks:
        blocks.append(Paragraph("No score: no utterance has a reference. The hypotheses are in samples.jsonl."))
    return Section("scores", "Scores", blocks)


def _of(evaluation: Evaluation) -> str:
    """What the scores are of: a part of a test set says how it was chosen."""
    chosen = [
        f"{name} {evaluation.config[name]}" for name in ("where", "limit") if evaluation.config.get(name) is not None
    ]
    return f"Of a part of the test set: {', '.join(chosen)}" if chosen else "Of the whole test set"


def _scores(found: Sequence[Score], of: str, intervals: object) -> Table:
    columns = [Column("Metric"), Column("Value", "number"), Column("95\u00a0% interval", "number")]
    columns += [Column("Counted", "prose"), Column("Signature", "signature")]
    rows = [
        [
            Cell(f"{unbroken(name_of(one.name))}\u00a0{'↓' if one.lower_is_better else '↑'}"),
            Cell(measured(one.value, one.unit), one.value),
            Cell(interval_of(one) or NONE),
            Cell(_counts(one.counts)),
            Cell(one.signature),
        ]
        for one in found
    ]
    note = "↓ less is better, ↑ more is better. Two scores compare where their signatures are equal."
    return Table(of, columns, rows, f"{note} Intervals: {intervals}." if intervals else note)


def _counts(counts: Mapping[str, float]) -> str:
    """The edits and their units, in short; else all that is not nothing."""
    if all(name in counts for name in EDITS):
        edits = [f"{name[:3]} {counts[name]:,}" for name in EDITS]
        of = [f"of {count:,} {name.removeprefix('reference_')}" for name, count in counts.items() if name in UNITS]
        return " · ".join(map(unbroken, [*edits, *of]))
    named = ((count, _spaced(name.removesuffix("s") if count == 1 else name)) for name, count in counts.items())
    return ", ".join(f"{_number(count)} {name}" for count, name in named if count)


def noticed(notices: Sequence[str]) -> Section | None:
    """Sentences that hold of this evaluation."""
    return Section("notices", "What to notice", [Bullets(notices)]) if notices else None


def compared(comparisons: Sequence[Comparison]) -> Section | None:
    """The same utterances by other systems: is the difference more than chance?"""
    if not comparisons:
        return None
    names = ("Utterances", "WER, this", "WER, other", "Difference", "95\u00a0% interval", "p")
    columns = [Column("Compared with"), *(Column(name, "number") for name in names), Column("Fewer errors")]
    rows = [
        [
            Cell(one.second),
            Cell(f"{one.utterances:,}", one.utterances),
            Cell(percent(one.first_wer, 2), one.first_wer),
            Cell(percent(one.second_wer, 2), one.second_wer),
            Cell(f"{100 * one.difference:+.2f}", one.difference),
            Cell(NONE if one.interval is None else " to ".join(f"{100 * end:+.2f}" for end in one.interval)),
            Cell(f"{one.p_value:.4f}", one.p_value),
            Cell({"first": "this one", "second": "the other", None: "neither, for sure"}[one.winner]),
        ]
        for one in comparisons
    ]
    tests = listed(sorted({f"{one.signature}, over {one.over}" for one in comparisons}))
    note = "Differences are in points; below zero this system makes fewer errors. p: how often chance alone makes such a difference."
    return Section("compared", "Compared", [Table("On the same utterances", columns, rows, f"{note} Test: {tests}.")])


def made(evaluation: Evaluation) -> Section | None:
    """The configuration and the versions: what one needs to make the same numbers again."""
    parts = (("Configuration", "Option", evaluation.config), ("Versions", "Software", evaluation.versions))
    blocks = [
        Table(
            title,
            [Column(heading, "code"), Column("Value", "code")],
            [[Cell(str(key)), cell_of(value)] for key, value in of.items()],
        )
        for title, heading, of in parts
        if of
    ]
    return Section("made", "How it was made", blocks, beside_each_other=True) if blocks else None


def cell_of(value: object) -> Cell:
    """Any value in a table; of options within an option, those that are set."""
    if isinstance(value, Mapping):
        set_ = {str(key): of for key, of in value.items() if of not in (None, "", (), [])}
        return Cell(" · ".join(f"{_spaced(key)} {cell_of(of).text}" for key, of in set_.items()))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Cell("" if value is None else str(value))
    return Cell(_number(value), float(value))


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"


def _spaced(name: str) -> str:
    return name.replace("_", " ")
