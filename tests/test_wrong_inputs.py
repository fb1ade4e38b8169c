"""Wrong inputs as a user sees them: each message says what was expected, what came, and what to do."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import eedkit as ek
from eedkit.lab.images import load
from eedkit.theory.actions import Action, linear, spatial
from eedkit.theory.groups import Group, parse

IMAGES = torch.rand(8, 1, 5, 5, generator=torch.Generator().manual_seed(0))
NOT_ASSOCIATIVE = ((0, 1, 2, 3, 4), (1, 0, 3, 4, 2), (2, 4, 0, 1, 3), (3, 2, 4, 0, 1), (4, 3, 1, 2, 0))


class Network(nn.Sequential):
    """A convolution and a head of three classes."""

    def __init__(self):
        super().__init__(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(50, 3))


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Folders with something wrong in each, in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("pets/cat/a.png", "pets/dog/a.png", "splits/train/cat/a.png", "splits/test/cat/a.png", "aged/a.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2)).save(path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "aged" / "metadata.csv").write_text("file_name,age\na.png,1.5\n")
    (tmp_path / "unnamed").mkdir()
    (tmp_path / "unnamed" / "metadata.csv").write_text("picture,label\na.png,1\n")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "a.png").write_text("no picture")
    (tmp_path / "x.parquet").write_text("no table")


def measured(images=IMAGES, group="C4", **options):
    return ek.measure(Network(), images, group=group, progress=False, **options)


def acting(name, move, group="flip"):
    return Action(name, parse(group), move)


@pytest.mark.parametrize(
    ("group", "parts"),
    [
        ("C_4", ["no group 'C_4'", "did you mean 'C4'", "may follow C"]),
        ("C0", ["C0 has no elements", "n must be at least 1"]),
        (4, ["a group is a name such as 'C4' or a Group", "got int"]),
        ("C5000", ["5,000 elements", "may have 512", "choose a smaller one"]),
        ("SO(2)?m=4", ["'m=4'", "n (how many parts), seed and jitter", "as in SO(2)?n=16&seed=1"]),
        ("C4*flip", ["is no direct product", "D4"]),
        ("SO(2)?n=4*flip", ["is no direct product", "D4 and O(2) have turns and mirrors together"]),
        (Group("Z", ("e", "a"), ((0, 1), (1, 0))), ["Z has no motions on the plane", "give an Action of your own"]),
        (acting("crop", lambda g, z: z[..., g:, :]), ["m turned", "into (3, 4, 5)", "keeps the shape"]),
        (acting("lost", lambda g, z: None), ["e turned a tensor into NoneType", "returns the moved tensor"]),
        (acting("negative", lambda g, z: 1 - z if g else z), ["m is not linear", "can only be moved or mixed"]),
        (acting("drift", lambda g, z: z.roll(1 + g, -1)), ["e is not the identity"]),
        (
            acting("mirrors", lambda g, z: z.flip(-1) if g else z, "C4"),
            ["r90 and then r90 is not r180"],
        ),
        ("shift4", ["need a height divisible by 4", "got 5"]),
        ("rgb", ["rgb permutes 3 colour channels", "got images of 1"]),
    ],
)
def test_groups_and_actions_that_cannot_act(group, parts):
    with pytest.raises((ValueError, TypeError)) as raised:
        measured(group=group)
    assert [part for part in parts if part not in str(raised.value)] == []


@pytest.mark.parametrize(
    ("labels", "table", "parts"),
    [
        ("ea", ((0, 1), (1, 2)), ["not closed", "an index from 0 to 1, got 2", "add the element that is missing"]),
        ("ae", ((1, 0), (0, 1)), ["the first element (a) must be the identity", "0 to 1 in order", "[1, 0]"]),
        ("ea", ((0, 1),), ["must be 2×2", "got rows of [2]"]),
        ("ea", ((0, 1), (1, 1)), ["a has no inverse", "its row of the table repeats an element"]),
        ("ee", ((0, 1), (1, 0)), ["different labels", "got ('e', 'e')"]),
        ("eabcd", NOT_ASSOCIATIVE, ["not associative: (a a) b differs from a (a b)", "correct these products"]),
    ],
)
def test_tables_that_are_no_group(labels, table, parts):
    with pytest.raises((ValueError, TypeError)) as raised:
        Group("Z", tuple(labels), table)
    assert [part for part in parts if part not in str(raised.value)] == []


def test_elements_and_matrices_that_a_group_does_not_have():
    with pytest.raises(ValueError, match=r"C4 has no element 'r45' \(all 4: e, r90, r180, r270\)"):
        spatial("C4")("r45", IMAGES)
    with pytest.raises(ValueError, match=r"expected one square matrix for each of 2 elements, got \(3, 3\)"):
        linear("C2", torch.eye(3))


@pytest.mark.parametrize(
    ("images", "parts"),
    [
        (torch.rand(8, 1, 5, 6), ["need square images, got 5×6", "centre-crop or pad first"]),
        (IMAGES[:0], ["no image to measure on", "expected at least one"]),
        (IMAGES[0], ["must have shape (n, C, H, W), got (1, 5, 5)", "images[None]"]),
        (IMAGES[:3], ["needs 4 images, got 3", "pass more, or null=False"]),
        ((IMAGES * 255).long(), ["must be floats, or uint8", "got torch.int64", "convert them first"]),
        ("digits/tset", ["no bundled images, folder or file 'digits/tset'", "did you mean 'digits/test'"]),
        (3, ["must be a tensor (n, C, H, W), a DataLoader or a data set", "got int"]),
        ([IMAGES[0], torch.rand(1, 7, 7)] * 2, ["must have one size", "1×7×7", "resize or crop first"]),
        ([np.ones((3, 5, 3), np.float32)] * 8, ["shape (3, 5, 3) does not show", "give a torch tensor (C, H, W)"]),
    ],
)
def test_images_that_cannot_be_measured(images, parts):
    with pytest.raises((ValueError, TypeError)) as raised:
        measured(images)
    assert [part for part in parts if part not in str(raised.value)] == []


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("empty", ["empty holds no images", "expected files such as .png"]),
        ("nothing", ["no bundled images, folder or file 'nothing'", "digits/test", "spelled 'hub:owner/name/split'"]),
        ("splits", ["holds the splits test, train", "name the one that is meant", "splits/test"]),
        ("unnamed", ["metadata.csv", "its columns are picture, label", "expected a column file_name"]),
        ("aged?label=agee", ["no column 'agee'", "did you mean 'age'"]),
        ("aged?label=age", ["whole numbers or words", "holds float64", "?label="]),
        ("pets?per_class=2", ["per_class=2", "number 1, has 1", "ask for at most 1"]),
        ("pets?n=3", ["has 2 images, cannot take n=3", "ask for fewer"]),
        ("pets?n=1&per_class=1", ["got n=1 and per_class=1", "keep one"]),
        ("pets?size=0", ["size must be at least 1 pixel, got 0"]),
        ("pets?sizes=3", ["no option 'sizes'", "did you mean 'size'"]),
        ("torn", ["cannot read the image", "it is none of AVIF", "convert it"]),
        ("x.parquet", ["x.parquet is not a parquet file"]),
        ("digit/test", ["no bundled images, folder or file 'digit/test'", "did you mean 'digits/test'"]),
    ],
)
def test_folders_and_files_that_hold_no_such_images(spec, parts):
    with pytest.raises((ValueError, TypeError)) as raised:
        load(spec)[0]
    assert [part for part in parts if part not in str(raised.value)] == []


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"labels": [1, 2]}, ["expected one label for each of 8 images, got 2"]),
        ({"labels": torch.rand(8, 3)}, ["one per image, or one-hot rows (n, k)", "got shape (8, 3)"]),
        ({"labels": "label"}, ["one per image, in a list", "got str"]),
        ({"labels": [0] * 7 + [1], "null": "within-class"}, ["4 images of each class, got 1 of 1", "leave that class"]),
        ({"null": "within-class"}, ["needs to know the labels", "pass labels="]),
        ({"null": "class"}, ["True, False or 'within-class'", "got 'class'"]),
        ({"metrics": ["latnt"]}, ["no metric 'latnt'", "did you mean 'latent'"]),
        ({"metrics": ["latent", "latent"]}, ["one or more with different names", "['latent', 'latent']"]),
        ({"layers": ["4"]}, ["no layer '4'", "all 4: 0, 1, 2, 3"]),
        ({"head": "classifier"}, ["no head 'classifier'", "all 4: 0, 1, 2, 3"]),
        ({"output": "logits"}, ["no output 'logits'", "scores, probabilities, independent", "gives none with a name"]),
    ],
)
def test_labels_outputs_and_names_that_do_not_fit(options, parts):
    with pytest.raises((ValueError, TypeError)) as raised:
        measured(**options)
    assert [part for part in parts if part not in str(raised.value)] == []


def test_an_output_that_is_not_finite_has_no_value_and_says_why():
    with pytest.warns(UserWarning, match=r"8 of 8 samples have no value: .* output is not finite for sample 0 under e"):
        ds = measured(IMAGES * float("nan"))
    assert ds.softmax.isnull().all()


def test_modules_that_a_study_cannot_find(tmp_path):
    given = {"models": ["recipe:random"], "data": ["digits/test"], "store": tmp_path / "a.study"}
    with pytest.raises(ValueError, match=r"no nowhere:thing \(No module named 'nowhere'\); .* PYTHONPATH"):
        ek.Study(groups=["nowhere:thing"], **given)
    with pytest.raises(ValueError, match=r"groups must be names, Group or Action values, .* got 3\.14159"):
        ek.Study(groups=["math:pi"], **given)
