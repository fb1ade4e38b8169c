"""measure(): one model, one stream of images -> one labelled Dataset; and the pass that finds what is in it.

Knows models, streams and who labels, never where models or images come from. Costs |G| forwards of every image.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor, nn

import eedkit
from eedkit.errors import Undefined, printable, short, unknown
from eedkit.machine import processor_name
from eedkit.probe import dataset, guard, run, samples
from eedkit.probe import metrics as family
from eedkit.probe.boxes import nothing_found
from eedkit.probe.collect import ABSENT, SCORES, LayerPass, Place, Scores, Setting, Whole
from eedkit.probe.dataset import Measured, Results
from eedkit.probe.layers import Layer
from eedkit.probe.matching import matched
from eedkit.probe.metrics import INDEPENDENT, Metric
from eedkit.probe.outputs import DENSE, Output, asked_outputs
from eedkit.probe.run import Ready
from eedkit.probe.samples import Batch
from eedkit.probe.sums import is_worth_compiling
from eedkit.probe.tracing import Call, first_noisy_module
from eedkit.progress import bar
from eedkit.theory import actions, deviation
from eedkit.theory.actions import Action
from eedkit.theory.groups import Group

VERSION = 3
"""To be raised when the same arguments would give other values: a study does not mix them."""

REPEATED = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""How far, of its largest value, an output may be off when the same images come in another batch."""
OUTPUT_ITSELF = "measured on the model's output itself, since no classifier was found"
"""What is said of `latent` where it may be class scores."""
STANDARD = ("channelwise", "latent", "softmax")
"""The paper's metrics: eq. 5, eq. 6 and eq. 4 on class probabilities."""


@dataclass(frozen=True)
class Options:
    """How to measure: the arguments of `measure` but for the model and the images, checked when the value is made.

    Names of a group and of metrics may be given as well; they become values.
    """

    group: Any
    metrics: Any = STANDARD
    layers: str | Sequence[str] = "blocks"
    head: str | None = None
    layouts: Mapping[str, str] = field(default_factory=dict)
    output: str | int | Mapping[str, str] = "auto"
    call: Call | None = None
    batch_size: int | None = None
    device: str | torch.device = "auto"
    precision: str = guard.AUTO
    null: bool | str = True
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "group", actions.as_action(self.group))
        object.__setattr__(self, "metrics", family.resolve(self.metrics))
        object.__setattr__(self, "layouts", dict(_checked_texts("layouts", self.layouts or {})))
        if not isinstance(self.layers, str):
            object.__setattr__(self, "layers", _names("layers", self.layers))
        asked_outputs(self.output)  # raises where it is none
        if self.call is not None and not callable(self.call):
            raise TypeError(f"call must be a function (model, images) -> output, got {type(self.call).__name__}")
        if self.precision not in (guard.AUTO, *guard.DTYPES):
            raise ValueError(unknown("precision", self.precision, (guard.AUTO, *guard.DTYPES)))
        if self.null not in (True, False, samples.WITHIN_CLASS):
            raise ValueError(f"null must be True, False or {samples.WITHIN_CLASS!r}, got {self.null!r}")
        if not _is_whole(self.seed, 0):
            raise ValueError(f"seed must be a whole number from 0 on, got {self.seed!r}")
        if self.batch_size is not None and not _is_whole(self.batch_size, 1):
            raise ValueError(
                f"batch_size must be a whole number from 1 on, or None to choose one, got {self.batch_size!r}"
            )
        if self.null == samples.WITHIN_CLASS and self.matches_channels:
            raise ValueError(
                "channels are matched on the seeded order, which a null within classes does not keep; ask for one of both"
            )

    @property
    def matches_channels(self) -> bool:
        """Whether permutations of channels are fitted before the pass."""
        return any(metric.action is matched for metric in self.metrics)

    def pass_over(self, ready: Ready, *, first_half: int) -> "Pass":
        """The pass that these options ask for."""
        return Pass(ready, self, first_half=first_half)

    @property
    def action(self) -> Action:
        """How the group acts on images."""
        return self.group

    @property
    def torch_device(self) -> torch.device:
        """The device, "auto" being CUDA where there is one."""
        if str(self.device) == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with suppress(RuntimeError, TypeError):
            device = torch.device(self.device)
            if device.type == "cuda" and not torch.cuda.is_available():
                raise ValueError(f"device {str(device)!r} is not available here; pass device='cpu'")
            if device.type in ("cpu", "cuda"):
                return device
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:1', got {self.device!r}")


