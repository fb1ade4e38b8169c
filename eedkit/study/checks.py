"""What a study's arguments must be, and what to say when they are not. Knows names and types alone; costs nothing."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from eedkit.results.cells import slug


def named(what: str, given: Any, expected: str, *values: type) -> dict[str, Any]:
    """A mapping from names to specs; a list of specs names each by itself. Names must differ, in the store too."""
    kinds = Mapping | Sequence if what in ("models", "data") else Sequence
    if isinstance(given, str | os.PathLike) or not isinstance(given, kinds):
        raise ValueError(f"{what} must be a list of {expected}, got {given!r}")
    if not isinstance(given, Mapping):
        for value in given:
            if not isinstance(value, str):
                raise ValueError(f"{what} must be a list of {expected}, got {value!r} in it")
        found = dict(zip(given, given, strict=True))
    else:
        found = dict(given)
    if len(found) < len(given):
        raise ValueError(f"{what} holds something twice: {', '.join(map(str, given))}")
    if not found:
        raise ValueError(f"{what} is empty; expected {expected}")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, (str, *values)):
            raise ValueError(f"{what} must be {expected}, got {name!r}: {value!r}")
    places: dict[str, str] = {}
    for name in found if what != "layers" else ():
        other = places.setdefault(slug(name).casefold(), name)
        if other != name:
            raise ValueError(f"{what}: {other!r} and {name!r} would have one place in the store; name one otherwise")
    return found


def typed(study: object, **expected: tuple) -> None:
    """ValueError unless the fields have one of the expected types; None stands for itself."""
    for name, types in expected.items():
        value = getattr(study, name)
        if not any(value is None if kind is None else type(value) is kind for kind in types):
            wanted = " or ".join("none" if kind is None else kind.__name__ for kind in types)
            raise ValueError(f"{name} must be {wanted}, got {value!r}")


class Once(yaml.SafeLoader):
    """Safe YAML in which a key stands once: of two the last would win, without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """The mapping; an error that names a key that stands twice."""
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)
