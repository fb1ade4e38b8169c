"""Actions: the law, exactness, kernels, and what is refused. Moves are compared with numpy's."""

import math
import time
from fractions import Fraction

import cloudpickle
import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from eedkit.theory import groups
from eedkit.theory.actions import (
    Action,
    boxes,
    check_action,
    coordinates,
    kernel,
    law_error,
    linear,
    permuted,
    quotient,
    regular,
    spatial,
    trivial,
)
from eedkit.theory.groups import Group

EXACT = ["C1", "C2", "C4", "D1", "D2", "D4", "flip", "shift1", "shift2", "shift3", "shift4", "shift6", "C2*flip"]
EXACT += [
    "shift2*flip",
    "shift4*flip",
    "flip*shift3",
    "C2*C2",
    "shift2*C2",
    "flip*flip",
    "shift2*shift3",
    "C2*flip*shift2",
]
S3 = [(0, 1, 2), (1, 2, 0), (2, 0, 1), (0, 2, 1), (1, 0, 2), (2, 1, 0)]


def s3():
    """S3 by permutations, and its permutation matrices ρ(g) e_k = e_g(k)."""
    table = [[S3.index(tuple(g[h[k]] for k in range(3))) for h in S3] for g in S3]
    matrices = torch.zeros(6, 3, 3)
    for i, g in enumerate(S3):
        for k in range(3):
            matrices[i, g[k], k] = 1
    return Group("S3", [str(p) for p in S3], table), matrices


def obeys_the_law(action: Action, z: Tensor) -> bool:
    """φ(g, φ(h, z)) = φ(gh, z) bit for bit, φ(e, z) = z, and nothing changes shape."""
    group = action.group
    same = torch.equal(action(0, z), z)
    for g in range(group.order):
        for h in range(group.order):
            once, twice = action(group.table[g][h], z), action(g, action(h, z))
            same &= torch.equal(once, twice) and once.shape == z.shape
    return same


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(EXACT), st.sampled_from([12, 24]), st.lists(st.integers(1, 3), max_size=2), st.integers(0, 2**30)
)
def test_every_exact_action_obeys_the_group_law_bit_for_bit(name, side, leading, seed):
    z = torch.rand(*leading, side, side, generator=torch.Generator().manual_seed(seed))
    assert obeys_the_law(spatial(name), z)
    assert check_action(spatial(name), z) == 0
    assert obeys_the_law(trivial(name), z)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["C1", "C2", "C4", "D1", "D2", "D4", "flip", "C2*flip"]), st.integers(1, 7))
def test_turns_and_mirrors_are_exact_at_every_square_size(name, side):
    assert obeys_the_law(spatial(name), torch.rand(2, side, side))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["C2", "C4", "D4", "shift2*flip"]), st.integers(1, 3), st.integers(0, 2**30))
def test_the_regular_action_obeys_the_group_law_bit_for_bit(name, fields, seed):
    action = regular(name)
    z = torch.rand(2, fields * action.group.order, 4, 4, generator=torch.Generator().manual_seed(seed))
    assert obeys_the_law(action, z)


@pytest.mark.parametrize("group", ["C2", "C4", "D4", "flip", "shift2", "shift4"])
def test_elements_move_images_as_numpy_does(group):
    x = np.random.default_rng(0).random((2, 3, 8, 8))
    action = spatial(group)
    assert list(action.group.elements) == oracles.ELEMENTS[group]
    for element in action.group.elements:
        np.testing.assert_array_equal(action(element, torch.from_numpy(x)), oracles.move(group, element, x))


def test_rotations_are_counter_clockwise_and_mirrors_come_after_them():
    x = torch.tensor([[1, 2], [3, 4]])
    d4 = spatial("D4")
    assert d4("r90", x).tolist() == [[2, 4], [1, 3]]
    assert torch.equal(d4("r90", x), torch.rot90(x, 1, (-2, -1)))
    assert d4("m", x).tolist() == [[2, 1], [4, 3]]
    assert d4("mr90", x).tolist() == [[4, 2], [3, 1]]


def test_shifts_roll_downwards_by_a_part_of_the_height():
    column = torch.arange(8).reshape(8, 1)
    assert spatial("shift4")("s1", column).flatten().tolist() == [6, 7, 0, 1, 2, 3, 4, 5]
    assert spatial("shift4")("s3", column).flatten().tolist() == [2, 3, 4, 5, 6, 7, 0, 1]


