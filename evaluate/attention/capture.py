"""Where the queries of an adapter look: attention weights, computed again beside the forward pass that needs none of them.

Shapes: L layers that read frames, N queries of an utterance, T frames as the adapter reads them, W words.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from encodeonce.train import qformer
from encodeonce.train.adapters.base import Adapter
from encodeonce.train.adapters.perceiver import PerceiverAdapter, ResamplerLayer
from encodeonce.train.model import AdapterModel
from encodeonce.train.objectives.base import Tokens
from encodeonce.train.objectives.generation import generate
from encodeonce.train.objectives.texts import begun
from encodeonce.train.qformer import QFormer, Queries
from encodeonce.train.tokenizer import Tokenizer
from torch import Tensor, nn

Reader: TypeAlias = QFormer | PerceiverAdapter


@dataclass(frozen=True)
class Writing:
    """How the words that a Q-Former writes look at its queries.

    Attributes:
        words: in their order.
        weights: `[layers, heads, W, N]` float32, of every layer from the first, the mean over a word's tokens; what a row
            lacks to 1 goes to earlier text.
    """

    words: tuple[str, ...]
    weights: np.ndarray


@dataclass(frozen=True)
class Attention:
    """How the queries of one utterance look at its frames.

    Attributes:
        weights: `[L, heads, N, T]` float32; a row sums to 1 over the frames that its query may see, and is 0 elsewhere.
        layers: `[L]` their numbers, from 0.
        seen: `[N, 2]`: the first frame that a query may see, and the one after the last.
        on_frames: `[L, heads, N]`: the share of a look that falls on frames. 1 for Q-Formers; a Perceiver's latents see each
            other in the same look.
        frame_seconds: from one frame to the next.
        writing: of a Q-Former that writes text, the words' own looks.
    """

    weights: np.ndarray
    layers: tuple[int, ...]
    seen: np.ndarray
    on_frames: np.ndarray
    frame_seconds: float
    writing: Writing | None = None

    @property
    def mean(self) -> np.ndarray:
        """`[N, T]`, over layers and heads."""
        return self.weights.mean((0, 1))

    @property
    def times(self) -> np.ndarray:
        """`[T]`: the middle of each frame, seconds from the utterance's beginning."""
        return (np.arange(self.weights.shape[3]) + 0.5) * self.frame_seconds

    @property
    def seconds(self) -> float:
        """Of all frames together."""
        return self.weights.shape[3] * self.frame_seconds


def why_no_attention(model: AdapterModel) -> str | None:
    """A sentence where the adapter of a model has no queries that look at frames; None where it has."""
    reader = _reader(model.adapter)
    if reader is not None and _reading_layers(model, reader):
        return None
    kind = type(model.adapter).__name__.removesuffix("Adapter")
    return (
        f"No attention to show: the adapter {kind} has no queries that look at frames; "
        "qformer, window-qformer, segment-qformer and perceiver have"
    )


@torch.inference_mode()
def read_attention(
    model: AdapterModel,
    outputs: Sequence[Tensor],
    lengths: Tensor,
    frame_rate: float,
    texts: Sequence[str] | None = None,
) -> list[Attention]:
    """The attention of a batch of utterances, by a model in evaluation mode; empty where its adapter has none.

    Layers whose look nothing was trained through are left out, as the last one's of a Q-Former that was trained for
    generation alone.

    Args:
        outputs: `[B, T, D]` features or `[B, T, K]` codes, one tensor a stored output.
        lengths: `[B]` stored frames.
        frame_rate: of the store, frames a second.
        texts: what the Q-Former is made to write, where it can; None: what it writes by itself.

    Raises:
        TrainingError: outputs that do not go together.
    """
    reader = _reader(model.adapter)
    layers = [] if reader is None else _reading_layers(model, reader)
    if reader is None or not layers:
        return []
    look = _look_of_latents if isinstance(reader, PerceiverAdapter) else _look
    with _watching([module for _, module in layers], look) as looks:
        spoken = model.hear(outputs, lengths)
    frames, queries = spoken.lengths, reader.output_lengths(spoken.lengths)
    rows = torch.stack(looks)  # [L, B * windows, heads, queries of a window, frames of a window]
    written: Sequence[Writing | None] = [None] * len(frames)
    if isinstance(spoken.adapted, Queries) and model.text is not None and "stg" in model.objectives:
        written = _write(reader, spoken.adapted, model.text, texts)
    made = []
    for row, (own, n, stored) in enumerate(zip(frames.tolist(), queries.tolist(), lengths.tolist(), strict=True)):
        weights, seen = _placed(reader, rows, row, len(frames), own, n)
        on_frames = weights.sum(3)
        weights = weights / on_frames[..., None].clip(np.finfo(np.float32).tiny)
        numbers = tuple(number for number, _ in layers)
        # Interleaved codes make several frames of a stored one.
        made.append(Attention(weights, numbers, seen, on_frames, stored / own / frame_rate, written[row]))
    return made


