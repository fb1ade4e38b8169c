"""Sentences about tables and figures, made from the very table that is shown, so that another run gets its own.

A reading says what the data show and never more: where intervals overlap there is no clear order.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
import xarray as xr

from eedkit.errors import printable, unknown
from eedkit.results.intervals import mean_interval

ZERO = 1e-6
"""Values under this are rounding errors of float32, and are read as 0."""


class Reading(str):
    """Markdown that a notebook shows as prose.

    >>> Reading("`plain` is **highest**.")._repr_markdown_()
    '`plain` is **highest**.'
    """

    def _repr_markdown_(self) -> str:
        return str(self)


@dataclass(frozen=True)
class _Spread:
    """A mean over `n` replicates with its 95 % interval."""

    name: str
    mean: float
    low: float
    high: float
    n: int

    @property
    def text(self) -> str:
        return f"{self.name} {self.numbers}"

    @property
    def numbers(self) -> str:
        interval = _interval(self.low, self.high)
        return f"{number(self.mean)} ({interval})" if interval else number(self.mean)

    def is_below(self, other: "_Spread") -> bool:
        return self.high < other.low


def number(value: float) -> str:
    """A number as prose has it: two decimals, or two digits where it is small.

    >>> number(0.9512), number(-0.00431), number(1e-9), number(1234.5), number(float("nan"))
    ('0.95', '−0.0043', '0', '1,234', 'no value')
    """
    if np.isnan(value):
        return "no value"
    size = abs(value)
    if size < ZERO:
        return "0"
    decimals = 2
    if size < 0.1:
        decimals = 1 - math.floor(math.log10(size))
    elif size >= 100:
        decimals = 0
    sign = "−" if value < 0 else ""
    return f"{sign}{size:,.{decimals}f}"


def order(
    rows: pd.DataFrame,
    value: str,
    *,
    by: str = "recipe",
    per: str | None = None,
    what: str | None = None,
) -> Reading:
    """Which kind has the lowest mean, which the next one, and between which there is no clear order.

    Parameters
    ----------
    rows : pandas.DataFrame
        One row per replicate (seed). A kind with a single row is read with that row's own interval, where the table
        has one.
    value : str
        The column that is read; rows in which it is NaN do not count.
    by : str
        The column that names the kinds.
    per : str, optional
        A column for each of whose values the order is read by itself.
    what : str, optional
        What the column holds, in words.

    Returns
    -------
    Reading
        One sentence, or a list of one for each value of `per`.

    Examples
    --------
    >>> rows = pd.DataFrame({"recipe": ["a", "a", "b", "b"], "accuracy": [0.5, 0.52, 0.9, 0.91]})
    >>> order(rows, "accuracy").partition(". ")[0]
    'Accuracy, lowest first: `a` 0.51 (0.38 to 0.64), then `b` 0.91 (0.84 to 0.97)'
    """
    _needs(rows, value, by, *([per] if per else []))
    what = what or value.replace("_", " ")
    if per is None:
        return Reading(f"{_capital(what)}, {_ordered(_spreads(rows, value, by))}")
    lines = []
    for name, some in rows.groupby(per, sort=False):
        lines.append(f"{_code(name)}: {_ordered(_spreads(some, value, by))}")
    return Reading(f"{_capital(what)}:\n\n{_listed(lines)}")


def depth_profile(
    table: pd.DataFrame,
    *,
    metric: str,
    value: str = "relative",
    against: str = "plain",
) -> Reading:
    """The order of the recipes at the deepest layer, and the layers at which each leaves one of them, seed by seed.

    Parameters
    ----------
    table : pandas.DataFrame
        Of `summarise`, with recipes and seeds.
    metric : str
        The metric that is drawn.
    value : str
        "relative" or "estimate".
    against : str
        The recipe that the others are compared with.

    Returns
    -------
    Reading
        Differences have 95 % intervals, each by itself.

    Examples
    --------
    >>> table = pd.DataFrame({"recipe": ["plain", "plain", "augmented", "augmented"], "seed": [0, 1, 0, 1]})
    >>> table = table.assign(metric="latent", layer="latent", depth=1.0, relative=[0.9, 0.91, 0.1, 0.11])
    >>> depth_profile(table, metric="latent").rpartition("seed by seed: ")[2]
    '`augmented` lies lower at `latent`: −0.80 (−0.80 to −0.80).'
    """
    _needs(table, "recipe", "seed", "metric", "layer", "depth", value)
    rows = table[(table.metric == metric) & table[value].notna() & ~table.layer.str.endswith("[class]")]
    if rows.empty:
        known = table[table[value].notna()].metric.unique()
        raise ValueError(unknown(f"metric with {value} values", metric, known))
    rows = rows.sort_values("depth", kind="stable")
    layers = list(dict.fromkeys(rows.layer))
    at_end = rows[rows.layer == layers[-1]]
    sentences = [order(at_end, value, what=f"{_titled(metric, value)} at {_code(layers[-1])}")]
    compared = []
    for recipe in dict.fromkeys(rows.recipe):
        if recipe != against and against in set(rows.recipe):
            differences = {layer: _difference(rows[rows.layer == layer], recipe, against, value) for layer in layers}
            compared.append(f"{_code(recipe)} {_departs(differences)}")
    if compared:
        sentences.append(f"Against {_code(against)}, seed by seed: {'; '.join(compared)}.")
    return Reading(" ".join(sentences))


def calibration(table: pd.DataFrame, *, metric: str = "latent", by: str = "recipe") -> Reading:
    """Who looks most invariant by the raw value, who by the relative one, and who changes places between the two.

    Parameters
    ----------
    table : pandas.DataFrame
        Of `summarise`.
    metric : str
        Read at the layer `latent`, or at the output.
    by : str
        The column that names the kinds.

    Returns
    -------
    Reading
        Raw values are read above the distance's best value.

    Examples
    --------
    >>> table = pd.DataFrame({"recipe": ["a", "a", "b", "b"], "metric": "latent", "layer": "latent", "best": -1.0})
    >>> table = table.assign(estimate=[-0.99, -0.99, -0.9, -0.9], relative=[0.9, 0.9, 0.1, 0.1])
    >>> calibration(table).rpartition(". ")[2]
    '`a` lies below `b` raw, and above it relative to other images.'
    """
    _needs(table, "metric", "layer", "estimate", "best", "relative", by)
    layer = "latent" if metric.startswith("latent") else "output"
    rows = table[(table.metric == metric) & (table.layer == layer)]
    if rows.empty:
        raise ValueError(unknown("metric", f"{metric} at {layer}", table.metric + " at " + table.layer))
    raw = _spreads(rows.assign(above=rows.estimate - rows.best), "above", by)
    relative = _spreads(rows, "relative", by)
    sentences = [
        f"By the raw value (above its best) {_lowest(raw)}.",
        f"Relative to other images {_lowest(relative)}.",
    ]
    place = {spread.name: spread for spread in relative}
    swapped = []
    for below, above in combinations(raw, 2):
        are_both = below.name in place and above.name in place
        if are_both and below.is_below(above) and place[above.name].is_below(place[below.name]):
            swapped.append(f"{below.name} lies below {above.name} raw, and above it relative to other images")
    sentences.append(f"{_capital('; '.join(swapped))}." if swapped else "No two kinds clearly change places.")
    return Reading(" ".join(sentences))


def lines(
    table: pd.DataFrame,
    *,
    x: str,
    y: str,
    by: str = "recipe",
    line: float | None = None,
    line_label: str = "the line",
    what: str | None = None,
) -> Reading:
    """Whether each line rises or falls from its first point to its last, and which points lie beyond a horizontal line.

    Parameters
    ----------
    table : pandas.DataFrame
        One row per replicate, as `plots.lines` draws it.
    x, y, by : str
        Columns: the axes, and what names the lines.
    line : float, optional
        The height of a horizontal line.
    line_label : str
        What it is called.
    what : str, optional
        What `y` holds, in words.

    Returns
    -------
    Reading
        A line has a direction where the intervals of its first and its last point do not overlap.

    Examples
    --------
    >>> table = pd.DataFrame({"epoch": [1, 1, 9, 9], "loss": [2.0, 2.1, 0.1, 0.2], "recipe": "plain"})
    >>> lines(table, x="epoch", y="loss")
    'From epoch 1 to 9, loss falls for `plain` (2.05 to 0.15).'
    """
    _needs(table, x, y, by)
    rows = table.dropna(subset=[x, y])
    if rows.empty:
        raise ValueError(f"no row of the table has a value of {x} and of {y}")
    directions = {"rises": [], "falls": [], "has no clear direction": []}
    beyond = {"above": [], "on both sides of": [], "below": []}
    for name, ours in rows.groupby(by, sort=False):
        points = [_spread(at, some, y) for at, some in ours.groupby(x)]
        first, last = points[0], points[-1]
        ends = f"{_code(name)} ({number(first.mean)} to {number(last.mean)})"
        if first.is_below(last):
            directions["rises"].append(ends)
        elif last.is_below(first):
            directions["falls"].append(ends)
        else:
            directions["has no clear direction"].append(ends)
        if line is not None:
            for side, places in _sides(points, line).items():
                beyond[side] += [f"{_code(name)} at {', '.join(places)}"] if places else []
    parts = [f"{way} for {_joined(names)}" for way, names in directions.items() if names]
    start, end = rows[x].min(), rows[x].max()
    sentences = [f"From {x} {start:g} to {end:g}, {what or y} {'; it '.join(parts)}."]
    if line is not None:
        for side, found in beyond.items():
            sentences.append(f"Intervals {side} {line_label} ({number(line)}): {'; '.join(found) or 'none'}.")
    return Reading(" ".join(sentences))


def extremes(
    ds: xr.Dataset,
    over: str,
    *,
    metric: str = "latent",
    layer: str = "latent",
) -> Reading:
    """For which class, or under which element, each kind of network deviates most and least.

    Parameters
    ----------
    ds : xarray.Dataset
        Of `measure` or a study.
    over : str
        "label" or "element".
    metric, layer : str
        What is averaged; an output metric has no layer.

    Returns
    -------
    Reading
        Intervals are over the seeds of a kind, or over the images where there is a single network.

    Examples
    --------
    >>> import eedkit as ek, torch
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(25, 3))
    >>> ds = ek.measure(net, torch.rand(8, 1, 5, 5), group="C4", name="net", progress=False)
    >>> extremes(ds, "element").startswith("Deviation by element: `net` ")
    True
    """
    if over not in ("label", "element"):
        raise ValueError(f'extremes are read over "label" or "element", got {over!r}')
    values = ds[metric] - ds[metric].attrs["best"]
    values = values.sel(layer=layer) if "layer" in values.dims else values
    by = "recipe" if "recipe" in ds.coords else "model"
    parts = []
    for kind in dict.fromkeys(ds[by].values.tolist()):
        ours = values.isel(model=np.flatnonzero(ds[by].values == kind))
        spreads = []
        for name, some in ours.groupby(over):
            kept = "model" if ours.sizes["model"] > 1 else "sample"
            replicates = some.mean([dim for dim in some.dims if dim != kept]).values
            spreads.append(_of(_code(name), replicates[~np.isnan(replicates)]))
        parts.append(f"{_code(kind)} {_ends(spreads)}")
    return Reading(f"Deviation by {over}: {'; '.join(parts)}.")


def accuracy(ds: xr.Dataset) -> Reading:
    """The order of the kinds of network by accuracy on upright images and on moved ones, and who reads moved ones worse.

    Parameters
    ----------
    ds : xarray.Dataset
        With labels, predictions and recipes.

    Returns
    -------
    Reading
        Intervals are over seeds. Upright accuracy is that under the identity, moved that under the other elements.

    Examples
    --------
    >>> right = np.zeros((2, 2, 10), dtype=int)
    >>> right[:, 1, ::2] = 1
    >>> ds = xr.Dataset({"prediction": (("model", "element", "sample"), right)})
    >>> ds = ds.assign_coords(recipe=("model", ["plain"] * 2), element=["e", "r180"], label=("sample", [0] * 10))
    >>> accuracy(ds).rpartition(". ")[2]
    'On moved images it falls clearly for `plain` (by 0.50, 0.50 to 0.50).'
    """
    identity = ds.element.attrs.get("identity", "e")
    right = (ds.prediction == ds.label).mean("sample")
    upright = right.sel(element=identity).values
    moved = right.sel(element=[element for element in ds.element.values if element != identity]).mean("element").values
    rows = pd.DataFrame({"recipe": ds.recipe.values, "upright": upright, "moved": moved, "lost": upright - moved})
    sentences = [order(rows, name, what=f"accuracy on {name} images") for name in ("upright", "moved")]
    losing = []
    alike = []
    for spread in _spreads(rows, "lost", "recipe"):
        if spread.low > 0:
            losing.append(f"{spread.name} (by {number(spread.mean)}, {_interval(spread.low, spread.high)})")
        else:
            alike.append(spread.name)
    if losing:
        sentences.append(f"On moved images it falls clearly for {_joined(losing)}.")
    if alike:
        sentences.append(f"No clear loss on moved images: {_joined(alike)}.")
    return Reading(" ".join(sentences))


def removed(
    table: pd.DataFrame,
    *,
    metrics: Sequence[str] = ("latent", "channelwise"),
    trained: str = "augmented",
    plain: str = "plain",
) -> Reading:
    """Which share of the plain network's relative value is gone after another training, at the layer that lost most.

    The share is 1 − relative(trained) / relative(plain), seed by seed.

    Parameters
    ----------
    table : pandas.DataFrame
        Of `summarise`, with recipes and seeds.
    metrics : sequence of str
        Each is read at its own layer of the largest share.
    trained, plain : str
        The two recipes.

    Returns
    -------
    Reading

    Examples
    --------
    >>> table = pd.DataFrame({"recipe": ["plain", "plain", "augmented", "augmented"], "seed": [0, 1, 0, 1]})
    >>> table = table.assign(metric="latent", layer="latent", relative=[1.0, 1.0, 0.1, 0.1])
    >>> removed(table, metrics=["latent"])
    'Of the relative value of `plain`, `augmented` lacks: latent 0.90 (0.90 to 0.90) at `latent`.'
    """
    _needs(table, "recipe", "seed", "metric", "layer", "relative")
    parts = []
    for metric in metrics:
        rows = table[(table.metric == metric) & table.relative.notna()]
        shares = []
        for layer in dict.fromkeys(rows.layer):
            one, other = (
                rows[(rows.layer == layer) & (rows.recipe == recipe)].set_index("seed").relative
                for recipe in (trained, plain)
            )
            shares.append(_of(layer, (1 - one / other).dropna().to_numpy()))
        shares = [share for share in shares if share.n]
        if not shares:
            raise ValueError(f"{metric} has no layer at which {trained} and {plain} share a seed with a relative value")
        most = max(shares, key=lambda share: share.mean)
        parts.append(f"{metric} {most.numbers} at {_code(most.name)}")
    return Reading(f"Of the relative value of {_code(plain)}, {_code(trained)} lacks: {'; '.join(parts)}.")


def _needs(table: pd.DataFrame, *columns: str) -> None:
    for name in columns:
        if name not in table:
            raise ValueError(unknown("column", name, table.columns))


def _of(name: str, values: np.ndarray) -> _Spread:
    if not len(values):
        return _Spread(name, math.nan, math.nan, math.nan, 0)
    mean, low, high = mean_interval(values)
    return _Spread(name, mean, low, high, len(values))


def _spread(name: object, rows: pd.DataFrame, value: str) -> _Spread:
    """One kind's spread over its rows; a single row may bring its own interval."""
    values = rows[value].dropna()
    spread = _of(_code(name), values.to_numpy(dtype=float))
    low, high = ("low", "high") if value == "estimate" else (f"{value}_low", f"{value}_high")
    if spread.n == 1 and low in rows and high in rows:
        own = rows.loc[values.index[0]]
        if not np.isnan([own[low], own[high]]).any():
            return _Spread(spread.name, spread.mean, own[low], own[high], 1)
    return spread


