"""f̂, the integrand, chains and the shuffled orbit against the loops of oracles.py; facts 5 to 7 of the measure."""

import math

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eedkit.theory import actions, deviation, distances

GROUPS = ["C2", "C4", "D4", "flip"]


def orbit_of_maps(group, n=9, seed=0):
    order = len(oracles.ELEMENTS[group])
    return np.random.default_rng(seed).standard_normal((order, n, 3, 5, 5))


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("null", [False, True])
def test_maps_deviate_as_equation_4_says(group, null):
    orbit = orbit_of_maps(group)
    compared = oracles.shuffled(orbit, oracles.chains(9, len(orbit))) if null else orbit
    want = oracles.eed(compared, group, oracles.move, oracles.channelwise, [0])
    as_positions = torch.from_numpy(orbit).flatten(3).mT
    if null:
        cut = deviation.chains(9, max(len(orbit), 4))
        as_positions = deviation.shuffled(as_positions, deviation.partners(cut, len(orbit)))
    at_layer = actions.spatial(group).on((5, 5), channels=3)
    found = deviation.deviation(as_positions, at_layer, distances.channelwise_negative_cosine, at_layer.kernel)
    np.testing.assert_allclose(found, want, atol=1e-12)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("null", [False, True])
def test_vectors_deviate_from_their_orbit_mean(group, null):
    orbit = np.random.default_rng(1).standard_normal((len(oracles.ELEMENTS[group]), 9, 6))
    compared, tensors = orbit, torch.from_numpy(orbit)
    if null:
        compared = oracles.shuffled(orbit, oracles.chains(9, len(orbit)))
        cut = deviation.chains(9, max(len(orbit), 4))
        tensors = deviation.shuffled(tensors, deviation.partners(cut, len(orbit)))
    want = oracles.eed(compared, group, oracles.stay, oracles.latent, range(len(orbit)))
    found = deviation.deviation(tensors, None, distances.negative_cosine, range(len(orbit)))
    np.testing.assert_allclose(found, want, atol=1e-12)


@pytest.mark.parametrize("null", [False, True])
def test_a_proper_kernel_deviates_as_equation_4_says(null):
    """C4 acts through its quotient C2."""
    through = actions.quotient("C4", actions.spatial("C2"), [0, 1, 0, 1]).on((5, 5), channels=3)
    assert through.kernel == (0, 2)

    def act(group, element, z):
        return oracles.move("C4", {"r90": "r180", "r270": "r180"}.get(element, "e"), z)

    orbit = orbit_of_maps("C4")
    compared = oracles.shuffled(orbit, oracles.chains(9, 4)) if null else orbit
    want = oracles.eed(compared, "C4", act, oracles.channelwise, [0, 2])
    tensors = torch.from_numpy(compared).flatten(3).mT
    found = deviation.deviation(tensors, through, distances.channelwise_negative_cosine, through.kernel)
    np.testing.assert_allclose(found, want, atol=1e-12)


def test_the_identity_of_a_faithful_action_is_perfect():
    orbit = torch.from_numpy(orbit_of_maps("C4")).flatten(3).mT
    at_layer = actions.spatial("C4").on((5, 5), channels=3)
    values = deviation.deviation(orbit, at_layer, distances.channelwise_negative_cosine, [0])
    np.testing.assert_allclose(values[0], -1, atol=1e-12)
    assert (values[1:] > -1 + 1e-3).all()


def test_a_proper_kernel_averages_over_it_alone():
    orbit = torch.tensor([[1.0], [10.0], [3.0], [30.0]])
    assert deviation.f_hat(orbit, kernel=[0, 2]).item() == 2.0


@pytest.mark.parametrize("kernel", [[], [4], [-1]])
def test_a_kernel_that_the_orbit_lacks_is_refused(kernel):
    with pytest.raises(ValueError, match="kernel must name some of the orbit's 4 elements"):
        deviation.f_hat(torch.zeros(4, 1), kernel=kernel)


