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
from eedkit.theory.distances import DISTANCES, ChannelSums, Distance

# not so near to each other that what differs in a channel is rounding
NUMBERS = st.floats(-100, 100).map(lambda x: round(x, 3))
VECTORS = arrays(np.float64, 4, elements=NUMBERS)
MAPS = arrays(np.float64, (3, 2, 2), elements=NUMBERS)
PROBABILITIES = arrays(np.float64, 4, elements=st.floats(1e-6, 1)).map(lambda w: w / w.sum())
DISTRIBUTIONS = arrays(np.float64, (3, 2, 2), elements=st.floats(1e-6, 1)).map(lambda w: w / w.sum(0))
MASKS = arrays(np.int64, (2, 2), elements=st.integers(0, 2)).map(lambda z: np.eye(3)[z].transpose(2, 0, 1))


def mean_over_places(m):
    """Of maps (C, H, W), each place with its C numbers."""
    return lambda a, b: np.mean([m(a[:, i, j], b[:, i, j]) for i in range(a.shape[1]) for j in range(a.shape[2])])


def jaccard_of_scores(a, b):
    a, b = (np.eye(len(z))[z.argmax(0)].transpose(2, 0, 1) for z in (a, b))
    return oracles.jaccard(a, b)


OF_SUMS = {
    "channelwise_negative_cosine": (MAPS, lambda a, b: oracles.channelwise(a, b, "agree")),
    "channelwise_negative_cosine_zero": (MAPS, lambda a, b: oracles.channelwise(a, b, "zero")),
    "channelwise_negative_cosine_skip": (MAPS, lambda a, b: oracles.channelwise(a, b, "skip")),
    "channelwise_negative_correlation": (
        MAPS,
        lambda a, b: oracles.channelwise(oracles.centred(a), oracles.centred(b), "skip"),
    ),
}
OF_MAPS = OF_SUMS | {
    "mean_kl": (DISTRIBUTIONS, mean_over_places(oracles.kl)),
    "jaccard": (MASKS, oracles.jaccard),
    "jaccard_of_scores": (MAPS, jaccard_of_scores),
    "mean_euclidean": (MAPS, mean_over_places(oracles.euclidean)),
    "root_mean_square": (MAPS, oracles.rms),
}
OF_PROBABILITIES = {
    "kl": (PROBABILITIES, oracles.kl),
    "kl_reverse": (PROBABILITIES, oracles.kl_reverse),
    "jensen_shannon": (PROBABILITIES, oracles.js),
    "total_variation": (PROBABILITIES, oracles.tv),
    "hellinger": (PROBABILITIES, oracles.hellinger),
}
OF_VECTORS = {"negative_cosine": (VECTORS, oracles.latent), "euclidean": (VECTORS, oracles.euclidean)}
ORACLES = OF_VECTORS | OF_MAPS | OF_PROBABILITIES
DISTRIBUTED = {*OF_PROBABILITIES, "mean_kl"}


def value(name, a, b):
    """m(a, b) of arrays, those of maps being (…, C, H, W)."""
    a, b = (torch.as_tensor(z) for z in (a, b))
    if name in OF_MAPS:
        a, b = (z.flatten(-2).mT for z in (a, b))
    return DISTANCES[name](a, b).item()


def some(name, seed=0, leading=()):
    """Points of a distance's space, away from its edges."""
    z = np.random.default_rng(seed).random((*leading, *((3, 4, 4) if name in OF_MAPS else (6,)))) + 0.5
    if name in DISTRIBUTED:
        z /= z.sum(-3 if name in OF_MAPS else -1, keepdims=True)
    return z


def test_every_distance_has_an_oracle_and_its_own_name():
    assert set(ORACLES) == set(DISTANCES)
    assert all(distance.name == name for name, distance in DISTANCES.items())
    assert {name for name, m in DISTANCES.items() if m.unit == "nat"} == {
        "kl",
        "kl_reverse",
        "jensen_shannon",
        "mean_kl",
    }


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"between": 3}, "m: between must be a function, got 3"),
        ({"order": 3}, "order must be 1 or 2, as m grows with .* got 3"),
        ({"scale": "size"}, "scale must be a number above 0, 'norm' or 'rms', got 'size'"),
        ({"best": 2.0, "upper": 1.0}, "best must be a number that is not above upper, got 2.0"),
        ({"of_sums": True, "of_sets": True}, "of_sets must be False where of_sums is True"),
    ],
)
def test_a_distance_that_contradicts_itself_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Distance(**{"name": "m", "between": torch.dist, **wrong})


