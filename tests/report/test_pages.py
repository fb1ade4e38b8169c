import html
import os
import re
from dataclasses import replace
from html.parser import HTMLParser

import nbformat
import pandas as pd
import pytest

from eedkit.report import pages
from eedkit.report.formulas import markdown, mathml
from eedkit.report.pages import Run, write_index, write_page

FACTS = {
    "profile": "tiny",
    "date": "2026-01-01 00:00 UTC",
    "device": "CPU",
    "processor": "a processor, 2 cores",
    "threads": "1",
    "eedkit": "0.1.0",
    "torch": "2.15.0",
}


class Loads(HTMLParser):
    """Every address that a page loads or that its styles import; links in prose and XML names of vocabularies are not loaded."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.style = False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.style = tag == "style"
        if tag in {"script", "link", "iframe", "object", "embed", "base"}:
            self.found.append(tag)
        for name, value in attributes:
            loading = name in {"src", "srcset", "data", "poster", "background", "xlink:href"} or (
                name == "href" and tag != "a"
            )
            if loading and re.match(r"\s*(https?:)?//", value or ""):
                self.found.append(value)
            if name == "style" or name.startswith("on"):
                self.handle_data(value or "", style=True)

    def handle_data(self, data, style=False):
        if self.style or style:
            self.found += re.findall(r"@import[^;]*|url\(\s*['\"]?(?:https?:)?//[^)]*", data)

    def handle_endtag(self, tag):
        self.style = False


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
    assert Loads(page).found


def test_no_page_loads_anything(made):
    assert set(made.pages) == {"index", "00_story", "01_raises", "02_dies"}
    assert {name: Loads(page).found for name, page in made.pages.items()} == {name: [] for name in made.pages}
    assert 'href="https://example.org/paper"' in made.pages["00_story"]


def test_a_browser_is_told_to_load_nothing(made):
    for page in made.pages.values():
        assert "default-src 'none'; img-src 'self' file: data:; style-src 'unsafe-inline'" in page


def test_scripts_and_widgets_of_a_notebook_do_not_reach_its_page(tmp_path):
    outputs = [
        nbformat.v4.new_output("display_data", {"application/javascript": "evil()", "text/plain": "<js>"}),
        nbformat.v4.new_output(
            "display_data", {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "HBox()"}
        ),
        nbformat.v4.new_output("display_data", {"text/latex": "$x^2$", "text/plain": "x**2"}),
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x", outputs=outputs)])
    nbformat.write(notebook, tmp_path / "a.ipynb")
    run = Run(tmp_path / "a.ipynb", tmp_path / "a.ipynb", {}, 1.0)
    page = write_page(run, [run], tmp_path, FACTS).read_text()
    assert Loads(page).found == []
    assert "evil" not in page
    assert "HBox" not in page
    assert "<msup><mi>x</mi><mn>2</mn></msup>" in page


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("$x$", "<mi>x</mi>"),
        ("a\n\n$$\nx\n\n+ y\n$$\n\nb", "<mi>x</mi><mo>&#x0002B;</mo><mi>y</mi>"),
        ("inside $$x$$ prose", 'display="block"'),
        (r"\begin{aligned} a &= b \\ c &= d \end{aligned}", "<mtable"),
        (r"$\mathbb R$", "&#x0211D;"),
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
        "`$$x$$`",
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
    "tex", [r"\frac{1}{", "x^", r"\nosuchcommand{x}", r"a & b", "}", r"\left( x", r"\begin{nosuch} a & b \end{nosuch}"]
)
def test_a_formula_that_cannot_be_converted_stays_readable(tex):
    assert mathml(tex) == f'<code class="formula">${tex.replace("&", "&amp;")}$</code>'
    assert mathml(tex, block=True).startswith('<code class="formula">$$')


def test_the_story_page_shows_text_figure_table_and_no_progress(made):
    page = made.pages["00_story"]
    body = page[page.index("<main>") : page.index("</main>")]
    assert page.count("<h1>") == 1  # the heading is the page's, not said twice
    assert re.search(r"<h1>Is <math.*</math> the orbit mean\?</h1>", page)
    assert "<title>Is " in page
    assert "<blockquote>" in body
    picture = '<img alt="Figure: Is $\\hat f$ the orbit mean?" src="figures/00_story_depth.svg"/>'
    assert f'<a class="figure" href="figures/00_story_depth.svg">{picture}</a>' in body
    assert "data:image" not in body
    assert '<table border="1" class="dataframe">' in body
    assert "seeds 3 margin 1" in body
    assert "training seed" not in page
    assert "plt.show" not in page
    assert "<code>$HOME</code>" in body
    assert "$$not math$$" in body
    assert '<code class="formula">$\\frac{1}{$</code>' in body


def test_a_page_says_what_it_was_made_with(made):
    page = made.pages["00_story"]
    for text in (
        '<a href="index.html">',
        "profile <b>quick</b>",
        '<th scope="row">margin</th><td><code>1</code>',
        *(
            f'<th scope="row">{fact}</th>'
            for fact in ("torch", "xarray", "Python", "device", "processor", "threads", "eedkit")
        ),
    ):
        assert text in page
    assert str(made.out) not in page
    head = page[page.index("<header>") : page.index("</header>")]
    facts = pages.provenance("quick")
    for fact in (
        facts["processor"],
        f"threads {facts['threads']}",
        f"torch {facts['torch']}",
        f"eedkit {facts['eedkit']}",
    ):
        assert html.escape(fact) in head


def test_a_failed_page_shows_the_error_and_stops_there(made):
    page = made.pages["01_raises"]
    assert "<b>This notebook failed</b> in cell 4: ZeroDivisionError: division by zero" in page
    assert "before" in page
    assert '<pre tabindex="0">1 / 0</pre>' in page
    assert "<summary>Traceback</summary>" in page
    assert "\x1b[" not in page
    assert "papermill-error-cell" not in page
    assert "Never read" not in page
    assert "the kernel died" in made.pages["02_dies"]


def test_the_index_has_a_card_for_each_notebook(made):
    index = made.pages["index"]
    story, raises, dies = re.findall(r"<article.*?</article>", index, re.S)
    assert '<a href="00_story.html">Is <math' in story
    assert "Does <code>measure</code> agree with <math" in story
    assert "And on which images?" in story
    assert re.search('<img alt="Key figure of: Is [^"]*" src="figures/00_story_depth.svg">', story)
    assert re.search(r"done · \d+(\.\d)? s", story)
    assert "<b>failed</b> in cell 4: ZeroDivisionError" in raises
    assert "<img" not in raises
    assert "<b>failed</b> in cell 3: the kernel died" in dies
    assert "profile <b>quick</b>" in index
    assert "torch 2." in index


def figure_of(made, folder):
    """The story's figure, copied into the folder of another report."""
    (folder / "figures").mkdir()
    figure = folder / "figures" / "00_story_depth.svg"
    figure.write_bytes((made.out / "figures" / figure.name).read_bytes())
    return figure


