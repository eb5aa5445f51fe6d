"""LayerStack against torch.stack, and what it reads."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from corelens.hooks.layer_stack import LayerStack

WEIGHTS = torch.randn(4, 3, 5, 2)


@pytest.fixture
def read() -> list[int]:
    return []


@pytest.fixture
def stack(read: list[int]) -> LayerStack:
    def weight(layer: int) -> Tensor:
        read.append(layer)
        return WEIGHTS[layer]

    return LayerStack([0, 1, 2, 3], weight)


INDICES = (2, -1, (2, 1), (slice(1, 3), 0), (slice(None), 1, slice(0, 2)), slice(1, 3), [0, 3], torch.tensor([1, 2]))


@pytest.mark.parametrize("index", [*INDICES, (..., 0), None], ids=str)
def test_indices_are_those_of_a_tensor(stack: LayerStack, index: object):
    part = stack[index]
    assert_close(part.tensor() if isinstance(part, LayerStack) else part, WEIGHTS[index])


def test_one_layer_is_read_for_a_question_about_it(stack: LayerStack, read: list[int]):
    assert torch.equal(stack[2, 1], WEIGHTS[2, 1])
    assert read == [2]


def test_it_acts_as_a_tensor(stack: LayerStack):
    assert (stack.shape, stack.ndim, len(stack), stack.size(-1)) == (WEIGHTS.shape, 4, 4, 2)
    assert (stack.dtype, stack.device) == (WEIGHTS.dtype, WEIGHTS.device)
    assert_close(stack.mT.tensor(), WEIGHTS.mT)
    assert_close(stack.transpose(-2, -1).tensor(), WEIGHTS.mT)
    assert_close(stack.transpose(0, 1), WEIGHTS.transpose(0, 1))
    assert_close(stack.norm(dim=-1), WEIGHTS.norm(dim=-1))
    assert_close(torch.einsum("lhid,ld->lhi", stack, torch.ones(4, 2)), WEIGHTS.sum(-1))
    assert_close(stack @ torch.ones(2, 1), WEIGHTS.sum(-1, keepdim=True))
    assert_close(torch.ones(2, 5) @ stack, torch.ones(2, 5) @ WEIGHTS)
    assert_close(1 - 2 * stack / stack, -torch.ones_like(WEIGHTS))
    assert torch.equal(torch.stack([*stack]), WEIGHTS)
    assert repr(stack) == "LayerStack(shape=(4, 3, 5, 2), layers=[0, 1, 2, 3])"
    with pytest.raises(AttributeError, match="has no weights"):
        _ = stack.weights


def test_layers_of_several_shapes_are_read_one_by_one():
    stack = LayerStack([3, 5], lambda layer: torch.ones(layer))
    assert stack[1].shape == (5,)
    with pytest.raises(ValueError, match=r"several shapes: \(3,\) in layer 3, \(5,\) in layer 5"):
        stack.tensor()
