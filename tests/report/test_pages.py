import html
import os
import re

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from eedkit.report import pages
from eedkit.report.formulas import markdown, mathml
from eedkit.report.kernel import Failure, Run
from eedkit.report.parameters import Parameter

FACTS = {"profile": "tiny", "date": "2026-01-01 00:00 UTC", "device": "CPU", "eedkit": "0.1.0", "torch": "2.15.0"}
LOADS = re.compile(
    r"""<(?:script|link|iframe|object|embed|base)\b|\b(?:src|srcset|data|poster)=["']?(?:https?:)?//"""
    r"""|@import|url\(\s*["']?(?:https?:)?//"""
)
"""What would make a browser fetch something, in a page's elements or styles; a link in prose does not."""


@pytest.mark.parametrize(
    "page",
    [
        "<script>1</script>",
        '<img src="https://x.org/a.png">',
        '<link href="//x.org/a.css">',
        "<style>@import 'a';</style>",
        '<p style="background: url(http://x.org)">',
    ],
)
def test_the_scan_sees_a_load(page):
    assert LOADS.search(page)


def test_no_page_loads_anything(made):
    assert len(made.pages) == 5
    for page in made.pages.values():
        assert not LOADS.search(page)
        assert "default-src 'none'; img-src 'self' file: data:; style-src 'unsafe-inline'" in page
        assert 'http-equiv="refresh"' not in page
    assert 'href="https://example.org/paper"' in made.pages["00_story"]


@pytest.fixture
def written(tmp_path):
    """Writes page and index of one executed notebook; gives their texts, without styles."""

    def write(*cells, code=False, running=False, **about):
        path = tmp_path / "a.ipynb"
        notebook = new_notebook(cells=list(cells), metadata={"eedkit": {"code": True}} if code else {})
        nbformat.write(notebook, path)
        about = {"state": "done", "seconds": 3.2, "facts": FACTS, "declared": {}, "parameters": {}} | about
        page = pages.page_of(Run(source=path, notebook=notebook, executed=path, **about))
        pages.write_page(page, [page], "tiny")
        index = pages.write_index([page], tmp_path, "tiny", running=running, left_out=["<b>: broken"])
        assert not list(tmp_path.glob(".*"))
        texts = [file.read_text(encoding="utf-8") for file in (path.with_suffix(".html"), index)]
        return [re.sub(r"<style>.*?</style>", "", text, flags=re.S) for text in texts]

    return write


def shown(source, *outputs, tag=None):
    return new_code_cell(source, outputs=list(outputs), metadata={"tags": [tag]} if tag else {})


def display(data, **metadata):
    return new_output("display_data", data, metadata=metadata)


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("$x$", "<mi>x</mi>"),
        ("a\n\n$$\nx\n\n+ y\n$$\n\nb", "<mi>x</mi><mo>&#x0002B;</mo><mi>y</mi>"),
        ("inside $$x$$ prose", 'display="block"'),
        (r"$a \sim b$", "<mo>&#x0223C;</mo>"),
        (r"$\$5$", "<mi>&#x00024;</mi>"),
        ("| a |\n|---|\n| $x$ |", "<mi>x</mi>"),
        ("> is $x$ so?", "<mi>x</mi>"),
    ],
)
def test_formulas_become_mathml(source, wanted):
    html = markdown(source)
    assert wanted in html
    assert html.count("<math") == 1
    assert "$" not in html


@pytest.mark.parametrize(
    "source",
    [
        "`$x$`",
        "text `$$x$$`\n`$$y$$`",
        "```\n$$x$$\n```",
        "    $x$ indented",
        r"\$5 and \$6",
        "$5 and $6",
        "price $5, see `$HOME`",
        "`$a` and `b$`",
    ],
)
def test_a_dollar_that_is_no_formula_stays(source):
    html = markdown(source)
    assert "<math" not in html
    assert re.sub(r"<[^>]+>", "", html).count("$") == source.count("$")


