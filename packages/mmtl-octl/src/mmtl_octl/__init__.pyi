from .octl import OCTLSGD as OCTLSGD
from .octl import OCTLAdam as OCTLAdam
from .octl import load_history as load_history
from .octl import save_history as save_history
from .schedules import MixedBatches as MixedBatches
from .schedules import learning_rate as learning_rate
from .schedules import target_count as target_count

__version__: str