def _is_whole(number: Any, least: int) -> bool:
    return isinstance(number, Integral) and not isinstance(number, bool) and int(number) >= least


def _checked_texts(name: str, given: Any) -> Mapping[str, str]:
    if not isinstance(given, Mapping):
        raise TypeError(f"{name} must be a dict from names to texts, got {short(given)}")
    for key, value in given.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"{name} must be a dict from names to texts, got {short(key)}: {short(value)}")
    return given


def _names(name: str, given: Any) -> tuple[str, ...]:
    if not isinstance(given, Sequence) or not all(isinstance(one, str) for one in given):
        raise TypeError(f"{name} must be a text or a list of names, got {short(given)}")
    return tuple(given)


def measure(
    model: nn.Module | str,
    images: Any,
    *,
    group: str | Group | Action,
    metrics: str | Metric | Sequence[str | Metric] = STANDARD,
    layers: str | Sequence[str] = "blocks",
    head: str | None = None,
    layouts: Mapping[str, str] | None = None,
    output: str | int | Mapping[str, str] = "auto",
    call: Call | None = None,
    labels: Any = None,
    name: str | None = None,
    batch_size: int | None = None,
    device: str | torch.device = "auto",
    precision: str = guard.AUTO,
    null: bool | str = True,
    seed: int = 0,
    progress: bool = True,
) -> xr.Dataset:
    """m(f(gx), g f̂(x)) for every layer, group element and sample (Kvinge et al. 2022, the integrand of eq. 4).

    Averaging over `element` and `sample` gives the G-EED; `summarise` does so, with intervals and calibration. One pass over
    the images with |G| forwards of each, twice as many for a group that interpolates (there and back), and before it, for a
    matched metric, one over at most 512 of them. The model is left exactly as found.

    Parameters
    ----------
    model : nn.Module, or str
        Any module on images (b, C, H, W); compiled and data-parallel ones are measured as the module inside. `ek.measure`
        takes a spec, too ("timm:resnet18.a1_in1k", `ek.lab.models.HELP`), with the head and layers that it names.
    images : tensor, array, DataLoader, torch or Hugging Face data set, or str
        (n, C, H, W), or items (C, H, W); uint8 and PIL images are scaled to [0, 1]. What can only be iterated is read into
        memory first. `ek.measure` takes a spec, too ("photos/", `ek.lab.images.HELP`), and makes images as a model that
        has a spec was trained on them; how stands in attrs["preprocessing"]. `?size=` goes over the model's own size.
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
    output : str, int or mapping from str to str
        Which entry of a dict, object or tuple is the output ("logits", 0, "decoder.mask"), what it is ("scores",
        "probabilities", "independent" for yes-or-no answers, "dense", "features"), or both, {"cls": "scores", "mask": "dense"}.
    call : callable, or None
        (model, images) -> output, for a model that wants more than images: `lambda model, images: model(images, prompt)`.
    labels : sequence, or None
        One per image (numbers, names, a pandas Series, one-hot or multi-hot rows); None takes the data set's own.
    name : str, or None
        The label on `model`; None takes the class's name.
    batch_size : int, or None
        Images in a forward pass, moved ones counted; at least two chains of the null. Results do not depend on it. None
        chooses one.
    device : str or torch.device
        "auto" takes CUDA when there is one.
    precision : str
        "auto" is the type of the model's weights; "float32", "float64"; "bfloat16", "float16" (autocast of float32 weights).
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
        The model or the images are none.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(50, 3))
    >>> ds = measure(net, torch.rand(4, 1, 5, 5), group="C4", progress=False)
    >>> dict(ds.latent.sizes)
    {'model': 1, 'layer': 4, 'element': 4, 'sample': 4}
    """
    options = Options(
        group=group,
        metrics=metrics,
        layers=layers,
        head=head,
        layouts=layouts or {},
        output=output,
        call=call,
        batch_size=batch_size,
        device=device,
        precision=precision,
        null=null,
        seed=seed,
    )
    values, measured = run_pass(model, images, options, labels=labels, name=name, progress=progress)
    warn_of_flaws(measured)
    return values


