"""Recipes: how the bundled networks come to be, from a name and a seed to weights in a safetensors file.

Knows networks and images, never metrics or results. A recipe on the digits trains in seconds; a second call reads its file.
"""

import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pandas as pd
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from eedkit.errors import unknown
from eedkit.lab import images as lab_images
from eedkit.lab import training
from eedkit.lab.networks import WIDTHS, GroupCNN
from eedkit.lab.objectives import OBJECTIVES, Turns, probe
from eedkit.lab.weights import seeded
from eedkit.theory import actions

VERSION = 5
"""Part of every fingerprint: to be raised when the same recipe would come out otherwise."""


@dataclass(frozen=True)
class Recipe:
    """How a network is built and trained; with a seed it stands for one set of weights.

    `specs.RECIPE` says what each field means; `group` is that of the network's convolutions, C1 for a plain CNN.
    """

    group: str = "C1"
    augment: str = "C1"
    method: str = "supervised"
    start: str = ""
    epochs: int = 10
    data: str = "digits/train"
    size: int = 17
    widths: tuple[int, ...] = WIDTHS
    batch_size: int = 64
    rate: float = 5e-3
    share: float = 1.0
    antialiased: bool = False

    def __post_init__(self) -> None:
        for group in (self.group, self.augment):
            actions.spatial(group)
        if self.method not in OBJECTIVES:
            raise ValueError(unknown("method", self.method, OBJECTIVES))
        for name, least in (("epochs", 0), ("size", 1), ("batch_size", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"a recipe's {name} must be a whole number from {least}, got {value!r}")
        if not 0 < self.rate < math.inf:
            raise ValueError(f"a recipe's rate must be a number above 0, got {self.rate!r}")
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"a recipe's widths must list at least one block, each from 1, got {self.widths!r}")
        if not 0 <= self.share <= 1:
            raise ValueError(f"a recipe's share must be a number from 0 to 1, got {self.share!r}")
        if self.share < 1 and actions.spatial(self.augment).group.order == 1:
            raise ValueError(
                f"share is of the images that augmentation moves, got share={self.share} with augment={self.augment}; "
                "name a group such as C4 in augment, or leave share out"
            )


@lru_cache
def recipes(group: str = "C4") -> Mapping[str, Recipe]:
    """The bundled study's recipes for a group, by name.

    >>> recipes("D4")["augmented"].augment
    'D4'
    """
    return MappingProxyType(
        {
            "random": Recipe(epochs=0),
            "plain": Recipe(),
            "augmented": Recipe(augment=group),
            "equivariant": Recipe(group=group),
            # the first of these sees nothing new before: it only trains as long as the others
            "from_same": Recipe(start="same"),
            "from_letters": Recipe(start="letters/train"),
            "from_patches": Recipe(start="patches/train"),
            "simclr": Recipe(method="simclr"),
            "simclr_augmented": Recipe(method="simclr", augment=group),
            "barlow_twins": Recipe(method="barlow_twins"),
            "barlow_twins_augmented": Recipe(method="barlow_twins", augment=group),
            "simsiam": Recipe(method="simsiam"),
            "simsiam_augmented": Recipe(method="simsiam", augment=group),
            "vicreg": Recipe(method="vicreg"),
            "vicreg_augmented": Recipe(method="vicreg", augment=group),
            "turns": Recipe(method="turns", augment=group),
        }
    )


def check(recipe: Recipe) -> None:
    """Raise ValueError where a recipe could not be trained: a group that cannot move its filters or images, for one.

    >>> check(Recipe(augment="shift4"))
    Traceback (most recent call last):
    eedkit.errors.Undefined: shifts by 1/4 of the height need a height divisible by 4, got 17
    """
    for data in {recipe.data, recipe.start} - {"", "same"}:
        _check_images(data, recipe.size)
    if recipe.batch_size == 1 and recipe.method not in ("supervised", "turns"):
        raise ValueError(f"{recipe.method} compares the images of a batch, so batch_size must be at least 2, got 1")
    augment = actions.spatial(recipe.augment)
    for element in range(augment.group.order):
        augment(element, torch.zeros(1, 1, recipe.size, recipe.size))
    with seeded(0):
        network = GroupCNN(recipe.group, classes=1, widths=(1,))
        if recipe.method == "turns":
            Turns(network, augment)


def train(recipe: Recipe, *, seed: int = 0) -> GroupCNN:
    """The network of a recipe and a seed, in eval mode; trained once, then read from the cache.

    The same recipe, seed and data give the same weights on one machine, bit for bit, whatever its load and its settings of
    threads. The settings and the random state of the process are left as found. A network that another process is training
    is waited for. Cached weights are used only if they are those that were trained from this recipe and seed; otherwise,
    and where the cache cannot be written, a warning says so, and the network is trained.

    >>> net = train(Recipe(epochs=0), seed=1)
    >>> net.training
    False
    """
    check(recipe)
    images = training_images(recipe.data, recipe.size)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), training.fixed_arithmetic():
        if recipe.epochs == 0:
            torch.manual_seed(seed)
            return build_network(recipe, images.classes, images.x.shape[1]).eval()
        network, _ = _read_or_trained(recipe, seed, images, cache_folder())
    return network


