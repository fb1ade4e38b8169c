"""measure(): every metric against the loops of oracles.py, the exact facts, every source of images, every bad input."""

import copy
import math
import subprocess
import sys
import warnings
from collections import OrderedDict
from dataclasses import replace

import datasets
import numpy as np
import oracles
import pytest
import torch
import xarray as xr
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

import eedkit as ek
from eedkit.probe.measure import fingerprint
from eedkit.probe.metrics import METRICS, Metric, feature_map
from eedkit.theory import actions, distances, groups

N, SEED = 7, 3
GROUPS = ["C2", "C4", "D4", "flip", "shift2"]


class Tiny(nn.Module):
    """Layers stem (8×6×6, after act one channel always dead and one for some images), act, down (6×3×3), act#2, fc."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(2, 8, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.down = nn.Conv2d(8, 6, 2, stride=2)
        self.fc = nn.Linear(6, 4)
        with torch.no_grad():
            self.stem.weight.mul_(3)
            self.stem.weight[2], self.stem.bias[2] = 0, -1
            self.stem.bias[3] = -3.2
            self.fc.weight.mul_(4)

    def forward(self, x):
        z = self.act(self.stem(x))
        z = self.act(self.down(z))
        return self.fc(z.mean((-2, -1)))

    def trace(self, x):
        """What every layer puts out for one image (C, H, W), by functions and not by modules; as numpy."""
        x = torch.from_numpy(np.ascontiguousarray(x))[None]
        with torch.no_grad():
            stem = F.conv2d(x, self.stem.weight, self.stem.bias, padding=1)
            down = F.conv2d(stem.clamp_min(0), self.down.weight, self.down.bias, stride=2)
            latent = down.clamp_min(0).mean((-2, -1))
            scores = latent @ self.fc.weight.T + self.fc.bias
        found = {"stem": stem, "act": stem.clamp_min(0), "down": down, "act#2": down.clamp_min(0)}
        return {key: z[0].numpy() for key, z in {**found, "latent": latent, "scores": scores}.items()}


LAYERS = ["stem", "act", "down"]  # a module's path stands for all its calls
MAPS = ["stem", "act", "down", "act#2"]


def tiny():
    return Tiny().double()


def pictures(n=N, side=6, seed=1):
    return torch.randn(n, 2, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def measure(model, images, **options):
    settings = {"group": "C4", "precision": "float64", "progress": False, "device": "cpu", "seed": SEED, **options}
    return ek.measure(model, images, **settings)


def pool(z):
    return z.mean(axis=(-2, -1)) if z.ndim == 3 else z


FAMILY = {
    # name: (layer's output -> f(x), the action there, m)
    "channelwise": (lambda z: z, "move", oracles.channelwise),
    "channelwise_zero": (lambda z: z, "move", lambda a, b: oracles.channelwise(a, b, "zero")),
    "channelwise_skip": (lambda z: z, "move", lambda a, b: oracles.channelwise(a, b, "skip")),
    "channelwise_centred": (oracles.centred, "move", lambda a, b: oracles.channelwise(a, b, "skip")),
    "latent": (pool, "stay", oracles.latent),
    "latent_unit": (lambda z: oracles.unit(pool(z)), "stay", oracles.latent),
    "latent_flat": (np.ravel, "stay", oracles.latent),
    "latent_euclidean": (pool, "stay", oracles.euclidean),
    "softmax": (oracles.softmax, "stay", oracles.kl),
    "softmax_reverse": (oracles.softmax, "stay", oracles.kl_reverse),
    "softmax_js": (oracles.softmax, "stay", oracles.js),
    "softmax_tv": (oracles.softmax, "stay", oracles.tv),
    "softmax_hellinger": (oracles.softmax, "stay", oracles.hellinger),
}


def expected(model, images, group, name, layer, partner=None):
    """(g, n) by equation 4; with partners the null."""
    features, action, m = FAMILY[name]
    act = {"move": oracles.move, "stay": oracles.stay}[action]
    orbit = oracles.orbits(lambda x: features(model.trace(x)[layer]), images.numpy(), group)
    kernel = oracles.kernel(group, act, orbit.shape[2:]) if action == "move" else range(len(orbit))
    return oracles.eed(orbit, group, act, m, kernel, partner)


@pytest.fixture(scope="module")
def measured():
    """measure() with all metrics for a group and batch size, once."""
    known = {}

    def get(group, batch_size):
        if (group, batch_size) not in known:
            options = {"layers": LAYERS, "metrics": list(FAMILY), "batch_size": batch_size}
            known[group, batch_size] = measure(tiny(), pictures(), group=group, **options)
        return known[group, batch_size]

    return get


def test_every_metric_has_an_oracle():
    elsewhere = {"channelwise_regular", "channelwise_matched"}  # the latter in test_matching.py
    assert set(FAMILY) | elsewhere == set(METRICS)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_every_metric_is_equation_4_and_its_null_whatever_the_batch_size(measured, group, name, batch_size):
    ds, model = measured(group, batch_size), tiny()
    partner = oracles.partners(N, oracles.seeded_order(N, SEED))
    layers = ["scores"] if name.startswith("softmax") else MAPS if name.startswith("channel") else [*MAPS, "latent"]
    for layer in layers:
        at = {"model": "Tiny"} if layer == "scores" else {"model": "Tiny", "layer": layer}
        if group == "shift2" and layer in ("down", "act#2") and name.startswith("channel"):
            assert ds[name].sel(at).isnull().all()
            continue
        for variable, others in ((name, None), (f"{name}_null", partner)):
            found = ds[variable].sel(at)
            assert found.dims == ("element", "sample")
            np.testing.assert_allclose(
                found, expected(model, pictures(), group, name, layer, others), atol=1e-5, rtol=1e-5, err_msg=variable
            )


def test_estimates_of_an_image_do_not_depend_on_where_it_stands():
    order = [4, 0, 6, 2, 5, 1, 3]
    options = {"layers": LAYERS, "metrics": list(FAMILY), "batch_size": 3}
    straight, shuffled = measure(tiny(), pictures(), **options), measure(tiny(), pictures()[order], **options)
    for name in (*FAMILY, "prediction", "confidence"):
        np.testing.assert_allclose(straight[name].values[..., order], shuffled[name].values, atol=1e-6)
    np.testing.assert_allclose(straight.latent_pair_cosine, shuffled.latent_pair_cosine, atol=1e-12)


def test_the_seed_draws_the_partners_and_nothing_else():
    one, two = (measure(tiny(), pictures(), seed=seed) for seed in (0, 1))
    xr.testing.assert_allclose(one.latent.drop_vars("position"), two.latent.drop_vars("position"))
    assert one.position.values.tolist() != two.position.values.tolist()
    assert not np.allclose(one.latent_null, two.latent_null)
    want = expected(tiny(), pictures(), "C4", "latent", "latent", oracles.partners(N, oracles.seeded_order(N, 1)))
    np.testing.assert_allclose(two.latent_null.sel(layer="latent")[0], want, atol=1e-5)


@pytest.mark.parametrize("n", [256, 257, 258, 513])
def test_nulls_at_the_boundaries_of_chains(n):
    x = torch.rand(n, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double()
    orbit = oracles.orbits(np.ravel, x.numpy(), "flip")
    partner = oracles.partners(n, oracles.seeded_order(n, SEED))
    want = oracles.eed(orbit, "flip", oracles.stay, oracles.euclidean, [0, 1], partner)
    for batch_size in (100, 600):
        ds = measure(model, x, group="flip", metrics="latent_euclidean", batch_size=batch_size)
        np.testing.assert_allclose(ds.latent_euclidean_null.sel(layer="latent")[0], want, atol=1e-6)


def test_mean_pair_cosine_dead_fraction_norm_prediction_and_confidence():
    ds, model, x = measure(tiny(), pictures(), layers=LAYERS, batch_size=3), tiny(), pictures()
    for layer in (*MAPS, "latent"):
        vectors = [pool(model.trace(image)[layer]) for image in x.numpy()]
        found = ds.sel(layer=layer, model="Tiny")
        assert found.latent_pair_cosine.item() == pytest.approx(oracles.mean_pair_cosine(vectors), abs=1e-9)
        np.testing.assert_allclose(found.latent_norm, [math.hypot(*v) for v in vectors], rtol=1e-5)
        if layer != "latent":
            orbit = oracles.orbits(lambda z, at=layer: model.trace(z)[at], x.numpy(), "C4")
            zero = (orbit == 0).all(axis=(-2, -1))
            assert found.dead_fraction.item() == pytest.approx((zero & zero[:1]).mean(), abs=1e-12)
    assert ds.dead_fraction.sel(layer="act").item() >= 1 / 8
    assert ds.dead_fraction.sel(layer="latent").isnull()
    p = oracles.orbits(lambda z: oracles.softmax(model.trace(z)["scores"]), x.numpy(), "C4")
    np.testing.assert_array_equal(ds.prediction[0], p.argmax(-1))
    np.testing.assert_allclose(ds.confidence[0], p.max(-1), atol=1e-6)


def test_a_proper_kernel_streams():
    """C4 turns the images and acts on the maps through its quotient C2."""
    through = Metric(
        "through", "maps", feature_map, lambda _: actions.quotient("C4", actions.spatial("C2"), [0, 1, 0, 1]),
        distances.channelwise_negative_cosine, "through C2", "ours",
    )  # fmt: skip

    def act(group, element, z):
        return oracles.move("C4", {"r90": "r180", "r270": "r180"}.get(element, "e"), z)

    x = pictures()
    partner = oracles.partners(N, oracles.seeded_order(N, SEED))
    for batch_size in (1, 3, None):
        model = tiny()
        ds = measure(model, x, metrics=[through], layers=LAYERS, batch_size=batch_size)
        for layer in MAPS:
            orbit = oracles.orbits(lambda z, m=model, at=layer: m.trace(z)[at], x.numpy(), "C4")
            of_layer = ds.sel(layer=layer, model="Tiny")
            want = oracles.eed(orbit, "C4", act, oracles.channelwise, [0, 2])
            np.testing.assert_allclose(of_layer.through, want, atol=1e-5)
            want = oracles.eed(orbit, "C4", act, oracles.channelwise, [0, 2], partner)
            np.testing.assert_allclose(of_layer.through_null, want, atol=1e-5)
            assert of_layer.kernel_order == 2


def test_an_action_of_ones_own_on_channels():
    """C2 swaps the two colours; the metric at the layers is the trivial action's."""
    swap = actions.Action("colours", groups.parse("C2"), lambda g, z: z.flip(-3) if g else z)
    model, x = tiny(), pictures()
    ds = measure(model, x, group=swap, metrics="latent")
    orbit = np.stack([[model.trace(z)["latent"] for z in part] for part in (x.numpy(), x.numpy()[:, ::-1])])
    want = oracles.eed(orbit, "C2", oracles.stay, oracles.latent, [0, 1])
    np.testing.assert_allclose(ds.latent.sel(layer="latent")[0], want, atol=1e-5)
    assert ds.attrs["action"] == "colours"


