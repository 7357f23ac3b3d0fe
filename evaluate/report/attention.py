"""What the queries of an adapter look at, on a page: pictures of utterances, and how attention does as a clock."""

from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from encodeonce.evaluate.report.document import Block, Cell, Column, Paragraph, Photograph, Section, Table
from encodeonce.evaluate.report.extras import Picture, TimedWords, WordCentres
from encodeonce.evaluate.report.wording import NONE, counted

WORD_CENTRES = "word_centres"
"""Among the details of an evaluation."""
PICTURE_BYTES = 6_000_000
"""Of all pictures together."""
LONG = 30
"""A table of more rows scrolls inside itself."""


def attention(found: Sequence[Picture], details: Mapping[str, Any]) -> Section | None:
    """Pictures of utterances, and the numbers that `details` have under `WORD_CENTRES`."""
    centres = details.get(WORD_CENTRES)
    blocks = [*(_clock(centres) if isinstance(centres, WordCentres) else ()), *_pictures(found)]
    return Section("attention", "Attention", blocks) if blocks else None


def sentence(found: WordCentres) -> str:
    """How the attention does as a clock, in words."""
    every = found.together
    if every is None:
        return "No utterance that is drawn could be held against its word times."
    by, evenly = every.attention, every.evenly
    return (
        f"The middles of {counted(every.words, 'word')} in {counted(len(found.utterances), 'utterance')}, against known times: "
        f"{by.mean:.3f} s off by attention (median {by.median:.3f} s), "
        f"{evenly.mean:.3f} s off when words are spread evenly (median {evenly.median:.3f} s)."
    )


def _clock(found: WordCentres) -> list[Block]:
    rows = [_row(one) for one in (found.together, *found.utterances) if one is not None]
    rows += [
        [Cell(name), Cell(NONE, mark=f"Not compared: {why}."), *[Cell(NONE)] * 4]
        for name, why in found.left_out.items()
    ]
    measured = [f"{how}, {of} (s)" for how in ("Attention", "Spread evenly") for of in ("mean", "median")]
    columns = [Column("Utterance", "code"), *(Column(name, "number") for name in ("Words", *measured))]
    note = (
        f"Known times: {found.source}. Attention tells its times when the Q-Former is made to write what was said; spread evenly, each "
        "letter and space takes as long. Compared are words that the text and the known times share."
    )
    caption = "How far the middles of words are from their known times"
    return [Paragraph(sentence(found)), Table(caption, columns, rows, note, long=len(rows) > LONG)]


def _row(one: TimedWords) -> list[Cell]:
    words = f"{one.words:,}" if one.words == one.said else f"{one.words:,} of {one.said:,}"
    misses = [value for miss in (one.attention, one.evenly) for value in (miss.mean, miss.median)]
    return [Cell(one.utterance or "All"), Cell(words, one.words), *(Cell(f"{value:.3f}", value) for value in misses)]


def _pictures(found: Sequence[Picture]) -> Iterator[Block]:
    """One that cannot be read is named; one that the page has no room for is shown as text."""
    left = PICTURE_BYTES
    for picture in found:
        try:
            content = picture.path.read_bytes()
        except OSError as error:
            yield Paragraph(f"{picture.title}: cannot read {picture.path}: {error.strerror}", quiet=True)
            continue
        source = None
        if len(content) <= left:
            left -= len(content)
            source = "data:image/png;base64," + b64encode(content).decode("ascii")
        of = "" if picture.utterance is None or picture.utterance in picture.caption else f" ({picture.utterance})"
        yield Photograph(source, picture.title, picture.caption + of, picture.path)
