"""Figures of tables: the numbers that are drawn are those of the table."""

import numpy as np
import pandas as pd
import pytest

from eedkit import plots
from eedkit.paper import verdicts
from eedkit.plots import style
from eedkit.results.intervals import mean_interval


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        [
            {"recipe": recipe, "seed": seed, "severity": severity, "shift": shift, "gain": rng.normal(severity, 0.1)}
            for recipe in ("plain", "augmented")
            for seed in range(5)
            for severity in (1, 3)
            for shift in ("blur", "noise")
        ]
    )


def points(ax, colour):
    """The (x, y) of the line of one colour that joins the means."""
    lines = [line for line in ax.lines if line.get_color() == colour and len(line.get_xdata()) > 1]
    return next((line.get_xdata(), line.get_ydata()) for line in lines if line.get_linestyle() == "-")


def test_lines_join_means_over_seeds_with_their_intervals_panel_by_panel(table):
    figure = plots.lines(table, x="severity", y="gain", panel="shift", line=0.5, line_label="margin")
    assert [ax.get_title() for ax in figure.axes] == ["blur", "noise"]
    for ax, kind in zip(figure.axes, ("blur", "noise"), strict=True):
        ours = table[(table["shift"] == kind) & (table.recipe == "plain")]
        x, y = points(ax, style.KNOWN["plain"][0])
        assert x.tolist() == [1, 3]
        assert y == pytest.approx(ours.groupby("severity").gain.mean().to_numpy())
        bars = next(c for c in ax.collections if tuple(c.get_colors()[0][:3]) == _rgb("plain"))
        expected = [mean_interval(group)[1:] for _, group in ours.groupby("severity").gain]
        assert [tuple(segment[:, 1]) for segment in bars.get_segments()] == [pytest.approx(pair) for pair in expected]
    assert [text.get_text() for text in figure.legends[0].texts] == ["plain", "augmented", "margin"]
    assert "95 % over 5 networks" in figure.texts[-1].get_text()


def _rgb(name):
    import matplotlib as mpl

    return mpl.colors.to_rgb(style.KNOWN[name][0])


@pytest.mark.parametrize("ordered", [True, False])
def test_only_what_has_an_order_is_joined(table, ordered):
    names = np.where(table.severity == 1, "near", "far")
    table["domain"] = pd.Categorical(names, categories=["near", "far"], ordered=True) if ordered else names
    (ax,) = plots.lines(table[table.recipe == "plain"], x="domain", y="gain").axes
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["near", "far"]
    means = ax.containers[0][0]
    assert means.get_linestyle() == ("-" if ordered else "None")
    assert np.round(means.get_xdata()).tolist() == [0, 1]
    expected = table[table.recipe == "plain"].groupby("severity").gain.mean()
    np.testing.assert_allclose(means.get_ydata(), expected)


def test_intervals_of_logarithms_stay_above_0():
    losses = [0.001, 0.01, 0.4]
    table = pd.DataFrame({"recipe": "plain", "epoch": 1, "loss": losses})
    (ax,) = plots.lines(table, x="epoch", y="loss", log=True).axes
    (segment,) = ax.containers[0][2][0].get_segments()
    logarithms = np.log(losses)
    half = 4.302653 * logarithms.std(ddof=1) / np.sqrt(3)  # t at 2 degrees of freedom
    np.testing.assert_allclose(np.log(segment[:, 1]), [logarithms.mean() - half, logarithms.mean() + half], rtol=1e-5)
    assert ax.get_yscale() == "log"
    figure = plots.lines(table.assign(loss=[0, 1, 2]), x="epoch", y="loss", log=True)
    assert (
        figure.texts[-1]
        .get_text()
        .endswith("over 2 networks, geometric means; not shown: 1 values that are not above 0")
    )
    with pytest.raises(ValueError, match="no row has a value of loss"):
        plots.lines(table.assign(loss=0), x="epoch", y="loss", log=True)