# ---------------------------------------------------------------- the exact facts


def symmetric(kernel):
    """A convolution kernel averaged over D4."""
    turned = [np.rot90(kernel, k, axes=(-2, -1)) for k in range(4)]
    return torch.from_numpy(np.mean([*turned, *(np.flip(t, -1) for t in turned)], axis=0))


def symmetric_conv(seed=0, **options):
    conv = nn.Conv2d(2, 4, 3, padding=1, bias=True, **options).double()
    conv.weight.data = symmetric(np.random.default_rng(seed).standard_normal((4, 2, 3, 3)))
    return conv


class Pool(nn.Module):
    def forward(self, z):
        return z.mean((-2, -1))


OUTPUT = ["softmax", "softmax_reverse", "softmax_js", "softmax_tv", "softmax_hellinger"]


@pytest.mark.parametrize("group", ["C2", "C4", "D4", "flip"])
@pytest.mark.parametrize("padding", ["zeros", "circular"])
def test_fact_2_symmetric_convolutions_are_equivariant_at_every_element_and_sample(group, padding):
    model = nn.Sequential(symmetric_conv(padding_mode=padding), nn.ReLU(), Pool(), nn.Linear(4, 3).double())
    ds = measure(model, pictures(), group=group, layers=["0", "1"])
    np.testing.assert_allclose(ds.channelwise.sel(layer=["0", "1"]), -1, atol=1e-6)
    assert (ds.channelwise_null.sel(layer="0") > -1 + 1e-4).all()


