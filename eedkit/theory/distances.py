"""Distances m as values: how far two points of the target space are apart, larger meaning less alike.

Knows torch alone. Leading dimensions broadcast, so one call serves a whole orbit. Channelwise distances are functions
of six sums over positions (`ChannelSums`), so that one pass over the activations serves them all.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from eedkit.errors import short

CONSTANT = 1e-12
"""A channel whose variance is below this part of its mean square is constant: what is left of it is rounding."""

TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class ChannelSums:
    """The sums over n positions by which every channelwise measure compares maps a and b, each (…, C) in float64.

    Squares of numbers between 10⁻¹⁵⁰ and 10¹⁵⁰ neither vanish nor overflow. `total` is the sum of the channels' cosines, where
    who took the sums took it as well.

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
    total: Tensor | None = None

    @classmethod
    def of(cls, a: Tensor, b: Tensor) -> "ChannelSums":
        """The sums of maps (…, P, C)."""
        a = a.double()
        b = b.double()
        return cls(a.shape[-2], a.sum(-2), b.sum(-2), (a * a).sum(-2), (b * b).sum(-2), (a * b).sum(-2))

    def cosine(self) -> Tensor:
        """cos(aᵢ, bᵢ) of every channel: 1 where both are zero, 0 where one is. Computed once."""
        return self._cosine

    def total_cosine(self) -> Tensor:
        """The sum of the channels' cosines, (…)."""
        return self.cosine().sum(-1) if self.total is None else self.total

    def correlation(self) -> Tensor:
        """The same of channels less their means over positions; a constant channel counts as zero."""
        aa, bb = self._variances
        covariance = self.ab - self.a * self.b / self.n
        # of a constant channel it is rounding
        return _cosine(aa, bb, covariance.masked_fill_((aa == 0) | (bb == 0), 0.0))

    def dead(self) -> Tensor:
        """Where a channel is zero in a and in b."""
        return (self.aa == 0) & (self.bb == 0)

    def constant(self) -> Tensor:
        """Where a channel is constant in a and in b."""
        aa, bb = self._variances
        return (aa == 0) & (bb == 0)

    @cached_property
    def _cosine(self) -> Tensor:
        return _cosine(self.aa, self.bb, self.ab)

    @cached_property
    def _variances(self) -> tuple[Tensor, Tensor]:
        return _variance(self.n, self.a, self.aa), _variance(self.n, self.b, self.bb)


def _variance(n: int, total: Tensor, squares: Tensor) -> Tensor:
    """Σ (z − mean)², exactly 0 where it is rounding."""
    variance = squares - total * total / n
    return variance.masked_fill_(variance <= CONSTANT * squares, 0.0)


def _cosine(aa: Tensor, bb: Tensor, ab: Tensor) -> Tensor:
    # where a sum of squares is 0 so is ab, and their product; a NaN stays
    cosine = (ab * aa.clamp_min(TINY).rsqrt_()).mul_(bb.clamp_min(TINY).rsqrt_()).clamp_(-1, 1)
    if not bb.all():
        cosine += (aa == 0) & (bb == 0)
    return cosine


