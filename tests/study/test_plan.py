"""That a plan tells what a run does, and does nothing itself."""

import re

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
import xarray as xr
from PIL import Image
from torch import nn

import eedkit as ek
from eedkit.lab import training
from eedkit.study import plan, workers

from .conftest import MODELS, Net

TRAINED = "recipe:plain?seed=0&widths=4,8"


@pytest.fixture
def nothing_is_made(monkeypatch):
    """From here on, training and reading weights fail the test."""
    monkeypatch.setattr(training, "fit", lambda *_, **__: pytest.fail("a network was trained"))
    for name in ("load_file", "load", "safe_open", "save_file"):
        for module in (safetensors, safetensors.torch):
            monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("weights were read"), raising=False)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("weights were read"))


def test_a_plan_trains_reads_and_writes_nothing_and_leaves_all_as_it_was(make, tmp_path, monkeypatch, nothing_is_made):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    module = Net().train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    torch.manual_seed(0)
    state = torch.get_rng_state()
    study = make(models={"a": TRAINED, "b": "torchvision:resnet18?weights=DEFAULT", "c": module})
    found = study.plan()
    assert found.note.tolist() == ["", "", ""]
    assert (found.seconds > 0).all()
    assert list(tmp_path.iterdir()) == []
    assert module.training
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def bytes_of(ds: xr.Dataset) -> int:
    return sum(v.nbytes for v in ds.data_vars.values() if "sample" in v.dims)


def test_the_numbers_of_a_plan_are_those_of_the_run(make):
    study = make(data=["digits/train?n=600", "letters/test?n=30"], groups=["C4", "flip"], block=256)
    found = study.plan()
    columns = ["data", "group", "model", "images", "blocks", "done", "forwards", "bytes", "seconds", "note"]
    assert list(found) == columns
    assert found.images.tolist() == [600, 600, 30, 30]
    assert found.blocks.tolist() == [3, 3, 1, 1]
    assert found.forwards.tolist() == [2400, 1200, 120, 60]
    assert found.done.tolist() == [0, 0, 0, 0]
    tree = study.run(progress=False)
    for row in found.itertuples():
        assert row.bytes == bytes_of(tree[f"{row.data}/{row.group}"].to_dataset())
    after = study.plan()
    assert after.blocks.tolist() == after.done.tolist() == [3, 3, 1, 1]
    assert after.forwards.tolist() == after.seconds.tolist() == [0, 0, 0, 0]
    assert after.bytes.tolist() == found.bytes.tolist()


@pytest.mark.parametrize("options", [{"null": False}, {"metrics": ("softmax", "latent_euclidean")}])
def test_bytes_are_those_of_the_metrics_that_are_asked_for(make, options):
    study = make(**options)
    before = study.plan().bytes.tolist()
    assert before == [bytes_of(study.run(progress=False))] == study.plan().bytes.tolist()


@pytest.mark.parametrize(("group", "passes"), [("C4", 4), ("D4", 8), ("C8", 16)])
@pytest.mark.parametrize(("cold", "batch"), [(0.5, 64), (60.0, None)])
def test_seconds_are_the_least_of_warm_ones_times_the_passes(make, monkeypatch, group, passes, cold, batch):
    """A model that takes 3 s for an image, 40 s for each block, and now and then longer, as on a busy machine."""
    clock, calls, measure = [0.0], [], plan.measure_block

    def timed(model, images, options):
        first = not calls
        calls.append((len(images), options.action.group.order))
        clock[0] += cold if first else 40 + 3 * len(images) * options.action.group.order + 100 * (len(calls) % 3 == 1)
        return measure(model, images, options)

    monkeypatch.setattr(plan, "measure_block", timed)
    monkeypatch.setattr(plan.time, "perf_counter", lambda: clock[0])
    assert make(groups=[group], batch_size=batch).plan().seconds.tolist() == [pytest.approx(20 * 3 * passes)]
    assert calls[0] == (4, passes if group != "C8" else 8)
    assert max(n for n, _ in calls) == (2 * batch if batch else 8)


def test_a_partly_done_study_is_planned_for_the_rest(make, monkeypatch):
    study = make(data=["digits/train?n=600"], block=256)
    measured = workers._measured
    monkeypatch.setattr(workers, "_measured", lambda job, places: measured(job, places) if places[0] else 1 / 0)
    with pytest.warns(UserWarning, match="ZeroDivisionError"):
        study.run(progress=False)
    assert study.plan()[["images", "blocks", "done", "forwards"]].values.tolist() == [[600, 3, 2, 256 * 4]]