@pytest.mark.parametrize(("kernel", "mean"), [([0], 1.0), ((1, 3), 20.0), ([0, 1, 2, 3], 11.0)])
def test_f_hat_is_the_mean_over_the_kernel(kernel, mean):
    assert deviation.f_hat(torch.tensor([[1.0], [10.0], [3.0], [30.0]]), kernel=kernel).item() == mean


@pytest.mark.parametrize("order", [1, 2, 4, 8, 12])
@pytest.mark.parametrize("n", [1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31])
def test_chains_are_those_of_the_oracle(n, order):
    cut = deviation.chains(n, max(order, deviation.SHORTEST_CHAIN))
    assert [list(chain) for chain in cut] == oracles.chains(n, order)


def test_of_nothing_there_are_no_chains():
    assert deviation.chains(0, 4) == []


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 13))
def test_chains_are_whole_and_cover_every_image_once(n, length):
    cut = deviation.chains(n, length)
    assert [i for chain in cut for i in chain] == list(range(n))
    assert all(length <= len(chain) < 2 * length for chain in cut) or n < length


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.sampled_from([2, 4, 8]), st.integers(0, 2**30))
def test_the_shuffled_orbit_is_that_of_the_loops(n, order, seed):
    orbit = np.random.default_rng(seed).standard_normal((order, n, 3))
    of_chains = oracles.chains(n, order)
    if len(of_chains[0]) < order:
        return
    cut = deviation.chains(n, max(order, 4))
    found = deviation.shuffled(torch.from_numpy(orbit), deviation.partners(cut, order))
    np.testing.assert_array_equal(found, oracles.shuffled(orbit, of_chains))


@pytest.mark.parametrize("order", [2, 4, 8])
def test_a_shuffled_orbit_has_each_image_once(order):
    cut = deviation.chains(21, max(order, 4))
    partners = deviation.partners(cut, order)
    assert partners[0].tolist() == list(range(21))
    for column in partners.T.tolist():
        assert len(set(column)) == order
    for row in partners.tolist():
        assert sorted(row) == list(range(21))


def test_short_chains_never_pair_an_image_with_itself():
    partners = deviation.partners([range(0, 8)], order=12)
    assert all((partners[g] != torch.arange(8)).all() for g in range(1, 12))


def test_in_short_chains_partners_come_again_in_turn():
    partners = deviation.partners([range(0, 3)], order=6)
    assert partners[:, 0].tolist() == [0, 1, 2, 1, 2, 1]
    assert partners[:, 2].tolist() == [2, 0, 1, 0, 1, 0]


def test_a_chain_of_one_is_its_own_partner():
    assert deviation.partners([range(0, 1), range(1, 2)], order=3).tolist() == [[0, 1]] * 3


@pytest.mark.parametrize("order", [1, 2, 4, 8])
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**30), st.floats(0.1, 30))
def test_fact_5_mean_kl_is_the_gap_of_entropies(order, seed, sharpness):
    scores = torch.randn(order, 8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    p = (sharpness * scores).softmax(-1)
    kernel = range(order)
    kl = deviation.deviation(p, None, distances.kl, kernel).mean(0)
    cross_entropy = deviation.deviation(p, None, distances.cross_entropy, kernel).mean(0)
    for i in range(8):
        mixture = oracles.entropy(p[:, i].numpy().mean(0))
        entropies = [oracles.entropy(p[g, i].numpy()) for g in kernel]
        assert kl[i].item() == pytest.approx(mixture - np.mean(entropies), abs=1e-9)
        assert cross_entropy[i].item() == pytest.approx(mixture, abs=1e-9)
    # at most log |G|, of the orbit and of the shuffled orbit, which an unrelated image would not respect
    partners = deviation.partners(deviation.chains(8, 8), order)
    null = deviation.deviation(deviation.shuffled(p, partners), None, distances.kl, kernel).mean(0)
    for bounded in (kl, null):
        assert (bounded >= -1e-12).all()
        assert (bounded <= math.log(order) + 1e-12).all()


def test_fact_5_log_g_is_reached_by_certain_and_different_predictions():
    p = torch.eye(4, dtype=torch.float64)[:, None]
    assert deviation.deviation(p, None, distances.kl, range(4)).mean().item() == pytest.approx(math.log(4))


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**30), st.integers(1, 9))
def test_fact_6_non_negative_features_with_unit_centroid_are_bounded(order, seed, width):
    z = torch.rand(order, 6, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) ** 4
    u = z / z.norm(dim=-1, keepdim=True)
    values = deviation.deviation(u, None, distances.negative_cosine, range(order)).mean(0)
    assert (values >= -1 - 1e-12).all()
    assert (values <= -1 / math.sqrt(order) + 1e-12).all()


