"""Images from wherever they are -> batches of whole chains, with stable sample ids and labels.

Knows torch and duck types (tensor, DataLoader, Hugging Face or torch data set, PIL image), never a data set by name.
Holds one batch and one chain.
"""

import os
import re
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eedkit.pictures import opaque
from eedkit.theory import actions
from eedkit.theory.actions import Action
from eedkit.theory.deviation import SHORTEST_CHAIN, chains

IMAGE_KEYS = ("image", "pixel_values", "img")
LABEL_KEYS = ("label", "labels", "target")
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
    """Samples of whole chains: `chains` are their places in the batch, `first_chain` the number of the first in the stream.

    `start` is the place of the first sample in the reading order of the whole stream.
    """

    samples: list[Sample]
    chains: list[range]
    first_chain: int
    start: int


@dataclass(frozen=True)
class Stream:
    """Samples in reading order, how many there are (None when the source does not say), and how they fall into chains.

    `chains` are places in the reading order, counted from `start`, the place of the first sample; None for a source without
    a length, which is cut into chains of `chain_length` as it comes.
    """

    samples: Iterator[Sample]
    length: int | None
    chain_length: int
    chains: list[range] | None = None
    first_chain: int = 0
    start: int = 0

    def with_samples(self, samples: Iterator[Sample]) -> "Stream":
        """The same with the samples from another iterator, one that puts back what was taken, say."""
        return replace(self, samples=samples)

    def batches(self, size: int) -> Iterator[Batch]:
        """Batches of about `size` samples, each of whole chains."""
        if self.chains is None:
            yield from self._as_it_comes(size)
            return
        together: list[range] = []
        first_chain, start = self.first_chain, self.start
        for chain in self.chains:
            if together and chain.stop - together[0].start > size:
                yield self._read(together, first_chain, start)
                first_chain += len(together)
                start += together[-1].stop - together[0].start
                together = []
            together.append(chain)
        if together:
            yield self._read(together, first_chain, start)

    def _read(self, together: list[range], first_chain: int, start: int) -> Batch:
        offset = together[0].start
        samples = list(islice(self.samples, together[-1].stop - offset))
        return Batch(samples, [range(c.start - offset, c.stop - offset) for c in together], first_chain, start)

    def _as_it_comes(self, size: int) -> Iterator[Batch]:
        """One chain is held back, for a remainder that is too short for a chain of its own joins the one before."""
        size = max(size // self.chain_length, 1) * self.chain_length
        waiting: list[Sample] = []
        first_chain, start = 0, 0
        for sample in self.samples:
            waiting.append(sample)
            if len(waiting) == size + self.chain_length:
                cut = chains(size, self.chain_length)
                yield Batch(waiting[:size], cut, first_chain, start)
                waiting = waiting[size:]
                first_chain += len(cut)
                start += size
        if waiting:
            yield Batch(waiting, chains(len(waiting), self.chain_length), first_chain, start)


def chain_length(order: int, null: bool | str) -> int:
    """Images in a chain of the null for a group of this order; without a null every image stands alone."""
    return max(order, SHORTEST_CHAIN) if null else 1


def read_order(n: int, seed: int) -> np.ndarray:
    """In which order n images are read: the seeded one that gives the null its chains.

    >>> sorted(read_order(3, seed=0).tolist())
    [0, 1, 2]
    """
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
    """Samples of a tensor or array (n, C, H, W), a DataLoader or another iterable, or a data set with `len` and items.

    A tensor and a data set are read in a seeded order, as the null asks for; an iterable keeps its own. An item or batch is
    an image, an (image, label) tuple, or a mapping with image, label and id under their usual names. uint8 and PIL images
    are scaled to [0, 1]. An image that cannot be read comes as NaN, with the reason, and stops nothing.

    Parameters
    ----------
    order : int
        |G|, for the length of the null's chains.
    null : bool, or "within-class"
        Whether there are chains, and whether each is of one class.
    places : range, or None
        A block of a study: these places of the seeded order, which must be whole chains; rows are numbered from 0.

    Raises
    ------
    ValueError
        There is no image, too few for a null, images differ in size, or labels in number.
    TypeError
        `images` is none of these.
    """
    if null not in (True, False, WITHIN_CLASS):
        raise ValueError(f"null must be True, False or {WITHIN_CLASS!r}, got {null!r}")
    images = _unwrapped(images)
    labels = None if labels is None else label_list(labels)
    length = chain_length(order, null)
    if not _by_number(images):
        if places is not None or null == WITHIN_CLASS:
            what = "a block" if places is not None else "a null within classes"
            raise TypeError(f"{what} needs images that can be read by number, not a DataLoader or an iterable")
        return Stream(_checked(_from_iterable(images, labels)), None, length)
    n = len(images)
    if n == 0:
        raise ValueError("there is no image to measure on; expected at least one")
    if isinstance(images, Tensor) and images.dim() != 4:
        raise ValueError(
            f"images must have shape (n, C, H, W), got {tuple(images.shape)}; a single image (C, H, W) is images[None]"
        )
    if labels is not None and len(labels) != n:
        raise ValueError(f"expected one label for each of {n} images, got {len(labels)}")
    if null:
        refuse_short(n, order)
    reading = read_order(n, seed)
    cut = chains(n, length)
    if null == WITHIN_CLASS:
        reading, cut = _within_classes(reading, labels if labels is not None else _own_labels(images), length)
    if places is None:
        rows = reading.tolist()
        return Stream(_checked(_blanked(_from_items(images, labels, reading, rows))), n, length, cut)
    inside = [chain for chain in cut if places.start <= chain.start and chain.stop <= places.stop]
    if not places or places.step != 1 or sum(map(len, inside)) != len(places):
        raise ValueError(f"a block must be whole chains of the {n} images, got {places}")
    samples = _from_items(images, labels, reading[places.start : places.stop], list(range(len(places))))
    return Stream(_checked(_blanked(samples)), len(places), length, inside, cut.index(inside[0]), places.start)


def refuse_short(n: int, order: int) -> None:
    """ValueError for fewer images than a shuffled orbit needs."""
    if n < max(order, 2):
        raise ValueError(
            f"the null acts with each of {order} elements on another image, which needs {max(order, 2)} images, got {n}; "
            "pass more, or null=False"
        )


def warn_if_sorted(labels: Sequence) -> None:
    """A warning where every class comes in one run, as in a file that was written class by class."""
    runs = 1 + sum(a != b for a, b in pairwise(labels))
    if None not in labels and 1 < len(set(labels)) == runs < len(labels):
        warnings.warn(
            "the images come sorted by label, so the null compares images of one class; pass the data set itself, which is "
            "read in a seeded order, or a stream in mixed order",
            stacklevel=4,
        )


def _within_classes(reading: np.ndarray, labels: Sequence, length: int) -> tuple[np.ndarray, list[range]]:
    """The reading order class by class, and chains of one class each; a class too small for one has no chain to itself."""
    classes = list(dict.fromkeys(labels))
    ordered: list[int] = []
    cut: list[range] = []
    for name in classes:
        members = [i for i in reading.tolist() if labels[i] == name]
        if len(members) < length:
            raise ValueError(
                f"a null within classes needs {length} images of each class, got {len(members)} of {name!r}; leave that class out"
            )
        for chain in chains(len(members), length):
            cut.append(range(len(ordered) + chain.start, len(ordered) + chain.stop))
        ordered += members
    return np.array(ordered), cut


def _own_labels(images: Any) -> list:
    """The labels of a data set that has them in a column, read without its images."""
    for key in LABEL_KEYS:
        if key in (getattr(images, "column_names", None) or ()):
            return list(images.with_format(None).select_columns([key])[:][key])
    raise ValueError("a null within classes needs to know the labels before the images; pass labels=")


def open_halves(images: Any, *, seed: int) -> tuple[Iterator[Sample], int]:
    """The samples that permutations of channels are fitted on, and F: the first 2F places of the seeded order.

    F = min(n // 2, 256). They are the same for every block of a study. Rows are places; images that cannot be read are left
    out, for the stream that is measured to report.

    Raises
    ------
    TypeError
        The images cannot be read by number, and so not twice.
    ValueError
        There are fewer than 4.

    Examples
    --------
    >>> samples, half = open_halves(torch.rand(9, 1, 5, 5), seed=0)
    >>> half, [sample.row for sample in samples]
    (4, [0, 1, 2, 3, 4, 5, 6, 7])
    """
    images = _unwrapped(images)
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
    half = min(len(images) // 2, FITTED_ON)
    reading = read_order(len(images), seed)[: 2 * half]
    samples = _from_items(images, None, reading, list(range(2 * half)))
    return _checked(sample for sample in samples if not sample.flaw), half


def find(images: Any, ids: Sequence) -> list[Tensor]:
    """The images (C, H, W) that have these ids in the results of `measure`.

    Parameters
    ----------
    images : tensor, array or data set
        What was measured, read by number.
    ids : sequence
        Values of the coordinate `sample`.

    Raises
    ------
    ValueError
        There is no image with one of these ids.
    TypeError
        The images cannot be read by number.

    Examples
    --------
    >>> find(torch.arange(2.0).reshape(2, 1, 1, 1), [1])[0].item()
    1.0
    """
    images = _unwrapped(images)
    if not _by_number(images):
        raise TypeError(
            f"images are looked up by their ids, which needs a tensor or a data set, got {type(images).__name__}"
        )
    numbers = range(len(images))
    if "id" in (getattr(images, "column_names", None) or ()):
        numbers = images.with_format(None).select_columns(["id"])[:]["id"]
    place = {name: i for i, name in enumerate(numbers)}
    found = []
    for name in ids:
        image, own_name = None, None
        if name in place:
            image, _, own_name = _parts(images[place[name]])
        if image is None or own_name not in (None, name):
            raise ValueError(
                f"there is no image with the id {name!r} among these {len(images)}; pass those that were measured"
            )
        found.append(as_float(image))
    return found


def moved(images: Sequence[Tensor], elements: Sequence[str], group: Action | str) -> list[Tensor]:
    """Each image (C, H, W) as an element of the group moves it.

    >>> moved([torch.tensor([[[1.0, 2.0]]])], ["m"], "flip")[0].tolist()
    [[[2.0, 1.0]]]
    """
    action = actions.on_images(group)
    return [action(element, image) for element, image in zip(elements, images, strict=True)]


def label_list(labels: Any) -> list:
    """Labels given as a list, a tensor, a pandas Series, names or one-hot rows, one for each image."""
    if isinstance(labels, str | Mapping) or not hasattr(labels, "__len__"):
        raise TypeError(
            f"labels must be one per image, in a list, tensor, array or Series, got {type(labels).__name__}"
        )
    values = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
    if values.ndim == 1:
        return [_scalar(label) for label in values]
    one_hot = values.ndim == 2 and ((values == 0) | (values == 1)).all() and (values.sum(1) == 1).all()
    if not one_hot:
        raise ValueError(f"labels must be one per image, or one-hot rows (n, k), got shape {values.shape}")
    return values.argmax(1).tolist()


def declared_classes(images: Any) -> int:
    """How many classes a data set says that its labels count, as those of Hugging Face and torchvision do; 0 otherwise.

    >>> from types import SimpleNamespace
    >>> declared_classes(SimpleNamespace(classes=["cat", "dog"])), declared_classes(torch.rand(2, 3, 8, 8))
    (2, 0)
    """
    while hasattr(images, "dataset"):  # of a DataLoader or a subset
        images = images.dataset
    features = getattr(images, "features", None)
    if isinstance(features, Mapping):
        counts = [getattr(features[key], "num_classes", 0) for key in LABEL_KEYS if key in features]
        return counts[0] if counts else 0
    classes = getattr(images, "classes", None)
    return len(classes) if isinstance(classes, list | tuple) else 0


def _unwrapped(images: Any) -> Any:
    """A tensor for an array or for a mapping that holds one (a BatchFeature, say); TypeError for what holds no images."""
    if isinstance(images, Mapping):
        keys = [key for key in IMAGE_KEYS if key in images]
        if not keys:
            raise TypeError(
                f"images must be a tensor (n, C, H, W), a DataLoader or a data set, got {type(images).__name__} with keys "
                f"{', '.join(map(str, images))}; choose one of its splits, or put the images under one of {', '.join(IMAGE_KEYS)}"
            )
        images = images[keys[0]]
    if isinstance(images, str | os.PathLike):
        raise TypeError(
            f"images must be a tensor (n, C, H, W), a DataLoader or a data set, got the name {str(images)!r}; open it first, by "
            "ek.lab.images.load, say"
        )
    if not (isinstance(images, Iterable) or hasattr(images, "__getitem__")):
        raise TypeError(
            f"images must be a tensor (n, C, H, W), a DataLoader or a data set, got {type(images).__name__}"
        )
    return torch.from_numpy(images) if isinstance(images, np.ndarray) else images


def _by_number(images: Any) -> bool:
    in_order = torch.utils.data.DataLoader | torch.utils.data.IterableDataset
    return hasattr(images, "__getitem__") and hasattr(images, "__len__") and not isinstance(images, in_order)


def _from_items(images: Any, labels: Sequence | None, reading: np.ndarray, rows: list[int]) -> Iterator[Sample]:
    for row, i in zip(rows, reading.tolist(), strict=True):
        try:
            image, label, name = _parts(images[i])
            image = as_float(image)
        except Exception as error:
            name = _name(images, i)
            said = f"{type(error).__name__}: {error}"
            is_named = re.search(rf"(?<!\w){re.escape(name)}(?!\w)", said)
            flaw = said if is_named else f"{name}: {said}"
            label = None if labels is None else labels[i]
            yield Sample(row, _own_id(images, i), torch.empty(0), _scalar(label), flaw)
            continue
        yield Sample(row, i if name is None else name, image, _scalar(label if labels is None else labels[i]))


def _own_id(images: Any, i: int) -> Any:
    """The id of an image that cannot be read: as for any other its own, or else its number."""
    if "id" in (getattr(images, "column_names", None) or ()):
        # without its format: a transform may need the image that cannot be read
        return images.with_format(None).select_columns(["id"])[i]["id"]
    return i


def _name(images: Any, i: int) -> str:
    """What people call an image that cannot be read: its id, or the path of its file, in a data set that tells one."""
    columns = getattr(images, "column_names", None) or ()
    try:
        if "id" in columns:
            return str(_own_id(images, i))
        if hasattr(images, "samples"):  # the paths and classes of a folder as torchvision reads it
            path, _ = images.samples[i]
            return os.fspath(path)
        for key in IMAGE_KEYS:
            if key in columns:
                files = (
                    images.with_format(None)
                    .select_columns([key])
                    .cast_column(key, type(images.features[key])(decode=False))
                )
                return files[i][key]["path"] or f"number {i}"
    except Exception:
        return f"number {i}"
    return f"number {i}"


def _blanked(samples: Iterator[Sample]) -> Iterator[Sample]:
    """NaN for images that could not be read, in the shape of the first that could."""
    waiting: list[Sample] = []
    blank = None
    for sample in samples:
        if blank is None and sample.flaw:
            waiting.append(sample)
            continue
        if blank is None:
            blank = torch.full_like(sample.image, float("nan"))
            for earlier in waiting:
                yield replace(earlier, image=blank)
        yield replace(sample, image=blank) if sample.flaw else sample
    if blank is None:
        raise ValueError(f"no image could be read; the first: {waiting[0].flaw}")


def _from_iterable(images: Iterable, labels: Sequence | None) -> Iterator[Sample]:
    """Samples of an iterable of batches (b, C, H, W), or of single images as a streaming data set gives them."""
    row = 0
    for batch in images:
        pictures, own, names = _parts(batch)
        if not isinstance(pictures, Tensor | np.ndarray) or pictures.ndim == 3:
            pictures = [pictures]
            own = [own]
            names = None if names is None else [names]
        elif pictures.ndim != 4:
            raise ValueError(
                f"a batch of images must be (b, C, H, W), or an image (C, H, W), got {tuple(pictures.shape)}"
            )
        pictures = torch.from_numpy(pictures) if isinstance(pictures, np.ndarray) else pictures
        own = None if own is None else _labels_of_batch(own)
        for i, picture in enumerate(pictures):
            if labels is not None and row >= len(labels):
                raise ValueError(f"got {len(labels)} labels, but more images")
            label = None if own is None else own[i]
            if labels is not None:
                label = labels[row]
            yield Sample(row, row if names is None else _scalar(names[i]), as_float(picture), _scalar(label))
            row += 1
    if row == 0:
        raise ValueError("there is no image to measure on; expected at least one")
    if labels is not None and len(labels) != row:
        raise ValueError(f"expected one label for each of {row} images, got {len(labels)}")


def _labels_of_batch(labels: Any) -> Any:
    return labels if isinstance(labels, list) else label_list(labels)


def _parts(item: Any) -> tuple[Any, Any, Any]:
    """(image, label, id) of an item or a batch."""
    if isinstance(item, Mapping):
        keys = [key for key in IMAGE_KEYS if key in item]
        if not keys:
            raise ValueError(f"expected an image under one of {', '.join(IMAGE_KEYS)}, got keys {', '.join(item)}")
        label = next((item[key] for key in LABEL_KEYS if key in item), None)
        return item[keys[0]], label, item.get("id")
    if isinstance(item, tuple | list):
        return item[0], item[1] if len(item) > 1 else None, None
    return item, None, None


def as_float(image: Any) -> Tensor:
    """An image as floats (C, H, W): uint8 and PIL images scaled to [0, 1], arrays of floats as they are.

    Raises
    ------
    ValueError
        The numbers are integers of another type, or an array's channels could be its first axis or its last.

    Examples
    --------
    >>> as_float(np.full((3, 8, 8), 255, np.uint8)).max()
    tensor(1.)
    """
    if hasattr(image, "getbands"):
        return _from_pil(image)
    if not isinstance(image, Tensor):
        image = _channels_first(np.asarray(image))
    if image.dtype == torch.uint8:
        return image / 255
    if not image.is_floating_point():
        raise ValueError(
            f"images must be floats, or uint8 to be scaled to [0, 1], got {image.dtype}; convert them first"
        )
    return image


def _channels_first(array: np.ndarray) -> Tensor:
    if array.ndim == 2:
        return torch.from_numpy(array[None].copy())
    if array.ndim != 3:
        return torch.from_numpy(array.copy())
    first, last = array.shape[0] in (1, 3, 4), array.shape[-1] in (1, 3, 4)
    if first == last:
        raise ValueError(
            f"an array of shape {array.shape} does not show whether its first or its last axis is the channels; give a torch "
            "tensor (C, H, W)"
        )
    return torch.from_numpy(array.copy() if first else np.moveaxis(array, -1, 0).copy())


def _from_pil(image: Any) -> Tensor:
    """A PIL image of any mode in [0, 1], grey or colour; what is transparent shows white."""
    if image.mode == "F":
        return torch.from_numpy(np.array(image)[None])
    if image.mode.startswith("I"):
        if image.has_transparency_data:
            raise ValueError(f"transparency in pixels of mode {image.mode}; convert them to 8 bits per channel first")
        return torch.from_numpy(np.asarray(image).astype(np.float32)[None] / 65535)
    pixels = torch.from_numpy(np.array(opaque(image))) / 255
    return pixels[None] if pixels.ndim == 2 else pixels.movedim(-1, 0).contiguous()


def _scalar(value: Any) -> Any:
    if isinstance(value, Tensor | np.generic):
        return value.item()
    return value


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
