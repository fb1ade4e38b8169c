"""Measures under groups that interpolate, that are sampled, and that move more than positions; held against loops."""

import math

import numpy as np
import oracles
import pytest
import torch
from torch import nn

import eedkit as ek
from eedkit.theory import actions

SIDE = 10


class Steps(nn.Module):
    """Maps of 10×10 and of 5×5, and features."""

    def __init__(self, channels=1):
        super().__init__()
        torch.manual_seed(0)
        self.wide = nn.Conv2d(channels, 4, 3, padding=1)
        self.narrow = nn.Conv2d(4, 3, 3, stride=2, padding=1)
        self.fc = nn.Linear(3, 2)
        with torch.no_grad():
            self.wide.bias[0] = -0.4

    def forward(self, x):
        return self.fc(self.narrow(self.wide(x).relu_()).relu_().mean((-2, -1)))


LAYERS = {"wide": 10, "narrow": 5}


def pictures(n=9, channels=1):
    """Blots, so that little is lost between pixels."""
    noise = torch.randn(n, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return nn.functional.avg_pool2d(noise, 3, stride=1, padding=1)


def measured(group, images=None, **options):
    images = pictures() if images is None else images
    settings = {
        "layers": list(LAYERS),
        "metrics": ["channelwise", "latent"],
        "device": "cpu",
        "progress": False,
        "seed": 3,
    }
    settings |= {"precision": "float64", **options}
    dtype = torch.float64 if settings["precision"] == "float64" else torch.float32
    return ek.measure(Steps(images.shape[1]).to(dtype), images.to(dtype), group=group, **settings).isel(model=0)


def orbits(group, images):
    """f(gx) for each layer, (g, n, C, H, W), of images that are 0 outside of the circle."""
    net = Steps().double()
    seen = {}
    for name in LAYERS:
        net.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out.clone()}))
    found = {name: [] for name in LAYERS}
    for element in oracles.ELEMENTS[group]:
        moved = oracles.move(group, element, oracles.move(group, "e", images.numpy()))
        with torch.no_grad():
            net(torch.from_numpy(moved))
        for name in LAYERS:
            found[name].append(seen[name].numpy())
    return {name: np.array(maps) for name, maps in found.items()}


METRICS = {
    "channelwise": oracles.channelwise,
    "channelwise_zero": lambda a, b: oracles.channelwise(a, b, dead="zero"),
    "channelwise_centred": lambda a, b: oracles.channelwise(oracles.centred(a), oracles.centred(b)),
    "channelwise_rms": oracles.rms,
}


@pytest.mark.parametrize("group", ["C8", "D3"])
@pytest.mark.parametrize(("precision", "atol"), [("float64", 1e-7), ("float32", 2e-5)])
def test_rotations_that_interpolate_are_measured_in_the_circle(group, precision, atol):
    images = pictures()
    ds = measured(group, images, precision=precision, metrics=list(METRICS), batch_size=4)
    chains = oracles.chains(9, len(oracles.ELEMENTS[group]), oracles.seeded_order(9, 3))
    for layer, orbit in orbits(group, images).items():
        mixed = oracles.shuffled(orbit, chains)
        for metric, m in METRICS.items():
            within = oracles.in_circle(m)
            want = oracles.eed(orbit, group, oracles.move, within, [0])
            np.testing.assert_allclose(ds[metric].sel(layer=layer), want, atol=atol)
            want = oracles.eed(mixed, group, oracles.move, within, [0])
            np.testing.assert_allclose(ds[f"{metric}_null"].sel(layer=layer), want, atol=atol)
        assert ds.kernel_order.sel(layer=layer) == 1


def test_vectors_are_means_over_all_positions_though_maps_are_compared_in_the_circle():
    images = pictures()
    ds = measured("C8", images, precision="float32")
    orbit = orbits("C8", images)["wide"].mean((-2, -1))
    want = oracles.eed(orbit, "C8", oracles.stay, oracles.latent, range(8))
    np.testing.assert_allclose(ds.latent.sel(layer="wide"), want, atol=2e-6)


def pooled(images, side):
    """Means over the cells of a coarser grid that divides the images."""
    size = images.shape[-1] // side
    return images.reshape(*images.shape[:-2], side, size, side, size).mean((-3, -1))


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_the_floor_is_what_pooled_images_get(precision):
    images = pictures()
    ds = measured("C8", images, precision=precision)
    circular = oracles.move("C8", "e", images.numpy())
    of_images = np.array([oracles.move("C8", element, circular) for element in oracles.ELEMENTS["C8"]])
    for layer, side in LAYERS.items():
        orbit = pooled(of_images, side)
        want = oracles.eed(orbit, "C8", oracles.move, oracles.in_circle(oracles.channelwise), [0])
        np.testing.assert_allclose(ds.channelwise_floor.sel(layer=layer), want, atol=2e-6)
    # at the images' own resolution nothing is lost, and at half of it something is
    np.testing.assert_allclose(ds.channelwise_floor.sel(layer="wide"), -1, atol=2e-6)
    assert ds.channelwise_floor.sel(layer="narrow").mean() > -0.999
    assert ds.channelwise_floor.sel(layer="latent").isnull().all()