def test_fact_6_the_bound_is_reached_by_orthogonal_features():
    orbit = torch.eye(4, dtype=torch.float64)[:, None]
    np.testing.assert_allclose(deviation.deviation(orbit, None, distances.negative_cosine, range(4)), -0.5)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=5).filter(lambda sizes: sum(sizes) > 1), st.integers(0, 2**30))
def test_fact_7_m_is_the_mean_over_pairs_however_it_was_split(sizes, seed):
    vectors = torch.randn(sum(sizes), 4, generator=torch.Generator().manual_seed(seed))
    state = deviation.PairCosine()
    for part in vectors.split(sizes):
        other = deviation.PairCosine()
        other.update(part)
        state.merge(other)
    assert state.result() == pytest.approx(oracles.mean_pair_cosine(vectors.double().numpy()), abs=1e-9)
    assert state.n == len(vectors)


def test_vectors_without_direction_are_left_out_of_m():
    nan, inf = math.nan, math.inf
    vectors = torch.tensor([[1.0, 0.0], [0.0, 0.0], [nan, 1.0], [inf, 1.0], [1.0, 1.0]])
    state = deviation.PairCosine()
    state.update(vectors)
    assert state.n == 2
    assert state.result() == pytest.approx(math.sqrt(0.5))


def test_m_of_fewer_than_two_vectors_is_undefined():
    state = deviation.PairCosine()
    assert math.isnan(state.result())
    state.update(torch.ones(1, 3))
    assert math.isnan(state.result())


@pytest.mark.parametrize("group", GROUPS)
def test_the_null_of_the_element_is_that_of_all_others(group):
    orbit = orbit_of_maps(group, n=4)
    want = oracles.other_elements(orbit, group, oracles.move, oracles.channelwise, [0])
    at_layer = actions.spatial(group).on((5, 5), channels=3)
    as_positions = torch.from_numpy(orbit).flatten(3).mT
    found = deviation.deviation_from_other_elements(as_positions, at_layer, distances.channelwise_negative_cosine)
    np.testing.assert_allclose(found, want, atol=1e-12)


def test_elements_that_move_alike_are_no_null_of_each_other():
    """C4 acts through its quotient C2, so that r90 and r270 do the same."""
    through = actions.quotient("C4", actions.spatial("C2"), [0, 1, 0, 1]).on((5, 5), channels=3)

    def act(group, element, z):
        return oracles.move("C4", {"r90": "r180", "r270": "r180"}.get(element, "e"), z)

    orbit = orbit_of_maps("C4", n=3)
    want = oracles.other_elements(orbit, "C4", act, oracles.channelwise, [0, 2])
    as_positions = torch.from_numpy(orbit).flatten(3).mT
    found = deviation.deviation_from_other_elements(as_positions, through, distances.channelwise_negative_cosine)
    np.testing.assert_allclose(found, want, atol=1e-12)


def test_where_nothing_moves_no_element_is_another_one():
    orbit = torch.rand(4, 3, 2)
    nothing = actions.trivial("C4").of_channels(2)
    assert deviation.deviation_from_other_elements(orbit, nothing, distances.euclidean).isnan().all()


def test_sampled_elements_are_all_different_ones():
    circle = actions.spatial("SO(2)?n=3").on((5, 5), channels=1)
    maps = torch.rand(3, 1, 25, 1, dtype=torch.float64)
    found = deviation.deviation_from_other_elements(maps, circle, distances.mean_euclidean)
    target = maps[0]
    for g, others in ((1, (0, 2)), (2, (0, 1))):
        lengths = [(maps[g] - circle(other, target)).abs().mean().item() for other in others]
        assert found[g, 0].item() == pytest.approx(sum(lengths) / 2)
