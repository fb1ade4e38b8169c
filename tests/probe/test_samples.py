"""Streams of samples: every source, labels, chains and batches, PIL modes, and what is refused or reported."""

import collections
import itertools

import datasets
import numpy as np
import oracles
import pandas as pd
import pytest
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from eedkit.probe.samples import (
    Fingerprint,
    as_float,
    declared_classes,
    label_list,
    open_halves,
    open_stream,
    read_order,
    warn_if_sorted,
)

N = 11
LABELS = [2, 0, 1, 1, 0, 2, 1, 0, 2, 1, 0]
BYTES = np.random.default_rng(2).integers(0, 256, (N, 6, 5, 3), dtype=np.uint8)
WHOLE = torch.from_numpy(BYTES).movedim(-1, 1)


def read(images, **options):
    return list(open_stream(images, **options).samples)


class Pictures(Dataset):
    def __init__(self, images=BYTES, labels=LABELS):
        self.images = images
        self.labels = labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return Image.fromarray(self.images[i]), self.labels[i]


class Stream(IterableDataset):
    """Batches, as a loader gives them."""

    def __iter__(self):
        yield from zip(WHOLE.split(3), torch.tensor(LABELS).split(3), strict=True)


def hub(images=BYTES, **columns):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    if "id" in columns:
        features["id"] = datasets.Value("string")
    pictures = [Image.fromarray(x) for x in images]
    return datasets.Dataset.from_dict({"image": pictures, "label": LABELS, **columns}, features=features)


BY_NUMBER = {
    "data set of PIL images": Pictures,
    "data set of tensors": lambda: TensorDataset(WHOLE, torch.tensor(LABELS)),
    "Hugging Face data set": hub,
    "Hugging Face data set as torch": lambda: hub().with_format("torch"),
    "Hugging Face data set as numpy": lambda: hub().with_format("numpy"),
    "list of mappings": lambda: [{"img": x, "target": y} for x, y in zip(WHOLE, LABELS, strict=True)],
    "list of arrays, channels last": lambda: list(zip(BYTES, LABELS, strict=True)),
    "list of arrays, channels first": lambda: list(zip(WHOLE.numpy(), LABELS, strict=True)),
    "list of float tensors": lambda: list(zip(WHOLE / 255, LABELS, strict=True)),
}
AS_IT_COMES = {
    "loader": lambda: DataLoader(TensorDataset(WHOLE, torch.tensor(LABELS)), batch_size=4),
    "loader of mappings": lambda: DataLoader(hub().with_format("torch"), batch_size=4),
    "iterable of batches": Stream,
    "generator of pairs": lambda: zip(WHOLE, LABELS, strict=True),
    "generator of arrays": lambda: ((x, y) for x, y in zip(BYTES, LABELS, strict=True)),
    "generator of named batches": lambda: (
        {"pixel_values": WHOLE[i : i + 2], "labels": LABELS[i : i + 2]} for i in range(0, N, 2)
    ),
    "streaming Hugging Face data set": lambda: hub().to_iterable_dataset(),
    "map object over PIL images": lambda: map(Pictures().__getitem__, range(N)),
}


@pytest.mark.parametrize("source", BY_NUMBER)
def test_data_sets_are_read_in_the_seeded_order(source):
    samples = read(BY_NUMBER[source](), seed=5)
    assert [sample.row for sample in samples] == oracles.seeded_order(N, 5)
    for sample in samples:
        assert sample.id == sample.row
        assert sample.label == LABELS[sample.row]
        np.testing.assert_allclose(sample.image, WHOLE[sample.row] / 255, atol=1e-7)


@pytest.mark.parametrize("source", AS_IT_COMES)
def test_streams_keep_their_own_order(source):
    samples = read(AS_IT_COMES[source]())
    assert [sample.row for sample in samples] == list(range(N))
    assert [sample.label for sample in samples] == LABELS
    for sample in samples:
        np.testing.assert_allclose(sample.image, WHOLE[sample.row] / 255, atol=1e-7)


