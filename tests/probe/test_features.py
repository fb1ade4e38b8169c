"""orbit_features: the head's input and the probabilities of every moved copy, with their labels."""

import json

import numpy as np
import oracles
import pytest
import torch
from made import Net, Torn, noise

import eedkit as ek
from eedkit.errors import Undefined
from eedkit.probe.features import orbit_features


def run(images, model=None, **options):
    model = Net().double() if model is None else model
    return orbit_features(model, images, **{"group": "C4", "device": "cpu", "progress": False} | options)


@pytest.mark.filterwarnings("error")  # the model repeats itself, whatever a batch holds
@pytest.mark.parametrize(("group", "batch_size"), [("C4", None), ("D4", 1), ("flip", 3)])
@pytest.mark.parametrize("of", ["features", "probabilities"])
def test_they_are_those_of_every_moved_copy(group, batch_size, of):
    images = noise(9)

    def wanted(x):
        seen = Net().double().trace(x)
        if of == "features":
            return seen["latent"]
        odds = np.exp(seen["cls"] - seen["cls"].max())
        return odds / odds.sum()

    found = run(images, group=group, batch_size=batch_size, of=of)
    assert found.dims == ("element", "sample", {"features": "feature", "probabilities": "class"}[of])
    assert found.element.values.tolist() == oracles.ELEMENTS[group]
    np.testing.assert_allclose(found, oracles.orbits(wanted, images.numpy(), group), atol=1e-6)


def test_samples_keep_labels_and_names():
    data = ek.lab.images.load("digits/test?n=12", size=6)
    found = run(data, Net(), name="net")
    measured = ek.measure(Net(), data, group="C4", progress=False, device="cpu", null=False, metrics="latent")
    for name in ("sample", "label", "angle"):
        np.testing.assert_array_equal(found[name], measured[name])
    assert json.loads(found.label.attrs["class_names"]) == [str(digit) for digit in range(10)]
    assert (found.model.item(), found.attrs["group"]) == ("net", "C4")


class Forgiving(Net):
    """Takes a pixel that is no number as 0."""

    def forward(self, x):
        return super().forward(x.nan_to_num())


@pytest.mark.filterwarnings("ignore:.* samples have no value")
def test_an_image_that_cannot_be_read_is_nan():
    images = noise(7)
    found = run(Torn(images, [2]), Forgiving().double())
    assert found.isnull().all(("element", "feature")).values.tolist() == [i == 2 for i in range(7)]
    assert [bool(flaw) for flaw in found.flaw.values] == [i == 2 for i in range(7)]
    rest = [i for i in range(7) if i != 2]
    np.testing.assert_allclose(found[:, rest], run(images)[:, rest], atol=1e-6)


def test_a_spec_is_loaded_with_its_images():
    found = ek.orbit_features("recipe:random?seed=0", "digits/test?n=6", group="C4", progress=False, device="cpu")
    loaded = ek.lab.models.load("recipe:random?seed=0")
    images = ek.lab.images.load("digits/test?n=6", **loaded.wants)
    np.testing.assert_array_equal(found, run(images, loaded.model))
    assert found.model.item() == "recipe:random?seed=0"


def test_what_is_refused():
    with pytest.raises(ValueError, match="'feature'; did you mean 'features'"):
        run(noise(4), of="feature")
    headless = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten()).double()
    with pytest.raises(Undefined, match=r"there are no probabilities: the model ends in features"):
        run(noise(4), headless, of="probabilities", output="features")
