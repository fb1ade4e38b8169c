"""One pass over a stream of images: |G| forwards per batch, every layer and metric from the same forwards.

Knows models, streams and devices; what is recorded is the recorder's. Holds one batch of images beside it.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from eedkit.probe import capture, matching, stream
from eedkit.probe.metrics import Metric
from eedkit.probe.record import Recorder, Swept
from eedkit.probe.tables import Tables
from eedkit.theory.actions import Action

HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
DTYPES = {"float32": torch.float32, "float64": torch.float64, **HALF}


def sweep(
    model: nn.Module,
    source: stream.Stream,
    *,
    action: Action,
    metrics: Sequence[Metric],
    layers: str | Sequence[str] = "blocks",
    head: str | None = None,
    batch_size: int | None = None,
    null: bool = True,
    device: torch.device | str = "cpu",
    precision: str = "float32",
    progress: str | None = None,
    tolerant: bool = False,
    halves: stream.Stream | None = None,
) -> Swept:
    """Pass the whole stream through the model; the arguments are `measure`'s, resolved.

    `halves` are the samples from which the permutations of matched metrics are fitted, in a pass before.
    A tolerant pass tells of outputs that are not finite in `flaws`, instead of ending with the first.

    Raises
    ------
    ValueError
        The action does not fit the images, a null is asked for and there is one sample, or the model's output is not
        finite (the sample, the element and the first such layer are named).
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, or None to choose one by the images' size, got {batch_size}")
    device = torch.device(device)
    first = next(source.samples)
    for g in range(action.group.order):
        action(g, first.image)
    batch_size = batch_size or default_batch_size(first.image.shape, device)
    with capture.evaluating(model, device), arithmetic(precision, device) as dtype:
        example, vectors = first.image[None].to(device, dtype, copy=True), any(m.where == "vectors" for m in metrics)
        found = capture.find_layers(model, example, layers=layers, head=head, latent=vectors)
        tables = Tables(capacity=source.length or 4 * batch_size, batch_size=batch_size, device=device)
        fit = {"action": action, "metrics": metrics, "batch_size": batch_size, "device": device, "dtype": dtype}
        matched = matching.fit(model, found, halves, start=source.start, **fit) if halves else {}
        recorder = Recorder(
            found,
            tables,
            action=action,
            metrics=metrics,
            null=null,
            image=first.image,
            tolerant=tolerant,
            matched=matched,
        )
        bar = tqdm(total=source.length, desc=progress, unit="image", disable=progress is None, leave=False)
        # the model's autocast must not reach the distances: it would take their dot products in half precision
        on_layer = torch.autocast(device.type, enabled=False)(recorder.on_layer)
        with bar, capture.tap(model, found, on_layer):
            for batch, ends in stream.cut(chain([first], source.samples), batch_size):
                recorder.begin(batch, ends=ends)
                images = torch.stack([sample.image for sample in batch]).to(device, dtype)
                for g in range(action.group.order):
                    recorder.element(g)
                    # a copy, since a model may work in place on its input
                    model(action(g, images).clone())
                    recorder.ran_all()
                recorder.finish()
                bar.update(len(batch))
    return recorder.result()


def default_batch_size(shape: Sequence[int], device: torch.device | str = "cpu") -> int:
    """A power of two from 8 to 256 such that a batch fits a processor's cache, or keeps a GPU busy.

    >>> default_batch_size((3, 224, 224)), default_batch_size((3, 32, 32)), default_batch_size((3, 224, 224), "cuda")
    (8, 64, 128)
    """
    numbers, size = 2**18 if torch.device(device).type == "cpu" else 2**25, 256
    while size > 8 and size * int(np.prod(shape)) > numbers:
        size //= 2
    return size


@contextmanager
def arithmetic(precision: str, device: torch.device) -> Iterator[torch.dtype]:
    """Within the block float32 means float32 (no TF32), cuDNN is deterministic, half precisions autocast; gives the dtype."""
    matmul = torch.get_float32_matmul_precision()
    with ExitStack() as stack:
        stack.callback(torch.set_float32_matmul_precision, matmul)
        torch.set_float32_matmul_precision("highest")
        stack.enter_context(
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        )
        if precision in HALF:
            stack.enter_context(torch.autocast(device.type, HALF[precision]))
        yield torch.float32 if precision in HALF else DTYPES[precision]