@pytest.mark.parametrize("key", ["image", "pixel_values", "img"])
@pytest.mark.parametrize("mapping", [dict, collections.UserDict])
def test_a_mapping_that_holds_images_is_those_images(mapping, key):
    samples = read(mapping({key: WHOLE / 255, "size": 6}), seed=5)
    assert [sample.row for sample in samples] == oracles.seeded_order(N, 5)
    np.testing.assert_allclose(samples[0].image, WHOLE[samples[0].row] / 255, atol=1e-7)


def test_an_array_is_the_tensor_that_it_holds():
    of_array = read(WHOLE.numpy())
    of_tensor = read(WHOLE)
    for one, other in zip(of_array, of_tensor, strict=True):
        assert one.row == other.row
        assert torch.equal(one.image, other.image)


@pytest.mark.parametrize("source", ["tensor", "loader"])
def test_ids_of_the_source_name_the_samples(source):
    ids = [f"picture-{k}" for k in range(N)]
    images = hub(id=ids)
    if source == "loader":
        images = DataLoader(images.with_format("torch"), batch_size=4)
    assert {sample.id: sample.row for sample in read(images)} == {name: k for k, name in enumerate(ids)}


LABELS_IN_EVERY_FORM = {
    "list": LABELS,
    "tuple": tuple(LABELS),
    "tensor": torch.tensor(LABELS),
    "array": np.array(LABELS),
    "Series with another index": pd.Series(LABELS, index=range(100, 100 + N)),
    "one-hot tensor": torch.nn.functional.one_hot(torch.tensor(LABELS)),
    "one-hot array of floats": np.eye(3)[LABELS],
}


@pytest.mark.parametrize("form", LABELS_IN_EVERY_FORM)
def test_labels_come_in_every_form(form):
    given = LABELS_IN_EVERY_FORM[form]
    assert label_list(given) == LABELS
    assert all(type(label) is int for label in label_list(given))
    assert {sample.row: sample.label for sample in read(WHOLE, labels=given)} == dict(enumerate(LABELS))
    assert [sample.label for sample in read(DataLoader(WHOLE, batch_size=4), labels=given)] == LABELS


@pytest.mark.parametrize("make", [list, tuple, np.array, pd.Series, lambda names: pd.Series(names, dtype="category")])
def test_labels_may_be_names(make):
    names = [["ant", "bee", "cow"][label] for label in LABELS]
    assert label_list(make(names)) == names
    assert {sample.row: sample.label for sample in read(WHOLE, labels=make(names))} == dict(enumerate(names))


def test_labels_of_a_batch_may_be_tuples_and_names():
    batches = [(WHOLE[:4], ("a", "b", "a", "c")), (WHOLE[4:6], ("b", "c"))]
    assert [sample.label for sample in read(iter(batches))] == ["a", "b", "a", "c", "b", "c"]


def test_one_hot_labels_of_a_batch_are_their_classes():
    one_hot = torch.nn.functional.one_hot(torch.tensor(LABELS))
    loader = DataLoader(TensorDataset(WHOLE, one_hot), batch_size=4)
    assert [sample.label for sample in read(loader)] == LABELS


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ([1, 2], ValueError, "expected one label for each of 11 images, got 2"),
        ("abc", TypeError, "labels must be one per image, in a list, tensor, array or Series, got str"),
        ({"a": 1}, TypeError, "got dict"),
        (5, TypeError, "got int"),
        (np.full((N, 3), 0.3), ValueError, r"or one-hot rows \(n, k\), got shape \(11, 3\)"),
        (np.zeros((N, 2, 2)), ValueError, r"got shape \(11, 2, 2\)"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, error, message):
    with pytest.raises(error, match=message):
        read(WHOLE, labels=labels)


