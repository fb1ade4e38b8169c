"""Layouts against loops on maps read by hand, and what stays open."""

import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from eedkit.errors import Undefined
from eedkit.probe.layers import find_layers, tap
from eedkit.probe.layouts import parse_layout

SIDE, GRID, WIDTH, PATCH = 12, 6, 4, 2


def pictures(n=2, height=SIDE, width=SIDE, channels=2):
    return torch.randn(n, channels, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Rearrange(nn.Module):
    """Gives maps (b, c, h, w) as another layout has them."""

    def __init__(self, rearrange):
        super().__init__()
        self.rearrange = rearrange

    def forward(self, z):
        return self.rearrange(z)


class Patches(nn.Module):
    """A patch embedding, `at` that rearranges its maps, and a head; a model of fixed size raises on every other one."""

    def __init__(self, rearrange, *, size=None, width=WIDTH):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(2, width, PATCH, stride=PATCH)
        self.at = Rearrange(rearrange)
        self.fc = nn.Linear(width, 3)
        self.cls_token = nn.Parameter(torch.zeros(1))
        self.size = size

    def forward(self, x):
        if self.size not in (None, tuple(x.shape[-2:])):
            raise ValueError(f"this model is for images of size {self.size}")
        z = self.stem(x)
        self.at(z)
        return self.fc(z.mean((-2, -1)))

    def maps(self, x):
        """What the stem gives for one image (C, H, W), as loops over its patches."""
        weight, bias = self.stem.weight.detach().numpy(), self.stem.bias.detach().numpy()
        rows, columns = x.shape[1] // PATCH, x.shape[2] // PATCH
        z = np.empty((len(weight), rows, columns))
        for i in range(rows):
            for j in range(columns):
                patch = x[:, PATCH * i : PATCH * (i + 1), PATCH * j : PATCH * (j + 1)]
                for k in range(len(weight)):
                    z[k, i, j] = (weight[k] * patch).sum() + bias[k]
        return z


def tokens(z):
    return z.flatten(2).mT


def with_prefix(z, prefix=1, suffix=0):
    """A first token that changes more with the image than any other, and registers that do not change at all."""
    sequence = tokens(z)
    first = 5 * sequence.mean(1, keepdim=True) + 1
    registers = torch.ones_like(sequence[:, :1])
    return torch.cat([first, *[registers] * (prefix - 1), sequence, *[registers] * suffix], 1)


def windows(z):
    """(b, 4 windows, places in a window, c)."""
    b, c, height, width = z.shape
    in_windows = z.view(b, c, 2, height // 2, 2, width // 2)
    return in_windows.permute(0, 2, 4, 3, 5, 1).reshape(b, 4, height * width // 4, c)


def shuffled(z):
    order = torch.randperm(z.shape[-2] * z.shape[-1], generator=torch.Generator().manual_seed(0))
    return tokens(z)[:, order]


def everywhere(z):
    return z.mean((-2, -1), keepdim=True).expand_as(z) + torch.arange(z[0].numel()).view(z[0].shape)


LAYOUTS = {
    "b c h w": lambda z: z.clone(),
    "b h w c": lambda z: z.permute(0, 2, 3, 1),
    "b h c w": lambda z: z.permute(0, 2, 1, 3),
    "h w b c": lambda z: z.permute(2, 3, 0, 1),
    "b 6x6 c": tokens,
    "b c 6x6": lambda z: z.flatten(2),
    "6x6 b c": lambda z: tokens(z).transpose(0, 1),
    "b 1+6x6 c": with_prefix,
    "b 3+6x6 c": lambda z: with_prefix(z, prefix=3),
    "b 1+6x6+2 c": lambda z: with_prefix(z, suffix=2),
    "b c 6x6 c": lambda z: z.unflatten(1, (2, 2)).flatten(3).mT,
    "b 6x6t c": lambda z: tokens(z.mT),
    "b c 1 h w": lambda z: z[:, :, None],
}
FLEXIBLE, FIXED = None, (SIDE, SIDE)
both_sizes = pytest.mark.parametrize("size", [FLEXIBLE, FIXED], ids=["flexible", "fixed"])


def at_layer(model, images=None, **options):
    """The layer `at` as it was found."""
    images = pictures() if images is None else images
    return find_layers(model.to(images.dtype).eval(), images, layers=["at"], **options).layers[0]


def assert_reads(model, layout, images=None, maps=None, **options):
    """That the layer `at` has this layout, by which it reads maps (C, H, W) that were made by hand, in (b, P, C)."""
    images = pictures() if images is None else images
    layer = at_layer(model, images, **options)
    assert str(layer.layout) == layout, layer.reason
    read = []
    with torch.no_grad(), tap(model, [layer], lambda layer, z: read.append(layer.read(z))) as begin:
        begin()
        model(images)
    for one, x in zip(read[0], images.numpy(), strict=True):
        np.testing.assert_allclose(one.T, (maps or model.maps)(x).reshape(len(one.T), -1), atol=1e-6)


@both_sizes
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read_as_the_map(layout, size):
    assert_reads(Patches(LAYOUTS[layout], size=size), layout)


@both_sizes
@pytest.mark.parametrize("layout", ["b c h w", "b h w c", "b 6x6 c", "b c 6x6", "b 1+6x6 c"])
def test_sizes_that_agree_do_not_mislead(layout, size):
    # six rows, six columns, six channels; or as many channels as tokens
    width = GRID if layout in ("b c h w", "b h w c") else GRID * GRID + layout.count("+")
    assert_reads(Patches(LAYOUTS[layout], size=size, width=width), layout)


@pytest.mark.parametrize("shape", [(8, 12), (12, 8), (4, 18)])
@pytest.mark.parametrize("is_fixed", [False, True])
@pytest.mark.parametrize("layout", ["b c h w", "b h w c", "b {} c", "b 1+{} c", "b {}t c"])
def test_images_that_are_not_square(layout, is_fixed, shape):
    height, width = shape
    model = Patches(LAYOUTS[layout.format("6x6")], size=shape if is_fixed else None)
    grid = f"{height // PATCH}x{width // PATCH}"
    assert_reads(model, layout.format(grid), images=pictures(2, height, width))


@both_sizes
def test_adaptive_pooling_follows_no_size_but_has_places(size):
    model = Patches(lambda z: F.adaptive_avg_pool2d(z, 3), size=size)
    assert_reads(model, "b c h w", maps=lambda x: model.maps(x).reshape(WIDTH, 3, 2, 3, 2).mean((2, 4)))


def by_sides(z):
    """Two channels that change only with one side of the image each."""
    left, right = z[:, :1].clone(), z[:, :1].clone()
    left[..., 3:], right[..., :3] = 0, 0
    return tokens(torch.cat([left, right], 1))


def mixed(layout):
    """Maps to which four times their mean is added everywhere."""

    def rearrange(z):
        z = LAYOUTS[layout](z)
        return z + 4 * z.mean([axis for axis in (1, 2) if axis < z.dim() - 1], keepdim=True)

    return rearrange


SHOWN = [
    ("b 6x6 1", lambda z: tokens(z[:, :1]), [FLEXIBLE, FIXED]),
    ("b c 1 1", lambda z: z.mean((-2, -1), keepdim=True), [FLEXIBLE, FIXED]),
    ("b 1 c", lambda z: z.mean((-2, -1))[:, None], [FLEXIBLE, FIXED]),
    ("b 6x6 c", by_sides, [FLEXIBLE]),  # fixed, the two channels may be columns
    *((layout, mixed(layout), [FIXED]) for layout in ("b 6x6 c", "b 1+6x6 c", "b h w c")),
    ("b 6x6 c", lambda z: tokens(z).index_fill(1, torch.tensor([7]), torch.nan), [FIXED]),
    *((layout, lambda z, layout=layout: LAYOUTS[layout](everywhere(z)), [FLEXIBLE]) for layout in ("b c h w", "h w b c")),
]  # fmt: skip


@pytest.mark.parametrize(("layout", "rearrange", "sizes"), SHOWN)
def test_layouts_show_where_hardly_anything_does(layout, rearrange, sizes):
    for size in sizes:
        assert str(at_layer(Patches(rearrange, size=size)).layout) == layout


@both_sizes
def test_patches_that_are_not_square_show_in_an_earlier_map(size):
    model = Patches(with_prefix, size=size)
    model.stem = nn.Conv2d(2, WIDTH, (2, 4), stride=(2, 4))
    assert str(at_layer(model).layout) == "b 1+6x3 c"


def test_the_class_token_is_a_layer_of_its_own_and_registers_are_none():
    model, images = Patches(LAYOUTS["b 3+6x6 c"], size=FIXED).double(), pictures()
    layers = find_layers(model, images, layers=["at"]).layers
    assert [layer.name for layer in layers] == ["at", "at[class]", "latent", "output"]
    with torch.no_grad():
        token = layers[1].read(model.at(model.stem(images)))
    for one, x in zip(token, images.numpy(), strict=True):
        np.testing.assert_allclose(one[0], 5 * model.maps(x).mean((-2, -1)) + 1, atol=1e-6)
    assert layers[1].grid == (1, 1)
    del model.cls_token
    assert [layer.name for layer in find_layers(model, images, layers=["at"]).layers] == ["at", "latent", "output"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("side", "shown"), [(4, 1), (7, 3), (16, 4)])
def test_padded_convolutions_of_a_fixed_size(side, shown, seed):
    """With as many channels as rows: a layer has its layout or none, never another one."""
    torch.manual_seed(seed)
    convs = [nn.Conv2d(side if number else 2, side, 3, padding=1) for number in range(4)]
    model = Patches(nn.Sequential(*(nn.Sequential(conv, nn.ReLU()) for conv in convs)), size=(side, side), width=2)
    model.stem = nn.Identity()
    layers = find_layers(model, torch.rand(2, 2, side, side), layers=r"at.*0").layers
    layouts = [str(layer.layout) for layer in layers if layer.kind == "Conv2d"]
    assert set(layouts) <= {"b c h w", "None"}
    assert layouts[:shown] == ["b c h w"] * shown


@pytest.mark.parametrize("value", [0.0, torch.nan])
@pytest.mark.parametrize("layout", ["b h w c", "b 1+6x6 c"])
def test_blank_and_broken_first_images_show_the_layout(layout, value):
    images = torch.full_like(pictures(), value)
    assert str(at_layer(Patches(LAYOUTS[layout], size=FIXED), images).layout) == layout


@pytest.mark.parametrize("side", [1, 2, 3, 5])
def test_images_of_a_few_pixels(side):
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Flatten(), nn.Linear(3 * side * side, 2))
    layer = find_layers(model, torch.rand(2, 1, side, side), layers=["0"]).layers[0]
    assert str(layer.layout) == ("b c 1 1" if side == 1 else "b c h w")


@pytest.mark.parametrize(
    ("inside", "outside", "size", "layout"),
    [
        # read like the module that it is in
        (lambda z: tokens(z).mean(1, keepdim=True).expand(-1, 36, -1) + 0, tokens, FIXED, "b 6x6 c"),
        # follows the image, and is read by the grid of as many tokens
        (lambda z: everywhere(z).flatten(2), LAYOUTS["b 6x6t c"], FLEXIBLE, "b c 6x6t"),
    ],
)
def test_tokens_are_read_like_others(inside, outside, size, layout):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = Rearrange(inside)

        def forward(self, z):
            self.inside(z)
            return outside(z)

    model = Patches(tokens, size=size)
    model.at = Block()
    layers = find_layers(model.double(), pictures(), layers=["at.inside"]).layers
    assert str(layers[0].layout) == layout


# one row of places, and sizes that do not pass


@pytest.mark.parametrize(
    ("layout", "rearrange"),
    [
        ("b c h w", lambda z: z.mean(2, keepdim=True)),
        ("b h w c", lambda z: z.mean(2, keepdim=True).permute(0, 2, 3, 1)),
        ("b c 1x6", lambda z: z.mean(2)),
        ("b 6x1 c", lambda z: z.mean(3).mT),
    ],
)
def test_a_map_of_one_row_or_one_column_lies_along_the_other_side(layout, rearrange):
    axis = 2 if "6x1" in layout else 1
    model = Patches(rearrange)
    assert_reads(model, layout, maps=lambda x: model.maps(x).mean(axis))
    assert at_layer(model).grid == ((6, 1) if axis == 2 else (1, 6))


@pytest.mark.parametrize(
    ("layout", "rearrange"), [("b c h w", lambda z: z.clone()), ("b c 1x16", lambda z: z.squeeze(2))]
)
def test_images_of_one_row_have_maps_of_one_row(layout, rearrange):
    model = Patches(rearrange)
    model.stem = nn.Conv2d(2, WIDTH, 3, padding=1)
    layer = at_layer(model, pictures(2, 1, 16))
    assert (str(layer.layout), layer.grid) == (layout, (1, 16))


@pytest.mark.parametrize("least", [16, 32, 64])
def test_other_sizes_are_a_quarter_a_half_and_double(least):
    def pass_from(z):
        if min(z.shape[-2:]) < least // PATCH:
            raise ValueError("too small")
        return everywhere(z)

    assert str(at_layer(Patches(pass_from), pictures(2, 64, 64)).layout) == "b c h w"


def test_the_reason_names_the_sizes_that_were_tried():
    reason = at_layer(Patches(everywhere, size=(64, 64)), pictures(2, 64, 64)).reason
    assert "the model takes no other size, or gives other axes for it (tried height 16, 32, 128)" in reason


# what stays open


def reason_where_open(model, images=None):
    layer = at_layer(model, images)
    assert layer.layout is None
    assert (layer.grid, layer.channels) == ((0, 0), 0)
    with pytest.raises(Undefined, match="at has no layout: "):
        layer.read(torch.zeros(1))
    return layer.reason


def as_of_four_rows(z):
    """Tokens whose corners are where a grid of four rows of nine would have them."""
    order = list(range(36))
    order[5], order[8], order[27], order[30] = 8, 5, 30, 27
    return tokens(z)[:, order]


def mixed_tokens(z):
    sequence = tokens(z)
    tokens_by_tokens = torch.randn(2 * [sequence.shape[1]], generator=torch.Generator().manual_seed(0))
    return tokens_by_tokens.to(z) @ sequence


@pytest.mark.parametrize(
    ("rearrange", "sizes"),
    [
        (shuffled, [FLEXIBLE, FIXED]),
        (lambda z: shuffled(z)[:, ::2], [FLEXIBLE, FIXED]),
        (as_of_four_rows, [FIXED]),
        (mixed_tokens, [FLEXIBLE]),
    ],
)
def test_tokens_in_an_order_that_does_not_show_have_a_mean_and_no_places(rearrange, sizes):
    for size in sizes:
        model = Patches(rearrange, size=size)
        layer, images = at_layer(model), pictures()
        assert (str(layer.layout), layer.grid, layer.channels) == ("b n c", (0, 0), WIDTH)
        assert "tokens of its output" in layer.reason
        assert "did not show" in layer.reason
        with torch.no_grad():
            z = model.at(model.stem(images))
        torch.testing.assert_close(layer.read(z), z)


@both_sizes
@pytest.mark.parametrize("seed", range(3))
def test_queries_have_no_places_however_many_they_are(size, seed):
    class Queries(nn.Module):
        """As many learned queries as there are tokens, which attend to them."""

        def __init__(self):
            super().__init__()
            self.queries = nn.Parameter(torch.randn(GRID * GRID, WIDTH))

        def forward(self, z):
            return (self.queries @ tokens(z).mT).softmax(-1) @ tokens(z)

    model = Patches(tokens, size=size)
    torch.manual_seed(seed)
    model.at = Queries()
    reason = reason_where_open(model)
    assert "are places of the image did not show" in reason
    assert ("the model takes no other size" in reason) == (size is FIXED)
    assert "layouts={'at': " in reason


@pytest.mark.parametrize(
    ("rearrange", "size", "images", "said"),
    [
        (
            lambda z: windows(z).flatten(0, 1),
            None,
            None,
            r"no axis of its output counts the images.*\(8, 9, 4\) for 2 and",
        ),
        (
            lambda z: everywhere(F.adaptive_avg_pool2d(z, (3, None))),
            None,
            None,
            "what follows the image's size does not settle it",
        ),
        (lambda z: torch.ones(1, 36, 4), None, None, "no axis of its output counts the images"),
        (lambda z: z.flatten(1) @ z.flatten(1).T, None, None, "or more than one may"),
        (windows, None, pictures(2, 16, 16), "can be read as b 2x2 c c and as b c 4x4 c; if you know"),
        (windows, (16, 16), pictures(2, 16, 16), "can be read as b 2x2 c c and as b c 4x4 c"),
        (lambda z: tokens(z) @ z.flatten(2), FIXED, None, "can be read as .*b 6x6 c and as b c 6x6"),
    ],
)
def test_what_can_be_read_in_two_ways_or_in_none_says_so(rearrange, size, images, said):
    assert re.search(said, reason_where_open(Patches(rearrange, size=size), images))


# layouts by hand


def test_a_layout_by_hand_wins_over_the_one_found():
    layer = at_layer(Patches(tokens), layouts={"at": "b c 2x2"})
    assert (str(layer.layout), layer.grid, layer.channels) == ("b c 2x2", (2, 2), 36)


def test_tokens_may_be_said_to_lie_nowhere():
    layer = at_layer(Patches(tokens), layouts={"at": "b n c"})
    assert (layer.grid, layer.channels, layer.reason) == ((0, 0), WIDTH, "its layout says nothing of places")


@pytest.mark.parametrize(
    ("layouts", "said"),
    [
        ({"at": "b c"}, r"layouts\['at'\]: .*must name the 3 axes of \(2, 36, 4\), one of them b"),
        ({"at": "b 1+6x6 c"}, r"has 1\+6x6 tokens, the output 36"),
        ({"at": "b x c"}, "has x, which is no axis"),
        ({"at": "b h c"}, "must have one h and one w"),
        ({"at": "b 6x6 2x2"}, "one axis of tokens"),
        ({"at": "b 1 c"}, "an axis of length 1 where the output has 36"),
        ({"at": "c b c"}, "has the images on axis 1"),
        ({"att": "b 6x6 c"}, "layouts: no layer 'att'; did you mean 'at'"),
    ],
)
def test_wrong_layouts_by_hand_are_refused(layouts, said):
    with pytest.raises(ValueError, match=said):
        at_layer(Patches(tokens), layouts=layouts)


@pytest.mark.parametrize(
    ("text", "shape"),
    [("b c h w", (2, 3, 4, 5)), ("b 1+2x3t+4 c", (2, 11, 5)), ("2x3 b c", (6, 2, 3)), ("b c 1", (2, 4, 1)), ("b n c", (2, 3, 4))],
)  # fmt: skip
def test_a_layout_reads_its_own_text(text, shape):
    layout = parse_layout(text, shape)
    assert str(layout) == text
    assert parse_layout(str(layout), shape) == layout


def test_reading_another_shape_than_was_traced_is_undefined():
    layout = parse_layout("b 2x3 c", (2, 6, 4))
    with pytest.raises(Undefined, match=r"shape \(b, 5, 4\) in one forward pass and \(b, 6, 4\) in another"):
        layout.read(torch.zeros(2, 5, 4))
