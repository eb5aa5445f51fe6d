"""Mean and resampled activations against loops over samples."""

import pytest
import torch
from torch.testing import assert_close

from corelens import Head, HeadSet, HookedMLLM, Role, ablate, mean_activations, resample_activations
from tests.helpers import processors, tiny
from tests.helpers.prompts import sample_prompts
from tests.helpers.questions import samples

HEADS = "L0H1, L2H0, L2H3"


@pytest.fixture(scope="module", params=["qwen3_vl", "llava"])
def model(request: pytest.FixtureRequest) -> HookedMLLM:
    return HookedMLLM(tiny.build(request.param), processors.build(request.param))


def sample_activations(model: HookedMLLM, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`z` [position head d_head] and role [position] of all samples, each run by itself and none padded."""
    activations, roles = [], []
    for sample in samples():
        inputs = model.prepare(list(sample.images), sample.question)
        activations.append(model.run_with_cache(inputs)[1]["z", layer][0])
        roles.append(inputs.tokens.role[0])
    return torch.cat(activations), torch.cat(roles)


@torch.no_grad()
@pytest.mark.parametrize("by_role", [False, True])
def test_means_are_those_of_a_loop_over_samples(model: HookedMLLM, by_role: bool):
    means = mean_activations(model, samples(), by_role=by_role, batch_size=2).values
    for layer in range(3):
        z, roles = sample_activations(model, layer)
        for role in Role if by_role else [0]:
            expected = z[roles == role].mean(0) if by_role else z.mean(0)
            assert_close(means[f"blocks.{layer}.attn.hook_z"][0, role], expected, atol=1e-4, rtol=1e-4, equal_nan=True)


@torch.no_grad()
def test_mean_ablation_writes_the_means(model: HookedMLLM):
    pooled, by_role = mean_activations(model, samples()), mean_activations(model, samples(), by_role=True)
    inputs = sample_prompts(model)
    _, plain = model.run_with_cache(inputs)
    for means in (pooled, by_role):
        with model.hooks(fwd_hooks=ablate(HeadSet.parse(HEADS), "mean", means, positions=~inputs.tokens.padding)):
            _, cache = model.run_with_cache(inputs)
        real = ~inputs.tokens.padding
        role = inputs.tokens.role[real] if means is by_role else 0
        for layer in range(3):
            for head in range(4):
                z = cache["z", layer][real][:, head]
                if f"L{layer}H{head}" in HEADS.split(", "):
                    expected = means.values[f"blocks.{layer}.attn.hook_z"][0, role, head]
                    assert torch.equal(z, expected.expand_as(z))
                elif layer == 0:
                    assert torch.equal(z, plain["z", layer][real][:, head])


@torch.no_grad()
@pytest.mark.parametrize("by_role", [False, True])
def test_mean_ablation_of_a_padded_batch_is_that_of_its_samples(model: HookedMLLM, by_role: bool):
    hooks = ablate(HeadSet.parse(HEADS), "mean", mean_activations(model, samples(), by_role=by_role))
    inputs = sample_prompts(model)
    assert inputs.tokens.padding.any()
    together = model.run_with_hooks(inputs, fwd_hooks=hooks)[:, -1]
    for sample, logits in zip(samples(2), together, strict=True):
        alone = model.run_with_hooks(model.prepare(list(sample.images), sample.question), fwd_hooks=hooks)[0, -1]
        assert_close(logits, alone, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_resampled_outputs_are_outputs_of_the_same_role(model: HookedMLLM):
    draws = resample_activations(model, samples(), by_role=True)
    activations, roles = sample_activations(model, layer=1)
    inputs = sample_prompts(model)
    hooks = ablate([Head(1, 2)], "resample", draws, positions=~inputs.tokens.padding)
    with model.hooks(fwd_hooks=hooks):
        z = model.run_with_cache(inputs)[1]["z", 1][:, :, 2]
        repeated = model.run_with_cache(inputs)[1]["z", 1][:, :, 2]
    assert torch.equal(z, repeated)
    for role in (Role.QUESTION, Role.IMAGE, Role.STRUCTURAL):
        candidates = activations[roles == role][:, 2]
        distance = torch.cdist(z[inputs.tokens.role == role], candidates, compute_mode="donot_use_mm_for_euclid_dist")
        assert distance.amin(1).max() < 1e-3
        assert len(distance.argmin(1).unique()) > 1
