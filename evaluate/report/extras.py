"""What a report shows beside the numbers, where it is at hand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG file that the page carries, such as the attention of an utterance.

    Attributes:
        caption: what is seen, in a sentence; also what is read where pictures are not shown.
        utterance: its id.
    """

    path: Path
    title: str
    caption: str
    utterance: str | None = None


@dataclass(frozen=True)
class Extras:
    """All that is optional.

    Attributes:
        training: the folder of a training, whose metrics become curves.
        pictures: in the order in which they are shown.
        audio: a file by utterance id, for those whose audio is at hand.
    """

    training: Path | None = None
    pictures: Sequence[Picture] = ()
    audio: Mapping[str, Path] = field(default_factory=dict)
