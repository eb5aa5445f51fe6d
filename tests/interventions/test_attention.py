"""Interventions on attention edges against whole patterns edited in the test."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from corelens import (
    Head,
    HookedMLLM,
    ablate,
    attention_knockout,
    bias_attention,
    cut_route,
    mask_keys,
    row_mask,
    scale_attention,
)
from tests.helpers import processors, tiny
from tests.helpers.prompts import sample_prompts


@pytest.fixture(scope="module", params=["qwen3_vl", "llava"])
def model(request: pytest.FixtureRequest) -> HookedMLLM:
    return HookedMLLM(tiny.build(request.param), processors.build(request.param))


def some_positions(inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Queries at the end, keys in the middle; the second sample has fewer of both."""
    queries, keys = torch.zeros(2, *inputs["input_ids"].shape, dtype=torch.bool)
    queries[0, -5:], queries[1, -3:-1] = True, True
    keys[0, 5:9], keys[1, 6:7] = True, True
    return queries, keys


@torch.no_grad()
@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("kind", ["attention_knockout", "scale", "bias"])
def test_edges_against_whole_patterns_edited_in_the_test(family: str, kind: str):
    model, inputs = HookedMLLM(tiny.build(family)), tiny.batch(family)
    queries, keys = some_positions(inputs)
    factor = {"attention_knockout": 0.0, "scale": 3.0, "bias": 0.25}[kind]

    def reweigh(pattern: Tensor, hook: Any) -> Tensor:
        """A' = A f / sum_k A f for head 1, with f the factor at the edges and one elsewhere."""
        edges = (queries[:, :, None] & keys[:, None])[:, None]
        weighted = torch.where(edges, pattern * factor, pattern)
        weighted = weighted / weighted.sum(-1, keepdim=True)
        return torch.cat([pattern[:, :1], weighted[:, 1:2], pattern[:, 2:]], 1)

    expected = model.run_with_hooks(inputs, fwd_hooks=[("blocks.1.attn.hook_pattern", reweigh)])
    heads = [Head(1, 1)]
    hooks = {
        "attention_knockout": lambda: attention_knockout(heads, queries, keys),
        "scale": lambda: scale_attention(heads, queries, keys, factor),
        "bias": lambda: bias_attention(heads, queries, keys, float(np.log(factor))),
    }[kind]()
    real = inputs["attention_mask"].bool()
    assert_close(model.run_with_hooks(inputs, fwd_hooks=hooks)[real], expected[real], atol=2e-5, rtol=1e-4)
    assert not torch.allclose(model(inputs), expected, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_masked_keys_are_those_that_no_head_and_no_query_attends_to(family: str):
    model, inputs = HookedMLLM(tiny.build(family)), tiny.batch(family)
    _, keys = some_positions(inputs)
    other_keys = keys.roll(2, 1)
    heads = [head for head in model.heads if head.layer == 1]
    real = inputs["attention_mask"].bool()
    for hooks, masked in (
        (mask_keys([1], keys), keys),
        (mask_keys([1], keys) + mask_keys([1], other_keys), keys | other_keys),
    ):
        expected = model.run_with_hooks(inputs, fwd_hooks=attention_knockout(heads, None, masked))
        assert_close(model.run_with_hooks(inputs, fwd_hooks=hooks)[real], expected[real], atol=2e-5, rtol=1e-4)
        assert not torch.allclose(model(inputs), expected, atol=1e-3)
    with pytest.raises(ValueError, match=r"queries of sample 0 would have no.* left to "):
        model.run_with_hooks(inputs, fwd_hooks=mask_keys([1], real))
    assert not any(point.has_hooks() or point.ctx for point in model.hook_points())


@pytest.mark.parametrize("factor", [-1.0, float("nan"), float("inf")])
def test_factors_that_attention_cannot_have(factor: float):
    with pytest.raises(ValueError, match="is no finite number from 0 up"):
        scale_attention([Head(0, 0)], "question", "image", factor)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}])
def test_masked_keys_stay_masked_in_generation(model: HookedMLLM, options: dict[str, Any]):
    inputs = sample_prompts(model)
    settings = {"max_new_tokens": 5, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    settings |= options
    with model.hooks(fwd_hooks=attention_knockout(model.heads, None, "image")):
        expected = model.generate(inputs, **settings)
    with model.hooks(fwd_hooks=mask_keys(range(3), "image")):
        masked = model.generate(inputs, **settings)
    assert torch.equal(masked.sequences, expected.sequences)
    for logits, expected_logits in zip(masked.logits, expected.logits, strict=True):
        assert_close(logits, expected_logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}])
