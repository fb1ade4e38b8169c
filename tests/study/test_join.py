"""Blocks joined are what one measurement gives; what is lost or damaged is named."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from made import IDS, SETTINGS, N, begin, block, vectors, whole, write

import eedkit as ek
from eedkit.probe.measure import Options, measure_block
from eedkit.results import schema
from eedkit.study import join
from eedkit.study.blocks import PAIR_SUM, Block
from eedkit.study.files import Folder, StoreError
from eedkit.study.store import Cell, State, Store

from .conftest import files_in


def opened(store, **options):
    return ek.open(store.address, **options).load()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_blocks_may_come_in_any_order(store, cell, order):
    for number in order:
        write(store, cell, number)
    found = opened(store)
    for name in ("latent", "latent_null", "latent_norm", "prediction", "confidence", "label", "chain"):
        np.testing.assert_array_equal(found[name], whole()[name])
    assert found.sample.values.tolist() == IDS.tolist()
    assert found.attrs["data"] == SETTINGS["data"]
    schema.validate(found)


@pytest.mark.parametrize(
    ("numbers", "here"), [((2, 0, 1), range(N)), ((2, 0), [0, 1, 2, 3, 8, 9])], ids=["all", "two of three"]
)
@pytest.mark.filterwarnings("ignore:1 of 1 cells are not finished")
def test_samples_and_m_are_those_of_the_blocks_that_are_done(store, cell, numbers, here):
    for number in numbers:
        write(store, cell, number)
    found = opened(store)
    assert found.sample.values.tolist() == IDS[list(here)].tolist()
    for k in range(2):
        u = vectors()[list(here), k]
        pairs = [u[i] @ u[j] for i in range(len(u)) for j in range(len(u)) if i != j]
        np.testing.assert_allclose(found.latent_pair_cosine[0, k], np.mean(pairs), rtol=1e-12)
    assert found.latent_pair_cosine.attrs["samples"] == len(here)


@pytest.mark.parametrize("limit", [join.IN_MEMORY, 0])
def test_beside_a_finished_model_the_rest_is_nan(store, cell, limit, monkeypatch):
    monkeypatch.setattr(join, "IN_MEMORY", limit)
    other = Cell(cell.data, cell.group, "other")
    begin(store, other)
    for number in (0, 1, 2):
        write(store, cell, number)
    write(store, other, 1)
    with pytest.warns(UserWarning, match="are not finished"):
        found = opened(store)
    assert found.sample.values.tolist() == IDS.tolist()
    missing = found.sel(model="other").isel(sample=[0, 1, 2, 3, 8, 9])
    assert missing.latent.isnull().all()
    assert (missing.prediction == -1).all()
    there = whole(model="other").isel(sample=slice(4, 8)).squeeze("model")
    np.testing.assert_array_equal(found.sel(model="other").latent.isel(sample=slice(4, 8)), there.latent)
    np.testing.assert_array_equal(found.sel(model="m").latent, whole().latent[0])


def test_an_undefined_sum_is_never_left_out_of_m(store, cell):
    # a sum that skips NaN would drop a block's vectors, but not their number
    for number in range(3):
        content = block(number)
        if number == 1:
            content.array(PAIR_SUM)[0, 1] = np.nan
        store.write(store.state(cell), number, content)
    m = opened(store).latent_pair_cosine.values[0]
    assert m[0] > 0.5
    assert np.isnan(m[1])


def test_a_layer_undefined_in_one_block_is_undefined(store, cell):
    for number, reason in enumerate(["", "it does not run", ""]):
        write(store, cell, number, reason=reason)
    found = opened(store)
    assert found.latent_nan_reason.values.tolist() == [["it does not run", ""]]
    for name in ("latent", "latent_null", "latent_norm", "latent_from_x", "latent_from_x_null"):
        assert found[name].sel(layer="one").isnull().all()
    np.testing.assert_array_equal(found.latent.sel(layer="latent"), whole().latent.sel(layer="latent"))


def test_samples_without_a_value_are_counted_over_blocks(store, cell):
    for number, undefined in enumerate([1, 0, 2]):
        write(store, cell, number, undefined=undefined)
    assert opened(store).latent_nan_reason.values.tolist() == [[schema.partly(3, 10), ""]]


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


def write_cell(path, data, group, model, net, *, blocks=2, beside=(), images=IMAGES, settings=None, **options):
    """A cell of 300 images in two blocks, of which the first so many are written; the first promises those beside it."""
    store, cell = Store(str(path)), Cell(data, group, model)
    if cell not in store.cells():
        store.promise([cell, *(Cell(data, group, name) for name in beside)], {})
    bounds = [(0, 256), (256, 300)]
    state = State(cell)
    store.begin(state, {"data": data, "about": {"seed": len(model)}} | (settings or {}), bounds)
    for number, (start, stop) in enumerate(bounds[:blocks]):
        asked = Options(group, **{"device": "cpu"} | OPTIONS | options)
        measured = measure_block(net, images, asked, places=range(start, stop), name=model, labels=LABELS)
        store.write(state, number, Block.of(*measured))


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Two data sets, two groups, two models."""
    path = tmp_path_factory.mktemp("study") / "a"
    for data in ("digits/test", "/home/me/faces"):
        for group in ("C4", "flip"):
            write_cell(path, data, group, "a", Two(1), beside=["bb"])
            write_cell(path, data, group, "bb", Two(2))
    return path


