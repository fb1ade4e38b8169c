"""Sets of boxes against cells counted on a grid and all matchings tried."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eedkit.errors import Undefined
from eedkit.probe.boxes import box_disagreement, box_ospa, detections, has_boxes, nothing_found

BOX = st.tuples(*[st.integers(-6, 6)] * 2, *[st.integers(1, 6)] * 2, st.integers(0, 1))
SETS = st.lists(BOX, max_size=4)
DISTANCES = [(box_ospa, None), (box_disagreement(0.5), 0.5), (box_disagreement(0.75), 0.75)]


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
        between[name] = box_ospa(*map(as_rows, pair)).item()
    assert between["ac"] <= between["ab"] + between["bc"] + 1e-12
    assert between["ab"] == pytest.approx(between["ba"])
    assert between["aa"] == 0


def test_the_order_of_rows_does_not_matter_and_leading_dimensions_broadcast():
    a = as_rows([(0, 0, 2, 2, 0), (5, 5, 2, 4, 1)])
    b = as_rows([(0, 1, 2, 2, 0)])
    several = torch.stack([a, a.flip(0), b])[:, None]
    found = box_ospa(several, torch.stack([a, b]))
    assert found.shape == (3, 2)
    np.testing.assert_allclose(found, [[0, 5 / 6], [0, 5 / 6], [5 / 6, 0]], atol=1e-12)


def test_sets_that_are_not_finite_have_no_distance():
    assert box_ospa(as_rows([(0, 0, 2, 2, 0)]) * torch.nan, as_rows([])).isnan()


def test_boxes_agree_from_the_least_overlap_on():
    assert box_disagreement(0.5)(as_rows([(0, 0, 2, 2, 0)]), as_rows([(0, 0, 2, 1, 0)])) == 0


@pytest.mark.parametrize("distance", [distance for distance, _ in DISTANCES])
def test_sets_without_rows_are_empty_sets(distance):
    assert distance(torch.zeros(2, 3, 0, 5), torch.zeros(3, 0, 5)).tolist() == [[0.0] * 3] * 2
    assert distance(as_rows([])[:0], as_rows([])[:0]) == 0


@pytest.mark.parametrize("distance", [distance for distance, _ in DISTANCES])
def test_many_boxes_of_equal_size_and_score_match_exactly(distance):
    down, across = torch.meshgrid(torch.arange(13) / 7, torch.arange(13) / 7, indexing="ij")
    corners = torch.stack([across, down, across + 1 / 7, down + 1 / 7], dim=-1).reshape(-1, 4)
    one = {"boxes": corners, "scores": torch.full((169,), 0.9), "labels": torch.ones(169, dtype=torch.int64)}
    rows = detections([one], (2, 2))
    assert rows.shape == (1, 169, 5)
    turned = rows[:, torch.randperm(169), :][..., [1, 0, 3, 2, 4]] * torch.tensor([1.0, -1, 1, 1, 1])
    back = turned[..., [1, 0, 3, 2, 4]] * torch.tensor([-1.0, 1, 1, 1, 1])
    assert distance(rows, back).item() == 0
    anywhere = torch.rand(40, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert distance(anywhere, anywhere.flip(0)).item() == 0


TWO_IMAGES = {
    "boxes": [[[0.0, 0, 4, 2], [1, 1, 2, 2], [2, 2, 6, 8], [3, 3, 2, 4]], [[0.0, 0, 1, 1]]],
    "labels": [[1, 2, 3, 4], [5]],
    "scores": [[0.5, 0.4, 0.9, 0.9], [0.2]],
}


def as_torchvision():
    return [{key: torch.tensor(values[i]) for key, values in TWO_IMAGES.items()} for i in range(2)]


FORMS = {"list": list, "tuple": tuple, "scripted": lambda found: ({}, found)}


WIDE_AND_LOW = [-4, -3, 4, 2, 1]
SMALL = [-4.5, -2.5, 1, 1, 2]
LARGE = [-2, 1, 4, 6, 3]
WITHOUT_WIDTH = [-3.5, -0.5, 0, 1, 4]


@pytest.mark.parametrize("form", FORMS)
def test_boxes_of_torchvision_are_read_above_the_threshold(form):
    found = detections(FORMS[form](as_torchvision()), (8, 12))
    assert found.tolist() == [[WIDE_AND_LOW, LARGE, WITHOUT_WIDTH], [[0] * 5] * 3]
    found = detections(as_torchvision(), (8, 12), least_score=0.2)
    assert found[0].tolist() == [WIDE_AND_LOW, SMALL, LARGE, WITHOUT_WIDTH]
    assert found[1].tolist() == [[-5.5, -3.5, 1, 1, 5], *[[0] * 5] * 3]
    assert detections(as_torchvision(), (8, 12), least_score=0.95).shape == (2, 0, 5)


@pytest.mark.parametrize("make", [dict, SimpleNamespace])
def test_boxes_of_detr_are_parts_of_the_image(make):
    # probabilities of classes 0 and 1 and of no object
    odds = torch.tensor([[[0.6, 0.1, 0.3], [0.2, 0.5, 0.3]], [[0.1, 0.1, 0.8], [0.45, 0.15, 0.4]]])
    parts = torch.tensor([[[0.5, 0.5, 0.25, 0.5], [0.25, 0.75, 0.5, 0.25]], [[0.5, 0.5, 1.0, 1.0]] * 2])
    output = make(logits=odds.log() + 3, pred_boxes=parts)
    np.testing.assert_allclose(
        detections(output, (8, 12)), [[[0, 0, 3, 4, 0], [-3, 2, 6, 2, 1]], [[0] * 5] * 2], atol=1e-12
    )
    assert has_boxes(detections(output, (8, 12))).tolist() == [True, False]
    of_second = detections(output, (8, 12), least_score=0.4)[1]
    np.testing.assert_allclose(of_second, [[0, 0, 12, 8, 0], [0] * 5], atol=1e-12)


def test_scores_that_are_not_numbers_are_no_reason_to_find_nothing():
    one = as_torchvision()[0]
    one["scores"][1] = torch.nan
    assert detections([one], (8, 12))[0].isnan().all(1).tolist() == [False, True, False, False]


OTHERS = [
    torch.zeros(2, 4),
    [{"boxes": torch.zeros(0, 4)}],
    [{"boxes": torch.zeros(2, 4), "labels": torch.zeros(2), "scores": torch.zeros(3)}],
    [torch.zeros(1)],
    ({}, {}),
    {"logits": torch.zeros(2, 3, 4)},
    {"logits": torch.zeros(2, 3, 4), "pred_boxes": torch.zeros(2, 5, 4)},
    None,
]


@pytest.mark.parametrize("output", OTHERS)
def test_outputs_of_another_form_are_refused(output):
    with pytest.raises(
        Undefined,
        match=r"neither a list with a dict of the tensors boxes .* logits or pred_logits \(b, q, k \+ 1\)",
    ):
        detections(output, (8, 8))


def test_a_set_has_boxes_where_a_row_has_an_area():
    rows = torch.stack([as_rows([(0, 0, 2, 2, 0)]), as_rows([]), as_rows([(1, 1, 0, 3, 1)])])
    assert has_boxes(rows).tolist() == [True, False, False]
    assert has_boxes(torch.zeros(2, 3, 0, 5)).tolist() == [[False] * 3] * 2


def test_the_reason_for_no_value_names_the_threshold_that_was_used():
    reason = nothing_found(detections, is_empty=True)
    assert reason == "no box with a score of 0.5 or more in any image of its orbit"
    assert "a score of 0.2 or more" in nothing_found(partial(detections, least_score=0.2), is_empty=True)
    assert nothing_found(lambda output, size: output, is_empty=True) == "no box in any image of its orbit"
