"""What a pass collects at one layer, and the deviations that follow from it.

A hook sees the orbit of a few images, (g, b, P, C), at once. Where f̂ mixes no elements, every value of (4) and its null follow
in the hook and nothing is kept (`AsItComes`). Where f̂ mixes some, the orbit of the features is kept until the chains of the
null are whole (`WhenWhole`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from eedkit.errors import Undefined
from eedkit.probe import boxes
from eedkit.probe.layers import Layer
from eedkit.probe.layouts import Layout
from eedkit.probe.metrics import INDEPENDENT, Metric, of_probabilities, probabilities, scores_of, two_classes
from eedkit.probe.sums import orbit_sums
from eedkit.theory.actions import Action, LayerAction
from eedkit.theory.deviation import PairCosine, deviation, null_of_elements, partners, shuffled
from eedkit.theory.distances import ChannelSums

SCORES = ("scores", "probabilities", *INDEPENDENT)
"""Kinds of outputs that predict classes."""
SIZES = ("norm", "rms")
"""What the scale of a distance may be named after."""
ABSENT = "it does not run in every forward pass"

Found = dict[str, Tensor]
"""What was found for a batch, by the names of variables: (g, n), or (n,) for sizes of features."""


@dataclass(frozen=True)
class Place:
    """What one forward pass holds of a batch: these elements of these images, the images of an element side by side.

    Parameters
    ----------
    elements : list of int
        The identity first.
    fresh : int
        From which of them on they come for the first time: 1 where the identity was there before.
    rows : slice
        The images.
    partners : Tensor (g, b)
        On which of these images each of the elements acts in the null of what is not mixed.
    half : Tensor (b,)
        1 for images of the first half that channels are matched on, else 0; the number of the action that serves them.
    """

    elements: list[int]
    fresh: int
    rows: slice
    partners: Tensor
    half: Tensor

    @property
    def images(self) -> int:
        """b."""
        return self.rows.stop - self.rows.start

    def read(self, layer: Layer, given: Tensor) -> Tensor:
        """What a layer gave in this pass, (g·b, P, C), halves as float32."""
        return self._whole(layer.read(given))

    def images_first(self, layer: Layer, given: Tensor) -> Tensor:
        """The same as it was given, (g·b, …), for which only the axis of the images must be known."""
        return self._whole(given.movedim(layer.batch or 0, 0))

    def _whole(self, z: Tensor) -> Tensor:
        passed = len(self.elements) * self.images
        if len(z) != passed:
            raise Undefined(f"its output holds {len(z)} images in a forward pass of {passed}")
        return z.float() if z.dtype in (torch.bfloat16, torch.float16) else z

    @property
    def fresh_elements(self) -> slice:
        """Those that come for the first time."""
        return slice(self.elements[self.fresh], self.elements[-1] + 1)


@dataclass(frozen=True)
class Whole:
    """A whole batch of n images: the partners of each in chains, (g, n), and in the shorter ones of maps; which are lost."""

    partners: Tensor
    map_partners: Tensor
    is_lost: Tensor
    any_lost: bool

    @classmethod
    def of(cls, chains: Sequence[range], map_chains: Sequence[range], is_lost: Tensor, order: int) -> "Whole":
        """The batch that these chains make."""
        device = is_lost.device
        of_vectors = partners(chains, order).to(device)
        return cls(of_vectors, partners(map_chains, order).to(device), is_lost, bool(is_lost.any()))

    @property
    def n(self) -> int:
        """Images."""
        return len(self.is_lost)

    def blanked(self, values: Tensor, partners: Tensor | None = None, mixed: Sequence[int] = ()) -> Tensor:
        """Values (g, n), NaN where the image was lost, or the partner, or a partner under the elements that f̂ mixes."""
        if not self.any_lost:
            return values
        is_lost = self.is_lost
        if partners is not None:
            of_either = is_lost | is_lost[partners]
            is_lost = of_either | of_either[list(mixed)].any(0)
        return values.masked_fill(is_lost, torch.nan)


@dataclass(frozen=True)
class Setting:
    """What all layers of a pass have in common.

    Parameters
    ----------
    action : Action
        On images.
    size : int
        Images in the largest batch.
    grid : (height, width)
        Of the images.
    null : bool
        Whether nulls are asked for.
    device : torch.device
    compiled : bool
        Whether compiled sums are worth it.
    returned : bool
        Whether the images went there and back, g⁻¹gx: then nothing moves, and f̂(x) is f(x).
    """

    action: Action
    size: int
    grid: tuple[int, int]
    null: bool
    device: torch.device
    compiled: bool = False
    returned: bool = False


class AsItComes:
    """Metrics of one kind of features for which f̂ is f: value and null of (4) follow for every element as it comes.

    Parameters
    ----------
    layer_actions : list of LayerAction
        One, or one for each half of the images that channels are matched on.
    """

    def __init__(
        self, metrics: Sequence[Metric], layer_actions: list[LayerAction], setting: Setting, reasons: dict[str, str]
    ) -> None:
        self.metrics = metrics
        self.reasons = reasons
        self.layer_actions = layer_actions
        self.setting = setting
        self.mean: Tensor | None = None
        """The mean over positions of what came last, where the sums hold it."""
        order = setting.action.group.order
        shape = (len(metrics), 2, order, setting.size)
        self.values = torch.full(shape, torch.nan, dtype=torch.float32, device=setting.device)
        """Values and nulls of each metric."""
        self.sizes = torch.full((2, setting.size), torch.nan, dtype=torch.float64, device=setting.device)
        """Lengths of f(x), and roots of mean squares."""
        self.dead = torch.zeros(2, setting.size, dtype=torch.float64, device=setting.device)
        self.is_anywhere = torch.zeros(setting.size, dtype=torch.bool, device=setting.device)
        """Whether a set has anything in it, under some element."""
        self.is_empty = True
        """Whether all sets until now had nothing in them."""

    def take(self, place: Place, orbit: Tensor) -> None:
        """Take f(gx) of some images, (g, b, *z)."""
        action = self.layer_actions[0]
        if place.fresh == 0:
            self.dead[:, place.rows] = 0
            self.is_anywhere[place.rows] = False
            if any(isinstance(metric.distance.scale, str) for metric in self.metrics):
                self.sizes[:, place.rows] = _sizes(action.visible(orbit[0]))
        self._take_sums(place, orbit)
        self._take_others(place, orbit)

    def _take_sums(self, place: Place, orbit: Tensor) -> None:
        of_sums = [metric for metric in self.metrics if metric.distance.of_sums]
        self.mean = None
        if not of_sums:
            return
        sums, of_channels = orbit_sums(
            orbit,
            self.layer_actions,
            place.elements,
            place.partners,
            place.half,
            compiled=self.setting.compiled,
        )
        if self.layer_actions[0].compared is None:
            self.mean = sums.a[0] / sums.n
        for metric in of_sums:
            shape = (2, len(place.elements), place.images)
            values = _values(metric, self.reasons, shape, metric.distance, sums)  # (4), and its null
            if values is not None:
                self._put(metric, place, values)
        self._count_dead(place, of_channels)

    def _take_others(self, place: Place, orbit: Tensor) -> None:
        others = [metric for metric in self.metrics if not metric.distance.of_sums]
        if not others:
            return
        action = self.layer_actions[0]
        target = orbit[0]  # (2), f̂ is f
        moved = target[None]
        if not self.setting.returned:
            moved = torch.stack([action(g, target) for g in place.elements])
        moved = action.visible(moved)
        orbit = action.visible(orbit)
        orbits = [orbit, shuffled(orbit, place.partners)] if self.setting.null else [orbit]
        for metric in others:
            if metric.distance.of_sets:
                self.is_anywhere[place.rows] |= boxes.has_boxes(orbit).any(0)
            shape = (len(place.elements), place.images)
            values = [_values(metric, self.reasons, shape, metric.distance, one, moved) for one in orbits]  # (4)
            if metric.name not in self.reasons:
                self._put(metric, place, torch.stack([value for value in values if value is not None]))
        if len(others) == len(self.metrics) and others[0].where == "maps":
            self._count_dead(place, _dead_channels(orbit))

    def _put(self, metric: Metric, place: Place, values: Tensor) -> None:
        """Keep (2, g, b), values and nulls."""
        kept = self.values[self.metrics.index(metric), : len(values)]
        kept[:, place.fresh_elements, place.rows] = values[:, place.fresh :]

    def _count_dead(self, place: Place, of_channels: Tensor) -> None:
        """Add (2, g, b), how many channels are zero for gx and for x, and how many finite."""
        self.dead[:, place.rows] += of_channels[:, place.fresh :].sum(1)

    def finish(self, whole: Whole) -> Found:
        """The deviations of a whole batch; NaN where an image was lost."""
        found: Found = {}
        for metric, (value, null) in zip(self.metrics, self.values[..., : whole.n], strict=True):
            if metric.name in self.reasons:
                continue
            if metric.distance.of_sets:
                has_nothing = ~self.is_anywhere[: whole.n]
                self.is_empty = self.is_empty and bool((has_nothing | whole.is_lost).all())
                value = value.masked_fill(has_nothing, torch.nan)
            found[metric.name] = whole.blanked(value)
            if self.setting.null:
                found[f"{metric.name}_null"] = whole.blanked(null, whole.map_partners)
            if isinstance(metric.distance.scale, str):
                found[f"{metric.name}_norm"] = self.sizes[SIZES.index(metric.distance.scale), : whole.n]
        return found

    def dead_channels(self, n: int) -> Tensor:
        """How many channels are dead in each image, and how many there are: (2, n)."""
        return self.dead[:, :n]


class WhenWhole:
    """Metrics of one kind of features of which f̂ mixes elements: their orbit is kept until the batch is whole."""

    def __init__(
        self, metrics: Sequence[Metric], action: LayerAction, setting: Setting, reasons: dict[str, str]
    ) -> None:
        self.metrics = metrics
        self.reasons = reasons
        self.action = action
        self.setting = setting
        self.orbit = torch.empty(0)
        self.pair_cosine = PairCosine()
        mixed = ", ".join(action.group.elements[k] for k in action.kernel)
        if len(action.kernel) > 1 and any(metric.distance.of_sets for metric in metrics):
            raise Undefined(f"sets have no mean, which f̂ would be over {mixed}, since these move nothing")

    def take(self, place: Place, orbit: Tensor) -> None:
        """Take f(gx) of some images, (g, b, *z)."""
        shape = (self.action.group.order, self.setting.size, *orbit.shape[2:])
        if not self.orbit.numel():
            self.orbit = orbit.new_empty(shape)
        if self.orbit.shape != shape:
            raise Undefined(
                f"its features have shape {tuple(orbit.shape[2:])} in one forward pass and {tuple(self.orbit.shape[2:])} in "
                "another; they need one shape for all images"
            )
        self.orbit[place.fresh_elements, place.rows] = orbit[place.fresh :]

    def finish(self, whole: Whole) -> Found:
        """The deviations of a whole batch; NaN where an image was lost."""
        orbit = self.orbit[:, : whole.n]
        mixes = len(self.action.kernel) > 1
        if any(metric.normalised for metric in self.metrics):
            self.pair_cosine.update(orbit[0][~whole.is_lost])
        # what f̂ mixes must be different images, those of a whole chain; else any other image serves
        of_partners = whole.partners if mixes else whole.map_partners
        others = shuffled(orbit, of_partners) if self.setting.null else None
        found: Found = {}
        for metric in self.metrics:
            found |= self._deviations(metric, "", orbit, others, whole)
            if mixes:
                found |= self._deviations(metric, "_from_x", orbit, others, whole)
            if isinstance(metric.distance.scale, str):
                sizes = _sizes(self.action.visible(orbit[0]))
                found[f"{metric.name}_norm"] = sizes[SIZES.index(metric.distance.scale)]
        return found

    def _deviations(self, metric: Metric, ending: str, orbit: Tensor, others: Tensor | None, whole: Whole) -> Found:
        """Value and null from f̂(x), or from f(x)."""
        kernel = self.action.kernel if ending == "" else (0,)
        shape = (len(orbit), whole.n)
        compared = {"action": self.action, "distance": metric.distance, "kernel": kernel}
        value = _values(metric, self.reasons, shape, partial(deviation, **compared), orbit)  # (4)
        if value is None:
            return {}
        found = {f"{metric.name}{ending}": whole.blanked(value)}
        if others is None:
            return found
        of_partners = None
        if metric.null == "elements":
            null = _values(metric, self.reasons, shape, partial(null_of_elements, **compared), orbit)
        else:
            null = _values(metric, self.reasons, shape, partial(deviation, **compared), others)
            of_partners = whole.partners if len(self.action.kernel) > 1 else whole.map_partners
        if null is not None:
            found[f"{metric.name}{ending}_null"] = whole.blanked(null, of_partners, kernel)
        return found

    def dead_channels(self, n: int) -> Tensor:
        """How many channels are dead in each image, and how many there are: (2, n)."""
        orbit = self.orbit[:, :n]
        return _dead_channels(orbit).sum(1)


class OnImageGrid:
    """Metrics of maps on whose grid the action is not defined, as of shifts below a stride: taken on the image's grid *[ours]*.

    Maps are resampled bilinearly, opposite edges meeting. What that costs stands beside: the round trip is the map resampled to
    the image's grid and back.
    """

    def __init__(self, collector: AsItComes, still: AsItComes, grid: tuple[int, int], onto: tuple[int, int]) -> None:
        self.collector = collector
        self.still = still
        self.up = [resampling(size, on) for size, on in zip(grid, onto, strict=True)]
        self.down = [resampling(size, on) for size, on in zip(onto, grid, strict=True)]

    def take(self, place: Place, orbit: Tensor) -> None:
        """Take f(gx) of some images, (g, b, P, C)."""
        self.collector.take(place, _resampled(orbit, self.up))
        of_x = orbit[:1]
        back = _resampled(_resampled(of_x, self.up), self.down)
        self.still.take(place, torch.cat([of_x, back.expand(len(orbit) - 1, *back.shape[1:])]))

    def finish(self, whole: Whole) -> Found:
        """The deviations of a whole batch, and the round trips."""
        found = self.collector.finish(whole)
        of_returned = self.still.finish(whole)
        for metric in self.still.metrics:
            if metric.name in of_returned:
                found[f"{metric.name}_round_trip"] = of_returned[metric.name]
        return found

    def dead_channels(self, n: int) -> Tensor:
        """How many channels are dead in each image, and how many there are: (2, n)."""
        return self.collector.dead_channels(n)


def resampling(size: int, onto: int) -> Tensor:
    """(onto, size), by which a row of cells is interpolated linearly onto as many others of the same length, round a circle.

    >>> resampling(2, 4)
    tensor([[0.7500, 0.2500],
            [0.7500, 0.2500],
            [0.2500, 0.7500],
            [0.2500, 0.7500]])
    """
    places = (torch.arange(onto) + 0.5) * (size / onto) - 0.5
    below = places.floor()
    weights = torch.zeros(onto, size)
    rows = torch.arange(onto)
    weights[rows, below.long() % size] += 1 - (places - below)
    weights[rows, (below.long() + 1) % size] += places - below
    return weights


def _resampled(orbit: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Maps (g, b, P, C) on another grid."""
    rows, columns = (weight.to(orbit) for weight in weights)
    maps = orbit.unflatten(2, (rows.shape[1], columns.shape[1]))
    return torch.einsum("ih,gbhwc,jw->gbijc", rows, maps, columns).flatten(2, 3)


