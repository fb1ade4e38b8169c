"""The frame holds together: one list of dependencies, tested versions for all of them, only the agreed top level."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIRED = {"jupyterlab", "torch", "torchvision", "xarray", "seaborn", "papermill", "datasets"}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def name(requirement):
    return re.split(r"[\[<>=!~ ;]", requirement)[0].lower().replace("_", "-")


def dependencies():
    listed = [*PROJECT["dependencies"], *(r for extra in PROJECT["optional-dependencies"].values() for r in extra)]
    return {name(r) for r in listed} - {"eedkit"}


def test_required_packages_are_dependencies():
    assert {name(r) for r in PROJECT["dependencies"]} >= REQUIRED
    assert PROJECT["requires-python"] == ">=3.11"


def test_every_dependency_has_a_tested_version_within_its_bound():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    pins = {name(package): version for package, version in pins.items()}
    assert dependencies() <= set(pins)
    for requirement in PROJECT["dependencies"]:
        least = tuple(map(int, re.search(r">=([\d.]+)", requirement)[1].split(".")))
        assert tuple(map(int, re.findall(r"\d+", pins[name(requirement)])[: len(least)])) >= least, requirement


def test_conda_installs_the_same_package_with_the_same_versions():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, last = environment["dependencies"]
    assert conda == [f"python{PROJECT['requires-python']}", "pip"]
    assert last == {"pip": ["--constraint constraints.txt", "--editable .[dev]"]}
    assert "--constraint constraints.txt --editable '.[dev]'" in (ROOT / "Makefile").read_text()


def test_only_the_agreed_top_level_is_tracked():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    top = {file.split("/")[0] for file in files if not file.startswith(".")}
    assert top <= {
        "notebooks", "eedkit", "data", "tests", "environment.yml", "README.md", "pyproject.toml", "constraints.txt",
        "Makefile", "LICENSE", "CHANGELOG.md",
    }  # fmt: skip


def test_the_readme_names_the_commands_that_there_are():
    made = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"make ([a-z]+)", (ROOT / "README.md").read_text()))
    assert {"report", "test"} <= named <= made


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_narrate(path):
    notebook = nbformat.read(path, 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) < len(notebook.cells) - len(code)
    assert not any(cell.outputs or cell.execution_count for cell in code)
    statements = [node for cell in code for node in ast.walk(ast.parse(cell.source))]
    assert not any(isinstance(node, ast.FunctionDef | ast.ClassDef | ast.For | ast.While) for node in statements)
    assert notebook.cells[0].source.startswith("# ")
    assert re.search(r"^> \w", notebook.cells[0].source, re.M)
    assert f"{path.stem[:2]}_" in notebook.metadata["eedkit"]["key_figure"]
    assert "READING" not in "".join(cell.source for cell in notebook.cells)
