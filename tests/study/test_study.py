"""What a study is, and that what it gives is what `measure` gives."""

import importlib
import itertools
import sys
from collections import Counter
from dataclasses import FrozenInstanceError, fields
from functools import partial
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
import xarray as xr
import yaml
from PIL import Image
from torch import nn

import eedkit as ek
from eedkit.lab import images, models, training
from eedkit.store.cells import Store
from eedkit.store.files import Folder, StoreError
from eedkit.study import workers

WIDTHS = "widths=4,8"
MODELS = [f"recipe:random?seed={seed}&{WIDTHS}" for seed in range(2)]
DATA = "digits/test?n=20"


@pytest.fixture
def make(tmp_path):
    """Studies in stores of their own, of one model, twenty images and one group unless told otherwise."""
    numbers = itertools.count()

    def study(**changes) -> ek.Study:
        given = {"models": MODELS[:1], "data": [DATA], "groups": ["C4"], "store": tmp_path / f"{next(numbers)}"}
        return ek.Study(**given | changes)

    return study


@pytest.fixture
def computed(monkeypatch) -> list[tuple[str, int]]:
    """Model and block of whatever is measured from here on."""
    found, measured = [], workers._measured

    def noted(work, module):
        found.append((work.cell.model, work.block))
        return measured(work, module)

    monkeypatch.setattr(workers, "_measured", noted)
    return found


class Net(nn.Module):
    """A small network whose scores, or features, may be altered."""

    def __init__(self, outputs: int = 3):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(4, outputs)

    def forward(self, x):
        return self.head(self.features(x))


def folder(path: Path, n: int, pixels) -> Path:
    """A folder of images in two classes; `pixels(i)` are those of number i."""
    for i in range(n):
        file = path / "ab"[i % 2] / f"{i:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(i)).save(file)
    return path


def measured(spec: str, data: str, group: str, **options) -> xr.Dataset:
    """A recipe measured without any study."""
    loaded = models.load(spec)
    seen = images.load(data, size=loaded.size, channels=loaded.channels)
    return ek.measure(loaded.model, seen, group=group, head=loaded.head, name=spec, progress=False, **options)


def assert_equals(found: xr.Dataset, wanted: xr.Dataset, **close: float):
    """Every variable and coordinate that `wanted` has, with its attributes, by sample id; `close` gives tolerances."""
    found, wanted = found.load(), wanted.sel(sample=found.sample)
    assert set(wanted.data_vars) == set(found.data_vars)
    assert set(wanted.coords) <= set(found.coords)
    for name in set(wanted.variables) - set(close):
        xr.testing.assert_identical(found[name].variable.to_base_variable(), wanted[name].variable.to_base_variable())
    for name, tolerance in close.items():
        np.testing.assert_allclose(found[name], wanted[name], rtol=tolerance)


# --- the value


def test_specs_of_a_list_name_themselves(make):
    study = make(models=MODELS, data={"mine": DATA}, groups=("C4", "shift2*flip"))
    assert study.models == {spec: spec for spec in MODELS}
    assert study.data == {"mine": DATA}
    assert study.groups == ("C4", "shift2*flip")
    net = Net()
    given = {"a": net, "b": MODELS[0]}
    study = make(models=given)
    given["c"] = MODELS[1]
    assert list(study.models) == ["a", "b"]
    assert study.models["a"] is net


def test_a_study_is_a_frozen_value(make):
    study = make()
    with pytest.raises(FrozenInstanceError):
        study.seed = 1
    assert study == make(store=study.store) != make(store=study.store, seed=1)