@pytest.mark.parametrize("name", ORACLES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_distance_is_what_the_loop_says_within_its_bounds(name, data):
    space, oracle = ORACLES[name]
    a, b = data.draw(space), data.draw(space)
    assert value(name, a, b) == pytest.approx(oracle(a, b), rel=1e-6, abs=1e-6, nan_ok=True)
    if not math.isnan(value(name, a, b)):
        assert DISTANCES[name].best - 1e-9 <= value(name, a, b) <= DISTANCES[name].upper + 1e-9


@pytest.mark.parametrize("name", ORACLES)
def test_a_distance_leaves_its_best_value_by_its_order(name):
    if name == "jaccard_of_scores":  # which is the step of a decision: so many positions that its mean is smooth
        a, step = np.random.default_rng(0).random((2, 3, 500, 500))
        sizes = (1e-1, 1e-2)
    else:
        a, step = some(name), np.random.default_rng(1).standard_normal(some(name).shape)
        sizes = (1e-3, 1e-4)
    if name in DISTRIBUTED:
        step -= step.mean(0)
    assert value(name, a, a) == pytest.approx(DISTANCES[name].best, abs=1e-9)
    near, nearer = (value(name, a, a + size * step) - DISTANCES[name].best for size in sizes)
    assert math.log10(near / nearer) == pytest.approx(DISTANCES[name].order, abs=0.05)


def test_values_known_from_textbooks():
    p, q, half = [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]
    assert value("kl", p, half) == value("kl_reverse", half, p) == pytest.approx(math.log(2))
    assert value("kl", half, p) == math.inf
    assert value("kl", p, p) == 0  # 0 log 0 is 0
    assert value("jensen_shannon", p, q) == pytest.approx(math.log(2))
    assert value("total_variation", p, q) == value("hellinger", p, q) == pytest.approx(1)
    assert value("euclidean", [3.0, 0.0], [0.0, 4.0]) == 5
    assert value("negative_cosine", [2.0, 0.0], [1.0, 1.0]) == pytest.approx(-math.sqrt(0.5))
    assert value("negative_cosine", [2.0], [-1.0]) == 1


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("other", ["zero", "ordinary"])
def test_nan_stays_nan_even_against_zero(name, other):
    good = 0 * some(name) if other == "zero" else some(name)
    bad = some(name)
    bad[(0,) * bad.ndim] = math.nan
    assert math.isnan(value(name, bad, good))
    if other == "ordinary" or name not in DISTRIBUTED:  # 0 log 0/q is 0 whatever q, so p = 0 hides q
        assert math.isnan(value(name, good, bad))


@pytest.mark.parametrize("name", ORACLES)
def test_leading_dimensions_broadcast(name):
    a, b = some(name, 0, leading=(5, 2)), some(name, 1, leading=(2,))
    tensors = [torch.from_numpy(z) for z in (a, b)]
    together = DISTANCES[name](*([z.flatten(-2).mT for z in tensors] if name in OF_MAPS else tensors))
    one_by_one = [[ORACLES[name][1](a[i, j], b[j]) for j in range(2)] for i in range(5)]
    np.testing.assert_allclose(together, one_by_one, rtol=1e-9)


def test_dead_channels_count_as_one_as_zero_or_not_at_all():
    live, dead = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.zeros(2, 2)
    readings = dict(zip(list(OF_SUMS)[:3], [-1, -0.5, -1], strict=True))
    for name, with_one_dead in readings.items():
        half_dead = torch.stack([live, dead])
        assert value(name, half_dead, half_dead) == pytest.approx(with_one_dead)
        # dead on one side is orthogonal
        assert value(name, torch.stack([live, live]), half_dead) == pytest.approx(-0.5)
        assert value(name, half_dead, torch.stack([live, live])) == pytest.approx(-0.5)
    of_all_dead = [value(name, torch.stack([dead]), torch.stack([dead])) for name in readings]
    assert of_all_dead == pytest.approx([-1, 0, math.nan], nan_ok=True)
    assert value("negative_cosine", dead[0], dead[0]) == -1
    assert value("negative_cosine", dead[0], live[0]) == value("negative_cosine", live[0], dead[0]) == 0


def test_constant_channels_are_left_out_of_the_correlation():
    varying, constant = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.full((2, 2), 1e4 / 3)
    both, name = torch.stack([varying, constant]), "channelwise_negative_correlation"
    assert value(name, both, both) == pytest.approx(-1)
    assert value(name, torch.stack([varying, varying]), both) == pytest.approx(-0.5)
    level = torch.full((1, 7, 7), 1 / 3)  # whose variance is not 0, but rounding
    assert math.isnan(value(name, level, level * 0.1))
    assert value(name, level, np.random.default_rng(0).random((1, 7, 7))) == 0
    # a high level is agreement, but no correlation
    a, b = np.random.default_rng(0).standard_normal((2, 1, 20, 20)) + 100
    assert value("channelwise_negative_cosine", a, b) < -0.999
    assert abs(value(name, a, b)) < 0.15


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cosines_do_not_see_how_long_vectors_are(dtype):
    a, b = torch.tensor([[1.0, 1.0], [1.0, 0.0]], dtype=dtype)
    sizes = [1e-30, 1e-12, 1.0, 1e30] if dtype == torch.float32 else [1e-150, 1e-100, 1.0, 1e100, 1e150]
    pairs = [(p, q) for p in sizes for q in sizes]
    # vectors of every length in one call, and each for itself
    together = distances.negative_cosine(torch.stack([a * p for p, _ in pairs]), torch.stack([b * q for _, q in pairs]))
    alone = [distances.negative_cosine(a * p, b * q) for p, q in pairs]
    np.testing.assert_allclose([together.tolist(), alone], -math.sqrt(0.5), rtol=1e-6)
    parallel = torch.rand(1000, 7)
    assert distances.negative_cosine(parallel, 3 * parallel).min() == -1  # and no rounding below


@pytest.mark.parametrize("name", OF_SUMS)
@pytest.mark.parametrize(
    "sizes", [(1e-150, 1), (1e150, 1), (1e-150, 1e-150), (1e150, 1e150), (1e-150, 1e150), (1e30, 1e-30)]
)
def test_channelwise_measures_do_not_see_how_large_maps_are(name, sizes):
    a, b = np.random.default_rng(0).standard_normal((2, 3, 2, 2))
    assert value(name, a * sizes[0], b * sizes[1]) == pytest.approx(value(name, a, b), abs=1e-9)


def test_sums_are_what_their_names_say_in_any_precision():
    a, b = torch.rand(2, 5, 3)
    share = Distance(
        "share", lambda sums: (sums.ab / (sums.aa + sums.bb)).sum(-1) * sums.n + sums.a[..., 0], of_sums=True
    )
    for dtype in (torch.float32, torch.float64):
        sums = ChannelSums.of((1000 * a).to(dtype), (1000 * b).to(dtype))
        assert sums.n == 5
        assert sums.a.tolist() == pytest.approx((1000 * a).double().sum(0).tolist(), rel=1e-12)
        assert sums.ab.tolist() == pytest.approx((1e6 * a.double() * b.double()).sum(0).tolist(), rel=1e-6)
        assert share(sums).item() == share((1000 * a).to(dtype), (1000 * b).to(dtype)).item()
    assert sums.cosine() is sums.cosine()  # computed once for every measure of it


def test_masks_are_decided_after_scores_have_moved_and_been_averaged():
    """Half of two scores is no mask of either: the decision is taken of the mean."""
    a, b = torch.tensor([[[3.0, 0.0, 0.0]]]), torch.tensor([[[0.0, 2.0, 0.0]]])
    assert distances.jaccard_of_scores((a + b) / 2, a).item() == 0
    assert distances.jaccard_of_scores(a, b).item() == 1
    assert distances.jaccard_of_scores(a, a.masked_fill(a == 0, -math.inf)).item() == 0
