"""What gets measured: images and models, and the recipes that train the bundled ones."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__, submodules=["images", "models", "networks", "recipes", "shifts", "specs", "training"]
)
