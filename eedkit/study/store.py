"""What a study's folder holds: for every data set, group and model a cell, and in it one file for each block that is done.

    runs/a/study.….json                             which cells there are to be
    runs/a/digits-test/C4/plain/cell.….json         its names, settings, and where its blocks begin and end
    runs/a/digits-test/C4/plain/block-0000.….npz    a block that is done; block-0000.flawed.….npz if samples have no value
    runs/a/digits-test/C4/plain/failed-0001.….json  why a block failed
    runs/a/digits-test/C4/plain/running-0002.….json which process is at a block; one that is gone was killed at it

What is there is done, so that a process may be killed at any moment. Knows files and settings, never torch.
"""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from eedkit.results import schema
from eedkit.results.io import slug
from eedkit.study.blocks import Block
from eedkit.study.files import NAME, DamageError, Folder, StoreError, checksum, is_alive, this_process

DONE = "done"
FLAWED = "flawed"
FAILED = "failed"
RUNNING = "running"
MISSING = "missing"
"""What a block can be, these five. Flawed: done, but some samples have no value."""
FORMAT = 2
"""Grows when a store written by this version cannot be read by an earlier one."""


@dataclass(frozen=True)
class Cell:
    """One data set, group and model of a study."""

    data: str
    group: str
    model: str

    def __str__(self) -> str:
        return f"{self.data} · {self.group} · {self.model}"

    @property
    def names(self) -> list[str]:
        """Its three names, as files hold them."""
        return [self.data, self.group, self.model]

    @property
    def path(self) -> str:
        """Its folder in the store."""
        return "/".join(map(slug, self.names))


@dataclass
class State:
    """What was there of a cell when its folder was listed, by block: the files, reasons, and how many processes `deaths` ended.

    `settings` are empty before it is begun; `bounds` are places in the reading order; a block that is `done` has two files where
    two processes were at it at once, or somebody copied one here; `leftovers` have no meaning any more.
    """

    cell: Cell
    settings: dict[str, Any] = field(default_factory=dict)
    bounds: list[tuple[int, int]] = field(default_factory=list)
    done: dict[int, list[str]] = field(default_factory=dict)
    flawed: set[int] = field(default_factory=set)
    failures: dict[int, list[str]] = field(default_factory=dict)
    claims: dict[int, list[str]] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
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

    def owner_of(self, block: int) -> dict[str, Any]:
        """What a block's file says of what it is a part."""
        settings = json.dumps(self.settings, sort_keys=True, default=str)
        return {
            "cell": self.cell.names,
            "block": block,
            "places": list(self.bounds[block]),
            "model": self.settings.get("model"),
            "data": self.settings.get("data"),
            "settings": checksum(settings.encode()),
        }


