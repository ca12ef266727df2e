from . import genesis as genesis
from . import intensity as intensity
from . import nnunet as nnunet
from . import spatial as spatial
