"""Streams of samples: every source, labels, chains and batches, PIL modes, and what is refused or reported."""

import collections

import datasets
import numpy as np
import oracles
import pandas as pd
import pytest
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from eedkit.probe import samples
from eedkit.probe.samples import as_float, find, label_list, open_halves, open_stream

N = 11
LABELS = [2, 0, 1, 1, 0, 2, 1, 0, 2, 1, 0]
BYTES = np.random.default_rng(2).integers(0, 256, (N, 6, 5, 3), dtype=np.uint8)
WHOLE = torch.from_numpy(BYTES).movedim(-1, 1)
ONE_HOT = torch.nn.functional.one_hot(torch.tensor(LABELS))
ORDER = oracles.seeded_order(N, 0)


def read(images, **options):
    return list(open_stream(images, **options))


def labels_by_row(images, **options):
    by_row = {sample.row: sample.label for sample in read(images, **options)}
    return [by_row[row] for row in range(len(by_row))]


def loader(*tensors, batch_size=4):
    return DataLoader(TensorDataset(*tensors), batch_size=batch_size)


class Pictures(Dataset):
    """PIL images with labels, some of which cannot be read; counts how often each is asked for."""

    def __init__(self, torn=()):
        self.torn = torn
        self.times_read = collections.Counter()

    def __len__(self):
        return N

    def __getitem__(self, i):
        self.times_read[i] += 1
        if i in self.torn:
            raise OSError(f"file {i} is torn")
        return Image.fromarray(BYTES[i]), LABELS[i]


class Batches(IterableDataset):
    def __iter__(self):
        yield from zip(WHOLE.split(3), torch.tensor(LABELS).split(3), strict=True)


def hub(**columns):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    if "id" in columns:
        features["id"] = datasets.Value("string")
    pictures = [Image.fromarray(x) for x in BYTES]
    return datasets.Dataset.from_dict({"image": pictures, "label": LABELS, **columns}, features=features)


