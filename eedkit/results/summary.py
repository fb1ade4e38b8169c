"""Averages of pointwise results: G-EED with intervals, calibration against the null, paired comparisons, joins.

Knows xarray and pandas, never torch. Works on arrays (layer, sample) of one metric of one model, and reads one model at
a time where a store holds many.
"""

import re
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from eedkit.errors import unknown
from eedkit.results import schema
from eedkit.results.intervals import Chains, mean_of, mean_residuals, ratio_residuals, sampling_error, t_interval
from eedkit.results.predictions import by_element, predictions
from eedkit.results.text import Summary

SMALL = 2**26
"""Bytes of results that are read at once."""
SMALL_PAIR_COSINE = 0.05
"""M at or below this leaves latent / M without meaning."""
NAMED = 3
"""Samples without a value that a reason names."""
LEAST_ELEMENTS = 8
"""Elements round a circle below which neighbours do not tell the error of sampling them, and f̂ of so few is biased."""
SAMPLE = re.compile(r"(?P<family>SO\(2\)|O\(2\)|T\(2\))\?n=(?P<n>\d+)(&seed=\d+)?")
"""The names of groups of which elements were drawn."""


@dataclass(frozen=True)
class _Deviation:
    """E and its null for one metric of one model; an output is one layer.

    values : the means over the elements, (layer, sample), NaN where a sample has none
    n : samples that have a value, (layer,)
    estimate, null : the means of the values and of those of the shuffled orbit, (layer,)
    best, order : the distance's perfect value m*, and the power of |δ| with which it leaves it
    rounding : the null gap that rounding alone may leave, (layer,)
    ratio, relative : (E − m*) / (E_null − m*), and its 1/order-th root, (layer,)
    residuals : what each chain adds to the ratio, (layer, chain)
    no_relative : why a layer that has values has no relative value; empty where it has one
    """

    values: np.ndarray
    n: np.ndarray
    estimate: np.ndarray
    null: np.ndarray
    best: float
    order: int
    rounding: np.ndarray
    ratio: np.ndarray
    relative: np.ndarray
    residuals: np.ndarray
    no_relative: list[str]

    def relative_residuals(self) -> np.ndarray:
        """What each chain adds to the relative value, to first order: the root's slope times what it adds to the ratio.

        The slope is infinite at 0, where every value is m* and so every residual 0.
        """
        is_above = self.ratio > 0
        slope = np.divide(self.relative, self.order * self.ratio, out=np.zeros(self.ratio.shape), where=is_above)
        return slope[:, None] * self.residuals


def _deviation(one: xr.Dataset, metric: str, chains: Chains, is_kept: np.ndarray | bool = True) -> _Deviation:
    """A metric of one model with its null, of all samples or of a part of them, (layer, sample)."""
    attrs = one[metric].attrs
    best, order = attrs["best"], attrs["order"]
    values = np.where(is_kept, _by_layer(one, metric), np.nan)
    nulls = np.full_like(values, np.nan)
    if f"{metric}_null" in one:
        nulls = np.where(is_kept, _by_layer(one, f"{metric}_null"), np.nan)
    n = (~np.isnan(values)).sum(-1)
    estimate, null = mean_of(values), mean_of(nulls)
    scale, _ = _scale(one, metric)
    rounding = attrs["rounding"] * np.where(np.isfinite(scale), scale, 1.0)
    ratio = _ratio(estimate, null, best, rounding)
    residuals = ratio_residuals(values - best, nulls - best, ratio, chains)
    reasons = []
    for of_layer, of_null, within, found in zip(estimate, null, rounding, ratio, strict=True):
        gap = of_null - best
        reason = ""
        if f"{metric}_null" not in one:
            reason = "measured without a null, or it was left out"
        elif np.isnan(best):
            reason = "the distance has no best value"
        elif np.isnan(of_null):
            reason = "no sample has a null"
        elif not gap > within:
            no_gap = f"the null gap {gap:.2g} lies within rounding ({within:.2g})"
            reason = f"{no_gap}: the model tells no image from another here"
        elif np.isnan(found):
            below = f"E lies {best - of_layer:.2g} below the best value {best:g}"
            reason = f"{below}, which rounding ({within:.2g}) does not explain"
        reasons.append(reason)
    relative = as_relative(ratio, order)
    return _Deviation(values, n, estimate, null, best, order, rounding, ratio, relative, residuals, reasons)


