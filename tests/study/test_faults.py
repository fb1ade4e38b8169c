"""What bad things happen to a study, and what must happen then."""

import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import eedkit as ek
from eedkit.lab import images, models
from eedkit.study import workers
from eedkit.study.files import StoreError
from eedkit.study.store import Cell, Store

from .conftest import MODELS, Net, assert_same, begun

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "break_study.py"


@pytest.mark.slow
def test_killed_or_failing_at_some_operations_or_harmed_it_loses_nothing():
    subprocess.run([sys.executable, str(SCRIPT), "--every", "80"], check=True)


@pytest.mark.slow
def test_two_processes_at_once_share_the_work_and_lose_nothing(tmp_path, settings, child, uninterrupted):
    first, second = child(), child()
    for process in (first, second):
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    assert_same(ek.open(settings["store"]), uninterrupted)
    assert 18 <= len(begun(tmp_path)) <= 18 + 3
    print(f"{len(begun(tmp_path))} blocks begun for 18")


def test_results_depend_on_neither_blocks_nor_order(tmp_path, settings, uninterrupted):
    larger = ek.Study(**settings | {"block": 1024, "store": tmp_path / "b", "models": MODELS[::-1]})
    found = larger.run(progress=False).sel(model=MODELS)
    # M is summed over blocks in float64, in another order
    xr.testing.assert_allclose(found.latent_pair_cosine, uninterrupted.latent_pair_cosine, rtol=1e-12)
    assert_same(found.drop_vars("latent_pair_cosine"), uninterrupted.drop_vars("latent_pair_cosine"))


def file(study: ek.Study, start: str) -> Path:
    """The file in the folder of the second model's cell whose name starts so."""
    cell = Cell("digits/train", "C4", MODELS[1])
    (found,) = Path(study.store, cell.path).glob(f"{start}.*")
    return found


