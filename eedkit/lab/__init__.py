"""What gets measured: images and models, and the recipes that train the bundled ones."""

import lazy_loader as _lazy

from eedkit.errors import naming_extras as _naming_extras

_load, __dir__, __all__ = _lazy.attach(
    __name__, submodules=["corruptions", "images", "measuring", "models", "networks", "recipes", "specs", "training"]
)


def __getattr__(name: str) -> object:
    with _naming_extras():
        return _load(name)
