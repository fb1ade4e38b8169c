"""Which layers a model has, how each lays out positions and channels, and which module is the head; taps on them.

Layouts are found by a few small forward passes on other sizes, never from sizes that happen to agree. Leaves the model
exactly as found. Costs about three images through the model, eight where a layout shows only on the images' own size.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from typing import Any, Literal, TypeGuard

import torch
from torch import Tensor, nn

from eedkit.errors import unknown
from eedkit.probe.fields import field_type_of
from eedkit.probe.layouts import Layout, is_proportional, layouts_by_corners, parse_layout, shape_text, without_batch

CONTAINERS = (nn.Sequential, nn.ModuleList)
CLASS_TOKENS = ("cls_token", "class_token", "class_embedding", "cls")
"""What models call the parameter that is their class token."""
LOGITS = "logits"
FEATURES = ("pooler_output", "image_embeds", "x_norm_clstoken", "embeddings", "features", "last_hidden_state")
"""Names under which models give features and not class scores."""
KINDS = ("scores", "probabilities", "features")

Key = tuple[str, int, Literal["in", "out"]]
"""A module's path, the number of its call in a forward pass, and "in" or "out"."""
WHOLE: Key = ("", 1, "out")
"""The model's output."""
NO_TENSOR = (TypeError, KeyError, IndexError, AttributeError)
"""What `Output.select` raises where another forward pass gave another kind of output."""


