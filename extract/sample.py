"""A few utterances of a split, the same each time, to try an encoder on."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from encodeonce.extract.audio import AudioError, read_audio
from encodeonce.extract.corpora.base import Utterance
from encodeonce.extract.encoders.base import Encoder

SAMPLE_UTTERANCES = 6
SAMPLE_SECONDS = 20.0
SHORTER = 0.1
"""Each utterance of the sample is cut by this share of the longest shorter than the one before: lengths differ where all
audio is long."""
TRIES = 10
"""Utterances in a row that are tried where one cannot be used."""


def sample_of(utterances: Sequence[Utterance], encoder: Encoder, seconds: float = SAMPLE_SECONDS) -> list[np.ndarray]:
    """The same few utterances of a split each time, `[samples]` float32 ready for the encoder: spread evenly over the ids
    in order, each at most so many seconds long. Where one cannot be used the next takes its place; where none can, noise does.
    """
    ordered = sorted(utterances, key=lambda utterance: utterance.id)
    count = min(SAMPLE_UTTERANCES, len(ordered))
    starts = [i * len(ordered) // count for i in range(count)] + [len(ordered)]
    longest = [seconds * (1 - SHORTER * number) for number in range(SAMPLE_UTTERANCES)]
    taken: list[np.ndarray] = []
    for start, stop in pairwise(starts):
        for utterance in ordered[start : min(stop, start + TRIES)]:
            try:
                samples = _first_seconds(utterance, longest[len(taken)], encoder.sample_rate)
            except AudioError:
                continue
            if encoder.frames(len(samples)) > 0:
                taken.append(encoder.prepare(samples))
                break
    return taken or [encoder.prepare(samples) for samples in noise(longest, encoder.sample_rate)]


def _first_seconds(utterance: Utterance, seconds: float, rate: int) -> np.ndarray:
    if utterance.duration is None or utterance.duration > seconds:
        try:
            return read_audio(replace(utterance, duration=seconds), rate)
        except AudioError:
            pass  # it ends before that, or cannot be read at all
    return read_audio(utterance, rate)


def noise(seconds: Sequence[float], rate: int) -> list[np.ndarray]:
    """Stretches of noise of these lengths, whose loudness comes and goes as in speech."""
    generator = np.random.default_rng(0)
    made = []
    for number, length in enumerate(seconds):
        time = np.arange(int(length * rate)) / rate
        swell = 0.05 + 0.05 * np.sin(2 * np.pi * 3 * time + number)
        made.append((swell * generator.standard_normal(len(time))).astype(np.float32))
    return made
