"""One Dataset saved and opened: as a Zarr store, all at once or not at all; and names of files. Knows xarray, never torch."""

import hashlib
import os
import re
import shutil
from os import PathLike
from pathlib import Path

import xarray as xr

from eedkit.errors import naming_extras
from eedkit.results import schema
from eedkit.results.schema import SchemaError

CHUNK = 4096
"""Samples in a chunk."""
LONGEST_SLUG = 80
"""Bytes of a name that is part of a path; no file system takes names of any length."""


def slug(name: str) -> str:
    """A name as that of a file or a folder.

    >>> slug("digits/test?n=100")
    'digits-test-n-100'
    """
    short = re.sub(r"[^\w.]+", "-", name).strip("-.") or "-"
    if len(short.encode()) <= LONGEST_SLUG:
        return short
    digest = hashlib.blake2b(name.encode(errors="backslashreplace"), digest_size=8).hexdigest()
    return f"{short.encode()[: LONGEST_SLUG - 20].decode(errors='ignore')}-{digest}"


def to_zarr(ds: xr.Dataset, path: str | PathLike, *, overwrite: bool = False) -> None:
    """Save a Dataset of eedkit's schema as a Zarr store, all at once or not at all.

    SchemaError for another Dataset. FileExistsError where there is something at `path` already and `overwrite` is not
    given, or it is no store of eedkit, or a study's.
    """
    _need_zarr()
    ds = schema.validate(ds)
    path = Path(path)
    if path.exists():
        if not overwrite:
            raise FileExistsError(f"{path} exists; choose another name or pass overwrite=True")
        try:
            open_zarr(str(path))
        except (SchemaError, NotADirectoryError):
            raise FileExistsError(
                f"{path} is no store of eedkit, so it is not overwritten; choose another name"
            ) from None
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    aside = path.with_name(f".{path.name}.{os.getpid()}.old")
    path.parent.mkdir(parents=True, exist_ok=True)
    encoding = {}
    for name, variable in ds.data_vars.items():
        chunks = tuple(min(CHUNK, size) if dim == "sample" else size for dim, size in variable.sizes.items())
        encoding[name] = {"chunks": chunks}
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


def is_zarr(address: str) -> bool:
    """Whether there is a Zarr store at a local path or at an address that fsspec knows."""
    if "://" not in address:
        return Path(address, "zarr.json").exists()
    with naming_extras():
        import fsspec

    system, root = fsspec.core.url_to_fs(address)
    return system.exists(f"{root}/zarr.json")


def open_zarr(address: str) -> xr.Dataset:
    """The Dataset that `to_zarr` saved, its values read when they are used; SchemaError for anything else."""
    _need_zarr()
    try:
        ds = xr.open_zarr(address, chunks=None, consolidated=False)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: an array, say
        raise SchemaError(f"{address} is no Zarr store of one Dataset") from None
    if ds.attrs.get("eedkit") == "study":
        raise SchemaError(f"{address} is a study that an earlier eedkit wrote; run it again into another folder")
    return schema.validate(schema.text_as_objects(ds))


def _need_zarr() -> None:
    """Name the extra where zarr is missing; xarray would name the library alone."""
    with naming_extras():
        import zarr  # noqa: F401
