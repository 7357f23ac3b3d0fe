"""Attention as pictures that read well on white: an utterance with its queries over time, every layer and head, entropy by layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from encodeonce.evaluate.attention.alignment import Word
from encodeonce.evaluate.attention.capture import Attention
from encodeonce.evaluate.attention.measures import Entropy, entropy, evenness, reading
from encodeonce.store.extras import extra
from encodeonce.store.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

DPI, WIDE = 120, 13.5
"""Pixels an inch, and inches: 1,620 pixels."""
BLUE, RED, GREY = "#1f5fa8", "#c0392b", "#666666"
COLOURS = ("#1f5fa8", "#c0392b", "#2e8b57", "#8e6bb0", "#b8860b", "#4a7c8c")
SPARE_PERCENT = 0.5
"""Of the cells that some query may see, those that are brighter than the scale goes."""


@dataclass(frozen=True)
class Scene:
    """What is drawn above the attention of an utterance.

    Attributes:
        title: its first line.
        sound: `[bins, T]`, a spectrogram in decibels, or features with each dimension normalised.
        sound_name: what that is.
        said: words of the reference; their times are known where `said_exactly`, else they are spread evenly.
        written: words of the hypothesis, at rough times by attention.
    """

    title: str
    sound: np.ndarray
    sound_name: str
    said: Sequence[Word] = ()
    said_exactly: bool = False
    written: Sequence[Word] = ()


def draw_utterance(attention: Attention, scene: Scene, path: Path) -> None:
    """Write a PNG: sound, words said and written, and where each query looks, layers and heads averaged.

    Raises:
        StoreError: matplotlib is missing, or the file cannot be written.
    """
    bands = [(f"said{'' if scene.said_exactly else ' (spread evenly)'}", scene.said, BLUE)] if scene.said else []
    bands += [("written (by attention)", scene.written, RED)] if scene.written else []
    queries = len(attention.seen)
    high = float(np.clip(0.09 * queries, 2.8, 5.5))
    heights = [1.6, *([0.5] * len(bands)), high]
    figure = _figure(WIDE, sum(heights) + 1.3)
    rows = figure.subplots(
        len(heights), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights, "hspace": 0.02}
    )[:, 0]
    _sound(rows[0], scene, attention.seconds)
    for axes, (name, words, colour) in zip(rows[1:-1], bands, strict=True):
        _words(axes, name, words, colour)
    order = _order(attention)
    image = _looks(rows[-1], attention, attention.mean[order], _brightest(attention, attention.mean))
    if _windowed(attention):
        _spans(rows[-1], attention)
    marks = scene.said if scene.said_exactly else scene.written
    for word in marks[1:]:
        rows[-1].axvline(word.start, color=BLUE if scene.said_exactly else RED, lw=0.6, alpha=0.45)
    rows[-1].set_ylabel(_axis(attention))
    rows[-1].set_xlabel("seconds")
    rows[-1].set_xlim(0, attention.seconds)
    figure.colorbar(image, ax=list(rows), label="attention, in multiples of an even look", pad=0.01, fraction=0.025)
    figure.suptitle(scene.title, fontsize=12, fontweight="bold")
    _save(figure, path)


def draw_heads(attention: Attention, title: str, path: Path) -> None:
    """Write a PNG with a small map for every layer (rows) and head (columns), all on one scale.

    Raises:
        StoreError: matplotlib is missing, or the file cannot be written.
    """
    layers, heads = attention.weights.shape[:2]
    across = min(heads, 6)
    down = layers * -(-heads // across)
    figure = _figure(WIDE, min(1.1 + 1.9 * down, 40))
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    brightest = _brightest(attention, attention.weights)
    share, order = entropy(attention).share, _order(attention)
    image = None
    for axes in panels.flat:
        axes.set_axis_off()
    for layer, number in enumerate(attention.layers):
        for head in range(heads):
            place = layer * (down // layers) + head // across, head % across
            axes = panels[place]
            axes.set_axis_on()
            image = _looks(axes, attention, attention.weights[layer, head, order], brightest)
            axes.set_title(f"layer {number} · head {head} · entropy {share[layer, head]:.0%} of even", fontsize=9)
            if place[1] == 0:
                axes.set_ylabel(_axis(attention))
            if place[0] == down - 1:
                axes.set_xlabel("seconds")
    if image is not None:
        figure.colorbar(image, ax=panels, label="multiples of an even look", pad=0.01, fraction=0.025)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    _save(figure, path)


def draw_entropy(entropies: Sequence[Entropy], path: Path) -> None:
    """Write a PNG: how even the looks are, by layer and head, the mean over utterances of one model.

    Raises:
        StoreError: matplotlib is missing, or the file cannot be written.
    """
    share = np.mean([one.share for one in entropies], 0)  # [L, heads]
    nats = np.mean([one.nats for one in entropies], 0)
    layers = entropies[0].layers
    figure = _figure(WIDE, 4.4)
    panels = figure.subplots(1, 2)
    drawn = ((share, "share of an even look's entropy", 1.05), (nats, "nats", 1.15 * max(nats.max(), 1e-6)))
    for axes, (values, name, top) in zip(panels, drawn, strict=True):
        for head in range(values.shape[1]):
            axes.plot(layers, values[:, head], "o-", lw=1, ms=5, alpha=0.8, color=COLOURS[head % len(COLOURS)])
            axes.annotate(
                f"{head}", (layers[-1], values[-1, head]), (6, 0), textcoords="offset points", fontsize=8, va="center"
            )
        axes.plot(layers, values.mean(1), "s-", color="black", lw=2, ms=6, label="mean over heads")
        axes.set(xlabel="layer", ylabel=name, ylim=(0, top), xlim=(min(layers) - 0.5, max(layers) + 0.5))
        axes.set_xticks(layers)
        axes.grid(alpha=0.25, lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].axhline(1, color=GREY, lw=0.8, ls="--", label="even")
    panels[0].legend(frameon=False, fontsize=9, loc="lower left")
    many = f"{len(entropies)} utterance{'s' * (len(entropies) != 1)}"
    figure.suptitle(f"Entropy of cross-attention by layer, each line a head, over {many}", fontweight="bold")
    _save(figure, path)


def _windowed(attention: Attention) -> bool:
    return bool((attention.seen != attention.seen[0]).any())


def _order(attention: Attention) -> np.ndarray:
    """The queries `[N]` in the order in which they are drawn: their own where windows give them one, else by what they read most."""
    peaks = attention.mean.argmax(1)
    return np.arange(len(peaks)) if _windowed(attention) else np.argsort(peaks, kind="stable")


def _axis(attention: Attention) -> str:
    return "query" if _windowed(attention) else "queries, by their peak"


def _spans(axes: "Axes", attention: Attention) -> None:
    """Where half of each query's attention lies, and its middle."""
    read, places = reading(attention.mean, attention.frame_seconds), np.arange(len(attention.seen))
    axes.hlines(places, *read.half.T, color=RED, lw=0.9, alpha=0.6, label="half of what it reads")
    axes.plot(read.centre, places, ".", color=RED, ms=4, label="mean")
    axes.legend(loc="lower left", fontsize=8, framealpha=0.9)


