"""Sentences made from the very table that a figure shows, so that another run gets its own.

A reading says what can be told apart and no more. All differences that it looks at are corrected together (Holm), so that a
table without any difference is read as having one about one time in twenty, however many recipes and layers it has.
"""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike
from scipy.special import stdtr, stdtrit

from eedkit.errors import printable, unknown
from eedkit.paper import verdicts
from eedkit.paper.verdicts import needs
from eedkit.results.labels import class_names, is_right
from eedkit.results.summary import as_relative, ratio_from_x

WORDS = 25
"""A headline has no more of them."""
ERROR = 0.05
"""How likely a reading may be to tell a difference where there is none."""
ZERO = 1e-6
"""Smaller values are rounding errors of float32, and are read as 0."""
LONGEST_NAME = 40
"""Characters of a name that are shown."""
ANY = (-math.inf, math.inf)
RANGES = {
    **dict.fromkeys(["relative", "deviation", "gap"], (0.0, math.inf)),
    **dict.fromkeys(["accuracy", "consistency", "share"], (0.0, 1.0)),
}
"""Column -> the values that it can have, in which intervals stay."""


@dataclass(frozen=True)
class Reading:
    """Markdown: a headline of at most 25 words, and details that a page folds.

    >>> Reading("`plain` is **highest**.")._repr_markdown_()
    '`plain` is **highest**.'
    """

    headline: str
    details: str = ""

    def _repr_markdown_(self) -> str:
        if not self.details:
            return self.headline
        return f"{self.headline}\n\n<details><summary>In numbers</summary>\n\n{self.details}\n\n</details>"


@dataclass(frozen=True)
class Mean:
    """An estimate with its standard error and degrees of freedom; the error is NaN for a single replicate."""

    name: str
    value: float
    error: float
    degrees: float
    n: int
    range: tuple[float, float] = ANY

    @classmethod
    def of(cls, name: object, values: ArrayLike, within: tuple[float, float] = ANY) -> "Mean":
        """The mean of replicates; NaN is left out."""
        array = np.asarray(values, dtype=float)
        array = array[~np.isnan(array)]
        array = np.where(np.abs(array) < ZERO, 0.0, array)
        n = len(array)
        value = float(array.mean()) if n else math.nan
        error = float(array.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
        return cls(_code(name), value, error, n - 1, n, within)

    def minus(self, other: "Mean") -> "Mean":
        """The difference of two independent means, with Welch's degrees of freedom."""
        total = self.error**2 + other.error**2
        parts = self.error**4 / max(self.degrees, 1) + other.error**4 / max(other.degrees, 1)
        degrees = total**2 / parts if parts > 0 else math.inf
        return Mean(self.name, self.value - other.value, math.sqrt(total), degrees, min(self.n, other.n))

    @property
    def p(self) -> float:
        """Of the hypothesis that it is 0, on two sides."""
        if math.isnan(self.value) or math.isnan(self.error):
            return 1.0
        if self.error == 0:
            return float(self.value == 0)
        return float(2 * stdtr(self.degrees, -abs(self.value) / self.error))

    @property
    def interval(self) -> str:
        """Its 95 % interval within its range, in brackets; nothing for a single replicate."""
        if math.isnan(self.error):
            return ""
        half = stdtrit(self.degrees, 0.975) * self.error
        low, high = np.clip([self.value - half, self.value + half], *self.range)
        return f" ({number(low)} to {number(high)})"

    @property
    def numbers(self) -> str:
        """Value and interval."""
        return f"{number(self.value)}{self.interval}"

    def __str__(self) -> str:
        return f"{self.name} {self.numbers}"


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
    rows: pd.DataFrame, value: str, *, by: str = "recipe", per: str | None = None, what: str | None = None
) -> Reading:
    """Which kind has the lowest mean, which the highest, and between which there is no clear order.

    Parameters
    ----------
    rows : one row per replicate (seed), or a single one with its own interval; rows without a value do not count
    value, by : the columns that are read and that name the kinds
    per : a column for each of whose values the order is read by itself
    what : what the column holds, in words

    Examples
    --------
    >>> rows = pd.DataFrame({"recipe": ["a"] * 3 + ["b"] * 3, "accuracy": [0.5, 0.52, 0.51, 0.9, 0.91, 0.92]})
    >>> print(order(rows, "accuracy").headline)
    Accuracy: lowest for `a` 0.51 (0.49 to 0.53), highest for `b` 0.91 (0.89 to 0.93).
    """
    needs(rows, value, by, *([per] if per else []))
    start = f"{_capital(what or value.replace('_', ' '))}: "
    groups = dict(iter(rows.groupby(per, sort=False))) if per else {"": rows}
    means = {name: _lowest_first(of_group, value, by) for name, of_group in groups.items()}
    is_clear = _clear_pairs(means)
    cuts = {name: _cuts(name, of_group, is_clear) for name, of_group in means.items()}
    details = _orders(means, cuts, rows)
    lacking = [_code(name) for name, of_kind in rows.groupby(by, sort=False) if of_kind[value].isna().any()]
    if lacking:
        details += f" Values are missing for {_joined(lacking)}."
    if per:
        ends = []
        for way, end in (("lowest", 0), ("highest", -1)):
            names = []
            for name, of_group in means.items():
                # nobody is beside it on its side of the first or the last cut
                if (1 if end == 0 else len(of_group) - 1) in cuts[name]:
                    names.append(of_group[end].name)
            if names:
                most = max(names, key=names.count)
                ends.append(f"{most} is clearly {way} in {names.count(most)}")
        said = f"{', '.join(ends) or 'none is clearly lowest or highest'} of {len(means)} by {_code(per)}."
        return Reading(_headline(said, f"{len(means)} orders by {_code(per)}.", start), details)
    if not means[""]:
        return Reading(f"{start}no value for any of them.")
    lowest, highest = means[""][0], means[""][-1]
    if len(means[""]) == 1:
        said = f"{lowest}."
    elif is_clear["", lowest.name, highest.name]:
        said = f"lowest for {lowest}, highest for {highest}."
    else:
        said = f"no clear order, from {lowest} to {highest}."
    return Reading(_headline(said, f"From {number(lowest.value)} to {number(highest.value)}.", start), details)


