"""Computes blocks of studies, in this process or on Dask workers: the same function on the same blocks.

Knows models, images and the store; not which blocks belong to a study. A process keeps two models, and `KEPT` bytes of decoded images.
"""

import json
import logging
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from eedkit.lab import images as lab_images
from eedkit.lab import models as lab_models
from eedkit.machine import deaf_to_interrupts
from eedkit.probe.measure import Options, measure_block
from eedkit.probe.samples import class_names, read_order
from eedkit.study import tasks
from eedkit.study.blocks import Block
from eedkit.study.files import StoreError
from eedkit.study.store import Cell, Store

if TYPE_CHECKING:
    from datasets import Dataset
    from distributed import Client, Future

ONE_AT_A_TIME = threading.Lock()
"""A process runs one block at a time: taps belong to one forward pass, and torch has the threads."""
KEPT = 2**28
"""Bytes of decoded images that a process keeps for the next model; what exceeds them is decoded for every model."""

COMPUTED = "done"
SKIPPED = "skipped"
BUSY = "busy"
BROKEN = "failed"
"""What becomes of a block: it is computed, somebody else did it, somebody else is at it, or it failed."""


@dataclass(frozen=True)
class Job:
    """A cell of a study: all that a process needs to measure its blocks, and the checksums that must be found again.

    `settings` are what the store keeps of the cell; `threads` None leaves as many as there are.
    """

    store: Store
    cell: Cell
    model: str | nn.Module
    weights: str
    data: str
    images: str
    n: int
    options: Options
    settings: dict[str, Any]
    threads: int | None = None


Work = tuple[Job, int]
"""A block of a cell, by its number."""


def compute(job: Job, block: int, *, share: bool = True) -> str:
    """Compute a block and write it, or write why it failed; gives what became of it. Only an unusable store is an error.

    `share` says whether a block that another process is at is left to it.
    """
    store = job.store
    with ONE_AT_A_TIME, _threads(job.threads):
        state = store.state(job.cell)
        if not state.settings:
            raise StoreError(f"{store.address} has no {job.cell}: every worker must see that folder, under that path")
        if block in state.done:
            return SKIPPED
        claim = store.claim(job.cell, block)
        if claim is None and share:
            return BUSY
        try:
            store.write(state, block, _measured(job, state.bounds[block]))
        except StoreError:
            raise
        except (Exception, SystemExit) as error:
            # whatever a model or an image file throws must not stop the other blocks
            store.fail(state, block, f"{type(error).__name__}: {error}")
            return BROKEN
        finally:
            if claim is not None:
                store.folder.remove(claim)
        return COMPUTED


def here(works: Sequence[Work]) -> Iterator[tuple[Job, str]]:
    """Every block in this process, in order, with what became of it; those that another process is at come last."""
    busy = []
    try:
        for job, block in works:
            outcome = compute(job, block)
            if outcome == BUSY:
                busy.append((job, block))
            else:
                yield job, outcome
        for job, block in busy:
            yield job, compute(job, block, share=False)
    finally:
        forget()


def forget() -> None:
    """Keep no model and no images."""
    _on_device.cache_clear()
    _opened.cache_clear()
    Decoded.kept = 0


def on_cluster(client: "Client", works: Sequence[Work]) -> Iterator[tuple[Job, str]]:
    """Every block on the workers of a `dask.distributed` client, as they come in, with what became of it.

    Blocks that another process is at, and those whose workers ended before they began them, are sent again when all others
    are done, as long as there are fewer of them each time. A block that ends its workers is left for the next run.
    """
    from distributed import CancelledError, KilledWorker, as_completed
    from distributed.comm.core import CommClosedError

    packed = _packed_modules(works)
    _wait_for_a_worker(client)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sending large graph")
        sent = {name: client.submit(tasks.unchanged, module, pure=False) for name, module in packed.items()}
    left = list(works)
    share = True
    while left:
        works_of = {}
        again = []
        try:
            works_of = _submitted(client, left, sent, share=share)
            for future in as_completed(list(works_of)):
                job, block = works_of.pop(future)
                error = None if future.cancelled() else future.exception()
                if isinstance(error, StoreError):
                    raise error
                if future.cancelled() or (error is not None and not isinstance(error, KilledWorker)):
                    raise _lost(client, error)
                if error is not None:
                    if block not in job.store.state(job.cell).deaths:
                        again.append((job, block))
                elif future.result() == BUSY:
                    again.append((job, block))
                else:
                    yield job, future.result()
        except (CommClosedError, TimeoutError, CancelledError) as error:
            raise _lost(client, error) from error
        finally:
            with suppress(Exception):  # a scheduler that is gone has nothing to cancel
                client.cancel(list(works_of))
        left = again if share or len(again) < len(left) else []
        share = False


def _wait_for_a_worker(client: "Client") -> None:
    """Which may take hours in the queue of a cluster, so that it is said."""
    if not client.scheduler_info(n_workers=-1)["workers"]:
        warnings.warn(
            f"the Dask scheduler at {_address(client)} has no worker yet; the run begins when there is one (dask worker "
            "ADDRESS starts one, Ctrl-C ends the waiting)",
            stacklevel=2,
        )
    client.wait_for_workers(1)


def _address(client: "Client") -> str:
    return str(client.scheduler.address) if client.scheduler else "its address"


def _lost(client: "Client", error: BaseException | None) -> ConnectionError:
    reason = f" ({type(error).__name__}: {error})" if error else ""
    return ConnectionError(
        f"the Dask scheduler at {_address(client)} is gone, or the tasks were cancelled{reason}. What is done stays; run again, "
        "which goes on from there"
    )


