"""extract-features: audio -> feature store."""

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path

import click
import numpy as np
from encodeonce.extract.batching import CONTEXT_SECONDS, CUT_SECONDS
from encodeonce.extract.cache import FileCache
from encodeonce.extract.corpora import LAYOUTS, CorpusError, download_librispeech
from encodeonce.extract.encoders.base import PRECISIONS, EncoderError
from encodeonce.extract.job import extract_split
from encodeonce.extract.ledger import SplitReport
from encodeonce.extract.progress import Progress
from encodeonce.extract.request import DTYPES, Request, RequestError
from encodeonce.extract.run import Run
from encodeonce.extract.schedule import maker_of
from encodeonce.store.command import run_command
from encodeonce.store.errors import StoreError
from encodeonce.store.params import StorePathParam


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option(
    "--encoder",
    help="A name from --list-encoders, a folder in transformers' format, a hub id, onnx:FILE, or units:FOLDER (a k-means).",
)
@click.option("--base-encoder", help="The encoder under units:FOLDER.  [default: the one that the k-means names]")
@click.option("--split", "split", multiple=True, help="One or more splits, e.g. train-clean-100 dev-clean.")
@click.argument("more_splits", nargs=-1, metavar="[SPLIT]...")
@click.option("--data", default="data", type=click.Path(path_type=Path), help="Where the corpora are.")
@click.option("--corpus", default="auto", type=click.Choice(["auto", *LAYOUTS]), help="The layout of the corpus.")
@click.option(
    "--store", default="features", type=StorePathParam(), help="The feature store: a folder, or s3://... and the like."
)
@click.option(
    "--layers",
    help="Hidden states: last, all, numbers such as 9,18-24 (0: input to the first layer), or a mean such as mean:18-24.  "
    "[default: last]",
)
@click.option(
    "--outputs",
    help="The same; of a codec: codes, latents, or those of some quantizers such as latents:1-7.  [default: codes]",
)
@click.option("--dtype", default="float16", type=click.Choice(DTYPES), help="How features are stored.")
@click.option(
    "--precision", default="auto", type=click.Choice(["auto", *PRECISIONS]), help="What the encoder computes in."
)
@click.option(
    "--device",
    default="auto",
    help="auto, cpu, cuda, cuda:N, several such as cuda:0,cuda:1, or all: a process for each.",
)
@click.option(
    "--dask",
    metavar="ADDRESS|local",
    help="Let the workers of a Dask cluster encode: the address of its scheduler, or local for one of this machine.",
)
@click.option(
    "--rank", help="Make only this process's share of the shards: a number from 0, or auto under SLURM or MPI."
)
@click.option("--world-size", type=int, help="How many processes share the shards, each started with its own --rank.")
@click.option(
    "--batch-seconds",
    type=float,
    help="Padded seconds of audio in a batch; 0: one utterance at a time.  [default: by device]",
)
@click.option(
    "--cut-seconds", default=CUT_SECONDS, help="Longer audio is cut into overlapping windows of at most this."
)
@click.option("--context-seconds", default=CONTEXT_SECONDS, help="Overlap on each side of a window.")
@click.option(
    "--shard-frames", type=int, help="Frames of a shard, fixed when a split is created.  [default: about 128 MB]"
)
@click.option("--limit", type=int, help="Only the first N utterances of each split.")
@click.option(
    "--workers",
    default=0,
    help="Threads that decode audio, in all processes together; 0: one a core, at most 8 a process.",
)
@click.option("--replace", is_flag=True, help="Encode anew what changed under a known id.")
@click.option(
    "--drop-gone", is_flag=True, help="Take utterances out of the split whose files are gone from the corpus."
)
@click.option("--download", is_flag=True, help="Fetch missing splits of LibriSpeech.")
@click.option("--dry-run", is_flag=True, help="Tell utterances, hours, bytes, time and cost; write nothing.")
@click.option("--price", type=float, help="With --dry-run: what an hour of this machine costs, in any currency.")
@click.option("--list-encoders", is_flag=True, help="List the encoders, and leave.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line of stdout.")
@click.option("--quiet", "-q", is_flag=True, help="On stderr, tell of failures only.")
@click.option("--verbose", "-v", is_flag=True, help="Tell where the time went.")
def extract_features(
    encoder: str | None,
    split: tuple[str, ...],
    more_splits: tuple[str, ...],
    layers: str | None,
    outputs: str | None,
    list_encoders: bool,
    download: bool,
    dry_run: bool,
    price: float | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **options: object,
) -> None:
    """Run a frozen speech encoder over a corpus once, and keep its features.

    extract-features --encoder hubert-large --split train-clean-100
    """
    progress = Progress(quiet, verbose)
    if list_encoders:
        show_encoders(as_json)
        return
    splits = tuple(name for value in (*split, *more_splits) for name in value.split(",") if name)
    if not encoder:
        raise RequestError(
            "--encoder is missing: name one of --list-encoders, a folder, a hub id, onnx:FILE, or units:FOLDER"
        )
    if not splits:
        raise RequestError("--split is missing: name one or more, e.g. --split train-clean-100")
    if layers is not None and outputs is not None:
        raise RequestError(
            f"--layers {layers} and --outputs {outputs} are two names of one option: give one, with commas"
        )
    chosen = outputs if layers is None else layers
    request = Request(encoder=encoder, splits=tuple(dict.fromkeys(splits)), layers=chosen, **options)  # type: ignore[arg-type]
    if price is not None and not (dry_run and 0 <= price < math.inf):
        raise RequestError(f"--price {price:g}: take 0 or more, and --dry-run with it")
    cache = FileCache()
    try:
        if download:
            for name in request.splits:
                download_librispeech(request.data, name)
        run = Run(request, progress, cache)
        if dry_run:
            show_estimates(run, price, as_json)
            return
        reports = []
        with maker_of(run) as maker:
            for name in request.splits:
                maker.reset()
                reports.append(extract_split(run, name, maker))
    finally:
        cache.close()
    for report in reports:
        click.echo(summary(report))
    if as_json:
        click.echo(json.dumps({"splits": [asdict(report) for report in reports]}))
    if any(report.failed for report in reports):
        sys.exit(1)


