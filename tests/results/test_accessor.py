"""A Dataset says first what was measured, above the table of what came out."""

import pytest
import xarray as xr
from made import whole

import eedkit as ek


@pytest.fixture
def joined():
    """Two models of which the second has a layer of its own; 10 samples of a study's data set."""
    other = whole(layers=("two", "latent"), model="n", weights="v", seed=1)
    return ek.concat([whole(), other]).assign_attrs(data="digits/test?n=10 [0abc]")


def test_the_first_line_counts_what_was_measured_and_the_table_follows(joined):
    first, *table = repr(joined.eed).splitlines()
    assert first == "2 models × 3 layers × 2 elements of C2 × 10 samples of digits/test?n=10"
    assert table == repr(ek.summarise(joined)).splitlines()


def test_scalars_are_one_of_their_kind(joined):
    first, *_ = repr(joined.sel(model="m", layer="one").eed).splitlines()
    assert first == "1 model × 1 layer × 2 elements of C2 × 10 samples of digits/test?n=10"


def test_a_lazy_dataset_is_not_read(joined, monkeypatch):
    pytest.importorskip("dask")
    monkeypatch.setattr("eedkit.results.accessor.summarise", lambda ds: pytest.fail("read"))
    assert repr(joined.chunk().eed).splitlines()[1] == "not read yet: .load() reads the values"
    assert "not read yet" in joined.chunk().eed._repr_html_()


def test_jupyter_shows_the_table_and_the_dataset_below(joined):
    joined = joined.assign_attrs(group="<b>C2").assign_coords(model=["<i>", "n"])
    page = joined.eed._repr_html_()
    assert page.startswith("<p><strong>2 models × 3 layers × 2 elements of &lt;b&gt;C2 × 10 samples")
    assert "<td>&lt;i&gt;</td>" in page.partition("</table>")[0]
    assert page.endswith(joined._repr_html_()[-200:])


def test_showing_other_datasets_raises_nothing():
    ds = xr.Dataset()
    assert repr(ds.eed).startswith("no results to describe: the Dataset was written with schema 0")
    assert "no results to describe" in ds.eed._repr_html_()
