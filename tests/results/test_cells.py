"""One cell of a study's store, on Datasets made by hand: what is written, in which order, by how many, and what a crash leaves."""

import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from eedkit.results import cells, disk, schema, store
from eedkit.results.cells import DONE, FAILED, FLAWED, MISSING, RUNNING, Cell
from eedkit.results.disk import StoreError
from eedkit.results.process import me

N, BOUNDS = 10, [(0, 4), (4, 8), (8, 10)]
SETTINGS = {"model": "spec [w]", "data": "digits [1]", "metrics": ["latent"], "null": True, "about": {"seed": 0}}
DIMS = ("model", "layer", "element", "sample")


def vectors(n=N, layers=2, seed=0):
    """Unit vectors (sample, layer, feature) with a common direction, so that M is well above 0."""
    found = np.random.default_rng(seed).standard_normal((n, layers, 3)) + 2
    return found / np.linalg.norm(found, axis=-1, keepdims=True)


def whole(n=N, *, layers=("one", "latent"), weights="w", model="m", seed=0):
    """Values of all samples as measure() gives them."""
    rng, depth = np.random.default_rng(seed), len(layers)
    about = {
        "units": "1",
        "best": -1.0,
        "upper": 1.0,
        "scale": "latent_norm",
        "rounding": 1e-7,
        "equation": "m",
        "source": "eq. 6",
    }
    drawn = {name: rng.uniform(-1, 1, (1, depth, 2, n)).astype(np.float32) for name in ("latent", "latent_null")}
    variables = {name: (DIMS, array, {**about, "long_name": name}) for name, array in drawn.items()}
    variables["latent_norm"] = (("model", "layer", "sample"), rng.uniform(1, 2, (1, depth, n)).astype(np.float32))
    variables["latent_pair_cosine"] = (("model", "layer"), np.full((1, depth), np.nan), {"samples": n})
    variables["prediction"] = (("model", "element", "sample"), rng.integers(0, 9, (1, 2, n)).astype(np.int32))
    variables["confidence"] = (("model", "element", "sample"), rng.uniform(0, 1, (1, 2, n)).astype(np.float32))
    on_layer = {name: (("model", "layer"), np.full((1, depth), 1)) for name in ("channels", "height", "width", "kernel_order")}  # fmt: skip
    text = {"model": [model], "layer": list(layers), "element": ["e", "r180"]}
    coords = {
        **{name: np.array(labels, dtype=object) for name, labels in text.items()},
        "weights": ("model", np.array([weights], dtype=object)),
        "angle": ("element", [0.0, 180.0]),
        "depth": (("model", "layer"), np.linspace(0, 1, depth)[None]),
        "layer_type": (("model", "layer"), np.full((1, depth), "Block", dtype=object)),
        "layout": (("model", "layer"), np.full((1, depth), "b c h w", dtype=object)),
        "latent_nan_reason": (("model", "layer"), np.full((1, depth), "", dtype=object)),
        **on_layer,
    }
    attrs = {"group": "C2", "schema": schema.SCHEMA, "eedkit_version": "0", "data": "block", "device": "cpu", "seed": 0}
    return xr.Dataset(variables, coords, attrs)


