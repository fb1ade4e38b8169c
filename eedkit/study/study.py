"""A study: models × data sets × groups, measured block by block into one store; planned, run, killed, resumed, joined.

Knows what belongs to a study and has it computed. Costs the forward passes; planning costs one batch a model.
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

from eedkit.errors import cut, printable, short, unknown
from eedkit.lab import images as lab_images
from eedkit.lab import models as lab_models
from eedkit.lab import recipes
from eedkit.probe import guard
from eedkit.probe import measure as probe
from eedkit.probe.measure import Options
from eedkit.probe.metrics import Metric
from eedkit.probe.samples import chain_length
from eedkit.progress import bar
from eedkit.results import schema
from eedkit.store.cells import DEATHS, DONE, FAILED, FLAWED, MISSING, RUNNING, Cell, State, Store
from eedkit.store.join import join
from eedkit.study import plan, workers
from eedkit.study.checks import Once, imported, named, typed
from eedkit.study.workers import Work
from eedkit.theory import deviation
from eedkit.theory.actions import Action
from eedkit.theory.groups import Group

if TYPE_CHECKING:
    from distributed import Client


SHOWN = 500
"""Characters of reasons that a table shows; the store's files have all of them."""


@dataclass(frozen=True)
class Study:
    """Models × data sets × groups, each cell measured by `measure` (Kvinge et al. 2022, the integrand of eq. 4), in one store.

    Parameters
    ----------
    models : specs ("recipe:plain?seed=0", "torchvision:resnet18?weights=DEFAULT", "timm:…", "package:efficientnet_lite0", "file:….safetensors?model=…"), or
        a mapping from names to specs or modules. A study that resumes notices other weights or layers of a module, but not
        other code in its `forward`: give that another name
    data : specs of images ("digits/test?n=100", a folder, "hub:owner/name/split"), or a mapping from names to specs; models
        say which size they want, and the spec does for a module ("digits/test?size=17")
    groups : names of groups, `Group` or `Action` values, or "module:name" of such a value
    store : folder of the results, which all workers see, or any address that fsspec knows
    metrics : as in `measure`, or "module:name" of a `Metric`
    layers, head, layouts, output, null, seed, precision, device, batch_size : as in `measure`; no null within classes
    block : images that are written at once: what a kill costs. Made whole chains of the null; counts when a cell is begun
    time_limit : seconds after which a block fails, the loading of its model included; None for no limit. A model that hangs in
        C, where Python cannot interrupt it, is ended with its process: run with `workers`, which are then started again

    Raises
    ------
    ValueError
        Something is unknown, misspelt, given twice or of another type; nothing is loaded or computed.

    Examples
    --------
    >>> study = Study(models=["recipe:random?seed=0"], data=["digits/test?n=20"], groups=["C4"], store="runs/a")
    >>> list(study.models), study.groups
    (['recipe:random?seed=0'], ('C4',))
    """

    models: Mapping[str, str | nn.Module] | Sequence[str]
    data: Mapping[str, str] | Sequence[str]
    groups: Sequence[str | Group | Action]
    store: str | os.PathLike
    metrics: Sequence[str | Metric] = ("channelwise", "latent", "softmax")
    layers: str | Sequence[str] = "blocks"
    head: str | None = None
    layouts: Mapping[str, str] | None = None
    output: str | int = "auto"
    null: bool = True
    seed: int = 0
    precision: str = "auto"
    device: str = "auto"
    batch_size: int | None = None
    block: int = 1024
    time_limit: float | None = None

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(
            self,
            "models",
            named("models", self.models, "specs, or a mapping from names to specs or modules", nn.Module),
        )
        put(self, "data", named("data", self.data, "specs of images, or a mapping from names to specs"))
        put(self, "groups", imported("groups", self.groups, Group, Action))
        put(self, "metrics", imported("metrics", self.metrics, Metric))
        if not isinstance(self.layers, str):
            put(self, "layers", tuple(named("layers", self.layers, "'blocks', 'all', an expression, or module paths")))
        if not isinstance(self.store, str | os.PathLike) or not str(self.store):
            raise ValueError(
                f"store must be the path of a folder, or an address that fsspec knows, got {short(self.store)}"
            )
        if "://" not in str(self.store):
            put(self, "store", os.path.abspath(os.path.expanduser(self.store)))
        typed(self, "head", str, None)
        typed(self, "null", bool)
        typed(self, "seed", int)
        typed(self, "precision", str)
        typed(self, "device", str)
        typed(self, "batch_size", int, None)
        typed(self, "block", int)
        if self.block < 1:
            raise ValueError(f"block must be at least 1, got {self.block}")
        typed(self, "time_limit", int, float, None)
        if self.time_limit is not None and not 0 < self.time_limit < math.inf:
            raise ValueError(f"time_limit must be seconds above 0, or None, got {self.time_limit}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        try:
            torch.device("cpu" if self.device == "auto" else self.device)
        except RuntimeError:
            raise ValueError(f"device must be 'auto', 'cpu', 'cuda', 'cuda:1', …, got {self.device!r}") from None
        self._metric_names()
        options = [self.options(group) for group in self.groups]
        named("groups", [one.action.group.name for one in options], "names of groups")
        for spec in self.data.values():
            lab_images.check(spec)
        for source in self.models.values():
            if isinstance(source, str):
                lab_models.resolve(source)

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
        return plan.table(self, self._states(), progress=progress)

    def status(self) -> pd.DataFrame:
        """Blocks that are done, flawed (done, but some samples have no value), running, failed and missing; one row per cell,
        with the reasons."""
        return _status(self._states(), Store(self.store))

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
        repair : first read everything that is there, and remove damaged files, so that their blocks are computed again

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
        _check_workers(workers, client)
        store = Store(self.store)
        if repair:
            store.repair(self._cells())
        works = self._works(store, self._states())
        self._compute(works, workers, client if works else None, progress=progress)
        states = self._states()
        _warn_of_failures(_status(states, store))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"\d+ of \d+ cells are not finished")
            return join(self.store, states)

    def _cells(self) -> list[Cell]:
        """Every cell, model by model, so that weights are loaded once."""
        groups = [self.options(group).action.group.name for group in self.groups]
        cells = []
        for model in self.models:
            for data in self.data:
                cells += [Cell(data, group, model) for group in groups]
        return cells

    def _states(self) -> list[State]:
        """Every cell with what is known of it."""
        known = Store(self.store).read()
        return [known.get(cell) or State(cell) for cell in self._cells()]

    def _works(self, store: Store, states: Sequence[State]) -> list[Work]:
        """The blocks that are left to compute, once every cell is begun; those that were somebody's last come last."""
        options = {one.action.group.name: one for one in map(self.options, self.groups)}
        sources = {name: _source(model) for name, model in self.models.items()}
        images = {name: _images(spec) for name, spec in self.data.items()}
        store.promise([state.cell for state in states])
        store.clean(states)
        works, doubtful = [], []
        for before in states:
            cell = before.cell
            checksum, n = images[cell.data]
            of_cell = options[cell.group]
            state = store.begin(
                before, self._settings(cell, of_cell, sources[cell.model], checksum, n), self.bounds(n, of_cell)
            )
            model = self.models[cell.model]
            for block, places in enumerate(state.bounds):
                if block in state.done:
                    continue
                if state.deaths.get(block, 0) >= DEATHS:
                    store.fail(
                        cell, block, f"{DEATHS} processes died while they were at it: its model may end or exhaust them"
                    )
                    continue
                work = Work(
                    store=self.store,
                    cell=cell,
                    block=block,
                    places=places,
                    model=model if isinstance(model, str) else None,
                    data=self.data[cell.data],
                    images=checksum,
                    source=sources[cell.model],
                    options=of_cell,
                    time_limit=self.time_limit,
                    failures=tuple(state.failures.get(block, ())),
                )
                is_doubtful = state.deaths.get(block) or block in state.reasons
                (doubtful if is_doubtful else works).append(work)
        return works + doubtful

    def _compute(
        self, works: Sequence[Work], number: int | None, client: "Client | str | None", *, progress: bool
    ) -> None:
        """Compute the blocks here, on so many processes, or on a cluster."""
        modules = {name: model for name, model in self.models.items() if isinstance(model, nn.Module)}
        if number and works:
            threads = max(1, (os.cpu_count() or 1) // number)
            works = [replace(work, threads=threads) for work in works]
        if not number and client is None:
            self._train(works, progress=progress)
        with workers.cluster(number if works else None, client) as dask:
            outcomes = workers.here(works, modules) if dask is None else workers.on_cluster(dask, works, modules)
            with bar(len(works), "study", "block", show=progress) as shown:
                for outcome in outcomes:
                    shown.set_postfix_str(printable(f"{outcome.kind} {outcome.work.cell}"), refresh=False)
                    shown.update()

    def _train(self, works: Sequence[Work], *, progress: bool) -> None:
        """Train the networks that are needed and not cached, several at once."""
        specs = dict.fromkeys(work.model for work in works if work.model)
        missing = recipes.untrained(lab_models.resolve(spec).trained_by for spec in specs)
        with bar(len(missing), "training", "network", show=progress) as shown:
            for _ in recipes.train_all(missing):
                shown.update()

    def _settings(self, cell: Cell, options: Options, source: str, checksum: str, n: int) -> dict[str, Any]:
        """What must be the same for blocks to belong together."""
        model = self.models[cell.model]
        spec = model if isinstance(model, str) else type(model).__name__
        return {
            "model": f"{spec} [{source}]",
            "data": f"{self.data[cell.data]} [{checksum}]",
            "images": n,
            "group": _moves(options.action),
            "metrics": self._metric_names(),
            "layers": self.layers if isinstance(self.layers, str) else list(self.layers),
            "head": self.head,
            "layouts": options.layouts,
            "output": self.output,
            "null": self.null,
            "seed": self.seed,
            "precision": self.precision,
            "version": f"{schema.SCHEMA}.{probe.VERSION}",
            "about": lab_models.resolve(model).about if isinstance(model, str) else {},
        }

    def _metric_names(self) -> list[str]:
        """What tells the metrics from others; ValueError for one that cannot be told."""
        return [metric if isinstance(metric, str) else metric.description for metric in self.metrics]

    def options(self, group: str | Group | Action) -> Options:
        """How the cells of a group are measured."""
        names = ("metrics", "layers", "head", "layouts", "output", "null", "seed", "precision", "device", "batch_size")
        return Options(group, **{name: getattr(self, name) for name in names})

    def bounds(self, n: int, options: Options) -> list[tuple[int, int]]:
        """Blocks of n images, as places [start, stop) in reading order: whole chains of the group's null."""
        length = chain_length(options.action.group.order, self.null)
        chains = deviation.chains(n, length)
        together = math.ceil(self.block / length)
        bounds = []
        for i in range(0, len(chains), together):
            last = chains[min(i + together, len(chains)) - 1]
            bounds.append((chains[i].start, last.stop))
        return bounds


def _check_workers(number: object, client: object) -> None:
    if number is not None and client is not None:
        raise ValueError("give workers= or client=, not both")
    if number is not None and (not isinstance(number, int) or number < 1):
        raise ValueError(f"workers must be how many processes, at least 1, got {short(number)}")


def _source(model: str | nn.Module) -> str:
    """Checksum of where a model's weights come from."""
    if isinstance(model, str):
        return lab_models.resolve(model).source()
    # equal weights may be used otherwise: the second checksum is of what torch prints of the module
    return f"{guard.fingerprint(model)} {zlib.crc32(repr(model).encode()):08x}"


def _moves(action: Action) -> str:
    """An action's name and a checksum of what it does to noise: others of that name are not taken for it."""
    checksum = zlib.crc32(repr(action.group).encode())
    for channels in (1, 3):
        noise = torch.rand(channels, 48, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        for element in range(action.group.order):
            try:
                moved = action(element, noise).numpy()
            except Exception:  # it need not be defined on such images
                continue
            # machines that interpolate agree in the first digits, but for the sign of 0
            checksum = zlib.crc32((moved.round(6) + 0.0).tobytes(), checksum)
    return f"{action.name} [{checksum:08x}]"


def _images(spec: str) -> tuple[str, int]:
    """Checksum of a data set's images, and how many there are."""
    images = lab_images.load(spec)
    return lab_images.source(images), len(images)


def _status(states: Sequence[State], store: Store) -> pd.DataFrame:
    """`Study.status`, from what was read."""
    rows = []
    for state in states:
        cell = state.cell
        row = {"data": cell.data, "group": cell.group, "model": cell.model, "blocks": len(state.bounds)}
        statuses = [state.status(block) for block in range(len(state.bounds))]
        for name in (DONE, FLAWED, RUNNING, FAILED, MISSING):
            row[name] = statuses.count(name)
        reasons = [*dict.fromkeys(state.reasons.values()), *store.flaws(state)]
        row["reason"] = cut(printable("; ".join(reasons)), SHOWN) if state.bounds else "not begun"
        rows.append(row)
    return pd.DataFrame(rows)


def _warn_of_failures(status: pd.DataFrame) -> None:
    """A warning of cells that failed or lack samples; RuntimeError where nothing is done."""
    failed = status.query("failed > 0 or flawed > 0")
    reasons = "\n".join(f"{row.data} · {row.group} · {row.model}: {row.reason}" for row in failed.itertuples())
    if not (status.done + status.flawed).any():
        raise RuntimeError(f"nothing is done, every cell failed: {reasons}")
    if reasons:
        warnings.warn(f"{len(failed)} of {len(status)} cells failed or lack samples: {reasons}", stacklevel=3)
