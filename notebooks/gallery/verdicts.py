"""Writes `notebooks/verdicts.md`: the verdicts of finished reports side by side, with where and when each was made.

python notebooks/gallery/verdicts.py REPORT [REPORT ...], each a folder that `eedkit report` made. Measures nothing.
"""

import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd

import eedkit as ek

TARGET = Path(__file__).parents[1] / "verdicts.md"
HEAD = """# Tests of the paper's five stated conclusions

Made by `notebooks/gallery/verdicts.py` from finished reports: `make report` is the profile *quick*, `make report PROFILE=full`
the profiles *full* and *fashion*. What a comparison compares, and how it
is judged, stands in `eedkit.paper.conclusions`. In brackets: the bounds over seeds. A verdict that is *inconclusive* says how
many seeds would decide it, if the effect stays.
"""
ABOUT = "**{profile}**: {date}, {processor}, {device}, torch {torch}, eedkit {eedkit}"


def main() -> None:
    """Read the reports and write the file."""
    facts = {}
    columns = {}
    for report in map(Path, sys.argv[1:]):
        of_report = nbformat.read(report / "06_verdicts.ipynb", as_version=4).metadata["eedkit_report"]["facts"]
        profile = of_report["profile"]
        facts[profile] = of_report
        columns[profile] = verdicts(ek.paper.verdicts.load(report / f"{profile}_verdicts"))
    table = pd.DataFrame(columns).fillna("")
    lines = [HEAD]
    for of_report in facts.values():
        lines.append(f"- {ABOUT.format(**of_report)}")
    lines += ["", table_row(["claim", *table.columns]), table_row(["---"] * (1 + len(table.columns)))]
    for claim, row in table.iterrows():
        lines.append(table_row([claim, *row]))
    TARGET.write_text("\n".join(lines) + "\n", encoding="utf-8")


def verdicts(rows: pd.DataFrame) -> pd.Series:
    """By their claims the verdicts on the conclusions and on their parts, with the effect that decides."""
    cells = {}
    for name, of_conclusion in rows[rows.beside == ""].groupby("conclusion"):
        judged = of_conclusion[(of_conclusion.part == "conclusion") | (of_conclusion.decided_by != "")]
        # the conclusion's own row is the last one
        for _, row in judged[::-1].iterrows():
            cells[f"{name}. {row.test}"] = verdict(row)
    return pd.Series(cells)


def verdict(row: pd.Series) -> str:
    """The verdict, the comparison that decides, its effect with bounds, margin and seeds, and how many would decide it."""
    effect = f"{row.effect:.3f} ({row.low:.3f} to {row.high:.3f}), margin {row.margin:g}, {row.n:g} seeds"
    needed = "" if np.isnan(row.seeds_needed) else f"; {row.seeds_needed:,.0f} would decide"
    return f"**{row.verdict}**: {row.decided_by}, {effect}{needed}"


def table_row(cells: list[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
