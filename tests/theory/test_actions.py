"""Actions: the law, exactness, kernels, inverses, and what is refused. Moves are compared with numpy's."""

import math
import re

import cloudpickle
import numpy as np
import oracles
import pytest
import torch
from torch import Tensor

from eedkit.errors import Undefined
from eedkit.theory import groups
from eedkit.theory.actions import (
    Action,
    as_action,
    boxes,
    check_action,
    coordinates,
    permuted,
    regular,
    spatial,
    trivial,
)
from eedkit.theory.groups import Group, Motion

TURNS = ["C1", "C2", "C4", "D1", "D2", "D4", "flip", "C2*flip"]
SHIFTS = ["shift1", "shift3", "shift4", "shift2x4", "shift4*flip", "shift2*C2", "shift2*shift3", "C2*flip*shift2"]
Z2 = Group("Z2", ("e", "s"), ((0, 1), (1, 0)))


def turned(g, z):
    return torch.rot90(z, g, (-2, -1))


def half_turns(g, z):
    return turned(2 * g, z)


def custom(group, move, **parts):
    return Action("mine", groups.parse(group), move, **parts)


def obeys_the_law(action: Action, z: Tensor) -> bool:
    """φ(g, φ(h, z)) = φ(gh, z) bit for bit, φ(e, z) = z, and nothing changes shape."""
    group = action.group
    same = torch.equal(action(0, z), z)
    for g in range(group.order):
        for h in range(group.order):
            once, twice = action(group.table[g][h], z), action(g, action(h, z))
            same &= torch.equal(once, twice) and once.shape == z.shape
    return same


def as_positions(z):
    """(…, P, C) of maps (…, C, H, W)."""
    return z.flatten(-2).mT


def half_way(g, z):
    """A turn by 180° of which an eighth is left where it was: linear, and no action."""
    return z if g == 0 else 0.875 * torch.rot90(z, 2, (-2, -1)) + 0.125 * z


@pytest.mark.parametrize("name", TURNS + SHIFTS)
def test_every_exact_action_obeys_the_group_law_bit_for_bit(name):
    side = 7 if name in TURNS else 12
    z = torch.rand(2, 1, side, side)
    assert obeys_the_law(spatial(name), z)
    assert check_action(spatial(name), z) == spatial(name).on((side, side), channels=2).law_error == 0


ON_GRIDS = [("C2", 4, 5), ("C4", 8, 8), ("D4", 8, 8), ("flip", 5, 4), ("shift2", 8, 5), ("shift4", 8, 8)]
ON_GRIDS += [(group, side, side) for group in oracles.IN_A_CIRCLE for side in (2, 5, 8)]


@pytest.mark.parametrize(("group", "height", "width"), ON_GRIDS)
def test_elements_move_images_as_numpy_and_scipy_do(group, height, width):
    x = np.random.default_rng(0).random((2, 3, height, width))
    action = spatial(group)
    assert list(action.group.elements) == oracles.ELEMENTS[group]
    assert action.on((height, width), 3).interpolates == (group in oracles.IN_A_CIRCLE)
    for element in action.group.elements:
        moved = action(element, torch.from_numpy(x))
        np.testing.assert_allclose(
            moved, oracles.move(group, element, x), rtol=0, atol=1e-12 * (group in oracles.IN_A_CIRCLE)
        )


def test_quarter_turns_of_a_group_that_interpolates_are_exact_in_the_circle():
    x = torch.rand(3, 9, 9)
    x[:, 0, 0] = math.nan
    inside = torch.from_numpy(oracles.circle(9))
    for element in ("e", "r90", "r180", "r270"):
        assert torch.equal(spatial("C8")(element, x), torch.where(inside, spatial("C4")(element, x), 0))


@pytest.mark.parametrize(("sample", "finite"), [("SO(2)?n=8", "C8"), ("O(2)?n=3", "D3"), ("SO(2)?n=4", "C4")])
def test_a_sample_without_jitter_moves_as_the_finite_group(sample, finite):
    x = torch.rand(2, 6, 6, dtype=torch.float64)
    for g in range(groups.parse(finite).order):
        assert torch.equal(spatial(f"{sample}&jitter=0")(g, x), spatial(finite)(g, x))


