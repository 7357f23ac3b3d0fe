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


@dataclass(frozen=True, slots=True)
class Miss:
    """How far the middles of words are from where they are known to be: mean and median, seconds."""

    mean: float
    median: float


@dataclass(frozen=True, slots=True)
class TimedWords:
    """Words of an utterance whose times are known, and how far others are from them.

    Attributes:
        utterance: its id; None: all together.
        words: that were compared, of those that were said.
        attention: of the times that a Q-Former's attention tells when it is made to write what was said.
        evenly: of the words spread over the utterance by their letters.
    """

    utterance: str | None
    words: int
    said: int
    attention: Miss
    evenly: Miss


@dataclass(frozen=True, slots=True)
class WordCentres:
    """Attention as a clock, of the utterances that are drawn.

    Attributes:
        source: of the known times.
        together: None where nothing could be compared.
        left_out: why an utterance is not among them, by id.
    """

    source: str
    together: TimedWords | None
    utterances: Sequence[TimedWords]
    left_out: Mapping[str, str]


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