def _dead_channels(orbit: Tensor) -> Tensor:
    """Of maps (g, b, P, C) how many channels are zero for gx and for x, and how many are finite: (2, g, b)."""
    is_zero = (orbit == 0).all(-2)
    is_dead = is_zero & is_zero[:1]
    return torch.stack([is_dead.sum(-1), orbit.isfinite().all(-2).sum(-1)])


def _sizes(features: Tensor) -> Tensor:
    """Length and root of the mean square of each image's features: (b, …) -> (2, b)."""
    features = features.double().flatten(1)
    lengths = torch.linalg.vector_norm(features, dim=-1)
    return torch.stack([lengths, lengths / features.shape[1] ** 0.5])


def _values(
    metric: Metric, reasons: dict[str, str], shape: tuple[int, ...], between: Callable[..., Tensor], *given: Any
) -> Tensor | None:
    """What the metric's distance gives, of this shape; None, with its reason, where it has no value.

    TypeError where that is something else, or where the distance writes to what it was given, which others read as well.
    """
    if metric.name in reasons:
        return None
    tensors: list[Tensor] = []
    for one in given:
        parts = vars(one).values() if isinstance(one, ChannelSums) else [one]
        tensors += [part for part in parts if isinstance(part, Tensor)]
    versions = [tensor._version for tensor in tensors]
    try:
        values = between(*given)
    except Undefined as why:
        reasons[metric.name] = str(why)
        return None
    if versions != [tensor._version for tensor in tensors]:
        raise TypeError(f"{metric.name}: the distance {metric.distance.name} must write to new tensors only")
    _check_values(metric, values, shape)
    return values