def test_translations_slide_between_pixels_over_edges_that_meet():
    x = np.random.default_rng(0).random((4, 6))
    action = spatial("T(2)?n=3")
    for element, motion in zip(action.group.elements, action.group.motions, strict=True):
        down, right = float(motion.down), float(motion.right)
        rows, columns = np.meshgrid(np.arange(4) - 4 * down, np.arange(6) - 6 * right, indexing="ij")
        wanted = oracles.ndimage.map_coordinates(x, [rows, columns], order=1, mode="grid-wrap")
        np.testing.assert_allclose(action(element, torch.from_numpy(x)), wanted, atol=1e-12)
    assert action.on((4, 6), channels=1).compared is None


@pytest.mark.parametrize(
    ("name", "moves"), [("rgb", 1), ("C4*rgb", 4), ("rgb*sign", 1), ("flip*sign", 2), ("shift2x2*rgb", 4)]
)
def test_colours_and_signs_move_with_images_and_not_with_maps(name, moves):
    x = torch.rand(2, 3, 4, 4)
    action = spatial(name)
    assert obeys_the_law(action, x)
    assert action.on_images((3, 4, 4)).kernel == (0,)
    on_maps = action.on((4, 4), channels=3)
    assert on_maps.channels is None
    assert len(on_maps.kernel) == action.group.order // moves


def test_colours_come_from_where_the_label_says():
    x = torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1)
    assert spatial("rgb")("gbr", x).flatten().tolist() == [2, 3, 1]
    assert spatial("sign")("neg", x).flatten().tolist() == [-1, -2, -3]


def mixing(action):
    """An action followed by a reflection of three channels for every element that the group counts as odd."""
    normal = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    mirror = torch.eye(3, dtype=torch.float64) - 2 * normal.outer(normal) / normal.dot(normal)
    matrices = [mirror if g % 2 else torch.eye(3, dtype=torch.float64) for g in range(action.group.order)]
    return Action("mixing", action.group, action.move, lambda channels: torch.stack(matrices))


AT_LAYERS = {
    "D4": (spatial("D4"), 3),
    "C4*rgb": (spatial("C4*rgb"), 3),
    "trivial": (trivial("D4"), 3),
    "regular": (regular("D4"), 16),
    "swap": (Action("swap", "C2", channels=lambda _: torch.tensor([[0, 1], [1, 0]])), 2),
    "matrices": (mixing(spatial("C4")), 3),
    "permuted": (permuted(regular("flip"), torch.tensor([[0, 1, 2, 3], [2, 0, 1, 3]])), 4),
    "custom": (custom("C2", half_way), 2),
    "C8": (spatial("C8"), 2),
}


@pytest.mark.parametrize("name", AT_LAYERS)
def test_on_images_and_at_a_layer_an_element_does_the_same(name):
    action, channels = AT_LAYERS[name]
    z = torch.rand(2, channels, 12, 12, dtype=torch.float64)
    at_layer = action.on_images((channels, 12, 12))
    assert (at_layer.grid, at_layer.name, at_layer.group) == ((12, 12), action.name, action.group)
    for g, element in enumerate(action.group.elements):
        moved = at_layer(element, as_positions(z))
        np.testing.assert_allclose(moved, as_positions(action(element, z)), atol=1e-15)
        assert torch.equal(moved, at_layer.to("cpu")(g, as_positions(z)))


@pytest.mark.parametrize("group", ["C4", "C8", "shift4", "C4*sign", "SO(2)?n=3"])
def test_actions_can_be_sent_to_other_processes(group):
    action = spatial(group)
    images = torch.rand(1, 8, 8)
    moved = action(1, images)
    assert torch.equal(cloudpickle.loads(cloudpickle.dumps(action))(1, images), moved)


@pytest.mark.parametrize("group", ["C4", "C8"])
def test_what_was_measured_can_be_trained_through(group):
    action = spatial(group)
    with torch.inference_mode():
        action("r90", torch.rand(1, 5, 5))
    images = torch.rand(1, 5, 5, requires_grad=True)
    action("r90", images).sum().backward()
    assert torch.equal(images.grad[0], action("r270", torch.ones(5, 5)))


def test_a_layer_compares_the_positions_in_the_circle():
    z = torch.rand(3, 36, 2)
    assert torch.equal(spatial("C8").on((6, 6), 2).visible(z), z[:, torch.from_numpy(oracles.circle(6)).flatten()])
    assert spatial("C4").on((6, 6), 2).visible(z) is z


