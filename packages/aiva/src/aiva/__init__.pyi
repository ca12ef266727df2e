from .alignment import AlignmentAccumulator as AlignmentAccumulator
from .alignment import LambdaNormaliser as LambdaNormaliser
from .alignment import alignment_loss as alignment_loss
from .baselines import OutputDiscriminator as OutputDiscriminator
from .baselines import adversarial_losses as adversarial_losses
from .baselines import seg_jdot_loss as seg_jdot_loss
from .baselines import seg_jdot_plan as seg_jdot_plan
from .bottleneck import bottleneck_features as bottleneck_features
from .bottleneck import freeze_for_adaptation as freeze_for_adaptation
from .clustering import Clustering as Clustering
from .clustering import cluster_sites as cluster_sites
from .clustering import match_clusters as match_clusters
from .clustering import matched_distance as matched_distance
from .features import FeatureStore as FeatureStore
from .method import train_aiva as train_aiva
from .training import learning_rate as learning_rate
from .training import segmentation_loss as segmentation_loss

__version__: str
