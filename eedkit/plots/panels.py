"""Figures of tables with one row per network: lines over replicates, clouds of networks, and the effects behind verdicts.

Knows columns of tables, never what was measured. Costs a second or two per figure.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from eedkit.errors import unknown
from eedkit.plots import style
from eedkit.results.intervals import mean_interval

FEW = 8
"""Places on an axis that get a tick each."""
SPREAD = 0.6
"""The part of the room between two names over which their points stand side by side, so that bars do not overlap."""
ASIDE = 0.07
"""Inches between the lines of a figure that stand side by side at a number."""
FAR = 10
"""An effect further from the panel's middle than so many times the usual distance is drawn at the panel's end, as an arrow."""
CLAIMED = "0.9"
VERDICTS = {
    "supported": ("#029e73", "o"),
    "contradicted": ("#d55e00", "X"),
    "inconclusive": ("0.45", "s"),
    "not testable here": ("0.7", "D"),
}
"""Colour and marker of each verdict."""


def lines(
    table: pd.DataFrame,
    *,
    x: str,
    y: str,
    by: str = "recipe",
    panel: str | None = None,
    title: str | None = None,
    xlabel: str | None = None,
    ylabel: str | None = None,
    line: float | None = None,
    line_label: str = "",
    log: bool = False,
    shared: bool = True,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    ax: Axes | None = None,
) -> Figure:
    """Mean of `y` at every `x`, one line per `by`, with 95 % intervals over the rows (seeds); a panel per value of `panel`.

    Numbers and ordered categories (`pandas.Categorical`) on the x axis are joined by lines; other texts have no order. At
    every place the lines stand side by side. Numbers and ordered categories of `by` get the colours of a scale. A `y` that is
    called `relative` shows 0 and 1, an `estimate` the best value.

    Parameters
    ----------
    table : one row per replicate; texts of `x` are spread evenly in the order in which they appear
    line, line_label : a horizontal line, and what it says
    log : a logarithmic `y`; means and intervals are those of the logarithms, so that they stay above 0, and what has none
        is counted below the figure
    shared : whether all panels have one scale
    bounds : the range that `y` can have, in which intervals stay
    title : None and "" draw none
    ax : axes of your own, for one panel

    Raises
    ------
    ValueError
        There is no such column, or no row with a value.
    """
    rows = rows_with_values(table, (x, y, by, *([panel] if panel else [])), y).dropna(subset=[x])
    not_shown = 0
    if log:
        not_shown = int((rows[y].to_numpy() <= 0).sum())
        rows = rows_with_values(rows.where(rows[y] > 0), (), y)
    best = _best(rows, y)
    bounds = (max(bounds[0], best), bounds[1])
    kinds = list(dict.fromkeys(rows[panel])) if panel else [None]
    looks = _looks(rows.loc[:, by])
    places = _Places(rows.loc[:, x])
    with style.panels(
        len(kinds),
        title or "",
        question=f"{style.literal(y)} against {style.literal(x)}",
        ax=ax,
        at_most=2 if len(kinds) == 4 else 3,
        shared=shared,
    ) as (fig, axes):
        for ax, kind in zip(axes, kinds, strict=True):
            part = rows if kind is None else rows.loc[rows[panel] == kind]
            for k, (name, look) in enumerate(looks.items()):
                ours = part.loc[part[by] == name]
                if ours.empty:
                    continue
                of_places = ours.groupby(places.of(ours.loc[:, x]))
                points = [(at, *_interval(rows_there.loc[:, y], log, bounds)) for at, rows_there in of_places]
                at, mid, low, high = np.array(points).T
                aside = (k + 0.5) / len(looks) - 0.5
                if not places.ordered:
                    at = at + SPREAD * aside
                bars = [mid - low, high - mid]
                joined = "-" if places.ordered else ""
                drawn = ax.errorbar(at, mid, bars, linestyle=joined, **look, label=style.literal(name))
                if places.ordered:
                    # the data keep their places, and what is drawn stands beside the other lines
                    across = ScaledTranslation(ASIDE * len(looks) * aside, 0, ax.figure.dpi_scale_trans)
                    for artist in drawn.get_children():
                        artist.set_transform(ax.transData + across)
            if line is not None:
                ax.axhline(line, color="0.4", linewidth=1, linestyle="--")
            places.mark(ax)
            if log:
                style.log_scale(ax, "y")
            if kind is not None:
                ax.set_title(style.literal(kind))
            ax.set_xlabel(style.literal(x) if xlabel is None else xlabel)
            if style.is_first_column(ax):
                ax.set_ylabel(style.literal(y) if ylabel is None else ylabel)
            _mark_scale(ax, y, best)
        entries = style.entries(looks, linestyle="-" if places.ordered else "")
        if line is not None and line_label:
            entries += style.entries({line_label: {"color": "0.4"}}, linestyle="--", linewidth=1)
        counts = pd.Series(rows.groupby([by, x, *([panel] if panel else [])], observed=True).size())
        note = _bars(counts, log)
        if not_shown:
            note += f"; not shown: {not_shown} values that are not above 0"
        style.finish(fig, entries, note)
    return fig.figure


def _looks(column: pd.Series) -> dict:
    """Colour and marker for every value of a column: on a scale where its values have an order, with the first one first."""
    names = list(dict.fromkeys(column))
    is_ordered = isinstance(column.dtype, pd.CategoricalDtype) and column.cat.ordered
    if is_ordered:
        names = [name for name in column.cat.categories if name in names]
    elif pd.api.types.is_numeric_dtype(column):
        names = sorted(names)
    else:
        return style.looks(names)
    return dict(zip(names, style.looks(range(len(names))).values(), strict=True))


class _Places:
    """Where the values of a column stand on an axis: numbers at themselves, texts side by side."""

    def __init__(self, column: pd.Series) -> None:
        self.column = column
        self.names: list = []
        self.ordered = True
        if isinstance(column.dtype, pd.CategoricalDtype):
            there = set(column)
            self.names = [name for name in column.cat.categories if name in there]
            self.ordered = bool(column.cat.ordered)
        elif not pd.api.types.is_numeric_dtype(column):
            self.names = list(dict.fromkeys(column))
            self.ordered = False

    def of(self, values: pd.Series) -> np.ndarray:
        """The places of some of the values."""
        if self.names:
            return np.array([self.names.index(value) for value in values], dtype=float)
        return values.to_numpy(dtype=float)

    def mark(self, ax: Axes) -> None:
        """Ticks at texts and at few numbers."""
        if self.names:
            ax.set_xticks(range(len(self.names)), [style.literal(name) for name in self.names])
            characters_of_all = max(len(str(name)) for name in self.names) * len(self.names)
            if characters_of_all > 80 * ax.get_position().width:
                ax.tick_params(axis="x", rotation=30)
            if not self.ordered:
                ax.grid(visible=False, axis="x")
        elif self.column.nunique() <= FEW:
            ax.set_xticks(sorted(self.column.unique()))
        elif pd.api.types.is_integer_dtype(self.column):
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _interval(values: pd.Series, log: bool, bounds: tuple[float, float]) -> tuple[float, float, float]:
    """Mean and 95 % interval within the bounds, of the logarithms where asked for; no interval for a single value."""
    mid, low, high = mean_interval((np.log(values) if log else values).tolist())
    if not np.isfinite([low, high]).all():
        low = high = mid
    if log:
        mid, low, high = np.exp([mid, low, high])
    low, high = np.clip([low, high], *bounds)
    return mid, min(low, mid), max(high, mid)


def _best(rows: pd.DataFrame, y: str) -> float:
    """The least value that a column can have, where the table tells it."""
    if y == "relative":
        return 0.0
    if y == "estimate" and "best" in rows and rows.best.nunique() == 1:
        return float(rows.best.iloc[0])
    return -np.inf


def _mark_scale(ax: Axes, y: str, best: float) -> None:
    """0 and 1 of relative values, the best of others."""
    if y == "relative":
        style.relative_scale(ax)
    elif np.isfinite(best):
        ax.axhline(best, color="0.5", linewidth=0.8, zorder=0.5)


def _bars(counts: pd.Series, log: bool) -> str:
    """What the bars are, and over how many networks."""
    if counts.max() == 1:
        return ""
    networks = f"{counts.max()} networks" if counts.nunique() == 1 else f"{counts.min()} to {counts.max()} networks"
    return f"bars: 95 % over {networks}" + (", geometric means" if log else "")


def dose_response(rows: pd.DataFrame, *, title: str | None = None, ax: Axes | None = None) -> Figure:
    """The share of the relative deviation that is gone, by the share of turned training images, with its intervals.

    Parameters
    ----------
    rows : DataFrame
        Of `paper.conclusions.dose_response`.
    title : str, or None
        None asks the figure's question, "" leaves it out.
    ax : Axes, or None
        Axes of your own.

    Raises
    ------
    ValueError
        A column is missing, or no row has a value.
    """
    rows = rows_with_values(rows, ("share", "what", "effect", "low", "high", "n"), "effect")
    looks = style.looks(rows.what)
    shares = sorted(rows.share.unique())
    with style.panels(1, title, question="How many turned images does it take?", ax=ax) as (fig, (ax,)):
        for name, look in looks.items():
            ours = rows.loc[rows.what == name].sort_values(by="share")
            low = ours.low.where(np.isfinite(ours.low), ours.effect)
            high = ours.high.where(np.isfinite(ours.high), ours.effect).clip(upper=1)  # more than all cannot be gone
            ax.errorbar(
                ours.share, ours.effect, [ours.effect - low, high - ours.effect], **look, label=style.literal(name)
            )
        ax.set_xscale("log")
        ax.set_xlabel("share of turned training images")
        ax.set_ylabel("share of deviation gone")
        ax.set_xticks(shares, [f"{share:g}" for share in shares])
        ax.minorticks_off()
        style.relative_scale(ax)
        note = f"0: as without turned images, 1: nothing is left of the deviation; bars: 95 % over {rows.n.max()} seeds"
        style.finish(fig, style.entries(looks, linestyle="-"), note)
    return fig.figure


def cloud(
    table: pd.DataFrame,
    *,
    x: str,
    y: str,
    by: str = "recipe",
    title: str | None = None,
    xlabel: str | None = None,
    ylabel: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """One point per row of a table: `y` against `x`, coloured by `by`; a network may have several, told by `model`."""
    rows = rows_with_values(table, (x, y, by), y).dropna(subset=[x])
    looks = _looks(rows.loc[:, by])
    question = f"{style.literal(y)} against {style.literal(x)}"
    with style.panels(1, title or "", question=question, ax=ax) as (fig, (ax,)):
        for name, look in looks.items():
            ours = rows[rows[by] == name]
            ax.plot(ours[x], ours[y], linestyle="", alpha=0.85, **look, label=style.literal(name))
        ax.set_xlabel(style.literal(x) if xlabel is None else xlabel)
        ax.set_ylabel(style.literal(y) if ylabel is None else ylabel)
        _mark_scale(ax, y, _best(rows, y))
        networks = rows.model.nunique() if "model" in rows else len(rows)
        style.finish(fig, style.entries(looks, linestyle=""), f"{networks} networks")
    return fig.figure


def effects(rows: pd.DataFrame, *, title: str = "", labels: Mapping[str, str] | None = None) -> Figure:
    """Every comparison's effect with its bounds, in its own unit, beside its margin; a panel for each part of a conclusion.

    On each row the side of the margin that is claimed is shaded. An effect is as claimed where its bounds lie wholly in the
    shade, clear of the margin. What does not fit on a panel's scale ends in an arrow.

    Parameters
    ----------
    rows : of `paper.conclusions`, of one or several of them; rows that repeat a comparison (those of parts and conclusions)
        are left out
    labels : name of a conclusion -> what stands for it in the titles of its panels
    """
    rows = rows.loc[rows.decided_by == ""]
    keys = [name for name in ("conclusion", "beside", "part") if name in rows]
    parts = [part for _, part in rows.groupby(keys, sort=False)]
    several = rows.conclusion.nunique() > 1
    characters = int(15 + 5 * style.inches())
    names = []
    heights = []
    for part in parts:
        names.append([style.wrapped(style.literal(test), characters) for test in part.test])
        lines_of_names = sum(len(name.splitlines()) for name in names[-1])
        heights.append(0.1 * len(part) + 0.16 * lines_of_names)
    with style.theme(grid=False):
        fig = style.blank(0.6 + sum(heights) + 0.55 * len(parts), title)
        grid = fig.subplots(len(parts), 1, squeeze=False, gridspec_kw={"height_ratios": heights})
        axes = grid.ravel().tolist()
        for ax, part, tests in zip(axes, parts, names, strict=True):
            ends = _ends(part)
            for place, row in enumerate(part.itertuples()):
                _draw_effect(ax, place, row, ends)
            ax.set_yticks(range(len(part)), tests)
            ax.set_ylim(len(part) - 0.4, -0.6)
            ax.set_xlim(*ends)
            ax.xaxis.set_major_locator(MaxNLocator(style.across(6, narrow=3)))
            conclusion, *about = part[keys].iloc[0].astype(str).tolist()
            if several or not about:
                about = [(labels or {}).get(conclusion, conclusion), *about]
            panel_title = ": ".join(style.literal(text) for text in about if text)
            ax.set_title(style.wrapped(panel_title, int(9 * style.inches() - 14)), loc="left")
        axes[-1].set_xlabel("effect")
        there = [verdict for verdict in VERDICTS if verdict in set(rows.verdict)]
        looks = {verdict: dict(zip(("color", "marker"), VERDICTS[verdict], strict=True)) for verdict in there}
        entries = [*style.entries(looks, linestyle="-"), Patch(color=CLAIMED, label="claimed")]
        style.finish(
            fig, entries, "each effect with its bounds, in its own unit; upright: its margin", legend_below=True
        )
    return fig


def _margins(row: Any) -> list[float]:
    """Where the margin of a claim stands; on both sides of 0 where it has two sides."""
    return [-row.margin, row.margin] if row.claim == "beyond" else [row.margin]


def _ends(part: pd.DataFrame) -> tuple[float, float]:
    """The ends of a panel's scale: all effects, margins and bounds, but for those that lie far from most."""
    inner = part.effect.tolist()
    for row in part.itertuples():
        inner += _margins(row)
    inner = np.array(inner)[np.isfinite(inner)]
    middle = np.median(inner)
    widths = (part.high - part.low)[np.isfinite(part.high - part.low)]
    usual = max(np.median(np.abs(inner - middle)), widths.median() if len(widths) else 0.0, 1e-12)
    inner = inner[np.abs(inner - middle) <= FAR * usual]
    bounds = np.concatenate([part.low, part.high])
    span = max(np.ptp(inner), usual)
    near = bounds[(bounds > inner.min() - span) & (bounds < inner.max() + span)]
    ends = np.concatenate([inner, near])
    room = 0.08 * max(np.ptp(ends), usual)
    return ends.min() - room, ends.max() + room


