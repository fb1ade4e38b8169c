"""The figures of eedkit's results, each a matplotlib Figure: `ek.plots`.

Knows Datasets and tables of `summarise`; only `worst` and `flipbook`, which show images, also move them.

.. include:: ../../notebooks/gallery/README.md
"""

import lazy_loader as _lazy

from eedkit.errors import naming_extras as _naming_extras

_load, __dir__, __all__ = _lazy.attach(
    __name__,
    submodules=["draw"],
    submod_attrs={
        "figures": ["calibration", "class_heatmap", "depth_profile", "histogram", "orbit_rose"],
        "orbits": ["averaging_gain", "element_probe", "interchange", "orbit_variance"],
        "panels": ["cloud", "dose_response", "effects", "lines", "pictures"],
        "style": ["FORMATS", "save", "width"],
        "flipbook": ["flipbook"],
        "worst": ["worst"],
    },
)


def __getattr__(name: str) -> object:
    with _naming_extras():
        return _load(name)
