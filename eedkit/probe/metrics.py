"""The family of G-EED metrics as values: what is taken from a layer, how G acts there, which distance compares.

Knows tensors, actions and distances; of a layer only what it says of itself. A custom metric is one more value.

# What is measured

The G-empirical equivariance deviation of Kvinge et al. 2022 (arXiv 2210.03773, eq. 4), and what it compares with (eq.
2):

    E(f, G) = 1/(|D| |G|) Σ_x Σ_g m(f(gx), g f̂(x))        f̂(x) = mean of f(kx) over the kernel

f is the network up to a layer, m a distance. The kernel holds the elements that act as the identity on the layer's
values; it is found by probing. Where invariance is asked for, it is all of G, and f̂(x) is the mean over the orbit.
Where every element moves the values, as on feature maps, f̂(x) is f(x) itself.

| metric | f(x), and what G does to it | m(a, b) | best |
|---|---|---|---|
| `channelwise` (eq. 5) | feature map; G moves each channel as the image | mean over channels of −cos(aᵢ, bᵢ) | −1 |
| `channelwise_matched` *[ours]* | the same, after the exchange of channels that best fits other images | the same | −1 |
| `channelwise_regular` *[ours]* | the same; G also permutes channels, as in group convolutions | the same | −1 |
| `channelwise_field` *[ours]* | the same; G moves channels as e2cnn's and escnn's tensors say | the same | −1 |
| `channelwise_centred` *[ours]* | the same, without each channel's mean over space | the same | −1 |
| `channelwise_rms` | the same; `ek.bridges.equivariance_psnr` gives it in dB | √ mean (a − b)² | 0 |
| `latent` (eq. 6) | input of the classifier; at other layers the map's mean over space | −cos(a, b) | −1 |
| `latent_euclidean` | the same | Euclidean distance | 0 |
| `softmax` | class probabilities | KL(a ‖ b) in nats | 0 |
| `softmax_js` *[ours]* | the same | Jensen-Shannon divergence | 0 |
| `softmax_tv` *[ours]* | the same | total variation | 0 |
| `softmax_hellinger` *[ours]* | the same | Hellinger distance | 0 |
| `dense` *[ours]* | an output that is a map; G moves it as it moves the image | as `channelwise` | −1 |
| `segmentation` *[ours]* | class probabilities of pixels | mean KL | 0 |
| `segmentation_iou` *[ours]* | masks of classes | 1 − IoU | 0 |
| `boxes` *[ours]* | detections in torchvision's form | 1 − IoU of matched boxes | 0 |
| `boxes_50`, `boxes_75` *[ours]* | the same | share of boxes without a match at this IoU | 0 |

`channelwise_zero` and `channelwise_skip` (other readings of dead channels), `latent_unit`, `latent_flat` and
`softmax_reverse` are variants. `ek.available.metrics()` shows all of them as a table.

# Null and relative value

Every value has a *null* beside it *[ours]*: the same deviation between different images. It is E of the *shuffled
orbit*, in which the k-th element acts on the k-th next image, and the identity on x itself. Nothing else changes: the
same f̂, the same m. With m* the best value,

    relative = ((E − m*) / (E_null − m*)) ^ (1 / order)

At 0 the model is equivariant; at 1, a transformed copy is as far away as a different image. `order` is 2 for
distances that grow with the square of a small difference, as cosine and KL do, and 1 for the others, so that all
metrics have one scale.

A null needs at least |G| images, and two. With `null="within-class"` each image meets only images of its own class,
which tells learned invariance from classes that have collapsed into points. It needs labels, and at least |G| images
of every class (four for smaller groups); a study does not take it yet. Where even different images differ by rounding
alone, the model cannot tell images apart, and the relative value is NaN with that reason. `ek.plots.calibration(ds)`
draws the value against the null.

*Intervals* are Student's t: that of E over images, that of a relative value over the chains of images that share
their shuffled orbits. A nominal 95 % covers about 95 % from two images, or two chains, on.

# A custom metric

A metric is a value that says what is taken from a layer, and how it is compared.

```python
import torch, eedkit as ek


def peaks(z):  # a layer's output, positions × channels: (b, P, C) -> (b, C)
    return z.amax(dim=1)


manhattan = ek.distances.Distance(
    "manhattan",
    lambda a, b: (a - b).abs().sum(-1),  # (…, C), (…, C) -> (…)
    best=0.0,
    upper=float("inf"),
    scale="norm",  # as large as the features are long
    order=1,  # grows with |δ|; 2 for distances that grow with its square
    equation="‖a − b‖₁",
)
metric = ek.Metric("latent_peaks", "vectors", manhattan, title="largest value of each channel", features=peaks)
model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(36, 3))
ek.summarise(ek.measure(model, torch.rand(8, 1, 5, 5), group="C4", metrics=["latent", metric]))
```

The second argument is `"vectors"` for what the group does not move, `"maps"` for what it moves as it moves the image,
and `"output"` for class scores, whose `features` get (b, k).
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from eedkit.errors import Undefined, unknown
from eedkit.probe import boxes, fields, matching
from eedkit.probe.layers import Layer
from eedkit.results.schema import ENDINGS
from eedkit.theory import actions, distances
from eedkit.theory.actions import Action, LayerAction
from eedkit.theory.distances import Distance

WHERE = ("maps", "vectors", "output", "dense", "raw")
"""What a metric may compare."""
INDEPENDENT = ("independent", "independent probabilities")
"""Kinds of outputs that are yes-or-no answers: their logits, or their probabilities."""
RESERVED = (
    *(
        "model",
        "layer",
        "element",
        "sample",
        "weights",
        "classes",
        "angle",
        "label",
        "chain",
        "flaw",
        "step",
        "seconds",
    ),
    *("depth", "layer_type", "layout", "channels", "height", "width", "law_error"),
    *("prediction", "confidence", "dead_fraction"),
)
"""Names of coordinates and of what is recorded beside the metrics."""
LONGEST = 200
"""Bytes of a name in a file system, less the endings."""
MetricAction = Callable[[Action, Layer], Action | tuple[Action, Action]]
"""(the action on images, the layer) -> the action on f(x), or one for each half of the images that channels are matched on."""


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
        positions. "raw" needs one: (whatever the model gave, (height, width) of the images) -> (b, N, C) or (b, C). It raises
        `Undefined` with the reason where f is not defined.
    action : callable, or None
        (the action on images, the layer) -> the action on f(x); it raises `Undefined` where there is none. None: maps and dense
        outputs move as images do, all else stays. Where f(x) is no map, channels move and not positions.
    normalised : bool
        Whether E / M is reported, M being the mean cosine of different images' pooled features.
    null : "images" or "elements"
        Whether the null compares with another image, or, where unrelated images may rightly have the same output, with f̂(x)
        moved by an element that moves it otherwise.

    Raises
    ------
    ValueError
        The name is taken, empty or no name of a variable, or the parts do not fit together.

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
    action: MetricAction | None = None
    normalised: bool = False
    null: Literal["images", "elements"] = "images"

    def __post_init__(self) -> None:
        _check_name(self.name)
        for field, allowed in (("where", WHERE), ("null", ("images", "elements"))):
            value = getattr(self, field)
            if value not in allowed:
                raise ValueError(f"{self.name}: {field} must be one of {', '.join(allowed)}, got {value!r}")
        for field in ("features", "action"):
            value = getattr(self, field)
            if value is not None and not callable(value):
                raise TypeError(f"{self.name}: {field} must be a function or None, got {type(value).__name__}")
        if not isinstance(self.distance, Distance):
            raise TypeError(f"{self.name}: distance must be a Distance, got {type(self.distance).__name__}")
        if self.null == "elements" and self.action is None and not self.has_positions:
            raise ValueError(f"{self.name}: no element moves anything, so none moves it otherwise; give an action")
        if self.where == "raw" and self.features is None:
            raise ValueError(f"{self.name}: a raw output needs features, which make (b, N, C) or (b, C) of it")
        if self.normalised and self.where != "vectors":
            raise ValueError(f"{self.name}: only vectors have a mean cosine M, so where must be 'vectors'")
        is_plain = self.where == "maps" and self.features is None and self.null == "images"
        if self.action is matching.matched and not is_plain:
            raise ValueError(f"{self.name}: only channels of maps as they are can be matched, against other images")

    @property
    def has_positions(self) -> bool:
        """Whether f(x) is a map, whose positions the group moves."""
        return self.where in ("maps", "dense")

    @property
    def has_layers(self) -> bool:
        """Whether there is a value for each layer, and not one for the output."""
        return self.where in ("maps", "vectors")

    def refuse(self, layer: Layer) -> None:
        """Raise `Undefined`, with the reason, where the metric has no value at a layer, whatever that gives."""
        if self.where == "raw":
            return
        if layer.layout is None:
            raise Undefined(layer.reason)
        if self.where == "output" and layer.output is not None:
            are_answers = layer.output.kind in INDEPENDENT and layer.grid == (1, 1)
            if layer.output.reason and not are_answers:
                raise Undefined(layer.output.reason)
        if not self.has_positions:
            return
        if self.where == "dense" and layer.grid == (1, 1):
            raise Undefined("the model's output is no map, but has one position")
        if self.where == "maps" and layer.role == "class token":
            raise Undefined("a class token lies nowhere")
        if self.where == "maps" and layer.role != "module":
            raise Undefined("it is the head's input, not a feature map")
        if self.where == "maps" and layer.grid == (1, 1):
            raise Undefined("its output has one position, where a cosine only compares signs")
        if layer.grid == (0, 0):
            raise Undefined(layer.reason)

    def of(self, z: Tensor) -> Tensor:
        """f(x), (b, …), from a layer's output (b, P, C)."""
        if self.where == "output":
            z = z[:, 0]
        if self.features is not None:
            return self.features(z)
        return z.mean(1, dtype=torch.float64) if self.where == "vectors" else z

    def at(self, layer: Layer, action: Action, channels: int) -> list[LayerAction]:
        """How G acts on f(x) of so many channels at a layer: one action, or one for each half of the images.

        Raises
        ------
        Undefined
            It does not act there, for the reason that is given.
        """
        if self.action is None:
            moves = action if self.has_positions else actions.trivial(action.group)
        else:
            moves = self.action(action, layer)
        of_halves = moves if isinstance(moves, tuple) else (moves,)
        if self.has_positions:
            return [one.on(layer.grid, channels) for one in of_halves]
        return [one.on_vectors(channels) for one in of_halves]

    @property
    def description(self) -> str:
        """What tells it from another metric of the same name: a study does not mix them.

        Raises
        ------
        ValueError
            `features` or `action` is no named function, so that it cannot be told from another one.
        """
        functions = [_name_of(function, self.name) for function in (self.features, self.action)]
        parts = [self.where, *functions, self.distance.name, f"null of {self.null}"]
        if self.normalised:
            parts.append("normalised")
        return f"{self.name}: {', '.join(parts)}"


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"a metric's name must be a text, got {type(name).__name__}")
    if not name.strip() or re.search(r"[/\x00-\x1f]", name) or name in (".", ".."):
        raise ValueError(f"a metric's name must be a text without '/' and control characters, got {name!r}")
    if len(name.encode()) > LONGEST:
        raise ValueError(
            f"a metric's name is part of file names, which bear {LONGEST} bytes of it, got {len(name.encode())}"
        )
    if name in RESERVED:
        raise ValueError(f"the results have something called {name!r} already; give the metric another name")
    for ending in ENDINGS:
        if name.endswith(ending):
            raise ValueError(f"names that end in {ending!r} belong to what is recorded of a metric; got {name!r}")


