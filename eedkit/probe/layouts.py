"""How a layer lays out positions and channels: what a layout says, its text, and which layouts an experiment allows.

Knows tensors, never models. Reading a layer's output by its layout costs no copy where the memory allows it.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import torch
from torch import Tensor

from eedkit.errors import Undefined

TOKENS = re.compile(r"((?P<before>\d+)\+)?(?P<height>\d+)x(?P<width>\d+)(?P<t>t?)(\+(?P<after>\d+))?")
"""An axis of tokens in the text of a layout: those before the grid, its rows × columns, those after it."""
FEW_PLACES = 9
"""In a smaller grid the places that change most are its corners by chance too often."""
EXTRA_TOKENS = 16
"""No model is known to put more tokens beside the grid of its patches."""
CLEARLY = 10
"""How many times as much a token changes with its own corner of the image as with others, so that it is no channel by chance."""
UNKNOWN = (0, 0)
"""The grid of tokens whose places in the image are not known."""


@dataclass(frozen=True)
class Layout:
    """How the output of a layer is read as positions × channels.

    `shape` is that of the output, with 0 on the axis of the images, `batch`. `space` are the axes of rows and columns, the one
    axis of tokens, or none for a vector; all other axes are channels. `grid` is (height, width): (1, 1) for a vector, (0, 0)
    for tokens whose places are not known, which have a mean and no map. On the axis of tokens the grid begins at `first`, and
    tokens before and after it lie nowhere; `by_columns` if they run down the columns and not along the rows.

    >>> maps = Layout((0, 8, 5, 6), batch=0, space=(2, 3), grid=(5, 6))
    >>> str(maps), tuple(maps.read(torch.zeros(2, 8, 5, 6)).shape)
    ('b c h w', (2, 30, 8))
    """

    shape: tuple[int, ...]
    batch: int
    space: tuple[int, ...]
    grid: tuple[int, int]
    first: int = 0
    by_columns: bool = False

    @property
    def channels(self) -> int:
        """C, how many numbers there are at a position."""
        return math.prod(self.shape[axis] for axis in self._channel_axes())

    def _channel_axes(self) -> list[int]:
        return [axis for axis in range(len(self.shape)) if axis != self.batch and axis not in self.space]

    def read(self, z: Tensor) -> Tensor:
        """(b, P, C), without a copy where the memory allows it; Undefined for an output of another shape."""
        z = self._batch_space_channels(z)
        if len(self.space) == 1 and self.grid != UNKNOWN:
            height, width = self.grid
            z = z[:, self.first : self.first + height * width]
            if self.by_columns:
                z = z.unflatten(1, (width, height)).transpose(1, 2).flatten(1, 2)
        return z

    def read_class_token(self, z: Tensor) -> Tensor:
        """(b, 1, C), the first of the tokens that lie nowhere."""
        return self._batch_space_channels(z)[:, :1]

    def _batch_space_channels(self, z: Tensor) -> Tensor:
        shape = (*z.shape[: self.batch], 0, *z.shape[self.batch + 1 :])
        if shape != self.shape:
            raise Undefined(
                f"its output has shape {shape_text(shape)} in one forward pass and {shape_text(self.shape)} in another; "
                "layers whose shape depends on the images are not compared"
            )
        channel_axes = self._channel_axes()
        z = z.permute(self.batch, *self.space, *channel_axes)
        positions = math.prod(self.shape[axis] for axis in self.space)
        return z.reshape(len(z), positions, self.channels)

    def __str__(self) -> str:
        height, width = self.grid
        words = ["1" if size == 1 else "c" for size in self.shape]
        words[self.batch] = "b"
        if len(self.space) == 2:
            words[self.space[0]], words[self.space[1]] = "h", "w"
        if self.grid == UNKNOWN:
            words[self.space[0]] = "n"
        elif len(self.space) == 1:
            before, after = self.first, self.shape[self.space[0]] - self.first - height * width
            cells = f"{height}x{width}t" if self.by_columns else f"{height}x{width}"
            words[self.space[0]] = "+".join(str(part) for part in (before, cells, after) if part)
        return " ".join(words)


def parse_layout(text: str, shape: Sequence[int]) -> Layout:
    """The layout that a text stands for, for an output of this shape (with the batch); ValueError where it does not fit.

    b, c, h and w name the axes; tokens are `14x14` (rows × columns), `1+14x14+4` with those that lie nowhere before and after,
    `14x14t` where they run down the columns, `n` where their places are not known.
    """
    words = text.split()
    example = "e.g. 'b c h w', 'b h w c', 'b 1+14x14 c', '14x14 b c' or 'b c'"
    if len(words) != len(shape) or words.count("b") != 1:
        raise ValueError(
            f"the layout {text!r} must name the {len(shape)} axes of {shape_text(shape)}, one of them b; {example}"
        )
    batch = words.index("b")
    shape = without_batch(shape, batch)
    tokens: list[tuple[int, re.Match]] = []
    for axis, word in enumerate(words):
        match = TOKENS.fullmatch(word)
        if match:
            tokens.append((axis, match))
        elif word not in ("b", "c", "h", "w", "n", "1"):
            raise ValueError(f"the layout {text!r} has {word}, which is no axis; {example}")
        elif word == "1" and shape[axis] != 1:
            raise ValueError(f"the layout {text!r} has an axis of length 1 where the output has {shape[axis]}")
    kinds = words.count("h"), words.count("w"), len(tokens) + words.count("n")
    if kinds not in ((0, 0, 0), (1, 1, 0), (0, 0, 1)):
        raise ValueError(f"the layout {text!r} must have one h and one w, or one axis of tokens, or neither; {example}")
    if words.count("h"):
        row, column = words.index("h"), words.index("w")
        return Layout(shape, batch, (row, column), (shape[row], shape[column]))
    if words.count("n"):
        return Layout(shape, batch, (words.index("n"),), UNKNOWN)
    if not tokens:
        return Layout(shape, batch, space=(), grid=(1, 1))
    axis, match = tokens[0]
    before, height, width, after = (int(number or 0) for number in match.group("before", "height", "width", "after"))
    if before + height * width + after != shape[axis]:
        raise ValueError(f"the layout {text!r} has {words[axis]} tokens, the output {shape[axis]}")
    by_columns = match["t"] == "t"
    return Layout(shape, batch, (axis,), (height, width), first=before, by_columns=by_columns)


def layouts_by_corners(z: Tensor, shape_of_two: tuple[int, ...]) -> list[Layout]:
    """Every layout in which a change in a corner of the image changes most that corner of the output.

    Then tokens in unknown places along every axis on which each corner changes another place. `z` is the output for an image,
    and for the same with its upper left, upper right, lower left and lower right corner changed.
    """
    if z.dim() != len(shape_of_two):
        return []
    batches = [axis for axis, size in enumerate(shape_of_two) if (size, z.shape[axis]) == (2, 5)]
    if len(batches) != 1:
        return []
    batch = batches[0]
    shape = without_batch(z.shape, batch)
    z = z.detach().movedim(batch, 0).float()
    changes = (z[1:] - z[:1]).abs().nan_to_num(0, 0, 0).movedim(0, batch)
    axes = [axis for axis, size in enumerate(shape) if size > 1]
    found = []
    for row, column in permutations(axes, 2):
        layout = Layout(shape, batch, (row, column), (shape[row], shape[column]))
        if _corners_fit(layout, changes):
            found.append(layout)
    unordered = []
    for axis in axes:
        in_a_row = Layout(shape, batch, (axis,), (1, shape[axis]))
        by_place = _changes_by_place(in_a_row, changes)
        peaks = _only_by_this_corner(by_place).argmax(1).tolist()
        layout = _grid_of_tokens(in_a_row, peaks)
        if layout is not None and _corners_fit(layout, changes):
            found.append(layout)
        if len(set(peaks)) == 4 and _own(by_place[:, peaks]).ge(CLEARLY).all():
            unordered.append(replace(in_a_row, grid=UNKNOWN))
    return found + unordered


def _changes_by_place(layout: Layout, changes: Tensor) -> Tensor:
    """(4, P), how much of what each corner of the image changes is changed at each place."""
    others = [axis for axis in range(changes.dim()) if axis != layout.batch and axis not in layout.space]
    at_places = changes.sum(others, keepdim=True) if others else changes
    one_channel = replace(layout, shape=tuple(1 if axis in others else size for axis, size in enumerate(layout.shape)))
    at_places = one_channel.read(at_places)[..., 0]
    return at_places / at_places.sum(1, keepdim=True)


def _only_by_this_corner(changes: Tensor) -> Tensor:
    """(4, P), how much more each place changes with each corner of the image than with any other corner."""
    by_others = torch.empty_like(changes)
    for corner in range(len(changes)):
        others = [other for other in range(len(changes)) if other != corner]
        by_others[corner] = changes[others].amax(0)
    return changes - by_others


def _corners_fit(layout: Layout, changes: Tensor) -> bool:
    """Whether each quarter of the grid is changed by its own corner of the image, at least twice as much as by any other.

    Where changes reach all places, it will do if the corners of the grid are what each of them changes most.
    """
    height, width = layout.grid
    by_place = _changes_by_place(layout, changes)
    if _own(_by_quarter(by_place.unflatten(1, layout.grid))).ge(2).all():
        return True
    corners = [0, width - 1, (height - 1) * width, height * width - 1]
    if height * width < FEW_PLACES or not _own(by_place[:, corners]).ge(1.5).all():
        return False
    return _only_by_this_corner(by_place).argmax(1).tolist() == corners


def _by_quarter(by_place: Tensor) -> Tensor:
    """(4, 4), how much each corner of the image changes in each quarter of the grid, from (4, h, w)."""
    height, width = by_place.shape[1] // 2, by_place.shape[2] // 2
    upper, lower = by_place[:, :height], by_place[:, -height:]
    quarters = [upper[:, :, :width], upper[:, :, -width:], lower[:, :, :width], lower[:, :, -width:]]
    return torch.stack([quarter.sum((1, 2)) for quarter in quarters], dim=1)


def _own(changes: Tensor) -> Tensor:
    """(4,), how many times as much each part changes with its own corner of the image as with any other, from (4, 4)."""
    own = changes.diagonal()
    by_others = own - _only_by_this_corner(changes).diagonal()
    return own / by_others.clamp_min(torch.finfo(changes.dtype).tiny)


def _grid_of_tokens(in_a_row: Layout, peaks: Sequence[int]) -> Layout | None:
    """The grid whose corners are the tokens that change most with the corners of the image; None where these span no grid."""
    first, upper_right, lower_left, last = peaks
    by_columns = lower_left < upper_right
    run = min(upper_right, lower_left) - first + 1
    steps = last - first + 1
    if run < 2 or steps % run or steps == run or max(upper_right, lower_left) - first != steps - run:
        return None
    if in_a_row.grid[1] - steps > EXTRA_TOKENS:
        return None
    grid = (run, steps // run) if by_columns else (steps // run, run)
    return replace(in_a_row, grid=grid, first=first, by_columns=by_columns)


def is_proportional(grid: tuple[int, int], height: int, width: int) -> bool:
    """Whether square patches of an image of this size make such a grid."""
    rows, columns = grid
    if height == width:
        return rows == columns
    smallest = max(height / (rows + 1), width / (columns + 1))
    largest = min(height / max(rows - 1, 0.5), width / max(columns - 1, 0.5))
    return smallest <= largest


def without_batch(shape: Sequence[int], batch: int) -> tuple[int, ...]:
    """The shape with 0 where the batch is."""
    return (*shape[:batch], 0, *shape[batch + 1 :])


def shape_text(shape: Sequence[int]) -> str:
    """A shape as errors and reasons write it, with b where the batch is."""
    return f"({', '.join('b' if size == 0 else str(size) for size in shape)})"
