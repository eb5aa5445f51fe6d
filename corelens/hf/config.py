"""Shape of a model's decoder, under the names that TransformerLens's tools read."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from corelens.hf.architecture import final_norm
from corelens.hf.layers import DecoderLayer


@dataclass
class HookedMLLMConfig:
    """Shape, place and name of a wrapped model: `model.cfg`.

    TransformerLens's patching and caches read these fields. The full configuration is `model.hf_model.config`.
    """

    model_name: str
    n_layers: int
    n_heads: int
    """Number of heads in the layer with most."""

    n_key_value_heads: int
    """Number of key-value heads in the layer with most."""

    d_head: int
    """Width of a head in the layer with the widest."""

    d_model: int
    d_mlp: int | None
    """Number of neurons of a dense MLP, in the layer with most; None if there is none."""

    d_vocab: int
    n_ctx: int
    """Number of positions that the model was made for."""

    gated_mlp: bool
    device: torch.device
    dtype: torch.dtype
    normalization_type: Literal["RMS", "LN"]
    attn_only: bool = False

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"model.cfg has no {name}; model.hf_model.config is the model's full configuration.")

    @classmethod
    def of(cls, hf_model: PreTrainedModel, layers: Sequence[DecoderLayer]) -> "HookedMLLMConfig":
        """Configuration of a model with these decoder layers."""
        text: Any = hf_model.config.get_text_config(decoder=True)
        mlps = [layer.mlp for layer in layers if layer.mlp is not None]
        attentions = [layer.attentions["attn"] for layer in layers if "attn" in layer.attentions]
        return cls(
            model_name=hf_model.name_or_path or type(hf_model).__name__,
            n_layers=len(layers),
            n_heads=max(attention.n_heads for attention in attentions),
            n_key_value_heads=max(attention.n_kv_heads for attention in attentions),
            d_head=max(attention.d_head for attention in attentions),
            d_model=attentions[0].d_model,
            d_mlp=max((mlp.d_mlp for mlp in mlps), default=None),
            d_vocab=getattr(hf_model.get_output_embeddings(), "out_features", None) or getattr(text, "vocab_size", 0),
            n_ctx=getattr(text, "max_position_embeddings", None) or sys.maxsize,
            gated_mlp=any(mlp.w_gate for mlp in mlps),
            device=hf_model.device,
            dtype=hf_model.dtype,
            normalization_type="RMS" if "RMS" in type(final_norm(layers[0].stack)).__name__ else "LN",
        )
