"""A study: models × data sets × groups, measured block by block into one store; planned, run, killed, resumed, joined.

Knows what belongs to a study and has it computed. Costs the forward passes; planning costs some batches a model.
"""

import math
import os
import warnings
import zlib
from collections.abc import Mapping, Sequence
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
from eedkit.study.blocks import PAIR_SUM
from eedkit.study.checks import Once, imported, is_imported, named, names_or_values, typed
from eedkit.study.join import join
from eedkit.study.store import DONE, FAILED, FLAWED, MISSING, RUNNING, Cell, Contents, State, Store
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
            hint = "specs within [ ] need quotes, or write them as `- spec` lines"
            raise ValueError(f"{path} is not YAML: {cut(str(error), SHOWN)}; {hint}") from None
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
        store = self._store
        contents = store.read()
        costs: dict[tuple, tuple[float, int]] = {}
        rows = []
        states = self._states(contents)
        shown = bar(len(states), "plan", "cell", show=progress)
        for state in states:
            cell = state.cell
            shown.set_postfix_str(printable(cell.model), refresh=False)
            row: dict[str, Any] = {"data": cell.data, "group": cell.group, "model": cell.model, "note": ""}
            try:
                row |= self._planned(store, state, costs)
            except Exception as error:  # a plan says of every cell what is wrong, not only of the first
                row["note"] = f"{type(error).__name__}: {error}"
            rows.append(row)
            shown.update()
        shown.close()
        columns = ["data", "group", "model", "images", "blocks", "done", "forwards", "bytes", "seconds", "note"]
        return pd.DataFrame(rows).reindex(columns=columns)

    def _planned(self, store: Store, state: State, costs: dict[tuple, tuple[float, int]]) -> dict[str, Any]:
        """The row of a plan for a cell."""
        cell = state.cell
        if state.is_done:
            first = store.block(state, min(state.done))
            places = [place for name, place in first.about["arrays"].items() if name != PAIR_SUM]
            size = sum((place["stop"] - place["start"]) * torch.float32.itemsize for place in places)
            nothing = {"forwards": 0, "seconds": 0.0, "bytes": size // first.size * state.samples}
            return {"images": state.samples, "blocks": len(state.bounds), "done": len(state.done), **nothing}
        model, data = self._models[cell.model], self._data[cell.data]
        options = self._options_by_group[cell.group]
        n = state.samples or plan.count(data)
        # what a forward pass costs follows from the model and the size of the images, which a module does not say
        key = cell.model, cell.group, data if isinstance(model, nn.Module) else plan.size_in(data)
        if key not in costs:
            costs[key] = plan.cost(model, data, options)
        seconds, size = costs[key]
        left = n - state.samples_done
        return {
            "images": n,
            "blocks": len(state.bounds or self.bounds(n, options)),
            "done": len(state.done),
            "forwards": left * options.action.group.order,
            "bytes": size * n,
            "seconds": seconds * left,
        }

    def status(self) -> pd.DataFrame:
        """Blocks that are done, flawed (done, but some samples have no value), running, failed and missing; one row per cell,
        with the reasons. Runs no code of the study's file once the study was begun."""
        store = self._store
        return _status(self._states(store.read()), store)

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
            a group cannot act on the images, or no scheduler answers; before anything is trained or measured. (Weights that
            are fetched by name count as the model's: that cell fails.) Or the scheduler is gone; what is done stays.
        RuntimeError
            Nothing is done, because every cell failed; with the reasons.
        """
        _check_workers(workers, client)
        store = self._store
        groups = {str(value): self._group_name(value, {}) for value in self.groups if is_imported(value)}
        if repair:
            store.repair(self._cells({}), groups)
        contents = store.read()
        asked = self._asked(contents)
        for one in asked:
            store.refuse_others(one.state, one.settings)
        unfinished = [one for one in asked if not one.state.is_done]
        if unfinished:
            with computing.cluster(workers, client) as dask:
                self._refuse_what_cannot_be(unfinished, here=client is None)
                store.promise([one.cell for one in asked], contents, groups)
                store.clean([one.state for one in asked])
                self._compute(self._works(asked, workers), dask, progress=progress)
            contents = store.read()
        states = self._states(contents)
        _warn_of_failures(_status(states, store))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"\d+ of \d+ cells are not finished")
            results = join(str(self.store), states)
        for doubt in self._doubts(results):
            warnings.warn(doubt, stacklevel=2)
        return results

    def _doubts(self, results: xr.Dataset | xr.DataTree) -> list[str]:
        """Why models may not have been able to read their images; nothing of networks that are random by their recipe."""
        trained = []
        for name, model in self._models.items():
            about = lab_models.resolve(model).about if isinstance(model, str) else {}
            if about.get("recipe") != "random":
                trained.append(name)
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

    def options(self, group: str | Group | Action) -> Options:
        """How the cells of a group are measured."""
        return list(self._options_by_group.values())[list(self.groups).index(group)]

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

    def _group_name(self, group: Any, known: Mapping[str, str]) -> str:
        """A group's name; of a "module:name" that which is known from the store, so that nothing is imported."""
        if is_imported(group):
            return known.get(group) or self.options(group).action.group.name
        return self._options(group, STANDARD).action.group.name

    def _cells(self, known_groups: Mapping[str, str]) -> list[Cell]:
        """Every cell, model by model, so that weights are loaded once."""
        groups = [self._group_name(group, known_groups) for group in self.groups]
        cells = []
        for model in self._models:
            for data in self._data:
                cells += [Cell(data, group, model) for group in groups]
        return cells

    def _states(self, contents: Contents) -> list[State]:
        """Every cell with what is known of it."""
        return [contents.states.get(cell) or State(cell) for cell in self._cells(contents.groups)]

    def _asked(self, contents: Contents) -> list["_Asked"]:
        """Every cell with what it takes to measure it, and what is known of it."""
        sources = {name: _source(model) for name, model in self._models.items()}
        images = {name: _images(spec) for name, spec in self._data.items()}
        moves = {name: _moves(options.action) for name, options in self._options_by_group.items()}
        asked = []
        for state in self._states(contents):
            cell = state.cell
            model = self._models[cell.model]
            spec = model if isinstance(model, str) else type(model).__name__
            checksum, n = images[cell.data]
            options = self._options_by_group[cell.group]
            settings = {
                "model": f"{spec} [{sources[cell.model]}]",
                "data": f"{self._data[cell.data]} [{checksum}]",
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
                "about": lab_models.resolve(model).about if isinstance(model, str) else {},
            }
            asked.append(_Asked(state, options, settings, sources[cell.model], checksum))
        return asked

    def _metric_names(self, metrics: Sequence[Any]) -> list[str]:
        """What tells the metrics from others; ValueError for one that cannot be told."""
        names = []
        for asked, metric in zip(self.metrics, metrics, strict=False):
            names.append(asked if isinstance(asked, str) and not is_imported(asked) else metric.description)
        return names

    def _refuse_what_cannot_be(self, asked: Sequence["_Asked"], *, here: bool) -> None:
        """ValueError for cells that cannot be measured as asked, before anything is trained or measured."""
        device = asked[0].options.torch_device if here else torch.device("cpu")
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"there is no device {self.device!r} here, only {torch.cuda.device_count()} GPUs")
        reasons = []
        for model in dict.fromkeys(one.cell.model for one in asked):
            of_model = [one for one in asked if one.cell.model == model]
            sizes = {self._data[one.cell.data]: one.settings["images"] for one in of_model}
            options = {one.cell.group: one.options for one in of_model}
            against = plan.reasons_against(self._models[model], sizes, list(options.values()))
            for one in of_model:
                reason = against.get((self._data[one.cell.data], one.cell.group))
                if reason is not None:
                    reasons.append(f"{one.cell}: {reason}")
        if reasons:
            more = f" (and {len(reasons) - 3} more cells)" if len(reasons) > 3 else ""
            raise ValueError(f"nothing was trained or measured, since {'; '.join(reasons[:3])}{more}")

    def _works(self, asked: Sequence["_Asked"], processes: int | None) -> list[Work]:
        """The blocks that are left to compute, once every cell is begun; those at which processes ended or failed come last."""
        threads = max(1, (os.cpu_count() or 1) // processes) if processes else None
        works, doubtful = [], []
        for one in asked:
            cell, before = one.cell, one.state
            state = self._store.begin(before, one.settings, self.bounds(one.settings["images"], one.options))
            model = self._models[cell.model]
            for block, places in enumerate(state.bounds):
                if block in state.done:
                    continue
                work = Work(
                    store=str(self.store),
                    cell=cell,
                    block=block,
                    places=places,
                    model=model if isinstance(model, str) else None,
                    data=self._data[cell.data],
                    images=one.images,
                    source=one.source,
                    options=one.options,
                    threads=threads,
                )
                is_doubtful = block in before.deaths or block in before.reasons
                (doubtful if is_doubtful else works).append(work)
        return works + doubtful

    def _compute(self, works: Sequence[Work], dask: "Client | None", *, progress: bool) -> None:
        """Compute the blocks here, after the networks that are missing are trained, or on a cluster."""
        modules = {name: model for name, model in self._models.items() if isinstance(model, nn.Module)}
        if dask is None:
            missing = recipes.untrained(lab_models.resolve(work.model).trained_by for work in works if work.model)
            with bar(len(missing), "training", "network", show=progress) as shown:
                for _ in recipes.train_all(missing):
                    shown.update()
        outcomes = computing.here(works, modules) if dask is None else computing.on_cluster(dask, works, modules)
        with bar(len(works), "study", "block", show=progress) as shown:
            for work, outcome in outcomes:
                shown.set_postfix_str(printable(f"{outcome} {work.cell}"), refresh=False)
                shown.update()

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


@dataclass(frozen=True)
class _Asked:
    """A cell as a study asks for it: how it is measured, and the checksums of weights and images."""

    state: State
    options: Options
    settings: dict[str, Any]
    source: str
    images: str

    @property
    def cell(self) -> Cell:
        return self.state.cell


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
