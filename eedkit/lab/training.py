"""The one training loop: an objective, images, and Lightning.

Knows modules and tensors, never recipes or files. Costs the passes; leaves the process's settings as found.
"""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import torch
from torch import Tensor, nn

PLAIN = {
    **{"accelerator": "auto", "devices": 1, "deterministic": True},
    **{"logger": False, "enable_checkpointing": False, "enable_model_summary": False},
}
"""Of Lightning's trainer: one device, and no files."""


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
) -> list[dict[str, float]]:
    """Train an objective's parameters with AdamW under a one-cycle schedule; its loss by epoch, and accuracy if it has one.

    Parameters
    ----------
    objective : images and labels of a batch -> loss, and which samples were right or None
    x, y : (n, C, H, W) and (n,)
    rate : the highest of the schedule
    seed : of the order of the images

    Returns
    -------
    one row per epoch: epoch, loss, and accuracy where there is one

    >>> from eedkit.lab.networks import GroupCNN
    >>> from eedkit.lab.objectives import Supervised
    >>> from eedkit.theory import actions
    >>> objective = Supervised(GroupCNN(classes=2, widths=(4,)), actions.spatial("C1"))
    >>> rows = fit(objective, torch.rand(8, 1, 5, 5), torch.arange(8) % 2, epochs=2, batch_size=4, rate=1e-3, seed=0)
    >>> [sorted(row) for row in rows]
    [['accuracy', 'epoch', 'loss'], ['accuracy', 'epoch', 'loss']]
    """
    import lightning
    from torch.utils.data import DataLoader, TensorDataset

    rows, epoch, seen = [], count(1), []

    class Training(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.objective = objective

        def training_step(self, batch: list[Tensor], _index: int) -> Tensor:
            loss, right = self.objective(*batch)
            seen.append((loss.detach().expand(len(batch[0])), right))
            return loss

        def on_train_epoch_end(self) -> None:
            losses, rights = zip(*seen, strict=True)
            row = {"epoch": next(epoch), "loss": torch.cat(losses).mean().item()}
            rows.append(row if rights[0] is None else {**row, "accuracy": torch.cat(rights).float().mean().item()})
            seen.clear()

        def configure_optimizers(self) -> dict:
            optimiser = torch.optim.AdamW(self.parameters(), lr=rate)
            steps = int(self.trainer.estimated_stepping_batches)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
            return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    order = torch.Generator().manual_seed(seed)
    # a last batch of a single image would have no batch statistics
    alone = len(x) > batch_size and len(x) % batch_size == 1
    loader = DataLoader(TensorDataset(x, y), batch_size, shuffle=True, generator=order, drop_last=alone)
    with _as_found():
        trainer = lightning.Trainer(max_epochs=epochs, enable_progress_bar=progress, **PLAIN)
        trainer.fit(Training(), loader)
    objective.cpu()
    return rows


@contextmanager
def _as_found() -> Iterator[None]:
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