def ranks(rows: pd.DataFrame, value: str, *, one: str, by: str = "recipe", what: str | None = None) -> Reading:
    """How many networks of the other kinds lie below a single one, which has no spread of its own to compare with theirs.

    Parameters
    ----------
    rows : one row per network
    value, by : the columns that are read and that name the kinds
    one : the kind of the single network
    what : what the column holds, in words

    Examples
    --------
    >>> rows = pd.DataFrame({"recipe": ["trained"] + ["random"] * 5, "relative": [0.1, 0.9, 0.8, 0.9, 0.7, 0.9]})
    >>> print(ranks(rows, "relative", one="trained").headline)
    Relative: `trained` 0.10; 0 of 5 `random` lie below it.
    """
    needs(rows, value, by)
    rows = rows.dropna(subset=[value])
    others = rows.loc[rows[by] != one]
    if len(rows) - len(others) != 1 or others.empty:
        raise ValueError(f"ranks take a single {one!r} and others, got {rows[by].value_counts().to_dict()}")
    its_value = rows.loc[rows[by] == one, value].item()
    counts = []
    spans = []
    for name, of_kind in others.groupby(by, sort=False):
        values = of_kind.loc[:, value]
        counts.append(f"{(values < its_value).sum()} of {len(values)} {_code(name)}")
        spans.append(f"{_code(name)} from {number(values.min())} to {number(values.max())}")
    start = f"{_capital(what or value.replace('_', ' '))}: "
    text = f"{_code(one)} {number(its_value)}; {_joined(counts)} lie below it."
    short = f"{(others[value] < its_value).sum()} of {len(others)} others lie below {number(its_value)}."
    return Reading(_headline(text, short, start), _listed(spans))


