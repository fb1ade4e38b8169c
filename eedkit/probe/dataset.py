"""Where tensors become labels: what a pass found -> a Dataset of the schema. The only module that knows both.

Knows what was measured and the schema, never models or images. Costs no copy of the values.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from eedkit.probe.layers import Layer
from eedkit.probe.metrics import Metric
from eedkit.probe.samples import Batch, Fingerprint
from eedkit.results import schema
from eedkit.theory.groups import Group

BY_LAYER = ("model", "layer")
"""Dimensions of what is known of a layer."""


class Results:
    """Arrays (layer, element, sample), or without layer, by the names of variables, and what is known of each sample.

    They are made for all samples at once: small tensors kept from every batch would fragment the heap around the activations that
    come and go.
    """

    def __init__(self, layers: int, n: int) -> None:
        self.layers = layers
        self.n = n
        self.arrays: dict[str, np.ndarray] = {}
        self.ids: list = [None] * n
        self.labels: list = [None] * n
        self.chains = [0] * n
        self.unread = [""] * n
        self.flaws: dict[int, str] = {}
        self.fingerprint = Fingerprint()

    def put(self, name: str, numbers: np.ndarray, rows: Sequence[int], layer: int | None) -> None:
        """Write numbers (…, b) to the samples `rows`, at the layer of that number or of the output."""
        numbers = numbers.astype(np.float32) if numbers.dtype.kind == "f" else numbers
        if name not in self.arrays:
            shape = (*numbers.shape[:-1], self.n)
            blank = np.nan if numbers.dtype.kind == "f" else -1
            self.arrays[name] = np.full(shape if layer is None else (self.layers, *shape), blank, numbers.dtype)
        array = self.arrays[name] if layer is None else self.arrays[name][layer]
        array[..., rows] = numbers

    def flaw_list(self) -> list[str]:
        """Why samples have no value, in the order of the images."""
        return [self.flaws[row] for row in sorted(self.flaws)]

    def record(self, batch: Batch, not_finite: Sequence[Sequence[int]], elements: Sequence[str]) -> None:
        """Write down the samples of a batch, and those of which the output is not finite under an element."""
        for number, places in enumerate(batch.chains):
            for place in places:
                sample = batch.samples[place]
                self.ids[sample.row] = sample.id
                self.labels[sample.row] = sample.label
                self.chains[sample.row] = batch.first_chain + number
                self.fingerprint.update(sample)
                if sample.flaw:
                    self.unread[sample.row] = self.flaws[sample.row] = sample.flaw
        for g, place in not_finite:
            sample = batch.samples[place]
            reason = f"the model's output is not finite for sample {sample.id} under {elements[g]}"
            self.flaws.setdefault(sample.row, reason)

    def complete(
        self, metrics: Sequence[Metric], reasons: dict, kernel_orders: dict, order: int, *, null: bool
    ) -> None:
        """NaN where a metric has a reason to have no value, and from x what f̂ does not mix."""
        for metric in metrics:
            shape = (self.layers, order, self.n) if metric.has_layers else (order, self.n)
            for name in (metric.name, f"{metric.name}_null")[: 1 + null]:
                self.arrays.setdefault(name, np.full(shape, np.nan, np.float32))
            if isinstance(metric.distance.scale, str):
                of_samples = (self.layers, self.n) if metric.has_layers else (self.n,)
                self.arrays.setdefault(f"{metric.name}_norm", np.full(of_samples, np.nan, np.float32))
            for k, (reason, kernel_order) in enumerate(
                zip(reasons[metric.name], kernel_orders[metric.name], strict=True)
            ):
                at = k if metric.has_layers else ...
                for ending in ("", "_null"):
                    from_x = self.arrays.get(f"{metric.name}_from_x{ending}")
                    if from_x is not None and kernel_order == 1:
                        from_x[at] = self.arrays[f"{metric.name}{ending}"][at]
                for ending in ("", *schema.LIKE_METRIC, "_norm"):
                    if reason and f"{metric.name}{ending}" in self.arrays:
                        self.arrays[f"{metric.name}{ending}"][at] = np.nan


@dataclass
class Measured:
    """What one pass found, by layer in the order of execution and by sample.

    `reasons` say of every metric at every layer why it has no value, `kernel_orders` how many elements move nothing; `dead`
    (layer, 2) are the dead channels and all of them, summed over samples and elements; `classes` is how many the model scores;
    `law_errors` say by layer how far the action is from the group law, None where it is exact.
    """

    metrics: Sequence[Metric]
    layers: list[Layer]
    results: Results
    reasons: dict[str, list[str]]
    kernel_orders: dict[str, list[int]]
    law_errors: list[float] | None
    pair_cosines: dict[str, list[Any]]
    dead: np.ndarray
    classes: int


def dataset(
    measured: Measured,
    group: Group,
    *,
    name: str,
    weights: str,
    precision: str,
    class_names: Sequence[str],
    about: dict[str, Any],
) -> xr.Dataset:
    """What a pass found as a Dataset of the schema, `about` beside the schema's number as its attributes.

    `class_names` are those of the classes that labels count, where the images have names for them.
    """
    results = measured.results
    variables: dict[str, tuple] = {}
    coords: dict[str, Any] = {
        "model": _text([name]),
        "weights": ("model", _text([weights])),
        "classes": ("model", [measured.classes], {"long_name": "number of classes of the scores, 0 without"}),
        "layer": _text([layer.name for layer in measured.layers]),
        "element": ("element", _text(group.elements), _element_attributes(group)),
        "sample": _text(results.ids) if isinstance(results.ids[0], str) else results.ids,
        "angle": ("element", list(group.angles), {"units": "degree", "long_name": "rotation, counter-clockwise"}),
        "chain": ("sample", results.chains, {"long_name": schema.CHAIN}),
        "flaw": ("sample", _text(results.unread), {"long_name": "why the image could not be read"}),
    }
    if any(label is not None for label in results.labels):
        coords["label"] = _label(results.labels, class_names)
    for metric in measured.metrics:
        variables |= _variables(metric, measured, precision)
        if metric.has_layers:
            reasons = _reasons(results.arrays[metric.name], measured.reasons[metric.name])
            coords[f"{metric.name}_nan_reason"] = (BY_LAYER, _text(reasons)[None])
            coords[f"{metric.name}_kernel_order"] = (BY_LAYER, [measured.kernel_orders[metric.name]])
    for key, long_name in (("prediction", "predicted class"), ("confidence", "probability of the prediction")):
        if key in results.arrays:
            attrs = {"long_name": long_name, "units": "1"}
            variables[key] = (schema.BESIDE[key], results.arrays[key][None], attrs)
    if any(metric.where == "maps" for metric in measured.metrics):
        attrs = {"long_name": "part of the channels that is zero for gx and for x", "units": "1"}
        dead, channels = measured.dead.T
        fraction = np.divide(dead, channels, out=np.full(len(dead), np.nan), where=channels > 0)
        variables["dead_fraction"] = (BY_LAYER, fraction[None], attrs)
    coords |= {key: (BY_LAYER, value) for key, value in _layer_coords(measured).items()}
    return schema.validate(xr.Dataset(variables, coords, {**about, "schema": schema.SCHEMA}))


def orbits(values: np.ndarray, name: str, dim: str, about: xr.Dataset) -> xr.DataArray:
    """Vectors (element, dim, sample) as an array (element, sample, dim) with what a Dataset of one model says of these."""
    of_samples = [coord for coord in ("element", "angle", "sample", "label", "flaw") if coord in about.coords]
    coords = {coord: about[coord].variable for coord in of_samples}
    return xr.DataArray(
        values.swapaxes(1, 2),
        dims=("element", "sample", dim),
        coords={**coords, "model": about.model.item()},
        name=name,
        attrs=about.attrs,
    )


def _label(labels: Sequence, class_names: Sequence[str]) -> tuple:
    is_text = any(isinstance(label, str) for label in labels)
    # an image that could not be read may have an unknown label
    unknown = "" if is_text else -1
    known = [unknown if label is None else str(label) if is_text else label for label in labels]
    attrs = {"class_names": json.dumps(list(class_names), ensure_ascii=False)} if class_names else {}
    return "sample", _text(known) if is_text else known, attrs


def _variables(metric: Metric, measured: Measured, precision: str) -> dict[str, tuple]:
    """The variables of one metric."""
    arrays = measured.results.arrays
    dims = schema.DIMS if metric.has_layers else ("model", "element", "sample")
    attrs = _attributes(metric, measured, precision)
    title = attrs["long_name"]
    null = "of the shuffled orbit" if metric.null == "images" else "against f̂(x) moved by other elements"
    titles = {
        "": title,
        "_null": f"{title}, {null}",
        "_from_x": f"{title}, from f(x)",
        "_from_x_null": f"{title}, from f(x), {null}",
        "_round_trip": f"{title} of images that went there and back",
    }
    variables: dict[str, tuple] = {}
    for ending, long_name in titles.items():
        name = f"{metric.name}{ending}"
        if name not in arrays:
            continue
        of_variable = {**attrs, "long_name": long_name}
        if ending == "_round_trip":
            of_variable = {"long_name": long_name, "units": attrs["units"], "equation": "m(f(g⁻¹gx), f(x))"}
        if ending.startswith("_from_x"):
            of_variable["equation"] = attrs["equation"].replace("g f̂(x)", "g f(x)")
        variables[name] = (dims, arrays[name][None], of_variable)
    if metric.normalised:
        pair = [state.result() for state in measured.pair_cosines[metric.name]]
        of_pair: dict[str, Any] = {"long_name": "mean cosine between different samples' features, M", "units": "1"}
        of_pair["samples"] = measured.results.n
        variables[f"{metric.name}_pair_cosine"] = (BY_LAYER, [pair], of_pair)
    if f"{metric.name}_norm" in arrays:
        size = "root mean square" if metric.distance.scale == "rms" else "length"
        of_norm = {"long_name": f"{size} of the features f(x)", "units": "1"}
        of_samples = ("model", "layer", "sample") if metric.has_layers else ("model", "sample")
        variables[f"{metric.name}_norm"] = (of_samples, arrays[f"{metric.name}_norm"][None], of_norm)
    return variables


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
    # distances are sums in float64, whatever the features are
    in_sums = float(np.finfo(np.float64).eps)
    return max(off**metric.distance.order, in_sums, 0.0 if np.isnan(kept) else kept)


def layout_text(layer: Layer) -> str:
    """The layer's layout as users write it."""
    if layer.layout is None:
        return ""
    return "class token" if layer.role == "class token" else str(layer.layout)


