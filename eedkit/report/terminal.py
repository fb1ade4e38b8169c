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
        self.name = ""
        self.prefix = ""
        self._live_texts: dict[str, str] = {}
        self._next = 0.0
        self._rest = ""
        self._in_bar = False

    def shared(self, name: str) -> "Terminal":
        r"""The part of one of several notebooks that run at once: its name stands before what it writes.

        On a terminal the parts share the live line.

        >>> import io
        >>> log = io.StringIO()
        >>> _ = Terminal(log).shared("[2/7]").write("UserWarning: odd\n")
        >>> print(log.getvalue())
            [2/7] UserWarning: odd
        """
        part = Terminal(self.stream, every=self.every)
        part.name = f"{name} "
        part._live_texts = self._live_texts
        return part

    @property
    def room(self) -> int:
        """How many characters a progress bar may have beside the number of its cell."""
        return max(30, shutil.get_terminal_size().columns - len("cell 99/99 ") - 1)

    def line(self, text: str) -> None:
        """Write a line that stays."""
        self._put(("\r\x1b[K" if self.live else "") + printable(text.expandtabs()) + "\n")

    def progress(self, text: str) -> None:
        """Write what the next progress may replace."""
        shown = f"{self.name}{self.prefix} {text}".strip()
        if self.live:
            self._live_texts[self.name] = printable(shown)
            self._draw()
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + self.every
            self.line(f"    {shown}")

    def cell(self, number: int, total: int) -> None:
        """Say that a cell starts."""
        self.prefix = f"cell {number}/{total}"
        self.progress("")

    def clear(self) -> None:
        """Forget the notebook that ended and wipe its part of the live line."""
        self.prefix = ""
        self._rest = ""
        self._in_bar = False
        if self.live:
            self._live_texts.pop(self.name, None)
            self._draw()

    def _draw(self) -> None:
        """The live line: what runs now, side by side."""
        columns = shutil.get_terminal_size().columns - 1
        room = (columns - 3 * (len(self._live_texts) - 1)) // max(1, len(self._live_texts))
        parts = [self._live_texts[name][:room] for name in sorted(self._live_texts)]
        self._put("\r\x1b[K" + " | ".join(parts))

    def write(self, text: str) -> int:
        """Take a piece of the kernel's stderr, which may end anywhere in a line."""
        *pieces, rest = re.split(r"([\r\n])", self._rest + text)
        bar = ""
        for piece, end in zip(pieces[::2], pieces[1::2], strict=True):
            piece = _ANSI.sub("", piece).rstrip()
            if self._in_bar or end == "\r":
                bar = piece or bar
            elif piece:
                self.line(f"    {self.name}{piece}")
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
