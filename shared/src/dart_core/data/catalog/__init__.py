"""Public data sets of the papers, indexed exactly as their owners publish them on disk."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
