"""One channel of a layer as one image moves. Draws what `moved_maps` gives, and knows nothing of models."""

from collections.abc import Sequence
from os import PathLike
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from eedkit.plots import style
from eedkit.probe.features import moved_maps

LOOKS = {"gx": "gray", "f(gx)": "viridis", "g f(x)": "viridis", "difference": "RdBu"}
"""The colours of each row."""
SIDE = 200
"""Pixels of a picture in a film."""
MILLISECONDS = 800
"""That a film shows an element for."""


def flipbook(
    model: Any,
    image: Any,
    *,
    group: Any,
    layer: str,
    channel: int = 0,
    film: str | PathLike | None = None,
    title: str | None = None,
    **options: Any,
) -> Figure:
    """f(gx), g f(x) and their difference, a column for each element: nothing is left where the channel moves with the image.

    The channels of a group convolution also change places, which a single one does not show.

    Parameters
    ----------
    model, group : as in `measure`; so are further options, such as `layouts` and `call`
    image : one image (C, H, W)
    layer : its name, as `ek.layers` lists them
    film : path of a GIF to write as well, of each column side by side, one after the other

    >>> import torch
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(50, 3))
    >>> len(flipbook(net, torch.rand(1, 5, 5), group="C4", layer="0", channel=1).axes)
    16
    """
    elements, moved_images, orbit, moved = moved_maps(
        model, image, group=group, layer=layer, channel=channel, **options
    )
    difference = orbit - moved
    lowest = min(orbit.min(), moved.min())
    tiny = np.finfo(orbit.dtype).tiny
    span = max(orbit.max() - lowest, moved.max() - lowest, tiny)
    scaled = [moved_images.mean(1), (orbit - lowest) / span, (moved - lowest) / span, difference / (2 * span) + 0.5]
    rows = [mpl.colormaps[look](values) for look, values in zip(LOOKS.values(), scaled, strict=True)]
    if film is not None:
        _write_film(film, rows)
    with style.theme(grid=False):
        size = min(1.5, style.inches() / (len(elements) + 1.0))
        fig = style.blank(4.5 * size, title, f"Does channel {channel} of {style.literal(layer)} move with the image?")
        axes = fig.subplots(len(rows), len(elements), squeeze=False, subplot_kw={"xticks": [], "yticks": []})
        for row, (name, pictures) in enumerate(zip(LOOKS, rows, strict=True)):
            axes[row, 0].set_ylabel(name)
            for ax, picture in zip(axes[row], pictures, strict=True):
                ax.imshow(picture)
        for k, element in enumerate(elements):
            axes[0, k].set_title(style.literal(element))
            size_of_difference = np.linalg.norm(difference[k]) / max(np.linalg.norm(orbit[k]), tiny)
            axes[-1, k].set(xlabel=f"{size_of_difference:.2g}")
        style.finish(fig, [], "below: the size of the difference, relative to that of f(gx)")
    return fig


def _write_film(path: str | PathLike, rows: Sequence[np.ndarray]) -> None:
    """A GIF with the rows' pictures side by side, an element at a time."""
    frames = []
    for pictures in zip(*rows, strict=True):
        frame = Image.new("RGB", (SIDE * len(rows), SIDE))
        for k, picture in enumerate(pictures):
            pixels = Image.fromarray((255 * picture[..., :3]).astype(np.uint8))
            frame.paste(pixels.resize((SIDE, SIDE), Image.Resampling.NEAREST), (SIDE * k, 0))
        frames.append(frame)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=MILLISECONDS, loop=0)
