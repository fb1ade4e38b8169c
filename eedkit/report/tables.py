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


def plan(cells: pd.DataFrame) -> str:
    """What `Study.plan` found, with totals: one row per cell, or per model where there are very many."""
    rows = _summed(cells, "note")
    rows = rows.assign(bytes=rows.bytes.map(_size), seconds=rows.seconds.map(duration))
    rows = rows.rename(columns={"bytes": "size", "seconds": "time"})
    total = cells[["blocks", "done", "forwards", "bytes"]].sum()
    return (
        f"{table(rows, once=['data', 'group', 'images'], right=['size', 'time'], reason='note')}\n\n"
        f"{len(cells):,} cells, {total.blocks:,.0f} blocks ({total.done:,.0f} done), {total.forwards:,.0f} forwards to do, "
        f"{_size(total.bytes)} on disk before compression."
    )


def status(cells: pd.DataFrame) -> str:
    """What `Study.status` found, with totals: one row per cell, or per model where there are very many."""
    failed = cells.failed > 0
    counts = {
        "done": ((cells.blocks > 0) & (cells.done == cells.blocks)).sum(),
        "failed": failed.sum(),
        "lacking samples": ((cells.flawed > 0) & ~failed).sum(),
        "not begun": (cells.blocks == 0).sum(),
    }
    counts["unfinished"] = len(cells) - sum(counts.values())
    counted = ", ".join(f"{count:,} {kind}" for kind, count in counts.items() if count)
    computed = (cells.done + cells.flawed).sum()
    return (
        f"{table(_summed(cells, 'reason'), once=['data', 'group'])}\n\n"
        f"{len(cells):,} cells: {counted}. {computed:,} of {cells.blocks.sum():,} blocks are done."
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
    """The rows of a DataFrame as aligned text, without its index: whole numbers with separators, nothing for NaN.

    Columns named in `once` stand above the table where they hold one value alone; those in `right` are texts that stand at
    the right, as numbers do. Long texts of the column `reason` become numbered notes below; an empty one is left out.
    """
    same = [name for name in once if name in frame and frame[name].nunique() == 1 and len(frame) > 1]
    rows = frame[:ROWS].drop(columns=same)
    lines = []
    if same:
        lines.append(", ".join(f"{name}: {_cell(frame[name].dropna().iloc[0])}" for name in same))
    notes = {}
    if reason in rows:
        reasons = rows[reason].fillna("").map(lambda text: cut(_cell(text), NOTE))
        long = [text for text in reasons.unique() if len(text) > REASON]
        notes = {text: f"[{place}]" for place, text in enumerate(long, 1)}
        rows = rows.assign(**{reason: reasons.replace(notes)}) if reasons.any() else rows.drop(columns=reason)
    lines.append(_aligned(rows, right, width))
    if len(frame) > ROWS:
        lines.append(f"… and {len(frame) - ROWS:,} more")
    for text, mark in notes.items():
        lines += textwrap.wrap(f"{mark} {text}", width, subsequent_indent=" " * (len(mark) + 1))
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Seconds for people; empty for NaN.

    >>> duration(0.2), duration(59.7), duration(125), duration(3600 * 5.5), duration(86400 * 3)
    ('under 1 s', '1 min 0 s', '2 min 5 s', '5 h 30 min', '3 d 0 h')
    """
    if pd.isna(seconds):
        return ""
    if 0 < seconds < 1:
        return "under 1 s"
    whole = round(seconds)
    for large, small, step, part in (("d", "h", 86400, 3600), ("h", "min", 3600, 60), ("min", "s", 60, 1)):
        if whole >= step:
            return f"{whole // step} {large} {whole % step // part} {small}"
    return f"{whole} s"


def _summed(cells: pd.DataFrame, reason: str) -> pd.DataFrame:
    """The rows as they are, or where they are more than a reader wants, the sums of each model's, with its first reason."""
    if len(cells) <= ROWS or cells.model.nunique() == len(cells):
        return cells
    of_model = cells.groupby("model", sort=False)
    first = of_model[reason].agg(lambda texts: next(filter(None, texts), ""))
    sums = of_model.sum(numeric_only=True, min_count=1)
    sums = sums.drop(columns="images", errors="ignore")  # the same images are in many cells
    return pd.concat([of_model.size().rename("cells"), sums, first], axis=1).reset_index()


def _size(count: float) -> str:
    """Bytes for people; empty for NaN."""
    if pd.isna(count):
        return ""
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if count < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:,.1f} TiB"


def number(value: float) -> str:
    """Four decimals, or two digits of a small or large value; empty for NaN."""
    if pd.isna(value):
        return ""
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.1e}"


def _aligned(frame: pd.DataFrame, right: Sequence[str], width: int) -> str:
    """Numbers to the right, texts to the left; texts that make the lines too long go on in the next line."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="")
    for name in frame:
        is_number = name in right or pd.api.types.is_numeric_dtype(frame[name])
        grid.add_column(name, justify="right" if is_number else "left", no_wrap=is_number, overflow="fold")
    for row in frame.itertuples(index=False):
        grid.add_row(*[Text(_cell(value)) for value in row])
    console = Console(width=width, color_system=None, file=StringIO(), legacy_windows=False)
    console.print(grid)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def _cell(value: object) -> str:
    """A value in one line, without control characters."""
    if not isinstance(value, str) and pd.isna(value):
        return ""
    if pd.api.types.is_number(value):
        return f"{value:,.0f}"
    return printable(str(value)).replace("\n", " ")