def _draw_effect(ax: Axes, place: int, row: Any, ends: tuple[float, float]) -> None:
    """One comparison's effect, bounds and margin on its own row; past the panel's ends an arrow, and the number beside it."""
    colour, marker = VERDICTS[row.verdict]
    margins = _margins(row)
    if row.claim != "above":
        # below the margin, or beyond it on the lower side
        ax.fill_betweenx([place - 0.4, place + 0.4], ends[0], margins[0], color=CLAIMED, linewidth=0)
    if row.claim != "below":
        ax.fill_betweenx([place - 0.4, place + 0.4], margins[-1], ends[1], color=CLAIMED, linewidth=0)
    for margin in margins:
        ax.plot([margin, margin], [place - 0.4, place + 0.4], color="0.3", linewidth=0.8)
    label = style.literal(f"{row.test} ({row.verdict})")
    if np.isnan(row.effect):
        return
    low, high = np.clip([row.low, row.high], *ends)
    shown_effect = float(np.clip(row.effect, *ends))
    ax.plot([low, high], [place, place], color=colour)
    is_beyond = shown_effect != row.effect
    if not is_beyond:
        ax.plot(shown_effect, place, marker=marker, color=colour, linestyle="", label=label)
    else:
        side = "right" if row.effect > shown_effect else "left"
        ax.annotate(f"{row.effect:.3g} ", (shown_effect, place - 0.2), ha=side, va="bottom", color=colour, fontsize=7)
    if row.low < ends[0]:
        ax.plot(ends[0], place, marker="<", color=colour, clip_on=False)
    if row.high > ends[1]:
        ax.plot(ends[1], place, marker=">", color=colour, clip_on=False)


