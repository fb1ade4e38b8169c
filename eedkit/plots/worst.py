"""The images that deviate most, beside what the group made of them, with the model's predictions on both.

The one module of `plots` that shows images, and so reads and moves them. Costs the images that are shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eedkit.plots import style
from eedkit.plots.figures import pointwise_values
from eedkit.probe import samples
from eedkit.results import labels, schema

ACROSS = 6
"""Pairs of images side by side."""
SPATIAL = "spatial"
"""The action of exact turns, mirrors and shifts, as results name it."""


@dataclass(frozen=True)
class _Case:
    """A sample, its mean deviation, and the element other than the identity under which it deviates most."""

    sample: Any
    mean: float
    element: str
    largest: float


def worst(
    results: xr.Dataset,
    images: Any,
    *,
    n: int = 6,
    metric: str = "latent",
    layer: str | None = None,
    model: str | None = None,
    action: Any = None,
    class_names: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """The n images of largest deviation, each above its moved copy that deviates most, with the predictions on both.

    Images are ranked by the mean over the elements but the identity of m(f(gx), g f(x)) above its best value *[ours]*.

    Parameters
    ----------
    results : Dataset
        Of `measure`, or what a selection left of it.
    images : tensor, array or data set
        The images that were measured; they are found by their ids.
    n : int
        How many are shown.
    metric : str
        Whose deviation ranks them.
    layer : str, or None
        At which layer; None takes `latent`, or the only one that a selection has left.
    model : str, or None
        Which model's; None where there is one.
    action : Action, or None
        How the group acts on images; None: as exact turns, mirrors and shifts.
    class_names : sequence of str, or None
        Names of the model's classes, by number; None takes those of the labels, where they are as many.
    title : str, or None
        Another title.

    Raises
    ------
    ValueError
        There is no such metric, layer or model, an image is not among these, or the results need their `action`.

    >>> import torch, eedkit as ek
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(25, 3))
    >>> images = torch.rand(8, 1, 5, 5)
    >>> ds = ek.measure(net, images, group="C4", progress=False)
    >>> len(worst(ds, images, n=2).axes)
    4
    """
    one = schema.one_model(results, model)
    if action is None and one.attrs.get("action") != SPATIAL:
        raise ValueError(
            f"the images were moved by the action {one.attrs.get('action')!r}; pass it as action= to see them moved"
        )
    cases = _ranked(one, metric, layer)[:n]
    upright_images = samples.find(images, [case.sample for case in cases])
    moved_images = samples.moved(upright_images, [case.element for case in cases], action or one.attrs["group"])
    identity = one.element.attrs.get("identity", "e")
    across = min(style.across(ACROSS, narrow=3), len(cases))
    rows = -(-len(cases) // across)
    if class_names is None:
        class_names = labels.class_names(one)
        if "classes" not in one.coords or one.classes.item() != len(class_names):
            class_names = []
    name = style.literal(one.model.item())
    with style.theme(grid=False):
        question = f"Which images does {name} treat most differently when they move?"
        fig = style.blank(3.0 * rows, question if title is None else title)
        axes = fig.subplots(2 * rows, across, squeeze=False)
        for ax in axes.ravel():
            ax.set_axis_off()
        for k, case in enumerate(cases):
            row = k // across
            upright, moved = axes[2 * row : 2 * row + 2, k % across]
            _show(upright, upright_images[k])
            _show(moved, moved_images[k])
            upright.set_title(_predicted(one, case.sample, identity, class_names), fontsize=7.5)
            predicted = _predicted(one, case.sample, case.element, class_names)
            moved.set_title(f"{style.literal(case.element)}: {case.largest:.2g}\n{predicted}", fontsize=7.5)
        metric_name = style.literal(one[metric].attrs["long_name"])
        note = f"below each image the moved copy that deviates most, with its {metric_name} above the best value"
        style.finish(fig, [], note)
    return fig


def _ranked(one: xr.Dataset, metric: str, layer: str | None) -> list[_Case]:
    """Every sample that has a value, from the largest mean deviation on."""
    values = pointwise_values(one, metric, layer).isel(model=0).transpose("sample", "element")
    deviations = values.values.astype(float) - one[metric].attrs["best"]
    moves = values.element.values != one.element.attrs.get("identity", "e")
    if not moves.any():
        raise ValueError(
            f"there is no element but the identity, so no image moves; got {values.element.values.tolist()}"
        )
    moving_elements = values.element.values[moves].tolist()
    cases = []
    for sample, of_sample in zip(values["sample"].values.tolist(), deviations, strict=True):
        of_moves = of_sample[moves]
        cases.append(_Case(sample, float(of_sample.mean()), moving_elements[of_moves.argmax()], float(of_moves.max())))
    return sorted(cases, key=lambda case: -case.mean)


def _predicted(one: xr.Dataset, sample: Any, element: str, class_names: Sequence[str]) -> str:
    """What the model says of a moved image; empty where it gives no class."""
    if "prediction" not in one or element not in one.element.values:
        return ""
    prediction = int(one.prediction.sel(sample=sample, element=element).values.item())
    if prediction < 0:
        return ""
    return style.literal(f"predicted {class_names[prediction] if len(class_names) else prediction}")


def _show(ax: Axes, image: Any) -> None:
    """An image (C, H, W); its values are stretched to [0, 1] where they lie outside, as normalised ones do."""
    array = np.moveaxis(np.asarray(image, dtype=float), 0, -1)
    low, high = array.min(), array.max()
    if low < 0 or high > 1:
        array = (array - low) / (high - low or 1)
    if array.shape[-1] not in (1, 3):
        array = array.mean(-1, keepdims=True)
    ax.imshow(array, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
