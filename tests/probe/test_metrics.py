"""Every metric with its null, from f(x), and there and back, against the loops of oracles.py; metrics as values."""

import functools
import itertools
import math
import sys
from dataclasses import replace

import numpy as np
import oracles
import pytest
import torch
from made import Net, noise
from torch import nn

import eedkit as ek
from eedkit.probe import measure as measuring
from eedkit.probe import sums
from eedkit.probe.matching import matched
from eedkit.probe.metrics import METRICS, Metric
from eedkit.theory import actions, distances, groups

SEED, SIDE, BAD = 3, 6, 5
MAPS = {"stem": (8, 6), "act": (8, 6), "down": (6, 3), "act#2": (6, 3)}
"""Channels and sides of the network's layers with maps."""
SAMPLE = "SO(2)?n=5"
oracles.ELEMENTS[SAMPLE] = ["e", *(f"r{angle!r}" for angle in groups.parse(SAMPLE).angles[1:])]


class TwoHeads(Net):
    """Gives class scores and a map of three classes."""

    def __init__(self):
        super().__init__(colours=3)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.mask = nn.Conv2d(8, 3, 1)

    def forward(self, x):
        wide = self.act(self.stem(x))
        return {"mask": self.mask(wide), "cls": self.fc(self.act(self.down(wide)).mean((-2, -1)))}

    def trace(self, x):
        maps = super().trace(x)
        with torch.no_grad():
            wide = torch.from_numpy(maps["act"]).to(self.mask.weight)
            return maps | {"mask": self.mask(wide).double().numpy()}


def pictures(n):
    return noise(n, 3, SIDE)


def pool(z):
    return z.mean(axis=(-2, -1)) if z.ndim == 3 else z


def through_c2(group, element, z):
    """C4 acting through its quotient C2."""
    return oracles.move("C4", {"r90": "r180", "r270": "r180"}.get(element, "e"), z)


def moving_above(action, layer):
    """Maps of the first layers move as images do, those below do not move."""
    return action if layer.path in ("stem", "act") and layer.call == 1 else actions.trivial(action.group)


def same(z):
    return z


def l1(a, b):
    return np.abs(a - b).sum()


def dead_as(how):
    return lambda a, b: oracles.channelwise(a, b, how)


OF_SUMS = distances.Distance(
    "of sums", lambda sums: (sums.aa + sums.bb - 2 * sums.ab).mean(-1) / sums.n, order=2, scale=3.0, of_sums=True
)
COSINE = distances.channelwise_negative_cosine
L1 = distances.Distance("l1", lambda a, b: (a - b).abs().sum(-1), scale="norm", order=1)
CUSTOM = {
    "above": Metric("above", "maps", COSINE, action=moving_above),
    "of_sums": Metric("of_sums", "maps", OF_SUMS),
    "highest": Metric("highest", "vectors", L1, features=lambda z: z.amax(1), normalised=True),
    "l1_of_scores": Metric("l1_of_scores", "output", L1),
}
THROUGH_C2 = actions.quotient("C4", actions.spatial("C2"), [0, 1, 0, 1])
THROUGH = Metric("through", "maps", COSINE, action=lambda *_: THROUGH_C2)
FAMILY = {
    # name: (layer's output -> f(x), the action there, m)
    "channelwise": (same, oracles.move, oracles.channelwise),
    "channelwise_zero": (same, oracles.move, dead_as("zero")),
    "channelwise_skip": (same, oracles.move, dead_as("skip")),
    "channelwise_regular": (same, oracles.move_fields, oracles.channelwise),
    "channelwise_centred": (same, oracles.move, lambda a, b: dead_as("skip")(oracles.centred(a), oracles.centred(b))),
    "channelwise_rms": (same, oracles.move, oracles.rms),
    "above": (same, oracles.move, oracles.channelwise),
    "of_sums": (same, oracles.move, lambda a, b: oracles.rms(a, b) ** 2),
    "through": (same, through_c2, oracles.channelwise),
    "latent": (pool, oracles.stay, oracles.latent),
    "latent_unit": (lambda z: oracles.unit(pool(z)), oracles.stay, oracles.latent),
    "latent_flat": (np.ravel, oracles.stay, oracles.latent),
    "latent_euclidean": (pool, oracles.stay, oracles.euclidean),
    "highest": (lambda z: z.max(axis=(-2, -1)) if z.ndim == 3 else z, oracles.stay, l1),
    "l1_of_scores": (same, oracles.stay, l1),
    "softmax": (oracles.softmax, oracles.stay, oracles.kl),
    "softmax_reverse": (oracles.softmax, oracles.stay, oracles.kl_reverse),
    "softmax_js": (oracles.softmax, oracles.stay, oracles.js),
    "softmax_tv": (oracles.softmax, oracles.stay, oracles.tv),
    "softmax_hellinger": (oracles.softmax, oracles.stay, oracles.hellinger),
    "dense": (same, oracles.move, oracles.channelwise),
    "segmentation": (oracles.softmax, oracles.move, oracles.mean_over_places(oracles.kl)),
    "segmentation_iou": (same, oracles.move, oracles.jaccard_of_scores),
}
OF_MAPS = [*(name for name in FAMILY if name.startswith("channel")), "above", "of_sums", "through"]


