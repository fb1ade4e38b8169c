"""Labels of samples: which of them have one, and whether it was predicted. −1, or an empty text, is no label and no class.

Knows xarray and the schema. Costs one comparison for each prediction.
"""

import json
from typing import TypeVar

import numpy as np
import xarray as xr

from eedkit.errors import Undefined

Results = TypeVar("Results", xr.Dataset, xr.DataArray)


def labelled(ds: Results) -> Results:
    """The samples that have a label; none of them where there is no coordinate `label`.

    >>> labelled(xr.Dataset(coords={"label": ("sample", [3, -1, 0])})).label.values.tolist()
    [3, 0]
    """
    if "label" not in ds.coords:
        return ds.isel(sample=[])
    no_label = "" if ds.label.dtype.kind in "OU" else -1
    return ds.isel(sample=np.flatnonzero(ds.label.values != no_label))


def class_names(ds: xr.Dataset) -> list[str]:
    """The names of the classes that labels count, by number; empty where the images had none.

    They are an attribute of `label`, as JSON, since a netCDF file holds no list of texts.

    >>> class_names(xr.Dataset(coords={"label": ("sample", [1, 0], {"class_names": '["cat", "dog"]'})}))
    ['cat', 'dog']
    """
    return json.loads(ds.label.attrs.get("class_names", "[]")) if "label" in ds.coords else []


def is_right(ds: xr.Dataset) -> xr.DataArray:
    """1 where the label is predicted, 0 where it is not, NaN without a prediction; of the samples that have a label.

    Raises
    ------
    Undefined
        There are no labels or no predictions, or the labels are no numbers of classes.

    >>> ds = xr.Dataset({"prediction": ("sample", [3, 1, -1])}, {"label": ("sample", [3, -1, 0])})
    >>> is_right(ds).values.tolist()
    [1.0, nan]
    """
    if "label" not in ds.coords:
        raise Undefined("the images have no labels")
    if "prediction" not in ds:
        raise Undefined("there are no predictions, as of a model whose output is no class scores")
    if ds.label.dtype.kind not in "iub":
        raise Undefined("the labels are names or fractions, the predictions are numbers of classes")
    known = labelled(ds)
    return (known.prediction == known.label).where(known.prediction >= 0)
