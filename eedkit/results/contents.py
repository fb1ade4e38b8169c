"""What a Dataset holds, said first: what was measured on what, how accurate it is moved, and what has no value and why.

Knows xarray and never torch. Reads the values of a Dataset in memory; those of a lazy one stay where they are.
"""

from collections import Counter

import numpy as np
import pandas as pd
import xarray as xr

from eedkit.results import schema
from eedkit.results.labels import class_names
from eedkit.results.predictions import Predictions, predictions

SHOWN = 5
"""Reasons and models that are listed."""
ROWS = 12
"""Elements in the table of accuracies; of more the first and the worst are shown."""


def describe(ds: xr.Dataset) -> list[str]:
    """What was measured, accuracy by element, by which metrics, and how complete it is, in lines of 80 characters.

    Lines of names and reasons are as long as these. SchemaError for another Dataset.

    >>> import eedkit as ek, torch
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(25, 3))
    >>> ds = ek.measure(net, torch.rand(8, 1, 5, 5), group="C4", metrics=["latent"], progress=False)
    >>> print(*describe(ds.drop_vars("prediction")), sep="\\n")
    1 model × 3 layers × 4 elements of C4 × 8 samples
    metrics: latent; with a null
    complete: every value is there
    """
    ds = schema.validate(ds)
    return [_extent(ds), *_accuracies(ds), _metrics(ds), *_completeness(ds)]


def _accuracies(ds: xr.Dataset) -> list[str]:
    """How often predictions are right and stay: of one model by element, of several a line each; none without any."""
    if "prediction" not in ds or ds.prediction.chunks is not None:
        return []
    if ds.sizes["model"] == 1:
        return accuracy_table(predictions(ds), class_names(ds))
    lines = []
    for model in ds.model.values[:SHOWN]:
        found = predictions(ds.sel(model=[model]))
        if found.n:
            accuracy = (
                f"accuracy {found.upright:.2f} upright, {found.moved:.2f} moved; " if not found.no_accuracy else ""
            )
            lines.append(f"{model}: {accuracy}{_kept(found)}")
    more = ds.sizes["model"] - SHOWN
    return [*lines, f"and {more} more models"] if lines and more > 0 else lines


def accuracy_table(found: Predictions, names: list[str]) -> list[str]:
    """Accuracy, and how often the class stays, by element, as lines; none where there are no predictions.

    >>> predicted = xr.DataArray([[0, 1, 1], [0, 0, 0]], dims=("element", "sample"), coords={"element": ["e", "m"]})
    >>> print(*accuracy_table(predictions(xr.Dataset({"prediction": predicted})), []), sep="\\n")
    element  same class as unmoved
    m                         0.33
    two different images get the same class in 0.33 of all pairs
    no accuracy: the images have no labels
    """
    if not found.n:
        return []
    has_accuracy = not found.no_accuracy
    table = pd.DataFrame({"accuracy": found.accuracy, "kept": found.kept}).reindex(found.accuracy.index)
    column = "accuracy" if has_accuracy else "kept"
    moved = table.drop(found.identity, errors="ignore")
    rows = table[table.notna().any(axis=1)]
    is_cut = len(rows) > ROWS
    if is_cut:
        worst = moved.sort_values(column, kind="stable")[: ROWS - 1]
        rows = rows.loc[[name for name in rows.index if name == found.identity] + worst.index.tolist()]
    rows = rows.copy()
    if len(moved) > 1:
        rows.loc["mean of moved"] = moved.mean()
    width = max(map(len, ["element", *map(str, rows.index)]))
    lines = []
    if len(rows):
        lines.append(f"{'element':{width}}  {'accuracy  ' if has_accuracy else ''}same class as unmoved")
    for name, row in rows.iterrows():
        cells = [f"{row.accuracy:8.2f}"] if has_accuracy else []
        cells.append("" if np.isnan(row.kept) else f"{row.kept:21.2f}")
        lines.append("  ".join([f"{name!s:{width}}", *cells]).rstrip())
    if is_cut:
        lines.append(f"the {ROWS - 1} lowest of {len(moved)} moved")
    if found.names_one_class:
        named = int(found.classes.index[0])
        name = names[named] if named < len(names) else named
        lines.append(f"every unmoved image gets class {name}, so that the class stays says nothing")
    elif not np.isnan(found.null):
        lines.append(f"two different images get the same class in {found.null:.2f} of all pairs")
    if not has_accuracy:
        lines.append(f"no accuracy: {found.no_accuracy}")
    return lines


def _kept(found: Predictions) -> str:
    null = "" if np.isnan(found.null) else f" (two different images: {found.null:.2f})"
    return f"same class as unmoved {found.kept.mean():.2f}{null}"


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
