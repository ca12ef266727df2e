from .dice_ce import deep_supervision_weights as deep_supervision_weights
from .dice_ce import dice_ce_loss as dice_ce_loss
from .dice_ce import downsample_labels as downsample_labels
from .segmentation import bce_dice as bce_dice
from .segmentation import binary_cross_entropy as binary_cross_entropy
from .segmentation import soft_dice as soft_dice
