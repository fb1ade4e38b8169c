"""Verdicts: what bounds over seeds say of claims whose margins were declared beforehand.

A `Comparison` holds one claim about one effect. `Every` and `Some` put claims together, and `judge` gives each of them the error
that it may make, so that a wrong verdict on the whole is no likelier than 1 − confidence:

* "All of these" is supported where each part is, at the full level (an intersection-union test). It is contradicted where *some*
  part is, and that is a union over the parts: it takes Holm's correction.
* "Some of these" is the mirror image: supported where some part is, with Holm's correction, and contradicted where all parts
  are, each at the full level.
"""

import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from eedkit.errors import unknown
from eedkit.results.intervals import mean_interval

SUPPORTED = "supported"
CONTRADICTED = "contradicted"
INCONCLUSIVE = "inconclusive"
NOT_TESTABLE = "not testable here"
MIN_SEEDS = 5
"""With fewer seeds a comparison, and any conclusion that needs it, is `not testable here`."""
FRAGILE = 0.2
"""A verdict is fragile where the bound that decides it lies within this part of the margin from the margin."""
DIRECTIONS = {
    "above": "the effect is larger than the margin",
    "below": "the effect is smaller than the margin",
    "beyond": "the effect lies further from 0 than the margin, on either side",
}


@dataclass(frozen=True)
class Claim:
    """Where an effect is claimed to lie: `above` its margin, `below` it, or `beyond` it on either side (two-sided).

    The opposite contradicts it.
    """

    direction: str
    margin: float

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise ValueError(unknown("direction of a claim", self.direction, DIRECTIONS))
        if not self.margin >= 0:
            raise ValueError(f"a margin says how much counts, so it is not negative; got {self.margin}")

    @property
    def unit(self) -> float:
        """The margin, or 1 where that is 0."""
        return self.margin or 1.0

    def tails(self, level: float, level_against: float) -> tuple[float, float]:
        """How likely the lower and the upper bound may each be wrong: one-sided, but for `beyond`.

        >>> Claim("above", 0.1).tails(0.05, 0.01), Claim("below", 0.1).tails(0.05, 0.01)
        ((0.05, 0.01), (0.01, 0.05))
        """
        if self.direction == "above":
            return level, level_against
        if self.direction == "below":
            return level_against, level
        each = min(level, level_against) / 2
        return each, each

    def slack(self, low: float, high: float) -> tuple[float, float]:
        """How far on the claimed side of the margin the effect lies at least and at most, in margins.

        >>> Claim("above", 0.5).slack(1.0, 2.0), Claim("below", 0.5).slack(1.0, 2.0), Claim("beyond", 0.5).slack(-2.0, -1.0)
        ((1.0, 3.0), (-3.0, -1.0), (1.0, 3.0))
        """
        if self.direction == "below":
            return (self.margin - high) / self.unit, (self.margin - low) / self.unit
        if self.direction == "beyond":
            low, high = max(low, -high), max(high, -low)
        return (low - self.margin) / self.unit, (high - self.margin) / self.unit

    def critical_margin(self, slack: float) -> float:
        """The margin that would coincide with a bound that lies so many margins from the declared one."""
        sign = -1 if self.direction == "below" else 1
        return self.margin + sign * slack * self.unit


@dataclass(frozen=True)
class Effect:
    """An estimate from n seeds and its bounds.

    `bounds(tail_low, tail_high)` gives the lower and the upper bound that are wrong with these probabilities.
    """

    value: float
    n: int
    bounds: Callable[[float, float], tuple[float, float]]


def mean_effect(values: Sequence[float]) -> Effect:
    """The mean over seeds, with Student's t; NaN is left out.

    >>> mean_effect([1.0, 1.0, np.nan]).bounds(0.05, 0.05)
    (1.0, 1.0)
    """
    values = np.asarray(values, dtype=float)
    values = values[~np.isnan(values)]
    if not len(values):
        raise ValueError("there is no seed for which both sides of the comparison have a value")

    def bounds(tail_low: float, tail_high: float) -> tuple[float, float]:
        low = mean_interval(values, confidence=1 - 2 * tail_low)[1]
        high = mean_interval(values, confidence=1 - 2 * tail_high)[2]
        return low, high

    return Effect(float(values.mean()), len(values), bounds)


