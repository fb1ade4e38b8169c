"""For each element the permutation of channels under which a layer comes nearest to equivariance *[ours]*, cross-fitted.

Knows layers and actions, never labels. Costs |G| forwards of up to 512 images for each call, and so for each block of a study,
beside the pass itself; holds |G| matrices C×C of each layer in float64.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby, islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from eedkit.errors import Undefined, naming_extras
from eedkit.probe.layers import Layer
from eedkit.probe.samples import Sample
from eedkit.theory import actions
from eedkit.theory.actions import Action, LayerAction

if TYPE_CHECKING:
    from eedkit.probe.collect import Place


@dataclass(frozen=True)
class Fit:
    """Permutations (g, C) at a layer: fitted on the first half of the images, and on the second."""

    first: Tensor
    second: Tensor


def matched(action: Action, layer: Layer) -> tuple[Action, Action]:
    """How G acts on maps whose channels are permuted as fits best: for images of the second half, and for those of the first.

    Each half is compared under what was fitted on the other.
    """
    if action.on(layer.grid, layer.channels).positions is None:
        raise Undefined("its channels could not be matched: the action is no permutation of its positions")
    if layer.fit is None:
        raise Undefined("its channels could not be matched: it does not run in every forward pass")
    fit: Fit = layer.fit
    return actions.permuted(action, fit.first.cpu()), actions.permuted(action, fit.second.cpu())


def fit(
    layers: Sequence[Layer],
    samples: Iterator[Sample],
    half: int,
    batch_size: int,
    *,
    action: Action,
    run: Callable[[Sequence[Sample], Callable[[Layer, "Place", Tensor], None]], None],
) -> dict[Layer, Fit]:
    """For each layer the permutations σ_g that maximise Σ_i mean_x cos(f(gx)_i, (g f(x))_(σ_g(i))).

    Layers on whose maps the action is not defined, or which do not run in every forward pass, are left out.

    Parameters
    ----------
    layers : sequence of Layer
        With maps.
    samples, half
        From `samples.open_halves`.
    batch_size : int
        How many of them are run at once.
    run : callable
        (samples, what takes a layer, a forward pass and the orbit (g, b, P, C) of the layer's maps in it) -> nothing.

    Raises
    ------
    ValueError
        In one half there is no image that can be read.
    """
    layer_actions = {}
    for layer in layers:
        with suppress(Undefined):  # the metric's own action says so, too
            layer_actions[layer] = action.on(layer.grid, layer.channels)
    of_halves = []
    for _, of_half in groupby(samples, lambda sample: sample.row < half):
        cosines = {layer: ChannelCosines(of_layer) for layer, of_layer in layer_actions.items()}

        def take(layer: Layer, place: "Place", orbit: Tensor, cosines: dict = cosines) -> None:
            if layer in cosines:
                cosines[layer].take(place, orbit)

        images = 0
        while batch := list(islice(of_half, batch_size)):
            images += len(batch)
            run(batch, take)
        of_halves.append({layer: one.permutations() for layer, one in cosines.items() if (one.images == images).all()})
    if len(of_halves) < 2:
        raise ValueError(f"no image of one half of the {2 * half} that channels are matched on could be read")
    first, second = of_halves
    return {layer: Fit(first[layer], second[layer]) for layer in first if layer in second}


class ChannelCosines:
    """Sums over images of the cosines between every channel of f(gx) and every channel of g f(x): (g, C, C).

    A dead channel agrees with a dead one, as in the metric's distance; one that is not finite counts as dead.
    """

    def __init__(self, action: LayerAction) -> None:
        self.action = action
        self.images = torch.zeros(action.group.order, dtype=torch.int64)
        self.totals = torch.empty(0)

    def take(self, place: "Place", orbit: Tensor) -> None:
        """Add what one forward pass holds of an orbit, (g, b, P, C)."""
        _, images, _, channels = orbit.shape
        if not self.totals.numel():
            order = self.action.group.order
            self.totals = torch.zeros(order, channels, channels, dtype=torch.float64, device=orbit.device)
            self.action = self.action.to(orbit.device)
        orbit, is_dead = _of_norm_one(orbit)
        is_dead = is_dead.double()
        for k, g in list(enumerate(place.elements))[place.fresh :]:
            moved = self.action(g, orbit[0])
            self.totals[g] += (orbit[k].flatten(0, 1).T @ moved.flatten(0, 1)).double()
            self.totals[g] += is_dead[k].T @ is_dead[0]
            self.images[g] += images

    def permutations(self) -> Tensor:
        """(g, C)."""
        return assigned(self.totals)


def _of_norm_one(orbit: Tensor) -> tuple[Tensor, Tensor]:
    """Maps (g, b, P, C) whose channels have norm 1, and which of these, (g, b, C), are dead or not finite, and so 0."""
    norms = orbit.square().sum(-2).sqrt()
    is_finite = norms.isfinite()
    is_dead = ~((norms > 0) & is_finite)
    factors = norms.reciprocal().masked_fill(is_dead, 0.0)
    if not is_finite.all():
        orbit = orbit.masked_fill(~is_finite[..., None, :], 0.0)
    return orbit * factors[..., None, :], is_dead


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
