"""A matplotlib figure as SVG to put into a page: it takes the page's colours and font, and no id or style of it reaches out."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING

from encodeonce.evaluate.report.palette import INK
from encodeonce.store.extras import extra

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 5.4
"""Of all charts, inches of 72 units: text of 9 units is readable on a telephone, and not huge on a screen."""

_STYLE = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.alpha": 0.2,
    "grid.color": INK,
    "grid.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "encodeonce",
}


@contextmanager
def drawing(height: float) -> "Iterator[Figure]":
    """A figure of the report's width and look; without pyplot, so that no window and no other figure is touched.

    Args:
        height: inches.

    Raises:
        StoreError: matplotlib is not installed; the message says how to install it.
    """
    with extra("evaluate"):
        import matplotlib
        from matplotlib.figure import Figure
    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(WIDTH, height), layout="constrained")


def inline_svg(figure: "Figure", name: str, title: str, description: str) -> str:
    """The text of an `<svg>` element; to be called inside `drawing`.

    Args:
        name: before each of its ids, so that two charts of a page never share one.
        title, description: what is read where pictures are not seen.
    """
    file = io.StringIO()
    with warnings.catch_warnings():
        # Texts are drawn by the browser, which has fonts for them.
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{name}-", text).replace("xlink:href", "href")
    text = text.replace(INK, "currentColor").replace("'DejaVu Sans'", "system-ui, sans-serif")
    text = re.sub(r"\s*\n\s*", "\n", text)
    box = re.search(r'viewBox="[^"]+"', text)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {box[0] if box else ""} class="chart" role="img" '
        f'aria-labelledby="{name}-title {name}-description" style="stroke-linejoin: round; stroke-linecap: butt">\n'
        f'<title id="{name}-title">{escape(title)}</title>\n'
        f'<desc id="{name}-description">{escape(description)}</desc>'
    )
    return head + text[text.index(">") + 1 :].rstrip()
