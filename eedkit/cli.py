"""The command line: `eedkit report` and, one function each, what else the library does in one go.

Knows what to call and how to say it; must not compute. Heavy imports wait for the command that needs them, so `--help` is quick.
"""

import logging
import re
import shlex
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eedkit.errors import cut, printable, short

if TYPE_CHECKING:
    from eedkit.study.study import Study

MESSAGE = 1000
"""Characters of a message: what was thrown may be a whole log."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

STUDY = """Measure models × data sets × groups into one store.

\b
A study is a YAML file, such as first.yaml:
    models:
      - recipe:plain?seed=0
      - recipe:augmented?seed=0
    data:
      - digits/test
    groups:
      - C4
    store: runs/first

\b
Other keys: metrics, layers, head, layouts, output, null, seed, precision, device, batch_size, block;
see `help(eedkit.Study)`. A group or metric written as "module:name" is imported as Python code: run only files
that you trust.
"""
study = typer.Typer(
    help=STUDY, epilog="Example: eedkit study plan first.yaml", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(study, name="study")


def _path(text: str) -> Path:
    if not text:
        raise typer.BadParameter("expected a path, got an empty text.")
    return Path(text)


class Format(StrEnum):
    """What figures are written as."""

    PNG = "png"
    SVG = "svg"
    PDF = "pdf"


File = Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, readable=True, help="YAML file of the study.")]  # fmt: skip
Store = Annotated[Path, typer.Argument(metavar="STORE", exists=True, help="Store written by a study or `measure`.")]
OnlyData = Annotated[str | None, typer.Option("--data", metavar="NAME", help="Use only this data set of the study.")]
OnlyGroup = Annotated[str | None, typer.Option("--group", metavar="NAME", help="Use only this group of the study.")]
Head = Annotated[str | None, typer.Option(metavar="PATH", help="Path of the classifier within the model, such as fc.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Hide the progress bar.")]


def _version(asked: bool) -> None:
    if asked:
        import eedkit

        typer.echo(f"eedkit {eedkit.__version__}")
        raise typer.Exit


def _specs(asked: bool) -> None:
    if asked:
        from eedkit.lab import specs

        typer.echo(f"MODEL\n{specs.MODELS_HELP}\n\nDATA\n{specs.IMAGES_HELP}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Find out in what ways a vision model is invariant or equivariant, where in the network, and on which images.

    Commands exit with 0 when done, 1 when something failed, 2 when called wrongly, and 130 on Ctrl-C.
    """


@app.command(epilog="\b\nExample: eedkit measure 'recipe:plain?seed=0' digits/test --group C4 --out plain.zarr")
def measure(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="recipe:…, torchvision:…, timm:…, package:… or file:….safetensors?model=timm:…&classes=10.",
        ),
    ],
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA", help="Bundled images, a folder, a Parquet file or hub:…, such as photos/?size=33&n=100."
        ),
    ],
    group: Annotated[str, typer.Option(help="C4, D4, flip, shift4, …")],
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Metric to compute; repeat for several. Default: channelwise, latent, softmax."
        ),
    ] = None,
    layers: Annotated[str | None, typer.Option(help="blocks (the default), all, or a regular expression.")] = None,
    head: Head = None,
    seed: Annotated[int, typer.Option(help="Seed for the image order.")] = 0,
    device: Device = "auto",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images per forward pass; the results do not depend on it.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="PATH.zarr", parser=_path, help="Save the results here.")] = None,
    quiet: Quiet = False,
    _: Annotated[
        bool,
        typer.Option("--specs", callback=_specs, is_eager=True, help="Show how to write MODEL and DATA, and exit."),
    ] = False,
) -> None:
    """Measure how invariant and equivariant a model is.

    Prints accuracy by group element, then relative values with 95 % intervals. At 0 a layer is perfectly equivariant; at 1, a
    transformed copy is as far away as a different image. The estimate is the mean deviation itself, and the null is the same
    deviation between different images.
    """
    if out is not None:
        _refuse_unwritable(out)
    with _plainly("measure", stopped="Stopped; nothing was saved."):
        import eedkit

        options = {"metrics": metric, "layers": layers}
        given = {name: value for name, value in options.items() if value}
        try:
            ds = eedkit.measure(
                model,
                data,
                group=group,
                head=head,
                seed=seed,
                device=device,
                batch_size=batch_size,
                progress=not quiet,
                **given,
            )
        except RuntimeError as error:
            raise _failed("measure", str(error)) from None
        _say(ds.eed)
        if out is not None:
            try:
                ds.eed.to_zarr(out)
            except OSError as error:
                raise _failed("measure", f"cannot save {out}: {error}") from None
            _say(f'Saved: ek.open("{out}")')


