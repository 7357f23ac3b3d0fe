"""A small split that several processes write together; imports little, since each of them imports it."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
from encodeonce.store.format import ShardItem
from encodeonce.store.hold import Member
from encodeonce.store.identity import fingerprint
from encodeonce.store.layout import Output, SplitAttributes
from encodeonce.store.objects import StorePath
from encodeonce.store.plan import Place
from encodeonce.store.quantize import keep
from encodeonce.store.table import record_of
from encodeonce.store.writer import SplitWriter

OUTPUTS = {
    "layer": Output("layer", 32, "float16", "hidden_states[1]"),
    "layer-int8": Output("layer-int8", 32, "int8", "hidden_states[1]"),
}
LAYER = {"layer": OUTPUTS["layer"]}
IDENTITY = {"weights": "1"}
ATTRIBUTES = SplitAttributes(fingerprint(IDENTITY), "toy", "dev", 16_000, 320, 256)
FRAMES = {f"utt-{number:02d}": 40 + 17 * (number % 9) for number in range(17)}
SAID: dict[str, Any] = dict.fromkeys(("audio", "offset", "channel", "speaker", "language", "text"))
SAID |= {"translations": {"de": "x"}, "metadata": {}}
WORLD = 3


def items_of(places: list[Place], outputs: dict[str, Output]) -> tuple[dict[str, list[ShardItem]], dict[str, list]]:
    """The items of a shard and their noise, functions of id and row."""
    items: dict[str, list[ShardItem]] = {name: [] for name in outputs}
    noise: dict[str, list] = {name: [] for name in outputs}
    for place in places:
        values = np.random.default_rng(place.row).standard_normal((place.frames, 32)).astype(np.float32)
        record = record_of(place, f"hash {place.row}", 16_000, SAID)
        for name, output in outputs.items():
            kept, affine, ratio = keep(values, output)
            items[name].append(ShardItem(place.id, place.row % 256, kept, record, affine))
            noise[name].append(ratio)
    return items, noise


def make(writer: SplitWriter, shard: int, outputs: dict[str, Output] = OUTPUTS) -> None:
    """Commit what a shard lacks."""
    commit = writer.commits.get(shard)
    specs = {name: output for name, output in outputs.items() if not commit or name not in commit.outputs}
    places = writer.places[shard]
    items, noise = items_of(writer.present(shard, places) if commit else places, specs)
    plan = next(plan.number for plan in writer.plans if any(place.shard == shard for place in plan.places))
    writer.commit(shard, plan, commit.absent if commit else [], items, specs, noise, {"by": "a test"})


def planned(writer: SplitWriter, frames: dict[str, int], outputs: dict[str, Output] = OUTPUTS) -> None:
    """Give utterances that have none, or were given other frames, their places."""
    with writer.alone():
        writer.publish(outputs)
        standing = {place.id: place.frames for places in writer.places.values() for place in places}
        new = [(name, count * 320, count) for name, count in frames.items() if standing.get(name) != count]
        if new:
            writer.begin(256)
            writer.append_plan(new, {})
        writer.open_outputs(outputs)


def fill(writer: SplitWriter, frames: dict[str, int] = FRAMES, outputs: dict[str, Output] = OUTPUTS) -> None:
    """Bring a split up to date, as every run does."""
    planned(writer, frames, outputs)
    for shard in sorted(writer.places):
        commit = writer.commits.get(shard)
        if writer.owns(shard) and (commit is None or (commit.utterances and outputs.keys() - commit.outputs.keys())):
            make(writer, shard, outputs)
            writer.publish(outputs)
    with writer.alone():
        writer.publish(outputs)
        leaving = writer.superseded() if writer.last else {}
        for shard, names in leaving.items():
            writer.remove(shard, names)
        writer.publish(outputs)


def single(split: StorePath, *steps: tuple[dict[str, int], dict[str, Output]]) -> None:
    """What one process makes of it."""
    for step in steps or [(FRAMES, OUTPUTS)]:
        with SplitWriter(split, ATTRIBUTES) as writer:
            fill(writer, *step)


def joint(split: StorePath, rank: int, world_size: int = WORLD) -> SplitWriter:
    """A member's writer."""
    return SplitWriter(split, ATTRIBUTES, member=Member(rank, world_size))


def run_member(split: Path, rank: int, barrier: Any, steps: Any = None, stop_after: int | None = None) -> None:
    """A process: it waits for the others to start, and may stop dead in the middle of a shard."""
    made = 0
    write = SplitWriter.write_commit

    def counted(self: SplitWriter, record: Any) -> None:
        nonlocal made
        made += 1
        if made == stop_after:
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, record)

    SplitWriter.write_commit = counted
    barrier.wait()
    for step in steps or [(FRAMES, OUTPUTS)]:
        with joint(split, rank) as writer:
            fill(writer, *step)
