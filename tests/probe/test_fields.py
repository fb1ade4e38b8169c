"""Steerable features: exact by the representation that their field type names, and not with the identity on channels."""

import math
import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from eedkit.errors import Undefined
from eedkit.lab.networks import GroupConv
from eedkit.probe.fields import field
from eedkit.probe.layers import find_layers, tap
from eedkit.theory import actions

TURN = np.array([[0.0, -1.0], [1.0, 0.0]])


class Space:
    """As e2cnn's space of quarter turns; `elements` come in another order than in eedkit's groups."""

    trivial_repr = "trivial"

    def __init__(self, fibergroup=None):
        self.fibergroup = fibergroup or types.SimpleNamespace(name="C4", elements=[0, 3, 1, 2])

    def plane(self, element):
        """The 2×2 matrix of an element: a quarter turn's number."""
        return np.linalg.matrix_power(TURN, element)


class ContinuousSpace(Space):
    """As e2cnn's of SO(2) or O(2), whose elements are angles or pairs; as escnn's with elements of a class of its own."""

    def __init__(self, *, flips, is_escnn):
        group = types.SimpleNamespace(name="O(2)" if flips else "SO(2)", elements=None)
        group.identity = (0, 0.0) if flips else 0.0
        if is_escnn:
            group.identity = types.SimpleNamespace(value=group.identity)
            group.element = lambda value: types.SimpleNamespace(value=value)
            group.elements = []
        super().__init__(group)

    def plane(self, element):
        element = getattr(element, "value", element)
        flip, angle = element if isinstance(element, tuple) else (0, element)
        # the reflection is about the horizontal axis, as no element of eedkit's is
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        return turn @ np.diag([1.0, (-1.0) ** flip])


class FieldType:
    """As e2cnn's, of vectors that turn, scalars or regular fields."""

    def __init__(self, gspace, representations):
        self.gspace = gspace
        self.kinds = representations

    def representation(self, element):
        blocks = {"trivial": lambda: np.eye(1), "vector": lambda: self.gspace.plane(element)}
        blocks["regular"] = lambda: np.linalg.matrix_power(np.eye(4)[:, [1, 2, 3, 0]], element)
        return torch.block_diag(*[torch.from_numpy(blocks[kind]()) for kind in self.kinds]).numpy()

    def transform(self, tensor, element):
        """Moved by sampling: (x, y) upwards is read at the inverse of the element's matrix."""
        (a, b), (c, d) = np.linalg.inv(self.gspace.plane(element))
        grid = F.affine_grid(torch.tensor([[[a, -b, 0], [-c, d, 0]]]).float(), tensor.shape, align_corners=True)
        moved = F.grid_sample(tensor.float(), grid, align_corners=True)
        return torch.einsum("ij,bjhw->bihw", torch.from_numpy(self.representation(element)).to(moved), moved)


class GeometricTensor:
    def __init__(self, tensor, field_type):
        self.tensor = tensor
        self.type = field_type


