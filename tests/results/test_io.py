"""What is saved comes back identical, and a failed write leaves nothing and loses nothing."""

import warnings

import pytest
import torch
import xarray as xr
import zarr

import eedkit as ek
from eedkit.results import io, schema
from eedkit.study.files import StoreError


@pytest.fixture(scope="module")
def measured():
    torch.manual_seed(0)
    nets = [torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(18, 3)) for _ in "ab"]
    images, labels = torch.rand(6, 1, 5, 5), list("xyzxyz")
    metrics = ["channelwise", "latent", "latent_euclidean", "softmax"]
    made = (
        ek.measure(net, images, group="C4", labels=labels, metrics=metrics, name=name, progress=False)
        for name, net in zip("ab", nets, strict=True)
    )
    return ek.concat(made, recipe=["plain", "augmented"], seed=[0, 0])


def test_zarr_gives_back_the_same_dataset_without_warnings(measured, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measured.eed.to_zarr(tmp_path / "runs" / "a.zarr")
        found = ek.open(tmp_path / "runs" / "a.zarr")
        assert not found.latent.variable._in_memory
    xr.testing.assert_identical(found.load(), measured)
    xr.testing.assert_identical(ek.open(f"file://{tmp_path}/runs/a.zarr").load(), measured)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["a.zarr"]


def test_an_existing_store_is_kept_unless_told_otherwise(measured, tmp_path):
    measured.eed.to_zarr(tmp_path / "a.zarr")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        measured.isel(model=[0]).eed.to_zarr(tmp_path / "a.zarr")
    assert ek.open(tmp_path / "a.zarr").sizes["model"] == 2
    measured.isel(model=[0]).eed.to_zarr(tmp_path / "a.zarr", overwrite=True)
    assert ek.open(tmp_path / "a.zarr").sizes["model"] == 1


def test_a_folder_that_is_no_store_is_never_overwritten(measured, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("years")
    for path in (tmp_path / "work", tmp_path / "work" / "thesis.txt"):
        with pytest.raises(FileExistsError, match="no store of eedkit"):
            measured.eed.to_zarr(path, overwrite=True)
    with pytest.raises(StoreError, match="no store of a study"):
        ek.open(tmp_path / "work")
    assert (tmp_path / "work" / "thesis.txt").read_text() == "years"


@pytest.mark.parametrize("name", ["a {b}.zarr", "ä%20#?[0]*.zarr"])
def test_paths_may_hold_what_they_like(measured, tmp_path, name):
    measured.eed.to_zarr(tmp_path / name)
    xr.testing.assert_identical(ek.open(tmp_path / name).load(), measured)


@pytest.mark.parametrize("interrupted", ["to_zarr", "rename"])
def test_an_interrupted_write_leaves_the_old_store_and_no_rest(measured, tmp_path, monkeypatch, interrupted):
    measured.eed.to_zarr(tmp_path / "a.zarr")
    of = xr.Dataset if interrupted == "to_zarr" else type(tmp_path)
    whole = getattr(of, interrupted)

    def stops(self, path, **options):
        if interrupted == "to_zarr" or self.suffix == ".partial":
            raise KeyboardInterrupt
        return whole(self, path, **options)

    monkeypatch.setattr(of, interrupted, stops)
    with pytest.raises(KeyboardInterrupt):
        io.to_zarr(measured.isel(model=[0]), tmp_path / "a.zarr", overwrite=True)
    assert ek.open(tmp_path / "a.zarr").sizes["model"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda path, _: None, FileNotFoundError, "no store at"),
        (lambda path, ds: io.to_zarr(ds.drop_vars("angle"), path), schema.SchemaError, "no coordinate 'angle'"),
        (
            lambda path, ds: ds.assign_attrs(schema=schema.SCHEMA + 1).to_zarr(path, consolidated=False),
            schema.SchemaError,
            "upgrade",
        ),
        (lambda path, _: zarr.create_array(path, shape=(3,), dtype="f4"), schema.SchemaError, r"a\.zarr"),
        (
            lambda path, _: zarr.open_group(path, mode="w", attributes={"eedkit": "study", "schema": 2}),
            schema.SchemaError,
            "an earlier eedkit wrote; run it again",
        ),
    ],
)
def test_what_is_not_ours_is_refused(measured, tmp_path, make, error, message):
    def opened():
        make(tmp_path / "a.zarr", measured)
        return ek.open(tmp_path / "a.zarr")

    with pytest.raises(error, match=message):
        opened()
