"""f̂, the integrand, the null and its stream, and M: against the loops of oracles.py and the exact facts 5, 6, 7."""

import math

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eedkit.probe import stream
from eedkit.theory import actions, distances
from eedkit.theory.deviation import CHAIN, ChainedDeviation, PairCosine, chains, deviation, f_hat, partners

PROPER = actions.quotient("C4", actions.spatial("C2"), [0, 1, 0, 1])


def through_c2(group, element, x):
    """C4 acting through its quotient C2, for the oracle."""
    return oracles.move("C4", {"r90": "r180", "r270": "r180"}.get(element, "e"), x)


def random(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def distributions(*shape, seed=0):
    return (3 * random(*shape, seed=seed)).softmax(-1)


CASES = {
    "faithful": (actions.spatial("C4"), distances.channelwise_negative_cosine, (0,), oracles.move, oracles.channelwise),
    "proper": (PROPER, distances.channelwise_negative_cosine, (0, 2), through_c2, oracles.channelwise),
    "trivial": (actions.trivial("C4"), distances.channelwise_negative_cosine, (0, 1, 2, 3), oracles.stay, oracles.channelwise),
}  # fmt: skip


def test_f_hat_of_the_trivial_action_is_the_orbit_mean():
    assert f_hat(torch.tensor([[[1.0, 4.0]], [[2.0, 5.0]], [[6.0, 0.0]]]), kernel=[0, 1, 2]).tolist() == [[3.0, 3.0]]


def test_f_hat_of_a_faithful_action_is_f():
    assert f_hat(torch.tensor([[1.0], [10.0], [3.0], [30.0]]), kernel=[0]).item() == 1.0


def test_f_hat_of_a_proper_kernel_averages_over_it_alone():
    orbit = torch.tensor([[1.0], [10.0], [3.0], [30.0]])
    assert f_hat(orbit, kernel=[0, 2]).item() == 2.0


@pytest.mark.parametrize("bad", [[], [0, 4], [-1, 0]])
def test_a_kernel_that_is_not_in_the_orbit_is_refused(bad):
    with pytest.raises(ValueError, match="kernel must name some of the orbit's 4 elements, got"):
        f_hat(torch.zeros(4, 1), kernel=bad)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("with_null", [False, True])
def test_the_integrand_and_the_null_are_those_of_equation_4(case, with_null):
    action, distance, kernel, act, m = CASES[case]
    orbit = random(4, 7, 3, 4, 4) - 0.5
    partner = [3, 0, 1, 6, 5, 4, 2] if with_null else None
    expected = oracles.eed(orbit.numpy(), "C4", act, m, kernel, partner)
    np.testing.assert_allclose(deviation(orbit, action, distance, kernel, partner=partner), expected, atol=1e-12)


def test_the_identity_of_a_faithful_action_contributes_the_perfect_value():
    values = deviation(random(4, 5, 3, 4, 4), actions.spatial("C4"), distances.channelwise_negative_cosine, [0])
    np.testing.assert_allclose(values[0], -1, atol=1e-12)
    assert (values[1:] > -1 + 1e-3).all()


@pytest.mark.parametrize("name", ["C1", "C2", "C4", "D4"])
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**30), st.floats(0.1, 30))
def test_fact_5_mean_kl_is_the_gap_of_entropies_and_at_most_log_g(name, seed, sharpness):
    action = actions.trivial(name)
    order = action.group.order
    p = (
        sharpness * torch.randn(order, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    ).softmax(-1)
    kernel = actions.kernel(action, (5,))
    kl = deviation(p, action, distances.kl, kernel).mean(0)
    ce = deviation(p, action, distances.cross_entropy, kernel).mean(0)
    for i in range(3):
        mixture = oracles.entropy(p[:, i].numpy().mean(0))
        assert kl[i].item() == pytest.approx(
            mixture - np.mean([oracles.entropy(p[g, i].numpy()) for g in range(order)]), abs=1e-9
        )
        assert ce[i].item() == pytest.approx(mixture, abs=1e-9)
        assert -1e-12 <= kl[i].item() <= math.log(order) + 1e-12


def test_fact_5_log_g_is_reached_by_certain_and_different_predictions():
    p = torch.eye(4, dtype=torch.float64)[:, None]
    assert deviation(p, actions.trivial("C4"), distances.kl, [0, 1, 2, 3]).mean().item() == pytest.approx(math.log(4))


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**30), st.integers(1, 9))
def test_fact_6_latent_of_non_negative_features_with_unit_centroid_is_bounded(order, seed, width):
    z = torch.rand(order, 6, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) ** 4
    u = z / z.norm(dim=-1, keepdim=True)
    values = deviation(u, actions.trivial(f"C{order}"), distances.negative_cosine, range(order)).mean(0)
    assert (values >= -1 - 1e-12).all()
    assert (values <= -1 / math.sqrt(order) + 1e-12).all()


