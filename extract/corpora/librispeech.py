"""LibriSpeech: SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NNNN.flac with one SPEAKER-CHAPTER.trans.txt a chapter.

The layout is described in the corpus's README.TXT (https://www.openslr.org/12). Mini LibriSpeech, LibriTTS-like
conversions and home-made corpora use it with split names of their own, so any name is taken.
"""

import os
from pathlib import Path

from .base import Listing, Problem, Utterance
from .layout import Layout, file_names, make_listing, split_folder, subfolders
from .textfiles import read_lines

_AUDIO, _TEXT = ".flac", ".trans.txt"


def list_librispeech(root: Path, split: str = "") -> Listing:
    """Utterances in the order of speakers, chapters and file names, all compared as text.

    Only folders are read, no audio file is touched: 28,539 utterances take about 0.3 s.
    """
    utterances: list[Utterance] = []
    problems: list[Problem] = []
    for speaker in subfolders(root):
        for chapter in subfolders(os.path.join(root, speaker)):
            _read_chapter(root, speaker, chapter, utterances, problems)
    return make_listing(LAYOUT.name, root, utterances, problems)


def _read_chapter(root: Path, speaker: str, chapter: str, utterances: list[Utterance], problems: list[Problem]) -> None:
    folder = os.path.join(root, speaker, chapter)
    parent = Path(folder)
    names = file_names(folder)
    texts: dict[str, tuple[str, str]] = {}
    for name in names:
        if name.endswith(_TEXT):
            for number, line in read_lines(parent / name, problems):
                id, _, text = line.strip().partition(" ")
                where = f"{name}:{number}"
                if id in texts:
                    problems.append(Problem(id, f"second transcript of {id!r}, the first one is used", where))
                else:
                    texts[id] = text.strip(), where
    for name in names:
        if name.endswith(_AUDIO):
            id = name.removesuffix(_AUDIO)
            text, _ = texts.pop(id, ("", ""))
            utterances.append(
                Utterance(
                    id=id,
                    audio=parent / name,
                    text=text or None,
                    speaker=speaker,
                    language="en",
                    metadata={"chapter": chapter},
                    where=f"{speaker}/{chapter}/{name}",
                )
            )
    problems.extend(
        Problem(id, f"a transcript without its audio: expected {id}{_AUDIO} beside it", where)
        for id, (_, where) in texts.items()
    )


def _find(data: Path, split: str) -> Path | None:
    inside = data / "LibriSpeech" / split
    if inside.is_dir():
        return inside
    folder = split_folder(data, split)
    return folder if folder is not None and _has_marks(folder) else None


def _has_marks(folder: Path) -> bool:
    for speaker in subfolders(folder):
        for chapter in subfolders(folder / speaker):
            for name in file_names(folder / speaker / chapter):
                if name.endswith(_TEXT) or (name.endswith(_AUDIO) and name.startswith(f"{speaker}-{chapter}-")):
                    return True
    return False


def _splits(data: Path) -> set[str]:
    return set(subfolders(data / "LibriSpeech"))


LAYOUT = Layout(
    name="librispeech",
    marks=("LibriSpeech/{split}/", "{split}/SPEAKER/CHAPTER/*.trans.txt"),
    find=_find,
    splits=_splits,
    read=list_librispeech,
)
