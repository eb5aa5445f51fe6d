"""Rankings for circuits: against patches of all heads, and against a loop of passes."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from corelens import Head, HookedMLLM, attribution_scores, circuit_curves, eliminate_heads, toy
from corelens.causal.effects import rank
from corelens.experiments.ablation import ReferenceMethod
from corelens.experiments.circuit_search import _rounds
from tests.experiments.test_circuits import ODD, build, margins
from tests.helpers.questions import samples


@pytest.mark.parametrize(("name", "method"), [("qwen3_vl", "resample"), ("llava", "mean"), *ODD])
def test_integrated_gradients_add_up_to_the_ablation_of_all_heads(name: str, method: ReferenceMethod):
    model, asked = build(name), samples(2)
    scores = attribution_scores(model, asked, "integrated_gradients", method)
    loss = margins(model, asked, []) - margins(model, asked, model.heads, method)
    assert_close(scores.values.nansum((1, 2)), loss, atol=0.02, rtol=0.02)
    assert {Head(*head) for head in scores.mask.nonzero().tolist()} == set(model.heads)
    assert scores.metric == "drop in logit margin by integrated_gradients"
    assert scores.samples == ("s0", "s1")


def test_attribution_is_the_slope_of_a_small_part_of_an_ablation():
    """A head whose output hardly moves: moving all of it, estimated to first order, is what is attributed."""
    model, asked = build("qwen3_vl"), samples(1)
    scores = attribution_scores(model, asked, method="zero")
    (plain,) = margins(model, asked, [])
    late = model.prepare(list(asked[0].images), asked[0].question).tokens.from_question[0].to(torch.uint8).argmax()

    def shrink(z: torch.Tensor, hook: object, number: int) -> None:
        z[:, late:, number] *= 1 - 1e-2

    for head in model.heads:
        with model.hooks(fwd_hooks=[(f"blocks.{head.layer}.attn.hook_z", partial(shrink, number=head.head))]):
            (moved,) = margins(model, asked, [])
        assert float(plain - moved) / 1e-2 == pytest.approx(float(scores.per_head[head]), abs=0.02, rel=0.1)


@pytest.mark.parametrize("at_once", [1, 0.3])
def test_elimination_is_a_loop_of_passes(at_once: float):
    model, asked = build("llava"), samples(2)
    left, gone = list(model.heads), []
    while len(left) > 1:
        n = at_once if isinstance(at_once, int) else -int(-at_once * len(left) // 1)
        means = {head: float(margins(model, asked, [*gone, head]).mean()) for head in left}
        for head in sorted(left, key=means.__getitem__, reverse=True)[: min(n, len(left) - 1)]:
            left.remove(head)
            gone.append(head)
    found = eliminate_heads(model, asked, at_once, "zero")
    assert list(found) == [*left, *gone[::-1]]


def test_elimination_beats_random_orders(toy_model: HookedMLLM):
    asked = list(toy.scenes(2, seed=1))
    ranking = eliminate_heads(toy_model, asked, 0.5)
    curves = circuit_curves(toy_model, asked, {"elimination": ranking}, (5, 10), seeds=range(3))
    assert float(curves.area("elimination", "cpr")) > float(curves.area("random", "cpr").max())


@given(st.integers(1, 200), st.integers(1, 50) | st.floats(0.01, 0.9))
def test_rounds_end_with_one_head_and_their_number_is_bounded(n_heads: int, at_once: float):
    rounds = _rounds(n_heads, at_once)
    assert (rounds[0], rounds[-1]) == (n_heads, 1)
    assert all(n > n_next for n, n_next in pairwise(rounds))
    assert sum(rounds[:-1]) <= n_heads * (n_heads + 1) // 2 - 1
    if isinstance(at_once, float):
        assert sum(rounds[:-1]) <= n_heads / at_once
    assert sum(_rounds(n_heads, 1)[:-1]) == n_heads * (n_heads + 1) // 2 - 1


def test_what_cannot_rank_is_refused(toy_model: HookedMLLM):
    asked = list(toy.scenes(2, seed=0))
    for at_once in (0, -1, 1.0, 0.0):
        with pytest.raises(ValueError, match="is no number of heads: give one, such as 1, or a share"):
            eliminate_heads(toy_model, asked, at_once)
    with pytest.raises(ValueError, match="metric=rank has no gradient"):
        attribution_scores(toy_model, asked, metric=rank)
    with pytest.raises(ValueError, match="there are no samples"):
        eliminate_heads(toy_model, [])