@pytest.mark.parametrize(
    ("labels", "message"), [([1, 2, 3], "got 3 labels, but more images"), (range(20), "each of 11 images, got 20")]
)
def test_labels_that_do_not_fit_a_stream_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        read(DataLoader(WHOLE, batch_size=4), labels=labels)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (7, TypeError, "images must be a tensor .*got int"),
        ("data/digits", TypeError, "images must be a tensor .*got the name .*open it first"),
        (datasets.DatasetDict({"test": hub()}), TypeError, "got DatasetDict with keys test; choose one of its splits"),
        (torch.rand(0, 3, 6, 6), ValueError, "there is no image to measure on"),
        ([], ValueError, "there is no image to measure on"),
        (DataLoader([]), ValueError, "there is no image to measure on"),
        (torch.rand(3, 6, 6), ValueError, r"must have shape \(n, C, H, W\), got \(3, 6, 6\)"),
        ([torch.rand(6, 6)] * 2, ValueError, r"an image must have shape \(C, H, W\), got \(6, 6\)"),
        ([torch.rand(3, 6, 6), torch.rand(3, 8, 8)], ValueError, "images must have one size, but sample .*; resize or crop first"),
        (DataLoader(torch.rand(4, 6), batch_size=2), ValueError, r"must be \(b, C, H, W\), or an image \(C, H, W\), got \(2, 6\)"),
        ([{"picture": torch.rand(3, 6, 6)}] * 2, ValueError, "no image could be read.*under one of image, pixel_values, img, got keys picture"),
        ([{"image": torch.rand(3, 6, 6), "id": "a"}] * 2, ValueError, "id 'a' stands for more than one sample"),
        (torch.randint(0, 255, (3, 3, 6, 6)), ValueError, "floats, or uint8 to be scaled to .*, got torch.int64"),
    ],
)  # fmt: skip
def test_what_holds_no_images_is_refused(images, error, message):
    with pytest.raises(error, match=message):
        read(images)


SIZES_AND_ORDERS = [(n, order) for n, order in itertools.product([4, 5, 7, 8, 11, 23], [2, 4, 8]) if n >= order]


@pytest.mark.parametrize(("n", "order"), SIZES_AND_ORDERS)
@pytest.mark.parametrize("size", [1, 4, 5, 9, 100])
@pytest.mark.parametrize("has_length", [True, False])
def test_batches_are_whole_chains_of_the_oracle(n, size, order, has_length):
    images = torch.rand(n, 1, 2, 2)
    source = images if has_length else iter(images)
    reading = oracles.seeded_order(n, 0) if has_length else list(range(n))
    batches = list(open_stream(source, order=order, null=True).batches(size))
    found, place = [], 0
    for batch in batches:
        assert batch.start == place
        assert batch.first_chain == len(found)
        place += len(batch.samples)
        found += [[batch.samples[i].row for i in chain] for chain in batch.chains]
    assert found == oracles.chains(n, order, reading)


@pytest.mark.parametrize("has_length", [True, False])
def test_without_a_null_batches_have_the_size_that_was_asked(has_length):
    images = torch.rand(10, 1, 2, 2)
    batches = open_stream(images if has_length else iter(images)).batches(4)
    sizes = [len(batch.samples) for batch in batches]
    assert sum(sizes) == 10
    assert max(sizes) <= 5


def test_a_block_reads_its_own_places():
    images = torch.rand(19, 1, 2, 2)
    stream = open_stream(images, seed=1, order=4, null=True, places=range(8, 19))
    (batch,) = stream.batches(100)
    assert [sample.id for sample in batch.samples] == oracles.seeded_order(19, 1)[8:]
    assert [sample.row for sample in batch.samples] == list(range(11))
    assert (batch.chains, batch.first_chain, batch.start) == ([range(0, 4), range(4, 11)], 2, 8)
    assert stream.length == 11


@pytest.mark.parametrize("places", [range(2, 8), range(0, 6), range(8, 18), range(16, 24), range(0, 8, 2), range(0)])
def test_a_block_that_cuts_a_chain_is_refused(places):
    with pytest.raises(ValueError, match="a block must be whole chains of the 19 images"):
        open_stream(torch.rand(19, 1, 2, 2), order=4, null=True, places=places)


@pytest.mark.parametrize("images", [DataLoader(torch.rand(8, 1, 2, 2)), iter(torch.rand(8, 1, 2, 2)), Stream()])
@pytest.mark.parametrize(
    ("options", "what"), [({"places": range(4)}, "a block"), ({"null": "within-class"}, "a null within classes")]
)
def test_blocks_and_classes_need_images_by_number(images, options, what):
    with pytest.raises(TypeError, match=f"{what} needs images that can be read by number, not a DataLoader"):
        open_stream(images, order=4, **{"null": True, **options})


