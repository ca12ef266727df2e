from .groh import groh_ita as groh_ita
from .groh import groh_skin_mask as groh_skin_mask
from .scores import within_one_accuracy as within_one_accuracy
from .tone import fitzpatrick_type as fitzpatrick_type
from .tone import individual_typology_angle as individual_typology_angle
from .tone import label_skin_tone as label_skin_tone
from .tone import remove_hair as remove_hair

__version__: str
