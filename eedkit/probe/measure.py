"""measure(): one model, one stream of images -> one labelled Dataset; and the pass itself.

Knows models, streams and who labels, never where models or images come from. Costs |G| forwards of every image.
"""

import hashlib
import math
import pickle
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from itertools import chain, islice
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

import eedkit
from eedkit.errors import printable, unknown
from eedkit.machine import processor_name
from eedkit.probe import accumulate, dataset, matching, samples
from eedkit.probe import metrics as family
from eedkit.probe.accumulate import LayerPass, Place
from eedkit.probe.dataset import Measured
from eedkit.probe.layers import Found, Layer, Scripted, find_layers, first_noisy_module, tap
from eedkit.probe.layouts import Layout
from eedkit.probe.metrics import Metric
from eedkit.probe.samples import Batch, Sample, Stream
from eedkit.progress import bar
from eedkit.theory import actions, deviation
from eedkit.theory.actions import Action
from eedkit.theory.groups import Group

VERSION = 2
"""To be raised when the same arguments would give other values: a study does not mix them."""

HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
DTYPES = {"float32": torch.float32, "float64": torch.float64, **HALF}
REPEATED = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""How far, of its largest value, an output may be off when the same images come in another batch."""
STANDARD = ("channelwise", "latent", "softmax")
"""The paper's metrics: eq. 5, eq. 6 and eq. 4 on class probabilities."""
ABSENT = "it does not run in every forward pass"


@dataclass(frozen=True)
class Options:
    """How to measure: the arguments of `measure` but for the model and the images, checked when the value is made.

    Names of a group and of metrics may be given as well; they become values.
    """

    group: Action
    metrics: Sequence[Metric] = field(default_factory=lambda: family.resolve(STANDARD))
    layers: str | Sequence[str] = "blocks"
    head: str | None = None
    layouts: Mapping[str, str] = field(default_factory=dict)
    output: str | int = "auto"
    batch_size: int | None = None
    device: str | torch.device = "auto"
    precision: str = "float32"
    null: bool | str = True
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "group", actions.on_images(self.group))
        object.__setattr__(self, "metrics", family.resolve(self.metrics))
        object.__setattr__(self, "layouts", dict(self.layouts or {}))
        if self.precision not in DTYPES:
            raise ValueError(unknown("precision", self.precision, DTYPES))
        if self.null not in (True, False, samples.WITHIN_CLASS):
            raise ValueError(f"null must be True, False or {samples.WITHIN_CLASS!r}, got {self.null!r}")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(
                f"batch_size must be at least 1, or None to choose one by the images' size, got {self.batch_size}"
            )

    @property
    def action(self) -> Action:
        """How the group acts on images."""
        return self.group

    @property
    def torch_device(self) -> torch.device:
        """The device, "auto" being CUDA where there is one."""
        if str(self.device) == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        device = torch.device(self.device)
        if device.type == "mps":
            raise ValueError("device 'mps' has no float64, in which sums are taken; pass device='cpu'")
        return device