def _spreads(rows: pd.DataFrame, value: str, by: str) -> list[_Spread]:
    """The kinds' spreads, the lowest mean first; kinds without a value last."""
    found = [_spread(name, some, value) for name, some in rows.groupby(by, sort=False)]
    return sorted(found, key=lambda spread: (spread.n == 0, spread.mean))


def _tiers(spreads: Iterable[_Spread]) -> list[list[_Spread]]:
    """Spreads in order, cut where everything before lies below everything after with its whole interval."""
    spreads = list(spreads)
    tiers = [[spread] for spread in spreads[:1]]
    for place, spread in enumerate(spreads[1:], start=1):
        if max(before.high for before in spreads[:place]) < min(after.low for after in spreads[place:]):
            tiers.append([spread])
        else:
            tiers[-1].append(spread)
    return tiers


def _ordered(spreads: list[_Spread]) -> str:
    """The order of some kinds, as the rest of a sentence, and what the intervals are."""
    there = [spread for spread in spreads if spread.n]
    gone = [spread.name for spread in spreads if not spread.n]
    if not there:
        return "no value for any of them."
    texts = []
    for tier in _tiers(there):
        texts.append(_joined([spread.text for spread in tier]) + (" in no clear order" if len(tier) > 1 else ""))
    said = f"lowest first: {', then '.join(texts)}."
    said += _replicates(there)
    if gone:
        said += f" No value: {_joined(gone)}."
    return said


