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
metric, layer, value : what was compared; `value` says what the effect is, in words
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
from eedkit.paper.verdicts import Claim, Comparison, Effect, Every, Some, concluded, mean_effect, needs, seed_values
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
OPPONENTS = ("augmented", "equivariant")
"""The recipes than which random weights can look more invariant."""
LEAST_NETWORKS = 4
"""A rank correlation over fewer networks of a seed gets no verdict."""
PRETRAINED = ("from_letters", "from_patches")
WITHOUT_GROUP = ("simclr", "barlow_twins", "vicreg", "simsiam", "turns")
CONTRASTIVE = ("simclr_augmented",)
DISPUTED = ("barlow_twins_augmented", "vicreg_augmented")
"""Methods that some call contrastive."""
NOT_CONTRASTIVE = ("simsiam_augmented",)
DIFFERENCE = "relative EED difference"


def augmentation_or_layers(
    table: pd.DataFrame,
    interchanged: Mapping[str, pd.DataFrame],
    *,
    fall: float,
    rise: float,
    ratio: float = 0.5,
    metric: str = "channelwise",
) -> pd.DataFrame:
    """Conclusion 1: augmentation does not tend to induce invariance through equivariant layers.

    Attribution. The share of the plain network's relative deviation that augmentation removes is, by seed,
    1 − relative(augmented) / relative(plain). Claim: at every layer the maps' share is below `ratio` of the features' share.
    The effect is the ratio of the mean shares with Fieller's bounds. Premise: the features' share is above `fall`.

    Interchange *[ours]*. Turned maps take the place of the turned image's at one layer, the rest of the network runs, and the
    features' relative deviation is compared with that under the real turn, by seed. Claim: with the best exchange of channels
    augmented's rises by more than `rise` at every layer where that can be seen: where plain's mean, channels as they are, is at
    least half of its mean under the real turn. Behind the other layers the rest of the network, such as an average over space,
    makes anything that is turned invariant. If there is no such layer the conclusion is not testable. Control: equivariant
    networks rise by less than `rise` there.

    Parameters
    ----------
    table : with recipes "plain" and "augmented". With "equivariant" too, a metric of `SEES_EXCHANGES` must find that the maps
        of *that* network lose at least `ratio` at every layer, or the metric could not have contradicted the claim.
    interchanged : "as they are" and "matched", what `interchange` calls `channels` -> the table of
        `summarise(concat([interchange(…), …]), full=True)` for the same seeds
    fall : the share of the features' deviation beyond which augmentation has worked
    rise : the difference of relative values that counts after an interchange
    ratio : the part of the features' share that would count as "through layers"
    metric : "channelwise" (eq. 5), or another of the maps, such as `channelwise_matched` [ours]
    """
    as_they_are, matched = interchanged["as they are"], interchanged["matched"]
    of_features = _share_removed(table, {"recipe": "augmented"}, {"recipe": "plain"}, **FEATURES)
    worked = _comparison(
        "augmentation makes the features more invariant",
        Claim("above", fall),
        mean_effect(of_features, within=(-np.inf, 1)),
        "share removed",
        share=of_features.mean(),
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
        test = "after some interchange, channels as they are, plain keeps half of its deviation"
        value = "relative EED, interchanged / real turn"
        premises.append(_comparison(test, Claim("above", CAN_FAIL), kept[best], value, layer=best))
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
    )


def dose_response(table: pd.DataFrame) -> pd.DataFrame:
    """The share of the relative deviation that is removed, by the share of turned training images.

    Each share above 0 has two rows, `what` "features" or "best map", with `effect`, `low`, `high` (Student's t) and `n`. A
    network's best map is the layer that loses most, seed by seed. Each seed's network of share 0 is what its others are
    compared with.
    """
    needs(table, "share")
    layers = _layers(table, "channelwise")
    rows = []
    for share in sorted(set(table.share) - {0}):
        shares = [{"share": share}, {"share": 0}]
        features = _share_removed(table, *shares, **FEATURES)
        maps = [_share_removed(table, *shares, metric="channelwise", layer=layer) for layer in layers]
        best_map = pd.concat(maps, axis=1, join="inner").max(axis=1)
        for what, values in {"features": features, "best map": best_map}.items():
            effect, low, high = mean_interval(values.dropna().tolist(), confidence=0.95)
            # more than all cannot be gone
            row = {"share": share, "what": what, "effect": effect, "low": low, "high": min(high, 1.0)}
            rows.append({**row, "n": values.notna().sum(), "confidence": 0.95})
    return pd.DataFrame(rows)