def measure_block(
    model: Any,
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
    values, measured = run_pass(model, images, options, places=places, labels=labels, name=name, progress=progress)
    return values, dataset.states(measured)


def run_pass(
    model: Any,
    images: Any,
    options: Options,
    *,
    places: range | None = None,
    labels: Any = None,
    name: str | None = None,
    progress: bool = False,
) -> tuple[xr.Dataset, Measured]:
    """What the pass of these options finds, with labels and without."""
    model = guard.unwrapped(model)
    device = options.torch_device
    if name is not None and not (isinstance(name, str) and name.strip()):
        raise TypeError(f"name must be a text, the label on `model`, got {short(name)}")
    name = name or type(model).__name__
    order = options.action.group.order
    class_names = samples.class_names(images) if labels is None else []
    preprocessing = samples.preprocessing(images)
    images = samples.by_number(images)
    kinds = {kind for _, kind in asked_outputs(options.output)}
    labels = None if labels is None else samples.label_list(labels)
    if labels is not None and "independent" not in kinds and samples.is_several(labels):
        raise ValueError(
            "the labels say several classes of an image, so the outputs are yes-or-no answers: pass output='independent'"
        )
    stream = samples.open_stream(
        images, labels=labels, seed=options.seed, order=order, null=options.null, places=places
    )
    halves = None
    if options.matches_channels:
        halves = samples.open_halves(images, seed=options.seed)
    with run.prepared(model, stream, options) as ready:
        warn_of_silent_blocks(ready.found.silent_blocks)
        if halves is not None:
            run.fit_channels(ready, *halves, options.action)
        one_pass = options.pass_over(ready, first_half=halves[1] if halves else 0)
        shown = bar(stream.length, printable(name), "image", show=progress, leave=False)
        with shown, run.watched(ready, one_pass.on_layer) as forward:
            for batch in stream.batches(ready.batch_size):
                one_pass.run(batch, forward, shown.update)
        _warn_of_several_labels(one_pass)
        repeatable = one_pass.repeats or warn_of_noise(model, ready, name)
        weights = guard.fingerprint(model)
    precision = guard.precision_of(model, options.precision)
    about = {
        **_provenance(options, device, precision),
        "law_error": ready.law_error,
        "data": str(one_pass.results.fingerprint),
        "preprocessing": preprocessing,
        "repeatable": int(repeatable),
        "head": ready.found.head,
        **({"latent": OUTPUT_ITSELF} if _is_latent_the_output(ready) else {}),
        "output": ", ".join(layer.output.entry for layer in one_pass.outputs if layer.output),
        "output_kind": ", ".join(layer.output.kind for layer in one_pass.outputs if layer.output),
    }
    measured = one_pass.result()
    values = dataset.dataset(
        measured,
        options.action.group,
        name=name,
        weights=weights,
        precision=precision,
        class_names=class_names,
        about=about,
    )
    return values, measured


def layers(
    model: nn.Module,
    images: Any,
    *,
    layers: str | Sequence[str] = "all",
    head: str | None = None,
    layouts: Mapping[str, str] | None = None,
    output: str | int | Mapping[str, str] = "auto",
    call: Call | None = None,
    device: str | torch.device = "auto",
) -> pd.DataFrame:
    """What `measure` would tap: a row for each layer with its layout, found on one or two images; nothing is measured.

    Returns
    -------
    DataFrame
        `layer`, `layer_type`, `layout` ("b c h w", "b 1+14x14 c", …, empty with a `reason`), `height`, `width`, `channels`,
        `depth`; on the row `latent` `head`, the path of the classifier; on the row `output` `entry`, which part of what the
        model gives it is (empty for all of it), and `kind`, what it is.

    Raises
    ------
    ValueError
        As `measure`.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(50, 3))
    >>> layers(net, torch.rand(1, 5, 5))[["layer", "layout", "head", "kind"]]
        layer   layout head    kind
    0       0  b c h w
    1       1      b c
    2       2      b c
    3  latent      b c    2
    4  output      b c       scores
    """
    model = guard.unwrapped(model)
    options = Options(
        actions.spatial("C1"), layers=layers, head=head, layouts=layouts or {}, output=output, call=call, device=device
    )
    if isinstance(images, Tensor | np.ndarray) and images.ndim == 3:
        images = images[None]
    with run.prepared(model, samples.open_stream(images), options) as ready:
        found = ready.found
    rows = []
    for layer in found.layers:
        height, width = layer.grid
        output_of_layer = (layer.output if layer.role == "output" else None) or Output()
        rows.append(
            {
                "layer": layer.name,
                "layer_type": layer.kind,
                "layout": dataset.layout_text(layer),
                "height": height,
                "width": width,
                "channels": layer.channels,
                "depth": layer.depth,
                "head": found.head if layer.role == "latent" else "",
                "entry": output_of_layer.entry,
                "kind": output_of_layer.kind if layer.role == "output" else "",
                "reason": layer.reason or (output_of_layer.reason if output_of_layer.kind == "features" else ""),
            }
        )
    return pd.DataFrame(rows)


class Pass:
    """What one pass over a stream finds: for every batch `run`, at the end `result`. The hooks call `on_layer`."""

    def __init__(self, ready: Ready, options: Options, *, first_half: int) -> None:
        self.ready = ready
        self.options = options
        self.first_half = first_half
        self.order = ready.order
        self.inner = self._rows()
        self.outputs = [layer for layer in ready.found.layers if layer.role == "output"]
        kinds = {layer.output.kind for layer in self.outputs if layer.output}
        self.metrics = options.metrics
        if not kinds.isdisjoint(INDEPENDENT):
            self.metrics = tuple(family.of_independent(metric) for metric in options.metrics)
        device = ready.forward.device
        stream = ready.stream
        numbers = sum(layer.channels * layer.grid[0] * layer.grid[1] for layer in self.inner)
        setting = Setting(
            action=options.action,
            size=min(max(ready.batch_size, stream.chain_length) + 2 * stream.chain_length, stream.length),
            grid=ready.grid,
            null=bool(options.null),
            device=device,
            compiled=device.type == "cpu" and is_worth_compiling(numbers * self.order * stream.length),
        )
        self.passes = self._layer_passes(setting)
        self.returns: dict[Layer, LayerPass] = {}
        if ready.forward.back is not None:
            self.returns = self._layer_passes(replace(setting, null=False, returned=True))
        self.is_return = False
        self.results = Results(len(self.inner), stream.length)
        self.scores = Scores(self.outputs, self.order, setting.size, device)
        self.repeats = True

    def _rows(self) -> list[Layer]:
        """The layers that have a row in the results."""
        return [layer for layer in self.ready.found.layers if layer.role != "output"]

    def _layer_passes(self, setting: Setting) -> dict[Layer, LayerPass]:
        passes = {}
        for layer in self.inner:
            passes[layer] = LayerPass(layer, [metric for metric in self.metrics if metric.has_layers], setting)
        for layer in self.outputs:
            of_output = [m for m in self.metrics if not m.has_layers and _output_of(m, self.outputs) is layer]
            passes[layer] = LayerPass(layer, of_output, setting)
        return passes

    def on_layer(self, layer: Layer, place: Place, given: Tensor) -> None:
        """Runs inside the hook."""
        passes = self.returns if self.is_return else self.passes
        given = given.detach()  # a model may switch gradients on
        if layer.role == "output":
            given = self.scores.take(layer, place, given, is_return=self.is_return)
        passes[layer].take(place, given)

    def run(self, batch: Batch, forward: Callable[..., Any], update: Callable[[int], Any]) -> None:
        """All forward passes of a batch, and what follows from them."""
        n = len(batch.samples)
        device = self.ready.forward.device
        images = torch.stack([sample.image for sample in batch.samples])
        map_chains = []
        for chain in batch.chains:
            for part in deviation.chains(len(chain), deviation.MAP_CHAIN):
                map_chains.append(range(chain.start + part.start, chain.start + part.stop))
        half = (batch.start + torch.arange(n, device=device) < self.first_half).long()
        self.scores.begin()
        for place in run.places(map_chains, self.order, self.ready.batch_size, half):
            output = self._forward(forward, place, images, returned=False)
            if batch.start == place.rows.start == place.fresh == 0 and place.images > 1:
                self._compare_with_example(output, batch)
            if self.returns:
                self._forward(forward, place, images, returned=True)
            if place.elements[-1] == self.order - 1:
                update(place.images)
        self._record(batch, map_chains)

    def _forward(self, forward: Callable[..., Any], place: Place, images: Tensor, *, returned: bool) -> Any:
        """One forward pass; layers that did not run in it have no value."""
        self.is_return = returned
        output = forward(place, images, returned=returned)
        passes = self.returns if returned else self.passes
        passes[self.outputs[0]].take(place, output, raw_of=self.ready.grid)
        for of_layer in passes.values():
            if not of_layer.ran:
                of_layer.give_up(ABSENT)
            of_layer.ran = False
        return output

    def _compare_with_example(self, output: Any, batch: Batch) -> None:
        """Whether the images that were traced before give the same output again, in this batch."""
        example = self.ready.found.example
        if example is None or any(sample.flaw for sample in batch.samples[:2]) or len(batch.samples) < 2:
            return
        again = example
        first = self.outputs[0].output or Output()
        with suppress(Undefined):  # the output is not there in every pass
            again = first.select(output)[: len(example)]
        if again.shape == example.shape and example.isfinite().all() and again.isfinite().all():
            off = (again - example).abs().max() / example.abs().max().clamp_min(torch.finfo(example.dtype).tiny)
            self.repeats = float(off) <= REPEATED[example.dtype]

    def _record(self, batch: Batch, map_chains: Sequence[range]) -> None:
        is_lost = torch.tensor([bool(sample.flaw) for sample in batch.samples], device=self.ready.forward.device)
        whole = Whole.of(batch.chains, map_chains, is_lost, self.order)
        rows = [sample.row for sample in batch.samples]
        for position, layer in enumerate(self.passes):
            place = position if layer.role != "output" else None
            for name, values in self.passes[layer].finish(whole).items():
                self.results.put(name, values.cpu().numpy(), rows, place)
            if self.returns:
                for name, values in self.returns[layer].finish(whole).items():
                    if not name.endswith("_norm"):
                        self.results.put(f"{name}_round_trip", values.cpu().numpy(), rows, place)
        for name, values in self.scores.finish(whole).items():
            self.results.put(name, values.cpu().numpy(), rows, None)
        elements = self.options.action.group.elements
        self.results.record(batch, self.scores.not_finite(whole.n), elements)

    def result(self) -> Measured:
        """What the pass found, NaN also for the batches before the one in which a layer was given up."""
        reasons: dict[str, list[str]] = {}
        kernel_orders: dict[str, list[int]] = {}
        for metric in self.metrics:
            at = self.inner if metric.has_layers else [_output_of(metric, self.outputs)]
            reasons[metric.name] = [self.passes[layer].reasons.get(metric.name, "") for layer in at]
            kernel_orders[metric.name] = [self.passes[layer].kernel_orders.get(metric.name, 0) for layer in at]
            values = self.results.arrays.get(metric.name)
            if metric.distance.of_sets and metric.features and values is not None and np.isnan(values).all():
                is_empty = self.passes[at[0]].is_empty(metric)
                reasons[metric.name] = [reasons[metric.name][0] or nothing_found(metric.features, is_empty=is_empty)]
        pair_cosines = {}
        for metric in self.metrics:
            if metric.normalised:
                pair_cosines[metric.name] = [self.passes[layer].pair_cosine(metric) for layer in self.inner]
        self.results.complete(self.metrics, reasons, kernel_orders, self.order, null=bool(self.options.null))
        return Measured(
            metrics=self.metrics,
            layers=self.inner,
            results=self.results,
            reasons=reasons,
            kernel_orders=kernel_orders,
            law_errors=self._law_errors() if self.returns else None,
            pair_cosines=pair_cosines,
            dead=np.array([self.passes[layer].dead.numpy() for layer in self.inner]).reshape(-1, 2),
            classes=self.scores.classes,
        )

    def _law_errors(self) -> list[float]:
        """How far the action on each layer's maps is from the group law, NaN without maps."""
        errors = []
        plain = replace(self.options.action, channels=None)
        for layer in self.inner:
            error = np.nan
            if layer.role == "module" and layer.layout and 0 not in layer.grid:
                with suppress(Undefined):  # where it is not defined on this grid
                    error = plain.on(layer.grid, 1).law_error
            errors.append(error)
        return errors


def _is_latent_the_output(ready: Ready) -> bool:
    """Whether `latent` is the output, which nobody called features and which might be class scores."""
    latent = next(layer for layer in ready.found.layers if layer.role == "latent")
    return latent.output is not None and latent.output.may_be_scores


def _output_of(metric: Metric, outputs: Sequence[Layer]) -> Layer:
    """Which of the model's outputs a metric of the output is taken of."""
    wanted = {"output": SCORES, "dense": (*DENSE, *INDEPENDENT)}.get(metric.where, ())
    for layer in outputs:
        if layer.output is not None and layer.output.kind in wanted:
            return layer
    return outputs[0]


def warn_of_flaws(measured: Measured) -> None:
    """Say why some samples have no value."""
    flaws = measured.results.flaw_list()
    if flaws:
        more = f" (and {len(flaws) - 3} more)" if len(flaws) > 3 else ""
        warnings.warn(
            f"{len(flaws)} of {measured.results.n} samples have no value: {'; '.join(flaws[:3])}{more}", stacklevel=4
        )


def warn_of_silent_blocks(paths: Sequence[str]) -> None:
    """Name the blocks that have no output of their own to be read."""
    if paths:
        warnings.warn(
            f"blocks that no forward pass calls are not measured, {len(paths)} in all: {', '.join(paths[:5])} (a hook does not "
            "see module.forward(x); call module(x))",
            stacklevel=4,
        )


def warn_of_noise(model: nn.Module, ready: Ready, name: str) -> bool:
    """Name the first module that gives another output for the same images; False, since the model is not a function of them."""
    noisy = first_noisy_module(model, ready.example, ready.forward.call)
    where = ", depending on the others in their batch"
    if noisy is not None:
        where = f"; {noisy or 'the model itself'!r} is the first module to do so"
    warnings.warn(
        f"{name} gives other outputs for the same images{where}. Deviations then measure its noise too: switch off dropout or "
        "noise that stays on in eval mode",
        stacklevel=4,
    )
    return False


def _warn_of_several_labels(one_pass: Pass) -> None:
    """Warn where images have several labels, so that the outputs are yes-or-no answers, and were read as scores of classes."""
    if one_pass.scores.classes and samples.is_several(one_pass.results.labels):
        kinds = {layer.output.kind for layer in one_pass.outputs if layer.output}
        if kinds.isdisjoint(INDEPENDENT):
            warnings.warn(
                "some images have several labels, so the outputs may be yes-or-no answers and no classes: pass "
                "output='independent'",
                stacklevel=4,
            )


def _provenance(options: Options, device: torch.device, precision: str) -> dict[str, Any]:
    return {
        "eedkit_version": eedkit.__version__,
        "group": options.action.group.name,
        "action": options.action.name,
        "null": str(options.null),
        "seed": options.seed,
        "precision": precision,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "torch_version": torch.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
