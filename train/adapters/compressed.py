"""Frames merged where CTC hears the same in them (Gaido et al. 2021, "CTC-based compression for direct speech translation")."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from encodeonce.train.adapters.attention import TransformerLayer
from encodeonce.train.adapters.base import Adapted, Adapter, AdapterConfig
from encodeonce.train.adapters.checks import check_counts, check_dropout, check_heads
from encodeonce.train.adapters.recurrent import RecurrentConfig
from encodeonce.train.errors import TrainingError
from torch import Tensor, nn
from torch.nn import functional as F

BLANK = 0
"""Class of CTC's blank."""


@dataclass(frozen=True, kw_only=True)
class CompressedConfig(AdapterConfig):
    """An encoder of frames, a CTC head on it, runs of one class averaged, and Transformer layers over what that leaves."""

    name: ClassVar[str] = "ctc-compressed"
    rate_options: ClassVar[tuple[str, ...]] = ("encoder",)
    encoder: AdapterConfig = field(default_factory=RecurrentConfig)
    """Any adapter that follows time."""
    drop_blanks: bool = False
    """Leave out runs of blanks; where all is blank they stay, as one embedding."""
    layers: int = 2
    """After merging."""
    heads: int = 4
    feed_forward: int = 1024
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if not self.encoder.ordered or isinstance(self.encoder, CompressedConfig):
            raise TrainingError(
                f"adapter {self.name}: its encoder is {self.encoder.name}, whose embeddings are not frames one after the other; "
                f"give bilstm, transformer or another that follows time"
            )
        check_counts(self, "layers", least=0)
        check_counts(self, "heads", "feed_forward")
        check_dropout(self)

    def build(self, width: int, vocabulary: int | None = None) -> Adapter:
        """`vocabulary` is the number of CTC's classes, the blank, 0, among them."""
        return self._around(self.encoder.build(width), vocabulary)

    def rebuild(self, width: int, vocabulary: int | None, sizes: Mapping[str, Any]) -> Adapter:
        return self._around(self.encoder.rebuild(width, None, sizes), vocabulary)

    def _around(self, encoder: Adapter, classes: int | None) -> Adapter:
        if classes is None:
            raise TrainingError(f"adapter {self.name} merges by what CTC hears: give the objective ctc a weight")
        check_heads(self, encoder.width)
        return CompressedAdapter(encoder, classes, self)


@dataclass(frozen=True)
class Compressed(Adapted):
    """What is left after merging, and the frames that CTC is trained on.

    Args:
        frames: of the encoder, before merging.
        logits: of CTC's classes in each of those frames, `[B, T, classes]`; what merging goes by.
    """

    frames: Adapted
    logits: Tensor


class CompressedAdapter(Adapter):
    """The encoder, its CTC head, merging, and layers after it.

    The head is trained by the objective ctc alone, through `Compressed.logits`: which frames are merged has no gradient.
    """

    def __init__(self, encoder: Adapter, classes: int, config: CompressedConfig) -> None:
        super().__init__()
        self.width, self.drop_blanks = encoder.width, config.drop_blanks
        self.encoder = encoder
        self.ctc_head = nn.Linear(encoder.width, classes)
        self.layers = nn.ModuleList(
            TransformerLayer(self.width, config.heads, config.feed_forward, config.dropout)
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(self.width) if config.layers else nn.Identity()

    def forward(self, features: Tensor, lengths: Tensor) -> Compressed:
        self.encoder.checkpointing = self.checkpointing
        frames = self.encoder(features, lengths)
        logits = self.ctc_head(frames.embeddings)
        merged = merge(frames, logits.argmax(2), self.drop_blanks)
        embeddings = merged.embeddings
        for layer in self.layers:
            embeddings = self.run(layer, embeddings, merged.mask)
        return Compressed(self.norm(embeddings), merged.lengths, frames, logits)

    @property
    def body_sizes(self) -> Mapping[str, Any]:
        return self.encoder.body_sizes

    def unread(self, objectives: Collection[str]) -> Iterator[nn.Parameter]:
        if set(objectives) == {"ctc"}:  # it stands on the frames before merging
            yield from (*self.layers.parameters(), *self.norm.parameters())

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Frames that CTC stands on, `[B]`; there are as many embeddings at most, fewer by what CTC hears."""
        return self.encoder.output_lengths(lengths)


def merge(frames: Adapted, heard: Tensor, drop_blanks: bool) -> Adapted:
    """The average of each run of frames in which the same class is heard.

    Args:
        frames: `[B, T, H]`.
        heard: the class of each frame, `[B, T]`.
        drop_blanks: leave out runs of blanks, but where an utterance is all blank.
    """
    values, own = frames.embeddings, frames.mask
    kept = own
    if drop_blanks:
        spoken = own & (heard != BLANK)
        kept = torch.where(spoken.any(1, keepdim=True), spoken, own)
    begins = F.pad(heard[:, 1:] != heard[:, :-1], (1, 0), value=True) & kept  # [B, T]
    lengths = begins.sum(1)
    most = int(lengths.max())  # a number that the host has to wait for: it shapes what follows
    runs = (begins.cumsum(1) - 1).clamp(min=0)  # [B, T], the run a frame belongs to
    places = runs + torch.arange(len(runs), device=runs.device)[:, None] * most
    sizes = values.new_zeros(len(runs), most, dtype=torch.float32).scatter_add(
        1, runs, kept.float()
    )  # frames of each run
    weights = kept / sizes.gather(1, runs)  # [B, T]
    rows = values.new_zeros(len(runs) * most, values.shape[2], dtype=torch.float32)
    rows = rows.index_add(0, places.flatten(), (values.float() * weights[..., None]).flatten(0, 1))
    return Adapted(rows.unflatten(0, (-1, most)).to(values.dtype), lengths)