@pytest.mark.parametrize("height", [1, 2, 3, 6, 9])
def test_shifts_are_refused_where_the_height_is_not_divisible(height):
    with pytest.raises(ValueError, match=f"shifts by 1/4 of the height need .* got {height}"):
        spatial("shift4")("s1", torch.zeros(1, height, 8))


@pytest.mark.parametrize("name", ["C4", "D4"])
def test_quarter_turns_refuse_images_that_are_not_square(name):
    with pytest.raises(ValueError, match="quarter turns need square images, got 28×32; centre-crop or pad first"):
        spatial(name)("r90", torch.zeros(1, 28, 32))


def test_a_turn_that_changes_the_shape_is_caught():
    careless = Action("careless", groups.parse("C4"), lambda g, z: torch.rot90(z, g, (-2, -1)))
    x = torch.rand(3, 4)
    assert torch.equal(torch.rot90(torch.rot90(x, 1), 1), torch.rot90(x, 2))
    with pytest.raises(
        ValueError, match=r"careless: r90 turned shape \(3, 4\) into \(4, 3\); an action keeps the shape"
    ):
        check_action(careless, x)
    with pytest.raises(ValueError, match="an action keeps the shape"):
        kernel(careless, (3, 4))


def test_half_turns_and_mirrors_need_no_square():
    assert obeys_the_law(spatial("D2"), torch.rand(2, 3, 4))


@pytest.mark.parametrize("name", ["C4*flip", "flip*C4", "shift4*C4", "shift3*C2", "D4*flip", "C8*flip", "rgb*rgb"])
def test_products_whose_moves_do_not_commute_are_no_action(name):
    with pytest.raises(ValueError, match=rf"spatial is no action of {name.replace('*', '[*]')}: .* and then .* is not"):
        spatial(name)


@pytest.mark.parametrize("name", oracles.IN_A_CIRCLE)
@pytest.mark.parametrize("side", [2, 5, 8])
def test_rotations_between_quarter_turns_read_between_pixels(name, side):
    x = np.random.default_rng(0).random((2, 3, side, side))
    action = spatial(name)
    assert list(action.group.elements) == oracles.ELEMENTS[name]
    for element in action.group.elements:
        moved = action(element, torch.from_numpy(x))
        np.testing.assert_allclose(moved, oracles.move(name, element, x), atol=1e-12)


def test_quarter_turns_of_a_group_that_interpolates_are_exact_in_the_circle():
    x = torch.rand(3, 9, 9)
    inside = torch.from_numpy(oracles.circle(9))
    for element in ("e", "r90", "r180", "r270"):
        assert torch.equal(spatial("C8")(element, x), torch.where(inside, spatial("C4")(element, x), 0))


def test_rotations_that_interpolate_keep_constants_and_need_squares():
    ones = torch.ones(2, 7, 7)
    at_layer = spatial("C8").on((7, 7), channels=2)
    assert at_layer.interpolates
    assert not spatial("C4").on((7, 7), channels=2).interpolates
    for g in range(8):
        moved = at_layer(g, as_positions(ones))[at_layer.compared]
        np.testing.assert_allclose(moved, 1, atol=1e-6)
    with pytest.raises(ValueError, match="rotations need square images, got 6×7; centre-crop or pad first"):
        spatial("C8").on((6, 7), channels=1)


@pytest.mark.parametrize(("name", "side", "expected"), [("C8", 5, (0,)), ("D3", 5, (0,)), ("C8", 1, tuple(range(8)))])
def test_the_kernel_of_rotations_that_interpolate_is_that_in_the_circle(name, side, expected):
    assert kernel(spatial(name), (side, side)) == expected


def test_the_law_error_of_interpolation_is_that_of_loops():
    name, side = "C8", 6
    found = law_error(spatial(name).on((side, side), channels=1))
    probe = torch.rand(side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).numpy()
    inside = oracles.circle(side)
    worst = 0.0
    for i, g in enumerate(oracles.ELEMENTS[name]):
        for k, h in enumerate(oracles.ELEMENTS[name]):
            twice = oracles.move(name, g, oracles.move(name, h, probe))
            once = oracles.move(name, oracles.ELEMENTS[name][(i + k) % 8], probe)
            worst = max(worst, np.abs(twice - once)[inside].max())
    assert found == pytest.approx(worst, abs=1e-12)
    assert found > 0.1


