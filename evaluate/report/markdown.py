"""A report as Markdown: the same sections, numbers and texts, with the pictures that lie beside it, without the drawings."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from encodeonce.evaluate.report.document import (
    Bullets,
    Document,
    Example,
    Examples,
    Figure,
    Paragraph,
    Photograph,
    Section,
    Table,
)

LISTED = 50
"""Rows of a long table."""


def markdown_of(document: Document, folder: Path | None = None) -> str:
    """The text of report.md; pictures below the folder that it goes to are shown in it, of others the path is said."""
    head = [f"# {escaped(document.title)}", escaped(" · ".join(document.facts))]
    tiles = " · ".join(
        f"{one.name} **{one.value}**{f' ({one.beside})' if one.beside else ''}" for one in document.headlines
    )
    parts = [
        *head,
        tiles,
        *(part for section in document.sections for part in _section(section, folder)),
        escaped(document.footer),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def escaped(text: str) -> str:
    """A text as Markdown shows it in a cell, whatever is in it."""
    return re.sub(r"([\\`*_\[\]<>|#~&$])", r"\\\1", " ".join(text.split()))


def _section(section: Section, folder: Path | None) -> Iterable[str]:
    yield f"## {escaped(section.title)}"
    for block in section.blocks:
        yield from _photograph(block, folder) if isinstance(block, Photograph) else WRITERS[type(block)](block)


def _paragraph(one: Paragraph) -> Iterable[str]:
    yield escaped(one.text)


def _bullets(one: Bullets) -> Iterable[str]:
    yield "\n".join(f"- {escaped(text)}" for text in one.entries)


def _figure(one: Figure) -> Iterable[str]:
    yield f"*{escaped(one.caption)} Drawn in report.html.*"


def _photograph(one: Photograph, folder: Path | None) -> Iterable[str]:
    if folder is None or not one.path.is_relative_to(folder):
        yield f"**{escaped(one.title)}**: {escaped(one.caption)} In {escaped(str(one.path))}."
        return
    yield f"![{escaped(one.title)}]({quote(one.path.relative_to(folder).as_posix())})"
    yield f"**{escaped(one.title)}**: {escaped(one.caption)}"


def _table(one: Table) -> Iterable[str]:
    rows = one.rows[:LISTED] if one.long else one.rows
    yield f"**{escaped(one.caption)}**"
    lines = [[escaped(column.name) or " " for column in one.columns]]
    lines.append(["--:" if column.kind == "number" else "---" for column in one.columns])
    for number, row in enumerate(rows):
        cells = [escaped(cell.text) + (f" [{one.marks.index(cell.mark) + 1}]" if cell.mark else "") for cell in row]
        lines.append([f"**{cell}**" if cell else "" for cell in cells] if number in one.highlighted else cells)
    yield "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    if one.marks:
        yield "\n".join(f"{number}. {escaped(mark)}" for number, mark in enumerate(one.marks, 1))
    if len(rows) < len(one.rows):
        yield f"The first {len(rows)} of {len(one.rows):,} rows."
    if one.note:
        yield escaped(one.note)


def _examples(one: Examples) -> Iterable[str]:
    yield f"### {escaped(one.title)}"
    yield "~~said~~ **written**: substituted or left out and put in."
    for example in one.entries:
        yield f"`{_code(example.id)}` {escaped(' · '.join(example.facts))}"
        yield f"> {_words(example)}"


def _words(example: Example) -> str:
    words = []
    for pair in example.pairs:
        if pair.kind == "same":
            words.append(escaped(pair.reference))
            continue
        words += [f"~~{escaped(pair.reference)}~~"] * bool(pair.reference)
        words += [f"**{escaped(pair.hypothesis)}**"] * bool(pair.hypothesis)
    return " ".join(words) + (f" … and {example.more:,} more words" if example.more else "")


def _code(text: str) -> str:
    return re.sub(r"[`\s]+", " ", text)


WRITERS: dict[type, Callable[[Any], Iterable[str]]] = {
    Paragraph: _paragraph,
    Bullets: _bullets,
    Figure: _figure,
    Table: _table,
    Examples: _examples,
}
