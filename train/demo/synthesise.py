"""Make the demo's corpus anew: python -m encodeonce.train.demo.synthesise FOLDER.

It needs flite with its voices and festival with festvox-us-slt-hts (Debian packages of those names). The sentences and who
says them are always the same; the audio follows the versions of the programs.
"""

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import soundfile
from encodeonce.train.demo.grammar import sentences

RATE = 16_000
SEED = 6
COUNTS = {"train": 400, "sentences": 60, "voice": 60}
GAP_SECONDS = 0.2
"""Silence between utterances, which stand one after the other in one file a split."""
MARGIN_SECONDS = 0.06
"""Silence that is left before and after an utterance."""
LOUDNESS = 0.06
"""Root mean square of an utterance; full scale is 1."""
BITS_PER_SECOND = 16_000


@dataclass(frozen=True, slots=True)
class Voice:
    """A voice: the command that writes a WAV file, and how much faster it is played to make another speaker of it."""

    name: str
    speak: Callable[[str, Path], None]
    shift: float = 1.0
    """Pitch and formants by this factor, as of a speaker with a vocal tract that much shorter."""


def flite(voice: str, stretch: float = 1.0) -> Callable[[str, Path], None]:
    """A voice of flite, slower by `stretch`."""

    def speak(text: str, target: Path) -> None:
        setting = ["--setf", f"duration_stretch={stretch}"]
        subprocess.run(["flite", "-voice", voice, *setting, "-t", text, "-o", str(target)], check=True)

    return speak


def festival(voice: str) -> Callable[[str, Path], None]:
    """A voice of festival."""

    def speak(text: str, target: Path) -> None:
        subprocess.run(["text2wave", "-eval", f"({voice})", "-o", str(target)], input=text.encode(), check=True)

    return speak


KNOWN = (
    Voice("kal", flite("kal16")),
    Voice("rms", flite("rms")),
    Voice("slt", flite("slt")),
    Voice("slt-hts", festival("voice_cmu_us_slt_arctic_hts")),
    Voice("rms-small", flite("rms", stretch=1.15), shift=1.18),
)
HELD_OUT = Voice("awb", flite("awb"))


def say(voice: Voice, text: str) -> np.ndarray:
    """A sentence, `[samples]` float32 at 16 kHz, trimmed, at the corpus's loudness."""
    import torch
    from torchaudio.functional import resample

    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "said.wav"
        voice.speak(text, target)
        samples, rate = soundfile.read(target, dtype="float32")
    samples = resample(torch.from_numpy(samples), round(rate * voice.shift), RATE).numpy()
    loud = np.flatnonzero(np.abs(samples) > 0.02 * np.abs(samples).max())
    margin = round(MARGIN_SECONDS * RATE)
    samples = samples[max(0, loud[0] - margin) : loud[-1] + margin]
    return (samples * (LOUDNESS / np.sqrt(np.mean(samples**2)))).clip(-0.99, 0.99)


def write_split(folder: Path, name: str, texts: Sequence[str], voices: Sequence[Voice]) -> float:
    """NAME.ogg, all utterances one after the other, and NAME.jsonl, NeMo's manifest of them; the seconds of speech."""
    gap = np.zeros(round(GAP_SECONDS * RATE), np.float32)
    rows, pieces, at = [], [gap], len(gap)
    for number, (text, voice) in enumerate(zip(texts, voices, strict=True)):
        samples = say(voice, text)
        rows.append(
            {
                "id": f"{name}-{number:03d}",
                "audio_filepath": f"{name}.ogg",
                "offset": round(at / RATE, 4),
                "duration": round(len(samples) / RATE, 4),
                "text": text,
                "speaker": voice.name,
                "language": "en",
            }
        )
        pieces += [samples, gap]
        at += len(samples) + len(gap)
    # libsndfile: 6 to 256 kbit/s a channel, the less the higher the level.
    level = 1 - (BITS_PER_SECOND - 6_000) / 250_000
    soundfile.write(
        folder / f"{name}.ogg", np.concatenate(pieces), RATE, format="OGG", subtype="OPUS", compression_level=level
    )
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return sum(row["duration"] for row in rows)


def main() -> None:
    """Write all splits."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    told, draw = sentences(SEED), random.Random(SEED)
    for name, count in COUNTS.items():
        voices = [HELD_OUT] * count if name == "voice" else [KNOWN[number % len(KNOWN)] for number in range(count)]
        draw.shuffle(voices)
        seconds = write_split(folder, name, list(islice(told, count)), voices)
        print(
            f"{name}: {count} utterances, {seconds / 60:.1f} minutes, {(folder / name).with_suffix('.ogg').stat().st_size:,} bytes"
        )


if __name__ == "__main__":
    main()
