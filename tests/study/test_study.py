"""What a study is, what it refuses and when, and that what it gives is what `measure` gives."""

import sys
from collections import Counter
from dataclasses import FrozenInstanceError, fields
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
import yaml
from torch import nn

import eedkit as ek
from eedkit.lab import images, recipes, training
from eedkit.study import plan, workers
from eedkit.study.files import Folder, StoreError
from eedkit.study.store import Store

from .conftest import MODELS, Net, assert_equals, assert_same, files_in, measured

DATA = "digits/test?n=20"

# --- the value


def test_a_study_is_a_frozen_value(make, tmp_path, monkeypatch):
    net = Net()
    given = {"a": net, "b": MODELS[0]}
    study = make(models=given, data={"mine": DATA}, groups=("C4", "shift2*flip"))
    given["c"] = MODELS[1]
    assert (study.models, study.data, study.groups) == (
        {"a": net, "b": MODELS[0]},
        {"mine": DATA},
        ("C4", "shift2*flip"),
    )
    assert make(models=MODELS).models == {spec: spec for spec in MODELS}
    with pytest.raises(FrozenInstanceError):
        study.seed = 1
    assert make(store="/a") == make(store="/a") != make(store="/a", seed=1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert make(store="runs/a").store == str(tmp_path / "runs/a")
    assert make(store=Path("~/a")).store == str(tmp_path / "home/a")


def metric_of(features) -> ek.Metric:
    """A custom metric of vectors."""
    return ek.Metric("mine", "vectors", ek.distances.euclidean, features=features)


WRONG = {
    "models": [
        (MODELS[0], "models must be a list of specs, or a mapping .* got 'recipe:random"),
        (None, "models must be a list of specs, .* got None"),
        ({}, "models is empty; expected specs"),
        ([nn.ReLU()], r"models must be .*specs, or a mapping from names to specs or modules, got ReLU\(\)"),
        ({"a": 3}, "models must be specs, .* got 'a': 3"),
        ({1: MODELS[0]}, "models must be specs, .* got 1: "),
        ([MODELS[0], MODELS[0]], "models holds something twice: .*recipe:random"),
        ({"a b": MODELS[0], "a-b": MODELS[1]}, "models: 'a b' and 'a-b' would have one place in the store"),
        ({"Net": MODELS[0], "net": MODELS[1]}, "models: 'Net' and 'net' would have one place in the store"),
        (["recipe:randm"], "no recipe 'randm'; did you mean 'random'"),
        (["recipe:random?sed=1"], "no option 'sed'; did you mean 'seed'"),
        (["file:nowhere.safetensors"], "no file .*nowhere.safetensors"),
        ([[MODELS[0]]], r"models must be .*specs, .* got \['recipe"),
    ],
    "data": [
        (DATA, "data must be a list of specs of images, .* got 'digits/test"),
        ([Path("x")], "data must be .*specs of images, .* got PosixPath"),
        ({"a": Net()}, "data must be specs of images, .* got 'a': Net"),
        (["digits/test", "digits-test"], "'digits/test' and 'digits-test' would have one place in the store"),
        (["digits/test?sise=9"], "no option 'sise'; did you mean 'size'"),
        (["digits/test?channels=2"], "channels must be 1, 3 or None"),
        (["digits/test?corruption=blur"], "needs a severity from 1"),
    ],
    "groups": [
        ("C4", "groups must be a list of names, Group or Action values, or 'module:name' of such a value, got 'C4'"),
        ([], r"groups must be a list of names, .* got \[\]"),
        (["C4", ek.groups.parse("C4")], "groups holds something twice: C4, C4"),
        (["filp"], "no group 'filp'; did you mean 'flip'"),
        ([ek.METRICS["latent"]], "groups must be names, Group or Action values, .* got Metric"),
    ],
    "metrics": [
        ("latent", "metrics must be a list of names, Metric values, or 'module:name' of such a value, got 'latent'"),
        (["latnt"], "no metric 'latnt'; did you mean 'latent'"),
        (["latent", "latent"], "metrics must be one or more with different names"),
        ([3], "metrics must be names, Metric values, .* got 3 in it"),
        ([metric_of(lambda z: z.sum(1))], "metric mine: a study tells functions apart by their names, and <function <lambda"),
        ([metric_of(partial(lambda z, dim: z.sum(dim), dim=1))], "metric mine: .* has none of its own; define it by `def`"),
    ],
    "layers": [(3, "layers must be a list of 'blocks', 'all', .* got 3"), ([], "layers is empty"), (["a", "a"], "something twice: a, a")],
    "layouts": [([1], r"layouts must be a dict from names to texts, got \[1\]"), ({"a": 1}, "layouts must be .* got 'a': 1")],
    "output": [(1.5, "output.*1.5")],
    "head": [(3, "head must be str or none, got 3")],
    "null": [(1, "null must be bool, got 1"), ("within-class", "null must be bool, got 'within-class'")],
    "seed": [("0", "seed must be int, got '0'"), (True, "seed must be int, got True"), (-1, "seed must be .* got -1"), (2**70, "seed must be at least 0 and below")],
    "precision": [("float31", "no precision 'float31'; did you mean 'float32'"), (32, "no precision 32")],
    "device": [(0, "device must be str, got 0"), ("cdua", "device.*'cdua'"), ("mps", "device must be .* got 'mps'"), ("meta", "got 'meta'")],
    "batch_size": [(0, "batch_size must be a whole number from 1 on"), (1.5, "got 1.5"), ("8", "got '8'")],
    "block": [(0, "block must be at least 1, got 0"), (None, "block must be int, got None"), (True, "got True")],
    "store": [(3, "store must be the path of a folder, or an address that fsspec knows, got 3"), ("", "store must be the path")],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "message"), [(name, *case) for name, cases in WRONG.items() for case in cases]
)
def test_a_wrong_argument_is_refused_when_the_study_is_made(make, name, value, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make(**{name: value})


# --- what is refused before anything is trained

UNFIT = [
    ({"head": "nope"}, "nope"),
    ({"layers": ["blocks.0", "blocks.7"]}, "no layer 'blocks.7'; did you mean 'blocks."),
    ({"layers": "("}, r"layers|expression|\("),
    ({"layouts": {"nope": "b c h w"}}, "nope"),
    ({"layouts": {"blocks.0": "b q"}}, "blocks.0|layout"),
    ({"output": "logits"}, "logits"),
    ({"groups": ["C4", "shift4"]}, "C4|need a height divisible by 4, got 17"),
    ({"device": "cuda"}, "device 'cuda' is not available here"),
    ({"data": ["digits/test?n=3"]}, "another image, which needs 4 images"),
    ({"data": ["digits/test?channels=3"]}, "channels is 3 in"),
    ({"groups": ["rgb"]}, "rgb permutes 3 colour channels, got images of 1"),
    ({"layers": "nope.*"}, r"no layer whose whole name matches 'nope\.\*'"),
    ({"output": "dense"}, "output='dense' needs a map"),
    ({"precision": "float64"}, "precision 'float64' needs float64 weights"),
    ({"data": ["digits/test?n=3"], "null": False, "metrics": ["channelwise_matched"]}, "which needs 4, got 3"),
    ({"precision": "float16", "models": {"doubles": Net().double()}, "data": ["digits/test?n=20&size=9"]}, "float"),
]


@pytest.mark.parametrize(("change", "message"), UNFIT)
@pytest.mark.skipif(torch.cuda.is_available(), reason="one of the cases asks for a GPU that is not there")
def test_what_cannot_be_measured_is_refused_before_anything_is_trained(make, monkeypatch, change, message):
    monkeypatch.setattr(recipes, "train_all", lambda *_: pytest.fail("a network was trained"))
    monkeypatch.setattr(workers, "compute", lambda *_: pytest.fail("a block was computed"))
    study = make(**{"models": ["recipe:plain?seed=123&epochs=1"]} | change)
    with pytest.raises(ValueError, match=message):
        study.run(progress=False)
    # so that the same store takes what is mended
    assert not Path(study.store).exists()


def test_every_cell_that_cannot_be_measured_is_named_and_those_that_are_done_are_not_tried(make, monkeypatch):
    study = make(models={"net": Net()}, data=["digits/test?n=20&size=9"])
    study.run(progress=False)
    monkeypatch.setattr(plan, "refuse_what_cannot_be", lambda *_: pytest.fail("it was tried"))
    study.run(progress=False)
    monkeypatch.undo()
    other = make(
        models={"net": Net(), "bare": nn.Flatten()}, data=["digits/test?n=20&size=9"], head="head", store=study.store
    )
    with pytest.raises(StoreError, match="with another head"):
        other.run(progress=False)
    other = make(models={"net": Net(), "bare": nn.Flatten()}, data=["digits/test?n=20&size=9"], head="head")
    with pytest.raises(
        ValueError, match=r"^nothing was trained or measured, since digits/test.n=20&size=9 · C4 · bare: "
    ):
        other.run(progress=False)


@pytest.mark.parametrize("number", [0, -1, 1.5, "2"])
def test_workers_must_be_how_many(make, number):
    study = make()
    with pytest.raises(ValueError, match=r"workers must be how many processes, at least 1, got "):
        study.run(workers=number)
    with pytest.raises(ValueError, match=r"give workers= or client=, not both"):
        study.run(workers=1, client="tcp://127.0.0.1:9")
    missing = make(data=["digits/tset"], store=study.store)
    with pytest.raises(ValueError, match="no bundled images, folder or file 'digits/tset'; did you mean 'digits/test'"):
        missing.run(progress=False)
    assert not Path(study.store).exists()


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
    # YAML reads the key as None
    assert (
        from_yaml(f"models: ['{MODELS[0]}']\ndata: [digits/test]\ngroups: [C4]\nstore: x\nnull: false\n").null is False
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (FULL | {"metric": ["latent"]}, r"no key 'metric'; did you mean 'metrics'\?"),
        ({"models": MODELS, "store": "x"}, "no data and no groups; a study needs models, data, groups, store"),
        ("- a\n- b\n", "expected `key: value` lines with the keys models, data"),
        ("", "expected `key: value` lines"),
        ("models: [a\n", r" is not YAML: while parsing[\s\S]*; specs within \[ \] need quotes"),
        ("models: 'a\n", r" is not YAML: while scanning(?![\s\S]*need quotes)"),
        ("models: " + "[" * 5000 + "]" * 5000, " is not YAML: maximum recursion depth"),
        (FULL | {"models": ["recipe:randm"]}, "no recipe 'randm'; did you mean 'random'"),
        (FULL | {"seed": "three"}, "seed must be int, got 'three'"),
        (FULL | {"layouts": [1]}, "layouts must be a dict"),
        (FULL | {"models": None}, "models must be a list of specs"),
        (FULL | {"block": True}, "block must be int, got True"),
        (f"models:\n  a: {MODELS[0]}\n  a: {MODELS[1]}\n", "'a'.* twice"),
        ("models: !!python/object/apply:os.system ['touch owned']\n", " is not YAML: .*python/object/apply:os.system"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_yaml_file_is_named(from_yaml, text, message):
    with pytest.raises(ValueError, match=f"mine.yaml.*{message}"):
        from_yaml(text)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Modules that a study can name things of; each says that it is imported."""
    said = "open(r'{}', 'a').write(__name__ + ' ')\n".format(tmp_path / "imported")
    good = (
        "import eedkit as ek\n"
        "two = ek.groups.Group('two', ('e', 's'), ((0, 1), (1, 0)), ek.groups.parse('flip').motions)\n"
        "turns = ek.actions.Action('turns', ek.groups.parse('C4'), lambda g, z: z.rot90(g, (-2, -1)))\n"
        "mine = ek.Metric('mine', 'vectors', ek.distances.euclidean)\n"
    )
    for name, text in (("own", good), ("raises", "1 / 0\n"), ("exits", "raise SystemExit(3)\n")):
        (tmp_path / f"{name}.py").write_text(said + text)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "imported"
    for name in ("own", "raises", "exits"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": ["no_such:C4"]}, "groups: there is no no_such:C4 .*No module named 'no_such'"),
        ({"groups": ["own:nope"]}, "groups: there is no own:nope .*has no attribute 'nope'"),
        ({"groups": ["own:mine"]}, "groups: own:mine must be Group or Action, got Metric"),
        ({"groups": ["C4", "own:turns"]}, "groups holds something twice: C4, C4"),
        ({"metrics": ["raises:x"]}, "metrics: there is no raises:x .ZeroDivisionError"),
        ({"metrics": ["exits:x"]}, "metrics: there is no exits:x .SystemExit: 3"),
    ],
)
def test_what_a_module_does_is_bad_usage_with_the_files_name(from_yaml, tmp_path, own, change, message):
    given = {"models": MODELS[:1], "data": [DATA], "groups": ["C4"], "store": str(tmp_path / "a")}
    study = from_yaml(given | change)
    assert not own.exists()
    with pytest.raises(ValueError, match=f"mine.yaml: {message}"):
        study.run(progress=False)
    assert not Path(study.store).exists()


def test_status_and_plan_of_a_finished_study_run_no_code_of_its_file(from_yaml, tmp_path, own, computed):
    named = {"groups": ["own:two", "own:turns"], "metrics": ["latent", "own:mine"]}
    given = {"models": MODELS[:1], "data": [DATA], "store": str(tmp_path / "a")}
    study = from_yaml(given | named)
    assert not own.exists()
    tree = study.run(progress=False)
    assert own.read_text() == "own "
    module = sys.modules.pop("own")
    again = from_yaml(given | named)
    assert again.status().group.tolist() == again.plan().group.tolist() == ["two", "C4"]
    assert "own" not in sys.modules
    computed.clear()
    values = ek.Study(**given | {"groups": [module.two, module.turns], "metrics": ["latent", module.mine]})
    for found in (tree, again.run(progress=False), values.run(progress=False)):
        for group, known in (("two", "flip"), ("C4", "C4")):
            ds = found[f"{DATA}/{group}"].to_dataset()
            alone = measured(MODELS[0], DATA, known, metrics=["latent", module.mine])
            for name in ("latent", "mine", "latent_null"):
                np.testing.assert_array_equal(ds[name], alone[name].sel(sample=ds.sample))
    assert computed == []


# --- blocks and results


@pytest.mark.parametrize("size", [1, 256, 300])
@pytest.mark.parametrize("n", [1, 7, 8, 9, 257, 1025])
@pytest.mark.parametrize(("order", "length"), [(2, 4), (4, 4), (8, 8), (16, 16)])
def test_blocks_are_whole_chains_and_cover_all_images(make, order, length, n, size):
    bounds = make(block=size).bounds(n, order)
    assert [i for start, stop in bounds for i in range(start, stop)] == list(range(n))
    assert all(start % length == 0 for start, _ in bounds)
    assert all(stop - start >= min(n, length) for start, stop in bounds)
    # as many chains as hold the images that were asked for; what is left over makes the last chain longer
    whole = length * -(-size // length)
    assert [stop - start for start, stop in bounds[:-1]] == [whole] * (len(bounds) - 1)
    assert bounds[-1][1] - bounds[-1][0] < whole + length
    assert make(block=size, null=False).bounds(n, order) == [(i, min(i + size, n)) for i in range(0, n, size)]


def test_a_study_gives_what_measure_gives(make):
    study = make(models=MODELS[:2], data=["digits/train?n=600"], groups=["C4", "flip"], block=256, metrics=["channelwise", "latent", "softmax", "latent_euclidean"])  # fmt: skip
    tree = study.run(progress=False)
    for group in study.groups:
        parts = [measured(spec, "digits/train?n=600", group, metrics=list(study.metrics)) for spec in MODELS[:2]]
        wanted = ek.concat(parts, recipe=["random"] * 2, seed=[0, 1])
        assert_equals(tree[f"digits/train?n=600/{group}"].to_dataset(), wanted, latent_pair_cosine=1e-12)
    xr.testing.assert_identical(ek.open(study.store).load(), tree.load())
    # which needs coordinates in memory, as `open` promises
    assert ek.open(study.store, group="C4").latent.groupby("label").mean().sizes["label"] == 10


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
    assert_equals(
        found, measured(MODELS[0], "digits/test?n=40", "C4", metrics=["latent", MINE]), latent_pair_cosine=1e-12
    )
    before = len(computed)
    again = make(metrics=["latent", ek.Metric(**vars(MINE))], data=["digits/test?n=40"], store=study.store)
    assert_same(again.run(progress=False), found)
    changes = [{"distance": ek.distances.negative_cosine}, {"features": None}, {"where": "maps"}, {"action": ek.actions.regular}]  # fmt: skip
    for change in changes:
        other = ek.Metric(**vars(MINE) | change)
        with pytest.raises(StoreError, match=r"with another metrics: .*mine: vectors, .*\.total, "):
            make(metrics=["latent", other], data=["digits/test?n=40"], store=study.store).run(progress=False)
    assert len(computed) == before


def test_layouts_and_output_are_those_of_measure(make):
    class Named(Net):
        def forward(self, x):
            return {"aside": x.mean((1, 2, 3)), "wanted": super().forward(x)}

    asked = {"layers": ["features.0"], "layouts": {"features.0": "b h c w"}, "output": "wanted"}
    given = {"models": {"a": Named()}, "data": ["digits/test?n=20&size=9"]}
    study = make(**given, **asked)
    wanted = ek.measure(Named(), images.load(*given["data"]), group="C4", name="a", progress=False, **asked)
    found = study.run(progress=False)
    assert_equals(found, wanted, latent_pair_cosine=1e-12)
    assert found.layout.sel(layer="features.0").item() == "b h c w"
    for change in ({"layouts": None}, {"output": "aside"}):
        with pytest.raises(StoreError, match=f"with another {next(iter(change))}: "):
            make(**given, store=study.store, **asked | change).run(progress=False)


def test_models_of_every_kind_of_output_stand_together(make):
    class NotANumber(Net):
        def forward(self, x):
            return super().forward(x) * float("nan")

    kinds = {"two": Net(), "one": Net(1), "features": nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()), "nan": NotANumber()}
    with pytest.warns(UserWarning, match="1 of 4 cells failed or lack samples"):
        ds = make(models=kinds, data=["digits/test?n=20&size=9"]).run(progress=False)
    assert ds.model.values.tolist() == list(kinds)
    assert (ds.prediction.sel(model="two") >= 0).all()
    assert (ds.prediction.sel(model=["one", "features", "nan"]) == -1).all()
    assert ds.latent.sel(model=["two", "one"], layer="latent").notnull().all()
    alone = make(models={"a": kinds["features"]}, data=["digits/test?n=20&size=9"], metrics=["latent"]).run(
        progress=False
    )
    assert {"prediction", "confidence"}.isdisjoint(alone.data_vars)


@pytest.mark.parametrize("name", ["../here/pictures", "./pictures/", "pictures"])
def test_data_may_be_named_by_any_path(make, pictures, tmp_path, monkeypatch, name):
    pictures.rename((tmp_path / "here").mkdir() or tmp_path / "here" / "pictures")
    monkeypatch.chdir(tmp_path / "here")
    tree = make(data=[name], groups=["C4", "flip"], metrics=["softmax"]).run(progress=False)
    assert sorted(node.path.split("/")[-1] for node in tree.subtree if node.has_data) == ["C4", "flip"]


# --- running


def test_what_is_done_is_read_once_and_not_measured_again(make, computed, monkeypatch):
    study = make(models=MODELS[:2], data=["digits/train?n=600"], block=256)
    first = study.run(progress=False).load()
    assert computed == [(spec, block) for spec in MODELS[:2] for block in range(3)]
    times, read = Counter(), Folder.read
    monkeypatch.setattr(Folder, "read", lambda folder, name: times.update([name]) or read(folder, name))
    assert_same(study.run(progress=False), first)
    assert len(computed) == 6
    assert [times[name] for name in files_in(Store(study.store)) if "block-" in name] == [1] * 6


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
    two = make(models=MODELS[1:2], store=one.store)
    one.run(progress=False)
    assert two.run(progress=False).model.values.tolist() == MODELS[1:2]
    assert one.run(progress=False).model.values.tolist() == MODELS[:1]
    assert ek.open(one.store).model.values.tolist() == MODELS[:2]
    assert make(models=MODELS[:2], store=one.store).run(progress=False).model.values.tolist() == MODELS[:2]
    assert len(computed) == 2


COLUMNS = ["data", "group", "model", "blocks", "done", "flawed", "running", "failed", "missing", "reason"]


def test_status_before_mid_way_and_after(make, monkeypatch):
    study = make(models=MODELS[:2], data={"d": "digits/train?n=600"}, block=256)
    status = study.status()
    assert list(status) == COLUMNS
    assert status.values.tolist() == [["d", "C4", spec, 0, 0, 0, 0, 0, 0, "not begun"] for spec in MODELS[:2]]
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


def test_a_training_that_fails_costs_its_own_cells(make, tmp_path, monkeypatch):
    joblib = pytest.importorskip("joblib")
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


def test_a_study_warns_of_models_that_may_not_read_their_images(make):
    models = ["torchvision:squeezenet1_1?seed=0&size=33", MODELS[0]]
    study = make(models=models, data=["digits/test?n=24"], groups=["flip"], metrics=["latent"])
    with pytest.warns(UserWarning, match="squeezenet1_1.* for 24 of 24 images: it may be unable to read") as caught:
        study.run(progress=False)
    assert not [warning for warning in caught if MODELS[0] in str(warning.message)]
