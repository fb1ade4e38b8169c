"""Results in Zarr stores: one Dataset saved at once, or a study's cells joined into one labelled Dataset when opened.

Knows xarray and Zarr, never torch. Opening reads coordinates, and with `verify` every file of a study once; values are
read when they are used.
"""

import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from eedkit.errors import unknown
from eedkit.results import cells, schema
from eedkit.results.cells import STATES, Cell, Ledger
from eedkit.results.disk import StoreError, open_group, read
from eedkit.results.schema import SchemaError

CHUNK = 4096  # samples, in a single Dataset's store
KEPT = 2**20
"""Bytes of a cell that stay in memory once they were read to be verified; to read them again would take longer."""


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
    schema.refuse_other(root.attrs["schema"], store)
    found = cells.find(store)
    for kind, name in (("data", data), ("group", group)):
        known = list(dict.fromkeys(getattr(cell, kind) for cell in found))
        if name is not None and name not in known:
            raise ValueError(unknown({"data": "data set"}.get(kind, kind), name, known))
    chosen = [cell for cell in found if data in (None, cell.data) and group in (None, cell.group)]
    return join([(cell, cell.ledger()) for cell in chosen], verify=verify)


def join(chosen: Sequence[tuple[Cell, Ledger | None]], *, verify: bool = True) -> xr.Dataset | xr.DataTree:
    """The models of one data set and group side by side; a tree of such Datasets where there are several."""
    together: dict[tuple[str, str], list[tuple[Ledger, xr.Dataset]]] = {}
    unfinished = []
    for cell, ledger in chosen:
        ds = values(cell, ledger, verify=verify)
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
    alone = len({(cell.data, cell.group) for cell, _ in chosen}) == 1
    return next(iter(joined.values())) if alone else xr.DataTree.from_dict(joined)


class DamageError(StoreError):
    """Blocks marked done of which a file is missing or altered; all of them where what they share is."""

    def __init__(self, cell: Cell, ledger: Ledger, blocks: Sequence[int]) -> None:
        self.blocks = list(blocks)
        start, stop = ledger.start[self.blocks[0]], ledger.stop[self.blocks[0]]
        super().__init__(
            f"block {self.blocks[0]} of {cell} (images {start} to {stop - 1} in reading order) in {cell.store} is damaged: a "
            "file is missing or fails its checksum. study.run(repair=True), or `eedkit study run --repair`, computes it again"
        )


def damaged(cell: Cell, ledger: Ledger) -> list[int]:
    """The blocks of a `DamageError`; reads everything that is marked done."""
    try:
        values(cell, ledger, verify=True)
    except DamageError as error:
        return error.blocks
    return []


def _held(cell: Cell, ledger: Ledger, *, verify: bool) -> tuple[dict, dict[str, Any], dict[str, np.ndarray]]:
    """Attributes, arrays, and what of these is in memory: what blocks share, the states of those that are done, and with
    `verify`, which reads the values too, block by block, these where they are few."""
    done = np.flatnonzero(ledger.done).tolist()
    try:
        group = open_group(cell.store, f"{cell.path}/values", whole=True)
        found = {} if group is None else dict(group.arrays())
        names = schema.from_json(group.attrs["arrays"]) if found else []
    except (ValueError, TypeError, KeyError, AttributeError):  # what Zarr throws depends on the byte that is wrong
        found, names = {}, []
    if not names or set(names) != set(found):
        raise DamageError(cell, ledger, done)
    arrays = {name: found[name] for name in names}
    dims = {name: array.metadata.dimension_names for name, array in arrays.items()}
    in_blocks = [name for name in names if "block" in dims[name] or {"model", "sample"} <= set(dims[name])]
    shared = [name for name in names if name not in in_blocks]
    memory = dict(zip(shared, read((arrays[name], ...) for name in shared), strict=True))
    if any(isinstance(found, ValueError) for found in memory.values()):
        raise DamageError(cell, ledger, done)
    few = sum(array.nbytes for array in arrays.values()) < KEPT and ledger.done.all()
    kept = in_blocks if verify and few else STATES
    bad, read_parts = set(), {name: [] for name in kept}
    # without values this is little, and a remote store is asked but once
    for blocks in [[block] for block in done] if verify else [done]:
        parts = [(name, block) for block in blocks for name in (in_blocks if verify else STATES)]
        for (name, block), part in zip(
            parts, read((arrays[n], _place(dims[n], b, ledger)) for n, b in parts), strict=True
        ):
            if isinstance(part, ValueError):
                bad.add(block)
            elif name in kept:
                read_parts[name].append(part)
    if bad:
        raise DamageError(cell, ledger, sorted(bad))
    axis = {name: 0 if "block" in dims[name] else -1 for name in kept}
    memory |= {name: np.concatenate(parts, axis=axis[name]) for name, parts in read_parts.items()}
    return dict(group.attrs), arrays, memory


def _place(dims: Sequence[str], block: int, ledger: Ledger) -> Any:
    """Of one block in an array."""
    return slice(block, block + 1) if "block" in dims else (..., slice(ledger.start[block], ledger.stop[block]))