def _name_of(function: Callable | None, metric: str) -> str:
    if function is None:
        return "none"
    if isinstance(function, partial):
        given = [*map(repr, function.args), *(f"{key}={value!r}" for key, value in sorted(function.keywords.items()))]
        return f"{_name_of(function.func, metric)}({', '.join(given)})"
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
    """Softmax (…, k) in float64 of class scores; never exactly 0, so that an underflow does not become an infinite KL."""
    if scores.shape[-1] < 2:
        raise Undefined(
            "its output has one channel, where class scores need two or more; for yes-or-no answers pass "
            "output='independent'"
        )
    return scores.double().softmax(-1).clamp_min(torch.finfo(torch.float64).tiny)


def scores_of(odds: Tensor) -> Tensor:
    """Class scores whose softmax the probabilities are; none is infinite."""
    return odds.double().clamp_min(torch.finfo(torch.float64).tiny).log()


def class_scores(z: Tensor) -> Tensor:
    """A map of class scores as it is; `Undefined` for one channel, which has no other class."""
    probabilities(z[:1])
    return z


def of_probabilities(metric: Metric, layer: Layer) -> Metric:
    """A metric of class scores as it is taken of a layer; of a map of probabilities the scores are their logarithms."""
    features = metric.features
    if layer.output is None or layer.output.kind != "dense probabilities":
        return metric
    if features is None or features not in (probabilities, class_scores):
        return metric
    return replace(metric, features=lambda z: features(scores_of(z)))


