"""Distances against float64 loops and textbook identities."""

import math

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from eedkit.theory import distances
from eedkit.theory.distances import DISTANCES, ChannelSums

# not so near to each other that what differs in a channel is rounding
NUMBERS = st.floats(-100, 100).map(lambda x: round(x, 3))
VECTORS = arrays(np.float64, 4, elements=NUMBERS)
MAPS = arrays(np.float64, (3, 2, 2), elements=NUMBERS)
PROBABILITIES = arrays(np.float64, 4, elements=st.floats(1e-6, 1)).map(lambda w: w / w.sum())
DISTRIBUTIONS = arrays(np.float64, (3, 2, 2), elements=st.floats(1e-6, 1)).map(lambda w: w / w.sum(0))
MASKS = arrays(np.int64, (2, 2), elements=st.integers(0, 2)).map(lambda z: np.eye(3)[z].transpose(2, 0, 1))
SPARSE = arrays(np.float64, 4, elements=st.sampled_from([0.0, 0.5, 1.0, 2.0])).filter(np.any).map(lambda w: w / w.sum())

OF_VECTORS = {"negative_cosine": oracles.latent, "euclidean": oracles.euclidean}
OF_MAPS = {
    "channelwise_negative_cosine": lambda a, b: oracles.channelwise(a, b, "agree"),
    "channelwise_negative_cosine_zero": lambda a, b: oracles.channelwise(a, b, "zero"),
    "channelwise_negative_cosine_skip": lambda a, b: oracles.channelwise(a, b, "skip"),
    "channelwise_negative_correlation": lambda a, b: oracles.channelwise(
        oracles.centred(a), oracles.centred(b), "skip"
    ),
}
OF_POSITIONS = {
    "mean_kl": oracles.mean_kl,
    "jaccard": oracles.jaccard,
    "mean_euclidean": oracles.mean_euclidean,
    "root_mean_square": oracles.rms,
}
METRIC = ["euclidean", "root_mean_square", "total_variation", "hellinger", "mean_euclidean"]
OF_PROBABILITIES = {
    "kl": oracles.kl,
    "kl_reverse": oracles.kl_reverse,
    "jensen_shannon": oracles.js,
    "total_variation": oracles.tv,
    "hellinger": oracles.hellinger,
    "cross_entropy": oracles.cross_entropy,
}
SPACES = {**dict.fromkeys(OF_VECTORS, VECTORS), **dict.fromkeys(OF_MAPS, MAPS)}
SPACES |= dict.fromkeys(OF_PROBABILITIES, PROBABILITIES)
SPACES |= {"mean_kl": DISTRIBUTIONS, "jaccard": MASKS, "mean_euclidean": MAPS, "root_mean_square": MAPS}
ORACLES = {**OF_VECTORS, **OF_MAPS, **OF_PROBABILITIES, **OF_POSITIONS}


def between(distance, a, b):
    """m(a, b), of maps (…, C, H, W) as positions × channels."""
    if distance.of_sums or distance.name in OF_POSITIONS:
        a, b = (z.flatten(-2).mT for z in (a, b))
    return distance(a, b)


def value(name, a, b):
    return between(DISTANCES[name], torch.from_numpy(a), torch.from_numpy(b)).item()


def test_every_distance_has_an_oracle_and_its_own_name():
    assert set(ORACLES) == set(DISTANCES)
    assert all(distance.name == name for name, distance in DISTANCES.items())


