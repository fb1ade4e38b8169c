"""Every metric with its null, from f(x), and there and back, against the loops of oracles.py; metrics as values."""

import functools
import itertools
import math
from dataclasses import replace

import numpy as np
import oracles
import pytest
import torch
from made import Net, noise
from torch import nn

import eedkit as ek
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
            return maps | {"mask": self.mask(torch.from_numpy(maps["act"]).to(self.mask.weight)).double().numpy()}


def measure(dtype, images, group, **options):
    settings = {"progress": False, "device": "cpu", "seed": SEED, "output": {"cls": "scores", "mask": "dense"}}
    settings["layers"] = ["stem", "act", "down"]
    return ek.measure(TwoHeads().to(dtype), images.to(dtype), group=group, **settings | options).isel(model=0)


def moving_above(action, layer):
    """Maps of the first layers move as images do, those below do not move."""
    return action if layer.channels == 8 else actions.trivial(action.group)


def through_c2(action, _layer):
    """C4 acting through its quotient C2."""
    return actions.Action("proper", groups.parse("C4"), lambda g, z: torch.rot90(z, 2 * (g % 2), (-2, -1)))


def of_squares(sums):
    return (sums.aa + sums.bb - 2 * sums.ab).mean(-1) / sums.n


COSINE = distances.channelwise_negative_cosine
L1 = distances.Distance("l1", lambda a, b: (a - b).abs().sum(-1), scale="norm", order=1)
SQUARES = distances.Distance("squares", of_squares, scale=3.0, of_sums=True)
OURS = [
    Metric("above", "maps", COSINE, action=moving_above),
    Metric("through", "maps", COSINE, action=through_c2),
    Metric("squares", "maps", SQUARES),
    Metric("highest", "vectors", L1, features=lambda z: z.amax(1), normalised=True),
    Metric("l1_of_scores", "output", L1),
    replace(METRICS["dense"], name="of_elements", null="elements"),
]
BY_NAME = METRICS | {metric.name: metric for metric in OURS}


def same(z):
    return z


def pool(z):
    return z.mean(axis=(-2, -1)) if z.ndim == 3 else z


def highest(z):
    return z.max(axis=(-2, -1)) if z.ndim == 3 else z


def move_through_c2(group, element, z):
    return oracles.move("C4", {"r90": "r180", "r270": "r180"}.get(element, "e"), z)


def l1(a, b):
    return np.abs(a - b).sum()


def squares(a, b):
    return oracles.rms(a, b) ** 2


def zero(a, b):
    return oracles.channelwise(a, b, "zero")


def skip(a, b):
    return oracles.channelwise(a, b, "skip")


def centred(a, b):
    return skip(oracles.centred(a), oracles.centred(b))


FAMILY = {
    **dict.fromkeys(("channelwise", "above", "dense", "of_elements"), (same, oracles.move, oracles.channelwise)),
    "channelwise_regular": (same, oracles.move_fields, oracles.channelwise),
    "through": (same, move_through_c2, oracles.channelwise),
    "channelwise_zero": (same, oracles.move, zero),
    "channelwise_skip": (same, oracles.move, skip),
    "channelwise_centred": (same, oracles.move, centred),
    "channelwise_rms": (same, oracles.move, oracles.rms),
    "squares": (same, oracles.move, squares),
    "segmentation": (oracles.softmax, oracles.move, oracles.mean_over_places(oracles.kl)),
    "segmentation_iou": (same, oracles.move, oracles.jaccard_of_scores),
    "latent": (pool, oracles.stay, oracles.latent),
    "latent_unit": (lambda z: oracles.unit(pool(z)), oracles.stay, oracles.latent),
    "latent_flat": (np.ravel, oracles.stay, oracles.latent),
    "latent_euclidean": (pool, oracles.stay, oracles.euclidean),
    "highest": (highest, oracles.stay, l1),
    "l1_of_scores": (same, oracles.stay, l1),
    "softmax": (oracles.softmax, oracles.stay, oracles.kl),
    "softmax_reverse": (oracles.softmax, oracles.stay, oracles.kl_reverse),
    "softmax_js": (oracles.softmax, oracles.stay, oracles.js),
    "softmax_tv": (oracles.softmax, oracles.stay, oracles.tv),
    "softmax_hellinger": (oracles.softmax, oracles.stay, oracles.hellinger),
}


