"""Verdicts: what an interval over seeds says of a claim whose margin was declared beforehand.

Knows tables of `summarise`, never models or figures. A verdict is `supported`, `contradicted`, `inconclusive` or
`not testable here`; the paper's five conclusions are put together from these in `conclusions`.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from eedkit.errors import unknown
from eedkit.results.intervals import mean_interval

SUPPORTED, CONTRADICTED, INCONCLUSIVE = "supported", "contradicted", "inconclusive"
NOT_TESTABLE = "not testable here"
FRAGILE = 0.2
MIN_SEEDS = 5
"""With fewer seeds a comparison, and any conclusion that needs it, is `not testable here`."""

Claim = Callable[[float, float, float], str]
"""Interval of an effect and the margin -> verdict."""


def falls(low: float, high: float, margin: float) -> str:
    """Whether an interval of a difference shows a fall by more than the margin; a rise by as much contradicts it.

    >>> falls(-0.3, -0.2, 0.1), falls(0.2, 0.3, 0.1), falls(-0.2, 0.0, 0.1)
    ('supported', 'contradicted', 'inconclusive')
    """
    return SUPPORTED if high < -margin else CONTRADICTED if low > margin else INCONCLUSIVE


def does_fall(low: float, high: float, margin: float) -> str:
    """Whether an interval of a difference shows a fall by more than the margin; one that excludes it contradicts it.

    >>> does_fall(-0.3, -0.2, 0.1), does_fall(-0.05, 0.1, 0.1), does_fall(-0.2, 0.0, 0.1)
    ('supported', 'contradicted', 'inconclusive')
    """
    return SUPPORTED if high < -margin else CONTRADICTED if low > -margin else INCONCLUSIVE


def does_not_fall(low: float, high: float, margin: float) -> str:
    """Whether an interval of a difference excludes a fall by more than the margin; one wholly below contradicts that.

    >>> does_not_fall(0.0, 0.1, 0.1), does_not_fall(-0.3, -0.2, 0.1), does_not_fall(-0.2, 0.0, 0.1)
    ('supported', 'contradicted', 'inconclusive')
    """
    return SUPPORTED if low > -margin else CONTRADICTED if high < -margin else INCONCLUSIVE


def exceeds(low: float, high: float, margin: float) -> str:
    """Whether an interval lies above the margin; one wholly below it contradicts that.

    >>> exceeds(0.2, 0.3, 0.1), exceeds(-0.1, 0.0, 0.1), exceeds(0.0, 0.2, 0.1)
    ('supported', 'contradicted', 'inconclusive')
    """
    return SUPPORTED if low > margin else CONTRADICTED if high < margin else INCONCLUSIVE


def stays_below(low: float, high: float, margin: float) -> str:
    """Whether an interval lies below the margin; one wholly above it contradicts that.

    >>> stays_below(0.1, 0.2, 0.5), stays_below(0.6, 0.9, 0.5), stays_below(0.4, 0.6, 0.5)
    ('supported', 'contradicted', 'inconclusive')
    """
    return SUPPORTED if high < margin else CONTRADICTED if low > margin else INCONCLUSIVE


def differs(low: float, high: float, margin: float) -> str:
    """Whether an interval of a difference lies beyond the margin on either side; one within ± margin contradicts that.

    >>> differs(-0.3, -0.2, 0.1), differs(-0.05, 0.05, 0.1), differs(0.0, 0.2, 0.1)
    ('supported', 'contradicted', 'inconclusive')
    """
    if high < -margin or low > margin:
        return SUPPORTED
    return CONTRADICTED if -margin < low and high < margin else INCONCLUSIVE


def every(verdicts: Sequence[str]) -> str:
    """The verdict on "all of these": one that is contradicted contradicts it.

    >>> every(["supported", "supported"]), every(["supported", "contradicted", "inconclusive"])
    ('supported', 'contradicted')
    """
    if CONTRADICTED in verdicts:
        return CONTRADICTED
    return SUPPORTED if set(verdicts) == {SUPPORTED} else INCONCLUSIVE


def some(verdicts: Sequence[str]) -> str:
    """The verdict on "at least one of these", a possibility: one that is supported supports it.

    >>> some(["supported", "contradicted"]), some(["contradicted", "contradicted"])
    ('supported', 'contradicted')
    """
    if SUPPORTED in verdicts:
        return SUPPORTED
    return CONTRADICTED if set(verdicts) == {CONTRADICTED} else INCONCLUSIVE


def needs(table: pd.DataFrame, *columns: str) -> None:
    """ValueError where the table has not all of these columns.

    >>> needs(pd.DataFrame({"seed": [0]}), "seed")
    """
    missing = [name for name in columns if name not in table]
    if missing:
        raise ValueError(
            f"the table needs columns {' and '.join(columns)}, got none called {' or '.join(missing)}: recipe and seed come "
            "from concat(…, recipe=[…], seed=[…]), source, shift and domain from specs.labelled, all others from summarise"
        )


def seed_values(table: pd.DataFrame, recipe: str, *, metric: str, layer: str, value: str = "estimate") -> pd.Series:
    """The values of one recipe by seed; seeds without a value are left out.

    Raises
    ------
    ValueError
        The table has no seeds, or no such recipe, metric or layer, or a seed of the recipe more than once.

    >>> table = pd.DataFrame({"recipe": "plain", "seed": [0, 1], "metric": "m", "layer": "l", "estimate": [0.5, None]})
    >>> seed_values(table, "plain", metric="m", layer="l").to_dict()
    {0: 0.5}
    """
    needs(table, "recipe", "seed", value)
    for kind, name in {"recipe": recipe, "metric": metric, "layer": layer}.items():
        known = table[kind].unique()
        if name not in known:
            raise ValueError(unknown(kind, name, known))
        table = table[table[kind] == name]
    if table.seed.duplicated().any():
        raise ValueError(
            f"{recipe} has several networks of one seed in {metric} at {layer}; "
            "select one data set, one group and one way of training"
        )
    values = table.set_index("seed")[value]
    if values.isna().any():
        gone, why = values.index[values.isna()].tolist(), "; ".join(table.get("reason", pd.Series("")).unique())
        warnings.warn(f"{recipe} has no {value} of {metric} at {layer} for the seeds {gone}: {why}", stacklevel=2)
    return values.dropna()


def trained(table: pd.DataFrame, *, least: float) -> pd.DataFrame:
    """The rows of networks that learned their task; those that did not are left out, with a warning that names them.

    Parameters
    ----------
    least : accuracy under which a network counts as not trained, unless its recipe is "random"

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


