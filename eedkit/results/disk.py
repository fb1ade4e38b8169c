"""Zarr groups in a store: opened, whole or not at all, and written, with errors that name the store.

Knows Zarr, never what is in the groups. Costs a file per group or array that is opened. Many small arrays are read and
written together: every call into Zarr's event loop costs half a millisecond.
"""

import asyncio
import json
from collections.abc import Collection, Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr


class StoreError(ValueError):
    """A store cannot be used as asked: it is damaged, not writable, newer, or holds other settings under the same name."""


@contextmanager
def writing(store: str) -> Iterator[None]:
    """Within the block chunks that hold nothing but NaN are written too, and a failure to write names the store."""
    import zarr

    try:
        with zarr.config.set({"array.write_empty_chunks": True}):
            yield
    except OSError as error:
        raise StoreError(
            f"cannot write to {store}: {error.strerror or error}. What is marked done stays; make room or choose a place that "
            "can be written, then run again, which goes on from there"
        ) from error


def codecs() -> tuple:
    """Compression, and a checksum after it."""
    from zarr.codecs import Crc32cCodec, ZstdCodec

    return ZstdCodec(level=1), Crc32cCodec()


def open_group(store: str, path: str = "", mode: str = "r", *, whole: bool = False):
    """The Zarr group at a path of the store; None where there is none. With `whole` a chunk that is not there is a ValueError."""
    import zarr

    try:
        if whole:
            root = zarr.open_group(store, mode="r", use_consolidated=False)
            return zarr.open_group(
                _whole(root.store), path=f"{root.path}/{path}".strip("/"), mode="r", use_consolidated=False
            )
        return zarr.open_group(store, path=path, mode=mode, use_consolidated=False)
    except json.JSONDecodeError as error:
        raise StoreError(f"{store}/{path} is damaged: its zarr.json is no JSON ({error})") from error
    except zarr.errors.ContainsArrayError:
        return None
    except (FileNotFoundError, NotADirectoryError):
        return None


def read(places: Iterable[tuple[Any, Any]]) -> list[np.ndarray | ValueError]:
    """What every Zarr array holds at its selection, text as objects; a ValueError in place of what is damaged."""
    found = _together((array.async_array.getitem(place) for array, place in places), kept=ValueError)
    return [
        values.astype(object) if getattr(values, "dtype", np.dtype(int)).kind in "UT" else values for values in found
    ]


def write(places: Iterable[tuple[Any, Any, np.ndarray]]) -> None:
    """Put values into every Zarr array at its selection, chunks that hold nothing but NaN or zeros too."""
    always = {"write_empty_chunks": True}
    _together(array.async_array.with_config(always).setitem(place, values) for array, place, values in places)


def make_group(
    path: Path, attrs: Mapping, variables: Mapping[str, xr.Variable], chunks: Mapping, later: Collection[str] = ()
) -> None:
    """A new Zarr group of variables with these attributes and chunks; the values of those `later` are not written yet."""
    from zarr.api import asynchronous
    from zarr.storage import MemoryStore

    async def make(name: str, variable: xr.Variable) -> None:
        kind = variable.dtype.kind
        array = await group.create_array(
            name,
            shape=variable.shape,
            dtype=str if kind in "OU" else variable.dtype,
            chunks=chunks[name],
            compressors=codecs(),
            fill_value=np.nan if kind == "f" else None,
            attributes=_plain(variable.attrs),
            dimension_names=variable.dims,
            config={"write_empty_chunks": True},
        )
        if name not in later:
            await array.setitem(..., variable.values)

    files: dict[str, Any] = {}
    (group,) = _together([asynchronous.create_group(store=MemoryStore(files), attributes=_plain(attrs), zarr_format=3)])
    _together(make(name, variable) for name, variable in variables.items())
    for name, content in files.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.to_bytes())


def _plain(attrs: Mapping) -> dict:
    """Attributes as JSON has them, which knows no numbers of NumPy."""
    return {
        name: value.tolist() if isinstance(value, np.generic | np.ndarray) else value for name, value in attrs.items()
    }


def _together(coroutines: Iterable[Coroutine], kept: type[Exception] | tuple = ()) -> list:
    """What Zarr's coroutines give, all at once; the first error once all have ended, errors that are `kept` among the results."""
    from zarr.core.sync import sync

    async def ended() -> list:
        return await asyncio.gather(*coroutines, return_exceptions=True)

    found = sync(ended())
    for error in found:
        if isinstance(error, BaseException) and not isinstance(error, kept):
            raise error
    return found


def _whole(store):
    from zarr.storage import WrapperStore

    class Whole(WrapperStore):
        """Zarr reads a chunk that is not there as fill values; here it is an error."""

        async def get(self, key, prototype=None, byte_range=None):
            found = await super().get(key, prototype, byte_range)
            if found is None and not key.rpartition("/")[2].startswith((".z", "zarr.json")):
                raise ValueError(f"{key} is not there")
            return found

        def __reduce__(self):  # lazy values travel to other processes
            return _whole, (self._store,)

    return Whole(store)
