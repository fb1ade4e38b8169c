"""The five conclusions on tables that are made so that the right verdict is known, each for its own reason."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy import stats

from eedkit.paper import readings
from eedkit.paper.conclusions import (
    accuracies,
    augmentation_or_layers,
    dose_response,
    out_of_distribution,
    pretraining,
    rank_correlations,
    self_supervision,
    without_learning,
)

SUPPORTED, CONTRADICTED, INCONCLUSIVE = "supported", "contradicted", "inconclusive"
NOT_TESTABLE = "not testable here"
COLUMNS = [
    *["conclusion", "part", "test", "claim", "verdict", "effect", "low", "high", "margin", "n", "confidence"],
    *["confidence_against", "critical_margin", "seeds_needed", "beside", "metric", "layer", "value", "decided_by"],
]
WIDE = 0.5
"""Noise over seeds that leaves differences of the size that is used here undecided."""


def table(cells, *, noise=0.005, seeds=6, **columns):
    """A table of `summarise`: {(recipe, metric, layer): value}, with noise over seeds.

    The best value is −1 and the null 0, so that a relative value is an estimate plus 1.
    """
    rng = np.random.default_rng(0)
    rows = []
    for (recipe, metric, layer), relative in cells.items():
        for seed in range(seeds):
            value = relative + noise * rng.standard_normal()
            row = {"model": f"{recipe}-{seed}", "recipe": recipe, "seed": seed, "metric": metric, "layer": layer}
            rows.append({**row, "relative": value, "estimate": value - 1})
    return pd.DataFrame(rows).assign(best=-1.0, order=1, null=0.0, scale=1.0, **columns)


def check_last(found, verdict, decided_by):
    last = found.iloc[-1]
    assert last.verdict == verdict
    assert last.decided_by.startswith(decided_by)


def part_verdicts(found):
    """Part -> its verdict, for the parts' own rows and those of a single comparison."""
    return dict(zip(found.part, found.verdict, strict=True))


# Conclusion 1


def layers(one=0.1, two=0.3, *, features=0.9, equivariant=None, metric="channelwise", **made):
    """The shares of plain's deviation that augmentation removes from the maps of two layers, and from the features."""
    cells = {
        ("plain", metric, "one"): 0.8,
        ("augmented", metric, "one"): 0.8 * (1 - one),
        ("plain", metric, "two"): 0.5,
        ("augmented", metric, "two"): 0.5 * (1 - two),
        ("plain", "latent", "latent"): 0.95,
        ("augmented", "latent", "latent"): 0.95 * (1 - features),
    }
    if equivariant is not None:
        cells[("equivariant", metric, "one")] = 0.0
        cells[("equivariant", metric, "two")] = 0.5 * (1 - equivariant)
        cells[("equivariant", "latent", "latent")] = 0.0
    return table(cells, **made)


def turned(augmented=(0.5, 0.3), plain=(0.9, 0.8), equivariant=(0.0, 0.0), **made):
    """Relative values of the features after an interchange at two layers; under the real turn, see `layers`."""
    cells = {("plain", "latent", "image"): 0.95, ("augmented", "latent", "image"): 0.095}
    for place, layer in enumerate(("one", "two")):
        cells[("plain", "latent", layer)] = plain[place]
        cells[("augmented", "latent", layer)] = augmented[place]
        if equivariant is not None:
            cells[("equivariant", "latent", layer)] = equivariant[place]
    return table(cells, **made)


def first(made, matched=None, as_they_are=None, **options):
    if matched is None:
        matched = turned((1.5, 1.5), seeds=made.seed.nunique())
    if as_they_are is None:
        as_they_are = matched
    interchanged = {"as they are": as_they_are, "matched": matched}
    return augmentation_or_layers(made, interchanged, **{"fall": 0.3, "rise": 0.1, **options})


WORKED = "augmentation makes the features more invariant"


@pytest.mark.parametrize(
    ("made", "verdict", "decided_by"),
    [
        ({}, SUPPORTED, "maps of augmented at two"),
        ({"one": 0.3, "two": 0.1}, SUPPORTED, "maps of augmented at one"),
        ({"one": -0.5}, SUPPORTED, "maps of augmented at two"),
        ({"two": 0.7}, CONTRADICTED, "maps of augmented at two"),
        ({"one": 0.9, "two": 0.7}, CONTRADICTED, "maps of augmented at one"),
        ({"two": 0.48, "noise": 0.03}, INCONCLUSIVE, "maps of augmented at two"),
        ({"two": 0.3, "features": 0.4}, CONTRADICTED, "maps of augmented at two"),
        ({"features": 0.2}, NOT_TESTABLE, WORKED),
        ({"features": 0.3}, NOT_TESTABLE, WORKED),
        ({"features": -0.5}, NOT_TESTABLE, WORKED),
        ({"features": 0.4, "noise": 0.2}, NOT_TESTABLE, WORKED),
        ({"seeds": 4}, NOT_TESTABLE, WORKED),
    ],
)
def test_conclusion_1_comes_out_as_the_table_was_made(made, verdict, decided_by):
    check_last(first(layers(**made)), verdict, decided_by)


