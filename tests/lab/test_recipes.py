"""Recipes: seeded, cached under what they depend on, and doing what their names say."""

import itertools
import json
import os
import random
import resource
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import joblib
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from eedkit.lab import images, recipes, training
from eedkit.lab.recipes import Recipe, curves, train

TINY = {"epochs": 2, "widths": (4, 4), "size": 9, "data": "digits/train?n=64", "batch_size": 32}
WAYS = {
    "supervised": Recipe(augment="C4", **TINY),
    "started": Recipe(start="letters/train?n=70", **TINY),
    "simclr": Recipe(method="simclr", augment="C4", **TINY),
    "barlow_twins": Recipe(method="barlow_twins", **TINY),
    "simsiam": Recipe(method="simsiam", augment="C4", **TINY),
    "vicreg": Recipe(method="vicreg", **TINY),
    "turns": Recipe(method="turns", augment="D4", group="C2", **TINY),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EEDKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=WAYS)
def recipe(request):
    return WAYS[request.param]


@pytest.fixture
def fits(monkeypatch):
    """What every run of the training loop was given, with the network's weights as they were before."""
    seen, fit = [], training.fit

    def watched(objective, x, y, **options):
        state = {name: value.clone() for name, value in objective.network.state_dict().items()}
        seen.append({"objective": objective, "x": x, "y": y, "state": state, **options})
        return fit(objective, x, y, **options)

    monkeypatch.setattr(training, "fit", watched)
    return seen


def weights(module):
    return torch.cat([value.flatten().double() for value in module.state_dict().values()])


def header(file):
    with safe_open(file, "pt") as held:
        return {key: json.loads(value) for key, value in held.metadata().items()}


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """What is trained into a cache of its own, which is left alone."""

    def trained(recipe, seed=0):
        with monkeypatch.context() as patch:
            patch.setenv("EEDKIT_CACHE", str(tmp_path / "elsewhere" / str(next(folders))))
            return train(recipe, seed=seed)

    folders = itertools.count()
    return trained


def flip_a_bit(state, told):
    state["blocks.1.conv.weight"].view(torch.uint8).flatten()[5] ^= 1


def halve(state, told):
    state.update({name: value.half() for name, value in state.items() if value.is_floating_point()})


def lose(state, told):
    for value in state.values():
        if value.is_floating_point():
            value.fill_(torch.nan)


def widen(state, told):
    state["head.weight"] = torch.ones(10, 5)


def forget(state, told):
    del told["checksum"]


def swap_seeds(state, told):
    before = set(recipes.cache_folder().iterdir())
    other = train(Recipe(**TINY), seed=1)
    state.update(other.state_dict())
    (file,) = set(recipes.cache_folder().iterdir()) - before
    told.update({name: json.dumps(value) for name, value in header(file).items()})
    file.unlink()


class TestSeeds:
    def test_same_seed_trains_to_the_same_weights_and_the_process_is_left_as_found(self, recipe, elsewhere):
        def state():
            return (
                torch.get_rng_state().tolist(),
                np.random.get_state()[1].tolist(),  # noqa: NPY002
                random.getstate(),
                torch.are_deterministic_algorithms_enabled(),
                torch.is_grad_enabled(),
                torch.get_num_threads(),
                torch.get_default_dtype(),
                # the second is set by torch, when the first optimiser is made
                os.environ | {"PYTEST_CURRENT_TEST": "", "TORCHINDUCTOR_CACHE_DIR": ""},
            )

        threads = torch.get_num_threads()
        torch.set_num_threads(2)
        try:
            networks = []
            for i, seed in enumerate((0, 0, 1)):
                torch.rand(i)  # the process's own random state is of no account
                before = state()
                networks.append(elsewhere(recipe, seed))
                assert state() == before
        finally:
            torch.set_num_threads(threads)
        first, again, other = networks
        assert torch.equal(weights(first), weights(again))
        assert not torch.equal(weights(first.blocks), weights(other.blocks))
        assert weights(first).isfinite().all()
        assert not any(module.training for module in first.modules())

    @pytest.mark.slow
    def test_weights_do_not_depend_on_the_process_s_threads(self, tmp_path):
        """One thread and two give other bits where nobody sees to it."""
        script = (
            "import sys; from eedkit.lab.recipes import Recipe, train\n"
            "for recipe in eval(sys.argv[1]): train(recipe, seed=3)"
        )
        changes = {"widths": (16, 32), "size": 17, "data": "digits/train?n=200"}
        larger = [replace(recipe, **changes) for recipe in WAYS.values()]
        for threads in ("1", "2"):
            subprocess.run(
                [sys.executable, "-c", script, repr(larger)],
                env={**os.environ, "OMP_NUM_THREADS": threads, "EEDKIT_CACHE": str(tmp_path / threads)},
                check=True,
            )
        for recipe in larger:
            file = f"{recipes.source(recipe, seed=3)}.safetensors"
            one = load_file(tmp_path / "1" / file)
            two = load_file(tmp_path / "2" / file)
            assert all(torch.equal(one[name], two[name]) for name in one | two)
            assert header(tmp_path / "1" / file)["threads"] == 1


