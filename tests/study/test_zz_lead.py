"""How blocks are computed: one at a time, by whom, on which threads and devices, and that nothing stays behind."""

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import dask
import distributed
import psutil
import pytest
import torch
from distributed.comm.core import CommClosedError
from PIL import Image
from torch import nn

import eedkit as ek
from eedkit.lab import images, models
from eedkit.study import tasks, workers
from eedkit.study.files import StoreError
from eedkit.study.store import DONE, MISSING, RUNNING, Store
from eedkit.study.workers import Work

from .conftest import MODELS, assert_same

THREE = {"data": ["digits/train?n=600"], "block": 256}
"""Three blocks."""


def until(is_so: Callable[[], object]) -> None:
    """Wait until something is so, for as long as a busy machine may take."""
    end = time.monotonic() + 300
    while not is_so():
        assert time.monotonic() < end, "it has not come about"
        time.sleep(0.02)


@pytest.fixture
def works(make, monkeypatch) -> list[Work]:
    """The three blocks of a study that was begun and of which nothing is done."""
    kept = []
    monkeypatch.setattr(workers, "here", lambda given: kept.extend(given) or iter(()))
    with pytest.raises(RuntimeError, match="nothing is done"):
        make(**THREE).run(progress=False)
    monkeypatch.undo()
    return kept


@pytest.fixture
def sleeper():
    """A process of this machine that lives until the test is over."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield psutil.Process(process.pid)
    process.kill()
    process.wait()


def status(work: Work) -> str:
    """What the block is, by its store."""
    job, block = work
    return job.store.state(job.cell).status(block)


def claim(work: Work, process: psutil.Process) -> None:
    """Let another process be at the block."""
    job, block = work
    text = f"{socket.gethostname()}~{process.pid}~{process.create_time():.2f}"
    job.store.folder.write_json(f"{job.cell.path}/running-{block:04}", {"process": text, "since": 0.0})


def net(seed: int) -> nn.Module:
    """Of torch's own classes, which a worker can import."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


# --- blocks


