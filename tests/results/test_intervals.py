"""Intervals from residuals and the error of sampled elements: against slow formulas, and against what they promise to cover."""

import numpy as np
import pytest
from made import result

import eedkit as ek
from eedkit.results.intervals import (
    Chains,
    mean_interval,
    mean_of,
    mean_residuals,
    ratio_residuals,
    sampling_error,
    t_interval,
)

RELATIVE = {noise: noise / np.sqrt(1 + noise**2) for noise in (0.5, 1.0)}
"""The relative value of `orbits` of so much noise."""


def error_of(numerators, denominators, chains):
    """The standard error of a ratio of means, from `ratio_residuals`."""
    ratio = mean_of(numerators) / mean_of(denominators)
    residuals = ratio_residuals(numerators[None], denominators[None], np.array([ratio]), Chains(chains))
    units = (~np.isnan(residuals)).sum()
    return np.sqrt(units / (units - 1) * np.nansum(residuals**2))


@pytest.fixture
def uneven():
    """Chains of 1 to 9 samples, shuffled, with two arrays over them."""
    rng = np.random.default_rng(1)
    chains = rng.permutation(np.repeat(np.arange(9), np.arange(1, 10)))
    return chains, rng.normal(2, 1, 45), rng.normal(5, 1, 45)


def test_the_t_interval_is_the_textbooks():
    # of 1, 2, 3: standard error 1/√3, and 4.303 is the 97.5 % point of t with two degrees of freedom
    half = 4.3027 / 3**0.5
    assert mean_interval([1, 2, 3]) == pytest.approx((2, 2 - half, 2 + half), abs=1e-4)
    assert mean_interval([5.0]) == (5, -np.inf, np.inf)


def test_the_error_of_a_ratio_is_cochrans_over_chains(uneven):
    chains, values, null = uneven
    ratio = values.sum() / null.sum()
    squares = [(values[chains == c].sum() - ratio * null[chains == c].sum()) ** 2 for c in range(9)]
    wanted = np.sqrt(9 / 8 * sum(squares)) / null.sum()
    assert error_of(values, null, chains) == pytest.approx(wanted, rel=1e-12)
    # numbers of chains need not be dense, nor in any order
    assert error_of(values, null, 100 - 7 * chains) == pytest.approx(wanted, rel=1e-12)


def test_a_chain_without_any_value_is_no_unit(uneven):
    chains, values, null = uneven
    there = chains != 4
    without = error_of(values[there], null[there], chains[there])
    values[~there] = np.nan
    null[~there] = np.nan
    assert error_of(values, null, chains) == pytest.approx(without, rel=1e-12)


def test_a_large_common_offset_costs_no_digits():
    values = np.random.default_rng(0).normal(0, 1e-9, 40)
    low, high = t_interval(np.zeros(1), mean_residuals(values[None] - 1), 0.95)
    wanted = mean_interval(values)
    assert high - low == pytest.approx(wanted[2] - wanted[1], rel=1e-6)


def orbits(rng, *, layers, order, chains, noise, images=None):
    """Squared deviations of orbits from their means and of the shuffled orbits from theirs, (layer, element, sample).

    The features of an image are a random vector and, for each element, noise. So a deviation is noise² of the null's 1 + noise².
    """
    shape = (layers, chains, order)
    images = rng.normal(size=(*shape, 1, 4)) if images is None else images
    orbit = images + noise * rng.normal(size=(*shape, order, 4))
    shuffled = np.stack([np.roll(orbit[..., k, :], -k, axis=2) for k in range(order)], axis=3)
    pair = []
    for features in (orbit, shuffled):
        deviations = ((features - features.mean(3, keepdims=True)) ** 2).sum(-1)
        pair.append(deviations.reshape(layers, chains * order, order).swapaxes(1, 2))
    return pair


def coverage(table, truth, which=""):
    """The part of the intervals of a table's rows that hold the truth."""
    return table[f"{which}low"].le(truth).mul(table[f"{which}high"].ge(truth)).mean()


