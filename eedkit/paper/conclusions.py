"""Tests of the paper's five stated conclusions (Kvinge et al. 2022, section 1), on tables of `summarise`.

The unit is the seed, margins are declared beforehand, effects are paired by seed. Each function gives one table: premises and
controls, then the comparisons of each part, and as its last row the conclusion.

Columns
-------
conclusion : "1" to "5"
part : "premise", "control", the name of a part, or "conclusion"
test : what is claimed, in words
claim : "above", "below" or "beyond": where the effect is claimed to lie, seen from its margin
verdict : "supported", "contradicted", "inconclusive" or "not testable here"
effect, low, high : the estimate and its bounds, one-sided but for "beyond"; positive differences mean "more invariant"
margin : the declared margin, never negative
n : seeds (networks for rank correlations)
confidence, confidence_against : of the bound that may support the claim, and of the one that may contradict it
critical_margin : the margin at which the verdict would flip; NaN where none would do
fragile : whether the bound that decides lies within 20 % of the margin from it
metric, layer, value : what was compared; `value` is a column of the table, or says what was made of it
decided_by : of a part's and of the conclusion's own row, the `test` of the comparison that it repeats; else ""

Contradicted means for a claim about *all* that some part of it is contradicted, which is a union and so is Holm-corrected. For
a claim about *some* it means that every part is contradicted, which needs no correction.
"""

from collections.abc import Mapping, Sequence

import pandas as pd
import xarray as xr

from eedkit.errors import unknown
from eedkit.paper import verdicts
from eedkit.paper.verdicts import Claim, Comparison, Every, Some, concluded, mean_effect, needs, seed_values
from eedkit.results.intervals import mean_interval
from eedkit.results.labels import is_right

SEES_EXCHANGES = ("channelwise_regular", "channelwise_matched")
"""Channelwise metrics under which a group convolution is equivariant, exactly."""
PLAIN = {"recipe": "plain"}


