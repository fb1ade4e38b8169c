"""Blocks of a study against measure() on all images at once: values side by side, and what is joined from their states."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

import eedkit as ek
from eedkit.probe.measure import measure_block
from eedkit.probe.metrics import METRICS, pooled
from eedkit.probe.stream import read_order
from eedkit.results import cells, store
from eedkit.results.cells import Cell
from eedkit.theory import distances
from eedkit.theory.deviation import CHAIN, chains

ALL = tuple(METRICS)
FEW = ("channelwise", "channelwise_regular", "latent", "latent_euclidean", "softmax_js")
OPTIONS = {"group": "C4", "name": "m", "device": "cpu"}


class Net(nn.Module):
    """8 maps of 5×5 (the third dead), 4 of 3×3, a latent vector of 4, three classes. Bright images are marked at (2, 2)."""

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
        return self.change(super().features(x), (x[:, 0, 2, 2] > 0.8)[:, None])


class Absent(Net):
    """A side branch, the widest layer, runs in no batch of several images that holds a marked one."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.side = nn.Conv2d(1, 16, 3)

    def forward(self, x):
        if len(x) == 1 or not (x[:, 0, 2, 2] > 0.8).any():
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
    images = torch.rand(n, 1, 5, 5, generator=torch.Generator().manual_seed(1))
    images[:, :, 2, 2] *= 0.7
    images[read_order(n, 0)[list(marked)], 0, 2, 2] = 0.9
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


def blocks_of(n, together=1):
    every = chains(n)
    return [
        range(every[i].start, every[min(i + together, len(every)) - 1].stop) for i in range(0, len(every), together)
    ]


def measured_blocks(model, images, *, together=1, metrics=FEW, **options):
    return [
        measure_block(model, images, positions=p, metrics=metrics, **OPTIONS | options)
        for p in blocks_of(len(images), together)
    ]


def whole(model, images, *, metrics=FEW, **options):
    """What measure() gives for all images, in reading order."""
    ds = ek.measure(model, images, metrics=metrics, progress=False, **OPTIONS | options)
    return ds.isel(sample=np.argsort(ds.position.values))


def through_store(folder, model, images, **options):
    """The blocks written by a cell and opened again."""
    path, n = str(folder / "a.zarr"), len(images)
    cells.create(path)
    cell, bounds = Cell(path, "d", "C4", "m"), [(p.start, p.stop) for p in blocks_of(n)]
    cell.begin({"data": "d", "about": {}}, bounds)
    samples = xr.Dataset(coords={"sample": read_order(n, 0), "position": ("sample", np.arange(n))})
    for block, (values, states) in enumerate(measured_blocks(model, images, **options)):
        cell.write(block, values, states, samples)
    return store.open(path).load()


def assert_joined(found, wanted):
    """Equal bit for bit, M up to the order in which float64 is summed; reasons and what a reader must know too."""
    assert set(found.data_vars) == set(wanted.data_vars)
    for name in wanted.data_vars:
        rtol = 1e-12 if name == "latent_pair_cosine" else 0
        np.testing.assert_allclose(found[name], wanted[name], rtol=rtol, err_msg=name)
        assert (found[name].dims, found[name].dtype, found[name].attrs) == (wanted[name].dims, wanted[name].dtype, wanted[name].attrs)  # fmt: skip
    for name in wanted.coords:
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)


@pytest.mark.parametrize("n", [2, 255, 256, 257, 300, 513])
def test_blocks_side_by_side_are_what_measure_gives(n):
    images, together = pictures(n), 1 + n % 2
    every = [name for name in ALL if n >= 4 or not METRICS[name].matched]
    found = xr.concat(
        [ds for ds, _ in measured_blocks(Net(), images, metrics=every, together=together)],
        "sample",
        data_vars="minimal",
        coords="minimal",
        compat="override",
    )
    wanted = whole(Net(), images, metrics=every)
    assert found.sample.values.tolist() == wanted.sample.values.tolist() == read_order(n, 0).tolist()
    assert found.position.values.tolist() == list(range(n))
    for name in [*every, *(f"{name}_null" for name in every), "latent_norm", "prediction", "confidence"]:
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)
    assert found.channelwise.notnull().any()


@pytest.mark.parametrize("seed", [0, 7])
def test_a_block_follows_the_seed_and_the_labels(seed):
    images, labels = pictures(300), list(range(300))
    found = [measure_block(Net(), images, positions=p, metrics=FEW, seed=seed, labels=labels, **OPTIONS)[0] for p in blocks_of(300)]  # fmt: skip
    found = xr.concat(found, "sample", data_vars="minimal", coords="minimal", compat="override")
    assert found.label.values.tolist() == found.sample.values.tolist() == read_order(300, seed).tolist()
    np.testing.assert_array_equal(found.latent_null, whole(Net(), images, seed=seed).latent_null)


