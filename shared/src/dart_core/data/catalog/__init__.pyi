from . import camelyon17 as camelyon17
from . import cc359 as cc359
from . import chestxray14 as chestxray14
from . import chexpert as chexpert
from . import mms as mms
from . import prostate as prostate
from . import tupac16 as tupac16
from . import wilds_camelyon17 as wilds_camelyon17
