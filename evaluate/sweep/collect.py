"""What has come of the runs of a sweep: read from their folders."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from encodeonce.evaluate.sweep.expand import Run
from encodeonce.evaluate.sweep.grid import Evaluate
from encodeonce.evaluate.sweep.plan import RESULTS, log_of, results_folder
from encodeonce.evaluate.sweep.sweep import failures_of, trained
from encodeonce.evaluate.sweep.table import Measured, Result
from encodeonce.evaluate.sweep.trained import parameters_of
from encodeonce.evaluate.sweep.work import TRAIN, WORKER, Order
from encodeonce.store.errors import DamagedError
from encodeonce.store.files import read_json


def collect(runs: Sequence[Run], orders: Sequence[Order], evaluate: Evaluate) -> list[Result]:
    """The results of all runs so far."""
    training = {order.name: order for order in orders}
    return [_result(run, training[run.training], evaluate) for run in runs]


def read_measured(path: Path) -> Measured:
    """What results.json of an evaluation says, of its first test set.

    Raises:
        DamagedError: it is none.
    """
    found = read_json(path)
    try:
        title, values = next(iter(found["results"].items()))
        beside: dict[str, Mapping[str, Any]] = {
            key: found.get(key, {}).get(title, {})
            for key in ("units", "higher_is_better", "intervals", "signatures", "skipped")
        }
        intervals = {name: (ends[0], ends[1]) for name, ends in beside.pop("intervals").items()}
        numbers = {name: float(value) for name, value in values.items() if value is not None}
        return Measured(numbers, intervals=intervals, **beside)
    except (KeyError, StopIteration, AttributeError, TypeError, ValueError, IndexError) as error:
        raise DamagedError(
            f"{path} is no result of evaluate-adapter: {error!r}; remove its folder, and run again"
        ) from error


def _result(run: Run, order: Order, evaluate: Evaluate) -> Result:
    failures = failures_of(order)
    nothing = any(failure["step"] in (TRAIN, WORKER) for failure in failures)
    failed = {Path(failure["log"]).name for failure in failures if failure["log"] is not None}
    splits: dict[str, Measured | Literal["failed", "waiting"]] = {}
    for split in evaluate.splits:
        folder = results_folder(run, evaluate, split)
        if (folder / RESULTS).is_file():
            splits[split] = read_measured(folder / RESULTS)
        else:
            splits[split] = "failed" if nothing or log_of(folder).name in failed else "waiting"
    report = trained(order)
    return Result(
        name=run.name,
        labels=run.labels,
        seed=run.seed,
        splits=splits,
        parameters=_parameters(run, report),
        seconds=report.get("seconds"),
        checkpoint=None if run.checkpoint is None else str(run.checkpoint.folder),
        options=run.options,
    )


def _parameters(run: Run, report: Mapping[str, Any]) -> int | None:
    if run.checkpoint is not None:
        return parameters_of(run.checkpoint)
    parameters = report.get("parameters", {}).get("trained")
    return sum(parameters.values()) if parameters else None
