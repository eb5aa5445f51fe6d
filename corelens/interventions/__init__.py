"""Interventions as data: each is a list of hooks for `model.hooks(fwd_hooks=...)`, and lists add up."""

from corelens.interventions.ablation import ablate as ablate
from corelens.interventions.ablation import removed as removed
from corelens.interventions.attention import bias_attention as bias_attention
from corelens.interventions.attention import hide as hide
from corelens.interventions.attention import knock_out as knock_out
from corelens.interventions.attention import scale_attention as scale_attention
from corelens.interventions.patching import patch as patch
from corelens.interventions.patching import path_patch as path_patch
from corelens.interventions.reference import HeadOutputs as HeadOutputs
from corelens.interventions.reference import drawn_outputs as drawn_outputs
from corelens.interventions.reference import mean_outputs as mean_outputs
from corelens.interventions.replace import FwdHooks as FwdHooks
