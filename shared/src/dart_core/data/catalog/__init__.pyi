from . import cc359 as cc359
from . import chestxray14 as chestxray14
from . import chexpert as chexpert
from . import mms as mms
from . import prostate as prostate
