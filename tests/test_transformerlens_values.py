"""Values against TransformerLens's own model of the same weights, by family; differences are shown and explained."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformer_lens import ActivationCache

from corelens import HookedMLLM
from tests.helpers import tiny
from tests.helpers.bridges import bridge_of

FAMILIES = ("llava", "gemma3", "qwen2_5_vl", "qwen3_vl", "idefics3", "mistral3", "muse_glimmer")
QK_NORMS = ("gemma3", "qwen3_vl", "muse_glimmer")
NORMS_BEHIND = ("gemma3", "muse_glimmer")
"""Families with norms between what heads and neurons write and the stream."""

POINTS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "v", "pattern", "pre", "post")
WEIGHTS = ("W_Q", "W_K", "W_V", "W_O", "W_in", "W_gate", "W_out", "W_U")
BIASES = ("b_Q", "b_K", "b_V", "b_O", "b_in", "b_out")


class Pair(NamedTuple):
    name: str
    model: HookedMLLM
    bridge: Any
    cache: ActivationCache
    theirs: ActivationCache
    text: Tensor
    """Positions of text: TransformerLens's embedding has no pictures in their places."""


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, toy_model: HookedMLLM) -> Pair:
    name, inputs = request.param, tiny.batch(request.param)
    bridge = bridge_of(name, toy_model.tokenizer)
    model, others = HookedMLLM(tiny.build(name)), {k: v for k, v in inputs.items() if k != "input_ids"}
    with torch.no_grad():
        _, theirs = bridge.run_with_cache(inputs["input_ids"], **others)
        _, cache = model.run_with_cache(inputs)
    text = inputs["attention_mask"].bool() & (inputs["input_ids"] != tiny.IMAGE)
    return Pair(name, model, bridge, cache, theirs, text)


def close(ours: Any, theirs: Tensor) -> None:
    """The same within 1e-5 of the largest."""
    largest = max(1.0, float(theirs.detach().abs().max()))
    assert_close(
        torch.as_tensor(ours.tensor() if hasattr(ours, "layers") else ours), theirs, atol=1e-5 * largest, rtol=0
    )


@pytest.mark.parametrize("point", POINTS)
def test_activations(pair: Pair, point: str):
    for layer in range(pair.model.cfg.n_layers):
        ours, theirs = pair.cache[point, layer], pair.theirs[point, layer]
        real = pair.text if point != "pattern" else pair.text[:, None].expand(ours.shape[:3])
        close(ours[real], theirs[real])


def test_what_w_o_reads_is_their_z(pair: Pair):
    for layer in range(pair.model.cfg.n_layers):
        gated = "hook_o_in" in pair.model.blocks[layer].attn._modules  # pyright: ignore[reportOperatorIssue, reportAttributeAccessIssue]
        ours = pair.cache["o_in", layer, "attn"] if gated else pair.cache["z", layer]
        close(ours.flatten(2)[pair.text], pair.theirs["z", layer].flatten(2)[pair.text])


def test_weights(pair: Pair):
    for name in WEIGHTS:
        close(getattr(pair.model, name), getattr(pair.bridge, name))
    for name in BIASES:
        try:
            theirs = getattr(pair.bridge, name)
        except AttributeError:  # where there is no bias
            assert not getattr(pair.model, name).any()
        else:
            close(getattr(pair.model, name), theirs.reshape(getattr(pair.model, name).shape))


def test_embeddings_are_what_the_first_layer_reads(pair: Pair):
    """Gemma 3 scales them and Muse Glimmer norms them; TransformerLens's `W_E` is before that."""
    ids = tiny.batch(pair.name)["input_ids"][pair.text]
    close(pair.model.W_E[ids], pair.cache["embed"][pair.text])
    theirs = torch.allclose(pair.bridge.W_E, pair.model.W_E)
    assert theirs == (pair.name not in ("gemma3", "muse_glimmer"))