def test_fact_2_circular_convolutions_are_equivariant_to_shifts_and_others_are_not():
    conv = nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular").double()
    circular = nn.Sequential(conv, nn.ReLU(), Pool(), nn.Linear(4, 3).double())
    ds = measure(circular, pictures(side=8), group="shift4", layers=["0", "1"])
    np.testing.assert_allclose(ds.channelwise.sel(layer=["0", "1"]), -1, atol=1e-6)
    np.testing.assert_allclose(ds.latent.sel(layer="latent"), -1, atol=1e-6)
    conv.padding_mode = "zeros"
    ds = measure(circular, pictures(side=8), group="shift4", layers=["0", "1"])
    assert (ds.channelwise.sel(layer="0", element=["s1", "s2", "s3"]) > -1 + 1e-4).all()


def test_facts_1_and_4_an_invariant_feature_extractor_is_perfect_under_any_head():
    for seed in range(3):
        torch.manual_seed(seed)
        head = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        model = nn.Sequential(symmetric_conv(seed), nn.ReLU(), Pool(), head)
        ds = measure(
            model, pictures(), group="D4", metrics=["latent", "latent_euclidean", *OUTPUT], head="3.0", layers=[]
        )
        np.testing.assert_allclose(ds.latent.sel(layer="latent"), -1, atol=1e-6)
        np.testing.assert_allclose(ds.latent_euclidean.sel(layer="latent"), 0, atol=1e-12)
        for name in OUTPUT:
            np.testing.assert_allclose(ds[name], 0, atol=1e-7)
        assert (ds.prediction == ds.prediction.isel(element=0)).all()


class Lifting(nn.Module):
    """A lifting convolution to C4: map h of a field is the correlation with the kernel turned by h."""

    def __init__(self, fields=3):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(fields, 2, 3, 3, generator=torch.Generator().manual_seed(5)))

    def forward(self, x):
        turned = torch.stack([torch.rot90(self.weight, h, (-2, -1)) for h in range(4)], 1)
        return F.conv2d(x, turned.flatten(0, 1), padding=1)


class PoolAll(nn.Module):
    """Mean over space and over the group."""

    def forward(self, z):
        return z.unflatten(1, (-1, 4)).mean((2, 3, 4))


def lifted():
    torch.manual_seed(0)
    return nn.Sequential(Lifting(), nn.ReLU(), PoolAll(), nn.Linear(3, 4)).double()


def test_fact_3_a_group_convolution_is_invariant_though_channelwise_misses_it():
    metrics = ["channelwise", "channelwise_regular", "latent", "latent_euclidean", *OUTPUT]
    ds = measure(lifted(), pictures(), metrics=metrics, layers=["0", "1"])
    np.testing.assert_allclose(ds.latent.sel(layer="latent"), -1, atol=1e-6)
    np.testing.assert_allclose(ds.latent_euclidean.sel(layer="latent"), 0, atol=1e-9)
    for name in OUTPUT:
        np.testing.assert_allclose(ds[name], 0, atol=1e-7)
    turned = ds.sel(layer=["0", "1"], element=["r90", "r180", "r270"])
    assert (turned.channelwise > -0.95).all()
    np.testing.assert_allclose(ds.channelwise_regular.sel(layer=["0", "1"]), -1, atol=1e-6)


def test_channelwise_regular_is_the_loop_and_says_where_there_are_no_fields():
    ds, model, x = measure(tiny(), pictures(), metrics="channelwise_regular", layers=LAYERS), tiny(), pictures()
    orbit = oracles.orbits(lambda z: model.trace(z)["act"], x.numpy(), "C4")
    want = oracles.eed(orbit, "C4", oracles.move_fields, oracles.channelwise, [0])
    np.testing.assert_allclose(ds.channelwise_regular.sel(layer="act")[0], want, atol=1e-5)
    assert ds.channelwise_regular.sel(layer="down").isnull().all()
    assert (
        ds.channelwise_regular_nan_reason.sel(layer="down").item() == "fields of C4 need channels divisible by 4, got 6"
    )


def relative(ds, name, **at):
    estimate, null = ds[name].sel(at).mean().item(), ds[f"{name}_null"].sel(at).mean().item()
    return (estimate - ds[name].attrs["best"]) / (null - ds[name].attrs["best"])


class Corners(nn.Module):
    """Sees the four corner pixels alone: which way up an image is, not which image it is."""

    def __init__(self):
        super().__init__()
        self.see = nn.Flatten()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.see(x[:, 0][:, [0, 0, -1, -1], [0, -1, 0, -1]]) + 0.1)


def test_fact_9_relative_is_0_for_the_equivariant_and_1_for_the_blind_to_identity():
    metrics = ["latent", "latent_euclidean", *OUTPUT]
    ds = measure(lifted(), pictures(), metrics=metrics, layers=[])
    torch.manual_seed(1)
    marked = torch.rand(20, 1, 6, 6, dtype=torch.float64)
    marked[:, :, [0, 0, -1, -1], [0, -1, 0, -1]] = torch.tensor([1.0, 0.0, 0.2, 0.5], dtype=torch.float64)
    blind = measure(Corners().double(), marked, metrics=metrics, layers=[])
    for name in metrics:
        at = {} if name in OUTPUT else {"layer": "latent"}
        assert relative(ds, name, **at) == pytest.approx(0, abs=1e-4)
        assert relative(blind, name, **at) == pytest.approx(1, abs=1e-4)


# ---------------------------------------------------------------- where a value is undefined


def reason(ds, metric, layer):
    return ds[f"{metric}_nan_reason"].sel(layer=layer, model=ds.model.item()).item()


