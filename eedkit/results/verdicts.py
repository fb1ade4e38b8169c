"""Tests of the paper's stated conclusions, with margins declared beforehand and the seed as the unit.

Knows tables of `summarise`, never models or figures. A verdict is `supported`, `contradicted`, `inconclusive` or
`not testable here`, and every row carries effect, interval, n and margin.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from eedkit.results.intervals import mean_interval

SUPPORTED, CONTRADICTED, INCONCLUSIVE = "supported", "contradicted", "inconclusive"
NOT_TESTABLE = "not testable here"
MIN_SEEDS = 5
"""With fewer seeds every verdict is `not testable here`."""


def seed_differences(
    table: pd.DataFrame, minuend: str, subtrahend: str, *, metric: str, layer: str, value: str = "estimate"
) -> np.ndarray:
    """value(minuend) − value(subtrahend) of two recipes, one difference per seed that both have.

    Parameters
    ----------
    table : of `summarise`, with the columns `recipe` and `seed`
    value : the column that is compared: "estimate", "relative", …

    Raises
    ------
    ValueError
        The table has no such recipe, metric or layer, or the two share no seed.
    """
    if not {"recipe", "seed"} <= set(table):
        raise ValueError("the table needs columns recipe and seed: join models with concat(…, recipe=[…], seed=[…])")
    rows = table[(table.metric == metric) & (table.layer == layer)].pivot(index="seed", columns="recipe", values=value)
    missing = [name for name in (minuend, subtrahend) if name not in rows]
    shared = rows[[minuend, subtrahend]].dropna() if not missing else rows[:0]
    if missing or shared.empty:
        raise ValueError(f"{metric} at {layer} has no seeds of both {minuend} and {subtrahend} to compare")
    return (shared[minuend] - shared[subtrahend]).to_numpy()


def falls(low: float, high: float, margin: float) -> str:
    """Whether an interval of a difference shows a fall by more than the margin; a rise by as much contradicts it.

    >>> falls(-0.3, -0.2, 0.1), falls(0.2, 0.3, 0.1), falls(-0.2, 0.0, 0.1)
    ('supported', 'contradicted', 'inconclusive')
    """
    return SUPPORTED if high < -margin else CONTRADICTED if low > margin else INCONCLUSIVE


def does_not_fall(low: float, high: float, margin: float) -> str:
    """Whether an interval of a difference excludes a fall by more than the margin; one wholly below it contradicts that.

    >>> does_not_fall(0.0, 0.1, 0.1), does_not_fall(-0.3, -0.2, 0.1), does_not_fall(-0.2, 0.0, 0.1)
    ('supported', 'contradicted', 'inconclusive')
    """
    return SUPPORTED if low > -margin else CONTRADICTED if high < -margin else INCONCLUSIVE


def augmentation_or_layers(
    table: pd.DataFrame, *, margin: float, fall: float, confidence: float = 0.95, value: str = "estimate"
) -> pd.DataFrame:
    """Conclusion 1: augmentation does not tend to induce invariance through equivariant layers (Kvinge et al. 2022, section 1).

    Premise: with augmentation the relative `latent` and `softmax` values fall by more than `fall`. Then, per layer, the
    claim is that channelwise(augmented) − channelwise(plain) is not below −margin: `supported` where the interval stays
    above, `contradicted` where it lies below. Intervals are over seeds, with Bonferroni's correction over all comparisons.

    Parameters
    ----------
    table : of `summarise`, with recipes "plain" and "augmented"
    margin, fall : what counts as a change, declared before looking
    value : "estimate" (the paper's) or "relative" [ours] for the channelwise comparison

    Returns
    -------
    one row per comparison, then one for the conclusion: contradicted if any layer is, supported if every layer is
    """
    layers = list(dict.fromkeys(table[(table.metric == "channelwise") & table.estimate.notna()].layer))
    if not layers:
        raise ValueError(
            "the table has no channelwise values; measure with metrics=('channelwise', 'latent', 'softmax')"
        )
    test = _Test("1", table, 1 - (1 - confidence) / (len(layers) + 2))
    premises = [
        test.row(f"{metric} falls", falls, fall, "augmented", "plain", metric, layer, "relative")
        for metric, layer in (("latent", "latent"), ("softmax", "output"))
    ]
    rows = [
        test.row(
            f"channelwise at {at} does not fall", does_not_fall, margin, "augmented", "plain", "channelwise", at, value
        )
        for at in layers
    ]
    verdicts = {row["verdict"] for row in rows}
    overall = CONTRADICTED if CONTRADICTED in verdicts else SUPPORTED if verdicts == {SUPPORTED} else INCONCLUSIVE
    deciding = min((row for row in rows if row["verdict"] == overall), key=lambda row: row["high"])
    if any(row["verdict"] != SUPPORTED for row in premises):
        overall = NOT_TESTABLE
    last = {**deciding, "test": "augmentation does not make the layers equivariant", "verdict": overall}
    return _table([*premises, *rows, last])


def random_beats_trained(
    table: pd.DataFrame,
    *,
    margins: dict[str, float],
    confidence: float = 0.95,
    against: Sequence[str] = ("augmented", "equivariant"),
) -> pd.DataFrame:
    """Conclusion 3: models with random weights can look more invariant than learned or built-in invariance.

    Per uncalibrated metric and opponent: E(random) − E(opponent) < −margin over seeds, Bonferroni-corrected. The
    conclusion is a possibility, so one clear case supports it; it is contradicted only where random weights lie above by
    the margin in every case.

    Parameters
    ----------
    table : of `summarise`, with the recipe "random" and those in `against`
    margins : metric -> what counts as a difference, declared before looking; "latent" is taken at the layer `latent`
    """
    cases = [(metric, opponent) for metric in margins for opponent in against]
    if not cases:
        raise ValueError("expected at least one metric in margins and one recipe in against")
    test = _Test("3", table, 1 - (1 - confidence) / len(cases))
    rows = []
    for metric, opponent in cases:
        layer = "latent" if metric.startswith("latent") else "output"
        name = f"random below {opponent} in {metric}"
        rows.append(test.row(name, falls, margins[metric], "random", opponent, metric, layer, "estimate"))
    verdicts = [row["verdict"] for row in rows]
    overall = SUPPORTED if SUPPORTED in verdicts else CONTRADICTED if set(verdicts) == {CONTRADICTED} else INCONCLUSIVE
    deciding = min((row for row in rows if row["verdict"] == overall), key=lambda row: row["high"])
    return _table([*rows, {**deciding, "test": "random weights can look more invariant", "verdict": overall}])


@dataclass(frozen=True)
class _Test:
    """What the comparisons of one conclusion share."""

    conclusion: str
    table: pd.DataFrame
    confidence: float

    def row(
        self,
        test: str,
        claim: Callable,
        margin: float,
        minuend: str,
        subtrahend: str,
        metric: str,
        layer: str,
        value: str,
    ) -> dict:
        """One comparison of two recipes over their seeds, with its verdict."""
        if margin < 0:
            raise ValueError(f"a margin says how much counts, so it is not negative; got {margin} for {metric}")
        differences = seed_differences(self.table, minuend, subtrahend, metric=metric, layer=layer, value=value)
        effect, low, high = mean_interval(differences, confidence=self.confidence)
        return {
            "conclusion": self.conclusion,
            "test": test,
            "verdict": claim(low, high, margin),
            "effect": effect,
            "low": low,
            "high": high,
            "margin": margin,
            "n": len(differences),
            "metric": metric,
            "layer": layer,
            "value": value,
            "confidence": self.confidence,
        }


def _table(rows: list[dict]) -> pd.DataFrame:
    """The rows; with too few seeds none of them is a verdict."""
    few = min(row["n"] for row in rows) < MIN_SEEDS
    return pd.DataFrame([{**row, "verdict": NOT_TESTABLE} for row in rows] if few else rows)
