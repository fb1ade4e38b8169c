"""A card answers its headings by the numbers, loads nothing, and has a JSON twin."""

import json
import re

import numpy as np
import pytest
import torch
import xarray as xr
import yaml
from huggingface_hub import ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results
from torch import nn

import eedkit as ek


@pytest.fixture(scope="module")
def images():
    return torch.rand(16, 1, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def results(images):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))
    return ek.measure(net, images, group="C4", labels=[0, 1, 2, 0] * 4, name="<b>net</b>", progress=False)


ACCURATE, INVARIANT, WHERE, CLASSES, PICTURES, REAL, AVERAGING, ADVICE = (
    "How accurate is it, upright and moved?",
    "How invariant is it?",
    "Where in the network does invariance arise?",
    "On which classes does it fail?",
    "On which images does it fail?",
    "Is it invariance, or insensitivity?",
    "What would averaging over the orbit buy?",
    "What to do?",
)


def sentences(card, title):
    return " ".join(next(section.sentences for section in card.sections if section.title == title))


def figure(card, title):
    return next(section.figure for section in card.sections if section.title == title)


def saying(results, *, accuracy=(1.0, 0.5), latent=None, null=-0.5):
    """The results with so many right predictions, unmoved and moved, and with these latent values by layer."""
    made = results.copy(deep=True)
    labels = results.label.values
    for element, part in zip((0, slice(1, None)), accuracy, strict=True):
        is_right = np.arange(16) < round(part * 16)
        made.prediction[0, element] = np.where(is_right, labels, (labels + 1) % 3)
    for layer, value in (latent or {}).items():
        for name in ("latent", "latent_from_x"):
            made[name].loc[{"layer": layer}] = value
        for name in ("latent_null", "latent_from_x_null"):
            made[name].loc[{"layer": layer}] = null
    made.latent_from_x.loc[{"element": "e"}] = -1
    return made


def test_sentences_hold_the_numbers_of_the_summary(results):
    said = sentences(ek.card(results), INVARIANT)
    for metric, layer, what in (("latent", "latent", "features"), ("softmax", "output", "output")):
        row = ek.summarise(results).set_index(["metric", "layer"]).loc[(metric, layer)]
        assert f"{row.relative:.2f} ({row.relative_low:.2f} to {row.relative_high:.2f}) for the {what}" in said


def test_accuracy_is_told_by_element_with_how_often_the_class_stays(results):
    right = (results.prediction == results.label).mean("sample").isel(model=0).values
    card = ek.card(results)
    said = sentences(card, ACCURATE)
    assert f"Upright: {right[0]:.0%} of 16 images are classified correctly." in said
    by_element = ", ".join(f"{name} {part:.0%}" for name, part in zip(("r90", "r180", "r270"), right[1:], strict=True))
    assert f"Moved: {right[1:].mean():.0%} ({by_element})." in said
    kept = float((results.prediction.isel(element=slice(1, None)) == results.prediction.isel(element=0)).mean())
    assert f"{kept:.0%} of the moved copies keep the class of their upright image; two different images share a" in said
    assert card.facts["numbers"]["accuracy.lowest"] == pytest.approx(right[1:].min())


def test_extremes_are_named_as_they_lie(results):
    tilted = saying(results, latent={"latent": -0.8})
    tilted.latent_from_x.loc[{"layer": "latent", "element": "r90", "sample": [2, 6]}] = 0.0
    tilted.prediction[0, 1:, [2, 6, 10, 14]] = 0
    card = ek.card(tilted)
    # of 16 images 14 at .4 of the null's gap, and 2 at twice that gap
    high = ((14 * 0.4 + 2 * 2.0) / 16) ** 0.5
    assert f"Least under r180, r270 (0.63), most under r90 ({high:.2f})" in sentences(card, INVARIANT)
    on_classes = sentences(card, CLASSES)
    assert "Features change least in class 0, 1 (0.63), most in class 2" in on_classes
    assert "right least often in class 2 (0%), most often in class 0" in on_classes


