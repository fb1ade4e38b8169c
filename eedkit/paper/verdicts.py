"""Verdicts: what bounds over seeds say of claims whose margins were declared beforehand.

A `Comparison` holds one claim about one effect. `Every` and `Some` put claims together, and `judge` gives each of them the error
that it may make, so that a wrong verdict on the whole is no likelier than `LEVEL`:

* "All of these" is supported where each part is, at the full level (an intersection-union test). It is contradicted where *some*
  part is, and that is a union over the parts: it takes Holm's correction.
* "Some of these" is the mirror image: supported where some part is, with Holm's correction, and contradicted where all parts
  are, each at the full level.

A bound that lies close to its margin decides nothing. Simulated with the margin of conclusion 4 (0.02), a spread over seeds of
0.045 and an effect at the margin, the worst case, two sets of 5, 10 or 20 seeds come to opposite verdicts in 0.3, 0.2 or 0.1 %
of pairs; without that room in 0.5 %. That one set decides and the other stays open is no error but a lack of power: it happens
to half of the pairs where the power is a half, under any rule, and only more seeds help.
"""

import itertools
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from eedkit.errors import unknown
from eedkit.results.intervals import mean_interval

SUPPORTED = "supported"
CONTRADICTED = "contradicted"
INCONCLUSIVE = "inconclusive"
NOT_TESTABLE = "not testable here"
VERDICTS = (SUPPORTED, CONTRADICTED, INCONCLUSIVE, NOT_TESTABLE)
MIN_SEEDS = 5
"""With fewer seeds a comparison, and any conclusion that needs it, is `not testable here`."""
ROOM = 0.2
"""A bound within this part of the margin from the margin decides nothing."""
LEVEL = 0.05
"""How likely a verdict on a whole may be wrong, in either direction."""
POWER = 0.84
"""The standard normal quantile of 80 %: how likely the seeds that are said to be needed are to decide."""
DIRECTIONS = ("above", "below", "beyond")


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
    def edges(self) -> tuple[float, float]:
        """Where the room about the margin ends, in which a bound decides nothing."""
        return self.margin * (1 - ROOM), self.margin * (1 + ROOM)

    def tails(self, level: float, level_against: float) -> tuple[float, float]:
        """How likely the lower and the upper bound may each be wrong: one-sided, but for `beyond`."""
        if self.direction == "above":
            return level, level_against
        if self.direction == "below":
            return level_against, level
        each = min(level, level_against) / 2
        return each, each

    def distances(self, low: float, high: float) -> tuple[float, float]:
        """How far the effect lies from the room about the margin at least and at most, in margins; claimed is positive."""
        lower_edge, upper_edge = self.edges
        low, high = self.outward(low, high)
        unit = self.margin or 1.0
        past, short_of = (low - upper_edge) / unit, (high - lower_edge) / unit
        return (-short_of, -past) if self.direction == "below" else (past, short_of)

    def outward(self, low: float, high: float) -> tuple[float, float]:
        """An interval of the effect, or of its distance from 0 where the claim has two sides."""
        if self.direction == "beyond":
            return max(low, -high), max(high, -low)
        return low, high

    def critical_margins(self, low: float, high: float) -> tuple[float, float]:
        """The margins at which these bounds would just support the claim, and just contradict it."""
        low, high = self.outward(low, high)
        critical = low / (1 + ROOM), high / (1 - ROOM)
        return critical[::-1] if self.direction == "below" else critical


@dataclass(frozen=True)
class Effect:
    """An estimate from n seeds and its bounds.

    `bounds(tail_low, tail_high)` gives the lower and the upper bound that are wrong with these probabilities.
    """

    value: float
    n: int
    bounds: Callable[[float, float], tuple[float, float]]


