"""Computes blocks of studies, in this process or on Dask workers: the same function on the same blocks.

Knows models, images and the store; not which blocks belong to a study. A process keeps two models, and `KEPT` bytes of decoded images.
"""

import logging
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from eedkit.lab import images as lab_images
from eedkit.lab import models as lab_models
from eedkit.machine import deaf_to_interrupts
from eedkit.probe.measure import Options, measure_block
from eedkit.probe.samples import class_names, read_order
from eedkit.store.blocks import Block
from eedkit.store.cells import Cell, State, Store
from eedkit.store.files import StoreError
from eedkit.study import limits
from eedkit.study.limits import OutOfTime

if TYPE_CHECKING:
    from datasets import Dataset
    from distributed import Client

ONE_AT_A_TIME = threading.Lock()
"""A process runs one block at a time: taps belong to one forward pass, and torch has the threads."""
KEPT = 2**28
"""Bytes of decoded images that a process keeps for the next model; what exceeds them is decoded for every model."""
SENDINGS = 3
"""How often a block is sent to workers that end before they begin it, while nothing else is done."""


@dataclass(frozen=True)
class Work:
    """One block of a study: what to measure, and where it goes.

    Parameters
    ----------
    store : str
        The study's folder.
    cell : Cell
        Of which the block is a part.
    block : int
        Its number in the cell.
    places : (start, stop)
        Of its images in the data set's reading order.
    model : str, or None
        A spec; None for a module that is passed beside it.
    data : str
        A spec of images.
    images : str
        Checksum of the images.
    source : str
        Checksum of where the weights come from.
    options : Options
        How to measure.
    share : bool
        Whether a block that another process is at is left to it.
    threads : int, or None
        For torch; None leaves as many as there are.
    time_limit : float, or None
        Seconds after which it fails.
    failures : tuple of str
        The store's files of why it failed in earlier runs.
    """

    store: str
    cell: Cell
    block: int
    places: tuple[int, int]
    model: str | None
    data: str
    images: str
    source: str
    options: Options
    share: bool = True
    threads: int | None = None
    time_limit: float | None = None
    failures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What became of a block: "done", "skipped" (somebody else did it), "busy" (somebody else is at it) or "failed"."""

    work: Work
    kind: str


class Decoded:
    """A data set whose images are decoded once, as long as they fit into the room that a process has for them.

    Parameters
    ----------
    images : Dataset
        As `lab.images.load` gives it; everything but its items is taken from it.
    room : Room
        Shared by the data sets of a process.

    >>> images = Decoded(lab_images.load("digits/test?n=20"), Room(KEPT))
    >>> len(images), images[3]["image"] is images[3]["image"]
    (20, True)
    """

    def __init__(self, images: "Dataset", room: "Room") -> None:
        self._images = images
        self._room = room
        self._items: dict[int, dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, i: int) -> dict[str, Any]:
        if i in self._items:
            return self._items[i]
        item = self._images[i]
        if self._room.takes(item["image"].nbytes):
            self._items[i] = item
        return item

    def __getattr__(self, name: str) -> Any:
        return getattr(self._images, name)


@dataclass
class Room:
    """Bytes that may still be kept."""

    left: int

    def takes(self, size: int) -> bool:
        """Whether there is room for so many bytes; there is less of it then."""
        fits = size <= self.left
        self.left -= size if fits else 0
        return fits


@dataclass(frozen=True)
class Carried:
    """A module on its way to workers, pickled as a whole: by itself distributed takes it apart, and its hooks do not survive."""

    module: nn.Module


def compute(work: Work, carried: Carried | None = None, after: Outcome | None = None) -> Outcome:
    """Compute a block and write it, or write why it failed. Only a store that cannot be used is an error.

    `after` is what it waits for on a cluster: the model's first block, which trains or fetches the weights for all.
    """
    store = Store(work.store)
    with ONE_AT_A_TIME, _threads(work.threads):
        before = store.begun(work.cell)
        if work.block in before.done:
            return Outcome(work, "skipped")
        if _has_failed(work, before):
            return Outcome(work, "failed")
        claim = store.claim(work.cell, work.block)
        if claim is None and work.share:
            return Outcome(work, "busy")
        try:
            with limits.within(work.time_limit, give_up=partial(store.fail, work.cell, work.block)):
                content = _measured(work, carried and carried.module)
            store.write(work.cell, work.block, content)
        except StoreError:
            raise
        except (Exception, SystemExit, OutOfTime) as error:
            # whatever a model or an image file throws must not stop the other blocks
            if store.has(work.cell, work.block):
                return Outcome(work, "skipped")
            store.fail(work.cell, work.block, f"{type(error).__name__}: {error}")
            return Outcome(work, "failed")
        finally:
            if claim is not None:
                store.folder.remove(claim)
        return Outcome(work, "done")


def here(works: Sequence[Work], modules: Mapping[str, nn.Module]) -> Iterator[Outcome]:
    """Every block in this process, in order; those that another process is at come last.

    Raises
    ------
    ValueError
        There is a time limit and nothing that could interrupt a block.
    """
    if any(work.time_limit for work in works) and not limits.can_interrupt():
        raise ValueError(
            "time_limit cannot interrupt a model here: that needs the main thread, and not Windows; give workers=1, so that "
            "a process of its own can be ended"
        )
    left = []
    carried = {name: Carried(module) for name, module in modules.items()}
    try:
        for work in works:
            outcome = compute(work, carried.get(work.cell.model))
            if outcome.kind == "busy":
                left.append(replace(work, share=False))
            else:
                yield outcome
        for work in left:
            yield compute(work, carried.get(work.cell.model))
    finally:
        _loaded.cache_clear()
        _opened.cache_clear()
        _room.cache_clear()


def on_cluster(client: "Client", works: Sequence[Work], modules: Mapping[str, nn.Module]) -> Iterator[Outcome]:
    """Every block on the workers of a `dask.distributed` client, as they come in.

    Raises
    ------
    ValueError
        There is a time limit and a worker that nobody starts again.
    """
    from distributed import CancelledError, KilledWorker, as_completed

    client.wait_for_workers(1)
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    if any(work.time_limit for work in works) and not all(worker["nanny"] for worker in workers):
        raise ValueError(
            "time_limit ends the process of a worker that hangs, but some of these workers have no nanny that starts "
            "another; start them by `dask worker` as it is, or give no time_limit"
        )
    resources = {"GPU": 1} if any("GPU" in worker["resources"] for worker in workers) else None
    packed, unsendable = _packed(modules)
    sent = {name: _sent(client, carried) for name, carried in packed.items()}
    first: dict[str, Any] = {}
    futures: dict[Any, Work] = {}
    tries: dict[tuple[Cell, int], int] = {}

    def submit(work: Work, priority: int) -> Any:
        name = work.cell.model
        future = client.submit(
            compute, work, sent.get(name), first.get(name), pure=False, resources=resources, priority=priority
        )
        if work.model:
            first.setdefault(name, future)
        futures[future] = work
        return future

    for work in works:
        if work.cell.model in unsendable:
            yield _failed(work, unsendable[work.cell.model])
    sendable = [work for work in works if work.cell.model not in unsendable]
    done = as_completed([submit(work, -i) for i, work in enumerate(sendable)])
    try:
        for future in done:
            work = futures.pop(future)
            error = CancelledError() if future.cancelled() else future.exception()
            key = work.cell, work.block
            if isinstance(error, StoreError):
                raise error
            if isinstance(error, KilledWorker) and not _was_begun(work) and tries.setdefault(key, 1) < SENDINGS:
                tries[key] += 1
                first.pop(work.cell.model, None)
                done.add(submit(work, -len(works)))
            elif error is not None:  # it killed its worker again and again
                yield _failed(work, f"{type(error).__name__}: {error}")
            elif future.result().kind == "busy":
                done.add(submit(replace(work, share=False), -len(works)))
            else:
                tries.clear()
                yield future.result()
    finally:
        client.cancel(list(futures))


def _has_failed(work: Work, state: State) -> bool:
    """Whether some process has written in this run why a block failed; it may have ended with it."""
    return not set(state.failures.get(work.block, ())) <= set(work.failures)


def _was_begun(work: Work) -> bool:
    """Whether a block that is not done was begun; if not, workers that were to do it ended for the sake of others."""
    return work.block in Store(work.store).state(work.cell).deaths


def _failed(work: Work, reason: str) -> Outcome:
    """Write why a block failed, unless somebody else has done it."""
    store = Store(work.store)
    if store.has(work.cell, work.block):
        return Outcome(work, "skipped")
    store.fail(work.cell, work.block, reason)
    return Outcome(work, "failed")


def _sent(client: "Client", carried: Carried) -> Any:
    """The future of a module on a worker. As the result of a task it is made again where that worker is gone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sending large graph")
        return client.submit(_unchanged, carried, pure=False)


