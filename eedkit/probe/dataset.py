"""Where tensors become labels: what a pass found -> a Dataset of the schema. The only module that knows both.

Knows what was measured and the schema, never models or images. Costs no copy of the values.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from eedkit.probe.layers import Layer
from eedkit.probe.metrics import Metric
from eedkit.results import schema
from eedkit.theory.groups import Group

NULLS = {"images": "of the shuffled orbit", "elements": "against f̂(x) moved by other elements"}
"""What a metric's null is, by `Metric.null`."""


@dataclass
class Measured:
    """What one pass found, by layer in the order of execution and by sample.

    `arrays` are (layer, element, sample) or a part of these; `dead` (layer, 2) the dead channels and all of them, summed over
    samples and elements; `flaws` say by row why samples have no value, `unread` why images could not be read; `chains` are the
    numbers of the null's chains; `classes` is how many the model scores; `law_errors` say by layer how far the action is from
    the group law, None where it is exact.
    """

    layers: list[Layer]
    arrays: dict[str, np.ndarray]
    reasons: dict[str, list[str]]
    kernel_orders: list[int]
    law_errors: list[float] | None
    pair_cosines: dict[str, list[Any]]
    dead: np.ndarray
    flaws: dict[int, str]
    unread: dict[int, str]
    ids: list
    labels: list
    classes: int
    chains: list[int]
    head: str
    fingerprint: str


def dataset(
    measured: Measured,
    group: Group,
    metrics: Sequence[Metric],
    *,
    name: str,
    weights: str,
    precision: str,
    label_classes: int,
    about: dict[str, Any],
) -> xr.Dataset:
    """What a pass found as a Dataset of the schema, `about` beside the schema's number as its attributes.

    `label_classes` is how many classes the images say that their labels count; 0 where they do not say.
    """
    unread = [measured.unread.get(row, "") for row in range(len(measured.ids))]
    variables: dict[str, tuple] = {}
    coords: dict[str, Any] = {
        "model": _text([name]),
        "weights": ("model", _text([weights])),
        "classes": ("model", [measured.classes], {"long_name": "number of classes of the scores, 0 without"}),
        "layer": _text([layer.name for layer in measured.layers]),
        "element": ("element", _text(group.elements), _element_attributes(group)),
        "sample": _text(measured.ids) if isinstance(measured.ids[0], str) else measured.ids,
        "angle": ("element", list(group.angles), {"units": "degree", "long_name": "rotation, counter-clockwise"}),
        "chain": ("sample", measured.chains, {"long_name": schema.CHAIN}),
        "flaw": ("sample", _text(unread), {"long_name": "why the image could not be read"}),
    }
    if any(label is not None for label in measured.labels):
        is_text = any(isinstance(label, str) for label in measured.labels)
        # an image that could not be read may have an unknown label
        unknown = "" if is_text else -1
        labels = [unknown if label is None else label for label in measured.labels]
        attrs = {"classes": label_classes} if label_classes else {}
        coords["label"] = ("sample", _text(labels) if is_text else labels, attrs)
    for metric in metrics:
        dims = schema.DIMS if metric.has_layers else ("model", "element", "sample")
        attrs = _attributes(metric, measured.reasons[metric.name], precision)
        variables[metric.name] = (dims, measured.arrays[metric.name][None], attrs)
        if f"{metric.name}_null" in measured.arrays:
            null_attrs = {**attrs, "long_name": f"{attrs['long_name']}, {NULLS[metric.null]}"}
            variables[f"{metric.name}_null"] = (dims, measured.arrays[f"{metric.name}_null"][None], null_attrs)
        if f"{metric.name}_floor" in measured.arrays:
            floor_attrs = {
                "long_name": f"{attrs['long_name']} of the images pooled to the layer's grid",
                "units": attrs["units"],
                "description": "what interpolation alone leaves: pooling is as equivariant as a grid allows",
            }
            variables[f"{metric.name}_floor"] = (dims, measured.arrays[f"{metric.name}_floor"][None], floor_attrs)
        if metric.has_layers:
            reasons = _reasons(measured.arrays[metric.name], measured.reasons[metric.name])
            coords[f"{metric.name}_nan_reason"] = (("model", "layer"), _text(reasons)[None])
        if metric.normalised:
            pair = [state.result() for state in measured.pair_cosines[metric.name]]
            attrs = {"long_name": "mean cosine between different samples' features, M", "units": "1"}
            attrs |= {"samples": len(measured.ids)}
            variables[f"{metric.name}_pair_cosine"] = (("model", "layer"), [pair], attrs)
        if f"{metric.name}_norm" in measured.arrays:
            size = "root mean square" if metric.distance.scale == "rms" else "length"
            attrs = {"long_name": f"{size} of the features f(x)", "units": "1"}
            norms = measured.arrays[f"{metric.name}_norm"][None]
            of_samples = ("model", "layer", "sample") if metric.has_layers else ("model", "sample")
            variables[f"{metric.name}_norm"] = (of_samples, norms, attrs)
    for key, long_name in (("prediction", "predicted class"), ("confidence", "probability of the prediction")):
        if key in measured.arrays:
            attrs = {"long_name": long_name, "units": "1"}
            variables[key] = (schema.BESIDE[key], measured.arrays[key][None], attrs)
    if any(metric.where == "maps" for metric in metrics):
        attrs = {"long_name": "part of the channels that is zero for gx and for x", "units": "1"}
        dead, channels = measured.dead.T
        fraction = np.divide(dead, channels, out=np.full(len(dead), np.nan), where=channels > 0)
        variables["dead_fraction"] = (("model", "layer"), fraction[None], attrs)
    coords |= {key: (("model", "layer"), value) for key, value in _layer_coords(measured).items()}
    return schema.validate(xr.Dataset(variables, coords, {**about, "head": measured.head, "schema": schema.SCHEMA}))


