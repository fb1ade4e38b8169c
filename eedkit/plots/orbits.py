"""Figures of interchange and of what the features of orbits say: `ek.plots.interchange`, `orbit_variance`, `element_probe`, …

Knows tables of `summarise` and `ek.orbits`, never models. A row is a network; those of one kind are its seeds, over which
intervals are Student's t. Costs a second a figure.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, NullFormatter, StrMethodFormatter

from eedkit.plots import style
from eedkit.plots.panels import rows_with_values
from eedkit.results.intervals import mean_interval
from eedkit.results.summary import summarise

IMAGE = "image"
"""The layer at which the image itself is turned."""
PART_COLOURS = {
    "class": style.COLOURS[0],
    "image within class": style.COLOURS[9],
    "image": style.COLOURS[9],
    "element": style.COLOURS[3],
    "class × element": style.COLOURS[1],
    "image × element": style.COLOURS[8],
}
"""What the class and the image have is blue, what the element has a part in red to yellow."""
LINEAR_NATS = 0.01
"""Up to which an axis of gains is linear, so that gains of 0 and below are seen."""


def interchange(
    results: Mapping[str, xr.Dataset | pd.DataFrame],
    *,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """The features' relative deviation when maps are exchanged, layer by layer; dashed, that of the turned image.

    A point on its dashed line says that turning the layer's maps is as good as turning the image; one far above it, that
    what follows does not treat turned maps as it treats those of turned images.

    Parameters
    ----------
    results : mapping
        Title of a panel -> what `ek.interchange` gave, joined over networks, or the table of `summarise`.
    title : str, or None
        None asks the figure's question, "" leaves it out.
    ax : Axes, or None
        Axes of your own.

    Raises
    ------
    ValueError
        There is no layer `image`, or no relative value of `latent`.

    Examples
    --------
    >>> table = pd.DataFrame({"layer": ["image", "blocks.0"], "depth": [0.0, 0.5], "relative": [0.2, 0.6]})
    >>> table = table.assign(model="m", metric="latent", n=90, relative_low=0.1, relative_high=0.7)
    >>> [ax.get_title() for ax in interchange({"as they are": table}).axes]
    ['as they are']
    """
    tables = {}
    for name, given in results.items():
        table = given if isinstance(given, pd.DataFrame) else summarise(given)
        tables[name] = table.loc[(table.metric == "latent") & table.relative.notna()]
    rows = pd.concat(tables.values())
    if IMAGE not in set(rows.layer):
        raise ValueError("no relative value of latent at the layer 'image'; pass results of ek.interchange")
    by = _kinds_column(rows)
    looks = style.looks(rows[by].tolist())
    depths = rows.loc[rows.layer != IMAGE].groupby("layer")["depth"].mean().sort_values()
    layers = depths.index.tolist()
    with style.panels(len(tables), title, question="Where is the invariance made?", ax=ax) as (fig, axes):
        for ax, (name, table) in zip(axes, tables.items(), strict=True):
            for k, (kind, look) in enumerate(looks.items()):
                aside = 0.5 * ((k + 0.5) / len(looks) - 0.5)
                _draw_exchanged(ax, _of_kind(table, by, kind), layers, aside, look, style.literal(kind))
            if name:
                ax.set_title(style.literal(name))
            ax.set_xticks(range(len(layers)), [style.literal(layer) for layer in layers], rotation=30, ha="right")
            ax.set_xlabel("exchanged layer")
            if style.is_first_column(ax):
                ax.set_ylabel("relative EED of the features")
        for ax in axes:
            style.relative_scale(ax)
        note = f"dashed: the image itself is turned; 1: as far away as a different image; {_bars(rows, by)}"
        style.finish(fig, style.entries(looks, linestyle="-"), note, legend_below=True)
    return fig.figure


def _draw_exchanged(
    ax: Axes, rows: pd.DataFrame, layers: Sequence[str], aside: float, look: Mapping[str, Any], label: str
) -> None:
    """One kind: points with intervals at the layers, and a dashed line where the image is turned."""
    points = []
    for place, layer in enumerate(layers):
        of_layer = rows.loc[rows.layer == layer]
        if len(of_layer):
            points.append((place + aside, *_interval(of_layer, "relative", 0.0)))
    if points:
        x, mid, low, high = np.array(points).T
        ax.errorbar(x, mid, [mid - low, high - mid], linestyle="-", **look, label=label)
    turned = rows.loc[rows.layer == IMAGE, "relative"].mean()
    ax.axhline(turned, color=look["color"], linestyle="--", linewidth=1.1, zorder=0.9)


def orbit_variance(table: pd.DataFrame, *, title: str | None = None, ax: Axes | None = None) -> Figure:
    """What the variance of features over an orbit is made of: one bar for each kind, its parts one after the other.

    Parameters
    ----------
    table : DataFrame
        Of `ek.orbits.orbit_variance`, of one or more networks.
    title : str, or None
        None asks the figure's question, "" leaves it out.
    ax : Axes, or None
        Axes of your own.

    Raises
    ------
    ValueError
        No row has a share.

    Examples
    --------
    >>> table = pd.DataFrame({"model": "m", "part": ["image", "element", "image × element"], "share": [0.5, 0.2, 0.3]})
    >>> len(orbit_variance(table).axes[0].patches)
    3
    """
    by = _kinds_column(table)
    rows = rows_with_values(table, ("share",), "share")
    kinds = list(dict.fromkeys(rows[by]))
    parts = [part for part in PART_COLOURS if part in set(rows.part)]
    question = "What do the features of an orbit vary with?"
    with style.panels(1, title, question=question, ax=ax, height=0.1 + 0.38 * len(kinds), grid=False) as (fig, (ax,)):
        for place, kind in enumerate(kinds):
            shares = _of_kind(rows, by, kind).pivot_table(index="model", columns="part", values="share").loc[:, parts]
            _draw_bar(ax, place, shares)
        ax.set_yticks(range(len(kinds)), [style.literal(kind) for kind in kinds])
        ax.invert_yaxis()
        ax.set_xlim(0, 1)
        ax.set_xlabel("share of the variance")
        networks = rows.groupby(by).model.nunique().max()
        note = f"bars: 95 % of where a part ends, over {networks} networks" if networks > 1 else ""
        patches = [Patch(color=PART_COLOURS[part], label=part) for part in parts]
        style.finish(fig, patches, note, legend_below=True)
    return fig.figure


def _draw_bar(ax: Axes, place: int, shares: pd.DataFrame) -> None:
    """The mean shares of networks (model, part), with the interval of where each part ends."""
    start = 0.0
    for k, (part, end) in enumerate(shares.cumsum(axis=1).items()):
        mid, low, high = _spread(end)
        ax.barh(
            place, mid - start, left=start, height=0.7, color=PART_COLOURS[str(part)], edgecolor="white", linewidth=0.8
        )
        if mid - start >= 0.33 / style.inches():
            colour = "white" if part == "class" else "black"  # on the darkest of the colours
            middle = (start + mid) / 2
            ax.text(middle, place - 0.12, f"{mid - start:.2f}", ha="center", va="center", color=colour, fontsize=7)
        if high > low and k + 1 < shares.shape[1]:
            # one below the other, since they may overlap
            ax.errorbar(mid, place + 0.06 + 0.08 * k, xerr=[[mid - low], [high - mid]], color="0.15", linewidth=1)
        start = mid


def element_probe(table: pd.DataFrame, *, title: str | None = None, ax: Axes | None = None) -> Figure:
    """How often a linear probe reads the element off the features; dashed, by chance: there the element is gone.

    Parameters
    ----------
    table : DataFrame
        Of `ek.orbits.element_probe`, of one or more networks.
    title : str, or None
        None asks the figure's question, "" leaves it out.
    ax : Axes, or None
        Axes of your own.

    Raises
    ------
    ValueError
        No row has an accuracy.

    Examples
    --------
    >>> table = pd.DataFrame({"model": ["m"], "accuracy": [0.6], "low": [0.55], "high": [0.65], "chance": [0.25], "n": [90]})
    >>> element_probe(table).axes[0].get_xlabel()
    'accuracy of the probe'
    """
    by = _kinds_column(table)
    rows = rows_with_values(table, ("accuracy",), "accuracy")
    looks = style.looks(rows[by].tolist())
    question = "Is the element gone from the features, or only small?"
    with style.panels(1, title, question=question, ax=ax, height=0.1 + 0.3 * len(looks)) as (fig, (ax,)):
        for place, (kind, look) in enumerate(looks.items()):
            mid, low, high = _interval(_of_kind(rows, by, kind), "accuracy", 0.0, 1.0)
            ax.errorbar(mid, place, xerr=[[mid - low], [high - mid]], linestyle="", **look, label=style.literal(kind))
        _mark_kinds(ax, looks)
        for chance in rows.chance.unique():
            ax.axvline(chance, color="0.4", linestyle="--", linewidth=1)
        ax.set_xlim(0, 1)
        ax.set_xlabel("accuracy of the probe")
        chance = style.entries({"chance": {"color": "0.4"}}, linestyle="--", linewidth=1)
        style.finish(fig, chance, _bars(rows, by), legend_below=True)
    return fig.figure


def averaging_gain(table: pd.DataFrame, *, title: str | None = None, ax: Axes | None = None) -> Figure:
    """What averaging over the orbit gains in log-loss: predicted without labels (filled) and real (open).

    Parameters
    ----------
    table : DataFrame
        Of `ek.orbits.averaging_gain`, of one or more networks.
    title : str, or None
        None asks the figure's question, "" leaves it out.
    ax : Axes, or None
        Axes of your own.

    Raises
    ------
    ValueError
        No row has a value.

    Examples
    --------
    >>> gain = {"model": ["m"], "predicted": [0.2], "real": [0.1], "n": [90]}
    >>> ends = {f"{name}_{end}": [0.15] for name in ("predicted", "real") for end in ("low", "high")}
    >>> averaging_gain(pd.DataFrame(gain | ends)).axes[0].get_xlabel()
    'gain in log-loss, nats'
    """
    by = _kinds_column(table)
    rows = rows_with_values(table, ("predicted",), "predicted")
    looks = style.looks(rows[by].tolist())
    fills = {"predicted": None, "real": "white"}
    question = "What would averaging over the orbit buy?"
    with style.panels(1, title, question=question, ax=ax, height=0.1 + 0.36 * len(looks)) as (fig, (ax,)):
        ends: list[float] = []
        for place, (kind, look) in enumerate(looks.items()):
            for aside, (name, fill) in zip((-0.14, 0.14), fills.items(), strict=True):
                ours = _of_kind(rows, by, kind).dropna(subset=[name])
                if ours.empty:
                    continue
                mid, low, high = _interval(ours, name)
                ends += [low, high]
                ax.errorbar(
                    mid, place + aside, xerr=[[mid - low], [high - mid]], linestyle="", **look, markerfacecolor=fill
                )
        _mark_kinds(ax, looks)
        _nats_scale(ax, min(ends), max(ends))
        black = {"color": "0.2", "marker": "o"}
        entries = []
        for name, fill in fills.items():
            entries += style.entries({name: black}, linestyle="", markerfacecolor=fill or "0.2")
        style.finish(fig, entries, _bars(rows, by), legend_below=True)
    return fig.figure


def _nats_scale(ax: Axes, least: float, most: float) -> None:
    """An axis of nats on which both 0.01 and 2 can be read, and what is 0 or below it."""
    ax.set_xscale("symlog", linthresh=LINEAR_NATS, linscale=0.5)
    low = min(1.3 * least, -LINEAR_NATS / 4)
    high = max(1.3 * most, 2 * LINEAR_NATS)
    steps = np.array([0.01, 0.03, 0.1, 0.3, 1, 3, 10])
    ticks = [*-steps[::-1], 0.0, *steps]
    ax.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlim(low, high)
    ax.axvline(0, color="0.5", linewidth=0.8, zorder=0.5)
    ax.set_xlabel("gain in log-loss, nats")


def _mark_kinds(ax: Axes, looks: Mapping) -> None:
    """A line for each kind, the first at the top."""
    ax.set_yticks(range(len(looks)), [style.literal(kind) for kind in looks])
    ax.set_ylim(len(looks) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")


def _kinds_column(table: pd.DataFrame) -> str:
    """The column whose values have a line, bar or point each, over their networks."""
    return "recipe" if "recipe" in table else "model"


def _of_kind(rows: pd.DataFrame, by: str, kind: object) -> pd.DataFrame:
    return rows.loc[rows[by] == kind]


def _interval(
    rows: pd.DataFrame, column: str, least: float = -np.inf, most: float = np.inf
) -> tuple[float, float, float]:
    """Mean and 95 % interval of a kind over its networks; of a single one its own, over images."""
    if len(rows) > 1:
        mid, low, high = mean_interval(rows[column].to_numpy())
    else:
        ends = {"accuracy": ("low", "high")}.get(column, (f"{column}_low", f"{column}_high"))
        mid, low, high = rows[[column, *ends]].iloc[0].astype(float)
    if not np.isfinite([low, high]).all():
        return mid, mid, mid
    return mid, min(mid, max(low, least)), max(mid, min(high, most))


def _spread(values: pd.Series) -> tuple[float, float, float]:
    """Mean and 95 % interval over networks, between 0 and 1; no interval for a single one."""
    mid, low, high = mean_interval(values.to_numpy())
    if len(values) < 2:
        return mid, mid, mid
    return mid, max(low, 0.0), min(high, 1.0)


def _bars(rows: pd.DataFrame, by: str) -> str:
    """What the bars are."""
    networks = rows.groupby(by).model.nunique().max()
    if networks > 1:
        return f"bars: 95 % over {networks} networks, {rows.n.max()} images"
    return f"bars: 95 % over {rows.n.max()} images"
