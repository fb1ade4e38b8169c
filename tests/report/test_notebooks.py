import io
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest

from eedkit.report import notebooks
from eedkit.report.notebooks import ReportError, check, parameters, profile, report
from eedkit.report.terminal import Terminal


@pytest.fixture(autouse=True)
def _here(monkeypatch, home):
    monkeypatch.setattr(notebooks, "folder", lambda: home)


@pytest.fixture
def never(monkeypatch):
    """A run that starts is a failure."""
    monkeypatch.setattr(notebooks, "_execute", lambda *_: pytest.fail("a notebook was run"))


def test_parameters_are_the_literals_of_the_tagged_cell(home):
    wanted = {"out": "../reports", "seeds": 2, "margin": 0.1, "name": None, "groups": ["C4"]}
    assert parameters(home / "00_story.ipynb") == wanted


@pytest.mark.parametrize(
    "line",
    [
        "import os",
        "x = 1 + n",
        "x = range(3)",
        "x: int",
        "x += 1",
        "def f(): ...",
        "'text'",
        "a, b = 1, 2",
        "x = (",
        "x: int = 'a'",
    ],
)
def test_a_parameters_cell_holds_literals_alone(book, tmp_path, line):
    with pytest.raises(ReportError, match=r"parameters cell|default of x"):
        parameters(book(tmp_path / "a.ipynb", "# A", defaults=line))


def test_there_is_one_parameters_cell(book, tmp_path):
    path = book(tmp_path / "a.ipynb", "# A", "x = 1")
    notebook = nbformat.read(path, 4)
    for tagged in ([1, 2], []):
        for i, cell in enumerate(notebook.cells):
            cell.metadata["tags"] = ["parameters"] if i in tagged else []
        nbformat.write(notebook, path)
        with pytest.raises(ReportError, match=f"found {len(tagged)}"):
            parameters(path)


def test_an_annotation_that_is_not_understood_is_refused(book, tmp_path):
    with pytest.raises(ReportError, match="annotation"):
        parameters(book(tmp_path / "a.ipynb", "# A", defaults="x: Sequence[int] = []"))


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"seeds": np.int64(3)}, {"seeds": 3}),
        ({"margin": 1}, {"margin": 1}),
        ({"margin": np.float32(0.5)}, {"margin": 0.5}),
        ({"name": Path("a") / "b"}, {"name": os.path.join("a", "b")}),
        ({"name": None}, {"name": None}),
        ({"groups": ("C4", "D4")}, {"groups": ["C4", "D4"]}),
    ],
)
def test_check_normalises_what_papermill_would_garble(home, given, kept):
    result = check(home / "00_story.ipynb", given)
    assert result == kept
    assert [type(v) for v in result.values()] == [type(v) for v in kept.values()]


@pytest.mark.parametrize(
    "given",
    [
        {"seeds": 1.5},
        {"seeds": True},
        {"seeds": "3"},
        {"margin": "wide"},
        {"name": 3},
        {"groups": "C4"},
        {"groups": [4]},
    ],
)
def test_check_refuses_another_type(home, given):
    with pytest.raises(ReportError, match=f"00_story: {next(iter(given))} takes"):
        check(home / "00_story.ipynb", given)


def test_without_annotation_the_default_says_the_type(book, tmp_path):
    path = book(tmp_path / "a.ipynb", "# A", defaults="n = 1\nrate = 0.1\nfree = None")
    assert check(path, {"rate": 1, "free": "anything"}) == {"rate": 1, "free": "anything"}
    with pytest.raises(ReportError, match="n takes int, got float"):
        check(path, {"n": 0.5})


def test_an_unknown_parameter_names_the_near_and_all(home):
    with pytest.raises(ReportError, match=r"no parameter 'seed'; did you mean 'seeds'\? \(all 5: out, seeds"):
        check(home / "00_story.ipynb", {"seed": 1})


