"""How every figure looks: size, colours, markers, the line below it.

Knows matplotlib and seaborn, never results.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib as mpl
import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_COLOURS = sns.color_palette("colorblind").as_hex()
KNOWN = {"random": _COLOURS[7], "plain": _COLOURS[0], "augmented": _COLOURS[1], "equivariant": _COLOURS[2]}
"""Colours of the bundled recipes, the same in every figure; others take the rest of seaborn's colour-blind palette."""
MARKERS = "osD^vPX*<>"


@contextmanager
def figure(title: str, *, polar: bool = False) -> Iterator[tuple[Figure, Axes]]:
    """A figure of one axes, readable at one column's width."""
    with sns.axes_style("whitegrid"), mpl.rc_context({"axes.edgecolor": "0.4", "axes.titlesize": 12}):
        fig = blank((6.4, 4.2))
        ax = fig.add_subplot(projection="polar" if polar else None)
        fig.suptitle(title, fontsize=12)
        yield fig, ax


def blank(size: tuple[float, float]) -> Figure:
    """A figure that Jupyter shows where it is the value of a cell, and not a second time because pyplot holds it."""
    fig = plt.figure(figsize=size, layout="constrained")
    plt.close(fig)
    return fig


def styles(names: Sequence) -> dict:
    """Colour and marker for every different name, the bundled recipes' always the same."""
    kinds = list(dict.fromkeys(names))
    spare = [colour for colour in _COLOURS if colour not in KNOWN.values()]
    rest = iter(sns.color_palette("husl", len(kinds)).as_hex() if len(kinds) > len(spare) else spare)
    return {
        kind: {"color": KNOWN.get(kind) or next(rest), "marker": MARKERS[i % len(MARKERS)]}
        for i, kind in enumerate(kinds)
    }


def note(ax: Axes, text: str) -> None:
    """A small line below the axes."""
    ax.figure.text(0.5, -0.02, text, ha="center", va="top", fontsize=8, color="0.35")