def test_a_study_gives_what_measure_gives(several):
    measured = []
    for name in ("a", "bb"):
        options = {"group": "C4", "labels": LABELS, "name": name, "progress": False, **OPTIONS}
        measured.append(ek.measure(Two(len(name)), IMAGES, **options))
    wanted = ek.concat(measured, seed=[1, 2])
    found = ek.open(several, data="digits/test", group="C4")
    wanted = wanted.sel(sample=found.sample)
    assert list(found.data_vars) == list(wanted.data_vars)
    for name in wanted.data_vars:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-12)
        assert found[name].dims == wanted[name].dims
        assert found[name].attrs == wanted[name].attrs
    assert set(found.coords) == set(wanted.coords)
    for name, coord in wanted.coords.items():
        assert found[name].values.tolist() == coord.values.tolist(), name
        assert found[name].dtype == coord.dtype, name
    assert set(wanted.attrs) - set(found.attrs) <= {"created"}


def test_several_data_sets_and_groups_are_a_tree(several):
    tree = ek.open(several)
    assert {leaf.path for leaf in tree.leaves} == {"/digits/test/C4", "/digits/test/flip", "/home-me-faces/C4", "/home-me-faces/flip"}  # fmt: skip
    xr.testing.assert_identical(
        tree["digits/test/flip"].to_dataset(), ek.open(several, data="digits/test", group="flip")
    )


def test_large_results_wait_until_they_are_used_and_read_a_block_once(several, monkeypatch):
    wanted = ek.open(several, data="digits/test", group="C4")
    monkeypatch.setattr(join, "IN_MEMORY", 0)
    found = ek.open(several, data="digits/test", group="C4")
    assert [name for name, v in found.data_vars.items() if "sample" in v.dims and v.chunks is None] == []
    assert [name for name, c in found.coords.items() if c.chunks is not None] == []
    xr.testing.assert_identical(pickle.loads(pickle.dumps(found)).load(), wanted)
    times, read = [], Folder.read
    monkeypatch.setattr(Folder, "read", lambda folder, name: times.append(name) or read(folder, name))
    found.load(scheduler="synchronous")
    assert len(times) == len(set(times)) == 4


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"data": "digits/tets"}, "no data set 'digits/tets'; did you mean 'digits/test'"),
        ({"group": "C5"}, "no group 'C5'"),
        ({"metrics": "latnet"}, "no metric 'latnet'"),
        ({"models": ["c"]}, "no model 'c'"),
    ],
)
def test_names_that_are_not_there_come_with_near_ones(several, asked, message):
    with pytest.raises(ValueError, match=message):
        ek.open(several, **asked)