def test_a_number_that_yaml_reads_as_text_says_so(home):
    with pytest.raises(ReportError, match=r"1\.0e-3"):
        check(home / "00_story.ipynb", {"margin": "1e-3"})


def test_profile_reads_and_checks(home, tmp_path):
    assert profile("quick") == {"00_story": {"seeds": 3, "groups": ["C4", "D4"]}}
    (tmp_path / "own.yaml").write_text("00_story:\n")
    assert profile(tmp_path / "own.yaml") == {}


def test_what_stands_under_all_goes_to_every_notebook_that_has_it_before_its_own(book, tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "folder", lambda: tmp_path)
    book(tmp_path / "00_story.ipynb", "# A", defaults="seeds: int = 1\nmargin: float = 0.1")
    book(tmp_path / "01_other.ipynb", "# B", defaults='out: str = "../reports"\nseeds: int = 1')
    (tmp_path / "own.yaml").write_text("all: {seeds: 7, margin: 0.5}\n00_story: {seeds: 8}\n")
    assert profile(tmp_path / "own.yaml") == {"00_story": {"seeds": 8, "margin": 0.5}, "01_other": {"seeds": 7}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("00_stori: {}", "no notebook '00_stori'; did you mean '00_story'"),
        ("00_story: {seed: 1}", "no parameter 'seed'"),
        ("00_story: {seeds: one}", "seeds takes int"),
        ("00_story: {out: elsewhere}", "--out"),
        ("all: {out: elsewhere}", "--out"),
        ("all: {seed: 1}", "no parameter 'seed'; did you mean 'seeds'"),
        ("all: {seeds: one}", "seeds takes int"),
        ("all: 3", "takes `parameter: value` lines"),
        ("00_story: 3", "takes `parameter: value` lines"),
        ("- 00_story", "got a list"),
        ("00_story: [", "not YAML"),
        ("!!python/object/apply:os.getcwd []", "not YAML"),
    ],
)
def test_a_profile_is_strict(tmp_path, text, message):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(ReportError, match=message):
        profile(path)


def test_an_unknown_profile_lists_those_there_are():
    with pytest.raises(ReportError, match=r"no profile 'quik'; did you mean 'quick'\? \(all 2: quick, tiny\)"):
        profile("quik")
    with pytest.raises(ReportError, match=r"no profile file .*nowhere\.yaml"):
        profile("nowhere.yaml")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"profile": "none"}, "no profile"),
        ({"notebooks": ["00_start"]}, "no notebook"),
        ({"notebooks": []}, "nothing to run"),
        ({"parameters": {"sees": 1}}, "no parameter 'sees'; did you mean 'seeds'"),
        ({"parameters": {"seeds": "many"}}, "seeds takes int"),
        ({"parameters": {"out": "elsewhere"}}, "--out"),
    ],
)
@pytest.mark.usefixtures("never")
def test_what_cannot_be_run_is_refused_before_anything_runs(tmp_path, asked, message):
    with pytest.raises(ReportError, match=message):
        report(tmp_path / "out", **asked)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("never")
def test_a_notebook_without_out_is_refused(book, tmp_path, monkeypatch):
    book(tmp_path / "nb" / "a.ipynb", "# A", defaults="seeds: int = 1")
    (tmp_path / "nb" / "profiles").mkdir()
    (tmp_path / "nb" / "profiles" / "quick.yaml").write_text("")
    monkeypatch.setattr(notebooks, "folder", lambda: tmp_path / "nb")
    with pytest.raises(ReportError, match="out: str"):
        report(tmp_path / "out")


def test_the_notebook_gets_profile_then_parameters_and_the_absolute_folder(made):
    executed = nbformat.read(made.out / "00_story.ipynb", 4)
    injected = next(c.source for c in executed.cells if "injected-parameters" in c.metadata.get("tags", ()))
    for line in ("seeds = 3", "margin = 1", 'groups = ["C4", "D4"]', "name = None", f'out = "{made.out}"'):
        assert line in injected.splitlines()
    printed = "".join(o.text for c in executed.cells for o in c.get("outputs", ()) if o.get("name") == "stdout")
    assert printed == "seeds 3 margin 1 groups ['C4', 'D4'] name None\n"


