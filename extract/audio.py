"""The one place that reads audio: how long it is, and its samples, mixed to one channel at the encoder's rate."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from encodeonce.extract.corpora.base import Utterance
from encodeonce.store.identity import audio_hash

RESAMPLER = "torchaudio.functional.resample, sinc_interp_hann, width 6, rolloff 0.99"
MIXING = "mean of the channels"
END_TOLERANCE_SECONDS = 0.1
"""Segments may end this much after their file: manifests round."""
WHOLE_FILE_SECONDS = 0.02
"""A segment from 0 that ends this near the end of its file is the whole file: manifests round."""
COUNTED_HEADERS = {"WAV", "WAVEX", "FLAC", "AIFF", "AU", "W64", "RF64", "CAF", "SPHERE", "NIST", "OGG", "MP3"}
"""Containers whose header states the exact number of samples; others are decoded to be counted."""
STATED_DATA = re.compile(r"^data : (?P<stated>\d+) \(should be (?P<there>\d+)\)", re.MULTILINE)
"""libsndfile's word on a WAV file whose data chunk is not as long as its header says; it would read what is there."""
UNSTATED_BYTES = 0x7FFF0000
"""A data chunk of this many bytes was written to a pipe, by a program that could not know its length."""
UNDECODABLE = (soundfile.LibsndfileError, OSError, RuntimeError, TypeError, ValueError, MemoryError)
"""What soundfile raises; TypeError where a file's name ends in .raw, the last two where a header promises the impossible."""
MOST_SAMPLES_PER_BYTE = 8192
"""More than any codec packs into a byte, silence included: a header that promises more is not believed."""
MOST_PHASES = 2000
"""44,099 Hz to 16 kHz would be 16,000, which took a minute and 12 GB for a second of audio; 44.1 kHz is 160."""
PREROLL_SECONDS = {"MP3": 1.0, "OGG": 5.0}
"""Decoded before a segment of lossy audio and thrown away: a decoder that starts inside a file needs a while to give what it
gives from the beginning (measured: MP3 is off by up to 0.04 without, by rounding with 0.25 s; Opus of 16 kHz needs 3 s)."""
BLOCK_SAMPLES = 1 << 20


class AudioError(Exception):
    """Audio that cannot be used, with the reason; never the end of a run."""


@dataclass(frozen=True, slots=True)
class Header:
    """What the header of a file says: samples a second, channels, samples a channel (None: decode to know), and how many
    samples to decode and throw away before a segment."""

    rate: int
    channels: int
    samples: int | None
    preroll: int = 0


def read_header(path: Path) -> Header:
    """Read a file's header, without decoding.

    Raises:
        AudioError: no such file, an empty one, or none that libsndfile knows.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise AudioError(f"{path} is no file: it is a pipe, a socket or a device")
        info = soundfile.info(str(path))
    except UNDECODABLE as error:
        raise AudioError(explain(path, error)) from None
    stated = STATED_DATA.search(info.extra_info) if info.format.startswith("WAV") else None
    if stated and int(stated["stated"]) < UNSTATED_BYTES:
        there = int(stated["there"])
        promised = info.frames * int(stated["stated"]) // there if info.frames and there else int(stated["stated"])
        if promised - info.frames > END_TOLERANCE_SECONDS * info.samplerate:
            raise AudioError(
                f"{path} is truncated: {info.frames} of {promised} samples are there, its header promises them all"
            )
    believable = 0 <= info.frames <= MOST_SAMPLES_PER_BYTE * path.stat().st_size
    if info.format == "FLAC" and not believable:
        raise AudioError(f"{path} does not say how long it is (written through a pipe?); encode it again into a file")
    counted = info.format in COUNTED_HEADERS and believable
    preroll = int(PREROLL_SECONDS.get(info.format, 0.0) * info.samplerate)
    return Header(info.samplerate, info.channels, info.frames if counted else None, preroll)


def explain(path: Path, error: Exception) -> str:
    """Why a file could not be opened, from the file itself where libsndfile says little."""
    try:
        size = path.stat().st_size
    except OSError as problem:
        return f"cannot read {path}: {(problem.strerror or str(problem)).lower()}"
    if path.is_dir():
        return f"cannot read {path}: it is a folder"
    if size == 0:
        return f"{path} is empty (0 bytes)"
    detail = getattr(error, "error_string", str(error)).strip().rstrip(".")
    return f"{path} is no audio that can be decoded: {detail[:1].lower()}{detail[1:]}"


def segment(utterance: Utterance, header: Header, total: int) -> tuple[int, int]:
    """First sample and number of samples of an utterance in its file of `total` samples a channel.

    Raises:
        AudioError: the segment lies outside the file.
    """
    start = round(utterance.offset * header.rate)
    if utterance.duration is None:
        count = total - start
    else:
        count = round(utterance.duration * header.rate)
        if start == 0 and abs(count - total) <= WHOLE_FILE_SECONDS * header.rate:
            count = total
    over = start + count - total
    if not 0 <= start <= total or count < 0 or over > END_TOLERANCE_SECONDS * header.rate:
        raise AudioError(
            f"segment {utterance.offset:g} s to {(start + count) / header.rate:g} s lies outside "
            f"{utterance.audio} of {total / header.rate:g} s"
        )
    return start, count - max(over, 0)


def resampled_length(samples: int, rate: int, target: int) -> int:
    """How many samples `torchaudio.functional.resample` makes of `samples`: a ceiling taken in float32, as there.

    Beyond 2**24 samples float32 may round up past what the convolution gives, which then is the length.
    """
    if rate == target or not samples:
        return samples
    common = math.gcd(rate, target)
    into, of = target // common, rate // common
    return min(int(np.ceil(np.float32(into * samples / of))), (samples // of + 1) * into)


def count_samples(utterance: Utterance, rate: int) -> int:
    """How many samples at `rate` an utterance will have: from the header, or by decoding where it does not say."""
    header = read_header(utterance.audio)
    total = header.samples
    if total is None:
        total = len(_read(utterance.audio, 0, -1))
    return resampled_length(segment(utterance, header, total)[1], header.rate, rate)


@dataclass(frozen=True, slots=True)
class Decoded:
    """The samples of an utterance `[samples]` float32 at the file's own rate, mixed to one channel; full scale is -1 to 1."""

    samples: np.ndarray
    rate: int

    def sha256(self, rate: int) -> str:
        """The audio hash for an encoder of this rate. It is taken before resampling: the resampler's last bits
        depend on the processor and its threads, and the same audio must have the same hash everywhere."""
        return audio_hash(self.samples, None if self.rate == rate else self.rate)

    def at(self, rate: int) -> np.ndarray:
        """The samples at another rate."""
        return np.ascontiguousarray(resample(self.samples, self.rate, rate))


