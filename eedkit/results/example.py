"""`ek.example`: a small stored result, so that every figure can be drawn without a model. Knows xarray and never torch.

Costs one file of about 100 kB, which lies beside this module; `make gallery` makes it again.
"""

from pathlib import Path

import xarray as xr

from eedkit.results import schema

STORED = Path(__file__).with_name("example.nc.gz")
"""NetCDF 3, packed, which xarray reads with scipy alone: no extra is needed."""


def example() -> xr.Dataset:
    """Four small networks, measured on 60 handwritten digits under quarter turns: a result to try every figure on.

    `plain` was trained on upright digits, `augmented` on turned ones, `equivariant` has group convolutions, and
    `random` was never trained. `attrs["made_by"]` says how, and `attrs["data"]` on which images.

    Returns
    -------
    Dataset
        As `measure` gives it, with dims (model, layer, element, sample), and with labels, predictions and nulls.

    Examples
    --------
    >>> ds = example()
    >>> dict(ds.sizes)
    {'model': 4, 'layer': 6, 'element': 4, 'sample': 60}

    Its images come with the package, too, as those that `worst` and `card` show:

    >>> import eedkit as ek
    >>> images = ek.lab.images.load("digits/test?per_class=6&size=17")
    >>> figure = ek.plots.worst(ds, images, model="augmented")
    """
    return schema.validate(schema.text_as_objects(xr.load_dataset(STORED, engine="scipy")))
