"""feature-store drop: take outputs away."""

import json
from dataclasses import asdict

import click
from encodeonce.store.drop import drop_outputs
from encodeonce.store.objects import StorePath
from encodeonce.store.params import StorePathParam


@click.command("drop")
@click.argument("path", default="features", type=StorePathParam())
@click.option("--output", "outputs", multiple=True, required=True, help="Which output; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line of stdout.")
def drop_command(path: StorePath, outputs: tuple[str, ...], as_json: bool) -> None:
    """Take outputs away, for good and without asking.

    PATH is a store, a feature set (all its splits) or a split. The feature set forgets an output once no split holds it.
    """
    report = drop_outputs(path, outputs)
    for dropped in report.splits:
        click.echo(f"Dropped {', '.join(dropped.outputs)} of {dropped.path}, freed {dropped.bytes / 1e6:.1f} MB")
    if report.forgotten:
        click.echo(f"Took {', '.join(report.forgotten)} out of {report.feature_set}: no split holds it any more")
    if as_json:
        click.echo(json.dumps({"dropped": asdict(report)}))
