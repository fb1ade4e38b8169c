import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from distributed.client import FutureCancelledError
from distributed.comm.core import CommClosedError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from typer.testing import CliRunner

import eedkit as ek
from eedkit.cli import app
from eedkit.lab import images, models, recipes
from eedkit.report import notebooks
from eedkit.study import workers


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    home = tmp_path / "notebooks"
    (home / "profiles").mkdir(parents=True)
    (home / "profiles" / "quick.yaml").write_text("")
    tagged = new_code_cell(
        'out: str = "../reports"\nbad: bool = False\nsizes: list[int] = [1]', metadata={"tags": ["parameters"]}
    )
    cells = [new_markdown_cell("# Check"), tagged, new_code_cell("assert not bad, 'asked to fail'\nprint(sizes)")]
    nbformat.write(new_notebook(cells=cells), home / "00_check.ipynb")
    monkeypatch.setattr(notebooks, "folder", lambda: home)
    return home


def test_report_is_made_and_found(home, tmp_path):
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["report", "--out", str(out), "--only", "00_check", "-p", "sizes=[3, 4]"])
    assert result.exit_code == 0, result.output
    assert result.stdout == f"The report: {out / 'index.html'}\n"
    assert "[3, 4]" in (out / "00_check.html").read_text()


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


@pytest.mark.parametrize("words", [["report"], ["study", "run"]])
def test_help_is_light_and_shows_an_example(words):
    command = f"import sys; sys.argv = {['eedkit', *words, '--help']}\nimport runpy, atexit\n"
    command += "atexit.register(lambda: print('heavy:', [m for m in ('torch', 'papermill', 'nbconvert', 'xarray') if m in sys.modules]))\n"
    command += "runpy.run_module('eedkit', run_name='__main__')"
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert f"Example: eedkit {' '.join(words)}" in result.stdout
    assert "heavy: []" in result.stdout


def test_the_version_is_shown():
    assert run("--version").stdout == f"eedkit {ek.__version__}\n"


EVIL = "\x1b]0;owned\x07\udce9"
BOMB = "[&a [1,1,1,1,1,1,1,1,1]" + "".join(f", &{b} [{', '.join(['*' + a] * 9)}]" for a, b in zip("abc", "bcd", strict=True)) + "]"  # fmt: skip


