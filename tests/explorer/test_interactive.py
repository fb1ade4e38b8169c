"""The explorer's controls change its figures, which are those of the chosen slice."""

import re
import sys

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import eedkit as ek
from eedkit.explorer import interactive


def walk(widget):
    """A widget and all that it holds."""
    yield widget
    for child in getattr(widget, "children", ()):
        yield from walk(child)


def control(widget, description):
    return next(found for found in walk(widget) if getattr(found, "description", "") == description)


def shown(widget):
    """What stands in the grid: figures as SVG, and sentences."""
    grid = next(found for found in walk(widget) if type(found).__name__ == "GridBox")
    return [child.value for child in grid.children]


def texts(svg):
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


@pytest.fixture(scope="module")
def images():
    return torch.rand(12, 1, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def results(images):
    """Two models on twelve images of three classes under quarter turns."""
    torch.manual_seed(0)
    of_models = []
    for name in ("a", "b"):
        net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))
        of_models.append(ek.measure(net, images, group="C4", labels=[0, 1, 2] * 4, name=name, progress=False))
    return ek.concat(of_models)


@pytest.mark.parametrize(
    ("name", "value"),
    [("metric", "channelwise"), ("models", ("b",)), ("layer", "0"), ("element", "r90"), ("class", 2)],
)
def test_every_control_changes_what_is_shown(results, images, name, value):
    widget = ek.explore(results, images, n=2)
    before = shown(widget)
    assert len(before) == 5
    assert all(picture.startswith("<svg") for picture in before)
    control(widget, name).value = value
    after = shown(widget)
    changed = [old != new for old, new in zip(before, after, strict=True)]
    # a depth profile has all layers
    assert changed == [name != "layer", True, True, True, True]


def test_figures_are_of_the_chosen_class_element_and_model(results, images):
    widget = ek.explore(results, images, n=9)
    control(widget, "models").value = ("b",)
    control(widget, "class").value = 1
    control(widget, "element").value = "r90"
    *_, heatmap, worst = shown(widget)
    ticks = [text for text in texts(heatmap) if text in ("0", "1", "2", "e", "r90", "r180", "r270", "a", "b")]
    assert sorted(ticks) == ["1", "b", "r90"]
    assert worst.count("<image") == 2 * 4


def test_layers_without_a_value_are_not_offered(results):
    """Channelwise has none at the last layers, which are vectors: another layer is chosen, and it is drawn once."""
    widget = ek.explore(results)
    assert control(widget, "layer").value == "latent"
    control(widget, "metric").value = "channelwise"
    layer = control(widget, "layer")
    has_value = results.channelwise.notnull().any(["model", "element", "sample"])
    assert list(layer.options) == results.layer.values[has_value.values].tolist()
    assert "latent" not in layer.options
    assert layer.value in layer.options
    # what the browser shows is the index
    assert layer.options[layer.index] == layer.value
    assert all(picture.startswith("<svg") for picture in shown(widget))
    control(widget, "metric").value = "softmax"
    assert layer.options == ()
    assert len(shown(widget)) == 3  # an output has no depth


def test_it_says_that_it_is_busy_while_it_draws(results, monkeypatch):
    widget = ek.explore(results)
    busy = next(found for found in walk(widget) if "progress" in str(getattr(found, "value", "")))
    seen = []
    monkeypatch.setattr(interactive, "_figures", lambda *_: seen.append(busy.layout.visibility) or [])
    control(widget, "element").value = "r90"
    assert [*seen, busy.layout.visibility] == ["visible", "hidden"]


def test_what_cannot_be_drawn_says_why(results):
    widget = ek.explore(results.drop_vars("label"))
    assert shown(widget)[3].startswith("<p>No class heatmap: a class heatmap needs labels")
    control(widget, "models").value = ()
    assert shown(widget) == ["Choose at least one model."]


def test_classes_are_offered_by_their_names(results):
    named = results.assign_coords(label=("sample", np.arange(12) % 2, {"class_names": '["cat", "dog"]'}))
    assert control(ek.explore(named), "class").options == (("all", "all"), ("cat", 0), ("dog", 1))


def test_a_tree_lets_its_groups_be_chosen(results, images):
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    flips = ek.measure(net, images, group="flip", name="c", progress=False)
    widget = ek.explore(xr.DataTree.from_dict({"noise/C4": results, "noise/flip": flips}))
    control(widget, "results").value = "noise · flip"
    assert control(widget, "element").options == ("all", "e", "m")


def test_without_ipywidgets_the_extra_is_named(results, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(ImportError, match=r"eedkit\[notebooks\]"):
        ek.explore(results)