def depth_profile(table: pd.DataFrame, *, metric: str) -> Reading:
    """At how many layers each recipe's relative values lie clearly below or above plain's, seed by seed, and by how much.

    >>> table = pd.DataFrame({"recipe": ["plain"] * 3 + ["augmented"] * 3, "seed": [0, 1, 2] * 2, "metric": "latent"})
    >>> table = table.assign(layer="latent", depth=1.0, relative=[0.9, 0.91, 0.92, 0.1, 0.12, 0.11])
    >>> print(depth_profile(table, metric="latent").headline)
    Latent, against `plain`: `augmented` lower at 1 of 1 layers (most at `latent`: −0.80, −0.82 to −0.78).
    """
    needs(table, "recipe", "seed", "metric", "layer", "depth", "relative")
    rows = table.loc[(table.metric == metric) & table.relative.notna() & ~table.layer.str.endswith("[class]")]
    if rows.empty:
        raise ValueError(unknown("metric with relative values", metric, table[table.relative.notna()].metric.unique()))
    layers = list(dict.fromkeys(rows.sort_values(by="depth", kind="stable").layer))
    by_seed = rows.pivot(index=["layer", "seed"], columns="recipe", values="relative")
    others = [recipe for recipe in dict.fromkeys(rows.recipe) if recipe != "plain"]
    if "plain" not in by_seed or not others:
        raise ValueError(f"a profile is read against plain, got the recipes {', '.join(by_seed)}")
    differences = {}
    for recipe, layer in itertools.product(others, layers):
        of_layer = by_seed.loc[layer]
        differences[recipe, layer] = Mean.of(layer, of_layer[recipe] - of_layer["plain"])
    signs = _clear(differences)
    texts = []
    lines_of_details = []
    for recipe in others:
        ways = []
        all_apart = []
        for way, sign in (("lower", -1), ("higher", 1)):
            means = [differences[recipe, layer] for layer in layers if signs[recipe, layer] == sign]
            if means:
                ways.append(f"{way} at {len(means)}")
                all_apart += means
                lines_of_details.append(f"{_code(recipe)} {way}: {_joined([str(mean) for mean in means])}")
        if all_apart:
            most = max(all_apart, key=lambda mean: abs(mean.value))
            size = f"most at {most.name}: {number(most.value)}, {most.interval.strip(' ()')}"
            texts.append(f"{_code(recipe)} {', '.join(ways)} of {len(layers)} layers ({size})")
        else:
            texts.append(f"{_code(recipe)} nowhere clearly apart")
    leaving = {recipe for (recipe, _), sign in signs.items() if sign}
    short = f"{len(leaving)} of {len(others)} recipes leave `plain` clearly at some layer."
    note = f"Differences from `plain`, seed by seed, over {rows.seed.nunique()} seeds."
    text = f"against `plain`: {'; '.join(texts)}."
    headline = _headline(text, short, f"{metric.replace('_', ' ')}, ")
    return Reading(headline, f"{_listed(lines_of_details)}\n\n{note}".strip())


def extremes(ds: xr.Dataset, over: str, *, metric: str = "latent") -> Reading:
    """For which class, or under which element but the identity, each kind of network deviates least and most.

    Read are relative values from the unmoved image, as figures by class and by element show them. The metric is one of the
    features or of an output, with its null; `over` is "label" or "element".

    >>> import eedkit as ek, torch
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(25, 3))
    >>> ds = ek.measure(net, torch.rand(8, 1, 5, 5), group="C4", name="net", progress=False)
    >>> print(extremes(ds, "element").headline.partition(":")[0])
    Relative deviation by element
    """
    if over not in ("label", "element"):
        raise ValueError(f'extremes are read over "label" or "element", got {over!r}')
    layer = "latent" if "layer" in ds[metric].dims else None
    ratios = [ratio_from_x(ds.isel(model=[place]), metric, layer) for place in range(ds.sizes["model"])]
    of_models = xr.concat(ratios, ds.model, coords="minimal", compat="override").assign_coords(ds.model.coords)
    rows = _by_kind(of_models, over, "relative")
    rows["relative"] = rows.groupby(["kind", over]).relative.transform(_roots, ds[metric].attrs["order"])
    if over == "label":
        rows["label"] = rows.label.replace(dict(enumerate(class_names(ds))))
    per = "kind" if rows.kind.nunique() > 1 else None
    return order(rows, "relative", by=over, per=per, what=f"relative deviation by {over}")


def _roots(ratios: pd.Series, power: int) -> pd.Series:
    """Values on the relative scale, of which the mean is the root of the mean ratio, with the delta method's spread."""
    mean = ratios.mean()
    root = as_relative(mean, power)
    slope = root / (power * mean) if mean > 0 else 0.0
    return root + slope * (ratios - mean)