@dataclass(frozen=True)
class Layer:
    """One call of one module: a module that runs twice in a forward pass is two layers, the second named `path#2`.

    Parameters
    ----------
    path : str
        Of the module in the model; empty for the model itself.
    call : int
        1 for the module's first call in a forward pass.
    kind : str
        The module's class.
    depth : float
        Which part of the leaf modules' calls was done when it ran, 0 to 1; the head's input lies half a call further, since
        what leads to it may be no module.
    role : str
        "module"; "class token" of a module's output; "latent" for the features before the head; "output".
    side : "in" or "out"
        Whether the module's input is taken, or its output.
    layout : Layout, or None
        How to read it.
    reason : str
        Why there is no layout.
    field_type : FieldType, or None
        How e2cnn or escnn say that its channels move, where the module gives a GeometricTensor.
    """

    path: str
    call: int
    kind: str
    depth: float
    role: Literal["module", "class token", "latent", "output"] = "module"
    side: Literal["in", "out"] = "out"
    layout: Layout | None = None
    reason: str = ""
    field_type: Any = field(default=None, compare=False, repr=False)

    @property
    def name(self) -> str:
        """The label on the dimension `layer`."""
        if self.role in ("latent", "output"):
            return self.role
        name = self.path if self.call == 1 else f"{self.path}#{self.call}"
        return f"{name}[class]" if self.role == "class token" else name

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of its maps; (1, 1) for what lies nowhere, (0, 0) where that is not known."""
        if self.layout is None:
            return 0, 0
        return (1, 1) if self.role == "class token" else self.layout.grid

    @property
    def channels(self) -> int:
        """Channels at each position; 0 where that is not known."""
        return 0 if self.layout is None else self.layout.channels

    def read(self, z: Tensor) -> Tensor:
        """(b, P, C) of what the module gave."""
        if self.layout is None:
            raise ValueError(f"{self.name} has no layout: {self.reason}")
        return self.layout.read_class_token(z) if self.role == "class token" else self.layout.read(z)


@dataclass(frozen=True)
class Output:
    """What the model's output is: which entry of it, and whether that is class scores.

    Parameters
    ----------
    entry : str, int, or None
        The name or number of the tensor in a dict, an object or a tuple; None for a tensor.
    kind : "scores", "probabilities" or "features"
    reason : str
        Why there are no class scores.
    """

    entry: str | int | None = None
    kind: str = "features"
    reason: str = ""

    def select(self, raw: Any) -> Tensor:
        """The tensor; TypeError where there is none."""
        if self.entry is None:
            return first_tensor(raw)
        if isinstance(self.entry, str) and not isinstance(raw, Mapping):
            return first_tensor(getattr(raw, self.entry))
        return first_tensor(raw[self.entry])


@dataclass
class Found:
    """What the tracing pass found: the layers to tap, what the output is, and how the model wants its images in memory.

    `example` is the output for the images that were traced, which the pass holds its own against.
    """

    layers: list[Layer]
    output: Output
    head: str
    channels_last: bool
    example: Tensor | None
    silent_blocks: list[str] = field(default_factory=list)


@contextmanager
def tap(
    model: nn.Module, layers: Sequence[Layer], output: Output, reduce: Callable[[Layer, Tensor], Any]
) -> Iterator[None]:
    """Within the block, every forward pass calls `reduce(layer, tensor)` for each layer.

    `reduce` runs inside the hook, before a later in-place operation can change what it saw. Hooks are gone when the block is
    left, also by an exception.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> with tap(net, [Layer("0", 1, "Linear", 0.5)], Output(), lambda layer, z: print(layer.name, tuple(z.shape))):
    ...     _ = net(torch.zeros(4, 2))
    0 (4, 3)
    """
    wanted: dict[Key, list[Layer]] = {}
    for layer in layers:
        wanted.setdefault((layer.path, layer.call, layer.side), []).append(layer)

    def see(key: Key, given: Any) -> None:
        for layer in wanted.get(key, ()):
            reduce(layer, output.select(given) if layer.path == "" else first_tensor(given))

    with _watch(model, {path for path, _, _ in wanted}, see):
        yield


@contextmanager
def _watch(model: nn.Module, paths: set[str], see: Callable[[Key, Any], None]) -> Iterator[None]:
    """Within the block every call of the modules at `paths` is shown to `see`, its input and its output."""
    entered, left = Counter[str](), Counter[str]()

    def start(*_: Any) -> None:
        entered.clear()
        left.clear()

    def before(path: str) -> Callable:
        def hook(_module: nn.Module, args: tuple, kwargs: dict) -> None:
            entered[path] += 1
            see((path, entered[path], "in"), (*args, *kwargs.values()))

        return hook

    def after(path: str) -> Callable:
        def hook(_module: nn.Module, _args: tuple, output: Any) -> None:
            left[path] += 1
            see((path, left[path], "out"), output)

        return hook

    hooks = [model.register_forward_pre_hook(start)]
    try:
        for path in paths:
            module = model.get_submodule(path)
            hooks.append(module.register_forward_pre_hook(before(path), with_kwargs=True))
            hooks.append(module.register_forward_hook(after(path)))
        yield
    finally:
        for hook in hooks:
            hook.remove()


class Scripted(nn.Module):
    """A ScriptModule as a module that takes hooks. What is inside cannot be tapped, so that only its output is measured."""

    def __init__(self, script: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.script = script

    def forward(self, images: Tensor) -> Any:
        """The output of the ScriptModule."""
        return self.script(images)


def _tappable(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that take hooks, by path."""
    return {path: part for path, part in model.named_modules() if not isinstance(part, torch.jit.ScriptModule)}


