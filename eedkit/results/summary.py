"""Averages of pointwise results: G-EED with intervals, calibration against the null, paired comparisons, joins.

Knows xarray, pandas and scipy, never torch. Costs `resamples` means over the samples, in batches of bounded memory.
"""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike

from eedkit.errors import unknown
from eedkit.results import schema
from eedkit.results.intervals import ChainBootstrap

SMALL = 2**26
"""Bytes of results that are read at once."""
SMALL_PAIR_COSINE = 0.05
"""M at or below this leaves latent / M without meaning."""
NAMED = 3
"""Samples without a value that a reason names."""


@dataclass(frozen=True)
class _Estimate:
    """One metric of one model at one layer: per-sample means over the elements, NaN where there is none, and what calibrates
    them.

    `zero` is the value that counts as no deviation: the best one, or the floor of interpolation. `rounding` is the null gap that
    rounding alone may leave, `reason` says why samples have no value, `missing` why there is no
    M or scale; `of_group` are columns that only some groups have. The accuracy is the model's, the same for all its estimates.
    """

    keys: dict
    accuracy: float
    accuracy_reason: str
    values: np.ndarray
    null: np.ndarray | None
    best: float
    zero: float
    scale: float
    rounding: float
    pair_cosine: float
    missing: str
    reason: str
    of_group: dict[str, float]

    @property
    def n(self) -> int:
        """Samples that have a value."""
        return int((~np.isnan(self.values)).sum())

    @property
    def resampled(self) -> list[np.ndarray]:
        """The arrays whose means have intervals: the values, and the null where there is a relative value."""
        if not self.n:
            return []
        return [self.values] if self.null is None or self.no_relative else [self.values, self.null]

    @property
    def no_relative(self) -> str:
        """Why there is no relative value; empty when there is one."""
        if self.null is None:
            return "measured without a null, or it was left out"
        if np.isnan(self.best):
            return "the distance has no best value"
        if np.isnan(self.null).all():
            return "no sample has a null"
        gap = np.nanmean(self.null) - self.zero
        if self.zero != self.best and not gap > self.rounding:
            return f"other images differ less (null {np.nanmean(self.null):.3g}) than interpolation leaves (floor {self.zero:.3g})"
        if not gap > self.rounding:
            return f"the null gap {gap:.2g} lies within rounding ({self.rounding:.2g}): the model tells no image from another here"
        return ""

    def relative(self, value: ArrayLike, null: ArrayLike) -> np.ndarray:
        """(E − m*) / (E_null − m*), or with the floor for m*; NaN for a resample whose null shows no difference."""
        gap = np.asarray(null) - self.zero
        return np.divide(np.asarray(value) - self.zero, gap, out=np.full(gap.shape, np.nan), where=gap > 0)[()]


