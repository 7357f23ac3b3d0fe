"""Training a probe with CTC, and greedy decoding of what it emits."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import torch
from encodeonce.store.progress import Advance
from encodeonce.store.streaming.batches import Batch
from encodeonce.store.streaming.stream import Stream
from encodeonce.train.probe.characters import BLANK, Characters
from encodeonce.train.probe.head import Probe
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Emitted:
    """A probe's answer to a batch: `log_probs` `[B, T, classes]`, `lengths` `[B]` emissions, and the CTC `loss` of all together."""

    log_probs: Tensor
    lengths: Tensor
    loss: Tensor
    characters: int


def train(
    model: Probe,
    stream: Stream,
    texts: Mapping[str, str],
    characters: Characters,
    steps: int,
    learning_rate: float,
    advance: Advance,
) -> None:
    """Train with AdamW for a fixed number of steps, the learning rate falling along a cosine."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for batch in islice(_endless(stream), steps):
        emitted = emit(model, batch, texts, characters)
        optimizer.zero_grad()
        (emitted.loss / emitted.characters).backward()
        optimizer.step()
        schedule.step()
        advance(1)


@torch.inference_mode()
def recognise(
    model: Probe, stream: Stream, texts: Mapping[str, str], characters: Characters
) -> tuple[float, dict[str, str]]:
    """The loss in nats a character over an epoch of a stream, and by id what greedy decoding hears."""
    loss, count, heard = 0.0, 0, {}
    for batch in stream:
        emitted = emit(model, batch, texts, characters)
        loss, count = loss + float(emitted.loss), count + emitted.characters
        best = emitted.log_probs.argmax(2).tolist()
        for utterance, classes, length in zip(batch.ids, best, emitted.lengths.tolist(), strict=True):
            heard[utterance] = characters.decode(classes[:length])
    return loss / max(1, count), heard


def emit(model: Probe, batch: Batch, texts: Mapping[str, str], characters: Characters) -> Emitted:
    """What a probe emits for a batch, and how far it is from the texts."""
    log_probs, lengths = model(batch.features), torch.as_tensor(batch.lengths).cpu() * model.emissions
    targets = [characters.encode(texts[utterance]) for utterance in batch.ids]
    counts = torch.tensor([len(target) for target in targets])
    together = torch.tensor([number for target in targets for number in target], device=log_probs.device)
    loss = F.ctc_loss(log_probs.transpose(0, 1), together, lengths, counts, BLANK, reduction="sum")
    return Emitted(log_probs, lengths, loss, int(counts.sum()))


def _endless(stream: Stream) -> Iterator[Batch]:
    while True:
        yield from stream
