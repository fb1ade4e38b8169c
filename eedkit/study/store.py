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
    two processes were at it at once, or somebody copied one here; `notes` are files of one that failed or is running; `leftovers`
    have no meaning any more.
    """

    cell: Cell
    settings: dict[str, Any] = field(default_factory=dict)
    bounds: list[tuple[int, int]] = field(default_factory=list)
    done: dict[int, list[str]] = field(default_factory=dict)
    flawed: set[int] = field(default_factory=set)
    notes: dict[int, list[str]] = field(default_factory=dict)
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
    def places_done(self) -> list[int]:
        """Places in the reading order of the blocks that are done."""
        places: list[int] = []
        for block in sorted(self.done):
            places += range(*self.bounds[block])
        return places

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


@dataclass(frozen=True)
class Store:
    """A study's folder at a local path or at any address that fsspec knows."""

    address: str

    @property
    def folder(self) -> Folder:
        """Its files."""
        return Folder(self.address)

    def studies(self) -> list[dict[str, Any]]:
        """What the studies in it promise, the first one first; StoreError or SchemaError where it is no store of this eedkit."""
        names = [name for name in self.folder.names() if not name.startswith(".")]
        studies = []
        for name in names:
            parts = NAME.fullmatch(name)
            if parts is None or parts["kind"] != "study":
                continue
            study = self.folder.read_json(name)
            schema.refuse_other(study.get("schema", 0), self.address)
            if study.get("format") != FORMAT:
                raise StoreError(
                    f"{self.address} was begun by another eedkit, whose blocks do not say what they are of; measure again"
                )
            studies.append(study)
        # a study's own file may lie there before it is begun
        others = [name for name in names if not name.endswith((".yaml", ".yml"))]
        if others and not studies:
            raise StoreError(
                f"{self.address} is no store of a study of this eedkit (it has no study.….json, but {others[0]}); choose "
                "another place, or run(repair=True) where that file was lost"
            )
        return sorted(studies, key=lambda study: study["number"])

    def cells(self) -> list[Cell]:
        """All cells that its studies promise, each once."""
        cells: dict[Cell, None] = {}
        for study in self.studies():
            cells |= dict.fromkeys(Cell(*names) for names in study["cells"])
        return list(cells)

    def promise(self, cells: Sequence[Cell], groups: Mapping[str, str]) -> None:
        """Say which cells there are to be, in order, and the names of the groups that "module:name" stands for.

        StoreError where a name differs from another one's in case alone, or in what no folder's name can hold.
        """
        studies = self.studies()
        names = [cell.names for cell in cells]
        if any(study["cells"] == names and study["groups"] == groups for study in studies):
            return
        cell_of_path = {cell.path.casefold(): cell for cell in self.cells()}
        for cell in cells:
            other = cell_of_path.setdefault(cell.path.casefold(), cell)
            if other != cell:
                raise self._in_place_of(other, cell)
        self._write_study(cells, groups, number=len(studies))

    def _write_study(self, cells: Sequence[Cell], groups: Mapping[str, str], *, number: int) -> None:
        about = {"eedkit": "study", "schema": schema.SCHEMA, "format": FORMAT, "number": number}
        names = [cell.names for cell in cells]
        self.folder.write_json("study", {**about, "cells": names, "groups": dict(groups)})

    def _in_place_of(self, other: Cell, cell: Cell) -> StoreError:
        return StoreError(
            f"{self.address} has {other} where {cell} would be; name one otherwise, or choose another store"
        )

    def state(self, cell: Cell) -> State:
        """What is there of a cell."""
        state = State(cell)
        for name in self.folder.names(cell.path):
            parts = NAME.fullmatch(name)
            file = f"{cell.path}/{name}"
            if parts and parts["kind"] == "cell":
                self._read_settings(state, file)
            elif parts and parts["block"]:
                block = int(parts["block"])
                files_by_block = state.done if parts["kind"] == "block" else state.notes
                files_by_block.setdefault(block, []).append(file)
                if parts["flawed"]:
                    state.flawed.add(block)
        # renamed past the last block, or nobody knows any more what they are blocks of
        for block in [block for block in state.done if block >= len(state.bounds)]:
            state.leftovers += state.done.pop(block)
            state.flawed.discard(block)
        for block, files in state.notes.items():
            if block in state.done:
                state.leftovers += files
            else:
                self._read_notes(state, block)
        return state

    def _read_notes(self, state: State, block: int) -> None:
        for content in self._read_all(state.notes[block]):
            if "reason" in content:
                state.reasons[block] = content["reason"]
            elif is_alive(content["process"], content["since"]):
                state.running.add(block)
            else:
                state.deaths[block] = state.deaths.get(block, 0) + 1

    def _read_all(self, files: Iterable[str]) -> list[dict[str, Any]]:
        """What small files hold; one that is gone or damaged by now counts for nothing."""
        contents = []
        for file in files:
            with suppress(DamageError):
                contents.append(self.folder.read_json(file))
        return contents

    def _read_settings(self, state: State, file: str) -> None:
        content = self.folder.read_json(file)
        owner = Cell(*content["names"])
        if owner != state.cell:
            raise self._in_place_of(owner, state.cell)
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

    def begin(self, state: State, settings: Mapping[str, Any], bounds: Sequence[tuple[int, int]]) -> None:
        """Begin a cell; one that is begun already keeps its blocks."""
        self.refuse_others(state, settings)
        if not state.settings:
            content = {"names": state.cell.names, "settings": settings, "bounds": bounds}
            self._read_settings(state, self.folder.write_json(f"{state.cell.path}/cell", content))

    def claim(self, cell: Cell, block: int) -> str | None:
        """Say that this process is at a block; None where a living one was there before. Gives the file that says so."""
        name = f"running-{block:04}"
        since = time.time()
        own_file = self.folder.write_json(f"{cell.path}/{name}", {"process": this_process(), "since": since})
        files = [f"{cell.path}/{other}" for other in self.folder.names(cell.path) if other.startswith(f"{name}.")]
        for file in files:
            for content in self._read_all([file] if file != own_file else []):
                is_first = (content["since"], file) < (since, own_file)
                if is_first and is_alive(content["process"], content["since"]):
                    self.folder.remove(own_file)
                    return None
        return own_file

    def write(self, state: State, block: int, content: Block) -> None:
        """Write a block; ValueError for other weights, layers or variables than another block's."""
        if state.done:
            difference = content.difference_to(self.block(state, min(state.done)))
            if difference:
                raise ValueError(f"this block has {difference}")
        content.about["of"] = state.owner_of(block)
        flawed = ".flawed" if content.about["flaws"] else ""
        self.folder.write(f"{state.cell.path}/block-{block:04}{flawed}", content.to_bytes(), "npz")
        self._remove(state.notes.get(block, []))

    def fail(self, state: State, block: int, reason: str) -> None:
        """Write why a block failed, in place of earlier reasons; this clears the claims."""
        content = {"reason": reason, "process": this_process()}
        written = self.folder.write_json(f"{state.cell.path}/failed-{block:04}", content)
        self._remove(file for file in state.notes.get(block, []) if file != written)

    def _remove(self, files: Iterable[str]) -> None:
        for file in files:
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
        owner = block.about.get("of", {})
        for what, expected in state.owner_of(number).items():
            if owner.get(what) != expected:
                raise DamageError(
                    f"{file} is damaged: it is the block of another {what}, {owner.get(what)} and not {expected}. It was copied "
                    "or renamed; run(repair=True) removes it and computes what belongs there"
                )
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
            self._remove(state.leftovers)
            for number, files in state.done.items():
                if len(files) > 1:
                    with suppress(DamageError):  # none of them is its own, which is said when it is read
                        own_file, _ = self._first_own(state, number)
                        self._remove(file for file in files if file != own_file)
                        state.done[number] = [own_file]

    def repair(self, cells: Sequence[Cell], groups: Mapping[str, str]) -> list[str]:
        """Remove damaged files, and blocks of something else than their place says; promise these cells. Gives what went."""
        removed = self._remove_damaged("")
        has_study = any(name.startswith("study.") and NAME.fullmatch(name) for name in self.folder.names())
        if not has_study and any(self.folder.names(cell.path) for cell in cells):
            self._write_study(cells, groups, number=0)
        self.promise(cells, groups)
        for cell in self.cells():
            removed += self._remove_damaged(cell.path)
            state = self.state(cell)
            for number, files in state.done.items():
                for file in files:
                    try:
                        self._own_block(state, number, file)
                    except DamageError:
                        self.folder.remove(file)
                        removed.append(file)
        return removed

    def _remove_damaged(self, path: str) -> list[str]:
        """Remove the files in a folder that do not hold what their names promise; gives them."""
        removed = []
        for name in self.folder.names(path):
            file = f"{path}/{name}".lstrip("/")
            try:
                if NAME.fullmatch(name):
                    self.folder.read(file)
            except DamageError:
                self.folder.remove(file)
                removed.append(file)
        return removed
