"""What becomes of an evaluation: a report, a comparison with an earlier one, and files in other toolkits' formats."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.evaluation import RESYNTHESIS, Evaluation
from encodeonce.evaluate.formats.espnet import espnet_tables
from encodeonce.evaluate.formats.icefall import write_errs, write_recogs
from encodeonce.evaluate.formats.sclite import write_trn
from encodeonce.evaluate.hypotheses import read_hypotheses
from encodeonce.evaluate.metrics.significance import Comparison, compare
from encodeonce.evaluate.report.analysis import analyse
from encodeonce.evaluate.report.extras import Extras
from encodeonce.evaluate.report.page import PAGE, TEXT, write_report
from encodeonce.evaluate.report.results import RESULTS, SAMPLES, write_results
from encodeonce.evaluate.report.resynthesis import CodecRates
from encodeonce.evaluate.scoring import METRICS, ScoreOptions, score
from encodeonce.store.files import atomic_write, read_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is made of hypotheses.

    Attributes:
        compare: the folder of an earlier evaluation, or one that has such folders by the names of the test sets.
        report: whether the page and its text are written; the numbers always are.
        resynthesis: rates of codecs, which the report shows beside the system's.
        also: names of `WRITERS`.

    Raises:
        EvaluationError: a comparison without word errors.
    """

    scoring: ScoreOptions
    compare: Path | None = None
    resynthesis: tuple[CodecRates, ...] = ()
    report: bool = True
    also: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.compare is not None and self.scoring.task != "recognition":
            raise EvaluationError(
                f"--compare tests word error rates, and {self.scoring.task} has none: leave it out, or take --task recognition"
            )


@dataclass(frozen=True, slots=True)
class Finished:
    """An evaluation that is written down; `report` is the page."""

    evaluation: Evaluation
    folder: Path
    report: Path | None
    comparison: Comparison | None


def finish(name: str, evaluation: Evaluation, folder: Path, wanted: Wanted, extras: Extras) -> Finished:
    """Write an evaluation of the test set `name` into a folder.

    Raises:
        EvaluationError: the earlier evaluation has no utterance in common, or other texts.
        StoreError: the folder cannot be written.
    """
    if wanted.resynthesis:
        evaluation = replace(evaluation, details={**evaluation.details, RESYNTHESIS: list(wanted.resynthesis)})
    comparison = None
    if wanted.compare is not None:
        comparison = compare(evaluation, earlier(wanted.compare, name, wanted.scoring), common_only=True)
    comparisons = [] if comparison is None else [comparison]
    report = None
    if wanted.report:
        report = write_report(folder, evaluation, extras, comparisons)
    else:
        write_results(folder, evaluation, analyse(evaluation), comparisons, datetime.now(UTC))
        for page in (PAGE, TEXT):
            (folder / page).unlink(missing_ok=True)  # of other numbers
    for kind in wanted.also if evaluation.utterances else ():
        WRITERS[kind](folder, name.replace("/", "-"), evaluation)
    return Finished(evaluation, folder, report, comparison)


def find_earlier(folder: Path, name: str) -> Path:
    """Where an earlier evaluation of a test set lies: in its own folder, or in one of several sets.

    Raises:
        EvaluationError: there is none.
    """
    found = next((path for path in (folder / name, folder) if (path / SAMPLES).is_file()), None)
    if found is None:
        raise EvaluationError(f"{folder} holds no {SAMPLES}; give the folder of an earlier evaluation of {name}")
    return found


def earlier(folder: Path, name: str, options: ScoreOptions) -> Evaluation:
    """An earlier evaluation, its texts compared as `options` say."""
    found = find_earlier(folder, name)
    (title, *_) = read_json(found / RESULTS).get("results") or [str(found)]
    rest = tuple(name for name in METRICS[options.task] if name != "wer")
    return score(read_hypotheses(found / SAMPLES), replace(options, leave_out=rest), f"{title} ({found})")


def _icefall(folder: Path, name: str, evaluation: Evaluation) -> None:
    texts = _texts(evaluation)
    write_recogs(folder / f"recogs-{name}.txt", texts)
    write_errs(folder / f"errs-{name}.txt", texts)


def _sclite(folder: Path, name: str, evaluation: Evaluation) -> None:
    texts = _texts(evaluation)
    write_trn(folder / "ref.trn", [(name, said) for name, said, _ in texts])
    write_trn(folder / "hyp.trn", [(name, written) for name, _, written in texts])


def _espnet(folder: Path, name: str, evaluation: Evaluation) -> None:
    with atomic_write(folder / "espnet.md") as file:
        file.write(espnet_tables([(name, evaluation)]).encode())


def _texts(evaluation: Evaluation) -> Sequence[tuple[str, str, str]]:
    """Id, reference and hypothesis, normalised: as words were counted in them."""
    return [(one.source.id, one.reference, one.hypothesis) for one in evaluation.utterances]


WRITERS: dict[str, Callable[[Path, str, Evaluation], None]] = {
    "icefall": _icefall,
    "sclite": _sclite,
    "espnet": _espnet,
}
