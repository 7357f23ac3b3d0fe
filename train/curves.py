"""The curves of a training as a picture: losses on the training and the dev set, and error rates (TRAIN-STATS and DEV-STATS)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encodeonce.store.extras import extra
from encodeonce.store.files import atomic_write
from encodeonce.train.metrics import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#1f5fa8", "#c0392b", "#2e8b57", "#8e6bb0", "#b8860b")
FORMATS = ("svg", "png")


def draw_curves(folder: Path) -> None:
    """Write curves.svg and curves.png beside the metrics they show; nothing where there are none yet.

    Raises:
        StoreError: matplotlib is missing, or the folder cannot be written.
    """
    lines = read_metrics(folder)
    if not lines:
        return
    with extra("train"):
        from matplotlib.figure import Figure

    rates = [line for line in lines if line.get("wer") is not None]
    figure = Figure(figsize=(6.4 * (1 + bool(rates)), 4.2), layout="constrained")
    panels = figure.subplots(1, 1 + bool(rates), squeeze=False)[0]
    _losses(panels[0], lines)
    if rates:
        _error_rates(panels[1], rates)
    for axes in panels:
        axes.set_xlabel("step")
        axes.legend(frameon=False, fontsize=8)
        axes.grid(alpha=0.25, lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    for ending in FORMATS:
        with atomic_write(folder / f"curves.{ending}") as file:
            figure.savefig(file, format=ending, dpi=120)


def _losses(axes: "Axes", lines: Sequence[dict[str, Any]]) -> None:
    names = dict.fromkeys(name for line in lines for name in (line.get("losses") or line.get("dev") or {}))
    values: list[float] = []
    for name, colour in zip(names, COLOURS, strict=False):
        for key, style, label in (("losses", "-", "train"), ("dev", "o--", "dev")):
            points = [(line["step"], line[key][name]) for line in lines if line.get(key, {}).get(name) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), style, color=colour, lw=1.2, ms=3.5, label=f"{name}, {label}")
                values += [value for _, value in points]
    axes.set(title="loss", ylabel="nats a token or pair")
    if values and min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")


def _error_rates(axes: "Axes", lines: Sequence[dict[str, Any]]) -> None:
    steps = [line["step"] for line in lines]
    for key, label, colour in (("wer", "words", COLOURS[0]), ("cer", "characters", COLOURS[1])):
        axes.plot(steps, [100 * line[key] for line in lines], "o-", color=colour, lw=1.2, ms=3.5, label=label)
    axes.set(title="errors on the dev sample", ylabel="%", ylim=(0, None))
