"""Figures inside a page take its text colour, but for what is read against a cell or is a colour of its own."""

import re

import matplotlib.pyplot as plt
import pytest

from eedkit.explorer.pictures import inline_svg
from eedkit.plots import style


@pytest.fixture
def axes():
    with style.theme():
        figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def style_of(page, text):
    """How a text is drawn."""
    return re.search(rf'<text style="([^"]*)"[^>]*>{text}</text>', page)[1]


def test_numbers_in_cells_keep_their_colours(axes):
    axes.pcolormesh([[0, 1]])
    axes.text(0.5, 0.5, "dark cell", color="white")
    axes.text(1.5, 0.5, "light cell", color="0.15")
    axes.set_xlabel("below")
    page = inline_svg(axes.figure, "a figure")
    assert "currentColor" not in style_of(page, "dark cell")
    assert "currentColor" not in style_of(page, "light cell")
    assert "currentColor 85%" in style_of(page, "below")


def test_a_grey_line_of_the_palette_stays_grey(axes):
    axes.plot([0, 1], color=style.KNOWN["random"][0])
    axes.plot([0, 1], color="0.5")
    page = inline_svg(axes.figure, "a figure")
    assert page.count(f"stroke: {style.KNOWN['random'][0]}") == 1
    assert "currentColor 50%" in page


def test_figures_of_one_page_share_no_name(axes):
    axes.plot([0, 1], marker="o", label="a")
    axes.legend()
    pages = []
    for says in ("one", "two"):
        pages.append(inline_svg(axes.figure, says))
    names, others = (set(re.findall(r'(?<=id=")[^"]*', page)) for page in pages)
    assert names
    assert not names & others