class Expected(StrEnum):
    """What `check` can expect."""

    EQUIVARIANT = "equivariant"
    INVARIANT = "invariant"


@app.command(
    epilog="\b\nExample: eedkit check 'recipe:equivariant?epochs=0' 'digits/test?n=64' --group C4 --expect invariant"
)
def check(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As for `eedkit measure`.")],
    data: Annotated[str, typer.Argument(metavar="DATA", help="As for `eedkit measure`.")],
    group: Annotated[str, typer.Option(help="C4, D4, flip, shift4, …")] = "C4",
    expect: Annotated[
        Expected, typer.Option(help="equivariant: every layer with maps; invariant: features and output.")
    ] = (Expected.EQUIVARIANT),
    tolerance: Annotated[
        float, typer.Option(min=0, help="Largest relative value that passes; 1 is as far away as a different image.")
    ] = 0.02,
    layers: Annotated[str, typer.Option(help="all (the default), blocks, or a regular expression.")] = "all",
    head: Head = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Check that a model is equivariant or invariant.

    If it is not, exits with 1 and says which layer exceeds the tolerance, under which element, why, and how to fix it.
    """
    with _plainly("check", stopped="Stopped; nothing was checked."):
        import eedkit
        from eedkit.report import tables

        options = {"layers": layers, "device": device, "progress": not quiet} | ({"head": head} if head else {})
        try:
            found = eedkit.check(model, data, group, expect.value, tolerance, **options)
        except AssertionError as error:
            for line in str(error).splitlines():
                _complain(line)
            raise typer.Exit(1) from None
        except RuntimeError as error:
            raise _failed("check", str(error)) from None
        _say(tables.checked(found))
        _say(f"{model} is {expect.value} under {group} within {tolerance:g} at {len(found)} layers.")


@study.command(epilog="Example: eedkit study plan first.yaml")
def plan(file: File) -> None:
    """Show what is left to do and what it will cost.

    Nothing is trained, downloaded or written: models are built with random weights and timed on noise, on the device that a
    run would use.
    """
    with _plainly("study plan", stopped="Stopped; nothing was written."):
        from eedkit.report import tables
        from eedkit.study.study import Study
        from eedkit.study.workers import device

        chosen = Study.from_yaml(file)
        cells = chosen.plan()
        _say(tables.plan(cells))
        _say(
            f"Predicted: {tables.duration(cells.seconds.sum())} in one process on {device(chosen.device)}.\n"
            "This is predicted from a short timing on noise on this machine; training or fetching weights takes longer."
        )
    if unplanned := int((cells.note != "").sum()):
        raise _failed("study plan", f"{unplanned} of {len(cells)} cells cannot be planned, see the notes")


@study.command(epilog="Example: eedkit study run first.yaml --workers 4")
def run(
    file: File,
    workers: Annotated[int | None, typer.Option(min=1, help="Number of processes on this machine.")] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(metavar="tcp://HOST:PORT", help="Address of a Dask scheduler whose workers can reach the store."),
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="First check the finished blocks, and recompute damaged ones.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Compute what is left to do.

    Can be killed and resumed: finished blocks are kept. Exits with 1 if cells failed or lack samples, and lists them.
    """
    if workers is not None and scheduler is not None:
        raise _usage("study run", "give --workers or --scheduler, not both")
    command = ["eedkit", "study", "run", str(file)]
    if workers is not None:
        command += ["--workers", str(workers)]
    if scheduler is not None:
        command += ["--scheduler", scheduler]
    again = shlex.join(command)
    with _plainly("study run"):
        from eedkit.study.study import Study

        chosen = Study.from_yaml(file)
        warnings.filterwarnings("ignore", message=r"\d+ of \d+ cells failed")  # they are listed below
        logging.getLogger("distributed.client").disabled = True  # it logs the traceback of a lost connection
        try:
            chosen.run(workers=workers, client=scheduler, repair=repair, progress=not quiet)
        except KeyboardInterrupt:
            raise _stopped(_progress(chosen, again)) from None
        except RuntimeError as error:
            if not (chosen.status().failed > 0).any():
                raise _failed("study run", str(error)) from None
        except Exception as error:
            if not _is_lost_connection(error, scheduler):
                raise
            lost = f"lost the connection to the Dask scheduler ({type(error).__name__}); check that it runs. "
            raise _failed("study run", lost + _progress(chosen, again)) from None
        cells = chosen.status()
    flawed = cells.query("failed > 0 or flawed > 0")
    for cell in flawed.to_dict("records"):
        kind = "failed" if cell["failed"] else "lacks samples"
        _complain(f"{kind}: {cell['data']} · {cell['group']} · {cell['model']}: {cell['reason']}")
    done = int((cells.done == cells.blocks).sum())
    failed = int((cells.failed > 0).sum())
    has_blocks = cells[["done", "flawed"]].to_numpy().any()
    opens = f' Open: ek.open("{chosen.store}")' if has_blocks else ""
    _say(f"{done} of {len(cells)} cells done, {failed} failed.{opens}")
    if failed:
        _say(f"To retry: {again}", err=True)
    if len(flawed):
        raise typer.Exit(1)


@study.command(epilog="Example: eedkit study status first.yaml")
def status(file: File) -> None:
    """Show which blocks are done, running, failed or missing.

    Nothing is computed or written. Exits with 1 if cells failed or lack samples, and says why.
    """
    with _plainly("study status"):
        from eedkit.report import tables
        from eedkit.study.study import Study

        cells = Study.from_yaml(file).status()
        _say(tables.status(cells))
    if ((cells.failed > 0) | (cells.flawed > 0)).any():
        raise typer.Exit(1)


@app.command(epilog="\b\nExample: eedkit figures runs/first --out figures --format png --format pdf")
def figures(
    store: Store,
    out: Annotated[Path, typer.Option(metavar="FOLDER", parser=_path, help="Folder to write to.")] = Path("figures"),
    format: Annotated[list[Format] | None, typer.Option(help="Repeat for several; all three by default.")] = None,
    data: OnlyData = None,
    group: OnlyGroup = None,
) -> None:
    """Draw all figures of a store.

    Depth profiles, calibration, and deviation by group element and by class. Notes say what cannot be drawn.
    """
    with _plainly("figures", stopped=f"Stopped; the figures drawn so far are in {out}."):
        import eedkit
        from eedkit.plots import draw as drawn

        results = eedkit.open(store, data=data, group=group)
        files = drawn.draw(results, out, formats=[str(name) for name in format or Format])
        for file in dict.fromkeys(file.with_suffix("") for file in files):
            _say(file)
        _say(f"{len(files)} files, as {', '.join(format or Format)}")


@app.command(
    epilog="\b\nExample: eedkit card runs/first --model 'recipe:plain?seed=0' --images 'digits/test?size=17'\n"
    "         eedkit card net.zarr --require 'relative<=0.1' --require 'accuracy.moved>=0.9'"
)
def card(
    store: Store,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE.html", parser=_path, help="Page to write; its numbers go into a .json file beside it."
        ),
    ] = Path("card.html"),
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Model to report on, if the store holds several.")
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="The measured images, to show the ones whose features change most."),
    ] = None,
    data: OnlyData = None,
    group: OnlyGroup = None,
    require: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NUMBER<=BOUND",
            help="Exit with 1 if this does not hold; repeat for several. NUMBER is relative, relative.output, "
            "accuracy.upright, accuracy.moved, accuracy.lowest or kept.",
        ),
    ] = None,
) -> None:
    """Write a one-page report on one model.

    The page needs no other files. With --require, it passes or fails.
    """
    with _plainly("card", stopped="Stopped; no page was written."):
        import xarray as xr

        import eedkit
        from eedkit.lab.images import load

        results = eedkit.open(store, data=data, group=group)
        if isinstance(results, xr.DataTree):
            raise ValueError("the store has several data sets or groups; choose with --data and --group")
        shown = load(images) if images else None
        made = eedkit.card(results, shown, model=model, require=require or ())
        page = made.save(out)
        _say(page)
        _say(page.with_suffix(".json"))
        for failure in made.failures:
            _complain(f"eedkit card: {failure}")
        if made.failures:
            raise typer.Exit(1)


