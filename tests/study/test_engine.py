"""How blocks are computed: one at a time, by whom, on which threads and devices, and that nothing stays behind."""

import gc
import os
import socket
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
import xarray as xr
from torch import nn

import eedkit as ek
from eedkit.lab import images, models
from eedkit.results.cells import DONE, MISSING, RUNNING
from eedkit.results.disk import StoreError
from eedkit.results.process import me
from eedkit.study import engine

MODELS = ["recipe:random?seed=0&widths=4,8", "recipe:random?seed=1&widths=4,8"]


@pytest.fixture
def make(tmp_path):
    """Studies of 600 images in three blocks, or what is asked for."""

    def study(**changes) -> ek.Study:
        given = {"models": MODELS[:1], "data": ["digits/train?n=600"], "groups": ["C4"], "store": tmp_path / "a.zarr"}
        return ek.Study(**given | {"block": 256} | changes)

    return study


@pytest.fixture
def tasks(make, monkeypatch) -> list[engine.Task]:
    """The three tasks of a study that was begun and of which nothing is done."""
    kept = []
    monkeypatch.setattr(engine, "here", lambda given, modules: kept.extend(given) or iter(()))
    with pytest.raises(RuntimeError, match="nothing is done"):
        make().run(progress=False)
    monkeypatch.undo()
    return kept


@pytest.fixture
def sleeper():
    """A process of this machine that lives until the test is over."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def note(pid: int, born: float, host: str = "") -> str:
    return f"{host or socket.gethostname()} {pid} {born:.2f}"


def net(seed: int) -> nn.Module:
    """Of torch's own classes, which a worker can import."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def same(found: xr.Dataset, wanted: xr.Dataset) -> None:
    """Bit for bit; only when it was made may differ."""
    xr.testing.assert_identical(found.load().drop_attrs(deep=False), wanted.load().drop_attrs(deep=False))


# --- blocks


def test_a_process_runs_one_block_at_a_time(tasks, monkeypatch):
    inside, most, measured = [], [], engine._measured

    def slowly(task, module):
        inside.append(task.block)
        most.append(len(inside))
        time.sleep(0.05)
        found = measured(task, module)
        inside.remove(task.block)
        return found

    monkeypatch.setattr(engine, "_measured", slowly)
    threads = [threading.Thread(target=engine.compute, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1]
    assert [tasks[0].cell.status(block)[0] for block in range(3)] == [DONE] * 3


def test_a_block_that_is_done_is_skipped(tasks, monkeypatch):
    assert engine.compute(tasks[1]).kind == "done"
    monkeypatch.setattr(engine, "_measured", lambda *_: pytest.fail("it was measured again"))
    outcome = engine.compute(tasks[1])
    assert (outcome.kind, outcome.task) == ("skipped", tasks[1])
    assert tasks[1].cell.status(1) == (DONE, "cpu")


def test_a_block_of_a_living_process_is_left_to_it_until_the_others_are_done(tasks, sleeper):
    cell = tasks[0].cell
    cell.mark(0, RUNNING, note(sleeper.pid, psutil.Process(sleeper.pid).create_time()))
    assert engine.compute(tasks[0]).kind == "busy"
    assert cell.status(0)[0] == RUNNING
    outcomes = list(engine.here(tasks, {}))
    assert [(outcome.task.block, outcome.kind) for outcome in outcomes] == [(1, "done"), (2, "done"), (0, "done")]
    assert cell.ledger().done.all()


def test_a_block_that_its_process_finishes_meanwhile_is_skipped(tasks, sleeper, monkeypatch):
    cell, compute = tasks[0].cell, engine.compute
    cell.mark(0, RUNNING, note(sleeper.pid, psutil.Process(sleeper.pid).create_time()))

    def meanwhile(task, module=None):
        if task.block == 2:
            cell.mark(0, DONE, "cpu")
        return compute(task, module)

    monkeypatch.setattr(engine, "compute", meanwhile)
    assert [(outcome.task.block, outcome.kind) for outcome in engine.here(tasks, {})] == [
        (1, "done"),
        (2, "done"),
        (0, "skipped"),
    ]


@pytest.mark.parametrize("who", ["gone", "another with its number", "a zombie", "this one"])
def test_a_block_of_a_process_that_is_gone_is_computed_at_once(tasks, sleeper, who):
    born = psutil.Process(sleeper.pid).create_time()
    if who in ("gone", "a zombie"):
        sleeper.kill()
        if who == "gone":
            sleeper.wait()
        else:
            while psutil.Process(sleeper.pid).status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.01)
    else:
        born -= 100
    tasks[0].cell.mark(0, RUNNING, me() if who == "this one" else note(sleeper.pid, born))
    assert engine.compute(tasks[0]).kind == "done"


