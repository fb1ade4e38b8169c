import io
import os
import pickle
import re
import runpy
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from PIL import EpsImagePlugin, Image, PngImagePlugin

from eedkit.lab.corruptions import CORRUPTIONS, corrupted
from eedkit.lab.images import HELP, OF_PACKAGES, Preprocessing, check, fingerprint, load, source, tensors
from eedkit.lab.specs import BUNDLED, IMAGES
from eedkit.probe.samples import as_float, opaque, preprocessing

DATA = Path(__file__).parents[2] / "data"


@pytest.fixture(scope="module")
def build():
    """data/build.py, which lies outside the package."""
    return SimpleNamespace(**runpy.run_path(str(DATA / "build.py")))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """What each parquet file holds, read without eedkit: spec -> {id: (pixels, class name)}."""

    def read(spec):
        rows = datasets.Dataset.from_parquet(str(DATA / f"{spec}.parquet"), cache_dir=tmp_path_factory.getbasetemp())
        names = rows.features["label"].names
        return {row["id"]: (np.asarray(row["image"]), names[row["label"]]) for row in rows}

    return {spec: read(spec) for spec in BUNDLED}


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Two classes of three and two images, 6×10; the k-th is 10k everywhere."""
    for k, name in enumerate(["cat/a.png", "cat/b.png", "cat/c.png", "dog/a.png", "dog/b.PNG"]):
        save(tmp_path / "pets[1]" / name, np.full((6, 10), 10 * k))
    (tmp_path / "pets[1]" / "cat" / "notes.txt").write_text("not an image")
    return tmp_path / "pets[1]"


def parquet(path, columns, **features):
    datasets.Dataset.from_dict(columns, features=datasets.Features(features) if features else None).to_parquet(path)
    return path


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def write(path, text):
    path.write_text(text)
    return path


def made_by(function):
    """A model's preprocessing that is this function of the image."""
    return Preprocessing(1, 1, "bilinear", (0.0,) * 3, (1.0,) * 3, lambda *_: function)


class TestBundled:
    def test_bundled_names_exactly_the_files_that_are_there(self):
        assert sorted(BUNDLED) == sorted(str(f.relative_to(DATA).with_suffix("")) for f in DATA.glob("*/*.parquet"))
        assert sum(f.stat().st_size for f in DATA.rglob("*") if f.is_file()) < 6e6

    def test_digits_are_all_of_scikit_learn_s_split_in_proportion(self, stored):
        from sklearn.datasets import load_digits

        source = load_digits()
        train, test = stored["digits/train"], stored["digits/test"]
        assert (len(train), len(test), len(train | test)) == (1400, 397, 1797)
        for name, (pixels, label) in (train | test).items():
            index = int(name.removeprefix("digits-"))
            assert str(source.target[index]) == label
            assert np.abs(pixels / 255 * 16 - source.images[index]).max() < 0.04  # half a grey level
        for label, count in Counter(name for _, name in test.values()).items():
            assert abs(count - 397 / 1797 * (source.target == int(label)).sum()) < 1

    def test_no_id_is_in_two_files_and_no_image_in_train_and_test(self, stored):
        everything = [name for rows in stored.values() for name in rows]
        assert len(set(everything)) == len(everything) == 1797 + 26 * 80 + 12 * 85 + 200 + 3000
        for name in ("digits", "letters", "patches", "fashion"):
            train, test = (
                {pixels.tobytes() for pixels, _ in stored[f"{name}/{split}"].values()} for split in ("train", "test")
            )
            assert not train & test, name

    @pytest.mark.parametrize("name", ["digits", "letters", "patches", "faces", "fashion"])
    def test_build_makes_the_same_pixels_labels_and_ids_again(self, stored, build, name):
        if name == "fashion" and not build.FASHION.is_dir():
            pytest.skip(f"no Fashion-MNIST in {build.FASHION}")
        again = build.MAKERS[name]()
        assert {f"{name}/{split}" for split in again} == {spec for spec in BUNDLED if spec.startswith(name)}
        for split, rows in again.items():
            rows = {row.id: (row.pixels, build.NAMES[name][row.label]) for row in rows}
            kept = stored[f"{name}/{split}"]
            assert rows.keys() == kept.keys()
            assert all(rows[i][1] == kept[i][1] and np.array_equal(rows[i][0], kept[i][0]) for i in rows)


