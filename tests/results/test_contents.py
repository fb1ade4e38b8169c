"""A Dataset says first what was measured and what is missing."""

import numpy as np
import pytest
import xarray as xr
from made import whole

import eedkit as ek
from eedkit.results.contents import describe


@pytest.fixture
def joined():
    """Two models of which the second has a layer of its own; 10 samples of a study's data set."""
    other = whole(layers=("two", "latent"), model="n", weights="v", seed=1)
    return ek.concat([whole(), other]).assign_attrs(data="digits/test?n=10 [0abc]")


def test_the_first_line_counts_what_was_measured(joined):
    first, metrics, complete = describe(joined.drop_vars("prediction"))
    assert first == "2 models × 3 layers × 2 elements of C2 × 10 samples of digits/test?n=10"
    assert metrics == "metrics: latent; with a null"
    # that a model has no such layer is no gap
    assert complete == "complete: every value is there"


def predicted(names=None, *, elements=("e", "r90"), of_moved=(0, 1, 1, 1), n=4):
    """A Dataset of four images of the classes 0 0 1 1, of which the last is taken for 0, and other predictions moved."""
    ds = whole(n).drop_vars("prediction").isel(element=[0] * len(elements))
    ds = ds.assign_coords(element=list(elements), label=("sample", [0, 0, 1, 1]))
    rows = [[0, 0, 1, 0], *([of_moved] * (len(elements) - 1))]
    ds = ds.assign(prediction=(("model", "element", "sample"), np.array([rows], dtype=np.int32)))
    if names:
        ds.label.attrs["class_names"] = names
    return ds


def test_accuracy_by_element_comes_before_the_metrics():
    assert describe(predicted())[1:5] == [
        "element  accuracy  same class as unmoved",
        "e            0.75",
        "r90          0.75                   0.50",
        "two different images get the same class in 0.50 of all pairs",
    ]


def test_that_the_class_stays_says_nothing_where_every_image_gets_one():
    ds = predicted('["cat", "dog"]')
    one_class = ds.assign(prediction=ds.prediction * 0 + 1)
    assert describe(one_class)[4] == "every unmoved image gets class dog, so that the class stays says nothing"


def test_without_labels_there_is_no_accuracy_and_without_predictions_no_table():
    lines = describe(predicted().drop_vars("label"))
    assert lines[1:3] == ["element  same class as unmoved", "r90                       0.50"]
    assert lines[4] == "no accuracy: the images have no labels"
    assert describe(predicted().drop_vars("prediction"))[1].startswith("metrics:")


def test_several_models_have_a_line_each(joined):
    same = joined.assign(prediction=(joined.prediction * 0 + np.arange(10) // 5).astype(np.int32))
    lines = describe(same.assign_coords(label=("sample", np.arange(10) // 5)))[1:3]
    ends = "accuracy 1.00 upright, 1.00 moved; same class as unmoved 1.00 (two different images: 0.44)"
    assert lines == [f"m: {ends}", f"n: {ends}"]


def test_the_table_of_a_large_group_is_cut_to_the_lowest():
    elements = ["e", *(f"r{k}" for k in range(1, 30))]
    ds = predicted(elements=elements)
    ds.prediction[0, 17] = np.array([1, 1, 0, 0])
    lines = describe(ds)
    assert lines[3] == "r17                0.00                   0.25"
    assert lines[14] == f"mean of moved      {(28 * 0.75) / 29:.2f}                   {(28 * 0.5 + 0.25) / 29:.2f}"
    assert lines[15] == "the 11 lowest of 29 moved"
    assert max(map(len, lines)) <= 80


def test_scalars_are_one_of_their_kind(joined):
    first, *_ = describe(joined.sel(model="m", layer="one"))
    assert first == "1 model × 1 layer × 2 elements of C2 × 10 samples of digits/test?n=10"


def test_gaps_are_counted_with_their_reasons(joined):
    joined.latent.loc[{"model": "m", "layer": "one"}] = np.nan
    joined.latent.loc[{"model": "n", "layer": "latent", "sample": joined.sample[3]}] = np.nan
    joined.latent_nan_reason.loc[{"model": "m", "layer": "one"}] = "its maps have one pixel"
    assert describe(joined)[-3:] == [
        "2 of 4 (model, metric, layer) lack values:",
        "  1 × latent: its maps have one pixel",
        "  1 × latent: not finite, masked or not measured",
    ]


def test_a_missing_null_is_said(joined):
    assert describe(joined.drop_vars("latent_null"))[-2] == "metrics: latent; without a null"


def test_a_lazy_dataset_is_not_read(joined):
    pytest.importorskip("dask")
    assert describe(joined.chunk())[2] == "not read yet: .load() reads the values and tells what is missing"


def test_the_accessor_shows_it_and_the_dataset_below(joined):
    joined = joined.assign_attrs(group="<b>C2")
    assert repr(joined.eed).splitlines() == describe(joined)
    page = joined.eed._repr_html_()
    assert page.startswith("<p><strong>2 models × 3 layers × 2 elements of &lt;b&gt;C2 × 10 samples")
    assert page.endswith(joined._repr_html_()[-200:])


def test_showing_other_datasets_raises_nothing():
    assert repr(xr.Dataset().eed).startswith("no results to describe: the Dataset was written with schema 0")
