"""How weights get into a model: drawn with a seed, read from a file or downloaded; never by running a pickle.

Knows files and torch, not which architectures there are. Costs one reading of the file.
"""

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

CONVERT = "write such a file by safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
_TENSORS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def fill(model: nn.Module, path: Path) -> None:
    """Read a state dict into a model, as tensors alone; ValueError where the two do not fit."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        safe = path.suffix == ".safetensors"
        model.load_state_dict(load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True))
    except (SafetensorError, pickle.UnpicklingError, EOFError, TypeError, RuntimeError) as error:
        few = "; ".join(line.strip()[:200] for line in str(error).splitlines()[:5])
        raise ValueError(
            f"{path} must hold the state dict of its architecture, as model= and classes= give it: {few}; {CONVERT}"
        ) from error


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within the block weights are drawn with the seed; torch's random state is left as found."""
    with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU: no GPU's state need be touched
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def fetching(what: str | None, instead: str) -> Iterator[None]:
    """Within the block downloads are read as tensors alone, and where there is no network the error says what to do."""
    before = os.environ.get(_TENSORS_ONLY)
    os.environ[_TENSORS_ONLY] = "1"  # torchvision downloads by torch.hub, whose own default runs any pickle
    try:
        yield
    except OSError as error:
        raise ConnectionError(f"cannot fetch {what} ({error}); where there is a network, {instead}") from error
    finally:
        os.environ.pop(_TENSORS_ONLY, None)
        if before is not None:
            os.environ[_TENSORS_ONLY] = before
