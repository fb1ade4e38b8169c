"""Figures of interchange and of the features of orbits: what is drawn are the table's means and intervals."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from eedkit import plots
from eedkit.plots import style
from eedkit.results.intervals import mean_interval

KINDS = ("plain", "augmented")


def networks(values):
    """One row per network, three of each kind, with what `values(kind, seed)` says."""
    rows = []
    for kind in KINDS:
        for seed in range(3):
            rows += [{"model": f"{kind} {seed}", "recipe": kind, "n": 60} | row for row in values(kind, seed)]
    return pd.DataFrame(rows)


@pytest.fixture
def exchanged():
    rng = np.random.default_rng(0)

    def of_network(kind, seed):
        for depth, layer in enumerate(["image", "one", "two"]):
            relative = (0.8 if kind == "plain" else 0.3) + 0.1 * depth + 0.02 * rng.normal()
            ends = {"relative_low": relative - 0.1, "relative_high": relative + 0.2}
            yield {"metric": "latent", "layer": layer, "depth": depth / 2, "relative": relative, **ends}

    return networks(of_network)


def test_interchange_shows_every_layer_beside_the_turned_image(exchanged):
    other = exchanged.assign(relative=exchanged.relative / 2)
    figure = plots.interchange({"as they are": exchanged, "matched": other})
    assert [ax.get_title() for ax in figure.axes] == ["as they are", "matched"]
    assert [text.get_text() for text in figure.legends[0].texts] == list(KINDS)
    assert "95 % over 3 networks, 60 images" in figure.texts[-1].get_text()
    for ax, table in zip(figure.axes, (exchanged, other), strict=True):
        assert [tick.get_text() for tick in ax.get_xticklabels()] == ["one", "two"]
        for k, kind in enumerate(KINDS):
            ours = table[table.recipe == kind]
            wanted = [mean_interval(ours[ours.layer == layer].relative.to_numpy()) for layer in ("one", "two")]
            points, _, (bars,) = ax.containers[k]
            assert np.round(points.get_xdata()).tolist() == [0, 1]
            np.testing.assert_allclose(points.get_ydata(), [mid for mid, _, _ in wanted])
            np.testing.assert_allclose([s[:, 1] for s in bars.get_segments()], [ends for _, *ends in wanted])
            colour = style.KNOWN[kind][0]
            (turned,) = [line for line in ax.lines if line.get_linestyle() == "--" and line.get_color() == colour]
            np.testing.assert_allclose(turned.get_ydata(), ours[ours.layer == "image"].relative.mean())


def test_a_single_network_has_its_interval_over_images(exchanged):
    one = exchanged[exchanged.model == "plain 1"]
    figure = plots.interchange({"": one})
    _, _, (bars,) = figure.axes[0].containers[0]
    wanted = one[one.layer != "image"][["relative_low", "relative_high"]]
    np.testing.assert_allclose([segment[:, 1] for segment in bars.get_segments()], wanted)
    assert "over 60 images" in figure.texts[-1].get_text()


def test_parts_of_the_variance_stand_one_after_the_other():
    parts = {"class": 0.2, "image within class": 0.3, "element": 0.01, "class × element": 0.09, "image × element": 0.4}

    def of_network(kind, seed):
        for part, share in parts.items():
            moved = {"class": 0.05, "element": -0.05}.get(part, 0) * (seed - 1) * 0.1
            yield {"part": part, "share": share + moved}

    table = networks(of_network)
    figure = plots.orbit_variance(table.sample(frac=1, random_state=0).sort_values("recipe", ascending=False))
    (ax,) = figure.axes
    assert [tick.get_text() for tick in ax.get_yticklabels()] == list(KINDS)
    bars = [(patch.get_x(), patch.get_width()) for patch in ax.patches[:5]]
    np.testing.assert_allclose([width for _, width in bars], list(parts.values()))
    np.testing.assert_allclose([start for start, _ in bars], np.cumsum([0, *list(parts.values())[:-1]]))
    assert [text.get_text() for text in figure.legends[0].texts] == list(parts)
    assert [text.get_text() for text in ax.texts[:4]] == ["0.20", "0.30", "0.09", "0.40"]
    # where "class" ends: 0.195, 0.2, 0.205, with Student's t at two degrees of freedom
    segment = ax.collections[0].get_segments()[0]
    np.testing.assert_allclose(np.diff(segment[:, 0])[0] / 2, 4.302653 * 0.005 / np.sqrt(3), rtol=1e-6)


def test_the_probe_stands_against_chance():
    table = networks(lambda kind, seed: [{"accuracy": 0.9 + 0.05 * seed, "low": 0.8, "high": 0.9, "chance": 0.125}])
    (ax,) = plots.element_probe(table).axes
    (chance,) = [line for line in ax.lines if line.get_linestyle() == "--"]
    assert chance.get_xdata() == [0.125, 0.125]
    (segment,) = ax.containers[0][2][0].get_segments()
    np.testing.assert_allclose(segment[:, 0], [mean_interval([0.9, 0.95, 1.0])[1], 1])  # no more than all
    (ax,) = plots.element_probe(table[table.model == "plain 0"]).axes
    (segment,) = ax.containers[0][2][0].get_segments()
    np.testing.assert_allclose(segment[:, 0], [0.8, 0.9])


def test_gains_predicted_and_real_stand_side_by_side():
    def of_network(kind, seed):
        predicted = 2.0 + 0.1 * seed if kind == "plain" else 0.02
        real = -0.004 if kind == "plain" else np.nan
        ends = {f"{name}_{end}": 0.0 for name in ("predicted", "real") for end in ("low", "high")}
        yield {"predicted": predicted, "real": real, **ends}

    (ax,) = plots.averaging_gain(networks(of_network)).axes
    points = [(container[0].get_xdata()[0], container[0].get_markerfacecolor()) for container in ax.containers]
    assert [place for place, _ in points] == pytest.approx([2.1, -0.004, 0.02])
    assert [fill == "white" for _, fill in points] == [False, True, False]
    low, high = ax.get_xlim()
    assert low < -0.004 < 2.35 < high
    assert ax.get_xscale() == "symlog"


@pytest.mark.parametrize("figure", [plots.orbit_variance, plots.element_probe, plots.averaging_gain])
def test_ones_own_axes_and_titles(figure):
    shares = [{"part": part, "share": 0.5, "n": 9} for part in ("image", "element")]
    values = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "chance": 0.25, "n": 9}
    for name in ("predicted", "real"):
        values |= {name: 0.2, f"{name}_low": 0.1, f"{name}_high": 0.3}
    table = pd.DataFrame([{"model": "m", **values, **share} for share in shares])
    mine, (ax, other) = plt.subplots(1, 2)
    plt.close(mine)
    assert figure(table, ax=ax, title="mine") is mine
    assert ax.has_data()
    assert not other.has_data()
    assert ax.get_title() == "mine"
    assert figure(table).get_suptitle().endswith("?")
    assert figure(table, title="").get_suptitle() == ""
    assert figure(table, title="").caption.startswith(figure(table).get_suptitle())


@pytest.mark.parametrize("figure", [plots.orbit_variance, plots.element_probe, plots.averaging_gain])
def test_what_is_refused(figure, exchanged):
    with pytest.raises(ValueError, match="no column"):
        figure(exchanged)
    with pytest.raises(ValueError, match="at the layer 'image'"):
        plots.interchange({"": exchanged[exchanged.layer != "image"]})


def test_odd_names_are_drawn_as_they_are(odd_names, drawn_texts):
    row = {"n": 9, "accuracy": 0.5, "low": 0.4, "high": 0.6, "chance": 0.25}
    shown = drawn_texts(plots.element_probe(pd.DataFrame([{"model": name, **row} for name in odd_names])))
    assert {r"$\frac$", "cost $5 and $6", "_hidden"} <= shown
