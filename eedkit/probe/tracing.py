"""One forward pass with every module watched: what ran, in which order, and what shapes it gave and took.

Knows modules and hooks, nothing of layouts. Keeps shapes; what a caller wants of the tensors is taken inside the hooks.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from eedkit.errors import Undefined
from eedkit.probe.fields import field_type_of
from eedkit.probe.outputs import Output, entries, first_tensor

Key = tuple[str, int, Literal["in", "out", "returned"]]
"""A module's path, the number of its call in a forward pass, "in" or "out"; or an entry of the output, 1, "returned"."""
Call = Callable[[nn.Module, Tensor], Any]
"""The forward pass, as `call(model, images)`."""
USUAL = (TypeError, IndexError, KeyError, AttributeError, NotImplementedError, AssertionError, RuntimeError)
"""What torch and Python raise where a model is given what it does not take."""
OF_WEIGHTS = {"_packed_params", "parametrizations"}
"""Modules in which a quantised or parametrised module keeps its weights."""
SMALL = 2**16
"""Numbers for one image up to which outputs are compared from one pass to the next."""


def plain_call(model: nn.Module, images: Tensor) -> Any:
    """The forward pass of a model that takes images alone."""
    return model(images)


@contextmanager
def watch(
    model: nn.Module, wanted: Iterable[tuple[str, str]], see: Callable[[Key, Any], Any]
) -> Iterator[Callable[[], None]]:
    """Within the block calls of modules are shown to `see`, for every wanted (path, "in" or "out").

    What `see` returns takes the place of a module's output, but for None. Gives `begin`, which counts calls anew and must be
    called before every forward pass but the first. Hooks are gone when the block is left, also by an exception.
    """
    calls = Counter[tuple[str, str]]()

    thread = threading.get_ident()

    def show(path: str, side: Literal["in", "out"], given: Any) -> Any:
        if threading.get_ident() != thread:  # another thread uses the model
            return None
        calls[path, side] += 1
        return see((path, calls[path, side], side), given)

    def before(path: str, _module: nn.Module, args: tuple, kwargs: dict) -> None:
        show(path, "in", (*args, *kwargs.values()))

    def after(path: str, _module: nn.Module, _args: tuple, output: Any) -> Any:
        return show(path, "out", output)

    hooks = []
    try:
        for path, side in wanted:
            module = model.get_submodule(path)
            if side == "in":
                hooks.append(module.register_forward_pre_hook(partial(before, path), with_kwargs=True))
            else:
                hooks.append(module.register_forward_hook(partial(after, path)))
        yield calls.clear
    finally:
        for hook in hooks:
            hook.remove()


def is_sealed(model: nn.Module) -> bool:
    """Whether no hook sees what is inside: a ScriptModule, or what torch.export made, whose graph calls no module."""
    if isinstance(model, fx.GraphModule):
        called = {node.target for node in model.graph.nodes if node.op == "call_module"}
        return called <= {"_guards_fn"}
    return isinstance(model, torch.jit.ScriptModule)


def watchable(model: nn.Module) -> dict[str, nn.Module]:
    """The modules inside that hooks can see, by path, but for those of weights."""
    modules = {} if is_sealed(model) else dict(model.named_modules())
    found = {}
    for path, module in modules.items():
        if path and not isinstance(module, torch.jit.ScriptModule) and OF_WEIGHTS.isdisjoint(path.split(".")):
            found[path] = module
    return found


def has_parts(module: nn.Module) -> bool:
    """Whether a module is made of others; those of its weights are none."""
    return any(name not in OF_WEIGHTS for name, _ in module.named_children())


