"""That a plan tells what a run does, and does nothing itself."""

from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from PIL import Image
from torch import nn

import eedkit as ek
from eedkit.lab import training
from eedkit.study import plan, workers

MODELS = ["recipe:random?seed=0&widths=4,8", "recipe:plain?seed=0&widths=4,8"]


@pytest.fixture
def make(tmp_path):
    def study(**changes) -> ek.Study:
        given = {"models": MODELS, "data": ["digits/test"], "groups": ["C4"], "store": tmp_path / "a"}
        return ek.Study(**given | changes)

    return study


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Twelve images, 9 wide and 8 high."""
    for i in range(12):
        file = tmp_path / "pictures" / "ab"[i % 2] / f"{i:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (8, 9), dtype=np.uint8)).save(file)
    return tmp_path / "pictures"


def net(**_) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


@pytest.fixture
def nothing_is_made(monkeypatch):
    """From here on, training and reading weights fail the test."""
    monkeypatch.setattr(training, "fit", lambda *_, **__: pytest.fail("a network was trained"))
    for name in ("load_file", "load", "safe_open", "save_file"):
        for module in (safetensors, safetensors.torch):
            monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("weights were read"), raising=False)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("weights were read"))


def test_a_plan_trains_reads_and_writes_nothing(make, tmp_path, monkeypatch, nothing_is_made):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    study = make(models=[*MODELS, "torchvision:resnet18?weights=DEFAULT"], data=["digits/test?n=20"])
    plan = study.plan()
    assert plan.note.tolist() == ["", "", ""]
    assert (plan.seconds > 0).all()
    assert list(tmp_path.iterdir()) == []


def test_the_numbers_of_a_plan_are_those_of_the_run(make):
    study = make(models=MODELS[:1], data=["digits/train?n=600", "letters/test?n=30"], groups=["C4", "flip"], block=256)
    plan = study.plan()
    columns = ["data", "group", "model", "images", "blocks", "done", "forwards", "bytes", "seconds", "note"]
    assert list(plan) == columns
    assert plan.images.tolist() == [600, 600, 30, 30]
    assert plan.blocks.tolist() == [3, 3, 1, 1]
    assert plan.forwards.tolist() == [2400, 1200, 120, 60]
    assert plan.done.tolist() == [0, 0, 0, 0]
    seen = [0]
    with torch.no_grad():
        handle = nn.modules.module.register_module_forward_pre_hook(
            lambda module, x: seen.append(len(x[0])) if type(module).__name__ == "GroupCNN" else None
        )
        try:
            tree = study.run(progress=False)
        finally:
            handle.remove()
    # a few images more for each of the eight blocks, to find the layers
    assert 8 <= sum(seen) - sum(plan.forwards) <= 8 * 8
    for row in plan.itertuples():
        ds = tree[f"{row.data}/{row.group}"]
        real = sum(v.nbytes for v in ds.data_vars.values() if "sample" in v.dims)
        assert row.bytes == real
    after = study.plan()
    assert after.blocks.tolist() == after.done.tolist() == [3, 3, 1, 1]
    assert after.forwards.tolist() == after.seconds.tolist() == [0, 0, 0, 0]
    assert after.bytes.tolist() == plan.bytes.tolist()


@pytest.mark.parametrize("options", [{"null": False}, {"metrics": ("softmax", "latent_euclidean")}])
def test_bytes_are_those_of_the_metrics_that_are_asked_for(make, options):
    study = make(models=MODELS[:1], data=["digits/test?n=20"], **options)
    ds = study.run(progress=False)
    real = sum(v.nbytes for v in ds.data_vars.values() if "sample" in v.dims)
    assert study.plan().bytes.tolist() == [real]


def test_a_partly_done_study_is_planned_for_the_rest(make, monkeypatch):
    study = make(models=MODELS[:1], data=["digits/train?n=600"], block=256)
    measured = workers._measured
    monkeypatch.setattr(workers, "_measured", lambda work, module: measured(work, module) if work.block else 1 / 0)
    with pytest.warns(UserWarning, match="ZeroDivisionError"):
        study.run(progress=False)
    plan = study.plan()
    assert plan[["images", "blocks", "done", "forwards"]].values.tolist() == [[600, 3, 2, 256 * 4]]


def test_what_cannot_be_planned_says_why_and_the_rest_is(make, pictures):
    study = make(
        models={"net": net(), "recipe": MODELS[0]},
        data={"oblong": str(pictures), "square": f"{pictures}?size=9", "hub": "hub:owner/name/test"},
    )
    plan = study.plan().set_index(["model", "data"])
    assert (
        plan.note["net", "oblong"] == "Undefined: quarter turns need square images, got 8×9; centre-crop or pad first"
    )
    assert plan.note["recipe", "oblong"] == plan.note["net", "square"] == ""
    for name in ("net", "recipe"):
        assert "how many images hub:owner/name/test holds is known once it is fetched" in plan.note[name, "hub"]
        assert "write hub:owner/name/test?n=…" in plan.note[name, "hub"]
    noted = plan.note != ""
    assert plan[noted][["images", "forwards", "bytes", "seconds"]].isnull().all(axis=None)
    assert plan[~noted].forwards.tolist() == [48, 48, 48]


def test_a_layer_that_does_not_exist_is_in_the_notes(make):
    plan = make(models=MODELS[:1], layers=["blocks.0", "blocks.7"], data=["digits/test?n=20"]).plan()
    assert plan.note.tolist()[0].startswith("ValueError: no layer 'blocks.7'; did you mean ")


def test_images_that_are_elsewhere_count_by_n(make, tmp_path):
    elsewhere = [f"{tmp_path}/elsewhere?n=300", "hub:owner/name/test?n=2000"]
    plan = make(models=MODELS[:1], data=elsewhere, groups=["D4"]).plan()
    assert plan.note.tolist() == ["", ""]
    assert plan.images.tolist() == [300, 2000]
    assert plan.blocks.tolist() == [1, 2]
    assert plan.forwards.tolist() == [2400, 16000]


def test_images_that_are_here_count_by_what_is_here(make):
    plan = make(models=MODELS[:1], data=["digits/test?n=5000"]).plan()
    assert "has 397 images, cannot take n=5000" in plan.note[0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digits/test?n=20&channels=2", "channels must be 1, 3 or None"),
        ("digits/test?corruption=blurr&severity=3", "no corruption 'blurr'; did you mean 'blur'"),
        ("digits/test?corruption=blur", "needs a severity from 1"),
    ],
)
def test_bad_options_of_images_are_refused_at_once(make, spec, message):
    with pytest.raises(ValueError, match=message):
        make(data=[spec])


def test_a_plan_costs_a_metric_that_is_fitted_first(make):
    plan = make(models=MODELS[:1], data=["digits/test?n=20"], metrics=["channelwise_matched"]).plan()
    assert plan.note.tolist() == [""]
    assert plan.seconds[0] > 0


def test_a_model_of_one_size_is_timed_once_for_all_data(make, monkeypatch):
    asked, cost = [], plan.cost

    def noted(model, data, options):
        asked.append(data)
        return cost(model, data, options)

    monkeypatch.setattr(plan, "cost", noted)
    data = ["digits/test?n=20&size=9", "digits/test?n=20&size=17"]
    make(models=MODELS[:1], data=["digits/test", "letters/test"], groups=["C4", "flip"]).plan()
    assert len(asked) == 2
    asked.clear()
    make(models={"net": net()}, data=data).plan()
    assert asked == data


def test_a_plan_leaves_random_state_and_module_alone(make):
    module = net()
    module.train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    torch.manual_seed(0)
    state = torch.get_rng_state()
    make(models={"net": module}, data=["digits/test?n=20&size=9"]).plan()
    assert module.training
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key])
    assert torch.equal(torch.get_rng_state(), state)
