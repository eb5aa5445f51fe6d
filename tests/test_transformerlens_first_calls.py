"""The calls that users of TransformerLens make first, on a shipped model and a prompt with a picture.

Each line is run as it stands here, and what it returns is compared with what it means there.
"""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformer_lens import FactoredMatrix, SVDInterpreter, head_detector, patching, utilities

import corelens as cl

LAYERS, HEADS, KV_HEADS, WIDTH, D_HEAD, NEURONS, WORDS, POSITIONS, IMAGE = 6, 16, 8, 128, 16, 384, 72, 77, 64


class Names(dict[str, Any]):
    """Names that the lines use: the model, its inputs, and what earlier lines assigned."""

    __getattr__ = dict.__getitem__


@pytest.fixture(scope="module")
def names() -> Names:
    model = cl.HookedMLLM.from_pretrained("corelens/toy-worlds")
    clean, corrupted = cl.toy.scenes(2, seed=0)
    tokens, other = (model.prepare(sample.images[0], clean.question) for sample in (clean, corrupted))
    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens)
    return Names(
        **{"model": model, "tokens": tokens, "corrupted_tokens": other, "logits": logits, "cache": cache},
        **{"answer": clean.answer, "wrong": corrupted.answer, "utils": utilities, "patching": patching},
        **{"head_detector": head_detector, "FactoredMatrix": FactoredMatrix, "SVDInterpreter": SVDInterpreter},
        zero=lambda activation, hook: 0 * activation,
        is_pattern=lambda name: name.endswith("hook_pattern") and name.startswith("blocks"),
        metric=lambda logits: logits[0, -1, model.to_single_token(clean.answer)],
        parts=cache.decompose_resid(layer=-1, pos_slice=-1),
        torch=torch,
    )


def shape(*expected: int) -> Callable[[Any, Names], object]:
    return lambda found, names: tuple(found.shape) == expected


def same(found: Any, expected: Any) -> bool:
    return torch.allclose(torch.as_tensor(found).float(), torch.as_tensor(expected).float(), atol=1e-4, rtol=1e-4)


def mean_loss(names: Names) -> torch.Tensor:
    words = names.tokens["input_ids"][0, 1:]
    return -names.logits[0, :-1].log_softmax(-1).gather(-1, words[:, None]).mean()


