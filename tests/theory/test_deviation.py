"""f̂, the integrand, chains and the shuffled orbit against the loops of oracles.py; facts 5 to 7 of the measure."""

import math
from dataclasses import replace

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eedkit.theory import actions, deviation, distances


def through_c2(group, element, z):
    """C4 acting through its quotient C2."""
    return oracles.move("C4", {"r90": "r180", "r270": "r180"}.get(element, "e"), z)


THROUGH = actions.Action("through", "C4", lambda g, z: torch.rot90(z, 2 * (g % 2), (-2, -1)))
# by group and kernel: how the oracle moves maps, and how eedkit does
ON_MAPS = {group: (group, oracles.move, [0], actions.spatial(group)) for group in ("C2", "C4", "D4", "flip")}
ON_MAPS["proper"] = ("C4", through_c2, [0, 2], THROUGH)


def orbit_of_maps(group, n=9):
    return np.random.default_rng(0).standard_normal((len(oracles.ELEMENTS[group]), n, 3, 5, 5))


def as_positions(maps):
    return torch.from_numpy(maps).flatten(3).mT


def invariance(orbit, distance, **options):
    """The deviation under the trivial action of vectors (g, b, d)."""
    nothing_moves = actions.trivial(f"C{len(orbit)}").on_vectors(orbit.shape[-1])
    return deviation.deviation(orbit, nothing_moves, distance, **options)


@pytest.mark.parametrize("name", ON_MAPS)
@pytest.mark.parametrize("null", [False, True])
def test_maps_deviate_as_equation_4_says(name, null):
    group, move, kernel, action = ON_MAPS[name]
    orbit = orbit_of_maps(group)
    order = len(orbit)
    compared = oracles.shuffled(orbit, oracles.chains(9, order)) if null else orbit
    want = oracles.eed(compared, group, move, oracles.channelwise, kernel)
    at_layer = action.on((5, 5), channels=3)
    assert at_layer.kernel == tuple(kernel)
    tensors = as_positions(orbit)
    if null:
        tensors = deviation.shuffled(tensors, deviation.partners(deviation.chains(9, max(order, 4)), order))
    found = deviation.deviation(tensors, at_layer, distances.channelwise_negative_cosine)
    np.testing.assert_allclose(found, want, atol=1e-12)


@pytest.mark.parametrize("kernel", [None, (0,)])
def test_vectors_deviate_from_their_orbit_mean_or_from_the_image_as_it_is(kernel):
    orbit = np.random.default_rng(1).standard_normal((4, 9, 6))
    want = oracles.eed(orbit, "C4", oracles.stay, oracles.latent, kernel or range(4))
    found = invariance(torch.from_numpy(orbit), distances.negative_cosine, kernel=kernel)
    np.testing.assert_allclose(found, want, atol=1e-12)


def test_maps_under_a_group_that_interpolates_deviate_within_the_circle():
    orbit = np.random.default_rng(1).standard_normal((8, 3, 2, 6, 6))
    want = oracles.eed(orbit, "C8", oracles.move, oracles.in_circle(oracles.channelwise), [0])
    at_layer = actions.spatial("C8").on((6, 6), channels=2)
    found = deviation.deviation(as_positions(orbit), at_layer, distances.channelwise_negative_cosine)
    np.testing.assert_allclose(found, want, atol=1e-12)


def test_elements_that_move_nothing_are_not_asked_to():
    """And where none of them moves, the target is broadcast."""
    asked, targets = [], []

    class Asked(actions.LayerAction):
        def __call__(self, g, z):
            asked.append(g)
            return super().__call__(g, z)

    spy = replace(distances.euclidean, between=lambda a, b: targets.append(b.shape) or distances.euclidean(a, b))
    swap = actions.Action("swap", "C4", channels=lambda _: torch.tensor([[0, 1], [1, 0]] * 2))
    for action in (swap, actions.trivial("C4")):
        layer = action.on_vectors(2)
        watched = Asked(layer.name, layer.group, layer.grid, channels=layer.channels)
        assert watched.kernel == layer.kernel
        asked.clear()
        deviation.deviation(torch.rand(4, 5, 2), watched, spy)
        assert asked == [g for g in range(4) if g not in layer.kernel]
    assert targets == [(4, 5, 2), (1, 5, 2)]


@pytest.mark.parametrize(("kernel", "mean"), [([0], 1), ((1, 3), 20), ([0, 2], 2), ([0, 1, 2, 3], 11)])
def test_f_hat_is_the_mean_over_the_kernel_alone(kernel, mean):
    assert deviation.f_hat(torch.tensor([[1.0], [10.0], [3.0], [30.0]]), kernel=kernel).item() == mean


@pytest.mark.parametrize("kernel", [[], [4], [-1]])
def test_a_kernel_that_the_orbit_lacks_is_refused(kernel):
    with pytest.raises(ValueError, match="kernel must name some of the orbit's 4 elements"):
        deviation.f_hat(torch.zeros(4, 1), kernel=kernel)


