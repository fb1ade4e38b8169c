"""Files of a study, whose names hold the checksum of their bytes; and which process is at work on one.

Knows bytes, never what they mean. A folder is a local path or any address that fsspec knows. A file is written beside its
place and renamed; at an address that is one put.
"""

import hashlib
import json
import os
import re
import socket
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from eedkit.errors import naming_extras

NAME = re.compile(
    r"(?P<kind>study|cell|block|failed|running)(-(?P<block>\d{4,}))?(?P<flawed>\.flawed)?"
    r"\.(?P<checksum>[0-9a-f]{16})\.(npz|json)"
)
"""How our files are called. All others belong to somebody else, and are neither read nor removed."""
OLD = 24 * 3600
"""Seconds after which a process of another machine, of which we see nothing, is taken to be gone."""


class StoreError(ValueError):
    """A store cannot be used as asked: it cannot be read or written, is damaged, or holds other settings under the same names."""


class DamageError(StoreError):
    """A file does not hold what its name and place promise."""


def checksum(content: bytes) -> str:
    """16 hexadecimal digits of BLAKE2.

    >>> checksum(b"")
    'e4a6a0577479b2b4'
    """
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def this_process() -> str:
    """This process, as a text: host, number, and when it was born, since numbers are used again."""
    import psutil

    return f"{socket.gethostname()}~{os.getpid()}~{psutil.Process().create_time():.2f}"


def is_alive(text: str, since: float) -> bool:
    """Whether a process may still run; one of another machine may, until what it began at the time `since` is old."""
    import psutil

    host, number, born = text.split("~")
    if host != socket.gethostname():
        return time.time() - since < OLD
    try:
        process = psutil.Process(int(number))
        return abs(process.create_time() - float(born)) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@dataclass(frozen=True)
class Folder:
    """Checked files at an address.

    >>> import tempfile
    >>> folder = Folder(tempfile.mkdtemp())
    >>> name = folder.write("digits/cell", b"{}", "json")
    >>> name, folder.read(name), folder.names("digits")
    ('digits/cell.01e7b720ff566d53.json', b'{}', ['cell.01e7b720ff566d53.json'])
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

    def names(self, path: str = "") -> list[str]:
        """What lies directly in a folder of it, sorted; nothing where there is none, StoreError where it cannot be read."""
        place = Path(self.address, path)
        try:
            if self._remote is None:
                return sorted(os.listdir(place))
            system, root = self._remote
            system.invalidate_cache()
            return sorted(found.rpartition("/")[2] for found in system.ls(f"{root}/{path}".rstrip("/"), detail=False))
        except FileNotFoundError:
            self._refuse_dangling_link(path)
            return []
        except NotADirectoryError:
            raise StoreError(f"{place} cannot be a folder, since a file is there; choose another place") from None
        except OSError as error:
            raise _unreadable(error, str(place)) from error

    def _refuse_dangling_link(self, path: str) -> None:
        """DamageError where a part of a path is a link to something that is not there."""
        place = Path(self.address, path)
        for part in (place, *place.parents) if self._remote is None else ():
            if part.is_symlink() and not part.exists():
                raise DamageError(f"{part} is a link to something that is not there; bring it back or remove the link")

    def read(self, name: str) -> bytes:
        """The bytes of a file; DamageError where they are not those of its name."""
        try:
            if self._remote is None:
                content = Path(self.address, name).read_bytes()
            else:
                system, root = self._remote
                content = system.cat_file(f"{root}/{name}")
        except FileNotFoundError:
            self._refuse_dangling_link(name)
            raise DamageError(f"{name} in {self.address} was there and is gone; run again") from None
        except OSError as error:
            raise _unreadable(error, f"{name} in {self.address}") from error
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
            beside = place.with_name(f".{uuid.uuid4().hex[:8]}.{this_process()}.partial")
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
            with suppress(FileNotFoundError):  # it was renamed meanwhile
                written = partial.stat().st_mtime
                if not is_alive(partial.name.split(".", 2)[2].removesuffix(".partial"), written):
                    partial.unlink()


def _unreadable(error: OSError, what: str) -> StoreError:
    return StoreError(f"cannot read {what}: {error.strerror or error}; see that this user may read it, then run again")
