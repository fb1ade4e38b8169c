"""The blocks of a study joined to labelled results: one Dataset, or a tree for several data sets or groups.

Knows xarray, never torch. Reads every file once; results larger than `IN_MEMORY` are read again when they are used.
"""

import uuid
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import numpy as np
import xarray as xr

from eedkit.errors import cut, unknown
from eedkit.results import io, schema
from eedkit.results.summary import concat
from eedkit.study.blocks import PAIR_SUM, STATES, Block
from eedkit.study.files import StoreError
from eedkit.study.store import State, Store, unlike

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
    states = Store(address).read().states
    if not states:
        raise FileNotFoundError(f"no store at {address}")
    chosen = list(states.values())
    for kind, names in (("data", data), ("group", group), ("model", models)):
        if names is not None:
            asked = [names] if isinstance(names, str) else names
            known = [getattr(cell, kind) for cell in states]
            _refuse_unknown({"data": "data set"}.get(kind, kind), asked, known)
            chosen = [state for state in chosen if getattr(state.cell, kind) in asked]
    return join(address, chosen, metrics)


def _refuse_unknown(kind: str, asked: Iterable[str] | None, known: Iterable[str]) -> None:
    """ValueError for a name that is not there, with near ones."""
    known = list(dict.fromkeys(known))
    for name in asked or ():
        if name not in known:
            raise ValueError(unknown(kind, name, known))


def _chosen_of(ds: xr.Dataset, models: Sequence[str] | None, metrics: Sequence[str] | None) -> xr.Dataset:
    """These models and metrics of one Dataset."""
    _refuse_unknown("model", models, ds.model.values)
    _refuse_unknown("metric", metrics, schema.metrics_of(ds))
    if models is not None:
        ds = ds.sel(model=list(models))
    if metrics is not None:
        ds = ds.drop_vars(_names_of_others(schema.metrics_of(ds), metrics) & set(ds.variables))
    return ds


def _names_of_others(measured: Iterable[str], chosen: Sequence[str] | None) -> set[str]:
    """The variables and coordinates of metrics that are not chosen."""
    names = set()
    for metric in measured:
        if chosen is not None and metric not in chosen:
            names |= {metric, *(metric + ending for ending in schema.ENDINGS)}
    return names


def join(address: str, states: Sequence[State], metrics: Sequence[str] | None = None) -> xr.Dataset | xr.DataTree:
    """The models of one data set and group side by side; a tree of such Datasets where there are several."""
    states = _with_metrics(states, metrics)
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
        _refuse_unlike_models(of_models, metrics)
        joined[f"{_node(data)}/{group}"] = _side_by_side(Store(address), of_models, metrics)
    is_alone = len({(state.cell.data, state.cell.group) for state in states}) == 1
    return next(iter(joined.values())) if is_alone else xr.DataTree.from_dict(joined)


def _node(data: str) -> str:
    """A data set's name as a path in a tree, which knows no "..", no "//" and no leading "/"."""
    return data if not {"", ".", ".."} & set(data.split("/")) else io.slug(data)


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
    """StoreError for models that were measured on other images or in another way."""
    compared = {state.cell.model: _compared(state) for state in states}
    first, *others = compared
    for model in others:
        for what, there in compared[first].items():
            here = compared[model][what]
            like_first = [name for name, other in compared.items() if other[what] == there]
            like_this = [name for name, other in compared.items() if other[what] == here]
            if what == "metrics" and metrics is not None:
                there, here = ({name: known[name] for name in metrics} for known in (there, here))
            if there == here:
                continue
            choice = f"models={cut(str(like_first), SHOWN)} or models={cut(str(like_this), SHOWN)}"
            common = [name for name in there if name in here and there[name] == here[name]] if what == "metrics" else []
            if common:
                choice += f", or metrics={common!r}"
            shown = [cut(str(list(one.values()) if isinstance(one, dict) else one), SHOWN) for one in (there, here)]
            raise StoreError(
                f"{states[0].cell} and {model} cannot stand in one Dataset, since they differ in {what}: {shown[0]} and "
                f"{shown[1]}. Choose with ek.open(…, {choice})"
            )


def _compared(state: State) -> dict[str, Any]:
    """What models must have in common to stand in one Dataset."""
    # images: the options of their spec, such as a shift, and the checksum of what is stored
    spec, _, checksum = str(state.settings.get("data", "")).rpartition(" ")
    same = {"images": f"{spec.partition('?')[2]} {checksum}"}
    same |= {name: state.settings.get(name) for name in ("group", "null", "version")}
    return {**same, "metrics": _metrics_of(state)}


