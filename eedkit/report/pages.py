"""The HTML report: one page for each notebook, and an index of cards.

Knows notebooks and templates; must not know papermill, models or results.
"""

import html
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jinja2
import nbformat
from markupsafe import Markup
from nbformat import NotebookNode
from pygments.formatters import HtmlFormatter

import eedkit
from eedkit.machine import processor_name
from eedkit.report import body
from eedkit.report.formulas import markdown

_SECTION = re.compile(r"<h2>(.*?)</h2>", re.S)
_TITLE = re.compile(r"<title>(.*?)</title>", re.S)
_QUOTE = re.compile(r"^ {0,3}>.*(?:\n {0,3}>.*)*", re.M)


@dataclass(frozen=True)
class Failure:
    """Where and why a notebook stopped: `index` among the executed cells, `cell` from 1 as the author counts, 0 before the first."""

    index: int
    cell: int
    source: str
    error: str
    traceback: str

    def __str__(self) -> str:
        first = self.error.strip().splitlines()[0] if self.error.strip() else "unknown error"
        return f"cell {self.cell}: {first}" if self.cell else f"before its first cell: {first}"


@dataclass(frozen=True)
class Run:
    """One notebook of a report: what was run and how it went. `seconds` is None where it was not run (yet)."""

    source: Path
    executed: Path
    parameters: dict[str, Any]
    seconds: float | None = None
    started: float = 0.0
    failure: Failure | None = None

    @property
    def stem(self) -> str:
        """The notebook's file name without its ending."""
        return self.source.stem

    @property
    def status(self) -> str:
        """`done`, `failed` or `not run`."""
        return "failed" if self.failure else "not run" if self.seconds is None else "done"


def write_page(run: Run, runs: Sequence[Run], out: Path, facts: Mapping[str, str], *, code: bool = False) -> Path:
    """Write a notebook's page, also where it was not run (yet), so that no link to it is dead.

    Parameters
    ----------
    run : Run
        The executed notebook is read where there is one.
    runs : sequence of Run
        All of the report, in the order in which pages lead to each other.
    out : Path
        The report's folder.
    facts : mapping of str to str
        See `provenance()`.
    code : bool
        Show the cells' code.

    Returns
    -------
    Path
        Of `<stem>.html`.
    """
    source = nbformat.read(run.source, as_version=4)
    place = [other.stem for other in runs].index(run.stem)
    executed = _executed(run)
    content, sections = _with_anchors(body.html(executed, out, run.parameters, since=run.started, code=code))
    text = _template("page.html.j2").render(
        **_about(run, out),
        body=content,
        sections=sections,
        before=_title(runs[place - 1]) if place else None,
        after=_title(runs[place + 1]) if place + 1 < len(runs) else None,
        stores=_stores(source, run, out),
        parameters={name: repr(value) for name, value in run.parameters.items() if name != "out"},
        facts=facts,
    )
    page = out / f"{run.stem}.html"
    page.write_text(text, encoding="utf-8")
    return page


def write_index(runs: Sequence[Run], out: Path, facts: Mapping[str, str], *, opening: Path | None = None) -> Path:
    """Write the index: what the notebook `opening` says first, then a card for each notebook, those that were not run included.

    Parameters
    ----------
    runs : sequence of Run
        In the order of the cards.
    out : Path
        The report's folder.
    facts : mapping of str to str
        See `provenance()`.
    opening : Path, optional
        The notebook whose cells tagged `index` open the page. Where it is none of the runs, or did not end, the page says so.

    Returns
    -------
    Path
        Of `index.html`.
    """
    index = out / "index.html"
    text = _template("index.html.j2").render(
        cards=[_about(run, out) for run in runs],
        opening=_opening(opening, runs, out) if opening else None,
        also=_further_pages(out),
        facts=facts,
    )
    index.write_text(text, encoding="utf-8")
    return index


def opens_index(notebook: Path) -> bool:
    """Whether a notebook has cells tagged `index`."""
    cells = nbformat.read(notebook, as_version=4).cells
    return any(body.INDEX in cell.metadata.get("tags", ()) for cell in cells)


def provenance(profile: str) -> dict[str, str]:
    """What the numbers were made with: profile, date, machine, threads, versions and commit.

    >>> provenance("quick")["profile"]
    'quick'
    """
    import torch  # 1.6 s, and only a report that runs needs it

    commit = _commit()
    return {
        "profile": profile,
        "date": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "processor": f"{processor_name()}, {os.cpu_count()} cores",
        "threads": str(torch.get_num_threads()),
        "eedkit": f"{eedkit.__version__} ({commit})" if commit else eedkit.__version__,
        "Python": platform.python_version(),
        "torch": _version("torch"),
        "xarray": _version("xarray"),
    }


