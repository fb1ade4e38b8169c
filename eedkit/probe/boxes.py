"""Sets of boxes, as detectors give them: reading them from a model's output, and how far two sets are apart.

Costs one matching of boxes for every pair of sets, on the processor.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from eedkit.errors import Undefined, naming_extras
from eedkit.probe.outputs import dicts_of_boxes
from eedkit.theory.distances import Distance

LEAST_SCORE = 0.5
"""Boxes with lower scores are no detections."""


def detections(output: Any, size: tuple[int, int], least_score: float = LEAST_SCORE) -> Tensor:
    """What a detector found: rows x, y, width, height and label as in `actions.boxes`, (b, N, 5); N is the most in one image.

    An image with fewer is filled up by rows without area. Another threshold: `functools.partial(detections, least_score=0.2)`.

    Parameters
    ----------
    output : list or tuple of dict, or a mapping or object
        As of torchvision, scripted or not, for every image `boxes` (n, 4), left, top, right and bottom in pixels from the upper left corner,
        `labels` (n,) and `scores` (n,). Or as of DETR, `logits` (b, q, k + 1), the last class being "no object", and
        `pred_boxes` (b, q, 4), middle, width and height in parts of the image. Undefined for another form.
    size : (height, width)
        Of the images.

    >>> one = {"boxes": torch.tensor([[0.0, 0.0, 2.0, 4.0]]), "labels": torch.tensor([3]), "scores": torch.tensor([0.9])}
    >>> detections([one], (10, 10))[0, 0]
    tensor([-4., -3.,  2.,  4.,  3.], dtype=torch.float64)
    """
    found = []
    for corners, labels, scores in _by_image(output, size):
        low, high = corners.double().cpu().split(2, dim=-1)
        middle = (low + high) / 2 - torch.tensor([size[1], size[0]]) / 2
        rows = torch.cat([middle, (high - low).clamp_min(0), labels[:, None].double().cpu()], dim=1)
        rows = rows.masked_fill(scores.cpu().isnan()[:, None], math.nan)
        found.append(rows[~(scores.cpu() < least_score)])
    return pad_sequence(found, batch_first=True)


def _by_image(output: Any, size: tuple[int, int]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Boxes as corners in pixels, labels and scores of every image."""
    of_images = dicts_of_boxes(output)
    if of_images is not None and all(map(_has_boxes_labels_and_scores, of_images)):
        return [(one["boxes"], one["labels"], one["scores"]) for one in of_images]
    entries = output if isinstance(output, Mapping) else getattr(output, "__dict__", {})
    logits, parts = entries.get("logits", entries.get("pred_logits")), entries.get("pred_boxes")
    if not isinstance(logits, Tensor) or not isinstance(parts, Tensor) or parts.shape != (*logits.shape[:2], 4):
        raise Undefined(
            "the model's output is neither a list with a dict of the tensors boxes (n, 4), labels (n,) and scores (n,) for every "
            "image, nor a mapping with logits or pred_logits (b, q, k + 1) and pred_boxes (b, q, 4); pass a Metric with features "
            "of your own"
        )
    scores, labels = logits.double().softmax(-1)[..., :-1].max(-1)
    middle, extent = parts.double().split(2, dim=-1)
    corners = torch.cat([middle - extent / 2, middle + extent / 2], dim=-1)
    corners = corners * torch.tensor([size[1], size[0]] * 2, device=corners.device)
    return list(zip(corners, labels, scores, strict=True))


def _has_boxes_labels_and_scores(one: Mapping) -> bool:
    boxes = one["boxes"]
    if not isinstance(boxes, Tensor) or boxes.dim() != 2 or boxes.shape[1] != 4:
        return False
    others = one.get("labels"), one.get("scores")
    return all(isinstance(part, Tensor) and part.shape == boxes.shape[:1] for part in others)


def has_boxes(rows: Tensor) -> Tensor:
    """Whether a set has a box, that is a row with an area: (…, N, C) -> (…)."""
    return (rows[..., 2:4].prod(-1) != 0).any(-1)


def nothing_found(features: Callable, *, is_empty: bool) -> str:
    """Why no sample has a value: all sets are empty, below the threshold of `detections`, or have numbers that are not finite."""
    if not is_empty:
        return "the boxes or scores are not finite, where there are any"
    function = getattr(features, "func", features)  # of a partial
    if function is not detections:
        return "no box in any image of its orbit"
    least_score = getattr(features, "keywords", {}).get("least_score", LEAST_SCORE)
    return f"no box with a score of {least_score:g} or more in any image of its orbit"


def overlaps(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of every box with every box, 0 for different labels: (N, C), (M, C) -> (N, M)."""
    low_a, high_a = a[:, None, :2] - a[:, None, 2:4] / 2, a[:, None, :2] + a[:, None, 2:4] / 2
    low_b, high_b = b[:, :2] - b[:, 2:4] / 2, b[:, :2] + b[:, 2:4] / 2
    common = (torch.minimum(high_a, high_b) - torch.maximum(low_a, low_b)).clamp_min(0).prod(-1)
    # from corners, as what is common, so that equal boxes overlap by exactly 1
    together = (high_a - low_a).prod(-1) + (high_b - low_b).prod(-1) - common
    has_same_label = (a[:, None, 4:] == b[:, 4:]).all(-1)
    return torch.where(has_same_label, common / together, 0.0)


def _between(least: float | None, a: Tensor, b: Tensor) -> Tensor:
    a, b = torch.broadcast_tensors(a, b)
    pairs = math.prod(a.shape[:-2])
    sets_of_a = a.reshape(pairs, *a.shape[-2:]).double().cpu()
    sets_of_b = b.reshape(pairs, *b.shape[-2:]).double().cpu()
    values = [_of_two(*pair, least) for pair in zip(sets_of_a, sets_of_b, strict=True)]
    return torch.tensor(values, dtype=torch.float64, device=a.device).reshape(a.shape[:-2])


def _of_two(a: Tensor, b: Tensor, least: float | None) -> float:
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
    partial(_between, None),
    equation="1 − max over matchings of Σ IoU / max(|a|, |b|)",
    best=0.0,
    upper=1.0,
    order=1,
    of_sets=True,
)
"""How far sets of boxes (…, N, C) are apart: OSPA of order 1 with 1 − IoU (Schuhmacher, Vo & Vo 2008); 0 for two empty sets."""


def box_disagreement(least: float) -> Distance:
    """1 − F1 of two sets of boxes (…, N, C), those matched that overlap by at least so much; 0 for two empty sets."""
    name = f"box_disagreement_{100 * least:.0f}"
    equation = f"1 − 2 (matched boxes with IoU ≥ {least:g}) / (|a| + |b|)"
    return Distance(name, partial(_between, least), equation=equation, best=0.0, upper=1.0, order=1, of_sets=True)
