"""The Q-Former (BLIP-2, Li et al. 2023): learned queries read an utterance's frames, and share a BERT's self-attention with text.

Shapes: B utterances, T frames of width D, W windows of L frames each (one of all T where there are no windows), N queries
of an utterance in all, text of S tokens, hidden width H. Masks are true where something is seen.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import torch
from encodeonce.train.adapters.base import Adapted, Adapter, valid
from encodeonce.train.errors import TrainingError
from encodeonce.train.positions import sinusoids
from torch import Tensor, nn
from torch.nn import functional as F

DEVIATION = 0.02
"""Of the queries when they are drawn, as in BLIP-2."""

KeyValue: TypeAlias = tuple[Tensor, Tensor]
"""Keys and values of one layer's self-attention, `[B, heads, N + S, H / heads]` each."""


@dataclass(frozen=True, kw_only=True)
class Body:
    """The sizes of a BERT."""

    hidden: int
    layers: int
    heads: int
    feed_forward: int
    positions: int = 512
    """Tokens of a text at most."""
    eps: float = 1e-12
    """Of LayerNorm."""
    deviation: float | None = None
    """Of weights when they are drawn, 0.02 for a BERT; None: 1 / sqrt(hidden); with 0.02 narrow ones hardly begin to learn."""


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Windows of `frames` that begin every `stride` frames, each with queries of its own; the last one may be part empty."""

    frames: int
    stride: int
    self_attention: Literal["local", "global"] = "local"
    """Queries see those of their own window (SALMONN, Tang et al. 2023), or all of the utterance."""
    positions: Literal["none", "sinusoidal", "learned"] = "none"
    """What is added to a window's queries by its place."""
    learned: int = 64
    """Windows with a learned position of their own; later ones share the last."""

    def count(self, lengths: Tensor) -> Tensor:
        """Windows, `[B]`, that utterances of so many frames have."""
        return (lengths - self.frames + self.stride - 1).clamp(min=0) // self.stride + 1

    def fold(self, frames: Tensor) -> Tensor:
        """`[B, T, D]` to `[B, W, L, D]`; zeros fill up the last window."""
        most = int(self.count(torch.tensor(frames.shape[1])))
        filled = F.pad(frames, (0, 0, 0, (most - 1) * self.stride + self.frames - frames.shape[1]))
        return filled.unfold(1, self.frames, self.stride).transpose(2, 3)


@dataclass(frozen=True, kw_only=True)
class QFormerSizes:
    """What a Q-Former is built by."""

    body: Body
    features: int
    """Width of the frames."""
    queries: int
    """Of an utterance; with windows, of each window."""
    cross_every: int = 2
    """Layers 0, cross_every, 2 * cross_every, ... look at the frames."""
    dropout: float = 0.1
    vocabulary: int | None = None
    """Of the text side; None: there is no text side."""
    windows: Windows | None = None


@dataclass(frozen=True)
class Queries(Adapted):
    """The queries after the last layer, and what a text that is written sees of them: one `KeyValue` a layer."""

    keys: tuple[KeyValue, ...]


def bidirectional(queries: Tensor, text: Tensor) -> Tensor:
    """Everything sees all that is no padding: `[B, N + S, N + S]` of queries `[B, N]` and text `[B, S]` (speech-text matching)."""
    real = torch.cat((queries, text), dim=1)  # [B, N + S]
    return real[:, None].expand(-1, real.shape[1], -1)


def multimodal_causal(queries: Tensor, text: Tensor) -> Tensor:
    """Queries see queries; text sees queries and the text up to itself (speech-grounded generation). Shapes as in `bidirectional`."""
    among_queries = torch.zeros(queries.shape[1], dtype=torch.long, device=queries.device)
    time = torch.cat((among_queries, torch.arange(1, text.shape[1] + 1, device=text.device)))  # [N + S]
    return bidirectional(queries, text) & (time[:, None] >= time)


def unimodal(queries: Tensor, text: Tensor) -> Tensor:
    """Queries see queries and text sees text (speech-text contrast). Shapes as in `bidirectional`."""
    is_text = torch.arange(queries.shape[1] + text.shape[1], device=text.device) >= queries.shape[1]  # [N + S]
    return bidirectional(queries, text) & (is_text[:, None] == is_text)