class TestCache:
    def test_a_second_call_reads_the_file_and_trains_nothing(self, recipe, own_cache, monkeypatch):
        trained = train(recipe)
        file = own_cache / f"{recipes.source(recipe)}.safetensors"
        monkeypatch.setattr(training, "fit", lambda *_, **__: pytest.fail("trained again"))
        assert torch.equal(weights(train(recipe)), weights(trained))
        about = header(file)
        assert (about["epochs"], about["method"], about["start"]) == (2, recipe.method, recipe.start)

    def test_every_field_of_a_recipe_and_the_seed_change_the_file(self, own_cache, fits):
        base = Recipe(augment="C4", **TINY)
        changes = {
            "group": "C2",
            "augment": "C2",
            "method": "simclr",
            "start": "letters/train?n=70",
            "epochs": 1,
            "data": "digits/train?n=65",
            "size": 11,
            "widths": (4, 5),
            "batch_size": 16,
            "rate": 1e-3,
            "share": 0.5,
            "antialiased": True,
        }
        assert list(changes) == list(Recipe.__dataclass_fields__)
        networks = [train(replace(base, **{name: value})) for name, value in changes.items()]
        networks += [train(base), train(base, seed=1)]
        assert len({str(weights(network)) for network in networks}) == 14
        # and the one that was trained on letters first
        assert len(fits) == len(list(own_cache.iterdir())) == 15
        train(replace(base, start="letters/train?n=71"))
        assert len(list(own_cache.iterdir())) == 17

    @pytest.mark.parametrize("changed", ["digits", "letters"])
    def test_other_images_under_the_same_name_are_another_source(self, changed, monkeypatch):
        def other(data, *rest):
            found = original(data, *rest)
            return found._replace(fingerprint="other") if data.startswith(changed) else found

        original = recipes.training_images
        before = recipes.source(WAYS["started"])
        monkeypatch.setattr(recipes, "training_images", other)
        assert recipes.source(WAYS["started"]) != before

    @pytest.mark.parametrize("changed", ["threads", "processor", "torch"])
    def test_another_machine_has_another_source_and_trains_again(self, changed, own_cache, fits, monkeypatch):
        train(Recipe(**TINY))
        here = training.machine()
        assert set(here) == {"threads", "processor", "torch"}
        monkeypatch.setattr(training, "machine", lambda: here | {changed: "other"})
        train(Recipe(**TINY))
        assert len(fits) == len(list(own_cache.iterdir())) == 2
        told = [header(file)[changed] for file in own_cache.iterdir()]
        assert sorted(told, key=str) == sorted([here[changed], "other"], key=str)

    @pytest.mark.parametrize("kept", [0, 4, 100, -100])
    def test_a_torn_file_is_trained_again_with_a_warning(self, own_cache, kept):
        recipe = WAYS["supervised"]
        trained = train(recipe)
        told = curves(recipe)
        (file,) = own_cache.iterdir()
        file.write_bytes(file.read_bytes()[:kept])
        with pytest.raises(ValueError, match=r"holds no curves .*; delete it and train that network again"):
            curves(recipe)
        with pytest.warns(UserWarning, match="cannot be used"):
            again = train(recipe)
        assert torch.equal(weights(again), weights(trained))
        assert curves(recipe).equals(told)

    @pytest.mark.parametrize("harm", [flip_a_bit, halve, lose, widen, forget, swap_seeds])
    def test_weights_that_were_not_trained_are_trained_afresh(self, harm, own_cache):
        recipe = Recipe(**TINY)
        trained = train(recipe)
        (file,) = own_cache.iterdir()
        state, told = load_file(file), {name: json.dumps(value) for name, value in header(file).items()}
        harm(state, told)
        save_file(state, file, metadata=told)
        with pytest.warns(UserWarning, match=r"cannot be used [\s\S]*; training that network again"):
            again = train(recipe)
        assert torch.equal(weights(again), weights(trained))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(weights(train(recipe)), weights(trained))

    def test_a_full_disk_costs_a_warning_and_no_training(self, own_cache, elsewhere):
        expected = elsewhere(Recipe(**TINY))
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        try:
            with pytest.warns(UserWarning, match=r"cannot keep the trained weights at .*; make room there"):
                network = train(Recipe(**TINY))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert torch.equal(weights(network), weights(expected))
        assert not any(own_cache.iterdir())

    def test_a_folder_that_cannot_be_made_costs_a_warning(self, own_cache):
        own_cache.write_text("a file, and no folder")
        with pytest.warns(UserWarning, match="set EEDKIT_CACHE to another folder"):
            network = train(Recipe(**TINY))
        assert not network.training
        assert own_cache.read_text() == "a file, and no folder"

    def test_random_weights_are_not_trained_stored_or_missing(self, own_cache):
        random_recipe = recipes.recipes()["random"]
        network = train(random_recipe, seed=3)
        assert not own_cache.exists()
        assert network.blocks[0].norm.num_batches_tracked == 0
        assert not torch.equal(weights(network), weights(train(random_recipe, seed=4)))
        assert curves(random_recipe).shape == (0, 4)
        with pytest.raises(FileNotFoundError, match=rf"no weights at {own_cache}.*: train that network first"):
            curves(Recipe(**TINY))
        train(Recipe(**TINY), seed=1)
        wanted = [(Recipe(**TINY), 0), (Recipe(**TINY), 1), (random_recipe, 0), None, (Recipe(**TINY), 0)]
        assert recipes.untrained(wanted) == wanted[:1]


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def trained_elsewhere(own_cache, tmp_path):
    """Another process that trains a network of the same cache, and is in the middle of it."""
    script = (
        "import sys, pathlib, time; from eedkit.lab import recipes, training\n"
        "fit = training.fit\n"
        "def slow(*arguments, **options):\n"
        "    pathlib.Path(sys.argv[2], 'begun').touch()\n"
        "    while not pathlib.Path(sys.argv[2], 'go').exists(): time.sleep(0.02)\n"
        "    return fit(*arguments, **options)\n"
        "training.fit = slow\n"
        "recipes.train(eval(sys.argv[1], vars(recipes)))"
    )
    process = subprocess.Popen([sys.executable, "-c", script, repr(Recipe(**TINY)), str(tmp_path)])
    wait_for((tmp_path / "begun").exists)
    yield process
    process.kill()
    process.wait()


