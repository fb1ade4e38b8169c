"""`ds.eed`: the functions on results as methods of their Dataset, which says what it holds. Holds nothing itself."""

import html
from os import PathLike
from typing import Any

import pandas as pd
import xarray as xr

from eedkit.errors import LONGEST, cut, printable
from eedkit.results import schema
from eedkit.results.contents import describe


@xr.register_datatree_accessor("eed")
class TreeEED:
    """`summary.summarise` for a tree of data sets and groups."""

    def __init__(self, tree: xr.DataTree) -> None:
        self._tree = tree

    def summarise(self, **options: Any) -> pd.DataFrame:
        """`summary.summarise`."""
        from eedkit.results.summary import summarise

        return summarise(self._tree, **options)


@xr.register_dataset_accessor("eed")
class EED:
    """The functions of `eedkit.results` for one Dataset; each method's documentation is the function's.

    Shown by itself, `ds.eed` says what was measured on what and what has no value; in Jupyter the Dataset stands below.
    """

    def __init__(self, ds: xr.Dataset) -> None:
        self._ds = ds

    def __repr__(self) -> str:
        return "\n".join(self._described())

    def _repr_html_(self) -> str:
        lines = [html.escape(printable(line)) for line in self._described()]
        return f"<p><strong>{lines[0]}</strong><br>{'<br>'.join(lines[1:])}</p>{self._ds._repr_html_()}"

    def _described(self) -> list[str]:
        try:
            return describe(self._ds)
        except schema.SchemaError as error:
            return [cut(f"no results to describe: {error}", LONGEST)]

    @property
    def metrics(self) -> list[str]:
        """`schema.metrics_of`."""
        return schema.metrics_of(self._ds)

    def validate(self) -> xr.Dataset:
        """`schema.validate`."""
        return schema.validate(self._ds)

    def summarise(self, **options: Any) -> pd.DataFrame:
        """`summary.summarise`."""
        from eedkit.results.summary import summarise

        return summarise(self._ds, **options)

    def compare(self, baseline: str, **options: Any) -> pd.DataFrame:
        """`summary.compare`."""
        from eedkit.results.summary import compare

        return compare(self._ds, baseline, **options)

    def to_zarr(self, path: str | PathLike, **options: Any) -> None:
        """`io.to_zarr`."""
        from eedkit.results.io import to_zarr

        to_zarr(self._ds, path, **options)
