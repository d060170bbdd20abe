"""Turn matplotlib figures into SVG that sits well in a page.

Colours are CSS variables with fallbacks, text takes the page's font, backgrounds are transparent:
the same drawing reads on a light and on a dark page. Nothing here touches pyplot.
"""

from __future__ import annotations

import io
import math
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from erasus_pl.evaluation.evidence import Array

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "DASHES",
    "Plot",
    "corners",
    "decade",
    "drawing",
    "figure_of",
    "label",
    "render",
    "thinned",
    "tick_labels",
]

COLOURS = {
    "original": "#d55e00",
    "unlearned": "#0072b2",
    "retrained": "#009e73",
    "ink": "#1b1d22",
    "muted": "#5d636f",
    "line": "#d3d7de",
}
"""Name to colour: Okabe and Ito's palette for the models, greys for the rest."""

DASHES = {"original": "--", "unlearned": "-", "retrained": "-."}
"""Model to line style, so that colour never stands alone."""

_STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": COLOURS["muted"],
    "axes.grid": True,
    "axes.labelcolor": COLOURS["ink"],
    "axes.labelsize": 11,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.6,
    "legend.fontsize": 10.5,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "erasus_pl",
    "text.color": COLOURS["ink"],
    "text.usetex": False,
    "xtick.color": COLOURS["muted"],
    "xtick.labelcolor": COLOURS["ink"],
    "xtick.labelsize": 10.5,
    "ytick.color": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["ink"],
    "ytick.labelsize": 10.5,
}
_POINTS = 400
_WIDTH = 5.6  # inches at 72 units each
_LOCK = threading.Lock()
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class Plot:
    """A drawing ready for the page.

    Attributes:
        key: Short name, unique among a report's plots.
        title: One sentence that states what is seen.
        caption: How to read it.
        svg: An `<svg>` element without XML prologue.
    """

    key: str
    title: str
    caption: str
    svg: str


@contextmanager
def drawing() -> Iterator[None]:
    """Hold matplotlib's settings at this module's, under a lock; restore them at the end."""
    import matplotlib

    with _LOCK, matplotlib.rc_context(cast(Any, _STYLE)):
        yield


def label(text: str) -> str:
    """Return `text` as matplotlib shows it literally: no mathematics, nothing XML forbids."""
    return _CONTROL.sub("\ufffd", text).replace("$", r"\$")


def tick_labels(axis: Axis, form: Callable[[float], str]) -> None:
    """Label the major ticks of `axis` by `form` and leave out the minor ones."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    axis.set_major_formatter(FuncFormatter(lambda value, _: form(value)))
    axis.set_minor_locator(NullLocator())


def figure_of(height: float) -> Figure:
    """Return an empty figure of the common width and `height` inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(_WIDTH, height), layout="constrained")


def render(key: str, title: str, caption: str, figure: Figure) -> Plot:
    """Turn a finished figure into an inline `<svg>` whose ids start with `key`."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    svg = buffer.getvalue()
    svg = re.sub(r"<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', r"<svg \1", svg, count=1)
    svg = re.sub(r"'DejaVu Sans'(, [^;\"]*)?", "inherit", svg)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{key}-", svg)
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name}, {colour})")
    return Plot(key, title, caption, svg)


def decade(value: float) -> str:
    """Return the label of a power of ten: 0.01, 1, 100, and with an exponent beyond."""
    exponent = round(math.log10(value))
    if -3 < exponent < 4:
        return f"{value:g}"
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "\u207b⁰¹²³⁴⁵⁶⁷⁸⁹"))


def corners(rates: Array) -> npt.NDArray[np.bool_]:
    """Mark the points of a monotone curve that are not inside a run of equal values."""
    inside = (rates[1:-1] == rates[:-2]) & (rates[1:-1] == rates[2:])
    return np.concatenate([[True], ~inside, [True]])


def thinned(steps: Array, values: Array) -> tuple[Array, Array]:
    """Keep every k-th point and both ends, at most `_POINTS` or so."""
    keep = np.unique(np.linspace(0, len(steps) - 1, _POINTS).astype(int))
    return steps[keep], values[keep]
