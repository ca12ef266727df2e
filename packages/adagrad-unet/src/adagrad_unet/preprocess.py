"""Cropping, resampling and normalisation of nnU-Net version 1 (specification 2.5), from the core.

Arrays have nnU-Net's axes: those of a NIfTI file reversed (z, y, x), then the slice axis moved to the front.
"""

from __future__ import annotations

from dart_core.data.nnunet import ANISOTROPY, bounding_box, nonzero_mask, normalise, resample_labels, target_spacing
from dart_core.data.nnunet import resample_image as resample_slices

__all__ = [
    "ANISOTROPY", "bounding_box", "nonzero_mask", "normalise", "resample_labels", "resample_slices", "target_spacing",
]  # fmt: skip
