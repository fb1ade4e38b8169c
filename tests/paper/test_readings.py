"""Readings of tables for which the right sentence is known."""

import itertools

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy import stats

from eedkit.paper import conclusions, readings, verdicts
from eedkit.paper.verdicts import CONTRADICTED, INCONCLUSIVE, NOT_TESTABLE, SUPPORTED

NEAR = (-0.02, -0.01, 0.0, 0.01, 0.02)
"""Offsets of five seeds that leave the interval narrow."""
FAR = (-0.8, -0.4, 0.0, 0.4, 0.8)
"""Offsets of five seeds that leave it wide."""


def seeds(means, offsets=NEAR, value="relative", **columns):
    """Seeds of each recipe, around the given mean."""
    rows = []
    for recipe, mean in means.items():
        for seed, offset in enumerate(offsets):
            rows.append({"recipe": recipe, "seed": seed, value: mean + offset, **columns})
    return pd.DataFrame(rows)


def profile(means, **columns):
    """A table of `summarise` from {layer: {recipe: mean}}, in which seeds differ by more than they share."""
    tables = []
    for depth, (layer, of_layer) in enumerate(means.items()):
        for place, (recipe, mean) in enumerate(of_layer.items()):
            offsets = np.roll(NEAR, depth + place)
            tables.append(seeds({recipe: mean}, offsets, layer=layer, depth=float(depth), metric="latent", **columns))
    return pd.concat(tables, ignore_index=True)


def measured(by_element, recipes=("net",)):
    """Latent values of images labelled 6 and 9 in turn: {element: (value of the sixes, of the nines)}, above −1, null at 0."""
    rng = np.random.default_rng(0)
    values = np.empty((len(recipes), 1, len(by_element), 40))
    for place, (six, nine) in enumerate(by_element.values()):
        values[:, :, place, 0::2] = six - 1
        values[:, :, place, 1::2] = nine - 1
    values += 0.001 * rng.standard_normal(values.shape)
    attrs = {"best": -1.0, "order": 1, "rounding": 1e-7, "scale": 2.0}
    latent = xr.DataArray(values, dims=("model", "layer", "element", "sample"), attrs=attrs)
    return xr.Dataset({"latent": latent, "latent_null": xr.zeros_like(latent)}).assign_coords(
        model=[f"model {k}" for k in range(len(recipes))],
        recipe=("model", list(recipes)),
        layer=["latent"],
        element=list(by_element),
        label=("sample", [6, 9] * 20),
    )


def predicted(right, recipes):
    """Predictions on a hundred images, of which each (recipe, element) has so many right."""
    counts = np.asarray(right)
    wrong = np.arange(100)[None, None] >= counts[..., None]
    ds = xr.Dataset({"prediction": (("model", "element", "sample"), wrong.astype(int))})
    names = [f"{k}" for k in range(len(recipes))]
    return ds.assign_coords(model=names, recipe=("model", recipes), element=["e", "r180"], label=("sample", [0] * 100))


def judged(verdict=SUPPORTED, test="a claim", *, n=9, **columns):
    """A row of `conclusions`."""
    numbers = {"effect": 0.36, "low": 0.3, "high": 0.42, "margin": 0.5, "critical_margin": 0.42, "seeds_needed": np.nan}
    numbers["value"] = "share removed"
    about = {"conclusion": "1", "part": "maps", "beside": "", "decided_by": "", "test": test, "verdict": verdict}
    return {**about, **numbers, "n": n, **columns}


def concluded(last, *rows):
    return pd.DataFrame([*rows, {**last, "part": "conclusion", "decided_by": "the worst layer"}])


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.956, "0.96"), (12.345, "12.35"), (123.4, "123"), (0.0123, "0.012"), (-0.00043, "−0.00043"), (2e-8, "0")],
)
def test_numbers_are_rounded_as_prose_has_them(value, text):
    assert readings.number(value) == text