def test_conclusion_1_compares_shares_removed_seed_by_seed():
    made = layers(noise=0.03)
    wide = made.pivot_table("relative", "seed", ["recipe", "metric", "layer"])
    maps = 1 - wide["augmented", "channelwise", "two"] / wide["plain", "channelwise", "two"]
    features = 1 - wide["augmented", "latent", "latent"] / wide["plain", "latent", "latent"]
    found = first(made, ratio=0.6).set_index("layer")
    row = found[(found.part == "attribution at every layer") & (found.decided_by == "")].loc["two"]
    assert row.effect == pytest.approx(maps.mean() / features.mean())
    assert row.share == pytest.approx(maps.mean())
    upper = stats.ttest_1samp(maps - row.high * features, 0, alternative="less")
    assert upper.pvalue == pytest.approx(0.05)
    premise = found[found.part == "premise"].loc["latent"]
    assert (premise.effect, premise.n) == (pytest.approx(features.mean()), 6)
    assert premise.low == pytest.approx(stats.ttest_1samp(features, 0, alternative="greater").confidence_interval().low)


def test_conclusion_1_asks_every_layer_without_correction():
    found = first(layers())
    every_layer = found[(found.part == "attribution at every layer") & (found.decided_by == "")]
    assert every_layer.confidence.tolist() == [0.95, 0.95]
    # two parts, and two layers in each
    assert every_layer.confidence_against.tolist() == pytest.approx([1 - 0.05 / 4] * 2)


def test_conclusion_1_has_a_ratio_that_is_declared():
    assert first(layers(), ratio=0.2).iloc[-1].verdict == CONTRADICTED
    assert first(layers(), ratio=0.2).iloc[-1].margin == 0.2
    critical = first(layers()).iloc[-1].critical_margin
    verdict = [first(layers(), ratio=critical + nudge).iloc[-1].verdict for nudge in (-1e-6, 1e-6)]
    assert verdict == [INCONCLUSIVE, SUPPORTED]


@pytest.mark.parametrize(
    ("share", "premise", "verdict"),
    [(1.0, SUPPORTED, SUPPORTED), (0.2, CONTRADICTED, NOT_TESTABLE), (0.53, INCONCLUSIVE, NOT_TESTABLE)],
)
def test_conclusion_1_needs_a_metric_that_could_contradict_it(share, premise, verdict):
    made = layers(equivariant=share, metric="channelwise_matched", noise=0.02)
    found = first(made, metric="channelwise_matched")
    seen = found[found.test.str.contains("equivariant at")].iloc[0]
    assert (seen.verdict, found.iloc[-1].verdict) == (premise, verdict)
    assert seen.layer == "two" or share == 1.0


def test_the_papers_own_channelwise_value_asks_nothing_of_the_equivariant_network():
    found = first(layers(equivariant=0.0))
    assert not found.test.str.contains("equivariant at").any()
    assert found.iloc[-1].verdict == SUPPORTED


def test_conclusion_1_names_the_metrics_there_are():
    with pytest.raises(ValueError, match=r"no metric with values 'channelwise_centred'.*channelwise"):
        first(layers(), metric="channelwise_centred")


@pytest.mark.parametrize(
    ("made", "verdict", "decided_by"),
    [
        ({}, SUPPORTED, ""),
        ({"augmented": (0.5, 0.1)}, CONTRADICTED, "features of augmented rise after an interchange at two"),
        ({"augmented": (0.5, 0.0)}, CONTRADICTED, "features of augmented rise after an interchange at two"),
        ({"augmented": (0.5, 0.2)}, INCONCLUSIVE, "features of augmented rise after an interchange at two"),
        # plain cannot fail at two, so that nothing is asked of augmented there
        ({"augmented": (0.5, 0.1), "plain": (0.9, 0.2)}, SUPPORTED, ""),
        ({"augmented": (0.1, 0.5), "plain": (0.9, 0.2)}, CONTRADICTED, "features of augmented rise after an interchange at one"),
        ({"plain": (0.3, 0.2)}, NOT_TESTABLE, "after some interchange, channels as they are, plain keeps half"),
        ({"equivariant": (0.0, 0.5)}, NOT_TESTABLE, "features of equivariant stay after an interchange at two"),
        ({"equivariant": (0.0, 0.1)}, SUPPORTED, ""),
        ({"equivariant": None}, SUPPORTED, ""),
    ],
)  # fmt: skip
def test_conclusion_1_is_asked_by_interchange_too(made, verdict, decided_by):
    check_last(first(layers(equivariant=0.0), turned(**made)), verdict, decided_by)


def test_an_interchange_is_compared_with_the_real_turn_seed_by_seed():
    made, interchanged = layers(noise=0.03), turned(noise=0.02)
    after = interchanged.pivot_table("relative", "seed", ["recipe", "layer"])["augmented", "two"]
    real = made[(made.metric == "latent") & (made.recipe == "augmented")].set_index("seed").relative
    row = first(made, interchanged).set_index("test").loc["features of augmented rise after an interchange at two"]
    low = stats.ttest_1samp(after - real, 0, alternative="greater").confidence_interval().low
    assert row[["effect", "low"]].tolist() == pytest.approx([(after - real).mean(), low])
    assert first(made, interchanged, rise=0.19).iloc[-1].verdict != SUPPORTED


