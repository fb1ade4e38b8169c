"""What people look at: notebooks that are run, and the HTML report made of them."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__, submodules=["notebooks", "pages", "tables"])
