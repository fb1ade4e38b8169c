"""Tables of studies are summed up where they are long, and have units that people read."""

import numpy as np
import pandas as pd

from eedkit.report import tables


def test_many_cells_are_summed_up_by_model():
    rows = pd.DataFrame({"data": "digits", "group": "C4", "model": ["a"] * 90 + ["b"] * 90, "blocks": 2, "done": 1})
    rows = rows.assign(images=80, failed=0, flawed=0, reason=["", "odd"] * 90)
    header, *lines = tables.status(rows).splitlines()[:3]
    assert header.split() == ["model", "cells", "blocks", "done", "failed", "flawed", "reason"]
    assert [line.split() for line in lines] == [[name, "90", "180", "90", "0", "0", "odd"] for name in "ab"]


def test_sizes_times_and_numbers_are_for_people():
    cells = pd.DataFrame({"model": list("abcd"), "blocks": 1, "done": 0, "forwards": 1.0, "note": ""})
    cells = cells.assign(bytes=[5000, 3 * 2**20, 7.25 * 2**40, np.nan], seconds=[0.2, 125, 86400 * 3, np.nan])
    lines = tables.plan(cells).splitlines()
    assert [line.split()[4:] for line in lines[1:5]] == [
        ["4.9", "KiB", "under", "1", "s"],
        ["3.0", "MiB", "2", "min", "5", "s"],
        ["7.2", "TiB", "3", "d", "0", "h"],
        [],
    ]
