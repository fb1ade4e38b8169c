"""How every figure looks and is saved: size, colours, markers, the line below it, formats.

Knows matplotlib and seaborn, never results.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eedkit.errors import unknown

_COLOURS = sns.color_palette("colorblind").as_hex()
KNOWN = {"random": _COLOURS[7], "plain": _COLOURS[0], "augmented": _COLOURS[1], "equivariant": _COLOURS[2]}
"""Colours of the bundled recipes, the same in every figure; others take the rest of seaborn's colour-blind palette."""
MARKERS = "osD^vPX*<>"
FORMATS = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
"""What `save` can write, with what is left out of each so that a figure is the same bytes every time."""


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


def save(fig: Figure, path: str | PathLike, formats: Sequence[str] = ("png", "svg")) -> Path:
    """Write a figure in some of the formats "png", "svg", "pdf", the same bytes every time; gives the first one's path.

    Parameters
    ----------
    path : without extension; folders are made
    """
    formats = [formats] if isinstance(formats, str) else list(formats)
    for name in formats or [""]:
        if name not in FORMATS:
            raise ValueError(unknown("format", name, FORMATS))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "eedkit", "svg.fonttype": "path"}):
        for name in formats:
            fig.savefig(f"{path}.{name}", dpi=160, bbox_inches="tight", metadata=FORMATS[name])
    return path.with_name(f"{path.name}.{formats[0]}")