@pytest.mark.parametrize(
    ("values", "said"),
    [
        # from √0.9 / √0.5 to √0.2 / √0.5
        (
            (-0.1, -0.1, -0.1, -0.8, -0.8),
            "Most from 2 to latent: there the relative deviation of the features falls by 0.71.",
        ),
        (
            (-0.9, -0.8, -0.7, -0.6, -0.6),
            "never falls by 0.05 or more from one layer to the next. It is 0.45 at 0 and 0.89 at 3.",
        ),
        (
            (-0.9, -0.1, -0.7, -0.6, -0.6),
            "On the whole nowhere: the relative deviation of the features is 0.45 at 0 and 0.89 at 3. It falls most from 1 to 2, by 0.57.",
        ),
        (
            (-0.6, -0.61, -0.6, -0.6, -0.6),
            "At no layer: the relative deviation of the features never falls by 0.05 or more from one layer to the next.",
        ),
        ((-1, -1, -1, -1, -1), "At every layer: the features are the same for an image and its moved copies"),
    ],
    ids=["falls", "rises", "falls and rises", "hardly changes", "exact everywhere"],
)
def test_where_it_arises_and_no_fall_by_nothing(results, values, said):
    layers = dict(zip(("0", "1", "2", "latent", "3"), values, strict=True))  # 3 is the head, behind its input
    found = sentences(ek.card(saying(results, latent=layers)), WHERE)
    assert said in found
    assert "0.00" not in found


def without_null(ds):
    return ds.drop_vars([name for name in ds.data_vars if name.endswith("_null")])


def one_class(ds):
    return ds.assign(prediction=(ds.prediction * 0 + 2).astype("int32"))


def undefined(ds):
    made = ds.copy(deep=True)
    for name in ds.data_vars:
        if made[name].dtype.kind == "f":
            made[name][:] = np.nan
    made.prediction[:] = -1
    return made


@pytest.mark.parametrize(
    ("make", "real", "advice"),
    [
        (lambda ds: saying(ds, accuracy=(1, 1), latent={"latent": -1}), "Invariance, exact within rounding: different images have different features, moved copies have the same.", "Accuracy is 1.00 upright and 1.00 under turns: nothing needs to be done for turns, unless the answer depends on them."),
        (lambda ds: saying(ds, latent={"latent": -0.95}), "Invariance: moved copies are 0.32 times as far apart as different images.", "Accuracy falls by 0.50 under turns: if turns occur in use, train with them; if the answer depends on the turns, do not."),
        (lambda ds: saying(ds, latent={"latent": -0.75}), "Invariance in part: moved copies are 0.71 times as far apart", "Accuracy falls by 0.50"),
        (lambda ds: saying(ds, latent={"latent": -0.5}), "Neither: moved copies are 1.00 times as far apart as different images, so there is no invariance to explain.", "Accuracy falls by 0.50"),
        (lambda ds: saying(ds, latent={"latent": -1}, null=-1), "Insensitivity: even different images have the same features, within rounding.", "Accuracy falls by 0.50"),
        (lambda ds: without_null(saying(ds)), "Not known: measured without a null", "Accuracy falls by 0.50"),
        (lambda ds: one_class(saying(ds, latent={"latent": -0.95})), "Partly insensitivity: every image gets the same class, although features differ (moved copies are 0.32 times as far apart", "First see why every image gets the same class; until then nothing follows"),
        (lambda ds: saying(ds, latent={"latent": -0.95}).drop_vars("label"), "Invariance: ", "The predicted class changes for 50% of the moved images: if turns occur in use, train with them; if the answer depends on the turns, do not."),
        (lambda ds: one_class(saying(ds, latent={"latent": -0.95})).drop_vars("label"), "Partly insensitivity: ", "First see why every image gets the same class"),
        (lambda ds: saying(ds, latent={"latent": -0.95}).drop_vars(["prediction", "confidence", "label"]), "Invariance: ", "The features change under turns by 0.32: nothing needs to be done for turns, unless the answer"),
        (lambda ds: saying(ds, latent={"latent": -0.5}).drop_vars(["prediction", "confidence"]), "Neither: ", "The features change under turns by 1.00: if turns occur in use, train with them; if the answer"),
        (undefined, "Not known: ", "Nothing follows from these numbers"),
        (lambda ds: ds.sel(element=["e"]), "Not known: ", "Measure under a group that moves images."),
    ],
    ids=["exact", "low", "in part", "near one", "null within rounding", "no null", "one class", "no labels", "one class, no labels", "no head", "no head, not invariant", "NaN everywhere", "nothing moves"],
)  # fmt: skip
def test_every_case_reads_true(results, images, make, real, advice):
    card = ek.card(make(results), images)
    assert real in sentences(card, REAL)
    assert advice in sentences(card, ADVICE)
    assert "nan" not in " ".join(s for section in card.sections for s in section.sentences)
    json.loads(card.json)
    assert card.html.endswith("</html>")


