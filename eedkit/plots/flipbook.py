"""One channel of a layer as one image moves. Runs the model once, on the image under all elements, as `measure` does."""

from collections.abc import Sequence
from os import PathLike
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from eedkit.errors import unknown
from eedkit.plots import style
from eedkit.probe import run
from eedkit.probe.collect import Place
from eedkit.probe.measure import Options
from eedkit.probe.metrics import METRICS
from eedkit.probe.samples import as_float, open_stream

LOOKS = {"gx": "gray", "f(gx)": "viridis", "g f(x)": "viridis", "difference": "RdBu"}
"""The colours of each row."""
SIDE = 200
"""Pixels of a picture in a film."""
MILLISECONDS = 800
"""That a film shows an element for."""


def flipbook(
    model: nn.Module,
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

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(50, 3))
    >>> len(flipbook(net, torch.rand(1, 5, 5), group="C4", layer="0", channel=1).axes)
    16
    """
    images = as_float(image)[None]
    how = Options(group, metrics="channelwise", layers="all", **options)
    elements = how.action.group.elements
    seen = []
    with run.prepared(model, open_stream(images), how) as ready:
        layers = {found.name: found for found in ready.found.layers if found.role == "module"}
        if layer not in layers:
            raise ValueError(unknown("layer", layer, layers))
        chosen = layers[layer]
        METRICS["channelwise"].refuse(chosen)
        if not 0 <= channel < chosen.channels:
            raise ValueError(f"channel must be from 0 to {chosen.channels - 1} at {layer}, got {channel}")
        nobody = torch.zeros(1, dtype=torch.int64)
        place = Place([*range(len(elements))], 0, slice(0, 1), nobody.expand(len(elements), 1), nobody)
        with run.watched(ready, lambda *given: seen.append(chosen.read(given[-1])), layers=[chosen]) as forward:
            forward(place, images)
        moved_images = ready.forward.orbit(place.elements, images).float().cpu()
    orbit = seen[0].float().cpu()
    action = how.action.on(chosen.grid, chosen.channels)
    moved = torch.stack([action(g, orbit[0]) for g in place.elements])
    maps = torch.stack([orbit, moved, orbit - moved])[..., channel].unflatten(-1, chosen.grid)
    tiny = torch.finfo(maps.dtype).tiny
    span = (maps[:2].max() - maps[:2].min()).clamp_min(tiny)
    scaled = [moved_images.mean(1), *((maps[:2] - maps[:2].min()) / span), maps[2] / (2 * span) + 0.5]
    rows = [mpl.colormaps[look](values.numpy()) for look, values in zip(LOOKS.values(), scaled, strict=True)]
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
            axes[-1, k].set(xlabel=f"{maps[2, k].norm() / maps[0, k].norm().clamp_min(tiny):.2g}")
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
