"""How often predictions are right and stay, beside pairs counted one by one; and what requirements say."""

from itertools import permutations

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

import eedkit as ek
from eedkit.results.predictions import by_element, predictions
from eedkit.results.requirements import Requirement
from eedkit.results.summary import as_relative, ratio_from_x


@pytest.fixture(scope="module")
def ds():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(25, 3))
    return ek.measure(net, torch.randn(24, 1, 5, 5), group="C4", labels=list(range(3)) * 8, progress=False)


def test_accuracy_and_kept_are_the_counts_by_hand(ds):
    found = predictions(ds)
    predicted = ds.prediction.values[0].tolist()
    labels = ds.label.values.tolist()
    for name, row in zip(ds.element.values, predicted, strict=True):
        assert found.accuracy[name] == pytest.approx(sum(p == y for p, y in zip(row, labels, strict=True)) / 24)
        if name != "e":
            assert found.kept[name] == pytest.approx(sum(p == q for p, q in zip(row, predicted[0], strict=True)) / 24)
    assert "e" not in found.kept
    assert found.moved == pytest.approx(np.mean([found.accuracy[name] for name in ("r90", "r180", "r270")]))
    assert (found.n, found.n_labelled) == (24, 24)


def test_the_null_is_the_share_of_pairs_of_different_images(ds):
    unmoved = ds.prediction.values[0, 0].tolist()
    pairs = list(permutations(unmoved, 2))
    assert predictions(ds).null == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))


def test_images_without_a_prediction_or_a_label_are_left_out(ds):
    lacking = ds.copy(deep=True)
    lacking.prediction[0, 1, :6] = -1
    lacking = lacking.assign_coords(label=("sample", [-1] * 12 + ds.label.values[12:].tolist()))
    found = predictions(lacking)
    moved, unmoved = ds.prediction.values[0, 1], ds.prediction.values[0, 0]
    assert found.kept["r90"] == pytest.approx((moved == unmoved)[6:].mean())
    assert found.accuracy["r90"] == pytest.approx((moved == ds.label.values)[12:].mean())
    assert found.n_labelled == 12


def test_relative_values_from_x_are_those_of_the_definition(ds):
    ratio = ratio_from_x(ds, "latent", "latent")
    assert ratio.element.values.tolist() == ["r90", "r180", "r270"]
    value = ds.latent_from_x.sel(layer="latent", element="r180").values[0].astype(float)
    null = ds.latent_from_x_null.sel(layer="latent", element="r180").values[0].astype(float)
    wanted = ((value.mean() + 1) / (null.mean() + 1)) ** 0.5
    assert as_relative(ratio.mean("sample"), 2).sel(element="r180").item() == pytest.approx(wanted)
    without = ds.drop_vars(["latent_from_x_null", "latent_null"])
    assert ratio_from_x(without, "latent", "latent").isnull().all()


def test_the_rows_of_summarise_are_these_numbers_with_wilsons_intervals(ds):
    found = predictions(ds)
    rows = by_element(ds).set_index(["metric", "element"])
    assert rows.estimate["accuracy"].to_dict() == found.accuracy.to_dict() | {"moved": found.moved}
    assert rows.estimate["prediction kept"].to_dict() == found.kept.to_dict() | {"moved": found.kept.mean()}
    assert rows.null["accuracy"].isna().all()
    assert set(rows.null["prediction kept"]) == {found.null}
    assert set(rows.layer) == {""}
    assert set(rows.n) == {24}
    row = rows.loc[("accuracy", "r90")]
    wanted = scipy.stats.binomtest(round(row.estimate * 24), 24).proportion_ci(0.95, method="wilson")
    assert (row.low, row.high) == pytest.approx(tuple(wanted))


def test_what_has_no_value_has_a_reason_or_no_row(ds):
    assert by_element(ds.drop_vars("prediction")).empty
    assert set(by_element(ds.drop_vars("label")).metric) == {"prediction kept"}
    assert set(by_element(ds.sel(element=["r90"])).metric) == {"accuracy"}
    named = ds.assign_coords(label=("sample", ["cat"] * 24))
    row = by_element(named).iloc[0]
    assert (row.metric, row.n, row.reason[:20]) == ("accuracy", 0, "the labels are names")
    assert np.isnan([row.estimate, row.low, row.high]).all()
    one_class = ds.assign(prediction=ds.prediction * 0 + 1)
    one_class.label.attrs["class_names"] = '["cat", "dog", "ant"]'
    kept = by_element(one_class).query("metric == 'prediction kept'")
    assert set(kept.reason) == {"every unmoved image gets class dog, so that it stays says nothing"}
    assert set(kept.null) == {1}


@pytest.mark.parametrize(
    ("text", "value", "said"),
    [
        ("relative<=0.1", 0.1, ""),
        ("relative <= .1", 0.1004, "relative is 0.1004, required <= 0.1"),
        ("kept>=0.9", 0.5, "kept is 0.5, required >= 0.9"),
        ("kept>=-1e-3", -0.5, "kept is -0.5, required >= -0.001"),
        ("kept>=0.9", float("nan"), "kept has no value, required >= 0.9: why"),
    ],
)
def test_a_requirement_says_which_number_failed(text, value, said):
    assert Requirement.read(text, ["relative", "kept"]).failure(value, "why") == said


@pytest.mark.parametrize("text", ["relative<0.1", "relative", "relative<=", "<=1", "relative<=nan", "relative<=0.1<=2"])
def test_another_form_is_no_requirement(text):
    with pytest.raises(ValueError, match="NAME<=NUMBER or NAME>=NUMBER, got"):
        Requirement.read(text, ["relative"])


def test_an_unknown_number_lists_near_ones():
    with pytest.raises(ValueError, match="did you mean 'relative'"):
        Requirement.read("relativ<=0.1", ["relative", "kept"])
