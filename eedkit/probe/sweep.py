"""One pass over a stream of images: |G| forwards per batch, every layer and metric from the same forwards.

Knows tensors, taps and tables, never labels or files. Holds one batch's f̂ per layer beside the activation at hand, one
sample's orbit per layer, and the tables.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from eedkit.probe import capture, stream
from eedkit.probe.capture import Layer
from eedkit.probe.metrics import Metric, pooled, probabilities
from eedkit.probe.tables import Tables
from eedkit.theory import actions
from eedkit.theory.actions import Action
from eedkit.theory.deviation import ChainedDeviation, PairCosine

HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
DTYPES = {"float32": torch.float32, "float64": torch.float64, **HALF}


@dataclass
class Swept:
    """What one pass found: `arrays` by name, (layer, element, sample) or a part of these, and what lies beside them."""

    layers: list[Layer]
    arrays: dict[str, np.ndarray]
    reasons: dict[str, list[str]]
    kernel_orders: list[int]
    pair_cosines: list[PairCosine]
    dead_fractions: list[float]
    ids: list
    labels: list
    fingerprint: str


def sweep(
    model: nn.Module,
    source: stream.Stream,
    *,
    action: Action,
    metrics: Sequence[Metric],
    layers: str | Sequence[str] = "blocks",
    head: str | None = None,
    batch_size: int | None = None,
    null: bool = True,
    device: torch.device | str = "cpu",
    precision: str = "float32",
    progress: str | None = None,
) -> Swept:
    """Pass the whole stream through the model; the arguments are `measure`'s, resolved.

    Raises
    ------
    ValueError
        The action does not fit the images, a null is asked for and there is one sample, or the model's output is not
        finite (the sample, the element and the first such layer are named).
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, or None to choose one by the images' size, got {batch_size}")
    device = torch.device(device)
    first = next(source.samples)
    for g in range(action.group.order):
        action(g, first.image)
    batch_size = batch_size or default_batch_size(first.image.shape)
    with capture.evaluating(model, device), arithmetic(precision, device) as dtype:
        found = capture.find_layers(model, first.image[None].to(device, dtype, copy=True), layers=layers, head=head)
        tables = Tables(capacity=source.length or 4 * batch_size, batch_size=batch_size, device=device)
        work = _Pass(model, found, action, metrics, null, tables, device, dtype, first.image)
        bar = tqdm(total=source.length, desc=progress, unit="image", disable=progress is None, leave=False)
        # the model's autocast must not reach the distances: it would take their dot products in half precision
        on_layer = torch.autocast(device.type, enabled=False)(work.on_layer)
        with bar, capture.tap(model, found, on_layer):
            for batch, ends in stream.cut(chain([first], source.samples), batch_size):
                work.run(batch, ends=ends)
                bar.update(len(batch))
    return work.result()


def default_batch_size(shape: Sequence[int]) -> int:
    """A power of two from 8 to 256 such that a batch of images holds about four million numbers.

    >>> default_batch_size((3, 224, 224)), default_batch_size((1, 17, 17))
    (16, 256)
    """
    size = 256
    while size > 8 and size * int(np.prod(shape)) > 2**22:
        size //= 2
    return size


@contextmanager
def arithmetic(precision: str, device: torch.device) -> Iterator[torch.dtype]:
    """Within the block float32 means float32 (no TF32), cuDNN is deterministic, half precisions autocast; gives the dtype."""
    matmul = torch.get_float32_matmul_precision()
    with ExitStack() as stack:
        stack.callback(torch.set_float32_matmul_precision, matmul)
        torch.set_float32_matmul_precision("highest")
        stack.enter_context(
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        )
        if precision in HALF:
            stack.enter_context(torch.autocast(device.type, HALF[precision]))
        yield torch.float32 if precision in HALF else DTYPES[precision]


