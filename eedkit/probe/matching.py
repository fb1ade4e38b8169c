"""For each element the permutation of channels under which a layer comes nearest to equivariance *[ours]*, cross-fitted.

Knows taps and actions, never labels. Costs |G| forwards of up to 512 images for each call, and so for each block of a study,
beside the pass itself; holds one batch of maps per layer, and |G| matrices C×C in float64.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice

import torch
from torch import Tensor, nn

from eedkit.errors import naming_extras
from eedkit.probe.layers import Found, Layer, tap
from eedkit.probe.metrics import Metric
from eedkit.probe.samples import Sample
from eedkit.theory.actions import Action

Key = tuple[str, str]
"""The name of a metric and of a layer."""


@dataclass(frozen=True)
class Fit:
    """Permutations (g, C) of a metric at a layer: fitted on the first half of the samples, and on the second."""

    first: Tensor
    second: Tensor


def fit(
    model: nn.Module,
    found: Found,
    samples: Iterator[Sample],
    half: int,
    *,
    action: Action,
    metrics: Sequence[Metric],
    batch_size: int,
    forward: Callable[[int, Tensor], object],
) -> dict[Key, Fit]:
    """For each matched metric and layer the permutations σ_g that maximise Σ_i mean_x cos(f(gx)_i, (g f(x))_(σ_g(i))).

    Layers without maps, or on whose maps the action is not defined, are left out.

    Parameters
    ----------
    samples, half
        From `samples.open_halves`.
    forward : callable
        (index of g, images (b, C, H, W)) -> the model's forward pass on the moved images.

    Raises
    ------
    ValueError
        In one half there is no image that can be read.
    """
    of_halves = []
    modules = [layer for layer in found.layers if layer.role == "module" and layer.layout]
    for _, of_half in groupby(samples, lambda sample: sample.row < half):
        cosines = ChannelCosines(action, [metric for metric in metrics if metric.matched])
        with tap(model, modules, found.output, cosines.on_layer):
            while batch := list(islice(of_half, batch_size)):
                images = torch.stack([sample.image for sample in batch])
                for g in range(action.group.order):
                    cosines.begin(g, len(batch))
                    forward(g, images)
        of_halves.append(cosines.permutations())
    if len(of_halves) < 2:
        raise ValueError(f"no image of one half of the {2 * half} that channels are matched on could be read")
    first, second = of_halves
    return {key: Fit(first[key], second[key]) for key in first if key in second}


class ChannelCosines:
    """Sums over samples of the cosines between every channel of f(gx) and every channel of g f(x): (g, C, C) at each layer.

    A dead channel agrees with a dead one, as in the metric's distance; one that is not finite counts as dead.
    """

    def __init__(self, action: Action, metrics: Sequence[Metric]) -> None:
        self.action = action
        self.metrics = metrics
        self.g = 0
        self.size = 0
        self.passed = 0
        self.of_x: dict[Key, Tensor] = {}
        self.totals: dict[Key, Tensor] = {}
        self.counts = Counter[Key]()

    def begin(self, g: int, size: int) -> None:
        """Say whose images, and how many, the next forward pass sees."""
        if g == 0:
            self.of_x.clear()
        self.g = g
        self.size = size
        self.passed += size

    def on_layer(self, layer: Layer, given: Tensor) -> None:
        """Runs inside the hook: add this element's cosines, which are not taken in half precision."""
        with torch.autocast(given.device.type, enabled=False):
            for metric in self.metrics:
                self._add(metric, layer, given)

    def _add(self, metric: Metric, layer: Layer, given: Tensor) -> None:
        key = metric.name, layer.name
        try:
            maps = _of_norm_one(layer.read(given))
            at_layer = metric.action_on(self.action).on(layer.grid, layer.channels).to(maps.device)
        except ValueError:
            return
        if len(maps) != self.size:
            return
        if self.g == 0:
            self.of_x[key] = maps
        if key not in self.of_x:
            return
        moved = at_layer(self.g, self.of_x[key])
        cosines = torch.einsum("bpi,bpj->ij", maps, moved).double()
        # two dead channels agree, as they do where permutations are scored
        dead, dead_moved = ((part == 0).all(1).double() for part in (maps, moved))
        cosines += torch.einsum("bi,bj->ij", dead, dead_moved)
        if key not in self.totals:
            self.totals[key] = cosines.new_zeros(self.action.group.order, *cosines.shape)
        self.totals[key][self.g] += cosines
        self.counts[key] += len(maps)

    def permutations(self) -> dict[Key, Tensor]:
        """(g, C) for every layer that was there in every forward pass."""
        return {key: assigned(total) for key, total in self.totals.items() if self.counts[key] == self.passed}


def _of_norm_one(z: Tensor) -> Tensor:
    """Maps (b, P, C) whose channels have norm 1; 0 where a channel is dead or not finite."""
    largest = z.abs().amax(1, keepdim=True)
    is_alive = (largest > 0) & largest.isfinite()
    scaled = torch.where(is_alive, z / torch.where(is_alive, largest, 1), 0)
    if scaled.dtype != torch.float64:
        scaled = scaled.float()
    norms = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return torch.where(is_alive, scaled / torch.where(is_alive, norms, 1), 0)


def assigned(totals: Tensor) -> Tensor:
    """The permutations (g, C) of largest sum, from sums (g, C, C); the identity element permutes nothing.

    >>> assigned(torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.1, 0.9], [0.8, 0.2]]]))
    tensor([[0, 1],
            [1, 0]])
    """
    # kept out of the module's imports: measuring without it needs no scipy
    with naming_extras():
        from scipy.optimize import linear_sum_assignment

    channels = torch.arange(totals.shape[-1])
    # where the cosines leave it open, as between dead channels, a channel stays where it is
    scores = (totals.cpu() + 1e-9 * torch.eye(len(channels), dtype=torch.float64)).numpy()
    best = [torch.from_numpy(linear_sum_assignment(score, maximize=True)[1]) for score in scores[1:]]
    return torch.stack([channels, *best]).to(totals.device)
