"""Bootstrap intervals with the chain as the unit, against slow loops and against what they promise to cover."""

import numpy as np
import pytest

from eedkit.results import intervals
from eedkit.results.intervals import ChainBootstrap, mean_interval

GAP = 0.1 / 0.6
"""The relative value of `correlated`: E − m* over E_null − m*."""


def ratio(value, null):
    return value / null


def interval(bootstrap, statistic, *samples):
    """The interval of a statistic of the means of arrays over samples."""
    return bootstrap.interval(statistic(*bootstrap.means(samples)))


def loop(chains, statistic, samples, *, confidence, resamples, seed):
    """The interval by whole chains put together one by one, from the draws of the same seed."""
    members = [np.flatnonzero(chains == chain) for chain in np.unique(chains)]
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        drawn = rng.integers(len(members), size=len(members))
        rows = np.concatenate([members[chain] for chain in drawn])
        found.append(statistic(*(np.nanmean(values[rows]) for values in samples)))
    return np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])


@pytest.fixture
def uneven():
    """Chains of 1 to 9 samples, shuffled, with two arrays over them of which some have no value."""
    rng = np.random.default_rng(1)
    chains = rng.permutation(np.repeat(np.arange(9), np.arange(1, 10)))
    values = rng.normal(2, 1, 45)
    null = rng.normal(5, 1, 45)
    values[[3, 20]] = np.nan
    null[[3, 4, 31]] = np.nan
    return chains, values, null


@pytest.mark.parametrize("options", [(0.95, 200, 0), (0.5, 99, 3)])
def test_the_interval_is_that_of_a_loop_over_chains(uneven, options):
    chains, *samples = uneven
    given = dict(zip(("confidence", "resamples", "seed"), options, strict=True))
    found = interval(ChainBootstrap(chains, **given), ratio, *samples)
    np.testing.assert_allclose(found, loop(chains, ratio, samples, **given), rtol=1e-12)


@pytest.mark.parametrize("limits", [{"AT_ONCE": 9}, {"AT_ONCE": 20}, {"KEPT": 0}, {"AT_ONCE": 20, "KEPT": 0}])
def test_intervals_depend_on_neither_batches_nor_memory(uneven, monkeypatch, limits):
    chains, *samples = uneven
    options = {"confidence": 0.9, "resamples": 50, "seed": 0}
    wanted = interval(ChainBootstrap(chains, **options), ratio, *samples)
    for name, value in limits.items():
        monkeypatch.setattr(intervals, name, value)
    bootstrap = ChainBootstrap(chains, **options)
    # the second time from what was kept
    for _ in range(2):
        assert interval(bootstrap, ratio, *samples) == pytest.approx(wanted, rel=1e-12)


def test_equal_samples_of_a_chain_count_as_one():
    means = np.random.default_rng(0).normal(0, 1, 100)
    chains = np.repeat(np.arange(100), 4)
    low, high = interval(ChainBootstrap(chains, confidence=0.95, resamples=4999, seed=0), np.abs, 9 + means[chains])
    # the textbook's interval of a mean over 100, not over 400
    half = 1.96 * means.std() / 10
    assert low == pytest.approx(9 + means.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(9 + means.mean() + half, abs=0.1 * half)


def test_numbers_of_chains_need_not_be_sorted_or_dense(uneven):
    chains, *samples = uneven
    options = {"confidence": 0.95, "resamples": 50, "seed": 0}
    renamed = interval(ChainBootstrap(chains * 7 + 100, **options), ratio, *samples)
    assert renamed == interval(ChainBootstrap(chains, **options), ratio, *samples)
    order = np.random.default_rng(2).permutation(45)
    moved = interval(ChainBootstrap(chains[order], **options), ratio, *(values[order] for values in samples))
    assert moved == pytest.approx(renamed, rel=1e-12)


def test_a_large_common_offset_costs_no_digits():
    values = np.random.default_rng(0).normal(0, 1e-9, 40)
    bootstrap = ChainBootstrap(np.arange(40) // 4, confidence=0.95, resamples=99, seed=0)
    low, high = interval(bootstrap, lambda mean: mean + 1, values - 1)
    np.testing.assert_allclose([low, high], interval(bootstrap, lambda mean: mean, values), atol=1e-15)
    assert high - low > 1e-10


def test_fewer_than_two_chains_and_no_resamples_give_nan():
    values = np.arange(8.0)
    for chains, resamples in ((np.zeros(8), 99), (np.array([]), 99), (np.arange(8), 0)):
        bootstrap = ChainBootstrap(chains, confidence=0.95, resamples=resamples, seed=0)
        assert np.isnan(interval(bootstrap, np.abs, values[: len(chains)])).all()


def test_an_array_without_a_mean_in_some_draws_keeps_the_others():
    values = np.r_[np.nan, np.ones(3)]
    bootstrap = ChainBootstrap(np.arange(4), confidence=0.95, resamples=999, seed=0)
    (means,) = bootstrap.means([values])
    # one draw in 256 is of the first chain alone
    assert 0 < np.isnan(means).sum() < 20
    assert bootstrap.interval(means) == (1, 1)


def test_a_chain_without_any_value_costs_itself():
    chains = np.repeat(np.arange(20), 4)
    values = np.random.default_rng(0).normal(0, 1, 80)
    values[:4] = np.nan
    options = {"confidence": 0.95, "resamples": 999, "seed": 0}
    found = interval(ChainBootstrap(chains, **options), np.positive, values)
    without = interval(ChainBootstrap(chains[4:], **options), np.positive, values[4:])
    assert found == pytest.approx(without, abs=0.05)
    assert np.isfinite(found).all()


def correlated(rng, chains=60, length=4):
    """E − m* and E_null − m* of samples whose chain moves both: what they share is most of what they are."""
    of_chain = np.repeat(rng.gamma(2, 0.5, chains), length)
    value = of_chain * rng.uniform(0.05, 0.15, chains * length)
    null = np.repeat(rng.uniform(0.1, 1.1, chains), length) * of_chain + rng.normal(0, 0.05, chains * length)
    return value, null


def coverage(unit, replications=400):
    """The part of the 95 % intervals that hold the true relative value, with this many samples as the unit."""
    rng = np.random.default_rng(0)
    covered = 0
    for k in range(replications):
        value, null = correlated(rng)
        chains = np.arange(len(value)) // unit
        low, high = interval(ChainBootstrap(chains, confidence=0.95, resamples=399, seed=k), ratio, value, null)
        covered += low <= GAP <= high
    return covered / replications


def test_95_percent_intervals_cover_95_percent():
    # 400 replications of 0.95 have a standard error of 0.011
    assert 0.92 <= coverage(unit=4) <= 0.98


def test_single_samples_as_the_unit_cover_too_little():
    assert coverage(unit=1) < 0.85


def test_estimate_and_null_are_drawn_together():
    value, _ = correlated(np.random.default_rng(0))
    bootstrap = ChainBootstrap(np.arange(len(value)) // 4, confidence=0.95, resamples=99, seed=0)
    low, high = interval(bootstrap, ratio, value, 3 * value)
    assert (low, high) == pytest.approx((1 / 3, 1 / 3), rel=1e-12)
    assert np.diff(interval(bootstrap, np.positive, value)) > 0.01


def test_the_t_interval_is_the_textbooks():
    # of 1, 2, 3: standard error 1/√3, and 4.303 is the 97.5 % point of t with two degrees of freedom
    assert mean_interval([1, 2, 3]) == pytest.approx((2, 2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)
    assert mean_interval([5.0]) == (5, -np.inf, np.inf)
