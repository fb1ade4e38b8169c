"""The family of G-EED metrics as values: what is taken from a layer, how G acts there, which distance compares.

Knows tensors, actions and distances; never a model or a label. A metric of one's own is one more value.
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


@dataclass(frozen=True)
class Metric:
    """One G-EED (Kvinge et al. 2022, eq. 4): m(f(gx), g f̂(x)) for a choice of f, of the action on its values, and of m.

    Parameters
    ----------
    name : of the variable in the Dataset
    where : "maps" (tapped layers), "vectors" (tapped layers and the head's input, `latent`) or "output"
    features : a layer's output (b, …) -> f(x) (b, *z); raises ValueError, with the reason, where there is none
    action : the action on images -> the action on f's values
    distance : m
    title : for people
    source : equation of the paper, or "ours"
    matched : whether channels are permuted after the action, for each element as fits best on other samples (`matching`)

    >>> METRICS["latent"].distance.best
    -1.0
    """

    name: str
    where: Literal["maps", "vectors", "output"]
    features: Callable[[Tensor], Tensor]
    action: Callable[[Action], Action]
    distance: Distance
    title: str
    source: str
    matched: bool = False

    def __post_init__(self) -> None:
        if self.matched and self.where != "maps":
            raise ValueError(
                f"{self.name}: only channels of maps are matched, so where must be 'maps', got {self.where!r}"
            )


def feature_map(z: Tensor) -> Tensor:
    """A feature map (b, C, H, W) as it is; ValueError for anything else, and for maps of one pixel."""
    if z.dim() != 4:
        raise ValueError(f"its output of shape {_shape(z)} is no feature map (b, C, H, W)")
    if z.shape[-1] * z.shape[-2] == 1:
        raise ValueError("its maps have one pixel, where a cosine only compares signs")
    return z


def centred_map(z: Tensor) -> Tensor:
    """A feature map (b, C, H, W) less the mean of each channel over space, so that a cosine is a Pearson correlation.

    What a constant channel leaves is rounding, and its direction means nothing: below 10⁻⁶ of the channel's norm it is 0.
    """
    z = feature_map(z)
    centred = z - z.mean((-2, -1), keepdim=True)
    left, norm = (torch.linalg.vector_norm(part, dim=(-2, -1), keepdim=True) for part in (centred, z))
    return centred.masked_fill(left <= 1e-6 * norm, 0.0)


def pooled(z: Tensor) -> Tensor:
    """Vectors (b, d) in float64: a map (b, C, H, W) averaged over space, tokens (b, t, d) over the tokens."""
    if z.dim() not in (2, 3, 4):
        raise ValueError(f"its output of shape {_shape(z)} is no vector, no tokens and no feature map")
    over = {2: (), 3: (1,), 4: (-2, -1)}[z.dim()]
    return (z.mean(over) if over else z).double()


def flat(z: Tensor) -> Tensor:
    """Vectors (b, C·H·W) in float64: the whole map, not averaged."""
    if z.dim() < 2:
        raise ValueError(f"its output of shape {_shape(z)} is no vector and no feature map")
    return z.flatten(1).double()


def unit(z: Tensor) -> Tensor:
    """`pooled`, each vector divided by its length, so that the centroid is one of directions."""
    return torch.nn.functional.normalize(pooled(z), dim=-1, eps=torch.finfo(torch.float64).tiny)


def probabilities(z: Tensor) -> Tensor:
    """Softmax (b, k) in float64 of class scores; never exactly 0, so that an underflow does not become an infinite KL."""
    if z.dim() != 2 or z.shape[1] < 2:
        raise ValueError(f"the model's output of shape {_shape(z)} is no class scores (b, k) with k ≥ 2")
    return z.double().softmax(-1).clamp_min(torch.finfo(torch.float64).tiny)


def _shape(z: Tensor) -> str:
    return f"({', '.join(['b', *map(str, z.shape[1:])])})"


def _same(action: Action) -> Action:
    return action


def _trivial(action: Action) -> Action:
    return actions.trivial(action.group)


METRICS = {
    metric.name: metric
    for metric in (
        Metric("channelwise", "maps", feature_map, _same, distances.channelwise_negative_cosine,
               "channelwise negative cosine", "eq. 5"),
        Metric("channelwise_zero", "maps", feature_map, _same, distances.channelwise_negative_cosine_zero,
               "channelwise negative cosine, dead channels as 0", "eq. 5, other reading"),
        Metric("channelwise_skip", "maps", feature_map, _same, distances.channelwise_negative_cosine_skip,
               "channelwise negative cosine, live channels", "eq. 5, other reading"),
        Metric("channelwise_regular", "maps", feature_map, actions.regular, distances.channelwise_negative_cosine,
               "channelwise negative cosine, regular fields", "eq. 5 with the regular representation (ours)"),
        Metric("channelwise_centred", "maps", centred_map, _same, distances.channelwise_negative_cosine_skip,
               "channelwise negative correlation, live channels", "eq. 5 on centred maps (ours)"),
        Metric("channelwise_matched", "maps", feature_map, _same, distances.channelwise_negative_cosine,
               "channelwise negative cosine, matched channels", "eq. 5 under fitted permutations (ours)", matched=True),
        Metric("latent", "vectors", pooled, _trivial, distances.negative_cosine,
               "latent negative cosine", "eq. 6"),
        Metric("latent_unit", "vectors", unit, _trivial, distances.negative_cosine,
               "latent negative cosine, unit centroid", "eq. 6, other reading"),
        Metric("latent_flat", "vectors", flat, _trivial, distances.negative_cosine,
               "latent negative cosine, not pooled", "eq. 6, other reading"),
        Metric("latent_euclidean", "vectors", pooled, _trivial, distances.euclidean,
               "latent Euclidean distance", "eq. 4"),
        Metric("softmax", "output", probabilities, _trivial, distances.kl,
               "softmax KL divergence", "eq. 4"),
        Metric("softmax_reverse", "output", probabilities, _trivial, distances.kl_reverse,
               "softmax KL divergence, reversed", "eq. 4, other reading"),
        Metric("softmax_js", "output", probabilities, _trivial, distances.jensen_shannon,
               "softmax Jensen-Shannon divergence", "ours"),
        Metric("softmax_tv", "output", probabilities, _trivial, distances.total_variation,
               "softmax total variation", "ours"),
        Metric("softmax_hellinger", "output", probabilities, _trivial, distances.hellinger,
               "softmax Hellinger distance", "ours"),
    )
}  # fmt: skip
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
