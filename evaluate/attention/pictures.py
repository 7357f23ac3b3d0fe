"""Pictures of what a model's queries look at in utterances of a store, for a report."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from encodeonce.evaluate.attention.alignment import Word, spread_evenly, word_times
from encodeonce.evaluate.attention.capture import Attention, read_attention
from encodeonce.evaluate.attention.draw import Scene, draw_entropy, draw_heads, draw_utterance
from encodeonce.evaluate.attention.measures import Entropy, coverage, diagonality, entropy, reading
from encodeonce.evaluate.attention.references import own_word_times
from encodeonce.evaluate.report.extras import Picture
from encodeonce.extract.audio import AudioError, read_audio
from encodeonce.extract.corpora.base import Utterance
from encodeonce.store.reader import FeatureStore
from encodeonce.store.utterance import StoredUtterance
from encodeonce.train.model import AdapterModel

MELS, HOP_SECONDS = 80, 0.01


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
) -> list[Picture]:
    """Draw two pictures for each utterance, and one of the entropy of all; nothing where `why_no_attention` has a reason.

    Args:
        model: in evaluation mode.
        outputs: of the store, as the model was trained on them: its checkpoint's `fingerprints.outputs`.
        folder: where the PNG files go; it is made.
        audio: the file that an utterance is in; where it begins in it the store says. Without: the features are drawn.
        hypotheses: what was written, by id; without, the Q-Former writes by itself, where it can.
        words: when each word is said, by id; without, the corpus's own column `words`, where it has one.

    Raises:
        StoreError: matplotlib is missing, or a file cannot be written. EvaluationError: damaged word times.
    """
    pictures: list[Picture] = []
    entropies: list[Entropy] = []
    device = next(model.parameters()).device
    for name in ids:
        utterance = store[name]
        values = [torch.from_numpy(np.array(utterance[output]))[None].to(device) for output in outputs]
        written = None if hypotheses is None or name not in hypotheses else [hypotheses[name]]
        lengths = torch.tensor([utterance.frames], device=device)
        for attention in read_attention(model, values, lengths, store.frame_rate, written):
            scene = _scene(attention, utterance, outputs[0], (audio or {}).get(name), (words or {}).get(name, ()))
            entropies.append(entropy(attention))
            pictures += _drawn(attention, scene, name, folder)
    if entropies:
        path = folder / "attention-entropy.png"
        draw_entropy(entropies, path)
        pictures.append(Picture(path, "Entropy by layer", _entropy_caption(entropies)))
    return pictures


def _drawn(attention: Attention, scene: Scene, name: str, folder: Path) -> list[Picture]:
    stem = re.sub(r"[^\w.-]+", "_", name)
    whole, sheet = folder / f"attention-{stem}.png", folder / f"attention-{stem}-heads.png"
    draw_utterance(attention, scene, whole)
    draw_heads(attention, f"{name}: every layer and head", sheet)
    _, heads, queries, frames = attention.weights.shape
    many = f"{queries} queries over {frames} frames ({attention.seconds:.1f} s)"
    return [
        Picture(whole, f"Attention of {name}", f"{name}: {many}. {_summary(attention)}", name),
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


def _by_layer(attention: Attention) -> str:
    read = zip(attention.layers, coverage(attention), strict=True)
    return "Frames that some query reads more than evenly: " + ", ".join(f"{s:.0%} in layer {n}" for n, s in read) + "."


def _entropy_caption(entropies: Sequence[Entropy]) -> str:
    share = np.mean([one.share for one in entropies], 0).mean(1)
    layers = ", ".join(f"{value:.0%} in layer {n}" for n, value in zip(entropies[0].layers, share, strict=True))
    return f"Entropy of the queries' looks as a share of an even look's, mean over heads: {layers}."


def _scene(
    attention: Attention, utterance: StoredUtterance, output: str, audio: Path | None, said: Sequence[Word]
) -> Scene:
    known = list(said) or own_word_times(utterance)
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
    """`[mels, T]` decibels of the utterance's part of a file; None where that cannot be read."""
    from torchaudio.transforms import AmplitudeToDB, MelSpectrogram

    rate, record = utterance.store.sample_rate, utterance.record
    try:
        duration = None if record["offset"] is None else utterance.duration
        place = Utterance(utterance.id, audio, record["offset"] or 0.0, duration, record["channel"])
        samples = read_audio(place, rate)
    except AudioError:
        return None
    mel = MelSpectrogram(rate, n_fft=512, hop_length=round(HOP_SECONDS * rate), n_mels=MELS)
    return AmplitudeToDB(top_db=70)(mel(torch.from_numpy(samples))).numpy()


def _features(values: np.ndarray) -> np.ndarray:
    """`[D, T]`: each dimension with mean 0 and deviation 1 over the utterance; codes as they are."""
    values = values.astype(np.float32)
    return ((values - values.mean(0)) / values.std(0).clip(1e-5)).T