def summary(report: SplitReport) -> str:
    """What became of a split, in a line."""
    did = [
        f"{getattr(report, word)} {word}" for word in ("encoded", "copied", "reused", "failed") if getattr(report, word)
    ]
    speed = f", {report.rtfx:.0f} times real time" if report.rtfx else ""
    return (
        f"{report.utterances} utterances of {report.split} ({report.audio_seconds / 3600:.2f} h): "
        f"{', '.join(did) or 'nothing to do'} in {report.wall_seconds:.1f} s{speed}; "
        f"{report.bytes / 1e6:.1f} MB in {report.store}"
    )


def show_encoders(as_json: bool) -> None:
    """What --list-encoders prints."""
    from encodeonce.extract.encoders.registry import list_encoders
    from encodeonce.extract.listing import as_record, print_encoders

    rows = list_encoders()
    if as_json:
        click.echo(json.dumps({"encoders": [as_record(row) for row in rows]}))
    else:
        print_encoders(rows)


def show_estimates(run: Run, price: float | None, as_json: bool) -> None:
    """What --dry-run prints."""
    from encodeonce.extract.dryrun import estimate

    devices = ", ".join(run.devices())
    estimates = [estimate(run, name, price) for name in run.request.splits]
    for found in estimates:
        failed = f", {found.failed} cannot be used" if found.failed else ""
        cost = f", which costs {_money(found.cost)}" if found.cost is not None else ""
        click.echo(
            f"{found.split}: {found.utterances} utterances, {found.hours:.2f} h{failed}; to encode: {found.to_encode}, "
            f"{found.hours_to_encode:.2f} h, about {found.bytes / 1e6:.1f} MB into {found.store}, "
            f"about {_span(found.expected_seconds)} on {devices} in {run.precision}{cost}"
        )
    total = {
        field: round(sum(getattr(found, field) for found in estimates), 6)
        for field in ("hours_to_encode", "bytes", "expected_hours", *(["cost"] if price is not None else []))
    }
    if len(estimates) > 1:
        cost = f", which costs {_money(total['cost'])}" if price is not None else ""
        hours = _span(3600 * total["expected_hours"])
        click.echo(f"In all {total['hours_to_encode']:.2f} h, {total['bytes'] / 1e6:.1f} MB, {hours}{cost}")
    if as_json:
        splits = [asdict(found) for found in estimates]
        told = {"dry_run": True, "devices": run.devices(), "precision": run.precision, "price": price}
        click.echo(json.dumps(told | {"splits": splits, "total": total}))


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 3600:.2f} h"


def _money(cost: float) -> str:
    """With two digits that count, however small."""
    return f"{cost:.2f}" if cost >= 0.1 or not cost else np.format_float_positional(cost, 2, fractional=False, trim="-")


def main(arguments: list[str] | None = None) -> None:
    """The entry point; see `run_command`."""
    run_command(
        extract_features,
        arguments,
        (RequestError, EncoderError, CorpusError, StoreError),
        "everything finished so far is kept; run the same command again to go on",
    )


if __name__ == "__main__":
    main()
