"""Tables show foreign texts and obey none of them."""

import numpy as np
import pandas as pd
import pytest

from eedkit.report import tables

EVIL = "\x1b]0;owned\x07\u202e"
SHOWN = r"\x1b]0;owned\x07\u202e"


def test_control_characters_are_shown_above_in_cells_and_in_notes():
    reasons = [f"{EVIL} and what else an error says", ""]
    frame = pd.DataFrame({"data": [EVIL] * 2, "model": [EVIL, "two\nlines"], "n": [1, 2000], "reason": reasons})
    lines = tables.table(frame, once=["data"]).splitlines()
    assert lines[0] == f"data: {SHOWN}"
    assert lines[2].split() == [SHOWN, "1", "[1]"]
    assert lines[3].split() == ["two", "lines", "2,000"]
    assert lines[4] == f"[1] {SHOWN} and what else an error says"


@pytest.mark.parametrize("length", [5_000_000, tables.NOTE + 1])
def test_a_long_reason_is_cut_in_its_note(length):
    text = tables.table(pd.DataFrame({"model": ["a"], "reason": ["x" * length]}))
    assert text.count("x") == tables.NOTE - 1
    assert text.endswith("x…")
    whole = tables.table(pd.DataFrame({"model": ["a"], "reason": ["x" * tables.NOTE]}))
    assert whole.count("x") == tables.NOTE


def test_only_rows_that_are_shown_have_notes():
    reasons = [f"{'why ' * 10}{k}" for k in range(tables.ROWS + 50)]
    text = tables.table(pd.DataFrame({"model": "a", "reason": reasons}))
    assert f"[{tables.ROWS}] why" in text
    assert f"[{tables.ROWS + 1}]" not in text
    assert "… and 50 more" in text


@pytest.mark.parametrize("name", ["_x", "$a$", "[red]a[/red]", ":smile:"])
def test_names_are_shown_as_they_are(name):
    lines = tables.table(pd.DataFrame({"layer": [name], "n": [1]})).splitlines()
    assert [line.split() for line in lines] == [["layer", "n"], [name, "1"]]


def test_many_cells_are_summed_up_by_model():
    rows = pd.DataFrame({"data": "digits", "group": "C4", "model": ["a"] * 90 + ["b"] * 90, "blocks": 2, "done": 1})
    rows = rows.assign(images=80, failed=0, flawed=0, reason=["", "odd"] * 90)
    header, *lines = tables.status(rows).splitlines()[:3]
    assert header.split() == ["model", "cells", "blocks", "done", "failed", "flawed", "reason"]
    assert [line.split() for line in lines] == [[name, "90", "180", "90", "0", "0", "odd"] for name in "ab"]


def test_sizes_times_and_numbers_are_for_people():
    cells = pd.DataFrame({"model": list("abcd"), "blocks": 1, "done": 0, "forwards": 1.0, "note": ""})
    cells = cells.assign(bytes=[5000, 3 * 2**20, 7.25 * 2**40, np.nan], seconds=[0.2, 125, 86400 * 3, np.nan])
    lines = tables.plan(cells).splitlines()
    assert [line.split()[4:] for line in lines[1:5]] == [
        ["4.9", "KiB", "under", "1", "s"],
        ["3.0", "MiB", "2", "min", "5", "s"],
        ["7.2", "TiB", "3", "d", "0", "h"],
        [],
    ]
    row = {"model": "a", "n": 5, "metric": "latent", "layer": "b", "estimate": -0.98765, "low": -1, "high": 1.25e-7}
    text = tables.estimates(pd.DataFrame([row | {"null": 0.0, "relative": np.nan, "reason": ""}]))
    assert text.splitlines()[1].split() == ["a", "5", "latent", "b", "-0.9877", "-1.0000", "to", "1.2e-07", "0.0000"]
