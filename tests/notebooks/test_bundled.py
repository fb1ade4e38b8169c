"""The bundled notebooks at `tiny`, run as `make report` runs them, and the numbers that must come out even there."""

import re

import nbformat
import pytest

import eedkit as ek

pytestmark = [pytest.mark.notebook, pytest.mark.slow]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    from eedkit.report.notebooks import report

    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EEDKIT_CACHE", str(folder / "cache"))
        report(folder / "out", profile="tiny", progress=False)
    return folder / "out"


@pytest.fixture(scope="module")
def table(out):
    return ek.summarise(ek.open(out / "study.zarr"))


def at_end(table, recipe, column="relative", metric="latent"):
    layer = "latent" if metric == "latent" else "output"
    return table[(table.recipe == recipe) & (table.metric == metric) & (table.layer == layer)][column]


def test_the_equivariant_network_is_perfectly_invariant(table):
    for metric in ("latent", "softmax", "softmax_js"):
        assert at_end(table, "equivariant", metric=metric).abs().max() < 1e-4
    regular = table[(table.metric == "channelwise_regular") & (table.recipe == "equivariant")].estimate.dropna()
    assert len(regular) == 10
    assert regular.to_numpy() == pytest.approx(-1, abs=1e-5)


def test_augmentation_makes_the_features_more_invariant_than_plain_training(table):
    assert at_end(table, "augmented").max() < 0.5 * at_end(table, "plain").min()
    assert (
        at_end(table, "augmented", metric="softmax_js").max() < 0.5 * at_end(table, "plain", metric="softmax_js").min()
    )


def test_random_weights_look_most_invariant_until_they_are_calibrated(table):
    raw = {recipe: at_end(table, recipe, "estimate").mean() for recipe in ("random", "plain", "augmented")}
    assert raw["random"] < raw["augmented"] < raw["plain"]
    assert at_end(table, "random").min() > 5 * at_end(table, "augmented").max()
    assert at_end(table, "random", "insensitive", metric="softmax_js").all()


def test_upright_digits_are_learned_and_turned_ones_only_where_the_recipe_says_so(out):
    ds = ek.open(out / "study.zarr")
    accuracy = (ds.prediction == ds.label).mean("sample").groupby("recipe").mean()
    assert accuracy.sel(recipe=["plain", "augmented", "equivariant"], element="e").min() > 0.85
    assert accuracy.sel(recipe=["augmented", "equivariant"]).min() > 0.8
    assert accuracy.sel(recipe="plain", element=["r90", "r270"]).max() < 0.4


def test_pages_show_the_verdicts_and_every_figure(out):
    page = (out / "01_augmentation_or_equivariant_layers.html").read_text()
    assert re.search(r"random weights can look more invariant", page)
    notebook = nbformat.read("notebooks/01_augmentation_or_equivariant_layers.ipynb", 4)
    saved = re.findall(r'figures/(\w+)"', "".join(cell.source for cell in notebook.cells))
    assert len(saved) >= 6
    for name in saved:
        assert (out / "figures" / f"{name}.svg").stat().st_size > 1000
        assert f"{name}.png" in page


def test_the_first_notebook_slices_by_layer_element_and_class(out):
    notebook = nbformat.read(out / "00_start_here.ipynb", 4)
    texts = "".join(
        str(o.get("data", {}).get("text/plain", "")) for c in notebook.cells if "outputs" in c for o in c.outputs
    )
    assert "blocks.4" in texts
    assert "r180" in texts
    assert "digits-" in texts
    index = (out / "index.html").read_text()
    assert index.count("done") >= 2
    assert "00_start_here_depth.png" in index
