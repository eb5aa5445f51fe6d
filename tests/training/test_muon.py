"""Muon in float32 against torch's own, which computes in bfloat16."""

import pytest
import torch
from torch import nn

from training.muon import Muon, orthogonal_factor


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
def test_all_singular_values_become_about_one(shape: tuple[int, int]):
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    matrix = left @ torch.diag(torch.linspace(0.2, 3, min(shape))) @ right
    factor = orthogonal_factor(matrix)
    assert factor.shape == shape
    values = left.T @ factor @ right.T
    assert torch.linalg.svdvals(factor).min() > 0.5
    assert torch.linalg.svdvals(factor).max() < 1.4
    # Its singular vectors are the matrix's.
    torch.testing.assert_close(values, torch.diag(values.diagonal()), atol=1e-4, rtol=0)


def test_steps_are_those_of_torch():
    torch.manual_seed(0)
    start, gradients = torch.randn(12, 20), [torch.randn(12, 20) for _ in range(4)]
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    one = Muon([ours], lr=0.01)
    other = torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for gradient in gradients:
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        one.step()
        other.step()
    moved = theirs.detach() - start
    assert (ours.detach() - theirs.detach()).norm() < 0.02 * moved.norm()
