"""The sums of `sums.orbit_sums` as one loop, compiled by numba for this processor.

Importing it needs numba, and compiles at the first call, some seconds once on a machine. Sums are taken in float64, in which no
square of a float32 overflows or vanishes.
"""

import threading

import numba
import numpy as np
import torch
from torch import Tensor

f8 = np.float64
TINY = np.finfo(np.float64).tiny


def _squares(v):
    """Σv and Σv² of maps (P, C)."""
    places, channels = v.shape
    in_fours = places - places % 4
    a = np.zeros(channels)
    aa = np.zeros(channels)
    # several positions at a time, since loading and storing the sums costs as much as the arithmetic
    for p in range(0, in_fours, 4):
        for c in range(channels):
            v0, v1, v2, v3 = f8(v[p, c]), f8(v[p + 1, c]), f8(v[p + 2, c]), f8(v[p + 3, c])
            a[c] += (v0 + v1) + (v2 + v3)
            aa[c] += (v0 * v0 + v1 * v1) + (v2 * v2 + v3 * v3)
    for p in range(in_fours, places):
        for c in range(channels):
            value = f8(v[p, c])
            a[c] += value
            aa[c] += value * value
    return a, aa


def _products(v, w, t, positions):
    """Σv, Σv², Σ v·gt and Σ w·gt of maps (P, C)."""
    places, channels = v.shape
    in_fours = places - places % 4
    a = np.zeros(channels)
    aa = np.zeros(channels)
    ab = np.zeros(channels)
    wb = np.zeros(channels)
    for p in range(0, in_fours, 4):
        q0, q1, q2, q3 = positions[p], positions[p + 1], positions[p + 2], positions[p + 3]
        for c in range(channels):
            v0, v1, v2, v3 = f8(v[p, c]), f8(v[p + 1, c]), f8(v[p + 2, c]), f8(v[p + 3, c])
            w0, w1, w2, w3 = f8(w[p, c]), f8(w[p + 1, c]), f8(w[p + 2, c]), f8(w[p + 3, c])
            t0, t1, t2, t3 = f8(t[q0, c]), f8(t[q1, c]), f8(t[q2, c]), f8(t[q3, c])
            a[c] += (v0 + v1) + (v2 + v3)
            aa[c] += (v0 * v0 + v1 * v1) + (v2 * v2 + v3 * v3)
            ab[c] += (v0 * t0 + v1 * t1) + (v2 * t2 + v3 * t3)
            wb[c] += (w0 * t0 + w1 * t1) + (w2 * t2 + w3 * t3)
    for p in range(in_fours, places):
        q = positions[p]
        for c in range(channels):
            value = f8(v[p, c])
            target = f8(t[q, c])
            a[c] += value
            aa[c] += value * value
            ab[c] += value * target
            wb[c] += f8(w[p, c]) * target
    return a, aa, ab, wb


def _with_channels(t, positions, channels):
    """Maps (P, C) whose positions and channels come from others."""
    moved = np.empty_like(t)
    for p in range(len(t)):
        row = t[positions[p]]
        for c in range(len(channels)):
            moved[p, c] = row[channels[c]]
    return moved


def _agreement(ab, inverse_a, inverse_b, aa, bb):
    """The sum over channels of the cosines of a and b: 1 where both are zero, 0 where one is."""
    total = 0.0
    for c in range(len(ab)):
        # where a sum of squares is 0 so is ab; a NaN stays
        cosine = ab[c] * inverse_a[c] * inverse_b[c]
        if cosine > 1.0:
            cosine = 1.0
        if cosine < -1.0:
            cosine = -1.0
        if aa[c] == 0.0 and bb[c] == 0.0:
            cosine = 1.0
        total += cosine
    return total


