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

from corelens import metrics
from corelens.metrics import PRESETS, Metric


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


def family_by_loops(
    pattern: Tensor, evidence: Tensor, image: Tensor, queries: Tensor, reduction: str, normalisation: str
) -> Tensor:
    """Every member of the family from its definition, for yes-or-no evidence."""
    result = torch.zeros(pattern.shape[:2])

    def reduced(rows: list[list[float]], keys: list[int]) -> float:
        of_query = []
        for row in rows:
            own = [row[key] for key in keys]
            best = sorted(range(len(row)), key=lambda key: -row[key])
            of_query.append(
                {
                    "sum": sum(own),
                    "mean": sum(own) / len(own),
                    "max": max(own),
                    "argmax": float(best[0] in keys),
                    "top_k": sum(row[key] for key in best[: len(keys)] if key in keys) / len(keys),
                }[reduction]
            )
        return sum(of_query) / len(of_query)

    for sample in range(pattern.shape[0]):
        held = evidence[sample].nonzero().flatten().tolist()
        seen = image[sample].nonzero().flatten().tolist()
        rest = [key for key in seen if key not in held]
        for head in range(pattern.shape[1]):
            rows = pattern[sample, head][queries[sample]].tolist()
            score = reduced(rows, held)
            if normalisation == "size":
                score /= len(held)
            elif normalisation == "share":
                score /= reduced(rows, seen) or math.nan
            elif normalisation == "lift":
                score = score / (reduced(rows, seen) or math.nan) * len(seen) / len(held)
            elif normalisation == "rest":
                score -= reduced(rows, rest) * len(held) / len(rest)
            result[sample, head] = score
    return result


@pytest.mark.parametrize("normalisation", ["none", "size", "share", "lift", "rest"])
@pytest.mark.parametrize("reduction", ["sum", "mean", "max", "argmax", "top_k"])
@settings(deadline=None, max_examples=15)
@given(attention())
def test_every_member_of_the_family_is_its_definition(reduction: Any, normalisation: Any, a: dict[str, Tensor]):
    evidence, image = a["evidence"].clone(), a["image"].clone()
    # Something to compare with.
    evidence[:, -1], image[:, -1] = False, True
    before = {name: tensor.clone() for name, tensor in a.items()}
    found = metrics.head_score(a["pattern"], evidence, a["queries"], image, reduction, normalisation)
    expected = family_by_loops(a["pattern"], evidence, image, a["queries"], reduction, normalisation)
    assert_close(found, expected, equal_nan=True, atol=1e-5, rtol=1e-4)
    assert all(torch.equal(a[name], before[name]) for name in a)


@settings(deadline=None, max_examples=50)
@given(attention(), st.integers(0, 100))
def test_attention_moved_is_what_left_its_keys(a: dict[str, Tensor], seed: int):
    before, queries = a["pattern"], a["queries"]
    after = torch.rand(before.shape, generator=torch.Generator().manual_seed(seed)).softmax(-1)
    expected = torch.zeros(before.shape[:2])
    for sample, head in torch.ones_like(expected).nonzero().tolist():
        rows = [
            sum(max(old - new, 0) for old, new in zip(*row, strict=True))
            for row in zip(before[sample, head].tolist(), after[sample, head].tolist(), strict=True)
        ]
        asked = [row for row, chosen in zip(rows, queries[sample].tolist(), strict=True) if chosen]
        expected[sample, head] = sum(asked) / len(asked)
    after[~queries[:, None].expand(before.shape[:3])] = torch.nan
    assert_close(metrics.attention_shift(before, after, queries), expected)
    assert not metrics.attention_shift(before, before, queries).any()


@settings(deadline=None, max_examples=50)
@given(attention())
def test_cut_edges_move_the_attention_they_carried(a: dict[str, Tensor]):
    cut, queries = a["evidence"].clone(), torch.zeros_like(a["queries"])
    cut[:, -1], queries[:, -1] = False, True
    cut[:, 0] = True
    left = a["pattern"].masked_fill(cut[:, None, None], 0)
    after = left / left.sum(-1, keepdim=True)
    moved = metrics.attention_shift(a["pattern"], after, queries)
    assert_close(moved, metrics.retrieval_attention_mass(a["pattern"], cut, queries), atol=1e-5, rtol=1e-4)
    # What a sink takes has left the keys.
    assert_close(metrics.attention_shift(a["pattern"], left, queries), moved, atol=1e-5, rtol=1e-4)


@settings(deadline=None, max_examples=50)
@given(attention())
def test_masses_lie_between_zero_and_one_and_add_up_to_the_row(a: dict[str, Tensor]):
    ram = metrics.retrieval_attention_mass(a["pattern"], a["evidence"], a["queries"])
    share = metrics.visual_share(a["pattern"], a["image"], a["queries"])
    assert_close(ram, mass_by_loops(a["pattern"], a["evidence"], a["queries"]))
    assert ((ram >= 0) & (ram <= share + 1e-6) & (share <= 1)).all()
    if (~a["evidence"]).any(-1).all():
        rest = metrics.retrieval_attention_mass(a["pattern"], ~a["evidence"], a["queries"])
        assert_close(ram + rest, torch.ones_like(ram))


