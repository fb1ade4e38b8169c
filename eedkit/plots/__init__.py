"""The figures of eedkit's results, each a matplotlib Figure: `ek.plots`.

Knows Datasets and tables of `summarise`; only `worst`, which shows images, also reads and moves them.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submodules=["draw"],
    submod_attrs={
        "figures": ["calibration", "class_heatmap", "depth_profile", "orbit_rose"],
        "panels": ["cloud", "effects", "lines", "pictures"],
        "style": ["FORMATS", "save"],
        "worst": ["worst"],
    },
)
