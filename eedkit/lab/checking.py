"""`ek.check`: whether a network is equivariant or invariant within a tolerance, and where and why it is not.

Knows `measure` and its table. Costs one `measure`, and where that fails a few forward passes and two more of one layer.
"""

import copy
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor, nn

from eedkit.errors import short, unknown
from eedkit.lab import images as lab_images
from eedkit.lab import models
from eedkit.probe import run, samples
from eedkit.probe.guard import unwrapped
from eedkit.probe.measure import Options, measure
from eedkit.results.requirements import Requirement
from eedkit.results.summary import as_relative, ratio_from_x, summarise
from eedkit.theory.actions import Action
from eedkit.theory.groups import Group

METRICS = {
    "equivariant": ("channelwise", "channelwise_regular", "channelwise_field"),
    "invariant": ("latent", "softmax"),
}
"""What is compared: maps by three actions on channels, of which the smallest counts; features and class scores."""
COLUMNS = (
    "layer",
    "metric",
    "relative",
    "relative_low",
    "relative_high",
    "round_trip",
    "element",
    "of_element",
    "n",
    "reason",
)
SMALL = 0.01
"""Relative values below this may be rounding, so that the layer is measured again in float64."""
FURTHER = 64
"""Pixels by which images are made larger, at most, to find a side that suits every stride."""
NO_TURNS = re.compile(r"shift.*|T\(2\).*|rgb|sign")
"""Groups that map every grid of strides as well as they map another."""


@dataclass(frozen=True)
class Stride:
    """A module that steps over a side of its input in such a way that a turn does not take the steps to themselves."""

    path: str
    step: int
    side: int


def check(
    model: nn.Module | str,
    images: Any,
    group: str | Group | Action = "C4",
    expect: str = "equivariant",
    tolerance: float = 0.02,
    *,
    layers: str | Sequence[str] = "all",
    metrics: Any = None,
    progress: bool = False,
    **options: Any,
) -> pd.DataFrame:
    """Whether a network is equivariant or invariant within a tolerance; if not, an AssertionError says where and why.

    "equivariant" asks that every layer with maps has a relative value of at most the tolerance, its channels staying
    where they are or being regular or steerable fields, whichever is closest. "invariant" asks it of the features
    before the head and of the class probabilities. A relative value is 0 where nothing deviates and 1 where a moved
    copy is as far away as a different image, so that what tells no image from another does not pass as invariant.

    Parameters
    ----------
    model, images, group
        As in `ek.measure`; specs of models and images, too.
    expect : "equivariant" or "invariant"
        What is expected.
    tolerance : float
        The largest relative value that passes.
    layers : str or sequence of str
        As in `measure`; "all" finds the first module that deviates.
    metrics : sequence of str or Metric, or None
        What is compared instead, as where channels move by a representation of their own.
    progress : bool
        Show a bar.
    **options
        Further options of `measure`.

    Returns
    -------
    DataFrame
        A row for each layer that was judged: `layer`, `metric`, `relative` with its interval, `round_trip` where the
        group interpolates, the `element` under which it deviates most and by how much (`of_element`), `n`, `reason`.

    Raises
    ------
    AssertionError
        Some layer deviates by more. The message names the first, the element, the size and the cause: rounding,
        interpolation, an even grid under a stride, or the network itself; and what mends it.
    ValueError
        As `measure`.

    Examples
    --------
    >>> pooled = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    >>> images = torch.rand(16, 1, 9, 9)
    >>> check(pooled, images, "C4", expect="invariant").layer.tolist()
    ['latent', 'output']
    """
    if expect not in METRICS:
        raise ValueError(unknown("expectation", expect, METRICS))
    if not isinstance(tolerance, int | float) or not tolerance >= 0:
        raise ValueError(f"tolerance must be a number from 0 on, got {short(tolerance)}")
    model, images, of_spec = _loaded(model, images)
    given = {"group": group, "metrics": metrics or METRICS[expect], "layers": layers, **of_spec, **options}
    ds = measure(model, images, progress=progress, **given)
    table = _judged(ds, expect)
    required = Requirement("relative", "<=", float(tolerance))
    failing = []
    for row in _rows(table):
        # what is exact needs no null where maps are compared: they may be the same everywhere
        is_exact = expect == "equivariant" and row.estimate - row.best <= ds[row.metric].attrs["rounding"]
        if required.failure(row.relative, row.reason) and not is_exact:
            failing.append(row)
    name = ds.model.item()
    if expect == "equivariant":
        _warn_of_unread_layers(ds)
    if table.empty:
        reasons = "; ".join(dict.fromkeys(filter(None, summarise(ds).reason)))
        raise AssertionError(f"{name}: nothing can be judged, since no layer has a value ({reasons})")
    if failing:
        first = failing[0]
        cause, mend = _Cause(model, images, given, ds, expect, required).of(first)
        where = f"{first.layer!r}" if len(failing) == 1 else f"{first.layer!r}, the first of {len(failing)} that fail"
        under = f", most under {first.element} ({first.of_element:.2g})" if first.element else ""
        raise AssertionError(
            f"{name} is not {expect} under {ds.attrs['group']} at {where} of {len(table)}: "
            f"{required.failure(first.relative, first.reason)}{under}, by {first.metric}.\n"
            f"Cause: {cause}.\nMend: {mend}."
        )
    return table.loc[:, [column for column in COLUMNS if column in table]]


