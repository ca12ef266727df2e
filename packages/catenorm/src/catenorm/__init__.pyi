from .alignment import align_class_statistics as align_class_statistics
from .baselines import MSNet as MSNet
from .baselines import SiteBatchNorm2d as SiteBatchNorm2d
from .baselines import SiteNetwork as SiteNetwork
from .baselines import WNet as WNet
from .baselines import ms_net_step as ms_net_step
from .deeplab import CateNormDeepLabV3Plus as CateNormDeepLabV3Plus
from .losses import hard_dice_loss as hard_dice_loss
from .losses import segmentation_loss as segmentation_loss
from .method import CateNorm2d as CateNorm2d
from .method import CateNormResidualBlock as CateNormResidualBlock
from .method import largest_component as largest_component
from .method import parameter_groups as parameter_groups
from .method import two_pass as two_pass
from .method import two_stage_step as two_stage_step
from .networks import CateNormUNet as CateNormUNet
from .preprocess import preprocess_ct as preprocess_ct
from .rows import site_folds as site_folds

__version__: str
