"""What is said of a figure are the numbers that are drawn."""

import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
from PIL import Image

from eedkit import plots


def table():
    return pd.DataFrame({"recipe": ["plain"] * 3 + ["mine"] * 3, "epoch": [1, 2, 3] * 2, "loss": [3, 5, 2, 1, 1, 0.5]})


def test_a_line_is_told_by_its_ends_and_extremes():
    figure = plots.lines(table(), x="epoch", y="loss", title="Did they train?")
    assert plots.alt_text(figure) == (
        "Did they train? loss against epoch. plain: from 3 at 1 to 2 at 3, highest 5 at 2. mine: from 1 at 1 to 0.5 at 3."
    )


def test_points_without_an_order_are_told_one_by_one():
    named = table().assign(epoch=["a", "b", "c"] * 2)
    assert "plain: 3 at a, 5 at b, 2 at c. mine: 1 at a" in plots.alt_text(plots.lines(named, x="epoch", y="loss"))


def test_a_cloud_is_told_by_its_range():
    assert "plain: 3 points from 2 to 5." in plots.alt_text(plots.cloud(table(), x="epoch", y="loss"))


def test_images_are_counted():
    figure = plots.pictures({"blur": [np.zeros((1, 3, 3))] * 2}, columns=["1", "5"], title="One digit")
    assert plots.alt_text(figure) == "One digit. 1. 5. 2 images."


def test_every_file_says_what_is_seen(tmp_path):
    figure = plots.lines(table(), x="epoch", y="loss", title="Cost $5 & <more>?")
    said = plots.alt_text(figure)
    plots.save(figure, tmp_path / "loss", ["svg", "png", "pdf"])
    words = [element.text for element in ET.parse(tmp_path / "loss.svg").iter() if element.tag.endswith("description")]
    assert words == [said]
    assert Image.open(tmp_path / "loss.png").text["Description"] == said
    assert b"/Subject" in (tmp_path / "loss.pdf").read_bytes()


def test_a_cloud_over_names_is_told_name_by_name():
    named = table().assign(epoch=["a", "b", "c"] * 2)
    assert "plain: 3 at a, 5 at b, 2 at c." in plots.alt_text(plots.cloud(named, x="epoch", y="loss"))