def ratio_effect(numerators: Sequence[float], denominators: Sequence[float]) -> Effect:
    """The ratio of two means over the same seeds, with Fieller's bounds; the mean of the denominators must be positive.

    They are the ratios r at which Student's t on the paired differences, numerator − r · denominator, begins to tell these
    from 0. So the verdict is that of the paired difference, which has no denominator to be small by chance in one seed, and
    the bounds are on the scale of the ratio. Where the denominators cannot be told from 0, they are infinite.

    >>> ratio_effect([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]).value
    0.5
    """
    pairs = np.column_stack([numerators, denominators]).astype(float)
    pairs = pairs[~np.isnan(pairs).any(axis=1)]
    if not len(pairs):
        raise ValueError("there is no seed for which both sides of the comparison have a value")
    n = len(pairs)
    numerator, denominator = pairs.mean(axis=0)

    def root(tail: float, sign: int) -> float:
        from scipy.special import stdtrit

        if n < 2:
            return sign * np.inf
        spread = stdtrit(n - 1, tail) ** 2 * np.cov(pairs.T) / n
        # (numerator − r · denominator)² = spread of that difference, as a quadratic equation in r
        square = denominator**2 - spread[1, 1]
        if denominator <= 0 or square <= 0:
            return sign * np.inf
        half = numerator * denominator - spread[0, 1]
        constant = numerator**2 - spread[0, 0]
        return float((half + sign * np.sqrt(max(half**2 - square * constant, 0.0))) / square)

    return Effect(float(numerator / denominator), n, lambda low, high: (root(low, -1), root(high, 1)))


def opposed_effect(effects: Sequence[Effect]) -> Effect:
    """How far effects lie on opposite sides of 0: the smaller of the largest rise and the largest fall.

    The lower bound is that of whichever effects stand out, so its error is divided among all of them. The upper one may be
    wrong on either of the two sides.
    """

    def smaller_of(rises: Sequence[float], falls: Sequence[float]) -> float:
        return float(min(max(rises), max(falls)))

    def bounds(tail_low: float, tail_high: float) -> tuple[float, float]:
        outer = [effect.bounds(tail_low / len(effects), tail_low / len(effects)) for effect in effects]
        inner = [effect.bounds(tail_high / 2, tail_high / 2) for effect in effects]
        low = smaller_of([low for low, _ in outer], [-high for _, high in outer])
        high = smaller_of([high for _, high in inner], [-low for low, _ in inner])
        return low, high

    values = [effect.value for effect in effects]
    value = smaller_of(values, [-value for value in values])
    return Effect(value, min(effect.n for effect in effects), bounds)


def rank_effect(x: Sequence[float], y: Sequence[float]) -> Effect:
    """Spearman's ρ with the bounds of Bonett & Wright (2000): Fisher's z, variance (1 + ρ²/2) / (n − 3).

    A perfect order counts, for its bounds, as one with two neighbours exchanged, or nothing would be left uncertain.

    >>> rank_effect(range(8), range(8)).value
    1.0
    """
    from scipy.special import ndtri
    from scipy.stats import spearmanr

    n = len(x)
    if n < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Effect(float("nan"), n, lambda tail_low, tail_high: (-1.0, 1.0))
    rho = float(spearmanr(x, y).statistic)
    most = 1 - 12 / (n * (n**2 - 1))
    seen = min(max(rho, -most), most)
    error = np.sqrt((1 + seen**2 / 2) / (n - 3))

    def bounds(tail_low: float, tail_high: float) -> tuple[float, float]:
        low = np.tanh(np.arctanh(seen) + ndtri(tail_low) * error)
        high = np.tanh(np.arctanh(seen) - ndtri(tail_high) * error)
        return float(low), float(high)

    return Effect(rho, n, bounds)


@dataclass(frozen=True)
class Comparison:
    """One claim about one effect: a row of the table. `about` holds further columns."""

    test: str
    claim: Claim
    effect: Effect
    about: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Every:
    """All of these."""

    parts: Sequence["Comparison | Every | Some"]


@dataclass(frozen=True)
class Some:
    """At least one of these."""

    parts: Sequence["Comparison | Every | Some"]


