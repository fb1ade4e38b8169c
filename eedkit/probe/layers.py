"""Which layers a model has, how each lays out positions and channels, and which module is the head; taps on them.

Layouts are found by a few small forward passes on other sizes, never from sizes that happen to agree. Leaves the model
exactly as found. Costs about three images through the model, eight where a layout shows only on the images' own size.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from eedkit.errors import Undefined, unknown
from eedkit.probe.experiments import Experiments
from eedkit.probe.heads import asked_head, find_head, is_vector
from eedkit.probe.layouts import UNKNOWN, Layout, parse_layout, shape_text
from eedkit.probe.outputs import (
    FEATURES,
    NEEDS,
    Output,
    asked_outputs,
    choose_entry,
    describe_output,
    first_tensor,
    is_distribution,
    may_have_head,
    may_have_one_position,
    own_name,
    why_no_tensor,
)
from eedkit.probe.tracing import (
    Call,
    Key,
    Trace,
    first_noisy_module,
    first_trace,
    has_parts,
    is_sealed,
    plain_call,
    watch,
    watchable,
)

__all__ = ["Found", "Layer", "Output", "find_layers", "first_noisy_module", "is_sealed", "tap"]

CONTAINERS = (nn.Sequential, nn.ModuleList)
SEALED = "inside of a ScriptModule or an exported model nothing can be tapped: measure the module that it was made from"
CLASS_TOKENS = ("cls_token", "class_token", "class_embedding", "cls")
"""What models call the parameter that is their class token."""


@dataclass(frozen=True)
class Layer:
    """One call of one module, or an output: a module that runs twice in a forward pass is two layers, `path` and `path#2`.

    `path` and `kind` are the module's and its class; `call` counts its calls, or the outputs, from 1. `depth` is which part of the
    leaf modules' calls was done when it ran, 0 to 1, and half a call more for the head's input. `role` "class token" is that of
    a module's output; "latent" stands for the features before the head, or for the output where there is no head. `side` says
    whether the module's input is taken or its output. `layout` None: it has no value, for the `reason`; of the grid (0, 0)
    vectors have a value, and maps have none; `batch` is the axis of the images, which may be known without a layout. `field_type` is that of a GeometricTensor, `fit` what `channelwise_matched` fitted,
    `output` which entry of what the model gives is read, None for layers that `tap` serves.
    """

    path: str
    call: int
    kind: str
    depth: float
    role: Literal["module", "class token", "latent", "output"] = "module"
    side: Literal["in", "out"] = "out"
    layout: Layout | None = None
    reason: str = ""
    batch: int | None = None
    field_type: Any = field(default=None, compare=False, repr=False)
    fit: Any = field(default=None, compare=False, repr=False)
    output: Output | None = None

    @property
    def name(self) -> str:
        """The label on the dimension `layer`."""
        if self.role == "latent":
            return "latent"
        if self.role == "output":
            return "output" if self.output is None or self.call == 1 else f"output[{self.output.entry}]"
        is_plain = self.call == 1 and self.path not in ("latent", "output")
        name = self.path if is_plain else f"{self.path}#{self.call}"
        return f"{name}[class]" if self.role == "class token" else name

    @property
    def key(self) -> Key:
        """What a trace knows it by."""
        if self.output is not None:
            return self.output.key
        return self.path, self.call, self.side

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of its maps; (1, 1) for what lies nowhere, (0, 0) where that is not known."""
        if self.layout is None:
            return UNKNOWN
        return (1, 1) if self.role == "class token" else self.layout.grid

    @property
    def channels(self) -> int:
        """Channels at each position; 0 where that is not known."""
        return 0 if self.layout is None else self.layout.channels

    def read(self, z: Tensor) -> Tensor:
        """(b, P, C) of what the module gave; Undefined without a layout, or where it gave another shape."""
        if self.layout is None:
            raise Undefined(f"{self.name} has no layout: {self.reason}")
        return self.layout.read_class_token(z) if self.role == "class token" else self.layout.read(z)


@dataclass
class Found:
    """What was found: the layers that were asked for in order of execution, then `latent` and the outputs.

    `head` is the path of the classifier, or empty; `channels_last` whether the model takes images in this memory format;
    `example` the first output for the two images that were traced; `silent_blocks` are blocks that no forward pass calls.
    """

    layers: list[Layer]
    head: str
    channels_last: bool
    example: Tensor | None
    silent_blocks: list[str] = field(default_factory=list)