def test_layers_whose_rest_forgets_any_turn_tell_nothing_of_an_interchange():
    forgotten = turned(plain=(0.9, 0.1))
    rows = first(layers(equivariant=0.0), turned((0.5, 0.01)), forgotten)
    assert rows.iloc[-1].verdict == SUPPORTED
    assert not rows.test.str.contains("after an interchange at two").any()
    assert first(layers(equivariant=0.0), turned((0.5, 0.01))).iloc[-1].verdict == CONTRADICTED


def dosed(seeds=6):
    """Features lose 0.2 and 0.8 of their deviation, the maps of `two` 0.1 and 0.4; those of `one` nothing."""
    parts = []
    for share, features, maps in ((0.0, 0.0, 0.0), (0.1, 0.2, 0.1), (1.0, 0.8, 0.4)):
        cells = {
            ("turned", "latent", "latent"): 0.9 * (1 - features),
            ("turned", "channelwise", "one"): 0.7,
            ("turned", "channelwise", "two"): 0.6 * (1 - maps),
        }
        parts.append(table(cells, seeds=seeds, share=share))
    made = pd.concat(parts)
    made["relative"] *= 1 + 0.05 * (made.seed % 3)
    return made


def test_a_dose_response_is_relative_to_the_same_seeds_without_turned_images():
    made = dosed()
    found = dose_response(made)
    assert found[["share", "what"]].values.tolist() == [
        *[[0.1, "features"], [0.1, "best map"]],
        *[[1.0, "features"], [1.0, "best map"]],
    ]
    assert found.effect.tolist() == pytest.approx([0.2, 0.1, 0.8, 0.4], abs=0.01)
    latent = made[made.metric == "latent"].pivot(index="seed", columns="share", values="relative")
    removed = 1 - latent[1.0] / latent[0.0]
    low, high = stats.ttest_1samp(removed, 0).confidence_interval()
    assert found.loc[2, ["effect", "low", "high"]].tolist() == pytest.approx([removed.mean(), low, high])
    assert found.n.tolist() == [6] * 4


def test_a_dose_response_needs_networks_of_share_0():
    made = dosed()
    with pytest.raises(ValueError, match="no share '0'"):
        dose_response(made[made.share > 0])


# Conclusion 2

FAR = ("letters/test", "patches/test")


def table_of_corruptions(
    *,
    here=0.6,
    corrupted=(0.4, 0.4),
    rise=(0.2, 0.0),
    static=0.0,
    relative=(0.5, 0.1),
    raw=(0.1, 0.6),
    plain_relative=(0.7, 0.6),
    plain_raw=(0.7, 0.7),
    equivariant=0.0,
    noise=0.005,
    seeds=6,
):
    """Digits, two kinds of corruption and two far domains (at home: augmented 0.1, plain 0.7).

    `corrupted` is how much lower augmented lies than plain on each kind, `rise` how much higher than at home. Raw values
    stand above their best and in units of the null gap at home, which is 2.
    """
    far = zip(FAR, relative, raw, plain_relative, plain_raw, strict=True)
    places = [("digits/test", "", 0, here + 0.1, 0.1, here + 0.1, 0.1)]
    for kind, gain, more in zip("ab", corrupted, rise, strict=True):
        for severity, part in ((1, 0.5), (3, 1.5)):
            augmented = 0.1 + part * more
            places.append(("digits/test", kind, severity, augmented + part * gain, augmented, 9.0, 9.0))
    places.append(("digits/test", "static", 3, 0.1 + static, 0.1, 9.0, 9.0))
    for source, of_augmented, raw_augmented, of_plain, raw_plain in far:
        places.append((source, "", 0, of_plain, of_augmented, raw_plain, raw_augmented))
    places.append(("digits/test", "static", 5, 0.7, 0.1, 0.7, 0.6))
    parts = []
    for place, (source, corruption, severity, of_plain, of_augmented, raw_plain, raw_augmented) in enumerate(places):
        domain = "noise" if (corruption, severity) == ("static", 5) else source.partition("/")[0]
        data = f"{source}?{corruption}{severity}"
        at = {"data": data, "source": source, "corruption": corruption, "severity": severity, "domain": domain}
        cells = {
            ("plain", "latent", "latent"): of_plain,
            ("augmented", "latent", "latent"): of_augmented,
            ("equivariant", "latent", "latent"): equivariant if domain == "patches" else 0.0,
        }
        part = table(cells, noise=noise, seeds=seeds, **at)
        # other noise for each place, or that of differences would cancel
        jitter = noise * np.random.default_rng(place).standard_normal(len(part))
        part["relative"] += jitter
        raw_values = part.recipe.map({"plain": raw_plain, "augmented": raw_augmented, "equivariant": 0.0})
        part["estimate"] = -1 + 2 * (raw_values + jitter)
        part["null"] = 1.0
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def second(made, **options):
    return out_of_distribution(made, **{"source": "digits/test", "margin": 0.1, **options})


