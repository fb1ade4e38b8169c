"""The family of G-EED metrics as values: what is taken from a layer, how G acts there, which distance compares.

Knows tensors, actions and distances; never a model or a label. A custom metric is one more value.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from eedkit.errors import unknown
from eedkit.theory import actions, distances
from eedkit.theory.actions import Action
from eedkit.theory.distances import Distance


def _same(action: Action) -> Action:
    return action


@dataclass(frozen=True)
class Metric:
    """One G-EED (Kvinge et al. 2022, eq. 4): m(f(gx), g f̂(x)) for a choice of f, of the action on its values, and of m.

    Parameters
    ----------
    name : str
        Of the variable in the Dataset.
    where : "maps", "vectors" or "output"
        "maps" (tapped layers) compares positions × channels, "vectors" (tapped layers and `latent`) one vector for each
        image, on which nothing moves, "output" the class scores.
    distance : Distance
        m; what it says of its scale and rounding holds for the metric.
    title : str
        For people; the name where it is empty.
    source : str
        Equation of the paper, or "ours".
    features : callable, or None
        A layer's output as (b, P, C), for "output" the scores (b, k) -> f(x) (b, …). None: as it is; for vectors the mean over
        positions.
    action : callable
        The action on images -> the action on maps.
    normalised : bool
        Whether E / M is reported, M being the mean cosine of different images' pooled features.
    matched : bool
        Whether channels are permuted after the action, for each element as fits best on other samples (`matching`).

    Examples
    --------
    >>> METRICS["latent"].distance.best
    -1.0
    """

    name: str
    where: Literal["maps", "vectors", "output"]
    distance: Distance
    title: str = ""
    source: str = "ours"
    features: Callable[[Tensor], Tensor] | None = None
    action: Callable[[Action], Action] = _same
    normalised: bool = False
    matched: bool = False

    def __post_init__(self) -> None:
        if self.where not in ("maps", "vectors", "output"):
            raise ValueError(f"{self.name}: where must be 'maps', 'vectors' or 'output', got {self.where!r}")
        if self.normalised and self.where != "vectors":
            raise ValueError(
                f"{self.name}: only vectors have a mean cosine M to be divided by, so where must be 'vectors'"
            )
        if self.matched and (self.where != "maps" or not self.distance.of_sums or self.features is not None):
            raise ValueError(
                f"{self.name}: only channels of maps as they are can be matched, by a distance of their sums"
            )

    @property
    def description(self) -> str:
        """What tells it from another metric of the same name: a study does not mix them.

        Raises
        ------
        ValueError
            `features` or `action` is no named function, so that it cannot be told from another one.
        """
        functions = [_name_of(function, self.name) for function in (self.features, self.action)]
        return f"{self.name}: {self.where}, {', '.join(functions)}, {self.distance.name}"


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
