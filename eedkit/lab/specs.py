"""Spec strings, "name?key=value&key=value", as models and images are named in a study. Opens neither; costs nothing."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

import pandas as pd

from eedkit.errors import unknown


@dataclass(frozen=True)
class Option:
    """What an option of a spec takes (one of `EXPECTED`), and what it says."""

    kind: Callable[[str], Any]
    meaning: str


def whole(text: str) -> int:
    """A whole number in digits from 0 to 9: `int` takes those of other scripts, underscores and spaces.

    >>> whole("-3")
    -3
    """
    if not re.fullmatch("[+-]?[0-9]+", text):
        raise ValueError(text)
    return int(text)


def number(text: str) -> float:
    """A number in digits from 0 to 9.

    >>> number("1e-3")
    0.001
    """
    if not re.fullmatch(r"[+-]?[0-9]*\.?[0-9]*([eE][+-]?[0-9]+)?", text):
        raise ValueError(text)
    return float(text)


def boolean(text: str) -> bool:
    """'true' or 'false' as a bool.

    >>> boolean("true"), boolean("false")
    (True, False)
    """
    if text not in ("true", "false"):
        raise ValueError(text)
    return text == "true"


def whole_numbers(text: str) -> tuple[int, ...]:
    """Whole numbers with commas between them.

    >>> whole_numbers("16,32")
    (16, 32)
    """
    return tuple(map(whole, text.split(",")))


EXPECTED: dict[Callable[[str], Any], str] = {
    whole: "a whole number",
    number: "a number",
    str: "a text",
    boolean: "true or false",
    whole_numbers: "whole numbers such as 16,32",
    re.compile: "a regular expression",
}
"""What the options' converters expect, as messages and `HELP` say it."""


def described(options: Mapping[str, Option]) -> list[str]:
    """A line of plain text for each option.

    >>> described({"seed": Option(whole, "of the weights")})
    ['  seed=         of the weights (a whole number)']
    """
    return [f"  {name + '=':<13} {option.meaning} ({EXPECTED[option.kind]})" for name, option in options.items()]


def parse(spec: str, options: Mapping[str, Option]) -> tuple[str, dict[str, Any]]:
    """Name and converted options of a spec; the options are written as in the query of a URL.

    ValueError where an option is unknown (near names are given), given twice, empty, or not what its converter expects.

    >>> parse("augmented?seed=3&widths=4,8", {"seed": Option(whole, ""), "widths": Option(whole_numbers, "")})
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
            found[key] = options[key].kind(text)
        except (ValueError, re.error):
            found[key] = None
        if not text or found[key] is None:
            raise ValueError(f"option {key!r} must be {EXPECTED[options[key].kind]}, got {text!r} in {spec!r}")
    return name, found


def labelled(table: pd.DataFrame) -> pd.DataFrame:
    """A table with a column `data` of image specs, and what those say of corruptions in columns of its own.

    `source` is the images without options; `corruption` and `severity` are "" and 0 where images are as they are; `domain` is
    for people: the source without what all share, or "noise" where static has left no image.

    >>> labelled(pd.DataFrame({"data": ["digits/test?n=9&corruption=blur&severity=3", "letters/test"]})).values[:, 1:].tolist()
    [['digits/test', 'blur', 3, 'digits'], ['letters/test', '', 0, 'letters']]
    """
    rows = []
    for spec in table["data"].unique():
        source, _, query = spec.partition("?")
        told = dict(parse_qsl(query))
        kind, severity = told.get("corruption", ""), int(told.get("severity", 0))
        gone = (kind, severity) == ("static", 5)
        parts = [part for part in source.split("/") if part not in ("train", "test", "validation")]
        name = "noise" if gone else parts[-1] if parts else source
        rows.append({"data": spec, "source": source, "corruption": kind, "severity": severity, "domain": name})
    return table.drop(columns=list(rows[0])[1:], errors="ignore").merge(pd.DataFrame(rows), on="data", how="left")
