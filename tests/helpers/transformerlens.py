"""The table of docs/transformerlens.md: every public member of TransformerLens 4.3 that a user of models meets.

`members()` asks the installed TransformerLens; a member that is in no row fails tests/test_transformerlens.py, as does
a row without a test of its value or of its refusal.
"""

import functools
import inspect
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args

from torch import nn
from transformer_lens import (
    ActivationCache,
    FactoredMatrix,
    HookedRootModule,
    SVDInterpreter,
    evals,
    head_detector,
    patching,
    utilities,
)
from transformer_lens.model_bridge import TransformerBridge

State = Literal["works", "more", "refused", "no place"]

STATES: dict[State, str] = {
    "works": "works, and gives TransformerLens's values",
    "more": "works, and means more where there are pictures, or other layers than TransformerLens's",
    "refused": "raises an error that names the reason and the way out",
    "no place": "belongs to loading, conversion or text data sets",
}


class Row(NamedTuple):
    state: State
    note: str


SAME = Row("works", "")
FOLDED = Row("refused", "weights stay the model's own; the cache folds a norm's gain into what it returns")
SPLIT = Row("refused", "a Hugging Face layer reads its input once for all heads: `cl.path_patch`")
LOADS = Row("no place", "`HookedMLLM.from_pretrained`")
HYBRID = "layers that have none are left out, with a warning; an index reads one layer alone"
NO_BIAS = "as `W_Q`; zero where a projection has no bias, and TransformerLens raises"
TEXT = "of plain text, without the chat template, or of prepared inputs"

