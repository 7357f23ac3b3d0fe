"""train-adapter: cached features -> adapter."""

import json
import sys
from dataclasses import replace
from typing import Any

import click
from encodeonce.store.command import run_command
from encodeonce.store.errors import StoreError
from encodeonce.train.errors import TrainingError

GO_ON = "the last checkpoint is kept; go on with the same command and resume_from_checkpoint=auto"


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("config", required=False)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--max-minutes", type=click.FloatRange(0, min_open=True), help="Stop after so long, and keep the state.")
@click.option(
    "--dry-run", is_flag=True, help="Check everything; tell utterances, parameters and memory; train nothing."
)
@click.option("--list-recipes", is_flag=True, help="List the recipes, and leave.")
@click.option("--list-adapters", is_flag=True, help="List the adapters with their options, and leave.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line of stdout.")
@click.option("--quiet", "-q", is_flag=True, help="Tell the result only.")
@click.option("--verbose", "-v", is_flag=True, help="Tell the resolved configuration too.")
def train_adapter(
    config: str | None,
    overrides: tuple[str, ...],
    max_minutes: float | None,
    dry_run: bool,
    list_recipes: bool,
    list_adapters: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Train an adapter on the features of a store.

    CONFIG is a YAML file, or the name of a recipe; KEY=VALUE changes it: training.learning_rate=1e-3.
    """
    if list_recipes or list_adapters:
        show_recipes(as_json) if list_recipes else show_adapters(as_json)
        return
    if config is None:
        raise TrainingError("CONFIG is missing: give a YAML file, or a recipe of --list-recipes")
    from encodeonce.train.configure import load_config, to_yaml

    resolved = load_config(config, overrides)
    if max_minutes is not None:
        resolved = replace(resolved, training=replace(resolved.training, max_minutes=max_minutes))
    if verbose:
        click.echo(to_yaml(resolved), err=True)
    from encodeonce.store.streaming.ranks import find_ranks
    from encodeonce.train.progress import TrainingProgress
    from encodeonce.train.run import plan_training, run_training

    first = find_ranks(None, None)[0] == 0
    progress = TrainingProgress(quiet or not first)
    if dry_run:
        planned = plan_training(resolved, progress)
        for line in planned.estimate.lines():
            click.echo(line)
        click.echo(f"{planned.epoch_batches:,} batches an epoch; nothing was trained")
        if as_json:
            click.echo(json.dumps({"dry_run": True, "recipe": config, **planned.as_object()}))
        return
    outcome = run_training(resolved, progress)
    if first:
        click.echo(outcome.summary())
        if as_json:
            click.echo(json.dumps(outcome.as_object()))
    if outcome.report.ended == "interrupted":
        if first:
            click.echo(f"interrupted: {GO_ON}", err=True)
        sys.exit(130)


def show_recipes(as_json: bool) -> None:
    """What --list-recipes prints."""
    from encodeonce.train.configure import about, recipes

    found = {name: about(path) for name, path in recipes().items()}
    if as_json:
        click.echo(json.dumps({"recipes": found}))
        return
    width = max(map(len, found))
    for name, line in found.items():
        click.echo(f"{name:{width}}  {line}")


def show_adapters(as_json: bool) -> None:
    """What --list-adapters prints: each adapter with its options and their defaults."""
    from encodeonce.train.adapters.registry import ADAPTERS
    from encodeonce.train.configure import as_values

    found: dict[str, Any] = {
        name: {"about": about_class(kind), "options": as_values(kind())} for name, kind in ADAPTERS.items()
    }
    if as_json:
        click.echo(json.dumps({"adapters": found}))
        return
    for name, entry in found.items():
        options = ", ".join(f"{key}={value}" for key, value in entry["options"].items() if key != "name")
        click.echo(f"{name}: {entry['about']}\n    {options}")


def about_class(kind: type[Any]) -> str:
    """The first line of a docstring."""
    return (kind.__doc__ or "").strip().partition("\n")[0]


def main(arguments: list[str] | None = None) -> None:
    """The entry point; see `run_command`. A process that trained with others ends at once."""
    status = 0
    try:
        run_command(train_adapter, arguments, (StoreError, TrainingError), GO_ON)
    except SystemExit as ended:
        status = ended.code
    if ranks := sys.modules.get("encodeonce.train.ranks"):  # which a command that trains nothing does not load
        ranks.leave(status)
    if status:
        sys.exit(status)


if __name__ == "__main__":
    main()
