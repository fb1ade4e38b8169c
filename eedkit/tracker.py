"""Measuring one model again and again while it trains: `ek.Tracker`.

Leaves mode, device, gradients and random state as found. Costs one `measure` a step and a few forward passes on two images
when it is made, and keeps its results in memory.
"""

import inspect
import re
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
import xarray as xr
from torch import nn

from eedkit.errors import naming_extras, unknown
from eedkit.probe import samples
from eedkit.probe.guard import AUTO, unwrapped
from eedkit.probe.measure import Options, measure
from eedkit.probe.run import prepared
from eedkit.results.summary import summarise
from eedkit.theory.actions import Action
from eedkit.theory.groups import Group

if TYPE_CHECKING:
    import lightning

NOT_HOW = ("labels", "name", "progress")
"""What `measure` takes besides how to measure."""


class Tracker:
    """G-EED of a model at steps of its training (Kvinge et al. 2022, eq. 4), along a dimension `step`.

    What `measure` refuses, its arguments and how they fit the model on two images, is refused here, before the training.

    Parameters
    ----------
    model : nn.Module
        The model that is being trained.
    images : tensor, array or data set
        What it is measured on at every step; a few hundred images that it is not trained on are enough. What can only
        be iterated is read into memory, once.
    group : str, Group or Action
        As `measure`.
    logger : callable or object, or None
        Takes every step's `scalars`: as `logger(scalars, step=step)`, or by its method `log_metrics` (loggers of Lightning,
        `mlflow`), `log` (`wandb`) or `add_scalar` (tensorboard's `SummaryWriter`).
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

    def __init__(
        self, model: nn.Module, images: Any, *, group: str | Group | Action, logger: Any = None, **options: Any
    ) -> None:
        known = list(inspect.signature(measure).parameters)
        for option in options:
            if option not in known:
                raise TypeError(unknown("option", option, known))
        how = Options(group, **{option: value for option, value in options.items() if option not in NOT_HOW})
        self._log = _log_of(logger)
        self.model = model
        self.images = samples.by_number(images)
        self.options = {"progress": False, **options, "group": how.action}
        self.name = "/".join(filter(None, [how.action.group.name, options.get("name")]))
        self._results: list[xr.Dataset] = []
        self._tables: list[pd.DataFrame] = []
        order = how.action.group.order
        labels = options.get("labels")
        stream = samples.open_stream(self.images, labels=labels, seed=how.seed, order=order, null=how.null)
        # the type of the weights is what the training will make it
        how = replace(how, device=options.get("device", _device_of(model)), precision=AUTO)
        with _random_state_kept(), prepared(unwrapped(model), stream, how):
            pass  # raises where layers, head, layouts or output name nothing

    def step(self, step: int) -> pd.DataFrame:
        """Measure now; gives the rows of `summarise` with columns `step`, a number not given before, and `seconds`."""
        if any(step == known.step.item() for known in self._results):
            raise ValueError(f"step {step} was measured already; give every step another number")
        started = time.perf_counter()
        options = {"device": _device_of(self.model), **self.options}
        with _random_state_kept():
            results = measure(self.model, self.images, **options)
        seconds = time.perf_counter() - started
        table = summarise(results).assign(step=step, seconds=seconds)
        self._results.append(results.assign_coords(step=step, seconds=seconds))
        self._tables.append(table)
        self._log(self.scalars(table), step=step)
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
        """A step's values of the latent vector and the outputs: `eed/<group>/<layer>/<metric>_relative`, `_estimate`, `_null`.

        With `name=` the keys begin with `eed/<group>/<name>/`. Signs that some loggers refuse, such as brackets, become `_`.
        """
        named = {}
        ends: pd.DataFrame = table.loc[table.layer.isin(["latent", "output"]), :]
        for row in ends.to_dict("records"):
            for column in ("relative", "estimate", "null"):
                if pd.notna(row[column]):
                    key = f"eed/{self.name}/{row['layer']}/{row['metric']}_{column}"
                    named[re.sub(r"[^\w\-./ ]", "_", key)] = float(row[column])
        return named

    def callback(self, *, every: int = 1) -> "lightning.Callback":
        """A Lightning callback that takes a step at the end of every so many epochs, and logs the scalars.

        With another Trainer steps go on from the last one. A measurement that fails ends no training: it is a warning.
        """
        if every < 1:
            raise ValueError(f"every must be at least 1 epoch, got {every}")
        with naming_extras():
            import lightning

        class Tracking(lightning.Callback):
            """Measures at the end of epochs."""

            tracker = self

            def setup(self, trainer: "lightning.Trainer", pl_module: "lightning.LightningModule", stage: str) -> None:
                """Refuse another tracker of the same name before the first epoch."""
                trackers = [getattr(callback, "tracker", None) for callback in trainer.callbacks]  # pyright: ignore
                names = [tracker.name for tracker in trackers if isinstance(tracker, Tracker)]
                if names.count(self.tracker.name) > 1:
                    raise ValueError(f"two trackers would log as {self.tracker.name!r}; give one of them another name=")

            def on_train_epoch_end(self, trainer: "lightning.Trainer", pl_module: "lightning.LightningModule") -> None:
                """Take a step after every so many epochs."""
                epoch = trainer.current_epoch + 1
                if epoch % every:
                    return
                last_step = max((known.step.item() for known in self.tracker._results), default=0)
                try:
                    table = self.tracker.step(max(epoch, last_step + every))
                except Exception as error:
                    reason = f"{type(error).__name__}: {error}"
                    warnings.warn(f"{self.tracker.name} was not measured after epoch {epoch}: {reason}", stacklevel=2)
                    return
                pl_module.log_dict(self.tracker.scalars(table))

        return Tracking()


def _log_of(logger: Any) -> Callable[..., object]:
    """What takes scalars and a step."""
    if logger is None:
        return lambda scalars, step: None
    if hasattr(logger, "add_scalar"):
        return lambda scalars, step: [logger.add_scalar(key, value, step) for key, value in scalars.items()]
    for method in ("log_metrics", "log"):
        if hasattr(logger, method):
            return getattr(logger, method)
    if not callable(logger):
        kind = type(logger).__name__
        raise TypeError(f"logger must be callable or have log_metrics, log or add_scalar, got {kind}")
    return logger


def _random_state_kept() -> AbstractContextManager[None]:
    return torch.random.fork_rng(devices=range(torch.cuda.device_count()))


def _device_of(model: nn.Module) -> torch.device | str:
    tensor = next(unwrapped(model).parameters(), None)
    return "auto" if tensor is None or tensor.is_meta else tensor.device
