"""Many measurements: planned, run, stopped, resumed and joined.

# Many models: a study

A study is models × data sets × groups. It is planned before any computation, and can be killed and resumed. What is
done so far opens as one labelled Dataset.

```yaml
# first.yaml
models: ["recipe:plain?seed=0", "recipe:augmented?seed=0", "recipe:equivariant?seed=0"]
data: [digits/test]
groups: [C4]
metrics: [channelwise, channelwise_matched, latent, softmax]
store: runs/first
```

```bash
eedkit study plan first.yaml    # cells, forwards, bytes, predicted time; nothing is computed
eedkit study run first.yaml     # --workers 2 for two processes
eedkit study status first.yaml  # done, running, failed and why
eedkit figures runs/first       # every figure as PNG, SVG and PDF
eedkit card runs/first --model 'recipe:plain?seed=0'
```

Ctrl-C, or even `kill -9`, costs only the blocks in flight. In Python, models may be modules, too:

```python
import torch, eedkit as ek

study = ek.Study.from_yaml("first.yaml")
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 33 * 33, 4))
study = ek.Study(
    models={"mine": model},
    data=["patches/test?n=32&size=33"],
    groups=["flip"],
    metrics=["latent", "softmax"],
    store="runs/mine",
)
ds = study.run()  # or workers=2, or client=… of dask.distributed
ds = ek.open("runs/mine")  # later, and from any fsspec address; models joined
```

`eedkit.lab` says how models and images are named. Each model sees the images through its own preprocessing.

# What a store holds

A block (1,024 images of one cell by default) is one `.npz` file, written whole, whose name ends with the checksum of
its bytes; `np.load` reads it without eedkit. The store also holds checksums of weights, images and settings, and
refuses another model under the same name. What cannot be measured as asked is refused before any training. A model
that fails on the images is recorded, and the others finish. A broken image, or an output that is not finite, costs
that sample (NaN, with the reason in `status`). A damaged block is named when the store is opened, and `--repair`
computes it again.

# From a laptop to a cluster

The same YAML runs everywhere. The store must lie on a disk that all processes see.

| where | how |
|---|---|
| a laptop | `eedkit study run s.yaml`; `--workers 2` for several small networks at once |
| one GPU | the same command; `device: auto` takes it |
| several GPUs | `--workers 4`: worker *k* takes GPU *k*; or a client of `dask_cuda.LocalCUDACluster()` |
| SLURM, no scheduler | a job array of `eedkit study run s.yaml`: processes leave each other's blocks alone |
| SLURM, dask-jobqueue | the script below |
| any Dask cluster | `--scheduler tcp://host:8786` (`tls://` with Dask's certificates), or `study.run(client=client)` |

In a script, `workers=` belongs under `if __name__ == "__main__":`.

<!-- needs a cluster -->
```python
# imagenet.py: eight jobs with one GPU each; run on the login node, stop and start again at will
from dask.distributed import Client
from dask_jobqueue import SLURMCluster

import eedkit as ek

if __name__ == "__main__":
    cluster = SLURMCluster(
        queue="gpu",
        cores=8,
        processes=1,
        memory="32GB",
        walltime="04:00:00",
        job_extra_directives=["--gres=gpu:1"],
        worker_extra_args=["--resources", "GPU=1"],
        job_script_prologue=["source .venv/bin/activate"],
    )
    cluster.scale(jobs=8)
    with Client(cluster) as client:
        ds = ek.Study.from_yaml("imagenet.yaml").run(client=client)
```

`workers=` starts a scheduler and a dashboard that listen on this machine only. Where workers declare a resource
`GPU`, each block asks for one. A worker runs one block at a time, with as many threads as it was given, and keeps the
weights of two models.

The cost is |G| forwards of every image by every model: 50,000 images × 98 models × D4 are 39.2 million. `eedkit study
plan` times some batches of each model, without its weights, and predicts the rest. Plan on the machine that will run
it.
"""

import lazy_loader as _lazy

from eedkit.errors import naming_extras as _naming_extras

_load, __dir__, __all__ = _lazy.attach(__name__, submodules=["study", "workers"], submod_attrs={"study": ["Study"]})


def __getattr__(name: str) -> object:
    with _naming_extras():
        return _load(name)
