"""Recipes: how the bundled networks come to be, from a name and a seed to weights in a safetensors file.

Knows networks and images, never metrics or results. A recipe on the digits trains in seconds; a second call reads its file.
"""

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from eedkit.lab import images as lab_images
from eedkit.lab.networks import WIDTHS, GroupCNN
from eedkit.theory import actions
from eedkit.theory.actions import Action

VERSION = 1
"""Part of every fingerprint: to be raised when the same recipe would come out otherwise."""


@dataclass(frozen=True)
class Recipe:
    """How a network is built and trained; with a seed it stands for one set of weights.

    Parameters
    ----------
    group : of the network's convolutions; "C1" for a plain CNN
    augment : group from which every training image gets a random element; "C1" for none
    epochs : passes over the training images; 0 leaves the random weights
    data, size : training images and the side that they are resized to (odd, where exactness is the point)
    widths, batch_size, rate : channels per block of the plain network; of the optimiser
    """

    group: str = "C1"
    augment: str = "C1"
    epochs: int = 10
    data: str = "digits/train"
    size: int = 17
    widths: tuple[int, ...] = WIDTHS
    batch_size: int = 64
    rate: float = 5e-3

    def __post_init__(self) -> None:
        for name in (self.group, self.augment):
            actions.spatial(name)
        for name, least in (("epochs", 0), ("size", 1), ("batch_size", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"a recipe's {name} must be a whole number from {least}, got {value!r}")
        if not self.widths:
            raise ValueError("a recipe's widths must list at least one block")


def recipes(group: str = "C4") -> dict[str, Recipe]:
    """The bundled study's recipes for a group, by name.

    >>> recipes("D4")["augmented"].augment
    'D4'
    """
    return {
        "random": Recipe(epochs=0),
        "plain": Recipe(),
        "augmented": Recipe(augment=group),
        "equivariant": Recipe(group=group),
    }


def train(recipe: Recipe, *, seed: int = 0, cache: str | Path | None = None, progress: bool = False) -> GroupCNN:
    """The network of a recipe and a seed, in eval mode; trained once, then read from `cache`.

    The same recipe, seed, data and machine give the same weights. The random state of the process is left as found.

    Parameters
    ----------
    cache : folder for the weights; None takes $EEDKIT_CACHE, or ~/.cache/eedkit

    >>> net = train(Recipe(epochs=0), seed=1)
    >>> net.training
    False
    """
    images = _images(recipe.data, recipe.size)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        network = GroupCNN(recipe.group, classes=images.classes, channels=images.x.shape[1], widths=recipe.widths)
        if recipe.epochs:
            _fill(network, images, recipe, seed, cache, progress)
    return network.eval()


def source(recipe: Recipe, *, seed: int = 0) -> str:
    """Checksum of all that a recipe's weights follow from; it names their file in the cache. Reads images, trains nothing.

    >>> source(Recipe(), seed=0) == source(Recipe(), seed=0) != source(Recipe(), seed=1)
    True
    """
    return _digest(_about(recipe, seed, _images(recipe.data, recipe.size)))


def _about(recipe: Recipe, seed: int, images: "_Images") -> dict[str, object]:
    return {**asdict(recipe), "seed": seed, "images": images.fingerprint, "version": VERSION}


def _digest(about: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Images:
    x: Tensor
    y: Tensor
    classes: int
    fingerprint: str


@lru_cache(maxsize=2)
def _images(data: str, size: int) -> _Images:
    dataset = lab_images.load(data, size=size)
    x, y, _ = lab_images.tensors(dataset)
    classes = getattr(dataset.features["label"], "num_classes", None)
    if classes is None:
        raise ValueError(f"training needs labels that are classes, but those of {data} are {dataset.features['label']}")
    return _Images(x, y, classes, lab_images.fingerprint(dataset))


def _fill(
    network: GroupCNN, images: _Images, recipe: Recipe, seed: int, cache: str | Path | None, progress: bool
) -> None:
    """Read the trained weights into the network, or train it and write them."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    about = _about(recipe, seed, images)
    path = cache_folder(cache) / f"{_digest(about)}.safetensors"
    if path.exists():
        try:
            network.load_state_dict(load_file(path))
            return
        except (SafetensorError, RuntimeError) as error:
            warnings.warn(f"{path} cannot be read ({error}); training that network again", stacklevel=3)
    _fit(network, images, recipe, seed, progress)
    about |= {"torch": torch.__version__, "train_accuracy": _accuracy(network, images)}
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".{os.getpid()}.partial")
    try:
        save_file(network.state_dict(), beside, metadata={key: json.dumps(value) for key, value in about.items()})
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def cache_folder(cache: str | Path | None = None) -> Path:
    """Where trained weights are kept: `cache`, or $EEDKIT_CACHE, or ~/.cache/eedkit.

    >>> cache_folder("weights").name
    'weights'
    """
    return Path(cache or os.environ.get("EEDKIT_CACHE") or Path.home() / ".cache" / "eedkit").expanduser()


def augmented(images: Tensor, action: Action) -> Tensor:
    """Every image of a batch moved by an element of its own, drawn evenly from the group with torch's random state.

    >>> augmented(torch.ones(2, 1, 3, 3), actions.spatial("C4")).shape
    torch.Size([2, 1, 3, 3])
    """
    if action.group.order == 1:
        return images
    drawn = torch.randint(action.group.order, (len(images),), device=images.device)
    moved = torch.empty_like(images)
    for g in range(action.group.order):
        moved[drawn == g] = action(g, images[drawn == g])
    return moved


def _fit(network: GroupCNN, images: _Images, recipe: Recipe, seed: int, progress: bool) -> None:
    import lightning
    from torch.utils.data import DataLoader, TensorDataset

    action = actions.spatial(recipe.augment)

    class Supervised(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def training_step(self, batch: list[Tensor], _index: int) -> Tensor:
            x, y = batch
            return F.cross_entropy(self.network(augmented(x, action)), y)

        def configure_optimizers(self) -> dict:
            optimiser = torch.optim.AdamW(self.parameters(), lr=recipe.rate)
            steps = int(self.trainer.estimated_stepping_batches)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.rate, total_steps=steps)
            return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    loader = DataLoader(
        TensorDataset(images.x, images.y),
        recipe.batch_size,
        shuffle=True,
        generator=torch.Generator().manual_seed(seed),
    )
    with _as_found():
        trainer = lightning.Trainer(
            max_epochs=recipe.epochs,
            accelerator="auto",
            devices=1,
            deterministic=True,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=progress,
        )
        trainer.fit(Supervised(), loader)
    network.cpu()


@torch.no_grad()
def _accuracy(network: GroupCNN, images: _Images) -> float:
    return (network.eval()(images.x).argmax(-1) == images.y).double().mean().item()


@contextmanager
def _as_found() -> Iterator[None]:
    """Without Lightning's notes on hardware, workers and tips, and with the process's settings afterwards as before."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        if workspace is None:
            os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
