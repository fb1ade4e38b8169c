"""All figures of a study as files: what `plots` draws, for every data set, group and metric of a store.

Knows which figures a result has, and names; how they look is for `plots`. Costs one `summarise` per data set and group,
about a second per figure, and the memory of one figure at a time.
"""

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from eedkit.errors import unknown
from eedkit.plots import figures, style
from eedkit.results import schema
from eedkit.results.io import slug
from eedkit.results.labels import labelled
from eedkit.results.summary import summarise

CLASSES = 40
"""Beyond which a heatmap of classes cannot be read."""
TOGETHER = 10
"""Names that are told apart in one figure; more go on in further figures."""
LINE = 20
"""Characters of a model's name in one line of a legend."""


@dataclass(frozen=True)
class _Wanted:
    """One figure: its file's name, the question in its title, the metric, how to draw it, and of the table or the Dataset."""

    what: str
    question: str
    metric: str
    draw: Callable[..., Figure]
    of_table: bool = True


def draw(
    results: xr.Dataset | xr.DataTree,
    out: str | PathLike,
    *,
    formats: Sequence[str] = ("png", "svg", "pdf"),
    by: str | None = None,
) -> list[Path]:
    """Draw what there is to see in results and write it under `out`; the paths of all files, in order.

    `<data>-<group>/<what>_<metric>.<format>` for a tree, `<what>_<metric>.<format>` for one Dataset: depth profiles
    per layer metric, relative where there is a null; calibration, rose and class heatmap for the latent layer and the output. More than ten
    models go on in `<what>_<metric>-2` and so on. What cannot be drawn is left out, with a warning that says why.

    Parameters
    ----------
    results : as `measure`, `Study.run` or `eedkit.open` give them
    formats : of "png", "svg", "pdf"
    by : coordinate of `model` to group by; None takes `recipe` where models of one recipe differ in their seed alone, else
        every model by its name

    Raises
    ------
    ValueError
        There is no such format or coordinate; nothing is written.
    """
    formats = [formats] if isinstance(formats, str) else list(formats)
    for name in formats or [""]:
        if name not in style.FORMATS:
            raise ValueError(unknown("format", name, style.FORMATS))
    places = list(_places(results))
    for _, _, ds in places:
        about = [name for name, c in ds.coords.items() if c.dims == ("model",)]
        if by is not None and by not in about:
            raise ValueError(unknown("coordinate of the models", by, about))
    written = []
    for folder, where, ds in places:
        for stem, figure in _figures(ds, where, by):
            path = Path(out) / folder / stem
            style.save(figure, path, formats)
            figure.clear()
            written += [path.with_name(f"{path.name}.{name}") for name in formats]
    return written


def _places(results: xr.Dataset | xr.DataTree) -> Iterator[tuple[str, str, xr.Dataset]]:
    """The folder, the data set and group for titles, and the Dataset, for every Dataset there is."""
    if isinstance(results, xr.Dataset):
        data = str(results.attrs.get("data", "")).rpartition(" [")[0]
        yield "", " · ".join(filter(None, (data, results.attrs.get("group")))), results
        return
    for node in results.leaves:
        data, _, group = node.path.strip("/").rpartition("/")
        yield f"{slug(data)}-{slug(group)}", f"{data} · {group}", node.to_dataset()


def _figures(ds: xr.Dataset, where: str, by: str | None) -> Iterator[tuple[str, Figure]]:
    """Every figure of one Dataset with the name of its file; a warning for each that cannot be drawn."""
    ds = schema.validate(ds)
    by = by or _grouping(ds)
    if by == "model":
        by, ds = "shown", ds.assign_coords(shown=("model", _shown(ds.model.values.tolist())))
    names = ds[by].values
    kinds = list(dict.fromkeys(names.tolist()))
    parts = [kinds[at : at + TOGETHER] for at in range(0, len(kinds), TOGETHER)]
    table = summarise(ds)
    for wanted in _wanted(ds):
        long_name = style.literal(ds[wanted.metric].attrs["long_name"])
        title = f"{wanted.question} ({long_name})\n{style.literal(where)}"
        for k, part in enumerate(parts, 1):
            stem = slug(f"{wanted.what}_{wanted.metric}") + (f"-{k}" if len(parts) > 1 else "")
            some = table[table[by].isin(part)] if wanted.of_table else ds.isel(model=np.isin(names, part))
            try:
                yield stem, wanted.draw(some, metric=wanted.metric, by=by, title=title)
            except ValueError as error:
                warnings.warn(f"no {stem} for {where}: {error}", stacklevel=3)


def _wanted(ds: xr.Dataset) -> Iterator[_Wanted]:
    metrics = schema.metrics_of(ds)
    for metric in metrics:
        if "layer" in ds[metric].dims:
            profile = partial(figures.depth_profile, relative=f"{metric}_null" in ds)
            yield _Wanted("depth_profile", "Where in the network is it equivariant?", metric, profile)
    latent = next((metric for metric in metrics if metric.startswith("latent")), None)
    output = next((metric for metric in metrics if "layer" not in ds[metric].dims), None)
    for metric in filter(None, (latent, output)):
        if f"{metric}_null" in ds:
            yield _Wanted("calibration", "Invariance, or insensitivity?", metric, figures.calibration)
    if latent:
        yield _Wanted("orbit_rose", "Under which element?", latent, figures.orbit_rose, of_table=False)
    of_classes = "softmax_js" if "softmax_js" in metrics else latent
    known = labelled(ds)
    if of_classes and known.sizes["sample"] and 1 < len(np.unique(known.label)) <= CLASSES:
        yield _Wanted("class_heatmap", "On which classes?", of_classes, figures.class_heatmap, of_table=False)


def _grouping(ds: xr.Dataset) -> str:
    """By recipe, unless that would take two trainings of one seed for replicates."""
    if not {"recipe", "seed"} <= set(ds.coords):
        return "recipe" if "recipe" in ds.coords else "model"
    pairs = list(zip(ds.recipe.values.tolist(), ds.seed.values.tolist(), strict=True))
    return "recipe" if len(set(pairs)) == len(pairs) else "model"


def _shown(names: list[str]) -> np.ndarray:
    """Models' names for legends: without a kind that all share, and in several lines where they are long.

    >>> _shown(["recipe:plain?seed=0", "recipe:random?seed=0&widths=16,32,64"]).tolist()
    ['plain?seed=0', 'random?seed=0\\n&widths=16,32,64']
    """
    shared = {name.partition(":")[0] for name in names if ":" in name}
    if len(shared) == 1 and all(":" in name for name in names):
        names = [name.partition(":")[2] for name in names]
    lines = []
    for name in names:
        wrapped = [""]
        for piece in re.findall(rf"[?&/·]?[^?&/·]{{0,{LINE - 1}}}", name):
            if len(wrapped[-1]) + len(piece) > LINE:
                wrapped.append("")
            wrapped[-1] += piece
        lines.append("\n".join(wrapped))
    return np.array(lines, dtype=object)
