"""Results in Zarr stores: one Dataset saved at once, or a study's cells joined into one labelled Dataset when opened.

Knows xarray and Zarr, never torch. Opening reads coordinates, and with `verify` every file of a study once; values are
read when they are used.
"""

import os
import shutil
import warnings
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
import xarray as xr

from eedkit.errors import unknown
from eedkit.results import cells, schema
from eedkit.results.cells import FROM_STATES, STATES, Cell, Ledger
from eedkit.results.disk import StoreError, open_group
from eedkit.results.schema import SchemaError

CHUNK = 4096
"""Samples in a chunk of a single Dataset's store."""


def to_zarr(ds: xr.Dataset, path: str | PathLike, *, overwrite: bool = False) -> None:
    """Save a Dataset of eedkit's schema as a Zarr store, all at once or not at all.

    Raises
    ------
    SchemaError
        The Dataset is not of the schema.
    FileExistsError
        There is something at `path` already and `overwrite` is not given, or it is no store of eedkit, or a study's.
    """
    schema.validate(ds)
    path = Path(path)
    if path.exists():
        if not overwrite:
            raise FileExistsError(f"{path} exists; choose another name or pass overwrite=True")
        try:
            _open_one(str(path))
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


def open(
    path: str | PathLike, *, data: str | None = None, group: str | None = None, verify: bool = True
) -> xr.Dataset | xr.DataTree:
    """The Dataset in a store, its values read when they are used; a study's models are joined, outer on `layer`.

    A study of several data sets or groups gives a tree, `tree["digits/test/C4"].ds`; with `data` and `group` it is always one
    Dataset. What is not done yet is NaN (predictions −1), with a warning.

    Parameters
    ----------
    path : a local path or any address that fsspec knows, "s3://bucket/a.zarr"
    data, group : of a study, by the names that it gave them
    verify : read every file of a study once, so that a damaged block is named now; False for a large or a remote store

    Raises
    ------
    FileNotFoundError
        There is no store at `path`.
    SchemaError
        What is there is not of eedkit's schema, or of a newer one.
    StoreError
        A block of the study is damaged, or nothing of it is done yet.
    """
    store = str(path)
    if "://" not in store and not Path(store).exists():
        raise FileNotFoundError(f"no store at {Path(store).absolute()}")
    root = open_group(store)
    if root is None:
        raise SchemaError(f"{path} is no Zarr store")
    if root.attrs.get("eedkit") != "study":
        return _open_one(store)
    schema.refuse_newer(root.attrs["schema"], store)
    found = cells.find(store)
    for kind, name in (("data", data), ("group", group)):
        known = list(dict.fromkeys(getattr(cell, kind) for cell in found))
        if name is not None and name not in known:
            raise ValueError(unknown({"data": "data set"}.get(kind, kind), name, known))
    chosen = [cell for cell in found if data in (None, cell.data) and group in (None, cell.group)]
    return join(chosen, verify=verify)


def join(chosen: Sequence[Cell], *, verify: bool = True) -> xr.Dataset | xr.DataTree:
    """The models of one data set and group side by side; a tree of such Datasets where there are several."""
    if verify:
        refuse_damage(chosen)
    together: dict[tuple[str, str], list[tuple[Ledger, xr.Dataset]]] = {}
    unfinished = []
    for cell in chosen:
        ledger = cell.ledger()
        ds = values(cell, ledger)
        if ds is not None:
            together.setdefault((cell.data, cell.group), []).append((ledger, ds))
        if ledger is None or not ledger.done.all():
            unfinished.append(str(cell))
    if not together:
        raise StoreError("nothing is done yet: run the study first, and see its status() for what failed")
    if unfinished:
        warnings.warn(
            f"{len(unfinished)} of {len(chosen)} cells are not finished, and NaN or absent where they are not: "
            f"{'; '.join(unfinished[:3])}{'; …' if len(unfinished) > 3 else ''}. The study's status() says why",
            stacklevel=3,
        )
    joined = {f"{_node(data)}/{group}": _side_by_side(models) for (data, group), models in together.items()}
    alone = len({(cell.data, cell.group) for cell in chosen}) == 1
    return next(iter(joined.values())) if alone else xr.DataTree.from_dict(joined)