def _loaded(model: nn.Module | str, images: Any) -> tuple[nn.Module, Any, dict[str, Any]]:
    """The model and the images that specs stand for, and the options that a model's spec names."""
    if isinstance(model, str):
        is_named = isinstance(images, str | Path)
        loaded, images = models.with_images(model, images) if is_named else (models.load(model), images)
        of_spec = {"name": model, "head": loaded.head}
        return loaded.model, images, of_spec | ({"layers": loaded.layers} if loaded.layers else {})
    if isinstance(images, str | Path):
        images = lab_images.load(images)
    return model, images, {}


def _judged(ds: xr.Dataset, expect: str) -> pd.DataFrame:
    """The rows of `summarise` that count, the smallest of each layer, with the element under which it deviates most."""
    table = summarise(ds)
    judged = table.n > 0
    if expect == "invariant":
        judged &= table.layer.isin(["latent", "output"])
    smallest = []
    for layer in [*ds.layer.values.tolist(), "output"]:
        of_layer = table.relative[judged & (table.layer == layer)].fillna(np.inf)
        if len(of_layer):
            smallest.append(of_layer.idxmin())
    table = table.loc[smallest].reset_index(drop=True)
    elements, values = [], []
    for row in _rows(table):
        by_element = _by_element(ds, row.metric, row.layer, "_from_x")
        elements.append(by_element.idxmax() if by_element.notna().any() else "")
        values.append(by_element.max())
    return table.assign(element=elements, of_element=values)


def _rows(table: pd.DataFrame) -> list[Any]:
    """The rows, whose columns are attributes."""
    return list(table.itertuples())


def _warn_of_unread_layers(ds: xr.Dataset) -> None:
    """Name the layers of which it is not known how they lay out positions, so that nothing is said of them."""
    is_unread = (ds.layout.isel(model=0) == "") & (ds.layer != "latent")
    unread = ds.layer.values[is_unread.values].tolist()
    if unread:
        warnings.warn(
            f"{len(unread)} layers cannot be read and are not judged: {', '.join(unread[:5])} (layouts= says how to)",
            stacklevel=3,
        )


def _by_element(ds: xr.Dataset, metric: str, layer: str, of: str) -> pd.Series:
    ratio = ratio_from_x(ds, metric, layer, of=of)
    return as_relative(ratio.mean("sample"), ds[metric].attrs["order"]).to_series()


