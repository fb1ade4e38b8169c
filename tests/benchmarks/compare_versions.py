"""Whole Datasets of another checkout of eedkit and of this one, held against each other variable by variable.

python tests/benchmarks/compare_versions.py OTHER_CHECKOUT            # every case
python tests/benchmarks/compare_versions.py OTHER_CHECKOUT C8 matched  # those whose names contain a word
"""

import os
import pickle
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parents[2]
OF_MAPS = (
    *("channelwise", "channelwise_zero", "channelwise_skip", "channelwise_centred", "channelwise_rms"),
    *("latent", "latent_unit", "latent_flat", "latent_euclidean"),
)
OF_SCORES = ("softmax", "softmax_reverse", "softmax_js", "softmax_tv", "softmax_hellinger")
ALL = (*OF_MAPS, *OF_SCORES)


def cases() -> dict[str, Callable[[], Any]]:
    """What is measured, by name; nothing is made before it is asked for."""
    import torch
    from torch import nn

    import eedkit as ek

    def seeded(make: Callable[[], nn.Module]) -> nn.Module:
        torch.manual_seed(0)
        return make().eval()

    def cnn(channels: int = 1) -> nn.Module:
        net = nn.Sequential(
            *(
                nn.Conv2d(channels, 8, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(8, 8, 3, padding=1),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ),
            *(nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10)),
        )
        with torch.no_grad():
            net[0].bias[:2] = torch.tensor([-5.0, -0.4])  # a dead channel and one that is nearly so
        return net

    def segmenter() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 3, 3, padding=1))

    class Tokens(nn.Module):
        """Patches with a class token."""

        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 16, 4, stride=4)
            self.cls_token = nn.Parameter(torch.randn(1, 1, 16))
            layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
            self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.head = nn.Linear(16, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z = self.patches(x).flatten(2).mT
            z = torch.cat([self.cls_token.expand(len(z), -1, -1), z], 1)
            return self.head(self.blocks(z)[:, 0])

    def images(n: int, channels: int = 1, side: int = 8) -> torch.Tensor:
        return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(1))

    class Items(torch.utils.data.Dataset):
        """Images and labels, one of them unreadable."""

        def __len__(self) -> int:
            return 30

        def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
            if i == 7:
                raise OSError("torn")
            return images(30)[i], i % 3

    def measured(net: Callable[[], nn.Module], x: Any, group: str, metrics: Any = ALL, **options: Any) -> Callable:
        return lambda: ek.measure(
            seeded(net), x, group=group, metrics=list(metrics), device="cpu", progress=False, **options
        )

    torn = images(37)
    torn[5] = torch.nan
    found = {}
    for group in (
        "flip",
        "C4",
        "D4",
        "shift4",
        "shift8",
        "shift2x2",
        "C8",
        "D3",
        "SO(2)?n=5",
        "O(2)?n=2",
        "T(2)?n=2",
        "sign",
    ):
        found[f"cnn {group}"] = measured(cnn, images(37), group, batch_size=16)
    found["cnn C4 all layers"] = measured(cnn, images(37), "C4", layers="all")
    found["cnn C4 batch 1"] = measured(cnn, images(21), "C4", batch_size=1)
    found["cnn C4 NaN"] = measured(cnn, torn, "C4", batch_size=8)
    found["cnn C16 NaN"] = measured(cnn, torn, "C16", batch_size=8)
    found["cnn C4 items"] = measured(cnn, Items(), "C4")
    found["cnn C4 within"] = measured(cnn, images(30), "C4", labels=[i % 3 for i in range(30)], null="within-class")
    found["cnn C4 no null"] = measured(cnn, images(30), "C4", null=False)
    found["cnn C4 float64"] = lambda: ek.measure(
        seeded(cnn).double(), images(37).double(), group="C4", metrics=list(ALL), precision="float64", progress=False
    )
    found["cnn C4 bfloat16"] = measured(cnn, images(37), "C4", precision="bfloat16")
    found["cnn matched C4"] = measured(cnn, images(37), "C4", ["channelwise_matched"])
    found["cnn matched D4"] = measured(cnn, images(64), "D4", ["channelwise_matched", "channelwise"], layers="all")
    found["rgb"] = measured(lambda: cnn(3), images(40, 3), "rgb", [*OF_MAPS, *OF_SCORES], batch_size=16)
    found["C4*rgb"] = measured(lambda: cnn(3), images(60, 3), "C4*rgb", [*OF_MAPS, *OF_SCORES], batch_size=16)
    found["C8*sign"] = measured(lambda: cnn(3), images(40, 3, 9), "C8*sign")
    found["segmenter"] = measured(
        segmenter, images(30), "D4", ["dense", "segmentation", "segmentation_iou", "channelwise"]
    )
    found["segmenter C8"] = measured(segmenter, images(30, 1, 9), "C8", ["dense", "segmentation", "segmentation_iou"])
    found["tokens"] = measured(Tokens, images(30, 3, 16), "C4", layers="all")
    regular = lambda: seeded(lambda: ek.lab.networks.GroupCNN(classes=4, group="C4", widths=(4, 4)))  # noqa: E731
    found["regular"] = lambda: ek.measure(
        regular(),
        images(20, 1, 9),
        group="C4",
        metrics=["channelwise", "channelwise_regular", "latent"],
        progress=False,
    )
    return found