def test_fact_6_the_bound_is_reached_by_orthogonal_features():
    orbit = torch.eye(4, dtype=torch.float64)[:, None]
    values = deviation(orbit, actions.trivial("C4"), distances.negative_cosine, range(4))
    np.testing.assert_allclose(values, -0.5)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=5).filter(lambda sizes: sum(sizes) > 1), st.integers(0, 2**30))
def test_fact_7_mean_pair_cosine_is_the_mean_over_pairs_however_it_was_split(sizes, seed):
    vectors = torch.randn(sum(sizes), 4, generator=torch.Generator().manual_seed(seed))
    expected = oracles.mean_pair_cosine(vectors.double().numpy())
    stream_, merged = PairCosine(), PairCosine()
    for part in vectors.split(sizes):
        stream_.update(part)
        machine = PairCosine()
        machine.update(part)
        merged.merge(machine)
    assert stream_.result() == pytest.approx(expected, abs=1e-12)
    assert merged.result() == pytest.approx(expected, abs=1e-12)


def test_mean_pair_cosine_needs_two_vectors_and_leaves_out_those_without_direction():
    state = PairCosine()
    assert math.isnan(state.result())
    state.merge(PairCosine())
    state.update(torch.tensor([[3.0, 0.0], [0.0, 0.0]]))
    assert math.isnan(state.result())
    state.update(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    assert state.result() == pytest.approx(math.sqrt(0.5))
    assert state.n == 2


@pytest.mark.parametrize("n", [0, 1, 2, 255, 256, 257, 258, 511, 512, 513, 514, 769])
def test_partners_follow_the_chains_of_256_and_are_a_derangement(n):
    assert CHAIN == 256
    found = partners(n)
    assert found == oracles.partners(n)
    assert sorted(found) == list(range(n))
    assert n == 1 or all(i != partner for i, partner in enumerate(found))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 30), st.integers(2, 7))
def test_chains_cover_everything_and_none_is_of_one(n, length):
    found = chains(n, length)
    assert [i for chain in found for i in chain] == list(range(n))
    assert partners(n, length) == oracles.partners(n, length=length)
    assert n < 2 or min(map(len, found)) > 1


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 30), st.integers(2, 7), st.integers(1, 9))
def test_cut_respects_the_chains_and_the_batch_size(n, length, batch_size):
    batches = list(stream.cut(range(n), batch_size, length=length))
    assert [i for batch, _ in batches for i in batch] == list(range(n))
    assert all(0 < len(batch) <= batch_size for batch, _ in batches)
    ends = [batch[-1] for batch, ends in batches if ends]
    starts = {min(chain) for chain in _cycles(oracles.partners(n, length=length))}
    assert {end + 1 for end in ends} == (starts - {0}) | ({n} if n else set())


def _cycles(partner):
    seen, cycles = set(), []
    for start in range(len(partner)):
        cycle = []
        while start not in seen:
            seen.add(start)
            cycle.append(start)
            start = partner[start]
        if cycle:
            cycles.append(cycle)
    return cycles


