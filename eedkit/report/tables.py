"""Tables as text for a terminal or a log, at most 120 columns wide.

Knows DataFrames alone. A text that is too long for its column stands below the table, once. Texts are foreign: control
characters are written out.
"""

import textwrap
from collections.abc import Sequence
from io import StringIO

import pandas as pd

from eedkit.errors import cut, printable

WIDTH = 120
"""Columns of text in a line."""
NARROW = 80
"""The same for what is printed without being asked for in full."""
ROWS = 120
"""Rows beyond which a table is summed up, and then cut."""
REASON = 30
"""Longer reasons stand below the table."""
NOTE = 600
"""Characters of a reason there, which may be a whole log."""


def plan(found: pd.DataFrame) -> str:
    """What `Study.plan` found, with totals: one row per cell, or per model where there are very many."""
    rows = summed(found, "note")
    shown = rows.assign(bytes=rows.bytes.map(size), seconds=rows.seconds.map(duration))
    shown = shown.rename(columns={"bytes": "size", "seconds": "time"})
    total = found[["blocks", "done", "forwards", "bytes"]].sum()
    return (
        f"{table(shown, once=['data', 'group', 'images'], right=['size', 'time'], reason='note')}\n\n"
        f"{len(found):,} cells, {total.blocks:,.0f} blocks ({total.done:,.0f} done), {total.forwards:,.0f} forwards to do, "
        f"{size(total.bytes)} on disk before compression."
    )


def status(found: pd.DataFrame) -> str:
    """What `Study.status` found, with totals: one row per cell, or per model where there are very many."""
    computed, failed = found.done + found.flawed, found.failed > 0
    whole = (found.blocks > 0) & (found.done == found.blocks)
    kinds = {
        "done": whole.sum(),
        "failed": failed.sum(),
        "lacking samples": ((found.flawed > 0) & ~failed).sum(),
        "not begun": (found.blocks == 0).sum(),
    }
    kinds["unfinished"] = len(found) - sum(kinds.values())
    told = ", ".join(f"{n:,} {kind}" for kind, n in kinds.items() if n)
    return (
        f"{table(summed(found), once=['data', 'group'])}\n\n"
        f"{len(found):,} cells: {told}. {computed.sum():,} of {found.blocks.sum():,} blocks are done."
    )


def estimates(summary: pd.DataFrame, *, full: bool = False) -> str:
    """A table of `summarise` for one model in 80 columns: relative values with their intervals; E itself where none has a null.

    `full=True` adds E, its interval and its null.
    """
    has_relative = summary.relative.notna().any()
    columns: dict[str, pd.Series | list[str]] = {
        "model": summary.model,
        # what is undefined altogether has its reason, and would make `n` differ from row to row
        "n": summary.n.where(summary.n > 0),
        "metric": summary.metric,
        "layer": summary.layer,
    }
    right = []
    if has_relative:
        columns["relative"] = summary.relative.map(number)
        columns["95 %"] = _intervals(summary.relative_low, summary.relative_high)
        right += ["relative", "95 %"]
    if full or not has_relative:
        columns["E"] = summary.estimate.map(number)
        columns["95 % of E"] = _intervals(summary.low, summary.high)
        columns["null"] = summary.null.map(number)
        right += ["E", "95 % of E", "null"]
    shown = pd.DataFrame({**columns, "reason": summary.reason})
    return table(shown, once=["model", "n"], right=right, width=WIDTH if full else NARROW)


def checked(found: pd.DataFrame) -> str:
    """A table of `check`: relative values, and the element under which each layer deviates most."""
    columns = {
        "metric": found.metric,
        "layer": found.layer,
        "relative": found.relative.map(number),
        "95 %": _intervals(found.relative_low, found.relative_high),
        "most under": found.element,
        "reason": found.reason,
    }
    return table(pd.DataFrame(columns), right=["relative", "95 %"], width=NARROW)


def _intervals(low: pd.Series, high: pd.Series) -> list[str]:
    """Both ends as texts; empty where there are none."""
    texts = []
    for from_, to in zip(low, high, strict=True):
        texts.append("" if pd.isna(from_) else f"{number(from_)} to {number(to)}")
    return texts


