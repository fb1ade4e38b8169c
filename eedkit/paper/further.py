"""Questions beyond the paper's *[ours]*: how well a measure without labels predicts the accuracy on moved images."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from eedkit.paper.verdicts import needs


def determination(
    table: pd.DataFrame,
    predictors: Sequence[str],
    outcome: str,
    *,
    confidence: float = 0.95,
    resamples: int = 1999,
    seed: int = 0,
) -> pd.DataFrame:
    """R², the share of the outcome's variance over networks that a straight line through each predictor explains.

    Parameters
    ----------
    table : DataFrame
        One row per network.
    predictors : sequence of str
        Columns.
    outcome : str
        A column.
    confidence : float
        Of the percentile bootstrap intervals, whose unit is the network.
    resamples, seed : int
        Of the bootstrap.

    Returns
    -------
    DataFrame
        One row per predictor: `predictor`, `r2`, `low`, `high`, `n`. NaN where a side is the same for all networks.

    Raises
    ------
    ValueError
        A column is missing.

    Examples
    --------
    >>> table = pd.DataFrame({"x": range(9), "y": [2.0 * x for x in range(9)]})
    >>> determination(table, ["x"], "y").r2.item()
    1.0
    """
    needs(table, *predictors, outcome)
    rng = np.random.default_rng(seed)
    tail = (1 - confidence) / 2
    rows = []
    for name in predictors:
        pairs = table[[name, outcome]].dropna().to_numpy(dtype=float)
        row = {"predictor": name, "r2": _r2(pairs[None])[0], "low": np.nan, "high": np.nan, "n": len(pairs)}
        if len(pairs) > 2 and np.isfinite(row["r2"]):
            drawn = rng.integers(len(pairs), size=(resamples, len(pairs)))
            resampled = _r2(pairs[drawn])
            row["low"], row["high"] = np.nanquantile(resampled, [tail, 1 - tail])
        rows.append(row)
    return pd.DataFrame(rows)


def _r2(pairs: np.ndarray) -> np.ndarray:
    """The squared correlation of pairs (…, n, 2); NaN where a side does not vary."""
    centred = pairs - pairs.mean(-2, keepdims=True)
    squares = (centred**2).sum(-2)
    varies = (squares > 0).all(-1)
    products = centred.prod(-1).sum(-1)
    return np.where(varies, products**2 / np.where(varies, squares.prod(-1), 1.0), np.nan)
