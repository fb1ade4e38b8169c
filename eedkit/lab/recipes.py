"""Recipes: how the bundled networks come to be, from a name and a seed to weights in a safetensors file.

Knows networks and images, never metrics or results. A recipe on the digits trains in seconds; a second call reads its file.
"""

import hashlib
import json
import math
import os
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from eedkit.errors import unknown
from eedkit.lab import images as lab_images
from eedkit.lab.networks import WIDTHS, GroupCNN
from eedkit.lab.objectives import OBJECTIVES, Turns, probe
from eedkit.lab.training import fit
from eedkit.lab.weights import seeded
from eedkit.theory import actions

VERSION = 3
"""Part of every fingerprint: to be raised when the same recipe would come out otherwise."""


@dataclass(frozen=True)
class Recipe:
    """How a network is built and trained; with a seed it stands for one set of weights.

    Parameters
    ----------
    group : of the network's convolutions; "C1" for a plain CNN
    augment : group from which every training image gets a random element; "C1" for none
    method : of `OBJECTIVES`; all but "supervised" train without labels, and a linear probe on the features is the head
    start : images on which the network is trained first, supervised and not augmented, before it gets a new head; "same" for
        those of `data`, "" for none
    epochs : passes over the training images (each of them); 0 leaves the random weights
    data, size : training images and the side that they are resized to (odd, where exactness is the point)
    widths, batch_size, rate : channels per block of the plain network; of the optimiser
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

    def __post_init__(self) -> None:
        for name in (self.group, self.augment):
            actions.spatial(name)
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
            "turns": Recipe(method="turns", augment=group),
        }
    )


def check(recipe: Recipe) -> None:
    """Raise ValueError where a recipe could not be trained: a group that cannot move its filters or images, for one.

    >>> check(Recipe(augment="shift4"))
    Traceback (most recent call last):
    ValueError: ...
    """
    for data in {recipe.data, recipe.start} - {"", "same"}:
        lab_images.check(data, size=recipe.size)
    if recipe.batch_size == 1 and recipe.method in ("simclr", "barlow_twins"):
        raise ValueError(f"{recipe.method} compares the images of a batch, so batch_size must be at least 2, got 1")
    augment = actions.spatial(recipe.augment)
    for element in range(augment.group.order):
        augment(element, torch.zeros(1, 1, recipe.size, recipe.size))
    with seeded(0):
        network = GroupCNN(recipe.group, classes=1, widths=(1,))
        if recipe.method == "turns":
            Turns(network, augment)


def train(recipe: Recipe, *, seed: int = 0, cache: str | Path | None = None, progress: bool = False) -> GroupCNN:
    """The network of a recipe and a seed, in eval mode; trained once, then read from `cache`.

    The same recipe, seed, data and machine give the same weights. The random state of the process is left as found. Cached
    weights are used only if they are, bit for bit, those that were trained from this recipe and seed; otherwise, and where
    the cache cannot be written, a warning says so, and the network is trained.

    Parameters
    ----------
    cache : folder for the weights; None takes $EEDKIT_CACHE, or ~/.cache/eedkit

    >>> net = train(Recipe(epochs=0), seed=1)
    >>> net.training
    False
    """
    check(recipe)
    images = _images(recipe.data, recipe.size)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        if recipe.epochs:
            about = _about(recipe, seed, images)
            path = cache_folder(cache) / f"{_digest(about)}.safetensors"
            cached = _network(recipe, images).eval()
            if _read(cached, path):
                return cached
        # drawn anew: a file that does not fit has filled a part of the network before it is refused
        torch.manual_seed(seed)
        network = _network(recipe, images)
        if recipe.epochs:
            about["curves"] = _trained(network, images, recipe, seed, progress)
            about["train_accuracy"] = _accuracy(network, images)
            _write(network, path, about)
    return network.eval()


def source(recipe: Recipe, *, seed: int = 0) -> str:
    """Checksum of all that a recipe's weights follow from; it names their file in the cache. Reads images, trains nothing.

    >>> source(Recipe(), seed=0) == source(Recipe(), seed=0) != source(Recipe(), seed=1)
    True
    """
    return _digest(_about(recipe, seed, _images(recipe.data, recipe.size)))


def curves(recipe: Recipe, *, seed: int = 0, cache: str | Path | None = None) -> pd.DataFrame:
    """Loss by epoch (and accuracy on the training images where the objective has one) as kept with the weights.

    Raises
    ------
    FileNotFoundError
        The network was not trained yet.
    ValueError
        Its file is torn.

    Returns
    -------
    columns stage, epoch, loss, accuracy; no rows for random weights
    """
    kinds = {"stage": str, "epoch": int, "loss": float, "accuracy": float}
    if not recipe.epochs:
        return pd.DataFrame(columns=list(kinds)).astype(kinds)
    path = cache_folder(cache) / f"{source(recipe, seed=seed)}.safetensors"
    if not path.exists():
        raise FileNotFoundError(f"no weights at {path}: train that network first")
    try:
        with safe_open(path, "pt") as held:
            rows = json.loads(held.metadata()["curves"])
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no curves ({error}); delete it and train that network again") from error
    return pd.DataFrame(rows, columns=list(kinds)).astype(kinds)


def cache_folder(cache: str | Path | None = None) -> Path:
    """Where trained weights are kept: `cache`, or $EEDKIT_CACHE, or ~/.cache/eedkit.

    >>> cache_folder("weights").name
    'weights'
    """
    return Path(cache or os.environ.get("EEDKIT_CACHE") or Path.home() / ".cache" / "eedkit").expanduser()


def _about(recipe: Recipe, seed: int, images: "_Images") -> dict[str, object]:
    first = _first(recipe, images).fingerprint if recipe.start else ""
    return {**asdict(recipe), "seed": seed, "images": images.fingerprint, "first": first, "version": VERSION}


def _first(recipe: Recipe, images: "_Images") -> "_Images":
    """What a network that does not start from random weights is trained on before."""
    return images if recipe.start == "same" else _images(recipe.start, recipe.size, images.x.shape[1])


def _digest(about: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Images:
    x: Tensor
    y: Tensor
    classes: int
    fingerprint: str


@lru_cache(maxsize=4)
def _images(data: str, size: int, channels: int | None = None) -> _Images:
    dataset = lab_images.load(data, size=size, channels=channels)
    x, y, _ = lab_images.tensors(dataset)
    classes = getattr(dataset.features["label"], "num_classes", None)
    if classes is None:
        raise ValueError(f"training needs labels that are classes, but those of {data} are {dataset.features['label']}")
    return _Images(x, y, classes, lab_images.fingerprint(dataset))


def _network(recipe: Recipe, images: _Images) -> GroupCNN:
    return GroupCNN(recipe.group, classes=images.classes, channels=images.x.shape[1], widths=recipe.widths)


def _checksum(network: GroupCNN, path: Path) -> str:
    """Of the weights together with the fingerprint of recipe and seed, which is the file's name."""
    return hashlib.sha256(path.stem.encode() + save(network.state_dict())).hexdigest()


