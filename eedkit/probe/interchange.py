"""Interchange: g f_ℓ(x) in the place of f_ℓ(gx), and what the features make of it *[ours]*.

Knows the pass of `measure`, whose layers, actions, chains and null it takes. Costs |G| forwards of every image, and as many
again for each layer; holds what one forward pass gives at one layer, twice.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from eedkit.errors import Undefined, unknown
from eedkit.probe import guard
from eedkit.probe.collect import ABSENT, LayerPass, Place, Setting
from eedkit.probe.layers import Layer
from eedkit.probe.layouts import Layout
from eedkit.probe.measure import Options, Pass, run_pass, warn_of_flaws
from eedkit.probe.metrics import METRICS
from eedkit.probe.outputs import first_tensor
from eedkit.probe.run import Ready
from eedkit.probe.samples import Batch
from eedkit.probe.tracing import Call, Key, watch
from eedkit.theory.actions import Action, LayerAction
from eedkit.theory.groups import Group

IMAGE = "image"
"""The layer at depth 0, where the image itself is turned."""
AS_THEY_ARE = "as they are"
MATCHED = "matched"
PERTURBED = "perturbed"
CHANNELS = {
    AS_THEY_ARE: METRICS["channelwise"],
    MATCHED: METRICS["channelwise_matched"],
    PERTURBED: METRICS["channelwise"],
}
"""The metric under whose action maps are moved."""
TITLES = {
    AS_THEY_ARE: "moved maps put in at the layer",
    MATCHED: "moved maps put in at the layer, their channels matched",
    PERTURBED: "noise as large as the exchange added at the layer",
}


@dataclass(frozen=True)
class Exchange(Options):
    """How to exchange: the options of `measure`, and which channels take each other's place."""

    metrics: Any = "latent"
    channels: str = AS_THEY_ARE

    def __post_init__(self) -> None:
        if self.channels not in CHANNELS:
            raise ValueError(unknown("kind of exchange, channels=", self.channels, CHANNELS))
        super().__post_init__()

    @property
    def matches_channels(self) -> bool:
        """Whether permutations of channels are fitted before the pass."""
        return self.channels == MATCHED

    def pass_over(self, ready: Ready, *, first_half: int) -> Pass:
        """The pass that these options ask for."""
        return ExchangePass(ready, self, first_half=first_half)


def interchange(
    model: nn.Module | str,
    images: Any,
    *,
    group: str | Group | Action,
    channels: str = AS_THEY_ARE,
    layers: str | Sequence[str] = "blocks",
    head: str | None = None,
    layouts: Mapping[str, str] | None = None,
    output: str | int | Mapping[str, str] = "auto",
    call: Call | None = None,
    labels: Any = None,
    name: str | None = None,
    batch_size: int | None = None,
    device: str | torch.device = "auto",
    precision: str = guard.AUTO,
    null: bool | str = True,
    seed: int = 0,
    progress: bool = True,
) -> xr.Dataset:
    """m(f(gx | f_ℓ(gx) := g f_ℓ(x)), f̂(x)): the features when a layer's maps are turned instead of the image *[ours]*.

    Where is invariance made? The image gx runs through the network; at one layer ℓ its maps are replaced by g f_ℓ(x), the
    maps of the unmoved image, moved; the rest of the network runs. The deviation of these features from their mean over the
    orbit (Kvinge et al. 2022, eq. 6) is taken as `measure` takes it, with the null of the shuffled orbit. Turning the image
    (the layer "image" at depth 0) gives the value of `measure`. If a network's invariance ran through layers that turn with
    the image, the exchange would change nothing.

    A low value tells networks apart only where some network has a high one: where nothing after ℓ knows of places, as before a
    mean over positions or between the blocks of a vision transformer, it is 0 for all of them.

    This is activation patching (Vig et al. 2020, arXiv 2004.12265); Gruver et al. 2022 (arXiv 2210.02984) ask for the
    contribution of each layer by derivatives.

    Parameters
    ----------
    model, images, group, layers, head, layouts, output, call, labels, name, batch_size, device, precision, null, seed, progress
        As in `measure`.
    channels : "as they are", "matched" or "perturbed"
        "matched": the channels of g f_ℓ(x) are permuted as comes nearest to f_ℓ(gx), fitted on one half of the images and
        applied to the other, as in `channelwise_matched`. "perturbed" is a control that turns nothing: x runs through the
        network, and noise as long as f_ℓ(gx) − g f_ℓ(x) is added to f_ℓ(x), so that one sees what any change of that size
        does.

    Returns
    -------
    Dataset
        `latent` with its null, as `measure` gives it, where `layer` is "image" or the layer whose maps were exchanged. NaN
        with the reason where maps have no layout or the group does not act on them, where it moves nothing or interpolates,
        and where a layer runs after the features. What lies nowhere, such as a class token, is that of x.

    Raises
    ------
    ValueError, TypeError
        As `measure`; or `channels` is unknown.

    Examples
    --------
    >>> _ = torch.manual_seed(6)
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    >>> ds = interchange(net, torch.rand(8, 1, 5, 5), group="C4", layers=["0"], progress=False)
    >>> (ds.latent.mean(["element", "sample"]) < -0.9999).to_series().droplevel("model").to_dict()
    {'image': False, '0': True}
    """
    options = Exchange(
        group=group,
        channels=channels,
        layers=layers,
        head=head,
        layouts=layouts or {},
        output=output,
        call=call,
        batch_size=batch_size,
        device=device,
        precision=precision,
        null=null,
        seed=seed,
    )
    ds, measured = run_pass(model, images, options, labels=labels, name=name, progress=progress)
    ds.attrs["interchange"] = channels
    ds.latent.attrs["long_name"] += f", {TITLES[channels]}"
    warn_of_flaws(measured)
    return ds