def table(
    frame: pd.DataFrame,
    *,
    once: Sequence[str] = (),
    right: Sequence[str] = (),
    reason: str = "reason",
    width: int = WIDTH,
) -> str:
    """The rows of a DataFrame as aligned text, without its index.

    Parameters
    ----------
    frame : texts, and whole numbers, which get thousands separators; empty cells for NaN
    once : columns that are named in a line above the table where they hold one value alone
    right : columns of texts that stand at the right, as numbers do
    reason : column whose longer texts become numbered notes below the table; left out where it is empty
    width : columns of text in a line

    Examples
    --------
    >>> frame = pd.DataFrame({"data": ["digits"] * 2, "model": ["a", "b"], "n": [5, 5000], "reason": ["", "so " * 20]})
    >>> print(table(frame, once=["data"]))
    data: digits
    model     n reason
    a         5
    b     5,000 [1]
    [1] so so so so so so so so so so so so so so so so so so so so
    """
    same = [name for name in once if name in frame and frame[name].nunique() == 1 and len(frame) > 1]
    above = [f"{', '.join(f'{name}: {_cell(frame[name].dropna().iloc[0])}' for name in same)}"] if same else []
    left, below = _footnotes(frame[:ROWS].drop(columns=same), reason, width)
    more = [f"… and {len(frame) - ROWS:,} more"] if len(frame) > ROWS else []
    return "\n".join([*above, _aligned(left, right, width), *more, *below])


def summed(frame: pd.DataFrame, reason: str = "reason") -> pd.DataFrame:
    """The rows as they are, or where they are more than a reader wants, the sums of each model's, with its first reason.

    >>> rows = pd.DataFrame({"model": ["a"] * 90 + ["b"] * 90, "group": "C4", "blocks": 2, "reason": ["", "odd"] * 90})
    >>> summed(rows).values.tolist()
    [['a', 90, 180, 'odd'], ['b', 90, 180, 'odd']]
    """
    if len(frame) <= ROWS or frame.model.nunique() == len(frame):
        return frame
    by = frame.groupby("model", sort=False)
    first = by[reason].agg(lambda texts: next(filter(None, texts), ""))
    sums = by.sum(numeric_only=True, min_count=1).drop(columns="images", errors="ignore")  # the same ones in many cells
    return pd.concat([by.size().rename("cells"), sums, first], axis=1).reset_index()


def size(n: float) -> str:
    """Bytes for people; empty for NaN.

    >>> size(5000), size(3 * 2**20), size(7.25 * 2**40)
    ('4.9 KiB', '3.0 MiB', '7.2 TiB')
    """
    if pd.isna(n):
        return ""
    for unit in ("KiB", "MiB", "GiB"):
        n /= 1024
        if n < 1000:
            return f"{n:.1f} {unit}"
    return f"{n / 1024:,.1f} TiB"


def duration(seconds: float) -> str:
    """Seconds for people; empty for NaN.

    >>> duration(0.2), duration(59.7), duration(125), duration(3600 * 5.5), duration(86400 * 3)
    ('under 1 s', '1 min 0 s', '2 min 5 s', '5 h 30 min', '3 d 0 h')
    """
    if pd.isna(seconds):
        return ""
    if seconds < 1:
        return "under 1 s" if seconds else "0 s"
    whole = round(seconds)
    for large, small, step, part in (("d", "h", 86400, 3600), ("h", "min", 3600, 60), ("min", "s", 60, 1)):
        if whole >= step:
            return f"{whole // step} {large} {whole % step // part} {small}"
    return f"{whole} s"


def number(value: float) -> str:
    """Four decimals, or so many digits of a small or large value; empty for NaN.

    >>> number(-0.98765), number(1.25e-7), number(0.0), number(float("nan"))
    ('-0.9877', '1.2e-07', '0.0000', '')
    """
    if pd.isna(value):
        return ""
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.1e}"


def _footnotes(frame: pd.DataFrame, column: str, width: int) -> tuple[pd.DataFrame, list[str]]:
    """The frame with numbers for long texts, and the texts."""
    if column not in frame:
        return frame, []
    told = frame[column].fillna("").map(lambda text: cut(_cell(text), NOTE))
    if not told.any():
        return frame.drop(columns=column), []
    long = {text: f"[{k}]" for k, text in enumerate(dict.fromkeys(t for t in told if len(t) > REASON), 1)}
    notes = [
        line
        for text, mark in long.items()
        for line in textwrap.wrap(f"{mark} {text}", width, subsequent_indent=" " * (len(mark) + 1))
    ]
    return frame.assign(**{column: told.replace(long)}), notes


def _aligned(frame: pd.DataFrame, right: Sequence[str], width: int) -> str:
    """Numbers to the right, texts to the left; texts that make the lines too long go on in the next line."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    lines = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="", highlight=False)
    for name in frame:
        numeric = name in right or pd.api.types.is_numeric_dtype(frame[name])
        lines.add_column(str(name), justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    for row in frame.itertuples(index=False):
        lines.add_row(*(Text(_cell(value)) for value in row))
    console = Console(width=width, color_system=None, file=StringIO(), legacy_windows=False)
    console.print(lines)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def _cell(value: object) -> str:
    if not isinstance(value, str) and pd.isna(value):
        return ""
    if pd.api.types.is_number(value):
        return f"{value:,.0f}"
    return printable(str(value)).replace("\n", " ")
