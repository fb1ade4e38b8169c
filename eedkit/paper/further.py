"""Questions beyond the paper's *[ours]*: how well a measure without labels foretells the accuracy on moved images."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from eedkit.paper.verdicts import needs


def prediction_consistency(ds: xr.Dataset) -> pd.Series:
    """By model, how often the prediction for a moved image is that for the image itself; needs no labels.

    The baseline for any measure that foretells accuracy on moved images (Deng et al. 2022, arXiv 2207.07065).

    Parameters
    ----------
    ds : Dataset
        Of `measure`, with predictions.

    Returns
    -------
    Series
        By model, over every element but the identity and over images that have both predictions.

    Raises
    ------
    ValueError
        There are no predictions, or no unmoved images.

    Examples
    --------
    >>> import torch, eedkit as ek
    >>> blind = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(1, 3))
    >>> prediction_consistency(ek.measure(blind, torch.rand(4, 1, 5, 5), group="C4", progress=False)).item()
    1.0
    """
    identity = ds.element.attrs.get("identity", "e")
    if "prediction" not in ds or identity not in ds.element.values:
        raise ValueError(
            "consistency needs predictions for moved and unmoved images; measure a model with class scores"
        )
    unmoved = ds.prediction.sel(element=identity, drop=True)
    moved = ds.prediction.sel(element=ds.element != identity)
    agrees = (moved == unmoved).where((moved >= 0) & (unmoved >= 0))
    return agrees.mean(["element", "sample"]).to_series()


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