def _sums_of_orbit(orbit, elements, positions, channels, half, partners, sums, totals):
    """Write what the orbit, and the shuffled one, sum up to over positions, and over channels.

    Over positions a, aa and ab, to sums (3, 2, g, b, C); over channels the cosines, to totals[:2], and how many channels are zero
    for gx and x, and how many finite, to totals[2:], each (g, b).
    """
    order, images, places, width = orbit.shape
    in_place = np.arange(places)
    moves = len(positions) > 0
    permutes = len(channels) > 0
    inverse_norms = np.empty((order, images, width))
    for i in numba.prange(images):
        t = orbit[0, i]
        a, aa = _squares(t)
        sums[0, 0, 0, i] = a
        sums[1, 0, 0, i] = aa
        sums[2, 0, 0, i] = aa
        sums[2, 1, 0, i] = aa
        for k in range(1, order):
            v = orbit[k, i]
            w = orbit[k, partners[k, i]]
            come_from = positions[elements[k]] if moves else in_place
            if permutes:
                moved = _with_channels(t, come_from, channels[half[i] % len(channels), elements[k]])
                a, aa, ab, wb = _products(v, w, moved, in_place)
            else:
                a, aa, ab, wb = _products(v, w, t, come_from)
            sums[0, 0, k, i] = a
            sums[1, 0, k, i] = aa
            sums[2, 0, k, i] = ab
            sums[2, 1, k, i] = wb
        for k in range(order):
            aa = sums[1, 0, k, i]
            dead = 0
            finite = 0
            for c in range(width):
                inverse_norms[k, i, c] = 1 / np.sqrt(max(aa[c], TINY))
                dead += aa[c] == 0.0 and sums[1, 0, 0, i, c] == 0.0
                finite += np.isfinite(aa[c])
            totals[2, k, i] = dead
            totals[3, k, i] = finite
    for i in numba.prange(images):
        bb = sums[1, 0, 0, i]
        inverse_b = inverse_norms[0, i]
        for k in range(order):
            j = partners[k, i]
            sums[:2, 1, k, i] = sums[:2, 0, k, j]
            if permutes:
                of_channels = channels[half[i] % len(channels), elements[k]]
                bb = sums[1, 0, 0, i][of_channels]
                inverse_b = inverse_norms[0, i][of_channels]
            totals[0, k, i] = _agreement(sums[2, 0, k, i], inverse_norms[k, i], inverse_b, sums[1, 0, k, i], bb)
            totals[1, k, i] = _agreement(sums[2, 1, k, i], inverse_norms[k, j], inverse_b, sums[1, 0, k, j], bb)


_options = {"nogil": True, "cache": True, "fastmath": {"contract", "reassoc"}}
_squares = numba.njit(**_options)(_squares)
_products = numba.njit(**_options)(_products)
_agreement = numba.njit(**_options)(_agreement)
_with_channels = numba.njit(**_options)(_with_channels)
_compiled = numba.njit(parallel=True, **_options)(_sums_of_orbit)

_one_at_a_time = threading.Lock()


def orbit_sums(
    orbit: Tensor, elements: list[int], positions: Tensor, channels: Tensor, half: Tensor, partners: Tensor
) -> tuple[Tensor, Tensor]:
    """For orbits (g, b, P, C) Σa, Σa² and Σab of a = f(gx) and b = g f(x), and of the shuffled orbit: (3, 2, g, b, C).

    And (4, g, b): the sums over channels of their cosines, in both orbits; how many channels are dead, and how many finite.
    """
    tables = [table.contiguous().numpy() for table in (positions, channels, half, partners)]
    order, images, _, width = orbit.shape
    sums = np.empty((3, 2, order, images, width))
    totals = np.empty((4, order, images))
    threads = torch.get_num_threads()
    # numba's simplest threading layer does not bear two callers
    with _one_at_a_time:
        most = numba.config.NUMBA_NUM_THREADS  # pyright: ignore  # numba makes its settings as it is imported
        numba.set_num_threads(min(threads, most))
        _compiled(orbit.contiguous().numpy(), np.array(elements), *tables, sums, totals)  # pyright: ignore  # numba's types are its own
        if torch.get_num_threads() != threads:  # starting numba's threads sets those of torch
            torch.set_num_threads(threads)
    return torch.from_numpy(sums), torch.from_numpy(totals)