def test_a_process_runs_one_block_at_a_time(works, monkeypatch):
    inside, most, measured = [], [], workers._measured

    def noted(job, places):
        inside.append(places)
        most.append(len(inside))
        found = measured(job, places)
        inside.remove(places)
        return found

    monkeypatch.setattr(workers, "_measured", noted)
    threads = [threading.Thread(target=workers.compute, args=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1]
    assert list(map(status, works)) == [DONE] * 3
    monkeypatch.setattr(workers, "_measured", lambda *_: pytest.fail("it was measured again"))
    assert workers.compute(*works[1]) == workers.SKIPPED


def test_a_block_of_a_living_process_comes_last_and_that_of_a_dead_one_is_computed_at_once(works, sleeper):
    claim(works[0], sleeper)
    assert workers.compute(*works[0]) == workers.BUSY
    assert status(works[0]) == RUNNING
    outcomes = [outcome for _, outcome in workers.here(works[:2])]
    assert outcomes == [workers.COMPUTED, workers.COMPUTED]
    assert list(map(status, works)) == [DONE, DONE, MISSING]
    claim(works[2], sleeper)
    sleeper.kill()
    until(lambda: sleeper.status() == psutil.STATUS_ZOMBIE)
    assert workers.compute(*works[2]) == workers.COMPUTED


def test_an_interrupted_block_is_nobodys(works, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(workers, "_measured", stopped)
    with pytest.raises(KeyboardInterrupt):
        workers.compute(*works[0])
    assert status(works[0]) == MISSING
    assert not workers.ONE_AT_A_TIME.locked()


def test_a_store_that_a_worker_does_not_see_is_named(works, tmp_path):
    unseen = replace(works[0][0], store=Store(str(tmp_path / "not mounted")))
    with pytest.raises(StoreError, match=r"not mounted has no .* every worker must see that folder"):
        workers.compute(unseen, 0)
    assert not (tmp_path / "not mounted").exists()


def test_blocks_of_other_images_are_never_mixed(make, monkeypatch):
    """As when a worker's folder of the same name holds another version of the images."""
    measured, load = workers._measured, images.load

    def elsewhere(job, places):
        workers.forget()
        with monkeypatch.context() as patch:
            if places[0] == 256:
                patch.setattr(images, "load", lambda spec, **how: load(f"{spec}&seed=5", **how))
            return measured(job, places)

    monkeypatch.setattr(workers, "_measured", elsewhere)
    study = make(**THREE)
    with pytest.warns(UserWarning, match="images"):
        study.run(progress=False)
    assert study.status()[["done", "failed"]].values.tolist() == [[2, 1]]


# --- threads and devices


def test_threads_are_those_asked_for_and_given_back(works, monkeypatch):
    before, seen, measured = torch.get_num_threads(), [], workers._measured

    def noted(job, places):
        seen.append(torch.get_num_threads())
        if places[0] == 512:
            raise MemoryError
        return measured(job, places)

    monkeypatch.setattr(workers, "_measured", noted)
    torch.set_num_threads(3)
    try:
        for (job, block), threads in zip(works, (1, None, 2), strict=True):
            workers.compute(replace(job, threads=threads), block)
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 3, 2]


@pytest.mark.parametrize(
    ("name", "is_dealt", "chosen"), [(None, False, 0), (1, False, 1), ("3", False, 1), ("tcp://10.0.0.1:99", False, 0), (1, True, 0)]
)  # fmt: skip
def test_workers_take_turns_on_the_gpus_unless_dask_cuda_deals_them_out(monkeypatch, name, is_dealt, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(workers, "_worker", lambda: None if name is None else type("Worker", (), {"name": name}))
    if is_dealt:  # which rotates CUDA_VISIBLE_DEVICES: worker 1 of 4 sees 1, 2, 3, 0
        monkeypatch.setitem(sys.modules, "dask_cuda", sys)
    assert [workers.device(asked) for asked in ("auto", "cpu", "cuda:1")] == [f"cuda:{chosen}", "cpu", "cuda:1"]


# --- clusters


@pytest.fixture
def clients():
    """Starts a Dask cluster in this process; how blocks are submitted is noted."""
    from distributed import Client, LocalCluster

    stack, submitted = [], []

    def start(**options):
        how = {"processes": False, "n_workers": 1, "threads_per_worker": 2, "dashboard_address": None}
        stack.append(LocalCluster(**how | options))
        stack.append(Client(stack[-1]))
        submit = stack[-1].submit

        def noted(function, *given, **how):
            if function is tasks.compute:
                submitted.append(how)
            return submit(function, *given, **how)

        stack[-1].submit = noted
        return stack[-1], submitted

    yield start
    for opened in reversed(stack):
        opened.close()
    workers.forget()  # a worker keeps what it loaded, and here the worker is this process


@pytest.mark.slow
def test_a_cluster_gives_what_one_process_gives(make, clients):
    given = {
        "models": {"recipe": MODELS[0], "one": net(1), "two": net(2)},
        "data": ["digits/train?n=300&size=17"],
        "block": 256,
    }
    alone = make(**given).run(progress=False)
    client, submitted = clients(resources={"GPU": 1})
    before = torch.get_num_threads()
    study = make(**given)
    assert_same(study.run(client=client, progress=False), alone)
    assert torch.get_num_threads() == before
    assert [how["resources"] for how in submitted] == [{"GPU": 1}] * 6
    assert_same(study.run(client=client.scheduler.address, progress=False), alone)
    assert len(submitted) == 6


def test_a_cluster_asks_again_for_what_another_process_was_at(make, works, sleeper, clients):
    claim(works[1], sleeper)
    client, submitted = clients()
    study = make(**THREE, store=works[0][0].store.address)
    study.run(client=client, progress=False)
    assert study.status().done.tolist() == [3]
    assert [how["resources"] for how in submitted] == [None] * 4


def test_what_ends_a_cluster_is_no_blocks_failure(make, clients, monkeypatch):
    def full(*_):
        raise StoreError("cannot write to the store")

    submitted = workers._submitted

    def cancelled(client, *given, **how):
        works_of = submitted(client, *given, **how)
        client.cancel(list(works_of))
        return works_of

    client, _ = clients()
    study = make(**THREE)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", full)
        with pytest.raises(StoreError, match="cannot write to the store"):
            study.run(client=client, progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(workers, "_submitted", cancelled)
        with pytest.raises(ConnectionError, match=r"the tasks were cancelled.* What is done stays; run again"):
            study.run(client=client, progress=False)
    assert study.status().failed.tolist() == [0]


def test_a_module_that_cannot_be_sent_is_refused_before_anything_is_computed(make, clients, computed):
    locked = net(0)
    locked.lock = threading.Lock()
    study = make(models={"works": net(1), "locked": locked}, data=["digits/test?n=20&size=17"])
    message = (
        r"locked cannot be sent to other processes \(cannot pickle .*give it as a file:… spec, or run without workers"
    )
    with pytest.raises(ValueError, match=message):
        study.run(client=clients()[0], progress=False)
    assert computed == []


def test_waiting_for_the_workers_of_a_cluster_is_said(make, clients):
    client, _ = clients(n_workers=0)
    study = make()
    threading.Timer(0.5, lambda: client.cluster.scale(1)).start()
    with pytest.warns(UserWarning, match=r"the Dask scheduler at inproc://.* has no worker yet; the run begins when"):
        study.run(client=client, progress=False)
    assert study.status().done.tolist() == [1]


@pytest.mark.slow
@pytest.mark.parametrize("times", ["once", "always"])
def test_a_block_that_kills_its_workers_costs_no_other(make, tmp_path, times):
    class Kills(nn.Sequential):
        def forward(self, x):
            is_worker = os.getpid() != self.parent
            if is_worker and (self.times == "always" or not os.path.exists(self.there)):
                open(self.there, "w").close()
                os.kill(os.getpid(), 9)
            return super().forward(x)

    kills = Kills(*net(0))
    kills.parent, kills.there, kills.times = os.getpid(), str(tmp_path / "killed"), times
    study = make(models={"kills": kills, "works": net(1)}, data=["digits/train?n=300&size=17"], block=256)
    # tasks for a GPU are dealt out at once, and Dask gives them up when two workers that were to do them have ended
    lethal = {"distributed.worker.resources": {"GPU": 1}, "distributed.scheduler.allowed-failures": 1}
    with dask.config.set(lethal if times == "always" else {}):
        if times == "always":
            with pytest.warns(UserWarning, match="1 of 2 cells failed or lack samples: .* ended at block 0"):
                study.run(workers=1, progress=False)
            assert study.status()[["done", "failed", "missing"]].values.tolist() == [[0, 0, 2], [2, 0, 0]]
        else:
            study.run(workers=1, progress=False)
    # it is not given up: tried again, it comes last
    kills.parent = kills.times = os.getpid()
    alone = make(models={"kills": net(0), "works": net(1)}, data=["digits/train?n=300&size=17"], block=256)
    assert (tmp_path / "killed").exists()
    found = study.run(progress=False)
    assert_same(found.drop_vars("weights"), alone.run(progress=False).drop_vars("weights"))


@pytest.fixture
def processes(tmp_path):
    """A scheduler and two workers, each a process of its own."""
    file, started = tmp_path / "scheduler.json", []

    def start(module: str, *options: str) -> subprocess.Popen:
        command = [sys.executable, "-m", f"distributed.cli.{module}", "--scheduler-file", str(file), "--host", "127.0.0.1", "--no-dashboard"]  # fmt: skip
        paths = os.pathsep.join(path for path in sys.path if path)
        process = subprocess.Popen([*command, *options], env={**os.environ, "PYTHONPATH": paths}, cwd=tmp_path, stderr=subprocess.DEVNULL)  # fmt: skip
        started.append(process)
        return process

    scheduler = start("dask_scheduler", "--port", "0")
    both = [start("dask_worker", "--nthreads", "1", "--no-nanny") for _ in range(2)]
    until(file.exists)
    yield json.loads(file.read_text())["address"], scheduler, both
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="what a process has loaded is read from /proc")
def test_a_scheduler_of_its_own_that_loses_a_worker_and_dies_costs_no_block(make, processes):
    given = {"models": MODELS, "data": ["digits/train"], "groups": ["C4", "flip", "D4"], "block": 256}
    alone, study = make(**given).run(progress=False), make(**given)
    address, scheduler, both = processes
    ends = []

    def run() -> None:
        try:
            study.run(client=address, progress=False)
        except BaseException as error:
            import traceback; open('/tmp/lead/tb.txt','a').write(traceback.format_exc()+'-----')
            assert isinstance(error, ConnectionError)
            ends.append(str(error))

    def done() -> int:
        return study.status().done.sum() if Path(study.store).exists() else 0

    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        thread = threading.Thread(target=run)
        thread.start()
        until(lambda: done() >= 2)
        both[0].send_signal(signal.SIGKILL)
        before = done()
        until(lambda: done() >= before + 4)
        assert "torch" not in Path(f"/proc/{scheduler.pid}/maps").read_text()
        scheduler.send_signal(signal.SIGKILL)
        thread.join()
    assert done() < 54, "it was done before the scheduler was killed: too few blocks for this test"
    assert len(ends) == 1
    assert f"the Dask scheduler at {address} is gone" in ends[0]
    assert study.status().failed.sum() == 0
    found = study.run(progress=False)
    for leaf in alone.leaves:
        assert_same(found[leaf.path].to_dataset(), leaf.to_dataset())


@pytest.mark.slow
def test_processes_of_this_machine_compute_the_same_and_no_other_can_reach_them(make):
    given = {"models": {"net": net(0), "recipe": MODELS[0]}, "data": ["digits/train?n=300&size=17"], "block": 256}
    assert_same(make(**given).run(workers=2, progress=False), make(**given).run(progress=False))
    with workers.on_this_machine(2) as client:
        addresses = client.run(lambda dask_worker: (os.getpid(), dask_worker.address))
        assert len({pid for pid, _ in addresses.values()} | {os.getpid()}) == 3
        for pid in [os.getpid(), *(pid for pid, _ in addresses.values())]:
            connections = psutil.Process(pid).net_connections(kind="inet")
            heard = {one.laddr.ip for one in connections if one.status == psutil.CONN_LISTEN}
            assert heard == {"127.0.0.1"}
        encrypted = [client.cluster.scheduler.address, *(address for _, address in addresses.values())]
        assert all(address.startswith("tls://127.0.0.1:") for address in encrypted)


# --- what stays behind


def test_no_model_and_no_images_stay_after_a_run_that_was_stopped(make, monkeypatch):
    workers.forget()  # of tests that compute single blocks
    kept, load, measured = [], models.load, workers._measured

    def noted(spec, **options):
        loaded = load(spec, **options)
        kept.append(weakref.ref(loaded.model))
        return loaded

    def stopped(job, places):
        measured(job, places)
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "load", noted)
    monkeypatch.setattr(workers, "_measured", stopped)
    with pytest.raises(KeyboardInterrupt):
        make(models=MODELS[:2]).run(progress=False)
    assert len(kept) == 3
    assert (
        workers._on_device.cache_info().currsize == workers._opened.cache_info().currsize == workers.Decoded.kept == 0
    )
    gc.collect()
    assert {ref() for ref in kept} == {None}


@pytest.mark.parametrize(("room", "times"), [(workers.KEPT, 20), (10 * 17 * 17 * 4, 20 + 2 * 10), (0, 3 * 20)])
def test_models_are_loaded_once_and_images_decoded_once_while_there_is_room(make, monkeypatch, room, times):
    monkeypatch.setattr(workers, "KEPT", room)
    decoded, loads, really_open, load = [], [], Image.open, models.load

    def counted(*arguments, **options):
        decoded.append(arguments)
        return really_open(*arguments, **options)

    monkeypatch.setattr(Image, "open", counted)
    monkeypatch.setattr(models, "load", lambda spec, **how: how or loads.append(spec) or load(spec, **how))
    monkeypatch.setattr(ek.study.plan, "refuse_what_cannot_be", lambda *_: None)
    make(models=MODELS, groups=["C4"]).run(progress=False)
    assert len(decoded) == times
    assert loads == MODELS


def test_a_connection_that_is_lost_between_two_blocks_is_the_schedulers(monkeypatch):
    def closed(_futures):
        raise CommClosedError("in <TCP (closed)>: Stream is closed")

    monkeypatch.setattr(distributed, "as_completed", closed)
    monkeypatch.setattr(workers, "_submitted", lambda *_, **__: {})
    client = MagicMock(scheduler=SimpleNamespace(address="tcp://there"))
    job = SimpleNamespace(cell=SimpleNamespace(model="m"), model="spec")
    with pytest.raises(ConnectionError, match=r"scheduler at tcp://there is gone, .*CommClosedError.* run again"):
        list(workers.on_cluster(client, [(job, 0)]))
