"""Tables as text for a terminal, Jupyter or a paper: those of `summarise`, and any other with notes below.

Knows DataFrames alone. A text that is too long for its column stands below the table, once. Texts are foreign: control
characters are written out.
"""

import textwrap
from collections.abc import Sequence

import pandas as pd

from eedkit.errors import cut, printable

WIDTH = 80
"""Columns of text in a line."""
ROWS = 120
"""Rows beyond which a table is cut."""
FIRST = 60
"""Rows of `summarise` up to which further models are printed; of more it says how many there are."""
BY_ELEMENT = 12
"""Rows of one metric by element; of more the first, that of all moved images, and the lowest."""
REASON = 30
"""Longer reasons stand below the table."""
NOTE = 600
"""Characters of a reason there, which may be a whole log."""
LEAST = 12
"""Characters of a column that a line has room for in any case."""
NUMBERS = ["relative", "95 %", "estimate", "null"]
CAPTION = (
    "Accuracy and the share of predictions that stay, by element, are shares of the images; the null is how often two "
    "different images get the same class. A relative value of 0 is perfectly equivariant; at 1 a transformed copy is as "
    "far away as a different image."
)


class Summary(pd.DataFrame):
    """A table of `summarise` that shows itself in 80 columns. What is selected from it is a DataFrame like any other."""

    def __repr__(self) -> str:
        models = [rows for _, rows in self.groupby(_tells_apart(self), sort=False)]
        counts = pd.Series(map(len, models)).cumsum()
        first = max(1, int((counts <= FIRST).sum()))
        tables = []
        for rows in models[:first]:
            frame = shown(rows).assign(n=rows.n.where(rows.n > 0), reason=rows.reason)
            tables.append(table(frame, once=[*_tells_apart(self), "n"], right=NUMBERS))
            hidden = len(_cut(rows))
            if hidden:
                tables[-1] += f"\n{hidden} rows by element are left out; those that are shown are the lowest"
        if len(models) > first:
            tables.append(f"… and {len(models) - first} more models")
        return "\n\n".join(tables)

    def _repr_html_(self) -> str:
        return shown(self).to_html(index=False, max_rows=FIRST)


def shown(summary: pd.DataFrame) -> pd.DataFrame:
    """What is shown of the rows of `summarise`, as texts: relative values with their interval, E and its null.

    The interval is that of the estimate where there is no relative value.
    """
    rows = summary.drop(index=_cut(summary))
    has_relative = rows.relative.notna()
    columns = {name: rows[name] for name in (*_tells_apart(rows), "metric")}
    columns["at"] = rows.layer + rows.element
    columns["relative"] = rows.relative.map(number)
    low = rows.relative_low.where(has_relative, rows.low)
    high = rows.relative_high.where(has_relative, rows.high)
    columns["95 %"] = pd.Series(intervals(low, high), rows.index)
    columns["estimate"] = rows.estimate.map(number)
    columns["null"] = rows.null.map(number)
    return pd.DataFrame(columns)


