"""Finite groups acting on tensors: an action at a layer moves positions and channels; its kernel; its check.

An exact action is a permutation of positions and one of channels, found once per grid and applied as one gather.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from eedkit.theory import groups
from eedkit.theory.groups import Group, Move


@dataclass(frozen=True)
class LayerAction:
    """An action on the functions of one layer: arrays (…, P, C), P positions × C channels; call it as `action(g, z)`.

    Parameters
    ----------
    name : str
        What the action is called in results and errors.
    group : Group
        The group that acts.
    grid : (height, width)
        The P positions are the cells of this grid, row by row.
    positions : Tensor (g, P), or None
        For every element from which position each position comes; None where `operator` moves them, or nothing does.
    channels : Tensor (g, C) or (g, C, C), or None
        For every element from which channel each channel comes, or the matrix that mixes them; None: they stay.
    operator : callable, or None
        (index of g, tensor (…, H, W)) -> the moved tensor, for actions that interpolate.

    >>> quarter = spatial("C4").on((2, 2), channels=1)
    >>> quarter("r90", torch.tensor([[1], [2], [3], [4]])).flatten()
    tensor([2, 4, 1, 3])
    >>> quarter.kernel
    (0,)
    """

    name: str
    group: Group
    grid: tuple[int, int]
    positions: Tensor | None = None
    channels: Tensor | None = None
    operator: Callable[[int, Tensor], Tensor] | None = None

    def __call__(self, g: int | str, z: Tensor) -> Tensor:
        """φ(g, z), of the shape of z (…, P, C)."""
        g = self.group.index(g)
        if self.positions is not None:
            z = z.index_select(-2, self.positions[g])
        elif self.operator is not None:
            z = self.operator(g, z.mT.unflatten(-1, self.grid)).flatten(-2).mT
        if self.channels is None:
            return z
        if self.channels.dim() == 2:
            return z.index_select(-1, self.channels[g])
        return z @ self.channels[g].to(z).T

    @property
    def kernel(self) -> tuple[int, ...]:
        """ker φ = {g : g acts as the identity on Z} (Kvinge et al. 2022, before eq. 2), read off the permutations."""
        return tuple(g for g in range(self.group.order) if self._positions_stay(g) and self._channels_stay(g))

    def _positions_stay(self, g: int) -> bool:
        if self.positions is not None:
            return torch.equal(self.positions[g], torch.arange(self.positions.shape[1]).to(self.positions))
        if self.operator is None:
            return True
        probe = torch.rand(self.grid, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        return torch.allclose(self.operator(g, probe), probe, rtol=0, atol=1e-9)

    def _channels_stay(self, g: int) -> bool:
        if self.channels is None:
            return True
        stay = torch.arange(self.channels.shape[1]) if self.channels.dim() == 2 else torch.eye(self.channels.shape[1])
        return torch.allclose(self.channels[g].double(), stay.to(self.channels).double(), rtol=0, atol=1e-9)

    def to(self, device: torch.device) -> "LayerAction":
        """The same action with its tables on a device."""
        positions = None if self.positions is None else self.positions.to(device)
        channels = None if self.channels is None else self.channels.to(device)
        return LayerAction(self.name, self.group, self.grid, positions, channels, self.operator)


@dataclass(frozen=True)
class Action:
    """φ: G × Z → Z with φ(g, φ(h, z)) = φ(gh, z) (Kvinge et al. 2022, section 3), for images and maps of any size.

    Call it as `action(g, z)` on tensors (…, C, H, W), or ask for the action at one layer with `on(grid, channels)`.

    Parameters
    ----------
    name : str
        What the action is called in results and errors.
    group : Group
        The group that acts.
    move : callable, or None
        (index of g, tensor (…, H, W)) -> tensor of the same shape, linear in the tensor; raises ValueError where the action
        is not defined. None: no position moves.
    channel_moves : callable, or None
        Number of channels C -> (g, C), for every element from which channel each channel comes, or (g, C, C), matrices;
        raises ValueError where the action is not defined. None: no channel moves.

    >>> quarter = spatial("C4")
    >>> quarter("r90", torch.tensor([[1, 2], [3, 4]]))
    tensor([[2, 4],
            [1, 3]])
    """

    name: str
    group: Group
    move: Callable[[int, Tensor], Tensor] | None = None
    channel_moves: Callable[[int], Tensor] | None = None
    _resolved: dict[tuple[int, int], Tensor | None] = field(default_factory=dict, repr=False, compare=False)

    def __call__(self, g: int | str, z: Tensor) -> Tensor:
        """φ(g, z), of the shape of z; ValueError when the action changes the shape or is not defined on it."""
        g = self.group.index(g)
        moved = self._moved(g, z)
        if self.channel_moves is None:
            return moved
        if z.dim() < 3:
            raise ValueError(f"{self.name} moves channels, so it needs (…, C, H, W), got {tuple(z.shape)}")
        channels = LayerAction(self.name, self.group, (1, 1), channels=self.channel_moves(z.shape[-3]).to(z.device))
        return channels(g, moved.movedim(-3, -1)).movedim(-1, -3)

    def on(self, grid: Sequence[int], channels: int) -> LayerAction:
        """The action at a layer whose positions lie on `grid`, found by moving the image of their indices.

        Raises
        ------
        ValueError
            The action is not defined at this size, changes the shape, or is not linear; the element is named.
        """
        height, width = grid
        grid = (int(height), int(width))
        if self.move is not None and grid not in self._resolved:
            self._resolved[grid] = self._permutations(grid)
        positions = self._resolved.get(grid)
        operator = self.move if positions is None else None
        moves = None if self.channel_moves is None else self.channel_moves(channels)
        return LayerAction(self.name, self.group, grid, positions, moves, operator)

    def _moved(self, g: int, z: Tensor) -> Tensor:
        moved = z if self.move is None else self.move(g, z)
        if moved.shape != z.shape:
            raise ValueError(
                f"{self.name}: {self.group.elements[g]} turned shape {tuple(z.shape)} into {tuple(moved.shape)}; "
                "an action keeps the shape"
            )
        return moved

    def _permutations(self, grid: tuple[int, int]) -> Tensor | None:
        """(g, P) from where each position comes; None when some element is no permutation, but linear."""
        cells = math.prod(grid)
        index = torch.arange(cells, dtype=torch.float64).reshape(grid)
        # of either sign, for what makes numbers positive moves no positive ones
        images = torch.randn(2, *grid, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        rows = []
        for g, element in enumerate(self.group.elements):
            row = self._moved(g, index).flatten()
            moved = self._moved(g, images)
            is_permutation = torch.equal(row.sort().values, index.flatten())
            if is_permutation and torch.equal(moved.flatten(1), images.flatten(1)[:, row.long()]):
                rows.append(row.long())
                continue
            together = self._moved(g, 2 * images[0] - 3 * images[1])
            if not torch.allclose(together, 2 * moved[0] - 3 * moved[1], atol=1e-4):
                raise ValueError(
                    f"{self.name}: {element} is not linear: what it does to a sum of images is not the sum of what it does "
                    "to each; a layer's values can only be moved or mixed linearly"
                )
        return torch.stack(rows) if len(rows) == self.group.order else None


def trivial(group: Group | str) -> Action:
    """The action by which nothing moves: φ(g, z) = z. Equivariance towards it is invariance.

    >>> trivial("C4")("r90", torch.tensor([1.0, 2.0]))
    tensor([1., 2.])
    """
    return Action("trivial", groups.parse(group))


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
    shift_parts = [1]
    turns = False
    moves_of = group.moves
    for element, moves in zip(group.elements, moves_of, strict=True):
        for step, by in moves:
            if step == "rotate" and by % 90:
                raise ValueError(
                    f"{group.name} has {element}, which is no quarter turn and would interpolate; exact are C1, C2, C4, "
                    "D1, D2, D4, flip, shiftn and their products"
                )
            if step == "rotate":
                turns = True
            if step == "shift":
                shift_parts.append(by.denominator)
    action = Action("spatial", group, lambda g, z: _apply_moves(moves_of[g], z))
    # a height that every shift of the group divides, so that the probe is defined; square where something turns
    height = 3 * math.lcm(*shift_parts)
    width = height if turns else 3
    check_action(action, torch.arange(float(height * width)).reshape(height, width))
    return action


def on_images(group: Action | Group | str) -> Action:
    """How a group acts on images: an action as it is, a group by exact turns, mirrors and shifts.

    >>> on_images("C4").name
    'spatial'
    """
    return group if isinstance(group, Action) else spatial(groups.parse(group))


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
    come_from = torch.tensor(
        [[group.product(group.inverse(g), h) for h in range(group.order)] for g in range(group.order)]
    )

    def fields(channels: int) -> Tensor:
        if not channels or channels % group.order:
            raise ValueError(f"fields of {group.name} need channels divisible by {group.order}, got {channels}")
        field_starts = torch.arange(0, channels, group.order)
        return (field_starts[None, :, None] + come_from[:, None, :]).flatten(1)

    return Action("regular", group, plane.move, fields)


def permuted(action: Action, permutations: Tensor) -> Action:
    """An action followed by a permutation of channels: φ_σ(g, z)_i = φ(g, z)_(σ_g(i)) for z (…, C, H, W) *[ours]*.

    Permutations that were fitted need not compose, and then this obeys no group law; `check_action` tells.

    Parameters
    ----------
    permutations : Tensor (g, C)
        For every element from which channel each channel comes.

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

    def channel_moves(channels: int) -> Tensor:
        if channels != width:
            raise ValueError(f"the permutations are those of {width} channels, got {channels}")
        if action.channel_moves is None:
            return permutations
        before = action.channel_moves(channels)
        return torch.stack([before[g][permutations[g].to(before.device)] for g in range(order)])

    return Action(f"{action.name}, permuted", action.group, action.move, channel_moves)


