"""A picture of an output's statistics: what each dimension does, how spread out they are, how long utterances are."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from encodeonce.store.errors import StoreError
from encodeonce.store.extras import extra
from encodeonce.store.moments import Moments, Usage
from encodeonce.store.stats import Statistics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, PALE, RED = "#1f5fa8", "#a9c6e8", "#c0392b"
MOST_NAMED = 8


def draw(statistics: Statistics, path: Path) -> None:
    """Write a picture (PNG, SVG or PDF, by the ending) of statistics.

    Raises:
        StoreError: matplotlib is missing, knows no such ending, or the file cannot be written.
    """
    with extra("views"):
        from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.4), layout="constrained")
    grid = figure.add_gridspec(2, 2)
    values, wide = statistics.values, figure.add_subplot(grid[0, :])
    left, right = figure.add_subplot(grid[1, 0]), figure.add_subplot(grid[1, 1])
    if isinstance(values, Usage):
        _usage_by_rank(wide, values)
        _perplexity(left, values)
    else:
        _dimensions(wide, values)
        _spread(left, values)
    _lengths(right, statistics)
    for axes in (wide, left, right):
        axes.grid(alpha=0.25, lw=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(_title(statistics), fontsize=12, fontweight="bold")
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot write the picture {path}: {error}") from error


def _title(statistics: Statistics) -> str:
    hours = statistics.seconds / 3600
    return (
        f"{statistics.encoder} · {statistics.output.name} [{statistics.output.width}] {statistics.output.dtype} · "
        f"{statistics.utterances:,} utterances, {hours:,.2f} h, {statistics.frames:,} frames"
    )


def _dimensions(axes: "Axes", moments: Moments) -> None:
    """Mean, standard deviation and extremes by dimension; outliers that would flatten all the rest leave the axis, named."""
    dimension, std = np.arange(len(moments.mean)), np.sqrt(moments.variance)
    low, high = moments.mean - std, moments.mean + std
    for extreme, label in ((moments.minimum, "least and greatest value"), (moments.maximum, None)):
        axes.plot(dimension, extreme, ".", ms=2, color=PALE, label=label)
    axes.fill_between(dimension, low, high, color=BLUE, alpha=0.35, lw=0, step="mid", label="mean ± standard deviation")
    axes.plot(dimension, moments.mean, color=BLUE, lw=0.9, label="mean")
    if constant := moments.constant:
        axes.plot(constant, moments.mean[constant], "x", ms=5, color=RED, label="constant")
    bottom, top = np.percentile([moments.minimum, low], 1), np.percentile([moments.maximum, high], 99)
    span = (top - bottom) or 1.0
    bottom, top = bottom - 0.05 * span, top + 0.2 * span  # room for the legend
    axes.set_ylim(bottom, top)
    beyond = np.flatnonzero((high > top) | (low < bottom)).tolist()
    named = ", ".join(map(str, beyond[:MOST_NAMED])) + (" ..." if len(beyond) > MOST_NAMED else "")
    note = f" (beyond the axis: {named})" if beyond else ""
    axes.set(title=f"Values by dimension{note}", xlabel="dimension", ylabel="value", xlim=(-0.5, len(dimension) - 0.5))
    axes.legend(loc="upper right", ncols=4, fontsize=8, framealpha=1)


def _spread(axes: "Axes", moments: Moments) -> None:
    """The standard deviations in falling order: a long tail near zero are dimensions that hardly say anything."""
    std = np.sort(np.sqrt(moments.variance))[::-1]
    positive = std[std > 0]
    if len(positive):
        axes.plot(np.arange(1, len(positive) + 1), positive, color=BLUE)
        _log_scale(axes)
        axes.axhline(np.median(std), color="grey", lw=0.8, ls="--", label=f"median {np.median(std):.3g}")
    if constant := len(moments.constant):
        axes.plot([], [], " ", label=f"{constant} constant dimension{'s' * (constant > 1)}, not drawn")
    axes.set(title="Standard deviations, greatest first", xlabel="rank of the dimension", ylabel="standard deviation")
    axes.legend(fontsize=8)


def _usage_by_rank(axes: "Axes", usage: Usage) -> None:
    """How evenly the codes of each codebook are used: a straight, level line would be all alike."""
    share = np.sort(usage.counts, axis=1)[:, ::-1] / usage.count
    for book, line in enumerate(share):
        label = f"codebook {book}" if book < MOST_NAMED else None
        axes.step(np.arange(1, 1 + len(line)), np.where(line > 0, line, np.nan), where="mid", lw=1.2, label=label)
    _log_scale(axes)
    axes.set(title="Use of codes", xlabel="rank of the code, most used first", ylabel="share of frames")
    axes.legend(loc="upper right", fontsize=8, ncols=2)


def _perplexity(axes: "Axes", usage: Usage) -> None:
    """As many codes as are used at all, and as many as would carry the same if used evenly."""
    book = np.arange(len(usage.counts))
    axes.bar(book, usage.used, color=PALE, label="codes used")
    axes.bar(book, usage.perplexity, width=0.5, color=BLUE, label="perplexity")
    axes.set(title="Codebooks", xlabel="codebook", ylabel="codes", ylim=(0, 1.25 * usage.used.max()))
    axes.set_xticks(book[:: max(1, len(book) // 16)])
    axes.legend(loc="upper right", fontsize=8, ncols=2)


def _log_scale(axes: "Axes") -> None:
    """A logarithmic axis with plain numbers: 1, 2, 5, or powers of ten alone where it spans many."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}") if high / low < 1000 else NullFormatter())


def _lengths(axes: "Axes", statistics: Statistics) -> None:
    counts, edges = statistics.length_counts, statistics.length_edges
    axes.stairs(counts, edges, fill=True, color=PALE)
    axes.stairs(counts, edges, color=BLUE)
    mean = statistics.seconds / statistics.utterances
    axes.axvline(mean, color=RED, lw=1, ls="--", label=f"mean {mean:.1f} s, longest {edges[-1]:.1f} s")
    axes.set(title="Lengths of utterances", xlabel="seconds", ylabel="utterances", xlim=(0, edges[-1]))
    axes.set_ylim(0, 1.25 * counts.max())
    axes.locator_params(axis="y", integer=True)
    axes.legend(loc="upper right", fontsize=8)
