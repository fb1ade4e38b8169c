"""Runs the narrated notebooks with strict parameters and makes the HTML report.

Knows files and processes; must not know models, results or what a notebook computes. Two kernels at a time where there are two cores.
"""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from eedkit.errors import printable, short, unknown
from eedkit.progress import TEXT_ON_STDERR
from eedkit.report import kept, pages
from eedkit.report.kernel import Client, Run, execute
from eedkit.report.parameters import ReportError, check, parameters, read, read_yaml

KERNELS = 2
"""How many notebooks run at once, where there are as many cores."""
__all__ = ["NotebooksFailed", "ReportError", "folder", "plan", "report"]


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


def plan(
    out: str | Path = "reports",
    *,
    profile: str | Path = "quick",
    notebooks: Sequence[str] | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> tuple[list[Run], list[str]]:
    """The runs of a report by the notebooks' names, and which notebooks cannot be run and why; takes what `report` takes.

    Nothing runs, and everything that can be refused is refused here, by a ReportError.
    """
    out = Path(out).resolve()
    runs, left_out = _runs(out)
    name, of_notebook = _profile(profile)
    of_all = of_notebook.pop("all", {})
    given = parameters or {}
    declared_anywhere = {}
    for run in runs.values():
        declared_anywhere.update(run.declared)
    for values in (of_all, given):
        unheard = {key: value for key, value in values.items() if key not in declared_anywhere or key == "out"}
        check(name, declared_anywhere, unheard)
    for stem in of_notebook:
        if stem not in runs:
            raise ReportError(f"{name}: {unknown('notebook', stem, runs)}")
    for stem in notebooks or ():
        if stem in left_out:
            raise ReportError(left_out[stem])
        if stem not in runs:
            raise ReportError(unknown("notebook", stem, runs))
    for stem, run in runs.items():
        for values in (_of(run, of_all), of_notebook.get(stem, {}), _of(run, given)):
            check(stem, run.declared, values)
            run.parameters.update(values)
        run.parameters["out"] = str(out)
    chosen = [run for stem, run in runs.items() if notebooks is None or stem in notebooks]
    if not chosen:
        raise ReportError(f"nothing to run: name at least one of {', '.join(runs)}")
    return chosen, list(left_out.values())


def report(
    out: str | Path = "reports",
    *,
    profile: str | Path = "quick",
    notebooks: Sequence[str] | None = None,
    parameters: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Path:
    """Run the notebooks, two at a time where there are two cores, and make their report.

    Leaves in `out`: `index.html`, which is there from the start and grows, and for each notebook the executed `<stem>.ipynb`,
    `<stem>.html` and what it draws into `figures/`. A notebook that fails stops none of the others. One that was executed
    before is kept if neither its parameters, its source, eedkit and the libraries nor the files that it named have changed.

    Notebooks start by their names. Those whose metadata say `"eedkit": {"start": "first"}`, as the longest should, come before
    the others; those that say "last" come after all, alone.

    Parameters
    ----------
    out : str or Path
        Folder of the report; every notebook gets its absolute path as its parameter `out`.
    profile : str or Path
        A name ("quick": `profiles/quick.yaml` beside the notebooks) or the path of a `.yaml` file. What it says under `all` is
        for every notebook that has such parameters, over the notebook's own defaults; then comes what stands under its name.
    notebooks : sequence of str, optional
        Stems of those to run; all when None, but those that cannot be run.
    parameters : mapping of str to object, optional
        Values over the profile's, for every notebook that has the parameter.
    progress : bool
        Say on stderr what runs, and what it writes there.

    Returns
    -------
    Path
        Of `index.html`.

    Raises
    ------
    ReportError
        Something asked for does not exist or has another type; nothing was run.
    NotebooksFailed
        Some notebooks failed: their pages and the index say where.
    """
    runs, left_out = plan(out, profile=profile, notebooks=notebooks, parameters=parameters)
    return _Report(runs, left_out, Path(profile).stem, progress=progress).make()


class _Report:
    """A report while it is made: what ran, the pages, and what is told of it."""

    def __init__(self, runs: Sequence[Run], left_out: Sequence[str], profile: str, *, progress: bool) -> None:
        self.left_out = left_out
        self.profile = profile
        self.out = runs[0].executed.parent
        self.names = {run.stem: f"[{number}/{len(runs)}] {run.stem}" for number, run in enumerate(runs, 1)}
        self.pages = {run.stem: pages.page_of(run) for run in runs}
        self.kernels = min(KERNELS, os.cpu_count() or 1)
        self.clients: list[Client] = []  # of the notebooks that were begun
        self.progress = progress
        self.environment = _environment(self.kernels)

    def make(self) -> Path:
        """Run everything; a report that is stopped half-way says on its pages what was not run."""
        (self.out / "figures").mkdir(parents=True, exist_ok=True)
        self._write(*self.pages, running=True)
        for why in self.left_out:
            self._say(f"left out: {why}")
        try:
            runs = sorted((page.run for page in self.pages.values()), key=lambda run: run.start != "first")
            self._execute([run for run in runs if run.start != "last"])
            self._execute([run for run in runs if run.start == "last"])
        finally:
            for page in self.pages.values():
                if not page.run.has_ended:
                    page.run = replace(page.run, state="not run")
            index = self._write(*self.pages, running=False)
        failed = [page.run for page in self.pages.values() if page.run.failure]
        if failed:
            raise NotebooksFailed(index, failed)
        return index

    def _execute(self, runs: Sequence[Run]) -> None:
        """Run notebooks side by side, and write each one's page as it ends; stopped, their kernels end first."""
        earlier = {run.stem: kept.kept(run) for run in runs}
        with ThreadPoolExecutor(self.kernels) as threads:
            futures = []
            try:
                for run in runs:
                    if earlier[run.stem] is None:
                        futures.append(threads.submit(self._execute_one, run))
                for run in filter(None, earlier.values()):
                    self._ended(run)
                for future in as_completed(futures):
                    self._ended(future.result())
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                while not all(future.done() for future in futures):
                    for client in self.clients:
                        client.stop()
                    time.sleep(0.05)
                raise

    def _execute_one(self, run: Run) -> Run:
        """Run a notebook, and pass on what it writes to stderr."""
        name = self.names[run.stem]
        number = name.partition(" ")[0]
        self._say(name)
        self.pages[run.stem].run = replace(run, state="running")
        client = Client(run, lambda line: self._say(f"    {number} {line}"))
        self.clients.append(client)
        began = time.time()
        ended = execute(run, client, self.environment)
        if ended.state == "done":
            ended = replace(ended, facts=pages.provenance(self.profile, self.environment["OMP_NUM_THREADS"]))
            kept.remember(ended, began)
        return ended

    def _ended(self, run: Run) -> None:
        """Make a notebook's page, and the index anew."""
        page = pages.page_of(run)
        self.pages[run.stem] = page
        self._write(run.stem, running=True)
        how = {"done": f"done in {page.time}", "kept": "kept", "failed": f"FAILED after {page.time} in {run.failure}"}
        self._say(f"{self.names[run.stem]}: {how[run.state]}")

    def _write(self, *stems: str, running: bool) -> Path:
        """Write the pages of some notebooks, and the index."""
        every = list(self.pages.values())
        for stem in stems:
            pages.write_page(self.pages[stem], every, self.profile)
        return pages.write_index(every, self.out, self.profile, running=running, left_out=self.left_out)

    def _say(self, line: str) -> None:
        """One line on stderr."""
        if self.progress:
            sys.stderr.write(f"{printable(line)}\n")


def _runs(out: Path) -> tuple[dict[str, Run], dict[str, str]]:
    """By their stems the notebooks that can be run, at their defaults; of the others, why they cannot."""
    runs = {}
    left_out = {}
    for source in sorted(folder().glob("*.ipynb")):
        stem = source.stem
        try:
            notebook = read(source)
            declared = parameters(notebook, stem)
            if "out" not in declared:
                raise ReportError(
                    f'{stem}: its parameters cell must hold `out: str = "../reports"`, its figures\' folder'
                )
        except ReportError as error:
            left_out[stem] = str(error)
            continue
        defaults = {name: parameter.default for name, parameter in declared.items()}
        runs[stem] = Run(source, notebook, declared, out / source.name, defaults)
    return runs, left_out


def _of(run: Run, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values whose parameters a notebook has."""
    return {name: value for name, value in values.items() if name in run.declared}


def _profile(name_or_path: str | Path) -> tuple[str, dict[str, dict[str, Any]]]:
    """The name of a profile's file and what it says: `notebook: {parameter: value}`."""
    file = Path(name_or_path)
    if file.suffix not in {".yaml", ".yml"}:
        known = {file.stem: file for file in sorted((folder() / "profiles").glob("*.yaml"))}
        if str(name_or_path) not in known:
            raise ReportError(unknown("profile", str(name_or_path), known) + "; a path ends in .yaml")
        file = known[str(name_or_path)]
    try:
        content = read_yaml(file.read_text(encoding="utf-8")) or {}
        of_notebook = TypeAdapter(dict[str, dict[str, Any] | None]).validate_python(content)
    except FileNotFoundError:
        raise ReportError(f"no profile file {file}") from None
    except ValidationError:
        raise ReportError(f"{file.name}: expected `notebook: {{parameter: value}}`, got {short(content)}") from None
    except ValueError as error:
        raise ReportError(f"{file.name} is not YAML: {error}") from None
    return file.name, {stem: values or {} for stem, values in of_notebook.items()}


def _environment(kernels: int) -> dict[str, str]:
    """What kernels inherit: their share of the cores, and bars of which each refresh is a line here."""
    values = {
        "TQDM_MININTERVAL": "10",
        "TQDM_NCOLS": "60",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        # threads that spin at every barrier make small networks ten times slower as soon as another program wants a core
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": str((os.cpu_count() or 1) // kernels),
    }
    # a backend of the shell's, such as agg on a server, would leave the pages without figures
    always = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"} | TEXT_ON_STDERR
    return values | dict(os.environ) | always