@contextmanager
def tap(
    model: nn.Module, layers: Sequence[Layer], reduce: Callable[[Layer, Tensor], Any]
) -> Iterator[Callable[[], None]]:
    """Within the block, every forward pass calls `reduce(layer, tensor)` for each layer that is a module's.

    Gives `begin`, to be called before every forward pass, whichever method of the model makes it. `reduce` runs inside the hook,
    before a later in-place operation can change what it saw. Hooks are gone when the block is left, also by an exception.
    """
    by_key: dict[Key, list[Layer]] = {}
    for layer in layers:
        if layer.output is None:
            by_key.setdefault(layer.key, []).append(layer)

    def see(key: Key, given: Any) -> None:
        wanted = by_key.get(key)
        z = first_tensor(given) if wanted else None
        if wanted and z is not None:
            for layer in wanted:
                reduce(layer, z)

    with watch(model, {(path, side) for path, _, side in by_key}, see) as begin:
        yield begin


@torch.no_grad()
def find_layers(
    model: nn.Module,
    images: Tensor,
    *,
    layers: str | Sequence[str] = "blocks",
    head: str | None = None,
    layouts: Mapping[str, str] | None = None,
    output: str | int | Mapping[str, str] = "auto",
    call: Call = plain_call,
) -> Found:
    """The layers to tap in order of execution, then `latent` and each output, with their layouts, on images (2, C, H, W).

    The other arguments are those of `measure`. ValueError where a name is unknown or what it names does not run.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 5))
    >>> found = find_layers(net, torch.rand(2, 1, 3, 3))
    >>> [(layer.name, str(layer.layout)) for layer in found.layers], found.head
    ([('0', 'b c 1 1'), ('1', 'b c'), ('2', 'b c'), ('latent', 'b c'), ('output', 'b c')], '2')
    """
    asked = asked_outputs(output)
    if isinstance(layers, str):
        try:
            re.compile(layers)
        except re.error as error:
            raise ValueError(f"layers={layers!r} is no regular expression ({error})") from None
    vectors: dict[Key, Tensor] = {}

    def keep_vectors(key: Key, z: Tensor) -> None:
        if is_vector(z):
            vectors[key] = z.clone()

    first, channels_last = first_trace(model, images, call, keep_vectors)
    chosen, silent_blocks = _chosen(model, first, layers)
    head_input = asked_head(model, first, head) if head is not None else None
    outputs, example = [], None
    for entry, kind in asked:
        chosen_entry = choose_entry(first.raw, first.images, entry, kind)
        if chosen_entry is None:
            outputs.append(Output(reason=why_no_tensor(first.raw, first.images)))
            continue
        read = Output(chosen_entry)
        value = first.add(read)
        if may_have_one_position(kind, value.shape):
            read = _with_one_position(Experiments(model, images, call, first, [read], None), read, kind)
            value = first.add(read)
        if head_input is None and may_have_head(chosen_entry, kind, value):
            head_input = find_head(model, first, vectors, value, kind)
        has_head = head_input is not None or is_sealed(model)
        outputs.append(describe_output(read, kind, value, has_head=has_head))
        example = value.clone() if example is None else example
    ends = _ends(model, first, outputs, head_input)
    by_hand = _layouts_by_hand(layouts or {}, first, [*chosen, *ends])
    experiments = Experiments(model, images, call, first, outputs, head_input)
    has_class_token = any(path.split(".")[-1] in CLASS_TOKENS for path, _ in model.named_parameters())
    described = []
    for layer in (*chosen, *ends):
        layout, reason = by_hand.get(layer.name, (None, layer.reason))
        batch = None if layout is None else layout.batch
        if layout is None and reason == "":
            layout, reason = experiments.layout(layer.key, layer.name)
            batch = experiments.batch_axis(layer.key)
        layer = replace(layer, layout=layout, reason=reason, batch=batch)
        if layer.output is not None and layer.role == "output":
            layer = replace(layer, output=_with_places(layer, layer.output, asked[layer.call - 1][1], first.raw))
        described.append(layer)
        if layer.role == "module" and layout is not None and layout.first and has_class_token:
            described.append(replace(layer, role="class token"))
    return Found(described, head_input[0] if head_input else "", channels_last, example, silent_blocks)


def _chosen(model: nn.Module, first: Trace, layers: str | Sequence[str]) -> tuple[list[Layer], list[str]]:
    """The layers that were asked for, and the blocks among the model's modules that do not run."""
    modules = watchable(model)
    ran = []
    for key in first.leaves_done:
        path, call, side = key
        if side == "out":
            kind = type(modules[path]).__name__
            reason = "" if key in first.shapes else "what it gives is no tensor of floats"
            field_type = first.field_types.get(key)
            ran.append(Layer(path, call, kind, first.depth(key), reason=reason, field_type=field_type))
    if layers == "all":
        return [layer for layer in ran if type(modules[layer.path]) not in CONTAINERS], []
    called = {layer.path for layer in ran}
    if layers == "blocks":
        blocks = _block_paths(model)
        silent_blocks = [path for path in blocks if path not in called]
        if len(silent_blocks) == len(blocks):
            blocks = [path for path in called if not has_parts(modules[path])]
        return [layer for layer in ran if layer.path in blocks], silent_blocks
    by_name = {layer.name: layer for layer in ran}
    if isinstance(layers, str):
        chosen = [layer for layer in ran if re.fullmatch(layers, layer.name)]
        if not chosen:
            raise ValueError(unknown("layer whose whole name matches", layers, by_name))
        return chosen, []
    for name in layers:
        if name not in by_name and name not in called:
            why = ""
            if is_sealed(model):
                why = f"; {SEALED}"
            elif name in modules:
                why = "; that module exists but is not called (a hook does not see module.forward(x))"
            raise ValueError(unknown("layer", name, by_name) + why)
    return [layer for layer in ran if layer.name in layers or layer.path in layers], []


