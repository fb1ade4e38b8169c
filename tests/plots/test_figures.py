"""Figures show the numbers of the table, and are the same bytes every time."""

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from PIL import Image
from torch import nn

import eedkit as ek
from eedkit import plots
from eedkit.plots import style


class Lit(nn.Module):
    """A network whose features are a constant and, by `gain`, its input: with little of that all images look alike."""

    def __init__(self, gain):
        super().__init__()
        self.conv, self.flat, self.head, self.gain = (
            nn.Conv2d(1, 4, 3, padding=1),
            nn.Flatten(),
            nn.Linear(196, 3),
            gain,
        )

    def forward(self, x):
        return self.head(self.flat(1 + self.gain * self.conv(x)))


@pytest.fixture(scope="module")
def results():
    torch.manual_seed(0)
    images, labels = torch.randn(24, 1, 7, 7), [0, 1, 2] * 8
    kinds = [("plain", 0, 5.0), ("plain", 1, 5.0), ("dim", 0, 1e-2), ("dim", 1, 1e-2)]
    made = (
        ek.measure(Lit(gain), images, group="D4", labels=labels, name=f"{kind}/{seed}", progress=False)
        for kind, seed, gain in kinds
    )
    return ek.concat(made, recipe=[k for k, _, _ in kinds], seed=[s for _, s, _ in kinds])


def relative_from_x(ds, by):
    """√(mean of the deviation from the unmoved image / mean of its null under that element), (model, *by), by hand."""
    deviation, null = (
        ds[name].sel(layer="latent").astype("float64") + 1 for name in ("latent_from_x", "latent_from_x_null")
    )
    ratio = deviation / null.mean("sample")
    moved = ratio.where(ratio.element != "e")
    if by == "label":
        return np.sqrt(moved.groupby("label").mean("sample")).where(ratio.element != "e", 0)
    return np.sqrt(moved.mean({"element": "sample", "sample": "element"}[by])).fillna(0)


def drawn(figure, colour):
    """The (x, y) of every solid line of one colour, longest first."""
    lines = [line for line in figure.axes[0].lines if line.get_color() == colour and line.get_linestyle() == "-"]
    return max(((line.get_xdata(), line.get_ydata()) for line in lines), key=lambda xy: len(xy[0]))


def note(figure):
    """The small line at the bottom."""
    return " ".join(figure.texts[-1].get_text().split())


def legend(figure):
    """The names in the legend."""
    return [text.get_text() for text in figure.legends[0].texts]


@pytest.mark.parametrize(("models", "says"), [(3, "2 seeds, or over images for a single network"), (4, "2 seeds;")])
def test_a_single_networks_band_is_told_from_those_of_seeds(results, models, says):
    figure = plots.depth_profile(results.isel(model=range(models)), metric="latent")
    assert f"bands: 95 % over {says}" in note(figure)


@pytest.mark.parametrize("relative", [False, True])
def test_depth_profile_draws_the_means_over_seeds(results, relative):
    table = ek.summarise(results)
    figure = plots.depth_profile(table, metric="latent", relative=relative)
    rows = table[(table.metric == "latent") & (table.recipe == "plain")]
    expected = rows.groupby("depth")["relative" if relative else "estimate"].mean()
    assert len(expected) == rows.layer.nunique() == 4
    x, y = drawn(figure, style.KNOWN["plain"][0])
    assert x == pytest.approx(expected.index.to_numpy())
    assert y == pytest.approx(expected.to_numpy())
    assert "2 seeds; 24 images" in note(figure)


def test_depth_profile_of_single_models_has_the_band_of_the_table(results):
    one = results.isel(model=[0]).drop_vars(["recipe", "seed"])
    row = ek.summarise(one).query("metric == 'latent' and layer == 'latent'").iloc[0]
    for relative, (low, high) in {False: row[["low", "high"]], True: row[["relative_low", "relative_high"]]}.items():
        figure = plots.depth_profile(one, metric="latent", relative=relative)
        band = figure.axes[0].collections[0].get_paths()[0].vertices
        at_latent = band[np.isclose(band[:, 0], row.depth), 1]
        assert [at_latent.min(), at_latent.max()] == pytest.approx([low, high])
        assert note(figure).endswith("bands: 95 % over 24 images")


