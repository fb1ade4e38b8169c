"""What a study's arguments must be, and what to say when they are not. Knows only names and types."""

import importlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from eedkit.errors import cut, short
from eedkit.results.io import slug

SHOWN = 200
"""Characters of names that a message repeats."""


def named(what: str, given: Any, expected: str, *values: type) -> dict[str, Any]:
    """A mapping from names to specs; a list of specs names each by itself. Names must differ, in the store too."""
    kinds = Mapping | Sequence if what in ("models", "data") else Sequence
    if isinstance(given, str | os.PathLike) or not isinstance(given, kinds):
        raise ValueError(f"{what} must be a list of {expected}, got {short(given)}")
    if not isinstance(given, Mapping):
        for value in given:
            if not isinstance(value, str):
                raise ValueError(f"{what} must be a list of {expected}, got {short(value)} in it")
        by_name = dict(zip(given, given, strict=True))
    else:
        by_name = dict(given)
    if len(by_name) < len(given):
        raise ValueError(f"{what} holds something twice: {cut(', '.join(map(str, given)), SHOWN)}")
    if not by_name:
        raise ValueError(f"{what} is empty; expected {expected}")
    for name, value in by_name.items():
        if not isinstance(name, str) or not isinstance(value, (str, *values)):
            raise ValueError(f"{what} must be {expected}, got {name!r}: {short(value)}")
    places: dict[str, str] = {}
    for name in by_name if what != "layers" else ():
        other = places.setdefault(slug(name).casefold(), name)
        if other != name:
            raise ValueError(f"{what}: {other!r} and {name!r} would have one place in the store; name one otherwise")
    return by_name


def names_or_values(what: str, given: Any, *kinds: type) -> tuple:
    """Names, values of these kinds, and "module:name"s, which are not imported yet."""
    expected = f"names, {' or '.join(kind.__name__ for kind in kinds)} values, or 'module:name' of such a value"
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise ValueError(f"{what} must be a list of {expected}, got {short(given)}")
    for value in given:
        if not isinstance(value, (str, *kinds)):
            raise ValueError(f"{what} must be {expected}, got {short(value)} in it")
    return tuple(given)


def is_imported(value: object) -> bool:
    """Whether a value is the "module:name" of one."""
    return isinstance(value, str) and ":" in value


def imported(what: str, value: Any, *kinds: type) -> Any:
    """The value itself, or the one that "module:name" stands for, which runs that module."""
    if not is_imported(value):
        return value
    module, _, name = value.partition(":")
    try:
        given = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # whatever that module does
        raise ValueError(
            f"{what}: there is no {value} ({type(error).__name__}: {error}); Python must find the module, so put its folder "
            "on PYTHONPATH, and it must run"
        ) from error
    if not isinstance(given, kinds):
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{what}: {value} must be {expected}, got {short(given)}")
    return given


def typed(study: object, name: str, *kinds: type | None) -> None:
    """ValueError unless the field has one of these types; None stands for itself."""
    value = getattr(study, name)
    if not any(value is None if kind is None else type(value) is kind for kind in kinds):
        wanted = " or ".join("none" if kind is None else kind.__name__ for kind in kinds)
        raise ValueError(f"{name} must be {wanted}, got {short(value)}")


class Once(yaml.SafeLoader):
    """Safe YAML in which a key stands once: of two the last would win, without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """The mapping; an error that names a key that stands twice."""
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)
