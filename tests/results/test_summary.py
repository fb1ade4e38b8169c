"""Averages, intervals, calibration and joins, on Datasets made by hand whose answers are known."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from made import result
from torch import nn

import eedkit as ek
from eedkit.results.schema import SCHEMA, SchemaError, metrics_of, validate


@pytest.fixture
def spread():
    """200 samples around −0.8 against a null around −0.2, so that relative is about √((−0.8 + 1) / (−0.2 + 1)) = 0.5."""
    rng = np.random.default_rng(0)
    values = -0.8 + 0.1 * rng.standard_normal((2, 2, 200))
    null = -0.2 + 0.1 * rng.standard_normal((2, 2, 200))
    return values, null


def row(ds, layer="latent", **options):
    table = ek.summarise(ds, full=True, **options)
    return table[table.layer == layer].iloc[0]


def test_estimate_null_relative_and_normalised_are_the_formulas(spread):
    values, null = spread
    found = row(result(values, null))
    estimate, of_shuffled = values[1].mean(), null[1].mean()
    assert found.estimate == pytest.approx(estimate, abs=1e-6)
    assert found.null == pytest.approx(of_shuffled, abs=1e-6)
    assert found.relative == pytest.approx(np.sqrt((estimate + 1) / (of_shuffled + 1)), abs=1e-6)
    assert found.normalised == pytest.approx(estimate / 0.5, abs=1e-6)
    assert (found.n, found.reason) == (200, "")


def test_the_short_table_is_the_full_one_without_five_columns(spread):
    ds = ek.concat([result(*spread, pair=0.01)], recipe=["plain"])
    short = ek.summarise(ds)
    full = ek.summarise(ds, full=True)
    further = ["scale", "pair_cosine", "normalised", "accuracy", "accuracy_reason"]
    assert list(full.columns) == [*short.columns, *further]
    assert list(short.columns) == [
        "model", "recipe", "metric", "layer", "element", "depth", "relative", "relative_low", "relative_high", "estimate", "low",
        "high", "null", "best", "order", "n", "reason",
    ]  # fmt: skip
    pd.testing.assert_frame_equal(full[short.columns].drop(columns="reason"), short.drop(columns="reason"))
    # a reason explains what is shown, and M is not
    assert set(short.reason) == {""}
    assert full.reason.str.startswith("M = 0.01").all()


def test_distances_of_first_order_need_no_root(spread):
    first, second = row(result(*spread, order=1)), row(result(*spread, order=2))
    for column in ("relative", "relative_low", "relative_high"):
        assert first[column] == pytest.approx(second[column] ** 2, rel=1e-12)


def test_the_interval_of_e_is_over_images_and_that_of_relative_over_chains(spread):
    ds = result(*spread)
    found = row(ds)
    per_sample = ds.latent[0, 1].mean("element").values.astype(float)
    # 1.972 is the 97.5 % point of t with 199 degrees of freedom
    half = 1.97196 * per_sample.std(ddof=1) / np.sqrt(200)
    assert (found.low, found.high) == pytest.approx((found.estimate - half, found.estimate + half), abs=1e-6)
    pairs = ds.assign_coords(chain=("sample", np.arange(200) // 4))
    chained = row(pairs)
    assert (chained.low, chained.high) == (found.low, found.high)
    # ratios of sums over chains, one chain left out at a time (jackknife)
    sums = (pairs[["latent", "latent_null"]].isel(layer=1).mean("element") + 1).groupby("chain").sum()
    ratios = ((sums.sum() - sums).latent / (sums.sum() - sums).latent_null).values
    half = 2.00957 * np.sqrt(49 / 50 * ((ratios - ratios.mean()) ** 2).sum())
    expected = np.sqrt([found.relative**2 - half, found.relative**2 + half])
    assert (chained.relative_low, chained.relative_high) == pytest.approx(tuple(expected), abs=1e-4)
    # where chains are not known, every sample is one
    assert row(ds.assign_coords(chain=("sample", np.arange(200)))).equals(found)


def test_intervals_end_at_0():
    values = np.zeros((2, 2, 8))
    values[:, 1, 0] = 1.0
    found = row(result(values, np.ones((2, 2, 8)), best=0.0))
    assert found.relative_low == 0 < found.relative == 0.25 < found.relative_high


def test_estimate_and_null_are_judged_together():
    rng = np.random.default_rng(1)
    gap = rng.uniform(0.1, 1.0, 300)
    null = np.broadcast_to(-1 + gap, (2, 2, 300))
    values = -1 + 0.09 * (null + 1)
    found = row(result(values, null))
    assert found.high - found.low > 0.001
    assert (found.relative_low, found.relative_high) == pytest.approx((0.3, 0.3), abs=1e-5)


def test_an_estimate_below_the_best_value_counts_as_best_within_rounding():
    null = np.zeros((2, 2, 9))
    values = np.full((2, 2, 9), -1 - 9e-8)
    found = row(result(values, null, rounding=2e-7))
    assert (found.relative, found.relative_low, found.relative_high, found.reason) == (0, 0, 0, "")
    found = row(result(values, null, rounding=1e-9))
    assert np.isnan([found.relative, found.relative_low]).all()
    assert found.reason == "E lies 1.2e-07 below the best value -1, which rounding (1e-09) does not explain"


def with_round_trip(ds, deviation):
    """The same Dataset with a round trip that lies so far above the best value on average, and not at all under the identity."""
    values = ds.latent.copy(data=np.full(ds.latent.shape, 2 * deviation + ds.latent.attrs["best"], np.float32))
    values[:, :, 0] = ds.latent.attrs["best"]
    return ds.assign(latent_round_trip=values)


def test_the_round_trip_is_on_the_relative_scale(spread):
    ds = with_round_trip(result(spread[0], np.full((2, 2, 200), -0.2)), 0.2)
    assert row(ds).round_trip == pytest.approx(0.5, abs=1e-6)
    assert "round_trip" not in row(result(*spread))
    assert np.isnan(row(ds.drop_vars("latent_null")).round_trip)


def with_elements(curves, group):
    """A Dataset of sampled elements whose layers have these means, (layer, element)."""
    curves = np.asarray(curves)
    ds = result(np.repeat(curves[..., None], 3, axis=2), layers=range(len(curves)), elements=curves.shape[1], best=0.0)
    ds.element.attrs["sampled"] = "one from each part"
    return ds.assign_attrs(group=group)


def test_the_error_of_sampled_elements_is_that_of_second_differences():
    curve = np.random.default_rng(0).uniform(size=16)

    def error(values):
        around = [values[k - 2] - 2 * values[k - 1] + values[k] for k in range(len(values))]
        return np.sqrt(np.square(around).sum() / 6) / len(values)

    found = ek.summarise(with_elements([curve, 2 * curve], "SO(2)?n=16&seed=3")).element_error
    assert found.tolist() == pytest.approx([error(curve), 2 * error(curve)])
    # two circles of their own
    found = ek.summarise(with_elements([curve], "O(2)?n=8")).element_error.item()
    assert found == pytest.approx(np.hypot(error(curve[:8]), error(curve[8:])) / 2)
    # a torus: what varies in one direction alone is no error in second differences in both
    found = ek.summarise(with_elements([np.repeat(curve[:4], 4)], "T(2)?n=4")).element_error.item()
    assert found == pytest.approx(0, abs=1e-8)
    assert "element_error" not in ek.summarise(result(curve[None, :2, None], layers=["one"]))


@pytest.mark.parametrize("group", ["SO(2)?n=4", "SO(2)?n=16", "SO(2)?n=8&jitter=0", "SO(2)?n=4*flip", "turns"])
def test_other_samples_have_no_error_of_their_elements(group):
    found = ek.summarise(with_elements(np.ones((1, 4 if group == "SO(2)?n=4" else 8)), group))
    assert np.isnan(found.element_error.item())
    assert "a whole sample of SO(2), O(2) or T(2), of 8 parts or more" in found.reason.item()


def with_from_x(ds, shift=0.1):
    return ds.assign(latent_from_x=ds.latent + np.float32(shift), latent_from_x_null=ds.latent_null + np.float32(shift))


def test_what_stands_beside_a_metric_is_none():
    ds = with_round_trip(with_from_x(result(np.zeros((2, 2, 9)), np.zeros((2, 2, 9)), best=0.0)), 0.2)
    assert metrics_of(ds) == ["latent"]
    assert ek.summarise(ds).metric.unique().tolist() == ["latent"]
    one = ds.sel(model="a", layer="one", element="e", sample=3)
    for name in ("latent_from_x", "latent_from_x_null", "latent_round_trip"):
        assert validate(one)[name].dims == ("model", "layer", "element", "sample")
    assert validate(one).latent_kernel_order.dims == ("model", "layer")
    with pytest.raises(SchemaError, match="latent_from_x has dtype float64"):
        validate(ds.assign(latent_from_x=ds.latent.astype(float)))


def test_where_f_hat_is_f_the_deviation_from_the_unmoved_image_is_the_metric(spread):
    mixing, faithful = with_from_x(result(*spread)), result(*spread, model="b")
    for joined in (ek.concat([mixing, faithful]), ek.concat([faithful, mixing])):
        xr.testing.assert_equal(joined.latent_from_x.sel(model="a"), mixing.latent_from_x.sel(model="a"))
        xr.testing.assert_equal(joined.latent_from_x.sel(model="b"), faithful.latent.sel(model="b"))
        xr.testing.assert_equal(joined.latent_from_x_null.sel(model="b"), faithful.latent_null.sel(model="b"))


def test_a_null_gap_within_rounding_has_no_relative_value():
    ds = result(np.full((2, 2, 9), 0.0), np.full((2, 2, 9), 1e-8), best=0.0)
    found = row(ds)
    assert np.isnan(found.relative)
    assert "within rounding" in found.reason
    found = row(result(np.full((2, 2, 9), 0.0), np.full((2, 2, 9), 1e-6), best=0.0))
    assert found.relative == 0


def test_a_scale_of_the_output_is_the_length_of_the_scores():
    ds = result(np.zeros((1, 2, 9)), np.full((1, 2, 9), 3e-7), layers=("latent",), best=0.0, scale="latent_norm")
    names = ["latent", "latent_null", "latent_norm"]
    ds = ds.drop_vars("latent_pair_cosine").assign({name: ds[name].isel(layer=0, drop=True) for name in names})
    found = row(ds, layer="output")
    assert (found.scale, found.estimate, np.isnan(found.relative)) == (4, 0, True)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda ds: ds.drop_vars("latent_null"), "measured without a null, or it was left out"),
        (lambda ds: ds.assign(latent_null=ds.latent_null + np.float32(np.nan)), "no sample has a null"),
        (lambda ds: ds.assign(latent=ds.latent.assign_attrs(best=np.nan)), "the distance has no best value"),
        (lambda ds: ds.isel(sample=[0]), "one sample gives no interval"),
        (
            lambda ds: ds.assign_coords(chain=("sample", np.zeros(200, int))),
            "one chain of samples gives no interval of the relative value",
        ),
        (
            lambda ds: ds.assign(latent_pair_cosine=0.08 * ds.latent_pair_cosine),
            "M = 0.04 is not above 0.05, so E / M has no meaning",
        ),
    ],
)
def test_what_is_nan_has_its_reason_and_costs_nothing_else(spread, change, reason):
    found = row(change(result(*spread)))
    assert found.reason == reason
    assert np.isfinite(found.estimate)
    assert np.isnan(found.normalised) == ("M = " in reason)
    assert np.isnan(found.relative) == ("null" in reason or "best" in reason)
    assert np.isnan(found.relative_low) == ("M = " not in reason)
    assert np.isnan(found.low) == ("one sample" in reason)


def test_an_undefined_sample_costs_itself(spread):
    values, null = spread
    values[1, 1, 7] = np.nan
    found = row(result(values, null))
    assert found.estimate == pytest.approx(np.delete(values[1], 7, axis=1).mean(), abs=1e-6)
    assert found.n == 199
    assert found.reason == "1 of 200 samples have no value (7: not finite, all zero, masked or not measured)"
    assert np.isfinite([found.low, found.high, found.relative, found.relative_high]).all()


def test_a_layer_has_its_reason_until_its_bad_samples_are_dropped(spread):
    values, null = spread
    values[0] = values[1, 1, 7] = np.nan
    ds = result(values, null, reasons=["its maps have one pixel", "undefined for 1 of 200 samples"])
    assert (row(ds, "one").reason, row(ds, "one").n) == ("its maps have one pixel", 0)
    assert "1 of 200" in row(ds).reason
    assert row(ds.drop_sel(sample=7)).reason == ""
    both = ek.concat([result(null, null), ds.assign_coords(model=["b"])])
    assert ek.compare(both, "a").reason[0] == "b: its maps have one pixel"


def test_a_sample_without_a_null_costs_the_null_alone(spread):
    values, null = spread
    null[1, 0, [7, 8]] = np.nan
    found = row(result(values, null))
    left = np.delete(null[1], [7, 8], axis=1).mean()
    assert found.estimate == pytest.approx(values[1].mean(), abs=1e-6)
    assert found.null == pytest.approx(left, abs=1e-6)
    assert found.relative == pytest.approx(np.sqrt((values[1].mean() + 1) / (left + 1)), abs=1e-6)
    assert found.relative_low < found.relative < found.relative_high
    assert (found.n, found.reason) == (200, "")


def test_compare_is_paired_so_what_samples_share_cancels(spread):
    values, null = spread
    both = ek.concat([result(values, null, model="a"), result(values + 0.05, null, model="b")])
    found = ek.compare(both, "a").query("layer == 'latent'").iloc[0]
    assert found.difference == pytest.approx(0.05, abs=1e-6)
    assert found.low == pytest.approx(0.05, abs=1e-6)
    assert found.high == pytest.approx(0.05, abs=1e-6)
    relative = np.sqrt((values[1].mean() + np.array([1, 1.05])) / (null[1].mean() + 1))
    assert found.relative_difference == pytest.approx(relative[1] - relative[0], abs=1e-6)
    with pytest.raises(ValueError, match="no model 'c'"):
        ek.compare(both, "c")


def test_concat_joins_other_layers_with_the_reason(spread):
    values, null = spread
    joined = ek.concat(
        [result(values, null), result(values, null, model="b", layers=("two", "latent"))],
        recipe=["x", "y"],
        seed=[0, 1],
    )
    assert joined.layer.values.tolist() == ["one", "two", "latent"]
    assert np.isnan(joined.latent.sel(model="a", layer="two")).all()
    assert joined.latent_nan_reason.sel(model="a", layer="two").item() == "the model has no such layer"
    assert joined.latent.sel(model="b", layer="two").values == pytest.approx(values[0], abs=1e-6)
    assert joined.latent_nan_reason.sel(model="b", layer="two").item() == ""
    table = ek.summarise(joined)
    assert table[["model", "layer", "recipe", "seed"]].values.tolist() == [
        ["a", "one", "x", 0], ["a", "latent", "x", 0], ["b", "two", "y", 1], ["b", "latent", "y", 1],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "about", "message"),
    [
        (lambda ds: ds.assign_coords(model=["a"]), {}, "model labels repeat: a, a; give each"),
        (lambda ds: ds.assign_attrs(data="y"), {}, "a and b differ in data: x and y; measure both"),
        (lambda ds: ds.assign_attrs(null="within-class"), {}, "differ in null: None and within-class"),
        (lambda ds: ds.assign_attrs(seed=7), {}, "differ in seed"),
        (lambda ds: ds.drop_vars("latent_null"), {}, "not in all: latent_null"),
        (lambda ds: ds, {"recipe": "ab"}, "recipe= must list one value for each of 2 models, got 'ab'"),
        (lambda ds: ds, {"seed": [0]}, "one value for each of 2 models"),
        (lambda ds: ds, {"depth": [0, 1]}, "'depth' is the name of something"),
    ],
)
def test_concat_refuses_what_does_not_belong_together(spread, change, about, message):
    with pytest.raises(ValueError, match=message):
        ek.concat([result(*spread), change(result(*spread, model="b"))], **about)
    with pytest.raises(ValueError, match="at least one"):
        ek.concat([])


def test_validate_names_everything_that_is_wrong(spread):
    ds = result(*spread)
    assert validate(ds) is ds
    broken = ds.drop_vars("depth").assign_attrs(group=None)
    del broken.attrs["group"]
    broken["latent"] = broken.latent.transpose("sample", ...)
    del broken.latent.attrs["order"]
    with pytest.raises(
        SchemaError, match=r"'depth'.*'group'.*latent has no attribute 'order'; latent has dims"
    ) as error:
        validate(broken)
    assert "latent_null" not in str(error.value)
    with pytest.raises(SchemaError, match="upgrade eedkit"):
        validate(ds.assign_attrs(schema=SCHEMA + 1))
    with pytest.raises(SchemaError, match="no metric"):
        validate(ds.drop_vars(["latent", "latent_null"]))
    with pytest.raises(SchemaError, match="float64, not float32"):
        validate(ds.assign(latent=ds.latent.astype("float64")))


def test_compare_takes_the_samples_that_both_have(spread):
    values, null = spread
    shift = np.linspace(0, 0.2, 200)
    one, other = values.copy(), values + shift
    one[1, 0, [3, 4]], other[1, 1, [4, 150]] = np.nan, np.nan
    null_of_one = null.copy()
    null_of_one[1, 0, 9] = np.nan
    both = ek.concat([result(one, null_of_one), result(other, null, model="b")])
    found = ek.compare(both, "a").set_index("layer").loc["latent"]
    kept = np.delete(np.arange(200), [3, 4, 150])
    assert found.n == 197
    why = "not finite, all zero, masked or not measured"
    assert found.reason == (
        f"b: 2 of 200 samples have no value (4, 150: {why}); a: 2 of 200 samples have no value (3, 4: {why})"
    )
    assert found.difference == pytest.approx(shift[kept].mean(), abs=1e-6)
    assert found.low < found.difference < found.high
    value, kept_null = values[1][:, kept].mean(), null[1][:, kept].mean()
    null_of_one = np.delete(null[1], [3, 4, 9, 150], axis=1).mean()
    relative = np.sqrt([(value + shift[kept].mean() + 1) / (kept_null + 1), (value + 1) / (null_of_one + 1)])
    assert found.relative_difference == pytest.approx(relative[0] - relative[1], abs=1e-6)
    assert found.relative_low < found.relative_difference < found.relative_high


def test_compare_says_why_there_is_no_relative_difference(spread):
    values, null = spread
    both = ek.concat([result(values, null), result(values, np.full_like(null, -1), model="b")])
    found = ek.compare(both, "a").iloc[0]
    assert np.isnan([found.relative_difference, found.relative_low]).all()
    assert found.reason.startswith("the null gap 0 lies within rounding (1e-07)")
    assert "chain" not in found.reason
    assert found.difference == 0


def test_compare_takes_chains_for_the_unit_of_relative_values(spread):
    values, null = spread
    of_chain = np.repeat(np.random.default_rng(3).normal(0, 0.1, 50), 4)
    pair = [result(values, null), result(values + of_chain, null, model="b")]
    chains = [ds.assign_coords(chain=("sample", np.arange(200) // 4)) for ds in pair]
    singly, whole = (ek.compare(ek.concat(some), "a").iloc[0] for some in (pair, chains))
    # four equal samples of a chain are one: the interval is √4 times as wide
    widths = [found.relative_high - found.relative_low for found in (whole, singly)]
    assert widths[0] / widths[1] == pytest.approx(2, abs=0.2)
    assert (whole.low, whole.high) == (singly.low, singly.high)


def test_what_is_no_result_is_refused_by_name(spread):
    with pytest.raises(TypeError, match=r"expected a Dataset as measure\(\) gives it, got int"):
        ek.summarise(42)
    with pytest.raises(SchemaError, match=r"no labelled dimension 'layer' \(an average over it"):
        ek.summarise(result(*spread).sel(layer="latent", drop=True))
    with pytest.raises(SchemaError, match="nothing on 'sample'"):
        ek.summarise(result(*spread).isel(sample=slice(0)))


def test_a_dataset_of_schema_2_is_refused_with_the_reason(spread):
    old = result(*spread).assign_attrs(schema=2)
    for use in (lambda: ek.summarise(old), lambda: ek.concat([old]), lambda: ek.compare(old, "a")):
        with pytest.raises(SchemaError, match=r"schema 2, .* relative values on another scale .* measure again"):
            use()


@pytest.fixture
def lazy(spread):
    """Three models as `ek.open` gives those of a study: values read in parts when used, coordinates in memory."""
    rng, labels = np.random.default_rng(5), np.arange(200) % 4
    datasets = [
        result(spread[0] + shift, spread[1], model=name).assign_coords(
            chain=("sample", rng.permutation(200) // 4), label=("sample", labels)
        )
        for name, shift in (("a", 0.0), ("b", 0.05), ("c", 0.1))
    ]
    loaded = ek.concat([ds.assign_coords(chain=datasets[0].chain) for ds in datasets], seed=[0, 1, 2])
    return loaded, loaded.assign({name: v.variable.chunk(sample=64, model=1) for name, v in loaded.data_vars.items()})


def test_tables_of_lazy_results_are_those_of_loaded_ones(lazy):
    loaded, unread = lazy
    assert unread.chunksizes["sample"] == (64, 64, 64, 8)
    pd.testing.assert_frame_equal(ek.summarise(unread), ek.summarise(loaded), check_exact=True)
    pd.testing.assert_frame_equal(ek.compare(unread, "b"), ek.compare(loaded, "b"), check_exact=True)
    assert unread.latent.chunks is not None


def test_values_are_read_model_by_model_and_once(lazy, monkeypatch):
    from eedkit.results import summary

    _, unread = lazy
    monkeypatch.setattr(summary, "SMALL", 0)
    chunks, rows, of_metric = [], [], summary._summary

    def read(chunk):
        chunks.append(chunk.size)
        return chunk

    def watched(variable):
        meta = np.empty((0,) * variable.ndim, variable.dtype)
        return variable.copy(data=variable.data.map_blocks(read, dtype=variable.dtype, meta=meta))

    # by element and image alone, so never read
    unread = unread.assign(latent_from_x=unread.latent + 1, latent_from_x_null=unread.latent + 2)
    seen = unread.assign({name: watched(v.variable) for name, v in unread.data_vars.items()})
    monkeypatch.setattr(summary, "_summary", lambda *given, **o: (rows.append(sum(chunks)), of_metric(*given, **o))[1])
    chunks.clear()
    ek.summarise(seen)
    size = sum(v.size for name, v in unread.isel(model=0).data_vars.items() if "from_x" not in name)
    assert rows == [size, 2 * size, 3 * size]


def test_a_tree_gives_the_tables_of_its_datasets_below_each_other(spread):
    one, other = result(*spread), result(*(part + 0.01 for part in spread), model="b")
    tree = xr.DataTree.from_dict({"digits/test?n=9/C2": one, "letters/C2": other})
    found = ek.summarise(tree)
    assert found.group.unique().tolist() == ["C2"]
    for data, ds in {"digits/test?n=9": one, "letters": other}.items():
        alone = ek.summarise(ds)
        rows = found[found.data == data][alone.columns].reset_index(drop=True)
        pd.testing.assert_frame_equal(rows, pd.DataFrame(alone))


@pytest.fixture
def predicted(spread):
    """200 images labelled 1, of which the model of two classes gets the first fifty right; moved ones all."""
    prediction = np.ones((1, 2, 200), dtype=np.int32)
    prediction[0, 0, 50:] = 0
    ds = result(*spread).assign(prediction=(("model", "element", "sample"), prediction))
    return ds.assign_coords(classes=("model", [2]), label=("sample", np.ones(200, dtype=int)))


def labelled(ds, labels, **attrs):
    return ds.assign_coords(label=("sample", labels, attrs))


def test_accuracy_is_of_the_unmoved_images_that_have_a_label(predicted):
    found = row(predicted)
    assert (found.accuracy, found.accuracy_reason) == (0.25, "")
    assert "classes" not in found
    predicted.prediction[0, 0, 50:60] = -1
    labels = np.ones(200, dtype=int)
    labels[100:] = -1
    # of the first hundred, fifty are right, ten have no prediction
    assert row(labelled(predicted, labels)).accuracy == pytest.approx(50 / 90)
    named = predicted.assign_coords(element=("element", np.array(["1", "s"], object), {"identity": "1"}))
    assert row(named.isel(element=[1, 0])).accuracy == row(predicted).accuracy


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda ds: ds.drop_vars("label"), "the images have no labels"),
        (lambda ds: ds[["latent"]], "there are no predictions"),
        (lambda ds: ds.assign_coords(classes=("model", [0])), "there are no predictions"),
        (lambda ds: labelled(ds, np.array(["cat"] * 200, dtype=object)), "the labels are names or fractions"),
        (lambda ds: labelled(ds, np.full(200, 0.5)), "the labels are names or fractions"),
        (lambda ds: labelled(ds, np.arange(200) % 3), "the labels run from 0 to 2, the model's classes from 0 to 1"),
        (lambda ds: labelled(ds, np.arange(200) % 2 - 2), "the labels run from -2 to -2"),
        (
            lambda ds: labelled(ds, ds.label.values, class_names=json.dumps(["a"] * 12)),
            "of 12 classes, the model's scores of 2",
        ),
        (lambda ds: labelled(ds, np.full(200, -1)), "no image has both a label and a prediction"),
        (lambda ds: ds.sel(element=["r180"]), "the identity 'e' is not among the elements"),
    ],
)
def test_accuracy_without_a_meaning_is_nan_and_says_why(predicted, change, reason):
    found = row(change(predicted))
    assert np.isnan(found.accuracy)
    assert reason in found.accuracy_reason
    assert np.isfinite(found.estimate)
    assert reason not in found.reason


class Torn:
    """300 images, of which one cannot be read."""

    images = torch.rand(300, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    classes = ("ape", "bee", "cat")

    def __len__(self):
        return 300

    def __getitem__(self, i):
        if i == 7:
            raise OSError("torn file")
        return self.images[i], i % 3


@pytest.fixture(scope="module")
def torn():
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(100, 3)) for _ in "ab"]
    metrics = ("channelwise", "latent", "latent_euclidean", "softmax")
    with pytest.warns(UserWarning, match="1 of 300 samples have no value: number 7: OSError: torn file"):
        measured = [
            ek.measure(net, Torn(), group="C4", metrics=metrics, name=name, progress=False)
            for name, net in zip("ab", nets, strict=True)
        ]
    return ek.concat(measured)


UNREAD = "1 of 300 samples have no value (number 7: OSError: torn file)"


def test_an_unreadable_image_costs_itself_in_every_row(torn):
    for table in (ek.summarise(torn), ek.compare(torn, "a")):
        with_values = table[table.n > 0]
        assert set(with_values.n) == {299}
        with_values = with_values[with_values.layer != ""]
        assert set(with_values.reason) == {UNREAD}
        columns = ["estimate", "null", "low", "relative", "relative_low"] if "null" in table else ["difference", "low"]
        assert np.isfinite(with_values[columns]).all(axis=None)
        assert not table[table.n == 0].reason.str.contains("of 300").any()


def test_without_the_unreadable_image_no_reason_is_left(torn):
    whole = ek.summarise(torn, full=True).query("n > 0")
    for kept in (torn.drop_sel(sample=7), torn.dropna("sample", subset=["latent"])):
        found = ek.summarise(kept, full=True).query("n > 0")
        assert set(found.reason) == {""}
        numbers = ["estimate", "null", "relative", "pair_cosine", "normalised", "accuracy"]
        np.testing.assert_allclose(found[numbers], whole[numbers])


def test_a_mask_over_samples_leaves_the_estimates_of_the_rest(torn):
    part = torn.isel(sample=np.flatnonzero(torn.label == 1))
    for masked in (torn.where(torn.label == 1), torn.where(torn.label == 1, drop=True)):
        found, wanted = (ek.summarise(ds, full=True) for ds in (masked, part))
        numbers = ["estimate", "null", "relative", "normalised", "accuracy", "n"]
        np.testing.assert_allclose(found[numbers].astype(float), wanted[numbers].astype(float))
    found = ek.summarise(torn.where(torn.label == 1), full=True).query("metric == 'latent'").reason.iloc[0]
    assert found.startswith("201 of 300 samples have no value (number 7: OSError: torn file; 0, 2, 3 and 197 more: not")
    assert found.endswith("M was taken over 300 samples, not these 99")


@pytest.mark.parametrize(
    ("dim", "label"), [("model", "a"), ("layer", "0"), ("layer", "latent"), ("element", "r90"), ("sample", 3)]
)
def test_a_scalar_selection_is_summarised_like_a_list(torn, dim, label):
    pd.testing.assert_frame_equal(ek.summarise(torn.sel({dim: label})), ek.summarise(torn.sel({dim: [label]})))