@pytest.mark.parametrize("name", ORACLES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_distance_is_what_the_loop_says(name, data):
    a, b = data.draw(SPACES[name]), data.draw(SPACES[name])
    assert value(name, a, b) == pytest.approx(ORACLES[name](a, b), rel=1e-6, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("name", ORACLES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_point_against_itself_is_best_and_bounds_hold(name, data):
    distance, a, b = DISTANCES[name], data.draw(SPACES[name]), data.draw(SPACES[name])
    if name == "cross_entropy":
        assert value(name, a, a) == pytest.approx(oracles.entropy(a))
        assert value(name, a, b) >= value(name, a, a) - 1e-9
    elif "correlation" in name:
        varying = a + np.array([[0.0, 1.0], [2.0, 5.0]]) * (np.ptp(a, axis=(1, 2), keepdims=True) < 1e-3)
        assert value(name, varying, varying) == pytest.approx(distance.best)
    elif "zero" in name or "skip" in name:
        live = a + np.where(np.abs(a).sum((1, 2), keepdims=True) == 0, 1.0, 0.0)
        assert value(name, live, live) == pytest.approx(distance.best)
    else:
        assert value(name, a, a) == pytest.approx(distance.best, abs=1e-7)
        assert distance.best - 1e-9 <= value(name, a, b) <= distance.upper + 1e-9


@pytest.mark.parametrize("name", METRIC)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_metric_is_symmetric_and_obeys_the_triangle_inequality(name, data):
    a, b, c = (data.draw(SPACES[name]) for _ in range(3))
    assert value(name, a, b) == pytest.approx(value(name, b, a), abs=1e-12)
    assert value(name, a, c) <= value(name, a, b) + value(name, b, c) + 1e-9
    assert (value(name, a, b) == 0) == bool((a == b).all()) or np.allclose(a, b, atol=1e-7)


def test_values_known_from_textbooks():
    p, q = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    half = torch.tensor([0.5, 0.5])
    assert distances.kl(p, half).item() == pytest.approx(math.log(2))
    assert distances.kl(half, p).item() == math.inf
    assert distances.kl_reverse(half, p).item() == pytest.approx(math.log(2))
    assert distances.jensen_shannon(p, q).item() == pytest.approx(math.log(2))
    assert distances.total_variation(p, q).item() == 1
    assert distances.hellinger(p, q).item() == pytest.approx(1)
    assert distances.cross_entropy(half, half).item() == pytest.approx(math.log(2))
    assert distances.euclidean(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])).item() == 5
    assert distances.negative_cosine(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 1.0])).item() == pytest.approx(
        -math.sqrt(0.5)
    )
    assert distances.negative_cosine(torch.tensor([2.0]), torch.tensor([-1.0])).item() == 1


@settings(max_examples=100, deadline=None)
@given(PROBABILITIES, PROBABILITIES)
def test_divergences_are_ordered_as_pinsker_and_le_cam_say(p, q):
    kl, js, tv, hellinger = (value(n, p, q) for n in ("kl", "jensen_shannon", "total_variation", "hellinger"))
    assert 2 * tv**2 <= kl + 1e-9
    assert hellinger**2 <= tv + 1e-9
    assert tv <= math.sqrt(2) * hellinger + 1e-7
    assert js <= math.log(2) * tv + 1e-9
    assert hellinger**2 <= kl / 2 + 1e-9


