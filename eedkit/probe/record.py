"""What a pass records: a track for each metric and layer, and beside the metrics predictions, norms and dead channels.

Knows tensors, taps and tables, never labels or files. Holds one batch's f̂ per layer and one sample's orbit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eedkit.probe.capture import Layer
from eedkit.probe.matching import HALF, CrossFitted, Fit
from eedkit.probe.metrics import Metric, pooled, probabilities
from eedkit.probe.stream import Fingerprint, Sample
from eedkit.probe.tables import Tables
from eedkit.theory import actions
from eedkit.theory.actions import Action
from eedkit.theory.deviation import ChainedDeviation, PairCosine, partners

ABSENT = "it does not run in every forward pass"


@dataclass
class Swept:
    """What one pass found: `arrays` by name, (layer, element, sample) or a part of these, and what lies beside them.

    `dead` has for each layer the dead channels and all channels, summed over samples and elements (layer, 2).
    `flaws` says of samples, by row, why they have no value. `positions` says as which sample of the stream each row came, and so which are neighbours in the null's chains.
    """

    layers: list[Layer]
    arrays: dict[str, np.ndarray]
    reasons: dict[str, list[str]]
    kernel_orders: list[int]
    pair_cosines: list[PairCosine]
    dead: np.ndarray
    flaws: dict
    ids: list
    labels: list
    positions: list[int]
    scores: bool
    fingerprint: str


class Track:
    """One metric at one layer: its stream of deviations and the buffers (element, batch) that they go to."""

    def __init__(
        self, metric: Metric, action: Action, values: Tensor, nulls: Tensor | None, reason: str, fit: Fit | None = None
    ) -> None:
        self.metric, self.action, self.values, self.nulls, self.fit = metric, action, values, nulls, fit
        self.reason, self.kernel_order = reason, 0
        self.deviation: ChainedDeviation | CrossFitted | None = None

    def add(self, g: int, z: Tensor, features: dict, *, ends: bool) -> None:
        """Take the layer's output for element g; `features` shares what several metrics derive from it."""
        if self.reason:
            return
        take = self.metric.features
        try:
            if take not in features:
                features[take] = take(z)
            if self.deviation is None:
                self.deviation = self._opened(features[take].shape[1:])
        except ValueError as error:
            self.reason = str(error)
            return
        if g == 0:
            self.deviation.begin(ends=ends)
        elements, value, null = self.deviation.add(g, features[take])
        if elements:
            self.values[elements, : value.shape[1]] = value.to(self.values.dtype)
        if null is not None:
            self.nulls[elements, : null.shape[1]] = null.to(self.nulls.dtype)

    def _opened(self, shape: Sequence[int]) -> ChainedDeviation | CrossFitted:
        target, m, null = self.metric.action(self.action), self.metric.distance, self.nulls is not None
        kernel = actions.kernel(target, shape)
        self.kernel_order = len(kernel)
        if not self.metric.matched:
            return ChainedDeviation(target, m, kernel, null=null)
        if self.fit is None:
            raise ValueError(ABSENT)
        return CrossFitted.under(self.fit, target, m, shape, null=null)


