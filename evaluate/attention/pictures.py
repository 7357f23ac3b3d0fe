"""Pictures of what a model's queries look at in utterances of a store, for a report."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from encodeonce.evaluate.attention.alignment import Word, spread_evenly, word_times
from encodeonce.evaluate.attention.capture import Attention, read_attention
from encodeonce.evaluate.attention.draw import Scene, draw_entropy, draw_heads, draw_utterance
from encodeonce.evaluate.attention.measures import Entropy, coverage, diagonality, entropy, reading
from encodeonce.evaluate.attention.references import own_word_times
from encodeonce.evaluate.attention.timing import UNWRITTEN, Timing, check_times, time_words
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.report.extras import Picture
from encodeonce.extract.audio import AudioError, read_audio
from encodeonce.extract.corpora.base import Utterance
from encodeonce.store.reader import FeatureStore
from encodeonce.store.utterance import StoredUtterance
from encodeonce.train.model import AdapterModel

MELS, HOP_SECONDS, WINDOW_SAMPLES = 80, 0.01, 512
DEPTH_DECIBELS = 70
"""Of a spectrogram; what is softer by more than the loudest is drawn alike."""


@dataclass
class Drawn:
    """What was drawn, and how the attention does as a clock.

    Attributes:
        pictures: in the order in which they are shown.
        timings: of utterances whose word times are known, by id.
        left_out: why an utterance is not among them, by id; not of one that nobody gave times for.
    """

    pictures: list[Picture] = field(default_factory=list)
    timings: dict[str, Timing] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def attention_pictures(
    model: AdapterModel,
    store: FeatureStore,
    outputs: Sequence[str],
    ids: Sequence[str],
    folder: Path,
    *,
    audio: Mapping[str, Path] | None = None,
    hypotheses: Mapping[str, str] | None = None,
    words: Mapping[str, Sequence[Word]] | None = None,
    texts: Mapping[str, str] | None = None,
) -> Drawn:
    """Draw two pictures for each utterance, and one of the entropy of all; nothing where `why_no_attention` has a reason.

    Args:
        model: in evaluation mode.
        outputs: of the store, as the model was trained on them: its checkpoint's `fingerprints.outputs`.
        folder: where the PNG files go; it is made.
        audio: the file that an utterance is in; where it begins in it the store says. Without: the features are drawn.
        hypotheses: what was written, by id; without, the Q-Former writes by itself, where it can.
        words: when each word is said, by id; where it has none, the corpus's own column `words`; else words are spread evenly. None:
            nobody asked, and a column `words` that is something else is passed over.
        texts: what was said, by id, as the model was trained to write it: where word times are known, those of attention are held
            against them.

    Raises:
        StoreError: matplotlib is missing, an utterance cannot be read, or a file cannot be written.
    """
    drawn = Drawn()
    entropies: list[Entropy] = []
    for name in ids:
        utterance = store[name]
        attention = _look(model, utterance, outputs, (hypotheses or {}).get(name))
        if attention is None:
            continue
        known = _known(utterance, words)
        timing = _held(model, utterance, outputs, attention, (texts or {}).get(name), known)
        scene = _scene(
            attention, utterance, outputs[0], (audio or {}).get(name), [] if isinstance(known, str) else known
        )
        entropies.append(entropy(attention))
        drawn.pictures += _pictures(attention, scene, name, folder, timing)
        if isinstance(timing, Timing):
            drawn.timings[name] = timing
        elif timing:
            drawn.left_out[name] = timing
    if entropies:
        path = folder / "attention-entropy.png"
        draw_entropy(entropies, path)
        drawn.pictures.append(Picture(path, "Entropy by layer", _entropy_caption(entropies)))
    return drawn


def _look(
    model: AdapterModel, utterance: StoredUtterance, outputs: Sequence[str], text: str | None
) -> Attention | None:
    """The attention of an utterance, by a model that is made to write a text; None: what it writes by itself."""
    device = next(model.parameters()).device
    values = [torch.from_numpy(np.array(utterance[output]))[None].to(device) for output in outputs]
    lengths = torch.tensor([utterance.frames], device=device)
    found = read_attention(model, values, lengths, utterance.store.frame_rate, None if text is None else [text])
    return next(iter(found), None)


def _known(utterance: StoredUtterance, words: Mapping[str, Sequence[Word]] | None) -> list[Word] | str:
    """When the words of an utterance are said; or why that is not known, which is empty where nobody gave times."""
    known = list((words or {}).get(utterance.id, ()))
    try:
        known = known or own_word_times(utterance)
    except EvaluationError as error:
        return "" if words is None else str(error)
    if not known:
        return "" if words is None else "there are no word times of it"
    try:
        check_times(known, utterance.duration)
    except EvaluationError as error:
        return str(error)
    return known


def _held(
    model: AdapterModel,
    utterance: StoredUtterance,
    outputs: Sequence[str],
    attention: Attention,
    text: str | None,
    known: list[Word] | str,
) -> Timing | str:
    """How far attention's words are from the known ones; or why that cannot be told."""
    if isinstance(known, str):
        return known
    if attention.writing is None:
        return UNWRITTEN
    if not text:
        return "what is said in it is not known"
    saying = _look(model, utterance, outputs, text)
    try:
        assert saying is not None
        return time_words(saying, text, known)
    except EvaluationError as error:
        return str(error)


