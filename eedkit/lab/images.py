"""Images as Hugging Face datasets with stable sample ids: bundled ones, a local folder or parquet file, the hub.

Must not know models, groups or metrics. Costs one compressed copy of a parquet file; images are decoded when asked for.
"""

import hashlib
import io
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps

from eedkit.errors import unknown

if TYPE_CHECKING:
    from datasets import Dataset

BUNDLED = (
    *("digits/train", "digits/test", "letters/train", "letters/test"),
    *("patches/train", "patches/test", "faces/test"),
)
"""What `load` takes without a path or the network; the cards under `data/` tell what is in each."""


def load(
    spec: str | Path, *, size: int | None = None, channels: int | None = None, n: int | None = None, seed: int = 0
) -> "Dataset":
    """Images with labels and ids, decoded when they are asked for.

    Each item is `{"image": float32 (C, H, W) in [0, 1], "label": int, "id": str}`. Only a `spec` that starts with `hub:`
    can reach the network. Pillow decodes and resizes in whole numbers: the same Pillow gives the same pixels anywhere.

    Parameters
    ----------
    spec : one of `BUNDLED` ("digits/test"), a folder of class folders, a parquet file, or "hub:owner/name/split"
    size : resize to size×size (bilinear, antialiased), after cropping the largest central square; None: leave as is
    channels : 1 (grey), 3 (colour), or None: 1 for grey files, 3 for others; transparency is dropped
    n : a subset of n images in which each class has its share (to within one image), drawn with `seed`; with the same
        seed a smaller subset is part of a larger one
    seed : seed of that draw

    Ids are those of the `id` column; otherwise "class/file" in a folder, else name and row number. Images without any
    label have label -1. For labels without decoding any image: `load(...).select_columns("label")["label"]`.

    Raises
    ------
    ValueError
        Nothing of that name here, columns that are not images, more images asked for than there are; when an image is
        asked for, a file that cannot be read.
    ConnectionError
        A hub repository that is neither reachable nor cached; says which file to put where.

    >>> digits = load("digits/test", size=17, n=20)
    >>> len(digits), digits[0]["image"].shape, digits[0]["id"]
    (20, torch.Size([1, 17, 17]), 'digits-...')
    """
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1, 3 or None, got {channels!r}")
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size!r}")
    images = _tidy(_open(str(spec)), str(spec))
    if n is not None:
        if not 1 <= n <= len(images):
            raise ValueError(f"{spec} has {len(images)} images, cannot take n={n} of them")
        images = images.select(_stratified(images["label"][:], n, seed))
    return images.with_transform(partial(_decode, size=size, channels=channels))


