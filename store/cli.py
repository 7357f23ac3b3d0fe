"""feature-store: look after stores."""

import gc
import json
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import click
from encodeonce.store.cli_derive import derive
from encodeonce.store.cli_drop import drop_command
from encodeonce.store.cli_views import export_command, stats_command
from encodeonce.store.command import run_command
from encodeonce.store.commits import read_commits
from encodeonce.store.errors import StoreError
from encodeonce.store.find import splits_at
from encodeonce.store.health import repair_split, verify_split
from encodeonce.store.identity import describe_difference, differences
from encodeonce.store.layout import (
    SET_FILE,
    FeatureSet,
    SplitPaths,
    feature_sets,
    published_outputs,
    read_attributes,
    read_feature_set,
)
from encodeonce.store.noise import Snr
from encodeonce.store.objects import StorePath, name_below
from encodeonce.store.origins import Held, worst_source
from encodeonce.store.params import StorePathParam
from encodeonce.store.reader import FeatureStore
from encodeonce.store.table import read_table

COLLECTIONS = 100_000, 50, 100
"""Objects between two searches for garbage: with Python's 700 what imports leave is searched again and again, a twentieth of `derive`."""
PLACE = click.argument("path", default="features", type=StorePathParam())
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line of stdout.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
def feature_store() -> None:
    """Look after feature stores."""


feature_store.add_command(derive)
feature_store.add_command(drop_command)
feature_store.add_command(export_command)
feature_store.add_command(stats_command)


@feature_store.command("ls")
@PLACE
@AS_JSON
def list_store(path: StorePath, as_json: bool) -> None:
    """List the feature sets and splits of a store."""
    rows = [describe_split(feature_set, split) for feature_set, split in splits_at(path)]
    for row in rows:
        outputs = ", ".join(f"{name} {entry['dtype']}" for name, entry in row["outputs"].items()) or "nothing finished"
        hours, megabytes = row["audio_seconds"] / 3600, row["bytes"] / 1e6
        click.echo(
            f"{row['feature_set']}/{row['split']}: {row['utterances']} utterances, {hours:.2f} h, {megabytes:.1f} MB, {outputs}"
        )
    if as_json:
        click.echo(json.dumps({"splits": rows}))


def describe_split(feature_set: FeatureSet, split: StorePath) -> dict[str, Any]:
    """What ls and info say of a split."""
    paths = SplitPaths(split)
    attributes, commits = read_attributes(paths.group), read_commits(paths)
    table = read_table(paths.table) if paths.table.exists() else None
    seconds = sum(table["duration"].to_pylist()) if table is not None else 0.0
    names = FeatureStore(split).outputs if table is not None else []
    outputs: dict[str, dict[str, Any]] = {}
    for name in names:
        entries = [commit.outputs[name] for commit in commits.values() if name in commit.outputs]
        held = Held(feature_set, split, commits, name)
        worst = worst_source(held) if feature_set.outputs[name].dtype != "uint16" else None
        size = sum(entry["size"] + entry.get("affine", {}).get("size", 0) for entry in entries)
        outputs[name] = {
            "dtype": entries[0]["dtype"] if entries else feature_set.outputs[name].dtype,
            "width": feature_set.outputs[name].width,
            "what": feature_set.outputs[name].what,
            "codebook_sizes": feature_set.outputs[name].codebook_sizes,
            "derived_from": feature_set.outputs[name].derived_from,
            "bytes": size,
            "bytes_an_hour": round(size * 3600 / seconds) if seconds else None,
            **_decibels(held.snr),
            "snr_to": held.snr_to,
            "worst_source": {"output": worst[0].name_beside(feature_set), **_decibels(worst[1])} if worst else None,
        }
    return {
        "feature_set": feature_set.path.name,
        "split": name_below(split, feature_set.path),
        "path": str(split),
        "utterances": table.num_rows if table is not None else 0,
        "audio_seconds": round(seconds, 3),
        "frames": sum(table["frames"].to_pylist()) if table is not None else 0,
        "shards": len(commits),
        "shard_frames": attributes.shard_frames,
        "frame_rate": attributes.frame_rate,
        "failed": len(paths.failures.read_bytes().splitlines()) if paths.failures.exists() else 0,
        "outputs": outputs,
        "bytes": sum(output["bytes"] for output in outputs.values()),
    }


