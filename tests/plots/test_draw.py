"""Every figure of a result is written once, under names that can be told apart; what cannot be drawn is said."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import eedkit as ek
from eedkit.plots import draw, figures, style

METRICS = ("channelwise", "latent", "softmax", "softmax_js")
ALL = [
    "depth_profile_channelwise",
    "depth_profile_latent",
    "calibration_latent",
    "calibration_softmax",
    "orbit_rose_latent",
    "class_heatmap_softmax_js",
]


def net(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(196, 3)).eval()


def measured(names, *, group="C4", labels=(0, 1, 2, 0, 1, 2), metrics=METRICS, **options):
    images = torch.randn(6, 1, 7, 7, generator=torch.Generator().manual_seed(0))
    labels = None if labels is None else list(labels)
    return [
        ek.measure(net(k), images, group=group, name=name, labels=labels, metrics=metrics, progress=False, **options)
        for k, name in enumerate(names)
    ]


@pytest.fixture(scope="module")
def results():
    names = ["recipe:plain?seed=0", "recipe:plain?seed=1", "recipe:random?seed=0"]
    return ek.concat(measured(names), recipe=["plain", "plain", "random"], seed=[0, 1, 0])


@pytest.fixture
def legends(monkeypatch):
    """The names in the legend of every figure that is saved, by the file's stem."""
    seen, save = {}, style.save

    def look(fig, path, formats):
        texts = [text.get_text() for legend in fig.legends for text in legend.get_texts()]
        seen[path.name] = texts
        return save(fig, path, formats)

    monkeypatch.setattr(style, "save", look)
    return seen


def test_a_tree_has_a_folder_of_every_figure_per_data_set_and_group(results, tmp_path):
    tree = xr.DataTree.from_dict({"digits/test/C4": results, "letters?n=6/C4": results})
    open_before = plt.get_fignums()
    files = draw.draw(tree, tmp_path, formats=["png", "pdf"])
    expected = [
        f"{folder}/{name}.{kind}"
        for folder in ("digits-test-C4", "letters-n-6-C4")
        for name in ALL
        for kind in ("png", "pdf")
    ]
    assert sorted(file.relative_to(tmp_path).as_posix() for file in files) == sorted(expected)
    assert set(tmp_path.rglob("*.*")) == set(files)
    heads = {"png": b"\x89PNG", "pdf": b"%PDF"}
    assert all(file.read_bytes().startswith(heads[file.suffix[1:]]) for file in files)
    assert plt.get_fignums() == open_before


def test_one_dataset_has_its_figures_directly_in_the_folder_in_all_formats(results, tmp_path):
    files = draw.draw(results, tmp_path / "new" / "folder")
    assert {file.parent for file in files} == {tmp_path / "new" / "folder"}
    assert sorted({file.suffix for file in files}) == [".pdf", ".png", ".svg"]


def test_the_summary_is_computed_once_per_dataset(results, tmp_path, monkeypatch):
    calls, summarise = [], draw.summarise
    for module in (draw, figures):
        monkeypatch.setattr(module, "summarise", lambda ds: calls.append(ds) or summarise(ds))
    draw.draw(xr.DataTree.from_dict({"a/C4": results, "b/C4": results}), tmp_path, formats=["png"])
    assert len(calls) == 2


def test_results_that_are_read_when_used_give_the_same_figures(results, tmp_path, monkeypatch):
    lazy = results.chunk(sample=3).assign_coords(dict(results.coords))
    assert lazy.latent.chunks is not None
    seen = []
    monkeypatch.setattr(style, "save", lambda fig, path, _: seen.append((path.name, numbers(fig))))
    draw.draw(results, tmp_path, formats=["png"])
    draw.draw(lazy, tmp_path, formats=["png"])
    assert [name for name, _ in seen] == 2 * ALL
    for (_, now), (_, then) in zip(seen[: len(ALL)], seen[len(ALL) :], strict=True):
        assert len(now) >= 4
        np.testing.assert_allclose(now, then, atol=1e-6)


def numbers(fig):
    """Everything that lines and heatmaps of a figure show."""
    lines = [np.asarray(line.get_ydata(), dtype=float) for ax in fig.axes for line in ax.lines]
    cells = [
        np.ravel(np.asarray(mesh.get_array()))
        for ax in fig.axes
        for mesh in ax.collections
        if mesh.get_array() is not None
    ]
    return np.concatenate([*lines, *cells])


def test_seeds_of_a_recipe_are_taken_together_and_trainings_of_one_seed_are_not(results, tmp_path, legends):
    draw.draw(results, tmp_path, formats=["png"])
    assert legends["calibration_softmax"] == ["plain", "random"]
    draw.draw(results.assign_coords(seed=("model", [0, 0, 0])), tmp_path, formats=["png"])
    assert legends["calibration_softmax"] == ["plain?seed=0", "plain?seed=1", "random?seed=0"]