def tensors(dataset: "Dataset") -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """All of a loaded dataset in memory: images (n, C, H, W), labels (n,) and n ids.

    Raises
    ------
    ValueError
        The images differ in shape.

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


def _open(spec: str) -> "Dataset":
    if spec in BUNDLED:
        return _parquet(_data() / f"{spec}.parquet")
    if spec.startswith("hub:"):
        return _hub(spec)
    path = Path(spec).expanduser().absolute()
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        return _parquet(path)
    raise ValueError(
        f"{unknown('bundled images, folder or file', spec, BUNDLED)}; "
        "a repository of the Hugging Face hub is spelled 'hub:owner/name/split'"
    )


def _data() -> Path:
    """Where the bundled images are: inside an installed package, or beside it in the repository."""
    installed = Path(__file__).parents[1] / "_data"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "data"


def _parquet(path: Path) -> "Dataset":
    import datasets
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is not a parquet file: {error}") from error
    return datasets.Dataset(table)  # load_dataset would write a second copy into its cache, behind a progress bar


def _folder(path: Path) -> "Dataset":
    import datasets

    known = Image.registered_extensions()
    files = sorted(f for f in path.glob("*/*") if f.suffix.lower() in known and not f.name.startswith("."))
    if not files:
        raise ValueError(f"{path} must hold a folder for each class, with images in it; found none")
    classes = sorted({file.parent.name for file in files})
    columns = {
        "image": [str(file) for file in files],
        "label": [classes.index(file.parent.name) for file in files],
        "id": [f"{file.parent.name}/{file.name}" for file in files],
    }
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=classes), "id": datasets.Value("string")}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def _hub(spec: str) -> "Dataset":
    import datasets

    parts = spec.removeprefix("hub:").split("/")
    if len(parts) != 3 or not all(parts):
        raise ValueError(f"a repository of the hub is spelled 'hub:owner/name/split', got {spec!r}")
    owner, name, split = parts
    try:
        return datasets.load_dataset(f"{owner}/{name}", split=split)
    except ConnectionError as error:
        raise ConnectionError(
            f"cannot reach the hub for {owner}/{name}, and it is not in the cache; with a network, save it by "
            f"datasets.load_dataset('{owner}/{name}', split='{split}').to_parquet('{split}.parquet'), "
            f"put that file here and load('{split}.parquet')"
        ) from error


def _tidy(images: "Dataset", spec: str) -> "Dataset":
    """The same rows with exactly the columns image (not decoded), label and id."""
    import datasets

    if not len(images):
        raise ValueError(f"{spec} holds no images")
    has = ", ".join(images.features)
    for column, kind in {"image": datasets.Image, "label": datasets.ClassLabel}.items():
        fitting = [name for name, feature in images.features.items() if isinstance(feature, kind)]
        if column not in images.features and len(fitting) == 1:
            images = images.rename_column(fitting[0], column)
        elif column not in images.features and (fitting or column == "image"):
            raise ValueError(f"{spec} needs a column '{column}' or just one of type {kind.__name__}; it has: {has}")
    if "label" not in images.features:
        images = images.add_column("label", [-1] * len(images))
    if images.features["label"].dtype == "string":
        images = images.class_encode_column("label")
    if "id" not in images.features:
        name = spec if spec.startswith("hub:") else Path(spec).stem
        images = images.add_column("id", [f"{name}-{row:04d}" for row in range(len(images))])
    twice = [name for name, count in Counter(images["id"][:]).items() if count > 1]
    if twice:
        raise ValueError(f"{spec} has {len(twice)} ids that several images share, such as {twice[0]!r}")
    return images.select_columns(["image", "label", "id"]).cast_column("image", datasets.Image(decode=False))


def _stratified(labels: list[int], n: int, seed: int) -> np.ndarray:
    """Rows of n images: every class's rows at even steps of one seeded order, so that any first n are balanced."""
    order = np.random.default_rng(seed).permutation(len(labels))
    place = np.empty(len(labels))
    for label in set(labels):
        rows = order[np.asarray(labels)[order] == label]
        place[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    return np.sort(order[np.argsort(place[order], kind="stable")[:n]])


def _decode(rows: dict, *, size: int | None, channels: int | None) -> dict:
    """What `with_transform` calls: columns, possibly not all of them, as lists."""
    rows = dict(rows)
    if "id" in rows:
        rows["id"] = [str(name) for name in rows["id"]]
    if "image" in rows:
        names = rows.get("id", ["(its id was not asked for)"] * len(rows["image"]))
        pairs = zip(rows["image"], names, strict=True)
        rows["image"] = [_tensor(file, name, size, channels) for file, name in pairs]
    return rows


def _tensor(file: dict, name: str, size: int | None, channels: int | None) -> torch.Tensor:
    """One image file, encoded or by path, as float32 (C, H, W) in [0, 1]."""
    name, source = (name, io.BytesIO(file["bytes"])) if file["bytes"] is not None else (file["path"], file["path"])
    try:
        image = ImageOps.exif_transpose(Image.open(source))
    except (OSError, SyntaxError) as error:
        raise ValueError(f"cannot read the image {name}: {error}") from error
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"{name} has pixels of mode {image.mode}; convert it to 8 bits per channel first")
    grey = channels == 1 or (channels is None and image.mode in ("1", "L", "LA"))
    image = image.convert("L" if grey else "RGB")
    if size is not None:
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image)).float() / 255
    return pixels[None] if grey else pixels.permute(2, 0, 1).contiguous()