def test_what_was_not_run_is_said_and_an_older_figure_is_not_shown(made, home, tmp_path):
    figure = figure_of(made, tmp_path)
    waiting = Run(home / "00_story.ipynb", made.out / "00_story.ipynb", {})
    done = replace(waiting, seconds=1.0, started=1000.0)
    for run, shown in ((waiting, False), (done, True)):
        index = write_index([run], tmp_path, FACTS).read_text()
        assert ("<img" in index) is shown
        assert ("not run" in index) is not shown
    os.utime(figure, (900, 900))
    index = write_index([done], tmp_path, FACTS).read_text()
    assert "<img" not in index
    # the key figure that the notebook announces was not written: the card says so, not nothing
    assert "it wrote no figure <code>00_story_depth</code>" in index
    assert "it wrote no figure" not in made.pages["index"]


def test_a_page_that_was_not_run_says_so_and_shows_no_older_run(made, home, tmp_path):
    run = Run(home / "00_story.ipynb", made.out / "00_story.ipynb", {})
    page = write_page(run, [run], tmp_path, FACTS).read_text()
    assert "This notebook was not run in this report." in page
    assert "<table border" not in page
    assert "were made by" not in page


def test_figures_are_described_by_their_files_and_lead_to_them(made, home, tmp_path):
    figure = figure_of(made, tmp_path)
    figure.write_text('<svg xmlns="http://www.w3.org/2000/svg"><desc>Plain\n &lt;b&gt; falls.</desc></svg>')
    run = Run(home / "00_story.ipynb", made.out / "00_story.ipynb", {}, 1.0)
    page = write_page(run, [run], tmp_path, FACTS).read_text()
    index = write_index([run], tmp_path, FACTS).read_text()
    picture = '<img alt="Plain &lt;b&gt; falls." src="figures/00_story_depth.svg">'
    assert picture in index
    assert f'<a class="figure" href="figures/00_story_depth.svg">{picture.removesuffix(">")}/></a>' in page