def two_classes(logits: Tensor) -> Tensor:
    """Scores of no and yes, (…, 2), for the logit of a yes-or-no answer: their softmax is its sigmoid."""
    return torch.stack([torch.zeros_like(logits), logits], dim=-1)


def of_independent(metric: Metric) -> Metric:
    """A metric of the output as it is taken of k independent yes-or-no answers: the mean over these *[ours]*.

    So `softmax` is the mean Bernoulli KL then; a softmax over such answers would be wrong. Of a mask of one channel each
    position has the two classes no and yes.
    """
    features = metric.features
    if metric.where == "dense" and features is not None:
        return replace(metric, features=lambda z: features(two_classes(z[..., 0])))
    if metric.where != "output" or features is None:
        return metric
    of_one = metric.distance
    distance = replace(
        of_one,
        between=lambda p, q: of_one(p, q).mean(-1),
        equation=f"mean over outputs of {of_one.equation}",
    )
    title = f"{(metric.title or metric.name).replace('softmax', 'Bernoulli')}, mean over outputs"
    return replace(metric, features=lambda z: features(two_classes(z)), distance=distance, title=title)


def regular(action: Action, _layer: Layer) -> Action:
    """Channels are fields of the regular representation, as group convolutions give them."""
    return actions.regular(action)