class TestLoad:
    @pytest.mark.parametrize("spec", ["digits/test", "patches/test"])
    def test_item_is_a_float_image_an_int_and_a_string(self, spec, stored):
        data = load(spec)
        item = data[3]
        pixels, label = stored[spec][item["id"]]
        assert set(item) == {"image", "label", "id"}
        assert item["image"].dtype == torch.float32
        assert type(item["label"]) is int
        assert data.features["label"].names[item["label"]] == label
        expected = torch.tensor(pixels / 255, dtype=torch.float32)
        assert torch.equal(item["image"], expected[None] if pixels.ndim == 2 else expected.permute(2, 0, 1))

    def test_channels_convert_both_ways(self):
        grey, colour = load("digits/test")[0]["image"], load("digits/test", channels=3)[0]["image"]
        assert torch.equal(colour, grey.expand(3, -1, -1))
        photo, luma = load("patches/test")[0]["image"], load("patches/test", channels=1)[0]["image"]
        weighted = (photo * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True)
        assert luma.shape == (1, 32, 32)
        assert (luma - weighted).abs().max() <= 1.01 / 255

    def test_size_enlarges_bilinearly_like_torch(self):
        small, large = load("digits/test")[0]["image"], load("digits/test", size=17)[0]["image"]
        expected = torch.nn.functional.interpolate(small[None], (17, 17), mode="bilinear", align_corners=False)[0]
        assert (large - expected).abs().max() <= 1.01 / 255

    def test_size_shrinks_with_antialiasing(self, tmp_path):
        stripes = np.tile([0, 255], (64, 32))  # without antialiasing: one of the two, or a moiré
        save(tmp_path / "s" / "a" / "stripes.png", stripes)
        image = load(tmp_path / "s", size=8)[0]["image"]
        assert image.shape == (1, 8, 8)
        assert (image - 0.5).abs().max() < 0.05

    def test_oblong_images_are_cropped_to_the_central_square(self, tmp_path):
        pixels = np.zeros((6, 10))
        pixels[:, 2:8] = 200
        save(tmp_path / "s" / "a" / "wide.png", pixels)
        save(tmp_path / "s" / "b" / "tall.png", pixels.T)
        wide, tall = (row["image"] for row in load(tmp_path / "s", size=6))
        assert torch.equal(wide, torch.full((1, 6, 6), 200 / 255))
        assert torch.equal(tall, wide)

    def test_a_turned_camera_is_put_upright(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6  # "rotate by 90 degrees clockwise to see it upright"
        pixels = np.array([[0, 50], [100, 200], [0, 0]], dtype=np.uint8)
        (tmp_path / "s" / "a").mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "s" / "a" / "x.png", exif=exif)
        shown = load(tmp_path / "s")[0]["image"][0] * 255
        assert torch.equal(shown.round(), torch.tensor(np.rot90(pixels, -1).astype(np.float32)))

    def test_one_column_can_be_read_alone_and_labels_without_decoding(self, monkeypatch):
        assert load("faces/test").select_columns(["image"])[0]["image"].shape == (1, 25, 25)
        assert len(set(load("faces/test")["id"])) == 200
        monkeypatch.setattr(Image, "open", lambda *a: pytest.fail("decoded an image"))
        assert Counter(load("faces/test").select_columns("label")["label"]) == {0: 100, 1: 100}

    def test_feeds_a_data_loader_survives_pickling_and_says_nothing(self, capfd):
        data = pickle.loads(pickle.dumps(load("digits/test", size=17)))
        batch = next(iter(torch.utils.data.DataLoader(data, batch_size=5)))
        images, labels, ids = tensors(load("digits/test", size=17))
        assert torch.equal(batch["image"], images[:5])
        assert torch.equal(batch["label"], labels[:5])
        assert batch["id"] == ids[:5]
        assert capfd.readouterr() == ("", "")

    def test_installed_package_reads_its_own_copy(self, tmp_path, monkeypatch):
        module = tmp_path / "eedkit" / "lab" / "images.py"
        (tmp_path / "eedkit" / "_data" / "digits").mkdir(parents=True)
        parquet(tmp_path / "eedkit" / "_data" / "digits" / "test.parquet", {"image": [png([[7]])], "label": [4]})
        monkeypatch.setattr("eedkit.lab.images.__file__", str(module))
        assert load("digits/test")["label"][:] == [4]


class TestSubsets:
    @pytest.mark.parametrize("n", [1, 7, 50, 333])
    def test_n_takes_each_class_s_share_to_within_one(self, n):
        labels = Counter(load("digits/train")["label"][:])
        part = Counter(load(f"digits/train?n={n}&seed=1")["label"][:])
        assert part.total() == n
        assert all(abs(part[c] - n * labels[c] / 1400) <= 1 for c in labels)

    @pytest.mark.parametrize("option", ["n", "per_class"])
    def test_it_is_seeded_and_smaller_subsets_lie_in_larger_ones(self, option):
        few, more, other = (
            set(load(f"letters/test?{option}={n}&seed={seed}")["id"]) for n, seed in ((3, 1), (8, 1), (3, 2))
        )
        assert few == set(load(f"letters/test?{option}=3&seed=1")["id"])
        assert few < more
        assert few != other

    @pytest.fixture
    def skewed(self, tmp_path):
        """90 images of one class, 10 of another, none of a third."""
        for k in range(100):
            save(tmp_path / "pets" / ("cat" if k < 90 else "dog") / f"{k:02d}.png", [[k]])
        (tmp_path / "pets" / "cow").mkdir()
        return tmp_path / "pets"

    def test_of_unequal_classes_n_takes_shares_and_per_class_as_many_of_each(self, skewed):
        assert Counter(load(f"{skewed}?n=20")["label"]) == {0: 18, 2: 2}
        data = load(f"{skewed}?per_class=7")
        assert Counter(data["label"]) == {0: 7, 2: 7}
        assert data.features["label"].names == ["cat", "cow", "dog"]

    def test_what_cannot_be_taken_is_refused(self, skewed):
        for query, message in {
            "per_class=11": r"the smallest class of .*pets, number 2, has 10; ask for at most 10",
            "n=101": "has 100 images, cannot take n=101",
        }.items():
            with pytest.raises(ValueError, match=message):
                load(f"{skewed}?{query}")
        with pytest.raises(ValueError, match=r"pets/cat has no labels; take n=4 instead"):
            load(f"{skewed}/cat?per_class=4")


