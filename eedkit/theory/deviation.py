"""Deviation from equivariance on tensors: f̂ (2), the integrand of (4), the shuffled orbit of the null, and M.

Knows torch and nothing of layers, labels or files. Costs one orbit of what it is given.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eedkit.theory.actions import LayerAction
from eedkit.theory.distances import Distance

SHORTEST_CHAIN = 4
"""Images in a chain of the null where the group is smaller."""
MAP_CHAIN = 8
"""Images in a chain of maps where the group is larger: maps are not mixed, so that any other image serves."""


def f_hat(orbit: Tensor, kernel: Sequence[int]) -> Tensor:
    """Mean of f over the kernel of the target's action (Kvinge et al. 2022, eq. 2).

    Trivial action: the kernel is all of G, and this is the orbit mean. Faithful: the kernel is {e}, and this is f(x).
    Shapes: the orbit (g, b, *z) in the group's order, f̂ (b, *z).

    >>> f_hat(torch.tensor([[1.0], [3.0]]), kernel=[0, 1])
    tensor([2.])
    """
    if not kernel or not 0 <= min(kernel) <= max(kernel) < len(orbit):
        raise ValueError(f"kernel must name some of the orbit's {len(orbit)} elements, got {list(kernel)}")
    if len(kernel) == 1:
        return orbit[kernel[0]]
    if len(kernel) == len(orbit):
        return orbit.mean(0)
    return orbit[list(kernel)].mean(0)


def deviation(orbit: Tensor, action: LayerAction, distance: Distance, *, kernel: Sequence[int] | None = None) -> Tensor:
    """The integrand m(f(gx), g f̂(x)) of (4) for every element and sample (Kvinge et al. 2022, eq. 4).

    The null is the same of the shuffled orbit: `deviation(shuffled(orbit, partners), …)` *[ours]*. `kernel` says over
    which elements f̂ is the mean; None: the kernel of the action, and with `(0,)` this is m(f(gx), g f(x)).
    Shapes: the orbit (g, b, *z), values (g, b).

    >>> from eedkit.theory import actions, distances
    >>> orbit = torch.tensor([[[1.0]], [[3.0]]])
    >>> deviation(orbit, actions.trivial("C2").on_vectors(1), distances.euclidean)
    tensor([[1.],
            [1.]], dtype=torch.float64)
    """
    target = f_hat(orbit, action.kernel if kernel is None else kernel)  # (2)
    if len(action.kernel) == len(orbit):
        moved = target[None]
    else:
        moved = torch.stack([target if g in action.kernel else action(g, target) for g in range(len(orbit))])
    return distance(action.visible(orbit), action.visible(moved))  # (4)


def null_of_elements(
    orbit: Tensor, action: LayerAction, distance: Distance, *, kernel: Sequence[int] | None = None
) -> Tensor:
    """The null of the element: the mean of m(f(gx), g′ f̂(x)) over every g′ that moves otherwise than g *[ours]*.

    For outputs that unrelated images may rightly share, so that no other image can serve. Relative values are 1 where
    f(gx) is no more like g f̂(x) than like f̂(x) moved otherwise. An element of the kernel moves nothing; its value is
    that of (4). Arguments and shape are those of `deviation`; NaN where every element is in the kernel.

    >>> from eedkit.theory import actions, distances
    >>> turn = actions.coordinates("C4").on_vectors(2)
    >>> orbit = torch.stack([turn(g, torch.tensor([[3.0, 4.0]])) for g in range(4)])
    >>> null_of_elements(orbit, turn, distances.euclidean).mean(1).round(decimals=2)
    tensor([0.0000, 8.0500, 8.0500, 8.0500], dtype=torch.float64)
    """
    group, still = action.group, action.kernel
    null = torch.full(orbit.shape[:2], torch.nan, dtype=torch.float64, device=orbit.device)
    if len(still) == group.order:
        return null
    target = f_hat(orbit, still if kernel is None else kernel)  # (2)
    seen = action.visible(orbit)
    values = torch.stack([distance(seen, action.visible(action(g, target))[None]) for g in range(group.order)])
    for g in range(group.order):
        alike = [g] if group.is_sample else group.products[g, list(still)].tolist()
        others = [other for other in range(group.order) if other not in alike]
        null[g] = values[g, g] if g in still else values[others, g].mean(0)
    return null


def chains(n: int, length: int) -> list[range]:
    """Positions 0 … n−1 cut into chains of one length; a remainder that is shorter joins the chain before *[ours]*.

    >>> chains(9, length=4)
    [range(0, 4), range(4, 9)]
    """
    if n == 0:
        return []
    starts = [length * chain for chain in range(max(n // length, 1))]
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], n], strict=True)]


def partners(chains: Sequence[range], order: int) -> Tensor:
    """On which image each element acts in the shuffled orbit of every image, (g, n); chains make up 0 … n−1 *[ours]*.

    Element k of x_i's shuffled orbit is f(g_k x_{i+k}), counted round x_i's chain; the identity acts on x_i itself. In
    a chain of fewer than |G| images the others come again: 1 + (k − 1) mod (length − 1).

    >>> partners([range(0, 3)], order=3)
    tensor([[0, 1, 2],
            [1, 2, 0],
            [2, 0, 1]])
    """
    element = torch.arange(order)[:, None]
    columns = []
    for chain in chains:
        length = len(chain)
        offset = torch.where(element == 0, 0, 1 + (element - 1) % max(length - 1, 1))
        columns.append(chain.start + (torch.arange(length) + offset) % length)
    return torch.cat(columns, dim=1)


def shuffled(orbit: Tensor, partners: Tensor) -> Tensor:
    """The shuffled orbit {f(g_k x_{i+k})}, (g, b, *z) with whole chains along b; its deviation is the null *[ours]*.

    A permutation null: within each element the samples are permuted. Relative values are 1 where the deviation is as
    large as this: a moved copy is as far away as another image.

    >>> shuffled(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), partners([range(0, 2)], order=2))
    tensor([[1., 2.],
            [4., 3.]])
    """
    return orbit[torch.arange(len(orbit), device=orbit.device)[:, None], partners]


@dataclass
class PairCosine:
    """M = (‖Σu‖² − n) / (n² − n), the mean cosine over pairs of different vectors, u unit vectors *[closed form ours]*.

    The latent normaliser of the paper (eq. 6), held as (Σu, n): without an n×n matrix, and the same however the vectors
    are split. Vectors that are zero or not finite have no direction and are left out.

    >>> state = PairCosine()
    >>> state.update(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    >>> state.result()
    0.0
    """

    total: Tensor | float = 0.0
    n: int = 0

    def update(self, vectors: Tensor) -> None:
        """Add vectors (b, d)."""
        vectors = vectors.double()
        norms = torch.linalg.vector_norm(vectors, dim=-1)
        has_direction = (norms > 0) & norms.isfinite()
        self.total = self.total + (vectors[has_direction] / norms[has_direction, None]).sum(0)
        self.n += int(has_direction.sum())

    def result(self) -> float:
        """M; NaN for fewer than two vectors."""
        if self.n < 2:
            return float("nan")
        return float((torch.as_tensor(self.total).square().sum() - self.n) / (self.n**2 - self.n))  # (6)
