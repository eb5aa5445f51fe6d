"""GradDrop against gradients that are cut by hand, and where a layer undoes what all others write."""

from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from corelens import HookedMLLM, append_answers, attribution_patch, grad_drop
from corelens.causal import AnswerLogProbs, logit_margin
from corelens.inputs.prepare import PreparedInputs
from tests.helpers import processors, tiny
from tests.helpers.prompts import QUESTION, random_picture


@pytest.fixture(scope="module", params=["qwen3_vl", "llava"])
def model(request: pytest.FixtureRequest) -> HookedMLLM:
    return HookedMLLM(tiny.build(request.param), processors.build(request.param))


@pytest.fixture(scope="module")
def prompts(model: HookedMLLM) -> tuple[PreparedInputs, PreparedInputs]:
    inputs, source = (
        append_answers(model, model.prepare(random_picture(seed), QUESTION), ["seven"]) for seed in (1, 0)
    )
    return inputs, source


@pytest.fixture(scope="module")
def cache(model: HookedMLLM, prompts: tuple[PreparedInputs, PreparedInputs]) -> dict[str, Tensor]:
    with torch.no_grad():
        return dict(model.run_with_cache(prompts[1], names_filter=model.attn_names("z"))[1])


def estimates_with_a_cut(
    model: HookedMLLM, inputs: PreparedInputs, cache: dict[str, Tensor], cut: int
) -> dict[tuple[int, int], float]:
    """Estimates by PyTorch hooks on the Hugging Face model, the gradient cut at one layer's contribution."""
    blocks: Any = [layer.block for layer in model.hf_layers]
    read_by_w_o: dict[int, Tensor] = {}
    handles = []
    for number, block in enumerate(blocks):

        def read(module: nn.Module, args: tuple[Tensor, ...], number: int = number) -> tuple[Tensor]:
            read_by_w_o[number] = args[0].detach().requires_grad_()
            return (args[0] + read_by_w_o[number] - read_by_w_o[number].detach(),)

        handles.append(block.self_attn.o_proj.register_forward_pre_hook(read))

    def detach_contribution(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        before = args[0] if args else kwargs["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        after = before + (after - before).detach()
        return (after, *output[1:]) if isinstance(output, tuple) else after

    handles.append(blocks[cut].register_forward_hook(detach_contribution, with_kwargs=True))
    try:
        answers = AnswerLogProbs.of(model.hf_model(**inputs).logits, inputs)
    finally:
        for handle in handles:
            handle.remove()
    margin = logit_margin(answers, answers).sum()
    estimates = {}
    for number in range(len(blocks)):
        (gradient,) = torch.autograd.grad(margin, read_by_w_o[number], retain_graph=True, allow_unused=True)
        there = rearrange(cache[f"blocks.{number}.attn.hook_z"], "batch position head d -> batch position (head d)")
        products = (there - read_by_w_o[number].detach()) * (0 if gradient is None else gradient)
        width = products.shape[-1] // model.cfg.n_heads
        for head in range(model.cfg.n_heads):
            estimates[number, head] = float(products[..., head * width : (head + 1) * width].sum())
    return estimates


def test_the_mean_over_layers_of_estimates_whose_gradient_is_cut_by_hand(
    model: HookedMLLM, prompts: tuple[PreparedInputs, PreparedInputs], cache: dict[str, Tensor]
):
    inputs, source = prompts
    found = grad_drop(model, cache, source.tokens, inputs)[0]
    n_layers = model.cfg.n_layers
    by_cut = [estimates_with_a_cut(model, inputs, cache, cut) for cut in range(n_layers)]
    for (layer, head), value in by_cut[0].items():
        estimates = [abs(of_cut[layer, head]) for of_cut in by_cut]
        assert estimates[layer] == 0
        expected = sum(estimates) / (n_layers - 1)
        assert float(found[layer, head]) == pytest.approx(expected, rel=1e-3, abs=1e-6), (layer, head, value)


def test_the_last_layer_has_the_size_of_its_plain_estimates(
    model: HookedMLLM, prompts: tuple[PreparedInputs, PreparedInputs], cache: dict[str, Tensor]
):
    """Its heads have no path through another layer."""
    inputs, source = prompts
    plain = attribution_patch(model, cache, source.tokens, inputs)
    torch.testing.assert_close(grad_drop(model, cache, source.tokens, inputs)[:, -1], plain[:, -1].abs())


def test_heads_whose_direct_effect_a_later_layer_undoes_are_found(
    model: HookedMLLM, prompts: tuple[PreparedInputs, PreparedInputs], cache: dict[str, Tensor]
):
    inputs, source = prompts
    last, before = model.cfg.n_layers - 1, []

    def keep(stream: Tensor, hook: Any) -> None:
        before[:] = [stream]

    def undo(stream: Tensor, hook: Any) -> Tensor:
        return stream.detach() + before[0] - before[0]

    hooks = [(f"blocks.{last}.hook_resid_pre", keep), (f"blocks.{last}.hook_resid_post", undo)]
    with model.hooks(fwd_hooks=hooks):
        assert not attribution_patch(model, cache, source.tokens, inputs).any()
        found = grad_drop(model, cache, source.tokens, inputs)[:, :last]
    assert (found > 0).all()
