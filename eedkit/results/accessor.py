"""`ds.eed`: what a Dataset holds, said first, and how it is saved. Holds nothing itself."""

import html
from os import PathLike
from typing import Any

import xarray as xr

from eedkit.errors import LONGEST, cut, printable
from eedkit.results import schema
from eedkit.results.contents import describe


@xr.register_dataset_accessor("eed")
class EED:
    """Shown by itself it says what was measured on what and what has no value; in Jupyter the Dataset stands below."""

    def __init__(self, ds: xr.Dataset) -> None:
        self._ds = ds

    def __repr__(self) -> str:
        return "\n".join(self._described())

    def _repr_html_(self) -> str:
        first, *others = (html.escape(printable(line)) for line in self._described())
        below = "\n".join(others)
        return f"<p><strong>{first}</strong></p><pre>{below}</pre>{self._ds._repr_html_()}"

    def _described(self) -> list[str]:
        try:
            return describe(self._ds)
        except schema.SchemaError as error:
            return [cut(f"no results to describe: {error}", LONGEST)]

    def to_zarr(self, path: str | PathLike, **options: Any) -> None:
        """`io.to_zarr`."""
        from eedkit.results.io import to_zarr

        to_zarr(self._ds, path, **options)
