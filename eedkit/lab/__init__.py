"""What gets measured: images and models, and the recipes that train the bundled ones.

# Models and images by name

A model and images can be named, in Python as in a shell and in a study. The model is then built with its own
preprocessing, which is printed and stands in `ds.attrs["preprocessing"]`. A warning tells when the predictions
suggest that the model cannot read the images.

```python
import eedkit as ek

ds = ek.measure("torchvision:resnet18?seed=0", "patches/test?n=16&size=65", group="C4")
```

| model | |
|---|---|
| `recipe:augmented?seed=0` | a bundled network, trained once; `ek.available.recipes()` lists them |
| `torchvision:resnet50?weights=DEFAULT` | a classifier of torchvision; without `weights=` they are random |
| `timm:resnet50.a1_in1k` | a model of timm; without a tag its weights are random |
| `file:tuned.safetensors?model=timm:resnet18&classes=7` | your own weights |
| `package:efficientnet_lite0` | ImageNet weights that come with a Python package; `?seed=0`: random ones |

`?head=classifier.1&layers=all` says what is measured of a model.

| images | |
|---|---|
| `digits/test` | bundled: `ek.available.images()` lists them, and `data/` has a card for each |
| `photos/` | a folder: flat, of class folders, or with a `metadata.csv` |
| `images.parquet` | a parquet file |
| `hub:owner/name/split` | a data set of the Hugging Face hub |
| `mnist/test`, `photos/test` | MNIST's digits and photographs that other packages bring (extra `real`) |

`?n=…` or `?per_class=…` says how many, `?size=…` how large (over the model's own size), `?label=…` which column has
the labels, `?corruption=blur&severity=3` corrupts them (eight kinds, five severities). `eedkit measure --specs` lists
every option.

# Extras

The core depends on torch, numpy, pandas, scipy, xarray, tqdm and lazy_loader. That is enough for `measure`,
`summarise` and `Tracker`. Other features tell you which extra to install:

| extra | for |
|---|---|
| `plots` | figures and cards |
| `lab` | bundled images and networks, models by name |
| `study` | studies, the command line, Zarr |
| `notebooks` | JupyterLab, `ek.explore`, the report |
| `timm` | timm's models |
| `fast` | numba, which saves time on long streams of images |
| `lightning` | the callback of `ek.Tracker` |
| `real` | images and weights that other packages ship |
| `all` | all of these, as `make` and `environment.yml` install them |

`conda env create -f environment.yml` makes a conda environment with the same versions.

Take `torch` and `torchvision` from the same index: a CPU build of one does not work with a CUDA build of the other
(`operator torchvision::nms does not exist`). The ordinary builds run on machines without a GPU, too.
"""

import lazy_loader as _lazy

from eedkit.errors import naming_extras as _naming_extras

_load, __dir__, __all__ = _lazy.attach(
    __name__, submodules=["corruptions", "images", "measuring", "models", "networks", "recipes", "specs", "training"]
)


def __getattr__(name: str) -> object:
    with _naming_extras():
        return _load(name)
