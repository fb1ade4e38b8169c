"""Forward passes on orbits: a model made ready, and each batch with all that the group makes of it shown layer by layer.

Knows models, streams and layers, never labels. Costs |G| forwards of every image, twice as many where images go there and back;
holds one forward pass of images.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from eedkit.errors import Undefined
from eedkit.probe import matching
from eedkit.probe.collect import Place
from eedkit.probe.guard import left_as_found, weights_kept
from eedkit.probe.layers import Found, Layer, Output, find_layers, tap
from eedkit.probe.samples import Sample, Stream
from eedkit.probe.tracing import Call, plain_call
from eedkit.theory import deviation
from eedkit.theory.actions import Action

if TYPE_CHECKING:
    from eedkit.probe.measure import Options

OnLayer = Callable[[Layer, Place, Any], None]
"""(a layer, the forward pass, what the layer gave) -> nothing; runs inside the hook."""
LEAST = 32
"""Images in a forward pass by default: with fewer, putting weights in order costs as much as using them."""
TOGETHER = 64
"""Images in a forward pass up to which the elements of a group are not parted by default."""


class Forward:
    """A model's forward pass on orbits: `forward(elements, images)` is one on gx of these elements, one after the other.

    Images are moved as positions × channels, so that a convolution gets them channels-last, in which it is faster.
    """

    def __init__(
        self,
        model: nn.Module,
        call: Call,
        action: Action,
        shape: Sequence[int],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.model = model
        self.call = call
        self.action = action.on_images(shape).to(device)
        self.back = action.inverse.on_images(shape).to(device) if self.action.interpolates else None
        self.device = device
        self.dtype = dtype
        self.channels_last = False

    def __call__(self, elements: Sequence[int], images: Tensor, *, returned: bool = False) -> Any:
        """What the model gives for gx, as one batch (g·b, …); or for g⁻¹gx."""
        orbit = self.orbit(elements, images, returned=returned)
        return self.call(self.model, orbit if self.channels_last else orbit.contiguous())

    def orbit(self, elements: Sequence[int], images: Tensor, *, returned: bool = False) -> Tensor:
        """gx, or g⁻¹gx, (g·b, C, H, W); where the action keeps to a circle, of images that are 0 outside of it."""
        positions = images.to(self.device, self.dtype).flatten(2).mT.contiguous()
        if self.action.compared is not None:
            positions = self.action(0, positions)
        moved = [self.action(g, positions) for g in elements]
        if returned and self.back is not None:
            moved = [self.back(g, of_g) for g, of_g in zip(elements, moved, strict=True)]
        return torch.cat(moved).unflatten(1, self.action.grid).permute(0, 3, 1, 2)


@dataclass
class Ready:
    """What a pass needs: the images, the layers that were found on two of them, and how the model is called.

    `batch_size` is how many images a forward pass has, `law_error` that of the action on images, `example` the images on which
    layers were found.
    """

    stream: Stream
    found: Found
    forward: Forward
    image_shape: tuple[int, ...]
    batch_size: int
    law_error: float
    example: Tensor

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the images."""
        _, height, width = self.image_shape
        return height, width

    @property
    def order(self) -> int:
        """|G|."""
        return self.forward.action.group.order


@contextmanager
def prepared(model: nn.Module, stream: Stream, options: "Options") -> Iterator[Ready]:
    """Within the block the model is ready for a pass: in eval mode, on the device, its layers found; see `left_as_found`."""
    first_samples = stream.first(2)
    shape = tuple(first_samples[0].image.shape)
    law_error = options.action.on_images(shape).law_error
    device = options.torch_device
    call = options.call or plain_call
    with left_as_found(model, device, options.precision) as dtype:
        forward = Forward(model, call, options.action, shape, device, dtype)
        example = forward.orbit([0], _two_images(first_samples)).contiguous()
        with weights_kept(model):  # a model that changes them is refused before the pass
            found = find_layers(
                model,
                example,
                layers=options.layers,
                head=options.head,
                layouts=options.layouts,
                output=options.output,
                call=call,
            )
        forward.channels_last = found.channels_last
        found.layers = [_with_form(layer, forward, example) for layer in found.layers]
        batch_size = options.batch_size or default_batch_size(shape, options.action.group.order, device)
        yield Ready(stream, found, forward, shape, batch_size, law_error, example)