def test_aliases_in_a_parameter_are_refused_at_once(home, tmp_path):
    result = CliRunner().invoke(app, ["report", "--out", str(tmp_path / "out"), "-p", f"sizes={BOMB}"])
    assert result.exit_code == 2
    assert "aliases such as *name are not read here" in result.stderr
    (home / "profiles" / "quick.yaml").write_text(f"00_check: {{sizes: {BOMB}}}")
    result = CliRunner().invoke(app, ["report", "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "aliases such as *name are not read here" in result.stderr


def test_a_report_that_cannot_be_written_exits_2(home, tmp_path):
    (tmp_path / "file").write_text("dear")
    result = run("report", "--out", tmp_path / "file")
    assert result.exit_code == 2
    assert "eedkit report: [Errno 20] Not a directory" in result.stderr


def test_errors_show_control_characters_and_stand_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(ek.Study, "status", lambda study: raises(ValueError(f"no {EVIL}\n  of them\n" + "x" * 10**6)))
    result = run("study", "status", write(tmp_path))
    assert result.exit_code == 2
    assert result.stderr.startswith("eedkit study status: no \\x1b]0;owned\\x07\\udce9 of them xxx")
    assert len(result.stderr.splitlines()) == 1
    assert len(result.stderr) < 1100


def test_what_nobody_foresaw_ends_without_a_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr(ek.Study, "status", lambda study: raises(KeyError("odd")))
    result = run("study", "status", write(tmp_path))
    assert result.exit_code == 1
    assert result.stderr.startswith("eedkit study status: KeyError: 'odd'. This is a bug or an odd input")


def raises(error):
    raise error


def test_module_and_command_without_arguments_show_help():
    result = subprocess.run([sys.executable, "-m", "eedkit"], capture_output=True, text=True)
    assert "report" in result.stdout + result.stderr
    assert "Usage: eedkit" in result.stdout + result.stderr


A, B = (f"recipe:random?seed={seed}&widths=4,8" for seed in (0, 1))
DATA = "digits/test?n=20"
UNTRAINED = "recipe:plain?seed=77&epochs=1&widths=2,3"


def write(folder: Path, *extra: str, models=(A, B), groups=("C4", "D4")) -> Path:
    """A study's file; its store is `a` beside it."""
    lists = {"models": models, "data": [DATA], "groups": groups}
    lines = [line for key, specs in lists.items() for line in (f"{key}:", *(f"  - {spec}" for spec in specs))]
    file = folder / "study.yaml"
    file.write_text("\n".join([*lines, f"store: {folder / 'a'}", *extra]))
    return file


def run(*arguments):
    """What a command printed, and its exit code; never a traceback or a raw warning."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert isinstance(result.exception, SystemExit | None), result.exception
    assert "Traceback" not in result.output
    assert "UserWarning" not in result.output
    lines = [line for line in result.stdout.splitlines() if not line.startswith("/")]  # paths are as long as they are
    assert max(map(len, lines), default=0) <= 120
    return result


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """The file of a study that was run."""
    file = write(tmp_path_factory.mktemp("study"), "metrics: [channelwise, latent, softmax, softmax_js]")
    result = run("study", "run", file, "--quiet")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f'4 of 4 cells done, 0 failed. Open: ek.open("{file.parent / "a"}")\n'
    return file


def test_plan_says_what_is_to_be_done_and_writes_nothing(tmp_path):
    result = run("study", "plan", write(tmp_path))
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == f"data: {DATA}, images: 20"
    assert lines[1].split() == ["group", "model", "blocks", "done", "forwards", "size", "time"]
    rows = [line.split()[:5] for line in lines[2:6]]
    assert rows == [[g, m, "1", "0", n] for m in (A, B) for g, n in (("C4", "80"), ("D4", "160"))]
    assert "4 cells, 4 blocks (0 done), 480 forwards to do" in lines[7]
    assert "in one process on c" in lines[8]
    assert "predicted from a short timing on noise on this machine" in lines[9]
    assert [file.name for file in tmp_path.iterdir()] == ["study.yaml"]


def test_plan_of_what_is_done_has_nothing_left(done):
    result = run("study", "plan", done)
    assert result.exit_code == 0
    assert "4 blocks (4 done), 0 forwards to do" in result.stdout
    assert "Predicted: 0 s" in result.stdout


def test_plan_exits_1_and_notes_what_it_cannot_tell(tmp_path):
    file = write(tmp_path, groups=["C4"])
    file.write_text(file.read_text().replace(DATA, f"{DATA}\n  - hub:owner/name/test"))
    result = run("study", "plan", file)
    assert result.exit_code == 1
    assert "2 of 4 cells cannot be planned" in result.stderr
    assert result.stdout.count("[1] ValueError: how many images hub:owner/name/test holds") == 1
    assert "160 forwards to do" in result.stdout


def test_status_before_and_after(done, tmp_path):
    before = run("study", "status", write(tmp_path))
    assert before.exit_code == 0
    assert before.stdout.count("not begun") == 5
    assert before.stdout.endswith("4 cells: 4 not begun. 0 of 0 blocks are done.\n")
    after = run("study", "status", done)
    assert after.exit_code == 0
    assert after.stdout.endswith("4 cells: 4 done. 4 of 4 blocks are done.\n")


def test_a_failing_model_is_listed_and_the_others_are_done(tmp_path):
    import torch

    torch.save({"odd": torch.zeros(1)}, tmp_path / "bad.pt")
    file = write(tmp_path, models=[A, f"file:{tmp_path / 'bad.pt'}?model=recipe:random"], groups=["C4"])
    result = run("study", "run", file, "--quiet")
    assert result.exit_code == 1
    assert f"failed: {DATA} · C4 · file:{tmp_path / 'bad.pt'}?model=recipe:random: ValueError: " in result.stderr
    assert A not in result.stderr
    assert "Note:" not in result.stderr
    assert result.stdout.startswith("1 of 2 cells done, 1 failed. Open: ek.open(")
    assert f"To retry: eedkit study run {file}" in result.stderr
    after = run("study", "status", file)
    assert after.exit_code == 1
    assert "2 cells: 1 done, 1 failed. 1 of 2 blocks are done." in after.stdout
    assert "must hold the state dict" in after.stdout
    figures = run("figures", tmp_path / "a", "--out", tmp_path / "out", "--format", "png")
    assert figures.exit_code == 0
    assert "Note: 1 of 2 cells are not finished" in figures.stderr


def test_long_reasons_are_cut_and_escaped_where_they_are_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "load", lambda *_: raises(ValueError(f"{EVIL} " + "no " * 10**6)))
    file = write(tmp_path, models=[A], groups=["C4"])
    listed = run("study", "run", file, "--quiet")
    table = run("study", "status", file)
    for output in (listed.stderr, table.stdout):
        assert r"ValueError: \x1b]0;owned\x07" in output
        assert "\x1b" not in output
        assert len(output) < 3000


def test_where_all_models_fail_there_is_nothing_to_open(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "load", lambda *_: 1 / 0)
    result = run("study", "run", write(tmp_path, models=[A], groups=["C4"]), "--quiet")
    assert result.exit_code == 1
    assert "ZeroDivisionError" in result.stderr
    assert result.stdout == "0 of 1 cells done, 1 failed.\n"


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(tmp_path, monkeypatch):
    file, compute, computed = write(tmp_path), workers.compute, []

    def interrupted(job, block, **rest):
        if len(computed) == 1:
            raise KeyboardInterrupt
        return counted(job, block, **rest)

    def counted(job, block, **rest):
        computed.append((job.cell, block))
        return compute(job, block, **rest)

    monkeypatch.setattr(workers, "compute", interrupted)
    result = run("study", "run", file, "--quiet")
    assert result.exit_code == 130
    assert result.stdout == ""
    said = f"Stopped: 1 of 4 blocks are done and kept. To resume: eedkit study run {file}"
    assert result.stderr.strip() == said
    assert "4 cells: 1 done, 3 unfinished. 1 of 4 blocks are done." in run("study", "status", file).stdout
    monkeypatch.setattr(workers, "compute", counted)
    assert run("study", "run", file, "--quiet").exit_code == 0
    assert len(set(computed)) == len(computed) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modles: [a]", "no key 'modles'; did you mean 'models'?"),
        ("models: [", "is not YAML"),
        ("models: ['recipe:plian']\ndata: [digits/test]\ngroups: [C4]\nstore: a", "did you mean 'plain'?"),
        ("models: ['recipe:plain']\ndata: [digits/test]\ngroups: [Q4]\nstore: a", "Q4"),
        ("models: ['recipe:plain']", "no data and no groups and no store"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "run", "status"])
def test_a_misspelt_study_exits_2(tmp_path, monkeypatch, command, text, message):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "study.yaml"
    file.write_text(text)
    result = run("study", command, file)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"eedkit study {command}: ")
    assert message in result.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["study.yaml"]


@pytest.mark.parametrize("command", ["plan", "run", "status"])
def test_a_study_that_is_not_there_or_no_file_exits_2(tmp_path, command):
    for path, message in ((tmp_path / "none.yaml", "does not exist"), (tmp_path, "is a directory")):
        result = run("study", command, path)
        assert result.exit_code == 2
        assert message in " ".join(result.stderr.split())


def test_run_exits_2_on_images_that_are_not_there(tmp_path):
    file = write(tmp_path)
    file.write_text(file.read_text().replace(DATA, "digits/tset"))
    result = run("study", "run", file)
    assert result.exit_code == 2
    assert "did you mean 'digits/test'" in result.stderr
    assert not (tmp_path / "a").exists()


def test_run_exits_2_without_a_scheduler_at_the_address(tmp_path, monkeypatch):
    import distributed

    asked = []

    def nobody(address, timeout):
        asked.append(address)
        raise OSError("timed out")

    monkeypatch.setattr(distributed, "Client", nobody)
    result = run("study", "run", write(tmp_path), "--scheduler", "tcp://127.0.0.1:1")
    assert result.exit_code == 2
    assert "no Dask scheduler answers at tcp://127.0.0.1:1 (timed out)" in result.stderr
    assert asked == ["tcp://127.0.0.1:1"]


@pytest.mark.parametrize(
    "error",
    [
        FutureCancelledError("compute-1", "scheduler-connection-lost"),
        CommClosedError("in <TCP>: Stream is closed"),
        OSError("Timed out trying to connect to tcp://127.0.0.1:1 after 10 s"),
    ],
)
def test_a_killed_scheduler_ends_with_the_command_that_goes_on(tmp_path, monkeypatch, error):
    monkeypatch.setattr(ek.Study, "run", lambda study, **options: raises(error))
    file = write(tmp_path)
    result = run("study", "run", file, "--scheduler", "tcp://127.0.0.1:1")
    assert result.exit_code == 1
    assert "lost the connection to the Dask scheduler" in result.stderr
    again = f"To resume: eedkit study run {file} --scheduler tcp://127.0.0.1:1\n"
    assert result.stderr.endswith(again)


def test_another_lost_connection_is_not_the_schedulers(tmp_path, monkeypatch):
    monkeypatch.setattr(ek.Study, "run", lambda study, **options: raises(ConnectionError("no hub")))
    result = run("study", "run", write(tmp_path), "--scheduler", "tcp://127.0.0.1:1")
    assert (result.exit_code, result.stderr) == (2, "eedkit study run: no hub\n")


def test_run_takes_workers_or_a_scheduler(tmp_path, monkeypatch):
    both = run("study", "run", write(tmp_path), "--workers", "2", "--scheduler", "tcp://127.0.0.1:1")
    assert both.exit_code == 2
    assert "--workers or --scheduler, not both" in both.stderr
    assert run("study", "run", write(tmp_path), "--workers", "0").exit_code == 2
    given = {}

    def stop(study, **options):
        given.update(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(ek.Study, "run", stop)
    result = run("study", "run", write(tmp_path), "--workers", "2", "--repair")
    assert given == {"workers": 2, "client": None, "repair": True, "progress": True}
    assert "Stopped: nothing was started." in result.stderr
    assert result.stderr.strip().endswith(f"eedkit study run {tmp_path / 'study.yaml'} --workers 2")


def test_run_exits_1_where_the_store_is_something_else(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "letter.txt").write_text("dear")
    result = run("study", "run", write(tmp_path))
    assert result.exit_code == 1
    assert "is no store of a study" in result.stderr
    assert (tmp_path / "a" / "letter.txt").read_text() == "dear"


def test_run_exits_1_on_another_study_under_the_same_names(done):
    text = done.read_text()
    other = done.with_name("other.yaml")
    other.write_text(f"{text}\nseed: 1")
    result = run("study", "run", other)
    assert result.exit_code == 1
    assert "with another seed: 0 there, 1 here" in result.stderr


def test_figures_of_a_study_by_data_set_and_group(done, tmp_path):
    result = run("figures", done.parent / "a", "--out", tmp_path, "--format", "svg", "--format", "pdf")
    assert (result.exit_code, result.stderr) == (0, "")
    stems = {file.relative_to(tmp_path).with_suffix("").as_posix() for file in tmp_path.rglob("*.*")}
    whats = ["depth_profile_latent", "depth_profile_channelwise", "calibration_softmax", "class_heatmap_softmax_js"]
    assert {f"digits-test-n-20-{group}/{what}" for group in ("C4", "D4") for what in whats} < stems
    assert len(stems) == 12
    assert {file.suffix for file in tmp_path.rglob("*.*")} == {".svg", ".pdf"}
    assert [Path(line).relative_to(tmp_path).as_posix() in stems for line in result.stdout.splitlines()[:-1]] == [
        True
    ] * 12
    assert result.stdout.splitlines()[-1] == "24 files, as svg, pdf"


def test_figures_of_one_group_stand_in_the_folder_itself(done, tmp_path):
    store = done.parent / "a"
    result = run("figures", store, "--out", tmp_path, "--format", "png", "--data", DATA, "--group", "D4")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "orbit_rose_latent.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "digits/tset"], "no data set 'digits/tset'"),
        (["--group", "C8"], "no group 'C8'"),
        (["--format", "pgn"], "pgn"),
    ],
)
def test_figures_exit_2_on_what_is_not_there(done, tmp_path, arguments, message):
    result = run("figures", done.parent / "a", "--out", tmp_path / "out", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_card_is_written_with_its_twin(done, tmp_path):
    page = tmp_path / "net.html"
    chosen = ["--data", DATA, "--group", "D4", "--model", A, "--images", f"{DATA}&size=17"]
    result = run("card", done.parent / "a", "--out", page, *chosen)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [str(page), str(page.with_suffix(".json"))]
    assert "On which images does it fail?" in page.read_text()


def test_a_card_fails_by_what_is_required(done, tmp_path):
    page = tmp_path / "net.html"
    command = ["card", done.parent / "a", "--out", page, "--data", DATA, "--group", "D4", "--model", A, "--require"]
    failed = run(*command, "relative<=1e-6", "--require", "accuracy.moved>=0")
    assert failed.exit_code == 1
    relative = ek.summarise(ek.open(done.parent / "a", group="D4")).query("model == @A and metric == 'latent'").relative
    assert failed.stderr == f"eedkit card: relative is {relative.iloc[-1]:.2g}, required <= 1e-06\n"
    assert "Fails: relative is" in page.read_text()
    assert run(*command, "relative<=9").exit_code == 0
    wrong = run(*command, "relativ<=9")
    assert (wrong.exit_code, "did you mean 'relative'" in wrong.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "choose with --data and --group"),
        (["--group", "D4"], "choose with model= among"),
        (["--group", "C8"], "no group 'C8'"),
    ],
)
def test_a_card_of_several_is_refused(done, tmp_path, arguments, message):
    result = run("card", done.parent / "a", "--out", tmp_path / "net.html", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not list(tmp_path.iterdir())


def test_figures_need_a_store_with_something_done(tmp_path, monkeypatch):
    assert run("figures", tmp_path / "none").exit_code == 2
    (tmp_path / "empty").mkdir()
    result = run("figures", tmp_path / "empty")
    assert result.exit_code == 2
    assert "no store at" in result.stderr
    file = write(tmp_path)
    monkeypatch.setattr(models, "load", lambda *_: 1 / 0)
    run("study", "run", file, "--quiet")
    result = run("figures", tmp_path / "a")
    assert result.exit_code == 1
    assert "nothing is done yet" in result.stderr


def test_measure_prints_the_summary_and_saves(tmp_path):
    out = tmp_path / "a.zarr"
    result = run(
        "measure", A, DATA, "--group", "C4", "--metric", "channelwise", "--metric", "softmax", "--quiet", "--out", out
    )
    assert result.exit_code == 0, result.output
    expected = ek.measure(
        models.load(A).model, images.load(DATA, size=17, channels=1), group="C4", metrics=["channelwise", "softmax"],
        head="head", progress=False,
    )  # fmt: skip
    table = ek.summarise(expected)
    lines = result.stdout.splitlines()
    accuracy = (expected.prediction == expected.label).mean("sample").values[0]
    assert lines[0].startswith("1 model × ")
    start = lines.index(f"model: {A}, n: 20")
    assert lines[start + 2].split()[:2] == ["accuracy", "e"]
    assert lines[start + 3].split()[-1] == f"{accuracy[1]:.3f}"
    first = table.query("metric == 'channelwise'").iloc[0]
    numbers = [f"{first[name]:.3f}" for name in ("relative", "relative_low", "relative_high", "estimate", "null")]
    assert f"channelwise blocks.0 {' '.join(numbers[:2])} to {' '.join(numbers[2:])}" in [
        " ".join(line.split()) for line in lines
    ]
    assert "the head's input" in result.stdout
    assert max(map(len, lines[:-1])) <= 80
    assert lines[-1] == f'Saved: ek.open("{out}")'
    saved = ek.open(out)
    assert saved.model.values.tolist() == [A]
    assert saved.channelwise.values == pytest.approx(expected.channelwise.values, nan_ok=True)


def test_measure_does_not_overwrite_and_asks_before_it_measures(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "load", lambda *_: pytest.fail("measured"))
    (tmp_path / "a.zarr").mkdir()
    result = run("measure", A, DATA, "--group", "C4", "--out", tmp_path / "a.zarr")
    assert result.exit_code == 2
    assert "exists; choose another name" in result.stderr


def test_measure_passes_its_options_on(monkeypatch):
    given, measure = {}, ek.measure

    def seen(*arguments, **options):
        given.update(options)
        return measure(*arguments, **options)

    monkeypatch.setattr(ek, "measure", seen)
    result = run(
        "measure", A, DATA, "--group", "flip", "--seed", "3", "--layers", "blocks.1", "--batch-size", "7",
        "--device", "cpu", "--head", "head", "--quiet",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    expected = {"group": "flip", "seed": 3, "layers": "blocks.1", "batch_size": 7, "device": "cpu"}
    assert given == {"head": "head", "progress": False, **expected}


@pytest.mark.parametrize(("option", "expected"), [((), "blocks.0"), (("--layers", "blocks.1"), "blocks.1")])
def test_measure_takes_layers_from_the_spec(tmp_path, option, expected):
    result = run("measure", f"{A}&layers=blocks.0", DATA, "--group", "flip", "--out", tmp_path / "a.zarr", *option)
    assert result.exit_code == 0, result.output
    assert ek.open(tmp_path / "a.zarr").layer.values.tolist() == [expected, "latent"]


def test_measure_takes_a_models_own_preprocessing(tmp_path):
    model, data = "torchvision:squeezenet1_1?seed=0", "digits/test?n=2"
    loaded = models.load(model)
    photos = images.load(data, transform=loaded.transform)
    ds = ek.measure(loaded.model, photos, group="flip", metrics=["softmax"], progress=False)
    result = run("measure", model, data, "--group", "flip", "--metric", "softmax", "--quiet", "--out", tmp_path / "a")
    assert result.exit_code == 0, result.output
    assert ek.open(tmp_path / "a").confidence.values == pytest.approx(ds.confidence.values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recipe:plian", DATA, "--group", "C4"], "did you mean 'plain'"),
        ([A, DATA, "--group", "C4", "--batch-size", "0"], "--batch-size"),
        ([A, DATA], "--group"),
        ([UNTRAINED, DATA, "--group", "C4", "--layers", "blocks.9"], "no layer whose whole name matches 'blocks.9'"),
        ([UNTRAINED, DATA, "--group", "C4", "--head", "fc"], "no head 'fc'"),
        ([UNTRAINED, DATA, "--group", "C4", "--device", "cuda:99"], "is not available here"),
        ([UNTRAINED, DATA, "--group", "C4", "--out", "/dev/null/a.zarr"], "cannot save /dev/null/a.zarr"),
        (
            [UNTRAINED, DATA, "--group", "C4", "--metric", "segmentation", "--metric", "channelwise_field"],
            "no metric would have a value for this model (segmentation: the model's output is no map",
        ),
    ],
)
def test_measure_exits_2_before_anything_is_trained(arguments, message, monkeypatch):
    monkeypatch.setattr(recipes, "train", lambda *_, **__: pytest.fail("a network was trained"))
    result = run("measure", *arguments, "--quiet")
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize("words", [["measure", A, DATA, "--group", "C4"], ["figures", "."], ["card", "."], ["report"]])
def test_an_empty_out_is_refused(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*words, "--out", "")
    assert result.exit_code == 2
    assert "expected a path, got an empty text" in result.stderr


def test_measure_looks_for_the_images_before_it_makes_a_model(monkeypatch):
    monkeypatch.setattr(models, "load", lambda *_: pytest.fail("the model was made"))
    result = run("measure", A, "photos/", "--group", "C4", "--quiet")
    assert result.exit_code == 2
    assert "no bundled images, folder or file 'photos/'" in result.stderr


def test_measure_exits_1_where_the_model_fails_and_130_on_ctrl_c(tmp_path, monkeypatch):
    def fails(error):
        def measure(*_, **__):
            raise error

        return measure

    arguments = "measure", A, DATA, "--group", "C4", "--out", tmp_path / "a.zarr"
    monkeypatch.setattr(ek, "measure", fails(RuntimeError("CUDA out of memory")))
    result = run(*arguments)
    assert result.exit_code == 1
    assert result.stderr == "eedkit measure: CUDA out of memory\n"
    monkeypatch.setattr(ek, "measure", fails(KeyboardInterrupt()))
    result = run(*arguments)
    assert result.exit_code == 130
    assert result.stderr.strip() == "Stopped; nothing was saved."
    assert not (tmp_path / "a.zarr").exists()


COMMANDS = ["measure", "check", "card", "figures", "report", "study", "study plan", "study run", "study status"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command):
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0
    assert f"Example: eedkit {command}" in result.stdout


def test_the_study_in_the_help_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = CliRunner().invoke(app, ["study", "--help"]).stdout.splitlines()
    start, end = (next(k for k, line in enumerate(lines) if line.strip().startswith(w)) for w in ("models:", "store:"))
    (tmp_path / "first.yaml").write_text("\n".join(line[6:] for line in lines[start : end + 1]))
    study = ek.Study.from_yaml("first.yaml")
    assert list(study.models) == ["recipe:plain?seed=0", "recipe:augmented?seed=0"]
    assert study.store == str(tmp_path / "runs" / "first")
    assert run("study", "plan", "first.yaml").exit_code == 0
