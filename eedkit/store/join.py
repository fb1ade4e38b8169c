"""The blocks of a study joined to labelled results: one Dataset, or a tree for several data sets or groups.

Knows xarray, never torch. Reads every file once; results larger than `IN_MEMORY` are read again when they are used.
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import xarray as xr

from eedkit.errors import unknown
from eedkit.results import io, schema
from eedkit.results.summary import concat
from eedkit.store.blocks import PAIR_SUM, Block
from eedkit.store.cells import State, Store, slug
from eedkit.store.files import Folder, StoreError

IN_MEMORY = 2**30
"""Bytes of values up to which all are read when a study is opened."""


def open(path: str | PathLike, *, data: str | None = None, group: str | None = None) -> xr.Dataset | xr.DataTree:
    """The results at a path: a study's, or one Dataset that `to_zarr` saved.

    A study of several data sets or groups gives a tree, `tree["digits/test/C4"].ds`; with `data` and `group` it is always one
    Dataset. Models are joined, outer on `layer`. What is not done yet is NaN (predictions −1) or absent, with a warning that
    names it. Every file of a study is read once and held against its name.

    Parameters
    ----------
    path : str or path
        A local path or any address that fsspec knows, "s3://bucket/a".
    data, group : str, or None
        Of a study, by the names that it gave them.

    Raises
    ------
    FileNotFoundError
        There is nothing at `path`.
    SchemaError
        What is there is not of eedkit's schema, or of another one.
    StoreError
        A file of the study is damaged, or nothing of it is done yet.
    """
    address = str(path)
    if io.is_zarr(address):
        return io.open_zarr(address)
    states = Store(address).read()
    if not states:
        raise FileNotFoundError(f"no store at {address}")
    for kind, name in (("data", data), ("group", group)):
        known = list(dict.fromkeys(getattr(cell, kind) for cell in states))
        if name is not None and name not in known:
            raise ValueError(unknown({"data": "data set"}.get(kind, kind), name, known))
    chosen = [state for cell, state in states.items() if data in (None, cell.data) and group in (None, cell.group)]
    return join(address, chosen)


def join(address: str, states: Sequence[State]) -> xr.Dataset | xr.DataTree:
    """The models of one data set and group side by side; a tree of such Datasets where there are several."""
    unfinished = [str(state.cell) for state in states if not state.is_done]
    together: dict[tuple[str, str], list[State]] = {}
    for state in states:
        if state.done:
            together.setdefault((state.cell.data, state.cell.group), []).append(state)
    if not together:
        raise StoreError("nothing is done yet: run the study first, and see its status() for what failed")
    if unfinished:
        more = f"; … ({len(unfinished) - 3} more)" if len(unfinished) > 3 else ""
        warnings.warn(
            f"{len(unfinished)} of {len(states)} cells are not finished, and NaN or absent where they are not: "
            f"{'; '.join(unfinished[:3])}{more}. The study's status() says why",
            stacklevel=3,
        )
    joined = {}
    for (data, group), of_models in together.items():
        joined[f"{_node(data)}/{group}"] = _side_by_side(address, of_models)
    is_alone = len({(state.cell.data, state.cell.group) for state in states}) == 1
    return next(iter(joined.values())) if is_alone else xr.DataTree.from_dict(joined)


def _node(data: str) -> str:
    """A data set's name as a path in a tree, which knows no "..", no "//" and no leading "/"."""
    return data if not {"", ".", ".."} & set(data.split("/")) else slug(data)


@dataclass
class _Model:
    """One model's blocks put together: arrays (…, sample) by name, and what is said of them, from its first block."""

    state: State
    arrays: dict[str, Any]
    places: np.ndarray
    coords: dict[str, dict]
    about: dict[str, Any]

    @property
    def frame(self) -> tuple:
        """What models must have in common to stand in one array."""
        return tuple(self.coords["layer"]["values"]), tuple(self.arrays)


def _read(folder: Folder, state: State, *, lazy: bool) -> _Model:
    """The blocks of a cell that are done, in reading order."""
    numbers = sorted(state.done)
    blocks = []
    for number in numbers:
        name = state.done[number]
        blocks.append(Block.from_bytes(folder.read(name), name))
    first = blocks[0]
    places = []
    for number, block in zip(numbers, blocks, strict=True):
        start, stop = state.bounds[number]
        places.append(np.arange(start, stop))
        if block.size != stop - start:
            raise StoreError(f"{state.done[number]} holds {block.size} samples, its place {stop - start}")
    arrays = {}
    for name, variable in first.about["variables"].items():
        if "sample" not in variable["dims"]:
            continue
        parts = []
        for number, block in zip(numbers, blocks, strict=True):
            parts.append(_lazy(folder, state.done[number], name, block) if lazy else block.arrays[name])
        arrays[name] = parts[0] if len(parts) == 1 else _along_samples(parts, lazy=lazy)
    coords = {}
    for name, coord in first.about["coords"].items():
        values = coord["values"]
        if coord["dims"] == ["sample"]:
            values = []
            for block in blocks:
                values += block.about["coords"][name]["values"]
        coords[name] = {**coord, "values": values}
    model = _Model(
        state,
        arrays,
        places=np.concatenate(places),
        coords=coords,
        about={**first.about, "variables": {name: dict(v) for name, v in first.about["variables"].items()}},
    )
    devices = sorted({block.about["attrs"]["device"] for block in blocks})
    model.about["attrs"] = {**first.about["attrs"], "data": state.settings["data"], "device": ", ".join(devices)}
    _join_states(model, blocks)
    return model


