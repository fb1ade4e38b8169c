"""Figures of tables with one row per network: lines over replicates, clouds of networks, and the effects behind verdicts.

Knows columns of tables, never what was measured. Costs a second or two per figure.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from eedkit.errors import unknown
from eedkit.paper import verdicts
from eedkit.plots import style
from eedkit.results.intervals import mean_interval

ACROSS = 3
"""Panels beside each other; four make a square."""
SHOWN_MARGINS = 5.0
"""How far from its margin an effect is drawn; past it an arrow says that it goes on."""
FEW = 8
"""Places on an axis that get a tick each."""
_VERDICT = {
    verdicts.SUPPORTED: ("#029e73", "o"),
    verdicts.CONTRADICTED: ("#d55e00", "X"),
    verdicts.INCONCLUSIVE: ("0.45", "s"),
    verdicts.NOT_TESTABLE: ("0.7", "D"),
}


def lines(
    table: pd.DataFrame,
    *,
    x: str,
    y: str,
    by: str = "recipe",
    panel: str | None = None,
    title: str = "",
    xlabel: str | None = None,
    ylabel: str | None = None,
    line: float | None = None,
    line_label: str = "",
    log: bool = False,
    shared: bool = True,
) -> Figure:
    """Mean of `y` at every `x`, one line per `by`, with 95 % intervals over the rows (seeds); a panel per value of `panel`.

    Parameters
    ----------
    table : one row per replicate; where `x` holds text, its values are spread evenly in the order in which they appear
    line, line_label : a horizontal line, and what it says
    log : a logarithmic `y`
    shared : whether all panels have one scale

    Raises
    ------
    ValueError
        There is no such column, or no row with a value.
    """
    rows = _rows(table, (x, y, by, *([panel] if panel else [])), y)
    kinds = list(dict.fromkeys(rows[panel])) if panel else [None]
    places = list(dict.fromkeys(rows[x])) if not pd.api.types.is_numeric_dtype(rows[x]) else None
    looks = style.styles(rows[by])
    across = 2 if len(kinds) == 4 else ACROSS
    with style.grid(len(kinds), title, across=across, shared=shared) as (fig, axes):
        for ax, kind in zip(axes, kinds, strict=True):
            some = rows if kind is None else rows[rows[panel] == kind]
            for k, (name, look) in enumerate(looks.items()):
                ours = some[some[by] == name]
                if ours.empty:
                    continue
                points = [(at, *mean_interval(group)) for at, group in ours.groupby(x, sort=places is None)[y]]
                at, mid, low, high = (np.array(column) for column in zip(*points, strict=True))
                at = np.array([places.index(one) for one in at]) + 0.06 * (k - len(looks) / 2) if places else at
                spread = np.where(np.isfinite([low, high]), [mid - low, high - mid], 0.0)
                ax.errorbar(at, mid, spread, linewidth=1.6, markersize=5, capsize=2, **look)
            if line is not None:
                ax.axhline(line, color="0.4", linewidth=1, linestyle="--")
            if places:
                ax.set_xticks(range(len(places)), [style.literal(place) for place in places])
            elif rows[x].nunique() <= FEW:
                ax.set_xticks(sorted(rows[x].unique()))
            elif pd.api.types.is_integer_dtype(rows[x]):
                ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            if log:
                ax.set_yscale("log")
            ax.set_title("" if kind is None else style.literal(kind))
            ax.set_xlabel(style.literal(x) if xlabel is None else xlabel)
        for ax in axes[::across]:
            ax.set_ylabel(style.literal(y) if ylabel is None else ylabel)
        entries = [axes[0].plot([], [], **look, label=style.literal(name))[0] for name, look in looks.items()]
        if line is not None and line_label:
            entries.append(axes[0].plot([], [], color="0.4", linewidth=1, linestyle="--", label=line_label)[0])
        fig.legend(handles=entries, loc="outside right center", frameon=False)
        n = rows.groupby([by, x, *([panel] if panel else [])]).size().max()
        if n > 1:
            style.note(axes[0], f"bars: 95 % over {n} networks")
    return fig


def dose_response(rows: pd.DataFrame, *, title: str = "") -> Figure:
    """The share of the relative deviation that is gone, by the share of turned training images, with its intervals.

    Parameters
    ----------
    rows : DataFrame
        Of `paper.conclusions.dose_response`.
    title : str
        Above the figure.

    Raises
    ------
    ValueError
        A column is missing, or no row has a value.
    """
    rows = _rows(rows, ("share", "what", "effect", "low", "high", "n"), "effect")
    with style.figure(title) as (fig, ax):
        for name, look in style.styles(rows.what).items():
            ours = rows[rows.what == name].sort_values("share")
            spread = np.where(np.isfinite(ours[["low", "high"]]), ours[["low", "high"]], ours[["effect"]]).T
            bars = [ours.effect - spread[0], spread[1] - ours.effect]
            ax.errorbar(
                ours.share, ours.effect, bars, linewidth=1.6, markersize=6, capsize=2, **look, label=style.literal(name)
            )
        shares = sorted(rows.share.unique())
        ax.set(
            xscale="log",
            xlabel="share of turned training images",
            ylabel="share of the relative deviation that is gone",
        )
        ax.set_xticks(shares, [f"{share:g}" for share in shares])
        ax.minorticks_off()
        for height in (0, 1):
            ax.axhline(height, color="0.6", linewidth=0.8, zorder=0)
        style.note(
            ax,
            f"0: as without turned images, 1: nothing is left of the deviation; bars: 95 % over {rows.n.max()} seeds",
        )
        ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig


def cloud(
    table: pd.DataFrame,
    *,
    x: str,
    y: str,
    by: str = "recipe",
    title: str = "",
    xlabel: str | None = None,
    ylabel: str | None = None,
) -> Figure:
    """One point per row of a table: `y` against `x`, coloured by `by`; a network may have several, told by `model`."""
    rows = _rows(table, (x, y, by), y).dropna(subset=[x])
    with style.figure(title) as (fig, ax):
        for name, look in style.styles(rows[by]).items():
            ours = rows[rows[by] == name]
            ax.plot(ours[x], ours[y], linestyle="", markersize=7, alpha=0.85, **look, label=style.literal(name))
        ax.set_xlabel(style.literal(x) if xlabel is None else xlabel)
        ax.set_ylabel(style.literal(y) if ylabel is None else ylabel)
        networks = rows.model.nunique() if "model" in rows else len(rows)
        style.note(ax, f"{networks} networks")
        ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig


def effects(rows: pd.DataFrame, *, title: str = "", labels: dict[str, str] | None = None) -> Figure:
    """Every comparison's effect with its bounds, as the distance from its margin on the claimed side, in margins.

    What lies wholly to the right of 0 is as claimed, what lies wholly to the left is not. Past `SHOWN_MARGINS` an arrow
    says that it goes on.

    Parameters
    ----------
    rows : of `paper.conclusions`; a panel for each value of the column `conclusion`; rows that repeat a comparison (those of
        parts and conclusions) are left out
    labels : that value -> title of its panel
    """
    rows = rows[rows.decided_by == ""]
    kinds = list(dict.fromkeys(rows.conclusion))
    parts = [rows[rows.conclusion == kind] for kind in kinds]
    with style.stack([len(part) for part in parts], title) as (fig, axes):
        for ax, kind, part in zip(axes, kinds, parts, strict=True):
            ax.axvline(0, color="0.6", linewidth=0.8, zorder=1)
            for place, row in enumerate(part.itertuples()):
                colour, marker = _VERDICT[row.verdict]
                claim = verdicts.Claim(row.claim, row.margin)
                low, high = np.clip(claim.slack(row.low, row.high), -SHOWN_MARGINS, SHOWN_MARGINS)
                effect = np.clip(claim.slack(row.effect, row.effect)[0], -SHOWN_MARGINS, SHOWN_MARGINS)
                ax.plot([low, high], [place, place], color=colour, linewidth=1.6)
                ax.plot(effect, place, marker=marker, color=colour, markersize=6)
                for end, arrow in ((low, "<"), (high, ">")):
                    if abs(end) == SHOWN_MARGINS:
                        ax.plot(end, place, marker=arrow, color=colour, markersize=4)
            ax.set_yticks(range(len(part)), [style.literal(test) for test in part.test])
            ax.set_ylim(len(part) - 0.4, -0.6)
            ax.set_xlim(-1.05 * SHOWN_MARGINS, 1.05 * SHOWN_MARGINS)
            ax.set_title(
                (labels or {}).get(kind, style.literal(kind) if len(kinds) > 1 else ""), loc="left", fontsize=10
            )
        axes[-1].set_xlabel("distance from the margin, in margins (right of 0: as claimed)")
        entries = [
            axes[0].plot([], [], color=colour, marker=marker, label=verdict)[0]
            for verdict, (colour, marker) in _VERDICT.items()
            if verdict in set(rows.verdict)
        ]
        fig.legend(handles=entries, loc="outside lower center", ncols=len(entries), frameon=False)
    return fig


def pictures(images: Mapping[str, Sequence], *, columns: Sequence, title: str = "") -> Figure:
    """Images side by side, a row for each name.

    Parameters
    ----------
    images : name -> arrays or tensors (C, H, W) in [0, 1]
    columns : what stands above each
    """
    with sns.axes_style("white"):
        fig = style.blank((0.9 * len(columns) + 1.4, 0.9 * len(images) + 0.6))
        axes = fig.subplots(len(images), len(columns), squeeze=False)
        for row, (name, some) in zip(axes, images.items(), strict=True):
            for ax, image in zip(row, some, strict=True):
                array = np.moveaxis(np.asarray(image), 0, -1)
                ax.imshow(array, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                ax.set(xticks=[], yticks=[])
            row[0].set_ylabel(style.literal(name), rotation=0, ha="right", va="center", fontsize=9)
        for ax, text in zip(axes[0], columns, strict=True):
            ax.set_title(style.literal(text), fontsize=9)
        fig.suptitle(title, fontsize=12)
    return fig


def _rows(table: pd.DataFrame, columns: tuple[str, ...], y: str) -> pd.DataFrame:
    for name in columns:
        if name not in table:
            raise ValueError(unknown("column", name, table.columns))
    rows = table.dropna(subset=[y])
    if rows.empty:
        raise ValueError(f"no row has a value of {y}")
    return rows