def test_a_difference_has_its_scale_in_the_circle_and_no_floor():
    images = pictures()
    ds = measured("C8", images, precision="float64", metrics=["channelwise_rms"])
    within = oracles.in_circle(oracles.rms)
    for layer, orbit in orbits("C8", images).items():
        wanted = [within(z, np.zeros_like(z)) for z in orbit[0]]
        np.testing.assert_allclose(ds.channelwise_rms_norm.sel(layer=layer), wanted, rtol=1e-6)
    assert "channelwise_rms_floor" not in ds


def test_the_law_error_of_each_grid_is_recorded():
    ds = measured("C8")
    for layer, side in LAYERS.items():
        wanted = actions.law_error(actions.spatial("C8").on((side, side), 1))
        assert ds.law_error.sel(layer=layer) == wanted > 0.1
    assert ds.attrs["law_error"] == ds.law_error.sel(layer="wide")
    exact = measured("C4")
    assert exact.attrs["law_error"] == 0
    assert "law_error" not in exact.coords
    assert "channelwise_floor" not in exact


def test_a_table_shows_the_floor_and_the_error_of_sampling_where_there_are_any():
    columns = {}
    for group in ("C4", "C8", "SO(2)?n=8"):
        columns[group] = ek.summarise(measured(group), resamples=0).set_index(["metric", "layer"])
    assert not {"floor", "element_error"} & set(columns["C4"])
    assert "element_error" not in columns["C8"]
    floors = columns["C8"].floor
    assert floors["channelwise", "wide"] == pytest.approx(-1)
    assert floors["channelwise", "narrow"] == pytest.approx(
        measured("C8").channelwise_floor.sel(layer="narrow").mean().item()
    )
    assert math.isnan(floors["latent", "narrow"])
    by_element = measured("SO(2)?n=8").latent.sel(layer="narrow").astype("float64").mean("sample").values.tolist()
    squares = [(by_element[k] - by_element[k - 1]) ** 2 for k in range(8)]
    wanted = math.sqrt(sum(squares) / 2) / 8
    assert columns["SO(2)?n=8"].element_error["latent", "narrow"] == pytest.approx(wanted)
    one_element = ek.summarise(measured("SO(2)?n=8").isel(element=[1]), resamples=0)
    assert one_element.element_error.isnull().all()


@pytest.mark.parametrize(("sample", "finite"), [("SO(2)?n=8&jitter=0", "C8"), ("O(2)?n=3&jitter=0", "D3")])
def test_a_sample_without_jitter_measures_as_the_finite_group(sample, finite):
    of_sample = measured(sample)
    of_finite = measured(finite)
    for name in ("channelwise", "channelwise_null", "channelwise_floor", "latent", "latent_null"):
        np.testing.assert_array_equal(of_sample[name], of_finite[name])


def test_samples_approach_the_mean_over_the_whole_circle():
    """The mean over 128 even rotations stands for that over all; samples of 8 and 32 lie within their errors of it."""
    images = pictures(40)
    table = {}
    for group in ("C128", "SO(2)?n=8", "SO(2)?n=8&seed=1", "SO(2)?n=32", "SO(2)?n=32&seed=1"):
        rows = ek.summarise(measured(group, images, null=False), resamples=0)
        table[group] = rows[rows.layer.isin(LAYERS)].set_index(["metric", "layer"])
    whole = table.pop("C128").estimate
    for rows in table.values():
        assert ((rows.estimate - whole).abs() < 3 * rows.element_error).all()
    errors = {n: table[f"SO(2)?n={n}"].element_error["channelwise"] for n in (8, 32)}
    assert (errors[32] < errors[8] / 3).all()


def test_shifts_in_two_directions_are_undefined_where_the_grid_is_not_divisible():
    ds = measured("shift2x2")
    assert ds.element.values.tolist() == ["e", "s0,1", "s1,0", "s1,1"]
    assert ds.channelwise.sel(layer="wide").notnull().all()
    assert ds.channelwise.sel(layer="narrow").isnull().all()
    reason = ds.channelwise_nan_reason.sel(layer="narrow").item()
    assert reason == "shifts by 1/2 of the width need a width divisible by 2, got 5"
    assert ds.latent.sel(layer="narrow").notnull().all()


def test_colours_move_in_images_and_nothing_in_maps():
    images = pictures(channels=3)
    ds = measured("rgb", images)
    net = Steps(3).double()
    orbit = []
    for element in ds.element.values:
        channels = ["rgb".index(letter) for letter in ("rgb" if element == "e" else element)]
        with torch.no_grad():
            orbit.append(net.wide(images[:, channels]).numpy())
    want = oracles.eed(np.array(orbit), "rgb", oracles.stay, oracles.channelwise, range(6))
    np.testing.assert_allclose(ds.channelwise.sel(layer="wide"), want, atol=1e-6)
    assert ds.kernel_order.sel(layer="wide") == 6


def test_products_with_colours_have_the_colours_as_kernel_on_maps():
    ds = measured("C2*rgb", pictures(12, channels=3), null=False)
    assert ds.kernel_order.sel(layer="wide") == 6
    assert ds.sizes["element"] == 12


def test_colours_need_images_of_three_channels():
    with pytest.raises(ValueError, match="rgb permutes 3 colour channels, got images of 1"):
        measured("rgb")
