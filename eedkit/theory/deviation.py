"""Deviation from equivariance on tensors: f̂ (2), the integrand of (4), its null, and the mean pairwise cosine.

Knows torch and nothing of layers, labels or files. Holds one batch of one layer at a time, and of the batch before it
one sample's orbit; where the kernel is not trivial, the part of the orbit that comes before the kernel is complete.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from eedkit.theory.actions import Action
from eedkit.theory.distances import Distance

CHAIN = 256
"""Samples in a chain of the null: each is compared with the next in its chain, cyclically."""


def f_hat(orbit: Tensor, kernel: Sequence[int]) -> Tensor:
    """Mean of f over the kernel of the target's action (Kvinge et al. 2022, eq. 2).

    Trivial action: the kernel is all of G, and this is the orbit mean. Faithful: the kernel is {e}, and this is f(x).

    Parameters
    ----------
    orbit : (g, b, *z)    f(gx) for every element g, in the group's order
    kernel : indices of the elements that act as the identity on the target

    Returns
    -------
    (b, *z)

    Raises
    ------
    ValueError
        The kernel is empty or names an element that the orbit does not have.

    >>> f_hat(torch.tensor([[1.0], [3.0]]), kernel=[0, 1])
    tensor([2.])
    """
    if not kernel or not 0 <= min(kernel) <= max(kernel) < len(orbit):
        raise ValueError(f"kernel must name some of the orbit's {len(orbit)} elements, got {list(kernel)}")
    return orbit[list(kernel)].mean(0)


def deviation(orbit: Tensor, action: Action, distance: Distance, kernel: Sequence[int], *, partner=None) -> Tensor:
    """The integrand m(f(gx), g f̂(x)) of (4) for every element and sample (Kvinge et al. 2022, eq. 4).

    The whole orbit at once: what `ChainedDeviation` gives for a stream. With `partner` it is the null *[ours]*: m(f(gx), g f̂(x′)), x′ the sample at position `partner[i]`.

    Parameters
    ----------
    orbit : (g, b, *z)    f(gx)
    action : φ_Z, how G acts on the target
    distance : m
    kernel : of the action at this shape, from `actions.kernel`
    partner : (b,) indices of unrelated samples, or None

    Returns
    -------
    (g, b)

    >>> from eedkit.theory import actions, distances
    >>> deviation(torch.tensor([[[1.0]], [[3.0]]]), actions.trivial("C2"), distances.euclidean, kernel=[0, 1])
    tensor([[1.],
            [1.]])
    """
    target = f_hat(orbit, kernel)
    if partner is not None:
        target = target[list(partner)]
    return torch.stack([distance(z, action(g, target)) for g, z in enumerate(orbit)])


def chains(n: int, length: int = CHAIN) -> list[range]:
    """Positions 0 … n−1 cut into chains of fixed length; a last chain of one joins the one before *[ours]*.

    >>> chains(9, length=4)
    [range(0, 4), range(4, 9)]
    """
    starts = list(range(0, n, length))
    if len(starts) > 1 and n - starts[-1] == 1:
        starts.pop()
    return [range(a, b) for a, b in zip(starts, [*starts[1:], n], strict=True)] if n else []


def partners(n: int, length: int = CHAIN) -> list[int]:
    """For every position the one of its unrelated sample: the next in the chain, cyclically *[ours]*.

    >>> partners(5, length=2)
    [1, 0, 3, 4, 2]
    """
    return [chain[(i + 1) % len(chain)] for chain in chains(n, length) for i in range(len(chain))]


Found = tuple[list[int], Tensor | None, Tensor | None]


@dataclass
class ChainedDeviation:
    """`deviation` and its null over a stream: batches of a chain come in order, each one element by element.

    The null of a batch's last sample waits for the next batch (or, at a chain's end, uses the chain's first sample), so
    that it depends neither on the batch size nor on where the stream was cut.

    Parameters
    ----------
    action, distance, kernel : as in `deviation`
    null : whether the null is asked for

    >>> from eedkit.theory import actions, distances
    >>> stream = ChainedDeviation(actions.trivial("C2"), distances.euclidean, (0, 1), null=False)
    >>> stream.begin(ends=True)
    >>> stream.add(0, torch.tensor([[1.0]]))
    ([], None, None)
    >>> stream.add(1, torch.tensor([[3.0]]))
    ([0, 1], tensor([[1.],
            [1.]]), None)
    """

    action: Action
    distance: Distance
    kernel: Sequence[int]
    null: bool = True
    # whether the chain ends with this batch; f(gx) until the kernel is complete; then f̂(x) of the batch
    _ends: bool = True
    _held: dict[int, Tensor] = field(default_factory=dict)
    _target: Tensor | None = None
    # f̂ of the chain's first sample; and f(gx) of the last sample, of the batch before and of this one, by elements
    _first: Tensor | None = None
    _last: dict[tuple[int, ...], Tensor] = field(default_factory=dict)
    _coming: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    def begin(self, *, ends: bool) -> None:
        """Open the next batch; `ends` says that the chain ends with it."""
        if self._ends:
            self._coming, self._first = {}, None
        self._last, self._coming = self._coming, {}
        self._ends, self._target = ends, None

    def add(self, g: int, z: Tensor) -> Found:
        """Take f(gx) of the batch, (b, *z), the elements in the same order in every batch; give back what is known by it.

        elements : k indices, none while the kernel is not complete
        value : (k, b)    m(f(gx), g f̂(x))
        null : (k, b + 1)    entry 0 belongs to the last sample of the batch before, entry i + 1 to sample i; NaN where
        there is no such sample or its partner is still to come
        """
        if self._target is not None:
            return self._compare([g], z[None])
        # the layer's output may be overwritten in place later in the forward pass, so what is held is a copy
        self._held[g] = z.clone()
        if any(k not in self._held for k in self.kernel):
            return [], None, None
        in_kernel = [self._held[k] for k in self.kernel]
        self._target = in_kernel[0] if len(in_kernel) == 1 else torch.stack(in_kernel).mean(0)
        if self._first is None:
            self._first = self._target[:1].clone()
        held, self._held = self._held, {}
        return self._compare(list(held), _stacked(list(held.values())))

    def _compare(self, elements: list[int], z: Tensor) -> Found:
        """The integrand and its null for some elements at once, z (k, b, *z): one call of the distance serves them all."""
        target = self._moved(elements, self._target)
        value = self.distance(z, target)
        if not self.null:
            return elements, value, None
        null = value.new_full((len(elements), z.shape[1] + 1), float("nan"))
        if self._last:
            null[:, :1] = self.distance(self._last[tuple(elements)], target[:, :1])
        if z.shape[1] > 1:
            null[:, 1:-1] = self.distance(z[:, :-1], target[:, 1:])
        if self._ends:
            null[:, -1:] = self.distance(z[:, -1:], self._moved(elements, self._first))
        self._coming[tuple(elements)] = z[:, -1:].clone()
        return elements, value, null

    def _moved(self, elements: list[int], target: Tensor) -> Tensor:
        return _stacked([self.action(g, target) for g in elements])


def _stacked(tensors: list[Tensor]) -> Tensor:
    """(k, *z) of k tensors, without a copy where there is one."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(tensors)


@dataclass
class PairCosine:
    """M = (‖Σu‖² − n) / (n² − n), the mean cosine over pairs of different vectors, u the unit vectors *[closed form ours]*.

    The latent normaliser of the paper (eq. 6), held as (Σu, n): mergeable over batches and machines, without an n×n matrix.
    Vectors that are zero or not finite have no direction and are left out.

    >>> state = PairCosine()
    >>> state.update(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    >>> state.result()
    0.0
    """

    total: Tensor | None = None
    n: int = 0

    def update(self, vectors: Tensor) -> None:
        """Add vectors (b, d)."""
        vectors = vectors.to(torch.float64)
        norms = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
        alive = (norms[:, 0] > 0) & norms[:, 0].isfinite()
        self.merge(PairCosine((vectors[alive] / norms[alive]).sum(0), int(alive.sum())))

    def merge(self, other: "PairCosine") -> None:
        """Add another state, over other vectors."""
        if other.total is not None:
            self.total = other.total if self.total is None else self.total + other.total
            self.n += other.n

    def result(self) -> float:
        """M; NaN for fewer than two vectors."""
        if self.n < 2:
            return float("nan")
        return ((self.total.square().sum().item()) - self.n) / (self.n**2 - self.n)
