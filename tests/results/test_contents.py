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
    first, metrics, complete = describe(joined)
    assert first == "2 models × 3 layers × 2 elements of C2 × 10 samples of digits/test?n=10"
    assert metrics == "metrics: latent; with a null"
    # that a model has no such layer is no gap
    assert complete == "complete: every value is there"


def test_scalars_are_one_of_their_kind(joined):
    (first, *_) = describe(joined.sel(model="m", layer="one"))
    assert first == "1 model × 1 layer × 2 elements of C2 × 10 samples of digits/test?n=10"


def test_gaps_are_counted_with_their_reasons(joined):
    joined.latent.loc[{"model": "m", "layer": "one"}] = np.nan
    joined.latent.loc[{"model": "n", "layer": "latent", "sample": joined.sample[3]}] = np.nan
    joined.latent_nan_reason.loc[{"model": "m", "layer": "one"}] = "its maps have one pixel"
    assert describe(joined)[2:] == [
        "2 of 4 (model, metric, layer) lack values:",
        "  1 × latent: its maps have one pixel",
        "  1 × latent: not finite, masked or not measured",
    ]


def test_a_missing_null_is_said(joined):
    assert describe(joined.drop_vars("latent_null"))[1] == "metrics: latent; without a null"


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