def test_shifts_in_two_directions_roll_rows_and_columns():
    x = torch.arange(48).reshape(4, 12)
    action = spatial("shift2x4")
    assert obeys_the_law(action, x)
    assert torch.equal(action("s1,3", x), x.roll((2, 9), (-2, -1)))
    with pytest.raises(ValueError, match="shifts by 1/4 of the width need a width divisible by 4, got 6"):
        action.on((4, 6), channels=1)


@pytest.mark.parametrize("name", ["rgb", "C4*rgb", "rgb*sign", "flip*sign", "shift2x2*rgb"])
def test_colours_and_signs_move_with_images_and_not_with_maps(name):
    x = torch.rand(2, 3, 4, 4)
    action = spatial(name)
    assert obeys_the_law(action, x)
    group = action.group
    on_images = action.of_images.on((4, 4), channels=3)
    for g, element in enumerate(group.elements):
        assert torch.equal(on_images(g, as_positions(x)), as_positions(action(element, x)))
    assert on_images.kernel == (0,)
    on_maps = action.on((4, 4), channels=3)
    assert on_maps.channels is None
    plane_order = {"C4*rgb": 4, "flip*sign": 2, "shift2x2*rgb": 4}.get(name, 1)
    assert len(on_maps.kernel) == group.order // plane_order


def test_colours_come_from_where_the_label_says():
    x = torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1)
    assert spatial("rgb")("gbr", x).flatten().tolist() == [2, 3, 1]
    assert spatial("sign")("neg", x).flatten().tolist() == [-1, -2, -3]
    with pytest.raises(ValueError, match="rgb permutes 3 colour channels, got images of 1"):
        spatial("rgb")("gbr", x[:1])


@pytest.mark.parametrize(("sample", "finite"), [("SO(2)?n=8", "C8"), ("O(2)?n=3", "D3"), ("SO(2)?n=4", "C4")])
def test_a_sample_without_jitter_moves_as_the_finite_group(sample, finite):
    x = torch.rand(2, 6, 6, dtype=torch.float64)
    for of_sample, of_finite in zip(
        groups.parse(f"{sample}&jitter=0").elements, groups.parse(finite).elements, strict=True
    ):
        assert torch.equal(spatial(f"{sample}&jitter=0")(of_sample, x), spatial(finite)(of_finite, x))


def test_translations_slide_between_pixels_over_edges_that_meet():
    x = np.random.default_rng(0).random((4, 6))
    action = spatial("T(2)?n=3")
    for element in action.group.elements[1:]:
        down, right = (float(part) for part in element[1:].split(","))
        rows, columns = np.meshgrid(np.arange(4) - 4 * down, np.arange(6) - 6 * right, indexing="ij")
        wanted = oracles.ndimage.map_coordinates(x, [rows, columns], order=1, mode="grid-wrap")
        np.testing.assert_allclose(action(element, torch.from_numpy(x)), wanted, atol=1e-5)
    assert action.on((4, 6), channels=1).compared is None


def test_a_sample_has_no_products():
    sample = groups.parse("SO(2)?n=4")
    assert math.isnan(law_error(spatial(sample).on((5, 5), channels=1)))
    with pytest.raises(ValueError, match=r"is a sample of a continuous group, .* this needs a finite group such as C8"):
        regular(sample)


def test_many_shifts_are_checked_on_a_narrow_probe():
    before = time.process_time()
    assert spatial("shift224").on((224, 2), 1).kernel == (0,)
    assert time.process_time() - before < 5


def test_a_group_without_moves_has_no_spatial_action():
    with pytest.raises(ValueError, match="S3 has no moves on the plane; give an Action of your own"):
        spatial(s3()[0])


def test_moves_that_are_none_and_an_identity_that_moves_are_refused():
    table = ((0, 1), (1, 0))
    with pytest.raises(ValueError, match=r"a group's move starts with one of rotate, mirror, .* got 'shear'"):
        spatial(Group("Z2", ("e", "s"), table, ((), (("shear", Fraction(1)),))))
    with pytest.raises(ValueError, match="spatial is no action of Z2: e is the identity, but its moves move"):
        spatial(Group("Z2", ("e", "s"), table, ((("mirror", Fraction(1)),), ())))


def test_the_action_of_a_homomorphism_in_the_wrong_order_is_refused():
    group, _ = s3()
    backwards = Action("backwards", group, lambda g, z: z[list(S3[g])])
    forwards = Action("forwards", group, lambda g, z: z[[S3[g].index(k) for k in range(3)]])
    assert check_action(forwards, torch.arange(3.0)) == 0
    with pytest.raises(
        ValueError,
        match=r"backwards is no action of S3: .* and then .* is not .*; it is .*, so the moves are no homomorphism",
    ):
        check_action(backwards, torch.arange(3.0))


