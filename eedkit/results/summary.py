"""Averages of pointwise results: G-EED with intervals, calibration against the null, paired comparisons, joins.

Knows xarray, pandas and scipy, never torch. Costs `resamples` means over the samples, in batches of bounded memory.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from eedkit.errors import unknown
from eedkit.results import schema
from eedkit.results.intervals import block_interval, sample_interval

INSENSITIVE = 0.01
"""A null gap below this part of the distance's scale flags a model as insensitive on these images."""
NOISE = 1e-5
"""A null gap below this part of the scale is numerical noise: no relative value."""
NO_LAYER = "the model has no such layer"
"""Why a model joined to others is NaN at a layer that only they have."""
SMALL = 2**26
"""Bytes of results that are read at once."""
SMALL_PAIR_COSINE = 0.05
"""M at or below this leaves latent / M without meaning."""


@dataclass(frozen=True)
class _Cell:
    """One metric of one model at one layer: per-sample means over the elements, and what calibrates them."""

    keys: dict
    values: np.ndarray
    null: np.ndarray | None
    best: float
    scale: float
    pair_cosine: float
    no_pair_cosine: str
    reason: str


def summarise(
    ds: xr.Dataset | xr.DataTree, *, confidence: float = 0.95, resamples: int = 999, seed: int = 0
) -> pd.DataFrame:
    """E(f, G), the mean of the integrand over elements and samples (Kvinge et al. 2022, eq. 4), with its calibration.

    One row per model, metric and layer; of a tree also per data set (by its spec) and group, in columns of these names. Intervals are
    percentile bootstrap intervals with the sample as the unit (`resamples=0`: none). Nulls share an image with those of their
    neighbours in the chain, so the relative value's interval resamples runs of neighbours.

    Columns
    -------
    accuracy : part of the unmoved images whose label is predicted, for labels that count the model's own classes; NaN where
        there are no labels or no class scores
    estimate, low, high : E and its interval
    null : the same against unrelated samples *[ours]*
    relative, relative_low, relative_high : (E − m*) / (E_null − m*), m* the best value: 0 is perfectly equivariant, 1 no
        better than an unrelated image; its interval resamples E and E_null together *[ours]*
    insensitive : whether E_null − m* is under 1 % of the distance's scale: the model hardly tells images apart; False also
        where there is no null to tell by
    pair_cosine, normalised : M and E / M, for `latent` and `latent_unit` alone
    best, scale : m*, and what the null gap is judged against
    n : samples
    reason : why something in the row is NaN

    Raises
    ------
    ValueError
        The Dataset is not of eedkit's schema (`SchemaError`), or the confidence is not between 0 and 1.

    >>> import eedkit as ek, torch
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(25, 3))
    >>> ds = ek.measure(net, torch.rand(8, 1, 5, 5), group="C4", progress=False)
    >>> ek.summarise(ds).query("metric == 'latent' and layer == 'latent'").n.item()
    8
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    if isinstance(ds, xr.DataTree):
        options = {"confidence": confidence, "resamples": resamples, "seed": seed}
        tables = []
        for leaf in ds.leaves:
            path, _, group = leaf.path.strip("/").rpartition("/")
            # the images' spec, where the tree tells it: a path of their own would be another in a tree
            spec = str(leaf.attrs.get("data", "")).rpartition(" [")[0]
            tables.append(summarise(leaf.to_dataset(), **options).assign(data=spec or path, group=group))
        return pd.concat(tables, ignore_index=True)
    schema.validate(ds)
    options = {"confidence_level": confidence, "n_resamples": resamples, "rng": seed}
    return pd.DataFrame([_row(cell, options) for cell in _cells(ds)])


def insensitive(ds: xr.Dataset, metric: str, layer: str = "latent") -> xr.DataArray:
    """Per model, whether E_null − m* is under 1 % of the distance's scale; False without a null.

    >>> import eedkit as ek, torch
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(25, 3))
    >>> ds = ek.measure(net, torch.rand(8, 1, 5, 5), group="C4", progress=False)
    >>> insensitive(ds, "softmax").dims
    ('model',)
    """
    at = ds.sel(layer=layer) if "layer" in ds[metric].dims else ds
    if f"{metric}_null" not in ds:
        return xr.zeros_like(ds.model, dtype=bool)
    scale = ds[metric].attrs["scale"]
    scale = at[scale].mean("sample") if isinstance(scale, str) else scale
    return at[f"{metric}_null"].mean(("element", "sample")) - ds[metric].attrs["best"] < INSENSITIVE * scale


def compare(
    ds: xr.Dataset, baseline: str, *, confidence: float = 0.95, resamples: int = 999, seed: int = 0
) -> pd.DataFrame:
    """Paired differences of E between every model and a baseline, on the same samples.

    Positive means less invariant than the baseline. One row per other model, metric and layer that both have, with the
    difference of E and of the relative value, each with a percentile bootstrap interval (unit: the sample).

    Raises
    ------
    ValueError
        There is no model called `baseline`; near names are listed.

    >>> import eedkit as ek, torch
    >>> nets = [torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(25, 3)) for _ in "ab"]
    >>> images = torch.rand(8, 1, 5, 5)
    >>> ds = ek.concat([ek.measure(n, images, group="C4", name=k, progress=False) for k, n in zip("ab", nets)])
    >>> ek.compare(ds, "a").model.unique().tolist()
    ['b']
    """
    schema.validate(ds)
    if baseline not in ds.model.values:
        raise ValueError(unknown("model", baseline, ds.model.values.tolist()))
    cells = {tuple(cell.keys[k] for k in ("model", "metric", "layer")): cell for cell in _cells(ds)}
    options = {"confidence_level": confidence, "n_resamples": resamples, "rng": seed}
    rows, columns = [], ("difference", "low", "high", "relative_difference", "relative_low", "relative_high")
    for (model, metric, layer), cell in cells.items():
        base = cells.get((baseline, metric, layer))
        if model == baseline or base is None:
            continue
        row = {**cell.keys, "baseline": baseline, **dict.fromkeys(columns, np.nan)}
        reason = cell.reason or base.reason
        if not reason:
            row["difference"] = (cell.values - base.values).mean()
            row["low"], row["high"] = sample_interval((cell.values - base.values,), np.mean, options)
            reason = _no_relative(cell) or _no_relative(base)
        if not reason:
            data = cell.values, cell.null, base.values, base.null
            gap = _relative_difference(cell.best)
            row["relative_difference"] = gap(*data)
            row["relative_low"], row["relative_high"] = block_interval(data, gap, options)
        rows.append({**row, "n": len(cell.values), "reason": reason})
    return pd.DataFrame(rows)


def concat(datasets: Iterable[xr.Dataset], **about: Sequence) -> xr.Dataset:
    """Models side by side: outer join on `layer` in the order of appearance, the same elements and samples required.

    A model without some layer has NaN there, with the reason. Compare across architectures by the coordinate `depth`.

    Parameters
    ----------
    about : coordinates along `model`, one value per model: `recipe=[…], seed=[…]`; figures and verdicts group by these

    Raises
    ------
    ValueError
        Nothing to join, a model label appears twice, or the Datasets differ in group, metrics or images.
    """
    datasets = [datasets] if isinstance(datasets, xr.Dataset) else list(datasets)
    if not datasets:
        raise ValueError("nothing to join: expected at least one Dataset")
    first = schema.validate(datasets[0])
    for ds in datasets[1:]:
        schema.validate(ds)
        for what in ("group", "action", "data", "seed", "precision"):
            if ds.attrs.get(what) != first.attrs.get(what):
                names = first.model.values[0], ds.model.values[0]
                raise ValueError(
                    f"{names[0]} and {names[1]} differ in {what}: {first.attrs.get(what)} and {ds.attrs.get(what)}; "
                    "measure both with the same group, seed and precision on the same images"
                )
        if set(ds.data_vars) != set(first.data_vars):
            odd = sorted(set(ds.data_vars) ^ set(first.data_vars))
            raise ValueError(f"every model needs the same metrics, but these are not in all: {', '.join(odd)}")
    names = [name for ds in datasets for name in ds.model.values.tolist()]
    if len(set(names)) < len(names):
        raise ValueError(f"model labels repeat: {', '.join(names)}; give each measure() another name=")
    layers = list(dict.fromkeys(layer for ds in datasets for layer in ds.layer.values.tolist()))
    # the paper's latent layer stays last, whatever layers a later model adds
    layers = sorted(layers, key=lambda layer: layer == "latent")
    wide = [ds.reindex(layer=np.array(layers, dtype=object), fill_value=_fill(ds)) for ds in datasets]
    joined = xr.concat(
        wide, dim="model", join="exact", coords="minimal", compat="override", combine_attrs="drop_conflicts"
    )
    joined = joined.assign_coords({name: ("model", _column(name, about[name], joined)) for name in about})
    return schema.validate(joined.transpose(*schema.DIMS))


def _column(name: str, values: Sequence, joined: xr.Dataset) -> np.ndarray:
    """One value per model; strings as objects, since Zarr has no stable form for fixed-width ones."""
    if isinstance(values, str) or len(values) != joined.sizes["model"]:
        raise ValueError(f"{name}= must list one value for each of {joined.sizes['model']} models, got {values!r}")
    if name in joined.variables:
        raise ValueError(f"{name!r} is the name of something in the results already; choose another")
    column = np.asarray(list(values))
    return column.astype(object) if column.dtype.kind == "U" else column


def _fill(ds: xr.Dataset) -> dict[str, object]:
    blank = {name: 0 if c.dtype.kind in "iu" else np.nan for name, c in ds.variables.items() if c.dtype.kind in "iuf"}
    reasons = {name: NO_LAYER for name in ds.coords if str(name).endswith("_nan_reason")}
    return {**blank, "layer_type": "", **reasons}


def _cells(ds: xr.Dataset) -> Iterator[_Cell]:
    about = [name for name, c in ds.coords.items() if c.dims == ("model",) and name not in ("model", "weights")]
    # one model's values at a time where a store holds many; what is small is read faster at once
    ds = ds.compute() if ds.nbytes < SMALL else ds
    for model in ds.model.values.tolist():
        one = ds.sel(model=model).compute()
        keys = {"model": model, **{name: one[name].item() for name in about}, "accuracy": _accuracy(one)}
        # in the stream's order, in which neighbours share the null's chain
        order = np.argsort(one["position"].values) if "position" in one.coords else slice(None)
        for metric in schema.metrics_of(ds):
            yield from _of_metric(one, metric, keys, order)


def _of_metric(one: xr.Dataset, metric: str, keys: dict, order: np.ndarray | slice) -> Iterator[_Cell]:
    """The cells of one metric of one model: a row per layer, or one for the output."""
    attrs, layered = one[metric].attrs, "layer" in one[metric].dims

    def rows(name: str, *over: str) -> np.ndarray:
        values = one[name].astype("float64").mean(over, skipna=False).values
        return values if layered else values[None]

    values = rows(metric, "element")[:, order]
    null = rows(f"{metric}_null", "element")[:, order] if f"{metric}_null" in one else [None] * len(values)
    n, where = values.shape[1], {"layer": one.layer.values.tolist(), "depth": one.depth.values.tolist()}
    told = one[f"{metric}_nan_reason"].values.tolist() if layered else [attrs.get("nan_reason", "")]
    scale = rows(attrs["scale"], "sample") if isinstance(attrs["scale"], str) else [attrs["scale"]] * len(values)
    pairs, no_pair = [np.nan] * len(values), ""
    if metric in ("latent", "latent_unit"):
        over = one["latent_pair_cosine"].attrs.get("samples", n)
        if over == n:
            pairs = one["latent_pair_cosine"].values.tolist()
        else:
            no_pair = f"M was taken over {over} samples, not these {n}"
    for k, (layer, depth) in enumerate(zip(*where.values(), strict=True) if layered else [("output", 1.0)]):
        if told[k] == NO_LAYER:
            continue
        undefined, reason = int(np.isnan(values[k]).sum()), ""
        if undefined:  # the coordinate may tell of samples that were dropped since
            reason = told[k] if undefined == n and told[k] else f"undefined for {undefined} of {n} samples"
        at = {"metric": metric, "layer": layer, "depth": depth}
        yield _Cell(keys | at, values[k], null[k], attrs["best"], float(scale[k]), pairs[k], no_pair, reason)


def _accuracy(ds: xr.Dataset) -> float:
    """Of the first element, the identity."""
    if not {"prediction", "label"} <= set(ds.variables):
        return np.nan
    predicted, labels = ds.prediction.isel(element=0).values.ravel(), ds.label.values
    told = (predicted >= 0) & (labels != -1)
    return float((predicted == labels)[told].mean()) if told.any() else np.nan


def _no_relative(cell: _Cell) -> str:
    """Why a cell has no relative value; empty when it has one."""
    if cell.null is None:
        return "measured without a null"
    if np.isnan(cell.best):
        return "the distance has no best value"
    gap = cell.null.mean() - cell.best
    if not gap >= NOISE * cell.scale:
        return f"the null gap {gap:.2g} is within numerical noise: the model does not tell these images apart"
    return ""


def _row(cell: _Cell, options: dict) -> dict:
    nan = float("nan")
    row = {**cell.keys, "estimate": nan, "low": nan, "high": nan, "null": nan, "relative": nan}
    row |= {"relative_low": nan, "relative_high": nan, "insensitive": False, "pair_cosine": cell.pair_cosine}
    row |= {"normalised": nan, "best": cell.best, "scale": cell.scale, "n": len(cell.values), "reason": cell.reason}
    if cell.reason:
        return row
    row["estimate"] = cell.values.mean()
    row["low"], row["high"] = sample_interval((cell.values,), np.mean, options)
    reasons = [_no_relative(cell), cell.no_pair_cosine]
    if len(cell.values) < 2:
        reasons.append("one sample gives no interval")
    if cell.null is not None:
        row["null"] = cell.null.mean()
        row["insensitive"] = bool(row["null"] - cell.best < INSENSITIVE * cell.scale)
    if not reasons[0]:
        relative = _relative(cell.best)
        row["relative"] = relative(cell.values, cell.null)
        row["relative_low"], row["relative_high"] = block_interval((cell.values, cell.null), relative, options)
    if cell.pair_cosine > SMALL_PAIR_COSINE:
        row["normalised"] = row["estimate"] / cell.pair_cosine
    elif not np.isnan(cell.pair_cosine):
        reasons.append(f"M = {cell.pair_cosine:.3g} is not above {SMALL_PAIR_COSINE}, so E / M has no meaning")
    return row | {"reason": "; ".join(filter(None, reasons))}


def _relative(best: float) -> Callable:
    def relative(values: np.ndarray, null: np.ndarray, axis: int = -1) -> np.ndarray:
        return (values.mean(axis) - best) / (null.mean(axis) - best)

    return relative


def _relative_difference(best: float) -> Callable:
    relative = _relative(best)

    def difference(values, null, base, base_null, axis: int = -1) -> np.ndarray:
        return relative(values, null, axis) - relative(base, base_null, axis)

    return difference
