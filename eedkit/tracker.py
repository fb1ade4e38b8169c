"""Measuring one model again and again while it trains: `ek.Tracker`.

Leaves mode, device, gradients and random state as found. Costs one `measure` a step, and keeps its results in memory.
"""

import time
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
import xarray as xr
from torch import nn

from eedkit.errors import naming_extras
from eedkit.probe.measure import measure
from eedkit.results.summary import summarise
from eedkit.theory.actions import Action
from eedkit.theory.groups import Group

if TYPE_CHECKING:
    import lightning


class Tracker:
    """G-EED of a model at steps of its training (Kvinge et al. 2022, eq. 4), along a dimension `step`.

    Parameters
    ----------
    model : nn.Module
        The model that is being trained.
    images : tensor, array or data set
        What it is measured on at every step; a few hundred images that it is not trained on do.
    group : str, Group or Action
        As `measure`.
    **options
        Further options of `measure`. Without `device=` the model stays on its own.

    Examples
    --------
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(25, 3))
    >>> tracker = Tracker(net, torch.rand(8, 1, 5, 5), group="C4", metrics=["latent"])
    >>> for step in range(2):
    ...     _ = tracker.step(step)
    >>> dict(tracker.results.sizes)["step"], tracker.table.step.unique().tolist()
    (2, [0, 1])
    """

    def __init__(self, model: nn.Module, images: Any, *, group: str | Group | Action, **options: Any) -> None:
        self.model = model
        self.images = images
        self.group = group
        self.options = {"progress": False, **options}
        self._results: list[xr.Dataset] = []
        self._tables: list[pd.DataFrame] = []

    def step(self, step: int) -> pd.DataFrame:
        """Measure now; gives the rows of `summarise` with the columns `step` and `seconds`.

        Parameters
        ----------
        step : int
            Number of the optimiser's step or of the epoch.

        Returns
        -------
        DataFrame

        Raises
        ------
        ValueError
            This step was measured already.
        """
        if any(step == known.step.item() for known in self._results):
            raise ValueError(f"step {step} was measured already; give every step another number")
        started = time.perf_counter()
        options = {"device": _device_of(self.model), **self.options}
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            results = measure(self.model, self.images, group=self.group, **options)
        seconds = time.perf_counter() - started
        self._results.append(results.assign_coords(step=step, seconds=seconds))
        table = summarise(results).assign(step=step, seconds=seconds)
        self._tables.append(table)
        return table

    @property
    def results(self) -> xr.Dataset:
        """What `measure` gave, along `step`; `results.sel(step=…)` is a Dataset for `summarise` and every figure."""
        if not self._results:
            raise ValueError("nothing was measured yet; call step(number) first")
        return xr.concat(self._results, dim="step", coords="different", compat="equals", combine_attrs="drop_conflicts")

    @property
    def table(self) -> pd.DataFrame:
        """The rows of all steps."""
        return pd.concat(self._tables, ignore_index=True) if self._tables else pd.DataFrame({"step": [], "seconds": []})

    def scalars(self, table: pd.DataFrame) -> dict[str, float]:
        """Relative values (raw ones where there are none) of the latent vector and the output, by name, for a logger."""
        ends = table[table.layer.isin(["latent", "output"])]
        named = {}
        for metric, relative, estimate in zip(ends.metric, ends.relative, ends.estimate, strict=True):
            if pd.notna(relative):
                named[f"eed/{metric}_relative"] = relative
            else:
                named[f"eed/{metric}"] = estimate
        return {name: float(value) for name, value in named.items() if pd.notna(value)}

    def callback(self, *, every: int = 1) -> "lightning.Callback":
        """A Lightning callback that takes a step at the end of every so many epochs, and logs the scalars.

        Parameters
        ----------
        every : int
            Epochs between two steps.

        Raises
        ------
        ModuleNotFoundError
            Lightning is not installed.
        """
        with naming_extras():
            import lightning
        tracker = self

        class Tracking(lightning.Callback):
            """Measures at the end of epochs."""

            def on_train_epoch_end(self, trainer: "lightning.Trainer", module: "lightning.LightningModule") -> None:
                """Take a step after every so many epochs."""
                if (trainer.current_epoch + 1) % every == 0:
                    module.log_dict(tracker.scalars(tracker.step(trainer.current_epoch + 1)))

        return Tracking()


def _device_of(model: nn.Module) -> torch.device | str:
    tensor = next(model.parameters(), None)
    return "auto" if tensor is None else tensor.device
