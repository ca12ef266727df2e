from .segmentation import bce_dice as bce_dice
from .segmentation import binary_cross_entropy as binary_cross_entropy
from .segmentation import soft_dice as soft_dice