def out_of_distribution(table: pd.DataFrame, *, source: str, margin: float) -> pd.DataFrame:
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
    table : with recipes "plain", "augmented" and "equivariant", and the columns of `specs.labelled`
    source : the images of the training's kind. Their rows without corruption are home; those of other sources, or in which no
        image is left (the domain "noise"), are far. "static" is no kind of corruption: it only makes the domain "noise".
    margin : the difference of relative values that counts
    """
    needs(table, "recipe", "seed", "data", "source", "corruption", "domain", "null", "best", "order")
    table = table.loc[(table.metric == "latent") & (table.layer == "latent")]
    near = (table.source == source) & (table.domain != "noise")
    home = table.loc[near & (table["corruption"] == "")]
    corrupted = table.loc[near & ~table["corruption"].isin(["", NO_IMAGE])]
    far = table.loc[~near]
    for what, rows in {"images in distribution": home, "corrupted images": corrupted, "far images": far}.items():
        if rows.empty:
            known = ", ".join(table.source.unique())
            raise ValueError(f"the table has no {what} where the source is {source!r}; its sources are {known}")
    domains = {str(domain): rows for domain, rows in far.groupby("domain", sort=False)}
    above, below = Claim("above", margin), Claim("below", margin)

    def looks_invariant(recipe: str, domain: str, raw: Claim, relative: Claim) -> list[Comparison]:
        """Claims about how far raw and relative values of a recipe lie above home's on a domain."""
        best = _mean_over_data(home, recipe, "best")
        gap_at_home = _mean_over_data(home, recipe, "null") - best
        raw_values = []
        for rows in (home, domains[domain]):
            deviation = (_mean_over_data(rows, recipe, "estimate") - best).clip(lower=0)
            raw_values.append((deviation / gap_at_home) ** (1 / table.order.iloc[0]))
        raw_change = raw_values[1] - raw_values[0]
        relative_there = _mean_over_data(domains[domain], recipe, "relative")
        relative_change = relative_there - _mean_over_data(home, recipe, "relative")
        says = {below: "is not above home's", above: "is above home's"}
        of_raw = f"{domain}: {recipe}'s raw E {says[raw]}"
        of_relative = f"{domain}: {recipe}'s relative value {says[relative]}"
        return [
            _comparison(of_raw, raw, raw_change, "raw difference / null gap"),
            _comparison(of_relative, relative, relative_change),
        ]

    plain_at_home = _mean_over_data(home, "plain", "relative")
    augmented_at_home = _mean_over_data(home, "augmented", "relative")
    still = []
    not_fully = []
    for kind, rows in corrupted.groupby("corruption", sort=False):
        plain = _mean_over_data(rows, "plain", "relative")
        augmented = _mean_over_data(rows, "augmented", "relative")
        still.append(_comparison(f"{kind}: augmented is more invariant than plain", above, plain - augmented))
        changed = augmented - augmented_at_home
        not_fully.append(_comparison(f"{kind}: augmented is less invariant than at home", above, changed))
    equivariant = [_mean_over_data(rows, "equivariant", "relative") for rows in [home, *domains.values()]]
    worst = pd.concat(equivariant, axis=1, join="inner").max(axis=1)
    return concluded(
        "2",
        "invariance generalises mildly, and far away it may be insensitivity",
        {
            "still, on every kind of corruption": Every(still),
            "not fully, on some kind": Some(not_fully),
            "some far domain looks invariant by its null alone": Some(
                [Every(looks_invariant("augmented", domain, raw=below, relative=above)) for domain in domains]
            ),
        },
        premises=[
            _comparison("augmentation gains in distribution", above, plain_at_home - augmented_at_home),
            _comparison("the equivariant network stays invariant on all domains", below, worst, "relative EED"),
        ],
        controls=[Some(looks_invariant("plain", domain, raw=above, relative=below)) for domain in domains],
    )


