"""The strict parameters of a notebook, read from its tagged cell without running it.

Knows a notebook's cells and Python's literals, not papermill. Everything that can be refused is refused before a run.
"""

import ast
import io
import re
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import nbformat
import yaml
from nbformat import NotebookNode
from pydantic import ConfigDict, TypeAdapter, ValidationError

from eedkit.errors import short, unknown

TYPES = {"bool": bool, "int": int, "float": float, "str": str, "list": list, "dict": dict, "None": NoneType}
"""What annotations are made of, with `|` and brackets."""


class ReportError(ValueError):
    """What was asked for cannot be run: an unknown notebook, profile or parameter, or a value of another type."""


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell, `name: hint = default  # comment`."""

    default: Any
    hint: str
    comment: str = ""

    def refusal(self, value: Any) -> str:
        """Why a value does not fit the annotation; nothing if it does. An integer fits a float."""
        hint = eval(self.hint, {"__builtins__": {}}, TYPES)
        try:
            TypeAdapter(hint, config=ConfigDict(strict=True)).validate_python(value)
        except ValidationError:
            return f"takes {self.hint}, got {type(value).__name__} {short(value)}"
        return ""


def read(path: Path) -> NotebookNode:
    """A notebook; ReportError where the file is none."""
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:
        # nbformat raises what its JSON, schema and conversion code raises
        raise ReportError(f"{path.stem}: not a notebook ({type(error).__name__}: {short(str(error))})") from None


def parameters(notebook: NotebookNode, stem: str) -> dict[str, Parameter]:
    """The parameters of a notebook: what the lines of its one cell tagged `parameters` say.

    The cell holds `name: type = literal  # comment` lines, and nothing else, so that reading it runs nothing. ReportError,
    which names the notebook `stem`, for all else.
    """
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    if len(tagged) != 1:
        raise ReportError(f"{stem}: expected one cell tagged 'parameters', found {len(tagged)}")
    source = tagged[0].source
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise ReportError(f"{stem}: its parameters cell is not Python: {error.msg}, line {error.lineno}") from None
    comments = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# ")
    declared = {}
    for statement in statements:
        try:
            name, hint, default = _line(statement)
            declared[name] = Parameter(default, hint, comments.get(statement.end_lineno, ""))
            refusal = declared[name].refusal(default)
        except (ValueError, TypeError) as error:
            raise ReportError(f"{stem}: its parameters cell: {error}") from None
        if refusal:
            raise ReportError(f"{stem}: the default of {name} does not fit: it {refusal}")
    return declared


def check(stem: str, declared: Mapping[str, Parameter], given: Mapping[str, Any]) -> None:
    """ReportError where a notebook does not take what it is given."""
    for name, value in given.items():
        if name == "out":
            raise ReportError(f"{stem}: its parameter 'out' is the report's folder: give it to the report (`--out`)")
        if name not in declared:
            raise ReportError(f"{stem}: {unknown('parameter', name, declared)}")
        refusal = declared[name].refusal(value)
        if refusal:
            raise ReportError(f"{stem}: {name} {refusal}")


def read_yaml(text: str) -> Any:
    """YAML without aliases, a few of which, nested, stand for gigabytes; ValueError where it is none."""
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("aliases such as *name are not read here; write the value out")
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def _line(statement: ast.stmt) -> tuple[str, str, Any]:
    """Name, annotation and value of one line of the cell."""
    line = ast.unparse(statement).splitlines()[0]
    match statement:
        case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=ast.expr() as value):
            hint = ast.unparse(annotation)
        case _:
            raise ValueError(f"it may hold `name: type = literal` lines alone, got `{line}`")
    if not set(re.split(r"[\[\]|, ]+", hint.rstrip("]"))) <= set(TYPES):
        raise ValueError(f"the annotation of {name} is made of {', '.join(TYPES)}, | and [], got `{hint}`")
    return name, hint, ast.literal_eval(value)
