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


def _sums_of_orbit(orbit, positions, channels, half, partners, sums):
    """Write a, aa and ab of the orbit, and of the shuffled one, to sums (3, 2, g, b, C)."""
    order, images, places, _ = orbit.shape
    in_place = np.arange(places)
    permutes = len(channels) > 0
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
            if permutes:
                moved = _with_channels(t, positions[k], channels[half[i] % len(channels), k])
                a, aa, ab, wb = _products(v, w, moved, in_place)
            else:
                a, aa, ab, wb = _products(v, w, t, positions[k])
            sums[0, 0, k, i] = a
            sums[1, 0, k, i] = aa
            sums[2, 0, k, i] = ab
            sums[2, 1, k, i] = wb
    for i in numba.prange(images):
        for k in range(order):
            sums[:2, 1, k, i] = sums[:2, 0, k, partners[k, i]]


_options = {"nogil": True, "cache": True, "fastmath": {"contract", "reassoc"}}
_squares = numba.njit(**_options)(_squares)
_products = numba.njit(**_options)(_products)
_with_channels = numba.njit(**_options)(_with_channels)
_compiled = numba.njit(parallel=True, **_options)(_sums_of_orbit)

_one_at_a_time = threading.Lock()


def orbit_sums(orbit: Tensor, positions: Tensor, channels: Tensor, half: Tensor, partners: Tensor) -> Tensor:
    """Σa, Σa² and Σab of a = f(gx) and b = g f(x), and of the shuffled orbit: (3, 2, g, b, C), for orbits (g, b, P, C)."""
    tables = [table.contiguous().numpy() for table in (orbit, positions, channels, half, partners)]
    order, images, _, width = orbit.shape
    sums = np.empty((3, 2, order, images, width))
    threads = torch.get_num_threads()
    # numba's simplest threading layer does not bear two callers
    with _one_at_a_time:
        most = numba.config.NUMBA_NUM_THREADS  # pyright: ignore  # numba makes its settings as it is imported
        numba.set_num_threads(min(threads, most))
        _compiled(*tables, sums)  # pyright: ignore  # numba's types are its own
        if torch.get_num_threads() != threads:  # starting numba's threads sets those of torch
            torch.set_num_threads(threads)
    return torch.from_numpy(sums)