def test_what_cannot_be_planned_says_why_and_the_rest_is(make, tmp_path):
    for i in range(12):
        file = tmp_path / "pictures" / "ab"[i % 2] / f"{i:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 9), 99, dtype=np.uint8)).save(file)
    pictures = tmp_path / "pictures"
    data = {"oblong": str(pictures), "square": f"{pictures}?size=9", "hub": "hub:owner/name/test"}
    found = make(models={"net": Net(), "recipe": MODELS[0]}, data=data).plan().set_index(["model", "data"])
    assert (
        found.note["net", "oblong"] == "Undefined: quarter turns need square images, got 8×9; centre-crop or pad first"
    )
    assert found.note["recipe", "oblong"] == found.note["net", "square"] == ""
    for name in ("net", "recipe"):
        assert "how many images hub:owner/name/test holds is known once it is fetched" in found.note[name, "hub"]
        assert "write hub:owner/name/test?n=…" in found.note[name, "hub"]
    noted = found.note != ""
    assert found[noted][["images", "forwards", "bytes", "seconds"]].isnull().all(axis=None)
    assert found[~noted].forwards.tolist() == [48, 48, 48]
    odd = make(layers=["blocks.0", "blocks.7"]).plan().note[0]
    assert odd.startswith("ValueError: no layer 'blocks.7'; did you mean ")


def test_images_that_are_elsewhere_count_by_n_and_others_by_what_is_here(make, tmp_path):
    elsewhere = [f"{tmp_path}/elsewhere?n=300", "hub:owner/name/test?n=2000", "digits/test?n=5000"]
    found = make(data=elsewhere, groups=["D4"], metrics=["channelwise_matched"]).plan()
    assert found.note.tolist()[:2] == ["", ""]
    assert "has 397 images, cannot take n=5000" in found.note[2]
    assert found.images.tolist()[:2] == [300, 2000]
    assert found.forwards.tolist()[:2] == [2400, 16000]


def test_a_model_of_one_size_is_timed_once_for_all_data(make, monkeypatch):
    asked, cost = [], plan.cost
    monkeypatch.setattr(plan, "cost", lambda model, data, options: asked.append(data) or cost(model, data, options))
    make(data=["digits/test", "letters/test"], groups=["C4", "flip"]).plan()
    assert len(asked) == 2
    asked.clear()
    data = ["digits/test?n=20&size=9", "digits/test?n=20&size=17"]
    make(models={"net": Net()}, data=data).plan()
    assert asked == data


@pytest.fixture
def refused(make, monkeypatch):
    """What is said against cells before anything of them is measured; nothing where they are begun."""
    monkeypatch.setattr(ek.study.workers, "here", lambda _: iter(()))

    def said(**changes) -> str:
        try:
            make(**changes).run(progress=False)
        except ValueError as error:
            return str(error)
        except RuntimeError as error:
            return str(error).partition("nothing is done")[0]
        return "it was measured"

    return said


def test_a_model_is_tried_without_weights_on_images_of_its_size(refused, monkeypatch, nothing_is_made):
    monkeypatch.setattr(ek.study.study, "_train", lambda *_, **__: None)
    message = refused(models=[TRAINED], data=["digits/test", "letters/test?n=3"], groups=["C4", "shift4"])
    assert re.findall(rf"(?:since|;) (\S+ · \S+) · {re.escape(TRAINED)}: ", message) == [
        "digits/test · shift4",
        "letters/test?n=3 · C4",
        "letters/test?n=3 · shift4",
    ]
    assert "need a height divisible by 4, got 17" in message
    # a size in the spec goes over the model's
    assert refused(models=[TRAINED], data=["digits/test?size=16"], groups=["C4", "shift4"]) == ""

    class Fails(nn.Module):
        def forward(self, x):
            raise MemoryError

    assert refused(models={"fails": Fails()}, data=["digits/test"]) == ""


def test_metrics_that_no_model_has_are_refused_or_named_before_anything_is_trained(
    refused, monkeypatch, nothing_is_made
):
    features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
    given = {"models": {"classifier": Net(), "trained": TRAINED}, "data": ["digits/test?n=20&size=9"]}
    reason = "segmentation: the model's output is no map, but has one position"
    assert refused(**given, metrics=["segmentation"]) == (
        f"nothing was trained or measured, since no metric has a value for any model: {reason}"
    )
    monkeypatch.setattr(ek.study.study, "_train", lambda *_, **__: None)
    with pytest.warns(UserWarning, match=f"have a value for none of the models, and will be NaN: {reason}"):
        assert refused(**given, metrics=["segmentation", "latent"]) == ""
    # what one model has is no mistake
    given["models"] = {"classifier": Net(), "features": features}
    assert refused(**given, metrics=["channelwise", "softmax"]) == ""