def test_a_figure_that_no_file_holds_is_shown_from_the_notebook(made, home, tmp_path):
    run = Run(home / "00_story.ipynb", made.out / "00_story.ipynb", {}, 1.0)
    page = write_page(run, [run], tmp_path, FACTS).read_text()
    assert re.search(r'<img alt="Figure: Is [^"]*" src="data:image/png;base64,', page)


def test_pages_lead_to_each_other_in_order(made):
    links = {}
    for stem in ("00_story", "01_raises", "02_dies"):
        links[stem] = re.findall(r'href="(\w+)\.html" rel="(\w+)"', made.pages[stem])
        assert made.pages[stem].count('<a href="index.html">Index</a>') == 2
    assert links["00_story"] == [("01_raises", "next")] * 2
    assert links["01_raises"] == [("00_story", "prev"), ("02_dies", "next")] * 2
    assert links["02_dies"] == [("01_raises", "prev")] * 2


@pytest.mark.parametrize(("count", "listed"), [(2, False), (3, True)])
def test_sections_of_a_long_page_are_listed(book, tmp_path, count, listed):
    path = book(tmp_path / "a.ipynb", "# A", *[f"## Part {k}" for k in range(count)])
    run = Run(path, path, {}, 1.0)
    page = write_page(run, [run], tmp_path, FACTS).read_text()
    assert ('<nav class="sections"' in page) is listed
    anchors = re.findall(r'<li><a href="#([^"]+)">Part', page)
    assert all(f'<h2 id="{anchor}">' in page for anchor in anchors)
    assert len(anchors) == count * listed


def test_a_page_names_the_stores_that_its_code_reads(book, tmp_path):
    path = book(tmp_path / "a.ipynb", "# A", 'one = f"{out}/{name}.study"\nother = f"{out}/missing.study"')
    (tmp_path / "quick.study").mkdir()
    run = Run(path, path, {"name": "quick"}, 1.0)
    footer = write_page(run, [run], tmp_path, FACTS).read_text().partition("<footer>")[2]
    assert "with eedkit 0.1.0, from this store beside the page: <code>quick.study</code>." in footer
    assert "missing" not in footer


HEADLINE = nbformat.v4.new_output("display_data", {"text/markdown": "1. [Layers](01.html): **supported**"})


@pytest.fixture
def verdicts(tmp_path):
    """A notebook, executed, whose last cell opens the index."""
    told = nbformat.v4.new_code_cell("headlines", outputs=[HEADLINE], metadata={"tags": ["index"]})
    other = nbformat.v4.new_code_cell("table", outputs=[nbformat.v4.new_output("stream", text="not on the index")])
    cells = [nbformat.v4.new_markdown_cell("# Verdicts"), other, told]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "06_verdicts.ipynb")
    return Run(tmp_path / "06_verdicts.ipynb", tmp_path / "06_verdicts.ipynb", {}, 1.0)


def test_cells_tagged_index_open_the_index(verdicts, home, tmp_path):
    assert pages.opens_index(verdicts.source)
    assert not pages.opens_index(home / "00_story.ipynb")
    index = write_index([verdicts], tmp_path, FACTS, opening=verdicts.source).read_text()
    opening = re.search(r'<section class="opening">.*?</section>', index, re.S)[0]
    assert '<a href="01.html">Layers</a>: <strong>supported</strong>' in opening
    assert '<a href="06_verdicts.html">Verdicts</a>' in opening
    assert "not on the index" not in index
    assert index.index("<article") > index.index("</section>")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"seconds": None}, "was not run"),
        ({"failure": pages.Failure(1, 2, "", "KeyError: 'x'", "")}, "failed in cell 2: KeyError"),
        (None, "is not part of this report"),
    ],
)
def test_the_index_says_why_nothing_opens_it(verdicts, tmp_path, change, why):
    runs = [] if change is None else [replace(verdicts, **change)]
    index = write_index(runs, tmp_path, FACTS, opening=verdicts.source).read_text()
    assert f"because <code>06_verdicts</code> {why}" in html.unescape(index)
    assert "supported" not in index


