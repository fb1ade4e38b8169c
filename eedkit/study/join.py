"""The blocks of a study joined to labelled results: one Dataset, or a tree for several data sets or groups.

Knows xarray, never torch. Reads every file once; results larger than `IN_MEMORY` are read again when they are used.
"""

import uuid
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from os import PathLike
from typing import Any

import numpy as np
import xarray as xr

from eedkit.errors import cut, unknown
from eedkit.results import io, schema
from eedkit.results.summary import concat
from eedkit.study.blocks import PAIR_SUM, Block
from eedkit.study.files import StoreError
from eedkit.study.store import State, Store

IN_MEMORY = 2**30
"""Bytes of values up to which all are read when a study is opened."""
SHOWN = 300
"""Characters of a setting that a message repeats."""


def open(
    path: str | PathLike,
    *,
    data: str | None = None,
    group: str | None = None,
    models: str | Sequence[str] | None = None,
    metrics: str | Sequence[str] | None = None,
) -> xr.Dataset | xr.DataTree:
    """The results at a path: a study's, or one Dataset that `to_zarr` saved.

    A study of several data sets or groups gives a tree, `tree["digits/test/C4"].ds`; with `data` and `group` it is always one
    Dataset. Models are joined by the ids of samples, and outer on `layer`. What is not done yet is NaN (predictions −1) or
    absent, with a warning that names it. Every file of a study is read once and held against its name and its place.

    Parameters
    ----------
    path : str or path
        A local path or any address that fsspec knows, "s3://bucket/a".
    data, group : str, or None
        Of a study, by the names that it gave them.
    models, metrics : str or sequence of str, or None
        These alone; models of which the metrics were not measured are left out, with a warning.

    Raises
    ------
    FileNotFoundError
        There is nothing at `path`.
    SchemaError
        What is there is not of eedkit's schema, or of another one.
    StoreError
        A file of the study is damaged, nothing of it is done yet, or its models were measured on other images or in another
        way, so that they cannot stand in one Dataset; says which to choose.
    """
    address = str(path)
    models = [models] if isinstance(models, str) else models
    metrics = [metrics] if isinstance(metrics, str) else metrics
    if io.is_zarr(address):
        return _chosen_of(io.open_zarr(address), models, metrics)
    store = Store(address)
    cells = store.cells()
    if not cells:
        raise FileNotFoundError(f"no store at {address}")
    data_sets = None if data is None else [data]
    groups = None if group is None else [group]
    for kind, name, asked in (("data set", "data", data_sets), ("group", "group", groups), ("model", "model", models)):
        _refuse_unknown(kind, asked, [getattr(cell, name) for cell in cells])
        cells = [cell for cell in cells if asked is None or getattr(cell, name) in asked]
    return join(store, [store.state(cell) for cell in cells], metrics)


def _refuse_unknown(kind: str, asked: Iterable[str] | None, known: Iterable[str]) -> None:
    """ValueError for a name that is not there, with near ones."""
    known = list(dict.fromkeys(known))
    for name in asked or ():
        if name not in known:
            raise ValueError(unknown(kind, name, known))


def _chosen_of(ds: xr.Dataset, models: Sequence[str] | None, metrics: Sequence[str] | None) -> xr.Dataset:
    """These models and metrics of one Dataset."""
    _refuse_unknown("model", models, ds.model.values)
    if models is not None:
        ds = ds.sel(model=list(models))
    _refuse_unknown("metric", metrics, schema.metrics_of(ds))
    return ds.drop_vars(_names_of_others(schema.metrics_of(ds), metrics), errors="ignore")


def _names_of_others(measured: Iterable[str], chosen: Sequence[str] | None) -> set[str]:
    """The variables and coordinates of metrics that are not chosen."""
    names = set()
    for metric in measured:
        if chosen is not None and metric not in chosen:
            names |= {metric, *(metric + ending for ending in schema.ENDINGS)}
    return names


