"""The small networks of the bundled study: one family of group convolutions, the plain CNN being its member for C1.

Knows torch and theory's groups and actions, never data or labels. Costs of a C4 twin with as many parameters as the plain
network: twice its channels, about four times its arithmetic.
"""

import math
from collections import OrderedDict
from itertools import cycle, pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eedkit.theory import actions, groups
from eedkit.theory.actions import Action
from eedkit.theory.groups import Group

WIDTHS = (16, 32, 48, 64, 64)
STRIDES = (1, 2, 1, 2, 1)
SEGMENTER_WIDTHS = (12, 24, 24, 24)


def on_filters(group: Group | str, size: int = 3) -> Action:
    """How a group acts on square filters; ValueError where it would interpolate, or is not defined on them.

    >>> on_filters("C4").group.order
    4
    """
    action = actions.spatial(group)
    if action.on((size, size), 1).interpolates:
        raise ValueError(
            f"{action.group.name} would interpolate filters of {size}×{size}; exact are C1, C2, C4, D1, D2, D4 and flip"
        )
    return action


class GroupConv(nn.Module):
    """Group convolution: [ψ ⋆ z]_g = Σ_h z_h ⋆ φ(g, ψ_(g⁻¹h)) (Cohen & Welling 2016, eq. 11).

    Its output carries the action `actions.regular`. With `lifts=True` the input is an image without element index, and
    [ψ ⋆ x]_g = x ⋆ φ(g, ψ) (their eq. 10). Over C1 both are the ordinary convolution.

    It maps (b, fields_in·|G|, H, W) to (b, fields·|G|, H′, W′). The group must move square filters exactly: C1, C2, C4, D1,
    D2, D4 or flip. A stride is exact on odd heights only: an even grid has no centre to turn about.

    >>> GroupConv(1, 2, group="C4", lifts=True)(torch.zeros(3, 1, 17, 17)).shape
    torch.Size([3, 8, 17, 17])
    """

    def __init__(
        self, fields_in: int, fields: int, *, group: Group | str, size: int = 3, stride: int = 1, lifts: bool = False
    ) -> None:
        super().__init__()
        self.action: Action = on_filters(group, size)
        self.stride = stride
        self.padding = size // 2
        self.lifts = lifts
        per_field = 1 if lifts else self.action.group.order
        self.weight = nn.Parameter(torch.empty(fields, fields_in, per_field, size, size))
        nn.init.kaiming_normal_(self.weight.flatten(1, 2), nonlinearity="relu")
        self.places: Tensor
        self.register_buffer("places", self._places(), persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        """(b, fields_in·|G|, H, W), or (b, fields_in, H, W) when lifting -> (b, fields·|G|, H′, W′)."""
        return F.conv2d(z, self.filters(), stride=self.stride, padding=self.padding)

    def filters(self) -> Tensor:
        """Every filter moved by every element: (fields·|G|, fields_in·|G| or fields_in, size, size)."""
        moved = self.weight.flatten(1).index_select(1, self.places.flatten())
        filters = moved.unflatten(1, self.places.shape).flatten(0, 1)
        if self.action.group.order > 1:
            return filters
        filters = filters.permute(0, 3, 1, 2)
        # one step of training takes .8 of the time with channels last; what is measured has channels first
        return filters if self.training else filters.contiguous()

    def _places(self) -> Tensor:
        """Where in a field's weights each number of its moved filters stands: (|G|, fields_in·|G|, size, size); over C1 channels last."""
        group = self.action.group
        numbers = torch.arange(self.weight[0].numel()).reshape(self.weight[:1].shape)
        moved = []
        for g in range(group.order):
            come_from = [0] if self.lifts else group.products[group.inverses[g]].tolist()
            moved.append(self.action(g, numbers[:, :, come_from]))
        places = torch.cat(moved).flatten(1, 2)
        return places if group.order > 1 else places.permute(0, 2, 3, 1).contiguous()


class FieldNorm(nn.BatchNorm2d):
    """Batch normalisation with one mean and variance per field, shared by its |G| channels, so that it is equivariant."""

    def __init__(self, fields: int, *, order: int) -> None:
        super().__init__(fields)
        self.order = order

    def forward(self, z: Tensor) -> Tensor:
        """(b, fields·|G|, H, W) -> the same shape."""
        fields = z.unflatten(1, (-1, self.order)).flatten(2, 3)
        return super().forward(fields).view_as(z)


class AntialiasedStride(nn.Sequential):
    """Every second value of z ⋆ b, b being (1, 2, 1)ᵀ(1, 2, 1) / 16: the filter Triangle-3 of Zhang 2019 (arXiv 1904.11486).

    It takes the place of a stride of two, which folds what is finer than its grid into coarser patterns, so that a shift by one
    pixel changes them.

    >>> AntialiasedStride()(torch.eye(3)[None, None, 1:2])[0, 0]
    tensor([[0.1250, 0.1250]])
    """

    def __init__(self) -> None:
        # means of pairs of means of pairs: 1, 2, 1
        super().__init__(nn.AvgPool2d(2, stride=1, padding=1), nn.AvgPool2d(2, stride=2))


class Block(nn.Sequential):
    """Group convolution, normalisation, ReLU; with `antialiased` the stride comes last, after a blur."""

    def __init__(
        self, fields_in: int, fields: int, *, group: Group, stride: int, lifts: bool, antialiased: bool = False
    ) -> None:
        blurs = antialiased and stride > 1
        conv = GroupConv(fields_in, fields, group=group, stride=1 if blurs else stride, lifts=lifts)
        norm = FieldNorm(fields, order=group.order)
        super().__init__(OrderedDict(conv=conv, norm=norm, relu=nn.ReLU()))
        if blurs:
            self.append(AntialiasedStride())


def _fields(widths: tuple[int, ...], group: Group) -> list[int]:
    return [max(1, round(width / math.sqrt(group.order))) for width in widths]


class GroupCNN(nn.Module):
    """Five blocks of group convolution, normalisation and ReLU; the mean over elements and space; a linear head.

    Over C1 it is a plain CNN; over C4 or D4 its features are equivariant and its output is invariant, exactly on images of
    odd size. `widths` are the channels of the plain member; they shrink with √|G|, so that all members have about the same
    number of parameters. `antialiased` blocks blur before they leave out every second value (Zhang 2019), at four times the
    arithmetic of those blocks.

    >>> GroupCNN("C4", classes=10)(torch.zeros(2, 1, 17, 17)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        group: Group | str = "C1",
        *,
        classes: int,
        channels: int = 1,
        widths: tuple[int, ...] = WIDTHS,
        antialiased: bool = False,
    ) -> None:
        super().__init__()
        group = groups.parse(group)
        fields = _fields(widths, group)
        self.order = group.order
        blocks = []
        for (before, after), stride in zip(pairwise([channels, *fields]), cycle(STRIDES)):
            blocks.append(Block(before, after, group=group, stride=stride, lifts=not blocks, antialiased=antialiased))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(fields[-1], classes)

    def features(self, x: Tensor) -> Tensor:
        """Images (b, channels, H, W) -> the head's input (b, d)."""
        return self.blocks(x).unflatten(1, (-1, self.order)).mean((2, 3, 4))

    def forward(self, x: Tensor) -> Tensor:
        """Images (b, channels, H, W) -> class scores (b, classes)."""
        return self.head(self.features(x))


class GroupSegmenter(nn.Module):
    """Blocks of group convolutions without strides, the mean over elements, and a linear head at every pixel.

    Over C1 it is a plain network; over C4 or D4 its masks move with the image, exactly. `widths` shrink as in `GroupCNN`.

    >>> GroupSegmenter("C4", classes=3)(torch.zeros(2, 1, 9, 9)).shape
    torch.Size([2, 3, 9, 9])
    """

    def __init__(
        self,
        group: Group | str = "C1",
        *,
        classes: int,
        channels: int = 1,
        widths: tuple[int, ...] = SEGMENTER_WIDTHS,
    ) -> None:
        super().__init__()
        group = groups.parse(group)
        self.order = group.order
        fields = _fields(widths, group)
        blocks = []
        for before, after in pairwise([channels, *fields]):
            blocks.append(Block(before, after, group=group, stride=1, lifts=not blocks))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Conv2d(fields[-1], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Images (b, channels, H, W) -> class scores of every pixel (b, classes, H, W)."""
        return self.head(self.blocks(x).unflatten(1, (-1, self.order)).mean(2))
