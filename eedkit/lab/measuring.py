"""`measure` by specs: a model and images that are named are loaded for each other; all else goes to `probe.measure` as it is.

Must not know layers or metrics. Costs what loading costs; a recipe that was never trained is tried on a few images before.
"""

import inspect
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np
import xarray as xr
from torch import nn

from eedkit.probe import measure as probe
from eedkit.probe.measure import Options, measure_block
from eedkit.probe.samples import chain_length, preprocessing
from eedkit.progress import note
from eedkit.results.labels import class_names
from eedkit.theory import deviation

ONE_CLASS = 0.95
"""The part of the images that are taken for one class, from which on that is doubtful."""
ENOUGH = 20
"""Images, below which nothing is said of predictions."""
CHANCE = 0.05
"""The probability of as many right predictions by chance, from which on they are no better."""

Arguments = ParamSpec("Arguments")


def _by_specs(measure: Callable[Arguments, xr.Dataset]) -> Callable[Arguments, xr.Dataset]:
    signature = inspect.signature(measure)
    call: Callable[..., xr.Dataset] = measure

    @wraps(measure)
    def measure_named(*args: Arguments.args, **kwargs: Arguments.kwargs) -> xr.Dataset:
        given = signature.bind(*args, **kwargs).arguments
        if isinstance(given["model"], str):
            given |= _loaded(given)
        elif isinstance(given["images"], str | Path):
            from eedkit.lab import images

            given["images"] = images.load(given["images"])
            note(f"Preprocessing: {preprocessing(given['images'])}", show=given.get("progress", True))
        ds = call(**given)
        for doubt in doubts(ds):
            warnings.warn(doubt, stacklevel=2)
        return ds

    return measure_named


def _loaded(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments that stand in place of a model's spec, and of the images' where they are named, too."""
    from eedkit.lab import models, recipes

    spec = given["model"]
    images = given["images"]
    options = Options(**{key: value for key, value in given.items() if key in Options.__dataclass_fields__})

    def how(loaded: models.Loaded) -> dict[str, Any]:
        layers = given.get("layers") or loaded.layers or "blocks"
        return {"head": given.get("head") or loaded.head, "layers": layers}

    show = given.get("progress", True)
    if isinstance(images, str | Path):
        if recipes.untrained([models.resolve(spec).trained_by]):
            untrained, some_images = models.with_images(spec, images, weights=False)
            _try(untrained.model, some_images, replace(options, **how(untrained)), given.get("labels"))
        loaded, images = models.with_images(spec, images)
        note(f"Preprocessing for {spec}: {preprocessing(images)}", show=show)
    else:
        loaded = models.load(spec)
        note(f"Images for {spec} are taken as given: {preprocessing(images) or 'unknown preprocessing'}", show=show)
    return {"model": loaded.model, "images": images, "name": given.get("name") or spec, **how(loaded)}


def _try(model: nn.Module, images: Any, options: Options, labels: Any) -> None:
    """Measure the first few images with random weights: what is wrong is known before the training."""
    chain = deviation.chains(len(images), chain_length(options.action.group.order, options.null))[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come again
        measure_block(model, images, options, places=chain, labels=labels)


def doubts(ds: xr.Dataset) -> list[str]:
    """Why a model may not have been able to read its images, as its predictions on the unmoved ones show; [] if it could.

    Either nearly all images are taken for one class, or no more of them are right than if the largest class were named for
    all (by a binomial test). Nothing is said of few images, nor where labels and predictions do not count the same classes.

    Examples
    --------
    >>> predicted = xr.DataArray(np.zeros((1, 1, 30)), dims=("model", "element", "sample"), coords={"element": ["e"]})
    >>> ds = xr.Dataset({"prediction": predicted}, {"model": ["net"], "classes": ("model", [2])})
    >>> doubts(ds)[0][:50]
    'net predicts class 0 for 30 of 30 images: it may b'
    """
    if "prediction" not in ds or "classes" not in ds.coords:
        return []
    identity = ds.element.attrs.get("identity", "e")
    if identity not in ds.element.values:
        return []
    found = []
    for name in np.atleast_1d(ds.model.values):
        one = ds.sel(model=name) if "model" in ds.dims else ds
        finding = _finding(one.prediction.sel(element=identity).values, _labels(one), int(one.classes))
        if finding:
            found.append(
                f"{name} {finding}: it may be unable to read the images, or untrained. Preprocessing: "
                f"{ds.attrs.get('preprocessing') or 'unknown, the images were taken as given'}. Compare size, channels, "
                "normalisation and the numbers of the classes with its training; ?size= in the images' spec sets the size"
            )
    return found


def _labels(one: xr.Dataset) -> np.ndarray:
    """The classes of the images; -1 where there is none, or where they are not the model's."""
    classes = int(one.classes)
    if "label" in one.coords and one.label.dtype.kind in "iu" and len(class_names(one)) in (0, classes):
        labels = one.label.values
        if labels.max(initial=0) < classes:
            return labels
    return np.full(one.sizes["sample"], -1)


def _finding(predicted: np.ndarray, labels: np.ndarray, classes: int) -> str:
    """What is doubtful about the predictions, or nothing."""
    has_prediction = predicted >= 0
    if classes < 2 or has_prediction.sum() < ENOUGH:
        return ""
    known = has_prediction & (labels >= 0)
    most_named, count = _most(predicted[has_prediction])
    if count >= ONE_CLASS * has_prediction.sum():
        is_told_by_labels = known.any() and (labels[known] == most_named).mean() >= ONE_CLASS
        return "" if is_told_by_labels else f"predicts class {most_named} for {count} of {has_prediction.sum()} images"
    if known.sum() < ENOUGH:
        return ""
    from scipy.stats import binomtest

    right = int((predicted == labels)[known].sum())
    n = int(known.sum())
    part_of_largest = _most(labels[known])[1] / n
    could_tell = part_of_largest**n < CHANCE  # if all were right
    if could_tell and binomtest(right, n, part_of_largest, alternative="greater").pvalue > CHANCE:
        return f"is right on {right} of {n} images, no more than chance ({part_of_largest:.0%} are of one class)"
    return ""


def _most(numbers: np.ndarray) -> tuple[int, int]:
    """The most frequent number, and how often it is there."""
    values, counts = np.unique(numbers, return_counts=True)
    place = counts.argmax()
    return int(values[place]), int(counts[place])


measure = _by_specs(probe.measure)
