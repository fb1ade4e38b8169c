"""Recipes: seeded, cached under what they depend on, and doing what their names say."""

import json
import os
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from eedkit.lab import training
from eedkit.lab.training import Recipe, augmented, recipes, train
from eedkit.theory import actions

QUICK = {"epochs": 1, "widths": (4, 4)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EEDKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def weights(network):
    return torch.cat([value.flatten().double() for value in network.state_dict().values()])


def test_same_seed_trains_to_the_same_weights_and_another_to_others(tmp_path):
    recipe = Recipe(augment="C4", **QUICK)
    first, again, other = (train(recipe, seed=s, cache=tmp_path / str(i)) for i, s in enumerate((0, 0, 1)))
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(other))


def test_a_second_call_reads_the_file_and_trains_nothing(own_cache, monkeypatch):
    recipe = Recipe(**QUICK)
    trained = train(recipe)
    (file,) = own_cache.iterdir()
    monkeypatch.setattr(training, "_fit", lambda *_: pytest.fail("trained again"))
    assert torch.equal(weights(train(recipe)), weights(trained))
    with safe_open(file, "pt") as held:
        about = {key: json.loads(value) for key, value in held.metadata().items()}
    assert about["epochs"] == 1
    assert 0 <= about["train_accuracy"] <= 1


def test_every_field_of_a_recipe_and_the_seed_change_the_file(own_cache):
    train(Recipe(**QUICK))
    changes = [{"group": "C2"}, {"augment": "C2"}, {"epochs": 2}, {"size": 9}, {"batch_size": 128}, {"rate": 1e-3}]
    for change in changes:
        train(replace(Recipe(**QUICK), **change))
    train(Recipe(**QUICK), seed=1)
    assert len(list(own_cache.iterdir())) == len(changes) + 2


def test_a_torn_file_is_trained_again_with_a_warning(own_cache):
    trained = train(Recipe(**QUICK))
    (file,) = own_cache.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    with pytest.warns(UserWarning, match="cannot be read"):
        again = train(Recipe(**QUICK))
    assert torch.equal(weights(again), weights(trained))


def test_training_leaves_the_process_as_found():
    before = torch.are_deterministic_algorithms_enabled(), os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    train(Recipe(**QUICK), seed=9)
    assert (
        (torch.are_deterministic_algorithms_enabled(), os.environ.get("CUBLAS_WORKSPACE_CONFIG"))
        == before
        == (False, None)
    )
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(Recipe(**QUICK))
    assert torch.equal(torch.rand(3), expected)


def test_random_weights_are_not_trained_and_not_stored(own_cache):
    network = train(recipes()["random"], seed=3)
    assert not own_cache.exists()
    assert network.blocks[0].norm.num_batches_tracked == 0
    assert not torch.equal(weights(network), weights(train(recipes()["random"], seed=4)))


def test_recipes_use_the_group_where_their_name_says():
    known = recipes("D4")
    assert [(known[k].group, known[k].augment) for k in ("plain", "augmented", "equivariant")] == [
        ("C1", "C1"), ("C1", "D4"), ("D4", "C1"),
    ]  # fmt: skip


def test_augmentation_moves_every_image_by_an_element_of_its_own_evenly():
    torch.manual_seed(0)
    image = torch.arange(9.0).reshape(1, 3, 3)
    batch = augmented(image.expand(4000, 1, 3, 3), actions.spatial("D4"))
    orbit = torch.stack([actions.spatial("D4")(g, image) for g in range(8)])
    counts = (batch[:, None] == orbit[None]).flatten(2).all(-1).sum(0)
    assert counts.sum() == 4000
    # a binomial count of 500 ± 21; five standard deviations
    assert (counts - 500).abs().max() < 105


def test_augmentation_by_the_trivial_group_changes_nothing():
    images = torch.rand(3, 1, 5, 5)
    assert torch.equal(augmented(images, actions.spatial("C1")), images)


def test_a_recipe_says_what_is_wrong_with_it():
    with pytest.raises(ValueError, match="whole number from 0, got -1"):
        Recipe(epochs=-1)
    with pytest.raises(ValueError, match="no group 'c4'; did you mean 'C4'"):
        recipes("c4")


@pytest.mark.slow
def test_a_short_training_learns_the_digits():
    from eedkit.lab import images

    x, y, _ = images.tensors(images.load("digits/test", size=17))
    with torch.no_grad():
        accuracy = (train(Recipe(epochs=5))(x).argmax(-1) == y).double().mean().item()
    assert accuracy > 0.95
