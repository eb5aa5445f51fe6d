"""Gradients of a metric by the outputs of all heads: what attribution patching and its refinements are made of."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import ActivationCache

from corelens.causal.answers import AnswerLogProbs
from corelens.causal.effects import PatchingMetric
from corelens.errors import docs_link
from corelens.hooks.points import layer_of
from corelens.inputs.prepare import PreparedInputs
from corelens.interventions import FwdHooks
from corelens.model import HookedMLLM

HeadTensors = Mapping[str, Float[Tensor, "batch position _head _d_head"]]
"""Head outputs, their changes or their gradients, by hook name."""


@dataclass(frozen=True, eq=False)
class HeadGradients:
    """Gradients of one pass, and what it computed."""

    outputs: dict[str, Tensor]
    """Head outputs, by hook name."""

    gradients: dict[str, Tensor]
    """Gradients of the metric by them, by hook name."""

    @classmethod
    def of(
        cls,
        model: HookedMLLM,
        inputs: PreparedInputs,
        metric: PatchingMetric,
        clean: AnswerLogProbs | None = None,
        fwd_hooks: FwdHooks | None = None,
    ) -> "HeadGradients":
        """Run the prompts once, forward and backward.

        Args:
            model: The model.
            inputs: Prompts with answers appended.
            metric: The number whose gradient it is.
            clean: The answer without intervention; None if this pass has none.
            fwd_hooks: Hooks of the pass. Where they change head outputs, the gradient is by the changed ones.
        """
        outputs: dict[str, Tensor] = {}
        leaves: dict[str, Tensor] = {}

        def add_leaf(z: Float[Tensor, "batch query head d_head"], hook: Any) -> Tensor:
            # A leaf that changes nothing: its gradient is that of z, also if no parameter requires one.
            outputs[hook.name] = z.detach()
            leaves[hook.name] = torch.zeros_like(z, requires_grad=True)
            return z + leaves[hook.name]

        hooks = [*(fwd_hooks or []), *((name, add_leaf) for name in model.attn_names("z"))]
        with torch.enable_grad(), model.hooks(fwd_hooks=hooks):
            answers = AnswerLogProbs.of(model(inputs), inputs)
            total = metric(answers, clean or answers.detach()).sum()
            # Where nothing leads from a head to the metric, its gradient is zero.
            gradients = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
        return cls(outputs, dict(zip(leaves, gradients, strict=True)))


def changes_to_source(
    cache: ActivationCache | Mapping[str, Tensor], outputs: HeadTensors, index: Int[Tensor, "batch position"]
) -> HeadTensors:
    """Differences between head outputs of the source and those of the target, by hook name.

    Args:
        cache: The source's head outputs.
        outputs: The target's.
        index: The source position of each position of the target, as `align` returns it. Differences are zero where it
            is -1.
    """
    sample = torch.arange(len(index), device=index.device)[:, None]
    chosen = (index >= 0)[..., None, None]
    return {
        name: torch.where(chosen, cache[name].detach()[sample, index.clamp(min=0)].to(z) - z, 0)
        for name, z in outputs.items()
    }


def first_order_effects(
    model: HookedMLLM, changes: HeadTensors, gradients: HeadTensors
) -> Float[Tensor, "batch layer head"]:
    """Changes times gradients, summed over each head's output; zero where there is no head."""
    n_samples = len(next(iter(changes.values())))
    effects = torch.zeros(n_samples, model.cfg.n_layers, model.cfg.n_heads, device=model.device)
    for name, change in changes.items():
        of_layer = einsum(
            change.float(), gradients[name].float(), "batch query head d_head, batch query head d_head -> batch head"
        )
        effects[:, layer_of(name), : of_layer.shape[1]] = of_layer
    return effects


def check_has_gradient(metric: PatchingMetric, model: HookedMLLM, inputs: PreparedInputs) -> None:
    """Raise a ValueError if a metric gives numbers without a gradient, such as ranks or exact matches.

    Computes it once from even log-probabilities, which takes no pass.
    """
    n_samples, n_positions = inputs.tokens.role.shape
    answered = inputs.tokens.answer.any(0)
    first = int(answered.to(torch.uint8).argmax()) - 1 if answered.any() else 0
    vocabulary = model.hf_model.config.get_text_config().vocab_size
    with torch.enable_grad():
        logits = torch.zeros(n_samples, n_positions - first, vocabulary, device=model.device, requires_grad=True)
        answers = AnswerLogProbs.of(logits, inputs, first)
        values: Any = metric(answers, answers.detach())
    if not (isinstance(values, Tensor) and values.requires_grad):
        raise ValueError(
            f"metric={getattr(metric, '__name__', metric)} has no gradient, since it counts or compares: take "
            f"logit_margin, logit_diff or log_prob, or measure it by a sweep with patch. {docs_link('no-gradient')}"
        )
