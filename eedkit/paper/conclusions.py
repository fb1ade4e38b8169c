"""Tests of the paper's five stated conclusions (Kvinge et al. 2022, section 1), on tables of `summarise`.

Knows columns, never models or figures. Margins are declared before looking, the unit is the seed, and the intervals of
one conclusion are corrected for all of its comparisons: one row for each, and a last one for the conclusion.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from eedkit.errors import unknown
from eedkit.paper import verdicts
from eedkit.paper.verdicts import Test, concluded, needs, seed_values

SEES_EXCHANGES = ("channelwise_regular", "channelwise_matched")
"""Channelwise metrics under which a group convolution is equivariant, exactly."""


def augmentation_or_layers(
    table: pd.DataFrame,
    *,
    margin: float,
    fall: float,
    metric: str = "channelwise",
    value: str = "estimate",
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Conclusion 1: augmentation does not tend to induce invariance through equivariant layers.

    Premise: with augmentation the relative `latent` and `softmax` values fall by more than `fall`. Then, per layer, the
    claim is that metric(augmented) − metric(plain) is not below −margin: supported if that holds at every layer,
    contradicted if at one it does not.

    Parameters
    ----------
    table : with recipes "plain" and "augmented"; with "equivariant" too, a metric of `SEES_EXCHANGES` must find that
        network equivariant, to within the margin, or nothing is testable
    metric : "channelwise" (eq. 5), or another of the maps, such as `channelwise_matched` [ours]
    value : "estimate" (the paper's) or "relative" [ours] for the channelwise comparison
    """
    needs(table, "recipe", "seed")
    table = table[table.recipe.isin(["plain", "augmented", "equivariant"])]
    layers = _layers(table, metric)
    known = metric in SEES_EXCHANGES and "equivariant" in set(table.recipe)
    test = Test("1", len(layers) + 2 + known, confidence)
    pair = table, "augmented", "plain"
    premises = [
        test.difference(f"{name} falls", verdicts.falls, fall, *pair, name, at, "relative")
        for name, at in (("latent", "latent"), ("softmax", "output"))
    ]
    if known:
        best = 0.0 if value == "relative" else table[table.metric == metric].best.iloc[0]
        of = {"metric": metric, "value": value}
        above = [seed_values(table, "equivariant", layer=layer, **of) - best for layer in layers]
        worst = pd.concat(above, axis=1, join="inner").max(axis=1)
        title = "the equivariant network is seen as such"
        premises.append(test.row(title, verdicts.stays_below, margin, worst, layer="its worst", **of))
    rows = [
        test.difference(f"{metric} at {at} does not fall", verdicts.does_not_fall, margin, *pair, metric, at, value)
        for at in layers
    ]
    text = "augmentation does not make the layers equivariant"
    lowest = sorted(rows, key=lambda row: row["high"])
    return concluded(rows, text, verdicts.every([row["verdict"] for row in rows]), lowest, premises)


