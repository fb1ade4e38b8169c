"""Figures of tables: the numbers that are drawn are those of the table."""

import numpy as np
import pandas as pd
import pytest

from eedkit import plots
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
    return pd.DataFrame({"decided_by": "", "claim": "above", "margin": 1.0, "verdict": "supported", **columns})


def drawn(ax):
    """Marks (x, row), spans (low, high, row) and margins (x, row) of a panel of effects."""
    marks = []
    spans = []
    margins = []
    for line in ax.lines:
        x, y = line.get_xdata(), line.get_ydata()
        if line.get_marker() in list("oXsD"):
            marks.append((x[0], y[0]))
        elif len(x) == 2 and y[0] == y[1]:
            spans.append((*x, y[0]))
        elif len(x) == 2:
            margins.append((x[0], np.mean(y)))
    return marks, spans, margins


def test_effects_stand_in_their_own_unit_beside_their_margins():
    rows = effect_rows(
        conclusion=["1", "1", "1", "2"],
        part=["maps", "maps", "premise", "all"],
        test=["a", "b", "c", "d"],
        claim=["above", "below", "beyond", "above"],
        verdict=["supported", "contradicted", "inconclusive", "supported"],
        effect=[0.3, 0.2, -0.2, 40.0],
        low=[0.2, 0.15, -0.3, 30.0],
        high=[0.4, 0.25, -0.1, 50.0],
        margin=[0.1, 0.12, 0.2, 10.0],
    )
    conclusion = rows.iloc[[0]].assign(test="all", effect=9.0, decided_by="a")
    figure = plots.effects(pd.concat([rows, conclusion]), labels={"1": "first"})
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["first: maps", "first: premise", "2: all"]
    maps, premise, other = (drawn(ax) for ax in figure.axes)
    assert maps == ([(0.3, 0), (0.2, 1)], [(0.2, 0.4, 0), (0.15, 0.25, 1)], [(0.1, 0), (0.12, 1)])
    assert premise == ([(-0.2, 0)], [(-0.3, -0.1, 0)], [(-0.2, 0), (0.2, 0)])
    assert other == ([(40.0, 0)], [(30.0, 50.0, 0)], [(10.0, 0)])
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["a", "b"]
    texts = [t.get_text() for t in figure.legends[0].texts]
    assert texts == ["supported", "contradicted", "inconclusive", "claimed"]
    colours = [line.get_color() for line in figure.axes[0].lines if line.get_marker() in list("oX")]
    assert colours == ["#029e73", "#d55e00"]


@pytest.mark.parametrize(("claim", "sides"), [("above", [(0.1, "right")]), ("below", [(0.1, "left")]), ("beyond", [(-0.1, "left"), (0.1, "right")])])  # fmt: skip
def test_the_claimed_side_of_a_margin_is_shaded(claim, sides):
    rows = effect_rows(conclusion="1", part="all", test=["a"], claim=claim, effect=0.3, low=0.2, high=0.4, margin=0.1)
    (ax,) = plots.effects(rows).axes
    left, right = ax.get_xlim()
    shaded = [(area.get_datalim(ax.transData).x0, area.get_datalim(ax.transData).x1) for area in ax.collections]
    assert shaded == [pytest.approx((at, right) if side == "right" else (left, at)) for at, side in sides]


def test_a_panels_scale_shows_its_intervals_and_what_is_far_ends_in_an_arrow():
    rows = effect_rows(
        conclusion="1",
        part="all",
        test=["a", "b", "c", "far", "open"],
        effect=[0.30, 0.32, 0.28, 400.0, 0.31],
        low=[0.29, 0.31, 0.27, 300.0, -np.inf],
        high=[0.31, 0.33, 0.29, 500.0, np.inf],
        margin=0.25,
    )
    (ax,) = plots.effects(rows).axes
    left, right = ax.get_xlim()
    # an interval takes a tenth of the panel at least
    assert right - left < 0.2
    assert [text.get_text().strip() for text in ax.texts] == ["400"]
    arrows = [(line.get_marker(), line.get_ydata()[0]) for line in ax.lines if line.get_marker() in list("<>")]
    assert arrows == [(">", 3), ("<", 4), (">", 4)]


def test_an_effect_without_value_has_a_row_and_no_mark():
    rows = effect_rows(
        conclusion="1", part="all", test=["a", "b"], effect=[np.nan, 2.0], low=[-1.0, 1.5], high=[1.0, 2.5]
    )
    (ax,) = plots.effects(rows).axes
    assert drawn(ax)[0] == [(2.0, 1)]
    assert len(ax.get_yticklabels()) == 2


@pytest.mark.parametrize("numbers", [True, False])
def test_lines_at_the_same_place_stand_side_by_side(numbers):
    rows = [
        {"recipe": recipe, "x": x, "gain": value} for recipe in "abcd" for x in (1, 2, 5) for value in (0.1, 0.2, 0.4)
    ]
    table = pd.DataFrame(rows)
    if not numbers:
        table["x"] = pd.Categorical(table.x.map({1: "one", 2: "two", 5: "five"}), ["one", "two", "five"], ordered=True)
    figure = plots.lines(table, x="x", y="gain")
    figure.draw_without_rendering()
    (ax,) = figure.axes
    bars = [container[2][0] for container in ax.containers]
    pixels = [bar.get_transform().transform(segment)[0, 0] for bar in bars for segment in bar.get_segments()]
    caps = 4 * figure.dpi / 72  # 2 points on each side
    assert np.diff(np.sort(pixels)).min() > caps
    places = [1, 2, 5] if numbers else [0, 1, 2]
    assert all(container[0].get_xdata().tolist() == places for container in ax.containers)


@pytest.mark.parametrize("draw", [plots.lines, plots.cloud])
@pytest.mark.parametrize("kind", ["numbers", "ordered", "texts"])
def test_what_has_an_order_gets_the_colours_of_a_scale(draw, kind):
    depth = [8, 2, 5] * 3
    table = pd.DataFrame({"blocks": depth, "x": [1, 1, 1, 2, 2, 2, 3, 3, 3], "gain": range(9)})
    if kind != "numbers":
        table["blocks"] = table.blocks.map({2: "two", 5: "five", 8: "eight"})
    if kind == "ordered":
        table["blocks"] = pd.Categorical(table.blocks, ["two", "five", "eight"], ordered=True)
    figure = draw(table, x="x", y="gain", by="blocks")
    names = [text.get_text() for text in figure.legends[0].texts]
    colours = [handle.get_color() for handle in figure.legends[0].legend_handles]
    scale = [look["color"] for look in style.looks([2, 5, 8]).values()]
    if kind == "texts":
        assert names == ["eight", "two", "five"]
        assert colours != scale
    else:
        assert names == (["2", "5", "8"] if kind == "numbers" else ["two", "five", "eight"])
        assert colours == scale


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
    rows = rows.assign(part=odd_names, conclusion="c", test="t")
    assert shown(odd_names) <= drawn_texts(plots.effects(rows))


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
