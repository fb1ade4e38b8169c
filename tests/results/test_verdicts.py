"""Verdicts on tables for which the right one is known: each can come out."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from eedkit.results.intervals import mean_interval
from eedkit.results.verdicts import augmentation_or_layers, random_beats_trained, seed_differences

SEEDS = 5
LAYERS = ("one", "two")


def table(
    *, channelwise_fall=(0.0, 0.0), latent_fall=0.6, softmax_fall=0.3, noise=0.01, random=-0.996, random_softmax=0.0
):
    """A table of `summarise` in which augmented lies below plain by the given falls, with noise over seeds."""
    rng = np.random.default_rng(0)
    rows = []

    def add(recipe, metric, layer, estimate, relative):
        for seed in range(SEEDS):
            jitter = noise * rng.standard_normal()
            values = {"estimate": estimate + jitter, "relative": relative + jitter}
            rows.append({"recipe": recipe, "seed": seed, "metric": metric, "layer": layer, **values})

    for layer, fall in zip(LAYERS, channelwise_fall, strict=True):
        add("plain", "channelwise", layer, -0.5, 0.75)
        add("augmented", "channelwise", layer, -0.5 - fall, 0.75 - fall)
    add("plain", "latent", "latent", -0.8, 0.65)
    add("augmented", "latent", "latent", -0.98, 0.65 - latent_fall)
    add("equivariant", "latent", "latent", -1.0, 0.0)
    add("random", "latent", "latent", random, 0.5)
    add("plain", "softmax", "output", 0.7, 0.3)
    add("augmented", "softmax", "output", 0.02, 0.3 - softmax_fall)
    add("equivariant", "softmax", "output", 0.0, 0.0)
    add("random", "softmax", "output", random_softmax, 0.5)
    return pd.DataFrame(rows)


def first(**made):
    return augmentation_or_layers(table(**made), margin=0.1, fall=0.1).iloc[-1].verdict


@pytest.mark.parametrize(
    ("made", "verdict"),
    [
        ({}, "supported"),
        ({"channelwise_fall": (0.0, 0.3)}, "contradicted"),
        ({"channelwise_fall": (0.0, 0.1)}, "inconclusive"),
        ({"noise": 0.3}, "not testable here"),
        ({"latent_fall": 0.0}, "not testable here"),
        ({"softmax_fall": 0.0}, "not testable here"),
        ({"channelwise_fall": (-0.3, -0.3)}, "supported"),
    ],
)
def test_conclusion_1_comes_out_as_the_table_was_made(made, verdict):
    assert first(**made) == verdict


def test_conclusion_1_reports_the_layer_with_the_strongest_fall_and_corrects_for_all_comparisons():
    found = augmentation_or_layers(table(channelwise_fall=(0.0, 0.3)), margin=0.1, fall=0.1)
    last = found.iloc[-1]
    assert (last.layer, last.n, last.margin) == ("two", SEEDS, 0.1)
    assert last.effect == pytest.approx(-0.3, abs=0.03)
    assert found.confidence.unique() == pytest.approx([1 - 0.05 / 4])
    assert found.verdict.tolist()[:4] == ["supported", "supported", "supported", "contradicted"]


def test_conclusion_1_can_be_asked_of_the_relative_value():
    made = table()
    made.loc[(made.metric == "channelwise") & (made.recipe == "augmented"), "relative"] -= 0.4
    assert augmentation_or_layers(made, margin=0.1, fall=0.1).iloc[-1].verdict == "supported"
    assert augmentation_or_layers(made, margin=0.1, fall=0.1, value="relative").iloc[-1].verdict == "contradicted"


@pytest.mark.parametrize(
    ("made", "verdict"),
    [
        ({"noise": 0.0005}, "supported"),
        ({"noise": 0.0005, "random": -0.5, "random_softmax": 0.5}, "contradicted"),
        ({"noise": 0.2, "random": -0.98, "random_softmax": 0.02}, "inconclusive"),
        ({"noise": 0.0005, "random": -0.5, "random_softmax": 0.0}, "supported"),
    ],
)
def test_conclusion_3_comes_out_as_the_table_was_made(made, verdict):
    found = random_beats_trained(table(**made), margins={"latent": 0.001, "softmax": 0.001})
    assert found.iloc[-1].verdict == verdict


def test_conclusion_3_names_its_clearest_case():
    last = random_beats_trained(table(noise=0.0005), margins={"latent": 0.001}).iloc[-1]
    assert last.effect == pytest.approx(-0.016, abs=0.002)
    assert last.high < -0.001


def test_mean_interval_is_scipys_t_interval():
    values = [0.1, 0.4, 0.2, 0.7, 0.3]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert mean_interval(values, confidence=0.9) == pytest.approx((np.mean(values), *expected))
    assert mean_interval([0.5]) == (0.5, -np.inf, np.inf)


def test_differences_are_paired_by_seed():
    rows = [
        {"recipe": r, "seed": s, "metric": "m", "layer": "l", "estimate": v}
        for (r, s), v in zip(itertools.product("ab", range(3)), [1, 2, 3, 10, 20, 30], strict=True)
    ]
    shuffled = pd.DataFrame(rows).sample(frac=1, random_state=1)
    assert seed_differences(shuffled, "b", "a", metric="m", layer="l").tolist() == [9, 18, 27]
    with pytest.raises(ValueError, match="seeds of both c and a"):
        seed_differences(shuffled, "c", "a", metric="m", layer="l")


def test_the_deciding_layer_is_shown_not_the_noisiest():
    made = table(channelwise_fall=(0.4, 0.3), noise=0.001)
    noisy = (made.metric == "channelwise") & (made.layer == "one") & (made.recipe == "augmented")
    made.loc[noisy, "estimate"] += [0.5, -0.5, 0.4, -0.4, 0.0]
    last = augmentation_or_layers(made, margin=0.1, fall=0.1).iloc[-1]
    assert (last.verdict, last.layer) == ("contradicted", "two")


def test_a_tie_is_no_contradiction():
    made = table(noise=0.0001, random=-0.98, random_softmax=0.02)
    found = random_beats_trained(made, margins={"latent": 0.001}, against=["augmented"])
    assert found.iloc[-1].verdict == "inconclusive"


def test_fewer_than_five_seeds_decide_nothing():
    few = table()
    found = augmentation_or_layers(few[few.seed < 4], margin=0.1, fall=0.1)
    assert set(found.verdict) == {"not testable here"}


def test_what_cannot_be_tested_is_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"not negative; got -0\.1"):
        augmentation_or_layers(table(), margin=-0.1, fall=0.1)
    with pytest.raises(ValueError, match="no channelwise values"):
        augmentation_or_layers(table().query("metric != 'channelwise'"), margin=0.1, fall=0.1)
    with pytest.raises(ValueError, match="at least one metric"):
        random_beats_trained(table(), margins={})
    with pytest.raises(ValueError, match="columns recipe and seed"):
        random_beats_trained(table().drop(columns="seed"), margins={"latent": 0.1})
