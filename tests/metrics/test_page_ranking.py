"""Masses of pages and Recall@k: against loops."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from corelens import metrics
from tests.helpers.patterns import AttentionExample, attention_examples


@given(attention_examples(), st.integers(0, 10**6))
def test_masses_are_those_of_loops_whatever_other_rows_hold(example: AttentionExample, seed: int):
    batch, n_heads, n, _ = example.pattern.shape
    pages = torch.randint(-1, 3, (batch, n), generator=torch.Generator().manual_seed(seed))
    pattern = example.pattern.masked_fill(~example.queries[:, None, :, None], torch.nan)
    masses = metrics.page_masses(pattern, pages, example.queries)
    assert masses.shape == (batch, n_heads, int(pages.max()) + 1)
    for sample in range(batch):
        rows = example.queries[sample].nonzero().flatten().tolist()
        for head in range(n_heads):
            for page in range(masses.shape[-1]):
                keys = [key for key in range(n) if pages[sample, key] == page]
                total = sum(float(example.pattern[sample, head, row, key]) for row in rows for key in keys)
                assert float(masses[sample, head, page]) == pytest.approx(total / len(rows), abs=1e-6)


@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 8), st.integers(0, 10**6))
def test_recall_is_that_of_sorted_pages(n_samples: int, n_pages: int, k: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(-2, 3, (n_samples, n_pages), generator=generator) / 4  # many are equal
    relevant = torch.rand(n_samples, n_pages, generator=generator) < 0.4
    relevant[:, 0] = True
    missing = torch.rand(n_samples, n_pages, generator=generator) < 0.3
    missing[:, 0] = False
    relevant &= ~missing
    recall = metrics.recall_at_k(scores.masked_fill(missing, torch.nan), relevant, k)
    for sample in range(n_samples):
        there = [page for page in range(n_pages) if not missing[sample, page]]
        first = sorted(there, key=lambda page: (-float(scores[sample, page]), page))[:k]
        wanted = {page for page in there if relevant[sample, page]}
        assert float(recall[sample]) == pytest.approx(len(wanted & set(first)) / len(wanted))


def test_without_pages_there_are_no_masses():
    masses = metrics.page_masses(torch.ones(1, 2, 3, 3), torch.full((1, 3), -1), torch.ones(1, 3, dtype=torch.bool))
    assert masses.shape == (1, 2, 0)


def test_what_is_undefined_is_refused():
    with pytest.raises(ValueError, match="`relevant` marks nothing in sample"):
        metrics.recall_at_k(torch.zeros(2, 3), torch.tensor([[True, False, False], [False] * 3]), 1)
    with pytest.raises(ValueError, match="k=0 is less than one"):
        metrics.recall_at_k(torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool), 0)
    with pytest.raises(ValueError, match="`queries` marks nothing in sample"):
        metrics.page_masses(torch.ones(1, 1, 2, 2), torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 2).bool())
