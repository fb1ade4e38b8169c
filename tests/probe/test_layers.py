"""Layouts against loops on maps read by hand, heads and outputs, names of layers, and what taps see and leave behind."""

import copy
import types
import warnings
from collections import OrderedDict, namedtuple

import numpy as np
import oracles
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import eedkit as ek
from eedkit.probe.layers import Layer, Output, Scripted, find_layers, first_tensor, tap
from eedkit.probe.layouts import parse_layout

SIDE, GRID, WIDTH, PATCH = 12, 6, 4, 2


def pictures(n=5, height=SIDE, width=SIDE, channels=2):
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
    before = [first, *[registers] * (prefix - 1)]
    return torch.cat([*before, sequence, *[registers] * suffix], 1)


def windows(z):
    """(b, 4 windows, places in a window, c)."""
    b, c, height, width = z.shape
    in_windows = z.view(b, c, 2, height // 2, 2, width // 2)
    return in_windows.permute(0, 2, 4, 3, 5, 1).reshape(b, 4, height * width // 4, c)


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
SIZES = {"flexible": None, "fixed": (SIDE, SIDE)}


def measure(model, images, **options):
    settings = {"group": "C4", "metrics": ["channelwise", "latent"], "precision": "float64", "null": False}
    settings |= {"progress": False, "device": "cpu", **options}
    return ek.measure(model.double().eval(), images, **settings)


def expected(maps, images, group="C4"):
    """Channelwise and latent values (g, n) of maps (C, H, W), by loops."""
    orbit = oracles.orbits(maps, images.numpy(), group)
    pooled = orbit.mean((-2, -1))
    kernel = oracles.kernel(group, oracles.move, orbit.shape[2:])
    everything = range(len(orbit))
    return (
        oracles.eed(orbit, group, oracles.move, oracles.channelwise, kernel),
        oracles.eed(pooled, group, oracles.stay, oracles.latent, everything),
    )


def assert_measured(model, layout, images=None, maps=None, **options):
    """That the layer `at` has this layout, and the values of maps that were read by hand."""
    images = pictures() if images is None else images
    ds = measure(model, images, layers=["at"], **options)
    at = ds.sel(layer="at").isel(model=0)
    assert at.layout.item() == layout, str(at.channelwise_nan_reason.item())
    channelwise, latent = expected(maps or model.maps, images, options.get("group", "C4"))
    np.testing.assert_allclose(at.channelwise, channelwise, atol=1e-6)
    np.testing.assert_allclose(at.latent, latent, atol=1e-6)
    assert np.ptp(channelwise) > 0.01  # the comparison can fail
    return ds


def at_layer(model, images=None, **options):
    """The layer `at` as it was found."""
    images = pictures(2) if images is None else images
    with torch.no_grad():
        found = find_layers(model.double().eval(), images, layers=["at"], **options)
    return found.layers[0]


# layouts


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_are_those_of_the_map_in_every_layout(layout, size):
    assert_measured(Patches(LAYOUTS[layout], size=size), layout)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("layout", ["b c h w", "b h w c", "b 6x6 c", "b c 6x6", "b 1+6x6 c"])
def test_sizes_that_agree_do_not_mislead(layout, size):
    # six rows, six columns, six channels; or as many channels as tokens
    width = GRID if layout in ("b c h w", "b h w c") else GRID * GRID + layout.count("+")
    assert_measured(Patches(LAYOUTS[layout], size=size, width=width), layout)


@pytest.mark.parametrize("size", [None, (6, 6)], ids=SIZES)
def test_as_many_tokens_as_images_in_a_batch(size):
    model = Patches(LAYOUTS["6x6 b c"], size=size)
    assert_measured(model, "3x3 b c", images=pictures(9, 6, 6), batch_size=9)


@pytest.mark.parametrize("shape", [(8, 12), (12, 8), (4, 18)])
@pytest.mark.parametrize("is_fixed", [False, True])
@pytest.mark.parametrize("layout", ["b c h w", "b h w c", "b {} c", "b 1+{} c", "b {}t c"])
def test_images_that_are_not_square(layout, is_fixed, shape):
    height, width = shape
    rearrange = LAYOUTS[layout.format("6x6")]
    model = Patches(rearrange, size=shape if is_fixed else None)
    grid = f"{height // PATCH}x{width // PATCH}"
    assert_measured(model, layout.format(grid), images=pictures(4, height, width), group="flip")


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_adaptive_pooling_follows_no_size_but_has_places(size):
    model = Patches(lambda z: F.adaptive_avg_pool2d(z, 3), size=size)

    def pooled(x):
        return model.maps(x).reshape(WIDTH, 3, 2, 3, 2).mean((2, 4))

    assert_measured(model, "b c h w", maps=pooled)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_patches_that_are_not_square_show_in_an_earlier_map(size):
    model = Patches(with_prefix, size=size)
    model.stem = nn.Conv2d(2, WIDTH, (2, 4), stride=(2, 4))
    assert str(at_layer(model).layout) == "b 1+6x3 c"


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_one_channel_of_tokens_and_one_place_of_channels(size):
    assert str(at_layer(Patches(lambda z: tokens(z[:, :1]), size=size)).layout) == "b 6x6 1"
    assert str(at_layer(Patches(lambda z: z.mean((-2, -1), keepdim=True), size=size)).layout) == "b c 1 1"
    assert str(at_layer(Patches(lambda z: z.mean((-2, -1))[:, None], size=size)).layout) == "b 1 c"


def test_channels_that_look_like_columns_follow_no_size():
    def by_sides(z):
        left = torch.cat([z[:, :1, :, :3], 0 * z[:, :1, :, 3:]], -1)
        right = torch.cat([0 * z[:, :1, :, :3], z[:, :1, :, 3:]], -1)
        return tokens(torch.cat([left, right], 1))

    assert str(at_layer(Patches(by_sides)).layout) == "b 6x6 c"
    fixed = at_layer(Patches(by_sides, size=SIZES["fixed"]))
    assert "can be read as b h w and as b 6x6 c" in fixed.reason


def test_the_class_token_is_a_vector_and_registers_are_not_measured():
    model = Patches(LAYOUTS["b 3+6x6 c"], size=SIZES["fixed"])
    images = pictures()
    ds = measure(model, images, layers=["at"])
    assert ds.layer.values.tolist() == ["at", "at[class]", "latent"]
    token = ds.sel(layer="at[class]").isel(model=0)
    orbit = oracles.orbits(lambda x: 5 * model.maps(x).mean((-2, -1)) + 1, images.numpy(), "C4")
    latent = oracles.eed(orbit, "C4", oracles.stay, oracles.latent, range(4))
    np.testing.assert_allclose(token.latent, latent, atol=1e-6)
    assert token.channelwise.isnull().all()
    assert token.channelwise_nan_reason.item() == "a class token lies nowhere"


def test_registers_alone_are_no_class_token():
    model = Patches(LAYOUTS["b 1+6x6 c"])
    del model.cls_token
    assert measure(model, pictures(), layers=["at"]).layer.values.tolist() == ["at", "latent"]


class Mixer(nn.Module):
    """One block of an MLP mixer, whose weights allow one size only."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(2, WIDTH, PATCH, stride=PATCH)
        self.mix = nn.Linear(GRID * GRID, GRID * GRID)
        self.at = nn.Linear(WIDTH, WIDTH)
        self.fc = nn.Linear(WIDTH, 3)

    def forward(self, x):
        z = self.stem(x).flatten(2)
        z = (z + self.mix(z)).mT
        z = z + self.at(z)
        return self.fc(z.mean(1))


def test_mixer():
    model = Mixer()

    def maps(x):
        with torch.no_grad():
            z = model.stem(torch.from_numpy(x)[None]).flatten(2)
            z = model.at((z + model.mix(z)).mT)[0]
        return z.numpy().reshape(GRID, GRID, WIDTH).transpose(2, 0, 1)

    assert_measured(model, "b 6x6 c", maps=maps)
    with torch.no_grad():
        found = find_layers(model, pictures(2), layers=["mix"])
    assert "did not show" in found.layers[0].reason  # it has mixed all places


@pytest.mark.parametrize("layout", ["b 6x6 c", "b 1+6x6 c", "b h w c"])
def test_places_show_beneath_a_stronger_change_of_all(layout):
    def mixed(z):
        z = LAYOUTS[layout](z)
        return z + 4 * z.mean([axis for axis in (1, 2) if axis < z.dim() - 1], keepdim=True)

    assert str(at_layer(Patches(mixed, size=SIZES["fixed"])).layout) == layout


class Grown(nn.Module):
    """Padded convolutions, all with as many channels as rows, in a model of fixed size."""

    def __init__(self, side):
        super().__init__()
        self.side = side
        self.convs = nn.Sequential()
        for number in range(4):
            before = side if number else 1
            self.convs.append(nn.Sequential(nn.Conv2d(before, side, 3, padding=1), nn.ReLU()))
        self.fc = nn.Linear(side**3, 2)

    def forward(self, x):
        if x.shape[-2:] != (self.side, self.side):
            raise ValueError("this model is for one size")
        return self.fc(self.convs(x).flatten(1))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("side", "shown"), [(4, 1), (7, 3), (16, 4)])
def test_padded_convolutions_of_a_fixed_size(side, shown, seed):
    torch.manual_seed(seed)
    with torch.no_grad():
        found = find_layers(Grown(side), torch.rand(2, 1, side, side), layers="all")
    layouts = [str(layer.layout) for layer in found.layers if layer.kind == "Conv2d"]
    assert set(layouts) <= {"b c h w", "None"}  # never another one
    assert layouts[:shown] == ["b c h w"] * shown


@pytest.mark.parametrize("images", [torch.zeros(2, 2, SIDE, SIDE), torch.full((2, 2, SIDE, SIDE), torch.nan)])
@pytest.mark.parametrize("layout", ["b h w c", "b 1+6x6 c"])
def test_blank_and_broken_first_images_show_the_layout(layout, images):
    layer = at_layer(Patches(LAYOUTS[layout], size=SIZES["fixed"]), images.double())
    assert str(layer.layout) == layout


def test_nan_in_part_of_an_output_does_not_hide_its_layout():
    def broken(z):
        z = tokens(z).clone()
        z[:, 7] = torch.nan
        return z

    assert str(at_layer(Patches(broken, size=SIZES["fixed"])).layout) == "b 6x6 c"


@pytest.mark.parametrize("side", [1, 2, 3, 5])
def test_images_of_a_few_pixels(side):
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Flatten(), nn.LazyLinear(2))
    with torch.no_grad():
        model(torch.zeros(1, 1, side, side))
        found = find_layers(model, torch.rand(2, 1, side, side), layers=["0"])
    assert str(found.layers[0].layout) == ("b c 1 1" if side == 1 else "b c h w")


def test_inner_layers_are_read_like_the_module_they_are_in():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean = Rearrange(lambda z: z.mean(1, keepdim=True).expand_as(z) + 0)

        def forward(self, z):
            return tokens(z) + self.mean(tokens(z))

    model = Patches(lambda z: z, size=SIZES["fixed"])
    model.at = Attention()
    with torch.no_grad():
        found = find_layers(model.double(), pictures(2), layers=["at.mean", "at"])
    assert [str(layer.layout) for layer in found.layers[:2]] == ["b 6x6 c"] * 2


def mean_everywhere(z):
    return z.mean((-2, -1), keepdim=True).expand_as(z) + torch.arange(z[0].numel()).view(z[0].shape)


@pytest.mark.parametrize("layout", ["b c h w", "b h c w", "h w b c"])
def test_axes_that_follow_the_image_show_where_corners_do_not(layout):
    def rearrange(z):
        return LAYOUTS[layout](mean_everywhere(z))

    assert str(at_layer(Patches(rearrange)).layout) == layout
    assert at_layer(Patches(rearrange, size=SIZES["fixed"])).layout is None


def test_tokens_that_follow_the_image_have_the_grid_of_as_many():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens = Rearrange(LAYOUTS["b 6x6t c"])

        def forward(self, z):
            self.tokens(z)
            return mean_everywhere(z).flatten(2)

    model = Patches(tokens)
    model.at = Mixed()
    assert str(at_layer(model).layout) == "b c 6x6t"


# what stays open


def assert_open(model, said, **options):
    """Assert that the layer `at` has no layout nor value, and that the reason says so."""
    ds = measure(model, pictures(), layers=["at"], **options)
    at = ds.sel(layer="at").isel(model=0)
    assert at.layout.item() == ""
    assert at.channelwise.isnull().all()
    assert at.latent.isnull().all()
    assert said in at.channelwise_nan_reason.item()
    return at.channelwise_nan_reason.item()


class Queries(nn.Module):
    """As many learned queries as there are tokens, which attend to them."""

    def __init__(self):
        super().__init__()
        self.tokens = Rearrange(tokens)
        self.queries = nn.Parameter(torch.randn(GRID * GRID, WIDTH))

    def forward(self, z):
        sequence = self.tokens(z)
        return (self.queries @ sequence.mT).softmax(-1) @ sequence


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("seed", range(3))
def test_queries_have_no_places_however_many_they_are(size, seed):
    model = Patches(tokens, size=size)
    torch.manual_seed(seed)
    model.at = Queries()
    with torch.no_grad():
        inside = find_layers(model.double(), pictures(2), layers=["at.tokens"]).layers[0]
    assert str(inside.layout) == "b 6x6 c"
    reason = assert_open(model, "are places of the image did not show")
    assert ("the model takes no other size" in reason) == (size is not None)
    assert ("no axis follows the image's size" in reason) == (size is None)
    assert "layouts={'at': " in reason


def test_windows_merged_with_the_images_are_refused():
    model = Patches(lambda z: windows(z).flatten(0, 1))
    reason = assert_open(model, "no axis of its output counts the images")
    assert "(8, 9, 4) for 2 images" in reason
    assert "layouts" not in reason  # there is none that could be passed


@pytest.mark.parametrize("size", [None, (16, 16)], ids=SIZES)
def test_windows_and_the_places_in_them_are_two_levels(size):
    layer = at_layer(Patches(windows, size=size), pictures(2, 16, 16))
    assert "can be read as b 2x2 c c and as b c 4x4 c" in layer.reason


def test_tokens_out_of_order_are_not_read_as_another_grid():
    order = list(range(36))
    order[5], order[8], order[27], order[30] = 8, 5, 30, 27  # corners as 4 rows of 9 would have them
    assert_open(Patches(lambda z: tokens(z)[:, order], size=SIZES["fixed"]), "did not show")


def test_outputs_of_pairs_of_images_are_refused():
    assert_open(Patches(lambda z: z.flatten(1) @ z.flatten(1).T), "more than one axis")


def test_outputs_that_no_image_comes_into_are_refused():
    assert_open(Patches(lambda z: torch.ones(1, 36, 4, dtype=z.dtype)), "no axis of its output counts the images")


def test_similarities_of_places_can_be_read_two_ways():
    reason = assert_open(Patches(lambda z: tokens(z) @ z.flatten(2), size=SIZES["fixed"]), "can be read as")
    assert "b 6x6 c and as b c 6x6" in reason


def test_a_layer_that_mixes_all_places_is_open_and_layouts_settle_it():
    def mixed(z):
        weights = torch.randn(36, 36, dtype=z.dtype, generator=torch.Generator().manual_seed(0))
        return weights @ tokens(z)

    model = Patches(mixed, size=SIZES["fixed"])
    assert_open(model, "did not show: the model takes no other size")

    def maps(x):
        with torch.no_grad():
            z = mixed(torch.from_numpy(model.maps(x))[None])[0]
        return z.numpy().T.reshape(WIDTH, GRID, GRID)

    assert_measured(model, "b 6x6 c", maps=maps, layouts={"at": "b 6x6 c"})


# layouts by hand


def test_a_layout_by_hand_wins_over_the_one_found():
    ds = measure(Patches(tokens), pictures(), layers=["at"], layouts={"at": "b c 2x2"})
    assert ds.layout.values[0, 0] == "b c 2x2"
    assert (ds.height.values[0, 0], ds.channels.values[0, 0]) == (2, 36)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("b c", r"must name the 3 axes of \(2, 36, 4\), one of them b"),
        ("c c c", "one of them b"),
        ("b 5x5 c", "has 5x5 tokens, the output 36"),
        ("b 1+6x6 c", r"has 1\+6x6 tokens, the output 36"),
        ("b x c", "has x, which is no axis"),
        ("b h c", "must have one h and one w"),
        ("b 6x6 2x2", "one axis of tokens"),
        ("b 1 c", "an axis of length 1 where the output has 36"),
        ("c b c", "has the images on axis 1"),
    ],
)
def test_wrong_layouts_by_hand_are_refused(text, said):
    with pytest.raises(ValueError, match=rf"layouts\['at'\]: .*{said}"):
        at_layer(Patches(tokens), layouts={"at": text})


def test_layouts_for_unknown_layers_are_refused_with_near_names():
    with pytest.raises(ValueError, match="layouts: no layer 'att'; did you mean 'at'"):
        at_layer(Patches(tokens), layouts={"att": "b 6x6 c"})


@pytest.mark.parametrize(
    ("text", "shape"),
    [("b c h w", (2, 3, 4, 5)), ("b 1+2x3t+4 c", (2, 11, 5)), ("2x3 b c", (6, 2, 3)), ("b c 1", (2, 4, 1))],
)
def test_a_layout_reads_its_own_text(text, shape):
    layout = parse_layout(text, shape)
    assert str(layout) == text
    assert parse_layout(str(layout), shape) == layout


def test_reading_another_shape_than_was_traced_is_refused():
    layout = parse_layout("b 2x3 c", (2, 6, 4))
    with pytest.raises(ValueError, match=r"shape \(b, 5, 4\) in one forward pass and \(b, 6, 4\) in another"):
        layout.read(torch.zeros(2, 5, 4))


# outputs that hold tensors

Pair = namedtuple("Pair", "aside map")


class Geometric:
    """As escnn's GeometricTensor, with a type that holds itself."""

    def __init__(self, z):
        self.type = types.SimpleNamespace()
        self.type.itself = self.type
        self.tensor = z


HOLDERS = {
    "tuple": lambda z: (z, "aside"),
    "list": lambda z: [None, z],
    "dict": lambda z: {"loss": None, "map": z},
    "ordered dict": lambda z: OrderedDict(loss=None, map=z),
    "named tuple": lambda z: Pair(None, z),
    "object": lambda z: types.SimpleNamespace(other=3, map=z),
    "GeometricTensor": Geometric,
    "nested": lambda z: [{"maps": (z,)}],
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_the_tensor_in_an_output_is_measured(holder):
    assert_measured(Patches(HOLDERS[holder]), "b c h w")


def test_objects_that_hold_each_other_end_in_an_error():
    knot = types.SimpleNamespace()
    knot.itself = knot
    for nothing in (knot, "text", {"loss": 1.0}, nn.Linear(2, 2), None):
        with pytest.raises(TypeError, match="expected a tensor, or something that holds one"):
            first_tensor(nothing)


def test_a_module_that_gives_no_tensor_is_no_layer():
    with pytest.raises(ValueError, match=r"no layer 'at'.*; that module gives no tensor of floats"):
        at_layer(Patches(lambda z: "text"))


def whole_model(function, *modules):
    """A model whose output is `function` of a feature vector and the modules."""

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Conv2d(2, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.parts = nn.ModuleList(modules)

        def forward(self, x):
            return function(self.body(x), *self.parts)

    return Whole().double().eval()


def found_in(model, images=None, **options):
    with torch.no_grad():
        return find_layers(model, pictures(2) if images is None else images, layers=[], **options)


def test_an_output_without_a_tensor_says_so():
    found = found_in(whole_model(lambda z: "text"))
    assert [layer.reason for layer in found.layers] == ["the model's output, str, holds no tensor"] * 2


def test_an_output_of_integers_says_so():
    found = found_in(whole_model(lambda z: z.argmax(1)))
    assert [layer.reason for layer in found.layers] == ["the model's output is of torch.int64, not of floats"] * 2


def test_detections_have_layers_but_no_output():
    model = Patches(tokens)
    forward = model.forward
    model.forward = lambda x: [{"boxes": row[None].expand(3, -1)} for row in forward(x)]
    ds = measure(model, pictures(), layers=["at"], metrics=["channelwise", "softmax"])
    assert ds.channelwise.sel(layer="at").notnull().all()
    assert ds.softmax.isnull().all()
    assert (
        ds.softmax.attrs["nan_reason"] == "the model's output is a list with a dict for every image, as detectors give"
    )


def outputs(z, fc):
    return {"aux": z[:, :2], "logits": fc(z), "embeddings": z}


@pytest.mark.parametrize(
    ("output", "kind", "entry"),
    [("auto", "scores", "logits"), ("aux", "features", "aux"), ("embeddings", "features", "embeddings")],
)
def test_an_output_is_chosen_by_its_name(output, kind, entry):
    found = found_in(whole_model(outputs, nn.Linear(6, 3)), output=output)
    assert (found.output.kind, found.output.entry) == (kind, entry)
    assert found.layers[-1].layout.channels == {"logits": 3, "aux": 2, "embeddings": 6}[entry]


@pytest.mark.parametrize(("output", "width"), [("auto", 6), (1, 3), (0, 6)])
def test_an_output_is_chosen_by_its_number(output, width):
    found = found_in(whole_model(lambda z, fc: (z, fc(z)), nn.Linear(6, 3)), output=output)
    assert found.layers[-1].layout.channels == width
    assert (found.head == "parts.0") == (output == 1)


def test_of_several_maps_the_last_is_the_output():
    model = whole_model(lambda z: z)
    model.forward = lambda x: [model.body[0](x), model.body[0](x)[:, :3, ::2]]
    found = found_in(model)
    assert (str(found.layers[-1].layout), found.layers[-1].layout.channels) == ("b c h w", 3)


@pytest.mark.parametrize("output", ["logit", 7])
def test_unknown_outputs_are_refused_with_those_there_are(output):
    with pytest.raises(ValueError, match=rf"no output {output!r}.*\['aux', 'logits', 'embeddings'\]"):
        found_in(whole_model(outputs, nn.Linear(6, 3)), output=output)


def test_scores_that_are_no_matrix_are_refused():
    model = whole_model(lambda z: z[:, None])
    with pytest.raises(ValueError, match=r"output='scores' needs class scores \(b, k\)"):
        found_in(model, output="scores")


# the head


def test_the_head_s_input_is_latent():
    model, images = whole_model(lambda z, fc: fc(z), nn.Linear(6, 3)), pictures()
    found = found_in(model)
    assert (found.head, found.output.kind) == ("parts.0", "scores")
    with torch.no_grad():
        orbit = oracles.orbits(lambda x: model.body(torch.from_numpy(x)[None])[0].numpy(), images.numpy(), "C4")
    latent = oracles.eed(orbit, "C4", oracles.stay, oracles.latent, range(4))
    np.testing.assert_allclose(measure(model, images, layers=[]).latent[0, 0], latent, atol=1e-6)


ENDS = {
    "softmax module": (lambda z, fc, end: end(fc(z)), nn.Softmax(1), "probabilities"),
    "softmax function": (lambda z, fc, end: fc(z).softmax(1), nn.Identity(), "probabilities"),
    "log_softmax module": (lambda z, fc, end: end(fc(z)), nn.LogSoftmax(1), "scores"),
    "log_softmax function": (lambda z, fc, end: fc(z).log_softmax(1), nn.Identity(), "scores"),
    "squeezed": (lambda z, fc, end: end(fc(z))[:, :, 0, 0], nn.Unflatten(1, (3, 1, 1)), "scores"),
}


@pytest.mark.parametrize("end", ENDS)
def test_the_head_is_found_before_what_ends_the_model(end):
    function, module, kind = ENDS[end]
    found = found_in(whole_model(function, nn.Linear(6, 3), module))
    assert (found.head, found.output.kind) == ("parts.0", kind)


def test_softmax_values_do_not_depend_on_whether_softmax_is_in_the_model():
    scores = whole_model(lambda z, fc: fc(z), nn.Linear(6, 3))
    values = []
    for end in (lambda z: z, lambda z: z.softmax(1), lambda z: z.log_softmax(1)):
        model = whole_model(lambda z, fc, end=end: end(fc(z)), scores.parts[0])
        values.append(measure(model, pictures(), metrics=["softmax"], layers=[]).softmax.values)
    np.testing.assert_allclose(values[1], values[0], atol=1e-6)
    np.testing.assert_allclose(values[2], values[0], atol=1e-6)
    assert values[0].max() > 1e-5


def test_the_head_in_a_wrapper_is_the_innermost_module():
    found = found_in(whole_model(lambda z, head: head(z), nn.Sequential(nn.Dropout(), nn.Sequential(nn.Linear(6, 3)))))
    assert found.head == "parts.0.1.0"


def test_a_head_of_several_parts_is_the_container_with_one_weight():
    # as squeezenet's: dropout, convolution, ReLU, pooling
    head = nn.Sequential(nn.Dropout(), nn.Conv2d(6, 3, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    model = nn.Sequential(nn.Conv2d(2, 6, 3), head, nn.Flatten()).double().eval()
    found = found_in(model)
    assert found.head == "1"
    assert str(found.layers[0].layout) == "b c h w"


def test_the_call_of_the_head_that_gives_the_output_counts():
    found = found_in(whole_model(lambda z, fc: (fc(z), fc(-z))[0], nn.Linear(6, 3)))
    assert (found.layers[0].path, found.layers[0].call) == ("parts.0", 1)


def test_a_head_of_one_score_has_a_latent_and_no_classes():
    found = found_in(whole_model(lambda z, fc: fc(z), nn.Linear(6, 1)))
    assert (found.head, found.output.kind) == ("parts.0", "features")
    assert "is no class scores (b, k) with k ≥ 2" in found.output.reason


HEADLESS = {
    "pooled": (lambda z, mlp: z, nn.Identity()),
    "normed": (lambda z, norm: norm(z), nn.LayerNorm(6)),
    "MLP with a shortcut": (lambda z, mlp: z + mlp(z), nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6))),
    "head with a temperature": (lambda z, fc: fc(z) / 0.1, nn.Linear(6, 3)),
    "head by function": (lambda z, fc: F.linear(z, fc.weight), nn.Linear(6, 3)),
}


@pytest.mark.parametrize("kind", HEADLESS)
def test_without_a_module_that_gives_the_output_it_is_features(kind):
    model = whole_model(*HEADLESS[kind])
    found = found_in(model)
    assert (found.head, found.output.kind) == ("", "features")
    ds = measure(model, pictures(), layers=[], metrics=["latent", "softmax"])
    assert ds.softmax.isnull().all()
    assert "no module with weights gives its output" in ds.softmax.attrs["nan_reason"]
    assert "output='scores'" in ds.softmax.attrs["nan_reason"]
    assert "prediction" not in ds
    with torch.no_grad():
        orbit = oracles.orbits(lambda x: model(torch.from_numpy(x)[None])[0].numpy(), pictures().numpy(), "C4")
    latent = oracles.eed(orbit, "C4", oracles.stay, oracles.latent, range(4))
    np.testing.assert_allclose(ds.latent[0, 0], latent, atol=1e-6)


def test_a_hidden_head_s_scores_can_be_declared():
    model = whole_model(*HEADLESS["head with a temperature"])
    found = found_in(model, output="scores")
    assert found.output.kind == "scores"
    assert "pass head='path of the classifier'" in found.layers[0].reason
    found = found_in(model, output="scores", head="parts.0")
    assert (found.layers[0].path, found.layers[0].side, found.layers[0].layout.channels) == ("parts.0", "in", 6)


def test_an_embedding_can_be_declared_features():
    found = found_in(whole_model(lambda z, fc: fc(z), nn.Linear(6, 3)), output="features")
    assert (found.head, found.output.kind, found.layers[0].layout.channels) == ("", "features", 3)


def test_a_network_that_ends_in_nan_still_has_its_head():
    model = whole_model(lambda z, fc: fc(z), nn.Linear(6, 3))
    model.parts[0].bias.data[1] = torch.nan
    assert found_in(model).head == "parts.0"


def test_unknown_heads_are_refused_with_near_names():
    model = whole_model(lambda z, fc, unused: fc(z), nn.Linear(6, 3), nn.Linear(6, 3))
    with pytest.raises(ValueError, match=r"no head 'parts.9'; did you mean 'parts.0'"):
        found_in(model, head="parts.9")
    with pytest.raises(ValueError, match=r"no head 'parts.1'.*; that module exists but does not run"):
        found_in(model, head="parts.1")


def test_a_module_called_latent_is_refused():
    model = nn.Sequential(OrderedDict(latent=nn.Flatten()))
    with pytest.raises(ValueError, match=r"a module called 'latent'.*rename or wrap it"):
        found_in(model)


# which layers there are


class Residual(nn.Module):
    """A residual block whose one in-place ReLU runs twice and overwrites what `bn` put out."""

    def __init__(self, width=3):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(x + self.relu(self.bn(self.conv(x))))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(2, 3, 3, padding=1)
        self.body = nn.Sequential(Residual(), Residual())
        self.unused = nn.Linear(2, 2)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(3, 4)

    def forward(self, x):
        return self.fc(self.drop(self.body(self.stem(x)).mean((-2, -1))))


@pytest.fixture
def net():
    return Net().double().eval()


@pytest.fixture
def x():
    return pictures(2, 6, 6)


def names(net, x, **options):
    with torch.no_grad():
        return [layer.name for layer in find_layers(net, x, **options).layers]


def test_layers_come_in_order_and_depth_grows_with_execution(net, x):
    with torch.no_grad():
        layers = find_layers(net, x, layers="all").layers
    assert [layer.name for layer in layers] == [
        "stem", "body.0.conv", "body.0.bn", "body.0.relu", "body.0.relu#2", "body.0",
        "body.1.conv", "body.1.bn", "body.1.relu", "body.1.relu#2", "body.1", "drop", "fc", "latent", "output",
    ]  # fmt: skip
    leaves = 11
    depths = [layer.depth * leaves for layer in layers]
    assert depths == pytest.approx([1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 9, 10, 11, 10.5, 11])


def test_blocks_are_the_repeated_composites(net, x):
    assert names(net, x) == ["body.0", "body.1", "latent", "output"]


def test_blocks_of_a_flat_network_are_its_leaves(x):
    flat = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Sequential(nn.ReLU(), nn.Flatten())).double()
    assert names(flat, x) == ["0", "1.0", "1.1", "latent", "output"]


def test_layers_by_regular_expression_match_the_whole_name(net, x):
    assert names(net, x, layers=r"body\.\d\.bn") == ["body.0.bn", "body.1.bn", "latent", "output"]
    assert names(net, x, layers=r".*relu#2") == ["body.0.relu#2", "body.1.relu#2", "latent", "output"]
    with pytest.raises(ValueError, match=r"no layer whose whole name matches 'bn' \(all \d+: stem, body.0.conv"):
        names(net, x, layers="bn")
    with pytest.raises(ValueError, match="is no regular expression"):
        names(net, x, layers="(")


def test_layers_by_list_come_in_the_order_of_execution(net, x):
    chosen = ["fc", "body.0.relu#2", "stem"]
    assert names(net, x, layers=chosen) == ["stem", "body.0.relu#2", "fc", "latent", "output"]


def test_no_layers_leave_latent_and_output(net, x):
    assert names(net, x, layers=[]) == ["latent", "output"]


def test_a_module_s_path_stands_for_all_its_calls(net, x):
    assert names(net, x, layers=["body.0.relu"]) == ["body.0.relu", "body.0.relu#2", "latent", "output"]


def test_unknown_layers_are_refused_with_near_names(net, x):
    with pytest.raises(ValueError, match="no layer 'stm'; did you mean 'stem'"):
        names(net, x, layers=["stm"])
    with pytest.raises(ValueError, match=r"no layer 'unused'.*; that module exists but is not called"):
        names(net, x, layers=["unused"])


def test_blocks_called_by_forward_are_named_in_a_warning():
    class Silent(Net):
        def forward(self, x):
            z = self.body[1].forward(self.body[0](self.stem(x)))
            return self.fc(z.mean((-2, -1)))

    with pytest.warns(UserWarning, match=r"1 blocks are not called in a forward pass and so not measured: body.1 \("):
        ds = measure(Silent(), pictures(4, 6, 6))
    assert ds.layer.values.tolist() == ["body.0", "latent"]


def test_blocks_that_give_no_tensor_are_not_called_silent():
    class Speaking(Net):
        def forward(self, x):
            self.body[1].forward = lambda z: "text"
            z = self.body[0](self.stem(x))
            self.body[1](z)
            return self.fc(z.mean((-2, -1)))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ds = measure(Speaking(), pictures(4, 6, 6))
    assert ds.layer.values.tolist() == ["body.0", "latent"]


def test_a_model_without_submodules_has_latent_and_output(x):
    class Bare(nn.Module):
        def forward(self, x):
            return x.mean((-2, -1))

    assert names(Bare(), x) == ["latent", "output"]
    assert names(Bare(), x, layers="all") == ["latent", "output"]


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_a_script_module_gives_its_output(x):
    scripted = Scripted(torch.jit.trace(Net().eval(), x.float()))
    with torch.no_grad():
        found = find_layers(scripted, x.float())
    assert [(layer.name, str(layer.layout)) for layer in found.layers] == [("latent", "None"), ("output", "b c")]
    assert found.output.kind == "scores"
    with pytest.raises(ValueError, match="layers of a ScriptModule cannot be tapped"):
        names(scripted, x.float(), layers=["stem"])


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_around_a_scripted_part_layers_are_found(x):
    model = Net().eval()
    model.drop = torch.jit.script(model.drop)
    x = x.float()
    assert names(model, x, layers="all") == [name for name in names(Net().eval(), x, layers="all") if name != "drop"]


def test_the_table_of_layers_shows_layouts_and_head():
    model = Patches(with_prefix, size=SIZES["fixed"]).double()
    table = ek.layers(model, pictures(1)[0], device="cpu").set_index("layer")
    assert table.index.tolist() == ["stem", "at", "at[class]", "fc", "latent", "output"]
    assert table.layout.tolist() == ["b c h w", "b 1+6x6 c", "class token", "b c", "b c", "b c"]
    assert table.height.tolist() == [6, 6, 1, 1, 1, 1]
    assert table.channels.tolist() == [4, 4, 4, 3, 4, 3]
    assert table["head"].tolist() == ["", "", "", "", "fc", ""]
    assert (table.reason == "").all()
    open_table = ek.layers(Patches(windows).double(), pictures(2), layers=["at"], layouts={"at": "b 2x2 c c"})
    assert open_table.layout[0] == "b 2x2 c c"


# memory formats, and what is left behind


def test_models_that_view_convolutions_get_contiguous_images(x):
    class Viewing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 3)
            self.fc = nn.Linear(48, 2)

        def forward(self, x):
            z = self.conv(x)
            return self.fc(z.view(len(z), -1))

    model = Viewing().double()
    with torch.no_grad():
        assert not find_layers(model, x).channels_last
        assert find_layers(Net().double().eval(), x).channels_last
    assert measure(model, pictures(4, 6, 6)).latent.notnull().all()


def test_a_model_that_works_in_place_does_not_change_the_images():
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(36, 2)).double()
    x = pictures(2, 6, 6, channels=1)  # the same in every memory format
    before = x.clone()
    with torch.no_grad():
        find_layers(model, x, layers="all")
    assert torch.equal(x, before)


def test_reducing_happens_before_an_in_place_relu_overwrites(net, x):
    block = net.body[0]
    reduced, kept = [], []
    layer = Layer("body.0.bn", 1, "BatchNorm2d", 0.0)
    with torch.no_grad():
        before_relu = block.bn(block.conv(net.stem(x)))
        with tap(net, [layer], Output(), lambda _, z: reduced.append(z.min().item())):
            net(x)
        with tap(net, [layer], Output(), lambda _, z: kept.append(z)):
            net(x)
    assert reduced == [before_relu.min().item()]
    assert reduced[0] < 0 <= kept[0].min()  # what a reference would have held


def test_calls_are_counted_anew_in_every_forward_pass(net, x):
    seen = []
    layers = [Layer("body.0.relu", call, "ReLU", 0.0) for call in (1, 2)]
    with torch.no_grad(), tap(net, layers, Output(), lambda layer, z: seen.append((layer.name, z.clone()))):
        net(x)
        net(x)
    block = net.body[0]
    with torch.no_grad():
        z = net.stem(x)
        first = block.bn(block.conv(z)).relu()
    assert [name for name, _ in seen] == ["body.0.relu", "body.0.relu#2"] * 2
    torch.testing.assert_close(seen[2][1], first)
    torch.testing.assert_close(seen[3][1], (z + first).relu())


def state_of(model):
    """Everything of a model that measuring must leave alone."""
    hooks = []
    for module in model.modules():
        hooks.append({key: dict(value) for key, value in vars(module).items() if "hooks" in key and value})
    return {
        "hooks": hooks,
        "modes": [module.training for module in model.modules()],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [parameter.grad for parameter in model.parameters()],
        "identities": [id(parameter) for parameter in model.parameters()],
        "values": copy.deepcopy(model.state_dict()),
    }


def assert_same_state(before, after):
    for key in ("hooks", "modes", "requires_grad", "identities"):
        assert before[key] == after[key], key
    assert all(a is b for a, b in zip(before["gradients"], after["gradients"], strict=True))
    assert before["values"].keys() == after["values"].keys()
    assert all(torch.equal(value, after["values"][key]) for key, value in before["values"].items())


@pytest.fixture
def used_net(net, x):
    """A network in the middle of training: mixed modes, a frozen layer, gradients, a hook of somebody else's."""
    net.train()
    net.body[1].eval()
    net.stem.requires_grad_(False)
    net.fc.register_forward_hook(lambda *_: None)
    net(x).sum().backward()
    return net


@pytest.mark.parametrize("fails", [False, True])
def test_a_model_is_left_exactly_as_found(used_net, fails):
    before = state_of(used_net)
    if fails:
        broken = pictures(4, 6, 6, channels=7)
        with pytest.raises(RuntimeError):
            measure_in_any_mode(used_net, broken)
    else:
        measure_in_any_mode(used_net, pictures(4, 6, 6))
    assert_same_state(before, state_of(used_net))


def measure_in_any_mode(model, images):
    return ek.measure(
        model, images, group="C4", precision="float64", null=False, progress=False, device="cpu", layers="all"
    )


def test_hooks_are_gone_after_an_exception(net, x):
    before = state_of(net)

    def fail(_layer, _z):
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"), tap(net, [Layer("stem", 1, "Conv2d", 0.0)], Output(), fail):
        net(x)
    assert_same_state(before, state_of(net))
    with pytest.raises(AttributeError), tap(net, [Layer("nowhere", 1, "Conv2d", 0.0)], Output(), fail):
        pass
    assert_same_state(before, state_of(net))