def _check_values(metric: Metric, values: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(values, Tensor) or not values.is_floating_point():
        came = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"{metric.name}: the distance {metric.distance.name} must give a tensor of floats, got {came}")
    if tuple(values.shape) != shape:
        raise TypeError(
            f"{metric.name}: the distance {metric.distance.name} must give one value for each pair of features, so {shape}, "
            f"got {tuple(values.shape)}"
        )


@dataclass
class LayerPass:
    """All metrics at one layer: what is collected of them, or the reason why they have no value there.

    `take` runs in the hook, `finish` when the batch is whole.
    """

    layer: Layer
    metrics: Sequence[Metric]
    setting: Setting
    reasons: dict[str, str] = field(default_factory=dict)
    kernel_orders: dict[str, int] = field(default_factory=dict)
    dead: Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.float64))
    ran: bool = False

    def __post_init__(self) -> None:
        self.collectors: dict[tuple, Collector] = {}
        self.kinds: dict[tuple, list[Metric]] = {}
        for metric in self.metrics:
            try:
                metric.refuse(self.layer)
            except Undefined as why:
                self.reasons[metric.name] = str(why)
                continue
            metric = of_probabilities(metric, self.layer)
            kind = metric.where, metric.features, metric.action, metric.null
            self.kinds.setdefault(kind, []).append(metric)
        # maps first, whose sums hold the means that vectors are
        self.kinds = dict(sorted(self.kinds.items(), key=lambda item: item[0][0] != "maps"))

    def take(self, place: Place, given: Any, *, raw_of: tuple[int, int] | None = None) -> None:
        """Take what the layer gave, in the hook; with `raw_of` the model's output for images of this size, whatever it is."""
        self.ran = self.ran or raw_of is None
        mean = None
        z = None
        for kind, metrics in list(self.kinds.items()):
            where, features, *_ = kind
            if (where == "raw") != (raw_of is not None):
                continue
            try:
                if where == "raw":
                    value = features(given, raw_of)
                elif where == "vectors" and features is None and mean is not None:
                    value = mean
                else:
                    z = place.read(self.layer, given) if z is None else z
                    version = z._version
                    value = metrics[0].of(z)
                    if z._version != version:
                        raise TypeError(f"features of {metrics[0].name} must write to new tensors only")
                orbit = self._orbit(place, metrics[0], value)
                collector = self.collectors.get(kind)
                if collector is None:
                    collector = self.collectors[kind] = self._collector(metrics, orbit.shape[-1])
                collector.take(place, orbit)
                if where == "maps" and features is None and isinstance(collector, AsItComes):
                    mean = mean if collector.mean is None else collector.mean.flatten(0, 1)
            except Undefined as why:
                self.give_up(str(why), metrics)

    def _orbit(self, place: Place, metric: Metric, value: Any) -> Tensor:
        """Features (g·b, *z) as an orbit (g, b, *z); TypeError for what is none."""
        if not isinstance(value, Tensor) or not value.is_floating_point():
            came = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"features of {metric.name} must be a tensor of floats, got {came}; convert them")
        passed = len(place.elements) * place.images
        if value.shape[:1] != (passed,):
            raise TypeError(
                f"features of {metric.name} must have a row for each of {passed} images, got shape {tuple(value.shape)}"
            )
        positions = math.prod(self.layer.grid)
        if metric.has_positions and (value.dim() != 3 or value.shape[1] != positions):
            raise TypeError(
                f"features of {metric.name} must be maps of all positions, (b, {positions}, C), got {tuple(value.shape)}"
            )
        # what is made of a raw output may be on the processor
        return value.to(self.setting.device).unflatten(0, (len(place.elements), place.images))

    def _collector(self, metrics: Sequence[Metric], channels: int) -> "Collector":
        """What fits the one question: does f̂ mix elements?"""
        metric = metrics[0]
        action = self.setting.action
        try:
            layer_actions = metric.at(self.layer, action, channels)
        except Undefined as why:
            if not (metric.has_positions and _shifts(action)) or self.setting.returned:
                raise
            try:
                return self._on_image_grid(metrics, channels)
            except Undefined:
                raise why from None
        layer_actions = [one.to(self.setting.device) for one in layer_actions]
        kernel = layer_actions[0].kernel
        for one in metrics:
            self.kernel_orders[one.name] = len(kernel)
        if self.setting.returned:
            return AsItComes(metrics, [_still(layer_actions[0])], self.setting, self.reasons)
        if len(kernel) > 1 and len(layer_actions) > 1:
            raise Undefined("its channels could not be matched: the action is no faithful permutation of its positions")
        # M and the null of elements need the orbit as well
        if len(kernel) > 1 or metric.null == "elements" or any(one.normalised for one in metrics):
            return WhenWhole(metrics, layer_actions[0], self.setting, self.reasons)
        return AsItComes(metrics, layer_actions, self.setting, self.reasons)

    def _on_image_grid(self, metrics: Sequence[Metric], channels: int) -> OnImageGrid:
        layout = Layout((0, channels, *self.setting.grid), batch=0, space=(2, 3), grid=self.setting.grid)
        layer_actions = metrics[0].at(replace(self.layer, layout=layout), self.setting.action, channels)
        layer_actions = [one.to(self.setting.device) for one in layer_actions]
        for metric in metrics:
            self.kernel_orders[metric.name] = len(layer_actions[0].kernel)
        collector = AsItComes(metrics, layer_actions, self.setting, self.reasons)
        returned = replace(self.setting, null=False, returned=True)
        nothing_moves = LayerAction("still", layer_actions[0].group, self.layer.grid)
        still = AsItComes(metrics, [nothing_moves], returned, self.reasons)
        return OnImageGrid(collector, still, self.layer.grid, self.setting.grid)

    def give_up(self, reason: str, metrics: Sequence[Metric] | None = None) -> None:
        """No value for these metrics, or for all that read the layer, for that reason; the first reason stays."""
        if metrics is None:
            metrics = [metric for metric in self.metrics if metric.where != "raw"]
        for metric in metrics:
            self.reasons.setdefault(metric.name, reason)
        for kind, of_kind in list(self.kinds.items()):
            if all(metric.name in self.reasons for metric in of_kind):
                del self.kinds[kind]

    def finish(self, whole: Whole) -> Found:
        """What was found for a batch, by the names of variables."""
        found: Found = {}
        has_dead = False
        for kind, metrics in list(self.kinds.items()):
            collector = self.collectors[kind]
            try:
                found |= collector.finish(whole)
            except Undefined as why:
                self.give_up(str(why), metrics)
                continue
            if kind[:2] == ("maps", None) and not has_dead:
                has_dead = True
                self.dead += collector.dead_channels(whole.n)[:, ~whole.is_lost].sum(1).cpu()
        return found

    def is_empty(self, metric: Metric) -> bool:
        """Whether all sets that a metric compares were empty."""
        for kind, metrics in self.kinds.items():
            collector = self.collectors.get(kind)
            if metric in metrics and isinstance(collector, AsItComes):
                return collector.is_empty
        return False

    def pair_cosine(self, metric: Metric) -> PairCosine:
        """M of a metric's features, as the state from which it follows."""
        for kind, metrics in self.kinds.items():
            collector = self.collectors.get(kind)
            if metric in metrics and isinstance(collector, WhenWhole):
                return collector.pair_cosine
        return PairCosine()


