"""`ek.measure` by specs: the images that a model really sees, by every route, and doubts where it cannot read them."""

import json

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import xarray as xr
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

import eedkit as ek
from eedkit.cli import app
from eedkit.lab import images, models, training
from eedkit.probe import measure as probe
from eedkit.results.doubts import doubts

FEW = {"group": "C4", "metrics": ["latent", "softmax"]}
TINY = "widths=4,4&size=9&epochs=1&data=digits/train?n=64"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EEDKIT_CACHE", str(tmp_path / "cache"))


def imagenet(x):
    """Normalised by ImageNet's mean and deviation, as timm has them."""
    mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    return (x - mean) / deviation


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A small network of timm that was trained on digits of 33 pixels for a moment, its spec, and a folder of digits."""
    folder = tmp_path_factory.mktemp("tuned")
    x, y, _ = images.tensors(images.load("digits/train?n=240", size=33, channels=3))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = timm.create_model("resnet10t", num_classes=10)
        optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3)
        for places in [*torch.randperm(240).split(40), *torch.randperm(240).split(40), *torch.randperm(240).split(40)]:
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(imagenet(x[places])), y[places]).backward()
            optimiser.step()
    save_file(net.state_dict(), folder / "net.safetensors")
    for k in range(60):
        file = folder / "photos" / str(int(y[k])) / f"{k:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((x[k] * 255).round().byte().permute(1, 2, 0).numpy()).save(file)
    spec = f"file:{folder}/net.safetensors?model=timm:resnet10t&classes=10"
    return net.eval(), spec, folder / "photos"


def rows(ds):
    """The table of a Dataset, in an order of its own."""
    return (
        ek.summarise(ds, full=True)
        .sort_values(["metric", "layer"], ignore_index=True)
        .drop(columns="depth", errors="ignore")
    )


class TestThreeRoutes:
    def test_they_give_the_table_of_the_network_on_the_images_that_it_was_trained_on(self, tuned, tmp_path, capsys):
        net, spec, photos = tuned
        x, labels, ids = images.tensors(images.load(photos))
        by_hand = [
            {"image": image, "label": label, "id": name}
            for image, label, name in zip(imagenet(x), labels, ids, strict=True)
        ]
        wanted = ek.measure(net, by_hand, **FEW, name=spec, progress=False)
        assert ek.summarise(wanted, full=True).accuracy.iloc[0] > 0.8

        in_python = ek.measure(spec, f"{photos}?size=33", **FEW)
        shown = capsys.readouterr().err.splitlines()[0]
        told = "central square resized to 33×33 (bicubic), RGB, normalised by mean (0.485, 0.456, 0.406)"
        assert shown.startswith(f"Preprocessing for {spec}: {told}")

        out = tmp_path / "shell.zarr"
        call = ["measure", spec, f"{photos}?size=33", "--group", "C4", "--quiet", "--out", str(out)]
        done = CliRunner().invoke(app, [*call, "--metric", "latent", "--metric", "softmax"])
        assert done.exit_code == 0, done.output
        study = ek.Study(
            models=[spec], data=[f"{photos}?size=33"], groups=["C4"], metrics=FEW["metrics"], store=tmp_path / "s"
        )
        for ds in (in_python, ek.open(out), study.run(progress=False)):
            assert ds.attrs["preprocessing"].startswith(told)
            pd.testing.assert_frame_equal(rows(ds), rows(wanted), rtol=1e-5)

    def test_its_own_size_is_doubted(self, tuned):
        _, spec, photos = tuned
        with pytest.warns(
            UserWarning,
            match=r"predicts class . for 24 of 24 images: .* Preprocessing: resized to 201 .*, central 176×176, RGB",
        ):
            ds = ek.measure(spec, f"{photos}?n=24", **FEW, progress=False)
        assert ds.attrs["preprocessing"].startswith("resized to 201 (bicubic), central 176×176")

    def test_a_corruption_comes_at_the_images_own_resolution_before_the_size(self, tuned):
        _, spec, photos = tuned
        loaded, shown = models.with_images(spec, f"{photos}?size=16&corruption=blur&severity=3")
        blurred = images.load(f"{photos}?corruption=blur&severity=3")[7]["image"]
        picture = Image.fromarray((blurred * 255).round().byte().permute(1, 2, 0).numpy())
        assert torch.equal(shown[7]["image"], loaded.transform.at(16)(picture))
        assert shown[7]["image"].shape == (3, 16, 16)

    def test_a_size_in_the_model_s_spec_is_that_of_the_images(self, tuned):
        _, spec, photos = tuned
        loaded, shown = models.with_images(f"{spec}&size=33", photos)
        _, asked = models.with_images(spec, f"{photos}?size=33")
        assert loaded.size == 33
        assert torch.equal(shown[7]["image"], asked[7]["image"])
        assert len({models.resolve(f"{spec}{size}").source() for size in ("", "&size=33", "&size=34")}) == 3
        assert models.with_images("recipe:random", "digits/test?n=3&size=33")[1][0]["image"].shape == (1, 33, 33)


class TestArguments:
    def test_modules_and_tensors_go_straight_through(self):
        net, x = nn.Sequential(nn.Flatten(), nn.Linear(25, 3)), torch.rand(8, 1, 5, 5)
        ours, theirs = (measure(net, x, **FEW, progress=False) for measure in (ek.measure, probe.measure))
        xr.testing.assert_equal(ours, theirs)
        assert ours.attrs["preprocessing"] == ""
        assert ek.measure.__doc__ == probe.measure.__doc__

    def test_a_module_that_tells_nothing_apart_is_doubted_too(self):
        net = nn.Sequential(nn.Flatten(), nn.Linear(25, 3))
        nn.init.zeros_(net[1].weight)
        with pytest.warns(
            UserWarning,
            match=r"Sequential predicts class \d for 20 of 20 images: .* unknown, the images were taken as given",
        ):
            ek.measure(net, torch.rand(20, 1, 5, 5), **FEW, progress=False)

    def test_either_may_be_named_alone(self, capsys):
        spec = "recipe:random?seed=1&size=9&widths=4"
        loaded, digits = models.with_images(spec, "digits/test?n=12")
        wanted = ek.measure(loaded.model, digits, **FEW, name=spec, head="head", progress=False)
        for model, given in ((spec, digits), (loaded.model, "digits/test?n=12&size=9")):
            ds = ek.measure(model, given, **FEW, name=spec, progress=False)
            assert ds.attrs["preprocessing"].startswith("central square resized to 9×9 (bilinear)")
            xr.testing.assert_equal(ds, wanted)
        assert capsys.readouterr().err == ""

    def test_head_and_layers_of_the_spec_are_used_unless_others_are_asked_for(self):
        spec = "recipe:random?size=9&widths=4,4&head=blocks.1&layers=blocks.0"
        ds = ek.measure(spec, "digits/test?n=12", **FEW, progress=False)
        assert (ds.attrs["head"], list(ds.layer.values), ds.model.item()) == ("blocks.1", ["blocks.0", "latent"], spec)
        ds = ek.measure(spec, "digits/test?n=12", **FEW, layers="blocks.1", head="head", name="a", progress=False)
        assert (ds.attrs["head"], list(ds.layer.values), ds.model.item()) == ("head", ["blocks.1", "latent"], "a")

    @pytest.mark.parametrize(
        ("data", "options", "message"),
        [
            ("digits/test?n=12", {"group": "C44x"}, "no group 'C44x'"),
            ("digits/test?n=12", {"metrics": ["latnt"]}, "did you mean 'latent'"),
            ("digits/test?n=12", {"layers": "blokcs.*"}, "blokcs"),
            ("digits/test?n=12", {"head": "haed"}, "did you mean 'head'"),
            ("digits/test?n=12", {"group": "shift4"}, "need a height divisible by 4, got 9"),
            ("digits/test?n=12", {"batch_size": 0}, "batch_size must be"),
            ("digits/test?n=3", {}, "needs 4 images, got 3"),
            ("digits/test?n=12", {"layers": "("}, "is no regular expression"),
            ("digits/test?n=12", {"metrics": ["segmentation"]}, "segmentation: the model's output is no map"),
            ("digits/tset", {}, "did you mean 'digits/test'"),
            ("digits/test?channels=3", {}, "channels is 3 in .*, but images of 1 are asked for; leave it out"),
        ],
    )
    def test_what_is_wrong_is_known_before_a_recipe_is_trained(self, data, options, message, monkeypatch):
        monkeypatch.setattr(training, "fit", lambda *_, **__: pytest.fail("trained"))
        with pytest.raises(ValueError, match=message):
            ek.measure(f"recipe:plain?{TINY}", data, **FEW | options, progress=False)

    def test_channels_that_the_model_does_not_take_are_refused(self):
        assert models.with_images("timm:resnet10t", "digits/test?n=3&channels=3")[1][0]["image"].shape == (3, 176, 176)
        with pytest.raises(ValueError, match="channels=1 do not fit the model, which takes 3; leave channels out"):
            ek.measure("timm:resnet10t", "digits/test?channels=1", **FEW)

    def test_a_grey_model_of_timm_gets_grey_images_normalised_by_the_mean_over_colours(self):
        loaded, digits = models.with_images("timm:resnet10t?channels=1&size=33", "digits/test?n=20")
        pixels = images.load("digits/test?n=20&size=33")
        assert (loaded.channels, loaded.model.conv1[0].in_channels) == (1, 1)
        assert loaded.transform.mean + loaded.transform.std == pytest.approx((0.449, 0.226), abs=1e-6)
        expected = (pixels[3]["image"] - 0.449) / 0.226
        # Pillow's bicubic in place of its bilinear
        assert (digits[3]["image"] - expected).abs().mean() < 0.2


def table(predicted, labels=None, classes=10, **attrs):
    """What `doubts` looks at."""
    predicted = np.asarray(predicted)
    coords = {"model": ["net"], "classes": ("model", [classes]), "element": ["e", "r90"]}
    if labels is not None:
        coords["label"] = ("sample", np.asarray(labels))
    both = np.stack([predicted, np.zeros_like(predicted)])  # under r90 all are 0
    return xr.Dataset({"prediction": (("model", "element", "sample"), both[None])}, coords, attrs)


TENS = np.arange(100) % 10
HALF_RIGHT = np.where(np.arange(100) < 50, TENS, (TENS + 1) % 10)


class TestDoubts:
    @pytest.mark.parametrize(
        ("ds", "finding"),
        [
            (table([3] * 20), "net predicts class 3 for 20 of 20 images: it may be unable to read"),
            (table([3] * 19 + [1]), "class 3 for 19 of 20"),
            (table([3] * 20, [3] * 10 + [4] * 10), "class 3 for 20 of 20"),
            (
                table((TENS + 1) % 10, TENS),
                r"is right on 0 of 100 images, no more than chance \(10% are of one class\)",
            ),
            (table(TENS, [-1] * 75 + ((TENS[75:] + 1) % 10).tolist()), "right on 0 of 25 images"),
            (table([3] * 20, preprocessing="as told"), "Preprocessing: as told"),
        ],
    )
    def test_they_name_what_was_found_and_how_the_images_were_made(self, ds, finding):
        (doubt,) = doubts(ds)
        assert pd.Series([doubt]).str.contains(finding).all(), doubt

    @pytest.mark.parametrize(
        "ds",
        [
            table(TENS),
            table(TENS, TENS),
            table(HALF_RIGHT, TENS),
            table([3] * 18 + [1, 2]),
            table([3] * 19),
            table([3] * 20, [3] * 20),
            table([0] * 20, classes=1),
            table([-1] * 20),
            table((TENS + 1) % 10, TENS + 5),
            table((TENS + 1) % 10, [f"class {k}" for k in TENS]),
            table((TENS + 1) % 10, [0] * 98 + [1] * 2),
            table([3] * 20).drop_vars("prediction"),
            table([3] * 20).sel(element=["r90"]),
        ],
    )
    def test_there_are_none_of_few_images_good_predictions_other_classes_or_no_predictions(self, ds):
        assert doubts(ds) == []

    def test_classes_that_the_images_declare_otherwise_are_not_the_model_s(self):
        ds = table((TENS + 1) % 10, TENS)
        ds.label.attrs["class_names"] = json.dumps(list("abcdefgh"))
        assert doubts(ds) == []
        ds.label.attrs["class_names"] = json.dumps(list("abcdefghij"))
        assert len(doubts(ds)) == 1

    def test_each_model_is_looked_at_by_itself(self):
        both = xr.concat([table([3] * 20), table(TENS[:20]).assign_coords(model=["good"])], "model")
        assert [doubt.partition(" ")[0] for doubt in doubts(both)] == ["net"]