def test_intervals_stay_within_the_bounds():
    table = pd.DataFrame({"recipe": "plain", "epoch": 1, "accuracy": [0.5, 1.0, 1.0]})
    (ax,) = plots.lines(table, x="epoch", y="accuracy", bounds=(0, 1)).axes
    (segment,) = ax.containers[0][2][0].get_segments()
    assert segment[1, 1] == 1
    assert 0 < segment[0, 1] < 0.5


def test_a_relative_axis_shows_0_and_1(table):
    (ax,) = plots.lines(table.assign(relative=0.5), x="severity", y="relative").axes
    low, high = ax.get_ylim()
    assert low < 0
    assert high > 1


def test_a_raw_axis_shows_the_best_value(table):
    with_best = table.assign(estimate=table.gain, best=-1.0)
    for draw in (plots.lines, plots.cloud):
        (ax,) = draw(with_best, x="severity", y="estimate").axes
        assert ax.get_ylim()[0] <= -1


def test_unequal_numbers_of_networks_are_both_said(table):
    fewer = table[(table.recipe == "plain") | (table.seed < 3)]
    figure = plots.lines(fewer[fewer["shift"] == "blur"], x="severity", y="gain")
    assert figure.texts[-1].get_text() == "bars: 95 % over 3 to 5 networks"


def test_a_single_replicate_is_drawn_without_a_bar_and_says_nothing_of_intervals(table):
    figure = plots.lines(table.query("seed == 0 and shift == 'blur'"), x="severity", y="gain")
    assert all(np.isfinite(segment).all() for c in figure.axes[0].collections for segment in c.get_segments())
    assert not any("95 %" in text.get_text() for text in figure.texts)


def test_a_cloud_has_a_point_for_every_row(table):
    figure = plots.cloud(table, x="severity", y="gain")
    assert sum(len(line.get_xdata()) for line in figure.axes[0].lines) == len(table)


@pytest.mark.parametrize("draw", [plots.lines, plots.cloud])
def test_unknown_columns_and_empty_tables_are_refused(table, draw):
    with pytest.raises(ValueError, match="no column 'gian'; did you mean 'gain'"):
        draw(table, x="severity", y="gian")
    with pytest.raises(ValueError, match="no row has a value of gain"):
        draw(table.assign(gain=np.nan), x="severity", y="gain")


def effect_rows(**columns):
    return pd.DataFrame({"decided_by": "", "claim": "above", "margin": 1.0, "verdict": verdicts.SUPPORTED, **columns})


def test_effects_stand_right_of_0_where_they_are_as_claimed():
    rows = effect_rows(
        conclusion=["1", "1", "2"],
        test=["a", "b", "c"],
        claim=["above", "below", "beyond"],
        verdict=["supported", "contradicted", "inconclusive"],
        effect=[0.3, 0.2, -0.2],
        low=[0.2, 0.15, -0.3],
        high=[0.4, 0.25, -0.1],
        margin=[0.1, 0.1, 0.2],
    )
    conclusion = rows.iloc[[0]].assign(test="all", effect=9.0, decided_by="a")
    figure = plots.effects(pd.concat([rows, conclusion]), labels={"1": "first"})
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["first", "2"]
    drawn = [line for ax in figure.axes for line in ax.lines if len(line.get_xdata())]
    marks = [line.get_xdata() for line in drawn if line.get_marker() in "oXs"]
    assert np.ravel(marks) == pytest.approx([2.0, -1.0, 0.0])
    spans = [line.get_xdata() for line in drawn if len(line.get_xdata()) == 2 and line.get_linewidth() == 1.6]
    assert np.ravel(spans) == pytest.approx([1, 3, -1.5, -0.5, -0.5, 0.5])
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["a", "b"]
    assert [t.get_text() for t in figure.legends[0].texts] == ["supported", "contradicted", "inconclusive"]


