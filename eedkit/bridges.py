"""What others report about invariance and equivariance, by the same taps, layouts and actions as G-EED.

Of what `measure` recorded: `prediction_consistency`, `effective_invariance` and `equivariance_psnr`. The others take a pass of
their own, since they are statistics over the samples (`normalised_variance`, `cka`) or derivatives (`lie_derivative`).
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.autograd import forward_ad

from eedkit.probe import samples
from eedkit.probe.layers import Layer, Output, tap
from eedkit.probe.measure import ABSENT, Forward, Options, Table, traced, unwrapped
from eedkit.probe.metrics import probabilities
from eedkit.progress import bar
from eedkit.results import schema
from eedkit.theory.actions import Action
from eedkit.theory.groups import Group

MOVES = ("rotate", "slide", "slide across")
"""The one-parameter groups of `lie_derivative`: rotations counter-clockwise, translations downwards and to the right."""
MOST_FEATURES = 4096
"""Features of a layer up to which `cka` keeps their matrices."""


def prediction_consistency(ds: xr.Dataset) -> xr.DataArray:
    """Whether argmax f(gx) = argmax f(x), 1 or 0; needs no labels (Deng et al. 2022, arXiv 2207.07065).

    The baseline for any measure that foretells accuracy on moved images.

    Parameters
    ----------
    ds : Dataset
        Of `measure`, with predictions.

    Returns
    -------
    DataArray (model, element, sample)
        Every element but the identity; NaN where a prediction is missing.

    Raises
    ------
    ValueError
        There are no predictions, no unmoved images or no moved ones.

    Examples
    --------
    >>> import eedkit as ek
    >>> blind = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 3))
    >>> ds = ek.measure(blind, torch.rand(4, 1, 5, 5), group="C4", progress=False)
    >>> prediction_consistency(ds).mean().item()
    1.0
    """
    moved, unmoved = _moved_and_unmoved(ds)
    both_predicted = (moved.prediction >= 0) & (unmoved.prediction >= 0)
    agrees = (moved.prediction == unmoved.prediction).where(both_predicted)
    return agrees.rename("prediction_consistency").assign_attrs(
        long_name="whether the prediction stays", units="1", source="Deng et al. 2022, arXiv 2207.07065"
    )


def effective_invariance(ds: xr.Dataset) -> xr.DataArray:
    """√(p̂(gx) p̂(x)) where argmax f(gx) = argmax f(x), else 0 (Deng et al. 2022, arXiv 2207.07065, eq. 1).

    p̂ is the probability of the prediction. 0 to 1: 1 where both predictions are the same and certain. So it falls with the
    confidence too: an exactly invariant model of k classes has at least 1/k.

    Parameters
    ----------
    ds : Dataset
        Of `measure`, with predictions.

    Returns
    -------
    DataArray (model, element, sample)
        Every element but the identity; NaN where a prediction is missing. The paper reports its mean.

    Raises
    ------
    ValueError
        There are no predictions, no unmoved images or no moved ones.

    Examples
    --------
    >>> import eedkit as ek
    >>> undecided = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 4, bias=False))
    >>> ds = ek.measure(undecided, torch.zeros(4, 1, 5, 5), group="C4", progress=False)
    >>> effective_invariance(ds).mean().item()
    0.25
    """
    moved, unmoved = _moved_and_unmoved(ds)
    invariance = prediction_consistency(ds) * np.sqrt(moved.confidence * unmoved.confidence)
    return invariance.rename("effective_invariance").assign_attrs(
        long_name="effective invariance", units="1", source="Deng et al. 2022, arXiv 2207.07065, eq. 1"
    )


def equivariance_psnr(ds: xr.Dataset, *, peak: float | None = None) -> xr.DataArray:
    """10 log₁₀(peak² / mean (f(gx) − g f(x))²) in dB: EQ-T under translations, EQ-R under rotations.

    Karras et al. 2021 (arXiv 2106.12423, appendix E) report it for images between −1 and 1 with a peak of 2; here f is any
    layer's maps. ∞ where f is exactly equivariant, and the larger the better. Two things are otherwise than theirs: shifts
    roll, so that no border is left out, and rotations interpolate bilinearly within the inscribed circle, so that no low-pass
    filter is applied.

    Parameters
    ----------
    ds : Dataset
        Of `measure(metrics=["channelwise_rms"])`, which keeps the orbits of a batch of maps in memory.
    peak : float, or None
        The largest difference that two values can have. None: the root mean square of f(x), as in a signal-to-noise ratio
        *[ours]*, for maps that have no such bound.

    Returns
    -------
    DataArray (model, layer)
        From the mean square over samples and every element but the identity.

    Raises
    ------
    ValueError
        `channelwise_rms` was not measured, no image was moved, or the peak is not above 0.

    Examples
    --------
    >>> import eedkit as ek
    >>> net = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"))
    >>> ds = ek.measure(net, torch.rand(4, 1, 8, 8), group="shift4", metrics=["channelwise_rms"], progress=False)
    >>> equivariance_psnr(ds, peak=1).sel(layer="0").item() > 100
    True
    """
    if peak is not None and not peak > 0:
        raise ValueError(f"peak must be above 0, or None for the root mean square of f(x), got {peak}")
    if "channelwise_rms" not in ds:
        raise ValueError("the decibels come from channelwise_rms; measure with metrics=['channelwise_rms']")
    moved = _moved(schema.validate(ds))
    noise = np.square(moved.channelwise_rms.astype("float64")).mean(["element", "sample"])
    if peak is None:
        signal = np.square(moved.channelwise_rms_norm.astype("float64")).mean("sample")
    else:
        signal = xr.full_like(noise, peak**2).where(noise.notnull())
    with np.errstate(divide="ignore", invalid="ignore"):
        decibels = 10 * np.log10(signal / noise)
    return decibels.rename("equivariance_psnr").assign_attrs(
        long_name="equivariance", units="dB", source="Karras et al. 2021, arXiv 2106.12423"
    )


def _moved(ds: xr.Dataset) -> xr.Dataset:
    """Every element but the identity."""
    moved = ds.sel(element=ds.element != ds.element.attrs.get("identity", "e"))
    if not moved.sizes["element"]:
        raise ValueError("no image was moved: the identity is the only element; keep others, or choose a larger group")
    return moved


def _moved_and_unmoved(ds: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    identity = ds.element.attrs.get("identity", "e")
    if "prediction" not in ds or identity not in ds.element.values:
        raise ValueError("this needs predictions for moved and unmoved images; measure a model with class scores")
    predictions = ds[["prediction", "confidence"]]
    return _moved(predictions), predictions.sel(element=identity, drop=True)


def normalised_variance(
    model: nn.Module, images: Any, *, group: str | Group | Action, progress: bool = True, **options: Any
) -> dict[str, xr.Dataset]:
    """mean_x std_g f(gx) / mean_g std_x f(gx), for every single unit (Quiroga et al. 2020; tmeasures' normalised variance).

    Of every number that a layer gives, its standard deviation over the elements relative to that over the samples, both with
    n − 1. 0 where a unit is invariant, about 1 where moving an image changes it as much as taking another one. As in tmeasures
    1.2.11 variance means standard deviation, and nothing moves the units back.

    Holds three maps of each layer for each element and three for each image of a batch, in float64, however many samples there
    are.

    Parameters
    ----------
    model, images, group
        As in `measure`.
    progress : bool
        Show a bar.
    **options
        `layers`, `head`, `layouts`, `output`, `batch_size`, `device`, `precision` and `seed` of `measure`.

    Returns
    -------
    dict from layer to Dataset (row, column, channel)
        `transformation` and `sample`, the two deviations, and `normalised`, their ratio: ∞ where a unit changes only as images
        move, NaN where it never changes (tmeasures gives 1). The attribute `nan_reason` of `normalised` says why.

    Raises
    ------
    ValueError
        As `measure`; or there are fewer than 2 images, or elements.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.AdaptiveAvgPool2d(1))
    >>> found = normalised_variance(net, torch.rand(8, 1, 5, 5), group="C4", layers="all", progress=False)
    >>> dict(found["0"].sizes), bool((found["1"].normalised < 1).all())
    ({'row': 5, 'column': 5, 'channel': 2}, True)
    """
    settings = Options(group, **options)
    order = settings.action.group.order
    if order < 2:
        raise ValueError(f"a deviation over elements needs 2 or more, got {order}; choose a larger group")
    spreads: dict[Layer, _Spread] = {}

    def take(layer: Layer, g: int, z: Tensor, _rows: list[int]) -> None:
        if layer not in spreads:
            spreads[layer] = _Spread(order)
        spreads[layer].take(g, z.double())

    seen = _see(model, images, settings, order, take, progress=progress)
    found = {}
    for layer in seen.layers:
        shape = (*layer.grid, layer.channels)
        over_elements = over_samples = torch.full(shape, torch.nan, dtype=torch.float64)
        reason = seen.reasons.get(layer.name, "")
        if not reason:
            over_elements, over_samples = (part.reshape(shape).cpu() for part in spreads[layer].result())
        never_change = int((over_samples == 0).logical_and(over_elements == 0).sum())
        if never_change:
            reason = f"{never_change} of {over_samples.numel()} units never change"
        attrs = {"long_name": "normalised variance", "units": "1", "nan_reason": reason, "samples": seen.n}
        dims = ("row", "column", "channel")
        found[layer.name] = xr.Dataset(
            {
                "transformation": (dims, over_elements, {"long_name": "standard deviation over elements"}),
                "sample": (dims, over_samples, {"long_name": "standard deviation over samples"}),
                "normalised": (dims, over_elements / over_samples, attrs),
            },
            attrs={"source": "Quiroga et al. 2020, tmeasures 1.2.11", "group": settings.action.group.name},
        )
    return found


class _Spread:
    """Σd and Σd² over the elements of each image, and over the samples under each element.

    d is the difference from f(x), and from that of the first sample, so that what never changes has exactly 0.
    """

    def __init__(self, order: int) -> None:
        self.order = order
        self.n = 0
        self.of_first: list[Tensor] = []
        self.over_samples: list[list[Tensor]] = []
        self.of_x = torch.empty(0)
        self.over_elements = [torch.empty(0), torch.empty(0)]
        self.total: Tensor | float = 0.0

    def take(self, g: int, z: Tensor) -> None:
        """Take f(gx) of a batch, (b, P, C), element by element."""
        if len(self.of_first) == g:
            self.of_first.append(z[0].clone())
            self.over_samples.append([torch.zeros_like(z[0]), torch.zeros_like(z[0])])
        _add(self.over_samples[g], (z - self.of_first[g])[None].sum(0), (z - self.of_first[g]).square())
        if g == 0:
            self.n += len(z)
            self.of_x = z.clone()
            self.over_elements = [torch.zeros_like(z), torch.zeros_like(z)]
        _add(self.over_elements, z - self.of_x, (z - self.of_x).square())
        if g == self.order - 1:
            self.total = self.total + _deviation(*self.over_elements, self.order).sum(0)

    def result(self) -> tuple[Tensor, Tensor]:
        """The mean over samples of the deviation over elements, and the mean over elements of that over samples: (P, C)."""
        of_elements = [_deviation(*sums, self.n) for sums in self.over_samples]
        return torch.as_tensor(self.total) / self.n, torch.stack(of_elements).mean(0)