STILL = "b: augmented is more invariant than plain"


@pytest.mark.parametrize(
    ("made", "verdict", "decided_by"),
    [
        ({}, SUPPORTED, ""),
        ({"relative": (0.1, 0.5), "raw": (0.6, 0.1)}, SUPPORTED, ""),
        ({"raw": (-0.3, 0.6)}, SUPPORTED, ""),
        ({"rise": (0.0, 0.2)}, SUPPORTED, ""),
        # static is no kind of corruption
        ({"static": -0.5}, SUPPORTED, ""),
        # one kind on which plain is as invariant is enough against "still"
        ({"corrupted": (0.4, 0.0)}, CONTRADICTED, STILL),
        ({"corrupted": (0.4, -0.3)}, CONTRADICTED, STILL),
        ({"corrupted": (0.4, 0.1)}, INCONCLUSIVE, STILL),
        # plain goes blind on a kind where augmented stays as it is: the gain falls, augmented does not
        ({"corrupted": (0.2, 0.2), "rise": (0.01, -0.05)}, CONTRADICTED, "a: augmented is less invariant than at home"),
        ({"rise": (-0.1, -0.1)}, CONTRADICTED, ""),
        ({"rise": (0.1, 0.0)}, INCONCLUSIVE, "a: augmented is less invariant than at home"),
        ({"relative": (0.1, 0.1)}, CONTRADICTED, ""),
        ({"raw": (0.5, 0.6)}, CONTRADICTED, ""),
        ({"relative": (0.2, 0.1)}, INCONCLUSIVE, "letters: augmented's relative value is above home's"),
        ({"raw": (0.2, 0.6)}, INCONCLUSIVE, "letters: augmented's raw E is not above home's"),
        ({"here": 0.05, "plain_relative": (0.1, 0.1)}, NOT_TESTABLE, "augmentation gains in distribution"),
        ({"here": -0.5, "plain_relative": (-0.5, -0.5)}, NOT_TESTABLE, "augmentation gains in distribution"),
        ({"equivariant": 0.3}, NOT_TESTABLE, "the equivariant network stays invariant on all domains"),
        ({"plain_relative": (0.7, 1.0), "plain_raw": (0.7, 1.0)}, SUPPORTED, ""),
        ({"noise": WIDE}, NOT_TESTABLE, "augmentation gains in distribution"),
        ({"seeds": 4}, NOT_TESTABLE, "augmentation gains in distribution"),
    ],
)
def test_conclusion_2_comes_out_as_the_table_was_made(made, verdict, decided_by):
    check_last(second(table_of_corruptions(**made)), verdict, decided_by)


def test_conclusion_2_says_which_control_failed():
    # the raw value falls or stays while the relative one rises: the plain network passes, too
    found = second(table_of_corruptions(plain_relative=(0.7, 1.0)))
    assert found[found.part == "control"].verdict.tolist() == [SUPPORTED, CONTRADICTED, SUPPORTED]
    check_last(found, NOT_TESTABLE, "patches: plain's")


def test_conclusion_2_means_over_the_severities_of_a_kind_seed_by_seed():
    made = table_of_corruptions(noise=0.03)
    found = second(made).set_index("test")
    wide = made.pivot_table("relative", "seed", ["recipe", "data"])
    of_kind = ["digits/test?b1", "digits/test?b3"]
    augmented = wide["augmented"][of_kind].mean(axis=1)
    effects = {
        STILL: wide["plain"][of_kind].mean(axis=1) - augmented,
        "b: augmented is less invariant than at home": augmented - wide["augmented", "digits/test?0"],
        "augmentation gains in distribution": wide["plain", "digits/test?0"] - wide["augmented", "digits/test?0"],
    }
    for test, effect in effects.items():
        confidence = found.loc[test, "confidence"]
        low = stats.ttest_1samp(effect, 0, alternative="greater").confidence_interval(confidence).low
        assert found.loc[test, ["effect", "low"]].tolist() == pytest.approx([effect.mean(), low])


def test_conclusion_2_asks_every_kind_and_corrects_for_some():
    found = second(table_of_corruptions(rise=(0.1, 0.1))).set_index("test")
    assert found.loc[STILL, ["confidence", "confidence_against"]].tolist() == pytest.approx([0.95, 1 - 0.05 / 6])
    not_fully = found.loc["b: augmented is less invariant than at home"]
    assert not_fully.confidence == pytest.approx(1 - 0.05 / 2)
    assert not found.index.str.startswith("static").any()


@pytest.mark.parametrize("order", [1, 2])
def test_conclusion_2_sees_raw_values_by_the_null_gap_at_home(order):
    made = table_of_corruptions().assign(order=order)
    found = second(made).set_index("test")
    raw = made[(made.recipe == "augmented")].pivot(index="seed", columns="data", values="estimate")
    effect = ((raw["letters/test?0"] + 1) / 2) ** (1 / order) - ((raw["digits/test?0"] + 1) / 2) ** (1 / order)
    row = found.loc["letters: augmented's raw E is not above home's"]
    assert row.effect == pytest.approx(effect.mean())
    # three far domains, of which one must pass: Holm; a conjunction of two in each costs nothing
    assert row.confidence == pytest.approx(1 - 0.05 / 3)


