"""Which layers a model has, how each lays out positions and channels, and which module is the head; taps on them.

Layouts are found by a few small forward passes on other sizes, never from sizes that happen to agree. Leaves the model
exactly as found. Costs about four images through the model, eight where a layout shows only on the images' own size.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from eedkit.errors import unknown

CONTAINERS = (nn.Sequential, nn.ModuleList)
CLASS_TOKENS = ("cls_token", "class_token", "class_embedding", "cls")
"""What models call the parameter that is their class token."""
LOGITS = "logits"
FEATURES = ("pooler_output", "image_embeds", "x_norm_clstoken", "embeddings", "features", "last_hidden_state")
"""Names under which models give features and not class scores."""
KINDS = ("scores", "probabilities", "features")
EXTRA_TOKENS = 16
"""No model is known to put more tokens beside the grid of its patches."""

Key = tuple[str, int, str]
"""A module's path, the number of its call in a forward pass, and "in" or "out"."""


@dataclass(frozen=True)
class Layout:
    """How the output of a layer is read as positions × channels.

    Parameters
    ----------
    shape : tuple of int
        Of the output for one image, with 0 where the batch is.
    batch : int
        The axis of the images.
    space : tuple of int
        The axes of rows and columns, the one axis of tokens, or none for a vector. All other axes are channels.
    grid : (height, width)
        (1, 1) for a vector.
    first : int
        Where on the axis of tokens the grid begins; before it and after it are tokens that lie nowhere.
    by_columns : bool
        Whether tokens run down the columns and not along the rows.

    >>> maps = Layout((0, 8, 5, 6), batch=0, space=(2, 3), grid=(5, 6))
    >>> str(maps), tuple(maps.read(torch.zeros(2, 8, 5, 6)).shape)
    ('b c h w', (2, 30, 8))
    """

    shape: tuple[int, ...]
    batch: int
    space: tuple[int, ...]
    grid: tuple[int, int]
    first: int = 0
    by_columns: bool = False

    @property
    def channels(self) -> int:
        """C, how many numbers there are at a position."""
        return math.prod(self.shape[axis] for axis in self._channel_axes())

    def _channel_axes(self) -> list[int]:
        return [axis for axis in range(len(self.shape)) if axis != self.batch and axis not in self.space]

    def read(self, z: Tensor) -> Tensor:
        """(b, P, C), without a copy where the memory allows it; ValueError for an output of another shape."""
        z = self._batch_space_channels(z)
        if len(self.space) == 1:
            height, width = self.grid
            z = z[:, self.first : self.first + height * width]
            if self.by_columns:
                z = z.unflatten(1, (width, height)).transpose(1, 2).flatten(1, 2)
        return z

    def read_class_token(self, z: Tensor) -> Tensor:
        """(b, 1, C), the first of the tokens that lie nowhere."""
        return self._batch_space_channels(z)[:, :1]

    def _batch_space_channels(self, z: Tensor) -> Tensor:
        shape = (*z.shape[: self.batch], 0, *z.shape[self.batch + 1 :])
        if shape != self.shape:
            raise ValueError(
                f"its output has shape {_shape(shape)} in one forward pass and {_shape(self.shape)} in another; "
                "layers whose shape depends on the images are not compared"
            )
        channel_axes = self._channel_axes()
        z = z.permute(self.batch, *self.space, *channel_axes)
        positions = math.prod(self.shape[axis] for axis in self.space)
        return z.reshape(len(z), positions, self.channels)

    def __str__(self) -> str:
        height, width = self.grid
        words = ["1" if size == 1 else "c" for size in self.shape]
        words[self.batch] = "b"
        if len(self.space) == 2:
            words[self.space[0]], words[self.space[1]] = "h", "w"
        if len(self.space) == 1:
            after = self.shape[self.space[0]] - self.first - height * width
            around = [str(self.first)] * bool(self.first), [str(after)] * bool(after)
            cells = f"{width}x{height}t" if self.by_columns else f"{height}x{width}"
            words[self.space[0]] = "+".join([*around[0], cells, *around[1]])
        return " ".join(words)


