"""Categorical normalisation for robust medical image segmentation (Xiao et al., DART 2022). Imports are lazy."""

import lazy_loader as lazy

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