class ExchangePass(Pass):
    """The pass of `measure`, once as it is, for the row `image`, and for every forward pass of it one more for each layer."""

    options: Exchange

    def __init__(self, ready: Ready, options: Exchange, *, first_half: int) -> None:
        super().__init__(ready, options, first_half=first_half)
        self.returns = {}
        self.image, *layers = self.inner
        self.exchanged = self.image
        """The layer whose maps are exchanged, or the image itself."""
        self.is_done = False
        """Whether they were, in this forward pass."""
        self.place: Place
        self.start = 0
        self.sizes: dict[Layer, Tensor] = {}
        """‖f(gx) − g f(x)‖ of the images of a forward pass, (g, b)."""
        self.actions: dict[Layer, list[LayerAction]] = {}
        for layer in layers:
            try:
                self.actions[layer] = self._actions(layer)
            except Undefined as why:
                self.passes[layer].give_up(str(why))

    def _rows(self) -> list[Layer]:
        layers = [layer for layer in self.ready.found.layers if layer.role in ("module", "class token")]
        if any(layer.name == IMAGE for layer in layers):
            raise ValueError(
                f"the turned image is the layer {IMAGE!r}, as a module is called, too; leave it out of layers="
            )
        image = Layer(IMAGE, 1, "", 0.0, layout=Layout((0, *self.ready.image_shape), 0, (2, 3), self.ready.grid))
        return [image, *layers]

    def _layer_passes(self, setting: Setting) -> dict[Layer, LayerPass]:
        """What is collected of the features, for every row by itself."""
        latent = next(layer for layer in self.ready.found.layers if layer.role == "latent")
        passes = {layer: LayerPass(latent, self.metrics, setting) for layer in self.inner}
        for layer in self.outputs:
            passes[layer] = LayerPass(layer, [], setting)
        return passes

    def _actions(self, layer: Layer) -> list[LayerAction]:
        """How G moves the maps of a layer: one action, or one for each half of the images."""
        if layer.grid == (1, 1) and layer.role == "module":
            raise Undefined("its output has one position, which the group does not move")
        metric = CHANNELS[self.options.channels]
        metric.refuse(layer)
        actions = [
            action.to(self.ready.forward.device) for action in metric.at(layer, self.options.action, layer.channels)
        ]
        if actions[0].interpolates:
            raise Undefined(
                f"{actions[0].group.name} interpolates here, and the exchange would measure that as well; take a group of "
                "quarter turns"
            )
        if len(actions[0].kernel) == self.order:
            raise Undefined("the group does not move its maps")
        return actions

    def run(self, batch: Batch, *args: Any) -> None:
        """All forward passes of a batch, and what follows from them."""
        self.start = batch.start
        super().run(batch, *args)

    def on_layer(self, layer: Layer, place: Place, given: Tensor) -> None:
        """Runs inside the hook."""
        given = given.detach()
        is_turn = self.exchanged is self.image
        if layer.role == "latent" and (is_turn or self.is_done):
            self.passes[self.exchanged].take(self.place, given)
        elif is_turn and layer.role == "output":
            self.scores.take(layer, place, given, is_return=False)
        elif is_turn and layer in self.actions and self.options.channels == PERTURBED:
            self._take_size(layer, given)

    def _forward(self, forward: Any, place: Place, images: Tensor, *, returned: bool) -> Any:
        """One forward pass on gx, and one more for each layer."""
        self.place = place
        self.exchanged = self.image
        output = forward(place, images)
        self._close(ABSENT)
        shown = place
        if self.options.channels == PERTURBED:
            shown = replace(place, elements=[0] * len(place.elements))
        for layer in self.actions:
            if not self.passes[layer].kinds:  # it was given up
                continue
            self.exchanged = layer
            self.is_done = False
            with watch(self.ready.forward.model, {(layer.path, "out")}, self._exchange):
                forward(shown, images)
            self._close("it does not run before the features are taken" if self.is_done else ABSENT)
        return output

    def _close(self, reason: str) -> None:
        """End a forward pass, in which the features must have been taken."""
        of_layer = self.passes[self.exchanged]
        if not of_layer.ran:
            of_layer.give_up(reason)
        of_layer.ran = False

    def _exchange(self, key: Key, given: Any) -> Any:
        """What takes the place of a layer's output; None to leave it as it is. Runs inside the hook."""
        if key != self.exchanged.key:
            return None
        try:
            maps = first_tensor(given)
            if maps is None:
                raise Undefined(ABSENT)
            whole = _with_tensor(given, maps, self._replaced(maps))
        except Undefined as why:
            self.passes[self.exchanged].give_up(str(why))
            return None
        self.is_done = True
        return whole

    def _replaced(self, given: Tensor) -> Tensor:
        """The output for x under every element, with the maps that stand in place of those for gx."""
        layer = self.exchanged
        images = self.place.images
        of_x = self.place.read(layer, given)[:images]
        if self.options.channels == PERTURBED:
            maps = of_x + self._noise(layer, of_x)
        else:
            maps = self._moved(layer, of_x)
        return written(layer, given, maps.flatten(0, 1), images)

    def _moved(self, layer: Layer, of_x: Tensor) -> Tensor:
        """g f(x), (g, b, P, C), of each image under what was not fitted on it."""
        elements = self.place.elements
        action, *for_first_half = self.actions[layer]
        moved = torch.stack([action(g, of_x) for g in elements])
        for other in for_first_half:
            is_first = self.place.half.bool()
            moved[:, is_first] = torch.stack([other(g, of_x[is_first]) for g in elements])
        return moved

    def _take_size(self, layer: Layer, given: Tensor) -> None:
        """Take how large the exchange would be."""
        try:
            orbit = self.place.read(layer, given).unflatten(0, (len(self.place.elements), -1))
        except Undefined as why:
            self.passes[layer].give_up(str(why))
            return
        change = orbit - self._moved(layer, orbit[0])
        self.sizes[layer] = torch.linalg.vector_norm(change.flatten(2), dim=-1)

    def _noise(self, layer: Layer, of_x: Tensor) -> Tensor:
        """Noise (g, b, P, C) as long as the exchange of each image, the same in whatever batch that comes."""
        elements = self.place.elements
        noise = torch.empty(len(elements), *of_x.shape)
        for k, element in enumerate(elements):
            for i in range(len(of_x)):
                drawn_by = [self.options.seed, self.start + self.place.rows.start + i, element]
                (state,) = np.random.SeedSequence(drawn_by).generate_state(1).tolist()
                noise[k, i] = torch.randn(of_x.shape[1:], generator=torch.Generator().manual_seed(state))
        noise = noise.to(of_x)
        lengths = torch.linalg.vector_norm(noise.flatten(2), dim=-1)
        return noise * (self.sizes[layer] / lengths)[..., None, None]