class Recorder:
    """The state of a pass: a track for each metric and layer, and what is recorded beside the metrics.

    For every batch: `begin`, then `element` before and `ran_all` after each forward pass, then `finish`.
    """

    def __init__(
        self,
        layers: list[Layer],
        tables: Tables,
        *,
        action: Action,
        metrics: Sequence[Metric],
        null: bool,
        image: Tensor,
        tolerant: bool = False,
        matched: dict[tuple[str, Layer], Fit] | None = None,
    ) -> None:
        self.layers, self.tables, self.action, self.metrics, self.null = layers, tables, action, metrics, null
        self.tolerant, self.flaws, self.unreadable = tolerant, {}, []
        self.inner = [layer for layer in layers if layer.role != "output"]
        self.position = {layer: p for p, layer in enumerate(self.inner)}
        self.batch: list[Sample] = []
        self.g, self.ends, self.ran = 0, False, set()
        self.ids, self.labels, self.fingerprint = {}, {}, Fingerprint()
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
        self.tracks = {layer: self._tracks(layer, image, matched or {}) for layer in layers}
        self.pair_cosines = [PairCosine() for _ in self.inner]
        self.dead = torch.zeros(rows, 2, dtype=torch.float64, device=tables.device)
        self.dead_at_e: dict[Layer, Tensor] = {}
        self.scores = False

    def _tracks(self, layer: Layer, image: Tensor, matched: dict[tuple[str, Layer], Fit]) -> list[Track]:
        tracks = []
        for metric in self.metrics:
            if (metric.where == "output") != (layer.role == "output"):
                continue
            reason = _no_map(layer, image) if metric.where == "maps" else _no_layout(layer.shape, image)
            at = self.position.get(layer, ...)
            nulls = self.tables[f"{metric.name}_null"][at] if self.null else None
            fit = matched.get((metric.name, layer))
            tracks.append(Track(metric, self.action, self.tables[metric.name][at], nulls, reason, fit))
        return tracks

    def on_layer(self, layer: Layer, z: Tensor) -> None:
        """Runs inside the hook: compare, write, keep nothing but copies of what the next element is compared with."""
        self.ran.add(layer)
        if not z.dim() or len(z) != len(self.batch):
            self._drop(layer, f"its output has shape {tuple(z.shape)} for a batch of {len(self.batch)} images")
            return
        if z.dtype in HALF:
            z = z.float()
        features: dict = {}
        for track in self.tracks[layer]:
            track.add(self.g, z, features, ends=self.ends)
        if layer.role == "output":
            self._at_output(z, features)
        else:
            self._record_beside(layer, z, features)

    def _drop(self, layer: Layer, reason: str) -> None:
        for track in self.tracks[layer]:
            track.reason = track.reason or reason

    def _at_output(self, z: Tensor, features: dict) -> None:
        self.tables["_finite"][self.g, : len(z)] = z.isfinite().flatten(1).all(1).to(torch.int8)
        if z.dim() == 2 and z.shape[1] > 1:
            self.scores = True
            p = features[probabilities] if probabilities in features else probabilities(z)
            confidence, prediction = p.max(-1)
            finite = self.tables["_finite"][self.g, : len(z)] == 1
            self.tables["prediction"][self.g, : len(z)] = torch.where(finite, prediction.int(), -1)
            self.tables["confidence"][self.g, : len(z)] = confidence.float()

    def _record_beside(self, layer: Layer, z: Tensor, features: dict) -> None:
        position = self.position[layer]
        if self.g == 0 and pooled in features:
            self.pair_cosines[position].update(features[pooled][self._readable(z)])
            self.tables["latent_norm"][position, : len(z)] = torch.linalg.vector_norm(features[pooled], dim=-1).float()
        if any(track.metric.where == "maps" and not track.reason for track in self.tracks[layer]):
            norms = torch.linalg.vector_norm(z, dim=(-2, -1))
            dead, counted = norms == 0, norms.isfinite() & self._readable(z)[:, None]
            if self.g == 0:
                self.dead_at_e[layer] = dead
            self.dead[position, 0] += (dead & self.dead_at_e[layer] & counted).sum()
            self.dead[position, 1] += counted.sum()

    def _readable(self, z: Tensor) -> Tensor:
        """Which samples of the batch are images, and not what stands in for one."""
        return torch.tensor([not sample.flaw for sample in self.batch], device=z.device)

    def begin(self, batch: list[Sample], *, ends: bool) -> None:
        """Open a batch; `ends` says that the null's chain ends with it."""
        if self.null and ends and len(self.ids) + len(batch) < 2:
            raise ValueError("a null compares different samples, but there is only one; pass null=False")
        self.batch, self.ends = batch, ends
        for sample in batch:
            self.ids[sample.row], self.labels[sample.row] = sample.id, sample.label
            self.fingerprint.update(sample)

    def element(self, g: int) -> None:
        """Say whose images the next forward pass sees."""
        self.g = g
        self.ran.clear()

    def ran_all(self) -> None:
        """Give up layers that the forward pass just made did not reach."""
        for layer in self.layers:
            if layer not in self.ran:
                self._drop(layer, ABSENT)

    def finish(self) -> None:
        """Write the buffers to the batch's rows; refuse an output that is not finite, or tell of it when tolerant."""
        rows = [sample.row for sample in self.batch]
        self.tables.flush(rows, ends=self.ends)
        for g, i in np.argwhere(self.tables.arrays["_finite"][:, rows] == 0):
            sample = self.batch[i]
            if not self.tolerant:
                raise ValueError(self._not_finite(g, i))
            if sample.row not in self.flaws:
                self.flaws[sample.row] = sample.flaw or self._not_finite(g, i)
        unreadable = {sample.row: sample.flaw for sample in self.batch if sample.flaw}
        self.unreadable += unreadable
        self.flaws |= unreadable

    def _not_finite(self, g: int, i: int) -> str:
        broken = [
            layer.name
            for layer in self.inner
            for track in self.tracks[layer]
            if not track.reason and track.values[g, i].isnan()
        ]
        where = f"the first layer that shows it is {broken[0]!r}" if broken else "no tapped layer before it shows that"
        sample, element = self.batch[i].id, self.action.group.elements[g]
        return f"the model's output is not finite for sample {sample} under {element}; {where}"

    def result(self) -> Swept:
        """The arrays cut to the samples that came, with reasons and states beside them."""
        n = len(self.ids)
        self.tables.trim(n)
        arrays = self.tables.arrays
        arrays.pop("_finite")
        self._blank(arrays, n)
        reasons = {
            metric.name: [t.reason for layer in self.layers for t in self.tracks[layer] if t.metric is metric]
            for metric in self.metrics
        }
        for layer in self.layers:
            for track in self.tracks[layer]:
                if track.reason:
                    self._forget(layer, track.metric)
        kernels = [
            next((t.kernel_order for t in self.tracks[layer] if t.metric.where == "maps"), 0) for layer in self.inner
        ]
        dead = self.dead.cpu().numpy()
        return Swept(
            self.inner, arrays, reasons, kernels, self.pair_cosines, dead, self.flaws,
            [self.ids[row] for row in range(n)], [self.labels[row] for row in range(n)],
            np.argsort(list(self.ids)).tolist(), self.scores, str(self.fingerprint),
        )  # fmt: skip

    def _blank(self, arrays: dict[str, np.ndarray], n: int) -> None:
        """No values for images that could not be read, nor nulls against them, even where the model ignores its input."""
        if self.unreadable:
            against = [place for place, partner in enumerate(partners(n)) if partner in self.unreadable]
            for name, array in arrays.items():
                rows = [*self.unreadable, *against] if name.endswith("_null") else self.unreadable
                array[..., rows] = np.nan if array.dtype.kind == "f" else -1

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