def _block_paths(model: nn.Module) -> list[str]:
    """Outermost composite modules that stand in a container; else composite children of the root; else leaf modules."""
    modules = watchable(model)
    blocks: list[str] = []
    children: list[str] = []
    for path, module in modules.items():
        parent, _, _ = path.rpartition(".")
        if has_parts(module) and type(module) not in CONTAINERS:
            is_inside = any(path.startswith(f"{block}.") for block in blocks)
            if not is_inside and type(modules.get(parent, model)) in CONTAINERS:
                blocks.append(path)
            if not parent:
                children.append(path)
    leaves = [path for path, module in modules.items() if not has_parts(module)]
    return blocks or (children if len(children) > 1 else leaves)


def _ends(model: nn.Module, first: Trace, outputs: Sequence[Output], head: Key | None) -> list[Layer]:
    """The layer `latent` and those of the outputs."""
    kind = type(model).__name__
    at_outputs = []
    for number, output in enumerate(outputs, 1):
        reason = "" if output.key in first.shapes else output.reason
        at_outputs.append(Layer("", number, kind, 1.0, "output", "out", reason=reason, output=output))
    if head is not None:
        path, call, _ = head
        head_kind = type(model.get_submodule(path)).__name__
        return [Layer(path, call, head_kind, first.depth(head), "latent", "in"), *at_outputs]
    features = [layer for layer in at_outputs if layer.output and layer.output.kind == "features"]
    latent = replace([*features, *at_outputs][0], role="latent")
    has_scores = latent.output and latent.output.kind in ("scores", "probabilities", "independent")
    if has_scores and len(first.shapes[latent.key]) == 2:
        reason = "the model gives class scores, but no module was found whose output they are; pass head='path of the classifier'"
        if is_sealed(model):
            reason = f"the model gives class scores, and {SEALED}"
        latent = replace(latent, reason=reason)
    return [latent, *at_outputs]


def _with_one_position(experiments: Experiments, output: Output, kind: str | None) -> Output:
    """The output, read as (b, k) where it has one position, or where somebody said that it has class scores."""
    layout, _ = experiments.layout(output.key, "output")
    has_one = layout is not None and layout.grid == (1, 1)
    if has_one or kind in ("scores", "probabilities"):
        return replace(output, batch=experiments.batch_axis(output.key))
    return output


def _with_places(layer: Layer, output: Output, asked_kind: str | None, raw: Any) -> Output:
    """The output, of a dense kind where it is a map that nobody named otherwise; ValueError for answers of several channels."""
    if asked_kind == "independent" and layer.grid != (1, 1) and layer.channels > 1:
        shape = shape_text(output.select(raw).shape)
        raise ValueError(
            f"output='independent' needs {NEEDS['independent']}, got {shape} with {layer.channels} channels"
        )
    if math.prod(layer.grid) <= 1:
        return output
    if asked_kind is None and own_name(output.entry) not in FEATURES:
        output = replace(output, kind="dense")
    if output.kind == "dense" and layer.channels > 1:
        of_places = layer.read(output.select(raw)).flatten(0, 1)
        if is_distribution(of_places):
            return replace(output, kind="dense probabilities")
    return output


def _layouts_by_hand(
    layouts: Mapping[str, str], first: Trace, layers: Sequence[Layer]
) -> dict[str, tuple[Layout, str]]:
    """The layouts that were given, and why maps have no value by them; ValueError for one that does not fit."""
    by_name = {layer.name: layer for layer in layers}
    by_hand = {}
    for name, text in layouts.items():
        if name not in by_name:
            raise ValueError(f"layouts: {unknown('layer', name, by_name)}")
        if by_name[name].reason:
            raise ValueError(f"layouts[{name!r}]: {by_name[name].reason}")
        shape = first.shapes[by_name[name].key]
        try:
            layout = parse_layout(text, shape)
        except ValueError as error:
            raise ValueError(f"layouts[{name!r}]: {error}") from None
        if shape[layout.batch] != first.images:
            raise ValueError(
                f"layouts[{name!r}]: the layout {text!r} has the images on axis {layout.batch}, but for {first.images} images "
                f"the output has shape {shape_text(shape)}"
            )
        by_hand[name] = layout, "its layout says nothing of places" if layout.grid == UNKNOWN else ""
    return by_hand