def test_elements_that_are_not_closed_are_refused():
    """Turns by 0, 90 and 180 degrees, as if three of them made a full turn."""
    action = Action("three turns", groups.parse("C3"), lambda g, z: torch.rot90(z, g, (-2, -1)))
    with pytest.raises(
        ValueError,
        match=r"three turns is no action of C3: .* it is what no element does, so the elements are not closed",
    ):
        check_action(action, torch.rand(3, 3))


def test_an_element_that_is_not_linear_is_refused():
    inverted = Action("inverted", groups.parse("C2"), lambda g, z: 1 - z if g else z)
    with pytest.raises(
        ValueError, match="inverted: r180 is not linear: what it does to a sum of images is not the sum"
    ):
        check_action(inverted, torch.rand(3, 3))


def test_an_identity_that_moves_is_refused():
    action = Action("drifts", groups.parse("C1"), lambda g, z: z + 1)
    with pytest.raises(
        ValueError, match=r"drifts is no action of C1: e is not the identity .* the first element must leave"
    ):
        check_action(action, torch.zeros(2))


def test_check_action_tells_how_far_an_inexact_action_is_off():
    action = Action("rough", groups.parse("C2"), lambda g, z: -z * 1.01 if g else z)
    assert check_action(action, torch.ones(3), atol=0.1) == pytest.approx(1.01**2 - 1, abs=1e-6)
    with pytest.raises(
        ValueError,
        match=r"rough is no action of C2: r180 and then r180 is not e \(off by 0.0201, allowed 0.01\); it is what no",
    ):
        check_action(action, torch.ones(3), atol=0.01)


def test_linear_acts_by_its_matrices_on_vectors():
    group, matrices = s3()
    v = torch.rand(5, 3)
    for g in range(6):
        expected = np.stack([matrices[g].numpy() @ row for row in v.numpy()])
        np.testing.assert_allclose(linear(group, matrices).on((1, 1), 3)(g, v[:, None])[:, 0], expected, atol=1e-6)
    assert kernel(linear(group, matrices), (1, 1), 3) == (0,)


def test_linear_by_a_non_faithful_representation_has_its_kernel():
    group, matrices = s3()
    sign = torch.det(matrices).reshape(6, 1, 1)
    assert kernel(linear(group, sign), (1, 1)) == (0, 1, 2)


def test_linear_acts_by_rotation_matrices_within_rounding():
    turns = [[[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]] for a in (2 * math.pi * k / 5 for k in range(5))]
    action = linear("C5", torch.tensor(turns, dtype=torch.float64))
    v = torch.tensor([1.0, 0.0], dtype=torch.float64)
    action = action.on((1, 1), 2)
    assert action(1, v[None])[0].tolist() == pytest.approx([math.cos(math.radians(72)), math.sin(math.radians(72))])
    assert action.kernel == (0,)


def test_matrices_that_are_no_representation_are_refused():
    group, matrices = s3()
    with pytest.raises(ValueError, match=r"linear is no action of S3: .* and then .* is not"):
        linear(group, matrices.transpose(1, 2))
    with pytest.raises(ValueError, match="expected one square matrix for each of 6 elements, got"):
        linear(group, matrices[:5])
    with pytest.raises(ValueError, match="expected one square matrix for each of 6 elements, got"):
        linear(group, matrices[:, :2])