def ids(n=N):
    """Labels of all samples, as the data set gives them."""
    names = np.array([f"image {i} · 图 " + "x" * i for i in range(n)], dtype=object)
    return xr.Dataset(coords={"sample": names, "label": ("sample", np.arange(n) % 3 + 5), "chain": ("sample", np.arange(n) // 4)})  # fmt: skip


def states(start, stop, *, layers=2, flaws=(), n=N, reason="", undefined=0, seed=0):
    """The states of a block; `reason` and `undefined` of its first layer."""
    reasons, counts = np.full((1, layers), "", dtype=object), np.zeros((1, layers), dtype=np.int64)
    reasons[0, 0], counts[0, 0] = reason, undefined
    variables = {
        "pair_sum": (("normalised", "layer", "feature"), vectors(n, layers, seed)[start:stop].sum(0)[None]),
        "pair_n": (("normalised", "layer"), np.full((1, layers), stop - start)),
        "dead": ("layer", np.full(layers, float(start))),
        "live_or_dead": ("layer", np.full(layers, 100.0)),
        "reason": (("metric", "layer"), reasons),
        "undefined": (("metric", "layer"), counts),
    }
    names = np.array(["latent"], dtype=object)
    return xr.Dataset(variables, {"metric": names, "normalised": names}, {"flaws": list(flaws)})


def write(cell, block, *, values=None, bounds=BOUNDS, **more):
    start, stop = bounds[block]
    values = whole(cell_n(bounds), model=cell.model) if values is None else values
    cell.write(block, values.isel(sample=slice(start, stop)), states(start, stop, n=cell_n(bounds), **more), ids(cell_n(bounds)))  # fmt: skip


def cell_n(bounds):
    return bounds[-1][1]


@pytest.fixture
def cell(tmp_path) -> Cell:
    """A begun cell of three blocks in a new store."""
    cells.create(str(tmp_path / "a.zarr"))
    found = Cell(str(tmp_path / "a.zarr"), "digits/test", "C2", "m")
    found.begin(SETTINGS, BOUNDS)
    return found


@pytest.fixture
def folder(cell) -> Path:
    return Path(cell.store, cell.path)


def opened(cell, *, unfinished=False):
    if not unfinished:
        return store.open(cell.store).load()
    with pytest.warns(UserWarning, match="are not finished"):
        return store.open(cell.store).load()


def partials(cell):
    return [path.name for path in Path(cell.store).rglob("*partial*")]


def test_a_second_beginning_changes_nothing(cell, folder):
    cell.mark(1, FAILED, "a reason")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    cell.begin(dict(reversed(SETTINGS.items())), BOUNDS)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    ledger = cell.ledger()
    assert (ledger.start.tolist(), ledger.stop.tolist(), ledger.n) == ([0, 4, 8], [4, 8, 10], 10)
    assert ledger.settings == SETTINGS


@pytest.mark.parametrize(
    ("key", "value"), [("null", False), ("metrics", ["latent", "softmax"]), ("about", {"seed": 1}), ("head", "fc")]
)
def test_other_settings_are_refused_by_key_and_both_values(cell, key, value):
    with pytest.raises(StoreError) as error:
        cell.begin({**SETTINGS, key: value}, BOUNDS)
    assert f"has digits/test · C2 · m already, with another {key}: {SETTINGS.get(key)!r} there, {value!r} here" in str(error.value)  # fmt: skip


def test_what_is_marked_is_told_again_and_is_one_file_each(cell, folder):
    said = [
        (RUNNING, me()),
        (FAILED, "ValueError: eine Zeile\nund noch eine · 图 " + "x" * 5000),
        (FLAWED, "cpu: a; b"),
    ]
    written = []
    for block, (status, note) in enumerate(said):
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        cell.mark(block, status, note)
        after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        written.append([str(path.relative_to(folder)) for path in after if after[path] != before.get(path)])
        assert cell.status(block) == (status, note)
    assert written == [["ledger/status/c/0"], ["ledger/status/c/1"], ["ledger/status/c/2"]]
    ledger = cell.ledger()
    assert list(zip(ledger.status, ledger.notes, strict=True)) == said
    assert ledger.done.tolist() == [False, False, True]
    assert ledger.images_done.tolist() == [False] * 8 + [True] * 2
    assert ledger.devices == ["cpu"]
    assert ledger.reasons == [said[1][1], "a; b"]


def test_a_text_that_utf8_cannot_hold_does_not_stop_a_study(cell):
    # file names that are not UTF-8 bring lone surrogates into messages
    cell.mark(0, FAILED, "OSError: cannot read caf\udce9.png")
    assert cell.status(0)[1].startswith("OSError: cannot read caf")


def test_a_block_that_a_dead_process_left_running_is_missing(cell):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    host, _, born = me().split()
    cell.mark(0, RUNNING, f"{host} {gone.pid} {born}")
    cell.mark(1, RUNNING, f"another-machine {gone.pid} {born}")
    cell.mark(2, RUNNING, me())
    assert cell.ledger().status.tolist() == [MISSING, RUNNING, RUNNING]
    assert cell.status(0) == (MISSING, "")


def test_a_process_that_took_a_dead_ones_number_is_not_taken_for_it(cell):
    host, pid, born = me().split()
    cell.mark(0, RUNNING, f"{host} {pid} {float(born) - 3600:.2f}")
    assert cell.status(0) == (MISSING, "")


def test_a_status_whose_file_is_gone_is_missing(cell, folder):
    # Zarr reads a file that is not there as its fill value, the empty text
    cell.mark(1, FAILED, "why")
    (folder / "ledger/status/c/1").unlink()
    assert cell.status(1) == (MISSING, "")
    assert cell.ledger().status.tolist() == [MISSING] * 3


@pytest.mark.parametrize("file", ["ledger/start/c/0", "ledger/stop/c/0"])
@pytest.mark.parametrize("harm", [Path.unlink, lambda file: file.write_bytes(file.read_bytes()[:-5])])
def test_a_damaged_place_of_blocks_is_an_error_that_names_the_cell(cell, folder, file, harm):
    # Zarr reads a file that is not there as zeros
    for block in range(3):
        write(cell, block)
    harm(folder / file)
    with pytest.raises(StoreError, match="digits/test · C2 · m"):
        store.open(cell.store)


@pytest.mark.parametrize("order", [(2, 0, 1), (1, 2, 0)])
def test_blocks_may_come_in_any_order(cell, order):
    for block in order:
        write(cell, block)
    found, wanted = opened(cell), whole()
    for name in ("latent", "latent_null", "latent_norm", "prediction", "confidence"):
        np.testing.assert_array_equal(found[name], wanted[name])
        assert found[name].dtype == wanted[name].dtype
    assert found.attrs["data"] == "digits [1]"
    assert (found.seed.values.tolist(), found.latent.attrs) == ([0], wanted.latent.attrs)


def test_m_and_dead_channels_over_blocks_are_the_loops(cell):
    for block in (2, 0, 1):
        write(cell, block)
    found = opened(cell)
    for k in range(2):
        u = vectors()[:, k]
        pairs = [u[i] @ u[j] for i in range(N) for j in range(N) if i != j]
        np.testing.assert_allclose(found.latent_pair_cosine[0, k], np.mean(pairs), rtol=1e-12)
    assert found.latent_pair_cosine.attrs["samples"] == N


def test_m_of_a_part_is_that_parts(cell):
    for block in (2, 0):
        write(cell, block)
    found, here = opened(cell, unfinished=True), [0, 1, 2, 3, 8, 9]
    u = vectors()[here, 1]
    pairs = [u[i] @ u[j] for i in range(6) for j in range(6) if i != j]
    np.testing.assert_allclose(found.latent_pair_cosine[0, 1], np.mean(pairs), rtol=1e-12)
    assert found.latent_pair_cosine.attrs["samples"] == 6


def test_an_undefined_sum_is_never_left_out_of_m(cell):
    # a sum that skips NaN would drop a block's vectors, but not their number
    for block in range(3):
        start, stop = BOUNDS[block]
        told = states(start, stop)
        if block == 1:
            told["pair_sum"][0, 1] = np.nan
        cell.write(block, whole().isel(sample=slice(start, stop)), told, ids())
    m = opened(cell).latent_pair_cosine.values[0]
    assert m[0] > 0.5
    assert np.isnan(m[1])


def test_a_layer_undefined_in_one_block_is_undefined_with_its_reason(cell):
    for block, reason in enumerate(["", "it does not run", ""]):
        write(cell, block, reason=reason)
    found = opened(cell)
    assert found.latent_nan_reason.values.tolist() == [["it does not run", ""]]
    assert found.latent.sel(layer="one").isnull().all()
    assert found.latent_null.sel(layer="one").isnull().all()
    np.testing.assert_array_equal(found.latent.sel(layer="latent"), whole().latent.sel(layer="latent"))


def test_samples_without_a_value_are_counted_over_blocks(cell):
    for block, undefined in enumerate([1, 0, 2]):
        write(cell, block, undefined=undefined)
    assert opened(cell).latent_nan_reason.values.tolist() == [[schema.partly(3, 10), ""]]


@pytest.mark.parametrize("bounds", [[(0, 4), (4, 6), (6, 10)], [(0, 4), (4, 10), (10, 12)]])
def test_blocks_that_are_not_whole_chunks_are_refused(tmp_path, bounds):
    cells.create(str(tmp_path / "a.zarr"))
    cell = Cell(str(tmp_path / "a.zarr"), "d", "C2", "m")
    cell.begin(SETTINGS, bounds)
    write(cell, 0, bounds=bounds)
    with pytest.raises(StoreError, match="block 1 of d · C2 · m is not whole chunks"):
        write(cell, 1, bounds=bounds)
    assert cell.ledger().status.tolist() == [DONE, MISSING, MISSING]


def test_a_last_block_may_be_longer_than_the_others(tmp_path):
    """257 images of a last chain that took in a single one."""
    bounds = [(0, 4), (4, 9)]
    cells.create(str(tmp_path / "a.zarr"))
    cell = Cell(str(tmp_path / "a.zarr"), "d", "C2", "m")
    cell.begin(SETTINGS, bounds)
    for block in (1, 0):
        write(cell, block, bounds=bounds)
    np.testing.assert_array_equal(opened(cell).latent, whole(9).latent)


@pytest.mark.parametrize("change", [{"weights": "v"}, {"layers": ("one", "other")}])
def test_other_weights_or_layers_than_the_first_blocks_are_refused_and_nothing_is_written(cell, folder, change):
    write(cell, 0)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    # other weights are another study's, and end the run; other layers are this model's doing, and its failure
    refusal, message = (
        (StoreError, "digits/test · C2 · m already, with other weights: ")
        if "weights" in change
        else (ValueError, "this block has other layers than the first: ")
    )
    with pytest.raises(refusal, match=message) as error:
        write(cell, 1, values=whole(**change))
    assert str(next(iter(change.values()))[-1]) in str(error.value)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_blocks_with_other_variables_are_refused(cell, order):
    # what the first lacked would be lost, and what a later one lacked would count as damaged
    values = [whole(), whole().drop_vars(["prediction", "confidence"])]
    write(cell, 0, values=values[order[0]])
    with pytest.raises(ValueError, match="this block has other variables than the first"):
        write(cell, 1, values=values[order[1]])


def test_what_is_not_done_is_nan_and_minus_one(cell):
    write(cell, 1, flaws=["sample 4 is not finite"])
    found = opened(cell, unfinished=True)
    assert (found.prediction[..., :4] == -1).all()
    assert (found.prediction[..., 4:8] >= 0).all()
    assert found.prediction.dtype == np.int32
    for name in ("latent", "latent_null", "latent_norm", "confidence"):
        assert found[name].notnull().any([dim for dim in found[name].dims if dim != "sample"]).values.tolist() == [False] * 4 + [True] * 4 + [False] * 2  # fmt: skip
    assert found.sample.values.tolist() == ids().sample.values.tolist()
    assert cell.status(1) == (FLAWED, "cpu: sample 4 is not finite")


def test_many_flaws_are_counted_after_three(cell):
    write(cell, 0, flaws=list("abcde"))
    assert cell.status(0) == (FLAWED, "cpu: a; b; c (and 2 more samples)")


def test_text_survives(tmp_path):
    name, layer, reason = "模型 é/ß?x=1 " + "y" * 80, "block.ü" + "z" * 300, "weil · 図 " + "w" * 2000
    cells.create(str(tmp_path / "a.zarr"))
    cell = Cell(str(tmp_path / "a.zarr"), "données/été", "C2", name)
    cell.begin({**SETTINGS, "data": "été"}, BOUNDS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for block in range(3):
            write(cell, block, values=whole(layers=(layer, "latent"), model=name), reason=reason if block == 2 else "")
        found = opened(cell)
    assert (found.model.item(), found.layer.values[0], found.attrs["data"]) == (name, layer, "été")
    assert found.latent_nan_reason.values[0, 0] == reason
    assert found.sample.values.tolist() == ids().sample.values.tolist()
    assert found.label.values.tolist() == ids().label.values.tolist()
    assert [str(one) for one in cells.find(cell.store)] == [f"données/été · C2 · {name}"]


@pytest.mark.parametrize("files", [1, 8, 11])
def test_a_crash_within_a_block_leaves_it_missing_and_unseen(cell, monkeypatch, files):
    """After so many arrays of the block were written; eleven are all, so that only the status is missing."""
    write(cell, 0)
    put, written = zarr.AsyncArray.setitem, []

    async def crash(self, *arguments):
        if len(written) == files:
            raise RuntimeError("killed")
        written.append(self.name)
        await put(self, *arguments)

    def never(*_):
        raise RuntimeError("killed before the status")

    with monkeypatch.context() as patch:
        patch.setattr(zarr.AsyncArray, "setitem", crash)
        patch.setattr(Cell, "mark", never)
        with pytest.raises(RuntimeError, match="killed"):
            write(cell, 1)
    assert len(written) == files
    assert cell.ledger().status.tolist() == [DONE, MISSING, MISSING]
    found = opened(cell, unfinished=True)
    assert found.latent[..., 4:].isnull().all()
    assert (found.prediction[..., 4:] == -1).all()
    u = vectors()[:4, 1]
    np.testing.assert_allclose(found.latent_pair_cosine[0, 1], (np.sum(u @ u.T) - 4) / 12, rtol=1e-12)
    write(cell, 2)
    write(cell, 1)
    np.testing.assert_array_equal(opened(cell).latent, whole().latent)


def test_making_room_that_is_interrupted_leaves_nothing(cell, folder, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write(cell, 0)
    assert not partials(cell)
    assert not (folder / "values").exists()
    write(cell, 0)
    assert not partials(cell)
    assert cell.status(0)[0] == DONE


def test_what_a_kill_left_beside_disturbs_nobody(cell, monkeypatch):
    # Zarr warns of what it does not know in a group, in words that no user knows
    beside = []

    def killed(path, *_):
        beside.append(path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(disk, "make_group", killed)
        with pytest.raises(KeyboardInterrupt):
            write(cell, 0)
    (beside[0] / "latent").mkdir(parents=True)
    for block in range(3):
        write(cell, block)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert opened(cell).sizes["sample"] == N


def test_an_interrupted_letting_go_can_be_repaired(cell, folder, monkeypatch):
    # without their zarr.json nothing could be written there again
    write(cell, 0)
    with monkeypatch.context() as patch:
        patch.setattr(cells.shutil, "rmtree", lambda path, **_: (Path(path) / "zarr.json").unlink())
        cell.forget()
    write(cell, 0)
    assert cell.status(0)[0] == DONE


def test_letting_go_leaves_the_ledger_and_no_values(cell, folder):
    for block in range(3):
        write(cell, block)
    cell.forget()
    assert cell.ledger().status.tolist() == [MISSING] * 3
    assert not (folder / "values").exists()
    with pytest.raises(StoreError, match="nothing is done yet"):
        store.open(cell.store)


def test_two_threads_make_room_at_the_same_moment(cell, monkeypatch):
    # Zarr's settings are the whole process's, and the
    # thread that leaves first took them from the other, whose chunks of zeros then counted as lost
    barrier, make, errors = threading.Barrier(2, timeout=20), disk.make_group, []

    def together(*arguments):
        make(*arguments)
        barrier.wait()

    def work(block):
        try:
            write(cell, block)
        except BaseException as error:
            errors.append(error)

    monkeypatch.setattr(disk, "make_group", together)
    threads = [threading.Thread(target=work, args=(block,)) for block in (1, 2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not errors
    assert barrier.n_waiting == 0
    monkeypatch.undo()
    write(cell, 0)
    np.testing.assert_array_equal(opened(cell).latent, whole().latent)
    assert not partials(cell)


def test_a_store_that_another_process_is_just_making_is_joined(tmp_path):
    # jobs of an array start together
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "zarr.0123.partial").write_bytes(b"{")
    cells.create(str(tmp_path / "a.zarr"))
    cells.check(str(tmp_path / "a.zarr"))


def test_a_store_or_group_that_another_process_has_made_since_is_joined(tmp_path, monkeypatch):
    # somebody was quicker: of 40 stores that two processes began together this hit 3
    path, opened_group, group = str(tmp_path / "a.zarr"), zarr.open_group, zarr.Group.require_group

    def slower(store, **options):
        if options.get("mode") == "a":
            opened_group(store, **options)
            raise zarr.errors.ContainsGroupError("made since")
        return opened_group(store, **options)

    def later(self, name, **options):
        group(self, name, **options)
        raise zarr.errors.ContainsGroupError("made since")

    with monkeypatch.context() as patch:
        patch.setattr(zarr, "open_group", slower)
        cells.create(path)
    with monkeypatch.context() as patch:
        patch.setattr(zarr.Group, "require_group", later)
        Cell(path, "d", "C2", "m").begin(SETTINGS, BOUNDS)
    assert Cell(path, "d", "C2", "m").ledger().n == N


def child(path, block):
    """One process of several: begins the cell and writes a block."""
    cells.create(path)
    cell = Cell(path, "digits/test", "C2", "m")
    cell.begin(SETTINGS, BOUNDS)
    write(cell, block)


def test_three_processes_begin_and_write_at_the_same_moment(tmp_path):
    path = str(tmp_path / "a.zarr")
    go = tmp_path / "go"
    code = f"import pathlib, runpy; f = runpy.run_path({__file__!r})['child']; print('ready', flush=True)\nwhile not pathlib.Path({str(go)!r}).exists(): pass\nf({path!r}, BLOCK)"  # fmt: skip
    commands = [[sys.executable, "-c", code.replace("BLOCK", str(block))] for block in range(3)]
    children = [subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for c in commands]
    for process in children:
        process.stdout.readline()
    go.touch()
    for process in children:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    cell = Cell(path, "digits/test", "C2", "m")
    assert cell.ledger().status.tolist() == [DONE] * 3
    np.testing.assert_array_equal(opened(cell).latent, whole().latent)
    assert not partials(cell)


def test_values_of_nothing_but_nan_are_whole(cell):
    """Their chunks are written too, so that a file that is not there is always a loss."""
    values = whole()
    values["latent"][..., 4:8] = np.nan
    for block in range(3):
        write(cell, block, values=values)
    assert store.damaged(cell, cell.ledger()) == []
    np.testing.assert_array_equal(opened(cell).latent, values.latent)


def test_xarray_alone_reads_what_a_cell_holds(cell):
    # as did the versions before, and anybody without eedkit
    for block in range(3):
        write(cell, block)
    alone = xr.open_zarr(cell.store, group=f"{cell.path}/values", consolidated=False)
    assert set(alone.data_vars) == {*whole().data_vars, *cells.STATES}
    wanted = whole().drop_vars("latent_pair_cosine").assign_coords(ids().coords)
    found = alone[list(wanted.data_vars)].load()
    xr.testing.assert_equal(schema.text_as_objects(found.drop_vars("metric", errors="ignore")), wanted)
    assert found.latent.attrs == wanted.latent.attrs


def test_slugs_are_one_path_segment_each():
    assert cells.slug("../../etc/passwd") == "etc-passwd"
    assert cells.slug("a/b?c=d&e=ü") == "a-b-c-d-e-ü"
    assert cells.slug("resnet50.a1_in1k") == "resnet50.a1_in1k"
    assert (cells.slug("..."), cells.slug("图 1")) == ("-", "图-1")


def test_find_lists_cells_by_the_names_they_were_given(cell):
    others = [("digits/test", "C2", "n?x=1"), ("digits/test", "D4", "m"), ("/home/me/images", "C2", "m")]
    for names in others:
        Cell(cell.store, *names).begin(SETTINGS, BOUNDS)
    found = cells.find(cell.store)
    assert {(one.data, one.group, one.model) for one in found} == {("digits/test", "C2", "m"), *others}
    assert all(one.store == cell.store and one.ledger().settings == SETTINGS for one in found)


def test_names_that_share_a_place_in_the_store_are_not_taken_for_each_other(cell):
    with pytest.raises(StoreError, match="digits/test"):
        Cell(cell.store, "digits-test", "C2", "m").begin(SETTINGS, BOUNDS)


def test_a_place_that_is_no_study_is_refused(tmp_path):
    zarr.open_group(tmp_path / "other.zarr", mode="w")
    for use in (cells.create, cells.check):
        with pytest.raises(StoreError, match=r"other.zarr is no store of a study; choose another place"):
            use(str(tmp_path / "other.zarr"))