LINES: dict[str, Callable[[Any, Names], object]] = {
    # passes
    "model(tokens)": shape(1, POSITIONS, WORDS),
    'model(tokens, return_type="loss")': lambda found, n: same(found, mean_loss(n)),
    'model(tokens, return_type="both")': lambda found, n: same(found[0], n.logits) and same(found[1], mean_loss(n)),
    "model(tokens, return_type=None)": lambda found, n: found is None,
    "model(tokens, stop_at_layer=2)": lambda found, n: same(found, n.cache["resid_pre", 2]),
    "model.loss_fn(logits, tokens, per_token=True).mean()": lambda found, n: same(found, mean_loss(n)),
    "model.generate(tokens, max_new_tokens=2)": lambda found, n: same(found[0, POSITIONS], n.logits[0, -1].argmax()),
    # caches
    "model.run_with_cache(tokens, names_filter=is_pattern)[1]": lambda found, n: (
        len(found) == LAYERS and same(found["pattern", 1], n.cache["pattern", 1])
    ),
    'model.run_with_cache(tokens, names_filter=["blocks.0.hook_resid_post"])[1]': lambda found, n: (
        [*found] == ["blocks.0.hook_resid_post"]
    ),
    'model.run_with_cache(tokens, remove_batch_dim=True)[1]["pattern", 0]': shape(HEADS, POSITIONS, POSITIONS),
    'cache["pattern", 2].sum(-1)': lambda found, n: same(found, torch.ones(1, HEADS, POSITIONS)),
    'cache["attn", 2]': lambda found, n: same(found, n.cache["blocks.2.attn.hook_pattern"]),
    'cache[utils.get_act_name("resid_post", 3)]': lambda found, n: same(found, n.cache["resid_pre", 4]),
    'cache["post", 1]': shape(1, POSITIONS, NEURONS),
    'cache.stack_activation("z")': shape(LAYERS, 1, POSITIONS, HEADS, D_HEAD),
    "cache.decompose_resid(return_labels=True)": lambda found, n: (
        found[1][:3] == ["embed", "0_attn_out", "0_mlp_out"]
        and same(found[0].sum(0)[~n.tokens.tokens.visual], n.cache["resid_post", -1][~n.tokens.tokens.visual])
    ),
    "cache.accumulated_resid(layer=-1, incl_mid=True, apply_ln=True, pos_slice=-1)[-1] @ model.W_U": lambda found, n: (
        same(found, n.logits[:, -1])
    ),
    "cache.stack_head_results(layer=-1, pos_slice=-1, return_labels=True)": lambda found, n: (
        found[1][17] == "L1H1" and same(found[0][17, 0], n.cache["z", 1][0, -1, 1] @ n.model.W_O[1, 1])
    ),
    "cache.logit_attrs(parts, answer, pos_slice=-1).sum(0)": lambda found, n: same(found, n.metric(n.logits)),
    "cache.logit_attrs(parts, answer, wrong, pos_slice=-1).sum(0)": lambda found, n: same(
        found, n.metric(n.logits) - n.logits[0, -1, n.model.to_single_token(n.wrong)]
    ),
    "cache.get_full_resid_decomposition(2, expand_neurons=False, return_labels=True)[1][-2:]": lambda found, n: (
        found == ["embed", "bias"]
    ),
    # hooks
    'model.run_with_hooks(tokens, fwd_hooks=[("blocks.5.hook_resid_post", zero)]).abs().max()': lambda found, n: same(
        found, 0
    ),
    'model.add_hook("blocks.5.hook_resid_post", zero), model(tokens), model.reset_hooks(), model(tokens)': (
        lambda found, n: not found[1].any() and same(found[3], n.logits)
    ),
    # words
    "model.to_tokens('which digit is red ?')": shape(1, 5),
    "model.to_str_tokens(tokens)": lambda found, n: (
        len(found) == POSITIONS and [word for word in found if word.startswith("image")][9] == "image 1,1"
    ),
    "model.to_string(model.to_tokens('which digit is')[0])": lambda found, n: found == "which digit is",
    "model.to_single_token(answer)": lambda found, n: n.model.to_string([found]) == n.answer,
    "model.get_token_position('is', tokens)": lambda found, n: n.model.to_str_tokens(n.tokens)[found] == "is",
    "model.tokens_to_residual_directions(answer)": lambda found, n: same(
        found, n.model.unembed.weight[n.model.to_single_token(n.answer)]
    ),
    # weights
    "model.W_Q[2, 3]": lambda found, n: same(n.model.blocks[2].attn.W_Q[3], found),
    "model.W_E @ model.OV[2, 3] @ model.W_U": shape(WORDS, WORDS),
    "model.QK.eigenvalues": shape(LAYERS, HEADS, D_HEAD),
    "FactoredMatrix(model.W_V[2, 0], model.W_O[2, 0]).AB": lambda found, n: same(found, n.model.OV[2, 0].AB),
    "model.all_composition_scores('K')": shape(LAYERS, HEADS, LAYERS, HEADS),
    "model.W_in.shape, model.W_out.shape, model.W_gate.shape": lambda found, n: (
        found == ((LAYERS, WIDTH, NEURONS), (LAYERS, NEURONS, WIDTH), (LAYERS, WIDTH, NEURONS))
    ),
    "model.ln_final.w": shape(WIDTH),
    "len(model.state_dict()) == len([*model.parameters()]) > 0": lambda found, n: found,
    "model.all_head_labels[17]": lambda found, n: found == "L1H1",
    "model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_model, model.cfg.d_head, model.cfg.d_mlp, model.cfg.d_vocab": (
        lambda found, n: found == (LAYERS, HEADS, WIDTH, D_HEAD, NEURONS, WORDS)
    ),
    # tools
    "patching.get_act_patch_attn_head_out_all_pos(model, corrupted_tokens, cache, metric)": shape(LAYERS, HEADS),
    "patching.get_act_patch_resid_pre(model, corrupted_tokens, cache, metric)[0, :].max()": lambda found, n: (
        found > n.metric(n.model(n.corrupted_tokens))
    ),
    "head_detector.detect_head(model, 'which digit is red ?', 'previous_token_head')": shape(LAYERS, HEADS),
    "SVDInterpreter(model).get_singular_vectors('OV', 2, num_vectors=3, head_index=3)": shape(WORDS, 1, 3),
}
"""Lines of TransformerLens, and what they return."""

REFUSED = {
    "model.run_with_cache('which digit is red ?')": r"model\.prepare\(pictures, question\).*model\.to_tokens\(text\)",
    "model(tokens, return_type='loss', loss_per_token=True)": r"model\.loss_fn\(logits, inputs, per_token=True\)",
    "model.run_with_cache(cache['resid_pre', 2], start_at_layer=2)": r"a hook on blocks\.LAYER\.hook_resid_pre",
    "model(tokens, start_at_layer=2)": r"a hook on blocks\.LAYER\.hook_resid_pre",
    "model.run_with_cache(tokens, return_cache_object=False)": r"cache\.cache_dict",
    "model.generate(tokens, max_new_tokens=2, verbose=False)": "it prints nothing",
    "model.generate(tokens, max_new_tokens=2, return_type='str')": r"model\.answer\(inputs\)",
    "model.generate_stream(tokens)": r"transformers\.TextStreamer",
    "model.set_use_attn_result(True)": r"cache\.stack_head_results\(\)",
    "model.embed.W_E": r"its matrix is W_E",
    "model.W_pos": r"positions of these decoders are rotations",
    "model.cfg.use_attn_result": r"model\.hf_model\.config",
    "cache['pos_embed']": r"positions of these decoders are rotations",
    "cache['normalized', 0, 'ln1']": r"model\.blocks\[layer\]\.ln1\(cache\['resid_pre', layer\]\)",
}
"""Lines that raise an error, and the way out that it names."""


@pytest.mark.parametrize("line", LINES)
def test_first_calls_mean_what_they_mean_in_transformerlens(names: Names, line: str):
    with torch.no_grad():
        assert LINES[line](eval(line, {**names}), names)


@pytest.mark.parametrize("line", REFUSED)
def test_refused_calls_name_the_way_out(names: Names, line: str):
    with pytest.raises((TypeError, AttributeError, KeyError)) as error:
        eval(line, {**names})
    assert re.search(REFUSED[line], str(error.value))


def test_hooks_act_in_their_block(names: Names):
    with torch.no_grad(), names.model.hooks(fwd_hooks=[("blocks.5.hook_resid_post", names.zero)]):
        assert not names.model(names.tokens).any()