@pytest.mark.parametrize("name", ON_MAPS)
def test_the_null_of_the_element_is_that_of_all_that_move_otherwise(name):
    group, move, kernel, action = ON_MAPS[name]
    orbit = orbit_of_maps(group, n=4)
    want = oracles.other_elements(orbit, group, move, oracles.channelwise, kernel)
    at_layer = action.on((5, 5), channels=3)
    found = deviation.null_of_elements(as_positions(orbit), at_layer, distances.channelwise_negative_cosine)
    np.testing.assert_allclose(found, want, atol=1e-12)


def test_where_nothing_moves_no_element_is_another_one():
    nothing = actions.trivial("C4").on_vectors(2)
    assert deviation.null_of_elements(torch.rand(4, 3, 2), nothing, distances.euclidean).isnan().all()


def test_sampled_elements_are_all_different_ones():
    circle = actions.spatial("SO(2)?n=3").on((5, 5), channels=1)
    maps = torch.rand(3, 1, 25, 1, dtype=torch.float64)
    found = deviation.null_of_elements(maps, circle, distances.mean_euclidean)
    for g, others in ((1, (0, 2)), (2, (0, 1))):
        lengths = [circle.visible(maps[g] - circle(other, maps[0])).abs().mean().item() for other in others]
        assert found[g, 0].item() == pytest.approx(sum(lengths) / 2)


@pytest.mark.parametrize("order", [1, 2, 4, 8, 12])
@pytest.mark.parametrize("n", [1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31])
def test_chains_are_those_of_the_oracle(n, order):
    cut = deviation.chains(n, max(order, deviation.SHORTEST_CHAIN))
    assert [list(chain) for chain in cut] == oracles.chains(n, order)
    assert deviation.chains(0, 4) == []


@pytest.mark.parametrize("n", [8, 9, 21, 31])
@pytest.mark.parametrize("order", [2, 4, 8])
def test_the_shuffled_orbit_is_that_of_the_loops(n, order):
    orbit = np.random.default_rng(0).standard_normal((order, n, 3))
    partners = deviation.partners(deviation.chains(n, max(order, 4)), order)
    found = deviation.shuffled(torch.from_numpy(orbit), partners)
    np.testing.assert_array_equal(found, oracles.shuffled(orbit, oracles.chains(n, order)))
    # within each element the images are permuted, and no image is met twice
    assert all(sorted(row) == list(range(n)) for row in partners.tolist())
    assert all(len(set(column)) == order for column in partners.T.tolist())


@pytest.mark.parametrize("order", [1, 2, 4, 8])
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**30), st.floats(0.1, 30))
def test_fact_5_mean_kl_is_the_gap_of_entropies(order, seed, sharpness):
    scores = torch.randn(order, 8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    p = (sharpness * scores).softmax(-1)
    kl = invariance(p, distances.kl).mean(0)
    for i in range(8):
        entropies = [oracles.entropy(p[g, i].numpy()) for g in range(order)]
        assert kl[i].item() == pytest.approx(oracles.entropy(p[:, i].numpy().mean(0)) - np.mean(entropies), abs=1e-9)
    # at most log |G|, of the orbit and of the shuffled orbit, which an unrelated image would not respect
    null = invariance(deviation.shuffled(p, deviation.partners([range(8)], order)), distances.kl).mean(0)
    assert max(kl.max(), null.max()) <= math.log(order) + 1e-12
    certain = torch.eye(order, dtype=torch.float64)[:, None]
    assert invariance(certain, distances.kl).mean().item() == pytest.approx(math.log(order))


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**30), st.integers(1, 9))
def test_fact_6_non_negative_features_with_unit_centroid_are_bounded(order, seed, width):
    z = torch.rand(order, 6, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) ** 4
    values = invariance(z / z.norm(dim=-1, keepdim=True), distances.negative_cosine).mean(0)
    assert values.min() >= -1 - 1e-12
    assert values.max() <= -1 / math.sqrt(order) + 1e-12
    orthogonal = torch.eye(order, dtype=torch.float64)[:, None]
    np.testing.assert_allclose(invariance(orthogonal, distances.negative_cosine), -1 / math.sqrt(order))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=5).filter(lambda sizes: sum(sizes) > 1), st.integers(0, 2**30))
def test_fact_7_m_is_the_mean_over_pairs_however_it_was_split(sizes, seed):
    vectors = torch.randn(sum(sizes), 4, generator=torch.Generator().manual_seed(seed))
    state = deviation.PairCosine()
    for part in vectors.split(sizes):
        state.update(part)
    assert state.result() == pytest.approx(oracles.mean_pair_cosine(vectors.double().numpy()), abs=1e-9)


def test_m_is_of_two_vectors_with_a_direction_or_more():
    state = deviation.PairCosine()
    assert math.isnan(state.result())
    state.update(torch.tensor([[1.0, 1.0], [0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0]]))
    assert math.isnan(state.result())
    state.update(torch.tensor([[1.0, 0.0]]))
    assert (state.n, state.result()) == (2, pytest.approx(math.sqrt(0.5)))


def test_in_short_chains_partners_come_again_in_turn():
    partners = deviation.partners([range(0, 3)], order=6)
    assert partners[:, 0].tolist() == [0, 1, 2, 1, 2, 1]
    assert partners[:, 2].tolist() == [2, 0, 1, 0, 1, 0]
    assert deviation.partners([range(0, 1), range(1, 2)], order=3).tolist() == [[0, 1]] * 3
