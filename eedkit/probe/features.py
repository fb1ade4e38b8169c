"""The features of every moved copy of every image, as one labelled array: `ek.orbit_features`.

Knows the pass of `measure`. Costs |G| forwards of every image and holds what it gives: |G| vectors of each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import xarray as xr
from torch import nn

from eedkit.errors import Undefined, unknown
from eedkit.probe import dataset, guard
from eedkit.probe.collect import WhenWhole
from eedkit.probe.measure import Options, Pass, run_pass, warn_of_flaws
from eedkit.probe.run import Ready
from eedkit.probe.samples import Batch
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
