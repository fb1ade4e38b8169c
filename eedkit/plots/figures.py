"""Figures of results: EED by depth, by group element, by class, and against its null.

Knows Datasets and tables of `summarise`, never models. Every figure is a matplotlib Figure; it costs at most one `summarise`.
"""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
import xarray as xr
from matplotlib.figure import Figure

from eedkit.errors import unknown
from eedkit.plots import style
from eedkit.results import schema
from eedkit.results.intervals import mean_interval
from eedkit.results.summary import summarise

FLOOR = 1e-7
"""Deviations under this are rounding errors of float32, and are drawn at it on logarithmic axes."""
BINS = 20
"""Of a histogram."""


def depth_profile(
    results: xr.Dataset | pd.DataFrame,
    *,
    metric: str = "channelwise",
    relative: bool = False,
    by: str | None = None,
    title: str | None = None,
) -> Figure:
    """EED of one metric by depth: one line per model, or per recipe with a 95 % band over its seeds.

    Without seeds the band is the bootstrap interval over chains of samples. Class tokens, which lie beside the maps, are left
    out.

    Parameters
    ----------
    results : Dataset, or a table of `summarise`
    relative : draw (E − m*) / (E_null − m*) instead of E: 0 is perfectly equivariant, at 1 a moved copy is no more alike than
        another image
    by : coordinate of `model` to group by; None takes `recipe` when there is one
    """
    table, by = _table(results, by)
    value = "relative" if relative else "estimate"
    rows = table[(table.metric == metric) & table[value].notna() & ~table.layer.str.endswith("[class]")]
    if rows.empty:
        known = table[table[value].notna()].metric.unique()
        raise ValueError(unknown(f"metric with {value} values", metric, known) + _why(table, metric))
    absent = [style.literal(name) for name in dict.fromkeys(table[by]) if name not in set(rows[by])]
    with style.figure(title or f"Where in the network is it equivariant? {_title(results, metric)}") as (fig, ax):
        for name, look in style.styles(rows[by]).items():
            points = sorted(_point(group, value) for _, group in rows[rows[by] == name].groupby("layer"))
            x, mid, low, high = (np.array(column) for column in zip(*points, strict=True))
            ax.fill_between(x, low, high, color=look["color"], alpha=0.2, linewidth=0)
            ax.plot(x, mid, linewidth=1.8, markersize=7, **look, label=style.literal(name))
        ax.set(xlabel="depth in the network (0 input, 1 output)", ylabel=_label(results, metric, relative))
        ax.set_xlim(0, 1)
        scale = "0: perfectly equivariant, 1: no more alike than another image; " if relative else ""
        missing = f"; no {value} value: {', '.join(absent)}" if absent else ""
        style.note(ax, scale + _replicates(rows, by, "relative_low" if relative else "low") + missing)
        ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig


