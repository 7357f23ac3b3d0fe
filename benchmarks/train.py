"""What a step of training costs: features from the store, the same features in memory, and the encoder run in every step.

    python benchmarks/train.py DATA STORE SPLIT [--encoders FOLDER ...] [--recipe moonshine-bilstm-ctc] [--steps 40] [--rounds 5]
        [--loop-steps 200] [--encoder-steps 3] [--encoder-rounds 3] [--device cpu] [--threads 2] [--set KEY=VALUE ...] [--json FILE]

The same model takes the same batches in every way, by turns; a ratio is the median over the rounds of two times of one round.
Audio for the encoder lies decoded in memory. Operations are those of the matrix products and convolutions of a batch: of HuBERT and its kin
by formula (flops.py: PyTorch does not see into their kernels), of all else counted by PyTorch as they are computed.
"""

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encodeonce.extract.audio import read_audio
from encodeonce.extract.batching import batches
from encodeonce.extract.cache import FileCache
from encodeonce.extract.corpora import list_corpus
from encodeonce.extract.encoders.registry import find_encoder
from encodeonce.store.layout import Output
from encodeonce.train.batch import TrainBatch
from encodeonce.train.config import TrainConfig
from encodeonce.train.configure import load_config
from encodeonce.train.corpus import open_corpus
from encodeonce.train.data import TrainingData
from encodeonce.train.loop import Trainer
from encodeonce.train.model import build_model
from encodeonce.train.optimiser import make_optimiser
from encodeonce.train.parts import plan_parts
from encodeonce.train.randomness import seed_all
from encodeonce.train.ranks import Ranks
from encodeonce.train.step import Stepper
from flops import count, synchronise
from machine import machine
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

PACKAGES = ("encodeonce", "torch", "transformers", "accelerate", "numpy", "zarr")
BATCH_SECONDS = 60.0
"""Padded audio that the encoder is given at a time, where lengths may be mixed."""

Source = Callable[[], Iterator[TrainBatch]]


