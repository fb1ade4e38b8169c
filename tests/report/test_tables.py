"""Tables show foreign texts and obey none of them."""

import pandas as pd
import pytest

from eedkit.report import tables

EVIL = "\x1b]0;owned\x07\u202e"
SHOWN = r"\x1b]0;owned\x07\u202e"


def test_control_characters_are_shown_in_cells_and_above():
    frame = pd.DataFrame({"data": [EVIL] * 2, "model": [EVIL, "two\nlines"], "n": [1, 2], "reason": [EVIL, ""]})
    lines = tables.table(frame, once=["data"]).splitlines()
    assert lines[0] == f"data: {SHOWN}"
    assert lines[2].split() == [SHOWN, "1", SHOWN]
    assert lines[3].split() == ["two", "lines", "2"]


def test_control_characters_are_shown_in_notes():
    frame = pd.DataFrame({"model": ["a"], "reason": [f"{EVIL} and what else an error says"]})
    assert tables.table(frame).splitlines()[-1] == f"[1] {SHOWN} and what else an error says"


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
    assert tables.table(pd.DataFrame({"layer": [name], "n": [1]})).splitlines()[1].split() == [name, "1"]
