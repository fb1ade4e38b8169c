"""Finite groups acting on tensors: φ(g, x) for images, feature maps, vectors; the kernel of an action; its check.

Knows torch and groups, nothing of models or labels. An exact action costs one gather of the tensor.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eedkit.theory import groups
from eedkit.theory.groups import Group, Move


@dataclass(frozen=True)
class Action:
    """φ: G × Z → Z with φ(g, φ(h, z)) = φ(gh, z) (Kvinge et al. 2022, section 3); call it as `action(g, z)`.

    Parameters
    ----------
    name : what the action is called in results and errors
    group : the group that acts
    move : (index of g, tensor (…, *z)) -> tensor of the same shape; raises ValueError where the action is not defined

    >>> quarter = spatial("C4")
    >>> quarter("r90", torch.tensor([[1, 2], [3, 4]]))
    tensor([[2, 4],
            [1, 3]])
    """

    name: str
    group: Group
    move: Callable[[int, Tensor], Tensor]

    def __call__(self, g: int | str, z: Tensor) -> Tensor:
        """φ(g, z), of the shape of z; ValueError when the action changes the shape or is not defined on it."""
        g = self.group.index(g)
        moved = self.move(g, z)
        if moved.shape != z.shape:
            raise ValueError(
                f"{self.name}: {self.group.elements[g]} turned shape {tuple(z.shape)} into {tuple(moved.shape)}; "
                "an action keeps the shape"
            )
        return moved


def trivial(group: Group | str) -> Action:
    """The action by which nothing moves: φ(g, z) = z. Equivariance towards it is invariance.

    >>> trivial("C4")("r90", torch.tensor([1.0, 2.0]))
    tensor([1., 2.])
    """
    return Action("trivial", groups.parse(group), lambda _, z: z)


def spatial(group: Group | str) -> Action:
    """G acting on the last two dimensions (…, H, W) by exact index permutations: quarter turns, mirrors, rolls.

    Raises
    ------
    ValueError
        At once when the group has no moves on the plane, when one of its elements is no exact move (45° say), or when
        the moves do not compose as the table says (C4*flip: a turn and a mirror do not commute; D4 is meant).
        On use when the shape does not allow the move: quarter turns need squares, shifts a divisible height.

    >>> spatial("flip")("m", torch.tensor([[1, 2, 3]]))
    tensor([[3, 2, 1]])
    """
    group = groups.parse(group)
    if group.moves is None:
        raise ValueError(f"{group.name} has no moves on the plane; give an Action of your own instead of a Group")
    for element, moves in zip(group.elements, group.moves, strict=True):
        for step, by in moves:
            if step == "rotate" and by % 90:
                raise ValueError(
                    f"{group.name} has {element}, which is no quarter turn and would interpolate; exact are C1, C2, C4, "
                    "D1, D2, D4, flip, shiftn and their products"
                )
    action = Action("spatial", group, lambda g, z: _apply_moves(group.moves[g], z))
    # a side that every shift of the group divides, so that the probe is defined
    side = 3 * math.lcm(*(by.denominator for moves in group.moves for step, by in moves if step == "shift"))
    check_action(action, torch.arange(float(side * side)).reshape(side, side))
    return action


def _apply_moves(moves: Sequence[Move], z: Tensor) -> Tensor:
    height, width = z.shape[-2:]
    for step, by in moves:
        if step == "rotate":
            if by % 180 and height != width:
                raise ValueError(f"quarter turns need square images, got {height}×{width}; centre-crop or pad first")
            z = torch.rot90(z, int(by // 90), (-2, -1))
        elif step == "mirror":
            z = z.flip(-1)
        else:
            if height % by.denominator:
                raise ValueError(
                    f"shifts by 1/{by.denominator} of the height need a height divisible by {by.denominator}, got {height}"
                )
            z = z.roll(int(by * height), -2)
    return z


def regular(action: Action | Group | str) -> Action:
    """G acting on channels that are fields of the regular representation: (…, F·|G|, H, W).

    Each field holds one map per element; φ(g, z) moves every map on the plane and sends map h to map gh
    (Cohen & Welling 2016). The features of a group convolution carry this action.

    Raises
    ------
    ValueError
        On use, when |G| does not divide the number of channels.

    >>> z = torch.arange(4.0).reshape(4, 1, 1)
    >>> regular("C4")("r90", z).flatten()
    tensor([3., 0., 1., 2.])
    """
    plane = action if isinstance(action, Action) else spatial(action)
    group = plane.group

    def move(g: int, z: Tensor) -> Tensor:
        if z.dim() < 3 or z.shape[-3] % group.order:
            channels = z.shape[-3] if z.dim() >= 3 else 0
            raise ValueError(f"fields of {group.name} need channels divisible by {group.order}, got {channels}")
        come_from = [group.product(group.inverse(g), k) for k in range(group.order)]
        fields = plane(g, z).unflatten(-3, (-1, group.order))
        return fields[..., come_from, :, :].flatten(-4, -3)

    return Action("regular", group, move)


def permuted(action: Action, permutations: Tensor) -> Action:
    """An action followed by a permutation of channels: φ_σ(g, z)_i = φ(g, z)_(σ_g(i)) for z (…, C, H, W) *[ours]*.

    Permutations that were fitted need not compose, and then this obeys no group law; `check_action` tells.

    Parameters
    ----------
    permutations : (g, C), for every element from which channel each channel comes

    Raises
    ------
    ValueError
        There is not one permutation for each element; on use, when there are not C channels.

    >>> swap = permuted(spatial("flip"), torch.tensor([[0, 1], [1, 0]]))
    >>> swap("m", torch.tensor([[[1, 2]], [[3, 4]]])).tolist()
    [[[4, 3]], [[2, 1]]]
    """
    order = action.group.order
    if permutations.dim() != 2 or len(permutations) != order:
        raise ValueError(f"expected a permutation for each of {order} elements, got {tuple(permutations.shape)}")
    width = permutations.shape[1]
    if not torch.equal(permutations.sort(1).values, torch.arange(width).to(permutations).expand(order, width)):
        raise ValueError(f"every row must have each of the {width} channels once, got {permutations.tolist()}")

    def move(g: int, z: Tensor) -> Tensor:
        if z.dim() < 3 or z.shape[-3] != width:
            channels = z.shape[-3] if z.dim() >= 3 else 0
            raise ValueError(f"the permutations are those of {width} channels, got {channels}")
        return action(g, z).index_select(-3, permutations[g].to(z.device))

    return Action(f"{action.name}, permuted", action.group, move)


def linear(group: Group | str, matrices: Tensor) -> Action:
    """G acting on vectors (…, d) by matrices ρ(g) with ρ(g) ρ(h) = ρ(gh).

    Parameters
    ----------
    matrices : (g, d, d), in the group's order

    Raises
    ------
    ValueError
        The matrices are no representation of the group; the message names the elements.

    >>> swap = torch.stack([torch.eye(2), torch.eye(2).flip(0)])
    >>> linear("C2", swap)("r180", torch.tensor([1.0, 2.0]))
    tensor([2., 1.])
    """
    group = groups.parse(group)
    matrices = torch.as_tensor(matrices)
    if matrices.dim() != 3 or matrices.shape[0] != group.order or matrices.shape[1] != matrices.shape[2]:
        raise ValueError(f"expected one square matrix for each of {group.order} elements, got {tuple(matrices.shape)}")
    action = Action("linear", group, lambda g, z: z @ matrices[g].to(z).T)
    check_action(action, torch.eye(matrices.shape[-1], dtype=matrices.dtype), atol=1e-5)
    return action


def quotient(group: Group | str, onto: Action, projection: Sequence[int]) -> Action:
    """G acting through a quotient: φ(g, z) = φ_Q(π(g), z), so that the kernel of π acts as the identity.

    Parameters
    ----------
    onto : the quotient's action
    projection : for every element of G the index of its image in the quotient

    Raises
    ------
    ValueError
        π is no homomorphism; the message names the elements.

    >>> c4_through_c2 = quotient("C4", spatial("flip"), projection=[0, 1, 0, 1])
    >>> kernel(c4_through_c2, (1, 3))
    (0, 2)
    """
    group = groups.parse(group)
    image = [onto.group.index(k) for k in projection]
    if len(image) != group.order:
        raise ValueError(f"a projection of {group.name} names {group.order} images, got {len(image)}")
    for g in range(group.order):
        for h in range(group.order):
            if image[group.product(g, h)] != onto.group.product(image[g], image[h]):
                g, h = group.elements[g], group.elements[h]
                raise ValueError(f"not a homomorphism onto {onto.group.name}: π({g} {h}) differs from π({g}) π({h})")
    return Action(f"{onto.name} through {onto.group.name}", group, lambda g, z: onto(image[g], z))


def kernel(action: Action, shape: Sequence[int]) -> tuple[int, ...]:
    """ker φ = {g : g acts as the identity on Z} (Kvinge et al. 2022, before eq. 2), found by probing Z at a shape.

    The kernel belongs to the space: C4 is faithful on a 6×6 map and trivial on a 1×1 map.

    Parameters
    ----------
    shape : *z, the shape of one point of Z, without the batch

    Returns
    -------
    indices of the elements that move nothing, the identity among them

    Raises
    ------
    ValueError
        The action is not defined at this shape.

    >>> kernel(spatial("C4"), (6, 6)), kernel(spatial("C4"), (1, 1))
    ((0,), (0, 1, 2, 3))
    """
    probe = torch.rand(tuple(shape), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    # a tolerance, for matrices; entries of the probe differ by far more than that
    return tuple(g for g in range(action.group.order) if torch.allclose(action(g, probe), probe, rtol=0, atol=1e-9))


def is_faithful(action: Action, shape: Sequence[int]) -> bool:
    """Whether only the identity moves nothing at this shape.

    >>> is_faithful(spatial("D4"), (5, 5))
    True
    """
    return len(kernel(action, shape)) == 1


def check_action(action: Action, z: Tensor, *, atol: float = 0.0) -> float:
    """The largest |φ(g, φ(h, z)) − φ(gh, z)| over all pairs, and |φ(e, z) − z|: 0 for an exact action.

    Parameters
    ----------
    z : (…, *z), a point of the space or a batch of them
    atol : how much deviation is allowed

    Raises
    ------
    ValueError
        The deviation is above `atol` (the message names g and h), or the shape changes.

    >>> check_action(spatial("D4"), torch.rand(3, 5, 5))
    0.0
    """
    group, worst = action.group, 0.0
    moved = [action(g, z) for g in range(group.order)]
    errors = [(_largest(moved[0] - z), f"{group.elements[0]} is not the identity")]
    for g in range(group.order):
        for h in range(group.order):
            e, f = group.elements[g], group.elements[h]
            together = group.elements[group.product(g, h)]
            error = _largest(action(g, moved[h]) - moved[group.product(g, h)])
            errors.append((error, f"{f} and then {e} is not {together}"))
    worst, law = max(errors, key=lambda pair: pair[0])
    if worst > atol:
        raise ValueError(f"{action.name} is no action of {group.name}: {law} (off by {worst:.3g}, allowed {atol:g})")
    return worst


def _largest(difference: Tensor) -> float:
    return difference.abs().max().item() if difference.numel() else 0.0
