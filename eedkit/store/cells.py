"""What a study's folder holds: for every data set, group and model a cell, and in it one file for each block that is done.

    runs/a/study.….json                             which cells there are to be
    runs/a/digits-test/C4/plain/cell.….json         its names, settings, and where its blocks begin and end
    runs/a/digits-test/C4/plain/block-0000.….npz    a block that is done; block-0000.flawed.….npz if samples have no value
    runs/a/digits-test/C4/plain/failed-0001.….json  why a block failed
    runs/a/digits-test/C4/plain/running-0002.….json which process is at a block; one that is gone died of it

What is there is done, so that a process may be killed at any moment. Knows files and settings, never torch.
"""

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eedkit.results import schema
from eedkit.store import process
from eedkit.store.blocks import Block
from eedkit.store.files import NAME, DamageError, Folder, StoreError, checksum

DONE = "done"
FLAWED = "flawed"
FAILED = "failed"
RUNNING = "running"
MISSING = "missing"
"""What a block can be, these five. Flawed: done, but some samples have no value."""
DEATHS = 3
"""Of so many processes a block is taken to be the cause."""
LONGEST_SLUG = 80
STEM = re.compile(r"(?P<kind>study|cell|block|failed|running)(-(?P<block>\d+))?(?P<flawed>\.flawed)?")


def slug(name: str) -> str:
    """A name as a folder's.

    >>> slug("digits/test?n=100")
    'digits-test-n-100'
    """
    short = re.sub(r"[^\w.]+", "-", name).strip("-.") or "-"
    if len(short.encode()) <= LONGEST_SLUG:
        return short
    # no file system takes names of any length
    return f"{short.encode()[: LONGEST_SLUG - 20].decode(errors='ignore')}-{checksum(name.encode(errors='backslashreplace'))}"


@dataclass(frozen=True)
class Cell:
    """One data set, group and model of a study."""

    data: str
    group: str
    model: str

    def __str__(self) -> str:
        return f"{self.data} · {self.group} · {self.model}"

    @property
    def path(self) -> str:
        """Its folder in the store."""
        return "/".join(slug(name) for name in (self.data, self.group, self.model))


@dataclass
class State:
    """What was there of a cell when the store was read.

    Parameters
    ----------
    settings : dict
        By which it is measured; empty before it is begun.
    bounds : list of (start, stop)
        Of its blocks, as places in the reading order of its images.
    done : dict
        The file of every block that is done.
    flawed : set of int
        Blocks of which some samples have no value.
    reasons : dict
        Why blocks failed.
    failures : dict
        The files that say so.
    running : set of int
        Blocks that a living process is at.
    deaths : dict
        How many processes died at a block.
    leftovers : list of str
        Files that have no meaning any more.
    """

    cell: Cell
    settings: dict[str, Any] = field(default_factory=dict)
    bounds: list[tuple[int, int]] = field(default_factory=list)
    done: dict[int, str] = field(default_factory=dict)
    flawed: set[int] = field(default_factory=set)
    reasons: dict[int, str] = field(default_factory=dict)
    failures: dict[int, list[str]] = field(default_factory=dict)
    running: set[int] = field(default_factory=set)
    deaths: dict[int, int] = field(default_factory=dict)
    leftovers: list[str] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        """Whether all blocks are."""
        return bool(self.bounds) and len(self.done) == len(self.bounds)

    @property
    def samples(self) -> int:
        """Images of the whole cell."""
        return self.bounds[-1][1] if self.bounds else 0

    @property
    def samples_done(self) -> int:
        """Images of the blocks that are done."""
        return sum(self.bounds[block][1] - self.bounds[block][0] for block in self.done)

    def status(self, block: int) -> str:
        """What a block is."""
        if block in self.done:
            return FLAWED if block in self.flawed else DONE
        if block in self.running:
            return RUNNING
        return FAILED if block in self.reasons else MISSING


