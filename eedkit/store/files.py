"""Files whose names hold the checksum of their bytes, written beside their place and renamed.

Knows bytes, never what they mean. A folder is a local path or any address that fsspec knows; there "renamed" is the put.
"""

import hashlib
import json
import os
import re
import uuid
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from eedkit.errors import naming_extras
from eedkit.store import process

NAME = re.compile(r"(?P<stem>[^.]+(\.\w+)?)\.(?P<checksum>[0-9a-f]{16})\.(npz|json)")


class StoreError(ValueError):
    """A store cannot be used as asked: it cannot be written, is damaged, or holds other settings under the same names."""


class DamageError(StoreError):
    """The bytes of a file are not those that its name promises."""


def checksum(content: bytes) -> str:
    """16 hexadecimal digits of BLAKE2.

    >>> checksum(b"")
    'e4a6a0577479b2b4'
    """
    return hashlib.blake2b(content, digest_size=8).hexdigest()


@dataclass(frozen=True)
class Folder:
    """Checked files at an address.

    >>> import tempfile
    >>> folder = Folder(tempfile.mkdtemp())
    >>> name = folder.write("digits/cell", b"{}", "json")
    >>> name, folder.read(name), folder.names()
    ('digits/cell.01e7b720ff566d53.json', b'{}', ['digits/cell.01e7b720ff566d53.json'])
    """

    address: str

    @cached_property
    def _remote(self) -> Any:
        """The fsspec file system and the path on it; None for a local folder."""
        if "://" not in self.address:
            return None
        with naming_extras():
            import fsspec

        return fsspec.core.url_to_fs(self.address)

    def names(self, below: str = "") -> list[str]:
        """Every file below a path in the folder, by its path in it, sorted; hidden ones are left out."""
        found = []
        if self._remote is None:
            for root, _, files in os.walk(os.path.join(self.address, below)):
                path = os.path.relpath(root, self.address).replace(os.sep, "/")
                found += files if path == "." else [f"{path}/{file}" for file in files]
        else:
            system, root = self._remote
            system.invalidate_cache()
            found = [path[len(root) :].lstrip("/") for path in system.find(f"{root}/{below}".rstrip("/"))]
        return sorted(name for name in found if not name.rpartition("/")[2].startswith("."))

    def read(self, name: str) -> bytes:
        """The bytes of a file; DamageError where they are not those of its name."""
        try:
            if self._remote is None:
                content = Path(self.address, name).read_bytes()
            else:
                system, root = self._remote
                content = system.cat_file(f"{root}/{name}")
        except FileNotFoundError:
            raise DamageError(f"{name} in {self.address} was there and is gone; run again") from None
        promised = NAME.fullmatch(name.rpartition("/")[2])
        if promised is None or promised["checksum"] != checksum(content):
            raise DamageError(f"{name} in {self.address} is damaged: its bytes are not those that its name promises")
        return content

    def write(self, stem: str, content: bytes, ending: str) -> str:
        """Write a file whole or not at all; gives its name. StoreError where the folder cannot be written."""
        name = f"{stem}.{checksum(content)}.{ending}"
        try:
            if self._remote is not None:
                system, root = self._remote
                system.pipe_file(f"{root}/{name}", content)
                return name
            place = Path(self.address, name)
            beside = place.with_name(f".{uuid.uuid4().hex[:8]}.{process.here()}.partial")
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                beside.write_bytes(content)
                beside.replace(place)
            except OSError:
                beside.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise StoreError(
                f"cannot write to {self.address}: {error.strerror or error}. What is done stays; make room or choose a place "
                "that can be written, then run again, which goes on from there"
            ) from error
        return name

    def write_json(self, stem: str, content: Any) -> str:
        """Write a value as JSON."""
        text = json.dumps(content, sort_keys=True, indent=1, default=str)
        return self.write(stem, text.encode(), "json")

    def read_json(self, name: str) -> Any:
        """The value that a file holds as JSON."""
        return json.loads(self.read(name))

    def remove(self, name: str) -> None:
        """Remove a file, if it is still there."""
        if self._remote is None:
            Path(self.address, name).unlink(missing_ok=True)
            return
        system, root = self._remote
        with suppress(FileNotFoundError):
            system.rm_file(f"{root}/{name}")

    def clean(self) -> None:
        """Remove what processes that are gone had begun to write."""
        for partial in Path(self.address).rglob(".*~*~*.partial") if self._remote is None else ():
            if not process.alive(partial.name.split(".", 2)[2].removesuffix(".partial")):
                partial.unlink(missing_ok=True)
