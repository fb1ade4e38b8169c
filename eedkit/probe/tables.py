"""Named arrays (…, sample) on the host, filled batch by batch from buffers (…, batch) on the device.

Knows arrays, never what is in them. Everything is allocated beforehand: small tensors kept from every batch would
fragment the heap around the activations that come and go. Costs the arrays, and once more when a stream has no length.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class Tables:
    """Arrays whose last axis is the sample; `tables[name]` is the buffer of the batch at hand.

    A lagging buffer has one entry more, in front: it belongs to the last sample of the batch before.

    >>> tables = Tables(capacity=1, batch_size=2, device="cpu")
    >>> tables.add("m", (), np.float32)
    >>> tables["m"][:2] = torch.tensor([1.0, 2.0])
    >>> tables.flush([1, 0])
    >>> tables.arrays["m"].tolist()
    [2.0, 1.0]
    """

    def __init__(self, *, capacity: int, batch_size: int, device: torch.device | str) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self._buffers: dict[str, Tensor] = {}
        self._lagging: set[str] = set()
        self.device, self._capacity, self._batch_size = device, max(capacity, 1), batch_size
        self._before: int | None = None

    def add(self, name: str, shape: tuple[int, ...], dtype: type, *, lagging: bool = False) -> None:
        """A new array of `shape` + (sample,): NaN, or −1 for integers, where nothing is written."""
        self.arrays[name] = _empty((*shape, self._capacity), dtype)
        buffer = torch.from_numpy(_empty((*shape, self._batch_size + lagging), dtype))
        self._buffers[name] = buffer.to(self.device)
        if lagging:
            self._lagging.add(name)

    def __getitem__(self, name: str) -> Tensor:
        return self._buffers[name]

    def flush(self, rows: Sequence[int], *, ends: bool = True) -> None:
        """Write the buffers to the samples `rows`; `ends` says that no later batch completes the last of a lagging array."""
        self._grow(max(rows) + 1)
        for name, buffer in self._buffers.items():
            if name in self._lagging:
                start = 1 if self._before is None else 0
                stop = len(rows) + (1 if ends else 0)
                where = [self._before, *rows][start:stop]
                self.arrays[name][..., where] = buffer[..., start:stop].cpu().numpy()
            else:
                self.arrays[name][..., rows] = buffer[..., : len(rows)].cpu().numpy()
        self._before = None if ends else rows[-1]

    def trim(self, n: int) -> None:
        """Let go of the buffers and of room for more than n samples."""
        self._buffers.clear()
        self.arrays = {name: array[..., :n] for name, array in self.arrays.items()}

    def _grow(self, rows: int) -> None:
        if rows > self._capacity:
            more = max(rows, 2 * self._capacity) - self._capacity
            for name, array in self.arrays.items():
                room = _empty((*array.shape[:-1], more), array.dtype)
                self.arrays[name] = np.concatenate([array, room], axis=-1)
            self._capacity += more


def _empty(shape: tuple[int, ...], dtype: type | np.dtype) -> np.ndarray:
    return np.full(shape, np.nan if np.dtype(dtype).kind == "f" else -1, dtype)
