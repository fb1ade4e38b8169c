"""The sums over positions of `accumulate.paired_sums` as one loop, compiled by numba for this processor.

Importing it needs numba, and compiles at the first call, about three seconds once on a machine.
"""

import threading

import numba
import numpy as np
import torch


def _sums_of_images(z, target, positions, partner, sums):
    images, places, channels = z.shape
    in_fours = places - places % 4
    for i in numba.prange(images):
        of_image = z[i]
        of_partner = z[partner[i]]
        of_target = target[i]
        total = np.zeros(channels)
        squares = np.zeros(channels)
        products = np.zeros(channels)
        products_of_partner = np.zeros(channels)
        # four positions at a time, since loading and storing the sums costs as much as the arithmetic
        for p in range(0, in_fours, 4):
            from_0, from_1, from_2, from_3 = positions[p : p + 4]
            for c in range(channels):
                # float64, in which no square of a float32 overflows or vanishes
                value_0 = np.float64(of_image[p, c])
                value_1 = np.float64(of_image[p + 1, c])
                value_2 = np.float64(of_image[p + 2, c])
                value_3 = np.float64(of_image[p + 3, c])
                moved_0 = np.float64(of_target[from_0, c])
                moved_1 = np.float64(of_target[from_1, c])
                moved_2 = np.float64(of_target[from_2, c])
                moved_3 = np.float64(of_target[from_3, c])
                total[c] += (value_0 + value_1) + (value_2 + value_3)
                squares[c] += (value_0 * value_0 + value_1 * value_1) + (value_2 * value_2 + value_3 * value_3)
                products[c] += (value_0 * moved_0 + value_1 * moved_1) + (value_2 * moved_2 + value_3 * moved_3)
                products_of_partner[c] += (of_partner[p, c] * moved_0 + of_partner[p + 1, c] * moved_1) + (
                    of_partner[p + 2, c] * moved_2 + of_partner[p + 3, c] * moved_3
                )
        for p in range(in_fours, places):
            for c in range(channels):
                value = np.float64(of_image[p, c])
                moved = np.float64(of_target[positions[p], c])
                total[c] += value
                squares[c] += value * value
                products[c] += value * moved
                products_of_partner[c] += of_partner[p, c] * moved
        sums[0, i] = total
        sums[1, i] = squares
        sums[2, i] = products
        sums[3, i] = products_of_partner


try:
    _compiled = numba.njit(parallel=True, nogil=True, cache=True, fastmath={"contract"})(_sums_of_images)
except RuntimeError:  # there is no place to keep what was compiled
    _compiled = numba.njit(parallel=True, nogil=True, fastmath={"contract"})(_sums_of_images)

_one_at_a_time = threading.Lock()


def sums_of_images(
    z: np.ndarray, target: np.ndarray, positions: np.ndarray, partner: np.ndarray, sums: np.ndarray
) -> None:
    """Write Σz, Σz², Σ z·gt and Σ z′·gt to `sums` (4, b, C), for z and t (b, P, C), with torch's number of threads."""
    # numba's simplest threading layer does not bear two callers
    with _one_at_a_time:
        most = numba.config.NUMBA_NUM_THREADS  # pyright: ignore  # numba makes its settings as it is imported
        numba.set_num_threads(min(torch.get_num_threads(), most))
        _compiled(z, target, positions, partner, sums)