def test_data_sets_of_one_far_domain_count_as_one():
    made = table_of_corruptions()
    more = made[made.source == "letters/test"].assign(data="letters/blurred", source="letters/other")
    more["relative"] += 0.2
    found = second(pd.concat([made, more]))
    letters = found[found.test == "letters: augmented's relative value is above home's"]
    assert letters.effect.tolist() == pytest.approx([0.5], abs=0.02)


def test_a_seed_without_a_value_on_one_corruption_has_no_mean_over_them():
    made = table_of_corruptions()
    made.loc[(made["corruption"] == "a") & (made.recipe == "plain") & (made.seed == 2), "relative"] = np.nan
    with pytest.warns(UserWarning, match="no relative of plain"):
        found = second(made).set_index("test")
    assert found.loc["a: augmented is more invariant than plain", "n"] == 5
    assert found.loc[STILL, "n"] == 6
    assert found.loc["augmentation gains in distribution", "n"] == 6


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ("source != 'digits/test'", "no images in distribution where the source is 'digits/test'.*letters/test"),
        ("source != 'digits/test' or corruption in ['', 'static']", "no corrupted images"),
        ("source == 'digits/test' and severity < 5", "no far images"),
        ("recipe == 'plain'", "no recipe 'augmented'"),
        ("recipe != 'equivariant'", "no recipe 'equivariant'"),
    ],
)
def test_conclusion_2_says_which_images_or_recipes_it_lacks(chosen, message):
    with pytest.raises(ValueError, match=message):
        second(table_of_corruptions().query(chosen))


# Conclusion 3


def learned(random=0.004, random_softmax=0.0, augmented_softmax=0.02, **made):
    cells = {
        ("augmented", "latent", "latent"): 0.02,
        ("equivariant", "latent", "latent"): 0.0,
        ("random", "latent", "latent"): random,
        ("augmented", "softmax", "output"): augmented_softmax,
        ("equivariant", "softmax", "output"): 0.0,
        ("random", "softmax", "output"): random_softmax,
    }
    return table(cells, **{"noise": 0.0002, **made})


def third(made, **options):
    return without_learning(made, **{"margins": {"latent": 0.002, "softmax": 0.002}, **options})


@pytest.mark.parametrize(
    ("made", "verdict", "decided_by"),
    [
        ({}, SUPPORTED, "random looks more invariant than augmented in softmax"),
        ({"random": 0.5}, SUPPORTED, "random looks more invariant than augmented in softmax"),
        ({"random_softmax": 0.5}, SUPPORTED, "random looks more invariant than augmented in latent"),
        ({"random": 0.5, "random_softmax": 0.4}, CONTRADICTED, "random looks more invariant than"),
        ({"random": 0.02, "random_softmax": 0.02}, CONTRADICTED, "random looks more invariant than"),
        (
            {"random": 0.018, "random_softmax": 0.5},
            INCONCLUSIVE,
            "random looks more invariant than augmented in latent",
        ),
        ({"noise": WIDE}, INCONCLUSIVE, "random looks"),
        ({"seeds": 4}, NOT_TESTABLE, "random looks more invariant than augmented in latent"),
    ],
)
def test_conclusion_3_comes_out_as_the_table_was_made(made, verdict, decided_by):
    check_last(third(learned(**made)), verdict, decided_by)


def test_conclusion_3_is_corrected_as_a_claim_about_some():
    found = third(learned(random=0.5, random_softmax=0.4))
    assert found.confidence[:4].tolist() == pytest.approx([1 - 0.05 / 4] * 4)
    assert found.confidence_against[:4].tolist() == pytest.approx([0.95] * 4)


def test_conclusion_3_compares_uncalibrated_values_with_its_margins():
    made = learned()
    made["relative"] = np.nan
    found = third(made, margins={"latent": 0.002})
    assert found.effect[0] == pytest.approx(0.016, abs=0.001)
    critical = found.iloc[-1].critical_margin
    verdict = [third(made, margins={"latent": critical + nudge}).iloc[-1].verdict for nudge in (-1e-6, 1e-6)]
    assert verdict == [SUPPORTED, INCONCLUSIVE]


def test_conclusion_3_has_the_distances_scale_as_its_unit():
    made = learned()
    wide = third(made.assign(scale=10.0), margins={"latent": 0.0002})
    assert wide.effect[0] == pytest.approx(third(made).effect[0] / 10)
    assert wide.iloc[-1].verdict == SUPPORTED
    assert third(made.assign(scale=20.0)).iloc[-1].verdict == CONTRADICTED


