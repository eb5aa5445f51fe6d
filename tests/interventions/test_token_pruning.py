"""Pruned visual tokens, against the ranking by a loop."""

import pytest
import torch

from corelens import HookedMLLM, toy
from corelens.interventions.token_pruning import TokenPruning, prune_tokens


def test_pruned_tokens_have_least_attention_in_a_layer_and_none_in_later_layers(
    toy_model: HookedMLLM,
):
    samples = list(toy.scenes(2, seed=3))
    inputs = toy_model.prepare([sample.images for sample in samples], [sample.question for sample in samples])
    names = toy_model.attn_names("pattern")
    _, cache = toy_model.run_with_cache(inputs, names_filter=names)
    with toy_model.hooks(fwd_hooks=prune_tokens(toy_model, inputs, TokenPruning(1, 0.25))):
        _, pruned = toy_model.run_with_cache(inputs, names_filter=names)
    for sample in range(2):
        visual = inputs.tokens.visual[sample].nonzero().flatten()
        by_attention = sorted(visual.tolist(), key=lambda k: -cache["pattern", 1][sample, :, -1, k].mean().item())
        real = (~inputs.tokens.padding[sample]).nonzero().flatten()
        assert (pruned["pattern", 2][sample][:, real][:, :, by_attention[16:]] == 0).all()
        assert (pruned["pattern", 5][sample][:, -1, by_attention[16:]] == 0).all()
        assert (pruned["pattern", 5][sample][:, -1, by_attention[:16]] > 0).any(0).all()
    assert torch.equal(pruned["pattern", 1], cache["pattern", 1])
    assert prune_tokens(toy_model, inputs, TokenPruning(1, 1.0)) == []
    with pytest.raises(ValueError, match=r"share must lie in \(0, 1\], and is 1.2"):
        TokenPruning(1, 1.2)
    with pytest.raises(ValueError, match="no hook point"):
        prune_tokens(toy_model, inputs, TokenPruning(9, 0.5))