def test_a_process_of_another_machine_may_be_alive(tasks):
    tasks[0].cell.mark(0, RUNNING, note(2**22 + 1, 0.0, "elsewhere"))
    assert [(outcome.task.block, outcome.kind) for outcome in engine.here(tasks, {})] == [
        (1, "done"),
        (2, "done"),
        (0, "done"),
    ]


def test_an_interrupted_block_is_nobodys(tasks, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "_measured", stopped)
    with pytest.raises(KeyboardInterrupt):
        engine.compute(tasks[0])
    assert tasks[0].cell.status(0) == (MISSING, "")
    assert not engine.ONE_AT_A_TIME.locked()


def test_a_store_that_a_worker_does_not_see_is_named(tasks, tmp_path):
    unseen = replace(tasks[0], cell=replace(tasks[0].cell, store=str(tmp_path / "not mounted.zarr")))
    with pytest.raises(StoreError, match=r"not mounted\.zarr"):
        engine.compute(unseen)


def test_blocks_of_other_images_are_never_mixed(make, monkeypatch):
    """As when a worker's folder of the same name holds another version of the images."""
    measured, load = engine._measured, images.load

    def elsewhere(task, module):
        engine._opened.cache_clear()
        with monkeypatch.context() as patch:
            if task.block == 1:
                patch.setattr(images, "load", lambda spec, **how: load(f"{spec}&seed=5", **how))
            return measured(task, module)

    monkeypatch.setattr(engine, "_measured", elsewhere)
    study = make()
    with pytest.warns(UserWarning, match="images"):
        study.run(progress=False)
    assert study.status()[["done", "failed"]].values.tolist() == [[2, 1]]


# --- threads and devices


def test_threads_are_those_asked_for_and_given_back(tasks, monkeypatch):
    before, seen, measured = torch.get_num_threads(), [], engine._measured

    def noted(task, module):
        seen.append(torch.get_num_threads())
        if task.block == 2:
            raise MemoryError
        return measured(task, module)

    monkeypatch.setattr(engine, "_measured", noted)
    torch.set_num_threads(3)
    try:
        for task, threads in zip(tasks, (1, None, 2), strict=True):
            engine.compute(replace(task, threads=threads))
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 3, 2]


