"""What every format is read from and into: numbered lines, and utterances."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from encodeonce.evaluate.errors import EvaluationError

Role = Literal["pred_text", "text"]
"""What a file of one text an utterance holds: what a system wrote, or what was said."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a file, without its end; `number` counts from 1."""

    path: Path
    number: int
    text: str

    def wrong(self, what: str) -> EvaluationError:
        """The error that names the line."""
        return EvaluationError(f"{self.path}, line {self.number}: {what}")


@dataclass(frozen=True, slots=True)
class Entry:
    """An utterance as a file has it.

    Attributes:
        line: where it stands.
        id: None in a format without ids.
        text, pred_text: what was said, what a system wrote; None: not in this file.
        values: the other keys of a JSON line.
    """

    line: Line
    id: str | None
    text: str | None = None
    pred_text: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, line: Line, id: str | None, role: Role, text: str) -> "Entry":
        """One of a file of one text an utterance."""
        return cls(line, id, pred_text=text) if role == "pred_text" else cls(line, id, text=text)


def read_lines(path: Path) -> list[Line]:
    """The lines of a UTF-8 file; they end at line feeds alone, for U+2028 and its like may stand in a text.

    Raises:
        EvaluationError: it holds none, or bytes that are no UTF-8.
    """
    data = path.read_bytes().removeprefix(BYTE_ORDER_MARK)
    if not data.strip():
        raise EvaluationError(f"{path} is empty; give a file with a line for each utterance")
    found = []
    for number, raw in enumerate(data.removesuffix(b"\n").split(b"\n"), 1):
        try:
            found.append(Line(path, number, raw.removesuffix(b"\r").decode()))
        except UnicodeDecodeError as error:
            byte = f"{raw[error.start]:#04x}"
            raise EvaluationError(
                f"{path}, line {number}: byte {error.start + 1} ({byte}) is no UTF-8; convert the file, "
                f"e.g. iconv -f ISO-8859-1 -t UTF-8"
            ) from None
    return found
