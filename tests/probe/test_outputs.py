"""Outputs that move with the image: masks, heat maps, offsets, points, boxes, poses and classes, on networks of known truth."""

from dataclasses import replace

import numpy as np
import oracles
import pytest
import torch
from torch import nn

import eedkit as ek
from eedkit.lab.networks import GroupConv
from eedkit.probe import accumulate
from eedkit.probe.metrics import METRICS, Metric, probabilities
from eedkit.theory import actions, distances
from eedkit.theory import deviation as deviations

N, SIDE, SEED = 9, 9, 3
DENSE = ["dense", "segmentation", "segmentation_iou"]
BOXES = ["boxes", "boxes_50", "boxes_75"]


class Segmenter(nn.Module):
    """Class scores of every pixel; equivariant to the group whose convolutions it has."""

    def __init__(self, group="C1", classes=3):
        super().__init__()
        torch.manual_seed(0)
        self.lift = GroupConv(1, 4, group=group, lifts=True)
        self.conv = GroupConv(4, 4, group=group)
        self.order = self.lift.action.group.order
        self.classifier = nn.Conv2d(4, classes, 1)

    def forward(self, x):
        z = self.conv(self.lift(x).relu()).relu()
        scores = 2 * self.classifier(z.unflatten(1, (-1, self.order)).mean(2))
        # so that no class wins everywhere
        return scores - scores.mean((-2, -1), keepdim=True)


class KeypointHead(Segmenter):
    """Where each heat map has its middle, in pixels from the upper left corner: (b, 3, 2)."""

    def forward(self, x):
        heat = super().forward(x).flatten(2).softmax(-1).unflatten(-1, x.shape[-2:])
        places = torch.arange(SIDE).to(x)
        return torch.stack([(heat.sum(-2) * places).sum(-1), (heat.sum(-1) * places).sum(-1)], dim=-1)


class Detector(Segmenter):
    """One box around the pixels of each class, as torchvision's detectors give them."""

    def forward(self, x):
        found = []
        for classes in super().forward(x).argmax(1):
            boxes = []
            labels = classes.unique()
            for label in labels:
                rows, columns = (classes == label).nonzero().T
                boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            found.append({"boxes": torch.tensor(boxes), "labels": labels, "scores": torch.ones(len(labels))})
        return found


class Slopes(nn.Module):
    """Two vectors for an image, the mean of x·(brightness) and of its square: an embedding that turns with the image."""

    def forward(self, x):
        places = (torch.arange(SIDE) - (SIDE - 1) / 2).to(x)
        vectors = [(x[:, 0] ** power * axis).mean((-2, -1)) for power in (1, 2) for axis in (places, places[:, None])]
        return torch.stack(vectors, dim=1)


class WhichWayUp(nn.Module):
    """Scores (b, 4) of the four orientations: how bright the upper edge would be after each quarter turn."""

    def forward(self, x):
        turned = [torch.rot90(x, -k, (-2, -1))[:, 0, 0].mean(-1) for k in range(4)]
        return 5 * torch.stack(turned, dim=1)


