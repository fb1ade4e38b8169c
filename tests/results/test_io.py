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
        io.to_zarr(measured, tmp_path / "a.zarr", overwrite=True)
    assert "softmax" in ek.open(tmp_path / "a.zarr")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


def test_what_is_not_ours_is_refused(measured, tmp_path):
    with pytest.raises(FileNotFoundError, match="no store at"):
        ek.open(tmp_path / "nothing.zarr")
    with pytest.raises(schema.SchemaError):
        io.to_zarr(measured.drop_vars("angle"), tmp_path / "a.zarr")
    assert not list(tmp_path.iterdir())
    measured.assign_attrs(schema=schema.SCHEMA + 1).to_zarr(tmp_path / "new.zarr", consolidated=False)
    with pytest.raises(schema.SchemaError, match="upgrade"):
        ek.open(tmp_path / "new.zarr")


def test_one_dataset_of_schema_2_is_refused_with_the_reason(measured, tmp_path):
    measured.assign_attrs(schema=2).to_zarr(tmp_path / "old.zarr", consolidated=False)
    with pytest.raises(schema.SchemaError, match=r"schema 2, .* relative values on another scale .* measure again"):
        ek.open(tmp_path / "old.zarr")
    with pytest.raises(schema.SchemaError, match="schema 2"):
        measured.assign_attrs(schema=2).eed.to_zarr(tmp_path / "again.zarr")
    assert not (tmp_path / "again.zarr").exists()


def test_a_folder_that_is_no_store_is_never_overwritten(measured, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("years")
    for path in (tmp_path / "work", tmp_path / "work" / "thesis.txt"):
        with pytest.raises(FileExistsError, match="no store of eedkit"):
            measured.eed.to_zarr(path, overwrite=True)
    with pytest.raises(StoreError, match="no store of a study"):
        ek.open(tmp_path / "work")
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
        io.to_zarr(measured.isel(model=[0]), tmp_path / "a.zarr", overwrite=True)
    assert ek.open(tmp_path / "a.zarr").sizes["model"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


def test_an_array_is_no_store_of_results(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", shape=(3,), dtype="f4")
    with pytest.raises(schema.SchemaError, match=r"a\.zarr"):
        ek.open(tmp_path / "a.zarr")


def test_a_study_of_an_earlier_eedkit_is_refused(tmp_path):
    zarr.open_group(tmp_path / "a.zarr", mode="w", attributes={"eedkit": "study", "schema": 2})
    with pytest.raises(schema.SchemaError, match="an earlier eedkit wrote; run it again"):
        ek.open(tmp_path / "a.zarr")


def test_one_dataset_is_opened_from_wherever_fsspec_finds_it(measured, tmp_path):
    measured.eed.to_zarr(tmp_path / "a.zarr")
    xr.testing.assert_identical(ek.open(f"file://{tmp_path}/a.zarr").load(), measured)


@pytest.mark.parametrize("name", ["a {b}.zarr", "ä%20#?[0]*.zarr"])
def test_paths_may_hold_what_they_like(measured, tmp_path, name):
    measured.eed.to_zarr(tmp_path / name)
    xr.testing.assert_identical(ek.open(tmp_path / name).load(), measured)
