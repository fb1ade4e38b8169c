"""What can be known of a cell before anything is trained: whether it can be measured at all, how many images, at what cost.

Knows models, images and how to measure; no study and no store. Costs one model at a time with random weights, and some passes
of noise through it.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from eedkit.lab import images as lab_images
from eedkit.lab import models as lab_models
from eedkit.lab import specs
from eedkit.probe import run, samples
from eedkit.probe.matching import matched
from eedkit.probe.measure import Options, measure_block
from eedkit.results.schema import metrics_of
from eedkit.study import workers

SLOW = 5.0
"""Seconds for a few images under every element, from which on batches are not waited for."""
FEW = 4
"""Images of the first pass; a metric that matches channels fits on no fewer."""
ROUNDS = 3
"""Timings of which the least counts: what else runs on a machine only makes them longer."""


@dataclass(frozen=True)
class Noise:
    """So many images of noise, each the same whenever it is asked for."""

    n: int
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Tensor:
        return torch.rand(self.shape, generator=torch.Generator().manual_seed(i))


def untrained(model: str | nn.Module) -> lab_models.Loaded:
    """The model with random weights; a module as it is."""
    return lab_models.load(model, weights=False) if isinstance(model, str) else lab_models.Loaded(model)


def size_in(data: str) -> int | None:
    """The size that a spec of images says, which goes over the model's own."""
    return specs.parse(data, lab_images.OPTIONS)[1].get("size")


def shape_of_images(loaded: lab_models.Loaded, data: str) -> tuple[int, ...] | None:
    """(C, H, W) of the images as the model gets them; None where that takes an image and the first ones cannot be read."""
    size = size_in(data) or loaded.size
    if loaded.channels is not None and size is not None:
        return loaded.channels, size, size
    images = lab_images.load(data, size=loaded.size, channels=loaded.channels)
    for i in range(min(FEW, len(images))):
        with suppress(ValueError, OSError):  # an image that cannot be read costs itself alone
            return tuple(images[i]["image"].shape)
    return None


def reasons_against(
    model: str | nn.Module, sizes: Mapping[str, int], options: Sequence[Options]
) -> dict[tuple[str, str], str]:
    """Why a model cannot be measured on data sets of so many images, by data set and group; costs two images of noise.

    What a model throws that is no ValueError is its own matter, and is reported when it is measured.
    """
    reasons = {}
    try:
        loaded = untrained(model)
    except (Exception, SystemExit) as error:
        of_all = str(error) if isinstance(error, ValueError) else ""
        return {(data, one.action.group.name): of_all for data in sizes for one in options if of_all}
    known: dict[tuple, str] = {}
    for data, n in sizes.items():
        try:
            lab_images.load(data, **loaded.wants)
            shape = shape_of_images(loaded, data)
        except ValueError as error:  # a size or channels of its own that the model does not take
            reasons |= {(data, one.action.group.name): str(error) for one in options}
            continue
        if shape is None:
            continue
        for one in options:
            images, group = Noise(n, shape), one.action.group.name
            if (images, group) not in known:
                known[images, group] = _reason_against(loaded, images, one)
            if known[images, group]:
                reasons[data, group] = known[images, group]
    return reasons


def _reason_against(loaded: lab_models.Loaded, images: Noise, options: Options) -> str:
    """Why a model cannot be measured on so many images, by all that `measure` does before the first; empty where it can."""
    options = replace(workers.options_for(options, loaded), device="cpu")
    try:
        stream = samples.open_stream(images, seed=options.seed, order=options.action.group.order, null=options.null)
        if any(metric.action is matched for metric in options.metrics):
            samples.open_halves(images, seed=options.seed)
        with run.prepared(loaded.model, stream, options):
            return ""
    except ValueError as error:
        return str(error)
    except (Exception, SystemExit):
        return ""


def count(data: str) -> int:
    """How many images a spec stands for; those that are not on this machine by the spec's `n`, ValueError without one."""
    name, told = specs.parse(data, lab_images.OPTIONS)
    try:
        if name.startswith("hub:"):
            raise ValueError(
                f"how many images {name} holds is known once it is fetched; to plan before that, write {name}?n=…"
            )
        lab_images.load(name)
    except ValueError:
        if "n" in told:
            return told["n"]
        raise
    return len(lab_images.load(data))


def cost(model: str | nn.Module, data: str, options: Options) -> tuple[float, int]:
    """Seconds and bytes for one image under every element of the group; the first pass also tells whether all names fit."""
    loaded = untrained(model)
    shape = shape_of_images(loaded, data)
    if shape is None:
        raise ValueError(f"the first images of {data} cannot be read, so their size is not known")
    options = replace(workers.options_for(options, loaded), device=workers.device(str(options.device)))
    without_null = replace(options, null=False)
    ds, cold = _timed(loaded.model, Noise(FEW, shape), without_null)
    order = options.action.group.order
    batch = options.batch_size or run.default_batch_size(shape, order, options.device)
    seconds = _seconds(loaded.model, shape, replace(without_null, group="C1"), 0 if cold > SLOW else batch)
    there_and_back = 2 if options.action.on_images(shape).interpolates else 1
    size = sum(v.nbytes // v.sizes["sample"] for v in ds.data_vars.values() if "sample" in v.dims)
    if options.null:
        for name in metrics_of(ds):
            with_null = [name, f"{name}_from_x"] if f"{name}_from_x" in ds else [name]
            size += sum(ds[one].nbytes // ds.sizes["sample"] for one in with_null)
    return seconds * order * there_and_back, size


def _seconds(model: nn.Module, shape: tuple[int, ...], options: Options, batch: int) -> float:
    """Seconds for one image more, of which every block has many: finding the layers, once for a block, does not count."""
    few, many = FEW, 2 * max(FEW, batch)
    least = {few: float("inf"), many: float("inf")}
    for _ in range(ROUNDS):
        for n in least:
            least[n] = min(least[n], _timed(model, Noise(n, shape), options)[1])
    if least[many] <= least[few]:  # too quick for the clock
        return least[many] / many
    return (least[many] - least[few]) / (many - few)


def _timed(model: nn.Module, images: Noise, options: Options) -> tuple:
    """The values of these images, and how many seconds they took."""
    tensor = torch.stack([images[i] for i in range(images.n)])
    start = time.perf_counter()
    values, _ = measure_block(model, tensor, options)
    return values, time.perf_counter() - start
