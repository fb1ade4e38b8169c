"""Steerable features: -1 with the representation that their field type names, and not with the identity on channels."""

import types

import numpy as np
import pytest
import torch
from torch import nn

import eedkit as ek
from eedkit.lab.networks import GroupConv
from eedkit.probe.fields import on_field
from eedkit.theory import actions

BOTH = ["channelwise", "channelwise_field"]


class Space:
    """As e2cnn's space of quarter turns; `order` lists its elements otherwise than the group of eedkit does."""

    trivial_repr = "trivial"

    def __init__(self, order=(0, 3, 1, 2)):
        self.fibergroup = types.SimpleNamespace(name="C4", elements=list(order) if order else None)


class FieldType:
    """As e2cnn's, of regular fields, of vectors that turn, or of scalars."""

    def __init__(self, gspace, representations):
        self.gspace = gspace
        self.kinds = representations

    def representation(self, element):
        turn = np.array([[0.0, -1.0], [1.0, 0.0]])
        shift = np.eye(4)[:, [1, 2, 3, 0]]
        kinds = {"regular": shift, "vector": turn, "trivial": np.eye(1)}
        blocks = [torch.from_numpy(np.linalg.matrix_power(kinds[kind], element)) for kind in self.kinds]
        return torch.block_diag(*blocks).numpy()

    def transform(self, tensor, element):
        turned = torch.rot90(tensor, element, (-2, -1))
        return torch.einsum("ij,bjhw->bihw", torch.from_numpy(self.representation(element)).to(turned), turned)


class GeometricTensor:
    def __init__(self, tensor, field_type):
        self.tensor = tensor
        self.type = field_type


class Lift(GroupConv):
    """A lifting convolution that says what its channels are."""

    def forward(self, z):
        return GeometricTensor(super().forward(z), FieldType(Space(), ["regular"] * 3))


class Gradient(nn.Module):
    """Differences of neighbours, a vector at every place: the horizontal one first, upwards the second."""

    def forward(self, z):
        padded = nn.functional.pad(z, (1, 1, 1, 1), mode="circular")
        right = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
        up = padded[..., :-2, 1:-1] - padded[..., 2:, 1:-1]
        return GeometricTensor(torch.cat([right, up], 1), FieldType(Space(), ["vector"]))


class Steerable(nn.Module):
    def __init__(self, field):
        super().__init__()
        self.field = field
        self.plain = nn.Conv2d(1, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        self.field(x)
        return self.head(self.plain(x).mean((-2, -1)))


def measured(field, group="C4", metrics=BOTH, **options):
    torch.manual_seed(0)
    images = torch.rand(8, 1, 9, 9)
    return ek.measure(Steerable(field), images, group=group, metrics=metrics, progress=False, device="cpu", **options)


@pytest.mark.parametrize("field", [Lift(1, 3, group="C4", lifts=True), Gradient()])
@pytest.mark.parametrize("group", ["C2", "C4"])
def test_fields_are_exact_by_their_own_representation(field, group):
    ds = measured(field, group).sel(layer="field")
    np.testing.assert_allclose(ds.channelwise_field, -1, atol=1e-6)
    assert ds.channelwise.mean() > -0.95
    assert ds.channelwise_field_null.mean() > -0.999


def test_regular_fields_of_ours_are_what_the_field_type_says():
    ds = measured(Lift(1, 3, group="C4", lifts=True), metrics=["channelwise_regular", "channelwise_field"])
    at_field = ds.sel(layer="field")
    np.testing.assert_array_equal(at_field.channelwise_field, at_field.channelwise_regular)
    np.testing.assert_array_equal(at_field.channelwise_field_null, at_field.channelwise_regular_null)


def test_layers_that_name_no_representation_have_no_value():
    ds = measured(Gradient())
    assert ds.channelwise_field.sel(layer="plain").isnull().all()
    assert "names no representation" in ds.channelwise_field_nan_reason.sel(layer="plain").item()


def test_a_group_that_the_field_does_not_have_is_the_reason():
    ds = measured(Gradient(), "D4")
    reason = ds.channelwise_field_nan_reason.sel(layer="field").item()
    assert "0 elements of the field's group C4 move images as m of D4 does" in reason


def test_fields_of_continuous_groups_are_refused():
    with pytest.raises(ValueError, match="the field's group C4 is continuous and lists no elements"):
        on_field(actions.spatial("C4"), FieldType(Space(order=()), ["vector"]))


def test_a_field_of_another_width_is_refused():
    on_vectors = on_field(actions.spatial("C4"), FieldType(Space(), ["vector"]))
    with pytest.raises(ValueError, match="the field has 2 channels, got 3"):
        on_vectors.on((5, 5), 3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("turns", [4, 8])
def test_networks_of_e2cnn_are_exact_by_their_representation(turns):
    pytest.importorskip("e2cnn")
    from e2cnn import gspaces
    from e2cnn import nn as e2nn

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            space = gspaces.Rot2dOnR2(turns)
            self.scalars = e2nn.FieldType(space, [space.trivial_repr])
            regular = e2nn.FieldType(space, 2 * [space.regular_repr])
            vectors = e2nn.FieldType(space, [space.trivial_repr, space.irrep(1)])
            self.lift = e2nn.R2Conv(self.scalars, regular, kernel_size=5, padding=2)
            self.act = e2nn.ReLU(regular)
            self.steer = e2nn.R2Conv(regular, vectors, kernel_size=5, padding=2)
            self.pool = e2nn.GroupPooling(regular)
            self.head = nn.Linear(2, 3)

        def forward(self, x):
            fields = self.act(self.lift(e2nn.GeometricTensor(x, self.scalars)))
            self.steer(fields)
            return self.head(self.pool(fields).tensor.mean((-2, -1)))

    torch.manual_seed(0)
    ds = ek.measure(
        Network(), torch.rand(8, 1, 17, 17), group="C4", metrics=BOTH, layers=["act", "steer"], progress=False
    )
    np.testing.assert_allclose(ds.channelwise_field.sel(layer=["act", "steer"]), -1, atol=1e-5)
    assert ds.channelwise.sel(layer=["act", "steer"]).mean(["element", "sample"]).min() > -0.95
