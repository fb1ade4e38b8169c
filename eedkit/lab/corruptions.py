"""Corruptions of images, each in five severities: from slightly outside what a model was trained on to no image at all.

Must not know models, files or labels. Costs a few copies of one image and milliseconds; blur of megapixels takes seconds.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Generator, Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from eedkit.errors import unknown

NODES = 3
"""The elastic deformation is drawn at this many points in a row, and runs evenly between them."""


@dataclass(frozen=True)
class Corruption:
    """A kind of corruption: strengths at severities 1 to 5, and what makes the image of (C, H, W) in [0, 1], a strength and a
    generator."""

    strengths: tuple[float, float, float, float, float]
    apply: Callable[[Tensor, float, Generator], Tensor]


def corrupted(image: Tensor, name: str, severity: int, *, seed: int) -> Tensor:
    """The image, corrupted (after Hendrycks and Dietterich 2019, with strengths that leave small images recognisable).

    The same for the same image, name, severity and seed, whatever was drawn before; all severities of a kind draw the
    same numbers. Lengths (of the blur, the deformation, the large pixels) are shares of the shorter side, so that a
    severity means the same at any resolution; noise is drawn for each pixel, and JPEG's blocks are always 8×8 pixels.

    The image is (C, H, W) in [0, 1], with one or three channels, and so is the result. ValueError for a name that is not in
    `CORRUPTIONS` or a severity that is not 1 (mild) to 5 (strong).

    >>> image = torch.full((1, 17, 17), 0.5)
    >>> mild, strong = (corrupted(image, "noise", severity, seed=0) for severity in (1, 5))
    >>> bool((strong - image).abs().mean() > (mild - image).abs().mean())
    True
    """
    amount = strength(name, severity)
    return CORRUPTIONS[name].apply(image, amount, Generator().manual_seed(seed)).clamp(0, 1)


def strength(name: str | None, severity: int | None) -> float:
    """How strong a kind of corruption is at a severity, in the unit of that kind; ValueError where there is none such.

    >>> strength("static", 5)
    1.0
    """
    if name is None:
        raise ValueError(f"severity {severity!r} needs a corruption beside it, one of {', '.join(CORRUPTIONS)}")
    if name not in CORRUPTIONS:
        raise ValueError(unknown("corruption", name, CORRUPTIONS))
    if severity is None or severity not in range(1, 6):
        raise ValueError(f"corruption {name!r} needs a severity from 1 (mild) to 5 (strong), got {severity!r}")
    return CORRUPTIONS[name].strengths[severity - 1]


def _noise(image: Tensor, std: float, generator: Generator) -> Tensor:
    return image + std * torch.randn(image.shape, generator=generator)


def _blur(image: Tensor, share: float, _: Generator) -> Tensor:
    """Gaussian, one axis after the other: both at once would cost the square of the kernel's width."""
    side = min(image.shape[1:])
    width = 2 * min(math.ceil(3 * share * side), side - 1) + 1
    for kernel in ([width, 1], [1, width]):
        image = tv.gaussian_blur(image, kernel, [share * side] * 2)
    return image


def _contrast(image: Tensor, factor: float, _: Generator) -> Tensor:
    return tv.adjust_contrast(image, factor)


def _brightness(image: Tensor, factor: float, _: Generator) -> Tensor:
    return tv.adjust_brightness(image, factor)


def _jpeg(image: Tensor, quality: float, _: Generator) -> Tensor:
    """By Pillow: torchvision's own encoder is deprecated."""
    file = io.BytesIO()
    tv.to_pil_image(tv.to_dtype(image, torch.uint8, scale=True)).save(file, "JPEG", quality=int(quality))
    return tv.pil_to_tensor(Image.open(file)) / 255


def _elastic(image: Tensor, share: float, generator: Generator) -> Tensor:
    """Points move by up to `share` of the side; the frame stays, so that nothing has to be made up beyond it."""
    height, width = image.shape[1:]
    nodes = 2 * torch.rand(2, NODES, NODES, generator=generator) - 1
    field = tv.resize(torch.nn.functional.pad(nodes, (1, 1, 1, 1)), [height, width])  # bilinear: no swing beyond 0
    pixels = share * min(height, width) * field.permute(1, 2, 0)
    return tv.elastic(image, 2 * pixels[None] / torch.tensor([width, height]))  # it counts in halves of the image


def _pixelate(image: Tensor, share: float, _: Generator) -> Tensor:
    block = max(1, share * min(image.shape[1:]))
    small = tv.resize(image, [max(1, round(length / block)) for length in image.shape[1:]], antialias=True)
    return tv.resize(small, list(image.shape[1:]), InterpolationMode.NEAREST_EXACT)


def _static(image: Tensor, share: float, generator: Generator) -> Tensor:
    replaced = torch.rand(1, *image.shape[1:], generator=generator) < share
    return torch.where(replaced, torch.rand(image.shape, generator=generator), image)


CORRUPTIONS = {
    "noise": Corruption((0.06, 0.12, 0.18, 0.26, 0.36), _noise),
    "blur": Corruption((0.03, 0.045, 0.06, 0.07, 0.08), _blur),
    "contrast": Corruption((0.8, 0.6, 0.45, 0.3, 0.2), _contrast),
    "brightness": Corruption((0.8, 0.6, 0.45, 0.3, 0.2), _brightness),
    "jpeg": Corruption((50, 25, 15, 9, 5), _jpeg),
    "elastic": Corruption((0.04, 0.07, 0.1, 0.125, 0.15), _elastic),
    "pixelate": Corruption((1 / 14, 1 / 11, 1 / 9, 1 / 8, 1 / 7), _pixelate),
    "static": Corruption((0.2, 0.4, 0.6, 0.8, 1.0), _static),
}
"""The kinds by name. Strengths: noise's standard deviation; blur's standard deviation, the deformation and the large pixels as
shares of the shorter side; factors of contrast and brightness; JPEG's quality; the share of pixels replaced."""
