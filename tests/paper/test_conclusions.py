"""The five conclusions on tables that are made so that the right verdict is known, each for its own reason."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from eedkit.paper.conclusions import (
    augmentation_or_layers,
    out_of_distribution,
    pretraining,
    rank_correlation,
    self_supervision,
    without_learning,
)

SUPPORTED, CONTRADICTED, INCONCLUSIVE = "supported", "contradicted", "inconclusive"
NOT_TESTABLE = "not testable here"
WIDE = 0.3
"""Noise over seeds that leaves differences of the size that is used here undecided."""
BEST = {"latent": -1.0, "channelwise": -1.0, "channelwise_matched": -1.0}


def table(cells, *, noise=0.005, seeds=5, **columns):
    """A table of `summarise`: {(recipe, metric, layer): estimate, or (estimate, relative)}, with noise over seeds."""
    rng, rows = np.random.default_rng(0), []
    for (recipe, metric, layer), mean in cells.items():
        estimate, relative = mean if isinstance(mean, tuple) else (mean, np.nan)
        for seed in range(seeds):
            some = noise * rng.standard_normal()
            keys = {"model": f"{recipe}-{seed}", "recipe": recipe, "seed": seed, "metric": metric, "layer": layer}
            values = {
                "estimate": estimate + some,
                "relative": relative + some,
                "best": BEST.get(metric, 0.0),
                "null": 0.0,
            }
            rows.append({**keys, **values, "scale": 1.0, **columns})
    return pd.DataFrame(rows)


def verdicts_of(found):
    return found.verdict.tolist()


def t_interval(made, minuend, subtrahend, comparisons, value="estimate", **at):
    """scipy's paired t interval, with Bonferroni's correction."""
    rows = made[np.logical_and.reduce([made[k] == v for k, v in at.items()])].sort_values("seed")
    one, other = (rows[rows.recipe == recipe][value].to_numpy() for recipe in (minuend, subtrahend))
    return tuple(stats.ttest_rel(one, other).confidence_interval(1 - 0.05 / comparisons))


def layers(one=0.0, two=0.0, *, latent=0.6, softmax=0.3, equivariant=None, metric="channelwise", **made):
    """Augmented lies below plain by the given falls; `equivariant` is how far that network is from the best at layer two."""
    cells = {
        ("plain", metric, "one"): (-0.5, 0.75),
        ("augmented", metric, "one"): (-0.5 - one, 0.75 - one),
        ("plain", metric, "two"): (-0.5, 0.75),
        ("augmented", metric, "two"): (-0.5 - two, 0.75 - two),
        ("plain", "latent", "latent"): (-0.8, 0.65),
        ("augmented", "latent", "latent"): (-0.98, 0.65 - latent),
        ("plain", "softmax", "output"): (0.7, 0.3),
        ("augmented", "softmax", "output"): (0.02, 0.3 - softmax),
    }
    if equivariant is not None:
        cells[("equivariant", metric, "one")] = -1.0, 0.0
        cells[("equivariant", metric, "two")] = -1.0 + equivariant, 2 * equivariant
    return table(cells, **made)


def first(made, **options):
    return augmentation_or_layers(made, **{"margin": 0.1, "fall": 0.1, **options})


@pytest.mark.parametrize(
    ("made", "verdict", "decided_by"),
    [
        ({}, SUPPORTED, "channelwise at"),
        ({"one": -0.3, "two": -0.4}, SUPPORTED, "channelwise at one does not fall"),
        ({"two": 0.3}, CONTRADICTED, "channelwise at two does not fall"),
        ({"two": 0.1}, INCONCLUSIVE, "channelwise at two does not fall"),
        ({"one": 0.3, "two": 0.4}, CONTRADICTED, "channelwise at two does not fall"),
        ({"one": 0.3, "two": 0.1}, CONTRADICTED, "channelwise at one does not fall"),
        ({"latent": 0.0}, NOT_TESTABLE, "latent falls"),
        ({"latent": -0.3}, NOT_TESTABLE, "latent falls"),
        ({"softmax": 0.0}, NOT_TESTABLE, "softmax falls"),
        ({"noise": WIDE}, NOT_TESTABLE, "softmax falls"),
    ],
)
def test_conclusion_1_comes_out_as_the_table_was_made(made, verdict, decided_by):
    last = first(layers(**made)).iloc[-1]
    assert last.verdict == verdict
    assert last.decided_by.startswith(decided_by)


def test_conclusion_1_corrects_for_its_layers_and_premises():
    made = layers(two=0.3)
    found = first(made)
    assert verdicts_of(found) == [SUPPORTED, SUPPORTED, SUPPORTED, CONTRADICTED, CONTRADICTED]
    at_two = t_interval(made, "augmented", "plain", 4, metric="channelwise", layer="two")
    softmax = t_interval(made, "augmented", "plain", 4, metric="softmax", value="relative")
    assert tuple(found.loc[3, ["low", "high"]]) == pytest.approx(at_two)
    assert tuple(found.loc[1, ["low", "high"]]) == pytest.approx(softmax)
    last = found.iloc[-1]
    assert (last.layer, last.n, last.margin, last.low, last.high) == ("two", 5, 0.1, *found.loc[3, ["low", "high"]])
    assert found.confidence.unique() == pytest.approx([1 - 0.05 / 4])


def test_conclusion_1_has_a_margin_of_its_own_for_the_premises():
    assert first(layers(), fall=0.2).iloc[-1].verdict == SUPPORTED
    last = first(layers(), fall=0.4).iloc[-1]
    assert (last.verdict, last.decided_by, last.margin) == (NOT_TESTABLE, "softmax falls", 0.4)


def test_conclusion_1_can_be_asked_of_the_relative_value():
    made = layers()
    made.loc[(made.metric == "channelwise") & (made.recipe == "augmented"), "relative"] -= 0.4
    assert verdicts_of(first(made))[-1] == SUPPORTED
    assert verdicts_of(first(made, value="relative"))[-1] == CONTRADICTED


@pytest.mark.parametrize(
    ("away", "options", "premise", "verdict"),
    [
        (0.0, {}, SUPPORTED, SUPPORTED),
        (0.5, {}, CONTRADICTED, NOT_TESTABLE),
        (0.1, {}, INCONCLUSIVE, NOT_TESTABLE),
        (0.07, {}, SUPPORTED, SUPPORTED),
        (0.07, {"value": "relative"}, CONTRADICTED, NOT_TESTABLE),  # where it is 0.14
        (0.03, {"value": "relative"}, SUPPORTED, SUPPORTED),
        (0.07, {"fall": 0.01}, SUPPORTED, SUPPORTED),
    ],
)
def test_conclusion_1_is_tested_where_the_equivariant_network_is_seen_as_such(away, options, premise, verdict):
    made = layers(equivariant=away, metric="channelwise_matched")
    found = first(made, metric="channelwise_matched", **options)
    seen = found[found.test == "the equivariant network is seen as such"].iloc[0]
    assert (seen.verdict, found.iloc[-1].verdict) == (premise, verdict)
    assert found.confidence.unique() == pytest.approx([1 - 0.05 / 5])


def test_the_equivariant_network_is_judged_by_its_worst_layer_seed_by_seed():
    made = layers(equivariant=0.02, metric="channelwise_matched")
    of = made[(made.recipe == "equivariant")].pivot(index="seed", columns="layer", values="estimate")
    worst = [max(one, two) + 1 for one, two in zip(of["one"], of["two"], strict=True)]
    found = first(made, metric="channelwise_matched").iloc[2]
    expected = stats.ttest_1samp(worst, 0).confidence_interval(1 - 0.05 / 5)
    assert (found.effect, found.low, found.high) == pytest.approx((np.mean(worst), *expected))
    made.loc[(made.recipe == "equivariant") & (made.layer == "one") & (made.seed == 3), "estimate"] = np.nan
    found = first(made, metric="channelwise_matched").iloc[2]
    assert (found.n, found.effect) == (4, pytest.approx(np.mean(np.delete(worst, 3))))


def test_the_papers_own_channelwise_value_asks_nothing_of_the_equivariant_network():
    found = first(layers(equivariant=0.5))
    assert "the equivariant network is seen as such" not in set(found.test)
    assert found.iloc[-1].verdict == SUPPORTED


def test_the_deciding_layer_is_shown_not_the_noisiest():
    made = layers(0.4, 0.3, noise=0.001)
    noisy = (made.metric == "channelwise") & (made.layer == "one") & (made.recipe == "augmented")
    made.loc[noisy, "estimate"] += [0.5, -0.5, 0.4, -0.4, 0.0]
    last = first(made).iloc[-1]
    assert (last.verdict, last.layer) == (CONTRADICTED, "two")
    made = layers(0.5, 0.5, noise=0.001)
    made.loc[noisy, "estimate"] += [0.04, -0.04, 0.03, -0.03, 0.0]
    last = first(made).iloc[-1]
    assert (last.verdict, last.layer) == (CONTRADICTED, "two")


FAR = ("letters/test", "patches/test")
KINDS = {"blur": 5, "static": 3}


def shifted(*, here=0.6, corrupted=(0.4, 0.2), gaps=(0.01, 0.5), static=0.5, noise=0.005, seeds=5):
    """Gains on clean and on corrupted digits, and the null gap on two far domains and on nothing but static."""
    places = [("digits/test", "", 0, here, 0.5)]
    places += [("digits/test", *kind, gain, 0.5) for kind, gain in zip(KINDS.items(), corrupted, strict=True)]
    places += [(source, "", 0, 0.3, gap) for source, gap in zip(FAR, gaps, strict=True)]
    places += [("digits/test", "static", 5, 9.0, static)]
    parts = []
    for i, (source, shift, severity, gain, gap) in enumerate(places):
        cells = {("plain", "latent", "latent"): (-0.5, 0.7), ("augmented", "latent", "latent"): (-0.9, 0.7 - gain)}
        domain = "noise" if (shift, severity) == ("static", 5) else source.partition("/")[0]
        at = {
            "data": f"{source}?{shift}{severity}",
            "source": source,
            "shift": shift,
            "severity": severity,
            "domain": domain,
        }
        part = table(cells, noise=noise, seeds=seeds, **at)
        # other noise for each place, and a plain network whose gap is never asked for
        part["relative"] += noise * np.random.default_rng(i).standard_normal(len(part))
        part["null"] = np.where(part.recipe == "augmented", -1 + gap * (1 + 0.01 * (part.seed * (1 + i // 3) % 5)), 5.0)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def second(made, **options):
    return out_of_distribution(made, **{"source": "digits/test", "margin": 0.1, "collapse": 0.2, **options})


@pytest.mark.parametrize(
    ("made", "verdict", "decided_by"),
    [
        ({}, SUPPORTED, "the gain remains on corruptions"),
        ({"gaps": (0.5, 0.5), "static": 0.01}, SUPPORTED, "the gain remains on corruptions"),
        ({"corrupted": (0.0, 0.0)}, CONTRADICTED, "the gain remains on corruptions"),
        ({"corrupted": (-0.3, -0.3)}, CONTRADICTED, "the gain remains on corruptions"),
        ({"corrupted": (0.1, 0.1)}, INCONCLUSIVE, "the gain remains on corruptions"),
        ({"corrupted": (0.6, 0.6)}, CONTRADICTED, "and is smaller there"),
        ({"corrupted": (0.9, 0.9)}, CONTRADICTED, "and is smaller there"),
        ({"corrupted": (0.5, 0.5)}, INCONCLUSIVE, "and is smaller there"),
        ({"gaps": (0.3, 0.5)}, CONTRADICTED, "letters: the null gap"),
        ({"gaps": (0.1, 0.5)}, INCONCLUSIVE, "letters: the null gap"),
        ({"here": 0.0}, NOT_TESTABLE, "augmentation gains in distribution"),
        ({"here": 0.05}, NOT_TESTABLE, "augmentation gains in distribution"),
        ({"here": -0.5}, NOT_TESTABLE, "augmentation gains in distribution"),
        ({"noise": WIDE}, NOT_TESTABLE, "augmentation gains in distribution"),
        ({"seeds": 4}, NOT_TESTABLE, "augmentation gains in distribution"),
    ],
)
def test_conclusion_2_comes_out_as_the_table_was_made(made, verdict, decided_by):
    last = second(shifted(**made)).iloc[-1]
    assert last.verdict == verdict
    assert last.decided_by.startswith(decided_by)


def test_conclusion_2_averages_the_corruptions_of_a_seed_and_leaves_full_static_to_the_far_domains():
    made = shifted()
    found = second(made).set_index("test")
    clean, blur, static = (
        made[made.data == f"digits/test?{name}"].pivot(index="seed", columns="recipe", values="relative")
        for name in ("0", "blur5", "static3")
    )
    here = clean.plain - clean.augmented
    there = ((blur.plain - blur.augmented) + (static.plain - static.augmented)) / 2
    expected = {
        "augmentation gains in distribution": here,
        "the gain remains on corruptions": there,
        "and is smaller there": here - there,
    }
    for name, effects in expected.items():
        interval = stats.ttest_1samp(effects, 0).confidence_interval(1 - 0.05 / 6)
        assert tuple(found.loc[name, ["effect", "low", "high"]]) == pytest.approx((effects.mean(), *interval))
    far = found[found.index.str.contains("null gap collapses")]
    assert [name.partition(":")[0] for name in far.index] == ["letters", "patches", "noise"]
    assert far.effect.tolist() == pytest.approx([0.01 / 0.5, 1.0, 1.0], abs=0.001)
    assert far.verdict.tolist() == [SUPPORTED, CONTRADICTED, CONTRADICTED]


def test_data_sets_of_one_far_domain_count_as_one():
    made = shifted()
    more = made[made.source == "letters/test"].assign(data="letters/blurred", shift="blur", severity=3, null=-0.995)
    found = second(pd.concat([made, more.assign(source="letters/other")]))
    letters = found[found.test.str.startswith("letters:")]
    assert len(letters) == 1
    ratios = [(0.01 * (1 + 0.01 * (2 * s % 5)) + 0.005) / 2 / (0.5 * (1 + 0.01 * s)) for s in range(5)]
    assert letters.effect.item() == pytest.approx(np.mean(ratios))
    assert found.confidence.unique() == pytest.approx([1 - 0.05 / 6])


def test_a_seed_without_a_value_on_one_corruption_has_no_mean_over_them():
    made = shifted(seeds=6)
    made.loc[(made["shift"] == "blur") & (made.recipe == "plain") & (made.seed == 2), "relative"] = np.nan
    found = second(made).set_index("test")
    assert found.n.tolist()[:3] == [6, 5, 5]
    assert found.iloc[-1].verdict == SUPPORTED
    left = made[made.seed != 2]
    assert found.loc["the gain remains on corruptions", "effect"] == pytest.approx(
        second(left).set_index("test").loc["the gain remains on corruptions", "effect"]
    )


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ("source != 'digits/test'", "no images in distribution where the source is 'digits/test'.*letters/test"),
        ("source != 'digits/test' or shift != 'blur' and (shift != 'static' or severity == 5)", "no corrupted images"),
        ("source == 'digits/test' and severity < 5", "no far images"),
        ("recipe == 'plain'", "no recipe 'augmented'"),
        ("recipe == 'augmented'", "no recipe 'plain'"),
    ],
)
def test_conclusion_2_says_which_images_or_recipes_it_lacks(chosen, message):
    with pytest.raises(ValueError, match=message):
        second(shifted().query(chosen))


@pytest.mark.parametrize("column", ["data", "source", "shift", "domain", "null", "best"])
def test_conclusion_2_says_which_column_it_lacks(column):
    with pytest.raises(ValueError, match=f"none called {column}:"):
        second(shifted().drop(columns=column))


def learned(random=-0.996, random_softmax=0.0, **made):
    cells = {
        ("augmented", "latent", "latent"): -0.98,
        ("equivariant", "latent", "latent"): -1.0,
        ("random", "latent", "latent"): random,
        ("augmented", "softmax", "output"): 0.02,
        ("equivariant", "softmax", "output"): 0.0,
        ("random", "softmax", "output"): random_softmax,
    }
    return table(cells, **{"noise": 0.0002, **made})


def third(made, **options):
    return without_learning(made, **{"margins": {"latent": 0.002, "softmax": 0.002}, **options})


@pytest.mark.parametrize(
    ("made", "verdict", "decided_by"),
    [
        ({}, SUPPORTED, "random below augmented in softmax"),
        ({"random": -0.5, "random_softmax": 0.0}, SUPPORTED, "random below augmented in softmax"),
        ({"random_softmax": 0.5}, SUPPORTED, "random below augmented in latent"),
        ({"random": -0.5, "random_softmax": 0.4}, CONTRADICTED, "random below augmented in softmax"),
        ({"random": -0.98, "random_softmax": 0.02}, INCONCLUSIVE, "random below augmented in"),
        ({"random": -0.978, "random_softmax": 0.5}, INCONCLUSIVE, "random below augmented in latent"),
        ({"random": -0.982, "random_softmax": 0.02}, INCONCLUSIVE, "random below augmented in"),
        ({"noise": WIDE}, INCONCLUSIVE, "random below"),
        ({"seeds": 4}, NOT_TESTABLE, "random below augmented in latent"),
    ],
)
def test_conclusion_3_comes_out_as_the_table_was_made(made, verdict, decided_by):
    last = third(learned(**made)).iloc[-1]
    assert last.verdict == verdict
    assert last.decided_by.startswith(decided_by)


def test_conclusion_3_corrects_for_metrics_and_opponents_and_names_its_clearest_case():
    made = learned()
    found = third(made)
    assert verdicts_of(found) == [SUPPORTED, CONTRADICTED, SUPPORTED, INCONCLUSIVE, SUPPORTED]
    expected = t_interval(made, "random", "augmented", 4, metric="softmax")
    last = found.iloc[-1]
    assert (last.low, last.high) == pytest.approx(expected)
    assert (last.metric, last.layer, last.effect) == ("softmax", "output", pytest.approx(-0.02, abs=0.001))


def test_conclusion_3_needs_something_to_compare():
    for options in ({"margins": {}}, {"against": ()}):
        with pytest.raises(ValueError, match="at least one recipe and one metric"):
            third(learned(), **options)


def pool(x, y):
    names = [f"m{i}" for i in range(len(x))]
    return pd.DataFrame({"model": names, "metric": "latent", "layer": "latent", "estimate": x, "accuracy": y})


def correlated(rho, n, rng):
    x = rng.standard_normal(n)
    return x, rho * x + np.sqrt(1 - rho**2) * rng.standard_normal(n)


@pytest.mark.parametrize(
    ("rho", "n", "verdict"),
    [
        (-0.95, 30, CONTRADICTED),
        (0.0, 60, SUPPORTED),
        (0.9, 30, SUPPORTED),
        (-0.5, 20, INCONCLUSIVE),
        (0.9, 4, NOT_TESTABLE),
    ],
)
def test_rank_correlation_says_whether_invariance_tracks_accuracy(rho, n, verdict):
    x, y = correlated(rho, n, np.random.default_rng(0))
    found = rank_correlation(pool(x, y), margin=0.5)
    assert (found["verdict"], found["n"], found["margin"]) == (verdict, n, 0.5)
    assert (found["conclusion"], found["metric"], found["layer"]) == ("3", "latent", "latent")


@pytest.mark.parametrize("digits", [6, 1, 0])
def test_rank_correlation_is_scipys_also_where_values_tie(digits):
    x, y = np.round(correlated(-0.6, 25, np.random.default_rng(1)), digits)
    found = rank_correlation(pool(x, y), margin=0.3, confidence=0.9)
    assert found["effect"] == pytest.approx(stats.spearmanr(x, y).statistic)
    again = stats.bootstrap(
        (x, y), lambda x, y: stats.spearmanr(x, y).statistic, paired=True, vectorized=False, confidence_level=0.9,
        n_resamples=1999, method="percentile", rng=5,
    ).confidence_interval  # fmt: skip
    assert (found["low"], found["high"]) == pytest.approx(tuple(again), abs=0.03)


def test_the_interval_of_a_rank_correlation_covers_it_about_as_often_as_it_says():
    rng, rho = np.random.default_rng(0), -0.6
    true = 6 / np.pi * np.arcsin(rho / 2)  # of two normal variables
    found = [rank_correlation(pool(*correlated(rho, 24, rng)), margin=0, confidence=0.8) for _ in range(150)]
    assert 0.7 < np.mean([row["low"] <= true <= row["high"] for row in found]) < 0.9


def test_rank_correlation_of_few_networks_has_an_interval():
    found = rank_correlation(pool([1, 2, 3, 4, 5], [0.9, 0.9, 0.9, 0.9, 0.5]), margin=0.5)
    assert np.isfinite([found["low"], found["high"]]).all()
    assert found["high"] == 0  # two in five resamples hold no other accuracy than 0.9


def test_rank_correlation_leaves_out_what_has_no_accuracy_or_value_and_refuses_what_it_cannot_rank():
    x, y = correlated(-0.9, 12, np.random.default_rng(0))
    without = rank_correlation(pool(x[2:], y[2:]), margin=0.5)
    x[0], y[1] = np.nan, np.nan
    assert rank_correlation(pool(x, y), margin=0.5) == without
    with pytest.raises(ValueError, match="differ in the estimate of latent and in accuracy"):
        rank_correlation(pool(x, np.full(12, 0.9)), margin=0.5)
    with pytest.raises(ValueError, match="differ in the estimate of latent and in accuracy"):
        rank_correlation(pool(np.full(12, 0.9), y), margin=0.5)
    with pytest.raises(ValueError, match="several rows of one network; select one data set"):
        rank_correlation(pd.concat([pool(x, y)] * 2), margin=0.5)
    with pytest.raises(ValueError, match="none called accuracy"):
        rank_correlation(pool(x, y).drop(columns="accuracy"), margin=0.5)
    with pytest.raises(ValueError, match="no metric with values 'latnet'; did you mean 'latent'"):
        rank_correlation(pool(x, y), margin=0.5, metric="latnet")
    with pytest.raises(ValueError, match="not negative"):
        rank_correlation(pool(x, y), margin=-0.5)


DISTANCES = ("latent", "latent_euclidean")


def started(letters=(0.3, -3.0), patches=(0.0, 0.0), *, noise=0.005, **made):
    """Differences to plain under the cosine (of scale 1) and the Euclidean distance (of scale 10)."""
    cells = {}
    for recipe, (cosine, euclidean) in {"plain": (0, 0), "from_letters": letters, "from_patches": patches}.items():
        cells[(recipe, "latent", "latent")] = -0.7 + cosine, 0.3 + cosine
        cells[(recipe, "latent_euclidean", "one")] = 99.0
        cells[(recipe, "latent_euclidean", "latent")] = 5.0 + euclidean, 0.5 + euclidean
    made = table(cells, noise=noise, **made)
    euclidean = (made.metric == "latent_euclidean") & (made.layer == "latent")
    made.loc[euclidean, "scale"] = made.recipe.map({"plain": 8.0, "from_letters": 12.0, "from_patches": 12.0})
    return made


def fourth(made, **options):
    return pretraining(made, **{"margin": 0.1, "metrics": DISTANCES, **options})


@pytest.mark.parametrize(
    ("made", "verdict", "decided_by"),
    [
        ({}, SUPPORTED, "from_letters differs in latent"),
        ({"letters": (-0.3, 2.0)}, SUPPORTED, "from_letters differs in latent"),
        ({"letters": (0.9, 9.0), "patches": (-0.3, 2.0)}, SUPPORTED, "from_patches differs in latent"),
        ({"letters": (0.3, 3.0)}, CONTRADICTED, "from_patches differs in latent"),
        ({"letters": (0.0, 0.0)}, CONTRADICTED, "from_"),
        ({"letters": (0.3, 3.0), "patches": (0.2, 4.0)}, CONTRADICTED, "from_patches differs in latent_euclidean"),
        # each alone is clear, but they are of two sources
        ({"letters": (0.3, 3.0), "patches": (-0.3, -3.0)}, CONTRADICTED, "from_"),
        # a change, and one distance that is not decided
        ({"letters": (0.3, -1.0)}, INCONCLUSIVE, "from_letters differs in latent_euclidean"),
        ({"letters": (0.3, -0.5)}, CONTRADICTED, "from_letters differs in latent_euclidean"),
        ({"noise": WIDE}, INCONCLUSIVE, "from_"),
        ({"seeds": 4}, NOT_TESTABLE, "from_letters differs in latent"),
    ],
)
def test_conclusion_4_comes_out_as_the_table_was_made(made, verdict, decided_by):
    last = fourth(started(**made)).iloc[-1]
    assert last.verdict == verdict
    assert last.decided_by.startswith(decided_by)


def test_conclusion_4_measures_each_distance_by_its_own_scale():
    made = started(patches=(-0.15, 0.5))
    found = fourth(made)
    assert found.margin.tolist()[:4] == pytest.approx([0.1, 1.0, 0.1, 1.0])
    assert verdicts_of(found)[:4] == [SUPPORTED, SUPPORTED, SUPPORTED, CONTRADICTED]
    assert found.layer.tolist() == ["latent"] * 5
    expected = t_interval(made, "from_patches", "plain", 4, metric="latent_euclidean", layer="latent")
    assert tuple(found.loc[3, ["low", "high"]]) == pytest.approx(expected)
    relative = fourth(made, value="relative")
    assert relative.margin.tolist() == pytest.approx([0.1] * 5)
    assert verdicts_of(relative)[3] == SUPPORTED


def test_conclusion_4_compares_maps_at_their_deepest_layer_and_outputs_at_the_output():
    cells = {
        (recipe, metric, layer): value
        for recipe, value in (("plain", 0.5), ("from_letters", 0.6))
        for metric, layer in (("channelwise", "one"), ("channelwise", "two"), ("softmax", "output"))
    }
    found = fourth(table(cells), metrics=("channelwise", "softmax"), pretrained=["from_letters"])
    assert found.layer.tolist()[:2] == ["two", "output"]


def test_conclusion_4_needs_two_distances_to_disagree():
    for metrics in ((), ("latent",), ("latent", "latent")):
        with pytest.raises(ValueError, match="takes two or more metrics"):
            fourth(started(), metrics=metrics)
    with pytest.raises(ValueError, match="at least one recipe"):
        fourth(started(), pretrained=())
    with pytest.raises(ValueError, match="no metric with values 'laten'; did you mean 'latent'"):
        fourth(started(), metrics=("latent", "laten"))


METHODS = ("simclr", "barlow_twins", "turns", "simclr_augmented", "barlow_twins_augmented")


def taught(*, noise=0.005, seeds=5, **relative):
    """Relative latent values by method; as the paper has it, unless told otherwise."""
    values = {"plain": 0.6, "augmented": 0.02, **dict.fromkeys(METHODS, 0.6), "simclr_augmented": 0.02, **relative}
    return table({(name, "latent", "latent"): (-0.9, v) for name, v in values.items()}, noise=noise, seeds=seeds)


def fifth(made, **options):
    return self_supervision(made, **{"margin": 0.1, **options})


@pytest.mark.parametrize(
    ("made", "verdict", "decided_by"),
    [
        ({}, SUPPORTED, "simclr is not more invariant"),
        ({"simclr": 0.9}, SUPPORTED, "simclr is not more invariant"),
        ({"turns": 0.2}, CONTRADICTED, "turns is not more invariant"),
        ({"barlow_twins_augmented": 0.02}, CONTRADICTED, "barlow_twins_augmented is not more invariant"),
        ({"simclr_augmented": 0.6}, CONTRADICTED, "simclr_augmented is more invariant"),
        ({"simclr_augmented": 0.55}, CONTRADICTED, "simclr_augmented is more invariant"),
        ({"simclr_augmented": 0.5}, INCONCLUSIVE, "simclr_augmented is more invariant"),
        ({"barlow_twins": 0.5}, INCONCLUSIVE, "barlow_twins is not more invariant"),
        ({"augmented": 0.6}, NOT_TESTABLE, "supervised with the group is more invariant"),
        ({"augmented": 0.9}, NOT_TESTABLE, "supervised with the group is more invariant"),
        ({"noise": WIDE}, NOT_TESTABLE, "supervised with the group is more invariant"),
        ({"seeds": 4}, NOT_TESTABLE, "supervised with the group is more invariant"),
    ],
)
def test_conclusion_5_comes_out_as_the_table_was_made(made, verdict, decided_by):
    last = fifth(taught(**made)).iloc[-1]
    assert (last.verdict, last.decided_by) == (verdict, decided_by)


def test_conclusion_5_compares_with_the_supervised_network_without_the_group_and_corrects_for_all():
    made = taught(simclr=0.75)
    found = fifth(made).set_index("test")
    expected = t_interval(made, "simclr", "plain", 6, value="relative", metric="latent")
    assert tuple(found.loc["simclr is not more invariant", ["low", "high"]]) == pytest.approx(expected)
    assert found.effect.iloc[0] == pytest.approx(-0.58, abs=0.02)
    assert found.layer.unique().tolist() == ["latent"]
    fewer = fifth(made, without=("simclr",), others=())
    assert fewer.confidence.unique() == pytest.approx([1 - 0.05 / 3])


EACH = {
    "1": lambda made=None, **o: first(layers() if made is None else made(layers()), **o),
    "2": lambda made=None, **o: second(shifted() if made is None else made(shifted()), **o),
    "3": lambda made=None, **o: third(learned() if made is None else made(learned()), **o),
    "4": lambda made=None, **o: fourth(started() if made is None else made(started()), **o),
    "5": lambda made=None, **o: fifth(taught() if made is None else made(taught()), **o),
}
each = pytest.mark.parametrize("conclusion", EACH)


@each
def test_every_row_has_its_numbers_and_the_last_is_the_conclusion(conclusion):
    found = EACH[conclusion]()
    assert set(found.conclusion) == {conclusion}
    assert found[["effect", "low", "high", "margin", "n", "confidence"]].notna().all(axis=None)
    assert ((found.low <= found.effect) & (found.effect <= found.high)).all()
    assert found.decided_by.tolist()[:-1] == [""] * (len(found) - 1)
    assert found.iloc[-1].decided_by in found.test.tolist()


@each
def test_fewer_than_five_seeds_decide_nothing(conclusion):
    found = EACH[conclusion](lambda made: made[made.seed < 4])
    assert set(found.verdict) == {NOT_TESTABLE}
    assert set(found.n) == {4}


@each
def test_the_order_of_rows_within_a_layer_and_seeds_without_partner_change_nothing(conclusion):
    def stray(made):
        lone = made[(made.seed == 0) & (made.recipe == made.recipe.iloc[0])].assign(
            seed=77, estimate=50.0, relative=50.0
        )
        return pd.concat([made[::-1].sort_values("layer", kind="stable"), lone])

    expected = EACH[conclusion](lambda made: made.sort_values("layer", kind="stable"))
    numbers = ["test", "verdict", "effect", "low", "high", "n"]
    found = EACH[conclusion](stray)[numbers]
    pd.testing.assert_frame_equal(
        *(f[numbers].sort_values(["test", "verdict"], ignore_index=True) for f in (found, expected))
    )


@each
def test_a_seed_that_is_there_twice_is_refused(conclusion):
    with pytest.raises(ValueError, match="several networks of one seed"):
        EACH[conclusion](lambda made: pd.concat([made, made[made.seed == 0]]))


@each
def test_a_table_without_seeds_or_recipes_is_refused(conclusion):
    for name in ("recipe", "seed"):
        with pytest.raises(ValueError, match=f"none called {name}:"):
            EACH[conclusion](lambda made, name=name: made.drop(columns=name))


@each
def test_a_recipe_that_is_missing_is_named(conclusion):
    name = {"4": "from_patches", "5": "turns"}.get(conclusion, "augmented")
    with pytest.raises(ValueError, match=f"no recipe '{name}'"):
        EACH[conclusion](lambda made: made[made.recipe != name])


def test_a_table_without_recipes_is_refused_before_the_equivariant_network_is_looked_for():
    with pytest.raises(ValueError, match="none called recipe:"):
        first(layers(metric="channelwise_matched").drop(columns="recipe"), metric="channelwise_matched")


@pytest.mark.parametrize("conclusion", ["1", "2", "5"])
def test_a_metric_that_is_missing_is_named_with_near_ones(conclusion):
    with pytest.raises(ValueError, match="no metric with values 'latnt'; did you mean 'latent'"):
        EACH[conclusion](metric="latnt")


@each
def test_a_negative_margin_is_refused(conclusion):
    negative = {"margins": {"latent": -0.1}} if conclusion == "3" else {"margin": -0.1}
    with pytest.raises(ValueError, match=r"not negative; got -0\.1"):
        EACH[conclusion](**negative)


@each
def test_a_confidence_in_per_cent_is_refused(conclusion):
    with pytest.raises(ValueError, match="between 0 and 1, got 95"):
        EACH[conclusion](confidence=95)
