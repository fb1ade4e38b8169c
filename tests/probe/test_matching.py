"""channelwise_matched: brute force over all permutations, exact facts, honesty on noise, blocks, what is refused."""

import copy
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
from eedkit.probe.measure import measure_block
from eedkit.probe.metrics import METRICS, Metric, pooled
from eedkit.probe.stream import read_order
from eedkit.theory import actions, distances, groups
from eedkit.theory.deviation import chains

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


# ---------------------------------------------------------------- against loops over all permutations


@pytest.mark.parametrize("group", ["C4", "D4", "flip"])
@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_it_is_the_loop_over_all_permutations_whatever_the_batch_size(group, batch_size):
    images, order = pictures(13), oracles.seeded_order(13, SEED)
    ds = measure(four(), images, group=group, batch_size=batch_size, layers=["act", "mix"])
    plain = measure(four(), images, group=group, metrics="channelwise", layers=["act", "mix"])
    for layer in ("act", "mix"):
        found, maps = ds.sel(layer=layer, model="Four"), orbit(four(), images, layer, group)
        np.testing.assert_allclose(found[MATCHED], oracles.matched(maps, group, order), atol=1e-6)
        null = oracles.matched(maps, group, order, oracles.partners(13, order))
        np.testing.assert_allclose(found[f"{MATCHED}_null"], null, atol=1e-6)
        assert (found[MATCHED].sel(element="e") < -0.999999).all()
        assert not np.allclose(found[MATCHED], plain.channelwise.sel(layer=layer, model="Four"), atol=0.01)


def test_values_are_those_without_a_null():
    images = pictures(13)
    np.testing.assert_array_equal(measure(four(), images, null=False)[MATCHED], measure(four(), images)[MATCHED])


def test_the_order_of_the_data_is_nothing_where_the_order_of_reading_is_the_same():
    images, other = pictures(20), torch.empty(20, 1, 6, 6, dtype=torch.float64)
    other[read_order(20, 8)] = images[read_order(20, SEED)]
    one, two = measure(four(), images), measure(four(), other, seed=8)
    for name in (MATCHED, f"{MATCHED}_null"):
        np.testing.assert_array_equal(one[name][..., read_order(20, SEED)], two[name][..., read_order(20, 8)])


@pytest.mark.parametrize(("n", "batch_size"), [(300, None), (600, None), (600, 100)])
def test_blocks_side_by_side_are_what_measure_gives(n, batch_size):
    images, options = pictures(n), {"group": "C4", "precision": "float64", "device": "cpu", "seed": SEED}
    wanted = measure(four(), images, batch_size=batch_size)
    for block in chains(n):
        values, _ = measure_block(four(), images, positions=block, metrics=[MATCHED], batch_size=batch_size, **options)
        rows = read_order(n, SEED)[block.start : block.stop]
        assert values.position.values.tolist() == list(block)
        for name in (MATCHED, f"{MATCHED}_null"):
            np.testing.assert_array_equal(values[name], wanted[name][..., rows])


# ---------------------------------------------------------------- facts


@pytest.mark.parametrize("group", ["C4", "D4"])
def test_a_group_convolution_is_found_equivariant_though_channelwise_misses_it(group):
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
    at = ds.sel(layer="0")
    np.testing.assert_allclose(at[MATCHED], -1, atol=1e-6)
    np.testing.assert_allclose(
        at[f"{MATCHED}_null"].sel(element="r90"), at[f"{MATCHED}_null"].sel(element="e"), atol=1e-6
    )


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


def test_the_halves_are_of_256_and_what_lies_beyond_is_scored_by_the_first():
    # on noise the best permutation changes with every sample that is added
    images, order, model = pictures(540, side=5), oracles.seeded_order(540, SEED), Noise()
    ds = measure(model, images, group="flip", layers=r"layers\.[01]")
    for layer in (0, 1):
        found, maps = ds.sel(layer=f"layers.{layer}", model="Noise"), orbit(model, images, layer, "flip")
        np.testing.assert_allclose(found[MATCHED], oracles.matched(maps, "flip", order), atol=1e-6)
        null = oracles.matched(maps, "flip", order, oracles.partners(540, order))
        np.testing.assert_allclose(found[f"{MATCHED}_null"], null, atol=1e-6)