@pytest.mark.parametrize(
    "tex", [r"\frac{1}{", "x^", r"\nosuchcommand{x}", r"a & b", "}", r"\left( x", r"\begin{nosuch}"]
)
def test_a_formula_that_cannot_be_converted_stays_readable(tex):
    assert mathml(tex) == f'<code class="formula">${tex.replace("&", "&amp;")}$</code>'
    assert mathml(tex, block=True).startswith('<code class="formula">$$')


def test_a_page_says_title_question_answer_then_the_rest(made):
    page = made.pages["00_story"]
    parts = [
        "<h1>Is <math",
        "<blockquote><p>Does <code>measure</code> agree with <math",
        "<p><strong>Yes.</strong> It agrees.</p>",
        "<details><summary>More</summary>",
        '<a class="figure" href="figures/00_story_depth.svg"><img alt="EED by depth"',
        "It costs $5 or $6",
        "<h2>What the table says</h2>",
        "seeds 3 margin 1",
        '<table border="1" class="dataframe">',
        "<h2>Limits</h2>",
        "<footer>",
        '<th scope="row">seeds</th><td><code>3</code></td><td>how many networks there are of a kind</td>',
    ]
    places = [page.index(part) for part in parts]
    assert places == sorted(places)
    for once in ("And on which images?", *parts[:3], "It costs"):
        assert page.count(once) == 1
    assert "<li>on <em>all</em></li>" in page
    for absent in ("training seed", "plots.save", "data:image", str(made.out)):
        assert absent not in page


def test_a_page_says_what_it_was_made_with(made, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    footer = made.pages["00_story"].partition("<footer>")[2]
    facts = pages.provenance("quick", "2")
    for fact in ("device", "processor", "threads", "torch", "xarray", "Python", "eedkit"):
        assert html.escape(facts[fact]) in footer
    assert re.search(r'Profile <b>quick</b>: made by <a href="00_story.ipynb">00_story.ipynb</a> in 0:0\d:\d\d', footer)


def test_a_failed_page_shows_the_error_and_stops_there(made):
    page = made.pages["01_raises"]
    assert "<b>This notebook failed</b> in cell 4: ZeroDivisionError: division by zero" in page
    assert "met True" in page
    assert '<pre tabindex="0">1 / 0</pre>' in page
    assert "<summary>Traceback</summary>" in page
    for absent in ("\x1b[", "papermill", "Never read"):
        assert absent not in page
    assert "the kernel died" in made.pages["02_kernel_dies"]


def test_the_index_has_the_verdicts_and_a_card_for_each_notebook_with_its_answer(made):
    index = made.pages["index"]
    story, raises, kernel_dies, verdicts = re.findall(r"<article.*?</article>", index, re.S)
    for part in (
        '<a href="00_story.html">Is <math',
        "And on which images?",
        "<strong>Yes.</strong>",
        "EED by depth",
    ):
        assert part in story
    assert re.search(r"done · 0:0\d:\d\d", story)
    assert "<details>" not in story
    assert "<b>failed</b> in cell 4: ZeroDivisionError" in raises
    assert "<b>failed</b> in cell 3: the kernel died" in kernel_dies
    opening = re.search(r'<section class="opening">.*?</section>', index, re.S)[0]
    assert '<a href="00_story.html">It is</a>: <strong>supported</strong>' in opening
    assert "supported" not in verdicts
    assert index.index("</section>") < index.index("<article")
    assert "<li>my_notes: its parameters cell" in index
    assert "profile <b>quick</b>" in index


def test_pages_lead_to_each_other_in_order(made):
    links = {}
    for stem in ("00_story", "01_raises", "03_verdicts"):
        links[stem] = re.findall(r'href="(\w+)\.html" rel="(\w+)"', made.pages[stem])
        assert made.pages[stem].count('<a href="index.html">Index</a>') == 2
    assert links["00_story"] == [("01_raises", "next")] * 2
    assert links["01_raises"] == [("00_story", "prev"), ("02_kernel_dies", "next")] * 2
    assert links["03_verdicts"] == [("02_kernel_dies", "prev")] * 2


@pytest.mark.parametrize(("state", "running"), [("waiting", True), ("running", True), ("not run", False)])
def test_what_has_not_ended_says_so_and_shows_no_older_run(written, state, running):
    cells = [new_markdown_cell("# A\n\n> Why?"), shown("1", display({"text/markdown": "old"}), tag="index")]
    page, index = written(*cells, state=state, running=running)
    for text in (page, index):
        assert "old" not in text
        assert "Why?" in text
    assert f"This notebook is not here yet: {state}." in page
    assert ('http-equiv="refresh"' in index) is running
    assert f"when this notebook has ended: {state}." in index
    assert ("<b>0 of 1</b> notebooks have ended" in index) is running


def test_pages_below_the_folder_are_linked(written, tmp_path):
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / "index.html").touch()
    _, index = written(new_markdown_cell("# A"))
    assert '<li><a href="a%20b/index.html">a b</a></li>' in index


