"""Head scores against their formulas written as loops, closed forms, and mistakes."""

import math
from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from corelens.metrics import attention_entropy, attention_shift, head_score, retrieval_attention_mass, visual_share
from corelens.metrics.head_score import Normalisation, Reduction
from tests.helpers.patterns import AttentionExample, attention_examples


def mean_row_mass(pattern: Tensor, keys: Tensor, queries: Tensor) -> Tensor:
    """Oracle by loops: RAM_h = (sum over q in Q, k in E of A[h, q, k]) / |Q|."""
    masses = torch.zeros(pattern.shape[:2])
    for sample in range(pattern.shape[0]):
        for head in range(pattern.shape[1]):
            row_masses = [
                sum(pattern[sample, head, query, key].item() * float(keys[sample, key]) for key in range(keys.shape[1]))
                for query in range(queries.shape[1])
                if queries[sample, query]
            ]
            masses[sample, head] = sum(row_masses) / len(row_masses)
    return masses


def mean_reduction(rows: list[list[float]], keys: list[int], reduction: Reduction) -> float:
    """Oracle of the reductions: (sum over rows of R over k in keys of row[k]) / number of rows."""
    reduced_rows = []
    for row in rows:
        contributions = [row[key] for key in keys]
        ranked_keys = sorted(range(len(row)), key=lambda key: -row[key])
        reduced_rows.append(
            {
                "sum": sum(contributions),
                "mean": sum(contributions) / len(contributions),
                "max": max(contributions),
                "argmax": float(ranked_keys[0] in keys),
                "top_k": sum(row[key] for key in ranked_keys[: len(keys)] if key in keys) / len(keys),
            }[reduction]
        )
    return sum(reduced_rows) / len(reduced_rows)


def normalised_mean_reduction(
    pattern: Tensor,
    evidence: Tensor,
    image: Tensor,
    queries: Tensor,
    reduction: Reduction,
    normalisation: Normalisation,
) -> Tensor:
    """Oracle of the family, for yes-or-no evidence E among visual tokens V, with the mean reduction m(keys).

    none: m(E). size: m(E) / |E|. share: m(E) / m(V). lift: m(E) / m(V) * |V| / |E|.
    rest: m(E) - m(V - E) * |E| / |V - E|.
    """
    scores = torch.zeros(pattern.shape[:2])
    for sample in range(pattern.shape[0]):
        evidence_keys = evidence[sample].nonzero().flatten().tolist()
        visual_keys = image[sample].nonzero().flatten().tolist()
        other_keys = [key for key in visual_keys if key not in evidence_keys]
        for head in range(pattern.shape[1]):
            rows = pattern[sample, head][queries[sample]].tolist()
            score = mean_reduction(rows, evidence_keys, reduction)
            visual_score = mean_reduction(rows, visual_keys, reduction) or math.nan
            if normalisation == "size":
                score /= len(evidence_keys)
            elif normalisation == "share":
                score /= visual_score
            elif normalisation == "lift":
                score = score / visual_score * len(visual_keys) / len(evidence_keys)
            elif normalisation == "rest":
                other_score = mean_reduction(rows, other_keys, reduction)
                score -= other_score * len(evidence_keys) / len(other_keys)
            scores[sample, head] = score
    return scores


def mean_lost_attention(pattern: Tensor, changed_pattern: Tensor, queries: Tensor) -> Tensor:
    """Oracle by loops: (sum over q in Q, k of max(A[h, q, k] - A'[h, q, k], 0)) / |Q|."""
    shifts = torch.zeros(pattern.shape[:2])
    for sample, head in torch.ones_like(shifts).nonzero().tolist():
        row_shifts = [
            sum(max(old - new, 0) for old, new in zip(*rows, strict=True))
            for rows in zip(pattern[sample, head].tolist(), changed_pattern[sample, head].tolist(), strict=True)
        ]
        query_shifts = [shift for shift, is_query in zip(row_shifts, queries[sample].tolist(), strict=True) if is_query]
        shifts[sample, head] = sum(query_shifts) / len(query_shifts)
    return shifts


@pytest.mark.parametrize("normalisation", ["none", "size", "share", "lift", "rest"])
@pytest.mark.parametrize("reduction", ["sum", "mean", "max", "argmax", "top_k"])
@settings(deadline=None, max_examples=15)
@given(example=attention_examples())
def test_every_member_of_the_family_is_its_definition(
    reduction: Reduction, normalisation: Normalisation, example: AttentionExample
):
    evidence, image = example.evidence.clone(), example.image.clone()
    # Something to compare with.
    evidence[:, -1], image[:, -1] = False, True
    copies = {field.name: getattr(example, field.name).clone() for field in fields(example)}
    scores = head_score(example.pattern, evidence, example.queries, image, reduction, normalisation)
    expected = normalised_mean_reduction(example.pattern, evidence, image, example.queries, reduction, normalisation)
    assert_close(scores, expected, equal_nan=True, atol=1e-5, rtol=1e-4)
    assert all(torch.equal(getattr(example, name), copy) for name, copy in copies.items())


