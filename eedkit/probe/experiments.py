"""How layers lay out positions and channels, found by a few small forward passes on other images.

Knows traces and layouts, never weights. Costs four images of another size, and five where sizes do not tell.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations

import torch
from torch import Tensor, nn

from eedkit.probe.layouts import UNKNOWN, Layout, is_proportional, layouts_by_corners, shape_text, without_batch
from eedkit.probe.outputs import Output
from eedkit.probe.tracing import Call, Key, Trace, trace

HEIGHT, WIDTH = -2, -1
"""The axes of images."""
Axes = list[int] | None
"""The axes of an output that follow the image's height, or its width; None where that is not known."""


@dataclass
class Experiments:
    """Finds layouts, with further forward passes only where a layer asks for them.

    `first` is the trace of `images` (2, C, H, W); of what the model gives `outputs` are read, of what modules take the `head`'s.
    """

    model: nn.Module
    images: Tensor
    call: Call
    first: Trace
    outputs: Sequence[Output]
    head: Key | None
    resized: dict[int, list[Trace]] = field(default_factory=lambda: {HEIGHT: [], WIDTH: []})
    by_corners: dict[Key, list[Layout]] = field(default_factory=dict)

    def layout(self, key: Key, name: str) -> tuple[Layout | None, str]:
        """How the layer of this name is read, and why it, or its maps, cannot be."""
        shape = self.first.shapes[key]
        if self.first.field_types[key] is not None and len(shape) == 4:
            return _map(without_batch(shape, 0), 0, 2, 3), ""  # a GeometricTensor is (b, c, h, w)
        batch = self.batch_axis(key)
        if batch is None:
            return None, self._why_no_batch(key)
        layout, reason = self._of_places(key, without_batch(shape, batch), batch)
        if reason:
            reason = f"{reason}; if you know how it lies, pass layouts={{{name!r}: 'b 1+14x14 c'}} (or as it is)"
        return layout, reason

    def _of_places(self, key: Key, blank: tuple[int, ...], batch: int) -> tuple[Layout | None, str]:
        """The layout first from the shapes on other sizes, then from the corners of the image."""
        vector = Layout(blank, batch, space=(), grid=(1, 1))
        if len(blank) <= 2:
            return vector, ""
        rows, columns = self._follow(key)
        map_axes = _map_axes(rows, columns)
        if map_axes is not None:
            return _map(blank, batch, *map_axes), ""
        is_vector = sum(size > 1 for size in blank) <= 1
        if is_vector and rows == columns == []:
            return vector, ""
        _ = self.cornered  # fills `by_corners`
        found = [layout for layout in self.by_corners.get(key, []) if layout.grid != UNKNOWN]
        if not any(set(one.space).isdisjoint(other.space) for one, other in combinations(found, 2)):
            found = [layout for layout in found if _follows(layout, rows, columns)]
        if len(found) == 1:
            return found[0], ""
        if len(found) > 1:
            return None, f"its output {shape_text(blank)} can be read as {' and as '.join(map(str, found))}"
        other = self._like_another(key, blank, batch, rows, columns) or _in_one_line(blank, batch, rows, columns)
        if other is not None or is_vector:
            return other or vector, ""
        return self._without_places(key, blank, batch, rows, columns)

    def _without_places(
        self, key: Key, blank: tuple[int, ...], batch: int, rows: Axes, columns: Axes
    ) -> tuple[Layout | None, str]:
        """Tokens whose places are not known, if it shows which axis they are; and why the places do not show."""
        tokens = [layout.space[0] for layout in self.by_corners.get(key, [])]
        if rows and rows == columns:
            tokens = rows
        why = "what follows the image's size does not settle it"
        if rows is None or columns is None:
            side, name = (HEIGHT, "height") if rows is None else (WIDTH, "width")
            tried = ", ".join(map(str, _other_sizes(self.images.shape[side])))
            why = f"the model takes no other size, or gives other axes for it (tried {name} {tried})"
        why = f"{why}, and a change in a corner of the image does not change one corner most"
        if len(tokens) == 1:
            (axis,) = tokens
            why = f"where the {blank[axis]} tokens of its output {shape_text(blank)} lie did not show: {why}"
            return Layout(blank, batch, (axis,), UNKNOWN), why
        return None, f"which axes of its output {shape_text(blank)} are places of the image did not show: {why}"

    def batch_axis(self, key: Key) -> int | None:
        """The one axis that has as many entries as there are images, whatever their number."""
        shape = self.first.shapes[key]
        passes = [other for other in self._other_passes if len(other.shapes.get(key, ())) == len(shape)]
        axes = set(range(len(shape)))
        for seen in (self.first, *(passes or [self.cornered])):
            axes &= {axis for axis, size in enumerate(seen.shapes.get(key, ())) if size == seen.images}
        return axes.pop() if len(axes) == 1 else None

    def _why_no_batch(self, key: Key) -> str:
        seen = []
        for one in (self.first, *self._other_passes, self.cornered):
            if key in one.shapes:
                seen.append(f"{shape_text(one.shapes[key])} for {one.images}")
        return (
            "no axis of its output counts the images (they may be merged with windows, or not come in), or more than one may: "
            f"it has shape {' and '.join(seen[:2])} images"
        )

    @property
    def _other_passes(self) -> list[Trace]:
        """The passes on images of another height, or width, as far as there was need of any."""
        for side in (HEIGHT, WIDTH):
            self._resized(side, 0)
        return [*self.resized[HEIGHT], *self.resized[WIDTH]]

    def _follow(self, key: Key) -> tuple[Axes, Axes]:
        """The axes that are shorter where the image has fewer rows, and those where it has fewer columns."""
        return self._follow_one(key, HEIGHT), self._follow_one(key, WIDTH)

    def _follow_one(self, key: Key, side: int) -> Axes:
        shape = self.first.shapes[key]
        size = self.images.shape[side]
        for number, other_size in enumerate(_other_sizes(size)):
            other = self._resized(side, number).shapes.get(key, ())
            if len(other) == len(shape):
                batch = self.batch_axis(key)
                sign = 1 if other_size > size else -1
                axes = [axis for axis in range(len(shape)) if axis != batch]
                return [axis for axis in axes if sign * (other[axis] - shape[axis]) > 0]
        return [] if size == 1 else None

    def _resized(self, side: int, number: int) -> Trace:
        """The pass on the number-th other height, of three images, or on the number-th other width, of one."""
        passes = self.resized[side]
        while len(passes) <= number:
            shape = list(self.images.shape)
            shape[0] = 3 if side == HEIGHT else 1
            shape[side] = _other_sizes(shape[side])[len(passes)]
            noise = torch.rand(shape, generator=torch.Generator().manual_seed(0))
            passes.append(trace(self.model, noise.to(self.images), self.call, outputs=self.outputs))
        return passes[number]

    def _like_another(self, key: Key, blank: tuple[int, ...], batch: int, rows: Axes, columns: Axes) -> Layout | None:
        """Tokens read by the grid that as many tokens have elsewhere in the model.

        Elsewhere is anywhere, if the axis is known to follow the image's size; else only in a module that this one is part of,
        since tokens that stand for no places may be as many by chance.
        """
        axes = [axis for axis in range(len(blank)) if axis != batch]
        is_known = rows is not None and rows == columns and len(rows) == 1
        if is_known:
            axes = rows or []
        found = set()
        for (path, _, _), layouts in self.by_corners.items():
            layouts = [layout for layout in layouts if layout.grid != UNKNOWN]
            encloses = path != "" and key[0].startswith(f"{path}.")
            if len(layouts) == 1 and len(layouts[0].space) == 1 and (is_known or encloses):
                tokens = layouts[0].shape[layouts[0].space[0]]
                for axis in axes:
                    if blank[axis] == tokens:
                        found.add(replace(layouts[0], shape=blank, batch=batch, space=(axis,)))
        return found.pop() if len(found) == 1 else None

    @cached_property
    def cornered(self) -> Trace:
        """A pass on one image, and on the same with each of its corners changed; fills `by_corners`."""
        image = self.images[0].nan_to_num()
        channels, height, width = image.shape
        half_height, half_width = math.ceil(height / 2), math.ceil(width / 2)
        # strong in the corner, and ever weaker further in, for networks that skip the outermost pixels
        size = max(2, min(height, width) // 64)
        fading_rows = 0.1 ** (torch.arange(half_height) / size)
        fading_columns = 0.1 ** (torch.arange(half_width) / size)
        noise = torch.randn(channels, half_height, half_width, generator=torch.Generator().manual_seed(0))
        upper_left = torch.zeros_like(image)
        upper_left[:, :half_height, :half_width] = noise * fading_rows[:, None] * fading_columns
        upper_left *= 3 * image.std(correction=0) + 1
        changes = [upper_left.flip(axes) for axes in ((), (-1,), (-2,), (-2, -1))]
        images = torch.stack([image, *(image + change for change in changes)])
        open_shapes = {}
        for key, shape in self.first.shapes.items():
            is_read = key[2] != "in" or key == self.head
            if is_read and len(shape) > 2 and _map_axes(*self._follow(key)) is None:
                open_shapes[key] = shape

        def find(key: Key, z: Tensor) -> None:
            if key in open_shapes:
                self.by_corners[key] = layouts_by_corners(z, open_shapes[key])

        found = trace(self.model, images, self.call, outputs=self.outputs, on_tensor=find)
        self._drop_unlikely_grids()
        return found

    def _drop_unlikely_grids(self) -> None:
        """Leave out grids of tokens that have neither the image's proportions nor the size of a map of this model."""
        height, width = self.images.shape[-2:]
        grids: set[tuple[int, int]] = {UNKNOWN}
        for key, shape in self.first.shapes.items():
            map_axes = _map_axes(*self._follow(key)) if len(shape) > 2 else None
            if map_axes is not None:
                row, column = map_axes
                grids.add((shape[row], shape[column]))
            grids |= {layout.grid for layout in self.by_corners.get(key, []) if len(layout.space) == 2}
        for key, layouts in self.by_corners.items():
            likely = []
            for layout in layouts:
                is_map = len(layout.space) == 2
                if is_map or layout.grid in grids or is_proportional(layout.grid, height, width):
                    likely.append(layout)
            self.by_corners[key] = likely


def _other_sizes(size: int) -> list[int]:
    """Other sizes to try in turn: small enough to be cheap, and large enough to pass through a network made for this one."""
    smaller = (size // 4, size // 2) if size >= 64 else (size // 2, size // 4)
    sizes = dict.fromkeys([max(1, smaller[0]), max(1, smaller[1]), 2 * size])
    return [other for other in sizes if other != size]


def _map(blank: tuple[int, ...], batch: int, row: int, column: int) -> Layout:
    """A map whose places lie along these axes; a vector where it is one place."""
    grid = blank[row], blank[column]
    return Layout(blank, batch, () if grid == (1, 1) else (row, column), grid)


def _map_axes(rows: Axes, columns: Axes) -> tuple[int, int] | None:
    """The axes of rows and columns, where one follows the image's height and another its width."""
    if not rows or not columns or rows == columns or len(rows) + len(columns) > 2:
        return None
    return rows[0], columns[0]


def _follows(layout: Layout, rows: Axes, columns: Axes) -> bool:
    """Whether its axes are among those that follow the image's rows and columns, as far as any do."""
    row, column = layout.space[0], layout.space[-1]
    return (not rows or row in rows) and (not columns or column in columns)


def _in_one_line(blank: tuple[int, ...], batch: int, rows: Axes, columns: Axes) -> Layout | None:
    """One row of places, or one column, where one axis follows the image one way, none the other, and the rest are channels."""
    followed = rows or columns or []
    if [] not in (rows, columns) or len(followed) != 1:
        return None
    axis = followed[0]
    others = [other for other in range(len(blank)) if other not in (batch, axis)]
    flat = [other for other in others if blank[other] == 1]
    if len(others) - len(flat) > 1:
        return None
    if len(flat) == 1 and len(others) > 1:
        row, column = (axis, flat[0]) if rows else (flat[0], axis)
        return _map(blank, batch, row, column)
    return Layout(blank, batch, (axis,), (blank[axis], 1) if rows else (1, blank[axis]))
