"""What others report about invariance and equivariance, by the same taps, layouts and actions as G-EED.

Of what `measure` recorded: `prediction_consistency`, `effective_invariance` and `equivariance_psnr`. The others take a pass of
their own, since they are statistics over the samples (`normalised_variance`, `cka`) or derivatives (`lie_derivative`).
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from eedkit.errors import printable, unknown
from eedkit.probe import samples
from eedkit.probe.accumulate import images_in_cache
from eedkit.probe.layers import Found, Layer, first_noisy_module, tap
from eedkit.probe.measure import (
    ABSENT,
    HALF,
    Forward,
    Options,
    Table,
    refuse_changed,
    traced,
    unwrapped,
    warn_of_noise,
    warn_of_silent_blocks,
    weight_versions,
)
from eedkit.probe.metrics import probabilities
from eedkit.progress import bar
from eedkit.results import schema
from eedkit.theory import actions
from eedkit.theory.actions import Action
from eedkit.theory.groups import Group

MOVES = ("rotate", "slide", "slide across")
"""The one-parameter groups of `lie_derivative`: rotations counter-clockwise, translations downwards and to the right."""
OPTIONS = ("layers", "head", "layouts", "output", "batch_size", "device", "precision", "seed")
"""What those that take a pass of their own take from `measure`."""
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
        From the mean square over samples and every element but the identity; NaN, with the attribute `nan_reason`, where some
        element moves nothing, since the measure then compares with a mean over these.

    Raises
    ------
    ValueError
        `channelwise_rms` was not measured, or is there without `channelwise_rms_norm`; no image was moved; or the peak is not
        above 0.

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
    is_faithful = ds.kernel_order == 1
    reason = "" if is_faithful.all() else "where an element moves nothing, f̂(x) is not f(x)"
    return (
        decibels.where(is_faithful)
        .rename("equivariance_psnr")
        .assign_attrs(
            long_name="equivariance",
            units="dB",
            source="Karras et al. 2021, arXiv 2106.12423",
            nan_reason=reason,
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
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), nn.AdaptiveAvgPool2d(1))
    >>> found = normalised_variance(net, torch.rand(8, 1, 5, 5), group="C4", layers="all", progress=False)
    >>> dict(found["0"].sizes), bool((found["1"].normalised < 1e-3).all())
    ({'row': 5, 'column': 5, 'channel': 2}, True)
    """
    settings = _options(actions.on_images(group), options)
    order = settings.action.group.order
    if order < 2:
        raise ValueError(f"a deviation over elements needs 2 or more, got {order}; choose a larger group")
    spreads: dict[Layer, _Spread] = {}

    def take(layer: Layer, g: int, z: Tensor, _rows: list[int]) -> None:
        if layer not in spreads:
            spreads[layer] = _Spread(order)
        spreads[layer].take(g, z)

    seen = _see(model, images, settings, order, take, progress=progress)
    _refuse_few(seen)
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
                "transformation": (dims, over_elements.numpy(), {"long_name": "standard deviation over elements"}),
                "sample": (dims, over_samples.numpy(), {"long_name": "standard deviation over samples"}),
                "normalised": (dims, (over_elements / over_samples).numpy(), attrs),
            },
            attrs={
                "source": "Quiroga et al. 2023, arXiv 2310.17404; tmeasures 1.2.11",
                "group": settings.action.group.name,
            },
        )
    return found