def test_knockouts_in_generation_hold_for_generated_queries(model: HookedMLLM, options: dict[str, Any]):
    """Against all rows of attention logits masked in every step."""
    inputs = sample_prompts(model)
    heads, n_prompt = [Head(layer, head) for layer in range(3) for head in range(4)], inputs["input_ids"].shape[1]

    def mask_edges(scores: Tensor, hook: Any) -> Tensor:
        keys = inputs.tokens.image.repeat_interleave(len(scores) // 2, 0)[:, None, None]
        queries = inputs.tokens.question.repeat_interleave(len(scores) // 2, 0)[:, None, :, None]
        edges = queries & keys if scores.shape[2] > 1 else keys
        mask = torch.nn.functional.pad(edges, (0, scores.shape[-1] - n_prompt))
        return scores.masked_fill(mask, -torch.inf)

    settings = {"max_new_tokens": 5, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    settings |= options
    with model.hooks(fwd_hooks=[(name, mask_edges) for name in model.attn_names("attn_scores")]):
        expected = model.generate(inputs, **settings)
    with model.hooks(fwd_hooks=attention_knockout(heads, "question", "image")):
        knocked_out = model.generate(inputs, **settings)
    assert torch.equal(knocked_out.sequences, expected.sequences)
    for logits, expected_logits in zip(knocked_out.logits, expected.logits, strict=True):
        assert_close(logits, expected_logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_functions_that_need_different_rows_nest(model: HookedMLLM):
    """Each function gets the rows that it requests, after the edits of those before it, and the edits add up."""
    inputs = sample_prompts(model)
    tokens, name = inputs.tokens, "blocks.1.attn.hook_pattern"
    first = attention_knockout([Head(1, 1)], "question", "image", phase="prefill")
    second = attention_knockout([Head(1, 1)], tokens.last, "image", phase="prefill")
    together = attention_knockout([Head(1, 1)], tokens.question | tokens.last, "image", phase="prefill")
    last_rows: list[Tensor] = []
    with model.hooks(fwd_hooks=together):
        expected, full_cache = model.run_with_cache(inputs)
    with (
        model.hooks(fwd_hooks=first + second),
        model.hooks(fwd_hooks=[(name, lambda pattern, hook: last_rows.append(pattern))], queries=tokens.last),
    ):
        logits, cache = model.run_with_cache(inputs, names_filter=name, queries=tokens.question)
    assert_close(logits[~tokens.padding], expected[~tokens.padding], atol=1e-5, rtol=1e-5)
    for mask, rows in ((tokens.last, last_rows[0]), (tokens.question, cache[name])):
        real = row_mask(mask)
        assert rows.shape[2] == real.shape[1]
        assert_close(rows.transpose(1, 2)[real], full_cache[name].transpose(1, 2)[mask], atol=1e-6, rtol=1e-5)
        assert rows.transpose(1, 2)[~real].isnan().all()


@torch.no_grad()
def test_interventions_leave_nothing_behind(model: HookedMLLM):
    inputs = model.prepare(None, "Which digit is red?")
    expected = model(inputs)
    hooks = ablate([Head(0, 1)]) + attention_knockout([Head(1, 1)], "last", "structural", phase="prefill")
    model.run_with_hooks(inputs, fwd_hooks=hooks)
    all_keys = attention_knockout([Head(1, 1)], "last", ~inputs.tokens.padding)
    with pytest.raises(ValueError, match=r"L1H1 would have no key left to attend to in sample 0"):
        model.run_with_hooks(inputs, fwd_hooks=hooks + all_keys)
    assert torch.equal(model(inputs), expected)
    assert not any(point.has_hooks() or point.ctx for point in model.hook_points())


NOT_FINITE = {
    "an infinite factor": lambda: scale_attention([Head(1, 0)], "last", "image", float("inf")),
    "a factor that is no number": lambda: scale_attention([Head(1, 0)], "last", "image", float("nan")),
    "an infinite bias": lambda: bias_attention([Head(1, 0)], "last", "image", float("inf")),
    "a bias that is no number": lambda: bias_attention([Head(1, 0)], "last", "image", float("nan")),
    "a bias that float32 does not hold": lambda: bias_attention([Head(1, 0)], "last", "image", 1e39),
}


@pytest.mark.parametrize("kind", NOT_FINITE)
def test_attention_that_would_be_nan_raises_an_error(kind: str):
    with pytest.raises(ValueError, match="is no finite number"):
        NOT_FINITE[kind]()


@torch.no_grad()
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_cut_route_is_what_the_head_reads_from_the_keys_and_nothing_else(family: str):
    model, inputs = HookedMLLM(tiny.build(family)), tiny.batch(family)
    queries, keys = some_positions(inputs)
    _, cache = model.run_with_cache(inputs)
    # A layer that sees these keys: those of Gemma 3 before it have windows that end after them.
    layer = model.cfg.n_layers - 1
    z, values, pattern = (cache[point, layer] for point in ("z", "v", "pattern"))
    expected = z.clone()
    group = z.shape[2] // values.shape[2]
    for sample, query in queries.nonzero().tolist():
        for key in keys[sample].nonzero().flatten().tolist():
            expected[sample, query, 1] -= pattern[sample, 1, query, key] * values[sample, key, 1 // group]
    with model.hooks(fwd_hooks=cut_route([Head(layer, 1)], queries, keys)):
        _, cut = model.run_with_cache(inputs, names_filter=f"blocks.{layer}.attn.hook_z")
    assert_close(cut["z", layer], expected, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(z, expected, atol=1e-3)
    assert cut_route([], queries, keys) == []
    with pytest.raises(ValueError, match="keys has shape"):
        model.run_with_hooks(inputs, fwd_hooks=cut_route([Head(layer, 1)], None, keys[:, 1:]))
