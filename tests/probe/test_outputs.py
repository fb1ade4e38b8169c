"""Outputs that move with the image: masks, points, offsets, boxes, poses and classes, on networks of known truth; and answers."""

import itertools
from dataclasses import replace

import numpy as np
import oracles
import pytest
import torch
from torch import nn

import eedkit as ek
from eedkit.lab.networks import GroupConv
from eedkit.probe.metrics import METRICS, Metric, probabilities
from eedkit.theory import actions, distances

N, SIDE, SEED = 9, 9, 3
DENSE = ["dense", "segmentation", "segmentation_iou"]
BOXES = {"boxes": None, "boxes_50": 0.5, "boxes_75": 0.75}


class Segmenter(nn.Module):
    """Class scores of every pixel; equivariant to the group whose convolutions it has."""

    def __init__(self, group="C1", classes=3):
        super().__init__()
        torch.manual_seed(0)
        self.lift, self.conv = GroupConv(1, 4, group=group, lifts=True), GroupConv(4, 4, group=group)
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
    """One box around the pixels of each class, as torchvision's detectors give them, for images that are no blank."""

    def forward(self, x):
        found = []
        for image, classes in zip(x, super().forward(x).argmax(1), strict=True):
            boxes, labels = [], classes.unique() if image.any() else classes.unique()[:0]
            for label in labels:
                rows, columns = (classes == label).nonzero().T
                boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            boxes = torch.tensor(boxes).reshape(-1, 4).float()
            found.append({"boxes": boxes, "labels": labels, "scores": torch.full((len(labels),), 0.6)})
        return found


class Slopes(nn.Module):
    """Two vectors for an image, the mean of x·(brightness) and of its square: an embedding that turns with the image."""

    def forward(self, x):
        places = (torch.arange(SIDE) - (SIDE - 1) / 2).to(x)
        vectors = [(x[:, 0] ** power * axis).mean((-2, -1)) for power in (1, 2) for axis in (places, places[:, None])]
        return torch.stack(vectors, dim=1)


class Gradient(nn.Module):
    """Offsets to the right and down."""

    def forward(self, x):
        padded = nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
        right = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
        return torch.cat([right, padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]], dim=1)


class WhichWayUp(nn.Module):
    """Scores (b, 4) of the four orientations: how bright the upper edge would be after each quarter turn."""

    def forward(self, x):
        return 5 * torch.stack([torch.rot90(x, -k, (-2, -1))[:, 0, 0].mean(-1) for k in range(4)], dim=1)