def test_one_class_is_not_called_a_class_that_stays(results):
    assert "Moved copies are right" not in sentences(ek.card(one_class(results)), CLASSES)
    said = sentences(ek.card(one_class(results)), ACCURATE)
    assert said.endswith("Every upright image is called class 2, so it means nothing that a class stays.")


def test_a_model_without_a_head_and_without_labels_has_no_accuracy(images):
    features = nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(2))
    card = ek.card(ek.measure(features, images, group="C4", progress=False), images)
    assert sentences(card, ACCURATE) == "Not known: the images have no labels."
    assert "Not known for the output: " in sentences(card, INVARIANT)


def test_a_model_that_tells_nothing_apart_is_called_insensitive(images):
    blind = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    nn.init.zeros_(blind[1].weight)
    head = nn.Sequential(blind, nn.Linear(3, 3))
    card = ek.card(ek.measure(head, images, group="C4", progress=False))
    assert sentences(card, REAL).startswith(
        "Insensitivity: even different images have the same features, within rounding."
    )


def test_what_averaging_buys_is_told_where_it_was_measured(results, images):
    assert all(section.title != AVERAGING for section in ek.card(results).sections)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(48, 3))
    net[2].weight.data *= 30  # or the gain would be 0.00
    ds = ek.measure(net, images, group="flip", metrics=["latent", "softmax_reverse"], progress=False)
    gain = float(ds.softmax_reverse.mean())
    assert sentences(ek.card(ds), AVERAGING).startswith(f"{gain:.2f} nats of log-loss (")
    none = sentences(ek.card(ds.assign(softmax_reverse=ds.softmax_reverse * 1e-9)), AVERAGING)
    assert none.startswith("Less than 0.005 nats of log-loss at 2 times the cost")


def test_images_of_a_custom_action_are_not_shown_moved_otherwise(images):
    group = ek.groups.Group("up-down", elements=("e", "u"), table=((0, 1), (1, 0)))
    action = ek.actions.Action("up-down", group, move=lambda e, z: z.flip(-2) if e else z)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    ds = ek.measure(net, images, group=action, progress=False)
    card = ek.card(ds, images)
    assert sentences(card, PICTURES).startswith("Not shown: the images were moved by the action 'up-down'")
    assert figure(card, PICTURES) is None
    assert "moves of up-down" in sentences(card, ADVICE)
    assert card.html.endswith("</html>")


def test_other_images_are_refused(results, images):
    with pytest.raises(ValueError, match="there is no image with the id"):
        ek.card(results, images[:3])


def test_requirements_pass_or_name_the_number_that_failed(results):
    made = saying(results, latent={"latent": -0.75})
    card = ek.card(made, require=["relative<=0.8", "relative<=0.7", "accuracy.moved>=0.9", "kept>=0.5"])
    assert card.failures == ["relative is 0.71, required <= 0.7", "accuracy.moved is 0.5, required >= 0.9"]
    said = sentences(card, "Does it pass?")
    assert said.startswith("Passes: relative <= 0.8. Fails: relative is 0.71, required <= 0.7.")
    assert json.loads(card.json)["failures"] == card.failures
    assert ek.card(made, require=["kept>=0.5"]).failures == []
    unlabelled = ek.card(made.drop_vars("label"), require=["accuracy.moved>=0.9"])
    assert unlabelled.failures == ["accuracy.moved has no value, required >= 0.9: the images have no labels"]
    with pytest.raises(ValueError, match=r"did you mean 'accuracy.moved'"):
        ek.card(made, require=["acuracy.moved>=0.9"])


