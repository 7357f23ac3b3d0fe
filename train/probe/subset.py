"""Which utterances a probe learns from and which it is measured on: a function of the table and a seed alone."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from encodeonce.store.errors import StoreError
from encodeonce.store.reader import FeatureStore
from encodeonce.train.probe.characters import least_emissions, spoken

HELD_OUT_SHARE = 0.2
EMISSIONS_A_SECOND = 40
"""A probe emits at least so often. People speak some 15 characters a second, fast readers 25; CTC wants room for blanks."""


@dataclass(frozen=True, slots=True)
class Subset:
    """The utterances of a probe: texts by id, as `spoken` gives them."""

    training: dict[str, str]
    held_out: dict[str, str]
    speakers: tuple[int, int] | None
    """Speakers of the two parts, none in both; or nothing, where utterances were held out without regard to speakers."""
    without_text: int
    too_dense: int
    """Utterances left out because their text has more characters than the probe emits."""


def emissions_a_frame(frame_rate: float) -> int:
    """Emissions of a probe for each frame: the least that give `EMISSIONS_A_SECOND`."""
    return max(1, -int(-EMISSIONS_A_SECOND // frame_rate))


def choose(store: FeatureStore, limit: int | None, seed: int) -> Subset:
    """Take at most `limit` utterances that have text, at random, and hold a fifth out: whole speakers where two or more are known.

    Raises:
        StoreError: fewer than two utterances can be used.
    """
    columns = store.columns(["id", "text", "speaker"])
    rows = zip(*(columns[name].to_pylist() for name in ("id", "text", "speaker")), store.frames.tolist(), strict=True)
    emissions, without_text, too_dense = emissions_a_frame(store.frame_rate), 0, 0
    usable: dict[str, tuple[str, str | None]] = {}
    for utterance, text, speaker, frames in rows:
        said = spoken(text or "")
        if not said:
            without_text += 1
        elif least_emissions(said) > frames * emissions:
            too_dense += 1
        else:
            usable[utterance] = said, speaker
    if len(usable) < 2:
        raise StoreError(
            f"{len(usable)} of the {len(store)} utterances of {store.path} can be used ({without_text} have no text, {too_dense} have "
            f"too much of it for their length); a probe needs two or more: extract a split that has transcripts, or a larger part of it"
        )
    taken = shuffled(list(usable), seed)[:limit]
    groups = {utterance: usable[utterance][1] for utterance in taken}
    by_speaker = len(set(groups.values())) > 1 and None not in groups.values()
    held = _held_out(taken, groups if by_speaker else dict(zip(taken, taken, strict=True)), seed)
    texts = {utterance: usable[utterance][0] for utterance in sorted(taken)}
    training = {utterance: text for utterance, text in texts.items() if utterance not in held}
    held_out = {utterance: text for utterance, text in texts.items() if utterance in held}
    speakers = len({groups[u] for u in training}), len({groups[u] for u in held_out})
    return Subset(training, held_out, speakers if by_speaker else None, without_text, too_dense)


def _held_out(taken: Sequence[str], groups: Mapping[str, str | None], seed: int) -> set[str]:
    """Whole groups until a fifth of the utterances is held out; one group at least is left to learn from."""
    order = shuffled(sorted({str(group) for group in groups.values()}), seed)
    held: set[str] = set()
    for group in order[:-1]:
        held |= {utterance for utterance in taken if groups[utterance] == group}
        if len(held) >= HELD_OUT_SHARE * len(taken):
            break
    return held


def shuffled(names: Sequence[str], seed: int) -> list[str]:
    """Names in an order that depends on themselves and the seed alone, the same on every machine."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}\n{name}".encode()).digest())
