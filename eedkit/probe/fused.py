"""The sums over positions of `accumulate.paired_sums` as one loop, compiled by numba for this processor.

Importing it needs numba, and compiles at the first call, about three seconds once on a machine.
"""

import threading

import numba
import numpy as np
import torch


def _sums_of_images(z, target, positions, partner, sums):
    images, places, channels = z.shape
    for i in numba.prange(images):
        j = partner[i]
        total = np.zeros(channels)
        squares = np.zeros(channels)
        products = np.zeros(channels)
        products_of_partner = np.zeros(channels)
        for place in range(places):
            comes_from = positions[place]
            for channel in range(channels):
                # float64, in which no square of a float32 overflows or vanishes
                value = np.float64(z[i, place, channel])
                moved = np.float64(target[i, comes_from, channel])
                total[channel] += value
                squares[channel] += value * value
                products[channel] += value * moved
                products_of_partner[channel] += np.float64(z[j, place, channel]) * moved
        sums[0, i] = total
        sums[1, i] = squares
        sums[2, i] = products
        sums[3, i] = products_of_partner


try:
    _compiled = numba.njit(parallel=True, nogil=True, cache=True)(_sums_of_images)
except RuntimeError:  # there is no place to keep what was compiled
    _compiled = numba.njit(parallel=True, nogil=True)(_sums_of_images)

_one_at_a_time = threading.Lock()


def sums_of_images(
    z: np.ndarray, target: np.ndarray, positions: np.ndarray, partner: np.ndarray, sums: np.ndarray
) -> None:
    """Write Σz, Σz², Σ z·gt and Σ z′·gt to `sums` (4, b, C), for z and t (b, P, C), with torch's number of threads."""
    # numba's simplest threading layer does not bear two callers
    with _one_at_a_time:
        numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
        _compiled(z, target, positions, partner, sums)
