"""Groups acting on tensors: how an element moves positions and channels, the kernel, the group law.

An exact action is a permutation of positions and one of channels, found once per grid and applied as one gather. One
that interpolates takes each position from its four neighbours, whose weights are computed once per grid. Knows torch
and groups, and nothing of layers or labels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from eedkit.errors import Undefined
from eedkit.theory import groups
from eedkit.theory.groups import Group, Motion

Move = Callable[[int, Tensor], Tensor]
"""(index of g, tensor (…, H, W)) -> the moved tensor, of the same shape and linear in it."""
Channels = Callable[[int], Tensor]
"""Number of channels C -> (g, C), from which channel each channel comes, or (g, C, C), the matrices that mix them."""


@dataclass(frozen=True)
class LayerAction:
    """An action on the functions of one layer: arrays (…, P, C), P positions × C channels; call it as `action(g, z)`.

    name, group : those of the `Action`
    grid : height and width; the P positions are its cells, row by row
    positions : (g, P), from which position each comes; None where `move` moves them, or nothing does
    channels : (g, C), from which channel each comes, or (g, C, C), the matrices that mix them; None: they stay
    move : the `Move` of an action that interpolates
    compared : (P′,), the positions that the action keeps among themselves, on which maps are compared; None: all

    >>> quarter = spatial("C4").on((2, 2), channels=1)
    >>> quarter("r90", torch.tensor([[1], [2], [3], [4]])).flatten()
    tensor([2, 4, 1, 3])
    """

    name: str
    group: Group
    grid: tuple[int, int]
    positions: Tensor | None = None
    channels: Tensor | None = None
    move: Move | None = None
    compared: Tensor | None = None

    def __call__(self, g: int | str, z: Tensor) -> Tensor:
        """φ(g, z), of the shape of z (…, P, C)."""
        g = self.group.index(g)
        if self.positions is not None:
            z = z.index_select(-2, self.positions[g])
        elif self.move is not None:
            z = self.move(g, z.mT.unflatten(-1, self.grid)).flatten(-2).mT
        if self.channels is None:
            return z
        if self.channels.dim() == 2:
            return z.index_select(-1, self.channels[g])
        return z @ self.channels[g].to(z).T

    @property
    def interpolates(self) -> bool:
        """Whether an element is no permutation of positions, so that norms change and the group law is not exact."""
        return self.move is not None

    def visible(self, z: Tensor) -> Tensor:
        """The positions of z (…, P, C) that are compared: (…, P′, C)."""
        return z if self.compared is None else z.index_select(-2, self.compared)

    @cached_property
    def kernel(self) -> tuple[int, ...]:
        """ker φ = {g : g acts as the identity on Z} (Kvinge et al. 2022, before eq. 2), found by moving noise.

        It belongs to the space: C4 is faithful on a 6×6 map and trivial on a 1×1 map. Positions and channels must both
        stay; moved one without the other they take P + C numbers.

        >>> spatial("C4").on((6, 6), channels=1).kernel, spatial("C4").on((1, 1), channels=1).kernel
        ((0,), (0, 1, 2, 3))
        """
        on_positions = replace(self, channels=None)
        on_channels = replace(self, grid=(1, 1), positions=None, move=None, compared=None)
        stays = torch.ones(self.group.order, dtype=torch.bool)
        for part in (on_positions, on_channels):
            noise = part.noise()
            moved = torch.stack([part(g, noise) for g in range(self.group.order)])
            stays &= (part.difference(moved, noise) <= 1e-9).cpu()
        return tuple(stays.nonzero()[:, 0].tolist())

    @property
    def law_error(self) -> float:
        """The largest |φ(g, φ(h, z)) − φ(gh, z)| for noise z from 0 to 1, over what is compared; NaN for a sample.

        ValueError where permutations, for which it is 0, compose otherwise than the group's table says.
        """
        if self.group.is_sample:
            return math.nan
        is_exact = self.move is None and (self.channels is None or self.channels.dim() == 2)
        return _law_error(self, self.noise(), atol=0.0 if is_exact else math.inf)

    def to(self, device: torch.device | str) -> "LayerAction":
        """The same action with its tables on a device."""
        tables = {}
        for name in ("positions", "channels", "compared"):
            table = getattr(self, name)
            tables[name] = None if table is None else table.to(device)
        return replace(self, **tables)

    def noise(self) -> Tensor:
        """(P, C) numbers from 0 to 1, the same each time; one channel where channels stay."""
        channels = 1 if self.channels is None else self.channels.shape[1]
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand(math.prod(self.grid), channels, dtype=torch.float64, generator=generator)
        tables = [table for table in (self.positions, self.channels, self.compared) if table is not None]
        return noise.to(tables[0].device) if tables else noise

    def difference(self, a: Tensor, b: Tensor) -> Tensor:
        """The largest |a − b| over what is compared, for each of n tensors: (n, …, P, C), (…, P, C) -> (n,)."""
        return self.visible((a - b).abs()).flatten(1).amax(1)


def _law_error(action: LayerAction, z: Tensor, atol: float) -> float:
    """The largest |φ(e, z) − z| or |φ(g, φ(h, z)) − φ(gh, z)| for z (…, P, C); ValueError for one above `atol`."""
    group = action.group

    def checked(error: float, what: str) -> float:
        if error > atol:
            off = f"off by {error:.3g}, allowed {atol:g}"
            raise ValueError(f"{action.name} is no action of {group.name}: {what} ({off})")
        return error

    moved = torch.stack([action(g, z) for g in range(group.order)])
    worst = checked(action.difference(moved[:1], z).item(), f"{group.elements[0]} is not the identity")
    for g, products in enumerate(group.products):
        errors = action.difference(action(g, moved), moved[products])  # row h: h first, then g
        h = int(errors.argmax())
        first, second, product = (group.elements[k] for k in (h, g, products[h]))
        worst = max(worst, checked(errors[h].item(), f"{first} and then {second} is not {product}"))
    return worst


@dataclass(frozen=True)
class Action:
    """φ: G × Z → Z with φ(g, φ(h, z)) = φ(gh, z) (Kvinge et al. 2022, section 3), for images and maps of any size.

    Call it as `action(g, z)` on images (…, C, H, W), or ask for the action at one layer with `on(grid, channels)`.

    Parameters
    ----------
    name : str
        What the action is called in results and errors.
    group : Group
        The group that acts.
    move : callable, or None
        (index of g, tensor (…, H, W)) -> tensor of the same shape, linear in the tensor. None: no position moves.
    channels : callable, or None
        Number of channels C -> (g, C), from which channel each channel comes, or (g, C, C), matrices. None: they stay.
    colours : callable, or None
        The same for the channels of images, where they move otherwise than those of maps.
    inside : callable, or None
        (height, width) -> (P,), which positions the action keeps among themselves: a circle for rotations that
        interpolate. Outside of it `move` gives 0, and maps are not compared. None: all.

    Where one of these is not defined, at a size or for a number of channels, it raises `Undefined`.

    >>> spatial("C4")("r90", torch.tensor([[1, 2], [3, 4]]))
    tensor([[2, 4],
            [1, 3]])
    """

    name: str
    group: Group
    move: Move | None = None
    channels: Channels | None = None
    colours: Channels | None = None
    inside: Callable[[Sequence[int]], Tensor] | None = None
    _known: dict = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "group", groups.parse(self.group))
        for part in ("move", "channels", "colours", "inside"):
            given = getattr(self, part)
            if given is not None and not callable(given):
                raise TypeError(f"{self.name}: {part} must be a function or None, got {type(given).__name__}")

    def __call__(self, g: int | str, z: Tensor) -> Tensor:
        """φ(g, z) on images (…, C, H, W), or (H, W), of the shape of z."""
        images = _with_channels(z)
        layer = self.on_images(images.shape[-3:]).to(z.device)
        return layer(g, images.flatten(-2).mT).mT.reshape(z.shape)

    def on(self, grid: Sequence[int], channels: int) -> LayerAction:
        """The action at a layer whose positions lie on `grid`.

        Raises
        ------
        Undefined
            The action is not defined on this grid or number of channels, or changes the shape.
        ValueError
            It is not linear, or gives no tensor; the element is named.
        """
        return self._on(grid, channels, self.channels)

    def on_images(self, shape: Sequence[int]) -> LayerAction:
        """The action on images (C, H, W), whose channels are colours; raises as `on` does."""
        return self._on(shape[1:], shape[0], self.colours or self.channels)

    def on_vectors(self, channels: int) -> LayerAction:
        """The action on vectors (…, C), or on points (…, N, C) that lie on no grid: their channels alone move.

        >>> regular("C2").on_vectors(2)("r180", torch.tensor([1, 2]))
        tensor([2, 1])
        """
        return replace(self, move=None, inside=None).on((1, 1), channels)

    def _on(self, grid: Sequence[int], channels: int, table: Channels | None) -> LayerAction:
        height, width = map(int, grid)
        if (height, width) not in self._known:
            with torch.inference_mode(False):  # what is kept may be trained through later
                compared = None if self.inside is None else self.inside((height, width)).nonzero()[:, 0]
                self._known[height, width] = _permutations(self, (height, width)), compared
        positions, compared = self._known[height, width]
        return LayerAction(
            self.name,
            self.group,
            (height, width),
            positions,
            channels=None if table is None else table(channels),
            move=self.move if positions is None else None,
            compared=compared,
        )

    @property
    def inverse(self) -> "Action":
        """The action by which every element undoes what it does in this one: (g, z) ↦ φ(g⁻¹, z).

        The inverses of a sample are not among its elements, but those of motions are known; `Undefined` for others.

        >>> spatial("C4").inverse("r90", torch.tensor([[2, 4], [1, 3]]))
        tensor([[1, 2],
                [3, 4]])
        """
        group = self.group
        if group.is_sample:
            if not isinstance(self.move, _MoveByMotions) or self.channels is not None:
                raise Undefined(f"{self.name}: the inverses of {group.name} are not among its elements; take C8, say")
            return spatial(replace(group, motions=tuple(motion.inverse for motion in self.move.motions)))
        inverses = list(group.inverses)
        move, channels, colours = self.move, self.channels, self.colours
        return replace(
            self,
            move=move and (lambda g, z: move(inverses[g], z)),
            channels=channels and (lambda count: channels(count)[inverses]),
            colours=colours and (lambda count: colours(count)[inverses]),
        )


def _with_channels(z: Tensor) -> Tensor:
    """z (…, C, H, W) as it is, (H, W) with one channel."""
    if z.dim() < 2:
        raise ValueError(f"an action moves images (…, C, H, W) or (H, W), got shape {tuple(z.shape)}")
    return z if z.dim() > 2 else z[None]


def _permutations(action: Action, grid: tuple[int, int]) -> Tensor | None:
    """(g, P) from where each position comes, read off a moved image of indices.

    None where nothing moves, or where some element is linear and no permutation.
    """
    if action.move is None:
        return None
    index = torch.arange(math.prod(grid), dtype=torch.float64)
    # of either sign, for what makes numbers positive moves no positive ones
    noise = torch.randn(2, len(index), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images = torch.cat([index[None], noise]).unflatten(1, grid)
    rows = []
    for g, element in enumerate(action.group.elements):
        moved = action.move(g, images)
        label = f"{action.name}: {element}"
        if not isinstance(moved, Tensor):
            raise ValueError(f"{label} turned a tensor into {type(moved).__name__}; an action returns the moved tensor")
        if moved.shape != images.shape:
            shapes = f"{tuple(images.shape)} into {tuple(moved.shape)}"
            raise Undefined(f"{label} turned shape {shapes}; an action keeps the shape")
        moved = moved.flatten(1)
        row = moved[0].long()
        is_permutation = torch.equal(moved[0].sort().values, index)
        if is_permutation and torch.equal(moved[1:], noise[:, row]):
            rows.append(row)
            continue
        together = action.move(g, 2 * images[1:2] - 3 * images[2:]).flatten()
        if not torch.allclose(together, 2 * moved[1] - 3 * moved[2], atol=1e-4):
            raise ValueError(
                f"{label} is not linear: what it does to a sum of images is not the sum of what it does to each; "
                "a layer's values can only be moved or mixed linearly"
            )
    return torch.stack(rows) if len(rows) == action.group.order else None


def check_action(action: Action | Group | str, z: Tensor, *, atol: float = 0.0) -> float:
    """The largest |φ(g, φ(h, z)) − φ(gh, z)| over all pairs, and |φ(e, z) − z|, for images z; 0 for an exact action.

    Raises
    ------
    ValueError
        An element changes the shape or is not linear, the identity moves something, or two elements one after the other
        are not their product by more than `atol`; the message names them.

    >>> check_action(spatial("D4"), torch.rand(3, 5, 5))
    0.0
    """
    action = as_action(action)
    images = _with_channels(torch.as_tensor(z, dtype=torch.float64))
    if not images.isfinite().all():
        raise ValueError("an action is checked on finite numbers, and this image has others")
    layer = action.on_images(images.shape[-3:])
    if action.inside is not None:
        images = images * action.inside(images.shape[-2:]).unflatten(0, images.shape[-2:])
    return _law_error(layer, images.flatten(-2).mT, atol)


def trivial(group: Group | str) -> Action:
    """The action by which nothing moves: φ(g, z) = z. Equivariance towards it is invariance."""
    return Action("trivial", groups.parse(group))


def spatial(group: Group | str) -> Action:
    """G acting on images (…, C, H, W) by its motions: rotations, mirrors, shifts, exchanged colours, changed signs.

    On maps only positions move. Quarter turns, mirrors and shifts by whole pixels are exact permutations. Other motions
    interpolate bilinearly between the four nearest pixels, so that two elements one after the other are not quite their
    product (`LayerAction.law_error`); rotations then act within the inscribed circle, outside of which images are 0.

    ValueError for a group without motions. On use `Undefined` where the size does not allow the move: rotations need
    squares, shifts a height or width that they divide, exchanges of colours three channels.

    >>> spatial("flip")("m", torch.tensor([[1, 2, 3]]))
    tensor([[3, 2, 1]])
    """
    group = groups.parse(group)
    motions = group.motions
    if motions is None:
        raise ValueError(f"{group.name} has no motions on the plane; give an Action of your own instead of a Group")
    inside = in_circle if any(motion.angle % 90 for motion in motions) else None
    stays = all(replace(motion, colours=(), is_negated=False) == Motion() for motion in motions)
    move = None if stays else _MoveByMotions(motions, slides=group.is_sample, inside=inside)
    return Action("spatial", group, move, colours=_colours(group.name, motions), inside=inside)


def as_action(group: Action | Group | str) -> Action:
    """How a group acts on images: an action as it is, a group by its motions."""
    return group if isinstance(group, Action) else spatial(group)


@dataclass(frozen=True)
class _MoveByMotions:
    """`Move` by motions, which can be inverted; what an element needs at a size is computed once.

    With `slides` translations may end between two pixels, and where `inside` is not there are zeros.
    """

    motions: tuple[Motion, ...]
    slides: bool
    inside: Callable[[Sequence[int]], Tensor] | None
    _known: dict = field(default_factory=dict, init=False, repr=False, compare=False)

    def __call__(self, g: int, z: Tensor) -> Tensor:
        grid = z.shape[-2:]
        dtype = z.dtype if z.is_floating_point() else torch.get_default_dtype()
        key = (g, grid, z.device, dtype)
        if key not in self._known:
            with torch.inference_mode(False):
                sources, weights = _sources(self.motions[g], grid, slides=self.slides)
                self._known[key] = sources.to(z.device), weights.to(z.device, dtype)
        sources, weights = self._known[key]
        cells = z.flatten(-2).movedim(-1, 0)
        if len(sources) == 1:
            moved = cells.index_select(0, sources[0])
        else:
            moved = torch.zeros_like(cells, dtype=dtype)
            for source, weight in zip(sources, weights, strict=True):
                moved += cells.index_select(0, source) * weight.reshape(-1, *[1] * (cells.dim() - 1))
        moved = moved.movedim(0, -1).unflatten(-1, grid)
        if self.inside is None:
            return moved
        outside = ~self.inside(grid).unflatten(0, grid)
        return moved.masked_fill(outside.to(z.device), 0)


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


def _sources(motion: Motion, grid: Sequence[int], *, slides: bool) -> tuple[Tensor, Tensor]:
    """The k positions from which each position comes and their weights, which sum to 1: (k, P), (k, P).

    k is 1 where all are whole positions, else 4. What comes from beyond the outermost centres is taken from there; with
    a translation opposite edges meet.
    """
    height, width = grid
    if motion.angle % 180 and height != width:
        turns = "rotations" if motion.angle % 90 else "quarter turns"
        raise Undefined(f"{turns} need square images, got {height}×{width}; centre-crop or pad first")
    for side, name, part in ((height, "height", motion.down), (width, "width", motion.right)):
        if (part * side).denominator > 1 and not slides:
            n = part.denominator
            raise Undefined(f"shifts by 1/{n} of the {name} need a {name} divisible by {n}, got {side}")
    # about the middle, y upwards; undone from last to first: the translation, the mirror, the rotation
    y = ((height - 1) / 2 - torch.arange(height, dtype=torch.float64))[:, None] + float(motion.down * height)
    x = torch.arange(width, dtype=torch.float64) - (width - 1) / 2 - float(motion.right * width)
    if motion.is_mirrored:
        x = -x
    cosine, sine = _cosine_and_sine(motion)
    row = ((height - 1) / 2 - (cosine * y - sine * x)).flatten()
    column = (cosine * x + sine * y + (width - 1) / 2).flatten()
    if not (motion.down or motion.right):
        row = row.clamp(0, height - 1)
        column = column.clamp(0, width - 1)
    above, left = row.floor(), column.floor()
    is_whole = torch.equal(row, above) and torch.equal(column, left)
    sources = []
    weights = []
    for at_row in (above,) if is_whole else (above, above + 1):
        for at_column in (left,) if is_whole else (left, left + 1):
            sources.append((at_row % height * width + at_column % width).long())
            weights.append((1 - (row - at_row).abs()) * (1 - (column - at_column).abs()))
    return torch.stack(sources), torch.stack(weights)


def _cosine_and_sine(motion: Motion) -> tuple[float, float]:
    """Of the angle; whole numbers for quarter turns."""
    turn = math.radians(motion.angle)
    if motion.angle % 90 == 0:
        return round(math.cos(turn)), round(math.sin(turn))
    return math.cos(turn), math.sin(turn)


def _colours(name: str, motions: Sequence[Motion]) -> Channels | None:
    """What motions do to the channels of images; None where these stay."""
    needed = max(len(motion.colours) for motion in motions)
    changes_sign = any(motion.is_negated for motion in motions)
    if not needed and not changes_sign:
        return None

    def colours(channels: int) -> Tensor:
        if needed and needed != channels:
            raise Undefined(f"{name} permutes {needed} colour channels, got images of {channels}")
        come_from = torch.tensor([motion.colours or range(channels) for motion in motions])
        if not changes_sign:
            return come_from
        signs = torch.tensor([-1.0 if motion.is_negated else 1.0 for motion in motions])
        return torch.eye(channels)[come_from] * signs[:, None, None]

    return colours


def regular(action: Action | Group | str) -> Action:
    """G acting on channels that are fields of the regular representation: (…, F·|G|, H, W).

    Each field holds one map per element; φ(g, z) moves every map on the plane and sends map h to map gh
    (Cohen & Welling 2016). The features of a group convolution carry this action.

    `Undefined` for a sample, and on use where |G| does not divide the number of channels.

    >>> regular("C4")("r90", torch.arange(4.0).reshape(4, 1, 1)).flatten()
    tensor([3., 0., 1., 2.])
    """
    action = as_action(action)
    group = action.group
    if group.is_sample:
        raise Undefined(f"{group.name} is a sample, and regular fields have a map for every element of a finite group")
    come_from = torch.from_numpy(group.products[list(group.inverses)])

    def fields(channels: int) -> Tensor:
        if not channels or channels % group.order:
            raise Undefined(f"fields of {group.name} need channels divisible by {group.order}, got {channels}")
        field_starts = torch.arange(0, channels, group.order)
        return (field_starts[None, :, None] + come_from[:, None, :]).flatten(1)

    return replace(action, name="regular", channels=fields, colours=None)


def coordinates(action: Action | Group | str) -> Action:
    """G acting on channels that are pairs (x, y) in pixels, x to the right and y down: (…, 2F, H, W).

    A field of offsets moves on the plane, and every pair turns with it: φ(g, z)(p) = ρ(g) z(g⁻¹p), ρ(g) the 2×2 matrix
    of the rotation and the mirror. Points are positions about the middle of the image; they lie on no grid, and only ρ
    acts. `Undefined` where the group has no motions or shifts images, and on use for an odd number of channels.

    >>> coordinates("C4").on_vectors(2)("r90", torch.tensor([1.0, 0.0]))
    tensor([ 0., -1.])
    """
    action = as_action(action)
    matrices = _matrices_of_points(action)

    def pairs(channels: int) -> Tensor:
        if not channels or channels % 2:
            raise Undefined(f"coordinates are pairs (x, y), so the channels must be even in number, got {channels}")
        return torch.stack([torch.block_diag(*[matrix] * (channels // 2)) for matrix in matrices])

    return replace(action, name="coordinates", channels=pairs, colours=None)


def boxes(action: Action | Group | str) -> Action:
    """G acting on boxes with sides along the axes: rows (x, y, width, height, …), (x, y) the middle in `coordinates`.

    What follows in a row, a label or a score, stays. The action is linear: middles turn, a quarter turn exchanges width
    and height. `Undefined` as for `coordinates`, where a rotation is no quarter turn, and on use for fewer numbers.

    >>> boxes("C4").on_vectors(5)("r90", torch.tensor([[1.0, 0.0, 4.0, 2.0, 7.0]]))
    tensor([[ 0., -1.,  2.,  4.,  7.]])
    """
    action = as_action(action)
    matrices = _matrices_of_points(action)
    if (matrices != matrices.round()).any():
        raise Undefined(f"{action.group.name} turns boxes by less than quarter turns; their sides then leave the axes")

    def rows(channels: int) -> Tensor:
        if channels < 4:
            raise Undefined(f"a box is a row of x, y, width, height and more, got {channels} numbers")
        rest = torch.eye(channels - 4, dtype=torch.float64)
        return torch.stack([torch.block_diag(matrix, matrix.abs(), rest) for matrix in matrices])

    return replace(action, name="boxes", channels=rows, colours=None)


def _matrices_of_points(action: Action) -> Tensor:
    """(g, 2, 2), what each element does to a point (x to the right, y down) about the middle of the image."""
    group = action.group
    if group.motions is None:
        raise Undefined(f"{group.name} has no motions on the plane, so how points move is not known")
    if any(motion.down or motion.right for motion in group.motions):
        raise Undefined(f"{group.name} shifts images, and no matrix shifts points; take another group")
    by_motions = spatial(group).on((5, 5), channels=1)
    as_given = replace(action, channels=None).on((5, 5), channels=1)
    noise = by_motions.noise()
    matrices = torch.empty(group.order, 2, 2, dtype=torch.float64)
    for g, motion in enumerate(group.motions):
        if by_motions.difference(as_given(g, noise)[None], by_motions(g, noise)).item() > 1e-6:
            raise Undefined(
                f"{action.name} moves images otherwise than {group.name} says of {group.elements[g]}, so how points "
                "move is not known; give the action a Group whose motions are its own"
            )
        cosine, sine = _cosine_and_sine(motion)
        mirror = -1 if motion.is_mirrored else 1
        rows = [[mirror * cosine, mirror * sine], [-sine, cosine]]
        matrices[g] = torch.tensor(rows, dtype=torch.float64)
    return matrices


def permuted(action: Action, permutations: Tensor) -> Action:
    """An action followed by permutations of channels (g, C): φ_σ(g, z)_i = φ(g, z)_(σ_g(i)) *[ours]*.

    Permutations that were fitted need not compose, and then this obeys no group law; `check_action` tells. ValueError
    where there is not one for each element, `Undefined` on use for another number of channels.

    >>> swap = permuted(spatial("flip"), torch.tensor([[0, 1], [1, 0]]))
    >>> swap("m", torch.tensor([[[1, 2]], [[3, 4]]])).tolist()
    [[[4, 3]], [[2, 1]]]
    """
    permutations = torch.as_tensor(permutations)
    order = action.group.order
    width = permutations.shape[-1]
    in_order = torch.arange(width).to(permutations).expand(order, width)
    if not torch.equal(permutations.sort(-1).values, in_order):
        raise ValueError(f"expected {order} rows of channels, each channel once in each, got {permutations.tolist()}")

    def after_action(channels: int) -> Tensor:
        if channels != width:
            raise Undefined(f"the permutations are those of {width} channels, got {channels}")
        if action.channels is None:
            return permutations
        before = action.channels(channels).to(permutations.device)
        return before[torch.arange(order)[:, None], permutations]

    return replace(action, name=f"{action.name}, permuted", channels=after_action, colours=None)
