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

import dask
import numpy as np
import psutil
import pytest
import torch
import xarray as xr
from PIL import Image
from torch import nn

import eedkit as ek
from eedkit.lab import images, models
from eedkit.study import workers
from eedkit.study.files import StoreError
from eedkit.study.store import DONE, MISSING, RUNNING, Store
from eedkit.study.workers import Work

MODELS = ["recipe:random?seed=0&widths=4,8", "recipe:random?seed=1&widths=4,8"]


@pytest.fixture
def make(tmp_path):
    """Studies of 600 images in three blocks, or what is asked for."""

    def study(**changes) -> ek.Study:
        given = {"models": MODELS[:1], "data": ["digits/train?n=600"], "groups": ["C4"], "store": tmp_path / "a"}
        return ek.Study(**given | {"block": 256} | changes)

    return study


@pytest.fixture
def works(make, monkeypatch) -> list[Work]:
    """The three blocks of a study that was begun and of which nothing is done."""
    kept = []
    monkeypatch.setattr(workers, "here", lambda given, modules: kept.extend(given) or iter(()))
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


def status(work: Work) -> str:
    """What the block is, by its store."""
    return Store(work.store).state(work.cell).status(work.block)


def claim(work: Work, process: str) -> None:
    """Let another process be at the block."""
    content = {"process": process, "since": 0.0}
    Store(work.store).folder.write_json(f"{work.cell.path}/running-{work.block:04}", content)


def text_of(process: psutil.Process) -> str:
    """How the store names a process."""
    return f"{socket.gethostname()}~{process.pid}~{process.create_time():.2f}"


def net(seed: int) -> nn.Module:
    """Of torch's own classes, which a worker can import."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def assert_same(found: xr.Dataset, wanted: xr.Dataset) -> None:
    """Bit for bit; only when it was made may differ."""
    xr.testing.assert_identical(found.load().drop_attrs(deep=False), wanted.load().drop_attrs(deep=False))


# --- blocks


def test_a_process_runs_one_block_at_a_time(works, monkeypatch):
    inside, most, measured = [], [], workers._measured

    def slowly(work, module):
        inside.append(work.block)
        most.append(len(inside))
        time.sleep(0.05)
        found = measured(work, module)
        inside.remove(work.block)
        return found

    monkeypatch.setattr(workers, "_measured", slowly)
    threads = [threading.Thread(target=workers.compute, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1]
    assert list(map(status, works)) == [DONE] * 3


def test_a_block_that_is_done_is_skipped(works, monkeypatch):
    assert workers.compute(works[1]).kind == "done"
    monkeypatch.setattr(workers, "_measured", lambda *_: pytest.fail("it was measured again"))
    outcome = workers.compute(works[1])
    assert (outcome.kind, outcome.work) == ("skipped", works[1])
    assert status(works[1]) == DONE


def test_a_block_of_a_living_process_comes_last(works, sleeper):
    claim(works[0], text_of(psutil.Process(sleeper.pid)))
    assert workers.compute(works[0]).kind == "busy"
    assert status(works[0]) == RUNNING
    outcomes = list(workers.here(works, {}))
    assert [(outcome.work.block, outcome.kind) for outcome in outcomes] == [(1, "done"), (2, "done"), (0, "done")]
    assert list(map(status, works)) == [DONE] * 3


def test_a_block_that_is_done_meanwhile_is_skipped(works, sleeper, monkeypatch):
    claim(works[0], text_of(psutil.Process(sleeper.pid)))
    compute = workers.compute

    def meanwhile(work, module=None):
        if work.block == 2:
            compute(replace(works[0], share=False))
        return compute(work, module)

    monkeypatch.setattr(workers, "compute", meanwhile)
    assert [(outcome.work.block, outcome.kind) for outcome in workers.here(works, {})] == [
        (1, "done"),
        (2, "done"),
        (0, "skipped"),
    ]


@pytest.mark.parametrize("who", ["gone", "another with its number", "a zombie"])
def test_a_block_of_a_dead_process_is_computed_at_once(works, sleeper, who):
    process = psutil.Process(sleeper.pid)
    text = text_of(process)
    if who == "another with its number":
        text = f"{text.rpartition('~')[0]}~{process.create_time() - 100:.2f}"
    else:
        sleeper.kill()
        while who == "a zombie" and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        if who == "gone":
            sleeper.wait()
    claim(works[0], text)
    assert workers.compute(works[0]).kind == "done"


def test_a_process_of_another_machine_may_be_alive(works):
    claim(works[0], f"elsewhere~{2**22 + 1}~0.00")
    assert [(outcome.work.block, outcome.kind) for outcome in workers.here(works, {})] == [
        (1, "done"),
        (2, "done"),
        (0, "done"),
    ]


def test_an_interrupted_block_is_nobodys(works, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(workers, "_measured", stopped)
    with pytest.raises(KeyboardInterrupt):
        workers.compute(works[0])
    assert status(works[0]) == MISSING
    assert not workers.ONE_AT_A_TIME.locked()


def test_a_store_that_a_worker_does_not_see_is_named(works, tmp_path):
    unseen = replace(works[0], store=str(tmp_path / "not mounted"))
    with pytest.raises(StoreError, match=r"not mounted has no .* every worker must see that folder"):
        workers.compute(unseen)


def test_blocks_of_other_images_are_never_mixed(make, monkeypatch):
    """As when a worker's folder of the same name holds another version of the images."""
    measured, load = workers._measured, images.load

    def elsewhere(work, module):
        workers._opened.cache_clear()
        with monkeypatch.context() as patch:
            if work.block == 1:
                patch.setattr(images, "load", lambda spec, **how: load(f"{spec}&seed=5", **how))
            return measured(work, module)

    monkeypatch.setattr(workers, "_measured", elsewhere)
    study = make()
    with pytest.warns(UserWarning, match="images"):
        study.run(progress=False)
    assert study.status()[["done", "failed"]].values.tolist() == [[2, 1]]


