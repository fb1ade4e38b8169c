"""The progress of a run: a bar in a terminal and in Jupyter, plain lines elsewhere. Knows text streams alone."""

import os
import sys
from typing import Any, TextIO

from tqdm import tqdm

from eedkit.errors import printable

TEXT_ON_STDERR = {"EEDKIT_PROGRESS": "text"}
"""The environment of a kernel whose stderr is read by whoever runs it."""


class Lines:
    r"""Writes every refresh of a bar as a line of its own, for a log.

    >>> lines = Lines(sys.stdout)
    >>> _ = lines.write("\r1/2 blocks"), lines.write("\r2/2 blocks\n")
    1/2 blocks
    2/2 blocks
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Take a piece of a bar's output."""
        if text.strip():
            self.stream.write(text.strip("\r\n ") + "\n")
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        self.stream.flush()


def bar(total: int | None, what: str, unit: str, *, show: bool = True, leave: bool = True) -> tqdm:
    """A tqdm bar over `total` units, or None if that is not known; no bar over nothing. `leave`: it stays when it is full.

    A widget in Jupyter, where what goes to stderr stands in a red box; a live line in a terminal, and in a notebook that
    `eedkit report` runs, which reads stderr; in a log a line every ten seconds.
    """
    look = {"total": total, "desc": what, "unit": unit, "disable": total == 0 or not show, "leave": leave}
    in_jupyter = "ipykernel" in sys.modules
    if in_jupyter and not TEXT_ON_STDERR.items() <= os.environ.items():
        return _bar_of_this_frontend(**look)
    if in_jupyter or sys.stderr.isatty():
        return tqdm(**look)
    plain = f"{what}: {{n_fmt}} of {{total_fmt}} {unit}s, {{elapsed}} so far, about {{remaining}} left{{postfix}}"
    # what does not stay is not worth a line, unless it takes long
    look |= {"bar_format": plain, "delay": 0 if leave else 10}
    return tqdm(**look, file=Lines(sys.stderr), mininterval=10, maxinterval=10)


def note(text: str, *, show: bool = True) -> None:
    """One line on stderr, above any bar, with its control characters written out."""
    if show:
        tqdm.write(printable(text), file=sys.stderr)


def _bar_of_this_frontend(**look: Any) -> tqdm:
    from tqdm.auto import tqdm as widget  # it looks at the kernel that imports it

    return widget(**look)