@pytest.mark.parametrize(
    "options",
    [{}, {"metrics": ALL}, {"null": False}, {"metrics": ["softmax"]}, {"metrics": ["channelwise"]}, {"group": "flip"},
     {"metrics": [replace(METRICS["latent_euclidean"], name="mine", distance=distances.negative_cosine)], "layers": "all"},
     {"precision": "bfloat16"}],
)  # fmt: skip
def test_the_store_gives_what_measure_gives(tmp_path, options):
    images = pictures(300)
    assert_joined(through_store(tmp_path, Net(), images, **options), whole(Net(), images, **options))


def test_a_dead_channel_is_counted_over_blocks(tmp_path):
    found = through_store(tmp_path, Net(), pictures(300))
    assert found.dead_fraction.sel(layer="act").item() >= 1 / 8
    assert found.dead_fraction.sel(layer="stem").item() == 0


@pytest.mark.parametrize("marked", [range(256, 300), range(255, 257)])
def test_zero_features_are_left_out_of_m_and_of_nothing_else(tmp_path, marked):
    # a layer without values is one thing, one whose features are all zero another
    images = pictures(300, marked)
    found, wanted = through_store(tmp_path, Marked(zeros), images), whole(Marked(zeros), images)
    assert np.isfinite(wanted.latent_pair_cosine.sel(layer="latent").item())
    assert_joined(found, wanted)


@pytest.mark.parametrize("marked", [range(1), range(256, 258)])
def test_a_layer_that_is_undefined_in_one_block_is_undefined(tmp_path, marked):
    # every block's states must have the same shape, whatever is undefined in it
    images = pictures(300, marked)
    found, wanted = through_store(tmp_path, Absent(), images), whole(Absent(), images)
    assert wanted.latent_nan_reason.sel(layer="side").item() == "it does not run in every forward pass"
    assert_joined(found.drop_vars("dead_fraction"), wanted.drop_vars("dead_fraction"))


@pytest.mark.parametrize("marked", [range(3), range(256, 300)])
@pytest.mark.parametrize("change", [not_finite, infinite])
def test_m_is_that_of_the_finite_features(tmp_path, change, marked):
    # infinite features have no direction; outputs that are all NaN have predictions, of −1
    images = pictures(300, marked)
    found = through_store(tmp_path, Marked(change), images)
    with torch.no_grad():
        rest = np.delete(read_order(300, 0), list(marked))
        u = nn.functional.normalize(Net().features(images[rest]).double(), dim=-1).numpy()
    m = ((u @ u.T).sum() - len(u)) / (len(u) ** 2 - len(u))
    assert found.latent_pair_cosine.sel(layer="latent").item() == pytest.approx(m, rel=1e-6)
    assert (found.prediction.isel(sample=list(marked)) == -1).all()
    assert (found.prediction.isel(sample=sorted(set(range(300)) - set(marked))) >= 0).all()


def test_outputs_that_are_not_finite_cost_themselves_alone():
    images, bad = pictures(300, [4, 9, 255]), [4, 9, 255]
    values, states = measure_block(Marked(not_finite), images, positions=range(256), metrics=FEW, **OPTIONS)
    plain = whole(Net(), images).isel(sample=slice(256))
    rest = np.delete(np.arange(256), bad)
    names = [str(read_order(300, 0)[place]) for place in bad]
    assert [reason.split(" under ")[0] for reason in states.attrs["flaws"]] == [
        f"the model's output is not finite for sample {name}" for name in names
    ]
    assert "the first layer that shows it is 'head'" in states.attrs["flaws"][0]
    for name in ("channelwise", "latent", "softmax_js", "prediction", "confidence"):
        np.testing.assert_array_equal(values[name].isel(sample=rest), plain[name].isel(sample=rest), err_msg=name)
    assert values.softmax_js.isel(sample=bad).isnull().all()
    # what they were compared with, and whatever was compared with them: the one before in the chain
    lost = values.softmax_js_null.isnull().any(("model", "element"))
    assert np.flatnonzero(lost).tolist() == [3, 4, 8, 9, 254, 255]
    assert values.latent_null.sel(layer="down").notnull().all()


