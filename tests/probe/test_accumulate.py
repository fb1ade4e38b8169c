"""Sums over positions against loops in float64, and what a layer collects: slices, chains, dead channels, kept orbits."""

import math
import subprocess
import sys

import numpy as np
import oracles
import pytest
import torch
from torch import nn

import eedkit as ek
from eedkit.probe import accumulate
from eedkit.probe.accumulate import MapSums, count_dead, paired_sums
from eedkit.theory import actions, deviation, distances, groups
from eedkit.theory.distances import ChannelSums

pytest.importorskip("numba")

WAYS = {"fused": True, "eager": False}


def sums_by_loops(z, target, positions, partner):
    """Σz, Σz², Σ z·gt and Σ z′·gt, number by number."""
    images, places, channels = z.shape
    sums = np.zeros((4, images, channels))
    for i in range(images):
        for c in range(channels):
            values = [float(z[i, p, c]) for p in range(places)]
            of_partner = [float(z[partner[i], p, c]) for p in range(places)]
            moved = [float(target[i, positions[p], c]) for p in range(places)]
            sums[0, i, c] = math.fsum(values)
            sums[1, i, c] = math.fsum(v * v for v in values)
            sums[2, i, c] = math.fsum(v * m for v, m in zip(values, moved, strict=True))
            sums[3, i, c] = math.fsum(v * m for v, m in zip(of_partner, moved, strict=True))
    return sums


