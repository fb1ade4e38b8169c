"""What bounds over seeds say of claims, on effects for which the right answer is known."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from eedkit.paper import verdicts
from eedkit.paper.verdicts import (
    Claim,
    Comparison,
    Every,
    Some,
    concluded,
    judge,
    mean_effect,
    needs,
    seed_values,
)

SUPPORTED, CONTRADICTED, INCONCLUSIVE = "supported", "contradicted", "inconclusive"
NOT_TESTABLE = "not testable here"


def fixed(low, high, n=20):
    """An effect whose bounds are these at every level."""
    return verdicts.Effect((low + high) / 2, n, lambda tail_low, tail_high: (low, high))


def normal(value, n=20):
    """An effect with standard error 1."""
    return verdicts.Effect(value, n, lambda low, high: (value + stats.norm.ppf(low), value - stats.norm.ppf(high)))


def above(effect, margin=0.25, name="it"):
    return Comparison(name, Claim("above", margin), effect)


# margin 0.25, so that a bound from 0.2 to 0.3 decides nothing
@pytest.mark.parametrize(
    ("direction", "supported", "contradicted", "undecided"),
    [
        ("above", [(0.31, 0.5)], [(-0.5, 0.19), (0, 0)], [(0.29, 0.5), (0.0, 0.21), (0.24, 0.26), (-1, 1)]),
        ("below", [(-0.5, 0.19), (0, 0)], [(0.31, 0.5)], [(0.29, 0.5), (0.0, 0.21), (0.24, 0.26), (-1, 1)]),
        (
            "beyond",
            [(-0.5, -0.31), (0.31, 0.5)],
            [(-0.19, 0.19), (0.0, 0.1)],
            [(-0.5, -0.29), (0.29, 0.5), (-0.21, 0), (0, 0.21), (-0.26, -0.24), (-0.5, 0.5)],
        ),
    ],
)
def test_bounds_a_fifth_of_the_margin_past_it_decide(direction, supported, contradicted, undecided):
    for expected, intervals in {SUPPORTED: supported, CONTRADICTED: contradicted, INCONCLUSIVE: undecided}.items():
        for low, high in intervals:
            comparison = Comparison("it", Claim(direction, 0.25), fixed(low, high))
            assert judge(comparison).verdict == expected, (low, high)


def test_a_margin_of_0_has_no_room_about_it():
    assert judge(above(fixed(1e-9, 1.0), margin=0.0)).verdict == SUPPORTED
    assert judge(above(fixed(-1.0, -1e-9), margin=0.0)).verdict == CONTRADICTED


@pytest.mark.parametrize("bounds", [(0.028, 0.051), (0.026, 0.048)])
def test_both_machines_of_one_conclusion_get_one_verdict(bounds):
    # seen on two machines, margin 0.05
    assert judge(above(fixed(*bounds), margin=0.05)).verdict == INCONCLUSIVE


def power(values, margin, direction, seeds, draws=4000):
    """How often so many seeds decide a claim about normal effects with this mean and standard deviation."""
    rng = np.random.default_rng(0)
    drawn = rng.normal(np.mean(values), np.std(values, ddof=1), (draws, seeds))
    error = drawn.std(axis=1, ddof=1) / np.sqrt(seeds)
    reach = stats.t.ppf(0.95, seeds - 1) * error
    far = drawn.mean(axis=1) - reach > 1.2 * margin
    near = drawn.mean(axis=1) + reach < 0.8 * margin
    return np.mean(far | near)


@pytest.mark.parametrize("direction", ["above", "below"])
@pytest.mark.parametrize("shift", [-0.06, 0.07])
def test_so_many_seeds_decide_with_a_power_of_80_percent(direction, shift):
    values = 0.1 + shift + np.array([-0.1, 0.12, 0.05, -0.08, 0.02, -0.05, 0.06, -0.02])
    row = judge(Comparison("it", Claim(direction, 0.1), mean_effect(values))).row()
    assert row["verdict"] == INCONCLUSIVE
    assert 0.75 < power(values, 0.1, direction, int(row["seeds_needed"])) < 0.92


@pytest.mark.parametrize(
    ("direction", "value", "distance", "half", "tail"),
    [
        ("above", 0.5, 0.38, 2.0, 0.05),
        ("above", -0.5, 0.58, 1.0, 0.01),
        ("below", 0.5, 0.38, 2.0, 0.01),
        ("below", -0.5, 0.58, 1.0, 0.05),
        ("beyond", 0.5, 0.38, 2.0, 0.005),
        ("beyond", -0.5, 0.38, 1.0, 0.005),
    ],
)
def test_seeds_that_are_needed_follow_the_bound_that_must_pass(direction, value, distance, half, tail):
    # margin 0.1; the lower bound lies 2 below the effect, the upper one 1 above
    effect = verdicts.Effect(value, 10, lambda tail_low, tail_high: (value - 2.0, value + 1.0))
    row = judge(Comparison("it", Claim(direction, 0.1), effect), 0.05, 0.01).row()
    student = stats.t.ppf(1 - tail, 9)
    spread = half * np.sqrt(10) / student
    assert row["seeds_needed"] == np.ceil(((student + 0.84) * spread / distance) ** 2)


@pytest.mark.parametrize(
    "effect",
    [fixed(0.0, 0.5), fixed(0.1, 0.44), verdicts.Effect(9.0, 20, lambda low, high: (-np.inf, np.inf)), fixed(1.0, 2.0)],
)
def test_no_number_of_seeds_is_told_where_none_would_decide_or_none_is_needed(effect):
    # in the room about the margin, without a bound, decided
    assert np.isnan(judge(above(effect)).row()["seeds_needed"])


def test_odd_claims_are_refused():
    with pytest.raises(ValueError, match="no direction of a claim 'abov'; did you mean 'above'"):
        Claim("abov", 0.1)
    for margin in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="not negative; got"):
            Claim("above", margin)


def test_one_sided_claims_get_one_sided_bounds():
    values = [-0.4, -0.1, -0.3, -0.2, -0.6, -0.2]
    low = stats.ttest_1samp(values, 0, alternative="greater").confidence_interval(0.95).low
    high = stats.ttest_1samp(values, 0, alternative="less").confidence_interval(0.99).high
    row = judge(above(mean_effect(values)), level=0.05, level_against=0.01).row()
    assert (row["low"], row["high"]) == pytest.approx((low, high))
    assert (row["confidence"], row["confidence_against"]) == (0.95, 0.99)
    row = judge(Comparison("it", Claim("below", 0.1), mean_effect(values)), level=0.01, level_against=0.05).row()
    assert (row["low"], row["high"]) == pytest.approx((low, high))


def test_a_two_sided_claim_gets_both_ends_at_half_the_level():
    values = [0.1, 0.5, 0.3, 0.2, 0.4]
    row = judge(Comparison("it", Claim("beyond", 0.1), mean_effect(values))).row()
    assert (row["low"], row["high"]) == pytest.approx(tuple(stats.ttest_1samp(values, 0).confidence_interval(0.95)))


def test_a_mean_leaves_out_seeds_without_a_value():
    effect = mean_effect([0.1, np.nan, 0.3])
    assert (effect.value, effect.n) == (pytest.approx(0.2), 2)
    with pytest.raises(ValueError, match="no seed for which both sides"):
        mean_effect([np.nan])


@pytest.mark.parametrize("tail", [0.05, 0.01])
def test_bounds_of_a_ratio_are_where_paired_differences_turn_significant(tail):
    rng = np.random.default_rng(0)
    below = rng.normal(0.9, 0.1, 12)
    over = 0.4 * below + rng.normal(0, 0.05, 12)
    effect = verdicts.ratio_effect(over, below)
    low, high = effect.bounds(tail, tail)
    assert effect.value == pytest.approx(over.mean() / below.mean())
    assert stats.ttest_1samp(over - high * below, 0, alternative="less").pvalue == pytest.approx(tail)
    assert stats.ttest_1samp(over - low * below, 0, alternative="greater").pvalue == pytest.approx(tail)


def test_a_ratio_to_something_that_may_be_0_has_no_bounds():
    for below in ([0.5, -0.4, 0.1, -0.2, 0.1], [-1.0, -1.1, -0.9, -1.0, -1.0]):
        assert verdicts.ratio_effect([1.0, 1.1, 0.9, 1.0, 1.0], below).bounds(0.05, 0.05) == (-np.inf, np.inf)
    assert verdicts.ratio_effect([1.0], [2.0]).bounds(0.05, 0.05) == (-np.inf, np.inf)


def test_opposed_effects_are_as_far_apart_as_the_lesser_of_them():
    up, down, none = fixed(0.4, 0.6), fixed(-0.3, -0.1), fixed(-0.05, 0.05)
    opposed = verdicts.opposed_effect([up, none, down])
    assert (opposed.value, *opposed.bounds(0.05, 0.05)) == pytest.approx((0.2, 0.1, 0.3))
    same = verdicts.opposed_effect([up, up])
    assert (same.value, *same.bounds(0.05, 0.05)) == pytest.approx((-0.5, -0.6, -0.4))


def test_opposed_effects_divide_their_error():
    asked = []

    def bounds(tail_low, tail_high):
        asked.append((tail_low, tail_high))
        return -1.0, 1.0

    verdicts.opposed_effect([verdicts.Effect(0.0, 5, bounds)] * 4).bounds(0.04, 0.02)
    assert set(asked) == {(0.01, 0.01)}
    asked.clear()
    verdicts.opposed_effect([verdicts.Effect(0.0, 5, bounds)] * 4).bounds(0.08, 0.02)
    assert set(asked) == {(0.02, 0.02), (0.01, 0.01)}


def test_a_mean_of_what_has_a_range_keeps_its_bounds_within_it():
    assert mean_effect([0.9, 1.0, 0.2], within=(-1, 1)).bounds(0.05, 0.05)[1] == 1
    low, high = mean_effect([0.9, 1.0, 0.2]).bounds(0.05, 0.05)
    assert high > 1
    assert mean_effect([0.9, 1.0, 0.2], within=(-1, 1)).bounds(0.05, 0.05)[0] == low


YES, NO, OPEN = fixed(0.32, 0.4), fixed(0.0, 0.18), fixed(0.2, 0.3)


@pytest.mark.parametrize(
    ("effects", "all_of_them", "at_least_one"),
    [
        ([YES], SUPPORTED, SUPPORTED),
        ([NO], CONTRADICTED, CONTRADICTED),
        ([OPEN], INCONCLUSIVE, INCONCLUSIVE),
        ([YES, OPEN], INCONCLUSIVE, SUPPORTED),
        ([NO, OPEN], CONTRADICTED, INCONCLUSIVE),
        ([YES, NO], CONTRADICTED, SUPPORTED),
        ([NO, NO], CONTRADICTED, CONTRADICTED),
        ([YES, fixed(0.3, 0.4, n=4)], NOT_TESTABLE, NOT_TESTABLE),
    ],
)
def test_verdicts_are_put_together_as_logic_does(effects, all_of_them, at_least_one):
    parts = [above(effect) for effect in effects]
    assert judge(Every(parts)).verdict == all_of_them
    assert judge(Some(parts)).verdict == at_least_one


def test_nothing_to_compare_is_refused():
    with pytest.raises(ValueError, match="nothing to compare"):
        judge(Every([]))


def p_values(values):
    """One-sided p-values of effects with standard error 1 that are claimed to lie above 0."""
    return stats.norm.sf(values)


def claims(values):
    return [above(normal(value), margin=0) for value in values]


@pytest.mark.parametrize(
    ("whole", "values", "verdict"),
    [
        # an intersection-union test: one-sided p 0.0446 each, which Bonferroni would not let pass
        (Every, (1.7, 1.7, 5.0), SUPPORTED),
        (Some, (-1.7, -1.7, -1.7), CONTRADICTED),
        # a union at the corrected level: P(Z < -2.2) = 0.0139 < 0.05 / 3 < P(Z < -2.0) = 0.0228
        (Every, (-2.2, 3.0, 3.0), CONTRADICTED),
        (Every, (-2.0, 3.0, 3.0), INCONCLUSIVE),
        (Some, (2.2, 0.0, 0.0), SUPPORTED),
        (Some, (2.0, 0.0, 0.0), INCONCLUSIVE),
    ],
)
def test_only_a_verdict_that_one_part_brings_about_is_corrected(whole, values, verdict):
    assert judge(whole(claims(values))).verdict == verdict


def holm_by_hand(p, level):
    """Holm 1979: the hypotheses in the order of their p-values, until the first that is not rejected."""
    rejected = np.zeros(len(p), bool)
    for step, place in enumerate(np.argsort(p)):
        if p[place] >= level / (len(p) - step):
            break
        rejected[place] = True
    return rejected.tolist()


@pytest.mark.parametrize("seed", range(8))
def test_parts_of_some_are_supported_as_holm_says(seed):
    values = np.random.default_rng(seed).normal(1.5, 1, 5)
    rows = judge(Some(claims(values))).rows
    supported = [row["verdict"] == SUPPORTED for row in rows]
    assert supported == holm_by_hand(p_values(values), 0.05)


def test_holm_goes_further_than_bonferroni():
    values = [3.0, 2.2, 1.8]  # 0.0014 < 0.05 / 3, 0.0139 < 0.05 / 2, 0.036 < 0.05, of which Bonferroni takes two
    rows = judge(Some(claims(values))).rows
    assert [row["verdict"] for row in rows] == [SUPPORTED] * 3
    assert [row["confidence"] for row in rows] == pytest.approx([1 - 0.05 / 3, 1 - 0.05 / 3, 0.95])


@pytest.mark.parametrize(
    ("whole", "truths", "wrong", "least"),
    [
        # every part lies at the margin: as "all" true, as "some" false
        (Every, (1, 1, 1, 1), CONTRADICTED, 0),
        (Some, (1, 1, 1, 1), SUPPORTED, 0),
        # the worst case: one part at the end of the margin's room, the others far away
        (Every, (1.2, 9, 9, 9), SUPPORTED, 0.02),
        (Some, (0.8, -9, -9, -9), CONTRADICTED, 0.02),
    ],
)
def test_wrong_verdicts_on_the_whole_are_no_likelier_than_declared(whole, truths, wrong, least):
    rng = np.random.default_rng(0)
    judged = []
    for _ in range(300):
        parts = [above(normal(truth + rng.standard_normal()), margin=1) for truth in truths]
        judged.append(judge(whole(parts)).verdict)
    # 5 %, and 3 standard errors of 300 draws
    assert least <= np.mean([verdict == wrong for verdict in judged]) <= 0.088


def at_margin(direction, effect, margin):
    return judge(Comparison("it", Claim(direction, margin), effect))


@pytest.mark.parametrize(
    ("direction", "low", "high", "margin", "critical"),
    [
        ("above", 0.3, 0.6, 0.2, 0.3 / 1.2),
        ("above", 0.3, 0.6, 0.9, 0.6 / 0.8),
        ("above", 0.3, 0.6, 0.35, 0.3 / 1.2),
        ("above", 0.3, 0.6, 0.65, 0.6 / 0.8),
        ("below", 0.3, 0.6, 0.9, 0.6 / 0.8),
        ("below", 0.3, 0.6, 0.2, 0.3 / 1.2),
        ("below", 0.3, 0.6, 0.35, 0.3 / 1.2),
        ("below", 0.3, 0.6, 0.65, 0.6 / 0.8),
        ("beyond", -0.6, -0.3, 0.2, 0.3 / 1.2),
        ("beyond", -0.6, -0.3, 0.9, 0.6 / 0.8),
        ("beyond", 0.1, 0.6, 0.2, 0.1 / 1.2),
        ("beyond", -0.1, 0.6, 0.5, 0.6 / 0.8),
        # the nearer end is negative, and no margin is
        ("above", -0.1, 0.6, 0.1, 0.6 / 0.8),
        ("beyond", -0.2, 0.6, 0.1, 0.6 / 0.8),
    ],
)
def test_the_verdict_flips_at_the_critical_margin(direction, low, high, margin, critical):
    effect = fixed(low, high)
    row = at_margin(direction, effect, margin).row()
    assert row["critical_margin"] == pytest.approx(critical)
    sides = [at_margin(direction, effect, critical + nudge).verdict for nudge in (-1e-6, 1e-6)]
    assert row["verdict"] in sides
    assert sides[0] != sides[1]


@pytest.mark.parametrize(
    ("direction", "low", "high", "verdict"),
    [("above", -0.4, -0.2, CONTRADICTED), ("below", -0.4, -0.2, SUPPORTED), ("above", -np.inf, np.inf, INCONCLUSIVE)],
)
def test_what_no_margin_would_flip_has_no_critical_margin(direction, low, high, verdict):
    row = at_margin(direction, fixed(low, high), 0.1).row()
    assert row["verdict"] == verdict
    assert np.isnan(row["critical_margin"])
    assert {at_margin(direction, fixed(low, high), margin).verdict for margin in (0.0, 0.1, 9.0)} == {verdict}


@pytest.mark.parametrize("whole", [Every, Some])
@pytest.mark.parametrize("values", list(itertools.product([1.0, 2.5, 4.5], repeat=3)))
def test_the_verdict_on_the_whole_flips_at_its_critical_margin(whole, values):
    def at(margin):
        return judge(whole([above(normal(value), margin=margin) for value in values]))

    row = at(2.2).row()
    sides = [at(row["critical_margin"] + nudge).verdict for nudge in (-1e-6, 1e-6)]
    assert row["verdict"] in sides
    assert sides[0] != sides[1]
    # and not before
    for part in np.linspace(0.01, 0.99, 9):
        assert at(2.2 + part * (row["critical_margin"] - 2.2)).verdict == row["verdict"]


def test_few_seeds_are_not_testable_and_have_no_critical_margin():
    row = judge(above(fixed(0.3, 0.4, n=4))).row()
    assert row["verdict"] == NOT_TESTABLE
    assert np.isnan([row["critical_margin"], row["seeds_needed"]]).all()
    assert judge(above(fixed(0.32, 0.4, n=5))).verdict == SUPPORTED


def whole(*effects, **options):
    parts = {"one": above(effects[0], name="one's")}
    if len(effects) > 1:
        parts["more"] = Every([above(effect, name=f"more {i}") for i, effect in enumerate(effects[1:])])
    return concluded("9", "all hold", parts, **options)


def test_parts_of_several_comparisons_have_a_row_with_their_own_verdict():
    found = whole(YES, YES, NO)
    assert found.part.tolist() == ["one", "more", "more", "more", "conclusion"]
    assert found.test.tolist() == ["one's", "more 0", "more 1", "more", "all hold"]
    assert found.verdict.tolist() == [SUPPORTED, SUPPORTED, CONTRADICTED, CONTRADICTED, CONTRADICTED]
    assert found.decided_by.tolist() == ["", "", "", "more 1", "more 1"]
    assert found.conclusion.unique().tolist() == ["9"]
    assert found.iloc[-1][["effect", "low", "high"]].tolist() == pytest.approx([0.09, 0.0, 0.18])


def test_the_comparison_that_needs_most_decides_what_is_supported():
    found = whole(YES, YES, fixed(0.31, 0.5))
    assert found.iloc[-1].decided_by == "more 1"
    assert found.iloc[-1].critical_margin == pytest.approx(0.31 / 1.2)


@pytest.mark.parametrize(
    ("premise", "control", "verdict", "decided_by"),
    [
        (YES, YES, SUPPORTED, "one's"),
        (NO, YES, NOT_TESTABLE, "premise"),
        (OPEN, YES, NOT_TESTABLE, "premise"),
        (YES, NO, NOT_TESTABLE, "control"),
        (YES, OPEN, SUPPORTED, "one's"),
        (fixed(0.3, 0.4, n=4), YES, NOT_TESTABLE, "premise"),
        (YES, fixed(0.3, 0.4, n=4), NOT_TESTABLE, "control"),
    ],
)
def test_failed_premises_and_controls_leave_nothing_testable(premise, control, verdict, decided_by):
    options = {"premises": [above(premise, name="premise")], "controls": [above(control, name="control")]}
    last = whole(YES, **options).iloc[-1]
    assert (last.verdict, last.decided_by) == (verdict, decided_by)


def test_premises_are_not_paid_for():
    with_premise = whole(normal(2.0), premises=[above(YES)])
    assert with_premise.iloc[-1].low == whole(normal(2.0)).iloc[-1].low


def test_stored_verdicts_come_back_as_they_were(tmp_path):
    one = whole(YES, OPEN, NO).assign(profile="quick")
    other = whole(verdicts.Effect(np.nan, 9, lambda low, high: (-np.inf, np.inf))).assign(conclusion="10", share=0.5)
    verdicts.save(other, tmp_path / "new")
    verdicts.save(pd.concat([one, one.assign(conclusion="1")]), tmp_path / "new")
    verdicts.save(one, tmp_path / "new")
    loaded = verdicts.load(tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["1.json", "10.json", "9.json"]
    assert loaded.conclusion.drop_duplicates().tolist() == ["1", "10", "9"]
    again = loaded[loaded.conclusion == "10"].reset_index(drop=True)
    pd.testing.assert_frame_equal(again[other.columns], other.reset_index(drop=True))
    pd.testing.assert_frame_equal(loaded[loaded.conclusion == "9"][one.columns].reset_index(drop=True), one)


def test_a_folder_without_verdicts_is_named(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(ValueError, match=r"no verdicts in .*run the notebooks that judge first"):
            verdicts.load(folder)


def rows_of(recipe, values, **columns):
    table = pd.DataFrame({"recipe": recipe, "seed": range(len(values)), "estimate": values})
    return table.assign(**{"metric": "latent", "layer": "deep", **columns})


def test_values_come_by_seed_from_the_rows_that_are_asked_for():
    table = pd.concat([rows_of("plain", [1.0, 2.0]), rows_of("augmented", [3.0, 4.0], metric="softmax")])
    assert seed_values(table, "estimate", recipe="plain").to_dict() == {0: 1.0, 1: 2.0}
    assert seed_values(table, "estimate", recipe="augmented", metric="softmax").to_dict() == {0: 3.0, 1: 4.0}
    for column, name in {"recipe": "plane", "metric": "latnt", "layer": "deeep"}.items():
        with pytest.raises(ValueError, match=f"no {column} '{name}'; did you mean"):
            seed_values(table, "estimate", **{"recipe": "plain", column: name})


def test_a_seed_without_a_value_is_named_with_its_reason():
    table = rows_of("plain", [1.0, np.nan], reason=["", "no null"])
    with pytest.warns(UserWarning, match=r"no estimate of plain, latent for the seeds \[1\].*no null"):
        values = seed_values(table, "estimate", recipe="plain", metric="latent")
    assert values.to_dict() == {0: 1.0}


def test_several_networks_of_one_seed_are_refused():
    table = pd.concat([rows_of("plain", [1.0]), rows_of("plain", [2.0])])
    with pytest.raises(ValueError, match="several networks of one seed are plain, deep; select one data set"):
        seed_values(table, "estimate", recipe="plain", layer="deep")


def test_a_missing_column_is_named_with_where_it_comes_from():
    with pytest.raises(ValueError, match=r"no column 'null'.*; recipe and seed come from concat"):
        needs(pd.DataFrame({"recipe": []}), "recipe", "null", "seed")


def test_networks_that_did_not_train_are_left_out_by_name():
    table = pd.DataFrame(
        {
            "model": ["good", "bad", "bad", "untrained"],
            "recipe": ["plain", "plain deep", "plain deep", "random deep"],
            "accuracy": [0.9, 0.3, 0.3, 0.1],
        }
    )
    with pytest.warns(UserWarning, match=r"left out: bad \(accuracy under 0.5\)"):
        left = verdicts.trained(table, least=0.5)
    assert left.model.tolist() == ["good", "untrained"]
    with pytest.raises(ValueError, match="several accuracies"):
        verdicts.trained(table.assign(accuracy=[0.9, 0.3, 0.4, 0.1]), least=0.5)
