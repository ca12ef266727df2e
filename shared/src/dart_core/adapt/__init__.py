"""Adapting a trained network to a new site: SpotTUNet, fine-tuning policies, L2-SP, batch-norm adaptation. Imports are lazy."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