def decode(utterance: Utterance) -> Decoded:
    """Decode an utterance, and nothing of its file beyond its segment.

    Raises:
        AudioError: cannot be decoded, ends before its header says, holds NaN or infinity, or lacks the channel.
    """
    path = utterance.audio
    header = read_header(path)
    if utterance.channel is not None and not 0 <= utterance.channel < header.channels:
        raise AudioError(f"{path} has {header.channels} channels, no channel {utterance.channel}")
    if header.samples is None:
        whole = _read(path, 0, -1)
        start, count = segment(utterance, header, len(whole))
        values = whole[start : start + count]
    else:
        start, count = segment(utterance, header, header.samples)
        before = min(start, header.preroll)
        values = _read(path, start - before, before + count)[before:]
        if len(values) < count:
            raise AudioError(
                f"{path} is truncated: {len(values)} of {count} samples could be decoded, its header promises them all"
            )
    mono = values[:, utterance.channel or 0] if utterance.channel is not None or values.shape[1] == 1 else None
    if mono is None:
        mono = values.mean(axis=1, dtype=np.float32)
    finite = np.isfinite(mono)
    if not finite.all():
        at = (start + int(np.argmin(finite))) / header.rate
        raise AudioError(
            f"{path} holds {int((~finite).sum())} samples that are NaN or infinite, the first at {at:.3f} s"
        )
    return Decoded(np.ascontiguousarray(mono), header.rate)


def read_audio(utterance: Utterance, rate: int) -> np.ndarray:
    """The samples of an utterance, `[samples]` float32 at `rate`, channels averaged or one picked; see `decode`."""
    return decode(utterance).at(rate)


def resample(samples: np.ndarray, rate: int, target: int) -> np.ndarray:
    """`[samples]` float32 from one rate to another; unchanged where they are equal."""
    if rate == target or not len(samples):
        return samples
    if target // math.gcd(rate, target) > MOST_PHASES:
        raise AudioError(
            f"audio of {rate} Hz shares too little with {target} Hz: torchaudio's resampler would need a filter of "
            f"{target // math.gcd(rate, target)} phases; convert the file to a common rate first"
        )
    try:
        import torch
        from torchaudio.functional import resample as torchaudio_resample
    except (ImportError, OSError) as error:
        raise AudioError(
            f"audio of {rate} Hz needs torchaudio to become {target} Hz, which does not load: {error}"
        ) from error
    return torchaudio_resample(torch.from_numpy(np.ascontiguousarray(samples)), rate, target).numpy()


def _read(path: Path, start: int, count: int) -> np.ndarray:
    try:
        file = soundfile.SoundFile(str(path))
    except UNDECODABLE as error:
        raise AudioError(explain(path, error)) from None
    with file:
        try:
            if start:
                file.seek(start)
            if count >= 0:
                return file.read(count, dtype="float32", always_2d=True)
            # In blocks: a header that does not know the length makes soundfile allocate all that it could be.
            blocks = [np.empty((0, file.channels), np.float32)]
            while len(block := file.read(BLOCK_SAMPLES, dtype="float32", always_2d=True)):
                blocks.append(block)
            return np.concatenate(blocks)
        except UNDECODABLE as error:
            detail = str(getattr(error, "error_string", error)).removeprefix("Error : ").strip().rstrip(".")
            raise AudioError(f"{path} is truncated or damaged, it cannot be decoded to the end: {detail}") from None
