"""Transcripts as text with times, and as SubRip subtitles."""

from collections.abc import Sequence

from encodeonce.evaluate.transcription.run import Segment, Transcript


def clock(seconds: float, comma: str = ".") -> str:
    """Hours, minutes, seconds and thousandths: 00:01:02.345."""
    thousandths = round(seconds * 1000)
    minutes, rest = divmod(thousandths, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{comma}{rest % 1000:03}"


def with_times(transcript: Transcript) -> list[str]:
    """A line a segment, with what is suspicious about it."""
    return [f"[{clock(one.start)} - {clock(one.end)}] {one.text}{_flags(one)}" for one in transcript.segments]


def srt(segments: Sequence[Segment]) -> str:
    """The segments that say something, as an .srt file has them."""
    said = [one for one in segments if one.text]
    return "\n".join(
        f"{number}\n{clock(one.start, ',')} --> {clock(one.end, ',')}\n{one.text}\n"
        for number, one in enumerate(said, 1)
    )


def _flags(segment: Segment) -> str:
    return f"  ({', '.join(segment.flags)})" if segment.flags else ""
