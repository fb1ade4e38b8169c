"""channelwise_matched: all assignments tried, exact facts, noise, and why it has no value."""

import numpy as np
import oracles
import pytest
import torch
from made import Net, Torn, noise
from torch import nn

import eedkit as ek
from eedkit.lab.networks import GroupCNN
from eedkit.probe.matching import assigned
from eedkit.probe.measure import Options, measure_block

MATCHED, SEED = "channelwise_matched", 3


class Nearly(Net):
    """Turning an image nearly swaps the first two maps; the last two are dead for some images once they are rectified."""

    def __init__(self):
        super().__init__()
        self.passes = 0
        with torch.no_grad():
            self.stem.weight[1] = torch.rot90(self.stem.weight[0], 2, (-2, -1)) + 0.1 * self.stem.weight[1]
            self.stem.bias[6:] = -2.5

    def forward(self, x):
        self.passes += 1
        return super().forward(x)


class Noise(nn.Module):
    """Maps that are noise, the same for the same image: gx and x have nothing to do with each other."""

    def __init__(self):
        super().__init__()
        self.weight = torch.randn(25, 36, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.maps = nn.Identity()

    def forward(self, x):
        return self.maps(torch.sin(1e4 * x.flatten(1) @ self.weight).unflatten(1, (4, 3, 3))).mean((-2, -1))

    def trace(self, x):
        return {"maps": torch.sin(1e4 * torch.from_numpy(x.copy()).flatten() @ self.weight).reshape(4, 3, 3).numpy()}


def measure(model, images, **options):
    settings = {"group": "C4", "progress": False, "device": "cpu", "seed": SEED, "metrics": MATCHED, "layers": ["down"]}
    return ek.measure(model, images, **settings | options).isel(model=0)


def orbit(model, images, layer, group="C4"):
    return oracles.orbits(lambda x: model.trace(x)[layer], images.numpy(), group)


@pytest.mark.parametrize(
    ("group", "batch_size", "dtype"),
    [("C4", 1, torch.float64), ("C4", None, torch.float32), ("D4", 5, torch.float32), ("flip", None, torch.float64)],
)
def test_it_is_the_best_of_all_permutations(group, batch_size, dtype):
    images, order = noise(13), oracles.seeded_order(13, SEED)
    options = {"group": group, "batch_size": batch_size, "layers": ["stem", "act", "down"]}
    model = Nearly().to(dtype)
    ds = measure(model, images.to(dtype), metrics=[MATCHED, "channelwise"], **options)
    alone = measure(model, images.to(dtype), metrics=["channelwise"], **options)
    for layer in ("act", "down"):
        found, maps = ds.sel(layer=layer), orbit(Nearly().double(), images, layer, group)
        np.testing.assert_allclose(found[MATCHED], oracles.matched(maps, group, order), atol=1e-5)
        of_chains = oracles.chains(13, len(maps), order)
        np.testing.assert_allclose(found[f"{MATCHED}_null"], oracles.matched(maps, group, order, of_chains), atol=1e-5)
        assert (found[MATCHED].sel(element="e") < -0.999999).all()
        assert not np.allclose(found[MATCHED], found.channelwise, atol=0.01)
    np.testing.assert_array_equal(ds.channelwise, alone.channelwise)


def test_beyond_two_halves_of_256_the_first_fit_scores():
    # on noise the best permutation changes with every sample that is added, and no experiment shows how it lies
    images, order = noise(540, side=5), oracles.seeded_order(540, SEED)
    options = {"layers": ["maps"], "layouts": {"maps": "b c h w"}, "output": "features", "precision": "float64"}
    found = measure(Noise(), images, group="flip", **options).sel(layer="maps")
    maps = orbit(Noise(), images, "maps", "flip")
    np.testing.assert_allclose(found[MATCHED], oracles.matched(maps, "flip", order), atol=1e-6)
    null = oracles.matched(maps, "flip", order, oracles.chains(540, 2, order))
    np.testing.assert_allclose(found[f"{MATCHED}_null"], null, atol=1e-6)
    assert abs(found[MATCHED].isel(element=1).mean()) < 0.1


def test_a_group_convolution_is_found_equivariant():
    torch.manual_seed(0)
    model, images = GroupCNN("D4", classes=10), torch.randn(40, 1, 17, 17)
    blocks = measure(model, images, group="D4", metrics=["channelwise", MATCHED], layers=r"blocks\.\d")
    blocks = blocks.sel(layer=[name for name in blocks.layer.values if "blocks" in name])
    np.testing.assert_allclose(blocks[MATCHED], -1, atol=1e-4)
    assert (blocks.channelwise.mean(("element", "sample")) > -0.8).all()


@pytest.mark.filterwarnings("ignore:.* samples have no value", "ignore:invalid value")
def test_images_without_values_do_not_spoil_the_fit():
    """Of those that are not finite what is left counts; unreadable ones are left out."""
    images, order = noise(12), oracles.seeded_order(12, SEED)
    images[order[1], 0, 0, 0], images[order[8], 0, 5, 5] = float("nan"), float("inf")
    torn = [order[2], order[9]]
    found = measure(Nearly().double(), Torn(images, torn), layers=["act"])[MATCHED].sel(layer="act")
    wanted = oracles.matched(orbit(Nearly().double(), images, "act"), "C4", order, unreadable=torn)
    rest = [i for i in range(12) if order.index(i) not in (1, 2, 8, 9)]
    np.testing.assert_allclose(found[:, rest], wanted[:, rest], atol=1e-6)
    assert found.isnull().all("element").sum() == 4
    with pytest.raises(ValueError, match="no image of one half of the 12 that channels are matched on could be read"):
        measure(Nearly().double(), Torn(images, order[6:]))


class Odd(Net):
    """Maps of one pixel, channels-last maps, a layer that runs for some batches only, and one that doubles some."""

    def __init__(self):
        super().__init__()
        self.one, self.last, self.early, self.twice = nn.AdaptiveAvgPool2d(1), *[nn.Identity() for _ in range(3)]

    def forward(self, x):
        z = self.down(self.act(self.stem(x)))
        self.last(z.movedim(1, -1))
        self.twice(torch.cat([z, z]) if x.amax() > 50 else z)
        if x.amax() < 50:
            self.early(z)
        return self.fc(self.one(z).flatten(1))


def test_layers_without_a_fit_say_why():
    images = noise(600)
    images[oracles.seeded_order(600, SEED)[5]] = 100
    ds = measure(Odd().double(), images, metrics=[MATCHED, "channelwise", "latent"], layers="all", batch_size=64)
    for name in (MATCHED, "channelwise"):
        said = ds[f"{name}_nan_reason"].to_series()
        assert said["one"] == "its output has one position, where a cosine only compares signs"
        assert said["latent"] == "it is the head's input, not a feature map"
        assert said["early"] == "it does not run in every forward pass"
        assert "images in a forward pass of" in said["twice"]
        assert said[["down", "last"]].tolist() == ["", ""]
        for variable in (name, f"{name}_null"):
            assert (ds[variable].notnull().all(("element", "sample")).to_series() == (said == "")).all()
            assert (ds[variable].isnull().all(("element", "sample")).to_series() == (said != "")).all()
    assert ds.latent.isnull().any(("element", "sample")).to_series().pipe(lambda lost: [*lost.index[lost]]) == [
        "twice",
        "early",
    ]
    # of channels-last maps the channels are matched as of others
    np.testing.assert_allclose(ds[MATCHED].sel(layer="last"), ds[MATCHED].sel(layer="down"), atol=1e-6)
    options = Options("C4", metrics=[MATCHED], layers=["early"], batch_size=64, seed=SEED, device="cpu")
    block, _ = measure_block(Odd().double(), images, options, places=range(512, 600))
    said = block[f"{MATCHED}_nan_reason"].sel(layer="early").item()
    assert said == "its channels could not be matched: it does not run in every forward pass"
    said = measure(Net().double(), noise(9), group="C8")[f"{MATCHED}_nan_reason"].sel(layer="down").item()
    assert said == "its channels could not be matched: the action is no permutation of its positions"


def test_it_costs_one_pass_more_and_only_where_it_is_asked_for():
    passes = []
    for metric in (MATCHED, "channelwise"):
        model = Nearly()
        measure(model, noise(10).float(), batch_size=5, metrics=[metric])
        passes.append(model.passes)
    # two halves of five images, one at a time with all four elements
    assert passes[0] - passes[1] == 2 * 5


def test_dead_channels_stay_where_they_are():
    rng = np.random.default_rng(0)
    for _ in range(50):
        sums, dead = rng.random((2, 8, 8)), rng.random(8) < 0.4
        sums[:, dead], sums[:, :, dead] = 0, 0
        assert assigned(torch.from_numpy(sums))[1, dead].tolist() == np.flatnonzero(dead).tolist()
