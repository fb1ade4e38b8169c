"""One Dataset in one Zarr store: written beside its place and moved there when whole, opened lazily.

Knows xarray and Zarr, never torch. Costs one write; opening reads the coordinates alone.
"""

import os
import shutil
from os import PathLike
from pathlib import Path

import xarray as xr

from eedkit.results import schema
from eedkit.results.schema import SchemaError

CHUNK = 4096
"""Samples in a chunk of the store."""


def to_zarr(ds: xr.Dataset, path: str | PathLike, *, overwrite: bool = False) -> None:
    """Save a Dataset of eedkit's schema as a Zarr store, all at once or not at all.

    Raises
    ------
    SchemaError
        The Dataset is not of the schema.
    FileExistsError
        There is something at `path` already and `overwrite` is not given, or it is no store of eedkit.
    """
    schema.validate(ds)
    path = Path(path)
    if path.exists():
        if not overwrite:
            raise FileExistsError(f"{path} exists; choose another name or pass overwrite=True")
        try:
            open(path)
        except (SchemaError, NotADirectoryError):
            raise FileExistsError(
                f"{path} is no store of eedkit, so it is not overwritten; choose another name"
            ) from None
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    aside = path.with_name(f".{path.name}.{os.getpid()}.old")
    path.parent.mkdir(parents=True, exist_ok=True)
    encoding = {
        name: {"chunks": tuple(min(CHUNK, size) if dim == "sample" else size for dim, size in variable.sizes.items())}
        for name, variable in ds.data_vars.items()
    }
    try:
        ds.drop_encoding().to_zarr(beside, mode="w", zarr_format=3, consolidated=False, encoding=encoding)
        if path.exists():
            path.rename(aside)
        beside.rename(path)
    finally:
        if aside.exists() and not path.exists():
            aside.rename(path)
        for rest in (beside, aside):
            shutil.rmtree(rest, ignore_errors=True)


def open(path: str | PathLike) -> xr.Dataset:
    """The Dataset in a Zarr store, its values read when they are used.

    Raises
    ------
    FileNotFoundError
        There is no store at `path`.
    SchemaError
        What is there is not of eedkit's schema, or of a newer one.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no store at {path.absolute()}")
    try:
        ds = xr.open_zarr(path, chunks=None, consolidated=False)
    except (FileNotFoundError, NotADirectoryError):
        raise SchemaError(f"{path} is no Zarr store") from None
    for name, coordinate in ds.coords.items():
        if coordinate.dtype.kind in "UT":
            ds = ds.assign_coords({name: coordinate.astype(object)})
    return schema.validate(ds)