def summarise(
    ds: xr.Dataset | xr.DataTree,
    *,
    full: bool = False,
    above_floor: bool = False,
    confidence: float = 0.95,
    resamples: int = 999,
    seed: int = 0,
) -> pd.DataFrame:
    """E(f, G), the mean of the integrand over elements and samples (Kvinge et al. 2022, eq. 4), with its calibration.

    One row per model, metric and layer; of a tree also per data set (by its spec) and group, in columns of these names. Means are
    over the samples that have a value. Intervals are percentile bootstrap intervals (`resamples=0`: none) whose unit is the
    chain of images that share their shuffled orbits.

    With `above_floor=True` what interpolation alone leaves is taken out: where there is a floor, relative values are
    (E − floor) / (E_null − floor), below 0 for what is more equivariant than the images pooled to the layer's grid.

    Columns
    -------
    estimate, low, high : E and its interval
    null : E of the shuffled orbit, in which each element acts on another image *[ours]*
    best : m*, the value of a perfectly equivariant model; with `above_floor=True` the floor, where there is one
    relative, relative_low, relative_high : (E − m*) / (E_null − m*): 0 is perfectly equivariant, 1 says that a moved copy is no
        more alike than another image; its interval resamples E and E_null together *[ours]*
    floor : what interpolation alone leaves, the value of the images pooled to the layer's grid; of groups that interpolate,
        unless it is taken out
    element_error : standard error of the estimate that comes from sampling elements of a continuous group, from the differences
        of neighbours (which errs on the large side)
    n : samples that have a value
    reason : why something in the row is NaN, but for the accuracy, and which samples have no value and why

    Further columns with `full=True`
    --------------------------------
    scale : the size of a large difference
    pair_cosine, normalised : M and E / M, for the metrics that M normalises
    accuracy : part of the unmoved images whose label is predicted. Labels must count the model's own classes: a label beyond
        them, or a data set that declares another number of classes, gives NaN; other classes of the same number, or of a data
        set that declares none, cannot be told from the model's own
    accuracy_reason : why accuracy is NaN

    Raises
    ------
    ValueError
        The Dataset is not of eedkit's schema (`SchemaError`), or the confidence is not between 0 and 1.

    Examples
    --------
    >>> import eedkit as ek, torch
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(25, 3))
    >>> ds = ek.measure(net, torch.rand(8, 1, 5, 5), group="C4", progress=False)
    >>> ek.summarise(ds).query("metric == 'latent' and layer == 'latent'").n.item()
    8
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    if isinstance(ds, xr.DataTree):
        options = {
            "full": full,
            "above_floor": above_floor,
            "confidence": confidence,
            "resamples": resamples,
            "seed": seed,
        }
        tables = []
        for leaf in ds.leaves:
            path, _, group = leaf.path.strip("/").rpartition("/")
            # the images' spec, where the tree tells it: a path of their own would be another in a tree
            spec = str(leaf.attrs.get("data", "")).rpartition(" [")[0]
            tables.append(summarise(leaf.to_dataset(), **options).assign(data=spec or path, group=group))
        return pd.concat(tables, ignore_index=True)
    ds = schema.validate(ds)
    bootstrap = _bootstrap(ds, confidence, resamples, seed)
    rows = []
    for estimates in _by_model(ds, above_floor=above_floor):
        means = _resampled([one.resampled for one in estimates], bootstrap)
        for one, of_one in zip(estimates, means, strict=True):
            row = _row(one, of_one, bootstrap)
            rows.append(_with_further_columns(row, one) if full else row)
    return pd.DataFrame(rows)


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
    if baseline not in ds.model.values:
        raise ValueError(unknown("model", baseline, ds.model.values.tolist()))
    by_model = dict(zip(ds.model.values.tolist(), _by_model(ds), strict=True))
    bases = {(base.keys["metric"], base.keys["layer"]): base for base in by_model.pop(baseline)}
    bootstrap = _bootstrap(ds, confidence, resamples, seed)
    rows = []
    for estimates in by_model.values():
        pairs = []
        for one in estimates:
            base = bases.get((one.keys["metric"], one.keys["layer"]))
            if base is not None:
                pairs.append(_Pair(one, base))
        means = _resampled([pair.resampled for pair in pairs], bootstrap)
        rows += [_difference(pair, of_pair, bootstrap) for pair, of_pair in zip(pairs, means, strict=True)]
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class _Pair:
    """A model and the baseline, on the samples for which both have a value."""

    one: _Estimate
    base: _Estimate

    @property
    def no_relative(self) -> str:
        """Why there is no relative difference; empty when there is one."""
        return self.one.no_relative or self.base.no_relative

    @property
    def resampled(self) -> list[np.ndarray]:
        """The arrays whose means have intervals: both values, and both nulls where there is a relative difference."""
        both = ~np.isnan(self.one.values - self.base.values)
        if not both.any():
            return []
        arrays = [self.one.values, self.base.values]
        if self.one.null is not None and self.base.null is not None and not self.no_relative:
            arrays += [self.one.null, self.base.null]
        return [np.where(both, values, np.nan) for values in arrays]

    def relative_difference(self, value: ArrayLike, of_base: ArrayLike, *nulls: ArrayLike) -> np.ndarray:
        """The difference of the relative values."""
        return self.one.relative(value, nulls[0]) - self.base.relative(of_base, nulls[1])


def _difference(pair: _Pair, means: Sequence[np.ndarray], bootstrap: ChainBootstrap) -> dict:
    """A row of `compare`."""
    columns = ("difference", "low", "high", "relative_difference", "relative_low", "relative_high")
    row = {**pair.one.keys, "baseline": pair.base.keys["model"], **dict.fromkeys(columns, np.nan)}
    reasons = [pair.one.reason]
    if pair.one.reason != pair.base.reason:
        both = (pair.one, pair.base)
        reasons = [f"{estimate.keys['model']}: {estimate.reason}" for estimate in both if estimate.reason]
    arrays = pair.resampled
    if arrays:
        row["difference"] = np.nanmean(arrays[0] - arrays[1])
        row["low"], row["high"] = bootstrap.interval(means[0] - means[1])
        reasons.append(pair.no_relative)
    if len(arrays) == 4:
        row["relative_difference"] = pair.relative_difference(*(np.nanmean(values) for values in arrays))
        row["relative_low"], row["relative_high"] = bootstrap.interval(pair.relative_difference(*means))
    row["n"] = int((~np.isnan(arrays[0])).sum()) if arrays else 0
    return row | {"reason": "; ".join(filter(None, reasons))}


def _resampled(several: Sequence[list[np.ndarray]], bootstrap: ChainBootstrap) -> Iterator[list[np.ndarray]]:
    """The resampled means of the arrays of each row, taken for all rows at once."""
    means = iter(bootstrap.means(list(chain.from_iterable(several))))
    for arrays in several:
        yield list(islice(means, len(arrays)))


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


def _bootstrap(ds: xr.Dataset, confidence: float, resamples: int, seed: int) -> ChainBootstrap:
    """Where the chains are not known, every sample is one."""
    chains = ds["chain"].values if "chain" in ds.coords else np.arange(ds.sizes["sample"])
    return ChainBootstrap(chains, confidence=confidence, resamples=resamples, seed=seed)


def _by_model(ds: xr.Dataset, *, above_floor: bool = False) -> Iterator[list[_Estimate]]:
    """The estimates of each model."""
    about = [
        name for name, c in ds.coords.items() if c.dims == ("model",) and name not in ("model", "weights", "classes")
    ]
    # one model's values at a time where a store holds many; what is small is read faster at once
    ds = ds.compute() if ds.nbytes < SMALL else ds
    for model in ds.model.values.tolist():
        one = ds.sel(model=model).compute()
        accuracy, reason = _accuracy(one)
        keys = {"model": model, **{name: one[name].item() for name in about}}
        estimates = []
        for metric in schema.metrics_of(ds):
            estimates += _of_metric(one, metric, keys, accuracy, reason)
        if above_floor:
            estimates = [_above_floor(estimate) for estimate in estimates]
        yield estimates


def _of_metric(one: xr.Dataset, metric: str, keys: dict, accuracy: float, accuracy_reason: str) -> Iterator[_Estimate]:
    """The estimates of one metric of one model: one per layer, or one for the output."""
    attrs = one[metric].attrs
    has_layers = "layer" in one[metric].dims

    def by_layer(name: str, *over: str) -> np.ndarray:
        values = one[name].astype("float64").mean(over, skipna=False).values
        return values if has_layers else values[None]

    values = by_layer(metric, "element")
    n = values.shape[1]
    nulls = by_layer(f"{metric}_null", "element") if f"{metric}_null" in one else [None] * len(values)
    scales = np.full(len(values), np.nan)
    no_scale = ""
    if not isinstance(attrs["scale"], str):
        scales[:] = attrs["scale"]
    elif attrs["scale"] in one:
        scales[:] = one[attrs["scale"]].astype("float64").mean("sample").values
    else:
        no_scale = f"without {attrs['scale']} there is no scale"
    reasons = one[f"{metric}_nan_reason"].values.tolist() if has_layers else [attrs.get("nan_reason", "")]
    layers = zip(one.layer.values.tolist(), one.depth.values.tolist(), strict=True) if has_layers else [("output", 1.0)]
    for k, (layer, depth) in enumerate(layers):
        if reasons[k] == schema.NO_LAYER:
            continue
        undefined = np.isnan(values[k])
        pair_cosine, no_pair_cosine = _pair_cosine(one, metric, k, n - int(undefined.sum()))
        yield _Estimate(
            keys={**keys, "metric": metric, "layer": layer, "depth": depth},
            accuracy=accuracy,
            accuracy_reason=accuracy_reason,
            values=values[k],
            null=nulls[k],
            best=attrs["best"],
            zero=attrs["best"],
            scale=float(scales[k]),
            rounding=attrs["rounding"] * (float(scales[k]) if np.isfinite(scales[k]) else 1.0),
            pair_cosine=pair_cosine,
            missing="; ".join(filter(None, (no_scale, no_pair_cosine))),
            reason=_why_undefined(one, undefined, reasons[k]),
            of_group=_of_group(one, metric, k),
        )


def _above_floor(estimate: _Estimate) -> _Estimate:
    """With what interpolation alone leaves for no deviation, and no longer beside it."""
    others = {name: value for name, value in estimate.of_group.items() if name != "floor"}
    floor = estimate.of_group.get("floor", np.nan)
    return replace(estimate, of_group=others, zero=estimate.best if np.isnan(floor) else floor)


def _of_group(one: xr.Dataset, metric: str, k: int) -> dict[str, float]:
    """The columns of groups that interpolate, and of sampled ones, at the k-th layer."""
    has_layers = "layer" in one[metric].dims
    columns = {}
    floors = [name for name in schema.metrics_of(one) if f"{name}_floor" in one]
    if floors:
        columns["floor"] = np.nan
    if metric in floors:
        columns["floor"] = float(one[f"{metric}_floor"].isel(layer=k).astype("float64").mean())
    if "sampled" in one.element.attrs:
        of_layer = one[metric].isel(layer=k) if has_layers else one[metric]
        by_element = of_layer.astype("float64").mean("sample").values
        differences = by_element - np.roll(by_element, 1)
        columns["element_error"] = np.nan  # of one element there is none
        if len(by_element) > 1:
            columns["element_error"] = float(np.sqrt((differences**2).sum() / 2) / len(by_element))
    return columns


def _why_undefined(one: xr.Dataset, undefined: np.ndarray, of_layer: str) -> str:
    """Which samples have no value, and why; empty when all have one."""
    places = np.flatnonzero(undefined)
    if not len(places):
        return ""
    if len(places) == len(undefined) and of_layer and not schema.is_partial(of_layer):
        return of_layer
    unread = []
    others = []
    for place in places.tolist():
        flaw = one.flaw.values[place] if "flaw" in one.coords else ""
        if flaw:
            unread.append(flaw)
        else:
            others.append(str(one.sample.values[place]))
    said = [_first(unread)] if unread else []
    if others:
        # a mask leaves no trace but NaN, nor does a block of a study that is still to do
        said.append(f"{_first(others)}: not finite, all zero, masked or not measured")
    return f"{len(places)} of {len(undefined)} samples have no value ({'; '.join(said)})"


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _pair_cosine(one: xr.Dataset, metric: str, k: int, n: int) -> tuple[float, str]:
    """M at the k-th layer, NaN with the reason where it was taken over others than the n samples that have a value."""
    name = f"{metric}_pair_cosine"
    if name not in one:
        return np.nan, ""
    over = one[name].attrs.get("samples")
    # how many had no value when M was taken is known from the text alone
    if over is not None and one[f"{metric}_nan_reason"].values[k] != schema.partly(over - n, over):
        return np.nan, f"M was taken over {over} samples, not these {n}"
    # a mask over the samples repeats M for each of them
    repeated = [dim for dim in one[name].dims if dim != "layer"]
    return float(one[name].max(repeated).values[k]), ""


def _accuracy(one: xr.Dataset) -> tuple[float, str]:
    """The part of the unmoved images whose label is predicted; or NaN, and why there is none."""
    if "label" not in one.coords:
        return np.nan, "the images have no labels"
    classes = one.classes.item() if "classes" in one.coords else None
    if "prediction" not in one or classes == 0:
        return np.nan, "there are no predictions, as of a model whose output is no class scores"
    labels = one.label.values
    if labels.dtype.kind not in "iub":
        return np.nan, "the labels are names or fractions, the predictions are numbers of classes"
    identity = one.element.attrs.get("identity", "e")
    if identity not in one.element.values:
        return np.nan, f"the identity {identity!r} is not among the elements, so no image is unmoved"
    labelled = labels != -1
    if classes is not None and labelled.any():
        declared = one.label.attrs.get("classes", classes)
        if declared != classes:
            return np.nan, f"the images are of {declared} classes, the model's scores of {classes}"
        low, high = labels[labelled].min(), labels[labelled].max()
        if low < 0 or high >= classes:
            return np.nan, f"the labels run from {low} to {high}, the model's classes from 0 to {classes - 1}"
    predicted = one.prediction.sel(element=identity).values
    counted = (predicted >= 0) & labelled
    if not counted.any():
        return np.nan, "no image has both a label and a prediction"
    return float((predicted == labels)[counted].mean()), ""


def _row(one: _Estimate, means: Sequence[np.ndarray], bootstrap: ChainBootstrap) -> dict:
    """A row of `summarise`."""
    row = {**one.keys, **dict.fromkeys(("estimate", "low", "high", "null"), np.nan), "best": one.zero}
    row |= dict.fromkeys(("relative", "relative_low", "relative_high"), np.nan)
    row |= one.of_group
    row |= {"n": one.n, "reason": one.reason}
    if not one.n:
        return row
    reasons = [one.reason, one.no_relative]
    row["estimate"] = np.nanmean(one.values)
    row["low"], row["high"] = bootstrap.interval(means[0])
    if len(bootstrap.starts) < 2:
        reasons.append("one chain of samples gives no interval")
    if one.null is not None and not np.isnan(one.null).all():
        row["null"] = np.nanmean(one.null)
    if not one.no_relative:
        row["relative"] = one.relative(row["estimate"], row["null"])
        row["relative_low"], row["relative_high"] = bootstrap.interval(one.relative(*means))
    return row | {"reason": "; ".join(filter(None, reasons))}


def _with_further_columns(row: dict, one: _Estimate) -> dict:
    """A row of `summarise(full=True)`."""
    row = row | {"scale": one.scale, "pair_cosine": one.pair_cosine, "normalised": np.nan}
    row |= {"accuracy": one.accuracy, "accuracy_reason": one.accuracy_reason}
    if not one.n:
        return row
    reasons = [row["reason"], one.missing]
    if one.pair_cosine > SMALL_PAIR_COSINE:
        row["normalised"] = row["estimate"] / one.pair_cosine
    elif not np.isnan(one.pair_cosine):
        reasons.append(f"M = {one.pair_cosine:.3g} is not above {SMALL_PAIR_COSINE}, so E / M has no meaning")
    return row | {"reason": "; ".join(filter(None, reasons))}
