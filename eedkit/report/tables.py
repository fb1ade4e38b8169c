"""Tables of studies and checks as text for a terminal or a log.

Knows DataFrames alone; how text is aligned is for `results.text`.
"""

import pandas as pd

from eedkit.results.text import ROWS, intervals, number, table

WIDTH = 120
"""Columns of text in a line of a study's table."""


def plan(cells: pd.DataFrame) -> str:
    """What `Study.plan` found, with totals: one row per cell, or per model where there are very many."""
    rows = _summed(cells, "note")
    rows = rows.assign(bytes=rows.bytes.map(_size), seconds=rows.seconds.map(duration))
    rows = rows.rename(columns={"bytes": "size", "seconds": "time"})
    total = cells[["blocks", "done", "forwards", "bytes"]].sum()
    return (
        f"{table(rows, once=['data', 'group', 'images'], right=['size', 'time'], reason='note', width=WIDTH)}\n\n"
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
        f"{table(_summed(cells, 'reason'), once=['data', 'group'], width=WIDTH)}\n\n"
        f"{len(cells):,} cells: {counted}. {computed:,} of {cells.blocks.sum():,} blocks are done."
    )


def checked(found: pd.DataFrame) -> str:
    """A table of `check`: relative values, and the element under which each layer deviates most."""
    columns = {
        "metric": found.metric,
        "layer": found.layer,
        "relative": found.relative.map(number),
        "95 %": intervals(found.relative_low, found.relative_high),
        "most under": found.element,
        "reason": found.reason,
    }
    return table(pd.DataFrame(columns), right=["relative", "95 %"])


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
