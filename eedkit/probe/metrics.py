"""The family of G-EED metrics as values: what is taken from a layer, how G acts there, which distance compares.

Knows tensors, actions and distances; never a model or a label. A custom metric is one more value.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from eedkit.errors import unknown
from eedkit.probe import boxes
from eedkit.theory import actions, distances
from eedkit.theory.actions import Action
from eedkit.theory.distances import Distance

WHERE = ("maps", "vectors", "output", "dense", "raw")
"""What a metric may compare."""


@dataclass(frozen=True)
class Metric:
    """One G-EED (Kvinge et al. 2022, eq. 4): m(f(gx), g f̂(x)) for a choice of f, of the action on its values, and of m.

    Parameters
    ----------
    name : str
        Of the variable in the Dataset.
    where : "maps", "vectors", "output", "dense" or "raw"
        "maps" (tapped layers) compares positions × channels, "vectors" (tapped layers and `latent`) one vector for each
        image, "output" the class scores, "dense" an output that is a map, as of segmentation, "raw" what `features` makes of
        any other output: points, boxes.
    distance : Distance
        m; what it says of its scale and rounding holds for the metric.
    title : str
        For people; the name where it is empty.
    source : str
        Equation of the paper, or "ours".
    features : callable, or None
        A layer's output as (b, P, C), for "output" the scores (b, k) -> f(x) (b, …). None: as it is; for vectors the mean over
        positions. "raw" needs one: (whatever the model gave, (height, width) of the images) -> (b, N, C) or (b, C), of one
        shape for all images; it raises ValueError with the reason where that is not defined.
    action : callable, or None
        The action on images -> the action on f(x). None: maps and dense outputs move as images do, all else stays. Of what is no
        map, channels move and not positions.
    normalised : bool
        Whether E / M is reported, M being the mean cosine of different images' pooled features.
    matched : bool
        Whether channels are permuted after the action, for each element as fits best on other samples (`matching`).
    field : bool
        Whether channels move by the representation that each layer's output names, as a `GeometricTensor` of e2cnn or escnn.
    null : "images" or "elements"
        Whether the null compares with another image, or, where unrelated images may rightly have the same output, with f̂(x)
        moved by an element that moves it otherwise.

    Examples
    --------
    >>> METRICS["latent"].distance.best
    -1.0
    """

    name: str
    where: Literal["maps", "vectors", "output", "dense", "raw"]
    distance: Distance
    title: str = ""
    source: str = "ours"
    features: Callable[..., Tensor] | None = None
    action: Callable[[Action], Action] | None = None
    normalised: bool = False
    matched: bool = False
    field: bool = False
    null: Literal["images", "elements"] = "images"

    def __post_init__(self) -> None:
        if self.where not in WHERE:
            raise ValueError(f"{self.name}: where must be one of {', '.join(WHERE)}, got {self.where!r}")
        if self.null not in ("images", "elements"):
            raise ValueError(f"{self.name}: null must be 'images' or 'elements', got {self.null!r}")
        if self.null == "elements" and self.action is None and not self.has_positions:
            raise ValueError(f"{self.name}: no element moves anything, so none moves it otherwise; give an action")
        if self.where == "raw" and self.features is None:
            raise ValueError(f"{self.name}: a raw output needs features, which make (b, N, C) or (b, C) of it")
        if self.field and self.where != "maps":
            raise ValueError(f"{self.name}: only maps of layers name the representation of their field")
        if self.normalised and self.where != "vectors":
            raise ValueError(
                f"{self.name}: only vectors have a mean cosine M to be divided by, so where must be 'vectors'"
            )
        is_summed = self.where == "maps" and self.distance.of_sums and self.features is None and not self.field
        if self.matched and not (is_summed and self.null == "images"):
            raise ValueError(
                f"{self.name}: only channels of maps as they are can be matched, by a distance of their sums, against images"
            )

    @property
    def has_positions(self) -> bool:
        """Whether f(x) is a map, whose positions the group moves."""
        return self.where in ("maps", "dense")

    @property
    def has_layers(self) -> bool:
        """Whether there is a value for each layer, and not one for the output."""
        return self.where in ("maps", "vectors")

    def action_on(self, action: Action) -> Action:
        """How G acts on f(x), given how it acts on images."""
        if self.action is not None:
            return self.action(action)
        return action if self.has_positions else actions.trivial(action.group)

    @property
    def description(self) -> str:
        """What tells it from another metric of the same name: a study does not mix them.

        Raises
        ------
        ValueError
            `features` or `action` is no named function, so that it cannot be told from another one.
        """
        functions = [_name_of(function, self.name) for function in (self.features, self.action)]
        said = [self.where, *functions, self.distance.name, f"null of {self.null}"]
        said += [option for option in ("normalised", "matched", "field") if getattr(self, option)]
        return f"{self.name}: {', '.join(said)}"


def _name_of(function: Callable | None, metric: str) -> str:
    if function is None:
        return "none"
    name = getattr(function, "__qualname__", "<")
    if "<" in name:  # a lambda, a function inside of another one, or an object
        raise ValueError(
            f"metric {metric}: a study tells functions apart by their names, and {function!r} has none of its own; define it "
            "by `def` at the top of a module"
        )
    return f"{function.__module__}.{name}"


def flat(z: Tensor) -> Tensor:
    """Vectors (b, P·C) of maps (b, P, C): not averaged over positions."""
    return z.flatten(1)


def unit(z: Tensor) -> Tensor:
    """The means over positions (b, C), each divided by its length, so that the centroid is one of directions."""
    mean = z.double().mean(1)
    return mean / torch.linalg.vector_norm(mean, dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)


def probabilities(scores: Tensor) -> Tensor:
    """Softmax (b, k) in float64 of class scores; never exactly 0, so that an underflow does not become an infinite KL."""
    return scores.double().softmax(-1).clamp_min(torch.finfo(torch.float64).tiny)


def class_probabilities(z: Tensor) -> Tensor:
    """Softmax (b, P, k) at every position of a map of class scores; ValueError for one channel, which has no other class."""
    return probabilities(_with_classes(z))


def masks(z: Tensor) -> Tensor:
    """The likeliest class at every position of a map of class scores, as one mask for each class: (b, P, k) of 0 and 1."""
    z = _with_classes(z)
    return one_hot(z.argmax(-1), z.shape[-1]).to(z.dtype).masked_fill(~z.isfinite().all(-1, keepdim=True), torch.nan)


def _with_classes(z: Tensor) -> Tensor:
    if z.shape[-1] < 2:
        raise ValueError(
            "its output has one channel, where class scores need two or more; for a map of one logit, pass a Metric with "
            "features of your own, such as z -> z.sigmoid()"
        )
    return z


METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            "channelwise",
            "maps",
            distances.channelwise_negative_cosine,
            "channelwise negative cosine",
            "eq. 5",
        ),
        Metric(
            "channelwise_zero",
            "maps",
            distances.channelwise_negative_cosine_zero,
            "channelwise negative cosine, dead channels as 0",
            "eq. 5, other reading",
        ),
        Metric(
            "channelwise_skip",
            "maps",
            distances.channelwise_negative_cosine_skip,
            "channelwise negative cosine, live channels",
            "eq. 5, other reading",
        ),
        Metric(
            "channelwise_regular",
            "maps",
            distances.channelwise_negative_cosine,
            "channelwise negative cosine, regular fields",
            "eq. 5 with the regular representation (ours)",
            action=actions.regular,
        ),
        Metric(
            "channelwise_field",
            "maps",
            distances.channelwise_negative_cosine,
            "channelwise negative cosine, steerable fields",
            "eq. 5 with the field's representation (ours)",
            field=True,
        ),
        Metric(
            "channelwise_centred",
            "maps",
            distances.channelwise_negative_correlation,
            "channelwise negative cosine, centred channels",
            "eq. 5 on centred maps (ours)",
        ),
        Metric(
            "channelwise_matched",
            "maps",
            distances.channelwise_negative_cosine,
            "channelwise negative cosine, matched channels",
            "eq. 5 under fitted permutations (ours)",
            matched=True,
        ),
        Metric("channelwise_rms", "maps", distances.root_mean_square, "root mean square difference of maps", "eq. 4"),
        Metric(
            "latent",
            "vectors",
            distances.negative_cosine,
            "latent negative cosine",
            "eq. 6",
            normalised=True,
        ),
        Metric(
            "latent_unit",
            "vectors",
            distances.negative_cosine,
            "latent negative cosine, unit centroid",
            "eq. 6, other reading",
            features=unit,
            normalised=True,
        ),
        Metric(
            "latent_flat",
            "vectors",
            distances.negative_cosine,
            "latent negative cosine, not pooled",
            "eq. 6, other reading",
            features=flat,
        ),
        Metric("latent_euclidean", "vectors", distances.euclidean, "latent Euclidean distance", "eq. 4"),
        Metric("softmax", "output", distances.kl, "softmax KL divergence", "eq. 4", features=probabilities),
        Metric(
            "softmax_reverse",
            "output",
            distances.kl_reverse,
            "softmax KL divergence, reversed",
            "eq. 4, other reading",
            features=probabilities,
        ),
        Metric(
            "softmax_js",
            "output",
            distances.jensen_shannon,
            "softmax Jensen-Shannon divergence",
            features=probabilities,
        ),
        Metric("softmax_tv", "output", distances.total_variation, "softmax total variation", features=probabilities),
        Metric(
            "softmax_hellinger", "output", distances.hellinger, "softmax Hellinger distance", features=probabilities
        ),
        Metric(
            "dense",
            "dense",
            distances.channelwise_negative_cosine,
            "channelwise negative cosine of the output",
            "eq. 5 on the output (ours)",
        ),
        Metric(
            "segmentation",
            "dense",
            distances.mean_kl,
            "mean KL divergence of pixels' classes",
            features=class_probabilities,
        ),
        Metric("segmentation_iou", "dense", distances.jaccard, "1 − IoU of the masks of classes", features=masks),
        Metric(
            "boxes",
            "raw",
            boxes.box_ospa,
            "1 − IoU of matched boxes",
            features=boxes.detections,
            action=actions.boxes,
        ),
        Metric(
            "boxes_50",
            "raw",
            boxes.box_disagreement(0.5),
            "boxes without a match of IoU ≥ 0.5",
            features=boxes.detections,
            action=actions.boxes,
        ),
        Metric(
            "boxes_75",
            "raw",
            boxes.box_disagreement(0.75),
            "boxes without a match of IoU ≥ 0.75",
            features=boxes.detections,
            action=actions.boxes,
        ),
    )
}
"""Every metric by name; `measure(metrics=…)` takes these names or `Metric` values."""

COMPARED = (
    *("channelwise", "channelwise_regular", "channelwise_matched", "channelwise_centred"),
    *("latent", "latent_euclidean", "softmax", "softmax_js", "softmax_tv", "softmax_hellinger"),
)
"""What the bundled notebooks measure: models in one store are joined where they were measured by the same metrics."""


def resolve(metrics: str | Metric | Iterable[str | Metric]) -> list[Metric]:
    """Metrics given by name or value, as values; ValueError for an unknown name, a name given twice, or none at all."""
    metrics = [metrics] if isinstance(metrics, str | Metric) else list(metrics)
    found = []
    for metric in metrics:
        if not isinstance(metric, str | Metric):
            raise TypeError(f"a metric is a name such as 'latent' or a Metric, got {type(metric).__name__}")
        if isinstance(metric, str) and metric not in METRICS:
            raise ValueError(unknown("metric", metric, METRICS))
        found.append(METRICS[metric] if isinstance(metric, str) else metric)
    names = [metric.name for metric in found]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"metrics must be one or more with different names, got {names}")
    return found
