"""What a study's folder says is done, running, failed or missing; who comes first; whose files are read; what is refused."""

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from made import BOUNDS, SETTINGS, begin, block, whole, write

import eedkit as ek
from eedkit.results import schema
from eedkit.results.io import slug
from eedkit.study import files
from eedkit.study.files import DamageError, Folder, StoreError, checksum, is_alive, this_process
from eedkit.study.store import DONE, FAILED, FLAWED, MISSING, RUNNING, Cell, State, Store

from .conftest import files_in

OTHER = Cell("d", "C2", "m")


@pytest.fixture(scope="module")
def dead():
    """The text of a process that is gone."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host, _, born = this_process().split("~")
    return f"{host}~{ended.pid}~{born}"


def statuses(store, cell):
    state = store.state(cell)
    return [state.status(number) for number in range(len(BOUNDS))]


def kinds(store):
    return [name.rpartition("/")[2].split(".")[0] for name in files_in(store)]


# --- files


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path):
    """A folder on this disk, and one that only fsspec reaches."""
    if request.param == "local":
        yield Folder(str(tmp_path / "a b"))
        return
    import fsspec

    yield Folder("memory://a b/runs")
    fsspec.filesystem("memory").store.clear()


def test_what_is_written_is_read_and_listed_once(folder):
    name = folder.write("x/y/block-0001", b"12", "npz")
    assert folder.write("x/y/block-0001", b"12", "npz") == name
    assert folder.read(name) == b"12"
    assert [folder.names(), folder.names("x"), folder.names("x/z")] == [["x"], ["y"], []]
    assert [f"x/y/{found}" for found in folder.names("x/y")] == [name]
    folder.remove(name)
    folder.remove(name)
    assert folder.names("x/y") == []
    with pytest.raises(DamageError, match=f"{name} in .* is gone"):
        folder.read(name)


def test_every_flipped_bit_and_cut_is_seen_and_every_other_name(tmp_path):
    folder, content = Folder(str(tmp_path)), b"some bytes"
    path = tmp_path / folder.write("block-0001", content, "npz")
    harmed = [content[:end] for end in range(len(content))] + [content + b"\0"]
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        harmed.append(bytes(flipped))
    for now in harmed:
        path.write_bytes(now)
        with pytest.raises(DamageError, match="not those that its name promises"):
            folder.read(path.name)
    (tmp_path / f"block-0001.{checksum(b'1')}.npz").write_bytes(b"12")
    with pytest.raises(DamageError):
        folder.read(f"block-0001.{checksum(b'1')}.npz")


def test_a_folder_that_cannot_be_written_is_named_and_nothing_is_left(tmp_path, monkeypatch):
    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StoreError, match=r"cannot write to .*/a: No space left on device\. What is done stays"):
        Folder(str(tmp_path / "a")).write("cell", b"12", "json")
    assert list((tmp_path / "a").iterdir()) == []


@pytest.mark.parametrize(("call", "harmed"), [("listdir", "m"), ("read_bytes", "cell.")])
def test_what_may_not_be_read_is_an_error_that_says_so(store, cell, monkeypatch, call, harmed):
    owner = os if call == "listdir" else Path
    allowed = getattr(owner, call)

    def denied(path, *rest):
        if str(path).rpartition("/")[2].startswith(harmed):
            raise PermissionError(13, "Permission denied", str(path))
        return allowed(path, *rest)

    monkeypatch.setattr(owner, call, denied)
    with pytest.raises(StoreError, match=rf"cannot read .*/{harmed}.*: Permission denied; see that this user may read"):
        ek.open(store.address)


def test_rests_of_processes_that_are_gone_are_removed(tmp_path, dead):
    for name, process in (("a", dead), ("b", this_process()), ("c", "elsewhere~1~2.00"), ("d", "elsewhere~1~2.00")):
        (tmp_path / f".{name}.{process}.partial").write_text("half")
    old = time.time() - files.OLD - 1
    os.utime(tmp_path / ".d.elsewhere~1~2.00.partial", (old, old))
    Folder(str(tmp_path)).clean()
    assert sorted(path.name[:3] for path in tmp_path.iterdir()) == [".b.", ".c."]


def test_a_process_lives_until_it_ends_and_elsewhere_for_a_day(dead):
    host, number, born = this_process().split("~")
    now = time.time()
    assert is_alive(this_process(), 0)
    assert is_alive(f"elsewhere~{number}~{born}", now - files.OLD + 60)
    assert not is_alive(f"elsewhere~{number}~{born}", now - files.OLD - 60)
    assert not is_alive(f"{host}~{number}~{float(born) - 60}", now)
    assert not is_alive(dead, now)


def test_slugs_are_short_names_of_folders():
    assert slug("a/b?c=d") == "a-b-c-d"
    assert slug("../..") == slug("///") == "-"
    long = "x" * 4000
    assert len(slug(long)) <= 80
    assert slug(long) != slug(long + "y")


# --- cells


def test_a_folder_of_something_else_is_refused_and_a_studys_own_file_is_not(store):
    folder = Path(store.address)
    assert store.cells() == []
    folder.mkdir()
    (folder / ".DS_Store").write_bytes(b"\0")
    (folder / "study.yaml").write_text("models: []")
    assert store.cells() == []
    (folder / "thesis.txt").write_text("years")
    with pytest.raises(
        StoreError, match=r"is no store of a study of this eedkit \(it has no study.….json, but thesis.txt"
    ):
        store.promise([OTHER], {})
    with pytest.raises(StoreError, match=r"thesis.txt cannot be a folder, since a file is there; choose another place"):
        Store(str(folder / "thesis.txt")).promise([OTHER], {})


def test_cells_come_in_the_order_of_their_studies_each_promised_once(store):
    cells = [Cell("digits/test", "C2", f"m{i}") for i in (3, 0, 4, 1, 5, 9, 2, 6)]
    for cell in (*cells, *cells):
        store.promise([cell], {})
    assert store.cells() == cells
    assert store.state(cells[0]) == State(cells[0])
    assert len(files_in(store)) == len(cells)


def test_a_begun_cell_keeps_its_settings_and_bounds(store, cell):
    before = files_in(store)
    store.begin(store.state(cell), SETTINGS, [(0, 10)])
    assert store.state(cell).bounds == BOUNDS
    for key, value in (("model", "spec [v]"), ("null", False), ("metrics", ["softmax"])):
        with pytest.raises(StoreError, match=re.escape(f"another {key}: {SETTINGS[key]!r} there, {value!r} here")):
            store.begin(store.state(cell), SETTINGS | {key: value}, BOUNDS)
    assert files_in(store) == before


def test_each_block_is_what_its_files_say(store, cell, dead):
    write(store, cell, 0)
    for reason in ("first", "x" * 5_000_000):
        store.fail(store.state(cell), 1, reason)
    assert statuses(store, cell) == [DONE, FAILED, MISSING]
    assert store.state(cell).reasons == {1: "x" * 5_000_000}
    claim = store.claim(cell, 1)
    assert statuses(store, cell) == [DONE, RUNNING, MISSING]
    store.folder.remove(claim)
    store.folder.write_json(f"{cell.path}/running-0002", {"process": dead, "since": 0})
    assert statuses(store, cell) == [DONE, FAILED, MISSING]
    assert store.state(cell).deaths == {2: 1}
    assert store.state(cell).places_done == [0, 1, 2, 3]
    for number in range(3):
        write(store, cell, number)
    assert kinds(store) == ["block-0000", "block-0001", "block-0002", "cell", "study"]


def test_flaws_are_told_from_the_block(store, cell):
    write(store, cell, 0, flaws=[f"image {i}" for i in range(5)])
    assert statuses(store, cell)[0] == FLAWED
    assert store.flaws(store.state(cell)) == ["image 0; image 1; image 2 (and 2 more samples)"]


def test_who_comes_first_has_the_block(store, cell, dead):
    first = store.claim(cell, 0)
    assert first is not None
    assert store.claim(cell, 0) is None
    store.folder.remove(first)
    store.folder.write_json(f"{cell.path}/running-0000", {"process": dead, "since": 0})
    won = []
    threads = [threading.Thread(target=lambda: won.append(store.claim(cell, 0))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # claims that cross cost double work, never a block that nobody computes
    assert any(claim is not None for claim in won)
    assert store.claim(cell, 0) is None


def test_a_block_unlike_the_first_is_refused(store, cell):
    write(store, cell, 0)
    before = files_in(store)
    others = {"weights": whole(weights="v"), "layers": whole(layers=("two", "latent")), "variables": whole().drop_vars("confidence")}  # fmt: skip
    for what, values in others.items():
        with pytest.raises(ValueError, match=f"other {what} than the first"):
            write(store, cell, 1, values=values)
    assert files_in(store) == before


@pytest.mark.parametrize("name", ["a-b", "A B"])
def test_names_of_one_place_are_refused_between_studies(store, cell, name):
    begin(store, Cell("d", "C2", "a b"))
    with pytest.raises(StoreError, match=f"has d · C2 · a b where d · C2 · {name} would be; name one otherwise"):
        begin(store, Cell("d", "C2", name))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"schema": 1}, schema.SchemaError, "measure again"),
        ({"schema": schema.SCHEMA + 1}, schema.SchemaError, "upgrade eedkit"),
        ({"format": 1}, StoreError, "whose blocks do not say what they are of; measure again"),
    ],
)
def test_a_store_of_another_eedkit_is_refused(store, change, error, message):
    promised = {"eedkit": "study", "schema": schema.SCHEMA, "format": 2, "number": 0, "cells": [], "groups": {}}
    store.folder.write_json("study", promised | change)
    with pytest.raises(error, match=message):
        store.studies()


# --- files of others, and in other places


def done(store, cell):
    for number in range(3):
        write(store, cell, number)
    return ek.open(store.address).load()


@pytest.mark.parametrize(
    "name",
    ["study.yaml", "notes/a/b/c/cell.json", "{cell}/cell.json~", "{cell}/cell.bak.json", "{cell}/{block} (1).npz",
     "{cell}/{block}.npz.part", "{cell}/block-0000.npz", "{cell}/block-1.0123456789abcdef.npz", "block-0000.0123456789abcdef.npz"],
)  # fmt: skip
def test_a_file_of_others_is_neither_read_nor_removed(store, cell, name):
    wanted = done(store, cell)
    stem = Path(store.state(cell).done[0][0]).stem
    path = Path(store.address, name.format(cell=cell.path, block=stem))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("models: []")
    assert ek.open(store.address).load().identical(wanted)
    assert statuses(store, cell) == [DONE] * 3
    store.clean([store.state(cell)])
    assert path.read_text() == "models: []"


def test_what_was_moved_and_linked_back_is_followed_and_a_dangling_link_is_named(store, cell, tmp_path):
    wanted = done(store, cell)
    place = Path(store.address, cell.path)
    for moved in (place, next(place.glob("block-0001*"))):
        shutil.move(moved, tmp_path / "elsewhere")
        moved.symlink_to(tmp_path / "elsewhere")
        Path(store.address, "loop").unlink(missing_ok=True)
        Path(store.address, "loop").symlink_to("loop")
        assert ek.open(store.address).load().identical(wanted)
        shutil.move(tmp_path / "elsewhere", tmp_path / "gone")
        with pytest.raises(
            StoreError, match=f"{moved} is a link to something that is not there; bring it back or remove"
        ):
            ek.open(store.address)
        moved.unlink()
        shutil.move(tmp_path / "gone", moved)


def copied(store, cell, other, number, to):
    """A block's file of one cell in the place of another; gives its name there."""
    source = Path(store.address, store.state(cell).done[number][0])
    name = source.name.replace(f"block-{number:04}", f"block-{to:04}")
    shutil.copy(source, Path(store.address, other.path, name))
    return f"{other.path}/{name}"