def within_windows(mask: Tensor, queries: int, of_window: int) -> Tensor:
    """A mask `[B, N + S, N + S]` in which the first `queries` see no queries of other windows than their own."""
    window = torch.arange(queries, device=mask.device) // of_window
    same = F.pad(window[:, None] == window, (0, mask.shape[1] - queries) * 2, value=True)
    return mask & same


def never_empty(mask: Tensor) -> Tensor:
    """Rows that see nothing, which padding has, see everything: a softmax over nothing is not a number."""
    return mask | ~mask.any(dim=-1, keepdim=True)


class Attention(nn.Module):
    """Attention with its residual path, and LayerNorm after it."""

    def __init__(self, sizes: QFormerSizes, seen_width: int) -> None:
        super().__init__()
        hidden = sizes.body.hidden
        self.heads, self.dropout = sizes.body.heads, sizes.dropout
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(seen_width, hidden)
        self.value = nn.Linear(seen_width, hidden)
        self.output = nn.Linear(hidden, hidden)
        self.norm = nn.LayerNorm(hidden, eps=sizes.body.eps)

    def key_value(self, seen: Tensor) -> KeyValue:
        """What `[B, M, width]` offers to those who look at it: `[B, heads, M, H / heads]` twice."""
        return self._split(self.key(seen)), self._split(self.value(seen))

    def forward(self, hidden: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """`[B, M, H]` after having looked where `mask` `[B, M, keys]` allows; None: everywhere."""
        dropout = self.dropout if self.training else 0.0
        query = self._split(self.query(hidden))  # [B, heads, M, H / heads]
        mask = None if mask is None else mask[:, None]
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        found = self.output(found.transpose(1, 2).flatten(2))  # [B, M, H]
        return self.norm(hidden + F.dropout(found, self.dropout, self.training))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)  # [B, M, H] -> [B, heads, M, H / heads]


class FeedForward(nn.Module):
    """BERT's feed-forward with its residual path, and LayerNorm after it."""

    def __init__(self, sizes: QFormerSizes) -> None:
        super().__init__()
        self.dropout = sizes.dropout
        self.up = nn.Linear(sizes.body.hidden, sizes.body.feed_forward)
        self.down = nn.Linear(sizes.body.feed_forward, sizes.body.hidden)
        self.norm = nn.LayerNorm(sizes.body.hidden, eps=sizes.body.eps)

    def forward(self, hidden: Tensor) -> Tensor:
        made = self.down(F.gelu(self.up(hidden)))
        return self.norm(hidden + F.dropout(made, self.dropout, self.training))


class Layer(nn.Module):
    """Self-attention that queries and text share; then queries look at the frames; then a feed-forward for each."""

    def __init__(self, sizes: QFormerSizes, index: int) -> None:
        super().__init__()
        self.attention = Attention(sizes, sizes.body.hidden)
        self.cross = Attention(sizes, sizes.features) if index % sizes.cross_every == 0 else None
        self.feed_query = FeedForward(sizes)
        self.feed_text = None if sizes.vocabulary is None else FeedForward(sizes)

    def forward(
        self,
        hidden: Tensor,
        queries: int,
        mask: Tensor | None,
        frames: Tensor | None,
        frame_mask: Tensor | None,
        past: KeyValue | None,
    ) -> tuple[Tensor, KeyValue]:
        """Hidden states `[B, M, H]`, queries first, to the next layer's; and the keys and values of `past` and of these."""
        key, value = self.attention.key_value(hidden)
        if past is not None:
            key, value = torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)
        hidden = self.attention(hidden, key, value, mask)
        query, text = hidden[:, :queries], hidden[:, queries:]
        if frames is not None:  # [B * W, L, D]
            if self.cross is not None:
                of_window = query.reshape(len(frames), -1, query.shape[2])  # [B, N, H] -> [B * W, N / W, H]
                query = self.cross(of_window, *self.cross.key_value(frames), frame_mask).view_as(query)
            query = self.feed_query(query)
        if self.feed_text is not None and text.shape[1]:
            text = self.feed_text(text)
        return torch.cat((query, text), dim=1), (key, value)


