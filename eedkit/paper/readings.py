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
from eedkit.paper import verdicts
from eedkit.results import schema
from eedkit.results.intervals import mean_interval
from eedkit.results.labels import is_right

ZERO = 1e-6
"""Values under this are rounding errors of float32, and are read as 0."""
NAMED = 3
"""Classes or comparisons that are named; where there are more, they are counted."""
FRAGILE = f"{100 * verdicts.FRAGILE:.0f} %"
NUMBERS = ("verdict", "effect", "low", "high", "margin", "n", "critical_margin", "fragile")
"""The columns of `conclusions` that a verdict is read off."""
MEANINGS = {
    verdicts.SUPPORTED: "the bounds over seeds lie wholly on the claimed side of the margin",
    verdicts.CONTRADICTED: "they lie wholly on its other side",
    verdicts.INCONCLUSIVE: "they hold the margin: more seeds could decide either way",
    verdicts.NOT_TESTABLE: f"a premise or a control fails, or there are fewer than {verdicts.MIN_SEEDS} seeds",
}
"""What each verdict says."""


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
        spreads = _spreads(rows, value, by)
        return Reading(f"{_capital(what)}, {_ordered(spreads)}{_replicates(spreads)}")
    spreads_of_all = []
    orders = []
    for name, some in rows.groupby(per, sort=False):
        spreads = _spreads(some, value, by)
        spreads_of_all += spreads
        orders.append(f"{_code(name)}: {_ordered(spreads)}")
    return Reading(f"{_capital(what)}.{_replicates(spreads_of_all)}\n\n{_listed(orders)}")


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
    values = ds[schema.from_x(ds, metric)] - ds[metric].attrs["best"]
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
    replicates = "seeds" if ds[by].to_series().duplicated().any() else "images"
    return Reading(f"Deviation by {over}: {'; '.join(parts)}. In brackets: 95 % intervals over {replicates}.")


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
    right = is_right(ds).mean("sample")
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


def dose(rows: pd.DataFrame) -> Reading:
    """What each share of turned training images removes of the relative deviation, of features and of the best map.

    Parameters
    ----------
    rows : pandas.DataFrame
        Of `conclusions.dose_response`.

    Returns
    -------
    Reading

    Examples
    --------
    >>> rows = pd.DataFrame({"share": 0.1, "what": ["features", "best map"], "effect": [0.7, 0.2], "low": [0.6, 0.1]})
    >>> dose(rows.assign(high=[0.8, 0.3], n=5)).splitlines()[-1]
    '- share 0.1: features 0.70 (0.60 to 0.80), best map 0.20 (0.10 to 0.30)'
    """
    _needs(rows, "share", "what", "effect", "low", "high", "n")
    lines = []
    for share, of_share in rows.groupby("share"):
        parts = []
        for row in of_share.itertuples():
            parts.append(_Spread(row.what, row.effect, row.low, row.high, row.n).text)
        lines.append(f"share {share:g}: {', '.join(parts)}")
    return Reading(f"Of the relative deviation is gone:\n\n{_listed(lines)}")


def comparisons(rows: pd.DataFrame, *, name: str = "test") -> Reading:
    """Every comparison with its verdict and the numbers that it was read off.

    Parameters
    ----------
    rows : pandas.DataFrame
        Of `conclusions`.
    name : str
        The column that says what is compared.

    Returns
    -------
    Reading
        A list.

    Examples
    --------
    >>> row = {"test": "maps do not fall", "verdict": "supported", "effect": 0.1, "low": 0.0, "high": 0.2, "margin": 0.5}
    >>> rows = pd.DataFrame([{**row, "claim": "below", "n": 9, "critical_margin": 0.2, "fragile": False}])
    >>> comparisons(rows)
    '- maps do not fall: **supported** (0.10, bounds 0 to 0.20, margin 0.50, n = 9, critical margin 0.20).'
    """
    _needs(rows, name, *NUMBERS)
    return Reading(_listed([f"{printable(str(row[name]))}: {_judged(row)}." for _, row in rows.iterrows()]))