def test_the_store_stays_wherever_the_process_goes(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert make(store="runs/a").store == str(tmp_path / "runs/a")
    assert make(store=Path("~/a")).store == str(tmp_path / "home/a")


def test_making_a_study_touches_nothing(make, monkeypatch):
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    monkeypatch.setattr(images, "load", lambda *_, **__: pytest.fail("images were loaded"))
    assert not Path(make().store).exists()


def metric_of(features) -> ek.Metric:
    """A custom metric of vectors."""
    return ek.Metric("mine", "vectors", ek.distances.euclidean, features=features)


WRONG = {
    "models": [
        (MODELS[0], "models must be a list of specs, or a mapping .* got 'recipe:random"),
        (None, "models must be a list of specs, .* got None"),
        ([], "models is empty; expected specs"),
        ({}, "models is empty; expected specs"),
        ([nn.ReLU()], r"models must be .*specs, or a mapping from names to specs or modules, got ReLU\(\)"),
        ({"a": 3}, "models must be specs, .* got 'a': 3"),
        ({1: MODELS[0]}, "models must be specs, .* got 1: "),
        ([MODELS[0], MODELS[0]], "models holds something twice: .*recipe:random"),
        ({"a b": MODELS[0], "a-b": MODELS[1]}, "models: 'a b' and 'a-b' would have one place in the store"),
        ({"Net": MODELS[0], "net": MODELS[1]}, "models: 'Net' and 'net' would have one place in the store"),
        (["recipe:randm"], "no recipe 'randm'; did you mean 'random'"),
        (["recip:random"], "no kind of model 'recip'; did you mean 'recipe'"),
        (["recipe:random?sed=1"], "no option 'sed'; did you mean 'seed'"),
        ({"a": "torchvision:resnet81"}, "no torchvision classifier 'resnet81'; did you mean"),
        (["file:nowhere.safetensors"], "no file .*nowhere.safetensors"),
        ([{"a": MODELS[0]}], "models must be .*specs, .* got {'a': "),
        ([[MODELS[0]]], r"models must be .*specs, .* got \['recipe"),
    ],
    "data": [
        (DATA, "data must be a list of specs of images, .* got 'digits/test"),
        ([], "data is empty; expected specs of images"),
        ([Path("x")], "data must be .*specs of images, .* got PosixPath"),
        ({"a": Net()}, "data must be specs of images, .* got 'a': Net"),
        ([DATA, DATA], "data holds something twice: digits/test"),
        (["digits/test", "digits-test"], "'digits/test' and 'digits-test' would have one place in the store"),
        (["digits/test?sise=9"], "no option 'sise'; did you mean 'size'"),
        (["digits/test?n=many"], "option 'n' must be a whole number, got 'many'"),
    ],
    "groups": [
        ("C4", "groups must be a list of names, Group or Action values, or 'module:name' of such a value, got 'C4'"),
        ([], r"groups must be a list of names, .* got \[\]"),
        (["C4", "C4"], "groups holds something twice: C4, C4"),
        (["filp"], "no group 'filp'; did you mean 'flip'"),
        ([4], "groups must be names, Group or Action values, .* got 4 in it"),
        ([ek.METRICS["latent"]], "groups must be names, Group or Action values, .* got Metric"),
        (["no_such:C4"], "groups: there is no no_such:C4 .*No module named 'no_such'"),
        (["eedkit.theory.groups:C4"], "groups: there is no eedkit.theory.groups:C4 .*has no attribute 'C4'"),
        (["eedkit.theory.groups:parse"], "groups must be names, Group or Action values, .* got <function parse"),
        (["C4", ek.groups.parse("C4")], "groups holds something twice: C4, C4"),
        (["C4", "C04"], "C4"),
    ],
    "metrics": [
        ("latent", "metrics must be a list of names, Metric values, or 'module:name' of such a value, got 'latent'"),
        ([], r"metrics must be a list of names, .* got \[\]"),
        (["latnt"], "no metric 'latnt'; did you mean 'latent'"),
        (["latent", "latent"], "metrics must be one or more with different names"),
        ([3], "metrics must be names, Metric values, .* got 3 in it"),
        (["no_such:mine"], "metrics: there is no no_such:mine"),
        (["eedkit:no_such"], "metrics: there is no eedkit:no_such"),
        (["eedkit:METRICS"], "metrics must be names, Metric values, .* got {'boxes'"),
        (
            [metric_of(lambda z: z.sum(1))],
            "metric mine: a study tells functions apart by their names, and <function <lambda>",
        ),
        (
            [metric_of(partial(lambda z, dim: z.sum(dim), dim=1))],
            "metric mine: .* has none of its own; define it by `def`",
        ),
    ],
    "layers": [
        (3, "layers must be a list of 'blocks', 'all', an expression, or module paths, got 3"),
        (None, "layers must be .* got None"),
        ([], "layers is empty"),
        ([3], "layers must be .* got 3"),
        (["a", "a"], "layers holds something twice: a, a"),
    ],
    "head": [(3, "head must be str or none, got 3")],
    "null": [(1, "null must be bool, got 1"), ("within-class", "null must be bool, got 'within-class'")],
    "seed": [
        ("0", "seed must be int, got '0'"),
        (True, "seed must be int, got True"),
        (1.0, "seed must be int, got 1.0"),
        (None, "seed must be int, got None"),
        (-1, "seed must be .* got -1"),
    ],
    "precision": [
        ("float31", "no precision 'float31'; did you mean 'float32'"),
        (32, "precision must be str, got 32"),
    ],
    "device": [
        (0, "device must be str, got 0"),
        (torch.device("cpu"), "device must be str, got device"),
        ("cdua", "device.*'cdua'"),
    ],
    "batch_size": [
        (0, "batch_size must be a whole number from 1 on"),
        (1.5, "batch_size must be int or none, got 1.5"),
        ("8", "batch_size must be int or none, got '8'"),
    ],
    "block": [
        (0, "block must be at least 1, got 0"),
        (None, "block must be int, got None"),
        (256.0, "block must be int, got 256.0"),
    ],
    "time_limit": [
        ("60", "time_limit must be int or float or none, got '60'"),
        (True, "time_limit must be int or float or none, got True"),
        (0, "time_limit must be seconds above 0, or None, got 0"),
        (float("nan"), "time_limit must be seconds above 0, or None, got nan"),
    ],
    "store": [
        (3, "store must be the path of a folder, or an address that fsspec knows, got 3"),
        ("", "store must be the path of a folder"),
    ],
}


@pytest.mark.parametrize(
    ("name", "value", "message"), [(name, *case) for name, cases in WRONG.items() for case in cases]
)
def test_a_wrong_argument_is_refused_at_once(make, name, value, message):
    with pytest.raises(ValueError, match=message):
        make(**{name: value})


def test_modules_of_one_architecture_may_differ_in_case(make):
    assert make(layers=["Conv", "conv"]).layers == ("Conv", "conv")


# --- YAML

FULL = {
    "models": {"a": MODELS[0], "b": MODELS[1]},
    "data": ["digits/test?n=20&size=17", "letters/test"],
    "groups": ["C4", "shift4*flip"],
    "store": "/somewhere/a",
    "metrics": ["latent", "softmax_js"],
    "layers": ["blocks.0", "blocks.1"],
    "head": "head",
    "layouts": {"blocks.0": "b c h w"},
    "output": "scores",
    "null": False,
    "seed": 3,
    "precision": "float64",
    "device": "cpu",
    "batch_size": 32,
    "block": 512,
    "time_limit": 60,
}


@pytest.fixture
def from_yaml(tmp_path):
    def read(text: str | dict) -> ek.Study:
        file = tmp_path / "mine.yaml"
        file.write_text(text if isinstance(text, str) else yaml.safe_dump(text))
        return ek.Study.from_yaml(file)

    return read


def test_a_yaml_file_says_all_that_a_study_can(from_yaml):
    assert set(FULL) == {field.name for field in fields(ek.Study)}
    assert from_yaml(FULL) == ek.Study(**FULL)
    assert from_yaml({key: FULL[key] for key in list(FULL)[:4]}) == ek.Study(**dict(list(FULL.items())[:4]))


def test_null_is_a_key_in_yaml_as_people_write_it(from_yaml):
    text = f"models: ['{MODELS[0]}']\ndata: [digits/test]\ngroups: [C4]\nstore: x\nnull: false\n"
    assert from_yaml(text).null is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (FULL | {"metric": ["latent"]}, r"mine.yaml: no key 'metric'; did you mean 'metrics'\?"),
        ({"models": MODELS, "store": "x"}, "mine.yaml: no data and no groups; a study needs models, data, groups, store"),
        ("- a\n- b\n", "mine.yaml: expected `key: value` lines with the keys models, data"),
        ("", "mine.yaml: expected `key: value` lines"),
        ("models: [a\n", "mine.yaml is not YAML"),
        (FULL | {"models": ["recipe:randm"]}, "mine.yaml: no recipe 'randm'; did you mean 'random'"),
        (FULL | {"seed": "three"}, "mine.yaml: seed must be int, got 'three'"),
        (FULL | {"metrics": [3]}, "mine.yaml: metrics must be names, Metric values, .* got 3 in it"),
        (FULL | {"groups": "C4"}, "mine.yaml: groups must be a list of names, .* got 'C4'"),
        (FULL | {"groups": ["no_such:C4"]}, "mine.yaml: groups: there is no no_such:C4"),
        (FULL | {"models": None}, "mine.yaml: models must be a list of specs"),
        (FULL | {"block": True}, "mine.yaml: block must be int, got True"),
        (FULL | {"models": [{"a": MODELS[0]}]}, "mine.yaml: models must be .*specs"),
        (yaml.safe_dump(FULL | {"models": 0}).replace("models: 0", f"models:\n  a: {MODELS[0]}\n  a: {MODELS[1]}"), "mine.yaml.*'a'.* twice"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_yaml_file_is_named(from_yaml, text, message):
    with pytest.raises(ValueError, match=message):
        from_yaml(text)


def test_a_yaml_file_runs_no_code(from_yaml, tmp_path):
    owned = tmp_path / "owned"
    with pytest.raises(ValueError, match=r"mine.yaml is not YAML.*python/object/apply:os.system"):
        from_yaml(f"models: !!python/object/apply:os.system ['touch {owned}']\n")
    assert not owned.exists()


def test_a_yaml_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        ek.Study.from_yaml(tmp_path / "nowhere.yaml")


# --- blocks


@pytest.mark.parametrize("size", [1, 256, 300])
@pytest.mark.parametrize("n", [1, 4, 7, 8, 9, 17, 257, 1025])
@pytest.mark.parametrize(("group", "length"), [("flip", 4), ("C4", 4), ("D4", 8), ("shift16", 16)])
def test_blocks_are_whole_chains_and_cover_all_images(make, group, length, n, size):
    study = make(block=size, groups=[group])
    bounds = study.bounds(n, study.options(group))
    assert [i for start, stop in bounds for i in range(start, stop)] == list(range(n))
    assert all(start % length == 0 for start, _ in bounds)
    assert all(stop - start >= min(n, length) for start, stop in bounds)
    # as many chains as hold the images that were asked for; what is left over makes the last chain longer
    whole = length * -(-size // length)
    assert [stop - start for start, stop in bounds[:-1]] == [whole] * (len(bounds) - 1)
    assert bounds[-1][1] - bounds[-1][0] < whole + length


def test_without_a_null_blocks_are_as_large_as_asked_for(make):
    study = make(block=3, null=False)
    assert study.bounds(8, study.options("C4")) == [(0, 3), (3, 6), (6, 8)]


@pytest.mark.parametrize(("n", "blocks"), [(257, 1), (515, 2)])
def test_a_longer_last_chain_gives_what_measure_gives(make, n, blocks):
    study = make(data=[f"digits/train?n={n}"], block=256)
    found = study.run(progress=False)
    assert study.status().done.tolist() == [blocks]
    assert found.sizes["sample"] == n
    # M is summed over blocks in float64, in another order
    assert_equals(found, measured(MODELS[0], f"digits/train?n={n}", "C4"), latent_pair_cosine=1e-12)
    assert_equals(ek.open(study.store), found)


@pytest.mark.parametrize(("group", "blocks"), [("flip", 4), ("D4", 3), ("shift16", 3)])
def test_blocks_join_to_what_measure_gives_in_one_go(make, group, blocks):
    """Bit for bit, nulls and chains too, in batches of a block's size."""
    metrics = [name for name in ek.COMPARED if name != "channelwise_regular"]
    asked = {"metrics": metrics, "batch_size": 32, "seed": 3}
    net, data = Net(), "digits/test?n=103&size=16"
    net.features[0] = nn.Conv2d(1, 4, 3, padding=1)
    study = make(models={"a": net}, data=[data], groups=[group], block=32, **asked)
    found = study.run(progress=False)
    assert study.status().done.tolist() == [blocks]
    wanted = ek.measure(net, images.load(data), group=group, name="a", progress=False, **asked)
    assert_equals(found, wanted, latent_pair_cosine=1e-12)
    assert all(found[f"{name}_null"].notnull().any() for name in metrics)


def test_options_of_a_group_are_those_of_the_study(make):
    study = make(groups=["C4", "flip"], metrics=["latent"], layers=["blocks.0"], seed=3, batch_size=8, null=False)
    options = study.options("flip")
    assert options.action.group.name == "flip"
    assert options.metrics == (ek.METRICS["latent"],)
    given = {name: getattr(options, name) for name in ("layers", "head", "null", "seed", "precision", "batch_size")}
    assert given == {"layers": ("blocks.0",), "head": None, "null": False, "seed": 3, "precision": "auto", "batch_size": 8}  # fmt: skip


def test_m_leaves_out_zero_vectors_in_any_block(make, tmp_path):
    """260 images, of which the last four in reading order, a block of their own, have features of zero."""
    place = np.argsort(np.random.default_rng(0).permutation(260))
    rng = np.random.default_rng(0)
    files = folder(tmp_path / "a", 260, lambda i: rng.integers(1, 255, (9, 9), dtype=np.uint8))
    black = [name for name, p in zip(images.load(str(files))["id"], place, strict=True) if p >= 256]
    for name in black:
        Image.fromarray(np.zeros((9, 9), np.uint8)).save(files / name)
    torch.manual_seed(0)

    class Dark(Net):
        def forward(self, x):
            return self.head(self.features(x + 1) * (x[:, :, 4, 4] > 0))

    for wide in (4, 8):  # the latent vector as wide as the widest other layer, and wider
        net = Dark()
        net.features[2] = nn.Sequential(nn.Conv2d(4, wide, 3), nn.AdaptiveAvgPool2d(1))
        net.head = nn.Linear(wide, 3)
        study = make(models={"a": net}, data={"mine": str(files)}, block=256, layers=["features.0"])
        found = study.run(progress=False)
        assert study.status().done.tolist() == [2]
        alone = ek.measure(net, images.load(str(files)), group="C4", layers=["features.0"], progress=False)
        assert np.isfinite(alone.latent_pair_cosine).all()
        np.testing.assert_allclose(found.latent_pair_cosine, alone.latent_pair_cosine, rtol=1e-9)


# --- what a study gives


def test_every_cell_is_what_measure_gives(make):
    data, groups = [DATA, "letters/test?n=30"], ["C4", "flip"]
    tree = make(models=MODELS, data=data, groups=groups, seed=5).run(progress=False)
    assert {node.path for node in tree.subtree if node.has_data} == {f"/{d}/{g}" for d in data for g in groups}
    for d, g in itertools.product(data, groups):
        ds = tree[f"{d}/{g}"].to_dataset()
        alone = [measured(spec, d, g, seed=5) for spec in MODELS]
        assert_equals(ds, ek.concat(alone), latent_pair_cosine=1e-12)
        for spec, wanted in zip(MODELS, alone, strict=True):
            np.testing.assert_array_equal(ds.softmax_null.sel(model=spec), wanted.softmax_null[0].sel(sample=ds.sample))
        assert ds.recipe.values.tolist() == ["random", "random"]
        assert ds.seed.values.tolist() == [0, 1]
        assert (ds.attrs["group"], ds.attrs["seed"], ds.attrs["device"]) == (g, 5, "cpu")
        assert ds.attrs["data"].startswith(f"{d} [")


def test_a_model_that_is_no_recipe_is_its_own_kind(make):
    pair = {"mine": MODELS[0], "module": Net()}
    for models_of in (pair, dict(reversed(pair.items()))):
        ds = make(models=models_of, data=["digits/test?n=20&size=17"]).run(progress=False)
        kinds = dict(zip(ds.model.values, zip(ds.recipe.values, ds.seed.values, strict=True), strict=True))
        assert kinds == {"mine": ("random", 0), "module": ("module", 0)}
    alone = make(models={"module": Net()}, data=["digits/test?n=20&size=17"]).run(progress=False)
    assert {"recipe", "seed"}.isdisjoint(alone.coords)


def test_models_of_other_layers_are_joined_with_the_reason(make):
    specs = ["recipe:random?widths=4", "recipe:random?widths=4,8"]
    ds = make(models=dict(zip("ab", specs, strict=True))).run(progress=False).load()
    assert ds.layer.values.tolist() == ["blocks.0", "blocks.1", "latent"]
    for name in ("channelwise", "latent", "latent_null", "latent_pair_cosine", "depth"):
        assert ds[name].sel(model="a", layer="blocks.1").isnull().all()
    assert ds.latent_nan_reason.sel(model="a").values.tolist() == ["", "the model has no such layer", ""]
    assert ds.latent_nan_reason.sel(model="b").values.tolist() == ["", "", ""]
    for name, spec in zip("ab", specs, strict=True):
        alone = measured(spec, DATA, "C4")
        one = ds.sel(model=name, layer=alone.layer, sample=alone.sample)
        np.testing.assert_array_equal(one.depth, alone.depth[0])
        np.testing.assert_array_equal(one.latent, alone.latent[0])


@pytest.mark.parametrize("name", ["../here/pictures", "./pictures/", "pictures"])
def test_data_may_be_named_by_any_path(make, tmp_path, monkeypatch, name):
    rng = np.random.default_rng(0)
    folder(tmp_path / "here" / "pictures", 12, lambda i: rng.integers(1, 255, (9, 9), dtype=np.uint8))
    monkeypatch.chdir(tmp_path / "here")
    tree = make(data=[name], groups=["C4", "flip"]).run(progress=False)
    assert sorted(node.path.split("/")[-1] for node in tree.subtree if node.has_data) == ["C4", "flip"]


def test_an_opened_study_can_be_grouped_by_label(make):
    study = make()
    for ds in (study.run(progress=False), ek.open(study.store)):
        # which needs coordinates in memory, as `open` promises
        assert ds.latent.groupby("label").mean().sizes["label"] == 10


def test_a_model_without_a_finite_output_spoils_no_other(make):
    class NotANumber(Net):
        def forward(self, x):
            return super().forward(x) * float("nan")

    study = make(models={"works": Net(), "nan": NotANumber()}, data=["digits/test?n=20&size=9"])
    with pytest.warns(UserWarning, match="1 of 2 cells failed or lack samples"):
        ds = study.run(progress=False)
    assert (ds.prediction.sel(model="nan") == -1).all()
    assert (ds.prediction.sel(model="works") >= 0).all()


def test_metrics_of_the_output_alone_can_be_studied(make):
    ds = make(metrics=["softmax"]).run(progress=False)
    assert_equals(ds, measured(MODELS[0], DATA, "C4", metrics=["softmax"]))


def test_a_model_with_one_output_stands_beside_a_classifier(make):
    study = make(models={"two": Net(), "one": Net(1)}, data=["digits/test?n=20&size=9"], metrics=["latent"])
    ds = study.run(progress=False)
    assert ds.latent.notnull().all()
    assert ds.model.values.tolist() == ["two", "one"]


@pytest.mark.parametrize("which", [0, 1])
def test_it_is_a_tree_if_only_one_data_set_could_be_done(make, which):
    class Picky(Net):
        def forward(self, x):
            if x.shape[-1] == (9, 17)[which]:
                raise MemoryError("too large")
            return super().forward(x)

    data = ["digits/test?n=20&size=9", "digits/test?n=20&size=17"]
    study = make(models={"a": Picky()}, data=data)
    with pytest.warns(UserWarning, match="1 of 2 cells failed"):
        tree = study.run(progress=False)
    assert isinstance(tree, xr.DataTree)
    assert [node.path for node in tree.subtree if node.has_data] == [f"/{data[1 - which]}/C4"]


def total(z):
    """The sum over positions: a feature of one's own."""
    return z.sum(1)


MINE = ek.Metric("mine", "vectors", ek.distances.euclidean, title="distance of sums", features=total)


def test_a_custom_metric_is_measured_and_resumed_by_its_value(make, computed):
    study = make(metrics=["latent", MINE], data=["digits/test?n=40"], block=20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "write", lambda *_: 1 / 0)
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            study.run(progress=False)
    found = study.run(progress=False)
    wanted = measured(MODELS[0], "digits/test?n=40", "C4", metrics=["latent", MINE])
    assert_equals(found, wanted, latent_pair_cosine=1e-12)
    assert (found.mine.attrs["long_name"], found.mine.attrs["scale"]) == ("distance of sums", "mine_norm")
    assert found.mine_norm.notnull().all()
    before = len(computed)
    again = make(metrics=["latent", ek.Metric(**vars(MINE))], data=["digits/test?n=40"], store=study.store)
    xr.testing.assert_identical(again.run(progress=False).load(), found.load())
    assert len(computed) == before
    assert "mine" in ek.open(study.store)


@pytest.mark.parametrize(
    "change",
    [{"distance": ek.distances.negative_cosine}, {"features": None}, {"where": "maps"}, {"action": ek.actions.regular}],
)
def test_another_metric_of_the_same_name_is_refused(make, computed, change):
    study = make(metrics=[MINE])
    study.run(progress=False)
    other = make(metrics=[ek.Metric(**vars(MINE) | change)], store=study.store)
    with pytest.raises(StoreError, match=r"with another metrics: .*mine: vectors, .*\.total, "):
        other.run(progress=False)
    assert len(computed) == 1


def test_two_metrics_may_not_share_a_name(make):
    with pytest.raises(ValueError, match="different names"):
        make(metrics=["latent", ek.Metric(**vars(MINE) | {"name": "latent"})])


@pytest.mark.slow
def test_a_custom_metric_reaches_other_processes(make, tmp_path):
    study = make(metrics=["latent", MINE])
    found = study.run(workers=1, progress=False).load()
    alone = make(metrics=["latent", MINE]).run(progress=False).load()
    xr.testing.assert_identical(found.drop_attrs(deep=False), alone.drop_attrs(deep=False))


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module `own` that a study can name things of."""
    (tmp_path / "own.py").write_text(
        "import eedkit as ek\n"
        "two = ek.groups.Group('two', ('e', 's'), ((0, 1), (1, 0)), ek.groups.parse('flip').motions)\n"
        "turns = ek.actions.Action('turns', ek.groups.parse('C4'), lambda g, z: z.rot90(g, (-2, -1)))\n"
        "mine = ek.Metric('mine', 'vectors', ek.distances.euclidean)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("own")
    del sys.modules["own"]


def test_groups_and_metrics_may_be_values_or_named_in_modules(make, own, from_yaml, computed):
    named = {"groups": ["own:two", "own:turns"], "metrics": ["latent", "own:mine"]}
    tree = make(groups=[own.two, own.turns], metrics=["latent", own.mine]).run(progress=False)
    study = make(**named)
    assert study.groups == (own.two, own.turns)
    assert study.metrics == ("latent", own.mine)
    again = study.run(progress=False)
    written = named | {"models": MODELS[:1], "data": [DATA], "store": study.store}
    computed.clear()
    from_file = from_yaml(written).run(progress=False)
    assert computed == []
    for group, known in (("two", "flip"), ("C4", "C4")):
        for found in (tree, again, from_file):
            ds = found[f"{DATA}/{group}"].to_dataset()
            alone = measured(MODELS[0], DATA, known, metrics=["latent", own.mine])
            for name in ("latent", "mine", "latent_null"):
                np.testing.assert_array_equal(ds[name], alone[name].sel(sample=ds.sample))


def test_layouts_and_output_are_those_of_measure(make):
    class Named(Net):
        def forward(self, x):
            return {"aside": x.mean((1, 2, 3)), "wanted": super().forward(x)}

    asked = {"layers": ["features.0"], "layouts": {"features.0": "b h c w"}, "output": "wanted"}
    net, data = Named(), "digits/test?n=20&size=9"
    study = make(models={"a": net}, data=[data], **asked)
    found = study.run(progress=False)
    wanted = ek.measure(net, images.load(data), group="C4", name="a", progress=False, **asked)
    assert_equals(found, wanted, latent_pair_cosine=1e-12)
    assert found.layout.sel(layer="features.0").item() == "b h c w"
    for change in ({"layouts": None}, {"output": "aside"}):
        with pytest.raises(StoreError, match=f"with another {next(iter(change))}: "):
            make(models={"a": net}, data=[data], store=study.store, **asked | change).run(progress=False)


def test_a_model_of_features_has_no_predictions(make):
    features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
    asked = {"data": ["digits/test?n=20&size=9"], "metrics": ["channelwise", "latent"]}
    found = make(models={"a": features}, **asked).run(progress=False)
    assert {"prediction", "confidence"}.isdisjoint(found.data_vars)
    assert found.channelwise.notnull().any()
    both = make(models={"a": features, "b": Net()}, **asked)
    found = both.run(progress=False)
    assert (found.prediction.sel(model="a") == -1).all()
    assert (found.prediction.sel(model="b") >= 0).all()


# --- running


def test_what_is_done_is_not_measured_again(make, computed):
    study = make(models=MODELS)
    first = study.run(progress=False).load()
    assert computed == [(MODELS[0], 0), (MODELS[1], 0)]
    xr.testing.assert_identical(study.run(progress=False).load(), first)
    assert len(computed) == 2


def test_a_finished_study_reads_every_block_once(make, monkeypatch):
    study = make(models=MODELS, data=["digits/train?n=600"], block=256)
    study.run(progress=False)
    times, read = Counter(), Folder.read

    def noted(self, name):
        times[name] += 1
        return read(self, name)

    monkeypatch.setattr(Folder, "read", noted)
    study.run(progress=False)
    blocks = {name: times[name] for name in Folder(study.store).names() if "block-" in name}
    assert list(blocks.values()) == [1] * 6


def test_what_failed_is_tried_again_and_nothing_else(make, computed, monkeypatch):
    study = make(data=["digits/train?n=600"], block=256)
    load, calls = workers._opened, []

    def at_second(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError("the disk was away")
        return load(*arguments, **options)

    at_second.cache_clear = load.cache_clear
    monkeypatch.setattr(workers, "_opened", at_second)
    with pytest.warns(UserWarning, match="OSError: the disk was away"):
        study.run(progress=False)
    assert study.status()[["done", "failed"]].values.tolist() == [[2, 1]]
    computed.clear()
    found = study.run(progress=False)
    assert [block for _, block in computed] == [1]
    assert study.status().reason.tolist() == [""]
    assert_equals(found, measured(MODELS[0], "digits/train?n=600", "C4"), latent_pair_cosine=1e-12)


def test_two_studies_share_a_store_and_each_gets_its_own(make, computed):
    one = make(models=MODELS[:1])
    two = make(models=MODELS[1:], store=one.store)
    one.run(progress=False)
    assert two.run(progress=False).model.values.tolist() == MODELS[1:]
    assert one.run(progress=False).model.values.tolist() == MODELS[:1]
    assert len(computed) == 2
    assert ek.open(one.store).model.values.tolist() == MODELS
    assert make(models=MODELS, store=one.store).run(progress=False).model.values.tolist() == MODELS
    assert len(computed) == 2


def test_a_begun_cell_keeps_its_blocks(make, computed, monkeypatch):
    data = ["digits/train?n=600"]
    study = make(data=data, block=256)
    claim = Store.claim

    def stop_at_second(store, cell, block):
        if block == 1:
            raise KeyboardInterrupt
        return claim(store, cell, block)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "claim", stop_at_second)
        with pytest.raises(KeyboardInterrupt):
            study.run(progress=False)
    larger = make(data=data, store=study.store, block=1024)
    assert larger.status()[["blocks", "done", "missing"]].values.tolist() == [[3, 1, 2]]
    assert larger.plan().blocks.tolist() == [3]
    found = larger.run(progress=False)
    assert [block for _, block in computed] == [0, 1, 2]
    assert_equals(found, measured(MODELS[0], data[0], "C4"), latent_pair_cosine=1e-12)


@pytest.mark.parametrize("workers", [0, -1, 1.5, "2"])
def test_workers_must_be_how_many(make, workers):
    study = make()
    with pytest.raises(ValueError, match=r"workers must be how many processes, at least 1, got "):
        study.run(workers=workers)
    assert not Path(study.store).exists()


def test_workers_and_client_together_are_refused(make):
    with pytest.raises(ValueError, match=r"give workers= or client=, not both"):
        make().run(workers=1, client="tcp://127.0.0.1:9")


def test_images_that_are_not_there_end_a_run_at_once(make, computed):
    study = make(data=["digits/tset"])
    with pytest.raises(ValueError, match="no bundled images, folder or file 'digits/tset'; did you mean 'digits/test'"):
        study.run(progress=False)
    assert computed == []
    assert not Path(study.store).exists()


def test_other_modules_with_equal_weights_are_refused(make):
    nets = []
    for padding in (0, 1):
        torch.manual_seed(0)
        nets.append(Net())
        nets[-1].features[0] = nn.Conv2d(1, 4, 3, padding=padding)
    study = make(models={"a": nets[0]}, data=["digits/test?n=20&size=9"])
    study.run(progress=False)
    with pytest.raises(StoreError, match="with another model"):
        make(models={"a": nets[1]}, data=["digits/test?n=20&size=9"], store=study.store).run(progress=False)


# --- status

COLUMNS = ["data", "group", "model", "blocks", "done", "flawed", "running", "failed", "missing", "reason"]


def test_status_before_mid_way_and_after(make, monkeypatch):
    study = make(models=MODELS, data={"d": "digits/train?n=600"}, block=256)
    status = study.status()
    assert list(status) == COLUMNS
    assert status.values.tolist() == [["d", "C4", spec, 0, 0, 0, 0, 0, 0, "not begun"] for spec in MODELS]
    assert not Path(study.store).exists()
    seen, write = [], Store.write

    def look(store, *what):
        seen.append(study.status().iloc[:, 3:].values.tolist())
        write(store, *what)

    monkeypatch.setattr(Store, "write", look)
    study.run(progress=False)
    left = [3, 0, 0, 0, 0, 3, ""]
    assert seen[:4] == [
        [[3, 0, 0, 1, 0, 2, ""], left],
        [[3, 1, 0, 1, 0, 1, ""], left],
        [[3, 2, 0, 1, 0, 0, ""], left],
        [[3, 3, 0, 0, 0, 0, ""], [3, 0, 0, 1, 0, 2, ""]],
    ]
    assert study.status().iloc[:, 3:].values.tolist() == [[3, 3, 0, 0, 0, 0, ""]] * 2


TRAINED = "epochs=1&widths=4,4&size=9&data=digits/train?n=64"


def test_missing_weights_are_trained_by_other_processes(make, tmp_path, monkeypatch):
    monkeypatch.setenv("EEDKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(joblib, "cpu_count", lambda: 2)
    monkeypatch.setattr(training, "fit", lambda *_, **__: pytest.fail("trained in this process"))
    study = make(models=[f"recipe:plain?seed={seed}&{TRAINED}" for seed in range(2)])
    assert study.run(progress=False).sizes["model"] == 2
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_training_that_fails_costs_its_own_cells(make, tmp_path, monkeypatch):
    monkeypatch.setenv("EEDKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(joblib, "cpu_count", lambda: 1)
    fit = training.fit

    def fails_for_seed_1(*arguments, seed, **options):
        if seed == 1:
            raise ArithmeticError("the loss is no number")
        return fit(*arguments, seed=seed, **options)

    monkeypatch.setattr(training, "fit", fails_for_seed_1)
    study = make(models=[f"recipe:plain?seed={seed}&{TRAINED}" for seed in range(2)])
    with pytest.warns(UserWarning, match="the loss is no number"):
        found = study.run(progress=False)
    assert found.model.values.tolist() == list(study.models)[:1]
