"""Averages of pointwise results: G-EED with intervals, calibration against the null, paired comparisons, joins.

Knows xarray, pandas and scipy, never torch. Costs `resamples` means over the samples, in batches of bounded memory.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from eedkit.errors import unknown
from eedkit.results import schema
from eedkit.results.intervals import ChainBootstrap

NO_LAYER = "the model has no such layer"
"""Why a model joined to others is NaN at a layer that only they have."""
SMALL = 2**26
"""Bytes of results that are read at once."""
SMALL_PAIR_COSINE = 0.05
"""M at or below this leaves latent / M without meaning."""


@dataclass(frozen=True)
class _Estimate:
    """One metric of one model at one layer: per-sample means over the elements, NaN where there is none, and what calibrates
    them.

    `rounding` is the null gap that rounding alone may leave, `reason` says why samples have no value.
    """

    keys: dict
    values: np.ndarray
    null: np.ndarray | None
    best: float
    scale: float
    rounding: float
    pair_cosine: float
    no_pair_cosine: str
    reason: str

    @property
    def n(self) -> int:
        """Samples that have a value."""
        return int((~np.isnan(self.values)).sum())

    @property
    def no_relative(self) -> str:
        """Why there is no relative value; empty when there is one."""
        if self.null is None:
            return "measured without a null"
        if np.isnan(self.best):
            return "the distance has no best value"
        if np.isnan(self.null).all():
            return "no sample has a null"
        gap = np.nanmean(self.null) - self.best
        if not gap > self.rounding:
            return f"the null gap {gap:.2g} lies within rounding ({self.rounding:.2g}): the model tells no image from another here"
        return ""

    def relative(self, value: np.ndarray, null: np.ndarray) -> np.ndarray:
        """(E − m*) / (E_null − m*)."""
        return (value - self.best) / (null - self.best)


def summarise(
    ds: xr.Dataset | xr.DataTree, *, confidence: float = 0.95, resamples: int = 999, seed: int = 0
) -> pd.DataFrame:
    """E(f, G), the mean of the integrand over elements and samples (Kvinge et al. 2022, eq. 4), with its calibration.

    One row per model, metric and layer; of a tree also per data set (by its spec) and group, in columns of these names. Means are
    over the samples that have a value. Intervals are percentile bootstrap intervals (`resamples=0`: none) whose unit is the
    chain of images that share their shuffled orbits.

    Columns
    -------
    accuracy : part of the unmoved images whose label is predicted, for labels that count the model's own classes; NaN where
        there are no labels or no class scores
    estimate, low, high : E and its interval
    null : E of the shuffled orbit, in which each element acts on another image *[ours]*
    relative, relative_low, relative_high : (E − m*) / (E_null − m*), m* the best value: 0 is perfectly equivariant, 1 says that a
        moved copy is no more alike than another image; its interval resamples E and E_null together *[ours]*
    pair_cosine, normalised : M and E / M, for the metrics that M normalises
    best, scale : m*, and the size of a large difference
    n : samples that have a value
    reason : why something in the row is NaN, or samples have no value

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
    bootstrap = _bootstrap(ds, confidence, resamples, seed)
    return pd.DataFrame([_row(estimate, bootstrap) for estimate in _estimates(ds)])