def as_boxes(action: Action, _layer: Layer) -> Action:
    """Rows are boxes."""
    return actions.boxes(action)


def _family() -> Iterable[Metric]:
    cosine = distances.channelwise_negative_cosine
    eq5 = "channelwise negative cosine"
    yield Metric("channelwise", "maps", cosine, eq5, "eq. 5")
    zero = distances.channelwise_negative_cosine_zero
    yield Metric("channelwise_zero", "maps", zero, f"{eq5}, dead channels as 0", "eq. 5, other reading")
    skip = distances.channelwise_negative_cosine_skip
    yield Metric("channelwise_skip", "maps", skip, f"{eq5}, live channels", "eq. 5, other reading")
    source = "eq. 5 with the regular representation (ours)"
    yield Metric("channelwise_regular", "maps", cosine, f"{eq5}, regular fields", source, action=regular)
    source = "eq. 5 with the field's representation (ours)"
    yield Metric("channelwise_field", "maps", cosine, f"{eq5}, steerable fields", source, action=fields.field)
    correlation = distances.channelwise_negative_correlation
    yield Metric("channelwise_centred", "maps", correlation, f"{eq5}, centred channels", "eq. 5 on centred maps (ours)")
    source = "eq. 5 under fitted permutations (ours)"
    yield Metric("channelwise_matched", "maps", cosine, f"{eq5}, matched channels", source, action=matching.matched)
    rms = distances.root_mean_square
    yield Metric("channelwise_rms", "maps", rms, "root mean square difference of maps", "eq. 4")

    cosine_of_vectors = distances.negative_cosine
    eq6 = "latent negative cosine"
    reading = "eq. 6, other reading"
    yield Metric("latent", "vectors", cosine_of_vectors, eq6, "eq. 6", normalised=True)
    yield Metric("latent_unit", "vectors", cosine_of_vectors, f"{eq6}, unit centroid", reading, unit, normalised=True)
    yield Metric("latent_flat", "vectors", cosine_of_vectors, f"{eq6}, not pooled", reading, flat)
    yield Metric("latent_euclidean", "vectors", distances.euclidean, "latent Euclidean distance", "eq. 4")

    reverse = "softmax KL divergence, reversed"
    yield Metric("softmax", "output", distances.kl, "softmax KL divergence", "eq. 4", probabilities)
    yield Metric("softmax_reverse", "output", distances.kl_reverse, reverse, "eq. 4, other reading", probabilities)
    js = distances.jensen_shannon
    yield Metric("softmax_js", "output", js, "softmax Jensen-Shannon divergence", features=probabilities)
    tv = distances.total_variation
    yield Metric("softmax_tv", "output", tv, "softmax total variation", features=probabilities)
    yield Metric(
        "softmax_hellinger", "output", distances.hellinger, "softmax Hellinger distance", features=probabilities
    )

    yield Metric("dense", "dense", cosine, f"{eq5} of the output", "eq. 5 on the output (ours)")
    kl_title = "mean KL divergence of pixels' classes"
    yield Metric("segmentation", "dense", distances.mean_kl, kl_title, features=probabilities)
    iou = distances.jaccard_of_scores
    yield Metric("segmentation_iou", "dense", iou, "1 − IoU of the masks of classes", features=class_scores)
    found = {"features": boxes.detections, "action": as_boxes}
    yield Metric("boxes", "raw", boxes.box_ospa, "1 − IoU of matched boxes", **found)
    for percent in (50, 75):
        distance = boxes.box_disagreement(percent / 100)
        yield Metric(f"boxes_{percent}", "raw", distance, f"boxes without a match of IoU ≥ {percent / 100:g}", **found)


