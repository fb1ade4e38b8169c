"""What the features of orbits say: layouts by hand, known actions, known codes of the element, gains by hand."""

import itertools
import math

import numpy as np
import pytest
import xarray as xr

import eedkit as ek
from eedkit.results import orbits

PARTS = ["class", "image within class", "element", "class × element", "image × element"]


def features(vectors, labels=None, dim="feature"):
    array = xr.DataArray(np.asarray(vectors, dtype=float), dims=("element", "sample", dim)).assign_coords(model="m")
    return array if labels is None else array.assign_coords(label=("sample", labels))


def contrast(signs):
    """Numbers (element, sample) that are ± 1 as a function of element, class and image says."""
    places = itertools.product(range(2), [(c, i) for c in range(2) for i in range(2)])
    return np.array([signs(1 - 2 * g, 1 - 2 * c, 1 - 2 * i) for g, (c, i) in places], dtype=float).reshape(2, 4)


@pytest.mark.parametrize(
    ("part", "signs"),
    [
        ("class", lambda g, c, i: c),
        ("image within class", lambda g, c, i: c * i),
        ("element", lambda g, c, i: g),
        ("class × element", lambda g, c, i: g * c),
        ("image × element", lambda g, c, i: g * i),
    ],
)
def test_each_part_of_the_variance_is_found_alone(part, signs):
    table = orbits.orbit_variance(features(contrast(signs)[..., None] + 7, [0, 0, 1, 1]))
    assert table.set_index("part").share.to_dict() == {name: float(name == part) for name in PARTS}


def test_shares_are_those_of_squares_and_add_over_features():
    columns = [3 * contrast(lambda g, c, i: c), 2 * contrast(lambda g, c, i: g * i), contrast(lambda g, c, i: g)]
    table = orbits.orbit_variance(features(np.stack(columns, -1), [4, 4, 9, 9])).set_index("part")
    assert table.share.to_dict() == pytest.approx(dict(zip(PARTS, [9 / 14, 0, 1 / 14, 0, 4 / 14], strict=True)))
    assert (table.model == "m").all()
    assert (table.n == 4).all()


def test_classes_of_several_sizes_and_images_without_a_label():
    z = np.random.default_rng(0).normal(size=(3, 9, 2))
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2])
    table = orbits.orbit_variance(features(z, labels)).set_index("part")
    assert table.share.sum() == pytest.approx(1)
    # against regression on indicators, part after part
    rest = (z - z.mean((0, 1))).reshape(-1, 2)
    total = (rest**2).sum()
    element, sample = (indices.ravel() for indices in np.indices((3, 9)))
    of_label = labels[sample]
    for part, groups in {
        "class": of_label,
        "image within class": sample,
        "element": element,
        "class × element": 3 * of_label + element,
        "image × element": 9 * element + sample,
    }.items():
        indicators = (groups[:, None] == np.unique(groups)).astype(float)
        fitted = indicators @ np.linalg.lstsq(indicators, rest, rcond=None)[0]
        assert table.share[part] == pytest.approx((fitted**2).sum() / total)
        rest = rest - fitted
    more = features(np.concatenate([z, 50 + z[:, :1]], 1), [*labels, -1])
    pd_share = orbits.orbit_variance(more).set_index("part").share
    assert pd_share.to_dict() == pytest.approx(table.share.to_dict())


def test_without_labels_there_are_three_parts():
    table = orbits.orbit_variance(features(contrast(lambda g, c, i: c + g * i)[..., None]))
    assert table[["part", "share"]].values.tolist() == [["image", 0.5], ["element", 0.0], ["image × element", 0.5]]


@pytest.fixture
def draw():
    return np.random.default_rng(1)


def test_the_probe_is_at_chance_for_an_invariant_code(draw):
    z = np.repeat(draw.normal(size=(1, 60, 6)), 4, axis=0)
    exact = orbits.element_probe(features(z)).iloc[0]
    assert (exact.accuracy, exact.low, exact.high, exact.chance, exact.n) == (0.25, 0.25, 0.25, 0.25, 60)
    rounded = orbits.element_probe(features(z * (1 + 1e-8 * draw.normal(size=z.shape)))).iloc[0]
    assert rounded.accuracy == pytest.approx(0.25, abs=0.02)
    # a feature that is the same everywhere but for rounding, which the element decides
    off = 5 + 1e-8 * np.arange(4)[:, None, None].repeat(60, 1)
    assert orbits.element_probe(features(np.concatenate([z, off], -1))).accuracy.item() == 0.25


