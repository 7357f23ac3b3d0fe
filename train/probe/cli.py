"""probe-layers: which layer of an encoder to take."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from encodeonce.store.command import run_command
from encodeonce.store.devices import find_device
from encodeonce.store.errors import StoreError
from encodeonce.store.objects import StorePath
from encodeonce.store.params import StorePathParam
from encodeonce.store.progress import progress
from encodeonce.store.reader import FeatureStore
from encodeonce.train.probe.layers import chosen_layers, stored_layers

if TYPE_CHECKING:
    from encodeonce.train.probe.run import Probed, ProbeOptions
    from encodeonce.train.probe.subset import Subset


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("path", default="features", type=StorePathParam())
@click.option("--encoder", help="Which feature set of a store.")
@click.option("--split", help="Which split.")
@click.option(
    "--layers", help="Layers to probe, e.g. 1-6,9, all, mean:4-6.  [default: every stored layer, else every output]"
)
@click.option("--outputs", help="Outputs to probe by name instead, e.g. layer-06-int8,units.")
@click.option("--limit", default=1000, type=click.IntRange(2), help="Use at most so many utterances, picked at random.")
@click.option("--steps", default=800, type=click.IntRange(1), help="Steps of training for each output.")
@click.option("--batch-seconds", default=40.0, help="Audio of a batch.")
@click.option("--learning-rate", default=3e-3, help="At the beginning.")
@click.option(
    "--seed",
    default=0,
    type=click.IntRange(0),
    help="Decides the utterances, the held-out ones, the batches and the first weights.",
)
@click.option("--device", default="auto", help="auto, cpu, cuda or cuda:N.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the error rates into this file (.png, .svg, .pdf).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line of stdout.")
def probe_layers(
    path: StorePath,
    encoder: str | None,
    split: str | None,
    layers: str | None,
    outputs: str | None,
    limit: int,
    steps: int,
    batch_seconds: float,
    learning_rate: float,
    seed: int,
    device: str,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Train the same quick recogniser on each stored layer, and say how well it does on held-out utterances.

    PATH is a split, or a feature set or store with --split and --encoder, whose utterances have transcripts.
    """
    from encodeonce.train.probe.picture import check_picture, draw
    from encodeonce.train.probe.run import ProbeOptions
    from encodeonce.train.probe.subset import choose

    if layers is not None and outputs is not None:
        raise StoreError("--layers and --outputs both say what to probe; give one of them")
    if plot is not None:
        check_picture(plot)
    options = ProbeOptions(steps, seed, batch_seconds, learning_rate, find_device(device))
    with FeatureStore(path, encoder, split) as store:
        names = find_outputs(store, layers, outputs)
        subset = choose(store, limit, seed)
        click.echo(describe(subset), err=True)
        probes = run_probes(store, names, subset, options)
        best = min(probes, key=lambda found: found.cer)
        click.echo(f"Best: {best.output}, {best.cer:.1%} of the characters wrong on held-out speech")
        if plot is not None:
            draw(probes, f"{store.encoder}: linear CTC probes", plot)
            click.echo(f"Drawn in {plot}", err=True)
        if as_json:
            click.echo(json.dumps(as_object(store, subset, options, probes, best)))


def find_outputs(store: FeatureStore, layers: str | None, outputs: str | None) -> list[str]:
    """The outputs to probe: the layers or the outputs asked for; by default every layer, and every output where there is none.

    Raises:
        StoreError: there is no such layer or output.
    """
    if layers is not None:
        return chosen_layers(store, layers)
    if outputs is not None:
        return list(dict.fromkeys(store.spec(name.strip()).name for name in outputs.split(",")))
    return stored_layers(store) or store.outputs


def run_probes(store: FeatureStore, names: Sequence[str], subset: "Subset", options: "ProbeOptions") -> "list[Probed]":
    """Probe one output after the other, a line of the table each as soon as it is done."""
    from encodeonce.train.probe.run import probe

    width, probes = max(len("output"), *map(len, names)), []
    for number, name in enumerate(names):
        with progress(f"Probing {name}", options.steps, "steps") as advance:
            found = probe(store, name, subset, options, advance)
        if number == 0:
            click.echo(f"{'output':{width}}  loss a character      CER      WER  seconds")
        click.echo(f"{name:{width}}  {found.loss:16.3f}  {found.cer:7.1%}  {found.wer:7.1%}  {found.seconds:7.1f}")
        probes.append(found)
    return probes


def describe(subset: "Subset") -> str:
    """The two parts of a subset, and what was left out."""
    whose = "; speakers are not told apart, the same ones may be in both parts"
    if subset.speakers is not None:
        whose = " of {1} other speakers (these are of {0})".format(*subset.speakers)
    left = {"have no text": subset.without_text, "have more text than a probe can emit": subset.too_dense}
    out = "".join(f"; {count} {why}" for why, count in left.items() if count)
    return f"{len(subset.training)} utterances to learn from, {len(subset.held_out)} held out{whose}{out}"


def as_object(
    store: FeatureStore, subset: "Subset", options: "ProbeOptions", probes: "Sequence[Probed]", best: "Probed"
) -> dict[str, Any]:
    """What --json prints."""
    return {
        "store": str(store.path),
        "encoder": store.encoder,
        "fingerprint": store.fingerprint,
        "utterances": {
            "training": len(subset.training),
            "held_out": len(subset.held_out),
            "without_text": subset.without_text,
            "too_dense": subset.too_dense,
        },
        "speakers": subset.speakers and dict(zip(("training", "held_out"), subset.speakers, strict=True)),
        "options": asdict(options),
        "outputs": [asdict(found) for found in probes],
        "best": best.output,
    }


def main(arguments: list[str] | None = None) -> None:
    """The entry point; see `run_command`."""
    run_command(probe_layers, arguments)


if __name__ == "__main__":
    main()
