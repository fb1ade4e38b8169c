"""What a number must be for a card or a check to pass: `relative<=0.1`.

Knows texts and numbers alone.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from eedkit.errors import short, unknown

WRITTEN = re.compile(r"\s*([a-z][\w.]*)\s*(<=|>=)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Requirement:
    """A number by its name, at most or at least a bound.

    >>> Requirement.read("relative<=0.1", ["relative"]).failure(0.25)
    'relative is 0.25, required <= 0.1'
    >>> Requirement("relative", "<=", 0.1).failure(0.1)
    ''
    """

    name: str
    sign: str
    bound: float

    @classmethod
    def read(cls, text: str, names: Iterable[str]) -> "Requirement":
        """A requirement as it is written; ValueError for another form, or a number that is none of these."""
        found = WRITTEN.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise ValueError(f"a requirement is written NAME<=NUMBER or NAME>=NUMBER, got {short(text)}")
        name, sign, bound = found.groups()
        names = list(names)
        if name not in names:
            raise ValueError(unknown("number to require something of", name, names))
        return cls(name, sign, float(bound))

    def failure(self, value: float, reason: str = "") -> str:
        """Why the value does not meet it; empty where it does. What has no value meets nothing, for the reason."""
        if math.isnan(value):
            return f"{self.name} has no value, required {self.sign} {self.bound:g}: {reason or 'it was not measured'}"
        is_met = value <= self.bound if self.sign == "<=" else value >= self.bound
        return "" if is_met else f"{self.name} is {_digits(value, self.bound)}, required {self.sign} {self.bound:g}"


def _digits(value: float, bound: float) -> str:
    """The value with as many digits as tell it from the bound."""
    for digits in range(2, 9):
        if f"{value:.{digits}g}" != f"{bound:.{digits}g}":
            return f"{value:.{digits}g}"
    return repr(value)