def streamed(orbit, action, distance, kernel, batch_size, length, *, shuffle=None, null=True):
    """What ChainedDeviation tells of a stream cut into batches, put together: values and null (g, n)."""
    order, n = orbit.shape[:2]
    values, nulls = np.full((order, n), np.nan), np.full((order, n), np.nan)
    state = ChainedDeviation(action, distance, kernel, null=null)
    turns = list(range(order))
    if shuffle is not None:
        shuffle.shuffle(turns)
    for batch, ends in stream.cut(range(n), batch_size, length=length):
        state.begin(ends=ends)
        for g in turns:
            z = orbit[g, batch].clone()
            elements, value, of_null = state.add(g, z)
            for k, h in enumerate(elements):
                assert np.isnan(values[h, batch]).all()
                values[h, batch] = value[k]
                if null:
                    for i, v in zip([batch[0] - 1, *batch], of_null[k].tolist(), strict=True):
                        if not math.isnan(v):
                            assert math.isnan(nulls[h, i])
                            nulls[h, i] = v
            z.fill_(math.nan)  # an in-place ReLU would overwrite it just so
    return values, nulls


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
@pytest.mark.parametrize("n", [1, 3, 4, 5, 6, 8, 9, 10, 13])
def test_fact_8_the_stream_gives_what_the_whole_orbit_gives(case, batch_size, n):
    action, distance, kernel, act, m = CASES[case]
    orbit = random(4, n, 2, 3, 3, seed=n) - 0.5
    partner = oracles.partners(n, length=4)
    values, nulls = streamed(orbit, action, distance, kernel, batch_size, 4)
    np.testing.assert_allclose(values, oracles.eed(orbit.numpy(), "C4", act, m, kernel), atol=1e-12)
    np.testing.assert_allclose(nulls, oracles.eed(orbit.numpy(), "C4", act, m, kernel, partner), atol=1e-12)
    whole = deviation(orbit, action, distance, kernel, partner=partners(n, 4))
    np.testing.assert_allclose(nulls, whole, atol=1e-12)


@pytest.mark.parametrize("batch_size", [1, 100, 1000])
@pytest.mark.parametrize("n", [255, 256, 257, 258, 512, 513])
def test_fact_8_the_stream_holds_at_the_boundaries_of_real_chains(batch_size, n):
    orbit = random(2, n, 3, seed=n)
    values, nulls = streamed(orbit, actions.trivial("C2"), distances.euclidean, (0, 1), batch_size, CHAIN)
    arguments = orbit.numpy(), "C2", oracles.stay, oracles.euclidean, (0, 1)
    np.testing.assert_allclose(values, oracles.eed(*arguments), atol=1e-12)
    np.testing.assert_allclose(nulls, oracles.eed(*arguments, oracles.partners(n)), atol=1e-12)


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=20, deadline=None)
@given(shuffle=st.randoms(use_true_random=False), batch_size=st.integers(1, 5))
def test_elements_may_come_in_any_order_that_is_the_same_in_every_batch(case, shuffle, batch_size):
    action, distance, kernel, act, m = CASES[case]
    orbit = random(4, 9, 2, 3, 3) - 0.5
    values, nulls = streamed(orbit, action, distance, kernel, batch_size, 4, shuffle=shuffle)
    np.testing.assert_allclose(values, oracles.eed(orbit.numpy(), "C4", act, m, kernel), atol=1e-12)
    expected = oracles.eed(orbit.numpy(), "C4", act, m, kernel, oracles.partners(9, length=4))
    np.testing.assert_allclose(nulls, expected, atol=1e-12)


def test_without_a_null_the_values_are_the_same_and_no_null_is_given():
    action, distance, kernel, act, m = CASES["proper"]
    orbit = random(4, 5, 2, 3, 3)
    values, nulls = streamed(orbit, action, distance, kernel, 2, 4, null=False)
    np.testing.assert_allclose(values, oracles.eed(orbit.numpy(), "C4", act, m, kernel), atol=1e-12)
    assert np.isnan(nulls).all()