def mean_effect(values: ArrayLike, *, within: tuple[float, float] = (-np.inf, np.inf)) -> Effect:
    """The mean over seeds, with Student's t in the range that the values can have; NaN is left out.

    >>> mean_effect([1.0, 1.0, np.nan]).bounds(0.05, 0.05)
    (1.0, 1.0)
    """
    of_seeds = np.asarray(values, dtype=float)
    of_seeds = of_seeds[~np.isnan(of_seeds)]
    if not len(of_seeds):
        raise ValueError("there is no seed for which both sides of the comparison have a value")

    def bounds(tail_low: float, tail_high: float) -> tuple[float, float]:
        low = mean_interval(of_seeds.tolist(), confidence=1 - 2 * tail_low)[1]
        high = mean_interval(of_seeds.tolist(), confidence=1 - 2 * tail_high)[2]
        return max(low, within[0]), min(high, within[1])

    return Effect(float(of_seeds.mean()), len(of_seeds), bounds)


def ratio_effect(numerators: ArrayLike, denominators: ArrayLike) -> Effect:
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


@dataclass(frozen=True)
class Comparison:
    """One claim about one effect: a row of the table. `about` holds further columns."""

    test: str
    claim: Claim
    effect: Effect
    about: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Joined:
    """Claims that are put together."""

    parts: Sequence["Claimed"]


class Every(Joined):
    """All of these."""


class Some(Joined):
    """At least one of these."""


Claimed = Comparison | Joined
UNTESTED = {"verdict": NOT_TESTABLE, "critical_margin": np.nan, "seeds_needed": np.nan}
"""What a row says where nothing can be tested."""


@dataclass(frozen=True)
class Judged:
    """How far on the claimed side a claim lies at least and at most, in margins; which comparisons say so; and its parts."""

    least: float
    most: float
    least_row: dict
    most_row: dict
    parts: Sequence["Judged"] = ()

    @property
    def rows(self) -> list[dict]:
        """All comparisons."""
        if not self.parts:
            return [self.least_row]
        return list(itertools.chain.from_iterable(part.rows for part in self.parts))

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
        verdict = self.verdict
        if verdict == NOT_TESTABLE:
            return min(self.rows, key=lambda row: row["n"]) | UNTESTED
        ends = []
        for end, (distance, row) in enumerate([(self.least, self.least_row), (self.most, self.most_row)]):
            critical = Claim(row["claim"], row["margin"]).critical_margins(row["low"], row["high"])[end]
            if 0 <= critical < np.inf:
                ends.append((abs(distance), critical, row))
            else:
                # no margin is negative or infinite, so such an end can flip nothing
                ends.append((np.inf, np.nan, row))
        if verdict == SUPPORTED:
            ends = ends[:1]
        elif verdict == CONTRADICTED:
            ends = ends[1:]
        _, critical, row = min(ends, key=lambda end: end[0])
        seeds = _seeds_needed(row) if verdict == INCONCLUSIVE else np.nan
        return row | {"verdict": verdict, "critical_margin": critical, "seeds_needed": seeds}


def _seeds_needed(row: dict) -> float:
    """((t + z) · sd / d)² seeds decide a comparison with 80 % power if its effect and its spread over seeds stay.

    d is the distance of the effect from the room about its margin, t Student's quantile at the row's own level, and
    sd = (effect − low) √n / t, or (high − effect) √n / t where the upper bound is the one that must pass. NaN where the
    effect lies within that room, which no number of seeds leaves, or has no bound.
    """
    from scipy.special import stdtrit

    claim = Claim(row["claim"], row["margin"])
    tail_low, tail_high = claim.tails(1 - row["confidence"], 1 - row["confidence_against"])
    effect, _ = claim.outward(row["effect"], row["effect"])
    low, high = claim.outward(row["low"], row["high"])
    lower_edge, upper_edge = claim.edges
    if effect > upper_edge:
        tail = tail_low
        half = effect - low
        distance = effect - upper_edge
    elif effect < lower_edge:
        tail = tail_high
        half = high - effect
        distance = lower_edge - effect
    else:
        return np.nan
    if not np.isfinite(half):
        return np.nan
    student = stdtrit(row["n"] - 1, 1 - tail)
    spread = half * np.sqrt(row["n"]) / student
    return float(np.ceil(((student + POWER) * spread / distance) ** 2))


