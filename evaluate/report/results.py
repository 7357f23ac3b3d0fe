"""The numbers for programs: results.json with lm-eval's keys where they fit, samples.jsonl with every utterance."""

import json
import math
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from encodeonce.evaluate.evaluation import Evaluation, Scored
from encodeonce.evaluate.metrics.significance import Comparison
from encodeonce.evaluate.published.tables import beside_published
from encodeonce.evaluate.report.analysis import SPOKEN, Analysis
from encodeonce.evaluate.report.scores import utterances
from encodeonce.store.files import atomic_write

RESULTS, SAMPLES = "results.json", "samples.jsonl"
EDITS = ("hits", "substitutions", "deletions", "insertions")


def write_results(
    folder: Path,
    evaluation: Evaluation,
    analysis: Analysis,
    comparisons: Sequence[Comparison] = (),
    date: datetime | None = None,
) -> None:
    """Write samples.jsonl and then results.json, each whole or not at all.

    Raises:
        StoreError: the folder cannot be written.
    """
    found = results_of(evaluation, analysis, comparisons, date or datetime.now(UTC))
    results = json.dumps(found, indent=1, ensure_ascii=False)
    for name, texts in ((SAMPLES, samples_of(evaluation)), (RESULTS, (results, "\n"))):
        with atomic_write(folder / name) as file:
            for text in texts:
                file.write(
                    text.encode("utf-8", "backslashreplace")
                )  # half of a surrogate pair stays one, as JSON escapes it


def results_of(
    evaluation: Evaluation, analysis: Analysis, comparisons: Sequence[Comparison], date: datetime
) -> dict[str, Any]:
    """What results.json holds; rates are fractions, what is not finite is null."""
    title, scores = evaluation.title, evaluation.scores
    found = {
        "results": {title: {name: one.value for name, one in scores.items()}},
        "intervals": {title: {name: list(one.interval) for name, one in scores.items() if one.interval}},
        "signatures": {title: {name: one.signature for name, one in scores.items()}},
        "units": {title: {name: one.unit for name, one in scores.items()}},
        "counts": {title: {name: one.counts for name, one in scores.items()}},
        "higher_is_better": {title: {name: not one.lower_is_better for name, one in scores.items()}},
        "n-samples": {
            title: {
                "original": utterances(evaluation) + len(evaluation.unscored),
                "effective": utterances(evaluation),
            }
        },
        "configs": {title: {"task": evaluation.task}},
        "skipped": {title: evaluation.skipped},
        "details": {title: evaluation.details},
        "analysis": {title: _breakdowns(evaluation, analysis)},
        "published": beside_published(evaluation),
        "comparisons": comparisons,
        "config": evaluation.config,
        "versions": evaluation.versions,
        "git_hash": _git_hash(),
        "date": date.isoformat(timespec="seconds"),
    }
    return plain(found)


def _breakdowns(evaluation: Evaluation, analysis: Analysis) -> dict[str, Any]:
    """What the page shows of where words go wrong; utterances by their ids, for samples.jsonl has the rest."""
    found: dict[str, Any] = {"notices": analysis.notices, "flags": analysis.flags}
    found |= {name: [one.source.id for one in getattr(analysis, name)] for name in ("worst", "median")}
    if evaluation.task != "labels":
        found |= {"length_ratio": analysis.length_ratio, "repetition_rate": analysis.repetition_rate}
    if evaluation.task in SPOKEN:
        bands = ("by_duration", "by_speaker", "by_length")
        found |= {name: [{**asdict(one), "wer": one.wer} for one in getattr(analysis, name)] for name in bands}
        found |= {"meaning": analysis.meaning, "confusions": analysis.confusions}
    return found


def samples_of(evaluation: Evaluation) -> Iterator[str]:
    """Every utterance as a line of JSON: its hypothesis line, and under `scored` what was compared and what it contributed."""
    for one in evaluation.utterances:
        yield _line({**one.source.to_json(), "scored": _contribution(one)})
    for source in evaluation.unscored:
        yield _line(source.to_json())


def _contribution(one: Scored) -> dict[str, Any]:
    found: dict[str, Any] = {"reference": one.reference, "hypothesis": one.hypothesis, "wer": one.wer}
    for unit, edits in (("words", one.words), ("characters", one.characters)):
        found[unit] = {name: getattr(edits, name) for name in EDITS}
    return found if one.meaning is None else found | {"meaning": one.meaning}


def _line(entry: Mapping[str, Any]) -> str:
    try:
        return json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n"
    except (ValueError, TypeError):
        return json.dumps(plain(entry), ensure_ascii=False) + "\n"


def plain(value: Any) -> Any:
    """A value as JSON can say it: dataclasses as objects, paths and what is unknown as text, what is not finite as null."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(entry) for entry in value]
    if hasattr(value, "item") and not hasattr(value, "__len__"):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _git_hash() -> str | None:
    """The commit of this code, where it is a tracked file of a git repository."""
    here = Path(__file__).resolve()
    try:
        for command in (["ls-files", "--error-unmatch", here.name], ["rev-parse", "HEAD"]):
            ended = subprocess.run(
                ["git", "-C", str(here.parent), *command], capture_output=True, text=True, timeout=10, check=True
            )
    except (OSError, subprocess.SubprocessError):
        return None
    return ended.stdout.strip()
