"""A picture of the probes: the character error rate of each output."""

from collections.abc import Sequence
from pathlib import Path

from encodeonce.store.errors import StoreError
from encodeonce.store.extras import extra
from encodeonce.train.probe.run import Probed

BLUE, PALE = "#1f5fa8", "#a9c6e8"


def check_picture(path: Path) -> None:
    """Raises:
    StoreError: matplotlib is missing, knows no such ending, or there is no such folder.
    """
    with extra("views"):
        from matplotlib.backend_bases import FigureCanvasBase

    endings = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix.lower().removeprefix(".") not in endings:
        raise StoreError(f"cannot draw {path}: its ending is none of {', '.join(endings)}; give one such as probe.png")
    if not path.parent.is_dir():
        raise StoreError(f"cannot draw {path}: there is no folder {path.parent}; make it, or give another")


def draw(probes: Sequence[Probed], title: str, path: Path) -> None:
    """Write a picture (PNG, SVG or PDF, by the ending) of the character error rate by output, the best one marked.

    Raises:
        StoreError: the file cannot be written.
    """
    with extra("views"):
        from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6.4, 0.42 * len(probes)), 4.2), layout="constrained")
    axes = figure.add_subplot()
    rates = [100 * found.cer for found in probes]
    best = rates.index(min(rates))
    layers = all(found.layer is not None for found in probes) and len({found.layer for found in probes}) == len(probes)
    axes.plot(rates, "o-" if layers else "o", color=BLUE, lw=1.4, ms=5)
    axes.plot(best, rates[best], "o", color=BLUE, ms=11, mfc="none", mew=1.6)
    for place, rate in enumerate(rates):
        axes.annotate(f"{rate:.1f}", (place, rate), (0, 9), textcoords="offset points", ha="center", fontsize=8)
    names = [f"{found.layer}" if layers else found.output for found in probes]
    axes.set_xticks(range(len(names)), names, rotation=0 if layers else 30, ha="center" if layers else "right")
    axes.set(
        title=title,
        xlabel="layer" if layers else "output",
        ylabel="character error rate, %",
        ylim=(0, 1.12 * max(rates)),
    )
    axes.grid(alpha=0.25, lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot write the picture {path}: {error}") from error
