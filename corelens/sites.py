"""Where a Hugging Face decoder keeps its layers and heads: one of the two files that know its insides."""

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class LayerSite:
    """One decoder layer: the modules whose inputs and outputs the hook points show."""

    layer: int
    """Absolute number of the layer, from zero."""

    block: nn.Module
    """Takes `resid_pre`, returns `resid_post`."""

    attention: nn.Module
    """Calls the attention function."""

    config: PreTrainedConfig
    """Names the attention function to call; layers share it."""

    w_o: nn.Linear
    """Takes the heads' outputs side by side and writes them to the residual stream."""

    n_heads: int
    d_head: int
    """Width of one head's output, from the shape of W_O."""

    attn_out: nn.Module
    """Its output is what attention adds to the residual stream."""

    before_mlp: nn.Module
    """Its input is `resid_mid`."""

    mlp_out: nn.Module
    """Its output is what the MLP adds to the residual stream."""


def layer_sites(hf_model: PreTrainedModel) -> list[LayerSite]:
    """One site per decoder layer, first layer first.

    Raises:
        TypeError: If the model takes no image tokens, or its decoder is not built as expected; both name what is
            missing.
    """
    name = type(hf_model).__name__
    if getattr(hf_model.config, "image_token_id", None) is None:
        raise TypeError(
            f"{name} has no image tokens: its configuration has no `image_token_id`. corelens wraps image-text-to-text "
            f"models; load one with HookedMLLM.from_pretrained or AutoModelForImageTextToText."
        )
    # Any: Hugging Face sets these attributes at run time. Below this function they have types.
    decoder: Any = hf_model.get_decoder()
    try:
        return [_layer_site(layer, block) for layer, block in enumerate(decoder.layers)]
    except AttributeError as missing:
        raise TypeError(
            f"{name} is not supported yet: its decoder {type(decoder).__name__} has a "
            f"{type(missing.obj).__name__} without `{missing.name}`."
        ) from missing


def _layer_site(layer: int, block: Any) -> LayerSite:
    attention, w_o = block.self_attn, block.self_attn.o_proj
    n_heads = attention.config.num_attention_heads
    # With norms on both sides of attention and MLP (Gemma 3) the second norm's output is what is added.
    sandwich = hasattr(block, "pre_feedforward_layernorm")
    return LayerSite(
        layer=layer,
        block=block,
        attention=attention,
        config=attention.config,
        w_o=w_o,
        n_heads=n_heads,
        d_head=w_o.in_features // n_heads,
        attn_out=block.post_attention_layernorm if sandwich else attention,
        before_mlp=block.pre_feedforward_layernorm if sandwich else block.post_attention_layernorm,
        mlp_out=block.post_feedforward_layernorm if sandwich else block.mlp,
    )