def join(store: Store, states: Sequence[State], metrics: Sequence[str] | None = None) -> xr.Dataset | xr.DataTree:
    """The models of one data set and group side by side; a tree of such Datasets where there are several."""
    states = _with_metrics(states, metrics)
    together: dict[tuple[str, str], list[State]] = {}
    for state in states:
        if state.done:
            together.setdefault((state.cell.data, state.cell.group), []).append(state)
    if not together:
        raise StoreError("nothing is done yet: run the study first, and see its status() for what failed")
    unfinished = [str(state.cell) for state in states if not state.is_done]
    if unfinished:
        more = f"; … ({len(unfinished) - 3} more)" if len(unfinished) > 3 else ""
        warnings.warn(
            f"{len(unfinished)} of {len(states)} cells are not finished, and NaN or absent where they are not: "
            f"{'; '.join(unfinished[:3])}{more}. The study's status() says why",
            stacklevel=3,
        )
    joined = {}
    for (data, group), of_models in together.items():
        _refuse_unlike_models(of_models, metrics)
        # a tree's paths know no "..", no "//" and no leading "/"
        node = data if {"", ".", ".."}.isdisjoint(data.split("/")) else io.slug(data)
        joined[f"{node}/{group}"] = _side_by_side(store, of_models, metrics)
    is_alone = len({(state.cell.data, state.cell.group) for state in states}) == 1
    return next(iter(joined.values())) if is_alone else xr.DataTree.from_dict(joined)


def _metrics_of(state: State) -> dict[str, str]:
    """What tells a cell's metrics from others of their names."""
    return {description.partition(":")[0]: description for description in state.settings.get("metrics", ())}


def _with_metrics(states: Sequence[State], metrics: Sequence[str] | None) -> list[State]:
    """The cells of which these metrics were measured, and those that are not begun; a warning names the others."""
    _refuse_unknown("metric", metrics, [name for state in states for name in _metrics_of(state)])
    kept = [state for state in states if not state.settings or set(metrics or ()) <= set(_metrics_of(state))]
    if len(kept) < len(states):
        others = [str(state.cell) for state in states if state not in kept]
        warnings.warn(
            f"{len(others)} of {len(states)} cells are left out, since not all of {', '.join(metrics or ())} were measured: "
            f"{cut('; '.join(others), SHOWN)}",
            stacklevel=4,
        )
    return kept


def _refuse_unlike_models(states: Sequence[State], metrics: Sequence[str] | None) -> None:
    """StoreError for models that were measured on other images or in another way; says which to choose."""
    for what in ("images", "group", "null", "version", "metrics"):
        models_by_value: dict[str, list[str]] = {}
        for state in states:
            models_by_value.setdefault(_compared(state, what, metrics), []).append(state.cell.model)
        if len(models_by_value) == 1:
            continue
        choices = [f"models={cut(str(models), SHOWN)}" for models in models_by_value.values()]
        if what == "metrics":
            common = set.intersection(*(set(_metrics_of(state).items()) for state in states))
            names = [name for name, description in _metrics_of(states[0]).items() if (name, description) in common]
            choices += [f"metrics={names!r}"] if names else []
        first, second, *_ = [models[0] for models in models_by_value.values()]
        values = " and ".join(cut(value, SHOWN) for value in models_by_value)
        raise StoreError(
            f"{states[0].cell.data} · {states[0].cell.group} · {first} and {second} cannot stand in one Dataset, since they "
            f"differ in {what}: {values}. Choose with ek.open(…, {' or '.join(choices)})"
        )


def _compared(state: State, what: str, metrics: Sequence[str] | None) -> str:
    """What models must have in common to stand in one Dataset."""
    if what == "images":
        # the options of their spec, such as a corruption, and the checksum of what is stored
        spec, _, checksum = str(state.settings.get("data", "")).rpartition(" ")
        return f"{spec.partition('?')[2]} {checksum}"
    if what == "metrics":
        return str([text for name, text in _metrics_of(state).items() if metrics is None or name in metrics])
    return str(state.settings.get(what))


def _side_by_side(store: Store, states: Sequence[State], metrics: Sequence[str] | None) -> xr.Dataset:
    """The models of one data set and group as a Dataset."""
    firsts = [store.block(state, min(state.done)) for state in states]
    pairs = list(zip(states, firsts, strict=True))
    is_large = sum(first.bytes_of_sample * len(state.places_done) for state, first in pairs) > IN_MEMORY
    datasets = []
    for state, first in pairs:
        datasets.append(_of_one_model(store, state, first, metrics, is_large=is_large))
    datasets = _with_predictions(_on_all_samples(datasets, states))
    joined = datasets[0]
    if len(datasets) > 1:
        attrs = _agreed([ds.attrs for ds in datasets])
        if not all("dead_fraction" in ds for ds in datasets):  # it comes with metrics of maps
            datasets = [ds.drop_vars("dead_fraction", errors="ignore") for ds in datasets]
        joined = concat([ds.drop_attrs(deep=False).assign_attrs(attrs) for ds in datasets])
    return joined.assign_coords(_columns(states))