@app.command(epilog="Example: eedkit report --profile quick --only 00_start_here -p seeds=3")
def report(
    profile: Annotated[str, typer.Option(help="Name of a profile, or path to a .yaml file.")] = "quick",
    out: Annotated[Path, typer.Option(metavar="FOLDER", parser=_path, help="Folder to write to.")] = Path("reports"),
    only: Annotated[
        list[str] | None, typer.Option(metavar="STEM", help="Run only this notebook; repeat for several.")
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "-p", metavar="NAME=VALUE", help="Override a parameter of the profile, as YAML: -p 'groups=[C4, D4]'."
        ),
    ] = None,
) -> None:
    """Run the notebooks and build the HTML report.

    If a notebook fails, the others still run, the report shows the error, and the command exits with 1.
    """
    from eedkit.report.parameters import read_yaml

    given = {}
    for text in parameter or ():
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise _usage("report", f"-p takes NAME=VALUE, got {short(text)}")
        try:
            given[name] = read_yaml(value)
        except ValueError as error:
            raise _usage("report", f"-p {short(text)}: the value is not YAML ({str(error).splitlines()[0]})") from None

    from eedkit.report.notebooks import NotebooksFailed
    from eedkit.report.notebooks import report as run

    with _plainly("report", stopped=f"Stopped. {out / 'index.html'} says what was run."):
        try:
            index = run(out, profile=profile, notebooks=only or None, parameters=given)
        except NotebooksFailed as failed:
            _say(f"{len(failed.failed)} failed:", err=True)
            for line in str(failed).splitlines():
                _complain(line)
            _say(f"The report, with the errors: {failed.index}", err=True)
            raise typer.Exit(1) from None
    _say(f"The report: {index}")