def test_every_metric_has_an_oracle():
    elsewhere = {"channelwise_field", "channelwise_matched", "boxes", "boxes_50", "boxes_75"}
    assert set(FAMILY) | elsewhere == set(BY_NAME)


@functools.cache
def orbit_of(group, n, dtype, returned=False):
    """What every layer puts out for gx, (g, n, *z), by the layer's name."""
    images = noise(n, 3, SIDE).to(dtype).double().numpy()
    traced = oracles.orbits(TwoHeads().to(dtype).trace, images, group, returned)
    return {key: [[of_image[key] for of_image in of_element] for of_element in traced] for key in traced[0, 0]}


def each(function, orbit):
    return np.array([[function(z) for z in of_element] for of_element in orbit])


@functools.cache
def expected(group, n, name, layer, dtype):
    """Kernel and values (g, n) by the names' endings; None where there is no value."""
    order = len(oracles.ELEMENTS[group])
    features, act, m = FAMILY[name]
    if name == "above" and layer in ("down", "act#2"):
        act = oracles.stay
    if name == "channelwise_regular" and (group == SAMPLE or MAPS[layer][0] % order):
        return None
    if BY_NAME[name].has_positions and oracles.is_in_circle(group):
        m = oracles.in_circle(m)
    orbit = each(features, orbit_of(group, n, dtype)[layer])
    back = None
    if oracles.is_in_circle(group):
        back = each(features, orbit_of(group, n, dtype, True)[layer]), orbit
    if act in (oracles.move, oracles.move_fields) and group.startswith("shift") and orbit.shape[-1] % int(group[-1]):
        # below a stride: maps on the image's grid, and what that costs
        of_maps, orbit = orbit, each(lambda z: oracles.resampled(z, SIDE), orbit)
        resampled = [oracles.resampled(z, of_maps.shape[-1]) for z in orbit[0]]
        back = [of_maps[0], *[resampled] * (order - 1)], of_maps
    kernel = oracles.kernel(group, act, orbit.shape[2:])
    of_chains = oracles.chains(n, order, oracles.seeded_order(n, SEED))
    if len(kernel) == 1:
        of_chains = oracles.map_chains(of_chains)
    mixed = oracles.shuffled(orbit, of_chains)
    values = {"_round_trip": oracles.round_trip(*back, m)} if back else {}
    for ending, of_kernel in (("", kernel), ("_from_x", [0])):
        values[ending] = oracles.eed(orbit, group, act, m, of_kernel)
        values[f"{ending}_null"] = oracles.eed(mixed, group, act, m, of_kernel)
        values[f"{ending}_null"][oracles.spoilt(order, of_chains, [BAD], of_kernel)] = np.nan
    if name == "of_elements":
        values["_null"] = oracles.other_elements(orbit, group, act, m, kernel)
    for of_ending in values.values():
        of_ending[:, BAD] = np.nan
    return kernel, values


WAYS = {
    # precision, images in a forward pass, and how sums of float32 maps are taken on a processor
    "float64, elements parted": (torch.float64, 1, "tensor"),
    "float64, all at once": (torch.float64, 10**12, "tensor"),
    "float32, compiled": (torch.float32, 13, "compiled"),
    "float32, tensor operations": (torch.float32, None, "tensor"),
    "float32, without numba": (torch.float32, 1, "without"),
    "bfloat16": (torch.bfloat16, 3, "tensor"),
}
ATOL = {torch.float64: 1e-6, torch.float32: 3e-5, torch.bfloat16: 0.01}
GROUPS = {"flip": 9, "C4": 9, "D4": 9, "C8": 9, SAMPLE: 9, "shift2": 9, "shift3x6": 20, "C4*rgb": 25}
"""Groups and how many images they act on; those of the last two fall into slices of elements."""