class TestFolders:
    def test_folder_gives_classes_in_order_and_ids_by_class_and_file(self, folder):
        images, labels, ids = tensors(load(folder))
        assert ids == ["cat/a.png", "cat/b.png", "cat/c.png", "dog/a.png", "dog/b.PNG"]
        assert labels.tolist() == [0, 0, 0, 1, 1]
        assert load(folder).features["label"].names == ["cat", "dog"]
        assert (images[:, 0, 0, 0] * 255).round().tolist() == [0, 10, 20, 30, 40]

    def test_relative_folder_is_found_and_outlives_a_change_of_directory(self, folder, tmp_path, monkeypatch):
        monkeypatch.chdir(folder.parent)
        data = load("pets[1]")
        monkeypatch.chdir(tmp_path.parent)
        assert data[1]["image"].shape == (1, 6, 10)

    def test_a_flat_folder_has_no_labels(self, folder):
        data = load(folder / "cat")
        assert data["id"][:] == ["a.png", "b.png", "c.png"]
        assert data["label"][:] == [-1, -1, -1]

    def test_a_folder_without_images_is_refused(self, folder):
        (folder / "cow").mkdir()
        (folder / "cow" / "notes.txt").write_text("not an image")
        with pytest.raises(ValueError, match=r"cow holds no images; expected files such as \.png"):
            load(folder / "cow")

    def test_classes_are_those_of_torchvision_with_empty_ones(self, folder):
        for empty in ("ant", "cow", "eel"):
            (folder / empty).mkdir()
        theirs = torchvision.datasets.ImageFolder(folder, allow_empty=True)
        data = load(folder)
        assert data.features["label"].names == theirs.classes == ["ant", "cat", "cow", "dog", "eel"]
        assert data["label"][:] == theirs.targets == [1, 1, 1, 3, 3]
        assert [str(folder / name) for name in data["id"]] == [path for path, _ in theirs.samples]

    def test_what_is_hidden_is_no_image_and_no_class(self, folder):
        for hidden in (
            ".old/a.png",
            ".git/refs/b.png",
            "cat/.thumbs/c.png",
            "cat/.d.png",
            ".e.png",
            "__pycache__/f.png",
        ):
            save(folder / hidden, [[1]])
        data = load(folder)
        assert data.features["label"].names == ["cat", "dog"]
        assert data["label"][:] == [0, 0, 0, 1, 1]

    def test_nested_classes_are_named_by_their_own_folder_and_keep_the_number_of_empty_ones(self, tmp_path):
        for name in ("wild/cat/a.png", "wild/fox/a.png", "tame/cat/a.png", "tame/dog/b.JPG"):
            save(tmp_path / "pets" / name, [[1]])
        (tmp_path / "pets" / "wild" / "bear").mkdir()
        data = load(tmp_path / "pets")
        assert data["id"][:] == ["tame/cat/a.png", "tame/dog/b.JPG", "wild/cat/a.png", "wild/fox/a.png"]
        assert data.features["label"].names == ["bear", "cat", "dog", "fox"]
        assert data["label"][:] == [1, 2, 1, 3]

    @pytest.mark.parametrize("elsewhere", ["x.png", "cat/young/x.png"])
    def test_images_of_several_depths_have_no_labels_and_say_so(self, folder, elsewhere):
        save(folder / elsewhere, [[1]])
        with pytest.warns(
            UserWarning, match=r"no labels, since they do not lie equally deep \(.*x\.png.*metadata\.csv"
        ):
            data = load(folder)
        assert data["label"][:] == [-1] * 6

    def test_a_folder_of_splits_asks_for_one(self, tmp_path):
        for name in ("train/cat/a.png", "train/dog/a.png", "Val/cat/a.png", "Val/dog/a.png"):
            save(tmp_path / "pets" / name, [[1]])
        with pytest.raises(ValueError, match=r"holds the splits Val, train; name the one that is meant: .*pets/Val"):
            load(tmp_path / "pets")
        assert load(tmp_path / "pets" / "Val")["label"][:] == [0, 1]

    def test_a_class_folder_that_cannot_be_read_is_named(self, folder, monkeypatch):
        read = os.scandir

        def scandir(path):
            if str(path).endswith("dog"):
                raise PermissionError(13, "Permission denied", str(path))
            return read(path)

        monkeypatch.setattr(os, "scandir", scandir)
        with pytest.raises(PermissionError, match=r"Permission denied: .*dog"):
            load(folder)

    @pytest.mark.parametrize("name", [b"cat/\xff.png", b"\xff/a.png"])
    def test_file_names_that_are_no_utf_8_are_refused(self, folder, name):
        file = folder / os.fsdecode(name)
        file.parent.mkdir(exist_ok=True)
        (folder / "cat" / "a.png").rename(file)
        with pytest.raises(ValueError, match=r"must be UTF-8, got b'.*\\xff.*\.png'; rename it"):
            load(folder)


