from .analysis import layer_update_magnitude as layer_update_magnitude
from .avagrad import AvaGrad as AvaGrad
from .method import deep_supervision_weights as deep_supervision_weights
from .method import dice_ce_loss as dice_ce_loss
from .method import downsample_labels as downsample_labels
from .method import loader_patch_size as loader_patch_size
from .method import poly_lr as poly_lr
from .method import sliding_window_predict as sliding_window_predict
from .network import GenericUNet2d as GenericUNet2d
from .plan import Plan as Plan
from .plan import plan_unet_2d as plan_unet_2d

__version__: str