class _Track:
    """One metric at one layer: its stream of deviations and the buffers (element, batch) that they go to."""

    def __init__(self, metric: Metric, action: Action, values: Tensor, nulls: Tensor | None, reason: str) -> None:
        self.metric, self.action, self.values, self.nulls = metric, action, values, nulls
        self.reason, self.kernel_order = reason, 0
        self.deviation: ChainedDeviation | None = None

    def add(self, g: int, z: Tensor, features: dict, *, ends: bool) -> None:
        """Take the layer's output for element g; `features` shares what several metrics derive from it."""
        if self.reason:
            return
        take = self.metric.features
        try:
            if take not in features:
                features[take] = take(z)
            if self.deviation is None:
                target = self.metric.action(self.action)
                kernel = actions.kernel(target, features[take].shape[1:])
                self.kernel_order = len(kernel)
                self.deviation = ChainedDeviation(target, self.metric.distance, kernel, null=self.nulls is not None)
        except ValueError as error:
            self.reason = str(error)
            return
        if g == 0:
            self.deviation.begin(ends=ends)
        for h, value, null in self.deviation.add(g, features[take]):
            self.values[h, : len(value)] = value
            if null is not None:
                self.nulls[h, : len(null)] = null


class _Pass:
    """The state of a pass: a track for each metric and layer, and what is recorded beside the metrics."""

    def __init__(self, model, layers, action, metrics, null, tables, device, dtype, image) -> None:
        self.model, self.action, self.metrics, self.null, self.tables = model, action, metrics, null, tables
        self.device, self.dtype, self.layers = device, dtype, layers
        self.inner = [layer for layer in layers if layer.role != "output"]
        self.position = {layer: p for p, layer in enumerate(self.inner)}
        self.g, self.ends, self.size, self.ran = 0, False, 0, set()
        self.ids, self.labels, self.fingerprint = {}, {}, stream.Fingerprint()
        order, rows = action.group.order, len(self.inner)
        for metric in metrics:
            shape = (order,) if metric.where == "output" else (rows, order)
            tables.add(metric.name, shape, np.float32)
            if null:
                tables.add(f"{metric.name}_null", shape, np.float32, lagging=True)
        tables.add("latent_norm", (rows,), np.float32)
        tables.add("prediction", (order,), np.int32)
        tables.add("confidence", (order,), np.float32)
        tables.add("_finite", (order,), np.int8)
        self.tracks = {layer: self._tracks(layer, image) for layer in layers}
        self.pair_cosines = [PairCosine() for _ in self.inner]
        self.dead = torch.zeros(rows, 2, dtype=torch.float64, device=device)
        self.dead_at_e: dict[Layer, Tensor] = {}

    def _tracks(self, layer: Layer, image: Tensor) -> list[_Track]:
        tracks = []
        for metric in self.metrics:
            if (metric.where == "output") != (layer.role == "output"):
                continue
            reason = _no_map(layer, image) if metric.where == "maps" else _no_layout(layer.shape, image)
            at = self.position.get(layer, ...)
            nulls = self.tables[f"{metric.name}_null"][at] if self.null else None
            tracks.append(_Track(metric, self.action, self.tables[metric.name][at], nulls, reason))
        return tracks

    def on_layer(self, layer: Layer, z: Tensor) -> None:
        """Runs inside the hook: compare, write, keep nothing but copies of what the next element is compared with."""
        self.ran.add(layer)
        if not z.dim() or len(z) != self.size:
            self._drop(layer, f"its output has shape {tuple(z.shape)} for a batch of {self.size} images")
            return
        if z.dtype in HALF.values():
            z = z.float()
        features: dict = {}
        for track in self.tracks[layer]:
            track.add(self.g, z, features, ends=self.ends)
        if layer.role == "output":
            self._at_output(z, features)
        else:
            self._beside(layer, z, features)

    def _drop(self, layer: Layer, reason: str) -> None:
        for track in self.tracks[layer]:
            track.reason = track.reason or reason

    def _at_output(self, z: Tensor, features: dict) -> None:
        self.tables["_finite"][self.g, : len(z)] = z.isfinite().flatten(1).all(1).to(torch.int8)
        if z.dim() == 2 and z.shape[1] > 1:
            p = features[probabilities] if probabilities in features else probabilities(z)
            confidence, prediction = p.max(-1)
            self.tables["prediction"][self.g, : len(z)] = prediction.int()
            self.tables["confidence"][self.g, : len(z)] = confidence.float()

    def _beside(self, layer: Layer, z: Tensor, features: dict) -> None:
        position = self.position[layer]
        if self.g == 0 and pooled in features:
            self.pair_cosines[position].update(features[pooled])
            self.tables["latent_norm"][position, : len(z)] = torch.linalg.vector_norm(features[pooled], dim=-1).float()
        if any(track.metric.where == "maps" and not track.reason for track in self.tracks[layer]):
            dead = torch.linalg.vector_norm(z, ord=torch.inf, dim=(-2, -1)) == 0
            if self.g == 0:
                self.dead_at_e[layer] = dead
            self.dead[position, 0] += (dead & self.dead_at_e[layer]).sum()
            self.dead[position, 1] += dead.numel()

    def run(self, batch: list[stream.Sample], *, ends: bool) -> None:
        """One batch: forward every element's images, then write the buffers to the samples' rows."""
        if self.null and ends and len(self.ids) + len(batch) < 2:
            raise ValueError("a null compares different samples, but there is only one; pass null=False")
        self.ends, self.size, rows = ends, len(batch), [sample.row for sample in batch]
        for sample in batch:
            self.ids[sample.row], self.labels[sample.row] = sample.id, sample.label
            self.fingerprint.update(sample)
        images = torch.stack([sample.image for sample in batch]).to(self.device, self.dtype)
        for g in range(self.action.group.order):
            self.g = g
            self.ran.clear()
            # a copy, since a model may work in place on its input
            self.model(self.action(g, images).clone())
            for layer in self.layers:
                if layer not in self.ran:
                    self._drop(layer, "it does not run in every forward pass")
        self.tables.flush(rows, ends=ends)
        self._refuse_infinite(batch, rows)

    def _refuse_infinite(self, batch: list[stream.Sample], rows: list[int]) -> None:
        bad = np.argwhere(self.tables.arrays["_finite"][:, rows] == 0)
        if not len(bad):
            return
        g, i = bad[0]
        broken = [
            layer.name
            for layer in self.inner
            for track in self.tracks[layer]
            if not track.reason and track.values[g, i].isnan()
        ]
        where = f"; the first layer that shows it is {broken[0]!r}" if broken else ""
        raise ValueError(
            f"the model's output is not finite for sample {batch[i].id} under {self.action.group.elements[g]}{where}"
        )

    def result(self) -> Swept:
        """The arrays cut to the samples that came, with reasons and states beside them."""
        n = len(self.ids)
        self.tables.close(n)
        arrays = self.tables.arrays
        arrays.pop("_finite")
        reasons = {
            metric.name: [t.reason for layer in self.layers for t in self.tracks[layer] if t.metric is metric]
            for metric in self.metrics
        }
        for layer in self.layers:
            for track in self.tracks[layer]:
                if track.reason:
                    self._forget(layer, track.metric)
        kernels = {
            layer: t.kernel_order for layer in self.inner for t in self.tracks[layer] if t.metric.where == "maps"
        }
        dead = (self.dead[:, 0] / self.dead[:, 1]).tolist()
        return Swept(
            self.inner, arrays, reasons, [kernels.get(layer, 0) for layer in self.inner], self.pair_cosines, dead,
            [self.ids[row] for row in range(n)], [self.labels[row] for row in range(n)], str(self.fingerprint),
        )  # fmt: skip

    def _forget(self, layer: Layer, metric: Metric) -> None:
        """NaN also for the batches before the one in which the layer turned out to be undefined."""
        at, names = self.position.get(layer, ...), [metric.name, f"{metric.name}_null"]
        if metric.features is pooled:
            names.append("latent_norm")
            self.pair_cosines[at] = PairCosine()
        for name in names:
            if name in self.tables.arrays:
                self.tables.arrays[name][at] = np.nan


def _no_map(layer: Layer, image: Tensor) -> str:
    if layer.role == "latent":
        return "it is the head's input, not a feature map"
    return _no_layout(layer.shape, image)


def _no_layout(shape: Sequence[int], image: Tensor) -> str:
    """Why maps of this shape cannot be those of a channels-first layer: they are not square though the images are."""
    if len(shape) == 3 and image.shape[-1] == image.shape[-2] and shape[-1] != shape[-2]:
        return (
            f"its maps are {shape[-2]}×{shape[-1]} for square images; channels-last layers need a wrapper (b, C, H, W)"
        )
    return ""