def first_tensor(output: Any, *, depth: int = 8) -> Tensor:
    """The tensor that an output holds: itself, the `tensor` of a GeometricTensor, or the first in a tuple, dict or object.

    `depth` is how deep it may lie, since objects may hold each other.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(getattr(output, "tensor", None), Tensor):
        return output.tensor
    for _, part in _entries(output) if depth else ():
        try:
            return first_tensor(part, depth=depth - 1)
        except TypeError:
            continue
    raise TypeError(f"expected a tensor, or something that holds one, got {type(output).__name__}")


def _entries(output: Any) -> list[tuple[str | int, Any]]:
    """The parts of an output with their names or numbers."""
    if isinstance(output, Mapping):
        return list(output.items())
    if isinstance(output, tuple | list):
        names = getattr(output, "_fields", range(len(output)))
        return list(zip(names, output, strict=True))
    if isinstance(output, nn.Module | type):
        return []
    return list(vars(output).items()) if hasattr(output, "__dict__") else []


def find_layers(
    model: nn.Module,
    images: Tensor,
    *,
    layers: str | Sequence[str] = "blocks",
    head: str | None = None,
    layouts: Mapping[str, str] | None = None,
    output: str | int = "auto",
) -> Found:
    """The layers to tap in order of execution, then `latent` and `output`, each with its layout.

    Parameters
    ----------
    images : Tensor (2, C, H, W)
        Two images; other sizes are tried with noise.
    layers, head, layouts, output
        As in `measure`.

    Raises
    ------
    ValueError
        A layer, head, layout or output is unknown or does not run (near names are given).

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 5))
    >>> found = find_layers(net, torch.rand(2, 1, 3, 3))
    >>> [(layer.name, str(layer.layout)) for layer in found.layers], found.head
    ([('0', 'b c 1 1'), ('1', 'b c'), ('2', 'b c'), ('latent', 'b c'), ('output', 'b c')], '2')
    """
    if "latent" in dict(model.named_modules()):
        raise ValueError("the model has a module called 'latent', the label of the head's input; rename or wrap it")
    trace, channels_last = _first_trace(model, images)
    chosen, silent_blocks = _chosen(model, trace, layers)
    head_input, what = _head_and_output(model, trace, head, output)
    ends = _ends(model, trace, head_input, what)
    reader = _Reader(model, images, trace, what, head_input)
    described = [reader.described(layer, (layouts or {}).get(layer.name)) for layer in (*chosen, *ends)]
    for name in layouts or {}:
        if name not in [layer.name for layer in described]:
            raise ValueError(f"layouts: {unknown('layer', name, [layer.name for layer in described])}")
    with_tokens = []
    for layer in described:
        with_tokens.append(layer)
        if layer.role == "module" and layer.layout and layer.layout.first and reader.has_class_token:
            with_tokens.append(replace(layer, role="class token"))
    example = trace.values.get(WHOLE)
    head_path = head_input[0] if head_input else ""
    return Found(with_tokens, what, head_path, channels_last, example, silent_blocks)


@dataclass
class _Trace:
    """One forward pass: the shape of everything that went in and out, in order, and small outputs whole.

    `images` says how many there were, `called` which modules ran, `takes_images` which inputs are the images as they are,
    `field_types` how steerable features say that they move, and `layouts` which layouts fit the changes at the corners of the
    image.
    """

    images: int
    shapes: dict[Key, tuple[int, ...]] = field(default_factory=dict)
    values: dict[Key, Tensor] = field(default_factory=dict)
    leaves_done: dict[Key, int] = field(default_factory=dict)
    called: set[str] = field(default_factory=set)
    takes_images: set[Key] = field(default_factory=set)
    field_types: dict[Key, Any] = field(default_factory=dict)
    layouts: dict[Key, list[Layout]] = field(default_factory=dict)
    leaves: int = 0
    raw: Any = None
    error: Exception | None = None

    def depth(self, key: Key) -> float:
        """Which part of the leaf modules had run; half a call more for an input."""
        return (self.leaves_done[key] + (0.5 if key[2] == "in" else 0.0)) / max(self.leaves, 1)


@torch.no_grad()
def _trace(
    model: nn.Module,
    images: Tensor,
    *,
    output: Output | None = None,
    keep_values: bool = True,
    shapes_of_two: Mapping[Key, tuple[int, ...]] | None = None,
) -> _Trace:
    """One forward pass with everything watched; an error is kept, with what ran before it.

    With `shapes_of_two`, shapes for two images, the images are one with its corners changed, and layouts of these are sought.
    """
    output = output or Output()
    images = images.clone()  # the model may work in place
    trace = _Trace(len(images))
    modules = _tappable(model)
    leaf_paths = {path for path, module in modules.items() if path and not any(module.children())}

    def see(key: Key, given: Any) -> None:
        path, _, side = key
        trace.called.add(path)
        if side == "out" and path in leaf_paths:
            trace.leaves += 1
        try:
            z = output.select(given) if key == WHOLE else first_tensor(given)
        except NO_TENSOR:
            return
        if not z.is_floating_point() or z.is_sparse:
            return
        trace.shapes[key] = tuple(z.shape)
        trace.leaves_done[key] = trace.leaves
        trace.field_types[key] = field_type_of(given)
        if z.data_ptr() == images.data_ptr() and z.shape == images.shape:
            trace.takes_images.add(key)
        if shapes_of_two is not None and key in shapes_of_two:
            trace.layouts[key] = layouts_by_corners(z, shapes_of_two[key])
        if keep_values and side == "out" and z.numel() <= len(images) * 2**16:
            trace.values[key] = z.detach().clone()

    with _watch(model, set(modules), see):
        try:
            trace.raw = model(images)
        except Exception as error:
            trace.error = error
    return trace


def _first_trace(model: nn.Module, images: Tensor) -> tuple[_Trace, bool]:
    """The pass on two of the user's images, in the memory format in which convolutions are fastest where the model takes it."""
    if images.device.type in ("cpu", "cuda"):
        trace = _trace(model, images.contiguous(memory_format=torch.channels_last))
        if trace.error is None:
            return trace, True
    trace = _trace(model, images.contiguous())
    if trace.error is not None:
        raise trace.error
    return trace, False