@pytest.mark.parametrize(("n", "order", "needs"), [(1, 1, 2), (1, 2, 2), (3, 4, 4), (7, 8, 8)])
def test_fewer_images_than_a_shuffled_orbit_are_refused(n, order, needs):
    with pytest.raises(ValueError, match=f"needs {needs} images, got {n}; pass more, or null=False"):
        open_stream(torch.rand(n, 1, 2, 2), order=order, null=True)
    assert len(read(torch.rand(n, 1, 2, 2), order=order)) == n


def within_class(images, labels=None, order=4, seed=3):
    """The chains of a null within classes, as the rows of their images."""
    stream = open_stream(images, labels=labels, seed=seed, order=order, null="within-class")
    found = []
    for batch in stream.batches(6):
        found += [[batch.samples[i].row for i in chain] for chain in batch.chains]
    return found


def chains_by_class(labels, order, seed):
    reading = oracles.seeded_order(len(labels), seed)
    cut = []
    for name in dict.fromkeys(labels):
        members = [i for i in reading if labels[i] == name]
        cut += [[members[k] for k in chain] for chain in oracles.chains(len(members), order)]
    return cut


def test_chains_within_classes_follow_the_seeded_order():
    labels = [0, 1, 1] * 9
    images = torch.rand(27, 1, 2, 2)
    assert sorted(within_class(images, labels)) == sorted(chains_by_class(labels, 4, 3))
    named = [f"class {label}" for label in labels]
    assert within_class(images, named) == within_class(images, labels)


@pytest.mark.parametrize("form", [None, "torch", "numpy"])
def test_chains_within_classes_read_the_label_column(form):
    repeated = datasets.concatenate_datasets([hub()] * 3).with_format(form)
    labels = LABELS * 3
    assert sorted(within_class(repeated)) == sorted(chains_by_class(labels, 4, 3))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.rand(9, 1, 2, 2), [0] * 6 + [1] * 3, "needs 4 images of each class, got 3 of 1; leave that class out"),
        (torch.rand(9, 1, 2, 2), None, "needs to know the labels before the images; pass labels="),
        (Pictures(), None, "needs to know the labels before the images; pass labels="),
    ],
)
def test_a_null_within_classes_needs_labels_and_large_classes(images, labels, message):
    with pytest.raises(ValueError, match=message):
        within_class(images, labels)


def test_halves_are_the_first_places_of_the_seeded_order():
    images = torch.rand(601, 1, 2, 2)
    samples, half = open_halves(images, seed=4)
    samples = list(samples)
    assert half == 256
    assert [sample.id for sample in samples] == oracles.seeded_order(601, 4)[:512]
    assert [sample.row for sample in samples] == list(range(512))


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2], [2, 2, 0, 0, 1, 1], ["a", "a", "b"]])
def test_labels_in_runs_are_warned_of(labels):
    with pytest.warns(UserWarning, match="sorted by label.*pass the data set itself"):
        warn_if_sorted(labels)


@pytest.mark.parametrize("labels", [[0, 1, 0, 1], [1, 1, 1], [None] * 4, [0, 1, 2], []])
def test_mixed_labels_are_not_warned_of(labels, recwarn):
    warn_if_sorted(labels)
    assert not recwarn.list


class Torn(Dataset):
    """A data set of which some files cannot be read."""

    def __init__(self, torn, n=N):
        self.torn = torn
        self.images = torch.rand(n, 1, 2, 3)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        if i in self.torn:
            raise OSError(f"file {i} is torn")
        return self.images[i]


@pytest.mark.parametrize("places", [[0], [0, 1, 2], [3, 7], [10]])
def test_images_that_cannot_be_read_come_as_nan(places):
    torn = [oracles.seeded_order(N, 0)[place] for place in places]
    samples = read(Torn(torn))
    assert [sample.row for sample in samples] == oracles.seeded_order(N, 0)
    for sample in samples:
        assert sample.id == sample.row
        is_torn = sample.row in torn
        assert sample.flaw == (f"number {sample.row}: OSError: file {sample.row} is torn" if is_torn else "")
        assert sample.image.shape == (1, 2, 3)
        assert sample.image.isnan().all() == is_torn