def test_the_index_names_other_pages_below_the_folder(verdicts, tmp_path):
    (tmp_path / "api").mkdir()
    (tmp_path / "api" / "index.html").write_text("<title>API &amp; more</title>")
    index = write_index([verdicts], tmp_path, FACTS).read_text()
    assert '<li><a href="api/index.html">API &amp; more</a></li>' in index


def test_what_says_nothing_stays_away(tmp_path):
    empty = pd.DataFrame({"model": []})
    outputs = [nbformat.v4.new_output("display_data", {"text/html": empty._repr_html_(), "text/plain": "Empty"})]
    injected = nbformat.v4.new_code_cell("out = '/home/me/reports'", metadata={"tags": ["injected-parameters"]})
    cells = [injected, nbformat.v4.new_code_cell("large", outputs=outputs)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "a.ipynb")
    run = Run(tmp_path / "a.ipynb", tmp_path / "a.ipynb", {}, 1.0)
    page = write_page(run, [run], tmp_path, FACTS, code=True).read_text()
    assert "large" in page
    assert "Empty" not in page
    assert "dataframe" not in page.partition("</style>")[2]
    assert "/home/me" not in page


def test_code_is_shown_when_asked_for(made, home, tmp_path):
    run = Run(home / "00_story.ipynb", made.out / "00_story.ipynb", {}, 1.0)
    page = write_page(run, [run], tmp_path, FACTS, code=True).read_text()
    assert "savefig" in page


def test_a_title_is_text_not_markup_of_the_page(tmp_path):
    path = tmp_path / "a.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Is a < b?\n\nText.")]), path)
    run = Run(path, path, {"name": "<script>"}, 1.0)
    page = write_page(run, [run], tmp_path, FACTS).read_text()
    assert "<title>Is a &lt; b? – eedkit</title>" in page
    assert "<script>" not in page


def test_errors_outputs_and_figures_are_text_on_a_page(tmp_path):
    path = tmp_path / "a.ipynb"
    tagged = nbformat.v4.new_code_cell("x = 1", metadata={"tags": ["parameters"]})
    printed = nbformat.v4.new_output("stream", name="stdout", text="<script>model</script> \x1b[31m<i>red</i>")
    table = pd.DataFrame({"<script>column</script>": ["<script>cell</script>"]}, index=["<script>row</script>"])
    shown = nbformat.v4.new_output("display_data", {"text/html": table._repr_html_(), "text/plain": "x"})
    plain = nbformat.v4.new_output("display_data", {"text/plain": "<script>repr</script>"})
    cell = nbformat.v4.new_code_cell("'<script>'", outputs=[printed, shown, plain])
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# T"), tagged, cell]), path)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "<script>.png").write_bytes(b"")
    failure = pages.Failure(2, 2, "<script>source", "Odd: <script>model", "<script>traceback")
    run = Run(path, path, {"<script>name": "<script>value"}, 1.0, 0.0, failure)
    facts = FACTS | {"profile": "<script>profile"}
    page = write_page(run, [run], tmp_path, facts, code=True).read_text()
    index = write_index([run], tmp_path, facts).read_text()
    for text in ("model", "cell", "row", "column", "repr", "source", "traceback", "name", "profile"):
        assert f"&lt;script&gt;{text}" in page
    assert "&lt;script&gt;model" in index
    assert "<script" not in page + index
    assert "<i>red" not in page


def test_without_an_executed_notebook_the_page_still_says_why(tmp_path, home):
    failure = pages.Failure(-1, 0, "", "NoSuchKernel: python3", "")
    run = Run(home / "00_story.ipynb", tmp_path / "missing.ipynb", {}, 1.0, 0.0, failure)
    page = write_page(run, [run], tmp_path, FACTS).read_text()
    assert "before its first cell: NoSuchKernel: python3" in page
