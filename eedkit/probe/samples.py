"""Images from wherever they are -> batches of whole chains, with stable sample ids and labels.

Knows torch and duck types (tensor, DataLoader, Hugging Face or torch data set, PIL image), never a data set by name. Images
are read by number, a batch at a time; what can only be iterated is read into memory first.
"""

import math
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from eedkit.errors import short
from eedkit.theory import actions
from eedkit.theory.actions import Action
from eedkit.theory.deviation import SHORTEST_CHAIN, chains

IMAGE_KEYS = ("image", "pixel_values", "img")
LABEL_KEYS = ("label", "labels", "target")
CHANNELS = (1, 3, 4)
"""How many channels an axis has that could be meant for one of pixels."""
FITTED_ON = 256
"""Images in each half that permutations of channels are fitted on."""
WITHIN_CLASS = "within-class"


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
class Batch:
    """Samples of whole chains: `chains` are their places in the batch, `first_chain` the number of the first in the set.

    `start` is the place of the first sample in the reading order of the whole set.
    """

    samples: list[Sample]
    chains: list[range]
    first_chain: int
    start: int


@dataclass(frozen=True)
class Stream:
    """Images in reading order and how they fall into the null's chains: all of a set, or a block of it; iterate to read.

    `reading` has the numbers of all images in that order, and `chains` are places in it, the first being number `first_chain`.
    `labels` None: each item has its own. Rows are the images' numbers, and in a block places from its first on.
    """

    images: Any
    labels: list | None
    reading: list[int]
    chains: list[range]
    chain_length: int
    first_chain: int = 0
    is_block: bool = False
    _kept: dict[int, Sample] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def numbers(self) -> list[int]:
        """Which images are read, in this order."""
        return self.reading[self.chains[0].start : self.chains[-1].stop]

    @property
    def length(self) -> int:
        """How many samples there are."""
        return len(self.numbers)

    def __iter__(self) -> Iterator[Sample]:
        """The samples; an image that cannot be read is NaN, in the shape of the first that can."""
        example = self._first_readable()
        ids = set()
        for place, number in enumerate(self.numbers):
            sample = self._read(place if self.is_block else number, number)
            if sample.id in ids:
                raise ValueError(f"the id {sample.id!r} stands for more than one sample; ids must differ")
            ids.add(sample.id)
            if sample.flaw:
                sample = replace(sample, image=torch.full_like(example.image, torch.nan))
            if sample.image.shape != example.image.shape:
                raise ValueError(
                    f"images must have one size, but sample {example.id} is {_size(example)} and sample {sample.id} is "
                    f"{_size(sample)}; resize or crop first"
                )
            yield sample

    def first(self, count: int) -> list[Sample]:
        """The first samples, or all where there are fewer, as they will be read."""
        return list(islice(self, count))

    def batches(self, size: int) -> Iterator[Batch]:
        """Batches of about `size` samples, each of whole chains."""
        samples = iter(self)
        first = 0
        for after, chain in enumerate(self.chains, start=1):
            start = self.chains[first].start
            has_room = after < len(self.chains) and self.chains[after].stop - start <= size
            if has_room:
                continue
            of_batch = [range(one.start - start, one.stop - start) for one in self.chains[first:after]]
            read = list(islice(samples, chain.stop - start))
            yield Batch(read, of_batch, self.first_chain + first, start)
            first = after

    def _first_readable(self) -> Sample:
        flaw = ""
        for number in self.numbers:
            sample = self._read(0, number)
            if not sample.flaw:
                _refuse_no_image(sample)
                return sample
            flaw = flaw or sample.flaw
        raise ValueError(f"no image could be read; the first: {flaw}")

    def _read(self, row: int, number: int) -> Sample:
        """One sample; the first two, which are asked for before the others, are read once."""
        if number in self._kept:
            return replace(self._kept[number], row=row)
        label, name, flaw = None, None, ""
        try:
            image, label, name = _parts(self.images[number])
            image = as_float(image)
        except Exception as error:
            image = torch.empty(0)
            ids = _column(self.images, ["id"])
            name = None if ids is None else ids[number]
            called = _place_of(self.images, number) if name is None else name
            flaw = f"{called}: {type(error).__name__}: {error}"
        label = _own_label(label) if self.labels is None else self.labels[number]
        sample = Sample(row, number if name is None else _scalar(name), image, label, flaw)
        if len(self._kept) < 2 and number in self.numbers[:2]:
            self._kept[number] = sample
        return sample


