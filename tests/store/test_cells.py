"""What a study's folder says is done, running, failed or missing; who comes first; what is refused."""

import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from made import BOUNDS, SETTINGS, begin, block, whole, write

from eedkit.results import schema
from eedkit.store import process
from eedkit.store.cells import DONE, FAILED, FLAWED, MISSING, RUNNING, Cell, State, Store, slug
from eedkit.store.files import DamageError, StoreError


@pytest.fixture
def dead():
    """The text of a process that is gone."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host, _, born = process.here().split("~")
    return f"{host}~{ended.pid}~{born}"


def statuses(store, cell):
    state = store.read()[cell]
    return [state.status(number) for number in range(len(BOUNDS))]


def files(store):
    return [name.rpartition("/")[2].split(".")[0] for name in store.folder.names()]


def test_an_empty_folder_holds_nothing(tmp_path):
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    (tmp_path / f".x.{process.here()}.partial").write_text("half")
    assert Store(str(tmp_path)).read() == {}
    assert Store(str(tmp_path / "nothing")).read() == {}


def test_a_promised_cell_is_known_before_it_begins(store):
    cell = Cell("d", "C2", "m")
    store.promise([cell])
    assert store.read() == {cell: State(cell)}


def test_cells_come_in_the_order_of_their_studies(store):
    cells = [Cell("digits/test", "C2", f"m{i}") for i in (3, 0, 4, 1, 5, 9, 2, 6)]
    for cell in cells:
        store.promise([cell])
    store.promise(cells[:1])
    assert list(store.read()) == cells


def test_a_study_that_goes_on_is_promised_once(store, cell):
    before = store.folder.names()
    store.promise([cell])
    assert store.folder.names() == before


def test_what_two_studies_promise_is_known_together(store, cell):
    other = Cell("d", "C2", "m")
    store.promise([other])
    assert set(store.read()) == {cell, other}


def test_a_second_beginning_changes_nothing(store, cell):
    before = store.folder.names()
    begin(store, cell)
    assert store.folder.names() == before


def test_a_begun_cell_keeps_its_bounds(store, cell):
    state = store.begin(store.state(cell), SETTINGS, [(0, 10)])
    assert state.bounds == BOUNDS


@pytest.mark.parametrize(("key", "value"), [("model", "spec [v]"), ("null", False), ("metrics", ["softmax"])])
def test_other_settings_are_refused_by_key_and_values(store, cell, key, value):
    with pytest.raises(StoreError, match=re.escape(f"another {key}: {SETTINGS[key]!r} there, {value!r} here")):
        store.begin(store.state(cell), SETTINGS | {key: value}, BOUNDS)


def test_each_block_is_what_its_files_say(store, cell, dead):
    write(store, cell, 0)
    store.fail(cell, 1, "broken")
    assert statuses(store, cell) == [DONE, FAILED, MISSING]
    claim = store.claim(cell, 1)
    assert statuses(store, cell) == [DONE, RUNNING, MISSING]
    store.folder.remove(claim)
    store.folder.write_json(f"{cell.path}/running-0002", {"process": dead, "since": 0})
    assert statuses(store, cell) == [DONE, FAILED, MISSING]
    assert store.read()[cell].deaths == {2: 1}
    assert store.read()[cell].samples_done == 4


def test_a_cell_has_a_file_for_each_block_and_one_more(store, cell):
    store.fail(cell, 1, "broken")
    for number in range(3):
        store.claim(cell, number)
        write(store, cell, number)
    assert files(store) == ["block-0000", "block-0001", "block-0002", "cell", "study"]


def test_flaws_are_told_from_the_block(store, cell):
    write(store, cell, 0, flaws=[f"image {i}" for i in range(5)])
    assert statuses(store, cell)[0] == FLAWED
    assert store.flaws(store.read()[cell]) == ["image 0; image 1; image 2 (and 2 more samples)"]


def test_a_new_reason_takes_the_place_of_the_old(store, cell):
    store.fail(cell, 0, "first")
    store.fail(cell, 0, "second")
    assert store.read()[cell].reasons == {0: "second"}


def test_who_comes_first_has_the_block(store, cell, dead):
    first = store.claim(cell, 0)
    assert first is not None
    assert store.claim(cell, 0) is None
    store.folder.remove(first)
    store.folder.write_json(f"{cell.path}/running-0000", {"process": dead, "since": 0})
    assert store.claim(cell, 0) is not None


def test_of_many_claims_at_once_one_wins_or_more(store, cell):
    won = []
    threads = [threading.Thread(target=lambda: won.append(store.claim(cell, 0))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # claims that cross cost double work, never a block that nobody computes
    assert any(claim is not None for claim in won)
    assert store.claim(cell, 0) is None


def test_other_weights_than_the_first_blocks_are_refused(store, cell):
    write(store, cell, 0)
    before = store.folder.names()
    with pytest.raises(ValueError, match=r"other weights than the first: \['w'\] there, \['v'\] here"):
        write(store, cell, 1, values=whole(weights="v"))
    with pytest.raises(ValueError, match="other layers than the first"):
        write(store, cell, 1, values=whole(layers=("two", "latent")))
    with pytest.raises(ValueError, match="other variables than the first"):
        write(store, cell, 1, values=whole().drop_vars("confidence"))
    assert store.folder.names() == before


def test_a_cell_that_was_never_begun_is_named(store, cell):
    with pytest.raises(StoreError, match="has no d · C2 · m here: every worker must see that folder"):
        store.has(Cell("d", "C2", "m"), 0)


def test_two_files_of_one_block_count_once(store, cell):
    write(store, cell, 0)
    store.folder.write(f"{cell.path}/block-0000", block(0, reason="x").to_bytes(), "npz")
    state = store.read()[cell]
    assert len(state.done) == len(state.leftovers) == 1
    store.clean([state])
    assert files(store).count("block-0000") == 1


def test_names_in_one_place_are_not_mixed(store, cell):
    begin(store, Cell("d", "C2", "a b"))
    with pytest.raises(StoreError, match="has d · C2 · a b where d · C2 · a-b would be"):
        store.state(Cell("d", "C2", "a-b"))


def test_slugs_are_short_names_of_folders():
    assert slug("a/b?c=d") == "a-b-c-d"
    assert slug("../..") == slug("///") == "-"
    long = "x" * 4000
    assert len(slug(long)) <= 80
    assert slug(long) != slug(long + "y")


def test_reasons_are_kept_whole(store, cell):
    store.fail(cell, 0, "x" * 5_000_000)
    assert store.read()[cell].reasons == {0: "x" * 5_000_000}


@pytest.mark.parametrize(("written", "message"), [(1, "measure again"), (schema.SCHEMA + 1, "upgrade eedkit")])
def test_another_schema_is_refused(store, written, message):
    store.folder.write_json("study", {"eedkit": "study", "schema": written, "number": 0, "cells": []})
    with pytest.raises(schema.SchemaError, match=message):
        store.read()


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(StoreError, match="is no store of a study"):
        Store(str(tmp_path)).read()


def test_damaged_files_are_removed_by_name(store, cell):
    write(store, cell, 0)
    write(store, cell, 1)
    names = store.folder.names(cell.path)
    for name in (names[0], names[-1]):
        Path(store.address, name).write_bytes(b"?")
    with pytest.raises(DamageError, match="cell"):
        store.read()
    assert sorted(store.repair([cell])) == sorted((names[0], names[-1]))
    assert begin(store, cell).done.keys() == {1}


def test_a_lost_list_of_cells_is_written_again(store, cell):
    write(store, cell, 0)
    (study,) = [name for name in store.folder.names() if name.startswith("study")]
    store.folder.remove(study)
    with pytest.raises(StoreError, match=r"run\(repair=True\) where that file was lost"):
        store.read()
    assert store.repair([cell]) == []
    assert store.read()[cell].done.keys() == {0}