def test_models_are_grouped_by_the_coordinate_that_is_asked_for(results, tmp_path, legends):
    kinds = results.assign_coords(kind=("model", np.array(["one", "two", "two"], dtype=object)))
    draw.draw(kinds, tmp_path, formats=["png"], by="kind")
    assert legends["orbit_rose_latent"] == ["one", "two"]


def test_long_names_stand_in_several_lines_and_stay_different(tmp_path, legends):
    names = [f"file:weights/of/a/very/long/path/{k}.safetensors?model=torchvision:resnet50" for k in "ab"]
    draw.draw(ek.concat(measured(names)), tmp_path, formats=["png"])
    shown = legends["calibration_softmax"]
    assert [text.replace("\n", "") for text in shown] == [name.removeprefix("file:") for name in names]
    assert max(len(line) for text in shown for line in text.split("\n")) <= 20


def test_more_models_than_can_be_told_apart_go_on_in_further_figures(tmp_path, legends):
    names = [f"m{k}" for k in range(12)]
    one = measured(["m"], metrics=("latent",))[0]
    many = ek.concat([one.assign_coords(model=np.array([name], dtype=object)) for name in names])
    draw.draw(many, tmp_path, formats=["png"])
    assert legends["orbit_rose_latent-1"] + legends["orbit_rose_latent-2"] == names
    assert legends["depth_profile_latent-1"] == names[:10]
    assert "class_heatmap_latent-2" in legends


@pytest.mark.parametrize(
    ("labels", "there"), [((0, 1, 2, 0, 1, 2), True), (None, False), ((-1,) * 6, False), (tuple(range(6)), True)]
)
def test_heatmaps_of_labelled_images_alone(tmp_path, labels, there):
    files = draw.draw(measured(["m"], labels=labels)[0], tmp_path, formats=["png"])
    assert any(file.stem.startswith("class_heatmap") for file in files) == there
    assert len(files) == 5 + there


def test_no_heatmap_of_too_many_classes(tmp_path, monkeypatch, results):
    monkeypatch.setattr(draw, "CLASSES", 2)
    assert {file.stem for file in draw.draw(results, tmp_path, formats=["png"])} == set(ALL[:-1])


def test_without_a_null_there_is_no_calibration_and_profiles_are_raw(tmp_path):
    files = draw.draw(measured(["m"], null=False)[0], tmp_path, formats=["png"])
    assert {file.stem for file in files} == {n for n in ALL if "calibration" not in n}


def test_what_cannot_be_drawn_is_left_out_with_its_reason(results, tmp_path):
    undefined = results.copy(deep=True)
    undefined["channelwise"] = undefined.channelwise * np.nan
    with pytest.warns(UserWarning, match="no .* for C4") as said:
        files = draw.draw(undefined, tmp_path, formats=["png"])
    assert {file.stem for file in files} == set(ALL) - {"depth_profile_channelwise"}
    messages = [str(one.message) for one in said]
    assert len(messages) == 1
    assert messages[0].startswith("no depth_profile_channelwise for C4: no metric with relative values 'channelwise'")


def test_titles_say_data_set_and_group(results, tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(style, "save", lambda fig, *_: titles.append(fig.get_suptitle()))
    draw.draw(xr.DataTree.from_dict({"digits/test/C4": results, "b/C4": results}), tmp_path, formats=["png"])
    assert sorted(title.split("\n")[1] for title in titles) == ["b · C4"] * 6 + ["digits/test · C4"] * 6
    assert "(channelwise negative cosine)" in titles[0]


def test_titles_show_names_as_they_are(results, tmp_path, drawn_texts, monkeypatch):
    texts = []
    monkeypatch.setattr(style, "save", lambda fig, *_: texts.append(drawn_texts(fig)))
    odd = results.assign_attrs(data=r"_$\frac$ [x]", group="$C4$")
    odd["latent"] = odd.latent.assign_attrs(long_name=r"$\sqrt$")
    draw.draw(odd, tmp_path, formats=["svg"])
    assert all(r"_$\frac$ · $C4$" in shown for shown in texts)
    assert any(r"Under which element? ($\sqrt$)" in shown for shown in texts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"formats": ["pgn"]}, "no format 'pgn'; did you mean 'png'"),
        ({"formats": []}, "no format ''"),
        ({"by": "recipes"}, "no coordinate of the models 'recipes'; did you mean 'recipe'"),
        ({"by": "sample"}, "no coordinate of the models 'sample'"),
    ],
)
def test_unknown_formats_and_coordinates_are_refused_before_anything_is_written(results, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        draw.draw(results, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