def test_maps_of_one_pixel_are_undefined_with_the_reason():
    model = nn.Sequential(nn.Conv2d(2, 3, 6), nn.Flatten(), nn.Linear(3, 4)).double()
    ds = measure(model, pictures(), layers=["0"])
    assert ds.channelwise.sel(layer="0").isnull().all()
    assert ds.channelwise_null.sel(layer="0").isnull().all()
    assert reason(ds, "channelwise", "0") == "its maps have one pixel, where a cosine only compares signs"
    assert ds.latent.sel(layer="0").notnull().all()
    assert reason(ds, "latent", "0") == ""


def test_shifts_are_undefined_where_n_does_not_divide_the_height():
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.MaxPool2d(4), Pool(), nn.Linear(3, 4)).double()
    ds = measure(model, pictures(side=8), group="shift4", layers=["0", "1"])
    assert ds.channelwise.sel(layer="0").notnull().all()
    assert ds.channelwise.sel(layer="1").isnull().all()
    assert "shifts by 1/4 of the height" in reason(ds, "channelwise", "1")
    assert "got 2" in reason(ds, "channelwise", "1")


def test_vectors_have_no_feature_map_and_say_so():
    ds = measure(tiny(), pictures(), layers=["fc"])
    assert reason(ds, "channelwise", "fc") == "its output of shape (b, 4) is no feature map (b, C, H, W)"
    assert reason(ds, "channelwise", "latent") == "it is the head's input, not a feature map"


class ChannelsLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.norm = nn.LayerNorm(3)
        self.fc = nn.Linear(3, 4)

    def forward(self, x):
        return self.fc(self.norm(self.conv(x).movedim(1, -1)).mean((1, 2)))


def test_channels_last_layers_are_not_measured_as_maps():
    ds = measure(ChannelsLast().double(), pictures(), layers=["conv", "norm"])
    for metric in ("channelwise", "latent"):
        assert ds[metric].sel(layer="norm").isnull().all()
        expected = "its maps are 6×3 for square images; channels-last layers need a wrapper (b, C, H, W)"
        assert reason(ds, metric, "norm") == expected
        assert ds[metric].sel(layer="conv").notnull().all()


def test_tokens_are_averaged_for_latent_and_are_no_map():
    tokens = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=3), nn.Flatten(2), nn.Linear(4, 4), Pool1(), nn.Linear(4, 3)
    ).double()
    x = pictures()
    ds = measure(tokens, x, layers=["2"])
    with torch.no_grad():
        orbit = oracles.orbits(lambda z: tokens[:3](torch.from_numpy(z)[None])[0].numpy().mean(0), x.numpy(), "C4")
    want = oracles.eed(orbit, "C4", oracles.stay, oracles.latent, range(4))
    np.testing.assert_allclose(ds.latent.sel(layer="2")[0], want, atol=1e-5)
    assert "is no feature map" in reason(ds, "channelwise", "2")


class Pool1(nn.Module):
    def forward(self, z):
        return z.mean(1)


def test_a_layer_whose_channels_are_all_dead_is_undefined_for_those_samples_when_they_are_skipped():
    x = pictures()
    x[2] = 0
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, bias=False), Pool(), nn.Linear(3, 4)).double()
    ds = measure(model, x, metrics=["channelwise", "channelwise_skip"], layers=["0"])
    assert ds.channelwise_skip.sel(layer="0").isnull().any("element").sum() == 1
    assert reason(ds, "channelwise_skip", "0").startswith("undefined for 1 of 7 samples")
    np.testing.assert_allclose(ds.channelwise.sel(layer="0", sample=2), -1)


class Lift(nn.Module):
    def forward(self, z):
        return z + 100


class Parts(nn.Module):
    """One channel is the image, the others are constants that no float holds exactly; `level` lifts all."""

    def __init__(self, level):
        super().__init__()
        self.level, self.map, self.fc = level, nn.Identity(), nn.Linear(3, 2)

    def forward(self, x):
        z = self.map(torch.cat([x, torch.full_like(x, 0.1), torch.full_like(x, 1e4 / 3)], 1) + self.level)
        return self.fc(z.mean((-2, -1)))


@pytest.mark.parametrize("side", [2, 7, 33])
def test_a_constant_channel_says_nothing_of_turning_once_it_is_centred(side):
    x = torch.randn(6, 1, side, side, generator=torch.Generator().manual_seed(2))
    ds = measure(Parts(0.0), x, metrics="channelwise_centred", layers=["map"], precision="float32")
    ds = ds.sel(layer="map", model="Parts")
    assert (ds.channelwise_centred < -0.9999).all()
    pairs = zip(oracles.partners(6, oracles.seeded_order(6, SEED)), x.double().numpy(), strict=True)
    want = [oracles.channelwise(oracles.centred(a), oracles.centred(x[k].double().numpy())) for k, a in pairs]
    np.testing.assert_allclose(ds.channelwise_centred_null.sel(element="e"), want, atol=1e-5)


def test_constants_alone_are_undefined_once_they_are_centred():
    z = METRICS["channelwise_centred"].features(torch.full((2, 3, 7, 7), 0.1))
    assert not z.any()
    ds = measure(
        Parts(0.0), torch.full((3, 1, 7, 7), 0.7), metrics="channelwise_centred", layers=["map"], precision="float32"
    )
    assert ds.channelwise_centred.isnull().all()
    assert (
        reason(ds, "channelwise_centred", "map")
        == "undefined for 3 of 3 samples, whose features are not finite or all zero"
    )


def test_a_high_level_is_agreement_for_channelwise_and_none_once_it_is_centred():
    z = torch.randn(50, 1, 9, 9, generator=torch.Generator().manual_seed(4))
    model = nn.Sequential(OrderedDict(map=Lift(), flat=nn.Flatten(), fc=nn.Linear(81, 2)))
    ds = measure(model, z, metrics=["channelwise", "channelwise_centred"], layers=["map"], precision="float32")
    null = ds.sel(layer="map")[["channelwise_null", "channelwise_centred_null"]].mean()
    assert null.channelwise_null < -0.999
    assert abs(null.channelwise_centred_null) < 0.05


def test_centring_hides_nothing_that_is_not_finite():
    z = torch.ones(1, 2, 3, 3)
    z[0, 1, 0, 0] = float("inf")
    centred = METRICS["channelwise_centred"].features(z)
    assert not centred[0, 0].any()
    assert centred[0, 1].isnan().any()