def drawn(images=5, places=12, channels=7, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(images, places, channels, generator=generator, dtype=dtype)
    target = torch.randn(images, places, channels, generator=generator, dtype=dtype)
    positions = torch.randperm(places, generator=generator)
    partner = torch.randperm(images, generator=generator)
    return z, target, positions, partner


def summed(z, target, positions, partner, *, fused):
    sums = torch.full((4, len(z), z.shape[2]), math.nan, dtype=torch.float64)
    paired_sums(z, target, positions, partner, sums, fused=fused)
    return sums.numpy()


@pytest.mark.parametrize("fused", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("size", [(5, 12, 7), (1, 1, 1), (2, 9, 1), (3, 1, 4), (16, 4, 33)])
def test_sums_are_those_of_the_loops(size, fused):
    drawn_maps = drawn(*size)
    np.testing.assert_allclose(summed(*drawn_maps, fused=fused), sums_by_loops(*drawn_maps), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_than_float32_are_summed_too(dtype):
    drawn_maps = drawn(dtype=dtype)
    np.testing.assert_allclose(summed(*drawn_maps, fused=True), sums_by_loops(*drawn_maps), atol=1e-12)


@pytest.mark.parametrize("cache", [1, 84, 200, 10**6])
def test_eager_sums_do_not_depend_on_the_cache(monkeypatch, cache):
    monkeypatch.setattr(accumulate, "IN_CACHE", cache)
    drawn_maps = drawn()
    np.testing.assert_allclose(summed(*drawn_maps, fused=False), sums_by_loops(*drawn_maps), atol=1e-12)


@pytest.mark.parametrize("fused", WAYS.values(), ids=WAYS)
def test_memory_in_another_order_gives_the_same_sums(fused):
    z, target, positions, partner = drawn()
    straight = summed(z, target, positions, partner, fused=fused)
    channels_first = z.mT.contiguous().mT
    assert not channels_first.is_contiguous()
    crossed = summed(channels_first, target.mT.contiguous().mT, positions, partner, fused=fused)
    np.testing.assert_allclose(crossed, straight, atol=1e-13)


@pytest.mark.parametrize("fused", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_squares_of_float32_neither_vanish_nor_overflow(size, fused):
    z, target, positions, partner = drawn()
    sums = summed(z * size, target * size, positions, partner, fused=fused)
    assert np.isfinite(sums).all()
    assert (sums[1] > 0).all()
    np.testing.assert_allclose(sums[1:] / size**2, summed(z, target, positions, partner, fused=fused)[1:], rtol=1e-4)


@pytest.mark.parametrize("fused", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_spoils_its_own_channel_only(bad, fused):
    z, target, positions, partner = drawn()
    clean = summed(z, target, positions, partner, fused=fused)
    z[1, 3, 2] = bad
    sums = summed(z, target, positions, partner, fused=fused)
    spoilt = ~np.isfinite(sums)
    expected = np.zeros_like(spoilt)
    expected[:3, 1, 2] = True
    expected[3, partner == 1, 2] = True
    np.testing.assert_array_equal(spoilt, expected)
    np.testing.assert_array_equal(sums[~spoilt], clean[~spoilt])


def test_without_numba_tensors_do_the_sums(monkeypatch):
    monkeypatch.setitem(sys.modules, "eedkit.probe.fused", None)
    monkeypatch.delattr("eedkit.probe.fused", raising=False)
    accumulate._fused_loop.cache_clear()
    try:
        assert accumulate._fused_loop() is None
        drawn_maps = drawn()
        np.testing.assert_allclose(summed(*drawn_maps, fused=True), sums_by_loops(*drawn_maps), atol=1e-12)
    finally:
        accumulate._fused_loop.cache_clear()


@pytest.mark.parametrize(("worth", "is_loaded"), [(0, True), (math.inf, False)])
def test_the_loop_is_compiled_for_long_streams_only(monkeypatch, worth, is_loaded):
    monkeypatch.setattr(accumulate, "WORTH_COMPILING", worth)
    accumulate._fused_loop.cache_clear()
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(18, 3))
    options = {"metrics": ["channelwise"], "layers": ["0"], "layouts": {"0": "b c h w"}, "device": "cpu"}
    ds = ek.measure(net, torch.rand(8, 1, 5, 5), group="C4", progress=False, **options)
    assert ds.channelwise.sel(layer="0").notnull().all()
    assert accumulate.loop_is_loaded() == is_loaded


def test_short_streams_together_are_worth_compiling(monkeypatch):
    monkeypatch.setattr(accumulate, "WORTH_COMPILING", 1000)
    monkeypatch.setattr(accumulate, "_numbers_so_far", 0.0)
    accumulate._fused_loop.cache_clear()
    assert [accumulate.is_worth_compiling(400) for _ in range(3)] == [False, False, True]


SHORT_STREAM = """
import sys, torch, eedkit as ek
net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(18, 3))
options = {"layers": ["0"], "layouts": {"0": "b c h w"}, "device": "cpu", "progress": False}
ds = ek.measure(net, torch.rand(8, 1, 5, 5), group="C4", **options)
print(bool(ds.channelwise.sel(layer="0").notnull().all()), "numba" in sys.modules)
"""


def test_a_short_stream_does_not_wait_for_numba():
    done = subprocess.run([sys.executable, "-c", SHORT_STREAM], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def swapped(group="C4"):
    """An action that also permutes three channels, by a turn of the three for each quarter turn and back."""
    permutations = torch.tensor([[0, 1, 2], [1, 0, 2], [0, 1, 2], [1, 0, 2]])
    return actions.permuted(actions.spatial(group), permutations)


@pytest.mark.parametrize("fused", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("make", [lambda: actions.spatial("C4"), swapped])
def test_sums_of_a_pair_are_those_of_the_moved_maps(make, fused):
    action = make().on((3, 3), channels=3)
    orbit = torch.randn(4, 6, 9, 3, generator=torch.Generator().manual_seed(0))
    partners = deviation.partners([range(6)], order=4)
    sums = MapSums(action, fused=fused)
    for g in range(4):
        total = sums.take(g, orbit[g], partners[g])
        np.testing.assert_allclose(total, orbit[g].double().sum(1), atol=1e-12)
    moved = torch.stack([action(g, orbit[0]) for g in range(4)])
    found = sums.pair(partners)
    np.testing.assert_array_equal(sums.pair().cosine()[0], found.cosine()[0])
    for which, of in enumerate((orbit, deviation.shuffled(orbit, partners))):
        wanted = ChannelSums.of(of, moved)
        np.testing.assert_allclose(found.cosine()[which], wanted.cosine(), atol=1e-12)
        np.testing.assert_allclose(found.correlation()[which], wanted.correlation(), atol=1e-12)


def test_the_target_is_kept_when_the_layer_is_overwritten():
    action = actions.spatial("flip").on((2, 2), channels=1)
    z = torch.tensor([[[1.0], [2.0], [3.0], [4.0]]])
    sums = MapSums(action, fused=False)
    sums.take(0, z, torch.tensor([0]))
    sums.take(1, z.mul_(0).add_(1), torch.tensor([0]))
    assert sums.pair().ab[0, 1].item() == 10


def test_a_channel_counts_as_dead_where_it_is_zero_for_x_too():
    # (g, b, C): two elements, one image; live, dead, dead under the identity only, under the other only, not finite
    is_zero = torch.tensor([[[False, True, True, False, False]], [[False, True, False, True, False]]])
    is_finite = torch.tensor([[[True, True, True, True, True]], [[True, True, True, True, False]]])
    assert count_dead(is_zero, is_finite).tolist() == [[3.0], [9.0]]


class Plane(nn.Module):
    """One convolution that a quarter of the images finds dead."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.act = nn.ReLU()
        self.fc = nn.Linear(6, 3)
        with torch.no_grad():
            self.stem.bias[0] = -2.0
            self.stem.bias[1] = -0.3

    def forward(self, x):
        return self.fc(self.act(self.stem(x)).mean((-2, -1)))

    def trace(self, x):
        x = torch.from_numpy(np.ascontiguousarray(x))[None].to(self.stem.weight)
        with torch.no_grad():
            return self.act(self.stem(x))[0].double().numpy()


def pictures(n, side=12, dtype=torch.float32):
    return torch.randn(n, 1, side, side, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)


def measured(images, **options):
    settings = {"group": "shift12", "layers": ["act"], "metrics": ["channelwise", "latent"], "device": "cpu", "seed": 3}
    return ek.measure(Plane().to(images.dtype), images, progress=False, **{**settings, **options})


def null_of_maps_under_shift12(orbit):
    """By loops: chains of 12 and 17 of the 29 images, for maps cut again into 12 and 8 + 9."""
    reading = oracles.seeded_order(29, 3)
    map_chains = [reading[:12], reading[12:20], reading[20:]]
    want = np.full(orbit.shape[:2], np.nan)
    for chain in map_chains:
        for place, i in enumerate(chain):
            for k in range(12):
                offset = 0 if k == 0 else 1 + (k - 1) % (len(chain) - 1)
                other = chain[(place + offset) % len(chain)]
                want[k, i] = oracles.channelwise(orbit[k, other], np.roll(orbit[0, i], k, axis=-2))
    return want


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("batch_size", [1, 8, 20, 64])
def test_maps_of_a_large_group_have_chains_of_eight(batch_size, precision):
    images = pictures(29, dtype=getattr(torch, precision))
    ds = measured(images, batch_size=batch_size, precision=precision).sel(model="Plane")
    net = Plane().double()
    moved = [[net.trace(np.roll(x, k, axis=-2)) for x in images.double().numpy()] for k in range(12)]
    orbit = np.array(moved)
    at_layer = ds.sel(layer="act")
    np.testing.assert_allclose(at_layer.channelwise_null, null_of_maps_under_shift12(orbit), atol=2e-5)
    # vectors are mixed, so that their chains have 12 images
    pooled = orbit.mean((-2, -1))
    cut = [range(12), range(12, 29)]
    reading = oracles.seeded_order(29, 3)
    others = oracles.shuffled(pooled, [[reading[i] for i in chain] for chain in cut])
    want = [[oracles.latent(others[k, i], others[:, i].mean(0)) for i in range(29)] for k in range(12)]
    np.testing.assert_allclose(at_layer.latent_null, want, atol=2e-5)
    assert ds.chain.values[reading].tolist() == [0] * 12 + [1] * 17


def test_maps_of_a_large_group_pass_in_small_batches():
    seen = []
    net = Plane()
    net.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    ek.measure(net, pictures(40), group="shift12", layers=["act"], batch_size=8, device="cpu", progress=False)
    # the first passes are those that find the layouts
    assert max(seen) < 16
    assert sum(size >= 8 for size in seen) >= 12 * 3


@pytest.mark.parametrize(
    "metrics", [["channelwise"], ["channelwise", "channelwise_skip", "latent"], ["channelwise_centred"]]
)
def test_dead_channels_are_counted_for_every_pair(metrics):
    images = pictures(9, side=6)
    ds = measured(images, group="C4", metrics=metrics)
    orbit = oracles.orbits(Plane().trace, images.numpy(), "C4")
    dead = (orbit == 0).all((-2, -1))
    assert 0 < (dead & dead[:1]).mean() < 1
    assert ds.dead_fraction.sel(layer="act").item() == pytest.approx((dead & dead[:1]).mean(), abs=1e-12)


CUSTOM = {
    "by number": distances.Distance("l1", lambda a, b: (a - b).abs().mean((-2, -1)), 0.0, math.inf, scale=2.0, order=1),
    "by norm": distances.Distance(
        "l1", lambda a, b: (a - b).abs().mean((-2, -1)), 0.0, math.inf, scale="norm", order=1
    ),
}


@pytest.mark.parametrize("scale", CUSTOM)
@pytest.mark.parametrize("batch_size", [4, None])
def test_a_custom_distance_of_maps_gets_whole_maps(scale, batch_size):
    images = pictures(9, side=6)
    metric = ek.Metric("mine", "maps", CUSTOM[scale])
    ds = measured(images, group="C4", metrics=[metric, "channelwise"], batch_size=batch_size).sel(model="Plane")
    orbit = oracles.orbits(Plane().trace, images.numpy(), "C4")
    l1 = lambda a, b: float(np.abs(a - b).mean())  # noqa: E731
    want = oracles.eed(orbit, "C4", oracles.move, l1, [0])
    np.testing.assert_allclose(ds.mine.sel(layer="act"), want, atol=1e-6)
    mixed = oracles.shuffled(orbit, oracles.chains(9, 4, oracles.seeded_order(9, 3)))
    want = oracles.eed(mixed, "C4", oracles.move, l1, [0])
    np.testing.assert_allclose(ds.mine_null.sel(layer="act"), want, atol=1e-6)
    if scale == "by number":
        assert ds.mine.attrs["scale"] == 2.0
        assert "mine_norm" not in ds
    else:
        assert ds.mine.attrs["scale"] == "mine_norm"
        lengths = [np.linalg.norm(z) for z in orbit[0]]
        np.testing.assert_allclose(ds.mine_norm.sel(layer="act"), lengths, rtol=1e-5)
    assert ds.mine.sel(layer="latent").isnull().all()


def test_maps_of_one_metric_with_features_are_those_features():
    images = pictures(8, side=6)
    signs = ek.Metric("signs", "maps", distances.channelwise_negative_cosine, features=lambda z: (z > 0.2).double())
    ds = measured(images, group="C4", metrics=[signs]).sel(model="Plane")
    orbit = (oracles.orbits(Plane().trace, images.numpy(), "C4") > 0.2).astype(float)
    want = oracles.eed(orbit, "C4", oracles.move, oracles.channelwise, [0])
    np.testing.assert_allclose(ds.signs.sel(layer="act"), want, atol=1e-6)


def test_an_action_by_matrices_of_channels_is_measured():
    # C2 turns the image by 180° and acts on the six channels by a reflection that mixes them
    normal = torch.randn(6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mirror = torch.eye(6, dtype=torch.float64) - 2 * normal.outer(normal) / normal.dot(normal)
    matrices = torch.stack([torch.eye(6, dtype=torch.float64), mirror])
    mixing = ek.Metric(
        "mixing",
        "maps",
        distances.channelwise_negative_cosine,
        action=lambda action: actions.Action("mixing", action.group, action.move, lambda channels: matrices),
    )
    images = pictures(9, side=6)
    ds = measured(images, group="C2", metrics=[mixing]).sel(model="Plane")
    orbit = oracles.orbits(Plane().trace, images.numpy(), "C2")

    def act(group, element, z):
        mixed = z if element == "e" else np.tensordot(mirror.numpy(), z, 1)
        return oracles.move(group, element, mixed)

    want = oracles.eed(orbit, "C2", act, oracles.channelwise, [0])
    np.testing.assert_allclose(ds.mixing.sel(layer="act"), want, atol=2e-5)


def test_an_action_that_interpolates_is_measured_with_its_law_error():
    def turn(g, z):
        """A turn by 180° of which an eighth is left where it was: linear, and no action."""
        return z if g == 0 else 0.875 * torch.rot90(z, 2, (-2, -1)) + 0.125 * z

    rough = actions.Action("rough", groups.parse("C2"), turn)
    images = pictures(9, side=6)
    ds = measured(images, group=rough, metrics=["channelwise"]).sel(model="Plane")

    def act(group, element, z):
        return z if element == "e" else 0.875 * np.rot90(z, 2, (-2, -1)) + 0.125 * z

    net = Plane()
    orbit = np.array([[net.trace(act("", e, x)) for x in images.numpy()] for e in ("e", "r180")])
    want = oracles.eed(orbit, "C2", act, oracles.channelwise, [0])
    np.testing.assert_allclose(ds.channelwise.sel(layer="act"), want, atol=2e-5)
    assert 0.1 < ds.attrs["law_error"] < 1