def test_a_single_chain_has_no_band_of_relative_values_and_says_so(results):
    one = results.isel(model=[0], sample=results.chain == 1).drop_vars(["recipe", "seed"])
    figure = plots.depth_profile(one, metric="latent")
    assert note(figure).endswith("no intervals; 8 images")
    assert not any(len(c.get_paths()) for c in figure.axes[0].collections)


def test_depth_profile_leaves_out_class_tokens(results):
    table = ek.summarise(results)
    token = table[(table.metric == "latent") & (table.layer == "latent")].assign(layer="latent[class]", estimate=9.0)
    figure = plots.depth_profile(pd.concat([table, token]), metric="latent", relative=False)
    assert max(max(line.get_ydata()) for line in figure.axes[0].lines) < 1


def test_models_blind_to_images_have_no_relative_value(results):
    table = ek.summarise(results.where(results.recipe != "dim", -1).assign_attrs(results.attrs))
    flat = table[(table.recipe == "dim") & (table.metric == "latent")]
    assert flat.relative.isna().all()
    assert flat.reason.str.contains("within rounding").all()
    figure = plots.depth_profile(table, metric="latent")
    assert legend(figure) == ["plain"]


def test_calibration_puts_every_model_on_its_relative_value(results):
    table = ek.summarise(results)
    rows = table[(table.metric == "latent") & (table.layer == "latent") & (table.recipe == "plain")]
    (points,) = (line for line in plots.calibration(table).axes[0].lines if line.get_label() == "plain")
    assert np.sqrt(points.get_ydata() / points.get_xdata()) == pytest.approx(rows.relative.to_numpy())


@pytest.mark.parametrize("order", [1, 2])
def test_calibration_draws_contours_of_the_relative_value(results, order):
    figure = plots.calibration(ek.summarise(results).assign(order=order))
    contours = [line for line in figure.axes[0].lines if line.get_color() == "0.75"]
    levels = [(line.get_ydata() / line.get_xdata()) ** (1 / order) for line in contours]
    np.testing.assert_allclose(levels, [[level, level] for level in (1, 0.1, 0.01, 0.001)])


def test_rose_draws_rotations_solid_and_mirrored_dashed_closing_the_orbit(results):
    figure = plots.orbit_rose(results)
    angle, radius = drawn(figure, style.KNOWN["plain"][0])
    values = relative_from_x(results, "element").transpose("element", "model")
    expected = values[:, [0, 1]].mean("model")
    assert np.rad2deg(angle) == pytest.approx([0, 90, 180, 270, 0])
    assert radius == pytest.approx(expected.values[[0, 1, 2, 3, 0]], abs=1e-6)
    dashed = [line for line in figure.axes[0].lines if line.get_linestyle() == "--" and len(line.get_xdata()) == 5]
    assert dashed[0].get_ydata() == pytest.approx(expected.values[[4, 5, 6, 7, 4]], abs=1e-6)
    assert "radius: relative EED (latent) from the unmoved image" in note(figure)
    (circle,) = (line for line in figure.axes[0].lines if line.get_color() == "0.5")
    assert set(circle.get_ydata()) == {1}


def test_without_a_null_the_deviation_itself_is_drawn(results):
    raw = results.drop_vars(["latent_null", "latent_from_x_null"])
    figure = plots.orbit_rose(raw)
    _, radius = drawn(figure, style.KNOWN["plain"][0])
    expected = raw.latent_from_x.sel(layer="latent", element="r90").values[[0, 1]].mean(dtype=float) + 1
    assert radius[1] == pytest.approx(expected, abs=1e-6)
    assert "radius: EED (latent) from the unmoved image" in note(figure)
    assert len(plots.histogram(raw).axes[0].patches) == 2
    cells = plots.class_heatmap(raw).axes[0].collections[0].get_array()
    by_class = raw.latent_from_x.sel(layer="latent").groupby("label").mean("sample") + 1
    expected = by_class.isel(model=[0, 1]).mean("model").transpose("label", "element").values
    np.testing.assert_allclose(np.reshape(cells, expected.shape), expected, atol=1e-6)


def test_rose_spreads_the_elements_of_a_group_without_rotations_evenly(results):
    angle, _ = drawn(plots.orbit_rose(results.sel(element=["e", "m"])), style.KNOWN["plain"][0])
    assert np.rad2deg(angle) == pytest.approx([0, 180, 0])


