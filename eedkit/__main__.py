"""`python -m eedkit`, and the script `eedkit`: the command line."""

from eedkit.errors import naming_extras


def main() -> None:
    """Run the command line; where a library is missing, end with its name and the extra that brings it."""
    try:
        with naming_extras():
            from eedkit.cli import app
    except ModuleNotFoundError as error:
        raise SystemExit(f"eedkit: {error}") from None
    app(prog_name="eedkit")


if __name__ == "__main__":
    main()