def flip(file: Path) -> None:
    """Alter a bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    """Lose the second half."""
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("harm", [flip, cut])
@pytest.mark.parametrize("block", [0, 5])
def test_a_damaged_block_is_named_and_repaired(done, uninterrupted, computed, harm, block):
    damaged = file(done, f"block-{block:04}")
    harm(damaged)
    name = damaged.relative_to(done.store).as_posix()
    for read in (lambda: ek.open(done.store), lambda: done.run(progress=False)):
        with pytest.raises(StoreError, match="is damaged: its bytes are not those that its name promises") as error:
            read()
        assert str(error.value).startswith(f"{name} in {done.store}")
    assert_same(done.run(repair=True, progress=False), uninterrupted)
    assert computed == [(MODELS[1], block)]
    assert_same(ek.open(done.store), uninterrupted)


def test_damaged_cells_and_studies_are_named_and_repaired(done, uninterrupted, computed):
    damaged = file(done, "cell")
    flip(damaged)
    for read in (lambda: ek.open(done.store), done.status, done.plan, lambda: done.run(progress=False)):
        with pytest.raises(StoreError, match=damaged.name):
            read()
    flip(next(Path(done.store).glob("study.*.json")))
    thesis = Path(done.store, "thesis.txt")
    thesis.write_text("precious")
    assert_same(done.run(repair=True, progress=False), uninterrupted)
    # whoever lost the settings may have measured otherwise
    assert computed == [(MODELS[1], block) for block in range(6)]
    assert thesis.read_text() == "precious"


def test_a_deleted_block_is_unfinished_and_computed_again(done, uninterrupted, computed):
    file(done, "block-0003").unlink()
    assert done.status().missing.tolist() == [0, 1, 0]
    with pytest.warns(UserWarning, match=f"1 of 3 cells are not finished.* C4 · {re.escape(MODELS[1])}"):
        opened = ek.open(done.store)
    lost = opened.softmax.sel(model=MODELS[1]).isnull().all("element")
    assert np.flatnonzero(lost).tolist() == list(range(3 * 256, 4 * 256))
    assert opened.softmax.sel(model=MODELS[::2]).notnull().all()
    assert_same(done.run(progress=False), uninterrupted)
    assert computed == [(MODELS[1], 3)]


def test_another_cells_block_in_an_unfinished_cell_is_named_before_anything_is_computed(done, uninterrupted, computed):
    own = file(done, "block-0003")
    file(done, "block-0000").unlink()
    foreign = own.with_name(own.name.replace("0003", "0000"))
    own.rename(foreign)
    with pytest.raises(StoreError, match=rf"{foreign.name} is damaged: it is the block of another block, 3 and not 0"):
        done.run(progress=False)
    assert computed == []
    assert_same(done.run(repair=True, progress=False), uninterrupted)
    assert computed == [(MODELS[1], 0), (MODELS[1], 3)]


# --- processes that die


@pytest.mark.parametrize("deaths", [1, 3])
def test_a_block_whose_processes_died_comes_last_however_often(done, computed, uninterrupted, deaths):
    for block in (1, 2):
        file(done, f"block-000{block}").unlink()
    cell = Cell("digits/train", "C4", MODELS[1])
    for number in range(deaths):
        content = {"process": f"{socket.gethostname()}~{2**22 + 1 + number}~1.00", "since": 1.0}
        Store(done.store).folder.write_json(f"{cell.path}/running-0001", content)
    assert done.status()[["done", "running", "failed", "missing"]].values.tolist()[1] == [4, 0, 0, 2]
    processes = {1: "a process", 3: "3 processes"}[deaths]
    reason = f"{processes} ended at block 1 (killed, preempted, or out of memory); a new run tries it last"
    assert done.status().reason.tolist() == ["", reason, ""]
    assert_same(done.run(progress=False), uninterrupted)
    assert computed == [(MODELS[1], 2), (MODELS[1], 1)]
    assert list(Path(done.store).rglob("running-*")) == []


# --- what models and images do


class Raises(Net):
    """No image is small enough."""

    def forward(self, x):
        raise MemoryError("no more of it")


class NotFinite(Net):
    """Its features are NaN wherever the middle of the image is bright."""

    def forward(self, x):
        z = self.features(x)
        return self.head(z.masked_fill(x[:, :, 8, 8] > 0.9, float("nan")))


class Exits(Net):
    """Ends its process, as command-line programs do."""

    def forward(self, x):
        raise SystemExit(3)


def test_what_models_throw_is_recorded_and_the_rest_finishes(settings):
    settings |= {
        "models": {"raises": Raises(), "exits": Exits(), "works": Net(), "nan": NotFinite()},
        "data": ["digits/test?size=17&channels=1"],
    }
    study = ek.Study(**settings)
    with pytest.warns(UserWarning, match="3 of 4 cells failed or lack samples") as warned:
        ds = study.run(progress=False)
    assert sum("cells failed" in str(warning.message) for warning in warned) == 1
    assert ds.model.values.tolist() == ["works", "nan"]
    status = study.status().set_index("model")
    assert status.failed.to_dict() == {"raises": 2, "exits": 2, "works": 0, "nan": 0}
    assert status.flawed.to_dict() == {"raises": 0, "exits": 0, "works": 0, "nan": 2}
    assert status.done.to_dict() == {"raises": 0, "exits": 0, "works": 2, "nan": 0}
    assert status.reason[["raises", "exits"]].tolist() == ["MemoryError: no more of it", "SystemExit: 3"]
    assert status.reason["nan"].startswith("the model's output is not finite for sample digits-")
    assert " under e; the model's output is not finite for sample digits-" in status.reason["nan"]
    assert " more samples)" in status.reason["nan"]
    with pytest.raises(RuntimeError, match=r"every cell failed: .* raises: MemoryError: no more of it"):
        ek.Study(**settings | {"models": {"raises": study.models["raises"]}}).run(progress=False)


def test_samples_without_a_value_are_nan_and_cost_no_other(settings):
    settings |= {"models": {"nan": NotFinite()}, "data": ["digits/test?size=17"]}
    with pytest.warns(UserWarning, match="1 of 1 cells failed or lack samples"):
        ds = ek.Study(**settings).run(progress=False).load()
    works = ek.measure(Net(), images.load("digits/test", size=17), group="C4", progress=False)
    works = works.sel(sample=ds.sample).isel(model=0)
    bright = xr.DataArray([bool(i["image"][0, 8, 8] > 0.9) for i in images.load("digits/test", size=17)])
    bright = bright.values[np.random.default_rng(0).permutation(397)]
    assert 0 < bright.sum() < 397
    assert ds.softmax.isel(model=0, sample=bright).isnull().all()
    assert (ds.prediction.isel(sample=bright) == -1).all()
    for name in ("softmax", "prediction", "latent", "channelwise"):
        np.testing.assert_array_equal(ds[name].isel(model=0, sample=~bright), works[name].isel(sample=~bright))
    # nobody is asked to compute again what would come out the same
    assert ek.Study(**settings).plan().forwards.tolist() == [0]
    reason = ek.summarise(ds).query("metric == 'softmax'").reason.item()
    assert reason.startswith(f"{bright.sum()} of 397 samples have no value (")


class Blind(Net):
    """Gives the same scores for every image, even one of NaN."""

    def forward(self, x):
        return self.head(self.features(torch.ones_like(x)))


def test_a_broken_image_costs_itself_alone(settings, pictures):
    settings |= {"models": {"works": Net(), "blind": Blind()}, "data": {"mine": f"{pictures}?size=9"}}
    whole = ek.Study(**settings | {"store": f"{settings['store']}.whole"}).run(progress=False).load()
    order = np.random.default_rng(0).permutation(300)
    broken = [images.load(str(pictures))["id"][order[place]] for place in (0, 3)]
    for file in broken:
        (pictures / file).write_bytes(b"no image")
    study = ek.Study(**settings)
    with pytest.warns(UserWarning, match="2 of 2 cells failed or lack samples"):
        ds = study.run(progress=False).load()
    assert study.status()[["done", "flawed", "failed"]].values.tolist() == [[1, 1, 0], [1, 1, 0]]
    for reason in study.status().reason:
        assert [f"ValueError: cannot read the image {pictures / file}" in reason for file in broken] == [True, True]
    assert ds.sample.values.tolist() == whole.sample.values.tolist()
    for name in ("channelwise", "latent", "softmax", "confidence"):
        undefined = ds[name].isnull() & whole[name].notnull()
        assert [place for place in range(300) if undefined.isel(sample=place).any()] == [0, 3]
        np.testing.assert_array_equal(ds[name].drop_sel(sample=broken), whole[name].drop_sel(sample=broken))
    assert (ds.prediction.sel(sample=broken) == -1).all()
    # and the nulls of their chain, in whose shuffled orbits they are
    lost = ds.softmax_null.isnull().any(("model", "element")).values
    assert np.flatnonzero(lost).tolist() == [0, 1, 2, 3]


class Learns(Net):
    """Has other weights after every forward pass."""

    def forward(self, x):
        found = super().forward(x)
        self.head.bias.add_(1e-5)
        return found


def test_a_model_that_changes_is_refused(settings):
    settings |= {"models": {"learns": Learns(), "works": Net()}, "data": ["digits/test?size=17"]}
    with pytest.raises(ValueError, match=r"learns: Learns changes its own weights as it runs \(head\.bias\),"):
        ek.Study(**settings).run(progress=False)


# --- other things of the same name


@pytest.fixture
def nothing_is_measured(monkeypatch):
    """From here on a forward pass fails the test."""
    return lambda: monkeypatch.setattr(nn.Module, "__call__", lambda *_: pytest.fail("a forward pass was made"))


@pytest.mark.parametrize("change", ["weights", "padding"])
def test_another_module_under_the_same_name_is_refused(settings, nothing_is_measured, change):
    settings |= {"models": {"mine": Net()}, "data": ["digits/test?size=17"]}
    ek.Study(**settings).run(progress=False)
    settings["models"] = {"mine": Net(seed=int(change == "weights"))}
    if change == "padding":
        settings["models"]["mine"].features[0].padding = (1, 1)
    nothing_is_measured()
    with pytest.raises(StoreError, match="with another model: 'Net "):
        ek.Study(**settings).run(progress=False)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"metrics": ["latent"]}, "metrics"), ({"seed": 1}, "seed"), ({"null": False}, "null"), ({"layers": "all"}, "layers"),
     ({"data": {"digits/train": "digits/train?n=300"}}, "data")],
)  # fmt: skip
def test_other_settings_under_the_same_name_are_refused(done, settings, nothing_is_measured, change, named):
    nothing_is_measured()
    with pytest.raises(StoreError, match=f"with another {named}: "):
        ek.Study(**settings | change).run(progress=False)


def test_weights_of_two_trainings_are_never_mixed(settings, monkeypatch):
    """As when another machine's training came out otherwise: the spec is the same, the weights are not."""
    study = ek.Study(**settings | {"models": MODELS[:1]})
    measured = workers._measured

    def at_first(job, places):
        if places[0] == 3 * 256:
            raise KeyboardInterrupt
        return measured(job, places)

    monkeypatch.setattr(workers, "_measured", at_first)
    with pytest.raises(KeyboardInterrupt):
        study.run(progress=False)
    assert study.status()[["done", "running", "missing"]].values.tolist() == [[3, 0, 3]]
    load = models.load
    monkeypatch.setattr(workers, "_measured", measured)
    monkeypatch.setattr(
        models,
        "load",
        lambda spec: replace(load(spec.replace("seed=0", "seed=1")), source=models.resolve(spec).source()),
    )
    with pytest.warns(UserWarning, match="this block has other weights than the first"):
        study.run(progress=False)
    assert study.status()[["done", "failed"]].values.tolist() == [[3, 3]]