def _refuse_no_image(sample: Sample) -> None:
    shape = tuple(sample.image.shape)
    if len(shape) != 3 or 0 in shape:
        raise ValueError(f"an image must have shape (C, H, W) and pixels, got {shape} for sample {sample.id}")
    if _is_channels_last(shape):
        raise ValueError(f"an image must be (C, H, W), got {shape}; channels last? pass image.permute(2, 0, 1)")


def _is_channels_last(shape: Sequence[int]) -> bool:
    """Whether it is the shape of an image (H, W, C): none has many channels and is 1, 3 or 4 pixels wide."""
    return min(shape[:2]) > max(CHANNELS) and shape[2] in CHANNELS


def _size(sample: Sample) -> str:
    return "×".join(map(str, sample.image.shape))


def chain_length(order: int, null: bool | str) -> int:
    """Images in a chain of the null for a group of this order; without a null every image stands alone."""
    return max(order, SHORTEST_CHAIN) if null else 1


def read_order(n: int, seed: int) -> np.ndarray:
    """In which order n images are read: the seeded one that gives the null its chains."""
    return np.random.default_rng(seed).permutation(n)


def open_stream(
    images: Any,
    *,
    labels: Any = None,
    seed: int = 0,
    order: int = 1,
    null: bool | str = False,
    places: range | None = None,
) -> Stream:
    """Images in a seeded order, as the null asks for, from any source that `by_number` takes.

    An item is an image, an (image, label) tuple, or a mapping with image, label and id under their usual names. An image that
    cannot be read comes as NaN, with the reason, and stops nothing. `labels` None takes those of the items; `order` is |G|.
    `places` are a block of a study: places of the seeded order that are whole chains, with rows numbered from 0.

    >>> stream = open_stream(torch.rand(9, 1, 5, 5), order=4, null=True)
    >>> [batch.chains for batch in stream.batches(4)]
    [[range(0, 4)], [range(0, 5)]]
    """
    images = by_number(images)
    labels = None if labels is None else label_list(labels)
    n = len(images)
    if labels is not None and len(labels) != n:
        raise ValueError(f"expected one label for each of {n} images, got {len(labels)}")
    if null and n < max(order, 2):
        raise ValueError(
            f"the null acts with each of {order} elements on another image, which needs {max(order, 2)} images, got {n}; "
            "pass more, or null=False"
        )
    length = chain_length(order, null)
    reading = read_order(n, seed).tolist()
    cut = chains(n, length)
    if null == WITHIN_CLASS:
        reading, cut = _within_classes(reading, labels or _own_labels(images), length)
    if places is None:
        return Stream(images, labels, reading, cut, length)
    inside = [chain for chain in cut if places.start <= chain.start and chain.stop <= places.stop]
    if not places or places.step != 1 or sum(map(len, inside)) != len(places):
        raise ValueError(f"a block must be whole chains of the {n} images, got {places}")
    return Stream(images, labels, reading, inside, length, cut.index(inside[0]), is_block=True)


def _within_classes(reading: list[int], labels: Sequence, length: int) -> tuple[list[int], list[range]]:
    """The reading order class by class, and chains of one class each; a class too small for one has no chain to itself."""
    members: dict[Any, list[int]] = {name: [] for name in labels}
    for number in reading:
        members[labels[number]].append(number)
    ordered: list[int] = []
    cut: list[range] = []
    for name, of_class in members.items():
        if len(of_class) < length:
            raise ValueError(
                f"a null within classes needs {length} images of each class, got {len(of_class)} of {name!r}; leave that class out"
            )
        for chain in chains(len(of_class), length):
            cut.append(range(len(ordered) + chain.start, len(ordered) + chain.stop))
        ordered += of_class
    return ordered, cut


def _own_labels(images: Any) -> list:
    """The labels of images in memory, or of a data set that has them in a column."""
    if isinstance(images, list):
        labels = [_own_label(_parts(item)[1]) for item in images]
    else:
        labels = list((_column(images, LABEL_KEYS) or [None])[:])
    if None in labels:
        raise ValueError("a null within classes needs to know the labels before the images; pass labels=")
    return labels


