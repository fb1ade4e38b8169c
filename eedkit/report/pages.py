"""The HTML report: one page for each notebook, its answer first, and an index of cards.

Knows notebooks and templates; must not know models or results. A second to import nbconvert, tenths of one for a page.
"""

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
from eedkit.report.formulas import markdown
from eedkit.report.kernel import Run, executed_cells, tags

_HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+(.+?)[ \t]*#*[ \t]*$", re.M)
_QUOTE = re.compile(r"^ {0,3}>.*(?:\n {0,3}>.*)*", re.M)
_DETAILS = re.compile(r"<details>.*?</details>", re.S)
_SHOWN = ["text/html", "text/markdown", "image/svg+xml", "image/png", "image/jpeg", "text/plain"]
"""Kinds of output, the first one that there is; scripts and widgets are not among them."""


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

    @property
    def time(self) -> str:
        """How long it took: hours, minutes and seconds."""
        return str(timedelta(seconds=math.ceil(self.run.seconds)))


def page_of(run: Run) -> Page:
    """The parts of a notebook's page; title and question alone where it was not run.

    Code is shown where the notebook's metadata say `"eedkit": {"code": true}`.
    """
    code = run.notebook.metadata.get("eedkit", {}).get("code", False)
    prose = [cell.source for cell in run.notebook.cells if cell.cell_type == "markdown"]
    heading = _HEADING.search("\n\n".join(prose))
    quoted = _QUOTE.search(prose[0] if prose else "")
    title = heading[1] if heading else run.stem
    question = re.sub(r"^ {0,3}> ?", "", quoted[0], flags=re.M) if quoted else ""
    cells = executed_cells(run)
    _take_out(heading, cells)
    _take_out(quoted, cells)
    for cell in cells:
        if cell.cell_type == "code":
            cell.outputs = _outputs(cell, run.executed.parent)
    answers = [cell for cell in cells if "answer" in tags(cell) and cell.cell_type == "code"]
    opening = _exported([cell for cell in cells if "index" in tags(cell)], code=False)
    answer = _exported(answers, code=False)
    for cell in answers:
        cell.outputs = []  # they stand above
    return Page(
        run,
        title=Markup(markdown(title).strip().removeprefix("<p>").removesuffix("</p>")),
        question=Markup(markdown(question)),
        answer=answer,
        opening=opening,
        body=_exported(cells, code=code),
    )


def write_page(page: Page, pages: Sequence[Page], profile: str) -> None:
    """Write one of the pages, which lead to each other in their order; also where it was not run, so that no link is dead."""
    place = pages.index(page)
    template = _environment().get_template("page.html.j2")
    text = template.render(
        page=page,
        run=page.run,
        before=pages[place - 1] if place else None,
        after=pages[place + 1] if place + 1 < len(pages) else None,
        facts=page.run.facts or {},
        profile=profile,
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
    template = _environment().get_template("index.html.j2")
    text = template.render(
        pages=pages,
        opening=opening,
        answers=[Markup(_DETAILS.sub("", page.answer)) for page in pages],
        ended=sum(page.run.has_ended for page in pages),
        left_out=left_out,
        further=sorted(other.parent.name for other in out.glob("*/index.html")),
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


def _outputs(cell: NotebookNode, out: Path) -> list[NotebookNode]:
    """A cell's outputs as a page shows them: no warnings, no widgets, a figure as the file that `plots.save` left below `out`."""
    outputs = []
    for output in cell.outputs:
        data = output.get("data", {})
        is_widget = "application/vnd.jupyter.widget-view+json" in data
        if output.output_type == "error" or output.get("name") == "stderr" or is_widget:
            continue
        if data.get("text/html"):
            data["text/html"] = f'<div class="scroll" tabindex="0">{data["text/html"]}</div>'
        for kind in ("image/svg+xml", "image/png"):
            about = output.get("metadata", {}).get(kind, {})
            file = Path(about.get("file", ""))
            if kind in data and file.is_file() and file.is_relative_to(out):
                address = quote(file.relative_to(out).as_posix())
                image = f'<img alt="{escape(about["alt"])}" src="{address}">'
                data["text/html"] = f'<a class="figure" href="{address}">{image}</a>'
        outputs.append(output)
    return outputs


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
        config=Config(NbConvertBase={"display_data_priority": _SHOWN}),
    )


def _exported(cells: list[NotebookNode], *, code: bool) -> Markup:
    """Cells as HTML, in which the keyboard scrolls what is too wide."""
    if not cells:
        return Markup("")
    content = _exporter(code).from_notebook_node(nbformat.v4.new_notebook(cells=cells))[0]
    return Markup(content.replace("<pre>", '<pre tabindex="0">'))


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
