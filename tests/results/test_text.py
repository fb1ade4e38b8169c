"""Tables show foreign texts and obey none of them; those of `summarise` fit 80 columns, and a paper."""

import numpy as np
import pandas as pd
import pytest
from made import whole

import eedkit as ek
from eedkit.results import text
from eedkit.results.text import Summary, to_latex

EVIL = "\x1b]0;owned\x07\u202e"
SHOWN = r"\x1b]0;owned\x07\u202e"


def predicted(names="", *, elements=("e", "r90"), of_moved=(0, 1, 1, 1)):
    """A Dataset of four images of the classes 0 0 1 1, of which the last is taken for 0, and other predictions moved."""
    ds = whole(4).drop_vars("prediction").isel(element=[0] * len(elements))
    ds = ds.assign_coords(element=list(elements), label=("sample", [0, 0, 1, 1]))
    rows = [[0, 0, 1, 0], *([of_moved] * (len(elements) - 1))]
    ds = ds.assign(prediction=(("model", "element", "sample"), np.array([rows], dtype=np.int32)))
    if names:
        ds.label.attrs["class_names"] = names
    return ds


def test_accuracy_by_element_comes_before_relative_values():
    lines = repr(ek.summarise(predicted())).splitlines()
    assert lines[0] == "model: m, n: 4"
    assert [line.split() for line in lines[1:6]] == [
        ["metric", "at", "relative", "95", "%", "estimate", "null", "reason"],
        # Wilson's interval of 3 of 4, from tables
        ["accuracy", "e", "0.301", "to", "0.954", "0.750"],
        ["accuracy", "r90", "0.301", "to", "0.954", "0.750"],
        ["accuracy", "moved", "0.301", "to", "0.954", "0.750"],
        # 2 of 4; of 12 pairs of images 6 get the same class
        ["prediction", "kept", "r90", "0.150", "to", "0.850", "0.500", "0.500"],
    ]
    row = ek.summarise(predicted()).query("layer == 'latent'").iloc[0]
    assert lines[-2].split() == [
        "latent",
        "latent",
        f"{row.relative:.3f}",
        f"{row.estimate:.3f}",
        f"{row.null:.3f}",
        "[1]",
    ]


def test_a_large_group_is_cut_to_the_lowest_and_fits_80_columns():
    elements = ["e", *(f"r{k}" for k in range(1, 30))]
    ds = predicted(elements=elements)
    ds.prediction[0, 17] = np.array([1, 1, 0, 0])
    lines = repr(ek.summarise(ds)).splitlines()
    places = [line.split()[1] for line in lines if line.startswith("accuracy")]
    assert len(places) == text.BY_ELEMENT
    assert (places[0], places[-1]) == ("e", "moved")
    assert "r17" in places
    assert "r29" not in places
    assert lines[-1].startswith("37 rows by element are left out")
    assert max(map(len, lines)) <= 80


def test_further_models_are_counted():
    lines = repr(ek.summarise(ek.example())).splitlines()
    assert [line for line in lines if line.startswith("model:")] == ["model: plain, n: 60", "model: augmented, n: 60"]
    assert lines[-1] == "… and 2 more models"
    assert max(map(len, lines)) <= 80


def test_what_is_selected_from_a_summary_is_a_plain_table():
    summary = ek.summarise(predicted())
    assert type(summary) is Summary
    assert type(summary.query("metric == 'latent'")) is pd.DataFrame
    assert type(ek.summarise(predicted(), full=True)) is pd.DataFrame


def test_latex_has_rules_a_caption_and_escaped_names():
    row = {
        "model": "a",
        "metric": "m_1",
        "layer": "a&b",
        "element": "",
        "relative": np.nan,
        "estimate": -0.98765,
        "null": 0.5,
    }
    ends = {"relative_low": np.nan, "relative_high": np.nan, "low": -1, "high": 1.25e-7}
    lines = to_latex(pd.DataFrame([row | ends]), caption=r"Of \emph{a}.", label="tab:a").splitlines()
    assert lines == [
        r"\begin{table}",
        r"\centering",
        r"\caption{Of \emph{a}.}",
        r"\label{tab:a}",
        r"\begin{tabular}{llrrrr}",
        r"\toprule",
        r"metric & at & relative & 95 \% & estimate & null \\",
        r"\midrule",
        r"m\_1 & a\&b &  & $-$1.000 to 1.2e-07 & $-$0.988 & 0.500 \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    two = pd.DataFrame([row | ends, row | ends | {"model": "b"}])
    assert "model & metric" in to_latex(two)


def test_control_characters_are_shown_above_in_cells_and_in_notes():
    reasons = [f"{EVIL} and what else an error says", ""]
    frame = pd.DataFrame({"data": [EVIL] * 2, "model": [EVIL, "two\nlines"], "n": [1, 2000], "reason": reasons})
    lines = text.table(frame, once=["data"]).splitlines()
    assert lines[0] == f"data: {SHOWN}"
    assert lines[2].split() == [SHOWN, "1", "[1]"]
    assert lines[3].split() == ["two", "lines", "2,000"]
    assert lines[4] == f"[1] {SHOWN} and what else an error says"


@pytest.mark.parametrize("length", [5_000_000, text.NOTE + 1])
def test_a_long_reason_is_cut_in_its_note(length):
    printed = text.table(pd.DataFrame({"model": ["a"], "reason": ["x" * length]}))
    assert printed.count("x") == text.NOTE - 1
    assert printed.endswith("x…")
    whole = text.table(pd.DataFrame({"model": ["a"], "reason": ["x" * text.NOTE]}))
    assert whole.count("x") == text.NOTE


def test_only_rows_that_are_shown_have_notes():
    reasons = [f"{'why ' * 10}{k}" for k in range(text.ROWS + 50)]
    printed = text.table(pd.DataFrame({"model": "a", "reason": reasons}))
    assert f"[{text.ROWS}] why" in printed
    assert f"[{text.ROWS + 1}]" not in printed
    assert "… and 50 more" in printed


def test_what_is_too_long_for_a_line_goes_on_in_the_next():
    frame = pd.DataFrame({"layer": ["x" * 60 + "end"], "metric": ["channelwise"], "n": [1]})
    lines = text.table(frame, width=40).splitlines()
    assert max(map(len, lines)) <= 40
    assert "".join(line.split()[0] for line in lines[1:]) == "x" * 60 + "end"


@pytest.mark.parametrize("name", ["_x", "$a$", "[red]a[/red]", ":smile:"])
def test_names_are_shown_as_they_are(name):
    lines = text.table(pd.DataFrame({"layer": [name], "n": [1]})).splitlines()
    assert [line.split() for line in lines] == [["layer", "n"], [name, "1"]]