@pytest.mark.parametrize(("name", "chosen"), [(None, 0), (0, 0), (1, 1), ("3", 1), ("tcp://10.0.0.1:99", 0)])
def test_workers_take_turns_on_the_gpus(monkeypatch, name, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(engine, "_worker", lambda: None if name is None else type("Worker", (), {"name": name}))
    assert engine.device("auto") == f"cuda:{chosen}"
    assert engine.device("cpu") == "cpu"
    assert engine.device("cuda:1") == "cuda:1"


def test_a_worker_of_dask_cuda_takes_the_gpu_that_it_sees_first(monkeypatch):
    """dask-cuda rotates CUDA_VISIBLE_DEVICES: worker 1 of 4 sees 1, 2, 3, 0."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(engine, "_worker", lambda: type("Worker", (), {"name": 1}))
    monkeypatch.setitem(sys.modules, "dask_cuda", sys)
    assert engine.device("auto") == "cuda:0"


# --- clusters


@pytest.fixture
def clients(monkeypatch):
    """Starts a Dask cluster in this process; what is submitted is noted."""
    from distributed import Client, LocalCluster

    stack, submitted = [], []

    def start(**options):
        how = {"processes": False, "n_workers": 1, "threads_per_worker": 2, "dashboard_address": None}
        stack.append(LocalCluster(**how | options))
        stack.append(Client(stack[-1]))
        submit = stack[-1].submit
        stack[-1].submit = lambda *given, **how: submitted.append(how) or submit(*given, **how)
        return stack[-1], submitted

    yield start
    for opened in reversed(stack):
        opened.close()
    # a worker keeps what it loaded, and here the worker is this process
    engine._loaded.cache_clear()
    engine._opened.cache_clear()


@pytest.mark.slow
def test_a_cluster_gives_what_one_process_gives(make, tmp_path, clients):
    given = {"models": {"recipe": MODELS[0], "one": net(1), "two": net(2)}, "data": ["digits/train?n=300&size=17"]}
    alone = make(**given, store=tmp_path / "alone.zarr").run(progress=False).load()
    assert not np.array_equal(alone.softmax.sel(model="one"), alone.softmax.sel(model="two"))
    client, submitted = clients()
    before = torch.get_num_threads()
    study = make(**given)
    same(study.run(client=client, progress=False), alone)
    assert torch.get_num_threads() == before
    assert [how["resources"] for how in submitted] == [None] * 6
    assert study.status().done.tolist() == [2, 2, 2]
    same(study.run(client=client.scheduler.address, progress=False), alone)
    assert len(submitted) == 6


def test_blocks_ask_for_a_gpu_where_workers_have_them_to_give(make, clients):
    client, submitted = clients(resources={"GPU": 1})
    study = make(data=["digits/test?n=20"])
    study.run(client=client, progress=False)
    assert [how["resources"] for how in submitted] == [{"GPU": 1}]
    assert study.status().done.tolist() == [1]


def test_a_cluster_asks_again_for_what_another_process_was_at(make, tasks, sleeper, clients):
    tasks[1].cell.mark(1, RUNNING, note(sleeper.pid, psutil.Process(sleeper.pid).create_time()))
    client, submitted = clients()
    study = make()
    study.run(client=client, progress=False)
    assert study.status().done.tolist() == [3]
    assert len(submitted) == 4


def test_a_cluster_stops_at_a_store_that_cannot_be_used(make, clients, monkeypatch):
    def full(*_):
        raise StoreError("cannot write to the store")

    monkeypatch.setattr(engine.Cell, "write", full)
    with pytest.raises(StoreError, match="cannot write to the store"):
        make().run(client=clients()[0], progress=False)


@pytest.mark.slow
def test_modules_reach_workers_of_other_processes(make, tmp_path):
    given = {"models": {"net": net(0)}, "data": ["digits/test?n=20&size=17"]}
    alone = make(**given, store=tmp_path / "alone.zarr").run(progress=False)
    same(make(**given).run(workers=1, progress=False), alone)


@pytest.mark.slow
def test_no_other_machine_can_reach_the_processes_of_this_one():
    with engine.cluster(2, None) as client:
        addresses = client.run(lambda dask_worker: (os.getpid(), dask_worker.address))
        assert len({pid for pid, _ in addresses.values()} | {os.getpid()}) == 3
        heard = set()
        for pid in [os.getpid(), *(pid for pid, _ in addresses.values())]:
            process = psutil.Process(pid)
            mine = [one for one in process.net_connections(kind="inet") if one.status == psutil.CONN_LISTEN]
            assert mine, "a scheduler and a worker listen on something"
            heard |= {one.laddr.ip for one in mine}
        assert client.cluster.scheduler.address.startswith("tcp://127.0.0.1:")
        assert all(address.startswith("tcp://127.0.0.1:") for _, address in addresses.values())
        assert heard == {"127.0.0.1"}
        assert client.cluster.dashboard_link.startswith("http://127.0.0.1:")


# --- what stays behind


def test_no_model_and_no_images_stay_after_a_run(make, monkeypatch):
    kept, load = [], models.load

    def noted(spec):
        loaded = load(spec)
        kept.append(weakref.ref(loaded.model))
        return loaded

    monkeypatch.setattr(models, "load", noted)
    make(models=MODELS).run(progress=False)
    assert len(kept) == 2
    assert engine._loaded.cache_info().currsize == engine._opened.cache_info().currsize == 0
    gc.collect()
    assert [ref() for ref in kept] == [None, None]


def test_no_model_stays_after_a_run_that_was_stopped(make, monkeypatch):
    measured = engine._measured

    def stopped(task, module):
        measured(task, module)
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "_measured", stopped)
    with pytest.raises(KeyboardInterrupt):
        make().run(progress=False)
    gc.collect()
    assert engine._loaded.cache_info().currsize == engine._opened.cache_info().currsize == 0


def test_models_and_images_are_loaded_once_for_all_their_blocks(make):
    sizes, measured = [], engine._measured
    with pytest.MonkeyPatch.context() as patch:

        def noted(task, module):
            found = measured(task, module)
            sizes.append((engine._loaded.cache_info().misses, engine._opened.cache_info().misses))
            return found

        patch.setattr(engine, "_measured", noted)
        make(models=MODELS, groups=["C4", "flip"], data=["digits/train?n=300"]).run(progress=False)
    assert len(sizes) == 8
    assert sizes[-1][0] == 2
    assert sizes[-1][1] <= 2
