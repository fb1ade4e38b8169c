"""What one channel does as an image moves, beside a convolution by hand."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from eedkit import plots


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(75, 2)).eval()


@pytest.fixture(scope="module")
def image():
    return torch.rand(1, 5, 5, generator=torch.Generator().manual_seed(1))


def test_the_difference_below_is_that_of_the_channel_and_the_maps_share_a_scale(net, image):
    figure = plots.flipbook(net, image, group="C4", layer="0", channel=2)
    axes = np.reshape(figure.axes, (4, 4))
    of_x = F.conv2d(image[None], net[0].weight, padding=1)[0, 2]
    of_gx = F.conv2d(image.rot90(1, (-2, -1))[None], net[0].weight, padding=1)[0, 2]
    difference = (of_gx - of_x.rot90(1)).norm() / of_gx.norm()
    assert [ax.get_title() for ax in axes[0]] == ["e", "r90", "r180", "r270"]
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["gx", "f(gx)", "g f(x)", "difference"]
    assert axes[3, 0].get_xlabel() == "0"
    assert axes[3, 1].get_xlabel() == f"{difference.item():.2g}"
    shown = [[np.asarray(ax.images[0].get_array()) for ax in row] for row in axes]
    np.testing.assert_array_equal(shown[2][1], np.rot90(shown[1][0]))
    assert not np.array_equal(shown[1][1], shown[2][1])


def test_a_filter_that_no_turn_changes_leaves_no_difference_and_the_film_shows_each_element(net, image, tmp_path):
    symmetric = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Flatten(), nn.Linear(25, 2)).eval()
    symmetric[0].weight.data[:] = torch.tensor([[1.0, 2.0, 1.0], [2.0, 5.0, 2.0], [1.0, 2.0, 1.0]])
    film = tmp_path / "turns.gif"
    figure = plots.flipbook(symmetric, image, group="C4", layer="0", film=film)
    assert all(float(ax.get_xlabel()) < 1e-6 for ax in figure.axes[-4:])
    with Image.open(film) as frames:
        assert frames.n_frames == 4
        assert frames.size == (800, 200)
        of_image = np.asarray(frames.convert("L"))[::40, :200:40]
    first, second = (np.asarray(ax.images[0].get_array())[..., 0] * 255 for ax in figure.axes[:2])
    np.testing.assert_allclose(of_image, first, atol=4)
    assert not np.allclose(first, second, atol=4)


def test_unknown_layers_and_channels_are_refused(net, image):
    with pytest.raises(ValueError, match="no layer '7'"):
        plots.flipbook(net, image, group="C4", layer="7")
    with pytest.raises(ValueError, match="channel must be from 0 to 2 at 0, got 3"):
        plots.flipbook(net, image, group="C4", layer="0", channel=3)
    with pytest.raises(ValueError, match="one position"):
        plots.flipbook(net, image, group="C4", layer="2")
