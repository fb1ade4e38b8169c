"""The result that comes with the package has today's schema and values, says how it was made; every figure draws it."""

import inspect

import numpy as np
import pytest

import eedkit as ek
from eedkit.results import schema

IMAGES = "digits/test?per_class=6"


def figures_of_a_dataset():
    """Functions of `ek.plots` whose first argument is a Dataset."""
    found = []
    for name in ek.plots.__all__:
        function = getattr(ek.plots, name)
        if inspect.isfunction(function):
            first = next(iter(inspect.signature(function).parameters.values()))
            if (
                first.name == "results"
                and "Dataset" in str(first.annotation)
                and "Mapping" not in str(first.annotation)
            ):
                found.append(name)
    return found


FIGURES = figures_of_a_dataset()


def test_it_has_the_bundled_kinds_labels_class_names_and_says_how_it_was_made():
    ds = ek.example()
    assert ds.model.values.tolist() == ["plain", "augmented", "equivariant", "random"]
    assert np.unique(ds.label, return_counts=True)[1].tolist() == [6] * 10
    assert "make gallery" in ds.attrs["made_by"]
    assert ds.attrs["data"].startswith(IMAGES)
    assert ds.attrs["schema"] == schema.SCHEMA
    upright = (ds.prediction.sel(element="e") == ds.label).mean("sample")
    assert (upright.sel(model=["plain", "augmented", "equivariant"]) > 0.9).all()


@pytest.mark.filterwarnings("ignore:.*may be unable to read the images")
def test_it_is_what_is_measured_today():
    stored = ek.example().sel(model=["random"])
    measured = ek.measure("recipe:random?seed=0", IMAGES, group="C4", metrics=["channelwise", "latent"], progress=False)
    assert set(measured.sample.values) == set(stored.sample.values)
    measured = measured.sel(sample=stored.sample.values)
    for name in ("channelwise", "channelwise_null", "latent", "latent_null", "latent_from_x"):
        np.testing.assert_allclose(measured[name].values, stored[name].values, atol=1e-4)


def test_there_are_figures_of_a_dataset():
    assert {"depth_profile", "calibration", "orbit_rose", "worst"} <= set(FIGURES)


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_draws_it(name):
    images = []
    options = {}
    if name == "worst":
        images = [ek.lab.images.load(f"{IMAGES}&size=17")]
        options = {"model": "augmented"}
    figure = getattr(ek.plots, name)(ek.example(), *images, **options)
    assert all(ax.has_data() or ax.images for ax in figure.axes if ax.get_visible())
