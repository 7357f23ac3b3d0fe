"""What a layout offers to the search for a split, and the one place where ids and times of utterances are checked."""

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf
from pathlib import Path

from .base import Listing, Problem, Utterance

# C0 and C1 control characters, and the lone surrogates that stand for bytes that are no UTF-8.
_UNWRITABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Layout:
    """One way in which corpora lie on disk.

    `marks` are the paths below DATA that give the layout away ("{split}/wav.scp"), for messages.
    `find(data, split)` gives the folder or file that holds the split, None where the layout is not met.
    `splits(data)` names the splits that this layout sees at DATA, by their names alone.
    `read(place, split)` lists what `find` found.
    """

    name: str
    marks: tuple[str, ...]
    find: Callable[[Path, str], Path | None]
    splits: Callable[[Path], set[str]]
    read: Callable[[Path, str], Listing]


def make_listing(layout: str, root: Path, utterances: Iterable[Utterance], problems: list[Problem]) -> Listing:
    """Keep the utterances with a usable id and span; the first of equal ids stays, the others become problems."""
    kept: dict[str, Utterance] = {}
    problems = list(problems)
    for utterance in utterances:
        reason = _fault(utterance)
        if reason is None:
            first = kept.setdefault(utterance.id, utterance)
            if first is utterance:
                continue
            reason = f"duplicate id {utterance.id!r}, first seen at {first.where}"
        problems.append(Problem(utterance.id, reason, utterance.where))
    return Listing(layout, root, list(kept.values()), problems)


def _fault(utterance: Utterance) -> str | None:
    id, offset, duration = utterance.id, utterance.offset, utterance.duration
    if not id:
        return "the id is empty: every utterance needs a name"
    if not (id.isascii() and id.isprintable()) and _UNWRITABLE.search(id):
        return f"id {id!r} holds a control character or bytes that are no UTF-8: rename it"
    if not 0 <= offset < inf:
        return f"offset {offset} s: expected 0 or more"
    if duration is not None and not 0 < duration < inf:
        return f"duration {duration} s: expected more than 0"
    return None


def split_folder(data: Path, split: str) -> Path | None:
    """DATA/SPLIT, or DATA itself where it is the folder of that name and holds no such folder."""
    folder = data / split
    if folder.is_dir():
        return folder
    if data.is_dir() and Path(os.path.abspath(data)).name == split and not folder.exists():
        return data
    return None


def subfolders(folder: str | Path) -> list[str]:
    """Sorted names of the folders in a folder, hidden ones left out; empty where there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.name[0] != "." and entry.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def file_names(folder: str | Path) -> list[str]:
    """Sorted names of what lies in a folder, hidden entries left out; empty where there is no such folder."""
    try:
        return sorted(name for name in os.listdir(folder) if name[0] != ".")
    except (FileNotFoundError, NotADirectoryError):
        return []
