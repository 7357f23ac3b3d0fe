"""The audio of the few utterances that a page plays, inside the page: MP3, one channel of 16 kHz.

Every browser plays MP3; libsndfile makes it six times faster than Opus (measured: 0.08 s instead of 0.52 s for 16 s of speech, at
28 to 29 kbit/s each).
"""

import io
from base64 import b64encode
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import soundfile
from encodeonce.evaluate.evaluation import Scored
from encodeonce.evaluate.hypotheses import Hypothesis
from encodeonce.extract.audio import AudioError, read_audio, read_header
from encodeonce.extract.corpora.base import Utterance
from encodeonce.store.errors import StoreError

RATE = 16_000
MOST_BYTES = 6_000_000
"""Of all audio of a page together; about twenty minutes."""
MOST_SECONDS = 120.0
"""Longer utterances are left out: one would take the room of all."""
THREADS = 4
QUALITY = 0.7
"""Of variable-rate MP3 from best, 0, to smallest, 1; here about 29 kbit/s."""


def audio_of(chosen: Sequence[Scored], files: Mapping[str, Path]) -> tuple[dict[str, str], dict[str, str]]:
    """Data URIs by utterance id, and by id why others with a file have none.

    A manifest's `offset` and duration say which part of a file an utterance is.
    """
    sources = {one.source.id: one.source for one in chosen if one.source.id in files}
    playable: dict[str, str] = {}
    silent: dict[str, str] = {}
    left = MOST_BYTES
    with ThreadPoolExecutor(min(THREADS, max(len(sources), 1)), "audio") as pool:
        made = pool.map(lambda source: _packed(source, files[source.id]), sources.values())
        for name, (uri, problem) in zip(sources, made, strict=True):
            if uri is None or len(uri) > left:
                silent[name] = problem or f"a page carries {MOST_BYTES // 1_000_000} MB of audio at most"
                continue
            playable[name] = uri
            left -= len(uri)
    return playable, silent


def _packed(source: Hypothesis, path: Path) -> tuple[str | None, str]:
    """A data URI, or why there is none."""
    offset = source.metadata.get("offset")
    part = isinstance(offset, int | float) and source.duration is not None
    utterance = Utterance("", path, float(offset) if part else 0.0, source.duration if part else None)
    try:
        header = read_header(path)
        if not part and (header.samples or 0) > MOST_SECONDS * header.rate:
            return None, f"{path} is longer than {MOST_SECONDS:.0f} s"
        samples = read_audio(utterance, RATE)
    except (AudioError, StoreError) as error:
        return None, str(error)
    if len(samples) > MOST_SECONDS * RATE:
        return None, f"its part of {path} is longer than {MOST_SECONDS:.0f} s"
    packed = io.BytesIO()
    soundfile.write(packed, samples, RATE, format="MP3", subtype="MPEG_LAYER_III", compression_level=QUALITY)
    return "data:audio/mpeg;base64," + b64encode(packed.getvalue()).decode("ascii"), ""
