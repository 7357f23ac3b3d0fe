"""Transcripts as text with times, as SubRip subtitles, and as CTM."""

from collections.abc import Sequence

from encodeonce.evaluate.transcription.run import Segment, Transcript


def clock(seconds: float, comma: str = ".") -> str:
    """Hours, minutes, seconds and thousandths: 00:01:02.345."""
    thousandths = round(seconds * 1000)
    minutes, rest = divmod(thousandths, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{comma}{rest % 1000:03}"


def with_times(transcript: Transcript) -> list[str]:
    """A line a segment, with what is suspicious about it, and below it a line a word where their times are known."""
    lines = []
    for one in transcript.segments:
        lines.append(f"[{clock(one.start)} - {clock(one.end)}] {one.text}{_flags(one)}")
        lines += [f"  [{clock(word.start)} - {clock(word.end)}] {word.word}" for word in one.words or ()]
    return lines


def srt(segments: Sequence[Segment]) -> str:
    """The segments that say something, as an .srt file has them."""
    said = [one for one in segments if one.text]
    return "\n".join(
        f"{number}\n{clock(one.start, ',')} --> {clock(one.end, ',')}\n{one.text}\n"
        for number, one in enumerate(said, 1)
    )


def ctm(name: str, segments: Sequence[Segment]) -> str:
    """A line a word whose times are known, as NIST's .ctm files have them: recording, channel, start, duration, word."""
    recording = "_".join(name.split())  # columns are what spaces separate
    words = [word for one in segments for word in one.words or ()]
    return "".join(f"{recording} 1 {word.start:.3f} {word.end - word.start:.3f} {word.word}\n" for word in words)


def _flags(segment: Segment) -> str:
    return f"  ({', '.join(segment.flags)})" if segment.flags else ""