METRICS = {metric.name: metric for metric in _family()}
"""Every metric by name; `measure(metrics=…)` takes these names or `Metric` values."""

COMPARED = (
    *("channelwise", "channelwise_regular", "channelwise_matched", "channelwise_centred"),
    *("latent", "latent_euclidean", "softmax", "softmax_js", "softmax_tv", "softmax_hellinger"),
)
"""What the bundled notebooks measure: models in one store are joined where they were measured by the same metrics."""


def resolve(metrics: str | Metric | Iterable[str | Metric]) -> tuple[Metric, ...]:
    """Metrics given by name or value, as values; ValueError for an unknown name, a name given twice, or none at all."""
    if not isinstance(metrics, str | Metric | Iterable):
        raise TypeError(f"metrics must be names such as 'latent' or Metrics, got {type(metrics).__name__}")
    given: list[Any] = [metrics] if isinstance(metrics, str | Metric) else list(metrics)
    resolved = []
    for metric in given:
        if not isinstance(metric, str | Metric):
            raise TypeError(f"a metric is a name such as 'latent' or a Metric, got {type(metric).__name__}")
        if isinstance(metric, str) and metric not in METRICS:
            raise ValueError(unknown("metric", metric, METRICS))
        resolved.append(METRICS[metric] if isinstance(metric, str) else metric)
    names = [metric.name for metric in resolved]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"metrics must be one or more with different names, got {names}")
    return tuple(resolved)
