"""The core alone: seven dependencies measure, and what needs an extra names it."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CORE = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}

PREPARE = """
import sys
from importlib.machinery import PathFinder

class CoreAlone(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.split(".")[0] in allowed or name.startswith("_sysconfigdata"):  # Python's own, under a name for each build
            return PathFinder.find_spec(name, path, target)

sys.meta_path = [finder for finder in sys.meta_path if finder is not PathFinder] + [CoreAlone]
import torch, eedkit as ek
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(50, 3))
images = torch.rand(4, 1, 5, 5)
"""


def installed_with(packages):
    """The packages, and all that pip installs because of them."""
    found = set()
    to_do = list(packages)
    while to_do:
        package = to_do.pop()
        if package in found:
            continue
        found.add(package)
        try:
            needed = map(Requirement, requires(package) or [])
        except PackageNotFoundError:  # of another platform, or another version of it will do
            continue
        to_do += [canonicalize_name(one.name) for one in needed if not one.marker or one.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def in_the_core():
    """Runs code where nothing can be imported but the standard library, eedkit and what its dependencies bring."""
    packages = installed_with(CORE)
    allowed = {"eedkit", *sys.stdlib_module_names}
    for module, distributions in packages_distributions().items():
        if packages & {canonicalize_name(distribution) for distribution in distributions}:
            allowed.add(module)

    def run(code):
        whole = f"allowed = {sorted(allowed)}\n{PREPARE}\n{code}"
        done = subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run


def test_the_core_depends_on_seven_libraries():
    assert {"lazy-loader", "numpy", "pandas", "scipy", "torch", "tqdm", "xarray"} == CORE


def test_the_core_measures_summarises_and_tracks(in_the_core):
    values, rows, steps, metrics, refused = in_the_core(
        """
from eedkit.probe import sums
sums.WORTH_COMPILING = 0  # so that the compiled loop is asked for
ds = ek.measure(net, images, group="C4", progress=False)
found = ds[["channelwise", "latent", "softmax"]].sel(layer=["0", "latent"])
print(*(float(found[name].mean()) for name in found))
print(len(ek.summarise(ds)), len(ek.summarise(ds, full=True)))
tracker = ek.Tracker(net, images, group="C4")
tracker.step(0)
tracker.step(1)
print(tracker.results.sizes["step"], repr(ds.eed).count("4 elements of C4"))
print(len(ek.available.metrics()), len(ek.available.groups()))
try:
    import matplotlib
except ModuleNotFoundError as error:
    print(error)
"""
    )
    channelwise, latent, softmax = map(float, values.split())
    assert -1 <= channelwise < 0
    assert -1 <= latent < 0
    assert softmax > 0
    short, full = rows.split()
    assert short == full
    assert int(short) > 3
    assert steps == "2 1"
    assert all(int(number) > 3 for number in metrics.split())
    assert refused == "No module named 'matplotlib'"


EXTRA_FOR = {
    "ek.plots.depth_profile": "plots",
    "ek.card": "plots",
    "ek.lab.models": "lab",
    "ek.available.images()": "lab",
    "ek.available.recipes()": "lab",
    "ek.Tracker(net, images, group='C4').callback()": "lightning",
    "ek.Study": "study",
    "ek.measure(net, images, group='C4', progress=False).eed.to_zarr('a.zarr')": "study",
    "ek.open('a.zarr')": "study",
    "ek.report.notebooks": "notebooks",
}


def test_a_missing_extra_is_named(in_the_core, tmp_path):
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "zarr.json").write_text("{}")
    lines = in_the_core(
        f"""
import os
os.chdir({str(tmp_path)!r})
for use in {list(EXTRA_FOR)}:
    try:
        eval(use)
        print(use, "worked")
    except ModuleNotFoundError as error:
        print(error)
"""
    )
    for (use, extra), line in zip(EXTRA_FOR.items(), lines, strict=True):
        expected = rf"\w+ is not installed; it comes with an extra: pip install 'eedkit\[{extra}\]'"
        assert re.fullmatch(expected, line), (use, line)