def _brightest(attention: Attention, weights: np.ndarray) -> float:
    """The end of the colour scale for rows `[..., N, T]`, in multiples of an even look; 2 at least, so that even is pale."""
    frames = np.arange(weights.shape[-1])
    visible = (attention.seen[:, :1] <= frames) & (frames < attention.seen[:, 1:])
    return max(2.0, float(np.percentile(evenness(attention, weights)[..., visible], 100 - SPARE_PERCENT)))


def _looks(axes: "Axes", attention: Attention, weights: np.ndarray, brightest: float) -> "AxesImage":
    """A map of rows `[N, T]` over time, the first row at the top; rows of one span of sight, or in the queries' order."""
    from matplotlib.ticker import MaxNLocator

    queries = len(weights)
    extent = (0.0, attention.seconds, queries - 0.5, -0.5)
    image = axes.imshow(
        evenness(attention, weights),
        aspect="auto",
        interpolation="nearest",
        cmap="Blues",
        vmin=0,
        vmax=brightest,
        extent=extent,
    )
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.spines[["top", "right"]].set_visible(False)
    return image


def _sound(axes: "Axes", scene: Scene, seconds: float) -> None:
    low, high = np.percentile(scene.sound, (5, 99.7))
    axes.imshow(
        scene.sound,
        aspect="auto",
        origin="lower",
        cmap="Greys",
        vmin=low,
        vmax=high,
        extent=(0.0, seconds, 0.0, float(len(scene.sound))),
    )
    axes.set_ylabel(scene.sound_name, fontsize=9)
    axes.set_yticks([])


def _words(axes: "Axes", name: str, words: Sequence[Word], colour: str) -> None:
    """A band of words at their times, smaller where there is little room."""
    seconds = max(word.end for word in words)
    for word in words:
        room = (word.end - word.start) / seconds * WIDE * 0.85 * 72  # points
        size = float(np.clip(room / (0.62 * max(1, len(word.word))), 4.5, 11))
        axes.axvspan(word.start, word.end, color=colour, alpha=0.12, lw=0)
        axes.axvline(word.start, color=colour, lw=0.8)
        axes.text(word.centre, 0.5, word.word, ha="center", va="center", fontsize=size, color=colour, clip_on=True)
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    axes.set_ylabel(name.replace(" (", "\n("), fontsize=8, rotation=0, ha="right", va="center")
    axes.spines[["top", "right", "left"]].set_visible(False)


def _figure(width: float, height: float) -> "Figure":
    with extra("evaluate"):
        from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def _save(figure: "Figure", path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=DPI)