def run(words: list[str], out: str) -> None:
    """Measure the cases of the checkout that is imported, and pickle what comes."""
    warnings.simplefilter("ignore")
    results = {}
    for name, measure in cases().items():
        if not words or any(word in name for word in words):
            try:
                results[name] = measure()
            except Exception as error:
                results[name] = error
    Path(out).write_bytes(pickle.dumps(results))


def compare(before: Any, after: Any) -> list[str]:
    """A line for every difference of two Datasets."""
    if isinstance(before, Exception) or isinstance(after, Exception):
        return [
            f"before {type(before).__name__} {str(before)[:90]}",
            f"after {type(after).__name__} {str(after)[:300]}",
        ]
    lines = []
    new = sorted(set(map(str, after.variables)) - set(map(str, before.variables)))
    gone = sorted(set(map(str, before.variables)) - set(map(str, after.variables)))
    lines += [f"new: {', '.join(new)}"] * bool(new) + [f"gone: {', '.join(gone)}"] * bool(gone)
    for name in map(str, before.variables):
        if name not in after.variables:
            continue
        a, b = before[name].values, after[name].values
        if a.shape != b.shape:
            lines.append(f"{name}: shape {a.shape} -> {b.shape}")
        elif a.dtype.kind != "f":
            if not (a == b).all():
                differing = [(x, y) for x, y in zip(a.ravel(), b.ravel(), strict=True) if x != y]
                lines.append(f"{name}: {len(differing)} differ, {differing[0]!r}")
        else:
            appeared = int((np.isnan(a) & ~np.isnan(b)).sum())
            vanished = int((~np.isnan(a) & np.isnan(b)).sum())
            worst = float(np.nanmax(np.abs(a - b), initial=0.0)) if a.size and not np.isnan(a - b).all() else 0.0
            if appeared or vanished or worst > 2e-7:
                lines.append(
                    f"{name}: worst {worst:.1e}, {appeared} NaN have a value now, {vanished} values are NaN now"
                )
    return lines


def main() -> None:
    """Measure in both checkouts and print what differs."""
    other, *words = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for checkout in (other, HERE):
            out = f"{folder}/{len(found)}.pickle"
            environment = {**os.environ, "PYTHONPATH": str(checkout)}
            command = [sys.executable, __file__, "--measure", out, *words]
            subprocess.run(command, check=True, env=environment, cwd=checkout)
            found.append(pickle.loads(Path(out).read_bytes()))
    for name, before in found[0].items():
        lines = compare(before, found[1].get(name, KeyError(name)))
        print(f"{name}: {'equal' if not lines else ''}", *lines, sep="\n    ")


if __name__ == "__main__":
    if sys.argv[1] == "--measure":
        run(sys.argv[3:], sys.argv[2])
    else:
        main()
