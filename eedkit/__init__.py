"""In what ways is a vision model invariant or equivariant, where, on which images, and is it more than insensitivity?

The names below load what is behind them when they are first used (SPEC 1), so `import eedkit` itself is light.

* `eedkit.probe`: your own model; layers, heads and outputs; while it trains
* `eedkit.probe.metrics`: what is measured, null and intervals, a custom metric
* `eedkit.theory`: groups and custom actions
* `eedkit.plots`: the gallery
* `eedkit.lab`: models and images by name, extras
* `eedkit.study`: many models, from a laptop to a cluster
* `eedkit.bridges`: beside other tools
"""

import lazy_loader as _lazy

from eedkit.errors import naming_extras as _naming_extras

__version__ = "0.1.0"

_load, __dir__, __all__ = _lazy.attach(
    __name__,
    submodules=[
        "available",
        "bridges",
        "lab",
        "paper",
        "plots",
        "probe",
        "report",
        "results",
        "study",
        "theory",
    ],
    submod_attrs={
        "explorer.card": ["card"],
        "explorer.interactive": ["explore"],
        "errors": ["Undefined"],
        "lab.checking": ["check"],
        "lab.measuring": ["interchange", "measure", "orbit_features"],
        "probe.measure": ["layers"],
        "probe.metrics": ["COMPARED", "METRICS", "Metric"],
        "results": ["orbits"],
        "results.example": ["example"],
        "results.summary": ["compare", "concat", "summarise"],
        "results.text": ["to_latex"],
        "study.join": ["open"],
        "study": ["Study"],
        "tracker": ["Tracker"],
        "theory": ["actions", "distances", "groups"],
    },
)


def __getattr__(name: str) -> object:
    with _naming_extras():
        return _load(name)