@dataclass(frozen=True)
class Test:
    """What the comparisons of one conclusion share: its number, and how sure each must be so that all are together.

    Parameters
    ----------
    comparisons : how many there are; each gets the confidence 1 − (1 − confidence) / comparisons (Bonferroni)
    """

    conclusion: str
    comparisons: int
    confidence: float = 0.95

    __test__ = False  # for pytest, which would take the class for tests

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence must lie between 0 and 1, got {self.confidence}")

    def row(self, test: str, claim: Claim, margin: float, effects: Sequence[float], **about: object) -> dict:
        """One comparison with its verdict.

        Parameters
        ----------
        test : what is claimed, in words
        effects : one per seed; seeds where it is NaN are left out
        about : further columns
        """
        effects = np.asarray(effects, dtype=float)
        effects = effects[~np.isnan(effects)]
        if not len(effects):
            raise ValueError(f"{test}: there is no seed for which both sides of the comparison have a value")
        confidence = 1 - (1 - self.confidence) / self.comparisons
        effect, low, high = mean_interval(effects, confidence=confidence)
        return self.given(test, claim, margin, effect, low, high, len(effects), confidence=confidence, **about)

    def difference(
        self, test: str, claim: Claim, margin: float, table: pd.DataFrame, minuend: str, subtrahend: str,
        metric: str, layer: str, value: str,
    ) -> dict:  # fmt: skip
        """One comparison of two recipes: value(minuend) − value(subtrahend), for each seed that both have."""
        of = {"metric": metric, "layer": layer, "value": value}
        effects = seed_values(table, minuend, **of) - seed_values(table, subtrahend, **of)
        return self.row(test, claim, margin, effects, **of)

    def given(
        self,
        test: str,
        claim: Claim,
        margin: float,
        effect: float,
        low: float,
        high: float,
        n: int,
        **about: object,
    ) -> dict:
        """The same where the interval is known already."""
        if not margin >= 0:
            raise ValueError(f"a margin says how much counts, so it is not negative; got {margin} for {test}")
        verdict = claim(low, high, margin) if np.isfinite([low, high]).all() else INCONCLUSIVE
        verdict = verdict if n >= MIN_SEEDS else NOT_TESTABLE
        found = {"effect": effect, "low": low, "high": high, "margin": margin, "n": n}
        return {"conclusion": self.conclusion, "test": test, "verdict": verdict, **found, **about}


def concluded(
    rows: Sequence[dict], test: str, verdict: str, deciding: Sequence[dict], premises: Sequence[dict] = ()
) -> pd.DataFrame:
    """All rows and, as the last, the conclusion: its verdict, with the numbers of the row that decides it.

    `not testable here` where a premise does not hold or a row has fewer than `MIN_SEEDS`: then that row decides.

    Parameters
    ----------
    deciding : rows of which the first with that verdict decides; the first of all where none has it

    Raises
    ------
    ValueError
        There are no rows.
    """
    if not rows:
        raise ValueError(f"there is nothing to compare for {test!r}: expected at least one recipe and one metric")
    failed = [row for row in [*premises, *rows] if row["verdict"] == NOT_TESTABLE]
    failed += [premise for premise in premises if premise["verdict"] != SUPPORTED]
    if failed:
        verdict, deciding = NOT_TESTABLE, failed
    row = next((row for row in deciding if row["verdict"] == verdict), deciding[0])
    rows = [*premises, *rows, {**row, "test": test, "verdict": verdict, "decided_by": row["test"]}]
    return pd.DataFrame(rows).fillna({"decided_by": ""})