@dataclass
class _Model:
    """What follows from all blocks of one model together, and what is said of it."""

    attrs: dict[str, Any]
    variables: dict[str, dict[str, Any]]
    coords: dict[str, dict[str, Any]]
    by_layer: dict[str, np.ndarray]
    reasons: dict[str, list[str]]


@dataclass
class _Part:
    """Models of the same layers and variables, measured on the same images in the same order and blocks."""

    states: list[State] = field(default_factory=list)
    firsts: list[Block] = field(default_factory=list)
    # where each block's samples are, of all blocks that some model has
    slots: dict[int, slice] = field(default_factory=dict)
    # (model, …, sample); NaN or −1 where a model has no block
    arrays: dict[str, Any] = field(default_factory=dict)
    models: dict[int, _Model] = field(default_factory=dict)
    # the coordinates along `sample`, by block
    samples: dict[int, dict[str, list]] = field(default_factory=dict)

    def coordinate(self, name: str) -> list:
        """A coordinate along `sample`, over all blocks."""
        values = []
        for number in self.slots:
            values += self.samples[number][name]
        return values

    @property
    def places(self) -> list[int]:
        """Of its samples in the reading order."""
        places: list[int] = []
        for number in self.slots:
            places += range(*self.states[0].bounds[number])
        return places

    @property
    def order(self) -> tuple:
        """In which order the images were read."""
        settings = self.states[0].settings
        return settings.get("seed"), self.states[0].samples


def _side_by_side(store: Store, states: Sequence[State], metrics: Sequence[str] | None) -> xr.Dataset:
    """The models of one data set and group as a Dataset."""
    parts: dict[tuple, _Part] = {}
    for state in states:
        first = store.block(state, min(state.done))
        layers = tuple(first.about["coords"]["layer"]["values"])
        key = (layers, tuple(first.about["variables"]), tuple(state.bounds), state.settings.get("seed"))
        part = parts.setdefault(key, _Part())
        part.states.append(state)
        part.firsts.append(first)
    is_large = sum(map(_bytes_of, parts.values())) > IN_MEMORY
    for part in parts.values():
        _read(store, part, metrics, is_large=is_large)
    samples = _samples(list(parts.values()))
    datasets = _with_predictions([_dataset(part, samples) for part in parts.values()])
    joined = datasets[0]
    if len(datasets) > 1:
        attrs = _agreed([ds.attrs for ds in datasets])
        if not all("dead_fraction" in ds for ds in datasets):  # it comes with metrics of maps
            datasets = [ds.drop_vars("dead_fraction", errors="ignore") for ds in datasets]
        joined = concat([ds.drop_attrs(deep=False).assign_attrs(attrs) for ds in datasets])
        joined = joined.sel(model=[state.cell.model for state in states])
    return joined.assign_coords(_columns(states))


def _bytes_of(part: _Part) -> int:
    """Of the values of its models, by the first blocks."""
    total = 0
    for state, first in zip(part.states, part.firsts, strict=True):
        of_sample = 0
        for name, place in first.about["arrays"].items():
            if name != PAIR_SUM:
                of_sample += np.dtype(place["type"]).itemsize * (place["stop"] - place["start"]) / first.size
        total += int(of_sample * state.samples_done)
    return total


def _read(store: Store, part: _Part, metrics: Sequence[str] | None, *, is_large: bool) -> None:
    """Read all blocks; the arrays of a large part are read again when they are used."""
    bounds = part.states[0].bounds
    stop = 0
    for number in sorted(set().union(*(state.done for state in part.states))):
        start = stop
        stop += bounds[number][1] - bounds[number][0]
        part.slots[number] = slice(start, stop)
    about = part.firsts[0].about
    others = _names_of_others(about["metrics"], metrics)
    blocks = _blocks_when_used(store, part) if is_large else None
    for name, variable in about["variables"].items():
        if "sample" not in variable["dims"] or name in others:
            continue
        place = about["arrays"][name]
        kind, inner_shape = np.dtype(place["type"]), tuple(place["shape"][1:-1])
        if blocks is None:
            part.arrays[name] = np.full((len(part.states), *inner_shape, stop), _blank(kind), kind)
            continue
        sizes = tuple(slot.stop - slot.start for slot in part.slots.values())
        part.arrays[name] = blocks.map_blocks(
            _variable,
            of=name,
            inner_shape=inner_shape,
            kind=kind,
            new_axis=list(range(1, 1 + len(inner_shape))),
            chunks=((1,) * len(part.states), *((size,) for size in inner_shape), sizes),
            name=f"{name}-{uuid.uuid4().hex}",
            dtype=kind,
            meta=np.empty((0,) * (2 + len(inner_shape)), kind),
        )
    # the coordinates of samples are those of the model that has most of them
    for m in sorted(range(len(part.states)), key=lambda m: -len(part.states[m].done)):
        part.models[m] = _read_model(store, part, m, others, is_large=is_large)
    _blank_undefined(part)