SOURCES = {
    "data set of PIL images": Pictures,
    "data set of tensors": lambda: TensorDataset(WHOLE, torch.tensor(LABELS)),
    "data set with one-hot labels": lambda: TensorDataset(WHOLE, ONE_HOT),
    "Hugging Face data set": hub,
    "Hugging Face data set as torch": lambda: hub().with_format("torch"),
    "list of mappings": lambda: [{"img": x, "target": y} for x, y in zip(WHOLE, LABELS, strict=True)],
    "list of arrays, channels last": lambda: list(zip(BYTES, LABELS, strict=True)),
    "list of arrays, channels first": lambda: list(zip(WHOLE.numpy(), LABELS, strict=True)),
    "loader": lambda: loader(WHOLE, torch.tensor(LABELS)),
    "loader of mappings": lambda: DataLoader(hub().with_format("torch"), batch_size=4),
    "iterable of batches": Batches,
    "generator of arrays": lambda: zip(iter(BYTES), LABELS, strict=True),
    "generator of named batches": lambda: (
        {"pixel_values": WHOLE[i : i + 2], "labels": LABELS[i : i + 2]} for i in range(0, N, 2)
    ),
    "streaming Hugging Face data set": lambda: hub().to_iterable_dataset(),
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_is_read_in_the_seeded_order(source):
    found = read(SOURCES[source](), seed=5)
    assert [sample.row for sample in found] == oracles.seeded_order(N, 5)
    for sample in found:
        assert (sample.id, sample.label) == (sample.row, LABELS[sample.row])
        np.testing.assert_allclose(sample.image, WHOLE[sample.row] / 255, atol=1e-7)


@pytest.mark.parametrize("images", [WHOLE.numpy(), {"image": WHOLE}, collections.UserDict(pixel_values=WHOLE, size=6)])
def test_arrays_and_mappings_that_hold_images_are_those_images(images):
    for of_array, of_tensor in zip(read(images), read(WHOLE), strict=True):
        assert of_array.row == of_tensor.row
        assert torch.equal(of_array.image, of_tensor.image)


IDS = [f"picture-{k}" for k in range(N)]
NAMED = {
    "data set": lambda: hub(id=IDS),
    "loader": lambda: DataLoader(hub(id=IDS).with_format("torch"), batch_size=4),
    "generator": lambda: ({"image": x, "id": name} for x, name in zip(WHOLE, IDS, strict=True)),
}


@pytest.mark.parametrize("source", NAMED)
def test_ids_of_the_source_name_the_samples_and_find_them(source):
    assert {sample.row: sample.id for sample in read(NAMED[source]())} == dict(enumerate(IDS))
    torch.testing.assert_close(find(NAMED[source](), ["picture-7"]), [WHOLE[7] / 255])
    with pytest.raises(ValueError, match="no image with the id 7 among these 11; pass those that were measured"):
        find(NAMED[source](), [7])


def test_another_image_than_the_one_that_was_measured_is_not_found():
    class Renumbered(Pictures):
        def __getitem__(self, i):
            return {"image": WHOLE[i], "id": N - 1 - i}

    with pytest.raises(ValueError, match="no image with the id 7 among"):
        find(Renumbered(), [7])


NAMES = [["ant", "bee", "cow"][label] for label in LABELS]
LABELS_IN_EVERY_FORM = [
    (LABELS, LABELS),
    (torch.tensor(LABELS), LABELS),
    (np.array(LABELS), LABELS),
    (pd.Series(LABELS, index=range(100, 100 + N)), LABELS),
    (ONE_HOT, LABELS),
    (pd.DataFrame(ONE_HOT), LABELS),
    (NAMES, NAMES),
    (pd.Series(NAMES, dtype="category"), NAMES),
    ([None, *LABELS[1:]], [None, *LABELS[1:]]),
]


@pytest.mark.parametrize(("given", "wanted"), LABELS_IN_EVERY_FORM)
def test_labels_come_in_every_form(given, wanted):
    assert label_list(given) == wanted
    assert {type(label) for label in label_list(given)} <= {int, str, type(None)}
    assert labels_by_row(WHOLE, labels=given) == labels_by_row(loader(WHOLE), labels=given) == wanted


SEVERAL = [[0, 0, 1, 0], [1, 0, 0, 1], [0, 0, 0, 0]]


def test_rows_of_several_ones_name_all_their_classes():
    rows = torch.tensor(SEVERAL)
    assert label_list(SEVERAL) == label_list(rows) == label_list(rows.bool().unbind()) == ["2", "0+3", "none"]
    assert labels_by_row(TensorDataset(WHOLE[:3], rows)) == labels_by_row(loader(WHOLE[:3], rows)) == [2, "0+3", "none"]


def test_what_is_no_label_is_none():
    for target in ([0, 1], {"boxes": torch.rand(2, 4)}, torch.rand(6, 5)):
        assert labels_by_row([(x, target) for x in WHOLE]) == [None] * N
    assert labels_by_row(iter([(WHOLE, {"boxes": torch.rand(N, 4)})])) == [None] * N


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ([1, 2], ValueError, "expected one label for each of 11 images, got 2"),
        ("abc", TypeError, "labels must be one per image, in a list, tensor, array or Series, got str"),
        (5, TypeError, "got int"),
        (np.full((N, 3), 0.3), ValueError, r"or one-hot rows \(n, k\) of k ≥ 2 classes, got shape \(11, 3\)"),
        (np.ones((N, 1)), ValueError, r"got shape \(11, 1\)"),
        ([[0, 3], [1]] * 5, ValueError, r"got \[0, 3\]"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, error, message):
    with pytest.raises(error, match=message):
        open_stream(WHOLE, labels=labels)


LAST = torch.rand(4, 8, 9, 3)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (7, TypeError, "images must be a tensor .*got 7; open it first"),
        (datasets.DatasetDict({"test": hub()}), TypeError, "got DatasetDict with keys test; of several splits choose one"),
        (DataLoader([]), ValueError, "there is no image to measure on"),
        (torch.rand(3, 6, 6), ValueError, r"must have shape \(n, C, H, W\), got \(3, 6, 6\); a single image"),
        (LAST, ValueError, r"must have shape \(n, C, H, W\), got \(4, 8, 9, 3\); channels last\? pass images.permute\(0, 3, 1, 2\)"),
        (LAST.numpy(), ValueError, r"got \(4, 8, 9, 3\); channels last\? pass images.transpose\(0, 3, 1, 2\)"),
        (list(LAST), ValueError, r"an image must be \(C, H, W\), got \(8, 9, 3\); channels last\? pass image.permute\(2, 0, 1\)"),
        (LAST.to("meta"), ValueError, "^images must have pixels, got a tensor on the device 'meta', which has none; load it on 'cpu'"),
        ([LAST.to("meta")[0]] * 2, ValueError, "images must have pixels"),
        (LAST.to_sparse(), ValueError, "^images must be dense tensors, got one of torch.sparse_coo; pass its to_dense"),
        (LAST.to_mkldnn(), ValueError, "^images must be dense tensors, got one of torch._mkldnn"),
        ([LAST[0].to_sparse()] * 2, ValueError, "images must be dense tensors"),
        ([torch.rand(6, 6)] * 2, ValueError, r"an image must have shape \(C, H, W\) and pixels, got \(6, 6\)"),
        ([torch.rand(3, 0, 6)] * 2, ValueError, r"and pixels, got \(3, 0, 6\)"),
        ([{"picture": torch.rand(3, 6, 6)}] * 2, ValueError, "no image could be read.*under one of image, pixel_values, img, got dict with keys picture"),
        ([{"image": torch.rand(3, 6, 6), "id": "a"}] * 2, ValueError, "id 'a' stands for more than one sample"),
        (Pictures(torn=range(N)), ValueError, f"no image could be read; the first: number {ORDER[0]}: OSError: file {ORDER[0]} is"),
    ],
)  # fmt: skip
def test_what_holds_no_images_is_refused(images, error, message):
    with pytest.raises(error, match=message):
        read(images)