def measure(
    model: nn.Module,
    images: Any,
    *,
    group: str | Group | Action,
    metrics: Sequence[str | Metric] = STANDARD,
    layers: str | Sequence[str] = "blocks",
    head: str | None = None,
    layouts: Mapping[str, str] | None = None,
    output: str | int = "auto",
    labels: Any = None,
    name: str | None = None,
    batch_size: int | None = None,
    device: str | torch.device = "auto",
    precision: str = "float32",
    null: bool | str = True,
    seed: int = 0,
    progress: bool = True,
) -> xr.Dataset:
    """m(f(gx), g f̂(x)) for every layer, group element and sample (Kvinge et al. 2022, the integrand of eq. 4).

    Averaging over `element` and `sample` gives the G-EED; `summarise` does so, with intervals and calibration. One pass over
    the images with |G| forwards per batch, and before it, for a matched metric, one over at most 512 of them; the model is
    left exactly as found.

    Parameters
    ----------
    model : nn.Module
        Any module on images (b, C, H, W); compiled and data-parallel ones are measured as the module inside.
    images : tensor, array, DataLoader, or torch or Hugging Face data set
        (n, C, H, W), or items (C, H, W); uint8 and PIL images are scaled to [0, 1].
    group : str, Group or Action
        "C4", "D4", "flip", "shift4", "C8", "rgb", "SO(2)?n=16", … (`ek.groups.parse`); a `Group`; or a custom `Action` on
        (…, H, W).
    metrics : sequence of str or Metric
        Names in `METRICS`, or `Metric` values.
    layers : str or sequence of str
        "blocks" (repeated blocks; a network without such: its composite children, or else its leaf modules), "all" (every
        module but containers), module paths, or a regular expression that the whole name must match.
    head : str, or None
        Path of the classifier, whose input is the latent vector. None: the module whose output is the model's output; where
        there is none, the features are the model's output.
    layouts : mapping from str to str, or None
        How to read layers where experiment leaves it open: {"blocks.3": "b 1+14x14 c"}; `ek.layers` shows what was found.
    output : str or int
        Which entry of a dict, object or tuple is the output, or what it is: "scores", "probabilities", "features".
    labels : sequence, or None
        One per image (numbers, names, a pandas Series, one-hot rows); None takes the data set's own.
    name : str, or None
        The label on `model`; None takes the class's name.
    batch_size : int, or None
        Images in a forward pass, rounded to whole chains of the null; results do not depend on it. None chooses one.
    device : str or torch.device
        "auto" takes CUDA when there is one.
    precision : str
        "float32", "float64" (for a model of that type), "bfloat16", "float16" (autocast).
    null : bool, or "within-class"
        Also measure the shuffled orbit (`<metric>_null`), for calibration; or that of images of one class.
    seed : int
        Of the order in which samples are read, and so of the null's chains.
    progress : bool
        Show a bar.

    Returns
    -------
    Dataset
        With dims (model, layer, element, sample), `model` of length one. What has no value is NaN, with the reason.

    Raises
    ------
    ValueError
        Unknown names (near ones are listed), images that the group cannot act on, an empty set, mixed sizes, fewer images
        than a null needs, or fewer than 4 with a matched metric; or the model changes its own weights as it runs.
    TypeError
        The model or the images are none, or a matched metric is asked for on images that cannot be read by number.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(50, 3))
    >>> ds = measure(net, torch.rand(4, 1, 5, 5), group="C4", progress=False)
    >>> dict(ds.latent.sizes)
    {'model': 1, 'layer': 4, 'element': 4, 'sample': 4}
    """
    options = Options(
        group=actions.on_images(group),
        metrics=family.resolve(metrics),
        layers=layers,
        head=head,
        layouts=layouts or {},
        output=output,
        batch_size=batch_size,
        device=device,
        precision=precision,
        null=null,
        seed=seed,
    )
    values, states = measure_block(model, images, options, labels=labels, name=name, progress=progress)
    flaws = states.attrs["flaws"]
    if flaws:
        more = f" (and {len(flaws) - 3} more)" if len(flaws) > 3 else ""
        warnings.warn(
            f"{len(flaws)} of {values.sizes['sample']} samples have no value: {'; '.join(flaws[:3])}{more}",
            stacklevel=2,
        )
    return values


def measure_block(
    model: nn.Module,
    images: Any,
    options: Options,
    *,
    places: range | None = None,
    labels: Any = None,
    name: str | None = None,
    progress: bool = False,
) -> tuple[xr.Dataset, xr.Dataset]:
    """`measure` on the images at some `places` of the seeded order, with the states from which blocks are joined.

    Blocks of whole chains give, put side by side, exactly what `measure` gives for all images. An image that cannot be read
    and an output that is not finite end nothing: the sample is NaN (its prediction −1).

    Returns
    -------
    values : Dataset
        As `measure` gives them; of a block the samples in the order in which they were read.
    states : Dataset
        `pair_sum` (normalised, layer, feature) and `pair_n` (normalised, layer), from which M = (‖Σu‖² − n)/(n² − n); `dead`
        and `live_or_dead` (layer), how many channels were zero and how many there were; `reason` and `undefined` (metric,
        layer), why a layer has no value, or for how many samples; the attribute `flaws`, why single samples have none.

    Examples
    --------
    >>> net, images = nn.Sequential(nn.Flatten(), nn.Linear(25, 3)), torch.rand(300, 1, 5, 5)
    >>> values, states = measure_block(net, images, Options("C4", metrics=["latent"]), places=range(256, 300))
    >>> values.sizes["sample"], states.pair_n.values.tolist()
    (44, [[44, 44, 44]])
    """
    model = unwrapped(model)
    name = name or type(model).__name__
    action = options.action
    device = options.torch_device
    stream = samples.open_stream(
        images, labels=labels, seed=options.seed, order=action.group.order, null=options.null, places=places
    )
    halves = None
    if any(metric.matched for metric in options.metrics):
        halves = samples.open_halves(images, seed=options.seed)
    if halves is not None and options.null == samples.WITHIN_CLASS:
        raise ValueError(
            "channels are matched on the seeded order, which a null within classes does not keep; ask for one of both"
        )
    with traced(model, stream, options) as ready:
        warn_of_silent_blocks(ready.found.silent_blocks)
        versions = weight_versions(model)
        shape, batch_size = ready.image_shape, ready.batch_size
        one_pass = Pass(ready.stream, ready.found, options, shape, batch_size=batch_size, device=device)
        if halves is not None:
            one_pass.match(model, *halves, ready.forward)
        shown = bar(stream.length, printable(name), "image", show=progress, leave=False)
        with shown, tap(model, one_pass.tapped, ready.found.output, one_pass.on_layer):
            for batch in ready.stream.batches(batch_size):
                one_pass.run(batch, ready.forward)
                shown.update(len(batch.samples))
        refuse_changed(versions, weight_versions(model), name)
        repeatable = one_pass.repeats or warn_of_noise(model, ready.example, name)
    measured = one_pass.result()
    if options.null is True and stream.length is None:
        samples.refuse_short(len(measured.ids), action.group.order)
        samples.warn_if_sorted(measured.labels)
    about = _provenance(options, measured.fingerprint, ready.law_error, repeatable=repeatable)
    values = dataset.dataset(
        measured,
        action.group,
        options.metrics,
        name=name,
        weights=fingerprint(model),
        precision=options.precision,
        label_classes=samples.declared_classes(images) if labels is None else 0,
        about=about,
    )
    return values, dataset.states(measured, options.metrics)