def test_every_metric_has_an_oracle():
    elsewhere = {"channelwise_field", "channelwise_matched", "boxes", "boxes_50", "boxes_75"}
    assert set(FAMILY) | elsewhere == {*METRICS, *CUSTOM, "through"}


@functools.cache
def orbit_of(group, n, dtype, returned=False):
    """What every layer puts out for gx, (g, n, *z), by the layer's name."""
    model = TwoHeads().to(dtype)
    traced = oracles.orbits(model.trace, pictures(n).to(dtype).double().numpy(), group, returned)
    return {key: np.array([[one[key] for one in of_element] for of_element in traced]) for key in traced[0, 0]}


@functools.cache
def expected(group, n, name, layer, dtype):
    """Kernel and values (g, n) by the names' endings; None where there is no value."""
    order = len(oracles.ELEMENTS[group])
    features, act, m = FAMILY[name]
    if name == "above" and layer in ("down", "act#2"):
        act = oracles.stay
    is_map = name in OF_MAPS or layer == "mask"
    side = SIDE if layer == "mask" else MAPS.get(layer, (0, 0))[1]
    below_a_stride = act in (oracles.move, oracles.move_fields) and group.startswith("shift") and side % int(group[-1])
    if name == "channelwise_regular" and (group == SAMPLE or MAPS[layer][0] % order):
        return None
    if is_map and oracles.is_in_circle(group):
        m = oracles.in_circle(m)
    orbit = np.array([[features(z) for z in of_element] for of_element in orbit_of(group, n, dtype)[layer]])
    as_it_is = orbit
    if below_a_stride:
        orbit = np.array([[oracles.resampled(z, SIDE) for z in of_element] for of_element in orbit])
    kernel = oracles.kernel(group, act, orbit.shape[2:])
    of_chains = oracles.chains(n, order, oracles.seeded_order(n, SEED))
    if len(kernel) == 1:
        of_chains = oracles.map_chains(of_chains)
    mixed = oracles.shuffled(orbit, of_chains)
    values = {
        "": oracles.eed(orbit, group, act, m, kernel),
        "_null": oracles.eed(mixed, group, act, m, kernel),
    }
    values["_from_x"], values["_from_x_null"] = values[""], values["_null"]
    if len(kernel) > 1:
        values["_from_x"] = oracles.eed(orbit, group, act, m, [0])
        values["_from_x_null"] = oracles.eed(mixed, group, act, m, [0])
    if oracles.is_in_circle(group):
        back = [[features(z) for z in of_element] for of_element in orbit_of(group, n, dtype, True)[layer]]
        values["_round_trip"] = oracles.round_trip(back, orbit, m)
    if below_a_stride:
        back = [as_it_is[0], *[[oracles.resampled(z, side) for z in orbit[0]]] * (order - 1)]
        values["_round_trip"] = oracles.round_trip(back, as_it_is, m)
    for ending, of_ending in values.items():
        of_ending[:, BAD] = np.nan
        if ending.endswith("null"):
            of_kernel = [0] if "from_x" in ending else kernel
            of_ending[oracles.spoilt(order, of_chains, [BAD], of_kernel)] = np.nan
    return kernel, values


def measure(model, images, group, **options):
    settings = {"progress": False, "device": "cpu", "seed": SEED, "output": {"cls": "scores", "mask": "dense"}}
    settings["layers"] = ["stem", "act", "down"]
    return ek.measure(model, images, group=group, **settings | options).isel(model=0)


WAYS = {
    # precision, images in a forward pass, and how sums of float32 maps are taken on a processor
    "float64, elements parted": (torch.float64, 1, None),
    "float64, all at once": (torch.float64, 10_000, None),
    "float32, compiled": (torch.float32, 13, "compiled"),
    "float32, tensor operations": (torch.float32, None, "eager"),
    "float32, without numba": (torch.float32, 1, "without"),
    "bfloat16": (torch.bfloat16, 3, None),
}
ATOL = {torch.float64: 1e-6, torch.float32: 3e-5, torch.bfloat16: 0.01}
GROUPS = {"flip": 9, "C4": 9, "D4": 9, "C8": 9, SAMPLE: 9, "shift2": 9, "shift3x6": 20, "C4*rgb": 25}
"""Groups and how many images they act on; those of the last two fall into slices of elements."""