def test_the_page_loads_nothing_and_escapes_names(results, images):
    page = ek.card(results, images).html
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)|url\((?!#)|@import", page)
    assert "<b>net" not in page
    assert "&lt;b&gt;net" in page
    labels = re.findall(r"<svg [^>]*aria-label=\"([^\"]*)\"", page)
    assert len(labels) == 4
    assert all(labels)


def test_figures_have_the_colours_of_their_page(results, images):
    page = ek.card(results, images).html
    greys = set(re.findall(r"(?:fill|stroke): #([0-9a-f]{2})\1\1", page))
    assert greys == set()
    # text on the cells of a heat map is near white or black, whatever the page is
    assert re.search(r"fill: #(fffffe|262627)", page)
    viridis = re.findall(r"fill: #440154", page)  # its least value
    assert viridis


def test_a_model_index_is_what_hugging_face_reads_and_writes(results):
    names = ["accuracy, upright (C4)", "accuracy, moved (C4)", "relative deviation of latent (C4)"]
    card = ek.card(results)
    index = card.to_model_index()
    title, evaluated = model_index_to_eval_results(index)
    assert title == "<b>net</b>"
    assert [one.metric_name for one in evaluated] == [*names, "relative deviation of softmax (C4)"]
    right = (results.prediction == results.label).mean("sample").isel(model=0).values
    assert [one.metric_value for one in evaluated[:2]] == pytest.approx([right[0], right[1:].mean()])
    row = ek.summarise(results).set_index(["metric", "layer"]).loc[("latent", "latent")]
    assert evaluated[2].metric_value == pytest.approx(row.relative)
    interval = {"low": row.relative_low, "high": row.relative_high, "confidence": 0.95}
    args = dict(evaluated[2].metric_args)
    assert (args.pop("group"), args.pop("layer"), args.pop("n")) == ("C4", "latent", 16)
    assert args == pytest.approx(interval)
    read = ModelCardData(model_name=title, eval_results=evaluated)
    assert yaml.safe_load(read.to_yaml())["model-index"] == index


def test_a_model_index_leaves_out_what_has_no_value(results):
    [entry] = ek.card(without_null(results).drop_vars(["label", "prediction", "confidence"])).to_model_index()
    assert entry["results"][0]["metrics"] == []
    assert entry["results"][0]["task"] == {"type": "image-feature-extraction"}


def test_page_and_twin_are_written_together(results, tmp_path):
    card = ek.card(results)
    page = card.save(tmp_path / "new" / "net.html")
    twin = json.loads((tmp_path / "new" / "net.json").read_text())
    assert page.read_text() == card.html
    estimates = [row["estimate"] for row in twin["summary"] if row["metric"] == "latent"]
    wanted = ek.summarise(results).query("metric == 'latent'").estimate
    np.testing.assert_allclose(estimates, wanted)
    with pytest.raises(ValueError, match=r"must end in \.html"):
        card.save(tmp_path / "net.txt")


def test_several_models_are_refused_unless_one_is_chosen(results):
    other = results.assign_coords(model=["other"])
    both = ek.concat([results, other])
    with pytest.raises(ValueError, match="choose with model="):
        ek.card(both)
    assert ek.card(both, model="other").title == "other"
    with pytest.raises(ValueError, match="no metric 'latent'"):
        ek.card(results.drop_vars(["latent", "latent_null", "latent_pair_cosine"]))


def test_a_card_says_how_images_were_made_and_whether_the_model_could_read_them(results):
    twice = xr.concat([results, results.assign_coords(sample=results.sample + 16)], "sample", data_vars="all")
    of_one_class = twice.assign(prediction=twice.prediction * 0).assign_attrs(preprocessing="resized to 33×33")
    card = ek.card(of_one_class)
    said = sentences(card, "What was measured")
    assert "Preprocessing: resized to 33×33." in said
    assert "predicts class 0 for 32 of 32 images: it may be unable to read the images, or untrained" in said
    assert sentences(card, ADVICE).startswith("First see that the model can read these images")