class TestMetadata:
    """Folders whose metadata files say what belongs to each image."""

    @pytest.fixture
    def described(self, tmp_path):
        """Four images, three of which a table describes."""
        for k, name in enumerate(["a.png", "in/b.png", "in/c.png", "d.png"]):
            save(tmp_path / "pets" / name, np.full((2, 2), 10 * k))
        (tmp_path / "pets" / "metadata.csv").write_text(
            "file_name,breed,age,weight\nin/c.png,tabby,3,4.5\na.png,boxer,9,\nin/b.png,tabby,1,3.0\n"
        )
        return tmp_path / "pets"

    def test_rows_and_columns_are_those_of_the_table(self, described):
        data = load(f"{described}?label=breed")
        assert data["id"][:] == ["in/c.png", "a.png", "in/b.png"]
        assert [data.features["label"].names[number] for number in data["label"]] == ["tabby", "boxer", "tabby"]
        assert [round(row["image"].mean().item() * 255) for row in data] == [20, 0, 10]
        assert load(f"{described}?label=age")["label"][:] == [3, 9, 1]
        assert load(described)["label"][:] == [-1, -1, -1]

    def test_other_tables_are_read_alike(self, described):
        table = pd.read_csv(described / "metadata.csv")
        for ending in ("jsonl", "parquet"):
            for file in described.glob("metadata.*"):
                file.unlink()
            if ending == "jsonl":
                table.to_json(described / "metadata.jsonl", orient="records", lines=True)
            else:
                table.to_parquet(described / "metadata.parquet")
            data = load(f"{described}?label=breed")
            assert (data["id"][:], data["label"][:]) == (["in/c.png", "a.png", "in/b.png"], [1, 0, 1])

    def test_a_column_id_has_the_ids_and_an_empty_cell_no_label(self, described):
        (described / "metadata.csv").write_text("file_name,id,label\nd.png,x7,1\na.png,x3,\nin/b.png,x4,0\n")
        assert load(described)["id"][:] == ["x7", "x3", "x4"]
        assert load(described)["label"][:] == [1, -1, 0]

    def test_several_tables_follow_each_other_by_name(self, described):
        (described / "metadata.csv").write_text("file_name,label\nd.png,1\n")
        (described / "in" / "metadata.csv").write_text("file_name,label\nc.png,2\nb.png,0\n")
        assert load(described)["id"][:] == ["d.png", "in/c.png", "in/b.png"]
        assert load(described)["label"][:] == [1, 2, 0]

    def test_a_listed_file_that_is_not_there_costs_itself_alone(self, described):
        (described / "metadata.csv").write_text("file_name,label\nd.png,1\ngone.png,0\n")
        data = load(described)
        assert data[0]["image"].shape == (1, 2, 2)
        with pytest.raises(ValueError, match=r"cannot read the image .*gone\.png"):
            data[1]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("name,label\nd.png,1\n", "its columns are name, label; expected a column file_name"),
            ("file_name,label\n../secret.png,1\n", "'../secret.png' is no path below"),
            ("file_name,label\n/etc/secret.png,1\n", "is no path below"),
            ("file_name,label\n,1\n", "nan is no path below"),
            ("", "expected a column file_name"),
        ],
    )
    def test_tables_that_do_not_name_files_are_refused(self, described, text, message):
        (described / "metadata.csv").write_text(text)
        with pytest.raises(ValueError, match=rf"cannot read .*metadata\.csv: .*{message}"):
            load(described)