@pytest.mark.parametrize("shape", [(8, 4, 3), (3, 8, 8), (8, 9, 2)])
def test_images_that_need_not_be_channels_last_are_read(shape):
    assert read(torch.rand(2, *shape))[0].image.shape == shape


@pytest.mark.parametrize(("n", "order"), [(4, 2), (5, 4), (7, 4), (8, 8), (11, 2), (23, 4), (23, 8)])
@pytest.mark.parametrize("size", [1, 4, 5, 9, 100])
def test_batches_are_whole_chains_of_the_oracle(n, size, order):
    found, place = [], 0
    for batch in open_stream(torch.rand(n, 1, 2, 2), order=order, null=True).batches(size):
        assert (batch.start, batch.first_chain) == (place, len(found))
        assert len(batch.samples) <= size or len(batch.chains) == 1
        place += len(batch.samples)
        found += [[batch.samples[i].row for i in chain] for chain in batch.chains]
    assert found == oracles.chains(n, order, oracles.seeded_order(n, 0))


def test_batches_read_every_image_once_and_the_first_two_before():
    images = Pictures()
    stream = open_stream(images)
    assert [sample.row for sample in stream.first(2)] == ORDER[:2]
    images.times_read.clear()
    assert sum(len(batch.samples) for batch in stream.batches(3)) == N
    assert dict(images.times_read) == {i: 1 for i in range(N) if i not in ORDER[:2]}


def test_a_block_reads_its_own_places():
    stream = open_stream(torch.rand(19, 1, 2, 2), seed=1, order=4, null=True, places=range(8, 19))
    (batch,) = stream.batches(100)
    assert [sample.id for sample in batch.samples] == oracles.seeded_order(19, 1)[8:]
    assert [sample.row for sample in batch.samples] == list(range(11))
    assert (batch.chains, batch.first_chain, batch.start) == ([range(0, 4), range(4, 11)], 2, 8)
    assert (stream.length, stream.chain_length) == (11, 4)


@pytest.mark.parametrize(("n", "order", "needs"), [(1, 1, 2), (3, 4, 4), (7, 8, 8)])
def test_fewer_images_than_a_shuffled_orbit_are_refused(n, order, needs):
    with pytest.raises(ValueError, match=f"needs {needs} images, got {n}; pass more, or null=False"):
        open_stream(torch.rand(n, 1, 2, 2), order=order, null=True)
    assert len(read(torch.rand(n, 1, 2, 2), order=order)) == n


def within_class(images, labels=None):
    """The chains of a null within classes, as the rows of their images."""
    found = []
    for batch in open_stream(images, labels=labels, seed=3, order=4, null="within-class").batches(6):
        found += [[batch.samples[i].row for i in chain] for chain in batch.chains]
    return found