def test_heatmap_names_the_classes_of_the_labels_and_leaves_out_images_without_one(results, drawn_texts):
    label = results.label.values.copy()
    label[::7] = -1
    named = results.assign_coords(label=("sample", label, {"class_names": '["ape", "bee", "cat"]'}))
    figure = plots.class_heatmap(named)
    assert {"ape", "bee", "cat"} <= drawn_texts(figure)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["ape", "bee", "cat"]
    no_label = named.assign_coords(label=("sample", np.full(len(label), -1)))
    with pytest.raises(ValueError, match="needs labels"):
        plots.class_heatmap(no_label)


def test_heatmap_shows_class_means_on_one_scale(results):
    results = results.assign_coords(label=("sample", results.label.values, {"class_names": '["ape", "bee", "cat"]'}))
    figure = plots.class_heatmap(results)
    values = relative_from_x(results, "label")
    panels = {ax.get_title().split()[0]: ax for ax in figure.axes if ax.get_title()}
    assert {ax.get_title() for ax in figure.axes if ax.get_title()} == {"plain", "dim"}
    expected = values.isel(model=[2, 3]).mean("model").transpose("label", "element")
    shown = panels["dim"].collections[0].get_array().reshape(3, 8)
    assert np.asarray(shown) == pytest.approx(expected.values, abs=1e-6)
    assert len({panel.collections[0].get_clim() for panel in panels.values()}) == 1
    assert [t.get_text() for t in panels["plain"].get_yticklabels()] == ["ape", "bee", "cat"]
    with pytest.raises(ValueError, match="needs labels"):
        plots.class_heatmap(results.drop_vars("label"))


def test_unknown_names_are_answered_with_near_ones(results):
    with pytest.raises(ValueError, match="did you mean 'latent'"):
        plots.orbit_rose(results, metric="latents")
    with pytest.raises(ValueError, match="no layer"):
        plots.class_heatmap(results, layer="conv9")
    with pytest.raises(ValueError, match="no metric with relative values 'channel'"):
        plots.depth_profile(results, metric="channel")
    with pytest.raises(ValueError, match="no coordinate along model 'kind'"):
        plots.orbit_rose(results, by="kind")
    with pytest.raises(ValueError, match="softmax at output"):
        plots.calibration(results.drop_vars("latent_null"))


def test_saved_files_are_the_same_bytes_every_time(results, tmp_path):
    for name in ("one", "two"):
        plots.save(plots.orbit_rose(results), tmp_path / name / "rose", ["png", "svg"])
    for suffix in (".png", ".svg"):
        first, second = ((tmp_path / name / f"rose{suffix}").read_bytes() for name in ("one", "two"))
        assert len(first) > 1000
        assert first == second


def test_saved_pdfs_are_the_same_bytes_at_another_time_and_in_another_process(results, tmp_path):
    table = ek.summarise(results)
    table.to_pickle(tmp_path / "table.pkl")
    code = (
        "import sys, pandas, eedkit as ek; table = pandas.read_pickle(sys.argv[1]); "
        "ek.plots.save(ek.plots.depth_profile(table, metric='latent'), sys.argv[2], ['pdf', 'svg'])"
    )
    for seed, clock in (("1", "1000000000"), ("2", "1500000000")):
        out, env = tmp_path / seed, {**os.environ, "PYTHONHASHSEED": seed, "SOURCE_DATE_EPOCH": clock}
        subprocess.run([sys.executable, "-c", code, tmp_path / "table.pkl", out], check=True, env=env)
    assert (tmp_path / "1.pdf").read_bytes().startswith(b"%PDF")
    for kind in ("pdf", "svg"):
        assert (tmp_path / f"1.{kind}").read_bytes() == (tmp_path / f"2.{kind}").read_bytes()


def test_every_file_holds_the_caption(results, tmp_path):
    figure = plots.orbit_rose(results, title="Cost $5 & <more>?")
    assert figure.caption.startswith("Cost $5 & <more>? Radius: ")
    plots.save(figure, tmp_path / "rose", ["svg", "png", "pdf"])
    words = [element.text for element in ET.parse(tmp_path / "rose.svg").iter() if element.tag.endswith("description")]
    assert words == [figure.caption]
    assert Image.open(tmp_path / "rose.png").text["Description"] == figure.caption
    assert b"/Subject" in (tmp_path / "rose.pdf").read_bytes()
    unnamed = plots.cloud(ek.summarise(results), x="estimate", y="relative")
    assert unnamed.caption == "Relative against estimate. 4 networks."
    assert unnamed.get_suptitle() == ""


