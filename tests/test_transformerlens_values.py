"""Values against TransformerLens's own model of the same weights, by family; differences are shown and explained."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformer_lens import ActivationCache
from transformer_lens.model_bridge.generalized_components.attention import PerLayerGeometryError
from transformer_lens.utilities import get_act_name

from corelens import HookedMLLM
from corelens.hf.layers import AttentionModule
from tests.helpers import tiny
from tests.helpers.bridges import LEFT_TO_HUGGING_FACE, REBUILT, bridge_of

POINTS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "v", "pattern", "pre", "post")
WEIGHTS = ("W_Q", "W_K", "W_V", "W_O", "W_in", "W_gate", "W_out")
BIASES = ("b_Q", "b_K", "b_V", "b_O", "b_in", "b_out")

NOT_FOLDED = ("glm4v", "gemma4", "gemma4_unified", "muse_glimmer", "qwen3_5", "qwen3_5_moe")
"""Families whose norms TransformerLens does not fold into weights."""

NORMS_OF_HUGGING_FACE = ("gemma4", "gemma4_unified", "muse_glimmer")
"""Those among them whose norms have no `hook_scale` there, so that its cache cannot norm parts."""

REASONS = r"has no softmax attention|mixture of experts|is scaled by layer_scalar|is not known"


class Pair(NamedTuple):
    name: str
    model: HookedMLLM
    bridge: Any
    cache: ActivationCache
    theirs: ActivationCache
    text: Tensor
    """Positions of text: TransformerLens's embedding has no pictures in their places."""

    @property
    def layers(self) -> list[int]:
        """Layers that have heads."""
        return self.model.composition_layer_indices()

    def attention(self, layer: int) -> AttentionModule:
        return self.model.hf_layers[layer].attentions["attn"]

    def o_in(self, layer: int) -> Tensor:
        """Input of `W_O` by head: `z`, or the gate's output where there is one."""
        gated = f"blocks.{layer}.attn.hook_o_in" in self.model.hook_dict
        return self.cache["o_in", layer, "attn"] if gated else self.cache["z", layer]


@pytest.fixture(scope="module", params=[*REBUILT, *LEFT_TO_HUGGING_FACE])
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


@torch.no_grad()
@pytest.mark.parametrize("point", POINTS)
def test_activations(pair: Pair, point: str):
    for layer in range(pair.model.cfg.n_layers):
        name = get_act_name(point, layer)
        if name not in pair.model.hook_dict:
            with pytest.raises(ValueError, match=REASONS):
                pair.model.check_hook_name(name)
        elif name not in pair.theirs.cache_dict:
            assert pair.name.startswith("gemma4")  # which takes keys and values from another layer
        else:
            ours, theirs = pair.cache[name], pair.theirs[name]
            if point == "v":
                # In front of the norm of values, where there is one (Gemma 4).
                theirs = pair.attention(layer).norms.get("v", nn.Identity())(theirs)
            real = pair.text if point != "pattern" else pair.text[:, None].expand(ours.shape[:3])
            close(ours[real], theirs[real])


def test_what_w_o_reads_is_their_z(pair: Pair):
    for layer in pair.layers:
        close(pair.o_in(layer).flatten(2)[pair.text], pair.theirs["z", layer].flatten(2)[pair.text])


@torch.no_grad()
def test_weights(pair: Pair):
    compared: set[str] = set()
    for layer, block in enumerate(pair.model.blocks):
        for name in WEIGHTS + BIASES:
            part = "mlp" if name.endswith(("in", "out", "gate")) else "attn"
            try:
                theirs = getattr(pair.bridge.blocks[layer].get_submodule(part), name)
            except (AttributeError, PerLayerGeometryError):  # no bias, and layers of Gemma 4 with wider heads
                continue
            if part == "attn" and not pair.attention(layer).head_rows and name[2] != "O":
                with pytest.raises(ValueError, match="which rows of q_proj, o_proj of Gemma4"):
                    getattr(block.get_submodule(part), name)
            elif theirs is not None:
                ours = getattr(block.get_submodule(part), name)
                close(ours, theirs.reshape(ours.shape))
                compared.add(name)
    dense = [layer.layer for layer in pair.model.hf_layers if layer.mlp is not None]
    assert {name for name in WEIGHTS if dense or name[2] in "QKVO"} <= compared
    close(pair.model.W_U, pair.bridge.W_U)
    if len(dense) == len(pair.layers) == pair.model.cfg.n_layers and not pair.name.startswith("gemma4"):
        for name in WEIGHTS:
            close(getattr(pair.model, name), getattr(pair.bridge, name))
        assert not any(getattr(pair.model, name).any() for name in set(BIASES) - compared)


