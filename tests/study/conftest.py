"""Small studies that run in a second or two, in this process and in processes of their own."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import xarray as xr
import yaml

import eedkit as ek

WIDTHS = "widths=4,8"
MODELS = [f"recipe:random?seed={seed}&{WIDTHS}" for seed in range(3)]

CHILD = """
import resource, sys
import eedkit as ek
from eedkit.study import workers

measured = workers._measured
def counted(work, module):
    with open(sys.argv[2], "a") as log:
        log.write(f"{work.cell.path} {work.block}\\n")
    return measured(work, module)
workers._measured = counted

if __name__ == "__main__":
    study = ek.Study.from_yaml(sys.argv[1])
    if len(sys.argv) > 3:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
    study.run(progress=False)
"""


SETTINGS = {"models": MODELS, "data": ["digits/train"], "groups": ["C4"], "block": 256}
"""Three models, 1,400 images in six blocks, one group: eighteen blocks of about a tenth of a second."""


@pytest.fixture
def settings(tmp_path) -> dict:
    return SETTINGS | {"store": str(tmp_path / "study")}


@pytest.fixture
def child(tmp_path, settings):
    """Starts a process that runs the study; the log has a line for every block that was begun."""
    script, file = tmp_path / "child.py", tmp_path / "study.yaml"
    script.write_text(CHILD)

    def start(*arguments: str, **changes) -> subprocess.Popen:
        file.write_text(yaml.safe_dump(settings | changes))
        command = [sys.executable, str(script), str(file), str(tmp_path / "log"), *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def begun(folder: Path) -> list[str]:
    log = folder / "log"
    return log.read_text().splitlines() if log.exists() else []


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> tuple[Path, xr.Dataset, float]:
    """The store of the study to which nothing happened, what it gave, and its seconds per block."""
    store = tmp_path_factory.mktemp("whole") / "study"
    ek.Study(**SETTINGS | {"data": ["digits/test"]}, store=store.with_name("warm")).run(progress=False)
    start = time.perf_counter()
    found = ek.Study(**SETTINGS, store=store).run(progress=False).load()
    return store, found, (time.perf_counter() - start) / 18


@pytest.fixture
def uninterrupted(whole) -> xr.Dataset:
    return whole[1].copy()


@pytest.fixture
def done(whole, settings) -> ek.Study:
    """The study, done, in a store of the test's own."""
    shutil.copytree(whole[0], settings["store"])
    return ek.Study(**settings)