def _replicates(spreads: list[_Spread]) -> str:
    counts = sorted({spread.n for spread in spreads})
    if any(not np.isfinite([spread.low, spread.high]).all() for spread in spreads):
        return " A single replicate has no interval."
    if counts == [1]:
        return " In brackets: 95 % intervals."
    over = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f" In brackets: 95 % intervals over {over} replicates."


def _lowest(spreads: list[_Spread]) -> str:
    there = [spread for spread in spreads if spread.n]
    if not there:
        return "nothing can be said: there is no value"
    lowest = _tiers(there)[0]
    if len(lowest) == 1:
        return f"the lowest is {lowest[0].text}"
    return f"the lowest are {_joined([spread.text for spread in lowest])}, in no clear order"


def _ends(spreads: list[_Spread]) -> str:
    """Which of some spreads is highest and which lowest, each with those that its interval overlaps."""
    there = sorted((spread for spread in spreads if spread.n), key=lambda spread: spread.mean)
    if not there:
        return "has no value"
    lowest, highest = there[0], there[-1]
    if not lowest.is_below(highest):
        return f"has no clear order, from {lowest.text} to {highest.text}"
    like_highest = [spread.name for spread in there[:-1] if not spread.is_below(highest)]
    like_lowest = [spread.name for spread in there[1:] if not lowest.is_below(spread)]
    most = f"most for {highest.text}" + (f", not clearly more than for {_joined(like_highest)}" if like_highest else "")
    least = f"least for {lowest.text}" + (f", not clearly less than for {_joined(like_lowest)}" if like_lowest else "")
    return f"{most}; {least}"