def _of_one_model(
    store: Store, state: State, first: Block, metrics: Sequence[str] | None, *, is_large: bool
) -> xr.Dataset:
    """The blocks of a model one after the other."""
    blocks = []
    for number in sorted(state.done):
        block = first if number == min(state.done) else store.block(state, number)
        difference = block.difference_to(first)
        if difference:
            raise StoreError(f"{state.done[number][0]} has {difference}; remove one of the two and run again")
        blocks.append(block)
    abouts = [block.about for block in blocks]
    about = first.about
    others = _names_of_others(about["metrics"], metrics)
    coords = {}
    for name, coord in about["coords"].items():
        values = coord["values"]
        if coord["dims"] == ["sample"]:
            values = [value for of_block in abouts for value in of_block["coords"][name]["values"]]
        if name not in others:
            coords[name] = (coord["dims"], _array_of(values), coord["attrs"])
    by_layer = _by_layer(abouts, np.sum([block.array(PAIR_SUM) for block in blocks], axis=0))
    of_sample = _when_used(store, state, about) if is_large else {}
    variables = {}
    for name, variable in about["variables"].items():
        if name in others:
            continue
        if "sample" not in variable["dims"]:
            values = by_layer[name]
        elif is_large:
            values = of_sample[name]
        else:
            values = np.concatenate([block.array(name) for block in blocks], axis=-1)
        variables[name] = xr.Variable(variable["dims"], values, variable["attrs"])
    devices = {of_block["attrs"]["device"] for of_block in abouts}
    attrs = {**about["attrs"], "data": state.settings["data"], "device": ", ".join(sorted(devices))}
    ds = xr.Dataset(variables, coords, attrs)
    return _with_reasons(ds, abouts)


def _by_layer(abouts: Sequence[Mapping[str, Any]], pair_sum: np.ndarray) -> dict[str, np.ndarray]:
    """What follows from the states of all blocks together: M (normalised, layer) and the part of channels that is dead."""
    states = {
        name: np.array([about["states"][name] for about in abouts]) for name in ("pair_n", "dead", "live_or_dead")
    }
    found = {"dead_fraction": _ratio(states["dead"].sum(0), states["live_or_dead"].sum(0))[None]}
    # −1 where a layer is undefined; NaN is never skipped, which would drop vectors and keep their number
    is_defined: np.ndarray = np.all(states["pair_n"] >= 0, axis=0)
    count = states["pair_n"].clip(min=0).sum(0)
    for i, metric in enumerate(abouts[0]["normalised"]):
        exact = _ratio((pair_sum[i] ** 2).sum(-1) - count[i], count[i] ** 2 - count[i])
        found[f"{metric}_pair_cosine"] = np.where(is_defined[i], exact, np.nan)[None]
    return found


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """NaN of nothing."""
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def _with_reasons(ds: xr.Dataset, abouts: Sequence[Mapping[str, Any]]) -> xr.Dataset:
    """NaN where a metric has a reason to have no value in some block, at that layer or in all of the output; with the reasons."""
    n = ds.sizes["sample"]
    for i, metric in enumerate(abouts[0]["metrics"]):
        if metric not in ds:
            continue
        # of every layer the first block's reason that there is
        reasons_by_layer = zip(*(about["states"]["reason"][i] for about in abouts), strict=True)
        reasons = np.array([next(filter(None, reasons), "") for reasons in reasons_by_layer], dtype=object)
        has_layers = "layer" in ds[metric].dims
        if not has_layers:
            reasons = reasons[:1]
            if reasons[0]:
                ds[metric].attrs["nan_reason"] = reasons[0]
        if reasons.any():
            factor = np.where(reasons == "", np.float32(1), np.float32(np.nan))
            for name in {metric, *(metric + ending for ending in schema.ENDINGS)} & set(ds.data_vars):
                shape = [len(factor) if dim == "layer" else 1 for dim in ds[name].dims]
                ds[name] = ds[name].copy(data=ds[name].data * factor.reshape(shape))
        if has_layers:
            undefined = np.sum([about["states"]["undefined"][i] for about in abouts], axis=0)
            texts = [reason or schema.partly(int(k), n) for reason, k in zip(reasons, undefined, strict=True)]
            name = f"{metric}_nan_reason"
            ds[name] = ds[name].copy(data=_array_of([texts]))
        if f"{metric}_pair_cosine" in ds:
            ds[f"{metric}_pair_cosine"].attrs["samples"] = n
    return ds


