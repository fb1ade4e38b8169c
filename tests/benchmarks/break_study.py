"""Breaks a small study in every way and counts what is lost: every file operation killed or failing, every file flipped and cut.

python tests/benchmarks/break_study.py            # everything, some minutes
python tests/benchmarks/break_study.py --every 20 # every 20th kill and byte
"""

import argparse
import os
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
import xarray as xr

import eedkit as ek
from eedkit.study.files import StoreError

EVENTS = ("open", "os.listdir", "os.mkdir", "os.remove", "os.rename", "os.scandir", "os.truncate")
KILLED = 9
REACHED = Path("reached")
"""Made by an operation that fails."""


def study(store: Path) -> ek.Study:
    """Three models, two groups, five blocks each."""
    specs = [f"recipe:random?seed={seed}&widths=4,8" for seed in range(3)]
    return ek.Study(models=specs, data=["digits/test?n=40"], groups=["C4", "flip"], store=store, block=8)


def in_a_child(work: Callable[[], None]) -> int:
    """The exit code of a forked process that does the work."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def broken_at(store: Path, operation: int, *, is_killed: bool) -> Callable[[], None]:
    """The study, of which a file operation in its store kills its process, or fails as on a full disk."""

    def work() -> None:
        count = 0

        def hook(event: str, arguments: tuple) -> None:
            nonlocal count
            if event in EVENTS and arguments and str(arguments[0]).startswith(str(store)):
                count += 1
                if count == operation and is_killed:
                    os._exit(KILLED)
                if count == operation:
                    REACHED.touch()
                    raise OSError(28, "No space left on device")

        sys.addaudithook(hook)
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        study(store).run(progress=False)

    return work


def results(store: Path) -> dict[str, xr.Dataset]:
    """Every Dataset in a store, without what says when and by whom it was made."""
    return {leaf.path: leaf.to_dataset().drop_attrs(deep=False) for leaf in ek.open(store).leaves}


def is_identical(found: dict[str, xr.Dataset], wanted: dict[str, xr.Dataset]) -> bool:
    """Whether all names, coordinates and values are the same."""
    return found.keys() == wanted.keys() and all(found[path].identical(wanted[path]) for path in wanted)


def stop(folder: Path, every: int, *, is_killed: bool) -> None:
    """Kill or fail at every file operation, run again, compare."""
    whole = folder / "whole"
    if not whole.exists():
        study(whole).run(progress=False)
    wanted = results(whole)
    counts: Counter[str] = Counter()
    operation = 1
    while True:
        store = folder / "stopped"
        shutil.rmtree(store, ignore_errors=True)
        REACHED.unlink(missing_ok=True)
        code = in_a_child(broken_at(store, operation, is_killed=is_killed))
        if code != KILLED and not REACHED.exists():
            break
        counts["killed" if is_killed else "failed calls"] += 1
        counts["went on"] += code == 0
        before = {path.name for path in store.rglob("block-*.npz")}
        resumed = in_a_child(lambda store=store: study(store).run(progress=False)) == 0
        counts["resumed"] += resumed
        counts["identical"] += resumed and is_identical(results(store), wanted)
        counts["blocks lost"] += len(before - {path.name for path in store.rglob("block-*.npz")})
        counts["rests"] += len(list(store.rglob("*.partial"))) + len(list(store.rglob("running-*")))
        operation += every
    print(dict(counts), flush=True)
    stopped = counts["killed"] + counts["failed calls"]
    assert stopped == counts["resumed"] == counts["identical"] > 0
    assert counts["blocks lost"] == counts["rests"] == 0


def harm(folder: Path, every: int) -> None:
    """Flip a bit of every byte, and cut at every byte, of every file: named, harmless, or unnoticed."""
    store = folder / "whole"
    wanted = results(store)
    counts: Counter[str] = Counter()
    for path in sorted(path for path in store.rglob("*") if path.is_file()):
        content = path.read_bytes()
        # the middles of large files are alike
        places = range(0, len(content), every if path.suffix == ".json" else 50 * every)
        for place in places:
            flipped = content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :]
            for kind, harmed in (("flips", flipped), ("cuts", content[:place])):
                path.write_bytes(harmed)
                try:
                    outcome = "harmless" if is_identical(results(store), wanted) else "UNNOTICED"
                except StoreError as error:
                    outcome = "named" if path.name in str(error) else "UNNAMED"
                counts[f"{kind} {outcome}"] += 1
        path.write_bytes(content)
    print(dict(counts))
    assert not counts["flips UNNOTICED"] + counts["cuts UNNOTICED"] + counts["flips UNNAMED"] + counts["cuts UNNAMED"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1)
    step = parser.parse_args().every
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # threads do not survive a fork
    with tempfile.TemporaryDirectory() as made:
        REACHED = Path(made, "reached")
        stop(Path(made), step, is_killed=True)
        stop(Path(made), step, is_killed=False)
        harm(Path(made), step)
