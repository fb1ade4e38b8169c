"""Tests of the paper's stated conclusions: claims, their verdicts, and the conclusions put together from them."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__, submodules=["conclusions", "readings", "verdicts"])