def test_a_reading_shows_its_headline_and_folds_its_details():
    from IPython.core.formatters import DisplayFormatter

    shown, _ = DisplayFormatter().format(readings.Reading("**a** b", "- c"))
    assert shown["text/markdown"] == "**a** b\n\n<details><summary>In numbers</summary>\n\n- c\n\n</details>"


# Words

LONG = ["plain", "augmented", *[f"random blocks={k} width=64 epochs=10 with a very long name" for k in range(10)]]
SHORT = ["plain", "augmented", "equivariant", "random"]


def every_reading(names):
    """Name -> each reading over these recipes, where all of them differ and where none does."""
    means = {name: 0.1 + 0.1 * k for k, name in enumerate(names)}
    for kind, of_kind in {"apart": means, "alike": dict.fromkeys(names, 0.5)}.items():
        flat = seeds(of_kind, FAR if kind == "alike" else NEAR)
        points = pd.concat([flat.assign(x=1), flat.assign(x=9, relative=flat.relative + (kind == "apart"))])
        layers = profile({f"blocks.{k}": of_kind for k in range(5)})
        recipes = [name for name in names for _ in range(5)]
        right = [[98 - 2 * (k % 5), 40 + k % 5] for k in range(len(recipes))]
        single = pd.concat([flat, pd.DataFrame({"recipe": ["one"], "relative": [0.3]})])
        yield f"order {kind}", readings.order(flat, "relative", what="the relative latent EED at the deepest layer")
        yield f"order per {kind}", readings.order(points, "relative", per="x", what="the relative latent EED by x")
        yield f"ranks {kind}", readings.ranks(single, "relative", one="one", what="the relative EED at the end")
        yield f"profile {kind}", readings.depth_profile(layers, metric="latent")
        yield f"extremes {kind}", readings.extremes(measured({"e": (0, 0), "r180": (0.2, 0.8)}, names), "label")
        yield f"accuracy {kind}", readings.accuracy(predicted(right, recipes))
    rows = [judged(verdict, f"{name} is more invariant") for name in names for verdict in verdicts.VERDICTS]
    yield "comparisons", readings.comparisons(pd.DataFrame(rows))
    open_row = judged(INCONCLUSIVE, " ".join(["word"] * 11), seeds_needed=1234.0, n=20)
    for verdict in verdicts.VERDICTS:
        last = concluded({**open_row, "verdict": verdict}, *rows)
        yield f"conclusion {verdict}", readings.conclusion(last)
        yield f"headlines {verdict}", readings.headlines(last.assign(notebook="01_a_page"))


@pytest.mark.parametrize("names", [SHORT, LONG], ids=["short", "long"])
def test_headlines_have_25_words_at_most(names):
    seen = dict(every_reading(names))
    words = {name: max(len(line.split()) for line in reading.headline.splitlines()) for name, reading in seen.items()}
    assert max(words.values()) <= 25, words
    assert min(words.values()) >= 2
    assert max(words.values()) > 15
    whole = {name: reading.headline for name, reading in seen.items()}
    assert all(text.endswith(".") for text in whole.values()), whole


# What can be told apart


def test_tables_without_any_difference_are_rarely_read_as_having_one():
    rng = np.random.default_rng(20)
    told = {"profile": 0, "order": 0, "accuracy": 0}
    for _ in range(150):
        cells = itertools.product(("plain", "augmented", "equivariant", "random"), range(5), range(6))
        table = pd.DataFrame(cells, columns=["recipe", "seed", "depth"]).assign(metric="latent")
        table["layer"] = "b" + table.depth.astype(str)
        table["relative"] = rng.normal(0.5, 0.1, len(table))
        told["profile"] += "most at" in readings.depth_profile(table, metric="latent").headline
        told["order"] += ", then " in readings.order(table, "relative", per="layer").details
        right = rng.integers(60, 90, (20, 2))
        told["accuracy"] += (
            "falls clearly for `" in readings.accuracy(predicted(right, list(table[table.depth == 5].recipe))).headline
        )
    # 150 tables at 5 %: 7.5, and 12 or more of them in one case of 14
    assert max(told.values()) <= 12, told


