"""Relative values on models of known truth; `python tests/probe/test_null.py` prints them as a table.

The models hash pixels exactly: products of whole numbers have no rounding, so that an image has the same features in any
batch, while a moved copy has features as unrelated as those of another image.
"""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import eedkit as ek
from eedkit.theory import actions

SIDE = 7
GROUPS = ["flip", "C4", "D4"]
OUTPUT = ["softmax", "softmax_reverse", "softmax_js", "softmax_tv", "softmax_hellinger"]
VECTORS = ["latent", "latent_unit", "latent_flat", "latent_euclidean"]
MAPS = ["channelwise", "channelwise_skip", "channelwise_centred", "channelwise_matched"]


def images(n: int = 600, classes: int = 1) -> Tensor:
    """Noise of 256 grey levels (n, 1, 7, 7); the middle pixel, which no group moves, is the class."""
    generator = torch.Generator().manual_seed(1)
    levels = torch.randint(0, 256, (n, 1, SIDE, SIDE), generator=generator).double()
    levels[:, :, SIDE // 2, SIDE // 2] = (torch.arange(n) % classes)[:, None]
    return levels / 256


def chaos(whole: Tensor) -> Tensor:
    """Numbers of a normal distribution, unrelated for whole numbers that differ."""
    mixed = (torch.sin(whole.double()) * 1e4).frac()
    return np.sqrt(2) * torch.erfinv(mixed.clamp(-1 + 1e-12, 1 - 1e-12))


def whole_weights(*shape: int, seed: int) -> Tensor:
    return torch.randint(-1000, 1001, shape, generator=torch.Generator().manual_seed(seed)).double()


def symmetric(weights: Tensor) -> Tensor:
    """Weights (…, H, W) summed over all turns and mirrors."""
    turned = torch.stack([torch.rot90(weights, k, (-2, -1)) for k in range(4)]).sum(0)
    return turned + turned.flip(-1)


class Hash(nn.Module):
    """Features of three parts: a hash of the pixels, a hash that no move changes, and one of the class; about an offset."""

    def __init__(self, features: int = 32, *, share: float = 1.0, of_class: float = 0.0, offset: float = 0.0, gain=1.0):
        super().__init__()
        pixels = whole_weights(features, SIDE, SIDE, seed=0)
        self.register_buffer("pixels", pixels.flatten(1))
        self.register_buffer("orbits", symmetric(whole_weights(features, SIDE, SIDE, seed=2)).flatten(1))
        self.register_buffer("classes", whole_weights(features, seed=3))
        self.share = share
        self.of_class = of_class
        self.offset = offset
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        levels = 256 * x.flatten(1)
        z = self.share**0.5 * chaos(levels @ self.pixels.T)
        if self.share < 1:
            z = z + (1 - self.share) ** 0.5 * chaos(levels @ self.orbits.T)
        if self.of_class:
            middle = 256 * x[:, 0, SIDE // 2, SIDE // 2]
            z = z + self.of_class * chaos(middle[:, None] * self.classes)
        return self.gain * (z + self.offset)


class HashMap(nn.Module):
    """Maps of a hash of all pixels and one of each neighbourhood, which moves as the image does; about an offset."""

    def __init__(self, channels: int = 4, *, share: float = 1.0, offset: float = 0.0, side: int = SIDE):
        super().__init__()
        self.register_buffer("pixels", whole_weights(channels * side * side, side * side, seed=0))
        self.register_buffer("near", symmetric(whole_weights(channels, 1, 3, 3, seed=2)))
        self.share = share
        self.offset = offset
        self.map = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        levels = 256 * x
        z = self.share**0.5 * chaos(levels.flatten(1) @ self.pixels.T).unflatten(1, (-1, *x.shape[-2:]))
        if self.share < 1:
            z = z + (1 - self.share) ** 0.5 * chaos(nn.functional.conv2d(levels, self.near, padding=1))
        return self.map(z + self.offset).mean((-2, -1))


class Pose(nn.Module):
    """Sees four marks at the corners: which way up an image is, not which image it is."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0][:, [0, 0, -1, -1], [0, -1, 0, -1]] + 0.1


def with_marks(pictures: Tensor) -> Tensor:
    pictures[:, 0, [0, 0, -1, -1], [0, -1, 0, -1]] = torch.tensor([1.0, 0.0, 0.25, 0.5], dtype=torch.float64)
    return pictures


MODELS = {
    "hash": (lambda: Hash(), VECTORS),
    "hash, narrow cone": (lambda: Hash(offset=20.0), VECTORS),
    "hash, logits": (lambda: Hash(10), OUTPUT),
    "hash, logits × 30": (lambda: Hash(10, gain=30.0), OUTPUT),
    "hash of maps": (lambda: HashMap(), MAPS),
    "hash of maps, narrow cone": (lambda: HashMap(offset=20.0), MAPS),
}
"""Models whose relative values are 1, and the metrics for which they are."""

SATURATED = {("hash, logits × 30", "softmax"), ("hash, logits × 30", "softmax_reverse")}
"""Where a KL is a rare event: method.md says 0.9 to 1.1."""


def means(model: nn.Module, pictures: Tensor, metrics: list[str], **options) -> pd.DataFrame:
    """Means over elements and samples of each metric and its null, and the relative value, by hand."""
    at_output = metrics[0].startswith("softmax")
    of_maps = metrics[0].startswith("channelwise")
    settings = {"layers": ["map"] if of_maps else [], "output": "scores" if at_output else "features"}
    # a hash spreads every change over the whole map, so that no experiment shows how it lies
    settings |= {"layouts": {"map": "b c h w"} if of_maps else {}, "metrics": metrics, "device": "cpu"}
    settings |= {"precision": "float64", "progress": False, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ds = ek.measure(model, pictures, **settings)
    rows = []
    for metric in metrics:
        at = {} if at_output else {"layer": "map" if of_maps else "latent"}
        estimate = ds[metric].sel(at).astype("float64").mean(skipna=False).item()
        null = ds[f"{metric}_null"].sel(at).astype("float64").mean(skipna=False).item()
        best = ds[metric].attrs["best"]
        gap = null - best
        relative = (estimate - best) / gap if gap else float("nan")
        rows.append({"metric": metric, "estimate": estimate, "null": null, "best": best, "relative": relative})
    return pd.DataFrame(rows).set_index("metric")


def table(n: int = 600) -> pd.DataFrame:
    """Relative values of every model whose promised value is known, for each group and metric."""
    parts = []
    for group in GROUPS:
        for name, (make, metrics) in MODELS.items():
            parts.append(means(make(), images(n), metrics, group=group).assign(model=name, group=group, promised=1.0))
        pose = means(Pose(), with_marks(images(n)), VECTORS, group=group)
        parts.append(pose.assign(model="pose only", group=group, promised=1.0))
        invariant = means(Hash(share=0.0), images(n), VECTORS, group=group)
        parts.append(invariant.assign(model="invariant", group=group, promised=0.0))
        equivariant = means(HashMap(share=0.0), images(n), MAPS, group=group)
        parts.append(equivariant.assign(model="equivariant maps", group=group, promised=0.0))
    columns = ["model", "group", "metric", "estimate", "null", "best", "relative", "promised"]
    return pd.concat(parts).reset_index()[columns]


@pytest.fixture(scope="module")
def relative_values():
    return table().set_index(["model", "group", "metric"])


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(
    ("model", "metric"), [(name, metric) for name, (_, every) in MODELS.items() for metric in every]
)
def test_a_hash_of_the_pixels_reads_1(relative_values, model, group, metric):
    tolerance = 0.1 if (model, metric) in SATURATED else 0.03
    assert relative_values.relative[model, group, metric] == pytest.approx(1, abs=tolerance)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("metric", VECTORS)
def test_features_of_the_pose_only_read_1(relative_values, group, metric):
    row = relative_values.loc["pose only", group, metric]
    assert row.relative == pytest.approx(1, abs=1e-6)
    assert row.estimate - row.best > 0.01


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(
    ("model", "metric"),
    [*(("invariant", metric) for metric in VECTORS), *(("equivariant maps", metric) for metric in MAPS)],
)
def test_exact_invariance_and_equivariance_read_0(relative_values, model, group, metric):
    row = relative_values.loc[model, group, metric]
    assert row.relative == pytest.approx(0, abs=1e-6)
    # unrelated images are far away, so that this is no 0/0
    assert row.null - row.best > 0.1


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(("make", "metrics"), [(Hash, VECTORS), (HashMap, MAPS)])
def test_mixtures_rise_with_the_share_of_the_hash(group, make, metrics):
    shares = [0.0, 0.1, 0.3, 0.6, 1.0]
    values = pd.DataFrame([means(make(share=s), images(200), metrics, group=group).relative for s in shares])
    assert (values.diff().iloc[1:] > 0.02).all(axis=None), values


@pytest.mark.parametrize("group", ["flip", "C4"])
def test_the_scale_of_the_logits_changes_js_and_kl_little(group):
    gains = [0.3, 1.0, 3.0, 10.0, 100.0, 1000.0]
    metrics = ["softmax", "softmax_js"]
    values = pd.DataFrame(
        [means(Hash(10, gain=k), images(), metrics, group=group).relative for k in gains], index=gains
    )
    np.testing.assert_allclose(values.softmax_js, 1, atol=0.03)
    np.testing.assert_allclose(values.softmax, 1, atol=0.1)


@pytest.mark.parametrize("group", ["flip", "C4"])
def test_within_a_class_a_hash_beside_the_class_reads_1(group):
    labels = [i % 3 for i in range(600)]
    pictures = images(classes=3)
    model = Hash(share=1.0, of_class=5.0)
    metrics = ["latent", "latent_euclidean"]
    over_all = means(model, pictures, metrics, group=group, labels=labels)
    within = means(model, pictures, metrics, group=group, labels=labels, null="within-class")
    assert (over_all.relative < 0.6).all()
    np.testing.assert_allclose(within.relative, 1, atol=0.03)
    np.testing.assert_allclose(within.estimate, over_all.estimate, atol=1e-9)


def test_a_group_larger_than_its_chains_of_maps_reads_1():
    # chains of maps hold 8 images, those of vectors 12, and 12 elements act
    generator = torch.Generator().manual_seed(4)
    pictures = torch.randint(0, 256, (96, 1, 12, 12), generator=generator).double() / 256
    maps = means(HashMap(16, side=12), pictures, ["channelwise", "channelwise_centred"], group="shift12")
    np.testing.assert_allclose(maps.relative, 1, atol=0.03)
    vectors = means(HashMap(16, side=12), pictures, ["latent", "latent_euclidean"], group="shift12")
    np.testing.assert_allclose(vectors.relative, 1, atol=0.03)


@pytest.mark.parametrize("onto", ["flip", "C2"])
def test_a_proper_kernel_reads_1_for_a_hash(onto):
    through = actions.quotient("C4", actions.spatial(onto), [0, 1, 0, 1])
    metric = ek.Metric("through", "maps", ek.distances.channelwise_negative_cosine, action=lambda _: through)
    ds = ek.measure(
        HashMap(), images(), group="C4", metrics=[metric], layers=["map"], output="features",
        layouts={"map": "b c h w"}, precision="float64", device="cpu", progress=False,
    )  # fmt: skip
    at = ds.sel(layer="map")
    relative = (float(at.through.mean()) + 1) / (float(at.through_null.mean()) + 1)
    assert relative == pytest.approx(1, abs=0.03)
    assert at.kernel_order.item() == 2


if __name__ == "__main__":
    with pd.option_context("display.width", 160, "display.max_rows", None, "display.precision", 4):
        print(table().pivot_table(index=["model", "metric"], columns="group", values="relative")[GROUPS])