class Steerable(nn.Module):
    """`field` gives a GeometricTensor, `plain` a map; GeometricTensors have no size that experiments could follow."""

    def __init__(self, features, field_type):
        super().__init__()
        self.features = features
        self.field = nn.Identity()
        self.field.forward = lambda x: GeometricTensor(features(x), field_type)
        self.plain = nn.Conv2d(1, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        if x.shape[-1] != 9:
            raise ValueError("for one size")
        self.field(x)
        return self.head(self.plain(x).mean((-2, -1)))


def on_field(action, field_type):
    return field(action, types.SimpleNamespace(field_type=field_type))


def gradient(z):
    """Differences of neighbours, a vector at every place: to the right, and upwards."""
    padded = F.pad(z, (1, 1, 1, 1), mode="circular")
    right = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    up = padded[..., :-2, 1:-1] - padded[..., 2:, 1:-1]
    return torch.cat([right, up], 1)


def lift():
    torch.manual_seed(0)
    return GroupConv(1, 3, group="C4", lifts=True)


def layer_of(model):
    return find_layers(model.eval(), torch.rand(2, 1, 9, 9), layers=["field", "plain"]).layers[0]


def worst(features, field_type, group, on_layer=field):
    """How far the field of a moved image is from the moved field, at most, of its largest value."""
    model = Steerable(features, field_type)
    layer = layer_of(model)
    action = actions.spatial(group)
    image = torch.rand(1, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    seen = []
    with torch.no_grad(), tap(model, [layer], lambda layer, z: seen.append(layer.read(z))) as begin:
        for g in range(action.group.order):
            begin()
            model(action(g, image))
    moved = on_layer(action, layer).on(layer.grid, layer.channels)
    off = [(z - moved(g, seen[0])).abs().max() for g, z in enumerate(seen)]
    return float(max(off) / seen[0].abs().max())


FINITE = {"vectors": (gradient, ["vector"]), "regular": (lift(), ["regular"] * 3)}


@pytest.mark.parametrize("group", ["C2", "C4"])
@pytest.mark.parametrize("case", FINITE)
def test_fields_are_exact_by_their_own_representation(case, group):
    features, kinds = FINITE[case]
    field_type = FieldType(Space(), kinds)
    assert worst(features, field_type, group) < 1e-6
    assert worst(features, field_type, group, on_layer=lambda action, _: action) > 0.1


def test_regular_fields_of_ours_move_as_the_field_type_says():
    action = actions.spatial("C4")
    of_field = on_field(action, FieldType(Space(), ["regular"] * 3)).on((9, 9), 12)
    assert torch.equal(of_field.channels, actions.regular(action).on((9, 9), 12).channels)


@pytest.mark.parametrize("is_escnn", [False, True])
@pytest.mark.parametrize(("flips", "group"), [(False, "C4"), (True, "C4"), (True, "D4")])
def test_fields_of_continuous_groups_are_exact(flips, group, is_escnn):
    field_type = FieldType(ContinuousSpace(flips=flips, is_escnn=is_escnn), ["vector"])
    assert worst(gradient, field_type, group) < 1e-6


def test_of_a_sample_of_turns_those_the_other_way_are_tried_too():
    space = ContinuousSpace(flips=False, is_escnn=False)
    plane = space.plane
    space.plane = lambda angle: plane(-angle)
    action = actions.spatial("SO(2)?n=3")
    matrices = on_field(action, FieldType(space, ["vector"])).on((9, 9), 2).channels
    turns = [math.acos(float(matrix[0, 0].clamp(-1, 1))) for matrix in matrices]
    wanted = [math.radians(min(angle, 360 - angle)) for angle in action.group.angles]
    assert turns == pytest.approx(wanted)


def test_a_geometric_tensor_is_a_map_without_an_experiment():
    layer = layer_of(
        Steerable(lambda x: x.mean((-2, -1), keepdim=True).expand(-1, 2, 9, 9) + 0, FieldType(Space(), ["vector"]))
    )
    assert (str(layer.layout), layer.grid) == ("b c h w", (9, 9))


@pytest.mark.parametrize("space", [Space(), ContinuousSpace(flips=False, is_escnn=False)])
def test_a_group_that_the_field_does_not_have_is_the_reason(space):
    with pytest.raises(Undefined, match=r"0 elements of the field's group (C4|SO\(2\)) move images as m of D4 does"):
        on_field(actions.spatial("D4"), FieldType(space, ["vector"]))


def test_layers_that_name_no_representation_and_other_widths_are_undefined():
    with pytest.raises(Undefined, match="names no representation"):
        on_field(actions.spatial("C4"), None)
    with pytest.raises(Undefined, match="the field has 2 channels, got 3"):
        on_field(actions.spatial("C4"), FieldType(Space(), ["vector"])).on((5, 5), 3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("turns", [4, 8, -1])
def test_networks_of_e2cnn_are_exact_by_their_representation(turns):
    pytest.importorskip("e2cnn")
    from e2cnn import gspaces
    from e2cnn import nn as e2nn

    torch.manual_seed(0)
    space = gspaces.Rot2dOnR2(turns, maximum_frequency=2) if turns < 0 else gspaces.Rot2dOnR2(turns)
    scalars = e2nn.FieldType(space, [space.trivial_repr])
    vectors = e2nn.FieldType(space, [space.trivial_repr, space.irrep(1)])
    conv = e2nn.R2Conv(scalars, vectors, kernel_size=5, padding=2)
    assert worst(lambda x: conv(e2nn.GeometricTensor(x, scalars)).tensor, vectors, "C4") < 1e-5