def conclusion(rows: pd.DataFrame) -> Reading:
    """The verdict on one conclusion, the comparison that decides it, and what the other comparisons say.

    Parameters
    ----------
    rows : pandas.DataFrame
        Of one of the `conclusions`; the last row is the conclusion.

    Returns
    -------
    Reading

    Examples
    --------
    >>> row = {"test": "maps do not fall", "verdict": "supported", "effect": 0.1, "low": 0.0, "high": 0.2, "margin": 0.5}
    >>> row = {**row, "conclusion": "1", "part": "maps", "decided_by": "", "n": 9, "critical_margin": 0.2, "fragile": False}
    >>> last = {**row, "test": "layers stay", "part": "conclusion", "decided_by": "maps do not fall"}
    >>> conclusion(pd.DataFrame([row, last])).partition(" (")[0]
    'Conclusion 1, “layers stay”: **supported**'
    """
    _needs(rows, "conclusion", "part", "decided_by", "test", *NUMBERS)
    last = rows.iloc[-1]
    sentences = [
        f"Conclusion {last.conclusion}, “{last.test}”: {_judged(last)}.",
        f"What decides is “{last.decided_by}”.",
    ]
    if last.fragile:
        sentences.append(f"That is fragile: the bound that decides lies within {FRAGILE} of the margin from it.")
    others = rows.iloc[:-1]
    for part in ("premise", "control"):
        of_part = others[others.part == part]
        if len(of_part):
            sentences.append(f"{_capital(part)}: {_by_verdict(of_part)}.")
    claims = others[~others.part.isin(["premise", "control"])]
    if claims.part.nunique() > 1:
        parts = claims.drop_duplicates("part", keep="last")
        sentences.append(f"Parts: {_by_verdict(parts.assign(test=parts.part))}.")
    compared = claims[claims.decided_by == ""]
    if len(compared) > claims.part.nunique():
        sentences.append(f"Comparisons: {_by_verdict(compared)}.")
    return Reading(" ".join(sentences))


def overview(page: pd.DataFrame) -> Reading:
    """How many conclusions got which verdict, and which of the verdicts are fragile.

    Parameters
    ----------
    page : pandas.DataFrame
        One row per conclusion, the last of those that `conclusions` gives.

    Returns
    -------
    Reading

    Examples
    --------
    >>> page = pd.DataFrame({"conclusion": ["1", "2"], "verdict": ["supported", "inconclusive"], "fragile": [True, False]})
    >>> overview(page).partition(" Fragile")[0]
    'Of 2 conclusions, 1 is **supported** (1) and 1 is **inconclusive** (2).'
    """
    _needs(page, "conclusion", "verdict", "fragile")
    parts = []
    for verdict in MEANINGS:
        which = page[page.verdict == verdict].conclusion.tolist()
        if which:
            verb = "is" if len(which) == 1 else "are"
            parts.append(f"{len(which)} {verb} **{verdict}** ({', '.join(which)})")
    fragile = page[page.fragile.astype(bool)].conclusion.tolist()
    return Reading(
        f"Of {len(page)} conclusions, {_joined(parts)}. "
        f"Fragile, since the bound that decides lies within {FRAGILE} of the margin from it: {', '.join(fragile) or 'none'}."
    )


def headlines(page: pd.DataFrame) -> Reading:
    """Each conclusion in one line: the claim, which leads to the page that shows all of it, and its verdict.

    Parameters
    ----------
    page : pandas.DataFrame
        One row per conclusion, with the claim in words (`paper`) and the stem of its notebook (`notebook`).

    Returns
    -------
    Reading
        A list, one line per conclusion.

    Examples
    --------
    >>> page = pd.DataFrame({"conclusion": ["1"], "paper": ["Layers do it"], "notebook": ["01_layers"], "verdict": ["supported"]})
    >>> page = page.assign(effect=0.5, low=0.4, high=0.6, margin=0.1, n=10, critical_margin=0.4, fragile=False)
    >>> headlines(page)
    '1. [Layers do it](01_layers.html): **supported** (0.50, bounds 0.40 to 0.60, margin 0.10, n = 10, critical margin 0.40)'
    """
    _needs(page, "conclusion", "paper", "notebook", *NUMBERS)
    lines = []
    for _, row in page.iterrows():
        lines.append(f"{row.conclusion}. [{row.paper}]({row.notebook}.html): {_judged(row)}")
    return Reading("\n".join(lines))