class TestTwoAtOnce:
    def test_the_second_waits_and_reads_what_the_first_trained(self, trained_elsewhere, tmp_path, fits):
        with ThreadPoolExecutor(1) as pool:
            network = pool.submit(train, Recipe(**TINY))
            time.sleep(0.3)
            assert not network.done()
            (tmp_path / "go").touch()
            assert not network.result(60).training
        assert trained_elsewhere.wait(60) == 0
        assert not fits

    def test_a_first_that_is_killed_leaves_it_to_the_second(self, trained_elsewhere, own_cache, fits):
        trained_elsewhere.kill()
        train(Recipe(**TINY))
        assert len(fits) == 1
        assert [file.suffix for file in own_cache.iterdir()] == [".safetensors"]

    def test_training_all_leaves_it_to_the_first(self, trained_elsewhere, fits):
        wanted = [(Recipe(**TINY), 0), (Recipe(**TINY), 1)]
        assert recipes.untrained(wanted) == wanted
        list(recipes.train_all(wanted))
        assert recipes.untrained(wanted) == wanted[:1]
        assert trained_elsewhere.poll() is None


class Killer(Recipe):
    """Whoever unpickles it ends."""

    def __reduce__(self):
        return os._exit, (1,)


class TestTrainAll:
    def test_a_process_that_is_killed_is_no_error(self, own_cache, monkeypatch):
        monkeypatch.setattr(joblib, "cpu_count", lambda: 2)
        assert list(recipes.train_all([(Killer(**TINY), 0), (Recipe(**TINY), 0)])) in ([], [(Recipe(**TINY), 0)])

    @pytest.mark.slow
    def test_several_processes_train_the_same_weights(self, elsewhere, monkeypatch):
        wanted = [(WAYS["started"], 0), (WAYS["supervised"], 0), (WAYS["supervised"], 1)]
        monkeypatch.setattr(joblib, "cpu_count", lambda: 2)
        monkeypatch.setattr(training, "fit", lambda *_, **__: pytest.fail("trained in this process"))
        found = list(recipes.train_all(wanted))
        assert recipes.untrained(wanted) == []
        networks = [train(recipe, seed=seed) for recipe, seed in wanted]
        monkeypatch.undo()
        assert sorted(map(repr, found)) == sorted(map(repr, wanted))
        for (recipe, seed), network in zip(wanted, networks, strict=True):
            assert torch.equal(weights(elsewhere(recipe, seed)), weights(network))

    def test_one_that_cannot_be_trained_stops_no_other(self, own_cache):
        wanted = [(Recipe(**TINY | {"data": "digits/train?n=100000"}), 0), (Recipe(**TINY), 0)]
        assert list(recipes.train_all(wanted)) == wanted
        assert recipes.untrained(wanted[1:]) == []
        with pytest.raises(ValueError, match="cannot take n=100000"):
            train(wanted[0][0])