@dataclass
class Contents:
    """Everything in a store: the cells in the order of their studies, and the groups that "module:name" stood for."""

    states: dict[Cell, State] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    studies: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Store:
    """A study's folder at a local path or at any address that fsspec knows."""

    address: str

    @property
    def folder(self) -> Folder:
        """Its files."""
        return Folder(self.address)

    def read(self) -> Contents:
        """Everything that is there, from one listing; StoreError or SchemaError where it is no store or cannot be read."""
        files = self.folder.files()
        names_by_path: dict[str, list[str]] = {}
        for file in files:
            path, _, name = file.rpartition("/")
            if NAME.fullmatch(name):
                names_by_path.setdefault(path, []).append(name)
        studies = self._studies(names_by_path.get("", []))
        if files and not studies:
            raise StoreError(
                f"{self.address} is no store of a study of this eedkit (it has no study.….json); choose another place, "
                "or run(repair=True) where that file was lost"
            )
        contents = Contents(studies=studies)
        for study in studies:
            contents.groups |= study["groups"]
            for names in study["cells"]:
                cell = Cell(*names)
                contents.states.setdefault(cell, State(cell))
        for cell, state in contents.states.items():
            names = names_by_path.get(cell.path, [])
            link = None if names else self.folder.dangling_link(cell.path)
            if link is not None:
                raise StoreError(f"{link} is a link to something that is not there; bring it back or remove the link")
            if not names:
                self.folder.refuse_unreadable(cell.path)
            self._read_cell(state, names)
        return contents

    def _studies(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """What the studies in the store promise, the first one first."""
        studies = []
        for name in names:
            if not name.startswith("study."):
                continue
            study = self.folder.read_json(name)
            schema.refuse_other(study.get("schema", 0), self.address)
            if study.get("format") != FORMAT:
                raise StoreError(
                    f"{self.address} was begun by another eedkit, whose blocks do not say what they are of; measure again"
                )
            studies.append(study)
        return sorted(studies, key=lambda study: study["number"])

    def promise(self, cells: Sequence[Cell], contents: Contents, groups: Mapping[str, str]) -> None:
        """Say which cells there are to be, so that one that is lost is missed, and in the order of the studies.

        StoreError where a name differs from another one's in case alone, or in what no folder's name can hold.
        """
        cell_of_path = {cell.path.casefold(): cell for cell in contents.states}
        for cell in cells:
            other = cell_of_path.setdefault(cell.path.casefold(), cell)
            if other != cell:
                raise StoreError(
                    f"{self.address} has {other} where {cell} would be; name one otherwise, or choose another store"
                )
        names = [cell.names for cell in cells]
        if all(study["cells"] != names or study["groups"] != groups for study in contents.studies):
            content = {
                "eedkit": "study",
                "schema": schema.SCHEMA,
                "format": FORMAT,
                "number": len(contents.studies),
                "cells": names,
                "groups": dict(groups),
            }
            self.folder.write_json("study", content)

    def state(self, cell: Cell) -> State:
        """What is there of one cell, which must have been begun; StoreError where it was not."""
        state = State(cell)
        names = [file.rpartition("/")[2] for file in self.folder.files(cell.path)]
        self._read_cell(state, [name for name in names if NAME.fullmatch(name)])
        if not state.settings:
            raise StoreError(f"{self.address} has no {cell} here: every worker must see that folder, under that path")
        return state

    def _read_cell(self, state: State, names: Iterable[str]) -> None:
        files_of = {"block": state.done, "failed": state.failures, "running": state.claims}
        for name in names:
            parts = NAME.fullmatch(name)
            file = f"{state.cell.path}/{name}"
            if parts is None or parts["kind"] == "study":
                continue
            if parts["kind"] == "cell":
                self._read_settings(state, file)
                continue
            if parts["block"] is None:
                continue
            block = int(parts["block"])
            files_of[parts["kind"]].setdefault(block, []).append(file)
            if parts["flawed"]:
                state.flawed.add(block)
        if not state.settings:  # lost: nobody can say of which images the blocks are, nor how they were measured
            for files in state.done.values():
                state.leftovers += files
            state.done, state.flawed = {}, set()
        for block in [block for block in state.done if block >= len(state.bounds)]:  # renamed: no place has its number
            state.leftovers += state.done.pop(block)
            state.flawed.discard(block)
        for files_by_block in (state.failures, state.claims):
            for block in [block for block in files_by_block if block in state.done]:
                state.leftovers += files_by_block.pop(block)
        for block, files in state.failures.items():
            reasons = [said["reason"] for said in self._said(files)]
            state.reasons[block] = "; ".join(dict.fromkeys(reasons))
        for block, files in state.claims.items():
            alive = [is_alive(said["process"], said["since"]) for said in self._said(files)]
            if any(alive):
                state.running.add(block)
            if not all(alive):
                state.deaths[block] = alive.count(False)

    def _said(self, files: Iterable[str]) -> list[dict[str, Any]]:
        """What small files say; one that is gone or damaged by now says nothing."""
        said = []
        for file in files:
            try:
                said.append(self.folder.read_json(file))
            except DamageError:
                continue
        return said

    def _read_settings(self, state: State, file: str) -> None:
        content = self.folder.read_json(file)
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

    def refuse_others(self, state: State, settings: Mapping[str, Any]) -> None:
        """StoreError where a cell has been begun with other settings."""
        for key, wanted in settings.items() if state.settings else ():
            known = state.settings.get(key)
            if known != wanted:
                raise StoreError(
                    f"{self.address} has {state.cell} already, with another {key}: {known!r} there, {wanted!r} here. Name it "
                    "otherwise, choose another store, or remove this one"
                )

    def begin(self, state: State, settings: Mapping[str, Any], bounds: Sequence[tuple[int, int]]) -> State:
        """The state of a cell once it is begun; one that is begun already keeps its blocks."""
        self.refuse_others(state, settings)
        if state.settings:
            return state
        content = {"names": state.cell.names, "settings": settings, "bounds": bounds}
        file = self.folder.write_json(f"{state.cell.path}/cell", content)
        state = State(state.cell)
        self._read_settings(state, file)
        return state

    def claim(self, cell: Cell, block: int) -> str | None:
        """Say that this process is at a block; None where a living one was there before. Gives the file that says so."""
        stem = f"{cell.path}/running-{block:04}"
        since = time.time()
        mine = self.folder.write_json(stem, {"process": this_process(), "since": since})
        others = [file for file in self.folder.files(cell.path) if file.startswith(f"{stem}.") and file != mine]
        for other in others:
            for said in self._said([other]):
                is_first = (said["since"], other) < (since, mine)
                if is_first and is_alive(said["process"], said["since"]):
                    self.folder.remove(mine)
                    return None
        return mine

    def write(self, state: State, block: int, content: Block) -> None:
        """Write a block; ValueError for other weights, layers or variables than another block's."""
        for number in list(state.done)[:1]:
            difference = unlike(_kept(self, state.done[number][0]), content)
            if difference:
                raise ValueError(f"this block has {difference}")
        content.about["of"] = state.owner_of(block)
        flawed = ".flawed" if content.about["flaws"] else ""
        self.folder.write(f"{state.cell.path}/block-{block:04}{flawed}", content.to_bytes(), "npz")
        for file in (*state.failures.get(block, ()), *state.claims.get(block, ())):
            self.folder.remove(file)

    def fail(self, state: State, block: int, reason: str) -> None:
        """Write why a block failed, in place of earlier reasons; whoever was at it counts no more."""
        content = {"reason": reason, "process": this_process()}
        now = self.folder.write_json(f"{state.cell.path}/failed-{block:04}", content)
        for file in (*state.failures.get(block, ()), *state.claims.get(block, ())):
            if file != now:
                self.folder.remove(file)

    def block(self, state: State, number: int) -> Block:
        """A block that is done; DamageError where no file of it is whole and of this cell, these images and these settings."""
        return self._first_own(state, number)[1]

    def _first_own(self, state: State, number: int) -> tuple[str, Block]:
        """Of a block's files the first that is its own, and what it holds."""
        problems = []
        for file in state.done[number]:
            try:
                return file, self._own_block(state, number, file)
            except DamageError as error:
                problems.append(error)
        raise problems[0]

    def _own_block(self, state: State, number: int, file: str) -> Block:
        """The block in a file; DamageError for one that is not what its place promises."""
        block = Block.from_bytes(self.folder.read(file), file)
        told = block.about.get("of", {})
        for what, expected in state.owner_of(number).items():
            if told.get(what) != expected:
                raise DamageError(
                    f"{file} is damaged: it is the block of another {what}, {told.get(what)} and not {expected}. It was copied "
                    "or renamed; run(repair=True) removes it and computes what belongs there"
                )
        start, stop = state.bounds[number]
        if block.size != stop - start:
            raise DamageError(f"{file} holds {block.size} samples, its place {stop - start}")
        return block

    def flaws(self, state: State) -> list[str]:
        """Why samples of a cell have no value, each reason once."""
        reasons: dict[str, None] = {}
        for number in sorted(state.flawed):
            flaws = self.block(state, number).about["flaws"]
            more = f" (and {len(flaws) - 3} more samples)" if len(flaws) > 3 else ""
            reasons["; ".join(flaws[:3]) + more] = None
        return list(reasons)

    def clean(self, states: Iterable[State]) -> None:
        """Remove what has no meaning any more, and of two files of one block the one that is not its own, or the second."""
        self.folder.clean()
        for state in states:
            for file in state.leftovers:
                self.folder.remove(file)
            for number, files in state.done.items():
                if len(files) == 1:
                    continue
                with suppress(DamageError):  # none of them is its own, which is said when it is read
                    own, _ = self._first_own(state, number)
                    for other in files:
                        if other != own:
                            self.folder.remove(other)
                    state.done[number] = [own]

    def repair(self, cells: Sequence[Cell], groups: Mapping[str, str]) -> list[str]:
        """Remove damaged files, and blocks of something else than their place says; promise these cells. Gives what went."""
        removed = []
        kept = []
        for file in self.folder.files():
            if not NAME.fullmatch(file.rpartition("/")[2]):
                continue
            try:
                self.folder.read(file)
                kept.append(file)
            except DamageError:
                self.folder.remove(file)
                removed.append(file)
        if not kept:
            return removed
        self.promise(cells, Contents(studies=self._studies(kept)), groups)
        for state in self.read().states.values():
            for number, files in state.done.items():
                for file in files:
                    try:
                        self._own_block(state, number, file)
                    except DamageError:
                        self.folder.remove(file)
                        removed.append(file)
        return removed


@lru_cache(maxsize=8)
def _kept(store: Store, file: str) -> Block:
    """A block's file that is looked at again for every block after it."""
    return Block.from_bytes(store.folder.read(file), file)


def unlike(first: Block, now: Block) -> str:
    """In what two blocks differ that cannot be of one cell; empty where they can."""
    compared = {
        "weights": lambda about: about["coords"]["weights"]["values"],
        "layers": lambda about: about["coords"]["layer"]["values"],
        "variables": lambda about: set(about["variables"]),
    }
    for what, of in compared.items():
        there, here = of(first.about), of(now.about)
        if there != here:
            return f"other {what} than the first: {there} there, {here} here"
    return ""
