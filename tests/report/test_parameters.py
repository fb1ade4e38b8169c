"""Everything that cannot be run is refused before anything runs."""

import nbformat
import pytest

from eedkit.report import notebooks
from eedkit.report.notebooks import ReportError, plan, report
from eedkit.report.parameters import Parameter, parameters


def declared(source, tags=("parameters",)):
    cells = [nbformat.v4.new_code_cell(source, metadata={"tags": [tag]}) for tag in tags]
    return parameters(nbformat.v4.new_notebook(cells=cells), "a")


def test_parameters_are_the_literals_of_the_tagged_cell_with_their_comments():
    cell = '# all of them\nseeds: int = 2  # of a kind\n\nx: dict[str, list[float]] | None = {\n    "a": [1.5],  # one\n}\ny: str = "# no"'
    assert declared(cell) == {
        "seeds": Parameter(2, "int", "of a kind"),
        "x": Parameter({"a": [1.5]}, "dict[str, list[float]] | None", ""),
        "y": Parameter("# no", "str", ""),
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("import os", "lines alone, got `import os`"),
        ("x = 1", "lines alone, got `x = 1`"),
        ("x: int", "lines alone, got `x: int`"),
        ("def f(): ...", "lines alone"),
        ("x: int = 1 + n", "parameters cell: "),
        ("x: list = range(3)", "parameters cell: "),
        ("x: int = 'a'", "default of x does not fit: it takes int, got str 'a'"),
        ("x: Sequence[int] = []", r"annotation of x is made of .* got `Sequence\[int\]`"),
        ("x: print('run') = 1", "annotation of x"),
        ("x: int[str] = 1", "parameters cell: "),
        ("x = (", "not Python"),
    ],
)
def test_a_parameters_cell_holds_literals_alone(line, message):
    with pytest.raises(ReportError, match=message):
        declared(line)


@pytest.mark.parametrize("tags", [(), ("other",), ("parameters", "parameters")])
def test_there_is_one_parameters_cell(tags):
    with pytest.raises(ReportError, match=f"a: expected one cell .* found {tags.count('parameters')}"):
        declared("x: int = 1", tags)


@pytest.mark.parametrize(
    ("hint", "fits", "refused"),
    [
        ("int", [3], [1.5, True, "3", None]),
        ("float", [0.5, 3], [True, "0.5", "1e-3"]),
        ("str | None", ["a", None], [3]),
        ("list[str]", [["C4"], []], ["C4", [4], ("C4",)]),
        ("dict[str, int]", [{"a": 1}], [{"a": "1"}, {1: 1}, []]),
        ("bool", [False], [0, "no"]),
    ],
)
def test_values_fit_the_annotation_strictly(hint, fits, refused):
    parameter = Parameter(None, hint)
    assert [parameter.refusal(value) for value in fits] == [""] * len(fits)
    for value in refused:
        assert parameter.refusal(value).startswith(f"takes {hint}, got {type(value).__name__} ")


def test_defaults_then_all_then_the_notebooks_own_then_what_is_given(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("all: {seeds: 7, margin: 0.5, name: a}\n00_story: {seeds: 8, name: b}\n01_raises:\n")
    story, raises, *_ = plan(tmp_path / "out", profile=file, parameters={"name": "c"})[0]
    out = str(tmp_path / "out")
    assert story.parameters == {"out": out, "seeds": 8, "margin": 0.5, "name": "c", "groups": ["C4"]}
    assert raises.parameters["seeds"] == 7


def test_what_cannot_be_run_is_left_out_with_the_reason(home):
    runs, left_out = plan()
    assert [run.stem for run in runs] == ["00_story", "01_raises", "02_kernel_dies", "03_verdicts"]
    notes, torn = left_out
    assert notes == "my_notes: its parameters cell: it may hold `name: type = literal` lines alone, got `x = 1`"
    assert torn.startswith("torn: not a notebook (NotJSONError")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("00_stori: {}", "own.yaml: no notebook '00_stori'; did you mean '00_story'"),
        ("my_notes: {x: 2}", "no notebook 'my_notes'"),
        ("00_story: {seed: 1}", "00_story: no parameter 'seed'; did you mean 'seeds'"),
        ("00_story: {seeds: one}", "00_story: seeds takes int, got str 'one'"),
        ("00_story: {out: elsewhere}", "--out"),
        ("all: {out: elsewhere}", "--out"),
        ("all: {seed: 1}", "own.yaml: no parameter 'seed'; did you mean 'seeds'"),
        ("all: {seeds: one}", "seeds takes int"),
        ("all: 3", "expected `notebook: {parameter: value}`"),
        ("- 00_story", "expected `notebook: {parameter: value}`"),
        ("00_story: [", "not YAML"),
        ("a: &a [1]\nb: *a", "aliases"),
        ("!!python/object/apply:os.getcwd []", "not YAML"),
    ],
)
def test_a_profile_is_strict(tmp_path, text, message):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(ReportError, match=message):
        plan(profile=path)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"profile": "quik"}, r"no profile 'quik'; did you mean 'quick'\? \(all 2: quick, tiny\)"),
        ({"profile": "nowhere.yaml"}, r"no profile file nowhere\.yaml"),
        ({"notebooks": ["00_start"]}, "no notebook '00_start'; did you mean '00_story'"),
        ({"notebooks": ["my_notes"]}, "my_notes: its parameters cell"),
        ({"notebooks": []}, "nothing to run"),
        ({"parameters": {"sees": 1}}, "no parameter 'sees'; did you mean 'seeds'"),
        ({"parameters": {"seeds": "many"}}, "seeds takes int"),
        ({"parameters": {"out": "elsewhere"}}, "--out"),
    ],
)
def test_what_is_asked_for_is_refused_before_anything_is_written(tmp_path, asked, message):
    with pytest.raises(ReportError, match=message):
        report(tmp_path / "out", **asked)
    assert not (tmp_path / "out").exists()


def test_a_notebook_without_out_is_left_out(book, tmp_path, monkeypatch):
    book(tmp_path / "a.ipynb", "# A", defaults="seeds: int = 1")
    book(tmp_path / "b.ipynb", "# B")
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "quick.yaml").write_text("")
    monkeypatch.setattr(notebooks, "folder", lambda: tmp_path)
    runs, left_out = plan()
    assert [run.stem for run in runs] == ["b"]
    assert "a: its parameters cell must hold `out: str" in left_out[0]