def layers(
    model: nn.Module,
    images: Any,
    *,
    layers: str | Sequence[str] = "all",
    head: str | None = None,
    layouts: Mapping[str, str] | None = None,
    output: str | int = "auto",
    device: str | torch.device = "auto",
) -> pd.DataFrame:
    """What `measure` would tap: a row for each layer with its layout, found on one or two images; nothing is measured.

    Returns
    -------
    DataFrame
        `layer`, `layer_type`, `layout` ("b c h w", "b 1+14x14 c", …, empty with a `reason`), `height`, `width`, `channels`,
        `depth`, and `head`, the path of the classifier on the row `latent`.

    Raises
    ------
    ValueError
        As `measure`.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(50, 3))
    >>> layers(net, torch.rand(1, 5, 5))[["layer", "layout", "head"]]
        layer   layout head
    0       0  b c h w
    1       1      b c
    2       2      b c
    3  latent      b c    2
    4  output      b c
    """
    model = unwrapped(model)
    options = Options(
        actions.spatial("C1"), layers=layers, head=head, layouts=layouts or {}, output=output, device=device
    )
    if isinstance(images, Tensor | np.ndarray) and images.ndim == 3:
        images = images[None]
    stream = samples.open_stream(images)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    with evaluating(model, options.torch_device):
        example = _two_images(list(islice(stream.samples, 2))).to(options.torch_device, dtype)
        found = find_layers(model, example, layers=layers, head=head, layouts=options.layouts, output=output)
    rows = []
    for layer in found.layers:
        height, width = layer.grid
        rows.append(
            {
                "layer": layer.name,
                "layer_type": layer.kind,
                "layout": dataset.layout_text(layer),
                "height": height,
                "width": width,
                "channels": layer.layout.channels if layer.layout else 0,
                "depth": layer.depth,
                "head": found.head if layer.role == "latent" else "",
                "reason": layer.reason or (found.output.reason if layer.role == "output" else ""),
            }
        )
    return pd.DataFrame(rows)