MODEL: dict[str, Row] = {
    "OV": Row("more", "refused where a gate or a norm stands between `W_V` and `W_O` (Qwen3.5, Gemma 4)"),
    "OV_for_attn_layers": Row("more", "as `OV`"),
    "QK": Row(
        "more", "gains of norms over queries and keys (Qwen3, Gemma 3) are folded in, which TransformerLens omits"
    ),
    "QK_for_attn_layers": Row("more", "as `QK`"),
    "W_E": Row("more", "scaled where the model scales it (Gemma), which TransformerLens omits"),
    "W_E_pos": Row("refused", "positions are rotations, biases, or part of `hook_embed`; `W_E` is there"),
    "W_K": Row("works", "[layer kv_head d_model d_qk]: key-value heads are not repeated"),
    "W_O": Row("works", HYBRID),
    "W_Q": Row("works", HYBRID),
    "W_U": SAME,
    "W_V": Row("works", "as `W_K`"),
    "W_gate": Row("works", "None where MLPs have no gate"),
    "W_in": Row("works", "mixture-of-experts layers are left out, with a warning; see `mlp.hook_expert_weights`"),
    "W_out": Row("works", "as `W_in`"),
    "W_pos": Row("refused", "positions are rotations, biases, or part of `hook_embed`"),
    "accumulated_bias": SAME,
    "add_caching_hooks": SAME,
    "add_hook": Row("works", "names that do not exist raise"),
    "add_perma_hook": SAME,
    "all_composition_scores": Row("more", "as `OV` and `QK`; gains of layers' norms are not folded in, as there"),
    "all_head_labels": Row("more", "heads that exist: hybrid models have layers without"),
    "attn_head_labels": SAME,
    **{name: Row("works", NO_BIAS) for name in ("b_K", "b_O", "b_Q", "b_V", "b_in", "b_out")},
    "b_U": Row("works", "one zero where the unembedding has no bias"),
    "block_hooks": SAME,
    "block_submodules": SAME,
    "blocks_with": SAME,
    "boot_native": LOADS,
    "boot_tl_legacy": LOADS,
    "boot_transformers": LOADS,
    "cache_all": SAME,
    "cache_some": SAME,
    "check_and_add_hook": SAME,
    "check_hooks_to_add": Row("works", "checks nothing, as in TransformerLens: `add_hook` checks names"),
    "check_model_support": Row("no place", "`corelens models NAME`"),
    "clear_contexts": SAME,
    "clear_hook_registry": Row("no place", "hook points are modules; `reset_hooks` removes hooks"),
    "close": Row("no place", "the model is in this process"),
    "composition_layer_indices": SAME,
    "diffusion_generate": Row("refused", "these decoders predict one token after the other: `generate`"),
    "enable_compatibility_mode": FOLDED,
    "encoder_output": Row("refused", "encoders run in each pass: hooks on `vision.blocks`"),
    "generate": Row("more", "takes prepared inputs, and is Hugging Face's: greedy by default; hooks act in each step"),
    "generate_stream": Row("refused", "`model.generate(inputs, streamer=transformers.TextStreamer(model.tokenizer))`"),
    "get_caching_hooks": SAME,
    "get_hook_point": Row("refused", "`model.hook_dict[name]`"),
    "get_params": Row("works", "as `tl_parameters`"),
    "get_token_position": Row("more", "in prompts with pictures; the space before a word may be left out"),
    "hf_generate": Row("refused", "`generate` is Hugging Face's already"),
    "hook_aliases": Row("refused", "each hook point has one name: `hook_dict`"),
    "hook_dict": Row(
        "more",
        "`hook_q` and `hook_k` are normed and rotated, as they meet; `mlp.hook_expert_weights` has a batch axis; "
        "vision tower: `vision.blocks`",
    ),
    "hook_points": SAME,
    "hooks": Row("more", "`queries` selects rows of attention"),
    "init_weights": Row("refused", "a trained model is not initialised again"),
    "input_to_embed": Row("refused", "`model(inputs, stop_at_layer=0)` is what enters the first layer"),
    "layer_types": Row("works", ""),
    "list_hooks": SAME,
    "list_supported_models": Row("no place", "`corelens models`"),
    "loss_fn": Row("more", "counts placeholders of pictures as words to predict"),
    "mod_dict": SAME,
    "mps": Row("refused", '`model.to("mps")`'),
    "n_params_total": Row("works", "with the vision tower"),
    "original_model": Row("refused", "`model.hf_model`"),
    "predict_next_sentence": Row("refused", "no image-text-to-text model has a head for it"),
    "prepare_multimodal_inputs": Row("refused", "`model.prepare(picture, question)`"),
    "process_weights": FOLDED,
    "remove_all_hook_fns": SAME,
    "reset_hooks": SAME,
    "run_with_cache": Row("more", "`queries` selects rows of attention; token ids are a text without pictures"),
    "run_with_hooks": Row("more", "as `run_with_cache`"),
    "set_use_attn_in": SPLIT,
    "set_use_attn_result": Row("refused", "`cache.stack_head_results()` computes them from `z`"),
    "set_use_hook_mlp_in": Row("refused", "what an MLP reads is `hook_resid_mid`, before its norm"),
    "set_use_split_qkv_input": SPLIT,
    "setup": SAME,
    "stack_params_for": SAME,
    "tl_named_parameters": SAME,
    "tl_parameters": Row("works", "a mapping that reads each weight when it is looked up"),
    "to_sentence_pair_tokens": Row("refused", "no image-text-to-text model reads pairs of sentences: `prepare`"),
    "to_single_str_token": SAME,
    "to_single_token": SAME,
    "to_str_tokens": Row("more", "visual tokens are `image 3,5`: row and column in the picture's grid"),
    "to_string": Row("more", TEXT),
    "to_tokens": Row("more", TEXT),
    "tokenizer": Row("works", "the processor's"),
    "tokens_to_residual_directions": SAME,
}
"""Members of `TransformerBridge` and `HookedRootModule`."""

GAIN = "times the norm's gain, as TransformerLens has it after it has folded the gain into weights"
NO_STATE = Row(
    "refused", "Hugging Face's recurrent layers show no state; `cache['resid_mid', layer]` is what they leave"
)

CACHE: dict[str, Row] = {
    "accumulated_resid": Row("more", f"with `apply_ln`: {GAIN}"),
    "apply_ln_to_stack": Row("more", GAIN),
    "apply_slice_to_batch_dim": Row("works", "token maps are sliced apart: `inputs.tokens[1]`"),
    "compute_head_results": Row("works", "behind a gate, where there is one; refused where layers have no heads"),
    "compute_ssm_effective_attention": NO_STATE,
    "compute_ssm_state": NO_STATE,
    "decompose_resid": Row(
        "more",
        "`embed` is what enters the first layer, pictures in their places; what Qwen3-VL adds to visual tokens between "
        "layers is in no part: `cache['resid_pre', l + 1] - cache['resid_post', l]`",
    ),
    "get_full_resid_decomposition": Row(
        "more", "adds up to the stream as `decompose_resid` does; refused behind norms (Gemma 3) and for experts"
    ),
    "get_neuron_results": Row("works", "before any norm behind the MLP; refused for mixtures of experts"),
    "items": SAME,
    "keys": SAME,
    "logit_attrs": Row("more", f"add up to the logits: {GAIN}. `logit_scale` and soft caps come after"),
    "logit_lens": Row("works", "`analysis.logit_lens` also checks itself against the logits"),
    "remove_batch_dim": SAME,
    "ssm_layers": NO_STATE,
    "stack_activation": SAME,
    "stack_head_results": Row("works", "before any norm behind `W_O` (Gemma 3); refused where layers have no heads"),
    "stack_neuron_results": Row("works", "as `get_neuron_results`"),
    "to": SAME,
    "toggle_autodiff": Row("works", "switches gradients of all of torch"),
    "values": SAME,
}
"""Members of `ActivationCache`."""

