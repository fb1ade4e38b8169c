"""channelwise_matched: brute force over all permutations, exact facts, honesty on noise, blocks, what is refused."""

import copy
import itertools
from dataclasses import replace

import numpy as np
import oracles
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset

import eedkit as ek
from eedkit.lab.networks import GroupCNN
from eedkit.probe.matching import assigned
from eedkit.probe.measure import Options, measure_block
from eedkit.probe.metrics import METRICS, Metric
from eedkit.probe.samples import read_order
from eedkit.theory import actions, distances

MATCHED = "channelwise_matched"
SEED = 3


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

    def forward(self, x):
        return self.fc(self.mix(self.act(self.stem(x))).mean((-2, -1)))

    def trace(self, x, layer):
        """What a layer puts out for one image (C, H, W), by functions and not by modules; as numpy."""
        x = torch.from_numpy(np.ascontiguousarray(x))[None]
        with torch.no_grad():
            z = F.conv2d(x, self.stem.weight, self.stem.bias, padding=1).clamp_min(0)
            if layer == "mix":
                z = F.conv2d(z, self.mix.weight, self.mix.bias)
        return z[0].numpy()


def four():
    return Four().double()


def pictures(n, side=6, seed=1):
    return torch.randn(n, 1, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def measure(model, images, **options):
    settings = {
        "group": "C4",
        "precision": "float64",
        "progress": False,
        "device": "cpu",
        "seed": SEED,
        "metrics": MATCHED,
    }
    return ek.measure(model, images, **settings | options)


def orbit(model, images, layer, group="C4"):
    return oracles.orbits(lambda x: model.trace(x, layer), images.numpy(), group)


def chains_of(group, order):
    return oracles.chains(len(order), len(oracles.ELEMENTS[group]), order)


@pytest.mark.parametrize("group", ["C4", "D4", "flip"])
@pytest.mark.parametrize("batch_size", [1, 5, None])
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_it_is_the_loop_over_all_permutations(group, batch_size, precision):
    images, order = pictures(13), oracles.seeded_order(13, SEED)
    dtype = getattr(torch, precision)
    options = {"group": group, "batch_size": batch_size, "precision": precision, "layers": ["act", "mix"]}
    ds = measure(four().to(dtype), images.to(dtype), metrics=[MATCHED, "channelwise"], **options)
    for layer in ("act", "mix"):
        found, maps = ds.sel(layer=layer, model="Four"), orbit(four(), images, layer, group)
        np.testing.assert_allclose(found[MATCHED], oracles.matched(maps, group, order), atol=1e-5)
        null = oracles.matched(maps, group, order, chains_of(group, order))
        np.testing.assert_allclose(found[f"{MATCHED}_null"], null, atol=1e-5)
        assert (found[MATCHED].sel(element="e") < -0.999999).all()
        assert not np.allclose(found[MATCHED], found.channelwise, atol=0.01)


def test_values_are_those_without_a_null():
    images = pictures(13)
    np.testing.assert_array_equal(measure(four(), images, null=False)[MATCHED], measure(four(), images)[MATCHED])


def test_only_the_order_of_reading_counts():
    images, other = pictures(20), torch.empty(20, 1, 6, 6, dtype=torch.float64)
    other[read_order(20, 8)] = images[read_order(20, SEED)]
    one, two = measure(four(), images), measure(four(), other, seed=8)
    for name in (MATCHED, f"{MATCHED}_null"):
        np.testing.assert_array_equal(one[name][..., read_order(20, SEED)], two[name][..., read_order(20, 8)])


@pytest.mark.parametrize(("n", "batch_size"), [(50, None), (50, 8), (600, 100)])
def test_blocks_side_by_side_are_what_measure_gives(n, batch_size):
    images = pictures(n)
    options = Options("C4", [MATCHED], precision="float64", device="cpu", seed=SEED, batch_size=batch_size)
    wanted = measure(four(), images, batch_size=batch_size)
    bounds = [0, n // 8 * 4, n]
    for start, stop in itertools.pairwise(bounds):
        values, _ = measure_block(four(), images, options, places=range(start, stop))
        rows = read_order(n, SEED)[start:stop]
        assert values.sample.values.tolist() == rows.tolist()
        for name in (MATCHED, f"{MATCHED}_null"):
            np.testing.assert_allclose(values[name], wanted[name][..., rows], atol=1e-6)


@pytest.mark.parametrize("group", ["C4", "D4"])
def test_a_group_convolution_is_found_equivariant(group):
    torch.manual_seed(0)
    images = torch.randn(40, 1, 17, 17)
    metrics = ["channelwise", MATCHED]
    ds = measure(GroupCNN(group, classes=10), images, group=group, metrics=metrics, precision="float32")
    blocks = ds.sel(layer=[f"blocks.{i}" for i in range(5)])
    np.testing.assert_allclose(blocks[MATCHED], -1, atol=1e-4)
    assert (blocks.channelwise.mean(("element", "sample")) > -0.8).all()


def test_fact_2_where_channels_stay_they_are_left_there():
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 6, 3, padding=1, padding_mode="circular").double()
    with torch.no_grad():
        turned = [torch.rot90(conv.weight, k, (-2, -1)) for k in range(4)]
        conv.weight.copy_(sum(turned) / 4)
    ds = measure(
        nn.Sequential(conv, nn.Flatten(), nn.Linear(36 * 6, 2)).double(), pictures(9), metrics=["channelwise", MATCHED]
    )
    at_layer = ds.sel(layer="0")
    np.testing.assert_allclose(at_layer[MATCHED], -1, atol=1e-6)
    np.testing.assert_allclose(at_layer[f"{MATCHED}_null"], at_layer.channelwise_null, atol=1e-6)


class Scrambled(nn.Module):
    """Maps that are noise, the same for the same image: gx and x have nothing to do with each other."""

    def __init__(self, seed):
        super().__init__()
        self.weight = torch.randn(25, 4 * 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def forward(self, x):
        return torch.sin(1e4 * x.flatten(1) @ self.weight).unflatten(1, (4, 3, 3))


class Noise(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Scrambled(seed) for seed in range(12))

    def forward(self, x):
        return [layer(x) for layer in self.layers][-1].mean((-2, -1))

    def trace(self, x, layer):
        return self.layers[layer](torch.from_numpy(x.copy())[None])[0].numpy()


# noise shows no experiment how it lies
MAPS_OF_NOISE = {"layers.0": "b c h w", "layers.1": "b c h w"}


def test_beyond_two_halves_of_256_the_first_fit_scores():
    # on noise the best permutation changes with every sample that is added
    images, order, model = pictures(540, side=5), oracles.seeded_order(540, SEED), Noise()
    ds = measure(model, images, group="flip", layers=r"layers\.[01]", layouts=MAPS_OF_NOISE, output="features")
    for layer in (0, 1):
        found, maps = ds.sel(layer=f"layers.{layer}", model="Noise"), orbit(model, images, layer, "flip")
        np.testing.assert_allclose(found[MATCHED], oracles.matched(maps, "flip", order), atol=1e-6)
        null = oracles.matched(maps, "flip", order, chains_of("flip", order))
        np.testing.assert_allclose(found[f"{MATCHED}_null"], null, atol=1e-6)


def test_on_noise_it_promises_nothing():
    images, model, order = pictures(8, side=5), Noise(), oracles.seeded_order(8, SEED)
    options = {"layouts": {f"layers.{k}": "b c h w" for k in range(12)}, "output": "features"}
    ds = measure(model, images, layers=r"layers\..*", **options).sel(element=["r90", "r180", "r270"])
    assert abs(ds[MATCHED].mean()) < 0.03
    optimistic = []
    for layer in range(12):
        maps = orbit(model, images, layer)
        optimistic.append(oracles.matched(maps, "C4", order, held_out=False)[1:].mean())
    assert np.mean(optimistic) < -0.12


class Odd(nn.Module):
    """Maps of one pixel, channels-last maps, a layer that runs for some batches only and one that doubles some."""

    def __init__(self):
        super().__init__()
        self.conv, self.one, self.last, self.side = (
            nn.Conv2d(1, 3, 3),
            nn.AdaptiveAvgPool2d(1),
            nn.Identity(),
            nn.ReLU(),
        )
        self.twice, self.fc = nn.Identity(), nn.Linear(3, 2)

    def forward(self, x):
        z = self.conv(x)
        self.last(z.movedim(1, -1))
        self.twice(z if x[0, 0, 0, 0] > 0 else torch.cat([z, z]))
        if x[0, 0, 0, 0] > 0:
            self.side(z)
        return self.fc(self.one(z).flatten(1))


NOT_ALWAYS = "it does not run in every forward pass"


def test_layers_without_maps_say_why():
    ds = measure(Odd().double(), pictures(30), metrics=["channelwise", MATCHED], layers="all", batch_size=4)
    said = dict(zip(ds.layer.values.tolist(), ds[f"{MATCHED}_nan_reason"].values[0].tolist(), strict=True))
    assert said["conv"] == said["last"] == ""
    assert said["one"] == "its output has one position, where a cosine only compares signs"
    assert said["side"] == f"its channels could not be matched: {NOT_ALWAYS}"
    for layer, reason in said.items():
        assert ds[MATCHED].sel(layer=layer).notnull().all() == (reason == ""), layer
    # of channels-last maps the channels are matched as of others
    np.testing.assert_allclose(ds[MATCHED].sel(layer="last"), ds[MATCHED].sel(layer="conv"), atol=1e-6)
    for variable in ("channelwise", MATCHED):
        assert ds[variable].sel(layer="twice").isnull().all()
    assert "images in a forward pass of" in ds.channelwise_nan_reason.sel(layer="twice").item()


class Late(nn.Module):
    """A branch that runs for no batch that holds a bright image."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 3, 3), nn.Linear(3, 2)

    def forward(self, x):
        if x.amax() < 50:
            self.conv(x)
        return self.fc(x.mean((1, 2, 3))[:, None].expand(-1, 3))


def test_a_layer_that_the_fit_missed_has_no_value():
    images = pictures(600)
    images[read_order(600, SEED)[5]] = 100  # one batch of the first half
    settings = {"precision": "float64", "device": "cpu", "seed": SEED, "layers": ["conv"], "batch_size": 64}
    options = Options("C4", metrics=["channelwise", MATCHED], **settings)
    values, _ = measure_block(Late().double(), images, options, places=range(512, 600))
    assert values.channelwise.sel(layer="conv").notnull().all()
    assert values[MATCHED].isnull().all()
    assert values[f"{MATCHED}_nan_reason"].sel(layer="conv").item().endswith(NOT_ALWAYS)


def test_a_shift_is_undefined_where_its_height_does_not_divide():
    found = measure(four(), pictures(8), group="shift2", metrics=["channelwise", MATCHED], layers=["act", "mix"])
    assert found[MATCHED].sel(layer="act").notnull().all()
    assert found[MATCHED].sel(layer="mix").isnull().all()
    assert (
        found[f"{MATCHED}_nan_reason"].sel(layer="mix").item() == found.channelwise_nan_reason.sel(layer="mix").item()
    )


class Partly(Four):
    """Some of the second channel is not finite for images that are marked in a corner."""

    def __init__(self, value):
        super().__init__()
        self.spoilt, self.value = nn.Identity(), value

    def forward(self, x):
        z = self.act(self.stem(x))
        marked = x[:, 0, [0, 0, -1, -1], [0, -1, 0, -1]].amax(1) > 50
        spoilt = z.clone()
        spoilt[marked, 1, 2] = self.value
        self.spoilt(spoilt)
        return self.fc(z.mean((-2, -1)))

    def trace(self, x, layer):
        z = super().trace(x, "act")
        if x[0, [0, 0, -1, -1], [0, -1, 0, -1]].max() > 50:
            z[1, 2] = self.value
        return z


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_maps_that_are_not_finite_do_not_spoil_the_fit(value):
    images, order = pictures(12), oracles.seeded_order(12, SEED)
    bad = [order[1], order[8]]
    images[bad, 0, 0, 0] = 100
    model = Partly(value).double()
    found = measure(model, images, layers=["spoilt"], null=False).sel(layer="spoilt", model="Partly")[MATCHED]
    want, rest = oracles.matched(orbit(model, images, "spoilt"), "C4", order), [i for i in range(12) if i not in bad]
    assert found.isel(sample=bad).isnull().all()
    np.testing.assert_allclose(found.isel(sample=rest), want[:, rest], atol=1e-6)


class Torn(Dataset):
    def __init__(self, images, torn):
        self.images, self.torn = images, torn

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        if i in self.torn:
            raise OSError(f"file {i} is torn")
        return self.images[i]


def test_images_that_cannot_be_read_are_left_out_of_the_fit():
    images, order = pictures(12), oracles.seeded_order(12, SEED)
    torn = [order[2], order[9]]
    options = Options("C4", metrics=[MATCHED], layers=["mix"], precision="float64", device="cpu", seed=SEED)
    values, states = measure_block(four(), Torn(images, torn), options, places=range(12))
    found = values[MATCHED].sel(layer="mix", model="Four")
    want = oracles.matched(orbit(four(), images, "mix"), "C4", order, unreadable=torn)[:, order]
    rest = [place for place in range(12) if order[place] not in torn]
    np.testing.assert_allclose(found.isel(sample=rest), want[:, rest], atol=1e-6)
    assert found.isel(sample=[2, 9]).isnull().all()
    assert states.attrs["flaws"] == [f"number {i}: OSError: file {i} is torn" for i in torn]
    with pytest.raises(ValueError, match="no image of one half of the 12 that channels are matched on could be read"):
        measure_block(four(), Torn(images, order[6:]), options, places=range(12))


class Watching(Four):
    """Notes under what it runs."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(
            (
                x.dtype,
                torch.is_autocast_enabled("cpu"),
                torch.get_float32_matmul_precision(),
                self.training,
                torch.is_grad_enabled(),
            )
        )
        return super().forward(x)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_fit_runs_as_the_pass_does_and_leaves_the_model(precision):
    model = Watching()
    before = copy.deepcopy(model.state_dict())
    layouts = {"mix": "b c h w"}
    ds = measure(model, pictures(10), precision=precision, batch_size=4, layers=["mix"], layouts=layouts)
    in_pass = (torch.float32, precision == "bfloat16", "highest", False, False)
    # two halves of one or two batches and two batches under four elements, after the layers are found
    assert model.seen[-4 * (4 + 2) :] == [in_pass] * (4 * (4 + 2))
    assert ds[MATCHED].sel(layer="mix").notnull().all()
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


class Wiping(Four):
    """Leaves nothing of its input."""

    def forward(self, x):
        scores = super().forward(x)
        x.zero_()
        return scores


def test_a_model_that_works_in_place_on_its_input_harms_nothing():
    np.testing.assert_array_equal(
        measure(Wiping().double(), pictures(9))[MATCHED], measure(four(), pictures(9))[MATCHED]
    )


def test_nothing_is_fitted_where_nothing_is_matched():
    passes = []
    for metric in (MATCHED, "channelwise"):
        model = Watching()
        measure(model, pictures(10).float(), precision="float32", batch_size=5, metrics=[metric])
        passes.append(len(model.seen))
    assert passes[0] - passes[1] == 4 * 2


def test_other_metrics_do_not_change_in_its_company():
    metrics = ["channelwise", "channelwise_centred", "latent", "softmax"]
    alone, beside = (measure(four(), pictures(13), metrics=chosen) for chosen in (metrics, [MATCHED, *metrics]))
    for name in alone.data_vars:
        np.testing.assert_array_equal(alone[name], beside[name], err_msg=name)


class Endless(IterableDataset):
    def __iter__(self):
        yield pictures(8)


@pytest.mark.parametrize("images", [DataLoader(pictures(8), batch_size=4), Endless(), iter([pictures(8)])])
def test_images_that_cannot_be_read_by_number_are_refused(images):
    with pytest.raises(
        TypeError, match=r"expected a tensor or a data set, got \w+; pass the data set itself, or leave the"
    ):
        measure(four(), images)


def test_fewer_than_four_images_are_refused():
    with pytest.raises(ValueError, match="which needs 4, got 3; pass more, or leave the matched metric out"):
        measure(four(), pictures(3), group="flip")
    assert measure(four(), pictures(4))[MATCHED].sel(layer="mix").notnull().all()


def test_an_array_is_read_as_the_tensor_it_holds():
    np.testing.assert_array_equal(measure(four(), pictures(9).numpy())[MATCHED], measure(four(), pictures(9))[MATCHED])


@pytest.mark.parametrize(
    ("where", "distance", "features"),
    [
        ("vectors", distances.channelwise_negative_cosine, None),
        ("maps", distances.negative_cosine, None),
        ("maps", distances.channelwise_negative_cosine, torch.abs),
    ],
)
def test_only_maps_as_they_are_can_be_matched(where, distance, features):
    with pytest.raises(ValueError, match="mine: only channels of maps as they are can be matched"):
        Metric("mine", where, distance, features=features, matched=True)


@pytest.mark.parametrize("make", [lambda action: actions.trivial(action.group), lambda action: actions.regular(action)])
def test_channels_are_matched_after_the_metrics_own_action(make):
    metric = replace(METRICS[MATCHED], name="mine", action=make)
    # where no channel is dead, so that no assignment is open
    ds = measure(four(), pictures(13), metrics=[metric, MATCHED], layers=["mix"]).sel(layer="mix")
    if make(actions.spatial("C4")).name == "trivial":
        assert "the action is no faithful permutation of its positions" in ds.mine_nan_reason.item()
        assert ds.mine.isnull().all()
    else:
        # whatever channels the fields permute is undone by the permutation that is fitted
        np.testing.assert_allclose(ds.mine, ds[MATCHED], atol=1e-6)


# seen through the first pair of masks a flip swaps two channels, through the second it leaves them
LEFT_TO_RIGHT = torch.linspace(0, 1, 6, dtype=torch.float64).expand(6, 6)
SWAPPING = torch.stack([LEFT_TO_RIGHT, LEFT_TO_RIGHT.flip(-1)])
STAYING = torch.stack([LEFT_TO_RIGHT.mT, LEFT_TO_RIGHT.mT.flip(-2)])


class Masked(nn.Module):
    """Two maps, the image through two masks: through one pair where it is bright, through the other where not."""

    def __init__(self):
        super().__init__()
        self.maps = nn.Identity()

    def forward(self, x):
        is_bright = (x.amax((1, 2, 3)) > 1)[:, None, None, None]
        return self.maps(x * torch.where(is_bright, SWAPPING, STAYING)).mean((-2, -1))


def test_each_half_is_scored_by_what_the_other_teaches():
    images = pictures(8).abs().clamp(0.1, 1)
    first = read_order(8, SEED)[:4].tolist()
    images[first] *= 100
    options = {"group": "flip", "layers": ["maps"], "layouts": {"maps": "b c h w"}, "output": "features"}
    found = measure(Masked().double(), images, **options)[MATCHED].sel(layer="maps", model="Masked", element="m")
    for i in range(8):
        moved = images[i, 0].numpy()[:, ::-1]
        one, other = (moved * mask.numpy() for mask in (SWAPPING if i in first else STAYING))
        # its own half would have said −1
        assert found.sel(sample=i).item() == pytest.approx(-oracles.cosine(one, other), abs=1e-6)
        assert found.sel(sample=i) > -0.9


def test_dead_channels_stay_where_they_are():
    rng = np.random.default_rng(0)
    for _ in range(50):
        sums, dead = rng.random((2, 8, 8)), rng.random(8) < 0.4
        sums[:, dead], sums[:, :, dead] = 0, 0
        assert assigned(torch.from_numpy(sums))[1, dead].tolist() == np.flatnonzero(dead).tolist()


def test_the_identity_permutes_nothing_whatever_rounding_says():
    # two channels of one direction
    assert assigned(torch.tensor([[[1.0, 1.0001], [1.0001, 1.0]]])).tolist() == [[0, 1]]
