"""Outputs that move with the image: masks, points, offsets, boxes, poses and classes, on networks of known truth; and answers."""

import functools
import itertools
from dataclasses import replace

import numpy as np
import oracles
import pytest
import torch
from made import Net, noise
from torch import nn

import eedkit as ek
from eedkit.lab.networks import GroupConv
from eedkit.probe.boxes import detections
from eedkit.probe.metrics import METRICS, Metric, probabilities
from eedkit.probe.outputs import is_distribution
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
    return noise(n, side=SIDE)


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


@pytest.mark.parametrize("function", [nn.Identity(), nn.ReLU(), nn.Tanh()])
def test_scores_are_moved_before_the_likeliest_class_is_taken(function):
    """An affine pointwise network commutes with interpolation; of others no more is left than the round trip says."""
    ds = measure(Pointwise(function), ["segmentation_iou"], 3 * pictures(16), group="C8")
    if isinstance(function, nn.Identity):
        assert ds.segmentation_iou.max() == 0
    assert ds.segmentation_iou.mean() < ds.segmentation_iou_round_trip.mean()
    assert ds.segmentation_iou_null.mean() > 0.5


def coordinates(action, _layer):
    return actions.coordinates(action)


def about_the_middle(z, size):
    return z - (torch.tensor(size).flip(0) - 1).to(z) / 2


POINTS = Metric("points", "raw", distances.mean_euclidean, features=about_the_middle, action=coordinates)
POSE = Metric("pose", "vectors", distances.negative_cosine, action=coordinates)
OFFSETS = Metric("offsets", "dense", distances.mean_euclidean, action=coordinates)
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


class Same(nn.Module):
    """The same ten boxes for every image, so as far from equivariant as can be."""

    def forward(self, x):
        labels, scores = torch.ones(10, dtype=torch.int64), torch.full((10,), 0.25)
        return [{"boxes": torch.tensor([[1.0, 2, 4, 3]] * 10), "scores": scores, "labels": labels} for _ in x]


def test_a_detector_that_finds_nothing_has_no_value():
    assert ek.summarise(measure(Detector("D4"), [*BOXES], group="D4")).estimate.tolist() == [0, 0, 0]
    least = replace(METRICS["boxes"], name="least", features=functools.partial(detections, least_score=0.2))
    ds = measure(Same(), ["boxes", "boxes_50", least])
    rows = ek.summarise(ds).set_index("metric")
    assert ds.boxes.isnull().all()
    assert set(rows.reason[["boxes", "boxes_50"]]) == {"no box with a score of 0.5 or more in any image of its orbit"}
    assert rows.estimate["least"] > 0.5


class Scripted(Detector):
    """What torchvision's detectors give when they are scripted; the scores of some images are no numbers."""

    def __init__(self, spoilt=()):
        super().__init__()
        self.spoilt = spoilt

    def forward(self, x):
        found = super().forward(x)
        for number, one in enumerate(found):
            if number in self.spoilt:
                one["scores"] = one["scores"] * torch.nan
        return {}, found


def test_a_scripted_detector_is_read_and_its_scores_may_be_no_numbers():
    plain, scripted = measure(Detector(), [*BOXES]), measure(Scripted(), [*BOXES])
    np.testing.assert_array_equal(scripted.boxes, plain.boxes)
    ds = measure(Scripted(spoilt=range(100)), ["boxes", "softmax"])
    assert ds.boxes.attrs["nan_reason"] == "the boxes or scores are not finite, where there are any"
    assert "list with a dict for every image, as detectors give" in ds.softmax.attrs["nan_reason"]


class Answers(Net):
    """k yes-or-no answers as (b, k), (b, 1) or (b,), as logits or as their sigmoids; or class scores or their softmax."""

    def __init__(self, form):
        super().__init__()
        self.form = form

    def forward(self, x):
        z = super().forward(x)
        forms = {"(b, 1)": z[:, :1], "(b,)": z[:, 0], "sigmoids": z.sigmoid(), "softmax": z.softmax(1)}
        forms |= {"(b, k, 1, 1)": z[..., None, None], "(1, b, k)": z[None]}
        return forms.get(self.form, z)


MEANS = {"softmax": oracles.kl, "softmax_reverse": oracles.kl_reverse, "softmax_js": oracles.js}
MEANS |= {"softmax_tv": oracles.tv, "softmax_hellinger": oracles.hellinger}


@pytest.mark.parametrize("form", ["(b, k)", "(b, 1)", "(b,)", "sigmoids"])
def test_answers_are_compared_one_by_one(form):
    ds = measure(Answers(form), [*MEANS], output="independent")
    orbit = orbit_of(Answers("sigmoids"))[..., : None if form in ("(b, k)", "sigmoids") else 1]
    mixed = oracles.shuffled(orbit, oracles.chains(N, 4, oracles.seeded_order(N, SEED)))
    for name, m in MEANS.items():
        for ending, compared, kernel in (("", orbit, range(4)), ("_null", mixed, range(4)), ("_from_x", orbit, [0])):
            wanted = oracles.eed(compared, "C4", oracles.stay, oracles.bernoulli(m), kernel)
            np.testing.assert_allclose(ds[f"{name}{ending}"], wanted, atol=1e-6, err_msg=f"{name}{ending}")
    assert ds.softmax.attrs["long_name"] == "Bernoulli KL divergence, mean over outputs"
    assert ("prediction" in ds) == (form in ("(b, 1)", "(b,)"))
    if "prediction" in ds:
        np.testing.assert_array_equal(ds.prediction, orbit[..., 0] > 0.5)
        np.testing.assert_allclose(ds.confidence, np.maximum(orbit, 1 - orbit)[..., 0], atol=1e-6)
        assert ds.classes == 2


