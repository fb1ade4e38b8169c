"""What a study's store costs beside holding everything in memory, and what a second worker brings, on eight cells.

python tests/benchmarks/measure_study.py           # eight small networks on 1,400 digits under D4
python tests/benchmarks/measure_study.py resnet18  # eight ResNet-18s on 32 images of 224×224 under C4
"""

import os
import statistics
import sys
import tempfile
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import eedkit as ek

CASES = {
    "small": (ek.lab.models.pool("random", seeds=8), "digits/train", "D4"),
    "resnet18": ([f"torchvision:resnet18?seed={seed}" for seed in range(8)], "digits/test?n=32", "C4"),
}
ROUNDS = {"small": 3, "resnet18": 2}


def in_memory(models: list[str], data: str, group: str) -> None:
    """Every cell by `measure`, joined."""
    results = []
    for spec in models:
        loaded = ek.lab.models.load(spec)
        images = ek.lab.images.load(data, **loaded.wants)
        results.append(ek.measure(loaded.model, images, group=group, name=spec, head=loaded.head, progress=False))
    ek.concat(results).load()


def in_a_store(models: list[str], data: str, group: str, workers: int | None = None) -> None:
    """Every cell by a study, from an empty store to all values read back."""
    with tempfile.TemporaryDirectory() as folder:
        ek.Study(models, [data], [group], f"{folder}/study.zarr").run(workers=workers, progress=False).load()


def main() -> None:
    """Print seconds of each way, and their ratios, medians over rounds in which the ways take turns."""
    name = sys.argv[1] if len(sys.argv) > 1 else "small"
    case, rounds = CASES[name], ROUNDS[name]
    ways = {
        "in memory": in_memory,
        "run()": in_a_store,
        "run(workers=1)": lambda *case: in_a_store(*case, workers=1),
        "run(workers=2)": lambda *case: in_a_store(*case, workers=2),
    }
    in_memory(case[0][:1], *case[1:])
    took = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way(*case)
            took[name].append(time.perf_counter() - start)
    for name, seconds in took.items():
        median = statistics.median(seconds)
        ratios = [one / other for one, other in zip(seconds, took["in memory"], strict=True)]
        print(
            f"{name:15} {median:6.1f} s   {statistics.median(ratios):.2f} × in memory   {min(ratios):.2f} to {max(ratios):.2f}"
        )


if __name__ == "__main__":
    main()
