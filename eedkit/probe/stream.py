"""Images from wherever they are -> batches that respect the null's chains, with stable sample ids and labels.

Knows torch and duck types (tensor, DataLoader, Hugging Face or torch Dataset), never a data set by name.
Holds one batch and two samples.
"""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eedkit.theory.deviation import CHAIN, chains

IMAGE_KEYS = ("image", "pixel_values", "img")
LABEL_KEYS = ("label", "labels", "target")


@dataclass(frozen=True)
class Sample:
    """One image (C, H, W) with its row in the results, its stable id and its label (None without labels).

    `flaw` says why an image could not be read; it is NaN then.
    """

    row: int
    id: Any
    image: Tensor
    label: Any = None
    flaw: str = ""


@dataclass(frozen=True)
class Stream:
    """A stream of `Sample`s, how many there are (None when the source does not say), and the position of the first."""

    samples: Iterator[Sample]
    length: int | None
    start: int = 0


def open_stream(
    images: Any, *, labels: Sequence | None = None, seed: int = 0, positions: range | None = None
) -> Stream:
    """Samples of a tensor or array (n, C, H, W), a DataLoader or another iterable of batches, or a data set with `len` and items.

    A tensor and a data set are read in a seeded order, as the null asks for; a DataLoader keeps its own. An item or batch
    is an image, an (image, label) tuple, or a dict with image, label and id under their usual names. uint8 and PIL images
    are scaled to [0, 1].

    With `positions` it is those places of the seeded order alone, numbered from 0: a block of a study, which must be whole
    chains. An image of a block that cannot be read comes as NaN, with the reason, and stops nothing.

    Raises
    ------
    ValueError
        There is no image, images differ in size, or labels differ in number.
    TypeError
        `images` is none of these.
    """
    if isinstance(images, str | dict) or not (isinstance(images, Iterable) or hasattr(images, "__getitem__")):
        split = "; choose one of its splits" if isinstance(images, dict) else ""
        raise TypeError(
            f"images must be a tensor (n, C, H, W), a DataLoader or a data set, got {type(images).__name__}{split}"
        )
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(images)
    if not _by_number(images):
        if positions is not None:
            raise TypeError("a block needs images that can be read by number, not a DataLoader or an iterable")
        return Stream(_checked(_from_batches(images, labels)), None)
    n = len(images)
    if n == 0:
        raise ValueError("there is no image to measure on; expected at least one")
    if isinstance(images, Tensor) and images.dim() != 4:
        raise ValueError(f"images must have shape (n, C, H, W), got {tuple(images.shape)}")
    if labels is not None and len(labels) != n:
        raise ValueError(f"expected one label for each of {n} images, got {len(labels)}")
    order = read_order(n, seed)
    if positions is not None:
        edges = {0, *(chain.stop for chain in chains(n))}
        if not positions or positions.step != 1 or not {positions.start, positions.stop} <= edges:
            raise ValueError(f"a block must be whole chains of the {n} images, got {positions}")
        order = order[positions.start : positions.stop]
        return Stream(
            _checked(_blanked(_from_items(images, labels, order, tolerant=True))), len(order), positions.start
        )
    return Stream(_checked(_from_items(images, labels, order)), n)


