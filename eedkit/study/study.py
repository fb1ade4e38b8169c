"""A study: models × data sets × groups, measured block by block into one store; planned, run, killed, resumed, joined.

Knows what belongs to a study and has it computed. Costs the forward passes; planning costs some batches a model.
"""

import math
import os
import warnings
import zlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

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
from eedkit.probe.measure import STANDARD, Options
from eedkit.probe.metrics import Metric
from eedkit.probe.samples import chain_length
from eedkit.progress import bar
from eedkit.results import schema
from eedkit.results.doubts import doubts
from eedkit.study import plan
from eedkit.study import workers as computing
from eedkit.study.checks import Once, imported, is_imported, named, names_or_values, typed
from eedkit.study.join import join
from eedkit.study.store import DONE, FAILED, FLAWED, MISSING, RUNNING, Cell, State, Store
from eedkit.study.workers import Job
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

    Raises
    ------
    ValueError, TypeError
        Something is unknown, misspelt, given twice or of another type; nothing is loaded, imported or computed.

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

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(
            self,
            "models",
            named("models", self.models, "specs, or a mapping from names to specs or modules", nn.Module),
        )
        put(self, "data", named("data", self.data, "specs of images, or a mapping from names to specs"))
        put(self, "groups", names_or_values("groups", self.groups, Group, Action))
        put(self, "metrics", names_or_values("metrics", self.metrics, Metric))
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
        typed(self, "device", str)
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be at least 0 and below 2**63, got {self.seed}")
        typed(self, "block", int)
        if self.block < 1:
            raise ValueError(f"block must be at least 1, got {self.block}")
        self._check_device()
        # what is imported is checked when it is needed, since looking at a study's status must run no code of its file
        known = [metric for metric in self.metrics if not is_imported(metric)]
        self._metric_names(known)
        options = [self._options(group, known or STANDARD) for group in self.groups if not is_imported(group)]
        if not options:
            self._options("C1", known or STANDARD)
        if len(known) == len(self.metrics) and options:
            named("groups", [one.action.group.name for one in options], "names of groups")
        for spec in self._data.values():
            lab_images.check(spec)
        for source in self._models.values():
            if isinstance(source, str):
                lab_models.resolve(source)

    @property
    def _models(self) -> dict[str, str | nn.Module]:
        """By their names, which `named` has given all of them."""
        return cast("dict[str, str | nn.Module]", self.models)

    @property
    def _data(self) -> dict[str, str]:
        return cast("dict[str, str]", self.data)

    @property
    def _store(self) -> Store:
        return Store(str(self.store))

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
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, or no such date
            is_in_brackets = "flow sequence" in str(error)
            hint = "; specs within [ ] need quotes, or write them as `- spec` lines" if is_in_brackets else ""
            raise ValueError(f"{path} is not YAML: {cut(str(error), SHOWN)}{hint}") from None
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
            study = cls(**read)
        except (ValueError, TypeError, ImportError, RecursionError) as error:
            raise ValueError(f"{path}: {error}") from error
        object.__setattr__(study, "_file", f"{path}: ")
        return study

    def plan(self, *, progress: bool = True) -> pd.DataFrame:
        """What there is to do and what it costs, one row per cell; nothing is loaded, trained or written.

        Every model of which something is left to do is built with random weights and timed on noise, on the device that would
        be used: seconds for a small one, a minute for a very large one. Images that are not on this machine count by their
        spec's `n`.

        Columns
        -------
        blocks, done : of the cell
        forwards : images through the model that are left to do, |G| for every image
        bytes : of the values of the whole cell, before compression
        seconds : predicted, for what is left, in one process
        note : why something is unknown
        """
        costs: dict[tuple, tuple[float, int]] = {}
        rows = []
        states = self._states()
        shown = bar(len(states), "plan", "cell", show=progress)
        for state in states:
            cell = state.cell
            shown.set_postfix_str(printable(cell.model), refresh=False)
            row: dict[str, Any] = {"data": cell.data, "group": cell.group, "model": cell.model, "note": ""}
            try:
                row |= self._planned(state, costs)
            except Exception as error:  # a plan says of every cell what is wrong, not only of the first
                row["note"] = f"{type(error).__name__}: {error}"
            rows.append(row)
            shown.update()
        shown.close()
        columns = ["data", "group", "model", "images", "blocks", "done", "forwards", "bytes", "seconds", "note"]
        return pd.DataFrame(rows).reindex(columns=columns)

    def _planned(self, state: State, costs: dict[tuple, tuple[float, int]]) -> dict[str, Any]:
        """The row of a plan for a cell."""
        row = {"images": state.samples, "blocks": len(state.bounds), "done": len(state.done)}
        if state.is_done:
            of_sample = self._store.block(state, 0).bytes_of_sample
            return {**row, "forwards": 0, "bytes": of_sample * state.samples, "seconds": 0.0}
        cell = state.cell
        model, data = self._models[cell.model], self._data[cell.data]
        options = self._options_by_group[cell.group]
        if not state.bounds:
            row["images"] = plan.count(data)
            row["blocks"] = len(self.bounds(row["images"], options.action.group.order))
        # what a forward pass costs follows from the model and the size of the images, which a module does not say
        key = cell.model, cell.group, data if isinstance(model, nn.Module) else plan.size_in(data)
        if key not in costs:
            costs[key] = plan.cost(model, data, options)
        seconds, of_sample = costs[key]
        left = row["images"] - len(state.places_done)
        forwards = left * options.action.group.order
        return {**row, "forwards": forwards, "bytes": of_sample * row["images"], "seconds": seconds * left}

    def status(self) -> pd.DataFrame:
        """Blocks that are done, flawed (done, but some samples have no value), running, failed and missing; one row per cell,
        with the reasons. Runs no code of the study's file once the study was begun."""
        return _status(self._states(), self._store)

    def run(
        self,
        *,
        workers: int | None = None,
        client: "Client | str | None" = None,
        repair: bool = False,
        progress: bool = True,
    ) -> xr.Dataset | xr.DataTree:
        """Compute what is missing or failed before, and give back everything that is done: `eedkit.open` of this study's cells.

        Can be killed and resumed; several processes may run it at once and share the work. What cannot be
        measured as asked is refused before anything is trained. What a model or an image throws is recorded (`status`), and
        the rest goes on. Blocks at which processes ended are tried last.

        Parameters
        ----------
        workers : spawned processes on this machine; None computes in this one
        client : a `dask.distributed` Client, or the address of its scheduler
        repair : first read everything that is there, and remove damaged files, so that their blocks are computed again

        Raises
        ------
        StoreError
            The store cannot be read or written or is damaged, or holds other models, images or settings under the same names.
        ValueError, ConnectionError
            Images or files of weights are not there or cannot be fetched, a model has no such head, layer, layout or output,
            a group cannot act on the images, no metric has a value, or no scheduler answers; before anything is trained or
            measured. (Weights that are fetched by name count as the model's: that cell fails.) Or the scheduler is gone; what is
            done stays.
        RuntimeError
            Nothing is done, because every cell failed; with the reasons.
        """
        if workers is not None and client is not None:
            raise ValueError("give workers= or client=, not both")
        if workers is not None and (not isinstance(workers, int) or workers < 1):
            raise ValueError(f"workers must be how many processes, at least 1, got {short(workers)}")
        groups = {str(group): self._group_name(group, {}) for group in self.groups if is_imported(group)}
        if repair:
            self._store.repair(self._cells({}), groups)
        with computing.connected(client) as cluster:
            self._compute_missing(groups, workers, cluster, progress=progress)
        states = self._states()
        _warn_of_failures(_status(states, self._store))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"\d+ of \d+ cells are not finished")
            results = join(self._store, states)
        for doubt in self._doubts(results):
            warnings.warn(doubt, stacklevel=2)
        return results

    def _compute_missing(
        self, groups: Mapping[str, str], workers: int | None, cluster: "Client | None", *, progress: bool
    ) -> None:
        """Compute what is left of all cells; what cannot be done as asked is refused before the first block."""
        store = self._store
        states = self._states()
        jobs = self._jobs(states, workers)
        for state, job in zip(states, jobs, strict=True):
            store.refuse_others(state, job.settings)
        left = [(state, job) for state, job in zip(states, jobs, strict=True) if not state.is_done]
        if not left:
            return
        for state, _ in left:
            for number in state.done:  # of the cells that grow, which are few
                store.block(state, number)
        if cluster is None:
            self._refuse_absent_device()
        plan.refuse_what_cannot_be([job for _, job in left])
        store.promise([state.cell for state in states], groups)
        store.clean(states)
        works, doubtful = [], []
        for state, job in left:
            store.begin(state, job.settings, self.bounds(job.n, job.options.action.group.order))
            for block in range(len(state.bounds)):
                is_doubtful = block in state.deaths or block in state.reasons
                if block not in state.done:
                    (doubtful if is_doubtful else works).append((job, block))
        with ExitStack() as stack:
            if workers is not None:
                cluster = stack.enter_context(computing.on_this_machine(workers))
            if cluster is None:
                _train([job for _, job in left], progress=progress)
                outcomes = computing.here(works + doubtful)
            else:
                outcomes = computing.on_cluster(cluster, works + doubtful)
            shown = stack.enter_context(bar(len(works + doubtful), "study", "block", show=progress))
            for job, outcome in outcomes:
                shown.set_postfix_str(printable(f"{outcome} {job.cell}"), refresh=False)
                shown.update()

    def _doubts(self, results: xr.Dataset | xr.DataTree) -> list[str]:
        """Why models may not have been able to read their images; nothing of networks that are random by their recipe."""
        trained = [name for name, model in self._models.items() if _about(model).get("recipe") != "random"]
        found = []
        for ds in [results] if isinstance(results, xr.Dataset) else [leaf.to_dataset() for leaf in results.leaves]:
            found += doubts(ds.sel(model=[name for name in ds.model.values if name in trained]))
        return list(dict.fromkeys(found))

    @cached_property
    def _options_by_group(self) -> dict[str, Options]:
        """How the cells of each group are measured; what "module:name" stands for is imported now."""
        try:
            metrics = tuple(imported("metrics", metric, Metric) for metric in self.metrics)
            options = [self._options(imported("groups", group, Group, Action), metrics) for group in self.groups]
            names = named("groups", [one.action.group.name for one in options], "names of groups")
        except (ValueError, TypeError) as error:
            raise ValueError(f"{getattr(self, '_file', '')}{error}") from error
        return dict(zip(names, options, strict=True))

    def _options(self, group: Any, metrics: Sequence) -> Options:
        names = ("layers", "head", "layouts", "output", "null", "seed", "precision", "device", "batch_size")
        return Options(group, metrics=metrics, **{name: getattr(self, name) for name in names})

    def _check_device(self) -> None:
        """ValueError for what is no device; whether this machine has it matters only when it is to compute."""
        try:
            kind = torch.device("cpu" if self.device == "auto" else self.device).type
        except RuntimeError:
            kind = ""
        if kind not in ("cpu", "cuda"):
            raise ValueError(f"device must be 'auto', 'cpu', 'cuda', 'cuda:1', …, got {self.device!r}")

    def _refuse_absent_device(self) -> None:
        device = next(iter(self._options_by_group.values())).torch_device
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"there is no device {self.device!r} here, only {torch.cuda.device_count()} GPUs")

    def _group_name(self, group: Any, known: Mapping[str, str]) -> str:
        """A group's name; of a "module:name" that which is known from the store, so that nothing is imported."""
        if is_imported(group):
            return known.get(group) or list(self._options_by_group)[self.groups.index(group)]
        return self._options(group, STANDARD).action.group.name

    def _cells(self, known_groups: Mapping[str, str]) -> list[Cell]:
        """Every cell, model by model, so that weights are loaded once."""
        groups = [self._group_name(group, known_groups) for group in self.groups]
        cells = []
        for model in self._models:
            for data in self._data:
                cells += [Cell(data, group, model) for group in groups]
        return cells

    def _states(self) -> list[State]:
        """What the store holds of every cell."""
        known_groups: dict[str, str] = {}
        for study in self._store.studies():
            known_groups |= study["groups"]
        return [self._store.state(cell) for cell in self._cells(known_groups)]

    def _jobs(self, states: Sequence[State], workers: int | None) -> list[Job]:
        """Every cell with what it takes to measure it; reads the images and files of weights for their checksums."""
        weights = {name: _weights(model) for name, model in self._models.items()}
        images = {name: lab_images.load(spec) for name, spec in self._data.items()}
        checksums = {name: lab_images.source(loaded) for name, loaded in images.items()}
        moves = {name: _moves(options.action) for name, options in self._options_by_group.items()}
        jobs = []
        for cell in [state.cell for state in states]:
            model, data = self._models[cell.model], self._data[cell.data]
            options = self._options_by_group[cell.group]
            n = len(images[cell.data])
            spec = model if isinstance(model, str) else type(model).__name__
            settings = {
                "model": f"{spec} [{weights[cell.model]}]",
                "data": f"{data} [{checksums[cell.data]}]",
                "images": n,
                "group": moves[cell.group],
                "metrics": self._metric_names(options.metrics),
                "layers": self.layers if isinstance(self.layers, str) else list(self.layers),
                "head": self.head,
                "layouts": options.layouts,
                "output": self.output,
                "null": self.null,
                "seed": self.seed,
                "precision": self.precision,
                "version": f"{schema.SCHEMA}.{probe.VERSION}",
                "about": _about(model),
            }
            job = Job(
                store=self._store,
                cell=cell,
                model=model,
                weights=weights[cell.model],
                data=data,
                images=checksums[cell.data],
                n=n,
                options=options,
                settings=settings,
                threads=max(1, (os.cpu_count() or 1) // workers) if workers else None,
            )
            jobs.append(job)
        return jobs

    def _metric_names(self, metrics: Sequence[Any]) -> list[str]:
        """What tells the metrics from others; ValueError for one that cannot be told."""
        names = []
        for asked, metric in zip(self.metrics, metrics, strict=False):
            names.append(asked if isinstance(asked, str) and not is_imported(asked) else metric.description)
        return names

    def bounds(self, n: int, order: int) -> list[tuple[int, int]]:
        """Blocks of n images, as places [start, stop) in reading order: whole chains of the null of a group of this order."""
        length = chain_length(order, self.null)
        chains = deviation.chains(n, length)
        together = math.ceil(self.block / length)
        bounds = []
        for i in range(0, len(chains), together):
            last = chains[min(i + together, len(chains)) - 1]
            bounds.append((chains[i].start, last.stop))
        return bounds


def _train(jobs: Sequence[Job], *, progress: bool) -> None:
    """Train the networks that are missing, all at once."""
    missing = recipes.untrained(lab_models.resolve(job.model).trained_by for job in jobs if isinstance(job.model, str))
    with bar(len(missing), "training", "network", show=progress) as shown:
        for _ in recipes.train_all(missing):
            shown.update()


def _about(model: str | nn.Module) -> dict[str, str | int]:
    """What is known of a model that is a recipe."""
    return lab_models.resolve(model).about if isinstance(model, str) else {}


def _weights(model: str | nn.Module) -> str:
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
        for block, deaths in state.deaths.items():
            processes = "a process" if deaths == 1 else f"{deaths} processes"
            reasons.append(
                f"{processes} ended at block {block} (killed, preempted, or out of memory); a new run tries it last"
            )
        row["reason"] = cut(printable("; ".join(reasons)), SHOWN) if state.bounds else "not begun"
        rows.append(row)
    return pd.DataFrame(rows)


def _warn_of_failures(status: pd.DataFrame) -> None:
    """A warning of cells that failed or lack samples; RuntimeError where nothing is done."""
    failed = status.query("failed > 0 or flawed > 0 or missing > 0")
    reasons = []
    for row in failed.to_dict("records"):
        reason = row["reason"] or "its workers ended before they were at all blocks; run again"
        reasons.append(f"{row['data']} · {row['group']} · {row['model']}: {reason}")
    listed = "\n".join(reasons)
    if not (status.done + status.flawed).any():
        raise RuntimeError(f"nothing is done, every cell failed: {listed}")
    if reasons:
        warnings.warn(f"{len(failed)} of {len(status)} cells failed or lack samples: {listed}", stacklevel=3)