@contextmanager
def watched(ready: Ready, on_layer: OnLayer, *, layers: Sequence[Layer] | None = None) -> Iterator[Callable[..., Any]]:
    """Within the block `forward(place, images)` shows what every layer gives to `on_layer`, and gives the model's output.

    With `returned=True` images go there and back, g⁻¹gx. `layers` None: those that have a layout.
    """
    device = ready.forward.device.type
    if layers is None:
        layers = [layer for layer in ready.found.layers if layer.layout is not None]
    inside = [layer for layer in layers if layer.output is None]
    outputs = [layer for layer in layers if layer.output is not None]
    current: Place
    in_full_precision = torch.autocast(device, enabled=False)

    def see(layer: Layer, given: Any) -> None:
        with in_full_precision:
            on_layer(layer, current, given)

    with tap(ready.forward.model, inside, see) as begin:

        def forward(place: Place, images: Tensor, *, returned: bool = False) -> Any:
            nonlocal current
            current = place
            begin()
            raw = ready.forward(place.elements, images[place.rows], returned=returned)
            for layer in outputs:
                with suppress(Undefined):  # what is not there in every pass is told by its absence
                    see(layer, (layer.output or Output()).select(raw))
            return raw

        yield forward


def places(chains: Sequence[range], order: int, most: int, half: Tensor) -> Iterator[Place]:
    """The forward passes of a batch: whole chains under all elements, about `most` images; of large groups a part of them.

    Parameters
    ----------
    chains : sequence of range
        Places in the batch of the images that serve as each other's partners in maps.
    order : int
        |G|.
    most : int
        Images of a forward pass.
    half : Tensor (n,)
        As of `Place`.
    """
    partners = deviation.partners(chains, order).to(half.device)
    start = 0
    for chain, after in zip(chains, [*chains[1:], None], strict=True):
        if after is not None and order * (after.stop - start) <= most:
            continue
        rows = slice(start, chain.stop)
        images = chain.stop - start
        start = chain.stop
        is_whole = order * images <= most
        others = order - 1 if is_whole else max(1, most // images - 1)
        for first in range(1, max(order, 2), max(others, 1)):
            elements = [0, *range(first, min(first + others, order))]
            of_place = partners[elements, rows] - rows.start
            yield Place(elements, int(first > 1), rows, of_place, half[rows])


def fit_channels(ready: Ready, samples: Iterator[Sample], half: int, action: Action) -> None:
    """Give every layer the permutations of channels that matched metrics compare under, in a pass of their own."""
    layers = [layer for layer in ready.found.layers if layer.role == "module" and math.prod(layer.grid) > 1]
    take: Callable[[Layer, Place, Tensor], None]

    def on_layer(layer: Layer, place: Place, given: Tensor) -> None:
        with suppress(Undefined):  # the pass that measures says so, too
            z = place.read(layer, given)
            take(layer, place, z.unflatten(0, (len(place.elements), place.images)))

    with watched(ready, on_layer) as forward:

        def run(batch: Sequence[Sample], of_half: Callable[[Layer, Place, Tensor], None]) -> None:
            nonlocal take
            take = of_half
            images = torch.stack([sample.image for sample in batch])
            nobody = torch.zeros(len(batch), dtype=torch.int64, device=ready.forward.device)
            for place in places([range(len(batch))], ready.order, ready.batch_size, nobody):
                forward(place, images)

        together = max(1, ready.batch_size // ready.order)
        fits = matching.fit(layers, samples, half, together, action=action, run=run)
    ready.found.layers = [replace(layer, fit=fits.get(layer)) for layer in ready.found.layers]


def _with_form(layer: Layer, forward: Forward, example: Tensor) -> Layer:
    """The layer; an output of yes-or-no answers that stays between 0 and 1 whatever comes in holds probabilities, not logits."""
    if layer.role != "output" or layer.layout is None or layer.output is None or layer.output.kind != "independent":
        return layer
    noise = torch.randn(16, *example.shape[1:], generator=torch.Generator().manual_seed(0))
    scales = torch.tensor([0.1, 1.0, 10.0, 100.0]).repeat(4)[:, None, None, None]
    answers = layer.output.select(forward.call(forward.model, (noise * scales).to(example)))
    if ((answers >= 0) & (answers <= 1)).all():
        return replace(layer, output=replace(layer.output, kind="independent probabilities"))
    return layer


def default_batch_size(shape: Sequence[int], order: int, device: torch.device | str = "cpu") -> int:
    """Images in a forward pass: such that they fit a processor's cache, or keep a GPU busy, and few groups are parted.

    >>> default_batch_size((3, 224, 224), 4), default_batch_size((3, 32, 32), 4), default_batch_size((3, 224, 224), 8)
    (32, 128, 64)
    """
    numbers = 2**19 if torch.device(device).type == "cpu" else 2**25
    size = 256
    while size > LEAST and size * math.prod(shape) > numbers:
        size //= 2
    of_chain = order * max(order, deviation.SHORTEST_CHAIN)
    return max(size, of_chain) if of_chain <= TOGETHER else size


def _two_images(read: Sequence[Sample]) -> Tensor:
    """Two images for the tracing pass; noise where one could not be read or there is but one."""
    images = []
    for i in range(2):
        image = read[min(i, len(read) - 1)].image
        noise = torch.rand(image.shape, generator=torch.Generator().manual_seed(i)).to(image.dtype)
        images.append(noise if i >= len(read) or read[i].flaw else image)
    return torch.stack(images)
