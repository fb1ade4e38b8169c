"""measure(): metrics and nulls against the loops of oracles.py, the exact facts, known truth, and bad input."""

import math

import numpy as np
import oracles
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import eedkit as ek
from eedkit.probe import accumulate
from eedkit.probe.measure import Options, fingerprint, measure_block
from eedkit.probe.metrics import METRICS, Metric
from eedkit.theory import deviation as deviations
from eedkit.theory import distances

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


def pictures(n=N):
    return torch.randn(n, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


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


def expected(model, group, name, layer, null):
    """(g, n) by equation 4, of the orbit or of the shuffled orbit."""
    features, action, m = FAMILY[name]
    act = {"move": oracles.move, "stay": oracles.stay}[action]
    orbit = oracles.orbits(lambda x: features(model.trace(x)[layer]), pictures().numpy(), group)
    kernel = oracles.kernel(group, act, orbit.shape[2:]) if action == "move" else range(len(orbit))
    if null:
        orbit = oracles.shuffled(orbit, oracles.chains(N, len(orbit), oracles.seeded_order(N, SEED)))
    return oracles.eed(orbit, group, act, m, kernel)


def test_every_metric_has_an_oracle():
    assert set(FAMILY) | {"channelwise_regular", "channelwise_matched"} == set(METRICS)


@pytest.mark.parametrize("precision", ["float64", "float32 fused", "float32 eager"])
@pytest.mark.parametrize("group", ["C2", "C4", "D4", "flip"])
def test_every_metric_and_null_is_equation_4(monkeypatch, group, precision):
    monkeypatch.setattr(accumulate, "WORTH_COMPILING", 0 if "fused" in precision else math.inf)
    monkeypatch.setattr(accumulate, "loop_is_loaded", lambda: False)
    dtype = getattr(torch, precision.split()[0])
    reference = Tiny().double()
    options = {"layers": ["stem", "act", "down"], "metrics": list(FAMILY), "precision": precision.split()[0]}
    several = [
        measure(Tiny().to(dtype), pictures().to(dtype), group=group, batch_size=size, **options)
        for size in (1, 5, None)
    ]
    for name in FAMILY:
        layers = ["scores"] if name.startswith("softmax") else MAPS if name.startswith("channel") else [*MAPS, "latent"]
        for layer in layers:
            for null in (False, True):
                want = expected(reference, group, name, layer, null)
                for ds in several:
                    at = ds[f"{name}_null" if null else name].sel(model="Tiny")
                    found = at if layer == "scores" else at.sel(layer=layer)
                    np.testing.assert_allclose(found, want, atol=2e-5, rtol=2e-5, err_msg=f"{name} {layer} {null}")


@pytest.mark.parametrize("place", [accumulate, deviations])
@pytest.mark.parametrize("name", ["f_hat", "integrand"])
def test_the_pass_runs_the_functions_with_the_equations(monkeypatch, place, name):
    def broken(*_, **__):
        raise RuntimeError("it runs")

    monkeypatch.setattr(place, name, broken)
    with pytest.raises(RuntimeError, match="it runs"):
        measure(Tiny(), pictures().float(), precision="float32")


@pytest.mark.parametrize("batch_size", [4, 12, 100])
def test_blocks_of_whole_chains_are_the_whole(batch_size):
    images = torch.rand(30, 2, 6, 6)
    options = Options("C4", metrics=["channelwise", "latent"], batch_size=batch_size)
    whole, _ = measure_block(Tiny(), images, options, places=range(30))
    first, _ = measure_block(Tiny(), images, options, places=range(12))
    for name in ("channelwise", "channelwise_null", "latent", "latent_null"):
        np.testing.assert_allclose(first[name], whole[name][..., :12], atol=1e-6)
    assert first.chain.values.tolist() == whole.chain.values[:12].tolist()


def test_a_large_group_needs_no_large_batches_of_maps():
    images = torch.rand(25, 2, 12, 12, generator=torch.Generator().manual_seed(0))
    settings = {"group": "shift12", "layers": ["stem"], "precision": "float32"}
    small = measure(Tiny(), images, batch_size=8, **settings)
    large = measure(Tiny(), images, batch_size=64, **settings)
    for name in ("channelwise", "channelwise_null", "latent_null"):
        np.testing.assert_allclose(small[name], large[name], atol=1e-6)
    assert small.channelwise_null.sel(layer="stem").notnull().all()


class Hash(nn.Module):
    """Features that are a hash of the pixels about a common offset: a moved copy is as good as another image."""

    def __init__(self, features=32, offset=0.0, gain=1.0):
        super().__init__()
        weight = torch.randn(features, 49, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        self.register_buffer("weight", weight)
        self.offset, self.gain = offset, gain

    def forward(self, x):
        chaos = (torch.sin(1e4 * x.double().flatten(1) @ self.weight.T) * 1e4).frac()
        return (self.gain * torch.erfinv(chaos.clamp(-0.999, 0.999)) + self.offset).to(x)


@pytest.mark.parametrize("group", ["flip", "C4", "D4"])
@pytest.mark.parametrize(
    ("metric", "options"),
    [
        ("latent", {}),
        ("latent", {"offset": 20.0}),
        ("latent_euclidean", {}),
        ("softmax", {}),
        ("softmax", {"gain": 30.0}),
        ("softmax_js", {}),
    ],
)
@pytest.mark.filterwarnings("ignore:.*other outputs for the same images")
def test_relative_is_1_for_a_hash_of_the_pixels(group, metric, options):
    images = torch.rand(600, 1, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    output = "scores" if metric.startswith("softmax") else "features"
    ds = measure(Hash(**options), images, group=group, metrics=[metric], layers=[], output=output)
    row = ek.summarise(ds, resamples=0).set_index("metric").loc[metric]
    assert row.relative == pytest.approx(1, abs=0.1 if options.get("gain") else 0.04)


def test_relative_is_0_for_an_invariant_model():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    images = torch.rand(40, 1, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    table = ek.summarise(measure(model, images, metrics=["latent", "softmax"], layers=[]), resamples=0)
    assert table.relative.abs().max() < 1e-6


def test_squares_neither_vanish_nor_overflow_in_float32():
    torch.manual_seed(0)
    layers = [nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(60)]
    model, images = nn.Sequential(*layers), torch.rand(8, 4, 9, 9)
    options = {"layers": ["59"], "metrics": ["channelwise"], "output": "features"}
    found = measure(model, images, precision="float32", **options)
    want = measure(model.double(), images.double(), **options)
    assert float(found.channelwise.sel(layer="59").mean()) == pytest.approx(
        float(want.channelwise.sel(layer="59").mean()), abs=1e-3
    )
    assert want.channelwise.sel(layer="59").mean() > -0.9
    assert found.dead_fraction.sel(layer="59") == 0


def test_a_custom_metric_says_its_own_scale():
    custom = distances.Distance("mine", lambda a, b: (a - b).abs().sum(-1), 0.0, math.inf, scale="norm", order=1)
    metric = Metric("mine", "vectors", custom)
    table = ek.summarise(measure(Tiny().double(), pictures(), metrics=[metric]), resamples=0)
    at = table[table.layer == "latent"].iloc[0]
    orbit = oracles.orbits(lambda x: Tiny().double().trace(x)["latent"], pictures().numpy(), "C4")
    assert at.estimate == pytest.approx(np.abs(orbit - orbit.mean(0)).sum(-1).mean(), rel=1e-5)
    assert at.scale == pytest.approx(np.linalg.norm(orbit[0], axis=-1).mean(), rel=1e-5)


def test_a_sample_that_is_not_finite_costs_itself():
    images = pictures(12).float()
    images[5] = float("nan")
    with pytest.warns(UserWarning, match="1 of 12 samples have no value"):
        ds = measure(Tiny(), images, precision="float32")
    assert ds.latent.sel(layer="latent").isnull().any("element")[0].values.tolist() == [i == 5 for i in range(12)]
    assert ds.prediction.sel(sample=5).values.tolist() == [[-1] * 4]
    row = ek.summarise(ds).query("metric == 'latent' and layer == 'latent'").iloc[0]
    assert row.n == 11
    assert np.isfinite(row.relative)


def test_a_noisy_model_is_named():
    class Noisy(nn.Module):
        def forward(self, x):
            return F.dropout(x, 0.5, training=True)

    model = nn.Sequential(nn.Conv2d(2, 4, 3), Noisy(), nn.Flatten(), nn.Linear(64, 3))
    with pytest.warns(UserWarning, match="other outputs for the same images; '1'"):
        measure(model, pictures().float(), precision="float32")


def test_the_model_comes_back_as_it_was():
    model = Tiny().train()
    model.act.eval()
    with pytest.raises(RuntimeError):
        measure(model, torch.rand(8, 5, 6, 6), precision="float32")
    measure(model, pictures().float(), precision="float32")
    assert (model.training, model.stem.training, model.act.training) == (True, True, False)
    assert not [module for module in model.modules() if module._forward_hooks or module._forward_pre_hooks]


def test_within_class_chains_hold_one_class():
    ds = measure(Tiny().double(), pictures(16), null="within-class", labels=["a", "b"] * 8)
    for chain in set(ds.chain.values.tolist()):
        assert len(set(ds.label.values[ds.chain.values == chain].tolist())) == 1


def test_too_few_images_for_a_null_are_refused():
    with pytest.raises(ValueError, match="needs 8 images, got 5"):
        measure(Tiny().double(), pictures(5), group="D4")


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_compiled_and_parallel_models_are_the_module_inside(wrap):
    images = pictures().float()
    found = measure(wrap(Tiny()), images, precision="float32")
    want = measure(Tiny(), images, precision="float32")
    np.testing.assert_array_equal(found.latent, want.latent)
    assert found.layer.values.tolist() == want.layer.values.tolist()


def test_fingerprints_see_buffers_that_are_not_saved():
    one, two = nn.Identity(), nn.Identity()
    one.register_buffer("b", torch.zeros(2), persistent=False)
    two.register_buffer("b", torch.ones(2), persistent=False)
    assert fingerprint(one) != fingerprint(two)


def test_sums_of_the_compiled_loop_are_those_of_tensors():
    z, target = torch.randn(2, 5, 12, 7).unbind(0)
    positions, partner = torch.randperm(12), torch.randperm(5)
    eager, fused = torch.empty(2, 4, 5, 7, dtype=torch.float64).unbind(0)
    accumulate.paired_sums(z, target, positions, partner, eager, fused=False)
    accumulate.paired_sums(z, target, positions, partner, fused, fused=True)
    np.testing.assert_allclose(eager, fused, atol=1e-12)
    np.testing.assert_allclose(eager[2], (z.double() * target.double()[:, positions]).sum(1), atol=1e-12)