def parse_layout(text: str, shape: Sequence[int]) -> Layout:
    """The layout that a text stands for, for an output of this shape (with the batch).

    b, c, h and w name the axes; tokens are `14x14` (rows × columns), with those that lie nowhere before and after: `1+14x14`.

    Raises
    ------
    ValueError
        The text names another number of axes, no batch, or other sizes than the shape has.

    >>> str(parse_layout("b 1+2x3 c", (4, 7, 8)))
    'b 1+2x3 c'
    """
    words = text.split()
    shape = tuple(shape)
    example = "e.g. 'b c h w', 'b h w c', 'b 1+14x14 c', '14x14 b c' or 'b c'"
    if len(words) != len(shape) or words.count("b") != 1:
        raise ValueError(f"the layout {text!r} must name the {len(shape)} axes of {_shape(shape)}, one of them b; {example}")
    batch = words.index("b")
    shape = (*shape[:batch], 0, *shape[batch + 1 :])
    if words.count("h") == words.count("w") == 1:
        space = (words.index("h"), words.index("w"))
        grid = (shape[space[0]], shape[space[1]])
        others = set(words) - {"b", "c", "1", "h", "w"}
        first = 0
    else:
        tokens = [(axis, re.fullmatch(r"(?:(\d+)\+)?(\d+)x(\d+)(?:\+(\d+))?", word)) for axis, word in enumerate(words)]
        tokens = [(axis, match) for axis, match in tokens if match]
        others = set(words) - {"b", "c", "1", *(words[axis] for axis, _ in tokens)}
        space, grid, first = (), (1, 1), 0
        if tokens:
            axis, match = tokens[0]
            before, height, width, after = (int(part or 0) for part in match.groups())
            if before + height * width + after != shape[axis]:
                raise ValueError(f"the layout {text!r} has {words[axis]} tokens, the output {shape[axis]}")
            space, grid, first = (axis,), (height, width), before
    if others:
        raise ValueError(f"the layout {text!r} has {', '.join(sorted(others))}, which is no axis; {example}")
    return Layout(shape, batch, space, grid, first)


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
    """

    path: str
    call: int
    kind: str
    depth: float
    role: Literal["module", "class token", "latent", "output"] = "module"
    side: Literal["in", "out"] = "out"
    layout: Layout | None = None
    reason: str = ""

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

    def read(self, z: Tensor) -> Tensor:
        """(b, P, C) of what the module gave."""
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
def tap(model: nn.Module, layers: Sequence[Layer], output: Output, reduce: Callable[[Layer, Tensor], Any]) -> Iterator[None]:
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


def first_tensor(output: Any) -> Tensor:
    """The tensor that an output holds: itself, the `tensor` of a GeometricTensor, or the first in a tuple, dict or object."""
    if isinstance(output, Tensor):
        return output
    if isinstance(getattr(output, "tensor", None), Tensor):
        return output.tensor
    for _, part in _entries(output):
        try:
            return first_tensor(part)
        except TypeError:
            continue
    raise TypeError(f"expected a tensor, or something that holds one, got {type(output).__name__}")


def _entries(output: Any) -> list[tuple[str | int, Any]]:
    """The parts of an output with their names or numbers."""
    if isinstance(output, Mapping):
        return list(output.items())
    if hasattr(output, "_fields"):
        return [(name, getattr(output, name)) for name in output._fields]
    if isinstance(output, tuple | list):
        return list(enumerate(output))
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

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 5))
    >>> found = find_layers(net, torch.rand(2, 1, 3, 3))
    >>> [(layer.name, str(layer.layout)) for layer in found.layers], found.head
    ([('0', 'b c 1 1'), ('1', 'b c'), ('2', 'b c'), ('latent', 'b c'), ('output', 'b c')], '2')
    """
    if "latent" in dict(model.named_modules()):
        raise ValueError("the model has a module called 'latent', the label of the head's input; rename or wrap it")
    trace, channels_last = _first_trace(model, images)
    chosen, silent_blocks = _chosen(model, trace, layers)
    head_path, what = _head_and_output(model, trace, head, output)
    ends = _ends(model, trace, head_path, what)
    reader = _Reader(model, images, trace, what)
    described = [reader.described(layer, (layouts or {}).get(layer.name)) for layer in (*chosen, *ends)]
    for name in layouts or {}:
        if name not in [layer.name for layer in described]:
            raise ValueError(f"layouts: {unknown('layer', name, [layer.name for layer in described])}")
    with_tokens = []
    for layer in described:
        with_tokens.append(layer)
        if layer.role == "module" and layer.layout and layer.layout.first and reader.has_class_token:
            with_tokens.append(replace(layer, role="class token"))
    example = trace.values.get(("", 1, "out"))
    return Found(with_tokens, what, head_path, channels_last, example, silent_blocks)


