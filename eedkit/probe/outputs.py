"""Which of the tensors that a model gives is measured, and what it is: class scores, a map, features.

Knows what came back from a forward pass, never a module. Copies no tensor but quantised ones.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from eedkit.errors import Undefined, cut, short, unknown
from eedkit.probe.layouts import shape_text

SCORES = ("cls", "class", "classes", "label", "labels", "out", "output", "prediction", "predictions", "score", "scores")
"""Names, beside all with "logit" in them, under which models give class scores."""
FEATURES = (
    *("pooler_output", "image_embeds", "image_features", "x_norm_clstoken"),
    *("embeddings", "features", "last_hidden_state"),
)
"""Names under which models give features and not class scores, the likeliest first."""
NEEDS = {
    "scores": "class scores (b, k) with k ≥ 2",
    "probabilities": "class scores (b, k) with k ≥ 2, or a map of them (b, k, h, w)",
    "independent": "yes-or-no outputs (b,) or (b, k), or a map of one channel (b, h, w) or (b, 1, h, w)",
    "dense": "a map (b, c, h, w)",
    "features": "a tensor of floats",
}
"""What an output may be, and of what shape it must be then."""
DENSE = ("dense", "dense probabilities")
"""Kinds of outputs that are maps: as they are, or with probabilities of classes at every position."""


@dataclass(frozen=True)
class Output:
    """An output that is measured: the path of an entry in what the model gives ("logits", "decoder.0", ""), and what that is.

    `reason` says why it has no class scores, `may_be_scores` whether it was taken for features although nobody called it so.
    `batch` is the axis of the images where the output has one position and more axes than (b, k), as which it is then read.
    """

    entry: str = ""
    kind: str = "features"
    reason: str = ""
    may_be_scores: bool = False
    batch: int | None = None

    @property
    def key(self) -> tuple[str, int, Literal["returned"]]:
        """What a trace knows it by."""
        return self.entry, 1, "returned"

    def select(self, raw: Any) -> Tensor:
        """The tensor, (b, k) where it has one position; Undefined where a forward pass gave none."""
        z = entries(raw).get(self.entry)
        if z is None:
            where = f" at {self.entry!r}" if self.entry else ""
            raise Undefined(f"the model gives no tensor of floats{where} in every forward pass")
        if self.batch is not None:
            return z.movedim(self.batch, 0).flatten(1)
        return z[:, None] if z.dim() == 1 else z


def tensor_of(value: Any) -> Tensor | None:
    """A tensor as one of floats, complex numbers as real and imaginary parts (…, 2); None for anything else."""
    if isinstance(getattr(value, "tensor", None), Tensor):  # a GeometricTensor
        value = value.tensor
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return None
    if value.is_complex():
        return torch.view_as_real(value.resolve_conj())
    if value.is_quantized:
        return value.dequantize()
    return value if value.is_floating_point() else None


def entries(given: Any) -> dict[str, Tensor]:
    """Every tensor of floats in nested dicts, lists, tuples and objects, by its path."""
    found: dict[str, Tensor] = {}
    visited = set[int]()  # objects may hold each other

    def walk(value: Any, path: str) -> None:
        z = tensor_of(value)
        if z is not None:
            found[path] = z
        elif id(value) not in visited:
            visited.add(id(value))
            for name, part in _parts(value):
                walk(part, f"{path}.{name}" if path else str(name))

    walk(given, "")
    return found


def first_tensor(given: Any) -> Tensor | None:
    """The first tensor of floats that a module gives or takes; None where there is none."""
    if isinstance(given, Tensor):  # `entries` would hold it until garbage is collected
        return tensor_of(given)
    return next(iter(entries(given).values()), None)


def _parts(value: Any) -> list[tuple[Any, Any]]:
    """What a dict, list, tuple, named tuple or object holds, by name or number."""
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, tuple | list):
        return list(zip(getattr(value, "_fields", range(len(value))), value, strict=True))
    if isinstance(value, Tensor | nn.Module | ModuleType | type):
        return []
    if is_dataclass(value):
        return [(field.name, getattr(value, field.name)) for field in fields(value)]
    return list(getattr(value, "__dict__", {}).items())


def dicts_of_boxes(raw: Any) -> Sequence[Mapping] | None:
    """The dicts with boxes, one for each image, of a list or a tuple as detectors give them; None for anything else.

    Scripted ones of torchvision give a pair, a dict of losses and the list.
    """
    if isinstance(raw, tuple) and len(raw) == 2 and isinstance(raw[0], Mapping) and isinstance(raw[1], list):
        _, raw = raw
    is_list = isinstance(raw, list | tuple)
    return raw if is_list and all(isinstance(part, Mapping) and "boxes" in part for part in raw) else None


def is_per_image(raw: Any, images: int) -> bool:
    """Whether it is a list with a dict for every image, as detectors give."""
    return len(dicts_of_boxes(raw) or ()) == images


def asked_outputs(output: Any) -> Sequence[tuple[str | None, str | None]]:
    """Entry and kind of each output that was asked for, None for what is to be found; ValueError where it cannot be."""
    if isinstance(output, Mapping) and output:
        kinds = list(output.values())
        for kind in kinds:
            if kind not in list(NEEDS):
                raise ValueError(f"output={short(output)}: {unknown('kind of output', kind, NEEDS)}")
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"output={short(output)} names two entries of one kind; measure one after the other")
        return [(str(entry), kind) for entry, kind in output.items()]
    if isinstance(output, bool) or not isinstance(output, str | int):
        raise ValueError(
            f"output must be the name or number of an entry, what it is ({', '.join(NEEDS)}), or both, as "
            f"{{'logits': 'scores'}}; got {short(output)}"
        )
    if output == "auto":
        return [(None, None)]
    return [(None, output)] if output in NEEDS else [(str(output), None)]


def choose_entry(raw: Any, images: int, entry: str | None, kind: str | None) -> str | None:
    """The entry to measure, None where there is no tensor of floats; ValueError where what was asked for is not there.

    It is the one that was named; else the first whose name says class scores, then features by name, then the first tensor.
    Others that this is true of as well are named in a warning.
    """
    tensors = {} if is_per_image(raw, images) else entries(raw)
    tensors = {path: z for path, z in tensors.items() if z.dim() and z.numel()}
    if kind in tensors:
        entry = kind
    if entry is not None:
        paths = [path for path in tensors if path]
        tensors = {path: z for path, z in tensors.items() if path == entry or path.startswith(f"{entry}.")}
        if not tensors:
            gives = paths or "none with a name"
            raise ValueError(f"{unknown('output', entry, [*paths, *NEEDS])}; the model gives {gives}")
    if kind is not None:
        shapes = ", ".join(shape_text(z.shape) for z in tensors.values()) or "no tensor of floats"
        as_needed = {path: z for path, z in tensors.items() if _fits(kind, z.shape)}
        tensors = as_needed or {path: z for path, z in tensors.items() if _may_be_read_as(kind, z.shape)}
        if not tensors:
            raise ValueError(f"output={kind!r} needs {NEEDS[kind]}, got {shapes}")
    candidates = [path for path, z in tensors.items() if len(z) == images]
    candidates = candidates or [path for path, z in tensors.items() if images in z.shape] or list(tensors)
    if not candidates:
        return None
    ranks = {path: _rank(own_name(path), kind) for path in candidates}
    chosen = min(candidates, key=lambda path: ranks[path])
    alike = []
    for path in candidates:
        rule, _ = ranks[path]
        # of those with a known name others of another form are meant for something else
        is_as_likely = rule == 2 or tensors[path].dim() == tensors[chosen].dim()
        if path != chosen and rule == ranks[chosen][0] and is_as_likely:
            alike.append(path)
    if alike:
        warnings.warn(
            f"of the model's outputs {chosen!r} is measured, and not {cut(', '.join(map(repr, alike)), 200)}, which fit as "
            f"well. Name the one you mean, as output={alike[0]!r}",
            stacklevel=2,
        )
    return chosen


def _rank(name: str, kind: str | None) -> tuple[int, int]:
    """The number of the rule by which an entry is chosen, and its place among those of the rule."""
    if kind != "features" and ("logit" in name or name in SCORES):
        return 0, int(name != "logits")
    return (1, FEATURES.index(name)) if name in FEATURES else (2, 0)


def own_name(path: str) -> str:
    """The last name in a path, in small letters: of "decoder.Logits.0" it is "logits"."""
    names = [name for name in path.split(".") if not name.isdigit()]
    return names[-1].lower() if names else ""


def _fits(kind: str, shape: torch.Size) -> bool:
    """Whether an output of this shape has the usual form of the kind."""
    if kind in ("scores", "probabilities"):
        return len(shape) == 2 and shape[1] >= 2
    if kind == "independent":
        return len(shape) in (1, 2) or (len(shape) == 4 and shape[1] == 1)
    return len(shape) > 2 if kind == "dense" else True


def _may_be_read_as(kind: str, shape: torch.Size) -> bool:
    """Whether an output of this shape for two images may be of the kind in another form."""
    long_axes = _long_axes(shape)
    if kind == "scores":
        return long_axes == 2
    if kind == "probabilities":
        return long_axes >= 2
    return kind == "independent" and long_axes <= 3


def _long_axes(shape: Sequence[int]) -> int:
    return sum(size > 1 for size in shape)


def may_have_one_position(kind: str | None, shape: Sequence[int]) -> bool:
    """Whether an output with more axes than (b, k) may have one position, as far as its shape for two images tells."""
    return kind not in ("dense", "features") and len(shape) > 2 and _long_axes(shape) <= 2


def is_distribution(value: Tensor) -> bool:
    """Whether every row is one of probabilities."""
    tolerance = max(1e-3, torch.finfo(value.dtype).eps)
    off = (value.double().sum(1) - 1).abs()
    return bool((value >= 0).all() and (off <= tolerance).all())


def why_no_tensor(raw: Any, images: int) -> str:
    """Why nothing of what the model gives can be read as an output."""
    if is_per_image(raw, images):
        return "the model's output is a list with a dict for every image, as detectors give"
    if isinstance(raw, Tensor):
        return (
            f"the model's output must have floats for each image, got {raw.dtype} of shape {tuple(raw.shape)} for two images; "
            "measure the scores before an argmax or a mean"
        )
    return f"the model's output, {type(raw).__name__}, holds no tensor of floats"


def may_have_head(entry: str, kind: str | None, value: Tensor) -> bool:
    """Whether an output may be what a classifier gives."""
    is_features = kind in ("features", "dense") or (kind is None and own_name(entry) in FEATURES)
    return value.dim() == 2 and not is_features


def describe_output(output: Output, kind: str | None, value: Tensor, *, has_head: bool) -> Output:
    """What an output is; unless somebody said so, class scores if a classifier gives them, or if they are named so.

    Warns where a vector is taken for features without being named so.
    """
    entry = output.entry
    name = own_name(entry)
    can_be_scores = value.dim() == 2 and value.shape[1] >= 2
    if kind == "scores" or (kind == "probabilities" and can_be_scores):
        return replace(output, kind=kind)
    if kind == "probabilities":
        return replace(output, kind="dense probabilities", reason=f"the model ends in a map (output={kind!r})")
    if kind is not None:
        what = kind if kind == "features" else f"{kind} outputs"
        return replace(output, kind=kind, reason=f"the model ends in {what} (output={kind!r})")
    if can_be_scores and name in FEATURES and not has_head:
        return replace(output, reason=f"the model ends in features ({entry!r})")
    if can_be_scores and is_distribution(value):
        return replace(output, kind="probabilities")
    if can_be_scores and (has_head or "logit" in name or "score" in name):
        return replace(output, kind="scores")
    advice = "scores" if can_be_scores else "independent"
    option = f"output={{{entry!r}: {advice!r}}}" if entry else f"output={advice!r}"
    may_be_scores = value.dim() == 2 and not has_head
    if may_be_scores:
        warnings.warn(
            "no classifier was found that gives the model's output, so that `latent` is measured on the output itself. If it is "
            f"features, pass output='features'; if not, {option} and head='path of the classifier'",
            stacklevel=2,
        )
    if can_be_scores:
        reason = (
            f"the model ends in features: no module with weights gives its output. If these are class scores, pass {option}, and "
            "head='path of the classifier' for its input as the latent vector"
        )
    else:
        where = f" {entry!r}" if entry else ""
        reason = f"the model's output{where} of shape {shape_text(value.shape)} for two images is no {NEEDS['scores']}"
        if value.dim() == 2:
            reason = f"{reason}; if it is yes-or-no answers, pass {option}"
    return replace(output, reason=reason, may_be_scores=may_be_scores)
