"""What `measure` finds in well-known models with random weights: a table of layers, layouts, heads and costs.

python tests/benchmarks/measure_models.py                # every model
python tests/benchmarks/measure_models.py swin vit_b     # models whose name contains one of these
python tests/benchmarks/measure_models.py --layers all   # every module, not only the blocks
python tests/benchmarks/measure_models.py --detail swin  # a line for every layer

Models of libraries that are not installed (timm, transformers) are skipped.
"""

import argparse
import importlib.util
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torchvision
import xarray as xr
from torch import nn

import eedkit as ek

GROUP = "C4"
IMAGES = 16
BATCH_SIZE = 8
IGNORED_REASONS = ("a class token lies nowhere", "it is the head's input, not a feature map")
"""Reasons that say that a layer has no map, which is as it should be."""


@dataclass(frozen=True)
class Case:
    """A model, and the side of its square images; `library` is what must be installed for it."""

    make: Callable[[], nn.Module]
    side: int = 224
    library: str = "torchvision"


def torchvision_model(name: str, **options: object) -> Callable[[], nn.Module]:
    """A classifier of torchvision."""
    return lambda: torchvision.models.get_model(name, weights=None, **options)


def timm_model(name: str, **options: object) -> Callable[[], nn.Module]:
    """A model of timm."""
    return lambda: importlib.import_module("timm").create_model(name, pretrained=False, **options)


def transformers_model(class_name: str, config_name: str, **options: object) -> Callable[[], nn.Module]:
    """A model of transformers with the sizes that `options` give its configuration."""

    def make() -> nn.Module:
        transformers = importlib.import_module("transformers")
        config = getattr(transformers, config_name)(**options)
        return getattr(transformers, class_name)(config)

    return make


SMALL = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 192}
TIMM = "timm"
TRANSFORMERS = "transformers"
CASES = {
    "resnet18": Case(torchvision_model("resnet18")),
    "vit_b_16": Case(torchvision_model("vit_b_16")),
    "swin_t 224": Case(torchvision_model("swin_t")),
    "swin_t 384": Case(torchvision_model("swin_t"), side=384),
    "convnext_tiny": Case(torchvision_model("convnext_tiny")),
    "densenet121": Case(torchvision_model("densenet121")),
    "efficientnet_b0": Case(torchvision_model("efficientnet_b0")),
    "mobilenet_v3_small": Case(torchvision_model("mobilenet_v3_small")),
    "squeezenet1_0": Case(torchvision_model("squeezenet1_0")),
    "vgg11": Case(torchvision_model("vgg11")),
    "deeplabv3_resnet50": Case(torchvision_model("deeplabv3_resnet50", weights_backbone=None), side=128),
    "fasterrcnn_resnet50_fpn": Case(
        torchvision_model("fasterrcnn_resnet50_fpn", weights_backbone=None, min_size=128, max_size=128), side=128
    ),
    "timm vit_tiny headless": Case(timm_model("vit_tiny_patch16_224", num_classes=0), library=TIMM),
    "timm vit_small dino": Case(timm_model("vit_small_patch16_224.dino", num_classes=0), library=TIMM),
    "timm vit_small dinov2 reg4": Case(timm_model("vit_small_patch14_reg4_dinov2", img_size=224), library=TIMM),
    "timm mixer_s16": Case(timm_model("mixer_s16_224"), library=TIMM),
    "timm resnet18 features_only": Case(timm_model("resnet18", features_only=True), library=TIMM),
    "timm swin_tiny": Case(timm_model("swin_tiny_patch4_window7_224"), library=TIMM),
    "timm convnext_atto": Case(timm_model("convnext_atto"), library=TIMM),
    "hf ViTModel": Case(transformers_model("ViTModel", "ViTConfig", **SMALL), library=TRANSFORMERS),
    "hf ViTForImageClassification": Case(
        transformers_model("ViTForImageClassification", "ViTConfig", num_labels=10, **SMALL), library=TRANSFORMERS
    ),
    "hf ResNetForImageClassification": Case(
        transformers_model("ResNetForImageClassification", "ResNetConfig", num_labels=10, depths=[2, 2, 2, 2]),
        library=TRANSFORMERS,
    ),
    "hf Dinov2Model": Case(
        transformers_model(
            "Dinov2Model", "Dinov2Config", hidden_size=96, num_hidden_layers=4, num_attention_heads=4, image_size=224
        ),
        library=TRANSFORMERS,
    ),
    "hf CLIPVisionModel": Case(
        transformers_model("CLIPVisionModel", "CLIPVisionConfig", image_size=224, patch_size=16, **SMALL),
        library=TRANSFORMERS,
    ),
}