def untrained(wanted: Iterable[tuple[Recipe, int] | None]) -> list[tuple[Recipe, int]]:
    """Of some recipes with their seeds, those whose weights are not cached, each once; None is no recipe.

    >>> untrained([(Recipe(epochs=0), 3), None])
    []
    """
    missing = []
    for recipe, seed in filter(None, dict.fromkeys(wanted)):
        if recipe.epochs and not _file_of(recipe, seed).exists():
            missing.append((recipe, seed))
    return missing


def train_all(missing: Sequence[tuple[Recipe, int]]) -> Iterator[tuple[Recipe, int]]:
    """Train some recipes with their seeds in processes of one thread each, as many as there are cores; each when it is done.

    With a GPU they are trained one after the other in this process. Those that another process is training are left to it.
    Whatever goes wrong in one of them goes wrong again, and is told, in the `train` of whoever needs it.

    >>> list(train_all([]))
    []
    """
    import joblib

    # here and not there: processes that are used again have the environment of their start
    folder = cache_folder().absolute()
    processes = min(joblib.cpu_count(), len(missing))
    if processes < 2 or torch.cuda.is_available():
        for recipe, seed in missing:
            yield _attempt(recipe, seed, folder)
        return
    with joblib.parallel_config("loky", inner_max_num_threads=1):
        attempts = [joblib.delayed(_attempt)(recipe, seed, folder) for recipe, seed in missing]
        with suppress(BrokenProcessPool):  # one of them was killed; the rest is trained by whoever needs it
            yield from filter(None, joblib.Parallel(n_jobs=processes, return_as="generator_unordered")(attempts))


def source(recipe: Recipe, *, seed: int = 0) -> str:
    """Checksum of all that a recipe's weights follow from; it names their file in the cache. Reads images, trains nothing.

    That is the recipe and its seed, the images, and what decides the bits: number of threads, processor and torch's version.

    >>> source(Recipe(), seed=0) == source(Recipe(), seed=0) != source(Recipe(), seed=1)
    True
    """
    return _digest(_about(recipe, seed, training_images(recipe.data, recipe.size)))


def curves(recipe: Recipe, *, seed: int = 0) -> pd.DataFrame:
    """Stage, epoch, loss and accuracy (where the objective has one) as kept with the weights; no rows for random ones.

    FileNotFoundError where the network was not trained yet, ValueError where its file is torn.
    """
    kinds = {"stage": str, "epoch": int, "loss": float, "accuracy": float}
    if not recipe.epochs:
        return pd.DataFrame(columns=list(kinds)).astype(kinds)
    path = _file_of(recipe, seed)
    if not path.exists():
        raise FileNotFoundError(f"no weights at {path}: train that network first")
    try:
        with safe_open(path, "pt") as held:
            rows = json.loads(held.metadata()["curves"])
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no curves ({error}); delete it and train that network again") from error
    return pd.DataFrame(rows, columns=list(kinds)).astype(kinds)


def cache_folder() -> Path:
    """Where trained weights are kept: $EEDKIT_CACHE, or ~/.cache/eedkit.

    >>> cache_folder().is_absolute()
    True
    """
    return Path(os.environ.get("EEDKIT_CACHE") or Path.home() / ".cache" / "eedkit").expanduser()


def _file_of(recipe: Recipe, seed: int) -> Path:
    return cache_folder() / f"{source(recipe, seed=seed)}.safetensors"


class TrainingImages(NamedTuple):
    """Images (n, C, H, W), the class of each, how many classes there are, and a checksum of images and labels."""

    x: Tensor
    y: Tensor
    classes: int
    fingerprint: str


@lru_cache(maxsize=4)
def training_images(data: str, size: int, channels: int | None = None) -> TrainingImages:
    """The images of a spec with their classes, as tensors.

    >>> training_images("digits/train?n=20", 9).x.shape
    torch.Size([20, 1, 9, 9])
    """
    _check_images(data, size)
    dataset = lab_images.load(data, size=size, channels=channels)
    x, y, _ = lab_images.tensors(dataset)
    classes = getattr(dataset.features["label"], "num_classes", None)
    if classes is None:
        raise ValueError(f"training needs labels that are classes, but those of {data} are {dataset.features['label']}")
    return TrainingImages(x, y, classes, lab_images.fingerprint(dataset))


def _check_images(data: str, size: int) -> None:
    _, told = lab_images.check(data)
    if told["size"] not in (None, size):
        raise ValueError(f"size is {told['size']} in {data!r} but {size} in the recipe; give it once")


def _first(recipe: Recipe, images: TrainingImages) -> tuple[Recipe, TrainingImages]:
    """What a network that does not start from random weights is trained by before, and the images."""
    first = replace(recipe, method="supervised", augment="C1", share=1.0, start="")
    if recipe.start == "same":
        return first, images
    return replace(first, data=recipe.start), training_images(recipe.start, recipe.size, images.x.shape[1])


