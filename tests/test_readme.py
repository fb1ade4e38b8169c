"""README.md, the gallery and the pages of the docs do what they say: their code runs, their links lead somewhere."""

import ast
import re
from importlib import import_module
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torchvision
import yaml
from matplotlib.figure import Figure

import eedkit as ek

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GALLERY_FOLDER = ROOT / "notebooks" / "gallery"
GALLERY = (GALLERY_FOLDER / "README.md").read_text(encoding="utf-8")
PAGES = {name: import_module(name).__doc__ for name in re.findall(r"^\* `([\w.]+)`", ek.__doc__, re.M)}
"""The pages that the first page of the built docs names."""
BLOCK = re.compile(r"(?P<mark><!-- needs a cluster -->\n)?```(?P<language>\w+)\n(?P<code>.*?)```", re.S)
PICTURE = re.compile(r"\n+!\[[^\]]+\]\((?P<picture>[^)]+\.png)\)\n\n[^#\n]")
"""A picture with its words, and text below it."""
PRETRAINED = "timm:resnet18.a1_in1k"
LARGEST_PICTURE = 60_000
"""Bytes: a page of the gallery shows many."""


def blocks(text, language, *, marked=False):
    found = [block for block in BLOCK.finditer(text) if block["language"] == language]
    return [block["code"] for block in found if bool(block["mark"]) == marked]


def run_blocks(text):
    """The names that a page's Python code leaves, one block after the other."""
    names = {"__name__": "page"}
    for code in blocks(text, "python"):
        exec(compile(code, "page", "exec"), names)
        plt.close("all")
    return names


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder to run in, where nothing is trained yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EEDKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*may be unable to read the images")
def test_the_readmes_code_runs_as_it_stands_but_for_the_weights(elsewhere):
    for number, row in enumerate(ek.lab.images.load("patches/test?n=8&size=40")):
        folder = elsewhere / "photos" / ("even", "odd")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        torchvision.utils.save_image(row["image"], folder / f"{number}.png")
    assert README.count(PRETRAINED) > 1
    names = run_blocks(README.replace(PRETRAINED, "timm:resnet18?seed=0"))
    assert "timm:resnet18" in (elsewhere / "card.html").read_text(encoding="utf-8")
    assert dict(names["turned"].sizes) == {"sample": 60}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*may be unable to read the images")
@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_every_page_runs_as_it_stands(elsewhere, page):
    for number, code in enumerate(blocks(PAGES[page], "yaml")):
        assert number == 0
        (elsewhere / "first.yaml").write_text(code, encoding="utf-8")
    names = run_blocks(PAGES[page])
    if page == "eedkit.study":
        assert names["ds"].attrs["group"] == "flip"
        assert names["ds"].model.values.tolist() == ["mine"]
    if page == "eedkit.theory":
        assert ek.actions.check_action(names["action"], names["images"][0]) == 0.0


def test_the_readme_is_short_and_its_first_code_is_five_calls():
    assert len(README.split()) <= 1300
    calls = [line for line in blocks(README, "python")[0].splitlines() if "ek." in line]
    assert len(calls) <= 6


def test_what_needs_a_cluster_is_marked_and_is_python():
    (code,) = blocks(PAGES["eedkit.study"], "python", marked=True)
    compile(code, "page", "exec")
    assert "dask_jobqueue" in code
    assert not any("dask_jobqueue" in other for other in blocks(PAGES["eedkit.study"], "python"))


def test_the_result_is_that_of_the_picture():
    result = (GALLERY_FOLDER / "result.md").read_text(encoding="utf-8").strip()
    assert result in README
    assert README.index(result) < README.index("\n## ")
    assert "95 % intervals" in result


@pytest.mark.parametrize(("text", "folder"), [(README, ROOT), (GALLERY, GALLERY_FOLDER)], ids=["README", "gallery"])
def test_every_picture_and_link_in_the_repository_is_there(text, folder):
    targets = re.findall(r"\]\((?!https?://)([^)]+)\)", text)
    assert targets
    for target in targets:
        assert (folder / target).exists(), target


def test_the_readme_leads_to_every_page_of_the_docs():
    for page in PAGES:
        if page != "eedkit.plots":  # the gallery, which is linked where it is read
            file = Path(import_module(page).__file__).relative_to(ROOT).as_posix()
            assert f"]({file})" in README


def test_every_notebook_and_profile_is_named():
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"`{notebook.stem}`" in README, notebook.stem
    for profile in (ROOT / "notebooks" / "profiles").glob("*.yaml"):
        if profile.stem not in ("quick", "tiny"):  # the default, and that of the tests
            assert re.search(rf"[`=]{profile.stem}`", README), profile.stem


def test_metrics_that_are_explained_are_those_of_the_library():
    name = r"`((?:channelwise|latent|softmax|dense|segmentation|boxes)(?:_\w+)?)`"
    assert set(re.findall(name, PAGES["eedkit.probe.metrics"])) == set(ek.METRICS)


def test_the_citation_has_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == ek.__version__
    assert citation["preferred-citation"]["identifiers"][0]["value"] == "arXiv:2210.03773"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_figure_of_the_gallery_is_drawn_by_its_code(elsewhere):
    for block in BLOCK.finditer(GALLERY):
        picture = PICTURE.match(GALLERY, block.end())
        assert picture, block["code"]
        assert (GALLERY_FOLDER / picture["picture"]).stat().st_size <= LARGEST_PICTURE
        untrained = block["code"].replace('f"recipe:{name}"', 'f"recipe:{name}?epochs=0"')
        *lines, last = ast.parse(untrained).body
        names = {"ek": ek}
        exec(compile(ast.Module(lines, []), "gallery", "exec"), names)
        figure = eval(compile(ast.Expression(last.value), "gallery", "eval"), names)
        assert isinstance(figure, Figure)


def test_the_gallery_names_every_figure():
    figures = [
        name
        for name in ek.plots.__all__
        if getattr(getattr(ek.plots, name), "__annotations__", {}).get("return") is Figure
    ]
    assert len(figures) > 10
    assert set(re.findall(r"ek\.plots\.(\w+)", GALLERY)) >= set(figures)