def as_relative(ratio: Any, order: int) -> Any:
    """A ratio, or an array, on the scale of relative values; one below 0, as an interval's end may be, counts as 0.

    >>> as_relative(np.array([0.25, -0.25]), order=2)
    array([0.5, 0. ])
    """
    return np.maximum(ratio, 0.0) ** (1 / order)


def _ratio(estimate: np.ndarray, null: np.ndarray, best: float, rounding: np.ndarray) -> np.ndarray:
    """(estimate − m*) / (E_null − m*), (layer,); NaN where the null gap lies within rounding.

    An estimate that lies below m* within rounding counts as m*; one further below has no ratio.
    """
    above_best = estimate - best
    above_best = np.where((above_best < 0) & (above_best >= -rounding), 0.0, above_best)
    gap = null - best
    is_known = (gap > rounding) & (above_best >= 0)
    return np.divide(above_best, gap, out=np.full(gap.shape, np.nan), where=is_known)


def summarise(ds: xr.Dataset | xr.DataTree, *, full: bool = False) -> pd.DataFrame:
    """How accurate each model is moved, and E(f, G), the mean of the integrand (Kvinge et al. 2022, eq. 4), calibrated.

    First, accuracy by element where images have labels, and the part of predictions that stay as the image moves: rows of
    the metrics "accuracy" and "prediction kept", which are at no layer and have no relative value; the element "moved" is
    the mean over all but the identity. The null of a prediction kept is how often two different images get the same class.

    Then one row per metric and layer, at no element, since E is the mean over all; of a tree also per data set (by its
    spec) and group, in columns of these names. Means are over the samples that have a value. Intervals are Student's t:
    that of E over images, that of the relative value over the chains of images that share their shuffled orbits, from the
    residuals of E and of its null together.

    The table shows itself in 80 columns; `ek.to_latex` makes one for a paper.

    Columns
    -------
    relative, relative_low, relative_high : ((E − m*) / (E_null − m*)) ^ (1 / order): 0 is perfectly equivariant; at 1 a
        transformed copy is as far away as a different image *[ours]*
    estimate, low, high : E, or a share of the images, and its interval
    null : E of the shuffled orbit, in which each element acts on another image *[ours]*
    best : m*, the value of a perfectly equivariant model
    order : 2 for distances that grow with the square of a small difference, 1 for the others
    round_trip : the same of m(f(g⁻¹gx), f(x)) in the place of E, for groups that interpolate, which bounds from above
        what interpolation adds to `relative` *[ours]*
    element_error : standard error of the estimate that comes from sampling elements of a continuous group
    n : samples that have a value
    reason : why something in the row is NaN, but for the accuracy, and which samples have no value and why; and that
        `latent` was measured on the model's output itself, where no classifier was found

    Further columns with `full=True`
    --------------------------------
    scale : the size of a large difference
    pair_cosine, normalised : M and E / M, for the metrics that M normalises
    accuracy : part of the unmoved images whose label is predicted; NaN where a label lies beyond the model's own
        classes, or the data set declares another number of them. Otherwise labels must count the model's classes
    accuracy_reason : why accuracy is NaN

    Raises
    ------
    ValueError
        The Dataset is not of eedkit's schema (`SchemaError`).

    Examples
    --------
    >>> import eedkit as ek, torch
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(25, 3))
    >>> ds = ek.measure(net, torch.rand(8, 1, 5, 5), group="C4", progress=False)
    >>> ek.summarise(ds).query("metric == 'latent' and layer == 'latent'").n.item()
    8
    """
    if isinstance(ds, xr.DataTree):
        tables = []
        for leaf in ds.leaves:
            path, _, group = leaf.path.strip("/").rpartition("/")
            # the images' spec, where the tree tells it: a path of their own would be another in a tree
            spec = str(leaf.attrs.get("data", "")).rpartition(" [")[0]
            table = summarise(leaf.to_dataset(), full=full)
            tables.append(table.assign(data=spec or path, group=group))
        table = pd.concat(tables, ignore_index=True)
        return table if full else Summary(table)
    ds = schema.validate(ds)
    chains = _chains(ds)
    tables = []
    for about, one in _each_model(ds):
        accuracy = dict(zip(("accuracy", "accuracy_reason"), _accuracy(one), strict=True)) if full else {}
        tables.append(by_element(one).assign(**about, **accuracy))
        for metric in schema.metrics_of(ds):
            tables.append(pd.DataFrame({**about, **_summary(one, metric, chains, full=full), **accuracy}))
    columns = tables[-1].columns
    table = pd.concat([part for part in tables if len(part)], ignore_index=True).loc[:, columns]
    return table if full else Summary(table)


