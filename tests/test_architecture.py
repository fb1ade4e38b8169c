"""The one-way imports of the house, and a light `import eedkit`."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "eedkit"

UPSTREAM = {
    "theory": set(),
    "results": set(),
    "paper": {"results"},
    "probe": {"theory"},
    "lab": {"theory", "probe", "results"},
    "study": {"theory", "probe", "lab", "results"},
    "plots": {"results", "probe"},
    "explorer": {"results", "paper", "plots", "bridges"},
    "bridges": {"theory", "probe", "results"},
    "tracker": {"theory", "probe", "results"},
    "available": {"theory", "probe", "lab"},
    "report": {"theory", "probe", "lab", "results", "paper", "study", "plots"},
    "cli": {"theory", "probe", "lab", "results", "paper", "study", "plots", "explorer", "report"},
    "__main__": {"cli"},
}
"""Which parts each part may import, beside itself and those that stand alone; `LABELLING` of probe may also import results."""


STAND_ALONE = ("errors.py", "machine.py", "progress.py")
"""What all parts may import."""


def imports(source, package):
    """Absolute names of everything that a module of `package` imports, wherever in it: also relative and inside functions.

    >>> sorted(imports("import a.b\\ndef f():\\n    from ..c import d\\n", "x.y"))
    ['a.b', 'x.c', 'x.c.d']
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (base, node.module) if part)
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
            "load",
        ):
            found |= {a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "eedkit":
            found.add(f"eedkit.{node.attr}")
    return found


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = path.relative_to(PACKAGE)
        package = ".".join(("eedkit", *inside.parts[:-1]))
        yield inside.as_posix(), imports(path.read_text(encoding="utf-8"), package)


MODULES = dict(modules())
LAZY = {"images": "lab", "check": "lab", "measure": "lab", "METRICS": "probe", "Metric": "probe", "verdicts": "paper",
        "open": "study", "compare": "results", "concat": "results", "summarise": "results", "Study": "study", "Tracker": "tracker", "card": "explorer", "explore": "explorer",
        "actions": "theory", "distances": "theory", "groups": "theory", "Group": "theory"}  # fmt: skip


def parts_imported(names):
    """Which parts of the package these names come from; a name that `eedkit` itself hands out counts as its home."""
    second = {name.split(".")[1] for name in names if name.startswith("eedkit.")}
    return {LAZY.get(part, part) for part in second} - {"errors", "machine", "progress", "__version__"}


LABELLING = {"probe/dataset.py", "probe/metrics.py"}
"""What of probe knows results: who makes Datasets, and who refuses names that these have already."""


def test_there_is_something_to_check():
    assert len(MODULES) > 10
    assert "eedkit.theory" in MODULES["probe/measure.py"]


@pytest.mark.parametrize("module", [m for m in MODULES if m not in ("__init__.py", *STAND_ALONE)])
def test_imports_go_one_way(module):
    part = module.split("/")[0].removesuffix(".py")
    allowed = UPSTREAM[part] | {part} | ({"results"} if module in LABELLING else set())
    assert parts_imported(MODULES[module]) <= allowed


def test_the_check_sees_relative_lazy_and_attribute_imports():
    source = "def f():\n    from ..report import pages\n    import eedkit as ek\n    eedkit.lab\n    import_module('eedkit.study')"
    assert parts_imported(imports(source, "eedkit.probe")) == {"report", "lab", "study"}


@pytest.mark.parametrize("module", STAND_ALONE)
def test_what_all_parts_may_import_stands_alone(module):
    assert not parts_imported(MODULES[module])


def third_party(module):
    return {name.split(".")[0] for name in MODULES[module]} - {"eedkit"} - set(sys.stdlib_module_names)


def test_theory_knows_only_torch_and_results_never_torch():
    theory = set().union(*(third_party(m) for m in MODULES if m.startswith("theory/")))
    results = set().union(*(third_party(m) for m in MODULES if m.startswith("results/")))
    assert theory <= {"torch", "numpy", "lazy_loader"}
    assert not results & {"torch", "torchvision", "timm"}


STORED = ("study/files.py", "study/blocks.py", "study/store.py", "study/join.py")
"""What of a study reads and writes results: `ek.open` needs no torch."""


def test_results_are_opened_without_torch(tmp_path):
    assert not set().union(*map(third_party, STORED)) & {"torch", "torchvision", "timm"}
    assert set().union(*(parts_imported(MODULES[module]) for module in STORED)) == {"study", "results"}
    done = python("import sys, eedkit; eedkit.open; print('torch' in sys.modules)", tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


def test_what_a_scheduler_unpickles_imports_nothing_heavy(tmp_path):
    done = python("import sys, eedkit.study.tasks; print({'torch', 'numpy'} & set(sys.modules))", tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, "set()"), done.stderr


def test_tensors_become_labels_in_one_module_alone():
    of_tensors = [module for module in MODULES if module.startswith(("theory/", "probe/"))]
    assert {module for module in of_tensors if "results" in parts_imported(MODULES[module])} == LABELLING
    assert not {"torch", "eedkit.theory.deviation"} & MODULES["probe/dataset.py"]
    assert {m for m in MODULES if m.startswith("probe/") and "xarray" in third_party(m)} == {
        "probe/dataset.py",
        "probe/features.py",
        "probe/interchange.py",
        "probe/measure.py",
    }


def imported_at_once(module):
    """What a module imports when it is imported itself, not inside its functions."""
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return imports(ast.unparse(tree), ".".join(("eedkit", *Path(module).parts[:-1])))


def test_the_compiler_is_one_modules_and_imported_when_called():
    assert [m for m in MODULES if "numba" in third_party(m)] == ["probe/fused.py"]
    assert [m for m in MODULES if "eedkit.probe.fused" in MODULES[m]] == ["probe/sums.py"]
    assert "eedkit.probe.fused" not in imported_at_once("probe/sums.py")
    assert "eedkit.probe.sums" in imported_at_once("probe/measure.py")


def python(code, cwd):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, check=False)


def test_import_eedkit_is_light(tmp_path):
    heavy = [
        "torch",
        "xarray",
        "pandas",
        "matplotlib",
        "numpy",
        "seaborn",
        "torchvision",
        "datasets",
        "scipy",
        "papermill",
    ]
    done = python(f"import eedkit, sys; print([m for m in {heavy} if m in sys.modules])", tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
