"""Whether a model could read its images, as its predictions show. Knows xarray and scipy; costs one look at the predictions."""

import numpy as np
import xarray as xr
from scipy.special import bdtrc

from eedkit.results.labels import class_names

ONE_CLASS = 0.95
"""The part of the images that are taken for one class, from which on that is doubtful."""
ENOUGH = 20
"""Images, below which nothing is said of predictions."""
CHANCE = 0.05
"""The probability of as many right predictions by chance, from which on they are no better."""


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
    right = int((predicted == labels)[known].sum())
    n = int(known.sum())
    part_of_largest = _most(labels[known])[1] / n
    could_tell = part_of_largest**n < CHANCE  # if all were right
    as_many_by_chance = bdtrc(
        right - 1, n, part_of_largest
    )  # the binomial test without scipy.stats, a second to import
    if could_tell and as_many_by_chance > CHANCE:
        return f"is right on {right} of {n} images, no more than chance ({part_of_largest:.0%} are of one class)"
    return ""


def _most(numbers: np.ndarray) -> tuple[int, int]:
    """The most frequent number, and how often it is there."""
    values, counts = np.unique(numbers, return_counts=True)
    place = counts.argmax()
    return int(values[place]), int(counts[place])
