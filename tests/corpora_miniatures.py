"""Corpora of a few seconds in their true layouts, for the tests of encodeonce.extract.corpora."""

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import soundfile

RATE = 16_000


def write_audio(path: Path, seconds: float = 0.1, channels: int = 1, rate: int = RATE) -> Path:
    """A quiet tone in the format of the file's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.1 * np.sin(np.arange(round(seconds * rate)) / 20)
    soundfile.write(path, np.repeat(wave[:, None], channels, axis=1), rate)
    return path


def write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def write_jsonl(path: Path, rows: Iterable[Mapping[str, object]]) -> Path:
    return write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_table(path: Path, rows: list[dict[str, object]], delimiter: str = ",") -> Path:
    """As csv.DictWriter has it: cells quoted where they must be, CRLF, None as an empty cell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def librispeech(folder: Path, chapters: Mapping[str, Mapping[str, str | None]]) -> Path:
    """`chapters`: {"103-1240": {"103-1240-0000": transcript or None}}; every utterance gets its flac."""
    for chapter, transcripts in chapters.items():
        inside = folder / chapter.replace("-", "/")
        for id in transcripts:
            write_audio(inside / f"{id}.flac")
        lines = [f"{id} {text}\n" for id, text in transcripts.items() if text is not None]
        write_text(inside / f"{chapter}.trans.txt", "".join(lines))
    return folder


def mustc(pair_folder: Path, split: str, segments: list[tuple[str, str, str]], lines: Mapping[str, list[str]]) -> Path:
    """`segments`: (wav, offset, duration) as the yaml writes them; `lines`: texts by language."""
    root = pair_folder / "data" / split
    entries = [
        f"- {{duration: {duration}, offset: {offset}, rW: 3, speaker_id: spk.{wav[4]}, uW: 0, wav: {wav}}}\n"
        for wav, offset, duration in segments
    ]
    write_text(root / "txt" / f"{split}.yaml", "".join(entries))
    for language, texts in lines.items():
        write_text(root / "txt" / f"{split}.{language}", "".join(f"{text}\n" for text in texts))
    for wav in {wav for wav, *_ in segments}:
        write_audio(root / "wav" / wav, seconds=20)
    return root
