"""What an interval over seeds says of a claim, on effects for which the right answer is known."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from eedkit.paper import verdicts
from eedkit.paper.verdicts import Test, concluded, needs, seed_values

SUPPORTED, CONTRADICTED, INCONCLUSIVE = "supported", "contradicted", "inconclusive"
NOT_TESTABLE = "not testable here"


# margin 0.25, and intervals that end at it: a bound that only touches it decides nothing
@pytest.mark.parametrize(
    ("claim", "supported", "contradicted", "undecided"),
    [
        (verdicts.falls, [(-0.5, -0.26)], [(0.26, 0.5)], [(-0.5, -0.25), (0.25, 0.5), (-0.2, 0.2)]),
        (verdicts.does_fall, [(-0.5, -0.26)], [(-0.24, 0.5), (0, 0)], [(-0.5, -0.25), (-0.25, 0.5), (-0.3, -0.2)]),
        (verdicts.does_not_fall, [(-0.24, 0.5), (0, 0)], [(-0.5, -0.26)], [(-0.25, 0.5), (-0.5, -0.25)]),
        (verdicts.exceeds, [(0.26, 0.5)], [(-0.5, 0.24)], [(0.25, 0.5), (0.0, 0.25), (0.2, 0.3)]),
        (verdicts.stays_below, [(-0.5, 0.24)], [(0.26, 0.5)], [(0.0, 0.25), (0.25, 0.5), (0.2, 0.3)]),
        (
            verdicts.differs,
            [(-0.5, -0.26), (0.26, 0.5)],
            [(-0.24, 0.24)],
            [(-0.5, -0.25), (0.25, 0.5), (-0.25, 0), (0, 0.25), (-0.3, -0.2), (0.2, 0.3), (-0.5, 0.5)],
        ),
    ],
)
def test_a_claim_is_decided_only_by_intervals_wholly_beyond_the_margin(claim, supported, contradicted, undecided):
    assert [claim(*interval, 0.25) for interval in supported] == [SUPPORTED] * len(supported)
    assert [claim(*interval, 0.25) for interval in contradicted] == [CONTRADICTED] * len(contradicted)
    assert [claim(*interval, 0.25) for interval in undecided] == [INCONCLUSIVE] * len(undecided)


@pytest.mark.parametrize(
    ("of", "all_of_them", "at_least_one"),
    [
        ([SUPPORTED], SUPPORTED, SUPPORTED),
        ([CONTRADICTED], CONTRADICTED, CONTRADICTED),
        ([INCONCLUSIVE], INCONCLUSIVE, INCONCLUSIVE),
        ([SUPPORTED, INCONCLUSIVE], INCONCLUSIVE, SUPPORTED),
        ([CONTRADICTED, INCONCLUSIVE], CONTRADICTED, INCONCLUSIVE),
        ([SUPPORTED, CONTRADICTED, INCONCLUSIVE], CONTRADICTED, SUPPORTED),
        ([], INCONCLUSIVE, INCONCLUSIVE),
    ],
)
def test_every_and_some_put_verdicts_together_as_logic_does(of, all_of_them, at_least_one):
    assert (verdicts.every(of), verdicts.some(of)) == (all_of_them, at_least_one)


def test_a_comparison_is_students_t_with_its_share_of_the_error():
    effects = [-0.4, -0.1, -0.3, -0.2, -0.6, -0.2]
    row = Test("1", comparisons=8, confidence=0.9).row("it falls", verdicts.falls, 0.01, effects, layer="one")
    low, high = stats.ttest_1samp(effects, 0).confidence_interval(1 - 0.1 / 8)
    assert (row["effect"], row["low"], row["high"]) == pytest.approx((-0.3, low, high))
    assert row["confidence"] == pytest.approx(0.9875)
    assert (row["conclusion"], row["test"], row["margin"], row["n"], row["layer"]) == ("1", "it falls", 0.01, 6, "one")
    assert row["verdict"] == SUPPORTED
    assert Test("1", 800, 0.9).row("it falls", verdicts.falls, 0.01, effects)["verdict"] == INCONCLUSIVE


def test_together_the_intervals_of_one_conclusion_are_as_sure_as_declared():
    rng, tests, alone = np.random.default_rng(0), 5, 0.8
    missed = [
        any(
            not (row["low"] <= 0 <= row["high"])
            for row in (Test("1", tests, alone).row("", verdicts.falls, 0, rng.normal(size=6)) for _ in range(tests))
        )
        for _ in range(300)
    ]
    assert np.mean(missed) == pytest.approx(1 - (1 - 0.2 / tests) ** tests, abs=0.07)


def test_an_effect_exactly_at_the_margin_decides_nothing():
    for effect, verdict in ((-0.25, INCONCLUSIVE), (-0.2500001, CONTRADICTED), (-0.2499999, SUPPORTED)):
        assert Test("1", 1).row("", verdicts.does_not_fall, 0.25, [effect] * 5)["verdict"] == verdict


def test_seeds_without_a_value_are_left_out():
    effects = [0.1, np.nan, 0.2, 0.3, 0.4, 0.5]
    row, without = (Test("1", 1).row("", verdicts.exceeds, 0.0, given) for given in (effects, np.delete(effects, 1)))
    assert row == without
    assert (row["n"], row["verdict"]) == (5, SUPPORTED)
    assert Test("1", 1).row("", verdicts.exceeds, 0.0, effects[:5])["verdict"] == NOT_TESTABLE
    with pytest.raises(ValueError, match="it falls: there is no seed"):
        Test("1", 1).row("it falls", verdicts.falls, 0.0, [np.nan])


@pytest.mark.parametrize("margin", [-0.1, np.nan])
def test_a_margin_is_a_number_from_0(margin):
    with pytest.raises(ValueError, match=f"not negative; got {margin} for it falls"):
        Test("1", 1).row("it falls", verdicts.falls, margin, [0.1] * 5)


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_a_confidence_lies_between_0_and_1(confidence):
    with pytest.raises(ValueError, match=f"between 0 and 1, got {confidence}"):
        Test("1", 1, confidence)


def test_a_given_interval_decides_unless_it_has_no_ends_or_too_few_seeds():
    given = Test("3", 1).given
    assert given("", verdicts.exceeds, 0.1, 0.3, 0.2, 0.4, 5)["verdict"] == SUPPORTED
    assert given("", verdicts.exceeds, 0.1, 0.3, 0.2, 0.4, 4)["verdict"] == NOT_TESTABLE
    for low, high in ((0.2, np.inf), (np.nan, 0.0), (-np.inf, 0.0)):
        assert given("", verdicts.exceeds, 0.1, 0.3, low, high, 5)["verdict"] == INCONCLUSIVE


def table(**recipes):
    """One metric at one layer; recipe = {seed: estimate}."""
    rows = [(recipe, seed, value) for recipe, by_seed in recipes.items() for seed, value in by_seed.items()]
    return pd.DataFrame(rows, columns=["recipe", "seed", "estimate"]).assign(metric="latent", layer="deep")


def test_recipes_are_compared_seed_by_seed_whatever_the_order_of_rows():
    # the seeds differ by far more than the recipes do, and two seeds have no partner
    plain = {0: 1.0, 1: 20.0, 2: 300.0, 3: 4000.0, 4: 50000.0, 5: np.nan, 6: 7.0}
    moved = {0: 1.5, 1: 20.3, 2: 300.2, 3: 4000.6, 4: 50000.4, 5: 8.0, 7: 9.0}
    shuffled = table(plain=plain, moved=moved).sample(frac=1, random_state=1)
    row = Test("1", 2).difference(
        "rises", verdicts.exceeds, 0.01, shuffled, "moved", "plain", "latent", "deep", "estimate"
    )
    low, high = stats.ttest_1samp([0.5, 0.3, 0.2, 0.6, 0.4], 0).confidence_interval(0.975)
    assert (row["effect"], row["low"], row["high"]) == pytest.approx((0.4, low, high))
    assert (row["n"], row["verdict"]) == (5, SUPPORTED)
    assert (row["metric"], row["layer"], row["value"]) == ("latent", "deep", "estimate")


def test_the_column_that_is_compared_is_the_one_asked_for():
    made = table(plain={0: 1.0, 1: None}).assign(relative=[0.25, 0.5])
    assert seed_values(made, "plain", metric="latent", layer="deep").to_dict() == {0: 1.0}
    assert seed_values(made, "plain", metric="latent", layer="deep", value="relative").to_dict() == {0: 0.25, 1: 0.5}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("plane", "latent", "deep", "estimate"), "no recipe 'plane'; did you mean 'plain'"),
        (("plain", "latnet", "deep", "estimate"), "no metric 'latnet'; did you mean 'latent'"),
        (("plain", "latent", "deeep", "estimate"), "no layer 'deeep'; did you mean 'deep'"),
        (("plain", "latent", "deep", "relativ"), "none called relativ:"),
        (("twice", "latent", "deep", "estimate"), "twice has several networks of one seed in latent at deep"),
    ],
)
def test_what_is_not_in_the_table_or_twice_is_said(asked, message):
    recipe, metric, layer, value = asked
    twice = table(twice={0: 1.0, 1: 2.0})
    made = pd.concat([table(plain={0: 1.0}), twice, twice.assign(estimate=np.nan)])
    with pytest.raises(ValueError, match=message):
        seed_values(made, recipe, metric=metric, layer=layer, value=value)


def test_a_table_without_seeds_says_how_to_get_them():
    with pytest.raises(ValueError, match=r"columns recipe and seed, got none called seed: .* seed=\[…\]"):
        needs(table(plain={0: 1.0}).drop(columns="seed"), "recipe", "seed")


def row(test, verdict, effect=0.0):
    return {"test": test, "verdict": verdict, "effect": effect, "n": 5}


def test_a_conclusion_carries_the_numbers_of_the_row_that_decides_it():
    rows = [row("a", SUPPORTED, 1), row("b", CONTRADICTED, 2), row("c", CONTRADICTED, 3)]
    found = concluded(rows, "all of it", CONTRADICTED, rows[::-1], [row("premise", SUPPORTED, 4)])
    assert found.test.tolist() == ["premise", "a", "b", "c", "all of it"]
    assert found.decided_by.tolist() == ["", "", "", "", "c"]
    assert found.iloc[-1][["verdict", "effect"]].tolist() == [CONTRADICTED, 3]
    assert concluded(rows, "all of it", INCONCLUSIVE, rows[::-1]).iloc[-1].decided_by == "c"


@pytest.mark.parametrize(
    ("premises", "rows", "decides"),
    [
        ([row("holds", SUPPORTED), row("fails", CONTRADICTED)], [row("a", SUPPORTED)], "fails"),
        ([row("unclear", INCONCLUSIVE)], [row("a", CONTRADICTED)], "unclear"),
        ([row("holds", SUPPORTED)], [row("a", SUPPORTED), row("few", NOT_TESTABLE)], "few"),
        ([row("few", NOT_TESTABLE)], [row("a", SUPPORTED)], "few"),
        ([row("unclear", INCONCLUSIVE)], [row("few", NOT_TESTABLE)], "few"),
    ],
)
def test_a_premise_that_fails_or_too_few_seeds_leave_a_conclusion_untested(premises, rows, decides):
    last = concluded(rows, "all of it", SUPPORTED, rows, premises).iloc[-1]
    assert (last.verdict, last.decided_by) == (NOT_TESTABLE, decides)


def test_a_conclusion_about_nothing_is_refused():
    with pytest.raises(ValueError, match="nothing to compare for 'all of it': expected at least one"):
        concluded([], "all of it", INCONCLUSIVE, [])


def test_untrained_networks_are_named_and_left_out_but_random_ones_stay():
    table = pd.DataFrame(
        {
            "model": ["a", "a", "b", "c"],
            "recipe": ["simclr", "simclr", "simclr", "random"],
            "accuracy": [0.2, 0.2, 0.5, 0.1],
        }
    )
    with pytest.warns(UserWarning, match=r"not trained, and left out: a \(accuracy under 0.5\)"):
        assert verdicts.trained(table, least=0.5).model.tolist() == ["b", "c"]