FACTORED: dict[str, Row] = {
    name: SAME
    for name in (
        *("AB", "BA", "S", "T", "U", "V", "Vh", "collapse_l", "collapse_r", "eigenvalues", "get_corner", "make_even"),
        *("ndim", "norm", "pair", "svd", "unsqueeze"),
    )
}
"""Members of `FactoredMatrix`, which `QK` and `OV` are."""

BY_NUMBER = Row("more", "positions are numbers: prompts must have the same tokens in the same places, or `cl.patch`")
NEEDS_SPLIT = Row("refused", "needs inputs split by head: `cl.path_patch`")
TEXT_DATA = Row("no place", "evaluates text models, on text that it downloads or brings: `cl.evaluate`")

FUNCTIONS: dict[str, Row] = {
    "SVDInterpreter.get_singular_vectors": Row("works", "`W_in` is times the gain of its norm, as there"),
    "patching.generic_activation_patch": BY_NUMBER,
    **{
        f"patching.get_act_patch_{name}": BY_NUMBER
        for name in (
            *("resid_pre", "resid_mid", "attn_out", "mlp_out", "block_every"),
            *(f"attn_head_{part}_{where}" for part in ("out", "q", "k", "v") for where in ("all_pos", "by_pos")),
            *("attn_head_pattern_all_pos", "attn_head_pattern_by_pos", "attn_head_pattern_dest_src_pos"),
            *("attn_head_all_pos_every", "attn_head_by_pos_every"),
        )
    },
    "patching.get_act_patch_direct_path": NEEDS_SPLIT,
    "patching.get_act_patch_direct_path_all_sources": NEEDS_SPLIT,
    "head_detector.detect_head": Row(
        "more", "of a text; of a prompt with pictures with its cache, `detect_head(model, inputs, ..., cache=cache)`"
    ),
    **{f"evals.{name}": TEXT_DATA for name in ("sanity_check", "evaluate_on_dataset", "induction_loss", "evaluate")},
    **{f"evals.{name}": TEXT_DATA for name in ("ioi_eval", "mmlu_eval")},
    "utilities.test_prompt": Row("works", "of a text"),
    "utilities.move_to_and_update_config": SAME,
}
"""Functions that take a model or a cache."""

TABLES = {"a model": MODEL, "a cache": CACHE, "a FactoredMatrix": FACTORED, "functions": FUNCTIONS}


def _public(kind: type, base: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_") and name not in dir(base)}


def _functions() -> Iterator[str]:
    for module in (patching, head_detector, evals, utilities):
        for name, value in vars(module).items():
            if name.startswith("_") or not (inspect.isfunction(value) or isinstance(value, functools.partial)):
                continue
            if module is utilities or isinstance(value, functools.partial) or value.__module__ == module.__name__:
                parameters = inspect.signature(value).parameters
                if {"model", "cache"} & parameters.keys():
                    yield f"{module.__name__.rpartition('.')[2]}.{name}"
    yield from (f"SVDInterpreter.{name}" for name in _public(SVDInterpreter, object))


def members() -> dict[str, set[str]]:
    """Public members of the installed TransformerLens, by table."""
    model = _public(TransformerBridge, nn.Module) | _public(HookedRootModule, nn.Module)
    cache, factored = _public(ActivationCache, object), _public(FactoredMatrix, object)
    return dict(zip(TABLES, (model, cache, factored, set(_functions())), strict=True))


def table() -> list[list[Any]]:
    """Rows of docs/transformerlens.md."""
    rows = [[f"`{name}`", row.state, row.note] for kind in TABLES.values() for name, row in kind.items()]
    return [["name", "state", "note"], *rows]


def counts() -> list[list[Any]]:
    """Number of members in each state."""
    rows = [
        [state, STATES[state], *(sum(row.state == state for row in kind.values()) for kind in TABLES.values())]
        for state in get_args(State)
    ]
    return [["state", "meaning", *TABLES], *rows]