@dataclass
class _Trace:
    """One forward pass: the shape of everything that went in and out, in order, and small outputs whole."""

    shapes: dict[Key, tuple[int, ...]] = field(default_factory=dict)
    values: dict[Key, Tensor] = field(default_factory=dict)
    leaves_done: dict[Key, int] = field(default_factory=dict)
    images: set[Key] = field(default_factory=set)
    corners: dict[Key, list[list[int]]] = field(default_factory=dict)
    leaves: int = 0
    raw: Any = None
    error: Exception | None = None

    def depth(self, key: Key) -> float:
        """Which part of the leaf modules had run; half a call more for an input."""
        return (self.leaves_done[key] + (0.5 if key[2] == "in" else 0.0)) / max(self.leaves, 1)


@torch.no_grad()
def _trace(model: nn.Module, images: Tensor, *, corners_of: _Trace | None = None) -> _Trace:
    """One forward pass with everything watched; an error is kept, with what ran before it."""
    trace = _Trace()
    leaf_paths = {path for path, module in model.named_modules() if path and not any(module.children())}

    def see(key: Key, given: Any) -> None:
        path, _, side = key
        if side == "out" and path in leaf_paths:
            trace.leaves += 1
        try:
            z = first_tensor(given)
        except TypeError:
            return
        if not z.is_floating_point() or z.is_sparse:
            return
        trace.shapes[key] = tuple(z.shape)
        trace.leaves_done[key] = trace.leaves
        if z.data_ptr() == images.data_ptr() and z.shape == images.shape:
            trace.images.add(key)
        if corners_of is not None and z.dim() > 2:
            trace.corners[key] = _most_changed(z, corners_of.shapes.get(key, ()))
        elif corners_of is None and side == "out" and z.numel() <= len(images) * 2**16:
            trace.values[key] = z.detach().clone()

    with _watch(model, {path for path, _ in model.named_modules()}, see):
        try:
            trace.raw = model(images)
        except Exception as error:
            trace.error = error
    return trace


def _first_trace(model: nn.Module, images: Tensor) -> tuple[_Trace, bool]:
    """The pass on two of the user's images, in the memory format in which convolutions are fastest where the model takes it."""
    if isinstance(model, torch.jit.ScriptModule):
        trace = _Trace()
        trace.raw = model(images)
        return trace, False
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
    modules = dict(model.named_modules())
    calls = [key for key in trace.shapes if key[2] == "out" and key[0]]
    ran = [Layer(path, call, type(modules[path]).__name__, trace.depth((path, call, side))) for path, call, side in calls]
    by_name = {layer.name: layer for layer in ran}
    silent_blocks = []
    if layers == "all":
        chosen = [layer for layer in ran if type(modules[layer.path]) not in CONTAINERS]
    elif layers == "blocks":
        blocks = _block_paths(model)
        ran_paths = {layer.path for layer in ran}
        silent_blocks = [path for path in blocks if path not in ran_paths] if trace.shapes else []
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
                if name in modules:
                    silent = "; that module exists but is not called (a hook does not see module.forward(x))"
                if isinstance(model, torch.jit.ScriptModule):
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
    leaves = [path for path, module in model.named_modules() if path and not any(module.children())]
    return blocks or (composite if len(composite) > 1 else leaves)