def turned(g: int, z: torch.Tensor) -> torch.Tensor:
    return z.rot90(g, (-2, -1))


def mirrored(g: int, z: torch.Tensor) -> torch.Tensor:
    return z.flip(-1) if g % 2 else z


def test_custom_actions_of_one_name_are_never_mixed(settings):
    settings |= {"models": MODELS[:1], "data": ["digits/test?n=20"]}
    group = ek.groups.parse("C4")
    study = ek.Study(**settings | {"groups": [ek.actions.Action("mine", group, turned)]})
    assert_same(
        study.run(progress=False), ek.Study(**settings | {"store": f"{settings['store']}-2"}).run(progress=False)
    )
    study.run(progress=False)
    for other in (
        ek.actions.Action("mine", group, mirrored),
        "C4",
        ek.groups.Group("C4", "eabc", group.table, group.motions),
    ):
        with pytest.raises(StoreError, match="with another group: 'mine"):
            ek.Study(**settings | {"groups": [other]}).run(progress=False)


@pytest.mark.parametrize("letter", ["a", "é", "語"])
def test_names_longer_than_a_file_system_takes_work(settings, letter):
    long = [300 * letter + end for end in "bc"]
    study = ek.Study(
        **settings | {"models": dict(zip(long, MODELS[:2], strict=True)), "data": {long[0]: "digits/test?n=20"}}
    )
    found = study.run(progress=False).load()
    assert found.model.values.tolist() == long
    assert study.status().done.tolist() == [1, 1]
    xr.testing.assert_identical(ek.open(study.store, data=long[0]).load(), found)


def test_an_unreachable_scheduler_is_named_first(settings, monkeypatch):
    import distributed

    monkeypatch.setattr(images, "source", lambda _: pytest.fail("a checksum was read"))
    client = distributed.Client
    monkeypatch.setattr(distributed, "Client", lambda address, timeout: client(address, timeout=0.3))
    with pytest.raises(
        ValueError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9 .*leave it out to run on this machine"
    ):
        ek.Study(**settings).run(client="tcp://127.0.0.1:9", progress=False)
    assert not Path(settings["store"]).exists()


def test_a_file_replaced_after_the_start_is_refused(settings, monkeypatch):
    load = models.load
    monkeypatch.setattr(models, "load", lambda spec: load(spec.replace("seed=0", "seed=1")))
    with pytest.raises(RuntimeError, match="are not those that the study was begun with"):
        ek.Study(**settings | {"models": MODELS[:1]}).run(progress=False)
