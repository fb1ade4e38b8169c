"""Consistency of predictions, and how much of an outcome a predictor explains."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import linregress
from torch import nn

import eedkit as ek
from eedkit.paper import further


class Corner(nn.Module):
    """Two classes: is the upper left pixel above one half?"""

    def forward(self, x):
        above = x[:, 0, 0, 0] - 0.5
        return torch.stack([-above, above], dim=1)


def test_consistency_counts_moved_images_of_equal_prediction():
    images = torch.zeros(4, 1, 3, 3)
    images[0, 0, 0, 0] = 1.0
    images[1, 0] = 1.0
    ds = ek.measure(Corner(), images, group="C4", name="corner", progress=False, output="scores")
    # the first image changes its class under all three turns, the others never do
    assert further.prediction_consistency(ds).to_dict() == {"corner": 0.75}


def test_without_predictions_there_is_no_consistency():
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, 3))
    ds = ek.measure(net, torch.rand(4, 1, 3, 3), group="C4", progress=False)
    for lacking in (ds.drop_vars("prediction"), ds.sel(element=["r90", "r180"])):
        with pytest.raises(ValueError, match="moved and unmoved"):
            further.prediction_consistency(lacking)


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