def orbit_rose(
    results: xr.Dataset,
    *,
    metric: str = "latent",
    layer: str | None = None,
    by: str | None = None,
    title: str | None = None,
) -> Figure:
    """EED by group element on a polar axis: the angle is the rotation, the radius E − m* of that element.

    Mirrored elements are drawn dashed. The elements of a group that is not made of rotations and mirrors are spread evenly.
    With a recipe's seeds the points are means over them, with 95 % intervals.
    """
    results = _checked(results)
    names = _names(results, by)
    angles = results.angle.values
    elements = results.element.values
    mirrored = np.array([_is_mirrored(str(element)) for element in elements])
    turns = set(zip(angles.tolist(), mirrored.tolist(), strict=True))
    if len(set(angles.tolist())) == 1 or len(turns) < len(elements):
        angles = 360 * np.arange(len(elements)) / len(elements)
        mirrored = np.zeros(len(elements), dtype=bool)
    pointwise = pointwise_values(results, metric, layer)
    values = pointwise.mean("sample") - results[metric].attrs["best"]
    absent = []
    with style.figure(title or f"Under which element? {_title(results, metric)}", polar=True) as (fig, ax):
        for name, look in style.styles(names).items():
            ours = values.isel(model=np.flatnonzero(names == name)).transpose("element", "model").values
            ours = ours[:, ~np.isnan(ours).any(0)]
            if not ours.size:
                absent.append(style.literal(name))
                continue
            for part, line in ((~mirrored, "-"), (mirrored, "--")):
                if not part.any():
                    continue
                mid, low, high = np.array([_spread(row) for row in ours[part]]).T
                turn = np.deg2rad(angles[part])
                closed = np.append(np.arange(len(turn)), 0)
                ax.plot(turn[closed], mid[closed], linestyle=line, linewidth=1.6, color=look["color"])
                ax.errorbar(turn, mid, [mid - low, high - mid], linestyle="", markersize=6, capsize=2, **look)
            ax.plot([], [], **look, label=style.literal(name))
        if mirrored.any():
            ax.plot([], [], "--", color="0.3", label="dashed: mirrored")
        labels = dict(zip(angles[~mirrored], elements[~mirrored], strict=True))
        ax.set_xticks(np.deg2rad(sorted(labels)), [style.literal(labels[a]) for a in sorted(labels)])
        ax.set_rlabel_position(float(np.diff([*sorted(labels), 360])[0]) / 2)
        ax.set_ylim(bottom=0)
        ax.yaxis.set_major_locator(mpl.ticker.MaxNLocator(3))
        style.note(
            ax,
            f"radius: {_label(results, metric, False)} above its best value, mean over {pointwise.sizes['sample']} images"
            + (f"; no value: {', '.join(absent)}" if absent else ""),
        )
        ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.12, 0.5))
    return fig


def histogram(
    results: xr.Dataset,
    *,
    metric: str = "latent",
    layer: str | None = None,
    by: str | None = None,
    title: str | None = None,
) -> Figure:
    """How E − m* is spread over the images: one outline per model (or recipe), and dashed that of the null.

    Where outline and dashes lie on each other, a moved copy is no more alike than another image; outliers are single images
    on which the model is not as invariant as on the others.

    Raises
    ------
    ValueError
        There is no such metric, layer or coordinate.
    """
    results = _checked(results)
    names = _names(results, by)
    best = results[metric].attrs["best"] if metric in results else 0.0
    of_images = pointwise_values(results, metric, layer).astype("float64").mean("element") - best
    nulls = None
    if f"{metric}_null" in results:
        nulls = results[f"{metric}_null"].sel(sample=of_images["sample"].values)
        if "layer" in nulls.dims:
            nulls = nulls.sel(layer=of_images.layer.item())
        nulls = nulls.compute().astype("float64").mean("element") - best
    both = [of_images.values] if nulls is None else [of_images.values, nulls.values]
    finite = np.concatenate([values[np.isfinite(values)] for values in both])
    edges = np.histogram_bin_edges(finite, bins=BINS)
    with style.figure(title or f"How is it spread over the images? {_title(results, metric)}") as (fig, ax):
        for name, look in style.styles(names).items():
            ours = np.flatnonzero(names == name)
            ax.stairs(
                _shares(of_images, ours, edges), edges, color=look["color"], linewidth=1.8, label=style.literal(name)
            )
            if nulls is not None:
                ax.stairs(_shares(nulls, ours, edges), edges, color=look["color"], linewidth=1, linestyle="--")
        ax.set(xlabel=f"{_label(results, metric, False)} above its best value", ylabel="share of the images")
        ax.set_xlim(left=min(0.0, edges[0]))
        dashed = "" if nulls is None else "dashed: the null, in which each element acts on another image; "
        style.note(ax, f"{dashed}{of_images.sizes['sample']} images, means over the elements")
        ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig


