"""A study in a Zarr store: for every data set, group and model one cell, a ledger of its blocks beside their values.

    runs/a.zarr/digits-test/C4/plain/ledger     start, stop and status of every block
    runs/a.zarr/digits-test/C4/plain/values     the metrics, chunked along `sample`, and the states of each block

Knows xarray and Zarr, never torch. A block is whole chunks: its values are written first, its status last, every file at
once or not at all, so that a process may be killed at any moment. Costs a few milliseconds per block.
"""

import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from eedkit.results import disk, schema
from eedkit.results.disk import StoreError, open_group, writing
from eedkit.results.process import alive

MISSING, DONE, FLAWED, FAILED, RUNNING = "missing", "done", "flawed", "failed", "running"
"""What the ledger says of a block. Flawed: done, but some samples have no value. What is marked neither done nor flawed was
not done, whatever its values hold."""

STATES = ("pair_sum", "pair_n", "dead", "live_or_dead", "reason", "undefined")
FROM_STATES = ("dead_fraction",)
"""And M of each normalised metric, `<metric>_pair_cosine`."""


def slug(name: str) -> str:
    """A name as part of a path in the store.

    >>> slug("digits/test?n=100")
    'digits-test-n-100'
    """
    return re.sub(r"[^\w.]+", "-", name).strip("-.") or "-"


@dataclass(frozen=True)
class Ledger:
    """What is known of a cell's blocks: their places [start, stop) in reading order, what became of them, and the settings.

    `notes` hold the device of a done block ("device: reasons" of a flawed one), the reason of a failed one, and the process of
    a running one.
    """

    start: np.ndarray
    stop: np.ndarray
    status: np.ndarray
    notes: np.ndarray
    settings: dict
    names: tuple[str, str, str]

    @property
    def n(self) -> int:
        """Images in the cell."""
        return int(self.stop[-1])

    @cached_property
    def done(self) -> np.ndarray:
        """Per block, whether it is done, flawed or not."""
        return np.isin(self.status, [DONE, FLAWED])

    @cached_property
    def images_done(self) -> np.ndarray:
        """Per image in reading order, whether its block is done."""
        return np.repeat(self.done, self.stop - self.start)

    @property
    def devices(self) -> list[str]:
        """On which devices the done blocks were computed."""
        return sorted({note.partition(": ")[0] for note in self.notes[self.done]})

    @property
    def reasons(self) -> list[str]:
        """Why blocks failed and samples have no value, each once."""
        said = dict.fromkeys(self.notes[self.status == FAILED])
        said |= dict.fromkeys(note.partition(": ")[2] for note in self.notes[self.status == FLAWED])
        return list(said)


