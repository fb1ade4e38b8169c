"""How the channels of steerable features move, read from the field type that e2cnn and escnn give with their tensors.

Knows the interface that the two share and imports neither. Costs one small image under every element of the field's group.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from eedkit.theory.actions import Action

SIDE = 33
"""Of the image by which elements of two groups are told to be the same."""
SAME = 0.1
"""How far, of its length, the image may be off after two moves that are the same: interpolations differ."""


def field_type_of(output: Any) -> Any:
    """The field type of a GeometricTensor; None for anything else.

    >>> field_type_of(torch.zeros(1)) is None
    True
    """
    field_type = getattr(output, "type", None)
    is_one = isinstance(getattr(output, "tensor", None), Tensor) and hasattr(field_type, "representation")
    return field_type if is_one else None


def on_field(action: Action, field_type: Any) -> Action:
    """G acting on a steerable field: φ(g, z)(p) = ρ(g) z(g⁻¹p), ρ the field's representation (Weiler & Cesa 2019).

    An element of G is that element of the field's own group which moves an image as it does, so that no order or direction
    of elements is assumed.

    Parameters
    ----------
    action : Action
        On images.
    field_type : FieldType
        Of e2cnn or escnn.

    Raises
    ------
    ValueError
        The field's group is continuous, or none or several of its elements move an image as some element of G does; on use,
        when there are not as many channels as the field has.
    """
    matrices = _representation(action, field_type)
    come_from = matrices.argmax(-1)
    is_permutation = torch.allclose(torch.eye(matrices.shape[-1]).to(matrices)[come_from], matrices, atol=1e-6)

    def channel_moves(channels: int) -> Tensor:
        if channels != matrices.shape[-1]:
            raise ValueError(f"the field has {matrices.shape[-1]} channels, got {channels}")
        return come_from if is_permutation else matrices

    return Action("field", action.group, action.move, channel_moves, inside=action.inside)


def _representation(action: Action, field_type: Any) -> Tensor:
    """(g, C, C), the matrices of the elements of G in the field's representation."""
    space = field_type.gspace
    elements = getattr(space.fibergroup, "elements", None)
    if elements is None:
        raise ValueError(
            f"the field's group {space.fibergroup.name} is continuous and lists no elements; restrict the network to a finite "
            "subgroup"
        )
    on_plane = replace(action, channel_moves=None, colour_moves=None)
    image = _blobs()
    if action.inside is not None:
        image = on_plane(0, image)
    scalar = type(field_type)(space, [space.trivial_repr])
    moved_by_field = [scalar.transform(image[None, None], element)[0, 0] for element in elements]
    matrices = []
    for g, name in enumerate(action.group.elements):
        moved = on_plane(g, image)
        off = torch.stack([torch.linalg.vector_norm(moved - of_field) for of_field in moved_by_field])
        off /= torch.linalg.vector_norm(image)
        alike = (off <= SAME).nonzero().flatten().tolist()
        if len(alike) != 1:
            raise ValueError(
                f"{len(alike)} elements of the field's group {space.fibergroup.name} move images as {name} of "
                f"{action.group.name} does; measure under a group that the network was built for"
            )
        matrices.append(torch.as_tensor(field_type.representation(elements[alike[0]]), dtype=torch.float64))
    return torch.stack(matrices)


def _blobs() -> Tensor:
    """A smooth image without symmetry, dark at its rim."""
    middle = (SIDE - 1) / 2
    places = torch.arange(SIDE, dtype=torch.float32) - middle
    image = torch.zeros(SIDE, SIDE)
    for right, down, height in ((9.0, 1.0, 1.0), (-3.0, 8.0, 0.7), (-7.0, -6.0, 0.4), (2.0, -4.0, -0.6)):
        distance = (places[:, None] - down) ** 2 + (places - right) ** 2
        image += height * torch.exp(-distance / 8)
    return image