def _unchanged(carried: Carried) -> Carried:
    return carried


def _packed(modules: Mapping[str, nn.Module]) -> tuple[dict[str, Carried], dict[str, str]]:
    """Modules to be sent, and why others cannot be."""
    import cloudpickle

    packed, unsendable = {}, {}
    for name, module in modules.items():
        try:
            cloudpickle.dumps(Carried(module))
            packed[name] = Carried(module)
        except Exception as error:
            unsendable[name] = (
                f"{name} cannot be sent to other processes ({error}); give it as a file:… spec, or run without workers"
            )
    return packed, unsendable


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
            with deaf_to_interrupts():
                client = stack.enter_context(Client(stack.enter_context(_local(workers))))
        yield client


@contextmanager
def _local(workers: int) -> Iterator[Any]:
    """Spawned workers that no other machine and no other user can give work; each takes a GPU by its number, see `device`."""
    import dask
    from distributed import LocalCluster

    # idle threads that spin would take the other workers' cores. In place of what Dask sets before a worker starts: it has
    # memory given back after every operation, to be asked for anew, which takes as long as a small network's forward pass
    settings = {
        "distributed.nanny.pre-spawn-environ": {"OMP_WAIT_POLICY": "PASSIVE"},
        # a worker that ends and is being started again would be given up if it was just so when it was last looked for
        "distributed.deploy.lost-worker-timeout": "1 week",
    }
    private = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "security": True}
    how = {"threads_per_worker": 1, "silence_logs": logging.ERROR, "memory_limit": None}
    with dask.config.set(settings), LocalCluster(n_workers=workers, **how, **private) as local:
        yield local


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


