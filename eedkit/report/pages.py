"""The HTML report: one page for each notebook, its answer first, and an index of cards.

Knows notebooks and templates; must not know models or results. A second to import nbconvert, tenths of one for a page.
"""

import html
import math
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote

import jinja2
import nbformat
from markupsafe import Markup, escape
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from pygments.formatters import HtmlFormatter
from traitlets.config import Config

import eedkit
from eedkit.machine import processor_name
from eedkit.report import kept
from eedkit.report.formulas import markdown
from eedkit.report.kernel import Run, executed_cells, tags

WIDGET = "application/vnd.jupyter.widget-view+json"
"""What needs scripts."""
_HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+(.+?)[ \t]*#*[ \t]*$", re.M)
_QUOTE = re.compile(r"^ {0,3}>.*(?:\n {0,3}>.*)*", re.M)
_SECTION = re.compile(r"<h2>(.*?)</h2>", re.S)
_TITLE = re.compile(r"<title>(.*?)</title>", re.S)
_DETAILS = re.compile(r"<details>.*?</details>", re.S)
_IMAGES = ("image/svg+xml", "image/png", "image/jpeg")


@dataclass
class Page:
    """What a notebook says: its parts as HTML, made once when it has ended."""

    run: Run
    title: Markup
    question: Markup
    answer: Markup
    """The outputs of its cells tagged `answer`, which page and card begin with."""
    opening: Markup
    """The outputs of its cells tagged `index`, which the index begins with."""
    body: Markup
    sections: list[tuple[str, Markup]]
    """Anchor and heading of each section of the body."""
    stores: list[str]
    """The stores that its code names and that there are."""

    @property
    def time(self) -> str:
        """How long it took: hours, minutes and seconds."""
        return str(timedelta(seconds=math.ceil(self.run.seconds)))


def page_of(run: Run, *, code: bool = False) -> Page:
    """The parts of a notebook's page; title and question alone where it was not run.

    Code is shown where `code` or the notebook's metadata `"eedkit": {"code": true}` say so.
    """
    out = run.executed.parent
    code = code or run.notebook.metadata.get("eedkit", {}).get("code", False)
    prose = [cell.source for cell in run.notebook.cells if cell.cell_type == "markdown"]
    heading = _HEADING.search("\n\n".join(prose))
    quoted = _QUOTE.search(prose[0] if prose else "")
    title = heading[1] if heading else run.stem
    question = re.sub(r"^ {0,3}> ?", "", quoted[0], flags=re.M) if quoted else ""
    cells = executed_cells(run)
    _take_out(heading, cells)
    _take_out(quoted, cells)
    latest_heading = title
    for cell in cells:
        if cell.cell_type == "markdown":
            latest_heading = [latest_heading, *_HEADING.findall(cell.source)][-1]
        elif cell.cell_type == "code":
            cell.outputs = _outputs(cell, out, latest_heading)
    answers = [cell for cell in cells if "answer" in tags(cell) and cell.cell_type == "code"]
    opening = _exported([cell for cell in cells if "index" in tags(cell)], code=False)
    answer = _exported(answers, code=False)
    for cell in answers:
        cell.outputs = []  # they stand above
    body, sections = _with_anchors(_exported(cells, code=code))
    return Page(
        run,
        title=Markup(markdown(title).strip().removeprefix("<p>").removesuffix("</p>")),
        question=Markup(markdown(question)),
        answer=answer,
        opening=opening,
        body=body,
        sections=sections,
        stores=[name for name in kept.names_below_out(run) if (out / name).is_dir()],
    )


def write_page(page: Page, pages: Sequence[Page], profile: str, *, running: bool) -> None:
    """Write one of the pages, which lead to each other in their order; also where it was not run, so that no link is dead.

    While the report is `running`, a page that waits looks for news by itself.
    """
    place = pages.index(page)
    template = _environment().get_template("page.html.j2")
    text = template.render(
        page=page,
        run=page.run,
        before=pages[place - 1] if place else None,
        after=pages[place + 1] if place + 1 < len(pages) else None,
        facts=page.run.facts or {},
        profile=profile,
        refresh=running and not page.run.has_ended,
    )
    _write(page.run.executed.with_suffix(".html"), text)


def write_index(pages: Sequence[Page], out: Path, profile: str, *, running: bool, left_out: Sequence[str] = ()) -> Path:
    """Write the index: the outputs of cells tagged `index`, a card for each notebook with its answer, and what was left out.

    While the report is `running`, the index looks for news by itself.
    """
    opening = None
    for page in pages:
        if any("index" in tags(cell) for cell in page.run.notebook.cells):
            opening = page
    further = []
    for other in sorted(out.glob("*/index.html")):
        title = _TITLE.search(other.read_text(encoding="utf-8"))
        further.append((html.unescape(title[1]) if title else other.parent.name, _address(other, out)))
    template = _environment().get_template("index.html.j2")
    text = template.render(
        pages=pages,
        opening=opening,
        answers=[Markup(_DETAILS.sub("", page.answer)) for page in pages],
        ended=sum(page.run.has_ended for page in pages),
        left_out=left_out,
        further=further,
        facts=next((page.run.facts for page in pages if page.run.facts), {}),
        profile=profile,
        refresh=running,
    )
    index = out / "index.html"
    _write(index, text)
    return index


