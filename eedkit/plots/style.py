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

from eedkit.errors import printable, unknown

_COLOURS = sns.color_palette("colorblind").as_hex()
KNOWN = {
    name: _COLOURS[k]
    for name, k in {
        **{"plain": 0, "augmented": 1, "equivariant": 2, "random": 7},
        **{"from_same": 9, "from_letters": 4, "from_patches": 3},
        **{"simclr": 9, "simclr_augmented": 3, "barlow_twins": 6, "barlow_twins_augmented": 4, "turns": 5},
    }.items()
}
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


@contextmanager
def grid(n: int, title: str, *, across: int, shared: bool) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of n axes, on one scale or each on its own, at most so many beside each other; a single one is as large as `figure` makes it."""
    columns, rows = min(n, across), -(-n // across)
    size = (6.4, 4.2) if n == 1 else (2.3 * columns + 1.8, 2.0 * rows + 0.8)
    with sns.axes_style("whitegrid"), mpl.rc_context({"axes.edgecolor": "0.4", "axes.titlesize": 10}):
        fig = blank(size)
        axes = fig.subplots(rows, columns, sharex=shared, sharey=shared, squeeze=False).ravel().tolist()
        for ax in axes[n:]:
            ax.set_visible(False)
        for ax in axes[:n]:
            ax.tick_params(labelbottom=True)
        fig.suptitle(title, fontsize=12)
        yield fig, axes[:n]


@contextmanager
def stack(rows: Sequence[int], title: str) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of axes one below the other, as high as they have rows."""
    with sns.axes_style("whitegrid", {"axes.grid": False}), mpl.rc_context({"axes.edgecolor": "0.4"}):
        fig = blank((8.0, 1.0 + sum(0.26 * n + 0.55 for n in rows)))
        ratios = [0.26 * n + 0.2 for n in rows]
        axes = fig.subplots(len(rows), 1, squeeze=False, gridspec_kw={"height_ratios": ratios}).ravel().tolist()
        fig.suptitle(title, fontsize=12)
        yield fig, axes


def blank(size: tuple[float, float]) -> Figure:
    """A figure that Jupyter shows where it is the value of a cell, and not a second time because pyplot holds it."""
    fig = plt.figure(figsize=size, layout="constrained")
    plt.close(fig)
    return fig


def styles(names: Sequence) -> dict:
    """Colour and marker for every different name, the bundled recipes' always the same."""
    kinds = list(dict.fromkeys(names))
    # never those of the four kinds that most figures show, nor of any other that is here
    taken = [KNOWN.get(kind) for kind in ("plain", "augmented", "equivariant", "random", *kinds)]
    spare = [colour for colour in _COLOURS if colour not in taken]
    rest = iter(sns.color_palette("husl", len(kinds)).as_hex() if len(kinds) > len(spare) else spare)
    return {
        kind: {"color": KNOWN.get(kind) or next(rest), "marker": MARKERS[i % len(MARKERS)]}
        for i, kind in enumerate(kinds)
    }


def literal(name: object) -> str:
    r"""A name as text that matplotlib draws as it is.

    A `$` opens no formula, a leading `_` hides no legend entry, and control characters, which break SVG, are written out.

    >>> literal("$a$")
    '\\$a\\$'
    """
    text = printable(str(name)).replace("$", r"\$")
    # a space without width stands before the underscore
    return f"\u200b{text}" if text.startswith("_") else text


def note(ax: Axes, text: str) -> None:
    """A small line below the figure."""
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
