"""What there is to choose from, as tables: every row is taken by the function that it is a choice for."""

import pytest
import torch

import eedkit as ek


def test_every_metric_is_in_the_table():
    table = ek.available.metrics()
    assert list(table.index) == list(ek.METRICS)
    assert table.loc["softmax"].tolist() == ["output", "softmax KL divergence", 0.0, "nat", "eq. 4"]


@pytest.mark.parametrize("name", ek.available.groups().index)
def test_every_group_in_the_table_is_measured(name):
    row = ek.available.groups().loc[name]
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    images = torch.rand(row.order, 1, 4, 4)
    results = ek.measure(net, images, group=name, metrics=["latent"], progress=False)
    assert ", ".join(results.element.values) == row.elements


def test_groups_say_how_they_move_images():
    moves = ek.available.groups().moves
    assert moves[["flip", "C4", "D4", "shift4", "shift4*flip"]].tolist() == [
        "mirrors",
        "rotates",
        "rotates, mirrors",
        "shifts",
        "mirrors, shifts",
    ]


def test_recipes_are_those_of_the_group():
    table = ek.available.recipes("D4")
    assert list(table.index) == list(ek.lab.recipes.recipes())
    assert table.augment[["plain", "augmented"]].tolist() == ["C1", "D4"]


def test_bundled_images_are_counted():
    table = ek.available.images()
    assert list(table.index) == list(ek.lab.images.BUNDLED)
    assert table.loc["fashion/test"].tolist() == [1000, 10, 1, 28, 28]
    assert table.loc["patches/test", ["channels", "height"]].tolist() == [3, 32]


def test_tables_show_their_texts_whole():
    for table in (ek.available.metrics(), ek.available.groups(), ek.available.recipes(), ek.available.images()):
        assert "..." not in table.drop(columns="elements", errors="ignore")._repr_html_()