def test_braces_in_the_folder_stay(made):
    assert made.out.name == "re{port}s"
    assert {"00_story.ipynb", "00_story.html", "index.html"} <= {f.name for f in made.out.iterdir()}
    assert (made.out / "figures" / "00_story_depth.png").stat().st_size > 1000


def test_failures_name_notebook_cell_and_error_and_stop_nobody(made):
    raises, dies = made.error.failed
    assert (raises.stem, raises.failure.cell, raises.failure.error) == (
        "01_raises",
        4,
        "ZeroDivisionError: division by zero",
    )
    assert raises.failure.source == "1 / 0"
    # papermill's file says "completed" of every cell of a killed kernel: the failure is known from its exception.
    assert (dies.stem, dies.failure.cell) == ("02_dies", 3)
    assert "kernel died" in dies.failure.error
    assert str(made.error).splitlines()[0] == "01_raises, cell 4: ZeroDivisionError: division by zero"
    assert made.error.index == made.out / "index.html"


def test_a_log_gets_plain_lines(made):
    lines = made.log.splitlines()
    # two at a time, where there are two cores
    assert lines[0] == "[1/3] 00_story"
    assert any(line.startswith("[1/3] 00_story: done in ") for line in lines)
    assert any(
        line.startswith("[2/3] 01_raises: FAILED after ") and "cell 4: ZeroDivisionError" in line for line in lines
    )
    assert "\r" not in made.log
    assert "\x1b" not in made.log
    assert len(lines) < 12


def test_the_environment_is_given_back(made):
    assert "TQDM_MININTERVAL" not in os.environ
    assert logging.getLogger("papermill").level == logging.NOTSET