@pytest.mark.parametrize(
    ("model", "number", "to", "what"), [("other", 0, 0, "cell"), ("m", 0, 1, "block"), ("m", 1, 0, "block")]
)
def test_a_block_in_the_place_of_another_is_named_and_repaired(store, cell, model, number, to, what):
    done(store, cell)
    other = Cell(cell.data, cell.group, model)
    begin(store, other)
    for block_number in range(3):
        write(store, other, block_number)
    wanted = ek.open(store.address).load()
    own = store.state(other).done[to][0]
    Path(store.address, own).rename(Path(store.address, "own"))
    foreign = copied(store, cell, other, number, to)
    with pytest.raises(DamageError, match=rf"{foreign} is damaged: it is the block of another {what}"):
        ek.open(store.address)
    assert store.repair([cell, other], {}) == [foreign]
    assert store.state(other).status(to) == MISSING
    # beside the one that belongs there it does no harm, whichever is listed first
    Path(store.address, "own").rename(Path(store.address, own))
    copied(store, cell, other, number, to)
    assert ek.open(store.address).load().identical(wanted)
    store.clean([store.state(other)])
    assert store.state(other).done[to] == [own]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"data": "digits [2]"}, r"data, digits \[1\] and not digits \[2\]"),
        ({"model": "spec [v]"}, r"model, spec \[w\] and not spec \[v\]"),
        ({"seed": 1}, "settings, "),
    ],
)
def test_a_block_of_other_settings_or_images_is_foreign(store, cell, tmp_path, change, what):
    write(store, cell, 0)
    elsewhere = Store(str(tmp_path / "elsewhere"))
    elsewhere.begin(State(cell), SETTINGS | change, BOUNDS)
    file = store.state(cell).done[0][0]
    shutil.copy(Path(store.address, file), Path(elsewhere.address, file))
    with pytest.raises(DamageError, match=f"the block of another {what}"):
        elsewhere.block(elsewhere.state(cell), 0)