def test_on_noise_it_promises_nothing():
    images, model, order = pictures(8, side=5), Noise(), oracles.seeded_order(8, SEED)
    ds = measure(model, images, layers=r"layers\..*").sel(element=["r90", "r180", "r270"])
    assert abs(ds[MATCHED].mean()) < 0.03
    optimistic = []
    for layer in range(12):
        maps = orbit(model, images, layer)
        optimistic.append(oracles.matched(maps, "C4", order, held_out=False)[1:].mean())
    assert np.mean(optimistic) < -0.12


# ---------------------------------------------------------------- layers and images that are not as they should be


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


def test_layers_without_maps_say_what_they_say_for_channelwise():
    ds = measure(Odd().double(), pictures(30), metrics=["channelwise", MATCHED], layers="all", batch_size=4)
    # which pass comes upon a doubled batch first, the fit or the other, is chance
    assert ds[MATCHED].sel(layer="twice").isnull().all()
    ds = ds.drop_sel(layer="twice")
    said = ds[f"{MATCHED}_nan_reason"].values.tolist()
    assert said == ds.channelwise_nan_reason.values.tolist()
    found = dict(zip(ds.layer.values.tolist(), said[0], strict=True))
    assert found["conv"] == ""
    assert found["one"] == "its maps have one pixel, where a cosine only compares signs"
    assert found["side"] == "it does not run in every forward pass"
    assert "channels-last" in found["last"]
    assert ds[MATCHED].notnull().any(("element", "sample")).values.tolist() == [[reason == "" for reason in said[0]]]


