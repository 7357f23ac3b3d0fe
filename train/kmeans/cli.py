"""train-kmeans: centres of stored features, for units."""

import json
import shlex
from typing import Any

import click
from encodeonce.store.command import run_command
from encodeonce.store.devices import find_device
from encodeonce.store.errors import DamagedError, StoreError
from encodeonce.store.kmeans import KMEANS_FILE, KMeans, read_kmeans
from encodeonce.store.objects import StorePath
from encodeonce.store.params import StorePathParam
from encodeonce.store.progress import progress
from encodeonce.store.reader import FeatureStore


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("paths", nargs=-1, type=StorePathParam())
@click.option("--encoder", help="Which feature set of a store.")
@click.option("--split", "splits", multiple=True, help="Which split; give it again for several.")
@click.option("--output", help="Which output; by default the deepest layer.")
@click.option("--clusters", default=500, type=click.IntRange(1), help="How many, up to 65,536.")
@click.option("--to", type=StorePathParam(), required=True, help="The folder of the k-means.")
@click.option(
    "--frames",
    type=click.IntRange(1),
    help="Learn from at most so many, of utterances drawn at random.  [default: all]",
)
@click.option(
    "--batch-frames", default=10_000, type=click.IntRange(1), help="Of a mini-batch; at least as many as clusters."
)
@click.option("--steps", default=500, type=click.IntRange(1), help="Mini-batches to learn from.")
@click.option(
    "--seed",
    default=0,
    type=click.IntRange(0, 2**32 - 1),
    help="Decides the utterances, the first centres and the mini-batches.",
)
@click.option("--device", default="auto", help="auto, cpu, cuda or cuda:N.")
@click.option("--replace", is_flag=True, help="Replace another k-means that is in the folder.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line of stdout.")
def train_kmeans(
    paths: tuple[StorePath, ...],
    encoder: str | None,
    splits: tuple[str, ...],
    output: str | None,
    clusters: int,
    to: StorePath,
    frames: int | None,
    batch_frames: int,
    steps: int,
    seed: int,
    device: str,
    replace: bool,
    as_json: bool,
) -> None:
    """Train a k-means over stored features, in bounded memory, from which units are made.

    PATHS are splits, feature sets or stores (by default: features) of one encoder, with --split and --encoder where they
    hold several.
    """
    from encodeonce.train.kmeans.run import KMeansOptions, request, train

    options = KMeansOptions(clusters, frames, batch_frames, steps, seed)
    opened = [
        FeatureStore(path, encoder, split)
        for path in paths or (StorePathParam()("features"),)
        for split in splits or (None,)
    ]
    with FeatureStore.concat(opened, output) as store:
        found = None if replace else standing(to, request(store, output, options))
        stood = found is not None
        if found is None:
            found = train(store, output, options, find_device(device), progress)
            found.write(to)
        click.echo(describe(found, to, stood))
        for path in learnt_from(store):
            click.echo(
                f"Make units with: {shlex.join(['feature-store', 'derive', 'units', path, '--kmeans', str(to)])}"
            )
        if as_json:
            click.echo(json.dumps({"kmeans": as_object(found, to, stood)}))


def learnt_from(store: FeatureStore) -> list[str]:
    """The split of a store, or the feature set that its splits lie in: one, or one a folder."""
    from encodeonce.train.kmeans.run import feature_set_of

    if len(store.parts) == 1:
        return [str(store.path)]
    return list(dict.fromkeys(str(feature_set_of(part.path).path) for part in store.parts))


def standing(folder: StorePath, wanted: dict[str, Any]) -> KMeans | None:
    """The k-means that a folder holds already, where it was trained as it is wanted now.

    Raises:
        StoreError: it was trained otherwise, or is damaged.
    """
    if not (folder / KMEANS_FILE).exists():
        return None
    way_out = "give another --to, or --replace it"
    try:
        found = read_kmeans(folder)
    except DamagedError as error:
        raise DamagedError(f"{error}; {way_out}") from error
    had = found.training.get("request", {})
    if had != wanted:
        differing = ", ".join(name for name in wanted if had.get(name) != wanted[name])
        raise StoreError(
            f"{folder} holds another k-means ({found.clusters:,} clusters of {found.what} of {found.encoder}), trained with other "
            f"{differing}; {way_out}"
        )
    return found


def describe(found: KMeans, folder: StorePath, stood: bool) -> str:
    """A k-means in a line."""
    facts = found.training
    return (
        f"{'Found' if stood else 'Trained'} {found.clusters:,} clusters of {found.what} of {found.encoder} on {facts['frames']:,} "
        f"frames in {facts['seconds']:.1f} s: mean squared distance {facts['inertia']:.4g}, "
        f"perplexity {facts['perplexity']:,.1f} -> {folder}"
    )


def as_object(found: KMeans, folder: StorePath, stood: bool) -> dict[str, Any]:
    """What --json prints."""
    return {
        "path": str(folder),
        "stood": stood,
        "fingerprint": found.fingerprint,
        "clusters": found.clusters,
        "width": found.width,
        "what": found.what,
        "encoder": found.encoder,
        **found.training,
    }


def main(arguments: list[str] | None = None) -> None:
    """The entry point; see `run_command`."""
    run_command(train_kmeans, arguments)


if __name__ == "__main__":
    main()
