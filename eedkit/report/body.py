"""What an executed notebook shows, as HTML: prose, tables, figures and, where it is asked for, code.

Knows notebooks, the files beside them and MathML; must not know papermill, models or results. A second to import nbconvert, tenths of one per notebook.
"""

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import nbformat
from markupsafe import Markup, escape
from nbconvert import HTMLExporter
from nbformat import NotebookNode

from eedkit.report.formulas import markdown

HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+(.+?)[ \t]*#*[ \t]*$", re.M)
"""A heading of Markdown."""
INDEX = "index"
"""The tag of the cells whose outputs open the report's index."""
_BELOW_OUT = re.compile(r"""\{out\}/([^"'\n]+)["']""")
_IMAGES = ("image/svg+xml", "image/png", "image/jpeg")


def names_below_out(source: str, parameters: Mapping[str, Any]) -> list[str]:
    """What code names as `f"{out}/…"`, with the parameters put in: its figures and its stores.

    Parameters
    ----------
    source : str
        The code of one or more cells.
    parameters : mapping of str to object
        The notebook's parameters.

    Returns
    -------
    list of str
        Paths below the report's folder, each once.

    Examples
    --------
    >>> names_below_out('study = ek.Study(store=f"{out}/{profile}.study")', {"profile": "quick"})
    ['quick.study']
    """
    names = []
    for name in _BELOW_OUT.findall(source):
        filled = re.sub(r"\{(\w+)\}", lambda braces: str(parameters.get(braces[1], braces[0])), name)
        names.append(filled)
    return list(dict.fromkeys(names))


def code_of(notebook: NotebookNode) -> str:
    """The code of all cells of a notebook."""
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")


def figures(source: str, parameters: Mapping[str, Any], out: Path, *, since: float) -> list[Path]:
    """The figures that code saves below `out`, as SVG where there is one and as PNG where there is not.

    Parameters
    ----------
    source : str
        The code of one or more cells, which names its figures as `f"{out}/figures/…"`.
    parameters : mapping of str to object
        The notebook's parameters.
    out : Path
        The report's folder.
    since : float
        Time at which the notebook began; older files are another run's.
    """
    found = []
    for name in names_below_out(source, parameters):
        if not name.startswith("figures/"):
            continue
        stem = name.removesuffix(".png").removesuffix(".svg")
        written = [file for file in (out / f"{stem}.svg", out / f"{stem}.png") if _is_new(file, since)]
        found += written[:1]
    return list(dict.fromkeys(found))


def alt_text(figure: Path) -> str:
    """What a figure's file says that it shows: the description in an SVG, or nothing."""
    if figure.suffix != ".svg":
        return ""
    try:
        root = ET.parse(figure).getroot()
    except ET.ParseError:
        return ""
    for element in root.iter():
        if element.tag.rpartition("}")[2] in {"desc", "description"}:
            return " ".join("".join(element.itertext()).split())
    return ""


def address(file: Path, out: Path) -> str:
    """The address of a file below the report's folder, as pages in that folder write it."""
    return quote(file.relative_to(out).as_posix())


def html(
    notebook: NotebookNode, out: Path, parameters: Mapping[str, Any], *, since: float, code: bool = False
) -> Markup:
    """A page's text and outputs: everything but its title and what a reader has no use for.

    Parameters
    ----------
    notebook : NotebookNode
        The executed notebook; it is altered.
    out : Path
        The report's folder.
    parameters : mapping of str to object
        The notebook's parameters.
    since : float
        Time at which the notebook began; figures in older files are not shown.
    code : bool
        Show the cells' code; a notebook whose metadata say `"eedkit": {"code": true}` shows it always.
    """
    heading = _taken_title(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = ([heading] + HEADING.findall(cell.source))[-1]
        if cell.cell_type == "code":
            cell.outputs = _outputs(cell, figures(cell.source, parameters, out, since=since), out, heading)
    return _exported(notebook, code=code or notebook.metadata.get("eedkit", {}).get("code", False))


def opening(notebook: NotebookNode) -> Markup:
    """What the notebook's cells tagged `index` show."""
    cells = [cell for cell in notebook.cells if INDEX in cell.metadata.get("tags", ())]
    for cell in cells:
        cell.outputs = [shown for shown in map(_shown, cell.outputs) if shown is not None]
    return _exported(nbformat.v4.new_notebook(cells=cells), code=False)


class _Exporter(HTMLExporter):
    """nbconvert's `basic` body with our markdown, and without what needs scripts."""

    @property
    def default_config(self):
        config = super().default_config
        config.NbConvertBase.display_data_priority = ["text/html", "text/markdown", *_IMAGES, "text/plain"]
        return config

    @jinja2.pass_context
    def markdown2html(self, context, source):
        return markdown(source, context.get("cell", {}).get("attachments"))


def _exported(notebook: NotebookNode, *, code: bool) -> Markup:
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", ())]
    exporter = _Exporter(
        template_name="basic",
        exclude_input=not code,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        exclude_anchor_links=True,
    )
    content = exporter.from_notebook_node(notebook)[0]
    return Markup(content.replace("<pre>", '<pre tabindex="0">'))  # so that the keyboard scrolls it


def _taken_title(notebook: NotebookNode) -> str:
    """The first heading, which the page's head shows and the page no more."""
    for cell in notebook.cells:
        title = HEADING.search(cell.source) if cell.cell_type == "markdown" else None
        if title:
            cell.source = cell.source[: title.start()] + cell.source[title.end() :]
            return title[1]
    return ""


def _outputs(cell: NotebookNode, saved: list[Path], out: Path, heading: str) -> list[NotebookNode]:
    """A cell's outputs as the page shows them, images as the files that the cell saved."""
    outputs = [shown for shown in map(_shown, cell.outputs) if shown is not None]
    images = [output for output in outputs if _is_image(output)]
    for image in images:
        for kind in _IMAGES:
            image.metadata[kind] = NotebookNode(alt=f"Figure: {heading}")
    if len(images) == len(saved):
        for image, file in zip(images, saved, strict=True):
            alt = alt_text(file) or f"Figure: {heading}"
            there = address(file, out)
            picture = f'<a class="figure" href="{there}"><img alt="{escape(alt)}" src="{there}"></a>'
            image.data = NotebookNode({"text/html": picture})
    return outputs


def _shown(output: NotebookNode) -> NotebookNode | None:
    """An output as a page shows it; None for progress bars, errors (the page has a box for them), widgets and empty tables."""
    if output.output_type == "stream":
        return output if output.name == "stdout" else None
    if output.output_type == "error" or "application/vnd.jupyter.widget-view+json" in output.data:
        return None
    table = output.data.get("text/html", "")
    if "<table" in table and "<td" not in table:
        return None
    if table:
        output.data["text/html"] = f'<div class="scroll" tabindex="0">{table}</div>'
    if "text/latex" in output.data:
        output.data.setdefault("text/markdown", output.data.pop("text/latex"))
    return output


def _is_image(output: NotebookNode) -> bool:
    return any(kind in output.get("data", {}) for kind in _IMAGES)


def _is_new(file: Path, since: float) -> bool:
    return file.is_file() and file.stat().st_mtime >= since