def open_halves(images: Any, *, seed: int) -> tuple[Iterator[Sample], int]:
    """The samples that permutations of channels are fitted on, and F: the first 2F places of the seeded order, F ≤ 256.

    They are the same for every block of a study. Rows are places; images that cannot be read are left out, for the stream
    that is measured to report.
    """
    images = by_number(images)
    if len(images) < 4:
        raise ValueError(
            f"matching channels fits on one half of the images and scores on the other, which needs 4, got {len(images)}; "
            "pass more, or leave the matched metric out"
        )
    half = min(len(images) // 2, FITTED_ON)
    stream = open_stream(images, seed=seed, places=range(2 * half))
    return (sample for sample in stream if not sample.flaw), half


def find(images: Any, ids: Sequence) -> list[Tensor]:
    """The images (C, H, W) that have these ids in the results of `measure`; ValueError where there is none."""
    images = by_number(images)
    names = (_column(images, ["id"]) or range(len(images)))[:]
    if isinstance(images, list):
        names = [_parts(item)[2] for item in images]
    number_of = {number if name is None else _scalar(name): number for number, name in enumerate(names)}
    found = []
    for name in ids:
        image, own_name = None, None
        if name in number_of:
            image, _, own_name = _parts(images[number_of[name]])
        if image is None or (own_name is not None and _scalar(own_name) != name):
            raise ValueError(
                f"there is no image with the id {name!r} among these {len(images)}; pass those that were measured"
            )
        found.append(as_float(image))
    return found


def moved(images: Sequence[Tensor], elements: Sequence[str], group: Action | str) -> list[Tensor]:
    """Each image (C, H, W) as an element of the group moves it."""
    action = actions.as_action(group)
    return [action(element, image) for element, image in zip(elements, images, strict=True)]


def label_list(labels: Any) -> list:
    """Labels given as a list, a tensor, a pandas Series, names or rows of 0 and 1, one for each image.

    One-hot rows (n, k), k ≥ 2, become the numbers of their classes. Where some row has several ones, or none, all become
    texts: the numbers joined by +, or "none".

    >>> label_list(["cat", "dog"]), label_list([[0, 1], [1, 0]]), label_list([[0, 1], [1, 1], [0, 0]])
    (['cat', 'dog'], [1, 0], ['1', '0+1', 'none'])
    """
    given = _plain(labels)
    if isinstance(given, str | Mapping) or not hasattr(given, "__len__"):
        raise TypeError(
            f"labels must be one per image, in a list, tensor, array or Series, got {type(labels).__name__}"
        )
    found = []
    is_multi_hot = False
    for value in map(_plain, given):
        label = _class_of(value)
        if label is None and value is not None:
            got = f"shape {tuple(labels.shape)}" if hasattr(labels, "shape") else short(value)
            raise ValueError(f"labels must be one per image, or one-hot rows (n, k) of k ≥ 2 classes, got {got}")
        is_multi_hot = is_multi_hot or (isinstance(label, str) and label != value)
        found.append(label)
    return [str(label) for label in found] if is_multi_hot else found


def is_several(labels: Sequence) -> bool:
    """Whether some of these labels, as `label_list` gives them, are of several classes."""
    return any(isinstance(label, str) and re.fullmatch(r"\d+(\+\d+)+", label) for label in labels)


def _plain(values: Any) -> Any:
    """Lists and numbers for a tensor, an array or what pandas has."""
    values = values.to_numpy() if hasattr(values, "to_numpy") else values
    return values.tolist() if hasattr(values, "tolist") else values


def _class_of(value: Any) -> Any:
    """The number or name itself; of a row of 0 and 1 the place of its only 1, or a text of all places; None for anything else."""
    if not isinstance(value, list | tuple):
        return value if isinstance(value, str | int | float) else None
    # a row of one number would be the label itself
    if len(value) < 2 or not all(number in (0, 1) for number in value):
        return None
    ones = [place for place, number in enumerate(value) if number]
    if len(ones) == 1:
        return ones[0]
    return "+".join(map(str, ones)) or "none"


def _own_label(label: Any) -> Any:
    """The label that an item has: as of `label_list`, from one number or a row; None for lists, boxes, masks and the like."""
    return None if isinstance(label, list | tuple) else _class_of(_plain(_scalar(label)))


def class_names(images: Any) -> list[str]:
    """The names that a data set gives to the classes that labels count, as those of Hugging Face and torchvision do."""
    while hasattr(images, "dataset"):  # of a DataLoader or a subset
        images = images.dataset
    features = getattr(images, "features", None)
    names = getattr(images, "classes", None)
    if isinstance(features, Mapping):
        of_labels = [getattr(features[key], "names", None) for key in LABEL_KEYS if key in features]
        names = of_labels[0] if of_labels else None
    return [str(name) for name in names] if isinstance(names, list | tuple) else []


def preprocessing(images: Any) -> str:
    """How a data set of `eedkit.lab.images` makes its images, in words; "" of others, which do not say.

    >>> preprocessing(torch.rand(2, 3, 8, 8))
    ''
    """
    while hasattr(images, "dataset"):  # of a DataLoader or a subset
        images = images.dataset
    form = getattr(images, "format", None)
    transform = form.get("format_kwargs", {}).get("transform") if isinstance(form, Mapping) else None
    return str(getattr(transform, "preprocessing", ""))


def by_number(images: Any) -> Any:
    """Images that are read by number: a tensor (n, C, H, W), a data set, or a list of all that an iterable gives.

    A DataLoader, an iterable data set or a generator, of batches or of single images, is read into memory: what it gives
    first is number 0. What this function gave, it gives again as it is.
    """
    expected = "images must be a tensor (n, C, H, W), a DataLoader or a data set"
    if isinstance(images, Mapping):  # a BatchFeature, say
        images, _, _ = _parts(images)
    is_source = isinstance(images, Iterable) or hasattr(images, "__getitem__")
    if isinstance(images, str | os.PathLike) or not is_source:
        raise TypeError(f"{expected}, got {short(images)}; open it first, by ek.lab.images.load, say")
    has_numbers = hasattr(images, "__getitem__") and hasattr(images, "__len__")
    if not has_numbers or isinstance(images, DataLoader | IterableDataset):
        images = list(_items(images))
    remedy = "permute(0, 3, 1, 2)"
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(np.ascontiguousarray(images))
        remedy = "transpose(0, 3, 1, 2)"
    if len(images) == 0:  # pyright: ignore[reportArgumentType]
        raise ValueError("there is no image to measure on; expected at least one")
    if isinstance(images, Tensor) and images.dim() != 4:
        shape = tuple(images.shape)
        raise ValueError(f"images must have shape (n, C, H, W), got {shape}; a single image (C, H, W) is images[None]")
    if isinstance(images, Tensor):
        _refuse_without_pixels(images)
        if _is_channels_last(images.shape[1:]):
            shape = tuple(images.shape)
            raise ValueError(f"images must have shape (n, C, H, W), got {shape}; channels last? pass images.{remedy}")
    return images


def _items(images: Iterable) -> Iterator[Any]:
    """Items of an iterable of batches (b, C, H, W), or of single images as a streaming data set gives them."""
    for item in images:
        pictures, labels, names = _parts(item)
        if not isinstance(pictures, Tensor | np.ndarray) or pictures.ndim != 4:
            yield item
            continue
        for place, picture in enumerate(torch.as_tensor(pictures)):
            # of a mapping of boxes or masks no image has a label of its own
            label = None if labels is None or isinstance(labels, Mapping) else labels[place]
            name = None if names is None else names[place]
            yield {"image": picture, "label": label, "id": name}


def _parts(item: Any) -> tuple[Any, Any, Any]:
    """(image, label, id) of an item or a batch."""
    if isinstance(item, Mapping):
        keys = [key for key in IMAGE_KEYS if key in item]
        if not keys:
            raise TypeError(
                f"expected an image under one of {', '.join(IMAGE_KEYS)}, got {type(item).__name__} with keys "
                f"{', '.join(map(str, item))}; of several splits choose one"
            )
        label = next((item[key] for key in LABEL_KEYS if key in item), None)
        return item[keys[0]], label, item.get("id")
    if isinstance(item, tuple | list):
        return item[0], item[1] if len(item) > 1 else None, None
    return item, None, None


def _column(images: Any, keys: Sequence[str]) -> Sequence | None:
    """A column of a Hugging Face data set, read without its images; None where there is none."""
    for key in keys:
        if key in (getattr(images, "column_names", None) or ()):
            # without its format: a transform may need an image that cannot be read
            return images.with_format(None).select_columns([key])[key]
    return None


def _place_of(images: Any, number: int) -> str:
    """The file of an image in a folder as torchvision reads it; else its number."""
    with suppress(Exception):  # `samples` may be something else
        path, _ = images.samples[number]
        return os.fspath(path)
    return f"number {number}"


def as_float(image: Any) -> Tensor:
    """An image as floats (C, H, W): uint8 and PIL images scaled to [0, 1], arrays of floats as they are.

    >>> as_float(np.full((3, 8, 8), 255, np.uint8)).max()
    tensor(1.)
    """
    if hasattr(image, "getbands"):
        image = _pixels(image)
    if not isinstance(image, Tensor):
        image = _channels_first(np.asarray(image))
    _refuse_without_pixels(image)
    if image.dtype == torch.uint8:
        return image / 255
    if not image.is_floating_point():
        raise ValueError(
            f"images must be floats, or uint8 to be scaled to [0, 1], got {image.dtype}; convert them first"
        )
    return image


def _refuse_without_pixels(images: Tensor) -> None:
    if images.is_meta:
        raise ValueError("images must have pixels, got a tensor on the device 'meta', which has none; load it on 'cpu'")
    if images.layout != torch.strided:
        raise ValueError(f"images must be dense tensors, got one of {images.layout}; pass its to_dense()")


def _channels_first(array: np.ndarray) -> Tensor:
    if array.ndim == 2:
        array = array[None]
    elif array.ndim == 3:
        first, last = array.shape[0] in CHANNELS, array.shape[-1] in CHANNELS
        if first == last:
            raise ValueError(
                f"an array of shape {array.shape} does not show whether its first or its last axis is the channels; give a "
                "torch tensor (C, H, W)"
            )
        array = array if first else np.moveaxis(array, -1, 0)
    return torch.from_numpy(array.copy())


def _pixels(image: Any) -> Tensor:
    """A PIL image of any mode (C, H, W), grey or colour; what is transparent shows white."""
    if image.mode == "F":
        return torch.from_numpy(np.array(image)[None])
    if image.mode.startswith("I"):
        if image.has_transparency_data:
            raise ValueError(f"transparency in pixels of mode {image.mode}; convert them to 8 bits per channel first")
        return torch.from_numpy(np.asarray(image).astype(np.float32)[None] / 65535)
    pixels = torch.from_numpy(np.array(opaque(image)))
    return pixels[None] if pixels.ndim == 2 else pixels.movedim(-1, 0).contiguous()


def opaque(image: Any) -> Any:
    """A PIL image of at most 8 bits per channel without transparency, in mode L if it is grey and RGB if not.

    What is transparent shows white.

    >>> from PIL import Image
    >>> opaque(Image.new("RGBA", (1, 1), (255, 0, 0, 0))).getpixel((0, 0))
    (255, 255, 255)
    """
    from PIL import Image

    is_grey = image.mode in ("1", "L", "LA")
    if image.has_transparency_data:
        behind = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(behind, image.convert("RGBA"))
    return image.convert("L" if is_grey else "RGB")


def _scalar(value: Any) -> Any:
    """A number for a tensor or array that holds one."""
    if isinstance(value, Tensor | np.ndarray | np.generic) and math.prod(value.shape) == 1:
        return value.item()
    return value


class Fingerprint:
    """A checksum of images, ids and labels that does not depend on the order in which they come."""

    def __init__(self) -> None:
        self._sum = 0
        self._n = 0

    def update(self, sample: Sample) -> None:
        """Add one sample."""
        head = f"{sample.id}|{sample.label}|{tuple(sample.image.shape)}".encode()
        self._sum += zlib.crc32(sample.image.cpu().contiguous().view(torch.uint8).numpy().tobytes(), zlib.crc32(head))
        self._n += 1

    def __str__(self) -> str:
        return f"{self._n}-{self._sum % 2**64:016x}"
