"""Spread of attention against its formulas written as loops, and closed forms."""

import math

import torch
from hypothesis import given, settings
from torch.testing import assert_close

from corelens.metrics import (
    attention_distance,
    attention_entropy,
    attention_sinks,
    concentration,
    spatial_entropy,
)
from tests.helpers.patterns import AttentionExample, attention_examples


@settings(deadline=None, max_examples=50)
@given(attention_examples())
def test_spreads_are_their_formulas(example: AttentionExample):
    """Means over q in Q of -sum_k A ln A, sum_k A^2 and sum_k A (q - k), by loops."""
    positions = torch.arange(example.pattern.shape[-1]).expand(len(example.queries), -1)
    entropies = attention_entropy(example.pattern, example.queries)
    concentrations = concentration(example.pattern, example.queries)
    distances = attention_distance(example.pattern, example.queries, positions)
    for sample in range(entropies.shape[0]):
        queries = example.queries[sample].nonzero().flatten().tolist()
        for head in range(entropies.shape[1]):
            rows = [example.pattern[sample, head, query].tolist() for query in queries]
            row_entropies = [-sum(p * math.log(p) for p in row if p > 0) for row in rows]
            row_squares = [sum(p * p for p in row) for row in rows]
            row_distances = [
                sum(p * (query - key) for key, p in enumerate(row)) for query, row in zip(queries, rows, strict=True)
            ]
            for spreads, row_spreads in (
                (entropies, row_entropies),
                (concentrations, row_squares),
                (distances, row_distances),
            ):
                expected = sum(row_spreads) / len(queries)
                assert_close(spreads[sample, head].item(), expected, atol=1e-5, rtol=1e-5)


def test_closed_forms_of_even_and_of_sharp_attention():
    queries = torch.tensor([[True, True]])
    even = torch.full((1, 1, 2, 5), 1 / 5)
    assert_close(attention_entropy(even, queries), torch.tensor([[math.log(5)]]))
    assert_close(concentration(even, queries), torch.tensor([[0.2]]))
    sharp = torch.zeros(1, 1, 2, 5)
    sharp[..., 2] = 1
    assert_close(attention_entropy(sharp, queries), torch.tensor([[0.0]]))
    assert_close(attention_distance(sharp, queries, torch.tensor([[3, 4]])), torch.tensor([[1.5]]))


def test_sinks_are_positions_with_a_massive_activation():
    resid = torch.randn(1, 6, 1_000, generator=torch.Generator().manual_seed(0))
    resid[0, 2, 7], resid[0, 4, 900] = 500, -500
    assert attention_sinks(resid).tolist() == [[False, False, True, False, True, False]]
    assert not attention_sinks(resid, 32).any()  # more than the square root of the width


def test_spatial_entropy_counts_separate_places():
    maps = torch.zeros(5, 6, 6)
    maps[0, 1:3, 1:3] = 1  # one place
    maps[1, 0, 0] = maps[1, 5, 5] = 1  # two
    maps[2, 0, 0] = maps[2, 1, 1] = 1  # one: they touch at a corner
    maps[3, 0, 0], maps[3, 0, 3], maps[3, 3, 0], maps[3, 3, 3] = 4, 4, 4, 4  # four
    maps[4] = 0.5  # even: none
    expected = torch.tensor([0.0, math.log(2), 0.0, math.log(4), math.inf])
    assert_close(spatial_entropy(maps), expected, atol=1e-5, rtol=1e-5)
    assert spatial_entropy(maps.reshape(5, 1, 6, 6)).shape == (5, 1)