def _lazy(array: Any, ledger: Ledger) -> Any:
    """A Zarr array as a Dask array; NaN, or −1, where blocks are not done, whose files need not be there."""
    import dask.array as da

    # a name of its own, since to make one from what it holds takes longer than all else
    options = {"name": False, "meta": np.empty((0,) * array.ndim, array.dtype)}
    lazy = da.from_array(array, chunks=(*array.shape[:-1], int(ledger.stop[0])), **options)
    if ledger.done.all():
        return lazy
    parts, blank = [], -1 if array.dtype.kind == "i" else np.nan
    for done, start, stop in zip(ledger.done, ledger.start, ledger.stop, strict=True):
        part = lazy[..., start:stop]
        parts.append(part if done else da.full_like(part, blank))
    return da.concatenate(parts, axis=-1)


def values(cell: Cell, ledger: Ledger | None, *, verify: bool = False) -> xr.Dataset | None:
    """A cell's Dataset, NaN (and −1) where blocks are not done; None before any is."""
    if ledger is None or not ledger.done.any():
        return None
    attrs, arrays, memory = _held(cell, ledger, verify=verify)
    of = {
        name: xr.Variable(
            array.metadata.dimension_names,
            memory[name] if name in memory else _lazy(array, ledger),
            # what xarray needs when it opens the store itself
            {key: value for key, value in array.attrs.items() if key not in ("coordinates", "_FillValue")},
        )
        for name, array in arrays.items()
    }
    states, metrics = {name: of.pop(name) for name in STATES}, of.pop("metric").values.tolist()
    _with_states(of, states, metrics, int(ledger.images_done.sum()))
    measured = schema.from_json(attrs["variables"])
    order = [f"{metric}{suffix}" for metric in metrics for suffix in ("", "_null", "_pair_cosine", "_norm")]
    return xr.Dataset(
        {name: of[name] for name in (*order, *schema.BESIDE) if name in of},
        {name: variable for name, variable in of.items() if name not in measured},
        {key: value for key, value in attrs.items() if key not in ("variables", "arrays", "coordinates")}
        | {"data": ledger.settings["data"], "device": ", ".join(ledger.devices)},
    )


def _node(data: str) -> str:
    """A data set's name as a path in a tree, which knows no "..", no "//" and no leading "/"."""
    return data if not {"", ".", ".."} & set(data.split("/")) else cells.slug(data)


def _side_by_side(models: Sequence[tuple[Ledger, xr.Dataset]]) -> xr.Dataset:
    from eedkit.results.summary import concat

    # a model that is no recipe is one of its own kind
    told = [ledger.settings["about"] for ledger, _ in models]
    about = [
        {"recipe": ds.model.item(), "seed": 0, "changes": ""} | one for (_, ds), one in zip(models, told, strict=True)
    ]
    columns = {name: [one[name] for one in about] for name in about[0] if any(name in one for one in told)}
    if "changes" in columns:
        # seeds of one recipe that was trained in several ways are no replicates of each other
        several = [name for name, _ in set(zip(columns["recipe"], columns.pop("changes"), strict=True))]
        columns["recipe"] = [
            f"{one['recipe']} {one['changes']}".strip() if several.count(one["recipe"]) > 1 else one["recipe"]
            for one in about
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


def _with_states(of: dict[str, xr.Variable], states: Mapping[str, xr.Variable], metrics: Sequence[str], n: int) -> None:
    """Put in what follows from the blocks' states together: M, dead channels, and why layers are undefined."""
    # −1 where a layer is undefined; NaN is never skipped, which would drop vectors and keep their number
    defined = (states["pair_n"] >= 0).all("block")
    total, count = states["pair_sum"].sum("block", skipna=False), states["pair_n"].clip(min=0).sum("block")
    pairs = ((total**2).sum("feature", skipna=False) - count) / (count**2 - count).where(count > 1)
    channels = states["live_or_dead"].sum("block")
    follows = {"dead_fraction": states["dead"].sum("block") / channels.where(channels > 0)}
    for metric, pair in zip(of.pop("normalised").values.tolist(), pairs.where(defined), strict=True):
        follows[f"{metric}_pair_cosine"] = pair
    for name, found in follows.items():
        if name in of:
            of[name] = of[name].copy(data=found.values[None])
            if name.endswith("_pair_cosine"):
                of[name].attrs["samples"] = n
    for i, metric in enumerate(metrics):
        reasons, undefined = (states[name].isel(metric=i) for name in ("reason", "undefined"))
        whole = [next((reason for reason in column if reason), "") for column in reasons.values.T.tolist()]
        beside = [name for name in (metric, f"{metric}_null", f"{metric}_norm") if name in of]
        if "layer" not in of[metric].dims:
            if whole[0]:
                of |= {name: of[name].where(False) for name in beside}
                of[metric].attrs["nan_reason"] = whole[0]
            continue
        partly = [schema.partly(int(k), n) for k in undefined.sum("block").values]
        said = np.array([a or b for a, b in zip(whole, partly, strict=True)], dtype=object)
        of[f"{metric}_nan_reason"] = xr.Variable(("model", "layer"), said[None])
        stands = xr.Variable("layer", [not reason for reason in whole])
        if not stands.all():
            of |= {name: of[name].where(stands) for name in beside}


def _open_one(store: str) -> xr.Dataset:
    try:
        ds = xr.open_zarr(store, chunks=None, consolidated=False)
    except (FileNotFoundError, NotADirectoryError):
        raise SchemaError(f"{store} is no Zarr store") from None
    return schema.validate(schema.text_as_objects(ds))
