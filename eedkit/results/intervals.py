"""Errors of means and of ratios of means: over images, over the null's chains, over replicates, over sampled elements.

Knows arrays and scipy, never labels. Costs a few passes over the values.

A *residual* is what one unit, an image or a chain, adds to an estimate: they sum to 0, and √(K/(K − 1) Σ residual²) is
the standard error of K units. So an estimate made of several others has their residuals' combination for its own.
"""

from collections.abc import Sequence

import numpy as np
from scipy.special import ndtri, stdtrit


class Chains:
    """Which samples share a chain of the null, and so images in their shuffled orbits.

    >>> Chains(np.array([7, 7, 2])).sums(np.array([[1.0, 2.0, 5.0]]))
    array([[5., 3.]])
    """

    def __init__(self, numbers: np.ndarray) -> None:
        self._order = np.argsort(numbers, kind="stable")
        ordered = numbers[self._order]
        self._starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])

    def sums(self, values: np.ndarray) -> np.ndarray:
        """The sum over each chain: (…, sample) -> (…, chain)."""
        return np.add.reduceat(values[..., self._order], self._starts, axis=-1)


def mean_of(values: np.ndarray) -> np.ndarray:
    """The mean over the last axis of the values that are not NaN; NaN where all are."""
    count = (~np.isnan(values)).sum(-1)
    return np.divide(np.nansum(values, -1), count, out=np.full(count.shape, np.nan), where=count > 0)


def mean_residuals(values: np.ndarray) -> np.ndarray:
    """(v − v̄) / n over the last axis: the residuals of the mean; NaN where there is no value.

    >>> mean_residuals(np.array([1.0, 3.0, np.nan]))
    array([-0.5,  0.5,  nan])
    """
    count = (~np.isnan(values)).sum(-1, keepdims=True)
    return (values - mean_of(values)[..., None]) / np.maximum(count, 1)


def ratio_residuals(numerators: np.ndarray, denominators: np.ndarray, ratio: np.ndarray, chains: Chains) -> np.ndarray:
    """The residuals of a ratio R = v̄ / w̄ of two means whose unit is the chain, to first order in both means.

    That of a chain is [Σ (v − v̄) / n_v − R Σ (w − w̄) / n_w] / w̄, NaN where the chain has neither.

    Shapes: v and w (layer, sample), NaN where a sample has none; R (layer,); residuals (layer, chain).
    """
    of_samples = np.nan_to_num(mean_residuals(numerators))
    of_samples -= ratio[:, None] * np.nan_to_num(mean_residuals(denominators))
    counted = chains.sums((~np.isnan(numerators) | ~np.isnan(denominators)).astype(int))
    residuals = chains.sums(of_samples) / mean_of(denominators)[:, None]
    return np.where(counted > 0, residuals, np.nan)


def t_interval(estimate: np.ndarray, residuals: np.ndarray, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """The interval of an estimate (…) from its residuals (…, unit); NaN where fewer than two units have one.

    >>> low, high = t_interval(np.array([2.0]), mean_residuals(np.array([[1.0, 2.0, 3.0]])))
    >>> low, high
    (array([-0.48413771]), array([4.48413771]))
    """
    units = (~np.isnan(residuals)).sum(-1)
    is_known = units > 1
    degrees = np.where(is_known, units - 1, 1)
    error = np.sqrt((degrees + 1) / degrees * np.nansum(residuals**2, -1))
    half = np.where(is_known, stdtrit(degrees, (1 + confidence) / 2) * error, np.nan)
    return estimate - half, estimate + half


def mean_interval(values: Sequence[float] | np.ndarray, *, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of independent replicates with its Student t interval; infinitely wide for a single one.

    >>> mean_interval([1.0, 1.0, 1.0])
    (1.0, 1.0, 1.0)
    """
    array = np.asarray(values, dtype=float)
    mean = array.mean()
    if len(array) < 2:
        return float(mean), float("-inf"), float("inf")
    low, high = t_interval(mean, mean_residuals(array), confidence)
    return float(mean), float(low), float(high)


def share_interval(share: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's 95 % interval of shares of n units, which has a width at 0 and 1, too; NaN where n is 0.

    >>> low, high = share_interval(np.array([1.0]), 10)
    >>> low.round(2), high
    (array([0.72]), array([1.]))
    """
    if n == 0:
        return np.full(share.shape, np.nan), np.full(share.shape, np.nan)
    z = ndtri(0.975)
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return middle - half, middle + half


def sampling_error(values: np.ndarray, circles: int) -> np.ndarray:
    """The standard error of a mean over elements of which one was drawn from each of equal parts of one or two circles.

    Each part's variance is read off second differences round each circle, d = h(k − 1) − 2 h(k) + h(k + 1): where h is
    linear over three parts, or varies within a part as much as between parts, the mean of d² is 6 times that variance.
    Where h bends the error is too large: by a factor of 2 on real networks, and of 3 where h turns at each part.

    Shapes: h (layer, …, *parts), of which the last `circles` axes are closed; errors (layer,).
    """
    differences = values
    for axis in range(-circles, 0):
        differences = np.roll(differences, 1, axis) - 2 * differences + np.roll(differences, -1, axis)
    squares = (differences**2).reshape(len(values), -1) / 6**circles
    return np.sqrt(squares.sum(-1)) / squares.shape[-1]