class TestParquet:
    def test_parquet_keeps_its_ids_and_takes_its_only_image_and_class_columns(self, tmp_path):
        names = datasets.ClassLabel(names=["no", "yes"])
        columns = {"img": [png([[5]]), png([[6]])], "answer": [1, 0], "id": [70, 71], "other": [0.5, 0.1]}
        kinds = {
            "img": datasets.Image(),
            "answer": names,
            "id": datasets.Value("int32"),
            "other": datasets.Value("float32"),
        }
        data = load(parquet(tmp_path / "x.parquet", columns, **kinds))
        assert [data[0]["label"], data[0]["id"], data[1]["id"]] == [1, "70", "71"]
        assert set(data.features) == {"image", "label", "id"}

    def test_parquet_without_ids_or_labels_is_numbered_by_name_wherever_it_lies(self, tmp_path):
        for place in ("here", "there"):
            (tmp_path / place).mkdir()
            data = load(parquet(tmp_path / place / "mine.parquet", {"image": [png([[5]]), png([[6]])]}))
            assert data["id"][:] == ["mine-0000", "mine-0001"]
            assert data["label"][:] == [-1, -1]

    @pytest.fixture
    def two_columns(self, tmp_path):
        """Images with a fine and a coarse class, as those of CIFAR-100."""
        fine = datasets.ClassLabel(names=["cat", "dog", "oak"])
        coarse = datasets.ClassLabel(names=["animal", "plant"])
        columns = {"i": [png([[k]]) for k in range(3)], "fine": [2, 0, 1], "coarse": [1, 0, 0], "size": [0.5, 0.1, 0.2]}
        features = {"i": datasets.Image(), "fine": fine, "coarse": coarse, "size": datasets.Value("float32")}
        return parquet(tmp_path / "x.parquet", columns, **features)

    def test_one_of_several_columns_of_labels_is_chosen_by_name(self, two_columns):
        fine, coarse = load(f"{two_columns}?label=fine"), load(f"{two_columns}?label=coarse")
        assert (fine["label"][:], coarse["label"][:]) == ([2, 0, 1], [1, 0, 0])
        assert coarse.features["label"].names == ["animal", "plant"]
        assert fine["id"][:] == coarse["id"][:]
        assert source(fine) != source(coarse)

    def test_a_chosen_column_takes_the_place_of_label_words_are_classes_and_what_is_missing_is_minus_1(self, tmp_path):
        columns = {"image": [png([[1]])] * 3, "label": [5, 5, 5], "word": ["b", None, "a"], "number": [4, None, 2]}
        path = parquet(tmp_path / "x.parquet", columns)
        assert load(path)["label"][:] == [5, 5, 5]
        assert load(f"{path}?label=word")["label"][:] == [1, -1, 0]
        assert load(f"{path}?label=word").features["label"].names == ["a", "b"]
        assert load(f"{path}?label=number")["label"][:] == [4, -1, 2]

    def test_columns_that_do_not_fit_are_refused(self, two_columns, tmp_path):
        for path, message in {
            two_columns: r"needs a column 'label'.*it has: i, fine, coarse",
            f"{two_columns}?label=fein": r"no column 'fein'; did you mean 'fine'.* in .*x\.parquet",
            f"{two_columns}?label=size": r"whole numbers or words, but .* holds float32; name another",
            parquet(tmp_path / "y.parquet", {"x": [1.0]}): r"needs a column 'image'.*it has: x",
            parquet(tmp_path / "z.parquet", {"image": []}, image=datasets.Image()): "holds no images",
            parquet(tmp_path / "i.parquet", {"image": [png([[5]])] * 2, "id": ["a", "a"]}): "1 ids that .* such as 'a'",
            write(tmp_path / "t.parquet", "hello"): r"t\.parquet is not a parquet file",
        }.items():
            with pytest.raises(ValueError, match=message):
                load(path)

    def test_a_row_without_an_image_costs_itself_alone(self, tmp_path):
        data = load(parquet(tmp_path / "x.parquet", {"image": [png([[5]]), None]}, image=datasets.Image()))
        assert len(source(data)) == 16
        assert data[0]["image"].shape == (1, 1, 1)
        with pytest.raises(ValueError, match="there is no image x-0001"):
            data[1]

    @pytest.mark.parametrize(("path", "name"), [(None, "x-0001"), ("cat.png", r"cat\.png")])
    def test_a_broken_image_is_named(self, tmp_path, path, name):
        columns = {"image": [png([[5]]), {"bytes": b"junk", "path": path}]}
        with pytest.raises(ValueError, match=f"cannot read the image {name}"):
            tensors(load(parquet(tmp_path / "x.parquet", columns)))


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def too_much_text(path):
    text = PngImagePlugin.PngInfo()
    text.add_text("bomb", "0" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    Image.new("L", (6, 6)).save(path, pnginfo=text)


class TestBrokenFiles:
    @pytest.mark.parametrize(
        ("harm", "message"),
        [
            (lambda path: path.write_bytes(b"not a picture"), "it is none of .*PNG"),
            (cut_in_half, ""),
            (lambda path: Image.new("L", (6, 6)).save(path, "EPS"), "it is none of .*PNG"),
            (too_much_text, "Decompressed data too large"),
            (lambda path: Image.fromarray(np.full((4, 4), 40000, dtype=np.uint16)).save(path), "pixels of mode I;16"),
        ],
    )
    def test_it_is_named_with_and_without_a_transform_and_starts_no_program(self, folder, monkeypatch, harm, message):
        monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
        harm(folder / "dog" / "a.png")
        for transform in (None, made_by(as_float)):
            with pytest.raises(ValueError, match=rf"cannot read the image .*dog.a\.png: .*{message}"):
                load(folder, transform=transform)[:]

    @pytest.mark.parametrize("limit", [50, 25])
    def test_images_beyond_pillow_s_limit_are_named(self, folder, monkeypatch, limit):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)  # Pillow warns of 60 pixels, or raises
        with pytest.raises(ValueError, match=r"cat.a\.png: Image size \(60 pixels\) exceeds limit"):
            load(folder)[0]

    def test_mixed_sizes_say_how_to_load_them(self, tmp_path):
        save(tmp_path / "s" / "a" / "1.png", np.zeros((4, 4)))
        save(tmp_path / "s" / "a" / "2.png", np.zeros((5, 4, 3)))
        with pytest.raises(ValueError, match=r"2 shapes \(1×4×4, 3×5×4"):
            tensors(load(tmp_path / "s"))
        assert tensors(load(tmp_path / "s", size=4, channels=1))[0].shape == (2, 1, 4, 4)


