"""Figures of head scores, interventions and attention, made with plotly."""

from corelens.errors import optional_import

with optional_import("app"):
    from corelens.viz.circuits import faithfulness_curves as faithfulness_curves
    from corelens.viz.curves import depth_profiles as depth_profiles
    from corelens.viz.curves import group_distributions as group_distributions
    from corelens.viz.curves import heads_by_two as heads_by_two
    from corelens.viz.curves import lorenz_curves as lorenz_curves
    from corelens.viz.curves import sample_distribution as sample_distribution
    from corelens.viz.curves import score_curve as score_curve
    from corelens.viz.effects import ablation_curves as ablation_curves
    from corelens.viz.effects import accuracy_bars as accuracy_bars
    from corelens.viz.effects import accuracy_strips as accuracy_strips
    from corelens.viz.effects import speed_against_accuracy as speed_against_accuracy
    from corelens.viz.effects import speed_by_length as speed_by_length
    from corelens.viz.key_tokens import coverage_curves as coverage_curves
    from corelens.viz.key_tokens import hit_rate_bars as hit_rate_bars
    from corelens.viz.maps import binned_head_maps as binned_head_maps
    from corelens.viz.maps import cross_ablation_map as cross_ablation_map
    from corelens.viz.maps import depth_length_grid as depth_length_grid
    from corelens.viz.maps import head_map as head_map
    from corelens.viz.maps import overlap_matrix as overlap_matrix
    from corelens.viz.maps import patching_map as patching_map
    from corelens.viz.maps import stable_head_map as stable_head_map
    from corelens.viz.overlays import attention_over_media as attention_over_media
    from corelens.viz.overlays import attention_over_picture as attention_over_picture
    from corelens.viz.pages import relevance_curves as relevance_curves
    from corelens.viz.styles import DARK as DARK
    from corelens.viz.styles import LIGHT as LIGHT
    from corelens.viz.styles import style as style
