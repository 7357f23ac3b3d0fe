"""Kaldi data directories: wav.scp, and where they are there segments, text, utt2spk, utt2lang, reco2file_and_channel.

The format: https://kaldi-asr.org/doc/data_prep.html; segments: https://kaldi-asr.org/doc/extract-segments_8cc.html
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from .base import Listing, Problem, Utterance
from .layout import Layout, make_listing, split_folder, subfolders
from .textfiles import audio_path, read_lines

_BLANKS = re.compile("[ \t]+")
_IN_ARCHIVE = re.compile(r"\.ark:\d+(\[.*\])?$")
_CHANNELS = {"A": 0, "B": 1, "1": 0, "2": 1}


@dataclass(frozen=True, slots=True)
class _Recording:
    audio: Path
    channel: int | None
    where: str
    fault: str | None


@dataclass(frozen=True, slots=True)
class _Segment:
    recording: str
    offset: float
    duration: float | None
    channel: int | None
    where: str


def list_kaldi(root: Path, split: str = "") -> Listing:
    """Utterances in the order of segments, or of wav.scp where there are no segments.

    `reco2file_and_channel` picks a channel only where wav.scp names one file for several recordings: with one file
    a recording (sw02001-B.wav) the channel has been taken out already, and its second channel does not exist.
    """
    problems: list[Problem] = []
    recordings = _read_recordings(root, problems)
    texts = _read_table(root / "text", problems)
    speakers = _read_table(root / "utt2spk", problems)
    languages = _read_table(root / "utt2lang", problems)
    if (root / "segments").is_file():
        segments = _read_segments(root / "segments", problems)
    else:
        segments = {id: _Segment(id, 0.0, None, None, recording.where) for id, recording in recordings.items()}

    utterances: list[Utterance] = []
    for id, segment in segments.items():
        recording = recordings.get(segment.recording)
        if recording is None:
            problems.append(Problem(id, f"recording {segment.recording!r} does not stand in wav.scp", segment.where))
        elif recording.fault is not None:
            problems.append(Problem(id, recording.fault, recording.where))
        else:
            utterances.append(
                Utterance(
                    id=id,
                    audio=recording.audio,
                    offset=segment.offset,
                    duration=segment.duration,
                    channel=recording.channel if segment.channel is None else segment.channel,
                    text=texts.get(id, ("", ""))[0] or None,
                    speaker=speakers.get(id, ("", ""))[0] or None,
                    language=languages.get(id, ("", ""))[0] or None,
                    where=segment.where,
                )
            )
    named_in = "segments" if (root / "segments").is_file() else "wav.scp"
    lost = [(id, where) for id, (_, where) in texts.items() if id not in segments]
    problems += [Problem(id, f"a transcript without its audio: {id!r} is not in {named_in}", at) for id, at in lost]
    return make_listing(LAYOUT.name, root, utterances, problems)


def _read_table(path: Path, problems: list[Problem]) -> dict[str, tuple[str, str]]:
    """key -> (rest of the line, where it stands); of equal keys the first stays. Empty where there is no file."""
    table: dict[str, tuple[str, str]] = {}
    if not path.is_file():
        return table
    for number, line in read_lines(path, problems):
        line = line.strip(" \t")
        # Blanks alone separate in Kaldi; str.split would also cut at the wide spaces of Chinese and Japanese.
        key, *rest = line.split(None, 1) if line.isascii() else _BLANKS.split(line, maxsplit=1)
        where = f"{path.name}:{number}"
        if key in table:
            reason = f"duplicate id {key!r}, first seen at {table[key][1]}"
            problems.append(Problem(key, reason, where))
        elif key:
            table[key] = (rest[0] if rest else ""), where
    return table


def _read_recordings(root: Path, problems: list[Problem]) -> dict[str, _Recording]:
    wav_scp = _read_table(root / "wav.scp", problems)
    channels = _read_table(root / "reco2file_and_channel", problems)
    sharing = Counter(source for source, _ in wav_scp.values())
    recordings = {}
    for id, (source, where) in wav_scp.items():
        channel, fault = None, _source_fault(source)
        if fault is None and sharing[source] > 1 and id in channels:
            named = channels[id][0].rpartition(" ")[2]
            channel = _CHANNELS.get(named)
            if channel is None:
                fault = f"channel {named!r} in reco2file_and_channel: expected A, B, 1 or 2"
        recordings[id] = _Recording(audio_path(source, root), channel, where, fault)
    return recordings


def _source_fault(source: str) -> str | None:
    if source.endswith("|"):
        return (
            f"{source!r} is a command, and commands in wav.scp are not run: write its output to a file "
            "(wav-copy scp:wav.scp ..., or the command with '> FILE.wav') and name that file"
        )
    if _IN_ARCHIVE.search(source):
        return f"{source!r} lies inside a Kaldi archive: write it to a file of its own with wav-copy"
    if not source:
        return "no file: expected 'RECORDING PATH'"
    return None


def _read_segments(path: Path, problems: list[Problem]) -> dict[str, _Segment]:
    """`UTTERANCE RECORDING START END [CHANNEL]`, in seconds; an end of -1 is the end of the recording."""
    segments = {}
    for id, (rest, where) in _read_table(path, problems).items():
        fields = _BLANKS.split(rest)
        try:
            recording, start, end = fields[0], float(fields[1]), float(fields[2])
            channel = int(fields[3]) if len(fields) == 4 else None
            if len(fields) > 4:
                raise ValueError
        except (IndexError, ValueError):
            reason = f"{rest!r}: expected 'RECORDING START END' with the times in seconds"
            problems.append(Problem(id, reason, where))
            continue
        if end != -1 and not end > start:
            problems.append(Problem(id, f"ends at {end} s, before it starts at {start} s", where))
            continue
        # As lhotse does, so that 0.1 to 0.3 lasts 0.2 s and not 0.19999999999999998 s.
        duration = None if end == -1 else round(end - start, 8)
        segments[id] = _Segment(recording, start, duration, channel, where)
    return segments


def _find(data: Path, split: str) -> Path | None:
    folders = (split_folder(data, split), data / "data" / split)
    return next((folder for folder in folders if folder is not None and (folder / "wav.scp").is_file()), None)


def _splits(data: Path) -> set[str]:
    return {name for base in (data, data / "data") for name in subfolders(base) if (base / name / "wav.scp").is_file()}


LAYOUT = Layout(
    name="kaldi",
    marks=("{split}/wav.scp",),
    find=_find,
    splits=_splits,
    read=list_kaldi,
)
