"""The ten crops of the test and the mean of their probabilities (specification 2.1.4); they are the core's."""

from dart_core.data.picture_views import ten_crop, ten_crop_scores

__all__ = ["ten_crop", "ten_crop_scores"]
