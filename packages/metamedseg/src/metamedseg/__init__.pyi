from . import losses as losses
from .baselines import dawoud_losses as dawoud_losses
from .datasets import slices_by_volume as slices_by_volume
from .distances import organ_distances as organ_distances
from .measures import iou_score as iou_score
from .method import reptile_update as reptile_update
from .method import task_probabilities as task_probabilities
from .method import volumetric_indices as volumetric_indices
from .networks import MetaUNet as MetaUNet
from .schedules import fine_tune_lr as fine_tune_lr
from .slices import greys_r as greys_r
from .slices import kept_slices as kept_slices
from .slices import normalise_nonzero as normalise_nonzero
from .slices import resize_mask as resize_mask
from .slices import resize_slice as resize_slice

__version__: str
