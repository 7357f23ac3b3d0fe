"""Hypotheses in the making: JSON lines that a killed run leaves and the next one goes on with, and what says where they are from.

output/
    hypotheses.json     which weights, features, utterances and options they are of; a run with others is refused
    hypotheses.jsonl    a line an utterance, in the order in which they were written; at the end in the store's
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.hypotheses import Hypothesis, read_hypotheses, write_hypotheses
from encodeonce.store.files import explain, read_json, write_json

LINES, ORIGIN = "hypotheses.jsonl", "hypotheses.json"
ABOUT = "about"
"""The part of the origin that another run may have otherwise: paths, versions."""


class HypothesisLines:
    """The lines of a folder.

    Args:
        origin: what they are of, as JSON.

    Raises:
        EvaluationError: the folder holds lines of something else; the message says what differs. Or a line of them is damaged.
    """

    def __init__(self, folder: Path, origin: Mapping[str, Any]) -> None:
        self.path, self._standing, self._origin = folder / LINES, folder / ORIGIN, origin
        self.done: dict[str, Hypothesis] = {}
        check_origin(folder, origin)
        if not self.path.is_file():
            return
        try:
            _drop_half_line(self.path)
        except OSError as error:
            raise explain(error, self.path) from error
        self.done = {one.id: one for one in read_hypotheses(self.path)}

    def begin(self) -> None:
        """Write down what the lines are of, where nothing is written yet."""
        if not self.done:
            write_json(self._standing, self._origin)

    def append(self, hypotheses: Sequence[Hypothesis]) -> None:
        """Keep some more; a kill after it loses none of them."""
        lines = "".join(json.dumps(one.to_json(), ensure_ascii=False) + "\n" for one in hypotheses)
        try:
            with self.path.open("ab") as file:
                file.write(lines.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise explain(error, self.path) from error
        self.done |= {one.id: one for one in hypotheses}

    def finish(self, ids: Iterable[str]) -> list[Hypothesis]:
        """All of them in the order of these ids, in the file too."""
        ordered = [self.done[name] for name in ids]
        if list(self.done) != [one.id for one in ordered]:
            write_hypotheses(self.path, ordered)
            self.done = {one.id: one for one in ordered}
        return ordered


def check_origin(folder: Path, origin: Mapping[str, Any]) -> None:
    """Refuse a folder that holds lines of something else.

    Raises:
        EvaluationError: what differs.
    """
    lines, standing = folder / LINES, folder / ORIGIN
    if not lines.is_file() or not lines.stat().st_size:
        return
    if not standing.is_file():
        raise EvaluationError(f"{lines} is there, and no {ORIGIN} that says what it is of: take another folder")
    ours, theirs = dict(_flat(json.loads(json.dumps(origin)))), dict(_flat(read_json(standing)))
    differing = [
        f"{name}={ours.get(name)} against {theirs.get(name)}"
        for name in dict.fromkeys([*ours, *theirs])
        if name.split(".")[0] != ABOUT and ours.get(name) != theirs.get(name)
    ]
    if differing:
        raise EvaluationError(
            f"{folder} holds hypotheses of something else, here against there: {'; '.join(differing)}; "
            f"take another folder, or remove this one"
        )


def _drop_half_line(path: Path) -> None:
    """Cut what a killed run began to write behind the last line end."""
    written = path.read_bytes()
    whole = written.rfind(b"\n") + 1
    if whole < len(written):
        os.truncate(path, whole)


def _flat(values: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, dict) and values:
        for name, value in values.items():
            yield from _flat(value, f"{above}.{name}" if above else name)
    else:
        yield above, values