@settings(deadline=None, max_examples=50)
@given(attention_examples(), st.integers(0, 100))
def test_attention_moved_is_what_left_its_keys(example: AttentionExample, seed: int):
    before, queries = example.pattern, example.queries
    after = torch.rand(before.shape, generator=torch.Generator().manual_seed(seed)).softmax(-1)
    expected = mean_lost_attention(before, after, queries)
    after[~queries[:, None].expand(before.shape[:3])] = torch.nan
    assert_close(attention_shift(before, after, queries), expected)
    assert not attention_shift(before, before, queries).any()


@settings(deadline=None, max_examples=50)
@given(attention_examples())
def test_cut_edges_move_the_attention_they_carried(example: AttentionExample):
    cut_keys, queries = example.evidence.clone(), torch.zeros_like(example.queries)
    cut_keys[:, -1], queries[:, -1] = False, True
    cut_keys[:, 0] = True
    remaining = example.pattern.masked_fill(cut_keys[:, None, None], 0)
    renormalised = remaining / remaining.sum(-1, keepdim=True)
    shift = attention_shift(example.pattern, renormalised, queries)
    assert_close(shift, retrieval_attention_mass(example.pattern, cut_keys, queries), atol=1e-5, rtol=1e-4)
    # Attention that a sink takes has left the keys.
    assert_close(attention_shift(example.pattern, remaining, queries), shift, atol=1e-5, rtol=1e-4)


@settings(deadline=None, max_examples=50)
@given(attention_examples())
def test_masses_lie_between_zero_and_one_and_add_up_to_the_row(example: AttentionExample):
    ram = retrieval_attention_mass(example.pattern, example.evidence, example.queries)
    visual = visual_share(example.pattern, example.image, example.queries)
    assert_close(ram, mean_row_mass(example.pattern, example.evidence, example.queries))
    assert ((ram >= 0) & (ram <= visual + 1e-6) & (visual <= 1)).all()
    if (~example.evidence).any(-1).all():
        other_mass = retrieval_attention_mass(example.pattern, ~example.evidence, example.queries)
        assert_close(ram + other_mass, torch.ones_like(ram))


def test_closed_forms():
    queries = torch.tensor([[True, True]])
    evidence = torch.tensor([[False, True, True, False, False]])
    image = torch.tensor([[True, True, True, True, False]])
    even = torch.full((1, 1, 2, 5), 1 / 5)

    def lift(pattern: Tensor) -> Tensor:
        return head_score(pattern, evidence, queries, image, normalisation="lift")

    assert_close(retrieval_attention_mass(even, evidence, queries), torch.tensor([[2 / 5]]))
    assert_close(lift(even), torch.tensor([[1.0]]))
    assert_close(head_score(even, evidence, queries, image, normalisation="rest"), torch.tensor([[0.0]]))
    sharp = torch.zeros(1, 1, 2, 5)
    sharp[..., 2] = 1
    assert_close(retrieval_attention_mass(sharp, evidence, queries), torch.tensor([[1.0]]))
    assert_close(lift(sharp), torch.tensor([[2.0]]))
    text_only = torch.zeros(1, 1, 2, 5)
    text_only[..., 4] = 1
    assert lift(text_only).isnan().all()
    half = torch.tensor([[0.0, 0.5, 1.0, 0.0, 0.0]])
    assert_close(retrieval_attention_mass(even, half, queries), torch.tensor([[1.5 / 5]]))
    sinks = torch.tensor([[False, True, False, False, False]])
    share = head_score(even, evidence, queries, image, normalisation="share", excluded=sinks)
    assert_close(share, torch.tensor([[1 / 3]]))


def test_rows_that_are_no_queries_may_be_nan():
    pattern = torch.tensor([[[[0.25, 0.75], [torch.nan, torch.nan]]]])
    queries, evidence = torch.tensor([[True, False]]), torch.tensor([[False, True]])
    expected: dict[Reduction, float] = {"sum": 0.75, "max": 0.75, "argmax": 1.0, "top_k": 0.75}
    for reduction, score in expected.items():
        assert_close(head_score(pattern, evidence, queries, reduction=reduction), torch.tensor([[score]]))
    assert attention_entropy(pattern, queries).isfinite().all()


@pytest.mark.parametrize("empty", ["evidence", "queries"])
def test_an_empty_mask_is_named_with_its_sample(empty: str):
    masks = {name: torch.ones(2, 3, dtype=torch.bool) for name in ("evidence", "queries")}
    masks[empty][1] = False
    with pytest.raises(ValueError, match=rf"`{empty}` marks nothing in sample\(s\) \[1\]"):
        head_score(torch.full((2, 1, 3, 3), 1 / 3), masks["evidence"], masks["queries"])


def test_mistakes_in_the_axes_are_named():
    everything = torch.ones(1, 3, dtype=torch.bool)
    image = torch.tensor([[True, True, False]])
    pattern = torch.full((1, 1, 3, 3), 1 / 3)
    with pytest.raises(ValueError, match=r"`evidence` leaves `visual` in sample\(s\) \[0\]"):
        head_score(pattern, everything, everything, image, normalisation="lift")
    with pytest.raises(ValueError, match="compares with other tokens: pass `visual`"):
        head_score(pattern, everything, everything, normalisation="share")
    with pytest.raises(ValueError, match="masses lie between 3 and 3: `pattern` must hold probabilities"):
        retrieval_attention_mass(torch.ones(1, 1, 3, 3), everything, everything)