def pool(plain=1, augmented=-1, networks=6, seeds=8, noise=0.2, **columns):
    """In each kind and seed, invariance rises (1) or falls (−1) with accuracy; augmented lies above plain in both."""
    rng = np.random.default_rng(0)
    rows = []
    for kind, sign, above in (("plain", plain, 0.0), ("augmented", augmented, 10.0)):
        for seed in range(seeds):
            for k in range(networks):
                skill = k / networks
                invariance = above + sign * skill + noise * rng.standard_normal() / networks
                row = {"model": f"{kind}-{k}-{seed}", "recipe": f"{kind} pool", "kind": kind, "seed": seed}
                row |= {"metric": "latent", "layer": "latent", "accuracy": 0.5 + 0.2 * skill + above / 50}
                rows.append({**row, "estimate": -invariance, "relative": invariance, **columns})
    return pd.DataFrame(rows)


def ranks(made, value="estimate", **options):
    found = rank_correlations(made, margin=0.3, least=0.2, **options)
    return found[found.value == value].set_index("networks")


def test_rank_correlations_within_kinds_and_over_all_can_differ():
    found = ranks(pool(plain=-1, augmented=-1))
    assert found.loc[["plain", "augmented"], "verdict"].tolist() == [SUPPORTED, SUPPORTED]
    assert found.loc[["plain", "augmented"], "effect"].max() < -0.9
    assert found.loc["all", "effect"] > 0.3


@pytest.mark.parametrize(
    ("made", "verdict"),
    [
        ({"plain": -1}, SUPPORTED),
        ({"plain": 1}, CONTRADICTED),
        ({"plain": 1, "noise": 20}, INCONCLUSIVE),
        ({"plain": 1, "seeds": 4}, NOT_TESTABLE),
        ({"plain": 1, "networks": 3}, NOT_TESTABLE),
    ],
)
def test_a_rank_correlation_comes_out_as_the_table_was_made(made, verdict):
    assert ranks(pool(**made)).loc["plain", "verdict"] == verdict


def test_the_unit_of_a_rank_correlation_is_the_seed():
    made = pool(noise=4)
    by_seed = [
        stats.spearmanr(-of_seed.estimate, of_seed.accuracy).statistic
        for _, of_seed in made[made.kind == "plain"].groupby("seed")
    ]
    row = ranks(made).loc["plain"]
    assert (row.effect, row.n, row.networks_of_seed) == (pytest.approx(np.mean(by_seed)), 8, 6)
    high = stats.ttest_1samp(by_seed, 0, alternative="less").confidence_interval().high
    assert row.high == pytest.approx(high)
    # a ρ is given, and no verdict
    few = ranks(pool(seeds=4, noise=4)).loc["plain"]
    assert np.isfinite([few.effect, few.high]).all()
    assert ranks(pool(noise=0)).loc["plain", "high"] == 1
    assert np.isnan(ranks(pool().assign(estimate=0.0)).effect).all()


def test_rank_correlations_leave_out_networks_that_did_not_train():
    made = pool()
    made.loc[made.model == "plain-3-0", "accuracy"] = 0.1
    with pytest.warns(UserWarning, match="left out: plain-3-0"):
        found = ranks(made)
    assert found.networks_of_seed.to_dict() == {"plain": 5, "augmented": 6, "all": 11}


def test_rank_correlations_are_of_each_value_and_each_accuracy():
    made = pool().assign(moved_accuracy=lambda t: -t.accuracy)
    for value, signs in {"estimate": [1, -1], "relative": [-1, 1]}.items():
        found = ranks(made, value, accuracies=["accuracy", "moved_accuracy"]).loc["plain"]
        assert found.performance.tolist() == ["accuracy", "moved_accuracy"]
        assert np.sign(found.effect).tolist() == signs


def test_rank_correlations_have_one_row_per_network():
    with pytest.raises(ValueError, match="several rows of one network; select one data set"):
        ranks(pd.concat([pool(), pool()]))


def test_accuracy_on_moved_images_leaves_the_identity_and_unlabelled_images_out():
    prediction = [[[0, 1, 1, 5], [0, 1, 0, 5], [0, 0, 1, 5]], [[9, 9, 9, 5], [0, 1, 1, 5], [0, 1, -1, 5]]]
    coords = {"model": ["a", "b"], "element": ["e", "r90", "r180"], "label": ("sample", [0, 1, 1, -1])}
    ds = xr.Dataset({"prediction": (("model", "element", "sample"), prediction)}, coords)
    found = accuracies(ds)
    assert found.moved.to_dict() == pytest.approx({"a": 4 / 6, "b": 1.0})
    assert found.upright.to_dict() == pytest.approx({"a": 1.0, "b": 0.0})
    with pytest.raises(ValueError, match="the images have no labels"):
        accuracies(ds.drop_vars("label"))


# Conclusion 4

VECTORS = {"latent": "latent", "latent_euclidean": "latent", "softmax": "output", "softmax_js": "output"}


def started(*, letters=(0.0, 0.0, 0.0, 0.0), patches=(0.0, 0.0, 0.0, 0.0), longer=(0.0, 0.0, 0.0, 0.0), **made):
    """How much more invariant than training from scratch each source, and longer training, make a network."""
    cells = {}
    for i, (metric, layer) in enumerate(VECTORS.items()):
        cells[("plain", metric, layer)] = 0.5
        cells[("from_same", metric, layer)] = 0.5 - longer[i]
        cells[("from_letters", metric, layer)] = 0.5 - letters[i]
        cells[("from_patches", metric, layer)] = 0.5 - patches[i]
    return table(cells, **made).assign(estimate=9.0)


