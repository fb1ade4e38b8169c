"""Zarr groups in a store: opened, whole or not at all, and written, with errors that name the store.

Knows Zarr, never what is in the groups. Costs a file per group that is opened.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager


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


def _whole(store):
    from zarr.storage import WrapperStore

    class Whole(WrapperStore):
        """Zarr reads a chunk that is not there as fill values; here it is an error."""

        async def get(self, key, prototype=None, byte_range=None):
            found = await super().get(key, prototype, byte_range)
            if found is None and not key.rpartition("/")[2].startswith((".z", "zarr.json")):
                raise ValueError(f"{key} is not there")
            return found

    return Whole(store)