class TextSide(nn.Module):
    """Tokens to embeddings, and BERT's prediction head."""

    def __init__(self, body: Body, vocabulary: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, body.hidden)
        self.positions = nn.Embedding(body.positions, body.hidden)
        self.transform = nn.Linear(body.hidden, body.hidden)
        self.norm = nn.LayerNorm(body.hidden, eps=body.eps)
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def embed(self, ids: Tensor, first: int) -> Tensor:
        """Ids `[B, S]`, the first of which is token number `first` of its text: `[B, S, H]`.

        Raises:
            TrainingError: the text is longer than there are positions.
        """
        end, most = first + ids.shape[1], self.positions.num_embeddings
        if end > most:
            raise TrainingError(
                f"a text of {end} tokens: this Q-Former has positions for {most}; lower text.max_tokens"
            )
        return self.words(ids) + self.positions(torch.arange(first, end, device=ids.device))

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(self.norm(F.gelu(self.transform(hidden))), self.words.weight, self.bias)


class QFormer(Adapter):
    """Queries of a whole utterance, or of each of its windows; with a vocabulary, the text side beside them."""

    def __init__(self, sizes: QFormerSizes) -> None:
        super().__init__()
        body, windows = sizes.body, sizes.windows
        self.sizes, self.windows = sizes, windows
        self.width, self.ordered = body.hidden, windows is not None
        self.feature_norm = nn.LayerNorm(sizes.features)  # BLIP-2's ln_vision
        self.queries = nn.Parameter(torch.empty(sizes.queries, body.hidden).normal_(std=DEVIATION))
        learned = windows is not None and windows.positions == "learned"
        self.window_positions = nn.Embedding(windows.learned, body.hidden) if windows and learned else None
        self.embedding_norm = nn.LayerNorm(body.hidden, eps=body.eps)
        self.layers = nn.ModuleList(Layer(sizes, index) for index in range(body.layers))
        self.text = None if sizes.vocabulary is None else TextSide(body, sizes.vocabulary)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=body.deviation or body.hidden**-0.5)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        if self.window_positions is not None:  # as large as the queries, or those of a window would begin all alike
            nn.init.normal_(self.window_positions.weight, std=DEVIATION)

    @property
    def body_sizes(self) -> Mapping[str, Any]:
        return asdict(self.sizes.body)

    def unread(self, objectives: Collection[str]) -> Iterator[nn.Parameter]:
        if self.text is not None and "stg" not in objectives:
            yield from (*self.text.transform.parameters(), *self.text.norm.parameters(), self.text.bias)
        if set(objectives) == {"stg"}:  # of the queries' last layer, text sees keys and values alone
            last = self.layers[-1]
            assert isinstance(last, Layer)
            yield from (*last.feed_query.parameters(), *(last.cross.parameters() if last.cross else ()))

    def output_lengths(self, lengths: Tensor) -> Tensor:
        windows = torch.ones_like(lengths) if self.windows is None else self.windows.count(lengths)
        return windows * self.sizes.queries

    def forward(self, features: Tensor, lengths: Tensor) -> Queries:
        """The queries alone, as contrast, generation and the LLM read them: embeddings `[B, N, H]`."""
        hidden, real = self._start(features, lengths)
        no_text = real.new_zeros((len(features), 0))
        mask = None if self.windows is None else self._among_windows(unimodal(real, no_text), real)
        hidden, keys = self._body(hidden, mask, *self._frames(features, lengths))
        return Queries(hidden, self.output_lengths(lengths), keys)

    def read(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """The text alone, as BERT reads it: ids `[B, S]` of `lengths` >= 1 to hidden states `[B, S, H]`."""
        real = valid(lengths, ids.shape[1])
        mask = unimodal(real[:, :0], real)
        return self._body(self._embed(ids), mask)[0]

    def match(self, features: Tensor, lengths: Tensor, ids: Tensor, text_lengths: Tensor) -> Adapted:
        """Queries that see the frames and the text, and are seen by it: embeddings `[B, N, H]` of the queries."""
        hidden, real = self._start(features, lengths)
        mask = self._among_windows(bidirectional(real, valid(text_lengths, ids.shape[1])), real)
        together = torch.cat((hidden, self._embed(ids)), dim=1)  # [B, N + S, H]
        hidden, _ = self._body(together, mask, *self._frames(features, lengths))
        return Adapted(hidden[:, : real.shape[1]], self.output_lengths(lengths))

    def write(
        self, ids: Tensor, queries: Queries, past: tuple[KeyValue, ...] | None = None
    ) -> tuple[Tensor, tuple[KeyValue, ...]]:
        """Text that sees the queries and the text before it; padding behind it changes nothing, so no lengths are needed.

        Args:
            ids: `[B, S]`, what follows the text of `past`.
            queries: of `forward`.
            past: as this gave it for the text so far; None: `ids` begin the text.

        Returns:
            Hidden states `[B, S, H]`, and the past to go on from. Beams pick rows of its tensors.
        """
        past = queries.keys if past is None else past
        seen = past[0][0].shape[2]
        first = seen - queries.embeddings.shape[1]
        written = ids.new_ones((len(ids), first + ids.shape[1]), dtype=torch.bool)
        mask = multimodal_causal(queries.mask, written)[:, seen:]  # [B, S, N + first + S]
        return self._body(self._embed(ids, first), mask, past=past)

    def logits(self, hidden: Tensor) -> Tensor:
        """What token comes next, `[B, S, vocabulary]`, by hidden states `[B, S, H]` of `write`."""
        return self._text_side().logits(hidden)

    def _start(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The queries before the first layer, `[B, N, H]`, and `[B, N]`, which of them are of a window that the utterance has."""
        windows = self.windows
        most = 1 if windows is None else int(windows.count(torch.tensor(features.shape[1])))
        queries = self.queries.expand(most, -1, -1)  # [W, queries, H]
        if windows is not None and windows.positions == "sinusoidal":  # as large as the queries are at first
            queries = queries + DEVIATION * 2**0.5 * sinusoids(most, self.width, features.device)[:, None]
        if self.window_positions is not None:
            place = torch.arange(most, device=features.device).clamp(max=self.window_positions.num_embeddings - 1)
            queries = queries + self.window_positions(place)[:, None]
        hidden = self._normalised(queries.flatten(0, 1).expand(len(features), -1, -1))
        return hidden, valid(self.output_lengths(lengths), hidden.shape[1])

    def _frames(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What each window's queries look at: frames `[B * W, L, D]` and their mask `[B * W, 1, L]`."""
        frames, real = self.feature_norm(features), valid(lengths, features.shape[1])
        if self.windows is not None:
            frames = self.windows.fold(frames).flatten(0, 1)
            real = self.windows.fold(real[..., None]).flatten(0, 1)[..., 0]
        return frames, never_empty(real)[:, None]

    def _among_windows(self, mask: Tensor, real: Tensor) -> Tensor:
        """The mask of queries, `real` `[B, N]` says which, and text, as the windows want it."""
        if self.windows is not None and self.windows.self_attention == "local":
            mask = within_windows(mask, real.shape[1], self.sizes.queries)
        return never_empty(mask)

    def _embed(self, ids: Tensor, first: int = 0) -> Tensor:
        return self._normalised(self._text_side().embed(ids, first))

    def _normalised(self, embeddings: Tensor) -> Tensor:
        return F.dropout(self.embedding_norm(embeddings), self.sizes.dropout, self.training)

    def _body(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        frames: Tensor | None = None,
        frame_mask: Tensor | None = None,
        past: tuple[KeyValue, ...] | None = None,
    ) -> tuple[Tensor, tuple[KeyValue, ...]]:
        """All layers over queries (where there are frames) and text; the keys and values of each, those of `past` included."""
        queries = 0 if frames is None else len(frames) // len(hidden) * self.sizes.queries
        keys: list[KeyValue] = []
        for index, layer in enumerate(self.layers):
            before = None if past is None else past[index]
            hidden, made = self.run(layer, hidden, queries, mask, frames, frame_mask, before)
            keys.append(made)
        return hidden, tuple(keys)

    def _text_side(self) -> TextSide:
        if self.text is None:
            raise TrainingError("this Q-Former was built without a vocabulary, so it has no text side; give it one")
        return self.text
