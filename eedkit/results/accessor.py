"""`ds.eed`: what was measured and what came out, said first, and how it is saved. Holds nothing itself."""

import html
from os import PathLike
from typing import Any

import xarray as xr

from eedkit.errors import LONGEST, cut, printable
from eedkit.results import schema
from eedkit.results.summary import summarise

UNREAD = "not read yet: .load() reads the values"


@xr.register_dataset_accessor("eed")
class EED:
    """Shown by itself it says what was measured, above the table of `summarise`; in Jupyter the Dataset stands below."""

    def __init__(self, ds: xr.Dataset) -> None:
        self._ds = ds

    def __repr__(self) -> str:
        try:
            ds = schema.validate(self._ds)
        except schema.SchemaError as error:
            return cut(f"no results to describe: {error}", LONGEST)
        return f"{_extent(ds)}\n{UNREAD if _is_lazy(ds) else summarise(ds)}"

    def _repr_html_(self) -> str:
        try:
            ds = schema.validate(self._ds)
        except schema.SchemaError:
            return f"<pre>{html.escape(repr(self))}</pre>{self._ds._repr_html_()}"
        table = UNREAD if _is_lazy(ds) else summarise(ds)._repr_html_()
        return f"<p><strong>{html.escape(printable(_extent(ds)))}</strong></p>{table}{self._ds._repr_html_()}"

    def to_zarr(self, path: str | PathLike, **options: Any) -> None:
        """`io.to_zarr`."""
        from eedkit.results.io import to_zarr

        to_zarr(self._ds, path, **options)


def _is_lazy(ds: xr.Dataset) -> bool:
    return any(variable.chunks is not None for variable in ds.data_vars.values())


def _extent(ds: xr.Dataset) -> str:
    """How many models, layers, elements and samples of what.

    >>> from eedkit.results.example import example
    >>> _extent(example())
    '4 models × 6 layers × 4 elements of C4 × 60 samples of digits/test?per_class=6'
    """
    factors = [_counted(ds.sizes["model"], "model")]
    if "layer" in ds.dims:
        factors.append(_counted(ds.sizes["layer"], "layer"))
    factors.append(f"{_counted(ds.sizes['element'], 'element')} of {ds.attrs['group']}")
    # "spec [fingerprint]" in a study; a fingerprint alone tells a reader nothing
    spec = str(ds.attrs.get("data", "")).rpartition(" [")[0]
    factors.append(_counted(ds.sizes["sample"], "sample") + (f" of {spec}" if spec else ""))
    return " × ".join(factors)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