@dataclass(frozen=True)
class Cell:
    """One data set, group and model of a study in the store at the address `store`."""

    store: str
    data: str
    group: str
    model: str

    def __str__(self) -> str:
        return f"{self.data} · {self.group} · {self.model}"

    @property
    def path(self) -> str:
        """Of the cell's Zarr group."""
        return "/".join(slug(name) for name in (self.data, self.group, self.model))

    def begin(self, settings: Mapping, bounds: Sequence[tuple[int, int]], ledger: Ledger | None = None) -> Ledger:
        """The ledger, read before or now, or made; StoreError where the store has the same name under other settings."""
        ledger = ledger or self.ledger()
        if ledger is None:
            start, stop = np.array(bounds).T
            blank = {"start": start, "stop": stop, "status": np.full(len(start), MISSING, dtype=object)}
            about = {"data": self.data, "group": self.group, "model": self.model, "settings": schema.as_json(settings)}
            chunks = {"start": len(start), "stop": len(start), "status": 1}
            variables = {name: xr.Variable("block", values) for name, values in blank.items()}
            self._place("ledger", about, variables, {name: (size,) for name, size in chunks.items()})
            ledger = self.ledger()
        there = Cell(self.store, *ledger.names)
        if there != self:
            raise StoreError(
                f"{self.store} has {there} where {self} would be; name one otherwise, or choose another store"
            )
        known = ledger.settings
        for key, wanted in settings.items():
            if known.get(key) != wanted:
                raise StoreError(
                    f"{self.store} has {self} already, with another {key}: {known.get(key)!r} there, {wanted!r} here. Name it "
                    "otherwise, choose another store, or remove this one"
                )
        return ledger

    def ledger(self) -> Ledger | None:
        """The ledger as it is now; None before `begin`."""
        group = open_group(self.store, f"{self.path}/ledger", whole=True)
        if group is None:
            return None
        try:
            arrays = dict(group.arrays())
            start, stop, texts = disk.read((arrays[name], ...) for name in ("start", "stop", "status"))
            if isinstance(start, ValueError) or isinstance(stop, ValueError):
                raise start if isinstance(start, ValueError) else stop
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StoreError(
                f"the ledger of {self} in {self.store} is damaged; remove the folder {self.path} there and run again"
            ) from error
        if isinstance(texts, ValueError):
            texts = disk.read((arrays["status"], block) for block in range(len(start)))
        said = [_said(MISSING if isinstance(text, ValueError) else str(text)) for text in texts]
        status, notes = np.array(said, dtype=object).reshape(-1, 2).T
        names = tuple(group.attrs[key] for key in ("data", "group", "model"))
        return Ledger(start, stop, status, notes, schema.from_json(group.attrs["settings"]), names)

    def status(self, block: int) -> tuple[str, str]:
        """Status and note of one block; a block that a dead process of this machine left running is missing."""
        (text,) = disk.read([(self._begun()["status"], block)])
        return _said(MISSING if isinstance(text, ValueError) else str(text))

    def mark(self, block: int, status: str, note: str = "") -> None:
        """Write status and note, as one file."""
        with writing(self.store):
            # a lone surrogate, from the name of a file that is not UTF-8, could not be written
            text = f"{status} {note}".encode(errors="backslashreplace").decode()
            self._begun("r+")["status"][block] = text

    def _begun(self, mode: str = "r") -> Any:
        group = open_group(self.store, f"{self.path}/ledger", mode=mode)
        if group is None:
            raise StoreError(f"{self.store} has no {self} here: every worker must see that folder, under that path")
        return group

    def write(self, block: int, values: xr.Dataset, states: xr.Dataset, samples: xr.Dataset) -> None:
        """Write the values and states of a block, then mark it done; the first block makes room for all `samples`."""
        self._begun()
        ledger = self.ledger()
        start, stop = int(ledger.start[block]), int(ledger.stop[block])
        with writing(self.store):
            group = open_group(self.store, f"{self.path}/values", mode="r+")
            if group is None:
                self._make_room(ledger, values, states, samples)
                group = open_group(self.store, f"{self.path}/values", mode="r+")
            arrays = dict(group.arrays())
            self._refuse_others(group, arrays, values)
            parts = [(arrays[name], slice(block, block + 1), states[name].values[None]) for name in STATES]
            for name in values.data_vars:
                if name in FROM_STATES or name.endswith("_pair_cosine"):
                    continue
                chunk, n = arrays[name].chunks[-1], arrays[name].shape[-1]
                if start % chunk or (stop % chunk and stop != n):
                    raise StoreError(
                        f"block {block} of {self} is not whole chunks, and writing it could lose its neighbours"
                    )
                parts.append((arrays[name], (..., slice(start, stop)), values[name].values))
            disk.write(parts)
        flaws, device = states.attrs["flaws"], values.attrs["device"]
        more = f" (and {len(flaws) - 3} more samples)" if len(flaws) > 3 else ""
        self.mark(block, FLAWED if flaws else DONE, f"{device}: {'; '.join(flaws[:3])}{more}" if flaws else device)

    def _refuse_others(self, group: Any, arrays: Mapping, values: xr.Dataset) -> None:
        """StoreError for other weights than the first block's; ValueError for other layers or variables, the model's own doing."""
        before, now = arrays["weights"][:].tolist(), values.weights.values.tolist()
        if before != now:
            raise StoreError(
                f"{self.store} has {self} already, with other weights: {before} there, {now} here. Name it otherwise, choose "
                "another store, or remove this one"
            )
        for what, there, here in (
            ("layers", arrays["layer"][:].tolist(), values.layer.values.tolist()),
            ("variables", set(schema.from_json(group.attrs["variables"])), set(values.data_vars)),
        ):
            if there != here:
                raise ValueError(f"this block has other {what} than the first: {there} there, {here} here")

    def forget(self) -> None:
        """Let go of all values, where what they share is damaged."""
        with writing(self.store):
            for block in range(len(self.ledger().start)):
                self.mark(block, MISSING)
            values = Path(self.store) / self.path / "values"
            if values.exists():
                # at once: a half removed one could neither be written nor made again
                aside = values.with_name(f".partial-{uuid.uuid4().hex}")
                values.rename(aside)
                shutil.rmtree(aside, ignore_errors=True)

    def _make_room(self, ledger: Ledger, values: xr.Dataset, states: xr.Dataset, samples: xr.Dataset) -> None:
        n, blocks = samples.sizes["sample"], len(ledger.start)
        chunk = n if blocks == 1 else int(ledger.start[1])
        variables = {}
        for name, variable in values.data_vars.items():
            array = variable.values
            if "sample" in variable.dims:  # takes no memory, and is never written: blocks write it
                array = np.broadcast_to(np.zeros((), array.dtype), (*array.shape[:-1], n))
            variables[name] = xr.Variable(variable.dims, array, variable.attrs)
        later = [name for name, variable in variables.items() if "sample" in variable.dims]
        for name in STATES:
            blank = np.zeros((blocks, *states[name].shape), states[name].dtype)
            variables[name] = xr.Variable(
                ("block", *states[name].dims), np.full_like(blank, "") if name == "reason" else blank
            )
        kept = {name: c for name, c in values.coords.items() if "sample" not in c.dims}
        coords = kept | dict(samples.coords) | dict(states.coords)
        variables |= {name: c.variable for name, c in coords.items()}
        attrs = values.attrs | {
            "variables": schema.as_json(list(values.data_vars)),
            "arrays": schema.as_json(list(variables)),
            "coordinates": " ".join(sorted(set(coords) - {dim for c in coords.values() for dim in c.dims})),
        }
        chunks = {}
        for name, variable in variables.items():
            sizes = {**variable.sizes, "block": 1, "sample": chunk if name in values.data_vars else n}
            chunks[name] = tuple(sizes[dim] for dim in variable.dims)
        self._place("values", attrs, variables, chunks, later)

    def _place(self, name: str, *what: Any) -> None:
        """Make a group beside the store's, then move it: whoever comes second finds the first one's, whole."""
        import zarr

        with writing(self.store):
            with suppress(zarr.errors.ContainsGroupError):  # another process was quicker
                zarr.open_group(self.store, mode="r+", use_consolidated=False).require_group(self.path)
            beside = Path(self.store) / self.path / f".partial-{uuid.uuid4().hex}"
            try:
                disk.make_group(beside, *what)
                beside.rename(Path(self.store) / self.path / name)
            except OSError:
                if not (Path(self.store) / self.path / name / "zarr.json").exists():
                    raise
            finally:
                shutil.rmtree(beside, ignore_errors=True)


