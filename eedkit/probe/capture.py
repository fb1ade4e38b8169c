"""Taps on a model's layers: which there are, in which order they run, and what flows out of them.

Knows torch modules, nothing of groups or metrics. Leaves the model exactly as found; holds only what `reduce` returns.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from eedkit.errors import unknown

CONTAINERS = (nn.Sequential, nn.ModuleList)


@dataclass(frozen=True)
class Layer:
    """One call of one module: a module that runs twice in a forward pass is two layers, the second named `path#2`.

    Parameters
    ----------
    path : of the module in the model
    call : 1 for the module's first call in a forward pass
    kind : the module's class
    shape : of its output (of the head's input, for the latent layer), without the batch
    depth : which part of the leaf modules' calls was done when it ran, 0 to 1; the head's input lies half a call further,
        since what leads to it may be no module
    role : "module"; "latent" for the head's input; "output" for the model's output
    """

    path: str
    call: int
    kind: str
    shape: tuple[int, ...]
    depth: float
    role: Literal["module", "latent", "output"] = "module"

    @property
    def name(self) -> str:
        """The label on the dimension `layer`."""
        if self.role != "module":
            return self.role
        return self.path if self.call == 1 else f"{self.path}#{self.call}"


@contextmanager
def tap(
    model: nn.Module, layers: Sequence[Layer], reduce: Callable[[Layer, Tensor], Any]
) -> Iterator[dict[Layer, Any]]:
    """Within the block, every forward pass puts `reduce(layer, output)` into the returned dict.

    `reduce` runs inside the hook, before a later in-place operation can change what it saw. Tuples, lists and dicts give
    their first tensor. Hooks are gone when the block is left, also by an exception.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> with tap(net, [Layer("0", 1, "Linear", (3,), 0.5)], lambda layer, z: z.shape) as seen:
    ...     _ = net(torch.zeros(4, 2))
    >>> list(seen.values())
    [torch.Size([4, 3])]
    """
    seen: dict[Layer, Any] = {}
    calls, entered = Counter[str](), Counter[str]()
    wanted = {(layer.path, layer.call): layer for layer in layers if layer.role != "latent"}

    def on_output(path: str) -> Callable:
        def hook(_module: nn.Module, _args: tuple, output: Any) -> None:
            calls[path] += 1
            layer = wanted.get((path, calls[path]))
            if layer is not None:
                seen[layer] = reduce(layer, first_tensor(output))

        return hook

    def on_input(layer: Layer) -> Callable:
        def hook(_module: nn.Module, args: tuple, kwargs: dict) -> None:
            entered[layer.path] += 1
            if entered[layer.path] == layer.call:
                seen[layer] = reduce(layer, first_tensor((*args, *kwargs.values())))

        return hook

    def start(*_: Any) -> None:
        calls.clear()
        entered.clear()

    hooks = [model.register_forward_pre_hook(start)]
    try:
        for path in {path for path, _ in wanted}:
            hooks.append(model.get_submodule(path).register_forward_hook(on_output(path)))
        for layer in layers:
            if layer.role == "latent":
                head = model.get_submodule(layer.path)
                hooks.append(head.register_forward_pre_hook(on_input(layer), with_kwargs=True))
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def evaluating(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Within the block the model is in eval mode on `device`; afterwards every module's mode and the device are as before."""
    modes = {module: module.training for module in model.modules()}
    homes = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    try:
        model.eval()
        if homes and homes != {device}:
            model.to(device)
        # not inference_mode: what a module caches in here must still serve training afterwards
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        if len(homes) == 1 and homes != {device}:
            model.to(*homes)


def first_tensor(output: Any) -> Tensor:
    """The tensor that an output holds: itself, the `logits` of a dict or an object, or the first in a tuple or dict."""
    if isinstance(output, Tensor):
        return output
    if getattr(output, "logits", None) is not None:
        return output.logits
    values = output.values() if isinstance(output, dict) else output if isinstance(output, tuple | list) else ()
    for value in values:
        if isinstance(value, Tensor):
            return value
    raise TypeError(f"expected a tensor, or a tuple or dict that holds one, got {type(output).__name__}")


def find_layers(
    model: nn.Module,
    images: Tensor,
    *,
    layers: str | Sequence[str] = "blocks",
    head: str | None = None,
    latent: bool = True,
) -> list[Layer]:
    """The layers to tap in the order of their execution on `images`, then the head's input (`latent`) and the output.

    Parameters
    ----------
    layers : "blocks" (repeated blocks; a network without such: its composite children, or else its leaf modules), "all"
        (every module but containers), module paths, or a regular expression that the whole name must match
    head : path of the classifier whose input is the latent vector; found by timm's `get_classifier`, or the last Linear
    latent : whether the head's input is asked for; without it a model needs no head

    Raises
    ------
    ValueError
        A layer or head is unknown or does not run (near names are given), or the head cannot be found.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 5))
    >>> [layer.name for layer in find_layers(net, torch.zeros(1, 1, 3, 3))]
    ['0', '1', '2', 'latent', 'output']
    """
    ran, inputs, output = _execution(model, images)
    by_name = {layer.name: layer for layer in ran}
    if "latent" in by_name:
        raise ValueError("the model has a module called 'latent', the label of the head's input; rename or wrap it")
    paths = {path for path, _ in model.named_modules()}
    if layers == "all":
        chosen = [layer for layer in ran if type(model.get_submodule(layer.path)) not in CONTAINERS]
    elif layers == "blocks":
        blocks = set(_block_paths(model))
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
                silent = "; that module exists but does not run" if name in paths else ""
                raise ValueError(unknown("layer", name, by_name) + silent)
        chosen = [layer for layer in ran if layer.name in layers or layer.path in layers]
    at_output = Layer("", 1, type(model).__name__, tuple(output.shape[1:]), 1.0, "output")
    at_head = [_latent_layer(model, inputs, output, head)] if latent or head is not None else []
    return [*chosen, *at_head, at_output]


def _execution(model: nn.Module, images: Tensor) -> tuple[list[Layer], dict[str, tuple], Tensor]:
    """Every module call but the root's in order; for each module (input shape, depth, number) of its last call."""
    events: list[tuple[str, int, str, tuple, int]] = []
    inputs: dict[str, tuple] = {}
    calls, entered = Counter[str](), Counter[str]()
    leaves = 0

    def before(path: str) -> Callable:
        def hook(_module: nn.Module, args: tuple, kwargs: dict) -> None:
            tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
            entered[path] += 1
            inputs[path] = (tuple(tensors[0].shape[1:]) if tensors else (), leaves, entered[path])

        return hook

    def after(path: str) -> Callable:
        def hook(module: nn.Module, _args: tuple, output: Any) -> None:
            nonlocal leaves
            leaves += not any(module.children())
            calls[path] += 1
            try:
                z = first_tensor(output)
            except TypeError:
                return
            if z.is_floating_point() and path:
                events.append((path, calls[path], type(module).__name__, tuple(z.shape[1:]), leaves))

        return hook

    hooks = []
    try:
        for path, module in model.named_modules():
            hooks += [module.register_forward_pre_hook(before(path), with_kwargs=True)]
            hooks += [module.register_forward_hook(after(path))]
        output = first_tensor(model(images))
    finally:
        for hook in hooks:
            hook.remove()
    ran = [Layer(path, call, kind, shape, done / max(leaves, 1)) for path, call, kind, shape, done in events]
    at_input = {path: (shape, (done + 0.5) / max(leaves, 1), call) for path, (shape, done, call) in inputs.items()}
    return ran, at_input, output


def _block_paths(model: nn.Module) -> list[str]:
    """Outermost composite modules that stand in a container; else composite children of the root; else leaf modules."""
    found: list[str] = []

    def walk(module: nn.Module, path: str) -> None:
        for name, child in module.named_children():
            below = f"{path}.{name}" if path else name
            is_block = type(module) in CONTAINERS and any(child.children()) and type(child) not in CONTAINERS
            found.append(below) if is_block else walk(child, below)

    walk(model, "")
    children = [n for n, c in model.named_children() if any(c.children()) and type(c) not in CONTAINERS]
    leaves = [path for path, module in model.named_modules() if path and not any(module.children())]
    return found or (children if len(children) > 1 else leaves)


def _latent_layer(model: nn.Module, inputs: dict[str, tuple], output: Tensor, head: str | None) -> Layer:
    modules = dict(model.named_modules())
    if head is None:
        head = _find_head(model, modules, inputs, output)
    if head not in modules:
        raise ValueError(unknown("head", head, [path for path in inputs if path]))
    if head not in inputs:
        raise ValueError(f"the head {head!r} does not run in a forward pass; name one that does")
    shape, depth, call = inputs[head]
    return Layer(head, call, type(modules[head]).__name__, shape, depth, "latent")


def _find_head(model: nn.Module, modules: dict[str, nn.Module], inputs: dict[str, tuple], output: Tensor) -> str:
    if hasattr(model, "get_classifier"):
        classifier = model.get_classifier()
        paths = [path for path, module in modules.items() if module is classifier and path in inputs]
        if paths:
            return paths[0]
    linear = [path for path in inputs if isinstance(modules[path], nn.Linear)]
    if linear and modules[linear[-1]].out_features == output.shape[-1]:
        return linear[-1]
    raise ValueError(
        "found no head: no last Linear gives the model's output. Pass head='path of the classifier', whose input is the "
        "latent vector; for a network that ends in its features, measure nn.Sequential(model, nn.Identity()) with head='1'"
    )