def _element_attributes(group: Group) -> dict[str, str]:
    attrs = {"identity": group.elements[0]}
    if group.is_sample:
        attrs["sampled"] = "one element from each of equal parts of a continuous group"
    return attrs


def rounding(metric: Metric, precision: str) -> float:
    """The gap between a metric's null and its best value that rounding alone may leave, as a part of its scale *[ours]*.

    Features are off by about two units of the precision; a distance that leaves its best value with the square of that is off
    by its square. Values are kept as float32, which cannot tell −1 from −1 + 6e-8.

    >>> from eedkit.probe.metrics import METRICS
    >>> rounding(METRICS["latent_euclidean"], "float32")
    2.384185791015625e-07
    """
    eps = 2**-7 if precision == "bfloat16" else float(np.finfo(precision).eps)
    off = 2 * eps
    kept = float(np.finfo(np.float32).eps) * abs(metric.distance.best)
    return max(off**metric.distance.order, 0.0 if np.isnan(kept) else kept)


def layout_text(layer: Layer) -> str:
    """The layer's layout as users write it."""
    if layer.layout is None:
        return ""
    return "class token" if layer.role == "class token" else str(layer.layout)


def _attributes(metric: Metric, reasons: list[str], precision: str) -> dict[str, Any]:
    distance = metric.distance
    attrs = {
        "long_name": metric.title or metric.name,
        "units": distance.unit,
        "best": distance.best,
        "upper": distance.upper,
        # a distance without a scale of its own is judged against the size of the features
        "scale": f"{metric.name}_norm" if isinstance(distance.scale, str) else distance.scale,
        "rounding": rounding(metric, precision),
        "equation": f"m(f(gx), g f̂(x)), m = {distance.equation or distance.name}",
        "source": f"Kvinge et al. 2022, {metric.source}" if metric.source.startswith("eq.") else metric.source,
    }
    if reasons[0] and not metric.has_layers:
        attrs["nan_reason"] = reasons[0]
    return attrs


def _reasons(values: np.ndarray, reasons: list[str]) -> list[str]:
    """Why a layer is undefined; where single samples are, how many."""
    found = []
    for reason, undefined in zip(reasons, _undefined(values), strict=True):
        found.append(reason or schema.partly(int(undefined), values.shape[-1]))
    return found


def _undefined(values: np.ndarray) -> np.ndarray:
    """How many samples have no value, from (…, element, sample)."""
    return np.isnan(values).any(-2).sum(-1)


def states(measured: Measured, metrics: Sequence[Metric]) -> xr.Dataset:
    """What a pass over one block leaves for joining it with others; `measure_block` says what is in it."""
    layers = len(measured.layers)
    # as wide as any layer, so that every block has the same shape, whatever is undefined in it
    width = max([1, *(layer.layout.channels for layer in measured.layers if layer.layout)])
    normalised = list(measured.pair_cosines) or [""]  # arrays of a store have no empty side
    pair_sum = np.zeros((len(normalised), layers, width if measured.pair_cosines else 1))
    pair_n = np.full((len(normalised), layers), -1)
    for i, name in enumerate(normalised):
        for j, state in enumerate(measured.pair_cosines.get(name, [])):
            if state.total is not None:
                pair_n[i, j] = state.n
                pair_sum[i, j, : len(state.total)] = state.total.cpu().numpy()
    reason = np.full((len(metrics), layers), "", dtype=object)
    undefined = np.zeros((len(metrics), layers), dtype=np.int64)
    for i, metric in enumerate(metrics):
        reasons = measured.reasons[metric.name]  # one for every layer, or one for the output
        reason[i, : len(reasons)] = reasons
        undefined[i, : len(reasons)] = _undefined(measured.arrays[metric.name])
    return xr.Dataset(
        {
            "pair_sum": (("normalised", "layer", "feature"), pair_sum),
            "pair_n": (("normalised", "layer"), pair_n),
            "dead": ("layer", measured.dead[:, 0]),
            "live_or_dead": ("layer", measured.dead[:, 1]),
            "reason": (("metric", "layer"), reason),
            "undefined": (("metric", "layer"), undefined),
        },
        {"metric": _text([metric.name for metric in metrics]), "normalised": _text(normalised)},
        {"flaws": [measured.flaws[row] for row in sorted(measured.flaws)]},
    )


def _layer_coords(measured: Measured) -> dict[str, Any]:
    grids = np.array([layer.grid for layer in measured.layers]).reshape(-1, 2)
    channels = [layer.layout.channels if layer.layout else 0 for layer in measured.layers]
    coords = {
        "depth": [[layer.depth for layer in measured.layers]],
        "layer_type": _text([layer.kind for layer in measured.layers])[None],
        "layout": _text([layout_text(layer) for layer in measured.layers])[None],
        "channels": [channels],
        "height": grids[:, 0][None],
        "width": grids[:, 1][None],
        "kernel_order": [measured.kernel_orders],
    }
    if measured.law_errors is not None:
        coords["law_error"] = [measured.law_errors]
    return coords


def _text(labels: Sequence[object]) -> np.ndarray:
    """Strings as objects: fixed-width strings cannot take a longer label later, and Zarr has no stable form for them."""
    text = np.empty(len(labels), dtype=object)
    text[:] = list(labels)
    return text
