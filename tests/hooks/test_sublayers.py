"""Hooks on norms' scales, on neurons and on the embedding: what they see, and what an edit does."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from corelens import HookedMLLM
from corelens.hf.norms import norm_weights
from tests.helpers import tiny


class OffsetNorm(nn.Module):
    """An RMSNorm whose gain is one more than its weight, as Gemma's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(64) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * (1 + self.weight)


def test_weights_of_norms_are_found_by_asking_them():
    layer_norm = nn.LayerNorm(64, eps=1e-2)
    nn.init.normal_(layer_norm.weight)
    nn.init.normal_(layer_norm.bias)
    stream = torch.randn(2, 3, 64) / 10
    for norm in (layer_norm, OffsetNorm(), nn.RMSNorm(64, eps=1e-6)):
        weights = norm_weights(norm, 64, torch.float32, "the norm")
        centred = stream - stream.mean(-1, keepdim=True) if weights.centred else stream
        assert weights.centred == isinstance(norm, nn.LayerNorm)
        assert_close(centred / weights.scale(stream) * weights.gain + weights.bias, norm(stream), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match=r"the norm \(Linear\) is neither a LayerNorm nor an RMSNorm"):
        norm_weights(nn.Linear(64, 64), 64, torch.float32, "the norm")


@pytest.fixture(scope="module", params=["llava", "gemma3", "phi4_multimodal", "fuyu", "lfm2_vl", "blip-2"])
def model(request: pytest.FixtureRequest) -> Any:
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr("corelens.model.KNOWN_BUGS", {})
        wrapped = HookedMLLM(tiny.build(request.param))
    wrapped.cfg.model_name = request.param
    return wrapped


def test_edits_of_neurons_and_scales_act(model: Any):
    inputs, layer = tiny.batch(model.cfg.model_name), model.cfg.n_layers - 1
    with torch.no_grad():
        logits, cache = model.run_with_cache(inputs)
        mlp, name = model.blocks[layer].mlp, f"blocks.{layer}.mlp.hook_"
        for point in ("pre", "pre_linear", "post"):
            if f"{name}{point}" not in model.hook_dict:
                assert point == "pre_linear"
                assert not mlp.hf_mlp.w_gate
                continue
            assert cache[f"{name}{point}"].shape == (*logits.shape[:2], mlp.hf_mlp.d_mlp)
            same = model.run_with_hooks(inputs, fwd_hooks=[(f"{name}{point}", lambda x, hook: x.clone())])
            assert torch.equal(same, logits)
        hooks = [(f"{name}post", lambda neurons, hook: 0 * neurons)]
        if model.cfg.model_name not in ("gemma3", "blip-2"):  # a norm behind, and no module that is the MLP
            hooks.append((f"blocks.{layer}.hook_mlp_out", check_bias(mlp)))
        zeroed = model.run_with_hooks(inputs, fwd_hooks=hooks)
        assert not torch.allclose(zeroed, logits)
        # A norm that divides by twice the scale is half of the normed stream, but for its bias.
        halved = model.run_with_hooks(inputs, fwd_hooks=[("ln_final.hook_scale", lambda scale, hook: 2 * scale)])
        weights, normed = model.ln_final.weights, model.ln_final(cache["resid_post", layer])
        assert_close(halved, model.unembed((normed - weights.bias) / 2 + weights.bias), atol=1e-4, rtol=1e-4)


def check_bias(mlp: Any) -> Any:
    def check(written: Tensor, hook: Any) -> None:
        assert_close(written, mlp.b_out.expand_as(written), atol=1e-5, rtol=1e-5)

    return check


def test_edits_of_the_embedding_come_before_the_first_layer(model: Any):
    inputs = tiny.batch(model.cfg.model_name)
    with torch.no_grad():
        _, cache = model.run_with_cache(inputs)
        seen: list[Tensor] = []
        hooks = [
            ("hook_embed", lambda x, hook: 2 * x),
            ("blocks.0.hook_resid_pre", lambda x, hook: seen.append(x.clone())),
        ]
        model.run_with_hooks(inputs, fwd_hooks=hooks)
    assert torch.equal(seen[0], 2 * cache["embed"])


def test_gradients_flow_through_scales(model: Any):
    gradients: list[Tensor] = []
    with model.hooks(bwd_hooks=[("ln_final.hook_scale", lambda gradient, hook: gradients.append(gradient))]):
        model(tiny.batch(model.cfg.model_name)).sum().backward()
    assert gradients[0].any()
    model.hf_model.zero_grad()
