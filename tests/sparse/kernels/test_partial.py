"""Attention over some of the keys, by each kernel."""

import inspect

import torch
from hypothesis import given, settings
from torch.nn.attention import varlen
from torch.testing import assert_close

from corelens.sparse.kernels.partial import eager_partial_attention, flash_cpu
from tests.helpers.kernel_cases import TOLERANCE, KernelCase, eager_varlen_attn, kernel_cases


@given(kernel_cases(longest=60))
@settings(max_examples=30, deadline=None)
def test_eager_partial_attention_is_that_of_the_kernel(case: KernelCase):
    mask = torch.rand(len(case.query), 1, case.n, case.n, generator=torch.Generator().manual_seed(0)) < 0.3
    for visible in (None, mask):
        arguments = case.query, case.key, case.value, case.scaling, visible
        for eager, flash in zip(eager_partial_attention(*arguments), flash_cpu(*arguments), strict=True):
            assert_close(eager, flash, **TOLERANCE[case.query.dtype])


def test_the_stand_in_has_the_signature_of_torch():
    parameters, expected = (inspect.signature(f).parameters for f in (eager_varlen_attn, varlen.varlen_attn))
    assert [(p.name, p.kind, p.default) for p in parameters.values()] == [
        (p.name, p.kind, p.default) for p in expected.values()
    ]