@dataclass
class Trace:
    """What one forward pass showed, up to the error that ended it, if one did.

    `leaves_done` has every call in order, with the number of leaf modules' calls until then; `shapes` those of what holds a
    tensor of floats; `takes_images` the inputs that are the images as they are; `raw` is what the model gave.
    """

    images: int
    leaves_done: dict[Key, int] = field(default_factory=dict)
    shapes: dict[Key, tuple[int, ...]] = field(default_factory=dict)
    field_types: dict[Key, Any] = field(default_factory=dict)
    takes_images: set[Key] = field(default_factory=set)
    raw: Any = None
    error: Exception | None = None

    def depth(self, key: Key) -> float:
        """Which part of the leaf modules had run; half a call more for an input."""
        leaves = max(next(reversed(self.leaves_done.values())), 1)
        return (self.leaves_done[key] + (0.5 if key[2] == "in" else 0.0)) / leaves

    def add(self, output: Output) -> Tensor:
        """Take an output of the model into account, and give it; Undefined where there is none."""
        z = output.select(self.raw)
        self.shapes[output.key] = tuple(z.shape)
        self.field_types[output.key] = field_type_of(self.raw)
        return z


@torch.no_grad()
def trace(
    model: nn.Module,
    images: Tensor,
    call: Call,
    *,
    outputs: Sequence[Output] = (),
    on_tensor: Callable[[Key, Tensor], None] | None = None,
) -> Trace:
    """One forward pass; `on_tensor` gets what modules take and give, and these outputs of the model."""
    images = images.clone()  # the model may work in place
    found = Trace(len(images))
    modules = watchable(model)
    leaves = {path for path, module in modules.items() if not has_parts(module)}
    leaf_calls = 0

    def see(key: Key, given: Any) -> None:
        nonlocal leaf_calls
        leaf_calls += key[2] == "out" and key[0] in leaves
        found.leaves_done[key] = leaf_calls
        z = first_tensor(given)
        if z is None:
            return
        found.shapes[key] = tuple(z.shape)
        found.field_types[key] = field_type_of(given)
        if z.data_ptr() == images.data_ptr() and z.shape == images.shape:
            found.takes_images.add(key)
        if on_tensor is not None:
            on_tensor(key, z)

    with watch(model, [(path, side) for path in modules for side in ("in", "out")], see):
        try:
            found.raw = call(model, images)
            for output in outputs:
                z = found.add(output)
                if on_tensor is not None:
                    on_tensor(output.key, z)
        except Undefined:
            pass  # the output holds other things in this pass
        except Exception as error:
            found.error = error
    return found


def first_trace(
    model: nn.Module, images: Tensor, call: Call, on_tensor: Callable[[Key, Tensor], None]
) -> tuple[Trace, bool]:
    """The pass on two of the user's images, and whether they were channels-last, in which convolutions are fastest.

    What the model raises of its own is raised; what torch and Python say of wrong arguments is a ValueError with a remedy.
    """
    if images.device.type in ("cpu", "cuda"):
        found = trace(model, images.contiguous(memory_format=torch.channels_last), call, on_tensor=on_tensor)
        if found.error is None:
            return found, True
    found = trace(model, images.contiguous(), call, on_tensor=on_tensor)
    if isinstance(found.error, USUAL):
        shape = " × ".join(map(str, images.shape[1:]))
        raise ValueError(
            f"the model does not run on two images of {shape}: {type(found.error).__name__}: {found.error}. If it wants more "
            "than images, or is called otherwise, say how: call=lambda model, images: model(images, …)"
        ) from found.error
    if found.error is not None:
        raise found.error
    return found, False


def first_noisy_module(model: nn.Module, images: Tensor, call: Call = plain_call) -> str | None:
    """The path of the first module that gives another output when the same images come again.

    Empty where only what the model makes of them is another; None where all repeat.
    """
    values: dict[Key, Tensor] = {}
    noisy: list[str] = []

    def keep(key: Key, z: Tensor) -> None:
        if key[2] == "out" and z.numel() <= len(images) * SMALL:
            values[key] = z.clone()

    def compare(key: Key, z: Tensor) -> None:
        if key in values and not _is_same(z, values[key]):
            noisy.append(key[0])

    once = entries(trace(model, images, call, on_tensor=keep).raw)
    again = entries(trace(model, images, call, on_tensor=compare).raw)
    if noisy:
        return noisy[0]
    is_repeated = all(path in again and _is_same(z, again[path]) for path, z in once.items())
    return None if is_repeated else ""


def _is_same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-6, equal_nan=True)
