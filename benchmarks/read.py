"""How fast features are read: ours and every peer that is installed, doing the same work in the same run.

    python benchmarks/read.py FOLDER [--utterances 2000] [--width 1024] [--rounds 5] [--only NAME ...] [--json FILE]

Random utterances (see synthetic.py) go into padded batches of at most 40,000 frames, in one process; docs/reading-speed.md
says what is measured and why so. FOLDER holds every system's copy (2.5 GB each at full size) and is used again by the next run.
"""

import argparse
import json
import os
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import plans
import remote
import torch
from machine import machine
from peers import System, systems
from peers.ours import FOLDER
from synthetic import Corpus, make_corpus, random_batches
from timing import Bench, Result, evict

PACKAGES = (
    "numpy",
    "zarr",
    "zarrs",
    "tensorstore",
    "h5py",
    "webdataset",
    "litdata",
    "mosaicml-streaming",
    "array_record",
    "lhotse",
    "torch",
    "pyarrow",
    "obstore",
)
LIBRISPEECH = 281_241
"""Utterances of LibriSpeech's 960 hours."""


def main() -> None:
    """Run the parts that were asked for, print each as it comes, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--utterances", type=int, default=2000)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--frames-per-batch", type=int, default=40_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cold-rounds", type=int, default=3, help="0 leaves them out")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="systems whose name has one of these in it"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--step-seconds", type=float, default=0.2, help="what the consumer takes for a batch")
    parser.add_argument("--consumer-epochs", type=int, default=3)
    parser.add_argument("--planned", type=int, nargs="+", default=[LIBRISPEECH, 10_000_000])
    parser.add_argument("--large", type=int, default=1_000_000, help="utterances of the store that is opened")
    parser.add_argument("--remote-utterances", type=int, default=32)
    parser.add_argument("--delay-seconds", type=float, default=0.03, help="before each answer of the S3 server")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {
        "machine": machine(PACKAGES),
        "options": {k: v for k, v in vars(options).items() if k not in ("folder", "json")},
    }
    for part in options.parts:
        found[part] = PARTS[part](options)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1, default=str))


def corpus_of(options: argparse.Namespace) -> Corpus:
    """The utterances that were asked for, made where they are not there yet."""
    folder = options.folder / f"{options.utterances}x{options.width}" / "flat"
    return make_corpus(folder / "features.f16", options.utterances, options.width)


def copying(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every system over the same corpus."""
    corpus = corpus_of(options)
    batches = [batch.tolist() for batch in random_batches(corpus.frames, options.frames_per_batch, seed=0)]
    bench = Bench(corpus, corpus.path.parent.parent, batches, options.frames_per_batch)
    print(f"{len(corpus)} utterances, {corpus.bytes / 1e6:.0f} MB, {len(batches)} batches, {os.cpu_count()} cores")
    print(
        f"{'':38} {'MB/s':>7} {'memmap':>7} {'preadv':>7} {'cold MB/s':>10} {'memmap':>7} {'in cache':>8}", flush=True
    )
    results = []
    for system in systems():
        if options.only and not any(name.lower() in system.name.lower() for name in options.only):
            continue
        results.append(measure(bench, system, options))
        print(line(results[-1]), flush=True)
    return [asdict(result) for result in results]


def measure(bench: Bench, system: System, options: argparse.Namespace) -> Result:
    """One system; what goes wrong with it is its result."""
    result = Result(system.name, missing=system.missing)
    if result.missing:
        return result
    others = [p for p in bench.folder.glob("*/**/*") if p.is_file() and not p.is_relative_to(bench.folder_of(system))]
    try:
        with redirect_stdout(sys.stderr):  # some tell how they are getting on
            result.build_seconds = bench.build(system)
        evict(others)  # all systems' files together are larger than the memory that should keep one system's
        bench.warm(system, options.rounds, result)
        if system.reads and options.cold_rounds:
            bench.cold(system, options.cold_rounds, result)
    except Exception as error:
        result.error = f"{type(error).__name__}: {error}"
    return result


def line(result: Result) -> str:
    """A row of the table."""
    if result.missing:
        return f"{result.system:38} not installed: {', '.join(result.missing)}"
    if result.error:
        return f"{result.system:38} failed: {result.error.splitlines()[0][:160]}"

    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    return (
        f"{result.system:38} {number(result.megabytes_per_second, '7.0f')} {number(result.of_memmap, '7.2f')} "
        f"{number(result.of_preadv, '7.2f')} {number(result.cold_megabytes_per_second, '10.0f'):>10} "
        f"{number(result.cold_of_memmap, '7.2f'):>7} {number(result.left_in_cache, '8.0%'):>8}"
    )


def planning(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The plan of an epoch."""
    found = [plans.plan(utterances, options.frames_per_batch) for utterances in options.planned]
    for plan in found:
        print(
            f"plan of {plan['utterances']:,} utterances: {plan['seconds']:.3f} s, {plan['peak_megabytes']:.0f} MB at most, "
            f"{100 * plan['padding']:.2f} % padding",
            flush=True,
        )
    return found


def opening(options: argparse.Namespace) -> dict[str, Any]:
    """Opening a large store."""
    found = plans.opening(options.folder / f"large-{options.large}", options.large)
    print(
        f"opening {found['utterances']:,} utterances: {found['open_seconds']:.3f} s (imports before that "
        f"{found['import_seconds']:.2f} s), the first id looked up in {found['first_lookup_seconds']:.3f} s, "
        f"{found['peak_megabytes']:.0f} MB at most",
        flush=True,
    )
    return found


def consuming(options: argparse.Namespace) -> dict[str, Any]:
    """A consumer that sleeps as a GPU computes."""
    corpus = corpus_of(options)
    bench = Bench(corpus, corpus.path.parent.parent, [], options.frames_per_batch)
    bench.build(next(system for system in systems() if system.folder == FOLDER))
    folder, epochs = corpus.path.parent.parent / FOLDER, options.consumer_epochs
    found = plans.consumer(folder, options.frames_per_batch, options.step_seconds, threads=2, epochs=epochs)
    print(
        f"a consumer of {options.step_seconds:g} s a batch waited {100 * found['waiting']:.2f} % of its time "
        f"({found['batches']} batches, {epochs} epochs)",
        flush=True,
    )
    return found


def far(options: argparse.Namespace) -> dict[str, Any]:
    """An object store that takes its time."""
    found = remote.compare(options.remote_utterances, options.width, options.delay_seconds, rounds=3)
    print(
        f"S3 with {1000 * options.delay_seconds:.0f} ms a request, utterance by utterance: {found['times_as_fast']:.1f} times "
        f"as fast as zarr-python",
        flush=True,
    )
    return found


PARTS = {"copying": copying, "planning": planning, "opening": opening, "consuming": consuming, "remote": far}


if __name__ == "__main__":
    sys.exit(main())