def open_halves(images: Any, *, seed: int) -> Stream:
    """The samples that permutations of channels are fitted on: the first 2F places of the seeded order, F = min(n // 2, 256).

    They are the same for every block of a study. `length` is 2F; rows are places; images that cannot be read are left out,
    for the stream that is measured to tell of.

    Raises
    ------
    TypeError
        The images cannot be read by number, and so not twice.
    ValueError
        There are fewer than 4.

    >>> halves = open_halves(torch.rand(9, 1, 5, 5), seed=0)
    >>> halves.length, [sample.row for sample in halves.samples]
    (8, [0, 1, 2, 3, 4, 5, 6, 7])
    """
    if not _by_number(images):
        raise TypeError(
            "matching channels reads images twice, so they must be read by number: expected a tensor or a data set, got "
            f"{type(images).__name__}; pass the data set itself, or leave the matched metric out"
        )
    if len(images) < 4:
        raise ValueError(
            f"matching channels fits on one half of the images and scores on the other, which needs 4, got {len(images)}; "
            "pass more, or leave the matched metric out"
        )
    half = min(len(images) // 2, CHAIN)
    images = torch.from_numpy(images) if isinstance(images, np.ndarray) else images
    every = _from_items(images, None, read_order(len(images), seed)[: 2 * half], tolerant=True)
    return Stream(_checked(sample for sample in every if not sample.flaw), 2 * half)


def _by_number(images: Any) -> bool:
    in_order = torch.utils.data.DataLoader | torch.utils.data.IterableDataset
    return hasattr(images, "__getitem__") and not isinstance(images, in_order)


def read_order(n: int, seed: int) -> np.ndarray:
    """In which order n images are read: the seeded one that gives the null its partners.

    >>> sorted(read_order(3, seed=0).tolist())
    [0, 1, 2]
    """
    return np.random.default_rng(seed).permutation(n)


def cut(samples: Iterable, batch_size: int, *, length: int = CHAIN) -> Iterator[tuple[list, bool]]:
    """Cut a stream of unknown length into batches that respect `deviation.chains`: (the batch, whether a chain ends).

    Looks two samples ahead, because a last chain of one joins the one before.

    >>> list(cut("abcdefghi", 3, length=4))
    [(['a', 'b', 'c'], False), (['d'], True), (['e', 'f', 'g'], False), (['h', 'i'], True)]
    """
    samples, ahead, batch, filled = iter(samples), [], [], 0
    while True:
        while len(ahead) < 3:
            following = next(samples, None)
            if following is None:
                break
            ahead.append(following)
        if not ahead:
            return
        batch.append(ahead.pop(0))
        filled += 1
        ends = not ahead or (filled >= length and len(ahead) != 1)
        if ends or len(batch) == batch_size:
            yield batch, ends
            batch = []
        if ends:
            filled = 0


class Fingerprint:
    """A checksum of images, ids and labels that does not depend on the order in which they come."""

    def __init__(self) -> None:
        self._sum, self._n = 0, 0

    def update(self, sample: Sample) -> None:
        """Add one sample."""
        head = f"{sample.id}|{sample.label}|{tuple(sample.image.shape)}".encode()
        self._sum += zlib.crc32(sample.image.cpu().contiguous().view(torch.uint8).numpy().tobytes(), zlib.crc32(head))
        self._n += 1

    def __str__(self) -> str:
        return f"{self._n}-{self._sum % 2**64:016x}"


def _from_items(images: Any, labels: Sequence | None, order: np.ndarray, *, tolerant: bool = False) -> Iterator[Sample]:
    """Samples in the given order; a tolerant stream numbers them by it, and yields those it cannot read without an image."""
    for place, i in enumerate(order.tolist()):
        row = place if tolerant else i
        try:
            image, label, name = _parts(images[i])
            image = _as_float(image)
        except Exception as error:
            if not tolerant:
                raise
            yield Sample(row, f"number {i}", None, None, f"{type(error).__name__}: {error}")
            continue
        yield Sample(row, i if name is None else name, image, _scalar(label if labels is None else labels[i]))


def _blanked(samples: Iterator[Sample]) -> Iterator[Sample]:
    """NaN for images that could not be read, in the shape of the first that could."""
    waiting, blank = [], None
    for sample in samples:
        if not sample.flaw and blank is None:
            blank = torch.full_like(sample.image, float("nan"))
            yield from (replace(one, image=blank) for one in waiting)
        if blank is None:
            waiting.append(sample)
        else:
            yield replace(sample, image=blank) if sample.flaw else sample
    if blank is None:
        raise ValueError(f"no image could be read; the first: {waiting[0].flaw}")


def _from_batches(batches: Iterable, labels: Sequence | None) -> Iterator[Sample]:
    row = 0
    for batch in batches:
        images, own, names = _parts(batch)
        if not isinstance(images, Tensor) or images.dim() != 4:
            shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise ValueError(f"a batch of images must be a tensor (b, C, H, W), got {shape}")
        for i, image in enumerate(images):
            if labels is not None and row >= len(labels):
                raise ValueError(f"got {len(labels)} labels, but more images")
            label = labels[row] if labels is not None else None if own is None else own[i]
            yield Sample(row, row if names is None else _scalar(names[i]), _as_float(image), _scalar(label))
            row += 1
    if row == 0:
        raise ValueError("there is no image to measure on; expected at least one")
    if labels is not None and len(labels) != row:
        raise ValueError(f"expected one label for each of {row} images, got {len(labels)}")


def _parts(item: Any) -> tuple[Any, Any, Any]:
    """(image, label, id) of an item or a batch."""
    if isinstance(item, dict):
        found = [key for key in IMAGE_KEYS if key in item]
        if not found:
            raise ValueError(f"expected an image under one of {', '.join(IMAGE_KEYS)}, got keys {', '.join(item)}")
        label = next((item[key] for key in LABEL_KEYS if key in item), None)
        return item[found[0]], label, item.get("id")
    if isinstance(item, tuple | list):
        return item[0], item[1] if len(item) > 1 else None, None
    return item, None, None


def _as_float(image: Any) -> Tensor:
    if not isinstance(image, Tensor):
        array = np.asarray(image)
        image = torch.from_numpy(np.array(array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)))
    if image.dtype == torch.uint8:
        return image / 255
    if not image.is_floating_point():
        raise ValueError(
            f"images must be floats, or uint8 to be scaled to [0, 1], got {image.dtype}; convert them first"
        )
    return image


def _scalar(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor | np.generic) else value


def _checked(samples: Iterator[Sample]) -> Iterator[Sample]:
    first, ids = None, set()
    for sample in samples:
        if sample.id in ids:
            raise ValueError(f"the id {sample.id!r} stands for more than one sample; ids must differ")
        ids.add(sample.id)
        if sample.image.dim() != 3:
            raise ValueError(
                f"an image must have shape (C, H, W), got {tuple(sample.image.shape)} for sample {sample.id}"
            )
        first = first or sample
        if sample.image.shape != first.image.shape:
            raise ValueError(
                f"images must have one size, but sample {first.id} is {_size(first)} and sample {sample.id} is "
                f"{_size(sample)}; resize or crop first"
            )
        yield sample


def _size(sample: Sample) -> str:
    return "×".join(map(str, sample.image.shape))