@pytest.mark.parametrize(
    ("action", "shape", "expected"),
    [
        (spatial("C4"), (6, 6), (0,)),
        (spatial("C4"), (2, 2), (0,)),
        (spatial("C4"), (1, 1), (0, 1, 2, 3)),
        (spatial("C4"), (7, 1, 1), (0, 1, 2, 3)),
        (spatial("D4"), (3, 3), (0,)),
        (spatial("flip"), (5, 1), (0, 1)),
        (spatial("D2"), (1, 5), (0, 3)),
        (spatial("D2"), (5, 1), (0, 2)),
        (spatial("C2*C2"), (3, 3), (0, 3)),
        (trivial("D4"), (3, 3), tuple(range(8))),
        (regular("C4"), (4, 1, 1), (0,)),
        (quotient("C4", spatial("C2"), [0, 1, 0, 1]), (3, 3), (0, 2)),
        (quotient("C4", spatial("C2"), [0, 1, 0, 1]), (1, 1), (0, 1, 2, 3)),
        (quotient("D4", spatial("flip"), [0, 0, 0, 0, 1, 1, 1, 1]), (3, 3), (0, 1, 2, 3)),
    ],
)
def test_the_kernel_belongs_to_the_shape(action, shape, expected):
    assert kernel(action, shape[-2:], channels=math.prod(shape[:-2])) == expected


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(EXACT), st.sampled_from([(12, 12), (12, 1), (1, 12), (1, 1), (6, 2)]))
def test_the_kernel_is_a_normal_subgroup(name, shape):
    action = spatial(name)
    try:
        found = set(kernel(action, shape))
    except ValueError:
        return
    group = action.group
    assert 0 in found
    assert all(group.table[a][b] in found for a in found for b in found)
    assert all(group.inverse(a) in found for a in found)
    assert all(group.table[group.table[g][a]][group.inverse(g)] in found for a in found for g in range(group.order))


def test_a_quotient_acts_as_the_image_does():
    through = quotient("C4", spatial("flip"), [0, 1, 0, 1])
    x = torch.rand(2, 3, 4)
    assert obeys_the_law(through, x)
    assert torch.equal(through("r270", x), x.flip(-1))
    assert torch.equal(through("r180", x), x)


@pytest.mark.parametrize("projection", [[0, 0, 1, 1], [1, 0, 1, 0], [0, 1, 1, 0]])
def test_a_projection_that_is_no_homomorphism_is_refused(projection):
    with pytest.raises(ValueError, match=r"not a homomorphism onto flip: π\(\w+ \w+\) differs from π\(\w+\) π\(\w+\)"):
        quotient("C4", spatial("flip"), projection)


def test_a_projection_names_an_image_for_every_element():
    with pytest.raises(ValueError, match="a projection of C4 names 4 images, got 3"):
        quotient("C4", spatial("flip"), [0, 1, 0])


def test_the_regular_action_moves_every_map_and_sends_map_h_to_map_gh():
    z = np.random.default_rng(1).random((8, 3, 3))
    for element in oracles.ELEMENTS["C4"]:
        np.testing.assert_array_equal(
            regular("C4")(element, torch.from_numpy(z)), oracles.move_fields("C4", element, z)
        )


def test_regular_fields_are_multiplied_from_the_left():
    z = torch.arange(8.0).reshape(8, 1, 1)
    d4 = groups.parse("D4")
    moved = regular("D4")("r90", z).flatten().tolist()
    for h in range(8):
        assert moved[d4.table[1][h]] == h


def test_fields_need_divisible_channels():
    with pytest.raises(ValueError, match="fields of C4 need channels divisible by 4, got 6"):
        regular("C4")(1, torch.zeros(2, 6, 3, 3))
    with pytest.raises(ValueError, match="regular moves channels, so it needs"):
        regular("C4")(1, torch.zeros(3, 3))


def test_permuted_takes_each_channel_from_the_one_that_is_named():
    z, rng = np.random.default_rng(2).random((2, 5, 3, 3)), np.random.default_rng(3)
    permutations = np.stack([rng.permutation(5) for _ in range(4)])
    action = permuted(spatial("C4"), torch.from_numpy(permutations))
    for g, element in enumerate(oracles.ELEMENTS["C4"]):
        moved = action(element, torch.from_numpy(z)).numpy()
        for sample in range(2):
            for i in range(5):
                np.testing.assert_array_equal(
                    moved[sample, i], oracles.move("C4", element, z[sample, permutations[g, i]])
                )


def test_fields_of_the_regular_representation_are_permuted_channels():
    z, c4 = torch.rand(2, 8, 3, 3), groups.parse("C4")
    come_from = [[4 * field + c4.product(c4.inverse(g), k) for field in range(2) for k in range(4)] for g in range(4)]
    action = permuted(spatial("C4"), torch.tensor(come_from))
    for g in range(4):
        assert torch.equal(action(g, z), regular("C4")(g, z))
    assert obeys_the_law(action, z)


def test_permutations_that_do_not_compose_are_no_action():
    swap = torch.tensor([[0, 1], [1, 0], [1, 0], [0, 1]])
    with pytest.raises(ValueError, match="spatial, permuted is no action of C4"):
        check_action(permuted(spatial("C4"), swap), torch.rand(2, 3, 3))


