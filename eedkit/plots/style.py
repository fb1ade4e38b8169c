"""How every figure looks and is saved: width, fonts, colours, markers, the line below it, formats.

Knows matplotlib, never results. Seaborn, which costs a second to import, waits for the figure that needs it.
"""

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from eedkit.errors import printable, unknown

WIDTHS = {"column": 3.5, "neurips": 5.5, "page": 7.2}
"""Inches of one column of a two-column paper, of NeurIPS' single one, and of both columns."""
NARROW = 5.0
"""Inches under which figures have smaller text, fewer panels in a row, and their legends below."""
COLOURS = [
    *("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc"),
    *("#ca9161", "#fbafe4", "#949494", "#ece133", "#56b4e9"),
]
"""Seaborn's "colorblind": any two can be told apart, also by readers with deuteranopia (ΔE ≥ 10)."""
WHITEGRID: dict[Any, Any] = plt.style.library["seaborn-v0_8-whitegrid"] | {
    "font.sans-serif": ["Arial", "DejaVu Sans"],
    "patch.edgecolor": "w",
    "patch.force_edgecolor": True,
}
MARKERS = "osD^vP*<>XphdH"
KNOWN = {
    "plain": (COLOURS[0], "o"),
    "augmented": (COLOURS[1], "s"),
    "equivariant": (COLOURS[2], "D"),
    "random": (COLOURS[7], "^"),
    "from_same": (COLOURS[9], "v"),
    "from_letters": (COLOURS[4], "P"),
    "from_patches": (COLOURS[3], "*"),
    "simclr": (COLOURS[9], "<"),
    "simclr_augmented": (COLOURS[3], ">"),
    "barlow_twins": (COLOURS[6], "X"),
    "barlow_twins_augmented": (COLOURS[4], "p"),
    "turns": (COLOURS[5], "h"),
}
"""Colour and marker of the bundled recipes, the same in every figure; other names take what these leave."""
USUAL = ("plain", "augmented", "equivariant", "random")
"""Those that most figures show."""
FORMATS = {"png": "Software", "svg": "Date", "pdf": "CreationDate"}
"""What `save` can write, with what is left out of each so that a figure is the same bytes every time."""
DESCRIPTIONS = {"png": "Description", "svg": "Description", "pdf": "Subject"}
"""Where each keeps the words that say what is seen."""
SHOWN_AS = {"svg": "image/svg+xml", "png": "image/png"}
"""The saved files that a notebook can show in place of the figure, the best first."""
_width: ContextVar[float] = ContextVar("width", default=WIDTHS["page"])


@contextmanager
def width(of: str) -> Iterator[None]:
    """Figures that are made within it are as wide as a paper's column or page.

    Parameters
    ----------
    of : "column", "neurips" or "page"
        3.5, 5.5 or 7.2 inches; outside this context figures are as wide as the page.

    Raises
    ------
    ValueError
        Another name.

    Examples
    --------
    >>> import pandas as pd, eedkit as ek
    >>> table = pd.DataFrame({"recipe": ["plain"], "accuracy": [0.9], "relative": [0.5]})
    >>> with ek.plots.width("column"):
    ...     figure = ek.plots.cloud(table, x="accuracy", y="relative")
    >>> float(figure.get_figwidth())
    3.5
    """
    if of not in WIDTHS:
        raise ValueError(unknown("width of a figure", str(of), WIDTHS))
    token = _width.set(WIDTHS[of])
    try:
        yield
    finally:
        _width.reset(token)


@contextmanager
def theme(*, grid: bool = True) -> Iterator[None]:
    """Fonts, lines and colours of everything that is drawn within it."""
    size = text_size()
    looks: dict[Any, Any] = WHITEGRID | {
        "font.size": size,
        "figure.titlesize": size + 2,
        "axes.titlesize": size + 1,
        "axes.labelsize": size,
        "xtick.labelsize": size - 0.5,
        "ytick.labelsize": size - 0.5,
        "legend.fontsize": size,
        "lines.linewidth": 1.6,
        "lines.markersize": size / 2 + 1,
        "errorbar.capsize": 2,
        "axes.edgecolor": "0.4",
        "axes.grid": grid,
    }
    with mpl.rc_context(looks):
        yield


