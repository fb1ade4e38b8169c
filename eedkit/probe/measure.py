"""measure(): one model, one stream of images -> one labelled Dataset. The only module where tensors become labels.

Knows the pass (tensors) and the schema (labels), never where models or images come from. Costs what the pass costs.
"""

import hashlib
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn

import eedkit
from eedkit.errors import unknown
from eedkit.probe import metrics as family
from eedkit.probe import stream
from eedkit.probe.metrics import Metric
from eedkit.probe.record import Swept
from eedkit.probe.sweep import DTYPES, sweep
from eedkit.results import schema
from eedkit.theory import actions, groups
from eedkit.theory.actions import Action
from eedkit.theory.groups import Group


def measure(
    model: nn.Module,
    images: Any,
    *,
    group: str | Group | Action,
    metrics: Sequence[str | Metric] = ("channelwise", "latent", "softmax"),
    layers: str | Sequence[str] = "blocks",
    head: str | None = None,
    labels: Sequence | None = None,
    name: str | None = None,
    batch_size: int | None = None,
    device: str | torch.device = "auto",
    precision: str = "float32",
    null: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> xr.Dataset:
    """m(f(gx), g f̂(x)) for every layer, group element and sample (Kvinge et al. 2022, the integrand of eq. 4).

    Averaging over `element` and `sample` gives the G-EED; `summarise` does so, with intervals and calibration.
    One pass over the images with |G| forwards per batch; the model is left exactly as found.

    Parameters
    ----------
    model : any module that gives class scores (b, k), or features if only layer metrics are asked for
    images : tensor (n, C, H, W), DataLoader, or a torch or Hugging Face data set; uint8 and PIL images are scaled to [0, 1]
    group : "C4", "D4", "flip", "shift4", …; a `Group`; or an `Action` of one's own on (…, H, W)
    metrics : names in `METRICS`, or `Metric` values
    layers : "blocks", "all", a list of module paths, or a regular expression
    head : path of the classifier whose input is the latent vector; None finds it
    labels : one per image, for grouping by class; None takes the data set's own
    name : the label on `model`; None takes the class's name
    batch_size : None chooses one by the images' size; results do not depend on it
    device : "auto" takes CUDA when there is one
    precision : "float32", "float64" (for a model of that type), "bfloat16", "float16" (autocast)
    null : also measure against unrelated samples (`<metric>_null`), for calibration
    seed : of the order in which samples are read, and so of the null's partners

    Returns
    -------
    Dataset with dims (model, layer, element, sample), `model` of length one

    Raises
    ------
    ValueError
        Unknown names (near ones are listed), images that the group cannot act on, an empty set, mixed sizes, one sample
        with a null, or an output that is not finite.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(50, 3))
    >>> ds = measure(net, torch.rand(4, 1, 5, 5), group="C4", progress=False)
    >>> dict(ds.latent.sizes)
    {'model': 1, 'layer': 4, 'element': 4, 'sample': 4}
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}; the images come second")
    action = group if isinstance(group, Action) else actions.spatial(groups.parse(group))
    metrics = family.resolve(metrics)
    device = _device(device)
    if precision not in DTYPES:
        raise ValueError(unknown("precision", precision, DTYPES))
    _check_dtype(model, precision)
    name = name or type(model).__name__
    source = stream.open_stream(images, labels=labels, seed=seed)
    swept = sweep(
        model,
        source,
        action=action,
        metrics=metrics,
        layers=layers,
        head=head,
        batch_size=batch_size,
        null=null,
        device=device,
        precision=precision,
        progress=name if progress else None,
    )
    if null and source.length is None and _sorted(swept.labels):
        warnings.warn(
            "the images come sorted by label, so the null compares images of one class; pass the data set itself, which is "
            "read in a seeded order, or a stream in mixed order",
            stacklevel=2,
        )
    ds = _label(swept, action, metrics, name)
    ds = ds.assign_coords(weights=("model", np.array([fingerprint(model)], dtype=object)))
    ds.attrs = _provenance(action, swept.fingerprint, device, precision, seed)
    return schema.validate(ds)


def fingerprint(model: nn.Module) -> str:
    """A checksum of the model's class, parameters and buffers: equal weights, equal fingerprint.

    >>> fingerprint(nn.Identity()) == fingerprint(nn.Identity())
    True
    """
    digest = hashlib.sha256(type(model).__name__.encode())
    for key, tensor in model.state_dict().items():
        digest.update(f"{key}|{tensor.dtype}|{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _provenance(action: Action, data: str, device: torch.device, precision: str, seed: int) -> dict[str, Any]:
    return {
        "eedkit_version": eedkit.__version__,
        "schema": schema.SCHEMA,
        "group": action.group.name,
        "action": action.name,
        "data": data,
        "seed": seed,
        "precision": precision,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch_version": torch.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _device(device: str | torch.device) -> torch.device:
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def _check_dtype(model: nn.Module, precision: str) -> None:
    """Autocast wants float32 weights; otherwise weights and images must have the one type."""
    wanted = torch.float64 if precision == "float64" else torch.float32
    for key, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != wanted:
            asked = str(wanted).removeprefix("torch.")
            raise ValueError(
                f"precision {precision!r} needs {asked} weights, but {key} is {parameter.dtype}; "
                f"convert the model with .to(torch.{asked}) first"
            )


def _sorted(labels: list) -> bool:
    """Whether every class comes in one run, as in a file that was written class by class."""
    classes, runs = set(labels), 1 + sum(a != b for a, b in pairwise(labels))
    return 1 < len(classes) == runs < len(labels) and None not in classes


def _label(swept: Swept, action: Action, metrics: Sequence[Metric], name: str) -> xr.Dataset:
    group, found = action.group, swept.layers
    variables: dict[str, tuple] = {}
    coords: dict[str, Any] = {
        "model": _text([name]),
        "layer": _text([layer.name for layer in found]),
        "element": _text(group.elements),
        "sample": _text(swept.ids) if isinstance(swept.ids[0], str) else swept.ids,
        "angle": ("element", list(group.angles), {"units": "degree", "long_name": "rotation, counter-clockwise"}),
    }
    coords["position"] = (
        "sample",
        swept.positions,
        {"long_name": "place in the stream; neighbours share the null's chain"},
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
        if not np.isnan(swept.arrays["confidence"]).all():
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
        variables["dead_fraction"] = (("model", "layer"), [swept.dead_fractions], attrs)
    coords |= {key: (("model", "layer"), value) for key, value in _layer_coords(swept).items()}
    return xr.Dataset(variables, coords)


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
    samples = np.isnan(values).any(1).sum(-1)
    partly = [
        f"undefined for {k} of {values.shape[-1]} samples, whose features are not finite or all zero" for k in samples
    ]
    return [reason or (part if k else "") for reason, part, k in zip(reasons, partly, samples, strict=True)]


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