class TestCurves:
    def test_one_row_for_each_stage_and_epoch(self, recipe):
        train(recipe)
        table = curves(recipe)
        stages = [stage for stage in (recipe.start, recipe.method) if stage]
        assert list(table.columns) == ["stage", "epoch", "loss", "accuracy"]
        assert list(zip(table["stage"], table["epoch"], strict=True)) == [(s, e) for s in stages for e in (1, 2)]
        assert table["loss"].gt(0).all() == (recipe.method != "simsiam")
        told = table["accuracy"].between(0, 1)
        assert told.all() if recipe.method in ("supervised", "turns") else table["accuracy"].isna().all()

    def test_the_loss_falls_and_the_accuracy_rises_when_labels_are_learnt(self):
        recipe = Recipe(**TINY | {"epochs": 8, "widths": (16, 16), "rate": 0.05})
        train(recipe)
        table = curves(recipe)
        assert table["loss"].iloc[-1] < table["loss"].iloc[0] - 0.5
        assert table["accuracy"].iloc[-1] > table["accuracy"].iloc[0] + 0.25


class TestStart:
    def test_a_network_starts_as_the_one_trained_on_those_images_alone(self, fits, elsewhere):
        network = train(WAYS["started"], seed=4)
        alone = elsewhere(Recipe(**TINY | {"data": "letters/train?n=70"}), 4)
        fresh = train(Recipe(**TINY | {"epochs": 0}), seed=4)
        first, second, third = fits
        begun = torch.cat([v.flatten().double() for k, v in second["state"].items() if k.startswith("blocks")])
        assert torch.equal(begun, weights(alone.blocks))
        assert torch.equal(second["state"]["head.weight"], fresh.head.weight)
        assert len(first["x"]) == len(third["x"]) == 70
        assert len(second["x"]) == 64
        assert [run["epochs"] for run in fits] == [2, 2, 2]
        assert not torch.equal(weights(network.blocks), begun)

    @pytest.mark.parametrize(
        ("start", "classes"), [("letters/train?n=52", 26), ("patches/train?n=52", 12), ("same", 10)]
    )
    def test_both_stages_have_their_images_and_classes(self, fits, start, classes):
        recipe = replace(WAYS["simclr"], start=start)
        network = train(recipe)
        assert [run["state"]["head.bias"].shape for run in fits] == [(classes,), (10,)]
        assert [run["x"].shape for run in fits] == [(64 if start == "same" else 52, 1, 9, 9), (64, 1, 9, 9)]
        assert torch.equal(fits[0]["x"], fits[1]["x"]) == (start == "same")
        assert network.head.out_features == 10
        assert curves(recipe)["stage"].unique().tolist() == [start, "simclr"]
        # the first stage has labels and is not augmented, whatever the second
        assert [type(run["objective"]).__name__ for run in fits] == ["Supervised", "Agreement"]
        assert [run["objective"].action.group.order for run in fits] == [1, 4]

    def test_images_have_as_many_channels_as_those_of_the_second_stage(self, fits):
        train(replace(WAYS["started"], data="patches/train?n=52"))
        assert [run["x"].shape[1] for run in fits] == [3, 3]

    @pytest.mark.parametrize("start", ["letters", "letters/train?size=8", "digits/train?n=100000"])
    def test_images_that_cannot_be_read_are_an_error_before_any_training(self, start, fits, own_cache):
        recipe = Recipe(**TINY, start=start)
        for call in (recipes.source, train):
            with pytest.raises(ValueError, match=r"did you mean 'letters/t|size is 8|cannot take n=100000"):
                call(recipe)
        assert not fits
        assert not own_cache.exists()


