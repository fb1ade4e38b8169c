"""`ek.check`: exact networks pass, and others fail with layer, element, size, cause and mend."""

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import eedkit as ek
from eedkit.cli import app
from eedkit.lab.checking import _steps
from eedkit.lab.networks import GroupCNN


def made(group, *, widths=(4, 6, 8), **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GroupCNN(group, classes=3, widths=widths, **options).eval()


def images(side, n=12):
    return torch.rand(n, 1, side, side, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def equivariant():
    return made("C4")


@pytest.fixture(scope="module")
def pooled():
    """Blind to all but how often each grey occurs: invariant under every exact move."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    with torch.no_grad():  # each channel is dark for a part of the greys
        net[0].weight.copy_(torch.tensor([4.0, -4.0, 4.0, -4.0]).view(4, 1, 1, 1))
        net[0].bias.copy_(torch.tensor([-2.0, 2.0, -1.0, 3.0]))
    return net


def failure(*arguments, **options):
    with pytest.raises(AssertionError) as raised:
        ek.check(*arguments, **options)
    verdict, cause, mend = str(raised.value).splitlines()
    assert cause.startswith("Cause: ")
    assert mend.startswith("Mend: ")
    return verdict, cause, mend


def test_the_bundled_equivariant_network_passes_on_odd_sides(equivariant):
    table = ek.check(equivariant, images(17))
    assert {"blocks.0.conv", "blocks.1.norm", "blocks.2"} <= set(table.layer)
    assert set(table.metric) == {"channelwise_regular"}
    assert table.relative.max() < 0.001


def test_on_even_sides_it_fails_by_the_stride_and_its_side(equivariant):
    verdict, cause, mend = failure(equivariant, images(16))
    assert "GroupCNN is not equivariant under C4 at 'blocks.1.conv', the first of 8 that fail of 12: " in verdict
    assert "required <= 0.02, most under r" in verdict
    assert "an even grid under a stride: blocks.1.conv strides by 2 over a side of 16" in cause
    assert cause.endswith("on noise of 17×17 the layer reads 0, so it is the only cause.")
    assert "images of 17×17" in mend
    assert "make blocks" not in mend


def test_the_side_that_mends_it_suits_every_stride():
    deep = made("C4", widths=(4, 4, 4, 4, 4))
    _, cause, mend = failure(deep, images(18))  # 19 goes on as 10, and 21 as 11 and 6
    assert "over a side of 18" in cause
    assert "images of 21×21" in mend
    ek.check(deep, images(21))


def test_it_is_invariant_on_odd_sides_and_not_on_even_ones(equivariant):
    assert ek.check(equivariant, images(17), "C4", "invariant").layer.tolist() == ["latent", "output"]
    verdict, cause, _ = failure(equivariant, images(16), expect="invariant", tolerance=0.001)
    assert "is not invariant under C4 at 'latent'" in verdict
    assert "blocks.1.conv strides by 2 over a side of 16" in cause


def test_a_plain_network_fails_at_its_first_convolution(equivariant):
    verdict, cause, mend = failure(made("C1"), images(17))
    assert "at 'blocks.0.conv', the first of 12 that fail of 12" in verdict
    assert cause == "Cause: the network itself."
    assert "make blocks.0.conv of layers that are equivariant" in mend


def test_a_plain_network_on_even_sides_has_both_causes():
    _, cause, mend = failure(made("C1"), images(16), expect="invariant")
    assert "strides by 2 over a side of 16" in cause
    assert "and the network itself: on noise of 17×17 the layer reads" in cause
    assert "pool over the group" in mend


def test_a_pooled_network_passes_as_invariant_and_equivariant(pooled):
    assert ek.check(pooled, images(9), "D4", "invariant").relative.max() < 0.001
    assert ek.check(pooled, images(9), "D4").layer.tolist() == ["0", "1"]


def test_a_network_that_tells_nothing_apart_is_not_invariant(pooled):
    blind = nn.Sequential(nn.Flatten(), nn.Linear(81, 4), nn.Linear(4, 3))
    nn.init.zeros_(blind[1].weight)
    verdict, cause, _ = failure(blind, images(9), expect="invariant")
    assert "relative has no value, required <= 0.02: the null gap" in verdict
    assert "the model tells no image from another here" in cause


class Flattened(nn.Module):
    """Every pixel becomes the mean grey."""

    def forward(self, x):
        return x.mean((-2, -1), keepdim=True).expand_as(x).clone()


def test_maps_that_are_the_same_everywhere_are_equivariant_without_a_null():
    net = nn.Sequential(Flattened(), nn.Flatten(), nn.Linear(81, 3))
    table = ek.check(net, images(9))
    assert table.layer.tolist() == ["0"]
    assert table.relative.isna().all()


def test_interpolation_is_named_with_its_round_trip(pooled):
    verdict, cause, mend = failure(pooled, images(9), "C8")
    table = ek.summarise(ek.measure(pooled, images(9), group="C8", layers="all", progress=False))
    row = table.set_index(["metric", "layer"]).loc[("channelwise", "1")]
    assert row.relative < row.round_trip
    assert f"at '1' of 2: relative is {row.relative:.2g}" in verdict
    assert cause.startswith("Cause: interpolation: the round trip there and back reads 0.")
    assert "a group whose moves are exact (C4, D4, flip)" in mend
    _, cause, _ = failure(made("C1"), images(17), "C8")
    assert cause.startswith("Cause: the network itself, beyond interpolation: the round trip")


class Rounded(nn.Module):
    """Gives its input, in float32 with an error that does not turn with it."""

    def forward(self, x):
        off = torch.linspace(0, 2e-3, x[0].numel()).view_as(x[0])
        return x + off if x.dtype == torch.float32 else x * 1


def test_rounding_is_what_float64_mends():
    net = nn.Sequential(Rounded(), nn.Flatten(), nn.Linear(81, 3))
    verdict, cause, mend = failure(net, images(9), tolerance=1e-4)
    assert "at '0'" in verdict
    assert cause == "Cause: rounding: in float64 the layer reads 0."
    assert "model.double()" in mend
    _, cause, _ = failure(net.double(), images(9), expect="invariant")
    assert cause == "Cause: the network itself."


def test_noise_of_its_own_is_named():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Dropout2d(0.5), nn.Flatten(), nn.Linear(162, 3))
    net[1].eval = lambda: net[1]
    net[1].train = lambda mode=True: net[1]
    with pytest.warns(UserWarning, match="gives other outputs for the same images"):
        _, cause, _ = failure(net, images(9))
    assert cause == "Cause: the network gives other outputs for the same images."


@pytest.mark.parametrize(
    ("module", "side", "left_over"),
    [
        (nn.Conv2d(1, 1, 3, stride=2, padding=1), 16, 1),
        (nn.Conv2d(1, 1, 3, stride=2, padding=1), 17, 0),
        (nn.Conv2d(1, 1, 7, stride=2, padding=3), 224, 1),
        (nn.Conv2d(1, 1, 7, stride=2, padding=3), 225, 0),
        (nn.Conv2d(1, 1, 3, stride=2, padding=2, dilation=2), 17, 0),
        (nn.Conv2d(1, 1, 2, stride=2, dilation=2), 17, 0),
        (nn.Conv2d(1, 1, 4, stride=4), 16, 0),
        (nn.Conv2d(1, 1, 4, stride=4), 17, 1),
        (nn.MaxPool2d(2), 16, 0),
        (nn.AvgPool2d(3, stride=2, padding=1), 16, 1),
        (nn.Conv2d(1, 1, 3, padding="same"), 16, 0),
    ],
)
def test_strides_that_commute_with_a_turn_are_those_that_leave_nothing_over(module, side, left_over):
    x = torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(0))
    if isinstance(module, nn.Conv2d):  # the same filter turned: whatever is left is the stride's
        nn.init.ones_(module.weight)
    turned = module(torch.rot90(x, 1, (-2, -1)))
    is_equal = torch.allclose(turned, torch.rot90(module(x), 1, (-2, -1)), atol=1e-5)
    assert is_equal == (left_over == 0)
    assert [over for _, over in _steps(module, (side, side))] == [left_over, left_over]


def test_what_it_cannot_judge_is_refused(equivariant):
    with pytest.raises(ValueError, match="no expectation 'equivarient'; did you mean 'equivariant'"):
        ek.check(equivariant, images(17), expect="equivarient")
    with pytest.raises(ValueError, match="tolerance must be a number from 0 on, got -1"):
        ek.check(equivariant, images(17), tolerance=-1)
    vectors = nn.Sequential(nn.Flatten(), nn.Linear(25, 3))
    with pytest.raises(AssertionError, match="nothing can be judged, since no layer has a value"):
        ek.check(vectors, images(5))


SPEC = "recipe:equivariant?epochs=0&widths=4,6"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((f"{SPEC}&size=17",), 0, f"{SPEC}&size=17 is equivariant under C4 within 0.02 at 8 layers."),
        ((f"{SPEC}&size=16",), 1, "strides by 2 over a side of 16"),
        ((f"{SPEC}&size=17", "--group", "flip", "--tolerance", "0.01"), 1, "required <= 0.01, most under m"),
        ((f"{SPEC}&size=17", "--expect", "invariant"), 0, "is invariant under C4"),
        ((f"{SPEC}&size=17", "--expect", "variant"), 2, "variant"),
    ],
)
def test_the_shell_says_the_same_by_its_exit_status(arguments, code, said):
    model, *options = arguments
    result = CliRunner().invoke(app, ["check", model, "digits/test?n=12", "--quiet", *options])
    assert result.exit_code == code, result.output
    assert said in result.output
    assert "Traceback" not in result.output
