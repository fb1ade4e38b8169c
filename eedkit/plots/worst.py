"""The images that deviate most, above what the group made of them, with their classes and the predictions on both.

The one module of `plots` that shows images, and so reads and moves them. Costs the images that are shown.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eedkit.plots import style
from eedkit.plots.figures import datasets_of, from_unmoved
from eedkit.probe import samples
from eedkit.results import labels, schema
from eedkit.results.predictions import predictions

ACROSS = 6
"""Pairs of images side by side."""
LINE = 20
"""Characters of a line above an image, which are as wide as it."""
SPATIAL = "spatial"
"""The action of exact turns, mirrors and shifts, as results name it."""


@dataclass(frozen=True)
class _Case:
    """A sample, its mean deviation from the unmoved image, and the element under which it deviates most, and how far.

    `relative` says whether `largest` is on the scale of relative values, or is the deviation itself.
    """

    sample: Any
    mean: float
    element: str
    largest: float
    relative: bool


def worst(
    results: xr.Dataset | xr.DataTree,
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
    """The n images of largest deviation, each above its moved copy that differs most, with class and predictions.

    Images are ranked by the mean over the elements but the identity of m(f(gx), g f(x)) above its best value *[ours]*.
    Above an image stand its class and what it is taken for, with the probability; above its copy the element, how far
    the copy is from the image relative to other images, and what the copy is taken for. The line below says how often
    the class changed, among these copies and among all.

    Parameters
    ----------
    results : Dataset, or a tree of one
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
    datasets = datasets_of(results)
    if len(datasets) > 1:
        raise ValueError(
            f"this shows the images of one data set, moved by one group; choose among {', '.join(datasets)}"
        )
    one = schema.one_model(datasets[""], model)
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
        fig = style.blank(3.1 * rows, title, question)
        axes = fig.subplots(2 * rows, across, squeeze=False)
        for ax in axes.ravel():
            ax.set_axis_off()
        for k, case in enumerate(cases):
            row = k // across
            upright, moved = axes[2 * row : 2 * row + 2, k % across]
            _show(upright, upright_images[k])
            _show(moved, moved_images[k])
            of_unmoved = [
                _true_class(one, case.sample, class_names),
                _predicted(one, case.sample, identity, class_names),
            ]
            upright.set_title("\n".join(filter(None, of_unmoved)), fontsize=7.5)
            of_moved = [
                f"{style.literal(case.element)}: {case.largest:.2g}",
                _predicted(one, case.sample, case.element, class_names),
            ]
            moved.set_title("\n".join(filter(None, of_moved)), fontsize=7.5)
        style.finish(fig, [], _note(one, metric, cases))
    return fig


def _ranked(one: xr.Dataset, metric: str, layer: str | None) -> list[_Case]:
    """Every sample that has a value, from the largest mean deviation on."""
    far = from_unmoved(one, metric, layer)
    raw = far.raw.isel(model=0).transpose("sample", "element")
    shown = far.on_scale(far.values.isel(model=0).transpose("sample", "element")).values
    elements = raw.element.values
    if not len(elements):
        raise ValueError(f"there is no element but the identity, so no image moves; got {one.element.values.tolist()}")
    cases = []
    for row, sample in enumerate(raw["sample"].values.tolist()):
        of_sample = raw.values[row]
        place = of_sample.argmax()
        cases.append(_Case(sample, float(of_sample.mean()), elements[place], float(shown[row, place]), far.is_relative))
    return sorted(cases, key=lambda case: -case.mean)


def _note(one: xr.Dataset, metric: str, cases: Sequence[_Case]) -> str:
    """What the numbers are, and how often the class changed, of the copies that are shown and of all."""
    note = f"below each image the moved copy that differs most from it, with its {metric.replace('_', ' ')} deviation"
    if cases[0].relative:
        note += " relative to other images (0: as the image above, 1: as far away as a different image)"
    changed = _changed(one, cases)
    kept = predictions(one).kept.mean()
    if changed is not None and not np.isnan(kept):
        note += f". The class changes for {changed} of these {len(cases)}, and for {1 - kept:.0%} of all moved copies"
    return style.literal(note)


def _changed(one: xr.Dataset, cases: Sequence[_Case]) -> int | None:
    """How many of these copies are taken for another class than the image above; None without predictions."""
    identity = one.element.attrs.get("identity", "e")
    changed = 0
    for case in cases:
        upright = _class_number(one, case.sample, identity)
        moved = _class_number(one, case.sample, case.element)
        if upright is None or moved is None:
            return None
        changed += upright != moved
    return changed


def _class_number(one: xr.Dataset, sample: Any, element: str) -> int | None:
    """The class that an image moved by an element is taken for; None where there is none."""
    if "prediction" not in one or element not in one.element.values:
        return None
    number = int(one.prediction.sel(sample=sample, element=element).values.item())
    return None if number < 0 else number


def _true_class(one: xr.Dataset, sample: Any, class_names: Sequence[str]) -> str:
    """The class of an image by its label; empty where it has none."""
    of_image = labels.labelled(one.sel(sample=[sample]))
    if not of_image.sizes["sample"]:
        return ""
    label = of_image.label.item()
    own_names = labels.class_names(one)
    return style.literal(f"class {_name(label, own_names or class_names)}")


def _predicted(one: xr.Dataset, sample: Any, element: str, class_names: Sequence[str]) -> str:
    """What an image moved by an element is taken for, and with what probability; empty without a prediction."""
    number = _class_number(one, sample, element)
    if number is None:
        return ""
    probability = ""
    if "confidence" in one:
        confidence = one.confidence.sel(sample=sample, element=element).values.item()
        probability = "" if np.isnan(confidence) else f" ({confidence:.0%})"
    said = f"predicted {_name(number, class_names)}{probability}"
    return style.literal("\n".join(textwrap.wrap(said, LINE)))


def _name(label: Any, class_names: Sequence[str]) -> Any:
    """The name of a class, or its number where it has none."""
    is_number = not isinstance(label, str) and label < len(class_names)
    return class_names[int(label)] if is_number else label


def _show(ax: Axes, image: Any) -> None:
    """An image (C, H, W); its values are stretched to [0, 1] where they lie outside, as normalised ones do."""
    array = np.moveaxis(np.asarray(image, dtype=float), 0, -1)
    low, high = array.min(), array.max()
    if low < 0 or high > 1:
        array = (array - low) / (high - low or 1)
    if array.shape[-1] not in (1, 3):
        array = array.mean(-1, keepdims=True)
    ax.imshow(array, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