def test_only_what_is_taken_for_features_has_a_reason_among_the_layers():
    for output, reason in (("dense", ""), ("features", "the model ends in features (output='features')")):
        table = ek.layers(Segmenter(), pictures(), layers=[], output=output)
        assert table.reason.iloc[-1] == reason


@pytest.mark.parametrize(
    ("form", "kind"), [("softmax", "probabilities"), ("(b, k, 1, 1)", "scores"), ("(1, b, k)", "scores")]
)
def test_forms_of_class_scores_make_no_difference(form, kind):
    metrics = [*MEANS, "latent"]
    ds, of_scores = measure(Answers(form), metrics), measure(Answers("scores"), metrics)
    for name in of_scores.data_vars:
        np.testing.assert_allclose(ds[name], of_scores[name], atol=1e-6, err_msg=name)
    for name in ("head", "repeatable"):
        assert ds.attrs[name] == of_scores.attrs[name]
    assert (ds.attrs["output_kind"], of_scores.attrs["output_kind"]) == (kind, "scores")


def test_probabilities_rounded_to_half_precision_are_some():
    scores = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        assert is_distribution(scores.softmax(1).to(dtype))
    assert not is_distribution(1.01 * scores.softmax(1))
    assert not is_distribution(torch.tensor([[1.5, -0.5]]))


class Shaped(nn.Module):
    """What a network gives, in another form."""

    def __init__(self, network, form):
        super().__init__()
        self.network, self.form = network, form

    def forward(self, x):
        return self.form(self.network(x))


PROBABILITIES = [
    (lambda z: z.softmax(1), {}, ""),
    (lambda z: z.softmax(1).movedim(1, -1), {}, ""),
    (lambda z: z.softmax(1), {"output": "dense"}, ""),
    (lambda z: {"mask": z.softmax(1), "aux": z}, {"output": {"mask": "probabilities"}}, "mask"),
]


@pytest.mark.parametrize(("form", "options", "entry"), PROBABILITIES)
@pytest.mark.parametrize("group", ["C4", "C8"])
def test_maps_of_probabilities_are_compared_as_the_scores_they_come_from(form, options, entry, group):
    ds = measure(Shaped(Segmenter(), form), [*DENSE, "softmax"], group=group, **options)
    of_scores = measure(Segmenter(), DENSE, group=group)
    assert (ds.attrs["output"], ds.attrs["output_kind"]) == (entry, "dense probabilities")
    for name in ("segmentation", "segmentation_null", "segmentation_iou"):
        np.testing.assert_allclose(ds[name], of_scores[name], atol=1e-6, err_msg=name)
    assert of_scores.segmentation.mean() > 0.02
    # the output as it is
    odds = measure(Shaped(Segmenter(), lambda z: z.softmax(1)), ["dense"], group=group, output="features")
    np.testing.assert_array_equal(ds.dense, odds.dense)
    assert ds.softmax.isnull().all()


MASKS = {
    "b 1 h w": lambda z: z,
    "b h w": lambda z: z[:, 0],
    "b h w 1": lambda z: z.movedim(1, -1),
    "sigmoids": lambda z: z[:, 0].sigmoid(),
}


@pytest.mark.parametrize("form", MASKS)
def test_a_mask_of_one_channel_has_two_classes(form):
    masks = Shaped(Segmenter(classes=1), MASKS[form])
    ds = measure(masks, ["segmentation", "segmentation_iou"], output="independent")
    orbit = orbit_of(Segmenter(classes=1), lambda z: np.concatenate([np.zeros_like(z), z]))
    odds = np.array([[oracles.softmax(z) for z in of_element] for of_element in orbit])
    wanted = oracles.eed(odds, "C4", oracles.move, oracles.mean_over_places(oracles.kl), [0])
    np.testing.assert_allclose(ds.segmentation, wanted, atol=1e-6)
    wanted = oracles.eed(orbit, "C4", oracles.move, oracles.jaccard_of_scores, [0])
    np.testing.assert_allclose(ds.segmentation_iou, wanted, atol=1e-6)


class Heads(Segmenter):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(9, 4)

    def forward(self, x):
        mask = super().forward(x)
        return {"cls": self.fc(mask[:, 0, :3, :3].flatten(1)), "mask": mask}


def test_several_heads_in_one_pass_are_what_each_is_alone():
    together = measure(Heads(), ["softmax", "latent", *DENSE], output={"cls": "scores", "mask": "dense"})
    cls, mask = measure(Heads(), ["softmax", "latent"], output="cls"), measure(Heads(), DENSE, output="mask")
    kinds = [(ds.attrs["output"], ds.attrs["output_kind"]) for ds in (together, cls, mask)]
    assert kinds == [("cls, mask", "scores, dense"), ("cls", "scores"), ("mask", "dense")]
    for alone in (cls, mask):
        for name in alone.data_vars:
            np.testing.assert_array_equal(together[name], alone[name], err_msg=name)
    ds = measure(Heads(), ["softmax"], output={"cls": "independent"}, labels=[[1, 1, 0, 0]] * N)
    assert set(ds.label.values) == {"0+1"}


passes = itertools.count()


def ragged(output, _size):
    return output[:, : 1 + next(passes) % 2]


WITHOUT_VALUE = [
    (WhichWayUp(), "segmentation", {}, "is no map, but has one position"),
    (WhichWayUp(), "boxes", {}, "neither a list with a dict of the tensors boxes"),
    (
        Segmenter(classes=1),
        "segmentation",
        {},
        "has one channel, where class scores need two or more; .*'independent'",
    ),
    (Segmenter(), "softmax", {}, r"is no class scores \(b, k\) with k ≥ 2$"),
    (Answers("(b, 1)"), "softmax", {}, "is no class scores .*; if it is yes-or-no answers, pass output='independent'"),
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