TRIPLED = WHOLE.repeat(3, 1, 1, 1)
TRIPLED_SOURCES = {
    "labels given": lambda: (TRIPLED, LABELS * 3),
    "data set": lambda: (datasets.concatenate_datasets([hub()] * 3),),
    "loader": lambda: (loader(TRIPLED, torch.tensor(LABELS * 3)),),
}


@pytest.mark.parametrize("source", TRIPLED_SOURCES)
def test_chains_within_classes_follow_the_seeded_order(source):
    wanted = []
    for label in (2, 0, 1):
        members = [i for i in oracles.seeded_order(3 * N, 3) if LABELS[i % N] == label]
        wanted += oracles.chains(len(members), 4, members)
    assert within_class(*TRIPLED_SOURCES[source]()) == wanted


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (WHOLE, [0] * 8 + [1] * 3, "needs 4 images of each class, got 3 of 1; leave that class out"),
        (WHOLE, None, "needs to know the labels before the images; pass labels="),
        (Pictures(), None, "needs to know the labels before the images; pass labels="),
    ],
)
def test_a_null_within_classes_needs_labels_and_large_classes(images, labels, message):
    with pytest.raises(ValueError, match=message):
        within_class(images, labels)


def test_halves_are_the_readable_ones_of_the_first_places():
    found, half = open_halves(torch.rand(601, 1, 2, 2), seed=4)
    assert half == 256
    assert [(sample.row, sample.id) for sample in found] == list(enumerate(oracles.seeded_order(601, 4)[:512]))
    found, half = open_halves(Pictures(torn=[ORDER[3]]), seed=0)
    assert [sample.row for sample in found] == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    with pytest.raises(ValueError, match="scores on the other, which needs 4, got 3; pass more"):
        open_halves(iter(WHOLE[:3]), seed=4)


@pytest.mark.parametrize("places", [[0, 1, 2], [3, 10]])
def test_images_that_cannot_be_read_come_as_nan(places):
    torn = [ORDER[place] for place in places]
    found = read(Pictures(torn), labels=LABELS)
    assert [sample.row for sample in found] == ORDER
    for sample in found:
        assert (sample.id, sample.label) == (sample.row, LABELS[sample.row])
        assert sample.flaw == (f"number {sample.id}: OSError: file {sample.id} is torn" if sample.id in torn else "")
        assert sample.image.shape == (3, 6, 5)
        assert sample.image.isnan().all() == (sample.id in torn)


def test_an_unreadable_file_is_named_by_its_path_or_its_id(tmp_path):
    (tmp_path / "a").mkdir()
    for name, pixels in zip("abcd", BYTES, strict=False):
        Image.fromarray(pixels).save(tmp_path / "a" / f"{name}.png")
    torn = tmp_path / "a" / "b.png"
    torn.write_bytes(torn.read_bytes()[:-30])
    flaws = {sample.id: sample.flaw for sample in read(torchvision.datasets.ImageFolder(tmp_path)) if sample.flaw}
    assert list(flaws) == [1]
    assert flaws[1].startswith(f"{torn}: OSError: ")


def test_an_unreadable_item_of_a_transformed_data_set_keeps_its_id():
    def torn(batch):
        raise OSError("torn" if "image" in batch else "no image is asked for")

    with pytest.raises(ValueError, match=r"no image could be read; the first: picture-\d+: OSError: torn"):
        read(hub(id=IDS).with_transform(torn))