def without_learning(table: pd.DataFrame, *, margins: Mapping[str, float]) -> pd.DataFrame:
    """Conclusion 3: models with random weights can look more invariant than learned or built-in invariance.

    Claim: under some uncalibrated metric E(opponent) − E(random), as a share of the metric's scale, is above the margin, for
    some opponent, "augmented" or "equivariant". `margins` says for each metric which share of its scale counts.
    """
    needs(table, "recipe", "scale")
    cases = []
    for metric, margin in margins.items():
        of = {"metric": metric, "layer": _end(table, metric)}
        values = table.loc[(table.metric == metric) & (table.layer == of["layer"])]
        for opponent in OPPONENTS:
            scale = values.loc[values.recipe.isin(["random", opponent])].scale.mean()
            advantage = _advantage(table, "random", opponent, "estimate", **of) / scale
            test = f"random looks more invariant than {opponent} in {metric}"
            cases.append(_comparison(test, Claim("above", margin), advantage, "raw EED difference / scale", **of))
    return concluded("3", "random weights can look more invariant", {"some metric and opponent": Some(cases)})


def rank_correlations(
    table: pd.DataFrame, *, margin: float, least: float, accuracies: Sequence[str] = ("accuracy",)
) -> pd.DataFrame:
    """Conclusion 3, its other half: does invariance track performance? Spearman's ρ of invariance (−value) and accuracy.

    ρ is taken over the networks of one seed, which share their start, and its mean over seeds has Student's t. Claim of each
    row: it is below the margin, so that invariance need not track performance. Rows are within each kind of network, and
    over all; over all, the order of the kinds may decide (Simpson's paradox). Each row is a test by itself. With fewer than
    5 seeds, or fewer than 4 networks in one of them, there is a ρ and no verdict.

    Further columns are `networks`, the kind or "all", `networks_of_seed`, the fewest of a seed, and `performance`, the column
    of accuracies; `value` is "estimate" or "relative".

    Parameters
    ----------
    table : one row per network, metric and layer, with the columns `kind` and `seed`
    least : networks whose accuracy is lower did not train, and are left out (`verdicts.trained`)
    accuracies : columns; "accuracy" is that on upright images, the function `accuracies` makes another

    Examples
    --------
    >>> table = pd.DataFrame({"seed": [0] * 4 + [1] * 4, "accuracy": [0.6, 0.7, 0.8, 0.9] * 2, "recipe": "plain"})
    >>> table = table.assign(model=range(8), kind="plain", metric="latent", layer="latent", estimate=-table.accuracy)
    >>> ranks = rank_correlations(table.assign(relative=table.accuracy), margin=0.3, least=0.1)
    >>> ranks.loc[ranks.networks == "plain", ["value", "effect", "n", "verdict"]].values.tolist()
    [['estimate', 1.0, 2, 'not testable here'], ['relative', -1.0, 2, 'not testable here']]
    """
    needs(table, "model", "kind", "seed", "estimate", "relative", *accuracies)
    rows = verdicts.trained(table.loc[(table.metric == "latent") & (table.layer == "latent")], least=least)
    if rows.model.duplicated().any():
        raise ValueError("latent has several rows of one network; select one data set and one group")
    judged = []
    for name, networks in [*rows.groupby("kind", sort=False), ("all", rows)]:
        for value in ("estimate", "relative"):
            for accuracy in accuracies:
                effect, fewest = _rank_effect(networks, value, accuracy)
                about = {"networks": name, "performance": accuracy, "networks_of_seed": fewest}
                test = f"{name}: {value} need not track {accuracy}"
                row = verdicts.judge(_comparison(test, Claim("below", margin), effect, value, **about)).row()
                if fewest < LEAST_NETWORKS:
                    row |= verdicts.UNTESTED
                judged.append({"conclusion": "3", "part": "ranks", "beside": "", **row, "decided_by": ""})
    return pd.DataFrame(judged)