def test_a_difference_is_told_by_a_paired_test_over_seeds_with_holms_correction():
    table = profile({f"b{k}": {"plain": 0.5, "augmented": 0.5 - 0.01 * k} for k in range(6)})
    by_seed = table.pivot_table("relative", ["layer", "seed"], "recipe")
    p = [stats.ttest_rel(of.augmented, of.plain).pvalue for _, of in by_seed.groupby("layer")]
    clear = 0
    for place, value in enumerate(sorted(p)):
        if value > 0.05 / (6 - place):
            break
        clear += 1
    assert 0 < clear < sum(value < 0.05 for value in p)
    assert f"`augmented` lower at {clear} of 6 layers" in readings.depth_profile(table, metric="latent").headline


@pytest.mark.parametrize("other", ["b", "c"])
def test_independent_kinds_are_compared_by_welch(other):
    rows = pd.concat([seeds({"a": 0.5}), seeds({"b": 0.545}), seeds({"c": 0.9}, FAR)])
    of_pair = {name: rows[rows.recipe == name].relative for name in ("a", other)}
    mean = readings.Mean.of("a", of_pair["a"]).minus(readings.Mean.of("o", of_pair[other]))
    assert mean.p == pytest.approx(stats.ttest_ind(*of_pair.values(), equal_var=False).pvalue)


def test_order_follows_the_means():
    said = readings.order(seeds({"plain": 0.9, "augmented": 0.1}), "relative")
    interval = "`augmented` 0.10 (0.080 to 0.12), highest for `plain` 0.90 (0.88 to 0.92)"
    assert said.headline == f"Relative: lowest for {interval}."
    assert said.details == (
        "- lowest first: `augmented` 0.10 (0.080 to 0.12), then `plain` 0.90 (0.88 to 0.92)\n\n"
        "In brackets: 95 % intervals over 5 seeds. “Then” stands where the order is clear."
    )
    turned = readings.order(seeds({"plain": 0.1, "augmented": 0.9}), "relative")
    assert turned.headline.startswith("Relative: lowest for `plain` 0.10")


