"""What others report about invariance and equivariance, by the same layers, layouts and actions as G-EED.

Knows `measure`'s results and its loop. `prediction_consistency`, `effective_invariance` and `equivariance_psnr` read
what was recorded; the others take a pass of their own, as statistics over the samples or as derivatives.

# Beside other tools

| | measures | is it insensitivity? | result |
|---|---|---|---|
| **eedkit** | G-EED with many metrics, of all layers at once | a null for every value | labelled Dataset |
| tagtorch | G-EED of one layer, or of the output, for each call | not asked | one number |
| tmeasures | invariance and same-equivariance of single units | variance over samples as the unit | arrays, plots |
| lie-deriv | equivariance error under infinitesimal moves | not asked | tables |
| escnn | `check_equivariance`: is a module equivariant, within tolerances? | not asked | passes, or an error |
| SEIS | equivariance and invariance of a layer's subspaces, apart | loss and re-encoding are told apart | two scores |
| probe-equivariance | whether a probe reads motion off frozen features | not asked | tables |

* **eedkit** takes groups that move pixels exactly, groups that interpolate, products, and custom actions. Its Dataset
  holds every value by model, layer, element and image.
* [tagtorch](https://github.com/hkvinge/tagtorch) is by two of the paper's authors. It compares a layer by 1 − cosine
  or Euclidean distance, the softmax also by KL. Images are rotated (by multiples of 360°/n, or by random angles) or
  translated with wraparound; permutations, O(n) and SO(n) act on vectors. There are no mirrors of images, though its
  README names them.
* [tmeasures](https://github.com/facundoq/tmeasures) takes any set of transformations. It relates the variance over
  these to that over samples, unit by unit; it also has Goodfellow's firing rates, and in its NumPy part ANOVA and
  distances.
* [lie-deriv](https://github.com/ngruver/lie-deriv) takes translations, rotations, scaling and saturation, at the
  output also shears and stretches. The error of a layer is a squared L2 norm, estimated by random probes; at the
  output it is the mean absolute value over the classes' probabilities.
* [escnn](https://github.com/QUVA-Lab/escnn) checks its own modules, under the groups that they are built for.
* [SEIS](https://arxiv.org/abs/2602.04054) (Lin et al. 2026, arXiv 2602.04054) needs no knowledge of the
  transformation.
* [probe-equivariance](https://github.com/turhancan97/probe-equivariance) fits regression probes for the motion of
  camera and object in rendered scenes.

Choose escnn to *build* equivariant networks and to test that they are, lie-deriv for infinitesimal moves, tmeasures
for single units. Use eedkit to ask in what ways a trained network is invariant, where, and on which images. Some of
what these report is here as well: `normalised_variance` as in tmeasures, `lie_derivative`, and `cka`.
"""

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import islice
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from eedkit.errors import Undefined, printable, unknown
from eedkit.probe import guard, run, samples
from eedkit.probe.collect import ABSENT, Place
from eedkit.probe.layers import Layer
from eedkit.probe.measure import Options, warn_of_noise, warn_of_silent_blocks
from eedkit.probe.metrics import probabilities
from eedkit.probe.tracing import first_noisy_module
from eedkit.progress import bar
from eedkit.results import schema
from eedkit.theory.actions import Action
from eedkit.theory.groups import Group

MOVES = ("rotate", "slide", "slide across")
"""The one-parameter groups of `lie_derivative`: rotations counter-clockwise, translations down and to the right."""
OPTIONS = ("layers", "head", "layouts", "output", "call", "batch_size", "device", "precision", "seed")
"""Options of `measure` that the bridges with a pass of their own take, too."""
MOST_FEATURES = 4096
"""Features of a layer up to which `cka` keeps their matrices."""