def accuracy(ds: xr.Dataset) -> Reading:
    """Who reads moved images worse than upright ones, and how well each kind of network reads both.

    >>> right = np.zeros((3, 2, 10), dtype=int)
    >>> right[:, 1, ::2] = 1
    >>> ds = xr.Dataset({"prediction": (("model", "element", "sample"), right)})
    >>> ds = ds.assign_coords(recipe=("model", ["plain"] * 3), element=["e", "r180"], label=("sample", [0] * 10))
    >>> print(accuracy(ds.assign_coords(model=list("abc"))).headline)
    On moved images accuracy falls clearly for `plain` (by 0.50).
    """
    right = is_right(ds)
    is_upright = right.element == right.element.attrs.get("identity", "e")
    right = right.assign_coords(images=("element", np.where(is_upright, "upright", "moved")))
    rows = _by_kind(right, "images", "accuracy")
    lost = {}
    for name, of_kind in rows.groupby("kind", sort=False):
        by_images = {images: part.accuracy.to_numpy() for images, part in of_kind.groupby("images")}
        lost[name] = Mean.of(name, by_images["upright"] - by_images["moved"])
    signs = _clear(lost)
    losing = [f"{mean.name} (by {number(mean.value)})" for name, mean in lost.items() if signs[name] > 0]
    others = [mean.name for name, mean in lost.items() if signs[name] <= 0]
    texts = []
    if losing:
        texts.append(f"falls clearly for {_joined(losing)}")
    if others:
        texts.append(f"shows no clear loss for {_joined(others)}")
    headline = _headline(
        f"On moved images accuracy {', and '.join(texts)}.",
        f"On moved images accuracy falls clearly for {len(losing)} of {len(lost)} kinds of network.",
    )
    return Reading(headline, order(rows, "accuracy", by="kind", per="images").details)


def comparisons(rows: pd.DataFrame) -> Reading:
    """How many comparisons of `conclusions` got which verdict, and by part each of them with the numbers it was read off.

    >>> from eedkit.paper.verdicts import Claim, Comparison, concluded, mean_effect
    >>> rows = concluded("9", "it is large", {"size": Comparison("it is", Claim("above", 1), mean_effect([3.0] * 5))})
    >>> print(comparisons(rows.head(1)).details)
    Conclusion 9, size:
    <BLANKLINE>
    - it is: **supported**, 3.00 (3.00 to 3.00), margin 1.00, 5 seeds
    """
    needs(rows, *verdicts.COLUMNS)
    counts = [(verdict, (rows.verdict == verdict).sum()) for verdict in verdicts.VERDICTS]
    texts = [f"{count} **{verdict}**" for verdict, count in counts if count]
    parts = []
    for (name, beside, part), of_part in rows.groupby(["conclusion", "beside", "part"], sort=False):
        where = part if beside in ("", part) else f"{beside}, {part}"
        compared = [f"{printable(row.test)}: **{row.verdict}**, {_numbers(row)}" for _, row in of_part.iterrows()]
        parts.append(f"{printable(f'Conclusion {name}, {where}')}:\n\n{_listed(compared)}")
    return Reading(f"{', '.join(texts)}.", "\n\n".join(parts))


def conclusion(rows: pd.DataFrame) -> Reading:
    """The verdict on one of the `conclusions`, the effect that decides it, and how many seeds would where it is open.

    >>> from eedkit.paper.verdicts import Claim, Comparison, concluded, mean_effect
    >>> it_is = Comparison("it is", Claim("above", 1), mean_effect([3.0] * 5), {"value": "size"})
    >>> print(conclusion(concluded("9", "it is large", {"size": it_is})).headline)
    **Supported**: it is large. Size: 3.00 (3.00 to 3.00), margin 1.00, 5 seeds.
    """
    needs(rows, *verdicts.COLUMNS)
    last = rows.iloc[-1]
    ends = [f"What decides: {printable(last.decided_by)}."]
    if not np.isnan(last.critical_margin):
        ends.append(f"The verdict would flip at a margin of {number(last.critical_margin)}.")
    if last.seeds_needed > 0:
        ends.append(f"{last.seeds_needed:,.0f} seeds would decide it.")
    elif last.verdict == verdicts.INCONCLUSIVE:
        ends.append("No number of seeds is known to decide it.")
    return Reading(_verdict(last, last.test), " ".join(ends))


