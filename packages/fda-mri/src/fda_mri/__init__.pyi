from .donors import DonorBank as DonorBank
from .donors import random_donors as random_donors
from .fourier import circular_mask as circular_mask
from .fourier import fourier_transfer as fourier_transfer
from .method import multi_source_predict as multi_source_predict
from .method import normalise_volume as normalise_volume
from .method import segmentation_loss as segmentation_loss
from .method import select_beta as select_beta
from .method import select_pairs as select_pairs
from .method import train_source as train_source
from .similarity import sr_sim as sr_sim

__version__: str