def prediction_consistency(ds: xr.Dataset) -> xr.DataArray:
    """Whether argmax f(gx) = argmax f(x), 1 or 0; needs no labels (Deng et al. 2022, arXiv 2207.07065).

    The baseline for any measure that predicts accuracy on moved images.

    Parameters
    ----------
    ds : Dataset
        Of `measure`, with predictions of unmoved images and of moved ones.

    Returns
    -------
    DataArray (model, element, sample)
        Every element but the identity; NaN where a prediction is missing.

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

    p̂ is the probability of the prediction: 1 where both predictions are the same and certain. So it falls with the
    confidence too: an exactly invariant model of k classes has at least 1/k. Takes and gives what
    `prediction_consistency` does; the paper reports the mean.

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

    Karras et al. 2021 (arXiv 2106.12423, appendix E) report it for images between −1 and 1 with a peak of 2; here f is
    any layer's maps. ∞ where f is exactly equivariant. Unlike theirs shifts roll, so that no border is left out, and
    rotations interpolate bilinearly within the inscribed circle, without a low-pass filter.

    Parameters
    ----------
    ds : Dataset
        Of `measure(metrics=["channelwise_rms"])`.
    peak : float, or None
        The largest difference that two values can have. None: the root mean square of f(x) *[ours]*, for maps that have
        no such bound.

    Returns
    -------
    DataArray (model, layer)
        From the mean square over samples and every element but the identity; NaN, with the attribute `nan_reason`,
        where some other element moves nothing, since `channelwise_rms` then compares with a mean over these.

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
    if peak is None and "channelwise_rms_norm" not in ds:
        raise ValueError("keep channelwise_rms_norm beside channelwise_rms, or give the peak")
    moved = _moved(schema.validate(ds))
    noise = np.square(moved.channelwise_rms.astype("float64")).mean(["element", "sample"])
    if peak is None:
        signal = np.square(moved.channelwise_rms_norm.astype("float64")).mean("sample")
    else:
        signal = xr.full_like(noise, peak**2).where(noise.notnull())
    with np.errstate(divide="ignore", invalid="ignore"):
        decibels = 10 * np.log10(signal / noise)
    is_mixed = moved.channelwise_rms_kernel_order > 1
    return (
        decibels.where(~is_mixed)
        .rename("equivariance_psnr")
        .assign_attrs(
            long_name="equivariance",
            units="dB",
            source="Karras et al. 2021, arXiv 2106.12423",
            nan_reason="where an element moves nothing, f̂(x) is not f(x)" if is_mixed.any() else "",
        )
    )


def _moved(ds: xr.Dataset) -> xr.Dataset:
    """Every element but the identity."""
    moved = ds.sel(element=ds.element != ds.element.attrs.get("identity", "e"))
    if not moved.sizes["element"]:
        raise ValueError("no image was moved: the identity is the only element; keep others, or choose a larger group")
    return moved


def _moved_and_unmoved(ds: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    ds = schema.validate(ds)
    identity = ds.element.attrs.get("identity", "e")
    if "prediction" not in ds:
        raise ValueError("this needs predictions; measure a model with class scores, and keep its variable prediction")
    if identity not in ds.element.values:
        raise ValueError(f"this needs the predictions for unmoved images; keep the element {identity!r}")
    predictions = ds[["prediction", "confidence"]]
    return _moved(predictions), predictions.sel(element=identity, drop=True)


def normalised_variance(
    model: nn.Module, images: Any, *, group: str | Group | Action, progress: bool = True, **options: Any
) -> dict[str, xr.Dataset]:
    """mean_x std_g f(gx) / mean_g std_x f(gx), for every single unit (Quiroga et al. 2023, arXiv 2310.17404).

    The standard deviation over the elements of every number that a layer gives, relative to that over the samples, both
    with n − 1. 0 where a unit is invariant, about 1 where moving an image changes it as much as taking another one. As
    in tmeasures 1.2.11, variance means standard deviation, and nothing moves the units back; so a layer needs no layout.
    Holds three maps of each layer for each element, in float64, however many samples there are.

    Parameters
    ----------
    model, images, group, progress
        As in `measure`.
    **options
        `layers`, `head`, `layouts`, `output`, `call`, `batch_size`, `device`, `precision` and `seed` of `measure`.

    Returns
    -------
    dict from layer to Dataset (row, column, channel)
        `transformation` and `sample`, the two deviations, and `normalised`, their ratio: ∞ where a unit changes only as
        images move, NaN where it never changes (tmeasures gives 1). Its attribute `nan_reason` says why. Where it is
        not known how the positions lie, the dimensions are those of what the layer gives for an image: `axis1`, `axis2`, …

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), nn.AdaptiveAvgPool2d(1))
    >>> found = normalised_variance(net, torch.rand(8, 1, 5, 5), group="C4", layers="all", progress=False)
    >>> dict(found["0"].sizes), bool((found["1"].normalised < 1e-3).all())
    ({'row': 5, 'column': 5, 'channel': 2}, True)
    """
    settings = _options(group, options)
    order = settings.action.group.order
    if order < 2:
        raise ValueError(f"a deviation over elements needs 2 or more, got {order}; choose a larger group")
    spreads: dict[Layer, _Spread] = defaultdict(lambda: _Spread(order))

    def take(layer: Layer, place: Place, given: Tensor) -> None:
        units = _finite(place.images_first(layer, given))
        if 0 not in layer.grid:
            units = layer.read(given).unflatten(1, layer.grid)
        spreads[layer].take(place, units.unflatten(0, (len(place.elements), -1)))

    reasons, rows, _ = _see(model, images, settings, take, progress=progress)
    about = {"source": "Quiroga et al. 2023, arXiv 2310.17404; tmeasures 1.2.11", "group": settings.action.group.name}
    found = {}
    for layer, reason in reasons.items():
        over_elements = over_samples = torch.full((*layer.grid, layer.channels), torch.nan, dtype=torch.float64)
        dims = ["row", "column", "channel"]
        if not reason:
            over_elements, over_samples = spreads[layer].result()
            if 0 in layer.grid:
                dims = [f"axis{number}" for number in range(1, over_samples.dim() + 1)]
        never_change = int(((over_samples == 0) & (over_elements == 0)).sum())
        if never_change:
            reason = f"{never_change} of {over_samples.numel()} units never change"
        attrs = {"long_name": "normalised variance", "units": "1", "nan_reason": reason, "samples": len(rows)}
        found[layer.name] = xr.Dataset(
            {
                "transformation": (dims, over_elements.numpy(), {"long_name": "standard deviation over elements"}),
                "sample": (dims, over_samples.numpy(), {"long_name": "standard deviation over samples"}),
                "normalised": (dims, (over_elements / over_samples).numpy(), attrs),
            },
            attrs=about,
        )
    return found


class _Sums:
    """Σd and Σd² of the differences d from the first of all values, so that what never changes has exactly 0."""

    def __init__(self) -> None:
        self.n = 0

    def add(self, values: Tensor) -> None:
        """Add values (n, *z)."""
        if not self.n:
            self.first = values[0].clone()
            self.total = torch.zeros_like(self.first)
            self.squares = torch.zeros_like(self.first)
        difference = values - self.first
        self.n += len(values)
        self.total += difference.sum(0)
        self.squares += difference.square_().sum(0)

    def deviation(self) -> Tensor:
        """The standard deviation with n − 1."""
        return ((self.squares - self.total.square() / self.n).clamp_min(0) / (self.n - 1)).sqrt()


class _Spread:
    """The deviations of every unit over the elements for each image, and over the images under each element."""

    def __init__(self, order: int) -> None:
        self.over_elements = _Sums()
        self.over_samples = [_Sums() for _ in range(order)]
        self.deviations: Tensor | float = 0.0

    def take(self, place: Place, orbit: Tensor) -> None:
        """Take f(gx) of some images, (g, b, *units)."""
        if place.fresh == 0:
            self.over_elements = _Sums()
        for element, z in zip(place.elements[place.fresh :], orbit[place.fresh :], strict=True):
            z = z.double()
            self.over_elements.add(z[None])
            self.over_samples[element].add(z)
        if self.over_elements.n == len(self.over_samples):
            self.deviations = self.deviations + self.over_elements.deviation().sum(0)

    def result(self) -> tuple[Tensor, Tensor]:
        """The mean over images of the deviation over elements, and the mean over elements of that over images."""
        over_images = torch.stack([sums.deviation() for sums in self.over_samples]).mean(0)
        return torch.as_tensor(self.deviations / self.over_samples[0].n).cpu(), over_images.cpu()


def cka(
    model: nn.Module,
    images: Any,
    *,
    group: str | Group | Action,
    features: Callable[[Tensor], Tensor] | None = None,
    progress: bool = True,
    **options: Any,
) -> xr.DataArray:
    """Linear CKA of X = f(x) and Y = f(gx), ‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖), centred (Kornblith et al. 2019, arXiv 1905.00414).

    0 to 1; 1 where f(gx) is f(x) but for a rotation of the features and a factor: it does not ask that nothing changes,
    as G-EED does. With fewer samples than features it is too large; compare it at one number of samples.
    Holds two matrices (C, C) of each layer for each element, in float64, however many samples there are.

    Parameters
    ----------
    model, images, group, progress
        As in `measure`.
    features : callable, or None
        A layer's output (b, P, C) -> vectors (b, d), say `probe.metrics.flat`; None: the mean over positions.
    **options
        As in `normalised_variance`.

    Returns
    -------
    DataArray (layer, element)
        With the coordinates `depth` and `nan_reason`.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(50, 3))
    >>> similarity = cka(net, torch.rand(16, 1, 5, 5), group="C4", progress=False)
    >>> round(similarity.sel(layer="latent", element="e").item(), 9)
    1.0
    """
    settings = _options(group, options)
    elements = settings.action.group.elements
    products: dict[Layer, _Products] = {}

    def take(layer: Layer, place: Place, given: Tensor) -> None:
        z = _finite(place.read(layer, given))
        vectors = z.mean(1, dtype=torch.float64) if features is None else features(z).double()
        if vectors.dim() != 2 or len(vectors) != len(z):
            raise TypeError(
                f"features must give a vector for each of {len(z)} images, (b, d), got {tuple(vectors.shape)}"
            )
        if vectors.shape[1] > MOST_FEATURES:
            count = f"{vectors.shape[1]:,} features"
            raise Undefined(f"it has {count}, and matrices of {MOST_FEATURES:,} are kept; pass features= to pool them")
        if layer not in products:
            products[layer] = _Products(len(elements), vectors)
        products[layer].take(place, vectors.unflatten(0, (len(place.elements), -1)))

    reasons, rows, _ = _see(model, images, settings, take, progress=progress)
    values = np.full((len(reasons), len(elements)), np.nan)
    for position, layer in enumerate(reasons):
        if not reasons[layer]:
            values[position] = products[layer].result().cpu()
            if np.isnan(values[position]).any():
                reasons[layer] = "the features of all x, or of all gx, are the same"
    return xr.DataArray(
        values,
        dims=("layer", "element"),
        coords={**_layer_coords(reasons), "element": list(elements)},
        name="cka",
        attrs={
            "long_name": "linear CKA of f(x) and f(gx)",
            "units": "1",
            "source": "Kornblith et al. 2019, arXiv 1905.00414",
            "samples": len(rows),
        },
    )


class _Products:
    """Σy, Σyyᵀ and Σxyᵀ of the features y of gx and x of x, less those of the first image under the same element."""

    def __init__(self, order: int, like: Tensor) -> None:
        d = like.shape[-1]
        self.n = 0
        self.of_first = like.new_zeros(order, 1, d)
        self.totals = like.new_zeros(order, d, 1)
        self.own = like.new_zeros(order, d, d)
        self.cross = like.new_zeros(order, d, d)

    def take(self, place: Place, vectors: Tensor) -> None:
        """Take the features of some images, (g, b, d)."""
        fresh = slice(place.elements[place.fresh], place.elements[-1] + 1)
        if not self.n:
            self.of_first[fresh] = vectors[place.fresh :, :1]
        x = vectors[:1] - self.of_first[:1]
        y = vectors[place.fresh :] - self.of_first[fresh]
        self.totals[fresh] += y.sum(1)[..., None]
        self.own[fresh].baddbmm_(y.mT, y)
        self.cross[fresh].baddbmm_(x.mT.expand(len(y), -1, -1), y)
        if fresh.stop == len(self.own):
            self.n += len(y[0])

    def result(self) -> Tensor:
        """The CKA of every element, (g,)."""
        own = self.own - self.totals @ self.totals.mT / self.n
        cross = self.cross - self.totals[:1] @ self.totals.mT / self.n
        lengths = own.norm(dim=(1, 2))
        return cross.norm(dim=(1, 2)) ** 2 / (lengths[0] * lengths)


def lie_derivative(
    model: nn.Module, images: Any, *, moves: Sequence[str] = MOVES, progress: bool = True, **options: Any
) -> xr.Dataset:
    """Local equivariance error ‖L f(x)‖² / dim, L f = d/dt T₋ₜ f(Tₜx) at t = 0 (Gruver et al. 2022, arXiv 2210.02984).

    How much f, the network up to a layer, is off for a move so small that none of it is a matter of the group: 0 for an
    equivariant f, without a bound above. The target moves as its positions do, so that vectors and the output do not:
    there L f is how fast f changes.

    A copy of each image for each move carries the exact derivatives through all layers (forward-mode differentiation).
    Images and maps are interpolated bilinearly and the derivative taken from both sides, lie-deriv's own from one side.
    Translations roll, by parts of the height or width; rotations take what is beyond the edge from it, in radians.

    Parameters
    ----------
    model, images, progress
        As in `measure`; the model's operations need forward derivatives, as nearly all of torch have.
    moves : sequence of str
        Some of "rotate", "slide" (downwards) and "slide across".
    **options
        As in `normalised_variance`.

    Returns
    -------
    Dataset (move, layer, sample)
        `lee` and `power`, the mean square of f(x), against which it may be held; with the coordinates `depth` and
        `nan_reason`. The last layer is `output`, class probabilities where the model gives scores.

    Raises
    ------
    ValueError
        As `measure`; or a move is unknown, or images to rotate are not square.
    NotImplementedError
        An operation of the model has no forward derivative; torch names it.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), nn.AdaptiveAvgPool2d(1))
    >>> found = lie_derivative(net, torch.rand(4, 1, 8, 8), layers="all", progress=False)
    >>> error = found.lee.sel(layer="0").mean("sample")
    >>> bool(error.sel(move="slide") < 1e-9), bool(error.sel(move="rotate") > 1e-3)
    (True, True)
    """
    moves = [moves] if isinstance(moves, str) else list(moves)
    if not moves:
        raise ValueError(f"there is no move; name some of {', '.join(MOVES)}")
    for move in moves:
        if move not in MOVES:
            raise ValueError(unknown("move", move, MOVES))
    settings = _options("C1", options)
    precision = guard.precision_of(guard.unwrapped(model), settings.precision)
    if precision in guard.HALF:
        raise ValueError(f"derivatives need float32 or float64, got precision {precision!r}; take 'float32'")
    of_batches: dict[Layer, list[Tensor]] = defaultdict(list)

    def take(layer: Layer, place: Place, given: Tensor) -> None:
        if 0 in layer.grid:
            raise Undefined(layer.reason)
        z = place.read(layer, given)
        if layer.role == "output" and layer.output is not None and layer.output.kind == "scores":
            z = probabilities(z)
        values, slopes = forward_ad.unpack_dual(z.unflatten(0, (-1, len(moves))))
        slopes = torch.zeros_like(values) if slopes is None else slopes
        errors = []
        for k, move in enumerate(moves):
            of_target = _slope(move, values[:, k].double().unflatten(1, layer.grid)).flatten(1, 2)
            errors.append((slopes[:, k].double() - of_target).square().mean((1, 2)))
        powers = values.double().square().mean((2, 3)).T
        of_batches[layer].append(torch.stack([torch.stack(errors), powers]).cpu())

    reasons, rows, ids = _see(model, images, settings, take, moves=moves, progress=progress)
    values = np.full((2, len(moves), len(reasons), len(ids)), np.nan)
    for position, layer in enumerate(reasons):
        if not reasons[layer]:
            found = torch.cat(of_batches[layer], -1)
            found[~found.isfinite()] = torch.nan
            values[:, :, position, rows] = found
            without = int(found[0].isnan().any(0).sum())
            if without:
                reasons[layer] = f"no finite derivative for {without} of {len(ids)} images"
    dims = ("move", "layer", "sample")
    return xr.Dataset(
        {
            "lee": (dims, values[0], {"long_name": "local equivariance error"}),
            "power": (dims, values[1], {"long_name": "mean square of f(x)"}),
        },
        {"move": moves, "sample": ids, **_layer_coords(reasons)},
        {"source": "Gruver et al. 2022, arXiv 2210.02984"},
    )


def _slope(move: str, z: Tensor) -> Tensor:
    """d/dt Tₜz at t = 0 of maps z (b, h, w, C), Tₜ interpolating bilinearly; the mean of the slopes from both sides."""
    height, width = z.shape[1:3]
    if move == "slide":
        return (z.roll(1, 1) - z.roll(-1, 1)) * (height / 2)
    if move == "slide across":
        return (z.roll(1, 2) - z.roll(-1, 2)) * (width / 2)
    if height != width:
        raise Undefined(f"rotations need square images, got {height}×{width}; centre-crop or pad first")
    places = torch.arange(height, device=z.device)
    next_places = (places + 1).clamp(max=height - 1)
    places_before = (places - 1).clamp(min=0)
    along_rows = (z[:, next_places] - z[:, places_before]) / 2
    along_columns = (z[:, :, next_places] - z[:, :, places_before]) / 2
    # about the middle; what turns counter-clockwise comes from its clockwise neighbour
    off_middle = (places - (height - 1) / 2).to(z)
    return along_rows * off_middle[None, None, :, None] - along_columns * off_middle[None, :, None, None]


@contextmanager
def _moving(images: Tensor, moves: Sequence[str]) -> Iterator[Tensor]:
    """Within the block copies of each image, one after the other, carry its derivatives along the moves."""
    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        # attention takes the ways that have a derivative
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        # torch's own, of the file in which it keeps derivatives
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
        stack.enter_context(forward_ad.dual_level())
        slopes = torch.stack([_slope(move, images.movedim(1, -1)).movedim(-1, 1) for move in moves], dim=1)
        yield forward_ad.make_dual(images.repeat_interleave(len(moves), dim=0), slopes.flatten(0, 1))


def _options(group: str | Group | Action, options: dict[str, Any]) -> Options:
    for name in options:
        if name not in OPTIONS:
            raise TypeError(unknown("option", name, OPTIONS))
    return Options(group, **options)


def _see(
    model: nn.Module,
    images: Any,
    settings: Options,
    take: Callable[[Layer, Place, Tensor], None],
    *,
    moves: Sequence[str] = (),
    progress: bool,
) -> tuple[dict[Layer, str], list[int], list]:
    """Show what every layer gives whose images are known: `take(layer, forward pass, output)` runs inside the hook.

    `take` raises Undefined where a layer has no value, and is not asked for it again. With `moves` copies of each image
    carry its derivatives along these. Returns all layers with the reason why there is no value (empty where there is
    one), the rows of the images that could be read, in that order, and the ids of all images by row.
    """
    rows: list[int] = []
    ids: dict[int, Any] = {}
    flaws: list[str] = []
    ran: set[Layer] = set()
    name = printable(type(guard.unwrapped(model)).__name__)
    stream = samples.open_stream(images, seed=settings.seed)
    with run.prepared(guard.unwrapped(model), stream, settings) as ready:
        forward_pass = ready.forward
        warn_of_silent_blocks(ready.found.silent_blocks)
        if first_noisy_module(forward_pass.model, ready.example, forward_pass.call) is not None:
            warn_of_noise(forward_pass.model, ready, name)
        layers = [layer for layer in ready.found.layers if layer.batch is not None]
        reasons = {layer: "" if layer in layers else layer.reason for layer in ready.found.layers}

        def on_layer(layer: Layer, place: Place, given: Tensor) -> None:
            ran.add(layer)
            if not reasons[layer]:
                try:
                    take(layer, place, given)
                except Undefined as why:
                    reasons[layer] = str(why)

        def readable() -> Iterator[Tensor]:
            for sample in ready.stream:
                ids[sample.row] = sample.id
                if sample.flaw:
                    flaws.append(sample.flaw)
                else:
                    rows.append(sample.row)
                    yield sample.image
                shown.update()

        unread = readable()
        shown = bar(ready.stream.length, name, "image", show=progress, leave=False)
        with shown, run.watched(ready, on_layer, layers=layers) as forward:
            while batch := list(islice(unread, ready.batch_size)):
                whole = torch.stack(batch).to(forward_pass.device, forward_pass.dtype)
                with _moving(whole, moves) if moves else nullcontext(whole) as copies:
                    each = len(moves) or 1
                    chains = [range(start, start + each) for start in range(0, len(copies), each)]
                    nobody = torch.zeros(len(copies), dtype=torch.int64)
                    for place in run.places(chains, ready.order, ready.batch_size, nobody):
                        ran.clear()
                        forward(place, copies)
                        for layer in set(layers) - ran:
                            reasons[layer] = reasons[layer] or ABSENT
    if flaws:
        warnings.warn(f"{len(flaws)} of {len(ids)} images could not be read: {'; '.join(flaws[:3])}", stacklevel=3)
    if len(rows) < 2 and not moves:
        raise ValueError(f"a statistic over samples needs 2 images that can be read, got {len(rows)}; pass more")
    return reasons, rows, [ids[row] for row in sorted(ids)]


def _finite(z: Tensor) -> Tensor:
    """What a layer gave in a forward pass, images first; Undefined where it is not finite for some of them."""
    infinite = len(z) - int(z.isfinite().flatten(1).all(1).sum())
    if infinite:
        raise Undefined(f"its output is not finite for {infinite} of {len(z)} images of a forward pass")
    return z


def _layer_coords(reasons: dict[Layer, str]) -> dict[str, Any]:
    return {
        "layer": np.array([layer.name for layer in reasons], dtype=object),
        "depth": ("layer", [layer.depth for layer in reasons]),
        "nan_reason": ("layer", np.array(list(reasons.values()), dtype=object)),
    }
