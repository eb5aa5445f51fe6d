"""Key token ratio and coverage: against loops, closed forms and counts of all subsets."""

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from corelens import metrics
from tests.helpers.patterns import AttentionExample, attention_examples


def top_by_loop(rows: list[list[float]], sequence: list[bool]) -> set[int]:
    """The max(1, floor(.05 L)) keys of the sequence with the largest mean over rows, the first where they tie."""
    keys = [key for key, inside in enumerate(sequence) if inside]
    means = {key: sum(row[key] for row in rows) / len(rows) for key in keys}
    n_top = max(1, math.floor(0.05 * len(keys)))
    return set(sorted(keys, key=lambda key: (-means[key], key))[:n_top])


@given(attention_examples(), st.booleans())
def test_ratio_and_coverage_are_those_of_loops(example: AttentionExample, padded: bool):
    # Multiples of 1 / 1024, whose sums are exact and sometimes equal.
    pattern, evidence, queries = (example.pattern * 1024).round() / 1024, example.evidence, example.queries
    sequence = torch.ones_like(evidence)
    if padded:
        pattern, evidence, sequence = (torch.nn.functional.pad(mask, (0, 30)) for mask in (pattern, evidence, sequence))
    ratios = metrics.key_token_ratio(pattern, evidence, queries, sequence)
    coverage = metrics.key_token_coverage(pattern, evidence, queries, sequence)
    for sample in range(len(pattern)):
        needed = set(evidence[sample].nonzero().flatten().tolist())
        union: set[int] = set()
        for head in range(pattern.shape[1]):
            rows = pattern[sample, head, queries[sample]].tolist()
            top = top_by_loop(rows, sequence[sample].tolist())
            assert float(ratios[sample, head]) == pytest.approx(len(top & needed) / len(needed))
            union |= top & needed
        assert float(coverage[sample]) == pytest.approx(len(union) / len(needed))


