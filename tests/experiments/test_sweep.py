"""Sweeps over many samples: reference activations, and skipped samples."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

import corelens as cl
from corelens import Head, HeadSet, HookedMLLM, ablate, attention_knockout, sweep, toy
from corelens.experiments.ablation import ReferenceMethod
from corelens.experiments.sweep import run_sweep
from corelens.hooks.positions import PositionName
from corelens.inputs.prepare import PreparedInputs
from corelens.interventions import FwdHooks
from tests.helpers import tiny
from tests.helpers.prompts import answered_prompts, family_model, two_prompts


@pytest.mark.parametrize("method", ["mean", "mean_by_role", "resample"])
def test_groups_are_swept_with_what_the_samples_put_in_their_place(
    toy_model: HookedMLLM, method: ReferenceMethod, tmp_path: Path
):
    samples = list(toy.scenes(5, seed=0))
    means = partial(cl.mean_activations, toy_model, samples, positions="from_question")
    reference = {
        "mean": means,
        "mean_by_role": partial(means, by_role=True),
        "resample": partial(cl.resample_activations, toy_model, samples),
    }[method]()
    expected = cl.sweep(
        toy_model,
        samples,
        partial(
            cl.ablate,
            method="resample" if method == "resample" else "mean",
            reference=reference,
            positions="from_question",
        ),
        per="group",
    )
    swept = run_sweep(toy_model, samples, method, "group", tmp_path / "run")
    assert [str(unit) for unit in swept.units] == [str(unit) for unit in expected.units]
    assert_close(swept.drop, expected.drop, atol=1e-5, rtol=1e-4)
    assert not (tmp_path / "run" / "sweep.safetensors").exists()


def test_samples_that_cannot_be_swept_are_left_out_with_their_reason(toy_model: HookedMLLM, tmp_path: Path):
    first, second, third = toy.scenes(3, seed=0)
    mixed = [replace(first, images=(tmp_path / "nowhere.png",)), second, replace(third, answer="")]
    for _ in range(2):  # the second time from the folder
        with pytest.warns(UserWarning, match="2 of 3 samples cannot be measured"):
            swept = run_sweep(toy_model, mixed, per="layer", out=tmp_path / "run")
        assert swept.samples == (second.id,)
        assert "there is no picture file" in swept.skipped[first.id]
        assert "has no token" in swept.skipped[third.id]
        assert_close(swept.values, run_sweep(toy_model, [second], per="layer").values)


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def model(request: pytest.FixtureRequest) -> HookedMLLM:
    return family_model(request.param)


def halve_head(z: torch.Tensor, hook: Any, head: int) -> None:
    z[:, :, head] *= 0.5


def zero_hooks(inputs: PreparedInputs, positions: PositionName | None) -> Callable[[Iterable[Head]], FwdHooks]:
    return lambda heads: ablate(heads, positions=positions)


def uniform_hooks(inputs: PreparedInputs) -> Callable[[Iterable[Head]], FwdHooks]:
    mask = inputs.tokens.from_question  # one mask for all heads: their hooks share a pass
    return lambda heads: ablate(heads, "uniform", positions=mask)


def knockout_hooks(inputs: PreparedInputs) -> Callable[[Iterable[Head]], FwdHooks]:
    return lambda heads: attention_knockout(heads, "from_question", "image")


def halving_hooks(inputs: PreparedInputs) -> Callable[[Iterable[Head]], FwdHooks]:
    """A function that is no `Intervention`, so that it runs by itself."""
    return lambda heads: [(f"blocks.{layer}.attn.hook_z", partial(halve_head, head=head)) for layer, head in heads]


INTERVENTIONS: dict[str, Callable[[PreparedInputs], Callable[[Iterable[Head]], FwdHooks]]] = {
    "zero, late": partial(zero_hooks, positions="from_question"),
    "zero, everywhere": partial(zero_hooks, positions=None),
    "uniform, late": uniform_hooks,
    "knockout": knockout_hooks,
    "a function": halving_hooks,
}


def answer_log_prob(logits: torch.Tensor, inputs: PreparedInputs, sample: int) -> float:
    """Sum over the answer's positions t of log softmax(logits[t - 1])[token t]."""
    log_probs = logits[sample].log_softmax(-1)
    positions = inputs.tokens.answer[sample].nonzero().flatten().tolist()
    return sum(float(log_probs[position - 1, inputs["input_ids"][sample, position]]) for position in positions)


@torch.no_grad()
@pytest.mark.parametrize("name", INTERVENTIONS)
def test_a_sweep_is_one_pass_for_each_head(model: HookedMLLM, name: str):
    inputs = answered_prompts(model)
    intervention = INTERVENTIONS[name](inputs)
    result = sweep(model, inputs, intervention, at_once=5)
    assert result.values.shape == (2, 12)
    assert [str(unit) for unit in result.units] == [str(head) for head in model.heads]
    for column, head in enumerate(model.heads):
        logits = model.run_with_hooks(inputs, fwd_hooks=intervention([head]))
        for sample in range(2):
            expected = answer_log_prob(logits, inputs, sample)
            assert_close(result.values[sample, column].item(), expected, atol=1e-5, rtol=1e-5)
    assert result.drop.abs().amax() > 1e-2


@torch.no_grad()
def test_layers_groups_and_sets_of_heads_are_swept(model: HookedMLLM):
    inputs = answered_prompts(model)
    layers, groups = sweep(model, inputs, per="layer"), sweep(model, inputs, per="group")
    assert [str(unit) for unit in layers.units][1] == "L1H0, L1H1, L1H2, L1H3"
    sizes = {len(unit) for unit in groups.units}
    assert sizes == {4 // model.run_with_cache(inputs, names_filter="blocks.0.attn.hook_k")[1]["k", 0].shape[2]}
    sets = sweep(model, inputs, per=[layers.units[2], groups.units[0]])
    assert_close(sets.values, torch.stack([layers.values[:, 2], groups.values[:, 0]], -1), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="units of several heads have no scores"):
        layers.scores()


@torch.no_grad()
def test_a_sweep_over_samples_ranks_heads(toy_model: HookedMLLM):
    """The heads that fetch the evidence are those whose loss costs most."""
    result = sweep(toy_model, list(toy.scenes(6, seed=3)), batch_size=4, at_once=8)
    assert result.samples == tuple(sample.id for sample in toy.scenes(6, seed=3))
    scores = result.scores()
    assert scores.metric == "drop in log probability"
    assert scores.values.shape == (6, 6, 16)
    assert Head(3, 14) in scores.top(0.05)


def test_a_sweep_needs_answers_and_heads_that_exist(model: HookedMLLM):
    with pytest.raises(ValueError, match="these prompts have no expected answers"):
        sweep(model, two_prompts(model))
    with pytest.raises(ValueError, match="L7H0 does not exist"):
        sweep(model, answered_prompts(model), per=[HeadSet.parse("L7H0")])
