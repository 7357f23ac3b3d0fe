"""What a report says, before it is HTML or Markdown: sections of paragraphs, tables, figures and aligned utterances."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from encodeonce.evaluate.report.aligned import Pair


@dataclass(frozen=True, slots=True)
class Cell:
    """What stands in a table.

    Attributes:
        number: what the cell is sorted by, where that is not its text.
        mark: why the cell is to be doubted; it is shown as a footnote.
    """

    text: str
    number: float | None = None
    mark: str | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """`number` is set to the right, `prose` has room for a sentence, `code` is for ids, `signature` breaks at its bars alone."""

    name: str
    kind: Literal["text", "number", "prose", "code", "signature"] = "text"


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Plain text; a quiet one says what is behind the rest."""

    kind: ClassVar[str] = "paragraph"
    text: str
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class Bullets:
    """Sentences, one below the other."""

    kind: ClassVar[str] = "bullets"
    entries: Sequence[str]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells under columns.

    Attributes:
        caption: what is seen, a phrase.
        note: a sentence below it.
        long: it scrolls inside itself, and can be sorted and filtered.
        folded: it is shown on request, because a figure above says the same.
        highlighted: numbers of the rows that are ours among others'.
    """

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    long: bool = False
    folded: bool = False
    highlighted: Collection[int] = ()

    @property
    def marks(self) -> list[str]:
        """The footnotes, each once."""
        return list(dict.fromkeys(cell.mark for row in self.rows for cell in row if cell.mark))


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing, as the text of an SVG; what it shows stands also in words."""

    kind: ClassVar[str] = "figure"
    svg: str
    caption: str


@dataclass(frozen=True, slots=True)
class Photograph:
    """A PNG.

    Attributes:
        source: all of it, as a data URI; None: the page has no room for it.
        path: where it lies.
    """

    kind: ClassVar[str] = "photograph"
    source: str | None
    title: str
    caption: str
    path: Path


@dataclass(frozen=True, slots=True)
class Example:
    """An utterance, its reference and hypothesis word by word.

    Attributes:
        facts: such as its length and its errors.
        more: pairs that are not shown.
        audio: a data URI; None where the audio is not at hand.
    """

    id: str
    facts: Sequence[str]
    pairs: Sequence[Pair]
    more: int = 0
    audio: str | None = None


@dataclass(frozen=True, slots=True)
class Examples:
    """Utterances one below the other."""

    kind: ClassVar[str] = "examples"
    title: str
    entries: Sequence[Example]


Block = Paragraph | Bullets | Table | Figure | Photograph | Examples


@dataclass(frozen=True, slots=True)
class Section:
    """`key` is its anchor; blocks beside each other are small tables, where there is room."""

    key: str
    title: str
    blocks: Sequence[Block]
    beside_each_other: bool = False


@dataclass(frozen=True, slots=True)
class Headline:
    """A number to be seen first; `beside` is its interval or what it was counted over."""

    name: str
    value: str
    beside: str


@dataclass(frozen=True, slots=True)
class Document:
    """The whole report; `facts` are what it is about, in a line, and `kind` is what is so reported."""

    title: str
    facts: Sequence[str]
    headlines: Sequence[Headline]
    sections: Sequence[Section]
    footer: str = ""
    kind: str = "Evaluation"
