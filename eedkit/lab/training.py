"""The training loop: an objective, images, and Lightning; on one thread, so that the same weights come out every time.

Knows modules and tensors, never recipes or files. Leaves the process's settings as found.
"""

import itertools
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from eedkit.machine import processor_name

if TYPE_CHECKING:
    import lightning

THREADS = 1
"""Sums are split among threads, so another number of them gives other bits."""


def fit(
    objective: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epochs: int,
    batch_size: int,
    rate: float,
    seed: int,
    progress: bool = False,
    callbacks: "Sequence[lightning.Callback]" = (),
) -> list[dict[str, float]]:
    """Train an objective's parameters with AdamW under a one-cycle schedule.

    Parameters
    ----------
    objective : nn.Module
        Images and labels of a batch -> loss, and which samples were right or None.
    x : Tensor
        Images (n, C, H, W).
    y : Tensor
        Labels (n,).
    epochs : int
        Passes over the images.
    batch_size : int
        Images of a step.
    rate : float
        The highest of the schedule.
    seed : int
        Of the order of the images.
    progress : bool
        Show the epochs on stderr.
    callbacks : sequence of lightning.Callback
        Called as the training goes on, such as `Tracker.callback()`.

    Returns
    -------
    list of dict
        One row per epoch: epoch, loss, and accuracy where the objective has one.

    Examples
    --------
    >>> from eedkit.lab.networks import GroupCNN
    >>> from eedkit.lab.objectives import Supervised
    >>> from eedkit.theory import actions
    >>> objective = Supervised(GroupCNN(classes=2, widths=(4,)), actions.spatial("C1"))
    >>> rows = fit(objective, torch.rand(8, 1, 5, 5), torch.arange(8) % 2, epochs=2, batch_size=4, rate=1e-3, seed=0)
    >>> [sorted(row) for row in rows]
    [['accuracy', 'epoch', 'loss'], ['accuracy', 'epoch', 'loss']]
    """
    import lightning
    from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

    rows: list[dict[str, float]] = []
    epoch_numbers = itertools.count(1)
    batch_losses: list[Tensor] = []
    batch_rights: list[Tensor] = []

    class Training(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.objective = objective

        def training_step(self, batch: list[Tensor], _index: int) -> Tensor:
            loss, right = self.objective(*batch)
            batch_losses.append(loss.detach().expand(len(batch[0])))
            if right is not None:
                batch_rights.append(right)
            return loss

        def on_train_epoch_end(self) -> None:
            row = {"epoch": next(epoch_numbers), "loss": torch.cat(batch_losses).mean().item()}
            if batch_rights:
                row["accuracy"] = torch.cat(batch_rights).float().mean().item()
            rows.append(row)
            batch_losses.clear()
            batch_rights.clear()

        def configure_optimizers(self) -> dict[str, Any]:
            optimiser = torch.optim.AdamW(self.parameters(), lr=rate)
            steps = int(self.trainer.estimated_stepping_batches)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
            return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    order = RandomSampler(range(len(x)), generator=torch.Generator().manual_seed(seed))
    # a last batch of a single image would have no batch statistics
    single_left = len(x) > batch_size and len(x) % batch_size == 1
    # whole batches by their places: image by image takes longer than a small network's step
    places = BatchSampler(order, batch_size, drop_last=single_left)
    loader = DataLoader(TensorDataset(x, y), sampler=places, batch_size=None)
    with _quiet_lightning():
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="auto",
            devices=1,
            deterministic=True,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=progress,
            callbacks=list(callbacks),
        )
        trainer.fit(Training(), loader)
    objective.cpu()
    return rows


def machine() -> dict[str, str | int]:
    """What decides the bits of trained weights apart from recipe, seed and images.

    Returns
    -------
    dict
        Number of threads, the processor's name with the instructions that torch uses of it (or the GPU's name), and torch's
        version.

    Examples
    --------
    >>> machine()["threads"]
    1
    """
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    else:
        name = f"{processor_name()} {torch.backends.cpu.get_cpu_capability()}"
    return {"threads": THREADS, "processor": name, "torch": torch.__version__}


@contextmanager
def fixed_arithmetic() -> Iterator[None]:
    """Within the block torch computes on one thread and by deterministic algorithms; what it had before is put back.

    >>> with fixed_arithmetic():
    ...     torch.get_num_threads()
    1
    """
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.set_num_threads(threads)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Without Lightning's notes on hardware, workers and tips, and with the process's settings afterwards as before."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    benchmark = torch.backends.cudnn.benchmark
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
        if workspace is not None:
            os.environ["CUBLAS_WORKSPACE_CONFIG"] = workspace
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
