"""The progress of a running notebook in a terminal or a log.

Knows text streams and nothing of notebooks. Costs one write per refresh: a live line on a terminal, else a line per ten seconds.
"""

import re
import shutil
import sys
import time
from typing import TextIO

from eedkit.errors import printable

_ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


class Terminal:
    r"""Shows which cell runs and what the kernel writes to stderr; papermill writes to it as to a file.

    What follows a carriage return is a progress bar and overwrites its predecessor: on a terminal in one live line, elsewhere as
    plain lines, at most one per `every` seconds. Other lines (warnings) are shown whole, once.

    >>> import io
    >>> log = io.StringIO()
    >>> _ = Terminal(log).write("UserWarning: odd\n\rtraining: 1/9\rtraining: 2/9")
    >>> print(log.getvalue())
        UserWarning: odd
        training: 2/9
    """

    def __init__(self, stream: TextIO | None = None, *, every: float = 10.0):
        self.stream = sys.stderr if stream is None else stream
        self.live = self.stream.isatty()
        self.every = every
        self.prefix = ""
        self._next = 0.0
        self._rest = ""
        self._in_bar = False

    @property
    def room(self) -> int:
        """How many characters a progress bar may have beside the number of its cell."""
        return max(30, shutil.get_terminal_size().columns - len("cell 99/99 ") - 1)

    def line(self, text: str) -> None:
        """Write a line that stays."""
        self._put(("\r\x1b[K" if self.live else "") + printable(text.expandtabs()) + "\n")

    def progress(self, text: str) -> None:
        """Write what the next progress may replace."""
        if self.live:
            shown = printable(f"{self.prefix} {text}".strip())[: shutil.get_terminal_size().columns - 1]
            self._put(f"\r\x1b[K{shown}")
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + self.every
            self.line(f"    {self.prefix} {text}".rstrip() if self.prefix else f"    {text}")

    def cell(self, number: int, total: int) -> None:
        """Say that a cell starts."""
        self.prefix = f"cell {number}/{total}"
        self.progress("")

    def clear(self) -> None:
        """Forget the notebook that ended and wipe its live line."""
        self.prefix, self._rest, self._in_bar = "", "", False
        if self.live:
            self._put("\r\x1b[K")

    def write(self, text: str) -> int:
        """Take a piece of the kernel's stderr, which may end anywhere in a line."""
        *pieces, rest = re.split(r"([\r\n])", self._rest + text)
        bar = ""
        for piece, end in zip(pieces[::2], pieces[1::2], strict=True):
            piece = _ANSI.sub("", piece).rstrip()
            if self._in_bar or end == "\r":
                bar = piece or bar
            elif piece:
                self.line(f"    {piece}")
            self._in_bar = end == "\r"
        self._rest = rest
        if self._in_bar:  # nothing follows a refresh: waiting for its end would show every bar one refresh late
            bar = _ANSI.sub("", rest).rstrip() or bar
        if bar:
            self.progress(bar)
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        self.stream.flush()

    def _put(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()
