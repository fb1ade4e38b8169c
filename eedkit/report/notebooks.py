"""Runs the narrated notebooks with strict parameters and makes the HTML report.

Knows papermill and files; must not know models, results or what a notebook computes. Two kernels at a time where there are two cores.
"""

import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import nbformat
import papermill
import yaml
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import strip_color

from eedkit.errors import short, unknown
from eedkit.machine import deaf_to_interrupts
from eedkit.progress import TEXT_ON_STDERR
from eedkit.report import pages
from eedkit.report.pages import Failure, Run
from eedkit.report.parameters import ReportError, check, parameters, read_yaml
from eedkit.report.terminal import Terminal

EVERY = "all"
"""In a profile: for every notebook."""
KERNELS = 2
"""How many notebooks run at once, where there are as many cores."""
LAST = "last"
"""In a notebook's metadata, `"eedkit": {"last": true}`: it runs alone, after the others, since it reads what they leave."""

__all__ = ["NotebooksFailed", "ReportError", "check", "folder", "parameters", "profile", "report"]


class NotebooksFailed(RuntimeError):
    """Some notebooks failed; the report was made all the same. `index` is its first page, `failed` the runs that failed."""

    def __init__(self, index: Path, failed: Sequence[Run]):
        super().__init__("\n".join(f"{run.stem}, {run.failure}" for run in failed))
        self.index = index
        self.failed = tuple(failed)


def folder() -> Path:
    """Where the notebooks are: inside an installed package, else in the repository that holds it."""
    package = Path(__file__).resolve().parents[1]
    for place in (package / "_notebooks", package.parent / "notebooks"):
        if place.is_dir():
            return place
    raise ReportError(f"no notebooks beside {package}; install eedkit from its wheel, or run it from its repository")


