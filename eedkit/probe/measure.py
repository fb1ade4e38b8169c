"""measure(): one model, one stream of images -> one labelled Dataset.

Knows the pass (tensors) and who labels it, never where models or images come from. Costs what the pass costs.
"""

import hashlib
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import torch
import xarray as xr
from torch import nn

import eedkit
from eedkit.errors import unknown
from eedkit.probe import labels as labels_of
from eedkit.probe import metrics as family
from eedkit.probe import stream
from eedkit.probe.metrics import Metric
from eedkit.probe.sweep import DTYPES, sweep
from eedkit.theory import actions, groups
from eedkit.theory.actions import Action
from eedkit.theory.groups import Group

VERSION = 1
"""To be raised when the same arguments would give other values: a study does not mix them."""


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
    One pass over the images with |G| forwards per batch, and before it, for a matched metric, one over at most 512 of
    them; the model is left exactly as found.

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
        with a null, fewer than 4 with a matched metric, or an output that is not finite.
    TypeError
        A matched metric is asked for on images that cannot be read by number.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(50, 3))
    >>> ds = measure(net, torch.rand(4, 1, 5, 5), group="C4", progress=False)
    >>> dict(ds.latent.sizes)
    {'model': 1, 'layer': 4, 'element': 4, 'sample': 4}
    """
    return measure_block(
        model,
        images,
        group=group,
        metrics=metrics,
        layers=layers,
        head=head,
        labels=labels,
        name=name,
        batch_size=batch_size,
        device=device,
        precision=precision,
        null=null,
        seed=seed,
        progress=progress,
    )[0]


def measure_block(
    model: nn.Module,
    images: Any,
    *,
    group: str | Group | Action,
    metrics: Sequence[str | Metric],
    positions: range | None = None,
    layers: str | Sequence[str] = "blocks",
    head: str | None = None,
    labels: Sequence | None = None,
    name: str | None = None,
    batch_size: int | None = None,
    device: str | torch.device = "auto",
    precision: str = "float32",
    null: bool = True,
    seed: int = 0,
    progress: bool = False,
) -> tuple[xr.Dataset, xr.Dataset]:
    """`measure` on the images at some `positions` of the seeded order, with the states from which blocks are joined.

    Blocks of whole chains give, put side by side, exactly what `measure` gives for all images. An image that cannot be read and
    an output that is not finite end nothing: the sample is NaN (its prediction −1).

    Returns
    -------
    values : as `measure` gives them, the samples in the order in which they were read
    states : `pair_sum` (layer, feature) and `pair_n` (layer), from which M = (‖Σu‖² − n)/(n² − n); `dead` and `live_or_dead`
        (layer), how many channels were zero and how many there were; `reason` and `undefined` (metric, layer), why a layer
        has no value, or for how many samples; the attribute `flaws`, why single samples have none

    >>> net, images = nn.Sequential(nn.Flatten(), nn.Linear(25, 3)), torch.rand(300, 1, 5, 5)
    >>> values, states = measure_block(net, images, group="C4", metrics=["latent"], positions=range(256, 300))
    >>> values.sizes["sample"], states.pair_n.values.tolist()
    (44, [44, 44, 44])
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
    source = stream.open_stream(images, labels=labels, seed=seed, positions=positions)
    halves = stream.open_halves(images, seed=seed) if any(metric.matched for metric in metrics) else None
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
        tolerant=positions is not None,
        halves=halves,
    )
    if null and source.length is None and _sorted(swept.labels):
        warnings.warn(
            "the images come sorted by label, so the null compares images of one class; pass the data set itself, which is "
            "read in a seeded order, or a stream in mixed order",
            stacklevel=3,
        )
    swept.positions = [source.start + place for place in swept.positions]
    about = _provenance(action, swept.fingerprint, device, precision, seed)
    ds = labels_of.dataset(swept, action, metrics, name=name, weights=fingerprint(model), about=about)
    return ds, labels_of.states(swept, metrics)


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
