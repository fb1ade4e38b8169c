"""Figures of results: EED by depth, by group element, by class, and against its null.

Knows Datasets and tables of `summarise`, never models. Every figure is a matplotlib Figure; it costs at most one `summarise`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eedkit.errors import unknown
from eedkit.plots import style
from eedkit.results import labels as labels_of_results
from eedkit.results import schema
from eedkit.results.intervals import mean_interval
from eedkit.results.summary import as_relative, ratio_from_x, summarise

FLOOR = 1e-7
"""Deviations under this are rounding errors of float32, and are drawn at it on logarithmic axes."""
EXACT = 1e-5
"""Deviations under this part of their null are rounding errors."""
AT_ONE = "at 1 a moved copy is as far away as a different image"
LINE = 0.16
"""Inches that a layer's name takes beside the next."""
LONGEST_NAME = 24
"""Characters of a layer's name that an axis has room for."""
BINS = 20
"""Of a histogram."""
_VALUES = {"relative": "relative EED", "estimate": "EED"}


def depth_profile(
    results: xr.Dataset | xr.DataTree | pd.DataFrame,
    *,
    metric: str | Sequence[str] = "channelwise",
    relative: bool = True,
    by: str | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Relative EED by depth: one line per model, or per recipe with a 95 % band over its seeds; a panel per metric.

    0 is perfectly equivariant, at 1 a transformed copy is as far away as a different image. Without seeds the band is the
    interval over images, that of `summarise`. Data sets and groups have a panel each. Class tokens, which lie beside the maps,
    are left out. Where the group interpolates, a dotted line shows the round trip m(f(g⁻¹gx), f(x)), which bounds from above
    what interpolation adds to the deviation.

    Parameters
    ----------
    results : Dataset, a tree of them, or a table of `summarise`
    metric : one, or several on one scale
    relative : False draws E itself
    by : coordinate of `model` to group by; None takes `recipe` when there is one
    title : None asks the figure's question, "" leaves it out
    ax : axes of your own, for one panel
    """
    table, by = _table(results, by)
    metrics = [metric] if isinstance(metric, str) else list(metric)
    value = "relative" if relative else "estimate"
    drawn = table[table.metric.isin(metrics) & table[value].notna() & ~table.layer.str.endswith("[class]")]
    for name in metrics:
        if name not in set(drawn.metric):
            known = table[table[value].notna()].metric.unique()
            mend = "; relative=False draws E itself" if relative and name in set(table.metric) else ""
            raise ValueError(unknown(f"metric with {value} values", name, known) + _why(table, name) + mend)
    looks = style.looks(drawn[by])
    panels = []
    for name in metrics:
        for part_name, part in _parts(drawn[drawn.metric == name]).items():
            titles = [part_name] if len(metrics) == 1 else [style.literal(name.replace("_", " ")), part_name]
            panels.append((" · ".join(filter(None, titles)), name, part))
    question = "Where in the network is it equivariant?"
    if len(metrics) == 1:
        question += f" {_title(results, metrics[0])}"
    at_most = 2 if len(panels) == 4 else 3
    with style.panels(len(panels), title, question=question, ax=ax, at_most=at_most, shared=relative) as (fig, axes):
        for ax, (panel_title, name, part) in zip(axes, panels, strict=True):
            highest = np.inf if relative else _attribute(results, name, "upper", np.inf)
            _draw_profile(ax, part, by, looks, relative, highest)
            if panel_title:
                ax.set_title(panel_title)
            if style.is_first_column(ax):
                ax.set_ylabel(_label(results, name, relative) if len(metrics) == 1 else _VALUES[value])
        _name_layers(axes, drawn)
        if relative:
            for ax in axes:
                style.relative_scale(ax)
        note = _replicates(drawn, by, "relative_low" if relative else "low")
        if relative:
            note = f"0: perfectly equivariant, 1: as far away as a different image; {note}"
        elif drawn.best.nunique() == 1:
            note = f"grey line: perfectly equivariant ({drawn.best.iloc[0]:g}); {note}"
        if "round_trip" in drawn and drawn.round_trip.notna().any():
            note += "; dotted: round trip, what moving there and back adds"
        absent = [style.literal(kind) for kind in dict.fromkeys(table[by]) if kind not in looks]
        if absent:
            note += f"; no {value} value: {', '.join(absent)}"
        style.finish(fig, style.entries(looks), note)
    return fig.figure


def _draw_profile(ax: Axes, part: pd.DataFrame, by: str, looks: dict, relative: bool, highest: float) -> None:
    """One metric's lines and bands, with the value of a perfectly equivariant network."""
    value = "relative" if relative else "estimate"
    best = part.best.min()
    lowest = 0.0 if relative else best
    for kind, look in looks.items():
        of_layers = part[part[by] == kind].groupby("layer")
        points = sorted(_point(of_layer, value) for _, of_layer in of_layers)
        if not points:
            continue
        x, mid, low, high = np.array(points).T
        low = np.clip(low, lowest, highest)
        high = np.clip(high, lowest, highest)
        ax.fill_between(x, low, high, color=look["color"], alpha=0.2, linewidth=0)
        ax.plot(x, mid, **look, label=style.literal(kind))
    if not relative and part.best.nunique() == 1:
        ax.axhline(best, color="0.5", linewidth=0.8, zorder=0.5)
    if "round_trip" in part and part.round_trip.notna().any():
        _draw_round_trip(ax, part, relative)


def _name_layers(axes: Sequence[Axes], rows: pd.DataFrame) -> None:
    """The layers' names where they have room, each at its depth; two that lie close together share a place."""
    inches_of_an_axis = axes[0].get_position().width * axes[0].figure.get_figwidth()
    places: list[tuple[float, list[str]]] = []
    of_layers = rows.groupby("layer").depth.agg(["min", "max"]).sort_values("min")
    for layer, depth in of_layers["min"].items():
        if places and (depth - places[-1][0]) * inches_of_an_axis < LINE:
            places[-1][1].append(str(layer))
        else:
            places.append((depth, [str(layer)]))
    names = [style.literal(", ".join(layers)) for _, layers in places]
    is_one_network = (of_layers["min"] == of_layers["max"]).all()
    has_room = max(len(layers) for _, layers in places) <= 2 and max(map(len, names)) <= LONGEST_NAME
    for ax in axes:
        ax.set_xlim(0, 1)
        ax.set_xlabel("depth (0 input, 1 output)")
        if is_one_network and has_room:
            depths = [depth for depth, _ in places]
            ax.set_xticks(depths, names, rotation=40, ha="right", rotation_mode="anchor")
            ax.set_xlabel("layer, at its depth")


def _draw_round_trip(ax: Axes, part: pd.DataFrame, relative: bool) -> None:
    """What moving images there and back costs at each layer, in the units of the figure."""
    round_trip = part.round_trip
    if not relative:
        round_trip = part.best + (part.null - part.best) * part.round_trip**part.order
    of_layers = part.assign(shown=round_trip).dropna(subset="shown").groupby("layer")[["depth", "shown"]].mean()
    of_layers = of_layers.sort_values("depth")
    ax.plot(of_layers.depth, of_layers.shown, color="0.3", linestyle=":", linewidth=1.2)


def orbit_rose(
    results: xr.Dataset | xr.DataTree,
    *,
    metric: str = "latent",
    layer: str | None = None,
    by: str | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Deviation from the unmoved image by group element: the angle is the rotation, the radius m(f(gx), g f(x)).

    On the scale of relative values where there is a null: on the grey circle, at 1, a moved copy is as far away as a
    different image. Else the radius is m(f(gx), g f(x)) − m*. Mirrored elements are drawn dashed. The elements of a group
    that is not made of rotations and mirrors are spread evenly. With a recipe's seeds the points are means over them, with
    95 % intervals. A tree has a panel for each data set and group; `ax` are polar axes of your own.
    """
    datasets = datasets_of(results)
    absent = []
    entries = {}
    question = f"Under which element? {_title(results, metric)}"
    with style.panels(len(datasets), title, question=question, ax=ax, polar=True) as (fig, axes):
        for ax, (panel_title, ds) in zip(axes, datasets.items(), strict=True):
            names = _names(ds, by)
            far = from_unmoved(ds, metric, layer)
            values = _with_identity(far.on_scale(far.values.mean("sample")), ds)
            angles, mirrored = _turns(ds)
            for name, look in style.looks(names).items():
                ours = values.isel(model=np.flatnonzero(names == name)).transpose("element", "model").values
                ours = ours[:, ~np.isnan(ours).any(0)]
                if not ours.size:
                    absent.append(style.literal(name))
                    continue
                entries[name] = look
                for part, line in ((~mirrored, "-"), (mirrored, "--")):
                    if not part.any():
                        continue
                    mid, low, high = np.array([_spread(row) for row in ours[part]]).T
                    low = np.maximum(low, 0)
                    turn = np.deg2rad(angles[part])
                    closed = np.append(np.arange(len(turn)), 0)
                    label = style.literal(name) if line == "-" else None
                    ax.plot(turn[closed], mid[closed], linestyle=line, color=look["color"], label=label)
                    ax.errorbar(turn, mid, [mid - low, high - mid], linestyle="", **look)
            if far.is_relative:
                ax.plot(np.linspace(0, 2 * np.pi, 100), np.ones(100), color="0.5", linewidth=1)
            if panel_title:
                ax.set_title(panel_title)
            labels = dict(zip(angles[~mirrored], ds.element.values[~mirrored], strict=True))
            ax.set_xticks(np.deg2rad(sorted(labels)), [style.literal(labels[a]) for a in sorted(labels)])
            ax.set_rlabel_position(float(np.diff([*sorted(labels), 360])[0]) / 2)
            ax.set_ylim(bottom=0)
            ax.yaxis.set_major_locator(mpl.ticker.MaxNLocator(3))
        handles = style.entries(entries)
        if mirrored.any():
            handles += style.entries({"dashed: mirrored": {"color": "0.3"}}, linestyle="--")
        note = f"radius: {far.label}, mean over {far.values.sizes['sample']} images"
        if far.is_relative:
            note += f"; {AT_ONE}"
        if absent:
            note += f"; no value: {', '.join(absent)}"
        style.finish(fig, handles, note)
    return fig.figure


def _with_identity(values: xr.DataArray, ds: xr.Dataset) -> xr.DataArray:
    """Values by element, with 0 for the image that is not moved, in the order of the results."""
    values = values.reindex(element=ds.element.values)
    return values.where(values.element != ds.element.attrs.get("identity", "e"), 0.0)


def _turns(ds: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The angle at which each element stands, and whether it mirrors; all spread evenly where angles do not tell them apart."""
    angles = ds.angle.values
    mirrored = np.array([_is_mirrored(str(element)) for element in ds.element.values])
    turns = set(zip(angles.tolist(), mirrored.tolist(), strict=True))
    if np.isnan(angles).any() or len(set(angles.tolist())) == 1 or len(turns) < len(angles):
        angles = 360 * np.arange(len(angles)) / len(angles)
        mirrored = np.zeros(len(angles), dtype=bool)
    return angles, mirrored


def histogram(
    results: xr.Dataset | xr.DataTree,
    *,
    metric: str = "latent",
    layer: str | None = None,
    by: str | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """How the deviation from the unmoved image is spread over the images: one outline per model (or recipe), dashed the null.

    On the scale of relative values where there is a null. Where outline and dashes lie on each other, a moved copy is as far
    away as a different image; outliers are single images on which the model is not as invariant as on the others. A tree has
    a panel for each data set and group.

    Raises
    ------
    ValueError
        There is no such metric, layer or coordinate.
    """
    datasets = datasets_of(results)
    question = f"How is it spread over the images? {_title(results, metric)}"
    looks = {}
    with style.panels(len(datasets), title, question=question, ax=ax) as (fig, axes):
        for ax, (panel_title, ds) in zip(axes, datasets.items(), strict=True):
            names = _names(ds, by)
            far = from_unmoved(ds, metric, layer)
            of_images = far.on_scale(far.values.mean("element"))
            of_nulls = far.on_scale(far.nulls.mean("element"))
            both = np.concatenate([of_images.values.ravel(), of_nulls.values.ravel()])
            edges = np.histogram_bin_edges(both[np.isfinite(both)], bins=BINS)
            looks |= style.looks(names)
            for name, look in style.looks(names).items():
                ours = np.flatnonzero(names == name)
                shares = _shares(of_images, ours, edges)
                ax.stairs(shares, edges, color=look["color"], linewidth=1.8, label=style.literal(name))
                if far.is_relative:
                    of_null = _shares(of_nulls, ours, edges)
                    ax.stairs(of_null, edges, color=look["color"], linewidth=1, linestyle="--")
            if panel_title:
                ax.set_title(panel_title)
            ax.set_xlabel(far.label if len(datasets) == 1 else far.label.replace(" from", "\nfrom"))
            if style.is_first_column(ax):
                ax.set_ylabel("share of the images")
            ax.set_xlim(left=min(0.0, edges[0]))
        dashed = "dashed: the null, in which each element acts on another image; " if far.is_relative else ""
        note = f"{dashed}{of_images.sizes['sample']} images, means over the elements"
        style.finish(fig, style.entries(looks, marker=""), note)
    return fig.figure


def _shares(values: xr.DataArray, models: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Which share of the images lies in each bin."""
    of_models = values.isel(model=models).values
    counts, _ = np.histogram(of_models[np.isfinite(of_models)], bins=edges)
    return counts / max(1, counts.sum())


def class_heatmap(
    results: xr.Dataset | xr.DataTree,
    *,
    metric: str = "latent",
    layer: str | None = None,
    by: str | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Deviation from the unmoved image by class and element, one panel per model (or recipe, its seeds averaged).

    On the scale of relative values where there is a null: at 1 a moved copy is as far away as a different image. All panels
    have one scale of colours, and a tree has its panels for each data set and group.

    Raises
    ------
    ValueError
        The images had no labels.
    """
    import seaborn as sns  # a second to import, which no other figure needs

    panels: dict[str, pd.DataFrame] = {}
    for panel_title, ds in datasets_of(results).items():
        names = _names(ds, by)
        if not labels_of_results.labelled(ds).sizes["sample"]:
            raise ValueError("a class heatmap needs labels: measure(labels=…), or images that have labels of their own")
        far = from_unmoved(ds, metric, layer)
        by_class = far.on_scale(labels_of_results.labelled(far.values).groupby("label").mean("sample"))
        by_class = _with_identity(by_class, ds)
        class_names = labels_of_results.class_names(ds)
        classes = [style.literal(class_names[k] if class_names else k) for k in by_class.label.values]
        elements = [style.literal(element) for element in by_class.element.values]
        for kind in dict.fromkeys(names.tolist()):
            of_kind = by_class.isel(model=np.flatnonzero(names == kind)).mean("model").transpose("label", "element")
            name = "\n".join(filter(None, (style.literal(kind), panel_title)))
            panels[name] = pd.DataFrame(of_kind.values, classes, elements)
    low = 0.0 if far.is_relative else np.nanmin([cells.min(axis=None) for cells in panels.values()])
    high = np.nanmax([1.0 if far.is_relative else low, *(cells.max(axis=None) for cells in panels.values())])
    numbered = _numbered(list(panels.values()))
    options = {"at_most": 4, "height": 0.6 + 0.22 * max(map(len, panels.values())), "grid": False, "shared": False}
    question = f"On which classes? {_title(results, metric)}"
    with style.panels(len(panels), title, question=question, ax=ax, **options) as (fig, axes):
        for ax, (name, cells) in zip(axes, panels.items(), strict=True):
            sns.heatmap(
                cells,
                ax=ax,
                cmap="viridis",
                vmin=low,
                vmax=high,
                cbar=False,
                linewidths=0.5,
                xticklabels=cells.columns,
                yticklabels=cells.index
                if style.is_first_column(ax) or len(set(map(len, panels.values()))) > 1
                else False,
                annot=cells.map(_cell_text) if numbered else None,
                fmt="",
                annot_kws={"size": 7},
            )
            if len(panels) > 1 or fig is not ax:
                ax.set_title(name)
            ax.set_xlabel("element")
            ax.tick_params(axis="y", rotation=0)
            ax.set_ylabel("class" if style.is_first_column(ax) else "")
        scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(low, high), "viridis")
        fig.figure.colorbar(scale, ax=axes, label=far.label.replace(" from", "\nfrom"), shrink=0.8)
        style.finish(fig, [], AT_ONE if far.is_relative else "")
    return fig.figure


def _numbered(panels: Sequence[pd.DataFrame]) -> bool:
    """Whether the cells of all panels have room for their numbers."""
    values = np.concatenate([cells.values.ravel() for cells in panels])
    longest = max(len(_cell_text(value)) for value in values)
    rows, columns = np.max([cells.shape for cells in panels], axis=0)
    room = 64 * style.inches() / style.WIDTHS["page"] / min(len(panels), style.across(4))
    return rows <= 12 and columns * (longest + 1) <= room


def calibration(
    results: xr.Dataset | xr.DataTree | pd.DataFrame,
    *,
    metric: str = "latent",
    layer: str | None = None,
    by: str | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Is it invariance, or insensitivity? E − m* against the null gap E_null − m*, on logarithmic axes *[ours]*.

    One point for each model. E_null is that of the shuffled orbit. Diagonals are contours of the relative value: on that of 1
    a transformed copy is as far away as a different image, and far below them all a model is perfectly equivariant. To the left
    all images look alike to the model.
    """
    table, by = _table(results, by)
    if layer is None:
        layers = table[table.metric == metric].layer.unique()
        layer = layers[0] if len(layers) == 1 else "latent"
    rows = table[(table.metric == metric) & (table.layer == layer) & table.null.notna()]
    if rows.empty:
        known = table[table.null.notna()][["metric", "layer"]].drop_duplicates().itertuples(index=False)
        there = ", ".join(f"{m} at {at}" for m, at in known) or "none"
        raise ValueError(f"no {metric} with a null at {layer}; there is {there}{_why(table, metric)}")
    gaps = (rows.null - rows.best).clip(lower=FLOOR)
    values = rows.estimate - rows.best
    is_exact = values <= EXACT * gaps
    left = gaps.min() / 2
    right = gaps.max() * 2
    # exact networks stand on the lower edge, or their rounding errors would take most of the axis
    bottom = values[~is_exact].min() / 3 if not is_exact.all() else left / 1000
    top = max(values.max(), right) * 2
    rows = rows.assign(gap=gaps, value=values.mask(is_exact, bottom))
    looks = style.looks(rows[by])
    parts = _parts(rows)
    question = f"Invariance, or insensitivity? {_title(results, metric)}"
    with style.panels(len(parts), title, question=question, ax=ax) as (fig, axes):
        for ax, (name, part) in zip(axes, parts.items(), strict=True):
            if name:
                ax.set_title(name)
            ax.set_xlabel("null − best value")
            for level in (1.0, 0.1, 0.01, 0.001):
                ratio = level ** rows.order.iloc[0]
                ax.plot([left, right], [ratio * left, ratio * right], color="0.75", linewidth=0.8, zorder=0)
                if bottom < ratio * right < top:
                    ax.annotate(f"{level:g}", (right, ratio * right), ha="right", va="bottom", color="0.45", fontsize=7)
            for kind, look in looks.items():
                ours = part[part[by] == kind]
                ax.plot(
                    ours.gap, ours.value, linestyle="", alpha=0.85, clip_on=False, **look, label=style.literal(kind)
                )
            ax.set_xlim(left, right)
            ax.set_ylim(bottom, top)
            style.log_scale(ax, "x")
            style.log_scale(ax, "y")
            if style.is_first_column(ax):
                ax.set_ylabel(f"{_label(results, metric, False)} − best value")
        exact = "; on the lower edge: exactly equivariant, up to rounding" if is_exact.any() else ""
        note = f"null: how far apart other images are; grey diagonals: relative value; on 1 a transformed copy is as far away as a different image{exact}"
        style.finish(fig, style.entries(looks, linestyle=""), note)
    return fig.figure


def _parts(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of every data set and group there is, by what tells them apart: what differs is never pooled."""
    columns = [name for name in ("data", "group") if name in rows and rows[name].nunique() > 1]
    if not columns:
        return {"": rows}
    return {style.literal(" · ".join(map(str, names))): part for names, part in rows.groupby(columns, sort=False)}


def _is_mirrored(element: str) -> bool:
    """Whether an element, or one of the parts of an element of a product, mirrors the image."""
    return any(part.startswith("m") for part in element.split("·"))


def _cell_text(value: float) -> str:
    return "0" if abs(value) < FLOOR else f"{value:.2g}"


def _why(table: pd.DataFrame, metric: str) -> str:
    """Why a metric has no value, or no null, as the first of its rows that says so."""
    reasons = table[(table.metric == metric) & (table.reason != "")].reason
    return f"; {reasons.iloc[0]}" if len(reasons) else ""


def _table(results: xr.Dataset | xr.DataTree | pd.DataFrame, by: str | None) -> tuple[pd.DataFrame, str]:
    table = results if isinstance(results, pd.DataFrame) else summarise(results)
    by = by or ("recipe" if "recipe" in table else "model")
    if by not in table:
        raise ValueError(unknown("column to group by", by, table.columns))
    return table, by


def datasets_of(results: xr.Dataset | xr.DataTree) -> dict[str, xr.Dataset]:
    """Every Dataset by its data set and group, as titles of panels; a single one has none."""
    if isinstance(results, xr.Dataset):
        return {"": schema.validate(results)}
    if not isinstance(results, xr.DataTree):
        raise TypeError(f"expected a Dataset, whose elements and samples are shown, got {type(results).__name__}")
    datasets = {}
    for node in results.leaves:
        data, _, group = node.path.strip("/").rpartition("/")
        datasets[style.literal(f"{data} · {group}")] = schema.validate(node.to_dataset())
    return datasets if len(datasets) > 1 else {"": next(iter(datasets.values()))}


def _names(results: xr.Dataset, by: str | None) -> np.ndarray:
    """What each model is called in a figure: its recipe when it has one, else its label, or another coordinate."""
    by = by or ("recipe" if "recipe" in results.coords else "model")
    if by not in results.coords or results[by].dims != ("model",):
        about = [name for name, c in results.coords.items() if c.dims == ("model",)]
        raise ValueError(unknown("coordinate along model", by, about))
    return results[by].values


@dataclass(frozen=True)
class FromUnmoved:
    """How far moved copies are from their unmoved images, (model, element but the identity, sample), for means to be taken.

    raw : m(f(gx), g f(x)) − m*, of the samples that every model has a value for
    values, nulls : (m(f(gx), g f(x)) − m*) / (its null's mean − m*) of the copies and of other images' copies, or
        `raw` where no model has a null
    is_relative : which of both
    order : by whose root means get on the scale of relative values
    label : what a mean on its scale is, in words
    """

    raw: xr.DataArray
    values: xr.DataArray
    nulls: xr.DataArray
    is_relative: bool
    order: int
    label: str

    def on_scale(self, means: Any) -> Any:
        """Means of values as they are shown."""
        return as_relative(means, self.order) if self.is_relative else means


def from_unmoved(ds: xr.Dataset, metric: str, layer: str | None = None) -> FromUnmoved:
    """How far the moved copies are from their unmoved images, by a metric at a layer.

    None takes the layer `latent`, or the only one that a selection has left.
    """
    if metric not in schema.metrics_of(ds):
        raise ValueError(unknown("metric", metric, schema.metrics_of(ds)))
    raw = ds[schema.from_x(ds, metric)]
    if "layer" in raw.dims:
        if layer is None:
            layer = "latent" if ds.sizes["layer"] > 1 else ds.layer.values[0]
        if layer not in ds.layer.values:
            raise ValueError(unknown("layer", layer, ds.layer.values.tolist()))
        reason = ds[f"{metric}_nan_reason"].sel(layer=layer).values[0]
        raw = raw.sel(layer=layer)
        if reason and not schema.is_partial(reason) and raw.isnull().all():
            raise ValueError(f"{metric} is undefined at {layer}: {reason}; choose another layer=")
    raw = _on_shared_samples(raw)
    attrs = ds[metric].attrs
    raw = (
        raw.isel(element=raw.element.values != ds.element.attrs.get("identity", "e")).astype("float64") - attrs["best"]
    )
    shared = ds.sel(sample=raw["sample"].values)
    models = [shared.isel(model=[place]) for place in range(ds.sizes["model"])]

    def ratios(of: str) -> xr.DataArray:
        of_models = [ratio_from_x(one, metric, layer, of=of) for one in models]
        return xr.concat(of_models, raw.model, coords="minimal", compat="override")

    values = ratios("_from_x")
    nulls = ratios("_from_x_null")
    is_relative = bool(values.notnull().any())
    if not is_relative:
        values = raw
    label = f"{_label(ds, metric, is_relative)} from the unmoved image"
    return FromUnmoved(raw, values, nulls, is_relative, attrs["order"], label)


def _on_shared_samples(values: xr.DataArray) -> xr.DataArray:
    """Without samples that some model has no value for: all that have any are shown on the same images."""
    values = values.compute()
    has, any_has = values.notnull().all("element"), values.notnull().any(("element", "sample"))
    values = values.isel(sample=np.flatnonzero((has | ~any_has).all("model")))
    if not any_has.any() or not values.sizes["sample"]:
        raise ValueError(f"no image has a value of {values.name} for every model; select models that are done")
    return values


def _point(group: pd.DataFrame, value: str) -> tuple[float, float, float, float]:
    x = group.depth.mean()
    if len(group) > 1:
        return (x, *_spread(group[value].to_numpy()))
    low, high = ("relative_low", "relative_high") if value == "relative" else ("low", "high")
    return x, group[value].iloc[0], group[low].iloc[0], group[high].iloc[0]


def _spread(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and 95 % interval over replicates; no interval for a single one."""
    return mean_interval(values) if len(values) > 1 else (values[0],) * 3


def _replicates(rows: pd.DataFrame, by: str, low: str) -> str:
    models = rows.groupby(by).model.nunique()
    n = rows.n.max()
    if models.max() > 1:
        single = ", or over images for a single network" if models.min() == 1 else ""
        return f"bands: 95 % over {models.max()} seeds{single}; {n} images"
    if rows[low].isna().all():
        return f"no intervals; {n} images"
    return f"bands: 95 % over {n} images"


def _title(results: xr.Dataset | xr.DataTree | pd.DataFrame, metric: str) -> str:
    return f"({style.literal(_attribute(results, metric, 'long_name', metric))})"


def _label(results: xr.Dataset | xr.DataTree | pd.DataFrame, metric: str, relative: bool) -> str:
    """What an axis shows, in words."""
    words = metric.replace("_", " ")
    if relative:
        return style.literal(f"relative EED ({words})")
    unit = _attribute(results, metric, "units", "")
    return style.literal(f"EED ({words})" + (f", {unit}" if unit and unit != "1" else ""))


def _attribute(results: xr.Dataset | xr.DataTree | pd.DataFrame, metric: str, name: str, absent: object) -> Any:
    """An attribute of a metric; of a table, which keeps none, what stands for it."""
    if isinstance(results, xr.DataTree):
        results = next(iter(results.leaves)).to_dataset()
    if isinstance(results, pd.DataFrame) or metric not in results:
        return absent
    return results[metric].attrs.get(name) or absent
