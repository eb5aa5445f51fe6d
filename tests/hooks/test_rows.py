"""Rows of chosen queries: taken, edited and put back, against loops over samples."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from corelens.hooks.positions import PositionSelector
from corelens.hooks.rows import QueryRows, RowHook, call_detecting_edits, limit_rows, row_mask

masks = st.integers(1, 4).flatmap(
    lambda n_samples: st.integers(1, 6).flatmap(
        lambda n_queries: st.lists(
            st.lists(st.booleans(), min_size=n_queries, max_size=n_queries), min_size=n_samples, max_size=n_samples
        ).map(torch.tensor)
    )
)


@given(masks)
def test_rows_of_a_sample_are_its_chosen_queries_in_order(queries: Tensor):
    rows = QueryRows.of(queries)
    tensor = torch.arange(queries.numel() * 6).view(len(queries), 2, -1, 3)
    taken = rows.take(tensor)
    assert torch.equal(rows.real, row_mask(queries))
    for sample, chosen in enumerate(queries):
        expected = tensor[sample, :, chosen]
        assert torch.equal(taken[sample, :, rows.real[sample]], expected)


@given(masks)
def test_rows_put_back_replace_the_chosen_queries_alone(queries: Tensor):
    rows = QueryRows.of(queries)
    outputs = torch.arange(queries.numel() * 2.0).view(*queries.shape, 2)
    replaced = rows.put(outputs, torch.full((*rows.real.shape, 2), -1.0))
    assert torch.equal(replaced, torch.where(queries[..., None], -1.0, outputs))


def test_a_function_that_selects_rows_keeps_its_own_and_others_are_limited_to_the_queries():
    queries = torch.tensor([[True, False]])

    class OnTheLast:
        where = PositionSelector("last")

        def __call__(self, tensor: Tensor, hook: object) -> None: ...

    def record(tensor: Tensor, hook: object) -> None: ...

    own = OnTheLast()
    pattern, z = "blocks.0.attn.hook_pattern", "blocks.0.attn.hook_z"
    (_, limited), (_, kept), (_, on_z) = limit_rows([(pattern, record), (pattern, own), (z, record)], queries)
    assert isinstance(limited, RowHook)
    assert limited.where.prompt is queries
    assert isinstance(kept, RowHook)
    assert kept.where is own.where
    assert on_z is record
    assert limit_rows([(pattern, record)], None) == [(pattern, record)]


def test_edits_are_noticed_in_place_and_as_replacements():
    tensor = torch.zeros(2)
    assert not call_detecting_edits(lambda values: None, tensor)[1]
    assert not call_detecting_edits(lambda values: values, tensor)[1]
    assert call_detecting_edits(lambda values: values + 1, tensor)[1]
    assert call_detecting_edits(lambda values: values.add_(1), tensor)[1]
    with torch.inference_mode():
        assert call_detecting_edits(lambda values: values.add_(1), torch.zeros(2))[1]
