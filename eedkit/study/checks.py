"""What a study's arguments must be, and what to say when they are not. Knows only names and types."""

import importlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from eedkit.errors import cut, short
from eedkit.store.cells import slug

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
        found = dict(zip(given, given, strict=True))
    else:
        found = dict(given)
    if len(found) < len(given):
        raise ValueError(f"{what} holds something twice: {cut(', '.join(map(str, given)), SHOWN)}")
    if not found:
        raise ValueError(f"{what} is empty; expected {expected}")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, (str, *values)):
            raise ValueError(f"{what} must be {expected}, got {name!r}: {short(value)}")
    places: dict[str, str] = {}
    for name in found if what != "layers" else ():
        other = places.setdefault(slug(name).casefold(), name)
        if other != name:
            raise ValueError(f"{what}: {other!r} and {name!r} would have one place in the store; name one otherwise")
    return found


def imported(what: str, given: Any, *kinds: type) -> tuple:
    """Names and values of these kinds; "module:name" gives the value of that name, which imports the module."""
    expected = f"names, {' or '.join(kind.__name__ for kind in kinds)} values, or 'module:name' of such a value"
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise ValueError(f"{what} must be a list of {expected}, got {short(given)}")
    found = []
    for value in given:
        module, colon, name = value.partition(":") if isinstance(value, str) else ("", "", "")
        if colon:
            try:
                value = getattr(importlib.import_module(module), name)
            except (ImportError, AttributeError) as error:
                raise ValueError(
                    f"{what}: there is no {module}:{name} ({error}); Python must find the module, so put its folder on PYTHONPATH"
                ) from None
        if not isinstance(value, kinds) and (colon or not isinstance(value, str)):
            raise ValueError(f"{what} must be {expected}, got {short(value)} in it")
        found.append(value)
    return tuple(found)


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
