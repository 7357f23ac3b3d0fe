"""Utterances -> shards and rows, before anything is encoded. Pure but for reading and writing the plan as Parquet."""

import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from encodeonce.store.errors import DamagedError
from encodeonce.store.files import atomic_write, open_file
from encodeonce.store.format import ROW_ALIGNMENT
from encodeonce.store.objects import StorePath

TARGET_SHARD_BYTES = 128 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Place:
    """Where an utterance belongs: `row` is global (shard * shard_frames + row in the shard)."""

    id: str
    shard: int
    row: int
    frames: int
    samples: int


@dataclass(frozen=True, slots=True)
class Plan:
    """One plan of a split: its number, its places, and which shards of other splits its audio may be copied from."""

    number: int
    places: tuple[Place, ...]
    copy_from: dict[str, int]
    """split -> first shard number that did not exist yet when the plan was made"""


def aligned(frames: int) -> int:
    """Rows that an utterance of so many frames takes up."""
    return -(-frames // ROW_ALIGNMENT) * ROW_ALIGNMENT


def shard_frames_for(row_bytes: int, frames: Sequence[int], least: int) -> int:
    """Rows of a shard, for a split that begins with utterances of so many frames.

    About 128 MB of the widest output; less where all of it is less, since every shard carries an index of one entry a
    chunk; but at least `least` rows, for what comes later, and the longest utterance.
    """
    wanted = max(min(TARGET_SHARD_BYTES // row_bytes, sum(map(aligned, frames))), least, *frames)
    return aligned(wanted)


def deal(
    utterances: Iterable[tuple[str, int, int]], shard_frames: int, first_shard: int, number: int
) -> tuple[Place, ...]:
    """Deal utterances (id, samples, frames) to shards, in the order of sha256("<plan number>:<id>").

    That order is random to the data and the same whatever order the corpus came in. A shard takes utterances as long
    as they fit. Every utterance must fit an empty shard.
    """
    shuffled = sorted(utterances, key=lambda u: hashlib.sha256(f"{number}:{u[0]}".encode()).digest())
    places = []
    shard, row = first_shard, 0
    for identity, samples, frames in shuffled:
        if not 0 < frames <= shard_frames:
            raise ValueError(f"{identity!r} has {frames} frames; a shard holds 1 to {shard_frames}")
        if row + frames > shard_frames:
            shard, row = shard + 1, 0
        places.append(Place(identity, shard, shard * shard_frames + row, frames, samples))
        row += aligned(frames)
    return tuple(places)


def write_plan(folder: StorePath, plan: Plan, scratch: StorePath) -> None:
    """Write plans/<n>.parquet."""
    table = pa.table(
        {
            "id": pa.array([p.id for p in plan.places], pa.string()),
            "shard": pa.array([p.shard for p in plan.places], pa.int32()),
            "row": pa.array([p.row for p in plan.places], pa.int64()),
            "frames": pa.array([p.frames for p in plan.places], pa.int32()),
            "samples": pa.array([p.samples for p in plan.places], pa.int64()),
        }
    ).replace_schema_metadata({"copy_from": json.dumps(plan.copy_from, sort_keys=True)})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    with atomic_write(folder / f"{plan.number}.parquet", scratch) as file:
        file.write(buffer.getbuffer())


def read_plans(folder: StorePath, after: int = -1) -> list[Plan]:
    """The plans of a split, in order: all, or those with numbers above `after`."""
    plans = []
    found = list(folder.glob("*.parquet"))
    for path in found:
        if not path.stem.isdigit():
            raise DamagedError(f"{path} is no plan of ours: plans are called <n>.parquet; take it away")
    for path in sorted((path for path in found if int(path.stem) > after), key=lambda p: int(p.stem)):
        try:
            with open_file(path) as file:
                table = pq.ParquetFile(file).read()
        except (pa.ArrowInvalid, OSError) as error:
            raise DamagedError(f"{path} cannot be read: {error}") from error
        columns = [table[name].to_pylist() for name in ("id", "shard", "row", "frames", "samples")]
        metadata = table.schema.metadata or {}
        copy_from = json.loads(metadata.get(b"copy_from", b"{}"))
        plans.append(Plan(int(path.stem), tuple(map(Place, *columns)), copy_from))
    return plans
