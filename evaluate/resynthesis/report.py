"""What a resynthesis leaves behind: the files of any evaluation, the original audio compared with the resynthesised."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from encodeonce.evaluate.audio import audio_files
from encodeonce.evaluate.evaluation import Evaluation
from encodeonce.evaluate.metrics.significance import Comparison, compare
from encodeonce.evaluate.report.extras import Extras
from encodeonce.evaluate.report.page import write_report
from encodeonce.evaluate.resynthesis.run import Resynthesis
from encodeonce.evaluate.resynthesis.scores import together

LIBRARIES = ("torch", "torchaudio", "speechtokenizer", "faster-whisper")
"""That codecs and recognisers run by, beside those that count."""


@dataclass(frozen=True, slots=True)
class Written:
    """The page, and what the codec costs against the original audio; None where that was not transcribed, or has no word."""

    report: Path
    comparison: Comparison | None


def write_resynthesis(folder: Path, found: Resynthesis, evaluations: Mapping[str, Evaluation]) -> Written:
    """Write report.html, report.md, results.json and samples.jsonl, each whole or not at all.

    Args:
        evaluations: as `score_audio` gives them.

    Raises:
        StoreError: the folder cannot be written, or jinja2 or matplotlib is not installed.
    """
    evaluation = together(evaluations)
    failures = [{"id": name, "reason": reason} for name, reason in found.failed.items()]
    evaluation = replace(
        evaluation,
        details={**evaluation.details, **({"failures": failures} if failures else {})},
        versions={**evaluation.versions, **_versions()},
    )
    comparison = None
    if "original" in evaluations and "wer" in evaluation.scores:
        comparison = compare(evaluation, evaluations["original"])
    comparisons = [] if comparison is None else [comparison]
    extras = Extras(audio=audio_files(one.source for one in evaluation.utterances))
    return Written(write_report(folder, evaluation, extras, comparisons), comparison)


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
