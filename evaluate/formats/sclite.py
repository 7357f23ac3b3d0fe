r"""NIST sclite's transcripts, `words (id)`.

sclite reads a line that begins with `;;` or `**` as a comment, `;` as the end of a word, `{ a / b }` as alternatives and `@` as no
word. A backslash takes the meaning of the first two away, and of nothing else (tried with SCTK 2.4.10).
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.formats.lines import Entry, Line, Role
from encodeonce.store.files import atomic_write

UTTERANCE = re.compile(r"(.*)\(([^()]+)\)\s*")
WIDE = str.maketrans({"{": "\N{FULLWIDTH LEFT CURLY BRACKET}", "}": "\N{FULLWIDTH RIGHT CURLY BRACKET}"})
WIDE_AT = "\N{FULLWIDTH COMMERCIAL AT}"
"""There is no escape for braces, nor for a word `@`: their wide forms stand for them."""


def is_trn(path: Path, lines: Sequence[Line]) -> bool:
    """By the file's name, or by an id in parentheses at the end of each line."""
    told = [line.text for line in lines if line.text.strip() and not line.text.startswith(";;")]
    return path.suffix == ".trn" or (bool(told) and all(UTTERANCE.fullmatch(text) for text in told))


def read_trn(lines: Sequence[Line], role: Role) -> Iterator[Entry]:
    """`words (id)`; alternatives are refused, for here a reference is one text."""
    for line in lines:
        if not line.text.strip() or line.text.startswith(";;"):
            continue
        found = UTTERANCE.fullmatch(line.text)
        if found is None:
            raise line.wrong(f"no (id) at the end of {line.text[-40:]!r}")
        if re.search(r"(?<!\\)[{}]", found[1]):
            raise line.wrong("it has alternatives { a / b }, which only sclite scores; leave one of them")
        words = (re.sub(r"\\(.)", r"\1", word) for word in found[1].split() if word != "@")
        yield Entry.of(line, found[2].strip(), role, " ".join(words))


def check_id(name: str, file: str) -> None:
    """Refuse an id that sclite could not read.

    Raises:
        EvaluationError: it has parentheses or a line break, or spaces at its ends.
    """
    if not UTTERANCE.fullmatch(f"({name})") or name != name.strip():
        raise EvaluationError(f"id {name!r} cannot stand in {file}: sclite's ids are in parentheses")


def write_trn(path: Path, texts: Iterable[tuple[str, str]]) -> None:
    """Write (id, words) so that sclite reads these words.

    Raises:
        EvaluationError: an id that `check_id` refuses.
    """
    with atomic_write(path) as file:
        for name, text in texts:
            check_id(name, path.name)
            file.write((f"{' '.join(map(_escaped, text.split()))} ({name})\n").encode("utf-8", "replace"))


def _escaped(word: str) -> str:
    if word == "@":
        return WIDE_AT
    return re.sub(r"([\\;*])", r"\\\1", word.translate(WIDE))