def test_a_block_that_was_renamed_past_the_last_one_is_missing_and_goes(store, cell):
    done(store, cell)
    path = Path(store.address, store.state(cell).done[1][0])
    path.rename(path.with_name(path.name.replace("0001", "0003")))
    assert statuses(store, cell) == [DONE, MISSING, DONE]
    store.clean([store.state(cell)])
    assert kinds(store) == ["block-0000", "block-0002", "cell", "study"]


def test_two_files_of_one_block_count_once(store, cell):
    write(store, cell, 0)
    second = block(0, reason="x")
    second.about["of"] = store.state(cell).owner_of(0)
    store.folder.write(f"{cell.path}/block-0000", second.to_bytes(), "npz")
    state = store.state(cell)
    assert (len(state.done), len(state.done[0])) == (1, 2)
    store.clean([state])
    assert kinds(store).count("block-0000") == 1


def test_damaged_and_lost_files_are_repaired(store, cell):
    write(store, cell, 0)
    write(store, cell, 1)
    harmed = [files_in(store, cell.path)[0], files_in(store, cell.path)[-1]]
    for name in harmed:
        Path(store.address, name).write_bytes(b"?")
    with pytest.raises(DamageError, match="cell"):
        store.state(cell)
    assert sorted(store.repair([cell], {})) == sorted(harmed)
    (study,) = [name for name in files_in(store) if name.startswith("study")]
    begin(store, cell)
    store.folder.remove(study)
    with pytest.raises(StoreError, match=r"run\(repair=True\) where that file was lost"):
        store.studies()
    assert store.repair([cell], {}) == []
    assert store.state(cell).done.keys() == {1}