def fourth(made, **options):
    return pretraining(made, **{"margin": 0.05, "metrics": list(VECTORS), **options})


@pytest.mark.parametrize(
    ("made", "changes", "decides", "verdict"),
    [
        ({"letters": (0.2, -0.2, 0, 0)}, SUPPORTED, SUPPORTED, SUPPORTED),
        ({"patches": (0, 0, -0.2, 0.2)}, SUPPORTED, SUPPORTED, SUPPORTED),
        ({"letters": (0.2, 0.2, 0.2, 0.2)}, SUPPORTED, CONTRADICTED, CONTRADICTED),
        # opposite signs on two vectors, or of two sources, are no disagreement about one thing
        ({"letters": (0.2, 0.2, -0.2, -0.2)}, SUPPORTED, CONTRADICTED, CONTRADICTED),
        ({"letters": (0.2, 0, 0, 0), "patches": (0, -0.2, 0, 0)}, SUPPORTED, CONTRADICTED, CONTRADICTED),
        ({}, CONTRADICTED, CONTRADICTED, CONTRADICTED),
        ({"letters": (0.2, -0.05, 0, 0)}, SUPPORTED, INCONCLUSIVE, INCONCLUSIVE),
        ({"noise": 0.06}, INCONCLUSIVE, INCONCLUSIVE, INCONCLUSIVE),
        ({"seeds": 4}, NOT_TESTABLE, NOT_TESTABLE, NOT_TESTABLE),
    ],
)
def test_conclusion_4_comes_out_as_the_table_was_made(made, changes, decides, verdict):
    found = fourth(started(**made))
    assert part_verdicts(found[found.beside == ""]) == {
        "pre-training changes invariance": changes,
        "the distance decides how": decides,
        "conclusion": verdict,
    }


def test_conclusion_4_is_the_papers_comparison_beside_the_controlled_one():
    # longer training alone makes the same difference as letters
    made = started(letters=(0.2, -0.2, 0, 0), patches=(0.2, -0.2, 0, 0), longer=(0.2, -0.2, 0, 0))
    found = fourth(made)
    assert found.iloc[-1][["part", "beside", "verdict"]].tolist() == ["conclusion", "", SUPPORTED]
    controlled = found[found.part == "controlled for training length"]
    assert controlled[["beside", "verdict"]].values.tolist() == [["controlled for training length", CONTRADICTED]]
    assert (found.part == "conclusion").sum() == 1
    by_seed = made.pivot_table("relative", "seed", ["recipe", "metric"])
    for base in ("plain", "from_same"):
        effect = by_seed[base, "latent"] - by_seed["from_letters", "latent"]
        row = found[found.test == f"from_letters differs from {base} in latent"].iloc[0]
        assert row.effect == pytest.approx(effect.mean())
    with pytest.raises(ValueError, match="no recipe 'from_same'"):
        fourth(made[made.recipe != "from_same"])


def test_conclusion_4_is_two_sided_and_corrected_for_all_differences():
    made = started(noise=0.02)
    row = fourth(made).iloc[0]
    of = made[made.metric == "latent"].pivot(index="seed", columns="recipe", values="relative")
    interval = stats.ttest_rel(of.plain, of.from_letters).confidence_interval(1 - 0.05 / 8)
    assert (row.low, row.high) == pytest.approx(tuple(interval))


def test_conclusion_4_needs_two_distances_on_one_vector():
    with pytest.raises(ValueError, match="two or more on the same vector"):
        fourth(started(), metrics=["latent", "softmax"])


# Conclusion 5

METHODS = ("simclr", "barlow_twins", "vicreg", "simsiam", "turns")
WITH_GROUP = {"simclr_augmented": 0.5, "barlow_twins_augmented": 0.5, "vicreg_augmented": 0.5, "simsiam_augmented": 0.0}


def self_supervised(augmented=0.6, *, noise=0.005, seeds=6, **gains):
    """How much more invariant than plain each method makes a network."""
    gains = dict.fromkeys(METHODS, 0.0) | WITH_GROUP | {"augmented": augmented, "plain": 0.0} | gains
    cells = {(name, "latent", "latent"): 0.8 - gain for name, gain in gains.items()}
    return table(cells, noise=noise, seeds=seeds)


def fifth(made):
    return self_supervision(made, margin=0.1)


MEANINGS = ("disputed ones count as contrastive", "disputed ones do not count as contrastive")
NONE = dict.fromkeys(("barlow_twins_augmented", "vicreg_augmented"), 0.0)