def test_effects_far_from_their_margin_end_in_an_arrow_and_say_where():
    rows = effect_rows(conclusion="1", test=["far", "near"], effect=[400.0, 2.0], low=[3.0, 1.5], high=[np.inf, 2.5])
    (axes,) = plots.effects(rows).axes
    assert [text.get_text() for text in axes.texts] == ["399"]
    arrows = [
        (line.get_marker(), *line.get_xdata(), *line.get_ydata()) for line in axes.lines if line.get_marker() in "<>"
    ]
    assert arrows == [(">", 5.0, 0)]


def test_pictures_show_the_images_in_rows():
    images = {"blur": [np.zeros((1, 3, 3)), np.ones((1, 3, 3))], "noise": [np.full((3, 3, 3), 0.5)] * 2}
    figure = plots.pictures(images, columns=[1, 5])
    assert [ax.get_ylabel() for ax in figure.axes] == ["blur", "", "noise", ""]
    assert [ax.get_title() for ax in figure.axes[:2]] == ["1", "5"]
    assert [float(ax.images[0].get_array().mean()) for ax in figure.axes] == [0.0, 1.0, 0.5, 0.5]


def shown(names):
    return {name.replace("\x1b", r"\x1b").replace("\x07", r"\x07") for name in names}


@pytest.mark.parametrize("column", ["recipe", r"$\frac$", "panel"])
def test_lines_show_values_of_a_table_as_they_are(odd_names, drawn_texts, column):
    rows = [{"recipe": "plain", r"$\frac$": "conv", "panel": "one", r"$\sqrt$": k, column: name} for k, name in enumerate(odd_names)]  # fmt: skip
    texts = drawn_texts(plots.lines(pd.DataFrame(rows), x=r"$\frac$", y=r"$\sqrt$", panel="panel"))
    assert shown([*odd_names, r"$\frac$", r"$\sqrt$"]) <= texts


def test_clouds_show_names_and_columns_as_they_are(odd_names, drawn_texts):
    table = pd.DataFrame({"recipe": odd_names, r"$\frac$": range(4), r"$\sqrt$": range(4)})
    assert shown([*odd_names, r"$\sqrt$"]) <= drawn_texts(plots.cloud(table, x=r"$\frac$", y=r"$\sqrt$"))


def test_effects_show_tests_and_conclusions_as_they_are(odd_names, drawn_texts):
    rows = effect_rows(conclusion=odd_names, test=odd_names[::-1], effect=1.0, low=0.5, high=1.5)
    texts = drawn_texts(plots.effects(rows))
    assert shown(odd_names) <= texts
    assert shown(odd_names[:2]) <= drawn_texts(plots.effects(rows[:2].assign(test="t")))
    assert shown(odd_names[:2]) <= drawn_texts(plots.effects(rows[2:].assign(conclusion="c", test=odd_names[:2])))


def test_pictures_show_names_as_they_are(odd_names, drawn_texts):
    image = np.zeros((1, 2, 2))
    assert shown(odd_names) <= drawn_texts(plots.pictures({name: [image] for name in odd_names}, columns=["x"]))
    assert shown(odd_names) <= drawn_texts(plots.pictures({"x": [image] * 4}, columns=odd_names))


def test_a_dose_response_shows_effects_and_intervals_by_share():
    shares = [0.1, 0.1, 1.0, 1.0]
    rows = pd.DataFrame({"share": shares, "what": ["features", "best map"] * 2, "effect": [0.4, 0.1, 0.9, 0.3]})
    rows = rows.assign(low=rows.effect - 0.1, high=rows.effect + 0.05, n=5)
    (ax,) = plots.dose_response(rows).axes
    features, best_map = ax.containers
    np.testing.assert_allclose(features[0].get_xydata(), [[0.1, 0.4], [1.0, 0.9]])
    np.testing.assert_allclose(best_map[0].get_xydata(), [[0.1, 0.1], [1.0, 0.3]])
    np.testing.assert_allclose(features[2][0].get_segments()[0], [[0.1, 0.3], [0.1, 0.45]])
