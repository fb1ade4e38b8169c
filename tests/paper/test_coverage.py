"""Measured coverage of every kind of interval that verdicts use, over synthetic replications of known truth.

Run `pytest -s tests/paper/test_coverage.py` to see the table.
"""

import numpy as np
import pytest

from eedkit.paper import verdicts

REPLICATIONS = 2000
CONFIDENCE = 0.95
BAND = (0.935, 0.968)
"""3 standard errors about 0.95. A wrong tail covers 0.9 or 0.975."""


def paired_differences(rng):
    """Effects of 10 seeds."""
    return verdicts.mean_effect(rng.normal(0.3, 0.2, 10))


def paired_differences_of_five(rng):
    return verdicts.mean_effect(rng.normal(0.3, 0.2, 5))


def shares(rng):
    """Shares removed from maps (0.34) and features (0.95), of 20 seeds, which have a part in common."""
    common = rng.normal(0, 0.05, 20)
    maps = 0.34 + 0.5 * common + rng.normal(0, 0.05, 20)
    features = 0.95 + common + rng.normal(0, 0.03, 20)
    return verdicts.ratio_effect(maps, features)


def noisy_shares_of_five(rng):
    """Features whose share is known to 20 % only, so that the ratio of means is skewed."""
    return verdicts.ratio_effect(rng.normal(0.3, 0.2, 5), rng.normal(0.9, 0.4, 5))


KINDS = {
    paired_differences: 0.3,
    paired_differences_of_five: 0.3,
    shares: 0.34 / 0.95,
    noisy_shares_of_five: 0.3 / 0.9,
}
"""Kind of interval -> the true value of its effect."""


def coverage(kind, truth, replications=REPLICATIONS):
    """How often the lower bound, the upper bound, and the two-sided interval hold the truth, each at 95 %."""
    rng = np.random.default_rng(0)
    tail = 1 - CONFIDENCE
    held = np.zeros(3)
    for _ in range(replications):
        effect = kind(rng)
        lower, upper = effect.bounds(tail, tail)
        low, high = effect.bounds(tail / 2, tail / 2)
        held += [lower <= truth, truth <= upper, low <= truth <= high]
    return held / replications


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_bounds_hold_the_truth_as_often_as_they_say(kind):
    lower, upper, both = coverage(kind, KINDS[kind])
    print(f"\n{kind.__name__:28s} lower {lower:.3f}  upper {upper:.3f}  two-sided {both:.3f}")
    for share in (lower, upper, both):
        assert BAND[0] <= share <= BAND[1]


# rises and falls of equal size, one that stands out, and all at the edge of none
@pytest.mark.parametrize("means", [(0.2, -0.2), (0.9, -0.2), (0.0, 0.0), (0.2, -0.2, 0.2, -0.2)])
def test_bounds_of_opposed_effects_are_wrong_no_more_often_than_they_say(means):
    def kind(rng):
        common = rng.normal(0, 0.2, 10)
        return verdicts.opposed_effect([verdicts.mean_effect(mean + common + rng.normal(0, 0.1, 10)) for mean in means])

    # these cost ten times as much; 3 standard errors of 500 are 0.029
    assert coverage(kind, min(max(means), -min(means)), replications=500).min() >= 0.921


def z_bounds(values, tail):
    from scipy.stats import norm

    return np.mean(values) + norm.ppf(tail) * np.std(values, ddof=1) / np.sqrt(len(values))


def test_the_band_would_see_a_wrong_interval():
    def normal_instead_of_student(rng):
        values = rng.normal(0.3, 0.2, 5)
        return verdicts.Effect(0.3, 5, lambda low, high: (z_bounds(values, low), z_bounds(values, 1 - high)))

    def two_sided_for_one_sided(rng):
        effect = paired_differences(rng)
        return verdicts.Effect(0.3, 10, lambda low, high: effect.bounds(low / 2, high / 2))

    assert coverage(normal_instead_of_student, 0.3).max() < BAND[0]
    assert coverage(two_sided_for_one_sided, 0.3)[:2].min() > BAND[1]