def headlines(page: pd.DataFrame) -> Reading:
    """Each conclusion in a line of at most 25 words: its verdict, the claim, which leads to its page, and what decides.

    The page is what `verdicts.load` gives, with a column `notebook`: the stem of each row's notebook.

    >>> from eedkit.paper.verdicts import Claim, Comparison, concluded, mean_effect
    >>> it_is = Comparison("it is", Claim("above", 1), mean_effect([3.0] * 5), {"value": "size"})
    >>> print(headlines(concluded("9", "it is large", {"size": it_is}).assign(notebook="09_size")).headline)
    9. **Supported**: [it is large](09_size.html). Size: 3.00 (3.00 to 3.00), margin 1.00, 5 seeds.
    """
    needs(page, "notebook", *verdicts.COLUMNS)
    texts = []
    for _, row in page[page.part == "conclusion"].iterrows():
        texts.append(_verdict(row, f"[{row.test}]({row.notebook}.html)", f"{row.conclusion}. "))
    return Reading("\n".join(texts))


def _verdict(row: pd.Series, claim: str, start: str = "") -> str:
    """A conclusion's verdict, its claim and its numbers with what they are, as a headline."""
    verdict = f"{start}**{row.verdict.capitalize()}**"
    numbers = _capital(_numbers(row))
    if row.verdict == verdicts.NOT_TESTABLE:
        if row.n >= verdicts.MIN_SEEDS:
            numbers = "A premise or a control is not met"
    elif row.value:
        numbers = f"{_capital(row.value)}: {_numbers(row)}"
    text = f"{verdict}: {claim}. {numbers}."
    if len(text.split()) > WORDS:
        # how many seeds would decide stands in the details, too
        text = f"{text.partition(';')[0]}."
    return text


def _numbers(row: pd.Series) -> str:
    """The effect with the bounds that there are, and how many seeds there are and would be needed."""
    if row.n < verdicts.MIN_SEEDS:
        return f"{row.n:g} seeds, fewer than {verdicts.MIN_SEEDS}"
    bounds = ""
    if np.isfinite([row.low, row.high]).all():
        bounds = f" ({number(row.low)} to {number(row.high)})"
    elif np.isfinite(row.low):
        bounds = f" (at least {number(row.low)})"
    elif np.isfinite(row.high):
        bounds = f" (at most {number(row.high)})"
    needed = "" if np.isnan(row.seeds_needed) else f"; {row.seeds_needed:,.0f} would decide"
    return f"{number(row.effect)}{bounds}, margin {number(row.margin)}, {row.n:g} seeds{needed}"


def _clear(differences: Mapping[Any, Mean]) -> dict[Any, int]:
    """The sign of each difference that Holm's procedure tells from 0 among all of these, 0 of the others.

    >>> _clear({"a": Mean("", 3.0, 0.1, 4, 5), "b": Mean("", -0.1, 0.1, 4, 5)})
    {'a': 1, 'b': 0}
    """
    signs = dict.fromkeys(differences, 0)
    p_values = {key: difference.p for key, difference in differences.items()}
    ordered = sorted(differences, key=lambda key: p_values[key])
    for place, key in enumerate(ordered):
        if p_values[key] * (len(ordered) - place) > ERROR:
            break
        signs[key] = int(np.sign(differences[key].value))
    return signs


def _clear_pairs(groups: Mapping[Any, Sequence[Mean]]) -> dict[tuple, bool]:
    """(group, one name, another) -> whether the first lies clearly below the second; of all groups together."""
    differences = {}
    for group, means in groups.items():
        for one, other in itertools.combinations(means, 2):
            differences[group, one.name, other.name] = other.minus(one)
    is_below = {}
    for (group, one, other), sign in _clear(differences).items():
        is_below[group, one, other] = sign > 0
        is_below[group, other, one] = sign < 0
    return is_below