@pytest.mark.parametrize(("group", "way"), [*itertools.product(GROUPS, [*WAYS][:-1]), ("C4", "bfloat16")])
def test_every_metric_is_equation_4(group, way, take_sums):
    dtype, batch_size, how = WAYS[way]
    take_sums(how)
    n, images = GROUPS[group], noise(GROUPS[group], 3, SIDE)
    images[BAD, 0, 2, 3] = math.nan if dtype == torch.float64 else math.inf
    left_out = {"C4": set(), "C4*rgb": {"through", "of_elements"}}.get(group, {"through"})
    metrics = [BY_NAME[name] for name in FAMILY if name not in left_out]
    with pytest.warns(UserWarning, match=f"1 of {n} samples have no value: .* not finite for sample {BAD} under e$"):
        ds = measure(dtype, images, group, metrics=metrics, batch_size=batch_size)
    assert ds.layer.values.tolist() == [*MAPS, "latent"]
    assert ds.attrs["precision"] == str(dtype).removeprefix("torch.")
    for metric in metrics:
        name, kernels, has_round_trip = metric.name, [], False
        layers = {"maps": [*MAPS], "vectors": [*MAPS, "latent"], "output": ["cls"], "dense": ["mask"]}[metric.where]
        for k, layer in enumerate(layers):
            at = k if metric.has_layers else ...
            wanted = expected(group, n, name, layer, torch.float64 if dtype == torch.float32 else dtype)
            if wanted is None:
                assert ds[name][at].isnull().all()
                assert ds[f"{name}_nan_reason"][at] != ""
                continue
            kernel, values = wanted
            kernels.append(ds[f"{name}_kernel_order"].item(at) if metric.has_layers else ds[name].attrs["kernel_order"])
            assert kernels[-1] == len(kernel), (name, layer)
            has_round_trip |= "_round_trip" in values
            for ending, of_ending in values.items():
                if not ending.startswith("_from_x") or f"{name}_from_x" in ds:
                    found, message = ds.variables[f"{name}{ending}"].values[at], f"{name}{ending} {layer}"
                    np.testing.assert_allclose(found, of_ending, ATOL[dtype], ATOL[dtype], err_msg=message)
        assert (f"{name}_from_x" in ds) == (f"{name}_from_x_null" in ds) == any(order > 1 for order in kernels)
        assert (f"{name}_round_trip" in ds) == has_round_trip