def _decibels(snr: Snr | None) -> dict[str, float | None]:
    return {"least_snr_db": snr.least if snr else None, "mean_snr_db": snr.mean if snr else None}


def noise_in(facts: Mapping[str, Any]) -> str:
    """What info says of an output's noise: to its source, and that of its worst source where that is more."""
    own, worst, text = facts["mean_snr_db"], facts["worst_source"], ""
    if own is not None:
        origin = f" to {facts['snr_to']}" if facts["snr_to"] else ""
        text = f", SNR {own} dB (least {facts['least_snr_db']}){origin}"
    if worst and (own is None or worst["mean_snr_db"] < own):
        text += f"; its worst source {worst['output']} has {worst['mean_snr_db']} dB (least {worst['least_snr_db']})"
    return text


@feature_store.command()
@PLACE
@AS_JSON
def info(path: StorePath, as_json: bool) -> None:
    """Say what the feature sets of a store are, and what stands in their splits."""
    described: dict[str, dict[str, Any]] = {}
    for feature_set, split in splits_at(path):
        entry = described.setdefault(
            feature_set.path.name,
            {
                "encoder": feature_set.encoder,
                "fingerprint": feature_set.fingerprint,
                "identity": feature_set.identity,
                "provenance": feature_set.provenance,
                "splits": [],
            },
        )
        entry["splits"].append(describe_split(feature_set, split))
    if as_json:
        click.echo(json.dumps({"feature_sets": described}))
        return
    for name, entry in described.items():
        click.echo(f"{name}")
        click.echo(f"  encoder      {entry['encoder']} ({entry['provenance'].get('source', 'unknown source')})")
        click.echo(f"  fingerprint  {entry['fingerprint']}")
        for field in ("precision", "preprocessing", "cutting", "weights"):
            click.echo(f"  {field:12} {json.dumps(entry['identity'].get(field), ensure_ascii=False)}")
        for split in entry["splits"]:
            click.echo(
                f"  {split['split']}: {split['utterances']} utterances, {split['audio_seconds'] / 3600:.2f} h, "
                f"{split['frames']} frames at {split['frame_rate']:g} a second, {split['shards']} shards, {split['failed']} failed"
            )
            for output, facts in split["outputs"].items():
                books = facts["codebook_sizes"]
                sizes = f" of {' + '.join(map(str, dict.fromkeys(books)))} each" if books else ""
                origin = f" derived from {facts['derived_from']}" if facts["derived_from"] else ""
                click.echo(
                    f"    {output}: {facts['what']}{origin}, [{facts['width']}] {facts['dtype']}{sizes}, {facts['bytes'] / 1e6:.1f} MB "
                    f"({(facts['bytes_an_hour'] or 0) / 1e6:.1f} MB an hour){noise_in(facts)}"
                )


class Share(click.ParamType):
    """A share such as 10% or 0.1."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The share as a number from 0 to 1."""
        text = str(value)
        try:
            share = float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            self.fail(f"{text!r} is no share; give one such as 10% or 0.1", param, ctx)
        return share


@feature_store.command()
@PLACE
@click.option("--quick", is_flag=True, help="Sizes and tables only.")
@click.option("--read-data", is_flag=True, help="Read every byte and compare checksums.")
@click.option("--read-data-subset", type=Share(), default=0.0, help="Read this share of the shards, e.g. 10%.")
@AS_JSON
def verify(path: StorePath, quick: bool, read_data: bool, read_data_subset: float, as_json: bool) -> None:
    """Compare a store with its records; read-only. Exit status 1 where something is damaged."""
    share = 1.0 if read_data else read_data_subset
    checks = [verify_split(feature_set, split, quick, share) for feature_set, split in splits_at(path)]
    for check in checks:
        for finding in check.findings:
            click.echo(f"damaged: {finding.path}: expected {finding.expected}, found {finding.found}", err=True)
        state = f"{len(check.findings)} problems" if check.findings else "whole"
        read = f", {check.bytes_read / 1e6:.1f} MB read" if share else ""
        click.echo(f"{check.split}: {check.utterances} utterances in {check.shards} shards{read}: {state}")
    if as_json:
        click.echo(json.dumps({"splits": [asdict(check) for check in checks]}, default=str))
    if any(check.findings for check in checks):
        if any(finding.shard is not None for check in checks for finding in check.findings):
            click.echo(
                "feature-store repair sets damaged shards aside, and names the command that fills them again", err=True
            )
        sys.exit(1)


