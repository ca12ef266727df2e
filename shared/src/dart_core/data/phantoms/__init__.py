"""Phantoms: seeded, made-up data with known truth, for tests, demos and pictures.

Anatomy is a set of smooth shapes in mm, folded and roughened by random fields; a scanner model turns its tissues into
intensities. Scanners and data sets bear the names of real ones, whose contrasts and habits they imitate; nothing was
measured on real scans.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
