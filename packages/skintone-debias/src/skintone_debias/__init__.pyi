from .groh import groh_ita as groh_ita
from .groh import groh_skin_mask as groh_skin_mask
from .method import auxiliary_loss as auxiliary_loss
from .method import class_weights as class_weights
from .method import confusion_loss as confusion_loss
from .method import debias_optimizers as debias_optimizers
from .method import debias_step as debias_step
from .method import lntl_loss as lntl_loss
from .method import reverse_gradient as reverse_gradient
from .scores import within_one_accuracy as within_one_accuracy
from .tone import fitzpatrick_type as fitzpatrick_type
from .tone import individual_typology_angle as individual_typology_angle
from .tone import label_skin_tone as label_skin_tone
from .tone import remove_hair as remove_hair
from .views import tta_variants as tta_variants

__version__: str
