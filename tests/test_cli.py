import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from typer.testing import CliRunner

from eedkit.cli import app
from eedkit.report import notebooks


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    home = tmp_path / "notebooks"
    (home / "profiles").mkdir(parents=True)
    (home / "profiles" / "quick.yaml").write_text("")
    tagged = new_code_cell(
        'out: str = "reports"\nbad: bool = False\nsizes: list[int] = [1]', metadata={"tags": ["parameters"]}
    )
    cells = [new_markdown_cell("# Check"), tagged, new_code_cell("assert not bad, 'asked to fail'\nprint(sizes)")]
    nbformat.write(new_notebook(cells=cells), home / "00_check.ipynb")
    monkeypatch.setattr(notebooks, "folder", lambda: home)
    return home


def test_report_is_made_and_found(home, tmp_path):
    out = tmp_path / "out"
    result = CliRunner().invoke(
        app, ["report", "--out", str(out), "--only", "00_check", "--code", "-p", "sizes=[3, 4]"]
    )
    assert result.exit_code == 0, result.output
    assert result.stdout == f"The report: {out / 'index.html'}\n"
    page = (out / "00_check.html").read_text()
    assert "[3, 4]" in page
    assert "asked to fail" in page


def test_a_failing_notebook_exits_1_and_is_named(home, tmp_path):
    result = CliRunner().invoke(app, ["report", "--out", str(tmp_path / "out"), "-p", "bad=true"])
    assert result.exit_code == 1
    assert "00_check, cell 3: AssertionError: asked to fail" in result.stderr
    assert "Traceback" not in result.output
    assert "failed" in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "quik"], "no profile 'quik'; did you mean 'quick'?"),
        (["--only", "00_chek"], "no notebook '00_chek'; did you mean '00_check'?"),
        (["-p", "size=[1]"], "no parameter 'size'; did you mean 'sizes'?"),
        (["-p", "sizes=1"], "sizes takes list[int], got int 1"),
        (["-p", "sizes"], "-p takes NAME=VALUE, got 'sizes'"),
        (["-p", "sizes=["], "the value is not YAML"),
        (["-p", "out=elsewhere"], "--out"),
        (["--no-such-option"], "No such option"),
    ],
)
def test_bad_usage_exits_2_and_says_what_to_do(home, tmp_path, arguments, message):
    result = CliRunner().invoke(app, ["report", "--out", str(tmp_path / "out"), *arguments])
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_help_is_light_and_shows_an_example():
    command = "import sys; sys.argv = ['eedkit', 'report', '--help']\nimport runpy, atexit\n"
    command += "atexit.register(lambda: print('heavy:', [m for m in ('torch', 'papermill', 'nbconvert', 'xarray') if m in sys.modules]))\n"
    command += "runpy.run_module('eedkit', run_name='__main__')"
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert "Example: eedkit report" in result.stdout
    assert "--profile" in result.stdout
    assert "heavy: []" in result.stdout


def test_module_and_command_without_arguments_show_help():
    result = subprocess.run([sys.executable, "-m", "eedkit"], capture_output=True, text=True)
    assert "report" in result.stdout + result.stderr
    assert "Usage: eedkit" in result.stdout + result.stderr