@settings(deadline=None, max_examples=50)
@given(attention())
def test_spreads_are_their_formulas(a: dict[str, Tensor]):
    positions = torch.arange(a["pattern"].shape[-1]).expand(len(a["queries"]), -1)
    entropy = metrics.attention_entropy(a["pattern"], a["queries"])
    concentration = metrics.concentration(a["pattern"], a["queries"])
    distance = metrics.attention_distance(a["pattern"], a["queries"], positions)
    for sample in range(entropy.shape[0]):
        asked = a["queries"][sample].nonzero().flatten().tolist()
        for head in range(entropy.shape[1]):
            rows = [a["pattern"][sample, head, query].tolist() for query in asked]
            entropies = [-sum(p * math.log(p) for p in row if p > 0) for row in rows]
            squares = [sum(p * p for p in row) for row in rows]
            back = [sum(p * (q - k) for k, p in enumerate(row)) for q, row in zip(asked, rows, strict=True)]
            for found, expected in ((entropy, entropies), (concentration, squares), (distance, back)):
                assert_close(found[sample, head].item(), sum(expected) / len(asked), atol=1e-5, rtol=1e-5)


def test_closed_forms():
    queries = torch.tensor([[True, True]])
    evidence = torch.tensor([[False, True, True, False, False]])
    image = torch.tensor([[True, True, True, True, False]])
    even = torch.full((1, 1, 2, 5), 1 / 5)

    def lift(pattern: Tensor) -> Tensor:
        return metrics.head_score(pattern, evidence, queries, image, normalisation="lift")

    assert_close(metrics.retrieval_attention_mass(even, evidence, queries), torch.tensor([[2 / 5]]))
    assert_close(lift(even), torch.tensor([[1.0]]))
    assert_close(metrics.head_score(even, evidence, queries, image, normalisation="rest"), torch.tensor([[0.0]]))
    assert_close(metrics.attention_entropy(even, queries), torch.tensor([[math.log(5)]]))
    assert_close(metrics.concentration(even, queries), torch.tensor([[0.2]]))
    sharp = torch.zeros(1, 1, 2, 5)
    sharp[..., 2] = 1
    assert_close(metrics.retrieval_attention_mass(sharp, evidence, queries), torch.tensor([[1.0]]))
    assert_close(lift(sharp), torch.tensor([[2.0]]))
    assert_close(metrics.attention_entropy(sharp, queries), torch.tensor([[0.0]]))
    assert_close(metrics.attention_distance(sharp, queries, torch.tensor([[3, 4]])), torch.tensor([[1.5]]))
    blind = torch.zeros(1, 1, 2, 5)
    blind[..., 4] = 1
    assert lift(blind).isnan().all()
    half = torch.tensor([[0.0, 0.5, 1.0, 0.0, 0.0]])
    assert_close(metrics.retrieval_attention_mass(even, half, queries), torch.tensor([[1.5 / 5]]))
    sinks = torch.tensor([[False, True, False, False, False]])
    without = metrics.head_score(even, evidence, queries, image, normalisation="share", excluded=sinks)
    assert_close(without, torch.tensor([[1 / 3]]))


def test_rows_that_are_no_queries_may_be_nan():
    pattern = torch.tensor([[[[0.25, 0.75], [torch.nan, torch.nan]]]])
    queries, evidence = torch.tensor([[True, False]]), torch.tensor([[False, True]])
    for reduction, expected in (("sum", 0.75), ("max", 0.75), ("argmax", 1.0), ("top_k", 0.75)):
        found = metrics.head_score(pattern, evidence, queries, reduction=reduction)  # pyright: ignore
        assert_close(found, torch.tensor([[expected]]))
    assert metrics.attention_entropy(pattern, queries).isfinite().all()


@pytest.mark.parametrize("empty", ["evidence", "queries"])
def test_an_empty_mask_is_named_with_its_sample(empty: str):
    masks = {name: torch.ones(2, 3, dtype=torch.bool) for name in ("evidence", "queries")}
    masks[empty][1] = False
    with pytest.raises(ValueError, match=rf"`{empty}` marks nothing in sample\(s\) \[1\]"):
        metrics.head_score(torch.full((2, 1, 3, 3), 1 / 3), masks["evidence"], masks["queries"])