class _Spread:
    """The deviations of every unit over the elements for each image, and over the images under each element.

    Sums are of differences from f(x), and from what the first image gave, so that a unit that never changes has exactly 0.
    """

    def __init__(self, order: int) -> None:
        self.order = order
        self.n = 0
        self.of_x = torch.empty(0)
        self.over_elements = torch.empty(0)
        self.deviations = torch.empty(0)
        self.of_first: list[Tensor] = []
        self.over_samples: list[Tensor] = []

    def take(self, g: int, z: Tensor) -> None:
        """Take f(gx) of a batch, (b, P, C), element by element."""
        if len(self.of_first) == g:
            self.of_first.append(z[0].to(torch.float64, copy=True))
            self.over_samples.append(z.new_zeros(2, *z.shape[1:], dtype=torch.float64))
        if not self.n:
            self.deviations = z.new_zeros(z.shape[1:], dtype=torch.float64)
        if g == 0:
            self.n += len(z)
            if self.of_x.shape != z.shape:
                self.of_x = torch.empty_like(z)
                self.over_elements = z.new_empty(2, *z.shape, dtype=torch.float64)
            self.of_x.copy_(z)
            self.over_elements.zero_()
        images = images_in_cache(z)
        for start in range(0, len(z), images):
            some = slice(start, start + images)
            self._take_some(g, some, z[some].double())

    def _take_some(self, g: int, some: slice, z: Tensor) -> None:
        difference = z - self.of_first[g]
        self.over_samples[g][0] += difference.sum(0)
        self.over_samples[g][1] += difference.square_().sum(0)
        difference = z - self.of_x[some]
        self.over_elements[0, some] += difference
        self.over_elements[1, some] += difference.square_()
        if g == self.order - 1:
            self.deviations += _deviation(self.over_elements[:, some], self.order).sum(0)

    def result(self) -> tuple[Tensor, Tensor]:
        """The mean over images of the deviation over elements, and the mean over elements of that over images: (P, C)."""
        of_elements = [_deviation(sums, self.n) for sums in self.over_samples]
        return self.deviations / self.n, torch.stack(of_elements).mean(0)


def _deviation(sums: Tensor, n: int) -> Tensor:
    """The standard deviation with n − 1, from Σd and Σd²."""
    total, squares = sums
    return ((squares - total.square() / n).clamp_min(0) / (n - 1)).sqrt()


def cka(
    model: nn.Module,
    images: Any,
    *,
    group: str | Group | Action,
    features: Callable[[Tensor], Tensor] | None = None,
    progress: bool = True,
    **options: Any,
) -> xr.DataArray:
    """Linear CKA of X = f(x) and Y = f(gx), ‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖), columns centred (Kornblith et al. 2019, arXiv 1905.00414).

    0 to 1; 1 where f(gx) is f(x) but for a rotation of the features and a factor, whichever these are: it does not ask that
    nothing changes, as G-EED does. With fewer samples than features it is too large; compare it at one number of samples.

    Holds two matrices (C, C) of each layer for each element, in float64, and no features but those of a batch: the memory is
    that for any number of samples.

    Parameters
    ----------
    model, images, group
        As in `measure`.
    features : callable, or None
        A layer's output (b, P, C) -> vectors (b, d), say `probe.metrics.flat`; None: the mean over positions.
    progress : bool
        Show a bar.
    **options
        `layers`, `head`, `layouts`, `output`, `batch_size`, `device`, `precision` and `seed` of `measure`.

    Returns
    -------
    DataArray (layer, element)
        With the coordinates `depth` and `nan_reason`.

    Raises
    ------
    ValueError
        As `measure`; or there are fewer than 2 images.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(50, 3))
    >>> similarity = cka(net, torch.rand(16, 1, 5, 5), group="C4", progress=False)
    >>> round(similarity.sel(layer="latent", element="e").item(), 9)
    1.0
    """
    settings = _options(actions.on_images(group), options)
    elements = settings.action.group.elements
    products: dict[Layer, _Products] = {}

    def take(layer: Layer, g: int, z: Tensor, _rows: list[int]) -> None:
        vectors = z.mean(1, dtype=torch.float64) if features is None else features(z).double()
        if vectors.dim() != 2:
            raise TypeError(f"features must give a vector for each image, (b, d), got {tuple(vectors.shape)}")
        if vectors.shape[1] > MOST_FEATURES:
            raise ValueError(
                f"it has {vectors.shape[1]:,} features, whose matrices are kept up to {MOST_FEATURES:,}; pass features= to pool them"
            )
        if layer not in products:
            products[layer] = _Products()
        products[layer].take(g, vectors)

    seen = _see(model, images, settings, len(elements), take, progress=progress)
    _refuse_few(seen)
    values = np.full((len(seen.layers), len(elements)), np.nan)
    for row, layer in enumerate(seen.layers):
        if layer.name in seen.reasons:
            continue
        values[row] = products[layer].result().cpu()
        if np.isnan(values[row]).any():
            seen.reasons[layer.name] = "the features of all x, or of all gx, are the same"
    return xr.DataArray(
        values,
        dims=("layer", "element"),
        coords={**_layer_coords(seen), "element": list(elements)},
        name="cka",
        attrs={
            "long_name": "linear CKA of f(x) and f(gx)",
            "units": "1",
            "source": "Kornblith et al. 2019, arXiv 1905.00414",
            "samples": seen.n,
        },
    )


