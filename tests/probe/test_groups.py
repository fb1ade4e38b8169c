"""Groups that interpolate and that are sampled: what moving the image there and back costs, and what is recorded of them."""

import numpy as np
import pytest
import torch
from made import Net, noise
from torch import nn

import eedkit as ek
from eedkit.theory import actions

SIDES = {"stem": 11, "down": 5}


def measured(group, model=None, n=16, **options):
    """Of blots, so that little is lost between pixels."""
    images = nn.functional.avg_pool2d(noise(n, side=11, seed=3), 3, stride=1, padding=1)
    settings = {"layers": [*SIDES], "metrics": ["channelwise", "channelwise_rms", "latent", "softmax"]}
    model = Net().double() if model is None else model
    return ek.measure(model, images, group=group, device="cpu", progress=False, **settings | options).isel(model=0)


@pytest.mark.parametrize("group", ["C8", "D3", "SO(2)?n=5"])
def test_the_round_trip_bounds_what_interpolation_costs(group):
    """An isotropic filter turns with the image, but for what lies between pixels: twice that on the way there and back."""
    model = Net().double()
    squares = (torch.arange(3.0) - 1)[:, None] ** 2 + (torch.arange(3.0) - 1) ** 2
    model.stem.weight.data = torch.exp(-squares).double().expand(8, 1, 3, 3).clone()
    model.stem.bias.data.zero_()
    ds = measured(group, model).sel(layer="stem")
    moved = ds.isel(element=[g for g, angle in enumerate(ds.angle) if angle % 90])
    for name in ("channelwise", "channelwise_rms"):
        best = ds[name].attrs["best"]
        cost = moved[name].mean() - best
        assert 0.1 < cost / (moved[f"{name}_round_trip"].mean() - best) < 0.5, name
        np.testing.assert_allclose(ds[f"{name}_round_trip"].sel(element="e"), best, atol=1e-6)


def test_the_law_error_of_each_grid_is_recorded():
    ds, exact = measured("C8"), measured("C4")
    for layer, side in SIDES.items():
        assert ds.law_error.sel(layer=layer) == actions.spatial("C8").on((side, side), 1).law_error > 0.1
    assert ds.law_error.sel(layer="latent").isnull()
    assert ds.attrs["law_error"] == ds.law_error.sel(layer="stem")
    assert exact.attrs["law_error"] == 0
    assert not [name for name in exact.variables if "law_error" in name or "round_trip" in name]


@pytest.mark.parametrize(("sample", "finite"), [("SO(2)?n=8&jitter=0", "C8"), ("O(2)?n=3&jitter=0", "D3")])
def test_a_sample_without_jitter_measures_as_the_finite_group(sample, finite):
    of_sample, of_finite = measured(sample), measured(finite)
    assert of_sample.data_vars.keys() == of_finite.data_vars.keys()
    for name in of_finite.data_vars:
        np.testing.assert_array_equal(of_sample[name], of_finite[name], err_msg=name)


def test_samples_approach_the_mean_over_the_whole_circle():
    """The mean over 64 even rotations stands for that over all; samples of 8 and 32 lie within their errors of it."""
    table = {}
    for group in ("C64", "SO(2)?n=8", "SO(2)?n=8&seed=1", "SO(2)?n=32", "SO(2)?n=32&seed=1"):
        rows = ek.summarise(measured(group, n=24, null=False, metrics=["channelwise"]), full=True)
        table[group] = rows[rows.layer.isin(SIDES)].set_index("layer")
    whole = table.pop("C64").estimate
    for rows in table.values():
        assert ((rows.estimate - whole).abs() < 3 * rows.element_error).all()
    assert (table["SO(2)?n=32"].element_error < table["SO(2)?n=8"].element_error / 3).all()
