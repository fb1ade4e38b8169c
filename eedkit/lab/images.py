"""Images as Hugging Face datasets with stable sample ids: bundled ones, other packages', a local folder or parquet file, the hub.

Must not know models, groups or metrics. Costs one copy of each of the last four parquet files; images are decoded when asked for.
"""

import hashlib
import io
import os
import tempfile
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from eedkit.errors import unknown
from eedkit.lab import packages, specs
from eedkit.pictures import opaque

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

BUNDLED = (
    *("digits/train", "digits/test", "letters/train", "letters/test"),
    *("fashion/train", "fashion/test", "patches/train", "patches/test", "faces/test"),
)
"""What `load` takes without a path or the network; the cards under `data/` tell what is in each."""

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""What image files may hold, whatever they are called: for others Pillow may start another program."""

OPTIONS = {
    **dict.fromkeys(("size", "channels", "n", "per_class", "seed"), int),
    **{"label": str, "shift": str, "severity": int},
}
"""What may stand in a spec of images, "digits/test?n=100"."""


def load(
    spec: str | Path,
    *,
    size: int | None = None,
    channels: int | None = None,
    n: int | None = None,
    per_class: int | None = None,
    seed: int | None = None,
    label: str | None = None,
    shift: str | None = None,
    severity: int | None = None,
    transform: Callable[[Image.Image], torch.Tensor] | None = None,
) -> "Dataset":
    """Images with labels and ids, decoded when they are asked for.

    Each item is `{"image": float32 (C, H, W) in [0, 1], "label": int, "id": str}`. Only a `spec` that starts with `hub:`
    can reach the network. Pillow decodes and resizes in whole numbers: the same Pillow gives the same pixels anywhere.

    Parameters
    ----------
    spec : one of `BUNDLED` ("digits/test") or of `packages.IMAGES` ("mnist/test"), a folder of images, a parquet file,
        or "hub:owner/name/split"; all but transform may stand in it: "digits/test?n=100&shift=blur&severity=3"
    size : resize to size×size (bilinear, antialiased), after cropping the largest central square; None: leave as is
    channels : 1 (grey), 3 (colour), or None: 1 for grey files, 3 for others; transparency shows white
    n : a subset of n images in which each class has its share (to within one image), drawn with `seed`; with the same
        seed a smaller subset is part of a larger one
    per_class : in place of n, a subset with this many images of each class that has any, drawn in the same way
    seed : seed of that draw and, together with an image's id, of its shift; None: 0
    label : which column has the labels, where it is not called so; words in it become classes, numbered by alphabet
    shift, severity : a key of `shifts.SHIFTS` and 1 (mild) to 5 (strong): corrupts every image, before any transform
    transform : from the upright image in RGB to the float tensor (C, H, W) that a model wants, in place of size and channels

    Folders are read by the rules of `datasets`' imagefolder: by their metadata.csv, .jsonl or .parquet where they have one;
    otherwise an image's class is the name of its own folder, where all images lie equally deep and there are several such
    folders, numbered by name. Here a class without images keeps its number. What is hidden is skipped.

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
    >>> digits = load("digits/test", size=17, n=20)
    >>> len(digits), digits[0]["image"].shape, digits[0]["id"]
    (20, torch.Size([1, 17, 17]), 'digits-...')
    """
    name, options = check(
        spec,
        size=size,
        channels=channels,
        n=n,
        per_class=per_class,
        seed=seed,
        label=label,
        shift=shift,
        severity=severity,
    )
    size, channels, seed = options["size"], options["channels"], options["seed"] or 0
    if transform is not None and (size, channels) != (None, None):
        raise ValueError(f"transform takes the place of size and channels; got it with {size=}, {channels=}")
    images = _tidy(_open(name), name, options["label"])
    if options["n"] is not None:
        images = images.select(_stratified(name, images["label"][:], options["n"], seed))
    if options["per_class"] is not None:
        images = images.select(_balanced(name, images["label"][:], options["per_class"], seed))
    return images.with_transform(partial(_decode, options=options, transform=transform))


def check(spec: str | Path, **options: Any) -> tuple[str, dict[str, Any]]:
    """Name and all options of a spec, with those from beside it; ValueError for any that `load` refuses, opening nothing.

    >>> name, options = check("digits/test?n=20", size=17)
    >>> name, options["size"], options["n"], options["seed"]
    ('digits/test', 17, 20, None)
    """
    name, told = specs.parse(str(spec), OPTIONS)
    for key, value in told.items():
        if options.get(key) not in (None, value):
            raise ValueError(f"{key} is {value} in {str(spec)!r} but {options[key]!r} as an argument; give it once")
    options = dict.fromkeys(OPTIONS) | options | told
    if options["channels"] not in (None, 1, 3):
        raise ValueError(f"channels must be 1, 3 or None, got {options['channels']!r}")
    if options["size"] is not None and options["size"] < 1:
        raise ValueError(f"size must be at least 1 pixel, got {options['size']!r}")
    if options["n"] is not None and options["per_class"] is not None:
        raise ValueError(
            f"n and per_class both say how many images to take, got n={options['n']} and per_class={options['per_class']}; "
            "keep one"
        )
    for key in ("n", "per_class"):
        if options[key] is not None and options[key] < 1:
            raise ValueError(f"{key} must be at least 1, got {options[key]}; leave it out to take all images")
    if (options["shift"], options["severity"]) != (None, None):
        from eedkit.lab import shifts  # torchvision takes seconds, and most images are not shifted

        shifts.strength(options["shift"], options["severity"])
    return name, options


def tensors(dataset: "Dataset") -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """All of a loaded dataset in memory: images (n, C, H, W), labels (n,) and n ids.

    Raises
    ------
    ValueError
        The images differ in shape.

    Examples
    --------
    >>> images, labels, ids = tensors(load("digits/test", n=20))
    >>> images.shape, labels.bincount().tolist(), len(ids)
    (torch.Size([20, 1, 8, 8]), [2, 2, 2, 2, 2, 2, 2, 2, 2, 2], 20)
    """
    rows = dataset[:]
    shapes = sorted({tuple(image.shape) for image in rows["image"]})
    if len(shapes) > 1:
        listed = ", ".join("×".join(map(str, shape)) for shape in shapes[:4])
        raise ValueError(f"images of {len(shapes)} shapes ({listed}, …): load them with size= and channels=")
    return torch.stack(rows["image"]), torch.tensor(rows["label"]), rows["id"]


def fingerprint(dataset: "Dataset") -> str:
    """Hash of ids, labels and pixels as they come out of a loaded dataset, in order.

    Holds nothing of the machine, of paths or of how the image files are compressed.

    >>> whole, part = load("digits/test", size=17), load("digits/test", size=17, n=20)
    >>> fingerprint(part) == fingerprint(load("digits/test", size=17, n=20)) != fingerprint(whole)
    True
    """
    digest = hashlib.sha256()
    for row in dataset:
        pixels = row["image"].numpy().astype("<f4")
        digest.update(repr((row["id"], row["label"], pixels.shape)).encode() + pixels.tobytes())
    return digest.hexdigest()[:16]


def source(dataset: "Dataset") -> str:
    """Checksum of a loaded dataset's ids, labels and image files as they are stored, in order; decodes nothing.

    The same for any size, channels, shift or transform. A file that cannot be read counts by its name: reading it as
    an image is what reports it.

    >>> source(load("digits/test", size=17)) == source(load("digits/test")) != source(load("digits/test", n=20))
    True
    """
    digest = hashlib.sha256()
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
    if spec in packages.IMAGES:
        return packages.IMAGES[spec]()
    if spec.startswith("hub:"):
        return _hub(spec)
    path = Path(os.path.expanduser(spec)).absolute()
    if os.path.isdir(path):  # Path.is_dir raises for names that are too long
        return _folder(path)
    if os.path.isfile(path):
        return _parquet(path)
    raise ValueError(
        f"{unknown('bundled images, folder or file', spec, (*BUNDLED, *packages.IMAGES))}; "
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
    """The images below a folder, by the rules of `datasets`' imagefolder; their ids are their paths."""
    import datasets
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    folders, files = _below(path)
    metadata = [file for file in files if file.name in ImageFolder.METADATA_FILENAMES]
    if metadata:
        return _by_metadata(path, metadata)
    files = [file for file in files if file.suffix.lower() in ImageFolder.EXTENSIONS]
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
        columns["label"] = [classes.index(file.parent.name) for file in files]
        features["label"] = datasets.ClassLabel(names=classes)
    try:
        return datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    except UnicodeEncodeError as error:
        raise ValueError(f"file names must be UTF-8, got {os.fsencode(error.object)}; rename it") from None


