"""The images of largest deviation, as they are and moved."""

import numpy as np
import pytest
import torch
from torch import nn

import eedkit as ek
from eedkit import plots
from eedkit.theory import actions, groups


class CornerClassifier(nn.Module):
    """Two classes by the upper left pixel, which is also the only feature that turns can change."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[0.5, 0.0], [0.0, 1.0]]))

    def forward(self, x):
        return self.head(torch.stack([torch.ones(len(x)), x[:, 0, 0, 0]], dim=1))


@pytest.fixture(scope="module")
def images():
    """Eight images that are the same everywhere but for three, whose corners get brighter from one to the next."""
    images = torch.full((8, 1, 4, 4), 0.2)
    for number, brightness in ((2, 0.6), (5, 0.8), (7, 1.0)):
        images[number, 0, 0, 0] = brightness
    return images


@pytest.fixture(scope="module")
def results(images):
    return ek.measure(CornerClassifier(), images, group="flip", name="corner", progress=False)


def shown(figure):
    return [np.asarray(ax.images[0].get_array()).squeeze() for ax in figure.axes if ax.images]


def test_worst_images_come_first_above_their_moved_selves(results, images):
    panels = shown(plots.worst(results, images, n=2))
    np.testing.assert_allclose(panels[0], images[7, 0])
    np.testing.assert_allclose(panels[1], images[5, 0])
    np.testing.assert_allclose(panels[2], images[7, 0].flip(-1))
    np.testing.assert_allclose(panels[3], images[5, 0].flip(-1))


def test_the_copy_below_differs_most_from_the_image_and_not_from_the_mean():
    images = torch.full((4, 1, 4, 4), 0.2)
    # what the corner sees under e, r90, r180, r270: r180 is furthest from the mean of these, r270 from the first
    images[2, 0, [0, 0, -1, -1], [0, -1, -1, 0]] = torch.tensor([0.0, 0.9, -0.9, 1.0])
    results = ek.measure(CornerClassifier(), images, group="C4", progress=False)
    moved = plots.worst(results, images, n=1).axes[1]
    # the angle between (1, 0) and (1, 1), of cosine 1 / √2, relative to what r270 leaves between different images
    null = results.latent_from_x_null.sel(layer="latent", element="r270").mean().item() + 1
    relative = ((1 - 2**-0.5) / null) ** 0.5
    assert moved.get_title().splitlines()[0] == f"r270: {relative:.2g}"


def test_class_and_predictions_with_confidence_stand_on_both(results, images):
    labels = ("sample", np.array([0, 0, 1, 0, 0, 1, 0, 1]), {"class_names": '["dark", "bright"]'})
    upright, moved = plots.worst(results.assign_coords(label=labels), images, n=1).axes
    # e / (√e + e) and √e / (√e + e^.2)
    assert upright.get_title() == "class bright\npredicted bright\n(62%)"
    assert moved.get_title().startswith("m: ")
    assert moved.get_title().endswith("\npredicted dark (57%)")
    given = plots.worst(results, images, n=1, class_names=["night", "day"]).axes[0]
    assert given.get_title() == "predicted day (62%)"


def test_predictions_have_the_names_of_the_labels_only_where_these_are_the_models_classes(results, images):
    names = {"class_names": '["dark", "bright"]'}
    named = results.assign_coords(label=("sample", np.zeros(results.sizes["sample"], dtype=int), names))
    of_others = named.assign_coords(classes=("model", [1000]))
    assert plots.worst(of_others, images, n=1).axes[0].get_title() == "class dark\npredicted 1 (62%)"


def test_the_sentence_below_says_how_often_the_class_changed(results, images):
    note = " ".join(plots.worst(results, images, n=4).texts[-1].get_text().split())
    # three of eight corners are bright, and none when they are mirrored
    assert note.endswith("The class changes for 3 of these 4, and for 38% of all moved copies")
    features = results.drop_vars(["prediction", "confidence"])
    note = plots.worst(features, images, n=2).texts[-1].get_text()
    assert "class changes" not in note


def test_images_are_found_by_their_ids_after_a_selection(results, images):
    chosen = results.isel(sample=[5, 1, 2])
    np.testing.assert_allclose(shown(plots.worst(chosen, images, n=1))[0], images[5, 0])


def test_a_scalar_model_is_shown_and_several_are_refused(results, images):
    assert shown(plots.worst(results.isel(model=0), images, n=1))
    other = ek.measure(CornerClassifier(), images, group="flip", name="other", progress=False)
    both = ek.concat([results, other])
    with pytest.raises(ValueError, match="choose with model= among corner, other"):
        plots.worst(both, images)
    assert shown(plots.worst(both, images, model="other", n=1))


def test_a_custom_action_must_be_given(images):
    upside_down = actions.Action("upside down", groups.parse("C2"), move=lambda g, z: z.flip(-2) if g else z)
    results = ek.measure(CornerClassifier(), images, group=upside_down, progress=False)
    with pytest.raises(ValueError, match="pass it as action="):
        plots.worst(results, images)
    panels = shown(plots.worst(results, images, n=1, action=upside_down))
    np.testing.assert_allclose(panels[1], images[7, 0].flip(-2))


def test_other_images_and_no_moving_element_are_refused(results, images):
    with pytest.raises(ValueError, match=r"no image with the id 7 among these 3"):
        plots.worst(results, images[:3])
    with pytest.raises(ValueError, match="no element but the identity"):
        plots.worst(results.sel(element=["e"]), images)