@pytest.mark.parametrize(
    ("action", "shape", "expected"),
    [
        (spatial("C4"), (1, 2, 2), (0,)),
        (spatial("C4"), (7, 1, 1), (0, 1, 2, 3)),
        (spatial("flip"), (1, 5, 1), (0, 1)),
        (spatial("D2"), (1, 1, 5), (0, 3)),
        (spatial("D2"), (1, 5, 1), (0, 2)),
        (spatial("C8"), (2, 5, 5), (0,)),
        (spatial("C8"), (2, 1, 1), tuple(range(8))),
        (trivial("D4"), (1, 3, 3), tuple(range(8))),
        (regular("C4"), (4, 1, 1), (0,)),
        (custom("C4", half_turns), (1, 3, 3), (0, 2)),
        (custom("C4", half_turns, channels=lambda _: torch.tensor([[0, 1], [0, 1], [1, 0], [1, 0]])), (2, 3, 3), (0,)),
        (AT_LAYERS["swap"][0], (2, 3, 3), (0,)),
        (custom("C2", lambda g, z: (z * 3) / 3), (1, 4, 5), (0, 1)),
    ],
)
def test_the_kernel_belongs_to_the_shape(action, shape, expected):
    assert action.on(shape[1:], channels=shape[0]).kernel == expected


def test_the_law_error_of_interpolation_is_that_of_loops():
    name, side = "C8", 6
    probe = torch.rand(side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).numpy()
    inside = oracles.circle(side)
    worst = 0.0
    for i, g in enumerate(oracles.ELEMENTS[name]):
        for k, h in enumerate(oracles.ELEMENTS[name]):
            twice = oracles.move(name, g, oracles.move(name, h, probe))
            once = oracles.move(name, oracles.ELEMENTS[name][(i + k) % 8], probe)
            worst = max(worst, np.abs(twice - once)[inside].max())
    state = torch.get_rng_state()
    assert spatial(name).on((side, side), channels=1).law_error == pytest.approx(worst, abs=1e-12)
    assert worst > 0.1
    assert torch.equal(state, torch.get_rng_state())  # no chance is drawn


def test_the_law_error_says_how_far_an_action_is_off():
    rough = custom("C2", half_way).on((4, 4), channels=1)
    # twice gives (7/8)² + (1/8)² of the image and 14/64 of its turn, instead of the image
    assert 0.1 < rough.law_error <= 14 / 64
    assert trivial("C4").on((3, 3), channels=1).law_error == 0
    assert math.isnan(spatial("SO(2)?n=4").on((5, 5), channels=1).law_error)
    careless = custom("C4", lambda g, z: turned(min(g, 1), z)).on((4, 4), channels=1)
    with pytest.raises(ValueError, match=r"mine is no action of C4: r90 and then r90 is not r180 \(off by .*\)"):
        _ = careless.law_error


@pytest.mark.parametrize("name", ["C4", "D4", "shift2x3", "C4*rgb", "regular", "matrices"])
def test_the_inverse_undoes_every_element(name):
    action, channels = AT_LAYERS[name] if name in AT_LAYERS else (spatial(name), 3)
    z = torch.rand(2, channels, 6, 6, dtype=torch.float64)
    for g in range(action.group.order):
        torch.testing.assert_close(action.inverse(g, action(g, z)), z, rtol=0, atol=1e-12)
        assert torch.equal(action.inverse(g, z), action(action.group.inverses[g], z))


@pytest.mark.parametrize("name", ["SO(2)?n=5", "O(2)?n=4", "T(2)?n=3", "SO(2)?n=3*rgb"])
def test_the_inverse_of_a_sample_undoes_motions_that_are_no_elements(name):
    rows, columns = torch.meshgrid(torch.arange(33.0), torch.arange(33.0), indexing="ij")
    turn = 2 * math.pi / 33
    # smooth, and the same at opposite edges, so that reading between pixels costs little
    smooth = torch.stack([(turn * rows).sin(), (turn * columns).cos(), (turn * (rows + columns)).sin()]).double()
    action = spatial(name)
    middle = (slice(None), slice(8, 25), slice(8, 25))
    for g in range(1, action.group.order):
        back = action.inverse(g, action(g, smooth))
        assert (back - smooth)[middle].abs().max() < 0.02 < (action(g, smooth) - smooth)[middle].abs().max()


