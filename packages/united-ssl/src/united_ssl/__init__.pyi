from .blocks import permutation_set as permutation_set
from .blocks import rubik as rubik
from .blocks import shuffle_blocks as shuffle_blocks
from .clustering import cluster_pseudo_labels as cluster_pseudo_labels
from .clustering import cluster_sampling_weights as cluster_sampling_weights
from .cubes import crop_accepted as crop_accepted
from .losses import critic_loss as critic_loss
from .losses import generator_loss as generator_loss
from .losses import gradient_penalty as gradient_penalty
from .losses import united_loss as united_loss
from .measures import annotation_saving as annotation_saving
from .measures import frechet_distance as frechet_distance
from .networks import Critic3d as Critic3d
from .networks import UnitedUNet3d as UnitedUNet3d
from .rotation import rotate_cube as rotate_cube
from .schedules import halving_lr as halving_lr

__version__: str