def test_a_figure_that_no_file_holds_is_in_the_page_itself(written, tmp_path):
    gone = {"image/png": {"alt": "a <line>", "file": str(tmp_path / "figures" / "gone.png")}}
    drawn = [
        display({"image/png": "iVBO\n", "text/plain": "<Figure>"}, **gone),
        display({"image/svg+xml": '<svg a="1"/>'}),
    ]
    page, _ = written(shown("1", *drawn))
    assert re.search(r'<img alt="a &lt;line&gt;" src="data:image/png;base64,iVBO\s*"/>', page)
    assert 'src="data:image/svg+xml;base64,PHN2ZyBhPSIxIi8+"' in page
    assert "Figure&gt;" not in page


def test_scripts_and_widgets_do_not_reach_a_page(written):
    outputs = [
        display({"application/javascript": "evil()", "text/plain": "<js>"}),
        display({"application/vnd.jupyter.widget-view+json": {}, "text/plain": "HBox()"}),
    ]
    page, _ = written(shown("x", *outputs))
    assert not LOADS.search(page)
    assert "evil" not in page
    assert "HBox" not in page


@pytest.mark.parametrize("code", [True, False])
def test_code_is_shown_where_it_is_asked_for(written, code):
    cells = [shown("before"), shown("measured", display({"text/plain": "answered"}), tag="answer")]
    injected = shown("out = '/home/me/reports'", tag="injected-parameters")
    page, _ = written(injected, *cells, code=code)
    assert ("before" in page) is code
    assert ("measured" in page) is code
    assert "answered" in page
    assert "/home/me" not in page


def test_what_is_foreign_is_text_on_a_page(written):
    table = pd.DataFrame({"<script>column": ["<script>cell"]}, index=["<script>row"])
    outputs = [
        new_output("stream", name="stdout", text="<script>model \x1b[31m<i>red</i>"),
        display({"text/html": table._repr_html_(), "text/plain": "x"}),
        display({"text/plain": "<script>repr"}),
    ]
    page, index = written(
        new_markdown_cell("# Is a < b?\n\nText."),
        shown("'<script>'", *outputs),
        code=True,
        state="failed",
        failure=Failure(2, "<script>source", "Odd: <script>error", "<script>traceback"),
        declared={"<script>name": Parameter(1, "int", "<script>comment")},
        parameters={"<script>name": "<script>value"},
        facts=FACTS | {"torch": "<script>torch"},
    )
    of_outputs = ["model", "cell", "row", "column", "repr"]
    for text in [*of_outputs, "source", "error", "traceback", "name", "value", "comment", "torch"]:
        assert f"&lt;script&gt;{text}" in page
    assert "&lt;script&gt;error" in index
    assert "&lt;b&gt;: broken" in index
    assert "<title>Is a &lt; b? – eedkit</title>" in page
    assert "<script" not in page + index
    assert "<i>red" not in page


def test_without_a_kernel_the_page_still_says_why(written):
    page, _ = written(new_markdown_cell("# A"), state="failed", failure=Failure(0, "", "NoSuchKernel: python3"))
    assert "before its first cell: NoSuchKernel: python3" in page
