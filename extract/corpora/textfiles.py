"""Reading the text files of corpora: gzip, byte order marks, CRLF, lines that are no UTF-8, relative audio paths."""

import codecs
import gzip
import os
import re
import zlib
from itertools import islice
from pathlib import Path

from .base import CorpusError, Problem

_SURROGATE = re.compile("[\ud800-\udfff]")
NOT_UTF8 = "not UTF-8: convert the file, for example with iconv -t UTF-8"


def read_text(path: Path) -> str:
    """The whole file without a byte order mark; bytes that are no UTF-8 come as lone surrogates (see `is_utf8`)."""
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise CorpusError(f"{path} is no whole gzip file ({error}): copy it again, or unpack it by hand") from error
    except OSError as error:
        raise CorpusError(f"cannot read {path}: {error.strerror or error}") from error
    return data.removeprefix(codecs.BOM_UTF8).decode(errors="surrogateescape")


def is_utf8(text: str) -> bool:
    """Whether a text was read from valid UTF-8: bytes that are none stand in it as lone surrogates."""
    return text.isascii() or _SURROGATE.search(text) is None


def read_lines(path: Path, problems: list[Problem]) -> list[tuple[int, str]]:
    """Numbered lines (from 1) without their ends; blank ones are left out, those that are no UTF-8 go to `problems`.

    Only "\\n" and "\\r\\n" end a line: str.splitlines would also cut transcripts at U+2028 or U+0085.
    """
    text = read_text(path)
    if "\r" in text:
        text = re.sub("\r+(?=\n|$)", "", text)
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line and not line.isspace()]
    if is_utf8(text):
        return lines
    problems.extend(Problem("", NOT_UTF8, f"{path.name}:{number}") for number, line in lines if not is_utf8(line))
    return [(number, line) for number, line in lines if is_utf8(line)]


def first_lines(path: Path, count: int = 1) -> list[str]:
    """The beginning of a file, to see what it is; empty for what cannot be read as text."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="\n") as file:
            return [line.rstrip("\r\n") for line in islice(file, count)]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError):
        return []


def audio_path(name: str, folder: Path) -> Path:
    """A path as Kaldi and Lhotse write it: relative to the working directory, or else to the manifest's folder."""
    return Path(name) if os.path.isabs(name) or os.path.exists(name) else folder / name