@settings(max_examples=60, deadline=None)
@given(SPARSE, SPARSE)
def test_classes_of_probability_zero_add_nothing_unless_q_denies_them(p, q):
    denied = bool(((p > 0) & (q == 0)).any())
    expected = math.inf if denied else oracles.kl(p, q)
    assert value("kl", p, q) == pytest.approx(expected, abs=1e-9)
    assert value("jensen_shannon", p, q) == pytest.approx(oracles.js(p, q), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(PROBABILITIES, PROBABILITIES)
def test_cross_entropy_is_entropy_plus_kl(p, q):
    assert value("cross_entropy", p, q) == pytest.approx(oracles.entropy(p) + value("kl", p, q), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(VECTORS, VECTORS, st.floats(0.01, 100))
def test_cosine_ignores_length_and_euclidean_scales_with_it(a, b, c):
    assert value("negative_cosine", c * a, b) == pytest.approx(value("negative_cosine", a, b), abs=1e-9)
    assert value("euclidean", c * a, c * b) == pytest.approx(c * value("euclidean", a, b), rel=1e-9)


def test_zero_vectors_agree_with_each_other_only():
    zero, one = torch.zeros(3), torch.ones(3)
    assert distances.negative_cosine(zero, zero).item() == -1
    assert distances.negative_cosine(zero, one).item() == 0
    assert distances.negative_cosine(one, zero).item() == 0


def test_dead_channels_count_as_one_as_zero_or_not_at_all():
    live = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    half_dead = torch.stack([live, torch.zeros(2, 2)])
    assert between(distances.channelwise_negative_cosine, half_dead, half_dead).item() == pytest.approx(-1)
    assert between(distances.channelwise_negative_cosine_zero, half_dead, half_dead).item() == pytest.approx(-0.5)
    assert between(distances.channelwise_negative_cosine_skip, half_dead, half_dead).item() == pytest.approx(-1)


def test_a_channel_dead_on_one_side_is_always_orthogonal():
    live = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    a, b = torch.stack([live, live]), torch.stack([live, torch.zeros(2, 2)])
    for name in list(OF_MAPS)[:3]:
        assert between(DISTANCES[name], a, b).item() == pytest.approx(-0.5)


def test_an_all_dead_map_is_undefined_without_dead_channels():
    dead = torch.zeros(2, 2, 2)
    assert between(distances.channelwise_negative_cosine_skip, dead, dead).isnan()
    assert between(distances.channelwise_negative_cosine_zero, dead, dead).item() == 0
    assert between(distances.channelwise_negative_cosine, dead, dead).item() == -1


def test_a_cosine_is_taken_over_one_whole_channel():
    a = torch.tensor([[[1.0, 0.0], [0.0, 3.0]], [[5.0, 5.0], [5.0, 5.0]]])
    b = torch.tensor([[[1.0, 0.0], [3.0, 0.0]], [[5.0, 5.0], [5.0, 5.0]]])
    assert between(distances.channelwise_negative_cosine, a, b).item() == pytest.approx(-(0.1 + 1) / 2)


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("other", ["zero", "ordinary"])
def test_nan_stays_nan_even_against_zero(name, other):
    shape = (3, 2, 2) if name in OF_MAPS | OF_POSITIONS else (4,)
    bad = torch.full(shape, float("nan"))
    good = torch.zeros(shape) if other == "zero" else torch.full(shape, 0.25)
    assert between(DISTANCES[name], bad, good).isnan()
    if name not in {*OF_PROBABILITIES, "mean_kl"} or other == "ordinary":  # 0 log 0/q is 0 whatever q, so p = 0 hides q
        assert between(DISTANCES[name], good, bad).isnan()


@pytest.mark.parametrize("name", ORACLES)
def test_leading_dimensions_broadcast(name):
    shape = (3, 2, 2) if name in OF_MAPS | OF_POSITIONS else (4,)
    rng = np.random.default_rng(0)
    a, b = rng.random((5, 2, *shape)), rng.random((2, *shape))
    if name in OF_PROBABILITIES:
        a, b = a / a.sum(-1, keepdims=True), b / b.sum(-1, keepdims=True)
    together = between(DISTANCES[name], torch.from_numpy(a), torch.from_numpy(b))
    one_by_one = [[ORACLES[name](a[i, j], b[j]) for j in range(2)] for i in range(5)]
    np.testing.assert_allclose(together, one_by_one, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cosines_do_not_see_how_long_vectors_are(dtype):
    a, b = torch.tensor([[1.0, 1.0], [1.0, 0.0]], dtype=dtype)
    sizes = [1e-30, 1e-12, 1.0, 1e30] if dtype == torch.float32 else [1e-300, 1e-160, 1.0, 1e160, 1e300]
    pairs = [(p, q) for p in sizes for q in sizes]
    together_a = torch.stack([a * p for p, _ in pairs])
    together_b = torch.stack([b * q for _, q in pairs])
    # also where one call has vectors of every length
    np.testing.assert_allclose(distances.negative_cosine(together_a, together_b), -math.sqrt(0.5), rtol=1e-6)
    for one, other in zip(together_a, together_b, strict=True):
        assert distances.negative_cosine(one, other).item() == pytest.approx(-math.sqrt(0.5), rel=1e-6)


@pytest.mark.parametrize("name", OF_MAPS)
@pytest.mark.parametrize("size", [1e-300, 1e-30, 1e30, 1e300])
def test_channelwise_measures_do_not_see_how_large_maps_are(name, size):
    rng = np.random.default_rng(0)
    a, b = (torch.from_numpy(rng.standard_normal((3, 2, 2))) for _ in range(2))
    wanted = between(DISTANCES[name], a, b)
    np.testing.assert_allclose(between(DISTANCES[name], a * size, b), wanted, atol=1e-9)
    np.testing.assert_allclose(between(DISTANCES[name], a * size, b / size), wanted, atol=1e-9)


def sums_of(a, b):
    """The sums over positions without any care for the size of the numbers."""
    a, b = a.double(), b.double()
    return ChannelSums(a.shape[-2], a.sum(-2), b.sum(-2), (a * a).sum(-2), (b * b).sum(-2), (a * b).sum(-2))


@pytest.mark.parametrize("name", OF_MAPS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_channelwise_measure_is_a_function_of_six_sums(name, data):
    a, b = (torch.from_numpy(data.draw(MAPS)).flatten(-2).mT for _ in range(2))
    of_maps, of_sums = DISTANCES[name](a, b).item(), DISTANCES[name](sums_of(a, b)).item()
    assert of_sums == pytest.approx(of_maps, abs=1e-6, nan_ok=True)
    assert DISTANCES[name](ChannelSums.of(a, b)).item() == pytest.approx(of_maps, abs=1e-12, nan_ok=True)


@settings(max_examples=40, deadline=None)
@given(MAPS, MAPS, st.floats(-50, 50), st.floats(1, 50))
def test_correlation_sees_no_level_and_no_contrast(a, b, level, contrast):
    name = "channelwise_negative_correlation"
    assert value(name, contrast * a + level, b) == pytest.approx(value(name, a, b), abs=1e-3, nan_ok=True)


def test_constant_channels_are_left_out_of_the_correlation():
    varying = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    constant = torch.full((2, 2), 1e4 / 3)
    correlation = distances.channelwise_negative_correlation
    both = torch.stack([varying, constant])
    assert between(correlation, both, both).item() == pytest.approx(-1)
    one_sided = torch.stack([varying, varying])
    assert between(correlation, one_sided, both).item() == pytest.approx(-0.5)
    assert between(correlation, constant[None], constant[None] * 0.1).isnan()
    assert between(correlation, torch.zeros(1, 2, 2), constant[None]).isnan()


def test_a_high_level_is_agreement_but_no_correlation():
    rng = np.random.default_rng(0)
    a, b = (torch.from_numpy(rng.standard_normal((1, 20, 20)) + 100) for _ in range(2))
    assert between(distances.channelwise_negative_cosine, a, b).item() < -0.999
    assert abs(between(distances.channelwise_negative_correlation, a, b).item()) < 0.15


ORDERED = [name for name in DISTANCES if name != "cross_entropy"]


@pytest.mark.parametrize("name", ORDERED)
def test_a_distance_leaves_its_best_value_by_its_order(name):
    rng = np.random.default_rng(1)
    shape = (3, 4, 4) if name in OF_MAPS | OF_POSITIONS else (6,)
    a, step = rng.random(shape) + 0.5, rng.standard_normal(shape)
    if name in OF_PROBABILITIES or name == "mean_kl":
        a = a / a.sum(0)
        step -= step.mean(0)
    near, nearer = (value(name, a, a + size * step) - DISTANCES[name].best for size in (1e-3, 1e-4))
    assert math.log10(near / nearer) == pytest.approx(DISTANCES[name].order, abs=0.05)


def test_scales_say_how_large_a_difference_may_be():
    assert DISTANCES["euclidean"].scale == "norm"
    assert DISTANCES["jensen_shannon"].scale == DISTANCES["jensen_shannon"].upper == pytest.approx(math.log(2))
    for name in ("negative_cosine", "total_variation", "hellinger"):
        assert 0 < DISTANCES[name].scale <= DISTANCES[name].upper - DISTANCES[name].best


def test_units_are_nats_where_logarithms_are_taken():
    in_nats = {name for name, distance in DISTANCES.items() if distance.unit == "nat"}
    assert in_nats == {"kl", "kl_reverse", "jensen_shannon", "cross_entropy", "mean_kl"}


def test_iou_counts_the_classes_that_either_mask_has():
    a = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]])
    b = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0]])
    assert distances.jaccard(a, b).item() == pytest.approx(1 - (1 / 2 + 2 / 3) / 2)
