"""Distances m as values: how far two points of the target space are apart, larger meaning less alike.

Knows torch alone. Costs one pass over its two arguments; leading dimensions broadcast, so one call may serve an orbit.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor


@dataclass(frozen=True)
class Distance:
    """m(a, b) of (4), with what a reader of its values must know (Kvinge et al. 2022, section 3.1).

    Similarities carry a minus sign, so that larger always means less invariant (the paper's convention).

    Parameters
    ----------
    name : the key in `DISTANCES`
    between : (a, b) with the point's dimensions last -> one value for each pair, shape of the leading dimensions
    best : m(a, a); NaN where it depends on a
    upper : the largest value there is
    unit : "1" or "nat"
    scale : the size of a large difference, for judging whether a gap is small; NaN where the space has no scale of its own
    is_metric : whether symmetry and the triangle inequality hold, with 0 only for equal points
    equation : for docstrings and attributes

    >>> euclidean(torch.tensor([3.0, 4.0]), torch.zeros(2))
    tensor(5.)
    """

    name: str
    between: Callable[[Tensor, Tensor], Tensor]
    best: float
    upper: float
    unit: str
    scale: float
    is_metric: bool
    equation: str

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """m(a, b): (…, *z), (…, *z) -> (…)."""
        return self.between(a, b)


def _cosine(a: Tensor, b: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Cosines over the last dimensions, 1 where both are zero and 0 where one is; and where both are zero.

    The dimensions are not flattened: that would copy a turned map, at many times the cost of the products.
    """
    dot = (a * b).sum(dims)
    norms = torch.linalg.vector_norm(a, dim=dims), torch.linalg.vector_norm(b, dim=dims)
    zero = norms[0] == 0, norms[1] == 0
    both = zero[0] & zero[1]
    # dividing twice, since the product of two small norms may underflow; 0 · dot is 0, or NaN beside a NaN, which stays
    cosine = torch.where(zero[0] | zero[1], both + 0 * dot, dot / norms[0] / norms[1])
    return cosine.clamp(-1, 1), both


def _negative_cosine(a: Tensor, b: Tensor) -> Tensor:
    return -_cosine(a, b, (-1,))[0]


def _channelwise(dead: str, a: Tensor, b: Tensor) -> Tensor:
    cosine, both = _cosine(a, b, (-2, -1))
    if dead == "agree":
        return -cosine.mean(-1)
    alive = ~both
    total = -(cosine * alive).sum(-1)
    return total / (alive.sum(-1) if dead == "skip" else cosine.shape[-1])


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(-1)


def _js(p: Tensor, q: Tensor) -> Tensor:
    middle = (p + q) / 2
    return (_kl(p, middle) + _kl(q, middle)) / 2


negative_cosine = Distance(
    "negative_cosine", _negative_cosine, -1.0, 1.0, "1", 1.0, False, "−⟨a, b⟩ / (‖a‖ ‖b‖)"
)  # fmt: skip
"""−cos(a, b) of vectors (…, d); two zero vectors agree (−1), a zero and a non-zero vector are orthogonal (0)."""

channelwise_negative_cosine = Distance(
    "channelwise_negative_cosine", partial(_channelwise, "agree"), -1.0, 1.0, "1", 1.0, False,
    "−(1/C) Σᵢ cos(aᵢ, bᵢ), a dead channel (both zero) counting as 1",
)  # fmt: skip
"""(5): minus the mean over channels of the cosine of two maps (…, C, H, W), each taken as a vector of H·W numbers."""

channelwise_negative_cosine_zero = Distance(
    "channelwise_negative_cosine_zero", partial(_channelwise, "zero"), -1.0, 1.0, "1", 1.0, False,
    "−(1/C) Σᵢ cos(aᵢ, bᵢ), a dead channel (both zero) counting as 0",
)  # fmt: skip
"""The reading in which dead channels count as cosine 0: what a plain library cosine gives. Its best value needs live channels."""

channelwise_negative_cosine_skip = Distance(
    "channelwise_negative_cosine_skip", partial(_channelwise, "skip"), -1.0, 1.0, "1", 1.0, False,
    "−mean over live channels of cos(aᵢ, bᵢ)",
)  # fmt: skip
"""The reading in which dead channels are left out; NaN where all are dead."""

euclidean = Distance(
    "euclidean", lambda a, b: torch.linalg.vector_norm(a - b, dim=-1), 0.0, math.inf, "1", math.nan, True, "‖a − b‖₂"
)  # fmt: skip
"""‖a − b‖₂ of vectors (…, d)."""

kl = Distance("kl", _kl, 0.0, math.inf, "nat", 1.0, False, "Σ p log(p / q)")
"""KL(p ‖ q) in nats of distributions (…, k); ∞ where q is 0 and p is not."""

kl_reverse = Distance("kl_reverse", lambda p, q: _kl(q, p), 0.0, math.inf, "nat", 1.0, False, "Σ q log(q / p)")
"""KL(q ‖ p): the other direction."""

jensen_shannon = Distance(
    "jensen_shannon", _js, 0.0, math.log(2), "nat", math.log(2), False, "½ KL(p ‖ (p+q)/2) + ½ KL(q ‖ (p+q)/2)"
)  # fmt: skip
"""Jensen-Shannon divergence in nats, between 0 and log 2; its square root is a metric."""

total_variation = Distance(
    "total_variation", lambda p, q: (p - q).abs().sum(-1) / 2, 0.0, 1.0, "1", 1.0, True, "½ Σ |p − q|"
)  # fmt: skip
"""Total variation, between 0 and 1."""

hellinger = Distance(
    "hellinger", lambda p, q: torch.linalg.vector_norm(p.sqrt() - q.sqrt(), dim=-1) / math.sqrt(2),
    0.0, 1.0, "1", 1.0, True, "‖√p − √q‖₂ / √2",
)  # fmt: skip
"""Hellinger distance, between 0 and 1."""

cross_entropy = Distance(
    "cross_entropy", lambda p, q: -torch.xlogy(p, q).sum(-1), math.nan, math.inf, "nat", 1.0, False, "−Σ p log q"
)  # fmt: skip
"""H(p, q) in nats. Its best value is H(p), which depends on p, so it has no relative value."""

DISTANCES = {
    d.name: d
    for d in (
        negative_cosine, channelwise_negative_cosine, channelwise_negative_cosine_zero,
        channelwise_negative_cosine_skip, euclidean, kl, kl_reverse, jensen_shannon, total_variation, hellinger,
        cross_entropy,
    )
}  # fmt: skip
"""Every distance by name."""
