"""The paper's mathematics on tensors: groups, actions, distances, deviation. Knows torch and nothing of labels."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__, submodules=["actions", "deviation", "distances", "groups"])
