"""Parts of the residual stream: what the embedding, every head and every MLP wrote, which add up to it.

    resid_pre of layer L  =  embedding
                             + for every layer below:  L0H0, L0H1, ...   heads, behind W_O and the norm after it, if any
                                                       L0 attention bias
                                                       L0 MLP
                                                       after L0          what is added between layers (Qwen3-VL's
                                                                         visual features)

A layer whose insides are not known is fewer parts: all of its attention, or all of it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor
from transformer_lens import ActivationCache

from corelens.hf.layers import DecoderLayer
from corelens.hf.norms import norm_weights
from corelens.hooks.points import hook_name
from corelens.model import HookedMLLM

Activations = ActivationCache | Mapping[str, Tensor]
"""Activations of a pass by hook name."""

StreamPart = tuple[str, Float[Tensor, "batch position d_model"]]
"""Name of a part, and what it wrote at each position."""

TOLERANCE = 1e-4
"""Share of a sum by which its parts may miss it in float32."""

STREAM_POINTS = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")


def names_of_parts(model: HookedMLLM, before_layer: int) -> list[str]:
    """Names of the hook points that `stream_parts` reads.

    Args:
        model: The model.
        before_layer: The layer whose input is divided; the number of layers for the output of the last.
    """
    names = [_end(model, before_layer), hook_name(0, "resid_pre")]
    for layer in model.hf_layers[:before_layer]:
        names += [hook_name(layer.layer, point) for point in STREAM_POINTS if point in layer.points]
        if "attn" in layer.attentions and "attn_out" in layer.points:
            names.append(_head_point(model, layer))
    return list(dict.fromkeys(names))


def stream_parts(model: HookedMLLM, cache: Activations, before_layer: int) -> Iterator[StreamPart]:
    """Divide the residual stream that enters a layer into what each part of the layers below wrote.

    Norms behind W_O, which some models have, are held at their scale: a head's part is what it adds to the stream in
    this pass.

    Args:
        model: The model.
        cache: Activations of a pass, at least those of `names_of_parts`.
        before_layer: As there.

    Yields:
        Names and values in float32, in the order of the model. They add up to the stream; in models of less precision
        a last part, `rounding`, is what they miss it by.

    Raises:
        ValueError: If the stream is not [batch position d_model].
    """
    end = _end(model, before_layer)
    stream = cache[end]
    if stream.ndim != 3:
        raise ValueError(
            f"the residual stream of {type(model.hf_model).__name__} has shape {tuple(stream.shape)}, and not (batch, "
            f"position, d_model): it is no one sum."
        )
    total = torch.zeros_like(stream, dtype=torch.float32)
    for name, value in _parts(model, cache, before_layer):
        value = value.to(total)
        total += value
        yield name, value
    rest = stream.float() - total
    if stream.dtype != torch.float32:
        yield "rounding", rest
    elif rest.norm() > TOLERANCE * stream.norm():
        raise ValueError(f"parts of the stream miss {end} by {float(rest.norm() / stream.norm()):.1e} of it.")


def _end(model: HookedMLLM, before_layer: int) -> str:
    """Name of the hook point of the stream that enters a layer, or leaves the last."""
    if before_layer < len(model.hf_layers):
        return hook_name(before_layer, "resid_pre")
    return hook_name(before_layer - 1, "resid_post")


def _parts(model: HookedMLLM, cache: Activations, before_layer: int) -> Iterator[StreamPart]:
    yield "embedding", cache[hook_name(0, "resid_pre")].float()
    for layer in model.hf_layers[:before_layer]:
        yield from _parts_of_layer(model, cache, layer)
        after = cache[hook_name(layer.layer, "resid_post")]
        entering = cache[_end(model, layer.layer + 1)].to(after)
        if not torch.equal(entering, after):
            yield f"after L{layer.layer}", entering.float() - after.float()


def _parts_of_layer(model: HookedMLLM, cache: Activations, layer: DecoderLayer) -> Iterator[StreamPart]:
    number = layer.layer
    device = cache[hook_name(number, "resid_post")].device  # what enters may come from another layer's
    at = {p: cache[hook_name(number, p)].float().to(device) for p in STREAM_POINTS if p in layer.points}
    if {"attn_out", "mlp_out"} <= at.keys():
        yield from _attention_parts(model, cache, layer)
        yield f"L{number} MLP", at["mlp_out"]
        rest = at["resid_post"] - at["resid_pre"] - at["attn_out"] - at["mlp_out"]
        if rest.norm() > _tolerance(cache[hook_name(number, "resid_post")]) * at["resid_post"].norm():
            yield f"L{number} other", rest
    elif "resid_mid" in at:
        yield f"L{number} {_mixer_of(layer)}", at["resid_mid"] - at["resid_pre"]
        yield f"L{number} MLP", at["resid_post"] - at["resid_mid"]
    else:
        yield f"L{number}", at["resid_post"] - at["resid_pre"]


def _mixer_of(layer: DecoderLayer) -> str:
    return "attention" if layer.attentions else "mixer"


def _attention_parts(model: HookedMLLM, cache: Activations, layer: DecoderLayer) -> Iterator[StreamPart]:
    """Outputs of each head of a layer, and the bias; all of attention as one part if these do not add up to it."""
    number, written = layer.layer, cache[hook_name(layer.layer, "attn_out")].float()
    heads = head_writes(model, cache, layer)
    if heads is not None:
        by_head, bias = heads
        missed = written - by_head.sum(2) - bias
        if missed.norm() <= _tolerance(cache[hook_name(number, "attn_out")]) * written.norm():
            for head in range(by_head.shape[2]):
                yield f"L{number}H{head}", by_head[:, :, head]
            if bias.any():
                yield f"L{number} attention bias", bias.expand_as(written)
            return
    yield f"L{number} attention", written


def head_writes(
    model: HookedMLLM, cache: Activations, layer: DecoderLayer
) -> tuple[Float[Tensor, "batch position head d_model"], Float[Tensor, "*batch_position d_model"]] | None:
    """Compute what each head of a layer adds to the stream, and what its biases add; None if they are not known."""
    # Any: pyright sees no attributes of a module.
    attn: Any = model.blocks[layer.layer].attn
    try:
        w_o, bias = attn.W_O.float(), attn.b_O.float()
        outputs = cache[_head_point(model, layer)].float()
        by_head = einsum(outputs, w_o, "batch position head d_head, head d_head d_model -> batch position head d_model")
        norm = layer.points["attn_out"].module
        if norm is not layer.attentions["attn"].module:
            weights = norm_weights(
                norm, by_head.shape[-1], model.hf_model.dtype, f"norm behind the heads of L{layer.layer}"
            )
            written = by_head.sum(2) + bias
            scale = weights.scale(written)
            by_head = weights.at_scale(by_head, scale[:, :, None])
            bias = weights.at_scale(bias.expand_as(written), scale) + weights.bias
    except ValueError:
        return None
    return by_head, bias


def _head_point(model: HookedMLLM, layer: DecoderLayer) -> str:
    """Name of the hook point of what meets W_O."""
    gated = hook_name(layer.layer, "attn.o_in")
    return gated if gated in model.hook_dict else hook_name(layer.layer, "attn.z")


def _tolerance(tensor: Tensor) -> float:
    return max(TOLERANCE, torch.finfo(tensor.dtype).eps ** 0.5)