def refuse_damage(chosen: Sequence[Cell]) -> None:
    """StoreError that names the first damaged block of the cells; reads everything that is marked done."""
    for cell in chosen:
        for block in damaged(cell):
            ledger = cell.ledger()
            raise StoreError(
                f"block {block} of {cell} (images {ledger.start[block]} to {ledger.stop[block] - 1} in reading order) in "
                f"{cell.store} is damaged: a file is missing or fails its checksum. study.run(repair=True), or "
                "`eedkit study run --repair`, computes it again"
            )


def damaged(cell: Cell) -> list[int]:
    """Blocks marked done of which a file is missing or altered; all of them where what they share is."""
    ledger = cell.ledger()
    done = [] if ledger is None else np.flatnonzero(ledger.done).tolist()
    if not done:
        return []
    try:
        group = open_group(cell.store, f"{cell.path}/values", whole=True)
        dims = {name: set(array.metadata.dimension_names) for name, array in group.arrays()}
        if set(schema.from_json(group.attrs["arrays"])) != set(dims):
            return done
        in_blocks = [name for name in dims if "block" in dims[name] or {"model", "sample"} <= dims[name]]
        for name in set(dims) - set(in_blocks):
            group[name][...]
        arrays = [group[name] for name in in_blocks]
    except (ValueError, AttributeError):
        return done
    return [
        block
        for block in done
        if not all(_whole(array, block, int(ledger.start[block]), int(ledger.stop[block])) for array in arrays)
    ]


def _whole(array, block: int, start: int, stop: int) -> bool:
    """Whether every file of one block of an array is there and fits its checksum."""
    axis = 0 if array.metadata.dimension_names[0] == "block" else array.ndim - 1
    if axis == 0:
        start, stop = block, block + 1
    try:
        array[(slice(None),) * axis + (slice(start, stop),)]
    except ValueError:
        return False
    return True


def values(cell: Cell, ledger: Ledger | None) -> xr.Dataset | None:
    """A cell's Dataset, NaN (and −1) where blocks are not done; None before any is."""
    if ledger is None or not ledger.done.any():
        return None
    ds = xr.open_zarr(cell.store, group=f"{cell.path}/values", chunks=None, consolidated=False)
    shared = open_group(cell.store, f"{cell.path}/values", whole=True)
    try:
        coords = {name: (c.dims, shared[name][...], c.attrs) for name, c in ds.coords.items()}
    except (ValueError, KeyError) as error:
        raise StoreError(
            f"the coordinates of {cell} in {cell.store} are damaged ({error}); study.run(repair=True) computes the cell again"
        ) from error
    ds = ds.assign_coords(coords)
    states = ds[list(STATES)].isel(block=np.flatnonzero(ledger.done)).load()
    order = [name for metric in states.metric.values.tolist() for name in (metric, f"{metric}_null")]
    chunk, wanted = int(ledger.stop[0]), [name for name in (*order, *schema.BESIDE) if name in ds]
    lazy = {
        name: ds[name].variable.chunk(sample=chunk) if "sample" in ds[name].dims else ds[name].variable
        for name in wanted
    }
    # dropped and assigned, since a selection of variables would lose coordinates on `layer` that only they have
    ds = schema.text_as_objects(ds.drop_vars([*ds.data_vars, "metric"]).assign(lazy))
    if not ledger.done.all():
        here = xr.DataArray(ledger.images_done, dims="sample")
        for name, variable in ds.data_vars.items():
            if "sample" in variable.dims:
                ds[name] = variable.where(here, -1 if variable.dtype.kind == "i" else np.nan)
    ds = _with_states(ds, states, int(ledger.images_done.sum()))
    for name in ("variables", "arrays"):
        ds.attrs.pop(name)
    ds.attrs["data"] = ledger.settings["data"]
    ds.attrs["device"] = ", ".join(ledger.devices)
    return ds