def pictures(images: Mapping[str, Sequence], *, columns: Sequence, title: str = "") -> Figure:
    """Images side by side, a row for each name.

    Parameters
    ----------
    images : name -> arrays or tensors (C, H, W) in [0, 1]
    columns : what stands above each
    """
    with style.theme(grid=False):
        size = min(1.2, style.inches() / (len(columns) + 1.5))
        fig = style.blank(size * len(images) + 0.3, title)
        axes = fig.subplots(len(images), len(columns), squeeze=False)
        for row, (name, shown) in zip(axes, images.items(), strict=True):
            for ax, image in zip(row, shown, strict=True):
                array = np.moveaxis(np.asarray(image), 0, -1)
                ax.imshow(array, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                ax.set(xticks=[], yticks=[])
            row[0].set_ylabel(style.literal(name), rotation=0, ha="right", va="center")
        for ax, text in zip(axes[0], columns, strict=True):
            ax.set_title(style.literal(text))
    return fig


def rows_with_values(table: pd.DataFrame, columns: tuple[str, ...], y: str) -> pd.DataFrame:
    """The rows that have a value of `y`; ValueError for a column that is not there, and where there is no such row."""
    for name in columns:
        if name not in table:
            raise ValueError(unknown("column", name, table.columns))
    rows = table.dropna(subset=[y])
    if rows.empty:
        raise ValueError(f"no row has a value of {y}")
    return rows
