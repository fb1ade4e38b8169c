"""A model measured is a model left as found: its weights, buffers, modes and device, and the flags of the process.

Knows torch and models. Holds a copy of the weights while they are measured. One thread measures at a time, since hooks and modes
belong to the whole model and the flags to the whole process.
"""

import hashlib
import pickle
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedTensorMixin  # pyright: ignore  # it has no stub

HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
DTYPES = {"float32": torch.float32, "float64": torch.float64, **HALF}
AUTO = "auto"

_one_at_a_time = threading.RLock()
_measured: list[nn.Module] = []
"""The model that is being measured."""


@contextmanager
def left_as_found(model: nn.Module, device: torch.device, precision: str) -> Iterator[torch.dtype]:
    """Within the block the model is in eval mode on `device`; gives the type of its images.

    Other threads wait. float32 means float32 (no TF32, no autocast from outside), cuDNN is deterministic. ValueError where the
    weights have no values or another type than the precision asks for, or where the model has changed them; they are put back.
    """
    with _one_at_a_time, ExitStack() as stack:
        if _measured:
            raise ValueError("the images and call= of a measurement cannot start another one")
        stack.callback(_measured.clear)
        _measured.append(model)
        dtype = _dtype(model, precision)
        _refuse_without_values(model)
        stack.enter_context(_evaluating(model, device))
        stack.enter_context(weights_kept(model))
        stack.enter_context(_arithmetic(model, precision, device))
        yield dtype


def precision_of(model: nn.Module, precision: str) -> str:
    """The precision by name, "auto" being the type of the model's weights."""
    if precision != AUTO:
        return precision
    for parameter in model.parameters():
        if parameter.dtype in DTYPES.values():
            return str(parameter.dtype).removeprefix("torch.")
    return "float32"


def _dtype(model: nn.Module, precision: str) -> torch.dtype:
    """The type of images: that of the weights; autocast wants them and the weights as float32."""
    precision = precision_of(model, precision)
    wanted = DTYPES[precision]
    if precision in HALF and _is_autocast(model, precision):
        wanted = torch.float32
    for key, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != wanted:
            if wanted in HALF.values() and parameter.dtype == torch.float32:
                continue  # norms of a half-precision model may be float32
            name = str(wanted).removeprefix("torch.")
            raise ValueError(
                f"precision {precision!r} needs {name} weights, but {key} is {parameter.dtype}; leave precision='auto', or convert "
                f"the model with .to(torch.{name}) first"
            )
    return wanted


def _is_autocast(model: nn.Module, precision: str) -> bool:
    """Whether a half precision is asked of a model whose weights are no halves."""
    return not any(parameter.dtype == HALF[precision] for parameter in model.parameters())


def _refuse_without_values(model: nn.Module) -> None:
    for key, tensor in _tensors(model).items():
        if isinstance(tensor, UninitializedTensorMixin) or tensor.is_meta:
            raise ValueError(f"{key} has no values yet; load the weights, or run the model on a batch of images first")


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict((*model.named_parameters(), *model.named_buffers()))


