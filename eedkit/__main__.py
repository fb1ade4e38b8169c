"""`python -m eedkit`: the command line, where the `eedkit` script is not on the path."""

from eedkit.cli import app

if __name__ == "__main__":
    app(prog_name="eedkit")
