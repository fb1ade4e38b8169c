"""The bundled networks: exact on odd sizes, ordinary over C1, and of one size of weights."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from eedkit.lab.networks import AntialiasedStride, FieldNorm, GroupCNN, GroupConv, GroupSegmenter
from eedkit.theory import actions

GROUPS = ["C2", "C4", "D1", "D4", "flip", "C2*flip"]


def worst(a, b):
    return (a - b).abs().max().item()


@pytest.fixture(params=GROUPS)
def network(request):
    """A network over each group in float64, with statistics that are not the trivial ones, as training leaves them."""
    torch.manual_seed(0)
    net = GroupCNN(request.param, classes=5, channels=2, widths=(8, 8, 8, 8, 8)).double()
    with torch.no_grad():
        for _ in range(3):
            net(torch.rand(4, 2, 17, 17, dtype=torch.float64))
    return request.param, net.eval()


@torch.no_grad()
def test_every_block_is_equivariant_under_the_regular_action_and_the_output_invariant(network):
    group, net = network
    x = torch.rand(2, 2, 17, 17, dtype=torch.float64)
    on_images, on_fields = actions.spatial(group), actions.regular(group)
    for g in range(on_images.group.order):
        z, moved = x, on_images(g, x)
        for block in net.blocks:
            z, moved = block(z), block(moved)
            assert z.std() > 1e-3
            assert worst(moved, on_fields(g, z)) < 1e-10
        assert worst(net(on_images(g, x)), net(x)) < 1e-10


@pytest.mark.parametrize("side", [17, 9, 5])
def test_an_antialiased_stride_takes_every_second_of_a_blur(side):
    z = torch.rand(2, 3, side, side, dtype=torch.float64)
    weights = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64) / 4
    kernel = torch.outer(weights, weights).expand(3, 1, 3, 3)
    blurred = F.conv2d(z, kernel, padding=1, groups=3)
    assert worst(AntialiasedStride()(z), blurred[..., ::2, ::2]) < 1e-12


@torch.no_grad()
def test_an_antialiased_network_keeps_symmetry_grids_and_weights():
    torch.manual_seed(0)
    net = GroupCNN("D4", classes=5, antialiased=True).double().eval()
    x = torch.rand(2, 1, 17, 17, dtype=torch.float64)
    for g in range(8):
        assert worst(net(actions.spatial("D4")(g, x)), net(x)) < 1e-10
    strided = GroupCNN("D4", classes=5)
    assert net.blocks(x).shape == strided.blocks(x.float()).shape
    assert net.state_dict().keys() == strided.state_dict().keys()


@torch.no_grad()
def test_blocks_are_not_equivariant_with_the_identity_on_channels(network):
    group, net = network
    x = torch.rand(2, 2, 17, 17, dtype=torch.float64)
    action = actions.spatial(group)
    assert worst(net.blocks[0](action(1, x)), action(1, net.blocks[0](x))) > 1e-2


@torch.no_grad()
def test_even_sizes_break_exactness_because_strides_have_no_centre():
    torch.manual_seed(0)
    net = GroupCNN("C4", classes=5).eval()
    x, turn = torch.rand(2, 1, 16, 16), actions.spatial("C4")
    assert worst(net(turn(1, x)), net(x)) > 1e-4
    odd = torch.rand(2, 1, 17, 17)
    assert worst(net(turn(1, odd)), net(odd)) < 1e-5


def test_over_c1_it_is_an_ordinary_cnn():
    torch.manual_seed(0)
    conv = GroupConv(3, 4, group="C1", stride=2)
    plain = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False)
    plain.weight.data = conv.weight.data[:, :, 0].clone()
    x = torch.rand(2, 3, 9, 9)
    assert worst(conv(x), plain(x)) < 1e-6
    norm, usual = FieldNorm(4, order=1), nn.BatchNorm2d(4)
    assert worst(norm(x[:, [0, 1, 2, 0]]), usual(x[:, [0, 1, 2, 0]])) < 1e-6


def test_group_convolution_is_the_sum_of_its_definition():
    torch.manual_seed(0)
    conv = GroupConv(2, 3, group="C4").double()
    z = torch.rand(1, 8, 7, 7, dtype=torch.float64)
    fields = z.unflatten(1, (2, 4))
    for g in range(4):
        expected = 0
        for h in range(4):
            filters = torch.rot90(conv.weight[:, :, (h - g) % 4], g, (-2, -1))
            expected = expected + F.conv2d(fields[:, :, h], filters, padding=1)
        assert worst(conv(z).unflatten(1, (3, 4))[:, :, g], expected) < 1e-12


def test_plain_networks_train_with_channels_last_and_are_measured_with_channels_first():
    x = torch.rand(2, 3, 9, 9)
    for group, is_training, is_channels_last in (("C1", True, True), ("C1", False, False), ("C4", True, False)):
        network = GroupCNN(group, classes=2, channels=3, widths=(8, 8)).train(is_training)
        z = network.blocks(x)
        assert z.is_contiguous(memory_format=torch.channels_last) == is_channels_last
        assert z.is_contiguous() != is_channels_last


@torch.no_grad()
def test_features_are_the_blocks_mean_over_elements_and_space_and_feed_the_head(network):
    group, net = network
    x, order = torch.rand(2, 2, 17, 17, dtype=torch.float64), actions.spatial(group).group.order
    z, features = net.blocks(x), net.features(x)
    assert features.shape == (2, z.shape[1] // order)
    for field in range(features.shape[1]):
        channels = [z[:, field * order + g].flatten(1).mean(1) for g in range(order)]
        assert worst(features[:, field], sum(channels) / order) < 1e-12
    assert worst(net(x), features @ net.head.weight.T + net.head.bias) < 1e-12


def test_twins_have_about_as_many_weights():
    counts = {g: sum(p.numel() for p in GroupCNN(g, classes=10).parameters()) for g in ("C1", "C4", "D4")}
    assert all(abs(count / counts["C1"] - 1) < 0.1 for count in counts.values()), counts


def test_a_group_that_cannot_move_filters_is_refused():
    with pytest.raises(ValueError, match="shifts by 1/4 of the height"):
        GroupCNN("shift4", classes=3)


@torch.no_grad()
@pytest.mark.parametrize("side", [8, 9])
@pytest.mark.parametrize("group", GROUPS)
def test_masks_of_a_segmenter_move_with_the_image(group, side):
    torch.manual_seed(0)
    net = GroupSegmenter(group, classes=5, channels=2).double().eval()
    x = torch.rand(2, 2, side, side, dtype=torch.float64)
    action = actions.spatial(group)
    assert net(x).std() > 1e-3
    for g in range(action.group.order):
        assert worst(net(action(g, x)), action(g, net(x))) < 1e-10
