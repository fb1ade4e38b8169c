"""The bundled notebooks at `tiny`, run as `make report` runs them, and the numbers that must come out even there."""

import html
import json
import re

import nbformat
import pytest

import eedkit as ek
from eedkit.report import notebooks

pytestmark = [pytest.mark.notebook, pytest.mark.slow, pytest.mark.timeout(1200)]

MAIN = {"data": "digits/test?n=80", "group": "C4"}
STEMS = sorted(path.stem for path in notebooks.folder().glob("*.ipynb"))


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EEDKIT_CACHE", str(folder / "cache"))
        patch.setenv("LOKY_MAX_CPU_COUNT", "1")  # processes would take longer to start than these networks to train
        notebooks.report(folder / "out", profile="tiny", progress=False)
    return folder / "out"


@pytest.fixture(scope="module")
def table(out):
    return ek.summarise(ek.open(out / "tiny.study", **MAIN))


def at_end(table, recipe, column="relative", metric="latent"):
    layer = "latent" if metric.startswith("latent") else "output"
    values = table[(table.recipe == recipe) & (table.metric == metric) & (table.layer == layer)][column]
    assert len(values) == 2  # seeds
    return values


def test_the_equivariant_network_is_perfectly_invariant(table):
    for metric in ("latent", "softmax", "softmax_js"):
        assert at_end(table, "equivariant", metric=metric).abs().max() < 0.01
    regular = table[(table.metric == "channelwise_regular") & (table.recipe == "equivariant")].estimate.dropna()
    assert len(regular) == 5 * 2
    assert regular.to_numpy() == pytest.approx(-1, abs=1e-5)


def test_only_turned_images_take_the_features_away_from_1(table):
    for recipe in ("random", "plain", "from_letters", "simclr", "turns"):
        assert at_end(table, recipe).to_numpy() == pytest.approx(1, abs=0.15)
    assert at_end(table, "augmented").max() < 0.4
    for metric in ("latent_euclidean", "softmax", "softmax_js"):
        plain = at_end(table, "plain", metric=metric)
        assert plain.to_numpy() == pytest.approx(1, abs=0.15)
        assert at_end(table, "augmented", metric=metric).max() < 0.75 * plain.min()


def test_random_weights_look_invariant_until_calibrated(table):
    raw = {recipe: at_end(table, recipe, "estimate").mean() for recipe in ("random", "plain", "augmented")}
    assert raw["random"] < raw["augmented"] < raw["plain"]
    assert at_end(table, "random").min() > 2 * at_end(table, "augmented").max()


def test_the_last_maps_of_a_plain_network_do_not_turn(table):
    maps = table[(table.metric == "channelwise") & (table.recipe == "plain")].dropna(subset="relative")
    assert len(maps) == 5 * 2
    assert maps.groupby("depth").relative.mean().iloc[1:].to_numpy() == pytest.approx(1, abs=0.1)


def test_every_estimate_has_a_relative_value(table):
    of_layers = table[(table.layer != "") & table.estimate.notna()]
    assert of_layers.relative.notna().all()


def test_upright_digits_are_learned_and_turned_ones_only_where_the_recipe_says_so(out):
    ds = ek.open(out / "tiny.study", **MAIN)
    accuracy = (ds.prediction == ds.label).mean("sample").groupby("recipe").mean()
    assert accuracy.sel(recipe=["plain", "augmented", "equivariant"], element="e").min() > 0.85
    assert accuracy.sel(recipe=["augmented", "equivariant"]).min() > 0.8
    assert accuracy.sel(recipe="plain", element=["r90", "r270"]).max() < 0.4


def test_the_best_exchange_of_channels_finds_what_is_there_and_nothing_that_is_not(table):
    matched = table[table.metric == "channelwise_matched"].dropna(subset="estimate")
    assert matched[matched.recipe == "equivariant"].estimate.to_numpy() == pytest.approx(-1, abs=0.01)
    assert matched[matched.recipe == "plain"].estimate.min() > -0.95


def test_turned_views_make_self_supervised_features_more_invariant(table):
    for method in ("simclr", "barlow_twins"):
        assert at_end(table, f"{method}_augmented").max() < at_end(table, method).min()


def test_all_that_was_measured_is_in_one_store_and_the_corruptions_differ(out):
    tree = ek.open(out / "tiny.study", group="C4")
    found = ek.lab.specs.labelled(ek.summarise(tree))
    assert set(found.domain) == {"digits", "letters", "noise"}
    latent = found[(found.metric == "latent") & (found.layer == "latent") & (found.recipe == "plain")]
    means = latent.groupby(["corruption", "severity"]).estimate.mean()
    assert means.index.tolist() == [("", 0), ("blur", 1), ("blur", 5), ("noise", 1), ("noise", 5), ("static", 5)]
    assert means.nunique() == len(means)


@pytest.mark.parametrize("stem", STEMS)
def test_readings_are_shown_as_prose(out, stem):
    notebook = nbformat.read(out / f"{stem}.ipynb", 4)
    page = (out / f"{stem}.html").read_text()
    shown = []
    for cell in notebook.cells:
        if cell.cell_type != "code" or "ek.paper.readings." not in cell.source:
            continue
        data = [output.data for output in cell.outputs if "data" in output]
        assert any({"text/markdown", "text/html"} & set(one) for one in data), cell.id
        prose = [one["text/markdown"] for one in data if "text/markdown" in one]
        assert len(prose) >= cell.source.count("ek.paper.readings."), cell.id
        shown += prose
    assert len(shown) >= 2
    for prose in shown:
        assert re.search(r"[A-Za-z ]{8,}", prose)[0] in page