def accuracies(ds: xr.Dataset) -> pd.DataFrame:
    """By model, the part of the images whose label is predicted: `upright`, and `moved` by an element but the identity.

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


def pretraining(table: pd.DataFrame, *, margin: float, metrics: Sequence[str]) -> pd.DataFrame:
    """Conclusion 4: pre-training changes invariance, and the distance decides which model looks more invariant.

    The paper's comparison is with training from scratch. The same comparison with `from_same`, equally long training on the
    same images, stands beside it as "controlled for training length". The effect is relative(base) − relative(pretrained).
    Two parts: some fine-tuned network differs under some distance (two-sided); and for some of them two distances *on the
    same vector*, the features or the class probabilities, see opposite differences, both beyond the margin.

    Parameters
    ----------
    margin : the difference of relative values that counts
    metrics : distances; those of the same layer look at the same vector
    """

    def compared_with(base: str) -> pd.DataFrame:
        changes = []
        oppositions = []
        for name in PRETRAINED:
            of_vector = {}
            for metric in metrics:
                of = {"metric": metric, "layer": _end(table, metric)}
                effect = mean_effect(_advantage(table, name, base, "relative", **of))
                test = f"{name} differs from {base} in {metric}"
                changes.append(_comparison(test, Claim("beyond", margin), effect, **of))
                of_vector.setdefault(of["layer"], {})[metric] = effect
            for layer, effects in of_vector.items():
                if len(effects) > 1:
                    opposed = verdicts.opposed_effect(list(effects.values()))
                    of = {"metric": ", ".join(effects), "layer": layer}
                    test = f"distances at {layer} disagree about {name} and {base}"
                    value = "smaller opposite EED difference"
                    oppositions.append(_comparison(test, Claim("above", margin), opposed, value, **of))
        if not oppositions:
            raise ValueError(f"whether distances disagree takes two or more on the same vector, got {list(metrics)}")
        parts = {"pre-training changes invariance": Some(changes), "the distance decides how": Some(oppositions)}
        return concluded("4", "pre-training changes invariance, and the distance decides how", parts)

    return _with_beside(compared_with("plain"), {"controlled for training length": compared_with("from_same")})


def self_supervision(table: pd.DataFrame, *, margin: float) -> pd.DataFrame:
    """Conclusion 5: self-supervised models are not more invariant, except contrastive ones with augmentations from G.

    The effect is relative(plain) − relative(method). Two parts: no method without the group is above the margin; and with the
    group contrastive ones are, and *only* those. The second is asked in both meanings of the word: the `DISPUTED` ones are
    contrastive (dimension-contrastive, Garrido et al. 2022, arXiv 2206.02574), or they are not, as by their authors. The two
    exclude each other, so it is supported where it holds in one of them (Holm) and contradicted where it fails in both; each
    meaning's own verdict stands beside, and so does that supervised training with the group is more invariant than every
    method with it.

    Premise: supervised training with the group is above the margin, so that the measure can see such a thing.

    `margin` is the difference of relative values that counts.
    """
    above, below = Claim("above", margin), Claim("below", margin)

    def gains(names: Sequence[str], claim: Claim) -> list[Comparison]:
        return [_gain(table, name, "plain", claim) for name in names]

    counted = [*gains([*CONTRASTIVE, *DISPUTED], above), *gains(NOT_CONTRASTIVE, below)]
    not_counted = [*gains(CONTRASTIVE, above), *gains([*DISPUTED, *NOT_CONTRASTIVE], below)]
    meanings = {
        "disputed ones count as contrastive": Every(counted),
        "disputed ones do not count as contrastive": Every(not_counted),
    }
    with_group = "with the group contrastive ones, and only those"
    parts = {
        "without the group not more invariant": Every(gains(WITHOUT_GROUP, below)),
        with_group: Some(list(meanings.values())),
    }
    text = "self-supervised is not more invariant, but for contrast with the group"
    premises = gains(["augmented"], above)
    rows = concluded("5", text, parts, premises=premises)
    # the comparisons with the group stand with each meaning of the word, not twice in one part
    rows = rows.loc[(rows.part != with_group) | (rows.decided_by != "")]
    beside = {}
    for name, claim in meanings.items():
        of_meaning = concluded("5", text, parts | {with_group: claim}, premises=premises)
        beside[name] = of_meaning.loc[of_meaning.part.isin([with_group, "conclusion"])]
    supervised = [_gain(table, "augmented", name, above) for name in [*CONTRASTIVE, *DISPUTED, *NOT_CONTRASTIVE]]
    text = "supervised training with the group is more invariant than all with it"
    beside["supervised with the group"] = concluded("5", text, {"labels with the group": Every(supervised)})
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


def _comparison(
    test: str,
    claim: Claim,
    effect: Effect | pd.Series,
    value: str = DIFFERENCE,
    *,
    metric: str = "latent",
    layer: str = "latent",
    **about: object,
) -> Comparison:
    """A claim about an effect, or about the mean of one by seed, with what was compared."""
    if not isinstance(effect, Effect):
        effect = mean_effect(effect)
    return Comparison(test, claim, effect, {"metric": metric, "layer": layer, "value": value, **about})


def _gain(table: pd.DataFrame, recipe: str, base: str, claim: Claim) -> Comparison:
    """How much more invariant the features of a recipe are than those of another."""
    says = {"above": "is more invariant than", "below": "is not more invariant than"}[claim.direction]
    return _comparison(f"{recipe} {says} {base}", claim, _advantage(table, recipe, base, "relative", **FEATURES))


def _maps_against_features(table: pd.DataFrame, recipe: str, metric: str, layer: str, claim: Claim) -> Comparison:
    """The share that is removed from the maps of a layer, over that removed from the features."""
    recipes = [{"recipe": recipe}, {"recipe": "plain"}]
    of_maps = _share_removed(table, *recipes, metric=metric, layer=layer)
    of_features = _share_removed(table, *recipes, **FEATURES)
    says = {"below": "less", "above": "more"}[claim.direction]
    test = f"maps of {recipe} at {layer} lose {says} than {claim.margin:g} of what its features lose"
    about = {"metric": metric, "layer": layer, "share": of_maps.mean()}
    return _comparison(test, claim, _ratio(of_maps, of_features), "share removed, maps / features", **about)


def _kept(table: pd.DataFrame, interchanged: pd.DataFrame, layer: str) -> Effect:
    """The part of the plain network's deviation under the real turn that is there after an interchange at a layer."""
    after = seed_values(interchanged, "relative", recipe="plain", metric="latent", layer=layer)
    return _ratio(after, seed_values(table, "relative", recipe="plain", **FEATURES))


def _ratio(numerators: pd.Series, denominators: pd.Series) -> Effect:
    """The ratio of means over the seeds that both have."""
    both = pd.concat([numerators, denominators], axis=1, join="inner").to_numpy()
    return verdicts.ratio_effect(*both.T)


def _rise(table: pd.DataFrame, interchanged: pd.DataFrame, recipe: str, layer: str, claim: Claim) -> Comparison:
    """How much more than under the real turn the features deviate after an interchange at a layer, by seed."""
    after = seed_values(interchanged, "relative", recipe=recipe, metric="latent", layer=layer)
    rise = after - seed_values(table, "relative", recipe=recipe, **FEATURES)
    says = {"above": "rise", "below": "stay"}[claim.direction]
    test = f"features of {recipe} {says} after an interchange at {layer}"
    return _comparison(test, claim, rise, "rise of relative EED", layer=layer)


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
