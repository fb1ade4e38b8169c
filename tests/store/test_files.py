"""A file is there whole or not at all, and its name tells what its bytes must be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from eedkit.store import process
from eedkit.store.files import DamageError, Folder, StoreError, checksum


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path):
    """A folder on this disk, and one that only fsspec reaches."""
    if request.param == "local":
        yield Folder(str(tmp_path / "a b"))
        return
    import fsspec

    yield Folder("memory://a b/runs")
    fsspec.filesystem("memory").store.clear()


def test_what_is_written_is_read_and_listed(folder):
    name = folder.write("x/y/block-0001", b"12", "npz")
    assert folder.read(name) == b"12"
    assert folder.names() == [name] == folder.names("x/y")
    assert folder.names("x/z") == []
    folder.remove(name)
    folder.remove(name)
    assert folder.names() == []


def test_equal_bytes_have_one_name(folder):
    assert folder.write_json("study", {"b": 1, "a": [2]}) == folder.write_json("study", {"a": [2], "b": 1})
    assert len(folder.names()) == 1


def test_a_file_that_is_gone_is_named(folder):
    name = folder.write("block", b"12", "npz")
    folder.remove(name)
    with pytest.raises(DamageError, match=f"{name} in .* is gone"):
        folder.read(name)


def test_every_flipped_bit_and_cut_is_seen(tmp_path):
    folder = Folder(str(tmp_path))
    content = b"some bytes"
    path = tmp_path / folder.write("block", content, "npz")
    harmed = [content[:end] for end in range(len(content))] + [content + b"\0"]
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        harmed.append(bytes(flipped))
    for bytes_now in harmed:
        path.write_bytes(bytes_now)
        with pytest.raises(DamageError, match="not those that its name promises"):
            folder.read(path.name)


def test_a_file_of_another_name_is_refused(tmp_path):
    (tmp_path / "block.npz").write_bytes(b"12")
    (tmp_path / f"block.{checksum(b'1')}.npz").write_bytes(b"12")
    for name in Folder(str(tmp_path)).names():
        with pytest.raises(DamageError):
            Folder(str(tmp_path)).read(name)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match=r"cannot write to .*file: File exists\. What is done stays"):
        Folder(str(tmp_path / "file")).write("x", b"", "json")


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StoreError, match="No space left on device"):
        Folder(str(tmp_path)).write("x", b"12", "json")
    assert list(tmp_path.iterdir()) == []


def test_rests_of_dead_processes_are_removed(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    host, _, born = process.here().split("~")
    (tmp_path / f".a.{host}~{dead.stdout.strip()}~{born}.partial").write_text("half")
    (tmp_path / f".b.{process.here()}.partial").write_text("being written")
    Folder(str(tmp_path)).clean()
    assert [path.name[:3] for path in tmp_path.iterdir()] == [".b."]
    assert Folder(str(tmp_path)).names() == []


def test_a_process_lives_until_it_ends():
    host, number, born = process.here().split("~")
    assert process.alive(process.here())
    assert process.alive(f"elsewhere~{number}~{born}")
    assert not process.alive(f"{host}~{number}~{float(born) - 60}")
    child = subprocess.Popen([sys.executable, "-c", "from eedkit.store import process; print(process.here())"], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip
    here, _ = child.communicate()
    assert not process.alive(here.strip())
