"""Tests of the paper's five stated conclusions (Kvinge et al. 2022, section 1), on tables of `summarise`.

The unit is the seed, margins are declared beforehand, effects are paired by seed. Each function gives one table: premises and
controls, then the comparisons of each part, then what stands beside them, and as its last row the conclusion.

Columns
-------
conclusion : "1" to "5"
part : "premise", "control", the name of a part, or "conclusion"
beside : the name of another question that stands beside the conclusion and does not decide it; else ""
test : what is claimed, in words
claim : "above", "below" or "beyond": where the effect is claimed to lie, seen from its margin
verdict : "supported", "contradicted", "inconclusive" or "not testable here"
effect, low, high : the estimate and its bounds, one-sided but for "beyond"; positive differences mean "more invariant"
    where a test says that one network is more invariant than another, and "less" where it says less
margin : the declared margin, never negative; a bound within 20 % of it from it decides nothing
n : seeds
confidence, confidence_against : of the bound that may support the claim, and of the one that may contradict it
critical_margin : the margin at which the verdict would flip; NaN where none would do
seeds_needed : of inconclusive rows, the seeds that decide with 80 % power if the effect stays; NaN where none would do
metric, layer, value : what was compared; `value` is a column of the table, or says what was made of it
decided_by : of a part's and of the conclusion's own row, the `test` of the comparison that it repeats; else ""

Contradicted means for a claim about *all* that some part of it is contradicted, which is a union and so is Holm-corrected. For
a claim about *some* it means that every part is contradicted, which needs no correction.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import xarray as xr

from eedkit.errors import unknown
from eedkit.paper import verdicts
from eedkit.paper.verdicts import Agreed, Claim, Comparison, Every, Some, concluded, mean_effect, needs, seed_values
from eedkit.results.intervals import mean_interval
from eedkit.results.labels import is_right

SEES_EXCHANGES = ("channelwise_regular", "channelwise_matched")
"""Channelwise metrics under which a group convolution is equivariant, exactly."""
FEATURES = {"metric": "latent", "layer": "latent"}
REAL_TURN = "image"
"""The layer of `interchange` at which the image itself is turned, and no maps are exchanged."""
CAN_FAIL = 0.5
"""An interchange at a layer can tell something where the plain network keeps this part of its deviation."""
NO_IMAGE = "static"
"""The corruption that replaces pixels by noise: no common corruption, and at the last severity no image."""
LEAST_NETWORKS = 4
"""A rank correlation over fewer networks of a seed gets no verdict."""


def augmentation_or_layers(
    table: pd.DataFrame,
    interchanged: Mapping[str, pd.DataFrame],
    *,
    fall: float,
    rise: float,
    ratio: float = 0.5,
    metric: str = "channelwise",
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Conclusion 1: augmentation does not tend to induce invariance through equivariant layers.

    Attribution. The share of the plain network's relative deviation that augmentation removes is, by seed,
    1 − relative(augmented) / relative(plain). Claim: at every layer the maps' share is below `ratio` of the features' share.
    The effect is the ratio of the mean shares with Fieller's bounds (`verdicts.ratio_effect`). Premise: the features' share
    is above `fall`.

    Interchange *[ours]*. Turned maps take the place of the turned image's at one layer, the rest of the network runs, and the
    features' relative deviation is compared with that under the real turn, by seed. Claim: with the best exchange of channels
    augmented's rises by more than `rise` at every layer where that can be seen: where plain's mean, channels as they are, is at
    least half of its mean under the real turn. Behind the other layers the rest of the network, such as an average over space,
    makes anything that is turned invariant. If there is no such layer the conclusion is not testable. Control: equivariant
    networks rise by less than `rise` there.

    Parameters
    ----------
    table : pandas.DataFrame
        With recipes "plain" and "augmented". With "equivariant" too, a metric of `SEES_EXCHANGES` must find that the maps of
        *that* network lose at least `ratio` at every layer, or the metric could not have contradicted the claim.
    interchanged : mapping
        "as they are" and "matched", what `interchange` calls `channels` -> the table of
        `summarise(concat([interchange(…), …]), full=True)` for the same seeds; `layer` is where maps were exchanged, or
        "image", which is left out.
    fall : float
        The share of the features' deviation beyond which augmentation has worked.
    rise : float
        The difference of relative values that counts after an interchange.
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
    as_they_are, matched = interchanged["as they are"], interchanged["matched"]
    needs(as_they_are, "recipe", "seed", "relative")
    needs(matched, "recipe", "seed", "relative")
    of_features = _share_removed(table, {"recipe": "augmented"}, {"recipe": "plain"}, **FEATURES)
    worked = Comparison(
        "augmentation makes the features more invariant",
        Claim("above", fall),
        mean_effect(of_features, within=(-np.inf, 1)),
        FEATURES | {"value": "share removed", "share": of_features.mean()},
    )
    layers = _layers(table, metric)
    maps = [_maps_against_features(table, "augmented", metric, layer, Claim("below", ratio)) for layer in layers]
    premises: list[verdicts.Claimed] = [worked]
    controls = []
    has_equivariant = "equivariant" in set(table.recipe)
    if metric in SEES_EXCHANGES and has_equivariant:
        known = Claim("above", ratio)
        premises.append(Every([_maps_against_features(table, "equivariant", metric, layer, known) for layer in layers]))

    exchanged_layers = [layer for layer in _layers(matched, "latent") if layer != REAL_TURN]
    kept = {layer: _kept(table, as_they_are, layer) for layer in exchanged_layers}
    telling_layers = [layer for layer, effect in kept.items() if effect.value >= CAN_FAIL]
    if not telling_layers:
        best = max(kept, key=lambda layer: kept[layer].value)
        about = {"metric": "latent", "layer": best, "value": "relative, interchanged / real turn"}
        test = "after some interchange, channels as they are, plain keeps half of its deviation"
        premises.append(Comparison(test, Claim("above", CAN_FAIL), kept[best], about))
        telling_layers = exchanged_layers
    exchanges = [_rise(table, matched, "augmented", layer, Claim("above", rise)) for layer in telling_layers]
    if has_equivariant and "equivariant" in set(matched.recipe):
        stays = Claim("below", rise)
        controls.append(Every([_rise(table, matched, "equivariant", layer, stays) for layer in telling_layers]))
    return concluded(
        "1",
        "augmentation does not make invariance through equivariant layers",
        {"attribution at every layer": Every(maps), "interchange at every layer": Every(exchanges)},
        premises=premises,
        controls=controls,
        confidence=confidence,
    )


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
        features = _share_removed(table, *shares, **FEATURES)
        maps = [_share_removed(table, *shares, metric=metric, layer=layer) for layer in layers]
        best_map = pd.concat(maps, axis=1, join="inner").max(axis=1)
        for what, values in {"features": features, "best map": best_map}.items():
            effect, low, high = mean_interval(values.dropna().tolist(), confidence=confidence)
            # more than all cannot be gone
            row = {"share": share, "what": what, "effect": effect, "low": low, "high": min(high, 1.0)}
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

    Corruptions are judged by kind, each a mean over its severities, by seed. *Still*: relative(plain) − relative(augmented)
    on the same corruption is above the margin, for every kind. *Not fully*: relative(augmented) there lies above that at home
    by more than the margin, for some kind. *Far away*: on some domain the augmented network's raw E is not above home's by
    the margin while its relative value is, so that the invariance that raw E shows there is the null's. Raw E is put on the
    relative scale by the null gap at home: it is the relative value that the network would have had with home's null.

    Premises: at home augmented is more invariant than plain; the equivariant network stays below the margin everywhere.
    Control: the plain network passes the test of far domains on none of them.

    Parameters
    ----------
    table : pandas.DataFrame
        With recipes "plain", "augmented" and "equivariant", and the columns of `specs.labelled`.
    source : str
        The images of the training's kind. Their rows without corruption are home; those of other sources, or in which no
        image is left (the domain "noise"), are far. "static" is no kind of corruption: it only makes the domain "noise".
    margin : float
        The difference of relative values that counts.
    """
    needs(table, "recipe", "seed", "data", "source", "corruption", "domain", "null", "best", "order")
    layer = _end(table, metric)
    table = table.loc[(table.metric == metric) & (table.layer == layer)]
    near = (table.source == source) & (table.domain != "noise")
    home = table.loc[near & (table["corruption"] == "")]
    corrupted = table.loc[near & ~table["corruption"].isin(["", NO_IMAGE])]
    far = table.loc[~near]
    for what, rows in {"images in distribution": home, "corrupted images": corrupted, "far images": far}.items():
        if rows.empty:
            known = ", ".join(table.source.unique())
            raise ValueError(f"the table has no {what} where the source is {source!r}; its sources are {known}")
    kinds = {str(kind): rows for kind, rows in corrupted.groupby("corruption", sort=False)}
    domains = {str(domain): rows for domain, rows in far.groupby("domain", sort=False)}

    def compared(test: str, direction: str, effects: pd.Series, value: str = "relative") -> Comparison:
        about = {"metric": metric, "layer": layer, "value": value}
        return Comparison(test, Claim(direction, margin), mean_effect(effects), about)

    def from_home(recipe: str, domain: str, raw: str, relative: str) -> list[Comparison]:
        """How far raw and relative values of a recipe lie above home's, each with the direction that is claimed."""
        best = _mean_over_data(home, recipe, "best")
        gap_at_home = _mean_over_data(home, recipe, "null") - best
        raw_values = []
        for rows in (home, domains[domain]):
            deviation = (_mean_over_data(rows, recipe, "estimate") - best).clip(lower=0)
            raw_values.append((deviation / gap_at_home) ** (1 / table.order.iloc[0]))
        raw_change = raw_values[1] - raw_values[0]
        relative_there = _mean_over_data(domains[domain], recipe, "relative")
        relative_change = relative_there - _mean_over_data(home, recipe, "relative")
        says = {"below": "is not above home's", "above": "is above home's"}
        return [
            compared(f"{domain}: {recipe}'s raw E {says[raw]}", raw, raw_change, "raw, by the null gap at home"),
            compared(f"{domain}: {recipe}'s relative value {says[relative]}", relative, relative_change),
        ]

    plain_at_home = _mean_over_data(home, "plain", "relative")
    augmented_at_home = _mean_over_data(home, "augmented", "relative")
    still = []
    not_fully = []
    for kind, rows in kinds.items():
        plain = _mean_over_data(rows, "plain", "relative")
        augmented = _mean_over_data(rows, "augmented", "relative")
        still.append(compared(f"{kind}: augmented is more invariant than plain", "above", plain - augmented))
        changed = augmented - augmented_at_home
        not_fully.append(compared(f"{kind}: augmented is less invariant than at home", "above", changed))
    equivariant = [_mean_over_data(rows, "equivariant", "relative") for rows in [home, *domains.values()]]
    worst = pd.concat(equivariant, axis=1, join="inner").max(axis=1)
    return concluded(
        "2",
        "invariance generalises mildly, and far away it may be insensitivity",
        {
            "still, on every kind of corruption": Every(still),
            "not fully, on some kind": Some(not_fully),
            "some far domain looks invariant by its null alone": Some(
                [Every(from_home("augmented", domain, raw="below", relative="above")) for domain in domains]
            ),
        },
        premises=[
            compared("augmentation gains in distribution", "above", plain_at_home - augmented_at_home),
            compared("the equivariant network stays invariant on all domains", "below", worst),
        ],
        controls=[Some(from_home("plain", domain, raw="above", relative="below")) for domain in domains],
        confidence=confidence,
    )