def test_an_output_that_is_no_class_scores_is_undefined_with_the_reason():
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 1)).double()
    ds = measure(model, pictures(), metrics=["latent", "softmax"])
    assert ds.softmax.isnull().all()
    assert ds.softmax.attrs["nan_reason"] == "the model's output of shape (b, 1) is no class scores (b, k) with k ≥ 2"
    assert "prediction" not in ds


# ---------------------------------------------------------------- where images come from


@pytest.fixture(scope="module")
def bytes_():
    return np.random.default_rng(2).integers(0, 256, (N, 6, 6, 3), dtype=np.uint8)


class Items(Dataset):
    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return Image.fromarray(self.images[i]), self.labels[i]


LABELS = [2, 0, 1, 1, 0, 2, 1]


def colour_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), Pool(), nn.Linear(4, 3)).double()


def as_hub(images, **columns):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    if "id" in columns:
        features["id"] = datasets.Value("string")
    return datasets.Dataset.from_dict(
        {"image": [Image.fromarray(x) for x in images], "label": LABELS, **columns}, features=features
    )


def test_every_source_gives_the_same(bytes_):
    whole = torch.from_numpy(bytes_).movedim(-1, 1)
    reference = measure(colour_net(), whole, labels=LABELS)
    np.testing.assert_array_equal(reference.label, LABELS)
    model, x = colour_net(), (whole.double() / 255).float().double()  # uint8 becomes float32 before the model's type
    with torch.no_grad():
        orbit = oracles.orbits(lambda z: model[:3](torch.from_numpy(z)[None])[0].numpy(), x.numpy(), "C4")
    want = oracles.eed(orbit, "C4", oracles.stay, oracles.latent, range(4))
    np.testing.assert_allclose(reference.latent.sel(layer="latent")[0], want, atol=1e-5)

    drop = ["created"]
    same = {
        "float tensor": measure(colour_net(), whole / 255, labels=LABELS),
        "torch dataset of PIL images": measure(colour_net(), Items(bytes_, LABELS)),
        "torch dataset of tensors": measure(colour_net(), TensorDataset(whole, torch.tensor(LABELS))),
        "Hugging Face dataset": measure(colour_net(), as_hub(bytes_)),
        "Hugging Face dataset as torch": measure(colour_net(), as_hub(bytes_).with_format("torch")),
        "list of dicts": measure(colour_net(), [{"img": x, "target": y} for x, y in zip(whole, LABELS, strict=True)]),
    }
    for source, ds in same.items():
        for each in (ds, reference):
            for key in drop:
                each.attrs.pop(key, None)
        try:
            xr.testing.assert_identical(ds, reference)
        except AssertionError as error:
            raise AssertionError(f"{source}: {error}") from None


def test_a_stable_id_labels_the_samples(bytes_):
    ids = [f"picture-{k}" for k in range(N)]
    ds = measure(colour_net(), as_hub(bytes_, id=ids))
    assert ds.sample.values.tolist() == ids
    plain = measure(colour_net(), as_hub(bytes_))
    np.testing.assert_array_equal(ds.latent, plain.latent)
    assert ds.sample.dtype == object, "fixed-width strings cannot be appended to"


def test_labels_may_be_words(bytes_):
    words = ["ant", "bee", "cow", "ant", "bee", "cow", "elephant"]
    ds = measure(colour_net(), torch.from_numpy(bytes_).movedim(-1, 1), labels=words)
    assert ds.label.values.tolist() == words
    assert ds.label.dtype == object


@pytest.mark.parametrize("batch_size", [1, 3, None])
@pytest.mark.parametrize("loader_batch", [2, 5, 7])
def test_a_loader_keeps_its_order_and_partners_follow_it(loader_batch, batch_size):
    x, model = pictures(), tiny()
    loader = DataLoader(TensorDataset(x, torch.tensor(LABELS)), batch_size=loader_batch)
    ds = measure(model, loader, batch_size=batch_size, metrics="latent")
    want = expected(model, x, "C4", "latent", "latent")
    np.testing.assert_allclose(ds.latent.sel(layer="latent")[0], want, atol=1e-5)
    want = expected(model, x, "C4", "latent", "latent", oracles.partners(N))
    np.testing.assert_allclose(ds.latent_null.sel(layer="latent")[0], want, atol=1e-5)
    assert ds.label.values.tolist() == LABELS
    assert ds.sample.values.tolist() == list(range(N))


def test_a_generator_longer_than_the_tables_grows_them():
    x = pictures(50)
    ds = measure(tiny(), (x[i : i + 10] for i in range(0, 50, 10)), batch_size=2, metrics="latent")
    assert ds.position.values.tolist() == list(range(50))
    whole = measure(tiny(), x, metrics="latent")
    xr.testing.assert_allclose(ds.latent.drop_vars("position"), whole.latent.drop_vars("position"))


def test_a_stream_sorted_by_label_warns_and_a_seeded_one_does_not():
    sorted_, mixed = sorted(LABELS), LABELS
    with pytest.warns(UserWarning, match="sorted by label.*pass the data set itself"):
        measure(tiny(), DataLoader(pictures(), 3), labels=sorted_)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure(tiny(), DataLoader(pictures(), 3), labels=mixed)
        measure(tiny(), pictures(), labels=sorted_)
        measure(tiny(), DataLoader(pictures(), 3), labels=sorted_, null=False)


def test_images_that_ask_for_gradients_are_measured_and_left_alone():
    x = pictures().requires_grad_()
    xr.testing.assert_equal(measure(tiny(), x).latent, measure(tiny(), pictures()).latent)
    assert x.grad is None
    assert torch.equal(x.detach(), pictures())


def test_a_model_that_works_in_place_on_its_input_harms_nothing():
    class InPlace(Tiny):
        def forward(self, x):
            return super().forward(x.mul_(2).sub_(0.3))

    class Careful(Tiny):
        def forward(self, x):
            return super().forward(x * 2 - 0.3)

    x = pictures()
    found, wanted = (measure(kind().double(), x, name="same") for kind in (InPlace, Careful))
    assert torch.equal(x, pictures())
    for name in ("channelwise", "latent", "softmax"):
        np.testing.assert_array_equal(found[name], wanted[name])
    assert found.attrs["data"] == wanted.attrs["data"]