@dataclass(frozen=True)
class Distance:
    """m(a, b) of (4), with what a reader of its values must know (Kvinge et al. 2022, section 3.1).

    Similarities carry a minus sign, so that larger always means less invariant (the paper's convention).

    Parameters
    ----------
    name : str
        The key in `DISTANCES`.
    between : callable
        (a, b) with the point's dimensions last -> one value for each pair, shape of the leading dimensions. A distance
        with `of_sums` takes `ChannelSums` in their place.
    equation : str
        For docstrings and attributes.
    best : float
        m(a, a).
    upper : float
        The largest value there is.
    unit : str
        "1" or "nat".
    scale : float, "norm" or "rms"
        The size of a large difference, for judging whether a gap is rounding; "norm" where that is the length of the
        features, "rms" where it is the root of the mean of their squares.
    order : int
        How m leaves its best value for b = a + δ: 2 with δ², 1 with |δ|. Relative values are the 1/order-th root of the
        ratio of gaps, and rounding moves m by that power.
    of_sums : bool
        Whether m is a function of `ChannelSums`, for maps (…, P, C).
    of_sets : bool
        Whether a point is a set of rows (…, N, C) in any order, so that there is no mean f̂ of several.

    >>> euclidean(torch.tensor([3.0, 4.0]), torch.zeros(2))
    tensor(5., dtype=torch.float64)
    """

    name: str
    between: Callable[..., Tensor]
    equation: str = ""
    best: float = 0.0
    upper: float = math.inf
    unit: str = "1"
    scale: float | str = 1.0
    order: int = 2
    of_sums: bool = False
    of_sets: bool = False

    def __post_init__(self) -> None:
        is_size = isinstance(self.scale, int | float) and self.scale > 0
        has_bounds = all(isinstance(bound, int | float) for bound in (self.best, self.upper))
        rules = {
            "between": (callable(self.between), "a function"),
            "order": (self.order in (1, 2), "1 or 2, as m grows with |δ| or its square"),
            "scale": (is_size or self.scale in ("norm", "rms"), "a number above 0, 'norm' or 'rms'"),
            "best": (has_bounds and not self.best > self.upper, "a number that is not above upper"),
            "of_sets": (not (self.of_sums and self.of_sets), "False where of_sums is True"),
        }
        for name, (is_kept, rule) in rules.items():
            if not is_kept:
                raise ValueError(f"{self.name}: {name} must be {rule}, got {short(getattr(self, name))}")

    def __call__(self, a: Tensor | ChannelSums, b: Tensor | None = None) -> Tensor:
        """m(a, b): (…, *z), (…, *z) -> (…); with `of_sums` also m of the sums of a pair of maps."""
        if isinstance(a, ChannelSums):
            return self.between(a)
        if self.of_sums and b is not None:
            return self.between(ChannelSums.of(a, b))
        return self.between(a, b)


def _negative_cosine(a: Tensor, b: Tensor) -> Tensor:
    a = a.double()
    b = b.double()
    aa = (a * a).sum(-1)
    bb = (b * b).sum(-1)
    return -_cosine(aa, bb, (a * b).sum(-1))  # (6)


def _mean_cosine(sums: ChannelSums) -> Tensor:
    return -sums.total_cosine() / sums.ab.shape[-1]  # (5)


def _mean_cosine_dead_as_zero(sums: ChannelSums) -> Tensor:
    return (sums.dead().sum(-1) - sums.total_cosine()) / sums.ab.shape[-1]


def _mean_cosine_of_live(sums: ChannelSums) -> Tensor:
    dead = sums.dead().sum(-1)
    return (dead - sums.total_cosine()) / (sums.ab.shape[-1] - dead)


def _mean_correlation_of_varying(sums: ChannelSums) -> Tensor:
    varies = ~sums.constant()
    return -(sums.correlation() * varies).sum(-1) / varies.sum(-1)