def _along_samples(parts: Sequence, *, lazy: bool) -> Any:
    if not lazy:
        return np.concatenate(parts, axis=-1)
    import dask.array as da

    return da.concatenate(parts, axis=-1)


def _lazy(folder: Folder, file: str, name: str, block: Block) -> Any:
    """An array of a block that is read when it is used."""
    import dask
    import dask.array as da

    like = block.arrays[name]
    return da.from_delayed(dask.delayed(_array)(folder, file, name), like.shape, like.dtype)


def _array(folder: Folder, file: str, name: str) -> np.ndarray:
    return Block.from_bytes(folder.read(file), file).arrays[name]


def _join_states(model: _Model, blocks: Sequence[Block]) -> None:
    """Put in what follows from the blocks' states together: M, dead channels, and why layers have no value."""
    states = {}
    for name in blocks[0].about["states"]:
        states[name] = np.array([block.about["states"][name] for block in blocks])
    metrics, normalised = blocks[0].about["metrics"], blocks[0].about["normalised"]
    variables = model.about["variables"]
    n = len(model.places)
    if "dead_fraction" in variables:
        dead, channels = states["dead"].sum(0), states["live_or_dead"].sum(0)
        model.arrays["dead_fraction"] = np.divide(dead, channels, out=np.full(len(dead), np.nan), where=channels > 0)[
            None
        ]
    # −1 where a layer is undefined; NaN is never skipped, which would drop vectors and keep their number
    defined = (states["pair_n"] >= 0).all(0)
    count = states["pair_n"].clip(min=0).sum(0)
    for i, metric in enumerate(normalised):
        name = f"{metric}_pair_cosine"
        if name not in variables:
            continue
        total = sum(block.arrays[PAIR_SUM][i] for block in blocks)
        pairs = count[i] ** 2 - count[i]
        exact = np.divide((total**2).sum(-1) - count[i], pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
        model.arrays[name] = np.where(defined[i], exact, np.nan)[None]
        variables[name]["attrs"] = {**variables[name]["attrs"], "samples": n}
    for i, metric in enumerate(metrics):
        reasons = [next(filter(None, column), "") for column in states["reason"][:, i].T.tolist()]
        is_output = "layer" not in variables[metric]["dims"]
        for name in (metric, *(metric + ending for ending in schema.ENDINGS)):
            if name in model.arrays and is_output and reasons[0]:
                model.arrays[name] = model.arrays[name] * np.float32(np.nan)
            elif name in model.arrays and not is_output and any(reasons):
                stands = np.array([1.0 if not reason else np.nan for reason in reasons], np.float32)
                array = model.arrays[name]
                model.arrays[name] = array * stands.reshape(1, -1, *[1] * (array.ndim - 2))
        if is_output:
            if reasons[0]:
                variables[metric]["attrs"] = {**variables[metric]["attrs"], "nan_reason": reasons[0]}
            continue
        undefined = states["undefined"][:, i].sum(0)
        said = [reason or schema.partly(int(k), n) for reason, k in zip(reasons, undefined, strict=True)]
        coord = model.coords[f"{metric}_nan_reason"]
        model.coords[f"{metric}_nan_reason"] = {**coord, "values": [said]}


def _side_by_side(address: str, states: Sequence[State]) -> xr.Dataset:
    """The models of one data set and group as a Dataset."""
    folder = Folder(address)
    first = _read(folder, states[0], lazy=False)
    is_large = len(states) * sum(array.nbytes for array in first.arrays.values()) > IN_MEMORY
    models = [_read(folder, state, lazy=is_large) for state in (states if is_large else states[1:])]
    if not is_large:
        models.insert(0, first)
    samples = _samples(models)
    alike: dict[tuple, list[_Model]] = {}
    for model in models:
        alike.setdefault(model.frame, []).append(model)
    datasets = _with_predictions([_dataset(of_frame, samples) for of_frame in alike.values()])
    joined = datasets[0]
    if len(datasets) > 1:
        joined = concat(datasets).sel(model=[state.cell.model for state in states])
    return joined.assign_coords(_columns(states))


def _samples(models: Sequence[_Model]) -> dict[str, xr.Variable]:
    """The coordinates along `sample` of all that any model was measured on, in reading order, and their places in it."""
    fullest = max(models, key=lambda model: len(model.places))
    places = set(fullest.places.tolist())
    others = [model for model in models if not places.issuperset(model.places.tolist())]
    found: dict[str, dict[int, Any]] = {}
    attrs = {}
    for model in (fullest, *others):
        for name, coord in model.coords.items():
            if coord["dims"] == ["sample"]:
                attrs[name] = coord["attrs"]
                found.setdefault(name, {}).update(zip(model.places.tolist(), coord["values"], strict=True))
    order = sorted(found["sample"])
    samples = {"place": xr.Variable("sample", order)}
    for name, by_place in found.items():
        samples[name] = xr.Variable("sample", _array_of([by_place[place] for place in order]), attrs[name])
    return samples


def _dataset(models: Sequence[_Model], samples: dict[str, xr.Variable]) -> xr.Dataset:
    """Models of the same layers and variables side by side."""
    first = models[0]
    order = samples["place"].values
    variables = {}
    for name, variable in first.about["variables"].items():
        parts = [model.arrays[name] for model in models]
        if "sample" in variable["dims"]:
            parts = [_at(order, model.places, part) for model, part in zip(models, parts, strict=True)]
        attrs = _agreed([model.about["variables"][name]["attrs"] for model in models])
        variables[name] = (variable["dims"], parts[0] if len(parts) == 1 else _stacked(parts), attrs)
    coords = {name: variable for name, variable in samples.items() if name != "place"}
    for name, coord in first.coords.items():
        if coord["dims"] == ["sample"]:
            continue
        values = coord["values"]
        if name == "model":
            values = [model.state.cell.model for model in models]
        elif "model" in coord["dims"]:
            values = []
            for model in models:
                values += model.coords[name]["values"]
        coords[name] = (coord["dims"], _array_of(values), coord["attrs"])
    return xr.Dataset(variables, coords, _agreed([model.about["attrs"] for model in models]))


def _stacked(parts: Sequence) -> Any:
    """One after the other along `model`."""
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    import dask.array as da

    return da.concatenate(parts)


def _at(order: np.ndarray, places: np.ndarray, array: Any) -> Any:
    """An array (…, sample) with NaN, or −1, at the places where it was not measured."""
    if len(order) == len(places):
        return array
    blank = -1 if array.dtype.kind == "i" else np.nan
    if isinstance(array, np.ndarray):
        wide = np.full((*array.shape[:-1], len(order)), blank, array.dtype)
        wide[..., np.searchsorted(order, places)] = array
        return wide
    import dask.array as da

    with_blank = da.concatenate([array, da.full((*array.shape[:-1], 1), blank, dtype=array.dtype)], axis=-1)
    come_from = np.full(len(order), len(places))
    come_from[np.searchsorted(order, places)] = np.arange(len(places))
    return with_blank[..., come_from]


def _agreed(several: Sequence[dict]) -> dict:
    """The entries in which none differs from another."""
    agreed: dict[str, Any] = {}
    differing = set()
    for attrs in several:
        for name, value in attrs.items():
            if str(agreed.setdefault(name, value)) != str(value):  # NaN is like NaN
                differing.add(name)
    return {name: value for name, value in agreed.items() if name not in differing}


def _array_of(values: Sequence) -> np.ndarray:
    """Text as objects: fixed-width strings cannot take a longer label later."""
    array = np.array(values)
    return array.astype(object) if array.dtype.kind == "U" else array


def _with_predictions(datasets: Sequence[xr.Dataset]) -> list[xr.Dataset]:
    """Models without class scores beside others: predictions −1, of no confidence."""
    with_scores = next((ds for ds in datasets if "prediction" in ds), None)
    if with_scores is None:
        return list(datasets)
    completed = []
    for ds in datasets:
        if "prediction" not in ds:
            sizes = (ds.sizes["model"], ds.sizes["element"], ds.sizes["sample"])
            for name, blank in (("prediction", np.int32(-1)), ("confidence", np.float32(np.nan))):
                like = with_scores[name]
                ds = ds.assign({name: (like.dims, np.full(sizes, blank), like.attrs)})
        completed.append(ds)
    return completed


def _columns(states: Iterable[State]) -> dict[str, tuple]:
    """What is known of the models' recipes, along `model`; a model that is no recipe is one of its own kind."""
    about = []
    known: set[str] = set()
    for state in states:
        own = {"recipe": state.cell.model, "seed": 0, "changes": ""}
        about.append(own | state.settings["about"])
        known |= state.settings["about"].keys()
    columns = {}
    for name in about[0]:
        if name in known:
            columns[name] = [one[name] for one in about]
    changes = columns.pop("changes", None)
    if changes is not None:
        # seeds of one recipe that was trained in several ways are no replicates of each other
        ways: dict[str, set] = {}
        for recipe, change in zip(columns["recipe"], changes, strict=True):
            ways.setdefault(recipe, set()).add(change)
        for i, (recipe, change) in enumerate(zip(columns["recipe"], changes, strict=True)):
            if len(ways[recipe]) > 1:
                columns["recipe"][i] = f"{recipe} {change}".strip()
    return {name: ("model", _array_of(values)) for name, values in columns.items()}