def transparent(mode):
    """Two pixels, one opaque and one transparent with a dark colour hidden in it, in each way that files have."""
    if mode in ("RGBA", "LA"):
        pixels = {"RGBA": [(255, 0, 0, 255), (0, 0, 9, 0)], "LA": [(51, 255), (9, 0)]}
        image = Image.new(mode, (2, 1))
        image.putdata(pixels[mode])
        return image, {}
    image = Image.new(mode, (2, 1))
    if mode == "P":
        image.putpalette([255, 0, 0, 0, 0, 9])
    image.putdata({"P": [0, 1], "L": [51, 9], "RGB": [(255, 0, 0), (0, 0, 9)]}[mode])
    return image, {"transparency": {"P": 1, "L": 9, "RGB": (0, 0, 9)}[mode]}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
class TestTransparency:
    def shown(self, mode):
        grey = torch.tensor([[[0.2, 1]]])
        return grey if mode in ("L", "LA") else torch.tensor([[[1.0, 1]], [[0, 1]], [[0, 1]]])

    def test_it_shows_white_in_files_of_a_folder(self, mode, tmp_path):
        (tmp_path / "s" / "a").mkdir(parents=True)
        image, options = transparent(mode)
        image.save(tmp_path / "s" / "a" / "x.png", **options)
        torch.testing.assert_close(load(tmp_path / "s")[0]["image"], self.shown(mode))
        seen = load(tmp_path / "s", transform=made_by(as_float))[0]["image"]
        torch.testing.assert_close(seen, self.shown(mode).expand(3, 1, 2))
        darker = load(f"{tmp_path}/s?corruption=brightness&severity=1", transform=made_by(as_float))[0]["image"]
        assert (darker[:, 0, 1] > 0.5).all()

    def test_it_shows_white_in_sets_of_the_hub_and_pil_items(self, mode, monkeypatch):
        image, options = transparent(mode)
        file = io.BytesIO()
        image.save(file, "PNG", **options)
        rows = datasets.Dataset.from_dict({"image": [{"bytes": file.getvalue(), "path": "x.png"}]})
        rows = rows.cast_column("image", datasets.Image())
        torch.testing.assert_close(as_float(rows[0]["image"]), self.shown(mode))
        torch.testing.assert_close(as_float(Image.open(file)), self.shown(mode))
        monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: rows)
        torch.testing.assert_close(load("hub:a/b/test")[0]["image"], self.shown(mode))


def test_half_of_white_shows_through_a_half_and_grey_stays_grey():
    assert opaque(Image.new("RGBA", (1, 1), (0, 100, 255, 51))).getpixel((0, 0)) == (204, 224, 255)
    modes = {mode: opaque(Image.new(mode, (1, 1))).mode for mode in ("1", "L", "LA", "P", "PA", "CMYK", "YCbCr")}
    assert modes == {"1": "L", "L": "L", "LA": "L"} | dict.fromkeys(["P", "PA", "CMYK", "YCbCr"], "RGB")


NAMED = "no bundled images, folder or file '"


