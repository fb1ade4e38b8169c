"""One notebook, run by papermill in a process of its own, which reports in lines of JSON what happens.

Knows papermill and the executed file, nothing of pages. A second to import papermill, and what the kernel itself costs.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from eedkit.report.parameters import Parameter

MARKS = {"injected-parameters", "papermill-error-cell-tag"}
"""Tags of the cells that papermill adds, which the author does not count."""


@dataclass(frozen=True)
class Failure:
    """Where and why a notebook stopped: `cell` from 1 as the author counts, or 0 before the first."""

    cell: int
    source: str
    error: str
    traceback: str = ""

    def __str__(self) -> str:
        first_line = (self.error.strip().splitlines() or ["unknown error"])[0]
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
    def is_last(self) -> bool:
        """Whether it runs alone after all others, since it reads what they leave: `"eedkit": {"last": true}`."""
        return bool(self.notebook.metadata.get("eedkit", {}).get("last", False))


def execute(
    run: Run, environment: Mapping[str, str], processes: list[subprocess.Popen], say: Callable[[str, str], None]
) -> Run:
    """Run a notebook and wait for its end: `done` or `failed`, with its time.

    Its process is added to `processes`: see `stop`, which happens as well when we are gone. `say` is
    told which cell runs ("cell", "3/20") and what the kernel writes to stderr ("text", "training: 45%").
    """
    # an older one would be taken for this run's, should the kernel not even start
    run.executed.unlink(missing_ok=True)
    task = {"source": str(run.source), "executed": str(run.executed), "parameters": run.parameters}
    begun = time.monotonic()
    error, traceback = "its process died: killed, crashed or out of memory", ""
    cell_number = 0
    with subprocess.Popen(
        [sys.executable, "-m", "eedkit.report.kernel", json.dumps(task)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=dict(environment),
        text=True,
        encoding="utf-8",
        start_new_session=True,  # a terminal's Ctrl-C reaches us alone
    ) as process:
        processes.append(process)
        for line in process.stdout or ():
            kind, content = json.loads(line)
            if kind == "ended":
                error, traceback = content
            elif kind == "cell":
                cell_number, cells = content
                say("cell", f"{cell_number}/{cells}")
            else:
                say("text", content)
    seconds = time.monotonic() - begun
    if not error:
        return replace(run, state="done", seconds=seconds)
    source = run.notebook.cells[cell_number - 1].source if cell_number else ""
    return replace(run, state="failed", seconds=seconds, failure=Failure(cell_number, source, error, traceback))


def stop(process: subprocess.Popen) -> None:
    """End the process of a notebook, and its kernel before it."""
    if process.stdin:
        process.stdin.close()


def executed_cells(run: Run) -> list[NotebookNode]:
    """The author's cells with their outputs, as far as the notebook was run; none where no kernel started."""
    if not run.has_ended or not run.executed.exists():
        return []
    notebook = nbformat.read(run.executed, as_version=4)
    cells = [cell for cell in notebook.cells if MARKS.isdisjoint(tags(cell))]
    return cells[: run.failure.cell] if run.failure else cells


def tags(cell: NotebookNode) -> list[str]:
    """The tags of a cell."""
    return cell.metadata.get("tags", [])


class _Stderr:
    """What the kernel writes to stderr, line by line; a carriage return ends a line, too."""

    def __init__(self) -> None:
        self.rest = ""

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text).replace("\r", "\n").split("\n")
        for line in lines:
            if line.strip():
                _report("text", line.strip())
        return len(text)

    def flush(self) -> None:
        pass


def _report(kind: str, content: Any) -> None:
    print(json.dumps([kind, content]), flush=True)


def _literal(path: str) -> str:
    """A path that papermill leaves alone: it formats what it finds in braces."""
    return path.replace("{", "{{").replace("}", "}}")


def _main(source: str, executed: str, parameters: dict[str, Any]) -> tuple[str, str]:
    """Execute a notebook in this process and say which cell runs; gives the error and its traceback, or nothing."""
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import strip_color

    # Its inference by regular expression calls `x: str | None = None` unknown; our check has looked at every name already.
    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    cells = nbformat.read(source, as_version=4).cells
    tagged = next(place for place, cell in enumerate(cells) if "parameters" in tags(cell))

    def starts(*, cell_index: int, **_: Any) -> None:
        is_behind_injected = cell_index > tagged
        _report("cell", [cell_index + 1 - is_behind_injected, len(cells)])

    try:
        papermill.execute_notebook(
            _literal(source),
            _literal(executed),
            parameters=parameters,
            kernel_name="python3",
            language="python",
            progress_bar=False,
            stderr_file=_Stderr(),
            on_cell_start=starts,
        )
    except papermill.PapermillExecutionError as raised:
        return strip_color(f"{raised.ename}: {raised.evalue}"), strip_color("\n".join(raised.traceback))
    except DeadKernelError:
        return "the kernel died: killed, crashed or out of memory", ""
    return "", ""


def _end_with_stdin() -> None:
    """Interrupt this process when its stdin ends."""
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    # who starts us in the background has interrupts ignored, and children inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        end = _main(**json.loads(sys.argv[1]))
    except KeyboardInterrupt:
        os._exit(1)
    except Exception as raised:
        # a time-out, a kernel that never started: none may stop the other notebooks
        end = f"{type(raised).__name__}: {raised}", ""
    _report("ended", end)