def test_every_unfinished_cell_is_named(tmp_path):
    write_cell(tmp_path / "a", "d", "C4", "m", Two(1), beside=["half", "not begun"])
    write_cell(tmp_path / "a", "d", "C4", "half", Two(2), blocks=1)
    with pytest.warns(UserWarning, match=r"2 of 3 cells are not finished.*d · C4 · half; d · C4 · not begun"):
        found = ek.open(tmp_path / "a")
    assert found.model.values.tolist() == ["m", "half"]


def test_nothing_done_is_an_error(store, cell):
    with pytest.raises(StoreError, match="nothing is done yet"):
        ek.open(store.address)
    with pytest.raises(FileNotFoundError, match="no store at"):
        ek.open(f"{store.address}/nothing")


def test_every_file_that_is_harmed_or_gone_is_named(several, tmp_path):
    path = Path(shutil.copytree(several, tmp_path / "a"))
    for name in files_in(Store(str(path))):
        content = (path / name).read_bytes()
        (path / name).write_bytes(content[:-1])
        with pytest.raises(StoreError, match=name.rpartition("/")[2]):
            ek.open(path)
        (path / name).unlink()
        # what only a study's file promised is gone with it; the others still say what they promise
        if not name.startswith("study"):
            with pytest.warns(UserWarning, match="1 of 8 cells are not finished"):
                ek.open(path)
        (path / name).write_bytes(content)
    xr.testing.assert_identical(ek.open(path)["digits/test/C4"].ds, ek.open(several)["digits/test/C4"].ds)


def test_models_of_other_layers_and_without_scores_stand_together(tmp_path):
    write_cell(tmp_path / "a", "d", "C4", "m", Two(1), beside=["n", "o", "number"])
    write_cell(tmp_path / "a", "d", "C4", "n", Two(2), layers=["head"])
    write_cell(tmp_path / "a", "d", "C4", "o", Two(3))
    write_cell(tmp_path / "a", "d", "C4", "number", Two(1, classes=1))
    ds = ek.open(tmp_path / "a")
    assert ds.model.values.tolist() == ["m", "n", "o", "number"]
    assert ds.layer.values.tolist() == ["maps", "head", "latent"]
    assert ds.channelwise_nan_reason.sel(model="n", layer="maps").item() == "the model has no such layer"
    assert (ds.prediction.sel(model="number") == -1).all()
    assert ds.confidence.sel(model="number").isnull().all()
    assert (ds.prediction.sel(model="m") >= 0).all()


@pytest.mark.parametrize("metric", ["channelwise", "softmax", "latent_euclidean"])
def test_a_study_of_one_metric_can_be_opened(tmp_path, metric):
    write_cell(tmp_path / "a", "d", "flip", "m", Two(1), metrics=[metric])
    assert schema.metrics_of(ek.open(tmp_path / "a")) == [metric]


# --- two studies in one store

SPEC = {
    "data": "d?n=300 [1]",
    "seed": 0,
    "metrics": ["channelwise", "latent", "softmax"],
    "null": True,
    "group": "spatial [1]",
}


def two_studies(path, change, **options):
    """Models a and b of one data name, b in a study of other settings; and what b alone gives."""
    write_cell(path, "d", "C4", "a", Two(1), settings=SPEC)
    write_cell(path, "d", "C4", "b", Two(2), settings=SPEC | change, **options)
    return ek.open(path, models="b")


