"""Sets of boxes against cells counted on a grid and all matchings tried."""

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eedkit.probe import boxes

BOX = st.tuples(*[st.integers(-6, 6)] * 2, *[st.integers(1, 6)] * 2, st.integers(0, 1))
SETS = st.lists(BOX, max_size=4)
DISTANCES = [(boxes.box_ospa, None), (boxes.box_disagreement_50, 0.5), (boxes.box_disagreement_75, 0.75)]


def as_rows(several):
    """Boxes with empty rows between them."""
    rows = torch.zeros(9, 5, dtype=torch.float64)
    for i, box in enumerate(several):
        rows[2 * i] = torch.tensor(box)
    return rows


@settings(max_examples=60, deadline=None)
@given(SETS, SETS)
def test_sets_of_boxes_are_matched_as_well_as_can_be(a, b):
    for distance, least in DISTANCES:
        found = distance(as_rows(a), as_rows(b)).item()
        assert found == pytest.approx(oracles.box_sets(a, b, least), abs=1e-12)
        assert distance.best <= found <= distance.upper


@settings(max_examples=30, deadline=None)
@given(SETS, SETS, SETS)
def test_the_distance_of_sets_is_a_metric(a, b, c):
    between = {}
    for name, pair in {"ab": (a, b), "bc": (b, c), "ac": (a, c), "ba": (b, a), "aa": (a, a)}.items():
        between[name] = boxes.box_ospa(*map(as_rows, pair)).item()
    assert between["ac"] <= between["ab"] + between["bc"] + 1e-12
    assert between["ab"] == pytest.approx(between["ba"])
    assert between["aa"] == pytest.approx(0)


def test_the_order_of_rows_does_not_matter_and_leading_dimensions_broadcast():
    a = as_rows([(0, 0, 2, 2, 0), (5, 5, 2, 4, 1)])
    b = as_rows([(0, 1, 2, 2, 0)])
    several = torch.stack([a, a.flip(0), b])[:, None]
    found = boxes.box_ospa(several, torch.stack([a, b]))
    assert found.shape == (3, 2)
    np.testing.assert_allclose(found, [[0, 5 / 6], [0, 5 / 6], [5 / 6, 0]], atol=1e-12)


def test_sets_that_are_not_finite_have_no_distance():
    assert boxes.box_ospa(as_rows([(0, 0, 2, 2, 0)]) * torch.nan, as_rows([])).isnan()


def test_unsure_boxes_are_left_out_and_the_best_come_first(monkeypatch):
    monkeypatch.setattr(boxes, "MOST_BOXES", 2)
    one = {
        "boxes": torch.tensor([[0.0, 0, 4, 2], [1, 1, 2, 2], [2, 2, 6, 8], [0, 0, 1, 1]]),
        "labels": torch.tensor([1, 2, 3, 4]),
        "scores": torch.tensor([0.6, 0.4, 0.9, 0.5]),
    }
    found = boxes.detections([one, {key: value[:0] for key, value in one.items()}], (8, 12))
    assert found.tolist() == [[[-2, 1, 4, 6, 3], [-4, -3, 4, 2, 1]], [[0] * 5] * 2]


@pytest.mark.parametrize("output", [torch.zeros(2, 4), [{"boxes": torch.zeros(0, 4)}], [torch.zeros(1)]])
def test_other_outputs_than_detections_are_refused(output):
    with pytest.raises(ValueError, match="no list with a dict of boxes, labels, scores for every image"):
        boxes.detections(output, (8, 8))