def _head_and_output(model: nn.Module, trace: _Trace, head: str | None, output: str | int) -> tuple[str, Output]:
    """The path of the classifier ("" where there is none), and what the model's output is."""
    asked_kind = output if output in KINDS else None
    entry = _entry(trace.raw, "auto" if asked_kind else output)
    try:
        value = Output(entry).select(trace.raw).detach()
    except (TypeError, KeyError, IndexError, AttributeError):
        return "", Output(entry, "features", f"the model's output, {type(trace.raw).__name__}, holds no tensor")
    trace.values["", 1, "out"] = value.clone()
    trace.shapes["", 1, "out"] = tuple(value.shape)
    if head is not None:
        known = [path for path, _, side in trace.shapes if side == "in" and path]
        if head not in known:
            exists = "; that module exists but does not run" if head in dict(model.named_modules()) else ""
            raise ValueError(unknown("head", head, dict.fromkeys(known)) + exists)
    if value.dim() != 2 or value.shape[1] < 2:
        if asked_kind in ("scores", "probabilities"):
            raise ValueError(f"output={output!r} needs class scores (b, k) with k ≥ 2, got shape {tuple(value.shape)}")
        reason = f"the model's output of shape {_shape((0, *value.shape[1:]))} is no class scores (b, k) with k ≥ 2"
        return head or "", Output(entry, "features", reason)
    if asked_kind == "features" or (asked_kind is None and head is None and entry in FEATURES):
        name = f"{entry!r}" if entry in FEATURES else "output='features'"
        return "", Output(entry, "features", f"the model ends in features ({name})")
    path = head or _head_of(model, trace, value)
    is_distribution = bool((value >= 0).all()) and torch.allclose(value.sum(1), torch.ones_like(value[:, 0]), atol=1e-3)
    kind = asked_kind or ("probabilities" if is_distribution else "scores")
    if path or asked_kind or is_distribution or isinstance(model, torch.jit.ScriptModule):
        return path, Output(entry, kind)
    reason = (
        "the model ends in features: no module with weights gives its output. If these are class scores, pass "
        "output='scores', and head='path of the classifier' for its input as the latent vector"
    )
    return "", Output(entry, "features", reason)


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


def _head_of(model: nn.Module, trace: _Trace, value: Tensor) -> str:
    """The innermost module whose output is the model's, but for a softmax, and which has weights in just one place."""
    heads = []
    for key, z in trace.values.items():
        path, call, side = key
        if side == "in" or not path or z.numel() != value.numel() or (path, call, "in") in trace.images:
            continue
        if len(z) != len(value):
            continue
        z = z.reshape(value.shape)
        tolerance = 1e-5 * float(value.abs().max())
        if any(float((form - value).abs().max()) <= tolerance for form in (z, z.softmax(1), z.log_softmax(1))):
            module = model.get_submodule(path)
            if len(_weighted(module)) == 1:
                heads.append((len(list(module.modules())), path))
    return min(heads)[1] if heads else ""


def _weighted(module: nn.Module) -> list[str]:
    """The modules within that map channels by weights of their own."""
    return [
        path
        for path, part in module.named_modules()
        if "parametrizations" not in path
        and (hasattr(part, "in_features") or any(p.dim() > 1 for p in part.parameters(recurse=False)))
    ]


def _ends(model: nn.Module, trace: _Trace, head: str, output: Output) -> list[Layer]:
    """The layers `latent` and `output`."""
    kind = type(model).__name__
    at_output = Layer("", 1, kind, 1.0, "output")
    if head:
        call = max(number for path, number, side in trace.shapes if path == head and side == "in")
        kind = type(model.get_submodule(head)).__name__
        return [Layer(head, call, kind, trace.depth((head, call, "in")), "latent", "in"), at_output]
    latent = replace(at_output, role="latent")
    if output.kind != "features":
        reason = "the model gives class scores, but no module was found whose output they are; pass head='path of the classifier'"
        latent = replace(latent, reason=reason)
    return [latent, at_output]


