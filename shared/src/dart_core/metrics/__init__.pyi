from .overlap import dice as dice
from .overlap import iou as iou
from .statistics import bonferroni as bonferroni
from .statistics import two_sample_t_test as two_sample_t_test
from .statistics import two_sample_t_test_from_summary as two_sample_t_test_from_summary
from .statistics import wilcoxon_signed_rank as wilcoxon_signed_rank
from .surface import average_surface_distance as average_surface_distance
from .surface import surface_dice as surface_dice
