"""A whole sweep: its runs are worked on, and its files written as they are done."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encodeonce.evaluate.sweep.collect import collect
from encodeonce.evaluate.sweep.expand import Run
from encodeonce.evaluate.sweep.grid import Grid, find_grid
from encodeonce.evaluate.sweep.plan import OURS, Programs, orders_of
from encodeonce.evaluate.sweep.pools import Pool
from encodeonce.evaluate.sweep.sweep import Swept, Tell, failures_of, sweep
from encodeonce.evaluate.sweep.table import tabulate
from encodeonce.evaluate.sweep.write import Told, as_object, markdown, notes, write_pages, write_text
from encodeonce.train.configure import about


@dataclass(frozen=True)
class Made:
    """What a sweep leaves: how it went, its table in lines, and everything for --json."""

    swept: Swept
    lines: list[str]
    found: dict[str, Any]


def make_table(
    source: str,
    grid: Grid,
    runs: Sequence[Run],
    pool: Callable[[], Pool],
    tell: Tell,
    retry_failed: bool = False,
    programs: Programs = OURS,
) -> Made:
    """Work on what is left of a sweep, and write its table.

    Args:
        source: of the grid, for its first line.

    Raises:
        StoreError: the folder cannot be written, or another process sweeps there.
        EvaluationError: there is no such pool.
    """
    folder, first = Path(grid.output_dir), about(find_grid(source))
    orders = orders_of(runs, grid.evaluate, programs)

    def told() -> Told:
        return Told(grid.name, first, [line for order in orders for line in failures_of(order)])

    def write() -> None:
        results = collect(runs, orders, grid.evaluate)
        write_text(folder, told(), tabulate(results, grid.evaluate.metrics, grid.evaluate.splits), results)

    swept = sweep(orders, folder, pool, tell, retry_failed, write)
    results = collect(runs, orders, grid.evaluate)
    table, said = tabulate(results, grid.evaluate.metrics, grid.evaluate.splits), told()
    write_text(folder, said, table, results)
    write_pages(folder, said, table)
    states = {"done": swept.done, "before": swept.before, "failed": swept.failed, "interrupted": swept.interrupted}
    found = {**as_object(said, table, results), "output_dir": str(folder), "swept": states}
    return Made(swept, [*markdown(table), "", *notes(table)], found)