def main() -> None:
    """Run both parts, print the tables, and write the JSON."""
    options = arguments()
    config = config_of(options)
    ranks = Ranks(config.training)
    corpus = open_corpus(config)
    outputs = [corpus.train.store.spec(name) for name in corpus.outputs]
    seed_all(config.seed)
    model = build_model(config, outputs, corpus.train.texts, device=ranks.device)
    data = TrainingData(config, corpus, model, ranks.device)
    bench = Bench(config, ranks, model)
    found: dict[str, Any] = {
        "machine": machine(PACKAGES),
        "options": {k: v for k, v in vars(options).items() if k not in ("data", "store", "encoders", "json")},
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "encoder_of_the_store": corpus.train.store.encoder,
        "utterances": len(data.learnt),
        "hours": data.learnt.hours,
    }
    found["reading"] = reading(bench, data, options.steps, options.rounds)
    print(reading_line(found["reading"]), flush=True)
    found["loop"] = loop(config, ranks, model, data, options.loop_steps)
    print(loop_line(found["loop"]), flush=True)
    found["encoding"] = []
    for word in options.encoders:
        found["encoding"].append(encoding(word, options, config, ranks, data, corpus.train.texts))
    if found["encoding"]:
        print("\n" + "\n".join(table(found["encoding"])))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1, default=str))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="where the corpus is: audio for --encoders")
    parser.add_argument("store", type=Path)
    parser.add_argument("split")
    parser.add_argument(
        "--encoders", nargs="+", default=[], metavar="FOLDER", help="to run in every step; names and hub ids too"
    )
    parser.add_argument("--recipe", default="moonshine-bilstm-ctc")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="over the recipe, e.g. data.encoder=NAME"
    )
    parser.add_argument("--steps", type=int, default=40, help="of a round, after one that is not counted")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--loop-steps", type=int, default=200, help="of the trainer itself")
    parser.add_argument("--encoder-steps", type=int, default=3)
    parser.add_argument("--encoder-rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def config_of(options: argparse.Namespace) -> TrainConfig:
    """The recipe on a split of the store, all of it, without a dev set."""
    ours = {
        "data.store": options.store,
        "data.encoder": "null",
        "data.train": f"[{options.split}]",
        "data.dev": "[]",
        "data.dev_where": "null",
        "input.normalise": "layer",  # frame by frame: nothing has to be learnt of an encoder's features first
        "training.device": options.device,
        "training.threads": options.threads or "null",
    }
    return load_config(options.recipe, [*(f"{key}={value}" for key, value in ours.items()), *options.set])


class Bench:
    """A model and its optimiser, and steps of them that are timed."""

    def __init__(self, config: TrainConfig, ranks: Ranks, model: Any) -> None:
        self.device, self.part = str(ranks.device), plan_parts(config, 1)[-1]
        self.stepper = Stepper(model.train(), ranks, config.training.clip_norm, find_unused=False)
        self.stepper.optimise(make_optimiser(model, config.training))

    def step(self, batch: TrainBatch) -> None:
        """One optimiser step."""
        self.stepper.step([batch], self.part.weights, self.part.learning_rate, str)

    def seconds(self, source: Iterator[TrainBatch], steps: int) -> float:
        """Of a step, the mean of so many; a first one is not counted, in which what reads ahead begins."""
        self.step(next(source))
        synchronise(self.device)
        begun = time.perf_counter()
        for batch in islice(source, steps):
            self.step(batch)
        synchronise(self.device)
        return (time.perf_counter() - begun) / steps

    def compare(self, sources: dict[str, Source], steps: int, rounds: int) -> dict[str, Any]:
        """Seconds of a step of each way, round by round, which they begin in turn; and the first way's over the second's."""
        names = list(sources)
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for source in sources.values():
            self.seconds(source(), 1)
        for number in range(rounds):
            begun = number % len(names)
            for name in names[begun:] + names[:begun]:
                seconds[name].append(self.seconds(sources[name](), steps))
        medians = {name: statistics.median(some) for name, some in seconds.items()}
        return {"seconds": seconds, "median_seconds": medians, **over(seconds, names[0], names[1])}

    def operations(self, work: Callable[[], object]) -> int:
        """Of something that is computed here; in kernels that PyTorch can look into, which LSTMs' own are not."""
        whole = torch.backends.mkldnn.flags(enabled=False) if self.device == "cpu" else nullcontext()
        plain = torch.backends.cudnn.flags(enabled=False)
        counter = FlopCounterMode(display=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of GPUs that nobody asked for
            with whole, plain, sdpa_kernel(SDPBackend.MATH), counter:
                work()
        return counter.get_total_flops()


def over(seconds: dict[str, list[float]], one: str, other: str) -> dict[str, Any]:
    """One way's seconds over another's, round by round, and the median of that."""
    ratios = [a / b for a, b in zip(seconds[one], seconds[other], strict=True)]
    return {"ratios": ratios, "ratio": statistics.median(ratios)}


def reading(bench: Bench, data: TrainingData, steps: int, rounds: int) -> dict[str, Any]:
    """Steps on batches from the store against steps on the same batches in memory, and those against themselves: the noise."""
    steps = min(steps, len(data.train) - 1)
    kept = [
        replace(batch, outputs=[v.clone() for v in batch.outputs], lengths=batch.lengths.clone())
        for batch in islice(first_epoch(data), steps + 1)
    ]
    ways: dict[str, Source] = {"store": lambda: first_epoch(data)}
    ways |= {"memory": lambda: iter(kept), "memory again": lambda: iter(kept)}
    found = bench.compare(ways, steps, rounds)
    noise = over(found["seconds"], "memory again", "memory")
    frames = sum(batch.padded_frames for batch in kept[1:]) / steps
    return {"steps": steps, "padded_frames": frames, **found, "noise": noise}


def first_epoch(data: TrainingData) -> Iterator[TrainBatch]:
    """Its batches, from the first one on."""
    data.train.load_state_dict({**data.train.state_dict(), "epoch": 0, "batch": 0})
    return iter(data.train)


def loop(config: TrainConfig, ranks: Ranks, model: Any, data: TrainingData, steps: int) -> dict[str, Any]:
    """The trainer itself: the share of its time in steps that it waited for data, from its first step on."""
    training = replace(config.training, max_steps=steps, epochs=None, eval_steps=steps, max_minutes=None)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(replace(config, output_dir=str(Path(folder, "run")), training=training), model, data, ranks)
        report = trainer.train()
    return {"steps": report.steps, "seconds": report.seconds, "wait_share": report.wait_share}


@dataclass(frozen=True)
class InStep:
    """An encoder that makes the features of a batch when the batch is wanted."""

    encoder: Any
    loaded: Any
    output: Output
    audio: dict[str, np.ndarray]
    device: torch.device

    @torch.no_grad()
    def encode(self, batch: TrainBatch) -> TrainBatch:
        """The batch with features `[B, T, D]` of this encoder."""
        audio = [self.audio[name] for name in batch.ids]
        counts = [self.encoder.frames(len(samples)) for samples in audio]
        features = torch.zeros(len(audio), max(counts), self.output.width, device=self.device)
        limit = int(BATCH_SECONDS * self.encoder.sample_rate)
        for group in batches([len(samples) for samples in audio], limit, self.encoder.mixes_lengths):
            padded = np.zeros((len(group), len(audio[group[0]])), np.float32)
            for row, i in zip(padded, group, strict=True):
                row[: len(audio[i])] = audio[i]
            given = torch.from_numpy(padded)
            given = given.to(self.device) if self.loaded.on_device else given
            frames = self.loaded.forward(given, [len(audio[i]) for i in group])[self.output.what]
            for row, i in enumerate(group):
                features[i, : counts[i]] = frames[row, : counts[i]]
        lengths = torch.tensor(counts, device=self.device)
        return replace(batch, outputs=[features], lengths=lengths, frames=sum(counts))


def encoding(
    word: str, options: argparse.Namespace, config: TrainConfig, ranks: Ranks, data: TrainingData, texts: Sequence[str]
) -> dict[str, Any]:
    """Steps with an encoder in them against steps on its features in memory."""
    encoder = find_encoder(word, FileCache())
    (output,) = encoder.outputs("last", "float32")
    steps = min(options.encoder_steps, len(data.train) - 1)
    chosen = list(islice(first_epoch(data), steps + 1))
    listed = {u.id: u for u in list_corpus(options.data, options.split).utterances}
    audio = {
        name: encoder.prepare(read_audio(listed[name], encoder.sample_rate)) for batch in chosen for name in batch.ids
    }
    loaded = encoder.load(str(ranks.device), "float32", [output])
    in_step = InStep(encoder, loaded, output, audio, ranks.device)
    seed_all(config.seed)
    bench = Bench(config, ranks, build_model(config, [output], texts, device=ranks.device))
    kept = [in_step.encode(batch) for batch in chosen]
    ways: dict[str, Source] = {"encoder": lambda: map(in_step.encode, chosen), "memory": lambda: iter(kept)}
    found = bench.compare(ways, steps, options.encoder_rounds)
    operations = {
        "encoder": sum(encoder_operations(word, in_step, bench, batch) for batch in chosen[1:]) / steps,
        "step": sum(bench.operations(lambda b=b: bench.step(b)) for b in kept[1:]) / steps,
    }
    seconds = sum(len(audio[name]) for batch in chosen[1:] for name in batch.ids) / encoder.sample_rate / steps
    predicted = 1 + operations["encoder"] / operations["step"]
    about = {"encoder": encoder.name, "width": output.width, "steps": steps, "audio_seconds": seconds}
    return {**about, **found, "operations": operations, "predicted": predicted}


def encoder_operations(word: str, in_step: InStep, bench: Bench, batch: TrainBatch) -> float:
    """Of encoding a batch, padding not counted where there is a formula."""
    if Path(word, "config.json").is_file():
        config = AutoConfig.from_pretrained(word).to_dict()
        counted = [count(config, len(in_step.audio[name])) for name in batch.ids]
        if all(counted):
            return sum(found.total for found in counted if found)
    return bench.operations(lambda: in_step.encode(batch))


def reading_line(r: dict[str, Any]) -> str:
    """What reading costs."""
    seconds, noise = r["median_seconds"], r["noise"]
    return (
        f"A step takes {1000 * seconds['store']:.1f} ms from the store and {1000 * seconds['memory']:.1f} ms on tensors in memory "
        f"({r['steps']} steps a round, {r['padded_frames']:,.0f} frames a step with padding): {spread(r)} times as long; "
        f"in memory again {spread(noise)}."
    )


def spread(found: dict[str, Any]) -> str:
    """A median ratio with the least and the greatest."""
    return f"{found['ratio']:.3f} ({min(found['ratios']):.3f} to {max(found['ratios']):.3f})"


def loop_line(r: dict[str, Any]) -> str:
    """What the trainer waits."""
    return f"The loop waited {100 * r['wait_share']:.2f} % of its time for data in {r['steps']:,} steps, the first one included."


def table(results: Sequence[dict[str, Any]]) -> list[str]:
    """A row an encoder."""
    lines = [
        "| encoder in every step | audio a step | step with it | step from memory | times as long | by operations "
        "| GFLOP of encoder, step |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in results:
        seconds, operations = r["median_seconds"], r["operations"]
        lines.append(
            f"| {r['encoder']} | {r['audio_seconds']:.0f} s | {seconds['encoder']:.2f} s | {seconds['memory']:.3f} s | "
            f"{r['ratio']:.1f} | {r['predicted']:.1f} | {operations['encoder'] / 1e9:,.0f}, {operations['step'] / 1e9:,.0f} |"
        )
    return lines


if __name__ == "__main__":
    main()
