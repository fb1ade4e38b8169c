"""What a figure shows, in words made from what is drawn: for readers who do not see it.

Knows matplotlib, never results.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.category import StrCategoryLocator
from matplotlib.collections import QuadMesh
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import StepPatch
from matplotlib.ticker import FixedLocator

FEW = 8
"""Points of a series, at places that have names, that are all said."""
SHOWN_LABELS = 12
"""Series of one axes that are described; of more the first."""


def alt_text(fig: Figure) -> str:
    """The figure's caption, and of its axes every series with its ends, lowest and highest value.

    >>> import matplotlib.pyplot as plt
    >>> fig, ax = plt.subplots()
    >>> _ = ax.plot([0, 1], [0.5, 0.25], label="plain")
    >>> _ = ax.set(xlabel="depth", ylabel="EED")
    >>> alt_text(fig)
    'EED against depth. plain: from 0.5 at 0 to 0.25 at 1.'
    """
    said = [getattr(fig, "caption", fig.get_suptitle())]
    for ax in fig.axes:
        if ax.get_visible():
            said += _of_axes(ax)
    images = sum(len(ax.images) for ax in fig.axes)
    if images:
        said.append(f"{images} images")
    return sentences(said)


def sentences(texts: Sequence[str]) -> str:
    """Texts as sentences, each with its end, and without what matplotlib alone reads.

    >>> sentences(["Why", "", "Because."])
    'Why. Because.'
    """
    words = [_words(text) for text in texts]
    return " ".join(text if text.endswith(("?", ".", "!")) else f"{text}." for text in words if text)


def _of_axes(ax: Axes) -> list[str]:
    """Sentences on one axes; none on the scale of colours."""
    if ax.get_label() == "<colorbar>":
        return []
    said = [_words(ax.get_title()) or _words(ax.get_title(loc="left"))]
    if ax.get_ylabel() and ax.get_xlabel():
        said.append(f"{_words(ax.get_ylabel())} against {_words(ax.get_xlabel())}")
    for mesh in ax.collections:
        if isinstance(mesh, QuadMesh):
            said.append(_of_cells(ax, mesh))
    handles, labels = ax.get_legend_handles_labels()
    for handle, label in list(zip(handles, labels, strict=True))[:SHOWN_LABELS]:
        of_series = _of_series(ax, handle)
        if of_series:
            said.append(f"{_words(label)}: {of_series}")
    return said


def _of_series(ax: Axes, handle: object) -> str:
    """Every point of a few, else from where to where a series goes; of points without an order, and of outlines, the range."""
    if isinstance(handle, ErrorbarContainer):
        handle = handle[0]
    if isinstance(handle, StepPatch):
        heights, edges, _ = handle.get_data()
        highest = int(np.argmax(heights))
        return f"most, {heights[highest]:.2g}, between {edges[highest]:.3g} and {edges[highest + 1]:.3g}"
    if not isinstance(handle, Line2D):
        return ""
    x = np.asarray(handle.get_xdata(orig=False), dtype=float)
    y = np.asarray(handle.get_ydata(orig=False), dtype=float)
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    if not len(y):
        return ""
    if _has_texts(ax.yaxis):  # a line for each series, whose values lie along it
        return ", ".join(f"{value:.3g}" for value in x)
    if len(y) == 1 or (_has_texts(ax.xaxis) and len(y) <= FEW):
        return ", ".join(f"{value:.3g} at {_place(ax, at)}" for at, value in zip(x, y, strict=True))
    if handle.get_linestyle() == "None":
        return f"{len(y)} points from {y.min():.3g} to {y.max():.3g}"
    said = f"from {y[0]:.3g} at {_place(ax, x[0])} to {y[-1]:.3g} at {_place(ax, x[-1])}"
    for value, name in ((y.max(), "highest"), (y.min(), "lowest")):
        if value not in (y[0], y[-1]):
            said += f", {name} {value:.3g} at {_place(ax, x[list(y).index(value)])}"
    return said


def _of_cells(ax: Axes, mesh: QuadMesh) -> str:
    """The highest and the lowest cell of a heatmap."""
    cells = np.ma.filled(np.ma.asarray(mesh.get_array(), dtype=float), np.nan)
    rows = [text.get_text() for text in ax.get_yticklabels()]
    columns = [text.get_text() for text in ax.get_xticklabels()]
    if np.isnan(cells).all():
        return "no value"
    cells = cells.reshape(-1, mesh.get_coordinates().shape[1] - 1)
    ends = []
    for name, find in (("highest", np.nanargmax), ("lowest", np.nanargmin)):
        row, column = np.unravel_index(find(cells), cells.shape)
        where = ""
        if len(columns) == cells.shape[1] and len(rows) == cells.shape[0]:
            where = f" for {_words(rows[row])} under {_words(columns[column])}"
        ends.append(f"{name} {cells[row, column]:.2g}{where}")
    return ", ".join(ends)


def _place(ax: Axes, x: float) -> str:
    """A place on the x axis, by the text that stands nearest where there are texts."""
    if ax.name == "polar":
        return f"{np.rad2deg(x):.0f}°"
    if _has_texts(ax.xaxis):
        nearest = int(np.argmin(np.abs(np.asarray(ax.get_xticks()) - x)))
        return _words(ax.get_xticklabels()[nearest].get_text())
    return f"{x:.3g}"


def _has_texts(axis: Axis) -> bool:
    """Whether an axis names its places in words and not in numbers."""
    if not isinstance(axis.get_major_locator(), FixedLocator | StrCategoryLocator):
        return False
    return any(text.get_text().strip("−-.0123456789 ") for text in axis.get_ticklabels())


def _words(text: str) -> str:
    return " ".join(text.replace(r"\$", "$").split())
