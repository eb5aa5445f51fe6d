"""Write-matched controls against what they promise of every draw."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from corelens.experiments.controls import FACTOR, write_matched_random
from corelens.heads import Head, HeadSet
from corelens.scores import HeadScores


def write_norm(per_head: torch.Tensor) -> HeadScores:
    return HeadScores(per_head[None].float(), "write norm", ("s",))


@given(st.integers(0, 10**6), st.integers(1, 6))
def test_each_draw_writes_as_much_in_the_nearest_layer_that_does(seed: int, n: int):
    generator = torch.Generator().manual_seed(seed)
    norms = torch.rand(4, 12, generator=generator) + 0.5
    scores = write_norm(norms)
    heads = HeadSet(tuple(Head(*divmod(index, 12)) for index in torch.randperm(48, generator=generator)[:n].tolist()))
    draws = write_matched_random(heads, scores, range(3))
    assert [draw.heads for draw in draws] == [draw.heads for draw in write_matched_random(heads, scores, range(3))]
    for draw in draws:
        assert len(draw) == n
        assert not {*draw} & {*heads}
        for head, control in zip(heads, draw, strict=True):
            assert norms[head] / FACTOR <= norms[control] <= norms[head] * FACTOR
            nearer = [
                other
                for other in scores.ranked()
                if abs(other.layer - head.layer) < abs(control.layer - head.layer)
                and norms[head] / FACTOR <= norms[other] <= norms[head] * FACTOR
            ]
            assert {*nearer} <= {*heads, *draw}, "a nearer head that nobody took would have matched"


def test_a_draw_that_took_the_only_partner_of_another_head_begins_again():
    """The first head may take L0H3 or L0H4; the others share L0H4 and L0H5, and need both."""
    heads = HeadSet((Head(0, 0), Head(0, 1), Head(0, 2)))
    norms = torch.tensor([[1.0, 4.0, 4.0, 0.5, 2.0, 5.0]])
    for draw in write_matched_random(heads, write_norm(norms), range(20)):
        assert draw.heads[0] == Head(0, 3)
        assert {*draw.heads[1:]} == {Head(0, 4), Head(0, 5)}


def test_draws_reach_every_candidate():
    norms = torch.zeros(2, 6)
    norms[1] = torch.tensor([1.0, 1.5, 0.6, 3.0, 0.2, float("nan")])
    draws = write_matched_random(HeadSet((Head(1, 0),)), write_norm(norms), range(20))
    assert {head for draw in draws for head in draw} == {Head(1, 1), Head(1, 2)}


def test_heads_that_write_nothing_are_no_controls():
    norms = torch.zeros(2, 6)
    norms[0, :2] = 1.0
    with pytest.raises(ValueError, match=r"no control for 2 heads: L0H. writes 1, and no other head that is left"):
        write_matched_random(HeadSet((Head(0, 0), Head(0, 1))), write_norm(norms), [0])
    with pytest.raises(ValueError, match="L1H0 writes 0, and no other head"):
        write_matched_random(HeadSet((Head(1, 0),)), write_norm(norms), [0])
    with pytest.raises(ValueError, match="L5H0 has no write norm"):
        write_matched_random(HeadSet((Head(5, 0),)), write_norm(norms), [0])