def _chosen(model: nn.Module, trace: _Trace, layers: str | Sequence[str]) -> tuple[list[Layer], list[str]]:
    """The layers that were asked for, and the blocks among the model's modules that do not run."""
    modules = _tappable(model)
    calls = [key for key in trace.shapes if key[2] == "out" and key[0]]
    ran = []
    for key in calls:
        path, call, _ = key
        kind = type(modules[path]).__name__
        ran.append(Layer(path, call, kind, trace.depth(key), field_type=trace.field_types[key]))
    by_name = {layer.name: layer for layer in ran}
    silent_blocks = []
    if layers == "all":
        chosen = [layer for layer in ran if type(modules[layer.path]) not in CONTAINERS]
    elif layers == "blocks":
        blocks = _block_paths(model)
        silent_blocks = [path for path in blocks if path not in trace.called]
        if len(silent_blocks) == len(blocks):
            blocks = [layer.path for layer in ran if not any(modules[layer.path].children())]
        chosen = [layer for layer in ran if layer.path in blocks]
    elif isinstance(layers, str):
        try:
            chosen = [layer for layer in ran if re.fullmatch(layers, layer.name)]
        except re.error as error:
            raise ValueError(f"layers={layers!r} is no regular expression ({error})") from None
        if not chosen:
            raise ValueError(unknown("layer whose whole name matches", layers, by_name))
    else:
        for name in layers:
            if name not in by_name:
                silent = ""
                if name in trace.called:
                    silent = "; that module gives no tensor of floats"
                elif name in modules:
                    silent = "; that module exists but is not called (a hook does not see module.forward(x))"
                if isinstance(model, Scripted):
                    silent = "; the layers of a ScriptModule cannot be tapped, measure the module that it was made from"
                raise ValueError(unknown("layer", name, by_name) + silent)
        chosen = [layer for layer in ran if layer.name in layers or layer.path in layers]
    return chosen, silent_blocks


def _block_paths(model: nn.Module) -> list[str]:
    """Outermost composite modules that stand in a container; else composite children of the root; else leaf modules."""
    blocks: list[str] = []

    def walk(module: nn.Module, path: str) -> None:
        for name, child in module.named_children():
            below = f"{path}.{name}" if path else name
            if type(module) in CONTAINERS and any(child.children()) and type(child) not in CONTAINERS:
                blocks.append(below)
            else:
                walk(child, below)

    walk(model, "")
    composite = [n for n, child in model.named_children() if any(child.children()) and type(child) not in CONTAINERS]
    leaves = [path for path, module in _tappable(model).items() if path and not any(module.children())]
    return blocks or (composite if len(composite) > 1 else leaves)


