"""A text a line: alone, or behind its id as in Kaldi's `text`."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from encodeonce.evaluate.formats.lines import Entry, Line, Role

KALDI_ID = re.compile(r"(?=.*\d)(?=.*[^\W\d]|.*[-_.:/])\S+")
"""A digit, and something beside digits: utt-0001, 1089-134686-0000, BAC009S0764W0121; not 42, and no word."""


def is_kaldi(path: Path, lines: Sequence[Line]) -> bool:
    """Whether each line begins with what looks like an id, never the same, or the file has Kaldi's name."""
    firsts = [line.text.split(maxsplit=1)[0] for line in lines if line.text.strip()]
    return path.name == "text" or (
        len(set(firsts)) == len(firsts) and all(KALDI_ID.fullmatch(first) for first in firsts)
    )


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