def test_check_action_tells_how_far_an_inexact_action_is_off():
    action = custom("C2", lambda g, z: -z * 1.01 if g else z)
    assert check_action(action, torch.ones(1, 3), atol=0.1) == pytest.approx(1.01**2 - 1, abs=1e-12)
    with pytest.raises(ValueError, match=r"r180 and then r180 is not e \(off by 0.0201, allowed 0.01\)"):
        check_action(action, torch.ones(1, 3), atol=0.01)
    outside = torch.from_numpy(~oracles.circle(9)).double()
    assert check_action(spatial("C8"), outside) == 0  # what is not compared does not come in
    with pytest.raises(ValueError, match="an action is checked on finite numbers"):
        check_action(action, torch.tensor([[1.0, math.nan]]))


def checked(move):
    return check_action(custom("C2", move), torch.rand(3, 4, 4))


UNDEFINED = {
    "quarter turns need square images, got 28×32; centre-crop or pad first": lambda: spatial("C4").on((28, 32), 1),
    "rotations need square images, got 6×7; centre-crop or pad first": lambda: spatial("C8").on((6, 7), 1),
    "shifts by 1/4 of the height need a height divisible by 4, got 6": lambda: spatial("shift4").on((6, 8), 1),
    "shifts by 1/4 of the width need a width divisible by 4, got 6": lambda: spatial("shift2x4").on((4, 6), 1),
    "rgb permutes 3 colour channels, got images of 1": lambda: spatial("rgb")("gbr", torch.rand(1, 4, 4)),
    "mine: r90 turned shape (3, 3, 4) into (3, 4, 3)": lambda: custom("C4", turned).on((3, 4), 1),
    "fields of C4 need channels divisible by 4, got 6": lambda: regular("C4").on((3, 3), 6),
    "the permutations are those of 4 channels, got 3": lambda: AT_LAYERS["permuted"][0].on((3, 3), 3),
    "the channels must be even in number, got 3": lambda: coordinates("C4").on_vectors(3),
    "x, y, width, height and more, got 3 numbers": lambda: boxes("C4").on_vectors(3),
    "shift4 shifts images, and no matrix shifts points": lambda: coordinates("shift4"),
    "C8 turns boxes by less than quarter turns": lambda: boxes("C8"),
    "Z2 has no motions on the plane, so how points move is not known": lambda: boxes(custom(Z2, turned)),
    "mine moves images otherwise than C4 says of r90": lambda: coordinates(custom("C4", lambda g, z: turned(-g, z))),
    "is a sample, and regular fields have a map for every element": lambda: regular("SO(2)?n=3"),
    "mine: the inverses of SO(2)?n=3 are not among its elements": lambda: custom("SO(2)?n=3", turned).inverse,
    "coordinates: the inverses of SO(2)?n=3 are not": lambda: coordinates("SO(2)?n=3").inverse,
}
WRONG = {
    "Z2 has no motions on the plane; give an Action of your own": lambda: spatial(Z2),
    "an action moves images (…, C, H, W) or (H, W), got shape (3,)": lambda: spatial("C4")(1, torch.rand(3)),
    "mine: move must be a function or None, got int": lambda: custom("C2", 3),
    "expected 2 rows of channels, each channel once in each, got [[0, 1]]": lambda: permuted(
        spatial("flip"), torch.tensor([[0, 1]])
    ),
    "each channel once in each, got [[0, 1], [1, 1]]": lambda: permuted(
        spatial("flip"), torch.tensor([[0, 1], [1, 1]])
    ),
    "mine: e turned a tensor into NoneType; an action returns the moved tensor": lambda: checked(lambda g, z: None),
    "mine is no action of C2: e is not the identity (off by": lambda: checked(lambda g, z: z.roll(1 + g, -1)),
    "mine: r180 is not linear: what it does to a sum of images": lambda: checked(lambda g, z: z.abs() if g else z),
    "mine: r180 is not linear: what it does": lambda: checked(lambda g, z: 1 - z if g else z),
    "r180 is not linear: ": lambda: checked(lambda g, z: z.sort(-1).values if g else z),
    "r180 is not linear": lambda: checked(lambda g, z: z.round() if g else z),
    "invalid literal for int() with base 10: 'mine'": lambda: custom("C2", lambda g, z: int("mine")).on((3, 3), 1),
}


@pytest.mark.parametrize("message", [*UNDEFINED, *WRONG])
def test_only_what_is_not_defined_is_a_reason(message):
    with pytest.raises((ValueError, TypeError), match=re.escape(message)) as refused:
        (UNDEFINED | WRONG)[message]()
    assert isinstance(refused.value, Undefined) == (message in UNDEFINED)