class _Products:
    """Σy, Σyyᵀ and Σxyᵀ of the features y of gx and x of x, less those of the first image under the same element."""

    def __init__(self) -> None:
        self.n = 0
        self.of_x = torch.empty(0)
        self.of_first: list[Tensor] = []
        self.totals: list[Tensor] = []
        self.own: list[Tensor] = []
        self.cross: list[Tensor] = []

    def take(self, g: int, vectors: Tensor) -> None:
        """Take the features (b, d) of a batch, element by element."""
        d = vectors.shape[1]
        if len(self.of_first) == g:
            self.of_first.append(vectors[0].clone())
            self.totals.append(vectors.new_zeros(d))
            self.own.append(vectors.new_zeros(d, d))
            self.cross.append(vectors.new_zeros(d, d))
        vectors = vectors - self.of_first[g]
        if g == 0:
            self.n += len(vectors)
            self.of_x = vectors
        self.totals[g] += vectors.sum(0)
        self.own[g].addmm_(vectors.T, vectors)
        self.cross[g].addmm_(self.of_x.T, vectors)

    def result(self) -> Tensor:
        """The CKA of every element, (g,)."""
        of_x = self._centred(self.own[0], 0, 0)
        values = []
        for g in range(len(self.own)):
            of_both = self._centred(self.cross[g], 0, g)
            of_gx = self._centred(self.own[g], g, g)
            values.append(of_both.norm() ** 2 / (of_x.norm() * of_gx.norm()))
        return torch.stack(values)

    def _centred(self, products: Tensor, g: int, h: int) -> Tensor:
        """The products of features less their means."""
        return products - self.totals[g].outer(self.totals[h]) / self.n


