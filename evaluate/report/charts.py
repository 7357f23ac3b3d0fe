"""Pictures of a report as inline SVG: no background, ink in the page's own colour, text as text, ids of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from encodeonce.evaluate.report.analysis import Band, LengthRatio, MeaningBand
from encodeonce.evaluate.report.palette import BLUE, COLOURS, INK, RED
from encodeonce.evaluate.report.svg import drawing, inline_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WHISKER = {"ecolor": INK, "elinewidth": 1, "capsize": 3, "capthick": 1}


@dataclass(frozen=True, slots=True)
class Point:
    """A system in a comparison.

    Attributes:
        interval: around the value, such as the deviation over seeds; None where there is none.
        group: systems of one group have one colour, and a line of the legend.
    """

    label: str
    value: float
    interval: tuple[float, float] | None = None
    group: str | None = None


def band_chart(bands: Sequence[Band], title: str, name: str) -> str:
    """WER by band as bars, with intervals as whiskers; bands without a word are left out."""
    shown = [(band, 100 * band.wer) for band in bands if band.wer is not None]
    with drawing(0.7 + 0.24 * max(len(shown), 1)) as figure:
        axes = figure.subplots()
        for row, (band, rate) in enumerate(shown):
            low, high = (100 * end for end in band.interval) if band.interval else (rate, rate)
            axes.barh(row, rate, height=0.62, color=BLUE)
            if band.interval:
                axes.errorbar(rate, row, xerr=[[rate - low], [high - rate]], fmt="none", **WHISKER)
            axes.annotate(
                f"{rate:.1f}", (max(rate, high), row), (4, 0), textcoords="offset points", va="center", size=8
            )
        _rows(axes, [band.label for band, _ in shown])
        axes.set(xlabel="WER, %", title=title)
        axes.set_xlim(
            0, 1.12 * max([100 * max(band.wer or 0, *(band.interval or (0,))) for band, _ in shown], default=1) or 1
        )
        said = "; ".join(f"{band.label}: {rate:.1f} %, {band.utterances:,} utterances" for band, rate in shown)
        return inline_svg(figure, name, title, said)


def meaning_chart(bands: Sequence[MeaningBand], name: str = "meaning") -> str:
    """BERTScore F1 by band of WER: boxes from quartile to quartile with the median, whiskers from the 5th to the 95th percentile."""
    title = "Meaning kept, by word error rate"
    with drawing(2.9) as figure:
        axes = figure.subplots()
        for column, band in enumerate(bands):
            low, lower, middle, upper, high = (100 * value for value in (band.low, *band.quartiles, band.high))
            axes.vlines([column] * 2, [low, upper], [lower, high], color=INK, lw=1)
            axes.bar(column, upper - lower, bottom=lower, width=0.56, color=BLUE, edgecolor=INK, lw=0.8)
            axes.hlines(middle, column - 0.28, column + 0.28, color=INK, lw=2)
        axes.set_xticks(
            range(len(bands)), [f"{band.label.removesuffix(' %')}\nn={band.utterances:,}" for band in bands]
        )
        axes.tick_params("x", length=0, labelsize=8)
        if bands:
            low, high = 100 * min(band.low for band in bands), 100 * max(band.high for band in bands)
            axes.set_ylim(low - max(0.05 * (high - low), 0.5), high + max(0.05 * (high - low), 0.5))
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.set(xlabel="WER, %", ylabel="BERTScore F1, %", title=title)
        said = "; ".join(f"WER {band.label}: median {band.quartiles[1]:.1%}" for band in bands)
        return inline_svg(figure, name, title, said)


def ratio_chart(ratio: LengthRatio, name: str = "ratio") -> str:
    """Words written over words said, a histogram; its last bin has all that is longer."""
    title = "Length of hypothesis over reference"
    with drawing(2.4) as figure:
        from matplotlib.ticker import MaxNLocator

        axes = figure.subplots()
        edges = np.array(ratio.edges)
        axes.bar(edges[:-1], ratio.counts, width=np.diff(edges) * 0.92, align="edge", color=BLUE)
        axes.axvline(1, color=RED, lw=1.2, ls="--")
        ticks = np.arange(0, edges[-1], 0.5)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks[:-1]] + [f"{ticks[-1]:g} and over"])
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.set(xlabel="words written / words said", ylabel="utterances", title=title)
        percents = ", ".join(f"{percent} %: {value:.2f}" for percent, value in ratio.quantiles.items())
        return inline_svg(figure, name, title, f"{ratio.total:.3f} over all; quantiles {percents}")


def comparison_chart(
    points: Sequence[Point], title: str, axis: str, name: str = "comparison", scale: float = 100
) -> str:
    """Systems as points with intervals, one under the other.

    Args:
        axis: what is compared, with its unit, such as `WER, %`.
        scale: values times this are drawn: 100 for fractions in percent.
    """
    groups = dict(zip(dict.fromkeys(one.group for one in points), _cycle(points), strict=False))
    with drawing(0.8 + 0.24 * max(len(points), 1)) as figure:
        axes = figure.subplots()
        for row, one in enumerate(points):
            value = scale * one.value
            ends = [scale * end for end in one.interval or (one.value, one.value)]
            error = [[max(0.0, value - ends[0])], [max(0.0, ends[1] - value)]]
            colour = groups[one.group]
            axes.errorbar(value, row, xerr=error, fmt="o", ms=5, color=colour, **{**WHISKER, "ecolor": colour})
        _rows(axes, [one.label for one in points])
        axes.grid(axis="x")
        axes.set(xlabel=axis, title=title)
        named = [(group, colour) for group, colour in groups.items() if group is not None]
        if len(named) > 1:
            handles = [axes.plot([], [], "o", color=colour, label=group)[0] for group, colour in named]
            figure.legend(handles=handles, loc="outside lower left", ncols=3)
        return inline_svg(figure, name, title, "; ".join(f"{one.label}: {scale * one.value:.2f}" for one in points))


def _rows(axes: "Axes", labels: Sequence[str]) -> None:
    """From above to below."""
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params("y", length=0)
    axes.set_ylim(max(len(labels), 1) - 0.4, -0.6)


def _cycle(points: Sequence[Point]) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(max(len(points), 1))]