def out_of_distribution(
    table: pd.DataFrame,
    *,
    source: str,
    margin: float,
    collapse: float,
    metric: str = "latent",
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Conclusion 2: learned invariance generalises mildly to corruptions; on far domains it could be insensitivity.

    The gain of augmentation is relative(plain) − relative(augmented), seed by seed. Premise: in distribution it is
    above the margin. Claims: it is above the margin on corruptions too (their mean); it is smaller there by more than
    the margin; and on some far domain the augmented network's null gap E_null − m* is under the part `collapse` of what
    it is in distribution, so that a low E is consistent with insensitivity (never more than that).

    Parameters
    ----------
    table : with recipes "plain" and "augmented", and the columns of `specs.labelled`
    source : the images of the training's kind; their rows without shift are in distribution, with shift corrupted, and
        those of other sources, or in which no image is left (the domain "noise"), far
    """
    needs(table, "recipe", "seed", "data", "source", "shift", "domain", "null", "best")
    table = table[table.recipe.isin(["plain", "augmented"])]
    where = {"metric": metric, "layer": _end(table, metric)}
    table = table.assign(gap=table.null - table.best)
    near = (table.source == source) & (table.domain != "noise")
    clean, corrupted, far = table[near & (table["shift"] == "")], table[near & (table["shift"] != "")], table[~near]
    for what, part in {"images in distribution": clean, "corrupted images": corrupted, "far images": far}.items():
        if part.empty:
            known = ", ".join(table.source.unique())
            raise ValueError(f"the table has no {what} where the source is {source!r}; its sources are {known}")
    here, there = (
        _mean(part, "plain", value="relative", **where) - _mean(part, "augmented", value="relative", **where)
        for part in (clean, corrupted)
    )
    gap = _mean(clean, "augmented", value="gap", **where)
    gaps = {name: _mean(part, "augmented", value="gap", **where) for name, part in far.groupby("domain", sort=False)}
    test = Test("2", 3 + len(gaps), confidence)
    of = {"value": "relative", **where}
    premise = test.row("augmentation gains in distribution", verdicts.exceeds, margin, here, **of)
    claims = [
        test.row("the gain remains on corruptions", verdicts.exceeds, margin, there, **of),
        test.row("and is smaller there", verdicts.exceeds, margin, here - there, **of),
    ]
    of = {"value": "null gap", **where}
    text = "the null gap collapses (consistent with insensitivity)"
    collapses = [
        test.row(f"{name}: {text}", verdicts.stays_below, collapse, far_gap / gap, **of)
        for name, far_gap in gaps.items()
    ]
    parts = [row["verdict"] for row in claims] + [verdicts.some([row["verdict"] for row in collapses])]
    # where the far domains decide, the one that comes nearest to a collapse speaks for them
    deciding = [*claims, *sorted(collapses, key=lambda row: row["high"])]
    text = "invariance generalises mildly, and far away it could be insensitivity"
    return concluded([*claims, *collapses], text, verdicts.every(parts), deciding, [premise])


def without_learning(
    table: pd.DataFrame,
    *,
    margins: dict[str, float],
    against: Sequence[str] = ("augmented", "equivariant"),
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Conclusion 3: models with random weights can look more invariant than learned or built-in invariance.

    Per uncalibrated metric and opponent: E(random) − E(opponent) < −margin over seeds. The conclusion is a possibility,
    so one clear case supports it; it is contradicted only where random weights lie above by the margin in every case.

    Parameters
    ----------
    table : with the recipe "random" and those in `against`
    margins : metric -> what counts as a difference; "latent" is taken at the layer `latent`
    """
    needs(table, "recipe", "seed")
    table = table[table.recipe.isin(["random", *against])]
    cases = [(metric, opponent) for metric in margins for opponent in against]
    test = Test("3", len(cases), confidence)
    rows = [
        test.difference(
            f"random below {opponent} in {metric}", verdicts.falls, margins[metric], table, "random", opponent,
            metric, _end(table, metric), "estimate",
        )
        for metric, opponent in cases
    ]  # fmt: skip
    lowest = sorted(rows, key=lambda row: row["high"])
    verdict = verdicts.some([row["verdict"] for row in rows])
    return concluded(rows, "random weights can look more invariant", verdict, lowest)


def rank_correlation(
    table: pd.DataFrame,
    *,
    margin: float,
    metric: str = "latent",
    value: str = "estimate",
    confidence: float = 0.95,
    seed: int = 0,
) -> dict:
    """Conclusion 3, its other half: does invariance track performance? Spearman's ρ of a metric's value and accuracy.

    Low values are invariant, so that invariance tracks performance where ρ < −margin. The interval is a percentile
    bootstrap interval with the network as the unit, not corrected for other comparisons; where kinds of network lie far apart, their order decides.

    Parameters
    ----------
    table : one row per network, metric and layer, with the column `accuracy`

    >>> table = pd.DataFrame({"model": list("abcdef"), "metric": "latent", "layer": "latent"})
    >>> table = table.assign(estimate=[-0.9, -0.8, -0.7, -0.6, -0.5, -0.4], accuracy=[0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    >>> rank_correlation(table, margin=0.5)["verdict"]
    'contradicted'
    """
    from scipy.stats import bootstrap

    needs(table, "model", "accuracy", value)
    layer = _end(table, metric)
    rows = table[(table.metric == metric) & (table.layer == layer)].dropna(subset=[value, "accuracy"])
    if rows.model.duplicated().any():
        raise ValueError(f"{metric} has several rows of one network; select one data set and one group")
    data = rows[value].to_numpy(), rows.accuracy.to_numpy()
    if min(len(np.unique(values)) for values in data) < 2:
        raise ValueError(f"a rank correlation needs networks that differ in the {value} of {metric} and in accuracy")
    low, high = bootstrap(
        data,
        _rho,
        paired=True,
        vectorized=True,
        method="percentile",
        confidence_level=confidence,
        n_resamples=1999,
        rng=seed,
    ).confidence_interval
    return Test("3", 1, confidence).given(
        f"{value} does not track accuracy", verdicts.does_not_fall, margin, float(_rho(*data)), low, high,
        len(rows), metric=metric, layer=layer, value=value, confidence=confidence,
    )  # fmt: skip


def pretraining(
    table: pd.DataFrame,
    *,
    margin: float,
    metrics: Sequence[str],
    pretrained: Sequence[str] = ("from_letters", "from_patches"),
    scratch: str = "plain",
    value: str = "estimate",
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Conclusion 4: pre-training changes invariance, and the distance decides which model looks more invariant.

    Two-sided, per source and distance: value(pretrained) − value(scratch) against ± margin, in units of the scale of
    the distance. Claim: for some source two distances disagree about the sign, both beyond the margin (so that there is
    a change). It is contradicted where every comparison is decided, and none disagree.

    Parameters
    ----------
    margin : as a part of the distance's scale (of `latent_euclidean`: the mean length of the features)
    metrics : two or more distances that are compared; a channelwise one at its deepest layer
    """
    needs(table, "recipe", "seed", "scale")
    table = table[table.recipe.isin([scratch, *pretrained])]
    if len(set(metrics)) < 2:
        raise ValueError(f"whether distances disagree takes two or more metrics, got {list(metrics)}")
    test = Test("4", len(metrics) * len(pretrained), confidence)
    cases = []
    for name in pretrained:
        own = []
        for metric in metrics:
            layer = _end(table, metric)
            of = table[(table.metric == metric) & (table.layer == layer) & table.recipe.isin([name, scratch])]
            # a relative value has the null gap as its unit
            least = margin * (1.0 if value == "relative" else of.scale.mean())
            title = f"{name} differs in {metric}"
            own.append(test.difference(title, verdicts.differs, least, table, name, scratch, metric, layer, value))
        cases.append(own)
    flips = [_disagree(own) for own in cases]
    verdict = verdicts.some(flips)
    # a source that bears the verdict out speaks for all, with its clearest difference
    deciding = [row for own, flip in zip(cases, flips, strict=True) if flip == verdict for row in own]
    return concluded(
        [row for own in cases for row in own],
        "pre-training changes invariance, and the distance decides how",
        verdict,
        sorted(deciding, key=lambda row: -abs(row["effect"]) / (row["margin"] or 1)),
    )


def self_supervision(
    table: pd.DataFrame,
    *,
    margin: float,
    metric: str = "latent",
    value: str = "relative",
    without: Sequence[str] = ("simclr", "barlow_twins", "turns"),
    contrastive: Sequence[str] = ("simclr_augmented",),
    others: Sequence[str] = ("barlow_twins_augmented",),
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Conclusion 5: self-supervised models are not more invariant, except contrastive ones with augmentations from G.

    Against the supervised network without the group: methods `without` it are not below by the margin; `contrastive`
    ones with the group are; and `others` with the group, which are not contrastive, are not. Premise: supervised
    training with the group is below by the margin, so that the measure can see such a thing.
    """
    needs(table, "recipe", "seed")
    table = table[table.recipe.isin(["plain", "augmented", *without, *contrastive, *others])]
    test = Test("5", 1 + len(without) + len(contrastive) + len(others), confidence)
    of = (metric, _end(table, metric), value)
    title = "supervised with the group is more invariant"
    premise = test.difference(title, verdicts.does_fall, margin, table, "augmented", "plain", *of)
    claims = [(name, "is not more invariant", verdicts.does_not_fall) for name in [*without, *others]]
    claims += [(name, "is more invariant", verdicts.does_fall) for name in contrastive]
    rows = [test.difference(f"{name} {says}", claim, margin, table, name, "plain", *of) for name, says, claim in claims]
    text = "self-supervised is not more invariant, but for contrast with the group"
    return concluded(rows, text, verdicts.every([row["verdict"] for row in rows]), rows, [premise])


def _layers(table: pd.DataFrame, metric: str) -> list[str]:
    """The layers at which a metric has values, in the network's order."""
    layers = list(dict.fromkeys(table[(table.metric == metric) & table.estimate.notna()].layer))
    if not layers:
        raise ValueError(unknown("metric with values", metric, table[table.estimate.notna()].metric.unique()))
    return layers


def _end(table: pd.DataFrame, metric: str) -> str:
    """Where a metric is compared once: at the output, the head's input, or its deepest layer."""
    layers = _layers(table, metric)
    return next((name for name in ("output", "latent") if name in layers), layers[-1])


def _disagree(rows: Sequence[dict]) -> str:
    """Whether two distances disagree about the sign, each beyond its margin."""
    up = any(row["low"] > row["margin"] for row in rows)
    down = any(row["high"] < -row["margin"] for row in rows)
    if up and down:
        return verdicts.SUPPORTED
    undecided = any(row["verdict"] == verdicts.INCONCLUSIVE for row in rows)
    return verdicts.INCONCLUSIVE if undecided else verdicts.CONTRADICTED


def _mean(table: pd.DataFrame, recipe: str, *, metric: str, layer: str, value: str) -> pd.Series:
    """By seed, the mean over the data sets; a seed that lacks one is left out: its mean would be of something else."""
    of = {"metric": metric, "layer": layer, "value": value}
    return pd.concat([seed_values(t, recipe, **of) for _, t in table.groupby("data")], axis=1, join="inner").mean(
        axis=1
    )


def _rho(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    """Spearman's ρ; 0 where all values of a side are equal, as they may be in a resample, since that shows no order."""
    from scipy.stats import rankdata

    x, y = (rankdata(values, axis=axis) - (values.shape[axis] + 1) / 2 for values in (x, y))
    norms = np.sqrt((x**2).sum(axis) * (y**2).sum(axis))
    return (x * y).sum(axis) / np.where(norms > 0, norms, 1)