def create(store: str) -> None:
    """Make an empty store for studies, or check that what is there is one that this version can write."""
    import zarr

    path = Path(store)
    # what another process has begun this moment ends in .partial
    if path.exists() and any(one.suffix != ".partial" for one in (path.iterdir() if path.is_dir() else [path])):
        check(store)
        return
    with writing(store), suppress(zarr.errors.ContainsGroupError):  # another process was quicker
        path.mkdir(parents=True, exist_ok=True)
        zarr.open_group(
            store, mode="a", attributes={"eedkit": "study", "schema": schema.SCHEMA}, use_consolidated=False
        )
    check(store)


def check(store: str) -> None:
    """StoreError unless there is a study's store, of this schema or an older one."""
    group = open_group(store)
    if group is None or group.attrs.get("eedkit") != "study":
        raise StoreError(f"{store} is no store of a study; choose another place")
    schema.refuse_other(group.attrs.get("schema", 0), store)


def find(store: str) -> list[Cell]:
    """Every cell in a store."""
    found, root = [], open_group(store)
    for _, data in sorted(open_group(store).groups()):
        for _, group in sorted(data.groups()):
            for _, model in sorted(group.groups()):
                ledger = open_group(store, f"{model.path.removeprefix(root.path).strip('/')}/ledger")
                if ledger is not None:
                    found.append(Cell(store, *(ledger.attrs[key] for key in ("data", "group", "model"))))
    return found


def _said(text: str) -> tuple[str, str]:
    status, _, note = (text or MISSING).partition(" ")
    return (MISSING, "") if status == RUNNING and not alive(note) else (status, note)
