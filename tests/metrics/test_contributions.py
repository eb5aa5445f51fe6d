"""Contributions of keys against W_O applied to one value vector at a time."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from corelens.metrics import head_score, logit_contributions, output_norms, retrieval_score, write_norms


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 3))
def test_writes_are_what_w_o_makes_of_values(seed: int, n_kv_heads: int, group: int):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(2, 5, n_kv_heads, 4, generator=generator)
    W_O = torch.randn(n_kv_heads * group, 4, 7, generator=generator)
    direction = torch.randn(2, 3, 7, generator=generator)
    pattern = torch.rand(2, n_kv_heads * group, 3, 5, generator=generator)
    norms, written = output_norms(values, W_O), write_norms(pattern, values, W_O)
    contributions = logit_contributions(values, W_O, direction)
    for sample in range(2):
        for head in range(n_kv_heads * group):
            for key in range(5):
                output = values[sample, key, head // group] @ W_O[head]
                assert_close(norms[sample, head, 0, key], output.norm(), atol=1e-4, rtol=1e-4)
                assert_close(contributions[sample, head, :, key], direction[sample] @ output, atol=1e-4, rtol=1e-4)
            outputs = pattern[sample, head] @ values[sample, :, head // group] @ W_O[head]
            assert_close(written[sample, head], outputs.norm(dim=-1), atol=1e-4, rtol=1e-4)


def test_a_head_that_writes_nothing_scores_zero_wherever_it_looks():
    pattern = torch.full((1, 2, 1, 4), 0.25)
    W_O = torch.stack([torch.zeros(3, 5), torch.ones(3, 5)])
    contributions = pattern * output_norms(torch.ones(1, 4, 1, 3), W_O)
    evidence, queries = torch.tensor([[True, False, False, True]]), torch.tensor([[True]])
    scores = head_score(contributions, evidence, queries)
    assert_close(scores, torch.tensor([[0.0, 0.5 * 3 * 5**0.5]]))


def test_copying_counts_each_token_of_the_evidence_once():
    pattern = torch.zeros(1, 2, 4, 5)
    for query, (key_of_first, key_of_second) in enumerate([(1, 1), (1, 2), (2, 0), (0, 3)]):
        pattern[0, 0, query, key_of_first] = pattern[0, 1, query, key_of_second] = 1
    pattern[0, :, 3] = torch.nan
    evidence = torch.tensor([[False, True, True, True, False]])
    key_tokens, predicted_tokens = torch.tensor([[10, 11, 12, 13, 14]]), torch.tensor([[11, 11, 12, 13]])
    queries = torch.tensor([[True, True, True, False]])
    # Head 0 copies 11 twice and 12; head 1 copies 11, then attends to 12 while 11 is predicted.
    scores = retrieval_score(pattern, evidence, queries, key_tokens, predicted_tokens)
    assert_close(scores, torch.tensor([[2 / 3, 1 / 3]]))