@dataclass(frozen=True)
class Judged:
    """How far on the claimed side the whole lies at least and at most, in margins; which comparisons say so; and all rows."""

    least: float
    most: float
    least_row: dict
    most_row: dict
    rows: list[dict]

    @property
    def verdict(self) -> str:
        """What the bounds say; nothing where a comparison has too few seeds."""
        if min(row["n"] for row in self.rows) < MIN_SEEDS:
            return NOT_TESTABLE
        if self.least > 0:
            return SUPPORTED
        if self.most < 0:
            return CONTRADICTED
        return INCONCLUSIVE

    def row(self) -> dict:
        """The comparison that decides, or the one that needs least to decide, with the verdict on the whole."""
        if self.verdict == NOT_TESTABLE:
            row = min(self.rows, key=lambda one: one["n"])
            return {**row, "verdict": NOT_TESTABLE, "critical_margin": np.nan, "fragile": False}
        ends = [(self.least, self.least_row), (self.most, self.most_row)]
        if self.verdict != INCONCLUSIVE:
            ends = ends[:1] if self.verdict == SUPPORTED else ends[1:]
        candidates = []
        for slack, row in ends:
            claim = Claim(row["claim"], row["margin"])
            critical = claim.critical_margin(slack)
            # no margin is negative, so such an end can flip nothing
            candidates.append((abs(slack) if critical >= 0 else np.inf, critical, claim, row))
        distance, critical, claim, row = min(candidates, key=lambda one: one[0])
        fragile = distance * claim.unit <= FRAGILE * claim.margin
        if not np.isfinite(distance):
            critical = np.nan
        return {**row, "verdict": self.verdict, "critical_margin": critical, "fragile": fragile}


def judge(claim: Comparison | Every | Some, level: float, level_against: float) -> Judged:
    """A claim at the probabilities with which it may wrongly be supported and wrongly be contradicted.

    The rows below `Every` and `Some` come at Holm's levels; the whole is settled by the first step of Holm.
    """
    if isinstance(claim, Comparison):
        return _compared(claim, level, level_against)
    if not claim.parts:
        raise ValueError("there is nothing to compare: expected at least one recipe and one metric")
    count = len(claim.parts)
    if isinstance(claim, Every):
        steps = _holm(claim.parts, level_against, lambda part, step: judge(part, level, step).most < 0)
        first = [judge(part, level, level_against / count) for part in claim.parts]
        shown = [judge(part, level, step) for part, step in zip(claim.parts, steps, strict=True)]
        weakest = min(first, key=lambda part: part.least)
        strongest = min(first, key=lambda part: part.most)
    else:
        steps = _holm(claim.parts, level, lambda part, step: judge(part, step, level_against).least > 0)
        first = [judge(part, level / count, level_against) for part in claim.parts]
        shown = [judge(part, step, level_against) for part, step in zip(claim.parts, steps, strict=True)]
        weakest = max(first, key=lambda part: part.least)
        strongest = max(first, key=lambda part: part.most)
    rows = list(itertools.chain.from_iterable(part.rows for part in shown))
    return Judged(weakest.least, strongest.most, weakest.least_row, strongest.most_row, rows)


def _holm(parts: Sequence, level: float, decided: Callable) -> list[float]:
    """Holm's step-down: the level of each part; those that are left when none is decided share the last one."""
    levels = [0.0] * len(parts)
    left = list(range(len(parts)))
    while left:
        step = level / len(left)
        for place in left:
            levels[place] = step
        undecided = [place for place in left if not decided(parts[place], step)]
        if len(undecided) == len(left):
            break
        left = undecided
    return levels


def _compared(comparison: Comparison, level: float, level_against: float) -> Judged:
    claim = comparison.claim
    effect = comparison.effect
    low, high = effect.bounds(*claim.tails(level, level_against))
    least, most = claim.slack(low, high)
    row = {
        "test": comparison.test,
        "claim": claim.direction,
        "effect": effect.value,
        "low": low,
        "high": high,
        "margin": claim.margin,
        "n": effect.n,
        "confidence": 1 - level,
        "confidence_against": 1 - level_against,
        **comparison.about,
    }
    row = Judged(least, most, row, row, [row]).row()
    return Judged(least, most, row, row, [row])


