"""A training from its configuration to its report: checks, corpus, model, data, loop."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from encodeonce.store.devices import find_device
from encodeonce.store.layout import Output
from encodeonce.store.moments import Moments, measure
from encodeonce.train.checkpoint import TOKENIZER, check_same_model, find_checkpoint
from encodeonce.train.checks import check_config, text_is_read, warnings
from encodeonce.train.config import TrainConfig
from encodeonce.train.corpus import Corpus, LeftOut, Part, open_corpus
from encodeonce.train.crowding import OtherProcesses, crowded
from encodeonce.train.data import TrainingData, open_stream
from encodeonce.train.errors import TrainingError
from encodeonce.train.estimate import Estimate, count_parameters, estimate, memory_line, parameters_line
from encodeonce.train.loop import Trainer, TrainingReport
from encodeonce.train.model import Vocabularies, build_model
from encodeonce.train.pretrained import find_bert, find_llm, first_line
from encodeonce.train.probe.subset import shuffled
from encodeonce.train.progress import TrainingProgress, span
from encodeonce.train.randomness import seed_all
from encodeonce.train.ranks import Ranks
from encodeonce.train.step import is_short_of_memory
from encodeonce.train.vocabularies import make_tokenizer

MOMENT_UTTERANCES = 2000
"""From so many the mean and deviation of each dimension are learnt: some hours of speech, a million frames."""
MOMENT_FRAMES = 10_000
"""Of a batch that they are learnt from; what is trained on at once may be more than they need."""

ENDED = {
    "finished": "Trained",
    "early": "Stopped early after",
    "minutes": "Stopped by the clock after",
    "interrupted": "Stopped after",
}

Tell = Callable[[str], object]


@dataclass(frozen=True)
class Outcome:
    """What came of a training: how it ended, what was trained, on what."""

    report: TrainingReport
    trained: dict[str, int]
    """Parameters by part."""
    frozen: dict[str, int]
    data: TrainingData

    def summary(self) -> str:
        """How it ended, in a line."""
        report, best = self.report, ""
        if report.steps > report.total_steps:
            return (
                f"Nothing to train: {report.output_dir} is at step {report.steps:,}, beyond the {report.total_steps:,} that are asked for; "
                f"raise training.max_steps to go on"
            )
        if report.best:
            words = "" if report.best.get("wer") is None else f", {report.best['wer']:.1%} of the words wrong"
            best = f"; best at step {report.best['step']:,}: dev loss {report.best['loss']:.3f}{words}"
        return (
            f"{ENDED[report.ended]} {report.steps:,} of {report.total_steps:,} steps in {span(report.seconds)}, "
            f"{report.wait_share:.1%} of them waiting for data{best} -> {report.output_dir}"
        )

    def as_object(self) -> dict[str, Any]:
        """What --json prints."""
        report = asdict(self.report)
        return {
            **report,
            "wer": report["best"] and report["best"].get("wer"),
            "loss": report["best"] and report["best"].get("loss"),
            "parameters": {"trained": self.trained, "frozen": self.frozen},
            "utterances": {"train": len(self.data.learnt), "dev": len(self.data.dev_ids)},
            "left_out": left_out_object(self.data.learnt, self.data.held_out),
        }


def run_training(config: TrainConfig, progress: TrainingProgress) -> Outcome:
    """Train as a configuration says.

    Raises:
        TrainingError: it contradicts itself, does not fit the store, or the training cannot go on.
        StoreError: no such store, split or output.
    """
    try:
        return _run(config, progress)
    except (MemoryError, RuntimeError) as error:
        if not is_short_of_memory(error):
            raise
        raise TrainingError(
            f"out of memory before the first step: the model, the texts or the batches that are read ahead do not fit: take a smaller "
            f"adapter or llm.quantise=4bit, lower data.frames_per_batch ({config.data.frames_per_batch}), or train on fewer "
            f"utterances with data.limit; --dry-run tells what takes how much"
        ) from error


def _run(config: TrainConfig, progress: TrainingProgress) -> Outcome:
    others, tell = OtherProcesses(), _prepare(config, progress)
    found = find_checkpoint(config)
    if found is not None:
        check_same_model(found, config)
    ranks = Ranks(config.training)
    corpus = open_corpus(config)
    outputs = [corpus.train.store.spec(name) for name in corpus.outputs]
    seed_all(config.seed)  # every rank draws the same first weights
    model = build_model(
        config,
        outputs=outputs,
        texts=corpus.train.texts,
        moments=moments(config, corpus.train, outputs),
        device=ranks.device,
        kept=None if found is None else Vocabularies.load(found.folder / TOKENIZER),
    )
    data = TrainingData(config, corpus, model, ranks.device)
    trained, frozen = count_parameters(model)
    if ranks.is_main:
        tell_data(tell, data.learnt, data.held_out)
        words = None if model.text is None else model.text.size
        tell(parameters_line(trained, frozen))
        tell(memory_told(config, outputs, corpus.train.store.frame_rate, words, ranks.device.type == "cuda"))
        for name, objective in model.objectives.items():
            tell(f"Loss of {name}: {objective.reasonable}")
        alone_on_cpu = ranks.device.type == "cpu" and ranks.world_size == 1
        if alone_on_cpu and (said := crowded(torch.get_num_threads(), len(others.cores), others.busy())):
            tell(f"warning: {said}")
    return Outcome(Trainer(config, model, data, ranks, progress).train(), trained, frozen, data)


@dataclass(frozen=True)
class Plan:
    """What a training would be."""

    corpus: Corpus
    estimate: Estimate
    epoch_batches: int
    """Batches of an epoch, all ranks together."""

    def as_object(self) -> dict[str, Any]:
        """What --json prints."""
        corpus, found = self.corpus, self.estimate
        return {
            "utterances": {"train": len(corpus.train), "dev": len(corpus.dev) if corpus.dev else 0},
            "hours": {"train": corpus.train.hours, "dev": corpus.dev.hours if corpus.dev else 0.0},
            "left_out": left_out_object(corpus.train, corpus.dev),
            "epoch_batches": self.epoch_batches,
            "parameters": {"trained": found.trained, "frozen": found.frozen},
            "memory": {**asdict(found.memory), "total": found.memory.total},
        }


def plan_training(config: TrainConfig, progress: TrainingProgress) -> Plan:
    """Everything that can be told without loading a model: nothing is trained, fetched or written.

    Raises:
        TrainingError, StoreError: as `run_training`; texts that are too long are found by it alone.
    """
    begun = config.init_from
    if begun not in (None, "auto") and not Path(begun).is_dir():
        progress.say(f"init_from={begun}: no such folder yet; a training needs it, what is told here does not")
        config = replace(config, init_from=None)
    tell = _prepare(config, progress, fetch=False)
    corpus = open_corpus(config)
    outputs = [corpus.train.store.spec(name) for name in corpus.outputs]
    tell_data(tell, corpus.train, corpus.dev)
    fused = find_device(config.training.device) != "cpu"
    name = config.text.tokenizer  # cheap to learn, and their size is what the texts make it
    words = make_tokenizer(name, corpus.train.texts).size if name in ("words", "characters") else None
    found = estimate(config, outputs, corpus.train.store.frame_rate, words if text_is_read(config) else None, fused)
    batches = open_stream(config, corpus, corpus.train, None, "auto").plan(0)
    return Plan(corpus, found, len(batches))


def _prepare(config: TrainConfig, progress: TrainingProgress, fetch: bool = True) -> Tell:
    """Refuse what cannot be, before anything is loaded."""
    check_config(config)
    for warning in warnings(config):
        progress.say(f"warning: {warning}")
    if fetch:
        bert = getattr(config.adapter, "bert", None)
        _ = bert and find_bert(bert), config.llm and find_llm(config.llm.model)
    return progress.say


def memory_told(
    config: TrainConfig, outputs: Sequence[Output], frame_rate: float, vocabulary: int | None, fused: bool
) -> str:
    """What start-up prints of the memory that a training takes; it goes on where that cannot be told."""
    try:
        return memory_line(estimate(config, outputs, frame_rate, vocabulary, fused).memory)
    except Exception as error:  # models are of many kinds, and the training itself needs none of this
        return f"Memory: unknown ({first_line(error)})"


def tell_data(tell: Tell, learnt: Part, held_out: Part | None) -> None:
    """A line for each part: how much there is, and what was left out."""
    for name, part in (("Train", learnt), ("Dev", held_out)):
        if part is not None:
            tell(f"{name}: {len(part):,} utterances, {part.hours:.2f} h{_without(part.left_out)}")


def left_out_object(learnt: Part, held_out: Part | None) -> dict[str, list[dict[str, Any]]]:
    """What is not used of the splits of each part, for --json."""
    parts = {"train": learnt, "dev": held_out}
    return {name: [asdict(some) for some in part.left_out] for name, part in parts.items() if part is not None}


def _without(left_out: Sequence[LeftOut]) -> str:
    return f"; left out: {'; '.join(map(str, left_out))}" if left_out else ""


def moments(config: TrainConfig, part: Part, outputs: Sequence[Output]) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """Mean and variance `[D]` of each output over what is trained on; nothing where nobody asks for them."""
    if config.input.normalise != "moments" or any(output.dtype == "uint16" for output in outputs):
        return None
    chosen = shuffled(part.ids, config.seed)[:MOMENT_UTTERANCES]
    longest = int(part.frames.max())
    found = []
    for output in outputs:
        stream = part.store.stream(
            frames_per_batch=max(longest, MOMENT_FRAMES),
            where=pc.field("id").isin(chosen),
            outputs=output.name,
            columns=(),
            rank=0,
            world_size=1,
            device=None,
        )
        frames = (
            np.asarray(values[:n]) for batch in stream for values, n in zip(batch.features, batch.lengths, strict=True)
        )
        seen = measure(frames, output.dtype)
        assert isinstance(seen, Moments)
        found.append((seen.mean, seen.variance))
    return found
