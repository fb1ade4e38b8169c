"""How the channels of steerable features move, read from the field type that e2cnn and escnn give with their tensors.

Knows the interface that the two share and imports neither. Costs one small image under the elements of the field's group.
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eedkit.errors import Undefined
from eedkit.theory.actions import Action

SIDE = 33
"""Of the image by which elements of two groups are told to be the same."""
SAME = 0.1
"""How far, of its length, the image may be off after two moves that are the same: interpolations differ."""


def field_type_of(output: Any) -> Any:
    """The field type of a GeometricTensor; None for anything else."""
    field_type = getattr(output, "type", None)
    is_one = isinstance(getattr(output, "tensor", None), Tensor) and hasattr(field_type, "representation")
    return field_type if is_one else None


def field(action: Action, layer: Any) -> Action:
    """G acting on a layer's steerable field: φ(g, z)(p) = ρ(g) z(g⁻¹p), ρ the field's representation (Weiler & Cesa 2019).

    For `Metric.action`. An element of G is that element of the field's own group which moves an image as it does, so that no
    order or direction of elements is assumed. Of a continuous group the turns by the angles of G are tried, and its reflections.

    Raises
    ------
    Undefined
        The layer names no representation; none or several elements of the field's group move an image as some element of G
        does; on use, when there are not as many channels as the field has.
    """
    field_type = layer.field_type
    if field_type is None:
        raise Undefined(
            "its output names no representation of its channels, as a GeometricTensor of e2cnn or escnn does"
        )
    matrices = _representation(action, field_type)
    come_from = matrices.argmax(-1)
    is_permutation = torch.allclose(torch.eye(matrices.shape[-1]).to(matrices)[come_from], matrices, atol=1e-6)

    def channel_moves(channels: int) -> Tensor:
        if channels != matrices.shape[-1]:
            raise Undefined(f"the field has {matrices.shape[-1]} channels, got {channels}")
        return come_from if is_permutation else matrices

    return Action("field", action.group, action.move, channel_moves, inside=action.inside)


def _representation(action: Action, field_type: Any) -> Tensor:
    """(g, C, C), the matrices of the elements of G in the field's representation."""
    space = field_type.gspace
    elements = _elements(space.fibergroup, action.group.angles)
    on_plane = Action(action.name, action.group, action.move, inside=action.inside)
    image = _blobs()
    if action.inside is not None:
        image = on_plane(0, image)
    scalar = type(field_type)(space, [space.trivial_repr])
    moved_by_field = [torch.as_tensor(scalar.transform(image[None, None], element))[0, 0] for element in elements]
    matrices = []
    for g, name in enumerate(action.group.elements):
        moved = on_plane(g, image)
        alike = []
        for element, of_field in zip(elements, moved_by_field, strict=True):
            off = torch.linalg.vector_norm(moved - of_field)
            if off <= SAME * torch.linalg.vector_norm(image):
                alike.append(element)
        if len(alike) != 1:
            raise Undefined(
                f"{len(alike)} elements of the field's group {space.fibergroup.name} move images as {name} of "
                f"{action.group.name} does; measure under a group that the network was built for"
            )
        matrix = np.asarray(field_type.representation(alike[0]))
        matrices.append(torch.as_tensor(matrix, dtype=torch.float64))
    return torch.stack(matrices)


def _elements(field_group: Any, angles: Iterable[float]) -> list[Any]:
    """All elements of a finite group; of SO(2) and O(2) the turns by these angles, in degrees, and their reflections."""
    if field_group.elements:
        return list(field_group.elements)
    turns = set()
    for angle in angles:
        if not math.isnan(angle):  # as of a group without moves
            turns |= {round(math.radians(angle % 360), 12), round(math.radians(-angle % 360), 12)}
    # escnn has values for elements of a class of its own, e2cnn the values alone
    identity = getattr(field_group.identity, "value", field_group.identity)
    values: list[Any] = sorted(turns)
    if isinstance(identity, tuple):
        values = [(flip, turn) for flip in (0, 1) for turn in values]
    return [field_group.element(value) for value in values] if hasattr(field_group, "element") else values


def _blobs() -> Tensor:
    """A smooth image without symmetry, dark at its rim."""
    middle = (SIDE - 1) / 2
    places = torch.arange(SIDE, dtype=torch.float32) - middle
    image = torch.zeros(SIDE, SIDE)
    for right, down, height in ((9.0, 1.0, 1.0), (-3.0, 8.0, 0.7), (-7.0, -6.0, 0.4), (2.0, -4.0, -0.6)):
        distance = (places[:, None] - down) ** 2 + (places - right) ** 2
        image += height * torch.exp(-distance / 8)
    return image
