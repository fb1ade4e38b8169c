"""Sets of boxes, as detectors give them: reading them from a model's output, and how far two sets are apart.

Costs one matching of boxes for every pair of sets, on the processor.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from eedkit.errors import naming_extras
from eedkit.theory.distances import Distance

LEAST_SCORE = 0.5
"""Boxes with lower scores are no detections."""
MOST_BOXES = 100
"""Detections of one image, the best; torchvision's detectors give no more."""
KEYS = {"boxes", "labels", "scores"}
"""What detectors of torchvision's form give for every image."""


def detections(output: Any, size: tuple[int, int]) -> Tensor:
    """The detections of torchvision's detectors, rows x, y, width, height and label as in `actions.boxes`.

    Boxes with scores below one half are no detections.

    Parameters
    ----------
    output : list of dict
        For every image `boxes` (n, 4), left, top, right and bottom in pixels from the upper left corner, `labels` (n,) and
        `scores` (n,).
    size : (height, width)
        Of the images.

    Returns
    -------
    Tensor (b, 100, 5)
        Filled up by rows without area.

    Raises
    ------
    ValueError
        The output has another form.

    >>> one = {"boxes": torch.tensor([[0.0, 0.0, 2.0, 4.0]]), "labels": torch.tensor([3]), "scores": torch.tensor([0.9])}
    >>> detections([one], (10, 10))[0, 0]
    tensor([-4., -3.,  2.,  4.,  3.])
    """
    if not isinstance(output, list) or not all(isinstance(one, Mapping) and one.keys() >= KEYS for one in output):
        raise ValueError(
            f"the model's output is no list with a dict of {', '.join(sorted(KEYS))} for every image; pass a Metric with "
            "features of your own"
        )
    height, width = size
    rows = torch.zeros(len(output), MOST_BOXES, 5)
    for i, one in enumerate(output):
        best = one["scores"].argsort(descending=True)
        best = best[one["scores"][best] >= LEAST_SCORE][:MOST_BOXES]
        corners = one["boxes"][best].float().cpu()
        low = corners[:, :2]
        high = corners[:, 2:]
        middle = (low + high) / 2 - torch.tensor([width, height]) / 2
        labels = one["labels"][best, None].float().cpu()
        rows[i, : len(best)] = torch.cat([middle, high - low, labels], dim=1)
    return rows


def overlaps(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of every box with every box: (N, C), (M, C) -> (N, M), rows as in `actions.boxes`.

    0 where what follows width and height, a label, is not the same.

    >>> overlaps(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 0.0, 2.0, 2.0]])).round(decimals=3)
    tensor([[0.3330]])
    """
    low = torch.maximum((a[:, :2] - a[:, 2:4] / 2)[:, None], b[:, :2] - b[:, 2:4] / 2)
    high = torch.minimum((a[:, :2] + a[:, 2:4] / 2)[:, None], b[:, :2] + b[:, 2:4] / 2)
    common = (high - low).clamp_min(0).prod(-1)
    together = a[:, 2:4].prod(-1)[:, None] + b[:, 2:4].prod(-1) - common
    has_same_label = (a[:, None, 4:] == b[:, 4:]).all(-1)
    return torch.where(has_same_label, common / together, 0.0)


def _between_sets(least: float | None, a: Tensor, b: Tensor) -> Tensor:
    a, b = torch.broadcast_tensors(a, b)
    sets_of_a = a.reshape(-1, *a.shape[-2:]).double().cpu()
    sets_of_b = b.reshape(-1, *b.shape[-2:]).double().cpu()
    values = []
    for rows_of_a, rows_of_b in zip(sets_of_a, sets_of_b, strict=True):
        values.append(_between_two_sets(rows_of_a, rows_of_b, least))
    return torch.tensor(values, dtype=torch.float64, device=a.device).reshape(a.shape[:-2])


def _between_two_sets(a: Tensor, b: Tensor, least: float | None) -> float:
    """OSPA with 1 − IoU; with the `least` overlap of boxes that agree, 1 − F1."""
    # kept out of the module's imports: measuring without it needs no scipy
    with naming_extras():
        from scipy.optimize import linear_sum_assignment

    if not (a.isfinite().all() and b.isfinite().all()):
        return math.nan
    a = a[a[:, 2:4].prod(-1) != 0]
    b = b[b[:, 2:4].prod(-1) != 0]
    if not len(a) and not len(b):
        return 0.0
    agreement = overlaps(a, b)
    boxes = max(len(a), len(b))
    if least is not None:
        agreement = (agreement >= least).double()
        boxes = (len(a) + len(b)) / 2
    matched = linear_sum_assignment(agreement.numpy(), maximize=True)
    return 1 - float(agreement[matched].sum()) / boxes


box_ospa = Distance(
    "box_ospa",
    partial(_between_sets, None),
    best=0.0,
    upper=1.0,
    order=1,
    equation="1 − max over matchings of Σ IoU / max(|a|, |b|)",
    of_sets=True,
)
"""How far sets of boxes (…, N, C) are apart: OSPA of order 1 with 1 − IoU (Schuhmacher, Vo & Vo 2008)."""


def _box_disagreement(percent: int) -> Distance:
    least = percent / 100
    return Distance(
        f"box_disagreement_{percent}",
        partial(_between_sets, least),
        best=0.0,
        upper=1.0,
        order=1,
        equation=f"1 − 2 (matched boxes with IoU ≥ {least:g}) / (|a| + |b|)",
        of_sets=True,
    )


box_disagreement_50 = _box_disagreement(50)
"""1 − F1 of two sets of boxes (…, N, C), those matched that overlap by at least one half; 0 for two empty sets."""

box_disagreement_75 = _box_disagreement(75)
"""The same for boxes that overlap by at least three quarters."""
