"""`ds.eed`: the functions on results as methods of their Dataset. Holds nothing, adds nothing."""

from os import PathLike

import pandas as pd
import xarray as xr

from eedkit.results import schema


@xr.register_datatree_accessor("eed")
class TreeEED:
    """`summary.summarise` for a tree of data sets and groups."""

    def __init__(self, tree: xr.DataTree) -> None:
        self._tree = tree

    def summarise(self, **options: object) -> pd.DataFrame:
        """`summary.summarise`."""
        from eedkit.results.summary import summarise

        return summarise(self._tree, **options)


@xr.register_dataset_accessor("eed")
class EED:
    """The functions of `eedkit.results` for one Dataset; each method's documentation is the function's."""

    def __init__(self, ds: xr.Dataset) -> None:
        self._ds = ds

    @property
    def metrics(self) -> list[str]:
        """The metrics in the Dataset: `schema.metrics_of`."""
        return schema.metrics_of(self._ds)

    def validate(self) -> xr.Dataset:
        """`schema.validate`."""
        return schema.validate(self._ds)

    def summarise(self, **options: object) -> pd.DataFrame:
        """`summary.summarise`."""
        from eedkit.results.summary import summarise

        return summarise(self._ds, **options)

    def compare(self, baseline: str, **options: object) -> pd.DataFrame:
        """`summary.compare`."""
        from eedkit.results.summary import compare

        return compare(self._ds, baseline, **options)

    def to_zarr(self, path: str | PathLike, **options: object) -> None:
        """`io.to_zarr`."""
        from eedkit.results.io import to_zarr

        to_zarr(self._ds, path, **options)