def compare(ds: xr.Dataset, baseline: str) -> pd.DataFrame:
    """Paired differences of E between every model and a baseline, on the same samples.

    Positive means less invariant than the baseline. One row per other model, metric and layer that both have, with the
    difference of E and of the relative value. Both have Student's t intervals, over the images' differences and over
    those of the chains' residuals of relative values (the delta method).

    Raises
    ------
    ValueError
        There is no model called `baseline`; near names are listed.

    Examples
    --------
    >>> import eedkit as ek, torch
    >>> nets = [torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(25, 3)) for _ in "ab"]
    >>> images = torch.rand(8, 1, 5, 5)
    >>> ds = ek.concat([ek.measure(n, images, group="C4", name=k, progress=False) for k, n in zip("ab", nets)])
    >>> ek.compare(ds, "a").model.unique().tolist()
    ['b']
    """
    ds = schema.validate(ds)
    names = ds.model.values.tolist()
    if baseline not in names:
        raise ValueError(unknown("model", baseline, names))
    chains = _chains(ds)
    _, base = next(_each_model(ds.sel(model=[baseline])))
    tables = []
    for about, one in _each_model(ds.sel(model=[name for name in names if name != baseline])):
        for metric in schema.metrics_of(ds):
            tables.append(pd.DataFrame({**about, **_differences(one, base, metric, chains)}))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def ratio_from_x(one: xr.Dataset, metric: str, layer: str | None = None, *, of: str = "_from_x") -> xr.DataArray:
    """(m(f(gx), g f(x)) − m*) / (its null − m*) of every moved copy of one model, (element, sample) *[ours]*.

    The null is the mean over the images under the same element, so that means over images, or over elements, are on the
    scale of relative values when `as_relative` has taken their root. NaN where the null gap lies within rounding, and
    where there is no null. `of="_round_trip"` puts m(f(g⁻¹gx), f(x)) in the place of m(f(gx), g f(x)), and
    `of="_from_x_null"` that of another image.
    """
    one = one.isel(model=0)
    attrs = one[metric].attrs
    scale, _ = _scale(one, metric)
    from_x = one[schema.from_x(one, metric)]
    null = one.get(f"{from_x.name}_null", xr.full_like(from_x, np.nan))
    values = {"_from_x": from_x, "_from_x_null": null}.get(of)
    if values is None:
        values = one[metric + of]
    if "layer" in values.dims:
        at = one.layer.values.tolist().index(layer)
        values = values.isel(layer=at)
        null = null.isel(layer=at)
        scale = scale[[at]]
    is_moved = one.element.values != one.element.attrs.get("identity", "e")
    values = values.isel(element=is_moved).transpose("element", "sample").astype(float)
    gap = null.isel(element=is_moved).transpose("element", "sample").astype(float).mean("sample") - attrs["best"]
    rounding = attrs["rounding"] * (scale[0] if np.isfinite(scale[0]) else 1.0)
    return (values - attrs["best"]).clip(min=0) / gap.where(gap > rounding)


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
    datasets = [schema.validate(ds) for ds in datasets]
    datasets = _with_from_x(datasets)
    first = datasets[0]
    for ds in datasets[1:]:
        for what in ("group", "action", "data", "seed", "precision", "null"):
            if ds.attrs.get(what) != first.attrs.get(what):
                names = first.model.values[0], ds.model.values[0]
                raise ValueError(
                    f"{names[0]} and {names[1]} differ in {what}: {first.attrs.get(what)} and {ds.attrs.get(what)}; "
                    "measure both with the same group, seed, precision and null on the same images"
                )
        if set(ds.data_vars) != set(first.data_vars):
            odd = sorted(map(str, set(ds.data_vars) ^ set(first.data_vars)))
            raise ValueError(f"every model needs the same metrics, but these are not in all: {', '.join(odd)}")
    names = np.concatenate([ds.model.values for ds in datasets]).tolist()
    if len(set(names)) < len(names):
        raise ValueError(f"model labels repeat: {', '.join(names)}; give each measure() another name=")
    wide = datasets
    if "layer" in first.dims:
        layers = list(dict.fromkeys(np.concatenate([ds.layer.values for ds in datasets]).tolist()))
        # the paper's latent layer stays last, whatever layers a later model adds
        layers = sorted(layers, key=lambda layer: layer == "latent")
        wide = [ds.reindex(layer=np.array(layers, dtype=object), fill_value=_fill(ds)) for ds in datasets]
    joined = xr.concat(
        wide, dim="model", join="exact", coords="minimal", compat="override", combine_attrs="drop_conflicts"
    )
    joined = joined.assign_coords({name: ("model", _column(name, about[name], joined)) for name in about})
    return schema.validate(joined.transpose(*schema.DIMS, missing_dims="ignore"))


