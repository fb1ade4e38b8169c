"""`ek.explore`: the figures of `ek.plots` for the metric, models, layer, element and class that are chosen by hand.

Knows Datasets and ipywidgets. Computes what the current choice shows, so results may be larger than memory.
"""

import html
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from eedkit import plots
from eedkit.errors import naming_extras
from eedkit.results import schema
from eedkit.results.labels import labelled

if TYPE_CHECKING:
    import ipywidgets

ALL = "all"
"""The choice of no single element or class."""
FEW = 6
"""Models that are shown at first."""
STYLE = """<style>
.eedkit-figures { grid-template-columns: repeat(auto-fit, minmax(min(40rem, 100%), 1fr)); }
.eedkit-figures img { width: 100%; max-width: 48rem; border-radius: 4px; }
</style>"""
"""Two figures side by side where there is room for them."""


@dataclass(frozen=True)
class Choice:
    """What is looked at: a slice of the results, and whether depth profiles are relative."""

    metric: str
    models: tuple[str, ...]
    layer: str
    element: str = ALL
    label: Any = ALL
    relative: bool = True


def first_choice(results: xr.Dataset) -> Choice:
    """What is shown before anything is chosen: the latent vector, or the last layer with values, of the first models.

    >>> import torch, eedkit as ek
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(25, 3))
    >>> first_choice(ek.measure(net, torch.rand(4, 1, 5, 5), group="C4", progress=False))
    Choice(metric='latent', models=('Sequential',), layer='latent', element='all', label='all', relative=True)
    """
    metrics = schema.metrics_of(results)
    metric = "latent" if "latent" in metrics else metrics[0]
    layers = _layers_with_values(results, metric) or _layers(results)
    return Choice(
        metric=metric,
        models=tuple(results.model.values.tolist()[:FEW]),
        layer="latent" if "latent" in layers else layers[-1],
        relative=f"{metric}_null" in results,
    )


def _layers(results: xr.Dataset) -> list[str]:
    """All layers; an empty name where the metrics are of the output alone."""
    return results.layer.values.tolist() if "layer" in results.dims else [""]


def _layers_with_values(results: xr.Dataset, metric: str) -> list[str]:
    """The layers at which a metric has values; none for a metric of the output."""
    values = results[metric]
    if "layer" not in values.dims:
        return []
    has_values = values.notnull().any([dim for dim in values.dims if dim != "layer"])
    return values.layer.values[has_values.values].tolist()


def figures(results: xr.Dataset, choice: Choice, images: Any = None, *, n: int = 6) -> dict[str, Figure | str]:
    """What `explore` shows for a choice: by name a figure, or why there is none.

    Parameters
    ----------
    results : Dataset
        Of one data set and one group.
    choice : Choice
        The slice.
    images : tensor, array or data set, or None
        The images that were measured; with them those of the first chosen model that deviate most are shown.
    n : int
        How many of these.

    Examples
    --------
    >>> import torch, eedkit as ek
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(25, 3))
    >>> ds = ek.measure(net, torch.rand(4, 1, 5, 5), group="C4", progress=False)
    >>> figures(ds, first_choice(ds))["class heatmap"]
    'a class heatmap needs labels: measure(labels=…), or images that have labels of their own'
    """
    chosen = _sliced(results, choice)
    at_layer = {"metric": choice.metric}
    if "layer" in chosen[choice.metric].dims:
        at_layer["layer"] = choice.layer
    drawn: dict[str, Figure | str] = {}

    def attempt(name: str, draw: Callable[..., Figure], *arguments: Any, **options: Any) -> None:
        try:
            drawn[name] = draw(*arguments, **options)
        except ValueError as error:
            drawn[name] = str(error)

    attempt("depth profile", plots.depth_profile, chosen, metric=choice.metric, relative=choice.relative)
    attempt("histogram", plots.histogram, chosen, **at_layer)
    attempt("orbit rose", plots.orbit_rose, chosen, **at_layer)
    attempt("class heatmap", plots.class_heatmap, chosen, **at_layer)
    if images is not None:
        attempt("worst images", plots.worst, chosen, images, n=n, model=choice.models[0], **at_layer)
    return drawn


