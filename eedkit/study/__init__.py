"""Many measurements: planned, run, stopped, resumed and joined."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__, submodules=["study", "workers"], submod_attrs={"study": ["Study"]}
)
