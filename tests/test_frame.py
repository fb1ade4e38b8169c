"""The frame holds together: one list of dependencies, tested versions for all of them, only the agreed top level."""

import ast
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

import eedkit as ek

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIRED = {"jupyterlab", "torch", "torchvision", "xarray", "seaborn", "papermill", "datasets"}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def name(requirement):
    return re.split(r"[\[<>=!~ ;]", requirement)[0].lower().replace("_", "-")


def dependencies():
    listed = [*PROJECT["dependencies"], *(r for extra in PROJECT["optional-dependencies"].values() for r in extra)]
    return {name(r) for r in listed} - {"eedkit"}


def brought_by(extra):
    """The packages that an extra installs, through the extras that it names too."""
    packages = set()
    for requirement in PROJECT["optional-dependencies"][extra]:
        if name(requirement) != "eedkit":
            packages.add(name(requirement))
            continue
        for other in re.search(r"\[(.*)\]", requirement)[1].split(","):
            packages |= brought_by(other)
    return packages


def test_required_packages_come_with_all():
    assert {name(r) for r in PROJECT["dependencies"]} | brought_by("all") >= REQUIRED
    assert brought_by("dev") > brought_by("all")
    assert PROJECT["requires-python"] == ">=3.11"


def test_every_dependency_has_a_tested_version_within_its_bound():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    pins = {name(package): version for package, version in pins.items()}
    assert dependencies() <= set(pins)
    extras = PROJECT["optional-dependencies"].values()
    for requirement in [*PROJECT["dependencies"], *(r for extra in extras for r in extra if ">=" in r)]:
        least = tuple(map(int, re.search(r">=([\d.]+)", requirement)[1].split(".")))
        assert tuple(map(int, re.findall(r"\d+", pins[name(requirement)])[: len(least)])) >= least, requirement


def test_conda_installs_the_same_package_with_the_same_versions():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, last = environment["dependencies"]
    assert conda == [f"python{PROJECT['requires-python']}", "pip"]
    assert last == {"pip": ["--constraint constraints.txt", "--editable .[dev]"]}
    assert "--constraint constraints.txt --editable '.[dev]'" in (ROOT / "Makefile").read_text()


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
def test_make_installs_into_no_other_clones_environment(tmp_path):
    clone = tmp_path / "clone"
    clone.mkdir()
    note = tmp_path / "env" / "lib" / "python3.11" / "site-packages" / "eedkit-0.1.0.dist-info" / "direct_url.json"
    note.parent.mkdir(parents=True)

    def owner_of(place):
        note.write_text(json.dumps({"dir_info": {"editable": True}, "url": place.as_uri()}))
        command = ["make", "--no-print-directory", "owner", f"VENV={tmp_path / 'env'}"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    refused = owner_of(clone)
    assert refused.returncode == 2
    assert refused.stdout == f"{tmp_path / 'env'} runs the eedkit of {clone}; name another environment with VENV=path\n"
    assert owner_of(ROOT.resolve()).returncode == 0
    assert owner_of(tmp_path / "gone").returncode == 0
    ask = subprocess.run(["make", "--dry-run", "lint"], cwd=ROOT, capture_output=True, text=True).stdout
    assert "runs the eedkit of" in ask


def test_only_the_agreed_top_level_is_tracked():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    top = {file.split("/")[0] for file in files if not file.startswith(".")}
    assert top <= {
        "notebooks", "eedkit", "data", "tests", "environment.yml", "README.md", "pyproject.toml", "constraints.txt",
        "Makefile", "LICENSE", "CHANGELOG.md", "CITATION.cff",
    }  # fmt: skip


def test_editors_are_told_every_public_name():
    told = {
        alias.asname
        for node in ast.parse((ROOT / "eedkit" / "__init__.pyi").read_text()).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert told == set(ek.__all__)
    assert all(getattr(ek, name) is not None for name in told)


def test_the_citation_has_the_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == ek.__version__ == PROJECT["version"]
    assert citation["preferred-citation"]["identifiers"][0]["value"] == "arXiv:2210.03773"


def test_the_readme_names_the_commands_that_there_are():
    made = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"make ([a-z]+)", (ROOT / "README.md").read_text()))
    assert {"report", "test"} <= named <= made


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_narrate(path):
    notebook = nbformat.read(path, 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    words_of_prose = sum(len(cell.source.split()) for cell in notebook.cells if cell.cell_type == "markdown")
    lines_of_code = sum(len(cell.source.splitlines()) for cell in code)
    assert words_of_prose > 4 * lines_of_code
    assert not any(cell.outputs or cell.execution_count for cell in code)
    for cell in code:
        tree = ast.parse(cell.source)
        looping = ast.FunctionDef | ast.ClassDef | ast.For | ast.While
        assert not any(isinstance(node, looping) for node in ast.walk(tree))
    assert notebook.cells[0].source.startswith("# ")
    assert re.search(r"^> \w", notebook.cells[0].source, re.M)
    assert "READING" not in "".join(cell.source for cell in notebook.cells)
