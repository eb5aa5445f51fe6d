"""Pure functions from attention patterns to numbers. They import nothing from corelens and never write."""

from corelens.metrics.aggregation import aggregate as aggregate
from corelens.metrics.division import depth_profile as depth_profile
from corelens.metrics.division import two_groups as two_groups
from corelens.metrics.family import head_score as head_score
from corelens.metrics.mass import attention_moved as attention_moved
from corelens.metrics.mass import retrieval_attention_mass as retrieval_attention_mass
from corelens.metrics.mass import visual_share as visual_share
from corelens.metrics.presets import PRESETS as PRESETS
from corelens.metrics.presets import Metric as Metric
from corelens.metrics.selection import elbow as elbow
from corelens.metrics.selection import localization_heads as localization_heads
from corelens.metrics.selection import lorenz_curve as lorenz_curve
from corelens.metrics.selection import rho as rho
from corelens.metrics.spread import attention_distance as attention_distance
from corelens.metrics.spread import attention_entropy as attention_entropy
from corelens.metrics.spread import attention_sinks as attention_sinks
from corelens.metrics.spread import concentration as concentration
from corelens.metrics.spread import spatial_entropy as spatial_entropy
from corelens.metrics.stability import bootstrap_interval as bootstrap_interval
from corelens.metrics.stability import jaccard as jaccard
from corelens.metrics.stability import rank_biased_overlap as rank_biased_overlap
from corelens.metrics.stability import spearman as spearman
from corelens.metrics.stability import stability_curve as stability_curve
from corelens.metrics.writes import copy_score as copy_score
from corelens.metrics.writes import write_sizes as write_sizes
from corelens.metrics.writes import write_towards as write_towards
