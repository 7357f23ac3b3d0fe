"""What becomes of an evaluation: a report, a comparison with an earlier one, and files in other toolkits' formats."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.evaluation import RESYNTHESIS, Evaluation
from encodeonce.evaluate.formats.espnet import espnet_tables
from encodeonce.evaluate.formats.icefall import write_errs, write_recogs
from encodeonce.evaluate.formats.sclite import check_id, write_trn
from encodeonce.evaluate.hypotheses import read_hypotheses
from encodeonce.evaluate.metrics.significance import Comparison, compare
from encodeonce.evaluate.report.analysis import analyse
from encodeonce.evaluate.report.extras import Extras
from encodeonce.evaluate.report.page import PAGE, TEXT, write_report
from encodeonce.evaluate.report.results import RESULTS, SAMPLES, write_results
from encodeonce.evaluate.report.resynthesis import CodecRates
from encodeonce.evaluate.scoring import METRICS, ScoreOptions, score
from encodeonce.store.errors import StoreError
from encodeonce.store.files import atomic_write, read_json

REFERENCES = "ref.trn"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is made of hypotheses.

    Attributes:
        compare: the folder of an earlier evaluation, or one that has such folders by the names of the test sets.
        report: whether the page and its text are written; the numbers always are.
        resynthesis: rates of codecs, which the report shows beside the system's.
        also: names of `WRITERS`.

    Raises:
        EvaluationError: a comparison without word error rates.
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
        if self.compare is not None and "wer" in self.scoring.leave_out:
            raise EvaluationError(
                "--compare tests word error rates, and --leave-out wer has none: leave one of them out"
            )


@dataclass(frozen=True, slots=True)
class Finished:
    """An evaluation that is written down; `report` is the page."""

    evaluation: Evaluation
    folder: Path
    report: Path | None
    comparison: Comparison | None


def finish(name: str, evaluation: Evaluation, folder: Path, wanted: Wanted, extras: Extras) -> Finished:
    """Write an evaluation of the test set `name` into a folder; results.json is the last file, and says that all others are there.

    A comparison that cannot be made is among what was skipped.

    Raises:
        StoreError: the folder cannot be written.
    """
    if wanted.resynthesis:
        evaluation = replace(evaluation, details={**evaluation.details, RESYNTHESIS: list(wanted.resynthesis)})
    comparison = None
    if wanted.compare is not None:
        try:
            comparison = compare(evaluation, earlier(wanted.compare, name, wanted.scoring), common_only=True)
        except (EvaluationError, StoreError) as error:
            evaluation = evaluation.without("comparison", error)
    comparisons = [] if comparison is None else [comparison]
    for kind in wanted.also if evaluation.utterances else ():
        WRITERS[kind](folder, name.replace("/", "-"), evaluation)
    report = None
    if wanted.report:
        report = write_report(folder, evaluation, extras, comparisons)
    else:
        for page in (PAGE, TEXT):
            (folder / page).unlink(missing_ok=True)  # of other numbers
        write_results(folder, evaluation, analyse(evaluation), comparisons, datetime.now(UTC))
    return Finished(evaluation, folder, report, comparison)


def check_ids(wanted: Wanted, name: str, ids: Sequence[str]) -> None:
    """Refuse what cannot be made of a test set, as far as the ids of its utterances tell.

    Raises:
        EvaluationError: an earlier evaluation that is none, or has none of them; an id that cannot stand in a file that is asked for.
    """
    if wanted.compare is not None and ids:
        _check_earlier(wanted.compare, name, ids)
    if "sclite" in wanted.also:
        for one in ids:
            check_id(one, REFERENCES)


def _find_earlier(folder: Path, name: str) -> Path:
    """Where an earlier evaluation of a test set lies: in its own folder, or in one of several sets.

    Raises:
        EvaluationError: there is none.
    """
    found = next((path for path in (folder / name, folder) if (path / SAMPLES).is_file()), None)
    if found is None:
        raise EvaluationError(f"{folder} holds no {SAMPLES}; give the folder of an earlier evaluation of {name}")
    return found


def _check_earlier(folder: Path, name: str, ids: Sequence[str]) -> None:
    found = _find_earlier(folder, name)
    theirs = [one.id for one in read_hypotheses(found / SAMPLES)]
    if set(theirs).isdisjoint(ids):
        there = f"others, such as {theirs[0]}" if theirs else "none at all"
        raise EvaluationError(
            f"{found} has no utterance of {name}, such as {ids[0]}, but {there}: give the folder of an earlier evaluation of {name}"
        )


def earlier(folder: Path, name: str, options: ScoreOptions) -> Evaluation:
    """An earlier evaluation, its texts compared as `options` say."""
    found = _find_earlier(folder, name)
    (title, *_) = read_json(found / RESULTS).get("results") or [str(found)]
    rest = tuple(name for name in METRICS[options.task] if name != "wer")
    return score(read_hypotheses(found / SAMPLES), replace(options, leave_out=rest), f"{title} ({found})")


def _icefall(folder: Path, name: str, evaluation: Evaluation) -> None:
    texts = _texts(evaluation)
    write_recogs(folder / f"recogs-{name}.txt", texts)
    write_errs(folder / f"errs-{name}.txt", texts)


def _sclite(folder: Path, name: str, evaluation: Evaluation) -> None:
    texts = _texts(evaluation)
    write_trn(folder / REFERENCES, [(name, said) for name, said, _ in texts])
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