@feature_store.command()
@PLACE
@click.option("--quick", is_flag=True, help="Look at sizes and indices only, not at every byte.")
def repair(path: StorePath, quick: bool) -> None:
    """Set damaged shards aside, and name the command that fills them."""
    beyond = False
    for feature_set, split in splits_at(path):
        check = verify_split(feature_set, split, read_data=0.0 if quick else 1.0)
        shards = repair_split(feature_set, split, check.findings) if check.findings else []
        left = verify_split(feature_set, split).findings if check.findings else []
        if shards:
            click.echo(
                f"{split}: set {len(shards)} shards aside under {split / 'damaged'} ({', '.join(map(str, shards))}). "
                f"Fill them with: {filling_command(feature_set, split)}"
            )
        elif not check.findings:
            click.echo(f"{split}: whole, nothing to repair")
        elif not left:
            click.echo(f"{split}: mended; every shard is whole")
        for finding in left:
            beyond = True
            click.echo(f"not repaired: {finding.path}: expected {finding.expected}, found {finding.found}", err=True)
    if beyond:
        sys.exit(1)


def filling_command(feature_set: FeatureSet, split: StorePath) -> str:
    """What makes a split's missing shards: the extract-features command, which brings all outputs when asked for one."""
    folder, name = feature_set.path.parent, name_below(split, feature_set.path)
    if "command" in feature_set.provenance:
        operation, *options = feature_set.provenance["command"]
        parent = folder / feature_set.provenance["parent"] / name
        return f"feature-store derive {operation} {parent} {shlex.join(options)}"
    if "written_by" in feature_set.provenance:
        return f"{feature_set.provenance['written_by']}.write of the same utterances"
    source = feature_set.provenance.get("source", feature_set.encoder)
    outputs = published_outputs(SplitPaths(split)).values()
    output = next((output for output in outputs if output.derivation is None), None)
    wanted = f" --dtype {output.dtype}" if output and output.dtype != "uint16" else ""
    if output and (named := re.fullmatch(r"(mean|)\(?(hidden_states|codes|latents)\[(.*?)\]\)?", output.what)):
        kind = named[1] or ("" if named[2] == "hidden_states" else named[2])
        wanted += f" --outputs {kind}:{named[3]}" if kind else f" --layers {named[3]}"
    place = f"--split {name} --store {folder}"
    return f"extract-features --encoder {source} {place}{wanted} --data DIR (the encoder and the corpus where they lie)"


@feature_store.command()
@click.argument("first", type=StorePathParam())
@click.argument("second", type=StorePathParam())
@AS_JSON
def diff(first: StorePath, second: StorePath, as_json: bool) -> None:
    """Say in what two feature sets differ. Exit status 1 where they do."""
    ours, theirs = read_feature_set(set_at(first)), read_feature_set(set_at(second))
    found = list(differences(ours.identity, theirs.identity))
    for difference in found:
        click.echo(describe_difference(*difference))
    if not found:
        click.echo(f"the same features: {ours.fingerprint}")
    if as_json:
        click.echo(json.dumps({"differences": [{"field": field, "first": a, "second": b} for field, a, b in found]}))
    if found:
        sys.exit(1)


def set_at(path: StorePath) -> StorePath:
    """The feature set at a path: itself, the one above a split, or the only one of a store."""
    for folder in (path, *path.resolve().parents):
        if (folder / SET_FILE).is_file():
            return folder
    sets = list(feature_sets(path))
    if len(sets) != 1:
        raise StoreError(f"{path} holds {len(sets)} feature sets; name one by its folder")
    return sets[0].path


def main(arguments: list[str] | None = None) -> None:
    """The entry point; see `run_command`."""
    gc.set_threshold(*COLLECTIONS)
    run_command(feature_store, arguments)


if __name__ == "__main__":
    main()
