"""Intervals: over chains of samples, which share images in their nulls, and over few replicates.

Knows arrays and scipy. Costs a matrix of `resamples` × chains, in batches of bounded memory.
"""

from collections.abc import Iterator, Sequence

import numpy as np

AT_ONCE = 2**22
"""Counts of draws, and sums of chains, that are multiplied at once."""
KEPT = 2**26
"""Counts of draws that are kept for the next array, two bytes each; where there are more they are drawn again."""


class ChainBootstrap:
    """Percentile bootstrap intervals with the chain as the unit: estimate and null of a chain are drawn together.

    A sample without a value is left out of its chain's mean, and the chain keeps the others.

    >>> bootstrap = ChainBootstrap(np.array([0, 0, 1, 1]), confidence=0.95, resamples=99, seed=0)
    >>> (means,) = bootstrap.means([np.ones(4)])
    >>> bootstrap.interval(means)
    (1.0, 1.0)
    """

    def __init__(self, chains: np.ndarray, *, confidence: float, resamples: int, seed: int) -> None:
        self.order = np.argsort(chains, kind="stable")
        ordered = chains[self.order]
        self.starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(ordered) else np.array([], int)
        self.confidence = confidence
        self.resamples = resamples
        self.seed = seed
        self._kept: list[np.ndarray] | None = None

    def means(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The resampled means of each array over samples, all of the same draws; none for fewer than two chains."""
        if len(self.starts) < 2 or not self.resamples:
            return [np.array([])] * len(arrays)
        together = max(1, AT_ONCE // len(self.starts))
        found = []
        for start in range(0, len(arrays), together):
            found += self._means_at_once(arrays[start : start + together])
        return found

    def interval(self, resampled: np.ndarray) -> tuple[float, float]:
        """The interval of a statistic from its values for resampled means; NaN where it has none."""
        defined = resampled[~np.isnan(resampled)]
        if not len(defined):
            return float("nan"), float("nan")
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(defined, [tail, 1 - tail])
        return float(low), float(high)

    def _means_at_once(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        # around the centre, so that rounding is a part of the deviations and not of the values
        centres = [float(np.nanmean(values)) for values in arrays]
        columns = []
        for values, centre in zip(arrays, centres, strict=True):
            is_there = ~np.isnan(values)
            for column in (np.where(is_there, values - centre, 0.0), is_there.astype(float)):
                columns.append(np.add.reduceat(column[self.order], self.starts))
        of_chains = np.stack(columns, axis=1)
        sums = np.concatenate([counts.astype(float) @ of_chains for counts in self._counts()])
        with np.errstate(invalid="ignore"):
            deviations = sums[:, ::2] / sums[:, 1::2]
        return list((deviations + centres).T)

    def _counts(self) -> Iterator[np.ndarray]:
        """How often each chain is drawn in each resample, in batches of resamples; the same ones at every call."""
        if self._kept is not None:
            yield from self._kept
            return
        chains = len(self.starts)
        rng = np.random.default_rng(self.seed)
        together = max(1, AT_ONCE // chains)
        is_kept = chains * self.resamples <= KEPT
        kept = []
        for start in range(0, self.resamples, together):
            counts = np.empty((min(together, self.resamples - start), chains), dtype=np.uint16)
            for row in counts:
                row[:] = np.bincount(rng.integers(chains, size=chains), minlength=chains)
            if is_kept:
                kept.append(counts)
            yield counts
        self._kept = kept or None


def mean_interval(values: Sequence[float], *, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of independent replicates with its Student t interval; infinitely wide for a single one.

    >>> mean_interval([1.0, 1.0, 1.0])
    (1.0, 1.0, 1.0)
    """
    from scipy.special import stdtrit

    array = np.asarray(values, dtype=float)
    mean = float(array.mean())
    n = len(array)
    if n < 2:
        return mean, float("-inf"), float("inf")
    # the quantile of scipy.stats.t, without the cost of its checks
    half = float(array.std(ddof=1) / np.sqrt(n) * stdtrit(n - 1, (1 + confidence) / 2))
    return mean, mean - half, mean + half