def test_regular_fields_move_every_map_and_send_map_h_to_map_gh():
    z = np.random.default_rng(1).random((8, 3, 3))
    for element in oracles.ELEMENTS["C4"]:
        moved = regular("C4")(element, torch.from_numpy(z))
        np.testing.assert_array_equal(moved, oracles.move_fields("C4", element, z))
    d4 = groups.parse("D4")
    of_d4 = regular(d4)("r90", torch.arange(8.0).reshape(8, 1, 1)).flatten().tolist()
    assert [of_d4[d4.table[1][h]] for h in range(8)] == list(range(8))
    assert obeys_the_law(regular("shift2*flip"), torch.rand(2, 16, 4, 4))


def test_permuted_takes_each_channel_from_the_one_that_is_named():
    z, rng = np.random.default_rng(2).random((2, 5, 3, 3)), np.random.default_rng(3)
    permutations = np.stack([rng.permutation(5) for _ in range(4)])
    action = permuted(spatial("C4"), torch.from_numpy(permutations))
    for g, element in enumerate(oracles.ELEMENTS["C4"]):
        wanted = oracles.move("C4", element, z)[:, permutations[g]]
        np.testing.assert_array_equal(action(element, torch.from_numpy(z)), wanted)


POINT_GROUPS = ["C4", "D4", "flip", "C2*flip"]


@pytest.mark.parametrize("group", POINT_GROUPS)
def test_points_go_where_pixels_go(group):
    """A single bright pixel is moved, and found again as (x, y) about the middle."""
    on_images, on_points = spatial(group), coordinates(group).on_vectors(2)
    for row, column in ((1, 5), (6, 2)):
        image = torch.zeros(7, 7)
        image[row, column] = 1
        for g in range(on_images.group.order):
            found_row, found_column = on_images(g, image).nonzero()[0].tolist()
            assert on_points(g, torch.tensor([column - 3.0, row - 3.0])).tolist() == [found_column - 3, found_row - 3]


@pytest.mark.parametrize("group", ["C8", "D3"])
def test_points_of_interpolating_groups_keep_their_length_and_the_law(group):
    on_points = coordinates(group).on_vectors(4)
    assert on_points.law_error < 1e-12
    points = torch.rand(5, 4, dtype=torch.float64)
    for g in range(on_points.group.order):
        torch.testing.assert_close(on_points(g, points).norm(dim=-1), points.norm(dim=-1))


@pytest.mark.parametrize("group", POINT_GROUPS)
def test_fields_of_offsets_turn_and_move(group):
    """The offset from every pixel to one mark points at the moved mark afterwards."""
    action = coordinates(group)
    places = torch.stack(torch.meshgrid(torch.arange(-3.0, 4), torch.arange(-3.0, 4), indexing="xy"))
    mark = torch.tensor([2.0, -1.0])
    for g in range(action.group.order):
        moved_mark = action.on_vectors(2)(g, mark)
        assert torch.equal(action(g, mark[:, None, None] - places), moved_mark[:, None, None] - places)
    assert check_action(action, places) == 0


@pytest.mark.parametrize("group", POINT_GROUPS)
def test_boxes_go_where_filled_boxes_go(group):
    """A box of ones on an image is moved, and its sides are read off again."""
    on_images, on_boxes = spatial(group), boxes(group).on_vectors(5)
    image = torch.zeros(8, 8)
    image[1:3, 2:7] = 1
    box = torch.tensor([0.5, -2.0, 5.0, 2.0, 9.0])
    for g in range(on_images.group.order):
        rows, columns = on_images(g, image).nonzero().T
        low = torch.stack([columns.min(), rows.min()]).float()
        high = torch.stack([columns.max(), rows.max()]).float() + 1
        assert on_boxes(g, box).tolist() == [*((low + high) / 2 - 4).tolist(), *(high - low).tolist(), 9]


def test_points_of_a_custom_action_with_the_motions_of_its_group_move():
    named = custom("C4", turned)
    points = torch.eye(4)
    assert torch.equal(boxes(named).on_vectors(4)(1, points), boxes("C4").on_vectors(4)(1, points))
    assert as_action(named) is named
    own = Group("own", ("e", "h"), motions=(Motion(), Motion(angle=180)))
    assert torch.equal(as_action(own)("h", torch.eye(3)[:2]), torch.eye(3)[:2].flip(0, 1))