def linear(group: Group | str, matrices: Tensor) -> Action:
    """G acting on the C channels of a vector by matrices ρ(g) with ρ(g) ρ(h) = ρ(gh).

    Parameters
    ----------
    matrices : Tensor (g, C, C)
        In the group's order.

    Raises
    ------
    ValueError
        The matrices are no representation of the group; the message names the elements.

    >>> swap = torch.stack([torch.eye(2), torch.eye(2).flip(0)])
    >>> linear("C2", swap).on((1, 1), channels=2)("r180", torch.tensor([[1.0, 2.0]]))
    tensor([[2., 1.]])
    """
    group = groups.parse(group)
    matrices = torch.as_tensor(matrices)
    if matrices.dim() != 3 or matrices.shape[0] != group.order or matrices.shape[1] != matrices.shape[2]:
        raise ValueError(f"expected one square matrix for each of {group.order} elements, got {tuple(matrices.shape)}")

    def channel_moves(channels: int) -> Tensor:
        if channels != matrices.shape[1]:
            raise ValueError(f"the matrices are those of {matrices.shape[1]} channels, got {channels}")
        return matrices

    action = Action("linear", group, None, channel_moves)
    check_action(action, torch.eye(matrices.shape[-1], dtype=matrices.dtype)[:, :, None, None], atol=1e-5)
    return action


