"""Rows of JSON lines, CSV and TSV files; a broken line is a problem of its own and never takes its neighbours along."""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

from .base import CorpusError, Problem
from .rows import Row
from .textfiles import NOT_UTF8, is_utf8, read_lines, read_text

_QUOTED = re.compile(r'"(?:[^"]|"")*"')


def json_rows(path: Path, problems: list[Problem]) -> Iterator[tuple[int, Row]]:
    """(line number, object) of every line that is a JSON object."""
    for number, line in read_lines(path, problems):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.append(Problem("", f"not JSON: {error}", f"{path.name}:{number}"))
            continue
        if not isinstance(row, dict):
            problems.append(Problem("", f"expected a JSON object, found {line[:40]!r}", f"{path.name}:{number}"))
        elif "\\u" in line and not is_utf8(json.dumps(row, ensure_ascii=False)):
            reason = "half a surrogate pair (\\ud800 to \\udfff) is no character"
            problems.append(Problem("", reason, f"{path.name}:{number}"))
        else:
            yield number, row


def csv_rows(path: Path, problems: list[Problem]) -> Iterator[tuple[int, Row]]:
    """Comma-separated values as RFC 4180 has them: quoted cells may hold commas, doubled quotes and line breaks."""
    return _dict_rows(path, _csv_records(read_text(path), path.name, problems), problems)


def tsv_rows(path: Path, problems: list[Problem]) -> Iterator[tuple[int, Row]]:
    """Tab-separated values: a line is a row, and no cell holds a tab or a line break.

    Some programs quote cells that hold a quote (csv.writer, pandas), others write them as they are (fairseq,
    Common Voice). They are unquoted where every cell that holds a quote is quoted in full, so that a stray quote
    can never swallow the lines that follow.
    """
    records = [(number, line.split("\t")) for number, line in read_lines(path, problems)]
    with_quotes = [cell for _, cells in records for cell in cells if '"' in cell]
    if with_quotes and all(_QUOTED.fullmatch(cell) for cell in with_quotes):
        records = [(number, [_unquoted(cell) for cell in cells]) for number, cells in records]
    return _dict_rows(path, iter(records), problems)


def _unquoted(cell: str) -> str:
    return cell[1:-1].replace('""', '"') if '"' in cell else cell


def _dict_rows(
    path: Path, records: Iterator[tuple[int, list[str]]], problems: list[Problem]
) -> Iterator[tuple[int, Row]]:
    header_line, header = next(records, (1, []))
    header = [name.strip() for name in header]
    if "audio" not in header and "audio_filepath" not in header:
        raise CorpusError(
            f"{path}:{header_line}: no column 'audio' (or NeMo's 'audio_filepath') in the header; "
            f"found {', '.join(map(repr, header)) or 'nothing'}"
        )
    if len(set(header)) < len(header):
        twice = sorted({name for name in header if header.count(name) > 1})
        raise CorpusError(f"{path}:{header_line}: the header names {', '.join(map(repr, twice))} more than once")
    for number, cells in records:
        if len(cells) == len(header):
            yield number, {name: cell if cell else None for name, cell in zip(header, cells, strict=True)}
        else:
            reason = f"{len(cells)} columns where the header has {len(header)}"
            problems.append(Problem("", reason, f"{path.name}:{number}"))


def _csv_records(text: str, name: str, problems: list[Problem]) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, cells) of every record.

    A record that runs over several lines and ends up with the wrong number of columns, or never ends, has a quote
    too many in its first line: that line alone is given up, and reading goes on with the next one.
    """
    lines = text.split("\n")
    clean = is_utf8(text)
    position = 0
    columns = None

    def feed() -> Iterator[str]:
        nonlocal position
        while position < len(lines):
            position += 1
            yield lines[position - 1].rstrip("\r") + "\n"

    reader = csv.reader(feed(), strict=True)
    while position < len(lines):
        start = position
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problems.append(Problem("", f"broken CSV, a quote too many or too few: {error}", f"{name}:{start + 1}"))
            position, reader = start + 1, csv.reader(feed(), strict=True)
            continue
        if not cells:
            continue
        if columns is None:
            columns = len(cells)
        elif position > start + 1 and len(cells) != columns:
            problems.append(Problem("", "broken CSV: a quote opens here and does not close", f"{name}:{start + 1}"))
            position, reader = start + 1, csv.reader(feed(), strict=True)
            continue
        if clean or is_utf8("".join(cells)):
            yield start + 1, cells
        else:
            problems.append(Problem("", NOT_UTF8, f"{name}:{start + 1}"))