def _reader(adapter: Adapter) -> Reader | None:
    """What looks at frames: the adapter, or the encoder inside it."""
    return next((module for module in adapter.modules() if isinstance(module, QFormer | PerceiverAdapter)), None)


def _reading_layers(model: AdapterModel, reader: Reader) -> list[tuple[int, nn.Module]]:
    """The modules that look at frames, by the number of their layer, without those that no objective trains."""
    unread = set(map(id, model.adapter.unread(tuple(model.objectives))))
    cross = [layer if isinstance(layer, ResamplerLayer) else layer.cross for layer in reader.layers]
    return [
        (number, module)
        for number, module in enumerate(cross)
        if isinstance(module, nn.Module) and not all(id(weight) in unread for weight in module.parameters())
    ]


@contextmanager
def _watching(modules: Iterable[nn.Module], look: Callable[..., Tensor]) -> Iterator[list[Tensor]]:
    """What `look` makes of a module and its inputs, for each call of one of them while this lasts."""
    found: list[Tensor] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, inputs: found.append(look(module, *inputs)))
        for module in modules
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _look(module: qformer.Attention, hidden: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Weights `[B, heads, M, keys]` of a Q-Former's attention."""
    query = _heads(module.query(hidden), module.heads)
    return _softmax(query, key, None if mask is None else mask[:, None])


def _look_of_latents(module: ResamplerLayer, latents: Tensor, frames: Tensor, seen: Tensor) -> Tensor:
    """Weights `[B, heads, N, T]` on the frames; a row's sum is the share that does not go to latents."""
    own = module.latents_norm(latents)
    keys, _ = module.keys_values(torch.cat([module.frames_norm(frames), own], dim=1)).chunk(2, dim=2)
    query, key = (_heads(x, module.heads) for x in (module.queries(own), keys))
    return _softmax(query, key, seen[:, None, None])[..., : frames.shape[1]]


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(2, (heads, -1)).transpose(1, 2)  # [B, M, H] -> [B, heads, M, H / heads]


def _softmax(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    scores = query.float() @ key.float().mT / key.shape[3] ** 0.5
    return (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(3)


def _placed(
    reader: Reader, rows: Tensor, utterance: int, batch: int, frames: int, queries: int
) -> tuple[np.ndarray, np.ndarray]:
    """An utterance's weights `[L, heads, N, T]`, those of its windows set down where they lie, and `seen` `[N, 2]`."""
    own = rows.unflatten(1, (batch, -1))[:, utterance].cpu().numpy()  # [L, windows, heads, queries, frames]
    windows = reader.windows if isinstance(reader, QFormer) else None
    each = own.shape[3]
    weights = np.zeros((len(own), own.shape[2], queries, frames), np.float32)
    seen = np.empty((queries, 2), np.int64)
    for window in range(queries // each):
        start = 0 if windows is None else window * windows.stride
        end = frames if windows is None else min(start + windows.frames, frames)
        place = slice(window * each, (window + 1) * each)
        weights[:, :, place, start:end] = own[:, window, :, :, : end - start]
        seen[place] = start, end
    return weights, seen


def _write(reader: Reader, queries: Queries, vocabulary: Tokenizer, texts: Sequence[str] | None) -> list[Writing]:
    """What each word that is written looks at."""
    assert isinstance(reader, QFormer)
    most = reader.sizes.body.positions - 2
    if texts is None:
        texts = [vocabulary.decode(ids) for ids in generate(reader, queries, vocabulary, most)]
    words = [text.split() for text in texts]
    ends = [_token_ends(vocabulary, said, most) for said in words]
    ids = [vocabulary.encode(" ".join(said[: len(ends[row])])) for row, said in enumerate(words)]
    tokens = Tokens.of(ids, queries.embeddings.device)
    attention = [layer.attention for layer in reader.layers if isinstance(layer, qformer.Layer)]
    with _watching(attention, _look) as looks:
        reader.write(begun(tokens, vocabulary.decode_start).ids, queries)
    rows = torch.stack(looks)[..., : queries.embeddings.shape[1]].cpu().numpy()  # [layers, B, heads, S, N]
    made = []
    for row, (said, last, count) in enumerate(zip(words, ends, queries.lengths.tolist(), strict=True)):
        own, starts = rows[:, row, :, :, :count], [0, *last]
        # Row s of the text is the token that token s + 1 is told by, so a word's tokens and their rows have the same numbers.
        of_words = [own[:, :, start:end].mean(2) for start, end in zip(starts, last, strict=False)]
        weights = np.stack(of_words, 2) if of_words else own[:, :, :0]
        made.append(Writing(tuple(said[: len(last)]), weights))
    return made


def _token_ends(vocabulary: Tokenizer, words: Sequence[str], most: int) -> list[int]:
    """How many tokens the first, the first two, ... words are, as long as there is room for them."""
    ends = [len(vocabulary.encode(" ".join(words[: count + 1]))) for count in range(len(words))]
    return [end for end in ends if end <= most]