@pytest.mark.parametrize("kind", [Net, Blind])
def test_images_that_cannot_be_read_cost_themselves_alone(kind):
    # a blind model gives numbers for what stands in for an image: M and the dead channels must not count them
    images, bad = pictures(300), [0, 3, 200]
    values, states = measure_block(kind(), Torn(images, bad), positions=range(256), metrics=FEW, **OPTIONS)
    plain, rest = whole(kind(), images).isel(sample=slice(256)), np.delete(np.arange(256), bad)
    assert states.attrs["flaws"] == [f"OSError: file {read_order(300, 0)[place]} is torn" for place in bad]
    for name in ("channelwise", "latent", "latent_euclidean", "softmax_js", "latent_norm", "prediction", "confidence"):
        np.testing.assert_array_equal(values[name].isel(sample=rest), plain[name].isel(sample=rest), err_msg=name)
        missing = values[name].isel(sample=bad)
        assert (missing == -1 if name == "prediction" else missing.isnull()).all(), name
    lost = values.softmax_js_null.isnull().any(("model", "element"))
    assert np.flatnonzero(lost).tolist() == [0, 2, 3, 199, 200, 255]
    assert states.pair_n.values.tolist() == [253] * states.sizes["layer"]
    assert states.live_or_dead.values[:2].tolist() == [4 * 8 * 253] * 2
    with torch.no_grad():
        features = kind().features(images[read_order(300, 0)[rest]]).double()
    u = nn.functional.normalize(features, dim=-1)
    np.testing.assert_allclose(states.pair_sum.values[-1, :4], u.sum(0), rtol=1e-5)


def test_reasons_come_in_the_order_of_the_samples_whatever_kind_they_are():
    images = pictures(300, [2, 6])
    _, states = measure_block(Marked(not_finite), Torn(images, [4, 0]), positions=range(256), metrics=FEW, **OPTIONS)
    assert [reason.split(" ")[0] for reason in states.attrs["flaws"]] == ["OSError:", "the", "OSError:", "the"]


def test_nothing_that_can_be_read_is_an_error():
    with pytest.raises(ValueError, match=r"no image could be read; the first: OSError: file \d+ is torn"):
        measure_block(Net(), Torn(pictures(300), range(300)), positions=range(256), metrics=FEW, **OPTIONS)


def test_measure_itself_tolerates_nothing():
    with pytest.raises(OSError, match="is torn"):
        whole(Net(), Torn(pictures(9), [3]))
    with pytest.raises(ValueError, match="output is not finite for sample"):
        whole(Marked(not_finite), pictures(9, [3]))


class Endless(IterableDataset):
    def __iter__(self):
        yield from pictures(4)


@pytest.mark.parametrize("images", [DataLoader(pictures(4), batch_size=2), Endless(), iter([pictures(4)])])
def test_what_cannot_be_read_by_number_is_refused(images):
    with pytest.raises(
        TypeError, match="a block needs images that can be read by number, not a DataLoader or an iterable"
    ):
        measure_block(Net(), images, positions=range(4), metrics=FEW, **OPTIONS)


@pytest.mark.parametrize("positions", [range(100, 300), range(0, 100), range(400, 500), range(0, 300, 2), range(0, 0)])
def test_positions_that_are_not_whole_chains_are_refused(positions):
    # their nulls would be against other partners than measure's
    with pytest.raises(ValueError, match=r"whole chains"):
        measure_block(Net(), pictures(300), positions=positions, metrics=FEW, **OPTIONS)


def test_the_states_hold_what_they_say():
    images = pictures(CHAIN + 44)
    _, states = measure_block(Net(), images, positions=range(CHAIN, CHAIN + 44), metrics=FEW, **OPTIONS)
    some = images[read_order(300, 0)[CHAIN:]]
    net = Net()
    with torch.no_grad():
        maps = [net.stem(some), net.act(net.stem(some)), net.down(net.act(net.stem(some)))]
        layers = [pooled(z) for z in maps] + [pooled(net.head(net.features(some))), pooled(net.features(some))]
    assert states.metric.values.tolist() == list(FEW)
    assert states.sizes["layer"] == len(layers)
    for k, z in enumerate(layers):
        u = nn.functional.normalize(z, dim=-1).sum(0)
        np.testing.assert_allclose(states.pair_sum[k, : len(u)], u, rtol=1e-5, atol=1e-5)
        assert (states.pair_sum[k, len(u) :] == 0).all()
    assert states.pair_n.values.tolist() == [44] * len(layers)
    assert states.live_or_dead.values.tolist() == [4 * 44 * 8, 4 * 44 * 8, 4 * 44 * 4, 0, 0]
    with torch.no_grad():
        turned = [net.act(net.stem(torch.rot90(some, k, (-2, -1)))).flatten(2).norm(dim=-1) == 0 for k in range(4)]
    assert states.dead[1].item() == sum((at & turned[0]).sum().item() for at in turned) >= 4 * 44


def test_a_block_makes_no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure_block(Net(), pictures(300), positions=range(256, 300), metrics=ALL, **OPTIONS)