def _attributes(metric: Metric, measured: Measured, precision: str) -> dict[str, Any]:
    distance = metric.distance
    attrs = {
        "long_name": metric.title or metric.name,
        "units": distance.unit,
        "best": distance.best,
        "upper": distance.upper,
        "order": distance.order,
        # a distance without a scale of its own is judged against the size of the features
        "scale": f"{metric.name}_norm" if isinstance(distance.scale, str) else distance.scale,
        "rounding": rounding(metric, precision),
        "equation": f"m(f(gx), g f̂(x)), m = {distance.equation or distance.name}",
        "source": f"Kvinge et al. 2022, {metric.source}" if metric.source.startswith("eq.") else metric.source,
    }
    if not metric.has_layers:
        attrs["kernel_order"] = measured.kernel_orders[metric.name][0]
        if measured.reasons[metric.name][0]:
            attrs["nan_reason"] = measured.reasons[metric.name][0]
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


def states(measured: Measured) -> xr.Dataset:
    """What a pass over one block leaves for joining it with others; `measure_block` says what is in it."""
    metrics = measured.metrics
    layers = len(measured.layers)
    # as wide as any layer, so that every block has the same shape, whatever is undefined in it
    width = max([1, *(layer.channels for layer in measured.layers)])
    normalised = list(measured.pair_cosines) or [""]  # arrays of a store have no empty side
    pair_sum = np.zeros((len(normalised), layers, width if measured.pair_cosines else 1))
    pair_n = np.full((len(normalised), layers), -1)
    for i, name in enumerate(normalised):
        for j, state in enumerate(measured.pair_cosines.get(name, [])):
            if not isinstance(state.total, float):
                pair_n[i, j] = state.n
                pair_sum[i, j, : len(state.total)] = state.total.cpu().numpy()
    reason = np.full((len(metrics), layers), "", dtype=object)
    undefined = np.zeros((len(metrics), layers), dtype=np.int64)
    for i, metric in enumerate(metrics):
        reasons = measured.reasons[metric.name]  # one for every layer, or one for the output
        reason[i, : len(reasons)] = reasons
        undefined[i, : len(reasons)] = _undefined(measured.results.arrays[metric.name])
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
        {"flaws": measured.results.flaw_list()},
    )


def _layer_coords(measured: Measured) -> dict[str, Any]:
    grids = np.array([layer.grid for layer in measured.layers]).reshape(-1, 2)
    coords = {
        "depth": [[layer.depth for layer in measured.layers]],
        "layer_type": _text([layer.kind for layer in measured.layers])[None],
        "layout": _text([layout_text(layer) for layer in measured.layers])[None],
        "channels": [[layer.channels for layer in measured.layers]],
        "height": grids[:, 0][None],
        "width": grids[:, 1][None],
    }
    if measured.law_errors is not None:
        coords["law_error"] = [measured.law_errors]
    return coords


def _text(labels: Sequence[object]) -> np.ndarray:
    """Strings as objects: fixed-width strings cannot take a longer label later, and Zarr has no stable form for them."""
    text = np.empty(len(labels), dtype=object)
    text[:] = list(labels)
    return text
