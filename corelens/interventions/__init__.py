"""Interventions as data: each is a list of hooks for `model.hooks(fwd_hooks=...)`, and lists add up."""

from corelens.interventions.ablation import ablate as ablate
from corelens.interventions.ablation import zeroed_weights as zeroed_weights
from corelens.interventions.attention import attention_knockout as attention_knockout
from corelens.interventions.attention import bias_attention as bias_attention
from corelens.interventions.attention import cut_route as cut_route
from corelens.interventions.attention import mask_keys as mask_keys
from corelens.interventions.attention import scale_attention as scale_attention
from corelens.interventions.patching import patch as patch
from corelens.interventions.patching import path_patch as path_patch
from corelens.interventions.reference import ReferenceActivations as ReferenceActivations
from corelens.interventions.reference import mean_activations as mean_activations
from corelens.interventions.reference import resample_activations as resample_activations
from corelens.interventions.replace import FwdHooks as FwdHooks