def quotient(group: Group | str, onto: Action, projection: Sequence[int | str]) -> Action:
    """G acting through a quotient: φ(g, z) = φ_Q(π(g), z), so that the kernel of π acts as the identity.

    Parameters
    ----------
    onto : Action
        The quotient's action.
    projection : sequence of int or str
        For every element of G its image in the quotient.

    Raises
    ------
    ValueError
        π is no homomorphism; the message names the elements.

    >>> c4_through_c2 = quotient("C4", spatial("flip"), projection=[0, 1, 0, 1])
    >>> kernel(c4_through_c2, (1, 3))
    (0, 2)
    """
    group = groups.parse(group)
    image = [onto.group.index(element) for element in projection]
    if len(image) != group.order:
        raise ValueError(f"a projection of {group.name} names {group.order} images, got {len(image)}")
    for g in range(group.order):
        for h in range(group.order):
            if image[group.product(g, h)] != onto.group.product(image[g], image[h]):
                g, h = group.elements[g], group.elements[h]
                raise ValueError(f"not a homomorphism onto {onto.group.name}: π({g} {h}) differs from π({g}) π({h})")
    move = None
    channel_moves = None
    if (move_onto := onto.move) is not None:
        move = lambda g, z: move_onto(image[g], z)  # noqa: E731
    if (channels_onto := onto.channel_moves) is not None:
        channel_moves = lambda channels: channels_onto(channels)[image]  # noqa: E731
    return Action(f"{onto.name} through {onto.group.name}", group, move, channel_moves)


