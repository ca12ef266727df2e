"""Reading and writing data: datalists, volumes, slices, images, a cache, phantoms and the catalogue of public data sets."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
