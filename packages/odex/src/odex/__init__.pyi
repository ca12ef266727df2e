from .baselines import RWTracker as RWTracker
from .baselines import ewc_penalty as ewc_penalty
from .baselines import fisher_information as fisher_information
from .baselines import lwf_loss as lwf_loss
from .baselines import mib_loss as mib_loss
from .baselines import plop_loss as plop_loss
from .baselines import plop_thresholds as plop_thresholds
from .baselines import pod_loss as pod_loss
from .baselines import prediction_entropy as prediction_entropy
from .baselines import rw_normalise as rw_normalise
from .baselines import rw_penalty as rw_penalty
from .baselines import unbiased_ce as unbiased_ce
from .baselines import unbiased_kd as unbiased_kd
from .features import gram_distance as gram_distance
from .features import gram_matrix as gram_matrix
from .features import pool_features as pool_features
from .gaussians import Gaussian as Gaussian
from .gaussians import fit_gaussian as fit_gaussian
from .gaussians import mahalanobis as mahalanobis
from .method import ModelPool as ModelPool
from .method import dice_ex as dice_ex
from .method import normalisation_bounds as normalisation_bounds
from .method import normalise_distance as normalise_distance
from .networks import build_unet as build_unet
from .streams import smooth_stream as smooth_stream

__version__: str