# --- kills

EVENTS = ("open", "os.listdir", "os.mkdir", "os.remove", "os.rename", "os.scandir")


def work(store):
    cell = Cell("digits/test", "C2", "m")
    begin(store, cell)
    for number in range(3):
        if number not in store.state(cell).done:
            claim = store.claim(cell, number)
            write(store, cell, number)
            store.folder.remove(claim)


def killed_at(store, operation):
    """Whether a process that did the work was killed at this file operation."""
    child = os.fork()
    if child == 0:
        left = [operation]

        def hook(event, arguments):
            if event in EVENTS and arguments and str(arguments[0]).startswith(store.address):
                left[0] -= 1
                if left[0] == 0:
                    os._exit(9)

        sys.addaudithook(hook)
        work(store)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_at_any_operation_it_goes_on(tmp_path):
    work(Store(str(tmp_path / "whole")))
    wanted = ek.open(tmp_path / "whole")
    operation = 0
    while True:
        operation += 1
        store = Store(str(tmp_path / f"killed at {operation}"))
        if not killed_at(store, operation):
            break
        before = {name for name in files_in(store) if "block" in name}
        work(store)
        store.clean([store.state(cell) for cell in store.cells()])
        assert before <= set(files_in(store))
        assert len(files_in(store)) == 5
        assert ek.open(store.address).identical(wanted)
    assert operation > 30