def to_latex(summary: pd.DataFrame, *, caption: str = CAPTION, label: str = "") -> str:
    r"""A table for a paper from rows of `summarise`, with its caption; the paper needs `\usepackage{booktabs}`.

    Parameters
    ----------
    summary : DataFrame
        Of `summarise`, or some of its rows.
    caption : str
        As LaTeX; the default says how to read the columns.
    label : str
        For `\ref`.

    Returns
    -------
    str
        A `table` environment. A column that is the same in all rows, as of a single model, is left out.

    Examples
    --------
    >>> import eedkit as ek
    >>> ends = ek.summarise(ek.example()).query("model == 'plain' and layer == 'output'")
    >>> print(ek.to_latex(ends, caption="Plain."))
    \begin{table}
    \centering
    \caption{Plain.}
    \begin{tabular}{llrrrr}
    \toprule
    metric & at & relative & 95 \% & estimate & null \\
    \midrule
    softmax\_js & output & 0.950 & 0.921 to 0.978 & 0.218 & 0.241 \\
    softmax\_reverse & output & 0.968 & 0.945 to 0.991 & 3.074 & 3.281 \\
    \bottomrule
    \end{tabular}
    \end{table}
    <BLANKLINE>
    """
    frame = shown(summary)
    same = [name for name in _tells_apart(frame) if len(set(frame[name])) == 1]
    frame = frame.drop(columns=same)
    texts = [name for name in frame if name not in NUMBERS]
    # a minus and not a hyphen
    numbers = frame[NUMBERS].apply(lambda column: column.str.replace(r"\B-", "$-$", regex=True))
    style = frame.assign(**numbers).style
    style.hide(axis="index").format(escape="latex", subset=texts).format_index(escape="latex", axis="columns")
    return style.to_latex(
        column_format="l" * len(texts) + "r" * len(NUMBERS),
        position_float="centering",
        hrules=True,
        caption=caption,
        label=label or None,
    )


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
    same = [name for name in once if name in frame and len(set(frame[name].dropna())) == 1 and len(frame) > 1]
    rows = frame.head(ROWS).drop(columns=same)
    lines = []
    if same:
        lines.append(", ".join(f"{name}: {_cell(frame[name].dropna().iloc[0])}" for name in same))
    notes = {}
    if reason in rows:
        reasons = pd.Series([cut(_cell(text), NOTE) for text in rows[reason]], rows.index)
        long = [text for text in reasons.unique() if len(text) > REASON]
        notes = {text: f"[{place}]" for place, text in enumerate(long, 1)}
        if any(reasons):
            rows[reason] = reasons.replace(notes)
        else:
            rows = rows.drop(columns=reason)
    lines += _aligned(rows, right, width)
    if len(frame) > ROWS:
        lines.append(f"… and {len(frame) - ROWS:,} more")
    for text, mark in notes.items():
        lines += textwrap.wrap(f"{mark} {text}", width, subsequent_indent=" " * (len(mark) + 1))
    return "\n".join(lines)


def number(value: float) -> str:
    """Three decimals, or two digits of a small or large value; empty for NaN."""
    if pd.isna(value):
        return ""
    return f"{value:.3f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.1e}"


def intervals(low: pd.Series, high: pd.Series) -> list[str]:
    """Both ends as texts; empty where there are none."""
    texts = []
    for from_, to in zip(low, high, strict=True):
        texts.append("" if pd.isna(from_) else f"{number(from_)} to {number(to)}")
    return texts


def _tells_apart(rows: pd.DataFrame) -> list[str]:
    """The columns that say what a row is of."""
    return [name for name in ("data", "group", "model") if name in rows]


def _cut(rows: pd.DataFrame) -> list:
    """Rows by element that are too many to be shown."""
    hidden = []
    of_elements = rows[(rows.element != "") & (rows.element != "moved")]
    for _, of_metric in of_elements.groupby([*_tells_apart(rows), "metric"]):
        if len(of_metric) > BY_ELEMENT:
            by_value = of_metric.tail(-1).estimate.sort_values(kind="stable")
            hidden += by_value.index[BY_ELEMENT - 2 :].tolist()
    return hidden


def _aligned(frame: pd.DataFrame, right: Sequence[str], width: int) -> list[str]:
    """Numbers to the right, texts to the left; texts that make the lines too long go on in the next line."""
    rows = [[_cell(name) for name in frame]]
    for row in frame.itertuples(index=False):
        rows.append([_cell(value) for value in row])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    is_number = [name in right or pd.api.types.is_numeric_dtype(frame[name]) for name in frame]
    texts = [place for place, of_number in enumerate(is_number) if not of_number]
    while sum(widths) + len(widths) - 1 > width:
        widest = max(texts, key=lambda place: widths[place])
        if widths[widest] <= LEAST:
            break
        widths[widest] -= 1
    lines = []
    for row in rows:
        pieces = [textwrap.wrap(text, room) or [""] for text, room in zip(row, widths, strict=True)]
        for line in range(max(map(len, pieces))):
            cells = []
            for of_cell, room, of_number in zip(pieces, widths, is_number, strict=True):
                text = of_cell[line] if line < len(of_cell) else ""
                cells.append(text.rjust(room) if of_number else text.ljust(room))
            lines.append(" ".join(cells).rstrip())
    return lines


def _cell(value: object) -> str:
    """A value in one line, without control characters."""
    if value is None or value != value:
        return ""
    if pd.api.types.is_number(value):
        return f"{value:,.0f}"
    return printable(str(value)).replace("\n", " ")
