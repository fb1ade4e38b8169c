"""Computes blocks of studies, in this process or on Dask workers: the same function on the same blocks.

Knows models, images and the store; not which blocks belong to a study. A process keeps two models, and `KEPT` bytes of decoded images.
"""

import json
import logging
import pickle
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

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
UNUSABLE = "the store cannot be used"
"""What becomes of a block: it is computed, somebody else did it, somebody else is at it, it failed, or it cannot be written."""


@dataclass(frozen=True)
class Work:
    """One block of a study: what to measure, where it goes, and the checksums of images and weights that must be found.

    `places` are (start, stop) in the data set's reading order; `model` is a spec, or None for a module that is passed beside it;
    `share` says whether a block that another process is at is left to it; `threads` None leaves as many as there are.
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


def compute(work: Work, module: nn.Module | None = None) -> str:
    """Compute a block and write it, or write why it failed; gives what became of it. Only an unusable store is an error."""
    store = Store(work.store)
    with ONE_AT_A_TIME, _threads(work.threads):
        state = store.state(work.cell)
        if work.block in state.done:
            return SKIPPED
        claim = store.claim(work.cell, work.block)
        if claim is None and work.share:
            return BUSY
        try:
            store.write(state, work.block, _measured(work, module))
        except StoreError:
            raise
        except (Exception, SystemExit) as error:
            # whatever a model or an image file throws must not stop the other blocks
            store.fail(state, work.block, f"{type(error).__name__}: {error}")
            return BROKEN
        finally:
            if claim is not None:
                store.folder.remove(claim)
        return COMPUTED


def compute_packed(work: bytes, module: bytes | None) -> tuple[str, str]:
    """`compute` on a worker."""
    try:
        return compute(pickle.loads(work), None if module is None else pickle.loads(module)), ""
    except StoreError as error:
        return UNUSABLE, str(error)


def here(works: Sequence[Work], modules: Mapping[str, nn.Module]) -> Iterator[tuple[Work, str]]:
    """Every block in this process, in order, with what became of it; those that another process is at come last."""
    left = list(works)
    try:
        for work in left:  # which grows
            outcome = compute(work, modules.get(work.cell.model))
            if outcome == BUSY:
                left.append(replace(work, share=False))
            else:
                yield work, outcome
    finally:
        forget()


def forget() -> None:
    """Keep no model and no images."""
    _loaded.cache_clear()
    _opened.cache_clear()
    Decoded.kept = 0


def on_cluster(client: "Client", works: Sequence[Work], modules: Mapping[str, nn.Module]) -> Iterator[tuple[Work, str]]:
    """Every block on the workers of a `dask.distributed` client, as they come in, with what became of it.

    Blocks that another process is at, and those whose workers ended before they began them, are sent again when all others
    are done, as long as there are fewer of them each time. A block that ends its workers is left for the next run.
    """
    from distributed import KilledWorker, as_completed
    from distributed.comm.core import CommClosedError

    client.wait_for_workers(1)
    infos = client.scheduler_info(n_workers=-1)["workers"].values()
    resources = {"GPU": 1} if any("GPU" in info["resources"] for info in infos) else None
    packed, unsendable = _packed(modules)
    for work in works:
        if work.cell.model in unsendable:
            store = Store(work.store)
            store.fail(store.state(work.cell), work.block, unsendable[work.cell.model])
            yield work, BROKEN
    left = [work for work in works if work.cell.model not in unsendable]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sending large graph")
        sent = {name: client.submit(tasks.unchanged, module, pure=False) for name, module in packed.items()}
    while left:
        works_of = _submitted(client, left, sent, resources)
        again = []
        try:
            for future in as_completed(list(works_of)):
                work = works_of.pop(future)
                error = None if future.cancelled() else future.exception()
                if future.cancelled() or (error is not None and not isinstance(error, KilledWorker)):
                    raise _lost(client, error)
                outcome, why = (BUSY, "") if error is not None else future.result()
                if outcome == UNUSABLE:
                    raise StoreError(why)
                if outcome != BUSY:
                    yield work, outcome
                elif error is None or work.block not in Store(work.store).state(work.cell).deaths:
                    again.append(replace(work, share=False))
        except CommClosedError as error:
            raise _lost(client, error) from error
        finally:
            with suppress(Exception):  # a scheduler that is gone has nothing to cancel
                client.cancel(list(works_of))
        left = again if len(again) < len(left) or any(work.share for work in left) else []


def _lost(client: "Client", error: BaseException | None) -> ConnectionError:
    address = client.scheduler.address if client.scheduler else "its address"
    reason = f" ({type(error).__name__}: {error})" if error else ""
    return ConnectionError(
        f"the Dask scheduler at {address} is gone, or the tasks were cancelled{reason}. What is done stays; run again, which "
        "goes on from there"
    )


def _submitted(
    client: "Client", works: Sequence[Work], sent: Mapping[str, "Future"], resources: Mapping[str, int] | None
) -> dict["Future", Work]:
    """The blocks as tasks, in order; the first of a model makes its weights for the others."""
    import cloudpickle

    first: dict[str, Future] = {}
    works_of = {}
    for i, work in enumerate(works):
        name = work.cell.model
        future = client.submit(
            tasks.compute,
            cloudpickle.dumps(work),
            sent.get(name),
            first.get(name),
            pure=False,
            resources=resources,
            priority=-i,
        )
        if work.model:
            first.setdefault(name, future)
        works_of[future] = work
    return works_of


def _packed(modules: Mapping[str, nn.Module]) -> tuple[dict[str, bytes], dict[str, str]]:
    """Modules to be sent, as a whole (distributed would take them apart, and their hooks be lost), and why others cannot be."""
    import cloudpickle

    packed, unsendable = {}, {}
    for name, module in modules.items():
        try:
            packed[name] = cloudpickle.dumps(module)
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
def _local(workers: int | None) -> Iterator[Any]:
    """Spawned workers that no other machine and no other user can give work; each takes a GPU by its number, see `device`."""
    from dask import config
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
    with config.set(settings), LocalCluster(n_workers=workers, **how, **private) as local:
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


def options_for(options: Options, loaded: lab_models.Loaded) -> Options:
    """How a model is measured, with what its own spec says of its head and layers."""
    return replace(options, head=options.head or loaded.head, layers=loaded.layers or options.layers)


def _measured(work: Work, module: nn.Module | None) -> Block:
    options = replace(work.options, device=device(str(work.options.device)))
    wants = {}
    if work.model is not None:
        loaded = _loaded(work.model, work.source, str(options.device))
        if loaded.source != work.source:
            raise ValueError(f"the weights of {work.model} are not those that the study was begun with")
        module = loaded.model
        wants = loaded.wants
        options = options_for(options, loaded)
    images, labels = _opened(work.data, work.images, **wants)
    start, stop = work.places
    values, states = measure_block(
        cast("nn.Module", module), images, options, places=range(start, stop), name=work.cell.model
    )
    # labels also of the images that cannot be read
    own = labels[read_order(len(images), options.seed)[start:stop]]
    names = class_names(images)
    attrs = {"class_names": json.dumps(names, ensure_ascii=False)} if names else {}
    return Block.of(values.assign_coords(label=("sample", own, attrs)), states)


@lru_cache(maxsize=2)
def _loaded(spec: str, _source: str, device: str) -> lab_models.Loaded:
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