def augmentation_or_layers(
    table: pd.DataFrame,
    *,
    fall: float,
    ratio: float = 0.5,
    metric: str = "channelwise",
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Conclusion 1: augmentation does not tend to induce invariance through equivariant layers.

    The share of the plain network's relative deviation that augmentation removes is, by seed, 1 − relative(augmented) /
    relative(plain). Claim: at every layer the maps' share is below `ratio` of the features' share. The effect is the ratio of
    the mean shares with Fieller's bounds (`verdicts.ratio_effect`). Premise: the features' share is above `fall`.

    Parameters
    ----------
    table : pandas.DataFrame
        With recipes "plain" and "augmented". With "equivariant" too, a metric of `SEES_EXCHANGES` must find that the maps of
        *that* network lose at least `ratio` at every layer, or the metric could not have contradicted the claim.
    fall : float
        The share of the features' deviation beyond which augmentation has worked.
    ratio : float
        The part of the features' share that would count as "through layers".
    metric : str
        "channelwise" (eq. 5), or another of the maps, such as `channelwise_matched` [ours].

    Returns
    -------
    pandas.DataFrame
        The columns of this module, and `share`: what augmentation removes there.
    """
    needs(table, "recipe", "seed", "relative")
    layers = _layers(table, metric)
    of_features = _share_removed(table, {"recipe": "augmented"}, PLAIN, metric="latent", layer="latent")
    worked = Comparison(
        "augmentation makes the features more invariant",
        Claim("above", fall),
        mean_effect(of_features),
        {"metric": "latent", "layer": "latent", "value": "share removed", "share": of_features.mean()},
    )
    maps = [_maps_against_features(table, "augmented", metric, layer, Claim("below", ratio)) for layer in layers]
    premises = [worked]
    if metric in SEES_EXCHANGES and "equivariant" in set(table.recipe):
        known = Claim("above", ratio)
        premises.append(Every([_maps_against_features(table, "equivariant", metric, layer, known) for layer in layers]))
    text = "augmentation does not make invariance through equivariant layers"
    return concluded("1", text, {"every layer": Every(maps)}, premises=premises, confidence=confidence)


def dose_response(table: pd.DataFrame, *, metric: str = "channelwise", confidence: float = 0.95) -> pd.DataFrame:
    """The share of the relative deviation that is removed, by the share of turned training images.

    Parameters
    ----------
    table : pandas.DataFrame
        With a column `share` of turned images; each seed's network of share 0 is what its others are compared with.
    metric : str
        Of the maps. A network's best map is the layer that loses most, seed by seed.

    Returns
    -------
    pandas.DataFrame
        Two rows for each share above 0, `what` "features" or "best map", with `effect`, `low`, `high` (Student's t) and `n`.
    """
    needs(table, "share", "seed", "relative")
    layers = _layers(table, metric)
    rows = []
    for share in sorted(set(table.share) - {0}):
        shares = [{"share": share}, {"share": 0}]
        features = _share_removed(table, *shares, metric="latent", layer="latent")
        maps = [_share_removed(table, *shares, metric=metric, layer=layer) for layer in layers]
        best_map = pd.concat(maps, axis=1, join="inner").max(axis=1)
        for what, values in {"features": features, "best map": best_map}.items():
            effect, low, high = mean_interval(values.dropna(), confidence=confidence)
            row = {"share": share, "what": what, "effect": effect, "low": low, "high": high}
            rows.append({**row, "n": values.notna().sum(), "confidence": confidence})
    return pd.DataFrame(rows)


def out_of_distribution(
    table: pd.DataFrame,
    *,
    source: str,
    margin: float,
    metric: str = "latent",
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Conclusion 2: learned invariance generalises mildly to corruptions; on far domains it may be insensitivity.

    The gain of augmentation is relative(plain) − relative(augmented), by seed. Premise: in distribution it is above the
    margin. Claims: on corruptions (their mean) it is above the margin; it is smaller there by more than the margin; and on
    some far domain the augmented network's raw E is not above home's by the margin while its relative value is. So the
    invariance that raw E shows there is the null's. Raw E is put on the relative scale by the null gap at home: it is the relative
    value that the network would have had with home's null.

    Premise: the equivariant network stays below the margin everywhere. Control: the plain network passes the test of far
    domains on none of them.

    Parameters
    ----------
    table : pandas.DataFrame
        With recipes "plain", "augmented" and "equivariant", and the columns of `specs.labelled`.
    source : str
        The images of the training's kind. Their rows without corruption are in distribution; those of other
        sources, or in which no image is left (the domain "noise"), are far.
    margin : float
        The difference of relative values that counts.
    """
    needs(table, "recipe", "seed", "data", "source", "corruption", "domain", "null", "best", "order")
    layer = _end(table, metric)
    table = table[(table.metric == metric) & (table.layer == layer)]
    near = (table.source == source) & (table.domain != "noise")
    home = table[near & (table["corruption"] == "")]
    corrupted = table[near & (table["corruption"] != "")]
    far = table[~near]
    for what, part in {"images in distribution": home, "corrupted images": corrupted, "far images": far}.items():
        if part.empty:
            known = ", ".join(table.source.unique())
            raise ValueError(f"the table has no {what} where the source is {source!r}; its sources are {known}")
    domains = dict(iter(far.groupby("domain", sort=False)))

    def compared(test: str, direction: str, effects: pd.Series, value: str = "relative") -> Comparison:
        about = {"metric": metric, "layer": layer, "value": value}
        return Comparison(test, Claim(direction, margin), mean_effect(effects), about)

    def from_home(recipe: str, domain: str, raw: str, relative: str) -> list[Comparison]:
        """How far raw and relative values of a recipe lie above home's, each with the direction that is claimed."""
        best = _mean_over_data(home, recipe, "best")
        gap_at_home = _mean_over_data(home, recipe, "null") - best
        raw_values = []
        for part in (home, domains[domain]):
            deviation = (_mean_over_data(part, recipe, "estimate") - best).clip(lower=0)
            raw_values.append((deviation / gap_at_home) ** (1 / table.order.iloc[0]))
        raw_change = raw_values[1] - raw_values[0]
        relative_change = _mean_over_data(domains[domain], recipe, "relative")
        relative_change = relative_change - _mean_over_data(home, recipe, "relative")
        says = {"below": "is not above home's", "above": "is above home's"}
        return [
            compared(f"{domain}: {recipe}'s raw E {says[raw]}", raw, raw_change, "raw, by the null gap at home"),
            compared(f"{domain}: {recipe}'s relative value {says[relative]}", relative, relative_change),
        ]

    gain = _mean_over_data(home, "plain", "relative") - _mean_over_data(home, "augmented", "relative")
    gain_corrupted = _mean_over_data(corrupted, "plain", "relative")
    gain_corrupted = gain_corrupted - _mean_over_data(corrupted, "augmented", "relative")
    equivariant = [_mean_over_data(part, "equivariant", "relative") for part in [home, *domains.values()]]
    worst = pd.concat(equivariant, axis=1, join="inner").max(axis=1)
    premises = [
        compared("augmentation gains in distribution", "above", gain),
        compared("the equivariant network stays invariant on all domains", "below", worst),
    ]
    parts = {
        "the gain remains on corruptions": compared("the gain remains on corruptions", "above", gain_corrupted),
        "it is smaller there": compared("the gain is smaller on corruptions", "above", gain - gain_corrupted),
        "some far domain looks invariant by its null alone": Some(
            [Every(from_home("augmented", domain, raw="below", relative="above")) for domain in domains]
        ),
    }
    controls = [Some(from_home("plain", domain, raw="above", relative="below")) for domain in domains]
    text = "invariance generalises mildly, and far away it may be insensitivity"
    return concluded("2", text, parts, premises=premises, controls=controls, confidence=confidence)


def without_learning(
    table: pd.DataFrame,
    *,
    margins: Mapping[str, float],
    against: Sequence[str] = ("augmented", "equivariant"),
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Conclusion 3: models with random weights can look more invariant than learned or built-in invariance.

    Claim: under some uncalibrated metric E(opponent) − E(random) is above the margin, for some opponent.

    Parameters
    ----------
    table : pandas.DataFrame
        With the recipe "random" and those in `against`.
    margins : mapping
        Metric -> what counts as a difference; "latent" is taken at the layer `latent`.
    """
    needs(table, "recipe", "seed")
    cases = []
    for metric, margin in margins.items():
        of = {"metric": metric, "layer": _end(table, metric)}
        for opponent in against:
            advantage = seed_values(table, "estimate", recipe=opponent, **of)
            advantage = advantage - seed_values(table, "estimate", recipe="random", **of)
            test = f"random looks more invariant than {opponent} in {metric}"
            about = {**of, "value": "estimate"}
            cases.append(Comparison(test, Claim("above", margin), mean_effect(advantage), about))
    text = "random weights can look more invariant"
    return concluded("3", text, {"some metric and opponent": Some(cases)}, confidence=confidence)


def rank_correlations(
    table: pd.DataFrame,
    *,
    margin: float,
    least: float,
    metric: str = "latent",
    values: Sequence[str] = ("estimate", "relative"),
    accuracies: Sequence[str] = ("accuracy",),
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Conclusion 3, its other half: does invariance track performance? Spearman's ρ of invariance (−value) and accuracy.

    Claim of each row: ρ is below the margin, so that invariance need not track performance. Rows are within each kind of
    network, and over all; over all, the order of the kinds may decide (Simpson's paradox). Each row is a test by itself.

    Parameters
    ----------
    table : pandas.DataFrame
        One row per network, metric and layer, with a column `kind`.
    least : float
        Networks whose accuracy is lower did not train, and are left out (`verdicts.trained`).
    accuracies : sequence of str
        Columns; "accuracy" is that on upright images, `moved_accuracy` makes another.

    Returns
    -------
    pandas.DataFrame
        The columns of this module, and `networks` and `performance`: the kind, or "all", and the column of accuracies.

    Examples
    --------
    >>> table = pd.DataFrame({"model": list("abcdef"), "recipe": "plain", "kind": "plain", "metric": "latent", "layer": "latent"})
    >>> table = table.assign(estimate=[-0.4, -0.5, -0.6, -0.7, -0.8, -0.9], accuracy=[0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    >>> rank_correlations(table, margin=0.3, least=0.1, values=["estimate"]).verdict.tolist()
    ['contradicted', 'contradicted']
    """
    needs(table, "model", "kind", *values, *accuracies)
    layer = _end(table, metric)
    rows = verdicts.trained(table[(table.metric == metric) & (table.layer == layer)], least=least)
    if rows.model.duplicated().any():
        raise ValueError(f"{metric} has several rows of one network; select one data set and one group")
    networks = {**dict(iter(rows.groupby("kind", sort=False))), "all": rows}
    found = []
    for name, some in networks.items():
        for value in values:
            for accuracy in accuracies:
                pairs = some[[value, accuracy]].dropna()
                effect = verdicts.rank_effect(-pairs[value].to_numpy(), pairs[accuracy].to_numpy())
                about = {"metric": metric, "layer": layer, "value": value, "networks": name, "performance": accuracy}
                comparison = Comparison(
                    f"{name}: {value} need not track {accuracy}", Claim("below", margin), effect, about
                )
                row = verdicts.judge(comparison, 1 - confidence, 1 - confidence).row()
                found.append({"conclusion": "3", "part": "ranks", **row, "decided_by": ""})
    return pd.DataFrame(found)


def moved_accuracy(ds: xr.Dataset) -> pd.Series:
    """By model, the part of the moved images (every element but the identity) whose label is predicted."""
    right = is_right(ds)
    identity = ds.element.attrs.get("identity", "e")
    return right.sel(element=ds.element != identity).mean(["element", "sample"]).to_series()


def pretraining(
    table: pd.DataFrame,
    *,
    margin: float,
    metrics: Sequence[str],
    pretrained: Sequence[str] = ("from_letters", "from_patches"),
    control: str = "from_same",
    value: str = "estimate",
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Conclusion 4: pre-training changes invariance, and the distance decides which model looks more invariant.

    Fine-tuned networks are compared with `control`: equally long training on the same images. The effect is
    value(control) − value(pretrained) in units of the distance's scale. Two parts: some fine-tuned network differs under some
    distance (two-sided); and for some of them two distances *on the same vector*, the features or the class probabilities,
    see opposite differences, both beyond the margin.

    Parameters
    ----------
    margin : float
        As a part of the distance's scale; for relative values, their difference.
    metrics : sequence of str
        Distances; those of the same layer look at the same vector.
    """
    needs(table, "recipe", "seed", "scale")
    changes = []
    oppositions = []
    for name in pretrained:
        of_vector = {}
        for metric in metrics:
            of = {"metric": metric, "layer": _end(table, metric)}
            rows = table[(table.metric == metric) & (table.layer == of["layer"]) & table.recipe.isin([name, control])]
            # relative values are on one scale already
            unit = 1.0 if value == "relative" else rows.scale.mean()
            differences = seed_values(table, value, recipe=control, **of) - seed_values(table, value, recipe=name, **of)
            effect = mean_effect(differences / unit)
            about = {**of, "value": value}
            changes.append(
                Comparison(f"{name} differs from {control} in {metric}", Claim("beyond", margin), effect, about)
            )
            of_vector.setdefault(of["layer"], {})[metric] = effect
        for layer, effects in of_vector.items():
            if len(effects) > 1:
                opposed = verdicts.opposed_effect(list(effects.values()))
                about = {"metric": ", ".join(effects), "layer": layer, "value": value}
                test = f"distances at {layer} disagree about {name}"
                oppositions.append(Comparison(test, Claim("above", margin), opposed, about))
    if not oppositions:
        raise ValueError(f"whether distances disagree takes two or more on the same vector, got {list(metrics)}")
    parts = {"pre-training changes invariance": Some(changes), "the distance decides how": Some(oppositions)}
    text = "pre-training changes invariance, and the distance decides how"
    return concluded("4", text, parts, confidence=confidence)


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

    The effect is value(plain) − value(method). Three parts: no method `without` the group is above the margin; all
    `contrastive` ones with the group are; and *only* those: none of the `others` with the group is. Premise: supervised
    training with the group is above the margin, so that the measure can see such a thing.

    Parameters
    ----------
    margin : float
        The difference that counts.
    """
    needs(table, "recipe", "seed")
    of = {"metric": metric, "layer": _end(table, metric)}

    def gains(name: str, direction: str) -> Comparison:
        gain = seed_values(table, value, recipe="plain", **of) - seed_values(table, value, recipe=name, **of)
        says = {"above": "is more invariant than plain", "below": "is not more invariant than plain"}
        about = {**of, "value": value}
        return Comparison(f"{name} {says[direction]}", Claim(direction, margin), mean_effect(gain), about)

    parts = {
        "without the group not more invariant": Every([gains(name, "below") for name in without]),
        "contrastive with the group more invariant": Every([gains(name, "above") for name in contrastive]),
        "only contrastive": Every([gains(name, "below") for name in others]),
    }
    text = "self-supervised is not more invariant, but for contrast with the group"
    return concluded("5", text, parts, premises=[gains("augmented", "above")], confidence=confidence)


def _layers(table: pd.DataFrame, metric: str) -> list[str]:
    """The layers at which a metric has values, in the network's order."""
    layers = list(dict.fromkeys(table[(table.metric == metric) & table.estimate.notna()].layer))
    if not layers:
        raise ValueError(unknown("metric with values", metric, table[table.estimate.notna()].metric.unique()))
    return layers


def _end(table: pd.DataFrame, metric: str) -> str:
    """Where a metric is compared once: at the output, the head's input, or its deepest layer."""
    layers = _layers(table, metric)
    for name in ("output", "latent"):
        if name in layers:
            return name
    return layers[-1]


def _share_removed(table: pd.DataFrame, changed: Mapping, base: Mapping, **of: str) -> pd.Series:
    """By seed, the share of the relative deviation of the networks `base` that `changed` ones lack; NaN where there is none."""
    deviation = seed_values(table, "relative", **base, **of)
    return 1 - seed_values(table, "relative", **changed, **of) / deviation.where(deviation > 0)


def _maps_against_features(table: pd.DataFrame, recipe: str, metric: str, layer: str, claim: Claim) -> Comparison:
    of_maps = _share_removed(table, {"recipe": recipe}, PLAIN, metric=metric, layer=layer)
    of_features = _share_removed(table, {"recipe": recipe}, PLAIN, metric="latent", layer="latent")
    both = pd.concat([of_maps, of_features], axis=1, join="inner").dropna().to_numpy()
    says = {"below": "less", "above": "more"}[claim.direction]
    value = "share removed, maps / features"
    about = {"metric": metric, "layer": layer, "value": value, "share": of_maps.mean()}
    test = f"maps of {recipe} at {layer} lose {says} than {claim.margin:g} of what its features lose"
    return Comparison(test, claim, verdicts.ratio_effect(*both.T), about)


def _mean_over_data(table: pd.DataFrame, recipe: str, value: str) -> pd.Series:
    """By seed, the mean over the data sets; a seed that lacks one is left out: its mean would be of something else."""
    columns = [seed_values(rows, value, recipe=recipe) for _, rows in table.groupby("data")]
    return pd.concat(columns, axis=1, join="inner").mean(axis=1)
