"""The HTML report: one page for each executed notebook, and an index of cards.

Knows notebooks, templates and MathML; must not know papermill, models or results. A second to import nbconvert, tenths of one per page.
"""

import html
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import nbformat
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from pygments.formatters import HtmlFormatter

import eedkit
from eedkit.machine import processor_name
from eedkit.report.formulas import markdown

_HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+(.+?)[ \t]*#*[ \t]*$", re.M)
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


def write_page(run: Run, out: Path, facts: dict[str, str], *, code: bool = False) -> Path:
    """Write the page of a notebook that ran.

    Parameters
    ----------
    run : the run; its executed notebook is read
    out : the report's folder
    facts : provenance, see `provenance()`
    code : show the cells' code

    Returns
    -------
    path of `<stem>.html`
    """
    # A kernel that never started leaves no executed notebook; the page then says so and shows nothing.
    executed = nbformat.read(run.executed, as_version=4) if run.executed.exists() else nbformat.v4.new_notebook()
    page = out / f"{run.stem}.html"
    text = (
        _environment()
        .get_template("page.html.j2")
        .render(
            **_about(run, out),
            body=_body(executed, run, code=code),
            figures=_figures(run, out),
            parameters={name: repr(value) for name, value in run.parameters.items() if name != "out"},
            facts=facts,
        )
    )
    page.write_text(text, encoding="utf-8")
    return page


def write_index(runs: list[Run], out: Path, facts: dict[str, str]) -> Path:
    """Write the index: a card for each notebook, those that were not run included.

    Parameters
    ----------
    runs : in the order of the cards
    out : the report's folder
    facts : provenance, see `provenance()`

    Returns
    -------
    path of `index.html`
    """
    index = out / "index.html"
    text = _environment().get_template("index.html.j2").render(cards=[_about(run, out) for run in runs], facts=facts)
    index.write_text(text, encoding="utf-8")
    return index


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


class _Exporter(HTMLExporter):
    """nbconvert's `basic` body with our markdown, and without what needs scripts."""

    @property
    def default_config(self):
        config = super().default_config
        config.NbConvertBase.display_data_priority = [
            *("text/html", "text/markdown", "image/svg+xml", "image/png", "image/jpeg", "text/plain")
        ]
        return config

    @jinja2.pass_context
    def markdown2html(self, context, source):
        return markdown(source, context.get("cell", {}).get("attachments"))


def _about(run: Run, out: Path) -> dict[str, Any]:
    """What a card and a page's head say of a notebook: taken from its source, so that it needs no run."""
    notebook = nbformat.read(run.source, as_version=4)
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    heading = next((found[1] for found in map(_HEADING.search, texts) if found), run.stem)
    quoted = _QUOTE.search(texts[0]) if texts else None
    question = re.sub(r"^ {0,3}> ?", "", quoted[0], flags=re.M) if quoted else ""
    title = markdown(heading).strip().removeprefix("<p>").removesuffix("</p>")
    key = notebook.metadata.get("eedkit", {}).get("key_figure")
    return {
        "stem": run.stem,
        "title": jinja2.utils.markupsafe.Markup(title),
        "plain_title": html.unescape(re.sub(r"<[^>]+>", "", title)),
        "question": jinja2.utils.markupsafe.Markup(markdown(question)) if question else "",
        "figure": next((path for name, path in _figures(run, out) if name.rpartition(".")[0] == key), None),
        "key": key,
        "time": duration(run.seconds),
        "status": run.status,
        "failure": run.failure,
    }


def _figures(run: Run, out: Path) -> list[tuple[str, str]]:
    """Name and address of the figures written since this run began: what lay there before is not this run's."""
    if run.seconds is None:
        return []
    files = sorted(f for f in (out / "figures").glob("*") if f.suffix in {".png", ".svg"})
    return [(f.name, quote(f"figures/{f.name}")) for f in files if f.stat().st_mtime >= run.started]


def _body(notebook: NotebookNode, run: Run, *, code: bool) -> str:
    """The page's text and outputs: without its title, and up to the cell that failed."""
    cells = [cell for cell in notebook.cells if "papermill-error-cell-tag" not in cell.metadata.get("tags", ())]
    if run.failure:
        cells = cells[: run.failure.index + 1]
    titled = False
    heading = run.stem
    for cell in cells:
        if cell.cell_type == "markdown":
            found = _HEADING.search(cell.source)
            if found and not titled:
                titled, cell.source = True, cell.source[: found.start()] + cell.source[found.end() :]
            heading = (_HEADING.findall(cell.source) or [found[1] if found else heading])[-1]
        elif cell.cell_type == "code":
            cell.outputs = [kept for output in cell.outputs if (kept := _shown(output, heading)) is not None]
    notebook.cells = cells
    # a notebook whose code is the point says so itself
    code = code or notebook.metadata.get("eedkit", {}).get("code", False)
    exporter = _Exporter(
        template_name="basic",
        exclude_input=not code,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        exclude_anchor_links=True,
    )
    return jinja2.utils.markupsafe.Markup(exporter.from_notebook_node(notebook)[0])


def _shown(output: NotebookNode, heading: str) -> NotebookNode | None:
    """An output as the page shows it; None for progress bars, errors (the page has a box for them) and widgets."""
    if output.output_type == "stream":
        return output if output.name == "stdout" else None
    if output.output_type == "error" or "application/vnd.jupyter.widget-view+json" in output.data:
        return None
    if "text/latex" in output.data:
        output.data.setdefault("text/markdown", output.data.pop("text/latex"))
    for kind in ("image/png", "image/jpeg"):
        if kind in output.data:
            output.metadata.setdefault(kind, NotebookNode()).setdefault("alt", f"Figure: {heading}")
    return output


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
