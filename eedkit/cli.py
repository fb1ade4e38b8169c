"""The command line: `eedkit report` and, one function each, what else the library does in one go.

Knows what to call and how to say it; must not compute. Heavy imports wait for the command that needs them, so `--help` is quick.
"""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="In what ways is a vision model invariant or equivariant, where, on which images?",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def main() -> None:
    """In what ways is a vision model invariant or equivariant, where, on which images?"""


@app.command(epilog="Example: eedkit report --profile quick --only 00_start_here -p seeds=3")
def report(
    profile: Annotated[str, typer.Option(help="Name of a profile, or path of a .yaml file.")] = "quick",
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("reports"),
    only: Annotated[
        list[str] | None, typer.Option(metavar="STEM", help="Run this notebook alone; may be repeated.")
    ] = None,
    code: Annotated[bool, typer.Option("--code/--no-code", help="Show the notebooks' code on their pages.")] = False,
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", metavar="NAME=VALUE", help="A parameter over the profile's, as YAML: -p 'groups=[C4, D4]'."),
    ] = None,
) -> None:
    """Run the notebooks and make their illustrated HTML report.

    Exit codes: 0 done; 1 some notebook failed, the report says where; 2 something asked for does not exist, nothing was run.
    """
    import yaml

    given = {}
    for text in parameter or ():
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise _usage(f"-p takes NAME=VALUE, got {text!r}")
        try:
            given[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise _usage(f"-p {text}: the value is not YAML ({str(error).splitlines()[0]})") from None

    from eedkit.report.notebooks import NotebooksFailed, ReportError
    from eedkit.report.notebooks import report as run

    try:
        index = run(out, profile=profile, notebooks=only or None, parameters=given, code=code)
    except ReportError as error:
        raise _usage(str(error)) from None
    except NotebooksFailed as failed:
        typer.echo(f"{len(failed.failed)} failed:\n{failed}\nThe report, with the errors: {failed.index}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo(f"\nStopped. {out / 'index.html'} says what was run.", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"The report: {index}")


def _usage(message: str) -> typer.Exit:
    typer.echo(f"eedkit report: {message}", err=True)
    return typer.Exit(2)