def _sliced(results: xr.Dataset, choice: Choice) -> xr.Dataset:
    """The chosen models, element and class, without the variables of other metrics."""
    of_others = []
    for metric in schema.metrics_of(results):
        if metric != choice.metric:
            of_others += [metric, *(metric + ending for ending in schema.ENDINGS)]
    chosen = results.drop_vars(of_others, errors="ignore").sel(model=list(choice.models))
    if choice.element != ALL:
        chosen = chosen.sel(element=[choice.element])
    if choice.label != ALL:
        chosen = chosen.isel(sample=np.flatnonzero(results.label.values == choice.label))
    return chosen


def explore(results: xr.Dataset | xr.DataTree, images: Any = None, *, n: int = 6) -> "ipywidgets.Widget":
    """Slice results by hand in Jupyter: depth profile, histogram over samples, orbit rose, classes, and the worst images.

    Every figure follows the controls: data set and group, metric, models, layer, element, class, raw or relative. The depth
    profile is drawn before them, so that an executed notebook shows it where widgets are blank.

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
    >>> import torch, eedkit as ek
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(25, 3))
    >>> widget = explore(ek.measure(net, torch.rand(4, 1, 5, 5), group="C4", progress=False))
    Figure(...)
    """
    with naming_extras():
        import ipywidgets as widgets
        from IPython.display import display

    places = _places(results)
    title, first = next(iter(places.items()))
    start = first_choice(first)
    display(plots.depth_profile(_sliced(first, start), metric=start.metric, relative=start.relative))
    where = widgets.Dropdown(options=list(places), value=title, description="results")
    below = widgets.VBox()

    def show_place(_change: object = None) -> None:
        below.children = [_controls(widgets, places[where.value], images, n)]

    where.observe(show_place, "value")
    show_place()
    return widgets.VBox([where, below] if len(places) > 1 else [below])


def _controls(widgets: Any, results: xr.Dataset, images: Any, n: int) -> "ipywidgets.Widget":
    """The controls of one Dataset, and below them its figures."""
    start = first_choice(results)
    labels = [ALL]
    known = labelled(results)
    if known.sizes["sample"]:
        labels += np.unique(known.label.values).tolist()
    controls = {
        "metric": widgets.Dropdown(options=schema.metrics_of(results), value=start.metric),
        "models": widgets.SelectMultiple(options=results.model.values.tolist(), value=start.models),
        "layer": widgets.Dropdown(options=_layers(results), value=start.layer),
        "element": widgets.Dropdown(options=[ALL, *results.element.values.tolist()], value=ALL),
        "label": widgets.Dropdown(options=labels, value=ALL),
        "relative": widgets.Checkbox(value=start.relative, description="relative depth profile"),
    }
    for name, control in controls.items():
        control.description = control.description or ("class" if name == "label" else name)
    busy = widgets.HTML("drawing …")
    grid = widgets.GridBox()
    grid.add_class("eedkit-figures")

    def follow_metric(_change: object) -> None:
        layers = _layers_with_values(results, controls["metric"].value)
        if layers and controls["layer"].value not in layers:
            controls["layer"].value = layers[-1]  # which draws
        else:
            redraw()

    def redraw(_change: object = None) -> None:
        busy.layout.visibility = "visible"
        try:
            draw()
        finally:
            busy.layout.visibility = "hidden"

    def draw() -> None:
        choice = Choice(**{name: control.value for name, control in controls.items()})
        if not choice.models:
            grid.children = [widgets.HTML("choose at least one model")]
            return
        drawn = figures(results, choice, images, n=n)
        grid.children = [_shown(widgets, name, figure) for name, figure in drawn.items()]

    for name, control in controls.items():
        control.observe(follow_metric if name == "metric" else redraw, "value")
    redraw()
    choices = widgets.HBox([*controls.values(), busy], layout=widgets.Layout(flex_flow="row wrap"))
    return widgets.VBox([widgets.HTML(STYLE), choices, grid])


def _shown(widgets: Any, name: str, figure: Figure | str) -> "ipywidgets.Widget":
    if isinstance(figure, str):
        return widgets.HTML(f"<b>{name}</b>: {html.escape(figure)}")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110, bbox_inches="tight", facecolor="white")
    return widgets.Image(value=picture.getvalue(), format="png")


def _places(results: xr.Dataset | xr.DataTree) -> dict[str, xr.Dataset]:
    """Every Dataset by its place in the tree; one alone by its group."""
    if isinstance(results, xr.Dataset):
        results = schema.validate(results)
        return {str(results.attrs["group"]): results}
    return {leaf.path.strip("/"): schema.validate(leaf.to_dataset()) for leaf in results.leaves}
