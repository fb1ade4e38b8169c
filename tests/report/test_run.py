"""Notebooks run two at once, fail alone, end with the command, and are kept while nothing changes."""

import os
import re
import signal
import subprocess
import sys
import time

import nbformat
import pytest

from eedkit.report import kept, notebooks
from eedkit.report.notebooks import plan, report


def printed(made, stem):
    cells = nbformat.read(made.out / f"{stem}.ipynb", 4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    return "".join(output.text for output in outputs if output.get("name") == "stdout")


def test_a_notebook_gets_profile_then_parameters_and_the_absolute_folder(made):
    assert "seeds 3 margin 1 groups ['C4', 'D4'] name None\n" in printed(made, "00_story")
    assert made.out.name == "re{port}s"
    assert (made.out / "figures" / "00_story_depth.svg").stat().st_size > 1000


def test_two_run_at_once_and_share_the_cores(made):
    assert "met True" in printed(made, "00_story")
    assert "met True" in printed(made, "01_raises")
    assert (made.out / "00.here").read_text() == "2"  # of four


def test_the_first_starts_before_earlier_names(made):
    # two run at once, and 00 does not end before 01 has begun: one of the first two is 02
    assert made.log.index("[3/4] 02_kernel_dies") < made.log.index("[2/4] 01_raises")


def test_the_last_waits_for_what_the_others_leave(made):
    assert "<strong>supported</strong> by 00" in made.pages["03_verdicts"]
    assert made.log.index("[4/4] 03_verdicts") > made.log.index("[3/4] 02_kernel_dies: FAILED")


def test_failures_name_notebook_cell_and_error_and_stop_nobody(made):
    failure, death = (run.failure for run in made.error.failed)
    assert (failure.cell, failure.source, failure.error) == (4, "1 / 0", "ZeroDivisionError: division by zero")
    assert failure.traceback.splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert (death.cell, death.error) == (3, "the kernel died: killed, crashed or out of memory")
    assert str(made.error).splitlines()[0] == "01_raises, cell 4: ZeroDivisionError: division by zero"
    assert made.error.index == made.out / "index.html"


def test_a_log_gets_plain_lines(made):
    lines = made.log.splitlines()
    assert lines[0].startswith("left out: my_notes")
    assert "[1/4] 00_story" in lines
    assert any(re.fullmatch(r"\[1/4\] 00_story: done in 0:0\d:\d\d", line) for line in lines)
    failed = r"\[2/4\] 01_raises: FAILED after 0:0\d:\d\d in cell 4: ZeroDivisionError: division by zero"
    assert any(re.fullmatch(failed, line) for line in lines)
    assert r"    [1/4] a warning \x1b]0;owned\x07" in lines
    assert any("training seed" in line for line in lines)
    assert not set("\x1b\x07\r") & set(made.log)
    assert len(lines) < 20


def run_of(made, stem):
    runs, _ = plan(made.out, notebooks=[stem], parameters={"margin": 1})
    return runs[0]


def test_what_is_unchanged_is_kept_and_says_so(made, monkeypatch, capfd):
    monkeypatch.setattr(notebooks, "execute", lambda *_: pytest.fail("a notebook was run"))
    index = report(made.out, notebooks=["00_story", "03_verdicts"], parameters={"margin": 1}, progress=False)
    date = kept.kept(run_of(made, "00_story")).facts["date"]
    page = (made.out / "00_story.html").read_text()
    assert f", kept from {date}, on " in page
    assert '<table border="1" class="dataframe">' in page
    assert f"kept from {date}" in index.read_text()
    assert "kept" not in made.pages["00_story"]
    assert capfd.readouterr() == ("", "")  # without progress nothing is told


def test_what_failed_is_run_again(made):
    assert kept.kept(run_of(made, "01_raises")) is None
    assert kept.kept(run_of(made, "02_kernel_dies")) is None


@pytest.fixture
def restored(made):
    """What a test changes below the report's folder is afterwards as before."""
    before = {
        file: (file.read_bytes(), file.stat()) for file in [*made.out.glob("figures/*"), *made.out.glob("marks/*")]
    }
    yield
    for file in made.out.glob("marks/*"):
        if file not in before:
            file.unlink()
    for file, (content, about) in before.items():
        file.write_bytes(content)
        os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))


