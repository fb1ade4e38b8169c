"""Fixed prose says only what no run can refute: numbers and verdicts come from readings."""

import re

import nbformat
import pytest

from eedkit.report import notebooks

STEMS = sorted(path.stem for path in notebooks.folder().glob("*.ipynb"))
VERDICTS = ["supported", "contradicted", "inconclusive", "not testable"]
RESULT = re.compile(rf"\d[.,]\d|\d\s*%|\b(?<!(?<!\*)\*)(?:{'|'.join(VERDICTS)})\b", re.I)
"""A decimal, a percentage or a verdict, which the next run could refute; a verdict's word in italics is being defined."""


@pytest.mark.parametrize(
    "text", ["falls to 0.34", "0,34 of it", "12 % less", "is **Supported**", "contradicted", "not testable here"]
)
def test_the_rule_sees_a_result(text):
    assert RESULT.search(text)


@pytest.mark.parametrize(
    "text", ["eq. 4", "What would contradict it.", "at 1 it is another image", "*supported* where"]
)
def test_the_rule_leaves_definitions_alone(text):
    assert not RESULT.search(text)


@pytest.mark.parametrize("stem", STEMS)
def test_fixed_prose_states_no_result(stem):
    notebook = nbformat.read(notebooks.folder() / f"{stem}.ipynb", 4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            assert not RESULT.findall(cell.source), cell.id


@pytest.mark.parametrize("stem", STEMS)
def test_every_notebook_has_readings(stem):
    notebook = nbformat.read(notebooks.folder() / f"{stem}.ipynb", 4)
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert sum(source.count("ek.paper.readings.") for source in sources) >= 1
    assert not any(cell.outputs for cell in notebook.cells if cell.cell_type == "code")