@pytest.mark.parametrize("n_keys", [1, 19, 20, 39, 40, 60, 100, 140, 1000])
def test_five_percent_of_the_sequence_are_rounded_down(n_keys: int):
    pattern = torch.rand(1, 2, 3, n_keys, generator=torch.Generator().manual_seed(0)).softmax(-1)
    top = metrics.top_tokens(pattern, torch.ones(1, 3, dtype=torch.bool))
    assert top.sum(-1).tolist() == [[max(1, n_keys // 20)] * 2]


def test_padding_on_either_side_is_no_part_of_the_sequence():
    pattern = torch.rand(1, 2, 4, 50, generator=torch.Generator().manual_seed(1)).softmax(-1)
    evidence, queries = torch.arange(50)[None] % 7 == 0, torch.tensor([[True, False, True, True]])
    alone = metrics.key_token_ratio(pattern, evidence, queries)
    pads = {"left": (30, 0), "right": (0, 30), "both": (20, 10)}

    def padded(mask: Tensor, side: str, value: float | bool) -> Tensor:
        return torch.nn.functional.pad(mask, pads[side], value=value)

    for side in pads:  # attention to padding would be the largest
        values = metrics.key_token_ratio(
            padded(pattern, side, 9.0), padded(evidence, side, False), queries,
            padded(torch.ones_like(evidence), side, False),
        )  # fmt: skip
        assert torch.equal(values, alone)


def test_of_equal_attention_the_first_tokens_are_taken():
    pattern = torch.full((1, 1, 2, 80), 1 / 80)
    top = metrics.top_tokens(pattern, torch.ones(1, 2, dtype=torch.bool))
    assert top[0, 0].nonzero().flatten().tolist() == [0, 1, 2, 3]
    pattern[..., 50] += 0.1
    top = metrics.top_tokens(pattern, torch.ones(1, 2, dtype=torch.bool))
    assert top[0, 0].nonzero().flatten().tolist() == [0, 1, 2, 50]


def test_rows_that_are_no_queries_may_hold_anything():
    pattern = torch.rand(2, 2, 3, 40).softmax(-1)
    queries = torch.tensor([[True, False, True], [False, True, True]])
    before = metrics.top_tokens(pattern, queries)
    pattern[~queries[:, None].expand(-1, 2, -1)] = torch.nan
    assert torch.equal(metrics.top_tokens(pattern, queries), before)


def test_low_precision_is_averaged_in_float32():
    pattern = torch.rand(1, 2, 30, 200, generator=torch.Generator().manual_seed(2)).softmax(-1).bfloat16()
    queries = torch.ones(1, 30, dtype=torch.bool)
    assert torch.equal(metrics.top_tokens(pattern, queries), metrics.top_tokens(pattern.float(), queries))


def test_what_is_undefined_is_named():
    pattern, on, off = torch.ones(2, 1, 1, 4), torch.ones(2, 4, dtype=torch.bool), torch.zeros(2, 4, dtype=torch.bool)
    second = torch.tensor([[True] * 4, [False] * 4])
    query, no_query = torch.ones(2, 1, dtype=torch.bool), torch.zeros(2, 1, dtype=torch.bool)
    for function in (metrics.key_token_ratio, metrics.key_token_coverage):
        with pytest.raises(ValueError, match=r"`evidence` marks nothing in sample\(s\) \[1\]"):
            function(pattern, second, query)
        with pytest.raises(ValueError, match=r"`queries` marks nothing in sample\(s\) \[0, 1\]"):
            function(pattern, on, no_query)
        with pytest.raises(ValueError, match=r"`evidence` leaves `sequence` in sample\(s\) \[1\]"):
            function(pattern, on, query, second)
    with pytest.raises(ValueError, match="`sequence` marks nothing"):
        metrics.top_tokens(pattern, query, off)
    with pytest.raises(ValueError, match=r"threshold=50 is outside \(0, 1\]"):
        metrics.hit_rate(torch.ones(2), 50)


def test_a_hit_reaches_the_threshold():
    ratios = torch.tensor([[0.0, 0.5, 0.6, torch.nan], [1 / 3, 2 / 3, 1.0, 0.2]])
    assert metrics.hit_rate(ratios).tolist() == pytest.approx([2 / 3, 0.5])
    assert metrics.hit_rate(ratios, 0.6).tolist() == pytest.approx([1 / 3, 0.5])


@pytest.mark.parametrize(("n_tokens", "n_evidence", "threshold"), [(60, 4, 0.5), (40, 3, 0.6), (25, 5, 0.2)])
def test_chance_is_the_mean_over_all_sets_of_top_tokens(n_tokens: int, n_evidence: int, threshold: float):
    sets = list(combinations(range(n_tokens), max(1, n_tokens // 20)))
    ratios = torch.tensor([sum(token < n_evidence for token in top) / n_evidence for top in sets])
    tokens, evidence = torch.tensor([n_tokens]), torch.tensor([n_evidence])
    assert float(metrics.chance_coverage(torch.tensor([1]), tokens)) == pytest.approx(float(ratios.mean()), abs=1e-5)
    hits = metrics.chance_hit_rate(tokens, evidence, threshold)
    assert float(hits) == pytest.approx(float(metrics.hit_rate(ratios, threshold)), abs=1e-5)


def test_independent_random_rows_cover_as_by_chance():
    generator = torch.Generator().manual_seed(3)
    pattern = torch.rand(300, 30, 1, 100, generator=generator)
    evidence = torch.arange(100)[None].expand(300, -1) < 20
    one = torch.ones(300, 1, dtype=torch.bool)
    for n_heads in (1, 5, 30):
        covered = metrics.key_token_coverage(pattern[:, :n_heads], evidence, one).mean()
        expected = metrics.chance_coverage(torch.tensor([n_heads]), torch.tensor([100]))
        assert float(expected) == pytest.approx(1 - 0.95**n_heads)
        assert float(covered) == pytest.approx(float(expected), abs=0.015)
