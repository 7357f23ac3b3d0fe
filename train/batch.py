"""What the loop trains on: micro-batches of features and tokens, and where they come from."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from encodeonce.train.objectives.base import Tokens
from torch import Tensor


@dataclass(frozen=True)
class TrainBatch:
    """A micro-batch: utterances as the encoder left them, and what is said in them.

    Args:
        ids: `[B]` utterances.
        outputs: one tensor a stored output, `[B, T, D]` features or `[B, T, K]` codes, on the device that trains.
        lengths: `[B]` int64, frames of each utterance, on that device.
        tokens: by objective; objectives of one vocabulary share one object. On the host: they are counted before they are moved.
        frames: of all utterances together, padding not counted; known on the host.
        texts: the targets as text, where somebody compares (dev).
    """

    ids: Sequence[str]
    outputs: Sequence[Tensor]
    lengths: Tensor
    tokens: Mapping[str, Tokens]
    frames: int
    texts: Sequence[str] = field(default=())

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def padded_frames(self) -> int:
        """Frames with padding: what memory goes by."""
        return self.outputs[0].shape[0] * self.outputs[0].shape[1]

    def to(self, device: torch.device) -> "TrainBatch":
        """The same batch with everything on a device; nothing is copied that is there already."""
        moved: dict[int, Tokens] = {}
        for tokens in self.tokens.values():
            if id(tokens) not in moved:
                ids, lengths = (t.to(device, non_blocking=True) for t in (tokens.ids, tokens.lengths))
                moved[id(tokens)] = Tokens(ids, lengths)
        return replace(
            self,
            outputs=[values.to(device, non_blocking=True) for values in self.outputs],
            lengths=self.lengths.to(device, non_blocking=True),
            tokens={name: moved[id(tokens)] for name, tokens in self.tokens.items()},
        )


@dataclass(frozen=True)
class FeatureIdentity:
    """Which features a model is trained on; a checkpoint fits no others."""

    encoder: str
    fingerprint: str
    """Of the feature set."""
    outputs: tuple[str, ...]


class TrainStream(Protocol):
    """An endless training set, an epoch an iteration; `Stream` gives its order, and every rank gets as many batches."""

    @property
    def epoch(self) -> int:
        """That the next batch is of."""
        ...

    def __len__(self) -> int:
        """Micro-batches of a whole epoch, on each rank."""
        ...

    def __iter__(self) -> Iterator[TrainBatch]:
        """The rest of the epoch."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, after the last batch that was given: plain values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on there; StoreError where the state is of another plan (`plan_differences`)."""
        ...


class Batches(Protocol):
    """All data of a training."""

    @property
    def identity(self) -> FeatureIdentity: ...

    @property
    def train(self) -> TrainStream: ...

    @property
    def dev(self) -> Iterable[TrainBatch]:
        """This rank's part of the dev set, with texts, anew with every iteration; as many batches on every rank."""
        ...

    @property
    def dev_ids(self) -> Sequence[str]:
        """All utterances of the dev set, on all ranks; none where there is no dev set."""
        ...
