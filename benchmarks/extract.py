"""How fast features are made: encodeonce, and every other way that is installed, over the same audio and weights in one run.

    python benchmarks/extract.py CHECKPOINT DATA SPLIT [--device cpu] [--rounds 3] [--limit N] [--peers NAME ...]
        [--precisions float32 bfloat16 ...] [--batch-seconds 60] [--json FILE]

The reference is transformers alone, one utterance at a time in float32, on audio that lies in memory. All others take audio
files to features on disk; each runs in a process of its own, one after the other, and the next round begins when all are done.
The first pass of each has its warm-up in it and is reported apart. docs/speed.md says how to install the others.
"""

import argparse
import json
import shutil
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import flops
from isolated import FailedError, Isolated, Pass
from machine import machine
from peers.extract import PRECISIONS, SAMPLE_RATE, Audio, Extractor, Job, extractors
from results import Result, summarise

PACKAGES = (
    "encodeonce",
    "torch",
    "torchaudio",
    "transformers",
    "onnxruntime",
    "openvino",
    "s3prl",
    "lhotse",
    "speechbrain",
    "numpy",
    "soundfile",
)
BATCH_SECONDS = {"cpu": 60.0, "cuda": 320.0}
"""Padded audio of a batch of those that make batches; ours makes its own."""


def main() -> None:
    """Run the rounds, print each pass as it comes, then what it comes to."""
    options = arguments()
    job = asked_job(options)
    config = configuration(job.checkpoint)
    counts = [flops.count(config, audio.samples) for audio in job.utterances]
    operations = sum(found.total for found in counts if found) if all(counts) else None
    ways = [way for way in extractors() if chosen(way, options)]
    peaks = dict.fromkeys(options.precisions, 0.0)
    results = run(ways, job, options.rounds, peaks)
    summarise(results, job, operations, peaks)
    found = {
        "machine": {**machine(PACKAGES), "device": device_name(job.device)},
        "extraction": {
            "checkpoint": Path(job.checkpoint).name,
            "model": {name: config.get(name) for name in ("model_type", "hidden_size", "num_hidden_layers")},
            "device": job.device,
            "utterances": len(job.utterances),
            "audio_seconds": job.audio_seconds,
            "batch_seconds": job.batch_seconds,
            "rounds": options.rounds,
            "gigaflops_an_audio_second": operations / job.audio_seconds / 1e9 if operations else None,
            "matmul_gigaflops_a_second": {precision: peak / 1e9 for precision, peak in peaks.items()},
            "results": [asdict(result) for result in results],
        },
    }
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    from table import tables

    print("\n" + tables(found))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("data", type=Path)
    parser.add_argument("split")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=at_least_one, default=3, help="the first is reported apart")
    parser.add_argument("--limit", type=at_least_one)
    parser.add_argument(
        "--peers", nargs="+", metavar="NAME", help="ways whose name has one of these in it; ours always run"
    )
    parser.add_argument(
        "--precisions", nargs="+", choices=PRECISIONS, default=["float32"], help="float32 is always run"
    )
    parser.add_argument("--batch-seconds", type=float, help="padded audio of a batch, of others")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not Path(options.checkpoint, "config.json").is_file():
        parser.error(f"{options.checkpoint} is no checkpoint in transformers' format: it has no config.json")
    options.checkpoint = str(
        Path(options.checkpoint).absolute()
    )  # a folder, also where it is called as a published model is
    options.precisions = [p for p in PRECISIONS if p == "float32" or p in options.precisions]
    return options


