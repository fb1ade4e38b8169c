"""What is saved comes back identical, and a failed write leaves nothing and loses nothing."""

import warnings

import pytest
import torch
import xarray as xr

import eedkit as ek
from eedkit.results import schema, store


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
    xr.testing.assert_identical(found.load(), measured)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["a.zarr"]


def test_opening_reads_no_values_yet(measured, tmp_path):
    measured.eed.to_zarr(tmp_path / "a.zarr")
    assert not ek.open(tmp_path / "a.zarr").latent.variable._in_memory


def test_an_existing_store_is_kept_unless_told_otherwise(measured, tmp_path):
    measured.eed.to_zarr(tmp_path / "a.zarr")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        measured.isel(model=[0]).eed.to_zarr(tmp_path / "a.zarr")
    assert ek.open(tmp_path / "a.zarr").sizes["model"] == 2
    measured.isel(model=[0]).eed.to_zarr(tmp_path / "a.zarr", overwrite=True)
    assert ek.open(tmp_path / "a.zarr").sizes["model"] == 1


def test_an_interrupted_write_leaves_the_old_store_and_no_rest(measured, tmp_path, monkeypatch):
    measured.eed.to_zarr(tmp_path / "a.zarr")
    write = xr.Dataset.to_zarr

    def interrupted(self, path, **options):
        write(self.drop_vars("softmax"), path, **{**options, "encoding": {}})
        raise KeyboardInterrupt

    monkeypatch.setattr(xr.Dataset, "to_zarr", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.to_zarr(measured, tmp_path / "a.zarr", overwrite=True)
    assert "softmax" in ek.open(tmp_path / "a.zarr")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


def test_what_is_not_ours_is_refused(measured, tmp_path):
    with pytest.raises(FileNotFoundError, match="no store at"):
        ek.open(tmp_path / "nothing.zarr")
    with pytest.raises(schema.SchemaError):
        store.to_zarr(measured.drop_vars("angle"), tmp_path / "a.zarr")
    assert not list(tmp_path.iterdir())
    measured.assign_attrs(schema=schema.SCHEMA + 1).to_zarr(tmp_path / "new.zarr", consolidated=False)
    with pytest.raises(schema.SchemaError, match="upgrade"):
        ek.open(tmp_path / "new.zarr")


def test_a_folder_that_is_no_store_is_never_overwritten(measured, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("years")
    for path in (tmp_path / "work", tmp_path / "work" / "thesis.txt"):
        with pytest.raises(FileExistsError, match="no store of eedkit"):
            measured.eed.to_zarr(path, overwrite=True)
        with pytest.raises(schema.SchemaError, match="no Zarr store"):
            ek.open(path)
    assert (tmp_path / "work" / "thesis.txt").read_text() == "years"


def test_an_interruption_between_old_and_new_keeps_the_old(measured, tmp_path, monkeypatch):
    measured.eed.to_zarr(tmp_path / "a.zarr")
    rename = type(tmp_path).rename

    def interrupted(self, target):
        if self.suffix == ".partial":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(type(tmp_path), "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.to_zarr(measured.isel(model=[0]), tmp_path / "a.zarr", overwrite=True)
    assert ek.open(tmp_path / "a.zarr").sizes["model"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]