def without_learning(
    table: pd.DataFrame,
    *,
    margins: Mapping[str, float],
    against: Sequence[str] = ("augmented", "equivariant"),
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Conclusion 3: models with random weights can look more invariant than learned or built-in invariance.

    Claim: under some uncalibrated metric E(opponent) − E(random), as a share of the metric's scale, is above the margin, for
    some opponent.

    Parameters
    ----------
    table : pandas.DataFrame
        With the recipe "random" and those in `against`.
    margins : mapping
        Metric -> the share of its scale that counts; "latent" is taken at the layer `latent`.
    """
    needs(table, "recipe", "seed", "scale")
    cases = []
    for metric, margin in margins.items():
        of = {"metric": metric, "layer": _end(table, metric)}
        about = of | {"value": "estimate, as a share of the scale"}
        for opponent in against:
            both = table.loc[table.recipe.isin(["random", opponent])]
            scale = both.loc[(both.metric == metric) & (both.layer == of["layer"]), "scale"].mean()
            advantage = _advantage(table, "random", opponent, "estimate", **of) / scale
            test = f"random looks more invariant than {opponent} in {metric}"
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

    ρ is taken over the networks of one seed, which share their start, and its mean over seeds has Student's t. Claim of each
    row: it is below the margin, so that invariance need not track performance. Rows are within each kind of network, and
    over all; over all, the order of the kinds may decide (Simpson's paradox). Each row is a test by itself. With fewer than
    5 seeds, or fewer than 4 networks in one of them, there is a ρ and no verdict.

    Parameters
    ----------
    table : pandas.DataFrame
        One row per network, metric and layer, with the columns `kind` and `seed`.
    least : float
        Networks whose accuracy is lower did not train, and are left out (`verdicts.trained`).
    accuracies : sequence of str
        Columns; "accuracy" is that on upright images, `accuracies` makes another.

    Returns
    -------
    pandas.DataFrame
        The columns of this module, and `networks`, `networks_of_seed` and `performance`: the kind, or "all", the fewest
        networks of a seed, and the column of accuracies.

    Examples
    --------
    >>> table = pd.DataFrame({"seed": [0] * 4 + [1] * 4, "accuracy": [0.6, 0.7, 0.8, 0.9] * 2, "recipe": "plain"})
    >>> table = table.assign(model=range(8), kind="plain", metric="latent", layer="latent", estimate=-table.accuracy)
    >>> rank_correlations(table, margin=0.3, least=0.1, values=["estimate"])[["effect", "n", "verdict"]].values.tolist()
    [[1.0, 2, 'not testable here'], [1.0, 2, 'not testable here']]
    """
    needs(table, "model", "kind", "seed", *values, *accuracies)
    layer = _end(table, metric)
    rows = verdicts.trained(table.loc[(table.metric == metric) & (table.layer == layer)], least=least)
    if rows.model.duplicated().any():
        raise ValueError(f"{metric} has several rows of one network; select one data set and one group")
    judged = []
    for name, networks in [*rows.groupby("kind", sort=False), ("all", rows)]:
        for value in values:
            for accuracy in accuracies:
                effect, fewest = _rank_effect(networks, value, accuracy)
                about = {"metric": metric, "layer": layer, "value": value, "networks": name, "performance": accuracy}
                test = f"{name}: {value} need not track {accuracy}"
                comparison = Comparison(test, Claim("below", margin), effect, about | {"networks_of_seed": fewest})
                row = verdicts.judge(comparison, 1 - confidence, 1 - confidence).row()
                if fewest < LEAST_NETWORKS:
                    row |= verdicts.UNTESTED
                judged.append({"conclusion": "3", "part": "ranks", "beside": "", **row, "decided_by": ""})
    return pd.DataFrame(judged)


def accuracies(ds: xr.Dataset) -> pd.DataFrame:
    """By model, the part of the images whose label is predicted: `upright`, and `moved` by an element but the identity.

    Parameters
    ----------
    ds : xarray.Dataset
        With labels and predictions.

    Examples
    --------
    >>> ds = xr.Dataset({"prediction": (("model", "element", "sample"), [[[0, 1], [0, 0]]])})
    >>> ds = ds.assign_coords(model=["net"], element=["e", "r180"], label=("sample", [0, 1]))
    >>> accuracies(ds).loc["net"].tolist()
    [1.0, 0.5]
    """
    right = is_right(ds)
    is_upright = right.element == right.element.attrs.get("identity", "e")
    upright = right.sel(element=is_upright).mean(["element", "sample"])
    moved = right.sel(element=~is_upright).mean(["element", "sample"])
    return pd.DataFrame({"upright": upright.to_series(), "moved": moved.to_series()})


def pretraining(
    table: pd.DataFrame,
    *,
    margin: float,
    metrics: Sequence[str],
    pretrained: Sequence[str] = ("from_letters", "from_patches"),
    scratch: str = "plain",
    control: str = "from_same",
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Conclusion 4: pre-training changes invariance, and the distance decides which model looks more invariant.

    The paper's comparison is with training from scratch. The same comparison with `control`, equally long training on the
    same images, stands beside it as "controlled for training length". The effect is relative(base) − relative(pretrained).
    Two parts: some fine-tuned network differs under some distance (two-sided); and for some of them two distances *on the
    same vector*, the features or the class probabilities, see opposite differences, both beyond the margin.

    Parameters
    ----------
    margin : float
        The difference of relative values that counts.
    metrics : sequence of str
        Distances; those of the same layer look at the same vector.
    """
    needs(table, "recipe", "seed", "relative")

    def compared_with(base: str) -> pd.DataFrame:
        changes = []
        oppositions = []
        for name in pretrained:
            of_vector = {}
            for metric in metrics:
                of = {"metric": metric, "layer": _end(table, metric)}
                effect = mean_effect(_advantage(table, name, base, "relative", **of))
                test = f"{name} differs from {base} in {metric}"
                changes.append(Comparison(test, Claim("beyond", margin), effect, of | {"value": "relative"}))
                of_vector.setdefault(of["layer"], {})[metric] = effect
            for layer, effects in of_vector.items():
                if len(effects) > 1:
                    opposed = verdicts.opposed_effect(list(effects.values()))
                    about = {"metric": ", ".join(effects), "layer": layer, "value": "relative"}
                    test = f"distances at {layer} disagree about {name} and {base}"
                    oppositions.append(Comparison(test, Claim("above", margin), opposed, about))
        if not oppositions:
            raise ValueError(f"whether distances disagree takes two or more on the same vector, got {list(metrics)}")
        parts = {"pre-training changes invariance": Some(changes), "the distance decides how": Some(oppositions)}
        text = "pre-training changes invariance, and the distance decides how"
        return concluded("4", text, parts, confidence=confidence)

    return _with_beside(compared_with(scratch), {"controlled for training length": compared_with(control)})


def self_supervision(
    table: pd.DataFrame,
    *,
    margin: float,
    metric: str = "latent",
    value: str = "relative",
    without: Sequence[str] = ("simclr", "barlow_twins", "vicreg", "simsiam", "turns"),
    contrastive: Sequence[str] = ("simclr_augmented",),
    disputed: Sequence[str] = ("barlow_twins_augmented", "vicreg_augmented"),
    without_contrast: Sequence[str] = ("simsiam_augmented",),
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Conclusion 5: self-supervised models are not more invariant, except contrastive ones with augmentations from G.

    The effect is value(plain) − value(method). Two parts: no method `without` the group is above the margin; and with the
    group contrastive ones are, and *only* those. The second is asked in both meanings of the word: those `disputed` are
    contrastive (dimension-contrastive, Garrido et al. 2022, arXiv 2206.02574), or they are not, as by their authors. It is
    supported where it holds in both meanings and contradicted where it fails in both; each meaning's own verdict stands
    beside, and so does that supervised training with the group is more invariant than every method with it.

    Premise: supervised training with the group is above the margin, so that the measure can see such a thing.

    Parameters
    ----------
    margin : float
        The difference that counts.
    without, contrastive, disputed, without_contrast : sequence of str
        Recipes, of which the last three have the group in their views.
    """
    needs(table, "recipe", "seed")
    of = {"metric": metric, "layer": _end(table, metric)}

    def gain(name: str, direction: str, base: str = "plain") -> Comparison:
        effect = mean_effect(_advantage(table, name, base, value, **of))
        says = {"above": "is more invariant than", "below": "is not more invariant than"}
        return Comparison(f"{name} {says[direction]} {base}", Claim(direction, margin), effect, of | {"value": value})

    def only(are_contrastive: Sequence[str], are_not: Sequence[str]) -> Every:
        more = [gain(name, "above") for name in are_contrastive]
        return Every([*more, *(gain(name, "below") for name in are_not)])

    meanings = {
        "disputed ones count as contrastive": only([*contrastive, *disputed], without_contrast),
        "disputed ones do not count as contrastive": only(contrastive, [*disputed, *without_contrast]),
    }
    with_group = "with the group contrastive ones, and only those"
    parts = {
        "without the group not more invariant": Every([gain(name, "below") for name in without]),
        with_group: Agreed(list(meanings.values())),
    }
    text = "self-supervised is not more invariant, but for contrast with the group"
    premises = [gain("augmented", "above")]
    rows = concluded("5", text, parts, premises=premises, confidence=confidence)
    # the comparisons with the group stand with each meaning of the word, not twice in one part
    rows = rows.loc[(rows.part != with_group) | (rows.decided_by != "")]
    beside = {}
    for name, claim in meanings.items():
        of_meaning = concluded("5", text, parts | {with_group: claim}, premises=premises, confidence=confidence)
        beside[name] = of_meaning.loc[of_meaning.part.isin([with_group, "conclusion"])]
    methods = [*contrastive, *disputed, *without_contrast]
    supervised = {"labels with the group": Every([gain("augmented", "above", base=name) for name in methods])}
    text = "supervised training with the group is more invariant than all with it"
    beside["supervised with the group"] = concluded("5", text, supervised, confidence=confidence)
    return _with_beside(rows, beside)


def _with_beside(rows: pd.DataFrame, others: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """A conclusion's rows, before the last one those of other questions, whose own verdict's part is the question."""
    tables = [rows.iloc[:-1]]
    for name, of_other in others.items():
        part = of_other.part.where(of_other.part != "conclusion", name)
        tables.append(of_other.assign(part=part, beside=name))
    return pd.concat([*tables, rows.tail(1)], ignore_index=True)


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


def _advantage(table: pd.DataFrame, recipe: str, base: str, value: str, **of: str) -> pd.Series:
    """By seed, how much lower than the base's the value of a recipe is, so how much more invariant it looks."""
    return seed_values(table, value, recipe=base, **of) - seed_values(table, value, recipe=recipe, **of)


def _share_removed(table: pd.DataFrame, changed: Mapping, base: Mapping, **of: str) -> pd.Series:
    """By seed, the share of the relative deviation of the networks `base` that `changed` ones lack; NaN where there is none."""
    deviation = seed_values(table, "relative", **base, **of)
    return 1 - seed_values(table, "relative", **changed, **of) / deviation.where(deviation > 0)


def _maps_against_features(table: pd.DataFrame, recipe: str, metric: str, layer: str, claim: Claim) -> Comparison:
    recipes = [{"recipe": recipe}, {"recipe": "plain"}]
    of_maps = _share_removed(table, *recipes, metric=metric, layer=layer)
    of_features = _share_removed(table, *recipes, **FEATURES)
    both = pd.concat([of_maps, of_features], axis=1, join="inner").dropna().to_numpy()
    says = {"below": "less", "above": "more"}[claim.direction]
    value = "share removed, maps / features"
    about = {"metric": metric, "layer": layer, "value": value, "share": of_maps.mean()}
    test = f"maps of {recipe} at {layer} lose {says} than {claim.margin:g} of what its features lose"
    return Comparison(test, claim, verdicts.ratio_effect(*both.T), about)


def _kept(table: pd.DataFrame, interchanged: pd.DataFrame, layer: str) -> verdicts.Effect:
    """The part of the plain network's deviation under the real turn that is there after an interchange at a layer."""
    after = seed_values(interchanged, "relative", recipe="plain", metric="latent", layer=layer)
    real_turn = seed_values(table, "relative", recipe="plain", **FEATURES)
    both = pd.concat([after, real_turn], axis=1, join="inner").to_numpy()
    return verdicts.ratio_effect(*both.T)


def _rise(table: pd.DataFrame, interchanged: pd.DataFrame, recipe: str, layer: str, claim: Claim) -> Comparison:
    """How much more than under the real turn the features deviate after an interchange at a layer, by seed."""
    after = seed_values(interchanged, "relative", recipe=recipe, metric="latent", layer=layer)
    rise = after - seed_values(table, "relative", recipe=recipe, **FEATURES)
    says = {"above": "rise", "below": "stay"}[claim.direction]
    test = f"features of {recipe} {says} after an interchange at {layer}"
    about = {"metric": "latent", "layer": layer, "value": "relative, interchanged − real turn"}
    return Comparison(test, claim, mean_effect(rise), about)


def _rank_effect(networks: pd.DataFrame, value: str, accuracy: str) -> tuple[verdicts.Effect, int]:
    """Spearman's ρ of −value and accuracy over the networks of a seed, as a mean over seeds; and the fewest of them."""
    correlations = []
    counts = []
    for _, of_seed in networks.groupby("seed"):
        pairs = of_seed.loc[:, [value, accuracy]].dropna()
        counts.append(len(pairs))
        correlations.append(-pairs.corr(method="spearman").to_numpy()[0, 1])
    if np.isnan(correlations).all():
        return verdicts.Effect(np.nan, 0, lambda tail_low, tail_high: (-1.0, 1.0)), min(counts)
    return mean_effect(correlations, within=(-1, 1)), min(counts)


def _mean_over_data(table: pd.DataFrame, recipe: str, value: str) -> pd.Series:
    """By seed, the mean over the data sets; a seed that lacks one is left out: its mean would be of something else."""
    columns = [seed_values(rows, value, recipe=recipe) for _, rows in table.groupby("data")]
    return pd.concat(columns, axis=1, join="inner").mean(axis=1)