def _submitted(
    client: "Client", works: Sequence[Work], sent: Mapping[str, "Future"], *, share: bool
) -> dict["Future", Work]:
    """The blocks as tasks, in order; the first of a model makes its weights for the others."""
    import cloudpickle

    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    resources = {"GPU": 1} if any("GPU" in worker["resources"] for worker in workers) else None
    first: dict[str, Future] = {}
    works_of = {}
    for i, (job, block) in enumerate(works):
        name = job.cell.model
        future = client.submit(
            tasks.compute,
            cloudpickle.dumps(replace(job, model="") if name in sent else job),
            block,
            sent.get(name),
            first.get(name),
            share=share,
            pure=False,
            resources=resources,
            priority=-i,
        )
        if name not in sent:
            first.setdefault(name, future)
        works_of[future] = job, block
    return works_of


def _packed_modules(works: Sequence[Work]) -> dict[str, bytes]:
    """Modules to be sent, as a whole: distributed would take them apart, and their hooks be lost; ValueError where one cannot be."""
    import cloudpickle

    modules = {job.cell.model: job.model for job, _ in works if isinstance(job.model, nn.Module)}
    packed = {}
    for name, module in modules.items():
        try:
            packed[name] = cloudpickle.dumps(module)
        except Exception as error:
            raise ValueError(
                f"{name} cannot be sent to other processes ({error}); give it as a file:… spec, or run without workers"
            ) from error
    return packed


@contextmanager
def connected(client: "Client | str | None") -> Iterator["Client | None"]:
    """The given Dask client, or one on the scheduler at an address; ValueError where none answers."""
    if not isinstance(client, str):
        yield client
        return
    from distributed import Client

    try:
        own = Client(client, timeout=10)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no Dask scheduler answers at {client} ({error}); start one with `dask scheduler`, or leave it out to run on this "
            "machine"
        ) from None
    try:
        yield own
    finally:
        with suppress(Exception):  # a scheduler that is gone cannot be told goodbye
            own.close()


@contextmanager
def on_this_machine(workers: int) -> Iterator["Client"]:
    """Spawned workers that no other machine and no other user can give work; each takes a GPU by its number, see `device`."""
    from dask import config
    from distributed import Client, LocalCluster

    # idle threads that spin would take the other workers' cores. In place of what Dask sets before a worker starts: it has
    # memory given back after every operation, to be asked for anew, which takes as long as a small network's forward pass
    settings = {
        "distributed.nanny.pre-spawn-environ": {"OMP_WAIT_POLICY": "PASSIVE"},
        # a worker that ends and is being started again would be given up if it was just so when it was last looked for
        "distributed.deploy.lost-worker-timeout": "1 week",
    }
    private = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "security": True}
    how = {"threads_per_worker": 1, "silence_logs": logging.ERROR, "memory_limit": None}
    with ExitStack() as stack:
        with deaf_to_interrupts():
            stack.enter_context(config.set(settings))
            local = stack.enter_context(LocalCluster(n_workers=workers, **how, **private))
            client = stack.enter_context(Client(local))
        yield client


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


def options_for(options: Options, loaded: lab_models.Loaded) -> Options:
    """How a model is measured, with what its own spec says of its head and layers."""
    return replace(options, head=options.head or loaded.head, layers=loaded.layers or options.layers)


def _measured(job: Job, places: tuple[int, int]) -> Block:
    """The images at these places of the data set's reading order."""
    options = replace(job.options, device=device(str(job.options.device)))
    loaded = lab_models.Loaded(job.model) if isinstance(job.model, nn.Module) else _loaded(job, str(options.device))
    images, labels = _opened(job.data, job.images, **loaded.wants)
    options = options_for(options, loaded)
    values, states = measure_block(loaded.model, images, options, places=range(*places), name=job.cell.model)
    # labels also of the images that cannot be read
    own_labels = labels[read_order(len(images), options.seed)[slice(*places)]]
    names = class_names(images)
    attrs = {"class_names": json.dumps(names, ensure_ascii=False)} if names else {}
    return Block.of(values.assign_coords(label=("sample", own_labels, attrs)), states)


def _loaded(job: Job, device: str) -> lab_models.Loaded:
    loaded = _on_device(str(job.model), job.weights, device)
    if loaded.source != job.weights:
        raise ValueError(f"the weights of {job.model} are not those that the study was begun with")
    return loaded


@lru_cache(maxsize=2)
def _on_device(spec: str, _weights: str, device: str) -> lab_models.Loaded:
    loaded = lab_models.load(spec)
    loaded.model.to(device)
    return loaded


class Decoded:
    """A data set whose images are decoded once, as long as all that a process keeps are less than `KEPT` bytes.

    >>> images = Decoded(lab_images.load("digits/test?n=20"))
    >>> len(images), images[3]["image"] is images[3]["image"]
    (20, True)
    """

    kept = 0
    """Bytes of all data sets of this process."""

    def __init__(self, images: "Dataset") -> None:
        self._images = images
        self._items: dict[int, dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, i: int) -> dict[str, Any]:
        if i in self._items:
            return self._items[i]
        item = self._images[i]
        size = item["image"].nbytes
        if Decoded.kept + size <= KEPT:
            Decoded.kept += size
            self._items[i] = item
        return item

    def __getattr__(self, name: str) -> Any:
        return getattr(self._images, name)


@lru_cache(maxsize=256)
def _opened(data: str, checksum: str, **wants: Any) -> tuple[Decoded, np.ndarray]:
    """A data set as a model wants its images, and all its labels."""
    images = lab_images.load(data, **wants)
    if lab_images.source(images) != checksum:
        raise ValueError(
            f"the images of {data} are not those that the study was begun with; bring them up to date here"
        )
    labels = np.array(images.select_columns(["label"])[:]["label"])
    return Decoded(images), labels
