"""Spec strings, "name?key=value&key=value", as models and images are named in a study. Opens neither; costs nothing."""

import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl

import pandas as pd

from eedkit.errors import unknown


def boolean(text: str) -> bool:
    """'true' or 'false' as a bool.

    >>> boolean("true"), boolean("false")
    (True, False)
    """
    if text not in ("true", "false"):
        raise ValueError(text)
    return text == "true"


def integers(text: str) -> tuple[int, ...]:
    """Whole numbers with commas between them.

    >>> integers("16,32")
    (16, 32)
    """
    return tuple(map(int, text.split(",")))


EXPECTED = {
    **{int: "a whole number", float: "a number", str: "a text", boolean: "true or false"},
    integers: "whole numbers such as 16,32",
    re.compile: "a regular expression",
}
"""The converters of `parse`, and what a message says that each expects."""


def parse(spec: str, options: Mapping[str, Callable[[str], Any]]) -> tuple[str, dict[str, Any]]:
    """Name and converted options of a spec; the options are written as in the query of a URL.

    Parameters
    ----------
    options : for each option that is known, one of the converters in `EXPECTED`

    Raises
    ------
    ValueError
        An option is unknown (near names are given), given twice, empty, or not what its converter expects.

    Examples
    --------
    >>> parse("augmented?seed=3&widths=4,8", {"seed": int, "widths": integers})
    ('augmented', {'seed': 3, 'widths': (4, 8)})
    """
    name, mark, query = spec.partition("?")
    try:
        # a plus would become a space, which no name, number or path here means by it
        pairs = parse_qsl(query.replace("+", "%2B"), keep_blank_values=True, strict_parsing=True)
    except ValueError:
        pairs = []
    if mark and not pairs:
        raise ValueError(f"options are spelled 'name?key=value&key=value', got {spec!r}")
    found = {}
    for key, text in pairs:
        if key not in options:
            raise ValueError(f"{unknown('option', key, options)} in {spec!r}")
        if key in found:
            raise ValueError(f"option {key!r} is given twice in {spec!r}; keep one")
        try:
            found[key] = options[key](text)
        except (ValueError, re.error):
            found[key] = None
        if not text or found[key] is None:
            raise ValueError(f"option {key!r} must be {EXPECTED[options[key]]}, got {text!r} in {spec!r}")
    return name, found


def labelled(table: pd.DataFrame) -> pd.DataFrame:
    """A table with a column `data` of image specs, and what those say of shifts in columns of its own.

    Columns
    -------
    source : the images without options, "digits/test"
    shift, severity : "" and 0 where images are as they are
    domain : for people: the source without what all share, or "noise" where static has left no image

    Examples
    --------
    >>> labelled(pd.DataFrame({"data": ["digits/test?n=9&shift=blur&severity=3", "letters/test"]})).values[:, 1:].tolist()
    [['digits/test', 'blur', 3, 'digits'], ['letters/test', '', 0, 'letters']]
    """
    rows = []
    for spec in table["data"].unique():
        source, _, query = spec.partition("?")
        told = dict(parse_qsl(query))
        kind, severity = told.get("shift", ""), int(told.get("severity", 0))
        gone = (kind, severity) == ("static", 5)
        parts = [part for part in source.split("/") if part not in ("train", "test", "validation")]
        name = "noise" if gone else parts[-1] if parts else source
        rows.append({"data": spec, "source": source, "shift": kind, "severity": severity, "domain": name})
    return table.drop(columns=list(rows[0])[1:], errors="ignore").merge(pd.DataFrame(rows), on="data", how="left")
