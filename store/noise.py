"""Signal-to-noise ratios in dB of utterances, of shards (as their commit records keep them), and of splits."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from encodeonce.store.commits import Commit


@dataclass(frozen=True, slots=True)
class Snr:
    """The least and the mean ratio of some utterances: of what is stored, against the values that were to be stored."""

    least: float
    mean: float
    utterances: int = 1

    @classmethod
    def join(cls, parts: Iterable[Self]) -> Self | None:
        """That of all utterances together; None where there are none."""
        parts = list(parts)
        count = sum(part.utterances for part in parts)
        if not count:
            return None
        mean = sum(part.mean * part.utterances for part in parts) / count
        return cls(round(min(part.least for part in parts), 3), round(mean, 3), count)

    @property
    def of_one(self) -> Self:
        """What is known of one of these utterances, whichever it is: their mean, and at the least their least."""
        return replace(self, utterances=1)


Ratio = float | Snr
"""The ratio of one utterance; an `Snr` where it was copied, and only that of the shard it comes from is known."""


def summary(ratios: Iterable[Ratio]) -> dict[str, Any] | None:
    """What a commit record says of the ratios of a shard; infinite ones, where nothing was lost, are left out."""
    parts = [ratio if isinstance(ratio, Snr) else Snr(ratio, ratio) for ratio in ratios]
    joined = Snr.join(part for part in parts if math.isfinite(part.mean))
    return asdict(joined) if joined else None


def of_fewer(said: Mapping[str, Any] | None, left: int) -> dict[str, Any] | None:
    """What a commit record says of a shard in which so many utterances are left: of how many it is changes, for least and mean are not
    known by utterance."""
    return {**said, "utterances": min(said.get("utterances", left), left)} if said else None


def of_shard(record: Commit, output: str) -> Snr | None:
    """What a commit record says of an output; None where nothing was lost, or nothing is known."""
    said = record.outputs.get(output, {}).get("snr_db")
    # Records of older versions do not say of how many utterances it is.
    return Snr(said["least"], said["mean"], said.get("utterances", record.utterances)) if said else None


def of_split(records: Iterable[Commit], output: str) -> Snr | None:
    """That of all shards of a split."""
    return Snr.join(snr for record in records if (snr := of_shard(record, output)))
