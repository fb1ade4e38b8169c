"""Names that a drawing library takes for something else, and what a figure shows."""

import html
import re
import xml.dom.minidom

import pytest

ODD_NAMES = ["_hidden", r"$\frac$", "cost $5 and $6", "\x1b]0;owned\x07"]
"""A leading underscore, a formula that cannot be parsed, one that can, and what breaks SVG."""


@pytest.fixture
def odd_names():
    """Names that a drawing library takes for something else."""
    return ODD_NAMES


@pytest.fixture
def drawn_texts(tmp_path):
    """The function that says which texts a figure shows, read off its SVG."""

    def read(figure):
        figure.savefig(tmp_path / "drawn.svg")
        xml.dom.minidom.parse(str(tmp_path / "drawn.svg"))
        comments = re.findall("<!-- (.*?) -->", (tmp_path / "drawn.svg").read_text(encoding="utf-8"))
        return {html.unescape(text).lstrip("\u200b") for text in comments}

    return read