def _with_from_x(datasets: Sequence[xr.Dataset]) -> list[xr.Dataset]:
    """With `<metric>_from_x` for all where some model has it; where one lacks it f̂ is f, and it is the metric."""
    attrs = {}
    for ds in datasets:
        for name, variable in ds.data_vars.items():
            if str(name).endswith(("_from_x", "_from_x_null")):
                attrs[name] = variable.attrs
    completed = []
    for ds in datasets:
        for name in attrs:
            metric, _, null = str(name).rpartition("_from_x")
            if name not in ds and metric + null in ds:
                ds = ds.assign({name: ds[metric + null].assign_attrs(attrs[name])})
        completed.append(ds)
    return completed


def _column(name: str, values: Sequence, joined: xr.Dataset) -> np.ndarray:
    """One value per model; strings as objects, since Zarr has no stable form for fixed-width ones."""
    if isinstance(values, str) or len(values) != joined.sizes["model"]:
        raise ValueError(f"{name}= must list one value for each of {joined.sizes['model']} models, got {values!r}")
    if name in joined.variables:
        raise ValueError(f"{name!r} is the name of something in the results already; choose another")
    column = np.asarray(list(values))
    return column.astype(object) if column.dtype.kind == "U" else column


def _fill(ds: xr.Dataset) -> dict[Hashable, object]:
    blank = {name: 0 if c.dtype.kind in "iu" else np.nan for name, c in ds.variables.items() if c.dtype.kind in "iuf"}
    reasons = {name: schema.NO_LAYER for name in ds.coords if str(name).endswith("_nan_reason")}
    return {**blank, "layer_type": "", "layout": "", **reasons}


def _chains(ds: xr.Dataset) -> Chains:
    """Where the chains are not known, every sample is one."""
    return Chains(ds["chain"].values if "chain" in ds.coords else np.arange(ds.sizes["sample"]))


def _each_model(ds: xr.Dataset) -> Iterator[tuple[dict[str, object], xr.Dataset]]:
    """What is known of each model, and its values at the layers that it has."""
    about = ["model"]
    for name, coord in ds.coords.items():
        if coord.dims == ("model",) and name not in ("model", "weights", "classes"):
            about.append(str(name))
    ds = ds.drop_vars([name for name in ds.data_vars if str(name).endswith(("_from_x", "_from_x_null"))])
    # one model's values at a time where a store holds many; what is small is read faster at once
    ds = ds.compute() if ds.nbytes < SMALL else ds
    for model in ds.model.values.tolist():
        one = ds.sel(model=model).compute()
        # any metric's reasons say which layers only other models have
        reasons = [coord.values for name, coord in one.coords.items() if str(name).endswith("_nan_reason")]
        if reasons:
            one = one.isel(layer=reasons[0] != schema.NO_LAYER)
        yield {name: one[name].item() for name in about}, one


