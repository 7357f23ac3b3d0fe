"""Beyond the copying: the plan of an epoch, opening a large store, and a consumer that computes as a GPU would."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from encodeonce.store import FeatureStore, FeatureWriter, NewUtterance, Output, Stream
from encodeonce.store.table import SCHEMA, read_table, write_table

PEAK = """
def peak_megabytes():
    # Not getrusage's ru_maxrss, which a process inherits from the one that started it.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1000 for line in status if line.startswith("VmHWM"))
"""

PLAN = """
import json, sys, time
from synthetic import draw_lengths
from encodeonce.store.streaming.epoch import plan_epoch
lengths = draw_lengths(int(sys.argv[1]))
begun = time.perf_counter()
plan = plan_epoch(lengths, seed=0, epoch=0, frames_per_batch=int(sys.argv[2]))
seconds = time.perf_counter() - begun
peak = peak_megabytes()
found = {"seconds": seconds, "peak_megabytes": peak, "batches": len(plan), "padding": plan.padding(lengths)}
print(json.dumps({"utterances": len(lengths), **found}))
"""

OPEN = """
import json, sys, time
begun = time.perf_counter()
from encodeonce.store import FeatureStore
imported = time.perf_counter()
store = FeatureStore(sys.argv[1])
utterances = len(store)
opened = time.perf_counter()
frames = int(store.frames.sum(dtype="int64"))
summed = time.perf_counter()
row = store.index(sys.argv[2])
found = time.perf_counter()
print(json.dumps({
    "utterances": utterances, "import_seconds": imported - begun, "open_seconds": opened - imported,
    "frames_seconds": summed - opened, "first_lookup_seconds": found - summed, "peak_megabytes": peak_megabytes(),
}))
"""


def in_a_fresh_process(program: str, *arguments: object) -> dict[str, Any]:
    """The JSON object that a program prints."""
    command = [sys.executable, "-c", PEAK + program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


OPENINGS = 5
"""Fresh processes that open the large store; the median counts, since the machine is shared."""


def plan(utterances: int, frames_per_batch: int) -> dict[str, Any]:
    """Seconds, memory and padding of the plan of an epoch."""
    return in_a_fresh_process(PLAN, utterances, frames_per_batch)


def opening(folder: Path, utterances: int) -> dict[str, Any]:
    """Seconds and memory of opening a store of so many utterances, whose shards need not be there for that."""
    output = Output("features", 8, "float16", "nothing")
    writer = FeatureWriter(folder, "large", "train", [output], {"rows": utterances}, 16_000, 320)
    writer.write([NewUtterance("one", 1)], lambda name: np.zeros((1, 8), np.float16))
    path = Path(str(writer.path)) / "utterances.parquet"
    if len(read_table(path)) != utterances:
        write_table(
            path, large_table(utterances, FeatureStore(folder).parts[0].attributes.shard_frames), path.parent / ".tmp"
        )
    wanted = f"speaker-{utterances // 2 % 5000}/utterance-{utterances // 2:08d}"
    rounds = [in_a_fresh_process(OPEN, writer.path, wanted) for _ in range(OPENINGS)]
    return sorted(rounds, key=lambda found: found["open_seconds"])[OPENINGS // 2]


def large_table(utterances: int, shard_frames: int) -> pa.Table:
    """A table of as many utterances, 600 frames each, with the columns that a corpus of read speech has."""
    per_shard = shard_frames // 640
    numbers = np.arange(utterances)
    shard = numbers // per_shard
    given: dict[str, Any] = {
        "id": [f"speaker-{i % 5000}/utterance-{i:08d}" for i in range(utterances)],
        "shard": shard.astype(np.int32),
        "row": shard * shard_frames + numbers % per_shard * 640,
        "frames": np.full(utterances, 600, np.int32),
        "samples": np.full(utterances, 192_000),
        "duration": np.full(utterances, 12.0),
        "audio_sha256": [f"{i:064x}" for i in range(utterances)],
        "speaker": [f"speaker-{i % 5000}" for i in range(utterances)],
        "language": ["en"] * utterances,
        "text": [
            f"these are the words of number {i} of a corpus of read speech and as long as usual"
            for i in range(utterances)
        ],
    }
    columns = [
        pa.array(given[column.name], column.type) if column.name in given else pa.nulls(utterances, column.type)
        for column in SCHEMA
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def consumer(folder: Path, frames_per_batch: int, step_seconds: float, threads: int, epochs: int) -> dict[str, Any]:
    """How much of its time a consumer waits for batches that computes so long on each; the files are in the page cache."""
    store = FeatureStore(folder)

    def take_epoch(stream: Stream, seconds: float) -> int:
        return sum(time.sleep(seconds) is None for _ in stream)

    take_epoch(store.stream(frames_per_batch=frames_per_batch, threads=threads, device="cpu"), 0)
    stream = store.stream(frames_per_batch=frames_per_batch, threads=threads, device="cpu")
    begun = time.perf_counter()
    batches = sum(take_epoch(stream, step_seconds) for _ in range(epochs))
    seconds = time.perf_counter() - begun
    waited = stream.wait_seconds
    found = {"batches": batches, "epochs": epochs, "step_seconds": step_seconds, "threads": threads}
    return found | {"seconds": seconds, "wait_seconds": waited, "waiting": waited / seconds}