def _shares(values: xr.DataArray, models: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Which share of the images lies in each bin."""
    of_models = values.isel(model=models).values
    counts, _ = np.histogram(of_models[np.isfinite(of_models)], bins=edges)
    return counts / max(1, counts.sum())


def class_heatmap(
    results: xr.Dataset,
    *,
    metric: str = "latent",
    layer: str | None = None,
    by: str | None = None,
    class_names: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """E − m* by class and group element, one panel per model (or recipe, its seeds averaged), on one colour scale.

    Raises
    ------
    ValueError
        The images had no labels.
    """
    results = _checked(results)
    names = _names(results, by)
    if "label" not in results.coords:
        raise ValueError("a class heatmap needs labels: measure(labels=…), or images that have labels of their own")
    values = (pointwise_values(results, metric, layer) - results[metric].attrs["best"]).groupby("label").mean("sample")
    kinds = list(dict.fromkeys(names.tolist()))
    labels = [style.literal(class_names[k] if class_names is not None else k) for k in values.label.values]
    elements = [style.literal(element) for element in results.element.values]
    panels = [
        values.isel(model=np.flatnonzero(names == kind)).mean("model").transpose("label", "element") for kind in kinds
    ]
    low = np.nanmin([panel.min() for panel in panels])
    high = np.nanmax([panel.max() for panel in panels])
    across = min(len(kinds), 4)
    down = -(-len(kinds) // across)
    with sns.axes_style("white"):
        fig = style.blank((1.6 + 2.3 * across, 1.2 + 0.3 * len(labels) * down))
        axes = np.atleast_1d(fig.subplots(down, across, sharey=True, squeeze=False)).ravel()
        for ax in axes[len(kinds) :]:
            ax.set_visible(False)
        for ax, kind, panel in zip(axes, kinds, panels, strict=False):
            cells = {"cmap": "viridis", "vmin": low, "vmax": high, "cbar": False, "linewidths": 0.5}
            texts = np.array([_cell_text(value) for value in panel.values.ravel()]).reshape(panel.shape)
            longest = max(map(len, texts.ravel()))
            cramped = len(labels) > 12 or panel.sizes["element"] * longest > 36
            numbers = {"annot": None if cramped else texts, "fmt": "", "annot_kws": {"size": 7}}
            sns.heatmap(panel.values, ax=ax, xticklabels=elements, yticklabels=labels, **cells, **numbers)
            ax.set_title(style.literal(kind), fontsize=10)
            ax.set(xlabel="element", ylabel="class" if ax is axes[0] else "")
            ax.tick_params(axis="y", rotation=0)
        scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(low, high), "viridis")
        fig.colorbar(
            scale,
            ax=axes[: len(kinds)].tolist(),
            label=f"{_label(results, metric, False)} above its best value",
            shrink=0.8,
        )
        fig.suptitle(title or f"On which classes? {_title(results, metric)}", fontsize=12)
    return fig


def calibration(
    results: xr.Dataset | pd.DataFrame,
    *,
    metric: str = "latent",
    layer: str | None = None,
    by: str | None = None,
    title: str | None = None,
) -> Figure:
    """Is it invariance, or insensitivity? E − m* against the null gap E_null − m*, on logarithmic axes *[ours]*.

    One point for each model. E_null is that of the shuffled orbit. Diagonals are contours of the relative value: on that of 1
    a moved copy is no more alike than another image, and far below them all a model is perfectly equivariant. To the left all
    images look alike to the model.
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
    best = rows.best.iloc[0]
    gaps, values = (rows.null - best).clip(lower=FLOOR), (rows.estimate - best).clip(lower=FLOOR)
    with style.figure(title or f"Invariance, or insensitivity? {_title(results, metric)}") as (fig, ax):
        ax.set(xscale="log", yscale="log")
        left = gaps.min() / 2
        right = gaps.max() * 2
        bottom, top = min(values.min(), 0.001) / 2, max(values.max(), right) * 2
        for level in (1.0, 0.1, 0.01, 0.001):
            ax.plot([left, right], [level * left, level * right], color="0.75", linewidth=0.8, zorder=0)
            if bottom < level * right < top:
                ax.annotate(f"{level:g}", (right, level * right), color="0.45", fontsize=8, va="center")
        for name, look in style.styles(rows[by]).items():
            ours = rows[by] == name
            ax.plot(gaps[ours], values[ours], linestyle="", markersize=7, alpha=0.85, **look, label=style.literal(name))
        ax.set_xlim(left, right)
        ax.set_ylim(bottom, top)
        ax.set(
            xlabel="null gap, how far apart other images are: null − best value",
            ylabel=f"{_label(results, metric, False)} − best value",
        )
        exact = f"; points at {FLOOR:g}: exact up to rounding" if values.min() <= FLOOR else ""
        style.note(ax, f"grey diagonals: relative value; on 1 a moved copy is no more alike than another image{exact}")
        ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.06, 0.5))
    return fig


