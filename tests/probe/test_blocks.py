"""Blocks of a study against measure() on all images at once: values side by side, and what is joined from their states."""

import itertools
import warnings

import numpy as np
import oracles
import pytest
import torch
import xarray as xr
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

import eedkit as ek
from eedkit.probe.measure import Options, measure_block
from eedkit.probe.metrics import METRICS, Metric
from eedkit.probe.samples import read_order
from eedkit.theory import distances

FEW = ("channelwise", "channelwise_regular", "latent", "latent_euclidean", "softmax_js")


def options_of(group="C4", metrics=FEW, **others):
    return Options(group, metrics=metrics, device="cpu", **others)


class Net(nn.Module):
    """8 maps of 9×9 (the third dead), 4 of 7×7, a latent vector of 4, three classes. Marked images are bright in the middle."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.stem, self.act = nn.Conv2d(1, 8, 3, padding=1), nn.ReLU()
            self.down, self.head = nn.Conv2d(8, 4, 3), nn.Linear(4, 3)
        with torch.no_grad():
            self.stem.weight[2], self.stem.bias[2] = 0, -1

    def features(self, x):
        return self.down(self.act(self.stem(x))).mean((-2, -1))

    def forward(self, x):
        return self.head(self.features(x))


class Marked(Net):
    """Does something to the latent vector of marked images."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def features(self, x):
        return self.change(super().features(x), (x[:, 0, 4, 4] > 0.8)[:, None])