@dataclass(frozen=True)
class _Cause:
    """Why a layer deviates, found by measuring it again, and what mends it."""

    model: nn.Module
    images: Any
    given: Mapping[str, Any]
    ds: xr.Dataset
    expect: str
    required: Requirement

    def of(self, row: Any) -> tuple[str, str]:
        """Cause and mend for a row of the table."""
        if pd.isna(row.relative):
            return f"no relative value: {row.reason}", "give images that the network tells apart, and keep null=True"
        if not self.ds.attrs.get("repeatable", 1):
            return (
                "the network gives other outputs for the same images",
                "switch off dropout or noise that stays on in eval mode",
            )
        in_float64 = self._in_float64(row)
        if in_float64 is not None and not self.required.failure(in_float64):
            return (
                f"rounding: in float64 the layer reads {in_float64:.2g}",
                f"a tolerance above {row.relative:.1g}, or a model and images in float64: model.double()",
            )
        stride = self._stride(row)
        if stride is not None:
            return stride
        itself = "the network itself"
        if f"{row.metric}_round_trip" in self.ds and row.element:
            there_and_back = _by_element(self.ds, row.metric, row.layer, "_round_trip")[row.element]
            beside = f"the round trip there and back reads {there_and_back:.2g} under {row.element}"
            if row.of_element <= there_and_back:
                exact = "a group whose moves are exact (C4, D4, flip), larger or smoother images"
                return (
                    f"interpolation: {beside}, which bounds from above what interpolation adds",
                    f"{exact}, or a tolerance above {there_and_back:.2g}",
                )
            itself += f", beyond interpolation: {beside}"
        return itself, self._mend_of_network(row)

    def _mend_of_network(self, row: Any) -> str:
        if self.expect == "invariant":
            return "pool over the group, train with moved images, or average the output over the orbit"
        return (
            f"make {row.layer} of layers that are equivariant, such as group convolutions; where its channels move by "
            "a representation of their own, name it: metrics=[Metric(…, action=…)]"
        )

    def _in_float64(self, row: Any) -> float | None:
        """The layer's relative value in float64; None where it is too large for rounding or cannot be had."""
        if row.relative >= SMALL or self.ds.attrs.get("precision") == "float64":
            return None
        try:
            in_float64 = replace(self, model=copy.deepcopy(unwrapped(self.model)).double())
        except (RuntimeError, TypeError):  # what cannot be copied
            return None
        return in_float64._again(row, self.images, precision="float64")

    def _again(self, row: Any, images: Any, **options: Any) -> float | None:
        """The layer's relative value on other images or by other options; None where the network does not take them."""
        layers = self.given["layers"] if row.layer in ("latent", "output") else [row.layer]
        given = {**self.given, "layers": layers, "labels": None, **options}
        try:
            table = _judged(measure(self.model, images, progress=False, **given), self.expect)
        except (RuntimeError, ValueError):
            return None
        of_layer = table[table.layer == row.layer].relative
        return float(of_layer.iloc[0]) if of_layer.notna().any() else None

    def _stride(self, row: Any) -> tuple[str, str] | None:
        """Cause and mend where a stride before the layer, or in it, steps unevenly over its input."""
        if NO_TURNS.fullmatch(self.ds.attrs["group"]):
            return None
        with self._prepared() as (model, call, example):
            uneven = _uneven_strides(model, call, example, row.layer)
            if not uneven:
                return None
            stride = uneven[0]
            fitting = _fitting_side(model, call, example)
        side, suit = "an even", "odd sides such as 17, 33 and 225 suit strides with odd kernels"
        if stride.side % 2:
            side, suit = "an odd", "even sides suit strides with even kernels"
        cause = (
            f"{side} grid under a stride: {stride.path} strides by {stride.step} over a side of {stride.side}, and its "
            "steps do not fall on the same places when the image is turned, so that exact equivariance is impossible"
        )
        if fitting is None:
            return cause, f"a size on which the steps are symmetric: {suit}"
        height, width = fitting
        n = max(16, 2 * self.ds.sizes["element"])
        noise = torch.randn(n, example.shape[1], height, width, generator=torch.Generator().manual_seed(0))
        reads = self._again(row, noise)
        mend = f"images of {height}×{width}, on which the steps are symmetric ({suit})"
        if reads is None:
            return cause, mend
        on_noise = f"on noise of {height}×{width} the layer reads {reads:.2g}"
        if not self.required.failure(reads):
            return f"{cause}; {on_noise}, so it is the only cause", mend
        return f"{cause}; and the network itself: {on_noise}", f"{mend}; and {self._mend_of_network(row)}"

    @contextmanager
    def _prepared(self) -> Iterator[tuple[nn.Module, Any, Tensor]]:
        """The module as it is measured, how it is called, and two images."""
        names = Options.__dataclass_fields__
        options = Options(**{key: value for key, value in self.given.items() if key in names})
        model = unwrapped(self.model)
        with run.prepared(model, samples.open_stream(samples.by_number(self.images)), options) as ready:
            yield model, ready.forward.call, ready.example


