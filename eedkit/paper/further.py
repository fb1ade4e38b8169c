"""Questions beyond the paper's *[ours]*: how well a measure without labels predicts the accuracy on moved images."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from eedkit.paper.verdicts import needs

RESAMPLES = 1999
"""Of the bootstrap, whose unit is the network."""


def determination(table: pd.DataFrame, predictors: Sequence[str], outcome: str) -> pd.DataFrame:
    """R², the share of the outcome's variance over networks that a straight line through each predictor explains.

    The table has one row per network. Beside R² stand the bounds of its 95 % percentile bootstrap interval. NaN where a side
    is the same for all networks.

    >>> table = pd.DataFrame({"x": range(9), "y": [2.0 * x for x in range(9)]})
    >>> determination(table, ["x"], "y").r2.item()
    1.0
    """
    needs(table, *predictors, outcome)
    rng = np.random.default_rng(0)
    rows = []
    for name in predictors:
        pairs = table[[name, outcome]].dropna().to_numpy(dtype=float)
        row = {"predictor": name, "r2": _r2(pairs[None])[0], "low": np.nan, "high": np.nan, "n": len(pairs)}
        if len(pairs) > 2 and np.isfinite(row["r2"]):
            drawn = rng.integers(len(pairs), size=(RESAMPLES, len(pairs)))
            row["low"], row["high"] = np.nanquantile(_r2(pairs[drawn]), [0.025, 0.975])
        rows.append(row)
    return pd.DataFrame(rows)


def _r2(pairs: np.ndarray) -> np.ndarray:
    """The squared correlation of pairs (…, n, 2); NaN where a side does not vary."""
    centred = pairs - pairs.mean(-2, keepdims=True)
    squares = (centred**2).sum(-2)
    varies = (squares > 0).all(-1)
    products = centred.prod(-1).sum(-1)
    return np.where(varies, products**2 / np.where(varies, squares.prod(-1), 1.0), np.nan)
