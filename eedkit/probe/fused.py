"""The sums of `sums.orbit_sums` as one loop, compiled by numba for this processor.

Importing it needs numba, and compiles at the first call, a few seconds once on a machine.
"""

import threading

import numba
import numpy as np
import torch
from torch import Tensor

SMALLEST = 1e-25
LARGEST = 1e30
"""Mean squares between these neither vanish nor overflow as sums of float32 products."""


def _add_pair(v, w, t, positions, sums, number):
    """Add Σv, Σv², Σ v·gt and Σ w·gt of maps (P, C) to sums (4, C), with products in the type of `number`."""
    places, channels = v.shape
    kind = number.dtype.type
    in_eights = places - places % 8
    a, aa, ab, wb = sums
    # eight positions at a time, since loading and storing the sums costs as much as the arithmetic
    for p in range(0, in_eights, 8):
        q0, q1, q2, q3, q4, q5, q6, q7 = positions[p : p + 8]
        for c in range(channels):
            v0, v1, v2, v3 = kind(v[p, c]), kind(v[p + 1, c]), kind(v[p + 2, c]), kind(v[p + 3, c])
            v4, v5, v6, v7 = kind(v[p + 4, c]), kind(v[p + 5, c]), kind(v[p + 6, c]), kind(v[p + 7, c])
            t0, t1, t2, t3 = kind(t[q0, c]), kind(t[q1, c]), kind(t[q2, c]), kind(t[q3, c])
            t4, t5, t6, t7 = kind(t[q4, c]), kind(t[q5, c]), kind(t[q6, c]), kind(t[q7, c])
            w0, w1, w2, w3 = kind(w[p, c]), kind(w[p + 1, c]), kind(w[p + 2, c]), kind(w[p + 3, c])
            w4, w5, w6, w7 = kind(w[p + 4, c]), kind(w[p + 5, c]), kind(w[p + 6, c]), kind(w[p + 7, c])
            a[c] += ((v0 + v1) + (v2 + v3)) + ((v4 + v5) + (v6 + v7))
            aa[c] += ((v0 * v0 + v1 * v1) + (v2 * v2 + v3 * v3)) + ((v4 * v4 + v5 * v5) + (v6 * v6 + v7 * v7))
            ab[c] += ((v0 * t0 + v1 * t1) + (v2 * t2 + v3 * t3)) + ((v4 * t4 + v5 * t5) + (v6 * t6 + v7 * t7))
            wb[c] += ((w0 * t0 + w1 * t1) + (w2 * t2 + w3 * t3)) + ((w4 * t4 + w5 * t5) + (w6 * t6 + w7 * t7))
    for p in range(in_eights, places):
        q = positions[p]
        for c in range(channels):
            value = kind(v[p, c])
            target = kind(t[q, c])
            a[c] += value
            aa[c] += value * value
            ab[c] += value * target
            wb[c] += kind(w[p, c]) * target


def _add_squares(v, sums, number):
    """Add Σv and Σv² of maps (P, C) to sums (4, C), where v is its own target and partner."""
    places, channels = v.shape
    kind = number.dtype.type
    in_eights = places - places % 8
    a, aa = sums[0], sums[1]
    for p in range(0, in_eights, 8):
        for c in range(channels):
            v0, v1, v2, v3 = kind(v[p, c]), kind(v[p + 1, c]), kind(v[p + 2, c]), kind(v[p + 3, c])
            v4, v5, v6, v7 = kind(v[p + 4, c]), kind(v[p + 5, c]), kind(v[p + 6, c]), kind(v[p + 7, c])
            a[c] += ((v0 + v1) + (v2 + v3)) + ((v4 + v5) + (v6 + v7))
            aa[c] += ((v0 * v0 + v1 * v1) + (v2 * v2 + v3 * v3)) + ((v4 * v4 + v5 * v5) + (v6 * v6 + v7 * v7))
    for p in range(in_eights, places):
        for c in range(channels):
            value = kind(v[p, c])
            a[c] += value
            aa[c] += value * value
    sums[2] = aa
    sums[3] = aa


def _sums_of_orbit(orbit, positions, channels, half, partners, sums, vanishes, number):
    order, images, places, width = orbit.shape
    in_place = np.arange(places)
    for i in numba.prange(images):
        target = orbit[0, i]
        for k in range(order):
            of_pair = np.zeros((4, width))
            if k == 0:
                _add_squares(target, of_pair, number)
            elif channels.shape[0] == 0:
                _add_pair(orbit[k, i], orbit[k, partners[k, i]], target, positions[k], of_pair, number)
            else:
                come_from = channels[half[i] % channels.shape[0], k]
                moved = np.empty((places, width), target.dtype)
                for p in range(places):
                    row = target[positions[k, p]]
                    for c in range(width):
                        moved[p, c] = row[come_from[c]]
                _add_pair(orbit[k, i], orbit[k, partners[k, i]], moved, in_place, of_pair, number)
            sums[k, :, i] = of_pair
            for c in range(width):
                square = of_pair[1, c] / places
                if (square < SMALLEST and of_pair[0, c] != 0) or not square < LARGEST:
                    vanishes[i] = True


_options = {"nogil": True, "cache": True, "fastmath": {"contract", "reassoc"}}
_add_pair = numba.njit(**_options)(_add_pair)
_add_squares = numba.njit(**_options)(_add_squares)
_compiled = numba.njit(parallel=True, **_options)(_sums_of_orbit)

_one_at_a_time = threading.Lock()


def orbit_sums(
    orbit: Tensor, positions: Tensor, channels: Tensor, half: Tensor, partners: Tensor, *, exact: bool
) -> Tensor:
    """(6, g, b, C): Σa, Σa², Σb, Σb², Σab and Σa′b, of a = f(gx) and b = g f(x), for orbits (g, b, P, C).

    Products are taken in float64 where `exact`, or where some square would vanish or overflow in float32.
    """
    tables = [table.contiguous().numpy() for table in (orbit, positions, channels, half, partners)]
    order, images, _, width = orbit.shape
    sums = np.empty((order, 4, images, width))
    vanishes = np.zeros(images, dtype=np.bool_)
    threads = torch.get_num_threads()
    # numba's simplest threading layer does not bear two callers
    with _one_at_a_time:
        most = numba.config.NUMBA_NUM_THREADS  # pyright: ignore  # numba makes its settings as it is imported
        numba.set_num_threads(min(threads, most))
        number = np.empty(0, np.float64 if exact else np.float32)
        _compiled(*tables, sums, vanishes, number)
        if not exact and vanishes.any():
            _compiled(*tables, sums, vanishes, np.empty(0, np.float64))
        if torch.get_num_threads() != threads:  # starting numba's threads sets those of torch
            torch.set_num_threads(threads)
    a, aa, ab, ab_of_partners = torch.from_numpy(sums).unbind(1)
    b, bb = a[:1].expand_as(a), aa[:1].expand_as(aa)
    if channels.numel():
        come_from = channels[half % len(channels)].movedim(1, 0)  # (g, b, C)
        b, bb = b.gather(2, come_from), bb.gather(2, come_from)
    return a, aa, b, bb, ab, ab_of_partners