@pytest.mark.parametrize(
    ("made", "without", "counted", "not_counted", "verdict"),
    [
        # one meaning is enough: Barlow Twins and VICReg become invariant or not, a method without any contrast does not
        ({}, SUPPORTED, SUPPORTED, CONTRADICTED, SUPPORTED),
        (NONE, SUPPORTED, CONTRADICTED, SUPPORTED, SUPPORTED),
        ({"simsiam_augmented": 0.4}, SUPPORTED, CONTRADICTED, CONTRADICTED, CONTRADICTED),
        ({"simclr_augmented": 0.0}, SUPPORTED, CONTRADICTED, CONTRADICTED, CONTRADICTED),
        ({"simclr_augmented": 0.1}, SUPPORTED, INCONCLUSIVE, CONTRADICTED, INCONCLUSIVE),
        ({"simclr_augmented": -0.5}, SUPPORTED, CONTRADICTED, CONTRADICTED, CONTRADICTED),
        ({"turns": 0.3}, CONTRADICTED, CONTRADICTED, CONTRADICTED, CONTRADICTED),
        ({"simclr": 0.1}, INCONCLUSIVE, INCONCLUSIVE, CONTRADICTED, INCONCLUSIVE),
        ({"simclr": -0.3}, SUPPORTED, SUPPORTED, CONTRADICTED, SUPPORTED),
        ({"augmented": 0.0}, SUPPORTED, NOT_TESTABLE, NOT_TESTABLE, NOT_TESTABLE),
        ({"seeds": 4}, NOT_TESTABLE, NOT_TESTABLE, NOT_TESTABLE, NOT_TESTABLE),
    ],
)
def test_conclusion_5_comes_out_as_the_table_was_made(made, without, counted, not_counted, verdict):
    found = part_verdicts(fifth(self_supervised(**made)))
    parts = ["without the group not more invariant", *MEANINGS, "conclusion"]
    assert [found[part] for part in parts] == [without, counted, not_counted, verdict]


def test_comparisons_stand_once_with_each_meaning():
    assert not fifth(self_supervised()).duplicated(["test", "beside"]).any()


@pytest.mark.parametrize(("augmented", "verdict"), [(0.75, SUPPORTED), (0.5, CONTRADICTED), (0.6, INCONCLUSIVE)])
def test_supervised_training_with_the_group_stands_beside_conclusion_5(augmented, verdict):
    found = fifth(self_supervised(augmented))
    beside = found[found.beside == "supervised with the group"]
    assert beside.iloc[-1][["part", "verdict"]].tolist() == ["supervised with the group", verdict]
    by_recipe = self_supervised(augmented).pivot(index="seed", columns="recipe", values="relative")
    effect = by_recipe.simclr_augmented - by_recipe.augmented
    row = found[found.test == "augmented is more invariant than simclr_augmented"].iloc[0]
    assert row.effect == pytest.approx(effect.mean())
    # it does not decide
    assert found.iloc[-1].verdict == SUPPORTED


def test_conclusion_5_is_paired_by_seed_where_recipes_have_different_seeds():
    made = self_supervised(seeds=8)
    made = made[(made.seed < 6) | made.recipe.isin(["plain", "augmented"])]
    found = fifth(made).set_index("test")
    assert found.loc["augmented is more invariant than plain", "n"] == 8
    assert found.loc["turns is not more invariant than plain", "n"] == 6


def test_conclusion_5_names_the_recipes_that_it_lacks():
    with pytest.raises(ValueError, match="no recipe 'simsiam_augmented'"):
        fifth(self_supervised().query("recipe != 'simsiam_augmented'"))


# All


@pytest.mark.parametrize(
    "found",
    [
        lambda: first(layers()),
        lambda: second(table_of_corruptions()),
        lambda: third(learned()),
        lambda: ranks(pool()).reset_index(),
        lambda: fourth(started()),
        lambda: fifth(self_supervised()),
    ],
)
def test_every_table_has_the_columns_that_are_promised(found):
    rows = found()
    assert set(COLUMNS) <= set(rows.columns)
    texts = [name for name in COLUMNS if name not in ("critical_margin", "seeds_needed", "effect", "low", "high")]
    assert rows[texts].notna().all(axis=None)


@pytest.mark.parametrize(
    ("ask", "made"),
    [
        (first, layers()),
        (second, table_of_corruptions()),
        (third, learned()),
        (fourth, started()),
        (fifth, self_supervised()),
    ],
)
def test_the_index_has_room_for_what_the_number_is(ask, made):
    rows = ask(made)
    last = rows.tail(1).assign(verdict=SUPPORTED, seeds_needed=np.nan, notebook="01_page")
    for value in rows.value[~rows.part.isin(["premise", "control"])].unique():
        line = readings.headlines(last.assign(value=value)).headline
        assert f". {value[0].upper()}{value[1:]}: " in line
        assert len(line.split()) <= 25, line


@pytest.mark.parametrize(
    ("ask", "made", "columns"),
    [
        (lambda made: first(made, turned()), layers(), ["recipe", "seed", "relative"]),
        (second, table_of_corruptions(), ["data", "source", "corruption", "domain", "null", "best", "order"]),
        (third, learned(), ["recipe", "seed", "scale"]),
        (fourth, started(), ["recipe", "seed", "relative"]),
        (fifth, self_supervised(), ["recipe", "seed", "relative"]),
    ],
)
def test_every_conclusion_says_which_column_it_lacks(ask, made, columns):
    for column in columns:
        with pytest.raises(ValueError, match=f"no column '{column}'"):
            ask(made.drop(columns=column))