def _refuse_unwritable(out: Path) -> None:
    """Wrong usage where the results could not be saved, before they are measured."""
    if out.exists():
        raise _usage("measure", f"{out} exists; choose another name")
    try:
        out.mkdir(parents=True)
        out.rmdir()
    except OSError as error:
        raise _usage("measure", f"cannot save {out}: {error.strerror}") from None


def _say(text: object, *, err: bool = False) -> None:
    """Print a text, in which names and messages are foreign."""
    typer.echo(printable(str(text)), err=err)


def _complain(text: str) -> None:
    _say(cut(re.sub(r"\s*\n\s*", " ", text.strip()), MESSAGE), err=True)


def _usage(command: str, message: str) -> typer.Exit:
    _complain(f"eedkit {command}: {message}")
    return typer.Exit(2)


def _failed(command: str, message: str) -> typer.Exit:
    _complain(f"eedkit {command}: {message}")
    return typer.Exit(1)


def _stopped(message: str) -> typer.Exit:
    _say(f"\n{message}", err=True)
    return typer.Exit(130)


@contextmanager
def _plainly(command: str, *, stopped: str = "Stopped.") -> Iterator[None]:
    """What went wrong as one message without a traceback, warnings as notes, and Ctrl-C as `stopped`."""
    from eedkit.study.files import StoreError

    def note(message, *_, **__) -> None:
        _complain(f"Note: {message}")

    with warnings.catch_warnings():
        warnings.showwarning = note
        try:
            yield
        except typer.Exit:
            raise
        except KeyboardInterrupt:
            raise _stopped(stopped) from None
        except StoreError as error:
            raise _failed(command, str(error)) from None
        except (ValueError, OSError, ImportError) as error:
            raise _usage(command, str(error)) from None
        except Exception as error:
            unforeseen = (
                f"{type(error).__name__}: {error}. This is a bug or an odd input; the same call in Python shows where"
            )
            raise _failed(command, unforeseen) from None


def _is_lost_connection(error: Exception, scheduler: str | None) -> bool:
    if type(error).__module__.startswith("distributed."):
        return True
    return isinstance(error, OSError) and scheduler is not None and scheduler in str(error)


def _progress(study: "Study", again: str) -> str:
    cells = study.status()
    blocks = int(cells.blocks.sum())
    done = int((cells.done + cells.flawed).sum())
    begun = f"{done} of {blocks} blocks are done and kept" if blocks else "nothing was started"
    return f"Stopped: {begun}. To resume: {again}"