def written(layer: Layer, given: Tensor, maps: Tensor, images: int) -> Tensor:
    """A layer's output for the first images, as often as it holds them, with other maps (g·b, P, C) in it.

    What lies nowhere, such as a class token, stays as it is for the first images.
    """
    assert layer.layout is not None
    by_image = given.movedim(layer.layout.batch, 0)
    numbers = torch.arange(by_image[0].numel(), device=given.device).reshape(1, *by_image.shape[1:])
    # read by the layout, they say where each number of a map stands
    places = layer.layout.read(numbers.movedim(0, layer.layout.batch)).flatten()
    numbers_of_x = by_image[:images].flatten(1)
    whole = numbers_of_x.repeat(len(by_image) // images, 1)
    whole[:, places] = maps.flatten(1).to(whole)
    changed = torch.empty_like(given)
    changed.movedim(layer.layout.batch, 0).copy_(whole.unflatten(1, by_image.shape[1:]))
    return changed


def _with_tensor(given: Any, tensor: Tensor, changed: Tensor) -> Any:
    """What a module gave, with another tensor in place of this one: a tensor, a tuple that begins with it, a GeometricTensor."""
    if given is tensor:
        return changed
    if isinstance(given, tuple | list) and given and given[0] is tensor:
        parts = [changed, *given[1:]]
        return type(given)(*parts) if hasattr(given, "_fields") else type(given)(parts)
    if getattr(given, "tensor", None) is tensor:
        whole = copy.copy(given)
        setattr(whole, "tensor", changed)  # noqa: B010  # of e2cnn's and escnn's class, which is not known here
        return whole
    raise Undefined(f"nothing can be put in place of what it gives, {type(given).__name__}")
