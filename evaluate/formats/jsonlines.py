"""JSON lines with NeMo's keys: `pred_text` is what a system wrote, `text` what was said; or `hypothesis` and `reference`."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.formats.lines import Entry, Line, Role
from encodeonce.evaluate.hypotheses import Hypothesis

OTHER_NAMES = {"pred_text": ("hypothesis", "prediction"), "text": ("reference",)}
"""Keys that count as NeMo's where those are not there."""
SUFFIXES = (".jsonl", ".ndjson", ".json")


def is_json(path: Path, lines: Sequence[Line]) -> bool:
    """By the file's name, or by its first character."""
    return path.suffix in SUFFIXES or lines[0].text.lstrip().startswith("{")


def read_json_lines(lines: Sequence[Line], role: Role) -> Iterator[Entry]:
    """An object a line; it is told by its `id`, else by its `audio_filepath`, else by its place."""
    if lines[0].text.lstrip().startswith("["):
        raise lines[0].wrong("it is a JSON list; give one object a line, e.g. by jq -c '.[]'")
    for line in lines:
        if line.text.strip():
            yield _entry(line, role)


def _entry(line: Line, role: Role) -> Entry:
    try:
        values: dict[str, Any] = json.loads(line.text)
    except (ValueError, RecursionError) as error:
        raise line.wrong(f"it is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise line.wrong(f"it is no JSON object but {str(values)[:40]}")
    for key, others in OTHER_NAMES.items():
        other = next((one for one in others if one in values), None)
        if key not in values and other is not None:
            values[key] = values.pop(other)
    name = values.get("id", values.get("audio_filepath"))
    if isinstance(name, bool | float | list | dict):
        raise line.wrong(f"id is {name!r}: give a text")
    name = None if name is None else str(name)
    if role not in values:
        other = "".join(f", nor {one}" for one in OTHER_NAMES[role])
        raise line.wrong(f"no {role}{other} among {', '.join(values) or 'no keys'}")
    try:
        known = Hypothesis.from_json({"pred_text": "", **values, "id": ""})
    except EvaluationError as error:
        raise line.wrong(str(error)) from None
    rest = {key: value for key, value in values.items() if key not in ("id", "text", "pred_text")}
    return Entry(line, name, known.text, known.pred_text if "pred_text" in values else None, rest)
