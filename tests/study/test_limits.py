"""What takes longer than its time limit is ended and recorded, here and on workers, and costs nothing else."""

import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from torch import nn

import eedkit as ek
from eedkit.study import limits

LIMIT = "not done within the time limit of 2 s"


@pytest.fixture
def make(tmp_path):
    """Studies with two seconds for a block; 300 images are two blocks."""

    def study(**changes) -> ek.Study:
        given = {"data": ["digits/train?n=300&size=17"], "groups": ["C4"], "store": tmp_path / "a"}
        return ek.Study(**given | {"block": 256, "time_limit": 2} | changes)

    return study


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


class Sleeps(nn.Sequential):
    """Waits in C for an hour."""

    def forward(self, x):
        time.sleep(3600)
        return super().forward(x)


class Loops(nn.Sequential):
    """Waits in Python for ever, and lets no exception stop it."""

    def forward(self, x):
        while True:
            try:
                time.sleep(0.001)
            except Exception:
                continue


# --- the mechanism


def test_what_is_done_in_time_is_left_alone():
    timed_out = []
    handler_before = signal.getsignal(signal.SIGALRM)
    with limits.within(0.05, give_up=timed_out.append):
        pass
    time.sleep(0.1)
    assert timed_out == []
    assert signal.getsignal(signal.SIGALRM) is handler_before


@pytest.fixture
def alarm():
    """An alarm of the caller's own, in half a second; a list that grows when it rings."""
    rung = []
    handler = signal.signal(signal.SIGALRM, lambda *_: rung.append(time.monotonic()))
    timer = signal.setitimer(signal.ITIMER_REAL, 0.5)
    yield rung
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, *timer)


def test_the_callers_own_alarm_still_rings(alarm):
    start = time.monotonic()
    with pytest.raises(limits.OutOfTime, match=r"time limit of 0\.2 s"), limits.within(0.2, give_up=pytest.fail):
        time.sleep(10)
    time.sleep(1)
    assert [0.4 < when - start < 0.8 for when in alarm] == [True]


def test_without_a_limit_nothing_is_interrupted(alarm):
    with limits.within(None, give_up=pytest.fail):
        time.sleep(1)
    assert len(alarm) == 1


def test_a_thread_that_is_done_in_time_ends_no_process():
    given_up = []

    def in_time():
        with limits.within(0.05, give_up=given_up.append):
            pass

    thread = threading.Thread(target=in_time)
    thread.start()
    thread.join()
    time.sleep(0.1)
    assert given_up == []


def test_a_thread_is_ended_with_its_process_and_a_reason():
    script = """
import threading, time
from eedkit.study import limits

def hangs():
    with limits.within(0.2, give_up=lambda reason: print(reason, flush=True)):
        time.sleep(3600)

thread = threading.Thread(target=hangs)
thread.start()
thread.join()
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert ended.stdout == "OutOfTime: not done within the time limit of 0.2 s\n"


# --- studies


@pytest.mark.parametrize("kind", [Sleeps, Loops])
def test_a_block_that_hangs_fails_and_the_study_goes_on(make, kind):
    study = make(models={"hangs": kind(*net()), "works": net()}, data=["digits/test?n=20&size=17"])
    with pytest.warns(UserWarning, match="1 of 2 cells failed"):
        found = study.run(progress=False)
    assert found.model.values.tolist() == ["works"]
    status = study.status()
    assert status[["done", "failed", "running"]].values.tolist() == [[0, 1, 0], [1, 0, 0]]
    assert status.reason[0] == f"OutOfTime: {LIMIT}"


def test_another_time_limit_is_the_same_study(make):
    study = make(models={"works": net()})
    study.run(progress=False)
    assert make(models={"works": net()}, time_limit=None).run(progress=False).softmax.notnull().all()
    assert study.status().done.tolist() == [2]


def test_a_limit_that_nothing_can_enforce_is_refused(make, monkeypatch):
    monkeypatch.setattr(limits, "can_interrupt", lambda: False)
    with pytest.raises(ValueError, match=r"time_limit cannot interrupt a model here.* give workers=1"):
        make(models={"works": net()}).run(progress=False)
    assert make(models={"works": net()}, time_limit=None).run(progress=False).sizes["sample"] == 300


def test_workers_that_nobody_starts_again_are_refused(make):
    from distributed import Client, LocalCluster

    how = {"processes": False, "n_workers": 1, "dashboard_address": None}
    with (
        LocalCluster(**how) as cluster,
        Client(cluster) as client,
        pytest.raises(ValueError, match="some of these workers have no nanny"),
    ):
        make(models={"works": net()}).run(client=client, progress=False)


@pytest.mark.slow
def test_a_worker_that_hangs_is_ended_and_starts_again(make):
    class Hangs(nn.Sequential):
        def forward(self, x):
            time.sleep(3600)

    study = make(models={"hangs": Hangs(*net()), "works": net()}, data=["digits/test?n=20&size=17"], time_limit=10)
    with pytest.warns(UserWarning, match="1 of 2 cells failed"):
        found = study.run(workers=1, progress=False)
    assert found.model.values.tolist() == ["works"]
    status = study.status()
    assert status[["done", "failed", "running"]].values.tolist() == [[0, 1, 0], [1, 0, 0]]
    assert status.reason[0] == "OutOfTime: not done within the time limit of 10 s"
