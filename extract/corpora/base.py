"""What every corpus layout gives: utterances, and the entries that cannot be one."""

from dataclasses import dataclass, field
from pathlib import Path

Scalar = str | int | float | bool | None


class CorpusError(Exception):
    """The request cannot be served: no such split, nothing recognised, two candidates. The message says the way out."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """One piece of speech in an audio file, with what is known of it.

    `offset` and `duration` are seconds in the file; without a duration it ends with the file.
    `channel` picks one channel (from 0); without it all channels are averaged.
    `translations` maps a language code to a text. `metadata` holds every other column as it was.
    `where` names the entry for messages ("dev.jsonl:12"); it is no part of the utterance.
    """

    id: str
    audio: Path
    offset: float = 0.0
    duration: float | None = None
    channel: int | None = None
    text: str | None = None
    speaker: str | None = None
    language: str | None = None
    translations: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, Scalar] = field(default_factory=dict)
    where: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Problem:
    """An entry of a corpus that is no usable utterance, with the reason and where it stands."""

    id: str
    reason: str
    where: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """A split as its layout lists it: ids are unique; what could not be used stands in `problems`.

    `root` is the folder that holds the split, or the manifest file that lists it. Whether the audio files are there
    is not looked at: the decoder names each one that it cannot read.
    """

    layout: str
    root: Path
    utterances: list[Utterance]
    problems: list[Problem]
