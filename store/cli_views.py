"""feature-store export and stats."""

import json
import warnings
from pathlib import Path

import click
import numpy as np
from encodeonce.store.exports import FORMATS, export
from encodeonce.store.moments import Moments, Usage
from encodeonce.store.objects import StorePath
from encodeonce.store.params import StorePathParam
from encodeonce.store.progress import progress
from encodeonce.store.reader import FeatureStore
from encodeonce.store.stats import Statistics, statistics, statistics_path

MOST_NAMED = 20

PLACE = click.argument("path", default="features", type=StorePathParam())
ENCODER = click.option("--encoder", help="Which feature set of a store, where it holds several.")
SPLIT = click.option("--split", help="Which split of a feature set, where it holds several.")
OUTPUT = click.option("--output", help="Which output; by default the deepest layer, of a codec its codes.")
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line of stdout.")


@click.command("export")
@PLACE
@ENCODER
@SPLIT
@OUTPUT
@click.option("--format", "form", type=click.Choice(list(FORMATS)), required=True, help="Whose format.")
@click.option("--to", type=click.Path(), required=True, help="A new folder.")
@click.option("--dtype", type=click.Choice(["float16", "float32"]), help="By default as stored; int8 as float32.")
@AS_JSON
def export_command(
    path: StorePath,
    encoder: str | None,
    split: str | None,
    output: str | None,
    form: str,
    to: str,
    dtype: str | None,
    as_json: bool,
) -> None:
    """Write a split's features as .npy files, lhotse cuts, a Kaldi folder or a Hugging Face dataset."""
    with FeatureStore(path, encoder, split, output) as store:
        with progress(f"Exporting {store.output}", len(store), "utterances") as advance:
            done = export(store, form, to, dtype=dtype, advance=advance)
        for note in done.notes:
            click.echo(f"note: {note}", err=True)
        click.echo(f"Exported {store.output} of {done.utterances} utterances ({done.frames} frames) to {done.path}")
        if as_json:
            facts = {"path": str(done.path), "format": form, "output": store.output, "notes": done.notes}
            click.echo(json.dumps({"export": {**facts, "utterances": done.utterances, "frames": done.frames}}))


@click.command("stats")
@PLACE
@ENCODER
@SPLIT
@OUTPUT
@click.option("--picture", type=click.Path(path_type=Path), help="Draw them into this file (.png, .svg, .pdf).")
@AS_JSON
def stats_command(
    path: StorePath, encoder: str | None, split: str | None, output: str | None, picture: Path | None, as_json: bool
) -> None:
    """Say what an output's values are like, dimension by dimension; kept in the feature set's folder stats."""
    with FeatureStore(path, encoder, split, output) as store:
        title, frames = f"Reading {store.output}", int(store.frames.sum())
        with progress(title, frames, "frames") as advance, warnings.catch_warnings(record=True) as warned:
            found = statistics(store, advance=advance)
        for warning in warned:
            click.echo(f"note: {warning.message}", err=True)
        for line in describe(found):
            click.echo(line)
        if (kept := statistics_path(store.parts[0], store.output)) is not None and kept.is_file():
            click.echo(f"Kept in {kept}", err=True)
    if picture is not None:
        from encodeonce.store.picture import draw

        draw(found, picture)
        click.echo(f"Drawn in {picture}", err=True)
    if as_json:
        click.echo(json.dumps(found.to_json()))


def describe(found: Statistics) -> list[str]:
    """Statistics in a few lines."""
    spec, values = found.output, found.values
    lines = [
        f"{spec.name} [{spec.width}] {spec.dtype}, {spec.what}: {found.utterances:,} utterances, "
        f"{found.seconds / 3600:,.2f} h, {found.frames:,} frames",
        f"  length    mean {found.seconds / found.utterances:.2f} s, longest {found.length_edges[-1]:.2f} s",
    ]
    if isinstance(values, Usage):
        pairs = enumerate(zip(values.used.tolist(), values.perplexity.tolist(), strict=True))
        lines += [f"  codebook {book}: {used:,} codes used, perplexity {even:,.1f}" for book, (used, even) in pairs]
        return lines
    lines += [
        f"  mean      {_span(values.mean, values.mean)}",
        f"  std       {_span(found.std, found.std)}, median {np.median(found.std):.4g}",
        f"  values    {_span(values.minimum, values.maximum)}",
        f"  constant  {_constant(values)}",
    ]
    return lines


def _span(low: np.ndarray, high: np.ndarray) -> str:
    least, most = int(low.argmin()), int(high.argmax())
    return f"from {low[least]:.4g} (dimension {least}) to {high[most]:.4g} (dimension {most})"


def _constant(moments: Moments) -> str:
    """The dimensions that say nothing, named."""
    found = moments.constant
    if not found:
        return "none: every dimension changes"
    named = ", ".join(f"{dimension} (always {moments.mean[dimension]:.4g})" for dimension in found[:MOST_NAMED])
    more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return f"{len(found)} of {len(moments.mean)} dimensions never change: {named}{more}"
