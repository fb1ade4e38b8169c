"""In what ways is a vision model invariant or equivariant, where, on which images, and is it more than insensitivity?

The names below load what is behind them when they are first used (SPEC 1), so `import eedkit` itself is light.
"""

import lazy_loader as _lazy

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submodules=["lab", "paper", "probe", "report", "results", "store", "study", "theory"],
    submod_attrs={
        "probe.measure": ["layers", "measure"],
        "probe.metrics": ["COMPARED", "METRICS", "Metric"],
        "report": ["plots"],
        "results.summary": ["compare", "concat", "summarise"],
        "store.join": ["open"],
        "study": ["Study"],
        "theory": ["actions", "distances", "groups"],
    },
)
