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

import platformdirs
from encodeonce.extract.corpora.base import Utterance

SCHEMA = """
CREATE TABLE IF NOT EXISTS audio (
    path TEXT, size INTEGER, mtime_ns INTEGER, offset REAL, duration REAL, channel INTEGER, rate INTEGER,
    samples INTEGER NOT NULL, sha256 TEXT,
    PRIMARY KEY (path, offset, duration, channel, rate)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS facts (
    path TEXT, size INTEGER, mtime_ns INTEGER, kind TEXT, value TEXT NOT NULL,
    PRIMARY KEY (path, kind)
) WITHOUT ROWID;
"""
VERSION = 1
"""Part of the file's name: raise it when what is kept changes its meaning."""


@dataclass(frozen=True, slots=True)
class AudioFacts:
    """Samples at the encoder's rate, and their sha256 where the audio has been decoded."""

    samples: int
    sha256: str | None


def cache_folder() -> Path:
    """The cache folder: ENCODEONCE_CACHE, or the platform's own place for caches."""
    return Path(os.environ.get("ENCODEONCE_CACHE") or platformdirs.user_cache_path("encodeonce"))


class FileCache:
    """The cache database. A cache that cannot be opened or written is silently none: everything is then worked out anew."""

    def __init__(self, folder: Path | None = None) -> None:
        folder = folder or cache_folder()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._base = self._open(str(folder / f"files-{VERSION}.sqlite"))
        except (OSError, sqlite3.Error):
            self._base = self._open(":memory:")

    @staticmethod
    def _open(path: str) -> sqlite3.Connection:
        base = sqlite3.connect(path, timeout=10, check_same_thread=False)
        base.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;" + SCHEMA)
        return base

    def close(self) -> None:
        """Close the database."""
        self._base.close()

    def audio(self, utterances: Sequence[Utterance], rate: int) -> list[AudioFacts | None]:
        """What is known of utterances' audio; None where nothing is, or where the file has changed since."""
        stamps = file_stamps(u.audio for u in utterances)
        found: list[AudioFacts | None] = []
        with closing(self._base.cursor()) as cursor:
            for utterance in utterances:
                path = str(utterance.audio)
                row = None
                if stamps[path] is not None:
                    try:
                        row = cursor.execute(
                            "SELECT size, mtime_ns, samples, sha256 FROM audio "
                            "WHERE path = ? AND offset = ? AND duration = ? AND channel = ? AND rate = ?",
                            _audio_key(utterance, rate),
                        ).fetchone()
                    except sqlite3.Error:
                        row = None
                found.append(AudioFacts(row[2], row[3]) if row and (row[0], row[1]) == stamps[path] else None)
        return found

    def keep_audio(self, facts: Iterable[tuple[Utterance, AudioFacts]], rate: int) -> None:
        """Keep what has been learnt of utterances' audio."""
        facts = list(facts)
        stamps = file_stamps(utterance.audio for utterance, _ in facts)
        rows = []
        for utterance, fact in facts:
            stamp = stamps[str(utterance.audio)]
            path, *key = _audio_key(utterance, rate)
            if stamp is not None:
                rows.append((path, *stamp, *key, fact.samples, fact.sha256))
        self._write("INSERT OR REPLACE INTO audio VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def fact(self, path: Path, kind: str) -> Any:
        """Something known of a file (a digest, a probe's result), or None."""
        path = path.resolve()
        stamp = file_stamps([path])[str(path)]
        try:
            row = self._base.execute(
                "SELECT size, mtime_ns, value FROM facts WHERE path = ? AND kind = ?", (str(path), kind)
            ).fetchone()
        except sqlite3.Error:
            return None
        return json.loads(row[2]) if row and (row[0], row[1]) == stamp else None

    def keep_fact(self, path: Path, kind: str, value: Any) -> None:
        """Keep something learnt of a file; `value` is JSON."""
        path = path.resolve()
        stamp = file_stamps([path])[str(path)]
        if stamp is not None:
            self._write(
                "INSERT OR REPLACE INTO facts VALUES (?, ?, ?, ?, ?)", [(str(path), *stamp, kind, json.dumps(value))]
            )

    def _write(self, statement: str, rows: list[tuple[Any, ...]]) -> None:
        try:
            with self._base:
                self._base.executemany(statement, rows)
        except sqlite3.Error:
            self._base.rollback()


def file_stamps(paths: Iterable[Path]) -> dict[str, tuple[int, int] | None]:
    """Size and modification time (ns) of files; None for one that is not there."""
    stamps: dict[str, tuple[int, int] | None] = {}
    for path in map(str, paths):
        if path not in stamps:
            try:
                status = os.stat(path)
                stamps[path] = status.st_size, status.st_mtime_ns
            except (OSError, ValueError):
                stamps[path] = None
    return stamps


def _audio_key(utterance: Utterance, rate: int) -> tuple[str, float, float, int, int]:
    duration = -1.0 if utterance.duration is None else utterance.duration
    channel = -1 if utterance.channel is None else utterance.channel
    return os.path.abspath(utterance.audio), utterance.offset, duration, channel, rate