def test_the_fingerprint_of_the_data_sees_images_and_labels_but_not_their_order_of_reading():
    def data(x=None, **options):
        return measure(tiny(), pictures() if x is None else x, metrics="latent", **options).attrs["data"]

    other = pictures()
    other[3, 1, 2, 2] += 0.01
    assert data() == data(seed=9) == data(batch_size=2) == data(DataLoader(pictures(), 3))
    assert len({data(), data(other), data(labels=LABELS), data(pictures()[:-1])}) == 4


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group": "C5"}, "C5 has r72, which is no quarter turn and would interpolate"),
        ({"group": "c4"}, "no group 'c4'; did you mean 'C4'"),
        ({"group": "C4*flip"}, "is no action of"),
        ({"metrics": ["latnet"]}, r"no metric 'latnet'; did you mean 'latent'.*\(all 15: channelwise"),
        ({"metrics": []}, r"metrics must be one or more with different names, got \[\]"),
        ({"metrics": ["latent", "latent"]}, "different names"),
        ({"layers": ["stm"]}, "no layer 'stm'; did you mean 'stem'"),
        ({"layers": "block.*"}, "no layer whose whole name matches 'block"),
        ({"head": "fcc"}, "no head 'fcc'; did you mean 'fc'"),
        ({"precision": "float23"}, "no precision 'float23'; did you mean 'float32'"),
        ({"precision": "float32"}, r"needs float32 weights, but stem.weight is torch.float64; convert the model with .to\(torch.float32\)"),
        ({"labels": [1, 2]}, "expected one label for each of 7 images, got 2"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": -3}, "batch_size"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused_saying_what_to_do(options, message):
    with pytest.raises(ValueError, match=message):
        measure(tiny(), pictures(), **options)


@pytest.mark.parametrize(
    ("images", "group", "message"),
    [
        (torch.rand(4, 2, 5, 6), "C4", "quarter turns need square images, got 5×6; centre-crop or pad first"),
        (torch.rand(4, 2, 6, 6), "shift4", "shifts by 1/4 of the height need .* got 6"),
        (torch.rand(0, 2, 6, 6), "C4", "there is no image to measure on; expected at least one"),
        ([], "C4", "there is no image to measure on; expected at least one"),
        (DataLoader([]), "C4", "there is no image to measure on; expected at least one"),
        (torch.rand(2, 6, 6), "C4", r"images must have shape \(n, C, H, W\), got \(2, 6, 6\)"),
        ([torch.rand(2, 6, 6), torch.rand(2, 8, 8)], "C4", r"images must have one size, but sample \d is 2×\d×\d and sample \d is 2×\d×\d; resize or crop first"),
        ([torch.rand(6, 6), torch.rand(6, 6)], "C4", r"\(C, H, W\), got .*6, 6"),
        (DataLoader(torch.rand(4, 6, 6), 2), "C4", r"a batch of images must be a tensor \(b, C, H, W\), got \(2, 6, 6\)"),
        ([{"picture": torch.rand(2, 6, 6)}] * 2, "C4", "expected an image under one of image, pixel_values, img, got keys picture"),
        (torch.rand(1, 2, 6, 6), "C4", "a null compares different samples, but there is only one; pass null=False"),
    ],
)  # fmt: skip
def test_bad_images_are_refused_saying_what_to_do(images, group, message):
    with pytest.raises(ValueError, match=message):
        ek.measure(Tiny(), images, group=group, progress=False)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (7, "images must be a tensor .*got int"),
        ("data/digits", "images must be a tensor .*got str"),
        (
            datasets.DatasetDict({"test": datasets.Dataset.from_dict({"label": [1]})}),
            "images must be .*got DatasetDict",
        ),
    ],
)
def test_what_is_no_images_is_refused(images, message):
    with pytest.raises(TypeError, match=message):
        ek.measure(Tiny(), images, group="C4", progress=False)


def test_more_or_fewer_labels_than_a_stream_has_images_are_refused():
    with pytest.raises(ValueError, match="got 3 labels, but more images"):
        measure(tiny(), DataLoader(pictures(), 2), labels=[1, 2, 3])
    with pytest.raises(ValueError, match="expected one label for each of 7 images, got 9"):
        measure(tiny(), DataLoader(pictures(), 2), labels=range(9))


def test_one_sample_is_measured_without_a_null():
    ds = measure(tiny(), pictures(1), null=False)
    np.testing.assert_allclose(
        ds.latent.sel(layer="latent")[0], expected(tiny(), pictures(1), "C4", "latent", "latent"), atol=1e-5
    )
    assert not [name for name in ds.data_vars if name.endswith("_null")]
    assert ds.latent_pair_cosine.isnull().all()


def test_without_a_null_the_estimates_are_the_same():
    xr.testing.assert_equal(measure(tiny(), pictures(), null=False).latent, measure(tiny(), pictures()).latent)


class Breaks(Tiny):
    """NaN after `down`, for the image with a mark in one corner, once it is turned by 180°."""

    def forward(self, x):
        z = self.down(self.act(self.stem(x)))
        z = torch.where(x[:, :1, -1:, -1:] > 90, z * math.nan, z)
        return self.fc(self.act(z).mean((-2, -1)))


def test_an_output_that_is_not_finite_names_sample_element_and_layer():
    x = pictures()
    x[4, 0, 0, 0] = 99
    model = Breaks().double()
    for batch_size in (1, 3, None):
        with pytest.raises(ValueError, match="the model's output is not finite for sample 4 under r180") as error:
            measure(model, x, layers=["stem", "act", "down"], batch_size=batch_size)
        assert "the first layer that shows it is 'act#2'" in str(error.value)


def test_the_mode_is_restored_also_after_a_failure():
    model = tiny().train()
    model.down.eval()
    modes = [module.training for module in model.modules()]
    measure(model, pictures())
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(ValueError, match="no layer"):
        measure(model, pictures(), layers=["nowhere"])
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_network_in_train_mode_is_measured_in_eval_mode_and_keeps_its_statistics():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), Pool(), nn.Linear(3, 2)).double()
    model(pictures() * 3)
    before = copy.deepcopy(model.state_dict())
    training = measure(model.train(), pictures())
    assert model.training
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
    xr.testing.assert_equal(training.latent, measure(model.eval(), pictures()).latent)


