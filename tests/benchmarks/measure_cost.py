"""What `measure` costs beside the forward passes alone: seconds and peak memory, each case in a process of its own.

python tests/benchmarks/measure_cost.py            # small: a CNN on 3×32×32, n = 1000, 12 layers
python tests/benchmarks/measure_cost.py resnet18   # ResNet-18 at 224, all layers, n = 64 and 512
"""

import resource
import subprocess
import sys
import time

import torch
from torch import nn

CASES = {"small": [("small", 1000), ("small", 4000)], "resnet18": [("resnet18", 64), ("resnet18", 512)]}
METRICS = ["channelwise", "latent", "latent_euclidean", "softmax"]


def small() -> nn.Module:
    """Three stages of conv, norm, ReLU and pooling: 12 layers."""
    stages, before = [], 3
    for width in (32, 64, 128):
        stages += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
        before = width
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


class Images(torch.utils.data.Dataset):
    """Random images made when asked for, so that the memory measured is not theirs."""

    def __init__(self, n: int, side: int) -> None:
        self.n, self.side = n, side

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> torch.Tensor:
        return torch.rand(3, self.side, self.side, generator=torch.Generator().manual_seed(i))


def run(what: str, kind: str, n: int) -> None:
    """One case: the forward passes alone, or all of `measure`, with the null and without."""
    import torchvision

    import eedkit as ek
    from eedkit.probe.sweep import default_batch_size
    from eedkit.theory import actions

    torch.manual_seed(0)
    model, side = (small(), 32) if kind == "small" else (torchvision.models.resnet18(num_classes=10), 224)
    layers = [str(i) for i in range(12)] if kind == "small" else "all"
    images, size = Images(n, side), default_batch_size((3, side, side))
    model.eval()
    with torch.no_grad():
        model(torch.rand(size, 3, side, side))
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if what == "forward":
        turn = actions.spatial("C4")
        with torch.no_grad():
            for batch in torch.utils.data.DataLoader(images, size):
                for g in range(4):
                    model(turn(g, batch))
    else:
        null = what == "measure"
        ek.measure(model, images, group="C4", metrics=METRICS, layers=layers, null=null, device="cpu", progress=False)
    seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{kind:9} n={n:<5} {what:13} {seconds:7.1f} s   peak {peak / 1024:6.0f} MiB   (+{(peak - before) / 1024:.0f})"
    )


if __name__ == "__main__":
    if len(sys.argv) == 4:
        run(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    else:
        for kind, n in CASES[sys.argv[1] if len(sys.argv) > 1 else "small"]:
            for what in ("forward", "without-null", "measure"):
                subprocess.run([sys.executable, __file__, what, kind, str(n)], check=True)
