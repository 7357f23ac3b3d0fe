"""What a recogniser has heard so far, one JSON line an utterance: what a killed run goes on from."""

import fcntl
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from encodeonce.evaluate.errors import EvaluationError
from encodeonce.store.files import explain, make_folder
from encodeonce.store.identity import describe_difference, differences

NAME = "transcripts.jsonl"


@dataclass(frozen=True, slots=True)
class Heard:
    """Which audio a text is of: the original or the decoded audio of an utterance, told by its id and its audio's hash."""

    audio: Literal["original", "resynthesised"]
    id: str
    sha256: str


class Transcripts:
    """A folder's file of transcripts, held by one process. Lines are appended whole; a line that a kill cut short is dropped.

    Args:
        request: what the texts depend on beside the audio. It is the file's first line.

    Raises:
        EvaluationError: the file is of another request, damaged, or held by another process.
        StoreError: it cannot be written.
    """

    def __init__(self, folder: Path, request: Mapping[str, Any]) -> None:
        self.path = folder / NAME
        try:
            make_folder(folder)
            self._file = open(self.path, "a+b")  # noqa: SIM115 (held open for as long as the lock)
        except OSError as error:
            raise explain(error, self.path) from error
        try:
            self._texts = self._load(json.loads(json.dumps(request)))
        except BaseException:
            self._file.close()
            raise

    def _load(self, request: dict[str, Any]) -> dict[Heard, str]:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EvaluationError(
                f"{self.path} is held by another process; wait for it, or give another --to"
            ) from None
        self._file.seek(0)
        data = self._file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._file.truncate(len(whole))
        lines = whole.splitlines()
        if not lines:
            self._write(request)
            return {}
        texts = {}
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                if number == 1:
                    self._check(entry, request)
                else:
                    texts[Heard(entry["audio"], entry["id"], entry["audio_sha256"])] = str(entry["text"])
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise EvaluationError(
                    f"{self.path}, line {number}, is damaged: {error!r}; take the line away, or the file"
                ) from error
        return texts

    def _check(self, standing: dict[str, Any], request: dict[str, Any]) -> None:
        if found := [describe_difference(*difference) for difference in differences(request, standing)]:
            raise EvaluationError(
                f"{self.path} holds transcripts of another request ({'; '.join(found)}); give another --to, or take the file away"
            )

    def get(self, heard: Heard) -> str | None:
        """The text, where there is one."""
        return self._texts.get(heard)

    def add(self, heard: Heard, text: str) -> None:
        """Keep a text, at once."""
        self._write({"audio": heard.audio, "id": heard.id, "audio_sha256": heard.sha256, "text": text})
        self._texts[heard] = text

    def _write(self, entry: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise explain(error, self.path) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
