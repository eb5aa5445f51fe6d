"""Metrics against their formulas written as loops, closed forms, and mistakes."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close


@st.composite
def attention(draw: Callable[..., Any]) -> dict[str, Tensor]:
    """A causal pattern whose keys hold pictures and, in them, evidence; every mask marks something."""
    batch, n_heads, n = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(3, 8))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    logits = torch.randn(batch, n_heads, n, n, generator=generator) * draw(st.sampled_from([0.1, 1.0, 20.0]))
    pattern = logits.masked_fill(~torch.ones(n, n, dtype=torch.bool).tril(), -torch.inf).softmax(-1)
    image = torch.rand(batch, n, generator=generator) < 0.6
    image[:, 0] = True
    evidence = image & (torch.rand(batch, n, generator=generator) < 0.5)
    evidence[:, 0] = True
    queries = torch.rand(batch, n, generator=generator) < 0.5
    queries[:, -1] = True
    return {"pattern": pattern, "evidence": evidence, "image": image, "queries": queries}


def mass_by_loops(pattern: Tensor, keys: Tensor, queries: Tensor) -> Tensor:
    result = torch.zeros(pattern.shape[:2])
    for sample in range(pattern.shape[0]):
        for head in range(pattern.shape[1]):
            rows = [
                sum(pattern[sample, head, query, key].item() * float(keys[sample, key]) for key in range(keys.shape[1]))
                for query in range(queries.shape[1])
                if queries[sample, query]
            ]
            result[sample, head] = sum(rows) / len(rows)
    return result


@settings(deadline=None, max_examples=50)
@given(attention())
def test_masses_are_their_formula_and_lie_between_zero_and_one(a: dict[str, Tensor]):
    from corelens import metrics

    before = {name: tensor.clone() for name, tensor in a.items()}
    ram = metrics.retrieval_attention_mass(a["pattern"], a["evidence"], a["queries"])
    share = metrics.visual_share(a["pattern"], a["image"], a["queries"])
    lift = metrics.evidence_lift(a["pattern"], a["evidence"], a["image"], a["queries"])
    rest = (
        metrics.visual_share(a["pattern"], ~a["image"] | ~a["evidence"], a["queries"])
        if (~a["evidence"]).any(-1).all()
        else None
    )
    assert_close(ram, mass_by_loops(a["pattern"], a["evidence"], a["queries"]))
    assert_close(share, mass_by_loops(a["pattern"], a["image"], a["queries"]))
    tokens = a["evidence"].sum(-1, keepdim=True) / a["image"].sum(-1, keepdim=True)
    assert_close(lift, ram / share / tokens)
    assert ((ram >= 0) & (ram <= share + 1e-6) & (share <= 1 + 1e-6)).all()
    if rest is not None:
        assert_close(ram + rest, torch.ones_like(ram))  # masses over a partition add up to the row
    assert all(torch.equal(a[name], before[name]) for name in a)


@settings(deadline=None, max_examples=50)
@given(attention())
def test_entropy_is_its_formula(a: dict[str, Tensor]):
    from corelens import metrics

    entropy = metrics.attention_entropy(a["pattern"], a["queries"])
    for sample in range(entropy.shape[0]):
        for head in range(entropy.shape[1]):
            rows = [
                -sum(p * math.log(p) for p in a["pattern"][sample, head, query].tolist() if p > 0)
                for query in range(a["queries"].shape[1])
                if a["queries"][sample, query]
            ]
            assert_close(entropy[sample, head].item(), sum(rows) / len(rows), atol=1e-5, rtol=1e-5)


def test_closed_forms():
    from corelens import metrics

    queries = torch.tensor([[True, True]])
    evidence = torch.tensor([[False, True, True, False, False]])
    image = torch.tensor([[True, True, True, True, False]])
    even = torch.full((1, 1, 2, 5), 1 / 5)
    assert_close(metrics.retrieval_attention_mass(even, evidence, queries), torch.tensor([[2 / 5]]))
    assert_close(metrics.evidence_lift(even, evidence, image, queries), torch.tensor([[1.0]]))
    assert_close(metrics.attention_entropy(even, queries), torch.tensor([[math.log(5)]]))
    sharp = torch.zeros(1, 1, 2, 5)
    sharp[..., 2] = 1
    assert_close(metrics.retrieval_attention_mass(sharp, evidence, queries), torch.tensor([[1.0]]))
    assert_close(metrics.evidence_lift(sharp, evidence, image, queries), torch.tensor([[2.0]]))
    assert_close(metrics.attention_entropy(sharp, queries), torch.tensor([[0.0]]))
    blind = torch.zeros(1, 1, 2, 5)
    blind[..., 4] = 1
    assert metrics.evidence_lift(blind, evidence, image, queries).isnan().all()
    half = torch.tensor([[0.0, 0.5, 1.0, 0.0, 0.0]])
    assert_close(metrics.retrieval_attention_mass(even, half, queries), torch.tensor([[1.5 / 5]]))


def test_rows_that_are_no_queries_may_be_nan():
    from corelens import metrics

    pattern = torch.tensor([[[[0.25, 0.75], [torch.nan, torch.nan]]]])
    queries, evidence = torch.tensor([[True, False]]), torch.tensor([[False, True]])
    assert_close(metrics.retrieval_attention_mass(pattern, evidence, queries), torch.tensor([[0.75]]))
    assert metrics.attention_entropy(pattern, queries).isfinite().all()


@pytest.mark.parametrize("empty", ["evidence", "queries", "image"])
def test_an_empty_mask_is_named_with_its_sample(empty: str):
    from corelens import metrics

    masks = {name: torch.ones(2, 3, dtype=torch.bool) for name in ("evidence", "queries", "image")}
    masks[empty][1] = False
    if empty == "image":
        masks["evidence"] = masks["image"].clone()
        empty = "evidence"
    with pytest.raises(ValueError, match=rf"`{empty}` marks nothing in sample\(s\) \[1\]"):
        metrics.evidence_lift(torch.full((2, 1, 3, 3), 1 / 3), masks["evidence"], masks["image"], masks["queries"])


def test_evidence_outside_the_picture_has_no_lift():
    from corelens import metrics

    everything = torch.ones(1, 3, dtype=torch.bool)
    image = torch.tensor([[True, True, False]])
    with pytest.raises(ValueError, match=r"leaves the visual tokens in sample\(s\) \[0\]"):
        metrics.evidence_lift(torch.full((1, 1, 3, 3), 1 / 3), everything, image, everything)