@pytest.mark.parametrize(
    ("rows", "details"),
    [
        (seeds({"a": 0.5, "b": 0.51, "c": 2.0}), "`a` 0.50 (0.48 to 0.52), `b` 0.51 (0.49 to 0.53), then `c`"),
        (pd.concat([seeds({"wide": 0.5}, FAR), seeds({"b": 0.9, "c": 1.2})]), "`wide` 0.50 (0 to 1.29), `b` 0.90 (0.88 to 0.92), `c`"),
        (seeds({"a": 0.5, "b": 0.5}, (0.0, 0.0)), "`a` 0.50 (0.50 to 0.50), `b` 0.50 (0.50 to 0.50)\n"),
        (seeds({"a": 0.1, "b": 0.9}, (0.0,)), "`a` 0.10, `b` 0.90\n\nA single replicate has no interval."),
        (seeds({"a": 0.5, "b": np.nan}), "is clear. Values are missing for `b`."),
        (seeds({"a`\n\n<b>": 0.5, "b": 1.0}), "`a' <b>` 0.50"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_apart_has_no_order(rows, details):
    assert details in readings.order(rows, "relative").details


def test_nothing_is_read_where_there_is_no_value():
    assert readings.order(seeds({"b": np.nan}), "relative").headline == "Relative: no value for any of them."
    with pytest.raises(ValueError, match="did you mean 'relative'"):
        readings.order(seeds({"a": 0.5}), "relativ")


def test_only_seeds_are_called_seeds():
    rows = seeds({"a": 0.5, "b": 0.9})
    assert "over 5 replicates" in readings.order(rows.drop(columns="seed"), "relative").details
    own = rows[rows.seed == 0]
    own = own.assign(relative_low=own.relative - 0.05, relative_high=own.relative + 0.05)
    said = readings.order(own, "relative")
    assert said.headline == "Relative: lowest for `a` 0.48 (0.43 to 0.53), highest for `b` 0.88 (0.83 to 0.93)."
    assert "\n\nIn brackets: 95 % intervals. " in said.details
    response = pd.DataFrame(
        {"what": ["best map", "features"], "effect": [0.1, 0.9], "low": [0.05, 0.8], "high": [0.15, 1.0]}
    )
    assert (
        "`best map` 0.10 (0.050 to 0.15), then `features` 0.90 (0.80 to 1.00)"
        in readings.order(response, "effect", by="what").details
    )


@pytest.mark.parametrize(("value", "mean", "interval"), [("accuracy", 0.9, "(0.11 to 1.00)"), ("relative", 0.1, "(0 to "), ("share", 0.9, "(0.11 to 1.00)")])  # fmt: skip
def test_intervals_stay_within_the_range_of_the_value(value, mean, interval):
    said = readings.order(seeds({"a": mean, "b": mean}, FAR, value=value), value)
    assert interval in said.headline
    assert "1.17" not in str(said)
    assert "−" not in str(said)


def test_one_order_for_each_value_of_another_column():
    rows = pd.concat([seeds({"a": 0, "b": 1}, domain=name) for name in ("near", "far")])
    rows = pd.concat([rows, seeds({"a": 1, "b": 0}, domain="odd"), seeds({"a": 0, "c": 0, "b": 1}, domain="tied")])
    rows = pd.concat([rows, seeds({"a": 0}, domain="alone")])
    said = readings.order(rows, "relative", per="domain")
    assert said.headline == "Relative: `a` is clearly lowest in 2, `b` is clearly highest in 3 of 5 by `domain`."
    near, far, odd = said.details.splitlines()[:3]
    assert near.startswith("- `near`, lowest first: `a`")
    assert far.startswith("- `far`, lowest first: `a`")
    assert odd.startswith("- `odd`, lowest first: `b`")


def test_a_single_network_is_compared_by_ranks():
    rows = pd.concat([seeds({"random": 0.1, "plain": 0.9}), pd.DataFrame({"recipe": ["real"], "relative": [0.11]})])
    said = readings.ranks(rows, "relative", one="real")
    assert said.headline == "Relative: `real` 0.11; 3 of 5 `random` and 0 of 5 `plain` lie below it."
    assert "`random` from 0.080 to 0.12" in said.details
    for one in ("random", "none"):
        with pytest.raises(ValueError, match=f"ranks take a single '{one}' and others"):
            readings.ranks(rows, "relative", one=one)


@pytest.mark.parametrize(
    ("means", "headline"),
    [
        ({"one": (0.9, 0.9), "two": (0.9, 0.2)}, "`augmented` lower at 1 of 2 layers (most at `two`: −0.70, "),
        ({"one": (0.4, 0.6), "two": (0.2, 0.9)}, "`augmented` higher at 2 of 2 layers (most at `two`: 0.70, "),
        ({"one": (0.4, 0.2), "two": (0.2, 0.9)}, "`augmented` lower at 1, higher at 1 of 2 layers (most at `two`: 0.70, "),
        ({"one": (0.5, 0.5), "two": (0.5, 0.5)}, "`augmented` nowhere clearly apart."),
    ],
)  # fmt: skip
def test_a_profile_says_where_a_recipe_leaves_plain(means, headline):
    table = profile({layer: dict(zip(("plain", "augmented"), pair, strict=True)) for layer, pair in means.items()})
    said = readings.depth_profile(table, metric="latent")
    assert said.headline.startswith(f"Latent, against `plain`: {headline}")
    assert said.details.endswith("Differences from `plain`, seed by seed, over 5 seeds.")


def test_a_profile_is_of_maps_against_plain():
    pair = {"plain": 0.5, "augmented": 0.5}
    table = profile({"one": pair, "two": dict.fromkeys(pair, np.nan), "one[class]": {"plain": 0.5, "augmented": 0.1}})
    assert "`augmented` nowhere" in readings.depth_profile(table, metric="latent").headline
    with pytest.raises(ValueError, match="read against plain, got the recipes augmented"):
        readings.depth_profile(table[table.recipe == "augmented"], metric="latent")
    with pytest.raises(ValueError, match="no metric with relative values 'channelwise'"):
        readings.depth_profile(table, metric="channelwise")
    two_data_sets = pd.concat([profile({"one": {"plain": 0.5, "augmented": 0.1}})] * 2)
    with pytest.raises(ValueError, match="duplicate"):
        readings.depth_profile(two_data_sets, metric="latent")


@pytest.mark.parametrize(
    ("over", "recipes", "headline"),
    [
        ("label", ("net",), "Relative deviation by label: lowest for `6` 0.15 (0.15 to 0.15), highest for `9` 0.55 "),
        ("element", ("net",), "Relative deviation by element: lowest for `r90` 0.20 (0.17 to 0.23), highest for `r180` 0.50 "),
        ("label", ("a", "a", "b"), "Relative deviation by label: `6` is clearly lowest in 2, `9` is clearly highest in 2 of 2 by `kind`."),
    ],
)  # fmt: skip
def test_extremes_name_the_class_and_the_element(over, recipes, headline):
    moved = {"e": (0.0, 0.0), "r90": (0.1, 0.3), "r180": (0.2, 0.8)}
    assert readings.extremes(measured(moved, recipes), over).headline.startswith(headline)


def test_extremes_read_the_value_from_the_image_and_the_names_of_classes():
    ds = measured({"e": (0.1, 0.3), "r180": (0.2, 0.8)})
    from_x = ds.assign(
        latent_from_x=measured({"e": (0, 0), "r180": (0.8, 0.2)}).latent, latent_from_x_null=ds.latent_null
    )
    assert "highest for `6` 0.80" in readings.extremes(from_x, "label").headline
    squared = from_x.assign(latent=ds.latent.assign_attrs(order=2))
    assert "highest for `6` 0.89 (0.89 to 0.89)" in readings.extremes(squared, "label").headline
    names = ds.assign_coords(label=("sample", [0, 1] * 20, {"class_names": '["boot", "bag"]'}))
    assert "lowest for `boot` 0.20" in readings.extremes(names, "label").headline
    with pytest.raises(ValueError, match='over "label" or "element"'):
        readings.extremes(ds, "layer")


def test_rounding_makes_no_order():
    ds = measured({"e": (0.0, 0.0), "r90": (0.1, 0.1), "r180": (0.9, 0.9)})
    ds["latent"] = (-1 + 1e-8 * (ds.latent + 1)).assign_attrs(ds.latent.attrs)
    assert "no clear order, from `r90` 0 (0 to 0) to `r180` 0" in readings.extremes(ds, "element").headline


def test_accuracy_names_who_loses_on_moved_images():
    right = [[98, 40], [97, 39], [99, 42], [97, 97], [98, 98], [97, 98]]
    said = readings.accuracy(predicted(right, ["plain"] * 3 + ["augmented"] * 3))
    assert said.headline == (
        "On moved images accuracy falls clearly for `plain` (by 0.58), and shows no clear loss for `augmented`."
    )
    assert "- `upright`, lowest first: `augmented` 0.97 (0.96 to 0.99), `plain` 0.98" in said.details


# Verdicts


@pytest.mark.parametrize(
    ("row", "headline"),
    [
        ({}, "**Supported**: layers stay. Share removed: 0.36 (0.30 to 0.42), margin 0.50, 9 seeds."),
        ({"verdict": CONTRADICTED}, "**Contradicted**: layers stay. Share removed: 0.36 (0.30 to 0.42), margin 0.50, 9 seeds."),
        ({"verdict": INCONCLUSIVE, "seeds_needed": 34.0}, "**Inconclusive**: layers stay. Share removed: 0.36 (0.30 to 0.42), margin 0.50, 9 seeds; 34 would decide."),
        ({"verdict": INCONCLUSIVE, "value": ""}, "**Inconclusive**: layers stay. 0.36 (0.30 to 0.42), margin 0.50, 9 seeds."),
        ({"low": -np.inf}, "**Supported**: layers stay. Share removed: 0.36 (at most 0.42), margin 0.50, 9 seeds."),
        ({"high": np.inf}, "**Supported**: layers stay. Share removed: 0.36 (at least 0.30), margin 0.50, 9 seeds."),
        ({"effect": np.nan, "low": np.nan, "high": np.nan, "value": ""}, "**Supported**: layers stay. No value, margin 0.50, 9 seeds."),
        ({"verdict": NOT_TESTABLE}, "**Not testable here**: layers stay. A premise or a control is not met."),
        ({"verdict": NOT_TESTABLE, "n": 2}, "**Not testable here**: layers stay. 2 seeds, fewer than 5."),
    ],
)  # fmt: skip
def test_a_conclusion_says_verdict_claim_effect_and_seeds(row, headline):
    rows = concluded(judged(test="layers stay", **row))
    said = readings.conclusion(rows)
    assert said.headline == headline
    assert "What decides: the worst layer." in said.details
    assert ("No number of seeds" in said.details) == ("Inconclusive" in headline and "would" not in headline)
    page = readings.headlines(rows.assign(notebook="01_layers"))
    assert page.headline == "1. " + headline.replace("layers stay", "[layers stay](01_layers.html)")


def test_a_long_headline_leaves_the_seeds_that_would_decide_to_the_details():
    said = readings.conclusion(concluded(judged(INCONCLUSIVE, "a claim of" + " words" * 9, seeds_needed=1234.0, n=20)))
    assert said.headline.endswith("words. Share removed: 0.36 (0.30 to 0.42), margin 0.50, 20 seeds.")
    assert "1,234 seeds would decide it." in said.details


def test_comparisons_are_listed_by_part():
    rows = [judged(CONTRADICTED, "it works", part="premise"), judged(test="one"), judged(INCONCLUSIVE, "two", n=3)]
    rows.append(judged(test="three", beside="elsewhere"))
    details = readings.comparisons(pd.DataFrame(rows)).details
    assert (
        "Conclusion 1, premise:\n\n- it works: **contradicted**, 0.36 (0.30 to 0.42), margin 0.50, 9 seeds\n\n"
        in details
    )
    assert "Conclusion 1, elsewhere, maps:\n\n- three: **supp" in details
    assert "1, maps:\n\n- one: **supported**, 0.36 (0.30 to 0.42), margin 0.50, 9 seeds\n- two: **inconclusive**, 3 seeds" in details  # fmt: skip


def test_comparisons_are_counted_by_verdict():
    rows = pd.DataFrame([judged(SUPPORTED), judged(CONTRADICTED), judged(SUPPORTED)])
    assert readings.comparisons(rows).headline == "2 **supported**, 1 **contradicted**."


def test_real_conclusions_are_read():
    opponents = {"augmented": 0.5, "equivariant": 0.0}
    latent = seeds({"random": -1.0, **opponents}, value="estimate", metric="latent", layer="latent", scale=2.0)
    rows = conclusions.without_learning(latent, margins={"latent": 0.1})
    start = "**Supported**: random weights can look more invariant."
    assert readings.conclusion(rows).headline.startswith(f"{start} Raw EED difference / scale: 0.75 (")


def test_the_accuracy_of_a_single_network_is_compared_over_its_images():
    predictions = np.zeros((1, 2, 40), dtype=int)
    predictions[0, 1, :20] = 1
    ds = xr.Dataset({"prediction": (("model", "element", "sample"), predictions)})
    ds = ds.assign_coords(model=["mine"], element=["e", "r180"], label=("sample", [0] * 40))
    assert readings.accuracy(ds).headline == "On moved images accuracy falls clearly for `mine` (by 0.50)."
    predictions[0, 1, :19] = 0
    assert "no clear loss" in readings.accuracy(ds.assign(prediction=ds.prediction.copy(data=predictions))).headline
