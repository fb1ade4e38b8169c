"""Tests of the paper's stated conclusions, with margins declared beforehand and the seed as the unit.

Knows tables of `summarise`, never models or figures. A verdict is `supported`, `contradicted`, `inconclusive` or
`not testable here`, and every row carries effect, interval, n and margin.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

SUPPORTED, CONTRADICTED, INCONCLUSIVE = "supported", "contradicted", "inconclusive"
NOT_TESTABLE = "not testable here"


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
    rows = table[(table.metric == metric) & (table.layer == layer)].pivot(index="seed", columns="recipe", values=value)
    missing = [name for name in (minuend, subtrahend) if name not in rows]
    shared = rows[[minuend, subtrahend]].dropna() if not missing else rows[:0]
    if missing or shared.empty:
        raise ValueError(f"{metric} at {layer} has no seeds of both {minuend} and {subtrahend} to compare")
    return (shared[minuend] - shared[subtrahend]).to_numpy()


def mean_interval(values: Sequence[float], *, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of independent replicates with its Student t interval; infinitely wide for a single one.

    >>> mean_interval([1.0, 1.0, 1.0])
    (1.0, 1.0, 1.0)
    """
    from scipy.stats import sem, t

    values = np.asarray(values, dtype=float)
    mean, n = float(values.mean()), len(values)
    if n < 2:
        return mean, float("-inf"), float("inf")
    half = float(sem(values) * t.ppf((1 + confidence) / 2, n - 1))
    return mean, mean - half, mean + half


def decide(low: float, high: float, *, below: float) -> str:
    """Whether an interval shows a value below a bound: all of it below, all of it above, or neither.

    >>> decide(-0.3, -0.2, below=-0.1), decide(0.0, 0.1, below=-0.1), decide(-0.2, 0.0, below=-0.1)
    ('supported', 'contradicted', 'inconclusive')
    """
    return SUPPORTED if high < below else CONTRADICTED if low > below else INCONCLUSIVE


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
    corrected = 1 - (1 - confidence) / (len(layers) + 2)
    premises = [
        _row("1", f"{metric} falls", table, ("augmented", "plain", metric, layer, "relative"), -fall, corrected)
        for metric, layer in (("latent", "latent"), ("softmax", "output"))
    ]
    rows = []
    for layer in layers:
        comparison = ("augmented", "plain", "channelwise", layer, value)
        row = _row("1", f"channelwise at {layer} does not fall", table, comparison, -margin, corrected)
        # the claim is the absence of a fall, so what shows a fall contradicts it
        row["verdict"] = {SUPPORTED: CONTRADICTED, CONTRADICTED: SUPPORTED}.get(row["verdict"], INCONCLUSIVE)
        rows.append(row)
    verdicts = {row["verdict"] for row in rows}
    if any(row["verdict"] != SUPPORTED for row in premises):
        overall = NOT_TESTABLE
    elif CONTRADICTED in verdicts:
        overall = CONTRADICTED
    else:
        overall = SUPPORTED if verdicts == {SUPPORTED} else INCONCLUSIVE
    strongest = min(rows, key=lambda row: row["effect"])
    claim = "augmentation does not make the layers equivariant"
    return pd.DataFrame([*premises, *rows, {**strongest, "test": claim, "verdict": overall}])


def random_beats_trained(
    table: pd.DataFrame,
    *,
    margins: dict[str, float],
    confidence: float = 0.95,
    against: Sequence[str] = ("augmented", "equivariant"),
) -> pd.DataFrame:
    """Conclusion 3: models with random weights can look more invariant than learned or built-in invariance.

    Per uncalibrated metric and opponent: E(random) − E(opponent) < −margin over seeds, Bonferroni-corrected. The
    conclusion is a possibility, so one clear case supports it; it is contradicted only where every case is.

    Parameters
    ----------
    table : of `summarise`, with the recipe "random" and those in `against`
    margins : metric -> what counts as a difference, declared before looking; "latent" is taken at the layer `latent`
    """
    cases = [(metric, opponent) for metric in margins for opponent in against]
    corrected = 1 - (1 - confidence) / len(cases)
    rows = []
    for metric, opponent in cases:
        layer = "latent" if metric.startswith("latent") else "output"
        comparison = ("random", opponent, metric, layer, "estimate")
        rows.append(_row("3", f"random below {opponent} in {metric}", table, comparison, -margins[metric], corrected))
    verdicts = [row["verdict"] for row in rows]
    overall = SUPPORTED if SUPPORTED in verdicts else CONTRADICTED if set(verdicts) == {CONTRADICTED} else INCONCLUSIVE
    clearest = min(rows, key=lambda row: (row["verdict"] != SUPPORTED, row["high"]))
    return pd.DataFrame([*rows, {**clearest, "test": "random weights can look more invariant", "verdict": overall}])


def _row(conclusion: str, test: str, table: pd.DataFrame, comparison: tuple, below: float, confidence: float) -> dict:
    minuend, subtrahend, metric, layer, value = comparison
    differences = seed_differences(table, minuend, subtrahend, metric=metric, layer=layer, value=value)
    effect, low, high = mean_interval(differences, confidence=confidence)
    return {
        "conclusion": conclusion,
        "test": test,
        "verdict": decide(low, high, below=below),
        "effect": effect,
        "low": low,
        "high": high,
        "bound": below,
        "n": len(differences),
        "metric": metric,
        "layer": layer,
        "value": value,
        "confidence": confidence,
    }
