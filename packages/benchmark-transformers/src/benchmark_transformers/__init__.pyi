from .conversion import convert_checkpoint as convert_checkpoint
from .conversion import interpolate_relative_position_bias as interpolate_relative_position_bias
from .initialisations import INITIALISATIONS as INITIALISATIONS
from .initialisations import Initialisation as Initialisation
from .labels import annotation_fraction as annotation_fraction
from .labels import chexpert_labels as chexpert_labels
from .schedules import fine_tune_lr as fine_tune_lr
from .schedules import simmim_lr as simmim_lr
from .simmim import SimMIM as SimMIM
from .simmim import simmim_loss as simmim_loss
from .simmim import simmim_mask as simmim_mask
from .views import ten_crop as ten_crop
from .views import ten_crop_scores as ten_crop_scores

__version__: str
