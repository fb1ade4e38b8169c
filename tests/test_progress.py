"""What a run says while it runs."""

import io
import re
import sys

import nbclient
import nbformat
import pytest

import eedkit as ek
from eedkit.progress import TEXT_ON_STDERR, bar


@pytest.fixture(autouse=True)
def no_jupyter(monkeypatch):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def through(total: int, **options) -> None:
    with bar(total, "study", "block", **options) as shown:
        for i in range(total):
            shown.update()
            shown.set_postfix_str(f"done {i}", refresh=False)


def test_a_log_gets_whole_lines(capsys):
    through(3)
    out, err = capsys.readouterr()
    assert out == ""
    assert "\r" not in err
    assert "\x1b" not in err
    lines = err.splitlines()
    assert all(re.fullmatch(r"study: \d of 3 blocks, \d\d:\d\d so far, about \S+ left(, done \d)?", k) for k in lines)
    assert lines[0].startswith("study: 0 of 3 blocks")
    assert lines[-1].endswith(", done 2")
    assert lines[-1].startswith("study: 3 of 3 blocks")


def test_a_log_gets_few_lines_however_many_blocks_there_are(capsys):
    through(5000)
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_a_terminal_gets_one_bar(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    through(3)
    assert stream.getvalue().count("\n") == 1
    assert "study: 100%" in stream.getvalue()
    assert "\r" in stream.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_to_do_says_nothing(monkeypatch, terminal):
    stream = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    through(0)
    through(3, show=False)
    assert stream.getvalue() == ""


IN_JUPYTER = """from eedkit.progress import bar
with bar(3, "study", "block") as shown:
    shown.update(3)"""


@pytest.mark.parametrize("as_text", [True, False])
def test_jupyter_gets_a_widget_unless_stderr_is_read(monkeypatch, as_text):
    for name, value in TEXT_ON_STDERR.items():
        monkeypatch.setenv(name, value if as_text else "")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(IN_JUPYTER)])
    outputs = nbclient.NotebookClient(notebook, kernel_name="python3").execute().cells[0].outputs
    written = "".join(output.text for output in outputs if output.output_type == "stream")
    widgets = [output for output in outputs if "application/vnd.jupyter.widget-view+json" in output.get("data", {})]
    assert ("study: 100%" in written) is as_text
    assert bool(widgets) is not as_text
    assert bool(written) is as_text


def test_what_does_not_stay_is_no_line_in_a_log(capsys):
    through(3, leave=False)
    assert capsys.readouterr().err == ""


def test_a_run_reports_its_blocks_and_nothing_else(tmp_path, capsys):
    study = ek.Study(
        models=["recipe:random?widths=4"], data=["digits/test?n=20"], groups=["C4", "flip"], store=tmp_path / "a"
    )
    study.run()
    err = capsys.readouterr().err
    assert "\r" not in err
    assert err.splitlines()[0].startswith("study: 0 of 2 blocks")
    assert re.search(r"study: 2 of 2 blocks, .* left, done digits/test\?n=20 · flip · recipe:random\?widths=4\n$", err)
    study.run()
    assert capsys.readouterr().err == ""
    study.run(progress=False, repair=True)
    assert capsys.readouterr().err == ""