@pytest.fixture
def sums_taken(monkeypatch):
    """Sets how sums of float32 maps are taken."""

    def take(how):
        if how is None:
            return
        monkeypatch.setattr(measuring, "is_worth_compiling", lambda numbers: how != "eager")
        if how == "compiled":
            pytest.importorskip("numba")
        if how == "without":
            sums._loop.cache_clear()
            monkeypatch.setitem(sys.modules, "eedkit.probe.fused", None)

    yield take
    sums._loop.cache_clear()


@pytest.mark.parametrize(("group", "way"), [*itertools.product(GROUPS, [*WAYS][:-1]), ("C4", "bfloat16")])
def test_every_metric_is_equation_4(group, way, sums_taken):
    dtype, batch_size, how = WAYS[way]
    sums_taken(how)
    n = GROUPS[group]
    images = pictures(n).to(dtype)
    images[BAD, 0, 2, 3] = math.inf if how else math.nan
    metrics = [*(name for name in FAMILY if name in METRICS), *CUSTOM.values()]
    metrics += [THROUGH] if group == "C4" else []
    names = [metric if isinstance(metric, str) else metric.name for metric in metrics]
    with pytest.warns(UserWarning, match=f"1 of {n} samples have no value: .* not finite for sample {BAD} under e$"):
        ds = measure(TwoHeads().to(dtype), images, group, metrics=metrics, batch_size=batch_size)
    assert ds.layer.values.tolist() == [*MAPS, "latent"]
    assert ds.attrs["precision"] == str(dtype).removeprefix("torch.")
    for name in names:
        where = {**METRICS, **CUSTOM, "through": THROUGH}[name].where
        layers = {"maps": [*MAPS], "vectors": [*MAPS, "latent"], "output": ["cls"], "dense": ["mask"]}[where]
        kernels, has_round_trip = [], False
        for k, layer in enumerate(layers):
            at = k if where in ("maps", "vectors") else ...
            wanted = expected(group, n, name, layer, torch.float64 if dtype == torch.float32 else dtype)
            if wanted is None:
                assert ds[name][at].isnull().all()
                assert ds[f"{name}_nan_reason"][at] != ""
                continue
            kernel, values = wanted
            kernels.append(len(kernel))
            has_round_trip |= "_round_trip" in values
            of_metric = ds[name].attrs["kernel_order"] if at is ... else ds[f"{name}_kernel_order"][at].item()
            assert of_metric == len(kernel), (name, layer)
            for ending, of_ending in values.items():
                if not ending.startswith("_from_x") or f"{name}_from_x" in ds:
                    found = ds.variables[f"{name}{ending}"].values[at]
                    message = f"{name}{ending} {layer}"
                    np.testing.assert_allclose(found, of_ending, ATOL[dtype], ATOL[dtype], err_msg=message)
        assert (f"{name}_from_x" in ds) == (f"{name}_from_x_null" in ds) == any(order > 1 for order in kernels)
        assert (f"{name}_round_trip" in ds) == has_round_trip


@pytest.mark.parametrize(("group", "way"), [("C4", "float32, compiled"), ("C8", "float64, elements parted")])
def test_what_is_recorded_beside_the_metrics(group, way, sums_taken):
    dtype, batch_size, how = WAYS[way]
    sums_taken(how)
    metrics = [*(name for name in FAMILY if name in METRICS), *CUSTOM.values()]
    ds = measure(TwoHeads().to(dtype), pictures(9).to(dtype), group, metrics=metrics, batch_size=batch_size)
    orbits = orbit_of(group, 9, torch.float64)
    inside = oracles.circle(SIDE) if oracles.is_in_circle(group) else np.ones((SIDE, SIDE), dtype=bool)
    for layer in ("stem", "act", "latent"):
        orbit, found = orbits[layer], ds.sel(layer=layer)
        for name in ("latent", "latent_unit", "highest"):
            vectors = [FAMILY[name][0](z) for z in orbit[0]]
            assert found[f"{name}_pair_cosine"].item() == pytest.approx(oracles.mean_pair_cosine(vectors), abs=1e-6)
        for name in ("latent_euclidean", "highest"):
            lengths = [math.hypot(*FAMILY[name][0](z)) for z in orbit[0]]
            np.testing.assert_allclose(found[f"{name}_norm"], lengths, rtol=1e-5)
        if layer == "latent":
            assert found.dead_fraction.isnull()
            continue
        np.testing.assert_allclose(found.channelwise_rms_norm, (orbit[0, :, :, inside] ** 2).mean((0, 2)) ** 0.5, 1e-5)
        zero = (orbit[..., inside] == 0).all(-1)
        assert found.dead_fraction.item() == pytest.approx((zero & zero[:1]).mean(), abs=1e-12)
    assert ds.dead_fraction.sel(layer="act") >= 1 / 8
    np.testing.assert_allclose(ds.l1_of_scores_norm, np.linalg.norm(orbits["cls"][0], axis=-1), rtol=1e-5)
    p = np.array([[oracles.softmax(z) for z in of_element] for of_element in orbits["cls"]])
    np.testing.assert_array_equal(ds.prediction, p.argmax(-1))
    np.testing.assert_allclose(ds.confidence, p.max(-1), atol=1e-6)
    for name in set(ds.variables) - {*METRICS, *CUSTOM}:
        with pytest.raises(ValueError, match=r"the results have something called|names that end in"):
            Metric(name, "maps", COSINE)