def _euclidean(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vector_norm(a.double() - b.double(), dim=-1)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(-1)


def _jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    middle = (p + q) / 2
    return (_kl(p, middle) + _kl(q, middle)) / 2


def _jaccard(a: Tensor, b: Tensor) -> Tensor:
    common = torch.minimum(a, b).sum(-2, dtype=torch.float64)
    together = torch.maximum(a, b).sum(-2, dtype=torch.float64)
    is_there = together != 0  # also where it is NaN
    overlap = common / torch.where(is_there, together, 1.0)
    return 1 - overlap.sum(-1) / is_there.sum(-1)


def _masks(scores: Tensor) -> Tensor:
    """The likeliest class at every position, as one mask for each class: (…, P, k) of 0 and 1, NaN where a score is."""
    classes = torch.arange(scores.shape[-1], device=scores.device)
    masks = (scores.argmax(-1, keepdim=True) == classes).to(scores.dtype)
    return masks.masked_fill_(scores.isnan().any(-1, keepdim=True), math.nan)


negative_cosine = Distance("negative_cosine", _negative_cosine, "−⟨a, b⟩ / (‖a‖ ‖b‖)", best=-1.0, upper=1.0)
"""Of vectors (…, d); two zero vectors agree (−1), a zero and a non-zero vector are orthogonal (0). Lengths between
10⁻¹⁵⁰ and 10¹⁵⁰ neither vanish nor overflow."""

channelwise_negative_cosine = Distance(
    "channelwise_negative_cosine",
    _mean_cosine,
    "−(1/C) Σᵢ cos(aᵢ, bᵢ), a dead channel (both zero) counting as 1",
    best=-1.0,
    upper=1.0,
    of_sums=True,
)
"""(5): of two maps (…, P, C), a channel being a vector of P numbers."""

channelwise_negative_cosine_zero = replace(
    channelwise_negative_cosine,
    name="channelwise_negative_cosine_zero",
    between=_mean_cosine_dead_as_zero,
    equation="−(1/C) Σᵢ cos(aᵢ, bᵢ), a dead channel (both zero) counting as 0",
)
"""What a plain library cosine gives. Its best value needs live channels."""

channelwise_negative_cosine_skip = replace(
    channelwise_negative_cosine,
    name="channelwise_negative_cosine_skip",
    between=_mean_cosine_of_live,
    equation="−mean over live channels of cos(aᵢ, bᵢ)",
)
"""NaN where all channels are dead."""

channelwise_negative_correlation = replace(
    channelwise_negative_cosine,
    name="channelwise_negative_correlation",
    between=_mean_correlation_of_varying,
    equation="−mean over channels that vary of corr(aᵢ, bᵢ)",
)
"""The cosine of maps less their means over positions; NaN where every channel is constant in both *[ours]*."""

euclidean = Distance("euclidean", _euclidean, "‖a − b‖₂", scale="norm", order=1)
"""Of vectors (…, d)."""

mean_euclidean = Distance(
    "mean_euclidean", lambda a, b: _euclidean(a, b).mean(-1), "(1/P) Σ_p ‖a_p − b_p‖₂", scale="rms", order=1
)
"""The mean distance of points, or of the vectors of a field, (…, P, C)."""

root_mean_square = Distance(
    "root_mean_square",
    lambda a, b: (a.double() - b.double()).square().mean((-2, -1)).sqrt(),
    "√(mean (a − b)²)",
    scale="rms",
    order=1,
)
"""Of two maps (…, P, C), over positions and channels."""

kl = Distance("kl", _kl, "Σ p log(p / q)", unit="nat")
"""KL(p ‖ q) in nats of distributions (…, k); ∞ where q is 0 and p is not."""

kl_reverse = Distance("kl_reverse", lambda p, q: _kl(q, p), "Σ q log(q / p)", unit="nat")
"""KL(q ‖ p): the other direction."""

jensen_shannon = Distance(
    "jensen_shannon",
    _jensen_shannon,
    "½ KL(p ‖ (p+q)/2) + ½ KL(q ‖ (p+q)/2)",
    upper=math.log(2),
    unit="nat",
    scale=math.log(2),
)
"""In nats, between 0 and log 2; its square root is a metric."""

total_variation = Distance("total_variation", lambda p, q: (p - q).abs().sum(-1) / 2, "½ Σ |p − q|", upper=1.0, order=1)

hellinger = Distance(
    "hellinger",
    lambda p, q: torch.linalg.vector_norm(p.sqrt() - q.sqrt(), dim=-1) / math.sqrt(2),
    "‖√p − √q‖₂ / √2",
    upper=1.0,
    order=1,
)

mean_kl = Distance("mean_kl", lambda a, b: _kl(a, b).mean(-1), "(1/P) Σ_p Σ a_p log(a_p / b_p)", unit="nat")
"""Of maps (…, P, k) whose positions are distributions *[ours]*."""

jaccard = Distance("jaccard", _jaccard, "1 − mean over channels of Σ_p min(a, b) / Σ_p max(a, b)", upper=1.0, order=1)
"""1 − IoU of masks (…, P, k), the mean over the channels that either has (Jaccard 1912; weighted: Ružička 1958)."""

jaccard_of_scores = replace(
    jaccard,
    name="jaccard_of_scores",
    between=lambda a, b: _jaccard(_masks(a), _masks(b)),
    equation="1 − mean over classes of the IoU of the positions where each is likeliest",
)
"""`jaccard` of the masks of the likeliest class, which is decided after scores (…, P, k) were moved *[ours]*."""

DISTANCES = {distance.name: distance for distance in list(globals().values()) if isinstance(distance, Distance)}
"""Every distance of this module by name."""
