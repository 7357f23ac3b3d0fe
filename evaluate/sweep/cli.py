"""sweep-adapters: many trainings and evaluations over one store, one table."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.store.command import run_command
from encodeonce.store.errors import StoreError
from encodeonce.train.errors import TrainingError

if TYPE_CHECKING:
    from encodeonce.evaluate.sweep.check import Checker
    from encodeonce.evaluate.sweep.expand import Run

GO_ON = "everything is kept; the same command goes on"


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("grid", required=False)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--dry-run", is_flag=True, help="Check everything; list the runs with parameters, memory and steps.")
@click.option("--list-grids", is_flag=True, help="List the grids that come with the package, and leave.")
@click.option("--retry-failed", is_flag=True, help="Try again what failed earlier.")
@click.option("--dask", metavar="ADDRESS", help="Runs in parallel: local, or the address of a Dask scheduler.")
@click.option("--gpus", metavar="LIST", help="A local worker for each of these GPUs: 0,1.")
@click.option("--workers", type=click.IntRange(1), help="So many local workers, on processors.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line of stdout.")
@click.option("--quiet", "-q", is_flag=True, help="Tell the table only.")
def sweep_adapters(
    grid: str | None,
    overrides: tuple[str, ...],
    dry_run: bool,
    list_grids: bool,
    retry_failed: bool,
    dask: str | None,
    gpus: str | None,
    workers: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Train and evaluate the runs of a grid over one store, and put them into one table.

    GRID is a YAML file, or the name of a grid of --list-grids. Runs are trainings, or finished ones that are evaluated alone.
    KEY=VALUE changes the grid (store=features, seeds=[0]) or every training (training.max_steps=20).
    The same command goes on where a killed one ended, and runs only what is new.
    """
    if list_grids:
        show_grids(as_json)
        return
    if grid is None:
        raise EvaluationError("GRID is missing: give a YAML file, or a grid of --list-grids")
    from encodeonce.evaluate.sweep.check import Checker
    from encodeonce.evaluate.sweep.expand import expand
    from encodeonce.evaluate.sweep.grid import load_grid
    from encodeonce.evaluate.sweep.pools import pool_of

    pool = pool_of(dask, [part.strip() for part in (gpus or "").split(",") if part.strip()], workers)
    wanted = load_grid(grid, overrides)
    runs = expand(wanted)
    checker = Checker(wanted.evaluate)
    checker.check_metrics(runs)
    if dry_run:
        sys.exit(show_plan(runs, checker, as_json))
    for run in runs:
        checker.check(run)
    from encodeonce.evaluate.sweep.make import make_table

    made = make_table(grid, wanted, runs, pool, _teller(quiet), retry_failed)
    for line in made.lines:
        click.echo(line)
    click.echo(f"Written to {wanted.output_dir}: table.html, table.md, table.csv, results.json, plot.svg", err=True)
    if as_json:
        click.echo(json.dumps(made.found))
    if made.swept.interrupted:
        click.echo(f"interrupted: {GO_ON}", err=True)
        sys.exit(130)
    if made.swept.failed:
        click.echo(f"{len(made.swept.failed)} runs failed; see {Path(wanted.output_dir) / 'failures.jsonl'}", err=True)
        sys.exit(1)


def _teller(quiet: bool) -> Any:
    return (lambda line: None) if quiet else (lambda line: click.echo(line, err=True))


def show_grids(as_json: bool) -> None:
    """What --list-grids prints."""
    from encodeonce.evaluate.sweep.grid import grids
    from encodeonce.train.configure import about

    found = {name: about(path) for name, path in grids().items()}
    if as_json:
        click.echo(json.dumps({"grids": found}))
        return
    width = max(map(len, found))
    for name, line in found.items():
        click.echo(f"{name:{width}}  {line}")


def show_plan(runs: "Sequence[Run]", checker: "Checker", as_json: bool) -> int:
    """What --dry-run prints, a line a run; the exit status: 2 where a run cannot be trained or evaluated."""
    from encodeonce.evaluate.sweep.plan import as_object

    width, found, status = max(len(run.name) for run in runs), [], 0
    for run in runs:
        try:
            checker.check(run)
            line, told = _taken(run)
        except (EvaluationError, StoreError, TrainingError) as error:
            status, reason = 2, " ".join(str(error).split()).removeprefix(f"run {run.name}: ")
            line, told = f"cannot be {'evaluated' if run.checkpoint else 'trained'}: {reason}", {"error": reason}
        click.echo(f"{run.name:{width}}  {line}")
        found.append({**as_object(run), **told})
    trainings = len({run.training for run in runs if run.checkpoint is None})
    click.echo(f"{len(runs)} runs{'' if trainings == len(runs) else f', {trainings} trainings'}; nothing was trained")
    if as_json:
        click.echo(json.dumps({"dry_run": True, "runs": found}))
    return status


def _taken(run: "Run") -> tuple[str, dict[str, Any]]:
    """What a run would take, in a line and for --json."""
    from encodeonce.evaluate.sweep.plan import estimated
    from encodeonce.evaluate.sweep.trained import parameters_of
    from encodeonce.train.estimate import gigabytes, millions

    if run.checkpoint is not None:
        parameters = parameters_of(run.checkpoint)
        return f"{millions(parameters):>9} parameters, of {run.checkpoint.folder}", {"parameters": parameters}
    takes = estimated(run)
    line = (
        f"{millions(takes.parameters):>9} parameters  {gigabytes(takes.memory):>8}  {takes.steps:>7,} steps  "
        f"{takes.utterances:,} utterances"
    )
    return line, asdict(takes)


def main(arguments: list[str] | None = None) -> None:
    """The entry point; see `run_command`."""
    run_command(sweep_adapters, arguments, (EvaluationError, StoreError, TrainingError), GO_ON)


if __name__ == "__main__":
    main()
