"""Labelled results: schema, summaries, storage. Knows xarray and never torch."""

import lazy_loader as _lazy

from eedkit.results import accessor as accessor

__getattr__, __dir__, __all__ = _lazy.attach(__name__, submodules=["io", "orbits", "schema", "summary"])
