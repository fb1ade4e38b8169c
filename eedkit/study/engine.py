"""Computes blocks of studies, in this process or on Dask workers: the same function on the same blocks.

Knows models, images and the store; not which blocks belong to a study. Keeps two models and four data sets per process.
"""

import logging
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import nn

from eedkit.lab import images as lab_images
from eedkit.lab import models as lab_models
from eedkit.probe.measure import Options, measure_block
from eedkit.probe.samples import chain_length, read_order
from eedkit.results import schema
from eedkit.results.cells import DONE, FAILED, FLAWED, MISSING, RUNNING, Cell
from eedkit.results.disk import StoreError
from eedkit.results.process import me
from eedkit.theory.deviation import chains

if TYPE_CHECKING:
    from distributed import Client

ONE_AT_A_TIME = threading.Lock()
"""A process runs one block at a time: taps belong to one forward pass, and torch has the threads."""


@dataclass(frozen=True)
class Task:
    """One block of one cell: the images [start, stop) of the data set's reading order through a model.

    `model` is a spec, or None for a module that is passed beside the task; `source` and `images` are checksums of where the
    weights come from and of the images. With `share` a block that another process is at is left to it.
    """

    cell: Cell
    block: int
    start: int
    stop: int
    data: str
    model: str | None
    source: str
    images: str
    options: Options
    share: bool = True
    threads: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a task: "done", "skipped" (somebody else did it), "busy" (somebody else is at it) or "failed"."""

    task: Task
    kind: str
    reason: str = ""


@dataclass(frozen=True)
class Carried:
    """A module on its way to workers, pickled as a whole: by itself distributed takes it apart, and its hooks do not survive."""

    module: nn.Module


def compute(task: Task, carried: Carried | None = None, after: Outcome | None = None) -> Outcome:
    """Compute a block and write it, or write why it failed. Only a store that cannot be used is an error.

    `after` is what it waits for on a cluster: the model's first block, which trains or fetches the weights for all.
    """
    with ONE_AT_A_TIME, _threads(task.threads):
        status, note = task.cell.status(task.block)
        if status in (DONE, FLAWED):
            return Outcome(task, "skipped")
        if status == RUNNING and task.share and note != me():
            return Outcome(task, "busy")
        task.cell.mark(task.block, RUNNING, me())
        if task.share and task.cell.status(task.block)[1] != me():  # two came at once, and the other wrote last
            return Outcome(task, "busy")
        try:
            task.cell.write(task.block, *_measured(task, carried and carried.module))
        except StoreError:
            raise
        except Exception as error:  # whatever a model or an image file throws must not stop the other cells
            reason = f"{type(error).__name__}: {error}"
            return _unless_done(task, FAILED, reason)
        except BaseException:  # Ctrl-C: nobody is at this block any more
            _unless_done(task, MISSING)
            raise
        return Outcome(task, "done")


def _unless_done(task: Task, status: str, reason: str = "") -> Outcome:
    """Mark the block, unless another process has finished it meanwhile."""
    if task.cell.status(task.block)[0] in (DONE, FLAWED):
        return Outcome(task, "skipped")
    task.cell.mark(task.block, status, reason)
    return Outcome(task, status, reason)


def here(tasks: Sequence[Task], modules: Mapping[str, nn.Module]) -> Iterator[Outcome]:
    """Every task in this process, in order; blocks that another process is at come last."""
    left, carried = [], {name: Carried(module) for name, module in modules.items()}
    try:
        for task in tasks:
            outcome = compute(task, carried.get(task.cell.model))
            if outcome.kind == "busy":
                left.append(replace(task, share=False))
            else:
                yield outcome
        for task in left:
            yield compute(task, carried.get(task.cell.model))
    finally:
        _loaded.cache_clear()
        _opened.cache_clear()


def on_cluster(client: "Client", tasks: Sequence[Task], modules: Mapping[str, nn.Module]) -> Iterator[Outcome]:
    """Every task on the workers of a `dask.distributed` client, as they come in."""
    from distributed import as_completed

    client.wait_for_workers(1)
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    resources = {"GPU": 1} if any("GPU" in worker["resources"] for worker in workers) else None
    sent = {name: client.scatter(_packed(name, module), broadcast=True, hash=False) for name, module in modules.items()}
    first: dict[str, Any] = {}

    def submit(task: Task, priority: int = 0) -> Any:
        name = task.cell.model
        future = client.submit(
            compute, task, sent.get(name), first.get(name), pure=False, resources=resources, priority=priority
        )
        if task.model:
            first.setdefault(name, future)
        return future

    futures = {submit(task, -i): task for i, task in enumerate(tasks)}
    done = as_completed(futures)
    try:
        for future in done:
            task, error = futures.pop(future), future.exception()
            if isinstance(error, StoreError):
                raise error
            if error is not None:  # it killed its worker again and again
                reason = f"{type(error).__name__}: {error}"
                yield _unless_done(task, FAILED, reason)
            elif (outcome := future.result()).kind == "busy":
                again = submit(replace(task, share=False), -len(tasks))
                futures[again] = task
                done.add(again)
            else:
                yield outcome
    finally:
        client.cancel(list(futures))


def _packed(name: str, module: nn.Module) -> Carried:
    import cloudpickle

    carried = Carried(module)
    try:
        cloudpickle.dumps(carried)
    except Exception as error:
        raise ValueError(
            f"{name} cannot be sent to other processes ({error}); give it as a file:… spec, or run without workers"
        ) from None
    return carried


@contextmanager
def cluster(workers: int | None, client: "Client | str | None") -> Iterator["Client | None"]:
    """The given Dask client, or one on the scheduler at an address, or one on spawned workers of this machine, or none."""
    if client is None and workers is None:
        yield None
        return
    from distributed import Client

    with ExitStack() as stack:
        if isinstance(client, str):
            try:
                client = stack.enter_context(Client(client, timeout=10))
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"no Dask scheduler answers at {client} ({error}); start one with `dask scheduler`, or leave it out "
                    "to run on this machine"
                ) from None
        if client is None:
            with _deaf_to_interrupts():
                client = stack.enter_context(Client(stack.enter_context(_local(workers))))
        yield client


def _local(workers: int) -> Any:
    """Spawned workers on this machine that no other machine can reach; each takes a GPU by its number, see `device`."""
    from distributed import LocalCluster

    private = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    # idle threads that spin would take the other workers' cores
    environment = {"OMP_WAIT_POLICY": "PASSIVE"}
    quiet = {"silence_logs": logging.ERROR, "memory_limit": None, "env": environment}
    return LocalCluster(n_workers=workers, threads_per_worker=1, **quiet, **private)


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Processes started within the block leave Ctrl-C to this one, which closes them in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _threads(asked: int | None) -> Iterator[None]:
    """Within the block torch has the threads that were asked for, or those of the Dask worker; else what it had."""
    before, worker = torch.get_num_threads(), _worker()
    try:
        torch.set_num_threads(asked or (worker.state.nthreads if worker else before))
        yield
    finally:
        torch.set_num_threads(before)


def device(asked: str) -> str:
    """The device of this process: with several GPUs and none asked for, the worker's own."""
    if asked != "auto":
        return asked
    if not torch.cuda.is_available():
        return "cpu"
    worker = str(getattr(_worker(), "name", ""))
    # a worker of dask-cuda sees its own GPU first
    dealt = "dask_cuda" in sys.modules or not worker.isdigit()
    return f"cuda:{0 if dealt else int(worker) % torch.cuda.device_count()}"