def _fitting_side(model: nn.Module, call: Any, example: Tensor) -> tuple[int, int] | None:
    """The next larger height and width on which no stride is uneven; None where the network takes no other size."""
    height, width = example.shape[-2:]
    for more in range(1, FURTHER + 1):
        larger = example.new_zeros(*example.shape[:-2], height + more, width + more)
        try:
            if not _uneven_strides(model, call, larger, "output"):
                return height + more, width + more
        except (RuntimeError, ValueError, AssertionError):
            return None
    return None


@torch.no_grad()
def _uneven_strides(model: nn.Module, call: Any, images: Tensor, layer: str) -> list[Stride]:
    """The strides up to a layer, in order of execution, of which a turn does not take the steps to themselves."""
    path = re.sub(r"(#\d+)?(\[class\])?$", "", layer)
    uneven: list[Stride] = []
    ended: list[int] = []

    def see(name: str, module: nn.Module, given: tuple) -> None:
        if given and isinstance(tensor := getattr(given[0], "tensor", given[0]), Tensor) and tensor.dim() == 4:
            for side, (step, left_over) in zip(tensor.shape[-2:], _steps(module, tensor.shape[-2:]), strict=True):
                if left_over:
                    uneven.append(Stride(name, step, side))
                    return

    hooks = []
    for name, module in model.named_modules():
        if hasattr(module, "stride"):
            hooks.append(module.register_forward_pre_hook(lambda m, given, name=name: see(name, m, given)))
        if name == path:
            hooks.append(module.register_forward_hook(lambda *_: ended.append(len(uneven))))
    try:
        call(model, images)
    finally:
        for hook in hooks:
            hook.remove()
    return uneven[: ended[0]] if ended else uneven


def _steps(module: nn.Module, sides: Sequence[int]) -> list[tuple[int, int]]:
    """The stride along each side, and the pixels at its end that the steps leave over: (n + 2p − d(k − 1) − 1) mod s.

    A turn, or a mirror, takes the steps to themselves where nothing is left over.

    >>> _steps(nn.Conv2d(1, 1, 3, stride=2, padding=1), (16, 17)), _steps(nn.MaxPool2d(2), (16, 17))
    ([(2, 1), (2, 0)], [(2, 0), (2, 1)])
    """
    weight = getattr(module, "weight", None)
    kernel = getattr(
        module, "kernel_size", weight.shape[-2:] if isinstance(weight, Tensor) and weight.dim() > 3 else None
    )
    along = []
    for axis, side in enumerate(sides):
        values = []
        for value in (module.stride, getattr(module, "padding", 0), getattr(module, "dilation", 1), kernel):
            values.append(
                value[axis % len(value)] if isinstance(value, Sequence) and not isinstance(value, str) else value
            )
        step, padding, dilation, size = values
        if padding == "valid":
            padding = 0
        if not all(isinstance(value, int) for value in (step, padding, dilation, size)) or step < 2:
            along.append((1, 0))
            continue
        along.append((step, (side + 2 * padding - dilation * (size - 1) - 1) % step))
    return along
