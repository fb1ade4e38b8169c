"""Runs the narrated notebooks with strict parameters and makes the HTML report.

Knows papermill and files; must not know models, results or what a notebook computes. One kernel at a time, a second or two each to start.
"""

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import papermill
import yaml
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import strip_color

from eedkit.errors import short, unknown
from eedkit.report import pages
from eedkit.report.pages import Failure, Run
from eedkit.report.parameters import ReportError, check, parameters, read_yaml
from eedkit.report.terminal import Terminal

EVERY = "all"
"""In a profile: for every notebook."""

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
    """Run the notebooks one after the other and make their report.

    Leaves in `out`: `index.html`, and for each notebook the executed `<stem>.ipynb`, `<stem>.html` and what it draws into `figures/`.
    A notebook that fails stops none of the others.

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
    terminal = Terminal() if progress else None
    # Written first and after every run: whoever stops a report half-way finds an index that says what was not run.
    index = pages.write_index(runs, out, facts)
    with _environment(terminal):
        for i, run in enumerate(runs):
            title = f"[{i + 1}/{len(runs)}] {run.stem}"
            if terminal:
                terminal.line(title)
            runs[i] = run = _execute(run, terminal)
            pages.write_page(run, out, facts, code=code)
            pages.write_index(runs, out, facts)
            if terminal:
                took = pages.duration(run.seconds)
                terminal.line(
                    f"{title}: FAILED after {took} in {run.failure}" if run.failure else f"{title}: done in {took}"
                )
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
    every = {name for names in declared.values() for name in names} - {"out"}
    for name in given:
        if name not in every:
            raise ReportError(unknown("parameter", name, sorted(every)))
    plan = []
    for stem, path in chosen.items():
        if "out" not in declared[stem]:
            raise ReportError(
                f'{stem}: its parameters cell must hold `out: str = "reports"`, the folder of its figures'
            )
        own = {name: value for name, value in given.items() if name in declared[stem]}
        plan.append((path, declared[stem] | settings.get(stem, {}) | check(path, own) | {"out": str(out)}))
    return plan


def _execute(run: Run, terminal: Terminal | None) -> Run:
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
def _environment(terminal: Terminal | None) -> Iterator[None]:
    """The environment that kernels inherit: bars refresh at a bearable rate; papermill's own remarks are kept quiet."""
    live = terminal is not None and terminal.live
    values = {"TQDM_MININTERVAL": "0.5" if live else "10", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    # Threads that spin at every barrier make small networks ten times slower as soon as another program wants a core.
    values["OMP_WAIT_POLICY"] = "PASSIVE"
    if live:
        values["TQDM_NCOLS"] = str(terminal.room)
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
