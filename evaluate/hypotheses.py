"""What a system wrote for each utterance, beside what was said: the JSON lines that everything else here reads."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from encodeonce.evaluate.errors import EvaluationError
from encodeonce.store.files import atomic_write

MOST_SECONDS = 1e9
"""Thirty years; more, less than none and what is no number are mistakes, which sums would spread."""
KEYS = ("id", "text", "pred_text", "duration", "speaker", "language", "seconds", "flags")


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One utterance; a line of JSON has the same names, NeMo's where it has one.

    Attributes:
        text: what was said, or its translation or label; None: unknown.
        pred_text: what the system wrote.
        duration: of the audio, seconds.
        seconds: that decoding took, its share of the batch's.
        flags: what is suspicious about `pred_text`, such as `repetition`; see `decoding.flags`.
        metadata: every other key of the line, `audio_filepath` and the corpus's columns among them.
    """

    id: str
    pred_text: str
    text: str | None = None
    duration: float | None = None
    speaker: str | None = None
    language: str | None = None
    seconds: float | None = None
    flags: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A line: what is unknown is left out, but the text, which is null."""
        known = {key: getattr(self, key) for key in KEYS}
        line = {key: value for key, value in known.items() if value is not None or key == "text"}
        return {**self.metadata, **line, "flags": list(self.flags)}

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> "Hypothesis":
        """Of a line that has `id` and `pred_text`.

        Raises:
            EvaluationError: a key is missing, or its value has another type.
        """
        line = {**line}
        if isinstance(speaker := line.get("speaker"), int) and not isinstance(speaker, bool):
            line["speaker"] = str(speaker)
        line |= {key: empty for key, empty in _UNKNOWN.items() if key in line and line[key] in (None, "")}
        for key, kinds in _TYPES.items():
            if key in line and not isinstance(line[key], kinds):
                raise EvaluationError(f"{key} is {line[key]!r}: give {_WANTED[key]}")
        for key in ("duration", "seconds"):
            if (value := line.get(key)) is not None and (isinstance(value, bool) or not 0 <= value <= MOST_SECONDS):
                raise EvaluationError(f"{key} is {str(value)[:20]}: give a number of seconds, or null")
        if missing := [key for key in ("id", "pred_text") if key not in line]:
            raise EvaluationError(f"no {' and no '.join(missing)} among {', '.join(line) or 'no keys'}")
        known = {key: line[key] for key in KEYS if key in line}
        flags = tuple(map(str, known.pop("flags", ())))
        return cls(**known, flags=flags, metadata={key: value for key, value in line.items() if key not in KEYS})


_UNKNOWN = {"speaker": None, "language": None, "flags": ()}
"""What manifests say where they do not know is what they do not say."""
_TEXT, _NUMBER = (str, type(None)), (int, float, type(None))
_TYPES: dict[str, tuple[type, ...]] = {
    "id": (str,),
    "pred_text": (str,),
    "text": _TEXT,
    "speaker": _TEXT,
    "language": _TEXT,
    "duration": _NUMBER,
    "seconds": _NUMBER,
    "flags": (list, tuple),
}
_WANTED = {
    name: {str: "a text", list: "a list of texts"}.get(kinds[0], "a number of seconds")
    for name, kinds in _TYPES.items()
}


def write_hypotheses(path: Path, hypotheses: Iterable[Hypothesis]) -> None:
    """Write JSON lines, whole or not at all."""
    with atomic_write(path) as file:
        for one in hypotheses:
            file.write((json.dumps(one.to_json(), ensure_ascii=False) + "\n").encode())


def read_hypotheses(path: Path) -> list[Hypothesis]:
    """Read JSON lines.

    Raises:
        EvaluationError: a line is no JSON object, lacks a key, or repeats an id; the message names the line.
    """
    found: dict[str, Hypothesis] = {}
    with path.open(encoding="utf-8") as file:
        for number, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                line = json.loads(text)
                if not isinstance(line, dict):
                    raise EvaluationError("it is no JSON object")
                one = Hypothesis.from_json(line)
            except (ValueError, RecursionError, EvaluationError) as error:
                raise EvaluationError(f"{path}, line {number}: {error}") from None
            if one.id in found:
                raise EvaluationError(f"{path}, line {number}: id {one.id} is there twice")
            found[one.id] = one
    return list(found.values())
