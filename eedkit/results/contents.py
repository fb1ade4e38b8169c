"""What a Dataset holds, said first: what was measured on what, and what has no value and why.

Knows xarray and never torch. Reads the values of a Dataset in memory; those of a lazy one stay where they are.
"""

from collections import Counter

import numpy as np
import xarray as xr

from eedkit.results import schema

SHOWN = 5
"""Reasons that are listed."""


def describe(ds: xr.Dataset) -> list[str]:
    """What was measured, by which metrics, and how complete it is, a line each; SchemaError for another Dataset.

    >>> import eedkit as ek, torch
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(25, 3))
    >>> ds = ek.measure(net, torch.rand(8, 1, 5, 5), group="C4", metrics=["latent"], progress=False)
    >>> print(*describe(ds), sep="\\n")
    1 model × 3 layers × 4 elements of C4 × 8 samples
    metrics: latent; with a null
    complete: every value is there
    """
    ds = schema.validate(ds)
    return [_extent(ds), _metrics(ds), *_completeness(ds)]


def _extent(ds: xr.Dataset) -> str:
    factors = [_counted(ds.sizes["model"], "model")]
    if "layer" in ds.dims:
        factors.append(_counted(ds.sizes["layer"], "layer"))
    factors.append(f"{_counted(ds.sizes['element'], 'element')} of {ds.attrs['group']}")
    # "spec [fingerprint]" in a study; a fingerprint alone tells a reader nothing
    spec = str(ds.attrs.get("data", "")).rpartition(" [")[0]
    factors.append(_counted(ds.sizes["sample"], "sample") + (f" of {spec}" if spec else ""))
    return " × ".join(factors)


def _metrics(ds: xr.Dataset) -> str:
    names = schema.metrics_of(ds)
    without = [name for name in names if f"{name}_null" not in ds]
    null = "with a null" if not without else f"without a null for {', '.join(without)}"
    return f"metrics: {', '.join(names)}; {'without a null' if without == names else null}"


def _completeness(ds: xr.Dataset) -> list[str]:
    """How many curves over the samples lack values, a curve being one metric of one model at one layer."""
    if any(ds[name].chunks is not None for name in schema.metrics_of(ds)):
        return ["not read yet: .load() reads the values and tells what is missing"]
    total = 0
    lacking: Counter[str] = Counter()
    for metric in schema.metrics_of(ds):
        values = ds[metric]
        undefined = values.isnull().any([dim for dim in values.dims if dim in ("element", "sample")])
        reasons = _reasons(ds, metric, undefined)
        applies = reasons != schema.NO_LAYER
        total += int(applies.sum())
        for reason in reasons.values[(undefined & applies).values]:
            lacking[f"{metric}: {reason or 'not finite, masked or not measured'}"] += 1
    if not lacking:
        return ["complete: every value is there"]
    lines = [f"{lacking.total()} of {total} (model, metric, layer) lack values:"]
    for reason, count in lacking.most_common(SHOWN):
        lines.append(f"  {count} × {reason}")
    if len(lacking) > SHOWN:
        lines.append(f"  and {len(lacking) - SHOWN} more reasons; summarise(ds).reason has all of them")
    return lines


def _reasons(ds: xr.Dataset, metric: str, like: xr.DataArray) -> xr.DataArray:
    """Why values of the metric are undefined, by model and layer; empty texts where nothing is said."""
    name = f"{metric}_nan_reason"
    if name in ds.coords:
        return ds[name].transpose(*like.dims).reset_coords(drop=True)
    text = np.full(like.shape, ds[metric].attrs.get("nan_reason", ""), dtype=object)
    return like.copy(data=text)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
