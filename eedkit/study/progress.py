"""The progress of a run: a bar in a terminal and in Jupyter, plain lines elsewhere. Knows text streams alone."""

import sys
from typing import TextIO

from tqdm import tqdm


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


def bar(total: int, what: str, unit: str, *, show: bool = True) -> tqdm:
    """A tqdm bar over `total` units; without a terminal or Jupyter a line every ten seconds. None at all over nothing."""
    look = {"total": total, "unit": unit, "disable": not (show and total)}
    if sys.stderr.isatty() or "ipykernel" in sys.modules:
        return tqdm(**look, desc=what)
    plain = f"{what}: {{n_fmt}} of {{total_fmt}} {unit}s, {{elapsed}} so far, about {{remaining}} left{{postfix}}"
    return tqdm(**look, file=Lines(sys.stderr), mininterval=10, maxinterval=10, bar_format=plain)