def _head_and_output(model: nn.Module, trace: _Trace, head: str | None, output: str | int) -> tuple[Key | None, Output]:
    """The input of the classifier (None where there is none), and what the model's output is."""
    asked_kind = output if output in KINDS else None
    asked_head = _asked_head(model, trace, head) if head is not None else None
    per_image = isinstance(trace.raw, list | tuple) and len(trace.raw) == trace.images
    if per_image and all(isinstance(part, Mapping) for part in trace.raw):
        trace.shapes.pop(WHOLE, None)
        trace.values.pop(WHOLE, None)
        reason = "the model's output is a list with a dict for every image, as detectors give"
        return asked_head, Output(None, "features", reason)
    entry = _entry(trace.raw, "auto" if asked_kind else output)
    try:
        value = Output(entry).select(trace.raw).detach()
    except NO_TENSOR:
        trace.shapes.pop(WHOLE, None)
        return asked_head, Output(entry, "features", f"the model's output, {type(trace.raw).__name__}, holds no tensor")
    if not value.is_floating_point():
        trace.shapes.pop(WHOLE, None)
        return asked_head, Output(entry, "features", f"the model's output is of {value.dtype}, not of floats")
    trace.values[WHOLE] = value.clone()
    trace.shapes[WHOLE] = tuple(value.shape)
    if value.dim() != 2 or value.shape[1] < 2:
        if asked_kind in ("scores", "probabilities"):
            raise ValueError(f"output={output!r} needs class scores (b, k) with k ≥ 2, got shape {tuple(value.shape)}")
        reason = f"the model's output of shape {shape_text((0, *value.shape[1:]))} is no class scores (b, k) with k ≥ 2"
        return asked_head or _head_of(model, trace, value), Output(entry, "features", reason)
    if asked_kind == "features" or (asked_kind is None and head is None and entry in FEATURES):
        name = f"{entry!r}" if entry in FEATURES else "output='features'"
        return asked_head, Output(entry, "features", f"the model ends in features ({name})")
    found_head = asked_head or _head_of(model, trace, value)
    sums_to_one = torch.allclose(value.sum(1), torch.ones_like(value[:, 0]), atol=1e-3)
    is_distribution = bool((value >= 0).all()) and sums_to_one
    kind = asked_kind or ("probabilities" if is_distribution else "scores")
    if found_head or asked_kind or is_distribution or isinstance(model, Scripted):
        return found_head, Output(entry, kind)
    reason = (
        "the model ends in features: no module with weights gives its output. If these are class scores, pass "
        "output='scores', and head='path of the classifier' for its input as the latent vector"
    )
    return None, Output(entry, "features", reason)


def _asked_head(model: nn.Module, trace: _Trace, head: str) -> Key:
    """The input of the last call of the module that was named."""
    inputs = [key for key in trace.shapes if key[2] == "in" and key[0]]
    calls = [key for key in inputs if key[0] == head]
    if not calls:
        exists = "; that module exists but does not run" if head in dict(model.named_modules()) else ""
        raise ValueError(unknown("head", head, dict.fromkeys(path for path, _, _ in inputs)) + exists)
    return calls[-1]


def _entry(raw: Any, output: str | int) -> str | int | None:
    """Which part of a model's output is measured: what was named, logits, features by their name, or the first tensor."""
    names = [] if isinstance(raw, Tensor) else [name for name, part in _entries(raw) if _holds_tensor(part)]
    if output != "auto":
        if output not in names:
            what = names or "one tensor"
            raise ValueError(f"{unknown('output', output, [*map(str, names), *KINDS])}; the model gives {what}")
        return output
    for name in (LOGITS, *FEATURES):
        if name in names:
            return name
    if not names or isinstance(getattr(raw, "tensor", None), Tensor):
        return None
    if isinstance(names[0], str):
        return names[0]
    vectors = [name for name, part in _entries(raw) if _holds_tensor(part) and first_tensor(part).dim() == 2]
    # of several maps, as feature pyramids give them, the last is the deepest
    return vectors[0] if vectors else names[-1]


def _holds_tensor(part: Any) -> bool:
    try:
        return first_tensor(part).is_floating_point()
    except TypeError:
        return False


