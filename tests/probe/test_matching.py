"""channelwise_matched: brute force over all permutations, exact facts, honesty on noise, and why it has no value."""

import numpy as np
import oracles
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

import eedkit as ek
from eedkit.lab.networks import GroupCNN
from eedkit.probe.matching import assigned

MATCHED, SEED = "channelwise_matched", 3


class Four(nn.Module):
    """Four maps of 6×6, rectified (the third always dead, the fourth for some images), then four of 5×5 of either sign."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.stem, self.act, self.mix = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 2)
            self.fc = nn.Linear(4, 3)
        with torch.no_grad():
            self.stem.weight.mul_(2)
            # almost the first filter turned, so that turning an image nearly swaps the two maps
            self.stem.weight[1] = torch.rot90(self.stem.weight[0], 2, (-2, -1)) + 0.1 * self.stem.weight[1]
            self.stem.weight[2], self.stem.bias[2], self.stem.bias[3] = 0, -1, -3.5
        self.passes = 0

    def forward(self, x):
        self.passes += 1
        return self.fc(self.mix(self.act(self.stem(x))).mean((-2, -1)))

    def trace(self, x, layer):
        """What a layer puts out for one image (C, H, W), by functions and not by modules; as numpy."""
        with torch.no_grad():
            z = F.conv2d(torch.from_numpy(x.copy())[None], self.stem.weight, self.stem.bias, padding=1).clamp_min(0)
            return (F.conv2d(z, self.mix.weight, self.mix.bias) if layer == "mix" else z)[0].numpy()


class Scrambled(nn.Module):
    """Maps that are noise, the same for the same image: gx and x have nothing to do with each other."""

    def __init__(self, seed):
        super().__init__()
        self.weight = torch.randn(25, 4 * 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def forward(self, x):
        return torch.sin(1e4 * x.flatten(1) @ self.weight).unflatten(1, (4, 3, 3))


class Noise(nn.Sequential):
    def __init__(self):
        super().__init__(*map(Scrambled, range(12)))

    def forward(self, x):
        return [layer(x) for layer in self][-1].mean((-2, -1))

    def trace(self, x, layer):
        return self[int(layer)](torch.from_numpy(x.copy())[None])[0].numpy()


# noise shows no experiment how it lies
OF_NOISE = {"layouts": {str(k): "b c h w" for k in range(12)}, "output": "features", "precision": "float64"}


def pictures(n, side=6):
    return torch.randn(n, 1, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def measure(model, images, **options):
    settings = {"group": "C4", "progress": False, "device": "cpu", "seed": SEED, "metrics": MATCHED, "layers": ["mix"]}
    return ek.measure(model, images, **settings | options).isel(model=0)


def orbit(model, images, layer, group="C4"):
    return oracles.orbits(lambda x: model.trace(x, layer), images.numpy(), group)


@pytest.mark.parametrize(
    ("group", "batch_size", "dtype"),
    [("C4", 1, torch.float64), ("C4", None, torch.float32), ("D4", 5, torch.float32), ("flip", None, torch.float64)],
)
def test_it_is_the_loop_over_all_permutations(group, batch_size, dtype):
    images, order = pictures(13), oracles.seeded_order(13, SEED)
    options = {"group": group, "batch_size": batch_size, "layers": ["act", "mix"]}
    ds = measure(Four().to(dtype), images.to(dtype), metrics=[MATCHED, "channelwise"], **options)
    alone = measure(Four().to(dtype), images.to(dtype), metrics=["channelwise"], **options)
    for layer in ("act", "mix"):
        found, maps = ds.sel(layer=layer), orbit(Four().double(), images, layer, group)
        np.testing.assert_allclose(found[MATCHED], oracles.matched(maps, group, order), atol=1e-5)
        of_chains = oracles.chains(13, len(maps), order)
        np.testing.assert_allclose(found[f"{MATCHED}_null"], oracles.matched(maps, group, order, of_chains), atol=1e-5)
        assert (found[MATCHED].sel(element="e") < -0.999999).all()
        assert not np.allclose(found[MATCHED], found.channelwise, atol=0.01)
    np.testing.assert_array_equal(ds.channelwise, alone.channelwise)


def test_beyond_two_halves_of_256_the_first_fit_scores():
    # on noise the best permutation changes with every sample that is added
    images, order = pictures(540, side=5), oracles.seeded_order(540, SEED)
    layouts = {"0": "b c h w", "1": "b c h w"}
    ds = measure(Noise(), images, group="flip", layers=["0", "1"], **OF_NOISE | {"layouts": layouts})
    for layer in ("0", "1"):
        found, maps = ds.sel(layer=layer), orbit(Noise(), images, layer, "flip")
        np.testing.assert_allclose(found[MATCHED], oracles.matched(maps, "flip", order), atol=1e-6)
        null = oracles.matched(maps, "flip", order, oracles.chains(540, 2, order))
        np.testing.assert_allclose(found[f"{MATCHED}_null"], null, atol=1e-6)


def test_on_noise_it_promises_nothing():
    images, order = pictures(8, side=5), oracles.seeded_order(8, SEED)
    ds = measure(Noise(), images, layers=r"\d+", **OF_NOISE).isel(element=slice(1, None))
    assert abs(ds[MATCHED].mean()) < 0.03
    fitted = [oracles.matched(orbit(Noise(), images, k), "C4", order, held_out=False)[1:].mean() for k in range(12)]
    assert np.mean(fitted) < -0.12


@pytest.mark.parametrize("group", ["C4", "D4"])
def test_a_group_convolution_is_found_equivariant(group):
    torch.manual_seed(0)
    options = {"group": group, "metrics": ["channelwise", MATCHED], "layers": "blocks"}
    ds = measure(GroupCNN(group, classes=10), torch.randn(40, 1, 17, 17), **options)
    blocks = ds.sel(layer=[f"blocks.{i}" for i in range(5)])
    np.testing.assert_allclose(blocks[MATCHED], -1, atol=1e-4)
    assert (blocks.channelwise.mean(("element", "sample")) > -0.8).all()


class Torn(Dataset):
    def __init__(self, images, torn):
        self.images, self.torn = images, torn

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        if i in self.torn:
            raise OSError(f"file {i} is torn")
        return self.images[i]


@pytest.mark.filterwarnings("ignore:.* samples have no value")
def test_images_without_values_do_not_spoil_the_fit():
    """Of those that are not finite, in every channel or in some, what is left counts; unreadable ones are left out."""
    images, order = pictures(12), oracles.seeded_order(12, SEED)
    images[order[1], 0, 0, 0], images[order[8], 0, 5, 5] = float("nan"), float("inf")
    torn = [order[2], order[9]]
    found = measure(Four().double(), Torn(images, torn), layers=["act"])[MATCHED].sel(layer="act")
    wanted = oracles.matched(orbit(Four().double(), images, "act"), "C4", order, unreadable=torn)
    rest = [i for i in range(12) if order.index(i) not in (1, 2, 8, 9)]
    np.testing.assert_allclose(found[:, rest], wanted[:, rest], atol=1e-6)
    assert found.isnull().all("element").sum() == 4
    with pytest.raises(ValueError, match="no image of one half of the 12 that channels are matched on could be read"):
        measure(Four().double(), Torn(images, order[6:]))


class Odd(Four):
    """Maps of one pixel, channels-last maps, layers that run for some batches only, and one that doubles some."""

    def __init__(self):
        super().__init__()
        self.one, self.last, self.early, self.twice = nn.AdaptiveAvgPool2d(1), *[nn.Identity() for _ in range(3)]

    def forward(self, x):
        z = self.mix(self.act(self.stem(x)))
        is_bright = x.amax() > 50
        self.last(z.movedim(1, -1))
        self.twice(torch.cat([z, z]) if is_bright else z)
        if not is_bright:
            self.early(z)
        return self.fc(self.one(z).flatten(1))


def test_layers_without_a_fit_say_why():
    images = pictures(600)
    images[oracles.seeded_order(600, SEED)[5]] = 100
    options = {"metrics": ["channelwise", MATCHED], "layers": "all", "batch_size": 64}
    ds = measure(Odd().double(), images, **options)
    said = ds[f"{MATCHED}_nan_reason"].to_series()
    not_always = "it does not run in every forward pass"
    assert said["one"] == "its output has one position, where a cosine only compares signs"
    assert said["early"] == not_always
    assert ds.channelwise_nan_reason.sel(layer="early") == not_always
    assert "images in a forward pass of" in ds.channelwise_nan_reason.sel(layer="twice").item()
    for layer in ds.layer.values:
        assert ds[MATCHED].sel(layer=layer).notnull().all() == (said[layer] == ""), layer
    assert said[["mix", "last"]].tolist() == ["", ""]
    # of channels-last maps the channels are matched as of others
    np.testing.assert_allclose(ds[MATCHED].sel(layer="last"), ds[MATCHED].sel(layer="mix"), atol=1e-6)
    ds = measure(Four().double(), pictures(9), group="C8", layers=["act"])
    said = ds[f"{MATCHED}_nan_reason"].sel(layer="act").item()
    assert said == "its channels could not be matched: the action is no permutation of its positions"


def test_it_costs_one_pass_more_and_only_where_it_is_asked_for():
    passes = []
    for metric in (MATCHED, "channelwise"):
        model = Four()
        measure(model, pictures(10).float(), batch_size=5, metrics=[metric])
        passes.append(model.passes)
    # two halves of five images, one at a time, in parts of the group of four
    assert passes[0] - passes[1] == 2 * 5


def test_dead_channels_stay_where_they_are():
    rng = np.random.default_rng(0)
    for _ in range(50):
        sums, dead = rng.random((2, 8, 8)), rng.random(8) < 0.4
        sums[:, dead], sums[:, :, dead] = 0, 0
        assert assigned(torch.from_numpy(sums))[1, dead].tolist() == np.flatnonzero(dead).tolist()