def pictures(n=N):
    return torch.randn(n, 1, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def measure(model, metrics, images=None, **options):
    settings = {"group": "C4", "precision": "float64", "progress": False, "device": "cpu", "seed": SEED, "layers": []}
    images = pictures() if images is None else images
    return ek.measure(model.double(), images, metrics=metrics, **settings | options).isel(model=0)


def orbit_of(model, features=lambda z: z):
    """f(gx) under C4, (g, n, *z)."""
    model = model.double()

    def of_image(x):
        with torch.no_grad():
            return features(model(torch.from_numpy(x)[None]))[0].numpy()

    return oracles.orbits(of_image, pictures().numpy(), "C4")


def chains():
    return oracles.chains(N, 4, oracles.seeded_order(N, SEED))


def softmax(z):
    return z.softmax(1)


def masks(z):
    return nn.functional.one_hot(z.argmax(1), z.shape[1]).movedim(-1, 1).double()


DENSE_FAMILY = {
    "dense": (lambda z: z, oracles.channelwise),
    "segmentation": (softmax, oracles.mean_kl),
    "segmentation_iou": (masks, oracles.jaccard),
}


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("batch_size", [1, None])
def test_dense_outputs_and_both_nulls_are_equation_4(name, batch_size):
    features, m = DENSE_FAMILY[name]
    of_elements = replace(METRICS[name], name="of_elements", null="elements")
    ds = measure(Segmenter(), [name, of_elements], batch_size=batch_size)
    orbit = orbit_of(Segmenter(), features)
    wanted = {
        name: oracles.eed(orbit, "C4", oracles.move, m, [0]),
        f"{name}_null": oracles.eed(oracles.shuffled(orbit, chains()), "C4", oracles.move, m, [0]),
        "of_elements_null": oracles.other_elements(orbit, "C4", oracles.move, m, [0]),
    }
    for variable, values in wanted.items():
        assert ds[variable].dims == ("element", "sample")
        np.testing.assert_allclose(ds[variable], values, atol=1e-6, err_msg=variable)


@pytest.mark.parametrize("group", ["C4", "D4", "flip"])
def test_equivariant_segmentation_is_perfect_and_plain_is_not(group):
    exact = ek.summarise(measure(Segmenter(group), DENSE, group=group), resamples=0)
    plain = ek.summarise(measure(Segmenter(), DENSE, group=group), resamples=0)
    assert exact.relative.to_numpy() == pytest.approx(0, abs=1e-6)
    assert plain.relative.min() > 0.05
    assert exact.layer.tolist() == ["output"] * 3


@pytest.mark.parametrize("null", ["images", "elements"])
@pytest.mark.parametrize("group", ["flip", "C4", "D4"])
def test_a_mask_that_ignores_the_image_is_at_1(group, null):
    """Every pixel's class is a hash of all pixels: products of whole numbers, which no batch rounds otherwise."""
    weights = torch.randint(-1000, 1001, (SIDE**2, 3 * SIDE**2), generator=torch.Generator().manual_seed(0)).double()

    class Drawn(nn.Module):
        def forward(self, x):
            whole = (256 * x).flatten(1) @ weights
            return (torch.sin(whole) * 1e4).frac().unflatten(1, (3, SIDE, SIDE))

    metric = replace(METRICS["segmentation_iou"], null=null)
    images = torch.randint(0, 256, (80, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(1)).double() / 256
    ds = measure(Drawn(), [metric], images, group=group, layouts={"output": "b c h w"})
    assert ek.summarise(ds, resamples=0).relative.item() == pytest.approx(1, abs=0.02)


def about_the_middle(output, size):
    return output - (torch.tensor(size).flip(0) - 1).to(output) / 2


POINTS = Metric("points", "raw", distances.mean_euclidean, features=about_the_middle, action=actions.coordinates)


def test_keypoints_turn_by_matrices():
    """In numpy: the moved copy's points are the points of x under (x, y) -> (y, -x) about the middle."""
    ds = measure(KeypointHead(), [POINTS])
    orbit = orbit_of(KeypointHead()) - (SIDE - 1) / 2
    target = orbit[0]
    for g in range(4):
        lengths = np.linalg.norm(orbit[g] - target, axis=-1).mean(-1)
        np.testing.assert_allclose(ds.points.isel(element=g), lengths, atol=1e-6)
        target = np.stack([target[..., 1], -target[..., 0]], axis=-1)
    exact = measure(KeypointHead("C4"), [POINTS])
    assert exact.points.max() < 1e-6 < 0.01 < exact.points_null.sel(element="r90").min()


def test_offsets_of_a_field_turn_and_move():
    offsets = Metric("offsets", "dense", distances.mean_euclidean, action=actions.coordinates)

    class Gradient(nn.Module):
        def forward(self, x):
            padded = nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
            right = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
            down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
            return torch.cat([right, down], dim=1)

    ds = measure(Gradient(), [offsets, replace(offsets, name="unturned", action=None)])
    assert ds.offsets.max() < 1e-6
    assert ds.unturned.sel(element=["r90", "r180", "r270"]).min() > 0.1


def test_embeddings_turn_or_stay():
    """At the output as it is, at `latent`, and held against the action by which nothing moves."""
    pose = Metric("pose", "vectors", distances.negative_cosine, action=actions.coordinates)
    ds = measure(Slopes(), [pose, "latent"], output="features").sel(layer="latent")
    np.testing.assert_allclose(ds.pose, -1, atol=1e-6)
    assert ds.latent.mean() > -0.5
    orbit = orbit_of(Slopes())
    still = oracles.eed(orbit, "C4", oracles.stay, oracles.latent, range(4))
    np.testing.assert_allclose(ds.latent, still, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, None])
def test_boxes_are_matched_after_the_action(batch_size):
    """The oracle moves corners about the middle, and tries all matchings."""
    ds = measure(Detector(), BOXES, batch_size=batch_size)

    def moved(box, g):
        x, y, width, height, label = box
        for _ in range(g):
            x, y, width, height = y, -x, height, width
        return (x, y, width, height, label)

    def boxes_of(x):
        (one,) = Detector().double()(torch.from_numpy(x)[None])
        rows = []
        for (left, top, right, bottom), label in zip(one["boxes"].tolist(), one["labels"].tolist(), strict=True):
            middle = (left + right - SIDE) / 2, (top + bottom - SIDE) / 2
            rows.append((*middle, right - left, bottom - top, label))
        return rows

    for i, x in enumerate(pictures().numpy()):
        for g in range(4):
            sets = boxes_of(np.rot90(x, g, (-2, -1)).copy()), [moved(box, g) for box in boxes_of(x)]
            for name, least in zip(BOXES, (None, 0.5, 0.75), strict=True):
                assert ds[name].values[g, i] == pytest.approx(oracles.box_sets(*sets, least), abs=1e-6)


def test_boxes_of_an_equivariant_detector_agree():
    table = ek.summarise(measure(Detector("D4"), BOXES, group="D4"), resamples=0)
    assert table.estimate.tolist() == [0, 0, 0]


def test_detectors_of_torchvision_are_measured():
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

    torch.manual_seed(0)
    options = {"weights": None, "weights_backbone": None, "num_classes": 2, "min_size": 64, "max_size": 64}
    detector = fasterrcnn_mobilenet_v3_large_320_fpn(**options).eval()
    images = torch.rand(4, 3, 64, 64)
    settings = {"group": "flip", "metrics": ["boxes"], "layers": [], "progress": False, "device": "cpu"}
    ds = ek.measure(detector, images, **settings).isel(model=0)
    with torch.no_grad():
        upright, mirrored = (METRICS["boxes"].features(detector(x), (64, 64)) for x in (images, images.flip(-1)))
    assert (upright[:, 0, 2] > 0).all()
    upright[..., 0] *= -1
    found = distances_of_boxes(mirrored, upright)
    np.testing.assert_allclose(ds.boxes.sel(element="m"), found, atol=1e-3)


def distances_of_boxes(a, b):
    return METRICS["boxes"].distance(a, b).numpy()


ORIENTATION = Metric("orientation", "output", distances.kl, features=probabilities, action=actions.regular)


def test_a_class_that_the_group_permutes_is_equivariant():
    ds = measure(WhichWayUp(), [ORIENTATION, "softmax"], output="scores")
    np.testing.assert_allclose(ds.orientation, 0, atol=1e-6)
    assert ds.softmax.mean() > 0.1


def test_the_null_of_the_element_serves_where_all_images_look_alike():
    """All pages are upright, so that another image has the same answer and the null of images is empty."""
    pages = 1e-12 * pictures()
    pages[:, :, 0] += 1
    of_elements = replace(ORIENTATION, name="of_elements", null="elements")
    table = ek.summarise(measure(WhichWayUp(), [ORIENTATION, of_elements], pages, output="scores"), resamples=0)
    table = table.set_index("metric")
    assert table.null["orientation"] < 1e-9 < 1 < table.null["of_elements"]
    assert table.relative["of_elements"] == pytest.approx(0, abs=1e-6)


def test_six_and_nine_change_places_under_the_half_turn():
    come_from = torch.arange(10).repeat(2, 1)
    come_from[1, [6, 9]] = torch.tensor([9, 6])
    digits = Metric(
        "digits",
        "output",
        distances.kl,
        features=probabilities,
        action=lambda action: actions.permuted(actions.trivial(action.group), come_from),
    )

    class Reader(nn.Module):
        """Tells 6 from 9 by which half is brighter."""

        def forward(self, x):
            scores = x.new_zeros(len(x), 10)
            scores[:, 6] = 9 * x[:, 0, SIDE // 2 + 1 :].mean((-2, -1))
            scores[:, 9] = 9 * x[:, 0, : SIDE // 2].mean((-2, -1))
            return scores

    ds = measure(Reader(), [digits, "softmax"], group="C2", output="scores")
    np.testing.assert_allclose(ds.digits, 0, atol=1e-6)
    assert ds.softmax.mean() > 1e-3


@pytest.mark.parametrize("name", [*DENSE, *BOXES])
@pytest.mark.parametrize("function", ["f_hat", "integrand"])
def test_no_metric_of_outputs_goes_past_the_equations(monkeypatch, name, function):
    def broken(*_, **__):
        raise RuntimeError("it runs")

    for place in (accumulate, deviations):
        monkeypatch.setattr(place, function, broken)
    with pytest.raises(RuntimeError, match="it runs"):
        measure(Detector() if name in BOXES else Segmenter(), [name])


def ragged(output, _size):
    return output[:, : 1 + int(output[0, 0, 0] > output[0, 0, 1])]


WITHOUT_VALUE = [
    (lambda: WhichWayUp(), "segmentation", {}, "is no map, but has one position"),
    (lambda: WhichWayUp(), "boxes", {}, "is no list with a dict of boxes, labels, scores"),
    (lambda: Segmenter(classes=1), "segmentation", {}, "one channel, where class scores need two or more"),
    (lambda: Segmenter(), "softmax", {}, r"is no class scores \(b, k\)"),
    (lambda: Detector(), "softmax", {}, "list with a dict for every image, as detectors give"),
    (lambda: Detector(), "boxes", {"group": "C8"}, "turns boxes by less than quarter turns"),
    (lambda: Detector(), "boxes", {"group": "sign"}, "sets have no mean, which f̂ would be over e, n"),
    (lambda: KeypointHead(), replace(POINTS, features=ragged), {}, "one shape for all of them"),
    (lambda: Segmenter(), replace(POINTS, features=lambda z, _: z[:1]), {}, "one row for each image"),
]


@pytest.mark.parametrize(("make", "metric", "options", "reason"), WITHOUT_VALUE)
def test_an_output_of_another_form_is_nan_with_the_reason(make, metric, options, reason):
    ds = measure(make(), [metric, "latent"], **options)
    name = metric if isinstance(metric, str) else metric.name
    assert ds[name].isnull().all()
    assert ds[name].attrs["nan_reason"] in ek.summarise(ds, resamples=0).set_index("metric").reason[name]
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(ds[name].attrs["nan_reason"])


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"where": "raw"}, "a raw output needs features"),
        ({"where": "vectors", "null": "elements"}, "no element moves anything"),
        ({"where": "dense", "null": "classes"}, "null must be 'images' or 'elements', got 'classes'"),
        ({"where": "dense", "field": True}, "only maps of layers name the representation"),
        ({"where": "maps", "matched": True, "null": "elements"}, "against images"),
    ],
)
def test_metrics_of_outputs_that_make_no_sense_are_refused(about, message):
    with pytest.raises(ValueError, match=message):
        Metric("mine", distance=distances.channelwise_negative_cosine, **about)


def test_an_unreadable_image_leaves_the_null_of_the_element_to_others():
    def reader(i):
        if i == 2:
            raise OSError("broken file")
        return pictures()[i]

    class Files(torch.utils.data.Dataset):
        def __len__(self):
            return N

        def __getitem__(self, i):
            return reader(i)

    metric = replace(METRICS["segmentation_iou"], null="elements")
    with pytest.warns(UserWarning, match="1 of 9 samples have no value"):
        ds = measure(Segmenter(), [metric], Files())
    lost = ds.segmentation_iou_null.isnull().any("element")
    assert lost.values.nonzero()[0].tolist() == [2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_outputs_are_the_same_on_a_gpu():
    for model, metrics in ((Segmenter(), DENSE), (KeypointHead(), [POINTS]), (Detector(), BOXES)):
        here = measure(model, metrics, device="cpu")
        there = measure(model, metrics, device="cuda")
        for name in here.data_vars:
            np.testing.assert_allclose(there[name], here[name], atol=1e-5, err_msg=str(name))
