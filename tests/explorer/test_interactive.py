"""The explorer's controls change its figures, which are those of the chosen slice."""

import sys

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
    """All pictures that a widget shows."""
    values = [getattr(found, "value", "") for found in walk(widget)]
    return [value for value in values if str(value).startswith("<svg")]


def html_of(widget):
    """All texts that a widget shows."""
    return "".join(str(getattr(found, "value", "")) for found in walk(widget))


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
    [("metric", "softmax"), ("models", ("b",)), ("layer", "0"), ("element", "r90"), ("class", 2)],
)
def test_every_control_changes_what_is_shown(results, images, name, value):
    widget = ek.explore(results, images, n=2)
    before = shown(widget)
    assert len(before) == 5
    control(widget, name).value = value
    assert before != shown(widget)


def test_figures_are_of_the_chosen_class_and_element(results, images):
    drawn = interactive.figures(results, label=1, element="r90", models=("b",), images=images, n=9)
    (rows, columns) = drawn["class heatmap"].axes[0].get_yticklabels(), drawn["class heatmap"].axes[0].get_xticklabels()
    assert [text.get_text() for text in rows] == ["1"]
    assert [text.get_text() for text in columns] == ["r90"]
    pairs = [ax for ax in drawn["worst images"].axes if ax.images]
    assert len(pairs) == 2 * 4


def test_what_cannot_be_drawn_says_why(results):
    page = html_of(ek.explore(results.drop_vars("label")))
    assert "<b>class heatmap</b>: a class heatmap needs labels" in page


def test_what_has_no_null_is_drawn_as_it_is(results):
    raw = results.drop_vars([name for name in results.data_vars if name.endswith("_null")])
    drawn = interactive.figures(raw, models=("a",))
    assert drawn["depth profile"].axes[0].get_ylabel() == "EED (latent)"
    assert interactive.figures(results, models=("a",))["depth profile"].axes[0].get_ylabel() == "relative EED (latent)"


def test_a_tree_lets_its_groups_be_chosen(results, images):
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    flips = ek.measure(net, images, group="flip", name="c", progress=False)
    widget = ek.explore(xr.DataTree.from_dict({"noise/C4": results, "noise/flip": flips}))
    control(widget, "results").value = "noise/flip"
    assert control(widget, "element").options == ("all", "e", "m")


def test_a_layer_with_values_is_chosen_at_first_and_for_every_metric(results):
    without_vector = results.assign(latent=results.latent.where(results.layer != "latent"))
    assert control(ek.explore(without_vector), "layer").value == "3"
    maps = results.assign(channelwise=results.channelwise.where(results.layer == "1"))
    widget = ek.explore(maps)
    control(widget, "metric").value = "channelwise"
    assert control(widget, "layer").value == "1"
    assert control(widget, "layer").options == ("1",)
    assert len(shown(widget)) == 4


def test_a_new_metric_is_drawn_once(results, monkeypatch):
    widget = ek.explore(results)
    drawn = []
    monkeypatch.setattr(interactive, "figures", lambda *_, **choice: drawn.append(choice["layer"]) or {})
    control(widget, "metric").value = "channelwise"
    assert drawn == [control(widget, "layer").value]
    control(widget, "layer").value = "0"
    assert drawn[1:] == ["0"]


def test_a_busy_mark_shows_while_figures_are_drawn(results, monkeypatch):
    widget = ek.explore(results)
    busy = next(found for found in walk(widget) if getattr(found, "value", "") == "drawing …")
    seen = []
    monkeypatch.setattr(interactive, "figures", lambda *_, **__: seen.append(busy.layout.visibility) or {})
    control(widget, "element").value = "r90"
    assert (seen, busy.layout.visibility) == (["visible"], "hidden")


def test_no_model_chosen_is_said(results):
    widget = ek.explore(results)
    control(widget, "models").value = ()
    assert not shown(widget)
    assert "<b>models</b>: choose at least one" in html_of(widget)


def test_without_ipywidgets_the_extra_is_named(results, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(ImportError, match=r"eedkit\[notebooks\]"):
        ek.explore(results)