@contextmanager
def _evaluating(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Within the block the model is in eval mode on `device`, uncompiled; afterwards modes and device are as before.

    A model that lies on several devices stays there.
    """
    modes = {module: module.training for module in model.modules() if hasattr(module, "training")}
    homes = {tensor.device for tensor in _tensors(model).values()}
    moves = len(homes) == 1 and homes != {device}
    try:
        with suppress(NotImplementedError):  # what torch.export gives has no modes
            model.eval()
        if moves:
            model.to(device)
        # nothing is compiled where the compiler was never imported, which would take two seconds
        is_imported = "torch._dynamo" in sys.modules
        uncompiled = torch.compiler.set_stance("force_eager") if is_imported else nullcontext()
        # not inference_mode: what a module caches in here must still serve training afterwards
        with torch.no_grad(), uncompiled:
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        if moves:
            (home,) = homes
            model.to(home)


@contextmanager
def weights_kept(model: nn.Module) -> Iterator[None]:
    """Put weights and buffers back when the block is left, and raise if those of fractions had changed."""
    before = _tensors(model)
    copies = {key: tensor.detach().clone() for key, tensor in before.items()}
    try:
        yield
    finally:
        changed = _put_back(model, before, copies)
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise ValueError(
            f"{type(model).__name__} changes its own weights as it runs ({', '.join(changed[:3])}{more}), so that no two batches "
            "are measured with the same ones; let its forward pass write to no parameter and no buffer, in eval mode at least. "
            "They were put back"
        )


def _put_back(model: nn.Module, before: dict[str, Tensor], copies: dict[str, Tensor]) -> list[str]:
    """Give the model its tensors and their values again; names those of fractions that were changed."""
    now = _tensors(model)
    changed = []
    for key, tensor in before.items():
        seen = now.get(key)
        is_same = seen is not None and _are_equal(seen.detach(), copies[key])
        if not is_same and (tensor.is_floating_point() or tensor.is_complex()):
            changed.append(key)
        if seen is not tensor:
            path, _, name = key.rpartition(".")
            module = model.get_submodule(path)
            kind = module._parameters if isinstance(tensor, nn.Parameter) else module._buffers
            kind[name] = tensor  # pyright: ignore  # a parameter where it was one
        if seen is not tensor or not is_same:
            tensor.data = copies[key]
    for key in now.keys() - before.keys():
        path, _, name = key.rpartition(".")
        delattr(model.get_submodule(path), name)
    return changed


def _are_equal(a: Tensor, b: Tensor) -> bool:
    """Whether tensors hold the same values, NaN being like NaN."""
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
        return False
    return all(torch.equal(*parts) for parts in zip(_in_bytes(a), _in_bytes(b), strict=True))


@contextmanager
def _arithmetic(model: nn.Module, precision: str, device: torch.device) -> Iterator[None]:
    """Within the block numbers are of the precision; afterwards the flags of the process are as before."""
    precision = precision_of(model, precision)
    with ExitStack() as stack:
        stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        torch.set_float32_matmul_precision("highest")
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        stack.enter_context(
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        )
        is_autocast = precision in HALF and _is_autocast(model, precision)
        half = HALF[precision] if is_autocast else None
        stack.enter_context(torch.autocast(device.type, half, enabled=is_autocast))
        yield


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside of a compiled or data-parallel one, where hooks are called and weights have their own names."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}; the images come second")
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inside = model.module
        else:
            inside = getattr(model, "_orig_mod", None)
        if not isinstance(inside, nn.Module):
            return model
        model = inside


def fingerprint(model: nn.Module) -> str:
    """A checksum of the model's class, parameters, buffers (persistent or not) and extra state: equal weights, equal value."""
    digest = hashlib.sha256(type(model).__name__.encode())
    for key, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"{key}|{tensor.dtype}|{tuple(tensor.shape)}".encode())
        digest.update(_bytes_of(tensor.detach()))
    for path, module in model.named_modules():
        has_extra_state = type(module).get_extra_state is not nn.Module.get_extra_state
        if has_extra_state:
            digest.update(path.encode() + _bytes_of(module.get_extra_state()))
        elif hasattr(module, "_packed_params"):
            digest.update(path.encode() + _bytes_of(module.state_dict()))
    return digest.hexdigest()[:16]


def _in_bytes(tensor: Tensor) -> list[Tensor]:
    """The bytes of dense tensors that hold all of a sparse, quantised or conjugated one."""
    if tensor.is_meta:
        return []
    if tensor.layout == torch.sparse_coo:
        tensor = tensor.coalesce()
        parts = [tensor.indices(), tensor.values()]
    elif tensor.layout != torch.strided:
        parts = [tensor.to_dense()]
    elif tensor.is_quantized:
        parts = [tensor.int_repr(), tensor.dequantize()]
    else:
        parts = [tensor.resolve_conj().resolve_neg()]
    return [part.contiguous().flatten().view(torch.uint8) for part in parts]


def _bytes_of(state: Any) -> bytes:
    if isinstance(state, Tensor):
        return b"".join(part.cpu().numpy().tobytes() for part in _in_bytes(state))
    try:
        return pickle.dumps(state)
    except Exception:  # what cannot be pickled is told by its kind
        return repr(type(state)).encode()