def _is_mirrored(element: str) -> bool:
    """Whether an element, or one of the parts of an element of a product, mirrors the image."""
    return any(part.startswith("m") for part in element.split("·"))


def _cell_text(value: float) -> str:
    return "0" if abs(value) < FLOOR else f"{value:.2g}"


def _why(table: pd.DataFrame, metric: str) -> str:
    """Why a metric has no value, or no null, as the first of its rows that says so."""
    reasons = table[(table.metric == metric) & (table.reason != "")].reason
    return f"; {reasons.iloc[0]}" if len(reasons) else ""


def _table(results: xr.Dataset | pd.DataFrame, by: str | None) -> tuple[pd.DataFrame, str]:
    table = results if isinstance(results, pd.DataFrame) else summarise(results)
    by = by or ("recipe" if "recipe" in table else "model")
    if by not in table:
        raise ValueError(unknown("column to group by", by, table.columns))
    return table, by


def _checked(results: xr.Dataset) -> xr.Dataset:
    if not isinstance(results, xr.Dataset):
        raise TypeError(f"expected a Dataset, whose elements and samples are shown, got {type(results).__name__}")
    return schema.validate(results)


def _names(results: xr.Dataset, by: str | None) -> np.ndarray:
    """What each model is called in a figure: its recipe when it has one, else its label, or another coordinate."""
    by = by or ("recipe" if "recipe" in results.coords else "model")
    if by not in results.coords or results[by].dims != ("model",):
        about = [name for name, c in results.coords.items() if c.dims == ("model",)]
        raise ValueError(unknown("coordinate along model", by, about))
    return results[by].values


def pointwise_values(results: xr.Dataset, metric: str, layer: str | None = None) -> xr.DataArray:
    """A metric at a layer, (model, element, sample), of the samples for which every model has a value.

    None takes the layer `latent`, or the only one that a selection has left.
    """
    if metric not in schema.metrics_of(results):
        raise ValueError(unknown("metric", metric, schema.metrics_of(results)))
    values = results[metric]
    if "layer" not in values.dims:
        return _on_shared_samples(values)
    if layer is None:
        layer = "latent" if results.sizes["layer"] > 1 else results.layer.values[0]
    if layer not in results.layer.values:
        raise ValueError(unknown("layer", layer, results.layer.values.tolist()))
    reason = results[f"{metric}_nan_reason"].sel(layer=layer).values[0]
    values = values.sel(layer=layer)
    if reason and not schema.is_partial(reason) and values.isnull().all():
        raise ValueError(f"{metric} is undefined at {layer}: {reason}; choose another layer=")
    return _on_shared_samples(values)


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
    return f"bands: 95 % bootstrap over {n} images"


def _title(results: xr.Dataset | pd.DataFrame, metric: str) -> str:
    return f"({style.literal(_attribute(results, metric, 'long_name') or metric)})"


def _label(results: xr.Dataset | pd.DataFrame, metric: str, relative: bool) -> str:
    if relative:
        return f"relative {style.literal(metric)} EED"
    unit = _attribute(results, metric, "units")
    return style.literal(f"{metric} EED" + (f" ({unit})" if unit and unit != "1" else ""))


def _attribute(results: xr.Dataset | pd.DataFrame, metric: str, name: str) -> str:
    return results[metric].attrs.get(name, "") if isinstance(results, xr.Dataset) else ""
