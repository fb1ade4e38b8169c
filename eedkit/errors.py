"""What messages are made of: near names, missing extras, values and texts cut short, and no control characters."""

import difflib
import re
import reprlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

LONGEST = 200
"""Characters of a value that a message repeats."""

EXTRA_OF = {
    **dict.fromkeys(("matplotlib", "seaborn"), "plots"),
    **dict.fromkeys(
        ("PIL", "datasets", "filelock", "joblib", "lightly", "pyarrow", "safetensors", "torchvision"),
        "lab",
    ),
    **dict.fromkeys(("dask", "distributed", "fsspec", "psutil", "rich", "typer", "yaml", "zarr"), "study"),
    **dict.fromkeys(
        ("IPython", "ipywidgets", "latex2mathml", "nbclient", "nbconvert", "nbformat", "papermill", "pydantic"),
        "notebooks",
    ),
    "lightning": "lightning",
    "timm": "timm",
}
"""The extra of eedkit that brings a library which measuring does not need."""


class Undefined(ValueError):
    """A metric has no value for a model, a layer or an image, for the reason that the message gives.

    Features, actions and distances raise it; the value is then NaN, with that reason. Any other exception ends the measurement.
    """


_REPR = reprlib.Repr()
_REPR.maxlevel = 3
_REPR.maxstring = LONGEST
_REPR.maxother = LONGEST

# what steers a terminal, turns text round, or cannot be encoded, but for the line's end
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def unknown(kind: str, name: object, known: Iterable[str], *, every: bool = True) -> str:
    """What to tell somebody who named something that does not exist: what was asked, near names, and all there are.

    `every=False` says that the known names are examples of a longer list.

    >>> unknown("layer", "layer5.0", ["layer4.0", "layer4.1"])
    "no layer 'layer5.0'; did you mean 'layer4.0' or 'layer4.1'? (all 2: layer4.0, layer4.1)"
    """
    known = list(known)
    lower = {k.lower(): k for k in known}
    asked = name[:LONGEST] if isinstance(name, str) else short(name)
    close = difflib.get_close_matches(asked.lower(), lower, n=2, cutoff=0.6)
    hint = f"; did you mean {' or '.join(repr(lower[k]) for k in close)}?" if close else ""
    shown = cut(", ".join(known[:40]) + (", …" if len(known) > 40 else ""), 20 * LONGEST)
    return f"no {kind} {short(name)}{hint} ({f'all {len(known)}' if every else 'for example'}: {shown})"


def short(value: object) -> str:
    """What `repr` says of a value, of at most `LONGEST` characters; what is left out is not looked at.

    >>> short("C4"), short(list(range(1000)))
    ("'C4'", '[0, 1, 2, 3, 4, 5, ...]')
    """
    return cut(_REPR.repr(value), LONGEST)


def cut(text: str, most: int) -> str:
    """The text, or as much of its beginning as fits.

    >>> cut("abc", 3), cut("abcd", 3)
    ('abc', 'ab…')
    """
    return text if len(text) <= most else text[: most - 1] + "…"


def printable(text: str) -> str:
    r"""The text with its control characters written out, so that a terminal shows them and does not obey.

    >>> print(printable("\x1b]0;title\x07 \u202etxt.exe"))
    \x1b]0;title\x07 \u202etxt.exe
    """
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


@contextmanager
def naming_extras() -> Iterator[None]:
    """Within the block a missing library is named together with the extra that brings it.

    >>> with naming_extras():
    ...     raise ModuleNotFoundError("No module named 'seaborn'", name="seaborn")
    Traceback (most recent call last):
    ModuleNotFoundError: seaborn is not installed; it comes with an extra: pip install 'eedkit[plots]'
    """
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in EXTRA_OF:
            raise
        raise ModuleNotFoundError(
            f"{library} is not installed; it comes with an extra: pip install 'eedkit[{EXTRA_OF[library]}]'",
            name=library,
        ) from error
