"""Augmentation of image batches by tensor code that runs on CPU and GPU. Imports are lazy."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