class _Reader:
    """Finds layouts, with further forward passes only when a layer asks for them."""

    def __init__(self, model: nn.Module, images: Tensor, trace: _Trace, output: Output) -> None:
        self.model = model
        self.images = images
        self.trace = trace
        self.output = output
        self.has_class_token = any(path.split(".")[-1] in CLASS_TOKENS for path, _ in model.named_parameters())
        self._other_sizes: tuple[_Trace, _Trace] | None = None
        self._cornered: _Trace | None = None
        self._token_layouts: dict[int, Layout] = {}

    def described(self, layer: Layer, text: str | None) -> Layer:
        """The layer with its layout, or with the reason why it has none."""
        key = (layer.path, layer.call, layer.side)
        shape = self.trace.shapes.get(key)
        if layer.reason:
            return layer
        if shape is None:
            return replace(layer, reason=self.output.reason or "what it takes or gives is no tensor of floats")
        if text is not None:
            try:
                return replace(layer, layout=parse_layout(text, shape))
            except ValueError as error:
                raise ValueError(f"layouts[{layer.name!r}]: {error}") from None
        layout = self._layout(key, shape)
        if isinstance(layout, str):
            return replace(layer, reason=layout)
        return replace(layer, layout=layout)

    def _layout(self, key: Key, shape: tuple[int, ...]) -> Layout | str:
        """From shapes on other sizes; where these do not settle it, from what changes with the corners of the image."""
        if isinstance(self.model, torch.jit.ScriptModule):
            return Layout((0, *shape[1:]), 0, (), (1, 1)) if len(shape) == 2 else "a ScriptModule shows no layers"
        lower, narrower = self.other_sizes
        batches = {axis for axis, size in enumerate(shape) if size == len(self.images)}
        for trace, size in ((lower, 3), (narrower, 1)):
            if key in trace.shapes and len(trace.shapes[key]) == len(shape):
                batches &= {axis for axis, other in enumerate(trace.shapes[key]) if other == size}
        compared = key in lower.shapes and key in narrower.shapes
        if not compared:
            cornered = self.cornered.shapes.get(key, ())
            batches &= {axis for axis, other in enumerate(cornered) if other == 4}
        if len(batches) != 1:
            return self._no_batch(key, shape)
        batch = batches.pop()
        blank = (*shape[:batch], 0, *shape[batch + 1 :])
        if len(shape) == 2:
            return Layout(blank, batch, (), (1, 1))
        if compared and len(lower.shapes[key]) == len(narrower.shapes[key]) == len(shape):
            rows = [axis for axis in range(len(shape)) if axis != batch and lower.shapes[key][axis] < shape[axis]]
            columns = [axis for axis in range(len(shape)) if axis != batch and narrower.shapes[key][axis] < shape[axis]]
            if len(rows) == len(columns) == 1 and rows != columns:
                return Layout(blank, batch, (rows[0], columns[0]), (shape[rows[0]], shape[columns[0]]))
            if rows == columns and len(rows) == 1:
                return self._tokens(key, blank, batch, rows)
        if sum(size > 1 for size in blank) <= 1:
            return Layout(blank, batch, (), (1, 1))
        return self._from_corners(key, blank, batch)

    def _no_batch(self, key: Key, shape: tuple[int, ...]) -> str:
        other = self.other_sizes[0].shapes.get(key) or self.cornered.shapes.get(key)
        seen = f"; its shape is {shape} for {len(self.images)} images" + (f", {other} for another number" if other else "")
        return f"no axis of its output, or more than one, counts the images{seen}. layouts={{{key[0]!r}: 'b …'}} tells"

    @property
    def other_sizes(self) -> tuple[_Trace, _Trace]:
        """A pass on three images of another height, and one on one image of another width."""
        if self._other_sizes is None:
            height, width = self.images.shape[-2:]
            self._other_sizes = (self._resized(3, _less(height), width), self._resized(1, height, _less(width)))
        return self._other_sizes

    def _resized(self, number: int, height: int, width: int) -> _Trace:
        noise = torch.rand(number, self.images.shape[1], height, width, generator=torch.Generator().manual_seed(0))
        return self._traced(noise.to(self.images))

    def _traced(self, images: Tensor, **options: Any) -> _Trace:
        trace = _trace(self.model, images, **options)
        try:
            trace.shapes["", 1, "out"] = tuple(self.output.select(trace.raw).shape)
        except (TypeError, KeyError, IndexError, AttributeError):
            trace.shapes.pop(("", 1, "out"), None)
        return trace

    @property
    def cornered(self) -> _Trace:
        """A pass on one image, and on the same with its upper right, lower left and lower right corner changed."""
        if self._cornered is None:
            height, width = self.images.shape[-2:]
            size = max(2, min(height, width) // 64)
            images = self.images[:1].repeat(4, 1, 1, 1)
            contrast = 3 * images.std() + 1
            images[1, :, :size, width - size :] += contrast
            images[2, :, height - size :, :size] += contrast
            images[3, :, height - size :, width - size :] += contrast
            self._cornered = self._traced(images, corners_of=self.trace)
        return self._cornered

    def _from_corners(self, key: Key, shape: tuple[int, ...], batch: int) -> Layout | str:
        """The axes along which the corners of the output change most when the corners of the image do."""
        corners = self.cornered.corners.get(key)
        axes = [axis for axis, size in enumerate(shape) if axis != batch]
        pairs = []
        if corners:
            for row in axes:
                for column in axes:
                    last_row, last_column = shape[row] - 1, shape[column] - 1
                    if row != column and last_row and last_column:
                        as_rows = [corner[row] for corner in corners] == [0, last_row, last_row]
                        as_columns = [corner[column] for corner in corners] == [last_column, 0, last_column]
                        if as_rows and as_columns:
                            pairs.append((row, column))
        if len(pairs) == 1:
            row, column = pairs[0]
            return Layout(shape, batch, (row, column), (shape[row], shape[column]))
        if not pairs and len(shape) == 3:
            return self._tokens(key, shape, batch, axes)
        return (
            f"which axes of its output {_shape(shape)} are rows and columns of the image did not show: the model takes no "
            f"other size, or the layer mixes all places. layouts={{{key[0]!r}: 'b c h w'}} (or as it is) tells"
        )

    def _tokens(self, key: Key, shape: tuple[int, ...], batch: int, axes: Sequence[int]) -> Layout | str:
        """One axis of all places: its grid is one that an earlier layer of the model showed, held against the corners."""
        corners = self.cornered.corners.get(key)
        for axis in axes if corners else ():
            seen = [corner[axis] for corner in corners]
            for layout in self._candidates(shape, batch, axis):
                height, width = layout.grid
                last = layout.first + height * width - 1
                upper_right, lower_left = layout.first + width - 1, layout.first + (height - 1) * width
                if layout.by_columns:
                    upper_right, lower_left = layout.first + (width - 1) * height, layout.first + height - 1
                if seen == [upper_right, lower_left, last]:
                    self._token_layouts[shape[axis]] = layout
                    return layout
        known = [axis for axis in axes if shape[axis] in self._token_layouts]
        if len(known) == 1:
            like = self._token_layouts[shape[known[0]]]
            return replace(like, shape=shape, batch=batch, space=(known[0],))
        return (
            f"which places of the image the tokens of its output {_shape(shape)} stand for did not show. "
            f"layouts={{{key[0]!r}: 'b 1+14x14 c'}} (or as it is) tells"
        )

    def _candidates(self, shape: tuple[int, ...], batch: int, axis: int) -> Iterator[Layout]:
        """Ways to lay a grid along an axis of tokens: each grid of the model, or one like it, with few tokens beside it."""
        tokens = shape[axis]
        for height, width in self._grids():
            extra = tokens - height * width
            if 0 <= extra <= EXTRA_TOKENS:
                for first in dict.fromkeys((extra, 0)):
                    yield Layout(shape, batch, (axis,), (height, width), first)
                    yield Layout(shape, batch, (axis,), (height, width), first, by_columns=True)

    def _grids(self) -> list[tuple[int, int]]:
        """Grids of the maps that the model showed before, and these halved and halved again, as stages do."""
        height, width = self.images.shape[-2:]
        grids = []
        for key, corners in self.cornered.corners.items():
            shape = self.trace.shapes.get(key, ())
            if len(shape) != 4 or not corners:
                continue
            layout = self._from_corners(key, (0, *shape[1:]), 0)
            if isinstance(layout, Layout):
                grids.append(layout.grid)
        grids = grids or [(height, width)]
        halved = []
        for rows, columns in dict.fromkeys(grids):
            while min(rows, columns) > 1:
                halved.append((rows, columns))
                rows, columns = -(-rows // 2), -(-columns // 2)
        return list(dict.fromkeys([*grids, *halved]))


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


def _most_changed(z: Tensor, shape_of_two: tuple[int, ...]) -> list[list[int]]:
    """For each changed image and every axis, where along it the output differs most from the unchanged image's."""
    batches = [axis for axis, size in enumerate(shape_of_two) if size == 2 and z.dim() == len(shape_of_two) and z.shape[axis] == 4]
    if len(batches) != 1:
        return []
    z = z.detach().movedim(batches[0], 0).double()
    changes = (z[1:] - z[:1]).abs()
    if not changes.isfinite().all() or not (changes.flatten(1).amax(1) > 0).all():
        return []
    corners = []
    for change in changes:
        peaks = []
        for axis in range(change.dim()):
            others = [other for other in range(change.dim()) if other != axis]
            peaks.append(int(change.sum(others).argmax()))
        peaks.insert(batches[0], 0)
        corners.append(peaks)
    return corners


def _shape(shape: Sequence[int]) -> str:
    return f"({', '.join('b' if size == 0 else str(size) for size in shape)})"