def _node(data: str) -> str:
    """A data set's name as a path in a tree, which knows no "..", no "//" and no leading "/"."""
    return data if not {"", ".", ".."} & set(data.split("/")) else cells.slug(data)


def _side_by_side(models: Sequence[tuple[Ledger, xr.Dataset]]) -> xr.Dataset:
    from eedkit.results.summary import concat

    about = [ledger.settings["about"] for ledger, _ in models]
    shared = [name for name in about[0] if all(name in one for one in about)]
    columns = {name: [one[name] for one in about] for name in shared}
    changes = columns.pop("changes", [])
    if len(set(zip(columns.get("recipe", []), changes, strict=False))) > len(set(columns.get("recipe", []))):
        # seeds of one recipe that was trained in several ways are no replicates of each other
        columns["recipe"] = [
            f"{name} {change}".strip() for name, change in zip(columns["recipe"], changes, strict=True)
        ]
    return concat(_with_predictions([ds for _, ds in models]), **columns)


def _with_predictions(datasets: Sequence[xr.Dataset]) -> list[xr.Dataset]:
    """Models without class scores beside others: −1, of no confidence."""
    like = next((ds for ds in datasets if "prediction" in ds), None)
    if like is None:
        return list(datasets)
    blank = {"prediction": -1, "confidence": np.nan}
    return [
        ds
        if "prediction" in ds
        else ds.assign(
            {
                name: like[name].variable.copy(data=xr.full_like(like[name].variable, fill).data)
                for name, fill in blank.items()
            }
        )
        for ds in datasets
    ]


def _with_states(ds: xr.Dataset, states: xr.Dataset, n: int) -> xr.Dataset:
    """What follows from the blocks' states together: M, dead channels, and why layers are undefined."""
    of_layer = {}
    # −1 where a layer is undefined; NaN is never skipped, which would drop vectors and keep their number
    defined = (states.pair_n >= 0).all("block")
    total, count = states.pair_sum.sum("block", skipna=False), states.pair_n.clip(min=0).sum("block")
    pair = ((total**2).sum("feature", skipna=False) - count) / (count**2 - count).where(count > 1)
    of_layer["latent_pair_cosine"] = pair.where(defined)
    channels = states.live_or_dead.sum("block")
    of_layer["dead_fraction"] = states.dead.sum("block") / channels.where(channels > 0)
    for name in set(FROM_STATES) & set(ds.data_vars):
        ds[name] = ds[name].copy(data=of_layer[name].values[None])
    if "latent_norm" in ds and not defined.all():
        ds["latent_norm"] = ds.latent_norm.where(xr.DataArray(defined.values, dims="layer"))
    if "latent_pair_cosine" in ds:
        ds.latent_pair_cosine.attrs["samples"] = n
    for metric in states.metric.values.tolist():
        told = states.sel(metric=metric)
        whole = [next((reason for reason in column if reason), "") for column in told.reason.values.T.tolist()]
        if "layer" not in ds[metric].dims:
            if whole[0]:
                for name in {metric, f"{metric}_null"} & set(ds.data_vars):
                    ds[name] = ds[name].where(False)
                ds[metric].attrs["nan_reason"] = whole[0]
            continue
        partly = [schema.partly(int(k), n) for k in told.undefined.sum("block").values]
        reasons = np.array([a or b for a, b in zip(whole, partly, strict=True)], dtype=object)
        ds = ds.assign_coords({f"{metric}_nan_reason": (("model", "layer"), reasons[None])})
        stands = xr.DataArray([not reason for reason in whole], dims="layer")
        for name in (metric, f"{metric}_null"):
            if name in ds and not stands.all():
                ds[name] = ds[name].where(stands)
    return ds


def _open_one(store: str) -> xr.Dataset:
    try:
        ds = xr.open_zarr(store, chunks=None, consolidated=False)
    except (FileNotFoundError, NotADirectoryError):
        raise SchemaError(f"{store} is no Zarr store") from None
    return schema.validate(schema.text_as_objects(ds))