@pytest.mark.parametrize("limit", [join.IN_MEMORY, 0])
def test_models_of_another_seed_are_joined_by_the_ids_of_samples(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(join, "IN_MEMORY", limit)
    own = two_studies(tmp_path / "a", {"seed": 1}, seed=1)
    with pytest.warns(UserWarning, match="other orders of the images .* there is no coordinate `chain`"):
        both = ek.open(tmp_path / "a")
    assert "chain" in own.coords
    assert "chain" not in both.coords
    first = ek.open(tmp_path / "a", models=["a"])
    assert both.sample.values.tolist() == first.sample.values.tolist() != own.sample.values.tolist()
    for name, alone in (("a", first), ("b", own)):
        same = both.sel(model=name, sample=alone.sample.values).load()
        for variable in ("latent", "latent_null", "channelwise", "softmax", "prediction", "label"):
            np.testing.assert_array_equal(same[variable], alone[variable].squeeze())
    assert (both.latent.sel(model="a") != both.latent.sel(model="b")).any()


def test_samples_of_another_order_that_are_not_done_are_nan(tmp_path):
    own = two_studies(tmp_path / "a", {"seed": 1}, seed=1, blocks=1)
    with pytest.warns(UserWarning, match="1 of 2 cells are not finished"):
        both = ek.open(tmp_path / "a")
    lost = [name for name in both.sample.values if name not in own.sample.values]
    assert (own.sizes["sample"], both.sizes["sample"], len(lost)) == (256, 300, 44)
    assert both.softmax.sel(model="b", sample=lost).isnull().all()
    assert (both.prediction.sel(model="b", sample=lost) == -1).all()
    np.testing.assert_array_equal(both.softmax.sel(model="b", sample=own.sample), own.softmax[0])


@pytest.mark.parametrize(
    ("change", "options", "what"),
    [
        ({"data": "d?n=300 [2]"}, {}, "images"),
        ({"data": "d?n=300&shift=blur [1]"}, {}, "images"),
        ({"null": False}, {"null": False}, "null"),
        ({"group": "spatial [2]"}, {}, "group"),
        ({"version": "other"}, {}, "version"),
        ({"metrics": ["latent"]}, {"metrics": ["latent"]}, "metrics"),
        ({"metrics": ["channelwise", "latent: another", "softmax"]}, {}, "metrics"),
    ],
)
def test_models_measured_otherwise_are_refused_with_what_to_choose(tmp_path, change, options, what):
    own = two_studies(tmp_path / "a", change, **options)
    with pytest.raises(
        StoreError, match=rf"d · C4 · a and b cannot .* differ in {what}: .*models=\['a'\] or models=\['b'\]"
    ):
        ek.open(tmp_path / "a")
    assert own.model.values.tolist() == ["b"]
    assert own.latent.notnull().all()


def test_the_same_folder_elsewhere_is_the_same_images(tmp_path):
    two_studies(tmp_path / "a", {"data": "/mnt/d?n=300 [1]"})
    assert ek.open(tmp_path / "a").model.values.tolist() == ["a", "b"]


def test_metrics_that_all_have_can_be_chosen(tmp_path):
    two_studies(tmp_path / "a", {"metrics": ["latent"]}, metrics=["latent"])
    with pytest.raises(StoreError, match=r"or metrics=\['latent'\]"):
        ek.open(tmp_path / "a")
    both = ek.open(tmp_path / "a", metrics=["latent"])
    assert schema.metrics_of(both) == ["latent"]
    assert not [name for name in both.variables if name.startswith(("channelwise", "softmax"))]
    with pytest.warns(
        UserWarning, match="1 of 2 cells are left out, since not all of softmax were measured: d · C4 · b"
    ):
        assert ek.open(tmp_path / "a", metrics="softmax").model.values.tolist() == ["a"]
    first = ek.open(tmp_path / "a", models="a")
    first.eed.to_zarr(tmp_path / "b.zarr")
    again = ek.open(tmp_path / "b.zarr", models=["a"], metrics=["latent"]).load()
    xr.testing.assert_identical(again, ek.open(tmp_path / "a", models="a", metrics="latent"))


def test_blocks_of_two_trainings_are_never_joined(store, cell):
    write(store, cell, 0)
    path = Path(store.address, store.state(cell).done[0][0])
    path.rename(Path(store.address, "aside"))
    write(store, cell, 1, values=whole(weights="v"))
    Path(store.address, "aside").rename(path)
    with pytest.raises(StoreError, match=r"block-0001.*has other weights than the first: \['w'\] there, \['v'\] here"):
        ek.open(store.address)


def test_a_study_is_opened_from_wherever_fsspec_finds_it(several):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(several), "/bucket/b c", recursive=True)
    wanted = ek.open(several, data="digits/test", group="C4")
    for address in ("memory://bucket/b c", f"file://{several}"):
        xr.testing.assert_identical(ek.open(address, data="digits/test", group="C4"), wanted)
    memory.rm("/bucket", recursive=True)
