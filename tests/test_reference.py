"""The API reference shows the public names, their docstrings' sections, and loads nothing."""

import re
from types import ModuleType

import pdoc
import pytest

import eedkit as ek


@pytest.fixture(scope="module")
def reference():
    """The page of `eedkit` itself, made as `make docs` makes it."""
    pdoc.render.configure(docformat="numpy", show_source=False)
    module = pdoc.doc.Module(ek)
    return pdoc.render.html_module(module, {"eedkit": module})


def test_it_shows_every_public_name(reference):
    shown = set(re.findall(r'<section id="(\w+)">', reference))
    submodules = {name for name in ek.__all__ if isinstance(getattr(ek, name), ModuleType)}
    assert set(ek.__all__) - submodules <= shown


def test_sections_of_docstrings_are_read(reference):
    measure = re.search(r'<section id="measure">.*?</section>', reference, re.S)[0]
    assert re.search(r"<h6[^>]*>Parameters</h6>", measure)
    assert "<strong>group</strong>" in measure
    # an example is code, not the last of the parameters
    assert not re.search(r"<strong>&gt;&gt;&gt;", reference)


def test_it_loads_nothing(reference):
    assert not re.findall(r"""(?:src|@import|url\()\s*=?\s*["']?(?:https?:)?//[^"']*""", reference)