ENDINGS = ("null", "from_x", "round_trip", "norm", "pair_cosine", "nan_reason", "kernel_order")
NO_NAMES = ["", " ", ".", "..", "a/b", "a\0b", "a\nb", "label", "flaw", "law_error", "step", "seconds"]


@pytest.mark.parametrize("name", [*NO_NAMES, *(f"latent_{ending}" for ending in ENDINGS)])
def test_names_that_a_metric_cannot_have_are_refused(name):
    with pytest.raises(ValueError, match="name"):
        Metric(name, "maps", COSINE)


@pytest.mark.parametrize(
    ("about", "error", "message"),
    [
        ({"name": 5}, TypeError, "a metric's name must be a text, got int"),
        ({"where": "layers"}, ValueError, "mine: where must be one of maps, vectors, .*, got 'layers'"),
        ({"null": "classes"}, ValueError, "mine: null must be one of images, elements, got 'classes'"),
        ({"distance": len}, TypeError, "mine: distance must be a Distance, got builtin_function"),
        ({"where": "raw"}, ValueError, "mine: a raw output needs features"),
        ({"where": "output", "normalised": True}, ValueError, "mine: only vectors have a mean cosine M"),
        ({"where": "vectors", "null": "elements"}, ValueError, "mine: no element moves anything"),
        ({"where": "vectors", "action": matched}, ValueError, "mine: only channels of maps as they are can be matched"),
        ({"features": torch.abs, "action": matched}, ValueError, "only channels of maps as they are can be matched"),
        ({"null": "elements", "action": matched}, ValueError, "can be matched, against other images"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(about, error, message):
    with pytest.raises(error, match=message):
        Metric(**{"name": "mine", "where": "maps", "distance": COSINE} | about)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"features": lambda z: z[:1, 0]}, r"features of mine must have a row for each of \d+ images, got 1"),
        ({"features": lambda z: z.numpy()}, "features of mine must be a tensor of floats, got ndarray"),
        ({"features": lambda z: z[:, 0] > 0}, "features of mine must be a tensor of floats, got torch.bool"),
        (
            {"distance": distances.Distance("no sum", lambda a, b: a - b)},
            r"mine: the distance no sum must give one value",
        ),
    ],
)
def test_functions_that_give_something_else_are_refused_by_name(about, message):
    metric = replace(Metric("mine", "vectors", distances.negative_cosine), **about)
    with pytest.raises(TypeError, match=message):
        measure(TwoHeads().double(), pictures(9), "C4", metrics=[metric])


@pytest.mark.xfail(strict=True, reason="raw ValueError, RuntimeError and IndexError of torch")
@pytest.mark.parametrize("features", [lambda z: z.mean(1), lambda z: z[:, ::2], lambda z: z.mean((1, 2))])
def test_features_of_maps_that_are_no_maps_of_the_layer_are_refused_by_name(features):
    with pytest.raises(TypeError, match="features of mine must be"):
        measure(TwoHeads().double(), pictures(9), "C4", metrics=[Metric("mine", "maps", COSINE, features=features)])


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("where", "vectors"),
        ("features", torch.abs),
        ("action", moving_above),
        ("null", "elements"),
        ("distance", distances.channelwise_negative_correlation),
        ("name", "other"),
    ],
)
def test_descriptions_tell_every_option(option, value):
    plain = Metric("mine", "maps", COSINE)
    assert replace(plain, **{option: value}).description != plain.description
    vectors = Metric("mine", "vectors", distances.euclidean)
    assert replace(vectors, normalised=True).description != vectors.description
    with pytest.raises(ValueError, match="metric mine: a study tells functions apart by their names"):
        _ = replace(plain, features=lambda z: z).description