def test_nothing_that_can_be_read_is_an_error():
    first = oracles.seeded_order(3, 0)[0]
    with pytest.raises(
        ValueError, match=f"no image could be read; the first: number {first}: OSError: file {first} is"
    ):
        read(Torn(range(3), n=3))


def test_an_unreadable_image_keeps_the_label_that_was_given():
    assert {sample.row: sample.label for sample in read(Torn([2, 3]), labels=LABELS)} == dict(enumerate(LABELS))


def test_an_unreadable_file_of_a_hub_data_set_is_named_by_its_path(tmp_path):
    paths = []
    for k in range(4):
        path = tmp_path / f"{k}.png"
        Image.fromarray(BYTES[k]).save(path)
        paths.append(str(path))
    (tmp_path / "2.png").write_bytes(b"no picture")
    images = datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image())
    samples = read(images)
    flaws = [sample.flaw for sample in samples if sample.flaw]
    assert len(flaws) == 1
    assert "2.png" in flaws[0]
    assert sorted(sample.id for sample in samples) == [0, 1, 2, 3]
    named = read(images.add_column("id", list("abcd")))
    assert sorted(sample.id for sample in named) == list("abcd")
    assert [sample.flaw.split(":")[0] for sample in named if sample.flaw] == ["c"]


def test_an_unreadable_file_of_torchvision_s_folder_is_named(tmp_path):
    for k in range(3):
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.fromarray(BYTES[k]).save(tmp_path / "a" / f"{k}.png")
    whole = (tmp_path / "a" / "1.png").read_bytes()
    (tmp_path / "a" / "1.png").write_bytes(whole[:-30])
    flaws = [sample.flaw for sample in read(torchvision.datasets.ImageFolder(tmp_path)) if sample.flaw]
    assert len(flaws) == 1
    assert flaws[0].startswith(f"{tmp_path / 'a' / '1.png'}: ")


def test_an_unreadable_item_of_a_transformed_data_set_keeps_its_id():
    def torn(batch):
        raise OSError("torn" if "image" in batch else "no image is asked for")

    ids = [f"picture-{k}" for k in range(N)]
    images = hub(id=ids).with_transform(torn)
    with pytest.raises(ValueError, match=r"no image could be read; the first: picture-\d+: OSError: torn"):
        read(images)


def pixels(image):
    return as_float(image).numpy()


GREY = np.array([[0, 51], [102, 255]], np.uint8)


def test_pil_images_of_every_grey_mode_are_read():
    np.testing.assert_allclose(pixels(Image.fromarray(GREY)), [[[0, 0.2], [0.4, 1]]], atol=1e-6)
    np.testing.assert_allclose(pixels(Image.fromarray(GREY > 80)), [[[0, 0], [1, 1]]])
    assert Image.fromarray(GREY > 80).mode == "1"
    sixteen = Image.fromarray(np.array([[0, 65535], [13107, 26214]], np.uint16))
    assert sixteen.mode == "I;16"
    np.testing.assert_allclose(pixels(sixteen), [[[0, 1], [0.2, 0.4]]], atol=1e-6)
    floats = Image.fromarray(np.array([[0.5, -3.0], [1e4, 0.0]], np.float32))
    assert floats.mode == "F"
    np.testing.assert_allclose(pixels(floats), [[[0.5, -3], [1e4, 0]]])