def _blank(kind: np.dtype) -> Any:
    return -1 if kind.kind == "i" else np.nan


def _read_model(store: Store, part: _Part, m: int, others: set[str], *, is_large: bool) -> _Model:
    """Put one model's blocks in their slots; what follows from them together."""
    state, first = part.states[m], part.firsts[m]
    states = []
    devices = set()
    pair_sum: Any = 0
    for number in sorted(state.done):
        block = first if number == min(state.done) else store.block(state, number)
        difference = unlike(first, block)
        if difference:
            raise StoreError(f"{state.done[number][0]} has {difference}; remove one of the two and run again")
        coords = {name: c["values"] for name, c in block.about["coords"].items() if c["dims"] == ["sample"]}
        if part.samples.setdefault(number, coords)["sample"] != coords["sample"]:
            raise StoreError(f"{state.done[number][0]} holds other samples than the same block of other models")
        for name, array in part.arrays.items() if not is_large else ():
            array[m, ..., part.slots[number]] = block.arrays[name][0]
        states.append(block.about["states"])
        devices.add(block.about["attrs"]["device"])
        pair_sum = pair_sum + block.arrays[PAIR_SUM]
    attrs = {**first.about["attrs"], "data": state.settings["data"], "device": ", ".join(sorted(devices))}
    variables = {name: dict(v) for name, v in first.about["variables"].items() if name not in others}
    coords = {name: c for name, c in first.about["coords"].items() if name not in others}
    model = _Model(attrs, variables, coords, by_layer={}, reasons={})
    joined = {name: np.array([of_block[name] for of_block in states]) for name in STATES}
    _join_states(model, first.about, joined, pair_sum, n=state.samples_done)
    return model


def _join_states(
    model: _Model, about: Mapping[str, Any], states: Mapping[str, np.ndarray], pair_sum: np.ndarray, *, n: int
) -> None:
    """What follows from the blocks' states together: M, dead channels, and why layers have no value."""
    variables = model.variables
    if "dead_fraction" in variables:
        model.by_layer["dead_fraction"] = _ratio(states["dead"].sum(0), states["live_or_dead"].sum(0))
    # −1 where a layer is undefined; NaN is never skipped, which would drop vectors and keep their number
    defined: np.ndarray = np.all(states["pair_n"] >= 0, axis=0)
    count = states["pair_n"].clip(min=0).sum(0)
    for i, metric in enumerate(about["normalised"]):
        name = f"{metric}_pair_cosine"
        if name in variables:
            exact = _ratio((pair_sum[i] ** 2).sum(-1) - count[i], count[i] ** 2 - count[i])
            model.by_layer[name] = np.where(defined[i], exact, np.nan)
            variables[name]["attrs"] = {**variables[name]["attrs"], "samples": n}
    for i, metric in enumerate(about["metrics"]):
        if metric not in variables:
            continue
        # of every layer the first block's reason that there is
        reasons: list[str] = [next(filter(None, column), "") for column in states["reason"][:, i].T.tolist()]
        if "layer" not in variables[metric]["dims"]:
            model.reasons[metric] = reasons[:1]
            if reasons[0]:
                variables[metric]["attrs"] = {**variables[metric]["attrs"], "nan_reason": reasons[0]}
            continue
        model.reasons[metric] = reasons
        undefined = states["undefined"][:, i].sum(0)
        partly = [reason or schema.partly(int(k), n) for reason, k in zip(reasons, undefined, strict=True)]
        name = f"{metric}_nan_reason"
        model.coords[name] = {**model.coords[name], "values": [partly]}


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """NaN of nothing."""
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def _blank_undefined(part: _Part) -> None:
    """NaN where a metric has a reason to have no value in some block: at that layer of that model, or in all of its output."""
    models = [part.models[m] for m in range(len(part.states))]
    for metric in models[0].reasons:
        reasons = [model.reasons[metric] for model in models]
        if not any(map(any, reasons)):
            continue
        factor = np.where(np.array(reasons, dtype=object) == "", np.float32(1), np.float32(np.nan))
        for name in (metric, *(metric + ending for ending in schema.ENDINGS)):
            if name in part.arrays:
                # (model, layer), or (model, 1) of the output
                own_dims = 2 if "layer" in models[0].variables[name]["dims"] else 1
                array = part.arrays[name]
                shape = (*factor.shape[:own_dims], *[1] * (array.ndim - own_dims))
                part.arrays[name] = array * factor.reshape(shape)
        for model, of_layers in zip(models, factor, strict=True):
            for name in set(model.by_layer) & {metric + ending for ending in schema.ENDINGS}:
                model.by_layer[name] = model.by_layer[name] * of_layers