def compare(
    ds: xr.Dataset, baseline: str, *, confidence: float = 0.95, resamples: int = 999, seed: int = 0
) -> pd.DataFrame:
    """Paired differences of E between every model and a baseline, on the same samples.

    Positive means less invariant than the baseline. One row per other model, metric and layer that both have, with the
    difference of E and of the relative value, each with a percentile bootstrap interval (unit: the chain).

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
    estimates = {tuple(one.keys[key] for key in ("model", "metric", "layer")): one for one in _estimates(ds)}
    bootstrap = _bootstrap(ds, confidence, resamples, seed)
    rows = []
    for (model, metric, layer), one in estimates.items():
        base = estimates.get((baseline, metric, layer))
        if model == baseline or base is None:
            continue
        rows.append({**one.keys, "baseline": baseline, **_difference(one, base, bootstrap)})
    return pd.DataFrame(rows)


def _difference(one: _Estimate, base: _Estimate, bootstrap: ChainBootstrap) -> dict:
    """The columns of `compare` for two models, on the samples for which both have a value."""
    columns = ("difference", "low", "high", "relative_difference", "relative_low", "relative_high")
    row = dict.fromkeys(columns, np.nan)
    difference = one.values - base.values
    row["n"] = int((~np.isnan(difference)).sum())
    row["reason"] = "; ".join(dict.fromkeys(filter(None, (one.reason, base.reason))))
    if not row["n"]:
        return row
    row["difference"] = np.nanmean(difference)
    row["low"], row["high"] = bootstrap.interval(lambda mean: mean, difference)
    no_relative = one.no_relative or base.no_relative
    if no_relative:
        return row | {"reason": "; ".join(filter(None, (row["reason"], no_relative)))}
    both = ~np.isnan(difference)
    arrays = [np.where(both, values, np.nan) for values in (one.values, one.null, base.values, base.null)]

    def relative_difference(
        value: np.ndarray, null: np.ndarray, of_base: np.ndarray, null_of_base: np.ndarray
    ) -> np.ndarray:
        return one.relative(value, null) - base.relative(of_base, null_of_base)

    row["relative_difference"] = relative_difference(*(np.nanmean(values) for values in arrays))
    row["relative_low"], row["relative_high"] = bootstrap.interval(relative_difference, *arrays)
    return row


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
        for what in ("group", "action", "data", "seed", "precision", "null"):
            if ds.attrs.get(what) != first.attrs.get(what):
                names = first.model.values[0], ds.model.values[0]
                raise ValueError(
                    f"{names[0]} and {names[1]} differ in {what}: {first.attrs.get(what)} and {ds.attrs.get(what)}; "
                    "measure both with the same group, seed, precision and null on the same images"
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
    return {**blank, "layer_type": "", "layout": "", **reasons}


def _bootstrap(ds: xr.Dataset, confidence: float, resamples: int, seed: int) -> ChainBootstrap:
    """Where the chains are not known, every sample is one."""
    chains = ds["chain"].values if "chain" in ds.coords else np.arange(ds.sizes["sample"])
    return ChainBootstrap(chains, confidence=confidence, resamples=resamples, seed=seed)


def _estimates(ds: xr.Dataset) -> Iterator[_Estimate]:
    about = [name for name, c in ds.coords.items() if c.dims == ("model",) and name not in ("model", "weights")]
    # one model's values at a time where a store holds many; what is small is read faster at once
    ds = ds.compute() if ds.nbytes < SMALL else ds
    for model in ds.model.values.tolist():
        one = ds.sel(model=model).compute()
        keys = {"model": model, **{name: one[name].item() for name in about}, "accuracy": _accuracy(one)}
        for metric in schema.metrics_of(ds):
            yield from _of_metric(one, metric, keys)


def _of_metric(one: xr.Dataset, metric: str, keys: dict) -> Iterator[_Estimate]:
    """The estimates of one metric of one model: one per layer, or one for the output."""
    attrs = one[metric].attrs
    has_layers = "layer" in one[metric].dims

    def by_layer(name: str, *over: str) -> np.ndarray:
        values = one[name].astype("float64").mean(over, skipna=False).values
        return values if has_layers else values[None]

    values = by_layer(metric, "element")
    n = values.shape[1]
    nulls = by_layer(f"{metric}_null", "element") if f"{metric}_null" in one else [None] * len(values)
    if isinstance(attrs["scale"], str):
        scales = np.atleast_1d(one[attrs["scale"]].astype("float64").mean("sample").values)
    else:
        scales = np.full(len(values), attrs["scale"])
    reasons = one[f"{metric}_nan_reason"].values.tolist() if has_layers else [attrs.get("nan_reason", "")]
    pair_cosines, no_pair_cosine = _pair_cosines(one, metric, len(values), n)
    layers = zip(one.layer.values.tolist(), one.depth.values.tolist(), strict=True) if has_layers else [("output", 1.0)]
    for k, (layer, depth) in enumerate(layers):
        if reasons[k] == NO_LAYER:
            continue
        undefined = int(np.isnan(values[k]).sum())
        reason = ""
        if undefined:  # the coordinate may count samples that were dropped since
            is_whole = undefined == n and reasons[k]
            reason = reasons[k] if is_whole else f"{undefined} of {n} samples have no value"
        yield _Estimate(
            keys={**keys, "metric": metric, "layer": layer, "depth": depth},
            values=values[k],
            null=nulls[k],
            best=attrs["best"],
            scale=float(scales[k]),
            rounding=attrs["rounding"] * (float(scales[k]) if np.isfinite(scales[k]) else 1.0),
            pair_cosine=pair_cosines[k],
            no_pair_cosine=no_pair_cosine,
            reason=reason,
        )


def _pair_cosines(one: xr.Dataset, metric: str, layers: int, n: int) -> tuple[list[float], str]:
    """M for each layer, NaN with the reason where it was taken over other samples."""
    name = f"{metric}_pair_cosine"
    if name not in one:
        return [np.nan] * layers, ""
    over = one[name].attrs.get("samples", n)
    if over != n:
        return [np.nan] * layers, f"M was taken over {over} samples, not these {n}"
    return one[name].values.tolist(), ""


def _accuracy(ds: xr.Dataset) -> float:
    """Of the first element, the identity."""
    if not {"prediction", "label"} <= set(ds.variables):
        return np.nan
    predicted, labels = ds.prediction.isel(element=0).values.ravel(), ds.label.values
    told = (predicted >= 0) & (labels != -1)
    return float((predicted == labels)[told].mean()) if told.any() else np.nan


def _row(one: _Estimate, bootstrap: ChainBootstrap) -> dict:
    columns = ("estimate", "low", "high", "null", "relative", "relative_low", "relative_high")
    row = {**one.keys, **dict.fromkeys(columns, np.nan)}
    row |= {"pair_cosine": one.pair_cosine, "normalised": np.nan, "best": one.best, "scale": one.scale}
    row |= {"n": one.n, "reason": one.reason}
    if not one.n:
        return row
    reasons = [one.reason, one.no_relative, one.no_pair_cosine]
    row["estimate"] = np.nanmean(one.values)
    row["low"], row["high"] = bootstrap.interval(lambda mean: mean, one.values)
    if len(bootstrap.starts) < 2:
        reasons.append("one chain of samples gives no interval")
    if one.null is not None and not np.isnan(one.null).all():
        row["null"] = np.nanmean(one.null)
    if not one.no_relative:
        row["relative"] = one.relative(row["estimate"], row["null"])
        row["relative_low"], row["relative_high"] = bootstrap.interval(one.relative, one.values, one.null)
    if one.pair_cosine > SMALL_PAIR_COSINE:
        row["normalised"] = row["estimate"] / one.pair_cosine
    elif not np.isnan(one.pair_cosine):
        reasons.append(f"M = {one.pair_cosine:.3g} is not above {SMALL_PAIR_COSINE}, so E / M has no meaning")
    return row | {"reason": "; ".join(filter(None, reasons))}
