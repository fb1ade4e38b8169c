"""The strict parameters of a notebook, read from its tagged cell without running it.

Knows a notebook's cells and Python's literals, not papermill. Costs milliseconds; everything that can be refused is refused before a run.
"""

import ast
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nbformat
import yaml

from eedkit.errors import short, unknown

_PLAIN = {"bool": bool, "int": int, "str": str, "list": list, "dict": dict}


class ReportError(ValueError):
    """What was asked for cannot be run: an unknown notebook, profile or parameter, or a value of another type."""


def parameters(path: str | Path) -> dict[str, Any]:
    """The defaults of a notebook: what the literals of its one cell tagged `parameters` say.

    The cell holds `name = literal` and `name: type = literal` and nothing else, so that reading it runs nothing.

    Parameters
    ----------
    path : the notebook file

    Returns
    -------
    name -> default, in the cell's order

    Raises
    ------
    ReportError
        There is no such cell, or more than one, or it holds anything else.

    Examples
    --------
    >>> import nbformat, tempfile
    >>> cell = nbformat.v4.new_code_cell("seeds: int = 5", metadata={"tags": ["parameters"]})
    >>> with tempfile.NamedTemporaryFile("w", suffix=".ipynb") as file:
    ...     nbformat.write(nbformat.v4.new_notebook(cells=[cell]), file.name)
    ...     parameters(file.name)
    {'seeds': 5}
    """
    return {name: default for name, (default, _) in _declared(Path(path)).items()}


def read_yaml(text: str) -> Any:
    """YAML without aliases, a few of which, nested, stand for gigabytes.

    Raises
    ------
    yaml.YAMLError
        The text is not YAML, or holds an alias.

    Examples
    --------
    >>> read_yaml("[C4, D4]")
    ['C4', 'D4']
    """
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
        raise yaml.YAMLError("aliases such as *name are not read here; write the value out")
    return yaml.safe_load(text)


def check(path: str | Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """What a notebook is given, as plain values that papermill writes faithfully; nothing runs.

    An integer fits a float. Tuples become lists, numpy scalars Python's, paths strings.

    Parameters
    ----------
    path : the notebook file
    given : parameter name -> value

    Raises
    ------
    ReportError
        The notebook has no such parameter, or the value does not fit the annotation (without one: the type of the default).
    """
    path = Path(path)
    declared = _declared(path)
    values = {}
    for name, value in given.items():
        if name not in declared:
            raise ReportError(f"{path.stem}: {unknown('parameter', name, declared)}")
        values[name] = value = _normalised(value)
        default, hint = declared[name]
        if not _fits(value, hint if hint is not None else _hint_of(default)):
            wanted = ast.unparse(hint) if hint is not None else type(default).__name__
            why = f"{path.stem}: {name} takes {wanted}, got {type(value).__name__} {short(value)}"
            raise ReportError(why + ("; YAML reads 1e-3 as text: write 1.0e-3" if _is_number(value) else ""))
    return values


def _declared(path: Path) -> dict[str, tuple[Any, ast.expr | None]]:
    """Name -> (default, annotation) of the parameters cell."""
    cells = [c for c in nbformat.read(path, as_version=4).cells if "parameters" in c.metadata.get("tags", ())]
    if len(cells) != 1:
        raise ReportError(
            f"{path.stem}: expected one cell tagged 'parameters', found {len(cells)}; tag the cell of defaults"
        )
    try:
        statements = ast.parse(cells[0].source).body
    except SyntaxError as error:
        raise ReportError(f"{path.stem}: its parameters cell is not Python: {error.msg}, line {error.lineno}") from None
    declared = {}
    for statement in statements:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=hint, value=ast.expr() as value):
                pass
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                hint = None
            case _:
                raise ReportError(_not_literal(path, statement))
        try:
            declared[name] = (_normalised(ast.literal_eval(value)), hint)
        except ValueError:
            raise ReportError(_not_literal(path, statement)) from None
        if hint is not None and not _fits(declared[name][0], hint):
            raise ReportError(
                f"{path.stem}: the default of {name} does not fit its annotation: {ast.unparse(statement)}"
            )
    return declared


def _not_literal(path: Path, statement: ast.stmt) -> str:
    shown = ast.unparse(statement).splitlines()[0]
    return f"{path.stem}: its parameters cell may hold `name = literal` and `name: type = literal` alone, got `{shown}`"


def _normalised(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple):
        return [_normalised(v) for v in value]
    if isinstance(value, dict):
        return {_normalised(k): _normalised(v) for k, v in value.items()}
    if getattr(value, "ndim", None) == 0 and isinstance(getattr(value, "item", None), Callable):
        return value.item()
    return value


def _hint_of(default: Any) -> ast.expr:
    return ast.Name("object" if default is None else type(default).__name__)


def _fits(value: Any, hint: ast.expr) -> bool:
    match hint:
        case ast.Constant(value=None):
            return value is None
        case ast.Name(id="object"):
            return True
        case ast.Name(id="float"):
            return isinstance(value, int | float) and not isinstance(value, bool)
        case ast.Name(id=name) if name in _PLAIN:
            return isinstance(value, _PLAIN[name]) and (name == "bool" or not isinstance(value, bool))
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _fits(value, left) or _fits(value, right)
        case ast.Subscript(value=ast.Name(id="list"), slice=item):
            return isinstance(value, list) and all(_fits(v, item) for v in value)
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[key, item])):
            return isinstance(value, dict) and all(_fits(k, key) and _fits(v, item) for k, v in value.items())
    raise ReportError(
        f"a parameter's annotation is made of {', '.join(_PLAIN)}, float, None and |, got `{ast.unparse(hint)}`"
    )


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, str) and float(value) is not None
    except ValueError:
        return False
