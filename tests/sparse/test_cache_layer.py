"""The growing cache layer, for any plan, padding and way to cut a prompt, against masked attention over all keys."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corelens.sparse.cache_layer import HeadSparseLayer
from tests.helpers.planned_layers import PlannedLayer, masked_attention_by_pairs, planned_layers, run_passes


@given(planned_layers(), st.integers(0, 9))
@settings(max_examples=120, deadline=None)
def test_any_plan_in_any_passes_is_masked_attention_over_all_keys(case: PlannedLayer, seed: int):
    plan, qkv = case.plan(), case.random_qkv(seed)
    keep_text = plan.streaming is not None and plan.streaming.keep_text
    generator = torch.Generator().manual_seed(seed)
    text = torch.rand(2, case.length, generator=generator) < 0.3 if keep_text else None
    generated = frozenset(first for first, end in case.spans if end == first + 1)
    expected = masked_attention_by_pairs(*qkv, plan.rules, case.start, text, generated)
    case.check(run_passes(HeadSparseLayer(plan), qkv, case.start, case.spans, text), expected)


@given(planned_layers(), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_one_token_at_a_time_is_one_pass(case: PlannedLayer, seed: int):
    # Heads that stream blocks attend to everything once they read one token.
    case = case._replace(kinds=[kind.replace("blocks", "streaming") for kind in case.kinds])
    plan, qkv = case.plan(), case.random_qkv(seed)
    text = torch.zeros(2, case.length, dtype=torch.bool)
    tokens = [(position, position + 1) for position in range(case.length)]
    by_token = run_passes(HeadSparseLayer(plan), qkv, case.start, tokens, text)
    layer = HeadSparseLayer(plan, reserved=case.length)
    case.check(by_token, run_passes(layer, qkv, case.start, [(0, case.length)], text))