def agreement(page: pd.DataFrame, others: pd.DataFrame) -> Reading:
    """Which conclusions get the same verdict when the question is asked in another way.

    Parameters
    ----------
    page : pandas.DataFrame
        One row per conclusion.
    others : pandas.DataFrame
        Rows of the same conclusions, each with the column `question`.

    Returns
    -------
    Reading
        A list, one line per conclusion that was asked again.

    Examples
    --------
    >>> page = pd.DataFrame({"conclusion": ["1"], "verdict": ["supported"]})
    >>> others = pd.DataFrame({"conclusion": ["1"], "verdict": ["contradicted"], "question": ["matched"]})
    >>> agreement(page, others)
    '- Conclusion 1 is **supported** in the first table; otherwise: “matched” (**contradicted**).'
    """
    _needs(page, "conclusion", "verdict")
    _needs(others, "conclusion", "verdict", "question")
    lines_of_text = []
    for number_of, verdict in zip(page.conclusion, page.verdict, strict=True):
        asked = others[others.conclusion == number_of]
        if asked.empty:
            continue
        same = asked[asked.verdict == verdict].question.tolist()
        otherwise = asked[asked.verdict != verdict]
        said = f"Conclusion {number_of} is **{verdict}** in the first table"
        if same:
            said += f"; the same: {_quoted(same)}"
        if len(otherwise):
            different = [
                f"“{question}” (**{got}**)" for question, got in zip(otherwise.question, otherwise.verdict, strict=True)
            ]
            said += f"; otherwise: {', '.join(different)}"
        lines_of_text.append(f"{said}.")
    return Reading(_listed(lines_of_text))


def meanings() -> pd.DataFrame:
    """What each verdict means, as a table.

    Returns
    -------
    pandas.DataFrame
        The columns `verdict` and `meaning`.

    Examples
    --------
    >>> meanings().verdict.tolist()
    ['supported', 'contradicted', 'inconclusive', 'not testable here']
    """
    return pd.DataFrame(MEANINGS.items(), columns=["verdict", "meaning"])


def _judged(row: pd.Series) -> str:
    """A row's verdict and its numbers."""
    if row.n < verdicts.MIN_SEEDS:
        return f"**{row.verdict}** (n = {row.n:g}, fewer than {verdicts.MIN_SEEDS})"
    bounds = _interval(row.low, row.high)
    numbers = [
        number(row.effect),
        *([f"bounds {bounds}"] if bounds else []),
        f"margin {number(row.margin)}",
        f"n = {row.n:g}",
    ]
    said = f"**{row.verdict}** ({', '.join(numbers)}"
    if not np.isnan(row.critical_margin):
        said += f", critical margin {number(row.critical_margin)}"
    return f"{said}{', fragile' if row.fragile else ''})"


def _by_verdict(rows: pd.DataFrame) -> str:
    parts = []
    for verdict in MEANINGS:
        tests = rows[rows.verdict == verdict].test.tolist()
        if tests:
            names = f" ({_quoted(tests)})" if len(tests) <= NAMED else ""
            parts.append(f"**{verdict}** {len(tests)}{names}")
    return "; ".join(parts)


def _needs(table: pd.DataFrame, *columns: str) -> None:
    for name in columns:
        if name not in table:
            raise ValueError(unknown("column", name, table.columns))


def _of(name: str, values: np.ndarray) -> _Spread:
    if not len(values):
        return _Spread(name, math.nan, math.nan, math.nan, 0)
    mean, low, high = mean_interval(np.where(np.abs(values) < ZERO, 0.0, values))
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
    """The order of some kinds, as the rest of a sentence."""
    there = [spread for spread in spreads if spread.n]
    gone = [spread.name for spread in spreads if not spread.n]
    if not there:
        return "no value for any of them."
    texts = []
    for tier in _tiers(there):
        texts.append(_joined([spread.text for spread in tier]) + (" in no clear order" if len(tier) > 1 else ""))
    said = f"lowest first: {', then '.join(texts)}"
    return f"{said}; no value: {_joined(gone)}." if gone else f"{said}."


def _replicates(spreads: list[_Spread]) -> str:
    """What the intervals in brackets are over."""
    spreads = [spread for spread in spreads if spread.n]
    counts = sorted({spread.n for spread in spreads})
    if not counts:
        return ""
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
    most = f"most for {highest.text}" + (f", not clearly more than for {_few(like_highest)}" if like_highest else "")
    least = f"least for {lowest.text}" + (f", not clearly less than for {_few(like_lowest)}" if like_lowest else "")
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
    words = metric.replace("_", " ")
    return f"relative {words} EED" if value == "relative" else f"{words} EED"


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


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"“{name}”" for name in names)


def _few(names: Sequence[str]) -> str:
    return _joined(names) if len(names) <= NAMED else f"{len(names)} others"


def _listed(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
