"""A card says what the numbers say, loads nothing, and has a JSON twin."""

import json
import re

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import eedkit as ek


@pytest.fixture(scope="module")
def images():
    return torch.rand(16, 1, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def results(images):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))
    return ek.measure(net, images, group="C4", labels=[0, 1, 2, 3] * 4, name="<b>net</b>", progress=False)


def sentences(card, title):
    return " ".join(next(section.sentences for section in card.sections if section.title == title))


def test_sentences_hold_the_numbers_of_the_summary(results):
    card = ek.card(results)
    row = ek.summarise(results).query("metric == 'latent' and layer == 'latent'").iloc[0]
    said = sentences(card, "How invariant is it?")
    assert f"the features deviate by {row.relative:.2f} ({row.relative_low:.2f} to {row.relative_high:.2f})" in said
    kept = float((results.prediction.isel(element=slice(1, None)) == results.prediction.isel(element=0)).mean())
    assert f"stays for {kept:.0%} of the moved images" in said


def test_extremes_are_named_as_they_lie(results):
    tilted = results.copy(deep=True)
    tilted["latent_from_x"] = results.latent.copy(deep=True)
    tilted.latent_from_x.loc[{"element": "r90", "sample": [3, 7]}] = 0.9
    tilted.latent_from_x.loc[{"element": "e"}] = -1
    card = ek.card(tilted)
    sentence = sentences(card, "Under which elements?")
    assert "most under r90" in sentence
    assert "least under r" in sentence  # the identity is no move
    assert "most on class 3" in sentences(card, "On which classes?")
    assert card.facts["by element"]["r90"] == max(card.facts["by element"].values())


def test_the_layer_at_which_it_falls_most_is_named(results):
    falling = results.copy(deep=True)
    for layer, value in (("0", 0.0), ("1", -0.1), ("2", -0.8), ("3", -0.85), ("latent", -0.9)):
        falling.latent.loc[{"layer": layer}] = value
    falling.latent_null[:] = 0.0
    # from √0.9 to √0.2
    assert "falls most from 1 to 2, by 0.50" in sentences(ek.card(falling), "Where in the network?")


def test_a_model_that_tells_nothing_apart_is_said_to(images):
    blind = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    nn.init.zeros_(blind[1].weight)
    head = nn.Sequential(blind, nn.Linear(3, 3))
    card = ek.card(ek.measure(head, images, group="C4", progress=False))
    assert sentences(card, "Is it invariance, or insensitivity?").startswith("That stays open: the null gap")


def test_the_page_loads_nothing_and_escapes_names(results, images):
    page = ek.card(results, images).html
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert "<b>net" not in page
    assert "&lt;b&gt;net" in page
    pictures = re.findall(r"<img alt=\"([^\"]*)\"", page)
    assert len(pictures) == 4
    assert all(pictures)


def test_page_and_twin_are_written_together(results, tmp_path):
    card = ek.card(results)
    page = card.save(tmp_path / "new" / "net.html")
    twin = json.loads((tmp_path / "new" / "net.json").read_text())
    assert page.read_text() == card.html
    estimates = [row["estimate"] for row in twin["summary"] if row["metric"] == "latent"]
    wanted = ek.summarise(results).query("metric == 'latent'").estimate
    np.testing.assert_allclose(estimates, wanted)
    with pytest.raises(ValueError, match=r"must end in \.html"):
        card.save(tmp_path / "net.txt")


def test_several_models_are_refused_unless_one_is_chosen(results):
    other = results.assign_coords(model=["other"])
    both = ek.concat([results, other])
    with pytest.raises(ValueError, match="choose with model="):
        ek.card(both)
    assert ek.card(both, model="other").title == "other"
    with pytest.raises(ValueError, match="no metric 'latent'"):
        ek.card(results.drop_vars(["latent", "latent_null", "latent_pair_cosine"]))


def test_a_card_says_how_images_were_made_and_whether_the_model_could_read_them(results):
    twice = xr.concat([results, results.assign_coords(sample=results.sample + 16)], "sample", data_vars="all")
    of_one_class = twice.assign(prediction=twice.prediction * 0).assign_attrs(preprocessing="resized to 33×33")
    said = sentences(ek.card(of_one_class), "What was measured")
    assert "Preprocessing: resized to 33×33." in said
    assert "predicts class 0 for 32 of 32 images: it may be unable to read the images, or untrained" in said