def test_a_layer_that_runs_for_some_batches_only_gives_no_number_of_another_batch():
    class Early(Tiny):
        """Skips `down` for dark batches."""

        def forward(self, x):
            z = self.act(self.stem(x))
            if x.abs().mean() > 0.2:
                z = self.act(self.down(z))
            return self.fc(z[:, :6].mean((-2, -1)))

    x = pictures()
    dark = oracles.seeded_order(N, SEED)[3]
    x[dark] *= 0.01
    ds = measure(Early().double(), x, layers=["stem", "down"], batch_size=1)
    assert ds.channelwise.sel(layer="down", sample=dark).isnull().all()
    assert ds.channelwise_null.sel(layer="down", sample=dark).isnull().all()
    assert ds.channelwise.sel(layer="stem").notnull().all()
    assert reason(ds, "channelwise", "down") != ""


def test_a_head_that_runs_twice_is_measured_at_one_of_its_calls():
    class Twice(Tiny):
        def forward(self, x):
            z = self.down(self.act(self.stem(x))).mean((-2, -1))
            self.fc(z)
            return self.fc(z.flip(-1) ** 2)

    model, x = Twice().double(), pictures()
    ds = measure(model, x, layers=[], metrics="latent")
    candidates = []
    for last in (np.asarray, lambda v: v[::-1] ** 2):
        orbit = oracles.orbits(lambda z, f=last: f(pool(model.trace(z)["down"])), x.numpy(), "C4")
        candidates.append(oracles.eed(orbit, "C4", oracles.stay, oracles.latent, range(4)))
    found = ds.latent.sel(layer="latent").values[0]
    assert any(np.allclose(found, want, atol=1e-5) for want in candidates)


# ---------------------------------------------------------------- provenance and repeatability


def test_the_same_seed_gives_the_identical_dataset_twice():
    one, two = (measure(tiny(), pictures(), labels=LABELS, batch_size=3) for _ in range(2))
    assert one.attrs.pop("created")
    two.attrs.pop("created")
    xr.testing.assert_identical(one, two)


def test_a_changed_weight_or_buffer_changes_the_fingerprint_of_the_model():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), Pool(), nn.Linear(3, 2))
    same = copy.deepcopy(model)
    assert fingerprint(model) == fingerprint(same)
    before = measure(model.double(), pictures()).weights.item()
    assert before == measure(model, pictures()[:3], group="flip").weights.item()
    with torch.no_grad():
        model[0].weight[1, 1, 1, 1] += 1e-12
    after = measure(model, pictures()).weights.item()
    model[1].running_mean[0] += 1
    assert len({before, after, measure(model, pictures()).weights.item()}) == 3


def test_the_dataset_says_where_it_comes_from_and_what_its_values_are():
    ds = measure(tiny(), pictures(), name="mine", labels=LABELS, layers=LAYERS)
    assert ds.sizes == {"model": 1, "layer": 5, "element": 4, "sample": N}
    assert ds.model.item() == "mine"
    assert ds.layer.values.tolist() == [*MAPS, "latent"]
    assert ds.element.values.tolist() == ["e", "r90", "r180", "r270"]
    assert ds.angle.values.tolist() == [0, 90, 180, 270]
    assert ds.channels[0].values.tolist() == [8, 8, 6, 6, 6]
    assert ds.height[0].values.tolist() == [6, 6, 3, 3, 0]
    assert ds.kernel_order[0].values.tolist() == [1, 1, 1, 1, 0]
    assert ds.layer_type[0].values.tolist() == ["Conv2d", "ReLU", "Conv2d", "ReLU", "Linear"]
    assert ds.attrs["group"] == "C4"
    assert (ds.attrs["seed"], ds.attrs["precision"], ds.attrs["device"]) == (SEED, "float64", "cpu")
    assert (ds.channelwise.attrs["best"], ds.softmax.attrs["best"], ds.softmax.attrs["units"]) == (-1, 0, "nat")
    assert {ds[name].dtype for name in ("channelwise", "latent", "softmax", "latent_null")} == {np.dtype("float32")}
    assert ds.softmax.dims == ("model", "element", "sample")


def test_the_kernel_order_is_that_of_the_layer_s_own_resolution():
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.AvgPool2d((1, 6)), nn.Flatten(), nn.Linear(18, 4)).double()
    ds = measure(model, pictures(), group="flip", layers=["0", "1"], metrics=["latent"])
    assert ds.sizes["layer"] == 3
    ds = measure(nn.Sequential(*model), pictures(), group="flip", layers=["0"], metrics=["channelwise"])
    assert ds.kernel_order.sel(layer="0").item() == 1


def test_a_metric_of_ones_own_is_one_more_value():
    mine = replace(METRICS["latent"], name="mine", distance=distances.euclidean)
    ds = measure(tiny(), pictures(), metrics=[mine, "latent_euclidean"])
    np.testing.assert_array_equal(ds.mine, ds.latent_euclidean)


# ---------------------------------------------------------------- precision, devices, memory


def test_float32_is_near_float64():
    ds = measure(Tiny(), pictures().float(), precision="float32", layers=LAYERS, metrics=list(FAMILY))
    wanted = measure(tiny(), pictures(), layers=LAYERS, metrics=list(FAMILY))
    for name in FAMILY:
        np.testing.assert_allclose(ds[name], wanted[name], atol=2e-5, rtol=1e-3)


def test_bfloat16_is_near_float32():
    ds = measure(Tiny(), pictures().float(), precision="bfloat16", layers=LAYERS)
    wanted = measure(tiny(), pictures(), layers=LAYERS)
    for name in ("channelwise", "latent", "softmax"):
        np.testing.assert_allclose(ds[name], wanted[name], atol=0.1)
        assert abs(ds[name] - wanted[name]).mean() < 0.005
    assert not np.array_equal(ds.latent, wanted.latent)