def kernel(action: Action, grid: tuple[int, int], channels: int = 1) -> tuple[int, ...]:
    """ker φ = {g : g acts as the identity on Z} (Kvinge et al. 2022, before eq. 2), on maps of one size.

    The kernel belongs to the space: C4 is faithful on a 6×6 map and trivial on a 1×1 map.

    Returns
    -------
    tuple of int
        Indices of the elements that move nothing, the identity among them.

    Raises
    ------
    ValueError
        The action is not defined at this size.

    >>> kernel(spatial("C4"), (6, 6)), kernel(spatial("C4"), (1, 1))
    ((0,), (0, 1, 2, 3))
    """
    return action.on(grid, channels).kernel


def check_action(action: Action, z: Tensor, *, atol: float = 0.0) -> float:
    """The largest |φ(g, φ(h, z)) − φ(gh, z)| over all pairs, and |φ(e, z) − z|: 0 for an exact action.

    Parameters
    ----------
    z : Tensor (…, C, H, W)
        A point of the space or a batch of them; (…, H, W) where channels stay.
    atol : float
        How much deviation is allowed.

    Raises
    ------
    ValueError
        The deviation is above `atol` (the message names g and h), or the shape changes.

    >>> check_action(spatial("D4"), torch.rand(3, 5, 5))
    0.0
    """
    group = action.group
    moved = [action(g, z) for g in range(group.order)]
    worst = _largest(moved[0] - z)
    broken_law = f"{group.elements[0]} is not the identity"
    for g in range(group.order):
        for h in range(group.order):
            product = group.product(g, h)
            error = _largest(action(g, moved[h]) - moved[product])
            if error > worst:
                worst = error
                broken_law = f"{group.elements[h]} and then {group.elements[g]} is not {group.elements[product]}"
    if worst > atol:
        raise ValueError(
            f"{action.name} is no action of {group.name}: {broken_law} (off by {worst:.3g}, allowed {atol:g})"
        )
    return worst


def law_error(action: LayerAction) -> float:
    """The largest |φ(g, φ(h, z)) − φ(gh, z)| of an action at a layer; 0 where it is a permutation of positions.

    Raises
    ------
    ValueError
        Permutations do not compose as the group's table says (the message names g and h).

    >>> law_error(spatial("D4").on((5, 5), channels=1))
    0.0
    """
    group = action.group
    if action.positions is None and action.operator is None:
        return 0.0
    if action.positions is None:
        of_images = Action(action.name, group, action.operator)
        probe = torch.rand(action.grid, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        return check_action(of_images, probe, atol=math.inf)
    for g in range(group.order):
        composed = action.positions[:, action.positions[g]]  # row h: h first, then g
        for h in range(group.order):
            if not torch.equal(composed[h], action.positions[group.product(g, h)]):
                first, second, product = (group.elements[k] for k in (h, g, group.product(g, h)))
                raise ValueError(
                    f"{action.name} is no action of {group.name}: {first} and then {second} is not {product}"
                )
    return 0.0


def _largest(difference: Tensor) -> float:
    return difference.abs().max().item() if difference.numel() else 0.0
