"""Passes of the explorer: cancellation, and scores behind a prefix."""

from dataclasses import replace

import pytest
import torch

import corelens as cl
from corelens import HookedMLLM, Sample
from corelens.experiments.head_metrics import score_heads
from corelens.experiments.layer_scores import ScoringInputs
from corelens.explorer import Explorer
from corelens.explorer.compute import Cancelled
from corelens.metrics import PRESETS
from corelens.tokens import Role
from tests.helpers import tiny


def test_a_cancelled_view_stops_between_layers(toy_model: HookedMLLM, scenes: list[Sample]):
    explorer = Explorer(toy_model, scenes)
    first = explorer.first()
    calls = []

    def cancelled() -> bool:
        calls.append(None)
        return len(calls) > 40

    with pytest.raises(Cancelled):
        explorer.view(replace(first, metric="effect"), cancelled)
    assert len(calls) == 41
    assert not any(module._forward_pre_hooks for module in toy_model.hf_model.modules())
    assert explorer.view(first) == Explorer(toy_model, scenes).view(first)


@pytest.mark.parametrize("metric", ["ram_last", "answer_ram", "entropy", "sink_share"])
@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_scores_after_a_prefix_are_those_of_a_whole_pass(name: str, metric: str):
    model = cl.HookedMLLM(tiny.build(name))
    inputs = tiny.batch(name, padded=False)
    role = torch.where(inputs["input_ids"] == tiny.IMAGE, int(Role.IMAGE), int(Role.QUESTION))
    columns = {column: -torch.ones_like(role) for column in ("media", "view", "row", "column")}
    nan = torch.full((*role.shape, 4), torch.nan)
    tokens = cl.TokenMap(role, overview=role < 0, box=nan, seconds=nan[..., :2], sizes=((), ()), **columns)
    scoring = ScoringInputs(tokens, role == Role.IMAGE, {"last": tokens.last}, -torch.ones_like(role))
    scored_metric = PRESETS.get(metric, metric)
    whole_pass = score_heads(model, inputs, scoring, [scored_metric])[metric]
    after_prefix = score_heads(model, inputs, scoring, [scored_metric], model.prefix(inputs, role.shape[1] - 4))[metric]
    print("largest difference", float((whole_pass - after_prefix).abs().max()))
    torch.testing.assert_close(after_prefix, whole_pass, rtol=1e-3, atol=1e-5)
