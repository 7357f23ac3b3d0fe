"""A folder of audio files, at any depth, with a .txt beside those that have a transcript."""

import os
from collections.abc import Iterator
from pathlib import Path

from .base import Listing, Problem, Utterance
from .layout import Layout, make_listing, split_folder, subfolders
from .textfiles import NOT_UTF8, is_utf8, read_text

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff"})


def list_folder(root: Path, split: str = "") -> Listing:
    """Ids are paths below `root`, with "/" and without the extension; hidden files and folders are left out."""
    utterances: list[Utterance] = []
    problems: list[Problem] = []
    for inside, name, text_name in _walk(root, ""):
        where = inside + name
        id = os.path.splitext(where)[0]
        text = None
        if text_name is not None:
            text = read_text(root / (inside + text_name))
            if not is_utf8(text):
                problems.append(Problem(id, NOT_UTF8, inside + text_name))
                continue
            text = " ".join(text.split("\n")).replace("\r", "").strip() or None
        utterances.append(Utterance(id=id, audio=Path(f"{root}/{where}"), text=text, where=where))
    return make_listing(LAYOUT.name, root, utterances, problems)


def _walk(root: Path, inside: str) -> Iterator[tuple[str, str, str | None]]:
    """(folder below root, audio file, its text file) in the order of the names; `inside` is "" or ends with "/"."""
    audio: list[str] = []
    texts: dict[str, str] = {}
    folders: list[str] = []
    folder = os.path.join(root, inside)
    with os.scandir(folder) as entries:
        for entry in entries:
            stem, suffix = os.path.splitext(entry.name)
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                if not (entry.is_symlink() and _leads_back(entry.path)):
                    folders.append(entry.name)
            elif suffix.lower() in AUDIO_SUFFIXES:
                audio.append(entry.name)
            elif suffix.lower() == ".txt":
                texts[stem] = entry.name
    for name in sorted(audio):
        yield inside, name, texts.get(os.path.splitext(name)[0])
    for name in sorted(folders):
        yield from _walk(root, f"{inside}{name}/")


def _leads_back(link: str) -> bool:
    """Whether a link leads to a folder that it stands in, so that following it would never end."""
    target = os.path.realpath(link)
    return os.path.commonpath([target, os.path.realpath(os.path.dirname(link))]) == target


def _find(data: Path, split: str) -> Path | None:
    folder = split_folder(data, split)
    return folder if folder is not None and any(_walk(folder, "")) else None


def _splits(data: Path) -> set[str]:
    return set(subfolders(data)) - {"LibriSpeech"}


LAYOUT = Layout(
    name="folder",
    marks=("{split}/**/*.wav (.flac, .ogg, .opus, .mp3, .aif)",),
    find=_find,
    splits=_splits,
    read=list_folder,
)
