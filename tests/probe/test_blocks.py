"""Blocks of a study against measure() on all images at once: values side by side, and what is joined from their states."""

import itertools

import numpy as np
import oracles
import pytest
import torch
import xarray as xr
from made import Net, Torn, noise
from torch import nn

from eedkit.probe.measure import Options, measure, measure_block
from eedkit.probe.metrics import METRICS, Metric
from eedkit.probe.samples import read_order
from eedkit.theory import distances

FEW = ("channelwise", "channelwise_regular", "latent", "latent_euclidean", "softmax_js")


def options_of(group="C4", metrics=FEW, **others):
    return Options(group, metrics=metrics, device="cpu", **others)


def marks(x):
    return (x[:, 0, 4, 4] > 0.8)[:, None]


class Absent(Net):
    """A side branch, the widest layer, runs in no batch of several images that holds a marked one."""

    def __init__(self):
        super().__init__()
        self.side = nn.Conv2d(1, 16, 3)

    def forward(self, x):
        if len(x) == 1 or not marks(x).any():
            self.side(x)
        return super().forward(x)


class Blind(Net):
    """Gives finite features even for an image of NaN."""

    def forward(self, x):
        return super().forward(torch.nan_to_num(x, 0.5))


def pictures(n, marked=()):
    """Noise; the images at the `marked` places of the reading order are bright in the middle."""
    images = noise(n, side=9).sigmoid().float()
    images[:, :, 4, 4] *= 0.7
    images[read_order(n, 0)[list(marked)], 0, 4, 4] = 0.9
    return images


def torn(images, places):
    """Images of which those at some places of the reading order cannot be read."""
    return Torn(images, set(read_order(len(images), 0)[list(places)].tolist()))


def measured_blocks(model, images, options, *, chains_in_each=2, labels=None):
    """Blocks of a few whole chains each."""
    chains = oracles.chains(len(images), options.action.group.order)
    starts = [0, *itertools.accumulate(map(len, chains))]
    places = [range(*pair) for pair in itertools.pairwise([*starts[:-1:chains_in_each], len(images)])]
    return [measure_block(model, images, options, places=p, name="m", labels=labels) for p in places]


def side_by_side(blocks):
    settings = {"data_vars": "minimal", "coords": "minimal", "compat": "override", "join": "override"}
    return xr.concat([values for values, _ in blocks], "sample", **settings)


def whole(model, images, options, **others):
    """What measure() gives for all images, in reading order."""
    values, _ = measure_block(model, images, options, name="m", **others)
    return values.sel(sample=read_order(len(images), options.seed).tolist())


def of_images(ds):
    return [name for name in ds.data_vars if "sample" in ds[name].dims]


def assert_joined(blocks, wanted, options):
    """Values stand side by side; M and the dead channels follow from the states."""
    found = side_by_side(blocks)
    assert set(of_images(found)) == set(of_images(wanted))
    for name in (*of_images(wanted), "chain", "sample"):
        np.testing.assert_allclose(found[name], wanted[name], atol=2e-6, rtol=1e-5, err_msg=name)
    states = [part for _, part in blocks]
    total = sum(part.pair_sum.values for part in states)
    n = sum(np.maximum(part.pair_n.values, 0) for part in states)
    normalised = [metric.name for metric in options.metrics if metric.normalised]
    assert states[0].normalised.values.tolist() == (normalised or [""])
    for k, name in enumerate(normalised):
        pair_cosine = ((total[k] ** 2).sum(-1) - n[k]) / (n[k] * n[k] - n[k])
        np.testing.assert_allclose(pair_cosine, wanted[f"{name}_pair_cosine"][0], rtol=1e-5)
    if "dead_fraction" in wanted:
        with np.errstate(invalid="ignore"):
            dead = sum(part.dead.values for part in states) / sum(part.live_or_dead.values for part in states)
        np.testing.assert_allclose(dead, wanted.dead_fraction[0], atol=1e-12)


DEFAULT = {"group": "C4", "metrics": FEW}
MINE = Metric("mine", "vectors", distances.euclidean, normalised=True)
EVERY = {"metrics": [*METRICS]}
SETTINGS = {
    # images, chains in a block, options
    "one chain each": (9, 1, EVERY),
    "C8": (31, 2, {"group": "C8", "batch_size": 30, **EVERY}),
    "D4": (30, 2, {"group": "D4", "batch_size": 4, **EVERY}),
    "flip, another seed": (61, 3, {"group": "flip", "batch_size": 16, "seed": 7, **EVERY}),
    "shifts in slices": (40, 1, {"group": "shift3x3", "batch_size": 5, "metrics": [*FEW, "channelwise_matched"]}),
    "no null": (60, 4, {"null": False}),
    "output only": (60, 4, {"metrics": ["softmax"]}),
    "maps only": (60, 4, {"metrics": ["channelwise"]}),
    "all layers": (60, 4, {"layers": "all", "metrics": [MINE]}),
    "bfloat16": (60, 4, {"precision": "bfloat16"}),
    "two halves of 256": (600, 70, {"metrics": ["channelwise_matched"]}),
}