class Pointwise(nn.Module):
    """Class scores of every pixel from that pixel alone."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.wide, self.classifier, self.function = nn.Conv2d(1, 8, 1), nn.Conv2d(8, 3, 1), function

    def forward(self, x):
        return self.classifier(self.function(self.wide(x)))


def pictures(n=N):
    return torch.randn(n, 1, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def measure(model, metrics, images=None, **options):
    settings = {"group": "C4", "progress": False, "device": "cpu", "seed": SEED, "layers": [], "precision": "float64"}
    images = pictures() if images is None else images
    return ek.measure(model.double(), images, metrics=metrics, **settings | options).isel(model=0)


def orbit_of(model, features=lambda z: z, group="C4"):
    """f(gx), (g, n, *z)."""
    model = model.double()

    def of_image(x):
        with torch.no_grad():
            return features(model(torch.from_numpy(x.copy())[None])[0].numpy())

    return oracles.orbits(of_image, pictures().numpy(), group)


# --- masks


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("batch_size", [1, None])
def test_the_null_of_the_element_is_that_of_the_other_elements(name, batch_size):
    features = oracles.softmax if name == "segmentation" else lambda z: z
    m = {"dense": oracles.channelwise, "segmentation": oracles.mean_over_places(oracles.kl)}
    metric = replace(METRICS[name], name="of_elements", null="elements")
    ds = measure(Segmenter(), [metric], batch_size=batch_size)
    orbit = orbit_of(Segmenter(), features)
    wanted = oracles.other_elements(orbit, "C4", oracles.move, m.get(name, oracles.jaccard_of_scores), [0])
    np.testing.assert_allclose(ds.of_elements_null, wanted, atol=1e-6)


NO_ROUNDING = pytest.mark.xfail(strict=True, reason="E lies 2.7e-18 below 0, 'which rounding (2e-31) does not explain'")


@pytest.mark.parametrize("group", ["C4", pytest.param("D4", marks=NO_ROUNDING), "flip"])
def test_equivariant_segmentation_is_perfect_and_plain_is_not(group):
    exact, plain = (ek.summarise(measure(net, DENSE, group=group)) for net in (Segmenter(group), Segmenter()))
    assert exact.relative.to_numpy() == pytest.approx(0, abs=1e-3)
    assert plain.relative.min() > 0.2
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
    assert ek.summarise(ds).relative.item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("function", [nn.Identity(), nn.ReLU(), nn.Tanh()])
def test_scores_are_moved_before_the_likeliest_class_is_taken(function):
    """An affine pointwise network commutes with interpolation; of others no more is left than the round trip says."""
    ds = measure(Pointwise(function), ["segmentation_iou"], 3 * pictures(16), group="C8")
    if isinstance(function, nn.Identity):
        assert ds.segmentation_iou.max() == 0
    assert ds.segmentation_iou.mean() < ds.segmentation_iou_round_trip.mean()
    assert ds.segmentation_iou_null.mean() > 0.5


# --- points, offsets, embeddings, classes

ABOUT_THE_MIDDLE = {"features": lambda z, size: z - (torch.tensor(size).flip(0) - 1).to(z) / 2}
POINTS = Metric(
    "points", "raw", distances.mean_euclidean, action=lambda a, _: actions.coordinates(a), **ABOUT_THE_MIDDLE
)
POSE = Metric("pose", "vectors", distances.negative_cosine, action=lambda a, _: actions.coordinates(a))
OFFSETS = Metric("offsets", "dense", distances.mean_euclidean, action=lambda a, _: actions.coordinates(a))
TURNED = Metric("turned", "output", distances.kl, features=probabilities, action=lambda a, _: actions.regular(a))


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


def test_what_turns_with_the_image_is_exact_by_its_own_action_alone():
    ds = measure(Gradient(), [OFFSETS, replace(OFFSETS, name="unturned", action=None)])
    assert ds.offsets.max() < 1e-6 < 0.1 < ds.unturned.isel(element=[1, 2, 3]).min()
    ds = measure(Slopes(), [POSE, "latent"], output="features").sel(layer="latent")
    np.testing.assert_allclose(ds.pose, -1, atol=1e-6)
    assert ds.latent.mean() > -0.5
    ds = measure(WhichWayUp(), [TURNED, "softmax"], output="scores")
    np.testing.assert_allclose(ds.turned, 0, atol=1e-6)
    assert ds.softmax.mean() > 0.1


def test_the_null_of_the_element_serves_where_all_images_look_alike():
    """All pages are upright, so that another image has the same answer and the null of images is empty."""
    pages = 1e-12 * pictures()
    pages[:, :, 0] += 1
    of_elements = replace(TURNED, name="of_elements", null="elements")
    table = ek.summarise(measure(WhichWayUp(), [TURNED, of_elements], pages, output="scores")).set_index("metric")
    assert table.null["turned"] < 1e-9 < 1 < table.null["of_elements"]
    assert table.relative["of_elements"] == pytest.approx(0, abs=1e-6)


def test_six_and_nine_change_places_under_the_half_turn():
    come_from = torch.arange(10).repeat(2, 1)
    come_from[1, [6, 9]] = torch.tensor([9, 6])

    def swapped(action, _layer):
        return actions.permuted(actions.trivial(action.group), come_from)

    class Reader(nn.Module):
        """Tells 6 from 9 by which half is brighter."""

        def forward(self, x):
            scores = x.new_zeros(len(x), 10)
            scores[:, 6] = 9 * x[:, 0, SIDE // 2 + 1 :].mean((-2, -1))
            scores[:, 9] = 9 * x[:, 0, : SIDE // 2].mean((-2, -1))
            return scores

    ds = measure(Reader(), [replace(TURNED, name="digits", action=swapped), "softmax"], group="C2", output="scores")
    np.testing.assert_allclose(ds.digits, 0, atol=1e-6)
    assert ds.softmax.mean() > 1e-3


# --- boxes


@pytest.mark.parametrize("batch_size", [1, None])
def test_boxes_are_matched_after_the_action(batch_size):
    """The oracle moves corners about the middle, and tries all matchings."""
    images = pictures()
    images[2] = 0  # no box under any element
    ds = measure(Detector(), [*BOXES], images, batch_size=batch_size)

    def moved(box, g):
        x, y, width, height, label = box
        for _ in range(g):
            x, y, width, height = y, -x, height, width
        return x, y, width, height, label

    def boxes_of(x):
        (one,) = Detector().double()(torch.from_numpy(x)[None])
        rows = []
        for (left, top, right, bottom), label in zip(one["boxes"].tolist(), one["labels"].tolist(), strict=True):
            rows.append(((left + right - SIDE) / 2, (top + bottom - SIDE) / 2, right - left, bottom - top, label))
        return rows

    of_chains = oracles.chains(N, 4, oracles.seeded_order(N, SEED))
    partner = {i: [oracles.partner(c, p, k) for k in range(4)] for c in of_chains for p, i in enumerate(c)}
    boxes = [[boxes_of(np.rot90(x, g, (-2, -1)).copy()) for x in images.numpy()] for g in range(4)]
    for name, least in BOXES.items():
        for i in range(N):
            for g in range(4):
                target = [moved(box, g) for box in boxes[0][i]]
                value = np.nan if i == 2 else oracles.box_sets(boxes[g][i], target, least)
                assert ds[name].values[g, i] == pytest.approx(value, abs=1e-6, nan_ok=True)
                null = oracles.box_sets(boxes[g][partner[i][g]], target, least)
                assert ds[f"{name}_null"].values[g, i] == pytest.approx(null, abs=1e-6, nan_ok=True)


def test_boxes_of_an_equivariant_detector_agree():
    assert ek.summarise(measure(Detector("D4"), [*BOXES], group="D4")).estimate.tolist() == [0, 0, 0]


@pytest.mark.parametrize(("score", "is_found"), [(0.25, False), (0.9, True)])
def test_a_detector_that_finds_nothing_has_no_value(score, is_found):
    class Same(nn.Module):
        """The same ten boxes for every image, so as far from equivariant as can be."""

        def forward(self, x):
            box = torch.tensor([[1.0, 2.0, 4.0, 3.0]]).repeat(10, 1)
            labels = torch.ones(10, dtype=torch.int64)
            return [{"boxes": box, "scores": torch.full((10,), score), "labels": labels} for _ in x]

    ds = measure(Same(), ["boxes", "boxes_50"])
    rows = ek.summarise(ds)
    if is_found:
        assert rows.estimate.min() > 0.5
        return
    assert ds.boxes.isnull().all()
    assert rows.reason.tolist() == ["no box with a score of 0.5 or more in any image of its orbit"] * 2


def test_detectors_of_torchvision_are_measured():
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

    torch.manual_seed(0)
    options = {"weights": None, "weights_backbone": None, "num_classes": 2, "min_size": 64, "max_size": 64}
    detector = fasterrcnn_mobilenet_v3_large_320_fpn(**options).eval()
    images = torch.rand(4, 3, 64, 64)
    metric = METRICS["boxes"]
    ds = ek.measure(detector, images, group="flip", metrics=[metric], layers=[], progress=False, device="cpu")
    with torch.no_grad():
        upright, mirrored = metric.features([*detector(images), *detector(images.flip(-1))], (64, 64)).split(4)
    assert (upright[:, 0, 2] > 0).all()
    upright[..., 0] *= -1
    np.testing.assert_allclose(ds.boxes.sel(element="m")[0], metric.distance(mirrored, upright), atol=1e-3)


# --- yes-or-no answers, and several heads


class Answers(Segmenter):
    """k yes-or-no answers as (b, k), (b, 1) or (b,), or a mask of one channel."""

    def __init__(self, form):
        super().__init__()
        self.form, self.fc = form, nn.Linear(4, 3 if form == "(b, k)" else 1)

    def forward(self, x):
        if self.form == "mask":
            return super().forward(x)[:, :1]
        z = 9 * self.fc(self.conv(self.lift(x).relu()).mean((-2, -1)))
        return z[:, 0] if self.form == "(b,)" else z


def sigmoid(z):
    return 1 / (1 + np.exp(-np.atleast_1d(z)))


MEANS = {
    "softmax": oracles.kl,
    "softmax_reverse": oracles.kl_reverse,
    "softmax_js": oracles.js,
    "softmax_tv": oracles.tv,
}


@pytest.mark.parametrize("form", ["(b, k)", "(b, 1)", "(b,)"])
def test_answers_are_compared_one_by_one(form):
    ds = measure(Answers(form), [*MEANS, "softmax_hellinger"], output="independent")
    orbit = orbit_of(Answers(form), sigmoid)
    mixed = oracles.shuffled(orbit, oracles.chains(N, 4, oracles.seeded_order(N, SEED)))
    for name, m in {**MEANS, "softmax_hellinger": oracles.hellinger}.items():
        for variable, compared, kernel in (("", orbit, range(4)), ("_null", mixed, range(4)), ("_from_x", orbit, [0])):
            wanted = oracles.eed(compared, "C4", oracles.stay, oracles.bernoulli(m), kernel)
            np.testing.assert_allclose(ds[f"{name}{variable}"], wanted, atol=1e-6, err_msg=f"{name}{variable}")
    assert ds.softmax.attrs["long_name"] == "Bernoulli KL divergence, mean over outputs"
    assert ("prediction" in ds) == (form != "(b, k)")
    if form != "(b, k)":
        np.testing.assert_array_equal(ds.prediction, orbit[..., 0] > 0.5)
        np.testing.assert_allclose(ds.confidence, np.maximum(orbit, 1 - orbit)[..., 0], atol=1e-6)
        assert ds.classes == 2
        row = ek.summarise(measure(Answers(form), ["softmax", "latent"])).set_index("metric").loc["softmax"]
        assert "is no class scores (b, k) with k ≥ 2" in row.reason


def test_a_mask_of_one_channel_has_two_classes():
    ds = measure(Answers("mask"), ["segmentation", "segmentation_iou"], output="independent")
    orbit = orbit_of(Answers("mask"), lambda z: np.concatenate([np.zeros_like(z), z]))
    odds = np.array([[oracles.softmax(z) for z in of_element] for of_element in orbit])
    wanted = oracles.eed(odds, "C4", oracles.move, oracles.mean_over_places(oracles.kl), [0])
    np.testing.assert_allclose(ds.segmentation, wanted, atol=1e-6)
    wanted = oracles.eed(orbit, "C4", oracles.move, oracles.jaccard_of_scores, [0])
    np.testing.assert_allclose(ds.segmentation_iou, wanted, atol=1e-6)
    assert (ds.attrs["output"], ds.attrs["output_kind"]) == ("", "independent")


def test_several_heads_in_one_pass_are_what_each_is_alone():
    class Heads(Answers):
        def forward(self, x):
            return {"cls": super().forward(x), "mask": Segmenter.forward(self, x)}

    options = {"cls": "scores", "mask": "dense"}
    together = measure(Heads("(b, k)"), ["softmax", "latent", *DENSE], output=options)
    assert (together.attrs["output"], together.attrs["output_kind"]) == ("cls, mask", "scores, dense")
    cls = measure(Heads("(b, k)"), ["softmax", "latent"], output={"cls": "scores"})
    mask = measure(Heads("(b, k)"), DENSE, output="mask")
    for alone in (cls, mask):
        for name in alone.data_vars:
            np.testing.assert_array_equal(together[name], alone[name], err_msg=name)
    assert (mask.attrs["output"], mask.attrs["output_kind"]) == ("mask", "dense")
    assert {"softmax", "prediction", "dense_null"} <= set(together.data_vars)


# --- no value, and why


passes = itertools.count()


def ragged(output, _size):
    return output[:, : 1 + next(passes) % 2]


WITHOUT_VALUE = [
    (WhichWayUp(), "segmentation", {}, "is no map, but has one position"),
    (WhichWayUp(), "boxes", {}, "neither a list with a dict of boxes, labels, scores"),
    (
        Segmenter(classes=1),
        "segmentation",
        {},
        "has one channel, where class scores need two or more; .*'independent'",
    ),
    (Segmenter(), "softmax", {}, r"is no class scores \(b, k\) with k ≥ 2"),
    (Slopes(), "softmax", {"output": "features"}, "the model ends in features"),
    (Detector(), "softmax", {}, "list with a dict for every image, as detectors give"),
    (Detector(), "boxes", {"group": "C8"}, "turns boxes by less than quarter turns"),
    (Detector(), "boxes", {"group": "sign"}, "sets have no mean, which f̂ would be over e, neg"),
    (KeypointHead(), replace(POINTS, features=ragged, null="elements"), {}, "they need one shape for all images"),
]


@pytest.mark.parametrize(("model", "metric", "options", "reason"), WITHOUT_VALUE)
@pytest.mark.filterwarnings("ignore:no classifier was found")
def test_an_output_of_another_form_is_nan_with_the_reason(model, metric, options, reason):
    ds = measure(model, [metric, "latent"], batch_size=4, **options)
    name = metric if isinstance(metric, str) else metric.name
    assert ds[name].isnull().all()
    row = ek.summarise(ds).set_index("metric").loc[[name]].iloc[-1]
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(ds[name].attrs["nan_reason"])
    assert ds[name].attrs["nan_reason"] in row.reason


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_outputs_are_the_same_on_a_gpu():
    for model, metrics in ((Segmenter(), DENSE), (KeypointHead(), [POINTS]), (Detector(), [*BOXES])):
        here, there = (measure(model, metrics, device=device) for device in ("cpu", "cuda"))
        for name in here.data_vars:
            np.testing.assert_allclose(there[name], here[name], atol=1e-5, err_msg=str(name))
