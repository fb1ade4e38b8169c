"""What the features of whole orbits say: is the element gone, or small; which action is it; what would averaging buy *[ours]*.

Knows arrays of `ek.orbit_features` and Datasets, never torch. Every function gives a table with a column `model`; images that
have no value under some element are left out.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.spatial.distance import cdist

from eedkit.results.intervals import mean_interval
from eedkit.results.labels import labelled

FOLDS = 5
"""Parts of the images, each of which is predicted from the others."""
PENALTY = 1e-3
"""Of ridge regression, as a share of the mean square of a feature."""
PARTS = ("class", "image within class", "element", "class × element", "image × element")
"""Of the variance of an orbit; without labels there are "image", "element" and "image × element"."""
REVERSE = "softmax_reverse"
"""The metric that is mean KL(p̄ ‖ p_g)."""


def element_probe(features: xr.DataArray) -> pd.DataFrame:
    """How well a linear probe reads the element off the features: accuracy, whose chance is 1 / |G| *[ours]*.

    At chance the element is gone; a small deviation alone does not say so. The probe is ridge regression on the elements'
    indicators, cross-fitted over images: all copies of an image are told by a probe that has seen none of them (Alain &
    Bengio 2017, arXiv 1610.01644, on linear probes).

    Parameters
    ----------
    features : DataArray (element, sample, feature)
        Of `ek.orbit_features`.

    Returns
    -------
    DataFrame
        One row: `model`, `accuracy`, `low`, `high` (95 % over images), `chance`, `n` images.

    Raises
    ------
    ValueError
        Fewer than 10 images have a value.

    Examples
    --------
    >>> vectors = np.stack([np.full((20, 2), 1.0), np.full((20, 2), 1.0)])
    >>> vectors[1, :, 0] = 2.0
    >>> features = xr.DataArray(vectors, dims=("element", "sample", "feature"))
    >>> element_probe(features)[["accuracy", "chance"]].values.tolist()
    [[1.0, 0.5]]
    """
    features = _complete(features, least=2 * FOLDS)
    z = _values(features)
    order, n, _ = z.shape
    told = np.empty((order, n), dtype=bool)
    targets = np.repeat(np.eye(order), n, axis=0).reshape(order, n, order) - 1 / order
    for train, test in _folds(n):
        mean = z[:, train].mean((0, 1))
        # where all are the same but for rounding there is nothing to read
        spread = z[:, train].std((0, 1))
        spread = np.where(spread > 1e-6 * np.abs(z).max(), spread, np.inf)
        scaled = (z - mean) / spread
        weights = _ridge(_stacked(scaled[:, train]), _stacked(targets[:, train]))
        scores = scaled[:, test] @ weights
        told[:, test] = scores.argmax(-1) == np.arange(order)[:, None]
    accuracy, low, high = mean_interval(told.mean(0))
    row = {"accuracy": accuracy, "low": max(low, 0.0), "high": min(high, 1.0), "chance": 1 / order, "n": n}
    return _table(features, [row])


def orbit_variance(features: xr.DataArray) -> pd.DataFrame:
    """Shares of the variance of f(gx) that class, image, element and their interactions have; they sum to 1 *[ours]*.

    The exact sums of squares of the two-way layout element × image, images within classes, summed over features. Invariance is
    no share with "element" in it; "class × element" is a code of the pose that differs by class; without "image within class"
    a class has collapsed.

    Parameters
    ----------
    features : DataArray (element, sample, feature)
        Of `ek.orbit_features`. Where there are labels, images without one are left out; where there are none, the
        parts are "image", "element" and "image × element".

    Returns
    -------
    DataFrame
        A row for each part: `model`, `part`, `share`, `n` images. Shares are NaN where all features are the same.

    Examples
    --------
    >>> features = xr.DataArray([[[1.0], [3.0]], [[1.0], [3.0]]], dims=("element", "sample", "feature"))
    >>> orbit_variance(features).set_index("part").share.to_dict()
    {'image': 1.0, 'element': 0.0, 'image × element': 0.0}
    """
    has_labels = "label" in features.coords and labelled(features).sizes["sample"] > 0
    if has_labels:
        features = labelled(features)
    features = _complete(features, least=2)
    z = _values(features)
    order, n, _ = z.shape
    grand_mean = z.mean((0, 1))
    of_elements = z.mean(1) - grand_mean
    of_images = z.mean(0) - grand_mean
    interactions = z - grand_mean - of_elements[:, None] - of_images
    squares = {"element": n * _square(of_elements)}
    if has_labels:
        class_means, interaction_means = np.empty_like(of_images), np.empty_like(interactions)
        for label in np.unique(features.label.values):
            of_class = np.flatnonzero(features.label.values == label)
            class_means[of_class] = of_images[of_class].mean(0)
            interaction_means[:, of_class] = interactions[:, of_class].mean(1, keepdims=True)
        squares["class"] = order * _square(class_means)
        squares["image within class"] = order * _square(of_images - class_means)
        squares["class × element"] = _square(interaction_means)
        squares["image × element"] = _square(interactions - interaction_means)
    else:
        squares["image"] = order * _square(of_images)
        squares["image × element"] = _square(interactions)
    total = _square(z - grand_mean)
    parts = PARTS if has_labels else ("image", "element", "image × element")
    shares = [squares[part] / total if total > 0 else np.nan for part in parts]
    rows = [{"part": part, "share": share, "n": n} for part, share in zip(parts, shares, strict=True)]
    return _table(features, rows)


def best_action(features: xr.DataArray) -> pd.DataFrame:
    """How far f(gx) is from A_g f(x) for the best A_g of three kinds, relative to another image's f(gx′) *[ours]*.

    "identity" is invariance, "orthogonal" the best rotation or reflection of the features (Procrustes, Schönemann 1966),
    "ridge" the best linear map. A_g is fitted for each element but the identity on four fifths of the images and held
    against the rest. Where "ridge" is far below "identity", the features move with the image, by an action of their own.

    Parameters
    ----------
    features : DataArray (element, sample, feature)
        Of `ek.orbit_features`.

    Returns
    -------
    DataFrame
        A row for each kind: `model`, `action`, `relative`, `distance` = mean ‖f(gx) − A_g f(x)‖, `null` = mean
        ‖f(gx′) − A_g f(x)‖ over the other images of the part, `n` images. `relative` is distance / null: 1 for an A_g that
        tells nothing of x.

    Raises
    ------
    ValueError
        Fewer than 10 images have a value, or there is one element alone.

    Examples
    --------
    >>> vectors = np.random.default_rng(0).normal(size=(20, 2))
    >>> features = xr.DataArray([vectors, vectors[:, ::-1]], dims=("element", "sample", "feature"))
    >>> best_action(features).set_index("action").relative.round(2).to_dict()
    {'identity': 0.64, 'orthogonal': 0.0, 'ridge': 0.0}
    """
    features = _complete(features, least=2 * FOLDS)
    z = _values(features)
    order, n, _ = z.shape
    if order < 2:
        raise ValueError("an action is read off elements other than the identity, and there are none")
    fits: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
        "identity": lambda x, _y: np.eye(x.shape[1]),
        "orthogonal": _procrustes,
        "ridge": _ridge,
    }
    rows = []
    for action, fit in fits.items():
        distances, nulls = [], []
        for train, test in _folds(n):
            for of_element in z[1:]:
                predicted = z[0, test] @ fit(z[0, train], of_element[train])
                between = cdist(predicted, of_element[test])
                is_own = np.eye(len(test), dtype=bool)
                distances += between[is_own].tolist()
                nulls += between[~is_own].tolist()
        distance, null = float(np.mean(distances)), float(np.mean(nulls))
        relative = distance / null if null > 0 else np.nan
        rows.append({"action": action, "relative": relative, "distance": distance, "null": null, "n": n})
    return _table(features, rows)


def averaging_gain(results: xr.Dataset | xr.DataArray) -> pd.DataFrame:
    """What averaging class probabilities over the orbit would gain in log-loss: predicted without labels, and real *[ours]*.

    p̄ is the mean of p_g = p(· | gx). Predicted: mean KL(p̄ ‖ p_g), the metric `softmax_reverse`; it is the gain that is
    expected if labels are drawn from p̄. Real: mean over g of −log p_g(y), less −log p̄(y), for the labels y.

    Parameters
    ----------
    results : DataArray (element, sample, class), or Dataset
        Of `ek.orbit_features(…, of="probabilities")`; or of `measure` with the metric `softmax_reverse`, which has no
        probabilities of classes, so that the real gain is NaN.

    Returns
    -------
    DataFrame
        A row for each model: `model`, `predicted`, `predicted_low`, `predicted_high`, `real`, `real_low`, `real_high` in nats,
        with 95 % over images, and `n`, `n_labelled`, how many images are behind each.

    Raises
    ------
    ValueError
        A Dataset without `softmax_reverse`, or labels that are no numbers of classes.

    Examples
    --------
    >>> probabilities = xr.DataArray([[[0.9, 0.1]], [[0.1, 0.9]]], dims=("element", "sample", "class"))
    >>> averaging_gain(probabilities.assign_coords(label=("sample", [0])))[["predicted", "real"]].round(2).values.tolist()
    [[0.51, 0.51]]
    """
    if isinstance(results, xr.Dataset):
        if REVERSE not in results:
            raise ValueError(
                f"the gain is predicted by {REVERSE}; measure it, or pass ek.orbit_features(of='probabilities')"
            )
        rows = []
        for model in np.atleast_1d(results.model.values):
            one = results[REVERSE].sel(model=model) if "model" in results.dims else results[REVERSE]
            predicted = one.transpose("element", "sample").values.astype(float).mean(0)
            rows.append({"model": model, **_gains(predicted[~np.isnan(predicted)], np.array([]))})
        return pd.DataFrame(rows)
    results = _complete(results, least=1)
    p = _values(results).clip(np.finfo(float).tiny)
    mean = p.mean(0)
    predicted = (mean * (np.log(mean) - np.log(p))).sum(-1).mean(0)
    real = np.array([])
    if "label" in results.coords:
        labels = results.label.values
        if labels.dtype.kind not in "iu" or labels.max(initial=-1) >= p.shape[-1]:
            raise ValueError(f"labels must be numbers of the {p.shape[-1]} classes, got {labels[:3].tolist()}")
        known = np.flatnonzero(labels >= 0)
        of_label = p[:, known, labels[known]]
        real = np.log(of_label.mean(0)) - np.log(of_label).mean(0)
    return _table(results, [_gains(predicted, real)])


def _gains(predicted: np.ndarray, real: np.ndarray) -> dict[str, Any]:
    """Means over images, with their intervals; NaN where there is no image, or one alone."""
    row: dict[str, Any] = {}
    for name, values in (("predicted", predicted), ("real", real)):
        mean = low = high = np.nan
        if len(values) == 1:
            mean = float(values[0])
        elif len(values) > 1:
            mean, low, high = mean_interval(values)
        row |= {name: mean, f"{name}_low": low, f"{name}_high": high}
    return row | {"n": len(predicted), "n_labelled": len(real)}


def _complete(features: xr.DataArray, *, least: int) -> xr.DataArray:
    """The images that have finite values under every element; ValueError for too few."""
    if not isinstance(features, xr.DataArray) or not {"element", "sample"} <= set(features.dims) or features.ndim != 3:
        came = features.dims if isinstance(features, xr.DataArray) else type(features).__name__
        raise TypeError(f"expected an array (element, sample, feature) of ek.orbit_features, got {came}")
    features = features.transpose("element", "sample", ...)
    is_finite = np.isfinite(features.values).all((0, 2))
    if is_finite.sum() < least:
        raise ValueError(f"this needs {least} images that have values, got {is_finite.sum()}; pass more")
    return features.isel(sample=np.flatnonzero(is_finite))


def _values(features: xr.DataArray) -> np.ndarray:
    """(element, sample, feature) in float64."""
    return features.values.astype(float)


def _table(features: xr.DataArray, rows: list[dict[str, Any]]) -> pd.DataFrame:
    """The rows, with the model they are of."""
    model = features.model.item() if "model" in features.coords else ""
    table = pd.DataFrame(rows)
    table.insert(0, "model", model)
    return table


def _folds(n: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(images to fit on, images to predict), each image predicted once."""
    shuffled = np.random.default_rng(0).permutation(n)
    for test in np.array_split(shuffled, FOLDS):
        yield np.setdiff1d(shuffled, test), test


def _stacked(orbit: np.ndarray) -> np.ndarray:
    """(element, sample, k) -> (element · sample, k)."""
    return orbit.reshape(-1, orbit.shape[-1])


def _ridge(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The W (d, k) that minimises ‖y − xW‖² + λ‖W‖², λ being a share of the mean square of x's columns."""
    penalty = PENALTY * max(_square(x) / x.shape[1], np.finfo(float).tiny)
    if len(x) >= x.shape[1]:
        return np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y)
    return x.T @ np.linalg.solve(x @ x.T + penalty * np.eye(len(x)), y)


def _procrustes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The orthogonal W (d, d) that minimises ‖y − xW‖²."""
    left, _, right = np.linalg.svd(x.T @ y)
    return left @ right


def _square(values: np.ndarray) -> float:
    return float((values**2).sum())