def test_the_probe_reads_a_small_code_and_not_what_it_has_seen(draw):
    images = np.repeat(draw.normal(size=(1, 60, 6)), 4, axis=0)
    code = 0.02 * np.eye(4)[:, None, :]
    small = np.concatenate([images, code + 0.001 * draw.normal(size=(4, 60, 4))], -1)
    assert orbits.element_probe(features(small)).accuracy.item() == 1
    # a code of its own for each image can be learned by heart alone
    by_heart = draw.normal(size=(4, 60, 200))
    assert orbits.element_probe(features(by_heart)).accuracy.item() == pytest.approx(0.25, abs=0.1)


def test_the_action_is_found(draw):
    x = draw.normal(size=(80, 4)) @ draw.normal(size=(4, 4))
    turn, _ = np.linalg.qr(draw.normal(size=(4, 4)))
    mix = draw.normal(size=(4, 4))
    kinds = {"identity": np.eye(4), "orthogonal": turn, "ridge": mix}
    for number, kind in enumerate(kinds):
        table = orbits.best_action(features(np.stack([x, x @ kinds[kind]]))).set_index("action")
        for place, action in enumerate(kinds):
            if place >= number:
                assert table.relative[action] < 0.02
            else:
                assert table.relative[action] > 0.2
    unrelated = orbits.best_action(features(draw.normal(size=(2, 300, 4))))
    assert unrelated.relative.values == pytest.approx([1, 1, 1], abs=0.05)
    shift = orbits.best_action(features(np.stack([x, x + [3, 4, 0, 0]]))).set_index("action")
    assert shift.distance["identity"] == pytest.approx(5)


PROBABILITIES = [[[0.8, 0.2], [0.5, 0.5]], [[0.4, 0.6], [0.1, 0.9]]]


def test_the_gain_is_predicted_and_real():
    row = orbits.averaging_gain(features(PROBABILITIES, [0, 1], dim="class")).iloc[0]
    means = [(0.6, 0.4), (0.3, 0.7)]
    predicted, real = [], []
    for i, label in enumerate([0, 1]):
        of_elements = [PROBABILITIES[g][i] for g in range(2)]
        predicted.append(sum(means[i][k] * math.log(means[i][k] / p[k]) for p in of_elements for k in range(2)) / 2)
        real.append(math.log(means[i][label]) - sum(math.log(p[label]) for p in of_elements) / 2)
    assert row.predicted == pytest.approx(sum(predicted) / 2)
    assert row.real == pytest.approx(sum(real) / 2)
    # Student's t at one degree of freedom
    assert row.real_high - row.real == pytest.approx(12.7062 * abs(real[0] - real[1]) / 2, rel=1e-4)
    assert (row.n, row.n_labelled) == (2, 2)
    without = orbits.averaging_gain(features(PROBABILITIES, [-1, 1], dim="class")).iloc[0]
    assert (without.real, without.n, without.n_labelled) == (pytest.approx(real[1]), 2, 1)
    assert math.isnan(orbits.averaging_gain(features(PROBABILITIES, dim="class")).real.item())


@pytest.mark.filterwarnings("ignore:.* predicts class")
def test_results_of_measure_predict_the_same():
    options = {"group": "C4", "progress": False, "device": "cpu"}
    model, data = "recipe:random?seed=0", "digits/test?n=24"
    ds = ek.measure(model, data, metrics="softmax_reverse", **options)
    of_measure = orbits.averaging_gain(ds).iloc[0]
    of_probabilities = orbits.averaging_gain(ek.orbit_features(model, data, of="probabilities", **options)).iloc[0]
    columns = ["predicted", "predicted_low", "predicted_high"]
    assert of_measure[columns].tolist() == pytest.approx(of_probabilities[columns].tolist(), rel=1e-3)
    assert (of_measure.model, of_measure.n, of_measure.n_labelled) == (model, 24, 0)


def test_images_without_values_are_left_out(draw):
    z = draw.normal(size=(4, 20, 3))
    z[2, 5, 0], z[1, 7, 1] = np.nan, np.inf
    rest = features(np.delete(z, [5, 7], axis=1))
    for function in (orbits.element_probe, orbits.orbit_variance, orbits.best_action):
        assert function(features(z)).equals(function(rest))
        assert (function(rest).n == 18).all()


def test_what_is_refused(draw):
    few = features(draw.normal(size=(2, 9, 3)))
    with pytest.raises(ValueError, match="this needs 10 images that have values, got 9"):
        orbits.element_probe(few)
    with pytest.raises(ValueError, match="and there are none"):
        orbits.best_action(features(draw.normal(size=(1, 20, 3))))
    with pytest.raises(TypeError, match=r"expected an array \(element, sample, feature\)"):
        orbits.orbit_variance(few.isel(element=0))
    with pytest.raises(ValueError, match="the gain is predicted by softmax_reverse"):
        orbits.averaging_gain(xr.Dataset())
    with pytest.raises(ValueError, match="labels must be numbers of the 2 classes"):
        orbits.averaging_gain(features(PROBABILITIES, [0, 2], dim="class"))
