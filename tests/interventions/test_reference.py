"""Mean and resampled activations against loops over samples."""

import pytest
import torch
from torch.testing import assert_close

from corelens import Head, HeadSet, HookedMLLM, Role, ablate, mean_activations, resample_activations, toy
from corelens.interventions import reference
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
            assert_close(means[f"blocks.{layer}.attn.hook_z"][role], expected, atol=1e-4, rtol=1e-4, equal_nan=True)


@torch.no_grad()
@pytest.mark.parametrize("by_role", [False, True])
def test_means_of_some_positions_are_those_of_a_loop(model: HookedMLLM, by_role: bool):
    means = mean_activations(model, samples(), by_role=by_role, batch_size=2, positions="from_question").values
    z, roles = [], []
    for sample in samples():
        inputs = model.prepare(list(sample.images), sample.question)
        late = inputs.tokens.from_question[0]
        z.append(model.run_with_cache(inputs)[1]["z", 1][0, late])
        roles.append(inputs.tokens.role[0, late])
    z, roles = torch.cat(z), torch.cat(roles)
    for role in Role if by_role else [0]:
        expected = z[roles == role].mean(0) if by_role else z.mean(0)
        assert_close(means["blocks.1.attn.hook_z"][role], expected, atol=1e-4, rtol=1e-4, equal_nan=True)


def test_means_of_positions_that_no_sample_has_are_refused(model: HookedMLLM):
    with pytest.raises(ValueError, match="positions='video': no sample has any"):
        mean_activations(model, samples(), positions="video")


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
                    expected = means.values[f"blocks.{layer}.attn.hook_z"][role, head]
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
def test_resampled_outputs_are_those_of_one_other_sample_at_the_corresponding_position(model: HookedMLLM):
    layer, head, outputs = 1, 2, []
    for sample in samples():
        inputs = model.prepare(list(sample.images), sample.question)
        outputs.append((model.run_with_cache(inputs)[1]["z", layer][0, :, head], inputs.tokens.role[0]))
    inputs = sample_prompts(model)
    chosen = set()
    for seed in range(4):
        draws = resample_activations(model, samples(), batch_size=2, seed=seed)
        with model.hooks(fwd_hooks=ablate([Head(layer, head)], "resample", draws)):
            z = model.run_with_cache(inputs)[1]["z", layer][:, :, head]
        for row in range(2):
            role = inputs.tokens.role[row]
            is_donor = [
                all(
                    torch.allclose(
                        z[row, place], other[places[len(places) - 1 - nth % min(len(places), 64)]], atol=1e-4
                    )
                    for kind in (Role.QUESTION, Role.IMAGE, Role.STRUCTURAL)
                    for places in [(other_role == kind).nonzero().flatten()]
                    for nth, place in enumerate((role == kind).nonzero().flatten().flip(0))
                )
                for other, other_role in outputs
            ]
            assert sum(is_donor) == 1
            assert not is_donor[row]
            chosen.add((row, is_donor.index(True)))
    assert len({donor for row, donor in chosen if row == 0}) > 1


@torch.no_grad()
def test_samples_of_one_shape_and_length_are_given_other_samples(toy_model: HookedMLLM):
    draws = resample_activations(toy_model, toy.scenes(12, seed=33))
    written: list[tuple[float, ...]] = []

    def keep(z: torch.Tensor, hook: object) -> None:
        written.append(tuple(z[0, -1, 14].tolist()))

    for sample in toy.scenes(8, seed=21):
        hooks = [*ablate([Head(3, 14)], "resample", draws), ("blocks.3.attn.hook_z", keep)]
        toy_model.run_with_hooks(toy_model.prepare(sample.images[0], sample.question), fwd_hooks=hooks)
    assert len(set(written)) > 3


@torch.no_grad()
def test_of_many_samples_and_positions_some_are_kept(model: HookedMLLM, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reference, "N_DONORS", 3)
    monkeypatch.setattr(reference, "N_KEPT", 2)
    draws = resample_activations(model, samples())
    assert len(set(draws.prompts)) == 3
    assert int((draws.rows >= 0).sum(-1).max()) == 2
    assert all(len(values) == int(draws.rows.max()) + 1 for values in draws.values.values())


@torch.no_grad()
def test_a_sample_alone_has_no_other_to_resample_from(model: HookedMLLM):
    (sample,) = samples(1)
    hooks = ablate([Head(1, 2)], "resample", resample_activations(model, [sample]))
    with pytest.raises(ValueError, match="sample 0 is the only one that was measured, and resampling needs others"):
        model.run_with_hooks(model.prepare(list(sample.images), sample.question), fwd_hooks=hooks)
