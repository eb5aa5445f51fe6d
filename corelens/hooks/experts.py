"""HookedExperts: the hook point of a mixture of experts.

blocks.{layer}.mlp.hook_expert_weights        where experts are all of the MLP
blocks.{layer}.experts.hook_expert_weights    where they stand beside a dense one (Gemma 4)
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformer_lens.hook_points import HookPoint

from corelens.hf.layers import ExpertsModule
from corelens.hooks.taps import call_hook_by_token, call_hook_detecting_edits
from corelens.hooks.threads import in_this_thread


class HookedExperts(nn.Module):
    """Hook point of a mixture of experts: `hook_expert_weights`, [batch position expert].

    They are the factors of what the chosen experts write, and zero for the others. Where a hook changes them, the
    experts with the highest are chosen. Where visual tokens have experts of their own, these come after the others.
    """

    def __init__(self, experts: ExpertsModule) -> None:
        super().__init__()
        self.hf_experts = experts
        self.hook_expert_weights = HookPoint()

    @property
    def n_experts(self) -> int:
        """Number of experts to choose from."""
        return sum(map(_n_experts, self.hf_experts.routers))

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Connect the hook point, if it has hooks, until the block ends."""
        with ExitStack() as connections:
            if self.hook_expert_weights.has_hooks():
                by_modality = self.hf_experts.visual_router is not None
                for handle in self._connect_by_modality() if by_modality else self._connect():
                    connections.callback(handle.remove)
            yield

    def _connect(self) -> list[RemovableHandle]:
        """Call hooks on what the router returns: logits, weights, indices; or weights of all, logits (Llama 4)."""

        def call_hooks(router: nn.Module, args: Any, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            if len(output) == 2:
                weights, logits = output
                return call_hook_by_token(self.hook_expert_weights, weights), logits
            n_computed = self.hook_expert_weights.ctx["state"].n_computed
            weights = _weights_of_all(router, output).unflatten(0, (-1, n_computed))
            weights, edited = call_hook_detecting_edits(self.hook_expert_weights, weights)
            return _choose(weights.flatten(0, 1), output) if edited else output

        return [self.hf_experts.router.register_forward_hook(in_this_thread(call_hooks))]

    def _connect_by_modality(self) -> list[RemovableHandle]:
        """Call hooks on the weights of both routers before these run, and let each return what they made of its."""
        routers, edits = self.hf_experts.routers, dict[nn.Module, Tensor]()

        def call_hooks(module: nn.Module, args: tuple[Tensor, Tensor | None]) -> None:
            edits.clear()
            stream, types = args
            visual = stream.new_zeros(stream.shape[:2], dtype=torch.bool) if types is None else types.bool()
            served = dict(zip(routers, (~visual, visual), strict=True))
            parts = [_at(where, _weights_of_all(router, router(stream[where]))) for router, where in served.items()]
            weights, edited = call_hook_detecting_edits(self.hook_expert_weights, torch.cat(parts, -1))
            if not edited:
                return
            split = weights.split([_n_experts(router) for router in routers], -1)
            for (router, where), part in zip(served.items(), split, strict=True):
                if part[~where].any():
                    raise ValueError(
                        f"a hook on {self.hook_expert_weights.name} gave visual tokens experts of words, or words "
                        f"experts of visual tokens, which the model never does: of {self.n_experts}, the last "
                        f"{_n_experts(routers[-1])} are those of visual tokens."
                    )
                edits[router] = part[where]

        def replace(router: nn.Module, args: Any, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return _choose(edits[router], output) if router in edits else output

        return [
            self.hf_experts.module.register_forward_pre_hook(in_this_thread(call_hooks)),
            *(router.register_forward_hook(in_this_thread(replace)) for router in routers),
        ]


def _n_experts(router: nn.Module) -> int:
    """Number of experts of a router: rows of the matrix that scores them."""
    return next(len(parameter) for parameter in router.parameters() if parameter.ndim == 2)


def _weights_of_all(router: nn.Module, output: tuple[Tensor, ...]) -> Float[Tensor, "token expert"]:
    """Weights of all experts, from those of the chosen ones."""
    _, chosen, indices, *_ = output
    return chosen.new_zeros(len(chosen), _n_experts(router)).scatter(-1, indices, chosen)


def _choose(weights: Float[Tensor, "token expert"], output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Output of a router that chooses the experts with the highest weights."""
    logits, _, indices, *rest = output
    indices = weights.topk(indices.shape[-1]).indices
    return logits, weights.gather(-1, indices), indices, *rest


def _at(
    where: Bool[Tensor, "batch position"], weights: Float[Tensor, "token expert"]
) -> Float[Tensor, "batch position expert"]:
    """Weights at some positions, and zero elsewhere."""
    everywhere = weights.new_zeros(*where.shape, weights.shape[-1])
    everywhere[where] = weights
    return everywhere
