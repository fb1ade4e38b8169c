"""Readings of tables for which the right sentence is known."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from eedkit.paper import readings
from eedkit.paper.verdicts import CONTRADICTED, INCONCLUSIVE, MIN_SEEDS, NOT_TESTABLE, SUPPORTED

NEAR = (-0.01, 0.0, 0.01)
"""Offsets of three seeds that leave the interval narrow."""
FAR = (-0.4, 0.0, 0.4)
"""Offsets of three seeds that leave it wide."""


def seeds(means, offsets=NEAR, value="relative", **columns):
    """Three seeds of each recipe, around the given mean."""
    rows = []
    for recipe, mean in means.items():
        for seed, offset in enumerate(offsets):
            rows.append({"recipe": recipe, "seed": seed, value: mean + offset, **columns})
    return pd.DataFrame(rows)


def profile(means, **columns):
    """A table of `summarise` from {layer: {recipe: mean}}."""
    tables = []
    for depth, (layer, of_layer) in enumerate(means.items()):
        tables.append(seeds(of_layer, layer=layer, depth=float(depth), metric="latent", **columns))
    return pd.concat(tables, ignore_index=True)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.956, "0.96"), (12.345, "12.35"), (123.4, "123"), (0.0123, "0.012"), (-0.00043, "−0.00043"), (2e-8, "0")],
)
def test_numbers_are_rounded_as_prose_has_them(value, text):
    assert readings.number(value) == text


def test_order_follows_the_means():
    said = readings.order(seeds({"plain": 0.9, "augmented": 0.1}), "relative")
    assert said == (
        "Relative, lowest first: `augmented` 0.10 (0.075 to 0.12), then `plain` 0.90 (0.88 to 0.92). "
        "In brackets: 95 % intervals over 3 replicates."
    )
    reversed_order = readings.order(seeds({"plain": 0.1, "augmented": 0.9}), "relative")
    assert "`plain` 0.10 (0.075 to 0.12), then `augmented`" in reversed_order


def test_overlapping_intervals_have_no_order():
    said = readings.order(seeds({"a": 0.5, "b": 0.51, "c": 2.0}), "relative")
    assert "`a` 0.50 (0.48 to 0.52) and `b` 0.51 (0.49 to 0.53) in no clear order, then `c` 2.00" in said


def test_a_chain_of_overlaps_is_one_group():
    said = readings.order(seeds({"a": 0.50, "b": 0.54, "c": 0.58}), "relative")
    assert "`a`" in said
    assert said.count("in no clear order") == 1
    assert ", then" not in said


def test_a_wide_interval_holds_all_that_it_overlaps():
    rows = pd.concat([seeds({"wide": 0.5}, FAR), seeds({"b": 0.9, "c": 1.2})])
    assert ", then" not in readings.order(rows, "relative")


def test_ties_have_no_order():
    said = readings.order(seeds({"a": 0.5, "b": 0.5}, offsets=(0.0, 0.0)), "relative")
    assert "`a` 0.50 (0.50 to 0.50) and `b` 0.50 (0.50 to 0.50) in no clear order" in said


def test_single_replicates_have_no_order():
    said = readings.order(seeds({"a": 0.1, "b": 0.9}, offsets=(0.0,)), "relative")
    assert (
        said == "Relative, lowest first: `a` 0.10 and `b` 0.90 in no clear order. A single replicate has no interval."
    )


def test_a_single_row_brings_its_own_interval():
    rows = pd.DataFrame({"layer": ["one", "two"], "relative": [0.1, 0.9]})
    rows = rows.assign(relative_low=rows.relative - 0.05, relative_high=rows.relative + 0.05)
    said = readings.order(rows, "relative", by="layer")
    assert "`one` 0.10 (0.050 to 0.15), then `two` 0.90 (0.85 to 0.95)." in said


def test_what_has_no_value_is_named_and_not_ordered():
    said = readings.order(seeds({"a": 0.5, "b": np.nan}), "relative")
    assert "; no value: `b`. In brackets" in said
    assert "`b`" not in said.partition("no value")[0]
    assert readings.order(seeds({"b": np.nan}), "relative") == "Relative, no value for any of them."


def test_one_order_for_each_value_of_another_column():
    rows = pd.concat([seeds({"a": 0, "b": 1}, domain="near"), seeds({"a": 1, "b": 0}, domain="far")])
    head, first, second = readings.order(rows, "relative", per="domain").split("\n- ")
    assert head == "Relative. In brackets: 95 % intervals over 3 replicates.\n"
    assert first.startswith("`near`: lowest first: `a`")
    assert second.startswith("`far`: lowest first: `b`")


def test_unknown_columns_are_refused():
    with pytest.raises(ValueError, match="did you mean 'relative'"):
        readings.order(seeds({"a": 0.5}), "relativ")


def test_names_stay_inside_their_code():
    said = readings.order(seeds({"a`\n\n<b>": 0.5}), "relative")
    assert "`a' <b>` 0.50" in said


def test_a_profile_says_where_a_recipe_leaves_plain():
    table = profile({"one": {"plain": 0.9, "augmented": 0.9}, "two": {"plain": 0.9, "augmented": 0.2}})
    said = readings.depth_profile(table, metric="latent")
    assert said.startswith("Relative latent EED at `two`, lowest first: `augmented` 0.20")
    assert said.endswith("Against `plain`, seed by seed: `augmented` lies lower at `two`: −0.70 (−0.70 to −0.70).")


def test_a_profile_with_the_order_reversed_says_higher():
    table = profile({"one": {"plain": 0.4, "augmented": 0.6}, "two": {"plain": 0.2, "augmented": 0.9}})
    said = readings.depth_profile(table, metric="latent")
    assert "lowest first: `plain`" in said
    assert said.endswith("`augmented` lies higher at `one` and `two`, most at `two`: 0.70 (0.70 to 0.70).")


def test_a_profile_without_clear_differences_says_so():
    table = profile({"one": {"plain": 0.5, "augmented": 0.5}})
    table["relative"] += [0.4, -0.4, 0.0, -0.3, 0.3, -0.1]
    said = readings.depth_profile(table, metric="latent")
    assert "in no clear order" in said
    assert said.endswith("`augmented` is at no layer clearly apart.")


def test_layers_without_values_are_not_the_deepest():
    table = profile({"one": {"plain": 0.5}, "two": {"plain": np.nan}})
    assert "at `one`" in readings.depth_profile(table, metric="latent")


def test_class_tokens_are_not_the_deepest_layer():
    table = profile({"one": {"plain": 0.5}, "one[class]": {"plain": 0.1}})
    assert "at `one`" in readings.depth_profile(table, metric="latent")


def test_a_profile_of_no_values_is_refused():
    with pytest.raises(ValueError, match="no metric with relative values 'channelwise'"):
        readings.depth_profile(profile({"one": {"plain": 0.5}}), metric="channelwise")


def calibrated(raw, relative):
    rows = seeds(raw, value="estimate", metric="latent", layer="latent", best=-1.0)
    return rows.assign(relative=seeds(relative).relative)


def test_calibration_names_who_changes_places():
    table = calibrated({"random": -0.95, "augmented": -0.5}, {"random": 0.97, "augmented": 0.05})
    said = readings.calibration(table)
    assert said.startswith("By the raw value (above its best) the lowest is `random` 0.050")
    assert "Relative to other images the lowest is `augmented` 0.05" in said
    assert said.endswith("`random` lies below `augmented` raw, and above it relative to other images.")


def test_calibration_without_a_change_says_so():
    table = calibrated({"random": -0.5, "augmented": -0.95}, {"random": 0.97, "augmented": 0.05})
    assert readings.calibration(table).endswith("No two kinds clearly change places.")


def test_calibration_calls_overlaps_no_change():
    table = calibrated({"random": -0.95, "augmented": -0.5}, {"random": 0.51, "augmented": 0.5})
    said = readings.calibration(table)
    assert "the lowest are `augmented`" in said
    assert said.endswith("No two kinds clearly change places.")


def test_calibration_calls_raw_overlaps_no_change():
    table = calibrated({"random": -0.51, "augmented": -0.5}, {"random": 0.97, "augmented": 0.05})
    assert readings.calibration(table).endswith("No two kinds clearly change places.")


def test_calibration_without_relative_values_says_so():
    table = calibrated({"random": -0.95}, {"random": np.nan})
    assert "nothing can be said: there is no value" in readings.calibration(table)


def test_lines_have_a_direction_where_their_ends_are_apart():
    table = pd.concat(
        [seeds({"up": 0.1, "down": 0.9, "flat": 0.5}, x=1), seeds({"up": 0.9, "down": 0.1, "flat": 0.5}, x=5)]
    )
    said = readings.lines(table, x="x", y="relative")
    assert said == (
        "From x 1 to 5, relative rises for `up` (0.10 to 0.90); it falls for `down` (0.90 to 0.10); "
        "it has no clear direction for `flat` (0.50 to 0.50)."
    )


def test_lines_say_which_points_lie_beyond_a_line():
    table = pd.concat([seeds({"gain": 0.9}, x=1), seeds({"gain": 0.3}, FAR, x=2), seeds({"gain": 0.0}, x=3)])
    said = readings.lines(table, x="x", y="relative", line=0.2, line_label="the margin")
    assert "Intervals above the margin (0.20): `gain` at `1`." in said
    assert "Intervals on both sides of the margin (0.20): `gain` at `2`." in said
    assert "Intervals below the margin (0.20): `gain` at `3`." in said


def test_lines_without_a_value_are_refused():
    with pytest.raises(ValueError, match="no row of the table"):
        readings.lines(seeds({"a": np.nan}, x=1), x="x", y="relative")


def measured(by_element, recipes=("net",)):
    """Latent values of images labelled 6 and 9 in turn: {element: (value of the sixes, of the nines)}, above −1."""
    rng = np.random.default_rng(0)
    values = np.empty((len(recipes), 1, len(by_element), 40))
    for place, (six, nine) in enumerate(by_element.values()):
        values[:, :, place, 0::2] = six - 1
        values[:, :, place, 1::2] = nine - 1
    values += 0.001 * rng.standard_normal(values.shape)
    latent = xr.DataArray(values, dims=("model", "layer", "element", "sample"), attrs={"best": -1.0})
    return xr.Dataset({"latent": latent}).assign_coords(
        model=[f"model {k}" for k in range(len(recipes))],
        recipe=("model", list(recipes)),
        layer=["latent"],
        element=list(by_element),
        label=("sample", [6, 9] * 20),
    )


def test_extremes_name_the_class_and_the_element():
    ds = measured({"e": (0.1, 0.3), "r180": (0.2, 0.8)})
    assert readings.extremes(ds, "label").startswith("Deviation by label: `net` most for `9` 0.55")
    assert "; least for `6` 0.15" in readings.extremes(ds, "label")
    assert "`net` most for `r180` 0.50" in readings.extremes(ds, "element")
    from_x = ds.assign(latent_from_x=measured({"e": (0, 0), "r180": (0.8, 0.2)}).latent)
    assert "`net` most for `6` 0.40" in readings.extremes(from_x, "label")


def test_extremes_are_over_seeds_where_there_are_some():
    ds = measured({"e": (0.1, 0.3), "r180": (0.2, 0.8)}, recipes=("plain", "plain"))
    assert readings.extremes(ds, "label").count("most for `9`") == 1


def test_extremes_that_overlap_have_no_order():
    ds = measured({"e": (0.3, 0.3), "r180": (0.3, 0.3)})
    assert "`net` has no clear order" in readings.extremes(ds, "label")


def test_rounding_makes_no_order():
    ds = measured({"e": (0.1, 0.1), "r180": (0.9, 0.9)})
    ds["latent"] = (-1 + 1e-8 * (ds.latent + 1)).assign_attrs(best=-1.0)
    assert "`net` has no clear order, from `e` 0 (0 to 0) to" in readings.extremes(ds, "element")


def test_many_equal_classes_are_counted():
    ds = measured({"e": (0.1, 0.5)}).assign_coords(label=("sample", [6, 9, 7, 8, 5, 3, 2, 1] * 5))
    said = readings.extremes(ds, "label")
    assert "not clearly more than for `" in said
    assert "others" not in said
    wide = measured({"e": (0.1, 0.5)}).assign_coords(label=("sample", [0, 2, 4, 1, 6, 3, 8, 5, 0, 7] * 4))
    assert "others" in readings.extremes(wide, "label")


def test_extremes_need_a_known_dimension():
    with pytest.raises(ValueError, match='over "label" or "element"'):
        readings.extremes(measured({"e": (0, 0)}), "layer")


def predicted(right, recipes):
    """Predictions on a hundred images, of which each (recipe, element) has so many right."""
    counts = np.asarray(right)
    wrong = np.arange(100)[None, None] >= counts[..., None]
    ds = xr.Dataset({"prediction": (("model", "element", "sample"), wrong.astype(int))})
    return ds.assign_coords(recipe=("model", recipes), element=["e", "r180"], label=("sample", [0] * 100))


def test_accuracy_names_who_loses_on_moved_images():
    right = [[98, 40], [97, 39], [97, 97], [98, 98]]
    said = readings.accuracy(predicted(right, ["plain", "plain", "augmented", "augmented"]))
    assert "Accuracy on upright images, lowest first: `plain` 0.97" in said
    assert "in no clear order" in said.partition("Accuracy on moved")[0]
    assert "On moved images it falls clearly for `plain` (by 0.58, 0.58 to 0.58)." in said
    assert said.endswith("No clear loss on moved images: `augmented`.")


def test_a_single_network_shows_no_clear_loss():
    assert readings.accuracy(predicted([[98, 40]], ["plain"])).endswith("No clear loss on moved images: `plain`.")


def test_removed_takes_the_layer_that_lost_most():
    features = profile({"latent": {"plain": 1.0, "augmented": 0.1}})
    maps = profile({"one": {"plain": 1.0, "augmented": 0.9}, "two": {"plain": 1.0, "augmented": 0.6}})
    table = pd.concat([features, maps.assign(metric="channelwise")])
    said = readings.removed(table)
    assert "latent 0.90 (" in said
    assert "channelwise 0.40 (" in said
    assert said.endswith("at `two`.")


def test_removed_needs_seeds_of_both():
    table = profile({"latent": {"plain": 1.0}})
    with pytest.raises(ValueError, match="share a seed"):
        readings.removed(table, metrics=["latent"])


def judged(verdict=SUPPORTED, test="a claim", *, n=9, fragile=False, **columns):
    """A row of `conclusions`."""
    numbers = {"effect": 0.36, "low": 0.3, "high": 0.42, "margin": 0.5, "critical_margin": 0.42}
    about = {"conclusion": "1", "part": "maps", "decided_by": "", "test": test, "verdict": verdict}
    return {**about, **numbers, "n": n, "fragile": fragile, **columns}


def concluded(last, *rows):
    return pd.DataFrame([*rows, {**last, "part": "conclusion", "decided_by": "the worst layer"}])


@pytest.mark.parametrize("verdict", [SUPPORTED, CONTRADICTED, INCONCLUSIVE])
def test_a_conclusion_says_verdict_and_numbers(verdict):
    said = readings.conclusion(concluded(judged(verdict, "layers stay")))
    assert said == (
        f"Conclusion 1, “layers stay”: **{verdict}** (0.36, bounds 0.30 to 0.42, margin 0.50, n = 9, critical margin 0.42). "
        "What decides is “the worst layer”."
    )


def test_too_few_seeds_show_no_effect():
    said = readings.conclusion(concluded(judged(NOT_TESTABLE, n=2, critical_margin=np.nan)))
    assert f"**not testable here** (n = 2, fewer than {MIN_SEEDS})" in said
    assert "0.36" not in said


def test_a_fragile_verdict_is_called_so():
    said = readings.conclusion(concluded(judged(fragile=True)))
    assert "critical margin 0.42, fragile)" in said
    assert "That is fragile: the bound that decides lies within 20 % of the margin from it." in said
    assert "fragile" not in readings.conclusion(concluded(judged(fragile=False)))


def test_one_sided_bounds_are_read_as_such():
    assert "bounds at most 0.42" in readings.comparisons(pd.DataFrame([judged(low=-np.inf)]))
    assert "bounds at least 0.30" in readings.comparisons(pd.DataFrame([judged(high=np.inf)]))
    assert "bounds" not in readings.comparisons(pd.DataFrame([judged(low=-np.inf, high=np.inf)]))


def test_an_effect_without_value_is_read_as_such():
    row = judged(INCONCLUSIVE, effect=np.nan, low=np.nan, high=np.nan, critical_margin=np.nan)
    assert readings.comparisons(pd.DataFrame([row])) == "- a claim: **inconclusive** (no value, margin 0.50, n = 9)."


def test_a_failed_premise_is_named():
    premise = judged(CONTRADICTED, "augmentation works", part="premise")
    claims = [judged(SUPPORTED, "layer one"), judged(INCONCLUSIVE, "layer two")]
    said = readings.conclusion(concluded(judged(NOT_TESTABLE), premise, *claims))
    assert "“a claim”: **not testable here**" in said
    assert "Premise: **contradicted** 1 (“augmentation works”)." in said
    assert "Comparisons: **supported** 1 (“layer one”); **inconclusive** 1 (“layer two”)." in said
    assert "Parts" not in said


def test_parts_have_the_verdict_of_their_last_row():
    rows = [
        judged(SUPPORTED, "near", part="one"),
        judged(CONTRADICTED, "far", part="two"),
        judged(CONTRADICTED, "farther", part="two"),
        judged(INCONCLUSIVE, "two", part="two", decided_by="far"),
    ]
    said = readings.conclusion(concluded(judged(INCONCLUSIVE), *rows))
    assert "Parts: **supported** 1 (“one”); **inconclusive** 1 (“two”)." in said
    assert "Comparisons: **supported** 1 (“near”); **contradicted** 2 (“far”, “farther”)." in said


def test_many_comparisons_are_counted_and_few_are_named():
    rows = [judged(SUPPORTED, f"layer {k}") for k in range(4)]
    said = readings.conclusion(concluded(judged(), *rows, judged(CONTRADICTED, "layer 4")))
    assert "Comparisons: **supported** 4; **contradicted** 1 (“layer 4”)." in said


def test_the_overview_counts_verdicts_and_names_fragile_ones():
    verdicts = [SUPPORTED, CONTRADICTED, SUPPORTED, NOT_TESTABLE]
    page = pd.DataFrame({"conclusion": list("1234"), "verdict": verdicts, "fragile": [False, True, False, False]})
    said = readings.overview(page)
    assert said.startswith(
        "Of 4 conclusions, 2 are **supported** (1, 3), 1 is **contradicted** (2) and 1 is **not testable here** (4). "
    )
    assert said.endswith("from it: 2.")
    assert readings.overview(page.assign(fragile=False)).endswith("from it: none.")


def test_headlines_have_a_line_a_link_and_a_verdict_for_each_conclusion():
    page = pd.DataFrame(
        {
            "conclusion": ["1", "2"],
            "paper": ["Layers do it", "Weights do it"],
            "notebook": ["01_layers", "02_weights"],
            "verdict": [CONTRADICTED, NOT_TESTABLE],
            "effect": [0.3, 0.2],
            "low": [0.05, 0.1],
            "high": [0.6, 0.3],
            "margin": [0.06, 0.1],
            "n": [10, 2],
            "critical_margin": [0.05, np.nan],
            "fragile": [True, False],
        }
    )
    first, second = readings.headlines(page).splitlines()
    assert first.startswith("1. [Layers do it](01_layers.html): **contradicted** (0.30, bounds 0.050 to 0.60,")
    assert first.endswith(", fragile)")
    assert second == "2. [Weights do it](02_weights.html): **not testable here** (n = 2, fewer than 5)"


def test_agreement_tells_the_same_verdict_from_another():
    page = pd.DataFrame({"conclusion": ["1", "2"], "verdict": [SUPPORTED, SUPPORTED]})
    others = pd.DataFrame(
        {"conclusion": ["1", "1"], "verdict": [SUPPORTED, CONTRADICTED], "question": ["matched", "centred"]}
    )
    assert readings.agreement(page, others) == (
        "- Conclusion 1 is **supported** in the first table; the same: “matched”; otherwise: “centred” (**contradicted**)."
    )


def test_every_verdict_has_a_meaning():
    assert readings.meanings().verdict.tolist() == [SUPPORTED, CONTRADICTED, INCONCLUSIVE, NOT_TESTABLE]
    assert str(MIN_SEEDS) in readings.meanings().meaning.iloc[-1]


def test_a_notebook_shows_a_reading_as_markdown():
    from IPython.core.formatters import DisplayFormatter

    shown, _ = DisplayFormatter().format(readings.Reading("**a** b"))
    assert shown["text/markdown"] == "**a** b"
