from . import adapt as adapt
from . import augment as augment
from . import losses as losses
from . import metrics as metrics
from . import nets as nets
from .batches import Batches as Batches
from .checkpoint import load_checkpoint as load_checkpoint
from .checkpoint import load_weights as load_weights
from .checkpoint import save_checkpoint as save_checkpoint
from .checkpoint import save_weights as save_weights
from .data.datalist import Datalist as Datalist
from .report import Report as Report
from .run import Run as Run
from .settings import RunSettings as RunSettings

__version__: str