def judge(claim: "Claimed", level: float = LEVEL, level_against: float = LEVEL) -> Judged:
    """A claim at the probabilities with which it may wrongly be supported and wrongly be contradicted.

    The rows below `Every` and `Some` come at Holm's levels; the whole is settled by the first step of Holm.
    """
    if isinstance(claim, Comparison):
        return _compared(claim, level, level_against)
    if not claim.parts:
        raise ValueError("there is nothing to compare: expected at least one recipe and one metric")
    if isinstance(claim, Every):
        first, parts = _holm(
            claim.parts, level_against, lambda part, step: judge(part, level, step), lambda part: part.most < 0
        )
        least_of, most_of = min, min
    else:
        first, parts = _holm(
            claim.parts, level, lambda part, step: judge(part, step, level_against), lambda part: part.least > 0
        )
        least_of, most_of = max, max
    least = least_of(first, key=lambda part: part.least)
    most = most_of(first, key=lambda part: part.most)
    return Judged(least.least, most.most, least.least_row, most.most_row, parts)


def _holm(
    claims: Sequence["Claimed"],
    level: float,
    judge_at: Callable[["Claimed", float], Judged],
    is_decided: Callable[[Judged], bool],
) -> tuple[list[Judged], list[Judged]]:
    """Holm's step-down: all claims at its first step, and each at its last; those left when none is decided share one."""
    first = [judge_at(claim, level / len(claims)) for claim in claims]
    last = list(first)
    undecided = [place for place, judged in enumerate(last) if not is_decided(judged)]
    left = len(claims)
    while 0 < len(undecided) < left:
        left = len(undecided)
        for place in undecided:
            last[place] = judge_at(claims[place], level / left)
        undecided = [place for place in undecided if not is_decided(last[place])]
    return first, last


def _compared(comparison: Comparison, level: float, level_against: float) -> Judged:
    claim = comparison.claim
    effect = comparison.effect
    low, high = effect.bounds(*claim.tails(level, level_against))
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
        "value": "",
        **comparison.about,
    }
    least, most = claim.distances(low, high)
    row = Judged(least, most, row, row).row()
    return Judged(least, most, row, row)


def concluded(
    conclusion: str,
    text: str,
    parts: Mapping[str, "Claimed"],
    *,
    premises: Sequence["Claimed"] = (),
    controls: Sequence["Claimed"] = (),
) -> pd.DataFrame:
    """All comparisons and, as the last row, the conclusion that every part holds, with the comparison that decides it.

    The columns are those that `conclusions` describes. A part of several comparisons gets a row with its own verdict.

    Parameters
    ----------
    conclusion, text : its number, and what it says
    parts : name of a part -> its claim
    premises : without their support nothing is testable; they are not paid for
    controls : if one is contradicted, nothing is testable either
    """
    # one row for each, which shows the comparison that decides it
    premise_rows = [{**judge(claim).row(), "part": "premise"} for claim in premises]
    control_rows = [{**judge(claim).row(), "part": "control"} for claim in controls]
    rows = [*premise_rows, *control_rows]
    whole = judge(Every(list(parts.values())))
    for name, judged in zip(parts, whole.parts, strict=True):
        rows += [{**row, "part": name} for row in judged.rows]
        if len(parts) > 1 and len(judged.rows) > 1:
            deciding = judged.row()
            rows.append({**deciding, "part": name, "test": name, "decided_by": deciding["test"]})
    last = whole.row()
    failed = [row for row in premise_rows if row["verdict"] != SUPPORTED]
    failed += [row for row in control_rows if row["verdict"] in (CONTRADICTED, NOT_TESTABLE)]
    if failed:
        last = failed[0] | UNTESTED
    rows.append({**last, "part": "conclusion", "test": text, "decided_by": last["test"]})
    return pd.DataFrame([{"conclusion": conclusion, "part": "", "beside": "", "decided_by": "", **row} for row in rows])


