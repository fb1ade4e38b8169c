"""For each element the permutation of channels under which a layer comes nearest to equivariance *[ours]*, cross-fitted.

Knows models, taps and actions, never labels. Costs |G| forwards of up to 512 images for each call, and so for each block of
a study, beside the pass itself; holds one batch of maps per layer, and |G| matrices C×C in float64.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from eedkit.probe import capture
from eedkit.probe.capture import Layer
from eedkit.probe.metrics import Metric
from eedkit.probe.stream import Sample, Stream, cut
from eedkit.theory import actions
from eedkit.theory.actions import Action
from eedkit.theory.deviation import ChainedDeviation, Found
from eedkit.theory.distances import Distance

HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Fit:
    """What was fitted for a metric at a layer: permutations (g, C) by the positions below `half`, and by those from `half` on.

    `start` is the position of the first sample that will be scored.
    """

    below: Tensor
    above: Tensor
    half: int
    start: int


def fit(
    model: nn.Module,
    layers: Sequence[Layer],
    halves: Stream,
    *,
    start: int,
    action: Action,
    metrics: Sequence[Metric],
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[tuple[str, Layer], Fit]:
    """For each matched metric (by name) and layer the permutations σ_g that maximise Σ_i mean_x cos(f(gx)_i, (g f(x))_(σ_g(i))).

    Layers that are no maps, or on whose maps the action is not defined, are left out. `halves` is `stream.open_halves`.

    Raises
    ------
    ValueError
        In one half there is no image that can be read.
    """
    half, found = halves.length // 2, []
    modules = [layer for layer in layers if layer.role == "module"]
    for _, samples in groupby(halves.samples, lambda sample: sample.row < half):
        sums = Cosines(action, [metric for metric in metrics if metric.matched])
        # the model's autocast must not reach the products
        on_layer = torch.autocast(device.type, enabled=False)(sums.on_layer)
        with capture.tap(model, modules, on_layer):
            for images in _batches(samples, batch_size):
                images = images.to(device, dtype)
                for g in range(action.group.order):
                    sums.begin(g, len(images))
                    model(action(g, images).clone())
        found.append(sums.permutations())
    if len(found) < 2:
        raise ValueError(f"no image of one half of the {halves.length} that channels are matched on could be read")
    below, above = found
    return {key: Fit(below[key], above[key], half, start) for key in below if key in above}


def _batches(samples: Iterator[Sample], batch_size: int) -> Iterator[Tensor]:
    for batch, _ in cut(samples, batch_size):
        yield torch.stack([sample.image for sample in batch])


class Cosines:
    """Sums over samples of the cosines between every channel of f(gx) and every channel of g f(x): (g, C, C) at each layer.

    A dead channel agrees with a dead one, as in the metric's distance; one that is not finite counts as dead.
    """

    def __init__(self, action: Action, metrics: Sequence[Metric]) -> None:
        self.action, self.metrics = action, metrics
        self.g, self.size, self.passed = 0, 0, 0
        self.of_x: dict[tuple[str, Layer], Tensor] = {}
        self.totals: dict[tuple[str, Layer], Tensor] = {}
        self.counts = Counter[tuple[str, Layer]]()

    def begin(self, g: int, size: int) -> None:
        """Say whose images, and how many, the next forward pass sees."""
        if g == 0:
            self.of_x.clear()
        self.g, self.size = g, size
        self.passed += size

    def on_layer(self, layer: Layer, z: Tensor) -> None:
        """Runs inside the hook: add this element's cosines."""
        if not z.dim() or len(z) != self.size:
            return
        z = z.float() if z.dtype in HALF else z
        for metric in self.metrics:
            key = metric.name, layer
            try:
                found = _unit(metric.features(z))
                if self.g == 0:
                    self.of_x[key] = found
                if key not in self.of_x:
                    continue
                moved = metric.action(self.action)(self.g, self.of_x[key])
            except ValueError:
                continue
            cosines = torch.einsum("bihw,bjhw->ij", found, moved)
            # two dead channels agree, as they do where permutations are scored
            cosines += torch.einsum("bi,bj->ij", *((part == 0).flatten(2).all(-1).to(part) for part in (found, moved)))
            if key not in self.totals:
                self.totals[key] = cosines.new_zeros(self.action.group.order, *cosines.shape, dtype=torch.float64)
            self.totals[key][self.g] += cosines
            self.counts[key] += len(z)

    def permutations(self) -> dict[tuple[str, Layer], Tensor]:
        """(g, C) for every layer that was there in every forward pass."""
        return {key: assigned(total) for key, total in self.totals.items() if self.counts[key] == self.passed}


def _unit(z: Tensor) -> Tensor:
    """Maps (b, C, H, W) of norm 1; 0 where a channel is dead or not finite."""
    norms = torch.linalg.vector_norm(z, dim=(-2, -1), keepdim=True)
    return torch.where((norms > 0) & norms.isfinite(), z / norms, 0.0)


def assigned(totals: Tensor) -> Tensor:
    """The permutations (g, C) of largest sum, from sums (g, C, C); the identity element permutes nothing.

    >>> assigned(torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.1, 0.9], [0.8, 0.2]]]))
    tensor([[0, 1],
            [1, 0]])
    """
    # kept out of the module's imports: measuring without it needs no scipy
    from scipy.optimize import linear_sum_assignment

    channels = torch.arange(totals.shape[-1])
    # where the cosines leave it open, as between dead channels, a channel stays where it is
    scores = (totals.cpu() + 1e-9 * torch.eye(len(channels), dtype=torch.float64)).numpy()
    best = [torch.from_numpy(linear_sum_assignment(score, maximize=True)[1]) for score in scores[1:]]
    return torch.stack([channels, *best]).to(totals.device)


@dataclass
class CrossFitted:
    """Two streams of `ChainedDeviation`, each sample's value coming from the permutations that it had no part in.

    Parameters
    ----------
    early, late : for the positions below `half`, and for the others
    position : of the batch's first sample
    """

    early: ChainedDeviation
    late: ChainedDeviation
    half: int
    position: int
    _size: int = 0

    @classmethod
    def under(cls, fit: Fit, action: Action, m: Distance, shape: Sequence[int], *, null: bool) -> "CrossFitted":
        """Positions below `half` under the permutations fitted from `half` on, the others under those fitted below."""
        targets = [actions.permuted(action, permutations) for permutations in (fit.above, fit.below)]
        # of one kernel, so that both give their values for the same elements at the same time
        kernel = sorted(set.intersection(*(set(actions.kernel(target, shape)) for target in targets)))
        return cls(*(ChainedDeviation(target, m, kernel, null=null) for target in targets), fit.half, fit.start)

    def begin(self, *, ends: bool) -> None:
        """Open the next batch; `ends` says that the chain ends with it."""
        self.position, self._size = self.position + self._size, 0
        self.early.begin(ends=ends)
        self.late.begin(ends=ends)

    def add(self, g: int, z: Tensor) -> Found:
        """`ChainedDeviation.add`."""
        self._size = len(z)
        elements, value, null = self.late.add(g, z)
        if self.position > self.half:
            return elements, value, null
        _, early, early_null = self.early.add(g, z)
        if not elements:
            return elements, value, null
        below = self.half - self.position
        value = torch.cat([early[:, :below], value[:, below:]], 1)
        if null is not None:
            # its entries begin with the last sample of the batch before
            null = torch.cat([early_null[:, : below + 1], null[:, below + 1 :]], 1)
        return elements, value, null