def test_circuits(pair: Pair):
    if pair.name == "muse_glimmer":
        with pytest.raises(ValueError, match=r"FactoredMatrix\(W_V, W_O\)"):
            _ = pair.model.OV
    else:
        close(pair.model.OV.AB, pair.bridge.OV.AB)
        close(pair.model.all_composition_scores("V").scores, pair.bridge.all_composition_scores("V").scores)
    attention: Any = pair.model.blocks[1].attn  # pyright: ignore[reportAttributeAccessIssue]
    norms = attention.hf_attention.norms
    assert set(norms) == ({"q", "k"} if pair.name in QK_NORMS else set())
    if not norms:
        close(pair.model.QK.AB, pair.bridge.QK.AB)
        for mode in ("Q", "K"):
            close(pair.model.all_composition_scores(mode).scores, pair.bridge.all_composition_scores(mode).scores)
        return
    # Their product leaves the gains of these norms out, with which scores are what the model computes.
    query, key = torch.randn(2, pair.model.cfg.d_model)
    read_q, read_k = query @ attention.W_Q[3], key @ attention.W_K[1]
    scales = [read.square().mean().sqrt() for read in (read_q, read_k)]
    score = norms["q"](read_q) @ norms["k"](read_k) * scales[0] * scales[1]
    assert_close(query @ pair.model.QK[1, 3].AB @ key, score, atol=1e-3, rtol=1e-3)


STACKS: dict[str, Callable[[Any], Tensor]] = {
    "decompose_resid": lambda cache: cache.decompose_resid(),
    "decompose_resid to a layer": lambda cache: cache.decompose_resid(1, mlp_input=True),
    "accumulated_resid": lambda cache: cache.accumulated_resid(incl_mid=True),
    "accumulated_resid, normed": lambda cache: cache.accumulated_resid(apply_ln=True),
    "stack_head_results": lambda cache: cache.stack_head_results(incl_remainder=True),
    "stack_neuron_results": lambda cache: cache.stack_neuron_results(3, incl_remainder=True),
    "projected neurons": lambda cache: cache.stack_neuron_results(2, project_output_onto=torch.ones(64, 2)),
}


@pytest.mark.parametrize("stack", STACKS)
def test_stacks(pair: Pair, stack: str):
    close(STACKS[stack](pair.cache)[:, pair.text], STACKS[stack](pair.theirs)[:, pair.text])


def test_full_decompositions_are_refused_where_they_would_not_add_up(pair: Pair):
    if pair.name in NORMS_BEHIND:
        with pytest.raises(ValueError, match="do not add up to the stream"):
            pair.cache.get_full_resid_decomposition()
        return
    close(*(cache.get_full_resid_decomposition()[:, pair.text] for cache in (pair.cache, pair.theirs)))
    ours = pair.cache.get_full_resid_decomposition()[:, pair.text].sum(0)
    assert_close(ours, pair.cache["resid_post", -1][pair.text], atol=1e-4, rtol=1e-4)


def test_norms_of_parts_are_theirs_with_gains_folded_in(pair: Pair):
    """TransformerLens folds a norm's gain into the weights behind it; here the model stays, and parts get the gain."""
    fold = partial(
        pair.bridge.process_weights, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    if pair.name == "muse_glimmer":
        with pytest.warns(UserWarning, match="does not support fold_ln"):
            fold()
        return
    fold()
    for name in ("ln_final", "blocks.1.ln1", "blocks.1.ln2"):
        close(pair.cache[f"{name}.hook_scale"][pair.text], pair.theirs[f"{name}.hook_scale"][pair.text])
    ours = pair.cache.logit_attrs(pair.cache.decompose_resid(), 5)[:, pair.text]
    theirs = pair.theirs.logit_attrs(pair.theirs.decompose_resid(), 5)[:, pair.text]
    assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    logits = pair.model.unembed(pair.model.ln_final(pair.cache["resid_post", -1]))[..., 5]  # pyright: ignore
    assert_close(ours.sum(0), logits[pair.text], atol=1e-4, rtol=1e-4)