def touched(file):
    os.utime(file, (time.time() + 1, time.time() + 1))


FIGURE = "figures/00_story_depth.svg"
CHANGES = {
    "a parameter": lambda run, out, patch: run.parameters.update(seeds=4),
    "its source": lambda run, out, patch: setattr(run.notebook.cells[2], "source", "pass"),
    "eedkit": lambda run, out, patch: patch.setattr(kept, "_package", lambda: "other"),
    "a library": lambda run, out, patch: patch.setattr(kept, "_versions", lambda: {"torch": "0"}),
    "a figure": lambda run, out, patch: touched(out / FIGURE),
    "its figure is gone": lambda run, out, patch: (out / FIGURE).unlink(),
}
HARMLESS = {
    "nothing": lambda run, out, patch: None,
    "what is beside it": lambda run, out, patch: (out / "marks" / "01").touch(),
    "who is at work": lambda run, out, patch: (out / "marks" / "running-0001.json").touch(),
}


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("change", [*CHANGES, *HARMLESS])
def test_a_change_runs_it_again(made, monkeypatch, change):
    run = run_of(made, "00_story")
    (CHANGES | HARMLESS)[change](run, made.out, monkeypatch)
    assert (kept.kept(run) is None) == (change in CHANGES)


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize(("name", "matters"), [("01", True), ("running-0001.json", False)])
def test_the_last_is_run_again_where_there_is_more_to_read(made, name, matters):
    run = run_of(made, "03_verdicts")
    assert kept.kept(run)
    (made.out / "marks" / name).touch()
    assert (kept.kept(run) is None) == matters
    touched(made.out / "marks" / "00")
    assert kept.kept(run) is None


def test_files_that_a_parameter_names_count(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    run = run_of(made, "00_story")
    run.parameters["name"] = "photos/?n=3"
    before = kept.inputs(run)
    assert kept.inputs(run) == before
    (tmp_path / "photos" / "a.png").write_bytes(b"1")
    assert kept.inputs(run) != before


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_an_interrupt_ends_kernels_and_command(book, tmp_path):
    waits = "import os, pathlib, time\npathlib.Path(out, '{0}').write_text(str(os.getpid()))\ntime.sleep(600)"
    for name in "abc":
        book(tmp_path / "nb" / f"{name}.ipynb", "# A", waits.format(name))
    (tmp_path / "nb" / "profiles").mkdir()
    (tmp_path / "nb" / "profiles" / "quick.yaml").write_text("")
    command = (
        "import os, sys, pathlib; from eedkit.report import notebooks; from eedkit.cli import app;"
        "home = pathlib.Path(sys.argv.pop()); notebooks.folder = lambda: home; os.cpu_count = lambda: 2; app()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", command, "report", "--out", tmp_path / "out", tmp_path / "nb"],
        stderr=subprocess.PIPE,
        text=True,
        # whoever runs the tests in the background has interrupts ignored, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    pids = [tmp_path / "out" / name for name in "ab"]
    while process.poll() is None and not all(pid.exists() and pid.read_text() for pid in pids):
        time.sleep(0.1)
    index = tmp_path / "out" / "index.html"
    assert "<b>0 of 3</b> notebooks have ended" in index.read_text()
    assert 'http-equiv="refresh"' in index.read_text()
    process.send_signal(signal.SIGINT)
    _, log = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in log
    assert "[3/3]" not in log
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.read_text()), 0)
    assert index.read_text().count('class="card not-run"') == 3
    assert 'http-equiv="refresh"' not in index.read_text()