COLOURS = np.moveaxis(BYTES[0], -1, 0) / 255
FEW = np.repeat(BYTES[0, :, :, :1] // 128 * 255, 3, axis=2)
GREY = np.array([[0, 51], [102, 255]], np.uint8)
RGBA = np.array([[[255, 0, 0, 255], [255, 0, 0, 0]], [[0, 51, 0, 102], [0, 0, 0, 255]]], np.uint8)
LA = np.array([[[255, 255], [0, 0]], [[51, 102], [0, 255]]], np.uint8)
PALETTE = Image.new("P", (2, 1))
PALETTE.putpalette([255, 0, 0, 0, 0, 255])
PALETTE.putdata([0, 1])
PALETTE.info["transparency"] = 0
MODES = [
    ("L", Image.fromarray(GREY), [[[0, 0.2], [0.4, 1]]], 1e-6),
    ("1", Image.fromarray(GREY > 80), [[[0, 0], [1, 1]]], 0),
    ("I;16", Image.fromarray(np.array([[0, 65535], [13107, 26214]], np.uint16)), [[[0, 1], [0.2, 0.4]]], 1e-6),
    ("F", Image.fromarray(np.array([[0.5, -3.0], [1e4, 0.0]], np.float32)), [[[0.5, -3], [1e4, 0]]], 0),
    ("RGB", Image.fromarray(BYTES[0]), COLOURS, 1e-6),
    ("P", Image.fromarray(FEW).quantize(4), np.moveaxis(FEW, -1, 0) / 255, 1e-6),
    ("CMYK", Image.fromarray(BYTES[0]).convert("CMYK"), COLOURS, 1e-6),
    ("YCbCr", Image.fromarray(BYTES[0]).convert("YCbCr"), COLOURS, 0.02),
    # what is transparent shows white
    ("RGBA", Image.fromarray(RGBA), [[[1, 1], [0.6, 0]], [[0, 1], [0.68, 0]], [[0, 1], [0.6, 0]]], 0.51 / 255),
    ("LA", Image.fromarray(LA, "LA"), [[[1, 1], [0.68, 0]]], 0.51 / 255),
    ("P", PALETTE, [[[1, 0]], [[1, 0]], [[1, 1]]], 0),
]


@pytest.mark.parametrize(("mode", "picture", "wanted", "tolerance"), MODES)
def test_pil_images_of_every_mode_are_read(mode, picture, wanted, tolerance):
    assert picture.mode == mode
    np.testing.assert_allclose(as_float(picture), wanted, atol=tolerance)


def test_transparent_sixteen_bits_are_refused():
    picture = Image.fromarray(np.zeros((2, 2), np.uint16))
    picture.info["transparency"] = 0
    with pytest.raises(ValueError, match="transparency in pixels of mode I;16; convert them to 8 bits"):
        as_float(picture)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 8, 8), (4, 8, 8), (3, 8, 5)])
def test_arrays_are_read_with_channels_first_or_last(shape):
    first = np.random.default_rng(0).random(shape, dtype=np.float32)
    for array, wanted in [(first, first), (np.moveaxis(first, 0, -1), first), (first[0], first[:1])]:
        np.testing.assert_array_equal(as_float(array), wanted)


@pytest.mark.parametrize("shape", [(3, 8, 3), (5, 8, 6), (1, 4, 3)])
def test_an_array_that_does_not_show_its_channels_is_refused(shape):
    with pytest.raises(
        ValueError, match="does not show whether its first or its last axis is the channels; give a torch"
    ):
        as_float(np.zeros(shape, np.float32))


def test_bytes_are_scaled_and_floats_are_not():
    assert as_float(torch.full((3, 2, 2), 51, dtype=torch.uint8)).max() == pytest.approx(0.2)
    assert as_float(np.full((3, 8, 8), 51, np.uint8)).max() == pytest.approx(0.2)
    assert as_float(np.full((3, 8, 8), 51.0)).max() == 51
    assert as_float(torch.rand(3, 2, 2, dtype=torch.float64)).dtype == torch.float64


def test_fingerprints_see_images_ids_and_labels_but_not_their_order():
    def fingerprint(images, **options):
        state = samples.Fingerprint()
        for sample in read(images, **options):
            state.update(sample)
        return str(state)

    base = fingerprint(WHOLE)
    assert base == fingerprint(WHOLE, seed=9) == fingerprint(loader(WHOLE))
    other = WHOLE.clone()
    other[3, 1, 2, 2] += 1
    changed = [other, WHOLE[[1, 0, *range(2, N)]], WHOLE[:-1]]
    assert len({base, fingerprint(WHOLE, labels=LABELS), *map(fingerprint, changed)}) == 5


def test_data_sets_name_their_classes():
    assert samples.class_names(hub()) == ["a", "b", "c"]
    assert samples.class_names(DataLoader(torch.utils.data.Subset(hub(), [0, 1]))) == ["a", "b", "c"]
    assert samples.class_names(datasets.Dataset.from_dict({"label": [0, 1]})) == []
