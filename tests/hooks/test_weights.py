"""Weights of heads and neurons against what the model's own projections make of what they read."""

from typing import Any

import pytest
import torch
from einops import einsum
from torch import Tensor, nn
from torch.testing import assert_close

from corelens import HookedMLLM
from corelens.hf.layers import AttentionModule
from tests.helpers import tiny

NOT_BY_HEAD = {
    "a latent that heads share": ("glm5_next", "mistral_large4", "mistral4", "kimi_k25", "dots3_note", "hy_v4_vl"),
    "convolutions": ("inkling2", "inkling_mm_model"),
    "keys and values of another layer": ("gemma4", "gemma4_unified", "gemma3n"),
    "values that are the keys": ("diffusion_gemma",),
}
"""Architectures in which some heads have no matrix of their own for keys and values, by the reason."""


KEYS_OF_OTHERS = ("diffusion_gemma", "pi0", "t5gemma2")
"""Architectures whose keys are also those of an encoder's positions, or of an earlier pass."""

GAIN_BEHIND_ROTATION = ("hunyuan_vl",)
"""Architectures whose queries and keys are normed after rotation, so that the gain changes what rotation kept."""


def reads(module: nn.Module) -> list[Tensor]:
    """Collect what a module reads in the next passes."""
    inputs: list[Tensor] = []
    module.register_forward_pre_hook(
        lambda _, args, kwargs: inputs.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    return inputs


def by_head(stream: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return einsum(stream, weight, "b p d_model, head d_model d -> b p head d") + bias


def behind_norm(attention: AttentionModule, part: Any, vectors: Tensor) -> Tensor:
    if (norm := attention.norms.get(part)) is None:
        return vectors
    all_heads = any(gain.ndim == 1 and len(gain) > vectors.shape[-1] for gain in norm.parameters())
    return norm(vectors.flatten(-2)).view_as(vectors) if all_heads else norm(vectors)


@pytest.mark.filterwarnings("ignore:transformers runs the vision encoder", "ignore:the indexer of minimax")
@pytest.mark.parametrize("name", [name for name in tiny.ARCHITECTURES if name not in tiny.NOT_HOOKED])
def test_heads_and_neurons_read_and_write_by_these_weights(name: str):
    model = HookedMLLM(tiny.build(name))
    blocks = [block for block in model.hf_layers if "attn" in block.attentions]
    read = {layer.layer: reads(layer.attentions["attn"].module) for layer in blocks}
    mlps = {
        layer.layer: reads(layer.mlp.projection(layer.mlp.w_in)) for layer in model.hf_layers if layer.mlp is not None
    }
    written: dict[int, list[Tensor]] = {layer: [] for layer in mlps}
    for layer, outputs in written.items():
        mlp = model.hf_layers[layer].mlp
        assert mlp is not None
        mlp.projection(mlp.w_out).register_forward_hook(lambda _, args, output, o=outputs: o.append(output))
    points = ("hook_q", "hook_k", "hook_v", "hook_pre", "hook_pre_linear", "hook_post")
    with torch.no_grad():
        _, cache = model.run_with_cache(
            tiny.batch(name), names_filter=lambda n: n.startswith("blocks.") and n.endswith(points) and "cross" not in n
        )
        refused = set()
        for layer in blocks:
            attn: Any = model.blocks[layer.layer].attn
            attention = layer.attentions["attn"]
            if attention.is_cross_attention:
                continue
            if not attention.head_rows:
                refused.add(attention.no_head_rows)
                with pytest.raises(ValueError, match=r"is not known: .*no-circuit"):
                    _ = attn.W_Q
                continue
            stream = read[layer.layer][-1]
            for part in () if name in GAIN_BEHIND_ROTATION else "q" if name in KEYS_OF_OTHERS else "qk":
                upper = part.upper()
                vectors = by_head(stream, getattr(attn, f"W_{upper}"), getattr(attn, f"b_{upper}"))
                # Rotation, and a number by which a position is scaled, change no ratio between heads.
                ratios = cache[part, layer.layer].norm(dim=-1) / behind_norm(attention, part, vectors).norm(dim=-1)
                assert_close(ratios, ratios[..., :1].expand_as(ratios), atol=1e-3, rtol=1e-3, equal_nan=True)
            if name in KEYS_OF_OTHERS:
                continue
            values = behind_norm(attention, "v", by_head(stream, attn.W_V, attn.b_V))
            assert_close(cache["v", layer.layer], values, atol=1e-4, rtol=1e-4)
        assert bool(refused) == any(name in names for names in NOT_BY_HEAD.values()), refused
        for layer, inputs in mlps.items():
            mlp: Any = model.blocks[layer].mlp
            stream, flat = inputs[0], inputs[0].shape[-1]
            gated, pre = bool(mlp.hf_mlp.w_gate), cache["pre", layer].reshape(-1, mlp.hf_mlp.d_mlp)
            stream = stream.reshape(-1, flat)
            if gated:
                assert_close(pre, stream @ mlp.W_gate, atol=1e-4, rtol=1e-4)
                assert_close(cache["pre_linear", layer, "mlp"].reshape_as(pre), stream @ mlp.W_in + mlp.b_in)
            else:
                assert_close(pre, stream @ mlp.W_in + mlp.b_in, atol=1e-4, rtol=1e-4)
            output = cache["post", layer] @ mlp.W_out + mlp.b_out
            assert_close(output, written[layer][0].view_as(output), atol=1e-4, rtol=1e-4)
