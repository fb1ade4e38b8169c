"""What the model makes of every moved copy: the features of every image (`ek.orbit_features`), or one image's maps.

Knows the pass of `measure`. Costs |G| forwards of every image and holds what it gives: |G| vectors of each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn

from eedkit.errors import Undefined, unknown
from eedkit.probe import dataset, guard, run
from eedkit.probe.collect import Place, WhenWhole
from eedkit.probe.measure import Options, Pass, run_pass, warn_of_flaws
from eedkit.probe.metrics import METRICS
from eedkit.probe.run import Ready
from eedkit.probe.samples import Batch, as_float, open_stream
from eedkit.probe.tracing import Call
from eedkit.theory.actions import Action
from eedkit.theory.groups import Group

METRIC_OF = {"features": "latent", "probabilities": "softmax"}
"""The metric that compares what is asked for."""
DIM_OF = {"features": "feature", "probabilities": "class"}


def orbit_features(
    model: nn.Module | str,
    images: Any,
    *,
    group: str | Group | Action,
    of: str = "features",
    head: str | None = None,
    output: str | int | Mapping[str, str] = "auto",
    call: Call | None = None,
    labels: Any = None,
    name: str | None = None,
    batch_size: int | None = None,
    device: str | torch.device = "auto",
    precision: str = guard.AUTO,
    progress: bool = True,
) -> xr.DataArray:
    """f(gx) for every element and image, f being the head's input: what `latent` (Kvinge et al. 2022, eq. 6) compares.

    Parameters
    ----------
    model, images, group, head, output, call, labels, name, batch_size, device, precision, progress
        As in `measure`.
    of : "features" or "probabilities"
        The head's input, as a vector (its mean over positions); or the class probabilities.

    Returns
    -------
    DataArray (element, sample, feature), or (element, sample, class)
        With the coordinates `label` (its attribute `class_names`), `model`, `angle` and `flaw`; an image that could not be
        read is NaN. For the functions of `ek.orbits`.

    Raises
    ------
    Undefined
        The model has no such output.
    ValueError, TypeError
        As `measure`; or `of` is unknown.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(18, 3))
    >>> dict(orbit_features(net, torch.rand(5, 1, 5, 5), group="C4", progress=False).sizes)
    {'element': 4, 'sample': 5, 'feature': 18}
    """
    if of not in METRIC_OF:
        raise ValueError(unknown("output, of=", of, METRIC_OF))
    options = _Keeping(
        group=group,
        metrics=METRIC_OF[of],
        layers=(),
        head=head,
        output=output,
        call=call,
        batch_size=batch_size,
        device=device,
        precision=precision,
        null=False,
    )
    ds, measured = run_pass(model, images, options, labels=labels, name=name, progress=progress)
    warn_of_flaws(measured)
    if "orbit" not in measured.results.arrays:
        raise Undefined(f"there are no {of}: {measured.reasons[METRIC_OF[of]][-1]}")
    return dataset.orbits(measured.results.arrays["orbit"], of, DIM_OF[of], ds)


@dataclass(frozen=True)
class _Keeping(Options):
    """Options of `measure` for a pass that keeps what it compares."""

    def pass_over(self, ready: Ready, *, first_half: int) -> Pass:
        """The pass that these options ask for."""
        return _KeepingPass(ready, self, first_half=first_half)


class _KeepingPass(Pass):
    """The pass of `measure`, which also keeps the orbits that f̂ is the mean of, (g, feature, n)."""

    def _record(self, batch: Batch, map_chains: Sequence[range]) -> None:
        super()._record(batch, map_chains)
        rows = [sample.row for sample in batch.samples]
        is_lost = torch.tensor([bool(sample.flaw) for sample in batch.samples])
        for of_layer in self.passes.values():
            for kind in of_layer.kinds:
                collector = of_layer.collectors[kind]
                if isinstance(collector, WhenWhole):
                    orbit = collector.orbit[:, : len(rows)].cpu().masked_fill(is_lost[:, None], torch.nan)
                    self.results.put("orbit", orbit.mT.numpy(), rows, None)


def moved_maps(
    model: nn.Module, image: Any, *, group: Any, layer: str, channel: int, **options: Any
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray, np.ndarray]:
    """The group's elements; and for each gx (g, C, H, W), and one channel of f(gx) and of g f(x), (g, h, w), for one image x."""
    images = as_float(image)[None]
    how = Options(group, metrics="channelwise", layers="all", **options)
    elements = how.action.group.elements
    seen = []
    with run.prepared(model, open_stream(images), how) as ready:
        layers = {found.name: found for found in ready.found.layers if found.role == "module"}
        if layer not in layers:
            raise ValueError(unknown("layer", layer, layers))
        chosen = layers[layer]
        METRICS["channelwise"].refuse(chosen)
        if not 0 <= channel < chosen.channels:
            raise ValueError(f"channel must be from 0 to {chosen.channels - 1} at {layer}, got {channel}")
        nobody = torch.zeros(1, dtype=torch.int64)
        place = Place([*range(len(elements))], 0, slice(0, 1), nobody.expand(len(elements), 1), nobody)
        with run.watched(ready, lambda *given: seen.append(chosen.read(given[-1])), layers=[chosen]) as forward:
            forward(place, images)
        moved_images = ready.forward.orbit(place.elements, images)
    orbit = seen[0].float().cpu()
    action = how.action.on(chosen.grid, chosen.channels)
    moved = torch.stack([action(g, orbit[0]) for g in place.elements])
    maps = torch.stack([orbit, moved])[..., channel].unflatten(-1, chosen.grid)
    return elements, moved_images.float().cpu().numpy(), *maps.numpy()
