"""What has come of the runs of a sweep: read from their folders."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from encodeonce.evaluate.sweep.expand import Run
from encodeonce.evaluate.sweep.grid import Evaluate
from encodeonce.evaluate.sweep.plan import RESULTS, results_folder
from encodeonce.evaluate.sweep.sweep import failures_of, trained
from encodeonce.evaluate.sweep.table import Measured, Result
from encodeonce.evaluate.sweep.work import Order
from encodeonce.store.errors import DamagedError
from encodeonce.store.files import read_json


def collect(runs: Sequence[Run], orders: Sequence[Order], evaluate: Evaluate) -> list[Result]:
    """The results of all runs so far."""
    return [_result(run, order, evaluate) for run, order in zip(runs, orders, strict=True)]


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
    failed = {failure["step"] for failure in failures_of(order)}
    splits: dict[str, Measured | Literal["failed", "waiting"]] = {}
    for split in evaluate.splits:
        path = results_folder(run, evaluate, split) / RESULTS
        if path.is_file():
            splits[split] = read_measured(path)
        else:
            splits[split] = "failed" if failed & {"train", "worker", f"evaluate {split}"} else "waiting"
    report = trained(order)
    parameters = report.get("parameters", {}).get("trained")
    return Result(
        name=run.name,
        labels=run.labels,
        seed=run.seed,
        splits=splits,
        parameters=sum(parameters.values()) if parameters else None,
        seconds=report.get("seconds"),
    )