def provenance(profile: str, threads: str) -> dict[str, str]:
    """What the numbers of a run were made with: profile, date, machine, threads, versions and commit."""
    import torch  # two seconds, and only a report that runs something needs it

    return {
        "profile": profile,
        "date": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "processor": f"{processor_name()}, {os.cpu_count()} cores",
        "threads": threads,
        "eedkit": _eedkit_version(),
        "Python": platform.python_version(),
        "torch": version("torch"),
        "xarray": version("xarray"),
    }


def _take_out(match: re.Match | None, cells: list[NotebookNode]) -> None:
    """Remove what the page's head shows, title or question, from the cell that holds it."""
    for cell in cells:
        if match and cell.cell_type == "markdown" and match[0] in cell.source:
            cell.source = cell.source.replace(match[0], "", 1)
            return


def _outputs(cell: NotebookNode, out: Path, heading: str) -> list[NotebookNode]:
    """A cell's outputs as a page shows them."""
    outputs = []
    for output in cell.outputs:
        data = output.get("data", {})
        if output.output_type == "error" or output.get("name") == "stderr" or WIDGET in data:
            continue
        image = next((kind for kind in _IMAGES if kind in data), None)
        if data.get("text/html"):
            data["text/html"] = f'<div class="scroll" tabindex="0">{data["text/html"]}</div>'
        elif image and "text/markdown" not in data:
            data["text/html"] = _picture(image, output, out, f"Figure: {heading}")
        elif "text/latex" in data:
            data.setdefault("text/markdown", data["text/latex"])
        outputs.append(output)
    return outputs


def _picture(kind: str, output: NotebookNode, out: Path, otherwise: str) -> str:
    """An image as the file that the cell saved (`plots.save` says which), else in the page itself."""
    about = output.metadata.get(kind, {})
    alt = escape(about.get("alt") or otherwise)
    file = Path(about.get("file", ""))
    if file.is_file() and file.is_relative_to(out):
        address = _address(file, out)
        return f'<a class="figure" href="{address}"><img alt="{alt}" src="{address}"></a>'
    content = output.data[kind]
    if kind == "image/svg+xml":
        return f'<span class="figure"><img alt="{alt}" src="data:{kind},{quote(content)}"></span>'
    return f'<span class="figure"><img alt="{alt}" src="data:{kind};base64,{escape(content.strip())}"></span>'


@jinja2.pass_context
def _cell_markdown(context: jinja2.runtime.Context, source: str) -> str:
    return markdown(source, context.get("cell", {}).get("attachments"))


@cache
def _exporter(code: bool) -> HTMLExporter:
    """nbconvert's `basic` cells with our Markdown, and without what needs scripts."""
    return HTMLExporter(
        template_name="basic",
        filters={"markdown2html": _cell_markdown},
        exclude_input=not code,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        exclude_anchor_links=True,
        config=Config(NbConvertBase={"display_data_priority": ["text/html", "text/markdown", "text/plain"]}),
    )


def _exported(cells: list[NotebookNode], *, code: bool) -> Markup:
    """Cells as HTML, in which the keyboard scrolls what is too wide."""
    if not cells:
        return Markup("")
    content = _exporter(code).from_notebook_node(nbformat.v4.new_notebook(cells=cells))[0]
    return Markup(content.replace("<pre>", '<pre tabindex="0">'))


def _with_anchors(content: str) -> tuple[Markup, list[tuple[str, Markup]]]:
    """The page's text with an anchor at every section, and anchor and heading of each."""
    sections = []

    def anchored(heading: re.Match) -> str:
        anchor = f"section-{len(sections) + 1}"
        sections.append((anchor, Markup(heading[1])))
        return f'<h2 id="{anchor}">{heading[1]}</h2>'

    return Markup(_SECTION.sub(anchored, content)), sections


def _address(file: Path, out: Path) -> str:
    """The address of a file below the report's folder, as pages in that folder write it."""
    return quote(file.relative_to(out).as_posix())


def _write(file: Path, text: str) -> None:
    """Write a page whole or not at all: somebody may be reading it."""
    beside = file.with_name(f".{file.name}.partial")
    beside.write_text(text, encoding="utf-8")
    beside.replace(file)


@cache
def _environment() -> jinja2.Environment:
    folder = Path(__file__).parent / "templates"
    loader = jinja2.FileSystemLoader(folder)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.globals["highlight"] = {
        "light": HtmlFormatter(style="default").get_style_defs(".highlight"),
        "dark": HtmlFormatter(style="github-dark").get_style_defs(".highlight"),
    }
    return environment


@cache
def _eedkit_version() -> str:
    """With the repository's commit where eedkit runs from one, and `-dirty` behind it after local changes."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return eedkit.__version__
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return eedkit.__version__
    return f"{eedkit.__version__} ({commit})"
