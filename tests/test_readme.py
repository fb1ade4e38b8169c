"""README.md does what it says: its code runs as it stands, and its result is the one that its pictures were made with."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

import eedkit as ek

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"(?P<mark><!-- needs a cluster -->\n)?```(?P<language>\w+)\n(?P<code>.*?)```", re.S)


def blocks(language, *, marked=False):
    found = [block for block in BLOCK.finditer(README) if block["language"] == language]
    return [block["code"] for block in found if bool(block["mark"]) == marked]


@pytest.mark.slow
def test_every_python_block_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EEDKIT_CACHE", str(tmp_path / "cache"))
    (yaml_of_study,) = blocks("yaml")
    (tmp_path / "first.yaml").write_text(yaml_of_study, encoding="utf-8")
    names = {"__name__": "readme"}
    for code in blocks("python"):
        exec(compile(code, "README.md", "exec"), names)
        plt.close("all")
    assert names["ds"].attrs["group"] == "flip"
    assert names["ds"].model.values.tolist() == ["mine"]
    assert (tmp_path / "card.html").stat().st_size > 1000


def test_the_first_block_is_five_lines_that_name_a_model_and_images():
    lines = [line for line in blocks("python")[0].splitlines() if line]
    assert len(lines) == 5


def test_what_needs_a_cluster_is_marked_and_is_python():
    (code,) = blocks("python", marked=True)
    compile(code, "README.md", "exec")
    assert "dask_jobqueue" in code
    assert not any("dask_jobqueue" in other for other in blocks("python"))


def test_the_result_is_that_of_the_pictures():
    result = (ROOT / "notebooks" / "gallery" / "result.md").read_text(encoding="utf-8").strip()
    assert result in README
    assert README.index(result) < README.index("\n## ")
    assert "95 % intervals" in result


def test_every_picture_and_link_in_the_repository_is_there():
    targets = re.findall(r"\]\((?!https?://)([^)]+)\)", README)
    assert len([target for target in targets if target.endswith(".png")]) == 2
    for target in targets:
        assert (ROOT / target).exists(), target


def test_every_notebook_is_named():
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"`{notebook.stem}`" in README, notebook.stem


def test_metrics_in_the_readme_are_those_of_the_library():
    named = set(re.findall(r"`((?:channelwise|latent|softmax|dense|segmentation|boxes)(?:_\w+)?)`", README))
    assert named == set(ek.METRICS)


def test_the_citation_has_the_version():
    (bibtex,) = blocks("bibtex")
    assert f"version = {{{ek.__version__}}}" in bibtex
    assert "arXiv:2210.03773" in bibtex