def concluded(
    conclusion: str,
    text: str,
    parts: dict[str, Comparison | Every | Some],
    *,
    premises: Sequence[Comparison | Every | Some] = (),
    controls: Sequence[Comparison | Every | Some] = (),
    confidence: float = 0.95,
) -> pd.DataFrame:
    """All comparisons and, as the last row, the conclusion that every part holds, with the comparison that decides it.

    Parameters
    ----------
    conclusion, text : str
        Its number, and what it says.
    parts : dict
        Name of a part -> its claim. One that consists of several comparisons gets a row with its own verdict.
    premises : sequence of claims
        Without their support nothing is testable. They are not paid for.
    controls : sequence of claims
        If one is contradicted, nothing is testable either.
    confidence : float
        One minus the probability of a wrong verdict, in either direction.

    Returns
    -------
    pandas.DataFrame
        The columns that `conclusions` describes.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    level = 1 - confidence
    # one row for each, which shows the comparison that decides it
    premise_rows = [{**judge(one, level, level).row(), "part": "premise"} for one in premises]
    control_rows = [{**judge(one, level, level).row(), "part": "control"} for one in controls]
    rows = [*premise_rows, *control_rows]
    # each part may wrongly be contradicted at Holm's level, as a part of all
    steps = _holm(list(parts.values()), level, lambda part, step: judge(part, level, step).most < 0)
    for (name, part), step in zip(parts.items(), steps, strict=True):
        judged = judge(part, level, step)
        rows += [{**row, "part": name} for row in judged.rows]
        if len(parts) > 1 and len(judged.rows) > 1:
            deciding = judged.row()
            rows.append({**deciding, "part": name, "test": name, "decided_by": deciding["test"]})
    last = judge(Every(list(parts.values())), level, level).row()
    failed = [row for row in premise_rows if row["verdict"] != SUPPORTED]
    failed += [row for row in control_rows if row["verdict"] in (CONTRADICTED, NOT_TESTABLE)]
    if failed:
        last = {**failed[0], "verdict": NOT_TESTABLE}
    rows.append({**last, "part": "conclusion", "test": text, "decided_by": last["test"]})
    return pd.DataFrame([{"conclusion": conclusion, "part": "", "decided_by": "", **row} for row in rows])


def needs(table: pd.DataFrame, *columns: str) -> None:
    """ValueError where the table has not all of these columns.

    >>> needs(pd.DataFrame({"seed": [0]}), "seed")
    """
    missing = [name for name in columns if name not in table]
    if missing:
        raise ValueError(
            f"the table needs columns {' and '.join(columns)}, got none called {' or '.join(missing)}: recipe and seed come "
            "from concat(…, recipe=[…], seed=[…]), source, corruption and domain from specs.labelled, all others from summarise(…, full=True)"
        )


def seed_values(table: pd.DataFrame, value: str, **keys: object) -> pd.Series:
    """One column by seed, of the rows whose columns are `keys`; seeds without a value are left out, with a warning.

    Raises
    ------
    ValueError
        The table lacks a column or one of the keys, or has a seed more than once.

    Examples
    --------
    >>> table = pd.DataFrame({"recipe": "plain", "seed": [0, 1], "metric": "m", "estimate": [0.5, 0.7]})
    >>> seed_values(table, "estimate", recipe="plain", metric="m").to_dict()
    {0: 0.5, 1: 0.7}
    """
    needs(table, "seed", value, *keys)
    for column, key in keys.items():
        known = table[column].unique()
        if key not in known:
            raise ValueError(unknown(column, str(key), map(str, known)))
        table = table[table[column] == key]
    name = ", ".join(map(str, keys.values()))
    if table.seed.duplicated().any():
        raise ValueError(
            f"several networks of one seed are {name}; select one data set, one group and one way of training"
        )
    values = table.set_index("seed")[value]
    if values.isna().any():
        seeds = values.index[values.isna()].tolist()
        reasons = "; ".join(table.get("reason", pd.Series("")).unique())
        warnings.warn(f"no {value} of {name} for the seeds {seeds}: {reasons}", stacklevel=2)
    return values.dropna()


def trained(table: pd.DataFrame, *, least: float) -> pd.DataFrame:
    """The rows of networks that learned their task; those that did not are left out, with a warning that names them.

    Parameters
    ----------
    table : pandas.DataFrame
        With the columns `model`, `recipe` and `accuracy`.
    least : float
        Accuracy under which a network counts as not trained, unless its recipe is "random".

    Examples
    --------
    >>> table = pd.DataFrame({"model": ["a", "b"], "recipe": ["random", "plain"], "accuracy": [0.1, 0.9]})
    >>> len(trained(table, least=0.5))
    2
    """
    needs(table, "model", "recipe", "accuracy")
    if (table.groupby("model").accuracy.nunique() > 1).any():
        raise ValueError("a network has several accuracies here; select the data set that it was trained for")
    failed = (table.accuracy < least) & (table.recipe.str.partition(" ")[0] != "random")
    if failed.any():
        names = ", ".join(table[failed].model.unique())
        warnings.warn(f"not trained, and left out: {names} (accuracy under {least})", stacklevel=2)
    return table[~failed]
