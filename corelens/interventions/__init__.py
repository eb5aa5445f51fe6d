"""Interventions as data: each is a list of hooks for `model.hooks(fwd_hooks=...)`, and lists add up."""

from corelens.interventions.ablation import ablate as ablate
from corelens.interventions.edges import bias_attention as bias_attention
from corelens.interventions.edges import hide as hide
from corelens.interventions.edges import knock_out as knock_out
from corelens.interventions.edges import scale_attention as scale_attention
from corelens.interventions.hooks import FwdHooks as FwdHooks
from corelens.interventions.outputs import HeadOutputs as HeadOutputs
from corelens.interventions.outputs import drawn_outputs as drawn_outputs
from corelens.interventions.outputs import mean_outputs as mean_outputs
from corelens.interventions.patching import patch as patch
from corelens.interventions.paths import path_patch as path_patch
from corelens.interventions.surgery import removed as removed