def test_what_is_no_permutation_for_each_element_is_refused():
    with pytest.raises(ValueError, match=r"a permutation for each of 2 elements, got \(3, 2\)"):
        permuted(spatial("flip"), torch.tensor([[0, 1]] * 3))
    with pytest.raises(ValueError, match="each of the 2 channels once, got"):
        permuted(spatial("flip"), torch.tensor([[0, 1], [1, 1]]))
    action = permuted(spatial("flip"), torch.tensor([[0, 1], [1, 0]]))
    with pytest.raises(ValueError, match="those of 2 channels, got 3"):
        action("m", torch.rand(3, 4, 4))
    with pytest.raises(ValueError, match="moves channels, so it needs"):
        action("m", torch.rand(2, 4))


def test_an_action_of_ones_own_with_a_group_of_ones_own():
    group, _ = s3()
    action = Action("colours", group, lambda g, z: z[..., [S3[g].index(k) for k in range(3)], :, :])
    assert obeys_the_law(action, torch.rand(2, 3, 4, 5))


def as_positions(z):
    """(…, P, C) of maps (…, C, H, W)."""
    return z.flatten(-2).mT


def mixing(action):
    """An action followed by a reflection of three channels for every element that the group counts as odd."""
    normal = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    mirror = torch.eye(3, dtype=torch.float64) - 2 * normal.outer(normal) / normal.dot(normal)
    matrices = [mirror if g % 2 else torch.eye(3, dtype=torch.float64) for g in range(action.group.order)]
    return Action("mixing", action.group, action.move, lambda channels: torch.stack(matrices))


AT_LAYERS = {
    **{name: (spatial(name), 3) for name in EXACT},
    **{f"regular {name}": (regular(name), 2 * groups.parse(name).order) for name in ("C2", "C4", "D4", "shift2*flip")},
    "trivial": (trivial("D4"), 3),
    "quotient": (quotient("C4", spatial("flip"), [0, 1, 0, 1]), 3),
    "quotient of fields": (quotient("C4", regular("flip"), [0, 1, 0, 1]), 4),
    "matrices": (mixing(spatial("C4")), 3),
    "permuted": (permuted(spatial("flip"), torch.tensor([[0, 1, 2], [2, 0, 1]])), 3),
    "permuted fields": (permuted(regular("flip"), torch.tensor([[0, 1, 2, 3], [2, 0, 1, 3]])), 4),
}


