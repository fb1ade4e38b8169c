"""The schema of results: names, dimensions, units; checked when a Dataset is made, saved and opened.

Knows xarray and never torch. What a reader must know of a distance travels as attributes of its variable.
"""

import numpy as np
import xarray as xr

from eedkit.errors import unknown

SCHEMA = 3
"""Grows when a Dataset written by this version cannot be read by an earlier one."""

DIMS = ("model", "layer", "element", "sample")
"""Every dimension, in the order in which every variable has them."""

BESIDE = {
    "dead_fraction": ("model", "layer"),
    "prediction": ("model", "element", "sample"),
    "confidence": ("model", "element", "sample"),
}
"""What is recorded beside the metrics."""

LIKE_METRIC = ("_null", "_from_x", "_from_x_null", "_round_trip")
"""How names end that stand beside a metric and have its dimensions: the null of the shuffled orbit; where f̂ mixes
elements m(f(gx), g f(x)) and its null; where the action on images interpolates m(f(g⁻¹gx), f(x))."""

ENDINGS = (*LIKE_METRIC, "_norm", "_pair_cosine", "_nan_reason", "_kernel_order")
"""How the names end of everything that stands beside a metric; no metric's own name ends so."""

CHAIN = "number of the null's chain, the unit of intervals of relative values"

LAYER_COORDS = ("depth", "layer_type", "layout", "channels", "height", "width")
"""Coordinates on (model, layer); compare across architectures by `depth`. `law_error` is one more where the action
interpolates."""

COORD_DIMS = {"angle": ("element",), "label": ("sample",), "chain": ("sample",), "flaw": ("sample",)}
"""The dimension of each other coordinate that is none of `model`."""

NO_LAYER = "the model has no such layer"
"""Why a model joined to others is NaN at a layer that only they have."""

PARTLY = "undefined for "
"""How the reasons start that are of single samples."""

METRIC_ATTRS = ("long_name", "units", "best", "upper", "order", "scale", "rounding", "equation", "source")


class SchemaError(ValueError):
    """A Dataset is not what eedkit writes; the message names what is missing or wrong."""


def metrics_of(ds: xr.Dataset) -> list[str]:
    """The names of the metrics in a Dataset, in order.

    >>> metrics_of(xr.Dataset({"latent": ((), 0.0, {"best": -1.0}), "confidence": ((), 1.0)}))
    ['latent']
    """
    names = [str(name) for name in ds.data_vars if "best" in ds.variables[name].attrs]
    return [name for name in names if not name.endswith(ENDINGS)]


def from_x(ds: xr.Dataset, metric: str) -> str:
    """The variable that says by element, image or class how far the metric is from the unmoved image *[ours]*.

    Where f̂ mixes elements that is m(f(gx), g f(x)); elsewhere f̂ is f, and it is the metric itself.

    >>> from_x(xr.Dataset({"latent": 0.0, "latent_from_x": 0.0}), "latent")
    'latent_from_x'
    """
    name = f"{metric}_from_x"
    return name if name in ds else metric


def validate(ds: xr.Dataset) -> xr.Dataset:
    """The Dataset, when it has the dimensions, coordinates, units and provenance of the schema; SchemaError otherwise.

    A dimension of which `.sel` left a scalar coordinate is one of length one again.
    """
    if not isinstance(ds, xr.Dataset):
        raise TypeError(f"expected a Dataset as measure() gives it, got {type(ds).__name__}")
    refuse_other(ds.attrs.get("schema", 0), "the Dataset")
    ds = _with_scalars_as_dims(ds)
    problems = []
    # a Dataset of metrics of the output alone has nothing by layer
    has_layers = not {"layer", *LAYER_COORDS}.isdisjoint(ds.variables)
    for dim in DIMS if has_layers else BESIDE["prediction"]:
        if dim not in ds.dims or dim not in ds.coords:
            problems.append(f"no labelled dimension {dim!r} (an average over it cannot be summarised again)")
        elif not ds.sizes[dim]:
            problems.append(f"nothing on {dim!r}")
        elif len(set(ds[dim].values.tolist())) < ds.sizes[dim]:
            problems.append(f"labels on {dim!r} repeat")
    needed = ("angle", *LAYER_COORDS) if has_layers else ("angle",)
    problems += [f"no coordinate {name!r}" for name in needed if name not in ds.coords]
    problems += [f"no attribute {name!r}" for name in ("group", "schema", "eedkit_version") if name not in ds.attrs]
    metrics = metrics_of(ds)
    if not metrics:
        problems.append("no metric (a variable with the attribute 'best')")
    for name in metrics:
        problems += [f"{name} has no attribute {attr!r}" for attr in METRIC_ATTRS if attr not in ds[name].attrs]
        for variable in (name, *(name + ending for ending in LIKE_METRIC)):
            if variable in ds:
                problems += _wrong_dims(ds[variable], (DIMS, tuple(d for d in DIMS if d != "layer")))
                if ds[variable].dtype != np.float32:
                    problems.append(f"{variable} has dtype {ds[variable].dtype}, not float32")
    for name, dims in BESIDE.items():
        # a mask over samples repeats for each of them what is no sample's own
        if name in ds and "sample" in dims:
            problems += _wrong_dims(ds[name], (dims,))
    if problems:
        raise SchemaError("not a Dataset of eedkit's schema: " + "; ".join(problems))
    return ds


