"""measure(): order and chains, exact facts, edges of numbers, what it leaves as it was, what it says, and bad input."""

import contextlib
import copy
import math
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import oracles
import pytest
import torch
import xarray as xr
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

import eedkit as ek
from eedkit.probe import measure as measuring
from eedkit.probe.guard import fingerprint
from eedkit.probe.run import default_batch_size
from eedkit.theory import actions, groups

N, SEED = 9, 3
COSINES = ["channelwise", "channelwise_centred", "latent"]
SOFTMAX = ["softmax", "softmax_reverse", "softmax_js", "softmax_tv", "softmax_hellinger"]
EVERY = [
    *COSINES,
    *SOFTMAX,
    *("channelwise_zero", "channelwise_skip", "channelwise_rms", "channelwise_matched"),
    *("latent_unit", "latent_flat", "latent_euclidean"),
]


class Pool(nn.Module):
    def forward(self, z):
        return z.mean((-2, -1))


class Small(nn.Module):
    """Layers maps (4×6×6) and fc; the maps of one size or another, and a head that undoes it."""

    def __init__(self, size=1.0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv, self.maps, self.fc = nn.Conv2d(2, 4, 3, padding=1), nn.Identity(), nn.Linear(4, 3)
        self.size = size

    def features(self, x):
        return self.maps(self.conv(x) * self.size).mean((-2, -1)) / self.size

    def forward(self, x):
        return self.fc(self.features(x))

    def trace(self, x):
        """The features of one image (C, H, W), by functions and not by modules."""
        with torch.no_grad():
            z = F.conv2d(torch.from_numpy(x.copy())[None], self.conv.weight, self.conv.bias, padding=1)
        return z.mean((-2, -1))[0].numpy()


def pictures(n=N, side=6):
    return torch.randn(n, 2, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def measure(model, images=None, **options):
    """In the type of the model."""
    images = pictures().to(next(iter(model.parameters()), torch.zeros(0)).dtype) if images is None else images
    settings = {"group": "C4", "progress": False, "device": "cpu", "seed": SEED, **options}
    return ek.measure(model, images, **settings)


def small():
    return Small().double()


def features_of(images, group="C4"):
    return oracles.orbits(small().trace, images.numpy(), group)


def null_of_latent(images, of_chains):
    mixed = oracles.shuffled(features_of(images), of_chains)
    return oracles.eed(mixed, "C4", oracles.stay, oracles.latent, range(4))


def reason(ds, metric, layer):
    return ds[f"{metric}_nan_reason"].sel(layer=layer).item()


def at(ds, name, layer="maps"):
    """A metric at a layer, at `latent`, or of the output."""
    metric = name.removesuffix("_null")
    return ds[name] if metric in SOFTMAX else ds[name].sel(layer="latent" if metric.startswith("latent") else layer)


# --- order, chains, sources


def test_estimates_do_not_depend_on_the_order_of_the_data():
    order = [4, 0, 6, 2, 8, 5, 1, 3, 7]
    straight, other = (measure(small(), images, batch_size=4) for images in (pictures(), pictures()[order]))
    for name in ("channelwise", "latent", "softmax", "prediction", "confidence"):
        np.testing.assert_allclose(straight[name].values[..., order], other[name].values, atol=1e-6)
    np.testing.assert_allclose(straight.latent_pair_cosine, other.latent_pair_cosine, atol=1e-12)


def test_the_seed_makes_the_chains_and_nothing_else():
    for seed in (0, 1):
        ds = measure(small(), seed=seed)
        np.testing.assert_array_equal(ds.latent, measure(small()).latent)
        of_chains = oracles.chains(N, 4, oracles.seeded_order(N, seed))
        null = ds.latent_null.sel(layer="latent", model="Small")
        np.testing.assert_allclose(null, null_of_latent(pictures(), of_chains), atol=1e-6)
        for number, chain in enumerate(of_chains):
            assert sorted(np.flatnonzero(ds.chain == number)) == sorted(chain)


def test_every_source_gives_the_same():
    loader = DataLoader(TensorDataset(pictures(), torch.arange(N)), batch_size=2)
    wanted = measure(small(), labels=list(range(N)))
    for source in (loader, iter(list(loader)), TensorDataset(pictures(), torch.arange(N))):
        ds = measure(small(), source)
        xr.testing.assert_equal(ds, wanted)
        assert ds.attrs["data"] == wanted.attrs["data"]


@pytest.mark.parametrize("batch_size", [4, 7, None])
def test_the_null_within_classes_is_that_of_chains_of_one_class(batch_size):
    images, labels = pictures(16), ["b", "a", "b", "b"] * 4
    reading = oracles.seeded_order(16, SEED)
    members = [[i for i in reading if labels[i] == name] for name in dict.fromkeys(labels[i] for i in reading)]
    of_chains = [chain for of_class in members for chain in oracles.chains(len(of_class), 4, of_class)]
    ds = measure(small(), images, null="within-class", labels=labels, batch_size=batch_size)
    null = ds.latent_null.sel(layer="latent", model="Small")
    np.testing.assert_allclose(null, null_of_latent(images, of_chains), atol=1e-6)
    assert ds.attrs["null"] == "within-class"
    assert sorted({ds.chain.values[i] for i in chain} for chain in of_chains) == [{0}, {1}, {2}, {3}]


def test_without_a_null_the_estimates_are_the_same_and_one_image_is_enough():
    for n in (N, 1):
        without, images = measure(small(), pictures()[:n], null=False), pictures()[:n]
        wanted = oracles.eed(features_of(images), "C4", oracles.stay, oracles.latent, range(4))
        np.testing.assert_allclose(without.latent.sel(layer="latent")[0], wanted, atol=1e-6)
        assert not [name for name in without.variables if name.endswith("_null")]
    assert without.latent_pair_cosine.isnull().all()


# --- exact facts of method.md, section 5


def symmetric_conv(seed=0, **options):
    """A convolution whose kernel is averaged over D4."""
    conv = nn.Conv2d(2, 4, 3, padding=1, **options).double()
    kernel = np.random.default_rng(seed).standard_normal((4, 2, 3, 3))
    turned = [np.rot90(kernel, k, axes=(-2, -1)) for k in range(4)]
    conv.weight.data = torch.from_numpy(np.mean([*turned, *(np.flip(t, -1) for t in turned)], axis=0))
    return conv


@pytest.mark.parametrize("group", ["flip", "C4", "D4"])
def test_facts_1_2_and_4_symmetric_convolutions_and_invariant_features_are_perfect(group):
    head = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    model = nn.Sequential(symmetric_conv(), nn.ReLU(), Pool(), head)
    metrics = ["channelwise", "channelwise_centred", "latent", "latent_euclidean", *SOFTMAX]
    ds = measure(model, group=group, layers=["0", "1"], head="3.0", metrics=metrics)
    for name in ("channelwise", "channelwise_centred"):
        np.testing.assert_allclose(ds[name].sel(layer=["0", "1"]), -1, atol=1e-6)
        assert (ds[f"{name}_null"].sel(layer=["0", "1"])[..., 1:, :] > -1 + 1e-4).all()
    np.testing.assert_allclose(ds.latent.sel(layer="latent"), -1, atol=1e-6)
    for name in ("latent_euclidean", *SOFTMAX):
        np.testing.assert_allclose(at(ds, name), 0, atol=1e-7)
    assert (ds.prediction == ds.prediction.isel(element=0)).all()


@pytest.mark.parametrize(("padding", "is_exact"), [("circular", True), ("zeros", False)])
def test_fact_2_shifts_need_circular_padding(padding, is_exact):
    conv = nn.Conv2d(2, 4, 3, padding=1, padding_mode=padding).double()
    model = nn.Sequential(conv, nn.ReLU(), Pool(), nn.Linear(4, 3).double())
    ds = measure(model, pictures(side=8), group="shift4", layers=["0"]).isel(element=slice(1, None))
    assert (ds.channelwise.sel(layer="0") < -1 + 1e-6).all() == is_exact
    assert (ds.channelwise.sel(layer="0") > -1 + 1e-4).all() != is_exact
    assert (ds.latent.sel(layer="latent") < -1 + 1e-6).all() == is_exact


class Lifting(nn.Module):
    """A lifting convolution to C4: map h of a field is the correlation with the kernel turned by h."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(5)))

    def forward(self, x):
        turned = torch.stack([torch.rot90(self.weight, h, (-2, -1)) for h in range(4)], 1)
        return F.conv2d(x, turned.flatten(0, 1), padding=1)


class PoolAll(nn.Module):
    """Mean over space and over the group."""

    def forward(self, z):
        return z.unflatten(1, (-1, 4)).mean((2, 3, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fact_3_channelwise_misses_what_regular_fields_show(dtype):
    model = nn.Sequential(Lifting(), nn.ReLU(), PoolAll(), nn.Linear(3, 4)).to(dtype)
    ds = measure(model, metrics=["channelwise", "channelwise_regular", "latent", *SOFTMAX], layers=["0", "1"])
    np.testing.assert_allclose(ds.latent.sel(layer="latent"), -1, atol=1e-6)
    for name in SOFTMAX:
        np.testing.assert_allclose(ds[name], 0, atol=1e-6)
    maps = ds.sel(layer=["0", "1"], element=["r90", "r180", "r270"])
    assert (maps.channelwise > -0.95).all()
    np.testing.assert_allclose(maps.channelwise_regular, -1, atol=1e-6)


# --- edges of numbers


@pytest.fixture(params=["compiled", "eager"])
def way(request, monkeypatch):
    """Whether sums of float32 maps come from the compiled loop or from tensor operations."""
    if request.param == "compiled":
        pytest.importorskip("numba")
    monkeypatch.setattr(measuring, "is_worth_compiling", lambda numbers: request.param == "compiled")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("size", [1e-140, 1e-22, 1e19, 1e37, 1e140])
def test_the_size_of_activations_changes_no_cosine(size, recwarn):
    dtype = torch.float32 if 1e-40 < size < 1e38 else torch.float64
    found, wanted = (measure(Small(s).to(dtype), layers=["maps"], metrics=COSINES) for s in (size, 1.0))
    for name in (*COSINES, *(f"{name}_null" for name in COSINES)):
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-5, err_msg=name)
    assert found.dead_fraction.sel(layer="maps") == 0
    assert not recwarn.list


@pytest.mark.usefixtures("way")
def test_deep_networks_without_bias_are_no_dead_networks():
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(60)])
    images = torch.rand(16, 4, 9, 9)
    assert model(images).abs().max() < 1e-12
    options = {"layers": ["59"], "metrics": COSINES, "output": "features"}
    found = measure(model, images, **options).sel(layer="59")
    wanted = measure(model.double(), images.double(), **options).sel(layer="59")
    for name in (*COSINES, *(f"{name}_null" for name in COSINES)):
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-4, err_msg=name)
    assert -0.35 < float(wanted.channelwise.mean()) < -0.2
    assert found.dead_fraction == wanted.dead_fraction == 0


@pytest.mark.usefixtures("way")
def test_features_that_are_all_zero_agree_perfectly(recwarn):
    model = Small()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    ds = measure(model, metrics=EVERY, layers=["maps"])
    for name in EVERY:
        if name in ("channelwise_skip", "channelwise_centred"):
            assert reason(ds, name, "maps").startswith("undefined for 9 of 9 samples")
            assert at(ds, name).isnull().all()
            continue
        best = 0.0 if name == "channelwise_zero" else ds[name].attrs["best"]
        np.testing.assert_allclose(at(ds, name), best, atol=1e-7, err_msg=name)
        np.testing.assert_allclose(at(ds, f"{name}_null"), best, atol=1e-7, err_msg=name)
    assert ds.dead_fraction.sel(layer="maps") == 1
    assert ds.latent_pair_cosine.isnull().all()
    assert not recwarn.list


@pytest.mark.usefixtures("way")
def test_identical_and_constant_images_have_a_null_that_is_the_estimate(recwarn):
    metrics = [name for name in EVERY if name != "channelwise_matched"]
    ds = measure(Small(), pictures()[:1].repeat(9, 1, 1, 1).float(), metrics=metrics, layers=["maps"])
    for name in metrics:
        np.testing.assert_allclose(at(ds, f"{name}_null"), at(ds, name), atol=1e-5, err_msg=name)
    assert ds.latent_pair_cosine.sel(layer="latent").item() == pytest.approx(1, abs=1e-6)
    model = nn.Sequential(symmetric_conv(padding_mode="circular"), Pool(), nn.Linear(4, 3).double()).float()
    ds = measure(model, torch.full((9, 2, 6, 6), 0.7), metrics=metrics, layers=["0"])
    for name in metrics:
        if name == "channelwise_centred":
            assert at(ds, name, "0").isnull().all()
            continue
        np.testing.assert_allclose(at(ds, name, "0"), ds[name].attrs["best"], atol=1e-6, err_msg=name)
        np.testing.assert_allclose(at(ds, f"{name}_null", "0"), ds[name].attrs["best"], atol=1e-6, err_msg=name)
    assert not recwarn.list


class Parts(Small):
    """One channel is the image, the others are constants that no float holds exactly."""

    def features(self, x):
        x = x[:, :1]
        z = torch.cat([x, torch.full_like(x, 0.1), torch.full_like(x, 1e4 / 3), torch.zeros_like(x)], 1)
        return self.maps(z).mean((-2, -1))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("side", [2, 7, 33])
def test_constant_channels_are_left_out_once_they_are_centred(side):
    images = pictures(6, side).float()
    ds = measure(Parts(), images, metrics=["channelwise_centred"], layers=["maps"]).sel(layer="maps", model="Parts")
    np.testing.assert_allclose(ds.channelwise_centred, -1, atol=1e-6)
    orbit = oracles.orbits(oracles.centred, images[:, :1].double().numpy(), "C4")
    mixed = oracles.shuffled(orbit, oracles.chains(6, 4, oracles.seeded_order(6, SEED)))
    wanted = oracles.eed(mixed, "C4", oracles.move, oracles.channelwise, [0])
    np.testing.assert_allclose(ds.channelwise_centred_null, wanted, atol=1e-5)


# --- no value, and why


class Breaks(Small):
    """NaN at the output for the image with a mark in one corner, once it is turned by 180°."""

    def forward(self, x):
        scores = super().forward(x)
        return torch.where(x[:, 0, -1:, -1] > 90, scores * math.nan, scores)


@pytest.mark.parametrize("batch_size", [1, 4, None])
def test_an_output_that_is_not_finite_names_sample_and_element(batch_size):
    images = pictures()
    images[4, 0, 0, 0] = 99
    with pytest.warns(UserWarning, match="1 of 9 .*output is not finite for sample 4 under r180$"):
        ds = measure(Breaks().double(), images, batch_size=batch_size).isel(model=0)
    assert np.flatnonzero(ds.softmax.isnull().any("element")).tolist() == [4]
    assert ds.latent.sel(layer="latent").notnull().all()
    assert np.flatnonzero((ds.prediction == -1).any("element")).tolist() == [4]
    assert ds.prediction.sel(sample=4).values.tolist().count(-1) == 1
    row = ek.summarise(ds).query("metric == 'softmax'").iloc[0]
    assert row.n == 8
    assert np.isfinite(row.relative)


class Torn(Dataset):
    """Images of which some cannot be read."""

    def __init__(self, torn, images):
        self.torn, self.images = torn, images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        if i in self.torn:
            raise OSError(f"file {i} is torn")
        return self.images[i], i % 3


def test_unreadable_images_are_named_in_one_warning():
    torn = [1, 2, 5, 7]
    said = r"4 of 9 samples have no value: .*torn; .*torn; .*torn \(and 1 more\)"
    with pytest.warns(UserWarning, match=said) as caught:
        ds = measure(small(), Torn(torn, pictures()))
    assert len(caught) == 1
    whole, rest = measure(small()), np.delete(np.arange(N), torn)
    assert ds.label.values.tolist() == [-1 if i in torn else i % 3 for i in range(N)]
    for name in ("latent", "channelwise", "prediction", "confidence"):
        np.testing.assert_array_equal(ds[name].isel(sample=rest), whole[name].isel(sample=rest), err_msg=name)
    assert at(ds, "latent").isel(sample=torn).isnull().all()
    assert (ds.prediction.isel(sample=torn) == -1).all()


def test_maps_of_one_position_have_no_cosine():
    model = nn.Sequential(nn.Conv2d(2, 3, 6), nn.Flatten(), nn.Linear(3, 4)).double()
    ds = measure(model, layers=["0", "2"])
    one_position = "its output has one position, where a cosine only compares signs"
    said = {"0": one_position, "2": one_position, "latent": "it is the head's input, not a feature map"}
    assert {layer: reason(ds, "channelwise", layer) for layer in said} == said
    assert ds.channelwise.isnull().all()
    assert ds.channelwise_null.isnull().all()
    assert ds.latent.notnull().all()


def test_dead_samples_have_no_value_where_dead_channels_are_skipped():
    images = pictures()
    images[2] = 0
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, bias=False), Pool(), nn.Linear(3, 4)).double()
    ds = measure(model, images, metrics=["channelwise", "channelwise_skip"], layers=["0"]).sel(
        layer="0", model="Sequential"
    )
    assert np.flatnonzero(ds.channelwise_skip.isnull().any("element")).tolist() == [2]
    assert ds.channelwise_skip_nan_reason.item().startswith("undefined for 1 of 9 samples")
    np.testing.assert_allclose(ds.channelwise.sel(sample=2), -1)


class Early(Small):
    """Has another layer, which bright batches pass by."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(2, 2, 2)

    def forward(self, x):
        if x.abs().amax() < 50:
            self.down(x)
        return super().forward(x)


def test_a_layer_that_runs_for_some_batches_only_has_no_value():
    images = pictures(12)
    images[oracles.seeded_order(12, SEED)[-1]] *= 100
    ds = measure(Early().double(), images, layers=["maps", "down"], batch_size=4)
    for name in ("channelwise", "channelwise_null", "latent"):
        assert ds[name].sel(layer="down").isnull().all()
    assert reason(ds, "channelwise", "down") == "it does not run in every forward pass"
    assert ds.channelwise.sel(layer="maps").notnull().all()


class Dropping(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, training=True)


class Batchwise(Small):
    def forward(self, x):
        return super().forward(x - x.mean(0))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Sequential(nn.Conv2d(2, 4, 3), Dropping(), nn.Flatten(), nn.Linear(64, 3)), "; '1' is the first module to do so"),
        (Batchwise(), ", depending on the others in their batch"),
    ],
)  # fmt: skip
def test_a_model_that_is_no_function_of_its_images_is_told(model, said):
    with pytest.warns(UserWarning, match=f"gives other outputs for the same images{said}") as caught:
        ds = measure(model)
    assert len(caught) == 1
    assert ds.attrs["repeatable"] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_repeatable_model_is_not_warned_of(dtype, recwarn):
    assert measure(Small().to(dtype)).attrs["repeatable"] == 1
    assert not recwarn.list