def _head_of(model: nn.Module, trace: _Trace, value: Tensor) -> Key | None:
    """The input of the innermost module whose output is the model's, but for a softmax, and that has weights in one place only."""
    if value.dim() != 2:
        return None
    heads = []
    for key, z in trace.values.items():
        path, call, _ = key
        head_input = (path, call, "in")
        if not path or head_input not in trace.shapes or head_input in trace.takes_images:
            continue
        if len(z) != len(value) or z.numel() != value.numel():
            continue
        module = model.get_submodule(path)
        if len(_weighted(module)) == 1 and _gives(z.reshape(value.shape), value):
            heads.append((len(list(module.modules())), -call, head_input))
    return min(heads)[2] if heads else None


def _gives(z: Tensor, value: Tensor) -> bool:
    """Whether scores z are the model's output, as they are or as probabilities."""
    tolerance = 1e-5 * float(value.nan_to_num(0, 0, 0).abs().max())
    forms = [z]
    if z.shape[1] > 1:
        forms += [z.softmax(1), z.log_softmax(1)]
    return any(torch.allclose(form, value, rtol=0, atol=tolerance, equal_nan=True) for form in forms)


def _weighted(module: nn.Module) -> list[str]:
    """The modules within that map channels by weights of their own."""
    return [
        path
        for path, part in module.named_modules()
        if "parametrizations" not in path
        and (hasattr(part, "in_features") or any(p.dim() > 1 for p in part.parameters(recurse=False)))
    ]


def _ends(model: nn.Module, trace: _Trace, head: Key | None, output: Output) -> list[Layer]:
    """The layers `latent` and `output`."""
    kind = type(model).__name__
    at_output = Layer("", 1, kind, 1.0, "output")
    if head is not None:
        path, call, side = head
        head_kind = type(model.get_submodule(path)).__name__
        return [Layer(path, call, head_kind, trace.depth(head), "latent", side), at_output]
    latent = replace(at_output, role="latent")
    if output.kind != "features":
        reason = "the model gives class scores, but no module was found whose output they are; pass head='path of the classifier'"
        latent = replace(latent, reason=reason)
    return [latent, at_output]


