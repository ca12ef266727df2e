from . import cache as cache
from . import catalog as catalog
from . import datalist as datalist
from . import images as images
from . import phantoms as phantoms
from . import scans as scans
from . import slices as slices
from . import volumes as volumes
