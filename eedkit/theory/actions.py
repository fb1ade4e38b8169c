"""Finite groups acting on tensors: an action at a layer moves positions and channels; its kernel; its check.

An exact action is a permutation of positions and one of channels, found once per grid and applied as one gather. One that
interpolates takes each position from its four neighbours, whose weights are computed once per grid.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from eedkit.theory import groups
from eedkit.theory.groups import Effect, Group


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
    compared : Tensor (P′,), or None
        The positions that the action keeps among themselves, so that maps are compared on them; None: all.

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
    compared: Tensor | None = None

    @property
    def interpolates(self) -> bool:
        """Whether an element is no permutation of positions, so that norms change and the group law is not exact."""
        return self.operator is not None

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
        probe = _noise(self.grid)
        difference = (self.operator(g, probe) - probe).flatten()
        if self.compared is not None:
            difference = difference[self.compared.cpu()]
        return _largest(difference) <= 1e-9

    def _channels_stay(self, g: int) -> bool:
        if self.channels is None:
            return True
        stay = torch.arange(self.channels.shape[1]) if self.channels.dim() == 2 else torch.eye(self.channels.shape[1])
        return torch.allclose(self.channels[g].double(), stay.to(self.channels).double(), rtol=0, atol=1e-9)

    def to(self, device: torch.device) -> "LayerAction":
        """The same action with its tables on a device."""
        tables = {}
        for name in ("positions", "channels", "compared"):
            table = getattr(self, name)
            tables[name] = None if table is None else table.to(device)
        return replace(self, **tables)


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
    colour_moves : callable, or None
        The same for the channels of images, where they move otherwise than those of maps.
    inside : callable, or None
        (height, width) -> (P,), which positions the action keeps among themselves: a circle for rotations that interpolate.
        Outside of it `move` gives 0, and maps are not compared. None: all.

    >>> quarter = spatial("C4")
    >>> quarter("r90", torch.tensor([[1, 2], [3, 4]]))
    tensor([[2, 4],
            [1, 3]])
    """

    name: str
    group: Group
    move: Callable[[int, Tensor], Tensor] | None = None
    channel_moves: Callable[[int], Tensor] | None = None
    colour_moves: Callable[[int], Tensor] | None = None
    inside: Callable[[Sequence[int]], Tensor] | None = None
    _resolved: dict[tuple[int, int], Tensor | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __call__(self, g: int | str, z: Tensor) -> Tensor:
        """φ(g, z) on images, of the shape of z; ValueError when the action changes the shape or is not defined on it."""
        g = self.group.index(g)
        moved = z if self.move is None else self._moved(g, z)
        channel_moves = self.of_images.channel_moves
        if channel_moves is None:
            return moved
        if z.dim() < 3:
            raise ValueError(f"{self.name} moves channels, so it needs (…, C, H, W), got {tuple(z.shape)}")
        channels = LayerAction(self.name, self.group, (1, 1), channels=channel_moves(z.shape[-3]).to(z.device))
        return channels(g, moved.movedim(-3, -1)).movedim(-1, -3)

    @property
    def of_images(self) -> "Action":
        """The action whose channels are those of images."""
        if self.colour_moves is None:
            return self
        return replace(self, channel_moves=self.colour_moves, colour_moves=None)

    def on(self, grid: Sequence[int], channels: int) -> LayerAction:
        """The action at a layer whose positions lie on `grid`, found by moving the image of their indices.

        Raises
        ------
        ValueError
            The action is not defined at this size, changes the shape, or is not linear; the element is named.
        """
        height, width = grid
        sides = (int(height), int(width))
        if self.move is not None and sides not in self._resolved:
            self._resolved[sides] = self._permutations(sides)
        positions = self._resolved.get(sides)
        return LayerAction(
            self.name,
            self.group,
            sides,
            positions,
            channels=None if self.channel_moves is None else self.channel_moves(channels),
            operator=self.move if positions is None else None,
            compared=None if self.inside is None else self.inside(sides).nonzero()[:, 0],
        )

    def of_channels(self, channels: int) -> LayerAction:
        """The action on vectors (…, C), or on points (…, P, C) that lie on no grid: their channels alone move.

        >>> regular("C2").of_channels(2)("r180", torch.tensor([1, 2]))
        tensor([2, 1])
        """
        return replace(self, move=None, inside=None).on((1, 1), channels)

    def _moved(self, g: int, z: Tensor) -> Tensor:
        moved = z if self.move is None else self.move(g, z)
        if not isinstance(moved, Tensor):
            raise ValueError(
                f"{self.name}: {self.group.elements[g]} turned a tensor into {type(moved).__name__}; an action returns the moved tensor"
            )
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
            _check_linear(f"{self.name}: {element}", together, 2 * moved[0] - 3 * moved[1])
        return torch.stack(rows) if len(rows) == self.group.order else None


def trivial(group: Group | str) -> Action:
    """The action by which nothing moves: φ(g, z) = z. Equivariance towards it is invariance.

    >>> trivial("C4")("r90", torch.tensor([1.0, 2.0]))
    tensor([1., 2.])
    """
    return Action("trivial", groups.parse(group))


def spatial(group: Group | str) -> Action:
    """G acting on images (…, C, H, W) by its moves: rotations, mirrors, shifts, permutations of colours, changes of sign.

    On maps only positions move. Quarter turns, mirrors and shifts by whole pixels are exact permutations. Other rotations and
    `slide` interpolate bilinearly between the four nearest pixels: then two elements one after the other are not quite
    their product (`law_error`). Rotations that interpolate act within the inscribed circle, outside of which images are 0.

    Raises
    ------
    ValueError
        At once when the group has no moves, or when the moves do not compose as the table says (C4*flip: a turn and a mirror
        do not commute; D4 is meant). On use when the size does not allow the move: rotations need squares, shifts a height
        or width that they divide, permutations of colours three channels.

    >>> spatial("flip")("m", torch.tensor([[1, 2, 3]]))
    tensor([[3, 2, 1]])
    >>> spatial("C8")("r45", torch.ones(3, 3, 3))[0]
    tensor([[1., 1., 1.],
            [1., 1., 1.],
            [1., 1., 1.]])
    """
    group = groups.parse(group)
    _check_moves(group)
    effects = group.effects
    stays = Effect()
    if all(replace(one, colours=(), is_negated=False) == stays for one in effects):
        return Action("spatial", group, colour_moves=_colour_moves(group))
    turns_between = any(one.angle % 90 for one in effects)
    # by element, grid, device and type; as long as the action lives, and in a form that can be sent to other processes
    known_neighbours: dict[tuple, tuple[Tensor, Tensor]] = {}

    def neighbours(g: int, z: Tensor) -> tuple[Tensor, Tensor]:
        dtype = z.dtype if z.is_floating_point() else torch.get_default_dtype()
        height, width = z.shape[-2:]
        key = g, height, width, z.device, dtype
        if key not in known_neighbours:
            known_neighbours[key] = _neighbours(effects[g], (height, width), z.device, dtype)
        return known_neighbours[key]

    def move(g: int, z: Tensor) -> Tensor:
        if effects[g].interpolates:
            moved = _mixed(z, *neighbours(g, z))
        else:
            moved = _moved_exactly(effects[g], z)
        if turns_between:
            outside = ~in_circle(z.shape[-2:]).unflatten(0, z.shape[-2:])
            moved = moved.masked_fill(outside.to(z.device), 0)
        return moved

    inside = in_circle if turns_between else None
    return Action("spatial", group, move, colour_moves=_colour_moves(group), inside=inside)


def in_circle(grid: Sequence[int]) -> Tensor:
    """(P,), which cells of a grid have their centres in the circle that touches its sides.

    >>> in_circle((4, 4)).unflatten(0, (4, 4)).int()
    tensor([[0, 1, 1, 0],
            [1, 1, 1, 1],
            [1, 1, 1, 1],
            [0, 1, 1, 0]], dtype=torch.int32)
    """
    height, width = grid
    # distances from the middle in halves of a cell, so that they are whole numbers
    rows = 2 * torch.arange(height) - (height - 1)
    columns = 2 * torch.arange(width) - (width - 1)
    return (rows[:, None] ** 2 + columns**2 <= min(height, width) ** 2).flatten()


def _check_moves(group: Group) -> None:
    """ValueError unless the moves of two elements, one after the other, are those of their product."""
    effects = group.effects
    moves = group.moves or ()
    if effects[0] != Effect():
        raise ValueError(
            f"spatial is no action of {group.name}: {group.elements[0]} is the identity, but its moves move"
        )
    if group.table is None:
        return
    # it holds for all elements when it holds for those of which all others are products
    for g in groups.generators(group.table):
        for h in range(group.order):
            product = group.product(g, h)
            together = groups.effect((*moves[h], *moves[g]))
            if replace(together, slides=False) != replace(effects[product], slides=False):
                first, second, wanted = (group.elements[k] for k in (h, g, product))
                raise ValueError(
                    f"spatial is no action of {group.name}: {first} and then {second} is not {wanted}; the moves must compose as "
                    "the group's table says"
                )


def _colour_moves(group: Group) -> Callable[[int], Tensor] | None:
    """What the elements do to the channels of images; None where these stay."""
    counts = {len(one.colours) for one in group.effects if one.colours}
    signs = torch.tensor([-1.0 if one.is_negated else 1.0 for one in group.effects])
    if not counts and signs.min() > 0:
        return None

    def colour_moves(channels: int) -> Tensor:
        if counts and counts != {channels}:
            raise ValueError(
                f"{group.name} permutes {' or '.join(map(str, counts))} colour channels, got images of {channels}"
            )
        come_from = torch.tensor([one.colours or tuple(range(channels)) for one in group.effects])
        if signs.min() > 0:
            return come_from
        return torch.eye(channels)[come_from] * signs[:, None, None]

    return colour_moves


def _moved_exactly(effect: Effect, z: Tensor) -> Tensor:
    """z (…, H, W) after a quarter turn, a mirror and shifts by whole pixels."""
    height, width = z.shape[-2:]
    if effect.angle % 180 and height != width:
        raise ValueError(f"quarter turns need square images, got {height}×{width}; centre-crop or pad first")
    if effect.angle:
        z = torch.rot90(z, int(effect.angle // 90), (-2, -1))
    if effect.is_mirrored:
        z = z.flip(-1)
    for axis, name, part in ((-2, "height", effect.down), (-1, "width", effect.right)):
        pixels = part * z.shape[axis]
        if pixels.denominator > 1:
            raise ValueError(
                f"shifts by 1/{part.denominator} of the {name} need a {name} divisible by {part.denominator}, "
                f"got {z.shape[axis]}"
            )
        if pixels:
            z = z.roll(int(pixels), axis)
    return z


def _neighbours(
    effect: Effect, grid: tuple[int, int], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The four positions from which each position comes, (4, P), and their weights, (4, P), which sum to 1.

    What comes from beyond the outermost centres is taken from there; with a translation opposite edges meet.
    """
    height, width = grid
    if effect.angle % 180 and height != width:
        raise ValueError(f"rotations need square images, got {height}×{width}; centre-crop or pad first")
    # about the middle, y upwards
    y = ((height - 1) / 2 - torch.arange(height, dtype=torch.float64))[:, None].expand(grid)
    x = (torch.arange(width, dtype=torch.float64) - (width - 1) / 2).expand(grid)
    # undone from last to first: the translation, the mirror, the rotation
    y = y + float(effect.down) * height
    x = x - float(effect.right) * width
    if effect.is_mirrored:
        x = -x
    turn = math.radians(effect.angle)
    from_x = math.cos(turn) * x + math.sin(turn) * y
    from_y = math.cos(turn) * y - math.sin(turn) * x
    row = ((height - 1) / 2 - from_y).flatten()
    column = (from_x + (width - 1) / 2).flatten()
    if not effect.slides:
        row = row.clamp(0, height - 1)
        column = column.clamp(0, width - 1)
    positions = []
    weights = []
    for below in (0, 1):
        for right in (0, 1):
            at_row = (row.floor() + below) % height
            at_column = (column.floor() + right) % width
            positions.append((at_row * width + at_column).long())
            weights.append(_share(row, below) * _share(column, right))
    return torch.stack(positions).to(device), torch.stack(weights).to(device, dtype)


def _share(coordinate: Tensor, next_one: int) -> Tensor:
    """The weight of the cell at the floor of a coordinate, or of the next one."""
    beyond_floor = coordinate - coordinate.floor()
    return beyond_floor if next_one else 1 - beyond_floor


def _mixed(z: Tensor, positions: Tensor, weights: Tensor) -> Tensor:
    """Each position of z (…, H, W) as the weighted sum of four."""
    cells = z.flatten(-2).movedim(-1, 0)
    moved = torch.zeros_like(cells, dtype=weights.dtype)
    for of_neighbour, weight in zip(positions, weights, strict=True):
        moved += cells.index_select(0, of_neighbour) * weight.reshape(-1, *[1] * (cells.dim() - 1))
    return moved.movedim(0, -1).unflatten(-1, z.shape[-2:])


def on_images(group: Action | Group | str) -> Action:
    """How a group acts on images: an action as it is, a group by its moves.

    >>> on_images("C4").name
    'spatial'
    """
    return group if isinstance(group, Action) else spatial(groups.parse(group))


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
    come_from = torch.empty(group.order, group.order, dtype=torch.long)
    for g, inverse in enumerate(group.inverses):
        come_from[g] = torch.tensor(group.products[inverse])

    def fields(channels: int) -> Tensor:
        if not channels or channels % group.order:
            raise ValueError(f"fields of {group.name} need channels divisible by {group.order}, got {channels}")
        field_starts = torch.arange(0, channels, group.order)
        return (field_starts[None, :, None] + come_from[:, None, :]).flatten(1)

    return Action("regular", group, plane.move, fields, inside=plane.inside)


def coordinates(action: Action | Group | str) -> Action:
    """G acting on channels that are pairs (x, y) in pixels, x to the right and y down: (…, 2F, H, W).

    A field of offsets moves on the plane, and every pair turns with it: φ(g, z)(p) = ρ(g) z(g⁻¹p), ρ(g) the 2×2 matrix of
    the rotation and the mirror. Points are positions about the middle of the image; they lie on no grid, and only ρ acts.

    Raises
    ------
    ValueError
        The group has no moves or shifts images, which no matrix does to points; on use, when the number of channels is odd.

    >>> coordinates("C4").of_channels(2)("r90", torch.tensor([1.0, 0.0]))
    tensor([ 0., -1.])
    """
    plane = on_images(action)
    matrices = _matrices_of_points(plane)

    def pairs(channels: int) -> Tensor:
        if not channels or channels % 2:
            raise ValueError(f"coordinates are pairs (x, y), so the channels must be even in number, got {channels}")
        return torch.stack([torch.block_diag(*[matrix] * (channels // 2)) for matrix in matrices])

    return Action("coordinates", plane.group, plane.move, pairs, inside=plane.inside)


def boxes(action: Action | Group | str) -> Action:
    """G acting on boxes with sides along the axes: rows (x, y, width, height, …), (x, y) the middle as in `coordinates`.

    What follows in a row, a label or a score, stays. The action is linear: middles turn, a quarter turn exchanges width and
    height.

    Raises
    ------
    ValueError
        The group has no moves, shifts images, or has rotations by other than quarter turns, after which a box is none; on use,
        when rows have fewer than four numbers.

    >>> boxes("C4").of_channels(5)("r90", torch.tensor([[1.0, 0.0, 4.0, 2.0, 7.0]]))
    tensor([[ 0., -1.,  2.,  4.,  7.]])
    """
    plane = on_images(action)
    matrices = _matrices_of_points(plane)
    if any(effect.angle % 90 for effect in plane.group.effects):
        raise ValueError(
            f"{plane.group.name} turns boxes by less than quarter turns, after which their sides are not along the axes"
        )

    def rows(channels: int) -> Tensor:
        if channels < 4:
            raise ValueError(f"a box is a row of x, y, width, height and more, got {channels} numbers")
        rest = torch.eye(channels - 4, dtype=torch.float64)
        return torch.stack([torch.block_diag(matrix, matrix.abs(), rest) for matrix in matrices])

    return Action("boxes", plane.group, plane.move, rows, inside=plane.inside)


def _matrices_of_points(action: Action) -> Tensor:
    """(g, 2, 2), what each element does to a point (x to the right, y down) about the middle of the image."""
    group = action.group
    matrices = torch.empty(group.order, 2, 2, dtype=torch.float64)
    for g, effect in enumerate(group.effects):
        if effect.down or effect.right:
            raise ValueError(f"{group.name} shifts images, and no matrix shifts points; take another group")
        turn = math.radians(effect.angle)
        cosine = math.cos(turn)
        sine = math.sin(turn)
        if effect.angle % 90 == 0:
            cosine = round(cosine)
            sine = round(sine)
        matrices[g] = torch.tensor([[cosine, sine], [-sine, cosine]])
        if effect.is_mirrored:
            matrices[g, 0] *= -1
    by_name = replace(spatial(group), channel_moves=None, colour_moves=None, inside=None)
    as_given = replace(action, channel_moves=None, colour_moves=None, inside=None)
    probe = _noise((5, 5))
    for g, element in enumerate(group.elements):
        if not torch.allclose(as_given(g, probe), by_name(g, probe)):
            raise ValueError(
                f"{action.name} moves images otherwise than {group.name} says of {element}, so how points move is not known; give "
                "the action a Group whose moves are its own"
            )
    return matrices


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

    return Action(f"{action.name}, permuted", action.group, action.move, channel_moves, inside=action.inside)


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

    def of_images_of_elements(channel_moves: Callable[[int], Tensor] | None) -> Callable[[int], Tensor] | None:
        return None if channel_moves is None else lambda channels: channel_moves(channels)[image]

    move = onto.move
    return Action(
        f"{onto.name} through {onto.group.name}",
        group,
        move=None if move is None else lambda g, z: move(image[g], z),
        channel_moves=of_images_of_elements(onto.channel_moves),
        colour_moves=of_images_of_elements(onto.colour_moves),
        inside=onto.inside,
    )


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
        An element changes the shape, the identity moves something, an element is not linear, or two elements one after the
        other are not their product by more than `atol`; the message names the elements and says what they are instead.

    >>> check_action(spatial("D4"), torch.rand(3, 5, 5))
    0.0
    """
    group = action.group
    refused = f"{action.name} is no action of {group.name}"
    if action.inside is not None:
        outside = ~action.inside(z.shape[-2:]).unflatten(0, z.shape[-2:])
        z = z.masked_fill(outside.to(z.device), 0)
    moved = [action(g, z) for g in range(group.order)]
    worst = _largest(moved[0] - z)
    if worst > atol:
        raise ValueError(
            f"{refused}: {group.elements[0]} is not the identity (off by {worst:.3g}, allowed {atol:g}); the first element must "
            "leave everything as it is"
        )
    other = torch.randint(-9, 10, z.shape, generator=torch.Generator().manual_seed(0)).to(z)
    for g, element in enumerate(group.elements):
        _check_linear(f"{action.name}: {element}", action(g, 2 * z - 3 * other), 2 * moved[g] - 3 * action(g, other))
    broken_law = ""
    for g in range(group.order):
        for h in range(group.order):
            twice = action(g, moved[h])
            product = group.product(g, h)
            error = _largest(twice - moved[product])
            if error > worst:
                worst = error
                broken_law = f"{group.elements[h]} and then {group.elements[g]} is not {group.elements[product]}"
                instead = _like_element(twice, moved, group, atol)
    if worst > atol:
        raise ValueError(f"{refused}: {broken_law} (off by {worst:.3g}, allowed {atol:g}); {instead}")
    return worst


def _like_element(twice: Tensor, moved: Sequence[Tensor], group: Group, atol: float) -> str:
    """What two elements one after the other are, when they are not their product."""
    for element, of_element in zip(group.elements, moved, strict=True):
        if _largest(twice - of_element) <= atol:
            return (
                f"it is {element}, so the moves are no homomorphism: they compose otherwise than the group's table says"
            )
    return "it is what no element does, so the elements are not closed: one is missing, or a move is not exact"


def _check_linear(what: str, of_sum: Tensor, sum_of_moved: Tensor) -> None:
    if not torch.allclose(of_sum, sum_of_moved, atol=1e-4):
        raise ValueError(
            f"{what} is not linear: what it does to a sum of images is not the sum of what it does to each; a layer's values "
            "can only be moved or mixed linearly"
        )


def law_error(action: LayerAction) -> float:
    """The largest |φ(g, φ(h, z)) − φ(gh, z)| at a layer, for noise z from 0 to 1; 0 for a permutation of positions.

    Over the positions that are compared. NaN for a sample of a continuous group, whose products are not among its elements.

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
    if group.is_sample:
        return math.nan
    if action.positions is None:
        return _law_error_of_operator(action)
    for g in range(group.order):
        composed = action.positions[:, action.positions[g]]  # row h: h first, then g
        for h in range(group.order):
            if not torch.equal(composed[h], action.positions[group.product(g, h)]):
                first, second, product = (group.elements[k] for k in (h, g, group.product(g, h)))
                raise ValueError(
                    f"{action.name} is no action of {group.name}: {first} and then {second} is not {product}; "
                    "ek.actions.check_action says in which way it is wrong"
                )
    return 0.0


def _law_error_of_operator(action: LayerAction) -> float:
    compared = slice(None) if action.compared is None else action.compared.cpu()
    probe = _noise(action.grid)
    operator = action.operator
    assert operator is not None  # what is no permutation has one
    moved = torch.stack([operator(g, probe) for g in range(action.group.order)])
    worst = _largest((moved[0] - probe).flatten()[compared])
    for g, products in enumerate(action.group.products):
        difference = operator(g, moved) - moved[list(products)]
        worst = max(worst, _largest(difference.flatten(1)[:, compared]))
    return worst


def _noise(grid: tuple[int, int]) -> Tensor:
    return torch.rand(grid, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _largest(difference: Tensor) -> float:
    return difference.abs().max().item() if difference.numel() else 0.0
