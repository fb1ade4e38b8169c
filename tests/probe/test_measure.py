"""measure(): metrics and nulls against the loops of oracles.py, the exact facts, edges of numbers, and bad input."""

import copy
import functools
import math
import subprocess
import sys

import numpy as np
import oracles
import pytest
import torch
import xarray as xr
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

import eedkit as ek
from eedkit.probe import accumulate
from eedkit.probe.measure import Options, default_batch_size, fingerprint
from eedkit.probe.metrics import METRICS, Metric
from eedkit.theory import actions, distances, groups
from eedkit.theory import deviation as deviations

N, SEED = 9, 3


class Tiny(nn.Module):
    """Layers stem (8×6×6, after act one channel always dead), act, down (6×3×3), act#2, fc."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(2, 8, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.down = nn.Conv2d(8, 6, 2, stride=2)
        self.fc = nn.Linear(6, 4)
        with torch.no_grad():
            self.stem.weight.mul_(3)
            self.stem.weight[2], self.stem.bias[2] = 0, -1
            self.fc.weight.mul_(4)

    def forward(self, x):
        z = self.act(self.stem(x))
        z = self.act(self.down(z))
        return self.fc(z.mean((-2, -1)))

    def trace(self, x):
        """What every layer puts out for one image (C, H, W), by functions and not by modules."""
        x = torch.from_numpy(np.ascontiguousarray(x))[None].to(self.stem.weight)
        with torch.no_grad():
            stem = F.conv2d(x, self.stem.weight, self.stem.bias, padding=1)
            down = F.conv2d(stem.clamp_min(0), self.down.weight, self.down.bias, stride=2)
            latent = down.clamp_min(0).mean((-2, -1))
            scores = latent @ self.fc.weight.T + self.fc.bias
        found = {"stem": stem, "act": stem.clamp_min(0), "down": down, "act#2": down.clamp_min(0)}
        return {key: z[0].double().numpy() for key, z in {**found, "latent": latent, "scores": scores}.items()}


MAPS = ["stem", "act", "down", "act#2"]


LAYERS = ["stem", "act", "down"]


def pictures(n=N, side=6):
    return torch.randn(n, 2, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


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
    "channelwise_rms": (lambda z: z, "move", oracles.rms),
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


OUTPUT = [name for name in FAMILY if name.startswith("softmax")]
OF_OTHER_OUTPUTS = [name for name, metric in METRICS.items() if metric.where in ("dense", "raw")]


@functools.cache
def orbit_of(group, layer):
    """f(gx) of the pictures, (g, n, *z)."""
    model = Tiny().double()
    return oracles.orbits(lambda x: model.trace(x)[layer], pictures().numpy(), group)


def expected(group, name, layer, of_chains=None):
    """(g, n) by equation 4, of the orbit or, with chains, of the shuffled orbit."""
    features, action, m = FAMILY[name]
    act = {"move": oracles.move, "stay": oracles.stay}[action]
    orbit = np.array([[features(z) for z in of_element] for of_element in orbit_of(group, layer)])
    kernel = oracles.kernel(group, act, orbit.shape[2:]) if action == "move" else range(len(orbit))
    if of_chains is not None:
        orbit = oracles.shuffled(orbit, of_chains)
    return oracles.eed(orbit, group, act, m, kernel)


def chains_of(group, n=N, seed=SEED):
    return oracles.chains(n, len(oracles.ELEMENTS[group]), oracles.seeded_order(n, seed))


@pytest.fixture(params=["fused", "eager"])
def way(request, monkeypatch):
    """Whether sums of float32 maps come from the compiled loop or from tensor operations."""
    if request.param == "fused":
        pytest.importorskip("numba")
    monkeypatch.setattr(accumulate, "WORTH_COMPILING", 0 if request.param == "fused" else math.inf)
    accumulate._fused_loop.cache_clear()
    yield request.param
    # it was the way that was asked for
    assert accumulate.loop_is_loaded() == (request.param == "fused")


def test_every_metric_has_an_oracle():
    elsewhere = {"channelwise_regular", "channelwise_matched"}  # below, and in test_matching.py
    elsewhere |= {"channelwise_field", *OF_OTHER_OUTPUTS}  # in test_fields.py and test_outputs.py
    assert set(FAMILY) | elsewhere == set(METRICS)


def assert_every_value_is_equation_4(group, precision, atol):
    """All metrics and nulls at all layers, for batches of one, of five, and as they are chosen."""
    dtype = getattr(torch, precision)
    options = {"layers": LAYERS, "metrics": list(FAMILY), "precision": precision}
    for batch_size in (1, 5, None):
        model = Tiny().to(dtype)
        ds = measure(model, pictures().to(dtype), group=group, batch_size=batch_size, **options).sel(model="Tiny")
        for name in FAMILY:
            layers = MAPS if name.startswith("channel") else [*MAPS, "latent"]
            for layer in ["scores"] if name in OUTPUT else layers:
                for variable, of_chains in ((name, None), (f"{name}_null", chains_of(group))):
                    found = ds[variable] if name in OUTPUT else ds[variable].sel(layer=layer)
                    if group == "shift2" and layer in ("down", "act#2") and name.startswith("channel"):
                        assert found.isnull().all()
                        continue
                    assert found.dims == ("element", "sample")
                    wanted = expected(group, name, layer, of_chains)
                    np.testing.assert_allclose(found, wanted, atol=atol, rtol=atol, err_msg=f"{variable} {layer}")


@pytest.mark.parametrize("group", ["C2", "C4", "D4", "flip", "shift2"])
def test_every_metric_and_null_is_equation_4_in_float64(group):
    assert_every_value_is_equation_4(group, "float64", atol=1e-6)


@pytest.mark.parametrize("group", ["C2", "C4", "D4", "flip", "shift2"])
@pytest.mark.usefixtures("way")
def test_every_metric_and_null_is_equation_4_in_float32(group):
    assert_every_value_is_equation_4(group, "float32", atol=2e-5)


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("group", ["C2", "C4", "flip"])
def test_regular_fields_are_equation_4(group, precision):
    dtype = getattr(torch, precision)
    options = {"metrics": "channelwise_regular", "layers": LAYERS, "precision": precision, "batch_size": 4}
    ds = measure(Tiny().to(dtype), pictures().to(dtype), group=group, **options).sel(model="Tiny")
    orbit = orbit_of(group, "act")
    for variable, compared in (("", orbit), ("_null", oracles.shuffled(orbit, chains_of(group)))):
        wanted = oracles.eed(compared, group, oracles.move_fields, oracles.channelwise, [0])
        np.testing.assert_allclose(ds[f"channelwise_regular{variable}"].sel(layer="act"), wanted, atol=2e-5)
    if group == "C4":
        assert reason(ds, "channelwise_regular", "down") == "fields of C4 need channels divisible by 4, got 6"


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("place", [accumulate, deviations])
@pytest.mark.parametrize("name", ["f_hat", "integrand"])
def test_the_pass_runs_the_functions_with_the_equations(monkeypatch, place, name, precision):
    def broken(*_, **__):
        raise RuntimeError("it runs")

    # f̂ and the integrand of float64 maps and of vectors run in `deviation`, those of sums where the sums are
    if precision == "float64" and place is accumulate:
        place = deviations
    monkeypatch.setattr(place, name, broken)
    with pytest.raises(RuntimeError, match="it runs"):
        measure(Tiny().to(getattr(torch, precision)), pictures().to(getattr(torch, precision)), precision=precision)


@pytest.mark.parametrize("metric", [*FAMILY, "channelwise_regular", "channelwise_matched"])
@pytest.mark.parametrize("name", ["f_hat", "integrand"])
def test_no_metric_goes_past_the_equations(monkeypatch, metric, name):
    def broken(*_, **__):
        raise RuntimeError("it runs")

    for place in (accumulate, deviations):
        monkeypatch.setattr(place, name, broken)
    with pytest.raises(RuntimeError, match="it runs"):
        measure(Tiny(), pictures().float(), precision="float32", metrics=[metric])


def test_estimates_do_not_depend_on_the_order_of_the_data():
    order = [4, 0, 6, 2, 8, 5, 1, 3, 7]
    options = {"layers": LAYERS, "metrics": list(FAMILY), "batch_size": 4}
    straight = measure(Tiny().double(), pictures(), **options)
    other = measure(Tiny().double(), pictures()[order], **options)
    for name in (*FAMILY, "prediction", "confidence"):
        np.testing.assert_allclose(straight[name].values[..., order], other[name].values, atol=1e-6)
    np.testing.assert_allclose(straight.latent_pair_cosine, other.latent_pair_cosine, atol=1e-12)


def test_the_seed_makes_the_chains_and_nothing_else():
    one, two = (measure(Tiny().double(), pictures(), seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(one.latent, two.latent)
    assert one.chain.values.tolist() != two.chain.values.tolist()
    for seed, ds in enumerate((one, two)):
        wanted = expected("C4", "latent", "latent", chains_of("C4", seed=seed))
        np.testing.assert_allclose(ds.latent_null.sel(layer="latent", model="Tiny"), wanted, atol=1e-6)
        for number, chain in enumerate(chains_of("C4", seed=seed)):
            assert sorted(np.flatnonzero(ds.chain == number).tolist()) == sorted(chain)


@pytest.mark.parametrize("batch_size", [1, 4, 9, None])
def test_a_loader_keeps_its_order_and_chains_follow_it(batch_size):
    loader = DataLoader(TensorDataset(pictures(), torch.tensor([2, 0, 1, 1, 0, 2, 1, 0, 2])), batch_size=2)
    ds = measure(Tiny().double(), loader, batch_size=batch_size, metrics=["channelwise", "latent"]).sel(model="Tiny")
    of_chains = oracles.chains(N, 4)
    wanted = expected("C4", "latent", "latent", of_chains)
    np.testing.assert_allclose(ds.latent_null.sel(layer="latent"), wanted, atol=1e-6)
    wanted = expected("C4", "channelwise", "act", of_chains)
    np.testing.assert_allclose(ds.channelwise_null.sel(layer="act"), wanted, atol=1e-6)
    assert ds.chain.values.tolist() == [0] * 4 + [1] * 5
    assert ds.label.values.tolist() == [2, 0, 1, 1, 0, 2, 1, 0, 2]


def test_a_stream_longer_than_its_arrays_grows_them():
    images = pictures(50)
    stream = (images[i : i + 10] for i in range(0, 50, 10))
    ds = measure(Tiny().double(), stream, batch_size=2, metrics=["latent"])
    whole = measure(Tiny().double(), images, metrics=["latent"])
    assert ds.sample.values.tolist() == list(range(50))
    np.testing.assert_allclose(ds.latent, whole.latent, atol=1e-6)


WITHIN = ["channelwise", "channelwise_centred", "latent", "latent_euclidean", "softmax"]


@pytest.mark.parametrize("labels", [[0, 1] * 8, ["b", "a", "b", "b"] * 4])
@pytest.mark.parametrize("batch_size", [4, 7, None])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_null_within_classes_is_that_of_chains_of_one_class(labels, batch_size, precision):
    model, images = Tiny().double(), pictures(16)
    if batch_size is None:
        labels = np.array(labels)
    options = {"null": "within-class", "labels": labels, "metrics": WITHIN, "batch_size": batch_size, "layers": ["act"]}
    dtype = getattr(torch, precision)
    ds = measure(Tiny().to(dtype), images.to(dtype), precision=precision, **options).sel(model="Tiny")
    reading = oracles.seeded_order(16, SEED)
    of_chains = []
    for name in dict.fromkeys(labels):
        members = [i for i in reading if labels[i] == name]
        of_chains += [[members[place] for place in chain] for chain in oracles.chains(len(members), 4)]
    for name in WITHIN:
        features, action, m = FAMILY[name]
        layer = "scores" if name in OUTPUT else "act"
        orbit = oracles.orbits(lambda x, of=features, at=layer: of(model.trace(x)[at]), images.numpy(), "C4")
        act, kernel = (oracles.move, [0]) if action == "move" else (oracles.stay, range(4))
        wanted = oracles.eed(oracles.shuffled(orbit, of_chains), "C4", act, m, kernel)
        found = ds[f"{name}_null"] if layer == "scores" else ds[f"{name}_null"].sel(layer=layer)
        np.testing.assert_allclose(found, wanted, atol=2e-5, rtol=2e-5, err_msg=name)
    assert ds.attrs["null"] == "within-class"
    for number in range(len(of_chains)):
        assert len(set(ds.label.values[ds.chain == number].tolist())) == 1


def test_matching_and_a_null_within_classes_exclude_each_other():
    with pytest.raises(ValueError, match="ask for one of both"):
        measure(Tiny().double(), pictures(16), null="within-class", labels=[0, 1] * 8, metrics=["channelwise_matched"])


def test_without_a_null_the_estimates_are_the_same():
    without, beside = (measure(Tiny().double(), pictures(), null=null) for null in (False, True))
    for name in ("channelwise", "latent", "softmax", "latent_pair_cosine"):
        np.testing.assert_array_equal(without[name], beside[name])
    assert not [name for name in without.data_vars if name.endswith("_null")]


def test_one_image_is_measured_without_a_null():
    ds = measure(Tiny().double(), pictures()[:1], null=False)
    np.testing.assert_allclose(ds.latent.sel(layer="latent")[0], expected("C4", "latent", "latent")[:, :1], atol=1e-6)
    assert ds.latent_pair_cosine.isnull().all()


@pytest.mark.parametrize(("group", "n", "needs"), [("D4", 5, 8), ("C4", 3, 4), ("flip", 1, 2)])
@pytest.mark.parametrize("as_loader", [False, True])
def test_too_few_images_for_a_null_are_refused(group, n, needs, as_loader):
    images = DataLoader(pictures(n)) if as_loader else pictures(n)
    with pytest.raises(ValueError, match=f"needs {needs} images, got {n}; pass more, or null=False"):
        measure(Tiny().double(), images, group=group)


def test_a_stream_sorted_by_label_warns():
    with pytest.warns(UserWarning, match="sorted by label.*pass the data set itself"):
        measure(Tiny().double(), DataLoader(pictures(), 3), labels=[0, 0, 0, 1, 1, 1, 2, 2, 2])


@pytest.mark.parametrize(
    ("images", "options"),
    [
        (DataLoader(pictures(), 3), {"labels": [0, 1, 2] * 3}),
        (pictures(), {"labels": [0, 0, 0, 1, 1, 1, 2, 2, 2]}),
        (DataLoader(pictures(), 3), {"labels": [0, 0, 0, 1, 1, 1, 2, 2, 2], "null": False}),
        (DataLoader(pictures(), 3), {"labels": [1] * 9}),
    ],
)
def test_other_streams_do_not_warn(images, options, recwarn):
    measure(Tiny().double(), images, **options)
    assert not recwarn.list


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_m_dead_channels_lengths_and_predictions(precision):
    dtype = getattr(torch, precision)
    metrics = ["channelwise", "latent", "latent_unit", "latent_euclidean", "softmax"]
    options = {"layers": LAYERS, "batch_size": 4, "precision": precision, "metrics": metrics}
    ds, model = measure(Tiny().to(dtype), pictures().to(dtype), **options).sel(model="Tiny"), Tiny().double()
    for layer in (*MAPS, "latent"):
        vectors = [pool(model.trace(image)[layer]) for image in pictures().numpy()]
        found = ds.sel(layer=layer)
        for name in ("latent", "latent_unit"):
            assert found[f"{name}_pair_cosine"].item() == pytest.approx(oracles.mean_pair_cosine(vectors), abs=1e-6)
        np.testing.assert_allclose(found.latent_euclidean_norm, [math.hypot(*v) for v in vectors], rtol=1e-5)
        if layer == "latent":
            assert found.dead_fraction.isnull()
            continue
        zero = (orbit_of("C4", layer) == 0).all((-2, -1))
        assert found.dead_fraction.item() == pytest.approx((zero & zero[:1]).mean(), abs=1e-12)
    assert ds.dead_fraction.sel(layer="act").item() >= 1 / 8
    assert not {"latent_norm", "latent_euclidean_pair_cosine", "softmax_norm"} & set(ds.variables)
    p = np.array([[oracles.softmax(z) for z in of_element] for of_element in orbit_of("C4", "scores")])
    np.testing.assert_array_equal(ds.prediction, p.argmax(-1))
    np.testing.assert_allclose(ds.confidence, p.max(-1), atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 5, None])
def test_a_proper_kernel_is_averaged_over(batch_size):
    """C4 turns the images and acts on the maps through its quotient C2."""
    through_c2 = actions.quotient("C4", actions.spatial("C2"), [0, 1, 0, 1])
    metric = Metric("through", "maps", distances.channelwise_negative_cosine, action=lambda _: through_c2)

    def act(group, element, z):
        return oracles.move("C4", {"r90": "r180", "r270": "r180"}.get(element, "e"), z)

    ds = measure(
        Tiny(), pictures().float(), metrics=[metric], layers=LAYERS, batch_size=batch_size, precision="float32"
    )
    for layer in MAPS:
        at_layer = ds.sel(layer=layer, model="Tiny")
        orbit = orbit_of("C4", layer)
        wanted = oracles.eed(orbit, "C4", act, oracles.channelwise, [0, 2])
        np.testing.assert_allclose(at_layer.through, wanted, atol=2e-5)
        wanted = oracles.eed(oracles.shuffled(orbit, chains_of("C4")), "C4", act, oracles.channelwise, [0, 2])
        np.testing.assert_allclose(at_layer.through_null, wanted, atol=2e-5)
        assert at_layer.kernel_order == 2


def test_a_custom_action_moves_colours():
    """C2 swaps the two colours; at the layers nothing moves."""
    swap = actions.Action("colours", groups.parse("C2"), lambda g, z: z, lambda c: torch.tensor([[0, 1], [1, 0]]))
    x, model = pictures().numpy(), Tiny().double()
    ds = measure(Tiny().double(), pictures(), group=swap, metrics=["latent"])
    orbit = np.array([[model.trace(z)["latent"] for z in part] for part in (x, x[:, ::-1])])
    wanted = oracles.eed(orbit, "C2", oracles.stay, oracles.latent, [0, 1])
    np.testing.assert_allclose(ds.latent.sel(layer="latent")[0], wanted, atol=1e-6)
    assert ds.attrs["action"] == "colours"


def l1(a, b):
    return (a - b).abs().sum(-1)


def l1_by_numpy(a, b):
    return float(np.abs(a - b).sum())


@pytest.mark.parametrize(("scale", "normalised"), [(7.0, False), ("norm", False), ("norm", True), (7.0, True)])
def test_a_custom_metric_of_vectors(scale, normalised):
    custom = distances.Distance("l1", l1, 0.0, math.inf, scale=scale, order=1)
    metric = Metric("mine", "vectors", custom, features=lambda z: z.amax(1), normalised=normalised)
    ds = measure(Tiny().double(), pictures(), metrics=[metric], layers=["act"], batch_size=4).sel(
        model="Tiny", layer="act"
    )
    orbit = orbit_of("C4", "act").max((-2, -1))
    wanted = oracles.eed(orbit, "C4", oracles.stay, l1_by_numpy, range(4))
    np.testing.assert_allclose(ds.mine, wanted, rtol=1e-5)
    mixed = oracles.shuffled(orbit, chains_of("C4"))
    wanted = oracles.eed(mixed, "C4", oracles.stay, l1_by_numpy, range(4))
    np.testing.assert_allclose(ds.mine_null, wanted, rtol=1e-5)
    assert ds.mine.attrs["scale"] == ("mine_norm" if scale == "norm" else 7.0)
    assert ("mine_norm" in ds) == (scale == "norm")
    assert ("mine_pair_cosine" in ds) == normalised
    if scale == "norm":
        np.testing.assert_allclose(ds.mine_norm, np.linalg.norm(orbit[0], axis=-1), rtol=1e-5)
    if normalised:
        assert ds.mine_pair_cosine.item() == pytest.approx(oracles.mean_pair_cosine(list(orbit[0])), abs=1e-9)


@pytest.mark.parametrize("scale", [7.0, "norm"])
def test_a_custom_metric_of_the_output(scale):
    metric = Metric("mine", "output", distances.Distance("l1", l1, 0.0, math.inf, scale=scale, order=1))
    ds = measure(Tiny().double(), pictures(), metrics=[metric], layers=[]).sel(model="Tiny")
    orbit = orbit_of("C4", "scores")
    wanted = oracles.eed(orbit, "C4", oracles.stay, l1_by_numpy, range(4))
    np.testing.assert_allclose(ds.mine, wanted, rtol=1e-5)
    if scale == "norm":
        np.testing.assert_allclose(ds.mine_norm, np.linalg.norm(orbit[0], axis=-1), rtol=1e-5)
        assert ds.mine_norm.dims == ("sample",)


def test_custom_metrics_that_make_no_sense_are_refused():
    cosine = distances.negative_cosine
    with pytest.raises(ValueError, match=r"mine: where must be one of maps, vectors, .*, got 'layers'"):
        Metric("mine", "layers", cosine)
    with pytest.raises(ValueError, match="mine: only vectors have a mean cosine M"):
        Metric("mine", "output", cosine, normalised=True)
    no_sum = Metric("mine", "vectors", distances.Distance("no sum", lambda a, b: (a - b).abs(), 0.0, 1.0))
    with pytest.raises(
        TypeError, match=r"mine: the distance no sum must give one value for each pair .* got \(4, 9, 8\)"
    ):
        measure(Tiny().double(), pictures(), metrics=[no_sum], layers=["act"])


def test_a_custom_metric_summarises_by_its_own_scale():
    custom = distances.Distance("mine", l1, 0.0, math.inf, scale="norm", order=1)
    table = ek.summarise(
        measure(Tiny().double(), pictures(), metrics=[Metric("mine", "vectors", custom)]), full=True, resamples=0
    )
    at_latent = table[table.layer == "latent"].iloc[0]
    orbit = orbit_of("C4", "latent")
    assert at_latent.estimate == pytest.approx(np.abs(orbit - orbit.mean(0)).sum(-1).mean(), rel=1e-5)
    assert at_latent.scale == pytest.approx(np.linalg.norm(orbit[0], axis=-1).mean(), rel=1e-5)


def reason(ds, metric, layer):
    return ds[f"{metric}_nan_reason"].sel(layer=layer).item()


def symmetric_conv(seed=0, **options):
    """A convolution whose kernel is averaged over D4."""
    conv = nn.Conv2d(2, 4, 3, padding=1, **options).double()
    kernel = np.random.default_rng(seed).standard_normal((4, 2, 3, 3))
    turned = [np.rot90(kernel, k, axes=(-2, -1)) for k in range(4)]
    conv.weight.data = torch.from_numpy(np.mean([*turned, *(np.flip(t, -1) for t in turned)], axis=0))
    return conv


class Pool(nn.Module):
    def forward(self, z):
        return z.mean((-2, -1))


@pytest.mark.parametrize("group", ["C2", "C4", "D4", "flip"])
@pytest.mark.parametrize("padding", ["zeros", "circular"])
def test_fact_2_symmetric_convolutions_are_equivariant(group, padding):
    model = nn.Sequential(symmetric_conv(padding_mode=padding), nn.ReLU(), Pool(), nn.Linear(4, 3).double())
    metrics = ["channelwise", "channelwise_centred"]
    ds = measure(model, pictures(), group=group, layers=["0", "1"], metrics=metrics).sel(layer=["0", "1"])
    np.testing.assert_allclose(ds.channelwise, -1, atol=1e-6)
    np.testing.assert_allclose(ds.channelwise_centred, -1, atol=1e-6)
    others = ds.isel(element=slice(1, None))
    assert (others.channelwise_null > -1 + 1e-4).all()


def test_fact_2_shifts_need_circular_padding():
    conv = nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular").double()
    model = nn.Sequential(conv, nn.ReLU(), Pool(), nn.Linear(4, 3).double())
    ds = measure(model, pictures(side=8), group="shift4", layers=["0", "1"])
    np.testing.assert_allclose(ds.channelwise.sel(layer=["0", "1"]), -1, atol=1e-6)
    np.testing.assert_allclose(ds.latent.sel(layer="latent"), -1, atol=1e-6)
    conv.padding_mode = "zeros"
    ds = measure(model, pictures(side=8), group="shift4", layers=["0"])
    assert (ds.channelwise.sel(layer="0", element=["s1", "s2", "s3"]) > -1 + 1e-4).all()


@pytest.mark.parametrize("seed", range(3))
def test_facts_1_and_4_invariant_features_are_perfect_under_any_head(seed):
    torch.manual_seed(seed)
    head = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    model = nn.Sequential(symmetric_conv(seed), nn.ReLU(), Pool(), head)
    metrics = ["latent", "latent_euclidean", *OUTPUT]
    ds = measure(model, pictures(), group="D4", metrics=metrics, head="3.0", layers=[])
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


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_fact_3_channelwise_misses_what_regular_fields_show(precision):
    torch.manual_seed(0)
    dtype = getattr(torch, precision)
    model = nn.Sequential(Lifting(), nn.ReLU(), PoolAll(), nn.Linear(3, 4)).to(dtype)
    metrics = ["channelwise", "channelwise_regular", "latent", "latent_euclidean", *OUTPUT]
    ds = measure(model, pictures().to(dtype), metrics=metrics, layers=["0", "1"], precision=precision)
    np.testing.assert_allclose(ds.latent.sel(layer="latent"), -1, atol=1e-6)
    np.testing.assert_allclose(ds.latent_euclidean.sel(layer="latent"), 0, atol=1e-6)
    for name in OUTPUT:
        np.testing.assert_allclose(ds[name], 0, atol=1e-6)
    at_maps = ds.sel(layer=["0", "1"], element=["r90", "r180", "r270"])
    assert (at_maps.channelwise > -0.95).all()
    np.testing.assert_allclose(at_maps.channelwise_regular, -1, atol=1e-6)


@pytest.mark.usefixtures("way")
def test_deep_networks_without_bias_are_no_dead_networks():
    # activations of 1e-20, whose squares a float32 loses
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(60)])
    images = torch.rand(16, 4, 9, 9)
    assert model(images).abs().max() < 1e-12
    options = {"layers": ["59"], "metrics": ["channelwise", "channelwise_centred", "latent"], "output": "features"}
    found = measure(model, images, precision="float32", **options).sel(layer="59")
    wanted = measure(model.double(), images.double(), **options).sel(layer="59")
    for name in ("channelwise", "channelwise_centred", "latent"):
        for variable in (name, f"{name}_null"):
            np.testing.assert_allclose(found[variable], wanted[variable], atol=1e-4, err_msg=variable)
    assert -0.35 < float(wanted.channelwise.mean()) < -0.2
    assert -0.6 < float(wanted.latent.mean()) < -0.45
    assert found.dead_fraction == wanted.dead_fraction == 0


class Scaled(nn.Module):
    """Maps of one size or another, and a head that undoes it."""

    def __init__(self, size):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.maps = nn.Identity()
        self.fc = nn.Linear(4, 3)
        self.size = size

    def forward(self, x):
        return self.fc(self.maps(self.conv(x) * self.size).mean((-2, -1)) / self.size)


def assert_size_changes_no_cosine(size, precision):
    dtype = getattr(torch, precision)
    options = {"layers": ["maps"], "metrics": ["channelwise", "channelwise_centred", "latent"], "precision": precision}
    found, wanted = (
        measure(Scaled(s).to(dtype), pictures().to(dtype), **options).sel(layer="maps") for s in (size, 1.0)
    )
    for name in ("channelwise", "channelwise_centred", "latent"):
        for variable in (name, f"{name}_null"):
            np.testing.assert_allclose(found[variable], wanted[variable], atol=1e-5, err_msg=variable)
    assert found.dead_fraction == 0


@pytest.mark.parametrize("size", [1e-22, 1e19, 1e30, 1e37])
@pytest.mark.usefixtures("way")
def test_the_size_of_activations_changes_no_cosine_in_float32(size, recwarn):
    assert_size_changes_no_cosine(size, "float32")
    assert not recwarn.list


@pytest.mark.parametrize("size", [1e-200, 1e-22, 1e30, 1e200])
def test_the_size_of_activations_changes_no_cosine_in_float64(size, recwarn):
    assert_size_changes_no_cosine(size, "float64")
    assert not recwarn.list


EVERY = [*FAMILY, "channelwise_matched"]


class Zeros(nn.Module):
    """Maps, features and scores that are all zero."""

    def __init__(self):
        super().__init__()
        self.maps = nn.Conv2d(2, 4, 3, padding=1)
        self.fc = nn.Linear(4, 3)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x):
        return self.fc(self.maps(x).mean((-2, -1)))


def finite_of(ds, name, layer="maps"):
    return (
        ds[name] if name.startswith("softmax") else ds[name].sel(layer="latent" if name.startswith("latent") else layer)
    )


@pytest.mark.usefixtures("way")
def test_features_that_are_all_zero_agree_perfectly(recwarn):
    ds = measure(Zeros(), pictures().float(), precision="float32", metrics=EVERY, layers=["maps"])
    for name in EVERY:
        best = {"channelwise_zero": 0.0}.get(name, ds[name].attrs["best"])
        for variable in (name, f"{name}_null"):
            found = finite_of(ds, variable)
            if name in ("channelwise_skip", "channelwise_centred"):
                assert found.isnull().all()
                assert reason(ds, name, "maps").startswith("undefined for 9 of 9 samples")
            else:
                np.testing.assert_allclose(found, best, atol=1e-7, err_msg=variable)
    assert ds.dead_fraction.sel(layer="maps") == 1
    assert ds.latent_pair_cosine.isnull().all()
    assert not recwarn.list


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_identical_images_have_a_null_that_is_the_estimate(precision, recwarn):
    dtype = getattr(torch, precision)
    images = pictures()[:1].repeat(9, 1, 1, 1).to(dtype)
    metrics = [name for name in EVERY if name != "channelwise_matched"]
    ds = measure(Tiny().to(dtype), images, precision=precision, metrics=metrics, layers=["act"])
    for name in metrics:
        np.testing.assert_allclose(finite_of(ds, f"{name}_null", "act"), finite_of(ds, name, "act"), atol=1e-5)
        assert finite_of(ds, name, "act").notnull().all()
    assert ds.latent_pair_cosine.sel(layer="latent").item() == pytest.approx(1, abs=1e-6)
    assert not recwarn.list


@pytest.mark.usefixtures("way")
def test_constant_images_are_perfect_where_moves_do_nothing(recwarn):
    images = torch.full((9, 2, 6, 6), 0.7)
    model = nn.Sequential(symmetric_conv(padding_mode="circular"), Pool(), nn.Linear(4, 3).double()).float()
    metrics = [
        "channelwise",
        "channelwise_centred",
        *(name for name in EVERY if name.startswith(("latent", "softmax"))),
    ]
    ds = measure(model, images, precision="float32", metrics=metrics, layers=["0"])
    for name in metrics:
        found = finite_of(ds, name, "0")
        if name == "channelwise_centred":
            assert found.isnull().all()
        else:
            np.testing.assert_allclose(found, ds[name].attrs["best"], atol=1e-6, err_msg=name)
            np.testing.assert_allclose(finite_of(ds, f"{name}_null", "0"), ds[name].attrs["best"], atol=1e-6)
    assert not recwarn.list


def test_two_images_suffice_for_a_flip(recwarn):
    images = pictures()[:2]
    ds = measure(Tiny().double(), images, group="flip", layers=["act"], metrics=list(FAMILY)).sel(model="Tiny")
    model = Tiny().double()
    for name in FAMILY:
        features, action, m = FAMILY[name]
        layer = "scores" if name in OUTPUT else "act"
        orbit = oracles.orbits(lambda x, of=features, at=layer: of(model.trace(x)[at]), images.numpy(), "flip")
        act, kernel = (oracles.move, [0]) if action == "move" else (oracles.stay, [0, 1])
        wanted = oracles.eed(oracles.shuffled(orbit, [[0, 1]]), "flip", act, m, kernel)
        found = ds[f"{name}_null"] if layer == "scores" else ds[f"{name}_null"].sel(layer=layer)
        np.testing.assert_allclose(found, wanted, atol=1e-6, rtol=1e-6, err_msg=name)
    assert not recwarn.list


def test_a_single_score_is_no_distribution():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(64, 1)).double()
    ds = measure(model, pictures(), metrics=["latent", "softmax"])
    assert ds.softmax.isnull().all()
    assert "(b, k) with k ≥ 2" in ds.softmax.attrs["nan_reason"]
    assert "prediction" not in ds
    with pytest.raises(ValueError, match=r"needs class scores \(b, k\) with k ≥ 2, got shape \(2, 1\)"):
        measure(model, pictures(), output="scores")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("batch_size", [1, 4, None])
def test_a_sample_that_is_not_finite_costs_itself(bad, precision, batch_size):
    dtype = getattr(torch, precision)
    images = pictures().to(dtype)
    clean = measure(Tiny().to(dtype), images, precision=precision, metrics=list(FAMILY), layers=LAYERS)
    images[5, 0, 2, 3] = bad
    options = {"metrics": list(FAMILY), "layers": LAYERS, "batch_size": batch_size}
    with pytest.warns(UserWarning, match="1 of 9 samples have no value: .* not finite for sample 5 under e") as caught:
        ds = measure(Tiny().to(dtype), images, precision=precision, **options)
    assert len(caught) == 1
    is_bad = np.arange(N) == 5
    for name in FAMILY:
        found = finite_of(ds, name, "stem")
        np.testing.assert_array_equal(found.isnull().all("element")[0], is_bad, err_msg=name)
        np.testing.assert_array_equal(found.isnull().any("element")[0], is_bad, err_msg=name)
        wanted = finite_of(clean, name, "stem")
        np.testing.assert_allclose(found.isel(sample=~is_bad), wanted.isel(sample=~is_bad), atol=1e-6, err_msg=name)
        # the null is lost for the four images in whose shuffled orbits the sample takes part
        lost = np.flatnonzero(finite_of(ds, f"{name}_null", "stem").isnull().any("element")[0])
        (chain,) = [chain for chain in chains_of("C4") if 5 in chain]
        place = chain.index(5)
        assert sorted(lost) == sorted(chain[(place - k) % len(chain)] for k in range(4))
    assert (ds.prediction.sel(sample=5) == -1).all()
    assert ds.confidence.sel(sample=5).isnull().all()
    good = np.flatnonzero(~is_bad)
    np.testing.assert_array_equal(ds.prediction.isel(sample=good), clean.prediction.isel(sample=good))
    vectors = [Tiny().double().trace(x)["latent"] for x in images.double().numpy()[good]]
    assert ds.latent_pair_cosine.sel(layer="latent").item() == pytest.approx(
        oracles.mean_pair_cosine(vectors), abs=1e-6
    )


def test_progress_shows_control_characters_of_a_name(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    ek.measure(Tiny(), torch.rand(8, 2, 6, 6), group="C4", name="\x1b]0;owned\x07", progress=True)
    shown = capsys.readouterr().err
    assert r"\x1b]0;owned\x07:" in shown
    assert "\x1b]" not in shown


class Breaks(Tiny):
    """NaN at the output for the image with a mark in one corner, once it is turned by 180°."""

    def forward(self, x):
        scores = super().forward(x)
        return torch.where(x[:, 0, -1:, -1:].flatten(1) > 90, scores * math.nan, scores)


@pytest.mark.parametrize("batch_size", [1, 4, None])
def test_an_output_that_is_not_finite_names_sample_and_element(batch_size):
    images = pictures()
    images[4, 0, 0, 0] = 99
    with pytest.warns(UserWarning, match="1 of 9 .*output is not finite for sample 4 under r180$"):
        ds = measure(Breaks().double(), images, metrics=["latent", "softmax"], batch_size=batch_size)
    assert np.flatnonzero(ds.softmax.isnull().any(("model", "element"))).tolist() == [4]
    assert ds.latent.sel(layer="latent").notnull().all()
    assert ds.prediction.sel(sample=4, model="Breaks").values.tolist().count(-1) == 1
    row = ek.summarise(ds, resamples=0).query("metric == 'softmax'").iloc[0]
    assert row.n == 8
    assert np.isfinite(row.relative)


class Torn(Dataset):
    """Images of which some cannot be read."""

    def __init__(self, torn, images):
        self.torn = torn
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        if i in self.torn:
            raise OSError(f"file {i} is torn")
        return self.images[i], i % 3


def test_unreadable_images_are_named_in_one_warning():
    torn = [1, 2, 5, 7]
    with pytest.warns(
        UserWarning, match=r"4 of 9 samples have no value: .*torn; .*torn; .*torn \(and 1 more\)"
    ) as caught:
        ds = measure(Tiny().double(), Torn(torn, pictures()))
    assert len(caught) == 1
    whole = measure(Tiny().double(), pictures())
    assert ds.sample.values.tolist() == whole.sample.values.tolist() == list(range(N))
    assert ds.label.values.tolist() == [-1 if i in torn else i % 3 for i in range(N)]
    good = [i for i in range(N) if i not in torn]
    for name in ("latent", "channelwise", "prediction", "confidence"):
        np.testing.assert_array_equal(ds[name].isel(sample=good), whole[name].isel(sample=good), err_msg=name)
    assert ds.latent.sel(layer="latent").isel(sample=torn).isnull().all()
    assert (ds.prediction.isel(sample=torn) == -1).all()


class Writes(Tiny):
    """Changes its bias in every forward pass, in place or for another tensor, or only counts its calls."""

    def __init__(self, how):
        super().__init__()
        self.register_buffer("calls", torch.zeros(1, dtype=torch.int64))
        self.how = how

    def forward(self, x):
        found = super().forward(x)
        bias = self.get_parameter("fc.bias")
        if self.how == "in place":
            bias.add_(1e-6)
        if self.how == "another tensor":
            bias.data = bias + 1e-6
        if self.how == "counts":
            self.calls += 1
        return found


@pytest.mark.parametrize("how", ["in place", "another tensor"])
def test_a_model_that_changes_its_weights_is_refused(how):
    with pytest.raises(ValueError, match=r"Writes changes its own weights as it runs \(fc.bias\)"):
        ek.measure(Writes(how), pictures(), group="C4", progress=False)


def test_a_model_that_counts_its_calls_is_measured():
    assert ek.measure(Writes("counts"), pictures(), group="C4", progress=False).latent.notnull().all()


def test_maps_of_one_position_are_undefined_with_the_reason():
    model = nn.Sequential(nn.Conv2d(2, 3, 6), nn.Flatten(), nn.Linear(3, 4)).double()
    ds = measure(model, pictures(), layers=["0", "2"])
    for layer, why in (
        ("0", "its output has one position, where a cosine only compares signs"),
        ("2", "its output has one position, where a cosine only compares signs"),
        ("latent", "it is the head's input, not a feature map"),
    ):
        assert ds.channelwise.sel(layer=layer).isnull().all()
        assert ds.channelwise_null.sel(layer=layer).isnull().all()
        assert reason(ds, "channelwise", layer) == why
        assert reason(ds, "latent", layer) == ""
    assert ds.latent.notnull().all()


def test_shifts_are_undefined_where_n_does_not_divide_the_height():
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.MaxPool2d(4), Pool(), nn.Linear(3, 4)).double()
    ds = measure(model, pictures(side=8), group="shift4", layers=["0", "1"])
    assert ds.channelwise.sel(layer="0").notnull().all()
    assert ds.channelwise.sel(layer="1").isnull().all()
    assert "shifts by 1/4 of the height need a height divisible by 4, got 2" in reason(ds, "channelwise", "1")


def test_dead_samples_are_undefined_where_dead_channels_are_skipped():
    images = pictures()
    images[2] = 0
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, bias=False), Pool(), nn.Linear(3, 4)).double()
    ds = measure(model, images, metrics=["channelwise", "channelwise_skip"], layers=["0"])
    assert np.flatnonzero(ds.channelwise_skip.sel(layer="0").isnull().any("element")[0]).tolist() == [2]
    assert reason(ds, "channelwise_skip", "0").startswith("undefined for 1 of 9 samples")
    np.testing.assert_allclose(ds.channelwise.sel(layer="0", sample=2), -1)


class Parts(nn.Module):
    """One channel is the image, the others are constants that no float holds exactly."""

    def __init__(self):
        super().__init__()
        self.map = nn.Identity()
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        z = self.map(torch.cat([x, torch.full_like(x, 0.1), torch.full_like(x, 1e4 / 3)], 1))
        return self.fc(z.mean((-2, -1)))


@pytest.mark.parametrize("side", [2, 7, 33])
@pytest.mark.usefixtures("way")
def test_constant_channels_are_left_out_once_they_are_centred(side):
    images = torch.randn(6, 1, side, side, generator=torch.Generator().manual_seed(2))
    options = {"metrics": ["channelwise_centred"], "layers": ["map"], "precision": "float32"}
    ds = measure(Parts(), images, **options).sel(layer="map", model="Parts")
    np.testing.assert_allclose(ds.channelwise_centred, -1, atol=1e-6)
    orbit = oracles.orbits(oracles.centred, images.double().numpy(), "C4")
    mixed = oracles.shuffled(orbit, chains_of("C4", 6))
    wanted = oracles.eed(mixed, "C4", oracles.move, oracles.channelwise, [0])
    np.testing.assert_allclose(ds.channelwise_centred_null, wanted, atol=1e-5)


class Early(Tiny):
    """Skips `down` for dark batches."""

    def forward(self, x):
        z = self.act(self.stem(x))
        if x.abs().amax() > 0.5:
            z = self.act(self.down(z))
        return self.fc(z[:, :6].mean((-2, -1)))


def test_a_layer_that_runs_for_some_batches_only_has_no_value():
    images = pictures(12)
    last_chain = chains_of("C4", 12)[-1]
    images[last_chain] *= 0.01
    ds = measure(Early().double(), images, layers=["stem", "down"], batch_size=4)
    for variable in ("channelwise", "channelwise_null", "latent"):
        assert ds[variable].sel(layer="down").isnull().all()
    assert reason(ds, "channelwise", "down") == "it does not run in every forward pass"
    assert ds.channelwise.sel(layer="stem").notnull().all()


class Entries(Tiny):
    """Gives features and scores in a mapping."""

    def forward(self, x):
        z = self.act(self.down(self.act(self.stem(x)))).mean((-2, -1))
        return {"scores": self.fc(z), "embedding": z}


def features_only():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), Pool()).double()


def test_an_output_that_no_weights_give_is_features():
    ds = measure(features_only(), pictures(), metrics=["latent", "softmax"], layers=["0"])
    assert ds.softmax.isnull().all()
    assert "the model ends in features" in ds.softmax.attrs["nan_reason"]
    assert "prediction" not in ds
    assert ds.latent.sel(layer="latent").notnull().all()


def test_features_are_scores_where_they_are_said_to_be():
    ds = measure(features_only(), pictures(), metrics=["latent", "softmax"], layers=["0"], output="scores")
    with torch.no_grad():
        model = features_only()
        of_one = lambda x: oracles.softmax(model(torch.from_numpy(x.copy())[None])[0].numpy())  # noqa: E731
        orbit = oracles.orbits(of_one, pictures().numpy(), "C4")
    np.testing.assert_allclose(ds.softmax[0], oracles.eed(orbit, "C4", oracles.stay, oracles.kl, range(4)), atol=1e-7)
    np.testing.assert_array_equal(ds.prediction[0], orbit.argmax(-1))


def test_probabilities_are_taken_as_they_are():
    model = nn.Sequential(Tiny(), nn.Softmax(1)).double()
    ds, of_scores = (measure(m, pictures(), metrics=OUTPUT, layers=[]) for m in (model, Tiny().double()))
    for name in (*OUTPUT, *(f"{name}_null" for name in OUTPUT), "prediction"):
        np.testing.assert_allclose(ds[name].values, of_scores[name].values, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(("output", "is_scores"), [("scores", True), ("embedding", False)])
def test_an_entry_of_the_output_is_chosen_by_its_name(output, is_scores):
    ds = measure(Entries().double(), pictures(), metrics=["latent", "softmax"], layers=[], output=output)
    assert bool(ds.softmax.notnull().all()) == is_scores
    # the features before the head, and the embedding, are the same vector
    wanted = expected("C4", "latent", "latent")
    np.testing.assert_allclose(ds.latent.sel(layer="latent")[0], wanted, atol=1e-6)


def test_layouts_say_how_a_layer_is_read():
    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.maps = nn.Identity()
            self.fc = nn.Linear(2, 3)

        def forward(self, x):
            return self.fc(self.maps(x.flatten(2).mT).mean(1))

    found = measure(Rows().double(), pictures(), layers=["maps"], layouts={"maps": "b 6x6 c"}, metrics=["channelwise"])
    orbit = oracles.orbits(np.asarray, pictures().numpy(), "C4")
    wanted = oracles.eed(orbit, "C4", oracles.move, oracles.channelwise, [0])
    np.testing.assert_allclose(found.channelwise.sel(layer="maps")[0], wanted, atol=1e-6)
    with pytest.raises(ValueError, match=r"layouts\['maps'\]: the layout 'b 5x6 c' has 5x6 tokens, the output 36"):
        measure(Rows().double(), pictures(), layers=["maps"], layouts={"maps": "b 5x6 c"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group": "SO(2)?k=3"}, r"has 'k=3'; its options are n \(how many parts\), seed and jitter"),
        ({"group": "c4"}, "no group 'c4'; did you mean 'C4'"),
        ({"group": "C4*flip"}, "is no action of"),
        ({"metrics": ["latnet"]}, r"no metric 'latnet'; did you mean 'latent'.*\(all 23: channelwise"),
        ({"metrics": []}, r"metrics must be one or more with different names, got \[\]"),
        ({"metrics": ["latent", "latent"]}, "different names"),
        ({"precision": "float23"}, "no precision 'float23'; did you mean 'float32'"),
        ({"null": "within"}, "null must be True, False or 'within-class', got 'within'"),
        ({"batch_size": 0}, "batch_size must be at least 1, or None .* got 0"),
        ({"batch_size": -3}, "batch_size must be at least 1, or None .* got -3"),
    ],
)
def test_options_are_checked_before_any_model_is_there(options, message):
    with pytest.raises(ValueError, match=message):
        Options(**{"group": "C4", **options})
    with pytest.raises(ValueError, match=message):
        measure(Tiny().double(), pictures(), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ["stm"]}, "no layer 'stm'; did you mean 'stem'"),
        ({"layers": "block.*"}, "no layer whose whole name matches 'block"),
        ({"layers": "("}, r"layers='\(' is no regular expression"),
        ({"head": "fcc"}, "no head 'fcc'; did you mean 'fc'"),
        ({"layouts": {"nowhere": "b c"}}, "layouts: no layer 'nowhere'"),
        ({"output": "logits"}, "no output 'logits'"),
        ({"precision": "float32"}, r"needs float32 weights, but stem.weight is torch.float64; convert .* \.to\(torch.float32\)"),
        ({"labels": [1, 2]}, "expected one label for each of 9 images, got 2"),
        ({"device": "mps"}, "device 'mps' has no float64"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit_the_model_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        measure(Tiny().double(), pictures(), **options)


@pytest.mark.parametrize(
    ("images", "group", "message"),
    [
        (torch.rand(4, 2, 5, 6), "C4", "quarter turns need square images, got 5×6; centre-crop or pad first"),
        (torch.rand(4, 2, 6, 6), "shift4", "shifts by 1/4 of the height need .* got 6"),
        (torch.rand(0, 2, 6, 6), "C4", "there is no image to measure on; expected at least one"),
    ],
)
def test_images_on_which_the_group_cannot_act_are_refused(images, group, message):
    with pytest.raises(ValueError, match=message):
        measure(Tiny(), images, group=group, precision="float32")


def test_what_is_no_model_or_no_metric_is_refused_by_name():
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got Tensor; the images come second"):
        ek.measure(torch.rand(3, 2, 6, 6), Tiny(), group="C4")
    with pytest.raises(TypeError, match="a metric is a name such as 'latent' or a Metric, got int"):
        Options("C4", metrics=[5])
    with pytest.raises(TypeError, match="a group is a name such as 'C4' or a Group, got int"):
        Options(4)


def state_of(model):
    modes = [module.training for module in model.modules()]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    grads = [parameter.requires_grad for parameter in model.parameters()]
    return modes, hooks, grads, weights


def assert_same_state(before, after):
    assert before[:3] == after[:3]
    assert before[3].keys() == after[3].keys()
    assert all(torch.equal(before[3][key], after[3][key]) for key in before[3])


def with_statistics():
    torch.manual_seed(0)
    parts = [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), Pool(), nn.Linear(3, 2)]
    model = nn.Sequential(*parts).double()
    model(pictures() * 3)
    model.train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    return model


@pytest.mark.parametrize("metrics", [["latent"], ["channelwise_matched", "softmax"]])
def test_the_model_comes_back_as_it_was(metrics):
    model = with_statistics()
    before = state_of(model)
    ds = measure(model, pictures(), metrics=metrics, layers=["0"])
    assert_same_state(before, state_of(model))
    in_eval = measure(with_statistics().eval(), pictures(), metrics=metrics, layers=["0"])
    for name in metrics:
        np.testing.assert_array_equal(ds[name], in_eval[name])


class Fails(Tiny):
    """Raises from a certain forward pass on."""

    def __init__(self, at):
        super().__init__()
        self.at = at
        self.passes = 0

    def forward(self, x):
        self.passes += 1
        if self.passes >= self.at:
            raise RuntimeError(f"pass {self.at}")
        return super().forward(x)


@pytest.mark.parametrize("at", [1, 2, 5, 9])
def test_the_model_comes_back_also_after_an_exception(at):
    model = Fails(at).train()
    model.down.eval()
    before = state_of(model)
    matmul = torch.get_float32_matmul_precision()
    with pytest.raises(RuntimeError, match=f"pass {at}"):
        measure(model, pictures().float(), precision="float32", batch_size=4)
    assert_same_state(before, state_of(model))
    assert torch.get_float32_matmul_precision() == matmul
    assert torch.is_grad_enabled()


def test_chance_is_left_as_it_was():
    model = Tiny().double()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    measure(model, pictures(), metrics=["channelwise_matched", "latent"])
    assert torch.equal(before, torch.get_rng_state())


def test_images_are_left_as_they_were():
    class InPlace(Tiny):
        def forward(self, x):
            return super().forward(x.mul_(2).sub_(0.3))

    class Careful(Tiny):
        def forward(self, x):
            return super().forward(x * 2 - 0.3)

    images = pictures().requires_grad_()
    found, wanted = (measure(kind().double(), images, name="same") for kind in (InPlace, Careful))
    assert torch.equal(images.detach(), pictures())
    assert images.grad is None
    for name in ("channelwise", "latent", "softmax"):
        np.testing.assert_array_equal(found[name], wanted[name])
    assert found.attrs["data"] == wanted.attrs["data"]


class Dropping(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, training=True)


def test_a_module_with_dropout_forced_on_is_named():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), Dropping(), nn.Flatten(), nn.Linear(64, 3))
    with pytest.warns(UserWarning, match="gives other outputs for the same images; '1' is the first module") as caught:
        ds = measure(model, pictures().float(), precision="float32")
    assert len(caught) == 1
    assert ds.attrs["repeatable"] == 0


def test_a_model_that_looks_at_the_whole_batch_is_told():
    class Batchwise(Tiny):
        def forward(self, x):
            return super().forward(x - x.mean(0))

    with pytest.warns(UserWarning, match="depending on the others in their batch"):
        measure(Batchwise(), pictures().float(), precision="float32")


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_repeatable_model_is_not_warned_of(precision, recwarn):
    dtype = getattr(torch, precision)
    ds = measure(Tiny().to(dtype), pictures().to(dtype), precision=precision)
    assert not recwarn.list
    assert ds.attrs["repeatable"] == 1


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda model: nn.DataParallel(torch.compile(model))])
def test_compiled_and_parallel_models_are_the_module_inside(wrap):
    images = pictures().float()
    wrapped = wrap(Tiny())
    found = measure(wrapped, images, precision="float32")
    wanted = measure(Tiny(), images, precision="float32")
    for name in ("channelwise", "latent", "softmax"):
        np.testing.assert_array_equal(found[name], wanted[name])
    for coordinate in ("layer", "model", "weights"):
        assert found[coordinate].values.tolist() == wanted[coordinate].values.tolist()


@pytest.mark.parametrize(
    "as_script",
    [
        pytest.param(lambda model: torch.jit.trace(model.eval(), pictures()[:2].float()), id="traced"),
        pytest.param(torch.jit.script, id="scripted"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_of_a_script_module_only_the_output_is_measured(as_script):
    model, images = as_script(Scaled(1.0)), pictures().float()
    with pytest.raises(ValueError, match="layers of a ScriptModule cannot be tapped"):
        measure(model, images, precision="float32", layers=["conv"])
    ds = measure(model, images, precision="float32", metrics=["softmax", "softmax_js", "latent", "channelwise"])
    wanted = measure(Scaled(1.0), images, precision="float32", metrics=["softmax", "softmax_js"])
    for name in ("softmax", "softmax_null", "softmax_js", "prediction"):
        np.testing.assert_allclose(ds[name].values, wanted[name].values, atol=1e-6)
    for name in ("latent", "channelwise"):
        assert ds[name].isnull().all()
        assert reason(ds, name, "latent") != ""


def buffers(value, *, persistent=True):
    module = nn.Identity()
    module.register_buffer("b", value, persistent=persistent)
    return module


class Extra(nn.Identity):
    def __init__(self, state):
        super().__init__()
        self.state = state

    def get_extra_state(self):
        return self.state

    def set_extra_state(self, state):
        self.state = state


def sparse(*values):
    return torch.sparse_coo_tensor([[0, 2]], torch.tensor(values), (4,))


def quantised(scale):
    return torch.quantize_per_tensor(torch.tensor([1.0, 2.0]), scale, 0, torch.qint8)


COMPLEX = torch.tensor([1 + 2j, 3 - 1j])
PAIRS_OF_MODELS = {
    "buffers": lambda: (buffers(torch.zeros(2)), buffers(torch.ones(2))),
    "buffers that are not saved": lambda: (
        buffers(torch.zeros(2), persistent=False),
        buffers(torch.ones(2), persistent=False),
    ),
    "shapes": lambda: (buffers(torch.zeros(2, 3)), buffers(torch.zeros(3, 2))),
    "types": lambda: (buffers(torch.zeros(2)), buffers(torch.zeros(2, dtype=torch.int32))),
    "extra state": lambda: (Extra({"step": 1}), Extra({"step": 2})),
    "extra state of tensors": lambda: (Extra(torch.zeros(2)), Extra(torch.ones(2))),
    "sparse values": lambda: (buffers(sparse(1.0, 2.0)), buffers(sparse(1.0, 3.0))),
    "conjugates": lambda: (buffers(COMPLEX), buffers(COMPLEX.conj())),
    "negatives": lambda: (buffers(COMPLEX.imag), buffers(COMPLEX.conj().imag)),
    "half precisions": lambda: (buffers(torch.ones(2).bfloat16()), buffers(torch.zeros(2).bfloat16())),
    "classes": lambda: (nn.ReLU(), nn.GELU()),
}


@pytest.mark.parametrize("what", PAIRS_OF_MODELS)
@pytest.mark.filterwarnings("ignore:.*[Ss]parse")
def test_fingerprints_see(what):
    one, two = PAIRS_OF_MODELS[what]()
    same, _ = PAIRS_OF_MODELS[what]()
    assert fingerprint(one) == fingerprint(same)
    assert fingerprint(one) != fingerprint(two)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_fingerprints_see_quantised_weights():
    one, same, two = (buffers(quantised(scale)) for scale in (0.1, 0.1, 0.2))
    assert fingerprint(one) == fingerprint(same)
    assert fingerprint(one) != fingerprint(two)


def test_fingerprints_do_not_see_memory_order_or_wrappers():
    model = Tiny()
    before = fingerprint(model)
    assert fingerprint(copy.deepcopy(model)) == before
    assert fingerprint(model.to(memory_format=torch.channels_last)) == before
    with torch.no_grad():
        model.stem.weight[1, 1, 1, 1] += 1e-6
    assert fingerprint(model) != before


def test_the_dataset_says_where_it_comes_from():
    ds = measure(Tiny().double(), pictures(), name="mine", layers=LAYERS, labels=list("abcabcabc"))
    assert ds.sizes == {"model": 1, "layer": 5, "element": 4, "sample": N}
    assert ds.model.item() == "mine"
    assert ds.layer.values.tolist() == [*MAPS, "latent"]
    assert ds.element.values.tolist() == ["e", "r90", "r180", "r270"]
    assert ds.angle.values.tolist() == [0, 90, 180, 270]
    assert ds.channels[0].values.tolist() == [8, 8, 6, 6, 6]
    assert ds.height[0].values.tolist() == ds.width[0].values.tolist() == [6, 6, 3, 3, 1]
    assert ds.layout[0].values.tolist() == ["b c h w"] * 4 + ["b c"]
    assert ds.kernel_order[0].values.tolist() == [1, 1, 1, 1, 0]
    assert ds.layer_type[0].values.tolist() == ["Conv2d", "ReLU", "Conv2d", "ReLU", "Linear"]
    assert ds.depth[0].to_series().is_monotonic_increasing
    assert (ds.attrs["group"], ds.attrs["head"], ds.attrs["null"]) == ("C4", "fc", "True")
    assert (ds.attrs["seed"], ds.attrs["precision"], ds.attrs["device"]) == (SEED, "float64", "cpu")
    assert (ds.channelwise.attrs["best"], ds.softmax.attrs["best"], ds.softmax.attrs["units"]) == (-1, 0, "nat")
    assert {ds[name].dtype for name in ("channelwise", "latent", "softmax", "latent_null")} == {np.dtype("float32")}
    assert ds.softmax.dims == ("model", "element", "sample")
    assert (ds.label.dtype, ds.label.values.tolist()) == (object, list("abcabcabc"))


@pytest.mark.parametrize("batch_size", [4, None])
def test_the_same_seed_gives_the_identical_dataset_twice(batch_size):
    one, two = (measure(Tiny().double(), pictures(), batch_size=batch_size) for _ in range(2))
    for ds in (one, two):
        assert ds.attrs.pop("created")
    xr.testing.assert_identical(one, two)


def test_the_checksum_of_the_data_sees_images_and_labels():
    def checksum(images=None, **options):
        images = pictures() if images is None else images
        return measure(Tiny().double(), images, metrics=["latent"], **options).attrs["data"]

    other = pictures()
    other[3, 1, 2, 2] += 0.01
    assert checksum() == checksum(seed=9) == checksum(batch_size=4) == checksum(DataLoader(pictures(), 3))
    assert len({checksum(), checksum(other), checksum(labels=[0] * 9), checksum(pictures()[:-1])}) == 4


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_near_float32(precision):
    half = measure(Tiny(), pictures().float(), precision=precision, layers=LAYERS)
    wanted = measure(Tiny(), pictures().float(), precision="float32", layers=LAYERS)
    for name in ("channelwise", "latent", "softmax"):
        np.testing.assert_allclose(half[name], wanted[name], atol=0.1)
        assert abs(half[name] - wanted[name]).mean() < 0.005
    assert not np.array_equal(half.latent, wanted.latent, equal_nan=True)
    # the distances are not taken in half precision
    np.testing.assert_allclose(half.channelwise.sel(layer=MAPS, element="e"), -1, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "device", "size"),
    [((1, 5, 5), "cpu", 256), ((3, 32, 32), "cpu", 128), ((3, 224, 224), "cpu", 8), ((3, 2000, 2000), "cuda", 8)],
)
def test_batches_are_as_large_as_their_images_allow(shape, device, size):
    assert default_batch_size(shape, device) == size


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize(("precision", "atol", "on_average"), [("float32", 1e-4, 1e-5), ("bfloat16", 0.1, 0.01)])
def test_cuda_is_near_the_cpu(precision, atol, on_average):
    options = {"layers": LAYERS, "metrics": list(FAMILY), "batch_size": 4}
    wanted = measure(Tiny().double(), pictures(), **options)
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
    wanted = measure(Tiny().double(), pictures())
    np.testing.assert_allclose(found.latent, wanted.latent, atol=1e-5)
    assert found.attrs["data"] == measure(Tiny(), pictures().float(), precision="float32").attrs["data"]


PEAK = """
import resource, torch, torchvision, eedkit as ek

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

class Noise(torch.utils.data.Dataset):
    read, after_32 = 0, None
    def __len__(self):
        return 96
    def __getitem__(self, i):
        Noise.read += 1
        if Noise.read == 33 + 8:
            Noise.after_32 = peak()
        return torch.rand(3, 224, 224, generator=torch.Generator().manual_seed(i)), i % 10

torch.manual_seed(0)
model = torchvision.models.resnet18()
ds = ek.measure(model, Noise(), group="flip", layers="all", batch_size=8, progress=False, device="cpu")
assert ds.sizes["sample"] == 96 and ds.sizes["layer"] > 60 and ds.latent.notnull().all()
print(Noise.after_32, peak())
"""


@pytest.mark.slow
def test_memory_stays_flat_from_32_to_96_images_on_resnet18_at_224(tmp_path):
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    after_32, after_96 = map(int, done.stdout.split())
    assert after_96 < 1.1 * after_32, (after_32, after_96)
