from .boxes import boxes_from_labels as boxes_from_labels
from .boxes import filter_boxes as filter_boxes
from .boxes import weak_nms as weak_nms
from .cloning import clone_mask as clone_mask
from .cloning import seamless_synthetic as seamless_synthetic
from .fusion import correct_labels as correct_labels
from .fusion import weighted_boxes_fusion as weighted_boxes_fusion
from .memorisation import memorisation_epoch as memorisation_epoch
from .views import tta_views as tta_views
from .views import undo_tta as undo_tta
from .weak import weak_labels as weak_labels

__version__: str
