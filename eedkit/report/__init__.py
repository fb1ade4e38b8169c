"""What people look at: notebooks that are run, and the HTML report made of them."""

import lazy_loader as _lazy

from eedkit.errors import naming_extras as _naming_extras

_load, __dir__, __all__ = _lazy.attach(__name__, submodules=["notebooks", "pages", "tables"])


def __getattr__(name: str) -> object:
    with _naming_extras():
        return _load(name)
