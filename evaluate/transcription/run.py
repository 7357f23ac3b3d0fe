"""Audio files to texts: decode, cut, encode what no store holds, write, and say when each word is said."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encodeonce.evaluate.attention.alignment import Word
from encodeonce.evaluate.decoding.flags import flags_of
from encodeonce.evaluate.decoding.transcriber import Transcriber
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.normalise import is_unspaced
from encodeonce.evaluate.transcription.features import FeatureMaker, Heard
from encodeonce.evaluate.transcription.segments import cut
from encodeonce.evaluate.transcription.words import Aligned, WordAligner
from encodeonce.extract.audio import AudioError, Decoded, decode
from encodeonce.extract.corpora.base import Utterance
from encodeonce.extract.corpora.folder import AUDIO_SUFFIXES, list_folder


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a file, in seconds from its beginning, and what is said in it; `flags` as of any hypothesis."""

    start: float
    end: float
    text: str
    flags: tuple[str, ...]
    stored: bool
    """Its features came from the store."""
    words: tuple[Word, ...] | None = None
    """In seconds from the file's beginning; None: nobody asked, or they could not be aligned."""
    unaligned: str | None = None
    """Why they could not."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """What is said in a file; `error` where it could not be used."""

    path: Path
    seconds: float
    segments: Sequence[Segment]
    error: str | None = None
    between: str = " "
    """What stands between the texts of segments: nothing in a language without spaces."""

    @property
    def text(self) -> str:
        """Of all segments."""
        return self.between.join(segment.text for segment in self.segments if segment.text)

    def failures(self) -> Iterator[tuple[str, str]]:
        """What could not be done, and why: the file, or the words of some of its segments."""
        if self.error:
            yield str(self.path), self.error
        for one in self.segments:
            if one.unaligned:
                yield f"{self.path}, times of words from {one.start:.1f} s", one.unaligned

    def to_json(self) -> dict[str, Any]:
        """With the keys of a manifest where it has such."""
        line: dict[str, Any] = {"audio_filepath": str(self.path), "duration": self.seconds, "pred_text": self.text}
        return {**line, "segments": [asdict(s) for s in self.segments], **({"error": self.error} if self.error else {})}


@dataclass(frozen=True, slots=True)
class _Piece:
    file: int
    name: str
    """What sampling draws by: it does not depend on the other files."""
    start: float
    heard: Heard


@dataclass
class _Opened:
    """A file on its way."""

    path: Path
    seconds: float = 0.0
    error: str | None = None


def find_audio(paths: Iterable[Path]) -> list[Path]:
    """The files themselves, and those of folders, at any depth and in the order of their names.

    Raises:
        EvaluationError: nothing there, or a folder without audio.
    """
    found: list[Path] = []
    for path in paths:
        inside = [one.audio for one in list_folder(path).utterances] if path.is_dir() else [path]
        if not path.exists():
            raise EvaluationError(f"there is no {path}: give audio files, or folders of them")
        if not inside:
            raise EvaluationError(f"{path} holds no audio ({', '.join(sorted(AUDIO_SUFFIXES))})")
        found += inside
    return list(dict.fromkeys(found))


def transcribe_files(
    paths: Sequence[Path],
    features: FeatureMaker,
    transcriber: Transcriber,
    longest: float,
    frames_per_batch: int,
    device: torch.device | str = "cpu",
    language: str | None = None,
    aligner: WordAligner | None = None,
) -> Iterator[Transcript]:
    """Transcribe files in their order; one that cannot be used is a transcript with the reason.

    Args:
        longest: seconds of a segment at most.
        frames_per_batch: padding included, that the adapter reads at a time.
        language: code of the texts; None: one with spaces between words.
        aligner: that tells when words are said; None: nobody asks.
    """
    opened = [_Opened(path) for path in paths]
    batches = _batches(_pieces(opened, features, longest), frames_per_batch)
    written = _written(batches, transcriber, aligner, device, language)
    between = "" if is_unspaced(language) else " "
    done = 0
    for file, group in groupby(written, key=lambda pair: pair[0]):
        yield from (_empty(one) for one in opened[done:file])
        said = [segment for _, segment in group]
        yield Transcript(opened[file].path, opened[file].seconds, said, opened[file].error, between)
        done = file + 1
    yield from (_empty(one) for one in opened[done:])


def _empty(file: _Opened) -> Transcript:
    return Transcript(file.path, file.seconds, (), file.error)


def _pieces(files: Sequence[_Opened], features: FeatureMaker, longest: float) -> Iterator[_Piece]:
    for number, file in enumerate(files):
        try:
            whole = decode(Utterance(id=str(file.path), audio=file.path))
            file.seconds = len(whole.samples) / whole.rate
            for start, stop in cut(whole.samples, whole.rate, longest):
                piece = Decoded(np.ascontiguousarray(whole.samples[start:stop]), whole.rate)
                begin = start / whole.rate
                yield _Piece(number, f"{file.path.name} {begin:.3f}", begin, features.of(piece, str(file.path)))
        except (AudioError, EvaluationError) as error:
            file.error = str(error)


def _batches(pieces: Iterable[_Piece], most: int) -> Iterator[list[_Piece]]:
    """In their order, as many as fit; the adapter's answers do not depend on who shares a batch."""
    batch: list[_Piece] = []
    for piece in pieces:
        longest = max(len(one.heard.values[0]) for one in (*batch, piece))
        if batch and longest * (len(batch) + 1) > most:
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch


def _written(
    batches: Iterable[list[_Piece]],
    transcriber: Transcriber,
    aligner: WordAligner | None,
    device: torch.device | str,
    language: str | None,
) -> Iterator[tuple[int, Segment]]:
    for batch in batches:
        lengths = torch.tensor([len(piece.heard.values[0]) for piece in batch], device=device)
        outputs = [
            _padded([piece.heard.values[n] for piece in batch]).to(device) for n in range(len(batch[0].heard.values))
        ]
        seconds = [piece.heard.seconds for piece in batch]
        written = transcriber.write(outputs, lengths, seconds, [piece.name for piece in batch])
        aligned = [Aligned()] * len(batch)
        if aligner is not None:
            aligned = aligner.align(outputs, lengths, [one.text for one in written])
        for piece, found, words in zip(batch, written, aligned, strict=True):
            heard, end = piece.heard, piece.start + piece.heard.seconds
            flags = flags_of(found.text, heard.seconds, found.ended, language)
            placed = None if words.words is None else tuple(_later(word, piece.start, end) for word in words.words)
            yield piece.file, Segment(piece.start, end, found.text, flags, heard.stored, placed, words.reason)


def _later(word: Word, seconds: float, end: float) -> Word:
    """In the file's seconds, to the thousandth, and not beyond the segment's end."""
    return Word(word.word, *(round(min(seconds + time, end), 3) for time in (word.start, word.end)))


def _padded(values: Sequence[np.ndarray]) -> torch.Tensor:
    """`[B, T, D]`: float32, or the integers of codes."""
    kind = np.float32 if np.issubdtype(values[0].dtype, np.floating) else np.int64
    return torch.nn.utils.rnn.pad_sequence([torch.from_numpy(each.astype(kind)) for each in values], batch_first=True)
