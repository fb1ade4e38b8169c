"""What a study will cost: how many images a spec stands for, and a model timed on noise.

Knows models, images and what is done already. Costs one model at a time with random weights, and three batches through it.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import nn

from eedkit.errors import printable
from eedkit.lab import images as lab_images
from eedkit.lab import models as lab_models
from eedkit.lab import specs
from eedkit.probe.measure import Options, measure_block
from eedkit.probe.run import default_batch_size
from eedkit.progress import bar
from eedkit.results.schema import metrics_of
from eedkit.store.cells import State
from eedkit.study import workers

if TYPE_CHECKING:
    from eedkit.study.study import Study


SLOW = 5.0
"""Seconds for a few images under every element, from which on that is timing enough."""
FEW = 4
"""Images of the first pass; a metric that matches channels fits on no fewer."""


def table(study: "Study", states: Sequence[State], *, progress: bool) -> pd.DataFrame:
    """`Study.plan`, from the study's cells and what is known of them."""
    options = {one.action.group.name: one for one in map(study.options, study.groups)}
    costs: dict[tuple, tuple[float, int]] = {}
    rows = []
    shown = bar(len(states), "plan", "cell", show=progress)
    for state in states:
        cell = state.cell
        shown.set_postfix_str(printable(cell.model), refresh=False)
        row = {"data": cell.data, "group": cell.group, "model": cell.model, "note": ""}
        try:
            n = state.samples or count(study.data[cell.data])
            model = study.models[cell.model]
            # what a forward pass costs follows from the model, and for a module from the size of the images
            key = cell.model, cell.group, study.data[cell.data] if isinstance(model, nn.Module) else ""
            if key not in costs:
                costs[key] = cost(model, study.data[cell.data], options[cell.group])
            seconds, size = costs[key]
            left = n - state.samples_done
            row["images"] = n
            row["blocks"] = len(state.bounds or study.bounds(n, options[cell.group]))
            row["done"] = len(state.done)
            row["forwards"] = left * options[cell.group].action.group.order
            row["bytes"] = size * n
            row["seconds"] = seconds * left
        except Exception as error:  # a plan says of every cell what is wrong, not only of the first
            row["note"] = f"{type(error).__name__}: {error}"
        rows.append(row)
        shown.update()
    shown.close()
    columns = ["data", "group", "model", "images", "blocks", "done", "forwards", "bytes", "seconds", "note"]
    return pd.DataFrame(rows).reindex(columns=columns)


def count(data: str) -> int:
    """How many images a spec stands for; those that are not on this machine by the spec's `n`.

    Raises
    ------
    ValueError
        The images are not here and the spec does not say how many they are.

    Examples
    --------
    >>> count("digits/test?n=20"), count("hub:owner/name/validation?n=50000")
    (20, 50000)
    """
    name, told = specs.parse(data, lab_images.OPTIONS)
    here = not name.startswith("hub:")
    try:
        if here:
            lab_images.load(name)
    except ValueError:
        if "n" not in told:
            raise
        here = False
    if here:
        return len(lab_images.load(data))
    if "n" not in told:
        raise ValueError(
            f"how many images {name} holds is known once it is fetched; to plan before that, write {name}?n=…"
        )
    return told["n"]


def cost(model: str | nn.Module, data: str, options: Options) -> tuple[float, int]:
    """Seconds and bytes for one image under every element of the group; the first pass also tells whether all names fit."""
    loaded = lab_models.load(model, weights=False) if isinstance(model, str) else lab_models.Loaded(model)
    shape = (loaded.channels, loaded.size, loaded.size)
    if None in shape:
        shape = tuple(lab_images.load(data, size=loaded.size, channels=loaded.channels)[0]["image"].shape)
    device = workers.device(options.device)
    order = options.action.group.order
    batch = options.batch_size or default_batch_size(shape, order, device)
    images = torch.rand(max(FEW, 2 * batch), *shape, generator=torch.Generator().manual_seed(0))
    without_null = replace(
        options, head=options.head or loaded.head, layers=loaded.layers or options.layers, device=device, null=False
    )
    start = time.perf_counter()
    ds, _ = measure_block(loaded.model, images[:FEW], without_null)
    seconds = (time.perf_counter() - start) / FEW
    if FEW * seconds < SLOW:
        # the first pass over a batch of this size prepares the library's kernels
        for n in (max(FEW, batch), len(images)):
            start = time.perf_counter()
            measure_block(loaded.model, images[:n], replace(without_null, group="C1"))
        seconds = (time.perf_counter() - start) / len(images) * order
    size = sum(v.nbytes // v.sizes["sample"] for v in ds.data_vars.values() if "sample" in v.dims)
    if options.null:
        for name in metrics_of(ds):
            with_null = [name, f"{name}_from_x"] if f"{name}_from_x" in ds else [name]
            size += sum(ds[one].nbytes // ds.sizes["sample"] for one in with_null)
    return seconds, size
