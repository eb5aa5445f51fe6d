"""TransformerLens's own tools on a HookedMLLM: every line of docs/transformerlens.md."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from einops import einsum
from torch import Tensor
from torch.testing import assert_close
from transformer_lens import ActivationCache, head_detector, patching, utilities
from transformer_lens.tools import analysis

from corelens import Head, HookedMLLM, patch, toy
from corelens.inputs.prepare import PreparedInputs
from tests.helpers import tiny

PATCHES = {
    "z": patching.get_act_patch_attn_head_out_all_pos,
    "q": patching.get_act_patch_attn_head_q_all_pos,
    "k": patching.get_act_patch_attn_head_k_all_pos,
    "v": patching.get_act_patch_attn_head_v_all_pos,
    "pattern": patching.get_act_patch_attn_head_pattern_all_pos,
    "resid_pre": patching.get_act_patch_resid_pre,
    "resid_mid": patching.get_act_patch_resid_mid,
    "attn_out": patching.get_act_patch_attn_out,
    "mlp_out": patching.get_act_patch_mlp_out,
}


class Batch(dict[str, Tensor]):
    """A batch without a token map, in the form of prepared inputs."""

    @property
    def shape(self) -> torch.Size:
        return self["input_ids"].shape


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module", params=["llava", "gemma3", "qwen3_vl"])
def small(request: pytest.FixtureRequest) -> tuple[str, HookedMLLM, Batch]:
    return request.param, HookedMLLM(tiny.build(request.param)), Batch(tiny.batch(request.param))


GATED = "muse_spark"


@pytest.fixture(scope="module")
def gated() -> HookedMLLM:
    """A model with a gate on head outputs before W_O, in every layer."""
    return HookedMLLM(tiny.build(GATED))


@pytest.fixture(scope="module")
def pair(toy_model: HookedMLLM) -> tuple[PreparedInputs, PreparedInputs]:
    """One question about two pictures: the target and the source of patches."""
    first, second = toy.scenes(2, seed=0)
    return toy_model.prepare(first.images[0], first.question), toy_model.prepare(second.images[0], first.question)


@pytest.fixture(scope="module")
def clean(toy_model: HookedMLLM, pair: tuple[PreparedInputs, PreparedInputs]) -> ActivationCache:
    with torch.no_grad():
        return toy_model.run_with_cache(pair[1])[1]


def first_logits(logits: Tensor) -> Tensor:
    return logits[0, -1, :20].square().sum()


@pytest.mark.parametrize("point", PATCHES)
def test_patching_sweeps_do_what_patch_does(
    toy_model: HookedMLLM, pair: tuple[PreparedInputs, PreparedInputs], clean: ActivationCache, point: str
):
    target, source = pair
    by_head = not point.startswith(("resid", "attn_out", "mlp"))
    # Heads that the toy uses, the key-value heads that they share, or late positions.
    rows = [(2, 2), (3, 7)] if point in ("k", "v") else [(2, 4), (3, 14)] if by_head else [(2, 75), (3, 76)]
    values = PATCHES[point](toy_model, target, clean, first_logits, index_axis_names=None, index_df=pd.DataFrame(rows))
    for value, (layer, index) in zip(values, rows, strict=True):
        if by_head:
            hooks = patch(clean, source.tokens, target.tokens, point, heads=[Head(layer, index)])
        else:
            position = torch.arange(target.shape[1])[None] == index
            hooks = patch(clean, source.tokens, target.tokens, point, layers=[layer], positions=position)
        patched = first_logits(toy_model.run_with_hooks(target, fwd_hooks=hooks))
        assert not torch.isclose(patched, first_logits(toy_model(target)), rtol=1e-6)
        assert_close(value, patched)


def test_patching_sweeps_have_a_cell_per_head_and_per_position(small: tuple[str, HookedMLLM, Batch]):
    _, model, inputs = small
    _, cache = model.run_with_cache(tiny.batch(small[0], seed=4))
    by_head = patching.get_act_patch_attn_head_out_all_pos(model, inputs, cache, first_logits)
    for layer, head in [(0, 3), (2, 1)]:

        def patch_head(z: Tensor, hook: Any, layer: int = layer, head: int = head) -> Tensor:
            z = z.clone()
            z[:, :, head] = cache["z", layer][:, :, head]
            return z

        patched = model.run_with_hooks(inputs, fwd_hooks=[(f"blocks.{layer}.attn.hook_z", patch_head)])
        assert_close(by_head[layer, head], first_logits(patched))
    assert by_head.shape == (3, 4)
    # Heads of keys and values are fewer.
    assert patching.get_act_patch_attn_head_v_all_pos(model, inputs, cache, first_logits).shape == (3, 2)
    assert patching.get_act_patch_resid_pre(model, inputs, cache, first_logits).shape == (3, inputs.shape[1])


def test_patching_by_position_number_does_not_detect_that_positions_differ(toy_model: HookedMLLM):
    picture, other_picture = (sample.images[0] for sample in toy.scenes(2, seed=0))
    questions = ["which digit is red ?", "what colour is the 7 ?"]
    inputs = toy_model.prepare([picture] * 2, questions)
    source = toy_model.prepare([other_picture] * 2, questions[::-1])
    _, cache = toy_model.run_with_cache(source)
    rows = pd.DataFrame([(2, 40)])
    patching.get_act_patch_resid_pre(toy_model, inputs, cache, first_logits, index_axis_names=None, index_df=rows)
    with pytest.raises(ValueError, match="do not have the addresses"):
        patch(cache, source.tokens, inputs.tokens, "resid_pre", layers=[2])


def test_decomposed_streams_add_up_but_for_what_no_layer_writes(small: tuple[str, HookedMLLM, Batch]):
    name, model, inputs = small
    _, cache = model.run_with_cache(inputs)
    parts, labels = cache.decompose_resid(return_labels=True)
    assert labels == ["embed", *(f"{layer}_{part}" for layer in range(3) for part in ("attn_out", "mlp_out"))]
    assert torch.equal(cache["embed"], cache["resid_pre", 0])
    # What Qwen3-VL adds to the visual tokens between layers is not among them.
    deepstack = sum(cache["resid_pre", layer + 1] - cache["resid_post", layer] for layer in range(2))
    assert_close(parts.sum(0) + deepstack, cache["resid_post", 2], atol=1e-5, rtol=1e-5)
    pictures = inputs["input_ids"] == tiny.IMAGE
    assert not deepstack[~pictures].any()
    assert deepstack[pictures].any() == (name == "qwen3_vl")


def test_accumulated_streams_are_those_between_layers_and_the_norm_is_the_models(small: tuple[str, HookedMLLM, Batch]):
    _, model, inputs = small
    logits, cache = model.run_with_cache(inputs)
    streams, labels = cache.accumulated_resid(return_labels=True)
    assert labels == ["0_pre", "1_pre", "2_pre", "final_post"]
    between = [*(cache["resid_pre", layer] for layer in range(3)), cache["resid_post", 2]]
    assert torch.equal(streams, torch.stack(between))
    normed = cache.accumulated_resid(apply_ln=True)
    assert_close(model.hf_model.get_output_embeddings()(normed[-1]), logits)


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen3_vl", "cohere2_vision", "qwen3_5"])
def test_the_logit_lens_reads_every_stream_through_the_models_norm_and_unembedding(name: str):
    model, inputs = HookedMLLM(tiny.build(name)), tiny.batch(name)
    logits, cache = model.run_with_cache(inputs)
    norm: Any = model.hf_model.get_decoder().norm
    for lens in (analysis.logit_lens(model, inputs, positions=None), cache.logit_lens(positions=None)):
        for layer in range(model.cfg.n_layers):
            logits_of_stream = model.hf_model.get_output_embeddings()(norm(cache["resid_pre", layer]))
            assert_close(lens.values[layer], logits_of_stream)
        assert_close(lens.values[-1], logits)


def test_a_logit_lens_that_would_not_give_the_logits_raises_an_error():
    with pytest.raises(ValueError, match="its readout is not that path"):
        analysis.logit_lens(HookedMLLM(tiny.build("gemma3n")), tiny.batch("gemma3n"))


def test_head_results_are_what_heads_write_before_any_norm_behind_w_o(small: tuple[str, HookedMLLM, Batch]):
    name, model, inputs = small
    _, cache = model.run_with_cache(inputs)
    results, labels = cache.stack_head_results(incl_remainder=True, return_labels=True)
    assert labels == [*map(str, model.heads), "remainder"]
    for index, (layer, head) in enumerate(model.heads):
        assert_close(results[index], cache["z", layer][:, :, head] @ model.blocks[layer].attn.W_O[head])
    assert_close(results.sum(0), cache["resid_post", 2], atol=1e-5, rtol=1e-5)
    written = results[:4].sum(0)
    assert torch.allclose(written, cache["attn_out", 0], atol=1e-5) == (name != "gemma3")


def test_head_results_are_behind_a_gate(gated: HookedMLLM):
    written: list[Tensor] = []
    w_o = gated.blocks[0].hf_layer.attentions["attn"].w_o
    handle = w_o.register_forward_hook(lambda module, args, output: written.append(output))
    _, cache = gated.run_with_cache(tiny.batch(GATED))
    handle.remove()
    attention, n_heads = gated.blocks[0].attn, gated.blocks[0].hf_layer.attentions["attn"].n_heads
    before_gate = einsum(cache["z", 0], attention.W_O, "... head d_head, head d_head d_model -> ... d_model")
    assert_close(cache.stack_head_results()[:n_heads].sum(0), written[0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(before_gate, written[0], atol=1e-2)


def test_batches_stacks_and_dropped_axes_of_caches(small: tuple[str, HookedMLLM, Batch]):
    _, model, inputs = small
    _, cache = model.run_with_cache(inputs)
    stacked, sliced = cache.stack_activation("pattern"), cache.apply_slice_to_batch_dim([1])
    alone = cache.apply_slice_to_batch_dim(1)
    dropped = cache.apply_slice_to_batch_dim([1]).remove_batch_dim()
    for layer in range(3):
        assert torch.equal(stacked[layer], cache["pattern", layer])
        assert torch.equal(sliced["pattern", layer], cache["pattern", layer][1:])
        assert torch.equal(alone["pattern", layer], cache["pattern", layer][1])
        assert torch.equal(dropped["z", layer], cache["z", layer][1])
    assert torch.equal(cache["resid_post", -1], cache["resid_post", 2])


def test_pos_slice_keeps_positions_and_raises_an_error_where_it_would_cut_heads(
    small: tuple[str, HookedMLLM, Batch], gated: HookedMLLM
):
    _, model, inputs = small
    _, cache = model.run_with_cache(inputs)
    _, last = model.run_with_cache(inputs, pos_slice=-1)
    for point in ("q", "z", "k", "resid_pre"):
        assert torch.equal(last[point, 1], cache[point, 1][:, -1:])
    assert torch.equal(last["pattern", 1], cache["pattern", 1][:, :, -1:])
    with pytest.raises(ValueError, match="leave hook_o_in out"):
        gated.run_with_cache(tiny.batch(GATED), pos_slice=-1)
    _, last = gated.run_with_cache(tiny.batch(GATED), pos_slice=-1, names_filter="blocks.0.attn.hook_z")
    assert last["z", 0].shape[1] == 1


def test_names_are_those_of_get_act_name(toy_model: HookedMLLM, gated: HookedMLLM):
    points = ("q", "k", "v", "attn_scores", "pattern", "z", "resid_pre", "attn_out", "resid_mid", "mlp_out")
    for point in (*points, "resid_post"):
        assert utilities.get_act_name(point, 3) in toy_model.hook_dict
    assert utilities.get_act_name("o_in", 0) not in gated.hook_dict
    assert utilities.get_act_name("o_in", 0, "attn") in gated.hook_dict


def test_duplicate_tokens_and_losses_count_the_placeholders_of_pictures(
    toy_model: HookedMLLM, pair: tuple[PreparedInputs, PreparedInputs], clean: ActivationCache
):
    inputs = pair[1]
    pictures = inputs.tokens.image[0]
    duplicates = head_detector.get_duplicate_token_head_detection_pattern(inputs["input_ids"])
    assert torch.equal(duplicates[pictures][:, pictures], torch.ones(64, 64).tril(-1))
    induction = head_detector.get_induction_head_detection_pattern(inputs["input_ids"])
    assert torch.equal(induction[pictures][:, pictures][:, 1:], torch.ones(64, 63).tril(-1))
    log_probs = toy_model(inputs)[0, :-1].log_softmax(-1)
    per_token = -log_probs.gather(-1, inputs["input_ids"][0, 1:, None])[:, 0]
    loss = utilities.lm_cross_entropy_loss(toy_model(inputs), inputs["input_ids"])
    assert_close(loss, per_token.mean())
    right = log_probs.argmax(-1) == inputs["input_ids"][0, 1:]
    assert_close(utilities.lm_accuracy(toy_model(inputs), inputs["input_ids"]), right.float().mean())
    assert (int(pictures[1:].sum()), len(right)) == (64, 76)
    assert not torch.isclose(loss, per_token[~pictures[1:]].mean(), rtol=0.1)


def test_previous_token_scores_are_the_shares_of_attention_one_back(
    clean: ActivationCache, pair: tuple[PreparedInputs, PreparedInputs]
):
    previous = head_detector.get_previous_token_head_detection_pattern(pair[1]["input_ids"])
    pattern = clean["pattern", 1][0, 5]
    score = head_detector.compute_head_attention_similarity_score(
        pattern, previous, exclude_bos=False, exclude_current_token=False, error_measure="mul"
    )
    one_back = sum(float(pattern[position, position - 1]) for position in range(1, len(pattern)))
    assert score == pytest.approx(one_back / len(pattern), rel=1e-4)


def test_an_interchange_of_the_whole_stream_is_a_patch(
    toy_model: HookedMLLM, pair: tuple[PreparedInputs, PreparedInputs], clean: ActivationCache
):
    target, source = pair
    name, last = "blocks.2.hook_resid_post", torch.tensor([target.shape[1] - 1])
    activations = analysis.collect_activations(
        toy_model, name, torch.arange(1), lambda samples: toy_model(source)[:, -1], positions=last
    )
    assert torch.equal(activations, clean[name][:, -1])
    whole_stream = analysis.SubspaceInterchange(torch.eye(toy_model.cfg.d_model))
    logits = analysis.run_with_intervention(
        toy_model,
        name,
        whole_stream,
        torch.arange(1),
        activations,
        lambda samples: toy_model(target)[:, -1],
        positions=last,
    )
    hooks = patch(clean, source.tokens, target.tokens, "resid_post", layers=[2], positions="last")
    assert_close(logits, toy_model.run_with_hooks(target, fwd_hooks=hooks)[:, -1])


def test_subspaces_of_what_heads_write_overlap_by_their_projections(toy_model: HookedMLLM):
    first, second = (analysis.orthonormal_subspace(toy_model.blocks[2].attn.W_O[head].mT) for head in (4, 6))
    squared_projection = einsum(first.basis, second.basis, "d_model i, d_model j -> i j").square().sum()
    assert_close(analysis.projection_kernel(first, second).score, squared_projection, check_dtype=False)


def score(logits: Tensor) -> Tensor:
    return logits[:, -1].sum()


DOES_NOT_RUN: dict[str, tuple[type[Exception], Callable[[Any, Any, Any], object]]] = {
    "attribution_patch": (AttributeError, lambda m, i, c: analysis.attribution_patch(m, i, i, score)),
    "attention_head_subspace_affinity": (
        ValueError,
        lambda m, i, c: analysis.attention_head_subspace_affinity(m, target_role="Q"),
    ),
    "JacobianLens": (TypeError, lambda m, i, c: analysis.JacobianLens.fit(m, ["a"], corpus="")),
    "reinitialized": (ValueError, lambda m, i, c: analysis.reinitialized(m, 0)),
}


@pytest.mark.parametrize("name", DOES_NOT_RUN)
def test_tools_that_do_not_run_raise_an_error_instead_of_returning_a_number(
    toy_model: HookedMLLM, pair: tuple[PreparedInputs, PreparedInputs], name: str
):
    error, run = DOES_NOT_RUN[name]
    with pytest.raises(error):
        run(toy_model, pair[0], toy_model.run_with_cache(pair[0])[1])


def test_direct_logit_attributions_add_up_to_the_logit(
    small: tuple[str, HookedMLLM, Batch],
):
    _, model, inputs = small
    logits = model(inputs)
    attribution: Any = analysis.direct_logit_attribution(model, inputs, answer_tokens=5)
    assert_close(attribution.attribution.sum(0).flatten(), logits[:, -1, 5], atol=1e-4, rtol=1e-4)


def test_layers_without_heads_have_no_sweeps():
    model, inputs = HookedMLLM(tiny.build("qwen3_5")), Batch(tiny.batch("qwen3_5"))
    _, cache = model.run_with_cache(inputs)
    with pytest.raises(KeyError):
        patching.get_act_patch_attn_head_out_all_pos(model, inputs, cache, first_logits)


def test_every_line_of_the_page_is_tested():
    page = (Path(__file__).parents[1] / "docs/transformerlens.md").read_text()
    missing = [name for name in DOES_NOT_RUN if name not in page]
    assert not missing
