"""What can be known of a cell before anything is trained: whether it can be measured at all, how many images, at what cost.

Knows models, images and how to measure; no study and no store. Costs one model at a time with random weights, and some passes
of noise through it.
"""

import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from eedkit.errors import Undefined
from eedkit.lab import images as lab_images
from eedkit.lab import models as lab_models
from eedkit.lab import specs
from eedkit.probe import run, samples
from eedkit.probe.matching import matched
from eedkit.probe.measure import Options, measure_block
from eedkit.results.schema import metrics_of
from eedkit.study import workers
from eedkit.study.workers import Job

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


def refuse_what_cannot_be(jobs: Sequence[Job]) -> None:
    """ValueError for cells that cannot be measured as asked, and where no metric has a value for any model; costs two images each.

    A warning names single metrics of that kind. What a model throws that is no ValueError is its own matter, and is reported when
    it is measured.
    """
    refused = []
    reasons_of: dict[str, list[str]] = {metric.name: [] for metric in jobs[0].options.metrics}
    build = lru_cache(maxsize=1)(untrained)
    known: dict[tuple, dict[str, str]] = {}
    for job in jobs:
        reasons: dict[str, str] = {}
        try:
            reasons = _tried(build(job.model), job, known)
        except ValueError as error:
            refused.append(f"{job.cell}: {error}")
        except (Exception, SystemExit):
            reasons = {}
        for metric, so_far in reasons_of.items():
            so_far.append(reasons.get(metric, ""))
    if refused:
        more = f" (and {len(refused) - 3} more cells)" if len(refused) > 3 else ""
        raise ValueError(f"nothing was trained or measured, since {'; '.join(refused[:3])}{more}")
    without_value = {metric: reasons[0] for metric, reasons in reasons_of.items() if all(reasons)}
    listed = "; ".join(f"{metric}: {reason}" for metric, reason in without_value.items())
    if len(without_value) == len(reasons_of):
        raise ValueError(f"nothing was trained or measured, since no metric has a value for any model: {listed}")
    if without_value:
        warnings.warn(f"these metrics have a value for none of the models, and will be NaN: {listed}", stacklevel=3)


def _tried(loaded: lab_models.Loaded, job: Job, known: dict[tuple, dict[str, str]]) -> dict[str, str]:
    """Why metrics have no value for a model's cell, by all that `measure` does before the first image; ValueError where none can."""
    lab_images.load(job.data, **loaded.wants)  # a size or channels of its own that the model does not take
    shape = shape_of_images(loaded, job.data)
    if shape is None:
        return {}
    images = Noise(job.n, shape)
    key = job.cell.model, job.cell.group, images
    if key not in known:
        options = replace(workers.options_for(job.options, loaded), device="cpu")
        known[key] = _reasons(loaded.model, images, options)
    return known[key]


def _reasons(model: nn.Module, images: Noise, options: Options) -> dict[str, str]:
    """Of the metrics that have no value at any layer; ValueError where nothing can be measured."""
    stream = samples.open_stream(images, seed=options.seed, order=options.action.group.order, null=options.null)
    if any(metric.action is matched for metric in options.metrics):
        samples.open_halves(images, seed=options.seed)
    reasons = {}
    with run.prepared(model, stream, options) as ready:
        for metric in options.metrics:
            layers = [layer for layer in ready.found.layers if (layer.role == "output") != metric.has_layers]
            undefined = []
            for layer in layers:
                try:
                    metric.refuse(layer)
                except Undefined as error:
                    undefined.append(str(error))
            if len(undefined) == len(layers):
                reasons[metric.name] = next(iter(undefined), "the model has no such layer")
    return reasons


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