Collector = AsItComes | WhenWhole | OnImageGrid


def _shifts(action: Action) -> bool:
    """Whether some element translates images by parts of their size."""
    return any(motion.down or motion.right for motion in action.group.motions or ())


def _still(action: LayerAction) -> LayerAction:
    """The action by which nothing moves, compared on the same positions."""
    return LayerAction(action.name, action.group, action.grid, compared=action.compared)


class Scores:
    """Predictions and their probabilities for every (element, image) of a batch, of the output that has class scores.

    Yes-or-no answers predict where there is one: class 1 where it is yes.
    """

    def __init__(self, outputs: Sequence[Layer], order: int, size: int, device: torch.device) -> None:
        self.layer = next((layer for layer in outputs if layer.output and layer.output.kind in SCORES), None)
        self.classes = 0
        self.is_finite = torch.ones(order, size, dtype=torch.bool, device=device)
        self.predictions = torch.full((order, size), -1, dtype=torch.int32, device=device)
        self.confidences = torch.full((order, size), torch.nan, dtype=torch.float32, device=device)

    def begin(self) -> None:
        """Begin a batch."""
        self.is_finite.fill_(True)
        self.predictions.fill_(-1)
        self.confidences.fill_(torch.nan)

    def take(self, layer: Layer, place: Place, given: Tensor, *, is_return: bool) -> Tensor:
        """Take what the model gave; gives scores, of probabilities their logarithms or logits."""
        kind = layer.output.kind if layer.output is not None else ""
        if kind == "probabilities":
            given = scores_of(given)
        if kind == "independent probabilities":
            given = given.double().logit(eps=torch.finfo(torch.float64).eps)
        passed = len(place.elements), place.images
        if is_return or len(given) != passed[0] * passed[1]:
            return given
        at = place.elements, place.rows
        is_finite = given.isfinite().flatten(1).all(1).unflatten(0, passed)
        self.is_finite[at] &= is_finite
        if layer is self.layer and (kind not in INDEPENDENT or given.flatten(1).shape[1] == 1):
            scores = given.flatten(1).double()
            if kind in INDEPENDENT:
                scores = two_classes(scores[:, 0])
            self.classes = scores.shape[-1]
            confidence, prediction = probabilities(scores).max(-1)
            self.predictions[at] = prediction.int().unflatten(0, passed).masked_fill(~is_finite, -1)
            self.confidences[at] = confidence.float().unflatten(0, passed).masked_fill(~is_finite, torch.nan)
        return given

    def finish(self, whole: Whole) -> Found:
        """Predictions and confidences of a whole batch."""
        if not self.classes:
            return {}
        return {
            "prediction": self.predictions[:, : whole.n].masked_fill(whole.is_lost, -1),
            "confidence": self.confidences[:, : whole.n].masked_fill(whole.is_lost, torch.nan),
        }

    def not_finite(self, n: int) -> list[list[int]]:
        """The (element, image) of which the output is not finite."""
        return (~self.is_finite[:, :n]).nonzero().tolist()
