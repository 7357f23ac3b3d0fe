"""Validation: the loss over the whole dev set, the error rate of a sample that is always the same."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from encodeonce.store.extras import extra
from encodeonce.train.batch import TrainBatch
from encodeonce.train.objectives.base import Tokens
from encodeonce.train.randomness import seeded
from encodeonce.train.ranks import Ranks
from torch import nn

if TYPE_CHECKING:
    from encodeonce.train.model import AdapterModel

SHOWN = 3


@dataclass(frozen=True)
class Example:
    """An utterance of the sample, what is said in it, and what the model wrote."""

    id: str
    said: str
    written: str


@dataclass(frozen=True)
class Validation:
    """What a model does on the dev set.

    Args:
        losses: by objective, nats an element, over all utterances.
        loss: their weighted sum.
        wer, cer: errors over reference words and characters of the sample; None where nothing was decoded.
        examples: a few of the sample, always the same utterances.
    """

    losses: dict[str, float]
    loss: float
    wer: float | None = None
    cer: float | None = None
    examples: tuple[Example, ...] = ()


def pick_sample(ids: Sequence[str], count: int | None, seed: int) -> list[str]:
    """So many utterances (None: all), a function of the ids and the seed: those with the lowest hashes, in that order."""
    ordered = sorted(ids, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    return ordered if count is None else ordered[:count]


def validate(
    model: "AdapterModel",
    batches: Iterable[TrainBatch],
    weights: Mapping[str, float],
    sample: Sequence[str],
    ranks: Ranks,
    seed: int,
    given_up: Callable[[], bool] = lambda: False,
) -> Validation | None:
    """Measure a model without changing it, nor any random state; every rank calls it with its part of the dev set.

    Args:
        weights: of the objectives to compute.
        sample: utterances to decode; none for the loss alone.
        seed: of what an objective draws, such as negatives.
        given_up: asked after each batch, and the same on every rank; once it holds, nothing is measured: None.
    """
    chosen, sums, counts = set(sample), dict.fromkeys(weights, 0.0), dict.fromkeys(weights, 0.0)
    written: dict[str, tuple[str, str]] = {}
    with _evaluating(model), torch.no_grad(), seeded(seed, ranks.device), ranks.accelerator.autocast():
        for batch in batches:
            near = batch
            batch = batch.to(ranks.device)
            found = model(batch.outputs, batch.lengths, batch.tokens, list(weights))
            for name, value in found.items():
                sums[name] += float(value)
                counts[name] += count(model, name, near.tokens[name])
            if rows := [row for row, name in enumerate(batch.ids) if name in chosen]:
                written |= _transcribe(model, batch, rows)
            if given_up():
                return None
    sums, counts = ranks.total_of(sums), ranks.total_of(counts)
    losses = {name: sums[name] / max(counts[name], 1) for name in weights}
    loss = sum(weight * losses[name] for name, weight in weights.items())
    everything = {name: texts for part in ranks.gather(written) for name, texts in part.items()}
    examples = tuple(Example(name, *everything[name]) for name in sample if name in everything)
    if not examples:
        return Validation(losses, loss)
    wer, cer = error_rates([example.said for example in examples], [example.written for example in examples])
    return Validation(losses, loss, wer, cer, examples[:SHOWN])


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Inside this a model is in evaluation mode."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def count(model: "AdapterModel", name: str, tokens: Tokens) -> int:
    """The elements of a batch's sum of an objective; `tokens` are on the host."""
    return model.objectives[name].count(tokens)  # pyrefly: ignore[not-callable]


def error_rates(said: Sequence[str], written: Sequence[str]) -> tuple[float | None, float | None]:
    """WER and CER of a corpus: edits over reference units; None where there is no reference unit."""
    with extra("train"):
        import jiwer

    rates = []
    for process in (jiwer.process_words, jiwer.process_characters):
        counted = process(list(said), list(written))
        edits = counted.substitutions + counted.deletions + counted.insertions
        units = counted.hits + counted.substitutions + counted.deletions
        rates.append(edits / units if units else None)
    return rates[0], rates[1]


def _transcribe(model: "AdapterModel", batch: TrainBatch, rows: Sequence[int]) -> dict[str, tuple[str, str]]:
    chosen = torch.tensor(rows, device=batch.lengths.device)
    texts = model.transcribe([values[chosen] for values in batch.outputs], batch.lengths[chosen])
    return {batch.ids[row]: (batch.texts[row], text) for row, text in zip(rows, texts, strict=True)}