COLUMNS = (
    "conclusion",
    "part",
    "beside",
    "test",
    "verdict",
    "effect",
    "low",
    "high",
    "margin",
    "n",
    "seeds_needed",
    "decided_by",
    "value",
)
"""What a stored table of verdicts has at least."""


def save(rows: pd.DataFrame, folder: str | os.PathLike) -> None:
    """Write a table of verdicts, one JSON file for each conclusion, in the place of an older one and all at once.

    Conclusion "1" is the file `1.json` of the folder, which is made where it is missing.

    >>> import tempfile
    >>> rows = concluded("9", "it is large", {"size": Comparison("it is", Claim("above", 1), mean_effect([3.0] * 5))})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(rows, folder)
    ...     load(folder).verdict.tolist()
    ['supported', 'supported']
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, of_conclusion in rows.groupby("conclusion", sort=False):
        # another process may read the file, or write it, at any moment
        beside = folder / f".{name}.{os.getpid()}"
        beside.write_text(json.dumps(of_conclusion.to_dict("records"), indent=1), encoding="utf-8")
        beside.replace(folder / f"{name}.json")


def load(folder: str | os.PathLike) -> pd.DataFrame:
    """All tables of verdicts that `save` wrote into a folder, in the order of their files' names, one below the other."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(Path(folder).glob("*.json"))]
    if not texts:
        raise ValueError(f"no verdicts in {folder}; run the notebooks that judge first")
    return pd.concat([pd.DataFrame(json.loads(text)) for text in texts], ignore_index=True)


def needs(table: pd.DataFrame, *columns: str) -> None:
    """ValueError where the table has not all of these columns.

    >>> needs(pd.DataFrame({"seed": [0]}), "seed")
    """
    for name in columns:
        if name not in table:
            raise ValueError(
                f"{unknown('column', name, table.columns)}; recipe and seed come from concat(…, recipe=[…], seed=[…]), "
                "source, corruption and domain from specs.labelled, all others from summarise(…, full=True)"
            )


def seed_values(table: pd.DataFrame, value: str, **keys: object) -> pd.Series:
    """One column by seed, of the rows whose columns are `keys`; seeds without a value are left out, with a warning.

    >>> table = pd.DataFrame({"recipe": "plain", "seed": [0, 1], "metric": "m", "estimate": [0.5, 0.7]})
    >>> seed_values(table, "estimate", recipe="plain", metric="m").to_dict()
    {0: 0.5, 1: 0.7}
    """
    needs(table, "seed", value, *keys)
    for column, key in keys.items():
        known = table[column].unique()
        if key not in known:
            raise ValueError(unknown(column, str(key), map(str, known)))
        table = table.loc[table[column] == key]
    name = ", ".join(map(str, keys.values()))
    if table.seed.duplicated().any():
        raise ValueError(
            f"several networks of one seed are {name}; select one data set, one group and one way of training"
        )
    values = pd.Series(table[value].to_numpy(), index=table.seed.to_numpy()).rename_axis("seed")
    is_missing = values.isna()
    if is_missing.any():
        seeds = values.loc[is_missing].index.tolist()
        reasons = "; ".join(table.reason.unique()) if "reason" in table else ""
        warnings.warn(f"no {value} of {name} for the seeds {seeds}: {reasons}", stacklevel=2)
    return values.dropna()


def trained(table: pd.DataFrame, *, least: float) -> pd.DataFrame:
    """The rows of networks that learned their task; those that did not are left out, with a warning that names them.

    A network counts as not trained if its accuracy is under `least`, unless its recipe is "random".

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
    return table.loc[~failed]
