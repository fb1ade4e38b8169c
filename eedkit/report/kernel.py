"""One notebook, run in a kernel of its own: which cell runs, what it writes to stderr, and where it stopped.

Knows nbclient and the executed file, nothing of pages. A second to import; the kernel ends when this process does.
"""

import atexit
import re
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

import nbformat
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import run_sync
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert.filters.ansi import strip_ansi
from nbformat import NotebookNode
from papermill.translators import translate_parameters

from eedkit.report.parameters import Parameter

INJECTED = "injected-parameters"
"""The tag of the cell that sets the parameters, which the author does not count."""


@dataclass(frozen=True)
class Failure:
    """Where and why a notebook stopped: `cell` from 1 as the author counts, or 0 before the first."""

    cell: int
    source: str
    error: str
    traceback: str = ""

    def __str__(self) -> str:
        first_line = self.error.strip().splitlines()[0]
        if self.cell:
            return f"cell {self.cell}: {first_line}"
        return f"before its first cell: {first_line}"


@dataclass(frozen=True)
class Run:
    """One notebook of a report: what is run and how it went."""

    source: Path
    notebook: NotebookNode = field(repr=False)
    """What the source holds, read once."""
    declared: Mapping[str, Parameter] = field(repr=False)
    """What its parameters cell says."""
    executed: Path
    parameters: dict[str, Any]
    """What it is given, `out` among it."""
    state: str = "waiting"
    """`waiting`, `running`, `done`, `kept`, `failed` or `not run`."""
    seconds: float = 0.0
    failure: Failure | None = None
    facts: Mapping[str, str] | None = None
    """What it was run with, see `pages.provenance`."""

    @property
    def stem(self) -> str:
        """The notebook's file name without its ending."""
        return self.source.stem

    @property
    def has_ended(self) -> bool:
        """Whether there is an executed notebook, as far as it came."""
        return self.state in ("done", "kept", "failed")

    @property
    def start(self) -> str:
        """Its metadata's `"eedkit": {"start": …}`: `first`, before others, or `last`, alone, since it reads what they leave."""
        return self.notebook.metadata.get("eedkit", {}).get("start", "")


class Client(NotebookClient):
    """Executes a notebook with its parameters, and can be stopped from another thread.

    `say` is told every line that it writes to stderr.
    """

    def __init__(self, run: Run, say: Callable[[str], None]) -> None:
        notebook = nbformat.v4.upgrade(deepcopy(run.notebook))
        tagged = next(place for place, cell in enumerate(notebook.cells) if "parameters" in tags(cell))
        assignments = translate_parameters("python3", "python", run.parameters, "Parameters")
        injected = nbformat.v4.new_code_cell(assignments, metadata={"tags": [INJECTED]})
        notebook.cells.insert(tagged + 1, injected)
        super().__init__(notebook, kernel_name="python3", on_cell_start=self._starts)
        self.say = say
        self.cell_number = 0
        self.unfinished_line = ""

    def stop(self) -> None:
        """Kill the kernel; who waits for it gets a DeadKernelError."""
        kernel = self.km
        if isinstance(kernel, AsyncKernelManager):
            with suppress(RuntimeError):  # it has not started yet, or has ended
                run_sync(kernel.signal_kernel)(signal.SIGKILL)

    def process_message(self, msg: dict[str, Any], cell: NotebookNode, cell_index: int) -> NotebookNode | None:
        """Tell what is written to stderr, line by line; a carriage return ends a line, too."""
        output = super().process_message(msg, cell, cell_index)
        if output and output.get("name") == "stderr":
            *lines, self.unfinished_line = re.split(r"[\r\n]", self.unfinished_line + output.text)
            for line in lines:
                if line.strip():
                    self.say(line.strip())
        return output

    def _starts(self, *, cell: NotebookNode, cell_index: int) -> None:
        self.cell = cell
        self.cell_number = len(_authors(self.nb.cells[: cell_index + 1]))


def execute(run: Run, client: Client, environment: Mapping[str, str]) -> Run:
    """Execute a notebook and write it, as far as it came: `done` or `failed`, with its time."""
    begun = time.monotonic()
    error = traceback = ""
    try:
        client.execute(env=environment, stdout=DEVNULL, stderr=DEVNULL)
    except CellExecutionError as raised:
        error = f"{raised.ename}: {raised.evalue}"
        for output in client.cell.outputs:
            if output.output_type == "error":
                traceback = "\n".join(output.traceback)
    except DeadKernelError:
        error = "the kernel died: killed, crashed or out of memory"
    except Exception as raised:
        # a time-out, a kernel that never started: none may stop the other notebooks
        error = f"{type(raised).__name__}: {raised}"
    atexit.unregister(client._cleanup_kernel)  # nbclient forgets to, where a kernel never started
    seconds = time.monotonic() - begun
    nbformat.write(client.nb, run.executed)
    if not error:
        return replace(run, state="done", seconds=seconds)
    source = run.notebook.cells[client.cell_number - 1].source if client.cell_number else ""
    failure = Failure(client.cell_number, source, strip_ansi(error), strip_ansi(traceback))
    return replace(run, state="failed", seconds=seconds, failure=failure)


def executed_cells(run: Run) -> list[NotebookNode]:
    """The author's cells with their outputs, as far as the notebook was run; none where no kernel started."""
    if not run.has_ended or not run.executed.exists():
        return []
    cells = _authors(nbformat.read(run.executed, as_version=4).cells)
    return cells[: run.failure.cell] if run.failure else cells


def tags(cell: NotebookNode) -> list[str]:
    """The tags of a cell."""
    return cell.metadata.get("tags", [])


def _authors(cells: list[NotebookNode]) -> list[NotebookNode]:
    """The cells without the injected one."""
    return [cell for cell in cells if INJECTED not in tags(cell)]
