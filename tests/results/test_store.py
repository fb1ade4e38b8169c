"""What is saved comes back identical, and a failed write leaves nothing and loses nothing."""

import json
import pickle
import shutil
import warnings
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from zarr.storage import LocalStore

import eedkit as ek
from eedkit.probe.measure import Options, measure_block
from eedkit.probe.samples import read_order
from eedkit.results import cells, schema, store
from eedkit.results.cells import Cell
from eedkit.results.disk import StoreError


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


def test_one_dataset_of_schema_1_is_refused_with_the_reason(measured, tmp_path):
    measured.assign_attrs(schema=1).to_zarr(tmp_path / "old.zarr", consolidated=False)
    with pytest.raises(schema.SchemaError, match=r"schema 1, whose nulls mean something else .* measure again"):
        ek.open(tmp_path / "old.zarr")
    with pytest.raises(schema.SchemaError, match="schema 1"):
        measured.assign_attrs(schema=1).eed.to_zarr(tmp_path / "again.zarr")
    assert not (tmp_path / "again.zarr").exists()


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


class Two(torch.nn.Module):
    """Scores of three classes, or a single number, which is no class score."""

    def __init__(self, seed, classes=3):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.maps, self.head = torch.nn.Conv2d(1, 2, 3), torch.nn.Linear(18, classes)

    def forward(self, x):
        return self.head(self.maps(x).flatten(1))


IMAGES = torch.rand(300, 1, 5, 5, generator=torch.Generator().manual_seed(3))
LABELS = [f"klasse {i % 3}" for i in range(300)]
OPTIONS = {"metrics": ("channelwise", "latent", "softmax"), "layers": ["maps"]}