def _about(recipe: Recipe, seed: int, images: TrainingImages) -> dict[str, Any]:
    """What the weights follow from."""
    first = ""
    if recipe.start:
        first_recipe, first_images = _first(recipe, images)
        first = _digest(_about(first_recipe, seed, first_images))
    about = {"seed": seed, "images": images.fingerprint, "first": first, "version": VERSION}
    return {**asdict(recipe), **about, **training.machine()}


def _digest(about: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def build_network(recipe: Recipe, classes: int, channels: int) -> GroupCNN:
    """A recipe's network as torch's random state draws its weights.

    >>> build_network(Recipe(widths=(4, 8)), classes=3, channels=1).head
    Linear(in_features=8, out_features=3, bias=True)
    """
    return GroupCNN(
        recipe.group,
        classes=classes,
        channels=channels,
        widths=recipe.widths,
        antialiased=recipe.antialiased,
    )


def _attempt(recipe: Recipe, seed: int, folder: Path) -> tuple[Recipe, int]:
    """Train a recipe unless another process is at it; an error is left for whoever needs the weights."""
    with suppress(Exception), torch.random.fork_rng(devices=[]), training.fixed_arithmetic():
        check(recipe)
        images = training_images(recipe.data, recipe.size)
        _read_or_trained(recipe, seed, images, folder, wait=False)
    return recipe, seed


def _read_or_trained(
    recipe: Recipe, seed: int, images: TrainingImages, folder: Path, *, wait: bool = True
) -> tuple[GroupCNN, list[dict[str, Any]]]:
    """The network of a recipe in eval mode, and its curves."""
    about = _about(recipe, seed, images)
    path = folder / f"{_digest(about)}.safetensors"
    with _alone(path, wait=wait):
        cached = build_network(recipe, images.classes, images.x.shape[1]).eval()
        curves = _read(cached, path)
        if curves is not None:
            return cached, curves
        curves = []
        first = None
        if recipe.start:
            first_recipe, first_images = _first(recipe, images)
            first, first_curves = _read_or_trained(first_recipe, seed, first_images, folder, wait=wait)
            curves += [{**row, "stage": recipe.start} for row in first_curves]
        # drawn anew: a file that does not fit has filled a part of the network before it is refused
        torch.manual_seed(seed)
        network = build_network(recipe, images.classes, images.x.shape[1])
        if first is not None:
            network.blocks = first.blocks
        rows = training.fit(
            OBJECTIVES[recipe.method](network, actions.spatial(recipe.augment), recipe.share),
            images.x,
            images.y,
            epochs=recipe.epochs,
            batch_size=recipe.batch_size,
            rate=recipe.rate,
            seed=seed,
        )
        curves += [{"stage": recipe.method, **row} for row in rows]
        network.eval()
        if recipe.method != "supervised":
            probe(_in_batches(network.features, images.x), images.y, network.head)
        about["curves"] = curves
        _write(network, path, about)
    return network, curves


@contextmanager
def _alone(path: Path, *, wait: bool) -> Iterator[None]:
    """Within the block no other process trains these weights; where the cache cannot be written, nobody waits.

    `filelock.Timeout` where another process is at it and shall not be waited for.
    """
    lock = FileLock(path.with_suffix(".lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=wait)
    except Timeout:
        raise
    except (OSError, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        # whoever opened it before waits on a file that is gone by then, and finds the weights
        with suppress(OSError):
            path.with_suffix(".lock").unlink()
        lock.release()


def _checksum(network: GroupCNN, path: Path) -> str:
    """Of the weights together with the fingerprint of recipe and seed, which is the file's name."""
    return hashlib.sha256(path.stem.encode() + save(network.state_dict())).hexdigest()


def _read(network: GroupCNN, path: Path) -> list[dict[str, Any]] | None:
    """Put the cached weights into a network; their curves.

    None where there are none, or, with a warning, not those that were trained.
    """
    try:
        network.load_state_dict(load_file(path))
        with safe_open(path, "pt") as opened:
            header = opened.metadata() or {}
        if header.get("checksum") != json.dumps(_checksum(network, path)):
            raise ValueError("its weights are not those that were trained from this recipe and seed")
        return json.loads(header["curves"])
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError) as error:
        warnings.warn(f"{path} cannot be used ({error}); training that network again", stacklevel=4)
        return None


def _write(network: GroupCNN, path: Path, about: dict[str, Any]) -> None:
    """Write the weights into the cache, with `about` in the file's header; a warning where that is not possible."""
    about = {**about, "checksum": _checksum(network, path)}
    header = {key: json.dumps(value) for key, value in about.items()}
    beside = path.with_suffix(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(save(network.state_dict(), header))
        beside.replace(path)
    except OSError as error:
        warnings.warn(
            f"cannot keep the trained weights at {path} ({error}), so that the next call will train them again; "
            "make room there, or set EEDKIT_CACHE to another folder",
            stacklevel=4,
        )
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


@torch.no_grad()
def _in_batches(function: Callable[[Tensor], Tensor], x: Tensor, size: int = 512) -> Tensor:
    outputs = [function(batch) for batch in x.split(size)]
    return torch.cat(outputs)