def _summary(one: xr.Dataset, metric: str, chains: Chains, *, full: bool) -> dict[str, object]:
    """The columns of `summarise` for one metric of one model."""
    deviation = _deviation(one, metric, chains)
    n = deviation.n
    low, high = t_interval(deviation.estimate, mean_residuals(deviation.values))
    of_ratio = t_interval(deviation.ratio, deviation.residuals)
    relative_low, relative_high = (as_relative(end, deviation.order) for end in of_ratio)
    places = _places(one, metric)
    of_output = one.attrs.get("latent", "")
    reasons = [
        _missing(one, metric, deviation.values),
        [of_output if layer == "latent" else "" for layer in places["layer"]],
        deviation.no_relative,
        _no_interval(low, deviation.relative, relative_low),
    ]
    of_group = {}
    if any(str(name).endswith("_round_trip") for name in one.data_vars):
        of_group["round_trip"] = np.nan
    if f"{metric}_round_trip" in one:
        round_trip = mean_of(_by_layer(one, f"{metric}_round_trip"))
        ratio = _ratio(round_trip, deviation.null, deviation.best, deviation.rounding)
        of_group["round_trip"] = as_relative(ratio, deviation.order)
    if "sampled" in one.element.attrs:
        of_group["element_error"], no_error = _element_error(one, metric)
        reasons.append([no_error] * len(n))
    further = {}
    if full:
        further["scale"], no_scale = _scale(one, metric)
        further["pair_cosine"], not_normalised = _pair_cosine(one, metric, n)
        has_meaning = further["pair_cosine"] > SMALL_PAIR_COSINE
        further["normalised"] = np.where(has_meaning, deviation.estimate / further["pair_cosine"], np.nan)
        reasons += [[no_scale] * len(n), not_normalised]
    return {
        **places,
        "relative": deviation.relative,
        "relative_low": relative_low,
        "relative_high": relative_high,
        "estimate": deviation.estimate,
        "low": low,
        "high": high,
        "null": deviation.null,
        "best": deviation.best,
        "order": deviation.order,
        **of_group,
        "n": n,
        "reason": _joined(reasons, n),
        **further,
    }


def _differences(one: xr.Dataset, base: xr.Dataset, metric: str, chains: Chains) -> dict[str, object]:
    """The columns of `compare` for one metric of a model and the baseline, at the layers that both have."""
    if "layer" in one[metric].dims:
        shared = [layer for layer in one.layer.values if layer in base.layer.values]
        one = one.sel(layer=shared)
        base = base.sel(layer=shared)
    values = _by_layer(one, metric)
    of_base_values = _by_layer(base, metric)
    differences = values - of_base_values
    of_one = _deviation(one, metric, chains, ~np.isnan(differences))
    of_base = _deviation(base, metric, chains, ~np.isnan(differences))
    difference = mean_of(differences)
    low, high = t_interval(difference, mean_residuals(differences))
    relative_difference = of_one.relative - of_base.relative
    residuals = of_one.relative_residuals() - of_base.relative_residuals()
    relative_low, relative_high = t_interval(relative_difference, residuals)
    missing = []
    for of_model, of_baseline in zip(
        _missing(one, metric, values), _missing(base, metric, of_base_values), strict=True
    ):
        texts = {f"{one.model.item()}: ": of_model, f"{base.model.item()}: ": of_baseline}
        of_both = "; ".join(name + text for name, text in texts.items() if text)
        missing.append(of_model if of_model == of_baseline else of_both)
    no_relative = [a or b for a, b in zip(of_one.no_relative, of_base.no_relative, strict=True)]
    reasons = [missing, no_relative, _no_interval(low, relative_difference, relative_low)]
    return {
        **_places(one, metric),
        "baseline": base.model.item(),
        "difference": difference,
        "low": low,
        "high": high,
        "relative_difference": relative_difference,
        "relative_low": relative_low,
        "relative_high": relative_high,
        "n": of_one.n,
        "reason": _joined(reasons, of_one.n),
    }


def _joined(reasons: Sequence[Sequence[str]], n: np.ndarray) -> list[str]:
    """Each layer's reasons in one text; of a layer without values the first is all there is to say."""
    joined = []
    for count, *of_layer in zip(n, *reasons, strict=True):
        joined.append("; ".join(filter(None, of_layer if count else of_layer[:1])))
    return joined


def _no_interval(low: np.ndarray, relative: np.ndarray, relative_low: np.ndarray) -> list[str]:
    """Why layers that have values lack an interval; empty where one lacks none."""
    of_chains = "one chain of samples gives no interval of the relative value"
    reasons = np.where(np.isnan(relative_low) & ~np.isnan(relative), of_chains, "")
    return np.where(np.isnan(low), "one sample gives no interval", reasons).tolist()


def _places(one: xr.Dataset, metric: str) -> dict[str, Any]:
    """The columns that say where a metric was taken."""
    if "layer" not in one[metric].dims:
        return {"metric": metric, "layer": ["output"], "element": "", "depth": [1.0]}
    return {"metric": metric, "layer": one.layer.values, "element": "", "depth": one.depth.values}


def _by_layer(one: xr.Dataset, name: str, *, over: str = "element") -> np.ndarray:
    """The means over elements, (layer, sample), or over samples, (layer, element); an output is one layer.

    A sample that lacks an element has no mean; means over samples are those of the samples that have a value.
    """
    values = one.variables[name].transpose("layer", "element", "sample", missing_dims="ignore").values
    if values.ndim == 2:
        values = values[None]
    return values.mean(1, dtype=float) if over == "element" else mean_of(values.astype(float))