@pytest.mark.parametrize("refuse", [load, check])
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digits/test?sise=17", "no option 'sise'; did you mean 'size'"),
        ("digits/test?n=0", "n must be at least 1, got 0; or leave it out"),
        ("digits/test?per_class=0", "per_class must be at least 1, got 0"),
        ("digits/test?n=4&per_class=2", "got n=4 and per_class=2; keep one"),
        ("digits/test?channels=2", "channels must be 1, 3 or None, got 2"),
        ("digits/test?size=0", "size must be at least 1, got 0"),
        ("hub:a/b/test?corruption=blurr&severity=3", r"no corruption 'blurr'; did you mean 'blur'"),
        ("hub:a/b/test?corruption=blur", r"'blur' needs a severity from 1 \(mild\) to 5 \(strong\), got None"),
        ("hub:a/b/test?corruption=blur&severity=6", r"to 5 .*, got 6"),
        ("hub:a/b/test?severity=3", "severity 3 needs a corruption beside it, one of noise, blur"),
    ],
)
def test_bad_options_are_refused_before_anything_is_opened(refuse, spec, message, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: pytest.fail("asked the hub"))
    with pytest.raises(ValueError, match=message):
        refuse(spec)


class TestNames:
    @pytest.fixture(autouse=True)
    def no_hub(self, monkeypatch):
        monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: pytest.fail("asked the hub"))

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            *(
                (wrong, "did you mean 'digits/test'|or 'digits/test'")
                for wrong in ("digit/test", "digits", "Digits/test")
            ),
            *(
                (wrong, NAMED + wrong[:30])
                for wrong in ("x" * 5000, "photos/" + "x" * 300, "photos/", "~nobody/photos")
            ),
            *((wrong, "spelled 'hub:owner/name/split'") for wrong in ("a/b", "hub:mnist", "hub:a/b/c/d", "hub:a//c")),
            *((wrong, "Repo id must") for wrong in ("hub:a/" + "x" * 300 + "/test", "hub:a b/c/test")),
        ],
    )
    def test_what_cannot_be_is_refused_and_never_asked_for(self, wrong, message):
        with pytest.raises(ValueError, match=message):
            load(wrong)

    def test_hub_is_asked_for_exactly_what_was_named(self, monkeypatch):
        asked = []
        rows = datasets.Dataset.from_dict({"image": [png([[5]]), png([[6]])], "label": [3, 4]})
        monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: asked.append((a, k)) or rows)
        assert load("hub:ylecun/mnist/test?n=2&size=3")["id"][:] == [f"hub:ylecun/mnist/test-000{i}" for i in (0, 1)]
        assert asked == [(("ylecun/mnist",), {"split": "test"})]

    def test_hub_without_network_says_which_file_to_put_where(self, tmp_path):
        code = "from eedkit.lab.images import load; load('hub:ylecun/mnist/test')"
        offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", code], env=offline, capture_output=True, text=True, timeout=60)
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("ConnectionError: cannot reach the hub for ylecun/mnist")
        assert "put that file here and load('test.parquet')" in last


class TestChecksums:
    def test_they_are_these_numbers_on_every_machine(self):
        assert fingerprint(load("digits/test", size=17)) == "36b6f0c75aedbab7"
        assert source(load("digits/test")) == "cf3d14160b99cd22"

    @pytest.mark.parametrize("checksum", [fingerprint, source])
    def test_they_change_with_pixels_labels_ids_order_and_choice(self, tmp_path, checksum):
        rows = {"image": [png([[5]]), png([[6]])], "label": [0, 1], "id": ["a", "b"]}
        others = [
            rows | {"image": [png([[5]]), png([[7]])]},
            rows | {"label": [0, 0]},
            rows | {"id": ["a", "c"]},
            {name: column[::-1] for name, column in rows.items()},
        ]
        paths = [parquet(tmp_path / f"{i}.parquet", r) for i, r in enumerate([rows, rows, *others])]
        found = [checksum(load(path)) for path in [*paths, f"{paths[0]}?n=1"]]
        assert found[0] == found[1]
        assert len(set(found)) == 6

    def test_fingerprints_do_not_depend_on_how_the_pixels_are_stored(self, tmp_path):
        pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "BMP")
        columns = [{"image": [image], "id": ["a"]} for image in (png(pixels), {"bytes": file.getvalue(), "path": None})]
        one, two = (load(parquet(tmp_path / f"{i}.parquet", c)) for i, c in enumerate(columns))
        assert fingerprint(one) == fingerprint(two)

    def test_sources_decode_nothing_and_do_not_depend_on_size_corruption_or_transform(self, monkeypatch):
        monkeypatch.setattr(Image, "open", lambda *a: pytest.fail("decoded an image"))
        data = [load(f"faces/test{query}") for query in ("", "?size=17", "?channels=3", "?corruption=noise&severity=1")]
        assert len({source(one) for one in [*data, load("faces/test", transform=made_by(as_float))]}) == 1

    def test_sources_read_a_folder_s_files_and_reports_no_missing_one(self, folder):
        data, whole = load(folder), source(load(folder))
        other = folder.parent / "moved"
        folder.rename(other)
        assert source(load(other)) == whole
        gone = source(data)
        assert gone != whole
        other.rename(folder)
        save(folder / "cat" / "a.png", np.ones((6, 10)))
        assert source(data) not in (whole, gone)