def _pictures(attention: Attention, scene: Scene, name: str, folder: Path, timing: Timing | str) -> list[Picture]:
    stem = re.sub(r"[^\w.-]+", "_", name)
    whole, sheet = folder / f"attention-{stem}.png", folder / f"attention-{stem}-heads.png"
    draw_utterance(attention, scene, whole)
    draw_heads(attention, f"{name}: every layer and head", sheet)
    _, heads, queries, frames = attention.weights.shape
    many = f"{queries} queries over {frames} frames ({attention.seconds:.1f} s)"
    told = " ".join(filter(None, [f"{name}: {many}.", _summary(attention), _clock(timing)]))
    return [
        Picture(whole, f"Attention of {name}", told, name),
        Picture(sheet, f"Layers and heads of {name}", f"{name}: {heads} heads each. {_by_layer(attention)}", name),
    ]


def _summary(attention: Attention) -> str:
    """What the picture shows, in numbers."""
    spans = np.diff(reading(attention.mean, attention.frame_seconds).half)
    said = [f"The middle half of what a query reads spans {np.median(spans):.2f} s (median)"]
    said += [f"{coverage(attention).mean():.0%} of the frames are read by some query more than evenly"]
    order = diagonality(attention)
    if not np.isnan(order).all():
        said += [f"rank correlation of query and time {np.nanmean(order):.2f}"]
    if (elsewhere := 1 - attention.on_frames.mean()) > 0.001:
        said += [f"{elsewhere:.0%} of the attention goes to other latents, which is not drawn"]
    return "; ".join(said) + "."


def _clock(timing: Timing | str) -> str:
    """How the attention does as a clock; empty where nobody gave times."""
    if isinstance(timing, str):
        return f"Not held against word times: {timing}." if timing else ""
    ends = (
        f"{errors.mean():.3f} s off {how} (median {np.median(errors):.3f} s)"
        for how, errors in (("by attention", timing.attention), ("spread evenly", timing.evenly))
    )
    return f"The middles of {len(timing.evenly)} of its {timing.said} words, against known times: {', '.join(ends)}."


def _by_layer(attention: Attention) -> str:
    read = zip(attention.layers, coverage(attention), strict=True)
    return "Frames that some query reads more than evenly: " + ", ".join(f"{s:.0%} in layer {n}" for n, s in read) + "."


def _entropy_caption(entropies: Sequence[Entropy]) -> str:
    share = np.mean([one.share for one in entropies], 0).mean(1)
    layers = ", ".join(f"{value:.0%} in layer {n}" for n, value in zip(entropies[0].layers, share, strict=True))
    return f"Entropy of the queries' looks as a share of an even look's, mean over heads: {layers}."


def _scene(
    attention: Attention, utterance: StoredUtterance, output: str, audio: Path | None, known: Sequence[Word]
) -> Scene:
    text = (utterance.text or "").split()
    spectrogram = None if audio is None else _spectrogram(utterance, audio)
    sound = _features(utterance[output]) if spectrogram is None else spectrogram
    speaker = "" if utterance.speaker is None else f" · speaker {utterance.speaker}"
    return Scene(
        title=f"{utterance.id}{speaker} · {utterance.duration:.2f} s",
        sound=sound,
        sound_name=f"features\n{output}" if spectrogram is None else "log-mel\nspectrogram",
        said=known or spread_evenly(text, attention.seconds),
        said_exactly=bool(known),
        written=word_times(attention),
    )


def _spectrogram(utterance: StoredUtterance, audio: Path) -> np.ndarray | None:
    """`[MELS, T]` decibels of the utterance's part of a file; None where that cannot be read."""
    rate, record = utterance.store.sample_rate, utterance.record
    try:
        duration = None if record["offset"] is None else utterance.duration
        place = Utterance(utterance.id, audio, record["offset"] or 0.0, duration, record["channel"])
        samples = read_audio(place, rate)
    except AudioError:
        return None
    return log_mel(samples, rate)


def log_mel(samples: np.ndarray, rate: int) -> np.ndarray:
    """`[MELS, T]` decibels of `[samples]`, a column each `HOP_SECONDS`: torchaudio's, which not every machine can load."""
    hop, window = round(HOP_SECONDS * rate), torch.hann_window(WINDOW_SAMPLES)
    spectrum = torch.stft(
        torch.from_numpy(samples), WINDOW_SAMPLES, hop, window=window, pad_mode="constant", return_complex=True
    )
    decibels = 10 * np.log10((_mel_filters(len(spectrum), rate) @ spectrum.abs().square().numpy()).clip(1e-10))
    return decibels.clip(decibels.max() - DEPTH_DECIBELS)


def _mel_filters(bins: int, rate: int) -> np.ndarray:
    """`[MELS, bins]`: triangles from 0 to half the rate, evenly spaced in HTK's mel, 2595 log10(1 + f / 700)."""
    highest = 2595 * np.log10(1 + rate / 1400)
    edges = 700 * (10 ** (np.linspace(0, highest, MELS + 2) / 2595) - 1)
    width, frequencies = np.diff(edges)[:, None], np.linspace(0, rate / 2, bins)
    rising, falling = (frequencies - edges[:-2, None]) / width[:-1], (edges[2:, None] - frequencies) / width[1:]
    return np.minimum(rising, falling).clip(0)


def _features(values: np.ndarray) -> np.ndarray:
    """`[D, T]`: each dimension with mean 0 and deviation 1 over the utterance; codes as they are."""
    values = values.astype(np.float32)
    return ((values - values.mean(0)) / values.std(0).clip(1e-5)).T
