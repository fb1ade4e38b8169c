"""Intervals: over samples, over samples whose neighbours depend on each other, and over few replicates.

Knows arrays and scipy. Costs as many means as are resampled, in batches of bounded memory.
"""

from collections.abc import Callable, Sequence

import numpy as np


def sample_interval(data: tuple[np.ndarray, ...], statistic: Callable, options: dict) -> tuple[float, float]:
    """Percentile bootstrap interval over the samples, all arrays resampled together; NaN for one sample or no resamples."""
    from scipy.stats import bootstrap

    n = len(data[0])
    if n < 2 or not options["n_resamples"]:
        return float("nan"), float("nan")
    batch = max(1, 2**24 // (n * len(data)))
    found = bootstrap(
        data, statistic, paired=True, vectorized=True, axis=-1, method="percentile", batch=batch, **options
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def block_interval(data: tuple[np.ndarray, ...], statistic: Callable, options: dict) -> tuple[float, float]:
    """The same with circular blocks of n^(1/3) neighbours (Politis & Romano 1992), where neighbours are not independent."""
    n, rng, drawn = len(data[0]), np.random.default_rng(options["rng"]), []
    if n < 2 or not options["n_resamples"]:
        return float("nan"), float("nan")
    length, left = max(2, round(n ** (1 / 3))), options["n_resamples"]
    while left > 0:
        some = min(left, max(1, 2**22 // n))
        starts = rng.integers(n, size=(some, -(-n // length), 1))
        rows = ((starts + np.arange(length)) % n).reshape(some, -1)[:, :n]
        drawn.append(statistic(*(values[rows] for values in data)))
        left -= some
    tail = (1 - options["confidence_level"]) / 2
    low, high = np.quantile(np.concatenate(drawn), [tail, 1 - tail])
    return float(low), float(high)


def mean_interval(values: Sequence[float], *, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of independent replicates with its Student t interval; infinitely wide for a single one.

    >>> mean_interval([1.0, 1.0, 1.0])
    (1.0, 1.0, 1.0)
    """
    from scipy.stats import sem, t

    values = np.asarray(values, dtype=float)
    mean, n = float(values.mean()), len(values)
    if n < 2:
        return mean, float("-inf"), float("inf")
    half = float(sem(values) * t.ppf((1 + confidence) / 2, n - 1))
    return mean, mean - half, mean + half