class Screen(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_the_newest_bar_in_one_live_line():
    terminal = Terminal(screen := Screen())
    terminal.cell(2, 9)
    for piece in ("\rtraining:  0%", "\rtrain", "ing: 50%"):
        terminal.write(piece)
    assert screen.getvalue().endswith("\r\x1b[Kcell 2/9 training: 50%")
    assert "\n" not in screen.getvalue()


@pytest.mark.parametrize("live", [True, False])
def test_control_characters_of_a_kernel_are_shown(live):
    stream = Screen() if live else io.StringIO()
    terminal = Terminal(stream)
    terminal.write("\x1b[31mred\x1b[0m \x1b]0;owned\x07\n\rbar \x1b]52;c;aGk=\x07\r")
    terminal.line("\x9b2J.ipynb: failed")
    text = stream.getvalue().replace("\r\x1b[K", "")
    assert r"    red \x1b]0;owned\x07" in text
    assert r"bar \x1b]52;c;aGk=\x07" in text
    assert r"\x9b2J.ipynb: failed" in text
    assert not set("\x1b\x07\x9b") & set(text)


def test_a_warning_between_bars_stays():
    terminal = Terminal(screen := Screen())
    for piece in ("\rtraining: 100%\n", "UserWarn", "ing: odd\n", "\r 0%"):
        terminal.write(piece)
    assert "    UserWarning: odd\n" in screen.getvalue()


def test_a_log_shows_bars_at_a_bearable_rate_and_never_a_stale_one(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    terminal = Terminal(log := io.StringIO(), every=10)
    for second in range(25):
        now = 100.0 + second
        terminal.write(f"\r\x1b[Atraining: {second}/25")
    assert log.getvalue().split() == ["training:", "0/25", "training:", "10/25", "training:", "20/25"]


def test_two_notebooks_at_once_share_the_live_line(monkeypatch):
    monkeypatch.setenv("COLUMNS", "61")
    terminal = Terminal(screen := Screen())
    first = terminal.shared("[1/3]")
    second = terminal.shared("[2/3]")
    first.cell(2, 9)
    second.cell(1, 4)
    second.write("\rtraining: 50% of everything that there is")
    assert screen.getvalue().endswith("\r\x1b[K[1/3] cell 2/9 | [2/3] cell 1/4 training: 50%")
    first.write("UserWarning: odd\n")
    assert "    [1/3] UserWarning: odd\n" in screen.getvalue()
    first.clear()
    assert screen.getvalue().endswith("\r\x1b[K[2/3] cell 1/4 training: 50% of everything that there is")


WRITES = "import os, time\ntime.sleep({0})\nopen(f'{{out}}/{1}', 'w').write(os.environ['OMP_NUM_THREADS'])"


@pytest.fixture
def three(book, tmp_path, monkeypatch):
    """Three notebooks, of which the first says that it is the last and fails if the others are not done."""
    home = tmp_path / "nb"
    reads = "import os\nassert {'b', 'c'} <= set(os.listdir(out))"
    book(home / "a.ipynb", "# A", reads, eedkit={"last": True})
    book(home / "b.ipynb", "# B", WRITES.format(2, "b"))
    book(home / "c.ipynb", "# C", WRITES.format(0, "c"))
    (home / "profiles").mkdir()
    (home / "profiles" / "quick.yaml").write_text("")
    monkeypatch.setattr(notebooks, "folder", lambda: home)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return home


@pytest.mark.notebook
@pytest.mark.parametrize("cores", [1, 5])
def test_the_last_waits_for_the_others_and_two_share_the_cores(three, tmp_path, monkeypatch, cores):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    if cores == 1:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
    report(tmp_path / "out", progress=False)
    assert (tmp_path / "out" / "b").read_text() == str(max(1, cores // 2))
    ended = {stem: (tmp_path / "out" / f"{stem}.ipynb").stat().st_mtime for stem in "abc"}
    assert ended["a"] == max(ended.values())
    # beside each other: the short one is through before the long one
    assert (ended["c"] < ended["b"]) == (cores > 1)
    assert "OMP_NUM_THREADS" not in os.environ or cores == 1


@pytest.mark.notebook
def test_a_notebook_whose_process_dies_stops_no_other(three, tmp_path, monkeypatch, book):
    book(three / "c.ipynb", "# C", "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)")
    with pytest.raises(notebooks.NotebooksFailed, match="c, cell 3: its process died") as raised:
        report(tmp_path / "out", progress=False)
    assert (tmp_path / "out" / "b").exists()
    assert [run.stem for run in raised.value.failed] == ["a", "c"]


@pytest.mark.notebook
@pytest.mark.parametrize("names", ["a", "ab"])
@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_an_interrupt_ends_kernels_and_command(book, tmp_path, names):
    for name in names:
        book(
            tmp_path / "nb" / f"{name}.ipynb",
            "# A",
            f"import os, pathlib, time\npathlib.Path(out, '{name}').write_text(str(os.getpid()))\ntime.sleep(60)",
        )
    (tmp_path / "nb" / "profiles").mkdir()
    (tmp_path / "nb" / "profiles" / "quick.yaml").write_text("")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "index.html").write_text("from an earlier run")
    command = (
        "import sys, pathlib; from eedkit.report import notebooks; from eedkit.cli import app;"
        "notebooks.folder = lambda: pathlib.Path(sys.argv.pop()); home = notebooks.folder(); notebooks.folder = lambda: home; app()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", command, "report", "--out", tmp_path / "out", tmp_path / "nb"],
        stderr=subprocess.PIPE,
        text=True,
        # whoever runs the tests in the background has interrupts ignored, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    pids = [tmp_path / "out" / name for name in names]
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if all(pid.exists() and pid.read_text() for pid in pids):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "unknown parameter" not in said  # what papermill says of `name: str | None = None`
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.read_text()), 0)
    assert "not run" in (tmp_path / "out" / "index.html").read_text()