@torch.no_grad()
def seconds_of_bare_forwards(model: nn.Module, images: torch.Tensor) -> float:
    """Of the forward passes of `measure` without measuring: every batch, turned four times."""
    start = time.perf_counter()
    for batch in images.split(BATCH_SIZE):
        for quarter_turns in range(4):
            model(torch.rot90(batch, quarter_turns, (-2, -1)))
    return time.perf_counter() - start


def reasons_of(ds: xr.Dataset) -> Counter[str]:
    """Why there are NaNs, and at how many layers."""
    reasons = Counter[str]()
    for metric in ("channelwise", "latent"):
        for reason in ds[f"{metric}_nan_reason"].values.ravel():
            if reason and reason not in IGNORED_REASONS:
                reasons[f"{metric}: {without_names(reason)}"] += 1
    if "nan_reason" in ds.softmax.attrs:
        reasons[f"softmax: {ds.softmax.attrs['nan_reason']}"] += 1
    return reasons


def without_names(reason: str) -> str:
    """A reason without what differs from layer to layer, names and shapes."""
    reason = re.sub(r"layouts=\{'[^']*'", "layouts={'…'", reason)
    return re.sub(r"\([b\d][^()]*,[^()]*\)", "(…)", reason)


def short_layouts(ds: xr.Dataset) -> str:
    """The layouts that were found, with how many layers have each."""
    counts = Counter(ds.layout.values.ravel().tolist())
    return ", ".join(f"{layout or 'none'} ×{count}" for layout, count in counts.items())


def print_details(ds: xr.Dataset) -> None:
    """A line for every layer."""
    for position, name in enumerate(ds.layer.values):
        layer = ds.isel(model=0, layer=position)
        channelwise = float(layer.channelwise.mean())
        latent = float(layer.latent.mean())
        reason = str(layer.channelwise_nan_reason.item())
        print(f"    {name:45} {layer.layout.item():16} {channelwise:8.4f} {latent:8.4f}  {reason}")


def measure_case(name: str, case: Case, layers: str, *, detail: bool) -> None:
    """Print one model's row, and below it why values are missing."""
    torch.manual_seed(0)
    model = case.make().eval()
    images = torch.rand(IMAGES, 3, case.side, case.side)
    seconds_of_bare_forwards(model, images[:BATCH_SIZE])  # a warm-up
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ds = ek.measure(
            model,
            images,
            group=GROUP,
            layers=layers,
            batch_size=BATCH_SIZE,
            device="cpu",
            progress=False,
        )
    seconds = time.perf_counter() - start
    ratio = seconds / seconds_of_bare_forwards(model, images)
    has_channelwise = int(np.isfinite(ds.channelwise.values).all((0, 2, 3)).sum())
    has_latent = int(np.isfinite(ds.latent.values).all((0, 2, 3)).sum())
    counts = f"{ds.sizes['sample']:6} {ds.sizes['layer']:6} {has_channelwise:11} {has_latent:6}"
    print(f"{name:31} {counts} {ratio:5.2f}  {ds.attrs['head'] or '-':20} {short_layouts(ds)}")
    for reason, count in reasons_of(ds).items():
        print(f"    NaN at {count}: {reason}")
    for warning in caught:
        if "eedkit" in warning.filename or warning.category is UserWarning:
            print(f"    warns: {warning.message}")
    if detail:
        print_details(ds)


def main() -> None:
    """Measure the models that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"parts of {', '.join(CASES)}")
    parser.add_argument("--layers", default="blocks")
    parser.add_argument("--detail", action="store_true", help="a line for every layer")
    asked = parser.parse_args()
    print(
        f"{'model':31} {'images':>6} {'layers':>6} {'channelwise':>11} {'latent':>6} {'time':>5}  {'head':20} layouts"
    )
    for name, case in CASES.items():
        if asked.names and not any(part in name for part in asked.names):
            continue
        if importlib.util.find_spec(case.library) is None:
            print(f"{name:31} skipped: {case.library} is not installed")
            continue
        try:
            measure_case(name, case, asked.layers, detail=asked.detail)
        except Exception as error:
            print(f"{name:31} {type(error).__name__}: {error}")
            if asked.detail:
                raise


if __name__ == "__main__":
    main()
