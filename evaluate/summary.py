"""What an evaluation prints: a row a metric, a column a test set, and what was not computed with the way out."""

from collections.abc import Mapping
from typing import Any

from encodeonce.evaluate.evaluation import Evaluation, Score
from encodeonce.evaluate.metrics.significance import Comparison
from encodeonce.evaluate.report.scores import utterances
from encodeonce.evaluate.report.wording import interval_of, measured, name_of

NORMALISER = "normaliser"
"""What is told of it is no metric that was skipped, but how texts were compared."""
EDITS = ("substitutions", "deletions", "insertions")


def table(evaluations: Mapping[str, Evaluation]) -> list[str]:
    """The scores of named test sets, in lines."""
    names = list(dict.fromkeys(name for found in evaluations.values() for name in found.scores))
    rows = [["", *evaluations], ["Utterances", *(_utterances(found) for found in evaluations.values())]]
    for name in names:
        scores = [found.scores.get(name) for found in evaluations.values()]
        rows.append([name_of(name), *map(_cell, scores)])
        if any(score and set(EDITS) <= score.counts.keys() for score in scores):
            rows.append(["  S, D, I", *map(_edits, scores)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def skipped(evaluations: Mapping[str, Evaluation]) -> list[str]:
    """What was not computed and the way out; once where it is the same for all."""
    found: dict[tuple[str, str], list[str]] = {}
    for title, evaluation in evaluations.items():
        for name, why in evaluation.skipped.items():
            found.setdefault((name, why), []).append(title)
    whose = {
        key: "" if len(titles) == len(evaluations) else f" of {', '.join(titles)}" for key, titles in found.items()
    }
    lines = []
    for name, why in found:
        what = "Normalisation" if name == NORMALISER else f"Not computed: {name_of(name)}"
        lines.append(f"{what}{whose[name, why]}: {why}")
    if any(map(_lacks_language, evaluations.values())):
        lines.append("Give --language, such as en, for its normalisation and its BERTScore")
    return lines


def _lacks_language(found: Evaluation) -> bool:
    """Whether nothing says the language of texts that are compared word by word."""
    unnamed = found.config.get("language", "") is None and found.task != "labels"
    return unnamed and not any(one.source.language for one in found.utterances)


def signatures(evaluations: Mapping[str, Evaluation]) -> list[str]:
    """How each score was computed; scores of equal signatures compare."""
    found = {name: score.signature for one in evaluations.values() for name, score in one.scores.items()}
    return [f"{name_of(name)}: {signature}" for name, signature in found.items()]


def compared(found: Comparison) -> str:
    """A comparison with an earlier evaluation, in a sentence."""
    left = (
        f", {found.only_first + found.only_second:,} others left out" if found.only_first or found.only_second else ""
    )
    between = ""
    if found.interval is not None:
        between = f" ({100 * found.interval[0]:+.2f} to {100 * found.interval[1]:+.2f})"
    told = {
        "first": "fewer errors here",
        "second": "fewer errors there",
        None: "no difference that chance does not explain",
    }
    return (
        f"Against {found.second}, {found.utterances:,} utterances in common{left}: WER {100 * found.first_wer:.2f} % here, "
        f"{100 * found.second_wer:.2f} % there, {100 * found.difference:+.2f} points{between}, p = {found.p_value:.3g} over {found.over}: "
        f"{told[found.winner]}"
    )


def as_object(evaluation: Evaluation) -> dict[str, Any]:
    """What --json prints of a test set."""
    return {
        "utterances": utterances(evaluation),
        "unscored": len(evaluation.unscored),
        "scores": {
            name: {
                "value": score.value,
                "interval": score.interval and list(score.interval),
                "unit": score.unit,
                "signature": score.signature,
                "counts": dict(score.counts),
            }
            for name, score in evaluation.scores.items()
        },
        "skipped": dict(evaluation.skipped),
    }


def _utterances(found: Evaluation) -> str:
    without = f" ({len(found.unscored):,} more without a reference)" if found.unscored else ""
    return f"{utterances(found):,}{without}"


def _cell(score: Score | None) -> str:
    if score is None:
        return "-"
    interval = interval_of(score)
    return measured(score.value, score.unit).replace("\u00a0", " ") + (f"  ({interval})" if interval else "")


def _edits(score: Score | None) -> str:
    if score is None or not set(EDITS) <= score.counts.keys():
        return "-"
    return ", ".join(f"{score.counts[kind]:,.0f}" for kind in EDITS)
