"""The options that the plan of an epoch depends on, checked where they are made."""

import operator
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from encodeonce.store.errors import StoreError

Shuffle = Literal["auto", "all", "shards", "none"]


@dataclass(frozen=True)
class PlanOptions:
    """What the plan of an epoch depends on beside the utterances and their lengths; None is no limit."""

    seed: int
    frames_per_batch: int
    window: int
    shard_window: int
    max_batch: int | None
    min_frames: int | None
    max_frames: int | None
    crop_frames: int | None
    shuffle: str

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name == "shuffle" or value is None:
                continue
            try:
                object.__setattr__(self, name, operator.index(value))  # numpy's integers too, as plain ones
            except TypeError as error:
                raise StoreError(f"{name}={value!r}: take a whole number") from error
            if not (0 if name == "seed" else 1) <= value < 2**63:
                raise StoreError(f"{name}={value}: take {0 if name == 'seed' else 1} or more, below 2^63")


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Refuse an option that is not among those there are.

    Raises:
        StoreError: it is not; the message lists them.
    """
    if value not in allowed:
        raise StoreError(f"{name}={value!r}: take one of {', '.join(allowed)}")
