"""`ek.explore`: the figures of `ek.plots` for the metric, models, layer, element and class that are chosen by hand.

Knows Datasets and ipywidgets. Computes what the current choice shows, so results may be larger than memory.
"""

import html
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from eedkit.errors import naming_extras
from eedkit.explorer.pictures import inline_svg
from eedkit.plots.figures import class_heatmap, datasets_of, depth_profile, histogram, orbit_rose
from eedkit.plots.style import width
from eedkit.plots.worst import worst
from eedkit.results import schema
from eedkit.results.labels import class_names, labelled

if TYPE_CHECKING:
    import ipywidgets

ALL = "all"
"""The choice of no single element or class."""
FEW = 4
"""Models that are shown at first."""
BUSY = "<label>Drawing … <progress></progress></label>"
COLUMNS = "repeat(auto-fit, minmax(min(100%, 34rem), 1fr))"
"""One figure beside the other where each has room to be read."""


def explore(results: xr.Dataset | xr.DataTree, images: Any = None, *, n: int = 6) -> "ipywidgets.Widget":
    """Slice results by hand in Jupyter: depth profile, histogram over samples, orbit rose, classes, and the worst images.

    Every figure follows the controls: data set and group, metric, models, layer, element, class.

    Parameters
    ----------
    results : Dataset or DataTree
        Of `measure`, `Study.run` or `open`.
    images : tensor, array or data set, or None
        The images that were measured, to show those that deviate most beside their moved selves, with the predictions.
    n : int
        How many images are shown.

    Returns
    -------
    Widget
        The controls and the figures.

    Raises
    ------
    ModuleNotFoundError
        ipywidgets is not installed.

    Examples
    --------
    >>> import eedkit as ek
    >>> widget = explore(ek.example())
    """
    with naming_extras():
        import ipywidgets as widgets

    places = datasets_of(results)
    where = widgets.Dropdown(options=list(places), description="results")
    below = widgets.VBox()

    def show_place(_change: object = None) -> None:
        below.children = _controls_and_figures(widgets, places[str(where.value)], images, n)

    where.observe(show_place, "value")
    show_place()
    return widgets.VBox([where, below] if len(places) > 1 else [below])


def _controls_and_figures(widgets: Any, results: xr.Dataset, images: Any, n: int) -> list["ipywidgets.Widget"]:
    models = results.model.values.tolist()
    metrics = schema.metrics_of(results)
    controls = {
        "metric": widgets.Dropdown(options=metrics, value="latent" if "latent" in metrics else metrics[0]),
        "models": widgets.SelectMultiple(options=models, value=models[:FEW]),
        "layer": widgets.Dropdown(),
        "element": widgets.Dropdown(options=[ALL, *results.element.values.tolist()]),
        "class": widgets.Dropdown(options=[(ALL, ALL), *_classes(results)]),
    }
    for name, control in controls.items():
        control.description = name
    layer = controls["layer"]
    busy = widgets.HTML(BUSY)
    grid = widgets.GridBox(layout=widgets.Layout(grid_template_columns=COLUMNS, grid_gap="1.5rem"))

    def draw(_change: object = None) -> None:
        busy.layout.visibility = "visible"
        try:
            chosen = {name: control.value for name, control in controls.items()}
            if not chosen["models"]:
                grid.children = [widgets.HTML("Choose at least one model.")]
                return
            layers = _layers_with_values(results, chosen["metric"], chosen["models"])
            if list(layer.options) != layers:
                layer.unobserve(draw, "value")
                layer.options = layers
                layer.value = chosen["layer"] if chosen["layer"] in layers else next(reversed(layers), None)
                layer.observe(draw, "value")
            drawn = _figures(_sliced(results, chosen), chosen["metric"], layer.value, images, n)
            grid.children = [widgets.HTML(picture) for picture in drawn]
        finally:
            busy.layout.visibility = "hidden"

    for control in controls.values():
        control.observe(draw, "value")
    draw()
    row = widgets.HBox(list(controls.values()), layout=widgets.Layout(flex_flow="row wrap"))
    return [row, busy, grid]


def _classes(results: xr.Dataset) -> list[tuple[str, Any]]:
    """Every class that some image has, by its name, or by its number where it has none."""
    names = class_names(results)
    labels = np.unique(labelled(results).label.values).tolist() if "label" in results.coords else []
    return [(str(names[label]) if names else str(label), label) for label in labels]


def _layers_with_values(results: xr.Dataset, metric: str, models: tuple[str, ...]) -> list[str]:
    """The layers at which a metric has a value for some image, for one of the models; none of an output's."""
    values = results[metric].sel(model=list(models)).isel(element=0)
    if "layer" not in values.dims:
        return []
    return values.layer.values[values.notnull().any(["model", "sample"]).values].tolist()


def _sliced(results: xr.Dataset, chosen: dict[str, Any]) -> xr.Dataset:
    """The chosen models, element and class, without the variables of other metrics."""
    of_others = []
    for metric in schema.metrics_of(results):
        if metric != chosen["metric"]:
            of_others += [metric, *(metric + ending for ending in schema.ENDINGS)]
    part = results.drop_vars(of_others, errors="ignore").sel(model=list(chosen["models"]))
    if chosen["element"] != ALL:
        part = part.sel(element=[chosen["element"]])
    if chosen["class"] != ALL:
        part = part.isel(sample=np.flatnonzero(results.label.values == chosen["class"]))
    return part


def _figures(results: xr.Dataset, metric: str, layer: str | None, images: Any, n: int) -> list[str]:
    """What is shown of a slice, as HTML: figures, and in the place of one that cannot be drawn why.

    Without a layer, as an output is, it has no depth.
    """
    drawings = {}
    if layer is not None:
        is_relative = f"{metric}_null" in results
        drawings["depth profile"] = partial(depth_profile, results, metric=metric, relative=is_relative)
    drawings |= {
        "histogram": partial(histogram, results, metric=metric, layer=layer),
        "orbit rose": partial(orbit_rose, results, metric=metric, layer=layer),
        "class heatmap": partial(class_heatmap, results, metric=metric, layer=layer),
    }
    if images is not None:
        model = results.model.values[0]
        drawings["worst images"] = partial(worst, results, images, n=n, model=model, metric=metric, layer=layer)
    shown = []
    for name, draw in drawings.items():
        # three images beside each other, so that what stands above them has room
        with width("column" if name == "worst images" else "neurips"):
            try:
                shown.append(inline_svg(draw(), name))
            except ValueError as why:
                shown.append(f"<p>No {name}: {html.escape(str(why))}.</p>")
    return shown