def test_pil_images_of_every_colour_mode_are_read():
    colours = BYTES[0]
    picture = Image.fromarray(colours)
    wanted = np.moveaxis(colours, -1, 0) / 255
    np.testing.assert_allclose(pixels(picture), wanted, atol=1e-6)
    few = Image.fromarray(np.repeat(colours[:, :, :1] // 128 * 255, 3, axis=2))
    assert few.quantize(4).mode == "P"
    np.testing.assert_allclose(pixels(few.quantize(4)), pixels(few), atol=1e-6)
    np.testing.assert_allclose(pixels(picture.convert("CMYK")), wanted, atol=1e-6)
    assert pixels(picture.convert("YCbCr")).shape == (3, 6, 5)
    np.testing.assert_allclose(pixels(picture.convert("YCbCr")), wanted, atol=0.02)


def test_what_is_transparent_shows_white():
    colour = np.array([[[255, 0, 0, 255], [255, 0, 0, 0]], [[0, 51, 0, 102], [0, 0, 0, 255]]], np.uint8)
    shown = [[[1, 1], [0.6, 0]], [[0, 1], [0.2 * 0.4 + 0.6, 0]], [[0, 1], [0.6, 0]]]
    np.testing.assert_allclose(pixels(Image.fromarray(colour, "RGBA")), shown, atol=0.51 / 255)
    grey = np.array([[[255, 255], [0, 0]], [[51, 102], [0, 255]]], np.uint8)
    np.testing.assert_allclose(pixels(Image.fromarray(grey, "LA")), [[[1, 1], [0.2 * 0.4 + 0.6, 0]]], atol=0.51 / 255)


def test_a_transparent_colour_of_a_palette_shows_white():
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putdata([0, 1])
    picture.info["transparency"] = 0
    np.testing.assert_allclose(pixels(picture), [[[1, 0]], [[1, 0]], [[1, 1]]])


def test_transparent_sixteen_bits_are_refused():
    picture = Image.fromarray(np.zeros((2, 2), np.uint16))
    picture.info["transparency"] = 0
    with pytest.raises(ValueError, match="transparency in pixels of mode I;16; convert them to 8 bits"):
        as_float(picture)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 8, 8), (4, 8, 8), (3, 8, 5)])
def test_arrays_are_read_with_channels_first_or_last(shape):
    first = np.random.default_rng(0).random(shape, dtype=np.float32)
    np.testing.assert_array_equal(pixels(first), first)
    np.testing.assert_array_equal(pixels(np.moveaxis(first, 0, -1)), first)
    np.testing.assert_array_equal(pixels(first[0]), first[:1])


@pytest.mark.parametrize("shape", [(3, 8, 3), (5, 8, 6), (1, 4, 3)])
def test_an_array_that_does_not_show_its_channels_is_refused(shape):
    with pytest.raises(
        ValueError, match="does not show whether its first or its last axis is the channels; give a torch tensor"
    ):
        as_float(np.zeros(shape, np.float32))


def test_bytes_are_scaled_and_floats_are_not():
    assert pixels(torch.full((3, 2, 2), 51, dtype=torch.uint8)).max() == pytest.approx(0.2)
    assert pixels(np.full((3, 8, 8), 51, np.uint8)).max() == pytest.approx(0.2)
    assert pixels(np.full((3, 8, 8), 51.0)).max() == 51
    assert as_float(torch.rand(3, 2, 2, dtype=torch.float64)).dtype == torch.float64


def fingerprint_of(images, **options):
    state = Fingerprint()
    for sample in read(images, **options):
        state.update(sample)
    return str(state)


def test_fingerprints_see_images_ids_and_labels_but_not_their_order():
    base = fingerprint_of(WHOLE)
    assert base == fingerprint_of(WHOLE, seed=9) == fingerprint_of(DataLoader(WHOLE, batch_size=3))
    other = WHOLE.clone()
    other[3, 1, 2, 2] += 1
    swapped = WHOLE.clone()
    swapped[[0, 1]] = WHOLE[[1, 0]]
    changed = [other, swapped, WHOLE[:-1]]
    assert len({base, fingerprint_of(WHOLE, labels=LABELS), *map(fingerprint_of, changed)}) == 5


def test_the_seeded_order_is_that_of_the_oracle():
    assert read_order(50, 7).tolist() == oracles.seeded_order(50, 7)


def test_data_sets_declare_their_number_of_classes():
    feature = datasets.Features({"label": datasets.ClassLabel(names=["cat", "dog", "eel"])})
    named = datasets.Dataset.from_dict({"label": [0, 1, 0]}, features=feature)
    assert declared_classes(named) == 3
    assert declared_classes(DataLoader(torch.utils.data.Subset(named, [0, 1]))) == 3
    assert declared_classes(datasets.Dataset.from_dict({"label": [0, 1]})) == 0
    assert declared_classes(TensorDataset(torch.rand(2, 1, 3, 3))) == 0