def _read(network: GroupCNN, path: Path) -> bool:
    """Put the cached weights into a network; False where there are none, or, with a warning, not those that were trained."""
    try:
        network.load_state_dict(load_file(path))
        with safe_open(path, "pt") as held:
            checksum = (held.metadata() or {}).get("checksum")
        if checksum != json.dumps(_checksum(network, path)):
            raise ValueError("its weights are not those that were trained from this recipe and seed")
    except FileNotFoundError:
        return False
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        warnings.warn(f"{path} cannot be used ({error}); training that network again", stacklevel=3)
        return False
    return True


def _write(network: GroupCNN, path: Path, about: dict[str, object]) -> None:
    """Write the weights into the cache, with `about` in the file's header; a warning where that is not possible."""
    about = {**about, "torch": torch.__version__, "checksum": _checksum(network, path)}
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
            stacklevel=3,
        )
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def _trained(network: GroupCNN, images: _Images, recipe: Recipe, seed: int, progress: bool) -> list[dict[str, Any]]:
    """Train the network stage by stage; the curves of all stages."""
    options = {"epochs": recipe.epochs, "batch_size": recipe.batch_size, "rate": recipe.rate}
    rows = []

    def stage(name: str, of: GroupCNN, on: _Images, method: str, augment: str) -> None:
        objective = OBJECTIVES[method](of, actions.spatial(augment))
        found = fit(objective, on.x, on.y, **options, seed=seed, progress=progress)
        rows.extend({"stage": name, **row} for row in found)

    if recipe.start:
        first = _first(recipe, images)
        # drawn as the network that is trained on these images alone, so that it is that one, seed for seed
        torch.manual_seed(seed)
        begun = _network(recipe, first)
        stage(recipe.start, begun, first, "supervised", "C1")
        network.blocks = begun.blocks
    stage(recipe.method, network, images, recipe.method, recipe.augment)
    network.eval()
    if recipe.method != "supervised":
        probe(_in_batches(network.features, images.x), images.y, network.head)
    return rows


def _accuracy(network: GroupCNN, images: _Images) -> float:
    return (_in_batches(network.eval(), images.x).argmax(-1) == images.y).double().mean().item()


@torch.no_grad()
def _in_batches(take: Any, x: Tensor, size: int = 512) -> Tensor:
    return torch.cat([take(some) for some in x.split(size)])
