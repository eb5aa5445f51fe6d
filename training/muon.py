"""Muon in float32: torch's computes in bfloat16, which processors without instructions for it do ten times slower."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Muon(Optimizer):
    """`torch.optim.Muon` with its Newton-Schulz iteration in float32, and steps as large as AdamW's.

    Args:
        params: Weight matrices.
        lr: Learning rate.
        weight_decay: Decay of the weights, times the learning rate.
        momentum: Nesterov momentum.
    """

    def __init__(self, params: Iterable[Any], lr: float, weight_decay: float = 0.1, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every matrix by the orthogonal factor of its momentum."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                mean = state.setdefault("momentum_buffer", torch.zeros_like(parameter))
                mean.lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonal_factor(parameter.grad.lerp(mean, group["momentum"]))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                # A root mean square of 0.2, as AdamW's steps have (Liu et al. 2025).
                parameter.add_(update, alpha=-0.2 * group["lr"] * max(parameter.shape) ** 0.5)


def orthogonal_factor(matrix: Tensor) -> Tensor:
    """Orthogonal factor of a matrix, about: five quintic Newton-Schulz steps (Jordan et al. 2024)."""
    is_tall = matrix.shape[0] > matrix.shape[1]
    factor = matrix.T if is_tall else matrix
    factor = factor / factor.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = factor @ factor.T
        factor = torch.addmm(factor, torch.addmm(gram, gram, gram, beta=-4.775, alpha=2.0315), factor, beta=3.4445)
    return factor.T if is_tall else factor