def at_least_one(word: str) -> int:
    """A number of the command line that counts something."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is no whole number from 1")
    return int(word)


def asked_job(options: argparse.Namespace) -> Job:
    """The job, or a line that says why there is none."""
    from encodeonce.extract.corpora.base import CorpusError
    from encodeonce.store.devices import find_device
    from encodeonce.store.errors import StoreError

    try:
        options.device = find_device(options.device)
        return make_job(options)
    except (CorpusError, StoreError) as error:
        sys.exit("; ".join(line.strip() for line in str(error).splitlines()[:2]))


def make_job(options: argparse.Namespace) -> Job:
    """The utterances as corpus lists them; whole files, mono at 16 kHz, for that is what all the others can read."""
    import soundfile
    from encodeonce.extract.corpora import list_corpus

    found = []
    for utterance in list_corpus(options.data, options.split).utterances[: options.limit]:
        about = soundfile.info(utterance.audio)
        if (about.samplerate, about.channels, utterance.offset, utterance.duration) != (SAMPLE_RATE, 1, 0.0, None):
            sys.exit(f"{utterance.audio} is no whole file, mono at 16 kHz; give such a split")
        found.append(Audio(utterance.id, utterance.audio, about.frames))
    seconds = options.batch_seconds or BATCH_SECONDS[options.device.split(":")[0]]
    return Job(options.checkpoint, options.data, options.split, options.limit, options.device, seconds, tuple(found))


def configuration(checkpoint: str) -> dict[str, Any]:
    """config.json of the checkpoint, with the defaults of its family."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(checkpoint).to_dict()


def chosen(way: Extractor, options: argparse.Namespace) -> bool:
    """Whether a way takes part: the reference and ours always, and on a GPU our encoder in memory, which ours is held against."""
    if way.precision not in options.precisions:
        return False
    if way.kind == "ours" or way is extractors()[0] or options.peers is None:
        return True
    if way.kind == "bare" and options.device.startswith("cuda"):
        return True
    return any(name.lower() in way.name.lower() for name in options.peers)


def run(ways: list[Extractor], job: Job, rounds: int, peaks: dict[str, float]) -> list[Result]:
    """All passes, in turn. The greatest rate of a matrix product of any round is kept in `peaks`."""
    threads = f"{len(job.utterances)} utterances, {job.audio_seconds:.0f} s of audio, on {job.device}"
    print(f"{threads}\n{'':46} {'seconds':>8} {'x real':>7} {'error':>8} {'cosine':>9} {'MB':>6}", flush=True)
    results = [Result(way.name, way.kind, way.precision, way.wrong) for way in ways]
    loaded: dict[str, Isolated] = {}
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, mp_context=get_context("spawn")) as products:
        for number in range(rounds):
            for precision in peaks:
                peak = products.submit(flops.matmul_peak, job.device, precision).result()
                peaks[precision] = max(peaks[precision], peak)
            for way, result in zip(ways, results, strict=True):
                if result.failed:
                    continue
                try:
                    if way.name not in loaded:
                        loaded[way.name] = Isolated(way, job)
                        result.load_seconds = loaded[way.name].load_seconds
                    result.passes.append(one_pass(loaded[way.name], Path(folder), f"{number}"))
                    print(line(result, job.audio_seconds), flush=True)
                except FailedError as error:
                    result.failed = str(error)
                    print(f"{result.name:46} failed: {error}", flush=True)
                    if way is ways[0] and not result.passes:
                        sys.exit(f"{way.name} is what the others are held against: without it nothing is measured")
        for isolated in loaded.values():
            isolated.close()
    return results


def one_pass(isolated: Isolated, folder: Path, name: str) -> Pass:
    """A pass into a new folder, which is deleted."""
    target = folder / name
    target.mkdir()
    try:
        return isolated.run(target, folder / "reference.npz")
    finally:
        shutil.rmtree(target)


def line(result: Result, audio_seconds: float) -> str:
    """What the last pass of a way gave."""
    last = result.passes[-1]
    return (
        f"{result.name:46} {last.seconds:8.2f} {audio_seconds / last.seconds:7.1f} {last.relative_error:8.1e} "
        f"{last.least_cosine:9.6f} {last.peak_megabytes:6.0f}"
    )


def device_name(device: str) -> str:
    """What the device is called."""
    if not device.startswith("cuda"):
        return "cpu"
    import torch

    return torch.cuda.get_device_name(device)


if __name__ == "__main__":
    main()