class _Reader:
    """Finds layouts, with further forward passes only when a layer asks for them."""

    def __init__(self, model: nn.Module, images: Tensor, trace: _Trace, output: Output, head_input: Key | None) -> None:
        self.model = model
        self.images = images
        self.trace = trace
        self.output = output
        self.head_input = head_input
        self.has_class_token = any(path.split(".")[-1] in CLASS_TOKENS for path, _ in model.named_parameters())

    def described(self, layer: Layer, text: str | None) -> Layer:
        """The layer with its layout, or with the reason why it has none."""
        key = (layer.path, layer.call, layer.side)
        shape = self.trace.shapes.get(key)
        if layer.reason:
            return layer
        if shape is None:
            return replace(layer, reason=self.output.reason or "what it takes or gives is no tensor of floats")
        if text is not None:
            return replace(layer, layout=self._asked(layer, text, shape))
        batch = self._batch_axis(key, shape)
        if batch is None:
            return replace(layer, reason=self._why_no_batch(key, shape))
        found = self._layout(key, shape, batch)
        if isinstance(found, Layout):
            return replace(layer, layout=found)
        hint = f"if you know how it lies, pass layouts={{{layer.name!r}: 'b 1+14x14 c'}} (or as it is)"
        return replace(layer, reason=f"{found}; {hint}")

    def _asked(self, layer: Layer, text: str, shape: tuple[int, ...]) -> Layout:
        try:
            layout = parse_layout(text, shape)
        except ValueError as error:
            raise ValueError(f"layouts[{layer.name!r}]: {error}") from None
        if shape[layout.batch] != len(self.images):
            raise ValueError(
                f"layouts[{layer.name!r}]: the layout {text!r} has the images on axis {layout.batch}, but for "
                f"{len(self.images)} images the output has shape {shape_text(shape)}"
            )
        return layout

    def _layout(self, key: Key, shape: tuple[int, ...], batch: int) -> Layout | str:
        """The layout, or why it did not show: first from the shapes on other sizes, then from the corners of the image."""
        blank = without_batch(shape, batch)
        vector = Layout(blank, batch, space=(), grid=(1, 1))
        if len(shape) <= 2:
            return vector
        following = self._axes_that_follow(key)
        if _is_map(following):
            row, column = following[0][0], following[1][0]
            return Layout(blank, batch, (row, column), (shape[row], shape[column]))
        is_vector = sum(size > 1 for size in blank) <= 1
        if is_vector and following == ([], []):
            return vector
        found = self.cornered.layouts.get(key, [])
        if not any(set(one.space).isdisjoint(other.space) for one, other in combinations(found, 2)):
            found = [layout for layout in found if _follows(layout, following)]
        if len(found) == 1:
            return found[0]
        if len(found) > 1:
            return f"its output {shape_text(blank)} can be read as {' and as '.join(map(str, found))}"
        like_another = self._like_another(key, blank, batch, following)
        if like_another is not None:
            return like_another
        if is_vector:
            return vector
        follows = "no axis follows the image's size"
        if following is None:
            follows = "the model takes no other size"
        elif following != ([], []):
            follows = "that some follow the image's size does not settle it"
        return (
            f"which axes of its output {shape_text(blank)} are places of the image did not show: {follows}, and a change in a "
            "corner of the image does not change one corner most"
        )

    def _batch_axis(self, key: Key, shape: tuple[int, ...]) -> int | None:
        """The one axis that has as many entries as there are images, whatever their number."""
        axes = {axis for axis, size in enumerate(shape) if size == len(self.images)}
        passes = [trace for trace in self.other_sizes if len(trace.shapes.get(key, ())) == len(shape)]
        for trace in passes or [self.cornered]:
            other = trace.shapes.get(key, ())
            axes &= {axis for axis, size in enumerate(other) if size == trace.images}
        return axes.pop() if len(axes) == 1 else None

    def _why_no_batch(self, key: Key, shape: tuple[int, ...]) -> str:
        seen = f"it has shape {shape_text(shape)} for {len(self.images)} images"
        for trace in (*self.other_sizes, self.cornered):
            if key in trace.shapes:
                seen = f"{seen} and {shape_text(trace.shapes[key])} for {trace.images}"
                break
        counting = [axis for axis, size in enumerate(shape) if size == len(self.images)]
        if len(counting) > 1:
            return f"more than one axis of its output may count the images: {seen}"
        return f"no axis of its output counts the images (they may be merged with windows, or not come in): {seen}"

    def _axes_that_follow(self, key: Key) -> tuple[list[int], list[int]] | None:
        """The axes that are shorter where the image has fewer rows, and where it has fewer columns; None where that is unknown."""
        shape = self.trace.shapes[key]
        axes: list[list[int]] = []
        for trace in self.other_sizes:
            other = trace.shapes.get(key, ())
            if len(other) != len(shape):
                return None
            batch = self._batch_axis(key, shape)
            axes.append([axis for axis in range(len(shape)) if axis != batch and other[axis] < shape[axis]])
        return axes[0], axes[1]

    def _like_another(
        self, key: Key, shape: tuple[int, ...], batch: int, following: tuple[list[int], list[int]] | None
    ) -> Layout | None:
        """Tokens read by the grid that as many tokens have elsewhere in the model.

        Elsewhere is anywhere, if the axis is known to follow the image's size; else only in a module that this one is part of,
        since tokens that stand for no places may be as many by chance.
        """
        axes = [axis for axis in range(len(shape)) if axis != batch]
        is_known = False
        if following is not None:
            is_known = following[0] == following[1] and len(following[0]) == 1
        if following is not None and is_known:
            axes = following[0]
        found = set()
        for (path, _, _), layouts in self.cornered.layouts.items():
            encloses = path != "" and key[0].startswith(f"{path}.")
            if len(layouts) == 1 and len(layouts[0].space) == 1 and (is_known or encloses):
                tokens = layouts[0].shape[layouts[0].space[0]]
                for axis in axes:
                    if shape[axis] == tokens:
                        found.add(replace(layouts[0], shape=shape, batch=batch, space=(axis,)))
        return found.pop() if len(found) == 1 else None

    @cached_property
    def other_sizes(self) -> tuple[_Trace, _Trace]:
        """A pass on three images of fewer rows, and one on one image of fewer columns."""
        height, width = self.images.shape[-2:]
        return self._resized(3, _less(height), width), self._resized(1, height, _less(width))

    def _resized(self, number: int, height: int, width: int) -> _Trace:
        noise = torch.rand(number, self.images.shape[1], height, width, generator=torch.Generator().manual_seed(0))
        return self._traced(noise.to(self.images))

    @cached_property
    def cornered(self) -> _Trace:
        """A pass on one image, and on the same with each of its corners changed."""
        image = self.images[0].nan_to_num()
        channels, height, width = image.shape
        half_height, half_width = math.ceil(height / 2), math.ceil(width / 2)
        # strong in the corner, and ever weaker further in, for networks that skip the outermost pixels
        size = max(2, min(height, width) // 64)
        fading_rows = 0.1 ** (torch.arange(half_height) / size)
        fading_columns = 0.1 ** (torch.arange(half_width) / size)
        noise = torch.randn(channels, half_height, half_width, generator=torch.Generator().manual_seed(0))
        upper_left = torch.zeros_like(image)
        upper_left[:, :half_height, :half_width] = noise * fading_rows[:, None] * fading_columns
        upper_left *= 3 * image.std(correction=0) + 1
        changes = [upper_left.flip(axes) for axes in ((), (-1,), (-2,), (-2, -1))]
        images = torch.stack([image, *(image + change for change in changes)])
        open_shapes = {}
        for key, shape in self.trace.shapes.items():
            is_read = key[2] == "out" or key == self.head_input
            if is_read and len(shape) > 2 and not _is_map(self._axes_that_follow(key)):
                open_shapes[key] = shape
        trace = self._traced(images, shapes_of_two=open_shapes)
        self._drop_unlikely_grids(trace)
        return trace

    def _drop_unlikely_grids(self, trace: _Trace) -> None:
        """Leave out grids of tokens that have neither the image's proportions nor the size of a map of this model."""
        height, width = self.images.shape[-2:]
        grids = set()
        for key, shape in self.trace.shapes.items():
            following = self._axes_that_follow(key)
            if _is_map(following):
                grids.add((shape[following[0][0]], shape[following[1][0]]))
            grids |= {layout.grid for layout in trace.layouts.get(key, []) if len(layout.space) == 2}
        for key, layouts in trace.layouts.items():
            likely = []
            for layout in layouts:
                if len(layout.space) == 2 or layout.grid in grids or is_proportional(layout.grid, height, width):
                    likely.append(layout)
            trace.layouts[key] = likely

    def _traced(self, images: Tensor, **options: Any) -> _Trace:
        return _trace(self.model, images, output=self.output, keep_values=False, **options)


def first_noisy_module(model: nn.Module, images: Tensor) -> str | None:
    """The path of the first module that gives another output when the same images come again; None where all repeat."""
    once, again = _trace(model, images), _trace(model, images)
    for key, value in once.values.items():
        if key in again.values and not torch.allclose(value, again.values[key], rtol=1e-3, atol=1e-6, equal_nan=True):
            return key[0]
    return None


def _less(size: int) -> int:
    """Another size, small enough to be cheap and large enough to pass through a network that was made for this one."""
    return size // 4 if size >= 64 else max(1, size // 2)


def _is_map(following: tuple[list[int], list[int]] | None) -> TypeGuard[tuple[list[int], list[int]]]:
    """Whether one axis follows the image's rows, and another its columns."""
    if following is None:
        return False
    rows, columns = following
    return len(rows) == len(columns) == 1 and rows != columns


def _follows(layout: Layout, following: tuple[list[int], list[int]] | None) -> bool:
    """Whether its axes are among those that follow the image's rows and columns, as far as any do."""
    rows, columns = following or ([], [])
    row, column = layout.space[0], layout.space[-1]
    return (not rows or row in rows) and (not columns or column in columns)
