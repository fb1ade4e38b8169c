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
from torch import nn
from torch.nn import functional as F

import eedkit as ek
from eedkit.probe import measure as measuring
from eedkit.probe import sums
from eedkit.probe.metrics import ENDINGS, METRICS, RESERVED, Metric
from eedkit.theory import actions, distances, groups

SEED, SIDE, BAD = 3, 6, 5
MAPS = {"stem": (8, 6), "act": (8, 6), "down": (6, 3), "act#2": (6, 3)}
"""Channels and sides of the network's layers with maps."""
SAMPLE = "SO(2)?n=5"
oracles.ELEMENTS[SAMPLE] = ["e", *(f"r{angle!r}" for angle in groups.parse(SAMPLE).angles[1:])]


class Net(nn.Module):
    """Layers stem (8×6×6, after act one channel always dead), act, down (6×3×3), act#2, fc, and a map of three classes."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.act = nn.ReLU(inplace=True)
            self.down = nn.Conv2d(8, 6, 2, stride=2)
            self.fc = nn.Linear(6, 4)
            self.mask = nn.Conv2d(8, 3, 1)
        with torch.no_grad():
            self.stem.weight.mul_(3)
            self.stem.weight[2], self.stem.bias[2] = 0, -1
            self.fc.weight.mul_(4)

    def forward(self, x):
        wide = self.act(self.stem(x))
        narrow = self.act(self.down(wide))
        return {"mask": self.mask(wide), "cls": self.fc(narrow.mean((-2, -1)))}

    def trace(self, x):
        """What every layer puts out for one image (C, H, W), by functions and not by modules."""
        x = torch.from_numpy(np.ascontiguousarray(x))[None].to(self.stem.weight)
        with torch.no_grad():
            stem = F.conv2d(x, self.stem.weight, self.stem.bias, padding=1)
            wide = stem.clamp_min(0)
            down = F.conv2d(wide, self.down.weight, self.down.bias, stride=2)
            latent = down.clamp_min(0).mean((-2, -1))
            outputs = {"cls": F.linear(latent, self.fc.weight, self.fc.bias)}
            outputs["mask"] = F.conv2d(wide, self.mask.weight, self.mask.bias)
        found = {"stem": stem, "act": wide, "down": down, "act#2": down.clamp_min(0), "latent": latent, **outputs}
        return {key: z[0].double().numpy() for key, z in found.items()}


def pictures(n):
    return torch.randn(n, 3, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


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


def dead_as(how):
    return lambda a, b: oracles.channelwise(a, b, how)


OF_SUMS = distances.Distance(
    "of sums", lambda sums: (sums.aa + sums.bb - 2 * sums.ab).mean(-1) / sums.n, order=2, scale=3.0, of_sums=True
)
CUSTOM = {
    "above": Metric("above", "maps", distances.channelwise_negative_cosine, action=moving_above),
    "of_sums": Metric("of_sums", "maps", OF_SUMS),
}
THROUGH = Metric(
    "through",
    "maps",
    distances.channelwise_negative_cosine,
    action=lambda *_: actions.quotient("C4", actions.spatial("C2"), [0, 1, 0, 1]),
)
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
OF_VECTORS = [name for name in FAMILY if name.startswith("latent")]


def test_every_metric_has_an_oracle():
    elsewhere = {"channelwise_field", "channelwise_matched", "boxes", "boxes_50", "boxes_75"}
    assert set(FAMILY) | elsewhere == {*METRICS, *CUSTOM, "through"}


@functools.cache
def orbit_of(group, n, dtype, returned=False):
    """What every layer puts out for gx, (g, n, *z), by the layer's name."""
    model = Net().to(dtype)
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
    if act in (oracles.move, oracles.move_fields) and group.startswith("shift") and side % int(group[-1]):
        return None
    if name == "channelwise_regular" and (group == SAMPLE or MAPS[layer][0] % order):
        return None
    if is_map and oracles.is_in_circle(group):
        m = oracles.in_circle(m)
    orbit = np.array([[features(z) for z in of_element] for of_element in orbit_of(group, n, dtype)[layer]])
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
    for ending, of_ending in values.items():
        of_ending[:, BAD] = np.nan
        if ending.endswith("null"):
            of_kernel = [0] if "from_x" in ending else kernel
            of_ending[oracles.spoilt(order, of_chains, [BAD], of_kernel)] = np.nan
    return kernel, values


def measure(model, images, group, **options):
    settings = {"progress": False, "device": "cpu", "seed": SEED, "output": {"cls": "scores", "mask": "dense"}}
    with pytest.warns(UserWarning, match=f"1 of {len(images)} samples have no value: .*finite for sample {BAD}"):
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
    images[BAD, 0, 2, 3] = math.nan
    metrics = [*(name for name in FAMILY if name in METRICS), *CUSTOM.values()]
    metrics += [THROUGH] if group == "C4" else []
    names = [metric if isinstance(metric, str) else metric.name for metric in metrics]
    ds = measure(Net().to(dtype), images, group, metrics=metrics, layers=["stem", "act", "down"], batch_size=batch_size)
    assert ds.layer.values.tolist() == [*MAPS, "latent"]
    assert ds.attrs["precision"] == str(dtype).removeprefix("torch.")
    for name in names:
        where = METRICS[name].where if name in METRICS else "maps"
        layers = {"maps": [*MAPS], "vectors": [*MAPS, "latent"], "output": ["cls"], "dense": ["mask"]}[where]
        kernels = []
        for k, layer in enumerate(layers):
            at = k if where in ("maps", "vectors") else ...
            wanted = expected(group, n, name, layer, torch.float64 if dtype == torch.float32 else dtype)
            if wanted is None:
                assert ds[name][at].isnull().all()
                assert ds[f"{name}_nan_reason"][at] != ""
                continue
            kernel, values = wanted
            kernels.append(len(kernel))
            of_metric = ds[name].attrs["kernel_order"] if at is ... else ds[f"{name}_kernel_order"][at].item()
            assert of_metric == len(kernel), (name, layer)
            for ending, of_ending in values.items():
                if not ending.startswith("_from_x") or f"{name}_from_x" in ds:
                    found = ds.variables[f"{name}{ending}"].values[at]
                    message = f"{name}{ending} {layer}"
                    np.testing.assert_allclose(found, of_ending, ATOL[dtype], ATOL[dtype], err_msg=message)
        assert (f"{name}_from_x" in ds) == (f"{name}_from_x_null" in ds) == any(order > 1 for order in kernels)
        assert (f"{name}_round_trip" in ds) == (oracles.is_in_circle(group) and bool(kernels))
