"""How much of an outcome a predictor explains."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import linregress

from eedkit.paper import further


def test_r2_is_that_of_a_straight_line():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"x": rng.normal(size=30)})
    table["y"] = table.x + rng.normal(size=30)
    table["same"] = 1.0
    found = further.determination(table, ["x", "same"], "y").set_index("predictor")
    assert found.r2["x"] == pytest.approx(linregress(table.x, table.y).rvalue ** 2)
    assert found.low["x"] < found.r2["x"] < found.high["x"]
    assert np.isnan(found.r2["same"])


def test_networks_without_a_value_are_left_out():
    table = pd.DataFrame({"x": [0.0, 1.0, 2.0, np.nan], "y": [0.0, 2.0, 4.0, 9.0]})
    assert further.determination(table, ["x"], "y")[["r2", "n"]].values.tolist() == [[pytest.approx(1.0), 3]]