def test_save_writes_what_is_asked_for_and_gives_the_first(results, tmp_path):
    figure = plots.calibration(results)
    assert plots.save(figure, tmp_path / "a.b") == tmp_path / "a.b.svg"
    assert plots.save(figure, str(tmp_path / "new" / "c"), formats=["pdf", "svg"]) == tmp_path / "new" / "c.pdf"
    assert plots.save(figure, tmp_path / "d", "svg") == tmp_path / "d.svg"
    there = sorted(file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*.*"))
    assert there == ["a.b.svg", "d.svg", "new/c.pdf", "new/c.svg"]
    with pytest.raises(ValueError, match="no format 'pgn'; did you mean 'png'"):
        plots.save(figure, tmp_path / "e", formats=["svg", "pgn"])
    with pytest.raises(ValueError, match="no format ''"):
        plots.save(figure, tmp_path / "e", formats=[])
    assert not list(tmp_path.glob("e*"))


def test_figures_do_not_stay_open_in_pyplot(results):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    plots.calibration(results)
    assert plt.get_fignums() == before


def test_layers_of_equal_depth_stay_two_points(results):
    table = ek.summarise(results)
    table.loc[table.layer != "output", "depth"] = 0.5
    figure = plots.depth_profile(table, metric="latent")
    _, y = drawn(figure, style.KNOWN["plain"][0])
    rows = table[(table.metric == "latent") & (table.recipe == "plain")]
    assert sorted(y) == pytest.approx(sorted(rows.groupby("layer").relative.mean()))


def test_models_without_a_relative_value_are_named_below_the_figure(results):
    table = ek.summarise(results)
    table.loc[table.recipe == "dim", "relative"] = np.nan
    figure = plots.depth_profile(table, metric="latent")
    assert note(figure).endswith("no relative value: dim")


def test_an_undefined_layer_is_refused_with_its_reason(results):
    with pytest.raises(ValueError, match="channelwise is undefined at latent: it is the head's input"):
        plots.orbit_rose(results, metric="channelwise")
    with pytest.raises(TypeError, match="expected a Dataset"):
        plots.orbit_rose(ek.summarise(results))


def test_rose_of_a_product_group_keeps_mirrored_and_turned_apart(results):
    four = results.sel(element=["e", "r180", "m", "mr180"]).assign_coords(
        element=np.array(["e", "r180", "m", "r180·m"], dtype=object)
    )
    figure = plots.orbit_rose(four)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["e", "r180"]


def test_names_of_ones_own_get_colours_of_no_recipe_that_is_shown():
    names = ["mine", "plain", "simclr", "other"]
    looks = style.looks(names)
    assert len({look["color"] for look in looks.values()}) == len(names)
    assert looks["mine"]["color"] not in [
        style.KNOWN[kind][0] for kind in ("plain", "augmented", "equivariant", "random")
    ]
    # the same as ever where no further recipe is shown
    assert style.looks(["mine"])["mine"]["color"] == style.COLOURS[3]


def shown(names):
    return {name.replace("\x1b", r"\x1b").replace("\x07", r"\x07") for name in names}


@pytest.mark.parametrize(
    "draw",
    [
        lambda results: plots.depth_profile(results, metric="latent"),
        plots.orbit_rose,
        plots.class_heatmap,
        plots.calibration,
    ],
)
def test_models_are_shown_by_their_names_as_they_are(results, odd_names, drawn_texts, draw):
    named = results.drop_vars(["recipe", "seed"]).assign_coords(model=odd_names)
    assert shown(odd_names) <= drawn_texts(draw(named))


def test_a_model_without_value_is_named_as_it_is(results, drawn_texts):
    table = ek.summarise(results.assign_coords(recipe=("model", ["a", "a", r"$\frac$", r"$\frac$"])))
    table.loc[table.recipe == r"$\frac$", "relative"] = np.nan
    texts = drawn_texts(plots.depth_profile(table, metric="latent"))
    assert any(text.endswith(r"$\frac$") for text in texts)


def test_elements_and_classes_are_shown_as_they_are(results, odd_names, drawn_texts):
    named = results.assign_coords(element=odd_names + list(results.element.values[4:]))
    assert shown(odd_names) <= drawn_texts(plots.orbit_rose(named))
    assert shown(odd_names) <= drawn_texts(plots.class_heatmap(named))
    classes = ("sample", results.label.values, {"class_names": json.dumps(odd_names[:3])})
    assert shown(odd_names[:3]) <= drawn_texts(plots.class_heatmap(results.assign_coords(label=classes)))


def test_metrics_and_units_are_shown_as_they_are(results, drawn_texts):
    results = results.copy()
    results["latent"] = results.latent.assign_attrs(long_name=r"$\frac$", units=r"$\sqrt$")
    texts = drawn_texts(plots.depth_profile(results, metric="latent", relative=False))
    assert {r"Where in the network is it equivariant? ($\frac$)", r"EED (latent), $\sqrt$"} <= texts
    table = ek.summarise(results).replace({"metric": {"latent": r"$\frac$"}})
    assert r"relative EED ($\frac$)" in drawn_texts(plots.depth_profile(table, metric=r"$\frac$"))


@pytest.fixture
def torn(results):
    """An image without a value, and one model that has none at all."""
    lost = (results.sample == 7) | (results.model == "dim/1")
    return results.assign({name: v.where(~lost) for name, v in results.data_vars.items() if "sample" in v.dims})


@pytest.mark.parametrize("figure", [plots.depth_profile, plots.orbit_rose, plots.class_heatmap, plots.calibration])
@pytest.mark.parametrize("metric", ["latent", "softmax"])
@pytest.mark.filterwarnings("error")
def test_figures_leave_out_what_has_no_value(torn, figure, metric):
    found = figure(torn, metric=metric)
    found.canvas.draw()
    assert found.axes[0].has_data()


@pytest.mark.filterwarnings("error")
def test_rose_is_of_the_models_and_images_that_have_values(torn):
    figure = plots.orbit_rose(torn.drop_vars(["recipe", "seed"]))
    assert legend(figure)[:3] == ["plain/0", "plain/1", "dim/0"]
    assert note(figure).endswith("different image; no value: dim/1")
    assert "mean over 23 images" in note(figure)
    of_recipe, alone = plots.orbit_rose(torn), plots.orbit_rose(torn.sel(model=["dim/0"]))
    dim = style.looks(["plain", "dim"])["dim"]["color"]
    np.testing.assert_allclose(drawn(of_recipe, dim)[1], drawn(alone, style.looks(["dim"])["dim"]["color"])[1])


def test_heatmap_keeps_its_scale_beside_a_model_without_values(torn):
    first_lost = torn.isel(model=[3, 0]).drop_vars(["recipe", "seed"])
    panels = [ax for ax in plots.class_heatmap(first_lost).axes if ax.get_title()]
    assert np.isfinite([panel.collections[0].get_clim() for panel in panels]).all()


def test_figures_of_nothing_say_why(torn):
    nothing = torn.sel(sample=[7])
    why = r"1 of 1 samples have no value \(7: not finite"
    for figure in (plots.depth_profile, plots.calibration):
        with pytest.raises(ValueError, match=why):
            figure(nothing, metric="softmax")
    for figure in (plots.orbit_rose, plots.class_heatmap):
        for metric in ("latent", "softmax"):
            with pytest.raises(ValueError, match=f"no image has a value of {metric}"):
                figure(nothing, metric=metric)


def test_figures_ask_for_a_dimension_that_a_slice_lost(results):
    for figure in (plots.depth_profile, plots.orbit_rose, plots.class_heatmap, plots.calibration):
        with pytest.raises(ValueError, match=r"no labelled dimension 'layer' \(an average over it"):
            figure(results.sel(layer="latent", drop=True), metric="latent")
        figure(results[["softmax", "softmax_null"]], metric="softmax")


@pytest.mark.parametrize("draw", [plots.orbit_rose, plots.class_heatmap, plots.calibration])
def test_scalar_selections_are_drawn_like_lists(results, draw):
    for dim, label in (("model", "dim/0"), ("layer", "latent"), ("element", "r90")):
        of_scalar = draw(results.sel({dim: label}))
        of_list = draw(results.sel({dim: [label]}))
        assert [ax.get_title() for ax in of_scalar.axes] == [ax.get_title() for ax in of_list.axes]
        for ax, other in zip(of_scalar.axes, of_list.axes, strict=True):
            for line, same in zip(ax.lines, other.lines, strict=True):
                np.testing.assert_array_equal(line.get_xydata(), same.get_xydata())


def test_a_histogram_shows_the_shares_of_images(results):
    one = results.sel(model=["dim/0"]).drop_vars(["recipe", "seed"])
    figure = plots.histogram(one, metric="latent")
    own, null = (patch.get_data() for patch in figure.axes[0].patches)
    edges = own.edges + np.r_[-1e-9, np.zeros(19), 1e-9]
    counts, _ = np.histogram(relative_from_x(one, "sample"), bins=edges)
    np.testing.assert_allclose(own.values, counts / 24)
    assert own.values.sum() == pytest.approx(1)
    assert null.values.sum() == pytest.approx(1)
    assert not np.array_equal(own.values, null.values)


def test_relative_profiles_show_0_and_1_and_raw_ones_the_best_value(results):
    low, high = plots.depth_profile(results, metric="latent").axes[0].get_ylim()
    assert low < 0
    assert high > 1
    (ax,) = plots.depth_profile(results, metric="latent", relative=False).axes
    assert any(set(line.get_ydata()) == {-1.0} for line in ax.lines)
    assert ax.get_ylim()[0] <= -1


def test_bands_end_at_the_best_value(results):
    table = ek.summarise(results)
    chosen = (table.metric == "latent") & (table.recipe == "plain")
    table.loc[chosen, "estimate"] = np.where(table[chosen].model == "plain/0", -0.99, -0.4)
    band = (
        plots.depth_profile(table, metric="latent", relative=False).axes[0].collections[0].get_paths()[0].vertices[:, 1]
    )
    assert band.min() == -1


def test_groups_and_data_sets_have_a_panel_each(results):
    quarter = results.sel(element=["e", "r90", "r180", "r270"]).assign_attrs(group="C4")
    tree = xr.DataTree.from_dict({"a/D4": results, "a/C4": quarter})
    table = ek.summarise(tree)
    for draw in (plots.depth_profile, plots.calibration):
        of_tree, of_table = draw(tree, metric="latent"), draw(table, metric="latent")
        assert [ax.get_title() for ax in of_tree.axes] == [ax.get_title() for ax in of_table.axes] == ["D4", "C4"]
    alone = plots.depth_profile(quarter, metric="latent")
    _, of_panel = drawn(plots.depth_profile(table[table.group == "C4"], metric="latent"), style.KNOWN["plain"][0])
    _, expected = drawn(alone, style.KNOWN["plain"][0])
    np.testing.assert_allclose(of_panel, expected)
    second = [line for line in of_tree.axes[1].lines if line.get_label() == "plain"]
    assert len(second) == 1


def test_several_metrics_have_a_panel_each_on_one_scale(results):
    table = ek.summarise(results)
    figure = plots.depth_profile(table, metric=["channelwise", "latent"])
    assert [ax.get_title() for ax in figure.axes] == ["channelwise", "latent"]
    for ax in figure.axes:
        rows = table[(table.metric == ax.get_title()) & (table.recipe == "plain")].dropna(subset="relative")
        line = next(line for line in ax.lines if line.get_label() == "plain")
        np.testing.assert_allclose(line.get_ydata(), rows.groupby("depth").relative.mean())
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()


def test_exact_networks_do_not_squeeze_a_calibration(results):
    table = ek.summarise(results)
    exact = table[table.recipe == "plain"].assign(recipe="exact", model="exact")
    exact["estimate"] = exact.best + 1e-9
    (alone,) = plots.calibration(table, metric="latent").axes
    (ax,) = plots.calibration(pd.concat([table, exact]), metric="latent").axes
    bottom, _ = ax.get_ylim()
    assert bottom == alone.get_ylim()[0]
    points = next(line for line in ax.lines if line.get_label() == "exact")
    assert set(points.get_ydata()) == {bottom}


def test_the_round_trip_is_dotted_in_the_units_of_the_figure(results):
    table = ek.summarise(results).assign(round_trip=0.5)
    rows = (
        table.query("metric == 'channelwise'").groupby("layer")[["null", "depth"]].mean().dropna().sort_values("depth")
    )
    for relative, expected in {True: 0.5, False: -1 + 0.25 * (rows.null + 1)}.items():
        (ax,) = plots.depth_profile(table, relative=relative).axes
        (dots,) = (line for line in ax.lines if line.get_linestyle() == ":")
        np.testing.assert_allclose(dots.get_xdata(), rows.depth)
        np.testing.assert_allclose(dots.get_ydata(), expected)
        assert "dotted: round trip" in note(ax.figure)


@pytest.mark.parametrize("figure", [plots.orbit_rose, plots.histogram, plots.class_heatmap])
def test_by_element_image_and_class_the_unmoved_image_is_the_reference(results, figure):
    """What a figure draws of `latent_from_x` is what it would draw of a metric with these values."""
    beside = [name for name in results.data_vars if name.startswith("latent_from_x")]
    one = results.drop_vars(beside)[["latent", "latent_null"]].isel(model=[0])
    from_x = 2 * one.latent + 1
    with_from_x = one.assign(latent_from_x=from_x, latent_from_x_null=one.latent_null / 2)
    as_metric = one.assign(latent=one.latent.copy(data=from_x.values), latent_null=one.latent_null / 2)

    def shown(ds):
        axes = figure(ds).axes
        lines = [line.get_xydata() for ax in axes for line in ax.lines]
        steps = [patch.get_data().values for ax in axes for patch in ax.patches if hasattr(patch, "get_data")]
        cells = [artist.get_array() for ax in axes for artist in ax.collections if artist.get_array() is not None]
        return [np.asarray(part, dtype=float) for part in (*lines, *steps, *cells)]

    assert shown(with_from_x)
    for found, wanted in zip(shown(with_from_x), shown(as_metric), strict=True):
        np.testing.assert_allclose(found, wanted)
    assert any(
        not np.array_equal(found, of_metric) for found, of_metric in zip(shown(with_from_x), shown(one), strict=True)
    )


@pytest.mark.parametrize("draw", [plots.depth_profile, plots.histogram, plots.calibration, plots.orbit_rose])
def test_axes_of_ones_own_hold_the_same_lines_and_a_legend(results, draw):
    polar = {"projection": "polar"} if draw is plots.orbit_rose else {}
    mine, (left, right) = plt.subplots(1, 2, subplot_kw=polar)
    plt.close(mine)
    assert draw(results, metric="latent", ax=right) is mine
    (ax,) = draw(results, metric="latent").axes
    for own, other in zip(right.lines, ax.lines, strict=True):
        np.testing.assert_array_equal(own.get_xydata(), other.get_xydata())
    assert not left.lines
    assert right.get_title() == ""
    assert {text.get_text() for text in right.get_legend().texts} >= {"plain", "dim"}


def test_several_panels_do_not_fit_ones_own_axes(results):
    mine, ax = plt.subplots()
    plt.close(mine)
    with pytest.raises(ValueError, match="ax= takes one panel, and there are 2"):
        plots.depth_profile(results, metric=["latent", "channelwise"], ax=ax)
    with pytest.raises(ValueError, match="expected polar axes"):
        plots.orbit_rose(results, ax=ax)


ON_OWN_AXES = {
    "depth_profile": lambda ds, **given: plots.depth_profile(ds, metric="latent", **given),
    "histogram": plots.histogram,
    "class_heatmap": lambda ds, **given: plots.class_heatmap(ds.sel(model=["dim/0"]), **given),
    "calibration": plots.calibration,
    "lines": lambda ds, **given: plots.lines(ek.summarise(ds), x="metric", y="relative", **given),
    "cloud": lambda ds, **given: plots.cloud(ek.summarise(ds), x="estimate", y="relative", **given),
}


@pytest.mark.parametrize("name", ON_OWN_AXES)
def test_ones_own_axes_are_drawn_on_and_keep_their_title(results, name):
    mine, (ax, other) = plt.subplots(1, 2)
    plt.close(mine)
    ax.set_title("mine")
    assert ON_OWN_AXES[name](results, ax=ax) is mine
    assert ax.has_data()
    assert not other.has_data()
    assert ax.get_title() == "mine"
    ON_OWN_AXES[name](results, ax=other, title="given")
    assert other.get_title() == "given"
    assert ON_OWN_AXES[name](results, title="").get_suptitle() == ""


@pytest.mark.parametrize(
    "draw", [plots.depth_profile, plots.orbit_rose, plots.histogram, plots.class_heatmap, plots.calibration]
)
def test_a_tree_has_a_panel_for_each_data_set_and_group(results, draw):
    other = results.isel(element=[0, 2]).assign_attrs(data="letters [x]")
    one_kind = {"digits/D4": results.sel(model=["plain/0"]), "letters/C2": other.sel(model=["plain/0"])}
    figure = draw(xr.DataTree.from_dict(one_kind), metric="latent")
    panels = [ax for ax in figure.axes if ax.get_visible() and ax.get_label() != "<colorbar>"]
    assert ["letters" in ax.get_title() for ax in panels] == [False, True]
    alone = draw(other.sel(model=["plain/0"]), metric="latent").axes[0]
    of_model, same = (
        [line.get_ydata() for line in ax.lines if line.get_label() == "plain"] for ax in (panels[1], alone)
    )
    assert len(of_model) == (draw not in (plots.histogram, plots.class_heatmap))
    np.testing.assert_array_equal(of_model, same)
    for mesh, same in zip(panels[1].collections, alone.collections, strict=True):
        np.testing.assert_array_equal(mesh.get_array(), same.get_array())
    (single,) = draw(xr.DataTree.from_dict({"digits/D4": one_kind["digits/D4"]}), metric="latent").axes[:1]
    assert "digits" not in single.get_title()


def test_a_caption_asks_and_says_how_to_read_it(results):
    figure = plots.depth_profile(results, metric="latent", title="")
    assert figure.caption == (
        "Where in the network is it equivariant? (latent negative cosine). 0: perfectly equivariant, 1: as far away as a "
        "different image; bands: 95 % over 2 seeds; 24 images."
    )
    assert plots.depth_profile(results, metric="latent", title="Mine").caption.startswith("Mine. 0: ")
    mine, axes = plt.subplots(1, 2)
    plt.close(mine)
    plots.histogram(results, ax=axes[0])
    plots.calibration(results, ax=axes[1])
    assert mine.caption.index("How is it spread") < mine.caption.index("Invariance, or insensitivity?")


def test_xarrays_own_plots_show_layers_by_depth_and_elements_by_angle(results):
    by_layer = results.latent.sel(model="plain/0").mean("sample")
    (line,) = by_layer.sel(element="r90").plot(x="depth")
    np.testing.assert_array_equal(line.get_ydata(), by_layer.sel(element="r90"))
    plt.close("all")
    turns = by_layer.sel(element=["e", "r90", "r180", "r270"])
    lines = turns.plot.line(x="angle", hue="layer")
    np.testing.assert_array_equal([line.get_ydata() for line in lines], turns)
    plt.close("all")


def test_a_title_is_the_question_ones_own_or_none(results):
    titles = [plots.depth_profile(results, title=title).get_suptitle() for title in (None, "", "mine")]
    assert titles[0].startswith("Where in the network")
    assert titles[1:] == ["", "mine"]


def test_layers_are_named_where_names_have_room(results):
    table = ek.summarise(results).query("metric == 'latent'")
    of_layers = table.drop_duplicates("layer").sort_values("depth")
    spread = table.merge(of_layers.layer.reset_index(drop=True).rename_axis("place").reset_index())
    (ax,) = plots.depth_profile(spread.assign(depth=(spread.place + 1) / 6), metric="latent").axes
    assert [label.get_text() for label in ax.get_xticklabels()] == of_layers.layer.tolist()
    close = spread.assign(depth=(spread.place + 1) / 6 - 0.15 * (spread.place == 1))
    (ax,) = plots.depth_profile(close, metric="latent").axes
    assert ax.get_xticklabels()[0].get_text() == ", ".join(of_layers.layer[:2])
    (ax,) = plots.depth_profile(spread.assign(depth=0.5 + spread.place / 1000), metric="latent").axes
    assert "depth (0 input" in ax.get_xlabel()


def test_a_notebook_shows_the_file_that_was_saved_until_the_figure_changes(results, tmp_path, monkeypatch):
    figure = plots.calibration(results)
    display = []
    monkeypatch.setattr("IPython.display.display", lambda *what, **how: display.append((what, how)))
    file = plots.save(figure, tmp_path / "a", ["pdf", "png", "svg"]).with_suffix(".svg")
    figure._ipython_display_()
    ((bundle,), how) = display.pop()
    assert bundle == {"image/svg+xml": file.read_text(), "text/plain": figure.caption}
    assert how["metadata"] == {"image/svg+xml": {"alt": figure.caption, "file": str(file)}}
    figure.axes[0].set_title("another")
    figure._ipython_display_()
    assert display == [((figure,), {})]
    assert not hasattr(figure, "_ipython_display_")