def write_cell(path, data, group, model, net, *, blocks=2, **options):
    """A cell of 300 images in two blocks, of which the first so many are written."""
    cells.create(str(path))
    cell = Cell(str(path), data, group, model)
    cell.begin({"data": data, "about": {"seed": len(model)}}, [(0, 256), (256, 300)])
    order = read_order(300, 0)
    samples = xr.Dataset(coords={"sample": order, "label": ("sample", np.array(LABELS, dtype=object)[order]), "chain": ("sample", np.arange(300) // 4)})  # fmt: skip
    for block, positions in enumerate([range(256), range(256, 300)][:blocks]):
        asked = Options(group, **{"device": "cpu"} | OPTIONS | options)
        cell.write(block, *measure_block(net, IMAGES, asked, places=positions, name=model, labels=LABELS), samples)
    return cell


def test_a_study_of_schema_1_is_refused_with_the_reason(study):
    root = json.loads((study / "zarr.json").read_text())
    root["attributes"]["schema"] = 1
    (study / "zarr.json").write_text(json.dumps(root))
    for use in (ek.open, cells.check, cells.create):
        with pytest.raises(schema.SchemaError, match=rf"{study} was written with schema 1, .* measure again"):
            use(str(study))


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Two data sets, two groups, two models."""
    path = tmp_path_factory.mktemp("study") / "a.zarr"
    for data in ("digits/test", "/home/me/faces"):
        for group in ("C4", "flip"):
            for model in ("a", "bb"):
                write_cell(path, data, group, model, Two(len(model)))
    return path


@pytest.fixture
def study(several, tmp_path):
    """A copy, to be harmed."""
    return Path(shutil.copytree(several, tmp_path / "a.zarr"))


@pytest.fixture
def reads(monkeypatch):
    """Every chunk of values that is read from here on."""
    keys, get = [], LocalStore.get

    async def noted(self, key, *arguments, **options):
        keys.append(key)
        return await get(self, key, *arguments, **options)

    monkeypatch.setattr(LocalStore, "get", noted)
    big = ("channelwise", "latent", "softmax", "prediction", "confidence")
    return lambda: [k for k in keys if any(f"/{n}/c/" in k or f"/{n}_null/c/" in k for n in big)]


def single(path, data="digits/test", group="C4", **options):
    return ek.open(path, data=data, group=group, **options)


def test_few_values_that_were_verified_stay_in_memory_and_are_the_same(several, monkeypatch):
    kept = single(several)
    assert all(v.chunks is None for v in kept.data_vars.values())
    monkeypatch.setattr(store, "KEPT", 0)
    xr.testing.assert_identical(kept, single(several).load())


def test_values_of_a_study_wait_and_coordinates_are_there(several, monkeypatch):
    monkeypatch.setattr(store, "KEPT", 0)
    ds = single(several)
    assert {name for name, v in ds.data_vars.items() if "sample" in v.dims and v.chunks is None} == set()
    assert [name for name, c in ds.coords.items() if c.chunks is not None] == []
    means = ds.latent.sel(layer="latent", element="r90").groupby("label").mean()
    np.testing.assert_allclose(
        means, ds.load().latent.sel(layer="latent", element="r90").groupby("label").mean(), rtol=1e-5
    )


def test_a_study_gives_what_measure_gives(several):
    wanted = ek.concat(
        [ek.measure(Two(len(m)), IMAGES, group="C4", labels=LABELS, name=m, progress=False, **OPTIONS) for m in ("a", "bb")],
        seed=[1, 2],
    )  # fmt: skip
    found = single(several)
    for name in wanted.data_vars:
        np.testing.assert_allclose(found[name], wanted[name].sel(sample=found.sample) if "sample" in wanted[name].dims else wanted[name], rtol=1e-12 if name == "latent_pair_cosine" else 0)  # fmt: skip
    assert found.label.values.tolist() == wanted.label.sel(sample=found.sample).values.tolist()
    assert found.seed.values.tolist() == [1, 2]


@pytest.mark.parametrize(("verify", "expected"), [(False, 0), (True, 2 * 2 * 8)])
def test_only_verifying_reads_values(several, reads, verify, expected):
    ds = single(several, verify=verify)
    assert len(set(reads())) == expected
    ds.softmax.compute()
    assert len(set(reads())) == max(expected, 4)


@pytest.mark.parametrize("name", ["softmax_null", "pair_sum"])
def test_verifying_names_the_first_damaged_block(study, name):
    chunks = sorted((study / "digits-test" / "flip" / "bb" / "values" / name).glob("c/**/*"))
    chunks = [chunk for chunk in chunks if chunk.is_file()]
    chunks[-1].unlink()
    with pytest.raises(StoreError, match=r"^block 1 of digits/test · flip · bb \(images 256 to 299 in reading order\)"):
        ek.open(study)
    assert single(study, group="C4").sizes["model"] == 2
    if name == "pair_sum":  # M is made of it when the store is opened
        with pytest.raises(StoreError, match="block 1 of digits/test · flip · bb"):
            single(study, group="flip", verify=False)
        return
    found = single(study, group="flip", verify=False)
    assert found[name].sel(model="a").notnull().all()
    with pytest.raises(ValueError, match="is not there"):
        found[name].load()


@pytest.mark.parametrize("name", ["label", "depth", "weights"])
@pytest.mark.parametrize("verify", [True, False])
def test_a_lost_coordinate_is_an_error_and_not_zeros(study, name, verify):
    # Zarr gives zeros and "" for a file that is not there
    for chunk in (study / "digits-test" / "C4" / "a" / "values" / name / "c").rglob("*"):
        if chunk.is_file():
            chunk.unlink()
    with pytest.raises(StoreError, match="digits/test · C4 · a"):
        single(study, verify=verify)


@pytest.mark.parametrize("name", ["latent", "confidence", "label", "reason"])
def test_an_array_that_is_gone_is_named(study, name):
    shutil.rmtree(study / "digits-test" / "C4" / "a" / "values" / name)
    with pytest.raises(StoreError, match="digits/test · C4 · a"):
        single(study)


@pytest.mark.parametrize("place", ["", "digits-test/C4/a/ledger", "digits-test/C4/a/values"])
def test_metadata_that_is_no_json_is_named(study, place):
    (study / place / "zarr.json").write_text("{")
    with pytest.raises(StoreError, match=r"a\.zarr"):
        single(study)


def test_several_data_sets_and_groups_are_a_tree_of_the_single_ones(several):
    tree = ek.open(several)
    found = {node.path: node.to_dataset() for node in tree.subtree if node.has_data}
    names = {"/digits/test": "digits/test", "/home-me-faces": "/home/me/faces"}
    assert set(found) == {f"{node}/{group}" for node in names for group in ("C4", "flip")}
    for path, ds in found.items():
        node, _, group = path.rpartition("/")
        xr.testing.assert_identical(ds.load(), single(several, names[node], group).load())
    part = ek.open(several, group="flip")
    assert {node.path for node in part.subtree if node.has_data} == {f"{node}/flip" for node in names}


def test_names_that_are_no_paths_of_a_tree_can_be_opened(tmp_path):
    for data in ("../faces", "./digits"):
        write_cell(tmp_path / "a.zarr", data, "C4", "a", Two(1), blocks=1)
    with pytest.warns(UserWarning, match="not finished"):
        tree = ek.open(tmp_path / "a.zarr")
    assert len([node for node in tree.subtree if node.has_data]) == 2


def test_lazy_values_travel_to_other_processes(several):
    ds = single(several)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(ds)).latent, ds.latent)


def test_names_that_are_not_there_come_with_near_ones(several):
    with pytest.raises(ValueError, match="no data set 'digits/tset'; did you mean 'digits/test'"):
        ek.open(several, data="digits/tset")
    with pytest.raises(ValueError, match="no group 'Flip'; did you mean 'flip'"):
        ek.open(several, group="Flip")


def test_what_is_not_finished_is_told_and_nothing_at_all_is_an_error(tmp_path):
    path = tmp_path / "a.zarr"
    write_cell(path, "d", "C4", "a", Two(1), blocks=0)
    with pytest.raises(StoreError, match="nothing is done yet"):
        ek.open(path)
    write_cell(path, "d", "C4", "bb", Two(2), blocks=1)
    with pytest.warns(UserWarning, match="2 of 2 cells are not finished") as warned:
        ds = ek.open(path)
    assert "d · C4 · a; d · C4 · bb" in str(warned[0].message)
    assert warned[0].filename == __file__
    assert ds.model.values.tolist() == ["bb"]
    assert ds.softmax.isel(sample=slice(256)).notnull().all()
    assert ds.softmax.isel(sample=slice(256, None)).isnull().all()
    assert "M was taken over 256 samples, not these 300" not in "".join(ek.summarise(ds.isel(sample=slice(256))).reason)
    write_cell(path, "d", "C4", "a", Two(1))
    write_cell(path, "d", "C4", "bb", Two(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ek.open(path).model.values.tolist() == ["a", "bb"]


def test_a_block_that_is_done_while_the_store_is_opened_is_there_or_told_missing(tmp_path, monkeypatch):
    # values and warning must come from one reading of the ledger
    cell = write_cell(tmp_path / "a.zarr", "d", "C4", "a", Two(1), blocks=1)
    values = store.values

    def meanwhile(*arguments, **options):
        found = values(*arguments, **options)
        write_cell(tmp_path / "a.zarr", "d", "C4", "a", Two(1))
        return found

    monkeypatch.setattr(store, "values", meanwhile)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        ds = ek.open(cell.store)
    assert ds.softmax.notnull().all() or [w for w in warned if "not finished" in str(w.message)]


@pytest.mark.parametrize("metric", ["softmax", "latent", "channelwise"])
def test_a_study_of_one_metric_can_be_opened(tmp_path, metric):
    # red for softmax until coordinates on `layer` are kept where no variable has that dimension
    write_cell(tmp_path / "a.zarr", "d", "C4", "a", Two(1), metrics=[metric])
    found = ek.open(tmp_path / "a.zarr")
    assert found.eed.metrics == [metric]
    assert found.layer.values.tolist() == ek.measure(Two(1), IMAGES, group="C4", progress=False, metrics=[metric], layers=["maps"]).layer.values.tolist()  # fmt: skip


def test_models_with_and_without_class_scores_can_be_opened_together(tmp_path):
    write_cell(tmp_path / "a.zarr", "d", "C4", "a", Two(1))
    write_cell(tmp_path / "a.zarr", "d", "C4", "bb", Two(2, classes=1))
    ds = ek.open(tmp_path / "a.zarr")
    assert (ds.prediction.sel(model="bb") == -1).all()
    assert ds.confidence.sel(model="bb").isnull().all()
    assert (ds.prediction.sel(model="a") >= 0).all()
    assert ds.prediction.dtype == np.int32


def test_a_newer_or_broken_root_is_refused(study):
    root = json.loads((study / "zarr.json").read_text())
    root["attributes"]["schema"] = schema.SCHEMA + 1
    (study / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(schema.SchemaError, match="upgrade eedkit"):
        ek.open(study)
    (study / "zarr.json").unlink()
    with pytest.raises(schema.SchemaError, match="is no Zarr store"):
        ek.open(study)


def test_an_array_is_no_store_of_results(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", shape=(3,), dtype="f4")
    with pytest.raises(schema.SchemaError, match=r"a\.zarr"):
        ek.open(tmp_path / "a.zarr")


def test_a_study_is_never_overwritten_by_one_dataset(measured, study):
    for options in ({}, {"overwrite": True}):
        with pytest.raises(FileExistsError):
            measured.eed.to_zarr(study, **options)
    assert single(study).sizes["model"] == 2


@pytest.mark.parametrize("verify", [True, False])
def test_a_store_is_opened_from_wherever_fsspec_finds_it(several, verify):
    memory = fsspec.filesystem("memory")
    memory.put(str(several), "/bucket/b c.zarr", recursive=True)
    wanted = single(several).load()
    try:
        for address in ("memory://bucket/b c.zarr", f"file://{several}"):
            xr.testing.assert_identical(single(address, verify=verify).load(), wanted)
        with pytest.raises(schema.SchemaError, match="is no Zarr store"):
            ek.open("memory://bucket/nothing.zarr")
        lost = "/bucket/b c.zarr/digits-test/C4/a/values/softmax/c/0/0/1"
        assert memory.exists(lost)
        memory.rm(lost)
        with pytest.raises(StoreError, match="block 1 of digits/test · C4 · a"):
            single("memory://bucket/b c.zarr")
    finally:
        memory.rm("/bucket", recursive=True)


def test_one_dataset_is_opened_from_wherever_fsspec_finds_it(measured, tmp_path):
    measured.eed.to_zarr(tmp_path / "a.zarr")
    xr.testing.assert_identical(ek.open(f"file://{tmp_path}/a.zarr").load(), measured)


@pytest.mark.parametrize("name", ["a {b}.zarr", "ä%20#?[0]*.zarr"])
def test_paths_may_hold_what_they_like(measured, tmp_path, name):
    write_cell(tmp_path / name, "d/{x}", "C4", "a {b}", Two(1))
    assert ek.open(tmp_path / name).model.values.tolist() == ["a {b}"]
    measured.eed.to_zarr(tmp_path / f"one {name}")
    xr.testing.assert_identical(ek.open(tmp_path / f"one {name}").load(), measured)
