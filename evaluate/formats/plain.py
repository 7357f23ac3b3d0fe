"""A text a line: alone, or behind its id as in Kaldi's `text`."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from encodeonce.evaluate.formats.lines import Entry, Line, Role

KALDI_ID = re.compile(r"(?=.*\d)(?=.*[^\W\d]|.*[-_.:/])\S+")
"""A digit, and something beside digits: utt-0001, 1089-134686-0000, BAC009S0764W0121; not 42, and no word."""
UNDERSCORED = re.compile(r"\w+_\w+")
"""anna_door: an id where words stand behind it, else perhaps a label."""


def is_kaldi(path: Path, lines: Sequence[Line]) -> bool:
    """Whether each line begins with what looks like an id, or the file has Kaldi's name.

    Ids stand there once. Some that are there twice are a mistake that is told where the file is read; but lines of nothing else are
    labels, and where more than half are there again they are no ids.
    """
    words = [line.text.split(maxsplit=1) for line in lines if line.text.strip()]
    firsts = {first for first, *_ in words}
    with_words = any(rest for _, *rest in words)
    ids = all(KALDI_ID.fullmatch(first) or (with_words and UNDERSCORED.fullmatch(first)) for first in firsts)
    once = len(firsts) == len(words) or (with_words and 2 * len(firsts) >= len(words))
    return path.name == "text" or (ids and once)


def read_kaldi(lines: Sequence[Line], role: Role) -> Iterator[Entry]:
    """`id words...`; an id alone has no words."""
    for line in lines:
        if line.text.strip():
            name, *rest = line.text.split(maxsplit=1)
            yield Entry.of(line, name, role, " ".join("".join(rest).split()))


def read_plain(lines: Sequence[Line], role: Role) -> Iterator[Entry]:
    """The nth line is the nth utterance, also where it is empty."""
    for line in lines:
        yield Entry.of(line, None, role, line.text.strip())