@contextmanager
def panels(
    n: int,
    title: str | None,
    *,
    question: str = "",
    ax: Axes | None = None,
    at_most: int = 3,
    height: float | None = None,
    shared: bool = True,
    polar: bool = False,
    grid: bool = True,
) -> Iterator[tuple[Figure | Axes, list[Axes]]]:
    """A figure of n axes, on one scale or each on its own, so many at most beside each other; or the user's own axes.

    The title is the question where it is None, and nothing where it is ""; on the user's axes there is none unless it is
    given. `height` is that of a row of axes, in inches.
    """
    if ax is not None:
        if n != 1:
            raise ValueError(
                f"ax= takes one panel, and there are {n}: select one metric, model, group and data set of them"
            )
        if polar != (ax.name == "polar"):
            raise ValueError(
                f"expected {'polar' if polar else 'plain'} axes, got {ax.name} ones: plt.subplots(subplot_kw=…)"
            )
        if title:
            ax.set_title(title)
        _add_to_caption(ax.figure, title or question)
        with theme(grid=grid):
            yield ax, [ax]
        return
    columns = min(n, across(at_most))
    rows = -(-n // columns)
    if height is None:
        height = 2.0 if n > 1 else 0.55 * inches() - 0.6
    projection = {"projection": "polar"} if polar else {}
    with theme(grid=grid):
        fig = blank(height * rows + 0.6, title, question)
        grid_of_axes = fig.subplots(rows, columns, sharex=shared, sharey=shared, squeeze=False, subplot_kw=projection)
        axes = grid_of_axes.ravel().tolist()
        for ax in axes[n:]:
            ax.set_visible(False)
        for ax in axes[:n]:
            ax.tick_params(labelbottom=True)
        yield fig, axes[:n]


def inches() -> float:
    """How wide a figure is."""
    return _width.get()


def text_size() -> float:
    """Points of a figure's text."""
    return 8.0 if inches() < NARROW else 9.0


def across(at_most: int, *, narrow: int = 2) -> int:
    """How many panels stand beside each other at most, and how many in one column of a paper."""
    return min(at_most, narrow) if inches() < NARROW else at_most


def blank(height: float, title: str | None, question: str = "") -> Figure:
    """An empty figure, so many inches high, below its title, which is the question where it is None.

    Jupyter shows it where it is the value of a cell, and not a second time because pyplot holds it.
    """
    shown = question if title is None else title
    size = text_size()
    lines = _wrapped(shown, inches(), size + 2)
    fig = plt.figure(figsize=(inches(), height + _inches(len(lines), size + 2)), layout="constrained")
    plt.close(fig)
    fig.suptitle("\n".join(lines))
    _add_to_caption(fig, shown or question)
    return fig


def _add_to_caption(fig: Any, text: str) -> None:
    """`figure.caption` says what the figure asks and how it is read, also where its title is left out.

    Texts become sentences, without what matplotlib alone reads.
    """
    words = " ".join(text.replace(r"\$", "$").split())
    sentence = words[:1].upper() + words[1:] + ("" if words.endswith(("?", ".", "!")) else ".")
    fig.caption = " ".join(filter(None, (getattr(fig, "caption", ""), sentence if words else "")))


def finish(fig: Figure | Axes, entries: Sequence[Artist], note: str = "", *, legend_below: bool = False) -> None:
    """The legend beside the axes, in one column of a paper or where asked for below them, and a small line at the bottom.

    Parameters
    ----------
    fig : Figure or Axes
        Of `panels` or `blank`; the user's own axes get a legend alone.
    entries : sequence of Artist
        What the legend names, each by its label.
    note : str
        The small line.
    legend_below : bool
        Put the legend below the axes whatever the width.
    """
    _add_to_caption(fig.figure, note)
    if isinstance(fig, Axes):
        if entries:
            fig.legend(handles=list(entries), frameon=False)
        return
    legend_below = legend_below or inches() < NARROW
    size = text_size() - 1
    lines = _wrapped(note, inches(), size)
    note_height = _inches(len(lines), size)
    legend_height = legend_width = 0.0
    legend = None
    if entries:
        longest = max(len(str(entry.get_label())) for entry in entries)
        legend = fig.legend(
            handles=list(entries),
            loc="lower center" if legend_below else "center right",
            ncols=_legend_columns(longest) if legend_below else 1,
            frameon=False,
        )
        extent = legend.get_window_extent()
        if legend_below:
            legend_height = extent.height / fig.dpi
        else:
            legend_width = extent.width / fig.dpi + 0.05  # the last number on the axis may stand out
    below = note_height + legend_height
    fig.set_figheight(fig.get_figheight() + below)
    note_share = note_height / fig.get_figheight()
    if legend is not None:
        legend.set_bbox_to_anchor((0, note_share, 1, 1 - note_share), transform=fig.transSubfigure)
    if lines:
        fig.text(
            0.5, 0.25 * note_share / len(lines), "\n".join(lines), ha="center", va="bottom", size=size, color="0.35"
        )
    below_share = below / fig.get_figheight()
    # the layout keeps axes and titles out of the room of both
    fig.get_layout_engine().set(rect=(0, below_share, 1 - legend_width / inches(), 1 - below_share))


def _legend_columns(longest: int) -> int:
    """How many entries of so many characters stand in a row below the axes."""
    return max(1, int(12 * inches()) // (longest + 4))


def entries(looks: dict, **options: object) -> list[Line2D]:
    """A legend's entry for each name, with its colour and marker."""
    return [Line2D([], [], label=literal(name), **(look | options)) for name, look in looks.items()]


def wrapped(text: str, characters: int) -> str:
    """A text in lines of so many characters at most."""
    return "\n".join(textwrap.wrap(text, characters))


def _wrapped(text: str, inches: float, points: float) -> list[str]:
    """The lines of a text at a font size, somewhat more than half of which a character takes."""
    lines = []
    for line in text.splitlines():
        lines += textwrap.wrap(line, int(inches * 72 / (0.58 * points))) or [""]
    return lines


def _inches(lines: int, points: float) -> float:
    """How high so many lines of text are."""
    return lines * 1.35 * points / 72


def looks(names: Sequence) -> dict:
    """Colour and marker for every different name: numbers on an ordered scale, the bundled recipes always the same."""
    kinds = list(dict.fromkeys(names))
    if len(kinds) > 1 and pd.api.types.is_numeric_dtype(pd.Series(kinds)):
        steps = np.linspace(0, 1, len(kinds) + 3)[1:-2]  # the last are too bright on white
        shades = [to_hex(colour) for colour in mpl.colormaps["viridis"](steps)]
        places = {kind: place for place, kind in enumerate(sorted(kinds))}
        return {kind: _look(shades[places[kind]], MARKERS[places[kind] % len(MARKERS)]) for kind in kinds}
    others = [kind for kind in kinds if kind not in KNOWN]
    colours = _spare(COLOURS, kinds, part=0)
    markers = _spare(MARKERS, kinds, part=1)
    if len(others) > len(colours):
        import seaborn as sns

        colours = sns.color_palette("husl", len(others)).as_hex()
    found = {kind: _look(*KNOWN[kind]) for kind in kinds if kind in KNOWN}
    for place, kind in enumerate(others):
        found[kind] = _look(colours[place], markers[place % len(markers)])
    return {kind: found[kind] for kind in kinds}


def _spare(all_there_are: Sequence[str], kinds: Sequence, *, part: int) -> list[str]:
    """The colours or markers that no recipe of a figure has, those of the four that most figures show at the end."""
    taken = {KNOWN[kind][part] for kind in kinds if kind in KNOWN}
    usual = {KNOWN[kind][part] for kind in USUAL}
    free = [one for one in all_there_are if one not in taken]
    return [one for one in free if one not in usual] + [one for one in free if one in usual]


def _look(colour: str, marker: str) -> dict[str, str]:
    """As matplotlib takes them."""
    return {"color": colour, "marker": marker}


def log_scale(ax: Axes, which: Literal["x", "y"]) -> None:
    """A logarithmic axis with plain numbers, as many as its range has room for; its limits must be known."""
    ax.set(**{f"{which}scale": "log"})
    axis = {"x": ax.xaxis, "y": ax.yaxis}[which]
    low, high = axis.get_view_interval()
    decades = np.log10(high / low)
    steps = (1, 2, 5) if decades < 2 else (1, 3) if decades < 5 else (1,)
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def is_first_column(ax: Axes) -> bool:
    """Whether no other panel stands to the left; so it is of axes that were put in place by hand."""
    place = ax.get_subplotspec()
    return place is None or place.is_first_col()


def relative_scale(ax: Axes) -> None:
    """0 and 1 of a relative value are in sight, and marked."""
    low, high = ax.get_ylim()
    ax.set_ylim(min(low, -0.03), max(high, 1.03))
    for height in (0, 1):
        ax.axhline(height, color="0.5", linewidth=0.8, zorder=0.5)


def literal(name: object) -> str:
    r"""A name as text that matplotlib draws as it is.

    A `$` opens no formula, a leading `_` hides no legend entry, and control characters, which break SVG, are written out.

    >>> literal("$a$")
    '\\$a\\$'
    """
    text = printable(str(name)).replace("$", r"\$")
    # a space without width stands before the underscore
    return f"\u200b{text}" if text.startswith("_") else text


def save(fig: Figure, path: str | PathLike, formats: str | Sequence[str] = "svg") -> Path:
    """Write a figure in some of the formats "svg", "png", "pdf", the same bytes every time; gives the first one's path.

    Fonts are embedded, and each file holds `figure.caption`. In a notebook the figure then shows that SVG or PNG file, so
    that it is drawn once.

    Parameters
    ----------
    fig : Figure
        Any figure of matplotlib's.
    path : str or path
        Without extension; folders are made.
    formats : str or sequence of str
        One or several of `FORMATS`.

    Returns
    -------
    Path
        Of the first format's file.

    Raises
    ------
    ValueError
        There is no such format, or none is named.

    Examples
    --------
    >>> import pandas as pd, tempfile, eedkit as ek
    >>> table = pd.DataFrame({"recipe": ["plain"], "accuracy": [0.9], "relative": [0.5]})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ek.plots.save(ek.plots.cloud(table, x="accuracy", y="relative"), f"{folder}/cloud").name
    'cloud.svg'
    """
    formats = [formats] if isinstance(formats, str) else list(formats)
    for name in formats or [""]:
        if name not in FORMATS:
            raise ValueError(unknown("format", name, FORMATS))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    words = getattr(fig, "caption", fig.get_suptitle())
    with mpl.rc_context({"svg.hashsalt": "eedkit", "svg.fonttype": "path", "pdf.fonttype": 42}):
        for name in formats:
            metadata = {FORMATS[name]: None, DESCRIPTIONS[name]: words}
            fig.savefig(f"{path}.{name}", dpi=200, metadata=metadata)
    for name, kind in SHOWN_AS.items():
        if name in formats:
            fig.stale = False
            fig.__dict__["_ipython_display_"] = partial(_show_file, fig, Path(f"{path}.{name}"), kind, words)
            break
    return path.with_name(f"{path.name}.{formats[0]}")


def _show_file(fig: Figure, file: Path, kind: str, words: str) -> None:
    """Show the file in place of a figure in a notebook; the figure itself if it has been changed since."""
    from IPython.display import display

    if fig.stale or not file.exists():
        del fig.__dict__["_ipython_display_"]
        display(fig)
        return
    content = file.read_bytes()
    data = content.decode() if kind == "image/svg+xml" else content
    about = {kind: {"alt": words, "file": str(file)}}
    display({kind: data, "text/plain": words}, raw=True, metadata=about)
