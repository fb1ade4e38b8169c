"""What others report about invariance and equivariance, by the same layers, layouts and actions as G-EED.

Of what `measure` recorded: `prediction_consistency`, `effective_invariance` and `equivariance_psnr`. The others take a pass of
their own, since they are statistics over the samples (`normalised_variance`, `cka`) or derivatives (`lie_derivative`).
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
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
from eedkit.probe.layers import Layer, first_noisy_module
from eedkit.probe.measure import Options, warn_of_noise, warn_of_silent_blocks
from eedkit.probe.metrics import probabilities
from eedkit.progress import bar
from eedkit.results import schema
from eedkit.theory.actions import Action
from eedkit.theory.groups import Group

MOVES = ("rotate", "slide", "slide across")
"""The one-parameter groups of `lie_derivative`: rotations counter-clockwise, translations downwards and to the right."""
OPTIONS = ("layers", "head", "layouts", "output", "call", "batch_size", "device", "precision", "seed")
"""What those that take a pass of their own take from `measure`."""
MOST_FEATURES = 4096
"""Features of a layer up to which `cka` keeps their matrices."""


def prediction_consistency(ds: xr.Dataset) -> xr.DataArray:
    """Whether argmax f(gx) = argmax f(x), 1 or 0; needs no labels (Deng et al. 2022, arXiv 2207.07065).

    The baseline for any measure that predicts accuracy on moved images.

    Parameters
    ----------
    ds : Dataset
        Of `measure`, with predictions, of the identity and of another element.

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

    p̂ is the probability of the prediction. 0 to 1: 1 where both predictions are the same and certain. So it falls with the
    confidence too: an exactly invariant model of k classes has at least 1/k. Takes and gives what `prediction_consistency`
    does; the paper reports its mean.

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
    layer's maps. ∞ where f is exactly equivariant, and the larger the better. Two things differ from theirs: shifts roll, so
    that no border is left out, and rotations interpolate bilinearly within the inscribed circle, without a low-pass filter.

    Parameters
    ----------
    ds : Dataset
        Of `measure(metrics=["channelwise_rms"])`.
    peak : float, or None
        The largest difference that two values can have. None: the root mean square of f(x), as in a signal-to-noise ratio
        *[ours]*, for maps that have no such bound.

    Returns
    -------
    DataArray (model, layer)
        From the mean square over samples and every element but the identity; NaN, with the attribute `nan_reason`, where some
        other element moves nothing, since `channelwise_rms` then compares with a mean over these.

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
    mixes = moved.channelwise_rms_kernel_order > 1
    return (
        decibels.where(~mixes)
        .rename("equivariance_psnr")
        .assign_attrs(
            long_name="equivariance",
            units="dB",
            source="Karras et al. 2021, arXiv 2106.12423",
            nan_reason="where an element moves nothing, f̂(x) is not f(x)" if mixes.any() else "",
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
    1.2.11 variance means standard deviation, and nothing moves the units back. Holds three maps of each layer for each element,
    in float64.

    Parameters
    ----------
    model, images, group, progress
        As in `measure`.
    **options
        `layers`, `head`, `layouts`, `output`, `call`, `batch_size`, `device`, `precision` and `seed` of `measure`.

    Returns
    -------
    dict from layer to Dataset (row, column, channel)
        `transformation` and `sample`, the two deviations, and `normalised`, their ratio: ∞ where a unit changes only as images
        move, NaN where it never changes (tmeasures gives 1). The attribute `nan_reason` of `normalised` says why. Rows number
        the positions where it is not known how these lie.

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
    spreads: dict[str, _Spread] = {}

    def take(layer: Layer, orbit: Tensor, _rows: list[int]) -> None:
        if layer.name not in spreads:
            spreads[layer.name] = _Spread(orbit)
        spreads[layer.name].take(orbit)

    seen = _see(model, images, settings, take, progress=progress)
    seen.refuse_few()
    found = {}
    for layer in seen.layers:
        reason = seen.reasons.get(layer.name, "")
        over_elements = over_samples = torch.full((*layer.grid, layer.channels), torch.nan, dtype=torch.float64)
        if not reason:
            shape = (-1, 1, layer.channels) if 0 in layer.grid else over_samples.shape
            over_elements, over_samples = (part.reshape(shape).cpu() for part in spreads[layer.name].result())
        never_change = int((over_samples == 0).logical_and(over_elements == 0).sum())
        if never_change:
            reason = f"{never_change} of {over_samples.numel()} units never change"
        attrs = {"long_name": "normalised variance", "units": "1", "nan_reason": reason, "samples": seen.n}
        dims = ("row", "column", "channel")
        about = {"source": "Quiroga et al. 2023, arXiv 2310.17404; tmeasures 1.2.11"}
        found[layer.name] = xr.Dataset(
            {
                "transformation": (dims, over_elements.numpy(), {"long_name": "standard deviation over elements"}),
                "sample": (dims, over_samples.numpy(), {"long_name": "standard deviation over samples"}),
                "normalised": (dims, (over_elements / over_samples).numpy(), attrs),
            },
            attrs={**about, "group": settings.action.group.name},
        )
    return found


class _Spread:
    """The deviations of every unit over the elements for each image, and over the images under each element.

    Sums are of differences from f(x), and from what the first image gave, so that a unit that never changes has exactly 0.
    """

    def __init__(self, orbit: Tensor) -> None:
        self.n = 0
        self.of_first = orbit[:, :1].to(torch.float64, copy=True)
        self.over_elements = torch.zeros_like(self.of_first[0, 0])
        self.over_samples = torch.stack([torch.zeros_like(self.of_first[:, 0])] * 2)

    def take(self, orbit: Tensor) -> None:
        """Take f(gx) of some images, (g, b, P, C)."""
        orbit = orbit.double()
        self.n += orbit.shape[1]
        self.over_elements += _deviation(_powers(orbit - orbit[:1]).sum(1), len(orbit)).sum(0)
        self.over_samples += _powers(orbit - self.of_first).sum(2)

    def result(self) -> tuple[Tensor, Tensor]:
        """The mean over images of the deviation over elements, and the mean over elements of that over images: (P, C)."""
        return self.over_elements / self.n, _deviation(self.over_samples, self.n).mean(0)


def _powers(difference: Tensor) -> Tensor:
    return torch.stack([difference, difference.square()])


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
    nothing changes, as G-EED does. With fewer samples than features it is too large; compare it at one number of samples. Holds
    two matrices (C, C) of each layer for each element, in float64, and no features but those of a forward pass.

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
    products: dict[str, _Products] = {}

    def take(layer: Layer, orbit: Tensor, _rows: list[int]) -> None:
        z = orbit.flatten(0, 1)
        vectors = z.mean(1, dtype=torch.float64) if features is None else features(z).double()
        if vectors.dim() != 2:
            raise TypeError(f"features must give a vector for each image, (b, d), got {tuple(vectors.shape)}")
        if vectors.shape[1] > MOST_FEATURES:
            raise Undefined(
                f"it has {vectors.shape[1]:,} features, whose matrices are kept up to {MOST_FEATURES:,}; pass features= to pool them"
            )
        vectors = vectors.unflatten(0, orbit.shape[:2])
        if layer.name not in products:
            products[layer.name] = _Products(vectors)
        products[layer.name].take(vectors)

    seen = _see(model, images, settings, take, progress=progress)
    seen.refuse_few()
    values = np.full((len(seen.layers), len(elements)), np.nan)
    for row, layer in enumerate(seen.layers):
        if layer.name not in seen.reasons:
            values[row] = products[layer.name].result().cpu()
            if np.isnan(values[row]).any():
                seen.reasons[layer.name] = "the features of all x, or of all gx, are the same"
    attrs = {"long_name": "linear CKA of f(x) and f(gx)", "units": "1", "samples": seen.n}
    return xr.DataArray(
        values,
        dims=("layer", "element"),
        coords={**seen.layer_coords(), "element": list(elements)},
        name="cka",
        attrs={**attrs, "source": "Kornblith et al. 2019, arXiv 1905.00414"},
    )


class _Products:
    """Σy, Σyyᵀ and Σxyᵀ of the features y of gx and x of x, less those of the first image under the same element."""

    def __init__(self, vectors: Tensor) -> None:
        order, _, d = vectors.shape
        self.n = 0
        self.of_first = vectors[:, :1].clone()
        self.totals = vectors.new_zeros(order, d, 1)
        self.own = vectors.new_zeros(order, d, d)
        self.cross = vectors.new_zeros(order, d, d)

    def take(self, vectors: Tensor) -> None:
        """Take the features of some images, (g, b, d)."""
        y = vectors - self.of_first
        self.n += y.shape[1]
        self.totals += y.sum(1)[..., None]
        self.own += y.mT @ y
        self.cross += y[:1].mT @ y

    def result(self) -> Tensor:
        """The CKA of every element, (g,)."""
        own = self.own - self.totals @ self.totals.mT / self.n
        cross = self.cross - self.totals[:1] @ self.totals.mT / self.n
        sizes = own.norm(dim=(1, 2))
        return cross.norm(dim=(1, 2)) ** 2 / (sizes[0] * sizes)


def lie_derivative(
    model: nn.Module, images: Any, *, moves: Sequence[str] = MOVES, progress: bool = True, **options: Any
) -> xr.Dataset:
    """Local equivariance error ‖L f(x)‖² / dim, L f = d/dt T₋ₜ f(Tₜx) at t = 0 (Gruver et al. 2022, arXiv 2210.02984).

    How much f is off for a move so small that none of it is a matter of the group: 0 for an equivariant f, without a bound
    above. At each layer the target moves as its positions do, so that vectors and the output do not: there L f is how fast f
    changes. f is the network up to the layer, and not the layer alone.

    One forward pass gives the exact derivatives of all layers along all moves (forward-mode differentiation). Images and maps
    are interpolated bilinearly and the derivative taken from both sides, so that dT is the central difference between pixels;
    lie-deriv's own takes that from one side. Translations roll, by parts of the height or width; rotations take what is beyond
    the edge from the edge, in radians.

    Parameters
    ----------
    model, images, progress
        As in `measure`; the model's operations need forward derivatives, as nearly all of torch have.
    moves : sequence of str
        Some of "rotate" (of square images), "slide" (downwards) and "slide across".
    **options
        As in `normalised_variance`; no half precision.

    Returns
    -------
    Dataset (move, layer, sample)
        `lee` and `power`, the mean square of f(x), against which it may be held; with the coordinates `depth` and `nan_reason`.
        The last layer is `output`, class probabilities where the model gives scores.

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
    settings = _options("C1", options)
    precision = guard.precision_of(model, settings.precision)
    if precision in guard.HALF:
        raise ValueError(f"half precisions have no forward derivatives, got {precision!r}; take 'float32'")
    found: dict[str, dict[int, np.ndarray]] = {}

    def take(layer: Layer, moved: Tensor, rows: list[int]) -> None:
        if 0 in layer.grid:
            raise Undefined(layer.reason)
        if layer.role == "output" and layer.output is not None and layer.output.kind == "scores":
            moved = probabilities(moved)
        value, slope = forward_ad.unpack_dual(moved)
        slope = torch.zeros_like(value) if slope is None else slope
        maps = value[0].double().unflatten(1, layer.grid)
        of_target = torch.stack([_slope(move, maps).flatten(1, 2) for move in moves])
        errors = (slope.double() - of_target).square().mean((2, 3))
        powers = value.double().square().mean((2, 3))
        pairs = torch.stack([errors, powers]).movedim(-1, 0).cpu().numpy()
        found.setdefault(layer.name, {}).update(zip(rows, pairs, strict=True))

    seen = _see(model, images, settings, take, moves=moves, progress=progress)
    n = len(seen.ids)
    values = np.full((2, len(moves), len(seen.layers), n), np.nan)
    for position, layer in enumerate(seen.layers):
        if layer.name not in seen.reasons:
            for row, pair in found[layer.name].items():
                values[:, :, position, row] = pair
            without = int(np.isnan(values[0, :, position]).any(axis=0).sum()) - len(seen.flaws)
            if without:
                seen.reasons[layer.name] = f"no finite derivative for {without} of {n} images"
    dims = ("move", "layer", "sample")
    return xr.Dataset(
        {
            "lee": (dims, values[0], {"long_name": "local equivariance error"}),
            "power": (dims, values[1], {"long_name": "mean square of f(x)"}),
        },
        {"move": moves, "sample": [seen.ids[row] for row in range(n)], **seen.layer_coords()},
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
    """What a pass has shown: the layers, why some have no value, and by row the ids of all images, read or not."""

    def __init__(self, layers: list[Layer]) -> None:
        self.layers = layers
        self.reasons = {layer.name: layer.reason for layer in layers if layer.layout is None}
        self.ids: dict[int, Any] = {}
        self.flaws: list[str] = []

    @property
    def n(self) -> int:
        """How many images could be read."""
        return len(self.ids) - len(self.flaws)

    def refuse_few(self) -> None:
        """ValueError for fewer images than a statistic over samples needs."""
        if self.n < 2:
            raise ValueError(f"a statistic over samples needs 2 images that can be read, got {self.n}; pass more")

    def layer_coords(self) -> dict[str, Any]:
        """Coordinates on the dimension `layer`."""
        reasons = [self.reasons.get(layer.name, "") for layer in self.layers]
        return {
            "layer": np.array([layer.name for layer in self.layers], dtype=object),
            "depth": ("layer", [layer.depth for layer in self.layers]),
            "nan_reason": ("layer", np.array(reasons, dtype=object)),
        }


def _options(group: str | Group | Action, options: dict[str, Any]) -> Options:
    for name in options:
        if name not in OPTIONS:
            raise TypeError(unknown("option", name, OPTIONS))
    return Options(group, **options)


def _see(
    model: nn.Module,
    images: Any,
    options: Options,
    take: Callable[[Layer, Tensor, list[int]], None],
    *,
    moves: Sequence[str] = (),
    progress: bool,
) -> _Seen:
    """Show what every layer gives for all images that can be read: `take(layer, orbits (g, b, P, C), rows of the images)`.

    `take` runs inside the hook. Undefined says why the layer has no value, and it is not asked again. With `moves` the place of
    the elements is taken by copies of x that carry the slopes along each; then an output that is not finite costs no other image.
    """
    model = guard.unwrapped(model)
    name = printable(type(model).__name__)
    stream = samples.open_stream(images, seed=options.seed)
    with run.prepared(model, stream, options) as ready:
        warn_of_silent_blocks(ready.found.silent_blocks)
        if first_noisy_module(model, ready.example, ready.forward.call) is not None:
            warn_of_noise(model, ready, name)
        seen = _Seen(ready.found.layers)
        width = len(moves) or ready.order
        rows: list[int] = []
        ran: set[str] = set()

        def on_layer(layer: Layer, _place: Place, given: Tensor) -> None:
            ran.add(layer.name)
            if layer.name in seen.reasons:
                return
            try:
                z = layer.read(given)
                n = width * len(rows)
                if len(z) != n:
                    raise Undefined(f"its output holds {len(z)} images in a forward pass of {n}")
                finite = int(z.isfinite().flatten(1).all(dim=1).sum())
                if finite < n and not moves:
                    raise Undefined(f"its output is not finite for {n - finite} of {n} images of a forward pass")
                z = z.float() if z.dtype in guard.HALF.values() else z
                take(layer, z.unflatten(0, (width, len(rows))), rows)
            except Undefined as error:
                seen.reasons[layer.name] = str(error)

        shown = bar(stream.length, name, "image", show=progress, leave=False)
        with shown, run.watched(ready, on_layer) as forward:
            for batch in stream.batches(max(ready.batch_size // width, 1)):
                readable = [sample for sample in batch.samples if not sample.flaw]
                seen.ids |= {sample.row: sample.id for sample in batch.samples}
                seen.flaws += [sample.flaw for sample in batch.samples if sample.flaw]
                rows = [sample.row for sample in readable]
                ran.clear()
                if readable:
                    together = torch.stack([sample.image for sample in readable])
                    _forward_pass(forward, ready, together, moves)
                    for layer in seen.layers:
                        if layer.name not in ran:
                            seen.reasons.setdefault(layer.name, ABSENT)
                shown.update(len(batch.samples))
    if seen.flaws:
        warnings.warn(
            f"{len(seen.flaws)} of {len(seen.ids)} images could not be read: {'; '.join(seen.flaws[:3])}", stacklevel=3
        )
    return seen


def _forward_pass(forward: Callable[..., Any], ready: run.Ready, together: Tensor, moves: Sequence[str]) -> None:
    """One forward pass on the orbits of some images, or on copies of them that carry the slopes along moves."""
    together = together.to(ready.forward.device, ready.forward.dtype)
    with _forward_derivatives() if moves else nullcontext():
        if moves:
            slopes = [_slope(move, together.movedim(1, -1)).movedim(-1, 1) for move in moves]
            together = forward_ad.make_dual(torch.cat([together] * len(moves)), torch.cat(slopes))
        nobody = torch.empty(0, dtype=torch.int64)
        forward(Place(list(range(ready.order)), 0, slice(0, len(together)), nobody, nobody), together)
