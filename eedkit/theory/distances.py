"""Distances m as values: how far two points of the target space are apart, larger meaning less alike.

Knows torch alone. Leading dimensions broadcast, so one call serves a whole orbit. The channelwise distances are functions
of six sums over positions, so that one pass over the activations serves them all.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

CONSTANT = 1e-12
"""A channel whose variance is below this part of its mean square is constant: what is left of it is rounding."""

SMALLEST = 1e-150
"""Squares between this and its inverse neither vanish nor overflow when two of them are multiplied in float64."""


@dataclass(frozen=True)
class ChannelSums:
    """The sums over n positions by which every channelwise measure compares maps a and b, each (…, C) in float64.

    >>> sums = ChannelSums.of(torch.tensor([[1.0], [0.0]]), torch.tensor([[2.0], [0.0]]))
    >>> sums.cosine()
    tensor([1.], dtype=torch.float64)
    """

    n: int
    a: Tensor
    b: Tensor
    aa: Tensor
    bb: Tensor
    ab: Tensor

    @classmethod
    def of(cls, a: Tensor, b: Tensor) -> "ChannelSums":
        """The sums of maps (…, P, C), each channel divided by its largest magnitude, so that no square leaves float64."""
        a = _rescaled(a.double(), -2)
        b = _rescaled(b.double(), -2)
        return cls(a.shape[-2], a.sum(-2), b.sum(-2), (a * a).sum(-2), (b * b).sum(-2), (a * b).sum(-2))

    def cosine(self) -> Tensor:
        """cos(aᵢ, bᵢ) of every channel: 1 where both are zero, 0 where one is."""
        return _cosine(self.aa, self.bb, self.ab)

    def correlation(self) -> Tensor:
        """The same of channels less their means over positions; a constant channel counts as zero."""
        aa = self._variance(self.a, self.aa)
        bb = self._variance(self.b, self.bb)
        return _cosine(aa, bb, self.ab - self.a * self.b / self.n)

    def both_zero(self) -> Tensor:
        """Where a channel is dead: zero in a and in b."""
        return (self.aa == 0) & (self.bb == 0)

    def both_constant(self) -> Tensor:
        """Where a channel is constant in a and in b."""
        return (self._variance(self.a, self.aa) == 0) & (self._variance(self.b, self.bb) == 0)

    def _variance(self, total: Tensor, squares: Tensor) -> Tensor:
        variance = squares - total * total / self.n
        return variance.masked_fill(variance <= CONSTANT * squares, 0.0)


def _cosine(aa: Tensor, bb: Tensor, ab: Tensor) -> Tensor:
    # no product of two float64 sums of squared float32 numbers overflows or vanishes
    norms = (aa * bb).sqrt()
    cosine = (ab / norms).clamp_(-1, 1)
    is_zero = norms == 0
    if is_zero.any():
        # 0 · ab is 0, or NaN beside a NaN, which stays
        cosine = torch.where(is_zero, ((aa == 0) & (bb == 0)) + 0 * ab, cosine)
    return cosine


def _rescaled(z: Tensor, dim: int) -> Tensor:
    """Divided by the largest magnitude along a dimension, where there is one: a cosine does not see it."""
    largest = z.abs().amax(dim, keepdim=True)
    return z / torch.where((largest > 0) & largest.isfinite(), largest, 1.0)


@dataclass(frozen=True)
class Distance:
    """m(a, b) of (4), with what a reader of its values must know (Kvinge et al. 2022, section 3.1).

    Similarities carry a minus sign, so that larger always means less invariant (the paper's convention).

    Parameters
    ----------
    name : str
        The key in `DISTANCES`.
    between : callable
        (a, b) with the point's dimensions last -> one value for each pair, shape of the leading dimensions. A distance with
        `of_sums` takes `ChannelSums` in their place.
    best : float
        m(a, a); NaN where it depends on a.
    upper : float
        The largest value there is.
    unit : str
        "1" or "nat".
    scale : float, "norm" or "rms"
        The size of a large difference, for judging whether a gap is rounding; "norm" where that is the length of the features,
        "rms" where it is the root of the mean of their squares.
    order : int
        How m leaves its best value for b = a + δ: 2 with δ², 1 with |δ|. So rounding moves it by that power.
    equation : str
        For docstrings and attributes.
    of_sums : bool
        Whether m is a function of `ChannelSums`, for maps (…, P, C).
    of_sets : bool
        Whether a point is a set of rows (…, N, C) in any order, so that there is no mean f̂ of several.

    >>> euclidean(torch.tensor([3.0, 4.0]), torch.zeros(2))
    tensor(5., dtype=torch.float64)
    """

    name: str
    between: Callable[..., Tensor]
    best: float
    upper: float
    unit: str = "1"
    scale: float | str = 1.0
    order: int = 2
    equation: str = ""
    of_sums: bool = False
    of_sets: bool = False

    def __call__(self, a: Tensor | ChannelSums, b: Tensor | None = None) -> Tensor:
        """m(a, b): (…, *z), (…, *z) -> (…); or m of the sums of a pair of maps."""
        if not self.of_sums:
            return self.between(a, b)
        if isinstance(a, ChannelSums):
            return self.between(a)
        if b is None:
            raise TypeError(f"{self.name} compares two tensors, or the sums of a pair of maps; got one tensor")
        return self.between(ChannelSums.of(a, b))


def _negative_cosine(a: Tensor, b: Tensor) -> Tensor:
    a = a.double()
    b = b.double()
    squares = a.square().sum(-1), b.square().sum(-1)
    if not all(SMALLEST < float(part.min()) <= float(part.max()) < 1 / SMALLEST for part in squares if part.numel()):
        a = _rescaled(a, -1)
        b = _rescaled(b, -1)
        squares = a.square().sum(-1), b.square().sum(-1)
    return -_cosine(*squares, (a * b).sum(-1))


def _over_channels(dead: str, sums: ChannelSums) -> Tensor:
    if dead == "agree":
        return -sums.cosine().mean(-1)
    alive = ~sums.both_zero()
    total = -(sums.cosine() * alive).sum(-1)
    return total / (alive.sum(-1) if dead == "skip" else alive.shape[-1])


def _correlation_over_channels(sums: ChannelSums) -> Tensor:
    varying = ~sums.both_constant()
    return -(sums.correlation() * varying).sum(-1) / varying.sum(-1)


def _euclidean(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vector_norm(a.double() - b.double(), dim=-1)


def _root_mean_square(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() - b.double()).square().mean((-2, -1)).sqrt()


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(-1)


def _jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    middle = (p + q) / 2
    return (_kl(p, middle) + _kl(q, middle)) / 2


def _hellinger(p: Tensor, q: Tensor) -> Tensor:
    return torch.linalg.vector_norm(p.sqrt() - q.sqrt(), dim=-1) / math.sqrt(2)


def _over_positions(p: Tensor, q: Tensor) -> Tensor:
    return _kl(p, q).mean(-1)


def _jaccard(a: Tensor, b: Tensor) -> Tensor:
    common = torch.minimum(a, b).sum(-2, dtype=torch.float64)
    together = torch.maximum(a, b).sum(-2, dtype=torch.float64)
    is_there = together != 0  # also where it is NaN
    overlap = common / torch.where(is_there, together, 1.0)
    return 1 - overlap.sum(-1) / is_there.sum(-1)


def _mean_euclidean(a: Tensor, b: Tensor) -> Tensor:
    return _euclidean(a, b).mean(-1)


negative_cosine = Distance("negative_cosine", _negative_cosine, -1.0, 1.0, equation="−⟨a, b⟩ / (‖a‖ ‖b‖)")
"""−cos(a, b) of vectors (…, d); two zero vectors agree (−1), a zero and a non-zero vector are orthogonal (0)."""

channelwise_negative_cosine = Distance(
    "channelwise_negative_cosine",
    partial(_over_channels, "agree"),
    best=-1.0,
    upper=1.0,
    equation="−(1/C) Σᵢ cos(aᵢ, bᵢ), a dead channel (both zero) counting as 1",
    of_sums=True,
)
"""(5): minus the mean over channels of the cosine of two maps (…, P, C), a channel being a vector of P numbers."""

channelwise_negative_cosine_zero = Distance(
    "channelwise_negative_cosine_zero",
    partial(_over_channels, "zero"),
    best=-1.0,
    upper=1.0,
    equation="−(1/C) Σᵢ cos(aᵢ, bᵢ), a dead channel (both zero) counting as 0",
    of_sums=True,
)
"""The reading in which dead channels count as cosine 0: what a plain library cosine gives. Its best value needs live channels."""

channelwise_negative_cosine_skip = Distance(
    "channelwise_negative_cosine_skip",
    partial(_over_channels, "skip"),
    best=-1.0,
    upper=1.0,
    equation="−mean over live channels of cos(aᵢ, bᵢ)",
    of_sums=True,
)
"""The reading in which dead channels are left out; NaN where all are dead."""

channelwise_negative_correlation = Distance(
    "channelwise_negative_correlation",
    _correlation_over_channels,
    best=-1.0,
    upper=1.0,
    equation="−mean over channels that vary of corr(aᵢ, bᵢ)",
    of_sums=True,
)
"""The cosine of maps less their means over positions; channels constant in both are left out; NaN where all are *[ours]*."""

euclidean = Distance("euclidean", _euclidean, 0.0, math.inf, scale="norm", order=1, equation="‖a − b‖₂")
"""‖a − b‖₂ of vectors (…, d)."""

root_mean_square = Distance(
    "root_mean_square", _root_mean_square, 0.0, math.inf, scale="rms", order=1, equation="√(mean (a − b)²)"
)
"""The root of the mean square difference of two maps (…, P, C), over positions and channels."""

kl = Distance("kl", _kl, 0.0, math.inf, unit="nat", equation="Σ p log(p / q)")
"""KL(p ‖ q) in nats of distributions (…, k); ∞ where q is 0 and p is not."""

kl_reverse = Distance("kl_reverse", lambda p, q: _kl(q, p), 0.0, math.inf, unit="nat", equation="Σ q log(q / p)")
"""KL(q ‖ p): the other direction."""

jensen_shannon = Distance(
    "jensen_shannon",
    _jensen_shannon,
    best=0.0,
    upper=math.log(2),
    unit="nat",
    scale=math.log(2),
    equation="½ KL(p ‖ (p+q)/2) + ½ KL(q ‖ (p+q)/2)",
)
"""Jensen-Shannon divergence in nats, between 0 and log 2; its square root is a metric."""

total_variation = Distance(
    "total_variation", lambda p, q: (p - q).abs().sum(-1) / 2, 0.0, 1.0, order=1, equation="½ Σ |p − q|"
)
"""Total variation, between 0 and 1."""

hellinger = Distance("hellinger", _hellinger, 0.0, 1.0, order=1, equation="‖√p − √q‖₂ / √2")
"""Hellinger distance, between 0 and 1."""

cross_entropy = Distance(
    "cross_entropy", lambda p, q: -torch.xlogy(p, q).sum(-1), math.nan, math.inf, unit="nat", equation="−Σ p log q"
)
"""H(p, q) in nats. Its best value is H(p), which depends on p, so it has no relative value."""

mean_kl = Distance("mean_kl", _over_positions, 0.0, math.inf, unit="nat", equation="(1/P) Σ_p Σ a_p log(a_p / b_p)")
"""The mean over positions of KL(a ‖ b) of maps (…, P, k) whose positions are distributions, in nats *[ours]*."""

jaccard = Distance(
    "jaccard", _jaccard, 0.0, 1.0, order=1, equation="1 − mean over channels of Σ_p min(a, b) / Σ_p max(a, b)"
)
"""1 − IoU of masks (…, P, k), the mean over the channels that either has (Jaccard 1912; weighted: Ružička 1958)."""

mean_euclidean = Distance(
    "mean_euclidean", _mean_euclidean, 0.0, math.inf, scale="rms", order=1, equation="(1/P) Σ_p ‖a_p − b_p‖₂"
)
"""The mean distance of points, or of the vectors of a field, (…, P, C)."""

DISTANCES = {
    distance.name: distance
    for distance in (
        negative_cosine,
        channelwise_negative_cosine,
        channelwise_negative_cosine_zero,
        channelwise_negative_cosine_skip,
        channelwise_negative_correlation,
        euclidean,
        root_mean_square,
        kl,
        kl_reverse,
        jensen_shannon,
        total_variation,
        hellinger,
        cross_entropy,
        mean_kl,
        jaccard,
        mean_euclidean,
    )
}
"""Every distance by name."""