def _with_scalars_as_dims(ds: xr.Dataset) -> xr.Dataset:
    scalars = [dim for dim in DIMS if dim in ds.coords and ds[dim].ndim == 0]
    if not scalars:
        return ds
    variables = {}
    for name, variable in ds.variables.items():
        missing = [dim for dim in _dims_of(str(name), ds) if dim in scalars]
        widened = variable.set_dims({**dict.fromkeys(missing, 1), **variable.sizes})
        variables[name] = widened.transpose(*DIMS, missing_dims="ignore")
    data = {name: variables[name] for name in ds.data_vars}
    coords = {name: variables[name] for name in ds.coords}
    return xr.Dataset(data, coords, ds.attrs)


def _dims_of(name: str, ds: xr.Dataset) -> tuple[str, ...]:
    """The dimensions that a variable of the schema had before a selection."""
    if name in BESIDE or name in DIMS:
        return BESIDE.get(name, (name,))
    if name in (*LAYER_COORDS, "law_error") or name.endswith(("_nan_reason", "_kernel_order", "_pair_cosine")):
        return DIMS[:2]
    for metric in metrics_of(ds):
        ending = name.removeprefix(metric)
        if ending in ("", "_norm", *LIKE_METRIC):
            has_layers = f"{metric}_nan_reason" in ds.coords
            dims = ("model", "sample") if ending == "_norm" else ("model", "element", "sample")
            return ("layer", *dims) if has_layers else dims
    return COORD_DIMS.get(name, ("model",))


def one_model(ds: xr.Dataset, model: str | None) -> xr.Dataset:
    """The results of one model; without a name those of the only one. ValueError for a name or the lack of one."""
    ds = validate(ds)
    names = ds.model.values.tolist()
    if model is None and len(names) > 1:
        raise ValueError(f"this shows one model; choose with model= among {', '.join(map(str, names))}")
    if model is not None and model not in names:
        raise ValueError(unknown("model", model, names))
    return ds.isel(model=[0 if model is None else names.index(model)])


def partly(undefined: int, n: int) -> str:
    """Why a layer has no value for some samples; empty when it has all."""
    if not undefined:
        return ""
    return f"{PARTLY}{undefined} of {n} samples: unreadable, or their features not finite or all zero"


def is_partial(reason: str) -> bool:
    """Whether a reason is that of `partly`, and not of a layer that has no value at all."""
    return reason.startswith(PARTLY)


def refuse_other(written: int, what: str) -> None:
    """SchemaError when something was written with another schema than this eedkit's."""
    if int(written) == SCHEMA:
        return
    advice = "; upgrade eedkit"
    if int(written) < SCHEMA:
        changed = "puts relative values on another scale and has deviations from the unmoved image and round trips"
        advice = f", which {changed}; measure again"
    raise SchemaError(f"{what} was written with schema {written}, this eedkit reads {SCHEMA}{advice}")


def text_as_objects(ds: xr.Dataset) -> xr.Dataset:
    """Text coordinates as objects, as `measure` makes them, whatever type a store gave them."""
    text = {name: c.astype(object) for name, c in ds.coords.items() if c.dtype.kind in "UT"}
    return ds.assign_coords(text)


def _wrong_dims(variable: xr.DataArray, allowed: tuple[tuple[str, ...], ...]) -> list[str]:
    if variable.dims in allowed:
        return []
    return [f"{variable.name} has dims {variable.dims}, expected {' or '.join(map(str, allowed))}"]
