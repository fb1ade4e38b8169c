"""How weights get into a model: drawn with a seed, read from a file or downloaded; never by running a pickle.

Knows files and torch, not which architectures there are.
"""

import io
import os
import pickle
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

CONVERT = "write such a file by safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
TIMEOUT = 10
"""Seconds without an answer after which a server counts as out of reach."""
_TENSORS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def fill(model: nn.Module, path: Path, content: bytes, *, by_order: bool = False) -> None:
    """Put the state dict in a file's content into a model, as tensors alone; ValueError where the two do not fit.

    With `by_order` the tensors' names may be other than the model's, but for their last parts (weight, running_mean, …).
    """
    try:
        if path.suffix == ".safetensors":
            state = load(content)
        else:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if by_order:
            state = _renamed(state, list(model.state_dict()))
        model.load_state_dict(state)
    except (SafetensorError, pickle.UnpicklingError, EOFError, TypeError, RuntimeError) as error:
        few = "; ".join(line.strip()[:200] for line in str(error).splitlines()[:5])
        raise ValueError(
            f"{path} must hold the state dict of its architecture, as model= and classes= give it: {few}; {CONVERT}"
        ) from error


def _renamed(state: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """The tensors by other names in the same order; TypeError where these are not names of the same kinds."""
    for name, wanted in zip_longest(state, names, fillvalue=""):
        if name.rpartition(".")[2] != wanted.rpartition(".")[2]:
            raise TypeError(
                f"expected its tensors in the model's order, {wanted or 'no more'}, got {name or 'no more'}"
            )
    return dict(zip(names, state.values(), strict=True))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within the block weights are drawn with the seed; torch's random state is left as found."""
    with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU: no GPU's state need be touched
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def fetching(what: str | None, instead: str) -> Iterator[None]:
    """Within the block downloads are read as tensors alone, and where there is no network the error says what to do."""
    # its client's own errors, which are no OSError
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

    before = os.environ.get(_TENSORS_ONLY)
    patience = socket.getdefaulttimeout()
    # torchvision downloads by torch.hub, whose own default runs any pickle and waits without end
    os.environ[_TENSORS_ONLY] = "1"
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    except (OSError, HTTPError) as error:
        raise ConnectionError(f"cannot fetch {what} ({error}); where there is a network, {instead}") from error
    finally:
        socket.setdefaulttimeout(patience)
        os.environ.pop(_TENSORS_ONLY, None)
        if before is not None:
            os.environ[_TENSORS_ONLY] = before


def ask_hub_once(repository: str) -> None:
    """Raise where weights are not cached and the hub is out of reach: its client would try for minutes to download them."""
    import huggingface_hub

    for file in ("model.safetensors", "pytorch_model.bin"):
        if isinstance(huggingface_hub.try_to_load_from_cache(repository, file), str):
            return
    huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(repository, "config.json"), timeout=TIMEOUT)