def lie_derivative(
    model: nn.Module, images: Any, *, moves: Sequence[str] = MOVES, progress: bool = True, **options: Any
) -> xr.Dataset:
    """Local equivariance error ‖L f(x)‖² / dim, L f = d/dt T₋ₜ f(Tₜx) at t = 0 (Gruver et al. 2022, arXiv 2210.02984).

    How much f is off for a move so small that none of it is a matter of the group: 0 for an equivariant f, without a bound
    above. At each layer the target moves as its positions do, so that vectors and the output do not: there L f is how fast f
    changes. f is the network up to the layer, and not the layer alone.

    One forward pass for each move gives the exact derivatives of all layers together (forward-mode differentiation). Images
    and maps are interpolated bilinearly and the derivative taken from both sides, so that dT is the central difference between
    pixels; lie-deriv's own takes that from one side. Translations roll, by parts of the height or width; rotations take what
    is beyond the edge from the edge, in radians.

    Parameters
    ----------
    model, images
        As in `measure`; its operations need forward derivatives, as nearly all of torch have.
    moves : sequence of str
        Some of "rotate", "slide" (downwards) and "slide across".
    progress : bool
        Show a bar.
    **options
        `layers`, `head`, `layouts`, `output`, `batch_size`, `device`, `precision` and `seed` of `measure`.

    Returns
    -------
    Dataset (move, layer, sample)
        `lee` and `power`, the mean square of f(x), against which it may be held; with the coordinates `depth` and `nan_reason`.
        The last layer is `output`, class probabilities where the model gives scores.

    Raises
    ------
    ValueError
        As `measure`; or a move is unknown, images to rotate are not square, or the precision is a half one.
    NotImplementedError
        An operation of the model has no forward derivative; torch names it.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> found = lie_derivative(net, torch.rand(4, 1, 8, 8), layers="all", progress=False)
    >>> error = found.lee.sel(layer="0").mean("sample")
    >>> bool(error.sel(move="slide") < 1e-9), bool(error.sel(move="rotate") > 1e-3)
    (True, True)
    """
    moves = [moves] if isinstance(moves, str) else list(moves)
    for move in moves:
        if move not in MOVES:
            raise ValueError(unknown("move", move, MOVES))
    settings = _options(actions.spatial("C1"), options)
    if settings.precision in HALF:
        raise ValueError(f"autocast has no forward derivatives, got precision {settings.precision!r}; take 'float32'")
    table = Table(1)

    def forward_with_slopes(forward: Forward, k: int, together: Tensor) -> None:
        together = together.to(forward.device, forward.dtype)
        slopes = _slope(moves[k], together.movedim(1, -1)).movedim(-1, 1)
        with _forward_derivatives():
            forward(0, forward_ad.make_dual(together, slopes))

    def take(layer: Layer, k: int, z: Tensor, rows: list[int]) -> None:
        value, slope = forward_ad.unpack_dual(z)
        slope = torch.zeros_like(value) if slope is None else slope
        of_target = _slope(moves[k], value.double().unflatten(1, layer.grid)).flatten(1, 2)
        errors = (slope.double() - of_target).square().mean((1, 2))
        powers = value.double().square().mean((1, 2))
        table.put(f"{moves[k]} {layer.name}", torch.stack([errors, powers]).cpu().numpy(), rows)

    seen = _see(
        model,
        images,
        settings,
        len(moves),
        take,
        call=forward_with_slopes,
        as_probabilities=True,
        by_image=True,
        progress=progress,
    )
    values = np.full((2, len(moves), len(seen.layers), len(seen.ids)), np.nan)
    found = table.cut(len(seen.ids))
    for row, layer in enumerate(seen.layers):
        if layer.name in seen.reasons:
            continue
        for k, move in enumerate(moves):
            values[:, k, row] = found[f"{move} {layer.name}"]
        without = int(np.isnan(values[0, :, row]).any(axis=0).sum()) - len(seen.flaws)
        if without:
            seen.reasons[layer.name] = f"no finite derivative for {without} of {len(seen.ids)} images"
    dims = ("move", "layer", "sample")
    ids = [seen.ids[row] for row in range(len(seen.ids))]
    return xr.Dataset(
        {
            "lee": (dims, values[0], {"long_name": "local equivariance error"}),
            "power": (dims, values[1], {"long_name": "mean square of f(x)"}),
        },
        {"move": moves, "sample": ids, **_layer_coords(seen)},
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
        raise ValueError(f"rotations need square images, got {height}×{width}; centre-crop or pad first")
    places = torch.arange(height, device=z.device)
    next_places = (places + 1).clamp(max=height - 1)
    places_before = (places - 1).clamp(min=0)
    along_rows = (z[:, next_places] - z[:, places_before]) / 2
    along_columns = (z[:, :, next_places] - z[:, :, places_before]) / 2
    # about the middle; what turns counter-clockwise comes from its clockwise neighbour
    off_middle = (places - (height - 1) / 2).to(z)
    return along_rows * off_middle[None, None, :, None] - along_columns * off_middle[None, :, None, None]


@contextmanager
def _forward_derivatives() -> Iterator[None]:
    """Within the block tensors may carry a derivative through the model; attention takes the ways that have one."""
    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        # torch's own, of the file in which it keeps derivatives
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
        stack.enter_context(forward_ad.dual_level())
        yield


class _Seen:
    """What a pass has shown: the layers, why some have no value, and the images.

    `ids` are by row those of all images, `flaws` say why some could not be read.
    """

    def __init__(self, found: Found) -> None:
        self.layers = found.layers
        self.reasons = {layer.name: layer.reason for layer in found.layers if layer.layout is None}
        self.ids: dict[int, Any] = {}
        self.flaws: list[str] = []

    @property
    def n(self) -> int:
        """How many images could be read."""
        return len(self.ids) - len(self.flaws)


def _options(action: Action, options: dict[str, Any]) -> Options:
    for name in options:
        if name not in OPTIONS:
            raise TypeError(unknown("option", name, OPTIONS))
    return Options(action, **options)


def _see(
    model: nn.Module,
    images: Any,
    options: Options,
    passes: int,
    take: Callable[[Layer, int, Tensor, list[int]], None],
    *,
    call: Callable[[Forward, int, Tensor], Any] = Forward.__call__,
    as_probabilities: bool = False,
    by_image: bool = False,
    progress: bool,
) -> _Seen:
    """Call each batch's forward passes, by default those on gx, and show every layer's output to `take`.

    Parameters
    ----------
    take : callable
        Runs inside the hook: (layer, number of the pass, output (b, P, C), rows of the images). A ValueError is the reason why
        the layer has no value, and is not asked for again.
    call : callable
        (forward pass, number of the pass, images) -> anything.
    as_probabilities : bool
        Whether class scores are shown as probabilities.
    by_image : bool
        Whether every image has a value of its own, so that an output that is not finite costs no other.
    """
    model = unwrapped(model)
    name = printable(type(model).__name__)
    stream = samples.open_stream(images, seed=options.seed)
    with traced(model, stream, options) as ready:
        found = ready.found
        warn_of_silent_blocks(found.silent_blocks)
        if first_noisy_module(model, ready.example) is not None:
            warn_of_noise(model, ready.example, name)
        versions = weight_versions(model)
        seen = _Seen(found)
        tapped = [layer for layer in found.layers if layer.layout]
        k = 0
        rows: list[int] = []
        ran: set[str] = set()

        def on_layer(layer: Layer, given: Tensor) -> None:
            ran.add(layer.name)
            if layer.name in seen.reasons:
                return
            try:
                z = layer.read(given)
                z = z.float() if z.dtype in HALF.values() else z
                if len(z) != len(rows):
                    raise ValueError(f"its output holds {len(z)} images in a forward pass of {len(rows)}")
                finite = int(z.isfinite().flatten(1).all(dim=1).sum())
                if finite < len(z) and not by_image:
                    raise ValueError(f"its output is not finite for {len(z) - finite} of {len(z)} images of a batch")
                if as_probabilities and layer.role == "output" and found.output.kind == "scores":
                    z = probabilities(z)
                with torch.autocast(z.device.type, enabled=False):
                    take(layer, k, z, rows)
            except ValueError as error:
                seen.reasons[layer.name] = str(error)

        shown = bar(stream.length, name, "image", show=progress, leave=False)
        with shown, tap(model, tapped, found.output, on_layer):
            for batch in ready.stream.batches(ready.batch_size):
                readable = [sample for sample in batch.samples if not sample.flaw]
                seen.ids |= {sample.row: sample.id for sample in batch.samples}
                seen.flaws += [sample.flaw for sample in batch.samples if sample.flaw]
                rows = [sample.row for sample in readable]
                for k in range(passes if readable else 0):
                    ran.clear()
                    call(ready.forward, k, torch.stack([sample.image for sample in readable]))
                    for layer in tapped:
                        if layer.name not in ran:
                            seen.reasons.setdefault(layer.name, ABSENT)
                shown.update(len(batch.samples))
        refuse_changed(versions, weight_versions(model), name)
    if seen.flaws:
        warnings.warn(
            f"{len(seen.flaws)} of {len(seen.ids)} images could not be read: {'; '.join(seen.flaws[:3])}", stacklevel=3
        )
    return seen


def _refuse_few(seen: _Seen) -> None:
    if seen.n < 2:
        raise ValueError(f"a statistic over samples needs 2 images that can be read, got {seen.n}; pass more")


def _layer_coords(seen: _Seen) -> dict[str, Any]:
    reasons = [seen.reasons.get(layer.name, "") for layer in seen.layers]
    return {
        "layer": np.array([layer.name for layer in seen.layers], dtype=object),
        "depth": ("layer", [layer.depth for layer in seen.layers]),
        "nan_reason": ("layer", np.array(reasons, dtype=object)),
    }
