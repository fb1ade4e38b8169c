"""Which executed notebooks need not be run again: what went into one, and what it left, stand in its metadata.

Knows files and checksums. Costs tenths of a second for a report: a look at every file of the stores, none is read.
"""

import hashlib
import json
import re
from dataclasses import replace
from functools import cache
from glob import escape
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from stat import S_ISREG
from typing import Any

import nbformat

from eedkit.report.kernel import Run, tags

KEY = "eedkit_report"
"""Where it stands in the executed notebook's metadata."""
_BELOW_OUT = re.compile(r"""\{out\}/([^"'\n]+)["']""")


def remember(run: Run, began: float) -> None:
    """Write into an executed notebook what it came from and what it left.

    Of what was there before it began (a store that several notebooks share), only that it is there. One that starts last reads
    what the others leave, so there every file counts.
    """
    notebook = nbformat.read(run.executed, as_version=4)
    files = {}
    for name, stamp in _files(run).items():
        is_own = stamp[1] >= began * 1e9
        files[name] = stamp if is_own or run.start == "last" else None
    notebook.metadata[KEY] = {
        "inputs": inputs(run),
        "files": files,
        "seconds": run.seconds,
        "facts": dict(run.facts or {}),
    }
    nbformat.write(notebook, run.executed)


def kept(run: Run) -> Run | None:
    """The run as it was, if nothing that it came from or left has changed since; else nothing."""
    try:
        known = nbformat.read(run.executed, as_version=4).metadata[KEY]
    except Exception:
        # none, or not ours, or half written: it is run again, whatever the reason
        return None
    if known["inputs"] != inputs(run):
        return None
    files = _files(run)
    for name, stamp in known["files"].items():
        if name not in files or stamp not in (None, files[name]):
            return None
    if run.start == "last" and files.keys() != known["files"].keys():
        return None
    return replace(run, state="kept", seconds=known["seconds"], facts=known["facts"])


def inputs(run: Run) -> str:
    """A checksum of parameters, source, eedkit, versions, and of the files that a parameter names."""
    cells = [[cell.cell_type, cell.source, tags(cell)] for cell in run.notebook.cells]
    named = {}
    for text in _texts(run.parameters):
        path = text.partition("?")[0].removeprefix("file:")
        if path.strip("./") and text != run.parameters["out"]:
            named[text] = _state(Path(path))
    everything = [run.parameters, cells, named, _package(), _versions()]
    return hashlib.sha256(json.dumps(everything, sort_keys=True, default=str).encode()).hexdigest()


def names_below_out(run: Run) -> list[str]:
    """What a notebook's code names as `f"{out}/…"`, with the parameters put in: its figures, its stores, its verdicts."""
    code = "\n".join(cell.source for cell in run.notebook.cells if cell.cell_type == "code")
    names = []
    for name in _BELOW_OUT.findall(code):
        filled = re.sub(r"\{(\w+)\}", lambda braces: str(run.parameters.get(braces[1], braces[0])), name)
        names.append(filled)
    return list(dict.fromkeys(names))


def _files(run: Run) -> dict[str, list[int]]:
    """Size and time of the files below what the notebook names; not of those that say who is at work on what."""
    out = run.executed.parent
    stamps = {}
    for name in names_below_out(run):
        place = out / name
        for path in [place, *place.parent.glob(f"{escape(place.name)}.*")]:
            for file, stamp in _state(path).items():
                if not Path(file).name.startswith(("running", ".")):
                    stamps[file] = stamp
    return stamps


def _state(path: Path) -> dict[str, list[int]]:
    """Size and time of a file, or of all files below a folder; nothing where there is neither."""
    stamps = {}
    try:
        for file in [path, *path.rglob("*")]:
            about = file.stat()
            if S_ISREG(about.st_mode):
                stamps[str(file)] = [about.st_size, about.st_mtime_ns]
    except (OSError, ValueError):
        pass  # there is nothing of that name, or it can be no name
    return stamps


def _texts(value: Any) -> list[str]:
    """The texts in a parameter, a list or dictionary of them."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        texts = []
        for part in value:
            texts += _texts(part)
        return texts
    return []


@cache
def _package() -> str:
    """A checksum of eedkit's code, and of the names and sizes of the bundled images."""
    package = Path(__file__).resolve().parents[1]
    content = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        content.update(str(file.relative_to(package)).encode())
        content.update(file.read_bytes())
    for data in (package / "_data", package.parent / "data"):
        for file in sorted(data.rglob("*.parquet")):
            content.update(f"{file.name} {file.stat().st_size}".encode())
    return content.hexdigest()


@cache
def _versions() -> dict[str, str]:
    """Of every library that eedkit asks for, but those of its developers."""
    versions = {}
    for requirement in requires("eedkit") or []:
        name = re.split(r"[^\w.-]", requirement)[0]
        if 'extra == "dev"' in requirement or name == "eedkit":
            continue
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = ""
    return versions