def test_the_null_of_the_element_may_start_from_x():
    metric = Metric("mine", "dense", COSINE, action=through_c2, null="elements")
    ds = measure(torch.float64, noise(9, 3, SIDE), "C4", metrics=[metric])
    orbit = np.array(orbit_of("C4", 9, torch.float64)["mask"])
    for name, mixed in (("mine_null", [0, 2]), ("mine_from_x_null", [0])):
        wanted = oracles.other_elements(orbit, "C4", move_through_c2, oracles.channelwise, [0, 2], mixed)
        np.testing.assert_allclose(ds[name], wanted, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(("group", "way"), [("C4", "float32, compiled"), ("C8", "float64, elements parted")])
def test_what_is_recorded_beside_the_metrics(group, way, take_sums):
    dtype, batch_size, how = WAYS[way]
    take_sums(how)
    metrics = [BY_NAME[name] for name in FAMILY if name != "through"]
    ds = measure(dtype, noise(9, 3, SIDE), group, metrics=metrics, batch_size=batch_size)
    orbits = {key: np.array(orbit) for key, orbit in orbit_of(group, 9, torch.float64).items()}
    inside = oracles.circle(SIDE) if oracles.is_in_circle(group) else np.full((SIDE, SIDE), True)
    for layer in ("stem", "act", "latent"):
        orbit, found = orbits[layer], ds.sel(layer=layer)
        vectors = {name: [FAMILY[name][0](z) for z in orbit[0]] for name in ("latent", "latent_unit", "highest")}
        for name, of_name in vectors.items():
            assert found[f"{name}_pair_cosine"].item() == pytest.approx(oracles.mean_pair_cosine(of_name), abs=1e-6)
        np.testing.assert_allclose(found.highest_norm, np.linalg.norm(vectors["highest"], axis=1), rtol=1e-5)
        np.testing.assert_allclose(found.latent_euclidean_norm, np.linalg.norm(vectors["latent"], axis=1), rtol=1e-5)
        if layer == "latent":
            assert found.dead_fraction.isnull()
            continue
        sizes = (orbit[0][..., inside] ** 2).mean((1, 2)) ** 0.5
        np.testing.assert_allclose(found.channelwise_rms_norm, sizes, rtol=1e-5)
        is_zero = (orbit[..., inside] == 0).all(-1)
        assert found.dead_fraction.item() == pytest.approx((is_zero & is_zero[:1]).mean(), abs=1e-12)
    assert ds.dead_fraction.sel(layer="act") >= 1 / 8
    np.testing.assert_allclose(ds.l1_of_scores_norm, np.linalg.norm(orbits["cls"][0], axis=-1), rtol=1e-5)
    p = each(oracles.softmax, orbits["cls"])
    np.testing.assert_array_equal(ds.prediction, p.argmax(-1))
    np.testing.assert_allclose(ds.confidence, p.max(-1), atol=1e-6)
    for name in set(ds.variables) - set(BY_NAME):
        with pytest.raises(ValueError, match=r"the results have something called|names that end in"):
            Metric(name, "maps", COSINE)


ENDINGS = ("null", "from_x", "round_trip", "norm", "pair_cosine", "nan_reason", "kernel_order")
NO_NAMES = ["", " ", ".", "..", "a/b", "a\0b", "a\nb", "label", "flaw", "law_error", "step", "seconds"]
REFUSED = [
    *(({"name": name}, ValueError, "name") for name in (*NO_NAMES, *(f"latent_{ending}" for ending in ENDINGS))),
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
]


@pytest.mark.parametrize(("about", "error", "message"), REFUSED)
def test_names_and_parts_that_no_metric_can_have_are_refused(about, error, message):
    with pytest.raises(error, match=message):
        Metric(**{"name": "mine", "where": "maps", "distance": COSINE} | about)


NO_SUM = distances.Distance("no sum", lambda a, b: a - b)
OTHERS = [
    (Metric("mine", "vectors", L1, features=lambda z: z[:1, 0]), r"must have a row for each of \d+ images, got 1"),
    (Metric("mine", "vectors", L1, features=lambda z: z.numpy()), "must be a tensor of floats, got ndarray"),
    (Metric("mine", "vectors", L1, features=lambda z: z[:, 0] > 0), "must be a tensor of floats, got torch.bool"),
    (Metric("mine", "vectors", NO_SUM), "the distance no sum must give one value for each pair of features"),
    (Metric("mine", "maps", COSINE, features=lambda z: z.mean(1)), "must be maps of all positions"),
    (Metric("mine", "maps", COSINE, features=lambda z: z[:, ::2]), "must be maps of all positions"),
    (Metric("mine", "maps", COSINE, features=lambda z: z.mean((1, 2))), "must be maps of all positions"),
]


@pytest.mark.parametrize(("metric", "message"), OTHERS)
def test_functions_that_give_something_else_are_refused_by_name(metric, message):
    with pytest.raises(TypeError, match=f"mine:? .*{message}"):
        measure(torch.float64, noise(9, 3, SIDE), "C4", metrics=[metric])


OPTIONS = {"name": "other", "where": "vectors", "distance": L1, "features": torch.abs, "action": moving_above}


@pytest.mark.parametrize("option", [*OPTIONS, "null", "normalised"])
def test_descriptions_tell_every_option(option):
    plain = Metric("mine", "vectors" if option == "normalised" else "maps", COSINE)
    value = {**OPTIONS, "null": "elements", "normalised": True}[option]
    assert replace(plain, **{option: value}).description != plain.description
    with pytest.raises(ValueError, match="metric mine: a study tells functions apart by their names"):
        _ = replace(plain, features=lambda z: z).description