@dataclass(frozen=True)
class Store:
    """A study's folder at a local path or at any address that fsspec knows."""

    address: str

    @property
    def folder(self) -> Folder:
        """Its files."""
        return Folder(self.address)

    def promise(self, cells: Sequence[Cell]) -> None:
        """Say which cells there are to be, so that one that is lost is missed; and in the order of the studies."""
        names_of_cells = [[cell.data, cell.group, cell.model] for cell in cells]
        studies = self._studies(self.folder.names())
        if all(study["cells"] != names_of_cells for study in studies):
            content = {"eedkit": "study", "schema": schema.SCHEMA, "number": len(studies), "cells": names_of_cells}
            self.folder.write_json("study", content)

    def _studies(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """What the studies in the store promise, the first one first."""
        studies = []
        for name in names:
            if name.startswith("study."):
                study = self.folder.read_json(name)
                schema.refuse_other(study.get("schema", 0), self.address)
                if "number" not in study:
                    raise StoreError(
                        f"{self.address} was begun by an earlier eedkit, which kept no order of studies; measure again"
                    )
                studies.append(study)
        return sorted(studies, key=lambda study: study["number"])

    def read(self) -> dict[Cell, State]:
        """Everything that is there, from one listing.

        Raises
        ------
        StoreError
            The folder is no study's, or a file that says what there should be is damaged.
        SchemaError
            It was written with another schema.
        """
        names = self.folder.names()
        if not names:
            return {}
        studies = self._studies(names)
        if not studies:
            raise StoreError(
                f"{self.address} is no store of a study of this eedkit (it has no study.….json); choose another place, "
                "or run(repair=True) where that file was lost"
            )
        states: dict[Cell, State] = {}
        for study in studies:
            for names_of_cell in study["cells"]:
                states.setdefault(Cell(*names_of_cell), State(Cell(*names_of_cell)))
        by_path: dict[str, list[str]] = {}
        for name in names:
            path, _, file = name.rpartition("/")
            if path:
                by_path.setdefault(path, []).append(file)
        for state in states.values():
            self._read_cell(state, by_path.get(state.cell.path, []))
        return states

    def state(self, cell: Cell) -> State:
        """What is there of one cell."""
        state = State(cell)
        names = self.folder.names(cell.path)
        self._read_cell(state, [name.rpartition("/")[2] for name in names])
        return state

    def _read_cell(self, state: State, files: Sequence[str]) -> None:
        path = state.cell.path
        failed: dict[int, list[str]] = {}
        running: dict[int, list[str]] = {}
        for file in files:
            stem = STEM.fullmatch(file.rsplit(".", 2)[0])
            if stem is None:
                continue
            name = f"{path}/{file}"
            if stem["kind"] == "cell":
                self._read_settings(state, name)
                continue
            block = int(stem["block"])
            if stem["kind"] == "failed":
                failed.setdefault(block, []).append(name)
            elif stem["kind"] == "running":
                running.setdefault(block, []).append(name)
            elif block in state.done:
                state.leftovers.append(name)  # two processes were at it at once
            else:
                state.done[block] = name
                if stem["flawed"]:
                    state.flawed.add(block)
        if not state.settings:  # lost: nobody can say of which images the blocks are, nor how they were measured
            state.leftovers += state.done.values()
            state.done, state.flawed = {}, set()
        for block, names in failed.items():
            if block in state.done:
                state.leftovers += names
            else:
                state.failures[block] = names
                state.reasons[block] = "; ".join(dict.fromkeys(self._told(names, "reason")))
        for block, names in running.items():
            if block in state.done:
                state.leftovers += names
                continue
            alive = [process.alive(told) for told in self._told(names, "process")]
            if any(alive):
                state.running.add(block)
            state.deaths[block] = alive.count(False)

    def _told(self, names: Sequence[str], key: str) -> list[str]:
        """What small files say; one that is gone or damaged by now says nothing."""
        told = []
        for name in names:
            try:
                told.append(self.folder.read_json(name)[key])
            except DamageError:
                continue
        return told

    def _read_settings(self, state: State, name: str) -> None:
        content = self.folder.read_json(name)
        there = Cell(*content["names"])
        if there != state.cell:
            raise StoreError(
                f"{self.address} has {there} where {state.cell} would be; name one otherwise, or choose another store"
            )
        if state.settings:
            raise StoreError(
                f"{self.address} has {state.cell} twice, with other settings; remove one of its cell.….json"
            )
        state.settings = content["settings"]
        state.bounds = [tuple(bound) for bound in content["bounds"]]

    def begin(self, state: State, settings: Mapping[str, Any], bounds: Sequence[tuple[int, int]]) -> State:
        """The cell's state once it is begun; StoreError where it has been begun with other settings."""
        cell = state.cell
        if not state.settings:
            content = {"names": [cell.data, cell.group, cell.model], "settings": settings, "bounds": bounds}
            self.folder.write_json(f"{cell.path}/cell", content)
            state = self.state(cell)
        for key, wanted in settings.items():
            known = state.settings.get(key)
            if known != wanted:
                raise StoreError(
                    f"{self.address} has {cell} already, with another {key}: {known!r} there, {wanted!r} here. Name it "
                    "otherwise, choose another store, or remove this one"
                )
        return state

    def begun(self, cell: Cell) -> State:
        """What is there of a cell that must have been begun; StoreError where it was not."""
        state = self.state(cell)
        if not state.settings:
            raise StoreError(f"{self.address} has no {cell} here: every worker must see that folder, under that path")
        return state

    def has(self, cell: Cell, block: int) -> bool:
        """Whether a block is done."""
        return block in self.begun(cell).done

    def claim(self, cell: Cell, block: int) -> str | None:
        """Say that this process is at a block; None where a living one was there before. Gives the file that says so."""
        stem = f"{cell.path}/running-{block:04}"
        since = time.time()
        mine = self.folder.write_json(stem, {"process": process.here(), "since": since})
        for other in self.folder.names(cell.path):
            if other == mine or not other.startswith(f"{stem}."):
                continue
            try:
                told = self.folder.read_json(other)
            except DamageError:
                continue
            if (told["since"], other) < (since, mine) and process.alive(told["process"]):
                self.folder.remove(mine)
                return None
        return mine

    def write(self, cell: Cell, block: int, content: Block) -> None:
        """Write a block; ValueError for other weights, layers or variables than another block's."""
        state = self.state(cell)
        for name in list(state.done.values())[:1]:
            _refuse_others(Block.from_bytes(self.folder.read(name), name), content)
        flawed = ".flawed" if content.about["flaws"] else ""
        self.folder.write(f"{cell.path}/block-{block:04}{flawed}", content.to_bytes(), "npz")
        self._remove(cell, block, "failed", "running")

    def fail(self, cell: Cell, block: int, reason: str) -> None:
        """Write why a block failed, in place of earlier reasons; whoever was at it counts no more, so that it can be tried again."""
        before = [name for name in self.folder.names(cell.path) if name.startswith(f"{cell.path}/failed-{block:04}.")]
        now = self.folder.write_json(f"{cell.path}/failed-{block:04}", {"reason": reason, "process": process.here()})
        for name in before:
            if name != now:
                self.folder.remove(name)
        self._remove(cell, block, "running")

    def _remove(self, cell: Cell, block: int, *kinds: str) -> None:
        stems = tuple(f"{cell.path}/{kind}-{block:04}." for kind in kinds)
        for name in self.folder.names(cell.path):
            if name.startswith(stems):
                self.folder.remove(name)

    def flaws(self, state: State) -> list[str]:
        """Why samples of a cell have no value, each reason once."""
        found: dict[str, None] = {}
        for block in sorted(state.flawed):
            name = state.done[block]
            flaws = Block.from_bytes(self.folder.read(name), name).about["flaws"]
            more = f" (and {len(flaws) - 3} more samples)" if len(flaws) > 3 else ""
            found["; ".join(flaws[:3]) + more] = None
        return list(found)

    def clean(self, states: Iterable[State]) -> None:
        """Remove what has no meaning any more."""
        self.folder.clean()
        for state in states:
            for name in state.leftovers:
                self.folder.remove(name)

    def repair(self, cells: Sequence[Cell]) -> list[str]:
        """Remove files whose bytes are not what their names promise, and promise these cells again; gives the files' names."""
        ours = [name for name in self.folder.names() if NAME.fullmatch(name.rpartition("/")[2])]
        removed = []
        for name in ours:
            try:
                content = self.folder.read(name)
                if name.endswith(".npz"):
                    Block.from_bytes(content, name)
            except DamageError:
                self.folder.remove(name)
                removed.append(name)
        if ours:
            self.promise(cells)
        return removed


def _refuse_others(first: Block, now: Block) -> None:
    for what, there, here in (
        ("weights", first.about["coords"]["weights"]["values"], now.about["coords"]["weights"]["values"]),
        ("layers", first.about["coords"]["layer"]["values"], now.about["coords"]["layer"]["values"]),
        ("variables", set(first.about["variables"]), set(now.about["variables"])),
    ):
        if there != here:
            raise ValueError(f"this block has other {what} than the first: {there} there, {here} here")
