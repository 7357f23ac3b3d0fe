"""What a resynthesis leaves behind: results.json, samples.jsonl, and the table of targets and predictions."""

import json
import platform
import random
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from encodeonce.evaluate.resynthesis.run import Resynthesis
from encodeonce.evaluate.resynthesis.scores import Marked, Scores
from encodeonce.store.files import atomic_write, write_json

LIBRARIES = ("encodeonce", "torch", "torchaudio", "transformers", "speechtokenizer", "faster-whisper", "rapidfuzz")
WHOLE_TABLE = 50
"""So many utterances are all in the table; of more, half as many of the worst and as many others at random."""
HEADINGS = {"wer_raw": "WER raw", "wer_caseless": "WER caseless", "wer": "WER", "cer": "CER"}


def results_of(scores: Mapping[str, Scores], found: Resynthesis, config: Mapping[str, Any]) -> dict[str, Any]:
    """What results.json holds and --json prints; rates are fractions."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "results": {name: one.rates for name, one in scores.items()},
        "counts": {name: one.counts for name, one in scores.items()},
        "utterances": {"scored": len(found.samples), "failed": len(found.failed), "without_text": found.without_text},
        "failures": found.failed,
        "config": dict(config),
        "versions": versions,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_report(folder: Path, results: Mapping[str, Any], marked: Sequence[Marked]) -> None:
    """Write the three files, each whole or not at all."""
    lines = "".join(json.dumps(one.to_json(), ensure_ascii=False) + "\n" for one in marked)
    for name, text in (("samples.jsonl", lines), ("table.md", table(marked))):
        with atomic_write(folder / name) as file:
            file.write(text.encode())
    write_json(folder / "results.json", results)


def table(marked: Sequence[Marked]) -> str:
    """Targets and predictions in Markdown: all, or the worst and some at random, the same ones each time."""
    if len(marked) <= WHOLE_TABLE:
        return _rows(marked)
    worst = sorted(marked, key=lambda one: (-one.rate, -one.errors, one.sample.id))[: WHOLE_TABLE // 2]
    bad = {one.sample.id for one in worst}
    others = [one for one in marked if one.sample.id not in bad]
    some = random.Random(0).sample(others, min(len(others), WHOLE_TABLE // 2))
    return (
        f"The {len(worst)} of {len(marked)} utterances with the most errors a word:\n\n{_rows(worst)}\n"
        f"{len(some)} others at random:\n\n{_rows(some)}"
    )


def _rows(marked: Sequence[Marked]) -> str:
    original = any(one.sample.original is not None for one in marked)
    heads = ["No.", "Target", "Prediction", *(["Of the original audio"] if original else []), "Errors", "Utterance"]
    lines = [heads, ["---"] * len(heads)]
    for number, one in enumerate(marked, 1):
        heard = [one.sample.prediction, *([one.sample.original or ""] if original else [])]
        cells = [escaped(text) for text in (one.sample.target, *heard)]
        lines.append([f"({number})", *cells, f"{one.errors} of {one.words}", escaped(one.sample.id)])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def escaped(text: str) -> str:
    """A text as Markdown shows it in a cell, whatever is in it."""
    return re.sub(r"([\\`*_\[\]<>|#~&$])", r"\\\1", " ".join(text.split()))


def summary(scores: Mapping[str, Scores]) -> list[str]:
    """The rates in lines, percentages."""
    lines = [["", *HEADINGS.values()]]
    for name, found in scores.items():
        lines.append([name, *("none" if rate is None else f"{rate:.1%}" for rate in found.rates.values())])
    return [f"{name:13}" + "".join(f"{cell:>14}" for cell in cells) for name, *cells in lines]