def _blocks_when_used(store: Store, part: _Part) -> Any:
    """An array (model, block) of the blocks, each read when it is used, once for all variables that are computed together."""
    import dask.array as da

    read = _Read(store, part.states, [(number, slot.stop - slot.start) for number, slot in part.slots.items()])
    chunks = ((1,) * len(part.states), (1,) * len(part.slots))
    # a name of its own, since Dask would make one from the names of all files
    name = f"blocks-{uuid.uuid4().hex}"
    return da.map_blocks(read, name=name, chunks=chunks, dtype=object, meta=np.empty((0, 0), object))


@dataclass(frozen=True)
class _Read:
    """Gives a block of a model as a chunk of one element; where it is not done, how many samples it has."""

    store: Store
    states: list[State]
    numbers: list[tuple[int, int]]

    def __call__(self, block_id: tuple[int, int]) -> np.ndarray:
        number, size = self.numbers[block_id[1]]
        state = self.states[block_id[0]]
        chunk = np.empty((1, 1), object)
        chunk[0, 0] = self.store.block(state, number) if number in state.done else size
        return chunk


def _variable(chunk: np.ndarray, *, of: str, inner_shape: tuple[int, ...], kind: np.dtype) -> np.ndarray:
    """One variable of a block, or blanks where it is not done."""
    block = chunk[0, 0]
    if isinstance(block, int):
        return np.full((1, *inner_shape, block), _blank(kind), kind)
    return block.arrays[of]


def _samples(parts: Sequence[_Part]) -> dict[str, xr.Variable]:
    """The coordinates along `sample` of all samples that any model was measured on: in reading order, then those of other orders."""
    orders: dict[tuple, dict[int, Any]] = {}
    by_id: dict[str, dict[Any, Any]] = {}
    attrs: dict[str, dict] = {}
    for part in parts:
        ids = part.coordinate("sample")
        orders.setdefault(part.order, {}).update(zip(part.places, ids, strict=True))
        for name in part.samples[next(iter(part.slots))]:
            values = part.coordinate(name)
            by_id.setdefault(name, {}).update(zip(ids, values, strict=True))
            attrs[name] = part.firsts[0].about["coords"][name]["attrs"]
        if len(set(ids)) < len(ids):
            raise StoreError(f"the ids of the samples of {part.states[0].cell} repeat; ids must differ")
    union: dict[Any, None] = {}
    for ids_by_place in orders.values():
        union |= dict.fromkeys(ids_by_place[place] for place in sorted(ids_by_place))
    if len(orders) > 1 and by_id.pop("chain", None):
        warnings.warn(
            "the models were measured in other orders of the images (another seed or n), in which other images are each "
            "other's partners in the null: there is no coordinate `chain`, and intervals of relative values are too narrow. "
            "Choose models of one order, or measure all with one seed",
            stacklevel=5,
        )
    samples = {}
    for name, values in by_id.items():
        samples[name] = xr.Variable("sample", _array_of([values[name_of] for name_of in union]), attrs[name])
    return samples


def _dataset(part: _Part, samples: Mapping[str, xr.Variable]) -> xr.Dataset:
    """Models of the same layers and variables side by side."""
    models = [part.models[m] for m in range(len(part.states))]
    first = models[0]
    place_of = {name: place for place, name in enumerate(samples["sample"].values.tolist())}
    places = [place_of[name] for name in part.coordinate("sample")]
    all_places = list(place_of.values())
    variables = {}
    for name, variable in first.variables.items():
        if name in part.arrays:
            array = part.arrays[name]
            if places != all_places:
                own = xr.DataArray(array, {"sample": places}, variable["dims"])
                array = own.reindex(sample=all_places, fill_value=_blank(array.dtype)).data
        else:
            array = np.stack([model.by_layer[name] for model in models])
        attrs = _agreed([model.variables[name]["attrs"] for model in models])
        variables[name] = (variable["dims"], array, attrs)
    coords: dict[str, Any] = dict(samples)
    for name, coord in first.coords.items():
        if coord["dims"] == ["sample"]:
            continue
        values = coord["values"]
        if name == "model":
            values = [state.cell.model for state in part.states]
        elif "model" in coord["dims"]:
            values = []
            for model in models:
                values += model.coords[name]["values"]
        coords[name] = (coord["dims"], _array_of(values), coord["attrs"])
    return xr.Dataset(variables, coords, _agreed([model.attrs for model in models]))


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
