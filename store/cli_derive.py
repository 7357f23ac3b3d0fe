"""feature-store derive: new outputs from stored ones, without the encoder."""

import functools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import click
from encodeonce.store.derive.frames import Dedup, FrameOperation, Stack, Stride, derive_frames
from encodeonce.store.derive.operations import Cast, Latents, Mean, Normalise, Operation, Pca, Units
from encodeonce.store.derive.request import request
from encodeonce.store.derive.shards import DeriveReport, derive_split
from encodeonce.store.derive.sources import holders
from encodeonce.store.errors import StoreError
from encodeonce.store.find import find_set, find_split, splits_at
from encodeonce.store.kmeans import read_kmeans
from encodeonce.store.layout import SET_FILE, FeatureSet, Output, SplitPaths, published_outputs
from encodeonce.store.objects import StorePath
from encodeonce.store.params import QuantizerRange, StorePathParam
from encodeonce.store.progress import progress
from encodeonce.store.reader import FeatureStore
from encodeonce.store.table import read_table

FLOATS = ("float16", "float32", "int8")
Targets = list[tuple[FeatureSet, list[StorePath]]]

PATH = click.argument("path", default="features", type=StorePathParam())
ENCODER = click.option("--encoder", help="Only the feature set of this encoder.")
SPLIT = click.option("--split", help="Only this split.")
OUTPUT = click.option("--output", help="What it is derived from; by default the deepest layer.")
CODES = click.option("--output", help="The codes or units it is derived from; by default the only ones there are.")
DTYPE = click.option("--dtype", type=click.Choice(FLOATS), default="float16", help="How the result is kept.")
NAME = click.option("--name", help="What to call the result, where the usual name will not do.")
FIT = click.option(
    "--fit", multiple=True, metavar="SPLIT", help="Fit on this split; repeatable.  [default: those at PATH]"
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line of stdout.")


@click.group()
def derive() -> None:
    """Make new outputs from stored ones, without the encoder.

    PATH is a store, a feature set or a split; every split there that holds the source is worked on. What stands is not made
    again, and a killed run is gone on with. stack, stride and dedup change the number of frames and make a feature set of
    their own beside the parent.
    """


def placed(command: Callable[..., None]) -> Any:
    """The argument PATH of a command, narrowed down by --encoder and --split."""

    @functools.wraps(command)
    def located(path: StorePath, encoder: str | None, split: str | None, **rest: Any) -> None:
        if split is not None:
            path = find_split(path, encoder, split)
        elif encoder is not None and not (path / SET_FILE).is_file():
            path = find_set(path, encoder).path
        command(path=path, **rest)

    return PATH(ENCODER(SPLIT(located)))


def options(*some: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several options of a command, in their order."""

    def add(command: Any) -> Any:
        for option in reversed(some):
            command = option(command)
        return command

    return add


@derive.command()
@placed
@options(OUTPUT, click.option("--dtype", type=click.Choice(FLOATS), required=True), NAME, AS_JSON)
def cast(path: StorePath, output: str | None, dtype: str, name: str | None, as_json: bool) -> None:
    """Keep an output in another dtype as well."""
    on_frames(path, Cast(dtype), [output or deepest(path)], name, (), as_json)


@derive.command()
@placed
@click.option("--output", "outputs", multiple=True, help="One of those to average; repeatable.")
@click.option("--layers", help="The layers to average, e.g. 18-24 or 9,18-24.")
@options(DTYPE, NAME, AS_JSON)
def mean(
    path: StorePath, outputs: tuple[str, ...], layers: str | None, dtype: str, name: str | None, as_json: bool
) -> None:
    """Average several layers."""
    if bool(outputs) == bool(layers):
        raise click.UsageError("give the outputs to average: --output twice or more, or --layers 18-24")
    on_frames(path, Mean(dtype), outputs or named_layers(path, layers or ""), name, (), as_json)


@derive.command()
@placed
@options(OUTPUT, DTYPE, FIT, NAME, AS_JSON)
def normalise(
    path: StorePath, output: str | None, dtype: str, fit: tuple[str, ...], name: str | None, as_json: bool
) -> None:
    """Give each dimension zero mean and unit variance."""
    on_frames(path, Normalise(dtype), [output or deepest(path)], name, fit, as_json)


@derive.command()
@placed
@click.option("--dimensions", type=int, default=64, help="How many principal components to keep.")
@click.option("--whiten", is_flag=True, help="Give each component unit variance.")
@options(OUTPUT, DTYPE, FIT, NAME, AS_JSON)
def pca(
    path: StorePath,
    dimensions: int,
    whiten: bool,
    output: str | None,
    dtype: str,
    fit: tuple[str, ...],
    name: str | None,
    as_json: bool,
) -> None:
    """Keep the principal components."""
    on_frames(path, Pca(dtype, dimensions, whiten), [output or deepest(path)], name, fit, as_json)


@derive.command()
@placed
@click.option("--kmeans", type=StorePathParam(), required=True, help="The folder that train-kmeans wrote.")
@options(OUTPUT, NAME, AS_JSON)
def units(path: StorePath, kmeans: StorePath, output: str | None, name: str | None, as_json: bool) -> None:
    """Give each frame the number of its nearest k-means centre.

    The output is by default the one that the k-means was trained on.
    """
    operation = Units(kmeans=read_kmeans(kmeans))
    if not any(operation.fits(feature_set) for feature_set, _ in targets(path)):
        raise operation.of_another_encoder(path)
    names = [output or operation.kmeans.source["output"]["name"]]
    on_frames(path, operation, names, name, (), as_json, operation.fits)


@derive.command()
@placed
@click.option("--quantizers", type=QuantizerRange(), help="Which of them, from 0, e.g. 0 or 1-7.  [default: all]")
@options(CODES, DTYPE, NAME, AS_JSON)
def latents(
    path: StorePath, quantizers: tuple[int, int] | None, output: str | None, dtype: str, name: str | None, as_json: bool
) -> None:
    """Add up the vectors that codes stand for; of units, take the centres."""
    on_frames(path, Latents(dtype, quantizers), [output or only_codes(path)], name, (), as_json)


@derive.command()
@placed
@click.option("--frames", type=int, default=4, help="How many frames side by side.")
@options(OUTPUT, DTYPE, NAME, AS_JSON)
def stack(path: StorePath, frames: int, output: str | None, dtype: str, name: str | None, as_json: bool) -> None:
    """Put frames side by side; the last stack is filled with zeros. A feature set of its own."""
    to_a_set(path, Stack(dtype, frames), output or deepest(path), name, as_json)


@derive.command()
@placed
@click.option("--by", type=int, default=2, help="Keep one frame of so many.")
@options(OUTPUT, DTYPE, NAME, AS_JSON)
def stride(path: StorePath, by: int, output: str | None, dtype: str, name: str | None, as_json: bool) -> None:
    """Keep every n-th frame, beginning with the first. A feature set of its own."""
    to_a_set(path, Stride(dtype, by), output or deepest(path), name, as_json)


@derive.command()
@placed
@options(CODES, NAME, AS_JSON)
def dedup(path: StorePath, output: str | None, name: str | None, as_json: bool) -> None:
    """Make runs of equal units one, with their durations in frames. A feature set of its own."""
    to_a_set(path, Dedup("uint16"), output or only_codes(path), name, as_json)


def targets(path: StorePath) -> Targets:
    """The splits at a path by feature set. Of a whole store, sets that are derived themselves are left out: name them."""
    found: dict[str, tuple[FeatureSet, list[StorePath]]] = {}
    for feature_set, split in splits_at(path):
        if (path / SET_FILE).is_file() or feature_set.path in path.resolve().parents or not is_derived(feature_set):
            found.setdefault(str(feature_set.path), (feature_set, []))[1].append(split)
    if not found:
        raise StoreError(f"{path} holds no split to derive from; extract-features makes one")
    return list(found.values())


def is_derived(feature_set: FeatureSet) -> bool:
    """Whether a whole feature set was derived from another."""
    return "command" in feature_set.provenance


def holding(path: StorePath, names: Sequence[str], fits: Callable[[FeatureSet], bool] | None = None) -> Targets:
    """The splits at a path that hold outputs, by feature set; of several sets only those that fit.

    Raises:
        StoreError: there is none; the message says what there is.
    """
    found, refused = [], []
    for feature_set, splits in targets(path):
        if fits is not None and not fits(feature_set):
            continue
        try:
            found.append((feature_set, holders(feature_set, splits, names)))
        except StoreError as error:
            refused.append(str(error))
    if not found:
        raise StoreError("; ".join(refused))
    return found


def outputs_at(path: StorePath) -> dict[str, Output]:
    """What readers see at a path, in any split."""
    return {
        name: output
        for _, splits in targets(path)
        for split in splits
        if SplitPaths(split).table.is_file()
        for name, output in published_outputs(SplitPaths(split)).items()
    }


def deepest(path: StorePath) -> str:
    """The output that a store gives by default, where an encoder made it of the frames.

    Raises:
        StoreError: there is none, or the feature sets of a store have different ones.
    """
    found: dict[str, str] = {}
    for feature_set, splits in targets(path):
        split = next((split for split in splits if SplitPaths(split).table.is_file()), None)
        spec = FeatureStore(split, cache_bytes=0).spec() if split else None
        if spec and spec.derivation is None and spec.dtype != "uint16":
            found[feature_set.path.name] = spec.name
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    if found:
        each = ", ".join(f"{name} of {folder}" for folder, name in found.items())
        raise StoreError(f"{path} holds several feature sets ({each}); give --output, or the folder of one of them")
    there = ", ".join(outputs_at(path)) or "nothing finished"
    raise StoreError(f"{path}: say what to derive from with --output; there are {there}")


def only_codes(path: StorePath) -> str:
    """The only output of codes or units."""
    there = outputs_at(path)
    found = [name for name, output in there.items() if output.codebook_sizes]
    if len(found) != 1:
        raise StoreError(
            f"{path}: {len(found) or 'none'} of its outputs hold codes or units; say which with --output; there are "
            f"{', '.join(there) or 'nothing finished'}"
        )
    return found[0]


def named_layers(path: StorePath, layers: str) -> list[str]:
    """The outputs of layers: of each the float16 one where there is one."""
    there = {name: output for name, output in outputs_at(path).items() if output.derivation is None}
    names = []
    for part in (part.strip() for part in layers.split(",")):
        span = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if span is None or int(span[1]) > int(span[2] or span[1]):
            raise StoreError(f"--layers {layers!r}: {part!r} is no layer; give numbers such as 18-24 or 9,18-24")
        for number in range(int(span[1]), int(span[2] or span[1]) + 1):
            base = f"layer-{number:02d}"
            name = next((name for name in (base, f"{base}-float32", f"{base}-int8") if name in there), None)
            if name is None:
                raise StoreError(f"--layers {layers}: {path} holds no layer {number}; there are {', '.join(there)}")
            names.append(name)
    return names


def on_frames(
    path: StorePath,
    operation: Operation,
    names: Sequence[str],
    called: str | None,
    fit: Sequence[str],
    as_json: bool,
    fits: Callable[[FeatureSet], bool] | None = None,
) -> None:
    """Derive an output of every feature set at a path, or of those that fit, and tell."""
    reports = []
    for feature_set, splits in holding(path, names, fits):
        asked = request(feature_set, splits, operation, names, called, fit)
        if asked.said:
            facts = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in asked.said.items())
            click.echo(f"Fitted {asked.output.name}: {facts}")
        for split in asked.splits:
            frames = sum(read_table(SplitPaths(split).table)["frames"].to_pylist())
            with progress(f"Deriving {asked.output.name} of {split.name}", frames, "frames") as advance:
                reports.append(derive_split(asked, split, advance=advance))
            tell(reports[-1])
    finish(reports, as_json)


def to_a_set(path: StorePath, operation: FrameOperation, name: str, called: str | None, as_json: bool) -> None:
    """Derive a feature set of every feature set at a path, and tell."""
    reports = []
    for feature_set, splits in holding(path, [name]):
        for split in splits:
            reports.append(derive_frames(feature_set, split, operation, name, called))
            tell(reports[-1])
    finish(reports, as_json)


def tell(report: DeriveReport) -> None:
    """One line of what was done on a split."""
    what = f"{report.output} of {report.utterances} utterances ({report.frames} frames, {report.bytes / 1e6:.1f} MB)"
    if report.derived:
        click.echo(f"Derived {what} in {report.path}, {report.derived} of them now, in {report.seconds:.1f} s")
    else:
        click.echo(f"Nothing to derive: {what} stand in {report.path}")


def finish(reports: Sequence[DeriveReport], as_json: bool) -> None:
    """The object that --json gives."""
    if as_json:
        click.echo(json.dumps({"derived": [asdict(report) for report in reports]}))
