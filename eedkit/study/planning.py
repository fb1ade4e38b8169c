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

from eedkit.lab import images as lab_images
from eedkit.lab import models as lab_models
from eedkit.lab import specs
from eedkit.probe.measure import default_batch_size, measure_block
from eedkit.results.cells import Cell, Ledger
from eedkit.results.schema import metrics_of
from eedkit.study import engine
from eedkit.study.progress import bar
from eedkit.theory import groups

if TYPE_CHECKING:
    from eedkit.study.study import Study


SLOW = 5.0
"""Seconds for a few images under every element, from which on that is timing enough."""
FEW = 4
"""Images of the first pass; a metric that matches channels fits on no fewer."""


def table(study: "Study", cells: Sequence[tuple[Cell, Ledger | None]], *, progress: bool) -> pd.DataFrame:
    """`Study.plan`, from the study's cells and what is known of them."""
    costs, rows = {}, []
    shown = bar(len(cells), "plan", "cell", show=progress)
    for cell, ledger in cells:
        shown.set_postfix_str(cell.model, refresh=False)
        rows.append({"data": cell.data, "group": cell.group, "model": cell.model, "note": ""})
        try:
            n = ledger.n if ledger else count(study.data[cell.data])
            left = n - int(ledger.images_done.sum()) if ledger else n
            model = study.models[cell.model]
            # what a forward pass costs follows from the model, and for a module from the size of the images
            key = cell.model, cell.group, study.data[cell.data] if isinstance(model, nn.Module) else ""
            if key not in costs:
                costs[key] = cost(study, model, study.data[cell.data], cell.group)
            seconds, size = costs[key]
            rows[-1] |= {"images": n, "blocks": len(ledger.start if ledger else study.bounds(n, cell.group))}
            rows[-1] |= {"done": int(ledger.done.sum()) if ledger else 0}
            rows[-1] |= {
                "forwards": left * groups.parse(cell.group).order,
                "bytes": size * n,
                "seconds": seconds * left,
            }
        except Exception as error:  # a plan says of every cell what is wrong, not of the first alone
            rows[-1]["note"] = f"{type(error).__name__}: {error}"
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


def cost(study: "Study", model: str | nn.Module, data: str, group: str) -> tuple[float, int]:
    """Seconds and bytes for one image under every element of the group; the first pass also tells whether all names fit."""
    loaded = lab_models.load(model, weights=False) if isinstance(model, str) else lab_models.Loaded(model)
    shape = (loaded.channels, loaded.size, loaded.size)
    if None in shape:
        shape = tuple(lab_images.load(data, size=loaded.size, channels=loaded.channels)[0]["image"].shape)
    device = engine.device(study.device)
    options = replace(study.options(group), head=study.head or loaded.head, device=device, null=False)
    batch = study.batch_size or default_batch_size(shape, device)
    images = torch.rand(max(FEW, 2 * batch), *shape, generator=torch.Generator().manual_seed(0))
    order = groups.parse(group).order
    start = time.perf_counter()
    ds, _ = measure_block(loaded.model, images[:FEW], options)
    seconds = (time.perf_counter() - start) / FEW
    if FEW * seconds < SLOW:
        for n in (
            max(FEW, batch),
            len(images),
        ):  # the first pass over a batch of this size prepares the library's kernels
            start = time.perf_counter()
            measure_block(loaded.model, images[:n], replace(options, group="C1"))
        seconds = (time.perf_counter() - start) / len(images) * order
    size = sum(v.nbytes // v.sizes["sample"] for v in ds.data_vars.values() if "sample" in v.dims)
    nulls = sum(ds[name].nbytes // ds.sizes["sample"] for name in metrics_of(ds)) if study.null else 0
    return seconds, size + nulls
