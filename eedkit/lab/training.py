"""The training loop: AdamW under a one-cycle schedule; on one thread, so that the same weights come out every time.

Knows modules and tensors, never recipes or files. Leaves the process's settings as found.
"""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from eedkit.machine import processor_name

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
    after_epoch: Callable[[int], object] | None = None,
) -> list[dict[str, float]]:
    """Train an objective's parameters with AdamW under a one-cycle schedule, on a GPU where there is one.

    An objective takes images (b, C, H, W) and labels (b,) of a batch, and gives the loss and which samples were right, or
    None. `rate` is the highest of the schedule, `seed` that of the images' order. A last batch of a single image is left
    out: it would have no batch statistics. `after_epoch` gets the number of every epoch at its end, counted from 1, as
    `Tracker.step` does. The result has a row for each epoch: epoch, loss, and accuracy where the objective has one.

    >>> from eedkit.lab.networks import GroupCNN
    >>> from eedkit.lab.objectives import Supervised
    >>> from eedkit.theory import actions
    >>> objective = Supervised(GroupCNN(classes=2, widths=(4,)), actions.spatial("C1"))
    >>> rows = fit(objective, torch.rand(8, 1, 5, 5), torch.arange(8) % 2, epochs=2, batch_size=4, rate=1e-3, seed=0)
    >>> [sorted(row) for row in rows]
    [['accuracy', 'epoch', 'loss'], ['accuracy', 'epoch', 'loss']]
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    objective.to(device)
    generator = torch.Generator().manual_seed(seed)
    is_single_left = len(x) > batch_size and len(x) % batch_size == 1
    images_of_epoch = len(x) - is_single_left
    steps = epochs * math.ceil(images_of_epoch / batch_size)
    optimiser = torch.optim.AdamW(objective.parameters(), lr=rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    rows: list[dict[str, float]] = []
    deterministic = fixed_arithmetic(torch.get_num_threads(), warn_only=False)
    with torch.enable_grad(), deterministic:
        for epoch in range(1, epochs + 1):
            losses: list[Tensor] = []
            rights: list[Tensor] = []
            order = torch.randperm(len(x), generator=generator)
            for places in order[:images_of_epoch].split(batch_size):
                loss, right = objective(x[places].to(device), y[places].to(device))
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                losses.append(loss.detach().expand(len(places)))
                if right is not None:
                    rights.append(right)
            row = {"epoch": epoch, "loss": torch.cat(losses).mean().item()}
            if rights:
                row["accuracy"] = torch.cat(rights).float().mean().item()
            rows.append(row)
            if after_epoch is not None:
                after_epoch(epoch)
    objective.cpu()
    return rows


def machine() -> dict[str, str | int]:
    """What decides the bits of trained weights apart from recipe, seed and images.

    That is the number of threads, the processor with the instructions that torch uses of it (or the GPU), and torch's version.

    >>> machine()["threads"]
    1
    """
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    else:
        name = f"{processor_name()} {torch.backends.cpu.get_cpu_capability()}"
    return {"threads": THREADS, "processor": name, "torch": torch.__version__}


@contextmanager
def fixed_arithmetic(threads: int = THREADS, *, warn_only: bool = True) -> Iterator[None]:
    """Within the block torch computes on so many threads and by deterministic algorithms; what it had before is put back.

    Operations that have no deterministic form are errors, or warnings.

    >>> with fixed_arithmetic():
    ...     torch.get_num_threads()
    1
    """
    threads_before = torch.get_num_threads()
    deterministic = torch.get_deterministic_debug_mode()
    memory: Any = torch.utils.deterministic
    fills = memory.fill_uninitialized_memory
    benchmark = torch.backends.cudnn.benchmark
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    torch.set_num_threads(threads)
    # unlike use_deterministic_algorithms it does not import the compiler, which takes two seconds
    torch.set_deterministic_debug_mode("warn" if warn_only else "error")
    memory.fill_uninitialized_memory = False  # for programs that read what they never wrote
    torch.backends.cudnn.benchmark = False
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read when a GPU first multiplies
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(deterministic)
        memory.fill_uninitialized_memory = fills
        torch.backends.cudnn.benchmark = benchmark
        torch.set_num_threads(threads_before)
        del os.environ["CUBLAS_WORKSPACE_CONFIG"]
        if workspace is not None:
            os.environ["CUBLAS_WORKSPACE_CONFIG"] = workspace