class TestWithoutLabels:
    @pytest.mark.parametrize("way", sorted(WAYS.keys() - {"started"}))
    def test_other_labels_change_the_head_alone(self, way, elsewhere, monkeypatch):
        def shuffled(*arguments):
            found = original(*arguments)
            return found._replace(y=found.y[torch.randperm(64, generator=torch.Generator().manual_seed(0))])

        usual, original = elsewhere(WAYS[way]), recipes.training_images
        monkeypatch.setattr(recipes, "training_images", shuffled)
        other = elsewhere(WAYS[way])
        assert torch.equal(weights(usual.blocks), weights(other.blocks)) == (way != "supervised")
        assert not torch.equal(usual.head.weight, other.head.weight)

    @pytest.mark.parametrize("way", ["simclr", "simsiam", "turns"])
    def test_the_head_is_the_probe_of_the_features_of_the_images_as_they_are(self, way):
        network = train(WAYS[way])
        x, y, _ = images.tensors(images.load(TINY["data"], size=9))
        features = network.features(x).detach().double()
        z = (features - features.mean(0)) / features.std(0, correction=0)
        weight = (network.head.weight.detach().double() * features.std(0, correction=0)).requires_grad_()
        bias = network.head(features.mean(0).float()).detach().double().requires_grad_()
        (torch.nn.functional.cross_entropy(z @ weight.T + bias, y) + 5e-4 * weight.square().sum()).backward()
        # the objective is convex: it has no other place without a slope
        assert max(weight.grad.abs().max(), bias.grad.abs().max()) < 1e-5

    @pytest.mark.parametrize("method", ["simclr", "barlow_twins", "simsiam", "vicreg"])
    def test_views_come_to_agree_and_the_features_do_not_collapse(self, method):
        recipe = Recipe(method=method, epochs=10, widths=(8, 16), size=9, data="digits/train?n=256", batch_size=32)
        network = train(recipe)
        told = curves(recipe)
        assert told["loss"].iloc[-1] < told["loss"].iloc[0] - 0.3
        x, y, _ = images.tensors(images.load(recipe.data, size=9))
        with torch.no_grad():
            features = network.features(x)
            accuracy = (network.head(features).argmax(1) == y).double().mean().item()
        assert features.std(0).norm() > 0.1 * features.mean(0).norm()
        assert accuracy > 0.5


