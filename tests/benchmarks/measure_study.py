"""What a study's store costs beside holding everything in memory, and what a second worker brings, on eight cells.

python tests/benchmarks/measure_study.py           # eight small networks on 1,400 digits under D4
python tests/benchmarks/measure_study.py resnet18  # eight ResNet-18s on 32 images of 224×224 under C4
python tests/benchmarks/measure_study.py scale 100 200  # opens 100 models of 200 synthetic blocks each
"""

import os
import resource
import statistics
import sys
import tempfile
import time
import warnings

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import eedkit as ek
from eedkit.probe.measure import Options, measure_block
from eedkit.study import join
from eedkit.study.blocks import Block
from eedkit.study.store import Cell, State, Store

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


IN_A_BLOCK = 16


def synthetic(address: str, models: int, blocks: int) -> None:
    """A store of so many models, each of so many blocks of 16 images, which differ in their ids alone."""
    loaded = ek.lab.models.load("recipe:random?seed=0&widths=4,8")
    images = ek.lab.images.load(f"digits/train?n={IN_A_BLOCK}", **loaded.wants)
    block = Block.of(*measure_block(loaded.model, images, Options("C4", head=loaded.head)))
    store = Store(address)
    cells = [Cell("d", "C4", f"m{i:04}") for i in range(models)]
    bounds = [(start, start + IN_A_BLOCK) for start in range(0, IN_A_BLOCK * blocks, IN_A_BLOCK)]
    store.promise(cells, {})
    for cell in cells:
        settings = {"model": cell.model, "data": "d [1]", "metrics": ["channelwise", "latent", "softmax"], "about": {}}
        state = State(cell)
        store.begin(state, settings, bounds)
        for number, (start, stop) in enumerate(bounds):
            block.about["coords"]["sample"]["values"] = [f"image-{i:07}" for i in range(start, stop)]
            block.about["coords"]["model"]["values"] = [cell.model]
            block.about["of"] = state.owner_of(number)
            store.folder.write(f"{cell.path}/block-{number:04}", block.to_bytes(), "npz")


def scale(models: int, blocks: int) -> None:
    """Print seconds and the process's largest memory of what reads a large store."""

    def timed(name: str, call: object) -> object:
        start = time.perf_counter()
        found = call()
        seconds = time.perf_counter() - start
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        print(
            f"{name:30} {seconds:8.2f} s {seconds / models / blocks * 1e3:8.3f} ms a block {memory:8.0f} MB", flush=True
        )
        return found

    with tempfile.TemporaryDirectory() as folder:
        timed("written", lambda: synthetic(folder, models, blocks))
        timed("status", lambda: [Store(folder).state(cell) for cell in Store(folder).cells()])
        for name, limit in (("read when used", 0), ("in memory", join.IN_MEMORY)):
            join.IN_MEMORY = limit
            ds = timed(f"open, {name}", lambda: ek.open(folder))
            timed("first number", lambda ds=ds: ds.latent.isel(model=0).mean().compute())
            timed("summarise", lambda ds=ds: ek.summarise(ds))


def main() -> None:
    """Print seconds of each way, and their ratios, medians over rounds in which the ways take turns."""
    name = sys.argv[1] if len(sys.argv) > 1 else "small"
    if name == "scale":
        warnings.simplefilter("ignore")
        scale(*map(int, sys.argv[2:]))
        return
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