# --- the model and the process as they were


def state_of(*models):
    flags = {
        "default": torch.get_default_dtype(),
        "matmul": torch.get_float32_matmul_precision(),
        "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32),
        "grad": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "threads": torch.get_num_threads(),
        "chance": torch.get_rng_state().tolist(),
    }
    states = []
    for model in models:
        modules = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
        tensors = [*model.named_parameters(), *model.named_buffers()]
        values = {key: (id(z), z.requires_grad, z.dtype, z.tolist()) for key, z in tensors}
        states.append((modules, values))
    return flags, states


def with_statistics():
    """In train mode but for one module, with a frozen weight and statistics of other images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), Pool(), nn.Linear(3, 2)).double()
        model(pictures() * 3)
    model.train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    return model


@pytest.mark.parametrize("metrics", [["latent"], ["channelwise_matched", "softmax"]])
def test_the_model_is_left_as_found(metrics):
    model = with_statistics()
    before = state_of(model)
    ds = measure(model, metrics=metrics, layers=["0"])
    assert state_of(model) == before
    in_eval = measure(with_statistics().eval(), metrics=metrics, layers=["0"])
    for name in metrics:
        np.testing.assert_array_equal(ds[name], in_eval[name])


class Counts(Small):
    """Raises from a certain forward pass on, and keeps how many images it was shown and under what."""

    def __init__(self, fails_at=math.inf):
        super().__init__()
        self.fails_at, self.seen = fails_at, []

    def forward(self, x):
        autocast = torch.is_autocast_enabled("cpu")
        self.seen.append((len(x), x.dtype, autocast, self.training, torch.is_grad_enabled()))
        if len(self.seen) >= self.fails_at:
            raise RuntimeError(f"pass {self.fails_at}")
        return super().forward(x)


@pytest.mark.parametrize("at", [1, 2, 6, 9])
def test_the_model_is_left_as_found_also_by_an_exception(at):
    model = Counts(at).train()
    model.maps.eval()
    before = state_of(model)
    with pytest.raises(RuntimeError, match=f"pass {at}"):
        measure(model, batch_size=4)
    assert state_of(model) == before


def test_images_are_left_as_they_were():
    class InPlace(Small):
        def forward(self, x):
            return super().forward(x.mul_(2).sub_(0.3))

    class Careful(Small):
        def forward(self, x):
            return super().forward(x * 2 - 0.3)

    images = pictures().requires_grad_()
    metrics = ["channelwise", "channelwise_matched", "latent", "softmax"]
    found, wanted = (measure(kind().double(), images, name="same", metrics=metrics) for kind in (InPlace, Careful))
    assert torch.equal(images.detach(), pictures())
    assert images.grad is None
    xr.testing.assert_equal(found.drop_vars("weights"), wanted.drop_vars("weights"))
    assert found.attrs["data"] == wanted.attrs["data"]


class Writes(Small):
    """Writes to a parameter or a buffer as it runs, or only counts; fails in a late pass if it should."""

    def __init__(self, how, fails_at=math.inf):
        super().__init__()
        self.norm, self.how, self.fails_at = nn.BatchNorm2d(2), how, fails_at
        self.register_buffer("calls", torch.zeros(1, dtype=torch.int64))

    def forward(self, x):
        self.calls += 1
        if self.calls >= self.fails_at:
            raise RuntimeError("late")
        if self.how == "in place":
            self.fc.bias.add_(1e-6)
        if self.how == "data":
            self.fc.bias.data = self.fc.bias + 1e-6
        if self.how == "another parameter":
            self.fc.bias = nn.Parameter(self.fc.bias + 1e-6)
        if self.how == "statistics":
            self.norm.train()
            self.norm(x)
        return super().forward(x)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("in place", "fc.bias"),
        ("data", "fc.bias"),
        ("another parameter", "fc.bias"),
        ("statistics", "norm.running_mean, norm.running_var"),
    ],
)
@pytest.mark.parametrize("fails_at", [math.inf, 6])
def test_a_model_that_changes_its_weights_is_refused_and_gets_them_back(how, said, fails_at):
    model = Writes(how, fails_at)
    before = state_of(model)
    error = RuntimeError if fails_at == 6 else ValueError
    with pytest.raises(
        error, match="late" if fails_at == 6 else rf"Writes changes its own weights as it runs \({said}\)"
    ):
        measure(model, layers=["conv"], batch_size=4)
    assert state_of(model) == before


def test_a_model_that_counts_its_calls_is_measured():
    assert measure(Writes("counts"), layers=["conv"]).latent.notnull().all()


@pytest.mark.parametrize("shares_a_layer", [False, True])
def test_two_threads_measure_as_one_after_the_other(shares_a_layer):
    one = with_statistics()
    other = nn.Sequential(one[:4], nn.Linear(3, 2).double()) if shares_a_layer else one
    before = state_of(one, other)
    jobs = [(model, group) for model, group in ((one, "C4"), (other, "flip")) for _ in range(4)]
    ready = threading.Barrier(len(jobs))

    def run(job):
        ready.wait()
        return measure(job[0], pictures(24), group=job[1], batch_size=8, layers="all", metrics=["latent", "softmax"])

    wanted = [
        measure(model, pictures(24), group=group, batch_size=8, layers="all", metrics=["latent", "softmax"])
        for model, group in jobs
    ]
    with ThreadPoolExecutor(len(jobs)) as pool:
        found = list(pool.map(run, jobs))
    for pair in zip(found, wanted, strict=True):
        xr.testing.assert_equal(*pair)
    assert state_of(one, other) == before


FIRST_LOOP = """
import torch, eedkit as ek
from eedkit.probe import measure, sums
measure.is_worth_compiling = lambda numbers: True
torch.set_num_threads(1)
net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(18, 2))
ek.measure(net, torch.rand(8, 1, 5, 5), group="C4", progress=False, device="cpu")
print(sums._loop() is not None, torch.get_num_threads())
"""


def test_the_first_compiled_loop_leaves_the_number_of_threads():
    pytest.importorskip("numba")
    done = subprocess.run([sys.executable, "-c", FIRST_LOOP], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True", "1"], done.stderr


@contextlib.contextmanager
def bfloat16_by_default():
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("around", [lambda: torch.autocast("cpu", torch.bfloat16), bfloat16_by_default])
def test_what_is_switched_on_outside_changes_nothing(around):
    model, wanted = Small(), measure(Small(), metrics=EVERY)
    with around():
        before = state_of(model)
        found = measure(model, metrics=EVERY)
        assert state_of(model) == before
    xr.testing.assert_equal(found, wanted)
    assert found.attrs["precision"] == "float32"


@pytest.mark.parametrize(
    ("precision", "dtype", "seen"),
    [
        ("auto", torch.float64, (torch.float64, False)),
        ("auto", torch.bfloat16, (torch.bfloat16, False)),
        ("bfloat16", torch.bfloat16, (torch.bfloat16, False)),
        ("bfloat16", torch.float32, (torch.float32, True)),
        ("float16", torch.float32, (torch.float32, True)),
    ],
)
def test_a_model_runs_in_the_precision_that_is_asked_for(precision, dtype, seen):
    model = Counts().to(dtype)
    ds = measure(model, pictures().float(), precision=precision, layers=["maps"], name="Small")
    assert {run[1:] for run in model.seen} == {(*seen, False, False)}
    assert ds.attrs["precision"] == (precision if precision != "auto" else str(dtype).removeprefix("torch."))
    wanted = measure(Small(), layers=["maps"])
    for name in ("channelwise", "latent", "softmax"):
        np.testing.assert_allclose(ds[name], wanted[name], atol=0.1)
        assert abs(ds[name] - wanted[name]).mean() < 0.005
    # the distances are not taken in half precision
    np.testing.assert_allclose(ds.channelwise.sel(layer="maps", element="e"), -1, atol=1e-6)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda model: nn.DataParallel(torch.compile(model))])
def test_compiled_and_parallel_models_are_the_module_inside(wrap):
    xr.testing.assert_equal(measure(wrap(Small()), pictures().float()), measure(Small()))


@pytest.mark.parametrize("how", ["traced", "scripted"])
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_of_a_script_module_only_the_output_is_measured(how):
    model = torch.jit.trace(Small().eval(), pictures()[:2].float()) if how == "traced" else torch.jit.script(Small())
    metrics = ["softmax", "softmax_js", "latent", "channelwise"]
    ds, wanted = (measure(one, pictures().float(), metrics=metrics, layers="blocks") for one in (model, Small()))
    for name in ("softmax", "softmax_null", "softmax_js", "prediction"):
        np.testing.assert_allclose(ds[name].values, wanted[name].values, atol=1e-6)
    for name in ("latent", "channelwise"):
        assert ds[name].isnull().all()
        assert reason(ds, name, "latent") != ""


# --- what it is given and what it says


def test_a_model_may_be_called_in_another_way():
    class Prompted(Small):
        def forward(self, x, prompt):
            return super().forward(x) + prompt

    with pytest.raises(
        ValueError, match=r"wants more than images: prompt. Say how .* call=lambda model, images: model"
    ):
        measure(Prompted().double())
    ds = measure(Prompted().double(), call=lambda model, images: model(images, prompt=0.5))
    for name in ("latent", "softmax"):
        np.testing.assert_allclose(ds[name].values, measure(small())[name].values, atol=1e-7)
    ds = measure(small(), call=lambda model, images: model.features(images), output="features", layers=["conv"])
    np.testing.assert_allclose(at(ds, "latent").values, at(measure(small()), "latent").values, atol=1e-7)


def test_a_custom_action_moves_colours():
    swap = actions.Action("colours", groups.parse("C2"), colours=lambda channels: torch.tensor([[0, 1], [1, 0]]))
    ds = measure(small(), group=swap, metrics=["latent"])
    x = pictures().numpy()
    orbit = np.array([[small().trace(z) for z in part] for part in (x, x[:, ::-1])])
    wanted = oracles.eed(orbit, "C2", oracles.stay, oracles.latent, [0, 1])
    np.testing.assert_allclose(ds.latent.sel(layer="latent")[0], wanted, atol=1e-6)
    assert ds.attrs["action"] == "colours"


def test_layouts_say_how_a_layer_is_read():
    class Rows(Small):
        def features(self, x):
            return self.maps(x.flatten(2).mT.repeat(1, 1, 2)).mean(1)

    options = {"layers": ["maps"], "layouts": {"maps": "b 6x6 c"}, "metrics": ["channelwise"]}
    found = measure(Rows().double(), **options).channelwise.sel(layer="maps")[0]
    wanted = oracles.eed(
        oracles.orbits(np.asarray, pictures().numpy(), "C4"), "C4", oracles.move, oracles.channelwise, [0]
    )
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_the_dataset_says_where_it_comes_from():
    ds = measure(small(), name="mine", layers=["conv", "fc"], labels=list("abcabcabc"))
    assert ds.sizes == {"model": 1, "layer": 3, "element": 4, "sample": N}
    assert ds.model.item() == "mine"
    assert ds.layer.values.tolist() == ["conv", "fc", "latent"]
    assert ds.element.values.tolist() == ["e", "r90", "r180", "r270"]
    assert ds.angle.values.tolist() == [0, 90, 180, 270]
    assert ds.channels[0].values.tolist() == [4, 3, 4]
    assert ds.height[0].values.tolist() == ds.width[0].values.tolist() == [6, 1, 1]
    assert ds.layout[0].values.tolist() == ["b c h w", "b c", "b c"]
    assert ds.channelwise_kernel_order[0].values.tolist() == [1, 0, 0]
    assert ds.latent_kernel_order[0].values.tolist() == [4, 4, 4]
    assert ds.layer_type[0].values.tolist() == ["Conv2d", "Linear", "Linear"]
    assert ds.depth[0].values.tolist() == pytest.approx([1 / 3, 1, 5 / 6])
    said = {
        key: ds.attrs[key] for key in ("group", "head", "null", "seed", "precision", "device", "output", "output_kind")
    }
    assert list(said.values()) == ["C4", "fc", "True", SEED, "float64", "cpu", "", "scores"]
    about = {
        name: [ds[name].attrs[key] for key in ("best", "units", "order")]
        for name in ("channelwise", "latent", "softmax")
    }
    assert about == {"channelwise": [-1, "1", 2], "latent": [-1, "1", 2], "softmax": [0, "nat", 2]}
    assert {ds[name].dtype for name in ("channelwise", "latent", "softmax", "latent_null")} == {np.dtype("float32")}
    assert ds.softmax.dims == ("model", "element", "sample")
    assert (ds.label.dtype, ds.label.values.tolist()) == (object, list("abcabcabc"))


def test_layers_show_what_would_be_measured():
    class Heads(Small):
        def forward(self, x):
            z = self.features(x)
            return {"decoder": {"cls": self.fc(z)}, "mask": 2 * x}

    table = ek.layers(
        Heads(), torch.rand(1, 2, 6, 6), layers=["conv"], output={"decoder.cls": "scores", "mask": "dense"}
    )
    columns = ["layer", "layout", "height", "channels", "head", "entry", "kind"]
    assert table[columns].to_numpy().tolist() == [
        ["conv", "b c h w", 6, 4, "", "", ""],
        ["latent", "b c", 1, 4, "fc", "", ""],
        ["output", "b c", 1, 3, "", "decoder.cls", "scores"],
        ["output[mask]", "b c h w", 6, 2, "", "mask", "dense"],
    ]


def test_the_same_seed_gives_the_identical_dataset_twice():
    one, two = (measure(small(), batch_size=4) for _ in range(2))
    assert one.attrs.pop("created")
    assert two.attrs.pop("created")
    xr.testing.assert_identical(one, two)


def test_the_checksum_of_the_data_sees_images_and_labels():
    def checksum(images=None, **options):
        return measure(small(), pictures() if images is None else images, metrics=["latent"], **options).attrs["data"]

    other = pictures()
    other[3, 1, 2, 2] += 0.01
    assert checksum() == checksum(seed=9) == checksum(batch_size=4) == checksum(DataLoader(pictures(), 3))
    assert len({checksum(), checksum(other), checksum(labels=[0] * 9), checksum(pictures()[:-1])}) == 4


def test_progress_shows_control_characters_of_a_name(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    measure(small(), name="\x1b]0;owned\x07", progress=True)
    shown = capsys.readouterr().err
    assert r"\x1b]0;owned\x07:" in shown
    assert "\x1b]" not in shown


@pytest.mark.parametrize(
    ("shape", "order", "device", "size"),
    [
        ((1, 5, 5), 4, "cpu", 256),
        ((3, 32, 32), 4, "cpu", 128),
        ((3, 224, 224), 4, "cpu", 32),
        ((3, 224, 224), 8, "cpu", 64),
        ((3, 2000, 2000), 16, "cuda", 32),
    ],
)
def test_batches_are_as_large_as_their_images_allow(shape, order, device, size):
    assert default_batch_size(shape, order, device) == size


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


def sparse(*values):
    return torch.sparse_coo_tensor([[0, 2]], torch.tensor(values), (4,))


def quantised(scale):
    return torch.quantize_per_tensor(torch.tensor([1.0, 2.0]), scale, 0, torch.qint8)


COMPLEX = torch.tensor([1 + 2j, 3 - 1j])
PAIRS_OF_MODELS = {
    "weights": lambda: (Small(), fill(Small(), 1e-6)),
    "buffers that are not saved": lambda: [buffers(torch.full((2,), k), persistent=False) for k in (0.0, 1.0)],
    "shapes": lambda: (buffers(torch.zeros(2, 3)), buffers(torch.zeros(3, 2))),
    "types": lambda: (buffers(torch.zeros(2)), buffers(torch.zeros(2, dtype=torch.int32))),
    "extra state": lambda: (Extra({"step": 1}), Extra({"step": 2})),
    "extra state of tensors": lambda: (Extra(torch.zeros(2)), Extra(torch.ones(2))),
    "sparse values": lambda: (buffers(sparse(1.0, 2.0)), buffers(sparse(1.0, 3.0))),
    "conjugates": lambda: (buffers(COMPLEX), buffers(COMPLEX.conj())),
    "negatives": lambda: (buffers(COMPLEX.imag), buffers(COMPLEX.conj().imag)),
    "half precisions": lambda: (buffers(torch.ones(2).bfloat16()), buffers(torch.zeros(2).bfloat16())),
    "quantised weights": lambda: (buffers(quantised(0.1)), buffers(quantised(0.2))),
    "classes": lambda: (nn.ReLU(), nn.GELU()),
}


def fill(model, more):
    with torch.no_grad():
        model.conv.weight[1, 1, 1, 1] += more
    return model


@pytest.mark.parametrize("what", PAIRS_OF_MODELS)
@pytest.mark.filterwarnings("ignore:.*[Ss]parse", "ignore::UserWarning", "ignore::DeprecationWarning")
def test_fingerprints_see(what):
    (one, two), (same, _) = PAIRS_OF_MODELS[what](), PAIRS_OF_MODELS[what]()
    assert (
        fingerprint(one) == fingerprint(same) == fingerprint(copy.deepcopy(one).to(memory_format=torch.channels_last))
    )
    assert fingerprint(one) != fingerprint(two)


# --- bad input

REFUSED = [
    # options, what the error says, how many images the model was shown before
    ({"group": "c4"}, "no group 'c4'; did you mean 'C4'", 0),
    ({"group": 4}, "a group is a name such as 'C4' or a Group, got int", 0),
    ({"group": "SO(2)?k=3"}, r"has 'k=3'; its options are n \(how many parts\), seed and jitter", 0),
    ({"metrics": ["latnet"]}, "no metric 'latnet'; did you mean 'latent'", 0),
    ({"metrics": [5]}, "a metric is a name such as 'latent' or a Metric, got int", 0),
    ({"metrics": []}, r"metrics must be one or more with different names, got \[\]", 0),
    ({"metrics": ["latent", "latent"]}, "different names", 0),
    ({"precision": "float23"}, "no precision 'float23'; did you mean 'float32'", 0),
    (
        {"precision": "float32"},
        r"needs float32 weights, but conv.weight is torch.float64; leave .*\.to\(torch.float32\)",
        0,
    ),
    ({"null": "within"}, "null must be True, False or 'within-class', got 'within'", 0),
    (
        {"null": "within-class", "labels": [0, 1, 1] * 3},
        "needs 4 images of each class, got 3 of 0; leave that class out",
        0,
    ),
    ({"null": "within-class"}, "needs to know the labels", 0),
    ({"null": "within-class", "labels": [0] * 9, "metrics": ["channelwise_matched"]}, "ask for one of both", 0),
    ({"batch_size": 0}, "batch_size must be a whole number from 1 on, or None to choose one, got 0", 0),
    ({"batch_size": 2.5}, "batch_size must be a whole number from 1 on, or None to choose one, got 2.5", 0),
    ({"device": "cda"}, "there is no device 'cda'; take 'auto', 'cpu', 'cuda' or 'cuda:1'", 0),
    ({"device": "mps"}, "device 'mps' has no float64", 0),
    ({"device": "meta"}, "on the device 'meta' tensors have no values, and the weights would be lost", 0),
    ({"labels": [1, 2]}, "expected one label for each of 9 images, got 2", 0),
    ({"labels": [[0, 1, 1]] * 9}, "the labels say several classes .* pass output='independent'", 0),
    ({"call": "features"}, r"call must be a function \(model, images\) -> output, got str", 0),
    ({"layers": 3}, "layers must be a text or a list of names, got 3", 0),
    ({"layouts": "b c h w"}, "layouts must be a dict from names to texts, got 'b c h w'", 0),
    ({"layouts": {"maps": 4}}, "layouts must be a dict from names to texts, got 'maps': 4", 0),
    ({"output": 1.5}, "output must be the name or number of an entry, what it is .* got 1.5", 0),
    ({"output": {"logits": "score"}}, "no kind of output 'score'; did you mean 'scores'", 0),
    ({"layers": "("}, r"layers='\(' is no regular expression", 2),
    ({"layers": ["conf"]}, "no layer 'conf'; did you mean 'conv'", 2),
    ({"layers": "block.*"}, "no layer whose whole name matches 'block", 2),
    ({"head": "fcc"}, "no head 'fcc'; did you mean 'fc'", 2),
    ({"layouts": {"map": "b c"}}, "layouts: no layer 'map'; did you mean 'maps'", 2),
    ({"layouts": {"maps": "b 5x6 c"}}, r"layouts\['maps'\]: the layout 'b 5x6 c' ", 2),
    ({"output": "logits"}, "no output 'logits'", 2),
    ({"output": "dense"}, r"output='dense' needs a map \(b, c, h, w\), got \(2, 3\)", 2),
    ({"images": torch.rand(9, 2, 5, 6)}, "quarter turns need square images, got 5×6; centre-crop or pad first", 0),
    ({"images": pictures(), "group": "shift4"}, "shifts by 1/4 of the height need .* got 6", 0),
    ({"images": pictures(), "group": "rgb"}, "rgb permutes 3 colour channels, got images of 2", 0),
    ({"images": pictures(0)}, "there is no image to measure on; expected at least one", 0),
    ({"images": pictures(3)}, "needs 4 images, got 3; pass more, or null=False", 0),
    ({"images": iter(pictures(7)), "group": "D4"}, "needs 8 images, got 7; pass more, or null=False", 0),
    ({"images": pictures(1), "group": "flip"}, "needs 2 images, got 1; pass more, or null=False", 0),
    ({"images": np.zeros((9, 8, 8, 3), np.float32)}, r"channels last\? pass images.transpose\(0, 3, 1, 2\)", 0),
    ({"images": Torn(range(9), pictures())}, "no image could be read; the first: number .: OSError: file . is torn", 0),
    ({"images": "digits/test"}, "got the name 'digits/test'; open it first", 0),
]


@pytest.mark.parametrize(("options", "message", "images_seen"), REFUSED, ids=lambda value: str(value)[:60])
def test_bad_input_is_refused_before_anything_is_measured(options, message, images_seen):
    model = Counts().double()
    before = state_of(model)
    with pytest.raises((ValueError, TypeError), match=message):
        measure(model, **options)
    assert sum(run[0] for run in model.seen) <= images_seen
    assert state_of(model) == before


def test_what_is_no_model_is_refused_by_name():
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got Tensor; the images come second"):
        ek.measure(torch.rand(3, 2, 6, 6), Small(), group="C4")


@pytest.mark.parametrize("make", [lambda: nn.Sequential(nn.LazyLinear(3)), lambda: Small().to("meta")])
def test_weights_without_values_are_refused(make):
    with pytest.raises(ValueError, match=r"has no values"):
        measure(make(), pictures().float())


# --- on a GPU, and memory


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
@pytest.mark.parametrize(("precision", "atol", "on_average"), [("float32", 1e-4, 1e-5), ("bfloat16", 0.1, 0.01)])
def test_cuda_is_near_the_cpu(precision, atol, on_average):
    wanted = measure(small(), metrics=EVERY, layers=["maps"], batch_size=4)
    for model, images in ((Small(), pictures().float()), (Small().cuda(), pictures().float().cuda())):
        home = {p.device for p in model.parameters()}
        found = measure(model, images, precision=precision, device="auto", metrics=EVERY, layers=["maps"], batch_size=4)
        assert {p.device for p in model.parameters()} == home
        assert found.attrs["device"] == torch.cuda.get_device_name()
        assert found.attrs["data"] == measure(Small()).attrs["data"]
        for name in (*EVERY, *(f"{name}_null" for name in EVERY)):
            np.testing.assert_allclose(found[name], wanted[name], atol=atol, rtol=10 * atol, err_msg=name)
            assert abs(found[name] - wanted[name]).mean() < on_average, name


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