def duration(seconds: float | None) -> str:
    """A time as people say it.

    >>> duration(4.26), duration(185), duration(None)
    ('4.3 s', '3 min 05 s', 'not run')
    """
    if seconds is None:
        return "not run"
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    return f"{round(seconds) // 60} min {round(seconds) % 60:02d} s"


def _about(run: Run, out: Path) -> dict[str, Any]:
    """What a card and a page's head say of a notebook: taken from its source, so that it needs no run."""
    notebook = nbformat.read(run.source, as_version=4)
    key = notebook.metadata.get("eedkit", {}).get("key_figure")
    return _title(run) | {
        "question": _question(notebook),
        "key": key,
        "figure": _key_figure(notebook, run, out, key),
        "time": duration(run.seconds),
        "status": run.status,
        "failure": run.failure,
    }


def _title(run: Run) -> dict[str, Any]:
    """How other pages name a notebook's page."""
    notebook = nbformat.read(run.source, as_version=4)
    prose = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    heading = body.HEADING.search(prose)
    title = markdown(heading[1] if heading else run.stem).strip().removeprefix("<p>").removesuffix("</p>")
    return {
        "stem": run.stem,
        "title": Markup(title),
        "plain_title": html.unescape(re.sub(r"<[^>]+>", "", title)),
    }


def _question(notebook: NotebookNode) -> Markup:
    """The quotation in the notebook's first text."""
    first = next((cell.source for cell in notebook.cells if cell.cell_type == "markdown"), "")
    quoted = _QUOTE.search(first)
    if not quoted:
        return Markup("")
    return Markup(markdown(re.sub(r"^ {0,3}> ?", "", quoted[0], flags=re.M)))


def _key_figure(notebook: NotebookNode, run: Run, out: Path, key: str | None) -> dict[str, str] | None:
    """Address and alternative text of the figure that a notebook calls its key figure, where this run wrote it."""
    if run.seconds is None:
        return None
    for file in body.figures(body.code_of(notebook), run.parameters, out, since=run.started):
        if file.stem == key:
            alt = body.alt_text(file) or f"Key figure of: {_title(run)['plain_title']}"
            return {"address": body.address(file, out), "alt": alt}
    return None


def _executed(run: Run) -> NotebookNode:
    """The executed notebook up to the cell that failed; an empty one where no kernel started."""
    if run.seconds is None or not run.executed.exists():
        return nbformat.v4.new_notebook()
    notebook = nbformat.read(run.executed, as_version=4)
    cells = [cell for cell in notebook.cells if "papermill-error-cell-tag" not in cell.metadata.get("tags", ())]
    notebook.cells = cells[: run.failure.index + 1] if run.failure else cells
    return notebook


def _opening(source: Path, runs: Sequence[Run], out: Path) -> dict[str, Any]:
    """What opens the index, or why nothing does."""
    run = next((run for run in runs if run.source == source), None)
    if run is None:
        unasked = Run(source, out / source.name, {})
        return _title(unasked) | {"body": "", "why": "is not part of this report"}
    why = {"failed": f"failed in {run.failure}", "not run": "was not run", "done": ""}[run.status]
    return _title(run) | {"body": "" if why else body.opening(_executed(run)), "why": why}


def _with_anchors(content: str) -> tuple[Markup, list[tuple[str, Markup]]]:
    """The page's text with an anchor at every section, and anchor and heading of each."""
    sections = []

    def anchored(heading: re.Match) -> str:
        sections.append((f"section-{len(sections) + 1}", Markup(heading[1])))
        return f'<h2 id="{sections[-1][0]}">{heading[1]}</h2>'

    return Markup(_SECTION.sub(anchored, content)), sections


def _stores(notebook: NotebookNode, run: Run, out: Path) -> list[str]:
    """The stores that a notebook's code names and that there are."""
    names = body.names_below_out(body.code_of(notebook), run.parameters)
    return [name for name in names if (out / name).is_dir()]


def _further_pages(out: Path) -> list[tuple[str, str]]:
    """Title and address of other pages below the report's folder: another report, or the API reference."""
    further = []
    for page in sorted(out.glob("*/index.html")):
        title = _TITLE.search(page.read_text(encoding="utf-8"))
        further.append((html.unescape(title[1]) if title else page.parent.name, body.address(page, out)))
    return further


def _template(name: str) -> jinja2.Template:
    return _environment().get_template(name)


@cache
def _environment() -> jinja2.Environment:
    folder = Path(__file__).parent / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["highlight"] = {
        "light": HtmlFormatter(style="default").get_style_defs(".highlight"),
        "dark": HtmlFormatter(style="github-dark").get_style_defs(".highlight"),
    }
    return environment


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """The repository's commit where eedkit runs from one, with `-dirty` behind it after local changes; else nothing."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