def _by_kind(values: xr.DataArray, over: str, column: str) -> pd.DataFrame:
    """Means by kind and `over`, one row for each network, or for each image where there is one network of the kind.

    Kinds are recipes, or models where there are none.
    """
    by = "recipe" if "recipe" in values.coords else "model"
    tables = []
    for kind in dict.fromkeys(values[by].values.tolist()):
        of_kind = values.isel(model=np.flatnonzero(values[by].values == kind))
        unit = "model" if of_kind.sizes["model"] > 1 else "sample"
        for name, part in of_kind.groupby(over):
            means = part.mean([dim for dim in part.dims if dim != unit]).values
            tables.append(pd.DataFrame({"kind": kind, over: name, column: means}))
    return pd.concat(tables)


def _mean(name: object, rows: pd.DataFrame, value: str) -> Mean:
    """One kind's mean over its rows; a single row may bring its own interval."""
    within = RANGES.get(value, ANY)
    values = rows.loc[:, value].dropna()
    low, high = ("low", "high") if value in ("estimate", "effect") else (f"{value}_low", f"{value}_high")
    if len(values) == 1 and low in rows and high in rows:
        own = rows.loc[values.index[0]]
        if np.isfinite([own[low], own[high]]).all():
            # 1.96 standard errors on each side, as from many images
            return Mean(_code(name), own[value], (own[high] - own[low]) / (2 * 1.96), math.inf, 1, within)
    return Mean.of(name, values, within)


def _lowest_first(rows: pd.DataFrame, value: str, by: str) -> list[Mean]:
    """The means of the kinds that have a value."""
    means = [_mean(name, of_kind, value) for name, of_kind in rows.dropna(subset=[value]).groupby(by, sort=False)]
    return sorted(means, key=lambda mean: mean.value)


def _cuts(group: object, means: Sequence[Mean], is_clear: Mapping[tuple, bool]) -> list[int]:
    """The places at which all before lie clearly below all from there on."""
    cuts = []
    for place in range(1, len(means)):
        pairs = itertools.product(means[:place], means[place:])
        if all(is_clear[group, before.name, after.name] for before, after in pairs):
            cuts.append(place)
    return cuts


def _orders(groups: Mapping[Any, Sequence[Mean]], cuts: Mapping[Any, list[int]], rows: pd.DataFrame) -> str:
    """The kinds of each group in their order, with a "then" at its cuts, and what the intervals in brackets are over."""
    texts = []
    for group, means in groups.items():
        text = f"{_code(group)}, lowest first: " if group != "" else "lowest first: "
        for place, mean in enumerate(means):
            if place:
                text += ", then " if place in cuts[group] else ", "
            text += str(mean)
        texts.append(text if means else f"{_code(group)}: no value for any of them")
    return f"{_listed(texts)}\n\n{_replicates(groups, rows)} “Then” stands where the order is clear."


def _replicates(groups: Mapping[Any, Sequence[Mean]], rows: pd.DataFrame) -> str:
    """What the intervals in brackets are over."""
    means = list(itertools.chain.from_iterable(groups.values()))
    counts = sorted({mean.n for mean in means})
    if counts in ([], [1]):
        has_interval = any(mean.interval for mean in means)
        return "In brackets: 95 % intervals." if has_interval else "A single replicate has no interval."
    unit = "seeds" if "seed" in rows and rows.seed.nunique() > 1 else "replicates"
    over = f"{counts[-1]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"In brackets: 95 % intervals over {over} {unit}."


def _headline(text: str, short: str, start: str = "") -> str:
    """A text of at most `WORDS` words: without its start or its intervals where it is longer, else the short one."""
    without_intervals = re.sub(r" \([^()]* to [^()]*\)", "", text)
    for wording in (f"{start}{text}", text, f"{start}{without_intervals}", without_intervals):
        if len(wording.split()) <= WORDS:
            return _capital(wording)
    return short


def _code(name: object) -> str:
    """A name as Markdown shows it whatever is in it."""
    text = f"{name:g}" if isinstance(name, float) else str(name)
    text = " ".join(printable(text).split()).replace("`", "'")
    if len(text) > LONGEST_NAME:
        text = f"{text[: LONGEST_NAME - 1]}…"
    return f"`{text}`"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _joined(names: Sequence[str]) -> str:
    """Names with commas, and an "and" before the last."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def _listed(texts: Sequence[str]) -> str:
    return "\n".join(f"- {text}" for text in texts)