# --- threads and devices


def test_threads_are_those_asked_for_and_given_back(works, monkeypatch):
    before, seen, measured = torch.get_num_threads(), [], workers._measured

    def noted(work, module):
        seen.append(torch.get_num_threads())
        if work.block == 2:
            raise MemoryError
        return measured(work, module)

    monkeypatch.setattr(workers, "_measured", noted)
    torch.set_num_threads(3)
    try:
        for work, threads in zip(works, (1, None, 2), strict=True):
            workers.compute(replace(work, threads=threads))
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 3, 2]


@pytest.mark.parametrize(("name", "chosen"), [(None, 0), (0, 0), (1, 1), ("3", 1), ("tcp://10.0.0.1:99", 0)])
def test_workers_take_turns_on_the_gpus(monkeypatch, name, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(workers, "_worker", lambda: None if name is None else type("Worker", (), {"name": name}))
    assert workers.device("auto") == f"cuda:{chosen}"
    assert workers.device("cpu") == "cpu"
    assert workers.device("cuda:1") == "cuda:1"


def test_a_worker_of_dask_cuda_takes_the_gpu_that_it_sees_first(monkeypatch):
    """dask-cuda rotates CUDA_VISIBLE_DEVICES: worker 1 of 4 sees 1, 2, 3, 0."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(workers, "_worker", lambda: type("Worker", (), {"name": 1}))
    monkeypatch.setitem(sys.modules, "dask_cuda", sys)
    assert workers.device("auto") == "cuda:0"


# --- clusters


@pytest.fixture
def clients(monkeypatch):
    """Starts a Dask cluster in this process; how blocks are submitted is noted."""
    from distributed import Client, LocalCluster

    stack, submitted = [], []

    def start(**options):
        how = {"processes": False, "n_workers": 1, "threads_per_worker": 2, "dashboard_address": None}
        stack.append(LocalCluster(**how | options))
        stack.append(Client(stack[-1]))
        submit = stack[-1].submit

        def noted(function, *given, **how):
            if function is workers.compute:
                submitted.append(how)
            return submit(function, *given, **how)

        stack[-1].submit = noted
        return stack[-1], submitted

    yield start
    for opened in reversed(stack):
        opened.close()
    # a worker keeps what it loaded, and here the worker is this process
    workers._loaded.cache_clear()
    workers._opened.cache_clear()


@pytest.mark.slow
def test_a_cluster_gives_what_one_process_gives(make, tmp_path, clients):
    given = {"models": {"recipe": MODELS[0], "one": net(1), "two": net(2)}, "data": ["digits/train?n=300&size=17"]}
    alone = make(**given, store=tmp_path / "alone").run(progress=False).load()
    assert not np.array_equal(alone.softmax.sel(model="one"), alone.softmax.sel(model="two"))
    client, submitted = clients()
    before = torch.get_num_threads()
    study = make(**given)
    assert_same(study.run(client=client, progress=False), alone)
    assert torch.get_num_threads() == before
    assert [how["resources"] for how in submitted] == [None] * 6
    assert study.status().done.tolist() == [2, 2, 2]
    assert_same(study.run(client=client.scheduler.address, progress=False), alone)
    assert len(submitted) == 6


def test_blocks_ask_for_a_gpu_where_workers_have_them_to_give(make, clients):
    client, submitted = clients(resources={"GPU": 1})
    study = make(data=["digits/test?n=20"])
    study.run(client=client, progress=False)
    assert [how["resources"] for how in submitted] == [{"GPU": 1}]
    assert study.status().done.tolist() == [1]


def test_a_cluster_asks_again_for_what_another_process_was_at(make, works, sleeper, clients):
    claim(works[1], text_of(psutil.Process(sleeper.pid)))
    client, submitted = clients()
    study = make()
    study.run(client=client, progress=False)
    assert study.status().done.tolist() == [3]
    assert len(submitted) == 4


def test_a_cluster_stops_at_a_store_that_cannot_be_used(make, clients, monkeypatch):
    def full(*_):
        raise StoreError("cannot write to the store")

    monkeypatch.setattr(Store, "write", full)
    with pytest.raises(StoreError, match="cannot write to the store"):
        make().run(client=clients()[0], progress=False)


def test_a_module_that_cannot_be_sent_fails_only_its_cells(make, clients):
    locked = net(0)
    locked.lock = threading.Lock()
    study = make(models={"locked": locked, "works": net(1)}, data=["digits/test?n=20&size=17"])
    with pytest.warns(UserWarning, match="1 of 2 cells failed"):
        found = study.run(client=clients()[0], progress=False)
    assert found.model.values.tolist() == ["works"]
    assert study.status()[["done", "failed"]].values.tolist() == [[0, 1], [1, 0]]
    reason = study.status().reason[0]
    assert reason.startswith("locked cannot be sent to other processes (cannot pickle '_thread.lock' object)")
    assert reason.endswith("give it as a file:… spec, or run without workers")


@pytest.mark.slow
def test_a_module_lost_by_all_workers_is_sent_again(make, tmp_path):
    given = {"data": ["digits/train?n=600&size=17"]}
    alone = make(**given, models={"net": net(0)}, store=tmp_path / "alone").run(progress=False)
    torch.manual_seed(0)

    class Kills(nn.Sequential):
        """Ends its process without a word, the first time."""

        def forward(self, x):
            if not os.path.exists(self.there):
                open(self.there, "w").close()
                os.kill(os.getpid(), 9)
            return super().forward(x)

    kills = Kills(*net(0))
    kills.there = str(tmp_path / "killed")
    study = make(**given, models={"net": kills})
    found = study.run(workers=1, progress=False)
    assert (tmp_path / "killed").exists()
    assert study.status().done.tolist() == [3]
    np.testing.assert_array_equal(found.softmax, alone.softmax)


@pytest.mark.slow
def test_a_block_that_kills_its_workers_costs_no_other(make):
    class Kills(nn.Sequential):
        def forward(self, x):
            os.kill(os.getpid(), 9)

    study = make(models={"kills": Kills(*net(0)), "works": net(1)}, data=["digits/train?n=300&size=17"])
    # tasks for a GPU are dealt out at once, and Dask gives them up when two workers that were to do them have ended
    with (
        dask.config.set({"distributed.worker.resources": {"GPU": 1}, "distributed.scheduler.allowed-failures": 1}),
        pytest.warns(UserWarning, match="1 of 2 cells failed"),
    ):
        found = study.run(workers=1, progress=False)
    assert found.model.values.tolist() == ["works"]
    assert study.status()[["done", "failed"]].values.tolist() == [[0, 2], [2, 0]]
    assert study.status().reason[0].startswith("KilledWorker: ")


@pytest.mark.slow
def test_modules_reach_workers_of_other_processes(make, tmp_path):
    given = {"models": {"net": net(0)}, "data": ["digits/test?n=20&size=17"]}
    alone = make(**given, store=tmp_path / "alone").run(progress=False)
    assert_same(make(**given).run(workers=1, progress=False), alone)


@pytest.mark.slow
def test_no_other_machine_can_reach_the_processes_of_this_one():
    with workers.cluster(2, None) as client:
        addresses = client.run(lambda dask_worker: (os.getpid(), dask_worker.address))
        assert len({pid for pid, _ in addresses.values()} | {os.getpid()}) == 3
        heard = set()
        for pid in [os.getpid(), *(pid for pid, _ in addresses.values())]:
            process = psutil.Process(pid)
            mine = [one for one in process.net_connections(kind="inet") if one.status == psutil.CONN_LISTEN]
            assert mine, "a scheduler and a worker listen on something"
            heard |= {one.laddr.ip for one in mine}
        assert client.cluster.scheduler.address.startswith("tls://127.0.0.1:")
        assert all(address.startswith("tls://127.0.0.1:") for _, address in addresses.values())
        assert heard == {"127.0.0.1"}
        assert client.cluster.dashboard_link.startswith("http://127.0.0.1:")


# --- what stays behind


def test_no_model_and_no_images_stay_after_a_run(make, monkeypatch):
    workers._loaded.cache_clear()  # of tests that compute single blocks
    kept, load = [], models.load

    def noted(spec):
        loaded = load(spec)
        kept.append(weakref.ref(loaded.model))
        return loaded

    monkeypatch.setattr(models, "load", noted)
    make(models=MODELS).run(progress=False)
    assert len(kept) == 2
    assert workers._loaded.cache_info().currsize == workers._opened.cache_info().currsize == 0
    gc.collect()
    assert [ref() for ref in kept] == [None, None]


def test_no_model_stays_after_a_run_that_was_stopped(make, monkeypatch):
    measured = workers._measured

    def stopped(work, module):
        measured(work, module)
        raise KeyboardInterrupt

    monkeypatch.setattr(workers, "_measured", stopped)
    with pytest.raises(KeyboardInterrupt):
        make().run(progress=False)
    gc.collect()
    assert workers._loaded.cache_info().currsize == workers._opened.cache_info().currsize == 0


def test_models_and_images_are_loaded_once_for_all_their_blocks(make):
    sizes, measured = [], workers._measured
    with pytest.MonkeyPatch.context() as patch:

        def noted(work, module):
            found = measured(work, module)
            sizes.append((workers._loaded.cache_info().misses, workers._opened.cache_info().misses))
            return found

        patch.setattr(workers, "_measured", noted)
        make(models=MODELS, groups=["C4", "flip"], data=["digits/train?n=300"]).run(progress=False)
    assert len(sizes) == 8
    assert sizes[-1][0] == 2
    assert sizes[-1][1] <= 2


@pytest.mark.parametrize(("room", "times"), [(workers.KEPT, 1), (10 * 17 * 17 * 4, 2), (0, 3)])
def test_images_are_decoded_once_while_there_is_room(make, monkeypatch, room, times):
    monkeypatch.setattr(workers, "KEPT", room)
    decoded = []
    really_open = Image.open

    def counted(*arguments, **options):
        decoded.append(arguments)
        return really_open(*arguments, **options)

    monkeypatch.setattr(Image, "open", counted)
    three = [*MODELS, "recipe:random?seed=2&widths=4,8"]
    make(models=three, data=["digits/train?n=20"]).run(progress=False)
    assert len(decoded) == {1: 20, 2: 20 + 2 * 10, 3: 3 * 20}[times]
