"""What `measure` costs against a user's own loop of forward passes: ratios, medians of runs that take turns in one process.

python tests/benchmarks/measure_cost.py                      # every case
python tests/benchmarks/measure_cost.py resnet18-96 vit      # some
python tests/benchmarks/measure_cost.py --memory             # peak memory from n to 8 n, each in a process of its own
python tests/benchmarks/measure_cost.py --beside tmeasures   # also tmeasures (pip install tmeasures), where it is installed
python tests/benchmarks/measure_cost.py --beside other_name  # also another version of eedkit, importable by that name
"""

import argparse
import importlib
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torchvision
from torch import nn

import eedkit as ek
from eedkit.probe import sums

ROUNDS = 5
GROUP = "C4"


@dataclass(frozen=True)
class Case:
    """A model, its images, and the layers that are measured."""

    model: Callable[[], nn.Module]
    side: int
    n: int
    batch_size: int
    layers: str | tuple[str, ...]


def small_cnn() -> nn.Module:
    """Three stages of conv, norm, ReLU and pooling: 12 layers."""
    stages: list[nn.Module] = []
    before = 3
    for width in (32, 64, 128):
        stages += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
        before = width
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


def resnet18() -> nn.Module:
    """With random weights."""
    return torchvision.models.resnet18(num_classes=10)


def vit() -> nn.Module:
    """ViT-B/16 with random weights."""
    return torchvision.models.vit_b_16(num_classes=10)


STAGES = tuple(str(i) for i in range(12))
CASES = {
    "resnet18-96-blocks": Case(resnet18, 96, 64, 32, "blocks"),
    "resnet18-96-all": Case(resnet18, 96, 64, 32, "all"),
    "resnet18-224-blocks": Case(resnet18, 224, 16, 8, "blocks"),
    "resnet18-224-all": Case(resnet18, 224, 16, 8, "all"),
    "vit-b16-blocks": Case(vit, 224, 16, 8, "blocks"),
    "small-cnn": Case(small_cnn, 32, 4000, 250, STAGES),
}
MEMORY = Case(resnet18, 224, 16, 8, "all")


class Images(torch.utils.data.Dataset):
    """Random images made when asked for, so that the memory measured is not theirs."""

    def __init__(self, n: int, side: int) -> None:
        self.n = n
        self.side = side

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> torch.Tensor:
        return torch.rand(3, self.side, self.side, generator=torch.Generator().manual_seed(i))


def own_loop(model: nn.Module, images: torch.Tensor, batch_size: int, device: str) -> None:
    """The forward passes alone, as a user writes them."""
    with torch.no_grad():
        for batch in images.split(batch_size):
            batch = batch.to(device)
            for quarter in range(4):
                model(torch.rot90(batch, quarter, (-2, -1)))
    if device == "cuda":
        torch.cuda.synchronize()


def with_tmeasures(
    model: nn.Module,
    images: torch.Tensor,
    batch_size: int,
    layers: list[str],
    measure: str = "TransformationVarianceInvariance",
) -> list[torch.Tensor]:
    """One of tmeasures' measures of the same layers over the same orbit: for each layer its units."""
    import tmeasures as tm

    class Layers(tm.pytorch.ActivationsModule):
        """The outputs of the layers, as hooks see them."""

        def activation_names(self) -> list[str]:
            return layers

        def forward_activations(self, batch: torch.Tensor) -> list[torch.Tensor]:
            seen = {}
            hooks = []
            for name in layers:
                module = model.get_submodule(name)
                hooks.append(module.register_forward_hook(lambda _m, _i, z, name=name: seen.update({name: z.clone()})))
            model(batch)
            for hook in hooks:
                hook.remove()
            return [seen[name] for name in layers]

    class Quarter(nn.Module):
        """So many quarter turns of a batch."""

        def __init__(self, quarter: int) -> None:
            super().__init__()
            self.quarter = quarter

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            return torch.rot90(batch, self.quarter, (-2, -1))

    turns = tm.TransformationSet([Quarter(quarter) for quarter in range(4)])
    options = tm.pytorch.PyTorchMeasureOptions(batch_size=batch_size, verbose=False)
    return getattr(tm.pytorch, measure)().eval(images, turns, Layers(), options).layers


def compare(name: str, device: str, precision: str, beside: str | None) -> None:
    """One case, everything in turn; prints medians of the ratios to the user's own loop."""
    case = CASES[name]
    sums.WORTH_COMPILING = 0  # the warm-up round loads the compiled loop, as a longer stream would
    torch.manual_seed(0)
    model = case.model().eval().to(device)
    images = torch.rand(case.n, 3, case.side, case.side)
    options = {"group": GROUP, "layers": case.layers, "device": device, "progress": False}
    options["batch_size"] = case.batch_size
    ways = {
        "own loop": lambda: own_loop(model, images, case.batch_size, device),
        "measure": lambda: ek.measure(model, images, precision=precision, **options),
    }
    if beside == "tmeasures":
        layers = list(dict.fromkeys(name.split("#")[0] for name in _tapped(model, images, options["layers"])))
        ways[beside] = lambda: with_tmeasures(model, images, case.batch_size, layers)
    elif beside:
        other = importlib.import_module(beside)
        ways[beside] = lambda: other.measure(model, images, precision=precision, **options)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for round_number in range(ROUNDS + 1):
        for way, run in ways.items():
            start = time.perf_counter()
            run()
            if round_number:  # the first is a warm-up
                seconds[way].append(time.perf_counter() - start)
    line = f"{name:22} own loop {statistics.median(seconds['own loop']):7.2f} s"
    for way in list(ways)[1:]:
        ratios = [a / b for a, b in zip(seconds[way], seconds["own loop"], strict=True)]
        line += f"   {way} {statistics.median(ratios):5.2f} × ({min(ratios):.2f} to {max(ratios):.2f})"
    print(line, flush=True)


def _tapped(model: nn.Module, images: torch.Tensor, layers: str | tuple[str, ...]) -> list[str]:
    """The layers that `measure` compares, without the head's input and the output."""
    return ek.layers(model, images[:2], layers=layers).layer.tolist()[:-2]


def peak(n: int) -> None:
    """Print the peak memory of one measurement in MiB."""
    model = MEMORY.model().eval()
    ek.measure(
        model, Images(n, MEMORY.side), group=GROUP, layers=MEMORY.layers, batch_size=MEMORY.batch_size, progress=False
    )
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def memory() -> None:
    """Peak memory of n and 8 n images."""
    peaks = []
    for n in (MEMORY.n, 8 * MEMORY.n):
        done = subprocess.run([sys.executable, __file__, "--peak", str(n)], capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout.split()[-1]))
    print(
        f"peak memory: {peaks[0]:.0f} MiB for {MEMORY.n} images, {peaks[1]:.0f} for 8 × ({peaks[1] / peaks[0] - 1:+.1%})"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"beginnings of {', '.join(CASES)}")
    parser.add_argument("--beside", help="name of another version's package")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.peak:
        peak(asked.peak)
    elif asked.memory:
        memory()
    else:
        for case_name in CASES:
            if not asked.cases or case_name.startswith(tuple(asked.cases)):
                compare(case_name, asked.device, asked.precision, asked.beside)