class TestRecipes:
    def test_they_are_what_their_names_say(self):
        told = {
            name: (recipe.group, recipe.augment, recipe.method, recipe.start, recipe.epochs)
            for name, recipe in recipes.recipes("D4").items()
        }
        assert told == {
            "random": ("C1", "C1", "supervised", "", 0),
            "plain": ("C1", "C1", "supervised", "", 10),
            "augmented": ("C1", "D4", "supervised", "", 10),
            "equivariant": ("D4", "C1", "supervised", "", 10),
            "from_same": ("C1", "C1", "supervised", "same", 10),
            "from_letters": ("C1", "C1", "supervised", "letters/train", 10),
            "from_patches": ("C1", "C1", "supervised", "patches/train", 10),
            "simclr": ("C1", "C1", "simclr", "", 10),
            "simclr_augmented": ("C1", "D4", "simclr", "", 10),
            "barlow_twins": ("C1", "C1", "barlow_twins", "", 10),
            "barlow_twins_augmented": ("C1", "D4", "barlow_twins", "", 10),
            "simsiam": ("C1", "C1", "simsiam", "", 10),
            "simsiam_augmented": ("C1", "D4", "simsiam", "", 10),
            "vicreg": ("C1", "C1", "vicreg", "", 10),
            "vicreg_augmented": ("C1", "D4", "vicreg", "", 10),
            "turns": ("C1", "D4", "turns", "", 10),
        }

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"epochs": -1}, "whole number from 0, got -1"),
            ({"size": 0}, "whole number from 1, got 0"),
            *(({"rate": rate}, "rate must be a number above 0") for rate in (0.0, -1.0, float("nan"), float("inf"))),
            *(
                ({"augment": "C4", "share": share}, "share must be a number from 0 to 1")
                for share in (-0.1, 1.1, float("nan"))
            ),
            ({"share": 0.5}, "name a group such as C4 in augment, or leave share out"),
            *(({"widths": widths}, "at least one block, each from 1") for widths in ((), (4, 0))),
            ({"group": "c4"}, "no group 'c4'; did you mean 'C4'"),
            ({"method": "simclrr"}, "no method 'simclrr'; did you mean 'simclr'"),
        ],
    )
    def test_a_recipe_says_what_is_wrong_with_it(self, fields, message):
        with pytest.raises(ValueError, match=message):
            Recipe(**fields)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"method": "turns"}, "elements to tell apart, got augment=C1"),
            ({"augment": "shift4"}, "need a height divisible by 4, got 9"),
            ({"group": "shift4"}, "shifts by 1/4 of the height"),
            ({"method": "simclr", "batch_size": 1}, "simclr compares .* at least 2, got 1"),
            ({"method": "vicreg", "batch_size": 1}, "vicreg compares .* at least 2, got 1"),
            ({"data": "digits/train?m=64"}, "no option 'm'"),
            ({"data": "letters/train?n=64", "start": "digits/train?size=8"}, "size is 8 .* but 9"),
        ],
    )
    def test_what_cannot_be_trained_is_refused_before_a_start(self, changes, message, fits):
        recipe = Recipe(**TINY | {"start": "letters/train?n=70"} | changes)
        before = torch.get_rng_state()
        for call in (recipes.check, train):
            with pytest.raises(ValueError, match=message):
                call(recipe)
        assert not fits
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_a_short_training_learns_the_digits():
    x, y, _ = images.tensors(images.load("digits/test", size=17))
    with torch.no_grad():
        accuracy = (train(Recipe(epochs=5))(x).argmax(-1) == y).double().mean().item()
    assert accuracy > 0.95