def _difference(rows: pd.DataFrame, recipe: str, against: str, value: str) -> _Spread:
    """value(recipe) − value(against) over the seeds that both have."""
    one, other = (rows[rows.recipe == name].set_index("seed")[value] for name in (recipe, against))
    return _of(recipe, (one - other).dropna().to_numpy())


def _departs(differences: dict[str, _Spread]) -> str:
    """At which layers, in the network's order, a recipe lies lower or higher than another."""
    lower = [layer for layer, difference in differences.items() if difference.high < 0]
    higher = [layer for layer, difference in differences.items() if difference.low > 0]
    parts = []
    for way, layers in (("lower", lower), ("higher", higher)):
        if not layers:
            continue
        most = max(layers, key=lambda layer: abs(differences[layer].mean))
        places = _joined([_code(layer) for layer in layers])
        place = f", most at {_code(most)}" if len(layers) > 1 else ""
        parts.append(f"{way} at {places}{place}: {differences[most].numbers}")
    if not parts:
        return "is at no layer clearly apart"
    return f"lies {', and '.join(parts)}"


def _sides(points: list[_Spread], line: float) -> dict[str, list[str]]:
    sides = {"above": [], "on both sides of": [], "below": []}
    for point in points:
        if point.low > line:
            sides["above"].append(point.name)
        elif point.high < line:
            sides["below"].append(point.name)
        else:
            sides["on both sides of"].append(point.name)
    return sides


def _interval(low: float, high: float) -> str:
    if np.isnan([low, high]).any() or not np.isfinite([low, high]).any():
        return ""
    if not np.isfinite(low):
        return f"at most {number(high)}"
    if not np.isfinite(high):
        return f"at least {number(low)}"
    return f"{number(low)} to {number(high)}"


def _titled(metric: str, value: str) -> str:
    return f"relative {metric} EED" if value == "relative" else f"{metric} EED"


def _code(name: object) -> str:
    """A name as Markdown shows it whatever is in it."""
    text = f"{name:g}" if isinstance(name, float) else str(name)
    in_one_line = " ".join(printable(text).split())
    return "`" + in_one_line.replace("`", "'") + "`"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _joined(names: Sequence[str]) -> str:
    """Names with commas, and an "and" before the last."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def _listed(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
