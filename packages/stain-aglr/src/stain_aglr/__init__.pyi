from .dscsi import DSCSIDiscriminator as DSCSIDiscriminator
from .dscsi import DSCSIGenerator as DSCSIGenerator
from .dscsi import dscsi_similarity as dscsi_similarity
from .hed import hed_jitter as hed_jitter
from .hed import random_hed_jitter as random_hed_jitter
from .light import HEDLight as HEDLight
from .light import add_noise as add_noise
from .light import adjust_brightness as adjust_brightness
from .light import adjust_contrast as adjust_contrast
from .light import elastic_deform as elastic_deform
from .light import gaussian_blur as gaussian_blur
from .light import scale_patches as scale_patches
from .method import PlateauUntil as PlateauUntil
from .method import consistency_loss as consistency_loss
from .method import regeneration_loss as regeneration_loss
from .method import stain_aglr_loss as stain_aglr_loss
from .networks import FeatureExtractor as FeatureExtractor
from .networks import StainClassifier as StainClassifier
from .networks import StainGenerator as StainGenerator
from .normalisers import MacenkoNormalizer as MacenkoNormalizer
from .normalisers import VahadaneNormalizer as VahadaneNormalizer
from .stst import STSTDiscriminator as STSTDiscriminator
from .stst import STSTGenerator as STSTGenerator

__version__: str