def _measured(work: Work, module: nn.Module | None) -> Block:
    options = replace(work.options, device=device(work.options.device))
    wants = {}
    if work.model is not None:
        loaded = _loaded(work.model, work.source, options.device)
        if loaded.source != work.source:
            raise ValueError(f"the weights of {work.model} are not those that the study was begun with")
        module = loaded.model
        wants = loaded.wants
        options = replace(options, head=options.head or loaded.head, layers=loaded.layers or options.layers)
    images, labels = _opened(work.data, work.images, **wants)
    start, stop = work.places
    values, states = measure_block(module, images, options, places=range(start, stop), name=work.cell.model)
    # labels also of the images that cannot be read
    own = labels[read_order(len(images), options.seed)[start:stop]]
    names = class_names(images)
    attrs = {"class_names": names} if names else {}
    return Block.of(values.assign_coords(label=("sample", own, attrs)), states)


@lru_cache(maxsize=2)
def _loaded(spec: str, _source: str, device: str) -> lab_models.Loaded:
    loaded = lab_models.load(spec)
    loaded.model.to(device)
    return loaded


@lru_cache(maxsize=1)
def _room() -> Room:
    return Room(KEPT)


@lru_cache(maxsize=256)
def _opened(data: str, checksum: str, **wants: Any) -> tuple[Decoded, np.ndarray]:
    """A data set as a model wants its images, and all its labels."""
    images = lab_images.load(data, **wants)
    if lab_images.source(images) != checksum:
        raise ValueError(
            f"the images of {data} are not those that the study was begun with; bring them up to date here"
        )
    labels = np.array(images.select_columns(["label"])[:]["label"])
    return Decoded(images, _room()), labels
