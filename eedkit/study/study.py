"""A study: models × data sets × groups, measured block by block into one store; planned, run, killed, resumed, joined.

Knows what belongs to a study and asks the engine to compute it. Costs the forward passes; planning costs one batch a model.
"""

import math
import os
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
import xarray as xr
import yaml
from torch import nn

from eedkit.errors import unknown
from eedkit.lab import images as lab_images
from eedkit.lab import models as lab_models
from eedkit.probe import measure as probe
from eedkit.probe import metrics as family
from eedkit.probe.measure import DTYPES, Options
from eedkit.probe.metrics import Metric
from eedkit.probe.samples import chain_length
from eedkit.results import cells, schema, store
from eedkit.results.cells import DONE, FAILED, FLAWED, MISSING, RUNNING, Cell
from eedkit.study import engine, planning
from eedkit.study.checks import Once, named, typed
from eedkit.study.engine import Task
from eedkit.study.progress import bar
from eedkit.theory import deviation, groups

if TYPE_CHECKING:
    from distributed import Client


@dataclass(frozen=True)
class Study:
    """Models × data sets × groups, each cell measured by `measure` (Kvinge et al. 2022, the integrand of eq. 4), in one store.

    Parameters
    ----------
    models : specs ("recipe:plain?seed=0", "torchvision:resnet18?weights=DEFAULT", "timm:…", "file:….safetensors?model=…"), or
        a mapping from names to specs or modules. A study that resumes notices other weights or layers of a module, but not
        other code in its `forward`: give that another name
    data : specs of images ("digits/test?n=100", a folder, "hub:owner/name/split"), or a mapping from names to specs; models
        say which size they want, and the spec does for a module ("digits/test?size=17")
    groups : names of groups
    store : folder of the results, on a disk that all workers see
    metrics, layers, head, null, seed, precision, device, batch_size : as in `measure`; no null within classes
    block : images that are written at once: what a kill costs. Made whole chains of the null; counts when a cell is begun

    Raises
    ------
    ValueError
        Something is unknown, misspelt, given twice or of another type; nothing is loaded or computed.

    >>> study = Study(models=["recipe:random?seed=0"], data=["digits/test?n=20"], groups=["C4"], store="runs/a.zarr")
    >>> list(study.models), study.groups
    (['recipe:random?seed=0'], ('C4',))
    """

    models: Mapping[str, str | nn.Module] | Sequence[str]
    data: Mapping[str, str] | Sequence[str]
    groups: Sequence[str]
    store: str | os.PathLike
    metrics: Sequence[str | Metric] = ("channelwise", "latent", "softmax")
    layers: str | Sequence[str] = "blocks"
    head: str | None = None
    null: bool = True
    seed: int = 0
    precision: str = "float32"
    device: str = "auto"
    batch_size: int | None = None
    block: int = 1024

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(
            self,
            "models",
            named("models", self.models, "specs, or a mapping from names to specs or modules", nn.Module),
        )
        put(self, "data", named("data", self.data, "specs of images, or a mapping from names to specs"))
        put(self, "groups", tuple(named("groups", self.groups, "names of groups")))
        if isinstance(self.metrics, str) or not isinstance(self.metrics, Sequence):
            raise ValueError(f"metrics must be a list of names of metrics, got {self.metrics!r}")
        for metric in self.metrics:
            if not isinstance(metric, str | Metric):
                raise ValueError(f"metrics must be names of metrics or Metric values, got {metric!r}")
        put(self, "metrics", tuple(self.metrics))
        if not isinstance(self.layers, str):
            put(self, "layers", tuple(named("layers", self.layers, "'blocks', 'all', an expression, or module paths")))
        if not isinstance(self.store, str | os.PathLike) or not str(self.store) or "://" in str(self.store):
            raise ValueError(
                f"store must be the path of a folder that all workers see, got {self.store!r}; copy it elsewhere when it is done"
            )
        put(self, "store", os.path.abspath(os.path.expanduser(self.store)))
        typed(self, head=(str, None), null=(bool,), seed=(int,), precision=(str,), device=(str,), batch_size=(int, None), block=(int,))  # fmt: skip
        if self.precision not in DTYPES:
            raise ValueError(unknown("precision", self.precision, DTYPES))
        if self.block < 1 or (self.batch_size is not None and self.batch_size < 1):
            raise ValueError(f"block and batch_size must be at least 1, got {self.block} and {self.batch_size}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        try:
            torch.device("cpu" if self.device == "auto" else self.device)
        except RuntimeError:
            raise ValueError(f"device must be 'auto', 'cpu', 'cuda', 'cuda:1', …, got {self.device!r}") from None
        family.resolve(self.metrics)
        named("groups", [groups.parse(group).name for group in self.groups], "names of groups")
        for spec in self.data.values():
            lab_images.check(spec)
        for source in self.models.values():
            if isinstance(source, str):
                lab_models.check(source)

    @classmethod
    def from_yaml(cls, path: str | os.PathLike) -> "Study":
        """The study that a YAML file describes: the parameters of `Study` as keys.

        Raises
        ------
        ValueError
            The file is not such YAML; misspelt keys come with near ones.
        """
        path = Path(path)
        try:
            read = yaml.load(path.read_text(encoding="utf-8"), Loader=Once)
        except (yaml.YAMLError, ValueError) as error:  # ValueError: no UTF-8, or no such date
            hint = "specs within [ ] need quotes, or write them as `- spec` lines"
            raise ValueError(f"{path} is not YAML: {error}; {hint}") from None
        known = [field.name for field in fields(cls)]
        if not isinstance(read, dict):
            raise ValueError(f"{path}: expected `key: value` lines with the keys {', '.join(known)}")
        read = {"null" if key is None else key: value for key, value in read.items()}  # what YAML makes of null: false
        for key in read:
            if key not in known:
                raise ValueError(f"{path}: {unknown('key', key, known)}")
        absent = [key for key in known[:4] if key not in read]
        if absent:
            raise ValueError(f"{path}: no {' and no '.join(absent)}; a study needs {', '.join(known[:4])}")
        try:
            return cls(**read)
        except (ValueError, ImportError) as error:
            raise ValueError(f"{path}: {error}") from error

    def plan(self, *, progress: bool = True) -> pd.DataFrame:
        """What there is to do and what it costs, one row per cell; nothing is loaded, trained or written.

        Every model is built with random weights and timed on noise, on the device that would be used: seconds for a small one,
        a minute for a very large one. Images that are not on this machine count by their spec's `n`.

        Columns
        -------
        blocks, done : of the cell
        forwards : images through the model that are left to do, |G| for every image
        bytes : of the values of the whole cell, before compression
        seconds : predicted, for what is left, in one process
        note : why something is unknown
        """
        return planning.table(self, self._ledgers(), progress=progress)

    def status(self) -> pd.DataFrame:
        """Blocks that are done, flawed (done, but some samples have no value), running, failed and missing; one row per cell,
        with the reasons."""
        return self._status(self._ledgers())

    def _status(self, ledgers: Sequence[tuple[Cell, cells.Ledger | None]]) -> pd.DataFrame:
        rows = []
        for cell, ledger in ledgers:
            row = {
                "data": cell.data,
                "group": cell.group,
                "model": cell.model,
                "blocks": len(ledger.start) if ledger else 0,
            }
            for name in (DONE, FLAWED, RUNNING, FAILED, MISSING):
                row[name] = int((ledger.status == name).sum()) if ledger else 0
            reasons = ledger.reasons if ledger else ["not begun"]
            rows.append({**row, "reason": "; ".join(reasons)})
        return pd.DataFrame(rows)

    def run(
        self,
        *,
        workers: int | None = None,
        client: "Client | str | None" = None,
        repair: bool = False,
        progress: bool = True,
    ) -> xr.Dataset | xr.DataTree:
        """Compute what is missing or failed before, and give back everything that is done: `eedkit.open` of this study's cells.

        May be killed at any moment and run again; several processes may run it at once and share the work. What a model or
        an image throws is recorded (`status`), and the rest goes on.

        Parameters
        ----------
        workers : spawned processes on this machine; None computes in this one
        client : a `dask.distributed` Client, or the address of its scheduler
        repair : first read everything that is done, and compute damaged blocks again

        Raises
        ------
        StoreError
            The store cannot be written or is damaged, or holds other models, images or settings under the same names.
        ValueError, ConnectionError
            Images or files of weights are not there or cannot be fetched, or no scheduler answers; before any forward pass.
            (Weights that are fetched by name count as the model's: that cell fails.)
        RuntimeError
            Nothing is done, because every cell failed; with the reasons.
        """
        if workers is not None and client is not None:
            raise ValueError("give workers= or client=, not both")
        if workers is not None and (not isinstance(workers, int) or workers < 1):
            raise ValueError(f"workers must be how many processes, at least 1, got {workers!r}")
        before, sources = self._ledgers(), self._sources()
        left = repair or any(ledger is None or not ledger.done.all() for _, ledger in before)
        with engine.cluster(*(workers, client) if left else (None, None)) as on:
            cells.create(self.store)
            tasks = [task for one in before for task in self._begin(*one, *sources, repair=repair)]
            if workers:
                tasks = [replace(task, threads=max(1, (os.cpu_count() or 1) // workers)) for task in tasks]
            modules = {name: model for name, model in self.models.items() if isinstance(model, nn.Module)}
            outcomes = engine.here(tasks, modules) if on is None else engine.on_cluster(on, tasks, modules)
            with bar(len(tasks), "study", "block", show=progress) as shown:
                for outcome in outcomes:
                    shown.set_postfix_str(f"{outcome.kind} {outcome.task.cell}", refresh=False)
                    shown.update()
        after = self._ledgers()
        failed = self._status(after).query("failed > 0 or flawed > 0")
        reasons = [f"{row.data} · {row.group} · {row.model}: {row.reason}" for row in failed.itertuples()]
        if not any(ledger.done.any() for _, ledger in after):
            raise RuntimeError("nothing is done, every cell failed: " + "\n".join(reasons))
        if reasons:
            warnings.warn(
                f"{len(reasons)} of {len(after)} cells failed or lack samples: " + "\n".join(reasons), stacklevel=2
            )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"\d+ of \d+ cells are not finished")
            return store.join(after)

    def _cells(self) -> list[Cell]:
        """Model by model, so that weights are loaded once."""
        return [
            Cell(self.store, data, groups.parse(group).name, model)
            for model in self.models
            for data in self.data
            for group in self.groups
        ]

    def _ledgers(self) -> list[tuple[Cell, cells.Ledger | None]]:
        """Every cell with what is known of it; None before it is begun."""
        there = os.path.isdir(self.store) and bool(os.listdir(self.store))
        if there:
            cells.check(self.store)
        return [(cell, cell.ledger() if there else None) for cell in self._cells()]

    def _sources(self) -> tuple[dict[str, str], dict[str, tuple[str, int]]]:
        """Checksums of every model's weights and every data set's images, and how many images there are."""
        models = {
            # equal weights may be used otherwise: the second checksum is of what torch prints of the module
            name: f"{probe.fingerprint(model)} {zlib.crc32(repr(model).encode()):08x}"
            if isinstance(model, nn.Module)
            else lab_models.source(model)
            for name, model in self.models.items()
        }
        data = {}
        for name, spec in self.data.items():
            images = lab_images.load(spec)
            data[name] = (lab_images.source(images), len(images))
        return models, data

    def _begin(self, cell: Cell, ledger: cells.Ledger | None, models: dict, data: dict, *, repair: bool) -> list[Task]:
        """The cell's tasks, once its ledger is there and fits."""
        spec, (images, n) = self.models[cell.model], data[cell.data]
        ledger = cell.begin(
            self._settings(cell, models[cell.model], images, n), self.bounds(n, cell.group), None if repair else ledger
        )
        bad = store.damaged(cell, ledger) if repair else []
        if bad:
            if len(bad) == ledger.done.sum():
                cell.forget()
            for block in bad:
                cell.mark(block, MISSING)
            ledger = cell.ledger()
        options = self.options(cell.group)
        return [
            Task(
                cell, block, int(ledger.start[block]), int(ledger.stop[block]), self.data[cell.data],
                spec if isinstance(spec, str) else None, models[cell.model], images,
                options,
            )
            for block in range(len(ledger.start))
            if not ledger.done[block]
        ]  # fmt: skip

    def _settings(self, cell: Cell, model: str, images: str, n: int) -> dict[str, Any]:
        """What must be the same for blocks to belong together."""
        source = self.models[cell.model]
        spec = source if isinstance(source, str) else type(source).__name__
        return {
            "model": f"{spec} [{model}]",
            "data": f"{self.data[cell.data]} [{images}]",
            "images": n,
            "group": cell.group,
            "metrics": [metric if isinstance(metric, str) else metric.description for metric in self.metrics],
            "layers": self.layers if isinstance(self.layers, str) else list(self.layers),
            "head": self.head,
            "null": self.null,
            "seed": self.seed,
            "precision": self.precision,
            "version": f"{schema.SCHEMA}.{probe.VERSION}",
            "about": lab_models.about(source) if isinstance(source, str) else {},
        }

    def options(self, group: str) -> Options:
        """How the cells of a group are measured."""
        keys = ("metrics", "layers", "head", "null", "seed", "precision", "device", "batch_size")
        return Options(group, **{key: getattr(self, key) for key in keys})

    def bounds(self, n: int, group: str) -> list[tuple[int, int]]:
        """Blocks of n images, as places [start, stop) in reading order: whole chains of the group's null."""
        length = chain_length(groups.parse(group).order, self.null)
        chains, together = deviation.chains(n, length), math.ceil(self.block / length)
        starts = range(0, len(chains), together)
        return [(chains[i].start, chains[min(i + together, len(chains)) - 1].stop) for i in starts]