def test_mistakes_in_the_axes_are_named():
    everything = torch.ones(1, 3, dtype=torch.bool)
    image = torch.tensor([[True, True, False]])
    pattern = torch.full((1, 1, 3, 3), 1 / 3)
    with pytest.raises(ValueError, match=r"`evidence` leaves `visual` in sample\(s\) \[0\]"):
        metrics.head_score(pattern, everything, everything, image, normalisation="lift")
    with pytest.raises(ValueError, match="compares with other tokens: pass `visual`"):
        metrics.head_score(pattern, everything, everything, normalisation="share")
    with pytest.raises(ValueError, match="masses lie between 3 and 3: `pattern` must hold probabilities"):
        metrics.retrieval_attention_mass(torch.ones(1, 1, 3, 3), everything, everything)


# --- writes ----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 3))
def test_writes_are_what_w_o_makes_of_values(seed: int, n_kv: int, group: int):
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(2, 5, n_kv, 4, generator=draw)
    W_O = torch.randn(n_kv * group, 4, 7, generator=draw)
    direction = torch.randn(2, 3, 7, generator=draw)
    sizes = metrics.output_norms(values, W_O)
    towards = metrics.logit_contributions(values, W_O, direction)
    for sample in range(2):
        for head in range(n_kv * group):
            for key in range(5):
                written = values[sample, key, head // group] @ W_O[head]
                assert_close(sizes[sample, head, 0, key], written.norm(), atol=1e-4, rtol=1e-4)
                assert_close(towards[sample, head, :, key], direction[sample] @ written, atol=1e-4, rtol=1e-4)


def test_a_head_that_writes_nothing_scores_zero_wherever_it_looks():
    pattern = torch.full((1, 2, 1, 4), 0.25)
    W_O = torch.stack([torch.zeros(3, 5), torch.ones(3, 5)])
    weighted = pattern * metrics.output_norms(torch.ones(1, 4, 1, 3), W_O)
    evidence, queries = torch.tensor([[True, False, False, True]]), torch.tensor([[True]])
    score = metrics.head_score(weighted, evidence, queries)
    assert_close(score, torch.tensor([[0.0, 0.5 * 3 * 5**0.5]]))


def test_copying_counts_each_token_of_the_evidence_once():
    pattern = torch.zeros(1, 2, 4, 5)
    for query, (first, second) in enumerate([(1, 1), (1, 2), (2, 0), (0, 3)]):
        pattern[0, 0, query, first] = pattern[0, 1, query, second] = 1
    pattern[0, :, 3] = torch.nan
    evidence = torch.tensor([[False, True, True, True, False]])
    keys, said = torch.tensor([[10, 11, 12, 13, 14]]), torch.tensor([[11, 11, 12, 13]])
    queries = torch.tensor([[True, True, True, False]])
    # Head 0 copies 11 twice and 12; head 1 copies 11, then looks at 12 while 11 is said.
    assert_close(metrics.retrieval_score(pattern, evidence, queries, keys, said), torch.tensor([[2 / 3, 1 / 3]]))


# --- sinks and places ------------------------------------------------------------------------------------------------


def test_sinks_are_positions_with_a_massive_activation():
    resid = torch.randn(1, 6, 1_000, generator=torch.Generator().manual_seed(0))
    resid[0, 2, 7], resid[0, 4, 900] = 500, -500
    assert metrics.attention_sinks(resid).tolist() == [[False, False, True, False, True, False]]
    assert not metrics.attention_sinks(resid, 32).any()  # more than the square root of the width


def test_spatial_entropy_counts_separate_places():
    maps = torch.zeros(5, 6, 6)
    maps[0, 1:3, 1:3] = 1  # one place
    maps[1, 0, 0] = maps[1, 5, 5] = 1  # two
    maps[2, 0, 0] = maps[2, 1, 1] = 1  # one: they touch at a corner
    maps[3, 0, 0], maps[3, 0, 3], maps[3, 3, 0], maps[3, 3, 3] = 4, 4, 4, 4  # four
    maps[4] = 0.5  # even: none
    expected = torch.tensor([0.0, math.log(2), 0.0, math.log(4), math.inf])
    assert_close(metrics.spatial_entropy(maps), expected, atol=1e-5, rtol=1e-5)
    assert metrics.spatial_entropy(maps.reshape(5, 1, 6, 6)).shape == (5, 1)


def test_presets_are_known_points_of_the_family():
    assert {
        "ram",
        "write_ram",
        "retrieval_head",
        "mmrethead",
        "vrh",
        "vera",
        "qrhead",
        "sparsemm",
        "locos",
        "relative_attention",
    } <= set(PRESETS)
    settings_of = {
        name: tuple(value for axis, value in vars(metric).items() if axis not in ("name", "label", "source"))
        for name, metric in PRESETS.items()
    }
    assert all(metric.source for metric in PRESETS.values())
    # MMRetHeads and QRHead differ in data alone.
    assert len(set(settings_of.values())) == len(PRESETS) - 1
    assert settings_of["ram"] == tuple(vars(Metric("x")).values())[2:-1]
