"""How a training went: losses, error rates on its dev sample and the learning rate, one above the other."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from encodeonce.evaluate.report.palette import AMBER, BLUE, COLOURS, RED
from encodeonce.evaluate.report.svg import drawing, inline_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 300
"""Of a curve; of a longer one, each point is the mean of as many lines as it takes."""

Line = dict[str, Any]


def training_chart(folder: Path, name: str = "training") -> str | None:
    """The curves of a training; None where it has no metrics yet.

    Args:
        folder: of the training, with its metrics.
    """
    from encodeonce.train.metrics import read_metrics

    lines = read_metrics(folder)
    panels = [panel for panel, keys in _PANELS.items() if any(line.get(key) for line in lines for key in keys)]
    if not panels:
        return None
    title = "Training"
    with drawing(0.3 + 1.75 * len(panels)) as figure:
        all_axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
        for axes, panel in zip(all_axes, panels, strict=True):
            panel(axes, lines)
            axes.grid()
        all_axes[-1].set_xlabel("step")
        return inline_svg(figure, name, title, _said(lines))


def _losses(axes: "Axes", lines: Sequence[Line]) -> None:
    names = list(dict.fromkeys(loss for line in lines for loss in line.get("losses") or line.get("dev") or {}))
    lowest, highest = np.inf, 0.0
    for loss, colour in zip(names, _colours(len(names)), strict=True):
        for key, style, of in (("losses", "-", "train"), ("dev", "o--", "dev")):
            steps, values = _curve([(line["step"], (line.get(key) or {}).get(loss)) for line in lines])
            if len(values):
                axes.plot(steps, values, style, color=colour, lw=1.2, ms=3, label=f"{loss}, {of}")
                lowest, highest = min(lowest, values.min()), max(highest, values.max())
    axes.set(title="Loss", ylabel="nats")
    axes.legend()
    if 0 < 20 * lowest < highest:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")


def _error_rates(axes: "Axes", lines: Sequence[Line]) -> None:
    for key, colour in (("wer", BLUE), ("cer", RED)):
        steps, values = _curve([(line["step"], line.get(key)) for line in lines])
        if len(values):
            axes.plot(steps, 100 * values, "o-", color=colour, lw=1.2, ms=3, label=key.upper())
    axes.set(title="Errors on the dev sample", ylabel="%")
    axes.set_ylim(0, None)
    axes.legend()


def _learning_rate(axes: "Axes", lines: Sequence[Line]) -> None:
    axes.plot(*_curve([(line["step"], line.get("learning_rate")) for line in lines]), "-", color=AMBER, lw=1.2)
    axes.set(title="Learning rate")
    axes.yaxis.set_major_formatter("{x:g}")


_PANELS = {_losses: ("losses", "dev"), _error_rates: ("wer", "cer"), _learning_rate: ("learning_rate",)}


def _curve(pairs: Sequence[tuple[int, float | None]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values `[n]`, n at most `POINTS`."""
    known = np.array([pair for pair in pairs if pair[1] is not None], np.float64).reshape(-1, 2)
    parts = np.array_split(known, min(len(known), POINTS)) if len(known) else []
    steps, values = np.array([part.mean(0) for part in parts]).reshape(-1, 2).T
    return steps, values


def _colours(count: int) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(count)]


def _said(lines: Sequence[Line]) -> str:
    said = [f"{max(line['step'] for line in lines):,} steps"]
    if rates := [(line["wer"], line["step"]) for line in lines if line.get("wer") is not None]:
        best, step = min(rates)
        said.append(f"lowest WER on the dev sample {100 * best:.1f} % at step {step:,}")
    return "; ".join(said)