def test_embeddings_are_what_the_first_layer_reads(pair: Pair):
    """Gemma scales them and Muse Glimmer norms them; TransformerLens's `W_E` is before that."""
    ids = tiny.batch(pair.name)["input_ids"][pair.text]
    close(pair.model.W_E[ids], pair.cache["embed"][pair.text])
    theirs = torch.allclose(pair.bridge.W_E, pair.model.W_E)
    assert theirs == (not pair.name.startswith(("gemma", "muse_glimmer")))


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:W_. is that of layers")
def test_circuits(pair: Pair):
    attention = pair.attention(1)
    if attention.gated or "v" in attention.norms:
        with pytest.raises(ValueError, match=r"FactoredMatrix\(W_V, W_O\)"):
            _ = pair.model.OV[0, 0].AB
    else:
        close(pair.model.OV.AB, pair.bridge.OV.AB)
        close(pair.model.all_composition_scores("V").scores, pair.bridge.all_composition_scores("V").scores)
    if not attention.norms:
        close(pair.model.QK.AB, pair.bridge.QK.AB)
        for mode in ("Q", "K"):
            close(pair.model.all_composition_scores(mode).scores, pair.bridge.all_composition_scores(mode).scores)
        return
    # Their product leaves the gains of these norms out, with which scores are what the model computes.
    query, key = torch.randn(2, pair.model.cfg.d_model)
    hooked: Any = pair.model.blocks[1].attn  # pyright: ignore[reportAttributeAccessIssue]
    read_q, read_k = query @ hooked.W_Q[3], key @ hooked.by_query_head(hooked.W_K)[3]
    scales = [read.square().mean().sqrt() for read in (read_q, read_k)]
    score = attention.norms["q"](read_q) @ attention.norms["k"](read_k) * scales[0] * scales[1]
    assert_close(query @ pair.model.QK[pair.layers.index(1), 3].AB @ key, score, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_what_heads_write_adds_up_to_what_w_o_writes(pair: Pair):
    """Against the output of the Hugging Face module, since TransformerLens cannot split Gemma 4's layers."""
    for layer in pair.layers:
        w_o, attn = pair.attention(layer).w_o, pair.model.blocks[layer].attn  # pyright: ignore
        assert w_o is not None
        by_head = torch.stack([pair.o_in(layer)[:, :, head] @ attn.W_O[head] for head in range(len(attn.W_O))])
        close(by_head.sum(0) + attn.b_O, w_o(pair.o_in(layer).flatten(2)))
        if len(pair.layers) == pair.model.cfg.n_layers:
            close(pair.cache.stack_head_results()[layer * len(by_head) :][: len(by_head)], by_head)


STACKS: dict[str, Callable[[Any], Tensor]] = {
    "decompose_resid": lambda cache: cache.decompose_resid(incl_embeds=False),
    "decompose_resid to a layer": lambda cache: cache.decompose_resid(1, mlp_input=True, incl_embeds=False),
    "accumulated_resid": lambda cache: cache.accumulated_resid(incl_mid=True),
    "accumulated_resid, normed": lambda cache: cache.accumulated_resid(apply_ln=True),
    "stack_head_results": lambda cache: cache.stack_head_results(incl_remainder=True),
    "stack_neuron_results": lambda cache: cache.stack_neuron_results(3, incl_remainder=True),
    "projected neurons": lambda cache: cache.stack_neuron_results(2, project_output_onto=torch.ones(64, 2)),
}


def refused(pair: Pair, stack: str) -> str:
    """Reason why we have no such stack; empty if we do."""
    if ("head" in stack or "decompose" in stack) and len(pair.layers) < pair.model.cfg.n_layers:
        return "layer 0 has no softmax attention"
    if pair.name.startswith("gemma4") and ("decompose" in stack or stack == "accumulated_resid"):
        return "the residual stream in Gemma4.* is scaled by layer_scalar"
    if "neuron" in stack and any(layer.mlp is None for layer in pair.model.hf_layers[:2]):
        return "is a mixture of experts"
    return ""


@pytest.mark.parametrize("stack", STACKS)
def test_stacks(pair: Pair, stack: str):
    if reason := refused(pair, stack):
        with pytest.raises((KeyError, ValueError), match=reason):
            STACKS[stack](pair.cache)
    elif pair.name.startswith("gemma4") and "head" in stack:
        with pytest.raises(PerLayerGeometryError):
            STACKS[stack](pair.theirs)
    else:
        close(STACKS[stack](pair.cache)[:, pair.text], STACKS[stack](pair.theirs)[:, pair.text])


def test_embeddings_in_decompositions(pair: Pair):
    """At text: their embedding has placeholders where pictures are, and in Emu 3 it is that of the pictures alone."""
    if pair.name == "emu3":
        assert pair.theirs["embed"].ndim == 2
    elif not refused(pair, "decompose_resid"):
        ours, theirs = (cache.decompose_resid()[0] for cache in (pair.cache, pair.theirs))
        close(ours[pair.text], theirs[pair.text])


def test_full_decompositions_are_refused_where_they_would_not_add_up(pair: Pair):
    reason = refused(pair, "decompose_resid") or refused(pair, "stack_neuron_results")
    if reason or pair.attention(1).module is not pair.model.hf_layers[1].points["attn_out"].module:
        with pytest.raises(ValueError, match="do not add up to the stream"):
            pair.cache.get_full_resid_decomposition()
        return
    if pair.name != "emu3":
        close(*(cache.get_full_resid_decomposition()[:, pair.text] for cache in (pair.cache, pair.theirs)))
    ours = pair.cache.get_full_resid_decomposition()[:, pair.text].sum(0)
    assert_close(ours, pair.cache["resid_post", -1][pair.text], atol=1e-4, rtol=1e-4)


def test_norms_of_parts_are_theirs_with_gains_folded_in(pair: Pair):
    """TransformerLens folds a norm's gain into the weights behind it; here the model stays, and parts get the gain."""
    parts = STACKS["decompose_resid"]
    if refused(pair, "decompose_resid"):
        parts = lambda cache: cache.accumulated_resid()  # noqa: E731
    ours = pair.cache.logit_attrs(parts(pair.cache), 5)
    with pytest.warns(UserWarning, match="does not support fold_ln") if pair.name in NOT_FOLDED else nullcontext():
        pair.bridge.process_weights(center_writing_weights=False, center_unembed=False, fold_value_biases=False)
    if pair.name not in NORMS_OF_HUGGING_FACE:
        for name in ("ln_final", "blocks.1.ln1", "blocks.1.ln2"):
            close(pair.cache[f"{name}.hook_scale"][pair.text], pair.theirs[f"{name}.hook_scale"][pair.text])
        theirs = pair.theirs.logit_attrs(parts(pair.theirs), 5)
        if pair.name in NOT_FOLDED:
            gain = pair.model.ln_final.weights.gain  # pyright: ignore
            theirs = (pair.theirs.apply_ln_to_stack(parts(pair.theirs)) * gain) @ pair.model.W_U[:, 5]
        close(ours[:, pair.text], theirs[:, pair.text])
    logits = pair.model.unembed(pair.model.ln_final(pair.cache["resid_post", -1]))[..., 5]  # pyright: ignore
    if refused(pair, "decompose_resid"):
        close(ours[-1], logits)
    else:
        close(pair.cache.logit_attrs(pair.cache.decompose_resid(), 5)[:, pair.text].sum(0), logits[pair.text])