@pytest.mark.parametrize("case", SETTINGS)
@pytest.mark.filterwarnings("error")
def test_blocks_joined_are_what_measure_gives(case):
    n, chains_in_each, settings = SETTINGS[case]
    images, options = pictures(n), options_of(**settings)
    labels = list(range(n))
    blocks = measured_blocks(Net(), images, options, chains_in_each=chains_in_each, labels=labels)
    wanted = whole(Net(), images, options, labels=labels)
    assert wanted.sample.values.tolist() == read_order(n, options.seed).tolist()
    assert_joined(blocks, wanted, options)
    found = measure(Net(), images, labels=labels, progress=False, name="m", device="cpu", **DEFAULT | settings)
    xr.testing.assert_equal(found.sel(sample=wanted.sample), wanted)


def test_blocks_within_classes_are_what_measure_gives():
    images, labels = pictures(24), [0, 1, 1] * 8
    options = options_of(null="within-class", metrics=("channelwise", "latent"))
    wanted, _ = measure_block(Net(), images, options, labels=labels, name="m")
    places = range(8), range(8, 24)
    blocks = [measure_block(Net(), images, options, labels=labels, places=p, name="m") for p in places]
    rows = np.concatenate([values.sample.values for values, _ in blocks]).tolist()
    assert_joined(blocks, wanted.sel(sample=rows), options)


def test_states_have_one_shape_in_every_block():
    # not among the first two of its block, on which the layers are found
    images = pictures(24, [13])
    options = options_of(metrics=["channelwise", "latent"], layers="all", batch_size=4)
    blocks = [states for _, states in measured_blocks(Absent(), images, options)]
    assert len({tuple(states.sizes.items()) for states in blocks}) == 1
    # of 16 channels, where the widest layer is the one that does not always run
    assert blocks[0].sizes["feature"] == 16
    reasons = [states.reason.sel(metric="latent").values[0] for states in blocks]
    assert sorted(set(reasons)) == ["", "it does not run in every forward pass"]


@pytest.mark.parametrize("kind", [Net, Blind])
def test_states_hold_what_the_readable_images_make(kind):
    """A blind model gives numbers for what stands in for an image: M and the dead channels must not count them."""
    images, bad = pictures(44), [9, 20]
    values, states = measure_block(kind(), torn(images, bad), options_of(batch_size=4), places=range(8, 44))
    order = read_order(44, 0)
    some = images[order[[place for place in range(8, 44) if place not in bad]]]
    traced = [[Net().trace(torch.rot90(x, k, (-2, -1)).numpy()) for x in some] for k in range(4)]
    layers = ["stem", "act", "down", "act#2", "cls", "latent"]
    is_dead = (np.array([[of_x["act"] for of_x in of_element] for of_element in traced]) == 0).all((-2, -1))
    assert states.metric.values.tolist() == list(FEW)
    assert states.sizes["layer"] == len(layers)
    for k, layer in enumerate(layers):
        vectors = [of_x[layer].reshape(len(of_x[layer]), -1).mean(1) for of_x in traced[0]]
        total = sum(map(oracles.unit, vectors))
        np.testing.assert_allclose(states.pair_sum[0, k, : len(total)], total, rtol=1e-5, atol=1e-5)
        assert (states.pair_sum[0, k, len(total) :] == 0).all()
    assert states.pair_n[0].values.tolist() == [34] * len(layers)
    assert states.live_or_dead.values.tolist() == [4 * 34 * channels for channels in (8, 8, 6, 6, 0, 0)]
    assert states.dead[1].item() == (is_dead & is_dead[:1]).sum() >= 4 * 34
    assert states.attrs["flaws"] == [f"number {number}: OSError: file {number} is torn" for number in order[bad]]
    assert states.undefined.sel(metric="latent").values.tolist() == [2] * len(layers)
    assert (values.prediction.isel(sample=[1, 12]) == -1).all()


@pytest.mark.parametrize("places", [range(2, 8), range(0, 6), range(40, 44), range(0, 30, 2), range(0), range(16, 34)])
def test_places_that_are_not_whole_chains_are_refused(places):
    with pytest.raises(ValueError, match="a block must be whole chains of the 30 images"):
        measure_block(Net(), pictures(30), options_of(), places=places)
