"""Which module is the classifier, found by experiment: its output is the model's, up to a temperature and a softmax.

Knows modules and what one traced pass showed. Costs four vectors through a candidate that has weights in several places.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from eedkit.errors import unknown
from eedkit.probe.outputs import is_distribution, tensor_of
from eedkit.probe.tracing import Key, Trace


def asked_head(model: nn.Module, first: Trace, head: str) -> Key:
    """The input of the last call of the module that was named; ValueError where there is none."""
    inputs = [key for key in first.shapes if key[2] == "in"]
    calls = [key for key in inputs if key[0] == head]
    if calls:
        return calls[-1]
    is_module = any(path == head for path, _ in model.named_modules())
    why = "; that module exists but is not called with a tensor of floats" if is_module else ""
    raise ValueError(unknown("head", head, dict.fromkeys(path for path, _, _ in inputs)) + why)


def is_vector(z: Tensor) -> bool:
    """Whether all numbers of an image lie along one axis, as a classifier gives them."""
    return z.dim() > 1 and math.prod(z.shape[1:]) == max(z.shape[1:])


def find_head(
    model: nn.Module, first: Trace, vectors: Mapping[Key, Tensor], value: Tensor, kind: str | None
) -> Key | None:
    """The input of the head; None where there is none.

    The head is the innermost module that gives the output up to one positive factor and an offset for each row, or up to that
    and a softmax. It has weights in one place, or it is affine in its input, as a classifier with low-rank updates is.
    `vectors` are what the modules took and gave and `value` (2, k) is what the model gave for two images.
    """
    candidates = []
    for place, (key, z) in enumerate(vectors.items()):
        path, call, side = key
        input_key: Key = (path, call, "in")
        if (
            side == "in"
            or z.numel() != value.numel()
            or input_key not in first.shapes
            or input_key in first.takes_images
        ):
            continue
        module = model.get_submodule(path)
        if _weighted(module) and _gives(z.reshape(value.shape), value, kind):
            candidates.append((len(list(module.modules())), -place, input_key))
    for _, _, input_key in sorted(candidates):
        module = model.get_submodule(input_key[0])
        if len(_weighted(module)) == 1 or (input_key in vectors and _is_affine(module, vectors[input_key])):
            return input_key
    return None


def _weighted(module: nn.Module) -> set[str]:
    """The modules within that map channels by weights of their own, as they are or parametrised."""
    weighted = set()
    for path, part in module.named_modules():
        has_matrix = any(parameter.dim() > 1 for parameter in part.parameters(recurse=False))
        if has_matrix or hasattr(part, "in_features"):
            owner, _, _ = path.partition("parametrizations")
            weighted.add(owner.rstrip("."))
    return weighted


def _gives(z: Tensor, value: Tensor, kind: str | None) -> bool:
    """Whether s·z + an offset for each row is the output, with s > 0, as it is or before a softmax, or a sigmoid if independent."""
    tolerance = max(1e-5, *(4 * torch.finfo(part.dtype).eps for part in (z, value)))
    z, value = z.double(), value.double()
    largest = float(value.nan_to_num(0, 0, 0).abs().max())
    forms: list[tuple[Tensor, Callable[[Tensor], Tensor]]] = [(value, lambda scores: scores)]
    if is_distribution(value):
        forms.append((value.log(), lambda scores: scores.softmax(1)))
    if kind == "independent" and bool(((value >= 0) & (value <= 1)).all()):
        forms.append((value.logit(), torch.sigmoid))
    # one or two numbers, the same for both images, are those of any other module up to a factor
    tells_nothing = value.shape[1] < 3 and _is_close(value[:1].expand_as(value), value, tolerance * largest)
    for scores, link in forms:
        scale, offset = _fit(z, scores)
        is_right = abs(scale - 1) < tolerance if tells_nothing else scale > 0
        if is_right and _is_close(link(scale * z + offset), value, tolerance * largest):
            return True
    return False


def _fit(z: Tensor, value: Tensor) -> tuple[float, Tensor]:
    """Factor and offsets (b, 1) by which z comes closest to the output where both are finite; one output has no offset."""
    counted = z.isfinite() & value.isfinite()
    z, value = z.where(counted, 0), value.where(counted, 0)
    means = []
    for part in (z, value):
        mean = part.sum(1, keepdim=True) / counted.sum(1, keepdim=True).clamp_min(1)
        means.append(mean if part.shape[1] > 1 else torch.zeros_like(mean))
    mean_z, mean_value = means
    centred_z, centred_value = (z - mean_z) * counted, (value - mean_value) * counted
    square = float((centred_z**2).sum())
    scale = float((centred_z * centred_value).sum()) / square if square > 0 else 1.0
    return scale, mean_value - scale * mean_z


def _is_close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return torch.allclose(a, b, rtol=0, atol=tolerance, equal_nan=True)


def _is_affine(module: nn.Module, start: Tensor) -> bool:
    """Whether a module gives, for points on a line through its input, points on a line in the same proportions."""
    # far from the input, so that what is bent is seen to bend
    noise = torch.randn(start[:1].shape, generator=torch.Generator().manual_seed(0)).to(start)
    step = noise * (3 * start.abs().max() + 1)
    points = torch.cat([start[:1] + share * step for share in (0, 0.5, 1, -1)])
    try:
        z = tensor_of(module.forward(points))
    except Exception:  # it wants more inputs than this
        return False
    if z is None or len(z) != len(points):
        return False
    at_start, half, whole, back = z
    tolerance = max(1e-4, 4 * torch.finfo(z.dtype).eps) * float(z.abs().max())
    is_half = _is_close(2 * half - at_start, whole, tolerance)
    return is_half and _is_close(2 * at_start - whole, back, tolerance)