def test_in_bfloat16_the_distances_are_still_taken_in_float32():
    ds = measure(Tiny(), pictures().float(), precision="bfloat16", layers=LAYERS)
    np.testing.assert_allclose(ds.channelwise.sel(layer=MAPS, element="e"), -1, atol=1e-6)


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize(("precision", "atol", "on_average"), [("float32", 1e-4, 1e-5), ("bfloat16", 0.1, 0.01)])
def test_cuda_is_near_the_cpu(precision, atol, on_average):
    options = {"layers": LAYERS, "metrics": list(FAMILY), "batch_size": 3}
    wanted = measure(tiny(), pictures(), **options)
    model = Tiny()
    found = measure(model, pictures().float(), precision=precision, device="auto", **options)
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert found.attrs["device"] == torch.cuda.get_device_name()
    for name in (*FAMILY, *(f"{name}_null" for name in FAMILY)):
        np.testing.assert_allclose(found[name], wanted[name], atol=atol, rtol=10 * atol, err_msg=name)
        assert abs(found[name] - wanted[name]).mean() < on_average, name


@pytest.mark.gpu
@cuda
def test_images_and_model_on_cuda_are_taken_and_left_there():
    model, x = Tiny().cuda(), pictures().float().cuda()
    found = measure(model, x, precision="float32", device="cuda")
    assert {p.device.type for p in model.parameters()} == {"cuda"}
    wanted = measure(tiny(), pictures())
    np.testing.assert_allclose(found.latent, wanted.latent, atol=1e-5)
    assert found.attrs["data"] == measure(Tiny(), pictures().float(), precision="float32").attrs["data"]


@pytest.mark.gpu
@cuda
def test_cuda_gives_the_identical_dataset_twice():
    one, two = (measure(Tiny(), pictures().float(), precision="float32", device="cuda") for _ in range(2))
    for ds in (one, two):
        ds.attrs.pop("created")
    xr.testing.assert_identical(one, two)


PEAK = """
import resource, torch, torchvision, eedkit as ek

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

class Noise(torch.utils.data.Dataset):
    read, after_64 = 0, None
    def __len__(self):
        return 192
    def __getitem__(self, i):
        Noise.read += 1
        if Noise.read == 65 + 8:
            Noise.after_64 = peak()
        return torch.rand(3, 224, 224, generator=torch.Generator().manual_seed(i)), i % 10

torch.manual_seed(0)
model = torchvision.models.resnet18()
ds = ek.measure(model, Noise(), group="flip", layers="all", batch_size=8, progress=False, device="cpu")
assert ds.sizes["sample"] == 192 and ds.sizes["layer"] > 60 and ds.latent.notnull().all()
print(Noise.after_64, peak())
"""


@pytest.mark.slow
def test_memory_stays_flat_from_64_to_192_images_on_resnet18_at_224(tmp_path):
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    after_64, after_192 = map(int, done.stdout.split())
    assert after_192 < 1.1 * after_64, (after_64, after_192)


def test_an_array_and_an_iterable_data_set_are_read_as_what_they_hold():
    class Numbers(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from images.split(3)

    torch.manual_seed(0)
    images = torch.rand(7, 2, 6, 6)
    tensor, array, stream = (
        ek.measure(Tiny(), source, group="C4", null=False, progress=False)
        for source in (images, images.numpy(), Numbers())
    )
    xr.testing.assert_equal(array, tensor)
    xr.testing.assert_allclose(stream.drop_vars("position"), tensor.drop_vars("position"), atol=1e-6)


def test_repeated_ids_are_refused_before_the_model_has_seen_them_all():
    items = [{"image": torch.rand(2, 6, 6), "id": name} for name in "abcad"]
    with pytest.raises(ValueError, match="id 'a' stands for more than one sample"):
        ek.measure(Tiny(), items, group="C4", progress=False)


def test_a_broken_regular_expression_is_a_clear_error():
    with pytest.raises(ValueError, match=r"layers='\(' is no regular expression"):
        ek.measure(Tiny(), torch.rand(3, 2, 6, 6), group="C4", layers="(", progress=False)


def test_a_model_needs_a_head_only_where_the_latent_vector_is_asked_for():
    torch.manual_seed(0)
    extractor, images = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU()), torch.rand(3, 2, 6, 6)
    ds = ek.measure(extractor, images, group="C4", metrics=["channelwise"], progress=False)
    assert ds.layer.values.tolist() == ["0", "1"]
    with pytest.raises(ValueError, match="found no head"):
        ek.measure(extractor, images, group="C4", metrics=["channelwise", "latent"], progress=False)


def test_the_heads_input_lies_deeper_than_the_layer_before_it():
    ds = ek.measure(Tiny(), torch.rand(3, 2, 6, 6), group="C4", progress=False)
    depth = ds.depth.isel(model=0).to_series()
    assert depth["act#2"] < depth["latent"] <= 1


def test_whole_numbers_other_than_bytes_are_refused():
    with pytest.raises(ValueError, match=r"floats, or uint8 to be scaled to \[0, 1\], got torch.int64"):
        ek.measure(Tiny(), torch.randint(0, 255, (3, 2, 6, 6)), group="C4", progress=False)


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2], [2, 2, 0, 0, 1, 1]])
def test_a_stream_that_comes_class_by_class_is_warned_of_in_any_order_of_classes(labels):
    loader = DataLoader(TensorDataset(torch.rand(6, 2, 6, 6), torch.tensor(labels)), batch_size=2)
    with pytest.warns(UserWarning, match="sorted by label"):
        ek.measure(Tiny(), loader, group="C4", progress=False)


def test_what_is_no_model_or_no_metric_is_refused_by_name():
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got Tensor"):
        ek.measure(torch.rand(3, 2, 6, 6), Tiny(), group="C4")
    with pytest.raises(TypeError, match="a metric is a name"):
        ek.measure(Tiny(), torch.rand(3, 2, 6, 6), group="C4", metrics=[5])


def test_position_is_the_place_in_the_seeded_stream():
    ds = ek.measure(Tiny(), torch.rand(9, 2, 6, 6), group="C4", seed=5, progress=False)
    order = np.random.default_rng(5).permutation(9)
    assert ds.position.values[order].tolist() == list(range(9))