def _scale(one: xr.Dataset, metric: str) -> tuple[np.ndarray, str]:
    """The size of a large difference, (layer,), and why there is none."""
    scale = one[metric].attrs["scale"]
    layers = one[metric].sizes.get("layer", 1)
    if not isinstance(scale, str):
        return np.full(layers, float(scale)), ""
    if scale not in one:
        return np.full(layers, np.nan), f"without {scale} there is no scale"
    norms = one[scale].astype("float64")
    means = norms.mean([dim for dim in norms.dims if dim != "layer"])
    return np.atleast_1d(means.values), ""


def _missing(one: xr.Dataset, metric: str, values: np.ndarray) -> list[str]:
    """Which samples have no value, and why, by layer; empty where all have one."""
    reasons = [one[metric].attrs.get("nan_reason", "")]
    if "layer" in one[metric].dims:
        reasons = one[f"{metric}_nan_reason"].values.tolist()
    samples = one.sample.values
    flaws = one.flaw.values if "flaw" in one.coords else np.full(len(samples), "")
    missing = []
    for reason, of_layer in zip(reasons, values, strict=True):
        is_lost = np.isnan(of_layer)
        if is_lost.all() and reason and not schema.is_partial(reason):
            missing.append(reason)
            continue
        is_unread = is_lost & (flaws != "")
        parts = []
        # a mask leaves no trace but NaN, nor does a block of a study that is still to do
        others = ": not finite, all zero, masked or not measured"
        for names, why in ((flaws[is_unread], ""), (samples[is_lost & ~is_unread], others)):
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            if len(names):
                parts.append(", ".join(map(str, names[:NAMED])) + more + why)
        count = f"{is_lost.sum()} of {len(samples)} samples have no value"
        missing.append(f"{count} ({'; '.join(parts)})" if parts else "")
    return missing


def _pair_cosine(one: xr.Dataset, metric: str, n: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """M, (layer,), NaN where it was not taken over the n samples that have a value; and why E / M has none."""
    pair_cosine = np.full(len(n), np.nan)
    reasons = [""] * len(n)
    name = f"{metric}_pair_cosine"
    if name not in one:
        return pair_cosine, reasons
    over = one[name].attrs.get("samples")
    # a mask over the samples repeats M for each of them
    values = one[name].max([dim for dim in one[name].dims if dim != "layer"]).values
    for layer, value in enumerate(values):
        # how many had no value when M was taken is known from the text alone
        if over is not None and one[f"{metric}_nan_reason"].values[layer] != schema.partly(over - n[layer], over):
            reasons[layer] = f"M was taken over {over} samples, not these {n[layer]}"
            continue
        pair_cosine[layer] = value
        if value <= SMALL_PAIR_COSINE:
            reasons[layer] = f"M = {value:.3g} is not above {SMALL_PAIR_COSINE}, so E / M has no meaning"
    return pair_cosine, reasons


def _element_error(one: xr.Dataset, metric: str) -> tuple[np.ndarray, str]:
    """The standard error that comes from sampling elements, (layer,), and why there is none."""
    by_element = _by_layer(one, metric, over="sample")
    sample = SAMPLE.fullmatch(one.attrs["group"])
    if sample:
        n = int(sample["n"])
        parts, circles = {"SO(2)": ((n,), 1), "O(2)": ((2, n), 1), "T(2)": ((n, n), 2)}[sample["family"]]
        if np.prod(parts) == by_element.shape[1] and np.prod(parts[-circles:]) >= LEAST_ELEMENTS:
            return sampling_error(by_element.reshape(-1, *parts), circles), ""
    return np.full(len(by_element), np.nan), (
        "the error of sampling elements is known of a whole sample of SO(2), O(2) or T(2), "
        f"of {LEAST_ELEMENTS} parts or more"
    )


def _accuracy(one: xr.Dataset) -> tuple[float, str]:
    """The part of the unmoved images whose label is predicted; or NaN, and why there is none."""
    identity = one.element.attrs.get("identity", "e")
    found = predictions(one)
    if not found.no_accuracy and identity not in one.element.values:
        return np.nan, f"the identity {identity!r} is not among the elements, so no image is unmoved"
    return found.upright, found.no_accuracy
