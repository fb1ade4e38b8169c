"""`ek.explore`: the figures of `ek.plots` for the metric, models, layer, element and class that are chosen by hand.

Knows Datasets and ipywidgets. Computes what the current choice shows, so results may be larger than memory.
"""

import html
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from eedkit import plots
from eedkit.errors import naming_extras
from eedkit.explorer.pictures import svg
from eedkit.results import schema
from eedkit.results.labels import labelled

if TYPE_CHECKING:
    import ipywidgets

ALL = "all"
"""The choice of no single element or class."""
FEW = 6
"""Models that are shown at first."""
STYLE = """<style>
.eedkit-figures { grid-template-columns: repeat(auto-fill, minmax(min(24rem, 100%), 1fr)); gap: 1rem; }
.eedkit-figures svg { display: block; width: 100%; max-width: 34rem; color: var(--jp-ui-font-color1, currentColor); }
</style>"""
"""Three figures side by side where there is room for them, in JupyterLab's text colour."""


def explore(results: xr.Dataset | xr.DataTree, images: Any = None, *, n: int = 6) -> "ipywidgets.Widget":
    """Slice results by hand in Jupyter: depth profile, histogram over samples, orbit rose, classes, and the worst images.

    Every figure follows the controls: data set and group, metric, models, layer, element and class.

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

    places = _places(results)
    where = widgets.Dropdown(options=list(places), description="results")
    below = widgets.VBox()

    def show_place(_change: object = None) -> None:
        below.children = [_controls(widgets, places[where.value], images, n)]

    where.observe(show_place, "value")
    show_place()
    return widgets.VBox([where, below] if len(places) > 1 else [below])


def _places(results: xr.Dataset | xr.DataTree) -> dict[str, xr.Dataset]:
    """Every Dataset by its place in the tree; one alone by its group."""
    if isinstance(results, xr.Dataset):
        results = schema.validate(results)
        return {str(results.attrs["group"]): results}
    return {leaf.path.strip("/"): schema.validate(leaf.to_dataset()) for leaf in results.leaves}


def _controls(widgets: Any, results: xr.Dataset, images: Any, n: int) -> "ipywidgets.Widget":
    """The controls of one Dataset, and below them its figures."""
    metrics = sorted(schema.metrics_of(results), key=lambda metric: metric != "latent")
    models = results.model.values.tolist()
    classes = np.unique(labelled(results).label.values).tolist() if "label" in results.coords else []
    controls = {
        "metric": widgets.Dropdown(options=metrics, description="metric"),
        "layer": widgets.Dropdown(description="layer"),
        "models": widgets.SelectMultiple(options=models, value=models[:FEW], description="models"),
        "element": widgets.Dropdown(options=[ALL, *results.element.values.tolist()], description="element"),
        "label": widgets.Dropdown(options=[ALL, *classes], description="class"),
    }
    busy = widgets.HTML("drawing …")
    grid = widgets.GridBox()
    grid.add_class("eedkit-figures")

    def choose_layer() -> None:
        layers = _layers_with_values(results, controls["metric"].value)
        chosen = controls["layer"].value
        controls["layer"].options = layers
        if layers:
            controls["layer"].value = chosen if chosen in layers else layers[-1]

    def draw(change: Any = None) -> None:
        busy.layout.visibility = "visible"
        try:
            if change is None or change.owner is controls["metric"]:
                controls["layer"].unobserve(draw, "value")
                choose_layer()
                controls["layer"].observe(draw, "value")
            choice = {name: control.value for name, control in controls.items()}
            drawn = figures(results, **choice, images=images, n=n)
            grid.children = [_shown(widgets, name, figure) for name, figure in drawn.items()]
        finally:
            busy.layout.visibility = "hidden"

    for control in controls.values():
        control.observe(draw, "value")
    draw()
    choices = widgets.HBox([*controls.values(), busy], layout=widgets.Layout(flex_flow="row wrap"))
    return widgets.VBox([widgets.HTML(STYLE), choices, grid])


def _layers_with_values(results: xr.Dataset, metric: str) -> list[str]:
    """The layers at which a metric has values; none for a metric of the output."""
    values = results[metric]
    if "layer" not in values.dims:
        return []
    has_values = values.notnull().any([dim for dim in values.dims if dim != "layer"])
    return values.layer.values[has_values.values].tolist()


def _shown(widgets: Any, name: str, figure: Figure | str) -> "ipywidgets.Widget":
    return widgets.HTML(svg(figure) if isinstance(figure, Figure) else f"<b>{name}</b>: {html.escape(figure)}")


def figures(
    results: xr.Dataset,
    *,
    metric: str = "latent",
    layer: str | None = "latent",
    models: Sequence[str],
    element: str = ALL,
    label: Any = ALL,
    images: Any = None,
    n: int = 6,
) -> dict[str, Figure | str]:
    """What `explore` shows for a choice: by name a figure, or why there is none.

    >>> import eedkit as ek
    >>> drawn = figures(ek.example().drop_vars("label"), models=["plain"])
    >>> drawn["class heatmap"]
    'a class heatmap needs labels: measure(labels=…), or images that have labels of their own'
    """
    if not models:
        return {"models": "choose at least one"}
    of_others = []
    for other in schema.metrics_of(results):
        if other != metric:
            of_others += [other, *(other + ending for ending in schema.ENDINGS)]
    chosen = results.drop_vars(of_others, errors="ignore").sel(model=list(models))
    if element != ALL:
        chosen = chosen.sel(element=[element])
    if label != ALL:
        chosen = chosen.isel(sample=np.flatnonzero(results.label.values == label))
    at_layer = {"metric": metric, "layer": layer}
    is_relative = f"{metric}_null" in results
    draw = {
        "depth profile": partial(plots.depth_profile, chosen, metric=metric, relative=is_relative),
        "histogram": partial(plots.histogram, chosen, **at_layer),
        "orbit rose": partial(plots.orbit_rose, chosen, **at_layer),
        "class heatmap": partial(plots.class_heatmap, chosen, **at_layer),
    }
    if images is not None:
        draw["worst images"] = partial(plots.worst, chosen, images, n=n, model=models[0], **at_layer)
    drawn: dict[str, Figure | str] = {}
    for name, figure in draw.items():
        try:
            with plots.width("column"):
                drawn[name] = figure()
        except ValueError as error:
            drawn[name] = str(error)
    return drawn