def _when_used(store: Store, state: State, about: Mapping[str, Any]) -> dict[str, Any]:
    """The variables of a model's samples as Dask arrays; a block is read once for all that are computed together."""
    import dask.array as da

    numbers = sorted(state.done)
    # a name of its own, since Dask would make one from the names of all files
    blocks = da.map_blocks(
        partial(_read_block, store, state, numbers),
        chunks=((1,) * len(numbers),),
        name=f"blocks-{uuid.uuid4().hex}",
        dtype=object,
        meta=np.empty(0, object),
    )
    sizes = tuple(state.bounds[number][1] - state.bounds[number][0] for number in numbers)
    arrays = {}
    for name, place in about["arrays"].items():
        inner_shape = place["shape"][:-1]
        kind = np.dtype(place["type"])
        arrays[name] = blocks.map_blocks(
            _array_in,
            of=name,
            new_axis=list(range(len(inner_shape))),
            chunks=(*((size,) for size in inner_shape), sizes),
            name=f"{name}-{uuid.uuid4().hex}",
            dtype=kind,
            meta=np.empty((0,) * len(place["shape"]), kind),
        )
    return arrays


def _read_block(store: Store, state: State, numbers: Sequence[int], *, block_id: tuple[int]) -> np.ndarray:
    """A block as a chunk of one element."""
    chunk = np.empty(1, object)
    chunk[0] = store.block(state, numbers[block_id[0]])
    return chunk


def _array_in(chunk: np.ndarray, *, of: str) -> np.ndarray:
    return chunk[0].array(of)


def _on_all_samples(datasets: Sequence[xr.Dataset], states: Sequence[State]) -> list[xr.Dataset]:
    """Every model on all samples that any was measured on, in reading order, then those of other orders; NaN or −1 where not."""
    orders: dict[tuple, dict[int, Any]] = {}
    coords: dict[str, dict[Any, Any]] = {}
    for ds, state in zip(datasets, states, strict=True):
        ids = ds.sample.values.tolist()
        order = state.settings.get("seed"), state.samples
        orders.setdefault(order, {}).update(zip(state.places_done, ids, strict=True))
        for name in _names_along_sample(ds):
            coords.setdefault(name, {}).update(zip(ids, ds[name].values.tolist(), strict=True))
    union: dict[Any, None] = {}
    for ids_by_place in orders.values():
        union |= dict.fromkeys(ids_by_place[place] for place in sorted(ids_by_place))
    if len(orders) > 1 and coords.pop("chain", None):
        warnings.warn(
            "the models were measured in other orders of the images (another seed or n), in which other images are each "
            "other's partners in the null: there is no coordinate `chain`, and intervals of relative values are too narrow. "
            "Choose models of one order, or measure all with one seed",
            stacklevel=5,
        )
    samples = _array_of(list(union))
    completed = []
    for ds in datasets:
        attrs = {name: ds[name].attrs for name in coords}
        along_sample = {
            name: ("sample", _array_of([values[i] for i in union]), attrs[name]) for name, values in coords.items()
        }
        ds = ds.drop_vars(set(_names_along_sample(ds)) - {"sample"})
        if ds.sample.values.tolist() != list(union):
            blank = {name: _blank(variable.dtype) for name, variable in ds.data_vars.items()}
            ds = ds.reindex(sample=samples, fill_value=blank)
        completed.append(ds.assign_coords(along_sample))
    return completed


def _names_along_sample(ds: xr.Dataset) -> list[str]:
    return [str(name) for name, coord in ds.coords.items() if coord.dims == ("sample",)]


def _blank(kind: np.dtype) -> Any:
    return -1 if kind.kind == "i" else np.nan


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
            for name in ("prediction", "confidence"):
                like = with_scores[name]
                ds = ds.assign({name: (like.dims, np.full(sizes, _blank(like.dtype), like.dtype), like.attrs)})
        completed.append(ds)
    return completed


def _columns(states: Iterable[State]) -> dict[str, tuple]:
    """What is known of the models' recipes, along `model`; a model that is no recipe is one of its own kind."""
    rows = []
    known: set[str] = set()
    for state in states:
        own = {"recipe": state.cell.model, "seed": 0, "changes": ""}
        rows.append(own | state.settings["about"])
        known |= state.settings["about"].keys()
    ways: dict[str, set] = {}
    for row in rows:
        ways.setdefault(row["recipe"], set()).add(row["changes"])
    for row in rows:
        # seeds of one recipe that was trained in several ways are no replicates of each other
        if len(ways[row["recipe"]]) > 1:
            row["recipe"] = f"{row['recipe']} {row['changes']}".strip()
    columns = {name: [row[name] for row in rows] for name in rows[0] if name in known - {"changes"}}
    return {name: ("model", _array_of(values)) for name, values in columns.items()}
