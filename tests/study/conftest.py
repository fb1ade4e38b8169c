"""Small studies that run in a second or two, in this process and in processes of their own."""

import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
import yaml
from made import begin
from PIL import Image
from torch import nn

import eedkit as ek
from eedkit.lab import images, models
from eedkit.study import workers
from eedkit.study.store import Cell, Store

WIDTHS = "widths=4,8"
MODELS = [f"recipe:random?seed={seed}&{WIDTHS}" for seed in range(3)]
SETTINGS = {"models": MODELS, "data": ["digits/train"], "groups": ["C4"], "block": 256}
"""Three models, 1,400 images in six blocks, one group: eighteen blocks of about a tenth of a second."""

CHILD = """
import sys
import eedkit as ek
from eedkit.study import workers

measured = workers._measured
def counted(job, places):
    with open(sys.argv[2], "a") as log:
        log.write(f"{job.cell.path} {places}\\n")
    return measured(job, places)
workers._measured = counted

if __name__ == "__main__":
    study = ek.Study.from_yaml(sys.argv[1])
    study.run(progress=False)
"""


class Net(nn.Module):
    """A small network, the same whenever it is made with the same seed."""

    def __init__(self, outputs: int = 3, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.head = nn.Linear(4, outputs)

    def forward(self, x):
        return self.head(self.features(x))


def assert_same(found, wanted):
    """Bit for bit; only where and when it was made may differ."""
    xr.testing.assert_identical(found.load().drop_attrs(deep=False), wanted.load().drop_attrs(deep=False))


def assert_equals(found: xr.Dataset, wanted: xr.Dataset, **close: float):
    """Every variable and coordinate that `wanted` has, with its attributes, by sample id; `close` gives tolerances."""
    found, wanted = found.load(), wanted.sel(sample=found.sample)
    assert set(wanted.data_vars) == set(found.data_vars)
    assert set(wanted.coords) <= set(found.coords)
    for name in set(wanted.variables) - set(close):
        xr.testing.assert_identical(found[name].variable.to_base_variable(), wanted[name].variable.to_base_variable())
    for name, tolerance in close.items():
        np.testing.assert_allclose(found[name], wanted[name], rtol=tolerance)


def measured(spec: str, data: str, group: str, **options) -> xr.Dataset:
    """A recipe measured without any study."""
    loaded = models.load(spec)
    seen = images.load(data, size=loaded.size, channels=loaded.channels)
    return ek.measure(loaded.model, seen, group=group, head=loaded.head, name=spec, progress=False, **options)


@pytest.fixture
def make(tmp_path):
    """Studies in stores of their own, of one model, twenty images and one group unless told otherwise."""
    numbers = itertools.count()

    def study(**changes) -> ek.Study:
        given = {"models": MODELS[:1], "data": ["digits/test?n=20"], "groups": ["C4"]}
        return ek.Study(**given | {"store": tmp_path / f"{next(numbers)}"} | changes)

    return study


@pytest.fixture
def computed(monkeypatch) -> list[tuple[str, int]]:
    """Model and block of whatever is measured from here on, of blocks of 256 images."""
    found, really_measured = [], workers._measured

    def noted(job, places):
        found.append((job.cell.model, places[0] // 256))
        return really_measured(job, places)

    monkeypatch.setattr(workers, "_measured", noted)
    return found


@pytest.fixture
def pictures(tmp_path) -> Path:
    """A folder of 300 small images in two classes."""
    rng = np.random.default_rng(0)
    for i in range(300):
        folder = tmp_path / "pictures" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(1, 255, (9, 9), dtype=np.uint8)).save(folder / f"{i:03}.png")
    return tmp_path / "pictures"


@pytest.fixture
def settings(tmp_path) -> dict:
    return SETTINGS | {"store": str(tmp_path / "study")}


@pytest.fixture
def child(tmp_path, settings):
    """Starts a process that runs the study; the log has a line for every block that was begun."""
    script, file = tmp_path / "child.py", tmp_path / "study.yaml"
    script.write_text(CHILD)

    def start() -> subprocess.Popen:
        file.write_text(yaml.safe_dump(settings))
        command = [sys.executable, str(script), str(file), str(tmp_path / "log")]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def files_in(store: Store, below: str = "") -> list[str]:
    """All files in a store but hidden ones, by their paths in it."""
    folder = Path(store.address)
    files = [path for path in (folder / below).rglob("*") if path.is_file() and not path.name.startswith(".")]
    return sorted(path.relative_to(folder).as_posix() for path in files)


def begun(folder: Path) -> list[str]:
    log = folder / "log"
    return log.read_text().splitlines() if log.exists() else []


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> tuple[Path, xr.Dataset]:
    """The store of the study to which nothing happened, and what it gave."""
    store = tmp_path_factory.mktemp("whole") / "study"
    return store, ek.Study(**SETTINGS, store=store).run(progress=False).load()


@pytest.fixture
def uninterrupted(whole) -> xr.Dataset:
    return whole[1].copy()


@pytest.fixture
def done(whole, settings) -> ek.Study:
    """The study, done, in a store of the test's own."""
    shutil.copytree(whole[0], settings["store"])
    return ek.Study(**settings)


@pytest.fixture
def store(tmp_path) -> Store:
    """A new store."""
    return Store(str(tmp_path / "study"))


@pytest.fixture
def cell(store) -> Cell:
    """A cell of three blocks that is begun in it."""
    cell = Cell("digits/test", "C2", "m")
    begin(store, cell)
    return cell
