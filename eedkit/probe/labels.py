"""Where tensors become labels: what a pass found -> a Dataset of the schema. The only module that knows both.

Knows what was swept and the schema, never models or images. Costs no copy of the values.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from eedkit.probe.metrics import Metric
from eedkit.probe.record import Swept
from eedkit.results import schema
from eedkit.theory.actions import Action


def dataset(
    swept: Swept, action: Action, metrics: Sequence[Metric], *, name: str, weights: str, about: dict[str, Any]
) -> xr.Dataset:
    """What a pass found as a Dataset of the schema, `about` beside the schema's number as its attributes."""
    group, found = action.group, swept.layers
    variables: dict[str, tuple] = {}
    coords: dict[str, Any] = {
        "model": _text([name]),
        "weights": ("model", _text([weights])),
        "layer": _text([layer.name for layer in found]),
        "element": _text(group.elements),
        "sample": _text(swept.ids) if isinstance(swept.ids[0], str) else swept.ids,
        "angle": ("element", list(group.angles), {"units": "degree", "long_name": "rotation, counter-clockwise"}),
    }
    coords["position"] = (
        "sample",
        swept.positions,
        {"long_name": schema.POSITION},
    )
    if any(label is not None for label in swept.labels):
        coords["label"] = ("sample", _text(swept.labels) if isinstance(swept.labels[0], str) else swept.labels)
    for metric in metrics:
        dims = schema.DIMS if metric.where != "output" else ("model", "element", "sample")
        attrs = _attributes(metric, swept.reasons[metric.name])
        variables[metric.name] = (dims, swept.arrays[metric.name][None], attrs)
        if f"{metric.name}_null" in swept.arrays:
            attrs = {**attrs, "long_name": f"{attrs['long_name']}, against an unrelated sample"}
            variables[f"{metric.name}_null"] = (dims, swept.arrays[f"{metric.name}_null"][None], attrs)
        if metric.where != "output":
            reasons = _reasons(swept.arrays[metric.name], swept.reasons[metric.name])
            coords[f"{metric.name}_nan_reason"] = (("model", "layer"), _text(reasons)[None])
    where = {metric.where for metric in metrics}
    beside = (
        {"long_name": "predicted class", "units": "1"},
        {"long_name": "probability of the prediction", "units": "1"},
    )
    for key, attrs in zip(("prediction", "confidence"), beside, strict=True):
        if swept.scores:
            variables[key] = (schema.BESIDE[key], swept.arrays[key][None], attrs)
    if "vectors" in where:
        pair = [state.result() for state in swept.pair_cosines]
        long_name = "mean cosine between different samples' features, M"
        attrs = {"long_name": long_name, "units": "1", "samples": len(swept.ids)}
        variables["latent_pair_cosine"] = (("model", "layer"), [pair], attrs)
        attrs = {"long_name": "length of the pooled features f(x)", "units": "1"}
        variables["latent_norm"] = (schema.BESIDE["latent_norm"], swept.arrays["latent_norm"][None], attrs)
    if "maps" in where:
        attrs = {"long_name": "part of the channels that is zero for gx and for x", "units": "1"}
        with np.errstate(invalid="ignore"):
            variables["dead_fraction"] = (("model", "layer"), [swept.dead[:, 0] / swept.dead[:, 1]], attrs)
    coords |= {key: (("model", "layer"), value) for key, value in _layer_coords(swept).items()}
    return schema.validate(xr.Dataset(variables, coords, {**about, "schema": schema.SCHEMA}))


def _attributes(metric: Metric, reasons: list[str]) -> dict[str, Any]:
    distance = metric.distance
    attrs = {
        "long_name": metric.title,
        "units": distance.unit,
        "best": distance.best,
        "upper": distance.upper,
        # a distance without a scale of its own is judged against the length of the features
        "scale": "latent_norm" if np.isnan(distance.scale) else distance.scale,
        "equation": f"m(f(gx), g f̂(x)), m = {distance.equation}",
        "source": metric.source if metric.source == "ours" else f"Kvinge et al. 2022, {metric.source}",
    }
    if metric.where == "output" and reasons[0]:
        attrs["nan_reason"] = reasons[0]
    return attrs


def _reasons(values: np.ndarray, reasons: list[str]) -> list[str]:
    """Why a layer is undefined; where single samples are, how many."""
    return [
        reason or schema.partly(int(k), values.shape[-1]) for reason, k in zip(reasons, _undefined(values), strict=True)
    ]


def _undefined(values: np.ndarray) -> np.ndarray:
    """How many samples have no value, from (…, element, sample)."""
    return np.isnan(values).any(-2).sum(-1)


def states(swept: Swept, metrics: Sequence[Metric]) -> xr.Dataset:
    """What a pass over one block leaves for joining it with others; `measure_block` says what is in it."""
    n = len(swept.layers)
    pairs = swept.pair_cosines
    # as wide as any layer, so that every block has the same shape, whatever is undefined in it
    width = max(1, _layer_coords(swept)["channels"].max()) if any(m.where == "vectors" for m in metrics) else 1
    pair_sum = np.zeros((n, width))
    for row, state in zip(pair_sum, pairs, strict=True):
        if state.n:
            row[: len(state.total)] = state.total.cpu().numpy()
    reason, undefined = np.full((len(metrics), n), "", dtype=object), np.zeros((len(metrics), n), dtype=np.int64)
    for i, metric in enumerate(metrics):
        told = swept.reasons[metric.name]  # one for every layer, or one for the output
        reason[i, : len(told)] = told
        undefined[i, : len(told)] = _undefined(swept.arrays[metric.name])
    return xr.Dataset(
        {
            "pair_sum": (("layer", "feature"), pair_sum),
            "pair_n": ("layer", np.array([-1 if state.total is None else state.n for state in pairs])),
            "dead": ("layer", swept.dead[:, 0]),
            "live_or_dead": ("layer", swept.dead[:, 1]),
            "reason": (("metric", "layer"), reason),
            "undefined": (("metric", "layer"), undefined),
        },
        {"metric": _text([metric.name for metric in metrics])},
        {"flaws": [swept.flaws[row] for row in sorted(swept.flaws)]},
    )


def _layer_coords(swept: Swept) -> dict[str, Any]:
    maps = [layer.shape if len(layer.shape) == 3 else (*layer.shape[-1:], 0, 0) for layer in swept.layers]
    channels, height, width = (np.array([[shape[i] if shape else 0 for shape in maps]]) for i in range(3))
    return {
        "depth": [[layer.depth for layer in swept.layers]],
        "layer_type": _text([layer.kind for layer in swept.layers])[None],
        "channels": channels,
        "height": height,
        "width": width,
        "kernel_order": [swept.kernel_orders],
    }


def _text(labels: Sequence[str]) -> np.ndarray:
    """Strings as objects: fixed-width strings cannot take a longer label later, and Zarr has no stable form for them."""
    return np.array(labels, dtype=object)
