"""How often a model's prediction is right, and how often it stays, by element of the group.

Knows xarray and the schema. Costs one look at the predictions.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from eedkit.errors import Undefined
from eedkit.results.intervals import share_interval
from eedkit.results.labels import class_names, is_right

MOVED = "moved"
"""In the place of an element: the mean over all but the identity."""


@dataclass(frozen=True)
class Predictions:
    """What the predictions of one model show.

    accuracy : part of the images with a label that are right, by element; NaN for the reason `no_accuracy`
    kept : part of the images that get the class of their unmoved selves, by element but the identity; NaN without any
    null : how often two different images, both unmoved, get the same class, which is what `kept` must be held against
    classes : how many images get each class, unmoved, the most frequent first
    n, n_labelled : images that have a prediction, and images that have a label, too
    """

    accuracy: pd.Series
    no_accuracy: str
    kept: pd.Series
    null: float
    classes: pd.Series
    n: int
    n_labelled: int
    identity: str

    @property
    def upright(self) -> float:
        """The accuracy on the unmoved images; NaN where there is none."""
        return float(self.accuracy[self.accuracy.index == self.identity].mean())

    @property
    def of_moved(self) -> pd.Series:
        """The accuracy by element but the identity."""
        return self.accuracy.drop(self.identity, errors="ignore")

    @property
    def moved(self) -> float:
        """The mean accuracy over the elements but the identity."""
        return float(self.of_moved.mean())

    @property
    def names_one_class(self) -> bool:
        """Whether all images get one class, unmoved."""
        return len(self.classes) == 1 and self.n > 1


def predictions(one: xr.Dataset) -> Predictions:
    """What the predictions of one model show, by element; all NaN where it gives no class.

    Examples
    --------
    >>> predicted = xr.DataArray([[0, 1, 1], [0, 0, 0]], dims=("element", "sample"), coords={"element": ["e", "m"]})
    >>> found = predictions(xr.Dataset({"prediction": predicted}, {"label": ("sample", [0, 1, 0])}))
    >>> found.accuracy.round(2).to_dict(), found.kept.round(2).to_dict(), round(found.null, 2)
    ({'e': 0.67, 'm': 0.67}, {'m': 0.33}, 0.33)
    """
    one = one.isel(model=0) if "model" in one.dims else one
    elements = pd.Index(one.element.values)
    identity = one.element.attrs.get("identity", "e")
    accuracy = pd.Series(np.nan, index=elements)
    n_labelled = 0
    try:
        right = right_in_own_classes(one)
        no_accuracy = "" if right.notnull().any() else "no image has both a label and a prediction"
        accuracy = right.mean("sample").reindex(element=elements).to_series()
        n_labelled = int(right.notnull().any("element").sum())
    except Undefined as why:
        no_accuracy = str(why)
    kept = pd.Series(np.nan, index=elements.drop(identity, errors="ignore"))
    null = np.nan
    classes = pd.Series(dtype=int)
    if has_predictions(one) and identity in elements:
        predicted = one.prediction.transpose("element", "sample").to_pandas()
        of_unmoved = predicted.loc[identity]
        is_known = (predicted >= 0) & (of_unmoved >= 0)
        kept = (predicted == of_unmoved).where(is_known).astype(float).mean(axis=1).drop(identity)
        classes = of_unmoved[of_unmoved >= 0].value_counts()
        null = _same_class(classes)
    return Predictions(accuracy, no_accuracy, kept, null, classes, int(classes.sum()), n_labelled, str(identity))


def by_element(one: xr.Dataset) -> pd.DataFrame:
    """Rows of `summarise`: accuracy by element where images have labels, and the part of predictions kept with its null.

    The row "moved" is the mean over the elements but the identity. The intervals are Wilson's of so many images, which
    have a width at 0 and 1, too; that of a mean is on the safe side, since copies of an image are no images of their own.
    """
    if not has_predictions(one):
        return pd.DataFrame()
    found = predictions(one)
    shares = {}
    if "label" in one.coords:
        shares["accuracy"] = (found.accuracy, found.moved, np.nan, found.n_labelled, found.no_accuracy)
    if found.n:
        shares["prediction kept"] = (found.kept, found.kept.mean(), found.null, found.n, _says_nothing(one, found))
    tables = []
    for metric, (share, of_moved, null, n, reason) in shares.items():
        if len(share) > 1:
            share = pd.concat([share, pd.Series({MOVED: of_moved})])
        low, high = share_interval(share.to_numpy(), n)
        rows = {
            "metric": metric,
            "layer": "",
            "element": [str(name) for name in share.index],
            "estimate": share.to_numpy(),
        }
        tables.append(pd.DataFrame({**rows, "low": low, "high": high, "null": null, "n": n, "reason": reason}))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _says_nothing(one: xr.Dataset, found: Predictions) -> str:
    """Why a kept prediction says nothing of the model; empty where it does."""
    if not found.names_one_class:
        return ""
    names = class_names(one)
    named = int(found.classes.index[0])
    return (
        f"every unmoved image gets class {names[named] if named < len(names) else named}, so that it stays says nothing"
    )


def right_in_own_classes(one: xr.Dataset) -> xr.DataArray:
    """`is_right` of one model; Undefined, too, where labels do not count the classes that the model scores."""
    right = is_right(one if has_predictions(one) else one.drop_vars("prediction", errors="ignore"))
    if "classes" in one.coords and right.size:
        classes = one.classes.item()
        names = class_names(one)
        if names and len(names) != classes:
            raise Undefined(f"the images are of {len(names)} classes, the model's scores of {classes}")
        low, high = right.label.values.min(), right.label.values.max()
        if low < 0 or high >= classes:
            raise Undefined(f"the labels run from {low} to {high}, the model's classes from 0 to {classes - 1}")
    return right


def has_predictions(one: xr.Dataset) -> bool:
    """Whether the model gives classes."""
    return "prediction" in one and ("classes" not in one.coords or one.classes.item() > 0)


def _same_class(counts: pd.Series) -> float:
    """Σ n_c (n_c − 1) / (n (n − 1)): the squared shares of the classes, summed, no image paired with itself."""
    n = int(counts.sum())
    return float((counts * (counts - 1)).sum() / (n * (n - 1))) if n > 1 else np.nan
