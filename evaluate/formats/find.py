"""Which format a file has, and the utterances in it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from encodeonce.evaluate.formats.icefall import is_recogs, read_recogs
from encodeonce.evaluate.formats.jsonlines import is_json, read_json_lines
from encodeonce.evaluate.formats.lines import Entry, Line, Role, read_lines
from encodeonce.evaluate.formats.plain import is_kaldi, read_kaldi, read_plain
from encodeonce.evaluate.formats.sclite import is_trn, read_trn


@dataclass(frozen=True, slots=True)
class Format:
    """A way to write texts down; `fits` looks at a file's name and lines."""

    about: str
    fits: Callable[[Path, Sequence[Line]], bool]
    read: Callable[[Sequence[Line], Role], Iterator[Entry]]


FORMATS = {
    "json": Format("JSON lines", is_json, read_json_lines),
    "icefall": Format("icefall's recogs", is_recogs, read_recogs),
    "trn": Format("sclite's trn, `words (id)`", is_trn, read_trn),
    "kaldi": Format("Kaldi's text, `id words`", is_kaldi, read_kaldi),
    "plain": Format("plain lines", lambda path, lines: True, read_plain),
}
"""In the order in which they are tried; anything is plain lines."""


@dataclass(frozen=True, slots=True)
class Texts:
    """A file as it was read; either all entries have ids, or none has."""

    path: Path
    format: str
    entries: Sequence[Entry]

    @property
    def has_ids(self) -> bool:
        """Whether utterances are told by id, and not by line."""
        return self.entries[0].id is not None

    def __str__(self) -> str:
        count = len(self.entries)
        return f"{self.path} is read as {FORMATS[self.format].about}, {count:,} utterance{'s' * (count != 1)}"


def read_texts(path: Path, role: Role, format: str | None = None) -> Texts:
    """Read a file; `role` is what it holds where its format has one text an utterance.

    Raises:
        EvaluationError: it is empty, no UTF-8, or not of its format; an id is there twice. The message names the line.
    """
    lines = read_lines(path)
    name = format or next(name for name, found in FORMATS.items() if found.fits(path, lines))
    entries = list(FORMATS[name].read(lines, role))
    if not entries:
        raise lines[0].wrong("there is no utterance in the file")
    seen: dict[str, Entry] = {}
    for entry in entries:
        if (entry.id is None) != (entries[0].id is None):
            raise entry.line.wrong("utterances with an id and without one are in one file; give all an id")
        if entry.id is None:
            continue
        if entry.id in seen:
            told = "; if these are texts without ids, give --format plain" if name == "kaldi" and format is None else ""
            raise entry.line.wrong(f"id {entry.id} is there twice, first in line {seen[entry.id].line.number}{told}")
        seen[entry.id] = entry
    return Texts(path, name, entries)
