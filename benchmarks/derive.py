"""Deriving int8 from a float16 store against copying that store with cp: seconds for the same bytes of source.

    python benchmarks/derive.py FOLDER [--hours 2.5] [--width 1024] [--rounds 5] [--rest 0] [--cold]

The store is of random numbers at 50 frames a second, in utterances as long as LibriSpeech's. A round copies it with `cp -r`, copies it
again with `cp -r` and `sync`, and derives int8 in that copy, in turn, so that a machine that drifts drifts for all. A virtual machine gives
memory that was free for some seconds back to its host, and who writes next has to fetch it again, at 10 microseconds a page at worst: so
most of the memory is written to and freed before the first round, and the rounds follow each other at once. `--rest` waits before each
measurement instead, and then much is a matter of whose pages are there. With `--cold` nothing of the source is in memory
when it begins, as in a store that was not read before: the kernel is told to forget its files. `derive` is the
command's own time from the writer's lock to what readers see, fsync and checksums of source and result included; `command` is
the whole process with its imports. Prints a table and one JSON object.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from peers.ours import FOLDER, build
from synthetic import FRAME_RATE, draw_lengths, make_corpus


def make_store(folder: Path, hours: float, width: int) -> Path:
    """The store to derive from, written where it does not stand yet."""
    drawn = draw_lengths(int(hours * 3600))
    utterances = 1 + int((drawn.cumsum() < hours * 3600 * FRAME_RATE).sum())
    store = folder / f"{FOLDER}-{hours:g}h-{width}"
    done = store.with_suffix(".built")
    if not done.exists():
        shutil.rmtree(store, ignore_errors=True)
        corpus = make_corpus(folder / "corpus.f16", utterances, width)
        build(corpus, store)
        corpus.path.unlink()
        done.touch()
    return store


TOUCH = "import sys; piece = bytes(1 << 26); kept = [bytearray(piece) for _ in range(int(sys.argv[1]) >> 26)]"


def fetch_memory() -> None:
    """Have the host of a virtual machine lend most of the memory that is free, for as long as it is used."""
    available = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    subprocess.run([sys.executable, "-c", TOUCH, str(int(available.split()[1]) * 1024 * 7 // 10)], check=True)


def settle(source: Path, rest: float, cold: bool) -> None:
    """Write what waits for the disk, rest, and have the source's files forgotten where that is wanted."""
    os.sync()
    time.sleep(rest)
    for path in source.rglob("*") if cold else ():
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def copy(source: Path, target: Path, sync: bool, rest: float, cold: bool) -> float:
    """Seconds of `cp -r`, and of `sync` behind it."""
    shutil.rmtree(target, ignore_errors=True)
    settle(source, rest, cold)
    begun = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    if sync:
        os.sync()
    return time.perf_counter() - begun


def derive(store: Path) -> dict[str, float]:
    """Seconds of the command as it says and as a whole, and the most memory it took."""
    command = [sys.executable, "-m", "encodeonce.store.cli", "derive", "cast", str(store), "--dtype", "int8", "--json"]
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    spent = time.perf_counter() - begun
    assert status == 0, out
    (report,) = json.loads(out.splitlines()[-1])["derived"]
    return {
        "derive": report["seconds"],
        "command": spent,
        "peak_megabytes": usage.ru_maxrss / 1024,
        "cpu": usage.ru_utime + usage.ru_stime,
    }


def main() -> None:
    """Run the rounds and print what they gave."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hours", type=float, default=2.5)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rest", type=float, default=0.0, help="seconds before each")
    parser.add_argument("--cold", action="store_true", help="nothing of the source in memory")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    # In a process of its own: Linux counts a parent's most memory as its children's.
    with ProcessPoolExecutor(1, get_context("spawn")) as builder:
        store = builder.submit(make_store, options.folder, options.hours, options.width).result()
    size, scratch = sum(path.stat().st_size for path in store.rglob("*") if path.is_file()), options.folder / "copy"
    rounds = []
    fetch_memory()
    print(
        f"{size / 1e9:.2f} GB\n{'cp':>8} {'cp+sync':>8} {'derive':>8} {'command':>8} {'cp/derive':>10} {'sync/derive':>12} {'peak':>9}"
    )
    for _ in range(options.rounds):
        plain, synced = (copy(store, scratch, sync, options.rest, options.cold) for sync in (False, True))
        settle(scratch, options.rest, options.cold)
        ours = derive(scratch)
        rounds.append({"cp": plain, "cp_sync": synced, **ours})
        ratios = plain / ours["derive"], synced / ours["derive"]
        times = " ".join(f"{seconds:6.2f} s" for seconds in (plain, synced, ours["derive"], ours["command"]))
        print(f"{times} {ratios[0]:10.3f} {ratios[1]:12.3f} {ours['peak_megabytes']:6.0f} MB", flush=True)
    shutil.rmtree(scratch)
    medians = {
        name: statistics.median(r[of] / r["derive"] for r in rounds)
        for name, of in (("of_cp", "cp"), ("of_cp_and_sync", "cp_sync"))
    }
    print(
        f"median, as a share of the speed of cp: {medians['of_cp']:.3f}; of cp and sync: {medians['of_cp_and_sync']:.3f}"
    )
    print(json.dumps({"cores": os.cpu_count(), "bytes": size, "cold": options.cold, **medians, "rounds": rounds}))


if __name__ == "__main__":
    main()