@pytest.mark.parametrize("stem", STEMS)
def test_pages_begin_with_their_answer_and_show_every_figure(out, stem):
    page = (out / f"{stem}.html").read_text()
    notebook = nbformat.read(notebooks.folder() / f"{stem}.ipynb", 4)
    saved = re.findall(r'figures/(\w+)"', "".join(cell.source for cell in notebook.cells))
    assert saved
    for name in saved:
        assert (out / "figures" / f"{name}.svg").stat().st_size > 1000
        assert f'src="figures/{name}.svg"' in page
    answers = [cell for cell in notebook.cells if "answer" in cell.metadata.get("tags", ())]
    assert len(answers) == 1
    answer = re.search(r'<section class="answer".*?</section>', page, re.S)[0]
    if "index" not in answers[0].metadata.tags:  # what the index opens with is a list alone
        assert 'src="figures/' in answer
        assert re.search(r"<p>[^<]*[A-Za-z ]{8,}", answer)


def test_a_second_report_keeps_every_notebook(out):
    again = notebooks.report(out, profile="tiny", progress=False).read_text()
    assert again.count("kept from ") == len(STEMS)


@pytest.mark.parametrize(("page", "section"), [("06_verdicts", "answer"), ("index", "opening")])
def test_five_verdicts_which_two_seeds_cannot_decide_lead_to_their_pages(out, page, section):
    content = re.search(rf'<section class="{section}".*?</section>', (out / f"{page}.html").read_text(), re.S)[0]
    lines = re.findall(r"<li>.*?</li>", content, re.S)
    for line, stem in zip(lines, ("01_", "04_", "02_", "03_", "05_"), strict=True):
        assert "<strong>Not testable here</strong>" in line
        link = re.search(r'href="([^"]+)"', line)[1]
        assert link.startswith(stem)
        assert (out / link).exists()


def test_the_first_notebook_slices_by_layer_element_and_class(out):
    notebook = nbformat.read(out / "00_start_here.ipynb", 4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    texts = "".join(output.get("data", {}).get("text/plain", "") for output in outputs)
    for name in (
        "blocks.4",
        "Relative deviation by element: lowest for `r180`",
        "Relative deviation by label: lowest for",
    ):
        assert name in texts
    assert 'src="figures/00_start_here_' in (out / "index.html").read_text()


def test_the_real_network_mirrors_its_maps_and_random_weights_look_more_invariant(out):
    table = ek.summarise(ek.open(out / "tiny_photographs.study", group="flip"))
    ends = table[table.layer.isin(["blocks.6.0", "latent"])].set_index(["model", "metric", "layer"])
    maps, features = ("channelwise", "blocks.6.0"), ("latent", "latent")
    assert ends.relative["trained", *maps] < 0.45 < 0.85 < ends.relative["random 0", *maps]
    assert ends.relative["trained", *features] < 0.3 < ends.relative["random 0", *features]
    assert ends.estimate["random 0", *features] < ends.estimate["trained", *features]


def test_samples_of_rotations_approach_the_finest_finite_group(out):
    table = ek.summarise(ek.open(out / "tiny_beyond.study")).query("layer == 'latent'")
    estimates = table.set_index("group").estimate
    assert estimates["C4"] == pytest.approx(-1, abs=1e-5)  # group convolutions over C4
    assert estimates["C16"] > -0.99
    (sample,) = table[table.element_error.notna()].itertuples()
    assert sample.group == "SO(2)?n=8&seed=1"
    assert abs(sample.estimate - estimates["C16"]) < 4 * sample.element_error


def test_anti_aliased_strides_keep_the_answer_when_an_image_moves(out):
    ds = ek.open(out / "tiny_beyond.study", group="shift17").load()
    kept = (ds.prediction == ds.prediction.sel(element="e")).mean(["element", "sample"]).to_series()
    (antialiased,) = kept[kept.index.str.contains("antialiased=true")]
    (strided,) = kept[~kept.index.str.contains("antialiased=true")]
    assert antialiased > strided + 0.03


def test_the_card_of_ones_own_model_is_saved_with_its_twin(out):
    page = (out / "cards" / "your_own_model.html").read_text()
    facts = json.loads((out / "cards" / "your_own_model.json").read_text())
    assert facts["model"] in html.unescape(page)
    assert (facts["images"], facts["group"]) == (60, "C4")


@pytest.mark.parametrize("name", ["fashion", "gpu", "paper"])
def test_other_profiles_name_models_and_images_that_a_study_takes(name, tmp_path):
    runs, _ = notebooks.plan(tmp_path, profile=name)
    for run in runs:
        told = run.parameters
        if "training" not in told:
            continue
        recipes = [recipe for recipe in ek.lab.recipes.recipes() if not recipe.startswith("random")]
        models = ek.lab.models.pool(recipes, seeds=1, **told["training"])
        data = [told[key] for key in ("data", "pool_data", "to_corrupt") if key in told] + told.get("domains", [])
        study = ek.Study(models=models, data=data, groups=["C4"], store=tmp_path / "a.study")
        assert list(study.models) == models
        if told.get("others"):
            ek.Study(models=told["others"], data=[told["others_data"]], groups=["C4"], store=tmp_path / "a.study")


def test_the_papers_list_of_models_can_be_planned_without_images_or_weights(tmp_path):
    runs, _ = notebooks.plan(profile="paper", notebooks=["02_invariance_without_learning"])
    told = runs[0].parameters
    models = [model for model in told["others"] if "resnet18" in model]
    study = ek.Study(
        models=models, data=[told["others_data"]], groups=["C4"], store=tmp_path / "a.study", metrics=["latent"]
    )
    plan = study.plan(progress=False)
    assert plan.forwards.tolist() == [4 * 5000] * 2
    assert plan.note.tolist() == ["", ""]
    assert not (tmp_path / "a.study").exists()