@pytest.mark.parametrize("name", AT_LAYERS)
def test_at_a_layer_positions_move_as_images_do(name):
    action, channels = AT_LAYERS[name]
    z = torch.rand(2, channels, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    at_layer = action.on((12, 12), channels)
    assert (at_layer.grid, at_layer.name, at_layer.group) == ((12, 12), action.name, action.group)
    for g, element in enumerate(action.group.elements):
        wanted = as_positions(action(element, z))
        np.testing.assert_allclose(at_layer(element, as_positions(z)), wanted, atol=1e-15)
        assert torch.equal(at_layer(g, as_positions(z)), at_layer(element, as_positions(z)))


@pytest.mark.parametrize("name", ["C2", "D2", "flip"])
def test_at_a_layer_that_is_no_square_rows_and_columns_stay_apart(name):
    z = np.random.default_rng(0).random((2, 3, 4, 5))
    at_layer = spatial(name).on((4, 5), channels=3)
    for element in at_layer.group.elements:
        wanted = oracles.move(name, element, z)
        np.testing.assert_array_equal(
            at_layer(element, as_positions(torch.from_numpy(z))), as_positions(torch.from_numpy(wanted))
        )


@pytest.mark.parametrize("name", ["permuted", "permuted fields"])
def test_an_action_at_a_layer_keeps_tables_and_values(name):
    action, channels = AT_LAYERS[name]
    at_layer = action.on((4, 4), channels)
    moved = at_layer.to(torch.device("cpu"))
    z = torch.rand(5, 16, channels)
    assert torch.equal(at_layer(1, z), moved(1, z))
    assert moved.kernel == at_layer.kernel == (0,)


def half_way(g, z):
    """A turn by 180° of which an eighth is left where it was: linear, and no action."""
    return z if g == 0 else 0.875 * torch.rot90(z, 2, (-2, -1)) + 0.125 * z


def test_an_action_that_interpolates_moves_positions_by_its_operator():
    action = Action("rough", groups.parse("C2"), half_way)
    z = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    at_layer = action.on((4, 5), channels=3)
    assert at_layer.positions is None
    for g in range(2):
        np.testing.assert_allclose(at_layer(g, as_positions(z)), as_positions(half_way(g, z)), atol=1e-15)
    assert at_layer.kernel == (0,)


def test_the_kernel_of_an_operator_is_found_by_a_probe():
    still = Action("still", groups.parse("C2"), lambda g, z: (z * 3) / 3)
    assert still.on((4, 5), channels=1).kernel == (0, 1)


@pytest.mark.parametrize(
    "move",
    [
        lambda g, z: z.abs() if g else z,
        lambda g, z: z.clamp(0, 1) if g else z,
        lambda g, z: 1 - z if g else z,
        lambda g, z: z * z if g else z,
        lambda g, z: z.sort(-1).values if g else z,
        lambda g, z: z.round() if g else z,
    ],
    ids=["abs", "clamp", "negative", "square", "sort", "round"],
)
def test_what_is_not_linear_is_refused_at_a_layer(move):
    with pytest.raises(ValueError, match="bent: r180 is not linear: what it does to a sum of images is not the sum"):
        Action("bent", groups.parse("C2"), move).on((4, 4), channels=1)


@pytest.mark.parametrize("name", EXACT)
def test_exact_actions_break_no_law_at_a_layer(name):
    assert law_error(spatial(name).on((12, 12), channels=2)) == 0


def test_the_law_error_says_how_far_an_action_is_off():
    assert law_error(trivial("C4").on((3, 3), channels=1)) == 0
    rough = Action("rough", groups.parse("C2"), half_way).on((4, 4), channels=1)
    # twice gives (7/8)² + (1/8)² of the image and 14/64 of its turn, instead of the image
    assert 0.1 < law_error(rough) <= 14 / 64


def test_the_law_error_is_the_same_each_time_and_draws_no_chance():
    rough = Action("rough", groups.parse("C2"), half_way).on((4, 4), channels=1)
    state = torch.get_rng_state()
    assert law_error(rough) == law_error(rough)
    assert torch.equal(state, torch.get_rng_state())


def test_permutations_of_positions_that_do_not_compose_are_refused():
    """Every element of C4 but the identity turns by 90°."""
    careless = Action("careless", groups.parse("C4"), lambda g, z: torch.rot90(z, min(g, 1), (-2, -1)))
    with pytest.raises(ValueError, match="careless is no action of C4: r90 and then r90 is not r180"):
        law_error(careless.on((4, 4), channels=1))


def test_an_order_of_products_that_is_turned_round_is_refused():
    group, _ = s3()
    moves = [[S3[g].index(k) for k in range(3)] for g in range(6)]
    forwards = Action("forwards", group, lambda g, z: z[..., moves[g]])
    backwards = Action("backwards", group, lambda g, z: z[..., list(S3[g])])
    assert law_error(forwards.on((1, 3), channels=1)) == 0
    with pytest.raises(ValueError, match=r"backwards is no action of S3: .* and then .* is not"):
        law_error(backwards.on((1, 3), channels=1))


@pytest.mark.parametrize("name", ["C4", "D4"])
def test_at_a_layer_quarter_turns_need_squares(name):
    with pytest.raises(ValueError, match="quarter turns need square images, got 3×5"):
        spatial(name).on((3, 5), channels=1)


def test_at_a_layer_shifts_need_a_height_that_divides():
    action = spatial("shift4")
    assert action.on((8, 5), channels=1).positions.shape == (4, 40)
    with pytest.raises(ValueError, match="height divisible by 4, got 6"):
        action.on((6, 5), channels=1)


def test_at_a_layer_fields_need_divisible_channels():
    with pytest.raises(ValueError, match="fields of C4 need channels divisible by 4, got 6"):
        regular("C4").on((3, 3), channels=6)
    with pytest.raises(ValueError, match="the matrices are those of 3 channels, got 4"):
        linear(*s3()).on((1, 1), channels=4)


def test_channels_alone_may_move():
    swap = Action("swap", groups.parse("C2"), None, lambda channels: torch.tensor([[0, 1], [1, 0]]))
    z = torch.rand(3, 6, 2)
    at_layer = swap.on((2, 3), channels=2)
    assert torch.equal(at_layer("r180", z), z.flip(-1))
    assert torch.equal(at_layer("e", z), z)
    assert at_layer.kernel == (0,)
    assert law_error(at_layer) == 0


@pytest.mark.parametrize("group", ["C4", "C8", "shift4", "C4*sign", "SO(2)?n=3"])
def test_actions_can_be_sent_to_other_processes(group):
    action = spatial(group)
    images = torch.rand(1, 8, 8)
    moved = action(1, images)
    sent = cloudpickle.loads(cloudpickle.dumps(action))
    assert torch.equal(sent(1, images), moved)


POINT_GROUPS = ["C4", "D4", "flip", "C2*flip"]


def moved_point(element, row, column, side):
    """Where numpy finds a single bright pixel again, as (x, y) about the middle."""
    image = np.zeros((side, side))
    image[row, column] = 1
    found_row, found_column = np.argwhere(element(torch.from_numpy(image)).numpy() == 1)[0]
    return [found_column - (side - 1) / 2, found_row - (side - 1) / 2]


@pytest.mark.parametrize("group", POINT_GROUPS)
def test_points_go_where_pixels_go(group):
    side, on_images = 7, spatial(group)
    on_points = coordinates(group).of_channels(2)
    for row, column in ((1, 5), (6, 2)):
        point = torch.tensor([column - 3.0, row - 3.0])
        for g in range(on_images.group.order):
            found = moved_point(lambda image, g=g: on_images(g, image), row, column, side)
            assert on_points(g, point).tolist() == pytest.approx(found)


@pytest.mark.parametrize("group", ["C8", "D3"])
def test_points_of_interpolating_groups_keep_their_length_and_the_law(group):
    on_points = coordinates(group).of_channels(4)
    points = torch.rand(5, 4, dtype=torch.float64)
    members = on_points.group
    for g in range(members.order):
        torch.testing.assert_close(on_points(g, points).norm(dim=-1), points.norm(dim=-1))
        for h in range(members.order):
            torch.testing.assert_close(on_points(g, on_points(h, points)), on_points(members.product(g, h), points))


@pytest.mark.parametrize("group", POINT_GROUPS)
def test_fields_of_offsets_turn_and_move(group):
    """The offset from every pixel to one mark points at the moved mark afterwards."""
    action = coordinates(group)
    places = torch.stack(torch.meshgrid(torch.arange(-3.0, 4), torch.arange(-3.0, 4), indexing="xy"))
    mark = torch.tensor([2.0, -1.0])
    for g in range(action.group.order):
        moved_mark = action.of_channels(2)(g, mark)
        assert torch.equal(action(g, mark[:, None, None] - places), moved_mark[:, None, None] - places)
    assert check_action(action, places) == 0


@pytest.mark.parametrize("group", POINT_GROUPS)
def test_boxes_go_where_filled_boxes_go(group):
    """A box of ones on an image is moved, and its sides are read off again."""
    on_images, on_boxes = spatial(group), boxes(group).of_channels(5)
    image = torch.zeros(8, 8)
    image[1:3, 2:7] = 1
    box = torch.tensor([0.5, -2.0, 5.0, 2.0, 9.0])
    for g in range(on_images.group.order):
        rows, columns = on_images(g, image).nonzero().T
        low = torch.stack([columns.min(), rows.min()]).float()
        high = torch.stack([columns.max(), rows.max()]).float() + 1
        assert on_boxes(g, box).tolist() == [*((low + high) / 2 - 4).tolist(), *(high - low).tolist(), 9]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: coordinates("shift4"), "shift4 shifts images, and no matrix shifts points"),
        (lambda: coordinates("T(2)?n=4"), "shifts images"),
        (lambda: coordinates("C4").of_channels(3), "channels must be even in number, got 3"),
        (lambda: boxes("C8"), "C8 turns boxes by less than quarter turns"),
        (lambda: boxes("C4").of_channels(3), "x, y, width, height and more, got 3 numbers"),
    ],
)
def test_points_and_boxes_that_cannot_move_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("of_points", [coordinates, boxes])
def test_points_are_not_turned_where_images_turn_otherwise(of_points):
    clockwise = Action("clockwise", groups.parse("C4"), lambda g, z: torch.rot90(z, -g, (-2, -1)))
    with pytest.raises(ValueError, match="clockwise moves images otherwise than C4 says of r90"):
        of_points(clockwise)
    named = Action("mine", groups.parse("C4"), lambda g, z: torch.rot90(z, g, (-2, -1)))
    assert torch.equal(
        of_points(named).of_channels(4)(1, torch.eye(4)), of_points("C4").of_channels(4)(1, torch.eye(4))
    )