class Forward:
    """The model's forward pass on moved images; call it as `forward(g, images)`.

    Images are moved as positions × channels, so that a convolution gets them channels-last, in which it is faster.
    """

    def __init__(
        self,
        model: nn.Module,
        action: Action,
        shape: Sequence[int],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        channels, *grid = shape
        self.model = model
        self.action = action.of_images.on(tuple(grid), channels).to(device)
        self.device = device
        self.dtype = dtype
        self.channels_last = False

    def __call__(self, g: int, images: Tensor) -> Any:
        """The model's output for g·images, (b, C, H, W); the model gets a copy, since it may work in place."""
        moved = self.moved(g, images)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        moved = moved.contiguous(memory_format=layout)
        return self.model(moved.clone() if moved.data_ptr() == images.data_ptr() else moved)

    def moved(self, g: int, images: Tensor) -> Tensor:
        """g·images, (b, C, H, W), on the device; where the action keeps to a circle, of images that are 0 outside of it."""
        positions = images.to(self.device, self.dtype).flatten(2).mT.contiguous()
        if self.action.compared is not None:
            positions = self.action(0, positions)
        moved = self.action(g, positions)
        return moved.unflatten(1, self.action.grid).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Ready:
    """What a pass needs: the images, the layers that were found on two of them, and how the model is called.

    `law_error` is that of the action on images, `example` the images on which layers were found.
    """

    stream: Stream
    found: Found
    forward: Forward
    image_shape: tuple[int, ...]
    batch_size: int
    law_error: float
    example: Tensor


@contextmanager
def traced(model: nn.Module, stream: Stream, options: Options) -> Iterator[Ready]:
    """Within the block the model is ready for a pass: in eval mode, on the device, its layers found."""
    _check_dtype(model, options.precision)
    device = options.torch_device
    first_samples = list(islice(stream.samples, 2))
    stream = stream.with_samples(chain(first_samples, stream.samples))
    shape = tuple(first_samples[0].image.shape)
    law_error = actions.law_error(options.action.of_images.on(shape[1:], shape[0]))
    with evaluating(model, device), arithmetic(options.precision, device) as dtype:
        forward = Forward(model, options.action, shape, device, dtype)
        example = forward.moved(0, _two_images(first_samples)).contiguous()
        found = find_layers(
            model,
            example,
            layers=options.layers,
            head=options.head,
            layouts=options.layouts,
            output=options.output,
        )
        forward.channels_last = found.channels_last
        batch_size = options.batch_size or default_batch_size(shape, device)
        yield Ready(stream, found, forward, shape, batch_size, law_error, example)


class Pass:
    """One pass over a stream: for every batch `run`, at the end `result`. The hooks call `on_layer`."""

    def __init__(
        self,
        stream: Stream,
        found: Found,
        options: Options,
        shape: Sequence[int],
        *,
        batch_size: int,
        device: torch.device,
    ) -> None:
        self.found = found
        self.options = options
        self.image_shape = shape
        self.order = options.action.group.order
        self.batch_size = batch_size
        self.device = device
        self.inner = [layer for layer in found.layers if layer.role != "output"]
        self.output = next(layer for layer in found.layers if layer.role == "output")
        self.tapped = [layer for layer in self.inner if layer.layout]
        self.length = stream.length
        self.size = max(batch_size, stream.chain_length) + 2 * stream.chain_length
        self.first_half = 0
        self.fits: dict[matching.Key, matching.Fit] = {}
        self.predictions = torch.full((self.order, self.size), -1, dtype=torch.int32, device=device)
        self.confidences = torch.full((self.order, self.size), math.nan, device=device)
        self.is_finite = torch.ones(self.order, self.size, dtype=torch.bool, device=device)
        self.table = Table(stream.length or 4 * batch_size)
        self.ids: dict[int, Any] = {}
        self.labels: dict[int, Any] = {}
        self.chain_numbers: dict[int, int] = {}
        self.flaws: dict[int, str] = {}
        self.unread: dict[int, str] = {}
        self.classes = 0
        self.fingerprint = samples.Fingerprint()
        self.repeats = True
        self.place: Place  # of the images that are in the model, set before every forward pass

    def match(self, model: nn.Module, read: Iterator[Sample], half: int, forward: Forward) -> None:
        """Fit the permutations of matched metrics, in a pass of their own."""
        self.first_half = half
        options = {"action": self.options.action, "metrics": self.options.metrics, "batch_size": self.batch_size}
        self.fits = matching.fit(model, self.found, read, half, forward=forward, **options)

    @cached_property
    def passes(self) -> dict[Layer, LayerPass]:
        """What is collected at every layer."""
        per_image = sum(math.prod(layer.grid) * layer.layout.channels for layer in self.inner if layer.layout)
        numbers = per_image * self.order * (self.length or math.inf)
        fused = accumulate.is_worth_compiling(numbers)
        return {layer: self._layer_pass(layer, fused=fused) for layer in self.found.layers}

    @cached_property
    def _interpolates(self) -> bool:
        channels, *grid = self.image_shape
        return self.options.action.of_images.on(tuple(grid), channels).interpolates

    @cached_property
    def floors(self) -> dict[tuple[int, int], LayerPass]:
        """What is collected of the images pooled to each layer's grid; nothing where the action on images is exact.

        Pooling is as equivariant as a grid allows, so that what it gets is the floor that interpolation leaves.
        """
        if not self._interpolates:
            return {}
        channels = self.image_shape[0]
        of_images = self.options.action.of_images
        # channels of pooled images move as those of images, whatever the metric's action on maps is
        metrics = [replace(metric, action=None, field=False) for metric in self._metrics_with_floor()]
        floors = {}
        for layer in self.inner:
            if layer.role == "module" and layer.layout and layer.grid not in floors:
                layout = Layout((0, channels, *layer.grid), batch=0, space=(2, 3), grid=layer.grid)
                pooled = Layer("", 1, "pooled image", 0.0, layout=layout)
                floors[layer.grid] = self._collect(pooled, metrics, of_images, fused=False)
        return floors

    def _metrics_with_floor(self) -> list[Metric]:
        metrics = [one for one in self.options.metrics if one.where == "maps" and one.features is None]
        # a floor in the unit of images says nothing of values in the unit of a layer's features
        return [one for one in metrics if not one.matched and not isinstance(one.distance.scale, str)]

    def _take_floors(self, images: Tensor) -> None:
        for grid, floor in self.floors.items():
            floor.take(self.place, adaptive_avg_pool2d(images, grid))

    def _layer_pass(self, layer: Layer, *, fused: bool) -> LayerPass:
        has_layers = layer.role != "output"
        metrics = [metric for metric in self.options.metrics if metric.has_layers == has_layers]
        return self._collect(layer, metrics, self.options.action, fused=fused)

    def _collect(self, layer: Layer, metrics: Sequence[Metric], action: Action, *, fused: bool) -> LayerPass:
        return LayerPass(
            layer,
            metrics,
            action,
            size=self.size,
            null=bool(self.options.null),
            fused=fused,
            exact=self.options.precision != "float64",
            fits={metric: fit for (metric, at), fit in self.fits.items() if at == layer.name},
            device=self.device,
            no_scores=self.found.output.reason,
        )

    def on_layer(self, layer: Layer, given: Tensor) -> None:
        """Runs inside the hook."""
        with torch.autocast(self.device.type, enabled=False):
            self.passes[layer].take(self.place, given)

    def on_output(self, output: Any) -> None:
        """What the model gave for the images that were in it."""
        height, width = self.image_shape[1:]
        with torch.autocast(self.device.type, enabled=False):
            if self.output.layout:
                selected = self._take_scores(self.found.output.select(output))
                self.passes[self.output].take(self.place, selected)
            self.passes[self.output].take_raw(self.place, output, (height, width))

    def _take_scores(self, given: Tensor) -> Tensor:
        """Predictions and confidences; gives class scores where probabilities came."""
        rows, g = self.place.rows, self.place.g
        if len(given) == rows.stop - rows.start:
            self.is_finite[g, rows] = given.isfinite().flatten(1).all(1)
        if self.found.output.kind == "features":
            return given
        given = given.double()
        if self.found.output.kind == "probabilities":
            given = given.clamp_min(torch.finfo(torch.float64).tiny).log()
        self.classes = given.shape[-1]
        confidence, prediction = family.probabilities(given).max(-1)
        is_finite = self.is_finite[g, rows]
        self.predictions[g, rows] = prediction.int().masked_fill(~is_finite, -1)
        self.confidences[g, rows] = confidence.float().masked_fill(~is_finite, math.nan)
        return given

    def run(self, batch: Batch, forward: Forward) -> None:
        """All forward passes of a batch, and what follows from them."""
        n = len(batch.samples)
        self.is_finite.fill_(True)
        partners = deviation.partners(batch.chains, self.order).to(self.device)
        map_chains = _shorter_chains(batch.chains)
        map_partners = deviation.partners(map_chains, self.order).to(self.device)
        in_first_half = batch.start + torch.arange(n, device=self.device) < self.first_half
        images = torch.stack([sample.image for sample in batch.samples])
        for rows in _slices(map_chains, self.batch_size):
            for g in range(self.order):
                self.place = Place(g, rows, map_partners[:, rows] - rows.start, in_first_half[rows])
                output = forward(g, images[rows])
                self.on_output(output)
                self._give_up_absent()
                if self.floors:
                    self._take_floors(forward.moved(g, images[rows]))
                if g == 0 and batch.start == 0 and rows.start == 0:
                    self._compare_with_example(output, batch.samples)
        self._record(batch, partners, map_partners)

    def _give_up_absent(self) -> None:
        for of_layer in self.passes.values():
            if not of_layer.ran:
                of_layer.drop(ABSENT)
            of_layer.ran = False

    def _compare_with_example(self, output: Any, read: Sequence[Sample]) -> None:
        """Whether the images that were traced before give the same output again, in this batch."""
        example = self.found.example
        if example is None or any(sample.flaw for sample in read[:2]) or len(read) < 2:
            return
        again = self.found.output.select(output)
        again = again[: len(example)] if again.dim() else again
        if again.shape == example.shape and example.isfinite().all() and again.isfinite().all():
            off = (again - example).abs().max() / example.abs().max().clamp_min(torch.finfo(example.dtype).tiny)
            self.repeats = float(off) <= REPEATED[DTYPES[self.options.precision]]

    def _record(self, batch: Batch, partners: Tensor, map_partners: Tensor) -> None:
        n = len(batch.samples)
        rows = [sample.row for sample in batch.samples]
        is_image = torch.tensor([not sample.flaw for sample in batch.samples], device=self.device)
        found: dict[str, dict[int, Tensor]] = {}
        for position, of_layer in enumerate(self.passes.values()):
            for name, (value, null) in of_layer.finish(n, partners, map_partners, is_image).items():
                found.setdefault(name, {})[position] = value
                if null is not None:
                    found.setdefault(f"{name}_null", {})[position] = null
            for name, size in of_layer.sizes(n).items():
                found.setdefault(f"{name}_norm", {})[position] = size
        floors = {grid: floor.finish(n, partners, map_partners, is_image) for grid, floor in self.floors.items()}
        for position, layer in enumerate(self.inner):
            if layer.role == "module":
                for name, (value, _) in floors.get(layer.grid, {}).items():
                    found.setdefault(f"{name}_floor", {})[position] = value
        if self.found.output.kind != "features":
            found["prediction"] = {len(self.inner): self.predictions[:, :n]}
            found["confidence"] = {len(self.inner): self.confidences[:, :n]}
        if not is_image.all():
            self._blank(found, ~is_image, partners, map_partners)
        for name, by_position in found.items():
            values = torch.stack(list(by_position.values())).cpu()
            values = values.float() if values.is_floating_point() else values
            if len(self.inner) in by_position:
                self.table.put(name, values[0].numpy(), rows)
            else:
                self.table.put(name, values.numpy(), rows, list(by_position), len(self.inner))
        self._record_samples(batch)

    def _blank(self, found: dict[str, dict[int, Tensor]], lost: Tensor, partners: Tensor, map_partners: Tensor) -> None:
        """No values for images that could not be read, nor nulls against them, even where the model ignores its input."""
        of_maps = {f"{metric.name}_null" for metric in self.options.metrics if metric.has_positions}
        of_elements = {f"{metric.name}_null" for metric in self.options.metrics if metric.null == "elements"}
        for name, by_position in found.items():
            missing = lost
            if name.endswith("_null") and name not in of_elements:
                missing = lost[map_partners] | lost if name in of_maps else lost[partners].any(0)
            blank = -1 if name == "prediction" else math.nan
            for position, value in by_position.items():
                by_position[position] = value.masked_fill(missing, blank)

    def _record_samples(self, batch: Batch) -> None:
        for number, chain_places in enumerate(batch.chains):
            for place in chain_places:
                sample = batch.samples[place]
                self.ids[sample.row] = sample.id
                self.labels[sample.row] = sample.label
                self.chain_numbers[sample.row] = batch.first_chain + number
                self.fingerprint.update(sample)
                if sample.flaw:
                    self.flaws[sample.row] = self.unread[sample.row] = sample.flaw
        for g, place in (~self.is_finite[:, : len(batch.samples)]).nonzero().tolist():
            sample = batch.samples[place]
            element = self.options.action.group.elements[g]
            said = f"the model's output is not finite for sample {sample.id} under {element}"
            self.flaws.setdefault(sample.row, said)

    def result(self) -> Measured:
        """What the pass found, NaN also for the batches before the one in which a layer was given up."""
        n = len(self.ids)
        arrays = self.table.cut(n)
        metrics = self.options.metrics
        reasons: dict[str, list[str]] = {}
        for metric in metrics:
            layers = self.inner if metric.has_layers else [self.output]
            reasons[metric.name] = [self.passes[layer].reasons[metric.name] for layer in layers]
            for position, reason in enumerate(reasons[metric.name]):
                for name in (metric.name, f"{metric.name}_null", f"{metric.name}_norm", f"{metric.name}_floor"):
                    if reason and name in arrays:
                        arrays[name][position if metric.has_layers else ...] = math.nan
        self._complete(arrays, n)
        pair_cosines = {}
        for metric in metrics:
            if metric.normalised:
                pair_cosines[metric.name] = [self.passes[layer].pair_cosines[metric.name] for layer in self.inner]
        return Measured(
            layers=self.inner,
            arrays=arrays,
            reasons=reasons,
            kernel_orders=[self.passes[layer].kernel_order for layer in self.inner],
            law_errors=self._law_errors(),
            pair_cosines=pair_cosines,
            dead=np.array([self.passes[layer].dead.numpy() for layer in self.inner]).reshape(-1, 2),
            flaws=self.flaws,
            unread=self.unread,
            ids=[self.ids[row] for row in range(n)],
            labels=[self.labels[row] for row in range(n)],
            classes=self.classes,
            chains=[self.chain_numbers[row] for row in range(n)],
            head=self.found.head,
            fingerprint=str(self.fingerprint),
        )

    def _law_errors(self) -> list[float] | None:
        """How far the action on each layer's maps is from the group law, NaN without maps; None where it is exact on images."""
        if not self._interpolates:
            return None
        by_grid = {}
        for layer in self.inner:
            if layer.layout and layer.grid not in by_grid:
                by_grid[layer.grid] = self._law_error(layer.grid)
        return [by_grid.get(layer.grid, math.nan) if layer.role == "module" else math.nan for layer in self.inner]

    def _law_error(self, grid: tuple[int, int]) -> float:
        try:
            return actions.law_error(replace(self.options.action, channel_moves=None).on(grid, 1))
        except ValueError:  # it is not defined on this grid
            return math.nan

    def _complete(self, arrays: dict[str, np.ndarray], n: int) -> None:
        """NaN for metrics that no layer has."""
        for metric in self.options.metrics:
            shape = (len(self.inner), self.order, n) if metric.has_layers else (self.order, n)
            for name in (metric.name, f"{metric.name}_null") if self.options.null else (metric.name,):
                arrays.setdefault(name, np.full(shape, np.nan, np.float32))
            if isinstance(metric.distance.scale, str):
                of_samples = (len(self.inner), n) if metric.has_layers else (n,)
                arrays.setdefault(f"{metric.name}_norm", np.full(of_samples, np.nan, np.float32))
        for metric in self._metrics_with_floor() if self._interpolates else []:
            arrays.setdefault(f"{metric.name}_floor", np.full((len(self.inner), self.order, n), np.nan, np.float32))


class Table:
    """Named arrays (…, sample) on the host, made for all samples at once.

    Small tensors kept from every batch would fragment the heap around the activations that come and go. A stream without a
    length doubles the arrays as it needs.

    >>> table = Table(1)
    >>> table.put("m", np.array([[1.0, 2.0]]), rows=[1, 0])
    >>> table.cut(2)["m"].tolist()
    [[2.0, 1.0]]
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = max(capacity, 1)
        self.arrays: dict[str, np.ndarray] = {}

    def put(
        self, name: str, values: np.ndarray, rows: Sequence[int], layers: Sequence[int] | None = None, of: int = 0
    ) -> None:
        """Write values (…, b) to the samples `rows`; with `layers` values (layer, …, b) to these of so many layers."""
        while max(rows) >= self.capacity:
            self.capacity *= 2
        leading = values.shape[:-1] if layers is None else (of, *values.shape[1:-1])
        array = self.arrays.get(name)
        if array is None or array.shape[-1] < self.capacity:
            blank = np.nan if values.dtype.kind == "f" else -1
            larger = np.full((*leading, self.capacity), blank, values.dtype)
            if array is not None:
                larger[..., : array.shape[-1]] = array
            self.arrays[name] = array = larger
        if layers is None:
            array[..., rows] = values
            return
        for layer, of_layer in zip(layers, values, strict=True):
            array[layer][..., rows] = of_layer

    def cut(self, n: int) -> dict[str, np.ndarray]:
        """The arrays of n samples."""
        return {name: array[..., :n] for name, array in self.arrays.items()}


def default_batch_size(shape: Sequence[int], device: torch.device | str = "cpu") -> int:
    """A power of two from 8 to 256 such that a batch fits a processor's cache, or keeps a GPU busy.

    >>> default_batch_size((3, 224, 224)), default_batch_size((3, 32, 32)), default_batch_size((3, 224, 224), "cuda")
    (8, 128, 128)
    """
    numbers = 2**19 if torch.device(device).type == "cpu" else 2**25
    size = 256
    while size > 8 and size * math.prod(shape) > numbers:
        size //= 2
    return size


def _shorter_chains(chains: Sequence[range]) -> list[range]:
    """Chains of maps: those of the null, cut where the group is so large that a batch of maps would not fit."""
    shorter = []
    for one in chains:
        for part in deviation.chains(len(one), deviation.MAP_CHAIN):
            shorter.append(range(one.start + part.start, one.start + part.stop))
    return shorter


def _slices(map_chains: Sequence[range], size: int) -> Iterator[slice]:
    """The rows of a batch that the model sees at once: whole chains of maps, about `size` images."""
    start = 0
    for before, after in zip(map_chains, [*map_chains[1:], None], strict=True):
        if after is None or after.stop - start > size:
            yield slice(start, before.stop)
            start = before.stop


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside of a compiled or data-parallel one, where hooks are called and weights have their own names."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}; the images come second")
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inside = model.module
        else:
            inside = getattr(model, "_orig_mod", None)
        if not isinstance(inside, nn.Module):
            return Scripted(model) if isinstance(model, torch.jit.ScriptModule) else model
        model = inside


@contextmanager
def evaluating(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Within the block the model is in eval mode on `device`, uncompiled; afterwards modes and device are as before."""
    modes = {module: module.training for module in model.modules()}
    homes = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    try:
        model.eval()
        if homes and homes != {device}:
            model.to(device)
        # not inference_mode: what a module caches in here must still serve training afterwards
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        if len(homes) == 1 and homes != {device}:
            (home,) = homes
            model.to(home)


@contextmanager
def arithmetic(precision: str, device: torch.device) -> Iterator[torch.dtype]:
    """Within the block float32 means float32 (no TF32), cuDNN is deterministic, half precisions autocast; gives the dtype."""
    matmul = torch.get_float32_matmul_precision()
    with ExitStack() as stack:
        stack.callback(torch.set_float32_matmul_precision, matmul)
        torch.set_float32_matmul_precision("highest")
        stack.enter_context(
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        )
        if precision in HALF:
            stack.enter_context(torch.autocast(device.type, HALF[precision]))
        yield torch.float32 if precision in HALF else DTYPES[precision]


def fingerprint(model: nn.Module) -> str:
    """A checksum of the model's class, parameters, buffers (persistent or not) and extra state: equal weights, equal value.

    >>> fingerprint(nn.Identity()) == fingerprint(nn.Identity())
    True
    """
    digest = hashlib.sha256(type(model).__name__.encode())
    for key, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"{key}|{tensor.dtype}|{tuple(tensor.shape)}".encode())
        for part in _plain_parts(tensor.detach()):
            digest.update(part.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    for path, module in model.named_modules():
        has_extra_state = type(module).get_extra_state is not nn.Module.get_extra_state
        if has_extra_state:
            digest.update(path.encode() + _bytes_of(module.get_extra_state()))
        elif hasattr(module, "_packed_params"):
            digest.update(path.encode() + _bytes_of(module.state_dict()))
    return digest.hexdigest()[:16]


def weight_versions(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Where every parameter and buffer of fractions lies, and how often it was written to."""
    versions = {}
    for key, tensor in (*model.named_parameters(), *model.named_buffers()):
        is_counted = tensor.is_floating_point() and tensor.layout == torch.strided and not tensor.is_inference()
        if is_counted:
            versions[key] = (tensor.data_ptr(), tensor._version)
    return versions


def refuse_changed(before: Mapping[str, tuple], now: Mapping[str, tuple], name: str) -> None:
    """Raise where the weights are not as they were before the pass."""
    changed = [key for key in now if now[key] != before.get(key)]
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise ValueError(
            f"{name} changes its own weights as it runs ({', '.join(changed[:3])}{more}), so that no two batches are measured "
            "with the same ones; let its forward pass write to no parameter and no buffer, in eval mode at least"
        )


def _plain_parts(tensor: Tensor) -> list[Tensor]:
    """Dense tensors that hold all of a sparse, quantised or conjugated one."""
    if tensor.is_meta:
        return []
    if tensor.layout == torch.sparse_coo:
        tensor = tensor.coalesce()
        return [tensor.indices(), tensor.values()]
    if tensor.layout != torch.strided:
        return [tensor.to_dense()]
    if tensor.is_quantized:
        return [tensor.int_repr(), tensor.dequantize()]
    return [tensor.resolve_conj().resolve_neg()]


def _bytes_of(state: Any) -> bytes:
    if isinstance(state, Tensor):
        return b"".join(
            part.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes() for part in _plain_parts(state)
        )
    try:
        return pickle.dumps(state)
    except Exception:
        return repr(type(state)).encode()


def _two_images(read: Sequence[Sample]) -> Tensor:
    """Two images for the tracing pass; noise where one could not be read or there is but one."""
    images = []
    for i in range(2):
        image = read[min(i, len(read) - 1)].image
        noise = torch.rand(image.shape, generator=torch.Generator().manual_seed(i)).to(image.dtype)
        images.append(noise if i >= len(read) or read[i].flaw else image)
    return torch.stack(images)


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


def warn_of_silent_blocks(paths: Sequence[str]) -> None:
    """Name the blocks that have no output of their own to be read."""
    if paths:
        warnings.warn(
            f"{len(paths)} blocks are not called in a forward pass and so not measured: {', '.join(paths[:5])} (a hook does not "
            "see module.forward(x); call module(x))",
            stacklevel=4,
        )


def warn_of_noise(model: nn.Module, example: Tensor, name: str) -> bool:
    """Name the first module that gives another output for the same images; False, since the model is not a function of them."""
    noisy = first_noisy_module(model, example)
    where = ", depending on the others in their batch"
    if noisy is not None:
        where = f"; {noisy or 'the model itself'!r} is the first module to do so"
    warnings.warn(
        f"{name} gives other outputs for the same images{where}. Deviations then measure its noise too: switch off dropout or "
        "noise that stays on in eval mode",
        stacklevel=4,
    )
    return False


def _provenance(options: Options, data: str, law_error: float, *, repeatable: bool) -> dict[str, Any]:
    device = options.torch_device
    return {
        "eedkit_version": eedkit.__version__,
        "group": options.action.group.name,
        "action": options.action.name,
        "law_error": law_error,
        "null": str(options.null),
        "data": data,
        "seed": options.seed,
        "precision": options.precision,
        "repeatable": int(repeatable),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "torch_version": torch.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