def _worker() -> Any:
    """The Dask worker that this thread works for; None outside of one."""
    if "distributed" not in sys.modules:
        return None
    from distributed import get_worker

    try:
        return get_worker()
    except ValueError:
        return None


def _measured(task: Task, module: nn.Module | None) -> tuple[xr.Dataset, xr.Dataset, xr.Dataset]:
    options = replace(task.options, device=device(task.options.device))
    wants = {}
    if task.model is not None:
        loaded = _loaded(task.model, task.source, options.device)
        module = loaded.model
        wants = loaded.wants
        options = replace(options, head=options.head or loaded.head)
    length = chain_length(options.action.group.order, options.null)
    images, samples = _opened(task.data, task.images, options.seed, length, **wants)
    values, states = measure_block(module, images, options, places=range(task.start, task.stop), name=task.cell.model)
    return values, states, samples


@lru_cache(maxsize=2)
def _loaded(spec: str, _source: str, device: str) -> lab_models.Loaded:
    loaded = lab_models.load(spec)
    loaded.model.to(device)
    return loaded


@lru_cache(maxsize=4)
def _opened(data: str, checksum: str, seed: int, length: int, **wants: Any) -> tuple[Any, xr.Dataset]:
    """A data set as a model wants its images, and the labels of all its samples in reading order."""
    images = lab_images.load(data, **wants)
    if lab_images.source(images) != checksum:
        raise ValueError(
            f"the images of {data} are not those that the study was begun with; bring them up to date here"
        )
    order = read_order(len(images), seed)
    columns = images.select_columns(["id", "label"])[:]
    numbers = np.concatenate([np.full(len(chain), number) for number, chain in enumerate(chains(len(order), length))])
    samples = {
        "sample": np.array(columns["id"], dtype=object)[order],
        "label": ("sample", np.array(columns["label"])[order]),
        "chain": ("sample", numbers, {"long_name": schema.CHAIN}),
    }
    return images, xr.Dataset(coords=samples)
