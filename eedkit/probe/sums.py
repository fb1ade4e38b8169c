"""The sums over positions that channelwise measures are made of, for the whole orbit of a layer's maps in one reading.

Knows tensors and actions. Where numba is installed, float32 maps on a processor are read once by a compiled loop; elsewhere
tensor operations take the images that fit a processor's cache. Holds (g, 4, b, C) sums in float64.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from eedkit.theory.actions import LayerAction
from eedkit.theory.deviation import shuffled
from eedkit.theory.distances import ChannelSums

IN_CACHE = 2**17
"""Numbers of maps whose float64 copies a processor's cache holds."""
WORTH_COMPILING = 1e8
"""Numbers in the maps of all passes so far from which on loading the compiled loop costs less than it saves."""

_numbers_so_far = 0.0


def is_worth_compiling(numbers: float) -> bool:
    """Whether the compiled loop is there, or worth its loading for so many numbers and all before them."""
    global _numbers_so_far
    _numbers_so_far += numbers
    return _loop.cache_info().currsize > 0 or _numbers_so_far > WORTH_COMPILING


def orbit_sums(
    orbit: Tensor,
    layer_actions: list[LayerAction],
    elements: list[int],
    partners: Tensor,
    half: Tensor,
    *,
    compiled: bool,
) -> tuple[ChannelSums, Tensor]:
    """The sums of a = f(gx) and b = g f(x), and those of the shuffled orbit, a = f(gx′): (2, g, b, C).

    And how many channels are zero for gx and for x, and how many finite: (2, g, b).

    Parameters
    ----------
    orbit : Tensor (g, b, P, C)
        f(gx), f(x) first.
    layer_actions : list of LayerAction
        How the group acts on f(x); of two the first for images whose `half` is 0, the second where it is 1.
    elements : list of int
        Which elements of the group these are.
    partners : Tensor (g, b)
        The image x′ of each.
    half : Tensor (b,)
    compiled : bool
        Whether the compiled loop may be used, where it is installed.
    """
    n = orbit.shape[2] if layer_actions[0].compared is None else len(layer_actions[0].compared)
    tables = _tables(layer_actions) if compiled and orbit.dtype == torch.float32 else None
    loop = None if tables is None else _loop()
    if tables is not None and loop is not None:
        (a, aa, ab), totals = loop(orbit, elements, *tables, half, partners)
        b, bb = a[0, :1], aa[0, :1]
        channels = tables[1]
        if len(channels):
            come_from = channels[half % len(channels)][:, elements].movedim(1, 0)  # (g, b, C)
            b = b.expand_as(a[0]).gather(2, come_from)
            bb = bb.expand_as(a[0]).gather(2, come_from)
        return ChannelSums(n, a, b, aa, bb, ab, totals[:2]), totals[2:]
    of_actions = [_eager_sums(orbit, action, elements, partners) for action in layer_actions]
    sums = of_actions[0]
    if len(of_actions) > 1:
        sums = torch.where(half.bool()[:, None], of_actions[1], of_actions[0])
    a, aa, b, bb, ab, ab_of_partners = sums
    of_both = ChannelSums(
        n,
        torch.stack([a, shuffled(a, partners)]),
        b,
        torch.stack([aa, shuffled(aa, partners)]),
        bb,
        torch.stack([ab, ab_of_partners]),
    )
    is_zero = aa == 0
    return of_both, torch.stack([(is_zero & is_zero[:1]).sum(-1), aa.isfinite().sum(-1)])


def _eager_sums(orbit: Tensor, action: LayerAction, elements: list[int], partners: Tensor) -> Tensor:
    """(6, g, b, C): Σa, Σa², Σb, Σb², Σab and Σa′b, over as many images at once as a processor's cache holds."""
    order, images, _, channels = orbit.shape
    sums = orbit.new_empty(6, order, images, channels, dtype=torch.float64)
    together = images_in_cache(orbit[0])
    for start in range(0, images, together):
        some = slice(start, start + together)
        for k, g in enumerate(elements):
            a = action.visible(orbit[k, some]).double()
            b = action.visible(action(g, orbit[0, some])).double()
            of_partners = action.visible(orbit[k, partners[k, some]])
            sums[0, k, some] = a.sum(1)
            sums[1, k, some] = (a * a).sum(1)
            sums[2, k, some] = b.sum(1)
            sums[3, k, some] = (b * b).sum(1)
            sums[4, k, some] = (a * b).sum(1)
            sums[5, k, some] = (of_partners * b).sum(1)
    return sums


def images_in_cache(maps: Tensor) -> int:
    """For how many images at once tensor operations on maps (b, P, C) are fastest."""
    return max(1, IN_CACHE // max(1, maps[0].numel())) if maps.device.type == "cpu" else len(maps)


def _tables(layer_actions: list[LayerAction]) -> tuple[Tensor, Tensor] | None:
    """From where positions (g, P) and channels (halves, g, C) come; empty where they stay, None where they are mixed."""
    action = layer_actions[0]
    if action.interpolates or action.compared is not None:
        return None
    positions = torch.empty(0, 0, dtype=torch.int64) if action.positions is None else action.positions
    of_channels = [one.channels for one in layer_actions]
    if of_channels[0] is None:
        channels = torch.empty(0, 0, 0, dtype=torch.int64)
    elif any(table is None or table.dim() != 2 for table in of_channels):
        return None
    else:
        channels = torch.stack(of_channels)  # pyright: ignore
    return positions, channels


@cache
def _loop() -> Any:
    """The compiled loop; None without numba."""
    try:
        from eedkit.probe import fused
    except ImportError:
        return None
    return fused.orbit_sums
