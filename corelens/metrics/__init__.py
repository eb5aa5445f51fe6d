"""Pure functions from attention patterns to numbers. They import nothing from corelens and never write."""

from corelens.metrics.mass import evidence_lift as evidence_lift
from corelens.metrics.mass import retrieval_attention_mass as retrieval_attention_mass
from corelens.metrics.mass import visual_share as visual_share
from corelens.metrics.spread import attention_entropy as attention_entropy