class TestOptions:
    def test_a_path_takes_them_and_keeps_its_ids(self, folder):
        told = load("digits/test?n=30&size=17&channels=3&seed=1")
        assert told[0]["image"].shape == (3, 17, 17)
        assert fingerprint(told) == fingerprint(load("digits/test?n=30&seed=1", size=17, channels=3))
        assert set(load(f"{folder}?n=2")["id"]) < set(load(folder)["id"])

    def test_a_size_in_the_spec_goes_over_the_keyword_and_other_channels_are_refused(self):
        assert fingerprint(load("digits/test?size=9", size=17)) == fingerprint(load("digits/test?size=9"))
        with pytest.raises(ValueError, match=r"channels is 3 in .*, but images of 1 are asked for"):
            load("digits/test?channels=3", channels=1)

    def test_help_names_each_of_them_and_all_bundled_images(self):
        assert all(re.search(rf"^  {name}= .*\(.*\)$", HELP, re.MULTILINE) for name in IMAGES)
        assert all(name in HELP for name in (*BUNDLED, *OF_PACKAGES, *CORRUPTIONS, "hub:owner/name/split"))

    @pytest.mark.parametrize(
        ("spec", "keywords", "words"),
        [
            ("digits/test", {}, "in their own size, values in [0, 1]"),
            ("digits/test?size=9", {"channels": 3}, "central square resized to 9×9 (bilinear), RGB, values in [0, 1]"),
        ],
    )
    def test_a_data_set_says_how_its_images_are_made_also_of_a_part(self, spec, keywords, words):
        data = load(spec, **keywords)
        assert preprocessing(data) == preprocessing(data.select([3, 1])) == words
        assert preprocessing(torch.utils.data.DataLoader(data)) == words


class TestCorruption:
    NOISE = "digits/test?size=17&corruption=noise&severity=2"

    @pytest.mark.parametrize("name", list(CORRUPTIONS))
    def test_the_image_in_its_size_is_corrupted_with_a_seed_from_the_spec_s_and_its_id(self, name):
        spec = "digits/test?size=17&n=12&seed=4"
        for row, told in zip(load(spec), load(f"{spec}&corruption={name}&severity=3"), strict=True):
            seed = zlib.crc32(f"4 {row['id']}".encode())
            assert torch.equal(told["image"], corrupted(row["image"], name, 3, seed=seed))
            assert not torch.equal(told["image"], row["image"])
            assert (told["id"], told["label"]) == (row["id"], row["label"])

    def test_what_is_drawn_does_not_depend_on_order_subset_batch_or_other_draws(self):
        images, _, ids = tensors(load(self.NOISE))
        whole = dict(zip(ids, images, strict=True))
        torch.manual_seed(1)
        for some in (
            load(f"{self.NOISE}&n=20"),
            load(self.NOISE).select([300, 7, 41]),
            load(self.NOISE).shuffle(seed=2),
        ):
            state = torch.get_rng_state()
            assert all(torch.equal(row["image"], whole[row["id"]]) for row in some)
            assert torch.equal(torch.get_rng_state(), state)

    def test_each_image_and_each_seed_draws_anew_and_all_severities_the_same(self, tmp_path):
        path = parquet(tmp_path / "x.parquet", {"image": [png(np.full((20, 20), 128))] * 2, "id": [7, 8]})
        noise = [
            load(f"{path}?corruption=noise&severity={s}&seed={seed}")[:]["image"]
            for s, seed in ((1, 0), (1, 1), (2, 0))
        ]
        (a, b), (c, _), (d, _) = ([image - 128 / 255 for image in images] for images in noise)
        close = [torch.corrcoef(torch.stack([a.flatten(), other.flatten()]))[0, 1] for other in (b, c, d)]
        assert max(abs(close[0]), abs(close[1])) < 0.2
        assert close[2] > 0.99

    def test_a_transform_gets_the_upright_image_in_rgb_corrupted_at_its_own_resolution(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6  # "rotate by 90 degrees clockwise to see it upright"
        pixels = np.arange(1, 241, 5, dtype=np.uint8).reshape(6, 8)
        (tmp_path / "s" / "a").mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "s" / "a" / "x.png", exif=exif)
        seen = []
        darker = f"{tmp_path}/s?corruption=brightness&severity=2"
        load(darker, transform=made_by(seen.append))[0]
        assert seen[0].mode == "RGB"
        expected = np.rot90(pixels, -1)[..., None].repeat(3, axis=-1) * 0.6
        np.testing.assert_allclose(np.asarray(seen[0]), expected, rtol=0, atol=0.51)

    def test_without_the_column_of_ids_there_is_no_draw(self):
        data = load(self.NOISE)
        with pytest.raises(ValueError, match="keep the column 'id' beside 'image'"):
            data.select_columns("image")[0]
        assert torch.equal(data.select_columns(["id", "image"])[5]["image"], data[5]["image"])
        assert set(data.select_columns("label")[:]["label"]) == set(range(10))