class Late(nn.Module):
    """A branch that runs for no batch that holds a bright image."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 3, 3), nn.Linear(3, 2)

    def forward(self, x):
        if x.amax() < 50:
            self.conv(x)
        return self.fc(x.mean((1, 2, 3))[:, None].expand(-1, 3))


def test_a_layer_that_the_fit_did_not_always_see_has_no_value_in_any_block():
    images = pictures(600)
    images[read_order(600, SEED)[5]] = 100  # one batch of the first half
    options = {
        "group": "C4",
        "precision": "float64",
        "device": "cpu",
        "seed": SEED,
        "layers": ["conv"],
        "batch_size": 64,
    }
    values, _ = measure_block(
        Late().double(), images, positions=range(512, 600), metrics=["channelwise", MATCHED], **options
    )
    assert values.channelwise.sel(layer="conv").notnull().all()
    assert values[MATCHED].isnull().all()
    assert values[f"{MATCHED}_nan_reason"].sel(layer="conv").item() == "it does not run in every forward pass"


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
    torn, options = [order[2], order[9]], {"group": "C4", "precision": "float64", "device": "cpu", "seed": SEED}
    values, states = measure_block(
        four(), Torn(images, torn), positions=range(12), metrics=[MATCHED], layers=["mix"], **options
    )
    found = values[MATCHED].sel(layer="mix", model="Four")
    want = oracles.matched(orbit(four(), images, "mix"), "C4", order, unreadable=torn)[:, order]
    rest = [place for place in range(12) if order[place] not in torn]
    np.testing.assert_allclose(found.isel(sample=rest), want[:, rest], atol=1e-6)
    assert found.isel(sample=[2, 9]).isnull().all()
    assert states.attrs["flaws"] == [f"OSError: file {i} is torn" for i in torn]
    with pytest.raises(ValueError, match="no image of one half of the 12 that channels are matched on could be read"):
        measure_block(four(), Torn(images, order[6:]), positions=range(12), metrics=[MATCHED], **options)
    with pytest.raises(OSError, match="is torn"):
        measure(four(), Torn(images, torn))


# ---------------------------------------------------------------- the model, and what is refused


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
def test_the_fit_runs_as_the_pass_does_and_leaves_the_model_as_it_was(precision):
    model = Watching()
    before = copy.deepcopy(model.state_dict())
    maps = []
    metric = replace(METRICS[MATCHED], features=lambda z: maps.append((z.dtype, torch.is_autocast_enabled("cpu"))) or z)
    ds = measure(model, pictures(10), precision=precision, batch_size=5, metrics=[metric], layers=["mix"])
    # one pass to find the layers; two halves and two batches under four elements
    assert len(model.seen) == 1 + 4 * (2 + 2)
    assert set(model.seen) == {(torch.float32, precision == "bfloat16", "highest", False, False)}
    assert ds[MATCHED].sel(layer="mix").notnull().all()
    # half precision is the model's alone
    assert set(maps) == {(torch.float32, False)}
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
    model = Watching()
    measure(model, pictures(10).float(), precision="float32", batch_size=5, metrics=["channelwise"])
    assert len(model.seen) == 1 + 4 * 2


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
        measure(four(), pictures(3))
    assert measure(four(), pictures(4))[MATCHED].sel(layer="mix").notnull().all()


def test_an_array_is_read_as_the_tensor_it_holds():
    np.testing.assert_array_equal(measure(four(), pictures(9).numpy())[MATCHED], measure(four(), pictures(9))[MATCHED])


def test_only_maps_are_matched():
    with pytest.raises(
        ValueError, match="mine: only channels of maps are matched, so where must be 'maps', got 'vectors'"
    ):
        Metric("mine", "vectors", pooled, lambda a: a, distances.negative_cosine, "mine", "ours", matched=True)


class Sorting(nn.Module):
    """Two colours: as they are, or, for images of large numbers, their sum and their distance, which a swap leaves alone."""

    def forward(self, x):
        large = (x.abs().amax((1, 2, 3)) > 50)[:, None, None]
        a, b = x[:, 0], x[:, 1]
        return torch.stack([torch.where(large, a + b, a), torch.where(large, (a - b).abs(), b)], 1)


def test_the_kernel_is_that_of_the_moves_with_both_permutations():
    """C2 swaps the colours and moves nothing in space. The first half of the images teaches to stay, the second to swap."""
    swap = actions.Action("colours", groups.parse("C2"), lambda g, z: z.flip(-3) if g else z)
    images = torch.rand(8, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    first, second = read_order(8, SEED)[:4].tolist(), read_order(8, SEED)[4:].tolist()
    images[first] *= 100
    metric = replace(METRICS[MATCHED], name="mine", action=lambda a: actions.trivial(a.group))
    model = nn.Sequential(Sorting(), nn.Flatten(), nn.Linear(32, 2)).double()
    found = measure(model, images, group=swap, metrics=[metric], layers=["0"]).mine.sel(layer="0", model="Sequential")
    for i in first + second:
        a, b = images[i].numpy()
        a, b = (a + b, abs(a - b)) if i in first else (a, b)
        # each half is scored by what the other teaches
        np.testing.assert_allclose(found.sel(sample=i), [-1, -oracles.cosine(a, b)], atol=1e-6)


def test_dead_channels_stay_where_they_are():
    rng = np.random.default_rng(0)
    for _ in range(50):
        sums, dead = rng.random((2, 8, 8)), rng.random(8) < 0.4
        sums[:, dead], sums[:, :, dead] = 0, 0
        assert assigned(torch.from_numpy(sums))[1, dead].tolist() == np.flatnonzero(dead).tolist()


def test_the_identity_permutes_nothing_whatever_rounding_says():
    # two channels of one direction
    assert assigned(torch.tensor([[[1.0, 1.0001], [1.0001, 1.0]]])).tolist() == [[0, 1]]