def _below(path: Path) -> tuple[list[Path], list[Path]]:
    """All folders and files below a folder, relative to it, in the order of torchvision's ImageFolder.

    Skips what is hidden and folders such as __pycache__, as `datasets` does. The listing of `datasets` also skips, silently,
    folders that it may not read.
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
    from datasets.data_files import SPLIT_KEYWORDS

    words = set().union(*SPLIT_KEYWORDS.values())
    splits = [str(folder) for folder in folders if str(folder).lower() in words]
    if len(splits) > 1:
        raise ValueError(f"{path} holds the splits {', '.join(splits)}; name the one that is meant: {path / splits[0]}")


def _by_metadata(path: Path, metadata: list[Path]) -> "Dataset":
    """The rows of a folder's metadata files, as `datasets` reads them; an image's path is its id, where no column has ids."""
    import datasets
    from datasets.data_files import DataFilesDict, DataFilesList
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    tables = []
    for file in metadata:
        # one at a time, because datasets puts several into a set, which has no order
        listed = DataFilesDict(train=DataFilesList([str(path / file)], []))
        try:
            with tempfile.TemporaryDirectory() as scratch:
                rows = ImageFolder(data_files=listed, cache_dir=scratch).as_streaming_dataset("train").decode(False)
                tables.append(datasets.Dataset.from_list(list(rows), features=rows.features))
        except Exception as error:  # broken tables raise nearly anything
            raise ValueError(
                f"cannot read {path / file}: {error}; expected a column file_name with paths relative to that file"
            ) from error
    images = datasets.concatenate_datasets(tables)
    if "id" in images.features:
        return images
    column = next(name for name, feature in images.features.items() if isinstance(feature, datasets.Image))
    files = images.cast_column(column, datasets.Image(decode=False))[column]
    return images.add_column("id", [Path(file["path"]).relative_to(path).as_posix() for file in files])


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


def _decode(rows: dict, *, options: dict[str, Any], transform: Callable | None) -> dict:
    """What `with_transform` calls: columns, possibly not all of them, as lists."""
    rows = dict(rows)
    if "id" in rows:
        rows["id"] = [str(name) for name in rows["id"]]
    if "image" in rows:
        if options["shift"] and "id" not in rows:
            raise ValueError("what a shift draws comes from the image's id: keep the column 'id' beside 'image'")
        names = rows.get("id", ["(its id was not asked for)"] * len(rows["image"]))
        rows["image"] = [_tensor(*pair, options, transform) for pair in zip(rows["image"], names, strict=True)]
    return rows


def _tensor(file: dict | None, name: str, options: dict[str, Any], transform: Callable | None) -> torch.Tensor:
    """One image file, encoded or by path, as `load` gives it."""
    image = _opened(file, name)
    if transform is None:
        return _pixels(image, name, options)
    image = image.convert("RGB")
    if options["shift"]:
        image = Image.fromarray((_pixels(image, name, options) * 255).round().byte().permute(1, 2, 0).numpy())
    made = transform(image)
    if not (isinstance(made, torch.Tensor) and made.is_floating_point() and made.ndim == 3):
        got = f"{made.dtype} {tuple(made.shape)}" if isinstance(made, torch.Tensor) else type(made).__name__
        raise ValueError(f"transform must make a float tensor (C, H, W) of an image, got {got}")
    return made


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
    """An image of that id as float32 (C, H, W) in [0, 1], shifted."""
    size, channels = options["size"], options["channels"]
    grey = channels == 1 or (channels is None and image.mode == "L")
    image = image.convert("L" if grey else "RGB")
    if size is not None:
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image)).float() / 255
    pixels = pixels[None] if grey else pixels.permute(2, 0, 1).contiguous()
    if options["shift"]:
        from eedkit.lab import shifts

        seed = zlib.crc32(f"{options['seed'] or 0} {name}".encode())
        pixels = shifts.shifted(pixels, options["shift"], options["severity"], seed=seed)
    return pixels
