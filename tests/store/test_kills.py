"""A process that is killed at any file operation leaves a store that goes on, with all that was done."""

import os
import sys

import pytest
from made import begin, write

import eedkit as ek
from eedkit.store.cells import Cell, Store

EVENTS = ("open", "os.listdir", "os.mkdir", "os.remove", "os.rename", "os.scandir")
CELL = Cell("digits/test", "C2", "m")


def work(store):
    begin(store, CELL)
    for number in range(3):
        if not store.has(CELL, number):
            claim = store.claim(CELL, number)
            write(store, CELL, number)
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
        before = {name for name in store.folder.names() if "block" in name}
        work(store)
        store.clean(store.read().values())
        assert before <= set(store.folder.names())
        assert len(store.folder.names()) == 5
        assert ek.open(store.address).identical(wanted)
    assert operation > 30
