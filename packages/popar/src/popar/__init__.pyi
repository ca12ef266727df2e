from .method import distort as distort
from .method import fine_tune_lr as fine_tune_lr
from .method import popar_loss as popar_loss
from .method import pretrain_lr as pretrain_lr
from .networks import POPAR as POPAR
from .patches import patchify as patchify
from .patches import permute_patches as permute_patches
from .patches import unpatchify as unpatchify
from .weights import load_popar_weights as load_popar_weights

__version__: str
