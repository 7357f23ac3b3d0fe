"""The interface of adapters: features `[B, T, D]` and lengths in, embeddings `[B, N, width]` and lengths out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Made = TypeVar("Made")


@dataclass(frozen=True)
class Adapted:
    """What an adapter makes of a batch.

    Args:
        embeddings: `[B, N, width]`; what stands after an utterance's length is of no meaning, and nobody may look at it.
        lengths: `[B]`, int64, embeddings of each utterance: 1 or more.
    """

    embeddings: Tensor
    lengths: Tensor

    @property
    def mask(self) -> Tensor:
        """`[B, N]`, true where an embedding belongs to its utterance."""
        return valid(self.lengths, self.embeddings.shape[1])


class Adapter(nn.Module, ABC):
    """A trainable map from the frames of an utterance to fewer, or better, embeddings.

    What an utterance becomes never depends on what shares its batch, nor on how far it is padded.
    """

    width: int
    """Of its embeddings."""
    ordered: bool = True
    """Embeddings follow the time of the speech, so that CTC can stand on them."""
    checkpointing: bool = False
    """Compute layers again on the way back instead of keeping what they made (gradient checkpointing)."""

    @abstractmethod
    def forward(self, features: Tensor, lengths: Tensor) -> Adapted:
        """Adapt features `[B, T, D]` of which the first `lengths` `[B]` frames of each utterance are its own; `T >= 1`, lengths >= 1."""

    @abstractmethod
    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Embeddings, `[B]`, that utterances of so many frames become; CTC needs to know before anything is computed."""

    @property
    def body_sizes(self) -> Mapping[str, Any]:
        """Sizes that a pretrained model may have brought, and no option tells; a checkpoint keeps them for `AdapterConfig.rebuild`."""
        return {}

    def unread(self, objectives: Collection[str]) -> Iterable[nn.Parameter]:
        """Weights that none of these objectives depends on: they get no gradient, and are not trained."""
        return ()

    def run(self, layer: Callable[..., Made], *inputs: object) -> Made:
        """A layer's output; computed again on the way back where `checkpointing` says so."""
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(layer, *inputs, use_reentrant=False)  # pyrefly: ignore[bad-return]
        return layer(*inputs)


@dataclass(frozen=True, kw_only=True)
class AdapterConfig(ABC):
    """The options of an adapter; each adapter has its own, which is also what builds it."""

    name: ClassVar[str]
    """In configurations and in the registry."""
    ordered: ClassVar[bool] = True
    """As `Adapter.ordered`: what a configuration is checked by, before anything is built."""
    rate_options: ClassVar[tuple[str, ...]] = ()
    """By which options it tells how many embeddings an utterance has; where CTC needs more, they are named."""
    has_text: ClassVar[bool] = False
    """It has a text side, which stc, stm and stg are trained through."""

    @abstractmethod
    def build(self, width: int, vocabulary: int | None = None) -> Adapter:
        """The adapter for features of this width.

        Args:
            width: of the features.
            vocabulary: size of the text side's, special tokens included; None: no text side is wanted.

        Raises:
            TrainingError: options that contradict each other, or the width, or the vocabulary.
        """

    def rebuild(self, width: int, vocabulary: int | None, sizes: Mapping[str, Any]) -> Adapter:
        """The adapter of a checkpoint, before it has its weights: as `build`, but no pretrained model is asked for.

        Args:
            sizes: `Adapter.body_sizes` of the one that was trained.

        Raises:
            TypeError: `sizes` lacks one, or has one that is not known.
        """
        return self.build(width, vocabulary)


def valid(lengths: Tensor, most: int) -> Tensor:
    """`[B, most]`, true in the first `lengths` `[B]` places of each row."""
    return torch.arange(most, device=lengths.device) < lengths[:, None]