def chained(values, null, chains, **about):
    """As a Dataset whose layers are replications of one experiment."""
    layers, order, n = values.shape
    ds = result(values, null, layers=range(layers), best=0.0, elements=order, **about)
    return ds.assign_coords(chain=("sample", np.arange(n) // (n // chains)))


@pytest.mark.parametrize("order", [4, 8])
@pytest.mark.parametrize("chains", [2, 4, 8, 32])
def test_95_percent_intervals_cover_95_percent(order, chains):
    rng = np.random.default_rng(chains + order)
    found = ek.summarise(chained(*orbits(rng, layers=1500, order=order, chains=chains, noise=0.5), chains))
    # 1500 replications of 0.95 have a standard error of 0.006
    assert 0.93 <= coverage(found, 4 * 0.5**2 * (order - 1) / order) <= 0.97
    assert 0.93 <= coverage(found, RELATIVE[0.5], "relative_") <= 0.97


@pytest.mark.parametrize("chains", [2, 8, 32])
def test_intervals_of_paired_differences_cover_95_percent(chains):
    rng = np.random.default_rng(chains)
    options = {"layers": 1500, "order": 4, "chains": chains}
    images = rng.normal(size=(1500, chains, 4, 1, 4))
    models = [orbits(rng, **options, noise=noise, images=images) for noise in (0.5, 1.0)]
    both = ek.concat([chained(*pair, chains, model=name) for name, pair in zip("ab", models, strict=True)])
    found = ek.compare(both, "a")
    assert 0.93 <= coverage(found, 4 * (1 - 0.5**2) * 3 / 4) <= 0.97
    assert 0.93 <= coverage(found, RELATIVE[1.0] - RELATIVE[0.5], "relative_") <= 0.97


def test_missing_values_leave_the_intervals_their_coverage():
    rng = np.random.default_rng(0)
    values, null = orbits(rng, layers=1500, order=4, chains=16, noise=0.5)
    # a third of the images have no value, another third no null
    missing = rng.uniform(size=(1500, 1, 64))
    values[np.broadcast_to(missing < 1 / 3, values.shape)] = np.nan
    null[np.broadcast_to(missing > 2 / 3, null.shape)] = np.nan
    found = ek.summarise(chained(values, null, 16))
    assert 0.93 <= coverage(found, RELATIVE[0.5], "relative_") <= 0.97


def drawn(rng, n, replications=4000):
    """Angles of elements drawn one from each of n parts of the circle, the first part's element being the identity."""
    off = rng.uniform(-0.5, 0.5, (replications, n))
    off[:, 0] = 0
    return 2 * np.pi * (np.arange(n) + off) / n


def mixed(angle):
    return 0.6 * np.cos(angle) + 0.3 * np.cos(2 * angle + 1) + 0.15 * np.cos(4 * angle + 2)


@pytest.mark.parametrize(
    ("curve", "n", "largest"),
    [(np.cos, 8, 1.6), (np.cos, 32, 1.1), (mixed, 8, 2), (mixed, 32, 1.5), (lambda angle: np.cos(32 * angle), 8, 1.1)],
)
def test_the_error_of_sampling_a_circle_is_near_the_real_one(curve, n, largest):
    rng = np.random.default_rng(0)
    values = curve(drawn(rng, n))
    real = values.mean(1)
    error = sampling_error(values, 1)
    assert 0.95 < np.sqrt((error**2).mean() / (real**2).mean()) < largest
    assert (np.abs(real) < 1.96 * error).mean() > 0.86


@pytest.mark.parametrize(("curve", "largest"), [(np.add, 1.1), (np.multiply, 1.5)])
def test_the_error_of_sampling_a_torus_is_near_the_real_one(curve, largest):
    rng = np.random.default_rng(0)
    off = rng.uniform(-0.5, 0.5, (2, 4000, 4, 4))
    places = np.mgrid[:4, :4][:, None]
    down, right = np.cos(2 * np.pi * (places + off) / 4)
    values = curve(down, right)
    error = sampling_error(values, 2)
    real = values.mean((1, 2))
    assert 0.95 < np.sqrt((error**2).mean() / (real**2).mean()) < largest
    assert (np.abs(real) < 1.96 * error).mean() > 0.86
