"""What a pass collects at each layer, batch by batch, and the deviations that follow from it.

Where the action is faithful, maps are not kept but for f(x) of one slice of a batch: the six sums by which channelwise
measures compare come from one reading of the activations. All else is kept as an orbit (g, b, *z) until the batch is whole.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

import torch
from torch import Tensor

from eedkit.probe.fields import on_field
from eedkit.probe.layers import Layer
from eedkit.probe.matching import Fit
from eedkit.probe.metrics import Metric
from eedkit.theory import actions
from eedkit.theory.actions import Action, LayerAction
from eedkit.theory.deviation import (
    PairCosine,
    deviation,
    deviation_from_other_elements,
    f_hat,
    integrand,
    shuffled,
)
from eedkit.theory.distances import ChannelSums

WORTH_COMPILING = 1e8
"""Numbers in the maps of all streams so far from which on loading or compiling the fused sums costs less than they save."""

IN_CACHE = 2**17
"""Numbers of maps whose float64 copies a processor's cache holds."""

Values = tuple[Tensor, Tensor | None]
"""m for every (element, image) of a batch, and its null where one is asked for."""


def paired_sums(
    z: Tensor, target: Tensor, positions: Tensor, partner: Tensor, sums: Tensor, *, fused: bool = True
) -> None:
    """Write Σz, Σz², Σ z·gt and Σ z′·gt over positions to `sums`, for every image and channel.

    Parameters
    ----------
    z : Tensor (b, P, C)
        f(gx), z′ being that of the partner.
    target : Tensor (b, P, C)
        t = f̂(x).
    positions : Tensor (P,)
        From where each position of gt comes.
    partner : Tensor (b,)
        On which image g acts in the shuffled orbit.
    sums : Tensor (4, b, C)
        In float64.
    fused : bool
        Whether one compiled loop may read the numbers once, where numba is installed and they are float32 on a processor.
    """
    loop = _fused_loop() if fused and z.dtype == torch.float32 and z.device.type == "cpu" else None
    if loop is None:
        _eager_sums(z, target, positions, partner, sums)
        return
    arrays = [tensor.detach().contiguous().numpy() for tensor in (z, target, positions, partner)]
    loop(*arrays, sums.numpy())


def _eager_sums(z: Tensor, target: Tensor, positions: Tensor, partner: Tensor, sums: Tensor) -> None:
    """The same by tensor operations."""
    images = images_in_cache(z)
    for start in range(0, len(z), images):
        some = slice(start, start + images)
        values = z[some].double()
        moved = target[some].index_select(1, positions).double()
        sums[0, some] = values.sum(1)
        sums[1, some] = (values * values).sum(1)
        sums[2, some] = (values * moved).sum(1)
        sums[3, some] = (z[partner[some]] * moved).sum(1)


