"""`ek.bridges` beside the code of others: the same numbers, and what both cost.

python tests/benchmarks/measure_bridges.py           # normalised_variance beside tmeasures (pip install tmeasures==1.2.11)
python tests/benchmarks/measure_bridges.py --memory  # peak memory of cka for n and 8 n images, each in a process of its own
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time

import torch
from measure_cost import GROUP, STAGES, Images, small_cnn, with_tmeasures

import eedkit as ek

N = 1000
BATCH_SIZE = 250
ROUNDS = 3
OPTIONS = {"group": GROUP, "layers": STAGES, "batch_size": BATCH_SIZE, "device": "cpu", "progress": False}


def beside_tmeasures() -> None:
    """The largest difference of any unit, and the ratio of the processor's times on one thread."""
    torch.manual_seed(0)
    model = small_cnn().eval()
    images = torch.rand(N, 3, 32, 32)
    seconds: dict[str, list[float]] = {"eedkit": [], "tmeasures": []}
    for _ in range(ROUNDS):
        started = time.process_time()
        ours = ek.bridges.normalised_variance(model, images, **OPTIONS)
        seconds["eedkit"].append(time.process_time() - started)
        started = time.process_time()
        theirs = with_tmeasures(model, images, BATCH_SIZE, list(STAGES), "NormalizedVarianceInvariance")
        seconds["tmeasures"].append(time.process_time() - started)
    for layer, units in zip(STAGES, theirs, strict=True):
        # tmeasures says 1 of a unit that never changes
        of_ours = torch.from_numpy(ours[layer].normalised.fillna(1.0).values).permute(2, 0, 1)
        torch.testing.assert_close(of_ours, units.double(), rtol=1e-5, atol=1e-5)
        print(f"layer {layer}: {units.numel():,} units, largest difference {(of_ours - units).abs().max():.1e}")
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(
        f"{N} images, {len(STAGES)} layers: eedkit {medians['eedkit']:.1f} s of CPU, tmeasures {medians['tmeasures']:.1f} s, "
        f"ratio {medians['tmeasures'] / medians['eedkit']:.1f}"
    )


def memory_of_cka(n: int) -> None:
    """Peak memory of this process after one CKA of n images."""
    torch.manual_seed(0)
    ek.bridges.cka(small_cnn(), Images(n, 32), **OPTIONS)
    print(f"cka of {n} images: peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--images", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.images:
        memory_of_cka(arguments.images)
    elif arguments.memory:
        for n in (N, 8 * N):
            subprocess.run([sys.executable, __file__, "--images", str(n)], check=True)
    else:
        beside_tmeasures()
