"""What was once learnt of a file, kept by path, size and modification time in the user's cache folder.

Sample counts and hashes of audio make a second run instant; digests of weights spare hashing gigabytes. Everything here
can be made again: deleting the folder costs time, never a wrong answer.
"""

import json
import os
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encodeonce.extract.corpora.base import Utterance
from encodeonce.store.cache import cache_folder

SCHEMA = """
CREATE TABLE IF NOT EXISTS audio (
    path TEXT, stamp TEXT, offset REAL, duration REAL, channel INTEGER, rate INTEGER,
    samples INTEGER NOT NULL, sha256 TEXT,
    PRIMARY KEY (path, offset, duration, channel, rate)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS facts (
    path TEXT, stamp TEXT, kind TEXT, value TEXT NOT NULL,
    PRIMARY KEY (path, kind)
) WITHOUT ROWID;
"""
VERSION = 2
"""Part of the file's name: raise it when what is kept changes its meaning."""


@dataclass(frozen=True, slots=True)
class AudioFacts:
    """Samples at the encoder's rate, and their sha256 where the audio has been decoded."""

    samples: int
    sha256: str | None


class FileCache:
    """The cache database. A cache that cannot be opened or written is silently none: everything is then worked out anew."""

    def __init__(self, folder: Path | None = None) -> None:
        # What is learnt is kept under the stamp from before the file was read: a change meanwhile shows the next time.
        self._asked: dict[str, str | None] = {}
        folder = folder or cache_folder()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._base = self._open(str(folder / f"files-{VERSION}.sqlite"))
        except (OSError, sqlite3.Error):
            self._base = self._open(":memory:")

    @staticmethod
    def _open(path: str) -> sqlite3.Connection:
        base = sqlite3.connect(path, timeout=10, check_same_thread=False)
        # No write-ahead log: its shared memory does not reach from machine to machine, and home folders do.
        base.executescript("PRAGMA journal_mode=TRUNCATE; PRAGMA synchronous=NORMAL;" + SCHEMA)
        return base

    def close(self) -> None:
        """Close the database."""
        self._base.close()

    def audio(self, utterances: Sequence[Utterance], rate: int) -> list[AudioFacts | None]:
        """What is known of utterances' audio; None where nothing is, or where the file has changed since."""
        stamps = self._stamps(u.audio for u in utterances)
        found: list[AudioFacts | None] = []
        with closing(self._base.cursor()) as cursor:
            for utterance in utterances:
                path = str(utterance.audio)
                row = None
                if stamps[path] is not None:
                    try:
                        row = cursor.execute(
                            "SELECT stamp, samples, sha256 FROM audio "
                            "WHERE path = ? AND offset = ? AND duration = ? AND channel = ? AND rate = ?",
                            _audio_key(utterance, rate),
                        ).fetchone()
                    except sqlite3.Error:
                        row = None
                found.append(AudioFacts(row[1], row[2]) if row and row[0] == stamps[path] else None)
        return found

    def keep_audio(self, facts: Iterable[tuple[Utterance, AudioFacts]], rate: int) -> None:
        """Keep what has been learnt of utterances' audio."""
        rows = []
        for utterance, fact in facts:
            stamp = self._asked.get(str(utterance.audio))
            path, *key = _audio_key(utterance, rate)
            if stamp is not None:
                rows.append((path, stamp, *key, fact.samples, fact.sha256))
        self._write("INSERT OR REPLACE INTO audio VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def fact(self, path: Path, kind: str) -> Any:
        """Something known of a file (a digest, a probe's result), or None."""
        path = path.resolve()
        stamp = self._stamps([path])[str(path)]
        try:
            row = self._base.execute(
                "SELECT stamp, value FROM facts WHERE path = ? AND kind = ?", (str(path), kind)
            ).fetchone()
        except sqlite3.Error:
            return None
        return json.loads(row[1]) if row and row[0] == stamp else None

    def keep_fact(self, path: Path, kind: str, value: Any) -> None:
        """Keep something learnt of a file since `fact` was asked for it; `value` is JSON."""
        path = path.resolve()
        stamp = self._asked.get(str(path))
        if stamp is not None:
            self._write(
                "INSERT OR REPLACE INTO facts VALUES (?, ?, ?, ?)", [(str(path), stamp, kind, json.dumps(value))]
            )

    def _stamps(self, paths: Iterable[Path]) -> dict[str, str | None]:
        stamps = file_stamps(paths)
        self._asked.update(stamps)
        return stamps

    def _write(self, statement: str, rows: list[tuple[Any, ...]]) -> None:
        try:
            with self._base:
                self._base.executemany(statement, rows)
        except sqlite3.Error:
            self._base.rollback()


def file_stamps(paths: Iterable[Path]) -> dict[str, str | None]:
    """Size, modification and change time (ns) of files; None for one that is not there.

    The change time tells a file that was replaced by one of the same size with its old modification time kept.
    """
    stamps: dict[str, str | None] = {}
    for path in map(str, paths):
        if path not in stamps:
            try:
                status = os.stat(path)
                stamps[path] = f"{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"
            except (OSError, ValueError):
                stamps[path] = None
    return stamps


def _audio_key(utterance: Utterance, rate: int) -> tuple[str, float, float, int, int]:
    duration = -1.0 if utterance.duration is None else utterance.duration
    channel = -1 if utterance.channel is None else utterance.channel
    return os.path.abspath(utterance.audio), utterance.offset, duration, channel, rate