class Absent(Net):
    """A side branch, the widest layer, runs in no batch of several images that holds a marked one."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.side = nn.Conv2d(1, 16, 3)

    def forward(self, x):
        if len(x) == 1 or not (x[:, 0, 4, 4] > 0.8).any():
            self.side(x)
        return super().forward(x)


def zeros(z, marked):
    return z.masked_fill(marked, 0.0)


def not_finite(z, marked):
    return z.masked_fill(marked, float("nan"))


def infinite(z, marked):
    return z.masked_fill(marked, float("inf"))


class Blind(Net):
    """Gives finite features even for an image of NaN."""

    def forward(self, x):
        return super().forward(torch.nan_to_num(x, 0.5))


def pictures(n, marked=()):
    """Noise; the images at the `marked` places of the reading order are bright in the middle."""
    images = torch.rand(n, 1, 9, 9, generator=torch.Generator().manual_seed(1))
    images[:, :, 4, 4] *= 0.7
    images[read_order(n, 0)[list(marked)], 0, 4, 4] = 0.9
    return images


class Torn(Dataset):
    """Images of which those at some places of the reading order cannot be read."""

    def __init__(self, images, places):
        self.images, self.torn = images, set(read_order(len(images), 0)[list(places)].tolist())

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        if i in self.torn:
            raise OSError(f"file {i} is torn")
        return self.images[i]


def blocks_of(n, order=4, chains_in_each=2):
    """Places of the seeded order, of a few whole chains each."""
    starts = [0]
    for chain in oracles.chains(n, order):
        starts.append(starts[-1] + len(chain))
    bounds = [*starts[:-1:chains_in_each], n]
    return [range(start, stop) for start, stop in itertools.pairwise(bounds)]


def measured_blocks(model, images, options, *, chains_in_each=2, labels=None):
    places = blocks_of(len(images), options.action.group.order, chains_in_each)
    return [measure_block(model, images, options, places=p, name="m", labels=labels) for p in places]


def side_by_side(blocks):
    settings = {"data_vars": "minimal", "coords": "minimal", "compat": "override", "join": "override"}
    return xr.concat([values for values, _ in blocks], "sample", **settings)


def whole(model, images, options, **others):
    """What measure() gives for all images, in reading order, with its states."""
    values, states = measure_block(model, images, options, name="m", **others)
    return values.sel(sample=read_order(len(images), options.seed).tolist()), states


def of_images(ds):
    return [name for name in ds.data_vars if "sample" in ds[name].dims]


@pytest.mark.parametrize("group", ["C4", "D4", "flip"])
@pytest.mark.parametrize(("n", "chains_in_each", "batch_size"), [(9, 1, None), (30, 2, 4), (61, 3, 16), (20, 1, 1)])
def test_blocks_side_by_side_are_what_measure_gives(group, n, chains_in_each, batch_size):
    images, options = pictures(n), options_of(group, list(METRICS), batch_size=batch_size)
    found = side_by_side(measured_blocks(Net(), images, options, chains_in_each=chains_in_each))
    wanted, _ = whole(Net(), images, options)
    assert found.sample.values.tolist() == read_order(n, 0).tolist()
    assert found.chain.values.tolist() == wanted.chain.values.tolist()
    assert set(of_images(found)) == set(of_images(wanted)) >= {*METRICS, *(f"{name}_null" for name in METRICS)}
    for name in of_images(wanted):
        np.testing.assert_allclose(found[name], wanted[name], atol=2e-6, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("seed", [0, 7])
def test_a_block_follows_the_seed_and_the_labels(seed):
    images, options = pictures(30), options_of(seed=seed)
    found = side_by_side(measured_blocks(Net(), images, options, labels=list(range(30))))
    assert found.label.values.tolist() == found.sample.values.tolist() == read_order(30, seed).tolist()
    wanted, _ = whole(Net(), images, options)
    np.testing.assert_allclose(found.latent_null, wanted.latent_null, atol=1e-6)


def test_blocks_within_classes_are_what_measure_gives():
    images, labels = pictures(24), [0, 1, 1] * 8
    options = options_of(null="within-class", metrics=("channelwise", "latent"))
    wanted, _ = measure_block(Net(), images, options, labels=labels)
    parts = [measure_block(Net(), images, options, labels=labels, places=p)[0] for p in (range(8), range(8, 24))]
    for name in ("channelwise_null", "latent_null"):
        found = np.concatenate([part[name].values for part in parts], -1)
        rows = [*parts[0].sample.values.tolist(), *parts[1].sample.values.tolist()]
        np.testing.assert_allclose(found, wanted[name].sel(sample=rows), atol=1e-6)


def joined(blocks):
    """M by metric and layer, the dead fraction and the reasons, from the states of all blocks."""
    states = [part for _, part in blocks]
    total = sum(part.pair_sum.values for part in states)
    n = sum(np.maximum(part.pair_n.values, 0) for part in states)
    with np.errstate(invalid="ignore", divide="ignore"):
        pair_cosine = ((total**2).sum(-1) - n) / (n * n - n)
        dead = sum(part.dead.values for part in states) / sum(part.live_or_dead.values for part in states)
    return pair_cosine, dead


SETTINGS = {
    "few": {},
    "every metric": {"metrics": list(METRICS)},
    "no null": {"null": False},
    "output only": {"metrics": ["softmax"]},
    "maps only": {"metrics": ["channelwise"]},
    "flip": {"group": "flip"},
    "all layers": {"layers": "all", "metrics": [Metric("mine", "vectors", distances.euclidean, normalised=True)]},
    "bfloat16": {"precision": "bfloat16"},
}


@pytest.mark.parametrize("settings", SETTINGS)
def test_joined_states_are_what_measure_gives(settings):
    images, options = pictures(60), options_of(**SETTINGS[settings])
    blocks = measured_blocks(Net(), images, options, chains_in_each=4)
    pair_cosine, dead = joined(blocks)
    wanted, _ = whole(Net(), images, options)
    normalised = [metric.name for metric in options.metrics if metric.normalised]
    assert blocks[0][1].normalised.values.tolist() == (normalised or [""])
    for k, name in enumerate(normalised):
        np.testing.assert_allclose(pair_cosine[k], wanted[f"{name}_pair_cosine"][0], rtol=1e-5)
        assert np.isfinite(pair_cosine[k]).all()
    if "dead_fraction" in wanted:
        np.testing.assert_allclose(dead, wanted.dead_fraction[0], atol=1e-12)


def test_states_have_one_shape_in_every_block():
    # not among the first two of its block, on which the layers are found
    images = pictures(24, [13])
    options = options_of(metrics=["channelwise", "latent"], layers="all", batch_size=4)
    blocks = [states for _, states in measured_blocks(Absent(), images, options)]
    assert len({tuple(states.sizes.items()) for states in blocks}) == 1
    # of 16 channels, where the widest layer is the one that does not always run
    assert blocks[0].sizes["feature"] == 16
    at_side = [states.reason.sel(metric="latent").values[0] for states in blocks]
    assert sorted(set(at_side)) == ["", "it does not run in every forward pass"]


def test_the_states_hold_what_they_say():
    images, options = pictures(44), options_of()
    places = range(8, 44)
    _, states = measure_block(Net(), images, options, places=places)
    some = images[read_order(44, 0)[8:]]
    net = Net()
    with torch.no_grad():
        maps = [net.stem(some), net.act(net.stem(some)), net.down(net.act(net.stem(some)))]
        layers = [*(z.mean((-2, -1)) for z in maps), net.head(net.features(some)), net.features(some)]
        turned = [net.act(net.stem(torch.rot90(some, k, (-2, -1)))).flatten(2).norm(dim=-1) == 0 for k in range(4)]
    assert states.metric.values.tolist() == list(FEW)
    assert states.normalised.values.tolist() == ["latent"]
    assert states.sizes["layer"] == len(layers)
    for k, z in enumerate(layers):
        total = nn.functional.normalize(z.double(), dim=-1).sum(0)
        np.testing.assert_allclose(states.pair_sum[0, k, : len(total)], total, rtol=1e-5, atol=1e-5)
        assert (states.pair_sum[0, k, len(total) :] == 0).all()
    assert states.pair_n[0].values.tolist() == [36] * len(layers)
    assert states.live_or_dead.values.tolist() == [4 * 36 * 8, 4 * 36 * 8, 4 * 36 * 4, 0, 0]
    assert states.dead[1].item() == sum((each & turned[0]).sum().item() for each in turned) >= 4 * 36
    assert states.attrs["flaws"] == []


def test_zero_features_are_left_out_of_m():
    images, options = pictures(40, range(6)), options_of(metrics=["latent"])
    blocks = measured_blocks(Marked(zeros), images, options)
    pair_cosine, _ = joined(blocks)
    rest = read_order(40, 0)[6:]
    with torch.no_grad():
        vectors = Net().features(images[rest]).double().numpy()
    assert pair_cosine[0, -1] == pytest.approx(oracles.mean_pair_cosine(list(vectors)), rel=1e-6)
    assert sum(states.pair_n.values[0, -1] for _, states in blocks) == 34


@pytest.mark.parametrize("change", [not_finite, infinite])
@pytest.mark.parametrize("marked", [[2, 9, 15], [*range(8)]])
def test_outputs_that_are_not_finite_cost_themselves(change, marked):
    images, options = pictures(40, marked), options_of()
    blocks = measured_blocks(Marked(change), images, options, chains_in_each=5)
    values, (plain, _) = side_by_side(blocks), whole(Net(), images, options)
    rest = np.delete(np.arange(40), marked)
    flaws = [flaw for _, states in blocks for flaw in states.attrs["flaws"]]
    numbers = read_order(40, 0)[marked]
    assert flaws == [f"the model's output is not finite for sample {number} under e" for number in numbers]
    for name in ("channelwise", "latent", "softmax_js", "prediction", "confidence"):
        found, wanted = (ds[name].isel(sample=rest) for ds in (values, plain))
        np.testing.assert_allclose(found, wanted, atol=1e-6, err_msg=name)
    assert values.softmax_js.isel(sample=marked).isnull().all()
    assert (values.prediction.isel(sample=marked) == -1).all()
    assert values.latent_null.sel(layer="down").notnull().all()
    # the null is lost where one of the four images of a shuffled orbit is
    lost = set()
    for chain in oracles.chains(40, 4):
        for place in marked:
            if place in chain:
                lost |= {chain[(chain.index(place) - k) % len(chain)] for k in range(4)}
    assert set(np.flatnonzero(values.softmax_js_null.isnull().any(("model", "element")))) == lost
    pair_cosine, _ = joined(blocks)
    with torch.no_grad():
        vectors = Net().features(images[read_order(40, 0)[rest]]).double().numpy()
    assert pair_cosine[0, -1] == pytest.approx(oracles.mean_pair_cosine(list(vectors)), rel=1e-6)


@pytest.mark.parametrize("kind", [Net, Blind])
def test_unreadable_images_cost_themselves(kind):
    # a blind model gives numbers for what stands in for an image: M and the dead channels must not count them
    images, bad, options = pictures(40), [0, 3, 26], options_of()
    values, states = measure_block(kind(), Torn(images, bad), options, places=range(40))
    plain, _ = whole(kind(), images, options)
    rest = np.delete(np.arange(40), bad)
    numbers = read_order(40, 0)[bad]
    assert states.attrs["flaws"] == [f"number {number}: OSError: file {number} is torn" for number in numbers]
    assert values.sample.values.tolist() == plain.sample.values.tolist()
    for name in of_images(plain):
        if name.endswith("_null"):
            continue
        found, wanted = (ds[name].isel(sample=rest) for ds in (values, plain))
        np.testing.assert_allclose(found, wanted, atol=1e-6, rtol=1e-5, err_msg=name)
        missing = values[name].isel(sample=bad)
        assert (missing == -1 if name == "prediction" else missing.isnull()).all(), name
    # of vectors the whole shuffled orbit is lost, of maps the one element that acts on the image
    lost = set()
    for chain in oracles.chains(40, 4):
        lost |= {chain[(chain.index(place) - k) % 4] for place in bad if place in chain for k in range(4)}
    assert set(np.flatnonzero(values.softmax_js_null.isnull().all(("model", "element")))) == lost
    assert set(np.flatnonzero(values.softmax_js_null.isnull().any(("model", "element")))) == lost
    at_maps = values.channelwise_null.sel(layer="act", model=values.model.item()).isnull()
    of_place = {place: (chain, chain.index(place)) for chain in oracles.chains(40, 4) for place in chain}
    for place in range(40):
        chain, at = of_place[place]
        partners = [chain[(at + k) % len(chain)] for k in range(4)]
        assert at_maps.isel(sample=place).values.tolist() == [place in bad or other in bad for other in partners]
    assert states.pair_n.values.tolist() == [[37] * states.sizes["layer"]]
    assert states.live_or_dead.values[:2].tolist() == [4 * 8 * 37] * 2
    with torch.no_grad():
        features = kind().features(images[read_order(40, 0)[rest]]).double()
    total = nn.functional.normalize(features, dim=-1).sum(0)
    np.testing.assert_allclose(states.pair_sum.values[0, -1, :4], total, rtol=1e-5)


def test_flaws_come_in_the_order_of_the_samples():
    images = pictures(40, [2, 6])
    _, states = measure_block(Marked(not_finite), Torn(images, [4, 0]), options_of(), places=range(40))
    assert ["torn" in flaw for flaw in states.attrs["flaws"]] == [True, False, True, False]


def test_nothing_that_can_be_read_is_an_error():
    with pytest.raises(ValueError, match=r"no image could be read; the first: number \d+: OSError: file \d+ is torn"):
        measure_block(Net(), Torn(pictures(9), range(9)), options_of(), places=range(9))


class Endless(IterableDataset):
    def __iter__(self):
        yield from pictures(4)


@pytest.mark.parametrize("images", [DataLoader(pictures(4), batch_size=2), Endless(), iter([pictures(4)])])
def test_what_cannot_be_read_by_number_is_refused(images):
    with pytest.raises(TypeError, match="a block needs images that can be read by number, not a DataLoader or an iter"):
        measure_block(Net(), images, options_of(), places=range(4))


@pytest.mark.parametrize("places", [range(2, 8), range(0, 6), range(40, 44), range(0, 30, 2), range(0), range(16, 34)])
def test_places_that_are_not_whole_chains_are_refused(places):
    with pytest.raises(ValueError, match="a block must be whole chains of the 30 images"):
        measure_block(Net(), pictures(30), options_of(), places=places)


def test_a_block_makes_no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values, _ = measure_block(Net(), pictures(30), options_of(metrics=list(METRICS)), places=range(20, 30))
    assert values.sizes["sample"] == 10


def test_measure_is_the_block_of_all_images():
    images = pictures(13)
    found = ek.measure(Net(), images, group="C4", metrics=FEW, device="cpu", progress=False)
    wanted, _ = measure_block(Net(), images, options_of())
    assert found.attrs.pop("created")
    assert wanted.attrs.pop("created")
    xr.testing.assert_identical(found, wanted)