def profile(name_or_path: str | Path) -> dict[str, dict[str, Any]]:
    """A profile: for each notebook, the parameters in which it differs from the notebook's defaults; nothing runs.

    What stands under `all` goes to every notebook that has the parameter, before what it is given by its own name.

    Parameters
    ----------
    name_or_path : a name ("quick": `profiles/quick.yaml` beside the notebooks) or the path of a `.yaml` file

    Returns
    -------
    notebook stem -> its parameters, checked

    Raises
    ------
    ReportError
        There is no such profile, or it names notebooks or parameters that do not exist, or values of another type.
    """
    home = folder()
    path = Path(name_or_path)
    if path.suffix not in {".yaml", ".yml"}:
        known = {file.stem: file for file in sorted((home / "profiles").glob("*.yaml"))}
        if str(name_or_path) not in known:
            raise ReportError(unknown("profile", str(name_or_path), known) + "; a path ends in .yaml")
        path = known[str(name_or_path)]
    try:
        read = read_yaml(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise ReportError(f"no profile file {path}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ReportError(f"{path.name} is not YAML: {error}") from None
    if not isinstance(read, dict):
        raise ReportError(f"{path.name}: expected `notebook: {{parameter: value}}`, got a {type(read).__name__}")
    known = _notebooks(home)
    for stem, given in read.items():
        if stem not in (*known, EVERY):
            raise ReportError(f"{path.name}: {unknown('notebook', stem, known)}")
        if not isinstance(given or {}, dict):
            raise ReportError(f"{path.name}: {stem} takes `parameter: value` lines, got {short(given)}")
        _refuse_out(given or {})
    declared = {stem: parameters(file) for stem, file in known.items()}
    shared = read.get(EVERY) or {}
    for name in shared:
        if not any(name in names for names in declared.values()):
            raise ReportError(f"{path.name}: {unknown('parameter', name, sorted(set().union(*declared.values())))}")
    checked = {}
    for stem, file in known.items():
        own = {name: value for name, value in shared.items() if name in declared[stem]} | (read.get(stem) or {})
        if own:
            checked[stem] = check(file, own)
    return checked


def report(
    out: str | Path = "reports",
    *,
    profile: str | Path = "quick",
    notebooks: Sequence[str] | None = None,
    parameters: Mapping[str, Any] | None = None,
    code: bool = False,
    progress: bool = True,
) -> Path:
    """Run the notebooks, two at a time where there are two cores, and make their report.

    Leaves in `out`: `index.html`, and for each notebook the executed `<stem>.ipynb`, `<stem>.html` and what it draws into `figures/`.
    A notebook that fails stops none of the others. One whose metadata say `"eedkit": {"last": true}` waits for all others.
    Scripts must call this below `if __name__ == "__main__":`, since processes are spawned.

    Parameters
    ----------
    out : folder of the report; every notebook gets its absolute path as its parameter `out`
    profile : name or path, see `profile()`
    notebooks : stems of those to run; all when None
    parameters : name -> value over the profile's, for every notebook that has the parameter
    code : show the notebooks' code on their pages
    progress : tell on stderr what runs

    Returns
    -------
    path of `index.html`

    Raises
    ------
    ReportError
        Something asked for does not exist or has another type; nothing was run.
    NotebooksFailed
        Some notebooks failed: their pages and the index say where.
    """
    out = Path(out).resolve()
    plan = _plan(profile, notebooks, parameters or {}, out)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    runs = [Run(source, out / source.name, values) for source, values in plan]
    facts = pages.provenance(Path(profile).stem)
    kernels = min(KERNELS, os.cpu_count() or 1, len(runs))
    terminal = Terminal() if progress else None
    opening = next(filter(pages.opens_index, _notebooks(folder()).values()), None)
    # Written first and after every run: whoever stops a report half-way finds pages that say what was not run.
    for run in runs:
        pages.write_page(run, runs, out, facts)
    index = pages.write_index(runs, out, facts, opening=opening)

    def starts(i: int) -> Terminal | None:
        number = f"[{i + 1}/{len(runs)}]"
        if terminal is None:
            return None
        terminal.line(f"{number} {runs[i].stem}")
        return terminal.shared(number) if kernels > 1 else terminal

    with _environment(terminal, kernels):
        for i, run in _executed(runs, kernels, starts):
            runs[i] = run
            pages.write_page(run, runs, out, facts, code=code)
            pages.write_index(runs, out, facts, opening=opening)
            if terminal:
                took = pages.duration(run.seconds)
                ended = f"FAILED after {took} in {run.failure}" if run.failure else f"done in {took}"
                terminal.line(f"[{i + 1}/{len(runs)}] {run.stem}: {ended}")
    failed = [run for run in runs if run.failure]
    if failed:
        raise NotebooksFailed(index, failed)
    return index


def _plan(
    name: str | Path, stems: Sequence[str] | None, given: Mapping[str, Any], out: Path
) -> list[tuple[Path, dict]]:
    """Which notebooks run with which parameters; everything that can be refused is refused here."""
    known = _notebooks(folder())
    settings = profile(name)
    for stem in stems or ():
        if stem not in known:
            raise ReportError(unknown("notebook", stem, known))
    chosen = {stem: path for stem, path in known.items() if stems is None or stem in stems}
    if not chosen:
        raise ReportError(f"nothing to run: name at least one of {', '.join(known)}")
    _refuse_out(given)
    declared = {stem: parameters(path) for stem, path in chosen.items()}
    every = set().union(*declared.values()) - {"out"}
    for name in given:
        if name not in every:
            raise ReportError(unknown("parameter", name, sorted(every)))
    plan = []
    for stem, path in chosen.items():
        if "out" not in declared[stem]:
            raise ReportError(
                f'{stem}: its parameters cell must hold `out: str = "../reports"`, the folder of its figures'
            )
        own = {name: value for name, value in given.items() if name in declared[stem]}
        plan.append((path, declared[stem] | settings.get(stem, {}) | check(path, own) | {"out": str(out)}))
    return plan


@dataclass
class _Running:
    """A notebook that runs in a process of its own: its place among the runs, and the cell that it has reached."""

    place: int
    process: BaseProcess
    terminal: Terminal | None
    started: float
    reached: int = -1


def _executed(runs: Sequence[Run], kernels: int, starts: Callable[[int], Terminal | None]) -> Iterator[tuple[int, Run]]:
    """Every run with its place, as they end."""
    if kernels == 1:
        for i in _order(runs):
            yield i, _execute(runs[i], starts(i))
        return
    waiting = _order(runs)
    running: dict[Connection, _Running] = {}
    # papermill's notion of the working directory is the process's, so every notebook has a process
    context = multiprocessing.get_context("spawn")
    try:
        while waiting or running:
            while waiting and len(running) < kernels and not (running and _is_last(runs[waiting[0]])):
                i = waiting.pop(0)
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_execute_there, args=(runs[i], theirs))
                running[ours] = _Running(i, process, starts(i), time.time())
                with deaf_to_interrupts():
                    process.start()
                theirs.close()
            for pipe in wait(list(running)):
                there = running[pipe]
                try:
                    method, arguments = pipe.recv()
                except EOFError:
                    method, arguments = "ends", (_died(runs[there.place], there),)
                if method == "ends":
                    there.process.join()
                    del running[pipe]
                    yield there.place, *arguments
                    continue
                if method == "cell":
                    there.reached = arguments[0] - 1
                if there.terminal:
                    getattr(there.terminal, method)(*arguments)
    finally:
        for there in running.values():
            there.process.terminate()
        for there in running.values():
            there.process.join()


def _order(runs: Sequence[Run]) -> list[int]:
    """Places of the runs, those that read what the others leave at the end."""
    return sorted(range(len(runs)), key=lambda i: _is_last(runs[i]))


def _is_last(run: Run) -> bool:
    return bool(nbformat.read(run.source, as_version=4).metadata.get("eedkit", {}).get(LAST, False))


class _Sent:
    """A terminal's methods, called in the process that holds the other end of a pipe."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe

    def cell(self, number: int, total: int) -> None:
        self.pipe.send(("cell", (number, total)))

    def write(self, text: str) -> int:
        self.pipe.send(("write", (text,)))
        return len(text)

    def clear(self) -> None:
        self.pipe.send(("clear", ()))

    def flush(self) -> None:
        pass


def _execute_there(run: Run, pipe: Connection) -> None:
    """`_execute` in a process of its own, whose kernel ends with it when it is terminated."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    try:
        pipe.send(("ends", (_execute(run, _Sent(pipe)),)))
    except (KeyboardInterrupt, BrokenPipeError):
        # the report was stopped, and says so: asyncio would print what its tasks were about
        os._exit(1)


def _died(run: Run, there: _Running) -> Run:
    """A run whose process is gone without a word."""
    cells = nbformat.read(run.source, as_version=4).cells
    failure = _failure(cells, there.reached, "its process died: killed, crashed or out of memory", "")
    return Run(run.source, run.executed, run.parameters, time.time() - there.started, there.started, failure)


def _execute(run: Run, terminal: "Terminal | _Sent | None") -> Run:
    """Run one notebook; a failure is returned, not raised."""
    run.executed.unlink(missing_ok=True)  # an older one would be taken for this run's, should the kernel not even start
    cells = nbformat.read(run.source, as_version=4).cells
    reached = -1

    def starts(*, cell_index: int, **_: Any) -> None:
        nonlocal reached
        reached = cell_index
        if terminal:
            terminal.cell(cell_index + 1, len(cells) + 1)

    started = time.time()
    begin = time.monotonic()
    failure = None
    try:
        papermill.execute_notebook(
            _literal(run.source),
            _literal(run.executed),
            parameters=run.parameters,
            kernel_name="python3",
            language="python",
            progress_bar=False,
            stderr_file=terminal,
            on_cell_start=starts,
            extra_arguments=["--log-level=CRITICAL"],  # else ipykernel writes past us, of its transport or of a Ctrl-C
        )
    except papermill.PapermillExecutionError as error:
        said = strip_color(f"{error.ename}: {error.evalue}")
        failure = _failure(cells, error.cell_index, said, strip_color("\n".join(error.traceback)))
    except DeadKernelError:
        failure = _failure(cells, reached, "the kernel died: killed, crashed or out of memory", "")
    except Exception as error:  # a time-out, a kernel that never started: none may stop the other notebooks
        failure = _failure(cells, reached, f"{type(error).__name__}: {error}", "")
    finally:
        if terminal:
            terminal.clear()
    return Run(run.source, run.executed, run.parameters, time.monotonic() - begin, started, failure)


def _failure(cells: list, index: int, error: str, traceback: str) -> Failure:
    """Where it failed: `index` counts the executed notebook's cells, the author counts those without the injected one."""
    tagged = next(i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", ()))
    own = index - (index > tagged)
    return Failure(index, own + 1, cells[own].source if own >= 0 else "", error, traceback)


@contextmanager
def _environment(terminal: Terminal | None, kernels: int) -> Iterator[None]:
    """The environment that kernels inherit: their share of the cores, bars that refresh at a bearable rate.

    Papermill's own remarks are kept quiet.
    """
    live = terminal is not None and terminal.live
    values = {"TQDM_MININTERVAL": "0.5" if live else "10", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    # papermill hands on what kernels write to stderr, and no widgets
    values |= TEXT_ON_STDERR
    # Threads that spin at every barrier make small networks ten times slower as soon as another program wants a core.
    values["OMP_WAIT_POLICY"] = "PASSIVE"
    if kernels > 1:
        values["OMP_NUM_THREADS"] = str((os.cpu_count() or 1) // kernels)
    if live:
        values["TQDM_NCOLS"] = str(terminal.room // kernels)
    added = {name: value for name, value in values.items() if name not in os.environ}
    # A backend of the shell's, such as agg on a server, would leave the pages without figures.
    backend = os.environ.get("MPLBACKEND")
    added["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    # Its inference by regular expression calls `x: str | None = None` unknown; check() has looked at every name already.
    logger = logging.getLogger("papermill")
    level = logger.level
    os.environ.update(added)
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name in added:
            os.environ.pop(name, None)
        if backend is not None:
            os.environ["MPLBACKEND"] = backend


def _notebooks(home: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(home.glob("*.ipynb"))}


def _literal(path: Path) -> str:
    """A path that papermill leaves alone: it formats what it finds in braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _refuse_out(given: Mapping[str, Any]) -> None:
    if "out" in given:
        raise ReportError(
            "the parameter 'out' is the report's folder: give it to the report (`--out`), not to a notebook"
        )
