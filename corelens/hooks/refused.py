"""Names of TransformerLens that a HookedMLLM does not have, and why."""

from typing import Any

from torch import nn

from corelens.errors import docs_link

SPLIT_INPUTS = "a Hugging Face layer reads its input once for all heads: cl.path_patch patches what single heads read"
FOLDED = "weights stay the model's own; the cache folds a norm's gain into what it returns where a result needs it"
NO_POSITION_TABLE = "positions of these decoders are rotations, biases, or part of hook_embed"

REFUSED = {
    "W_pos": NO_POSITION_TABLE,
    "W_E_pos": f"{NO_POSITION_TABLE}; W_E is there",
    "enable_compatibility_mode": FOLDED,
    "process_weights": FOLDED,
    "init_weights": "a trained model is not initialised again; build one from its configuration",
    "set_use_attn_in": SPLIT_INPUTS,
    "set_use_split_qkv_input": SPLIT_INPUTS,
    "set_use_hook_mlp_in": "what an MLP reads is hook_resid_mid, before its norm",
    "set_use_attn_result": "results of all heads take much memory: cache.stack_head_results() computes them from z",
    "generate_stream": "model.generate(inputs, streamer=transformers.TextStreamer(model.tokenizer)) prints as it goes",
    "hf_generate": "generate is Hugging Face's already",
    "diffusion_generate": "decoders of image-text-to-text models predict one token after the other: see generate",
    "encoder_output": "encoders run in each pass, with the pictures: see hooks on vision.blocks",
    "input_to_embed": "model(inputs, stop_at_layer=0) returns what enters the first layer, pictures in their places",
    "predict_next_sentence": "no image-text-to-text model has a head for it",
    "to_sentence_pair_tokens": "no image-text-to-text model reads pairs of sentences: see prepare",
    "prepare_multimodal_inputs": "model.prepare(picture, question) makes inputs and the map of their positions",
    "original_model": "the wrapped model is model.hf_model",
    "mps": 'move it with model.to("mps")',
    "hook_aliases": "each hook point has one name: see hook_dict",
    "embed": "its matrix is W_E, and what enters the first layer, pictures in their places, hook_embed",
    "pos_embed": NO_POSITION_TABLE,
    "get_hook_point": "look it up by its name: model.hook_dict[name]",
}
"""Reason and way out of each name that would mean nothing, or something else, on a Hugging Face model with pictures."""

MEET = "hook_q and hook_k are normed and rotated already, as they meet"

REFUSED_POINTS = {
    "hook_rot_q": MEET,
    "hook_rot_k": MEET,
    "hook_q_normed": MEET,
    "hook_k_normed": MEET,
    **dict.fromkeys(("hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input"), SPLIT_INPUTS),
    "hook_mlp_in": REFUSED["set_use_hook_mlp_in"],
    "hook_result": REFUSED["set_use_attn_result"],
    "hook_normalized": "call the norm: model.blocks[layer].ln1(cache['resid_pre', layer]), or model.ln_final",
    "hook_pos_embed": NO_POSITION_TABLE,
}
"""Reason and way out of TransformerLens's names of hook points that a model does not have."""


class RefusedNames(nn.Module):
    """Refuse TransformerLens's names that a model does not have, with the reason and the way out."""

    def __getattr__(self, name: str) -> Any:
        if name in REFUSED:
            raise AttributeError(f"HookedMLLM has no {name}: {REFUSED[name]}. {docs_link('no-member')}")
        return super().__getattr__(name)
