"""f̂, the integrand, chains and the shuffled orbit against the loops of oracles.py."""

import numpy as np
import oracles
import pytest
import torch

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
def test_vectors_deviate_from_their_orbit_mean(group):
    orbit = np.random.default_rng(1).standard_normal((len(oracles.ELEMENTS[group]), 9, 6))
    want = oracles.eed(orbit, group, oracles.stay, oracles.latent, range(len(orbit)))
    found = deviation.deviation(torch.from_numpy(orbit), None, distances.negative_cosine, range(len(orbit)))
    np.testing.assert_allclose(found, want, atol=1e-12)


def test_a_proper_kernel_averages_over_it_alone():
    orbit = torch.tensor([[1.0], [10.0], [3.0], [30.0]])
    assert deviation.f_hat(orbit, kernel=[0, 2]).item() == 2.0


@pytest.mark.parametrize("kernel", [[], [4], [-1]])
def test_a_kernel_that_the_orbit_lacks_is_refused(kernel):
    with pytest.raises(ValueError, match="kernel must name some of the orbit's 4 elements"):
        deviation.f_hat(torch.zeros(4, 1), kernel=kernel)


@pytest.mark.parametrize("length", [4, 8])
@pytest.mark.parametrize("n", [1, 3, 4, 5, 7, 8, 9, 15, 16, 17])
def test_chains_are_whole_and_cover_every_image_once(n, length):
    cut = deviation.chains(n, length)
    assert [i for chain in cut for i in chain] == list(range(n))
    assert all(length <= len(chain) < 2 * length for chain in cut) or n < length


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


def test_mean_pair_cosine_is_that_over_all_pairs():
    vectors = np.random.default_rng(0).standard_normal((12, 5)) + 1
    state = deviation.PairCosine()
    state.update(torch.from_numpy(vectors[:5]))
    state.update(torch.from_numpy(vectors[5:]))
    assert state.result() == pytest.approx(oracles.mean_pair_cosine(vectors), abs=1e-12)