def images_in_cache(z: Tensor) -> int:
    """For how many images at once tensor operations on maps (b, P, C) are fastest: as many as a processor's cache holds."""
    return max(1, IN_CACHE // max(1, z[0].numel())) if z.device.type == "cpu" else len(z)


@cache
def _fused_loop() -> Callable | None:
    """The loop that reads activations once, compiled for this processor; None without numba."""
    try:
        from eedkit.probe import fused
    except ImportError:
        return None
    return fused.sums_of_images


def loop_is_loaded() -> bool:
    """Whether the compiled loop is there already, so that it costs nothing more."""
    return _fused_loop.cache_info().currsize > 0


_numbers_so_far = 0.0


def is_worth_compiling(numbers: float) -> bool:
    """Whether the compiled loop is there, or worth its loading for a stream of so many numbers and all before it."""
    global _numbers_so_far
    _numbers_so_far += numbers
    return loop_is_loaded() or _numbers_so_far > WORTH_COMPILING


class MapSums:
    """The six sums of channelwise measures at one layer under one faithful action, for one slice of a batch.

    Holds f(x) of the slice, the target of every element. A permutation of positions keeps Σb and Σb², so they are those of
    f(x) itself; of an action that interpolates they are taken from g f(x), over the positions that are compared.
    """

    def __init__(self, action: LayerAction, *, fused: bool) -> None:
        self.action = action
        self.fused = fused
        self.order = action.group.order
        self.target = torch.empty(0)
        self.sums = torch.empty(0)

    def take(self, g: int, z: Tensor, partner: Tensor) -> Tensor:
        """Take f(gx) of the slice, (b, P, C), element by element from the identity on; gives Σz over what is compared, (b, C)."""
        if g == 0:
            target = f_hat(z[None], self.action.kernel)  # (2)
            if self.target.shape != target.shape:
                self.target = torch.empty(target.shape, dtype=target.dtype, device=target.device)
                self.sums = target.new_empty(self.order, 6, len(z), z.shape[2], dtype=torch.float64)
            # a copy, since what the layer gave may be overwritten in place later in the forward pass
            self.target.copy_(target)
        if self.action.interpolates:
            self._take_interpolated(g, z, partner)
        else:
            self._take_permuted(g, z, partner)
        return self.sums[g, 0]

    def _take_permuted(self, g: int, z: Tensor, partner: Tensor) -> None:
        of_x = self.sums[0, :2]
        target = self.target
        if self.action.channels is not None:
            target = target.index_select(-1, self.action.channels[g])
        assert self.action.positions is not None  # what is no operator permutes
        paired_sums(z, target, self.action.positions[g], partner, self.sums[g, :4], fused=self.fused)
        if self.action.channels is not None:
            of_x = of_x.index_select(-1, self.action.channels[g])
        self.sums[g, 4:] = of_x

    def _take_interpolated(self, g: int, z: Tensor, partner: Tensor) -> None:
        moved = self.action(g, self.target)
        if self.action.compared is not None:
            z = z.index_select(1, self.action.compared)
            moved = moved.index_select(1, self.action.compared)
        in_place = torch.arange(z.shape[1], device=z.device)
        paired_sums(z, moved, in_place, partner, self.sums[g, :4], fused=self.fused)
        moved = moved.double()
        self.sums[g, 4] = moved.sum(1)
        self.sums[g, 5] = moved.square().sum(1)

    def pair(self, partners: Tensor | None = None) -> ChannelSums:
        """The sums of f(gx) and g f̂(x), (1, g, b, C); with `partners` those of the shuffled orbit after them, (2, g, b, C)."""
        a, aa, ab, ab_of_partners, b, bb = self.sums.unbind(1)
        n = self.target.shape[1] if self.action.compared is None else len(self.action.compared)
        if partners is None:
            return ChannelSums(n, a[None], b, aa[None], bb, ab[None])
        return ChannelSums(
            n,
            torch.stack([a, shuffled(a, partners)]),
            b,
            torch.stack([aa, shuffled(aa, partners)]),
            bb,
            torch.stack([ab, ab_of_partners]),
        )


@dataclass(frozen=True)
class Place:
    """Where in a batch a forward pass stands: the element, and the rows of the slice that the model sees.

    `map_partners` (g, b) are the partners of maps within the slice; `in_first_half` (b,) are the samples on which
    `Fit.first` was fitted.
    """

    g: int
    rows: slice
    map_partners: Tensor
    in_first_half: Tensor


class SummedMaps:
    """Metrics of maps that follow from six sums under one faithful action; nothing is kept of maps but one slice of f(x).

    Of matched channels there are two actions, one for each half of the samples.
    """

    def __init__(
        self,
        metrics: list[Metric],
        actions: list[LayerAction],
        size: int,
        *,
        null: bool,
        fused: bool,
        device: torch.device,
    ) -> None:
        self.metrics = metrics
        self.sums = [MapSums(action, fused=fused) for action in actions]
        self.size = size
        self.null = null
        self.values: dict[str, Tensor] = {}
        self.compares_all = all(action.compared is None for action in actions)
        self.dead = torch.zeros(2, size, device=device)

    def add(self, metric: Metric) -> None:
        """One more metric under the same action."""
        self.metrics.append(metric)
        self.values[metric.name] = torch.empty(2, self.sums[0].order, self.size, device=self.dead.device)

    def take(self, place: Place, z: Tensor) -> Tensor | None:
        """Take f(gx) of a slice, (b, P, C); gives Σz over positions, where all of them are compared."""
        for sums in self.sums:
            total = sums.take(place.g, z, place.map_partners[place.g])
        if place.g == sums.order - 1:
            self._finish_slice(place)
        return total if self.compares_all else None

    def _finish_slice(self, place: Place) -> None:
        partners = place.map_partners if self.null else None
        pairs = [sums.pair(partners) for sums in self.sums]
        for metric in self.metrics:
            values = [integrand(metric.distance, pair) for pair in pairs]  # (4), and for the shuffled orbit its null
            of_slice = values[0] if len(values) == 1 else torch.where(place.in_first_half, *values)
            self.values[metric.name][: len(of_slice), :, place.rows] = of_slice
        squares = self.sums[0].sums[:, 1]
        self.dead[:, place.rows] = count_dead(squares == 0, squares.isfinite())

    def finish(self, n: int, _partners: Tensor, _map_partners: Tensor) -> dict[str, Values]:
        """The deviations of a whole batch, by metric."""
        return {
            name: (values[0, :, :n], values[1, :, :n] if self.null else None) for name, values in self.values.items()
        }

    def dead_channels(self, n: int) -> Tensor:
        """How many channels are dead in each image, and how many there are: (2, n)."""
        return self.dead[:, :n]


class KeptOrbit:
    """Metrics of one kind of features, whose orbit (g, b, *z) is kept until the batch is whole.

    Parameters
    ----------
    action : callable, or None
        Number of channels -> the action at the layer; None where nothing moves.
    """

    def __init__(
        self, metrics: list[Metric], action: Callable[[int], LayerAction] | None, order: int, size: int, *, null: bool
    ) -> None:
        self.metrics = metrics
        self.action = action
        self.order = order
        self.size = size
        self.null = null
        self.orbit = torch.empty(0, 0, 0)

    def take(self, place: Place, features: Tensor) -> None:
        """Take f(gx) of some images of the batch; ValueError where they do not have the shape of those before."""
        is_first = place.g == place.rows.start == 0
        if is_first and self.orbit.shape[2:] != features.shape[1:]:
            self.orbit = features.new_empty(self.order, self.size, *features.shape[1:])
        shape = (place.rows.stop - place.rows.start, *self.orbit.shape[2:])
        if features.shape != shape:
            raise ValueError(
                f"its features have shape {tuple(features.shape)}, expected {shape}: one row for each image, and one shape for "
                "all of them"
            )
        self.orbit[place.g, place.rows] = features

    def finish(self, n: int, partners: Tensor, map_partners: Tensor) -> dict[str, Values]:
        """The deviations of a whole batch, by metric."""
        orbit = self.orbit[:, :n]
        action = None
        kernel = tuple(range(self.order))
        compared = None
        if self.action is not None:
            action = self.action(orbit.shape[-1])
            kernel = action.kernel
            compared = action.compared
        for metric in self.metrics:
            if metric.distance.of_sets and len(kernel) > 1:
                still = ", ".join(action.group.elements[k] for k in kernel) if action else "all elements"
                raise ValueError(f"sets have no mean, which f̂ would be over {still}, since these move nothing")
        # what f̂ mixes must be different images, those of a whole chain; else any other image serves
        others = shuffled(orbit, map_partners if len(kernel) == 1 else partners) if self.null else None
        values: dict[str, Values] = {}
        for metric in self.metrics:
            value = deviation(orbit, action, metric.distance, kernel, compared=compared)
            if value.shape != orbit.shape[:2]:
                raise TypeError(
                    f"{metric.name}: the distance {metric.distance.name} must give one value for each pair of features "
                    f"{tuple(orbit.shape[2:])}, so {tuple(orbit.shape[:2])}, got {tuple(value.shape)}"
                )
            null = None
            if others is not None and action is not None and metric.null == "elements":
                null = deviation_from_other_elements(orbit, action, metric.distance, compared=compared)
            elif others is not None:
                null = deviation(others, action, metric.distance, kernel, compared=compared)
            values[metric.name] = value, null
        return values

    def dead_channels(self, n: int) -> Tensor:
        """How many channels are dead in each image, and how many there are: (2, n)."""
        orbit = self.orbit[:, :n]
        return count_dead((orbit == 0).all(-2), orbit.isfinite().all(-2))

    def sizes(self, n: int, scale: str) -> Tensor:
        """‖f(x)‖ of each image over what is compared, (n,); with the scale "rms" the root mean square."""
        of_x = self.orbit[0, :n].double()
        if self.action is not None:
            compared = self.action(of_x.shape[-1]).compared
            of_x = of_x if compared is None else of_x.index_select(-2, compared)
        of_x = of_x.flatten(1)
        length = torch.linalg.vector_norm(of_x, dim=-1)
        return length / math.sqrt(of_x.shape[1]) if scale == "rms" else length


def count_dead(is_zero: Tensor, is_finite: Tensor) -> Tensor:
    """Channels that are zero for gx and for x, and all that are finite, from (g, b, C): (2, b)."""
    dead = is_zero & is_zero[:1]
    return torch.stack([dead.sum((0, 2)), is_finite.sum((0, 2))]).float()


class LayerPass:
    """What is collected at one layer: `take` runs in the hook, `finish` when the batch is whole.

    Parameters
    ----------
    layer : Layer
        With its layout, or with the reason why nothing is measured there.
    metrics : sequence of Metric
        Those of maps and vectors, or those of the output.
    no_scores : str
        Why the output is no class scores; empty where it is.
    action : Action
        On images.
    size : int
        Images in the largest batch.
    null : bool
        Whether nulls are asked for.
    fused : bool
        Whether compiled sums are worth it.
    exact : bool
        Whether squares in float64 neither overflow nor vanish: so for float32, not for float64 itself, whose maps are kept.
    fits : dict
        By the name of a matched metric what was fitted for it here.
    """

    def __init__(
        self,
        layer: Layer,
        metrics: Sequence[Metric],
        action: Action,
        *,
        size: int,
        null: bool,
        fused: bool,
        exact: bool,
        fits: dict[str, Fit],
        device: torch.device,
        no_scores: str = "",
    ) -> None:
        self.layer = layer
        self.no_scores = no_scores
        self.metrics = metrics
        self.ran = False
        self.kernel_order = 0
        self.pair_cosines = {metric.name: PairCosine() for metric in metrics if metric.normalised}
        self.dead = torch.zeros(2, dtype=torch.float64)
        self.reasons: dict[str, str] = {}
        self._action = action
        self._device = device
        self._exact = exact
        self._fits = fits
        self._summed: dict[tuple, SummedMaps] = {}
        self._kept: dict[tuple, KeptOrbit] = {}
        for metric in metrics:
            self.reasons[metric.name] = self._why_not(metric)
            if self.reasons[metric.name]:
                continue
            under = self._faithful_actions(metric)
            if under:
                key = (metric.name,) if metric.matched else (metric.action, metric.field)
                summed = SummedMaps([], under, size, null=null, fused=fused, device=device)
                self._summed.setdefault(key, summed).add(metric)
                continue
            moves = None
            if metric.has_positions or metric.action is not None:
                moves = partial(self._at_layer, metric)
            key = metric.where, metric.features, metric.action, metric.field
            kept = self._kept.setdefault(key, KeptOrbit([], moves, action.group.order, size, null=null))
            kept.metrics.append(metric)

    @cached_property
    def _on_field(self) -> Action:
        if self.layer.field_type is None:
            raise ValueError("its output names no representation, as a GeometricTensor of e2cnn or escnn does")
        return on_field(self._action, self.layer.field_type)

    def _at_layer(self, metric: Metric, channels: int) -> LayerAction:
        action = self._on_field if metric.field else metric.action_on(self._action)
        at_layer = action.on(self.layer.grid, channels) if metric.has_positions else action.of_channels(channels)
        return at_layer.to(self._device)

    def _why_not(self, metric: Metric) -> str:
        """Why a metric has no value here; empty when it has one."""
        if metric.where == "raw":
            return ""
        if metric.where == "output" and self.no_scores:
            return self.no_scores
        if self.layer.reason:
            return self.layer.reason
        if metric.where == "dense" and self.layer.grid == (1, 1):
            return "the model's output is no map, but has one position"
        if metric.where != "maps":
            return ""
        if self.layer.role == "class token":
            return "a class token lies nowhere"
        if self.layer.role != "module":
            return "it is the head's input, not a feature map"
        if self.layer.grid == (1, 1):
            return "its output has one position, where a cosine only compares signs"
        if metric.features is not None:
            return ""
        try:
            at_layer = self._at_layer(metric, self.layer.channels)
        except ValueError as error:
            return str(error)
        self.kernel_order = self.kernel_order or len(at_layer.kernel)
        if metric.matched and metric.name not in self._fits:
            return "its channels could not be matched: it does not run in every forward pass"
        if metric.matched and (len(at_layer.kernel) > 1 or at_layer.positions is None):
            return "its channels could not be matched: the action is no faithful permutation of its positions"
        return ""

    def _faithful_actions(self, metric: Metric) -> list[LayerAction]:
        """The action under which sums serve a metric, of matched channels one for each half; none where they do not."""
        if metric.where != "maps" or metric.features is not None or not metric.distance.of_sums:
            return []
        if metric.null == "elements":
            return []
        channels = self.layer.channels
        if metric.matched:
            fit = self._fits[metric.name]
            of_layer = metric.action_on(self._action)
            # each half of the samples is compared under what was fitted on the other
            permuted = [actions.permuted(of_layer, fitted.cpu()) for fitted in (fit.second, fit.first)]
            return [action.on(self.layer.grid, channels).to(self._device) for action in permuted]
        at_layer = self._at_layer(metric, channels)
        permutes_channels = at_layer.channels is None or at_layer.channels.dim() == 2
        is_faithful = len(at_layer.kernel) == 1
        moves_positions = at_layer.positions is not None or at_layer.interpolates
        return [at_layer] if self._exact and is_faithful and permutes_channels and moves_positions else []

    def take(self, place: Place, given: Tensor) -> None:
        """Runs inside the hook: what the layer gave for one element and one slice of the batch."""
        self.ran = True
        if all(self.reasons.values()):
            return
        try:
            z = self.layer.read(given)
        except ValueError as error:
            self.drop(str(error))
            return
        images = place.rows.stop - place.rows.start
        if len(z) != images:
            self.drop(f"its output holds {len(z)} images in a forward pass of {images}")
            return
        if z.dtype in (torch.bfloat16, torch.float16):
            z = z.float()
        total = None
        for summed in self._summed.values():
            total = summed.take(place, z)
        for (where, features, *_), kept in self._kept.items():
            if where == "raw":
                continue
            value = z[:, 0] if where == "output" else z
            if where == "vectors" and features is None:
                value = z.mean(1, dtype=torch.float64) if total is None else total / z.shape[1]
            self._keep(kept, place, features, value)

    def _keep(self, kept: KeptOrbit, place: Place, features: Callable[..., Tensor] | None, *given: Any) -> None:
        """Keep f(gx); where it is not defined, metrics of it have no value, for that reason."""
        try:
            value = given[0] if features is None else features(*given)
            if not isinstance(value, Tensor) or not value.is_floating_point():
                kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(
                    f"features of {kept.metrics[0].name} must be a tensor of floats, got {kind}; convert them"
                )
            # what is made of a raw output may be on the processor
            kept.take(place, value.to(self._device))
        except ValueError as error:
            self._give_up(kept.metrics, str(error))

    def _give_up(self, metrics: Sequence[Metric], reason: str) -> None:
        for metric in metrics:
            self.reasons[metric.name] = self.reasons[metric.name] or reason

    def take_raw(self, place: Place, output: Any, size: tuple[int, int]) -> None:
        """What the model gave for one element and one slice of the batch, whatever it is, of images of some size."""
        for (where, features, *_), kept in self._kept.items():
            if where == "raw":
                self._keep(kept, place, features, output, size)

    def drop(self, reason: str) -> None:
        """Give the layer up, for every metric that reads it by its layout and has no other reason."""
        self._give_up([metric for metric in self.metrics if metric.where != "raw"], reason)

    def finish(self, n: int, partners: Tensor, map_partners: Tensor, is_image: Tensor) -> dict[str, Values]:
        """The deviations of a batch of n images and their nulls, by metric.

        Parameters
        ----------
        partners, map_partners : Tensor (g, n)
            From whole chains, for what f̂ mixes; and from the shorter ones that serve where nothing is mixed.
        is_image : Tensor (n,)
            False where an image could not be read.
        """
        values: dict[str, Values] = {}
        if all(self.reasons.values()):
            return values
        for collected in (*self._summed.values(), *self._kept.values()):
            if all(self.reasons[metric.name] for metric in collected.metrics):
                continue
            try:
                values |= collected.finish(n, partners, map_partners)
            except ValueError as error:
                self._give_up(collected.metrics, str(error))
        maps = [*self._summed.values(), *(kept for key, kept in self._kept.items() if key[:2] == ("maps", None))]
        if maps:
            self.dead += maps[0].dead_channels(n)[:, is_image].sum(1).double().cpu()
        for kept in self._kept.values():
            for metric in kept.metrics:
                if metric.normalised:
                    self.pair_cosines[metric.name].update(kept.orbit[0, :n][is_image])
        return {name: value for name, value in values.items() if not self.reasons[name]}

    def sizes(self, n: int) -> dict[str, Tensor]:
        """‖f(x)‖ or its root mean square for each image, by the metrics whose scale it is."""
        found = {}
        for kept in self._kept.values():
            for metric in kept.metrics:
                scale = metric.distance.scale
                if isinstance(scale, str) and not self.reasons[metric.name]:
                    found[metric.name] = kept.sizes(n, scale)
        return found
